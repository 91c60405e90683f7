"""What a site refuses before it seals anything, and what its aggregator refuses to open."""

from __future__ import annotations

from typing import Any

import pytest

from wardround.core.errors import ConfigError, PeerError, PolicyError
from wardround.core.plan import SecureRules
from wardround.privacy.secagg.hashing import digest
from wardround.privacy.secagg.identity import KeySigner
from wardround.privacy.secagg.policy import SecurePolicy
from wardround.privacy.secagg.secret import Secret
from wardround.privacy.sums.offers import check_sites
from wardround.privacy.sums.trusted import Aggregator, header_of

# The site's policy.


def test_the_default_policy_takes_no_trusted_aggregator(world: Any) -> None:
    """Nor is a pinned key enough, nor the mode: a site's people write both."""
    for policy in (SecurePolicy(), SecurePolicy(aggregator=world.key)):
        with pytest.raises(PolicyError, match=r"(?s)secure\.mode=trusted.*one of real.*site's own policy"):
            world.restarted("a", policy)
    with pytest.raises(PolicyError, match=r"(?s)does not trust.*pinned none.*then pin it: aggregator in the"):
        world.restarted("a", SecurePolicy(modes=("trusted",)))
    world.restarted("a", SecurePolicy(modes=("trusted",), aggregator=world.key))


def test_a_plan_that_names_another_aggregator_than_the_pinned_one_is_refused(world: Any) -> None:
    """Both keys are in the message: they are public, and people compare them."""
    other = Aggregator(Secret.fresh()).public.hex()
    with pytest.raises(PolicyError, match=f"(?s){other}.*{world.key}.*compare the key"):
        world.restarted("a", plan=world.plan_of(other))
    with pytest.raises(PolicyError, match=f"(?s){world.key}.*{other}"):
        world.restarted("a", world.policy(aggregator=other))


def test_a_trusted_aggregator_is_refused_before_a_model_is_loaded(world: Any) -> None:
    """By mode or key; a cohort of any size passes, since a contribution hides among nobody."""
    for policy in (SecurePolicy(), world.policy(aggregator="0f" * 32)):
        with pytest.raises(PolicyError):
            check_sites(world.plan.secure, world.plan.encoding, policy, sites=9, cohort=9)
    check_sites(world.plan.secure, world.plan.encoding, world.policy(), sites=1, cohort=1)


def test_other_modes_name_no_aggregator(world: Any) -> None:
    """A site that pinned one goes on to take part in other modes, without it."""
    policy = world.policy()
    policy.check_mode("real")
    with pytest.raises(PolicyError, match=r"secure\.mode=off"):
        policy.check_mode("off")
    assert SecureRules().aggregator is None


# The offer.

ALTERED: dict[str, tuple[dict[str, Any], str]] = {
    "plan": ({"plan": digest("other")}, "another plan"),
    "roster": ({"roster": digest("other")}, "another roster"),
    "broadcast": ({"broadcast": digest("other")}, "another broadcast"),
    "run": ({"run_id": "run/evaluation"}, "another run"),
    "stranger": ({"cohort": ("a", "b", "z")}, "no confirmed member"),
    "without it": ({"cohort": ("b", "c"), "threshold": 2}, "no confirmed member"),
    "middle": ({"stage": 1}, "in its middle"),
    "too long": ({"coordinates": 2**31}, "too long to be sealed|could overflow"),
}


@pytest.mark.parametrize("kind", ALTERED)
def test_an_offer_that_does_not_follow_is_refused_and_nothing_is_remembered(world: Any, kind: str) -> None:
    """Though the server signed it."""
    changes, reason = ALTERED[kind]
    signed = world.signed(world.offer(**changes))
    before = world.disks["a"].state
    for call in (
        lambda: world.parties["a"].check(signed, world.broadcast),
        lambda: world.parties["a"].begin(signed, world.broadcast, world.lanes("a")),
    ):
        with pytest.raises(PeerError, match=reason):
            call()
    assert world.disks["a"].state == before
    assert world.seal("a", world.offer())


def test_an_offer_that_the_server_did_not_sign_is_refused(world: Any) -> None:
    """A member is no server."""
    with pytest.raises(PeerError, match="signature of 'the server'"):
        world.parties["a"].check(world.signed(world.offer(), world.signers["b"]), world.broadcast)


def test_a_site_seals_once_for_a_place_also_after_a_restart(world: Any) -> None:
    """Round, stage and attempt only grow; what was accepted is durable before the envelope leaves."""
    world.seal("a", world.offer(round=2))
    world.parties["a"] = world.restarted("a")
    for place in ({"round": 2}, {"round": 1}, {"round": 1, "attempt": 5}):
        with pytest.raises(PeerError, match="not newer than the last one"):
            world.seal("a", world.offer(**place))
    assert world.disks["a"].state.place == (2, 0, 0)
    for place in ({"round": 2, "attempt": 1}, {"round": 2, "stage": 1}, {"round": 3}):
        world.seal("a", world.offer(**place))


def test_a_later_attempt_changes_nothing_but_its_number(world: Any) -> None:
    """What is kept was scaled for that cohort; a stage that was never offered is not skipped to."""
    world.seal("a", world.offer())
    for changes, reason in (
        ({"attempt": 1, "cohort": ("a", "b"), "threshold": 2}, "changes the cohort"),
        ({"attempt": 1, "threshold": 2}, "changes the cohort or the threshold"),
        ({"attempt": 1, "scale": 1.0}, "changes what the first one fixed"),
        ({"stage": 2}, "skips a stage"),
        ({"attempt": 10}, "more often than"),
    ):
        with pytest.raises((PeerError, PolicyError), match=reason):
            world.parties["a"].check(world.signed(world.offer(**changes)), world.broadcast)
    world.seal("a", world.offer(attempt=1))


def test_there_is_no_other_phase(world: Any) -> None:
    """Whatever the server sends after an envelope."""
    with pytest.raises(PeerError, match="does not have"):
        world.parties["a"].step(b"")
    assert world.parties["a"].confirmed(1) == {}


# The envelope.


def test_every_altered_byte_is_refused_and_the_site_is_named(world: Any) -> None:
    """One bit anywhere: nothing is added, nothing is remembered of it, the honest envelope still counts."""
    offer = world.offer()
    honest = world.seal("a", offer)
    step = max(1, len(honest) // 300)
    for place in [*range(0, len(honest), step), len(honest) - 1]:
        collector, altered = world.collector(offer), bytearray(honest)
        altered[place] ^= 1
        with pytest.raises(PeerError):
            collector.take("a", bytes(altered))
        assert collector.open().survivors == ()
    collector, altered = world.collector(offer), bytearray(honest)
    altered[-1] ^= 1
    with pytest.raises(PeerError, match="signature of 'a'"):
        collector.take("a", bytes(altered))
    world.collector(offer).take("a", honest)


def test_an_envelope_counts_once_in_an_attempt(world: Any) -> None:
    """The relay shows it twice: the second is refused by name."""
    offer = world.offer()
    collector = world.collector(offer)
    message = world.seal("a", offer)
    collector.take("a", message)
    with pytest.raises(PeerError, match=r"(?s)twice.*found: a"):
        collector.take("a", message)
    assert collector.open().survivors == ("a",)


def test_another_sites_envelope_is_refused(world: Any) -> None:
    """As it is, or signed by the other for itself."""
    offer = world.offer()
    collector, message = world.collector(offer), world.seal("b", offer)
    with pytest.raises(PeerError, match=r"(?s)found: site 'b'.*expected: site 'a'"):
        collector.take("a", message)
    collector.take("b", message)
    world.signers["c"] = KeySigner.fresh()
    world.parties["c"] = world.restarted("c")
    with pytest.raises(PeerError, match="signature of 'c'"):
        collector.take("c", world.seal("c", offer))


@pytest.mark.parametrize(
    "later", [{"attempt": 1}, {"stage": 1}, {"round": 2}, {"round": 2, "attempt": 1}], ids=str
)
def test_an_envelope_of_another_place_is_refused(world: Any, later: dict[str, int]) -> None:
    """The relay keeps it, and shows it in a later round, stage or attempt; or the other way round."""
    first = world.offer()
    old = world.seal("a", first)
    name = min(later, key=["round", "stage", "attempt"].index)
    with pytest.raises(PeerError, match=f"(?s)another context.*expected: .*{name}"):
        world.collector(world.offer(**later)).take("a", old)
    new = world.seal("a", world.offer(**later))
    with pytest.raises(PeerError, match="another context"):
        world.collector(first).take("a", new)


def test_an_envelope_under_another_offer_of_the_same_place_is_refused(world: Any) -> None:
    """Whoever holds the server's signing key could show sites two cohorts, and so two scales."""
    other = world.offer(cohort=("a", "b"), threshold=2, scale=world.offer().scale * 1.4)
    with pytest.raises(PeerError, match=r"(?s)another context.*found: offer "):
        world.collector(world.offer()).take("a", world.seal("a", other))


def test_an_aggregator_with_another_key_opens_nothing(world: Any) -> None:
    """Sites seal to the key that they pinned."""
    offer = world.offer()
    message = world.seal("a", offer)
    other = Aggregator(Secret.fresh())
    with pytest.raises(PeerError, match=r"(?s)another context.*aggregator"):
        other.reader(offer, world.roster)("a", message)
    assert header_of(offer, "a", other.public).aggregator != header_of(offer, "a", bytes.fromhex(world.key))


def test_a_pinned_key_that_opens_to_anybody_is_refused(world: Any) -> None:
    """A key of low order: its shared secret is known to all."""
    low = "00" * 32
    party = world.restarted("a", world.policy(aggregator=low), world.plan_of(low))
    offer = world.offer(plan=bytes.fromhex(world.plan_of(low).digest))
    with pytest.raises(PeerError, match="nothing can be sealed"):
        party.begin(world.signed(offer), world.broadcast, world.lanes("a"))


def test_a_plan_without_an_aggregator_is_no_plan(world: Any) -> None:
    """In the words of the configuration."""
    text = world.plan.canonical().replace(f'"{world.key}"'.encode(), b"null")
    with pytest.raises(ConfigError, match="needs the aggregator's public key"):
        type(world.plan).parse(text)
