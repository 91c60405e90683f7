"""A consortium's TLS files and sites' transport keys, for tests with real listeners."""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PEM = serialization.Encoding.PEM
DAY = dt.timedelta(days=1)


def make_ca(folder: Path, stem: str = "ca") -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """A CA; writes its certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    certificate = (
        _certificate("test CA", "test CA", key, now - DAY, now + 30 * DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / f"{stem}.pem").write_bytes(certificate.public_bytes(PEM))
    return key, certificate


def make_server(
    folder: Path,
    ca: tuple[ec.EllipticCurvePrivateKey, x509.Certificate],
    stem: str = "server",
    life: dt.timedelta = 7 * DAY,
    names: Sequence[str] = (),
) -> None:
    """A certificate for 127.0.0.1 and these names, and its key; a negative life is one that has expired."""
    own = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), *map(x509.DNSName, names)]
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    certificate = (
        _certificate("server", "test CA", key, now - 2 * DAY, now + life)
        .add_extension(x509.SubjectAlternativeName(own), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(ca[0], hashes.SHA256())
    )
    (folder / f"{stem}.pem").write_bytes(certificate.public_bytes(PEM))
    (folder / f"{stem}.key").write_bytes(
        key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def make_transport_key(path: Path) -> bytes:
    """A site's key, OpenSSH; gives the public one as the roster has it."""
    key = ec.generate_private_key(ec.SECP384R1())
    path.write_bytes(
        key.private_bytes(PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    )
    return key.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint
    )


def _certificate(
    subject: str, issuer: str, key: ec.EllipticCurvePrivateKey, begin: dt.datetime, end: dt.datetime
) -> x509.CertificateBuilder:
    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    return (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )
