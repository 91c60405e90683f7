"""Keys, records and ledger on the other side of a socket: what is asked for, and what is refused."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from wardround.client.charges import Charge
from wardround.client.keeper import OwnKeeper
from wardround.client.keeper_service import LARGEST_MESSAGE, KeeperService, require_onwards
from wardround.client.ledger.ledger import Ledger
from wardround.client.ledger.policy import BudgetPolicy
from wardround.client.ledger_place import LedgerPlace
from wardround.client.remote_keeper import RemoteKeeper
from wardround.client.sealed_files import Owner
from wardround.core.errors import BudgetError, PolicyError, StorageError, WardroundError
from wardround.privacy.accounting.account import Account
from wardround.privacy.accounting.mechanisms import SampledGaussian
from wardround.privacy.secagg.admission import SiteState
from wardround.privacy.secagg.draw import DrawState
from wardround.privacy.secagg.identity import KeySigner
from wardround.privacy.secagg.secret import Secret
from wardround.runtime.control.server import serve
from wardround.runtime.control.sockets import UnixSocket

OWNER = Owner(run_id="run1", plan=b"p" * 32, site="ward")


def no_run(owner: Owner, sum: str, record: object) -> NoReturn:
    """A site that has accepted nothing."""
    raise PolicyError("this site has accepted no such run")


@pytest.fixture
def own(tmp_path: Path) -> OwnKeeper:
    """The supervisor's keeper."""
    return OwnKeeper(
        KeySigner.fresh(),
        tmp_path / "site",
        Secret.fresh(),
        lambda: LedgerPlace(tmp_path / "site" / "ledger"),
    )


@pytest.fixture
def remote(own: OwnKeeper, tmp_path: Path) -> Iterator[RemoteKeeper]:
    """The worker's, over a real socket."""
    token, socket = secrets.token_hex(16), UnixSocket(tmp_path / "s")
    services = [KeeperService("ward", own, no_run).service()]
    with serve(services, socket, token=token, largest_bytes=LARGEST_MESSAGE):
        keeper = RemoteKeeper.at(socket, token)
        yield keeper
        keeper.calls.client.close()


def test_records_lie_with_the_supervisor_and_never_go_back(own: OwnKeeper, remote: RemoteKeeper) -> None:
    """What the worker saves is durable there; an older place, or other terms of a round, are refused."""
    record = remote.record(OWNER, "training")
    assert record.load() == SiteState()
    with pytest.raises(PolicyError, match="accepted no such run"):
        record.save(SiteState(place=(3, 0, 0), members=b"m", terms={"0": b"t"}))
    assert own.record(OWNER, "training").load() == SiteState()


def test_no_record_goes_back() -> None:
    """An older place, other terms of a round, another draw are refused, whatever else they say."""
    first = SiteState(place=(3, 0, 0), members=b"m", terms={"0": b"t"})
    state = first.model_copy(update={"place": (3, 0, 1), "survivors": {"0": ("a", "b")}})
    require_onwards(first, state)
    require_onwards(state, SiteState(place=(4, 0, 0), members=b"new"))
    for back in (
        SiteState(),
        SiteState(place=(2, 9, 9), members=b"m"),
        SiteState(place=(3, 0, 2), members=b"other", terms={"0": b"t"}, survivors={"0": ("a", "b")}),
        SiteState(place=(3, 0, 2), members=b"m", terms={"0": b"other"}, survivors={"0": ("a", "b")}),
        SiteState(place=(3, 0, 2), members=b"m", terms={"0": b"t"}),
    ):
        with pytest.raises(PolicyError, match="go back"):
            require_onwards(state, back)
    draw = DrawState(attempt=1, value=b"v", committed=b"c", groups=b"g")
    for changed in ({"groups": b"h"}, {"value": b"w"}, {"committed": b"d"}, {"attempt": 0}):
        with pytest.raises(PolicyError, match="go back"):
            require_onwards(draw, draw.model_copy(update=changed))


def test_records_of_two_kinds_do_not_mix() -> None:
    """A draw's record is none of a sum's."""
    with pytest.raises(PolicyError):
        require_onwards(SiteState(), DrawState())


def test_a_record_of_no_sum_is_refused(remote: RemoteKeeper) -> None:
    """The name of a sum names a file."""
    with pytest.raises(WardroundError, match="no sum of this name"):
        remote.record(OWNER, "../../keys").load()


MECHANISM = SampledGaussian(sample_rate=0.5, sigma=2.0, steps=3)


def charge(run: str = "run1", draw: str = "d1") -> Charge:
    """A round's charge of two patients."""
    return Charge(
        source="rows", units=("ann", "bob", "ann"), run=run, plan="a" * 64, round=1, draw=draw,
        mechanism=MECHANISM, unit="patient",
        delta=1e-3,
    )  # fmt: skip


def test_a_runs_epsilon_is_told_at_the_plans_delta(own: OwnKeeper, remote: RemoteKeeper) -> None:
    """And not at that of the site's own account, which bounds more than this run."""
    Ledger.create(own.folder / "ledger", BudgetPolicy(epsilon=9.0, delta=1e-2), units=2).close()
    found = {}
    for delta in (1e-2, 1e-4):
        asked = charge().model_copy(update={"delta": delta})
        found[delta] = remote.charges().reserve(asked)
        assert found[delta] == pytest.approx(Account(mechanisms=(MECHANISM,)).epsilon(delta, units=2).value)
    assert found[1e-4] > 1.2 * found[1e-2]
    with Ledger.open(own.folder / "ledger") as ledger:
        source = ledger.source("rows", ("ann", "bob"))
        assert ledger.epsilon(source, run="run1").value == pytest.approx(found[1e-2])


def test_a_ledger_that_is_missing_is_not_taken_for_none(tmp_path: Path) -> None:
    """The worker is told so over the socket, and does not go on as at a site that never had one."""
    folder, token, socket = tmp_path / "site", secrets.token_hex(16), UnixSocket(tmp_path / "s")
    place = LedgerPlace(folder / "ledger", sites=(folder,))
    own = OwnKeeper(KeySigner.fresh(), folder, Secret.fresh(), lambda: place)
    folder.mkdir()
    with serve(
        [KeeperService("ward", own, no_run).service()], socket, token=token, largest_bytes=LARGEST_MESSAGE
    ):
        remote = RemoteKeeper.at(socket, token)
        with pytest.raises(PolicyError, match="no privacy ledger"):
            remote.charges()
        Ledger.create(place.folder, BudgetPolicy(epsilon=3.0, delta=1e-3), units=2).close()
        remote.charges()
        place.folder.rename(folder / "renamed")
        with pytest.raises(StorageError):
            remote.charges()
        remote.calls.client.close()


def test_the_ledger_is_charged_by_the_supervisor(own: OwnKeeper, remote: RemoteKeeper) -> None:
    """Reserved and sealed over the socket: the ledger has it, and refuses what it would refuse at home."""
    with pytest.raises(PolicyError, match="no privacy ledger"):
        remote.charges()
    Ledger.create(own.folder / "ledger", BudgetPolicy(epsilon=3.0, delta=1e-3), units=2).close()
    charges = remote.charges()
    spent = charges.reserve(charge())
    assert 0 < spent < 3
    charges.seal("run1", 1, "e" * 64)
    with pytest.raises(PolicyError, match="contribution already"):
        charges.seal("run1", 1, "f" * 64)
    with Ledger.open(own.folder / "ledger") as ledger:
        assert ledger.sealed(run="run1", round=1, stage=0) == "e" * 64
    with pytest.raises(BudgetError):  # noqa: PT012 - one of them is the first too many
        for number in range(99):
            charges.reserve(charge(run=f"again{number}"))
