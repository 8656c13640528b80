"""All DERP servers that one node uses: its home, where others reach it, and those of its peers.

The pool asks its host for TCP connections, runs a
:class:`~iroh_proto.derp.client.DerpClient` on each, and makes them again when they are lost. It
keeps the home connected always, and others as long as something is sent through them.

**Home.** The first server of the map that can be reached: they are tried in order, the next one
when the one before failed or had its head start. A home that stays away is replaced in the same
way; it is not given up before another is there.

**Sending** to a node at a server: by the connection to that server if it stands; else by any
connection through which the node was heard; else the datagrams wait, for a short time, until the
server is connected.

Source: iroh v0.12.0 ``iroh-net/src/magicsock/derp_actor.rs``, v0.35.0
``iroh/src/magicsock/relay_actor.rs``.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from iroh_proto.address import DerpUrl
from iroh_proto.derp.approach import Approach, first_approach
from iroh_proto.derp.frames import DATAGRAM_LIMIT
from iroh_proto.derp.map import DerpMap
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
    HomeDerpChanged,
)
from iroh_proto.derp.server_link import ServerLink, add_counts
from iroh_proto.errors import LocalProtocolError
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.timers import LatestTime, earliest

__all__ = [
    "DerpDatagrams",
    "DerpPeerGone",
    "DerpPool",
    "DerpPoolEvent",
    "DerpPoolStats",
    "DerpServerConnected",
    "DerpServerLost",
    "DerpServerTroubled",
    "DerpServerUnreachable",
    "HomeDerpChanged",
]

HEAD_START = 2.0
"""Seconds that a server of the map has to become the home before the next one is tried as well:
enough for name resolution, TCP, TLS and the upgrade over a slow line."""

HOME_PATIENCE = 10.0
"""Seconds that the home may be away before others are tried: longer than a server takes to restart,
since peers know the node by its home."""

IDLE_TIME = 60.0
"""Seconds without sending after which a connection is closed that is not the home (upstream's)."""

SERVERS_LIMIT = 128
"""Servers with a connection or datagrams waiting for one. Past it the one unused for longest goes,
but never the home."""

APPROACHES_LIMIT = 256
"""Servers of which is remembered how they are spoken to; past it the first one is forgotten."""

PULL_SIZE = 64 * 1024
"""Bytes handed to the host at a time. What it holds cannot be pushed out by newer packets."""

CLOSING_LIMIT = 64
"""Closed connections whose last bytes wait for the host; past it the oldest are forgotten."""


class DerpPool:
    """Connections to DERP servers, for one node.

    :param derp_map: the servers that may become the home. Others are dialled when something is
        sent to them.
    :raises LocalProtocolError: if the map names a dialect that there is not.
    """

    def __init__(self, *, secret_key: SecretKey, derp_map: DerpMap, rng: random.Random) -> None:
        for node in derp_map:
            first_approach(node.url, node.dialect)
        self._secret_key = secret_key
        self._map = derp_map
        self._rng = rng
        self._names = NodeNames()
        self._time = LatestTime()
        self._is_started = False
        self._is_closed = False
        self._links: dict[DerpUrl, ServerLink] = {}
        self._by_tcp_id: dict[int, ServerLink] = {}
        self._closing: dict[int, bytes] = {}
        self._next_tcp_id = 0
        self._approaches: dict[DerpUrl, Approach] = {}
        self._home: DerpUrl | None = None
        self._candidates: list[DerpUrl] = []
        self._next_candidate_at: float | None = None
        self._is_racing = False
        self._events: deque[DerpPoolEvent] = deque()
        self._received: deque[DerpDatagrams] = deque()
        self._stats = DerpPoolStats()

    # Getters

    @property
    def home(self) -> DerpUrl | None:
        """The home, once one was found. It may be away for the moment."""
        return self._home

    def is_connected(self, url: DerpUrl) -> bool:
        """Say whether the connection to a server stands."""
        link = self._links.get(url)
        return link is not None and link.is_connected

    @property
    def stats(self) -> DerpPoolStats:
        """A copy of the counts."""
        clients = replace(self._stats.clients)
        for link in self._links.values():
            if (counts := link.client_stats) is not None:
                add_counts(clients, counts)
        return replace(self._stats, clients=clients)

    # Commands

    def start(self, *, now: float) -> None:
        """Begin to look for the home.

        :raises LocalProtocolError: if it was started before, or closed.
        """
        now = self._time.advance(now)
        if self._is_started or self._is_closed:
            raise LocalProtocolError("a pool is started once")
        self._is_started = True
        self._begin_race()
        self._tend(now)

    def send_datagrams(
        self, url: DerpUrl, dst: NodeId, datagrams: Sequence[bytes], *, now: float
    ) -> None:
        """Send datagrams to a node at a server, which need not be in the map.

        Once the pool is closed they are counted only.

        :raises LocalProtocolError: before :meth:`start`, or for a datagram that is too long.
        """
        now = self._time.advance(now)
        self._expect_start()
        if not datagrams:
            return
        if any(len(datagram) > DATAGRAM_LIMIT for datagram in datagrams):
            raise LocalProtocolError(f"a relayed datagram has at most {DATAGRAM_LIMIT} bytes")
        if self._is_closed:
            self._stats.datagrams_refused += len(datagrams)
            return
        link = self._links.get(url)
        if link is None or not link.is_connected:
            # Dialled in any case: where else the node was heard may be long ago, or a lie.
            link = self._link(url, now)
            link.note_use(now)
            self._tend(now)
            link = self._route(dst) or link
        link.send(dst, datagrams, now)

    def set_home(self, url: DerpUrl, *, now: float) -> None:
        """Make a server the home, whatever the map says.

        :raises LocalProtocolError: before :meth:`start`.
        """
        now = self._time.advance(now)
        self._expect_start()
        if not self._is_closed:
            self._end_race()
            self._move_home(url, now)
            self._tend(now)

    def network_changed(self, *, now: float) -> None:
        """Have every connection show that it still works, and try those at once that do not."""
        now = self._time.advance(now)
        for link in self._links.values():
            link.check(now)
        self._tend(now)

    def close(self, *, now: float) -> None:
        """Close every connection. Bytes that wait for one may still be written."""
        now = self._time.advance(now)
        if self._is_closed:
            return
        self._is_closed = True
        self._end_race()
        for url in list(self._links):
            self._drop(url, now)

    # TCP connections

    def complete_tcp(self, tcp_id: int, *, error: str | None = None, now: float) -> None:
        """Say that the connection stands, or with ``error`` why it does not.

        :raises LocalProtocolError: if it was not asked for, or is complete already.
        """
        now = self._time.advance(now)
        link = self._find(tcp_id)
        if link is None:
            return
        if link.is_complete:
            raise LocalProtocolError(f"TCP connection {tcp_id} is complete already")
        link.complete(error, now)
        self._tend(now)

    def receive_tcp_data(self, tcp_id: int, data: bytes, *, now: float) -> None:
        """Take bytes that arrived on a connection.

        :raises LocalProtocolError: if it was not asked for, or is not complete.
        """
        now = self._time.advance(now)
        link = self._expect_complete(tcp_id)
        if link is None:
            return
        was_connected = link.is_connected
        link.receive_data(data, now)
        if not (was_connected and link.is_connected):
            self._tend(now)

    def receive_tcp_eof(self, tcp_id: int, *, now: float) -> None:
        """Take the end of a connection, orderly or not.

        :raises LocalProtocolError: if it was not asked for, or is not complete.
        """
        now = self._time.advance(now)
        link = self._expect_complete(tcp_id)
        if link is not None:
            link.receive_eof(now)
            self._tend(now)

    def tcp_to_send(self) -> list[int]:
        """Return the connections that have bytes to write. Changes nothing."""
        closing = list(self._closing)
        links = self._links.values()
        ids = [link.tcp_id for link in links if link.has_data_to_send and link.tcp_id is not None]
        return closing + ids

    def tcp_data_to_send(self, tcp_id: int) -> bytes:
        """Return bytes to write on one connection and forget them; empty when there are none.

        There may be more: about :data:`PULL_SIZE` are handed out at a time.
        """
        if tcp_id in self._closing:
            return self._closing.pop(tcp_id)
        link = self._by_tcp_id.get(tcp_id)
        if link is None or link.tcp_id != tcp_id:
            return b""
        return link.data_to_send(PULL_SIZE)

    # What comes out

    def received_payloads(self) -> list[DerpDatagrams]:
        """Return what other nodes sent, in order per server, and forget it."""
        received = list(self._received)
        self._received.clear()
        return received

    def next_event(self) -> DerpPoolEvent | None:
        """Return the oldest queued event and forget it, or ``None``."""
        return self._events.popleft() if self._events else None

    def get_timer(self) -> float | None:
        """Return the earliest deadline, or ``None``. Changes nothing."""
        first = earliest(self._next_candidate_at, self._home_is_missed_at())
        for link in self._links.values():
            first = earliest(first, link.get_timer(), self._idle_at(link))
        return first

    def handle_timer(self, *, now: float) -> None:
        """Let every deadline at or before ``now`` expire."""
        now = self._time.advance(now)
        for url, link in list(self._links.items()):
            link.handle_timer(now)
            idle_at = self._idle_at(link)
            if idle_at is not None and idle_at <= now:
                self._drop(url, now)
        missed_at = self._home_is_missed_at()
        if missed_at is not None and missed_at <= now:
            self._begin_race()
        self._tend(now)

    # Links

    def _find(self, tcp_id: int) -> ServerLink | None:
        """Return whose connection that is, or ``None`` if it is closed."""
        if not 0 <= tcp_id < self._next_tcp_id:
            raise LocalProtocolError(f"TCP connection {tcp_id} was not asked for")
        link = self._by_tcp_id.get(tcp_id)
        return link if link is not None and link.tcp_id == tcp_id else None

    def _expect_complete(self, tcp_id: int) -> ServerLink | None:
        link = self._find(tcp_id)
        if link is not None and not link.is_complete:
            raise LocalProtocolError(f"TCP connection {tcp_id} is not complete")
        return link

    def _expect_start(self) -> None:
        if not self._is_started:
            raise LocalProtocolError("the pool was not started")

    def _route(self, dst: NodeId) -> ServerLink | None:
        """Return a connection through which the node was heard."""
        for link in self._links.values():
            if link.has_heard_of(dst):
                return link
        return None

    def _link(self, url: DerpUrl, now: float) -> ServerLink:
        """Return the link to a server, made if need be."""
        link = self._links.get(url)
        if link is None:
            self._make_room(now)
            node = self._map.get(url)
            link = self._links[url] = ServerLink(
                url=url,
                dialect=None if node is None else node.dialect,
                token=None if node is None else node.token,
                approach=self._approaches.get(url),
                secret_key=self._secret_key,
                rng=self._rng,
                names=self._names,
                events=self._events,
                received=self._received,
                stats=self._stats,
                now=now,
            )
        return link

    def _make_room(self, now: float) -> None:
        if len(self._links) < SERVERS_LIMIT:
            return
        others = [link for link in self._links.values() if not link.is_preferred]
        # A race without its runners would never end.
        others = [link for link in others if link.url not in self._candidates] or others
        self._drop(min(others, key=lambda link: link.used_at).url, now)

    def _drop(self, url: DerpUrl, now: float) -> None:
        link = self._links.pop(url)
        if link.approach is not None:
            self._approaches.pop(url, None)
            self._approaches[url] = link.approach
            if len(self._approaches) > APPROACHES_LIMIT:
                del self._approaches[next(iter(self._approaches))]
        tcp_id = link.tcp_id
        unsent = link.close(now)
        if tcp_id is None:
            return
        self._by_tcp_id.pop(tcp_id, None)
        if unsent:
            self._closing[tcp_id] = unsent
            if len(self._closing) > CLOSING_LIMIT:
                del self._closing[next(iter(self._closing))]

    def _idle_at(self, link: ServerLink) -> float | None:
        """Return when a link is to be dropped that is neither the home nor to become it."""
        if link.is_preferred or link.url in self._candidates:
            return None
        return link.used_at + IDLE_TIME

    def _tend(self, now: float) -> None:
        """Do what has become due: choose the home, dial."""
        self._run_race(now)
        for link in self._links.values():
            if link.retry_at is not None and link.retry_at <= now:
                self._dial(link, now)

    def _dial(self, link: ServerLink, now: float) -> None:
        tcp_id = self._next_tcp_id
        self._next_tcp_id += 1
        link.dial(tcp_id, now)
        self._by_tcp_id = {
            link.tcp_id: link for link in self._links.values() if link.tcp_id is not None
        }

    # The home

    def _begin_race(self) -> None:
        self._is_racing = len(self._map) > 0
        self._candidates = []

    def _end_race(self) -> None:
        self._is_racing = False
        self._candidates = []
        self._next_candidate_at = None

    def _run_race(self, now: float) -> None:
        """Bring further servers of the map into the race, and end it when one is there."""
        if not self._is_racing:
            return
        winner = self._reachable_home()
        while winner is None and self._may_try_next(now):
            self._try_next(now)
            winner = self._reachable_home()
        if winner is None:
            return
        losers = [url for url in self._candidates if url != winner]
        self._end_race()
        self._move_home(winner, now)
        for url in losers:
            link = self._links.get(url)
            if link is not None and not link.has_sent and not link.is_preferred:
                self._drop(url, now)

    def _reachable_home(self) -> DerpUrl | None:
        if self._home is not None and self.is_connected(self._home):
            return self._home
        return next((node.url for node in self._map if self.is_connected(node.url)), None)

    def _may_try_next(self, now: float) -> bool:
        if len(self._candidates) == len(self._map):
            return False
        if self._next_candidate_at is None or self._next_candidate_at <= now:
            return True
        last = self._links.get(self._candidates[-1])
        return last is None or last.failures > 0

    def _try_next(self, now: float) -> None:
        url = [node.url for node in self._map][len(self._candidates)]
        self._candidates.append(url)
        self._link(url, now)
        is_last = len(self._candidates) == len(self._map)
        self._next_candidate_at = None if is_last else now + HEAD_START

    def _move_home(self, url: DerpUrl, now: float) -> None:
        if url == self._home:
            return
        former = None if self._home is None else self._links.get(self._home)
        if former is not None:
            former.prefer(False, now)
        self._home = url
        self._link(url, now).prefer(True, now)
        self._events.append(HomeDerpChanged(url=url))

    def _home_is_missed_at(self) -> float | None:
        """Return when to look for another home than the one that is away."""
        link = None if self._home is None else self._links.get(self._home)
        if link is None or link.down_since is None or self._is_racing:
            return None
        has_others = any(node.url != self._home for node in self._map)
        return link.down_since + HOME_PATIENCE if has_others else None
