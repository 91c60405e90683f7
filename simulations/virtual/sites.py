"""Lines, machines and hours of a run's simulated sites: how long what takes at which of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from wardround.core.errors import ConfigError
from wardround.core.plan import TrainingPlan
from wardround.core.seeds import Purpose
from wardround.simulations.virtual.availability import (
    Presence,
    check_trace,
    presence_of,
    read_trace,
)
from wardround.simulations.virtual.figures import Figure, check_names, value_of
from wardround.simulations.virtual.settings import Realism, Trace

MBIT: Final = 1e6 / 8
"""Bytes."""
HIDING: Final = ("real", "accounted")
FIGURES: Final = ("down_mbit_s", "up_mbit_s", "latency_s", "compute_s", "slowness")


class Counted(Protocol):
    """What is counted of an encoded row."""

    @property
    def length(self) -> int:
        """Tokens."""

    @property
    def rows(self) -> int:
        """Rows of the source in it."""


@dataclass(frozen=True)
class Work:
    """What a site computes in a round, in steps, rows or tokens.

    Attributes:
        training: Of its local training.
        scoring: Of its validation part, which costs less.
    """

    training: float
    scoring: float


def work_of(
    settings: Realism,
    plan: TrainingPlan,
    training: Sequence[Counted],
    validation: Sequence[Counted],
    batches: Sequence[int],
) -> Work:
    """What a site computes in a round.

    Args:
        settings: Name the unit.
        plan: Its batches count the rows of a step of scoring.
        training: The site's encoded rows.
        validation: What it holds back.
        batches: Rows of each step of its local training, encoded ones.
    """
    if settings.compute_per == "step":
        return Work(len(batches), len(validation) / plan.local.batch_size)

    def amount(row: Counted) -> int:
        return row.rows if settings.compute_per == "row" else row.length

    mean = sum(map(amount, training)) / len(training) if training else 0.0
    return Work(sum(batches) * mean, sum(map(amount, validation)))


@dataclass(frozen=True)
class VirtualSites:
    """How long what takes at a site, and when it is there.

    Attributes:
        settings: As they were given.
        seed: Of the run.
        work: Site → what it computes in a round.
        presence: When it is there.
        least: So many have to be there for a round to begin.
        digest: Of an availability trace; empty without one.
    """

    settings: Realism
    seed: int
    work: Mapping[str, Work]
    presence: Presence
    least: int = 1
    digest: str = ""
    _drawn: dict[tuple[Purpose, str], tuple[int, float]] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(
        settings: Realism, plan: TrainingPlan, work: Mapping[str, Work], least_cohort: int
    ) -> VirtualSites:
        """The sites of a run.

        Args:
            settings: Checked.
            plan: What is trained.
            work: Site → what it computes in a round.
            least_cohort: What the sites' policy asks for.

        Raises:
            ConfigError: As `check_sites`.
        """
        check_sites(settings, list(work))
        there, least, digest = settings.availability, 1, ""
        if there is not None and there.least is not None:
            least = there.least
        elif plan.secure.mode in HIDING:
            least = least_cohort
        if isinstance(there, Trace):
            digest = read_trace(there).digest
        presence = presence_of(there, list(work), plan.seed)
        return VirtualSites(settings, plan.seed, work, presence, min(least, len(work)), digest)

    def down_s(self, site: str, round: int, size: int) -> float:
        """Seconds until a message of so many bytes has come to the site."""
        rate = self._of(self.settings.down_mbit_s, Purpose.DOWNLINK, site, round)
        return self._latency_s(site, round) + (0.0 if rate is None else size / (rate * MBIT))

    def up_s(self, site: str, round: int, size: int) -> float:
        """Seconds until one from it has come to the server."""
        rate = self._of(self.settings.up_mbit_s, Purpose.UPLINK, site, round)
        return self._latency_s(site, round) + (0.0 if rate is None else size / (rate * MBIT))

    def compute_s(self, site: str, round: int, *, trains: bool, scores: bool) -> float:
        """Seconds that it computes."""
        work, settings = self.work[site], self.settings
        amount = work.training * trains + work.scoring * settings.scoring * scores
        each = self._of(settings.compute_s, Purpose.COMPUTE, site, round) or 0.0
        slowness = self._of(settings.slowness, Purpose.SLOWNESS, site, round) or 1.0
        return amount * each * slowness

    def _latency_s(self, site: str, round: int) -> float:
        return self._of(self.settings.latency_s, Purpose.LATENCY, site, round) or 0.0

    def _of(self, figure: Figure | None, purpose: Purpose, site: str, round: int) -> float | None:
        if figure is None:
            return None
        known = self._drawn.get((purpose, site))
        if known is None or known[0] != round:
            known = round, value_of(figure, self.seed, purpose, site=site, round=round)
            self._drawn[purpose, site] = known
        return known[1]


def check_settings(settings: Realism) -> None:
    """Refuse what can be refused without knowing the sites.

    Raises:
        ConfigError: As `read_trace`.
    """
    if isinstance(settings.availability, Trace):
        read_trace(settings.availability)


def check_sites(settings: Realism, sites: Sequence[str]) -> None:
    """Refuse settings that do not fit the sites.

    Raises:
        ConfigError: A table or trace names a site that there is not, or leaves one out; more sites are to be
            there than there are.
    """
    for name in FIGURES:
        figure = getattr(settings, name)
        if figure is not None:
            check_names(f"simulation.realism.{name}", figure, sites)
    there = settings.availability
    if isinstance(there, Trace):
        check_trace(there, read_trace(there), sites)
    if there is not None and there.least is not None and there.least > len(sites):
        raise ConfigError(
            "a round would never begin", found=f"simulation.realism.availability.least={there.least}",
            expected=f"at most {len(sites)}, the number of sites",
        )  # fmt: skip
