"""Which UDP address of a peer is the best, and for how long that holds.

Source: iroh v0.35.0 ``iroh/src/magicsock/node_map/best_addr.rs``. The comparison and the running
latency are those of v1.0.3 ``iroh/src/socket/biased_rtt_path_selector.rs``: up to 0.95 the first
latency measured is kept for good and any gain moves the peer, so that two like paths alternate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from iroh_proto.address import DerpUrl, UdpAddress

TRUST_TIME = 6.5
"""Seconds for which a proof of a path holds: one heartbeat and some."""

PAYLOAD_TRUST_LIMIT = 16.5
"""Seconds after the last pong up to which payload keeps a proof alive.

Payload that arrives says nothing of what is sent. After three heartbeats without any pong it
must be that only the way here works.
"""

GOOD_ENOUGH_LATENCY = 0.005
"""Seconds of round trip at or below which no better path is looked for."""

SWITCH_GAIN = 0.005
"""Seconds by which another path has to be faster to be preferred."""

IPV6_BONUS = 0.003
"""Seconds by which an IPv6 path may be slower and still count as equal: no NAT in between."""

# The weight of a new round trip in the running latency (RFC 6298, section 2).
_LATENCY_GAIN = 1 / 8

PathKind: TypeAlias = Literal["direct", "mixed", "derp", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PathInfo:
    """Where payload for a peer goes now.

    * ``direct``: to the UDP address ``addr``. It is proven, unless no DERP server is known.
    * ``mixed``: to UDP addresses, of which ``addr`` is one, and through ``derp_url`` too, since
      none is proven or the proof is old.
    * ``derp``: through ``derp_url``; ``addr`` is the same.
    * ``none``: nowhere; no way is known, or none that this node can use.

    ``latency`` is the round trip in seconds where one was measured; for ``mixed`` the smaller.
    """

    kind: PathKind
    addr: UdpAddress | DerpUrl | None
    derp_url: DerpUrl | None
    latency: float | None

    def is_same_way(self, other: PathInfo) -> bool:
        """Say whether payload goes the same way, whatever the latency."""
        return (self.kind, self.addr, self.derp_url) == (other.kind, other.addr, other.derp_url)


class BestAddress:
    """The UDP address that payload for a peer goes to, while its proof holds and after.

    *Valid* until ``trust_until``, *outdated* from then on. Times are in seconds. ``latency`` is
    ``None`` when the proof was not a pong.
    """

    __slots__ = ("_ponged_at", "addr", "confirmed_at", "latency", "trust_until")

    def __init__(self, addr: UdpAddress, latency: float | None, proven_at: float) -> None:
        self.addr = addr
        self.latency = latency
        self.confirmed_at = proven_at
        self.trust_until = proven_at + TRUST_TIME
        self._ponged_at = None if latency is None else proven_at

    def is_valid(self, now: float) -> bool:
        """Say whether the proof still holds."""
        return now < self.trust_until

    def confirm(self, at: float, latency: float | None = None) -> None:
        """Prove the address again, with the round trip if one was measured."""
        if at < self.confirmed_at:
            return
        self.confirmed_at = at
        self.trust_until = at + TRUST_TIME
        if latency is None:
            return
        self._ponged_at = at
        if self.latency is None:
            self.latency = latency
        else:
            self.latency += (latency - self.latency) * _LATENCY_GAIN

    def extend(self, now: float) -> None:
        """Keep the proof alive since payload came, within :data:`PAYLOAD_TRUST_LIMIT`."""
        limit = (now if self._ponged_at is None else self._ponged_at) + PAYLOAD_TRUST_LIMIT
        self.trust_until = max(self.trust_until, min(now + TRUST_TIME, limit))

    def distrust(self) -> None:
        """Take the proof back: the address stays, outdated."""
        self.trust_until = -math.inf


def is_better(
    addr: UdpAddress, latency: float, current: UdpAddress, current_latency: float | None
) -> bool:
    """Say whether a proven address should replace the current one, which is valid too."""
    if addr == current or current_latency is None:
        return addr != current
    return _cost(addr, latency) + SWITCH_GAIN <= _cost(current, current_latency)


def _cost(addr: UdpAddress, latency: float) -> float:
    return latency - IPV6_BONUS if addr.is_ipv6 else latency
