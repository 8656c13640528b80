"""Asks STUN servers which address they see: the smallest complete machine.

States of one probe::

    start ──> waiting ──────────── response from the server ──> StunAddressFound
                 │  ^ │
      next delay ▼  │ └─────────── PROBE_TIMEOUT ─────────────> StunProbeTimedOut
             sends again

Sending again is a new transaction, not the old one repeated, so that a response says which
request it answers and its round trip is measured from that one.

To be read beside :mod:`iroh_proto.machine`, as a pattern for every other machine. Each input
first passes ``now`` through :class:`~iroh_proto.timers.LatestTime`, and checks what the caller gave
before it changes anything. What comes of it is queued: events for the caller, datagrams for the
wire. Deadlines lie in one :class:`~iroh_proto.timers.TimerTable`, so ``get_timer`` only looks.
Datagrams that are of no use are counted, never raised. Nothing here knows of sockets or clocks::

    probe = StunProbe(rng=SystemRandom())
    probe.start(server, now=monotonic())
    # then, after each input: next_event(), datagrams_to_send(), and last get_timer()

Source: iroh v0.12.0 ``iroh-net/src/netcheck.rs`` (delays and limit); RFC 8489 section 6.3.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from iroh_proto.address import Address, UdpAddress
from iroh_proto.errors import DecodeError, LocalProtocolError
from iroh_proto.machine import Transmit
from iroh_proto.stun.message import (
    TRANSACTION_ID_SIZE,
    decode_binding_response,
    encode_binding_request,
)
from iroh_proto.timers import LatestTime, TimerTable

REQUEST_DELAYS = (0.0, 0.1, 0.2)
"""Seconds from the start of a probe to each of its requests: iroh's full probe plan."""

PROBE_TIMEOUT = 3.0
"""Seconds a probe waits for a response: what iroh gives all probes of a report together."""

MAX_REQUESTS = 8
"""Requests of one probe. Upstream's plans never send more than 4."""

MAX_PROBES = 256
"""Probes at the same time: a hundred servers asked over IPv4 and IPv6, and some room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StunAddressFound:
    """A server answered. ``address`` is where it saw the request come from.

    ``latency`` is the round trip in seconds.
    """

    probe_id: int
    server: UdpAddress
    address: UdpAddress
    latency: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StunProbeTimedOut:
    """A server did not answer within :data:`PROBE_TIMEOUT`."""

    probe_id: int
    server: UdpAddress


StunProbeEvent: TypeAlias = StunAddressFound | StunProbeTimedOut


@dataclass(slots=True)
class StunProbeStats:
    """What a :class:`StunProbe` has counted so far, in datagrams."""

    requests: int = 0
    """Requests sent."""
    responses: int = 0
    """Responses that answered a probe."""
    malformed: int = 0
    """Dropped: no Binding response."""
    unmatched: int = 0
    """Dropped: to no open request, or not from the server that was asked."""


class StunProbe:
    """Asks STUN servers for this socket's public address. A datagram machine.

    :param rng: gives the transaction ids, which is what keeps others from answering for a server.
    :param software: what requests say of the sender, see
        :data:`~iroh_proto.stun.message.TAILSCALE_SOFTWARE`; nothing by default, as iroh.
    """

    def __init__(self, *, rng: random.Random, software: str | None = None) -> None:
        self._rng = rng
        self._software = software
        self._time = LatestTime()
        self._timers: TimerTable[int] = TimerTable()
        self._probes: dict[int, _Probe] = {}
        self._requests: dict[bytes, _Request] = {}
        self._next_probe_id = 0
        self._events: deque[StunProbeEvent] = deque()
        self._transmits: list[Transmit] = []
        self._stats = StunProbeStats()

    @property
    def stats(self) -> StunProbeStats:
        """A copy of the counters."""
        return replace(self._stats)

    def start(
        self, server: UdpAddress, *, delays: Sequence[float] = REQUEST_DELAYS, now: float
    ) -> int:
        """Begin to ask a server, and return the number of the probe, which its event will carry.

        :param delays: seconds from now to each request, ascending; the first answer ends the rest.
        :raises LocalProtocolError: if the delays are none, more than :data:`MAX_REQUESTS`, not
            ascending or not below :data:`PROBE_TIMEOUT`, or :data:`MAX_PROBES` are running.
        """
        if not 0 < len(delays) <= MAX_REQUESTS:
            raise LocalProtocolError(f"a probe sends 1 to {MAX_REQUESTS} requests: {delays}")
        if list(delays) != sorted(delays) or not all(0 <= at < PROBE_TIMEOUT for at in delays):
            raise LocalProtocolError(
                f"the delays of a probe ascend from 0 to below {PROBE_TIMEOUT} s: {delays}"
            )
        if len(self._probes) >= MAX_PROBES:
            raise LocalProtocolError(f"{MAX_PROBES} STUN probes are running")
        now = self._time.advance(now)
        probe = _Probe(self._next_probe_id, server, [now + delay for delay in delays], now)
        self._next_probe_id += 1
        self._probes[probe.probe_id] = probe
        self._proceed(probe, now)
        return probe.probe_id

    def cancel(self, probe_id: int, *, now: float) -> None:
        """Stop a probe: it will have no event. One that ended already is left alone."""
        self._time.advance(now)
        if probe_id in self._probes:
            self._forget(self._probes[probe_id])

    def cancel_all(self, *, now: float) -> None:
        """Stop every probe."""
        self._time.advance(now)
        for probe in list(self._probes.values()):
            self._forget(probe)

    def receive_datagrams(self, batch: Sequence[bytes], addr: Address, *, now: float) -> None:
        """Take datagrams from one address; those that answer no probe are counted and dropped."""
        now = self._time.advance(now)
        for data in batch:
            self._receive(data, addr, now)

    def handle_timer(self, *, now: float) -> None:
        """Send the requests that are due, and end the probes whose time is over."""
        now = self._time.advance(now)
        for probe_id in self._timers.pop_expired(now):
            self._proceed(self._probes[probe_id], now)

    def get_timer(self) -> float | None:
        """Return the earliest deadline, or ``None``. Changes nothing."""
        return self._timers.earliest()

    def next_event(self) -> StunProbeEvent | None:
        """Return the oldest event and forget it, or ``None``."""
        return self._events.popleft() if self._events else None

    def datagrams_to_send(self) -> list[Transmit]:
        """Return the datagrams to send, and forget them."""
        transmits, self._transmits = self._transmits, []
        return transmits

    def _proceed(self, probe: _Probe, now: float) -> None:
        """Do what is due for a probe, and set its next deadline."""
        if probe.expires_at <= now:
            self._forget(probe)
            self._events.append(StunProbeTimedOut(probe_id=probe.probe_id, server=probe.server))
            return
        if probe.pop_due(now):
            self._send_request(probe, now)
        self._timers.set(probe.probe_id, probe.next_deadline)

    def _send_request(self, probe: _Probe, now: float) -> None:
        transaction_id = self._rng.randbytes(TRANSACTION_ID_SIZE)
        probe.transaction_ids.append(transaction_id)
        self._requests[transaction_id] = _Request(probe, now)
        data = encode_binding_request(transaction_id, software=self._software)
        self._transmits.append(Transmit(probe.server, [data]))
        self._stats.requests += 1

    def _receive(self, data: bytes, addr: Address, now: float) -> None:
        try:
            transaction_id, address = decode_binding_response(data)
        except DecodeError:
            self._stats.malformed += 1
            return
        request = self._requests.get(transaction_id)
        if request is None or request.probe.server != addr:
            self._stats.unmatched += 1
            return
        self._stats.responses += 1
        probe = request.probe
        self._forget(probe)
        self._events.append(
            StunAddressFound(
                probe_id=probe.probe_id,
                server=probe.server,
                address=address,
                latency=now - request.sent_at,
            )
        )

    def _forget(self, probe: _Probe) -> None:
        del self._probes[probe.probe_id]
        self._timers.cancel(probe.probe_id)
        for transaction_id in probe.transaction_ids:
            self._requests.pop(transaction_id, None)


class _Probe:
    """One server being asked. Times are in seconds of the machine's time."""

    __slots__ = ("_due", "expires_at", "probe_id", "server", "transaction_ids")

    def __init__(self, probe_id: int, server: UdpAddress, due: list[float], now: float) -> None:
        self.probe_id = probe_id
        self.server = server
        self.expires_at = now + PROBE_TIMEOUT
        self.transaction_ids: list[bytes] = []
        self._due = deque(due)

    @property
    def next_deadline(self) -> float:
        """When something is to be done next."""
        return self._due[0] if self._due else self.expires_at

    def pop_due(self, now: float) -> bool:
        """Say whether a request is due. Several that came due together, late, are one."""
        was_due = False
        while self._due and self._due[0] <= now:
            self._due.popleft()
            was_due = True
        return was_due


class _Request:
    """One request that a probe sent."""

    __slots__ = ("probe", "sent_at")

    def __init__(self, probe: _Probe, sent_at: float) -> None:
        self.probe = probe
        self.sent_at = sent_at
