"""A site over a real tiny model, and the server as far as that site sees it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from private_site import private_server

from wardround.client.fold_check import FoldCheck
from wardround.client.memory import SiteStore
from wardround.client.site import Site
from wardround.core.counting import TRAINING_LAYOUT, metric_layout
from wardround.core.messages import Reply, Request
from wardround.core.packed import Counters, Packed
from wardround.core.plan import (
    DataContract,
    Encoding,
    LocalWork,
    ReleaseRule,
    RoundRules,
    SecureRules,
    StrategySpec,
    TaskSpec,
)
from wardround.privacy.packing import unpack
from wardround.privacy.quantisation import dequantise
from wardround.privacy.secagg.messages import MaskedInput, decode, encode
from wardround.privacy.secagg.offer import Offer, SignedOffer
from wardround.privacy.secagg.policy import SecurePolicy
from wardround.privacy.secagg.total import Sum, centred
from wardround.privacy.sums.contract import SUMS, TRAINING
from wardround.privacy.sums.offers import offer_of, scale_of
from wardround.privacy.sums.opened import opened
from wardround.simulations.consortium import Consortium
from wardround.training import local_round
from wardround.training.adapters import ADAPTERS
from wardround.training.base_model import BaseModelConfig
from wardround.training.examples import Example
from wardround.training.plan_strategy import bind_strategy
from wardround.training.planning import make_plan
from wardround.training.tasks import TASKS
from wardround.training.workbench import Machine, Workbench, open_workbench

TEXTS = ("sharp pain, fever", "slept well", "cough all night", "calm and rested", "sudden chills", "easy day")


@pytest.fixture(autouse=True)
def held(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds for which answers would have been held back; nobody waits."""
    waited: list[float] = []
    monkeypatch.setattr("wardround.client.round.sleep", waited.append)
    return waited


@pytest.fixture(scope="session")
def bench(tiny_bert: Path) -> Workbench:
    """A tiny encoder with an adapter on it."""
    torch.set_num_threads(1)
    data = DataContract(columns={"text": "t", "label": "l"}, labels=("well", "ill"), max_length=24)
    method = ADAPTERS.get("lora")
    return open_workbench(
        BaseModelConfig(path=str(tiny_bert)), TASKS.get("sequence_classification"), data, method,
        method.Options(r=2, alpha=4), Machine(device="cpu", threads=1), seed=5,
    )  # fmt: skip


EVERY_MODE = SecurePolicy(modes=("real", "accounted", "off"))
WARDS = ("other_1", "other_2", "other_3", "ward")


@dataclass(frozen=True)
class Server:
    """The other side of one site, as far as that site sees it."""

    site: Site
    consortium: Consortium
    initial: Packed
    wards: ClassVar[tuple[str, ...]] = WARDS

    def offer(
        self, name: str, broadcast: Packed, *, round: int = 1, stage: int = 0, attempt: int = 0
    ) -> Offer:
        """What an honest server proposes."""
        return offer_of(
            self.site.plan, name=name, run_id="run", round=round, stage=stage, attempt=attempt,
            cohort=WARDS, roster=self.consortium.roster(self.site.plan).digest,
            broadcast=bytes.fromhex(broadcast.digest),
            statistics=self.site.strategy.statistics_layout(0),
        )  # fmt: skip

    def restarted(self) -> Server:
        """The site in a new process, over what its folder holds, as in a resumed simulation."""
        site, consortium = self.site, Consortium.of(WARDS, EVERY_MODE)
        parties = consortium.parties("ward", site.plan, "run")
        fresh = replace(site, parties=parties, folds=FoldCheck(site.plan, site.strategy))
        return Server(fresh, consortium, self.initial)

    def signed(self, offer: Offer) -> bytes:
        """As it travels."""
        return encode(SignedOffer.by(self.consortium.server, offer))

    def request(
        self,
        round: int = 1,
        *,
        sums: Sequence[str] = SUMS,
        broadcast: Packed | None = None,
        attempt: int = 0,
        **changes: Any,
    ) -> Request:
        """The first exchange of an attempt; `changes` replace fields of the request.

        The round before, if there was one, moved nothing.
        """
        state = self.initial if broadcast is None else broadcast
        fields: dict[str, Any] = {
            "run_id": "run", "plan_digest": self.site.plan.digest, "round": round, "site": "ward",
            "broadcast": None if attempt else state, "attempt": attempt,
            "opened": () if round == 1 or attempt else (self.unmoved(round - 1),),
            "sums": {
                name: self.signed(self.offer(name, state, round=round, attempt=attempt)) for name in sums
            },
        }  # fmt: skip
        return Request(**(fields | changes))

    def unmoved(self, round: int) -> bytes:
        """The sum of a round whose updates cancelled each other."""
        plan, size = self.site.plan, self.site.strategy.statistics_layout(0).size
        counters = np.array([len(WARDS), 0, 0], dtype=np.int64)
        total = Sum(np.zeros(size, dtype=np.int64), counters, WARDS, ())
        return opened(total, round=round, stage=0, cohort=len(WARDS), bits=plan.encoding.bits)

    def read(self, request: Request, reply: Reply, name: str) -> tuple[np.ndarray[Any, Any], Counters]:
        """What a reply adds to one sum under no mask: its statistics (weight · value), its counters."""
        plan = self.site.plan
        offer = decode(request.sums[name], SignedOffer).offer
        vector = decode(reply.sums[name], MaskedInput, offer)
        integers = centred(unpack(vector.coordinates, offer.coordinates, offer.bits), offer.bits)
        layout = TRAINING_LAYOUT if name == TRAINING else metric_layout(plan)
        counters = unpack(vector.counters, offer.counters, 64).astype(np.int64)
        return dequantise(integers, scale_of(plan.encoding, len(offer.cohort))), Packed(layout, counters)


def server_of(
    bench: Workbench,
    folder: Path,
    rows: int = 6,
    *,
    mode: Any = "off",
    least_cohort: int = 5,
    encoding: Encoding | None = None,
    strategy: str = "fedavg",
    **work: Any,
) -> Server:
    """A site with a few rows, and the server's side of it."""
    task = bench.task
    spec = TaskSpec(name=task.name, metrics=task.metric_family)
    local = LocalWork(**({"steps": 3, "batch_size": 2, "learning_rate": 1e-2} | work))
    plan, initial = make_plan(
        bench, name="p", seed=5, task=spec, data=bench.data, adapter_options={}, start_from=None, local=local,
        strategy=StrategySpec(name=strategy),
        encoding=encoding or Encoding(bits=32, largest=0.05, most_weight=10),
        secure=SecureRules(mode=mode), rounds=RoundRules(rounds=3),
        release=ReleaseRule(metric="accuracy", direction="max"),
    )  # fmt: skip
    examples = [Example(i, {"text": text}, label=i % 2) for i, text in enumerate(TEXTS)]
    encoded = task.encode(examples, bench.tokenizer, plan.data, spec)
    policy = EVERY_MODE.model_copy(update={"least_cohort": least_cohort})
    consortium, bound = Consortium.of(WARDS, policy), bind_strategy(plan)
    site = Site(
        "ward", "run", plan, bound, bench, encoded[:rows], encoded[:3], SiteStore(folder),
        consortium.parties("ward", plan, "run"), FoldCheck(plan, bound),
        figures=None,
    )  # fmt: skip
    return Server(site, consortium, bound.broadcast(bound.begin(initial), 1, 0))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often the site has trained in each round."""
    from wardround.client import work as handler

    counted: Counter[int] = Counter()
    train = handler.train_locally

    def counting(bench: Any, job: Any) -> Any:
        counted[job.round] += 1
        return train(bench, job)

    monkeypatch.setattr(handler, "train_locally", counting)
    return counted


@pytest.fixture
def make(bench: Workbench, tmp_path: Path) -> Callable[..., Server]:
    """Makes sites over `bench` that keep what they keep in `tmp_path`, with the server's side of them."""
    return partial(server_of, bench, tmp_path)


@pytest.fixture
def private(make: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Makes the server's side of a private site, which keeps its ledger in `tmp_path`."""

    def server(*arguments: Any, **options: Any) -> Any:
        return private_server(make(max_grad_norm=None), tmp_path, *arguments, **options)

    return server


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every step that is taken."""
    taken: list[int] = []
    real = local_round.set_rate

    def counting(optimiser: Any, rate: float) -> None:
        taken.append(len(taken))
        real(optimiser, rate)

    monkeypatch.setattr(local_round, "set_rate", counting)
    return taken
