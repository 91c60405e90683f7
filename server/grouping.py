"""Before the first round of a run that sums over groups: which site stands in which of them.

The draw belongs to all sites together (`privacy/secagg/draw.py`); the server carries it between them. A site
that does not answer is not in it, and so not in the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from wardround.core.errors import PeerError, QuorumError
from wardround.core.messages import Reply, Request, answers
from wardround.privacy.secagg.draw import (
    Agreed,
    Committed,
    Drawn,
    DrawOffer,
    DrawRelay,
    Groups,
    Shown,
    SignedDraw,
    digest_of,
)
from wardround.privacy.secagg.messages import Message, decode, encode
from wardround.privacy.sums.contract import GROUPS
from wardround.privacy.sums.offers import run_of
from wardround.runtime.events import Notice
from wardround.server.round_control import stopped
from wardround.server.stage import Channel, look_s
from wardround.strategies.contract import GroupStrategy

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class Grouping:
    """The groups of a run.

    Attributes:
        groups: Each sorted.
        drawn: The whole draw, by which a site can check it again.
    """

    groups: Groups
    drawn: bytes


def draw_groups(
    channel: Channel, strategy: GroupStrategy, sites: Sequence[str], kept: bytes | None
) -> Grouping:
    """Draw the groups, or show the sites the draw that was kept.

    The sites of a resumed simulation have new identities, which the kept draw says nothing of: they draw
    again, the same sites and from the seed tree, and so the same groups.

    Args:
        channel: Reaches the sites.
        strategy: Says how large a group is, and how many there have to be.
        sites: Who may be asked, sorted.
        kept: The draw of this run, where it is resumed.

    Raises:
        QuorumError: Too few sites answered in every attempt.
        PeerError: What was kept is not a draw of these sites.
    """
    if kept is not None:
        drawn = decode(kept, Drawn)
        _require_own(channel, drawn.signed.offer)
        if drawn.signed.offer.roster == channel.aggregation.roster.digest:
            draw = _Draw(channel, drawn.signed.offer, drawn.signed)
            groups = draw.relay.groups(drawn)
            draw.agree(kept, groups)
            return _told(channel, Grouping(groups, kept))
        sites = drawn.signed.offer.sites
    asked, lost = list(sites), QuorumError("the groups were not drawn")
    for attempt in range(channel.plan.secure.attempts):
        _require_enough(strategy, asked)
        draw = _Draw(channel, _offer(channel, strategy, asked, attempt))
        try:
            grouping = draw.run()
        except QuorumError as error:
            lost, asked = error, sorted(draw.answered)
            text = f"the groups are drawn again: {error.what} ({error.found})"
            channel.events.emit(Notice(channel.arm, "warning", text))
            continue
        return _told(channel, grouping)
    raise lost


def _require_own(channel: Channel, offer: DrawOffer) -> None:
    own = run_of(channel.run_id, GROUPS), channel.plan.digest
    if (offer.run_id, offer.plan.hex()) != own:
        raise PeerError("the kept draw of the groups is of another run or plan")


def _told(channel: Channel, grouping: Grouping) -> Grouping:
    named = "; ".join(", ".join(group) for group in grouping.groups)
    channel.events.emit(Notice(channel.arm, "info", f"summed in groups, for the whole run: {named}"))
    return grouping


def _offer(channel: Channel, strategy: GroupStrategy, sites: Sequence[str], attempt: int) -> DrawOffer:
    return DrawOffer(
        run_id=run_of(channel.run_id, GROUPS),
        plan=bytes.fromhex(channel.plan.digest),
        roster=channel.aggregation.roster.digest,
        sites=tuple(sites),
        size=strategy.group_size,
        attempt=attempt,
    )


def _require_enough(strategy: GroupStrategy, sites: Sequence[str]) -> None:
    least = strategy.group_size * strategy.least_groups
    if len(sites) < least:
        raise QuorumError(
            "too few sites for the groups of this strategy", found=f"{len(sites)} sites",
            expected=f"at least {least}: {strategy.least_groups} groups of {strategy.group_size}",
            remedy="smaller groups, fewer attackers in the strategy's options, or more sites",
        )  # fmt: skip


class _Draw:
    """One draw."""

    def __init__(self, channel: Channel, offer: DrawOffer, signed: SignedDraw | None = None) -> None:
        aggregation = channel.aggregation
        self.channel, self.offer = channel, offer
        self.signed = signed or SignedDraw.by(aggregation.signer, offer)
        self.relay = DrawRelay(self.signed, aggregation.roster)
        self.answered = set(offer.sites)

    def run(self) -> Grouping:
        """All phases.

        Raises:
            QuorumError: A site did not answer in one of the first two.
        """
        committed = self._ask(0, encode(self.signed), Committed, self.offer.sites)
        commitments = self.relay.commitments(committed)
        shown = self._ask(1, encode(commitments), Shown, self.offer.sites)
        drawn, groups = self.relay.drawn(commitments, shown)
        self.agree(encode(drawn), groups)
        return Grouping(groups, encode(drawn))

    def agree(self, drawn: bytes, groups: Groups) -> None:
        """Show everybody the draw, some of them again; a site that does not know it refuses to train.

        Raises:
            PeerError: A site derived other groups.
        """
        waiting = self.offer.sites
        for _ in range(self.channel.plan.secure.attempts):
            agreed = self._ask(2, drawn, Agreed, waiting)
            for site, message in agreed.items():
                if message.groups != digest_of(groups):
                    raise PeerError("a site derived other groups", found=site)
            waiting = tuple(site for site in waiting if site not in agreed)
            if not waiting:
                break

    def _ask(self, exchange: int, message: bytes, kind: type[M], sites: Sequence[str]) -> dict[str, M]:
        channel, offer = self.channel, self.offer
        waiting = {
            site: Request(
                run_id=channel.run_id,
                plan_digest=channel.plan.digest,
                round=0,
                site=site,
                sums={GROUPS: message},
                attempt=offer.attempt,
                exchange=exchange,
            )
            for site in sites
        }
        channel.transport.send(list(waiting.values()))
        found: dict[str, M] = {}
        deadline = channel.clock() + channel.plan.rounds.deadline_s
        while waiting and channel.clock() < deadline:
            if channel.control.stop_requested:
                raise stopped()
            for reply, _ in channel.transport.receive(look_s(channel, deadline)):
                request = waiting.get(reply.site)
                if request is not None and answers(reply, request):
                    del waiting[reply.site]
                    self._take(reply, kind, found)
        for site in waiting:
            self._notice(site, "no answer before the deadline")
        self.answered &= set(found)
        return found

    def _take(self, reply: Reply, kind: type[M], found: dict[str, M]) -> None:
        if reply.status != "ok":
            self._notice(reply.site, reply.reason)
            return
        try:
            message = decode(reply.sums.get(GROUPS, b""), kind)
            self.relay.check(reply.site, message)
        except PeerError as error:
            self._notice(reply.site, error.what)
            return
        found[reply.site] = message

    def _notice(self, site: str, reason: str) -> None:
        text = f"{site} is not in the draw of the groups: {reason}"
        self.channel.events.emit(Notice(self.channel.arm, "warning", text))
