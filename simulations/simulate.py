"""A simulated federation from configuration to result folder: `wardround simulate` as a function.

prepare (rows, base model, plan) → encode → score the initial adapter → arms (federated first) → test scores
→ result folder
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wardround.core.metrics.contract import Scores
from wardround.core.packed import Adapter
from wardround.core.plan import TrainingPlan
from wardround.runtime.events import EventSink, EventStream, Notice
from wardround.server.outcome import Outcome
from wardround.simulations.arm_names import FEDERATED
from wardround.simulations.arms import Arm, Train, run_arms
from wardround.simulations.bound_arms import bounds_of
from wardround.simulations.comparison import local_site
from wardround.simulations.config import RunConfig
from wardround.simulations.first_checks import check_first
from wardround.simulations.personal import OwnAdapters
from wardround.simulations.preparation import Preparation, encode_all, prepare
from wardround.simulations.privacy import drowned, uncounted
from wardround.simulations.privacy_report import privacy_report
from wardround.simulations.processes import forked_crew, forks_pay
from wardround.simulations.result_folder import ResultFolder, alone_in
from wardround.simulations.scoring import Scorer
from wardround.simulations.site_work import units_of
from wardround.simulations.together import Crew, Here, Trainer
from wardround.simulations.virtual.sites import check_sites
from wardround.strategies.contract import ServerState
from wardround.training.tasks.contract import Encoded
from wardround.training.workbench import Workbench


@dataclass(frozen=True)
class ArmResult:
    """What one arm ended with.

    Attributes:
        arm: Which.
        outcome: Of its rounds.
        test: The released adapter's scores by part, or those of the sites' own adapters.
        wall_s: Seconds of the whole arm.
        own: Site → its own adapter after the last round, where the strategy leaves each one of its own: what
            federates is no adapter for anybody then.
    """

    arm: Arm
    outcome: Outcome
    test: dict[str, Scores]
    wall_s: float
    own: Mapping[str, Adapter] = field(default_factory=dict)


@dataclass(frozen=True)
class SimulationResult:
    """What `run_simulation` gives back; everything stands in the folder as well.

    Attributes:
        folder: The result folder.
        plan: What was trained.
        federated: The federation's arm.
        bounds: The other arms that were asked for: `centralised`, `local/SITE`.
        before: Part → scores of the initial adapter, with which every arm begins; empty without test rows.
        summary: What stands in `summary.json`.
    """

    folder: Path
    plan: TrainingPlan
    federated: ArmResult
    bounds: dict[str, ArmResult]
    before: dict[str, Scores]
    summary: dict[str, Any]


def run_simulation(config: RunConfig, *, sinks: tuple[EventSink, ...] = ()) -> SimulationResult:
    """Run a configured simulation and write its result folder.

    Args:
        config: Checked configuration.
        sinks: More readers of the event stream, beside the files in the result folder.

    Raises:
        WardroundError: What is wrong with configuration, data, model or disk, before anything is lost.
    """
    check_first(config)
    prepared = prepare(config)
    check_sites(config.simulation.realism, list(prepared.rows.sites))
    path = Path(config.resume or config.output)
    with alone_in(path):
        folder = ResultFolder.open(path, config, prepared.plan, prepared.rows)
        events = EventStream((*folder.sinks(), *sinks))
        try:
            return _run_arms(prepared, folder, events)
        finally:
            events.close()


def _run_arms(prepared: Preparation, folder: ResultFolder, events: EventStream) -> SimulationResult:
    config, plan, bench = prepared.config, prepared.plan, prepared.bench
    for notice in [*prepared.rows.notices, *folder.notices]:
        events.emit(Notice(FEDERATED, "warning", notice))
    federated, test = encode_all(prepared, events)
    drowning = drowned(plan, {name: units_of(plan, rows) for name, rows in federated.sites.items()})
    for notice in filter(None, (drowning, uncounted(plan, len(federated.sites)))):
        events.emit(Notice(FEDERATED, "warning", notice))
    arms = [federated, *bounds_of(config, federated)]
    rows = [own.training for arm in arms for own in arm.sites.values()]
    scored = [own.validation for arm in arms for own in arm.sites.values()]
    scored += [test.everybody, *test.sites.values()]
    with crew_of(config, plan, bench, rows, scored) as crew:
        scorer = Scorer(bench, plan, test, events, crew)
        before = scorer.score(prepared.initial, arm=FEDERATED, round=0)
        ended = run_arms(
            arms,
            bench,
            prepared.initial,
            folder.arm,
            events,
            run_id=folder.run_id,
            lanes=config.simulation.lanes,
            policy=config.secure.policy,
            privacy_cap=config.simulation.privacy_cap,
            ranks=config.simulation.ranks,
            together=config.simulation.together,
            outage=config.simulation.outage,
            realism=config.simulation.realism,
            crew=crew,
            each=lambda arm, train: train_and_score(
                arm,
                train,
                scorer,
                config.evaluation.every,
                OwnAdapters.of(arm, folder.arm(arm.name), folder.events),
            ),
        )
    results = {result.arm.name: result for result in ended}
    report = privacy_report(federated, results[FEDERATED].outcome, folder.run_id, folder.arm(FEDERATED))
    if report is not None:
        events.emit(report)
    summary = folder.finish(config, plan, prepared.rows, bench, results, before)
    bounds = {name: result for name, result in results.items() if name != FEDERATED}
    return SimulationResult(folder.path, plan, results[FEDERATED], bounds, before, summary)


def crew_of(
    config: RunConfig,
    plan: TrainingPlan,
    bench: Workbench,
    rows: Sequence[Sequence[Encoded]],
    scored: Sequence[Sequence[Encoded]],
) -> contextlib.AbstractContextManager[Crew]:
    """Who trains the sites, whose rows these are, and scores others, for as long as the run lasts."""
    backend = config.simulation.backend
    if backend == "processes" or (backend == "auto" and forks_pay(config, bench, len(rows))):
        return forked_crew(config, bench, rows, scored)
    if backend != "ray":
        return contextlib.nullcontext(Here(Trainer(bench)))
    from wardround.simulations.ray_workers import ray_crew

    return ray_crew(config, plan, bench)


def train_and_score(
    arm: Arm, train: Train, scorer: Scorer, every: int | None, personal: OwnAdapters | None = None
) -> ArmResult:
    """Train one arm and score its released adapter; the federation also every so many rounds.

    Where `personal` makes the sites' own adapters, these are scored, and kept.
    """

    def on_state(state: ServerState) -> None:
        due = every is not None and state.round % every == 0 and state.round < arm.plan.rounds.rounds
        if not due or arm.name != FEDERATED:
            return
        if personal is None:
            scorer.score(state.adapter, arm=arm.name, round=state.round)
        else:
            scorer.score_own(personal.at(state), arm=arm.name, round=state.round)

    outcome = train(on_state)
    if personal is not None:
        adapters = personal.at(outcome.last)
        test = scorer.score_own(adapters, arm=arm.name, round=outcome.last.round)
        return ArmResult(arm, outcome, test, outcome.wall_s, adapters)
    alone = local_site(arm.name)
    own = None if alone is None else [alone]
    test = scorer.score(outcome.for_everybody, arm=arm.name, round=outcome.released_round, sites=own)
    return ArmResult(arm, outcome, test, outcome.wall_s)
