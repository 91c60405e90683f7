"""A site that is killed at any time neither forgets what it refused, nor keeps what it has to forget."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wardround.client.parties import Parties
from wardround.client.round import answer
from wardround.client.sealed_files import KEY_FILE, Owner, storage_key
from wardround.client.secure_record import FileDrawRecord, FileRecord, KeptContributions
from wardround.core.errors import InternalError, PeerError, StorageError
from wardround.core.messages import Request
from wardround.privacy.secagg.admission import SiteState
from wardround.privacy.secagg.draw import DrawOffer, DrawRelay, DrawSite, DrawState, SignedDraw
from wardround.privacy.secagg.hashing import digest
from wardround.privacy.secagg.messages import encode
from wardround.privacy.secagg.offer import Offer, SignedOffer
from wardround.privacy.secagg.phases import Phases
from wardround.privacy.secagg.policy import SecurePolicy
from wardround.privacy.secagg.relay import Relay
from wardround.privacy.sums.contract import EVALUATION, SUMS, TRAINING, Lanes
from wardround.privacy.sums.phased import PhasedCollector, PhasedParty

PLAN, BROADCAST = digest("plan"), digest("broadcast")


def owner(site: str = "ward", **changes: Any) -> Owner:
    """Whose files."""
    return Owner(**({"run_id": "run", "plan": PLAN, "site": site} | changes))


def record_in(folder: Path, sum: str = TRAINING, **changes: Any) -> FileRecord:
    """As a new process makes it."""
    return FileRecord(folder, owner(**changes), sum, storage_key(folder))


def kept_in(folder: Path, **changes: Any) -> KeptContributions:
    """As a new process makes it."""
    return KeptContributions(folder, owner(**changes), storage_key(folder))


def lanes_of(value: int = 3, width: str = "<u2") -> Lanes:
    """Lanes of random looking integers."""
    rng = np.random.default_rng(value)
    return Lanes(rng.integers(0, 2**16, size=40).astype(width), rng.integers(0, 2**40, size=3).astype("<u8"))


def same(one: Lanes, other: Lanes) -> bool:
    """In every bit, and in the type."""
    pairs = (one.coordinates, other.coordinates), (one.counters, other.counters)
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def traces(secret: bytes) -> set[bytes]:
    """How bytes may stand in a file."""
    return {
        secret, secret.hex().encode(), base64.b64encode(secret).rstrip(b"=")[:-1],
        base64.urlsafe_b64encode(secret).rstrip(b"=")[:-1],
    }  # fmt: skip


def found_in(folder: Path, *secrets: bytes) -> list[str]:
    """Files in which one of them stands."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [
        path.name for path in files for secret in secrets for trace in traces(secret)
        if trace in path.read_bytes()
    ]  # fmt: skip


@dataclass
class Federation:
    """A consortium whose sites keep all that they must not forget in files."""

    group: Any
    folder: Path
    parties: dict[str, Parties] = field(init=False)
    masked: list[dict[str, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.group.records = {name: record_in(self.folder / name, site=name) for name in self.group.names}
        self.restart()

    def restart(self) -> None:
        """All sites in new processes."""
        self.group.restart()
        self.parties = {
            name: Parties({TRAINING: PhasedParty(self.group.member(name))}, self.kept(name))
            for name in self.group.names
        }

    def kept(self, name: str) -> KeptContributions:
        """Of one site."""
        return kept_in(self.folder / name, site=name)

    def lanes(self, offer: Offer, name: str) -> Lanes:
        """What a site adds."""
        return Lanes(*self.group.inputs(offer, name))

    def request(self, offer: Offer, name: str, message: bytes) -> Request:
        """What brings a message to a site."""
        return Request(
            "run", PLAN.hex(), offer.round, name, {TRAINING: message}, stage=offer.stage,
            attempt=offer.attempt,
        )  # fmt: skip

    def attempt(self, offer: Offer, phases: int) -> PhasedCollector:
        """So many exchanges of an attempt; what is sent in each is in `masked`."""
        signed = SignedOffer.by(self.group.server, offer)
        collector = PhasedCollector(signed, Phases(Relay(offer, self.group.roster)), quorum=1)
        sent, self.masked = collector.begin(), []
        for exchange in range(phases):
            answers = {}
            for name, message in sent.items():
                request, parties = self.request(offer, name, message), self.parties[name]
                if exchange:
                    answers[name] = parties.step(TRAINING, request)
                elif offer.attempt:
                    answers[name] = parties.again(TRAINING, request, BROADCAST, lambda _: None)
                else:
                    answers[name] = parties.begin(
                        TRAINING, request, BROADCAST, self.lanes(offer, name), lambda _: None
                    )
                collector.take(name, answers[name])
            self.masked.append(answers)
            sent = collector.close()
        return collector


@pytest.fixture
def federation(consortium: Callable[..., Any], tmp_path: Path) -> Federation:
    """Six sites."""
    return Federation(consortium(6), tmp_path)


def test_a_site_that_was_restarted_repeats_its_answer_and_refuses_a_replay(federation: Federation) -> None:
    """Word for word; the offer that it accepted, an older one and one with another cohort are refused."""
    group = federation.group
    offer = group.offer(round=2)
    relay, answers = group.to_answers(offer)
    federation.restart()
    message = encode(relay.confirmed())
    for name, given in answers.items():
        assert encode(group.sites[name].repeat(given.survived)) == encode(given)
        assert group.sites[name].repeat(digest("another transcript")) is None
        party = federation.parties[name].parties[TRAINING]
        assert party.step(message) == encode(given)
        with pytest.raises(PeerError, match="no attempt is under way"):
            party.step(encode(relay.survivors()))
        for replayed in (offer, group.offer(round=1)):
            with pytest.raises(PeerError, match="not newer than the last one"):
                group.advertise(name, replayed)
        with pytest.raises(PeerError, match="was opened already"):
            group.advertise(name, group.offer(round=2, attempt=1))
        assert party.confirmed(2) == {0: relay.survivors().sites}


def test_after_a_restart_the_kept_contribution_is_masked_anew_and_gives_the_same_sum(
    federation: Federation,
) -> None:
    """No site trains; the vectors of both attempts differ in nearly every byte, the sum in none."""
    group, first = federation.group, federation.group.offer()
    federation.attempt(first, phases=3)
    before = federation.masked[2]
    federation.restart()
    second = group.offer(attempt=1)
    for name, parties in federation.parties.items():
        request = federation.request(second, name, b"")
        assert parties.broadcast_of(TRAINING, request) == BROADCAST
        assert same(parties.kept[TRAINING][1], federation.lanes(first, name))
    total = federation.attempt(second, phases=5).open()
    group.check(total, second)
    assert total.survivors == group.names
    for name, masked in federation.masked[2].items():
        one, other = np.frombuffer(before[name][-64:], np.uint8), np.frombuffer(masked[-64:], np.uint8)
        assert (one != other).mean() > 0.8


def test_nothing_of_a_contribution_is_in_the_clear_in_any_file(federation: Federation) -> None:
    """Neither lane, in no piece of it; what a site signed is not either."""
    offer = federation.group.offer()
    federation.attempt(offer, phases=5)
    for name in federation.group.names:
        lanes = federation.lanes(offer, name)
        pieces = [
            whole[start : start + 8]
            for whole in (lanes.coordinates.tobytes(), lanes.counters.tobytes())
            for start in range(0, len(whole) - 7, 8)
        ]
        assert not found_in(federation.folder / name, *pieces)
        assert {path.name for path in (federation.folder / name).iterdir()} == {
            KEY_FILE, "state-training.sealed", "contribution-training.sealed",
        }  # fmt: skip


def draws(group: Any, folder: Path) -> dict[str, DrawSite]:
    """The sites' sides of a draw, in new processes."""
    policy = SecurePolicy(group_strategies=("group_median",))
    return {
        name: DrawSite(
            group.member(name, policy=policy), "group_median", 6,
            FileDrawRecord(folder / name, owner(name), storage_key(folder / name)),
        )
        for name in group.names
    }  # fmt: skip


def test_the_part_in_a_draw_survives_a_restart_and_is_sealed(
    consortium: Callable[..., Any], tmp_path: Path
) -> None:
    """No file shows the random bytes, a draw is not begun again, and its groups are found again."""
    group = consortium(12)
    offer = DrawOffer(run_id="run", plan=PLAN, roster=group.roster.digest, sites=group.names, size=6)
    signed = SignedDraw.by(group.server, offer)
    relay, sites = DrawRelay(signed, group.roster), draws(group, tmp_path)
    commitments = relay.commitments({name: site.commit(signed) for name, site in sites.items()})
    for name in group.names:
        state = FileDrawRecord(tmp_path / name, owner(name), storage_key(tmp_path / name)).load()
        assert len(state.value) == 32
        assert not found_in(tmp_path, state.value)
        with pytest.raises(PeerError, match="this draw has ended"):
            draws(group, tmp_path)[name].commit(signed)
    shown = {name: site.show(commitments) for name, site in sites.items()}
    drawn, groups = relay.drawn(commitments, shown)
    for site in (*sites.values(), *draws(group, tmp_path).values()):
        assert site.agree(drawn)[0] == groups
    with pytest.raises(PeerError, match="are drawn already"):
        draws(group, tmp_path)["site_00"].commit(
            SignedDraw.by(group.server, offer.model_copy(update={"attempt": 1}))
        )


def saved(folder: Path) -> list[tuple[Any, Any, Path]]:
    """Each record with a state in it, and its file."""
    record, draw = record_in(folder), FileDrawRecord(folder, owner(), storage_key(folder))
    state, drawn = SiteState(place=(3, 1, 4), members=b"m"), DrawState(attempt=2, value=bytes(range(32)))
    record.save(state)
    draw.save(drawn)
    return [(record, state, folder / "state-training.sealed"), (draw, drawn, folder / "draw.sealed")]


def test_a_record_holds_what_was_saved_last(tmp_path: Path) -> None:
    """Fresh where there is no file; of each sum by itself."""
    assert record_in(tmp_path).load() == SiteState()
    for record, state, path in saved(tmp_path):
        assert record.load() == state
        assert path.stat().st_mode & 0o777 == 0o600
    assert record_in(tmp_path, EVALUATION).load() == SiteState()
    record_in(tmp_path).save(SiteState(place=(4, 0, 0)))
    assert record_in(tmp_path).load().place == (4, 0, 0)
    with pytest.raises(InternalError, match="no sum of this name"):
        record_in(tmp_path, "../other").load()


@pytest.mark.parametrize("damage", ["empty", "cut", "turned", "zeros"])
def test_a_damaged_record_is_never_begun_afresh(tmp_path: Path, damage: str) -> None:
    """Neither read nor written over: what the site refused it would take then."""
    for record, state, path in saved(tmp_path):
        whole = path.read_bytes()
        turned = whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]
        damaged = {"empty": b"", "cut": whole[:-9], "turned": turned, "zeros": bytes(len(whole))}[damage]
        path.write_bytes(damaged)
        for refused in (record.load, lambda record=record, state=state: record.save(state)):
            with pytest.raises(StorageError, match="no further part in the run") as refusal:
                refused()
            assert bytes(range(32)).hex() not in str(refusal.value)
        assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    ("what", "changes"),
    [("run", {"run_id": "other"}), ("plan", {"plan": digest("other")}), ("site", {"site": "other"})],
)
def test_records_and_contributions_of_others_are_refused_and_left(
    tmp_path: Path, what: str, changes: dict[str, Any]
) -> None:
    """To load, save, keep, delete and forget; the rightful owner still reads them."""
    record_in(tmp_path).save(SiteState(place=(3, 0, 0)))
    kept_in(tmp_path)[TRAINING] = (3, 0, BROADCAST), lanes_of()
    record, kept = record_in(tmp_path, **changes), kept_in(tmp_path, **changes)
    for refused in (
        record.load, lambda: record.save(SiteState()), lambda: kept[TRAINING],
        lambda: kept.update({TRAINING: ((4, 0, BROADCAST), lanes_of())}), kept.clear,
        lambda: kept.forget(round=9),
    ):  # fmt: skip
        with pytest.raises(StorageError, match=f"is of another {what}"):
            refused()
    assert record_in(tmp_path).load().place == (3, 0, 0)
    assert same(kept_in(tmp_path)[TRAINING][1], lanes_of())


def test_a_state_of_another_version_is_refused_without_its_content(tmp_path: Path) -> None:
    """The library that reads it would quote what it could not read."""
    draw = FileDrawRecord(tmp_path, owner(), storage_key(tmp_path))
    draw._file.write(b'{"attempt": 0, "value": "c2VjcmV0", "more": "TELLTALE"}')
    with pytest.raises(StorageError, match="this version does not read") as refusal:
        draw.load()
    assert "TELLTALE" not in str(refusal.value)
    assert refusal.value.__suppress_context__
    assert "c2VjcmV0" not in repr(draw)


@pytest.mark.parametrize("width", ["u1", "<u2", "<u4", "<u8"])
def test_a_kept_contribution_comes_back_bit_for_bit(tmp_path: Path, width: str) -> None:
    """In the ring's word, with its place, of each sum by itself; also one without coordinates."""
    kept, scores = kept_in(tmp_path), Lanes(np.zeros(0, "<u8"), lanes_of().counters)
    assert (len(kept), list(kept), kept.get(TRAINING)) == (0, [], None)
    kept[TRAINING] = (3, 1, BROADCAST), lanes_of(1, width)
    kept[EVALUATION] = (3, 0, BROADCAST), scores
    again = kept_in(tmp_path)
    assert set(again) == set(SUMS)
    place, lanes = again[TRAINING]
    assert place == (3, 1, BROADCAST)
    assert same(lanes, lanes_of(1, width))
    assert same(again[EVALUATION][1], scores)
    del again[TRAINING]
    assert list(kept) == [EVALUATION]
    for missing in (lambda: kept[TRAINING], lambda: kept.pop(TRAINING)):
        with pytest.raises(KeyError):
            missing()
    kept.clear()
    assert {path.name for path in tmp_path.iterdir()} == {KEY_FILE}


def test_what_is_forgotten_cannot_be_read_any_more(tmp_path: Path) -> None:
    """Nor what was replaced; a later round stays. Not by who kept the file open, with the storage key."""
    kept, path = kept_in(tmp_path), tmp_path / "contribution-training.sealed"
    kept[TRAINING] = (2, 0, BROADCAST), lanes_of()
    with path.open("rb") as held:
        kept[TRAINING] = (3, 0, BROADCAST), lanes_of()
        path.write_bytes(held.read())
    with pytest.raises(StorageError):
        kept[TRAINING]
    kept[TRAINING], kept[EVALUATION] = ((3, 0, BROADCAST), lanes_of()), ((4, 0, BROADCAST), lanes_of())
    kept.forget(round=2)
    assert set(kept) == set(SUMS)
    with path.open("rb") as held:
        kept.forget(round=3)
        assert list(kept_in(tmp_path)) == [EVALUATION]
        path.write_bytes(held.read())
    with pytest.raises(StorageError):
        kept[TRAINING]
    kept.forget(round=3)
    assert not path.exists()


def test_a_contribution_that_cannot_be_read_is_refused_and_gives_way(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Asked for it is a StorageError with the remedy; the next one takes its place; so does forgetting."""
    kept, path = kept_in(tmp_path), tmp_path / "contribution-training.sealed"
    kept[TRAINING] = (3, 0, BROADCAST), lanes_of()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StorageError, match="goes on without this site"):
        kept[TRAINING]
    with caplog.at_level(logging.WARNING):
        kept[TRAINING] = (4, 0, BROADCAST), lanes_of(5)
    assert "a kept contribution is lost" in caplog.text
    assert same(kept[TRAINING][1], lanes_of(5))
    path.write_bytes(b"")
    kept.forget(round=1)
    assert list(kept) == []


def test_the_handler_forgets_a_round_once_the_next_one_is_signed(
    make: Callable[..., Any], tmp_path: Path
) -> None:
    """Not for an offer that it refuses; whether that round was folded or burnt, or the site was restarted."""
    for story in ("folded", "burnt", "restarted"):
        server = make()
        kept = kept_in(tmp_path / story)
        site = replace(server.site, parties=Parties(server.site.parties.parties, kept))
        for name in SUMS:
            assert answer(server.request(sums=[name]), site).status == "ok"
        assert set(kept) == set(SUMS)
        if story == "restarted":
            fresh = server.restarted()
            site, server = replace(fresh.site, parties=Parties(fresh.site.parties.parties, kept)), fresh
        changes: dict[str, Any] = {"opened": ()} if story == "burnt" else {}
        request = server.request(2, sums=[EVALUATION], **changes)
        forged = server.consortium.signers["ward"], server.offer(EVALUATION, server.initial, round=2)
        sums = {EVALUATION: encode(SignedOffer.by(*forged))}
        assert answer(replace(request, sums=sums), site).status == "refused"
        assert kept[TRAINING][0][0] == 1
        assert answer(request, site).status == "ok"
        assert list(kept) == [EVALUATION]
        assert kept[EVALUATION][0][0] == 2
        late = answer(server.request(1, sums=[TRAINING], attempt=1), site)
        assert (late.status, late.code) == ("failed", "nothing_kept")
