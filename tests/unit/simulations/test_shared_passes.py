"""Who trains together, and whose part is taken."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from wardround.core.messages import Request
from wardround.core.packed import Layout, Packed, TensorSpec
from wardround.core.plan import LocalWork
from wardround.privacy.sums.contract import EVALUATION, TRAINING
from wardround.simulations.together import SharedPasses, same
from wardround.strategies.contract import LocalRules
from wardround.training.local_round import LocalJob

LAYOUT = Layout(tensors=(TensorSpec(name="a", shape=(3,)),))
ZERO = Packed(LAYOUT, np.zeros(3, np.float32))
ONE = Packed(LAYOUT, np.ones(3, np.float32))
JOB = LocalJob(
    [], ZERO, LocalWork(steps=1), LocalRules(gradient_offset=ZERO), round=2, rounds=3, seed_root=0, site="b",
    optimiser_state={"a//exp_avg": np.zeros(3)},
)  # fmt: skip


@pytest.mark.parametrize(
    "other",
    [
        {"round": 3}, {"site": "c"}, {"work": LocalWork(steps=2)}, {"encoded": []}, {"before": ONE},
        {"rules": LocalRules(proximal=0.1, gradient_offset=ZERO)},
        {"rules": LocalRules(frozen=frozenset("a"), gradient_offset=ZERO)},
        {"rules": LocalRules(mean_gradient=True, gradient_offset=ZERO)},
        {"rules": LocalRules(gradient_offset=ONE)}, {"rules": LocalRules()},
        {"optimiser_state": None}, {"optimiser_state": {"a//exp_avg": np.ones(3)}},
    ],
    ids=str,
)  # fmt: skip
def test_a_part_that_was_made_of_something_else_is_not_taken(other: dict[str, Any]) -> None:
    """A site's own checks may have changed what it goes on from: it trains by itself then."""
    assert same(JOB, replace(JOB))
    made = replace(JOB, **other)
    assert not same(made, JOB)
    passes = SharedPasses(SimpleNamespace(), 2)  # type: ignore[arg-type]  # nothing is trained here
    passes._asked, passes._made = ("a", "b"), {("run", 2, "b"): (made, ValueError("of another job"))}
    site: Any = SimpleNamespace(name="b", run_id="run")
    asked: Any = SimpleNamespace(round=2)
    assert passes(asked, ZERO, site, JOB) is None
    passes._made["run", 2, "b"] = (JOB, ValueError("its own"))
    with pytest.raises(ValueError, match="its own"):
        passes(asked, ZERO, site, JOB)


def test_who_trains_together_depends_on_who_is_asked_alone() -> None:
    """Not on the order of the requests, and not on those that ask for no training."""
    sites: Any = {
        name: SimpleNamespace(rank=2 if name == "c" else None, training=range(size))
        for name, size in zip("abcde", (5, 5, 5, 9, 1), strict=True)
    }
    passes = SharedPasses(SimpleNamespace(), 2, sites)  # type: ignore[arg-type]  # as above

    def request(site: str, name: str = TRAINING, exchange: int = 0) -> Request:
        return Request(run_id="run", plan_digest="", round=1, site=site, sums={name: b""}, exchange=exchange)

    passes.announce([request("d"), request("a"), request("c"), request("e", EVALUATION), request("b")])
    assert passes._asked == ("d", "a", "b"), "the largest first, then by name"
    passes.announce([request("e", exchange=1)])
    assert passes._asked == ("d", "a", "b"), "a later exchange changes nothing"
