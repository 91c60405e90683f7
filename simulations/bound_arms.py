"""The bounds beside a federation: each site alone, and all rows in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from wardround.core.plan import SecureRules, StrategySpec, TrainingPlan, cohort_size
from wardround.privacy.accounting.of_plan import round_cost
from wardround.server.cohorts import round_half_up
from wardround.simulations.arm_names import CENTRALISED
from wardround.simulations.arms import Arm
from wardround.simulations.config import BoundOptimiser, RunConfig
from wardround.simulations.site_work import site_steps, units_of
from wardround.training.alone import rounds_alone, work_alone
from wardround.training.planning import PrivateBounds
from wardround.training.planning import bounds_of as encoding_bounds
from wardround.training.site_rows import SiteRows

POOL: Final = "everybody"
ALONE_BITS: Final = 32
"""Of the arms of one site, whose updates nobody has to carry: fine enough not to stand in their way."""


def bounds_of(config: RunConfig, federated: Arm) -> list[Arm]:
    """The configured bounds: each site alone, all rows in one place."""
    arms, bounds = [], config.bounds
    if bounds.local_only:
        rate = bounds.local_learning_rate
        arms += [local_arm(federated, site, rate, bounds.optimiser) for site in sorted(federated.sites)]
    if bounds.centralised:
        arms.append(centralised_arm(federated, bounds.centralised_learning_rate, bounds.optimiser))
    return arms


def _pooled(units: Mapping[str, Sequence[str]]) -> list[str]:
    return [f"{site}\x1f{unit}" for site, found in units.items() for unit in found]


def local_arm(
    federated: Arm, site: str, learning_rate: float | None = None, optimiser: BoundOptimiser | None = None
) -> Arm:
    """One site alone, as many rounds as it trains in the federation on average, its optimiser kept.

    A round has the same steps in both, so that the site takes as many in all: with every site in every round
    exactly, with a share of them to the nearest round, at least one.

    Args:
        federated: The federation.
        site: Name of the site.
        learning_rate: Its own; None: that of the federation's sites.
        optimiser: Its own; None: that of the federation's sites.
    """
    plan = _alone(federated.plan)
    rounds = rounds_alone(federated.plan.rounds, len(federated.sites))
    plan = plan.model_copy(update={"rounds": plan.rounds.model_copy(update={"rounds": rounds})})
    own = own_work(learning_rate, optimiser)
    if own:
        local = plan.local.model_copy(update=own)
        plan = _with_bounds(plan.model_copy(update={"local": local}), federated.sites[site])
    return Arm(f"local/{site}", plan, {site: federated.sites[site]})


def own_work(learning_rate: float | None, optimiser: BoundOptimiser | None) -> dict[str, object]:
    """What a bound trains with instead of the settings of the federation's sites."""
    given = {"learning_rate": learning_rate, "optimiser": optimiser}
    return {name: value for name, value in given.items() if value is not None}


def centralised_arm(
    federated: Arm, learning_rate: float | None, optimiser: BoundOptimiser | None = None
) -> Arm:
    """All rows in one place, as many steps a round as an average cohort takes, the optimiser kept.

    Args:
        federated: The federation.
        learning_rate: Its own; None: that of the federation's sites.
        optimiser: Its own; None: that of the federation's sites. Where the federation's optimiser is the
            server's, sites take plain gradient steps, which alone would be a handicap.
    """
    pooled = SiteRows(
        [row for rows in federated.sites.values() for row in rows.training],
        [row for rows in federated.sites.values() for row in rows.validation],
        _pooled({site: rows.units for site, rows in federated.sites.items()}),
        everybody=tuple(_pooled({site: rows.everybody for site, rows in federated.sites.items()})),
        held_back=tuple(_pooled({site: rows.held_back for site, rows in federated.sites.items()})),
    )
    plan = _alone(federated.plan)
    privacy, work = federated.plan.privacy, plan.local
    amount: dict[str, object] = {"epochs": None, "steps": steps_a_round(federated)}
    if privacy is not None and privacy.noise == "distributed":  # one step a round along the sum of all sites
        amount = {"steps": 1, "batch_size": work.batch_size * len(federated.sites)}
    local = work.model_copy(update=amount | own_work(learning_rate, optimiser))
    plan = _with_bounds(plan.model_copy(update={"local": local}), pooled)
    return Arm(CENTRALISED, plan, {POOL: pooled})


def _with_bounds(plan: TrainingPlan, rows: SiteRows) -> TrainingPlan:
    """The plan of one site with the encoding's bounds that follow from its own work."""
    encoding = encoding_bounds(
        plan.local, plan.strategy.weighting, len(rows.training), plan.data.max_length, _bounds(plan, rows)
    )
    return plan.model_copy(update={"encoding": plan.encoding.model_copy(update=encoding | {"norm": None})})


def steps_a_round(arm: Arm) -> int:
    """Optimiser steps that all sites of an average cohort take together in one round, to the nearest step."""
    total = sum(site_steps(arm.plan, rows) for rows in arm.sites.values())
    return max(1, round_half_up(total * cohort_share(arm)))


def cohort_share(arm: Arm) -> float:
    """Share of the sites that are asked in a round: `participation`, rounded to whole sites."""
    return cohort_size(arm.plan.rounds, len(arm.sites)) / len(arm.sites)


def _bounds(plan: TrainingPlan, rows: SiteRows) -> PrivateBounds | None:
    cost = round_cost(plan, units_of(plan, rows))
    return (
        None
        if cost is None or plan.privacy is None
        else PrivateBounds(plan.privacy, cost.widest, 1, cost.units)
    )


def _alone(plan: TrainingPlan) -> TrainingPlan:
    """The plan of one site, which has nothing to hide from itself, and no reason for a narrow ring.

    What protects a site's units stays: one site alone draws all of its noise itself. What protects whole
    sites has no meaning for one of them.
    """
    privacy = plan.privacy
    encoding: dict[str, object] = {"bits": ALONE_BITS, "compression": None}
    if privacy is not None and privacy.trains_privately:
        privacy = privacy.model_copy(update={"noise": "local"})
    elif privacy is not None:
        privacy, encoding["norm"] = None, None
    return plan.model_copy(
        update={
            "secure": SecureRules(mode="off"),
            "privacy": privacy,
            "encoding": plan.encoding.model_copy(update=encoding),
            "strategy": StrategySpec(name="fedavg", weighting=plan.strategy.weighting),
            "local": work_alone(plan.local),
            "rounds": plan.rounds.model_copy(update={"participation": 1.0, "quorum": 1.0}),
        }
    )
