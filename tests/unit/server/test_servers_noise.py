"""The noise that the server adds: from the operating system, or in a simulation that says so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from toy_plans import toy_plan

from wardround.core.errors import PolicyError
from wardround.core.plan import DataContract, Encoding, StrategySpec
from wardround.core.privacy_rules import PrivacyRules
from wardround.core.seeds import Purpose
from wardround.privacy.noise.source import RepeatableSource
from wardround.privacy.secagg.total import Sum
from wardround.privacy.sums.noise import ring_noise
from wardround.server.stage_sums import noised

RULES = PrivacyRules(unit="site", noise="central", sigma=2.0, delta=1e-2, clip_norm=0.5)
PLAN = toy_plan(
    data=DataContract(columns={"text": "t"}, validation_fraction=0.0),
    strategy=StrategySpec(weighting="uniform"),
    encoding=Encoding(bits=32, largest=6.0, norm=0.5, most_weight=1),
    privacy=RULES,
)
TOTAL = Sum(np.zeros(50, np.int64), np.array([4, 0, 0]), ("a", "b", "c", "d"), ())


def test_the_servers_noise_comes_from_no_seed(bench: Any) -> None:
    """But in a simulation; by itself a run takes the system's."""
    channel = replace(bench.run(bench.transport(bench.plan_of())).channel, plan=PLAN)
    noise = ring_noise(PLAN, cohort=4, coordinates=50, round=1)
    assert not channel.noise(1).repeatable
    assert np.any(noised(channel, TOTAL, noise, 1).coordinates)
    seeded = replace(channel, noise=lambda round: RepeatableSource(7, Purpose.NOISE, round=round, site=""))
    with pytest.raises(PolicyError, match="the server's noise comes from a seed"):
        noised(seeded, TOTAL, noise, 1)
    again = [noised(replace(seeded, simulation=True), TOTAL, noise, 1).coordinates for _ in range(2)]
    np.testing.assert_array_equal(*again)
    assert np.any(again[0])


def test_a_plan_without_central_noise_draws_none(bench: Any) -> None:
    """Whatever would be drawn from."""
    channel = bench.run(bench.transport(bench.plan_of())).channel
    assert noised(channel, TOTAL, None, 1) is TOTAL
