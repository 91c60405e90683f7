"""A site that trains alone, with the recipe of a plan and its own rows: what a federation is compared with.

    initial ─► local round ─► local round ─► … the adapter of the round that its validation part likes best

It takes as many steps as in the federation, keeps its optimiser over them, and follows no strategy and no
privacy of the plan: there is nobody to average with, and nothing is sent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from wardround.core.counting import scores
from wardround.core.packed import Adapter
from wardround.core.plan import LocalWork, RoundRules, TrainingPlan, cohort_size
from wardround.core.selection import Selection
from wardround.strategies.contract import LocalRules
from wardround.training.evaluation import evaluate
from wardround.training.local_round import LocalJob, train_locally
from wardround.training.optimisers import OptimiserState
from wardround.training.site_rows import SiteRows
from wardround.training.workbench import Workbench


@dataclass(frozen=True)
class Alone:
    """What a site has trained alone.

    Attributes:
        adapter: Of the round that the plan's release rule chooses on the site's validation part; of the last
            one where it has none.
        round: That round.
        rounds: Rounds trained.
    """

    adapter: Adapter
    round: int
    rounds: int


def rounds_alone(rules: RoundRules, sites: int) -> int:
    """Rounds in which one site takes as many steps as it does in a federation on average; at least one.

    With every site in every round exactly, with a share of them to the nearest round, halves up.
    """
    share = cohort_size(rules, sites) / sites
    return max(1, math.floor(rules.rounds * share + 0.5))


def work_alone(work: LocalWork) -> LocalWork:
    """The work of a round, its optimiser kept over the rounds: alone it has no reason to begin anew."""
    return work.model_copy(update={"optimiser_state": "keep"})


def train_alone(
    bench: Workbench,
    plan: TrainingPlan,
    rows: SiteRows,
    site: str,
    initial: Adapter,
    *,
    sites: int,
    tell: Callable[[int, int], None],
) -> Alone:
    """Train one site alone, without the plan's privacy.

    Args:
        bench: The plan's base model with the adapter on it.
        plan: Its seed, local work, rounds and release rule count.
        rows: Of the site.
        site: Its name, part of the seeds.
        initial: Where it starts.
        sites: Of the federation, for the number of rounds.
        tell: Takes each round that was trained, and how many there are.

    Raises:
        TrainingError: As `train_locally`.
    """
    rounds, work = rounds_alone(plan.rounds, sites), work_alone(plan.local)
    selection, best = Selection(plan.release), (0, initial)
    adapter, state = initial, None
    for round in range(1, rounds + 1):
        adapter, state = _round(bench, plan, rows, site, adapter, work, state, round, rounds)
        tell(round, rounds)
        last = round == rounds
        if not rows.validation or not (last or round % plan.release.every == 0):
            continue
        selection = selection.add(round, _score(bench, plan, rows, adapter))
        if selection.best is not None and selection.best[0] == round:
            best = (round, adapter)
        if selection.exhausted:
            return Alone(best[1], best[0], round)
    return Alone(*((adapter, rounds) if selection.best is None else best[::-1]), rounds)


def _round(
    bench: Workbench,
    plan: TrainingPlan,
    rows: SiteRows,
    site: str,
    before: Adapter,
    work: LocalWork,
    state: OptimiserState | None,
    round: int,
    rounds: int,
) -> tuple[Adapter, OptimiserState | None]:
    result = train_locally(
        bench,
        LocalJob(
            rows.training,
            before,
            work,
            LocalRules(),
            round=round,
            rounds=rounds,
            seed_root=plan.seed,
            site=site,
            optimiser_state=state,
        ),
    )
    return result.adapter, result.optimiser_state


def _score(bench: Workbench, plan: TrainingPlan, rows: SiteRows, adapter: Adapter) -> float | None:
    bench.load_adapter(adapter)
    counters = evaluate(
        bench.model, bench.task, plan.task, plan.data, rows.validation,
        batch_size=bench.machine.evaluation_batch_size, device=bench.device, tokenizer=bench.tokenizer,
    )  # fmt: skip
    return scores(plan, counters).values.get(plan.release.metric)
