"""The client of QUIC address discovery (QAD): asks servers where they see this node's packets.

A datagram machine that shares the endpoint's sockets, since it is their address that is wanted.
To each server asked there is one connection, kept until another server of that IP version is
asked or the server has not been asked for the idle time-out. Asking again costs a PING: an
observation stands until the server sends another one, as long as the server answers.

Source: iroh v1.0.3 ``iroh-relay/src/quic.rs``, ``iroh/src/net_report.rs``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from aioquic.quic import events as quic_events
from aioquic.quic.configuration import QuicConfiguration

from iroh_anyio.quic.aioquic_private import CONNECTION_ID_SIZE, QUIC_VERSION, ObservingConnection
from iroh_anyio.quic.observed_address import CLOSE_CODE, CLOSE_REASON, QAD_ALPN
from iroh_anyio.quic.qad_link import QadLink
from iroh_proto.address import Address, UdpAddress
from iroh_proto.machine import Transmit
from iroh_proto.paths.payload import TransmitQueue
from iroh_proto.timers import LatestTime, TimerTable

ANSWER_TIMEOUT = 3.0
"""Seconds for an answer, a handshake included (iroh's)."""

IDLE_TIMEOUT = 35.0
"""Seconds of silence that end a connection (iroh's)."""

INITIAL_RTT = 0.111
"""Seconds that a round trip is taken to be before there is a sample (iroh's)."""

_WINDOW = 16_384  # bytes; no stream is ever opened
_PING = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressObserved:
    """A server answered: this node's packets come from ``address``."""

    request_id: int
    address: UdpAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservationFailed:
    """There was no answer in time, or the connection failed."""

    request_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservationChanged:
    """A server that was not asked told that this node's packets come from elsewhere by now."""


QadClientEvent: TypeAlias = AddressObserved | ObservationFailed | ObservationChanged


@dataclass(slots=True)
class QadClientStats:
    """Counts since the start.

    :ivar dialled: connections begun.
    :ivar answered: answers.
    :ivar failed: questions without one.
    :ivar strangers: datagrams dropped because they came from none of the servers.
    """

    dialled: int = 0
    answered: int = 0
    failed: int = 0
    strangers: int = 0


class QadClient:
    """Asks where this node is seen.

    :param ca_certificates: the authorities to trust, as PEM, instead of the usual ones.
    :param ca_bundle: a file of further ones. OpenSSL reads it, which takes what public authorities
        have, where aioquic warns of some and fails at words between them.
    """

    def __init__(
        self, *, ca_certificates: bytes | None = None, ca_bundle: str | None = None
    ) -> None:
        self._ca_certificates = ca_certificates
        self._ca_bundle = ca_bundle
        self._time = LatestTime()
        self._events: deque[QadClientEvent] = deque()
        self._servers: dict[UdpAddress, _Server] = {}
        self._timers: TimerTable[UdpAddress] = TimerTable()
        self._transmits = TransmitQueue()
        self._stats = QadClientStats()

    @property
    def stats(self) -> QadClientStats:
        """A copy of the counts."""
        return replace(self._stats)

    def is_server(self, addr: Address) -> bool:
        """Say whether datagrams from an address belong here."""
        return addr in self._servers

    def ask(self, request_id: int, addr: UdpAddress, *, server_name: str, now: float) -> None:
        """Ask a server; one :class:`AddressObserved` or :class:`ObservationFailed` follows.

        :param server_name: the host name or IP address that its certificate has to be for.
        """
        now = self._time.advance(now)
        for other in list(self._servers):
            if other.is_ipv6 == addr.is_ipv6 and other != addr:
                self._leave(other, now)
        server = self._servers.get(addr)
        if server is None or server.link.quic.is_over:
            self._forget(addr)
            server = self._servers[addr] = _Server(self._dial(server_name, addr, now))
            self._stats.dialled += 1
        else:
            self._fail(server)
            server.ping()
        server.request_id = request_id
        server.deadline = now + ANSWER_TIMEOUT
        self._settle(addr, server, now)

    def network_changed(self, *, now: float) -> None:
        """Take the news that interfaces or addresses changed: connections begin anew when asked."""
        now = self._time.advance(now)
        for addr in list(self._servers):
            self._leave(addr, now)

    def close(self, *, now: float) -> None:
        """Take leave of the servers. The last datagrams can still be drained."""
        self.network_changed(now=now)

    def receive_datagrams(self, batch: Sequence[bytes], addr: Address, *, now: float) -> None:
        """Take UDP datagrams from a server. Those from others are dropped."""
        now = self._time.advance(now)
        server = self._servers.get(addr) if isinstance(addr, UdpAddress) else None
        if server is None:
            self._stats.strangers += len(batch)
            return
        assert isinstance(addr, UdpAddress)
        for datagram in batch:
            server.link.receive(datagram, addr, now)
        self._settle(addr, server, now)

    def handle_timer(self, *, now: float) -> None:
        """Let every deadline at or before ``now`` expire."""
        now = self._time.advance(now)
        for addr in self._timers.pop_expired(now):
            server = self._servers[addr]
            if server.deadline <= now:
                self._fail(server)
                if server.observed is None:
                    self._leave(addr, now)
                    continue
            server.link.handle_timer(now)
            self._settle(addr, server, now)

    def get_timer(self) -> float | None:
        """Return the earliest deadline, or ``None``. Changes nothing."""
        return self._timers.earliest()

    def next_event(self) -> QadClientEvent | None:
        """Return the oldest queued event and forget it, or ``None``."""
        return self._events.popleft() if self._events else None

    def datagrams_to_send(self) -> list[Transmit]:
        """Return the datagrams to send, and forget them."""
        return self._transmits.drain()

    def _dial(self, server_name: str, addr: UdpAddress, now: float) -> QadLink:
        configuration = QuicConfiguration(
            is_client=True,
            alpn_protocols=[QAD_ALPN.decode()],
            cadata=self._ca_certificates,
            cafile=self._ca_bundle,
            connection_id_length=CONNECTION_ID_SIZE,
            idle_timeout=IDLE_TIMEOUT,
            initial_rtt=INITIAL_RTT,
            max_data=_WINDOW,
            max_stream_data=_WINDOW,
            server_name=server_name,
            supported_versions=[QUIC_VERSION],
        )
        link = QadLink(ObservingConnection(configuration=configuration))
        link.quic.connect(addr, now)
        return link

    def _settle(self, addr: UdpAddress, server: _Server, now: float) -> None:
        """Do what an input brought about, and send what there is to send."""
        quic = server.link.quic
        is_answer = False
        while (event := quic.next_event()) is not None:
            match event:
                case quic_events.HandshakeCompleted():
                    quic.release_handshake_buffers()
                case quic_events.PingAcknowledged():
                    server.is_pinged = False
                    is_answer = True
                case _:
                    pass
        if quic.observed is not None and quic.observed != server.observed:
            is_new = server.observed is not None
            server.observed = quic.observed
            is_answer = True
            if is_new and server.request_id is None:
                self._events.append(ObservationChanged())
        if is_answer:
            self._answer(server)
        for transmit in server.link.flush(now):
            self._transmits.append(transmit)
        if quic.is_over:
            self._fail(server)
        if quic.is_terminated:
            self._forget(addr)
        elif (deadline := server.link.deadline(server.deadline)) is not None:
            self._timers.set(addr, deadline)

    def _answer(self, server: _Server) -> None:
        if server.request_id is None or server.observed is None:
            return
        self._stats.answered += 1
        self._events.append(AddressObserved(request_id=server.request_id, address=server.observed))
        server.end_request()

    def _fail(self, server: _Server) -> None:
        if server.request_id is None:
            return
        self._stats.failed += 1
        self._events.append(ObservationFailed(request_id=server.request_id))
        server.end_request()

    def _leave(self, addr: UdpAddress, now: float) -> None:
        """Close a connection and forget it: there is no need to wait for its last packets."""
        server = self._servers[addr]
        self._fail(server)
        server.link.close(CLOSE_CODE, CLOSE_REASON)
        for transmit in server.link.flush(now):
            self._transmits.append(transmit)
        self._forget(addr)

    def _forget(self, addr: UdpAddress) -> None:
        self._servers.pop(addr, None)
        self._timers.cancel(addr)


class _Server:
    """The connection to one server, and what it was asked."""

    __slots__ = ("deadline", "is_pinged", "link", "observed", "request_id")

    def __init__(self, link: QadLink) -> None:
        self.link = link
        self.observed: UdpAddress | None = None
        self.request_id: int | None = None
        self.deadline = math.inf
        self.is_pinged = False

    def ping(self) -> None:
        """Have the server show that it is there. QUIC sees to it that it is asked."""
        if not self.is_pinged:
            self.is_pinged = True
            self.link.quic.send_ping(_PING)

    def end_request(self) -> None:
        """Wait for no answer any more."""
        self.request_id = None
        self.deadline = math.inf
