"""Groups of sites, drawn once for a run by all of them together.

commit → show → agree

Every site commits to 32 random bytes, shows them once all have committed, and derives the groups from all
that was shown. Neither the relay nor a site that has not seen the others' bytes chooses who stands with whom.
What is left to a relay that works with a site: to end a draw before anybody saw its outcome, and begin
another, as often as the sites' policies let it (`most_attempts`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Annotated, ClassVar, Literal, Protocol, TypeAlias, TypeVar

from pydantic import Field

from wardround.core.errors import PeerError, QuorumError
from wardround.privacy.secagg import transcript
from wardround.privacy.secagg.admission import Member
from wardround.privacy.secagg.hashing import digest
from wardround.privacy.secagg.identity import Roster, Signer, check, statement
from wardround.privacy.secagg.messages import Message, Signature
from wardround.privacy.secagg.offer import MOST_SITES, Digest, SiteName, Wire
from wardround.privacy.secagg.policy import default_threshold
from wardround.privacy.secagg.secret import Secret

Groups: TypeAlias = tuple[tuple[str, ...], ...]
"""Each sorted, every site in one of them."""
M = TypeVar("M", bound=Message)


def groups_of(sites: Sequence[str], size: int, shown: Mapping[str, bytes]) -> Groups:
    """As many groups as have at least `size` sites each; their sizes differ by one at most.

    Args:
        sites: Different names, at least `size` of them.
        size: Least size of a group.
        shown: Site → its random bytes.
    """
    seed = digest("group seed", *(part for site in sorted(sites) for part in (site, shown[site])))
    order = sorted(sites, key=lambda site: digest("group place", seed, site))
    count = len(sites) // size
    return tuple(tuple(sorted(order[index::count])) for index in range(count))


class DrawOffer(Wire):
    """What the relay proposes; its digest stands in front of whatever is signed in this draw."""

    run_id: Annotated[str, Field(min_length=1, max_length=256)]
    plan: Digest
    roster: Digest
    sites: Annotated[tuple[SiteName, ...], Field(min_length=1, max_length=MOST_SITES)]
    """Sorted."""
    size: int = Field(ge=1)
    """Least size of a group."""
    attempt: int = Field(default=0, ge=0, lt=2**31)

    @cached_property
    def context(self) -> bytes:
        """Binds everything that is said to this draw."""
        return digest("draw", self.run_id, self.plan, self.roster, self.size, self.attempt, *self.sites)


class SignedDraw(Wire):
    """The offer under the server's signature."""

    kind: Literal["draw"] = "draw"
    offer: DrawOffer
    signature: Signature

    @staticmethod
    def by(signer: Signer, offer: DrawOffer) -> SignedDraw:
        """Signed with the key that the consortium gave its server."""
        return SignedDraw(offer=offer, signature=signer.sign(statement("draw", offer.context, "server")))

    def check(self, server: bytes) -> DrawOffer:
        """The offer, if the server signed it.

        Raises:
            PeerError: It did not.
        """
        check(server, self.signature, statement("draw", self.offer.context, "server"), "server")
        return self.offer


class Committed(Message):
    """A site's commitment."""

    KIND: ClassVar[str] = "draw commit"
    kind: Literal["draw commit"] = "draw commit"
    commitment: Digest

    def content(self) -> tuple[bytes | str | int, ...]:
        """The commitment."""
        return (self.commitment,)


class Shown(Message):
    """What a site had committed to, and which commitments it saw before it showed that."""

    KIND: ClassVar[str] = "draw show"
    kind: Literal["draw show"] = "draw show"
    committed: Digest
    """Transcript of all commitments."""
    value: Digest

    def content(self) -> tuple[bytes | str | int, ...]:
        """Transcript and value."""
        return self.committed, self.value


class Agreed(Message):
    """A site has derived the groups."""

    KIND: ClassVar[str] = "draw agree"
    kind: Literal["draw agree"] = "draw agree"
    groups: Digest

    def content(self) -> tuple[bytes | str | int, ...]:
        """Their digest."""
        return (self.groups,)


class Commitments(Wire):
    """To all, after the first phase."""

    kind: Literal["draw commitments"] = "draw commitments"
    commitments: tuple[Committed, ...]


class Drawn(Wire):
    """To all, after the second phase: the whole draw, so that a site can check it after a restart as well."""

    kind: Literal["drawn"] = "drawn"
    signed: SignedDraw
    commitments: tuple[Committed, ...]
    openings: tuple[Shown, ...]

    def shown(self, roster: Roster) -> dict[str, bytes]:
        """Site → what it showed, of every site of the offer.

        Raises:
            PeerError: A part is missing, comes twice, is not signed, or is not what was committed to.
        """
        offer = self.signed.offer
        commitments = check_commitments(offer, roster, self.commitments)
        committed = transcript_of(offer, commitments)
        for message in self.openings:
            roster.check(message.site, message.signature, message.statement(offer.context))
            value = transcript.commitment(offer.context, message.site, Secret(message.value))
            own = commitments.get(message.site)
            if own is None or message.committed != committed or value != own.commitment:
                raise PeerError("an opening is not what the site committed to", found=message.site)
        shown = {message.site: message.value for message in self.openings}
        if set(shown) != set(offer.sites) or len(self.openings) != len(shown):
            raise PeerError(
                "the draw of the groups needs the opening of every site",
                found=f"{len(shown)} of {len(offer.sites)}", remedy="a new draw",
            )  # fmt: skip
        return shown


def check_commitments(
    offer: DrawOffer, roster: Roster, commitments: Sequence[Committed]
) -> dict[str, Committed]:
    """Site → its commitment, of every site of the offer.

    Raises:
        PeerError: One is missing, comes twice or is not signed.
    """
    found = {message.site: message for message in commitments}
    if set(found) != set(offer.sites) or len(found) != len(commitments):
        raise PeerError(
            "the draw of the groups needs one commitment of every site",
            found=f"{len(commitments)} of {len(offer.sites)}",
        )
    for site, message in found.items():
        roster.check(site, message.signature, message.statement(offer.context))
    return found


def transcript_of(offer: DrawOffer, commitments: Mapping[str, Committed]) -> bytes:
    """Of all commitments."""
    parts = (part for site in sorted(commitments) for part in (site, commitments[site].commitment))
    return digest("draw committed", offer.context, *parts)


def digest_of(groups: Groups) -> bytes:
    """Of the groups in their order."""
    parts: list[str | int] = []
    for group in groups:
        parts += [len(group), *group]
    return digest("groups", *parts)


class DrawState(Wire):
    """What a site must not forget of a run's draw; saved before the answer that it belongs to."""

    attempt: int = -1
    value: bytes = Field(default=b"", repr=False)
    """Its random bytes of that attempt."""
    committed: bytes = b""
    """Transcript of the commitments under which it showed them."""
    groups: bytes = b""
    """Digest of what came of it: there is one draw a run."""
    signed: SignedDraw | None = None
    """The offer of that attempt."""


class DrawRecord(Protocol):
    """Keeps a `DrawState`; `save` has to be durable when it returns."""

    def load(self) -> DrawState:
        """The last state that was saved."""

    def save(self, state: DrawState) -> None:
        """Keep it."""


class DrawSite:
    """One member's part in the draw of a run.

    Args:
        member: Who takes part; its `run_id` is the run's own. Its record is not used.
        strategy: Name of the plan's strategy, which the site's policy has to allow.
        size: Least size of a group, by the plan.
        record: What survives a crash.
        fresh: Makes the random bytes.
    """

    def __init__(
        self,
        member: Member,
        strategy: str,
        size: int,
        record: DrawRecord,
        fresh: Callable[[], Secret] = Secret.fresh,
    ) -> None:
        self._member, self._strategy, self._size, self._record = member, strategy, size, record
        self._fresh = fresh
        self._offer: DrawOffer | None = None

    def commit(self, signed: SignedDraw) -> Committed:
        """Accept the offer.

        Raises:
            PolicyError: The site's own rules refuse.
            PeerError: The offer is not the server's, of another run, plan, roster or size, or comes too late.
        """
        offer, state, member = self._checked(signed), self._record.load(), self._member
        member.policy.check_attempt(offer.attempt)
        if offer.attempt <= state.attempt or state.groups:
            raise PeerError(
                "the groups of this run are drawn already, or this draw has ended",
                found=f"attempt {offer.attempt}", expected=f"after {state.attempt}",
            )  # fmt: skip
        value = self._fresh()
        self._record.save(DrawState(attempt=offer.attempt, value=value.reveal(), signed=signed))
        self._offer = offer
        commitment = transcript.commitment(offer.context, member.name, value)
        return self._signed(Committed(site=member.name, commitment=commitment), offer)

    def show(self, message: Commitments) -> Shown:
        """Show what this site had committed to.

        Raises:
            PeerError: A commitment is missing, unsigned or altered, or others were seen before.
        """
        offer, state, member = self._offer, self._record.load(), self._member
        if offer is None or offer.attempt != state.attempt:
            raise PeerError("an opening is asked for, and no draw is under way")
        commitments = check_commitments(offer, member.roster, message.commitments)
        own = transcript.commitment(offer.context, member.name, Secret(state.value))
        committed = transcript_of(offer, commitments)
        if commitments[member.name].commitment != own or state.committed not in (b"", committed):
            raise PeerError("this site's own commitment was altered, or it was shown other ones before")
        self._record.save(state.model_copy(update={"committed": committed}))
        return self._signed(Shown(site=member.name, committed=committed, value=state.value), offer)

    def agree(self, drawn: Drawn) -> tuple[Groups, Agreed]:
        """The groups; asked again, also after a restart, the same ones.

        Raises:
            PolicyError: The site's own rules refuse.
            PeerError: A part of the draw is missing, unsigned or altered, or other groups were drawn before.
        """
        offer, state, member = self._checked(drawn.signed), self._record.load(), self._member
        shown = drawn.shown(member.roster)
        if shown[member.name] != state.value:
            raise PeerError("the draw holds another opening of this site than its own")
        groups = groups_of(offer.sites, offer.size, shown)
        found = digest_of(groups)
        if state.groups not in (b"", found):
            raise PeerError("other groups were drawn for this run before")
        self._record.save(state.model_copy(update={"groups": found}))
        return groups, self._signed(Agreed(site=member.name, groups=found), offer)

    def _checked(self, signed: SignedDraw) -> DrawOffer:
        member, offer = self._member, signed.check(self._member.server)
        for what, found, expected in (
            ("run", offer.run_id, member.run_id),
            ("plan", offer.plan.hex(), member.plan.hex()),
            ("roster", offer.roster.hex(), member.roster.digest.hex()),
            ("group size", str(offer.size), str(self._size)),
        ):
            if found != expected:
                raise PeerError(f"the draw is for another {what}", found=found[:12], expected=expected[:12])
        if list(offer.sites) != sorted(set(offer.sites)) or not {member.name} <= set(offer.sites) <= set(
            member.roster.keys
        ):
            raise PeerError(
                "the sites of the draw are not sorted, hold one that is no confirmed member, or miss this one"
            )
        if len(offer.sites) < offer.size:
            raise PeerError("the draw has fewer sites than one group", found=len(offer.sites))
        member.policy.check_groups(self._strategy)
        member.policy.check_cohort(offer.size, default_threshold(offer.size))
        return offer

    def _signed(self, message: M, offer: DrawOffer) -> M:
        signature = self._member.signer.sign(message.statement(offer.context))
        return message.model_copy(update={"signature": signature})


class DrawRelay:
    """The server's side of one draw.

    Args:
        signed: What is proposed.
        roster: The members' keys.
    """

    def __init__(self, signed: SignedDraw, roster: Roster) -> None:
        self.signed, self._roster = signed, roster

    def commitments(self, found: Mapping[str, Committed]) -> Commitments:
        """What is sent after the first phase; raises as `_whole`."""
        return Commitments(commitments=self._whole(found))

    def drawn(self, commitments: Commitments, found: Mapping[str, Shown]) -> tuple[Drawn, Groups]:
        """What is sent after the second phase, and the groups; raises as `_whole`."""
        drawn = Drawn(signed=self.signed, commitments=commitments.commitments, openings=self._whole(found))
        return drawn, self.groups(drawn)

    def groups(self, drawn: Drawn) -> Groups:
        """The groups of a draw.

        Raises:
            PeerError: It is not of these sites, or not whole.
        """
        offer = drawn.signed.offer
        return groups_of(offer.sites, offer.size, drawn.shown(self._roster))

    def check(self, site: str, message: Message) -> None:
        """Refuse what this site did not sign.

        Raises:
            PeerError: It did not.
        """
        if message.site != site:
            raise PeerError("a part of the draw is another site's", found=message.site, expected=site)
        context = self.signed.offer.context
        self._roster.check(message.site, message.signature, message.statement(context))

    def _whole(self, found: Mapping[str, M]) -> tuple[M, ...]:
        missing = sorted(set(self.signed.offer.sites) - set(found))
        if missing:
            raise QuorumError(
                "the groups cannot be drawn without every site",
                found="no answer of " + ", ".join(missing[:5]),
                expected=f"answers of {len(self.signed.offer.sites)} sites",
                remedy="the next draw leaves them out; or begin the run when they are there",
            )  # fmt: skip
        return tuple(found[site] for site in self.signed.offer.sites)
