"""One fold serves all sites of a process, and only where it is theirs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from wardround.core.packed import Layout, Packed, TensorSpec
from wardround.simulations.last_fold import LastFold
from wardround.strategies import STRATEGIES
from wardround.strategies.contract import ServerState

LAYOUT = Layout(tensors=(TensorSpec(name="a", shape=(4,)),))


def packed(*values: float, dtype: type = np.float64) -> Packed:
    """Of the layout."""
    return Packed(LAYOUT, np.array(values, dtype=dtype))


START = ServerState(0, packed(1, 2, 3, 4, dtype=np.float32), {"m": packed(0, 0, 0, 1)})
TOTAL = packed(4, 0, 0, 8)


def test_equal_folds_are_made_once_and_others_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another state, slot, sum, weight or round is another fold; each stage remembers its own."""
    made = STRATEGIES.get("fedavgm")
    strategy, calls = made(made.Options(), LAYOUT), []
    plain = strategy.fold

    def counted(state: ServerState, total: Packed, weight: float, stage: int) -> ServerState:
        calls.append(stage)
        return plain(state, total, weight, 0)

    monkeypatch.setattr(strategy, "fold", counted)
    fold = LastFold(strategy)
    first = fold(START, TOTAL, 2.0, 0)
    assert fold(replace(START), TOTAL.with_vector(TOTAL.vector.copy()), 2.0, 0) is first
    assert calls == [0]
    others = [
        (replace(START, adapter=packed(1, 2, 3, 5, dtype=np.float32)), TOTAL, 2.0, 0),
        (replace(START, slots={"m": packed(0, 0, 1, 1)}), TOTAL, 2.0, 0),
        (START, packed(4, 0, 0, 9), 2.0, 0),
        (START, TOTAL, 3.0, 0),
        (replace(START, round=1), TOTAL, 2.0, 0),
    ]
    for state, total, weight, stage in others:
        fold(START, TOTAL, 2.0, 0)
        before = len(calls)
        found = fold(state, total, weight, stage)
        assert len(calls) == before + 1, "each differs from the last one in one thing"
        np.testing.assert_array_equal(found.adapter.vector, plain(state, total, weight, 0).adapter.vector)
    before = len(calls)
    fold(replace(START, round=1), TOTAL, 2.0, 1)
    fold(*others[-1])
    assert calls[before:] == [1], "stage 0 still has its last one"
