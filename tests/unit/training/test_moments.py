"""An optimiser's moments through a fold over products: whose they are, and which are left as they were."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wardround.core.packed import Adapter, Array, Layout, Packed, TensorSpec, pack
from wardround.core.plan import LocalWork
from wardround.training.moments import turned
from wardround.training.optimisers import OptimiserState, build_optimiser, export_state, import_state

BETAS = (0.9, 0.999)


def layout_of(rank: int) -> Layout:
    """One module, and a head."""
    return Layout(
        tensors=(
            TensorSpec(name="head", shape=(2,)),
            TensorSpec(name="m.A", shape=(rank, 7), role="lora_a", module="m", scaling=2.0),
            TensorSpec(name="m.B", shape=(5, rank), role="lora_b", module="m", scaling=2.0),
        )
    )


def adapter_of(b: Array, a: Array) -> Adapter:
    """With a head of ones."""
    tensors = {"head": np.ones(2), "m.A": a, "m.B": b}
    return pack(layout_of(a.shape[0]), tensors, np.float32)


def trained(adapter: Adapter, work: LocalWork, weight: torch.Tensor, steps: int) -> OptimiserState:
    """State after so many steps along ⟨W, s B A⟩, whose derivative by the weight is s W wherever one is."""
    parameters = {
        spec.name: torch.nn.Parameter(torch.from_numpy(adapter[spec.name].copy()))
        for spec in adapter.layout.tensors
    }
    optimiser = build_optimiser(work, parameters)
    for group in optimiser.param_groups:
        group["lr"] = 0.0  # the derivative stays where it is
    for _ in range(steps):
        optimiser.zero_grad()
        loss = 2.0 * (weight * (parameters["m.B"] @ parameters["m.A"])).sum() + parameters["head"].sum()
        loss.backward()
        optimiser.step()
    return export_state(optimiser, parameters)


@pytest.mark.parametrize(("optimiser", "more"), [("adamw", {}), ("adam", {}), ("sgd", {"momentum": 0.9})])
def test_the_state_is_the_one_of_training_in_the_new_factors(optimiser: str, more: dict[str, float]) -> None:
    """In another gauge of one product, and the head's is untouched; so are step counts."""
    draw = np.random.default_rng(3)
    b, a = draw.standard_normal((5, 3)), draw.standard_normal((3, 7))
    gauge = draw.standard_normal((3, 3))
    old, new = adapter_of(b, a), adapter_of(b @ gauge, np.linalg.solve(gauge, a))
    work = LocalWork(steps=4, optimiser=optimiser, weight_decay=0.0, **more)
    weight = torch.from_numpy(draw.standard_normal((5, 7)).astype(np.float32))
    found = turned(trained(old, work, weight, 4), old, new, BETAS)
    expected = trained(new, work, weight, 4)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=2e-3, atol=1e-4, err_msg=name)
        assert found[name].dtype == array.dtype, name
    fits = {spec.name: torch.nn.Parameter(torch.zeros(spec.shape)) for spec in new.layout.tensors}
    import_state(build_optimiser(work, fits), fits, found)


def test_directions_that_stood_frozen_have_no_moments() -> None:
    """Of an adapter whose first direction trained, the state is that of the first one."""
    draw = np.random.default_rng(4)
    b, a = draw.standard_normal((5, 3)), draw.standard_normal((3, 7))
    whole, own = adapter_of(b, a), adapter_of(b[:, :1], a[:1])
    state = trained(own, LocalWork(steps=2, optimiser="adamw"), torch.ones(5, 7), 2)
    found = turned(state, whole, own, BETAS)
    for name, array in state.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_factor_of_which_nothing_is_known_starts_afresh() -> None:
    """The other one goes on: here A turned to new rows, and B did not."""
    draw = np.random.default_rng(5)
    b = draw.standard_normal((5, 2))
    old, new = adapter_of(b, np.eye(7)[:2]), adapter_of(b, np.eye(7)[2:4])
    state = trained(old, LocalWork(steps=2, optimiser="adamw"), torch.ones(5, 7), 2)
    found = turned(state, old, new, BETAS)
    assert {name.partition("//")[0] for name in found} == {"head", "m.A"}
    assert {name.partition("//")[0] for name in state} == {"head", "m.A", "m.B"}, "the old one is left alone"


def test_a_frozen_factor_has_nothing_to_turn() -> None:
    """As A in tangent aggregation's first round; and a state of nothing stays one."""
    draw = np.random.default_rng(6)
    b, a = draw.standard_normal((5, 2)), draw.standard_normal((2, 7))
    old, new = adapter_of(b, a), adapter_of(b[:, ::-1].copy(), a[::-1].copy())
    state = trained(old, LocalWork(steps=2, optimiser="adamw"), torch.ones(5, 7), 2)
    of_b = {name: array for name, array in state.items() if name.startswith("m.B")}
    found = turned(of_b, old, new, BETAS)
    assert found.keys() == of_b.keys()
    np.testing.assert_allclose(found["m.B//exp_avg"], of_b["m.B//exp_avg"][:, ::-1], rtol=1e-5)
    assert turned({}, old, new, BETAS) == {}
    assert isinstance(old, Packed)
