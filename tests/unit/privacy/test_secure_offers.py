"""What a site refuses before it makes a key: offers that do not protect it, or change what was fixed."""

from __future__ import annotations

from typing import Any

import pytest

from wardround.core.errors import PeerError, PolicyError
from wardround.privacy.secagg.hashing import digest
from wardround.privacy.secagg.identity import KeySigner, Roster
from wardround.privacy.secagg.messages import (
    Advertised,
)
from wardround.privacy.secagg.offer import SignedOffer
from wardround.privacy.secagg.policy import SecurePolicy
from wardround.privacy.secagg.relay import Relay

BROADCAST = digest("broadcast")
A, B, C = "site_00", "site_01", "site_02"


@pytest.mark.parametrize("threshold", [2, 3, 4])
def test_a_lowered_threshold_is_refused(consortium: Any, threshold: int) -> None:
    """With n = 7 it is 5."""
    group = consortium(7)
    with pytest.raises(PolicyError, match="threshold"):
        group.advertise(A, group.offer(threshold=threshold))


@pytest.mark.parametrize(
    ("size", "colluders", "fits"), [(5, 1, True), (5, 2, True), (5, 3, False), (9, 4, True), (9, 5, False)]
)
def test_the_threshold_has_to_hold_against_the_assumed_colluders(
    consortium: Any, size: int, colluders: int, fits: bool
) -> None:
    """At most 2t − n − 1 of them: two sets take t confirmations each, and an honest site gives one."""
    policy = SecurePolicy(assumed_colluders=colluders, least_honest=2)
    # t = ⌊2n/3⌋ + 1 tolerates 2t − n − 1; the relay may offer a higher one.
    for threshold in range(2 * size // 3 + 1, size + 1):
        fresh = consortium(size, policy)
        if colluders <= 2 * threshold - size - 1 and size >= 2 + colluders:
            fresh.advertise(A, fresh.offer(threshold=threshold))
        else:
            with pytest.raises(PolicyError):
                fresh.advertise(A, fresh.offer(threshold=threshold))
    at_default = consortium(size, policy)
    if fits:
        at_default.advertise(A, at_default.offer())
    else:
        with pytest.raises(PolicyError, match="colluders"):
            at_default.advertise(A, at_default.offer())


def test_a_cohort_below_the_policy_is_refused(consortium: Any) -> None:
    """Four sites where five are asked for, or fewer than h + m."""
    group = consortium(8)
    for cohort in (group.names[:4], group.names[:3]):
        with pytest.raises(PolicyError, match="cohort is smaller"):
            group.advertise(A, group.offer(cohort=cohort, threshold=3))
    strict = consortium(6, SecurePolicy(assumed_colluders=1, least_honest=6))
    with pytest.raises(PolicyError, match="at least 7"):
        strict.advertise(A, strict.offer())


def test_seven_of_ten_and_then_the_other_three(consortium: Any) -> None:
    """Attempt 0 opens with seven; attempt 1 offers the other three a cohort of their own: refused."""
    group = consortium(10, SecurePolicy(least_cohort=3, least_honest=2))
    offer = group.offer()
    left_out = group.names[7:]
    total = group.run(offer, dict.fromkeys(left_out, "mask"))
    assert total.survivors == group.names[:7]
    for cohort, threshold in ((left_out, 3), (group.names[5:], 4)):
        with pytest.raises(PeerError, match="changes the cohort or the threshold"):
            group.advertise(
                left_out[0], group.offer(attempt=1, cohort=cohort, threshold=threshold), BROADCAST
            )
    # Even with the same cohort the seven that opened the sum do not help to open another of this round.
    with pytest.raises(PeerError, match="opened already"):
        group.advertise(A, group.offer(attempt=1))


def test_what_the_first_offer_fixed_stays(consortium: Any) -> None:
    """Later attempts change their number and nothing else; also after a restart of the site."""
    group = consortium(8)
    group.to_advertised(group.offer())
    group.restart()
    for change in (
        {"threshold": 7}, {"cohort": group.names[:7], "threshold": 6}, {"scale": 4.0}, {"bits": 32},
        {"coordinates": 19}, {"layout": digest("other")}, {"most_count": 5}, {"largest": 9.0},
    ):  # fmt: skip
        with pytest.raises(PeerError, match="changes"):
            group.advertise(A, group.offer(attempt=1, **change))
    group.advertise(A, group.offer(attempt=1))


def test_a_replayed_offer_is_refused(consortium: Any) -> None:
    """Round, stage and attempt only grow, over restarts; refused offers change nothing."""
    group = consortium()
    group.run(group.offer(round=3))
    group.run(group.offer(round=4))
    group.restart()
    for place in ({"round": 4}, {"round": 3, "attempt": 5}, {"round": 1}, {"round": 4, "attempt": 0}):
        with pytest.raises(PeerError, match="not newer"):
            group.advertise(A, group.offer(**place))
    with pytest.raises(PeerError, match="opened already"):
        group.advertise(A, group.offer(round=4, attempt=1))
    with pytest.raises(PeerError, match="in its middle"):
        group.advertise(A, group.offer(round=5, stage=1))
    with pytest.raises(PolicyError, match="more often"):
        group.advertise(A, group.offer(round=5, attempt=10))
    group.run(group.offer(round=5))


def test_a_second_stage_has_the_survivors_of_the_first(consortium: Any) -> None:
    """Others, or fewer, would show a difference; skipping a stage is refused."""
    group = consortium(7)
    group.run(group.offer(), {C: "mask"})
    with pytest.raises(PeerError, match="skips a stage"):
        group.advertise(A, group.offer(stage=2))
    with pytest.raises(PeerError, match="survivors of a later stage"):
        group.run(group.offer(stage=1), {C: "advertise", B: "mask"})
    with pytest.raises(PeerError, match="skips a stage"):  # the site that was lost, asked again
        group.run(group.offer(stage=1, attempt=1))
    total = group.run(group.offer(stage=1, attempt=2), {C: "advertise"})
    assert total.survivors == tuple(name for name in group.names if name != C)


def test_an_invented_member_does_not_count(consortium: Any) -> None:
    """A newer roster that this site's people have not confirmed; or a stranger in the cohort."""
    group = consortium()
    invented = Roster({**group.roster.keys, "site_99": KeySigner.fresh().public})
    with pytest.raises(PeerError, match="another roster"):
        group.advertise(A, group.offer(roster=invented.digest))
    with pytest.raises(PeerError, match="no confirmed member"):
        group.advertise(A, group.offer(cohort=(*group.names, "site_99")))
    with pytest.raises(PeerError, match="misses this one"):
        group.advertise(A, group.offer(cohort=group.names[1:], threshold=4))


def test_another_plan_run_or_broadcast_is_refused(consortium: Any) -> None:
    """The digest has to be that of what the site approved, and of what it was really sent."""
    group = consortium()
    for change in ({"plan": digest("x")}, {"run_id": "other"}, {"broadcast": digest("x")}):
        with pytest.raises(PeerError, match="names another"):
            group.advertise(A, group.offer(**change))
    with pytest.raises(PeerError, match="another broadcast"):
        group.advertise(A, group.offer(), digest("a known update"))


def test_different_broadcasts_to_different_sites_never_meet_in_a_sum(consortium: Any) -> None:
    """The real adapter to one, a known one to the others, each with an offer that fits: contexts differ."""
    group = consortium()
    true, false = group.offer(), group.offer(broadcast=digest("a known update"))
    own = group.advertise(A, true)
    others = [group.advertise(name, false, digest("a known update")) for name in group.names[1:]]
    with pytest.raises(PeerError, match="signature"):
        group.sites[A].deal(Advertised(advertisements=(own, *others)))
    with pytest.raises(PeerError, match="signature"):
        group.sites[B].deal(Advertised(advertisements=(own, *others)))


@pytest.mark.parametrize(
    "change",
    [
        {"scale": 1e6},
        {"largest": 1e5},
        {"most_weight": 2**20},
        {"most_count": 2**61},
        {"bits": 16, "scale": 700.0},
    ],
)
def test_a_ring_that_could_overflow_is_refused(consortium: Any, change: dict[str, Any]) -> None:
    """By whoever reads the offer, the relay included."""
    group = consortium()
    with pytest.raises(PeerError, match="overflow"):
        group.advertise(A, group.offer(**change))
    with pytest.raises(PeerError, match="overflow"):
        Relay(group.offer(**change), group.roster)


@pytest.mark.parametrize(("degree", "share_threshold"), [(2, 2), (8, 4), (50, 26), (100, 40)])
def test_a_weak_graph_is_refused(consortium: Any, degree: int, share_threshold: int) -> None:
    """Fewer neighbours, or a lower share of them, than the policy's."""
    group = consortium(120)
    name = group.names[0]
    with pytest.raises(PolicyError, match="graph of the cohort is weaker"):
        group.advertise(
            name, group.offer(degree=degree, share_threshold=share_threshold, scale=2.0), BROADCAST
        )


def test_an_offer_that_the_server_did_not_sign_is_refused(consortium: Any) -> None:
    """Nor one that was altered after it was signed."""
    group = consortium()
    offer = group.offer()
    stranger = SignedOffer.by(KeySigner.fresh(), offer)
    with pytest.raises(PeerError, match="signature of 'the server'"):
        group.sites[A].advertise(stranger, BROADCAST)
    signed = SignedOffer.by(group.server, offer)
    with pytest.raises(PeerError, match="signature of 'the server'"):
        group.sites[A].advertise(signed.model_copy(update={"offer": group.offer(round=2)}), BROADCAST)
    assert group.records[A].state.place == (0, 0, 0)
    group.sites[A].advertise(signed, BROADCAST)


def test_a_copy_of_an_offer_has_its_own_digests(consortium: Any) -> None:
    """Whatever was computed of the original before."""
    group = consortium()
    offer = group.offer()
    for digest_of in ("context", "terms", "members"):
        before = getattr(offer, digest_of)
        for change in ({"attempt": 1}, {"threshold": offer.threshold - 1}, {"cohort": offer.cohort[1:]}):
            afresh = group.offer(**change)
            assert getattr(offer.model_copy(update=change), digest_of) == getattr(afresh, digest_of)
        assert getattr(offer, digest_of) == before
    assert offer == group.offer()
    assert offer.model_copy(update={"cohort": offer.cohort[1:]}).index_of(offer.cohort[1]) == 1
