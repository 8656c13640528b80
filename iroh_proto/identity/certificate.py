"""Self-signed certificates as TLS identity: iroh 0.5.1 to 0.33, by option up to 0.35.

The certificate has an ECDSA key of its own, and one critical extension in which the node signs
for that key. The extension's value is 102 bytes of DER::

    30 64 | 04 20 node id (32) | 04 40 Ed25519 signature (64)

The signature covers ``libp2p-tls-handshake:`` and the DER SubjectPublicKeyInfo of the
certificate's key. libp2p itself puts a protobuf where the bare node id stands here, so the two do
not accept each other's certificates.

Source: iroh v0.28.1 ``iroh-net/src/tls/certificate.rs``, ``iroh-net/src/tls/verifier.rs``; libp2p
specification, ``tls/tls.md``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.utils import CryptographyDeprecationWarning

from iroh_proto.errors import DecodeError
from iroh_proto.key import KEY_SIZE, SIGNATURE_SIZE, NodeId, SecretKey

CertificatePublicKey: TypeAlias = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey

EXTENSION_OID = x509.ObjectIdentifier("1.3.6.1.4.1.53594.1.1")

ECDSA_SECP256R1_SHA256 = 0x0403
ECDSA_SECP384R1_SHA384 = 0x0503
ED25519 = 0x0807
SIGNATURE_SCHEMES = (ECDSA_SECP384R1_SHA384, ECDSA_SECP256R1_SHA256, ED25519)
"""TLS signature schemes that both sides offer, in the order iroh does."""

SERIAL_BITS = 159  # 20 bytes, the most RFC 5280 allows, of a positive number

_SIGNED_PREFIX = b"libp2p-tls-handshake:"
_SEQUENCE = bytes([0x30, 4 + KEY_SIZE + SIGNATURE_SIZE])
_KEY_HEADER = bytes([0x04, KEY_SIZE])
_SIGNATURE_HEADER = bytes([0x04, SIGNATURE_SIZE])
_EXTENSION_SIZE = 6 + KEY_SIZE + SIGNATURE_SIZE
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

# The dates that rcgen puts in a certificate nobody gave dates to.
_NOT_BEFORE = datetime(1975, 1, 1, tzinfo=UTC)
_NOT_AFTER = datetime(4096, 1, 1, tzinfo=UTC)


def make_certificate_key(rng: random.Random) -> ec.EllipticCurvePrivateKey:
    """Make the P-256 key of a certificate, which has nothing to do with the node's own key."""
    return ec.derive_private_key(rng.randrange(1, _P256_ORDER), ec.SECP256R1())


def make_serial(rng: random.Random) -> int:
    """Make a certificate's serial number, which nobody looks at: positive, up to 20 bytes."""
    return rng.randrange(1, 1 << SERIAL_BITS)


def build_certificate(
    secret_key: SecretKey, *, certificate_key: ec.EllipticCurvePrivateKey, serial: int
) -> bytes:
    """Return the DER certificate in which the node vouches for ``certificate_key``.

    It is laid out as rcgen lays out iroh's own. The same arguments give the same bytes.
    """
    spki = _encode_spki(certificate_key.public_key())
    signature = secret_key.sign(_SIGNED_PREFIX + spki)
    value = _SEQUENCE + _KEY_HEADER + secret_key.public + _SIGNATURE_HEADER + signature
    nameless = x509.Name([])
    builder = (
        x509.CertificateBuilder()
        .subject_name(nameless)
        .issuer_name(nameless)
        .public_key(certificate_key.public_key())
        .serial_number(serial)
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .add_extension(x509.UnrecognizedExtension(EXTENSION_OID, value), critical=True)
    )
    certificate = builder.sign(certificate_key, hashes.SHA256(), ecdsa_deterministic=True)
    return certificate.public_bytes(Encoding.DER)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedCertificate:
    """What a certificate proved, and how its owner has to sign the handshake.

    The handshake's CertificateVerify must use exactly ``signature_scheme`` and verify under
    ``public_key``; only then is the peer known to be ``node_id``.
    """

    node_id: NodeId
    public_key: CertificatePublicKey
    signature_scheme: int


def verify_certificate(chain: Sequence[bytes], *, unix_time: float) -> NodeId:
    """Return the node that the only certificate of a chain speaks for.

    See :func:`examine_certificate` for what is checked and what is still owed.

    :raises DecodeError: naming the first check that fails.
    """
    return examine_certificate(chain, unix_time=unix_time).node_id


def examine_certificate(chain: Sequence[bytes], *, unix_time: float) -> VerifiedCertificate:
    """Check a chain as iroh does, all but the handshake's CertificateVerify.

    There must be one certificate, valid at ``unix_time`` (seconds since 1970), with a key and
    signature of a scheme iroh knows, signed by itself, and with one extension in which a node
    signs for its key. No other critical extension may be there.

    :raises DecodeError: naming the first check that fails.
    """
    if len(chain) != 1:
        raise DecodeError(f"a node presents exactly one certificate, not {len(chain)}")
    certificate = _parse(chain[0])
    node_id, signature = _find_identity(certificate)
    _check_validity(certificate, unix_time)
    public_key = _public_key(certificate)
    scheme = _signature_scheme(public_key, certificate)
    _check_self_signature(certificate, public_key)
    if not node_id.verify(_SIGNED_PREFIX + _encode_spki(public_key), signature):
        raise DecodeError("the node did not sign for the key of this certificate")
    return VerifiedCertificate(node_id=node_id, public_key=public_key, signature_scheme=scheme)


def _parse(der: bytes) -> x509.Certificate:
    try:
        certificate = x509.load_der_x509_certificate(der)
        # The library only warns of such a serial, or raises where warnings are errors.
        is_serial_good = certificate.serial_number > 0
    except (ValueError, x509.InvalidVersion, CryptographyDeprecationWarning) as error:
        raise DecodeError(f"not an X.509 certificate: {error}") from None
    if not is_serial_good:
        raise DecodeError("the serial number of this certificate is not positive")
    return certificate


def _find_identity(certificate: x509.Certificate) -> tuple[NodeId, bytes]:
    """Return the node id and the signature of the extension."""
    try:
        extensions = certificate.extensions
    except Exception as error:  # noqa: BLE001  # the library raises KeyError, TypeError and its own
        raise DecodeError(f"malformed certificate extensions: {error}") from None
    value: bytes | None = None
    for extension in extensions:
        if extension.oid == EXTENSION_OID:
            value = extension.value.public_bytes()
        elif extension.critical:
            oid = extension.oid.dotted_string
            raise DecodeError(f"unknown critical extension in this certificate: {oid}")
    if value is None:
        raise DecodeError("this certificate has no extension that names a node")
    return _decode_identity(value)


def _decode_identity(value: bytes) -> tuple[NodeId, bytes]:
    key_end = 4 + KEY_SIZE
    is_expected = (
        len(value) == _EXTENSION_SIZE
        and value.startswith(_SEQUENCE + _KEY_HEADER)
        and value[key_end : key_end + 2] == _SIGNATURE_HEADER
    )
    if not is_expected:
        raise DecodeError("the extension that names a node is malformed")
    return NodeId(value[4:key_end]), value[key_end + 2 :]


def _check_validity(certificate: x509.Certificate, unix_time: float) -> None:
    try:
        not_before = certificate.not_valid_before_utc
        not_after = certificate.not_valid_after_utc
    except ValueError as error:
        raise DecodeError(f"the dates of this certificate are none: {error}") from None
    if not not_before.timestamp() <= unix_time <= not_after.timestamp():
        raise DecodeError(
            f"this certificate is valid from {not_before} to {not_after}, which is not now"
        )


def _public_key(certificate: x509.Certificate) -> CertificatePublicKey:
    try:
        public_key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise DecodeError(f"the key of this certificate is of no use: {error}") from None
    if not isinstance(public_key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
        raise DecodeError("the key of a node's certificate is ECDSA or Ed25519")
    # What is signed for is the key as the certificate spells it. Compressed points, which iroh
    # does not read either, would come out of the library spelled otherwise.
    if _encode_spki(public_key) not in certificate.tbs_certificate_bytes:
        raise DecodeError("the key of this certificate is not in its plain form")
    return public_key


def _signature_scheme(public_key: CertificatePublicKey, certificate: x509.Certificate) -> int:
    """Return the TLS signature scheme that goes with a certificate's key and signature."""
    oid = certificate.signature_algorithm_oid
    oids = x509.SignatureAlgorithmOID
    match public_key:
        case ed25519.Ed25519PublicKey() if oid == oids.ED25519:
            return ED25519
        case ec.EllipticCurvePublicKey(curve=ec.SECP256R1()) if oid == oids.ECDSA_WITH_SHA256:
            return ECDSA_SECP256R1_SHA256
        case ec.EllipticCurvePublicKey(curve=ec.SECP384R1()) if oid == oids.ECDSA_WITH_SHA384:
            return ECDSA_SECP384R1_SHA384
    raise DecodeError(f"unsupported key and signature of a certificate: {oid.dotted_string}")


def _check_self_signature(certificate: x509.Certificate, public_key: CertificatePublicKey) -> None:
    signature, signed = certificate.signature, certificate.tbs_certificate_bytes
    try:
        if isinstance(public_key, ed25519.Ed25519PublicKey):
            public_key.verify(signature, signed)
        else:
            is_p256 = isinstance(public_key.curve, ec.SECP256R1)
            digest = hashes.SHA256() if is_p256 else hashes.SHA384()
            public_key.verify(signature, signed, ec.ECDSA(digest))
    except InvalidSignature:
        raise DecodeError("this certificate is not signed with its own key") from None


def _encode_spki(public_key: CertificatePublicKey) -> bytes:
    return public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
