"""A site's side of all sums of a run: what it is asked to add, and what it keeps of that between attempts."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import UserDict
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from wardround.core.errors import InternalError, PeerError, TrainingError
from wardround.core.messages import SECONDS, Request
from wardround.core.packed import Array, Counters, Layout
from wardround.core.plan import TrainingPlan
from wardround.core.seeds import Purpose, generator
from wardround.privacy.compression import Compressed, compress
from wardround.privacy.noise.source import RandomSource
from wardround.privacy.packing import word_of
from wardround.privacy.quantisation import Quantised, quantise
from wardround.privacy.secagg.offer import Offer
from wardround.privacy.sums.contract import Lanes, Party
from wardround.privacy.sums.form import place_of
from wardround.privacy.sums.noise import ring_noise
from wardround.privacy.sums.offers import check_offer, scale_of

Kept: TypeAlias = tuple[tuple[int, int, bytes], Lanes]
"""Round, stage and broadcast that a contribution belongs to; the contribution."""


class Contributions(MutableMapping[str, Kept]):
    """Name of a sum → this site's last contribution to it."""

    def light(self, name: str, lanes: Lanes) -> Lanes:  # noqa: ARG002 - where a copy is elsewhere
        """What was just kept, without a copy in memory where it has one elsewhere."""
        return lanes

    @abstractmethod
    def forget(self, *, round: int) -> None:
        """Destroy what was contributed to this round or an earlier one: nobody asks for it again.

        Raises:
            StorageError: It cannot be destroyed.
        """


class ContributionsInMemory(UserDict[str, Kept], Contributions):
    """They are gone when the process ends."""

    def forget(self, *, round: int) -> None:
        """As the base class says; never raises."""
        for name in [name for name, (place, _) in self.items() if place[0] <= round]:
            del self[name]


@dataclass
class Parties:
    """One site's parties, by the name of their sum.

    Attributes:
        parties: Name → the site's side of that sum.
        kept: The last contribution to each: encoded once, and masked anew for every attempt. In a file
            (`client/secure_record.py:KeptContributions`) where a restarted site should go on with it.
        seconds: Name → seconds spent on the sum's protocol since they were last read.
    """

    parties: Mapping[str, Party]
    kept: Contributions = field(default_factory=ContributionsInMemory)
    seconds: dict[str, float] = field(default_factory=dict)

    def check(
        self,
        name: str,
        request: Request,
        plan: TrainingPlan,
        run_id: str,
        statistics: Layout,
        broadcast: bytes,
    ) -> Offer:
        """Refuse an offer before any work is done for it.

        Raises:
            PolicyError: The site's own rules refuse.
            PeerError: The offer is not the server's, not what the plan says, or not for this request.
        """
        offer = self.parties[name].check(request.sums[name], broadcast)
        check_offer(offer, plan, name=name, run_id=run_id, statistics=statistics)
        if offer.place != (request.round, request.stage, request.attempt):
            raise PeerError("the offer is for another request", found=offer.place)
        return offer

    def begin(
        self, name: str, request: Request, broadcast: bytes, lanes: Lanes, kept: Callable[[Lanes], None]
    ) -> bytes:
        """The first answer of an attempt, over a contribution that is kept for later ones.

        Args:
            name: Of the sum.
            request: The server's.
            broadcast: Digest of the broadcast that the contribution belongs to.
            lanes: The contribution.
            kept: Called once it is kept, and before anything of it leaves.

        Raises:
            StorageError: It cannot be kept.
            PeerError: As `Party.begin`; PolicyError likewise.
            WardroundError: What `kept` raises.
        """
        self.kept[name] = (request.round, request.stage, broadcast), lanes
        lanes = self.kept.light(name, lanes)
        kept(lanes)
        return self._timed(name, lambda: self.parties[name].begin(request.sums[name], broadcast, lanes))

    def again(self, name: str, request: Request, broadcast: bytes, kept: Callable[[Lanes], None]) -> bytes:
        """The first answer over what was kept; `has_kept` and `broadcast_of` say whether anything was.

        Raises:
            StorageError: What was kept does not hold what was written.
            PeerError: As `Party.begin`; PolicyError likewise.
            WardroundError: What `kept` raises: whoever kept it may have ended right there.
        """
        _, lanes = self.kept[name]
        kept(lanes)
        return self._timed(name, lambda: self.parties[name].begin(request.sums[name], broadcast, lanes))

    def has_kept(self, name: str, request: Request, broadcast: bytes) -> bool:
        """Whether a contribution to this very round, stage and broadcast is kept.

        It is of an earlier attempt, or of this one, where the site ended before it had answered.

        Raises:
            StorageError: What was kept does not hold what was written.
        """
        kept = self.kept.get(name)
        return kept is not None and kept[0] == (request.round, request.stage, broadcast)

    def broadcast_of(self, name: str, request: Request) -> bytes:
        """Digest of the broadcast that the kept contribution belongs to.

        Raises:
            TrainingError: Nothing is kept for this round and stage.
            StorageError: What was kept does not hold what was written.
        """
        kept = self.kept.get(name)
        place = kept[0] if kept is not None else (0, 0, b"")
        if place[:2] != (request.round, request.stage):
            raise TrainingError(
                "nothing_kept", "this site has nothing to contribute to another attempt",
                remedy="the attempt goes on without it",
            )  # fmt: skip
        return place[2]

    def step(self, name: str, request: Request) -> bytes:
        """The answer in a later phase."""
        return self._timed(name, lambda: self.parties[name].step(request.sums[name]))

    def spent(self) -> dict[str, float]:
        """`seconds.NAME` → seconds spent on it since the last call."""
        found = {f"{SECONDS}.{name}": seconds for name, seconds in self.seconds.items()}
        self.seconds.clear()
        return found

    def _timed(self, name: str, work: Callable[[], bytes]) -> bytes:
        started = time.perf_counter()
        try:
            return work()
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def contribution(
    statistics: Array,
    counters: Counters,
    weight: int,
    offer: Offer,
    plan: TrainingPlan,
    site: str,
    noise: RandomSource | None = None,
) -> tuple[Lanes, Quantised]:
    """A contribution as ring integers, and what the bounds did to it.

    Args:
        statistics: (offer.coordinates,) not yet weighted.
        counters: Of the training.
        weight: The site's, in the mean.
        offer: Its cohort decides the scale.
        plan: Its encoding gives the bounds, its seed the rounding.
        site: Name of the site.
        noise: Words for this site's share of the noise, where the plan has it added here.

    Raises:
        TrainingError: A value is not finite, or the weight is above the plan's largest.
    """
    _require_weight(weight, plan)
    rng = generator(plan.seed, Purpose.ROUNDING, round=offer.round, site=place_of(site, offer.stage))
    added = ring_noise(plan, cohort=len(offer.cohort), coordinates=statistics.size, round=offer.round)
    scale = scale_of(plan.encoding, len(offer.cohort)) if added is None else added.signal
    quantised = quantise(statistics, weight, scale, rng)
    integers = quantised.integers
    if added is not None and plan.privacy is not None and plan.privacy.noise == "distributed":
        if noise is None:
            raise InternalError("a contribution would leave without its share of the noise")
        integers = added.added_to(integers, noise)
    return Lanes(integers, counts(counters)), quantised


def compressed_contribution(
    statistics: Array,
    counters: Counters,
    weight: int,
    offer: Offer,
    plan: TrainingPlan,
    site: str,
    rest: Array | None,
) -> tuple[Lanes, Compressed]:
    """A contribution in the plan's compressed form, and what waits at the site.

    Args:
        statistics: (offer.coordinates,) not yet weighted; whoever reads them weighs them.
        counters: Of the training.
        weight: The site's, in the mean.
        offer: Its cohort decides the scale.
        plan: Its encoding says how, its seed the rounding.
        site: Name of the site.
        rest: What the site has not sent so far, where it keeps that.

    Raises:
        TrainingError: As `contribution`.
        InternalError: The plan compresses nothing.
    """
    spec = plan.encoding.compression
    if spec is None:
        raise InternalError("a contribution would be compressed, and the plan says of none how")
    _require_weight(weight, plan)
    rng = generator(plan.seed, Purpose.COMPRESSION, round=offer.round, site=place_of(site, offer.stage))
    found = compress(statistics, spec, scale_of(plan.encoding, len(offer.cohort)), rng, rest)
    return Lanes(np.frombuffer(found.data, dtype=np.uint8), counts(counters)), found


def _require_weight(weight: int, plan: TrainingPlan) -> None:
    most = plan.encoding.most_weight
    if weight > most:
        raise TrainingError(
            "weight_above_plan", "this site weighs more than the plan allows", found=weight,
            expected=f"at most {most}", remedy="raise encoding.most_weight in the plan, or weigh uniformly",
        )  # fmt: skip


def scores_only(counters: Counters) -> Lanes:
    """Metric numerators alone."""
    return Lanes(np.zeros(0, dtype=word_of(64)), counts(counters))


def counts(counters: Counters) -> Array:
    """Counters as the counter lane adds them."""
    return counters.vector.astype(word_of(64))
