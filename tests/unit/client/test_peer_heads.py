"""Peers keep the head of a site's ledger, and a site whose ledger was put back is told so before it sends."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from headed_site import OTHER, PEER, SOUTH, give_ledger, heads_of, own_keeper, remote, write

from wardround.client import peer_heads
from wardround.client.ledger.reading import verify
from wardround.client.peer_heads import FILE
from wardround.client.remote_keeper import RemoteKeeper
from wardround.core.errors import PeerError, RolledBackError, StorageError
from wardround.privacy.secagg.messages import NO_HEAD
from wardround.privacy.sums.contract import EVALUATION, TRAINING

# --- its own file


def test_heads_of_peers_are_kept_by_sum_and_outlive_the_process(tmp_path: Path) -> None:
    """The last one of each; who shows none, or something else, keeps its place."""
    first, second = secrets.token_bytes(64), secrets.token_bytes(64)
    heads_of(tmp_path).keep({PEER: first, OTHER: first})
    heads_of(tmp_path, sum=EVALUATION).keep({PEER: second})
    heads_of(tmp_path).keep({PEER: second, OTHER: NO_HEAD})
    heads_of(tmp_path).keep({PEER: b"", OTHER: b"short"})
    kept = heads_of(tmp_path).kept([PEER, OTHER, "site_03"])
    assert kept == {PEER: second, OTHER: first, "site_03": NO_HEAD}
    assert heads_of(tmp_path, sum=EVALUATION).kept([OTHER, PEER]) == {OTHER: NO_HEAD, PEER: second}
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_a_kill_or_a_full_disk_leaves_the_heads_that_were_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And when it returns they are on the disk."""
    first, second = secrets.token_bytes(64), secrets.token_bytes(64)
    synced: list[int] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(descriptor), sync(descriptor))[1])
    heads_of(tmp_path).keep({PEER: first})
    assert len(synced) == 2, "the file and its folder"
    heads_of(tmp_path).keep({PEER: first})
    assert len(synced) == 2, "nothing new is written"
    for error in (OSError(28, "No space left on device"), KeyboardInterrupt()):

        def fails(*_: Any, error: BaseException = error) -> None:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", fails)
            with pytest.raises((StorageError, KeyboardInterrupt)):
                heads_of(tmp_path).keep({PEER: second})
        assert heads_of(tmp_path).kept([PEER]) == {PEER: first}
        assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_no_more_heads_are_kept_than_a_roster_has_members(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of who is there now stay."""
    monkeypatch.setattr(peer_heads, "MOST_MEMBERS", 3)
    heads_of(tmp_path).keep({name: secrets.token_bytes(64) for name in ("a", "b", "c")})
    heads_of(tmp_path).keep({name: secrets.token_bytes(64) for name in ("c", "d")})
    kept = heads_of(tmp_path).kept(["a", "b", "c", "d"])
    assert [name for name, head in kept.items() if head != NO_HEAD] == ["c", "d"]


@pytest.mark.parametrize(
    "content", ["", "{", '{"version":2}', '{"sums":{"training":{"a":"eA=="}}}', '{"more":1}']
)
def test_a_damaged_file_is_named_and_not_overwritten(tmp_path: Path, content: str) -> None:
    """With what to do."""
    (tmp_path / FILE).write_text(content)
    for call in (lambda: heads_of(tmp_path).kept([PEER]), lambda: heads_of(tmp_path).keep({PEER: b"h" * 64})):
        with pytest.raises(StorageError, match=r"(?s)peer-heads\.json.*remove it"):
            call()
    assert (tmp_path / FILE).read_text() == content


# --- its own ledger's head


def test_a_site_shows_another_head_each_time_and_one_length_without_a_ledger(tmp_path: Path) -> None:
    """To each consortium its own."""
    assert heads_of(tmp_path).own() == NO_HEAD
    ledger = give_ledger(tmp_path)
    shown = {heads_of(tmp_path).own(), heads_of(tmp_path).own(), heads_of(tmp_path, SOUTH).own()}
    assert len(shown) == 3
    assert {len(head) for head in shown} == {len(NO_HEAD)}
    heads_of(tmp_path).returned({PEER: heads_of(tmp_path).own(), OTHER: NO_HEAD, "site_03": b""})
    assert not (ledger / "seen.json").exists()


def test_the_highest_head_that_any_peer_has_kept_counts(tmp_path: Path) -> None:
    """One peer is enough; older ones are simply lower."""
    ledger = give_ledger(tmp_path)
    old = heads_of(tmp_path).own()
    shutil.copytree(ledger, tmp_path / "backup")
    write(ledger, "ann")
    new = heads_of(tmp_path).own()
    heads_of(tmp_path).returned({PEER: old, OTHER: new})
    shutil.rmtree(ledger)
    (tmp_path / "backup").rename(ledger)
    heads_of(tmp_path).returned({PEER: old, OTHER: old})
    with pytest.raises(RolledBackError, match="older copy"):
        heads_of(tmp_path).returned({PEER: old, OTHER: new, "site_03": secrets.token_bytes(64)})
    for call in (heads_of(tmp_path).own, lambda: heads_of(tmp_path).returned({PEER: old})):
        with pytest.raises(RolledBackError):
            call()


def test_rubbish_stops_nobody_and_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Random bytes, another length, another consortium's head: the peer is named, and nothing else."""
    ledger = give_ledger(tmp_path)
    own = heads_of(tmp_path).own()
    rubbish = [
        secrets.token_bytes(64),
        own[:-1],
        own[:63] + bytes([own[63] ^ 1]),
        heads_of(tmp_path, SOUTH).own(),
    ]
    with caplog.at_level(logging.WARNING):
        for head in rubbish:
            heads_of(tmp_path).returned({PEER: head, OTHER: own})
    assert [record.getMessage() for record in caplog.records] == [
        f"what {PEER} kept of this site's privacy ledger is no head of it"
    ] * len(rubbish)
    heads_of(tmp_path).returned({PEER: rubbish[0], "site_03": rubbish[0], OTHER: own})
    assert not [record for record in caplog.records if record.levelno > logging.WARNING], "one knows it"
    assert not any(head.hex() in caplog.text or str(head) in caplog.text for head in rubbish)
    heads_of(tmp_path).own()
    assert verify(ledger).strangers == 0


def test_several_peers_who_know_another_ledger_are_said_loudly_and_stop_only_a_site_without_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It was made anew: no head proves that, and two liars must not cost a site its budget."""
    give_ledger(tmp_path)
    before = heads_of(tmp_path).own()
    (tmp_path / "ledger").rename(tmp_path / "lost")
    with caplog.at_level(logging.ERROR):
        heads_of(tmp_path).returned({PEER: before})
        with pytest.raises(RolledBackError, match="has none any more"):
            heads_of(tmp_path).returned({PEER: before, OTHER: before})
    assert "2 peers have seen a privacy ledger of this site, and it has none any more" in caplog.text
    ledger = give_ledger(tmp_path)
    caplog.clear()
    with caplog.at_level(logging.ERROR):
        heads_of(tmp_path).returned({PEER: before})
        assert not caplog.records, "one alone may be wrong"
        heads_of(tmp_path).returned({PEER: before, OTHER: before})
    assert "2 peers know another privacy ledger of this site" in caplog.text
    assert verify(ledger).strangers == 2
    heads_of(tmp_path).own()


# --- between processes


@pytest.fixture
def served(tmp_path: Path) -> Iterator[RemoteKeeper]:
    """A worker's keeper, over a real socket."""
    with ExitStack() as stack:
        yield remote(stack, own_keeper(tmp_path / "site"), tmp_path / "s")


def test_the_supervisor_keeps_shows_and_judges_heads(served: RemoteKeeper, tmp_path: Path) -> None:
    """As in one process, errors and all."""
    heads, ledger = served.heads(TRAINING), give_ledger(tmp_path / "site")
    shutil.copytree(ledger, tmp_path / "backup")
    write(ledger, "ann")
    shown = heads.own()
    heads.keep({PEER: b"h" * 64})
    assert heads.kept([PEER, OTHER]) == {PEER: b"h" * 64, OTHER: NO_HEAD}
    heads.returned({PEER: shown, OTHER: secrets.token_bytes(64)})
    shutil.rmtree(ledger)
    (tmp_path / "backup").rename(ledger)
    with pytest.raises(RolledBackError, match=r"(?s)older copy.*ledger replay"):
        heads.returned({PEER: shown})
    with pytest.raises(RolledBackError):
        heads.own()


def test_the_supervisor_takes_heads_of_sites_and_no_more(served: RemoteKeeper, tmp_path: Path) -> None:
    """Names, lengths and sums are judged before anything is written."""
    with pytest.raises(PeerError, match="no sum of this name"):
        served.heads("groups").own()
    heads = served.heads(TRAINING)
    for call in (heads.keep, heads.returned):
        with pytest.raises(PeerError, match=r"(?s)too long.*65.*at most 64"):
            call({PEER: bytes(65)})
        with pytest.raises(PeerError, match="not of sites"):
            call({"../keys": bytes(64)})
    with pytest.raises(PeerError, match="not of sites"):
        heads.kept(["a/b"])
    assert not (tmp_path / "site" / FILE).exists()
