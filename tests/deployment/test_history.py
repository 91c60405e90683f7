"""What left five sites: as the preview foretold it, as the history says, and as the server got it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from deployed import wait_for
from federation import Deployed, Federation
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import PushObjectRequest

from wardround.client.accepted import RunFolders
from wardround.client.fetching import fetch_result
from wardround.client.history.commands import totals
from wardround.client.history.history import FILE, FOLDER, Verified, verify
from wardround.client.membership.site_folder import SiteFolder
from wardround.client.offered_plans import named_plan
from wardround.client.preview.fields import what_is
from wardround.client.preview.preview import Preview, preview_of
from wardround.client.supervisor import running_site
from wardround.core.errors import StorageError
from wardround.runtime.event_log import read_events
from wardround.runtime.events import RoundFolded, SiteReplied
from wardround.server.fleet import FleetApp
from wardround.server.run_states import RunStatus

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
COUNTS = {"aachen": 24, "basel": 17, "cork": 30, "delft": 22, "emden": 26}
SHARE, EACH = 0.01, 48
"""A run's history differs from the preview by at most this share, and so many bytes a message: figures have
up to 22 digits and Flower's numbers up to ten bytes, which the preview takes at their longest."""
FIGURE, OVER = 24, 8
"""Bytes by which one figure may be shorter than foretold, and by which a message may be longer."""


@dataclass
class Received:
    """What arrived at the server, as bytes.

    Attributes:
        announcements: SHA-256 → node, and the announcement itself.
        pieces: SHA-256 → bytes of a piece.
    """

    announcements: dict[str, tuple[int, PushMessagesRequest]] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    pieces: dict[str, int] = field(default_factory=dict)

    def take(self, path: str, body: bytes) -> None:
        """Note one request."""
        if path.endswith("/push-messages"):
            asked, digest = PushMessagesRequest.FromString(body), hashlib.sha256(body).hexdigest()
            self.announcements[digest], self.lengths[digest] = (asked.node.node_id, asked), len(body)
        elif path.endswith("/push-object"):
            piece = PushObjectRequest.FromString(body)
            self.pieces[hashlib.sha256(piece.object_content).hexdigest()] = len(piece.object_content)

    def size(self, digest: str) -> int:
        """Bytes of an announcement and of all its pieces."""
        (tree,) = self.announcements[digest][1].message_object_trees
        return self.lengths[digest] + sum(self.pieces[name] for name in set(names(tree)))


def names(tree: Any) -> Iterator[str]:
    """Of all pieces."""
    yield tree.object_id
    for child in tree.children:
        yield from names(child)


@pytest.fixture(scope="module")
def received() -> Iterator[Received]:
    """By the server of this module."""
    found, patch, handle = Received(), pytest.MonkeyPatch(), FleetApp._handle

    def noting(self: FleetApp, request: Any) -> bytes:
        found.take(request.url.path, request._body)
        return handle(self, request)

    patch.setattr(FleetApp, "_handle", noting)
    yield found
    patch.undo()


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Federation:
    """Its folders and files."""
    return Federation.make(tmp_path_factory.mktemp("history"), tiny_bert, COUNTS)


@pytest.fixture(scope="module")
def deployed(federation: Federation, received: Received) -> Iterator[Deployed]:
    """All of its processes."""
    assert received.announcements == {}
    with ExitStack() as stack:
        yield Deployed.start(stack, federation)


@pytest.fixture(scope="module")
def finished(federation: Federation, deployed: Deployed) -> str:
    """A run that has ended, under secure aggregation, and whose result one site has fetched."""
    run = deployed.submit(federation.plan("plan"))
    record = deployed.ended(run, 600)
    assert record.status is RunStatus.FINISHED, record.reason
    site = federation.practice.sites["aachen"]
    fetch_result(site, RunFolders(site.path / "runs"), run)
    return run


def history_of(site: SiteFolder) -> Verified:
    """Checked."""
    return verify(site.path / FOLDER)


def foretold(federation: Federation, site: SiteFolder, plan: str) -> Preview:
    """By the site's own preview."""
    return preview_of(named_plan(site, plan), site.name, sorted(federation.practice.sites))


def test_every_message_that_the_server_got_is_in_a_history(
    federation: Federation, finished: str, received: Received
) -> None:
    """With its digest and its size, at the site that sent it; and nothing is in one that it did not get."""
    rows: dict[str, tuple[str, int]] = {}
    for name, site in federation.practice.sites.items():
        for row in history_of(site).sent:
            assert row.left.run == finished
            if row.left.kind != "question":
                assert row.left.kind in {"answer", "reply"}
                rows[row.left.digest] = (name, row.left.bytes)
    assert set(rows) == set(received.announcements)
    assert {digest: size for digest, (_, size) in rows.items()} == {
        digest: received.size(digest) for digest in received.announcements
    }
    senders: dict[str, set[int]] = {}
    for digest, (name, _) in rows.items():
        senders.setdefault(name, set()).add(received.announcements[digest][0])
    assert all(len(nodes) == 1 for nodes in senders.values())
    assert len(set.union(*senders.values())) == len(COUNTS)


def test_the_history_is_what_the_preview_foretold(federation: Federation, finished: str) -> None:
    """Message for message, and byte for byte but for the length of numbers."""
    for site in federation.practice.sites.values():
        preview = foretold(federation, site, finished)
        rows = [row.left for row in history_of(site).sent if row.left.kind != "question"]
        assert len(rows) == preview.count
        sent = sum(row.bytes for row in rows)
        assert abs(sent - preview.bytes_up) <= SHARE * preview.bytes_up + EACH * preview.count
        first = [row for row in rows if (row.round, row.exchange) == (1, 0)]
        assert [set(row.sums) for row in first] == [{"training", "evaluation"}]
        singles = {(m.when, m.exchange): m for m in preview.messages}
        for row in rows:
            when = "the answer to the offer" if row.kind == "answer" else "a round with scores"
            when = "after the last round" if row.round == preview.rounds + 1 else when
            expected = singles[when, row.exchange]
            shorter = expected.bytes - row.bytes
            assert -OVER <= shorter <= EACH + FIGURE * len(expected.figures), (row, expected)


def test_questions_are_in_it_too(federation: Federation, finished: str) -> None:
    """Those of the command that fetches a result, which another process asks."""
    found = history_of(federation.practice.sites["aachen"])
    asked = [row.left.note for row in found.sent if row.left.kind == "question"]
    assert len(asked) == 3
    assert all(note.startswith(f"/v1/wardround/results/{finished}/") for note in asked)
    assert totals(found.sent)[finished]["messages"] == len(found.sent)


def test_the_figures_that_the_server_saw_are_listed(deployed: Deployed, finished: str) -> None:
    """With what they are."""
    events = read_events(deployed.server.desk.run(finished).folder.events)
    seen = {name for event in events if isinstance(event, SiteReplied) for name in event.local or {}}
    assert seen == {
        "seconds",
        "seconds.training",
        "seconds.evaluation",
    }  # all that the default policy lets out
    assert [name for name in seen if not what_is("local", name)] == []


def wardround(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command, in a process of its own."""
    command = [sys.executable, "-m", "wardround.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, env=os.environ)


def test_people_see_it_and_are_told_who_changed_it(federation: Federation, finished: str) -> None:
    """The commands, while the site runs; an edited and a cut record end them with 1 and name the place."""
    site = federation.practice.sites["basel"]
    folder = ("--folder", str(site.path))
    shown = wardround("site", "history", *folder, "--json")
    assert shown.returncode == 0, shown.stderr
    told = json.loads(shown.stdout)
    previewed = wardround("site", "preview", finished, *folder, "--json", "--fields")
    assert previewed.returncode == 0, previewed.stderr
    preview = json.loads(previewed.stdout)
    assert told["totals"][finished]["messages"] == preview["count"]
    assert {"advertise", "masked", "unmask"} <= set(preview["fields"])
    text = wardround("site", "history", *folder, "--run", finished, "--noted", told["head"])
    assert text.returncode == 0, text.stderr
    assert f"{finished}: {preview['count']} messages" in text.stdout
    assert "round 1 step 1" in text.stdout
    words = wardround("site", "preview", str(federation.practice.folder / "plan"), *folder)
    assert words.returncode == 0, words.stderr
    for part in (
        "1. advertise (training and evaluation)",
        "under masks",
        "train.loss",
        f"{preview['count']} messages",
    ):
        assert part in words.stdout
    file = site.path / FOLDER / FILE
    whole = file.read_bytes()
    try:
        for changed, named in (
            (whole.replace(b'"round":1', b'"round":2', 1), "does not follow from those before it"),
            (b"".join(whole.splitlines(keepends=True)[:-1]), "the end of the history is missing"),
        ):
            file.write_bytes(changed)
            refused = wardround("site", "history", *folder)
            assert refused.returncode == 1
            assert named in refused.stderr
    finally:
        file.write_bytes(whole)
    history_of(site)


def test_a_site_that_cannot_record_sends_nothing(
    federation: Federation, deployed: Deployed, finished: str, received: Received
) -> None:
    """It says so, and takes part once the record is there again."""
    assert finished
    site = federation.practice.sites["delft"]
    own = node_of(site, received)

    def announced() -> set[str]:
        return {digest for digest, (node, _) in received.announcements.items() if node == own}

    before = announced()
    away = site.path / "history.away"
    (site.path / FOLDER).rename(away)
    run = deployed.submit(federation.plan("second"), "two")
    note = wait_for(lambda: deployed.sites["delft"].states()[0].note, 240)
    assert "nothing is sent since" in note
    assert "there is no" in note
    assert announced() == before
    away.rename(site.path / FOLDER)
    record = deployed.ended(run, 600)
    assert record.status is RunStatus.FINISHED, record.reason
    wait_for(lambda: not deployed.sites["delft"].states()[0].note, 60)
    folded = [
        e for e in read_events(deployed.server.desk.run(run).folder.events) if isinstance(e, RoundFolded)
    ]
    assert all("delft" in event.survivors for event in folded)
    assert run in totals(history_of(site).sent)


def node_of(site: SiteFolder, received: Received) -> int:
    """Flower's number of a site's node."""
    row = next(row for row in history_of(site).sent if row.left.kind == "answer")
    return received.announcements[row.left.digest][0]


def test_a_damaged_history_keeps_a_site_from_starting(federation: Federation) -> None:
    """By name; see also `tests/unit/client/history/`."""
    other = Federation.make(
        federation.practice.folder.parent / "o", federation.base, {"north": 4, "south": 4, "west": 4}
    )
    site = other.practice.sites["north"]
    with running_site(site.path):
        pass
    file = site.path / FOLDER / FILE
    file.write_bytes(file.read_bytes().replace(b'"north"', b'"sorth"'))
    with pytest.raises(StorageError, match="row 0 of the history does not follow"), running_site(site.path):
        pass
