"""A QAD server's certificate, and the authority that vouches for it."""

from __future__ import annotations

import datetime
import random

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from iroh_anyio.quic.qad_server import QadServer

NAME = "derp.example"

# aioquic judges certificates by the wall clock.
_BEGIN = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
_END = datetime.datetime(2120, 1, 1, tzinfo=datetime.UTC)


def _make(
    name: str,
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_BEGIN)
        .not_valid_after(_END)
        .add_extension(x509.BasicConstraints(ca=key is issuer_key, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    )
    return builder.sign(issuer_key, hashes.SHA256())


def _authority(name: str) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    return key, _make(name, key, name, key).public_bytes(serialization.Encoding.PEM)


_CA_KEY, CA_PEM = _authority("authority.example")
_, OTHER_CA_PEM = _authority("another.example")

# Its signatures are all of one length, so that runs with the same seed are as well.
KEY = ed25519.Ed25519PrivateKey.generate()
CERTIFICATE = _make(NAME, KEY, "authority.example", _CA_KEY)


def make_server(rng: random.Random) -> QadServer:
    return QadServer(certificates=[CERTIFICATE], private_key=KEY, rng=rng)
