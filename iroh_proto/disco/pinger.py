"""Sends disco messages, matches pongs to pings, and gives up on pings.

States of one ping::

    ping ──> waiting ── pong from the node that was pinged ──> PongReceived
                │
                └────── PING_TIMEOUT ────────────────────────> PingTimedOut

What a ping or its loss means for a path, and whether a ping is answered, is for the machine that
owns this one (:mod:`iroh_proto.paths`).

Source: iroh v0.12.0 ``iroh-net/src/magicsock.rs``, v0.35.0 ``iroh/src/magicsock.rs``.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, assert_never

from iroh_proto.address import Address, DerpAddress, DerpUrl, UdpAddress
from iroh_proto.box import BOX_NONCE_SIZE
from iroh_proto.disco.boxes import BoxKeeper
from iroh_proto.disco.message import (
    TRANSACTION_ID_SIZE,
    CallMeMaybe,
    DiscoMessage,
    Ping,
    Pong,
    decode_disco_message,
    open_envelope,
    seal_envelope,
)
from iroh_proto.errors import DecodeError
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.machine import Transmit
from iroh_proto.timers import LatestTime

PING_TIMEOUT = 5.0
"""Seconds after which a ping without pong is given up."""

OUTSTANDING_PINGS_LIMIT = 4096
"""Pings waiting for their pong: 64 addresses of 64 active peers."""

QUEUED_DATAGRAMS_LIMIT = 4096
"""Datagrams waiting to be drained. One input makes a ping for each outstanding one at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PingReceived:
    """A node pinged this one. ``source`` is where the ping came from and a pong should go to."""

    node_id: NodeId
    source: Address
    tx_id: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PongReceived:
    """A node answered a ping that was sent to ``addr``.

    ``source`` is where the pong came from, ``latency`` the round trip in seconds and
    ``observed`` where the node says it saw the ping come from.
    """

    node_id: NodeId
    addr: Address
    source: Address
    latency: float
    observed: UdpAddress | DerpUrl


@dataclass(frozen=True, slots=True, kw_only=True)
class PingTimedOut:
    """A ping to ``addr``, sent at ``sent_at``, was not answered within :data:`PING_TIMEOUT`."""

    node_id: NodeId
    addr: Address
    sent_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CallMeMaybeReceived:
    """A node asks, through a DERP server, to be pinged at ``addresses``."""

    node_id: NodeId
    source: DerpAddress
    addresses: tuple[UdpAddress, ...]


DiscoEvent: TypeAlias = PingReceived | PongReceived | PingTimedOut | CallMeMaybeReceived


@dataclass(slots=True)
class DiscoStats:
    """What a :class:`DiscoPinger` has counted so far, in messages."""

    pings_sent: int = 0
    pongs_sent: int = 0
    calls_sent: int = 0
    unsent: int = 0
    """Not sent: a limit was reached, or no honest node can have the id written to."""
    pings_received: int = 0
    pongs_received: int = 0
    calls_received: int = 0
    bad_envelope: int = 0
    """Dropped: too short, or no node id in it."""
    bad_key: int = 0
    """Dropped: the box did not open, or was not tried because the source failed too often."""
    bad_message: int = 0
    """Dropped: the box opened, but not on a message known here."""
    from_self: int = 0
    """Dropped: this node's own id as sender. An address of its own passes for a peer's."""
    wrong_source: int = 0
    """Dropped: the DERP server names another sender than the envelope."""
    unmatched_pongs: int = 0
    """Dropped: to no ping that waits. Normal when they come late."""
    calls_over_udp: int = 0
    """Dropped: a CallMeMaybe is only valid through a DERP server."""


class DiscoPinger:
    """The disco protocol of one node with all its peers. A datagram machine.

    :param rng: gives transaction ids and nonces; anybody who can guess them can fake pongs, or
        read what is sealed.
    """

    def __init__(self, *, secret_key: SecretKey, rng: random.Random) -> None:
        self._node_id = secret_key.public
        self._rng = rng
        self._boxes = BoxKeeper(secret_key=secret_key)
        self._time = LatestTime()
        # In the order sent, which is the order of expiry: all wait equally long.
        self._pings: dict[bytes, _OutstandingPing] = {}
        self._events: deque[DiscoEvent] = deque()
        self._transmits: list[Transmit] = []
        self._stats = DiscoStats()

    @property
    def stats(self) -> DiscoStats:
        """A copy of the counters."""
        return replace(self._stats)

    def ping(
        self, addr: Address, node_id: NodeId, *, limit: int = OUTSTANDING_PINGS_LIMIT, now: float
    ) -> bool:
        """Ping a node at one of its addresses.

        :param limit: how many pings may wait already.
        :return: whether the ping was sent, so that an event follows.
        """
        now = self._time.advance(now)
        tx_id = self._rng.randbytes(TRANSACTION_ID_SIZE)
        if len(self._pings) >= min(limit, OUTSTANDING_PINGS_LIMIT):
            self._stats.unsent += 1
            return False
        if not self._send(Ping(tx_id, self._node_id), addr, node_id):
            return False
        self._pings[tx_id] = _OutstandingPing(node_id, addr, now)
        self._stats.pings_sent += 1
        return True

    def pong(self, ping: PingReceived, *, now: float) -> None:
        """Answer a ping, the way it came."""
        self._time.advance(now)
        source = ping.source
        observed = source.url if isinstance(source, DerpAddress) else source
        if self._send(Pong(ping.tx_id, observed), source, ping.node_id):
            self._stats.pongs_sent += 1

    def call_me_maybe(
        self, addr: DerpAddress, addresses: Sequence[UdpAddress], *, now: float
    ) -> None:
        """Ask a node to ping this one at its ``addresses``."""
        self._time.advance(now)
        if self._send(CallMeMaybe(addresses), addr, addr.node_id):
            self._stats.calls_sent += 1

    def forget(self, node_id: NodeId, *, now: float) -> None:
        """Let the outstanding pings to a node go; no event comes of them."""
        self._time.advance(now)
        for tx_id in [tx_id for tx_id, ping in self._pings.items() if ping.node_id == node_id]:
            del self._pings[tx_id]

    def clear(self, *, now: float) -> None:
        """Let all outstanding pings go."""
        self._time.advance(now)
        self._pings.clear()

    def receive_datagrams(self, batch: Sequence[bytes], addr: Address, *, now: float) -> None:
        """Take disco datagrams from one address; what is not acceptable is counted and dropped."""
        now = self._time.advance(now)
        self._expire(now)  # a pong at the last moment or later is late
        for data in batch:
            self._receive(data, addr, now)

    def handle_timer(self, *, now: float) -> None:
        """Give up the pings whose time is over."""
        self._expire(self._time.advance(now))

    def get_timer(self) -> float | None:
        """Return the earliest deadline, or ``None``. Changes nothing."""
        for ping in self._pings.values():
            return ping.deadline
        return None

    def next_event(self) -> DiscoEvent | None:
        """Return the oldest event and forget it, or ``None``."""
        return self._events.popleft() if self._events else None

    def datagrams_to_send(self) -> list[Transmit]:
        """Return the datagrams to send, and forget them."""
        transmits, self._transmits = self._transmits, []
        return transmits

    def _send(self, message: DiscoMessage, addr: Address, node_id: NodeId) -> bool:
        if len(self._transmits) >= QUEUED_DATAGRAMS_LIMIT:
            self._stats.unsent += 1
            return False
        try:
            box = self._boxes.box_for(node_id)
        except DecodeError:
            self._stats.unsent += 1
            return False
        nonce = self._rng.randbytes(BOX_NONCE_SIZE)
        data = seal_envelope(message.encode(), sender=self._node_id, box=box, nonce=nonce)
        self._transmits.append(Transmit(addr, [data], len(data)))
        return True

    def _expire(self, now: float) -> None:
        expired = []
        for tx_id, ping in self._pings.items():
            if ping.deadline > now:
                break
            expired.append(tx_id)
        for tx_id in expired:
            ping = self._pings.pop(tx_id)
            self._events.append(
                PingTimedOut(node_id=ping.node_id, addr=ping.addr, sent_at=ping.sent_at)
            )

    def _receive(self, data: bytes, addr: Address, now: float) -> None:
        stats = self._stats
        try:
            sender, sealed = open_envelope(data)
        except DecodeError:
            stats.bad_envelope += 1
            return
        if sender == self._node_id:
            stats.from_self += 1
            return
        if isinstance(addr, DerpAddress) and addr.node_id != sender:
            # The box would open for whoever sealed it, but answers would go to the other one.
            stats.wrong_source += 1
            return
        try:
            inner = self._boxes.open(sealed, sender=sender, source=_limit_key(addr), now=now)
        except DecodeError:
            stats.bad_key += 1
            return
        try:
            message = decode_disco_message(inner)
        except DecodeError:
            stats.bad_message += 1
            return
        self._take(message, sender, addr, now)

    def _take(self, message: DiscoMessage, sender: NodeId, addr: Address, now: float) -> None:
        match message:
            case Ping():
                self._stats.pings_received += 1
                self._events.append(PingReceived(node_id=sender, source=addr, tx_id=message.tx_id))
            case Pong():
                self._take_pong(message, sender, addr, now)
            case CallMeMaybe():
                if not isinstance(addr, DerpAddress):
                    self._stats.calls_over_udp += 1
                    return
                self._stats.calls_received += 1
                self._events.append(
                    CallMeMaybeReceived(node_id=sender, source=addr, addresses=message.addresses)
                )
            case _:
                assert_never(message)

    def _take_pong(self, pong: Pong, sender: NodeId, addr: Address, now: float) -> None:
        ping = self._pings.get(pong.tx_id)
        if ping is None or ping.node_id != sender:
            self._stats.unmatched_pongs += 1
            return
        del self._pings[pong.tx_id]
        self._stats.pongs_received += 1
        self._events.append(
            PongReceived(
                node_id=sender,
                addr=ping.addr,
                source=addr,
                latency=now - ping.sent_at,
                observed=pong.observed,
            )
        )


class _OutstandingPing:
    """A ping that waits for its pong."""

    __slots__ = ("addr", "deadline", "node_id", "sent_at")

    def __init__(self, node_id: NodeId, addr: Address, now: float) -> None:
        self.node_id = node_id
        self.addr = addr
        self.sent_at = now
        self.deadline = now + PING_TIMEOUT


def _limit_key(addr: Address) -> Hashable:
    """Return what stands for the sender of failing datagrams: a host, or a node at a server."""
    return addr.node_id if isinstance(addr, DerpAddress) else addr.ip
