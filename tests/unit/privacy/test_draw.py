"""The draw of a run's groups: what all of them agree on, and who cannot choose it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardround.core.errors import PeerError, PolicyError, QuorumError
from wardround.privacy.secagg.draw import (
    Agreed,
    Commitments,
    Committed,
    Drawn,
    DrawOffer,
    DrawRelay,
    DrawSite,
    DrawState,
    Groups,
    Shown,
    SignedDraw,
    digest_of,
    groups_of,
)
from wardround.privacy.secagg.identity import KeySigner
from wardround.privacy.secagg.messages import decode, encode
from wardround.privacy.secagg.policy import SecurePolicy

ALLOWED = SecurePolicy(group_strategies=("vote",), least_cohort=4, most_attempts=3)


class Record:
    """Survives what the site object does not, through its bytes."""

    def __init__(self) -> None:
        self.state = DrawState()

    def load(self) -> DrawState:
        return self.state

    def save(self, state: DrawState) -> None:
        self.state = DrawState.model_validate_json(state.model_dump_json())


class Table:
    """All sites of a consortium around one draw."""

    def __init__(self, consortium: Any, size: int = 4, policy: SecurePolicy = ALLOWED) -> None:
        self.consortium, self.size, self.policy = consortium, size, policy
        self.records = {name: Record() for name in consortium.names}
        self.sites: dict[str, DrawSite] = {}
        self.restart()

    def restart(self) -> None:
        """New processes over the old records."""
        self.sites = {
            name: DrawSite(self.consortium.member(name, policy=self.policy), "vote", self.size, record)
            for name, record in self.records.items()
        }

    def signed(self, **changes: Any) -> SignedDraw:
        fields: dict[str, Any] = {
            "run_id": "run", "plan": self.consortium.offer().plan, "roster": self.consortium.roster.digest,
            "sites": self.consortium.names, "size": self.size,
        }  # fmt: skip
        return SignedDraw.by(self.consortium.server, DrawOffer(**(fields | changes)))

    def relay(self, signed: SignedDraw) -> DrawRelay:
        return DrawRelay(signed, self.consortium.roster)

    def to_commitments(self, **changes: Any) -> tuple[DrawRelay, Commitments]:
        relay = self.relay(self.signed(**changes))
        return relay, relay.commitments(
            {name: site.commit(relay.signed) for name, site in self.sites.items()}
        )

    def to_drawn(self, **changes: Any) -> tuple[DrawRelay, Drawn, Groups]:
        relay, commitments = self.to_commitments(**changes)
        drawn, groups = relay.drawn(
            commitments, {name: site.show(commitments) for name, site in self.sites.items()}
        )
        return relay, drawn, groups


@pytest.fixture
def table(consortium: Callable[..., Any]) -> Callable[..., Table]:
    """A table of nine sites by default."""

    def make(sites: int = 9, **options: Any) -> Table:
        return Table(consortium(sites), **options)

    return make


@given(st.integers(3, 60), st.integers(3, 9), st.randoms(use_true_random=False))
def test_groups_are_a_partition_of_like_sizes(sites: int, size: int, random: Any) -> None:
    """Every site once; as many groups as have the least size; a size differs from another by one at most."""
    names = [f"s{i:03}" for i in range(max(sites, size))]
    shown = {name: random.randbytes(32) for name in names}
    groups = groups_of(names, size, shown)
    assert sorted(site for group in groups for site in group) == names
    assert len(groups) == len(names) // size
    sizes = {len(group) for group in groups}
    assert min(sizes) >= size
    assert max(sizes) - min(sizes) <= 1
    assert groups == groups_of(list(reversed(names)), size, shown)
    assert all(list(group) == sorted(group) for group in groups)


def test_every_site_moves_every_other_one() -> None:
    """Where one site alone shows something new, two others are as often together as by chance.

    300 draws; nine sites in three groups of three: a pair shares a group with probability 2/8.
    """
    names = [f"s{i}" for i in range(9)]
    fixed = {name: hashlib.sha256(name.encode()).digest() for name in names}
    together = 0
    for turn in range(300):
        groups = groups_of(
            names, 3, {**fixed, "s8": hashlib.sha256(bytes([turn % 256, turn // 256])).digest()}
        )
        together += any({"s0", "s1"} <= set(group) for group in groups)
    assert 50 < together < 100


def test_all_sites_and_the_relay_find_the_same_groups(table: Callable[..., Table]) -> None:
    """Through the messages as bytes; asked again, and after a restart, a site finds the same ones."""
    at = table()
    _, drawn, groups = at.to_drawn()
    again = decode(encode(drawn), Drawn)
    assert [len(group) for group in groups] == [5, 4]
    for _ in range(2):
        for site in at.sites.values():
            found, agreed = site.agree(again)
            assert found == groups
            assert decode(encode(agreed), Agreed).groups == digest_of(groups)
        at.restart()


def test_the_randomness_is_fresh_for_each_draw(table: Callable[..., Table]) -> None:
    """Another attempt commits to other bytes."""
    at = table()
    _, first = at.to_commitments()
    _, second = at.to_commitments(attempt=1)
    values = [message.commitment for message in (*first.commitments, *second.commitments)]
    assert len(set(values)) == 18
    assert at.records["site_00"].state.attempt == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run_id": "other"}, "another run"),
        ({"plan": b"x" * 32}, "another plan"),
        ({"roster": b"x" * 32}, "another roster"),
        ({"size": 5}, "another group size"),
        ({"sites": ("site_01", "site_00", "site_02", "site_03")}, "not sorted"),
        ({"sites": ("site_00", "site_00", "site_02", "site_03")}, "not sorted"),
        ({"sites": ("site_01", "site_02", "site_03", "site_04")}, "miss this one"),
        ({"sites": ("invented", "site_00", "site_02", "site_03")}, "no confirmed member"),
        ({"sites": ("site_00", "site_01")}, "fewer sites than one group"),
    ],
)
def test_an_offer_that_does_not_follow_is_refused(
    table: Callable[..., Table], change: dict[str, Any], message: str
) -> None:
    """Before anything is committed to."""
    at = table()
    with pytest.raises(PeerError, match=message):
        at.sites["site_00"].commit(at.signed(**change))
    assert at.records["site_00"].state == DrawState()


def test_an_offer_that_the_server_did_not_sign_is_refused(table: Callable[..., Table]) -> None:
    """Whoever else did."""
    at = table()
    with pytest.raises(PeerError, match="signature of 'server'"):
        at.sites["site_00"].commit(SignedDraw.by(KeySigner.fresh(), at.signed().offer))


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (SecurePolicy(least_cohort=4), "does not allow the plan's strategy sums over groups"),
        (SecurePolicy(least_cohort=4, group_strategies=("other",)), "sums over groups"),
        (SecurePolicy(group_strategies=("vote",)), "cohort is smaller"),
        (SecurePolicy(group_strategies=("vote",), least_cohort=4, assumed_colluders=2), "cohort is smaller"),
    ],
)
def test_a_site_takes_part_only_as_its_policy_says(
    table: Callable[..., Table], policy: SecurePolicy, message: str
) -> None:
    """The strategy by its name; and a group is a cohort: its rules hold for each."""
    at = table(policy=policy)
    with pytest.raises(PolicyError, match=message):
        at.sites["site_00"].commit(at.signed())


def test_draws_cannot_be_repeated_at_will(table: Callable[..., Table]) -> None:
    """Neither one that has ended, nor an earlier one, nor more of them than the policy lets through."""
    at = table()
    _, drawn, _ = at.to_drawn(attempt=1)
    site = at.sites["site_00"]
    for attempt in (0, 1):
        with pytest.raises(PeerError, match="drawn already, or this draw has ended"):
            site.commit(at.signed(attempt=attempt))
    with pytest.raises(PolicyError, match="more often"):
        site.commit(at.signed(attempt=3))
    site.agree(drawn)
    with pytest.raises(PeerError, match="drawn already"):
        site.commit(at.signed(attempt=2))
    at.restart()
    with pytest.raises(PeerError, match="drawn already"):
        at.sites["site_00"].commit(at.signed(attempt=2))


def test_other_groups_cannot_follow_the_first_ones(table: Callable[..., Table]) -> None:
    """A draw that ended early is worth nothing once another one counts, and the other way round."""
    at = table()
    _, early, _ = at.to_drawn(attempt=0)
    _, late, _ = at.to_drawn(attempt=1)
    site = at.sites["site_00"]
    with pytest.raises(PeerError, match="another opening of this site"):
        site.agree(early)
    site.agree(late)


def test_without_every_site_nothing_is_drawn(table: Callable[..., Table]) -> None:
    """Whoever could leave one out once the others are known would choose among two draws."""
    at = table()
    relay = at.relay(at.signed())
    found = {name: site.commit(relay.signed) for name, site in at.sites.items() if name != "site_03"}
    with pytest.raises(QuorumError, match="without every site") as caught:
        relay.commitments(found)
    assert "site_03" in str(caught.value)


def altered_commitments(at: Table, commitments: Commitments, how: str) -> Commitments:
    """What a hostile relay may send on."""
    messages = list(commitments.commitments)
    other = messages[3]
    match how:
        case "missing":
            messages.pop(3)
        case "twice":
            messages.append(other)
        case "unsigned":
            messages[3] = other.model_copy(update={"commitment": b"x" * 32})
        case "own":
            forged = Committed(site="site_00", commitment=b"x" * 32)
            signer = at.consortium.signers["site_00"]
            context = at.signed().offer.context
            messages[0] = forged.model_copy(update={"signature": signer.sign(forged.statement(context))})
    return Commitments(commitments=tuple(messages))


@pytest.mark.parametrize("how", ["missing", "twice", "unsigned", "own"])
def test_altered_commitments_are_refused(table: Callable[..., Table], how: str) -> None:
    """Nothing is shown under them."""
    at = table()
    _, commitments = at.to_commitments()
    with pytest.raises(PeerError):
        at.sites["site_00"].show(altered_commitments(at, commitments, how))
    at.sites["site_00"].show(commitments)


def other_commitment(at: Table, site: str) -> Committed:
    """A colluding site's second commitment in the same draw."""
    draft = Committed(site=site, commitment=b"y" * 32)
    statement = draft.statement(at.signed().offer.context)
    return draft.model_copy(update={"signature": at.consortium.signers[site].sign(statement)})


def test_a_site_shows_its_bytes_under_one_set_of_commitments(table: Callable[..., Table]) -> None:
    """A colluding site could otherwise choose its second commitment after it saw what was shown."""
    at = table()
    _, commitments = at.to_commitments()
    at.sites["site_00"].show(commitments)
    second = tuple(
        other_commitment(at, "site_08") if message.site == "site_08" else message
        for message in commitments.commitments
    )
    with pytest.raises(PeerError, match="shown other ones before"):
        at.sites["site_00"].show(Commitments(commitments=second))


def test_two_views_of_the_commitments_never_make_a_draw(table: Callable[..., Table]) -> None:
    """Half of the sites see one commitment of a colluding site, half another: their openings do not fit."""
    at = table()
    relay, commitments = at.to_commitments()
    second = Commitments(
        commitments=tuple(
            other_commitment(at, "site_08") if message.site == "site_08" else message
            for message in commitments.commitments
        )
    )
    shown = {
        name: site.show(second if name in {"site_00", "site_01"} else commitments)
        for name, site in at.sites.items()
    }
    for seen in (commitments, second):
        drawn = Drawn(signed=relay.signed, commitments=seen.commitments, openings=tuple(shown.values()))
        for name in ("site_00", "site_05"):
            with pytest.raises(PeerError, match="not what the site committed to"):
                at.sites[name].agree(drawn)


@pytest.mark.parametrize("how", ["missing", "twice", "other value", "unsigned", "other draw"])
def test_altered_openings_are_refused(table: Callable[..., Table], how: str) -> None:
    """Each has to be what its site committed to, signed, of this draw, and there."""
    at = table()
    _, earlier, _ = at.to_drawn(attempt=0)
    _, drawn, _ = at.to_drawn(attempt=1)
    openings = list(drawn.openings)
    signer = at.consortium.signers["site_03"]
    match how:
        case "missing":
            openings.pop(3)
        case "twice":
            openings.append(openings[3])
        case "unsigned":
            openings[3] = openings[3].model_copy(update={"value": b"x" * 32})
        case "other value":
            forged = Shown(site="site_03", committed=openings[3].committed, value=b"x" * 32)
            statement = forged.statement(drawn.signed.offer.context)
            openings[3] = forged.model_copy(update={"signature": signer.sign(statement)})
        case "other draw":
            openings[3] = earlier.openings[3]
    with pytest.raises(PeerError):
        at.sites["site_00"].agree(drawn.model_copy(update={"openings": tuple(openings)}))
    at.sites["site_00"].agree(drawn)


def test_an_opening_before_its_draw_is_refused(table: Callable[..., Table]) -> None:
    """A site that was not asked to commit shows nothing."""
    at = table()
    _, commitments = at.to_commitments()
    at.restart()
    with pytest.raises(PeerError, match="no draw is under way"):
        at.sites["site_00"].show(commitments)


def test_what_a_site_adds_does_not_stand_in_its_repr() -> None:
    """It is a secret until everybody has committed."""
    assert "value" not in repr(DrawState(attempt=1, value=b"s" * 32))
