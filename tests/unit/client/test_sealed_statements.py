"""What the supervisor signs where contributions are sealed: one envelope an attempt, to the pinned key."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from toy_plans import toy_plan

from wardround.client.admitting import AcceptedRun
from wardround.client.keeper import OwnKeeper
from wardround.client.keeper_service import LARGEST_MESSAGE, KeeperService
from wardround.client.ledger_place import LedgerPlace
from wardround.client.remote_keeper import RemoteKeeper
from wardround.client.sealed_files import Owner
from wardround.core.errors import PeerError, PolicyError
from wardround.core.plan import SecureRules
from wardround.privacy.sealed import KIND, context_of, seal
from wardround.privacy.secagg.identity import statement
from wardround.privacy.secagg.messages import MaskedInput, encode
from wardround.privacy.secagg.offer import Offer, SignedOffer
from wardround.privacy.secagg.policy import SecurePolicy
from wardround.privacy.secagg.secret import Secret
from wardround.privacy.sums.contract import Lanes
from wardround.privacy.sums.trusted import Aggregator, TrustedParty, header_of
from wardround.runtime.control.server import serve
from wardround.runtime.control.sockets import UnixSocket

OWN, HASH = "site_00", b"h" * 32
AGGREGATOR = Aggregator(Secret.fresh())
POLICY = SecurePolicy(modes=("trusted",), aggregator=AGGREGATOR.public.hex())


@dataclass
class Kept:
    """One site whose people trust an aggregator, and whose keys and records lie with a supervisor."""

    consortium: Any
    remote: RemoteKeeper
    owner: Owner

    def party(self) -> TrustedParty:
        """A new worker's side of the sum."""
        record = self.remote.record(self.owner, "training")
        member = self.consortium.member(OWN, signer=self.remote.signer, record=record, policy=POLICY)
        return TrustedParty(member, AGGREGATOR.public)

    def begin(self, offer: Offer) -> bytes:
        """The site's envelope."""
        data = encode(SignedOffer.by(self.consortium.server, offer))
        return self.party().begin(data, offer.broadcast, Lanes(*self.consortium.inputs(offer, OWN)))


@pytest.fixture
def kept(consortium: Callable[..., Any], tmp_path: Path) -> Iterator[Kept]:
    """Over a real socket."""
    made, folder = consortium(), tmp_path / "site"
    own = OwnKeeper(made.signers[OWN], folder, Secret.fresh(), lambda: LedgerPlace(folder / "ledger"))
    token, socket = secrets.token_hex(16), UnixSocket(tmp_path / "s")
    plan = toy_plan(secure=SecureRules(mode="trusted", aggregator=AGGREGATOR.public.hex()))

    def runs(owner: Owner, sum: str, record: Any) -> AcceptedRun:
        return AcceptedRun(plan, made.member(OWN, record=record, policy=POLICY))

    with serve([KeeperService(OWN, own, runs).service()], socket, token=token, largest_bytes=LARGEST_MESSAGE):
        keeper = RemoteKeeper.at(socket, token)
        yield Kept(made, keeper, Owner(run_id="run", plan=made.member(OWN).plan, site=OWN))
        keeper.calls.client.close()


def test_an_envelope_that_the_supervisor_signed_is_opened(kept: Kept) -> None:
    """Attempt after attempt, round after round: what the site put in comes out at the aggregator."""
    table = kept.consortium
    for place in ({"round": 1}, {"round": 1, "attempt": 1}, {"round": 2}):
        offer = table.offer(**place)
        coordinates, counters = AGGREGATOR.reader(offer, table.roster)(OWN, kept.begin(offer))
        packed = Lanes(*table.inputs(offer, OWN)).packed(offer.bits)
        assert (coordinates, counters) == tuple(map(bytes, packed))


def test_a_worker_gets_one_envelope_signed_in_an_attempt(kept: Kept) -> None:
    """Neither another one for it, nor one of an attempt that is over, nor a second one after a restart."""
    table, sign = kept.consortium, kept.remote.signer.sign
    offer = table.offer()
    context = context_of(header_of(offer, OWN, AGGREGATOR.public))
    with pytest.raises(PolicyError, match="belongs to no attempt"):
        sign(statement(KIND, context, OWN, HASH, HASH))
    kept.begin(offer)
    with pytest.raises(PolicyError, match="another statement"):
        sign(statement(KIND, context, OWN, HASH, HASH))
    with pytest.raises(PeerError, match="not newer"):
        kept.begin(offer)
    later = table.offer(attempt=1)
    kept.begin(later)
    with pytest.raises(PolicyError, match="belongs to no attempt"):
        sign(statement(KIND, context, OWN, HASH, HASH))


def test_nothing_else_is_signed_for_a_worker_that_was_taken_over(kept: Kept) -> None:
    """No envelope to another key, in another's name or of other lanes; and no contribution in the clear."""
    table, signer = kept.consortium, kept.remote.signer
    offer = table.offer()
    record = kept.remote.record(kept.owner, "training")
    record.save(record.load().after(SignedOffer.by(table.server, offer)))
    lanes = Lanes(*table.inputs(offer, OWN)).packed(offer.bits)
    own = header_of(offer, OWN, AGGREGATOR.public)
    other = Aggregator(Secret.fresh())
    for header in (
        header_of(offer, OWN, other.public),
        own.model_copy(update={"round": 9}),
        own.model_copy(update={"layout": b"l" * 32}),
    ):
        with pytest.raises(PolicyError, match="belongs to no attempt"):
            seal(header, *lanes, signer)
    with pytest.raises(PolicyError, match="nothing else"):
        signer.sign(statement(KIND, context_of(own), "site_01", HASH, HASH))
    clear = MaskedInput(site=OWN, dealt=offer.context, coordinates=bytes(lanes[0]), counters=bytes(lanes[1]))
    with pytest.raises(PolicyError, match="belongs to no attempt"):
        signer.sign(clear.statement(offer.context))
    seal(own, *lanes, signer)


def test_of_other_kinds_of_sums_no_envelope_is_signed(consortium: Callable[..., Any]) -> None:
    """A plan without an aggregator has none: nothing is sealed to anybody for it."""
    made = consortium()
    member = made.member(OWN, policy=POLICY)
    assert AcceptedRun(toy_plan(), member).envelope(made.offer()) is None
    for pinned in (None, "ab" * 32):
        plan = toy_plan(secure=SecureRules(mode="trusted", aggregator=AGGREGATOR.public.hex()))
        changed = made.member(OWN, policy=POLICY.model_copy(update={"aggregator": pinned}))
        with pytest.raises(PolicyError, match="does not trust the plan's aggregator"):
            AcceptedRun(plan, changed).envelope(made.offer())
