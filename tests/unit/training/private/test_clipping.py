"""Clipping rules one by one: their formulas, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from wardround.core.errors import ConfigError, InternalError
from wardround.core.privacy_rules import AdaptiveClipping, PrivacyRules
from wardround.privacy.accounting.of_plan import RoundCost
from wardround.privacy.noise.source import SystemSource
from wardround.training.private.clipping import Adaptive, Automatic, Clipping, Flat, PerLayer, split_by_layer
from wardround.training.private.local import PrivateRound
from wardround.training.private.units import ClippedSum, ClippedUnits

CPU = torch.device("cpu")
GRADIENTS = torch.tensor(
    [[3.0, 4.0, 0.0], [0.0, 0.3, 0.4], [0.0, 0.0, 0.0], [torch.nan, 1.0, 1.0], [1.0, 1.0, -torch.inf]]
)


def clipped(rule: Clipping, gradients: torch.Tensor = GRADIENTS) -> ClippedUnits:
    """Every row a unit."""
    total = ClippedSum(gradients.shape[1], rule, CPU)
    total.add(gradients.clone(), range(len(gradients)))
    return total.close()


def test_flat_shortens_what_is_too_long() -> None:
    """And leaves the rest as it is."""
    found = clipped(Flat(1.0))
    assert found.total.tolist() == pytest.approx([0.6, 0.8 + 0.3, 0.4], rel=1e-5)
    assert (found.units, found.clipped, found.dropped) == (5, 1, 2)


def test_automatic_brings_all_to_nearly_one_length() -> None:
    """C h / (‖h‖ + γ): long and short ones alike, zero stays zero, and none reaches C."""
    found = clipped(Automatic(2.0, stability=0.5))
    expected = 2 * (torch.tensor([3.0, 4.0, 0.0]) / 5.5 + torch.tensor([0.0, 0.3, 0.4]) / 1.0)
    assert found.total.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert (found.clipped, found.dropped) == (1, 2)
    assert float(clipped(Automatic(2.0, stability=1e-12), GRADIENTS[:1]).total.norm()) < 2.0


def test_per_layer_shortens_each_layer_by_itself() -> None:
    """C / √2 for each of two; a unit counts as clipped where one layer is."""
    rule = PerLayer(1.0, ((slice(0, 2),), (slice(2, 3),)))
    assert math.hypot(*rule.limits) == pytest.approx(1.0)
    found = clipped(rule, torch.tensor([[3.0, 4.0, 0.1], [0.0, 0.1, 9.0], [0.1, 0.1, 0.1]]))
    half = math.sqrt(0.5)
    expected = [0.6 * half + 0.1, 0.8 * half + 0.1 + 0.1, 0.1 + half + 0.1]
    assert found.total.tolist() == pytest.approx(expected, rel=1e-5)
    assert (found.clipped, found.dropped) == (2, 0)
    assert found.norms[0] == pytest.approx(math.sqrt(25.01))


def test_a_unit_with_one_bad_layer_contributes_nothing_at_all() -> None:
    """Its other layers neither."""
    rule = PerLayer(1.0, ((slice(0, 1),), (slice(1, 3),)))
    assert clipped(rule, GRADIENTS[3:]).total.tolist() == [0.0, 0.0, 0.0]


def test_layers_are_told_apart_by_name() -> None:
    """A with B, weight with bias; a tensor without a layer stands alone."""
    names = [
        "model.h.0.q.lora_A.weight", "model.h.0.q.lora_B.weight", "model.h.1.q.lora_A.weight",
        "model.head.bias", "model.head.weight", "table",
    ]  # fmt: skip
    columns = {name: slice(index, index + 1) for index, name in enumerate(names)}
    rule = split_by_layer(3.0, columns)
    assert [[place.start for place in group] for group in rule.groups] == [[0, 1], [2], [3, 4], [5]]
    assert rule.limits == pytest.approx([1.5] * 4, rel=1e-5)


@pytest.mark.parametrize(
    "groups",
    [
        ((slice(0, 2),),),
        ((slice(0, 2),), (slice(1, 3),)),
        ((slice(0, 1),), (slice(2, 3),)),
        ((slice(0, 4),),),
        ((slice(0, 3),), (slice(0, 3),)),
    ],
)
def test_groups_have_to_hold_every_column_once(groups: tuple[tuple[slice, ...], ...]) -> None:
    """A column in two groups would be added twice."""
    with pytest.raises(InternalError, match="every column once"):
        ClippedSum(3, PerLayer(1.0, groups), CPU)


RULES: list[Callable[[float], Clipping]] = [
    Flat, Automatic, lambda bound: PerLayer(bound, ((slice(0, 3),),)),
    lambda bound: Adaptive(bound, expected=8, count_sigma=1.0),
]  # fmt: skip


@pytest.mark.parametrize("bound", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("rule", RULES, ids=["flat", "automatic", "per layer", "adaptive"])
def test_a_bound_that_is_none_is_refused(rule: Callable[[float], Clipping], bound: float) -> None:
    """By every rule."""
    with pytest.raises(ConfigError):
        rule(bound)


@pytest.mark.parametrize("stability", [0.0, -1.0, math.nan])
def test_automatic_needs_its_constant(stability: float) -> None:
    """Without it a zero gradient has no length to be brought to."""
    with pytest.raises(ConfigError, match="stability"):
        Automatic(1.0, stability)


@pytest.mark.parametrize(
    "options",
    [
        {"expected": 0.0}, {"count_sigma": 0.0}, {"rate": -1.0}, {"quantile": 1.0}, {"quantile": 0.0},
        {"smallest": 2.0}, {"largest": 0.5}, {"smallest": math.nan},
    ],
)  # fmt: skip
def test_adaptive_settings_that_are_none(options: dict[str, float]) -> None:
    """Refused when the rule is made."""
    with pytest.raises(ConfigError):
        Adaptive(**{"bound": 1.0, "expected": 8.0, "count_sigma": 1.0, **options})


def test_the_count_of_adaptive_clipping_is_paid_for() -> None:
    """1/z_Δ² + 1/(2 σ_b)² = 1/z²: gradient and count cost together what was planned."""
    rule = Adaptive(1.0, expected=100, count_sigma=5.0)
    for sigma in (0.3, 1.0, 4.0, 9.9):
        assert rule.gradient_sigma(sigma) > sigma
        assert rule.gradient_sigma(sigma) ** -2 + (2 * 5.0) ** -2 == pytest.approx(sigma**-2)
    for sigma in (10.0, 12.0):
        with pytest.raises(ConfigError, match="costs more"):
            rule.gradient_sigma(sigma)


def test_the_bound_moves_by_the_noised_count() -> None:
    """C · exp(−η (½ + s/B − γ)), within its limits, however far off s is."""
    rule = Adaptive(2.0, expected=50, count_sigma=2.5, quantile=0.3, rate=0.2, smallest=0.5, largest=4.0)
    assert rule.moved(10.0).bound == pytest.approx(2.0 * math.exp(-0.2 * (0.7 - 0.3)))
    assert rule.moved(-25.0).bound == pytest.approx(2.0 * math.exp(0.2 * 0.3))
    assert rule.moved(1e30).bound == 0.5
    assert rule.moved(-1e30).bound == 4.0
    assert rule.moved(10.0).moved(0.0).quantile == 0.3


def test_a_round_takes_every_setting_of_the_plan() -> None:
    """The limits of its norm included."""
    settings = AdaptiveClipping(quantile=0.3, rate=0.7, count_noise=6.0, smallest=0.2, largest=5.0)
    rules = PrivacyRules(unit="patient", sigma=1.0, delta=1e-3, clipping="adaptive", adaptive=settings)
    cost, words = RoundCost(20, 0.5, 1.0, 1, 1, 1e-3, "patient"), SystemSource("test")
    private = PrivateRound(rules, cost, 10.0, ["p"] * 20, 0.9, words, words)
    assert private.clipping({}, 0.0) == Adaptive(0.9, 10.0, 6.0, 0.3, 0.7, 0.2, 5.0)


def test_the_balance_counts_half_for_and_half_against() -> None:
    """Whoever contributes nothing counts for nothing."""
    found = clipped(Adaptive(1.0, expected=8, count_sigma=1.0))
    assert found.balance == (2 - 1) / 2
    assert clipped(Flat(1.0), GRADIENTS[:0]).balance == 0.0
    for row in range(5):
        rest = clipped(Flat(1.0), torch.cat([GRADIENTS[:row], GRADIENTS[row + 1 :]]))
        assert abs(found.balance - rest.balance) <= 0.5


@pytest.mark.parametrize("start", [0.01, 50.0])
@pytest.mark.parametrize("quantile", [0.25, 0.8])
def test_the_bound_finds_its_quantile(start: float, quantile: float) -> None:
    """From above and from below, through noise: log-normal norms, sizes of batches that vary."""
    rng = np.random.default_rng(0)
    rule = Adaptive(start, expected=100, count_sigma=5.0, quantile=quantile)
    for _ in range(300):
        norms = torch.from_numpy(rng.lognormal(0, 1, rng.binomial(1000, 0.1))).float()
        rule = rule.moved(clipped(rule, norms[:, None]).balance + rng.normal(0, 5.0))
    below = float(np.mean(rng.lognormal(0, 1, 100_000) < rule.bound))
    assert below == pytest.approx(quantile, abs=0.06)
