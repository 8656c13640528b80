"""Finds the ways to all peers: the machine of pings, proofs and their expiry.

It owns the disco machine and the state of each peer. Payload does not pass through it; it is
asked where payload goes (:meth:`PathFinder.route`) and told what came (:meth:`PathFinder.confirm`).

What each input leads to, by the rules of iroh 0.35:

* payload to send: while the way is unproven, at most every 5 s: pings, then a CallMeMaybe;
* a ping: a pong the same way; and a ping back, if it came by UDP and no address is proven, or
  through another DERP server than the peer's;
* a pong: the pinged address is proven for 6.5 s;
* a CallMeMaybe: pings to all addresses of the peer;
* the heartbeat, every 5 s, for each peer in use: pings and a CallMeMaybe while the way is
  unproven, otherwise a ping to the best address;
* a ping unanswered for 5 s: its address is given up, unless there was life since.

Source: iroh v0.35.0 ``iroh/src/magicsock.rs`` and ``iroh/src/magicsock/node_map.rs``.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias, assert_never

from iroh_proto.address import Address, DerpAddress, DerpUrl, UdpAddress
from iroh_proto.disco.pinger import (
    OUTSTANDING_PINGS_LIMIT,
    CallMeMaybeReceived,
    DiscoPinger,
    DiscoStats,
    PingReceived,
    PingTimedOut,
    PongReceived,
)
from iroh_proto.errors import LocalProtocolError
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.machine import Transmit
from iroh_proto.paths.candidate import Reachability
from iroh_proto.paths.challenges import ChallengeRequested, Challenges
from iroh_proto.paths.heartbeat import Heartbeat
from iroh_proto.paths.node_map import NODES_LIMIT, NodeMap
from iroh_proto.paths.select import PathInfo
from iroh_proto.paths.state import NodeState, RemoteInfo, Route, Search
from iroh_proto.timers import LatestTime, TimerTable, earliest

HEARTBEAT_INTERVAL = 5.0
"""Seconds between two looks at all peers; a proof lasts a little longer."""

STRANGERS_PINGS_LIMIT = OUTSTANDING_PINGS_LIMIT // 4
"""Pings that may wait already when a node is to be pinged that nobody named and that has proven
nothing. It may have told of any number of addresses, and must not take the pings of others."""

ADDRESSES_FRESH_TIME = 27.0
"""Seconds since they were found out for which this node's own addresses may be told to peers.

A little more than the longest interval at which they are found out.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PathChanged:
    """Payload for a peer goes another way from now on."""

    node_id: NodeId
    path: PathInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnAddressesWanted:
    """A peer waits to be told this node's addresses, and those known are old.

    :meth:`PathFinder.set_own_addresses` is owed, though nothing may have changed.
    """


FinderEvent: TypeAlias = (
    PathChanged
    | OwnAddressesWanted
    | PingReceived
    | PongReceived
    | CallMeMaybeReceived
    | ChallengeRequested
)

_NOWHERE: Route = ((), None)


@dataclass(slots=True)
class FinderStats:
    """What a :class:`PathFinder` has counted so far."""

    nodes: int = 0
    """Peers known now."""
    strangers_refused: int = 0
    """Peers that came by themselves and found no room."""
    nodes_forgotten: int = 0
    """Peers that had to make room, or were not used for long."""
    pongs_ignored: int = 0
    """Pongs that prove nothing: their way here is not one the peer is known to have."""
    calls_ignored: int = 0
    """CallMeMaybes from a peer that is not known, or sends too many."""
    challenges_sent: int = 0
    challenges_answered: int = 0
    disco: DiscoStats = field(default_factory=DiscoStats)


class PathFinder:
    """The ways to all peers. A datagram machine for disco datagrams, from UDP and from DERP.

    Transmits may carry a :class:`~iroh_proto.address.DerpAddress`. :meth:`set_reachability` and
    :meth:`set_own_addresses` tell it about this node; until then it sends nothing by UDP and no
    CallMeMaybe.

    :param rng: for transaction ids, nonces, and the choice among unproven addresses.
    """

    def __init__(self, *, secret_key: SecretKey, rng: random.Random) -> None:
        self._node_id = secret_key.public
        self._pinger = DiscoPinger(secret_key=secret_key, rng=rng)
        self._reach = Reachability()
        self._nodes = NodeMap(reach=self._reach, rng=rng)
        self._time = LatestTime()
        self._heartbeat = Heartbeat(HEARTBEAT_INTERVAL)
        self._changes: TimerTable[NodeId] = TimerTable()
        self._own: tuple[UdpAddress, ...] = ()
        self._own_found_at: float | None = None
        # Peers that wait for a CallMeMaybe until this node's addresses are fresh: at most all.
        self._waiting: dict[NodeId, None] = {}
        self._challenges = Challenges()
        self._events: deque[FinderEvent] = deque()
        self._stats = FinderStats()

    @property
    def stats(self) -> FinderStats:
        """A copy of the counters."""
        return replace(self._stats, nodes=len(self._nodes), disco=self._pinger.stats)

    def start(self, *, now: float) -> None:
        """Begin the heartbeat, which rests while no peer is in use."""
        now = self._time.advance(now)
        self._heartbeat.start(now)
        if len(self._nodes) > 0:
            self._heartbeat.go_on(now)

    def set_reachability(
        self, *, ipv4_socket: bool, ipv6_socket: bool, ipv6_works: bool, now: float
    ) -> None:
        """Take the families of this node's sockets, and whether IPv6 leads anywhere."""
        now = self._time.advance(now)
        reach = self._reach
        reach.ipv4_socket, reach.ipv6_socket = ipv4_socket, ipv6_socket
        reach.ipv6_works = ipv6_works
        for node in self._nodes:
            self._update(node, now)

    def set_own_addresses(
        self, told: Sequence[UdpAddress], *, hidden: Iterable[UdpAddress] = (), now: float
    ) -> None:
        """Take this node's addresses, found out anew: each time, also when none changed.

        :param told: those that peers are told.
        :param hidden: those that are this node's too, but no use to peers.
        """
        now = self._time.advance(now)
        has_new = not set(told).issubset(self._own)
        self._own, self._own_found_at = tuple(told), now
        self._reach.own = frozenset((*told, *hidden))
        for node in self._nodes:
            node.udp.drop_own()
            self._update(node, now)
        waiting, self._waiting = self._waiting, {}
        for node_id in waiting:
            waiter = self._nodes.get(node_id)
            if waiter is not None and waiter.derp_url is not None:
                self._call(waiter, waiter.derp_url, now)
        if has_new:
            for node in self._nodes:
                if node.node_id not in waiting and node.is_active(now) and node.wants_search(now):
                    self._search(node, node.search(now), now)

    def add_node_addr(
        self,
        node_id: NodeId,
        addresses: Iterable[UdpAddress],
        *,
        derp_url: DerpUrl | None,
        now: float,
    ) -> None:
        """Learn from the application where a peer may be. Nothing is sent until payload is.

        :raises LocalProtocolError: if it is this node itself, or there are too many peers in use.
        """
        if node_id == self._node_id:
            raise LocalProtocolError("a node is no peer of itself")
        latest = max(now, self._time.value)
        if self._nodes.get(node_id) is None and not self._nodes.has_room(latest):
            raise LocalProtocolError(f"{NODES_LIMIT} nodes are in use")
        now = self._time.advance(now)
        node = self._add(node_id, now)
        if node is None:  # pragma: no cover
            return
        node.is_known = True
        self._nodes.promote(node)
        node.add_addresses(addresses, derp_url=derp_url, now=now)
        self._update(node, now)

    def route(self, node_id: NodeId, *, now: float) -> Route:
        """Return where payload for a peer goes, and search for a better way if it is time.

        The pings of a search are to be sent first.
        """
        now = self._time.advance(now)
        node = self._nodes.get(node_id)
        if node is None:
            return _NOWHERE
        self._heartbeat.go_on(now)
        search = node.note_send(now)
        if search is not None:
            self._search(node, search, now)
        return node.route(now)

    def node_at(self, addr: UdpAddress, *, now: float) -> NodeId | None:
        """Return the peer that proved to be at a UDP address, and has payload sent there."""
        node = self._nodes.at(addr)
        if node is None or not node.udp.is_proven(now):
            return None
        return node.node_id

    def note_derp_payload(self, source: DerpAddress, *, now: float) -> bool:
        """Take the news that a DERP server delivered payload, and say whether there is room."""
        now = self._time.advance(now)
        self._heartbeat.go_on(now)
        node = self._nodes.get(source.node_id)
        if node is not None and node.derp_url is not None:
            node.last_used = now
            return True
        node = self._add(source.node_id, now)
        if node is None:
            return False
        node.note_derp_payload(source.url, now)
        self._update(node, now)
        return True

    def adopt(
        self,
        source: Address,
        node_id: NodeId,
        scheme: Literal["disco", "quic"],
        *,
        callers: Iterable[UdpAddress] = (),
        now: float,
    ) -> None:
        """Take the news that a handshake proved a peer's identity; it came from ``source``.

        :param callers: where it came from as well, the packets of one or the other being copies.
        """
        now = self._time.advance(now)
        node = self._add(node_id, now)
        if node is None:
            return
        self._nodes.promote(node)
        node.adopt(source, scheme, now, callers=callers)
        for addr in (source, *callers):
            self._challenge_source(node, addr, now)
        self._update(node, now)

    def confirm(self, node_id: NodeId, source: Address, *, now: float) -> None:
        """Take the news that an authenticated QUIC packet of a peer came from ``source``."""
        now = self._time.advance(now)
        node = self._nodes.get(node_id)
        if node is None:
            return
        self._heartbeat.go_on(now)
        best = node.udp.best
        steady = best is not None and best.addr == source and best.is_valid(now)
        node.confirm(source, now)
        if not steady:
            self._challenge_source(node, source, now)
            self._update(node, now)

    def distrust(self, node_id: NodeId, addr: UdpAddress, *, now: float) -> None:
        """Take the news that another node answered at an address of a peer."""
        now = self._time.advance(now)
        node = self._nodes.get(node_id)
        if node is not None:
            node.udp.distrust(addr)
            self._update(node, now)

    def complete_challenge(self, request_id: int, *, now: float) -> None:
        """Say that a :class:`ChallengeRequested` was answered. One that expired is left alone.

        :raises LocalProtocolError: if there was no such request.
        """
        self._challenges.check(request_id)
        now = self._time.advance(now)
        challenge = self._challenges.answer(request_id, now)
        node = None if challenge is None else self._nodes.get(challenge.node_id)
        if challenge is None or node is None:
            return
        if node.take_answer(challenge.addr, now - challenge.sent_at, now):
            self._stats.challenges_answered += 1
            self._update(node, now)

    def path_info(self, node_id: NodeId) -> PathInfo:
        """Return where payload for a peer goes."""
        node = self._nodes.get(node_id)
        if node is None:
            return PathInfo(kind="none", addr=None, derp_url=None, latency=None)
        return node.info(self._time.value)

    def has_ponged(self, node_id: NodeId, addr: UdpAddress) -> bool:
        """Say whether a peer answered a ping at an address of late."""
        node = self._nodes.get(node_id)
        return node is not None and node.has_ponged(addr, self._time.value)

    def remote_infos(self) -> list[RemoteInfo]:
        """Return what is known of all peers."""
        return [node.remote_info(self._time.value) for node in self._nodes]

    def forget(self, node_id: NodeId, *, now: float) -> None:
        """Forget a peer and all about it."""
        now = self._time.advance(now)
        self._nodes.remove(node_id)
        self._drop(node_id, now)

    def network_changed(self, *, now: float) -> None:
        """Take back all proofs: this node's network is another one, or it slept."""
        now = self._time.advance(now)
        self._own_found_at = None
        for node in self._nodes:
            node.reset()
            self._update(node, now)

    def close(self, *, now: float) -> None:
        """Send no more, and let all deadlines go."""
        now = self._time.advance(now)
        self._pinger.clear(now=now)
        self._challenges.clear()
        self._changes.clear()
        self._waiting.clear()
        self._heartbeat.stop()

    def receive_datagrams(self, batch: Sequence[bytes], addr: Address, *, now: float) -> None:
        """Take disco datagrams; what is not acceptable is counted and dropped."""
        now = self._time.advance(now)
        for data in batch:
            self._pinger.receive_datagrams((data,), addr, now=now)
            self._take_disco(now)

    def handle_timer(self, *, now: float) -> None:
        """Give up pings, let proofs end, and send what the heartbeat does."""
        now = self._time.advance(now)
        self._pinger.handle_timer(now=now)
        self._take_disco(now)
        self._expire_challenges(now)
        for node_id in self._changes.pop_expired(now):
            node = self._nodes.get(node_id)
            assert node is not None, "a forgotten peer has no deadline"
            self._update(node, now)
        if self._heartbeat.expire(now):
            self._beat(now)

    def get_timer(self) -> float | None:
        """Return the earliest deadline, or ``None``. Changes nothing."""
        return earliest(
            self._pinger.get_timer(),
            self._challenges.deadline,
            self._changes.earliest(),
            self._heartbeat.deadline,
        )

    def next_event(self) -> FinderEvent | None:
        """Return the oldest event and forget it, or ``None``."""
        return self._events.popleft() if self._events else None

    def datagrams_to_send(self) -> list[Transmit]:
        """Return the datagrams to send, and forget them."""
        return self._pinger.datagrams_to_send()

    def _beat(self, now: float) -> None:
        for node_id in self._nodes.prune(now):
            self._drop(node_id, now)
            self._stats.nodes_forgotten += 1
        for node in self._nodes:
            search = node.beat(now)
            if search is not None:
                self._search(node, search, now)
        if not any(node.is_active(now) for node in self._nodes):
            self._heartbeat.rest()

    def _search(self, node: NodeState, search: Search, now: float) -> None:
        """Send what a search is made of, pings first so that this node's NAT is open by then."""
        for addr in search.pings:
            self._ping(node, addr, now)
        if search.call_me_maybe is not None:
            self._call(node, search.call_me_maybe, now)

    def _ping(self, node: NodeState, addr: Address, now: float) -> None:
        if node.scheme == "quic":
            if isinstance(addr, UdpAddress):
                self._challenge(node, addr, now)
            return
        is_stranger = not (node.is_known or node.is_proven)
        limit = STRANGERS_PINGS_LIMIT if is_stranger else OUTSTANDING_PINGS_LIMIT
        if self._pinger.ping(addr, node.node_id, limit=limit, now=now):
            node.note_ping_sent(addr, now)

    def _challenge(self, node: NodeState, addr: UdpAddress, now: float) -> None:
        path = node.udp.paths.get(addr)
        if path is None:
            return
        full_size = path.is_named or path.pong is not None
        request = self._challenges.request(node.node_id, addr, full_size=full_size, now=now)
        if request is not None:
            node.note_ping_sent(addr, now)
            self._stats.challenges_sent += 1
            self._events.append(request)

    def _challenge_source(self, node: NodeState, source: Address, now: float) -> None:
        if isinstance(source, UdpAddress) and node.wants_challenge(source, now):
            self._challenge(node, source, now)

    def _expire_challenges(self, now: float) -> None:
        for challenge in self._challenges.expire(now):
            node = self._nodes.get(challenge.node_id)
            assert node is not None, "the challenges of a forgotten peer are forgotten, too"
            node.take_ping_timeout(challenge.addr, challenge.sent_at)
            self._update(node, now)

    def _call(self, node: NodeState, url: DerpUrl, now: float) -> None:
        found_at = self._own_found_at
        if found_at is not None and now - found_at <= ADDRESSES_FRESH_TIME:
            addr = DerpAddress(url, node.node_id)
            self._pinger.call_me_maybe(addr, self._own, now=now)
            return
        if not self._waiting:
            self._events.append(OwnAddressesWanted())
        self._waiting[node.node_id] = None

    def _take_disco(self, now: float) -> None:
        while (event := self._pinger.next_event()) is not None:
            match event:
                case PingReceived():
                    self._take_ping(event, now)
                case PongReceived():
                    self._take_pong(event, now)
                case PingTimedOut():
                    node = self._nodes.get(event.node_id)
                    if node is not None:
                        node.take_ping_timeout(event.addr, event.sent_at)
                        self._update(node, now)
                case CallMeMaybeReceived():
                    self._take_call_me_maybe(event, now)
                case _:
                    assert_never(event)

    def _take_ping(self, ping: PingReceived, now: float) -> None:
        known = self._nodes.get(ping.node_id)
        node = known or self._add(ping.node_id, now)
        self._events.append(ping)
        if node is None:
            self._pinger.pong(ping, now=now)
            return
        if known is None and isinstance(ping.source, DerpAddress):
            # By UDP anybody's address may be in it, which is not to be pinged again and again.
            node.last_used = now
        answer, ping_back = node.take_ping(ping.source, ping.tx_id, now)
        if answer:
            self._pinger.pong(ping, now=now)
        if ping_back:
            self._ping(node, ping.source, now)
        self._update(node, now)

    def _take_pong(self, pong: PongReceived, now: float) -> None:
        node = self._nodes.get(pong.node_id)
        if node is None or not node.take_pong(pong.addr, pong.source, pong.latency, now):
            self._stats.pongs_ignored += 1
            return
        node.note_disco(now)
        self._events.append(pong)
        self._update(node, now)

    def _take_call_me_maybe(self, call: CallMeMaybeReceived, now: float) -> None:
        node = self._nodes.get(call.node_id)
        search = None if node is None else node.take_call_me_maybe(call.addresses, now)
        if node is None or search is None:
            self._stats.calls_ignored += 1
            return
        self._events.append(call)
        self._update(node, now)
        self._search(node, search, now)

    def _add(self, node_id: NodeId, now: float) -> NodeState | None:
        self._heartbeat.go_on(now)
        node, forgotten = self._nodes.add(node_id, now=now)
        for other in forgotten:
            self._drop(other, now)
        self._stats.nodes_forgotten += len(forgotten)
        if node is None:
            self._stats.strangers_refused += 1
        return node

    def _drop(self, node_id: NodeId, now: float) -> None:
        """Let what belongs to a forgotten peer go."""
        self._pinger.forget(node_id, now=now)
        self._challenges.forget(node_id)
        self._changes.cancel(node_id)
        self._waiting.pop(node_id, None)

    def _update(self, node: NodeState, now: float) -> None:
        """Draw the conclusions from a change: the index, the next deadline, what is shown."""
        node.settle(now)
        self._nodes.reindex(node)
        change = node.next_change(now)
        if change is not None:
            # Payload moves the end of a proof with each batch. A deadline that turns out to be
            # early is set again then, which costs less than moving it each time.
            armed = self._changes.deadline(node.node_id)
            if armed is None or change < armed:
                self._changes.set(node.node_id, change)
        info = node.info(now)
        if node.shown is None or not info.is_same_way(node.shown):
            node.shown = info
            self._events.append(PathChanged(node_id=node.node_id, path=info))
