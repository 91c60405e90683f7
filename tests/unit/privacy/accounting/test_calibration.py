"""Calibration: the least noise, from the noisy side, or a reason why there is none."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest

from wardround.core.errors import ConfigError, PolicyError
from wardround.privacy.accounting import calibrate
from wardround.privacy.accounting.calibrate import LEAST_SIGMA, least_noise, planned, sample_rate

UNITS = 2_000


@pytest.mark.parametrize(
    "epsilon",
    [0.2, pytest.param(1.0, marks=pytest.mark.slow), 3.0, pytest.param(8.0, marks=pytest.mark.slow), 50.0],
)
@pytest.mark.parametrize(("rate", "steps"), [(0.001, 20_000), (0.01, 1_000), (0.2, 50), (1.0, 10)])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-4])
def test_the_noise_is_enough_and_hardly_more(
    epsilon: float, rate: float, steps: int, tolerance: float
) -> None:
    """It meets the target; one tolerance less does not."""
    sigma = least_noise(epsilon, 1e-5, units=UNITS, sample_rate=rate, steps=steps, tolerance=tolerance)
    assert planned(rate, sigma, steps).epsilon(1e-5, units=UNITS).value <= epsilon
    assert planned(rate, sigma * (1 - tolerance), steps).epsilon(1e-5, units=UNITS).value > epsilon


@pytest.mark.parametrize(("epsilon", "rate", "steps"), [(3.0, 0.2, 50), (0.2, 1.0, 10)])
def test_the_best_order_first_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch, epsilon: float, rate: float, steps: int
) -> None:
    """Beside the search that looks at all orders at every noise."""
    wanted: dict[str, Any] = {"units": UNITS, "sample_rate": rate, "steps": steps}
    quick = least_noise(epsilon, 1e-5, **wanted)
    asked = []
    monkeypatch.setattr(calibrate, "rdp_of_step_at", lambda *at: asked.append(at) or math.inf)
    assert least_noise(epsilon, 1e-5, **wanted) == quick
    assert asked


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.01, 1.0])
def test_a_fixed_schedule_gets_by_with_less_noise(rate: float) -> None:
    """Losses are tighter, and just as tightly met."""

    def search(spend: Literal["reserve", "report"]) -> float:
        return least_noise(2.0, 1e-5, units=UNITS, sample_rate=rate, steps=200, spend=spend, tolerance=0.02)

    sigma = search("report")
    assert 0.8 * search("reserve") < sigma < search("reserve")
    assert planned(rate, sigma, 200).fixed_schedule_epsilon(1e-5, units=UNITS).value <= 2
    assert planned(rate, sigma * 0.98, 200).fixed_schedule_epsilon(1e-5, units=UNITS).value > 2


@pytest.mark.slow
def test_a_patient_with_several_examples_needs_more_noise() -> None:
    """K = 4 examples, each at q, against one at q."""
    wanted: dict[str, Any] = {
        "units": UNITS, "sample_rate": 0.01, "steps": 50, "spend": "report", "tolerance": 0.05,
    }  # fmt: skip
    four = least_noise(1.0, 1e-5, most_examples=4, **wanted)
    assert four > 1.3 * least_noise(1.0, 1e-5, **wanted)
    assert planned(0.01, four, 50, 4).epsilon(1e-5, units=UNITS).value <= 1
    assert planned(0.01, four * 0.95, 50, 4).epsilon(1e-5, units=UNITS).value > 1


def test_a_target_that_hardly_any_noise_meets() -> None:
    """The search has a floor, and says no less than it."""
    assert least_noise(1e7, 1e-5, units=UNITS, sample_rate=1.0, steps=1) == LEAST_SIGMA


def test_a_target_that_no_noise_meets() -> None:
    """Named with the run, the target and the most noise that was tried."""
    with pytest.raises(ConfigError, match=r"no noise keeps this run .*(\n.*)*even with σ = 100000") as caught:
        least_noise(1e-7, 1e-12, units=UNITS, sample_rate=1.0, steps=10**9)
    assert "fewer steps" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": 0.0}, "no noise can be searched for"),
        ({"epsilon": -1.0}, "no noise can be searched for"),
        ({"epsilon": math.nan}, "no noise can be searched for"),
        ({"epsilon": math.inf}, "no noise can be searched for"),
        ({"tolerance": 0.0}, "no noise can be searched for"),
        ({"tolerance": 1.0}, "no noise can be searched for"),
        ({"delta": 0.0}, "this is no δ"),
        ({"sample_rate": 0.0}, "sample_rate"),
        ({"sample_rate": 1.5}, "sample_rate"),
        ({"sample_rate": math.nan}, "sample_rate"),
        ({"steps": 0}, "steps"),
        ({"most_examples": 0}, "most_examples"),
    ],
)
def test_nonsense_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    """Before anything is searched."""
    wanted: dict[str, Any] = {
        "epsilon": 3.0,
        "delta": 1e-5,
        "units": UNITS,
        "sample_rate": 0.01,
        "steps": 100,
    }
    with pytest.raises(ConfigError, match=message):
        least_noise(**(wanted | change))


def test_the_delta_rule_holds_here_too() -> None:
    """No noise is searched for under a δ that publishes a unit."""
    with pytest.raises(PolicyError, match="below 1/units"):
        least_noise(3.0, 1e-3, units=1_000, sample_rate=0.01, steps=100)


def test_the_sample_rate_is_the_site_s_own() -> None:
    """The same batch samples a small site more."""
    assert sample_rate(16, 1_600) == 0.01
    assert sample_rate(16, 16) == 1


@pytest.mark.parametrize(("batch", "units"), [(17, 16), (0, 16), (-1, 16), (16, 0), (math.nan, 16)])
def test_no_rate_gives_impossible_batches(batch: float, units: int) -> None:
    """More than there are, or nothing."""
    with pytest.raises(ConfigError, match="no sample rate"):
        sample_rate(batch, units)
