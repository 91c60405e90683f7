"""Commands on a finished run: merge, evaluate, predict. Each is a function that a program may call."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from wardround.core.counting import scores
from wardround.core.errors import ConfigError, ModelError
from wardround.core.metrics.contract import Scores
from wardround.core.plan import TrainingPlan
from wardround.runtime.files import write_atomic
from wardround.simulations.config import RunConfig
from wardround.simulations.result_folder import scores_record
from wardround.training.base_model import BaseModelConfig, load_base, resolve
from wardround.training.evaluation import evaluate
from wardround.training.examples import Example, read_examples
from wardround.training.merge import MergeReport, merge_adapter
from wardround.training.source_spec import SourceSpec
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
        except OSError as error:
            raise ConfigError(
                f"{folder} is not the folder of a run", expected="plan.json and config.json"
            ) from error
        return FinishedRun(folder, plan, config)

    @property
    def task(self) -> Task:
        """The plan's task."""
        return TASKS.get(self.plan.task.name, allow_dotted=True)

    def examples(self, source: SourceSpec, *, labelled: bool = True) -> list[Example]:
        """Rows of a source through the plan's data contract."""
        spec, predict = self.plan.task, not labelled
        found = read_examples(
            source,
            self.plan.data,
            self.task.required_roles(spec, predict=predict),
            fault=lambda example: self.task.fault(example, spec, predict=predict),
            predict=predict,
            units=False,
        )
        return list(found.examples)

    def model_config(self, path: str | None) -> BaseModelConfig:
        """The run's base model, or the same one where it lies now."""
        return self.config.model if path is None else self.config.model.model_copy(update={"path": path})


def merge_run(run: Path, output: Path | None, model: str | None, tolerance: float | None) -> MergeReport:
    """`wardround merge`: write the merged model and print how well it kept the adapter.

    Raises:
        ModelError: The logits differ by more than the tolerance, or merging changed nothing; nothing is left.
    """
    finished = FinishedRun.open(run)
    data = finished.config.data
    source = data.test or data.source or next(iter(data.sites.values()))
    base = finished.model_config(model)
    tokenizer = AutoTokenizer.from_pretrained(
        resolve(base)[0], revision=base.revision, trust_remote_code=False
    )
    samples = finished.task.encode(
        finished.examples(source)[:MERGE_SAMPLES], tokenizer, finished.plan.data, finished.plan.task
    )
    report = merge_adapter(
        run / "adapter",
        base,
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
    if report.against_quantised is not None:
        lines.append(
            "against the adapter on the quantised base that it was trained on: "
            f"{report.against_quantised.relative:.2e}"
        )
    return lines


@dataclass(frozen=True)
class OpenModel:
    """A model to evaluate or ask: the run's released adapter on its base, or a merged model."""

    run: FinishedRun
    model: torch.nn.Module
    tokenizer: Any
    device: torch.device


def open_model(folder: Path, run: Path | None = None) -> OpenModel:
    """Open a run's folder, its adapter folder, or a merged model.

    Raises:
        ConfigError: The folder is none of these, or the run that it belongs to cannot be found.
        ModelError: The weights cannot be loaded.
    """
    from peft import PeftModel

    if not folder.is_dir():
        raise ConfigError(f"{folder} does not exist", expected="a run, an adapter folder or a merged model")
    finished = FinishedRun.open(run or _run_of(folder))
    task, data = finished.task, finished.plan.data
    device = pick_device(finished.config.machine.device)
    adapter = folder / "adapter" if (folder / "plan.json").exists() else folder
    if (adapter / "adapter_config.json").exists():
        base = load_base(finished.config.model, task, data, device=device)
        model: torch.nn.Module = PeftModel.from_pretrained(base.model, str(adapter))
        return OpenModel(finished, model.train(False), base.tokenizer, device)
    if (adapter / "config.json").exists():
        merged = load_base(BaseModelConfig(path=str(adapter)), task, data, device=device)
        return OpenModel(finished, merged.model.train(False), merged.tokenizer, device)
    raise ModelError(
        f"{adapter} holds neither an adapter nor a merged model",
        expected="adapter_config.json or config.json",
    )


def evaluate_rows(opened: OpenModel, source: SourceSpec) -> Scores:
    """Score an open model on the rows of a source."""
    plan, task = opened.run.plan, opened.run.task
    encoded = task.encode(opened.run.examples(source), opened.tokenizer, plan.data, plan.task)
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


def predict_rows(opened: OpenModel, source: SourceSpec) -> list[dict[str, Any]]:
    """Answer the rows of a source; labels are not needed."""
    plan, task = opened.run.plan, opened.run.task
    return task.predict(
        opened.model,
        opened.tokenizer,
        opened.run.examples(source, labelled=False),
        plan.data,
        plan.task,
        batch_size=opened.run.config.machine.evaluation_batch_size,
        device=opened.device,
    )


def evaluate_file(model: Path, source: str, run: Path | None, *, as_json: bool) -> Scores:
    """`wardround evaluate`: print the scores."""
    found = evaluate_rows(open_model(model, run), SourceSpec(path=source))
    console = Console()
    if as_json:
        console.print_json(data=scores_record(found))
        return found
    table = Table(title=str(model), title_justify="left")
    for column in ("metric", "value", "support"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for metric, value in found.values.items():
        table.add_row(metric, f"{value:.4f}", str(found.support.get(metric, "")))
    console.print(table)
    return found


def predict_file(model: Path, source: str, output: Path | None, run: Path | None) -> None:
    """`wardround predict`: one JSON line a row, to a file or to the terminal."""
    answers = predict_rows(open_model(model, run), SourceSpec(path=source))
    lines = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
    if output is None:
        Console().out(lines, end="", highlight=False)
    else:
        write_atomic(output, lines.encode())


def _run_of(folder: Path) -> Path:
    """The run that a folder is, or lies in."""
    for candidate in (folder, folder.parent):
        if (candidate / "plan.json").exists():
            return candidate
    raise ConfigError(
        f"the run that {folder} belongs to is not beside it",
        remedy="name it: --run RUN (its plan maps the rows and its configuration names the base model)",
    )
