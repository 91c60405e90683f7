"""Who is asked to train in a round."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wardround.core.errors import QuorumError
from wardround.core.plan import TrainingPlan, cohort_size
from wardround.core.seeds import Purpose, generator


def require_some(sites: Sequence[str]) -> None:
    """Refuse a round that nobody is asked for.

    Raises:
        QuorumError: Every site was caught or excluded, or is away. The journal stands.
    """
    if not sites:
        raise QuorumError(
            "no site of the run is left to be asked",
            expected="one at least that was neither excluded nor caught, and is there",
            remedy="start a new run with the sites that may take part",
        )


def choose_cohort(
    plan: TrainingPlan, sites: Sequence[str], round: int, *, of: int | None = None
) -> list[str]:
    """Sites that train in this round, drawn from the seed tree.

    Args:
        plan: Its share of the sites, and the seed.
        sites: Who may be asked.
        round: Counts from 1.
        of: The share is of so many sites, where some of them are away; None: of `sites`.
    """
    size = cohort_size(plan.rounds, of or len(sites))
    if size >= len(sites):
        return sorted(sites)
    draw = generator(plan.seed, Purpose.COHORT, round=round)
    return sorted(draw.choice(sorted(sites), size=size, replace=False).tolist())


def round_half_up(value: float) -> int:
    """Nearest integer, halves up."""
    return int(np.floor(value + 0.5))
