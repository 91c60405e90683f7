"""Envelopes are RFC 9180's HPKE: a plain second writing of it reads the published vectors, and our envelopes.

vectors/hpke_rfc9180.json holds Appendix A.1.1 and A.2.1 (base mode; A.2.1 is the suite that envelopes use).
The code under test leaves HPKE to `cryptography`; the twin here builds it from X25519, HKDF and the AEADs, so
that a release of the library that sealed otherwise would fail these tests.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from wardround.privacy.sealed import SUITE, Header, Received, public_key, seal, unseal
from wardround.privacy.secagg.hashing import digest, framed
from wardround.privacy.secagg.identity import KeySigner, Roster
from wardround.privacy.secagg.secret import Secret

FILE = Path(__file__).parent / "vectors" / "hpke_rfc9180.json"
VECTORS: list[dict[str, Any]] = json.loads(FILE.read_text("utf-8"))["vectors"]
AEADS: dict[int, tuple[Any, int, hpke.AEAD]] = {
    1: (AESGCM, 16, hpke.AEAD.AES_128_GCM),
    3: (ChaCha20Poly1305, 32, hpke.AEAD.CHACHA20_POLY1305),
}
every_vector = pytest.mark.parametrize("vector", VECTORS, ids=[v["section"] for v in VECTORS])


# The twin: DHKEM(X25519, HKDF-SHA256) and HKDF-SHA256, section by section.


def extract(salt: bytes, ikm: bytes) -> bytes:
    """HKDF-Extract, RFC 5869 section 2.2."""
    return hmac.digest(salt or bytes(32), ikm, "sha256")


def expand(prk: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand, RFC 5869 section 2.3, for at most one block."""
    return hmac.digest(prk, info + b"\x01", "sha256")[:length]


def labeled_extract(suite: bytes, salt: bytes, label: bytes, ikm: bytes) -> bytes:
    """Section 4."""
    return extract(salt, b"HPKE-v1" + suite + label + ikm)


def labeled_expand(suite: bytes, prk: bytes, label: bytes, info: bytes, length: int) -> bytes:
    """Section 4."""
    return expand(prk, length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info, length)


def derive_key(ikm: bytes) -> bytes:
    """Section 7.1.3, DeriveKeyPair for X25519."""
    kem = b"KEM\x00\x20"
    return labeled_expand(kem, labeled_extract(kem, b"", b"dkp_prk", ikm), b"sk", b"", 32)


def shared_secret(secret: bytes, public: bytes, ephemeral: bytes, recipient: bytes) -> bytes:
    """Section 4.1: Encap with (skE, pkR), Decap with (skR, pkE)."""
    kem = b"KEM\x00\x20"
    key = X25519PrivateKey.from_private_bytes(secret)
    dh = key.exchange(X25519PublicKey.from_public_bytes(public))
    prk = labeled_extract(kem, b"", b"eae_prk", dh)
    return labeled_expand(kem, prk, b"shared_secret", ephemeral + recipient, 32)


def key_schedule(shared: bytes, info: bytes, aead: int) -> tuple[bytes, bytes, bytes, bytes]:
    """Section 5.1, base mode: context, secret, key, base nonce."""
    suite = b"HPKE" + b"\x00\x20" + b"\x00\x01" + aead.to_bytes(2, "big")
    psk_id_hash = labeled_extract(suite, b"", b"psk_id_hash", b"")
    context = b"\x00" + psk_id_hash + labeled_extract(suite, b"", b"info_hash", info)
    secret = labeled_extract(suite, shared, b"secret", b"")
    key = labeled_expand(suite, secret, b"key", context, AEADS[aead][1])
    return context, secret, key, labeled_expand(suite, secret, b"base_nonce", context, 12)


def nonce(base: bytes, sequence: int) -> bytes:
    """Section 5.2, ComputeNonce."""
    return (int.from_bytes(base, "big") ^ sequence).to_bytes(12, "big")


def twin_open(sealed: bytes, secret: bytes, info: bytes) -> bytes:
    """Section 6.1, single-shot OpenBase of our suite; `sealed` is enc and ciphertext."""
    recipient = X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
    shared = shared_secret(secret, sealed[:32], sealed[:32], recipient)
    _, _, key, base = key_schedule(shared, info, 3)
    return ChaCha20Poly1305(key).decrypt(base, sealed[32:], b"")


def twin_seal(plain: bytes, recipient: bytes, info: bytes) -> bytes:
    """Section 6.1, single-shot SealBase of our suite."""
    secret = X25519PrivateKey.generate()
    enc = secret.public_key().public_bytes_raw()
    shared = shared_secret(secret.private_bytes_raw(), recipient, enc, recipient)
    _, _, key, base = key_schedule(shared, info, 3)
    return enc + ChaCha20Poly1305(key).encrypt(base, plain, b"")


# The vectors.


def test_both_vectors_are_there() -> None:
    """A.2.1 is the suite that envelopes use; six encryptions each."""
    assert [(v["section"], v["aead_id"], len(v["encryptions"])) for v in VECTORS] == [
        ("A.1.1", 1, 6), ("A.2.1", 3, 6),
    ]  # fmt: skip


@every_vector
def test_the_twin_derives_what_the_rfc_prints(vector: dict[str, Any]) -> None:
    """Every value on the way from the seeds to key and nonce."""
    v = {
        name: bytes.fromhex(text)
        for name, text in vector.items()
        if isinstance(text, str) and name != "section"
    }
    for seed, secret, public in (("ikmE", "skEm", "pkEm"), ("ikmR", "skRm", "pkRm")):
        assert derive_key(v[seed]) == v[secret]
        assert X25519PrivateKey.from_private_bytes(v[secret]).public_key().public_bytes_raw() == v[public]
    assert v["enc"] == v["pkEm"]
    sender = shared_secret(v["skEm"], v["pkRm"], v["enc"], v["pkRm"])
    assert sender == v["shared_secret"] == shared_secret(v["skRm"], v["enc"], v["enc"], v["pkRm"])
    derived = key_schedule(sender, v["info"], vector["aead_id"])
    assert derived == (v["key_schedule_context"], v["secret"], v["key"], v["base_nonce"])


@every_vector
def test_the_twin_encrypts_what_the_rfc_prints(vector: dict[str, Any]) -> None:
    """All six printed encryptions, both ways."""
    cipher = AEADS[vector["aead_id"]][0](bytes.fromhex(vector["key"]))
    for printed in vector["encryptions"]:
        number = nonce(bytes.fromhex(vector["base_nonce"]), printed["sequence"])
        plain, aad, sealed = (bytes.fromhex(printed[name]) for name in ("plaintext", "aad", "ciphertext"))
        assert number.hex() == printed["nonce"]
        assert cipher.encrypt(number, plain, aad) == sealed
        assert cipher.decrypt(number, sealed, aad) == plain


@every_vector
def test_the_library_opens_what_the_rfc_prints(vector: dict[str, Any]) -> None:
    """The first printed encryption is what a single shot gives; altered, it does not open.

    It has associated data, which the library's public calls leave out (RFC 9180, section 8.1): hence a
    private one of `cryptography` 50.
    """
    from cryptography.hazmat.bindings._rust import openssl

    suite = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, AEADS[vector["aead_id"]][2])
    key = X25519PrivateKey.from_private_bytes(bytes.fromhex(vector["skRm"]))
    first, info = vector["encryptions"][0], bytes.fromhex(vector["info"])
    sealed = bytes.fromhex(vector["enc"] + first["ciphertext"])
    aad = bytes.fromhex(first["aad"])
    decrypt = openssl.hpke._decrypt_with_aad
    assert decrypt(suite, sealed, key, info=info, aad=aad) == bytes.fromhex(first["plaintext"])
    for place in range(len(sealed)):
        bad = bytearray(sealed)
        bad[place] ^= 1
        with pytest.raises(InvalidTag):
            decrypt(suite, bytes(bad), key, info=info, aad=aad)
    with pytest.raises(InvalidTag):
        decrypt(suite, sealed, key, info=info + b"x", aad=aad)


# Our envelopes.


def test_the_twin_and_the_suite_of_envelopes_read_each_other() -> None:
    """With any `info`, and lanes from empty to several blocks."""
    key = Secret.fresh()
    private = X25519PrivateKey.from_private_bytes(key.reveal())
    for size in (0, 1, 63, 64, 65, 5000):
        plain, info = bytes(i % 251 for i in range(size)), framed("info", size)
        assert twin_open(SUITE.encrypt(plain, private.public_key(), info), key.reveal(), info) == plain
        assert SUITE.decrypt(twin_seal(plain, public_key(key), info), private, info) == plain


def test_an_envelope_is_what_its_format_says() -> None:
    """Read, and written, by hand: another implementation needs no more than this."""
    key, signer = Secret.fresh(), KeySigner.fresh()
    roster = Roster({"site": signer.public})
    header = Header(
        run_id="run", round=1, plan=digest("plan"), roster=roster.digest, broadcast=digest("broadcast"),
        layout=digest("layout"), counters_layout=digest("counters"), offer=digest("offer"),
        aggregator=public_key(key), site="site",
        coordinates_bytes=10, counters_bytes=16,
    )  # fmt: skip
    lanes = bytes(range(10)), bytes(range(16))
    head = header.model_dump_json().encode()
    infos = [framed("wardround-sealed/1", lane, head) for lane in ("coordinates", "counters")]

    envelope = seal(header, *lanes, signer)
    assert envelope[:4] == b"WSE1"
    assert int.from_bytes(envelope[4:8], "little") == len(head)
    assert envelope[8 : 8 + len(head)] == head
    sealed = envelope[8 + len(head) + 64 :]
    assert twin_open(sealed[: 10 + 48], key.reveal(), infos[0]) == lanes[0]
    assert twin_open(sealed[10 + 48 :], key.reveal(), infos[1]) == lanes[1]

    ours = [twin_seal(lane, public_key(key), info) for lane, info in zip(lanes, infos, strict=True)]
    hashes = [hashlib.sha256(lane).digest() for lane in ours]
    said = framed("wardround-secagg/1", "sealed", digest("sealed header", head), "site", *hashes)
    written = b"WSE1" + len(head).to_bytes(4, "little") + head + signer.sign(said) + b"".join(ours)
    contribution, _ = unseal(written, header, key, roster, Received(run_id="run"))
    assert (contribution.coordinates, contribution.counters) == lanes
