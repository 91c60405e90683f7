"""Whether a site takes part in an attempt: what it must not forget, what it refuses before it makes a key."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from pydantic import Field

from wardround.core.errors import PeerError
from wardround.privacy.secagg.identity import Roster, Signer
from wardround.privacy.secagg.messages import Unmasking
from wardround.privacy.secagg.offer import Offer, SignedOffer, Wire
from wardround.privacy.secagg.policy import SecurePolicy


class SiteState(Wire):
    """What a site must not forget, whatever is restarted; saved before the answer that it belongs to."""

    place: tuple[int, int, int] = (0, 0, 0)
    """Round, stage and attempt of the last offer that was accepted."""
    members: bytes = b""
    """Digest of cohort and threshold of the round's first offer."""
    terms: dict[str, bytes] = Field(default_factory=dict)
    """Stage → digest of its first offer in that round."""
    survivors: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Stage → the survivors whose sum this site helped to open in that round."""
    opened: tuple[str, ...] = ()
    """The survivors of the last sum that this site helped to open, in whatever round."""
    answer: Unmasking | None = None
    """The last unmask answer, to be repeated word for word."""
    offer: SignedOffer | None = None
    """The last one that was accepted: whoever keeps the record can see for itself that it may stand there."""

    def after(self, signed: SignedOffer) -> SiteState:
        """The state once the offer is accepted."""
        offer = signed.offer
        stage = str(offer.stage)
        if offer.round > self.place[0]:
            return SiteState(
                place=offer.place, members=offer.members, terms={stage: offer.terms}, answer=self.answer,
                offer=signed, opened=self.opened,
            )  # fmt: skip
        terms = {**self.terms, stage: offer.terms}
        return self.model_copy(update={"place": offer.place, "terms": terms, "offer": signed})


class Record(Protocol):
    """Keeps a `SiteState`; `save` has to be durable when it returns."""

    def load(self) -> SiteState:
        """The last state that was saved."""

    def save(self, state: SiteState) -> None:
        """Keep it."""


class Heads(Protocol):
    """The heads of privacy ledgers that the members of a consortium keep for each other.

    So a site is told of rows that its ledger has lost. A head is at most `HEAD_BYTES`, which its own site
    alone can read; `NO_HEAD`, or nothing at all, is none.
    """

    def own(self) -> bytes:
        """Head of this site's ledger, to be shown.

        Raises:
            StorageError: The ledger cannot be opened; or others have seen rows that it lacks.
        """

    def kept(self, sites: Collection[str]) -> Mapping[str, bytes]:
        """What is given back to each of these sites, where there is anything."""

    def keep(self, heads: Mapping[str, bytes]) -> None:
        """Keep what these sites have shown, in place of what was kept of them; durable when it returns.

        Raises:
            StorageError: It cannot be written.
        """

    def returned(self, heads: Mapping[str, bytes]) -> None:
        """Judge what peers give back: by site, a head of this one's, none, or rubbish.

        Raises:
            StorageError: A peer has seen rows that the ledger lacks: now, and until a person has seen to it.
        """


class NoHeads:
    """Nothing is shown, kept or judged: simulations, and whoever has no ledger to lose."""

    def own(self) -> bytes:
        """As `Heads`."""
        return b""

    def kept(self, sites: Collection[str]) -> Mapping[str, bytes]:  # noqa: ARG002 - the protocol's
        """As `Heads`."""
        return {}

    def keep(self, heads: Mapping[str, bytes]) -> None:
        """As `Heads`."""

    def returned(self, heads: Mapping[str, bytes]) -> None:
        """As `Heads`."""


NO_HEADS: Final = NoHeads()


@dataclass(frozen=True)
class Member:
    """Who takes part, under which rules.

    Attributes:
        name: Of the site.
        signer: Signs with its identity key.
        roster: The members that its own people confirmed.
        server: Public key that the consortium gave its server; it signs offers.
        policy: Its own rules.
        run_id: The run whose plan it accepted.
        plan: Digest of that plan.
        record: What survives a crash.
        least_change: Sites; the survivors of two sums, one opened after the other, are the same or differ by
            so many: of what is counted of the same rows each time, their difference is that of a few sites.
        heads: Of ledgers: this site's own, and those that it keeps for its peers.
    """

    name: str
    signer: Signer
    roster: Roster
    server: bytes
    policy: SecurePolicy
    run_id: str
    plan: bytes
    record: Record
    least_change: int = 0
    heads: Heads = NO_HEADS


def read(member: Member, signed: SignedOffer, broadcast: bytes) -> Offer:
    """The offer, if the server signed it, it does not contradict itself, and is about this run and broadcast.

    Raises:
        PeerError: It is not.
    """
    offer = signed.check(member.server)
    offer.check()
    _same("run", offer.run_id, member.run_id)
    _same("plan", offer.plan.hex(), member.plan.hex())
    _same("roster", offer.roster.hex(), member.roster.digest.hex())
    _same("broadcast", offer.broadcast.hex(), broadcast.hex())
    strangers = sorted(offer.sites - member.roster.keys.keys())
    if strangers or member.name not in offer.sites:
        raise PeerError(
            "the cohort holds a site that is no confirmed member, or misses this one",
            found=", ".join(strangers[:5]) or "a cohort without this site",
            remedy="confirm the new roster first, if it is right",
        )
    return offer


def accept(member: Member, state: SiteState, signed: SignedOffer, broadcast: bytes) -> Offer:
    """The offer; refuses one that does not protect this site, or does not follow from earlier ones.

    Args:
        member: This site.
        state: What it remembers.
        signed: What the relay proposes.
        broadcast: Digest of the state that the site was really sent.

    Raises:
        PolicyError: The site's own rules refuse.
        PeerError: The offer is not the server's, or contradicts itself, plan, roster, an earlier one.
    """
    offer = read(member, signed, broadcast)
    member.policy.check_cohort(len(offer.cohort), offer.threshold)
    member.policy.check_attempt(offer.attempt)
    if offer.degree:
        member.policy.check_graph(len(offer.cohort), offer.degree, offer.share_threshold)
    _check_order(state, offer)
    return offer


def accept_seen(member: Member, state: SiteState, signed: SignedOffer, broadcast: bytes) -> Offer:
    """As `accept`, where somebody whom the site trusts sees its contribution: it hides among nobody.

    So no rule on cohort, threshold or graph holds; all others do.

    Raises:
        PolicyError: More attempts than the site's own rules allow.
        PeerError: As `accept`.
    """
    offer = read(member, signed, broadcast)
    member.policy.check_attempt(offer.attempt)
    if _is_later(state, offer):
        if offer.stage and str(offer.stage - 1) not in state.terms:
            raise PeerError("the offer skips a stage", found=f"stage {offer.stage}")
        _check_terms(state, offer)
    return offer


def _check_order(state: SiteState, offer: Offer) -> None:
    if not _is_later(state, offer):
        return
    if str(offer.stage) in state.survivors:
        raise PeerError(
            "this sum was opened already: a second one would show the difference of the two",
            found=f"round {offer.round}, stage {offer.stage}", remedy="go on with the next round",
        )  # fmt: skip
    if offer.stage and str(offer.stage - 1) not in state.survivors:
        raise PeerError("the offer skips a stage", found=f"stage {offer.stage}")
    _check_terms(state, offer)


def _is_later(state: SiteState, offer: Offer) -> bool:
    """Whether the offer goes on with the round of the last one; refuses what is not newer than that one."""
    if offer.place <= state.place:
        raise PeerError(
            "the offer is not newer than the last one", found=offer.place, expected=f"after {state.place}"
        )
    if offer.round > state.place[0]:
        if offer.stage:
            raise PeerError("the offer begins a round in its middle", found=f"stage {offer.stage}")
        return False
    return True


def _check_terms(state: SiteState, offer: Offer) -> None:
    if state.members != offer.members:
        raise PeerError(
            "the offer changes the cohort or the threshold of the round",
            found=f"{len(offer.cohort)} sites, threshold {offer.threshold}",
            expected="those of the round's first offer",
            remedy="whoever is missing counts as dropped out",
        )
    if state.terms.get(str(offer.stage), offer.terms) != offer.terms:
        raise PeerError(
            "a later attempt changes what the first one fixed", found=f"attempt {offer.attempt}",
            expected="the same broadcast, layout, ring, scale and bounds",
        )  # fmt: skip


def _same(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise PeerError(f"the offer names another {what}", found=found[:12], expected=expected[:12])
