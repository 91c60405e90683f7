"""A model after a run, open to be scored and asked: the released adapter on its base, or a merged model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wardround.core.counting import scores
from wardround.core.errors import ConfigError, ModelError
from wardround.core.metrics.contract import Scores
from wardround.simulations.finished_run import FinishedRun, adapter_in, finished_run
from wardround.training.base_model import load_base
from wardround.training.evaluation import evaluate
from wardround.training.examples import Example
from wardround.training.merge import with_adapter
from wardround.training.settings import BaseModelConfig
from wardround.training.source_spec import SourceSpec
from wardround.training.workbench import pick_device


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
        ConfigError: The folder is none of these, or the run that it belongs to cannot be found, or each of
            its sites has an adapter of its own.
        ModelError: The weights cannot be loaded, are not finite, or the base is not the plan's.
    """
    finished = finished_run(folder, run)
    task, data = finished.task, finished.plan.data
    device = pick_device(finished.config.machine.device)
    adapter = adapter_in(folder)
    if (adapter / "adapter_config.json").exists():
        finished.adapter_method.changed_weights(adapter)  # whole and finite, before the base is loaded
        place = finished.model_config(base)
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
    return scored(opened, opened.run.examples(source))


def predict_rows(opened: OpenModel, source: SourceSpec) -> list[dict[str, Any]]:
    """Answer the rows of a source; labels are not needed."""
    return answered(opened, opened.run.examples(source, labelled=False))


def scored(opened: OpenModel, examples: list[Example]) -> Scores:
    """Score an open model on rows that were read."""
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


def answered(opened: OpenModel, examples: list[Example]) -> list[dict[str, Any]]:
    """Answer rows that were read."""
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
