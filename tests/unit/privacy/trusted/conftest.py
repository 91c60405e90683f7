"""Three sites, their trusted aggregator, and a relay that carries what is between them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from toy_plans import toy_plan

from wardround.core.counting import training_counters
from wardround.core.packed import Layout, TensorSpec
from wardround.core.plan import (
    DataContract,
    Encoding,
    SecureRules,
    TrainingPlan,
)
from wardround.privacy.packing import word_of
from wardround.privacy.secagg.admission import Member, SiteState
from wardround.privacy.secagg.hashing import digest
from wardround.privacy.secagg.identity import KeySigner, Roster
from wardround.privacy.secagg.messages import encode
from wardround.privacy.secagg.offer import Offer, SignedOffer
from wardround.privacy.secagg.policy import SecurePolicy
from wardround.privacy.secagg.secret import Secret
from wardround.privacy.sums.aggregation import Aggregation, party
from wardround.privacy.sums.contract import TRAINING, Lanes, Party
from wardround.privacy.sums.offers import offer_of, run_of
from wardround.privacy.sums.seen import SeenCollector
from wardround.privacy.sums.trusted import Aggregator

LAYOUT = Layout(tensors=(TensorSpec(name="a", shape=(8, 40)),))
BROADCAST = digest("broadcast")


class Disk:
    """A site's durable record; it outlives a restart."""

    def __init__(self) -> None:
        self.state = SiteState()

    def load(self) -> SiteState:
        return self.state

    def save(self, state: SiteState) -> None:
        self.state = state


class World:
    """A consortium under `trusted`; `restarted` gives a site whose process has forgotten everything."""

    broadcast = BROADCAST

    def __init__(self, sites: tuple[str, ...] = ("a", "b", "c")) -> None:
        self.sites = sites
        self.server = KeySigner.fresh()
        self.signers = {site: KeySigner.fresh() for site in sites}
        self.roster = Roster({site: signer.public for site, signer in self.signers.items()})
        self.aggregator = Aggregator(Secret.fresh())
        self.key = self.aggregator.public.hex()
        self.plan = self.plan_of(self.key)
        self.aggregation = Aggregation("trusted", self.server, self.roster, self.aggregator)
        self.disks = {site: Disk() for site in sites}
        self.parties = {site: self.restarted(site) for site in sites}

    def plan_of(self, aggregator: str) -> TrainingPlan:
        """A plan that names this aggregator."""
        return toy_plan(
            layout=LAYOUT,
            data=DataContract(columns={"text": "t", "label": "l"}, labels=("no", "yes")),
            encoding=Encoding(largest=2.0, most_weight=50),
            secure=SecureRules(mode="trusted", aggregator=aggregator),
        )

    def policy(self, **changes: Any) -> SecurePolicy:
        """Of a site that trusts the aggregator."""
        return SecurePolicy(**({"modes": ("real", "trusted"), "aggregator": self.key} | changes))

    def restarted(
        self, site: str, policy: SecurePolicy | None = None, plan: TrainingPlan | None = None
    ) -> Party:
        plan = plan or self.plan
        member = Member(
            site, self.signers[site], self.roster, self.server.public, policy or self.policy(),
            run_of("run", TRAINING), bytes.fromhex(plan.digest), self.disks[site],
        )  # fmt: skip
        return party(plan.secure, member)

    def offer(self, **changes: Any) -> Offer:
        """What the server proposes; `changes` stand in it whatever the plan says."""
        place = {"round": 1, "stage": 0, "attempt": 0}
        fields = place | {key: changes.pop(key) for key in list(changes) if key in place}
        honest = offer_of(
            self.plan, name=TRAINING, run_id="run", cohort=self.sites, roster=self.roster.digest,
            broadcast=BROADCAST, statistics=LAYOUT, **fields,
        )  # fmt: skip
        return honest.model_copy(update=changes)

    def signed(self, offer: Offer, signer: KeySigner | None = None) -> bytes:
        """The offer as it travels."""
        return encode(SignedOffer.by(signer or self.server, offer))

    def collector(self, offer: Offer, quorum: int = 0) -> SeenCollector:
        """The aggregator's side of one attempt."""
        found = self.aggregation.collector(TRAINING, offer, quorum=quorum)
        assert isinstance(found, SeenCollector)
        return found

    def lanes(self, site: str, weight: int = 12) -> Lanes:
        """A site's contribution: small ring integers of its own."""
        rng = np.random.default_rng([*site.encode()])
        integers = rng.integers(-300, 300, LAYOUT.size)
        counters = training_counters(weight=weight, loss_sum=3.0, targets=5)
        return Lanes(
            integers.astype(np.int64).view(np.uint64).astype(word_of(16)), counters.vector.astype(word_of(64))
        )

    def seal(self, site: str, offer: Offer, lanes: Lanes | None = None) -> bytes:
        """What the site answers to the server's offer."""
        return self.parties[site].begin(self.signed(offer), BROADCAST, lanes or self.lanes(site))


@pytest.fixture
def world() -> World:
    """Fresh keys."""
    return World()


@pytest.fixture
def alone() -> World:
    """A consortium of one."""
    return World(("a",))
