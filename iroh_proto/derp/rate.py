"""Limits on how much comes in: token buckets, for both sides of a DERP connection.

A client keeps to the rate that a server of v2 or Tailscale's asks for by dropping packets. A server
has other means: what a client sends over its :class:`RateLimit` is left unread for a while, which
loses nothing, and connections over the :class:`AcceptLimit` are closed at once.

Source: iroh v0.12.0 ``iroh-net/src/derp/client.rs`` (``RateLimiter``), Tailscale
``derp/derp_client.go`` (``setSendRateLimiter``), v1.0.3
``iroh-relay/src/server/streams.rs`` (``RateLimited``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from iroh_proto.errors import LocalProtocolError

REFILL_TIME = 0.1
"""Seconds that a client over its limit is left unread at least (upstream's interval of refills),
and the part of a second's bytes that is the burst unless told otherwise. Shorter pauses would be
more work than the reading."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """How fast one client may send, counting all bytes behind TLS once it was let in.

    :ivar bytes_per_second: what it may send in the long run.
    :ivar burst_bytes: what it may send at once after it was silent; ``None`` is a tenth of a
        second's.
    :raises LocalProtocolError: if a number is not positive.
    """

    bytes_per_second: int
    burst_bytes: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.bytes_per_second <= 0 or (self.burst_bytes is not None and self.burst_bytes <= 0):
            raise LocalProtocolError("a rate limit is a positive number of bytes")


@dataclass(frozen=True, slots=True)
class AcceptLimit:
    """How many connections a server takes.

    :ivar per_second: in the long run.
    :ivar burst: at once, after a while with none.
    :raises LocalProtocolError: if the rate is not positive, or the burst is less than one.
    """

    per_second: float
    burst: int

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 < self.per_second < math.inf or self.burst < 1:
            raise LocalProtocolError(
                "an accept limit has a positive rate and a burst of at least one"
            )


class TokenBucket:
    """Fills at a steady rate up to a limit. It begins full.

    :param per_second: how much flows in.
    :param limit: the most that it holds.
    """

    __slots__ = ("_limit", "_per_second", "_tokens", "_updated_at")

    def __init__(self, *, per_second: float, limit: float, now: float) -> None:
        self._per_second = per_second
        self._limit = limit
        self._tokens = float(limit)
        self._updated_at = now

    @property
    def tokens(self) -> float:
        """How much there was at the last input; negative after more was spent than there was."""
        return self._tokens

    def take(self, amount: float, *, now: float) -> bool:
        """Take an amount if all of it is there; say whether it was."""
        self._refill(now)
        if amount > self._tokens:
            return False
        self._tokens -= amount
        return True

    def spend(self, amount: float, *, now: float) -> bool:
        """Take an amount that may be more than there is; say whether any is left."""
        self._refill(now)
        self._tokens -= amount
        return self._tokens > 0

    def filled_at(self, amount: float) -> float:
        """Return when an amount, or all that the bucket holds, is there if nobody takes any."""
        missing = min(amount, self._limit) - self._tokens
        return self._updated_at + max(0.0, missing) / self._per_second

    def _refill(self, now: float) -> None:
        inflow = (now - self._updated_at) * self._per_second
        self._tokens = min(self._limit, self._tokens + inflow)
        self._updated_at = now


class ReadThrottle:
    """Says when to leave a client unread.

    A read always succeeds, however long: what it takes too much is waited for afterwards. The
    pause begins with the deadline that follows, so that it is all the same how reads were cut.

    :ivar deadline: when to call :meth:`handle_timer`, in seconds; infinite for never.
    :ivar is_paused: whether the client is to be left unread.
    """

    __slots__ = ("_bucket", "_refill", "deadline", "is_paused")

    def __init__(self, limit: RateLimit, *, now: float) -> None:
        rate = limit.bytes_per_second
        burst = limit.burst_bytes or rate * REFILL_TIME
        self._bucket = TokenBucket(per_second=rate, limit=burst, now=now)
        self._refill = min(burst, rate * REFILL_TIME)
        self.is_paused = False
        self.deadline = math.inf

    @property
    def overdraft(self) -> int:
        """How many bytes were read that the client had no allowance for yet."""
        return math.ceil(max(0.0, -self._bucket.tokens))

    def note_read(self, size: int, now: float) -> None:
        """Take that bytes were read."""
        has_some_left = self._bucket.spend(size, now=now)
        if self.is_paused:
            self.deadline = self._bucket.filled_at(self._refill)
        elif not has_some_left:
            self.deadline = min(self.deadline, now)

    def handle_timer(self, now: float) -> None:
        """Begin a pause or end it, if it is time to."""
        if self.deadline > now:
            return
        ends_at = self._bucket.filled_at(self._refill)
        self.is_paused = not self.is_paused and ends_at > now
        self.deadline = ends_at if self.is_paused else math.inf
