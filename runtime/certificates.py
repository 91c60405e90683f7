"""Certificates of the consortium's own authority (X.509): the authority's, and its server's for TLS.

The authority signs servers and no other authority (path length 0); both keys are P-256. What is issued is
valid from an hour ago, so that a site's slow clock does not refuse it.
"""

from __future__ import annotations

import ipaddress
import re
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from wardround.core.errors import ConfigError, PeerError
from wardround.runtime.roster import Expiring

AUTHORITY_DAYS: Final = 3650
SERVER_DAYS: Final = 365
LARGEST_BUNDLE: Final = 2**14
"""Bytes of the authorities that a site trusts, at the most."""
MOST_AUTHORITIES: Final = 4
_EARLIER: Final = timedelta(hours=1)
_UNUSABLE: Final = (
    ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.InvalidVersion,
    CryptographyDeprecationWarning, x509.DuplicateExtension, x509.ExtensionNotFound,
    x509.UnsupportedGeneralNameType,
)  # fmt: skip
_MOST_NAME_BYTES: Final = 64
"""Of a common name (X.520, ub-common-name)."""
_HOST: Final = re.compile(r"(?!.{254})[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")


def new_authority(
    name: str, now: datetime, days: int = AUTHORITY_DAYS
) -> tuple[EllipticCurvePrivateKey, x509.Certificate]:
    """An authority's key and its self-signed certificate.

    Args:
        name: Of the consortium.
        now: The present moment.
        days: For which it is valid.
    """
    key = generate_private_key(SECP256R1())
    subject = _name(name, "Wardround consortium")
    public = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        _builder(subject, subject, now, days)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(public, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(public), critical=False)
    )
    return key, builder.sign(key, hashes.SHA256())


def new_server_certificate(
    authority_key: EllipticCurvePrivateKey,
    authority: x509.Certificate,
    hosts: Sequence[str],
    now: datetime,
    days: int = SERVER_DAYS,
) -> tuple[EllipticCurvePrivateKey, x509.Certificate]:
    """A server's fresh TLS key and its certificate.

    Args:
        authority_key: Of the authority.
        authority: Its certificate.
        hosts: Names and IP addresses that the server is reached by; the first names it.
        now: The present moment.
        days: For which it is valid, cut to what is left of the authority's.

    Raises:
        ConfigError: No host, or one that is neither a name nor an IP address; or the authority has expired.
    """
    if not hosts:
        raise ConfigError("a server's certificate needs a host", remedy="name one, as in server.example")
    if authority.not_valid_after_utc <= now:
        raise ConfigError(
            "the consortium's authority has expired", found=f"{authority.not_valid_after_utc:%Y-%m-%d} UTC",
            remedy="make a new one: wardround consortium rotate ca",
        )  # fmt: skip
    names = [_host(host) for host in hosts]
    key = generate_private_key(SECP256R1())
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    builder = (
        _builder(_name(hosts[0], "Wardround server"), authority.subject, now, days, authority)
        .public_key(key.public_key())
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(own, critical=False)
        .add_extension(issuer, critical=False)
    )
    return key, builder.sign(authority_key, hashes.SHA256())


def certificate_pem(*certificates: x509.Certificate) -> bytes:
    """Certificates as PEM, one after the other."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def read_authorities(pem: bytes) -> tuple[x509.Certificate, ...]:
    """The authorities of a bundle.

    Raises:
        PeerError: It is too large, no PEM, holds none or too many, or one that may not sign servers.
    """
    what, remedy = "the consortium's certificate", "ask the operator for it again"
    if len(pem) > LARGEST_BUNDLE:
        raise PeerError(
            f"{what} is too large", found=f"{len(pem)} bytes", expected=f"at most {LARGEST_BUNDLE}"
        )
    try:
        found = _loaded(pem)
        fits = 0 < len(found) <= MOST_AUTHORITIES and all(_is_authority(one) for one in found)
    except _UNUSABLE:
        fits = False
    if not fits:
        raise PeerError(
            f"{what} cannot be used", expected=f"1 to {MOST_AUTHORITIES} authorities in PEM", remedy=remedy
        )
    return found


def read_server_certificate(pem: bytes) -> x509.Certificate:
    """The first certificate of a PEM file.

    Raises:
        PeerError: There is none.
    """
    try:
        return _loaded(pem[:LARGEST_BUNDLE])[0]
    except _UNUSABLE:
        raise PeerError(
            "the server's TLS certificate cannot be read", expected="a certificate in PEM",
            remedy="make a new one: wardround consortium rotate server",
        ) from None  # fmt: skip


def issued_by(certificate: x509.Certificate, authorities: Sequence[x509.Certificate]) -> bool:
    """Whether one of the authorities signed the certificate."""
    for authority in authorities:
        try:
            certificate.verify_directly_issued_by(authority)
        except _UNUSABLE:
            continue
        return True
    return False


def hosts_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """Names and IP addresses that a server's certificate is for."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return tuple(str(name.value) for name in names)


def ends(what: str, certificates: Sequence[x509.Certificate]) -> tuple[Expiring, ...]:
    """When these certificates expire."""
    return tuple(Expiring(what, one.not_valid_after_utc.astimezone(UTC)) for one in certificates)


def _loaded(pem: bytes) -> tuple[x509.Certificate, ...]:
    """Certificates of a PEM file; what a later version of the library will refuse is refused now."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", CryptographyDeprecationWarning)
        return tuple(x509.load_pem_x509_certificates(pem))


def _is_authority(certificate: x509.Certificate) -> bool:
    limits = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    certificate.verify_directly_issued_by(certificate)
    return limits.ca and limits.path_length == 0


def _name(common: str, organisation: str) -> x509.Name:
    common = common.encode()[:_MOST_NAME_BYTES].decode(errors="ignore")
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, now: datetime, days: int, within: x509.Certificate | None = None
) -> x509.CertificateBuilder:
    last = now + timedelta(days=days)
    if within is not None:
        last = min(last, within.not_valid_after_utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(last)
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority, key_cert_sign=authority, crl_sign=authority,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _HOST.fullmatch(host):
        raise ConfigError(
            "a host is neither a name nor an IP address", found=host[:80], expected="as in server.example"
        ) from None
    return x509.DNSName(host)
