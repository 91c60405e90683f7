"""Commands on a finished run: merge, evaluate, predict. Each is a function that a program may call."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from wardround.core.counting import scores
from wardround.core.errors import ConfigError, DataError, ModelError
from wardround.core.metrics.contract import Scores
from wardround.core.plan import TrainingPlan
from wardround.runtime.files import write_atomic
from wardround.simulations.comparison import support_unit
from wardround.simulations.config import RunConfig
from wardround.simulations.result_folder import scores_record
from wardround.training.adapters import ADAPTERS
from wardround.training.adapters.contract import AdapterMethod
from wardround.training.base_model import BaseModelConfig, load_base
from wardround.training.commands import read_processor
from wardround.training.evaluation import evaluate
from wardround.training.examples import Example, ExampleSet, read_examples
from wardround.training.merge import MergeReport, merge_adapter, with_adapter
from wardround.training.source_spec import SourceSpec, named_source
from wardround.training.tasks import TASKS, Task
from wardround.training.workbench import pick_device

MERGE_SAMPLES = 16


@dataclass(frozen=True)
class FinishedRun:
    """A run's plan and configuration, read from its folder."""

    folder: Path
    plan: TrainingPlan
    config: RunConfig

    @staticmethod
    def open(folder: Path) -> FinishedRun:
        """Read `plan.json` and `config.json`.

        Raises:
            ConfigError: The folder is not that of a run.
        """
        try:
            plan = TrainingPlan.parse((folder / "plan.json").read_bytes())
            config = RunConfig.parse(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{folder} is not the folder of a run",
                found=type(error).__name__,
                expected="plan.json and config.json, whole",
            ) from error
        return FinishedRun(folder, plan, config)

    @property
    def task(self) -> Task:
        """The plan's task."""
        return TASKS.get(self.plan.task.name, allow_dotted=True)

    @property
    def adapter_method(self) -> AdapterMethod:
        """The plan's adapter method."""
        return ADAPTERS.get(self.plan.adapter.method, allow_dotted=True)

    def read(self, source: SourceSpec, *, labelled: bool = True) -> ExampleSet:
        """Rows of a source through the plan's data contract."""
        spec, predict = self.plan.task, not labelled
        return read_examples(
            source,
            self.plan.data,
            self.task.required_roles(spec, predict=predict),
            fault=lambda example: self.task.fault(example, spec, predict=predict),
            predict=predict,
            units=False,
            allow_dotted=True,
        )

    def examples(self, source: SourceSpec, *, labelled: bool = True) -> list[Example]:
        """The usable rows of a source."""
        return list(self.read(source, labelled=labelled).examples)

    def model_config(self, path: str | None = None) -> BaseModelConfig:
        """The run's base model, or the same one where it lies now; other weights are refused."""
        place = {} if path is None else {"path": path}
        return self.config.model.model_copy(update={"digest": self.plan.base.digest, **place})


def merge_run(
    run: Path,
    output: Path | None = None,
    model: str | None = None,
    tolerance: float | None = None,
    rows: str | None = None,
) -> MergeReport:
    """`wardround merge`: write the merged model and print how well it kept the adapter.

    Args:
        run: Folder of a finished run.
        output: Folder to make; `merged` in the run's own without it.
        model: The base model, where it lies elsewhere now.
        tolerance: On the relative difference of logits; by the base's dtype without it.
        rows: What both models are asked, where the run's own rows lie elsewhere now.

    Raises:
        ConfigError: The tolerance is none, or the run is not there.
        DataError: There is no row to ask.
        ModelError: The logits differ by more than the tolerance, or merging changed nothing, or the base is
            not the one that the adapter was trained on; nothing is left.
    """
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance >= 0):
        raise ConfigError(f"--tolerance is {tolerance}", expected="a number, at least 0")
    finished = FinishedRun.open(run)
    asked = _rows_to_ask(finished, rows)
    base = finished.model_config(model)
    processor = read_processor(finished.task.processor, base.path, base.revision, remedy="correct --model")
    # Each sample alone: the two models are asked in the plain way, without the mask of packed rows.
    alone = finished.plan.data.model_copy(update={"packing": False})
    samples = finished.task.encode(asked[:MERGE_SAMPLES], processor, alone, finished.plan.task)
    report = merge_adapter(
        run / "adapter",
        base,
        finished.adapter_method,
        finished.task,
        finished.plan.data,
        output or run / "merged",
        samples=samples,
        tolerance=tolerance,
    )
    if not report.passed:
        raise ModelError(
            "the merged model is not the adapter on its base; nothing was written",
            found=report.reason,
            expected=f"logits within {report.tolerance:.3g}, relative to the largest",
        )
    for line in parity_lines(report):
        Console().print(line)
    return report


def _rows_to_ask(finished: FinishedRun, rows: str | None) -> list[Example]:
    """Rows of the run, or those that a person names instead."""
    if rows is not None:
        return _usable(finished, named_source(rows), labelled=False)
    data = finished.config.data
    source = data.test or data.source or next(iter(data.sites.values()))
    try:
        return finished.examples(source)
    except DataError as error:
        raise DataError(
            f"the run's own rows cannot be read: {error.what}", found=error.found, expected=error.expected,
            remedy="name rows of the same columns with --rows: both models are asked about them",
        ) from error  # fmt: skip


def parity_lines(report: MergeReport) -> list[str]:
    """What a merge did, for people."""
    lines = [
        f"merged into {report.base}: {report.folder}",
        (
            f"parity on {report.samples} samples, re-read from disk: logits differ by at most "
            f"{report.parity.largest:.2e}, {report.parity.relative:.2e} of the largest "
            f"(tolerance {report.tolerance:.0e})"
        ),
    ]
    if report.quantisation != "none":
        lines.insert(
            1,
            f"the adapter was trained on this base quantised to {report.quantisation}; merged was the "
            "unquantised checkpoint, since a quantised one would round the adapter away",
        )
    if (quantised := report.against_quantised) is not None:
        lines.append(
            "merged against the adapter on the quantised base that it was trained on: logits differ by at "
            f"most {quantised.largest:.2e}, {quantised.relative:.2e} of the largest"
        )
    return lines


@dataclass(frozen=True)
class OpenModel:
    """A model to evaluate or ask: the run's released adapter on its base, or a merged model."""

    run: FinishedRun
    model: torch.nn.Module
    tokenizer: Any
    device: torch.device


def open_model(folder: Path, run: Path | None = None, base: str | None = None) -> OpenModel:
    """Open a run's folder, its adapter folder, or a merged model.

    Args:
        folder: What to open.
        run: The run that it belongs to, where it lies outside.
        base: The base model of an adapter, where it lies elsewhere now; other weights are refused.

    Raises:
        ConfigError: The folder is none of these, or the run that it belongs to cannot be found.
        ModelError: The weights cannot be loaded, are not finite, or the base is not the plan's.
    """
    finished = _finished(folder, run)
    task, data = finished.task, finished.plan.data
    device = pick_device(finished.config.machine.device)
    adapter = folder / "adapter" if (folder / "plan.json").exists() else folder
    if (adapter / "adapter_config.json").exists():
        finished.adapter_method.changed_weights(adapter)  # whole and finite, before the base is loaded
        place = finished.model_config(base)
        if base is not None and not base.strip():
            raise ModelError("no model is named", found="an empty path", remedy="correct --model")
        loaded = load_base(place, task, data, device=device)
        return OpenModel(finished, with_adapter(loaded.model, adapter), loaded.tokenizer, device)
    if (adapter / "config.json").exists():
        if base is not None:
            raise ConfigError(
                f"{adapter} is a merged model and needs no base", found="--model", remedy="leave --model out"
            )
        merged = load_base(BaseModelConfig(path=str(adapter)), task, data, device=device)
        if merged.missing_heads:
            raise ModelError(
                f"{adapter} is not a merged model", found=f"no weights of {', '.join(merged.missing_heads)}",
                expected="a folder that `wardround merge` wrote", remedy="give the run, or merge it first",
            )  # fmt: skip
        return OpenModel(finished, merged.model.train(False), merged.tokenizer, device)
    raise ModelError(
        f"{adapter} holds neither an adapter nor a merged model",
        expected="adapter_config.json or config.json",
    )


def evaluate_rows(opened: OpenModel, source: SourceSpec) -> Scores:
    """Score an open model on the rows of a source."""
    return _scored(opened, opened.run.examples(source))


def predict_rows(opened: OpenModel, source: SourceSpec) -> list[dict[str, Any]]:
    """Answer the rows of a source; labels are not needed."""
    return _answered(opened, opened.run.examples(source, labelled=False))


def _scored(opened: OpenModel, examples: list[Example]) -> Scores:
    plan, task = opened.run.plan, opened.run.task
    encoded = task.encode(examples, opened.tokenizer, plan.data, plan.task)
    counters = evaluate(
        opened.model,
        task,
        plan.task,
        plan.data,
        encoded,
        batch_size=opened.run.config.machine.evaluation_batch_size,
        device=opened.device,
        tokenizer=opened.tokenizer,
    )
    return scores(plan, counters)


def _answered(opened: OpenModel, examples: list[Example]) -> list[dict[str, Any]]:
    plan, task = opened.run.plan, opened.run.task
    return task.predict(
        opened.model,
        opened.tokenizer,
        examples,
        plan.data,
        plan.task,
        batch_size=opened.run.config.machine.evaluation_batch_size,
        device=opened.device,
    )


def evaluate_file(
    model: Path, source: str, run: Path | None, *, as_json: bool, base: str | None = None
) -> Scores:
    """`wardround evaluate`: print the scores. `base` as in `open_model`.

    Raises:
        DataError: No usable row.
        ConfigError, ModelError: As `open_model`.
    """
    examples = _usable(_finished(model, run), named_source(source), labelled=True)
    opened = open_model(model, run, base)
    found = _scored(opened, examples)
    console = Console()
    if as_json:
        console.print_json(data=scores_record(found))
        return found
    table = Table(title=str(model), title_justify="left")
    for column in ("metric", "value", "support"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for metric, value in found.values.items():
        unit = support_unit(opened.run.plan.task.metrics, metric)
        table.add_row(metric, f"{value:.4f}", f"{found.support.get(metric, 0):,} {unit}".rstrip())
    console.print(table)
    return found


def predict_file(
    model: Path, source: str, output: Path | None, run: Path | None, base: str | None = None
) -> None:
    """`wardround predict`: one JSON line a row, to a file or to the terminal. `base` as in `open_model`.

    Raises:
        DataError: No usable row.
        ConfigError: The output is there already, or as `open_model`.
        ModelError: As `open_model`.
    """
    if output is not None and output.exists():
        raise ConfigError(
            f"{output} is there already", expected="a new file", remedy="choose another --output"
        )
    examples = _usable(_finished(model, run), named_source(source), labelled=False)
    answers = _answered(open_model(model, run, base), examples)
    lines = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
    if output is None:
        Console().out(lines, end="", highlight=False)
    else:
        write_atomic(output, lines.encode())


def _usable(run: FinishedRun, source: SourceSpec, *, labelled: bool) -> list[Example]:
    """The rows to score or answer; what is left out is told on the error stream, never silent."""
    found = run.read(source, labelled=labelled)
    left_out = ", ".join(f"{count} × {reason}" for reason, count in found.quarantine_counts().items())
    if not found.examples:
        raise DataError(
            f"{source.path} has no usable row", found=left_out or "no row",
            remedy="run `wardround data check` on it",
        )  # fmt: skip
    if left_out:
        sys.stderr.write(
            f"wardround: {len(found.quarantined)} of {found.rows_read} rows left out ({left_out})\n"
        )
    return list(found.examples)


def _finished(folder: Path, run: Path | None) -> FinishedRun:
    if not folder.is_dir():
        raise ConfigError(
            f"there is no folder {folder}", expected="a run, an adapter folder or a merged model"
        )
    return FinishedRun.open(run or _run_of(folder))


def _run_of(folder: Path) -> Path:
    """The run that a folder is, or lies in."""
    for candidate in (folder, folder.parent):
        if (candidate / "plan.json").exists():
            return candidate
    raise ConfigError(
        f"the run that {folder} belongs to is not beside it",
        remedy="name it: --run RUN (its plan maps the rows and its configuration names the base model)",
    )
