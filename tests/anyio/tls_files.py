"""Certificates as operators have them: PEM files, signed by an authority of the test's own."""

from __future__ import annotations

import datetime
import ssl
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = datetime.timedelta(days=1)
NAMES = x509.SubjectAlternativeName(
    [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
)


@dataclass(frozen=True)
class Authority:
    """A certificate authority that lives for a day."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("a test's authority")
        builder = _builder(name, name, key).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        return cls(key, builder.sign(key, hashes.SHA256()))

    def write(self, path: Path) -> Path:
        """Write the certificate that clients are to trust."""
        path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        return path

    def issue(self, certificate_path: Path, key_path: Path, serial: int) -> None:
        """Write a certificate for ``localhost`` and 127.0.0.1, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name("localhost"), self.certificate.subject, key, serial)
        builder = builder.add_extension(NAMES, critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        _write(certificate, key, certificate_path, key_path)


def issue_self_signed(certificate_path: Path, key_path: Path) -> None:
    """Write a certificate for ``localhost`` and 127.0.0.1 that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("localhost")
    builder = _builder(name, name, key).add_extension(NAMES, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    _write(builder.sign(key, hashes.SHA256()), key, certificate_path, key_path)


def _write(
    certificate: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    certificate_path: Path,
    key_path: Path,
) -> None:
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    serial: int | None = None,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number() if serial is None else serial)
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
    )


def server_context(authority: Authority, folder: Path) -> ssl.SSLContext:
    """Return what serves TLS with a new certificate, whose files are put into the folder."""
    authority.issue(folder / "server.crt", folder / "server.key", serial=1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    return context
