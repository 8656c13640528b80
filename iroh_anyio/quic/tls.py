"""Proving node ids in the TLS handshake: raw public keys and X.509, both at once as server.

Raw (iroh 0.34 and later, RFC 7250): the certificate is the 44-byte SubjectPublicKeyInfo of the
node's Ed25519 key and the node's own key signs the handshake. ClientHello carries the extensions
client_certificate_type (19) and server_certificate_type (20), each the list ``01 02``;
EncryptedExtensions carries both with the single byte ``02``.

X.509 (0.5.1 to 0.35): a self-signed certificate of a passing P-256 key, with the node id and its
signature in an extension, as in libp2p; no certificate type extensions.

Either way both sides must present an identity, and a dialler accepts only the node it dialled.
A server tells the two apart by extension 20 of the ClientHello.

Sources: iroh v0.28.1 ``iroh-net/src/tls``, v0.35.0 ``iroh/src/tls``, v1.0.3 ``iroh/src/tls``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal, TypeAlias

from aioquic import tls
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from iroh_anyio.quic.aioquic_private import (
    Extension,
    HookedContext,
    Signer,
    make_alert,
)
from iroh_anyio.quic.options import IdentityMode
from iroh_proto.errors import DecodeError
from iroh_proto.identity.certificate import (
    SIGNATURE_SCHEMES,
    VerifiedCertificate,
    build_certificate,
    examine_certificate,
    make_certificate_key,
    make_serial,
)
from iroh_proto.identity.raw_key import decode_spki, encode_spki
from iroh_proto.key import NodeId, SecretKey

IdentityKind: TypeAlias = Literal["raw", "x509"]
"""One of the two ways to prove a node id."""

CLIENT_CERTIFICATE_TYPE = 19
SERVER_CERTIFICATE_TYPE = 20
"""TLS extensions (RFC 7250, section 3)."""

RAW_PUBLIC_KEY = 2
"""The certificate type of raw public keys; X.509 is 0."""

ED25519 = int(tls.SignatureAlgorithm.ED25519)
ECDSA_P256 = int(tls.SignatureAlgorithm.ECDSA_SECP256R1_SHA256)
ECDSA_P384 = int(tls.SignatureAlgorithm.ECDSA_SECP384R1_SHA384)

RAW_SCHEMES = (ED25519,)
"""What is accepted of a peer with a raw key; of one with a certificate, SIGNATURE_SCHEMES."""

CLIENT_GROUPS = (tls.Group.X25519,)
"""aioquic makes a key share for every group it offers; iroh takes X25519 always."""

SERVER_GROUPS = (tls.Group.X25519, tls.Group.SECP256R1)

_RAW_LIST = bytes((1, RAW_PUBLIC_KEY))
_RAW_CHOICE = bytes((RAW_PUBLIC_KEY,))


class _NodeSigner:
    """The node's own key as TLS wants it."""

    __slots__ = ("_secret_key",)

    def __init__(self, secret_key: SecretKey) -> None:
        self._secret_key = secret_key

    def sign(self, data: bytes, /, *parameters: object) -> bytes:
        """Return the Ed25519 signature of ``data``."""
        return self._secret_key.sign(data)


class LocalIdentity:
    """What this endpoint presents: its raw key, and a certificate made when first needed."""

    def __init__(self, *, secret_key: SecretKey, rng: random.Random) -> None:
        self.secret_key = secret_key
        self._rng = rng
        self._spki = encode_spki(secret_key.public)
        self._signer = _NodeSigner(secret_key)
        self._x509: tuple[bytes, Signer] | None = None

    def present(
        self, context: HookedContext, kind: IdentityKind, extensions: Sequence[Extension]
    ) -> None:
        """Have ``context`` present the identity of one kind."""
        if kind == "raw":
            context.use_identity(
                certificate=self._spki,
                key=self._signer,
                scheme=ED25519,
                accepted_schemes=RAW_SCHEMES,
                extensions=extensions,
            )
        else:
            certificate, key = self._certificate()
            context.use_identity(
                certificate=certificate,
                key=key,
                scheme=ECDSA_P256,
                accepted_schemes=SIGNATURE_SCHEMES,
                extensions=extensions,
            )

    def _certificate(self) -> tuple[bytes, Signer]:
        if self._x509 is None:
            key = make_certificate_key(self._rng)
            encoded = build_certificate(
                self.secret_key, certificate_key=key, serial=make_serial(self._rng)
            )
            self._x509 = (encoded, key)
        return self._x509


class NodeContext(HookedContext):
    """TLS between nodes. Either :meth:`begin_client` or :meth:`begin_server` is owed at once.

    ``peer_id`` is who the peer claims to be, proven once the handshake is complete.
    ``identity_failed`` says that an alert raised here was about the peer's identity,
    ``answered_by`` who claimed to be there instead of the node dialled, and ``kind_mismatch``
    that the peer speaks the other kind.
    """

    identity: LocalIdentity
    kind: IdentityKind
    peer_id: NodeId | None
    answered_by: NodeId | None
    identity_failed: bool
    kind_mismatch: bool
    _mode: IdentityMode
    _expected: NodeId | None
    _unix_time: float
    _peer_key: NodeId | VerifiedCertificate | None

    def begin_client(
        self, identity: LocalIdentity, *, kind: IdentityKind, expected: NodeId, unix_time: float
    ) -> None:
        """Dial ``expected``, proving and demanding identities of one kind."""
        self._begin(identity, expected, unix_time)
        self.kind = kind
        self.use_groups(CLIENT_GROUPS)
        types = [(CLIENT_CERTIFICATE_TYPE, _RAW_LIST), (SERVER_CERTIFICATE_TYPE, _RAW_LIST)]
        identity.present(self, kind, types if kind == "raw" else [])

    def begin_server(
        self, identity: LocalIdentity, *, mode: IdentityMode, unix_time: float
    ) -> None:
        """Accept anyone with an identity of the kinds that ``mode`` allows."""
        self._begin(identity, None, unix_time)
        self._mode = mode
        self.use_groups(SERVER_GROUPS)

    def choose_identity(self, client_hello: bytes) -> None:
        """Answer with the kind that the ClientHello asks for."""
        offered = client_hello_extensions(client_hello)
        server_types = _type_list(offered.get(SERVER_CERTIFICATE_TYPE))
        client_types = _type_list(offered.get(CLIENT_CERTIFICATE_TYPE))
        wants_raw = RAW_PUBLIC_KEY in server_types
        if wants_raw != (RAW_PUBLIC_KEY in client_types):
            raise self._mismatch("raw keys are spoken by both sides or by neither")
        if self._mode != "auto" and wants_raw != (self._mode == "raw"):
            raise self._mismatch(f"this endpoint speaks only {self._mode} identities")
        self.kind = "raw" if wants_raw else "x509"
        types = [(CLIENT_CERTIFICATE_TYPE, _RAW_CHOICE), (SERVER_CERTIFICATE_TYPE, _RAW_CHOICE)]
        self.identity.present(self, self.kind, types if wants_raw else [])

    def check_server_extensions(self, extensions: Sequence[Extension]) -> None:
        """Require the certificate types asked for, and no others."""
        given = dict(extensions)
        types = (given.get(CLIENT_CERTIFICATE_TYPE), given.get(SERVER_CERTIFICATE_TYPE))
        if self.kind == "raw" and types != (_RAW_CHOICE, _RAW_CHOICE):
            raise self._mismatch("the server did not agree to raw public keys")
        if self.kind == "x509" and types != (None, None):
            self.kind_mismatch = True
            raise make_alert(
                tls.AlertDescription.unsupported_extension,
                "the server answered a certificate type nobody offered",
            )

    def take_peer_certificates(self, entries: Sequence[bytes]) -> None:
        """Find out who the peer claims to be, and whether it is who was dialled."""
        try:
            peer_id = self._read_identity(entries)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise self._bad_identity(tls.AlertDescription.bad_certificate, str(error)) from error
        if self._expected is not None and peer_id != self._expected:
            # The peer is told less: whom we dialled is none of a stranger's business.
            self.answered_by = peer_id
            raise self._bad_identity(tls.AlertDescription.unknown_ca, "not the node dialled")
        if peer_id == self.identity.secret_key.public:
            # An echo of our own packets, or a copy of our key: nobody else has any business here.
            raise self._bad_identity(tls.AlertDescription.unknown_ca, "this is the node itself")
        self.peer_id = peer_id

    def check_signature(self, scheme: int, signature: bytes, signed: bytes) -> None:
        """Require the signature of the key presented, in the one scheme that fits that key."""
        key = self._peer_key
        fitting = key.signature_scheme if isinstance(key, VerifiedCertificate) else ED25519
        if scheme != fitting:
            raise self._bad_identity(
                tls.AlertDescription.illegal_parameter,
                f"signature scheme {scheme:#06x} does not fit the peer's key",
            )
        if key is None or not _holds(key, signature, signed):
            raise self._bad_identity(
                tls.AlertDescription.decrypt_error, "the peer does not hold the key it presented"
            )

    def _begin(self, identity: LocalIdentity, expected: NodeId | None, unix_time: float) -> None:
        self.prepare()
        self.identity = identity
        self.peer_id = self.answered_by = None
        self.identity_failed = self.kind_mismatch = False
        self._expected = expected
        self._unix_time = unix_time
        self._peer_key = None

    def _read_identity(self, entries: Sequence[bytes]) -> NodeId:
        if self.kind == "x509":
            verified = examine_certificate(entries, unix_time=self._unix_time)
            self._peer_key = verified
            return verified.node_id
        if len(entries) != 1:
            raise DecodeError(f"{len(entries)} raw keys presented instead of one")
        self._peer_key = decode_spki(entries[0])
        return self._peer_key

    def _mismatch(self, text: str) -> tls.Alert:
        self.kind_mismatch = True
        return make_alert(tls.AlertDescription.handshake_failure, text)

    def _bad_identity(self, description: tls.AlertDescription, text: str) -> tls.Alert:
        self.identity_failed = True
        return make_alert(description, text)


def client_hello_extensions(message: bytes) -> dict[int, bytes]:
    """Return the extensions of a ClientHello handshake message by type.

    Layout (RFC 8446, section 4.1.2): type u8, length u24, version u16, random 32 bytes, then
    session id (u8 length), cipher suites (u16), compression methods (u8) and extensions (u16),
    each extension being type u16, length u16, data. A message that breaks off gives what it
    has: aioquic parses it next and raises the alert it deserves.
    """
    found: dict[int, bytes] = {}
    position = 38
    for width in (1, 2, 1):
        position += width + int.from_bytes(message[position : position + width], "big")
    position += 2
    while position + 4 <= len(message):
        kind = int.from_bytes(message[position : position + 2], "big")
        end = position + 4 + int.from_bytes(message[position + 2 : position + 4], "big")
        found[kind] = message[position + 4 : end]
        position = end
    return found


def _type_list(data: bytes | None) -> bytes:
    """Return the certificate types in a ClientHello's list: a u8 length, then one byte each."""
    if not data or data[0] != len(data) - 1:
        return b""
    return data[1:]


def _holds(key: NodeId | VerifiedCertificate, signature: bytes, signed: bytes) -> bool:
    """Say whether the owner of ``key`` made this signature."""
    if isinstance(key, NodeId):
        return key.verify(signed, signature)
    public = key.public_key
    try:
        if isinstance(public, ed25519.Ed25519PublicKey):
            return NodeId(public.public_bytes_raw()).verify(signed, signature)
        is_p384 = key.signature_scheme == ECDSA_P384
        algorithm = hashes.SHA384() if is_p384 else hashes.SHA256()
        public.verify(signature, signed, ec.ECDSA(algorithm))
    except InvalidSignature:
        return False
    return True
