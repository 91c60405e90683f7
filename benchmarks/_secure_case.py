"""What secure_aggregation.py measures, and the clock and vectors that all systems share."""

from __future__ import annotations

import math
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from wardround.core.packed import Array
from wardround.privacy.packing import Bits
from wardround.privacy.secagg.policy import default_threshold

NORM, LENGTH = 1.0, 0.9
"""Bound on a vector, and how long ours are."""
MOST_WEIGHT = 64
PATIENCE_S = 20.0
"""What takes longer than this is measured once."""
T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        parameters: Length of the vector.
        sites: In the cohort.
        lost: Share of them that deals and then sends no masked vector.
        bits: Width of our ring.
        degree: k of the regular graph; 0 is the complete one.
        share_threshold: Of the regular graph.
        repeats: Sites that are measured, and openings.
        threads: That the libraries may use.
    """

    parameters: int
    sites: int = 0
    lost: float = 0.0
    bits: Bits = 32
    degree: int = 0
    share_threshold: int = 0
    repeats: int = 3
    threads: int = 1

    @property
    def lost_sites(self) -> int:
        """Sites that are lost."""
        return round(self.lost * self.sites)

    @property
    def threshold(self) -> int:
        """Confirmations, and in the complete graph shares."""
        return default_threshold(self.sites)

    @property
    def largest(self) -> float:
        """Bound on a coordinate."""
        return min(NORM, 16 * NORM / math.sqrt(self.parameters))

    def vector(self, site: int) -> Array:
        """The site's update, float32: the same for all systems."""
        values = np.random.default_rng(site).standard_normal(self.parameters, dtype=np.float32)
        values *= np.float32(LENGTH / np.linalg.norm(values))
        return values

    def weight(self, site: int) -> int:
        """The site's number of examples."""
        return 1 + 7 * site % MOST_WEIGHT


@dataclass
class Clock:
    """Processor seconds (of all threads) and seconds on the wall, by phase."""

    cpu: dict[str, float] = field(default_factory=dict)
    wall: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def lap(self, phase: str) -> Iterator[None]:
        """Add what happens inside to a phase."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.cpu[phase] = self.cpu.get(phase, 0.0) + time.process_time() - cpu
        self.wall[phase] = self.wall.get(phase, 0.0) + time.perf_counter() - wall

    def joined(self, other: Times) -> Times:
        """This and what came after it."""
        return Times(
            {**self.cpu, **other.phases},
            sum(self.cpu.values()) + other.cpu_s,
            sum(self.wall.values()) + other.wall_s,
        )


@dataclass(frozen=True)
class Times:
    """Medians.

    Attributes:
        phases: Processor seconds of each phase.
        cpu_s: Processor seconds in all.
        wall_s: Seconds on the wall in all.
    """

    phases: dict[str, float]
    cpu_s: float
    wall_s: float


def middle(clocks: Sequence[Clock]) -> Times:
    """Medians over the clocks."""
    phases = list(dict.fromkeys(phase for clock in clocks for phase in clock.cpu))
    return Times(
        {phase: statistics.median(clock.cpu[phase] for clock in clocks) for phase in phases},
        statistics.median(sum(clock.cpu.values()) for clock in clocks),
        statistics.median(sum(clock.wall.values()) for clock in clocks),
    )


def repeated(times: int, action: Callable[[Clock], T]) -> tuple[T, list[Clock]]:
    """The last result, and a clock a repetition; one only where it takes long."""
    clocks: list[Clock] = []
    while True:
        clock = Clock()
        result = action(clock)
        clocks.append(clock)
        if len(clocks) >= times or sum(clock.wall.values()) > PATIENCE_S:
            return result, clocks


def peak_bytes() -> int:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
