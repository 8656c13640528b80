"""Tokens by which a source proves its address before a handshake begins (RFC 9000, 8.1.2).

Nothing is kept per source: the token holds, sealed, what the server needs when it comes back.

Layout: nonce (12 bytes), then AES-128-GCM of: time of making f64, length u8 and
original destination connection id, Retry source connection id (8 bytes). The source's
address is authenticated beside it.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from iroh_anyio.quic.aioquic_private import CONNECTION_ID_SIZE
from iroh_proto.address import Address, UdpAddress

TOKEN_LIFETIME = 30.0
"""Seconds. A client returns a Retry token at once, so it need not live long."""

NONCE_SIZE = 12
_KEY_SIZE = 16
_TIME = struct.Struct(">d")


@dataclass(frozen=True, slots=True)
class RetriedInitial:
    """What a valid token tells of the first Initial."""

    original_destination_cid: bytes
    retry_source_cid: bytes


class RetryTokens:
    """Makes and checks tokens with a key of its own that dies with it."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._aead = AESGCM(rng.randbytes(_KEY_SIZE))

    def create(
        self, source: Address, *, original_destination_cid: bytes, now: float
    ) -> tuple[bytes, bytes]:
        """Return a connection id for the Retry packet to come from, and the token it carries."""
        retry_source_cid = self._rng.randbytes(CONNECTION_ID_SIZE)
        plain = b"".join(
            (
                _TIME.pack(now),
                bytes((len(original_destination_cid),)),
                original_destination_cid,
                retry_source_cid,
            )
        )
        nonce = self._rng.randbytes(NONCE_SIZE)
        return retry_source_cid, nonce + self._aead.encrypt(nonce, plain, _address_bytes(source))

    def open(
        self, token: bytes, source: Address, *, destination_cid: bytes, now: float
    ) -> RetriedInitial | None:
        """Return what the token holds, ``None`` unless it is ours, fresh and for this source.

        :param destination_cid: the destination of the packet with the token; a client sends it
            to the connection id the Retry came from.
        """
        try:
            plain = self._aead.decrypt(
                token[:NONCE_SIZE], token[NONCE_SIZE:], _address_bytes(source)
            )
        except (InvalidTag, ValueError):
            return None
        (issued,) = _TIME.unpack_from(plain)
        end = _TIME.size + 1 + plain[_TIME.size]
        retried = RetriedInitial(plain[_TIME.size + 1 : end], plain[end:])
        if retried.retry_source_cid != destination_cid or now - issued >= TOKEN_LIFETIME:
            return None
        return retried


def _address_bytes(source: Address) -> bytes:
    if isinstance(source, UdpAddress):
        return b"udp " + source.packed_ip + source.port.to_bytes(2, "big")
    return b"derp" + source.node_id
