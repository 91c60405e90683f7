"""Rosters: what one may hold, and which of two counts."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from members import NOW, next_roster, roster_document, roster_member
from pydantic import ValidationError

from wardround.core.errors import PeerError
from wardround.runtime.roster import (
    ROSTER,
    SERVER,
    SKEW,
    Expiring,
    RosterMember,
    ServerCertificate,
    expiring,
    host_and_port,
    newer,
    read_certificate,
    read_roster,
)
from wardround.runtime.signed import sign_document

FIRST = roster_document("aachen", "bonn")
IDENTITY = Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex()


def test_the_next_version_takes_the_place_of_the_pinned_one() -> None:
    """And so does a later one that skips some; the same one again changes nothing."""
    second = next_roster(FIRST, members=FIRST.members[:1])
    third = next_roster(second)
    assert newer(FIRST, second)
    assert newer(FIRST, third)
    assert not newer(second, second)


def test_an_older_roster_is_refused() -> None:
    """Whatever it says."""
    with pytest.raises(PeerError, match="older than the pinned one"):
        newer(next_roster(FIRST), FIRST)


def test_two_rosters_of_one_version_are_refused() -> None:
    """Equivocation is named as such."""
    with pytest.raises(PeerError, match="contradict each other"):
        newer(FIRST, roster_document("aachen", "cologne"))


def test_a_next_version_of_another_former_one_is_refused() -> None:
    """The chain has to go through the pinned roster."""
    with pytest.raises(PeerError, match="contradict each other"):
        newer(FIRST, next_roster(roster_document("aachen")))


def test_another_consortiums_roster_is_refused() -> None:
    """Though it may be of a later version."""
    with pytest.raises(PeerError, match="another consortium"):
        newer(FIRST, next_roster(FIRST, consortium="southern cross"))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"version": 0}, "greater than or equal to 1"),
        ({"version": 2}, "no other, has no former"),
        ({"previous": "0" * 64}, "no other, has no former"),
        ({"issued": NOW.replace(tzinfo=None)}, "timezone"),
        ({"issued": NOW.replace(year=2200)}, "between the years"),
        ({"members": FIRST.members[::-1]}, "sorted by name"),
        ({"members": FIRST.members[:1] * 2}, "sorted by name"),
        ({"members": (roster_member("Bonn"), roster_member("bonn"))}, "share a name or a key"),
        (
            {"members": (FIRST.members[0], roster_member("b", identity=FIRST.members[0].identity))},
            "share a name or a key",
        ),
        (
            {"members": (FIRST.members[0], roster_member("b", transport=FIRST.members[0].transport))},
            "share a name or a key",
        ),
    ],
)
def test_a_roster_that_contradicts_itself_is_none(changes: dict[str, Any], fault: str) -> None:
    """Its faults are found wherever it is made or read."""
    with pytest.raises(ValidationError, match=fault):
        roster_document(**changes)


@pytest.mark.parametrize(
    "changes",
    [{"transport": "02" + "00" * 47 + "05"}, {"transport": "04" * 49}, {"identity": "00"}, {"site": "../up"}],
)
def test_a_member_without_real_keys_is_none(changes: dict[str, Any]) -> None:
    """A point off the curve, another length, a name that leaves its folder."""
    fields = roster_member("aachen").model_dump() | changes
    with pytest.raises(ValidationError):
        RosterMember(**fields)


def test_the_roster_of_secure_aggregation_has_names_and_identity_keys() -> None:
    """Whoever has expired is left out where a moment is named, 15 minutes allowed."""
    ending = roster_member("cologne", expires=NOW)
    document = roster_document(members=(*FIRST.members, ending))
    assert set(document.roster().keys) == {"aachen", "bonn", "cologne"}
    assert set(document.roster(NOW + SKEW).keys) == {"aachen", "bonn", "cologne"}
    assert set(document.roster(NOW + SKEW + timedelta(seconds=1)).keys) == {"aachen", "bonn"}
    assert document.roster().keys["aachen"].hex() == FIRST.members[0].identity


def test_every_field_moves_the_digest() -> None:
    """Also transport keys, dates and the version."""
    changed = FIRST.members[0].model_copy(update={"transport": roster_member("x").transport})
    documents = [
        FIRST, next_roster(FIRST),
        FIRST.model_copy(update={"issued": NOW + timedelta(seconds=1)}),
        FIRST.model_copy(update={"members": (changed, *FIRST.members[1:])}),
        FIRST.model_copy(update={"consortium": "southern cross"}),
    ]  # fmt: skip
    assert len({document.digest for document in documents}) == len(documents)


def test_a_signed_roster_and_a_certificate_are_read_under_the_pinned_key() -> None:
    """And neither is taken for the other."""
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    certificate = ServerCertificate(
        consortium="northern lights", identity=IDENTITY, address="server.example:9443", issued=NOW,
        expires=NOW + timedelta(days=30),
    )  # fmt: skip
    roster, server = sign_document(ROSTER, FIRST, key), sign_document(SERVER, certificate, key)
    assert read_roster(roster, public) == FIRST
    assert read_roster(roster, public).digest == FIRST.digest
    assert read_certificate(server, public) == certificate
    with pytest.raises(PeerError, match="another kind"):
        read_roster(server, public)


@pytest.mark.parametrize(
    ("minutes", "refused"), [(0, False), (-10, False), (30 * 24 * 60 + 10, False), (-16, True), (43216, True)]
)
def test_a_clock_off_by_ten_minutes_refuses_nothing(minutes: int, refused: bool) -> None:
    """By more than 15 minutes it does, at either end."""
    certificate = ServerCertificate(
        consortium="northern lights", identity=IDENTITY, address="[::1]:9443", issued=NOW,
        expires=NOW + timedelta(days=30),
    )  # fmt: skip
    moment = NOW + timedelta(minutes=minutes)
    if not refused:
        certificate.check(moment)
        return
    with pytest.raises(PeerError, match=r"has expired|from the future"):
        certificate.check(moment)


def test_what_expires_soon_is_a_value() -> None:
    """The first one first, what has expired among them."""
    ends = [Expiring(str(day), NOW + timedelta(days=day)) for day in (40, 3, -1, 30)]
    assert [end.what for end in expiring(ends, NOW, 30)] == ["-1", "3", "30"]
    assert ends[1].text(NOW) == "3 expires on 2026-11-04 12:00 UTC, in 3 days"
    assert "expired on" in ends[2].text(NOW)


@pytest.mark.parametrize("address", ["server.example:9443", "127.0.0.1:1", "[::1]:65535"])
def test_an_address_is_a_host_and_a_port(address: str) -> None:
    """An IPv6 address loses its brackets."""
    host, port = host_and_port(address)
    assert (host, port) == (address.rpartition(":")[0].strip("[]"), int(address.rpartition(":")[2]))


@given(st.one_of(st.text(max_size=20), st.sampled_from(["::1:9", "a:0", "a:65536", "a:\u0661", "a b:1"])))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    """With a ValueError, which a model turns into its fault."""
    try:
        host, port = host_and_port(text)
    except ValueError:
        return
    assert host
    assert 0 < port < 65536
