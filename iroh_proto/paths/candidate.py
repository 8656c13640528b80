"""What is known of one path to a peer, and which addresses may be one.

Source: iroh v0.35.0 ``iroh/src/magicsock/node_map/path_state.rs``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

from iroh_proto.address import UdpAddress

PING_INTERVAL = 5.0
"""Seconds after which a path may be pinged again to find out whether it works."""

ACTIVE_TIME = 45.0
"""Seconds from the last use for which a peer or a path counts as active."""

ALIVE_TIME = 120.0
"""Seconds from the last sign of life in which a path is not pruned, active or not."""

INACTIVE_PATHS_LIMIT = 20
"""Paths of a peer that are kept though they have been without a sign of life for long."""

PATHS_LIMIT = 128
"""UDP addresses of one peer: two full CallMeMaybes, which is what a peer can list at once."""


class PongRecord:
    """The last pong of a path: the round trip and when it ended, in seconds."""

    __slots__ = ("at", "latency")

    def __init__(self, latency: float, at: float) -> None:
        self.latency = latency
        self.at = at


class PathState:
    """One UDP address of a peer, or its DERP server. Times are in seconds, ``None`` is never."""

    __slots__ = (
        "added_at",
        "call_me_maybe_at",
        "is_named",
        "last_got_ping",
        "last_got_tx_id",
        "last_payload",
        "last_ping",
        "pong",
    )

    def __init__(self, now: float) -> None:
        self.added_at = now
        self.is_named = False
        """Whether the application, or discovery, said that the peer is here."""
        self.last_ping: float | None = None
        """When a ping was sent that may still be answered, or was."""
        self.last_got_ping: float | None = None
        self.last_got_tx_id: bytes | None = None
        self.call_me_maybe_at: float | None = None
        """When the peer last named this address as one of its own."""
        self.pong: PongRecord | None = None
        self.last_payload: float | None = None
        """When an authenticated QUIC packet last came from here."""

    def needs_ping(self, now: float) -> bool:
        """Say whether it is time to ping this path."""
        return self.last_ping is None or now - self.last_ping > PING_INTERVAL

    def is_active(self, now: float) -> bool:
        """Say whether payload came from here of late."""
        return self.last_payload is not None and now - self.last_payload <= ACTIVE_TIME

    @property
    def last_alive(self) -> float | None:
        """The last sign that the peer can be reached here, or says it can."""
        pong_at = None if self.pong is None else self.pong.at
        signs = (pong_at, self.last_payload, self.call_me_maybe_at, self.last_got_ping)
        return max((sign for sign in signs if sign is not None), default=None)

    @property
    def is_hearsay(self) -> bool:
        """Whether nothing but pings speaks for this path, which anybody can send again."""
        signs = (self.pong, self.last_payload, self.call_me_maybe_at)
        return not self.is_named and all(sign is None for sign in signs)

    @property
    def latency(self) -> float | None:
        """The round trip of the last pong, if there was one."""
        return None if self.pong is None else self.pong.latency

    def note_ping(self, tx_id: bytes, now: float) -> bool:
        """Take a ping from the peer, and say whether it is another one than the last."""
        is_new = tx_id != self.last_got_tx_id
        self.last_got_ping = now
        self.last_got_tx_id = tx_id
        return is_new

    def forget_history(self) -> None:
        """Forget what the path did, since the network is not what it was."""
        self.last_ping = self.last_got_ping = self.last_got_tx_id = None
        self.call_me_maybe_at = self.pong = None


class Reachability:
    """What this node can send to, and which addresses are its own.

    ``ipv6_works`` says whether there is more than a socket for IPv6: an address that others can
    answer to.
    """

    __slots__ = ("ipv4_socket", "ipv6_socket", "ipv6_works", "own")

    def __init__(
        self,
        *,
        ipv4_socket: bool = False,
        ipv6_socket: bool = False,
        ipv6_works: bool = False,
        own: Iterable[UdpAddress] = (),
    ) -> None:
        self.ipv4_socket = ipv4_socket
        self.ipv6_socket = ipv6_socket
        self.ipv6_works = ipv6_works
        self.own = frozenset(own)

    def has_socket(self, addr: UdpAddress) -> bool:
        """Say whether there is a socket for the address."""
        return self.ipv6_socket if addr.is_ipv6 else self.ipv4_socket

    def can_send(self, addr: UdpAddress) -> bool:
        """Say whether there is a socket for the address, whose family works."""
        works = not addr.is_ipv6 or self.ipv6_works or _is_loopback(addr.ip)
        return works and self.has_socket(addr)


def is_candidate(addr: UdpAddress) -> bool:
    """Say whether a peer may be at this address.

    Not the unspecified address, multicast, broadcast or port 0, which nobody is at, and not
    IPv6 link-local, which means nothing without its interface.
    """
    return addr.port != 0 and _is_candidate_ip(addr.ip)


@lru_cache(maxsize=4096)
def _is_candidate_ip(text: str) -> bool:
    ip = ipaddress.ip_address(text)
    if ip.is_unspecified or ip.is_multicast or text == "255.255.255.255":
        return False
    return not (ip.version == 6 and ip.is_link_local)


@lru_cache(maxsize=4096)
def _is_loopback(text: str) -> bool:
    return ipaddress.ip_address(text).is_loopback
