"""The connections of an endpoint: which packet is whose, and what becomes of each.

Connections are found by connection id, never by address: a peer's packets come by whatever path.
An accepted connection answers whence it was called, each way as much as was said there allows,
until the peer proved who it is; from then on, as a dialled one from the start, it sends to the node
and leaves the path to Magicsock.
"""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from collections.abc import Sequence
from itertools import accumulate
from math import inf
from typing import Literal

from iroh_anyio.quic.admission import Admission, Admitted
from iroh_anyio.quic.aioquic_private import CHALLENGE_SIZE, CONNECTION_ID_SIZE
from iroh_anyio.quic.connection import NodeConnection
from iroh_anyio.quic.dial import Dial
from iroh_anyio.quic.events import CloseReason, ConnectionClosed, EndpointEvent, EndpointStats
from iroh_anyio.quic.header import LONG_HEADER, long_destination_cid
from iroh_anyio.quic.node_quic import NodeQuic, QuicFactory
from iroh_anyio.quic.options import EndpointOptions
from iroh_anyio.quic.tls import IdentityKind
from iroh_proto.address import Address, NodeAddr, UdpAddress
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.magicsock import (
    ChallengeRequested,
    Magicsock,
    PathInfo,
    PayloadKey,
    ReceivedPayload,
)
from iroh_proto.paths.challenges import CHALLENGES_LIMIT
from iroh_proto.timers import TimerTable

KNOWN_KINDS_LIMIT = 1024
"""Nodes whose kind of identity is remembered, to be dialled with it at once the next time."""

ANSWERED_KEYS_LIMIT = 3
"""Ways by which a half-open connection is answered: the client may be heard on several, of which
not all need to carry answers."""

AMPLIFICATION_LIMIT = 3
"""Bytes that go to a UDP address for each that came from there, until the client has shown that
answers reach it (RFC 9000, section 8.1). aioquic keeps to it for all ways together, which it takes
for one."""

SOURCES_LIMIT = 8
"""Addresses at which a peer may be heard between two looks at its connection."""

SECOND_OPINION_TIME = 2.0
"""Seconds for another address to answer a dial after one refused: a few round trips, since the
refusal is most likely the node's own."""

_CID_END = 1 + CONNECTION_ID_SIZE


class Switchboard:
    """All connections, with ``magicsock`` to send by. Events are appended to ``events``."""

    def __init__(
        self,
        *,
        magicsock: Magicsock,
        secret_key: SecretKey,
        rng: random.Random,
        options: EndpointOptions,
        events: deque[EndpointEvent],
    ) -> None:
        self.stats = EndpointStats()
        self._magicsock = magicsock
        self._options = options
        self._events = events
        self._rng = rng
        self._factory = QuicFactory(secret_key=secret_key, rng=rng, options=options)
        self._admission = Admission(options=options, rng=rng, stats=self.stats)
        self._connections: dict[int, NodeConnection] = {}
        self._next_number = 0
        self.unix_offset = 0.0
        """Seconds to add to the machine's time for the time since 1970."""
        self._routes: dict[bytes, NodeConnection] = {}
        self._timers: TimerTable[NodeConnection] = TimerTable()
        self._half_open: set[NodeConnection] = set()
        self._dials: dict[NodeConnection, Dial] = {}
        self._by_node: dict[NodeId, list[NodeConnection]] = {}
        self._kinds: OrderedDict[NodeId, IdentityKind] = OrderedDict()
        # By what they say, the numbers of challenges whose answer is awaited, the oldest first.
        self._challenges: dict[bytes, int] = {}
        # An ordered set: connections flush in the order in which they were touched.
        self._touched: dict[NodeConnection, None] = {}

    # State

    def __len__(self) -> int:
        return len(self._connections)

    def find(self, number: int) -> NodeConnection | None:
        """Return the connection with a number, until it is gone."""
        return self._connections.get(number)

    def was_assigned(self, number: int) -> bool:
        """Say whether a number ever named a connection."""
        return 0 <= number < self._next_number

    def open_connections(self) -> list[NodeConnection]:
        """Return the connections that are not over."""
        return [conn for conn in self._connections.values() if conn.reason is None]

    def get_timer(self) -> float | None:
        """Return the earliest deadline, or ``None``. Changes nothing."""
        return self._timers.earliest()

    # Input

    def set_alpns(self, alpns: Sequence[bytes]) -> None:
        """Serve these protocols on connections accepted from now on."""
        self._factory.set_alpns(alpns)
        self._admission.serves = bool(alpns)

    def dial(self, addr: NodeAddr, *, alpn: bytes, now: float) -> int:
        """Begin to dial a node that Magicsock knows, and return the connection's number."""
        dial = Dial(
            addr=addr,
            alpn=alpn,
            mode=self._options.identity,
            known=self._kinds.get(addr.node_id),
        )
        conn = self._add(
            self._dialling_quic(dial, now), incoming=False, keys={addr.node_id: inf}, now=now
        )
        conn.node_id, conn.alpn = addr.node_id, alpn
        self._by_node.setdefault(addr.node_id, []).append(conn)
        self._dials[conn] = dial
        conn.dial(now)
        self.touch(conn)
        return conn.number

    def receive(self, payload: ReceivedPayload, *, now: float) -> None:
        """Take QUIC datagrams that came together."""
        routes = self._routes
        self.stats.received += len(payload.datagrams)
        current: NodeConnection | None = None
        run: list[bytes] = []
        for datagram in payload.datagrams:
            if datagram and datagram[0] < LONG_HEADER:
                conn = routes.get(datagram[1:_CID_END])
            else:
                conn = routes.get(long_destination_cid(datagram))
            if conn is None:
                conn = self._admit(datagram, payload, now)
                if conn is None:
                    continue
            if conn is not current:
                if current is not None:
                    self._feed(current, run, payload, now)
                current, run = conn, []
            run.append(datagram)
        if current is not None:
            self._feed(current, run, payload, now)

    def handle_timer(self, *, now: float) -> None:
        """Let deadlines expire."""
        for conn in self._timers.pop_expired(now):
            conn.handle_timer(now)
            self.touch(conn)

    def note_path_change(self, node_id: NodeId, path: PathInfo, *, now: float) -> None:
        """Note that payload for a node takes another way.

        Only a change between a direct path and a server is taken to be of another nature; the
        time in between, when both are used, belongs to what was before.
        """
        tier = path.kind if path.kind in ("direct", "derp") else None
        for conn in self._by_node.get(node_id, ()):
            restart = tier is not None and conn.tier is not None and tier != conn.tier
            conn.tier = tier or conn.tier
            conn.note_path_change(now, restart=restart)
            self.touch(conn)

    def challenge(self, request: ChallengeRequested, *, now: float) -> None:
        """Ask a node over one UDP address whether it is there, on whichever connection stands."""
        data = self._rng.randbytes(CHALLENGE_SIZE)
        for conn in self._by_node.get(request.node_id, ()):
            datagram = conn.make_challenge(data, full_size=request.full_size)
            if datagram is None:
                continue
            self._challenges[data] = request.request_id
            if len(self._challenges) > CHALLENGES_LIMIT:
                del self._challenges[next(iter(self._challenges))]
            self._magicsock.send_payloads(request.addr, [datagram], now=now)
            return

    def touch(self, conn: NodeConnection) -> None:
        """Note that something was done to a connection, so that it is looked after by settle."""
        self._touched[conn] = None

    def settle(self, *, now: float) -> bool:
        """Send what touched connections have to send, and report what became of them.

        Say whether there were any.
        """
        if not self._touched:
            return False
        while self._touched:
            conn = next(iter(self._touched))
            del self._touched[conn]
            if conn.incoming and not conn.has_begun:
                self._discard(conn)
                continue
            if conn.sources:
                self._note_sources(conn, now)
            for answer in conn.take_challenge_answers():
                if answer in self._challenges:
                    self._magicsock.complete_challenge(self._challenges.pop(answer), now=now)
            self._send(conn, conn.flush(now), now)
            if conn.reason is not None and not conn.is_reported:
                self._end(conn, now)
            if conn.is_gone:
                self._remove(conn)
            elif conn.deadline is not None:
                self._timers.set(conn, conn.deadline)
        return True

    # Helpers

    def _admit(
        self, datagram: bytes, payload: ReceivedPayload, now: float
    ) -> NodeConnection | None:
        verdict = self._admission.judge(
            datagram,
            payload.source,
            payload.key if isinstance(payload.key, NodeId) else None,
            connections=len(self._connections),
            half_open=len(self._half_open),
            now=now,
        )
        if isinstance(verdict, Admitted):
            return self._accept(verdict, payload.key, now)
        if verdict is not None:
            self._magicsock.send_payloads(payload.key, [verdict], now=now)
        return None

    def _accept(self, admitted: Admitted, key: PayloadKey, now: float) -> NodeConnection:
        quic = self._factory.accept(
            original_destination_cid=admitted.original_cid,
            retry_source_cid=admitted.retry_cid,
            unix_time=now + self.unix_offset,
        )
        conn = self._add(quic, incoming=True, keys={key: 0.0}, now=now)
        # As long as there is the connection: a copy of the packet may come by a much slower way.
        conn.initial_cid = admitted.initial_cid
        self._routes[admitted.initial_cid] = conn
        self._half_open.add(conn)
        self.stats.handshakes_begun += 1
        return conn

    def _dialling_quic(self, dial: Dial, now: float) -> NodeQuic:
        return self._factory.dial(
            dial.addr.node_id, alpn=dial.alpn, kind=dial.kind, unix_time=now + self.unix_offset
        )

    def _add(
        self, quic: NodeQuic, *, incoming: bool, keys: dict[PayloadKey, float], now: float
    ) -> NodeConnection:
        conn = NodeConnection(
            quic=quic,
            number=self._next_number,
            incoming=incoming,
            keys=keys,
            options=self._options,
            routes=self._routes,
            events=self._events,
            now=now,
        )
        self._next_number += 1
        self._connections[conn.number] = conn
        return conn

    def _feed(
        self, conn: NodeConnection, run: list[bytes], payload: ReceivedPayload, now: float
    ) -> None:
        source = payload.source
        dial = self._dials.get(conn) if self._dials else None
        if dial is not None and source in dial.passed_over:
            return
        conn.receive(run, now)
        if (conn.heard or conn.reason is not None) and len(conn.sources) < SOURCES_LIMIT:
            conn.sources[source] = None
        if conn in self._half_open:
            self._note_caller(conn, payload, sum(map(len, run)))
        self.touch(conn)

    def _note_caller(self, conn: NodeConnection, payload: ReceivedPayload, size: int) -> None:
        """Answer a half-open connection also where it was called from this time.

        Whoever calls through a server has been proven to it; UDP addresses can be forged.
        """
        key = payload.key
        if key not in conn.keys and len(conn.keys) >= ANSWERED_KEYS_LIMIT:
            return
        is_forgeable = isinstance(payload.source, UdpAddress) and not conn.heard
        more = AMPLIFICATION_LIMIT * size if is_forgeable else inf
        conn.keys[key] = conn.keys.get(key, 0.0) + more

    def _discard(self, conn: NodeConnection) -> None:
        """Forget a handshake that never was one: nothing of it could be read."""
        self.stats.dropped_malformed += conn.packets_received
        self._remove(conn)

    def _note_sources(self, conn: NodeConnection, now: float) -> None:
        """Tell Magicsock where the peer was heard."""
        if conn.reason is not None or not conn.is_established or conn.node_id is None:
            return
        sources = list(conn.sources)
        conn.sources.clear()
        if conn in self._half_open or conn in self._dials:
            self._settle_in(conn, sources[0], now)
        for source in sources:
            self._magicsock.confirm(conn.node_id, source, now=now)

    def _settle_in(self, conn: NodeConnection, source: Address, now: float) -> None:
        """Send to the node from now on, which has proven to be at ``source``."""
        node_id, context = conn.node_id, conn.context
        assert node_id is not None
        assert context is not None
        self._half_open.discard(conn)
        self._dials.pop(conn, None)
        callers = [key for key in conn.keys if isinstance(key, UdpAddress) and key != source]
        conn.keys = {node_id: inf}
        if conn.incoming:
            self._by_node.setdefault(node_id, []).append(conn)
        self._kinds[node_id] = context.kind
        self._kinds.move_to_end(node_id)
        if len(self._kinds) > KNOWN_KINDS_LIMIT:
            self._kinds.popitem(last=False)
        punches = conn.parameters is not None and conn.parameters.punches_in_quic
        scheme: Literal["disco", "quic"] = "quic" if punches else "disco"
        self._magicsock.adopt(source, node_id, scheme, callers=callers, now=now)

    def _end(self, conn: NodeConnection, now: float) -> None:
        """Go on with a dial that may go on, or report the end."""
        reason, dial = conn.reason, self._dials.get(conn)
        assert reason is not None
        source = next(reversed(conn.sources), None)
        conn.sources.clear()
        if dial is not None and self._goes_on(conn, dial, reason, source, now):
            conn.replace(self._dialling_quic(dial, now), now)
            if dial.passed_over:
                conn.hurry(now + SECOND_OPINION_TIME)
            self._touched[conn] = None
            return
        conn.is_reported = True
        self._dials.pop(conn, None)
        self.stats.quic_failures += conn.failures
        self._leave_node(conn)
        if conn.incoming and not conn.is_established:
            if reason.kind == "unreachable":
                self.stats.handshakes_expired += 1
            else:
                self.stats.handshakes_failed += 1
            return
        if dial is not None:
            reason = dial.final_reason(reason)
        self._events.append(ConnectionClosed(connection=conn.number, reason=reason))

    def _goes_on(
        self,
        conn: NodeConnection,
        dial: Dial,
        reason: CloseReason,
        source: Address | None,
        now: float,
    ) -> bool:
        if conn.is_established:
            return False
        node_id = dial.addr.node_id
        is_another = conn.context is not None and conn.context.answered_by is not None
        if is_another and isinstance(source, UdpAddress):
            self._magicsock.distrust(node_id, source, now=now)
        is_proven = isinstance(source, UdpAddress) and self._magicsock.has_ponged(node_id, source)
        return dial.goes_on(reason, context=conn.context, source=source, is_proven_source=is_proven)

    def _leave_node(self, conn: NodeConnection) -> None:
        if conn.node_id is not None and conn.node_id in self._by_node:
            conns = self._by_node[conn.node_id]
            if conn in conns:
                conns.remove(conn)
            if not conns:
                del self._by_node[conn.node_id]

    def _send(self, conn: NodeConnection, datagrams: list[bytes], now: float) -> None:
        for key, allowed in conn.keys.items():
            sent = datagrams
            if allowed != inf:
                sent = _within(datagrams, allowed)
                conn.keys[key] = allowed - sum(map(len, sent))
            if sent:
                self._magicsock.send_payloads(key, sent, now=now)

    def _remove(self, conn: NodeConnection) -> None:
        conn.forget_routes()
        self._half_open.discard(conn)  # a failed one counts until then: it takes room as well
        self._timers.cancel(conn)
        self._touched.pop(conn, None)
        self._connections.pop(conn.number, None)


def _within(datagrams: list[bytes], size: float) -> list[bytes]:
    """Return as many of the first datagrams as have ``size`` bytes together."""
    totals = accumulate(map(len, datagrams))
    return datagrams[: sum(total <= size for total in totals)]
