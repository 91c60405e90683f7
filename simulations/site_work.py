"""How much a site works in a round, from its plan and its rows."""

from __future__ import annotations

from wardround.core.plan import TrainingPlan
from wardround.core.seeds import Purpose, generator
from wardround.privacy.accounting.of_plan import round_cost
from wardround.training.batches import plan_batches
from wardround.training.site_rows import SiteRows
from wardround.training.tasks import TASKS


def site_steps(plan: TrainingPlan, rows: SiteRows) -> int:
    """Optimiser steps that a site with these rows takes in one round: the batches that its training plans."""
    return len(site_batches(plan, rows))


def site_batches(plan: TrainingPlan, rows: SiteRows) -> list[int]:
    """Rows of each of these steps; of private ones as many as are expected."""
    cost = round_cost(plan, units_of(plan, rows))
    if cost is not None:
        return [plan.local.batch_size] * cost.steps
    task = TASKS.get(plan.task.name, allow_dotted=True)
    usable = sum(1 for row in rows.training if task.targets(row) > 0)
    return list(map(len, plan_batches(usable, plan.local, generator(plan.seed, Purpose.SHUFFLE))))


def units_of(plan: TrainingPlan, rows: SiteRows) -> int:
    """Units that a site trains on, as the plan's privacy counts them."""
    of_rows = plan.privacy is not None and plan.privacy.unit == "example"
    return len(rows.training) if of_rows else len(set(rows.units))
