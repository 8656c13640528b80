"""The limit that a server of v2, or Tailscale's, may put on a client's packets.

Source: iroh v0.12.0 ``iroh-net/src/derp/client.rs`` (``RateLimiter``); Tailscale
``derp/derp_client.go`` (``setSendRateLimiter``).
"""

from __future__ import annotations

from iroh_proto.derp.frames import SendRate


class TokenBucket:
    """Says which packets fit a :class:`~iroh_proto.derp.frames.SendRate`. It begins full."""

    __slots__ = ("_rate", "_tokens", "_updated_at")

    def __init__(self, rate: SendRate, *, now: float) -> None:
        self._rate = rate
        self._tokens = float(rate.burst_bytes)
        self._updated_at = now

    def take_packet(self, payload_size: int, *, now: float) -> bool:
        """Say whether a packet with so many bytes of packed datagrams may be sent, and count it."""
        return self.take(self._rate.overhead + payload_size, now=now)

    def take(self, size: int, *, now: float) -> bool:
        """Say whether a packet of ``size`` bytes may be sent now, and count it if so."""
        refill = (now - self._updated_at) * self._rate.bytes_per_second
        self._tokens = min(self._rate.burst_bytes, self._tokens + refill)
        self._updated_at = now
        if size > self._tokens:
            return False
        self._tokens -= size
        return True
