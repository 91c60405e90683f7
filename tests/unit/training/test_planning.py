"""The plan and its initial adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wardround.core.errors import ConfigError, ModelError
from wardround.core.packed import Adapter
from wardround.core.plan import (
    DataContract,
    Encoding,
    LocalWork,
    ReleaseRule,
    RoundRules,
    StrategySpec,
    TaskSpec,
    TrainingPlan,
)
from wardround.training.adapters.lora import ADAPTER, LoraOptions
from wardround.training.base_model import BaseModelConfig
from wardround.training.planning import base_spec, check_choices, make_plan
from wardround.training.tasks.sequence_classification import TASK
from wardround.training.workbench import Machine, Workbench, open_workbench


def opened(folder: Path, seed: int = 5) -> Workbench:
    """A bench over an encoder that lacks its head."""
    data = DataContract(columns={}, labels=("a", "b"))
    return open_workbench(
        BaseModelConfig(path=str(folder)), TASK, data, ADAPTER, LoraOptions(r=2), Machine(device="cpu"),
        seed=seed,
    )  # fmt: skip


def planned(
    bench: Workbench, start_from: Path | None = None, method: str = "lora"
) -> tuple[TrainingPlan, Adapter]:
    """A plan over the bench."""
    return make_plan(
        bench, name="p", seed=5, task=TaskSpec(name=TASK.name, metrics=TASK.metric_family), data=bench.data,
        adapter_options={}, start_from=start_from, local=LocalWork(steps=1), strategy=StrategySpec(),
        encoding=Encoding(), rounds=RoundRules(rounds=1), release=ReleaseRule(), adapter_method=method,
    )  # fmt: skip


def test_a_run_may_start_from_an_adapter_of_a_method_given_by_its_path(
    tiny_bert: Path, tmp_path: Path
) -> None:
    """The method on the bench reads it: its name is not looked up a second time, where no path is taken."""
    bench = opened(tiny_bert)
    trained = bench.fresh.with_vector(np.full(bench.layout.size, 0.5, np.float32))
    bench.load_adapter(trained)
    ADAPTER.save(bench.model, tmp_path / "adapter", "base")
    plan, initial = planned(bench, tmp_path / "adapter", "mine:ADAPTER")
    assert initial.digest == plan.adapter.initial_digest == trained.digest


def test_what_was_trained_before_does_not_change_the_initial_adapter(tiny_bert: Path) -> None:
    """Factors and head come from the seed alone, the head included, which the checkpoint lacks."""
    bench = opened(tiny_bert)
    digest = planned(bench)[1].digest
    bench.load_adapter(bench.fresh.with_vector(np.ones(bench.layout.size, np.float32)))
    assert planned(bench)[1].digest == planned(opened(tiny_bert))[1].digest == digest
    assert planned(opened(tiny_bert, seed=6))[1].digest != digest
    assert any(".classifier." in spec.name for spec in bench.layout.tensors)


def choices(**changed: Any) -> None:
    """Check a plan's choices, sound but for what is changed."""
    known: dict[str, Any] = {
        "task": TaskSpec(name="causal_lm", options={"generate": 0}, metrics="language"),
        "validation_fraction": 0.1,
        "local": LocalWork(steps=1),
        "strategy": StrategySpec(),
        "release": ReleaseRule(),
    }
    check_choices(**(known | changed))


def test_sound_choices_pass() -> None:
    """The defaults, a metric that the options have computed, settings that the optimiser reads."""
    choices()
    answered = TaskSpec(name="causal_lm", options={"generate": 4}, metrics="language")
    choices(task=answered, release=ReleaseRule(metric="rouge_l", direction="max", patience=2))
    choices(local=LocalWork(steps=1, optimiser="sgd", momentum=0.9))
    choices(local=LocalWork(steps=1, optimiser="adam", betas=(0.8, 0.9), epsilon=1e-6))


@pytest.mark.parametrize("metric", ["rouge_l", "exact_match"])
def test_a_release_metric_that_is_never_computed_is_refused(metric: str) -> None:
    """With `generate` 0 nothing would ever be scored: the message names the option."""
    with pytest.raises(ConfigError, match="never computed") as caught:
        choices(release=ReleaseRule(metric=metric, direction="max", patience=2))
    assert "task.options.generate" in str(caught.value.remedy)
    assert "bits_per_byte" in str(caught.value.expected)
    assert metric not in str(caught.value.expected)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"release": ReleaseRule(metric="bit_per_byte")}, "did you mean 'bits_per_byte'"),
        ({"release": ReleaseRule(metric="loss", direction="max")}, "worst round by loss"),
        ({"release": ReleaseRule(patience=1), "validation_fraction": 0.0}, "validation part"),
        ({"strategy": StrategySpec(name="fedavgg")}, "did you mean 'fedavg"),
        ({"strategy": StrategySpec(options={"lr": 1})}, "options of strategy 'fedavg'"),
        ({"local": LocalWork(steps=1, momentum=0.9)}, r"local\.momentum has no effect"),
        ({"local": LocalWork(steps=1, optimiser="adam", momentum=0.9)}, "optimiser to sgd"),
        ({"local": LocalWork(steps=1, optimiser="sgd", betas=(0.8, 0.9))}, r"local\.betas has no effect"),
        ({"local": LocalWork(steps=1, optimiser="sgd", epsilon=1e-6)}, "optimiser to adamw or adam"),
    ],
)
def test_a_choice_that_cannot_stand_is_refused_without_a_model(changed: dict[str, Any], message: str) -> None:
    """Unknown, meaningless, or without effect: each is named, and nothing was read or loaded."""
    with pytest.raises(ConfigError, match=message):
        choices(**changed)


def test_a_start_from_an_adapter_of_another_base_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    """The base stands beside the weights, where PEFT does not look; without that note an adapter passes."""
    bench = opened(tiny_bert)
    other = base_spec(bench.base).model_copy(update={"digest": "0" * 64, "name": "another"})
    ADAPTER.save(bench.model, tmp_path / "other", "base", other)
    with pytest.raises(ModelError, match="trained on another base") as caught:
        planned(bench, tmp_path / "other")
    assert "another, 000000000000" in str(caught.value.found)
    assert bench.base.digest[:12] in str(caught.value.expected)
    # The same checkpoint in another precision has another digest as well.
    half = other.model_copy(update={"dtype": "bfloat16"})
    for name, base in (("own", base_spec(bench.base)), ("half", half), ("plain", None)):
        ADAPTER.save(bench.model, tmp_path / name, "base", base)
        assert planned(bench, tmp_path / name)[1].digest == bench.fresh.digest
