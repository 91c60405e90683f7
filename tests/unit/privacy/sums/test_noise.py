"""Noise in the ring: as much as the plan promises, whoever is lost, and room for it beside the sum."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from toy_plans import toy_plan

from wardround.core.errors import ConfigError, PolicyError
from wardround.core.plan import (
    DataContract,
    Encoding,
    LocalWork,
    RoundRules,
    Schedule,
    StrategySpec,
    TrainingPlan,
)
from wardround.core.privacy_rules import PrivacyRules
from wardround.core.seeds import Purpose
from wardround.privacy.noise.shares import rounded_sensitivity
from wardround.privacy.noise.source import RepeatableSource
from wardround.privacy.quantisation import quantise
from wardround.privacy.secagg.total import Sum, centred
from wardround.privacy.sums.noise import epsilon_of_sums, require_target, ring_noise
from wardround.privacy.sums.offers import scale_of

SIZE = 2_000
DISTRIBUTED = {"unit": "patient", "noise": "distributed", "sigma": 2.0, "sample_rate": 1.0, "delta": 1e-3}
CENTRAL = {"unit": "site", "noise": "central", "sigma": 2.0, "delta": 1e-2, "clip_norm": 0.5}


def plan_of(privacy: dict[str, Any], *, bits: Any = 32, largest: float = 1.0, **local: Any) -> TrainingPlan:
    """A plan with noise in its sums."""
    of_site = privacy["unit"] == "site"
    return toy_plan(
        data=DataContract(columns={}, unit_column="p", validation_fraction=0.0),
        local=LocalWork(
            steps=1, optimiser="sgd", max_grad_norm=None, batch_size=10, learning_rate=0.5, **local
        ),
        strategy=StrategySpec(weighting="uniform"),
        rounds=RoundRules(rounds=4),
        encoding=Encoding(bits=bits, largest=largest, most_weight=1, norm=0.5 if of_site else None),
        privacy=PrivacyRules(**privacy),
    )


def source(place: int) -> RepeatableSource:
    """Words for one place."""
    return RepeatableSource(3, Purpose.NOISE, round=place, site="s")


def test_shares_of_the_fewest_honest_sites_add_up_to_the_noise_of_the_plan() -> None:
    """σ times what one patient changes after rounding, from the sites that are left and do not collude."""
    plan = plan_of(DISTRIBUTED)
    noise = ring_noise(plan, cohort=10, coordinates=SIZE, round=1)
    assert noise is not None
    # 7 of 10 have to confirm; one colludes, and one site more is to learn nothing.
    assert (noise.shares, noise.mechanism.shares) == (5, 5)
    one_patient = 0.5 * 1.0 / 10  # rate · C / B
    most = rounded_sensitivity(one_patient * noise.signal.integers_per_unit, SIZE)
    assert math.sqrt(noise.shares * noise.variance) == pytest.approx(2.0 * most, rel=1e-5)
    assert noise.mechanism.sigma == 2.0
    drawn = [
        centred(noise.added_to(np.zeros(SIZE, np.uint32), source(site)), 32).astype(float)
        for site in range(5)
    ]
    total = np.sum(drawn, axis=0)
    assert abs(total.std() / (2.0 * most) - 1) < 5 / math.sqrt(2 * SIZE)


def test_the_learning_rate_of_a_round_decides_what_one_patient_changes() -> None:
    """Noise in the ring falls with it; what is accounted for stays the same."""
    plan = plan_of(DISTRIBUTED, schedule=Schedule(shape="linear"))
    first, last = (ring_noise(plan, cohort=10, coordinates=SIZE, round=round) for round in (1, 4))
    assert first is not None
    assert last is not None
    assert last.variance < first.variance / 20
    assert last.mechanism.sigma == first.mechanism.sigma


def test_there_is_room_for_the_noise_beside_the_largest_sum() -> None:
    """All sites at their bound and the noise nine deviations out: nothing wraps."""
    for privacy in (DISTRIBUTED, CENTRAL):
        noise = ring_noise(plan_of(privacy), cohort=10, coordinates=SIZE, round=1)
        assert noise is not None
        scale, sites = noise.signal, 10 if privacy is DISTRIBUTED else 1
        signal = quantise(np.full(4, 9.0), 1, scale, np.random.default_rng(0))
        assert signal.clipped == 4
        most = 10 * int(centred(signal.integers, 32).max()) + 9 * math.sqrt(sites * noise.variance)
        assert most < 2**31
        assert noise.wraps < 1e-9
        assert scale.largest < scale_of(plan_of(privacy).encoding, 10).largest


def test_a_ring_without_room_is_refused() -> None:
    """With the settings that give it room."""
    with pytest.raises(ConfigError, match="no room for the noise"):
        ring_noise(plan_of(CENTRAL | {"sigma": 50.0}), cohort=10, coordinates=SIZE, round=1)
    with pytest.raises(ConfigError, match="too narrow"):
        ring_noise(plan_of(DISTRIBUTED | {"sigma": 0.01}, bits=16), cohort=10, coordinates=SIZE, round=1)


def test_a_ring_that_would_clip_the_count_of_adaptive_clipping_is_refused() -> None:
    """Between the noise and the bound that somebody gave there has to be room for half of a count."""
    counted = {"clipping": "adaptive", "adaptive": {"count_noise": 1.25}}
    plan = plan_of(CENTRAL | counted, largest=0.5)
    noise = ring_noise(plan, cohort=1000, coordinates=SIZE, round=1)
    assert noise is not None
    half = 0.5 * 2.0 / 1.25 / 2  # C z / σ_b of a whole one
    assert noise.signal.largest > half
    narrow = plan_of(CENTRAL | counted, largest=half)
    with pytest.raises(ConfigError, match="the count of adaptive clipping would be clipped"):
        ring_noise(narrow, cohort=1000, coordinates=SIZE, round=1)
    assert ring_noise(plan_of(CENTRAL, largest=half), cohort=1000, coordinates=SIZE, round=1) is not None


def test_the_servers_noise_moves_a_sum_and_stays_in_the_ring() -> None:
    """Of the deviation that the plan says, without touching what else was opened."""
    noise = ring_noise(plan_of(CENTRAL, bits=24, largest=6.0), cohort=10, coordinates=SIZE, round=1)
    assert noise is not None
    edge = 2**23 - 1
    before = Sum(np.full(SIZE, edge, np.int64), np.array([10, 0, 0]), ("a", "b"), ())
    after = noise.added_to_sum(before, source(1))
    moved = (after.coordinates - edge + edge) % 2**24 - edge
    assert np.abs(after.coordinates).max() <= 2**23
    assert abs(moved.std() / math.sqrt(noise.variance) - 1) < 5 / math.sqrt(2 * SIZE)
    assert (after.survivors, after.counters.tolist()) == (("a", "b"), [10, 0, 0])


def test_the_cost_of_central_noise_grows_by_the_round() -> None:
    """Nobody's sampling amplifies it; and a δ that covers a whole site is refused."""
    plan = plan_of(CENTRAL)
    costs = [
        epsilon_of_sums(plan, units=20, cohort=10, coordinates=SIZE, rounds=rounds).value
        for rounds in (1, 2, 4)
    ]
    assert costs == sorted(set(costs))
    with pytest.raises(PolicyError, match="δ is too large"):
        epsilon_of_sums(plan, units=100, cohort=10, coordinates=SIZE, rounds=1)


def test_a_ring_in_which_the_noise_misses_its_target_is_refused() -> None:
    """A wide one keeps it to the end; in a narrow one rounding costs more than the margin."""
    rules = DISTRIBUTED | {"sigma": None, "epsilon": 8.0, "sample_rate": 0.25}
    require_target(plan_of(rules), units=10, cohort=10, coordinates=SIZE)
    cost = epsilon_of_sums(plan_of(rules), units=10, cohort=10, coordinates=SIZE, rounds=4)
    assert 7.9 < cost.value <= 8.0
    with pytest.raises(ConfigError, match="too narrow to keep the target"):
        require_target(plan_of(rules, bits=20, largest=40.0), units=10, cohort=10, coordinates=SIZE)
