"""Private keys in files: only whole ones that nobody else can read are used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.core.errors import ConfigError, StorageError, WardroundError
from wardround.privacy.secagg.secret import Secret
from wardround.runtime.files import write_atomic
from wardround.runtime.roster import RosterMember
from wardround.runtime.small_files import (
    curve_pem,
    identity_pem,
    is_encrypted,
    read_bounded,
    read_curve_key,
    read_identity,
    read_private,
    read_transport,
    read_value,
    transport_file,
)

IDENTITY = Ed25519PrivateKey.generate()
TLS = ec.generate_private_key(ec.SECP256R1())
TRANSPORT = ec.generate_private_key(ec.SECP384R1())


def written(folder: Path, data: bytes) -> Path:
    """A private file."""
    write_atomic(folder / "one.key", data, private=True)
    return folder / "one.key"


def test_keys_are_read_back(tmp_path: Path) -> None:
    """Each in its own format; the transport key in the one that Flower's SuperNode reads."""
    assert read_identity(written(tmp_path, identity_pem(IDENTITY))).private_bytes_raw() == (
        IDENTITY.private_bytes_raw()
    )
    assert read_curve_key(written(tmp_path, curve_pem(TLS))).private_numbers() == TLS.private_numbers()
    path = written(tmp_path, transport_file(TRANSPORT))
    assert read_transport(path).private_numbers() == TRANSPORT.private_numbers()
    again = load_ssh_private_key(path.read_bytes(), None)
    assert isinstance(again, ec.EllipticCurvePrivateKey)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666, 0o601])
def test_a_key_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    """Whatever the others may do with it; the message shows no key."""
    path = written(tmp_path, identity_pem(IDENTITY))
    path.chmod(mode)
    with pytest.raises(StorageError, match="can be used by others") as caught:
        read_identity(path)
    assert f"{mode:04o}" in str(caught.value)


def test_a_link_a_folder_or_nothing_is_no_key(tmp_path: Path) -> None:
    """Nor is a pipe, at which reading would wait for ever."""
    (tmp_path / "link").symlink_to(written(tmp_path, identity_pem(IDENTITY)))
    (tmp_path / "folder").mkdir(mode=0o700)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("link", "folder", "pipe", "nothing"):
        with pytest.raises(StorageError):
            read_private(tmp_path / name)


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    """No Ed25519 key is taken for a curve's, nor the other way round."""
    for data, read in (
        (curve_pem(TLS), read_identity), (identity_pem(IDENTITY), read_curve_key),
        (curve_pem(TRANSPORT), read_curve_key), (identity_pem(IDENTITY), read_transport),
        (transport_file(TLS), read_transport),
    ):  # fmt: skip
        with pytest.raises(StorageError, match="does not hold its key"):
            read(written(tmp_path, data))


def test_a_passphrase_opens_what_it_closed(tmp_path: Path) -> None:
    """None, or another one, does not; and it is in no message."""
    secret, wrong = Secret(b"a long passphrase"), Secret(b"another passphrase")
    path = written(tmp_path, identity_pem(IDENTITY, secret))
    assert is_encrypted(path)
    assert read_identity(path, secret).private_bytes_raw() == IDENTITY.private_bytes_raw()
    for given_one in (None, wrong):
        with pytest.raises(ConfigError) as caught:
            read_identity(path, given_one)
        assert "passphrase" in str(caught.value)
        assert "another passphrase," not in str(caught.value).partition("found")[0]
    plain = written(tmp_path, identity_pem(IDENTITY))
    assert not is_encrypted(plain)
    assert read_identity(plain, wrong).private_bytes_raw() == IDENTITY.private_bytes_raw()


def test_sizes_are_judged_before_files_are_read(tmp_path: Path) -> None:
    """A byte too many is refused, private or not."""
    path = written(tmp_path, bytes(10))
    assert read_bounded(path, 10) == bytes(10)
    for read in (lambda: read_bounded(path, 9), lambda: read_private(path, largest=9)):
        with pytest.raises(StorageError, match="too large"):
            read()


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_key_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """No reader fails in another way."""
    path = written(tmp_path_factory.getbasetemp(), data)
    for read in (
        read_identity,
        read_curve_key,
        read_transport,
        lambda p: read_value(p, RosterMember, remedy=""),
    ):
        with pytest.raises(WardroundError):
            read(path)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255), st.booleans())
def test_a_damaged_key_is_another_one_or_refused(
    tmp_path_factory: pytest.TempPathFactory, place: int, change: int, transport: bool
) -> None:
    """A byte changed anywhere in a file makes no crash."""
    data = bytearray(transport_file(TRANSPORT) if transport else identity_pem(IDENTITY))
    data[place % len(data)] ^= change
    path = written(tmp_path_factory.getbasetemp(), bytes(data))
    try:
        (read_transport if transport else read_identity)(path)
    except WardroundError:
        return
