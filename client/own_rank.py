"""The rank at which this site trains, where its people or its memory ask for another than the plan's."""

from __future__ import annotations

from typing import Final

from wardround.client.site_settings import SiteSettings
from wardround.core.errors import ConfigError
from wardround.core.packed import Adapter, Layout
from wardround.core.plan import TrainingPlan
from wardround.core.ranks import AtRank, at_rank, layout_at
from wardround.core.seeds import Purpose, generator
from wardround.strategies.contract import StartingStrategy, SumStrategy
from wardround.training.plan_strategy import bind_strategy, check_rank, usual_rank

MIB: Final = 2**20
FLOAT: Final = 4
"""Bytes of a trained number, of its gradient, and of each moment that an optimiser keeps of it."""
MOMENTS: Final = {"adamw": 2, "adam": 2, "dp_adam": 2, "sgd": 1}


def own_rank(settings: SiteSettings, plan: TrainingPlan) -> int | None:
    """The site's rank under a plan; None where it is the one that the plan has for everybody.

    Raises:
        ConfigError: The plan cannot take it, or not even rank 1 fits into the site's memory for adapters.
    """
    if settings.rank is None and settings.adapter_mib is None:
        return None
    strategy = bind_strategy(plan)
    usual = usual_rank(plan, strategy)
    wanted = settings.rank or usual
    if settings.adapter_mib is not None and usual:
        wanted = min(wanted, _fitting(plan, wanted, settings.adapter_mib))
    if wanted == usual:
        return None
    check_rank(plan, strategy, wanted)
    return wanted


def start_of(
    strategy: SumStrategy, adapter: Adapter, rank: int | None, plan: TrainingPlan, site: str, round: int
) -> AtRank:
    """What a site trains in a round, and what stands frozen beside it.

    Args:
        strategy: The plan's.
        adapter: The adapter that the broadcast gives.
        rank: The site's own; None: the one that the plan has for everybody.
        plan: Whose seed tree new directions are drawn from.
        site: Its name.
        round: Counts from 1.
    """
    draw = generator(plan.seed, Purpose.DIRECTIONS, round=round, site=site)
    if isinstance(strategy, StartingStrategy):
        return strategy.start(adapter, rank, draw)
    return AtRank(adapter, None) if rank is None else at_rank(adapter, rank, draw)


def training_bytes(layout: Layout, optimiser: str) -> int:
    """Of weights, gradients and moments of everything that trains."""
    return FLOAT * (2 + MOMENTS[optimiser]) * layout.size


def _fitting(plan: TrainingPlan, most: int, mib: float) -> int:
    """The largest rank up to `most` whose training fits.

    Raises:
        ConfigError: None does.
    """
    layout, optimiser = plan.adapter.layout, plan.local.optimiser
    for rank in range(most, 0, -1):
        if training_bytes(layout_at(layout, rank), optimiser) <= mib * MIB:
            return rank
    least = training_bytes(layout_at(layout, 1), optimiser) / MIB
    raise ConfigError(
        "not even an adapter of rank 1 fits into this site's memory for adapters",
        found=f"adapter_mib: {mib:g} in site.yaml", expected=f"at least {least:.1f}",
        remedy="raise adapter_mib, or leave it out",
    )  # fmt: skip
