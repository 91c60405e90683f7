"""What the supervisor signs for the worker: real phases of real attempts, and nothing beside them."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_plans import toy_plan

from wardround.client.admitting import AcceptedRun
from wardround.client.keeper import OwnKeeper
from wardround.client.keeper_service import LARGEST_MESSAGE, KeeperService
from wardround.client.ledger_place import LedgerPlace
from wardround.client.remote_keeper import RemoteKeeper
from wardround.client.sealed_files import Owner
from wardround.client.statements import OF_SUMS, SHAPES, read_statement
from wardround.core.errors import PeerError, PolicyError
from wardround.privacy.secagg.admission import SiteState
from wardround.privacy.secagg.draw import (
    Commitments,
    DrawOffer,
    DrawRelay,
    DrawSite,
    DrawState,
    SignedDraw,
    digest_of,
)
from wardround.privacy.secagg.hashing import framed, unframed
from wardround.privacy.secagg.identity import statement
from wardround.privacy.secagg.messages import Complaint, MaskedInput
from wardround.privacy.secagg.offer import SignedOffer
from wardround.privacy.secagg.policy import SecurePolicy
from wardround.privacy.secagg.secret import Secret
from wardround.privacy.secagg.site import SecureSite
from wardround.runtime.control.server import serve
from wardround.runtime.control.sockets import UnixSocket

OWN = "site_00"
PARTS = st.one_of(st.binary(max_size=40), st.text(max_size=20), st.integers(-(2**63), 2**63 - 1))
DRAWING = SecurePolicy(group_strategies=("vote",), least_cohort=4, most_attempts=3)


@dataclass
class Kept:
    """One site of a consortium whose keys and records lie with a supervisor."""

    consortium: Any
    remote: RemoteKeeper
    owner: Owner

    def site(self) -> SecureSite:
        """A new worker's side of the sum."""
        record = self.remote.record(self.owner, "training")
        return SecureSite(self.consortium.member(OWN, signer=self.remote.signer, record=record))

    def signed(self, **changes: Any) -> SignedOffer:
        """An offer of the server."""
        return SignedOffer.by(self.consortium.server, self.consortium.offer(**changes))


@pytest.fixture
def kept(consortium: Callable[..., Any], tmp_path: Path) -> Iterator[Kept]:
    """Over a real socket."""
    made = consortium()
    own = OwnKeeper(
        made.signers[OWN],
        tmp_path / "site",
        Secret.fresh(),
        lambda: LedgerPlace(tmp_path / "site" / "ledger"),
    )
    token, socket = secrets.token_hex(16), UnixSocket(tmp_path / "s")

    def runs(owner: Owner, sum: str, record: Any) -> AcceptedRun:
        if owner.run_id != "run":
            raise PolicyError("this site has accepted no such run")
        return AcceptedRun(
            toy_plan(), made.member(OWN, record=record, policy=DRAWING if not sum else made.policy)
        )

    with serve([KeeperService(OWN, own, runs).service()], socket, token=token, largest_bytes=LARGEST_MESSAGE):
        keeper = RemoteKeeper.at(socket, token)
        plan = made.member(OWN).plan
        yield Kept(made, keeper, Owner(run_id="run", plan=plan, site=OWN))
        keeper.calls.client.close()


@given(st.text(max_size=20), st.lists(PARTS, max_size=5))
def test_what_is_framed_is_read_again(tag: str, parts: list[Any]) -> None:
    """The encoding is injective: its inverse gives every part."""
    assert unframed(framed(tag, *parts)) == (tag, *parts)


@given(st.binary(max_size=300))
def test_anything_else_is_refused_and_never_signed(data: bytes) -> None:
    """No bytes but a statement of this site are read as one."""
    with pytest.raises(PolicyError):
        read_statement(data, "ward")


@given(st.sampled_from(sorted(SHAPES)), st.lists(PARTS, max_size=6))
def test_a_statement_has_the_parts_of_its_kind(kind: str, parts: list[Any]) -> None:
    """Whatever stands in it beside them is malformed: none of these has all its digests and keys."""
    with pytest.raises(PolicyError, match="malformed"):
        read_statement(statement(kind, b"c" * 32, "ward", *parts), "ward")


def test_every_kind_that_a_site_signs_is_known() -> None:
    """Those of the protocol's messages, of the draw, and of a box; no offer, which is the server's."""
    assert set(SHAPES) == {
        "advertise", "opening", "box", "deal", "complain", "masked", "confirm", "unmask", "draw commit",
        "draw show", "draw agree", "sealed",
    }  # fmt: skip


@pytest.mark.parametrize("degree", [0, 4])
def test_whole_rounds_are_signed(kept: Kept, degree: int) -> None:
    """Every phase, boxes and the regular graph's opening among them; a lost site and later attempts too."""
    table = kept.consortium
    graph = {"degree": degree, "share_threshold": 4 if degree else 0}
    table.policy = SecurePolicy(most_exposure=1.0)
    table.restart()
    table.sites[OWN] = kept.site()
    for place, lost in (((1, 0), {}), ((2, 0), {"site_03": "mask"}), ((2, 1), {})):
        offer = table.offer(round=place[0], attempt=place[1], **graph)
        if place == (2, 1):  # what was opened is never opened again
            with pytest.raises(PeerError, match="opened already"):
                table.run(offer)
        else:
            table.check(table.run(offer, lost), offer)


def test_a_complaint_is_signed(kept: Kept) -> None:
    """A box that its dealer signed and that does not open."""
    table = kept.consortium
    table.sites[OWN] = kept.site()
    offer = table.offer()
    _, deliveries = table.to_deliveries(offer)
    boxes = dict(deliveries[OWN].boxes)
    dealer, box = next(iter(boxes.items()))
    broken = box.model_copy(update={"sealed": bytes(len(box.sealed))})
    agreed = table.sites[dealer]._phase.agreed
    signature = table.signers[dealer].sign(broken.statement(offer.context, dealer, agreed))
    boxes[dealer] = broken.model_copy(update={"signature": signature})
    delivery = deliveries[OWN].model_copy(update={"boxes": boxes})
    complaint = table.sites[OWN].mask(delivery, *table.inputs(offer, OWN))
    assert isinstance(complaint, Complaint)
    table.roster.check(OWN, complaint.signature, complaint.statement(offer.context))


@pytest.mark.parametrize("kind", sorted(OF_SUMS))
def test_nothing_is_said_of_an_attempt_that_was_not_begun(
    kept: Kept, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the worker makes up, well formed: refused by name, and in the supervisor's log."""
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(PolicyError, match=f"'{kind}' belongs to no attempt"),
    ):
        kept.remote.signer.sign(made_up(kind, b"c" * 32))
    assert f"'{kind}' belongs to no attempt" in caplog.text


def made_up(kind: str, context: bytes, fill: bytes = b"x", peer: str = "site_01") -> bytes:
    """A well formed statement."""
    sizes = [part.stop - 1 if isinstance(part, range) else part for part in SHAPES[kind]]
    return statement(kind, context, OWN, *(peer if size is str else fill * size for size in sizes))  # type: ignore[operator]  # sizes of bytes


def test_one_thing_is_said_in_each_phase(kept: Kept) -> None:
    """No second confirmation, vector or box for one peer; the same once more is no second one."""
    site, sign = kept.site(), kept.remote.signer.sign
    site.advertise(kept.signed(), kept.consortium.offer().broadcast)
    context = kept.consortium.offer().context
    for kind in ("masked", "confirm", "box", "deal"):
        assert sign(made_up(kind, context)) == sign(made_up(kind, context))
        with pytest.raises(PolicyError, match="another statement"):
            sign(made_up(kind, context, b"y"))
    with pytest.raises(PolicyError, match="another statement"):
        sign(made_up("advertise", context))  # the site has advertised its own keys
    sign(made_up("box", context, b"y", "site_02"))
    for nobody in (OWN, "stranger"):
        with pytest.raises(PolicyError, match="none of its peers"):
            sign(made_up("box", context, peer=nobody))


def test_shares_are_given_for_the_confirmed_survivors_alone(kept: Kept) -> None:
    """The very transcript."""
    site, sign, context = kept.site(), kept.remote.signer.sign, kept.consortium.offer().context
    site.advertise(kept.signed(), kept.consortium.offer().broadcast)
    with pytest.raises(PolicyError, match="confirmed"):
        sign(made_up("unmask", context))
    sign(made_up("confirm", context))
    with pytest.raises(PolicyError, match="confirmed"):
        sign(made_up("unmask", context, b"y"))
    sign(made_up("unmask", context))


def test_an_attempt_that_another_has_followed_is_over(kept: Kept) -> None:
    """Its context is signed for no more, and a record that names it again does not bring it back."""
    site, sign = kept.site(), kept.remote.signer.sign
    broadcast = kept.consortium.offer().broadcast
    site.advertise(kept.signed(), broadcast)
    site.advertise(kept.signed(attempt=1), broadcast)
    record = kept.remote.record(kept.owner, "training")
    record.save(record.load())
    sign(made_up("confirm", kept.consortium.offer(attempt=1).context))
    record.save(record.load())  # nothing new begins: it has been said
    with pytest.raises(PolicyError, match="another statement"):
        sign(made_up("confirm", kept.consortium.offer(attempt=1).context, b"y"))
    with pytest.raises(PolicyError, match="no attempt"):
        sign(made_up("confirm", kept.consortium.offer().context))


def test_a_record_goes_on_with_what_the_site_itself_accepts(kept: Kept) -> None:
    """No offer of another server, run, roster or plan, nor a cohort or an attempt that policy forbids."""
    record, table = kept.remote.record(kept.owner, "training"), kept.consortium
    good = kept.signed()
    few = table.names[:3]
    for bad, said in (
        (good.model_copy(update={"signature": b"0" * 64}), "signature"),
        (kept.signed(run_id="other"), "another run"),
        (kept.signed(roster=b"r" * 32), "another roster"),
        (kept.signed(plan=b"p" * 32), "another plan"),
        (kept.signed(cohort=few, threshold=3), "cohort"),
        (kept.signed(attempt=99), "attempt"),
    ):
        with pytest.raises((PeerError, PolicyError), match=said):
            record.save(SiteState().after(bad))
    with pytest.raises(PolicyError, match="without the offer"):
        record.save(SiteState(place=(1, 0, 0)))
    with pytest.raises(PolicyError, match="not what follows"):
        record.save(SiteState().after(good).model_copy(update={"place": (5, 0, 0)}))
    with pytest.raises(PolicyError, match="no such run"):
        kept.remote.record(Owner(run_id="nobody's", plan=b"p" * 32, site=OWN), "training").save(
            SiteState().after(good)
        )
    assert record.load() == SiteState()
    record.save(SiteState().after(good))
    with pytest.raises(PeerError, match="not newer"):
        record.save(record.load().after(kept.signed()).model_copy(update={"place": (1, 0, 1)}))


def test_a_draw_is_signed_as_the_record_has_it(kept: Kept) -> None:
    """A whole draw; no other commitment, bytes or groups than the record's, and none of another offer."""
    table, sign = kept.consortium, kept.remote.signer.sign

    def signed(**changes: Any) -> SignedDraw:
        fields: dict[str, Any] = {
            "run_id": "run", "plan": table.offer().plan, "roster": table.roster.digest, "sites": table.names,
            "size": 4,
        }  # fmt: skip
        return SignedDraw.by(table.server, DrawOffer(**(fields | changes)))

    class InMemory:
        def __init__(self) -> None:
            self.state = DrawState()

        def load(self) -> DrawState:
            return self.state

        def save(self, state: DrawState) -> None:
            self.state = state

    def site(name: str) -> DrawSite:
        record: Any = InMemory() if name != OWN else kept.remote.draw_record(kept.owner)
        more = {"signer": kept.remote.signer} if name == OWN else {}
        return DrawSite(table.member(name, policy=DRAWING, **more), "vote", 4, record)

    sites, offer = {name: site(name) for name in table.names}, signed()
    relay = DrawRelay(offer, table.roster)
    commitments = relay.commitments({name: one.commit(offer) for name, one in sites.items()})
    context = offer.offer.context
    assert isinstance(commitments, Commitments)
    for kind in ("draw commit", "draw show", "draw agree"):
        with pytest.raises(PolicyError, match="not what this site's record says"):
            sign(made_up(kind, context))
        with pytest.raises(PolicyError, match="no attempt"):
            sign(made_up(kind, b"c" * 32))
    drawn, groups = relay.drawn(commitments, {name: one.show(commitments) for name, one in sites.items()})
    assert sites[OWN].agree(drawn)[0] == groups
    assert site(OWN).agree(drawn)[0] == groups, "a restarted worker says the same again"
    with pytest.raises(PolicyError, match="without its offer"):
        kept.remote.draw_record(kept.owner).save(DrawState(attempt=2, groups=digest_of(groups)))


def test_a_masked_vector_says_what_its_kind_does() -> None:
    """The shapes here are those of the messages themselves."""
    vector = MaskedInput(site=OWN, dealt=b"d" * 32, coordinates=b"1", counters=b"2")
    assert read_statement(vector.statement(b"c" * 32), OWN).kind == "masked"
