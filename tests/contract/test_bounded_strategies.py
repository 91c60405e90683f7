"""Strategies for which noise that is sized for an update may be dealt out in shares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategy_cases import NAMES, Case, cases, folded, made, small

from wardround.core.packed import Packed, zeros
from wardround.strategies import STRATEGIES
from wardround.strategies.contract import (
    LocalUpdate,
    ServerState,
    SiteMemory,
    is_bounded_by_update,
)

BOUNDED = [name for name in NAMES if vars(STRATEGIES.get(name)).get("bounded_by_update")]
"""Those that say that noise which is sized for an update covers what they send."""


def test_who_is_bounded_by_the_update() -> None:
    """No one else gets shares of noise; a name that is added here has to pass the two laws below."""
    assert set(BOUNDED) == {
        "fedavg", "fedprox", "fedavgm", "fedadagrad", "fedadam", "fedyogi", "ffa_lora", "rolora", "fedsvd",
    }  # fmt: skip


@pytest.mark.parametrize("name", BOUNDED)
@settings(max_examples=40, deadline=None)
@given(case=cases(rounds=1), round=st.integers(1, 4), factor=st.floats(-1e3, 1e3))
def test_what_says_so_is_linear_and_no_longer_than_the_update(
    name: str, case: Case, round: int, factor: float
) -> None:
    """As a site with shares of noise contributes: float64, from zero, in any round and from any broadcast."""
    strategy = made(name, case.layout)
    assert is_bounded_by_update(strategy)
    assert strategy.stages == 1
    state = folded(strategy, strategy.begin(case.adapter), case.rounds[0])

    def sent(update: np.ndarray, whole: ServerState = state) -> np.ndarray:
        local = LocalUpdate(zeros(case.layout, np.float64), Packed(case.layout, update))
        broadcast = strategy.broadcast(whole, round, 0)
        statistics, memory = strategy.contribute(broadcast, local, SiteMemory(), round, 0)
        assert memory == SiteMemory()
        return statistics.vector

    one, two = (case.rounds[0][place][1].vector.astype(np.float64) for place in (0, -1))
    for update in (one, factor * two):
        assert np.linalg.norm(sent(update)) <= np.linalg.norm(update) * (1 + 1e-12)
    np.testing.assert_allclose(sent(one + factor * two), sent(one) + factor * sent(two), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(sent(one), sent(one, strategy.begin(case.adapter)))


def test_it_is_not_inherited() -> None:
    """A class that is derived from such a one may send anything."""
    layout, _ = small()
    plain = made("fedavg", layout)

    class Louder(type(plain)):  # type: ignore[misc]  # of a class that is only known here
        """Sends its update three times as long."""

    louder = Louder(plain.options, layout)  # type: ignore[attr-defined]  # as of fedavg
    assert louder.bounded_by_update
    assert not is_bounded_by_update(louder)
