"""The consortium's authority and its server's TLS certificate, held to what TLS itself accepts."""

from __future__ import annotations

import base64
import contextlib
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.core.errors import ConfigError, PeerError
from wardround.runtime.certificates import (
    MOST_AUTHORITIES,
    certificate_pem,
    ends,
    hosts_of,
    issued_by,
    new_authority,
    new_server_certificate,
    read_authorities,
    read_server_certificate,
)
from wardround.runtime.small_files import curve_pem

NOW = datetime.now(UTC).replace(microsecond=0)
KEY, AUTHORITY = new_authority("northern lights", NOW)
HOSTS = ("server.example", "127.0.0.1", "::1")


def handshake(folder: Path, host: str, trusted: bytes) -> None:
    """TLS between a server and a client in memory, as strict as Python makes it; raises SSLError."""
    key, certificate = new_server_certificate(KEY, AUTHORITY, HOSTS, NOW)
    (folder / "server.pem").write_bytes(certificate_pem(certificate))
    (folder / "server.key").write_bytes(curve_pem(key))
    at_server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    at_server.load_cert_chain(folder / "server.pem", folder / "server.key")
    at_client = ssl.create_default_context(cadata=trusted.decode())
    at_client.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = at_client.wrap_bio(to_client, to_server, server_hostname=host)
    server = at_server.wrap_bio(to_server, to_client, server_side=True)
    done: set[ssl.SSLObject] = set()
    for _ in range(10):
        for side in (client, server):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                pass
    assert done == {client, server}


@pytest.mark.parametrize("host", HOSTS)
def test_a_client_that_trusts_the_authority_reaches_the_server_by_each_name(
    tmp_path: Path, host: str
) -> None:
    """By name and by both kinds of IP address."""
    handshake(tmp_path, host, certificate_pem(AUTHORITY))


def test_another_host_or_another_authority_is_refused_by_tls(tmp_path: Path) -> None:
    """A stranger's authority of the same name does not count."""
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path, "other.example", certificate_pem(AUTHORITY))
    _, stranger = new_authority("northern lights", NOW)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path, HOSTS[0], certificate_pem(stranger))


def test_the_authority_signs_no_other_authority() -> None:
    """Its path length is zero, and a server's certificate is no authority."""
    _, server = new_server_certificate(KEY, AUTHORITY, HOSTS, NOW)
    assert AUTHORITY.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    assert read_authorities(certificate_pem(AUTHORITY)) == (AUTHORITY,)
    for bundle in (certificate_pem(server), certificate_pem(AUTHORITY, server), b"", b"no PEM"):
        with pytest.raises(PeerError):
            read_authorities(bundle)
    assert issued_by(server, [AUTHORITY])
    assert not issued_by(server, [new_authority("northern lights", NOW)[1]])


def test_a_bundle_has_a_bound() -> None:
    """In number, and in bytes before anything is parsed."""
    assert len(read_authorities(certificate_pem(*[AUTHORITY] * MOST_AUTHORITIES))) == MOST_AUTHORITIES
    for bundle in (certificate_pem(*[AUTHORITY] * (MOST_AUTHORITIES + 1)), bytes(2**15)):
        with pytest.raises(PeerError):
            read_authorities(bundle)


def test_expiry_is_a_value_and_no_certificate_outlives_its_authority() -> None:
    """What is issued is valid from an hour ago: a slow clock does not refuse it."""
    key, short = new_authority("northern lights", NOW, days=10)
    _, server = new_server_certificate(key, short, HOSTS, NOW, days=365)
    assert server.not_valid_after_utc == short.not_valid_after_utc == NOW + timedelta(days=10)
    assert server.not_valid_before_utc == NOW - timedelta(hours=1)
    assert hosts_of(server) == HOSTS
    assert [end.when for end in ends("it", [server])] == [NOW + timedelta(days=10)]
    with pytest.raises(ConfigError, match="authority has expired"):
        new_server_certificate(key, short, HOSTS, NOW + timedelta(days=11))


@pytest.mark.parametrize("host", ["", "a b", "a..b", "-" * 64, "*.example", "ä.example", "a/b", "a" * 254])
def test_what_is_no_host_gets_no_certificate(host: str) -> None:
    """A wildcard among them."""
    with pytest.raises(ConfigError):
        new_server_certificate(KEY, AUTHORITY, [host], NOW)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255), st.binary(max_size=50))
def test_damaged_certificates_are_refused(place: int, change: int, noise: bytes) -> None:
    """A byte changed anywhere; or it still is an authority that signed itself."""
    data = bytearray(certificate_pem(AUTHORITY))
    data[place % len(data)] ^= change
    for pem in (bytes(data), noise):
        try:
            (found,) = read_authorities(pem)
        except PeerError:
            pass
        else:
            assert found.tbs_certificate_bytes == AUTHORITY.tbs_certificate_bytes
        with contextlib.suppress(PeerError):
            read_server_certificate(pem)


def test_a_name_of_many_bytes_is_cut_for_the_certificate() -> None:
    """Sixty letters may be 240 bytes; a certificate's subject takes 64."""
    key, authority = new_authority("🏥" * 60, NOW)
    assert read_authorities(certificate_pem(authority)) == (authority,)
    assert new_server_certificate(key, authority, ["a." * 60 + "example"], NOW)


def test_a_certificate_that_the_library_will_refuse_is_refused_now() -> None:
    """A serial number that is not positive: no warning comes through, and no authority."""
    der = bytearray(AUTHORITY.public_bytes(Encoding.DER))
    serial = AUTHORITY.serial_number.to_bytes(20, "big").lstrip(b"\0")
    place = der.index(serial)
    der[place : place + len(serial)] = bytes(len(serial))
    body = base64.encodebytes(bytes(der))
    pem = b"-----BEGIN CERTIFICATE-----\n" + body + b"-----END CERTIFICATE-----\n"
    for read in (read_authorities, read_server_certificate):
        with pytest.raises(PeerError):
            read(pem)
