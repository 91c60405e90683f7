"""Signed documents: what the pinned key did not sign, as this kind, in this form, is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from members import roster_document
from toy_plans import toy_plan

from wardround.core.errors import PeerError, WardroundError
from wardround.core.plan import TrainingPlan
from wardround.runtime.roster import LARGEST_ROSTER, ROSTER, RosterDocument, read_certificate, read_roster
from wardround.runtime.signed import canonical, claimed_signer, read_document, sign_document

KEY = Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key().public_bytes_raw()
DOCUMENT = roster_document("aachen", "bonn")
SIGNED = sign_document(ROSTER, DOCUMENT, KEY)


def read(data: bytes, kind: str = ROSTER, signer: bytes = PUBLIC, largest: int = LARGEST_ROSTER) -> Any:
    """As a roster."""
    return read_document(data, kind, RosterDocument, signer=signer, largest=largest)


def test_what_was_signed_is_read_back() -> None:
    """The same value, from bytes that are the same for the same value."""
    assert read(SIGNED) == DOCUMENT
    assert sign_document(ROSTER, read(SIGNED), KEY) == SIGNED
    assert claimed_signer(SIGNED, ROSTER, largest=LARGEST_ROSTER) == PUBLIC


def test_a_training_plan_survives_its_signature() -> None:
    """A plan keeps its digest: nothing in it is lost or rounded."""
    plan = toy_plan()
    signed = sign_document("plan", plan, KEY)
    again = read_document(signed, "plan", TrainingPlan, signer=PUBLIC, largest=2**20)
    assert again == plan
    assert again.digest == plan.digest


def test_another_signer_is_refused() -> None:
    """Only the pinned key counts; a whole envelope of another key does not."""
    other = Ed25519PrivateKey.generate()
    with pytest.raises(PeerError, match="another signer"):
        read(sign_document(ROSTER, DOCUMENT, other))
    forged = json.loads(sign_document(ROSTER, DOCUMENT, other)) | {"signer": PUBLIC.hex()}
    with pytest.raises(PeerError, match="signature"):
        read(json.dumps(forged).encode())


def test_a_document_of_one_kind_never_serves_for_another() -> None:
    """The kind is refused as it stands, and under a changed label by the signature."""
    other = sign_document("plan", DOCUMENT, KEY)
    with pytest.raises(PeerError, match="another kind"):
        read(other)
    with pytest.raises(PeerError, match="signature"):
        read(json.dumps(json.loads(other) | {"kind": ROSTER}).encode())


def test_size_is_judged_before_anything_is_parsed() -> None:
    """A byte too many is refused, whatever it is."""
    assert read(SIGNED, largest=len(SIGNED)) == DOCUMENT
    with pytest.raises(PeerError, match="too large"):
        read(SIGNED + b" ", largest=len(SIGNED))


def test_an_unknown_field_is_refused_though_it_is_signed() -> None:
    """What this version does not know it does not skip; nor does it take numbers for texts."""
    text = canonical(DOCUMENT)
    for changed in (text[:-1] + ',"extra":1}', text.replace('"version":1', '"version":"1"')):

        class Raw:
            @staticmethod
            def model_dump(mode: str, changed: str = changed) -> Any:
                return json.loads(changed)

        raw: Any = Raw()
        with pytest.raises(PeerError, match="not as it should be"):
            read(sign_document(ROSTER, raw, KEY))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(SIGNED.rstrip()) - 1), st.integers(1, 255))
def test_a_byte_changed_anywhere_is_refused(place: int, change: int) -> None:
    """Or it changes nothing: white space between the fields of the envelope."""
    changed = bytearray(SIGNED)
    changed[place] ^= change
    try:
        same = read(bytes(changed)) == DOCUMENT
    except PeerError:
        return
    assert same
    assert not SIGNED[place : place + 1].strip()


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.binary(max_size=300), st.text(max_size=200).map(str.encode)))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """No decoder fails in another way than by an error of ours."""
    for reader in (read, lambda data: read_roster(data, PUBLIC), lambda data: read_certificate(data, PUBLIC)):
        with pytest.raises(WardroundError):
            reader(data)


@settings(max_examples=60, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            name: st.one_of(st.just(value), st.none(), st.integers(), st.text(max_size=20), st.just([]))
            for name, value in json.loads(SIGNED).items()
        }
    )
)
def test_any_envelope_is_read_or_refused(envelope: dict[str, Any]) -> None:
    """Also one that has the right fields."""
    if envelope == json.loads(SIGNED):
        assert read(json.dumps(envelope).encode()) == DOCUMENT
    else:
        with pytest.raises(PeerError):
            read(json.dumps(envelope).encode())


def test_deep_nesting_is_refused() -> None:
    """Ten thousand brackets are no stack overflow."""
    for data in (b"[" * 10_000, b'{"document":' * 10_000):
        with pytest.raises(PeerError):
            read(data)
