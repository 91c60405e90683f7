"""The plan and its initial adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wardround.core.errors import ConfigError, ModelError
from wardround.core.packed import Adapter, Layout, TensorSpec
from wardround.core.plan import (
    DataContract,
    Encoding,
    LocalWork,
    ReleaseRule,
    RoundRules,
    Schedule,
    SecureRules,
    StrategySpec,
    TaskSpec,
    TrainingPlan,
)
from wardround.core.seeds import Purpose, generator
from wardround.strategies import STRATEGIES
from wardround.training.adapters.lora import ADAPTER, LoraOptions
from wardround.training.base_model import BaseModelConfig
from wardround.training.batches import plan_batches
from wardround.training.plan_strategy import check_noise_of_sums
from wardround.training.planning import SLACK, base_spec, bounds_of, check_choices, make_plan
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
        encoding=Encoding(largest=0.1, most_weight=100), rounds=RoundRules(rounds=1), release=ReleaseRule(),
        adapter_method=method,
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
        ({"local": LocalWork(steps=1, optimiser="sgd", epsilon=1e-6)}, "optimiser to adamw, adam or dp_adam"),
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


def test_how_contributions_are_summed_stands_in_the_plan_as_it_was_given(tiny_bert: Path) -> None:
    """The encoding as it is, the rules of the sums as they are; none given: secure."""
    plan = planned(opened(tiny_bert))[0]
    assert plan.encoding == Encoding(largest=0.1, most_weight=100)
    assert plan.secure == SecureRules(mode="real")


def largest(weighting: str = "examples", rows: int = 40, **work: Any) -> float:
    """The bound of one coordinate that follows from the local work."""
    return float(bounds_of(LocalWork(**work), weighting, rows, 32)["largest"])


@pytest.mark.parametrize("optimiser", ["adam", "adamw"])
def test_adam_moves_no_coordinate_by_more_than_its_rate_a_step(optimiser: Any) -> None:
    """Rate times steps, with a little slack, whatever the gradient's norm may be."""
    work = {"optimiser": optimiser, "steps": 7, "learning_rate": 0.01}
    assert largest(**work) == pytest.approx(SLACK * 0.07)
    assert largest(**work, max_grad_norm=None) == largest(**work, max_grad_norm=9.0) == largest(**work)
    assert largest(**work, schedule=Schedule(shape="cosine", warmup=0.5)) == largest(**work)
    assert 1 < SLACK < 1.2


@pytest.mark.parametrize(("momentum", "factor"), [(0.0, 1), (0.5, 2), (0.9, 10)])
def test_sgd_moves_none_by_more_than_rate_times_norm_a_step(momentum: float, factor: int) -> None:
    """Momentum adds up its past: the geometric series at most."""
    work = {"optimiser": "sgd", "steps": 7, "learning_rate": 0.01, "momentum": momentum}
    assert largest(**work, max_grad_norm=0.5) == pytest.approx(SLACK * 0.07 * 0.5 * factor)
    assert largest(**work, max_grad_norm=1.0) == pytest.approx(2 * largest(**work, max_grad_norm=0.5))


@pytest.mark.parametrize("weighting", ["examples", "targets", "uniform"])
def test_sgd_without_a_norm_bounds_nothing_and_is_refused(weighting: str) -> None:
    """The remedy names both ways out."""
    work = LocalWork(optimiser="sgd", steps=1, max_grad_norm=None)
    with pytest.raises(ConfigError, match="nothing bounds a contribution") as caught:
        bounds_of(work, weighting, 40, 32)
    assert caught.value.remedy == "set local.max_grad_norm, or encoding.largest"


@pytest.mark.parametrize("batch_size", [1, 7, 16, 500])
@pytest.mark.parametrize("amount", [{"epochs": e} for e in (0.3, 1, 1.5, 2.9, 4)] + [{"steps": 5}], ids=str)
def test_the_bound_holds_for_the_steps_that_a_site_takes(amount: dict[str, Any], batch_size: int) -> None:
    """By epochs as by steps, at the largest site and at every smaller one; no more than a pass too wide."""
    work = LocalWork(**amount, batch_size=batch_size, learning_rate=1.0)
    for rows in (1, 2, 6, 7, 8, 33, 40):
        steps = len(plan_batches(rows, work, generator(0, Purpose.SHUFFLE)))
        bound = bounds_of(work, "examples", rows, 32)["largest"] / SLACK
        assert steps <= round(bound, 9) <= steps + -(-rows // min(batch_size, rows))
        assert bound <= bounds_of(work, "examples", 40, 32)["largest"] / SLACK


@pytest.mark.parametrize(
    ("amount", "weighting", "most"),
    [
        ({"steps": 5}, "uniform", 1),
        ({"epochs": 3}, "uniform", 1),
        ({"steps": 5}, "examples", 40),
        ({"epochs": 0.5}, "examples", 40),
        ({"steps": 5}, "targets", 5 * 8 * 32),
        ({"epochs": 1}, "targets", 40 * 32),
        ({"epochs": 2.5}, "targets", 100 * 32),
        ({"epochs": 0.5}, "targets", 20 * 32),
        ({"epochs": 0.001}, "targets", 32),
    ],
)
def test_no_site_weighs_more_than_its_weighting_allows(
    amount: dict[str, Any], weighting: str, most: int
) -> None:
    """One; the rows of the largest site; every token of every row that it processes in a round."""
    assert bounds_of(LocalWork(**amount, batch_size=8), weighting, 40, 32)["most_weight"] == most


@pytest.mark.parametrize(
    "amount", [{"epochs": e} for e in (0.001, 0.02, 0.49, 1, 2.9)] + [{"steps": 3}], ids=str
)
def test_the_tokens_that_a_site_processes_are_within_its_weight(amount: dict[str, Any]) -> None:
    """At the largest site, where every row is as long as it may be, to the row; and at every smaller one."""
    work = LocalWork(**amount, batch_size=8)
    for rows in (8, 17, 33, 40):
        batches = plan_batches(rows, work, generator(0, Purpose.SHUFFLE))
        processed = 32 * sum(len(batch) for batch in batches)
        assert processed == bounds_of(work, "targets", rows, 32)["most_weight"]
        assert processed <= bounds_of(work, "targets", 40, 32)["most_weight"]


def test_a_site_without_rows_still_has_bounds() -> None:
    """An encoding has no room for a weight of zero."""
    for weighting in ("examples", "targets", "uniform"):
        Encoding(**bounds_of(LocalWork(epochs=1), weighting, 0, 32))


def test_noise_in_sums_wants_one_sum_a_round() -> None:
    """Groups would each need noise of their own, and a second stage would be a second release."""
    layout = Layout(tensors=(TensorSpec(name="a"),))
    plain, grouped = (STRATEGIES.get(name) for name in ("fedavg", "group_median"))
    check_noise_of_sums(plain(plain.Options(), layout))
    with pytest.raises(ConfigError, match="one sum a round"):
        check_noise_of_sums(grouped(grouped.Options(attackers=1), layout))
