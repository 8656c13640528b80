"""Tells whoever asks by STUN the address that the question came from.

It has no timers, no events and keeps nothing about anyone, so it cannot be exhausted. A response
is 32 or 44 bytes to a request of at least 28, so it is of little use as an amplifier.

Source: iroh v0.35.0 ``iroh-relay/src/server.rs``; Tailscale v1.102.3
``net/stunserver/stunserver.go``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from iroh_proto.address import Address, UdpAddress
from iroh_proto.errors import DecodeError
from iroh_proto.machine import Transmit
from iroh_proto.stun.message import decode_binding_request, encode_binding_response
from iroh_proto.timers import LatestTime

MAX_QUEUED_RESPONSES = 4096
"""Responses waiting to be drained: more than a host hands over in one batch. Later ones are
dropped, as a full socket buffer would."""


@dataclass(slots=True)
class StunServerStats:
    """What a :class:`StunServer` has counted so far, in datagrams."""

    responses: int = 0
    """Requests answered."""
    bad_requests: int = 0
    """Dropped: no correct Binding request, or not from a UDP address."""
    overflows: int = 0
    """Dropped: :data:`MAX_QUEUED_RESPONSES` were waiting."""


class StunServer:
    """Answers Binding requests. A datagram machine without timers and events."""

    def __init__(self) -> None:
        self._time = LatestTime()
        self._transmits: list[Transmit] = []
        self._queued = 0
        self._stats = StunServerStats()

    @property
    def stats(self) -> StunServerStats:
        """A copy of the counters."""
        return replace(self._stats)

    def receive_datagrams(self, batch: Sequence[bytes], addr: Address, *, now: float) -> None:
        """Answer the requests among some datagrams from one address; drop and count the rest."""
        self._time.advance(now)
        responses = [response for data in batch if (response := self._answer(data, addr))]
        responses = self._admit(responses)
        if responses:
            self._queue(responses, addr)

    def handle_timer(self, *, now: float) -> None:
        """Do nothing: there are no deadlines."""
        self._time.advance(now)

    def get_timer(self) -> float | None:
        """Return ``None``: there are no deadlines."""
        return None

    def next_event(self) -> None:
        """Return ``None``: there are no events."""

    def datagrams_to_send(self) -> list[Transmit]:
        """Return the responses to send, and forget them."""
        transmits, self._transmits = self._transmits, []
        self._queued = 0
        return transmits

    def _answer(self, data: bytes, addr: Address) -> bytes | None:
        if not isinstance(addr, UdpAddress):
            self._stats.bad_requests += 1
            return None
        try:
            transaction_id = decode_binding_request(data)
        except DecodeError:
            self._stats.bad_requests += 1
            return None
        return encode_binding_response(transaction_id, addr)

    def _admit(self, responses: list[bytes]) -> list[bytes]:
        """Return as many responses as the queue has room for, and count them."""
        room = MAX_QUEUED_RESPONSES - self._queued
        admitted = responses[:room]
        self._queued += len(admitted)
        self._stats.responses += len(admitted)
        self._stats.overflows += len(responses) - len(admitted)
        return admitted

    def _queue(self, responses: list[bytes], addr: Address) -> None:
        if self._transmits and self._transmits[-1].addr == addr:
            responses = [*self._transmits.pop().datagrams, *responses]
        # Only the address decides about the size, so all of one transmit are of one size.
        self._transmits.append(Transmit(addr, responses, len(responses[0])))
