"""Keys, records and ledger on the other side of a socket: what is asked for, and what is refused."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardround.client.charges import Charge
from wardround.client.keeper import OwnKeeper
from wardround.client.keeper_service import (
    KINDS,
    LARGEST_MESSAGE,
    KeeperService,
    require_onwards,
    require_statement,
)
from wardround.client.ledger.ledger import Ledger
from wardround.client.ledger.policy import BudgetPolicy
from wardround.client.remote_keeper import RemoteKeeper
from wardround.client.sealed_files import Owner
from wardround.core.errors import BudgetError, PolicyError, WardroundError
from wardround.privacy.accounting.mechanisms import SampledGaussian
from wardround.privacy.secagg.admission import SiteState
from wardround.privacy.secagg.draw import DrawState
from wardround.privacy.secagg.hashing import framed, unframed
from wardround.privacy.secagg.identity import KeySigner, check, statement
from wardround.privacy.secagg.secret import Secret
from wardround.runtime.control.server import serve
from wardround.runtime.control.sockets import UnixSocket

OWNER = Owner(run_id="run1", plan=b"p" * 32, site="ward")
PARTS = st.one_of(st.binary(max_size=40), st.text(max_size=20), st.integers(-(2**63), 2**63 - 1))


@pytest.fixture
def own(tmp_path: Path) -> OwnKeeper:
    """The supervisor's keeper."""
    return OwnKeeper(KeySigner.fresh(), tmp_path / "site", Secret.fresh())


@pytest.fixture
def remote(own: OwnKeeper, tmp_path: Path) -> Iterator[RemoteKeeper]:
    """The worker's, over a real socket."""
    token, socket = secrets.token_hex(16), UnixSocket(tmp_path / "s")
    services = [KeeperService("ward", own).service()]
    with serve(services, socket, token=token, largest_bytes=LARGEST_MESSAGE):
        keeper = RemoteKeeper.at(socket, token)
        yield keeper
        keeper.calls.client.close()


@given(st.text(max_size=20), st.lists(PARTS, max_size=5))
def test_what_is_framed_is_read_again(tag: str, parts: list[Any]) -> None:
    """The encoding is injective: its inverse gives every part."""
    assert unframed(framed(tag, *parts)) == (tag, *parts)


@given(st.binary(max_size=300))
def test_anything_else_is_refused_and_never_signed(data: bytes) -> None:
    """No bytes but a statement of this site are signed."""
    with pytest.raises(PolicyError):
        require_statement(data, "ward")


def test_every_kind_that_a_site_signs_is_known() -> None:
    """Those of the protocol's messages, of the draw, and of a box."""
    assert {"advertise", "deal", "masked", "confirm", "unmask", "box", "draw commit"} <= KINDS
    assert "offer" not in KINDS
    assert "draw" not in KINDS


def test_statements_of_the_site_are_signed_by_its_identity(own: OwnKeeper, remote: RemoteKeeper) -> None:
    """The signature is the key's; another site's statement, an offer or a roster is refused."""
    said = statement("confirm", b"c" * 32, "ward", b"survivors")
    check(own.signer.public, remote.signer.sign(said), said, "ward")
    for other in (
        statement("confirm", b"c" * 32, "clinic"),
        statement("offer", b"c" * 32, "ward"),
        statement("confirm", b"short", "ward"),
        framed("wardround signed 1", "roster", "text", "ward"),
    ):
        with pytest.raises(PolicyError, match="nothing else"):
            remote.signer.sign(other)


def test_records_lie_with_the_supervisor_and_never_go_back(own: OwnKeeper, remote: RemoteKeeper) -> None:
    """What the worker saves is durable there; an older place, or other terms of a round, are refused."""
    record = remote.record(OWNER, "training")
    assert record.load() == SiteState()
    state = SiteState(place=(3, 0, 0), members=b"m", terms={"0": b"t"})
    record.save(state)
    assert own.record(OWNER, "training").load() == state
    record.save(SiteState(place=(3, 0, 1), members=b"m", terms={"0": b"t"}, survivors={"0": ("a", "b")}))
    for back in (
        SiteState(),
        SiteState(place=(2, 9, 9), members=b"m"),
        SiteState(place=(3, 0, 2), members=b"other", terms={"0": b"t"}, survivors={"0": ("a", "b")}),
        SiteState(place=(3, 0, 2), members=b"m", terms={"0": b"other"}, survivors={"0": ("a", "b")}),
        SiteState(place=(3, 0, 2), members=b"m", terms={"0": b"t"}),
    ):
        with pytest.raises(PolicyError, match="go back"):
            record.save(back)
    record.save(SiteState(place=(4, 0, 0), members=b"new"))
    draw = remote.draw_record(OWNER)
    draw.save(DrawState(attempt=1, value=b"v", groups=b"g"))
    assert draw.load().groups == b"g"
    with pytest.raises(PolicyError, match="go back"):
        draw.save(DrawState(attempt=1, value=b"v", groups=b"h"))


def test_records_of_two_kinds_do_not_mix() -> None:
    """A draw's record is none of a sum's."""
    with pytest.raises(PolicyError):
        require_onwards(SiteState(), DrawState())


def test_a_record_of_no_sum_is_refused(remote: RemoteKeeper) -> None:
    """The name of a sum names a file."""
    with pytest.raises(WardroundError, match="no sum of this name"):
        remote.record(OWNER, "../../keys").load()


def charge(run: str = "run1", draw: str = "d1") -> Charge:
    """A round's charge of two patients."""
    return Charge(
        source="rows", units=("ann", "bob", "ann"), run=run, plan="a" * 64, round=1, draw=draw,
        mechanism=SampledGaussian(sample_rate=0.5, sigma=2.0, steps=3), unit="patient",
    )  # fmt: skip


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
