"""Whole runs of cores between frozen factors (Fed-SB): what federates, what is saved, and with privacy."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from wardround.core.errors import ConfigError, ModelError
from wardround.core.plan import TrainingPlan
from wardround.runtime.sinks import RecorderSink
from wardround.simulations.config import RunConfig
from wardround.simulations.simulate import SimulationResult, run_simulation
from wardround.training.plan_check import option_faults

SB: dict[str, Any] = {
    "method": "lora_sb",
    "options": {"r": 2, "alpha": 4, "start": "random", "targets": ["query"]},
}
PATIENT: dict[str, Any] = {"unit": "patient", "sigma": 2.0, "delta": 1e-2, "epsilon": None}
ONE_STEP = {"steps": 1, "batch_size": 8, "optimiser": "sgd", "learning_rate": 0.5}


def run(config: RunConfig) -> SimulationResult:
    """Without anything printed."""
    return run_simulation(config, sinks=(RecorderSink(),))


@pytest.mark.parametrize("start", ["random", "svd"])
def test_a_run_of_cores_moves_them_and_saves_plain_lora(
    start: str, notes: Callable[..., Callable[..., RunConfig]]
) -> None:
    """Cores and the head travel, and nothing of the frozen factors; what is saved is a whole LoRA adapter."""
    options = SB["options"] | {"start": start}
    result = run(notes(48, 3, 2)("run", adapter={"method": "lora_sb", "options": options}))
    plan = result.plan
    assert {
        spec.name.rpartition(".lora_")[2] for spec in plan.adapter.layout.tensors if ".lora_" in spec.name
    } == {"R.weight"}
    assert len(plan.adapter.options["fingerprint"]) == 8
    assert option_faults(TrainingPlan.parse(plan.canonical())) == ()
    last = result.federated.outcome.last.adapter
    cores = {name: t for name, t in last.tensors().items() if ".lora_R." in name}
    assert cores
    assert all(core.shape == (2, 2) and core.any() for core in cores.values())
    saved = load_file(result.folder / "adapter_last" / "adapter_model.safetensors")
    for name, core in cores.items():
        module = name.partition(".lora_R.")[0]
        b, a = saved[f"{module}.lora_B.weight"], saved[f"{module}.lora_A.weight"]
        assert np.allclose(a @ a.T, np.eye(2), atol=1e-6)
        assert np.allclose(np.linalg.norm(b @ a), np.linalg.norm(core), rtol=1e-5)
    config = json.loads((result.folder / "adapter_last" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 4)


def test_a_run_goes_on_from_what_another_saved(notes: Callable[..., Callable[..., RunConfig]]) -> None:
    """From the same cores; an adapter of another seed's factors is refused before anything trains."""
    make = notes(48, 3, 1)
    first = run(make("first", adapter=SB))
    saved = str(first.folder / "adapter_last")
    second = run(make("second", adapter={**SB, "start_from": saved}))
    start, end = second.federated.outcome.last.adapter, first.federated.outcome.last.adapter
    assert second.plan.adapter.initial_digest != first.plan.adapter.initial_digest
    assert np.linalg.norm(start.vector - end.vector) < np.linalg.norm(end.vector)
    config = make("third", adapter={**SB, "start_from": saved}).model_copy(update={"seed": 5})
    with pytest.raises(ModelError, match="none of this method"):
        run(config)


@pytest.mark.parametrize(
    ("privacy", "local"),
    [
        (PATIENT, {}),
        (PATIENT | {"noise": "distributed", "sample_rate": 0.5}, ONE_STEP),
    ],
    ids=["local noise", "distributed noise"],
)
def test_patients_are_protected_with_cores(
    privacy: dict[str, Any], local: dict[str, Any], notes: Callable[..., Callable[..., RunConfig]]
) -> None:
    """The private engine has a rule for every core, and every core moves."""
    make = notes(120, 3, 2, unit_column="patient", labels=["0", "1"])
    secure = {"mode": "accounted", "policy": {"least_cohort": 3, "least_honest": 2, "modes": ["accounted"]}}
    result = run(
        make(
            "private",
            adapter=SB,
            privacy=privacy,
            strategy={"weighting": "uniform"},
            local={"max_grad_norm": None, **local},
            secure=secure,
        )
    )
    last = result.federated.outcome.last.adapter
    cores = [t for name, t in last.tensors().items() if ".lora_R." in name]
    assert cores
    assert all(core.any() for core in cores)


def test_an_option_that_lora_alone_has_not_is_refused_under_it(
    notes: Callable[..., Callable[..., RunConfig]],
) -> None:
    """`start` is no option of plain LoRA."""
    with pytest.raises(ConfigError, match="start"):
        run(notes(48, 3, 1)("wrong", adapter={"method": "lora", "options": {"start": "svd"}}))
