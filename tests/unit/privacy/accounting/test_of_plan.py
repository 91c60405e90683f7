"""What a plan's privacy means at a site: everybody derives the same from plan and number of units."""

from __future__ import annotations

import math

import pytest

from wardround.core.errors import ConfigError, PolicyError
from wardround.core.plan import LocalWork, RoundRules
from wardround.core.privacy_rules import PrivacyRules
from wardround.privacy.accounting.calibrate import least_noise
from wardround.privacy.accounting.of_plan import RING_MARGIN, cost_of, joint_length, sigma_of_sums

RULES = PrivacyRules(unit="patient", epsilon=4.0, delta=1e-3)
GIVEN = PrivacyRules(unit="patient", sigma=1.0, delta=1e-3)
WORK = LocalWork(steps=3, batch_size=20, max_grad_norm=None)
ROUNDS = RoundRules(rounds=5)


def test_the_noise_meets_the_target_over_the_whole_run_and_hardly_more() -> None:
    """Each site by its own rate: fewer patients need more noise."""
    found = {units: cost_of(RULES, WORK, ROUNDS, units) for units in (100, 400)}
    for units, cost in found.items():
        assert (cost.sample_rate, cost.steps, cost.rounds) == (20 / units, 3, 5)
        assert 3.95 < cost.epsilon().value <= 4.0
        assert cost.epsilon(2).value < cost.epsilon().value
        whole = least_noise(4.0, 1e-3, units=units, sample_rate=20 / units, steps=15)
        assert cost.sigma == whole
    assert found[100].sigma > found[400].sigma


def test_epochs_are_steps_by_the_sample_rate() -> None:
    """Epochs / q, to the nearest, and at least one."""
    for epochs, steps in ((2.0, 10), (0.25, 1), (0.01, 1), (0.5, 3)):
        work = LocalWork(epochs=epochs, batch_size=20, max_grad_norm=None)
        assert cost_of(GIVEN, work, ROUNDS, 100).steps == steps, epochs


def test_a_noise_that_is_given_is_taken_and_a_rate_as_well() -> None:
    """No search then: ε follows."""
    rules = PrivacyRules(unit="example", sigma=2.5, sample_rate=0.1, delta=1e-3)
    cost = cost_of(rules, WORK, ROUNDS, 30)
    assert (cost.sigma, cost.sample_rate, cost.unit) == (2.5, 0.1, "example")


def test_a_site_that_is_too_small_is_refused() -> None:
    """For a batch, and for δ."""
    with pytest.raises(ConfigError, match="sample rate"):
        cost_of(RULES, WORK, ROUNDS, 19)
    with pytest.raises(PolicyError, match="δ is too large"):
        cost_of(RULES, WORK, ROUNDS, 1000)


def test_noise_of_sums_is_one_for_all_sites() -> None:
    """Over the rounds of the run, one release each."""
    rules = PrivacyRules(unit="patient", noise="distributed", epsilon=4.0, delta=1e-3, sample_rate=0.5)
    sigma = sigma_of_sums(rules, 5)
    assert sigma == least_noise(4.0 * (1 - RING_MARGIN), 1e-3, units=1, sample_rate=0.5, steps=5)
    assert cost_of(rules, LocalWork(steps=1, max_grad_norm=None), ROUNDS, 40).sigma == sigma
    assert sigma_of_sums(PrivacyRules(unit="site", noise="central", sigma=3.0), 5) == 3.0


def test_a_count_of_adaptive_clipping_that_costs_all_of_the_target_is_refused() -> None:
    """Of patients and of whole sites; σ is only found here."""
    dear = {"clipping": "adaptive", "adaptive": {"count_noise": 0.1}}
    with pytest.raises(ConfigError, match="costs more than the whole release"):
        cost_of(PrivacyRules(unit="patient", epsilon=4.0, delta=1e-3, **dear), WORK, ROUNDS, 100)
    with pytest.raises(ConfigError, match="costs more than the whole release"):
        sigma_of_sums(PrivacyRules(unit="site", noise="central", epsilon=4.0, delta=1e-3, **dear), 5)


def test_a_joint_vector_has_the_length_of_the_plans_norm() -> None:
    """From z of the whole run."""
    settings = {"clipping": "adaptive", "adaptive": {"count_noise": 5.0}}
    rules = PrivacyRules(unit="site", noise="central", epsilon=4.0, delta=1e-3, clip_norm=0.3, **settings)
    joint = joint_length(rules, 7)
    assert math.hypot(joint.vector, joint.count / 2) == pytest.approx(0.3)
    assert joint.count == pytest.approx(0.3 * sigma_of_sums(rules, 7) / 5.0)
