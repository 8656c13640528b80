"""What a peer's QUIC transport parameters tell beyond what aioquic keeps of them.

Layout (RFC 9000, section 18): a sequence of identifier, length and value, identifier and length
being variable-length integers. Unknown identifiers are skipped.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aioquic.tls import ExtensionType

from iroh_anyio.quic.aioquic_private import Extension
from iroh_proto.wire import decode_quic_varint

MAX_IDLE_TIMEOUT = 0x01
MAX_UDP_PAYLOAD_SIZE = 0x03
INITIAL_MAX_PATH_ID = 0x3E
"""QUIC multipath; iroh announces it from 0.96 on, with the release that dropped disco."""

N0_NAT_TRAVERSAL = 0x3D7F91120401
"""n0's hole punching inside QUIC, announced beside multipath."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerParameters:
    """What a peer announced.

    ``idle_timeout`` is in seconds and ``max_udp_payload_size`` in bytes, ``None`` if not limited.
    ``punches_in_quic`` says that the peer finds direct paths by QUIC itself (iroh 0.96 and later)
    and answers no disco ping.
    """

    idle_timeout: float | None
    max_udp_payload_size: int | None
    punches_in_quic: bool


def raw_parameters(extensions: Iterable[Extension]) -> dict[int, bytes]:
    """Return the values of a peer's transport parameters, found among its TLS extensions.

    aioquic has parsed them before, and refused what does not parse.
    """
    found: dict[int, bytes] = {}
    for kind, data in extensions:
        if kind == ExtensionType.QUIC_TRANSPORT_PARAMETERS:
            position = 0
            while position < len(data):
                identifier, position = decode_quic_varint(data, position)
                size, position = decode_quic_varint(data, position)
                found[identifier] = data[position : position + size]
                position += size
    return found


def peer_parameters(extensions: Iterable[Extension]) -> PeerParameters:
    """Read the peer's transport parameters among its TLS extensions."""
    found = raw_parameters(extensions)
    return PeerParameters(
        idle_timeout=(_number(found, MAX_IDLE_TIMEOUT) or 0) / 1000 or None,
        max_udp_payload_size=_number(found, MAX_UDP_PAYLOAD_SIZE),
        punches_in_quic=INITIAL_MAX_PATH_ID in found or N0_NAT_TRAVERSAL in found,
    )


def _number(found: dict[int, bytes], identifier: int) -> int | None:
    data = found.get(identifier)
    return None if data is None else decode_quic_varint(data)[0]
