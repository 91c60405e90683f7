"""A plan without a model, and sites that answer by arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wardround.core.counting import TRAIN_LOSS, TRAIN_TARGETS, WEIGHT, fill_counters, reply_layout
from wardround.core.messages import Reply, Request
from wardround.core.packed import Layout, Packed, TensorSpec
from wardround.core.plan import (
    AdapterSpec,
    BaseModelSpec,
    DataContract,
    LocalWork,
    ReleaseRule,
    RoundRules,
    TaskSpec,
    TrainingPlan,
)
from wardround.privacy.ring import decode, encode
from wardround.runtime.events import Event, EventStream
from wardround.server.journal import Journal
from wardround.server.rounds import Run
from wardround.strategies.fedavg import STRATEGY as FEDAVG

LAYOUT = Layout(tensors=(TensorSpec(name="b", shape=(3, 2)), TensorSpec(name="a", shape=(2, 4))))
INITIAL = Packed(LAYOUT, np.arange(LAYOUT.size, dtype=np.float32))


def plan_of(**changes: Any) -> TrainingPlan:
    """A valid plan of five rounds; `changes` replace whole sections."""
    sections: dict[str, Any] = {
        "name": "toy",
        "seed": 7,
        "base": BaseModelSpec(name="none", digest="0" * 64),
        "task": TaskSpec(name="sequence_classification", metrics="classification"),
        "data": DataContract(columns={"text": "t", "label": "l"}, labels=("no", "yes")),
        "adapter": AdapterSpec(layout=LAYOUT, initial_digest=INITIAL.digest),
        "local": LocalWork(steps=1),
        "rounds": RoundRules(rounds=5, deadline_s=0.5),
        "release": ReleaseRule(metric="accuracy", direction="max"),
    }
    return TrainingPlan(**(sections | changes))


@dataclass
class FakeTransport:
    """Answers at once; `fault` may change, drop or double a site's reply."""

    plan: TrainingPlan
    fault: Callable[[Request, Reply], Sequence[Reply]] = lambda request, reply: [reply]
    correct: Callable[[int, str], int] = lambda round, site: 5
    rows_of: Callable[[str], int] = lambda site: 10
    asked: list[Request] = field(default_factory=list)
    arrived: list[Reply] = field(default_factory=list)
    order: int = 1

    def send(self, requests: Sequence[Request]) -> int:
        self.asked += requests
        for request in list(requests)[:: self.order]:
            self.arrived += self.fault(request, self.reply(request))
        return 100 * len(requests)

    def receive(self, timeout_s: float) -> Sequence[tuple[Reply, int]]:
        arrived, self.arrived = [(reply, 10) for reply in self.arrived], []
        return arrived

    def reply(self, request: Request) -> Reply:
        """A site whose update is drawn from its name and round, and that gets `correct` of its rows right."""
        layout = reply_layout(self.plan)
        rng = np.random.default_rng([request.round, *request.site.encode()])
        weight = int(rng.integers(1, 50)) if request.train else 0
        right = self.correct(request.round - 1, request.site) if request.evaluate else 0
        total = self.rows_of(request.site) if request.evaluate else 0
        confusion = np.array([[right, total - right], [0, 0]])
        counters = fill_counters(layout, weight=weight, loss_sum=2.0 * weight, targets=weight)
        counters["validation.examples"][...] = total
        counters["validation.calibration"][0, -1] = total
        counters["validation.confusion"][...] = confusion
        update = rng.normal(size=LAYOUT.size)
        return Reply(
            run_id=request.run_id, plan_digest=request.plan_digest, round=request.round, site=request.site,
            stage=request.stage, attempt=request.attempt,
            statistics=encode(update, weight, self.plan.encoding, sites=request.cohort_size)
            if request.train
            else None,
            statistics_layout_digest=LAYOUT.digest if request.train else "",
            counters=counters,
        )  # fmt: skip


def failed(reply: Reply) -> Reply:
    """The reply of a site whose training failed: what it scored before is in it, and nothing else."""
    counters = reply.counters
    assert counters is not None
    vector = counters.vector.copy()
    for name in (WEIGHT, TRAIN_LOSS, TRAIN_TARGETS):
        vector[counters.layout.offsets[name][0]] = 0
    return replace(
        reply, status="failed", code="non_finite_loss", reason="the loss is not finite", statistics=None,
        statistics_layout_digest="", counters=counters.with_vector(vector),
    )  # fmt: skip


@dataclass
class Recorder:
    """Keeps every event."""

    events: list[Event] = field(default_factory=list)

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None:
        """Nothing to flush."""

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@dataclass
class Bench:
    """Builds runs in one folder."""

    folder: Path
    recorder: Recorder = field(default_factory=Recorder)

    plan_of = staticmethod(plan_of)
    transport = FakeTransport
    replace = staticmethod(replace)
    failed = staticmethod(failed)

    @property
    def initial(self) -> Packed:
        return INITIAL

    def run(
        self, transport: FakeTransport, sites: Sequence[str] = ("a", "b", "c", "d"), **changes: Any
    ) -> Run:
        plan = transport.plan
        strategy = FEDAVG(FEDAVG.Options(), LAYOUT)
        return Run(
            "run", "federated", plan, strategy, tuple(sites), transport, Journal(self.folder, plan),
            EventStream([self.recorder]), **changes,
        )  # fmt: skip

    def expected_adapter(
        self, transport: Any, rounds: int, skip: dict[int, set[str]] | None = None
    ) -> np.ndarray:
        """FedAvg on the individuals, in float64 and rounded once a round."""
        state = self.initial.vector.astype(np.float32)
        for round in range(1, rounds + 1):
            total, weight = 0.0, 0
            for request in transport.asked:
                if (
                    request.round == round
                    and request.train
                    and request.site not in (skip or {}).get(round, set())
                ):
                    reply = transport.reply(request)
                    total = total + decode(reply.statistics, transport.plan.encoding)
                    weight += int(reply.counters["weight"])
            state = (state.astype(np.float64) + total / weight).astype(np.float32)
        return state


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Plans, fake sites and runs over one journal folder."""
    return Bench(tmp_path / "journal")
