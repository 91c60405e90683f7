"""What one site can change under adaptive clipping of whole sites, whatever it trained and whatever C is."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from site_plans import site_plan

from wardround.core.packed import Array, Layout, Packed, TensorSpec
from wardround.core.plan import TrainingPlan
from wardround.privacy.clip_norm import vector_sigma
from wardround.privacy.quantisation import quantise
from wardround.privacy.secagg.total import centred
from wardround.privacy.sums.noise import epsilon_of_sums, ring_noise
from wardround.strategies.adaptive_norm import NORM, AdaptiveNorm
from wardround.strategies.contract import LocalUpdate, ServerState, SiteMemory
from wardround.training.plan_strategy import bind_strategy

SIZE = 6
LAYOUT = Layout(tensors=(TensorSpec(name="a", shape=(SIZE,)),))
START = Packed(LAYOUT, np.zeros(SIZE, np.float32))
HOSTILE = st.one_of(
    st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False),
    st.floats(-2.0, 2.0, width=32, allow_subnormal=False),
    st.sampled_from([0.0, 3e38, -3e38, 2e-38]),
)


@st.composite
def federations(draw: st.DrawFn) -> tuple[TrainingPlan, AdaptiveNorm, ServerState, list[Array]]:
    """A plan, C anywhere within its limits, and what sites trained."""
    sigma = draw(st.sampled_from([0.3, 1.0, 5.0]))
    ratio = draw(st.sampled_from([0.501, 0.7, 3.0, 100.0]))
    first = draw(st.sampled_from([1e-3, 1.0, 30.0]))
    updates = draw(st.lists(st.lists(HOSTILE, min_size=SIZE, max_size=SIZE), min_size=1, max_size=12))
    plan = site_plan(
        layout=LAYOUT, sigma=sigma, clip_norm=first, cohort=len(updates),
        adaptive={"count_noise": ratio * sigma},
    )  # fmt: skip
    strategy = bind_strategy(plan)
    assert isinstance(strategy, AdaptiveNorm)
    begun = strategy.begin(START)
    norm = np.array([draw(st.floats(2.0**-19, 2.0**19, width=32))], dtype=np.float64)
    state = ServerState(0, START, {NORM: begun.slots[NORM].with_vector(norm)})
    return plan, strategy, state, [np.array(update, dtype=np.float32) for update in updates]


def sent(strategy: AdaptiveNorm, state: ServerState, trained: Array) -> Array:
    """A site's statistics."""
    broadcast = strategy.broadcast(state, 1, 0)
    found, _ = strategy.contribute(
        broadcast, LocalUpdate(START, START.with_vector(trained)), SiteMemory(), 1, 0
    )
    return np.asarray(found.vector)


@settings(deadline=None, max_examples=200)
@given(federations())
def test_one_site_moves_the_sum_by_c_the_count_by_half_and_both_by_what_is_noised(
    case: tuple[TrainingPlan, AdaptiveNorm, ServerState, list[Array]],
) -> None:
    """As the fold reads them; and over their noise by no more than one Gaussian of the planned σ allows."""
    plan, strategy, state, updates = case
    rules, norm = plan.privacy, float(state.slots[NORM].vector[0])
    assert rules is not None
    assert rules.sigma is not None
    z, noise = vector_sigma(rules.sigma, rules.adaptive.count_noise), rules.adaptive.count_noise
    for trained in updates:
        vector = sent(strategy, state, trained)
        assert np.isfinite(vector).all()
        assert np.linalg.norm(vector) <= rules.clip_norm
        moved = float(np.linalg.norm(vector[:-1] * (norm / strategy.joint.vector)))
        counted = abs(float(vector[-1]) / strategy.joint.count)
        assert moved <= norm
        assert counted <= 0.5 * (1 + 1e-12)
        assert math.hypot(moved / (z * norm), counted / noise) <= 1 / rules.sigma * (1 + 1e-12)


@settings(deadline=None, max_examples=100)
@given(federations(), st.integers(0, 2**16))
def test_no_sum_wraps_whatever_c_is_and_nothing_is_clipped_twice(
    case: tuple[TrainingPlan, AdaptiveNorm, ServerState, list[Array]], seed: int
) -> None:
    """Ring, scale and noise are constants of the plan: C has no part in them."""
    plan, strategy, state, updates = case
    noise = ring_noise(plan, cohort=len(updates), coordinates=SIZE + 1, round=1)
    assert noise is not None
    total = np.zeros(SIZE + 1)
    for number, trained in enumerate(updates):
        rng = np.random.default_rng([seed, number])
        found = quantise(sent(strategy, state, trained), 1, noise.signal, rng)
        assert (found.clipped, found.shortened_by) == (0, 1.0)
        total += centred(found.integers, plan.encoding.bits)
    assert np.abs(total).max() + 9 * math.sqrt(noise.variance) < 2.0 ** (plan.encoding.bits - 1)


@settings(deadline=None, max_examples=25)
@given(federations(), st.integers(1, 4))
def test_every_round_costs_what_fixed_clipping_costs(
    case: tuple[TrainingPlan, AdaptiveNorm, ServerState, list[Array]], rounds: int
) -> None:
    """The same σ over as many coordinates and one: no more, and hardly less."""
    plan, _, _, updates = case
    assert plan.privacy is not None
    fixed = plan.privacy.model_copy(update={"clipping": "flat"})
    sums = {"units": 1, "cohort": len(updates), "coordinates": SIZE + 1, "rounds": rounds}
    found = epsilon_of_sums(plan, **sums).value
    assert found == epsilon_of_sums(plan.model_copy(update={"privacy": fixed}), **sums).value
