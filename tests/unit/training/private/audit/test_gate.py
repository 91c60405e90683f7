"""The three tests pass on the real step, and each seeded mutant is caught by those that the table names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from mutants import clip_by_example, no_clip, noise_times

from wardround.core.errors import TrainingError
from wardround.training.private import gradient, rounding, summing
from wardround.training.private.audit import sensitivity as module
from wardround.training.private.audit.canaries import canaries, is_powerless
from wardround.training.private.audit.findings import all_pass
from wardround.training.private.audit.noise import Noise, judged, noise_of_steps
from wardround.training.private.audit.sensitivity import sensitivity
from wardround.training.private.audit.stage import on_stage
from wardround.training.private.rounding import COARSE, FINE, slack_of
from wardround.training.private.units import ClippedSum
from wardround.training.workbench import Machine

RULES: list[dict[str, Any]] = [
    {},
    {"clipping": "per_layer"},
    {"clipping": "automatic"},
    {"clipping": "adaptive", "adaptive": {"count_noise": 5.0}},
]


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: rules.get("clipping", "flat"))
@pytest.mark.parametrize("test", ["sensitivity", "noise", "canaries"])
def test_the_real_step_passes(test: str, rules: dict[str, Any], staged: Any, gate: Any) -> None:
    """Under every rule of clipping."""
    with staged(**rules) as stage:
        assert getattr(gate, test)(stage)


def token_mean(patch: pytest.MonkeyPatch) -> None:
    """The mean over the batch's targets, as Hugging Face's `labels=` has it."""
    patch.setattr(
        summing,
        "example_means",
        lambda task, model, tensors, counts: task.example_losses(model, tensors) / counts.sum(),
    )


def noise_with_each_piece(
    pieces: float, deviation: float = 2.0 * 0.3
) -> Callable[[pytest.MonkeyPatch], None]:
    """Noise with each microbatch, as if there were so many of them, and none at the end."""

    def patched(patch: pytest.MonkeyPatch) -> None:
        rng = np.random.default_rng(1)

        def fold(total: ClippedSum, gradients: torch.Tensor, units: Sequence[int]) -> None:
            total.add(gradients, units)
            noise = rng.normal(0, deviation / math.sqrt(pieces), len(total._total))
            total._total += torch.from_numpy(noise)

        patch.setattr(summing, "fold_piece", fold)
        patch.setattr(gradient, "add_noise", lambda total, *_: total)

    return patched


def same_noise_again(patch: pytest.MonkeyPatch) -> None:
    """One noise for all steps: their difference has none."""
    kept: dict[int, np.ndarray] = {}
    plain = gradient.add_noise

    def add(total: np.ndarray, deviation: float, source: Any) -> np.ndarray:
        if total.size not in kept:
            kept[total.size] = plain(np.zeros(total.size), deviation, source)
        return total + kept[total.size]

    patch.setattr(gradient, "add_noise", add)


def flat_noise(patch: pytest.MonkeyPatch) -> None:
    """The right variance from a distribution without tails, which bounds no ε."""

    def add(total: np.ndarray, deviation: float, source: Any) -> np.ndarray:
        uniform = source.words(total.size) / 2.0**64 - 0.5
        return total + deviation * math.sqrt(12) * uniform

    patch.setattr(gradient, "add_noise", add)


def one_tensor_without(patch: pytest.MonkeyPatch) -> None:
    """The last tensor gets no noise: 4 × 32 entries."""
    plain = gradient.add_noise

    def add(total: np.ndarray, deviation: float, source: Any) -> np.ndarray:
        noised = plain(total, deviation, source)
        noised[-128:] = total[-128:]
        return noised

    patch.setattr(gradient, "add_noise", add)


S, N, C = "sensitivity", "noise", "canaries"
TABLE: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], set[str]]] = {
    "no clip": (no_clip, {S, C}),
    "clip by example": (clip_by_example, {S}),
    "token mean over the batch": (token_mean, {S}),
    "half the noise": (noise_times(0.5), {N}),
    "a twentieth less noise": (noise_times(0.95), {N}),
    "more noise than planned": (noise_times(1.05), {N}),
    "no noise": (noise_times(1e-6), {N, C}),
    "noise with each microbatch": (noise_with_each_piece(1), {S, N}),
    "noise split over microbatches": (noise_with_each_piece(4), {S, N}),
    "the same noise again": (same_noise_again, {N}),
    "noise without tails": (flat_noise, {N}),
    "one tensor without noise": (one_tensor_without, {N}),
}
"""Mutant → which of the three catch it, as they are run here."""


def catchers(
    mutate: Callable[[pytest.MonkeyPatch], None], tests: Iterable[str], staged: Any, gate: Any
) -> set[str]:
    """Which of the tests do not pass."""
    caught = set()
    with pytest.MonkeyPatch.context() as patch:
        mutate(patch)
        for test in tests:
            with staged() as stage:
                if not getattr(gate, test)(stage):
                    caught.add(test)
    return caught


@pytest.mark.parametrize("name", TABLE)
def test_a_mutant_is_caught_by_whom_the_table_names(name: str, staged: Any, gate: Any) -> None:
    """Each of them notices."""
    mutate, catches = TABLE[name]
    assert catches
    assert catchers(mutate, catches, staged, gate) == catches


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_a_mutant_is_caught_by_nobody_else(name: str, staged: Any, gate: Any) -> None:
    """What a test does not see is as much to be known."""
    mutate, catches = TABLE[name]
    assert not catchers(mutate, {S, N, C} - catches, staged, gate)


@pytest.mark.parametrize(
    "options",
    [{"dtype": "bfloat16"}, {"dtype": "float16"}, {"machine": Machine(device="cpu", precision="bf16")}],
    ids=["bfloat16", "float16", "products"],
)
def test_in_half_precision_the_sum_moves_by_no_more_than_the_bound(
    options: dict[str, Any], opened: Any, toys: Any, private_round: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What batches round is inside of C, by which σ and the ledger count.

    Clipped to C itself a bfloat16 base goes beyond it here; the others only may.
    """
    rows = [replace(row, targets=row.tokens) for row in toys.rows(12, longest=30)]
    bench = opened("llama", r=4, targets=("q_proj", "down_proj"), **options)

    def moved() -> float:
        with on_stage(bench, private_round(), rows) as stage:
            findings = sensitivity(stage, batches=8)
            assert all(finding.most <= 1 + 1e-6 for finding in findings)
            return max(finding.found for finding in findings)

    assert slack_of(bench.model) == COARSE
    assert moved() <= 1
    monkeypatch.setattr(rounding, "COARSE", 0.0)
    assert (1 + 1e-6 if options.get("dtype") == "bfloat16" else 0) < moved() < 1 + COARSE


def test_in_float32_nothing_is_taken_off(staged: Any) -> None:
    """And the sum may move by 1e-5 more in whole batches."""
    with staged() as stage:
        assert stage.clipping().slack == 0
        assert [finding.most for finding in sensitivity(stage, batches=1)] == [1 + 1e-6, 1 + FINE]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "bert", "gpt2"])
@pytest.mark.parametrize("rules", RULES, ids=lambda rules: rules.get("clipping", "flat"))
def test_the_real_step_passes_with_more_power(family: str, rules: dict[str, Any], staged: Any) -> None:
    """More batches, repeats and canaries; the bound stays below the claim, and is no empty one."""
    with staged(family, sigma=1.0, **rules) as stage:
        assert all_pass(sensitivity(stage, batches=24))
        assert all_pass(noise_of_steps([stage], repeats=3))
        shown = canaries(stage, most=2000)
        assert shown.finding.passed
        if rules.get("clipping") != "per_layer":  # so small a layer has no room for many canaries
            assert not is_powerless(shown)
            assert shown.epsilon > 0.2


def test_noise_of_another_round_or_site_is_another(staged: Any, private_round: Any) -> None:
    """Two stages from one seed have the same noise, which is seen."""
    with staged() as stage:

        def failed(*seeds: int) -> list[str]:
            sides = [replace(stage, private=private_round(seed=seed)) for seed in seeds]
            return [each.test for each in noise_of_steps(sides) if not each.passed]

        assert failed(0, 5) == []
        assert failed(0, 0) == ["noise, between steps"]


def test_the_bench_is_put_back(staged: Any, opened: Any, toys: Any, private_round: Any, gate: Any) -> None:
    """Adapter, dropout, modes, gradients."""
    bench = opened("llama", dropout=0.2)
    dropout = next(module for module in bench.model.modules() if isinstance(module, torch.nn.Dropout))
    dropout.p = 0.3
    before, training = bench.read_adapter(), bench.model.training
    with on_stage(bench, private_round(), toys.rows(5)) as stage:
        assert dropout.p == 0
        assert gate.noise(stage)
        assert bench.read_adapter().digest != before.digest
    assert (dropout.p, bench.model.training) == (0.3, training)
    assert bench.read_adapter().digest == before.digest
    assert all(p.grad is None and p.requires_grad for p in bench.parameters().values())


def test_rows_without_a_gradient_show_nothing(staged: Any) -> None:
    """They are refused: a sum of zeros never moves."""
    with staged() as stage:
        stage.loud.rows = {id(row): 0.0 for row in stage.rows}
        with pytest.raises(TrainingError, match="no gradient"):
            sensitivity(stage)


def test_a_small_tensor_without_noise_is_seen() -> None:
    """Among a hundred thousand entries the sum over all would not show it."""
    rng = np.random.default_rng(0)

    def step(small: float) -> Noise:
        tensors = {"large": rng.normal(0, 1, 100_000), "small": rng.normal(0, small, 20)}
        squares = {name: (float(np.square(z).sum()), len(z)) for name, z in tensors.items()}
        every = np.concatenate(list(tensors.values()))
        return Noise(every[:1000], squares, float(every.sum()), len(every), "full")

    assert all_pass(judged([step(1.0) for _ in range(6)]))
    failed = [each for each in judged([step(0.2) for _ in range(6)]) if not each.passed]
    assert [each.test for each in failed] == ["noise, deviation"]
    assert "tensor small" in failed[0].note


def test_a_sum_that_is_no_number_does_not_pass(staged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No comparison with it holds, so that a maximum would pass it over."""
    monkeypatch.setattr(module, "_moves", lambda *_: [0.1, math.nan, 0.2])
    with staged() as stage:
        assert not any(each.passed for each in sensitivity(stage, batches=1))
