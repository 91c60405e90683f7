"""Holds each broadcast against what the site knows: it has to be the fold of the last sum.

A broadcast that everybody agrees on can still be crafted: trap weights read single examples out of a sum.
So a site that took part in a round folds its opened sum itself, and refuses a next broadcast that is another,
and whatever comes after it in that run. What stays open is a server that lies about the sum within the plan's
bounds, or that leaves a site out for a round (docs/threat-model.md).

A strategy that sees individuals has no sum that could be shown to sites: what is broadcast under it is taken
as it comes, but for a replay, and for a round that is asked for again with another broadcast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from wardround.client.fold_memory import FoldMemory, Known
from wardround.core.counting import WEIGHT
from wardround.core.errors import PeerError
from wardround.core.messages import Request
from wardround.core.packed import Adapter, Array, Packed, Statistics, zeros
from wardround.core.plan import TrainingPlan
from wardround.privacy.secagg.draw import Groups
from wardround.privacy.secagg.total import Sum
from wardround.privacy.sums.noise import ring_noise
from wardround.privacy.sums.opened import OpenedSum, read_opened, statistics_of
from wardround.strategies.adaptive_norm import product_strategy
from wardround.strategies.contract import (
    Broadcast,
    GroupStrategy,
    IndividualStrategy,
    ServerState,
    SumStrategy,
    combined,
)

TOLERANCE = 1e-6
"""Largest difference of a coordinate, as a share of the largest one: another machine may round otherwise. A
slot that is broadcast beside the adapter is held against its own largest."""


@dataclass
class FoldCheck:
    """What one site knows of the server's state.

    Attributes:
        plan: What is trained.
        strategy: How sums become states.
        known: The state that the site was last sent, with all that the server keeps; None where it cannot
            know it, since it missed a round of a strategy whose server keeps more than the adapter.
        broken: Whether a broadcast was refused.
        groups: Over which the run sums, once they are drawn; none: over the whole cohort.
        memory: Keeps all that for a site that is restarted, where there is one.
        resumed_after: The last round of a simulation that is resumed, whose server is this process: the sums
            that come with the next broadcast need no check. 0 of a real site.
        fold: The strategy's, or what stands in for it where many sites of a process fold the same; None: the
            strategy's.
    """

    plan: TrainingPlan
    strategy: SumStrategy
    known: ServerState | None = None
    broken: bool = False
    groups: Groups = ()
    memory: FoldMemory | None = None
    resumed_after: int = 0
    fold: Callable[[ServerState, Statistics, float, int], ServerState] | None = field(
        default=None, repr=False
    )
    _kept: dict[str, Packed] | None = field(default=None, repr=False)
    _made: tuple[int, tuple[bytes, ...], ServerState] | None = field(default=None, repr=False)
    """Round, opened sums and the state that this site has made of them: `check` folds them no second time."""

    @staticmethod
    def remembered(plan: TrainingPlan, strategy: SumStrategy, memory: FoldMemory) -> FoldCheck:
        """What this site knew before its process ended.

        Raises:
            StorageError: What it kept is damaged: to begin afresh would let a server send what it likes.
        """
        found = memory.load()
        return FoldCheck(plan, strategy, found.state, found.broken, found.groups, memory)

    def learn(self, groups: Groups) -> None:
        """The groups were drawn.

        Raises:
            StorageError: It cannot be kept.
        """
        self._keep(self.known, groups)

    def check(
        self,
        round: int,
        broadcast: Broadcast,
        opened: tuple[bytes, ...],
        confirmed: dict[int, tuple[str, ...]],
    ) -> bool:
        """Refuse a broadcast that is not the fold of the state before and the opened sums; remember it.

        Args:
            round: The round that the broadcast begins.
            broadcast: Of stage 0.
            opened: The sums of the round before, one a stage or group; none where that round was burnt, or
                where the strategy sees individuals.
            confirmed: Stage → the survivors that this site confirmed in the round before, where it did.

        Returns:
            Whether the site knew enough to check, or need not (`resumed_after`); never of a strategy that
            sees individuals, unless the round before was burnt, since then the broadcast is the same again.

        Raises:
            PeerError: The broadcast is another, of an earlier round, or a sum is malformed, beyond the plan's
                bounds, or of other survivors than this site confirmed.
            StorageError: What the site knows now cannot be kept; nothing is answered to this broadcast.
        """
        if self.broken:
            raise PeerError("an earlier broadcast of this run was not the fold of its sum")
        adapter, known = self.strategy.adapter_of(broadcast), self.known
        if known is not None and round <= known.round:
            # Forgotten would be what a crafted broadcast is held against: a replay changes nothing.
            raise PeerError("the request is for an earlier round", found=round, expected=known.round + 1)
        if round == 1:  # the adapter's digest is the plan's, as `client/round.py` checks
            begun = self.strategy.begin(adapter)
            if self.strategy.broadcast(begun, 1, 0).digest != broadcast.digest:
                raise PeerError("the broadcast of round 1 is not what the plan begins with")
            self._keep(begun, self.groups)
            return True
        if isinstance(self.strategy, IndividualStrategy):
            return self._taken(known, round, adapter, broadcast)
        if known is None or known.round < round - 2:
            self._keep(self._adopted(round - 1, adapter, broadcast), self.groups)
            return 0 < self.resumed_after == round - 1
        try:
            if known.round == round - 1:
                self._require_same(known, round, broadcast)
                return True
            known = self._folded(known, round, opened, confirmed)
            self._require_like(known, round, broadcast)
        except PeerError:
            self.broken = True
            self._keep(self.known, self.groups)
            raise
        told = _told(known.slots, broadcast)
        self._keep(replace(known, adapter=adapter, slots={**known.slots, **told}), self.groups)
        return True

    def check_stage(
        self,
        round: int,
        stage: int,
        broadcast: Broadcast,
        opened: tuple[bytes, ...],
        confirmed: dict[int, tuple[str, ...]],
    ) -> bool:
        """Refuse a broadcast of a later stage that is not what follows from the round's sums so far.

        Args:
            round: Under way; its broadcast of stage 0 has passed.
            stage: 1 or later.
            broadcast: Of that stage.
            opened: The sums of the stages before it.
            confirmed: Stage → the survivors that this site confirmed in this round.

        Returns:
            Whether the site knew enough to check.

        Raises:
            PeerError: As `check`.
            StorageError: That it was refused cannot be kept.
        """
        if self.broken:
            raise PeerError("an earlier broadcast of this run was not the fold of its sum")
        state = self.known
        if state is None or state.round != round - 1:
            return False
        try:
            state = self._within(state, round, stage, opened, confirmed)
            _require_near(self.strategy.broadcast(state, round, stage).vector, broadcast.vector)
        except PeerError:
            self.broken = True
            self._keep(self.known, self.groups)
            raise
        return True

    def following(
        self, round: int, opened: tuple[bytes, ...], confirmed: dict[int, tuple[str, ...]]
    ) -> Broadcast | None:
        """The broadcast of stage 0 of a round, as it follows from what this site knows and the opened sums.

        None where it does not: a round was missed, a sum is not right, or the strategy's server keeps more
        than this site can know. Nothing is remembered by this; `check` judges what comes of it.
        """
        known = self.known
        if isinstance(self.strategy, IndividualStrategy):
            return None
        if self.broken or known is None or known.round not in (round - 2, round - 1):
            return None
        if known.round == round - 2:
            try:
                known = self._fold(known, round - 1, opened, confirmed)
            except PeerError:
                return None  # with the broadcast before it the site says what is wrong
            self._made = (round, opened, known)
        return self.strategy.broadcast(known, round, 0)

    def _keep(self, known: ServerState | None, groups: Groups) -> None:
        """Durable first: an answer must not go out that a restarted site would know nothing of."""
        if self.memory is not None:
            self.memory.save(Known(known, self.broken, groups))
        self.known, self.groups = known, groups

    def _taken(self, known: ServerState | None, round: int, adapter: Adapter, broadcast: Broadcast) -> bool:
        """Remember a broadcast that no site can check; whether it is that of the burnt round before."""
        again = False
        if known is not None and known.round == round - 1:
            self._require_same(known, round, broadcast)
        elif known is not None and known.round == round - 2:
            again = self.strategy.broadcast(known, round, 0).digest == broadcast.digest
        self._keep(ServerState(round - 1, adapter), self.groups)
        return again

    def _require_same(self, known: ServerState, round: int, found: Broadcast) -> None:
        if self.strategy.broadcast(known, round, 0).digest != found.digest:
            raise PeerError("a round is asked for again, with another broadcast")

    def _require_like(self, expected: ServerState, round: int, found: Broadcast) -> None:
        own = self.strategy.broadcast(expected, round, 0)
        apart = [name for name in expected.slots if name in own.layout.offsets]
        products = product_strategy(self.strategy)
        if products is not None:  # whose factors another machine may rotate
            worst = products.difference(self.strategy.adapter_of(own), self.strategy.adapter_of(found))
            if not worst <= TOLERANCE:
                raise _no_fold(f"products that differ by {worst:.3g} of their size", f"at most {TOLERANCE:g}")
            for name in apart:
                _require_near(own[name], found[name])
            return
        if not apart:
            _require_near(own.vector, found.vector)
            return
        rest = np.ones(own.vector.size, dtype=bool)
        for name in apart:
            start, spec = own.layout.offsets[name]
            rest[start : start + spec.size] = False
            _require_near(own[name], found[name])
        _require_near(own.vector[rest], found.vector[rest])

    def _folded(
        self,
        known: ServerState,
        round: int,
        opened: tuple[bytes, ...],
        confirmed: dict[int, tuple[str, ...]],
    ) -> ServerState:
        made, self._made = self._made, None
        if made is not None and made[0] == round and made[1] is opened:
            return made[2]
        return self._fold(known, round - 1, opened, confirmed)

    def _fold(
        self,
        state: ServerState,
        round: int,
        opened: tuple[bytes, ...],
        confirmed: dict[int, tuple[str, ...]],
    ) -> ServerState:
        if not opened:  # burnt: the round is spent, and nothing was folded
            return replace(state, round=round)
        of_groups = isinstance(self.strategy, GroupStrategy)
        if not of_groups and len(opened) != self.strategy.stages:
            raise PeerError(
                "the broadcast does not come with one sum a stage", found=len(opened),
                expected=self.strategy.stages,
            )  # fmt: skip
        stages = [opened] if of_groups else [(data,) for data in opened]
        for stage, parts in enumerate(stages):
            sums = self._sums(round, stage, parts, confirmed.get(stage))
            state = (self.fold or self.strategy.fold)(state, *combined(self.strategy, sums), stage)
        if state.round != round:
            raise PeerError("the sums do not make a round", found=state.round, expected=round)
        return state

    def _within(
        self,
        state: ServerState,
        round: int,
        stage: int,
        opened: tuple[bytes, ...],
        confirmed: dict[int, tuple[str, ...]],
    ) -> ServerState:
        """The state in the middle of a round, as it follows from the sums of the stages before this one."""
        if len(opened) != stage:
            raise PeerError(
                "the broadcast does not come with the sums of the stages before it", found=len(opened),
                expected=stage,
            )  # fmt: skip
        for before, data in enumerate(opened):
            sums = self._sums(round, before, (data,), confirmed.get(before))
            state = (self.fold or self.strategy.fold)(state, *combined(self.strategy, sums), before)
        return state

    def _sums(
        self, round: int, stage: int, parts: Iterable[bytes], confirmed: tuple[str, ...] | None
    ) -> list[tuple[Statistics, float]]:
        """The checked sums of one stage, each with its weight."""
        layout, encoding, before = self.strategy.statistics_layout(stage), self.plan.encoding, -1
        sums = []
        for data in parts:
            message, total = read_opened(data, layout, encoding.bits)
            if (message.round, message.stage) != (round, stage):
                raise PeerError("a sum is of another round", found=(message.round, message.stage))
            self._require_members(message, total, confirmed, after=before)
            before = message.group
            noise = ring_noise(self.plan, cohort=message.cohort, coordinates=layout.size, round=round)
            statistics, counters = statistics_of(total, layout, encoding, cohort=message.cohort, noise=noise)
            sums.append((statistics, float(counters[WEIGHT])))
        return sums

    def _require_members(
        self, message: OpenedSum, total: Sum, confirmed: tuple[str, ...] | None, *, after: int
    ) -> None:
        """Of this site's own sum the survivors that it confirmed; of every group its members, once."""
        own = True
        if isinstance(self.strategy, GroupStrategy):
            if not after < message.group < len(self.groups):
                raise PeerError("the sums of the groups are not in their order", found=message.group)
            group = self.groups[message.group]
            if message.cohort != len(group) or not set(total.survivors) <= set(group):
                raise PeerError("a sum is not of the group that it names", found=message.group)
            own = confirmed is not None and set(confirmed) <= set(group)
        if own and confirmed is not None and confirmed != total.survivors:
            raise PeerError("a sum is of other survivors than this site confirmed")

    def _adopted(self, round: int, adapter: Adapter, broadcast: Broadcast) -> ServerState | None:
        """The state after a round whose sum this site did not see, if the broadcast tells all of it."""
        if self._kept is None:  # whatever the server keeps of any round
            state = self.strategy.begin(zeros(self.plan.adapter.layout))
            for stage in range(self.strategy.stages):
                nothing = zeros(self.strategy.statistics_layout(stage), np.float64)
                state = self.strategy.fold(state, nothing, 1.0, stage)
            self._kept = state.slots
        told = _told(self._kept, broadcast)
        return ServerState(round, adapter, told) if told.keys() == self._kept.keys() else None


def whole(request: Request, folds: FoldCheck, confirmed: Mapping[int, tuple[str, ...]]) -> Request | None:
    """A request with the broadcast that it names by its digest; None where this site cannot make that one.

    Args:
        request: The server's; one that has a broadcast, or needs none, stays as it is.
        folds: What the site knows.
        confirmed: Stage → the survivors that the site confirmed in the round before.
    """
    if not request.follows:
        return request
    made = folds.following(request.round, request.opened, dict(confirmed))
    if made is None or made.digest != request.follows:
        return None
    return replace(request, broadcast=made, follows="")


def _told(slots: Mapping[str, Packed], broadcast: Broadcast) -> dict[str, Packed]:
    """The slots that stand in the broadcast, as they stand there."""
    return {
        name: slot.with_vector(broadcast[name].reshape(-1).astype(slot.vector.dtype))
        for name, slot in slots.items()
        if name in broadcast.layout.offsets
    }


def _require_near(expected: Array, found: Array) -> None:
    worst = float(np.abs(expected.astype(np.float64) - found).max(initial=0.0))
    most = TOLERANCE * float(np.abs(expected).max(initial=0.0))
    if not worst <= most:
        raise _no_fold(f"a coordinate that differs by {worst:.3g}", f"at most {most:.3g}")


def _no_fold(found: str, expected: str) -> PeerError:
    return PeerError(
        "the broadcast is not the fold of the last sum", found=found, expected=expected,
        remedy="the server does not follow the plan: tell the consortium",
    )  # fmt: skip
