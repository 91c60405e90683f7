"""The two formulas of adaptive clipping: what the count costs, and how the norm moves."""

from __future__ import annotations

import math

import pytest

from wardround.core.errors import ConfigError
from wardround.privacy.clip_norm import JointLength, next_norm, vector_sigma

SETTINGS = {"quantile": 0.3, "rate": 0.2, "smallest": 0.5, "largest": 4.0}


@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0, 9.9])
def test_vectors_and_count_together_cost_what_was_planned(sigma: float) -> None:
    """1/z_Δ² + 1/(2 σ_b)² = 1/z², and z_Δ is above z."""
    found = vector_sigma(sigma, 5.0)
    assert found > sigma
    assert found**-2 + 10.0**-2 == pytest.approx(sigma**-2)


@pytest.mark.parametrize("sigma", [10.0, 12.0])
def test_a_count_that_costs_all_of_it_is_refused(sigma: float) -> None:
    """With the setting that has to change, and the least that would do."""
    found = rf"(?s)costs more.*above {sigma / 2:g}\n.*privacy\.adaptive\.count_noise"
    with pytest.raises(ConfigError, match=found):
        vector_sigma(sigma, 5.0)


def test_the_norm_moves_by_the_share_and_stays_within_its_limits() -> None:
    """C · exp(−η (b̃ − γ)), however far off the share is."""
    assert next_norm(2.0, 0.7, **SETTINGS) == pytest.approx(2.0 * math.exp(-0.2 * 0.4))
    assert next_norm(2.0, 0.0, **SETTINGS) == pytest.approx(2.0 * math.exp(0.2 * 0.3))
    assert next_norm(2.0, 0.3, **SETTINGS) == pytest.approx(2.0)
    assert next_norm(2.0, 1e30, **SETTINGS) == 0.5
    assert next_norm(2.0, -1e30, **SETTINGS) == 4.0


@pytest.mark.parametrize(("sigma", "count_sigma"), [(1.0, 0.6), (1.0, 20.0), (7.0, 5.0), (0.1, 3.0)])
def test_a_joint_vector_is_as_long_as_the_norm_and_its_noise_serves_both(
    sigma: float, count_sigma: float
) -> None:
    """Noise of z C on every coordinate is z_Δ on the part of the vector, and σ_b on the count."""
    norm = 0.7
    joint = JointLength.of(norm, sigma, count_sigma)
    assert math.hypot(joint.vector, joint.count / 2) == pytest.approx(norm)
    assert sigma * norm / joint.vector == pytest.approx(vector_sigma(sigma, count_sigma))
    assert sigma * norm / joint.count == pytest.approx(count_sigma)
