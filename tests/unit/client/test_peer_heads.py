"""Peers keep the head of a site's ledger, and a site whose ledger was put back is told so before it sends."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from wardround.client import peer_heads
from wardround.client.charges import Charge
from wardround.client.keeper import Keeper, OwnKeeper
from wardround.client.keeper_service import LARGEST_MESSAGE, KeeperService
from wardround.client.ledger.ledger import Ledger
from wardround.client.ledger.policy import BudgetPolicy
from wardround.client.ledger.reading import verify
from wardround.client.ledger.repair import replay, write_off
from wardround.client.ledger_place import LedgerPlace
from wardround.client.peer_heads import FILE, PeerHeads
from wardround.client.remote_keeper import RemoteKeeper
from wardround.core.errors import BudgetError, PeerError, PolicyError, RolledBackError, StorageError
from wardround.privacy.accounting.mechanisms import SampledGaussian
from wardround.privacy.secagg.identity import KeySigner
from wardround.privacy.secagg.messages import NO_HEAD, MaskedInput
from wardround.privacy.secagg.relay import Relay
from wardround.privacy.secagg.secret import Secret
from wardround.privacy.secagg.site import SecureSite
from wardround.privacy.sums.contract import EVALUATION, TRAINING
from wardround.runtime.control.server import serve
from wardround.runtime.control.sockets import UnixSocket

NORTH, SOUTH = "ab" * 32, "cd" * 32
OWN, PEER, OTHER = "site_00", "site_01", "site_02"
SIGNED = {"who": "Dr Test", "why": "the disk broke"}
MECHANISM = SampledGaussian(sample_rate=0.1, sigma=4.0, steps=1)


def heads_of(folder: Path, consortium: str = NORTH, sum: str = TRAINING) -> PeerHeads:
    """Of a site with its ledger in its folder."""
    return PeerHeads(folder, consortium, sum, lambda: LedgerPlace(folder / "ledger"))


def give_ledger(folder: Path) -> Path:
    """A new ledger of a site."""
    Ledger.create(folder / "ledger", BudgetPolicy(epsilon=4.0, delta=1e-3), units=3).close()
    return folder / "ledger"


def write(ledger: Path, name: str) -> None:
    """One row more."""
    with Ledger.open(ledger) as opened:
        opened.source(name, [name])


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


def test_several_peers_who_know_another_ledger_are_said_loudly_and_stop_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It was made anew: no head proves that, and two liars must not cost a site its budget."""
    give_ledger(tmp_path)
    before = heads_of(tmp_path).own()
    (tmp_path / "ledger").rename(tmp_path / "lost")
    with caplog.at_level(logging.ERROR):
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


def own_keeper(folder: Path) -> OwnKeeper:
    """The supervisor's."""
    folder.mkdir(exist_ok=True)
    return OwnKeeper(KeySigner.fresh(), folder, Secret.fresh(), lambda: LedgerPlace(folder / "ledger"), NORTH)


def remote(stack: ExitStack, own: OwnKeeper, path: Path) -> RemoteKeeper:
    """The worker's."""
    token, socket = secrets.token_hex(16), UnixSocket(path)
    services = [KeeperService(OWN, own, lambda *_: None).service()]  # type: ignore[arg-type,return-value]  # no record is kept
    stack.enter_context(serve(services, socket, token=token, largest_bytes=LARGEST_MESSAGE))
    keeper = RemoteKeeper.at(socket, token)
    stack.callback(keeper.calls.client.close)
    return keeper


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


# --- a consortium


@dataclass
class Ward:
    """One site with a ledger of its own."""

    folder: Path
    keeper: Keeper
    run: str = "run"
    draws: list[str] = field(default_factory=list)

    @property
    def ledger(self) -> Path:
        """Its folder."""
        return self.folder / "ledger"

    def reserve(self, round: int) -> None:
        """Charge a round to its patients, as before it trains."""
        draw = secrets.token_hex(8)
        self.keeper.charges().reserve(
            Charge(
                source="rows", units=("ann", "bob"), run=self.run, plan="a" * 64, round=round, draw=draw,
                mechanism=MECHANISM, unit="patient", delta=1e-4,
            )
        )  # fmt: skip
        self.draws.append(draw)

    def seal(self, round: int) -> None:
        """As before anything leaves."""
        self.keeper.charges().seal(self.run, round, secrets.token_hex(32))


@dataclass
class Table:
    """Ten sites, their server, and what a round does to each."""

    group: Any
    wards: dict[str, Ward]

    def member(self, name: str) -> SecureSite:
        """A site's side, as a new process makes it."""
        heads = self.wards[name].keeper.heads(TRAINING)
        return SecureSite(self.group.member(name, heads=heads))

    def run(self, round: int, attempt: int = 0) -> tuple[tuple[str, ...], dict[str, Exception]]:
        """One round to its end: who is in the sum, and what kept the others out; every site is restarted."""
        group, out, sites = self.group, dict[str, Exception](), {}
        offer = group.offer(round=round, attempt=attempt)
        relay = Relay(offer, group.roster)

        def all_of(names: Any, call: Callable[[str], None]) -> None:
            for name in names:
                try:
                    call(name)
                except (StorageError, PolicyError, BudgetError) as error:
                    out[name] = error

        def train(name: str) -> None:
            self.wards[name].reserve(round)
            self.wards[name].seal(round)
            sites[name] = group.sites[name] = self.member(name)
            relay.take_advertisement(group.advertise(name, offer))

        all_of(group.names, train)
        advertised = relay.advertised()
        all_of(sorted(set(sites) - set(out)), lambda name: relay.take_dealing(sites[name].deal(advertised)))
        deliveries = relay.deliveries()

        def mask(name: str) -> None:
            masked = sites[name].mask(deliveries[name], *group.inputs(offer, name))
            assert isinstance(masked, MaskedInput)
            relay.take_masked(masked)

        all_of(deliveries, mask)
        survivors = relay.survivors()
        for name in survivors.sites:
            relay.take_confirmation(sites[name].confirm(survivors))
        for name in survivors.sites:
            relay.take_unmasking(sites[name].unmask(relay.confirmed()))
        total = relay.open()
        group.check(total, offer)
        return total.survivors, out


@pytest.fixture(params=["in one process", "behind a socket"])
def table(request: Any, consortium: Callable[..., Any], tmp_path: Path) -> Iterator[Table]:
    """The site whose ledger is put back has it in this process, or with its supervisor."""
    group = consortium(10)
    with ExitStack() as stack:
        wards = {}
        for name in group.names:
            own: Any = own_keeper(tmp_path / name)
            give_ledger(tmp_path / name)
            if name == OWN and request.param == "behind a socket":
                own = remote(stack, own, tmp_path / "s")
            wards[name] = Ward(tmp_path / name, own)
        yield Table(group, wards)


def test_a_site_whose_ledger_was_put_back_refuses_and_the_others_go_on(table: Table, tmp_path: Path) -> None:
    """Two rounds were lost. Nothing of it is in the sum, and from then on it does not even reserve.

    It has reserved and sealed by then, since peers speak after it has trained: two ways, which are joined.
    """
    ward, everybody = table.wards[OWN], table.group.names
    assert table.run(1) == (everybody, {})
    shutil.copytree(ward.ledger, tmp_path / "backup")
    for round in (2, 3):
        assert table.run(round) == (everybody, {})
    ward.ledger.rename(tmp_path / "true")
    (tmp_path / "backup").rename(ward.ledger)

    survivors, out = table.run(4)
    assert survivors == everybody[1:]
    assert list(out) == [OWN]
    assert isinstance(out[OWN], RolledBackError)
    rows = (ward.ledger / "ledger.jsonl").read_bytes()
    made = len(ward.draws)
    survivors, out = table.run(5)
    assert survivors == everybody[1:]
    assert isinstance(out[OWN], RolledBackError)
    assert (ward.ledger / "ledger.jsonl").read_bytes() == rows, "no row is touched any more"
    assert len(ward.draws) == made

    found = replay(ward.ledger, tmp_path / "true")
    assert (found.rows, found.own, found.behind) == (4, 2, False)
    assert table.run(6) == (everybody, {})
    with Ledger.open(ward.ledger) as ledger:
        charged = [ledger.book.is_drawn(("run", round, 0)) for round in range(1, 8)]
    assert charged == [True, True, True, True, False, True, False], "whatever it drew, on either way"


def test_after_a_write_off_the_site_is_in_again_as_far_as_its_cap_says(table: Table, tmp_path: Path) -> None:
    """Nothing fits until a person grants more; and no run that was under way."""
    ward, everybody = table.wards[OWN], table.group.names
    table.run(1)
    shutil.copytree(ward.ledger, tmp_path / "backup")
    table.run(2)
    shutil.rmtree(ward.ledger)
    (tmp_path / "backup").rename(ward.ledger)
    assert isinstance(table.run(3)[1][OWN], RolledBackError)
    write_off(ward.ledger, **SIGNED)
    survivors, out = table.run(4)
    assert survivors == everybody[1:]
    assert "does not join a run again" in str(out[OWN])
    ward.run = "another"
    survivors, out = table.run(5)
    assert survivors == everybody[1:]
    assert isinstance(out[OWN], BudgetError)
    with Ledger.open(ward.ledger) as ledger:
        ledger.amend(BudgetPolicy(epsilon=9.0, delta=1e-3), **SIGNED)
    assert table.run(6) == (everybody, {})


def test_a_site_that_vanishes_before_it_was_told_is_told_the_next_time(table: Table, tmp_path: Path) -> None:
    """What it showed in the attempt that was lost has made nobody forget."""
    ward, group = table.wards[OWN], table.group
    table.run(1)
    shutil.copytree(ward.ledger, tmp_path / "backup")
    table.run(2)
    shutil.rmtree(ward.ledger)
    (tmp_path / "backup").rename(ward.ledger)
    ward.reserve(3)
    for phase in ("deal", "mask"):
        for name in group.names:
            group.sites[name] = table.member(name)
        attempt = ("deal", "mask").index(phase)
        group.check(group.run(group.offer(round=3 + attempt), {OWN: phase}), group.offer())
    assert isinstance(table.run(9)[1][OWN], RolledBackError)
