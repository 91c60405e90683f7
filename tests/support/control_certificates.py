"""Certificates for a test's servers and operators on 127.0.0.1."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def authority(name: str) -> tuple[Any, Any]:
    """A certificate authority of the test: certificate and key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return _signed(subject, key, subject, key, ca=True), key


def pem(ca: tuple[Any, Any]) -> bytes:
    """The authority's certificate."""
    return bytes(ca[0].public_bytes(serialization.Encoding.PEM))


def issued(ca: tuple[Any, Any], name: str) -> tuple[bytes, bytes]:
    """Certificate and key (PEM) for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _signed(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key, ca[0].subject, ca[1], ca=False
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM), private


def _signed(subject: Any, key: Any, issuer: Any, issuer_key: Any, *, ca: bool) -> Any:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
