"""The plan and its initial adapter."""

from __future__ import annotations

from pathlib import Path

import numpy as np

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
from wardround.training.planning import make_plan
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
