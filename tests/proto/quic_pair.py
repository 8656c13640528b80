"""Two QUIC connections joined by a wire in virtual time, without paths and sockets."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from math import inf
from typing import TypeVar

from iroh_anyio.quic.connection import NodeConnection
from iroh_anyio.quic.events import EndpointEvent
from iroh_anyio.quic.node_quic import NodeQuic, QuicFactory
from iroh_anyio.quic.options import EndpointOptions
from iroh_anyio.quic.tls import IdentityKind
from iroh_proto.address import UdpAddress
from iroh_proto.key import NodeId, SecretKey

ALPN = b"test/1"
UNIX_TIME = 1_700_000_000.0
CLIENT_KEY, SERVER_KEY, OTHER_KEY = (SecretKey(bytes([seed]) * 32) for seed in (1, 2, 3))

EventT = TypeVar("EventT")


class Side:
    """One end: a connection, its events and what it sent."""

    def __init__(self, key: SecretKey, options: EndpointOptions, *, seed: int) -> None:
        self.key = key
        self.options = options
        self.factory = QuicFactory(secret_key=key, rng=random.Random(seed), options=options)
        self.events: deque[EndpointEvent] = deque()
        self.routes: dict[bytes, NodeConnection] = {}
        self.sent: list[bytes] = []
        self.received = 0
        self.connection: NodeConnection

    def hold(self, quic: NodeQuic, *, incoming: bool, now: float) -> None:
        self.connection = NodeConnection(
            quic=quic,
            number=7,
            incoming=incoming,
            keys={UdpAddress("192.0.2.1", 1): inf},
            options=self.options,
            routes=self.routes,
            events=self.events,
            now=now,
        )

    def seen(self, kind: type[EventT]) -> list[EventT]:
        return [event for event in self.events if isinstance(event, kind)]


class QuicPair:
    """A client and a server. Datagrams take ``latency`` seconds each way, and may get lost.

    ``is_lost(from_client, index)`` decides on each datagram by its number.
    """

    def __init__(
        self,
        *,
        kind: IdentityKind = "raw",
        dialled: NodeId | None = None,
        alpn: bytes = ALPN,
        serves: tuple[bytes, ...] = (ALPN,),
        client: EndpointOptions | None = None,
        server: EndpointOptions | None = None,
        latency: float = 0.01,
        is_lost: Callable[[bool, int], bool] = lambda from_client, index: False,
    ) -> None:
        self.now = 0.0
        self.latency = latency
        self.is_lost = is_lost
        self.client = Side(CLIENT_KEY, client or EndpointOptions(), seed=11)
        self.server = Side(SERVER_KEY, server or EndpointOptions(), seed=12)
        self.server.factory.set_alpns(serves)
        self._in_flight: list[tuple[float, Side, list[bytes]]] = []
        quic = self.client.factory.dial(
            dialled or SERVER_KEY.public, alpn=alpn, kind=kind, unix_time=UNIX_TIME
        )
        self.client.hold(quic, incoming=False, now=0.0)
        self.client.connection.dial(0.0)
        answer = self.server.factory.accept(
            original_destination_cid=quic.original_destination_connection_id,
            retry_source_cid=None,
            unix_time=UNIX_TIME,
        )
        self.server.hold(answer, incoming=True, now=0.0)

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.client, self.server

    def run_for(self, seconds: float) -> None:
        """Let time pass, from one thing that happens to the next."""
        end = self.now + seconds
        self._flush()
        while (when := self._next_time()) is not None and when <= end:
            self.now = max(self.now, when)
            self._step()
        self.now = end

    def run_until(self, condition: Callable[[], bool], *, limit: float = 10.0) -> None:
        end = self.now + limit
        self._flush()
        while not condition():
            when = self._next_time()
            assert when is not None, "nothing will happen any more"
            assert when <= end, f"not within {limit} s"
            self.now = max(self.now, when)
            self._step()

    def establish(self) -> QuicPair:
        """Run until both sides stand, and forget the events so far."""
        self.run_until(lambda: all(side.connection.is_established for side in self.sides))
        self.run_for(0.5)
        for side in self.sides:
            side.events.clear()
        return self

    def _next_time(self) -> float | None:
        times = [arrival for arrival, _, _ in self._in_flight]
        for side in self.sides:
            deadline = side.connection.deadline
            if deadline is not None and (side is self.client or side.received):
                times.append(deadline)
        return min(times, default=None)

    def _step(self) -> None:
        due = [item for item in self._in_flight if item[0] <= self.now]
        self._in_flight = [item for item in self._in_flight if item[0] > self.now]
        for _, side, datagrams in due:
            side.received += len(datagrams)
            side.connection.receive(datagrams, self.now)
        for side in self.sides:
            deadline = side.connection.deadline
            if deadline is not None and deadline <= self.now and not side.connection.is_gone:
                side.connection.handle_timer(self.now)
        self._flush()

    def _flush(self) -> None:
        for side, peer in ((self.client, self.server), (self.server, self.client)):
            if side is self.server and not side.received:
                continue
            datagrams = side.connection.flush(self.now)
            arriving = []
            for datagram in datagrams:
                if not self.is_lost(side is self.client, len(side.sent)):
                    arriving.append(datagram)
                side.sent.append(datagram)
            if arriving:
                self._in_flight.append((self.now + self.latency, peer, arriving))
