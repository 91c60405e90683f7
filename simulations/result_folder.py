"""The folder of a run: what goes in at the start, what each arm writes, what stands there at the end."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from wardround.core.errors import ConfigError, DataError, StorageError
from wardround.core.metrics.contract import Scores
from wardround.core.plan import TrainingPlan
from wardround.runtime.event_log import read_events
from wardround.runtime.events import EventSink
from wardround.runtime.files import atomic_folder, storing, write_atomic, write_json
from wardround.runtime.sinks import JsonlSink, TensorBoardSink
from wardround.simulations.arm_names import FEDERATED
from wardround.simulations.comparison import compare
from wardround.simulations.config import RunConfig
from wardround.simulations.finished_run import own_folder
from wardround.simulations.new_folder import is_temporary, never_began, require_new
from wardround.simulations.privacy_record import privacy_record
from wardround.simulations.rows import Rows
from wardround.simulations.secure_costs import secure_record
from wardround.simulations.traffic import traffic_record
from wardround.simulations.virtual.record import ROUNDS_FILE, round_rows, round_table, virtual_record
from wardround.training.plan_config import DataConfig
from wardround.training.processors import TOKENIZER
from wardround.training.source_spec import SourceSpec
from wardround.training.workbench import Workbench

if TYPE_CHECKING:
    from wardround.simulations.simulate import ArmResult

PACKAGES = (
    "wardround",
    "flwr",
    "torch",
    "transformers",
    "peft",
    "numpy",
    "safetensors",
    "tokenizers",
    "datasets",
)


@dataclass(frozen=True)
class ResultFolder:
    """One run's folder.

    Attributes:
        path: Where it is.
        run_id: The run's; a resumed run keeps it.
        resumed: Whether the run goes on.
        notices: What a person should know of a resumed run: versions that have changed since it began.
    """

    path: Path
    run_id: str
    resumed: bool
    notices: list[str] = field(default_factory=list)

    @staticmethod
    def open(path: Path, config: RunConfig, plan: TrainingPlan, rows: Rows) -> ResultFolder:
        """A new folder, or the folder of the run that is resumed.

        Raises:
            ConfigError: The folder holds another run, or the run to resume is not there.
            DataError: The rows of the resumed run are not those that it began with.
            StorageError: It cannot be written, or the resumed run's plan is not this one.
        """
        if config.resume and not never_began(path):
            return _reopen(path, plan, rows)
        if not config.resume:
            require_new(path)
        _sweep(path)
        run_id = uuid.uuid4().hex
        values = config.model_copy(update={"resume": None}).model_dump(mode="json")
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        write_atomic(path / "config.yaml", text.encode())  # first: with it alone the run can be resumed
        write_json(path / "config.json", values)
        write_json(path / "plan.json", json.loads(plan.canonical()))
        write_json(path / "environment.json", environment())
        record = {"run_id": run_id, "plan_digest": plan.digest, "rows_digest": rows.digest()}
        write_json(path / "run.json", record)
        return ResultFolder(path, run_id, resumed=False)

    def arm(self, name: str) -> Path:
        """Folder of one arm."""
        return self.path / "arms" / name

    @property
    def events(self) -> Path:
        """What was told of the run."""
        return self.path / "metrics.jsonl"

    def sinks(self) -> list[EventSink]:
        """The files that the event stream fills."""
        return [JsonlSink(self.events), TensorBoardSink(self.path / "tensorboard")]

    def save_adapters(self, bench: Workbench, result: ArmResult) -> None:
        """The released adapter in `adapter/`, the last one in `adapter_last/`, in PEFT's own format.

        Where each site has its own, these in `sites/NAME/adapter` and nothing else.
        """
        adapters = {own_folder(site): adapter for site, adapter in result.own.items()}
        if not adapters:
            last = result.outcome.last.adapter
            adapters = {"adapter": result.outcome.for_everybody, "adapter_last": last}
        for name, adapter in adapters.items():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            with atomic_folder(self.path / name, replace=True) as folder:
                bench.load_adapter(adapter)
                bench.method.save(bench.model, folder, bench.base.name, result.arm.plan.base)

    def finish(
        self,
        config: RunConfig,
        plan: TrainingPlan,
        rows: Rows,
        bench: Workbench,
        results: dict[str, ArmResult],
        before: dict[str, Scores],
    ) -> dict[str, Any]:
        """Write adapters, summary, per-site table, curves, samples and model card; returns the summary.

        `before` holds the initial adapter's scores by part.
        """
        from wardround.simulations.report import write_report

        self.save_adapters(bench, results[FEDERATED])
        told = read_events(self.events)
        virtual = virtual_record(told)
        summary = {
            "name": plan.name,
            "run_id": self.run_id,
            "plan_digest": plan.digest,
            "base": plan.base.model_dump(mode="json"),
            "task": {
                "auto_class": bench.task.auto_class,
                "reads_tokens": bench.task.processor is TOKENIZER,
                "pipeline_tag": bench.task.pipeline_tag,
                "caution": bench.task.caution,
            },
            "strategy": plan.strategy.name,
            "privacy": privacy_record(plan, told),
            "secure": secure_record(plan, told),
            "traffic": traffic_record(told),
            **({} if virtual is None else {"virtual": virtual}),
            "data": data_record(config.data),
            "sites": {name: len(examples) for name, examples in rows.sites.items()},
            "test_rows": {
                "everybody": len(rows.test),
                "sites": {name: len(examples) for name, examples in rows.site_tests.items()},
            },
            "notices": [*rows.notices, *self.notices],
            "environment": environment(),
            "before_training": {part: scores_record(scores) for part, scores in before.items()},
            "comparison": compare({name: result.test for name, result in results.items()}, before),
            "arms": {name: arm_record(result) for name, result in results.items()},
        }
        write_json(self.path / "summary.json", summary)
        write_report(self.path, config, plan, rows, bench, results, summary)
        if virtual is not None:
            write_atomic(self.path / ROUNDS_FILE, round_table(round_rows(told)))
        return summary


@contextmanager
def alone_in(path: Path) -> Iterator[None]:
    """Hold a run's folder for this process; the lock goes with the process, however that ends.

    Raises:
        ConfigError: Another process works in it.
        StorageError: It cannot be written.
    """
    with storing(path):
        path.mkdir(parents=True, exist_ok=True)
        folder = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another process is working in {path}",
                remedy="wait until it has ended, or choose another folder",
            ) from None
        yield
    finally:
        os.close(folder)


def _sweep(path: Path) -> None:
    """Remove what a killed process left under temporary names; nobody else writes in a run's folder."""
    for stale in filter(is_temporary, list(path.rglob(".*"))):
        shutil.rmtree(stale, ignore_errors=True) if stale.is_dir() else stale.unlink(missing_ok=True)


def _reopen(path: Path, plan: TrainingPlan, rows: Rows) -> ResultFolder:
    try:
        record = json.loads((path / "run.json").read_text(encoding="utf-8"))
        run_id, followed, read = (str(record[key]) for key in ("run_id", "plan_digest", "rows_digest"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"there is no run to resume in {path}", found=type(error).__name__, expected="run.json, whole",
            remedy="correct the folder, or start a new run in another one",
        ) from error  # fmt: skip
    if followed != plan.digest:
        raise StorageError(
            "the run to resume follows another plan",
            found=followed[:12],
            expected=plan.digest[:12],
            remedy="data, model or package versions changed since it began: start a new run",
        )
    if read != (now := rows.digest()):
        raise DataError(
            "the rows are not those that the run to resume began with",
            found=f"rows of digest {now[:12]}",
            expected=f"rows of digest {read[:12]}: the same contents in the same order",
            remedy="bring the former rows back, or start a new run with these",
        )
    _sweep(path)
    return ResultFolder(path, run_id, resumed=True, notices=changed_versions(path / "environment.json"))


def changed_versions(noted: Path) -> list[str]:
    """Notices where this environment is not the noted one: the adapter may then differ in its bits."""
    try:
        began = dict(json.loads(noted.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        return [f"{noted.name} cannot be read ({type(error).__name__}): versions were not compared"]
    now = environment()
    changed = [
        f"{name} {began.get(name, 'absent')} → {now.get(name, 'absent')}"
        for name in sorted({*began, *now})
        if began.get(name) != now.get(name)
    ]
    if not changed:
        return []
    return [
        "versions have changed since the run began, so that its adapter may differ from that of an "
        "undisturbed run: " + ", ".join(changed)
    ]


def environment() -> dict[str, str]:
    """Versions that a result depends on."""
    versions = {name: metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "machine": platform.machine(), **versions}


def data_record(data: DataConfig) -> dict[str, Any]:
    """What was trained and tested on, without the folders of this machine: a summary may be published."""
    training = [data.source] if data.source else list(data.sites.values())
    tests = [source for source in (data.test, *data.site_tests.values()) if source]
    return {
        "description": data.description,
        "licence": data.licence,
        "label_meanings": data.label_meanings,
        "training_sources": [public_name(source) for source in training],
        "test_sources": [public_name(source) for source in tests],
    }


def public_name(source: SourceSpec) -> str:
    """A location that means the same on every machine as it stands; of a path the last name alone."""
    name = source.path if "://" in source.path else Path(source.path).name
    return f"{name} (filtered by {', '.join(source.where)})" if source.where else name


def scores_record(scores: Scores) -> dict[str, Any]:
    """Scores as plain JSON values."""
    return {"values": scores.values, "support": scores.support, "by_class": scores.by_class}


def arm_record(result: ArmResult) -> dict[str, Any]:
    """One arm in the summary; of the sites' own adapters each, where there is no other."""
    outcome = result.outcome
    adapters: dict[str, Any] = {"site_adapters": {site: own.digest for site, own in result.own.items()}}
    if not result.own:
        released, last = outcome.for_everybody.digest, outcome.last.adapter.digest
        adapters = {"released_adapter": released, "last_adapter": last}
    return {
        "reason": outcome.reason,
        "last_round": outcome.last.round,
        "released_round": outcome.released_round,
        **adapters,
        "validation": [list(score) for score in outcome.selection.scores],
        "test": {part: scores_record(scores) for part, scores in result.test.items()},
        "wall_s": round(result.wall_s, 3),
    }
