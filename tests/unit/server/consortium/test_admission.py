"""Invite, admit, revoke, rotate: one request for each invitation, and nobody who did not prove its keys."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from members import NOW, Practice, altered, transport_key

from wardround.client.membership.rotation import rotate
from wardround.client.membership.site_folder import open_site_folder
from wardround.core.errors import ConfigError, PeerError, StorageError
from wardround.privacy.secagg.secret import Secret
from wardround.runtime.membership import JOIN, JoinRequest, read_join, read_rotation, sign_join
from wardround.runtime.small_files import read_identity, read_transport, transport_point
from wardround.server.consortium.admission import admit, revoke, rotate_site
from wardround.server.consortium.operator_folder import open_operator_folder
from wardround.server.consortium.overview import overview

IDENTITY, TRANSPORT = Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())


@pytest.fixture
def practice(tmp_path: Path) -> Practice:
    """A consortium that has invited Aachen, which has joined."""
    made = Practice(tmp_path).make()
    made.invite("aachen")
    made.join("aachen")
    return made


def forged(practice: Practice, **changes: Any) -> bytes:
    """A request with other fields than Aachen's, signed by keys of its own."""
    asked = read_join(practice.request("aachen")).model_dump() | {
        "identity": IDENTITY.public_key().public_bytes_raw().hex(),
        "transport": transport_point(TRANSPORT.public_key()),
    }
    return sign_join(JoinRequest(**(asked | changes)), IDENTITY, TRANSPORT)


def test_a_site_that_was_invited_becomes_a_member(practice: Practice) -> None:
    """The next roster has its keys, lies with the server as well, and the log says so."""
    changed = practice.admit("aachen")
    asked = read_join(practice.request("aachen"))
    (member,) = practice.roster().members
    assert (member.site, member.identity, member.transport) == ("aachen", asked.identity, asked.transport)
    assert practice.roster() == changed.roster
    assert practice.roster().version == 2
    assert (practice.operator / "server" / "roster.json").read_bytes() == practice.signed_roster()
    assert [line["event"] for line in practice.log()] == ["made", "invited", "admitted"]


def test_the_same_request_once_more_changes_nothing(practice: Practice) -> None:
    """A rerun says that it is done already."""
    practice.admit("aachen")
    before = practice.signed_roster()
    assert practice.admit("aachen").already
    assert practice.signed_roster() == before
    assert len(practice.log()) == 3


def test_an_invitation_is_used_once(practice: Practice) -> None:
    """Whoever copied the file comes too late; also after the member was revoked."""
    practice.admit("aachen")
    with pytest.raises(PeerError, match="was used"):
        admit(practice.operator, forged(practice), NOW)
    revoke(practice.operator, "aachen", NOW)
    for request in (forged(practice), practice.request("aachen")):
        with pytest.raises(PeerError, match="was used"):
            admit(practice.operator, request, NOW)
    assert practice.roster().members == ()


def test_an_expired_invitation_is_refused(practice: Practice) -> None:
    """After fourteen days and fifteen minutes; a clock that is off by ten minutes does no harm."""
    end = NOW + timedelta(days=14)
    with pytest.raises(PeerError, match="has expired"):
        practice.admit("aachen", now=end + timedelta(minutes=16))
    assert practice.admit("aachen", now=end + timedelta(minutes=10)).roster.version == 2


def test_an_invitation_is_for_one_site(practice: Practice) -> None:
    """Another name is refused, though the keys are right."""
    with pytest.raises(PeerError, match="another site's"):
        admit(practice.operator, forged(practice, site="bonn"), NOW)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"nonce": "0" * 64}, "nobody was invited"),
        ({"consortium": "0" * 64}, "another consortium"),
        ({"issued": NOW + timedelta(minutes=16)}, "from the future"),
    ],
)
def test_a_request_that_answers_no_invitation_is_refused(
    practice: Practice, changes: dict[str, Any], fault: str
) -> None:
    """An unknown nonce, another consortium, another time; a clock ahead by ten minutes is none."""
    with pytest.raises(PeerError, match=fault):
        admit(practice.operator, forged(practice, **changes), NOW)
    ahead = forged(practice, issued=NOW + timedelta(minutes=10))
    assert admit(practice.operator, ahead, NOW).roster.version == 2


def test_a_newer_invitation_withdraws_the_older_one(practice: Practice) -> None:
    """A lost file is worth nothing once another was written."""
    practice.invite("aachen")
    with pytest.raises(PeerError, match="was withdrawn"):
        practice.admit("aachen")
    assert [line.get("withdrawn") for line in practice.log()] == [None, 0, 1]


def test_revoking_withdraws_what_is_open(practice: Practice) -> None:
    """An invitation can be taken back before it is answered; an unknown name is refused."""
    revoke(practice.operator, "aachen", NOW)
    with pytest.raises(PeerError, match="was withdrawn"):
        practice.admit("aachen")
    with pytest.raises(ConfigError, match="unknown member"):
        revoke(practice.operator, "bonn", NOW)


def test_a_key_that_is_in_use_is_refused(practice: Practice) -> None:
    """Nobody is a member twice, nor has the server's identity or the consortium's key."""
    practice.admit("aachen")
    practice.invite("bonn")
    practice.join("bonn")
    bonn, aachen = (read_join(practice.request(site)) for site in ("bonn", "aachen"))
    keys = practice.path / "aachen" / "keys"
    identity, transport = read_identity(keys / "identity.key"), read_transport(keys / "transport.key")
    both = bonn.model_copy(update={"identity": aachen.identity, "transport": aachen.transport})
    one = bonn.model_copy(
        update={
            "identity": IDENTITY.public_key().public_bytes_raw().hex(),
            "transport": aachen.transport,
        }
    )
    for request in (sign_join(both, identity, transport), sign_join(one, IDENTITY, transport)):
        with pytest.raises(PeerError, match="in use"):
            admit(practice.operator, request, NOW)
    server = read_identity(practice.operator / "server" / "identity.key")
    taken = bonn.model_copy(update={"identity": server.public_key().public_bytes_raw().hex()})
    transport = read_transport(practice.path / "bonn" / "keys" / "transport.key")
    with pytest.raises(PeerError, match="the key of the server"):
        admit(practice.operator, sign_join(taken, server, transport), NOW)


def test_a_name_that_is_in_use_is_refused(practice: Practice) -> None:
    """Also in other case, and also where the invitation is older than the member."""
    practice.invite("bonn")
    practice.join("bonn")
    practice.admit("aachen")
    with pytest.raises(ConfigError, match="a member already"):
        practice.invite("Aachen")
    with pytest.raises(ConfigError, match="site's name"):
        practice.invite("../bonn")


@pytest.mark.parametrize("stolen", ["identity", "transport"])
def test_a_key_that_the_site_does_not_hold_is_refused(practice: Practice, stolen: str) -> None:
    """Both proofs of possession are asked for."""
    asked = read_join(forged(practice))
    other = {"identity": Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex()}
    if stolen == "transport":
        other = {"transport": transport_key()}
    with pytest.raises(PeerError, match=r"did not sign it|not signed by its transport key"):
        admit(practice.operator, sign_join(asked.model_copy(update=other), IDENTITY, TRANSPORT), NOW)


def test_a_digest_that_was_read_out_is_held_to(practice: Practice) -> None:
    """Spoken in groups, in capitals or not; another one admits nobody."""
    asked = read_join(practice.request("aachen"))
    with pytest.raises(PeerError, match="not the one that was read out"):
        practice.admit("aachen", said=asked.digest[:-1])
    said = " ".join(asked.digest[i : i + 4] for i in range(0, 64, 4)).upper()
    assert practice.admit("aachen", said=said).roster.version == 2


def test_a_membership_may_end(practice: Practice) -> None:
    """The roster has its last day, and the overview names it."""
    practice.admit("aachen", days=10)
    (member,) = practice.roster().members
    assert member.expires == NOW + timedelta(days=10)
    seen = overview(practice.operator, NOW)
    assert (seen.ends[0].what, seen.ends[0].when) == ("the membership of 'aachen'", member.expires)


@settings(max_examples=100, deadline=None)
@given(place=st.integers(0, 10_000), change=st.integers(1, 255))
def test_a_request_that_was_altered_is_refused(
    tmp_path_factory: pytest.TempPathFactory, place: int, change: int
) -> None:
    """Wherever the byte is; or it is the white space between two fields."""
    global _REQUEST  # noqa: PLW0603 - made once
    if _REQUEST is None:
        made = Practice(tmp_path_factory.mktemp("altered")).make()
        made.invite("aachen")
        made.join("aachen")
        _REQUEST = made.request("aachen")
    try:
        asked = read_join(altered(_REQUEST, place, change))
    except PeerError:
        return
    assert asked == read_join(_REQUEST)


_REQUEST: bytes | None = None


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_a_request_or_refused(data: bytes) -> None:
    """Of either kind."""
    for read in (read_join, read_rotation):
        with pytest.raises(PeerError):
            read(data)


def test_a_request_of_one_kind_is_none_of_the_other(practice: Practice) -> None:
    """A request to join rotates nobody."""
    with pytest.raises(PeerError, match="another kind"):
        rotate_site(practice.operator, practice.request("aachen"), NOW)
    assert json.loads(practice.request("aachen"))["kind"] == JOIN


def rotation(practice: Practice, site: str = "aachen") -> bytes:
    """A member's request for new keys."""
    practice.update(site)
    rotate(open_site_folder(practice.path / site), NOW)
    return (practice.path / site / "rotation.json").read_bytes()


def test_a_member_gets_the_new_keys_that_it_asks_for(practice: Practice) -> None:
    """Once; the same request again is done already, and the roster's version says how often."""
    practice.admit("aachen")
    request = rotation(practice)
    asked = read_rotation(request)
    assert rotate_site(practice.operator, request, NOW).roster.version == 3
    assert rotate_site(practice.operator, request, NOW).already
    (member,) = practice.roster().members
    assert (member.identity, member.transport) == (asked.identity, asked.transport)


def test_a_former_identity_rotates_nothing(practice: Practice) -> None:
    """An old request is refused once its keys are replaced; so is one of no member."""
    practice.admit("aachen")
    first = rotation(practice)
    rotate_site(practice.operator, first, NOW)
    second = rotation(practice)
    rotate_site(practice.operator, second, NOW)
    with pytest.raises(PeerError, match="not signed by its present identity"):
        rotate_site(practice.operator, first, NOW)
    revoke(practice.operator, "aachen", NOW)
    with pytest.raises(ConfigError, match="unknown member"):
        rotate_site(practice.operator, second, NOW)


def test_the_keys_may_be_encrypted(tmp_path: Path) -> None:
    """Without the passphrase nothing is signed, and nothing has changed."""
    secret = Secret(b"a long passphrase")
    practice = Practice(tmp_path).make(passphrase=secret)
    for wrong in (None, Secret(b"another one")):
        with pytest.raises(ConfigError, match=r"is encrypted|does not open"):
            practice.invite("aachen", passphrase=wrong)
    assert [line["event"] for line in practice.log()] == ["made"]
    practice.invite("aachen", passphrase=secret)
    practice.join("aachen")
    assert practice.admit("aachen", passphrase=secret).roster.version == 2


def test_a_folder_of_another_consortium_or_of_nothing_is_refused(tmp_path: Path) -> None:
    """A key that does not belong to the folder signs nothing."""
    ours, other = Practice(tmp_path / "ours"), Practice(tmp_path / "other")
    for practice in (ours, other):
        practice.path.mkdir()
        practice.make()
    (ours.operator / "consortium.key").write_bytes((other.operator / "consortium.key").read_bytes())
    with pytest.raises(StorageError, match="another consortium's"):
        ours.invite("aachen")
    with pytest.raises(StorageError, match="no operator's folder"):
        open_operator_folder(tmp_path)
    with pytest.raises(StorageError, match="there already"):
        other.make()


@pytest.mark.parametrize("address", ["", "host", "host:0", "::1:9", "a b:1", "host:99999"])
def test_an_address_that_is_none_makes_no_consortium(tmp_path: Path, address: str) -> None:
    """And leaves no folder behind."""
    from wardround.server.consortium.creation import create

    with pytest.raises(ConfigError):
        create(tmp_path / "operator", "northern lights", address, NOW)
    with pytest.raises(ConfigError):
        create(tmp_path / "operator", "/", "host:1", NOW)
    assert not list(tmp_path.iterdir())
