"""The UDP addresses of one peer, and which of them is the best.

The best address goes through these states::

    empty ── proof ──> valid ── TRUST_TIME, distrust ──> outdated ── ping times out ──> empty
                        ^ └ proof ┘                          │
                        └──────────────── proof ─────────────┘

Source: iroh v0.35.0 ``iroh/src/magicsock/node_map/udp_paths.rs`` and ``node_state.rs``.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from iroh_proto.address import UdpAddress
from iroh_proto.paths.candidate import (
    ALIVE_TIME,
    INACTIVE_PATHS_LIMIT,
    PATHS_LIMIT,
    PathState,
    PongRecord,
    Reachability,
    is_candidate,
)
from iroh_proto.paths.select import TRUST_TIME, BestAddress, is_better

MOVED_TIME = 0.5
"""Seconds without payload from the best address, while it comes from another one, after which the
peer is there: longer than packets of two paths are apart when a peer uses both."""

DIAL_ADDRESSES_LIMIT = 32
"""UDP addresses that get a copy of each datagram while nothing is known of a peer."""


class UdpPaths:
    """The UDP addresses of one peer. After any change :meth:`settle` is owed.

    :param reach: what this node can send to; shared with all peers and changed by its owner.
    :param rng: picks the one unproven address to try.
    """

    __slots__ = ("_reach", "_rng", "best", "chosen", "paths")

    def __init__(self, *, reach: Reachability, rng: random.Random) -> None:
        self.paths: dict[UdpAddress, PathState] = {}
        self.best: BestAddress | None = None
        self.chosen: UdpAddress | None = None
        """The one unproven address that payload goes to while there is no best."""
        self._reach = reach
        self._rng = rng

    def is_proven(self, now: float) -> bool:
        """Say whether the best address is valid."""
        return self.best is not None and self.best.is_valid(now)

    def usable(self) -> list[UdpAddress]:
        """Return the addresses that this node can send to."""
        return [addr for addr in self.paths if self._reach.can_send(addr)]

    def dial_addresses(self) -> tuple[UdpAddress, ...]:
        """Return the addresses that get copies while none is better than another."""
        addresses = self.usable()
        if len(addresses) > DIAL_ADDRESSES_LIMIT:
            addresses.sort(key=self._promise, reverse=True)
        return tuple(addresses[:DIAL_ADDRESSES_LIMIT])

    def latency_of(self, addr: UdpAddress) -> float | None:
        """Return the round trip to an address, if one was measured."""
        if self.best is not None and self.best.addr == addr:
            return self.best.latency
        path = self.paths.get(addr)
        return None if path is None else path.latency

    def next_change(self, now: float) -> float | None:
        """Return when the proof of the best address ends, or ``None``."""
        return self.best.trust_until if self.best is not None and self.is_proven(now) else None

    def settle(self, now: float) -> None:
        """Let what is out of date go, and choose what follows."""
        if self.best is not None and not self._may_stay(self.best, now):
            self.best = None
        if self.best is None:
            self._adopt_candidate(now)
        if self.chosen is not None and not self._is_choosable(self.chosen):
            self.chosen = None
        if self.chosen is None and self.best is None:
            self._choose()

    def add(self, addr: UdpAddress, now: float) -> PathState | None:
        """Return the path of an address, new or not; ``None`` if no peer can be there."""
        path = self.paths.get(addr)
        if path is not None:
            return path
        if not is_candidate(addr) or addr in self._reach.own:
            return None
        while len(self.paths) >= PATHS_LIMIT:
            del self.paths[min(self._spare(), key=self._worth)]
        path = self.paths[addr] = PathState(now)
        return path

    def take_pong(self, addr: UdpAddress, latency: float, now: float) -> bool:
        """Take the pong to a ping that went to ``addr``, and say whether it proves anything.

        It proves that the ping got there, whatever address it came from (RFC 9000, 8.2.3, has the
        same): a node with several may answer from another, and a NAT whose mapping depends on the
        destination answers from a port of its own for each port it is pinged from. Of the place
        that it came from it proves nothing: whoever sees a pong can send it on from anywhere.
        """
        if addr not in self.paths:
            return False
        self.paths[addr].pong = PongRecord(latency, now)
        best = self.best
        if best is None or not best.is_valid(now):
            self.best = BestAddress(addr, latency, now)
        elif best.addr == addr:
            best.confirm(now, latency)
        elif is_better(addr, latency, best.addr, best.latency):
            self.best = BestAddress(addr, latency, now)
        return True

    def take_ping_timeout(self, addr: UdpAddress, sent_at: float) -> None:
        """Take the news that a ping was not answered.

        The ping may be from before the way was open, so only a path without life since is lost.
        """
        path = self.paths.get(addr)
        if path is None:
            return
        if path.last_ping == sent_at:
            path.last_ping = None
        if path.last_alive is not None and path.last_alive > sent_at:
            return
        path.pong = None  # or the path would be adopted again at once
        if self.best is not None and self.best.addr == addr:
            self.best = None

    def take_call_me_maybe(self, addresses: Iterable[UdpAddress], now: float) -> bool:
        """Take the peer's own list, and say whether the best address is still on it.

        All paths are due for a ping afterwards.
        """
        named = set()
        for addr in addresses:
            path = self.add(addr, now)
            if path is not None:
                path.call_me_maybe_at = now
                named.add(addr)
        for addr, path in self.paths.items():
            path.last_ping = None
            if addr not in named:
                path.pong = None
        if self.best is None or self.best.addr in named:
            return True
        self.best.distrust()
        return False

    def extend_trust(self, addr: UdpAddress, now: float) -> None:
        """Take authenticated payload: it keeps the best address proven."""
        if self.best is not None and self.best.addr == addr:
            self.best.extend(now)

    def follow(self, addr: UdpAddress, now: float) -> None:
        """Take the address that payload comes from for the best if the peer moved there.

        It has to be proven, and the best address to be silent.
        """
        path, best = self.paths.get(addr), self.best
        if path is None or path.last_payload is None or best is None or best.addr == addr:
            return
        if path.pong is None or now >= path.pong.at + TRUST_TIME:
            return
        left = self.paths.get(best.addr)
        heard = None if left is None else left.last_payload
        if heard is None or path.last_payload - heard >= MOVED_TIME:
            self.best = BestAddress(addr, path.pong.latency, path.pong.at)

    def distrust(self, addr: UdpAddress) -> None:
        """Take back what was proven of an address, since another node turned out to be there."""
        path = self.paths.get(addr)
        if path is not None:
            path.pong = None
        if self.best is not None and self.best.addr == addr:
            self.best.distrust()

    def prune(self, now: float) -> None:
        """Let paths go that have long shown no sign of life, beyond a number of them."""
        dead = [addr for addr, path in self.paths.items() if _is_dead(path, now)]
        surplus = len(dead) - INACTIVE_PATHS_LIMIT
        if surplus <= 0:
            return
        dead.sort(key=self._worth)
        for addr in dead[:surplus]:
            del self.paths[addr]

    def reset(self) -> None:
        """Forget what was proven, since the network is not what it was."""
        if self.best is not None:
            self.best.distrust()
        for path in self.paths.values():
            path.forget_history()

    def forget_pings(self) -> None:
        """Have all paths be due for a ping."""
        for path in self.paths.values():
            path.last_ping = None

    def drop_own(self) -> None:
        """Let the addresses go that turn out to be this node's own."""
        for addr in self._reach.own.intersection(self.paths):
            del self.paths[addr]

    def _may_stay(self, best: BestAddress, now: float) -> bool:
        """Say whether the best address can still be sent to.

        While it is proven only a missing socket speaks against it: that no IPv6 works is a guess
        from a list of interfaces, which may have been made while one was down.
        """
        if self._is_usable(best.addr):
            return True
        is_proven = best.addr in self.paths and best.is_valid(now)
        return is_proven and self._reach.has_socket(best.addr)

    def _is_usable(self, addr: UdpAddress) -> bool:
        return addr in self.paths and self._reach.can_send(addr)

    def _spare(self) -> list[UdpAddress]:
        best = None if self.best is None else self.best.addr
        return [addr for addr in self.paths if addr not in (best, self.chosen)]

    def _worth(self, addr: UdpAddress) -> tuple[bool, bool, float]:
        """Return the order in which paths are kept.

        First to go are those that only pings speak for, or somebody could replace all others by
        sending one ping again and again; then those that were never alive, then by age.
        """
        path = self.paths[addr]
        alive = path.last_alive
        return (
            not path.is_hearsay,
            alive is not None,
            path.added_at if alive is None else alive,
        )

    def _promise(self, addr: UdpAddress) -> tuple[bool, float]:
        """Return the order in which addresses are tried, the best last."""
        path = self.paths[addr]
        return (not path.is_hearsay, path.added_at)

    def _adopt_candidate(self, now: float) -> None:
        """Go back to a path whose proof still holds, the fastest; IPv6 if two are alike."""
        candidates = [
            (path.pong.latency, not addr.is_ipv6, addr, path.pong.at)
            for addr, path in self.paths.items()
            if path.pong is not None and now < path.pong.at + TRUST_TIME
        ]
        usable = [candidate for candidate in candidates if self._reach.can_send(candidate[2])]
        if usable:
            latency, _, addr, proven_at = min(usable)
            self.best = BestAddress(addr, latency, proven_at)

    def _is_choosable(self, addr: UdpAddress) -> bool:
        if not self._is_usable(addr):
            return False
        return not self.paths[addr].is_hearsay or addr in self._choosable()

    def _choosable(self) -> list[UdpAddress]:
        """Return the usable addresses that more than pings speak for, or all if there is none."""
        addresses = self.usable()
        return [addr for addr in addresses if not self.paths[addr].is_hearsay] or addresses

    def _choose(self) -> None:
        addresses = self._choosable()
        if addresses:
            self.chosen = self._rng.choice(addresses)


def _is_dead(path: PathState, now: float) -> bool:
    """Say whether a path may be pruned: not one that was learnt or alive of late."""
    if path.is_active(now):
        return False
    alive = path.last_alive
    return now - (path.added_at if alive is None else max(alive, path.added_at)) > ALIVE_TIME
