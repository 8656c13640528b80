"""The server of QUIC address discovery (QAD): it tells clients where it sees them, and no more.

A datagram machine for one UDP port, 7842 by custom. A client's connection begins with an ordinary
TLS handshake; after it the server sends what it observed, and again whenever the client's packets
come from elsewhere. Nothing else happens on a connection: no streams, no datagrams. It ends when
the client closes it or falls silent.

Strangers' first packets are judged as an endpoint's are (:mod:`iroh_anyio.quic.admission`).

Source: iroh v1.0.3 ``iroh-relay/src/quic.rs``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from aioquic.quic import events as quic_events
from aioquic.quic.configuration import QuicConfiguration
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509 import Certificate

from iroh_anyio.quic.admission import Admission, Admitted
from iroh_anyio.quic.aioquic_private import CONNECTION_ID_SIZE, QUIC_VERSION, ObservingConnection
from iroh_anyio.quic.events import EndpointStats
from iroh_anyio.quic.header import LONG_HEADER, long_destination_cid
from iroh_anyio.quic.observed_address import QAD_ALPN, ROLE_PARAMETER, wants_observations
from iroh_anyio.quic.options import EndpointOptions
from iroh_anyio.quic.parameters import raw_parameters
from iroh_anyio.quic.qad_link import QadLink
from iroh_proto.address import Address, UdpAddress
from iroh_proto.errors import LocalProtocolError
from iroh_proto.machine import Transmit
from iroh_proto.paths.payload import TransmitQueue
from iroh_proto.timers import LatestTime, TimerTable

PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey

IDLE_TIMEOUT = 35.0
"""Seconds of silence that end a connection. Clients send something every 25 s (iroh's)."""

HANDSHAKE_TIMEOUT = 10.0
"""Seconds that a handshake may take."""

MAX_CONNECTIONS = 4_096
"""Connections at the same time, of some 50 KB each."""

MAX_HALF_OPEN = 256
"""Of those, connections whose handshake is not complete."""

_WINDOW = 16_384  # bytes; no stream may be opened, so that none is ever used
_CID_END = 1 + CONNECTION_ID_SIZE


@dataclass(slots=True)
class QadServerStats:
    """Counts since the start.

    :ivar accepted: handshakes begun.
    :ivar completed: handshakes completed.
    :ivar closed: connections that their client closed in good order.
    :ivar errored: connections that ended otherwise, being incomplete, broken or silent.
    :ivar refused: first packets turned away, or dropped for want of room.
    :ivar malformed: datagrams that belong to no connection and begin none.
    :ivar observations: addresses that clients were told.
    """

    accepted: int = 0
    completed: int = 0
    closed: int = 0
    errored: int = 0
    refused: int = 0
    malformed: int = 0
    observations: int = 0


class QadServer:
    """Tells clients where they are.

    :param certificates: the server's, followed by those that vouch for it up to an authority.
    :param private_key: of the first certificate.
    :param rng: for the key that seals Retry tokens.
    """

    def __init__(
        self,
        *,
        certificates: Sequence[Certificate],
        private_key: PrivateKey,
        rng: random.Random,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._time = LatestTime()
        self._stats = QadServerStats()
        self._judged = EndpointStats()
        self._max_connections = max_connections
        options = EndpointOptions(max_connections=max_connections, max_half_open=MAX_HALF_OPEN)
        self._admission = Admission(options=options, rng=rng, stats=self._judged)
        self._admission.serves = True
        self._clients: dict[_Client, None] = {}
        self._half_open: set[_Client] = set()
        self._routes: dict[bytes, _Client] = {}
        self._timers: TimerTable[_Client] = TimerTable()
        self._transmits = TransmitQueue()
        self.set_certificates(certificates, private_key)

    def __len__(self) -> int:
        return len(self._clients)

    @property
    def stats(self) -> QadServerStats:
        """A copy of the counts."""
        judged = self._judged
        return replace(
            self._stats,
            refused=judged.dropped_connection_limit + judged.dropped_half_open_limit,
            malformed=judged.dropped_malformed + judged.dropped_unknown,
        )

    def set_certificates(
        self, certificates: Sequence[Certificate], private_key: PrivateKey
    ) -> None:
        """Show others to clients that connect from now on.

        :raises LocalProtocolError: if there is no certificate.
        """
        if not certificates:
            raise LocalProtocolError("a QAD server needs a certificate")
        self._configuration = QuicConfiguration(
            is_client=False,
            alpn_protocols=[QAD_ALPN.decode()],
            certificate=certificates[0],
            certificate_chain=list(certificates[1:]),
            private_key=private_key,
            connection_id_length=CONNECTION_ID_SIZE,
            idle_timeout=IDLE_TIMEOUT,
            max_data=_WINDOW,
            max_stream_data=_WINDOW,
            supported_versions=[QUIC_VERSION],
        )

    def receive_datagrams(self, batch: Sequence[bytes], addr: Address, *, now: float) -> None:
        """Take UDP datagrams that arrived from one address."""
        now = self._time.advance(now)
        if not isinstance(addr, UdpAddress):
            self._judged.dropped_unknown += len(batch)
            return
        touched: dict[_Client, None] = {}
        for datagram in batch:
            client = self._find(datagram) or self._admit(datagram, addr, now)
            if client is not None:
                client.link.receive(datagram, addr, now)
                touched[client] = None
        for client in touched:
            self._settle(client, now)

    def close(self, *, now: float) -> None:
        """Close every connection, and take no more. What is to be said then can be drained."""
        now = self._time.advance(now)
        self._admission.serves = False
        for client in list(self._clients):
            client.link.close()
            self._settle(client, now)

    def handle_timer(self, *, now: float) -> None:
        """Let every deadline at or before ``now`` expire."""
        now = self._time.advance(now)
        for client in self._timers.pop_expired(now):
            if client.handshake_deadline <= now:
                client.handshake_deadline = math.inf
                client.link.close()
            client.link.handle_timer(now)
            self._settle(client, now)

    def get_timer(self) -> float | None:
        """Return the earliest deadline, or ``None``. Changes nothing."""
        return self._timers.earliest()

    def next_event(self) -> None:
        """Return nothing: there is nothing to tell."""

    def datagrams_to_send(self) -> list[Transmit]:
        """Return the datagrams to send, and forget them."""
        return self._transmits.drain()

    def _find(self, datagram: bytes) -> _Client | None:
        if datagram and datagram[0] < LONG_HEADER:
            return self._routes.get(datagram[1:_CID_END])
        return self._routes.get(long_destination_cid(datagram))

    def _admit(self, datagram: bytes, addr: UdpAddress, now: float) -> _Client | None:
        verdict = self._admission.judge(
            datagram,
            addr,
            None,
            connections=len(self._clients),
            half_open=len(self._half_open),
            now=now,
        )
        if isinstance(verdict, Admitted):
            return self._accept(verdict, now)
        if verdict is not None:
            self._transmits.append(Transmit(addr, [verdict], len(verdict)))
        return None

    def _accept(self, admitted: Admitted, now: float) -> _Client:
        quic = ObservingConnection(
            configuration=self._configuration,
            original_destination_cid=admitted.original_cid,
            retry_source_cid=admitted.retry_cid,
        )
        client = _Client(QadLink(quic), handshake_deadline=now + HANDSHAKE_TIMEOUT)
        client.cids = {admitted.initial_cid, quic.host_cid}
        for cid in client.cids:
            self._routes[cid] = client
        self._clients[client] = None
        self._half_open.add(client)
        self._stats.accepted += 1
        return client

    def _settle(self, client: _Client, now: float) -> None:
        """Do what an input brought about, and send what there is to send."""
        link = client.link
        if not link.quic.has_begun:
            # Not one packet could be read: it was no handshake.
            self._stats.accepted -= 1
            self._judged.dropped_malformed += 1
            self._remove(client)
            return
        self._take_events(client)
        if client.observe():
            self._stats.observations += 1
        for transmit in link.flush(now):
            self._transmits.append(transmit)
        if link.quic.is_over and not client.is_over:
            client.is_over = True
            in_order = client.is_complete and link.quic.close_by_peer
            self._stats.closed += in_order
            self._stats.errored += not in_order
        if link.quic.is_terminated:
            self._remove(client)
        elif (deadline := link.deadline(client.handshake_deadline)) is not None:
            self._timers.set(client, deadline)

    def _take_events(self, client: _Client) -> None:
        while (event := client.link.quic.next_event()) is not None:
            match event:
                case quic_events.HandshakeCompleted():
                    client.complete()
                    self._half_open.discard(client)
                    self._stats.completed += 1
                case quic_events.ConnectionIdIssued():
                    client.cids.add(event.connection_id)
                    self._routes[event.connection_id] = client
                case quic_events.ConnectionIdRetired():
                    client.cids.discard(event.connection_id)
                    self._routes.pop(event.connection_id, None)
                case _:
                    pass

    def _remove(self, client: _Client) -> None:
        del self._clients[client]
        self._half_open.discard(client)
        self._timers.cancel(client)
        for cid in client.cids:
            self._routes.pop(cid, None)


class _Client:
    """One connection of the server."""

    __slots__ = ("_told", "_wants", "cids", "handshake_deadline", "is_complete", "is_over", "link")

    def __init__(self, link: QadLink, *, handshake_deadline: float) -> None:
        self.link = link
        self.handshake_deadline = handshake_deadline
        self.cids: set[bytes] = set()
        self.is_complete = False
        self.is_over = False
        self._wants = False
        self._told: UdpAddress | None = None

    def complete(self) -> None:
        """Note that the handshake is complete."""
        quic = self.link.quic
        self.is_complete = True
        self.handshake_deadline = math.inf
        quic.release_handshake_buffers()
        parameters = raw_parameters(quic.received_extensions)
        self._wants = wants_observations(parameters.get(ROLE_PARAMETER))

    def observe(self) -> bool:
        """Have the client told where it is if it does not know; say whether that was needed."""
        quic = self.link.quic
        if not self._wants or quic.is_over or self._told == quic.peer_address:
            return False
        self._told = quic.peer_address
        quic.tell_observed(self._told)
        return True
