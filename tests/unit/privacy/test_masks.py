"""Masks are AES-256-CTR keystreams in the ring: published vectors, a slow twin, cancellation."""

from __future__ import annotations

import secrets
from typing import Any, Literal

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from wardround.core.errors import InternalError
from wardround.privacy.secagg.hashing import derive, digest, framed
from wardround.privacy.secagg.masks import CHUNK, Mask, apply_masks, under_masks
from wardround.privacy.secagg.secret import Secret

SIGNS: list[Literal[1, -1]] = [1, -1]


def test_the_cipher_is_aes_256_in_counter_mode() -> None:
    """NIST SP 800-38A, F.5.5: the library that the masks come from."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    plain = bytes.fromhex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    expected = (
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )
    assert Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor().update(plain).hex() == expected


def test_keys_are_derived_by_hkdf_sha256() -> None:
    """RFC 5869, A.1."""
    okm = HKDF(
        hashes.SHA256(), 42, bytes.fromhex("000102030405060708090a0b0c"),
        bytes.fromhex("f0f1f2f3f4f5f6f7f8f9"),
    ).derive(bytes.fromhex("0b" * 22))  # fmt: skip
    assert okm.hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )


PARTS = st.lists(
    st.one_of(st.binary(max_size=6), st.text(max_size=4), st.integers(-(2**63), 2**63 - 1)), max_size=4
)


@given(st.text(max_size=3), PARTS, st.text(max_size=3), PARTS)
def test_two_inputs_never_meet(tag: str, parts: list[Any], other_tag: str, other_parts: list[Any]) -> None:
    """Framing is injective in tag, kinds and borders of the parts."""
    same = (tag, [(type(p), p) for p in parts]) == (other_tag, [(type(p), p) for p in other_parts])
    assert (framed(tag, *parts) == framed(other_tag, *other_parts)) is same
    assert (digest(tag, *parts) == digest(other_tag, *other_parts)) is same


def test_derived_keys_differ_by_purpose_salt_and_secret() -> None:
    """And nothing else goes in: the same again gives the same."""
    secret = Secret.fresh()
    keys = [
        derive(secret, b"salt", "self"), derive(secret, b"salt", "pair"), derive(secret, b"other", "self"),
        derive(Secret.fresh(), b"salt", "self"), derive(secret, b"salt", "self", 1),
    ]  # fmt: skip
    assert len({key.reveal() for key in keys}) == len(keys)
    assert derive(secret, b"salt", "self") == keys[0]


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("size", [0, 1, 1000, 3 * CHUNK // 2 + 1])
def test_masks_are_the_keystream_as_little_endian_words(dtype: Any, size: int) -> None:
    """Beside a slow twin: the whole stream at once, in Python's own integers for a sample of places."""
    keys = [Secret.fresh() for _ in range(3)]
    start = np.frombuffer(secrets.token_bytes(size * np.dtype(dtype).itemsize), dtype=dtype).copy()
    vector = start.copy()
    apply_masks(vector, [Mask(keys[0], 1), Mask(keys[1], -1), Mask(keys[2], 1)])
    width = np.dtype(dtype).itemsize
    streams = [
        Cipher(algorithms.AES(key.reveal()), modes.CTR(bytes(16))).encryptor().update(bytes(size * width))
        for key in keys
    ]
    for place in range(0, size, max(1, size // 500)):
        words = [int.from_bytes(s[place * width : (place + 1) * width], "little") for s in streams]
        expected = (int(start[place]) + words[0] - words[1] + words[2]) % 2 ** (8 * width)
        assert int(vector[place]) == expected


@pytest.mark.parametrize("size", [0, 1, 3 * CHUNK // 2 + 1])
def test_a_vector_is_masked_piece_by_piece_and_left_as_it_is(size: int) -> None:
    """Also one that must not be written to, and has gaps."""
    vector = np.arange(2 * size, dtype=np.uint32)[::2]
    vector.flags.writeable = False
    masks = [Mask(Secret.fresh(), 1), Mask(Secret.fresh(), -1)]
    expected = vector.copy()
    apply_masks(expected, masks)
    pieces = list(under_masks(vector, masks))
    assert np.array_equal(np.concatenate([expected[:0], *pieces]), expected)
    assert all(piece.size % 2 == 0 for piece in pieces[:-1])


@given(st.lists(st.sampled_from(SIGNS), max_size=6), st.sampled_from([np.uint16, np.uint32, np.uint64]))
def test_what_is_added_and_taken_away_leaves_nothing(signs: list[Literal[1, -1]], dtype: Any) -> None:
    """In any order."""
    masks = [Mask(Secret.fresh(), sign) for sign in signs]
    vector = np.arange(300, dtype=dtype)
    apply_masks(vector, masks)
    apply_masks(vector, [Mask(mask.key, SIGNS[mask.sign > 0]) for mask in reversed(masks)])
    assert np.array_equal(vector, np.arange(300, dtype=dtype))


def test_a_masked_vector_tells_nothing_of_its_values() -> None:
    """A crude look: the words of a masked vector of zeros are spread evenly (χ² over 256 cells)."""
    vector = np.zeros(1 << 16, dtype=np.uint16)
    apply_masks(vector, [Mask(Secret(bytes(range(32))), 1)])
    counts = np.bincount(vector >> 8, minlength=256)
    assert ((counts - 256) ** 2 / 256).sum() < 350


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(4),
        np.zeros(4, dtype=np.int64),
        np.zeros((2, 2), dtype=np.uint32),
        np.zeros(8, dtype=np.uint32)[::2],
    ],
)
def test_other_vectors_are_a_fault_of_ours(vector: Any) -> None:
    """Signed, floating, folded or strided."""
    with pytest.raises(InternalError):
        apply_masks(vector, [])
