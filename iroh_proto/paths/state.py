"""What is known of one peer, and what follows from it for the next datagram.

A peer's way is found in one of two schemes:

* **disco** (0.6 to 0.95): a UDP address is proven by the pong to one's own ping, and by nothing
  else; authenticated payload from the proven address keeps the proof alive.
* **quic** (0.96 on): peers answer no pings, but QUIC's own path challenges (RFC 9000, section
  8.2). The same rules hold, with a challenge in place of a ping and its answer in place of a pong.
  That a QUIC packet authenticates proves nothing of the address it comes from: whoever hears it
  may send it on from anywhere, and be faster (section 9.3.3).

Until a peer has shown which it is, it is pinged, and payload goes everywhere. What
arrives unauthenticated changes nothing in either. A peer shows disco by a pong: that answers
one's own ping, while a ping or a CallMeMaybe could be an old one that somebody sends again. For
the same reason a ping through another DERP server moves the peer there only when it answers one
sent back through that server.

Where payload goes:

================================  =============================  ==========
best UDP address                  UDP                            DERP
================================  =============================  ==========
valid                             the best                       no
outdated                          the best                       if known
none, peer showed disco           one address, always the same   if known
none, DERP proven by payload      none                           yes
none, nothing known of the peer   all addresses                  if known
================================  =============================  ==========

Source: iroh v0.35.0 ``iroh/src/magicsock/node_map/node_state.rs``; for the quic scheme v1.0.3
``iroh/src/socket/remote_map/remote_state.rs``.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from iroh_proto.address import Address, DerpAddress, DerpUrl, UdpAddress
from iroh_proto.key import NodeId
from iroh_proto.paths.candidate import (
    ACTIVE_TIME,
    PING_INTERVAL,
    PathState,
    PongRecord,
    Reachability,
)
from iroh_proto.paths.select import GOOD_ENOUGH_LATENCY, TRUST_TIME, PathInfo
from iroh_proto.paths.udp_paths import UdpPaths
from iroh_proto.timers import earliest

UPGRADE_INTERVAL = 60.0
"""Seconds between searches for a better path while the best address is valid but slow."""

SEARCH_INTERVAL = 5.0
"""Seconds between two searches that payload starts; the heartbeat's own come as often."""

STAY_ALIVE_MIN_AGE = 1.0
"""Seconds since the last ping of the best address before the heartbeat pings it again.

Less than what the trust time is longer than the heartbeat's interval, 1.5 s: where one heartbeat
does not ping, the proof has to hold until the pong of the next. iroh takes 2 s, and an idle path
that was proven 1.5 to 2 s before a heartbeat is lost for a moment.
"""

CALLS_BURST = 4
CALLS_INTERVAL = 1.0
"""CallMeMaybes that are heeded at once, and seconds until another is. Each may cause 64 pings to
addresses of the peer's choice; iroh sends one every 5 s."""

PING_BACKS_BURST = 8
PING_BACKS_INTERVAL = 1.0
"""Pings by UDP that are pinged back at once, and seconds until another is.

Where both nodes are behind NATs with another port for each destination that let in anybody, each
ping back comes from a new port and would be pinged back itself, as fast as packets travel.
"""

CHALLENGE_INTERVAL = 0.5
"""Seconds between two challenges to an unproven address that payload comes from."""

Scheme: TypeAlias = Literal["unknown", "disco", "quic"]

Route: TypeAlias = tuple[tuple[UdpAddress, ...], DerpUrl | None]
"""Where a datagram goes: UDP addresses, and a DERP server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemotePath:
    """One UDP address of a peer. Times are seconds of the machine's time, ``None`` is never."""

    addr: UdpAddress
    latency: float | None
    last_alive: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteInfo:
    """What is known of a peer. Times are seconds of the machine's time, ``None`` is never."""

    node_id: NodeId
    scheme: Scheme
    path: PathInfo
    derp_url: DerpUrl | None
    derp_latency: float | None
    paths: tuple[RemotePath, ...]
    last_used: float | None


class Search:
    """What to send to find a way to a peer: first the pings, in order, then the CallMeMaybe."""

    __slots__ = ("call_me_maybe", "pings")

    def __init__(self, pings: list[Address], call_me_maybe: DerpUrl | None = None) -> None:
        self.pings = pings
        self.call_me_maybe = call_me_maybe


class NodeState:
    """One peer. Inputs carry ``now``; after any of them :meth:`settle` is owed.

    :param reach: what this node can send to; shared with all peers and changed by its owner.
    :param rng: picks the one unproven address to try.
    """

    __slots__ = (
        "_calls_paid_at",
        "_last_full_ping",
        "_last_search",
        "_ping_backs_paid_at",
        "_reach",
        "_rival",
        "derp",
        "derp_url",
        "is_known",
        "is_proven",
        "last_disco",
        "last_used",
        "node_id",
        "scheme",
        "shown",
        "udp",
    )

    def __init__(
        self, node_id: NodeId, *, reach: Reachability, rng: random.Random, now: float
    ) -> None:
        self.node_id = node_id
        self.scheme: Scheme = "unknown"
        self.last_disco: float | None = None
        """When this peer last answered a ping."""
        self.is_known = False
        """Whether the application named this peer."""
        self.is_proven = False
        """Whether the peer ever completed a QUIC handshake."""
        self.last_used: float | None = None
        self.derp_url: DerpUrl | None = None
        self.derp: PathState | None = None
        self.udp = UdpPaths(reach=reach, rng=rng)
        self._rival: tuple[DerpUrl, PathState] | None = None
        """Another DERP server through which a ping came, until the peer answers there."""
        self.shown: PathInfo | None = None
        """What the application was last told of the route."""
        self._reach = reach
        self._last_full_ping: float | None = None
        self._last_search: float | None = None
        self._calls_paid_at = self._ping_backs_paid_at = now

    def is_active(self, now: float) -> bool:
        """Say whether the peer was in use of late."""
        return self.last_used is not None and now - self.last_used <= ACTIVE_TIME

    def route(self, now: float) -> Route:
        """Return where payload goes."""
        udp = self.udp
        best = udp.best
        if best is not None and best.is_valid(now):
            return (best.addr,), None
        if best is not None:
            return (best.addr,), self.derp_url
        if self.scheme == "disco":
            return (() if udp.chosen is None else (udp.chosen,)), self.derp_url
        if self._derp_is_proven(now):
            return (), self.derp_url
        return udp.dial_addresses(), self.derp_url

    def info(self, now: float) -> PathInfo:
        """Return where payload goes, in words."""
        addresses, derp_url = self.route(now)
        derp_latency = None if self.derp is None else self.derp.latency
        if not addresses:
            if derp_url is None:
                return PathInfo(kind="none", addr=None, derp_url=None, latency=None)
            return PathInfo(kind="derp", addr=derp_url, derp_url=derp_url, latency=derp_latency)
        addr = addresses[0]
        latency = self.udp.latency_of(addr)
        if derp_url is None:
            return PathInfo(kind="direct", addr=addr, derp_url=None, latency=latency)
        latency = earliest(latency, derp_latency)
        return PathInfo(kind="mixed", addr=addr, derp_url=derp_url, latency=latency)

    def remote_info(self, now: float) -> RemoteInfo:
        """Return all that is known of the peer."""
        return RemoteInfo(
            node_id=self.node_id,
            scheme=self.scheme,
            path=self.info(now),
            derp_url=self.derp_url,
            derp_latency=None if self.derp is None else self.derp.latency,
            paths=tuple(
                RemotePath(addr=addr, latency=path.latency, last_alive=path.last_alive)
                for addr, path in self.udp.paths.items()
            ),
            last_used=self.last_used,
        )

    def has_ponged(self, addr: UdpAddress, now: float) -> bool:
        """Say whether the peer answered a ping at an address of late, be it the best or not."""
        path = self._path(addr)
        return path is not None and path.pong is not None and now - path.pong.at < TRUST_TIME

    def next_change(self, now: float) -> float | None:
        """Return when the route may change though nothing happens, or ``None``."""
        change = self.udp.next_change(now)
        if self.derp is None or self.derp.last_payload is None:
            return change
        end = self.derp.last_payload + TRUST_TIME
        return earliest(change, end) if end > now else change

    def wants_search(self, now: float) -> bool:
        """Say whether a better way should be looked for."""
        best = self.udp.best
        if self._last_full_ping is None or best is None or not best.is_valid(now):
            return True
        if best.latency is None or best.latency <= GOOD_ENOUGH_LATENCY:
            return False
        return now - self._last_full_ping >= UPGRADE_INTERVAL

    def settle(self, now: float) -> None:
        """Let what is out of date go, and choose what follows. Owed after each input."""
        self.udp.settle(now)

    def add_addresses(
        self, addresses: Iterable[UdpAddress], *, derp_url: DerpUrl | None, now: float
    ) -> None:
        """Learn addresses from the application or from discovery: a dial may follow.

        A peer that is not proven to be anywhere, and was silent for long, may be another release
        at other addresses by now. All of them are tried again.
        """
        silent = self.last_disco is None or now - self.last_disco > ACTIVE_TIME
        if silent and not self.udp.is_proven(now):
            self.scheme, self.last_disco = "unknown", None
            self.udp.best = None
        for addr in addresses:
            is_new = addr not in self.udp.paths
            path = self.udp.add(addr, now)
            if path is None:
                continue
            path.is_named = True
            if is_new:
                self._last_search = None
        if derp_url is not None:
            self._set_derp(derp_url, now)

    def note_send(self, now: float) -> Search | None:
        """Note that payload is sent, and return what to send besides to find a better way."""
        self.last_used = now
        if not self.wants_search(now):
            return None
        if self._last_search is not None and now - self._last_search < SEARCH_INTERVAL:
            return None
        return self.search(now)

    def note_derp_payload(self, url: DerpUrl, now: float) -> None:
        """Note that payload came through a DERP server, which names this peer as its sender."""
        self.last_used = now
        if self.derp_url is None:
            self._set_derp(url, now)

    def note_disco(self, now: float) -> None:
        """Note that this peer answered a ping."""
        self.scheme = "disco"
        self.last_disco = now

    def note_ping_sent(self, addr: Address, now: float) -> None:
        """Note that a ping was really sent."""
        path = self._path(addr)
        if path is not None:
            path.last_ping = now

    def take_ping(self, source: Address, tx_id: bytes, now: float) -> tuple[bool, bool]:
        """Take a ping, and say whether to answer it and whether to ping back."""
        if isinstance(source, DerpAddress):
            derp = self._derp_path(source.url, now)
            is_rival = derp is not self.derp
            return derp.note_ping(tx_id, now), is_rival and derp.needs_ping(now)
        path = self.udp.add(source, now)
        if path is None:
            return True, False
        if not path.note_ping(tx_id, now):
            return False, False
        self.udp.prune(now)
        if self.udp.is_proven(now) or not self._reach.can_send(source):
            return True, False
        return True, self._may_ping_back(now)

    def take_pong(self, addr: Address, source: Address, latency: float, now: float) -> bool:
        """Take the pong to a ping that went to ``addr``, and say whether it counts."""
        if isinstance(addr, UdpAddress) and isinstance(source, UdpAddress):
            return self.udp.take_pong(addr, latency, now)
        if isinstance(addr, DerpAddress) and addr == source:
            path = self._path(addr)
            if path is not None:
                path.pong = PongRecord(latency, now)
                if path is not self.derp:
                    self.derp_url, self.derp = addr.url, path
                    self._rival = self._last_search = None
                return True
        return False

    def take_ping_timeout(self, addr: Address, sent_at: float) -> None:
        """Take the news that a ping was not answered."""
        if isinstance(addr, UdpAddress):
            self.udp.take_ping_timeout(addr, sent_at)
            return
        path = self._path(addr)
        if path is not None and path.last_ping == sent_at:
            path.last_ping = None

    def take_call_me_maybe(self, addresses: Iterable[UdpAddress], now: float) -> Search | None:
        """Take the peer's list of its addresses; ``None`` if it comes too often to be heeded."""
        paid_at = _paid_at(self._calls_paid_at, CALLS_BURST, CALLS_INTERVAL, now)
        if paid_at is None:
            return None
        self._calls_paid_at = paid_at
        if not self.udp.take_call_me_maybe(addresses, now):
            self._last_search = None  # the peer has to hear from us soon
        return Search(self._pings(now))

    def beat(self, now: float) -> Search | None:
        """Return what the heartbeat sends to a peer in use."""
        if not self.is_active(now):
            return None
        to_keep = self._addresses_to_keep(now)
        if self.wants_search(now):
            search = self.search(now)
            # It leaves out what was pinged by the last heartbeat, if that was a moment less ago.
            search.pings += [addr for addr in to_keep if addr not in search.pings]
            return search
        return Search(to_keep) if to_keep else None

    def search(self, now: float) -> Search:
        """Return what to send to find a way, however short ago it was done."""
        self._last_search = now
        return Search(self._pings(now), None if self.scheme == "quic" else self.derp_url)

    def adopt(
        self,
        source: Address,
        scheme: Literal["disco", "quic"],
        now: float,
        *,
        callers: Iterable[UdpAddress] = (),
    ) -> None:
        """Take the news that the peer proved its identity in a handshake from ``source``.

        Or it is at one of ``callers``, from where the same handshake was heard.
        What the peer showed itself weighs more than what a handshake lets one suppose.
        """
        self.is_proven = True
        shown_lately = self.last_disco is not None and now - self.last_disco <= ACTIVE_TIME
        before = self.scheme
        if scheme == "disco" or not shown_lately:
            self.scheme = scheme
        if self.scheme == "quic":
            self.last_disco = None
            if before != "quic":
                self.udp.forget_pings()  # which it does not answer; it is asked otherwise now
                self._last_search = None
        for caller in callers:
            self.udp.add(caller, now)
        self.confirm(source, now)
        if isinstance(source, UdpAddress) and source in self.udp.paths:
            self.udp.chosen = source  # not proven for a peer with disco, but better than chance

    def confirm(self, source: Address, now: float) -> None:
        """Take the news that an authenticated QUIC packet of the peer came from ``source``."""
        self.last_used = now
        if isinstance(source, DerpAddress):
            if self.scheme != "disco" or self.derp_url is None:
                self._set_derp(source.url, now)
            path = self._path(source)
        else:
            path = self.udp.add(source, now)
        if path is None:
            return
        path.last_payload = now
        if isinstance(source, DerpAddress):
            return
        self.udp.extend_trust(source, now)
        if self.scheme == "quic":
            self.udp.follow(source, now)

    def wants_challenge(self, source: Address, now: float) -> bool:
        """Say whether to challenge the peer at the address that payload came from."""
        if self.scheme != "quic" or not isinstance(source, UdpAddress):
            return False
        path, best = self.udp.paths.get(source), self.udp.best
        if path is None or not self._reach.can_send(source):
            return False
        if best is not None and best.addr == source and best.is_valid(now):
            return False
        if path.pong is not None and now - path.pong.at < PING_INTERVAL:
            return False
        return path.last_ping is None or now - path.last_ping >= CHALLENGE_INTERVAL

    def take_answer(self, addr: UdpAddress, latency: float, now: float) -> bool:
        """Take the answer to a challenge that went to ``addr``, and say whether it counts."""
        if not self.udp.take_pong(addr, latency, now):
            return False
        self.udp.follow(addr, now)
        return True

    def reset(self) -> None:
        """Take the news that this node's network is another one: nothing is proven any more."""
        self.udp.reset()
        self._last_search = None

    def _path(self, addr: Address) -> PathState | None:
        if not isinstance(addr, DerpAddress):
            return self.udp.paths.get(addr)
        if addr.url == self.derp_url:
            return self.derp
        return self._rival[1] if self._rival is not None and self._rival[0] == addr.url else None

    def _derp_path(self, url: DerpUrl, now: float) -> PathState:
        """Return the path through a DERP server: that of the peer, or one that may become it."""
        if self.derp_url is None or self.derp_url == url:
            return self._set_derp(url, now)
        if self._rival is None or self._rival[0] != url:
            self._rival = (url, PathState(now))
        return self._rival[1]

    def _derp_is_proven(self, now: float) -> bool:
        """Say whether authenticated payload came through the DERP server within the trust time."""
        if self.derp is None or self.derp.last_payload is None:
            return False
        return now < self.derp.last_payload + TRUST_TIME

    def _set_derp(self, url: DerpUrl, now: float) -> PathState:
        if self.derp is None or self.derp_url != url:
            self.derp_url, self.derp = url, PathState(now)
            self._rival = self._last_search = None
        return self.derp

    def _pings(self, now: float) -> list[Address]:
        """Return the paths to ping: a full ping."""
        pings: list[Address] = []
        speaks_disco = self.scheme != "quic"
        if speaks_disco and self.derp and self.derp_url and self.derp.needs_ping(now):
            pings.append(DerpAddress(self.derp_url, self.node_id))
        self.udp.prune(now)
        paths = self.udp.paths
        pings.extend(addr for addr in self.udp.usable() if paths[addr].needs_ping(now))
        self._last_full_ping = now
        return pings

    def _addresses_to_keep(self, now: float) -> list[Address]:
        """Return the best address, if its proof may end before the next heartbeat."""
        best = self.udp.best
        path = None if best is None else self.udp.paths.get(best.addr)
        if best is None or path is None or not best.is_valid(now):
            return []
        is_fresh = path.last_ping is not None and now - path.last_ping < STAY_ALIVE_MIN_AGE
        return [] if is_fresh else [best.addr]

    def _may_ping_back(self, now: float) -> bool:
        """Say whether pings were not pinged back too often of late, and count one more."""
        paid_at = _paid_at(self._ping_backs_paid_at, PING_BACKS_BURST, PING_BACKS_INTERVAL, now)
        if paid_at is None:
            return False
        self._ping_backs_paid_at = paid_at
        return True


def _paid_at(paid_at: float, burst: int, interval: float, now: float) -> float | None:
    """Return when one more of something is paid for, ``None`` if that is too far ahead.

    Each costs one interval, and up to ``burst`` may be owed: a token bucket that is one number
    (the generic cell rate algorithm of ITU-T I.371).

    :param paid_at: when those before are paid for.
    """
    begun = max(paid_at, now)
    return None if begun - now > (burst - 1) * interval else begun + interval
