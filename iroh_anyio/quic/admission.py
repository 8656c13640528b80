"""What becomes of a datagram that belongs to no connection.

Strangers send these, so each step costs no more than the one before has earned: a header that
parses, a version spoken, an endpoint that serves anything, the owner's filter, room among the
connections and half-open handshakes, and under pressure a proven address (Retry). No state is
kept of whoever does not get past all of them, and no answer is larger than what it answers.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from aioquic.quic.packet import (
    QuicErrorCode,
    encode_quic_retry,
    encode_quic_version_negotiation,
)

from iroh_anyio.quic.aioquic_private import QUIC_VERSION, encode_initial_close
from iroh_anyio.quic.events import EndpointStats
from iroh_anyio.quic.header import INITIAL, LONG_HEADER, LongHeader, decode_long_header
from iroh_anyio.quic.options import MIN_DATAGRAM_SIZE, EndpointOptions, IncomingAttempt
from iroh_anyio.quic.retry import RetryTokens
from iroh_proto.address import Address
from iroh_proto.errors import DecodeError
from iroh_proto.key import NodeId

MIN_CLIENT_CID_SIZE = 8
"""Bytes. A client's first destination connection id has at least so many (RFC 9000, 7.2)."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A first Initial that may begin a handshake.

    ``initial_cid`` is its destination connection id, ``original_cid`` that of the client's very
    first packet; they differ after a Retry, which came from ``retry_cid``.
    """

    initial_cid: bytes
    original_cid: bytes
    retry_cid: bytes | None


class Admission:
    """Decides on first packets, and counts in ``stats`` what it turns away."""

    def __init__(
        self, *, options: EndpointOptions, rng: random.Random, stats: EndpointStats
    ) -> None:
        self._options = options
        self._tokens = RetryTokens(rng)
        self._stats = stats
        self.serves = False
        """Whether the endpoint serves any protocol."""

    def judge(
        self,
        datagram: bytes,
        source: Address,
        node_id: NodeId | None,
        *,
        connections: int,
        half_open: int,
        now: float,
    ) -> Admitted | bytes | None:
        """Return an admission, a datagram to answer with, or ``None`` to drop it.

        :param node_id: who ``source`` is believed to be.
        :param connections: how many connections there are, half-open ones included.
        """
        header = self._first_header(datagram)
        if header is None:
            return None
        if header.version != QUIC_VERSION:
            return self._offer_version(header)
        if header.kind != INITIAL or len(header.destination_cid) < MIN_CLIENT_CID_SIZE:
            self._stats.dropped_unknown += 1
            return None
        if not self.serves or not self._passes_filter(source, node_id):
            self._stats.refused += 1
            return _refuse(header)
        if connections >= self._options.max_connections:
            self._stats.dropped_connection_limit += 1
            return _refuse(header)
        if half_open >= self._options.max_half_open:
            self._stats.dropped_half_open_limit += 1
            return None
        return self._admit(header, source, is_pressed=self._is_pressed(half_open), now=now)

    def _first_header(self, datagram: bytes) -> LongHeader | None:
        if datagram and not datagram[0] & LONG_HEADER:
            self._stats.dropped_unknown += 1
            return None
        try:
            header = decode_long_header(datagram, version=QUIC_VERSION)
        except DecodeError:
            self._stats.dropped_malformed += 1
            return None
        # Version 0 is the mark of a Version Negotiation packet; answering it could go on forever.
        unanswerable = header.version == 0 or len(datagram) < MIN_DATAGRAM_SIZE
        if unanswerable or (header.version == QUIC_VERSION and not header.fixed_bit):
            self._stats.dropped_malformed += 1
            return None
        return header

    def _offer_version(self, header: LongHeader) -> bytes:
        self._stats.versions_offered += 1
        return encode_quic_version_negotiation(
            source_cid=header.destination_cid,
            destination_cid=header.source_cid,
            supported_versions=[QUIC_VERSION],
        )

    def _passes_filter(self, source: Address, node_id: NodeId | None) -> bool:
        accept = self._options.accept_filter
        return accept is None or accept(IncomingAttempt(source=source, node_id=node_id))

    def _is_pressed(self, half_open: int) -> bool:
        return half_open >= self._options.retry_threshold

    def _admit(
        self, header: LongHeader, source: Address, *, is_pressed: bool, now: float
    ) -> Admitted | bytes:
        cid = header.destination_cid
        if header.token:
            retried = self._tokens.open(header.token, source, destination_cid=cid, now=now)
            if retried is not None:
                return Admitted(cid, retried.original_destination_cid, retried.retry_source_cid)
            self._stats.bad_tokens += 1
        if not is_pressed:
            return Admitted(cid, cid, None)
        self._stats.retries_sent += 1
        retry_cid, token = self._tokens.create(source, original_destination_cid=cid, now=now)
        return encode_quic_retry(
            version=QUIC_VERSION,
            source_cid=retry_cid,
            destination_cid=header.source_cid,
            original_destination_cid=cid,
            retry_token=token,
        )


def _refuse(header: LongHeader) -> bytes:
    return encode_initial_close(
        source_cid=header.destination_cid,
        destination_cid=header.source_cid,
        code=int(QuicErrorCode.CONNECTION_REFUSED),
    )
