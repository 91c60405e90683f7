"""An optimiser's moments, kept through a fold that gave the adapter other factors."""

from __future__ import annotations

import numpy as np

from wardround.core.lora import Pair, pairs
from wardround.core.packed import Adapter
from wardround.core.turns import Turn
from wardround.training.optimisers import SEPARATOR, OptimiserState

FIRST = ("exp_avg", "momentum_buffer")
SECOND, STEPS = "exp_avg_sq", "step"


def turned(state: OptimiserState, old: Adapter, new: Adapter, betas: tuple[float, float]) -> OptimiserState:
    """The state as that of another adapter's factors; slots of dense tensors stay as they are.

    A factor with a direction of which nothing is known starts afresh: it is not in what is returned.

    Args:
        state: What was kept after the last local round.
        old: The adapter that it is of: as that round left it at this site, what trained in front.
        new: The one that the next round starts from; its rank may be another.
        betas: Of Adam, whose moments are without bias only once they are divided by 1 − βᵗ.
    """
    found = dict(state)
    known = {pair.module: pair for pair in pairs(old.layout)}
    for pair in pairs(new.layout):
        rank = _rank_of(state, pair)
        if pair.module not in known or rank is None:
            continue
        b, a = (old[spec.name] for spec in (known[pair.module].b, known[pair.module].a))
        turn = Turn.between((b[:, :rank], a[:rank]), (new[pair.b.name], new[pair.a.name]))
        for spec in (pair.a, pair.b):
            _turn(found, spec.name, spec.role, turn, betas)
    return found


def _rank_of(state: OptimiserState, pair: Pair) -> int | None:
    """So many directions trained; None where neither factor did."""
    for spec, axis in ((pair.b, 1), (pair.a, 0)):
        for slot in (*FIRST, SECOND):
            found = state.get(f"{spec.name}{SEPARATOR}{slot}")
            if found is not None:
                return int(found.shape[axis])
    return None


def _turn(state: OptimiserState, name: str, role: str, turn: Turn, betas: tuple[float, float]) -> None:
    prefix = f"{name}{SEPARATOR}"
    if not turn.knows(role):
        for slot in [slot for slot in state if slot.startswith(prefix)]:
            del state[slot]
        return
    old = {
        slot: state[prefix + slot].astype(np.float64) for slot in (*FIRST, SECOND) if prefix + slot in state
    }
    steps = float(state.get(prefix + STEPS, np.zeros(())))
    if SECOND in old:
        corrections = [1 - beta**steps for beta in betas] if steps else [1.0, 1.0]
        first, second = old[FIRST[0]] / corrections[0], old[SECOND] / corrections[1]
        state[prefix + SECOND] = (corrections[1] * turn.second(role, first, second)).astype(np.float32)
    for slot in FIRST:
        if slot in old:
            state[prefix + slot] = turn.first(role, old[slot]).astype(np.float32)
