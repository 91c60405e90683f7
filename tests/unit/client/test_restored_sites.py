"""In a consortium a site whose ledger was put back is told so before anything of it is in a sum."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from headed_site import MECHANISM, OWN, SIGNED, give_ledger, own_keeper, remote

from wardround.client.charges import Charge
from wardround.client.keeper import Keeper
from wardround.client.ledger.ledger import Ledger
from wardround.client.ledger.policy import BudgetPolicy
from wardround.client.ledger.repair import replay, write_off
from wardround.core.errors import BudgetError, PolicyError, RolledBackError, StorageError
from wardround.privacy.secagg.messages import MaskedInput
from wardround.privacy.secagg.relay import Relay
from wardround.privacy.secagg.site import SecureSite
from wardround.privacy.sums.contract import TRAINING


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
