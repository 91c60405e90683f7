"""A plan without a model, and sites that answer by arithmetic, through the real sides of their sums."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_plans import toy_plan

from wardround.client.fold_check import FoldCheck, whole
from wardround.client.grouping import Grouped
from wardround.client.parties import Parties, contribution, scores_only
from wardround.core.counting import metric_counters, training_counters
from wardround.core.errors import PeerError, PolicyError, TrainingError
from wardround.core.messages import BEHIND, Reply, Request, reply_to
from wardround.core.packed import Counters, Layout, Packed, TensorSpec
from wardround.core.plan import (
    DataContract,
    Encoding,
    ReleaseRule,
    RoundRules,
    SecureRules,
    TrainingPlan,
)
from wardround.core.seeds import Purpose, generator
from wardround.privacy.packing import pack
from wardround.privacy.quantisation import dequantise, quantise
from wardround.privacy.secagg.messages import MaskedInput, decode, encode
from wardround.privacy.secagg.offer import Offer, SignedOffer
from wardround.privacy.secagg.policy import SecurePolicy
from wardround.privacy.secagg.total import centred
from wardround.privacy.sums.contract import EVALUATION, GROUPS, TRAINING, Lanes
from wardround.privacy.sums.offers import scale_of
from wardround.privacy.sums.trusted import simulated_aggregator
from wardround.runtime.events import Event, EventStream
from wardround.server.journal import Journal
from wardround.server.run import Run
from wardround.simulations.consortium import Consortium
from wardround.strategies.contract import SumStrategy
from wardround.strategies.fedavg import STRATEGY as FEDAVG

LAYOUT = Layout(tensors=(TensorSpec(name="b", shape=(3, 2)), TensorSpec(name="a", shape=(2, 4))))
INITIAL = Packed(LAYOUT, np.arange(LAYOUT.size, dtype=np.float32))
KEY = simulated_aggregator(7).public.hex()
POLICY = SecurePolicy(
    modes=("real", "accounted", "off", "trusted"),
    aggregator=KEY,
    group_strategies=("group_median", "group_trimmed_mean"),
    least_cohort=4,
)
SITES = {
    "off": tuple("abcd"),
    "trusted": tuple("abcd"),
    "real": tuple("abcdefg"),
    "accounted": tuple("abcdefg"),
}
"""Two of seven may be lost, each in any phase: the threshold is five."""


def plan_of(mode: Any = "off", **changes: Any) -> TrainingPlan:
    """A valid plan of five rounds; `changes` replace whole sections."""
    sections: dict[str, Any] = {
        "data": DataContract(columns={"text": "t", "label": "l"}, labels=("no", "yes")),
        "encoding": Encoding(largest=6.0, most_weight=50),
        "secure": SecureRules(mode=mode, aggregator=KEY if mode == "trusted" else None),
        "rounds": RoundRules(rounds=5, deadline_s=0.5),
        "release": ReleaseRule(metric="accuracy", direction="max"),
    }
    return toy_plan(layout=LAYOUT, initial=INITIAL.digest, **(sections | changes))


@dataclass
class FakeTransport:
    """Answers at once; a site that is sent a broadcast that does not follow fails the test.

    `fault` may change, drop or double a site's reply; `tamper` what the site adds to a sum, before its own
    side of the sum sees it.
    """

    plan: TrainingPlan
    fault: Callable[[Request, Reply], Sequence[Reply]] = lambda request, reply: [reply]
    correct: Callable[[int, str], int] = lambda round, site: 5
    rows_of: Callable[[str], int] = lambda site: 10
    tamper: Callable[[str, Request, Lanes], Lanes] = lambda name, request, lanes: lanes
    asked: list[Request] = field(default_factory=list)
    arrived: list[Reply] = field(default_factory=list)
    order: int = 1
    consortium: Consortium = field(default_factory=lambda: Consortium.of((), POLICY))
    parties: dict[str, Parties] = field(default_factory=dict)
    folds: dict[str, FoldCheck] = field(default_factory=dict)
    grouped: dict[str, Grouped | None] = field(default_factory=dict)

    def join(self, sites: Sequence[str], strategy: SumStrategy) -> None:
        """Fresh identities, as a simulation makes them; once, since sites outlive a server."""
        if self.parties:
            return
        self.consortium = Consortium.of(sites, POLICY)
        self.parties = {site: self.consortium.parties(site, self.plan, "run") for site in sites}
        self.folds = {site: FoldCheck(self.plan, strategy) for site in sites}
        self.grouped = {site: self.consortium.grouped(site, self.plan, "run", strategy) for site in sites}

    def send(self, requests: Sequence[Request]) -> Mapping[str, int]:
        self.asked += requests
        for request in list(requests)[:: self.order]:
            self.arrived += self.fault(request, self.reply(request))
        return {request.site: 100 for request in requests}

    def send_more(self, request: Request) -> int:
        return self.send([request])[request.site]

    def receive(self, timeout_s: float) -> Sequence[tuple[Reply, int]]:
        arrived, self.arrived = [(reply, 10) for reply in self.arrived], []
        return arrived

    def reply(self, request: Request) -> Reply:
        """The site's answer; the first thing that goes wrong at it is named, and its other sums go on."""
        sums: dict[str, bytes] = {}
        wrong: dict[str, Any] = {}
        grouped = self.grouped[request.site]
        if request.round == 0 and grouped is not None:
            answer = grouped.answer(request)
            self.folds[request.site].groups = grouped.groups
            return reply_to(request, sums={GROUPS: answer})
        confirmed = self.parties[request.site].parties[TRAINING].confirmed(request.round - 1)
        asked = whole(request, self.folds[request.site], confirmed)
        if asked is None:
            return reply_to(request, status="failed", code=BEHIND)
        request = asked
        if request.broadcast is not None and request.stage == 0:
            self.folds[request.site].check(request.round, request.broadcast, request.opened, dict(confirmed))
        if request.broadcast is not None and request.stage:
            now = self.parties[request.site].parties[TRAINING].confirmed(request.round)
            known = self.folds[request.site].check_stage(
                request.round, request.stage, request.broadcast, request.opened, dict(now)
            )
            assert known
        for name in sorted(request.sums):
            try:
                sums[name] = self.answer(name, request)
            except TrainingError as error:
                wrong = wrong or {"status": "failed", "code": error.code, "reason": error.what}
            except (PeerError, PolicyError) as error:
                wrong = wrong or {"status": "refused", "code": "bad_message", "reason": error.what}
        return reply_to(request, sums=sums, **wrong)

    def answer(self, name: str, request: Request) -> bytes:
        """What the site says of one sum."""
        parties = self.parties[request.site]
        if request.exchange:
            return parties.step(name, request)
        again = request.broadcast is None
        digest = (
            parties.broadcast_of(name, request)
            if request.broadcast is None
            else bytes.fromhex(request.broadcast.digest)
        )
        offer = parties.check(name, request, self.plan, "run", LAYOUT, digest)
        if again or parties.has_kept(name, request, digest):
            return parties.again(name, request, digest, self.kept)
        lanes = self.tamper(name, request, self.lanes(name, offer, request.site))
        return parties.begin(name, request, digest, lanes, self.kept)

    def kept(self, lanes: Lanes) -> None:
        """Nothing is sealed here."""

    def lanes(self, name: str, offer: Offer, site: str) -> Lanes:
        """A site whose update is drawn from its name and round, and that gets `correct` of its rows right."""
        if name == EVALUATION:
            return scores_only(self.scored(offer.round, site))
        update, weight = drawn(offer.round, site)
        counters = training_counters(weight=weight, loss_sum=2.0 * weight, targets=weight)
        return contribution(update, counters, weight, offer, self.plan, site)[0]

    def scored(self, round: int, site: str) -> Counters:
        """What the site counts on its validation part."""
        right, total = self.correct(round - 1, site), self.rows_of(site)
        calibration = np.zeros_like(metric_counters(self.plan, None)["calibration"])
        calibration[0, -1] = total
        return metric_counters(
            self.plan,
            {
                "examples": np.array(total), "calibration": calibration,
                "confusion": np.array([[right, total - right], [0, 0]]),
            },
        )  # fmt: skip


def drawn(round: int, site: str) -> tuple[np.ndarray, int]:
    """Update and weight of a site in a round."""
    rng = np.random.default_rng([round, *site.encode()])
    weight = int(rng.integers(1, 50))
    return rng.normal(size=LAYOUT.size), weight


def offer_in(request: Request, name: str) -> Offer:
    """What the server proposes in the first exchange of an attempt."""
    return decode(request.sums[name], SignedOffer).offer


def failed(reply: Reply) -> Reply:
    """The reply of a site whose training failed: what it scored before is in it, and nothing else."""
    if TRAINING not in reply.sums:
        return reply
    scored = {name: message for name, message in reply.sums.items() if name != TRAINING}
    return replace(
        reply, status="failed", code="non_finite_loss", reason="the loss is not finite", sums=scored
    )


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
    offer_in = staticmethod(offer_in)
    drawn = staticmethod(drawn)

    @property
    def initial(self) -> Packed:
        return INITIAL

    def run(self, transport: FakeTransport, sites: Sequence[str] = (), **changes: Any) -> Run:
        """Over the sites that the plan's mode has by default; their identities are made with the run."""
        plan = transport.plan
        names = tuple(sites or SITES[plan.secure.mode])
        strategy = changes.pop("strategy", FEDAVG(FEDAVG.Options(), LAYOUT))
        transport.join(names, strategy)
        aggregation = transport.consortium.aggregation(plan)
        return Run(
            "run", "federated", plan, strategy, names, transport, aggregation, Journal(self.folder, plan),
            EventStream([self.recorder]), **changes,
        )  # fmt: skip

    def forged(self, transport: FakeTransport, request: Request, **changes: Any) -> bytes:
        """A contribution under no mask that its site signed, whatever is in it.

        `name` says of which sum, `signer` who signs; `coordinates`, `counters` (arrays or bytes), `site` and
        `dealt` replace what an honest one holds, and `offer` the offer that it answers.
        """
        name, site = changes.get("name", TRAINING), changes.get("site", request.site)
        offer = changes.get("offer") or offer_in(request, name)
        lanes = transport.lanes(name, offer, request.site)
        coordinates = changes.get("coordinates", lanes.coordinates)
        counters = changes.get("counters", lanes.counters)
        message = MaskedInput(
            site=site, dealt=changes.get("dealt", offer.context),
            coordinates=coordinates if isinstance(coordinates, bytes) else pack(coordinates, offer.bits),
            counters=counters if isinstance(counters, bytes) else pack(counters, 64),
        )  # fmt: skip
        signer = transport.consortium.signers[changes.get("signer", request.site)]
        return encode(message.model_copy(update={"signature": signer.sign(message.statement(offer.context))}))

    def asked_to_train(self, transport: FakeTransport, round: int) -> list[str]:
        """Sites that were asked for a contribution in a round's first exchange, sorted."""
        return sorted(
            {
                r.site
                for r in transport.asked
                if r.round == round and TRAINING in r.sums and (r.broadcast or r.follows)
            }
        )

    def expected_adapter(
        self, transport: FakeTransport, rounds: int, skip: Mapping[int, set[str]] | None = None,
        burnt: Sequence[int] = (),
    ) -> np.ndarray:  # fmt: skip
        """FedAvg on the individuals, rounded once a round; each of them as the plan's ring holds it."""
        state = self.initial.vector.astype(np.float32)
        for round in range(1, rounds + 1):
            cohort = self.asked_to_train(transport, round)
            if round in burnt:
                continue
            plan, weight = transport.plan, 0
            scale = scale_of(plan.encoding, len(cohort))
            total = np.zeros(LAYOUT.size, dtype=np.int64)
            for site in set(cohort) - (skip or {}).get(round, set()):
                update, of_site = drawn(round, site)
                rng = generator(plan.seed, Purpose.ROUNDING, round=round, site=site)
                total += centred(quantise(update, of_site, scale, rng).integers, plan.encoding.bits)
                weight += of_site
            state = (state.astype(np.float64) + dequantise(total, scale) / weight).astype(np.float32)
        return state

    def mean_adapter(self, transport: FakeTransport, rounds: int) -> tuple[np.ndarray, float]:
        """FedAvg on the individuals in float64, without a ring; how far all rounds' rings may be off."""
        state, off = self.initial.vector.astype(np.float64), 0.0
        for round in range(1, rounds + 1):
            individuals = [drawn(round, site) for site in self.asked_to_train(transport, round)]
            weight = sum(of_site for _, of_site in individuals)
            state = state + sum(update * of_site for update, of_site in individuals) / weight
            off += scale_of(transport.plan.encoding, len(individuals)).error_of_mean(weight)
        return state, off


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Plans, fake sites and runs over one journal folder; no disk is waited for."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    return Bench(tmp_path / "journal")
