"""A simulated federation from configuration to result folder: `wardround simulate` as a function.

rows → base model → plan and initial adapter → encode → arms (federated first) → test scores → result folder
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from wardround.core.metrics.contract import Scores
from wardround.core.packed import Adapter
from wardround.core.plan import TaskSpec, TrainingPlan, parse_options
from wardround.runtime.events import EventSink, EventStream, Notice
from wardround.runtime.locations import locate
from wardround.server.rounds import Outcome
from wardround.simulations.arms import FEDERATED, Arm, SiteRows, Train, centralised_arm, local_arm, run_arms
from wardround.simulations.config import RunConfig
from wardround.simulations.result_folder import ResultFolder
from wardround.simulations.rows import Rows, gather
from wardround.simulations.scoring import Scorer, TestRows
from wardround.strategies.contract import ServerState
from wardround.training.adapters import ADAPTERS
from wardround.training.examples import split_validation
from wardround.training.planning import make_plan
from wardround.training.tasks import TASKS
from wardround.training.tasks.contract import Encoded, Example
from wardround.training.workbench import Workbench, open_workbench


@dataclass(frozen=True)
class ArmResult:
    """What one arm ended with: its outcome, and the released adapter's scores by part."""

    arm: Arm
    outcome: Outcome
    test: dict[str, Scores]
    wall_s: float


@dataclass(frozen=True)
class SimulationResult:
    """What `run_simulation` gives back; everything stands in the folder as well."""

    folder: Path
    plan: TrainingPlan
    federated: ArmResult
    bounds: dict[str, ArmResult]
    summary: dict[str, object]


def run_simulation(config: RunConfig, *, sinks: tuple[EventSink, ...] = ()) -> SimulationResult:
    """Run a configured simulation and write its result folder.

    Args:
        config: Checked configuration.
        sinks: More readers of the event stream, beside the files in the result folder.

    Raises:
        WardroundError: What is wrong with configuration, data, model or disk, before anything is lost.
    """
    task = TASKS.get(config.task.name, allow_dotted=True)
    task_options = parse_options(task.Options, config.task.options, f"options of task {config.task.name!r}")
    spec = TaskSpec(
        name=config.task.name, options=task_options.model_dump(mode="json"), metrics=task.metric_family
    )
    rows = gather(config, task, spec)
    adapter_method = ADAPTERS.get(config.adapter.method, allow_dotted=True)
    adapter_options = parse_options(
        adapter_method.Options, config.adapter.options, f"options of adapter {config.adapter.method!r}"
    )
    bench = open_workbench(
        config.model, task, rows.contract, adapter_method, adapter_options, config.machine, seed=config.seed
    )
    plan, initial = make_plan(
        bench,
        name=config.name,
        seed=config.seed,
        task=spec,
        data=rows.contract,
        adapter_method=config.adapter.method,
        adapter_options=adapter_options.model_dump(mode="json"),
        start_from=locate(config.adapter.start_from) if config.adapter.start_from else None,
        local=config.local,
        strategy=config.strategy,
        encoding=config.encoding,
        rounds=config.rounds,
        release=config.release,
        allow_dotted=True,
    )
    folder = ResultFolder.open(Path(config.resume or config.output), config, plan, initial)
    events = EventStream((*folder.sinks(), *sinks))
    try:
        return _run_arms(config, rows, bench, plan, initial, folder, events)
    finally:
        events.close()


def _run_arms(
    config: RunConfig,
    rows: Rows,
    bench: Workbench,
    plan: TrainingPlan,
    initial: Adapter,
    folder: ResultFolder,
    events: EventStream,
) -> SimulationResult:
    for notice in rows.notices:
        events.emit(Notice(FEDERATED, "warning", notice))
    sites = {name: encode_site(plan, bench, name, examples, events) for name, examples in rows.sites.items()}
    test = TestRows(
        encode_rows(plan, bench, rows.test, "test", events),
        {
            name: encode_rows(plan, bench, found, f"test/{name}", events)
            for name, found in rows.site_tests.items()
        },
    )
    federated = Arm(FEDERATED, plan, sites)
    scorer = Scorer(bench, plan, test, events)
    arms = [federated, *_bounds(config, federated)]
    ended = run_arms(
        arms,
        bench,
        initial,
        folder.arm,
        events,
        run_id=folder.run_id,
        lanes=config.simulation.lanes,
        each=lambda arm, train: train_and_score(arm, train, scorer, config.evaluation.every),
    )
    results = {result.arm.name: result for result in ended}
    summary = folder.finish(config, plan, rows, bench, results)
    bounds = {name: result for name, result in results.items() if name != FEDERATED}
    return SimulationResult(folder.path, plan, results[FEDERATED], bounds, summary)


def train_and_score(arm: Arm, train: Train, scorer: Scorer, every: int | None) -> ArmResult:
    """Train one arm and score its released adapter; the federation also every so many rounds."""
    started = time.monotonic()

    def on_state(state: ServerState) -> None:
        due = every is not None and state.round % every == 0 and state.round < arm.plan.rounds.rounds
        if due and arm.name == FEDERATED:
            scorer.score(state.adapter, arm=arm.name, round=state.round)

    outcome = train(on_state)
    own = [arm.name.removeprefix("local/")] if arm.name.startswith("local/") else None
    test = scorer.score(outcome.released, arm=arm.name, round=outcome.released_round, sites=own)
    return ArmResult(arm, outcome, test, time.monotonic() - started)


def _bounds(config: RunConfig, federated: Arm) -> list[Arm]:
    arms = []
    if config.bounds.local_only:
        arms += [local_arm(federated, site) for site in sorted(federated.sites)]
    if config.bounds.centralised:
        arms.append(centralised_arm(federated, config.bounds.centralised_learning_rate))
    return arms


def encode_site(
    plan: TrainingPlan, bench: Workbench, name: str, examples: list[Example], events: EventStream
) -> SiteRows:
    """Carve the validation part by unit, then encode both parts."""
    training, validation = split_validation(examples, plan.data.validation_fraction, plan.seed, name)
    return SiteRows(
        encode_rows(plan, bench, [examples[index] for index in training], name, events),
        encode_rows(plan, bench, [examples[index] for index in validation], name, events),
    )


def encode_rows(
    plan: TrainingPlan, bench: Workbench, examples: list[Example], where: str, events: EventStream
) -> list[Encoded]:
    """Encode rows; what truncation cut is told, never silent."""
    encoded = bench.task.encode(examples, bench.tokenizer, plan.data, plan.task)
    cut = sum(1 for row in encoded if row.cut)
    if cut:
        tokens = sum(row.cut for row in encoded)
        events.emit(
            Notice(
                FEDERATED,
                "info",
                f"{where}: {cut} of {len(encoded)} rows were longer than {plan.data.max_length} tokens; "
                f"{tokens} tokens were cut",
            )
        )
    return encoded
