"""What the preview says of a phase is as long as what a site says in it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pytest
from toy_plans import toy_plan

from wardround.client.preview.phases import cohort_of, draw_of, phases_of
from wardround.core.packed import Layout, TensorSpec
from wardround.core.plan import DataContract, SecureRules, TrainingPlan
from wardround.privacy.packing import word_of
from wardround.privacy.sealed import public_key
from wardround.privacy.secagg.admission import Member, SiteState
from wardround.privacy.secagg.draw import Agreed, Committed, Shown
from wardround.privacy.secagg.dummy import TrustingRoster
from wardround.privacy.secagg.identity import KeySigner, Roster
from wardround.privacy.secagg.messages import NO_HEAD, encode
from wardround.privacy.secagg.offer import Offer
from wardround.privacy.secagg.policy import SecurePolicy
from wardround.privacy.secagg.secret import Secret
from wardround.privacy.sums.aggregation import Aggregation, party
from wardround.privacy.sums.contract import EVALUATION, TRAINING, Lanes
from wardround.privacy.sums.offers import offer_of, run_of
from wardround.privacy.sums.trusted import Aggregator

STATISTICS = Layout(tensors=(TensorSpec(name="w", shape=(7, 3)),))
BROADCAST = bytes(32)


class Memory:
    """A record that is gone with the process."""

    def __init__(self) -> None:
        self.state = SiteState()

    def load(self) -> SiteState:
        """The last one."""
        return self.state

    def save(self, state: SiteState) -> None:
        """Keep it."""
        self.state = state


class Full:
    """Heads as long as a real site's are, whether or not there is anything in them."""

    def own(self) -> bytes:
        """None."""
        return NO_HEAD

    def kept(self, sites: Collection[str]) -> dict[str, bytes]:
        """Of each."""
        return dict.fromkeys(sites, NO_HEAD)

    def keep(self, heads: Mapping[str, bytes]) -> None:
        """Nothing."""

    def returned(self, heads: Mapping[str, bytes]) -> None:
        """Nothing."""


def said(
    plan: TrainingPlan, name: str, sites: tuple[str, ...], aggregator: Aggregator | None
) -> tuple[Offer, dict[str, list[bytes]]]:
    """The offer, and every message of every site in a sum: site → in order."""
    keys, server = {site: KeySigner.fresh() for site in sites}, KeySigner.fresh()
    trusting = plan.secure.mode == "accounted"
    roster = (TrustingRoster if trusting else Roster)({site: key.public for site, key in keys.items()})
    policy = SecurePolicy(
        modes=("real", "off", "trusted", "accounted"), least_cohort=3, least_honest=2, most_exposure=1.0,
        assumed_colluders=0, colluding_share=0.0, aggregator=aggregator.public.hex() if aggregator else None,
    )  # fmt: skip
    offer = offer_of(
        plan, name=name, run_id="run", round=1, stage=0, attempt=0, cohort=sites, roster=roster.digest,
        broadcast=BROADCAST, statistics=STATISTICS,
    )  # fmt: skip
    aggregation = Aggregation(plan.secure.mode, server, roster, aggregator)
    collector = aggregation.collector(name, offer, quorum=2)
    run, digest = run_of("run", name), bytes.fromhex(plan.digest)
    parties = {
        site: party(
            plan.secure,
            Member(
                site,
                key,
                roster,
                server.public,
                policy,
                run,
                digest,
                Memory(),
                heads=Full(),
            ),
        )
        for site, key in keys.items()
    }
    lanes = Lanes(np.zeros(offer.coordinates, word_of(offer.bits)), np.ones(offer.counters, word_of(64)))
    answers: dict[str, list[bytes]] = {site: [] for site in sites}
    sent, first = collector.begin(), True
    while sent:
        for site, message in sent.items():
            at = parties[site]
            answers[site].append(at.begin(message, BROADCAST, lanes) if first else at.step(message))
            collector.take(site, answers[site][-1])
        sent, first = collector.close(), False
    return offer, answers


@pytest.mark.parametrize("name", [TRAINING, EVALUATION])
@pytest.mark.parametrize("mode", ["real", "accounted", "off", "trusted"])
@pytest.mark.parametrize("complete_to", [100, 4])
def test_every_phase_is_as_long_as_said(name: str, mode: str, complete_to: int) -> None:
    """In complete and in regular graphs, under every kind of aggregation."""
    sites = ("aachen", "basel", "cork", "delft", "emden", "reykjavík", "östersund")
    if complete_to < len(sites):  # its neighbours are drawn: the preview takes the longest names
        sites = tuple(f"site {number}" for number in range(7))
    aggregator = Aggregator(Secret(bytes(range(32)))) if mode == "trusted" else None
    secure: dict[str, Any] = {
        "mode": mode, "complete_to": complete_to, "degree": 4, "share_threshold": 3, "threshold": 6,
        "aggregator": None if aggregator is None else public_key(aggregator.key).hex(),
    }  # fmt: skip
    plan = toy_plan(
        secure=SecureRules(**secure), data=DataContract(columns={"text": "t"}, labels=("mild", "severe"))
    )
    offer, answers = said(plan, name, sites, aggregator)
    for site in sites:
        foretold = phases_of(plan, offer, site)
        assert [len(message) for _, message in foretold] == [len(message) for message in answers[site]]


def test_a_site_says_as_much_in_the_draw_of_the_groups() -> None:
    """Whatever it draws."""
    drawn = [
        Committed(site="basel", commitment=bytes(range(32)), signature=bytes(64)),
        Shown(site="basel", committed=bytes(range(32)), value=bytes(range(32))),
        Agreed(site="basel", groups=bytes(range(32))),
    ]
    assert [len(message) for _, message in draw_of("basel")] == [len(encode(message)) for message in drawn]
    assert [name for name, _ in draw_of("basel")] == [message.KIND for message in drawn]


def test_a_cohort_has_the_longest_names() -> None:
    """So that no other says more; this site is in it, and it is sorted."""
    members = ["aa", "a-long-name", "bbb", "me"]
    assert cohort_of("me", members, 3) == ("a-long-name", "bbb", "me")
    assert cohort_of("me", members, 9) == ("a-long-name", "aa", "bbb", "me")
