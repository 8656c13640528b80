"""Raw public keys as TLS identity (RFC 7250): iroh 0.34 and later.

The "certificate" is the SubjectPublicKeyInfo of the node id itself, 44 bytes of DER, and the
handshake is signed with the node's secret key::

    30 2a 30 05 06 03 2b 65 70 03 21 00 | node id (32)

Source: RFC 8410 section 4; iroh v0.35.0 ``iroh/src/tls/resolver.rs``, ``iroh/src/tls/verifier.rs``.
"""

from __future__ import annotations

from iroh_proto.errors import DecodeError
from iroh_proto.key import KEY_SIZE, NodeId

_SPKI_PREFIX = bytes.fromhex("302a300506032b6570032100")

SPKI_SIZE = len(_SPKI_PREFIX) + KEY_SIZE


def encode_spki(node_id: NodeId) -> bytes:
    """Return the 44-byte SubjectPublicKeyInfo of a node."""
    return _SPKI_PREFIX + node_id


def decode_spki(data: bytes) -> NodeId:
    """Return the node whose SubjectPublicKeyInfo this is.

    Possession of the key is proved by the handshake's CertificateVerify, not here.

    :raises DecodeError: if it is anything but an Ed25519 key that is a point of the curve.
    """
    if len(data) != SPKI_SIZE or not data.startswith(_SPKI_PREFIX):
        raise DecodeError(f"not the SubjectPublicKeyInfo of an Ed25519 key ({len(data)} bytes)")
    return NodeId(data[len(_SPKI_PREFIX) :])
