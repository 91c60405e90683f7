"""Invitations, requests, notices: whoever signs them, what is in them is read or refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st
from members import NOW, roster_document

from wardround.core.errors import PeerError
from wardround.runtime.certificates import certificate_pem, new_authority, read_authorities
from wardround.runtime.membership import (
    INVITATION,
    JOIN,
    NOTICE,
    ROTATION,
    Invitation,
    JoinRequest,
    RotationRequest,
    ServerNotice,
    fingerprint,
    read_invitation,
    read_join,
    read_notice,
    read_rotation,
    same_spoken,
    sign_join,
    sign_rotation,
    spoken,
)
from wardround.runtime.roster import ROSTER, SERVER, ServerCertificate, read_certificate, read_roster
from wardround.runtime.signed import FORMAT, sign_document, signed_bytes
from wardround.runtime.small_files import transport_point

KEY, OLD, NEW = (Ed25519PrivateKey.generate() for _ in range(3))
TRANSPORT = ec.generate_private_key(ec.SECP384R1())
PUBLIC, OLD_HEX, NEW_HEX = (key.public_key().public_bytes_raw() for key in (KEY, OLD, NEW))
_, AUTHORITY = new_authority("north", NOW)
ROSTER_TEXT = sign_document(ROSTER, roster_document("aachen", consortium="north"), KEY).decode()
CERTIFICATE = ServerCertificate(
    consortium="north", identity=NEW_HEX.hex(), address="127.0.0.1:1", issued=NOW,
    expires=NOW + timedelta(days=9),
)  # fmt: skip
CERTIFICATE_TEXT = sign_document(SERVER, CERTIFICATE, KEY).decode()
INVITED = Invitation(
    consortium="north", key=PUBLIC.hex(), address="127.0.0.1:1", ca=certificate_pem(AUTHORITY).decode(),
    certificate=CERTIFICATE_TEXT, roster=ROSTER_TEXT, site="bonn", nonce="0" * 64, issued=NOW,
    expires=NOW + timedelta(days=9),
)  # fmt: skip
NOTICED = ServerNotice(
    consortium="north", ca=certificate_pem(AUTHORITY).decode(), certificate=CERTIFICATE_TEXT
)
KEYS = {"identity": NEW_HEX.hex(), "transport": transport_point(TRANSPORT.public_key())}
ASKED = JoinRequest(consortium=PUBLIC.hex(), site="bonn", nonce="0" * 64, issued=NOW, **KEYS)
CHANGING = RotationRequest(consortium=PUBLIC.hex(), site="bonn", former=OLD_HEX.hex(), issued=NOW, **KEYS)
SIGNED: dict[str, tuple[bytes, Ed25519PrivateKey, Callable[[bytes], Any]]] = {
    INVITATION: (sign_document(INVITATION, INVITED, KEY), KEY, lambda data: read_invitation(data, NOW)),
    NOTICE: (sign_document(NOTICE, NOTICED, KEY), KEY, lambda data: read_notice(data, PUBLIC)),
    JOIN: (sign_join(ASKED, NEW, TRANSPORT), NEW, read_join),
    ROTATION: (sign_rotation(CHANGING, OLD, NEW, TRANSPORT), OLD, read_rotation),
    ROSTER: (ROSTER_TEXT.encode(), KEY, lambda data: read_roster(data, PUBLIC)),
    SERVER: (CERTIFICATE_TEXT.encode(), KEY, lambda data: read_certificate(data, PUBLIC)),
}
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=30), st.just("0" * 64),
    st.sampled_from(
        ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-11-01T12:00:00Z", "1e400", "02" * 49]
    ),
    st.recursive(st.text(max_size=3), lambda inner: st.lists(inner, max_size=3), max_leaves=5),
    st.dictionaries(st.text(max_size=9), st.integers(), max_size=3),
)  # fmt: skip


def signed_again(kind: str, text: str, key: Ed25519PrivateKey) -> bytes:
    """An envelope around any text."""
    envelope = {
        "format": FORMAT, "kind": kind, "document": text, "signer": key.public_key().public_bytes_raw().hex(),
        "signature": key.sign(signed_bytes(kind, text)).hex(),
    }  # fmt: skip
    return json.dumps(envelope).encode()


@pytest.mark.parametrize("kind", SIGNED)
def test_each_kind_is_read_back(kind: str) -> None:
    """Under its own reader, and under no other."""
    data, _, read = SIGNED[kind]
    assert read(data)
    for other, (_, _, reader) in SIGNED.items():
        if other != kind:
            with pytest.raises(PeerError):
                reader(data)


def paths(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(path for key, item in inner for path in paths(item, (*place, key)))]


def replaced(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    """The value with another one at a place."""
    if not place:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = replaced(value[place[0]], place[1:], new)
    return copy


@settings(max_examples=120, deadline=None)
@given(kind=st.sampled_from(sorted(SIGNED)), data=st.data())
def test_what_the_right_key_signed_is_still_checked(kind: str, data: st.DataObject) -> None:
    """Any value in any place of a document that the right key signed is read or refused, without a crash."""
    whole, key, read = SIGNED[kind]
    document = json.loads(json.loads(whole)["document"])
    place = data.draw(st.sampled_from(paths(document)))
    changed = json.dumps(replaced(document, place, data.draw(ODD)))
    try:
        read(signed_again(kind, changed, key))
    except PeerError as error:
        assert len(str(error)) < 3000  # noqa: PT017 - read or refused


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_damaged_authority_is_refused(place: int, change: int) -> None:
    """A byte changed anywhere in the certificate itself; what still is one is signed by itself."""
    der = bytearray(AUTHORITY.public_bytes(Encoding.DER))
    der[place % len(der)] ^= change
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(bytes(der)) + b"-----END CERTIFICATE-----\n"
    with pytest.raises(PeerError):
        read_authorities(pem)


def test_an_invitation_that_mixes_consortia_is_refused() -> None:
    """One name, one key, one address, throughout."""
    for changes in (
        {"consortium": "south"}, {"address": "127.0.0.1:2"}, {"key": NEW_HEX.hex()},
        {"certificate": ROSTER_TEXT}, {"roster": sign_document(ROSTER, roster_document(), KEY).decode()},
    ):  # fmt: skip
        mixed = INVITED.model_copy(update=changes)
        with pytest.raises(PeerError):
            read_invitation(sign_document(INVITATION, mixed, KEY), NOW)


def test_a_rotation_needs_all_three_keys() -> None:
    """The former identity, the new one, the new transport key."""
    stranger, other = Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())
    assert read_rotation(sign_rotation(CHANGING, OLD, NEW, TRANSPORT)) == CHANGING
    for keys in ((stranger, NEW, TRANSPORT), (OLD, stranger, TRANSPORT), (OLD, NEW, other)):
        with pytest.raises(PeerError):
            read_rotation(sign_rotation(CHANGING, *keys))


def test_a_proof_of_one_request_is_none_of_another() -> None:
    """Proofs are bound to the whole request: another nonce needs another one."""
    document = json.loads(json.loads(SIGNED[JOIN][0])["document"])
    document["request"]["nonce"] = "1" * 64
    with pytest.raises(PeerError, match="not signed by its transport key"):
        read_join(signed_again(JOIN, json.dumps(document), NEW))


@settings(max_examples=30)
@given(st.binary(min_size=32, max_size=32))
def test_what_is_read_out_is_compared_whole(key: bytes) -> None:
    """In groups of four; a digit that is missing or another one is noticed."""
    value = fingerprint(key)
    said = spoken(value)
    assert len(said.split()) == 16
    assert same_spoken(said, value)
    assert same_spoken(said.upper().replace(" ", "-"), value)
    assert not same_spoken(said[:-1], value)
    assert not same_spoken(said + "0", value)
