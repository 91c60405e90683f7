"""An honest server of five sites, and a site's check of what it sends."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from broadcasting import Broadcasting
from toy_plans import toy_plan

from wardround.client.fold_check import FoldCheck
from wardround.core.checked import parse_options
from wardround.core.packed import Layout, Packed, TensorSpec
from wardround.core.plan import (
    Encoding,
    RoundRules,
    StrategySpec,
    TrainingPlan,
)
from wardround.privacy.quantisation import quantise
from wardround.privacy.secagg.total import Sum, centred
from wardround.privacy.sums.offers import scale_of
from wardround.privacy.sums.opened import opened, statistics_of
from wardround.strategies import STRATEGIES
from wardround.strategies.contract import ServerState, SumStrategy

LAYOUT = Layout(
    tensors=(
        TensorSpec(name="a", shape=(8,)),
        TensorSpec(name="m.lora_A", shape=(2, 5), role="lora_a", module="m"),
        TensorSpec(name="m.lora_B", shape=(4, 2), role="lora_b", module="m"),
    )
)
INITIAL = Packed(LAYOUT, np.linspace(-1, 1, LAYOUT.size, dtype=np.float32))
SITES = ("a", "b", "c", "d", "e")
EVERY = pytest.mark.parametrize(
    "name",
    [
        "fedavg",
        "fedprox",
        "fedavgm",
        "fedadam",
        "rolora",
        "tangent",
        "one_pass",
        "fedsvd",
        "hetlora",
        "two_pass",
    ],
)


@dataclass
class Server(Broadcasting):
    """An honest server of five sites, and what it sends with each broadcast."""

    name: str = "fedavg"
    plan: TrainingPlan = field(init=False)
    strategy: SumStrategy = field(init=False)
    state: ServerState = field(init=False)
    opened: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        self.plan = toy_plan(
            layout=LAYOUT,
            initial=INITIAL.digest,
            encoding=Encoding(largest=0.5, most_weight=10),
            strategy=StrategySpec(name=self.name),
            rounds=RoundRules(rounds=9),
        )
        made = STRATEGIES.get(self.name)
        self.strategy = made(parse_options(made.Options, {}, self.name), LAYOUT)
        self.state = self.strategy.begin(INITIAL)

    def site(self) -> FoldCheck:
        """One that knows nothing yet."""
        return FoldCheck(self.plan, self.strategy)

    def total(self, stage: int = 0) -> Sum:
        """The sum of a stage's contributions."""
        scale, size = scale_of(self.plan.encoding, 5), self.strategy.statistics_layout(stage).size
        rngs = [np.random.default_rng([self.round, index, *[stage] * stage]) for index in range(5)]
        parts = [quantise(rng.uniform(-0.4, 0.4, size), 3, scale, rng).integers for rng in rngs]
        total: Any = sum(centred(part, 16) for part in parts)
        return Sum(total, np.array([15, 0, 0]), SITES, ())

    def fold(self) -> None:
        """One round, all stages of it."""
        round, told, encoding = self.round, list[bytes](), self.plan.encoding
        for stage in range(self.strategy.stages):
            total, layout = self.total(stage), self.strategy.statistics_layout(stage)
            statistics, _ = statistics_of(total, layout, encoding, cohort=5)
            self.state = self.strategy.fold(self.state, statistics, 15.0, stage)
            told.append(opened(total, round=round, stage=stage, cohort=5, bits=16))
        self.opened = tuple(told)

    def burn(self) -> None:
        """A round that is spent without a fold."""
        self.state, self.opened = replace(self.state, round=self.round), ()


def asked(site: FoldCheck, server: Server, **changes: Any) -> bool:
    """The site's check of what the server sends; `changes` replace parts of it."""
    confirmed: dict[int, tuple[str, ...]] = changes.get("confirmed", {0: SITES} if server.opened else {})
    return site.check(
        changes.get("round", server.round), changes.get("broadcast", server.broadcast),
        changes.get("opened", server.opened), confirmed,
    )  # fmt: skip


def begun(server: Server, rounds: int = 1) -> FoldCheck:
    """A site that took part in so many rounds, which are folded."""
    site = server.site()
    for _ in range(rounds):
        assert asked(site, server)
        server.fold()
    return site


def moved(broadcast: Packed, by: float) -> Packed:
    """One coordinate is another."""
    vector = broadcast.vector.copy()
    vector[3] += np.float32(by)
    return broadcast.with_vector(vector)
