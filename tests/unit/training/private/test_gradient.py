"""A private gradient is the clipped sum of units, noised once, over a constant."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wardround.training.private import gradient, summing
from wardround.training.private.clipping import Adaptive, Automatic, Flat, split_by_layer
from wardround.training.workbench import Machine

EXACT = 1e-5
UNITS = (4, 2, 4, 1, 4, 2, 0)


def without_targets(row: Any) -> Any:
    """The row, with nothing to learn from."""
    return replace(row, targets=np.full_like(row.targets, -100), label=-1)


def sums_of(rows: torch.Tensor, units: Any) -> torch.Tensor:
    """(units, P), float64."""
    return torch.stack(
        [rows[[i for i, u in enumerate(units) if u == unit]].double().sum(0) for unit in sorted(set(units))]
    )


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("size", [None, 1, 3])
@pytest.mark.parametrize("family", ["llama", "bert", "gpt2"])
def test_a_step_without_clipping_is_the_sum_of_single_examples(
    family: str, size: int | None, opened: Any, toys: Any, rows_of_gradients: Any, stepping: Any
) -> None:
    """One backward pass for each row, on its own mean loss; a row without a target adds nothing."""
    bench = opened(family, machine=Machine(device="cpu", microbatch_size=size))
    rows = toys.rows(len(UNITS))
    blank = [*rows[:3], without_targets(rows[3]), *rows[4:]]
    expected = rows_of_gradients.slow(bench, [*rows[:3], *rows[4:]]).sum(0) / 2.5
    with stepping.open(bench, blank, expected=2.5, **stepping.exact) as steps:
        figures = steps.write(stepping.batch(UNITS))
    assert error(stepping.written(bench), expected) < EXACT
    assert (figures.units, figures.examples, figures.clipped, figures.dropped) == (3, 6, 0, 0)
    assert figures.targets == sum(bench.task.targets(row) for row in blank)


@pytest.mark.parametrize("rule", ["flat", "per layer", "automatic", "adaptive"])
@pytest.mark.parametrize("size", [None, 2])
def test_units_are_clipped_once_by_every_rule(
    rule: str, size: int | None, opened: Any, toys: Any, rows_of_gradients: Any, stepping: Any
) -> None:
    """Against the formulas, on sums of one-by-one gradients."""
    bench = opened("llama", machine=Machine(device="cpu", microbatch_size=size))
    rows = toys.rows(len(UNITS))
    sums = sums_of(rows_of_gradients.slow(bench, rows), UNITS)
    norms = sums.norm(dim=1)
    bound = float(norms.median())
    columns = {name: slice(start, start + spec.size) for name, (start, spec) in bench.layout.offsets.items()}
    flat = (bound / norms).clamp(max=1) @ sums
    layers = split_by_layer(bound, columns)
    layered = torch.zeros_like(flat)
    for group in layers.groups:
        part = torch.cat([sums[:, place] for place in group], dim=1)
        share = (bound / len(layers.groups) ** 0.5 / part.norm(dim=1)).clamp(max=1)
        for place in group:
            layered[place] = share @ sums[:, place]
    clipping, expected = {
        "flat": (Flat(bound), flat),
        "per layer": (layers, layered),
        "automatic": (Automatic(bound, 0.1), (bound / (norms + 0.1)) @ sums),
        "adaptive": (Adaptive(bound, expected=4, count_sigma=1.0), flat),
    }[rule]
    assert len(layers.groups) > 3
    with stepping.open(bench, rows, clipping, noise=False) as steps:
        figures = steps.write(stepping.batch(UNITS))
    assert error(stepping.written(bench), expected) < EXACT
    assert figures.clipped >= (2 if rule == "per layer" else 1)
    assert figures.median_norm == pytest.approx(float(norms.sort().values[1]), rel=1e-4)
    deviation = bound * (clipping.gradient_sigma(1.0) if rule == "adaptive" else 1.0)
    assert figures.signal_to_noise == pytest.approx(
        float(expected.norm()) / (deviation * expected.numel() ** 0.5), rel=1e-3
    )


@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_batch_gives_what_its_rows_give_one_by_one(
    data: st.DataObject, tiny_bert: Path, toys: Any, rows_of_gradients: Any, stepping: Any
) -> None:
    """Numbers and lengths of rows, units, ranks, microbatches; none at all among them."""
    count = data.draw(st.integers(0, 6))
    units = data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    size = data.draw(st.none() | st.integers(1, 7))
    bench = toys.bench(
        tiny_bert, toys.classifier, base_dropout="off", r=data.draw(st.integers(1, 5)),
        targets=("query", "dense"), machine=Machine(device="cpu", microbatch_size=size),
    )  # fmt: skip
    bench = rows_of_gradients.stirred(bench)
    bench.model.base_model.model.dropout.p = 0.0
    rows = toys.rows(count, seed=data.draw(st.integers(0, 99)), longest=data.draw(st.integers(4, 30)))
    expected = rows_of_gradients.slow(bench, rows).sum(0) if rows else torch.zeros(bench.layout.size)
    with stepping.open(bench, rows, expected=3, **stepping.exact) as steps:
        figures = steps.write(stepping.batch(units))
    assert float((stepping.written(bench) - expected / 3).norm()) <= EXACT * (1 + float(expected.norm()))
    assert figures.units == len(set(units))


def test_gradients_lie_in_float32_under_the_adapters_names(
    opened: Any, toys: Any, rows_of_gradients: Any, stepping: Any
) -> None:
    """On the same parameters that PEFT saves, and on none that the strategy froze."""
    bench, rows = opened("llama"), toys.rows(3)
    whole = rows_of_gradients.slow(bench, rows).sum(0)
    parameters = bench.parameters()
    moving = {name: p for name, p in parameters.items() if "lora_A" not in name}
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in moving)
    with stepping.open(bench, rows, parameters=moving, **stepping.exact) as steps:
        steps.write(stepping.batch(range(3)))
    assert all((p.grad is None) == ("lora_A" in name) for name, p in parameters.items())
    for name, parameter in moving.items():
        start, spec = bench.layout.offsets[name]
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        expected = whole[start : start + spec.size].view(spec.shape)
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6)


def test_an_empty_batch_is_noise_alone(opened: Any, toys: Any, stepping: Any) -> None:
    """The model does not run, and the optimiser still has a gradient to step with."""
    bench, rows = opened("bert"), toys.rows(4)
    empty = next(b for seed in range(99) if not (b := stepping.batch(range(4), 0.3, seed)).indices)
    bench.model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with stepping.open(bench, rows, rate=0.3, sigma=2.0, bound=0.5, expected=4.0) as steps:
        figures = steps.write(empty)
    noise = stepping.written(bench)
    assert float(noise.std()) == pytest.approx(2.0 * 0.5 / 4.0, rel=0.1)
    assert (figures.units, figures.loss_sum, figures.median_norm, figures.signal_to_noise) == (0, 0, 0, 0)


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
@pytest.mark.parametrize("size", [None, 1])
def test_a_unit_that_is_not_finite_is_dropped_and_counted(
    bad: float, size: int | None, opened: Any, toys: Any, rows_of_gradients: Any, stepping: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """With all its rows; the others stand, and the loss sum leaves it out."""
    bench = opened("gpt2", machine=Machine(device="cpu", microbatch_size=size))
    rows = toys.rows(len(UNITS))
    kept = [index for index, unit in enumerate(UNITS) if unit != 2]
    expected = rows_of_gradients.slow(bench, [rows[index] for index in kept]).sum(0)
    losses = float(sum(rows_of_gradients.losses(bench, [row]).detach() for row in rows[:1]))
    plain = summing.example_means

    def spoiled(task: Any, model: Any, tensors: Any, counts: torch.Tensor) -> torch.Tensor:
        lengths = tensors["attention_mask"].sum(1)
        return torch.where(lengths == rows[1].length, bad, 1.0) * plain(task, model, tensors, counts)

    assert sum(row.length == rows[1].length for row in rows) == 1
    monkeypatch.setattr(summing, "example_means", spoiled)
    with stepping.open(bench, rows, **stepping.exact) as steps:
        figures = steps.write(stepping.batch(UNITS))
    assert error(stepping.written(bench), expected) < EXACT
    assert (figures.units, figures.dropped, figures.clipped) == (4, 1, 0)
    assert losses < figures.loss_sum < float("inf")


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError])
@pytest.mark.parametrize("size", [None, 1])
def test_a_unit_that_does_not_fit_even_alone_is_dropped_and_counted(
    kind: type[Exception], size: int | None, opened: Any, toys: Any, rows_of_gradients: Any, stepping: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """An error would leave the site exactly when it is drawn; the others stand, and alone it is zero."""
    bench = opened("gpt2", machine=Machine(device="cpu", microbatch_size=size))
    rows = toys.rows(len(UNITS))
    kept = [index for index, unit in enumerate(UNITS) if unit != 2]
    expected = rows_of_gradients.slow(bench, [rows[index] for index in kept]).sum(0)
    plain = summing.example_means

    def full(task: Any, model: Any, tensors: Any, counts: torch.Tensor) -> torch.Tensor:
        losses = plain(task, model, tensors, counts)
        if (tensors["attention_mask"].sum(1) == rows[1].length).any():
            losses.register_hook(fails)
        return losses

    def fails(_: torch.Tensor) -> None:
        raise kind("not enough memory")

    monkeypatch.setattr(summing, "example_means", full)
    with stepping.open(bench, rows, **stepping.exact) as steps:
        figures = steps.write(stepping.batch(UNITS))
    assert error(stepping.written(bench), expected) < EXACT
    assert (figures.units, figures.dropped, figures.clipped) == (4, 1, 0)
    assert figures.loss_sum < float("inf")
    with stepping.open(bench, [rows[1]], **stepping.exact) as steps:
        figures = steps.write(stepping.batch([0]))
    assert not stepping.written(bench).any()
    assert (figures.units, figures.dropped) == (1, 1)


def test_the_loss_sum_is_the_plain_one(opened: Any, toys: Any, stepping: Any) -> None:
    """In nats over all targets, as without privacy."""
    bench = opened("llama", machine=Machine(device="cpu", microbatch_size=2))
    rows = toys.rows(5)
    plain = bench.task.example_losses(bench.model, bench.task.collate(rows, bench.data)).sum().detach()
    with stepping.open(bench, rows) as steps:
        figures = steps.write(stepping.batch(range(5)))
    assert figures.loss_sum == pytest.approx(float(plain), rel=1e-5)
    assert "loss" not in repr(figures)


@pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
def test_checkpointing_and_microbatches_go_together(
    reentrant: bool, opened: Any, toys: Any, rows_of_gradients: Any, stepping: Any
) -> None:
    """Activations are recomputed in each microbatch."""
    bench = opened("llama", machine=Machine(device="cpu", microbatch_size=2))
    rows = toys.rows(5)
    expected = rows_of_gradients.slow(bench, rows).sum(0)
    base = bench.base.model
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    base.enable_input_require_grads()
    bench.model.train()
    with stepping.open(bench, rows, **stepping.exact) as steps:
        steps.write(stepping.batch([0, 1, 1, 1, 0]))
    assert error(stepping.written(bench), expected) < EXACT


def test_a_base_in_half_precision(opened: Any, toys: Any, rows_of_gradients: Any, stepping: Any) -> None:
    """Looser, as batches of bfloat16 round in other places; gradients are float32 all the same."""
    bench = opened("bert", dtype="bfloat16", machine=Machine(device="cpu", microbatch_size=3))
    rows = toys.rows(5)
    expected = rows_of_gradients.slow(bench, rows).sum(0)
    with stepping.open(bench, rows, **stepping.exact) as steps:
        steps.write(stepping.batch(range(5)))
    assert error(stepping.written(bench), expected) < 3e-2


# bitsandbytes 0.50.2 tells of the float16 products of LLM.int8() by a warning as well.
@pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning")
@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_a_quantised_base(
    bits: str, tiny_llama: Path, toys: Any, rows_of_gradients: Any, stepping: Any
) -> None:
    """Its layers make parts of their saved state anew at each call, which is no move."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes has no wheel for this platform")
    machine = Machine(device="cpu", microbatch_size=2)
    bench = toys.bench(tiny_llama, toys.causal, quantisation=bits, machine=machine)
    rows = toys.rows(4)
    rows_of_gradients.stirred(bench)
    with stepping.open(bench, rows, **stepping.exact) as steps:
        steps.write(stepping.batch(range(4)))
        written = stepping.written(bench)
    assert error(written, rows_of_gradients.slow(bench, rows).sum(0)) < EXACT


def test_masks_of_dropout_are_secret_and_fresh(tiny_llama: Path, toys: Any, stepping: Any) -> None:
    """From the source and not from the caller's seed; torch's own generator is put back."""
    bench, rows = toys.bench(tiny_llama, toys.causal, dropout=0.5), toys.rows(4)
    bench.model.train()

    def gradients(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(3)
        before = torch.get_rng_state()
        with stepping.open(bench, rows, seed=seed, **stepping.exact) as steps:
            found = []
            for _ in range(2):
                clipped, _ = steps.clipped_sum(stepping.batch(range(4)))
                found.append(clipped.total)
        assert torch.equal(torch.get_rng_state(), before)
        return found

    one, again, other = gradients(1), gradients(1), gradients(2)
    assert torch.equal(one[0], again[0])
    assert torch.equal(one[1], again[1])
    assert not torch.allclose(one[0], one[1], rtol=1e-3)
    assert not torch.allclose(one[0], other[0], rtol=1e-3)


def test_adaptive_clipping_moves_by_what_was_released(opened: Any, toys: Any, stepping: Any) -> None:
    """The bound follows the noised count alone, and the gradient has the noise that pays for it."""
    bench, rows = opened("bert"), toys.rows(6)
    rule = Adaptive(1e3, expected=3.0, count_sigma=1.5, rate=0.5)
    seen: list[tuple[np.ndarray, float, np.ndarray]] = []
    plain = gradient.add_noise

    def watched(total: np.ndarray, deviation: float, source: Any) -> np.ndarray:
        seen.append((total, deviation, plain(total, deviation, source)))
        return seen[-1][2]

    with stepping.open(bench, rows, rule, sigma=2.0) as steps, pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradient, "add_noise", watched)
        steps.write(stepping.batch(range(6)))
        stepping.written(bench)
        after = steps.clipping
    (_, deviation, _), (balance, count_sigma, released) = seen
    assert deviation == pytest.approx(rule.gradient_sigma(2.0) * 1e3)
    assert steps.noise_variance == pytest.approx(deviation**2)
    assert balance.tolist() == [3.0]
    assert count_sigma == 1.5
    assert after == rule.moved(float(released[0]))
    assert after.bound != rule.bound


def test_the_sum_alone_for_noise_that_is_added_elsewhere(
    opened: Any, toys: Any, rows_of_gradients: Any, stepping: Any
) -> None:
    """`.grad` stays empty, and the step counts."""
    bench, rows = opened("bert"), toys.rows(4)
    expected = sums_of(rows_of_gradients.slow(bench, rows), [0, 0, 1, 1])
    expected = (0.5 / expected.norm(dim=1)).clamp(max=1) @ expected
    with stepping.open(bench, rows, bound=0.5) as steps:
        clipped, figures = steps.clipped_sum(stepping.batch([0, 0, 1, 1]))
    assert error(clipped.total, expected) < EXACT
    assert figures.units == 2
    assert all(p.grad is None for p in bench.parameters().values())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_private_step_on_a_full_device_is_that_of_smaller_microbatches(
    dropout: float, opened: Any, toys: Any, stepping: Any
) -> None:
    """Bit for bit, noise and dropout's seed included: the batch is drawn once and noised once."""

    class Small:
        def __init__(self, task: Any) -> None:
            self.task, self.sizes = task, list[int]()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.task, name)

        def example_losses(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            self.sizes.append(len(batch["labels"]))
            if len(batch["labels"]) > 2:
                raise torch.OutOfMemoryError("full")
            losses: torch.Tensor = self.task.example_losses(model, batch)
            return losses

    written = []
    for size in (1, None):
        bench = opened("llama", machine=Machine(device="cpu", microbatch_size=size), dropout=dropout)
        small = Small(bench.task)
        bench = replace(bench, task=small)
        with stepping.open(bench, toys.rows(len(UNITS)), clipping=Flat(0.1)) as steps:
            figures = steps.write(stepping.batch(UNITS))
        written.append((stepping.written(bench), figures))
    assert small.sizes[:2] == [7, 3]
    assert torch.equal(written[0][0], written[1][0])
    assert written[0][1] == written[1][1]
