"""Path challenges that wait for their answer (RFC 9000, section 8.2).

They travel inside QUIC, so it is the host's connections that send them; which address is asked,
and for how long an answer counts, is decided here. States of one challenge::

    request ──> waiting ── answer ──> proven
                   └────── PING_TIMEOUT ──> given up
"""

from __future__ import annotations

from dataclasses import dataclass

from iroh_proto.address import UdpAddress
from iroh_proto.disco.pinger import PING_TIMEOUT
from iroh_proto.errors import LocalProtocolError
from iroh_proto.key import NodeId

CHALLENGES_LIMIT = 4096
"""Challenges waiting for their answer: as many as there may be pings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChallengeRequested:
    """A PATH_CHALLENGE is to go to ``addr`` and nowhere else, on a connection with the peer.

    When the answer has come, whichever way, it is told by ``complete_challenge(request_id,
    now=now)``. ``full_size`` says whether it should be as large as datagrams get: not to where
    nobody said that the peer is (RFC 9000, section 8.1).
    """

    request_id: int
    node_id: NodeId
    addr: UdpAddress
    full_size: bool


class Challenge:
    """A challenge that waits. Times are in seconds."""

    __slots__ = ("addr", "deadline", "node_id", "sent_at")

    def __init__(self, node_id: NodeId, addr: UdpAddress, now: float) -> None:
        self.node_id = node_id
        self.addr = addr
        self.sent_at = now
        self.deadline = now + PING_TIMEOUT


class Challenges:
    """The challenges of all peers."""

    def __init__(self) -> None:
        # In the order sent, which is the order of expiry: all wait equally long.
        self._waiting: dict[int, Challenge] = {}
        self._last_id = 0

    @property
    def deadline(self) -> float | None:
        """When the first of them is to be given up, or ``None``."""
        for challenge in self._waiting.values():
            return challenge.deadline
        return None

    def request(
        self, node_id: NodeId, addr: UdpAddress, *, full_size: bool, now: float
    ) -> ChallengeRequested | None:
        """Return what to ask the host for, ``None`` if too many wait."""
        if len(self._waiting) >= CHALLENGES_LIMIT:
            return None
        self._last_id += 1
        self._waiting[self._last_id] = Challenge(node_id, addr, now)
        return ChallengeRequested(
            request_id=self._last_id, node_id=node_id, addr=addr, full_size=full_size
        )

    def check(self, request_id: int) -> None:
        """Check that a challenge was ever requested.

        :raises LocalProtocolError: if it was not.
        """
        if not 0 < request_id <= self._last_id:
            raise LocalProtocolError(f"there was no request {request_id}")

    def answer(self, request_id: int, now: float) -> Challenge | None:
        """Return the challenge that was answered, ``None`` if it does not wait any more."""
        challenge = self._waiting.pop(request_id, None)
        return None if challenge is None or challenge.deadline <= now else challenge

    def expire(self, now: float) -> list[Challenge]:
        """Return the challenges whose time is over, and forget them."""
        expired = []
        for request_id, challenge in list(self._waiting.items()):
            if challenge.deadline > now:
                break
            expired.append(self._waiting.pop(request_id))
        return expired

    def forget(self, node_id: NodeId) -> None:
        """Let the challenges to a peer go."""
        for request_id in [i for i, one in self._waiting.items() if one.node_id == node_id]:
            del self._waiting[request_id]

    def clear(self) -> None:
        """Let all go."""
        self._waiting.clear()
