"""One server of a pool: its connection, made again whenever it is lost, and what waits for it.

States::

    resting -> dialling -> talking -> connected
       ^----------'-----------'----------'

``resting`` lasts until :attr:`ServerLink.retry_at`: no time at all after a connection that had
worked, and longer with each failure.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import fields
from typing import assert_never

from iroh_proto.address import DerpAddress, DerpUrl
from iroh_proto.derp.approach import Approach
from iroh_proto.derp.client import CONNECT_TIMEOUT, DerpClient
from iroh_proto.derp.events import (
    ConnectionLost,
    DerpClientStats,
    DerpConnected,
    HealthReported,
    PeerGone,
    PongReceived,
    RestartAnnounced,
)
from iroh_proto.derp.node_names import NodeNames
from iroh_proto.derp.pool_events import (
    DerpDatagrams,
    DerpPeerGone,
    DerpPoolEvent,
    DerpPoolStats,
    DerpServerConnected,
    DerpServerLost,
    DerpServerTroubled,
    DerpServerUnreachable,
)
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.machine import TcpCloseRequested, TcpRequested
from iroh_proto.timers import earliest

DIAL_TIMEOUT = CONNECT_TIMEOUT
"""Seconds for name resolution, TCP, TLS and the handshake together (upstream's)."""

FIRST_BACKOFF = 0.010
LAST_BACKOFF = 16.0
"""Seconds between attempts, twice as many after each failure (upstream's). Chance takes up to
half off, so that the clients of a server that restarts do not come all at once."""

STABLE_TIME = 1.0
"""Seconds that a connection must have stood to be made again without a pause. A server that throws
its clients out at once, or two nodes with one key, would otherwise be a busy loop."""

WAITING_TIME = 3.0
"""Seconds that datagrams wait for a connection: thrice QUIC's first probe timeout (upstream's).
Shorter lost the first flight of a connection, longer only delays what was sent again since."""

WAITING_LIMIT = 256 * 1024
"""Bytes of datagrams that wait for one connection; past it the oldest go."""

WAITING_BATCHES_LIMIT = 512
"""Batches of datagrams that wait for one connection; past it the oldest go."""

ADDRESSES_LIMIT = 4_096
"""Addresses of nodes kept at hand for received payloads; past it the first made goes."""

RECEIVED_LIMIT = 16_384
"""Payloads waiting for the owner of the pool; past it the oldest go. A host that drains after each
input never meets it."""


class ServerLink:
    """One server of a pool. The pool gives it the time and asks it to dial.

    :param names: whose the X25519 keys are that servers name, for all links of the pool.
    :param events: where to put what the pool emits.
    :param received: where to put what the pool received.
    :param stats: the counts of the pool.
    :ivar retry_at: when to :meth:`dial`, if it is time to; ``None`` while a connection stands or
        is made.
    :ivar failures: attempts that failed since the last connection.
    :ivar down_since: when the connection was lost or first wanted; ``None`` while it stands. One
        that did not last changes nothing.
    :ivar used_at: when something was last sent, or the link was wanted otherwise.
    :ivar has_sent: whether there ever was something to send.
    """

    def __init__(
        self,
        *,
        url: DerpUrl,
        dialect: str | None,
        token: str | None,
        approach: Approach | None,
        secret_key: SecretKey,
        rng: random.Random,
        names: NodeNames,
        events: deque[DerpPoolEvent],
        received: deque[DerpDatagrams],
        stats: DerpPoolStats,
        now: float,
    ) -> None:
        self.url = url
        self.approach = approach
        self.tcp_id: int | None = None
        self.retry_at: float | None = now
        self.failures = 0
        self.down_since: float | None = now
        self.used_at = now
        self.has_sent = False
        self._dialect = dialect
        self._token = token
        self._secret_key = secret_key
        self._rng = rng
        self._names = names
        self._events = events
        self._received = received
        self._stats = stats
        self._client: DerpClient | None = None
        self._is_preferred = False
        self._dial_deadline: float | None = None
        self._connected_at = 0.0
        self._was_down_since: float | None = None
        self._waiting: deque[tuple[float, NodeId, tuple[bytes, ...]]] = deque()
        self._waiting_size = 0
        self._addresses: dict[NodeId, DerpAddress] = {}

    @property
    def is_connected(self) -> bool:
        """Whether datagrams go out at once."""
        return self._client is not None and self._client.is_connected

    @property
    def is_complete(self) -> bool:
        """Whether the TCP connection stands."""
        return self._client is not None

    @property
    def is_preferred(self) -> bool:
        """Whether this server is the home."""
        return self._is_preferred

    @property
    def has_data_to_send(self) -> bool:
        """Whether :meth:`data_to_send` has something."""
        return self._client is not None and self._client.has_data_to_send

    @property
    def client_stats(self) -> DerpClientStats | None:
        """The counts of the connection, if there is one."""
        return None if self._client is None else self._client.stats

    def has_heard_of(self, node_id: NodeId) -> bool:
        """Say whether the node sent something through the connection that stands."""
        return self._client is not None and self._client.has_heard_of(node_id)

    # What the pool does with it

    def dial(self, tcp_id: int, now: float) -> None:
        """Ask the host for a TCP connection."""
        self.tcp_id = tcp_id
        self.retry_at = None
        self._dial_deadline = now + DIAL_TIMEOUT
        self._stats.dials += 1
        self._events.append(
            TcpRequested(tcp_id=tcp_id, host=self.url.host, port=self.url.port, tls=self.url.is_tls)
        )

    def send(self, dst: NodeId, datagrams: Sequence[bytes], now: float) -> None:
        """Send datagrams, or have them wait for the connection."""
        self.note_use(now)
        if self._client is not None and self._client.is_connected:
            self._client.send_datagrams(dst, datagrams, now=now)
            return
        self._waiting.append((now + WAITING_TIME, dst, tuple(datagrams)))
        self._waiting_size += sum(map(len, datagrams))
        while self._waiting_size > WAITING_LIMIT or len(self._waiting) > WAITING_BATCHES_LIMIT:
            self._stats.datagrams_pushed_out += self._drop_oldest()

    def note_use(self, now: float) -> None:
        """Take that there is something to send to the server."""
        self.used_at = now
        self.has_sent = True

    def prefer(self, preferred: bool, now: float) -> None:
        """Say whether this server is the home."""
        self._is_preferred = preferred
        self.used_at = now
        if self._client is not None:
            self._client.note_preferred(preferred, now=now)

    def check(self, now: float) -> None:
        """Find out whether the network still leads to the server, and do not wait any longer."""
        if self._client is not None and self._client.is_connected:
            self._client.ping(now=now)
            return
        self._let_go(now)
        self.failures = 0
        self.retry_at = now

    def close(self, now: float) -> bytes:
        """End the connection for good; return what is still to be written on it."""
        self.retry_at = None
        unsent = b""
        if self._client is not None:
            self._client.close(now=now)
            unsent = self._client.data_to_send()
            if self.down_since is None:
                self._events.append(DerpServerLost(url=self.url, error=None))
        while self._waiting:
            self._stats.datagrams_refused += self._drop_oldest()
        self._let_go(now)
        return unsent

    # Bytes and time

    def complete(self, error: str | None, now: float) -> None:
        """Take the answer to the request for a TCP connection."""
        if error is not None:
            self._fail(error, now)
            return
        self._client = DerpClient(
            url=self.url,
            secret_key=self._secret_key,
            rng=self._rng,
            dialect=self._dialect,
            approach=self.approach,
            names=self._names,
            token=self._token,
        )
        self._client.note_preferred(self._is_preferred, now=now)
        self._client.start(now=now)

    def receive_data(self, data: bytes, now: float) -> None:
        """Take bytes from the server, once the connection is complete."""
        assert self._client is not None
        self._client.receive_data(data, now=now)
        self._take_payloads(self._client)
        self._take_events(self._client, now)

    def receive_eof(self, now: float) -> None:
        """Take the end of the TCP connection, once it is complete."""
        assert self._client is not None
        self._client.receive_eof(now=now)
        self._take_events(self._client, now)

    def data_to_send(self, size_wanted: int) -> bytes:
        """Return bytes to write and forget them."""
        return b"" if self._client is None else self._client.data_to_send(size_wanted)

    def get_timer(self) -> float | None:
        """Return the earliest deadline, that of :attr:`retry_at` included."""
        return earliest(
            self.retry_at,
            self._dial_deadline,
            self._waiting[0][0] if self._waiting else None,
            None if self._client is None else self._client.get_timer(),
        )

    def handle_timer(self, now: float) -> None:
        """Let every deadline but that of :attr:`retry_at` expire."""
        while self._waiting and self._waiting[0][0] <= now:
            self._stats.datagrams_expired += self._drop_oldest()
        if self._dial_deadline is not None and self._dial_deadline <= now:
            self._fail(f"no connection within {DIAL_TIMEOUT:g} s", now)
        if self._client is not None:
            self._client.handle_timer(now=now)
            self._take_events(self._client, now)

    # What a client says

    def _take_payloads(self, client: DerpClient) -> None:
        for payload in client.received_payloads():
            address = self._addresses.get(payload.node_id)
            if address is None:
                address = DerpAddress(self.url, payload.node_id)
                self._addresses[payload.node_id] = address
                if len(self._addresses) > ADDRESSES_LIMIT:
                    del self._addresses[next(iter(self._addresses))]
            if len(self._received) >= RECEIVED_LIMIT:
                self._received.popleft()
                self._stats.payloads_dropped += 1
            self._received.append(DerpDatagrams(address, payload.datagrams))

    def _take_events(self, client: DerpClient, now: float) -> None:
        while (event := client.next_event()) is not None:
            match event:
                case DerpConnected():
                    self._connected(event, client, now)
                case PeerGone():
                    self._events.append(DerpPeerGone(url=self.url, node_id=event.node_id))
                case HealthReported():
                    self._events.append(DerpServerTroubled(url=self.url, problem=event.problem))
                case ConnectionLost():
                    self._lost(event, client, now)
                case PongReceived() | RestartAnnounced():
                    pass  # upstream's clients do not heed the announcement either
                case _:
                    assert_never(event)

    def _connected(self, event: DerpConnected, client: DerpClient, now: float) -> None:
        self.approach = event.approach
        self._was_down_since, self.down_since = self.down_since, None
        self._connected_at = now
        self._dial_deadline = None
        self._events.append(DerpServerConnected(url=self.url, dialect=event.dialect))
        for _, dst, datagrams in self._waiting:
            client.send_datagrams(dst, datagrams, now=now)
        self._waiting.clear()
        self._waiting_size = 0

    def _lost(self, event: ConnectionLost, client: DerpClient, now: float) -> None:
        if self.down_since is None:
            self._events.append(DerpServerLost(url=self.url, error=event.error))
            was_stable = now - self._connected_at >= STABLE_TIME
            self._let_go(now)
            if was_stable:
                self.failures = 0
            else:
                self.down_since = self._was_down_since
            if was_stable and client.has_ponged:
                self.retry_at = now
            else:
                self._back_off(now)
        elif event.retry is None:
            self.approach = None
            self._fail(str(event.error), now)
        if event.retry is not None:  # at once: the ways to approach a server are few
            self._let_go(now)
            self.approach = event.retry
            self.retry_at = now

    # The ways back

    def _fail(self, error: str, now: float) -> None:
        """Take that an attempt led nowhere."""
        self._stats.dials_failed += 1
        self._let_go(now)
        retry_in = self._back_off(now)
        self._events.append(DerpServerUnreachable(url=self.url, error=error, retry_in=retry_in))

    def _back_off(self, now: float) -> float:
        longest = min(LAST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(self.failures, 32))
        delay = longest * self._rng.uniform(0.5, 1.0)
        self.failures += 1
        self.retry_at = now + delay
        return delay

    def _let_go(self, now: float) -> None:
        """Be without a connection."""
        if self.down_since is None:
            self.down_since = now
        if self._client is not None:
            add_counts(self._stats.clients, self._client.stats)
            self._client = None
        self._dial_deadline = None
        if self.tcp_id is not None:
            self._events.append(TcpCloseRequested(tcp_id=self.tcp_id))
            self.tcp_id = None

    def _drop_oldest(self) -> int:
        _, _, datagrams = self._waiting.popleft()
        self._waiting_size -= sum(map(len, datagrams))
        return len(datagrams)


def add_counts(total: DerpClientStats, stats: DerpClientStats) -> None:
    """Add the counts of one connection to a total."""
    for count in fields(stats):
        value: int = getattr(stats, count.name)
        setattr(total, count.name, getattr(total, count.name) + value)
