"""One socket for all peers: the machine that sends payload to nodes instead of addresses.

::

    in    UDP datagrams ──> STUN ──> own addresses
                       ├──> disco ─> path finder <── disco <──┬── DERP pool <── TCP
                       └──> QUIC ──> received_payloads() <────┘
    out   send_payloads(node) ──> path finder: which way now? ──> UDP datagrams, DERP pool

A peer is named by its :class:`~iroh_proto.key.NodeId`. Whoever sends from a UDP address that is
not proven to be a peer's is named by that address, its *provisional* key: an answer given to it
goes there and nowhere else. When a handshake has shown who it is, :meth:`Magicsock.adopt` says so,
and from then on payload is given to the node id.

Nothing that arrives unauthenticated moves a peer's payload to another path.

Source: iroh v0.35.0 ``iroh/src/magicsock.rs``.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, assert_never

from iroh_proto.address import Address, DerpAddress, DerpUrl, NodeAddr, UdpAddress
from iroh_proto.derp.frames import DATAGRAM_LIMIT
from iroh_proto.derp.map import DerpMap, DerpNode
from iroh_proto.derp.pool import DerpPool, HomeDerpChanged
from iroh_proto.disco.message import is_disco
from iroh_proto.disco.pinger import CallMeMaybeReceived, PingReceived, PongReceived
from iroh_proto.errors import LocalProtocolError
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.machine import Transmit
from iroh_proto.paths.challenges import ChallengeRequested
from iroh_proto.paths.finder import OwnAddressesWanted, PathChanged, PathFinder
from iroh_proto.paths.own_address_events import (
    AddressServer,
    DnsRequested,
    InterfacesRequested,
    ObservationRequested,
    OwnAddressesFound,
)
from iroh_proto.paths.own_addresses import OwnAddresses
from iroh_proto.paths.payload import (
    PayloadKey,
    ReceivedPayload,
    ReceivedQueue,
    TransmitQueue,
    are_surely_quic,
    may_be_quic,
    segment_size_of,
)
from iroh_proto.paths.reports import DirectAddressesChanged, MagicsockEvent, MagicsockStats
from iroh_proto.paths.select import PathInfo
from iroh_proto.paths.state import RemoteInfo
from iroh_proto.stun.message import is_stun
from iroh_proto.timers import LatestTime, earliest

__all__ = [
    "CallMeMaybeReceived",
    "ChallengeRequested",
    "DirectAddressesChanged",
    "DnsRequested",
    "HomeDerpChanged",
    "InterfacesRequested",
    "Magicsock",
    "MagicsockEvent",
    "MagicsockStats",
    "ObservationRequested",
    "PathChanged",
    "PathInfo",
    "PayloadKey",
    "PingReceived",
    "PongReceived",
    "ReceivedPayload",
    "RemoteInfo",
]


class Magicsock:
    """All sockets of a node in one. A datagram machine for UDP, and a TCP user for DERP.

    States: created, started by :meth:`start`, closed by :meth:`close`. Nothing is sent before
    and after; what arrives after is dropped.

    :param derp_map: the DERP servers this node may make its home; others are used when a peer's
        address names them.
    :param rng: for keys of all kinds and for choices; :class:`random.SystemRandom` in production.
    :param make_finder: makes the machine that decides on paths, or what stands in for it.
    :param make_own_addresses: makes the machine that finds this node's addresses, likewise.
    """

    def __init__(
        self,
        *,
        secret_key: SecretKey,
        derp_map: DerpMap,
        rng: random.Random,
        make_finder: Callable[..., PathFinder] = PathFinder,
        make_own_addresses: Callable[..., OwnAddresses] = OwnAddresses,
    ) -> None:
        self._node_id = secret_key.public
        self._derp_map = derp_map
        self._time = LatestTime()
        self._finder = make_finder(secret_key=secret_key, rng=rng)
        self._own = make_own_addresses(rng=rng)
        self._pool = DerpPool(secret_key=secret_key, derp_map=derp_map, rng=rng)
        self._state: Literal["created", "started", "closed"] = "created"
        self._families: tuple[bool, bool] = (False, False)
        self._local: tuple[UdpAddress, ...] = ()
        self._events: deque[MagicsockEvent] = deque()
        self._transmits = TransmitQueue()
        self._received = ReceivedQueue()
        self._stats = MagicsockStats()

    @property
    def node_id(self) -> NodeId:
        """This node's id."""
        return self._node_id

    @property
    def local_addresses(self) -> tuple[UdpAddress, ...]:
        """Where this node can be reached by UDP, as far as is known."""
        return self._local

    @property
    def home_derp(self) -> DerpUrl | None:
        """The DERP server at which this node can always be reached, once there is one."""
        return self._pool.home

    @property
    def node_addr(self) -> NodeAddr:
        """All that a peer needs to dial this node."""
        return NodeAddr(self._node_id, derp_url=self._pool.home, direct_addresses=self._local)

    @property
    def stats(self) -> MagicsockStats:
        """A copy of the counters."""
        return replace(
            self._stats,
            received_dropped=self._received.dropped,
            sent_dropped=self._transmits.dropped,
            paths=self._finder.stats,
            stun=self._own.stats,
            derp=self._pool.stats,
        )

    def path_info(self, node_id: NodeId) -> PathInfo:
        """Return where payload for a peer goes."""
        return self._finder.path_info(node_id)

    def has_ponged(self, node_id: NodeId, addr: UdpAddress) -> bool:
        """Say whether a peer answered a ping at an address of late, be it the best or not."""
        return self._finder.has_ponged(node_id, addr)

    def remote_infos(self) -> list[RemoteInfo]:
        """Return what is known of all peers."""
        return self._finder.remote_infos()

    def start(self, bound: Sequence[UdpAddress], *, now: float) -> None:
        """Begin: find the home DERP server and this node's own addresses.

        :param bound: where the UDP sockets are bound, with their real ports.
        :raises LocalProtocolError: if there are none or too many, or this was begun before.
        """
        if self._state != "created":
            raise LocalProtocolError(f"start() is for a new Magicsock, not one {self._state}")
        self._own.start(bound, now=now)
        now = self._time.advance(now)
        self._state = "started"
        self._families = (
            any(not addr.is_ipv6 for addr in bound),
            any(addr.is_ipv6 for addr in bound),
        )
        self._set_reachability(ipv6_works=True, now=now)  # until the interfaces say otherwise
        self._finder.start(now=now)
        self._pool.start(now=now)
        self._gather(now)

    def add_node_addr(self, addr: NodeAddr, *, now: float) -> None:
        """Learn where a peer may be. What is known already stays.

        :raises LocalProtocolError: if it is this node itself, or too many peers are in use.
        """
        self._finder.add_node_addr(
            addr.node_id, addr.direct_addresses, derp_url=addr.derp_url, now=now
        )
        self._gather(self._time.advance(now))

    def forget(self, node_id: NodeId, *, now: float) -> None:
        """Forget a peer and all about it."""
        self._finder.forget(node_id, now=self._time.advance(now))

    def send_payloads(self, key: PayloadKey, datagrams: Sequence[bytes], *, now: float) -> None:
        """Send QUIC datagrams to a peer, in order, whichever ways they go.

        No peer's trouble is an error: what cannot be sent is counted and dropped, and QUIC's
        timers see to the rest.
        """
        now = self._time.advance(now)
        if self._state != "started":
            self._stats.out_of_season += len(datagrams)
            return
        if not datagrams:
            return
        if isinstance(key, UdpAddress):
            self._send_udp(key, datagrams)
            return
        addresses, derp_url = self._finder.route(key, now=now)
        for transmit in self._finder.datagrams_to_send():
            self._send(transmit, now)
        for addr in addresses:
            self._send_udp(addr, datagrams)
        if derp_url is not None:
            self._send_derp(derp_url, key, datagrams, now)
        elif not addresses:
            self._stats.unreachable += len(datagrams)
        self._gather(now)

    def received_payloads(self) -> list[ReceivedPayload]:
        """Return the QUIC datagrams that arrived, and forget them."""
        return self._received.drain()

    def adopt(
        self,
        addr: UdpAddress | DerpUrl | DerpAddress,
        node_id: NodeId,
        scheme: Literal["disco", "quic"],
        *,
        callers: Sequence[UdpAddress] = (),
        now: float,
    ) -> None:
        """Take the news that a handshake proved a peer's identity.

        :param addr: where the peer's part of the handshake came from. Payload for the peer is
            given to ``node_id`` from now on.
        :param scheme: how such a peer finds paths, as far as the handshake shows: ``"quic"`` for
            0.96 and later. A peer that sends disco messages has ``"disco"`` whatever is said.
        :param callers: other addresses that packets of the same handshake came from. Either they
            or those from ``addr`` may be copies that somebody else sent on.
        """
        now = self._time.advance(now)
        source = addr if isinstance(addr, UdpAddress) else DerpAddress(_url_of(addr), node_id)
        if self._state == "started" and node_id != self._node_id:
            self._finder.adopt(source, node_id, scheme, callers=callers, now=now)
            self._gather(now)

    def confirm(self, node_id: NodeId, source: Address, *, now: float) -> None:
        """Take the news that an authenticated QUIC packet of a peer came from ``source``.

        Once for each batch is enough.
        """
        now = self._time.advance(now)
        if self._state == "started":
            self._finder.confirm(node_id, source, now=now)
            self._gather(now)

    def distrust(self, node_id: NodeId, addr: UdpAddress, *, now: float) -> None:
        """Take the news that another node answered at an address of a peer.

        What was proven of the address is void: until it is proven again, payload goes to the
        peer's DERP server as well.
        """
        now = self._time.advance(now)
        self._finder.distrust(node_id, addr, now=now)
        self._gather(now)

    def complete_interfaces(self, request_id: int, ips: Sequence[str], *, now: float) -> None:
        """Answer :class:`InterfacesRequested` with the IP addresses of interfaces that are up.

        :raises LocalProtocolError: if there was no such request.
        """
        self._own.complete_interfaces(request_id, ips, now=now)
        self._gather(self._time.advance(now))

    def complete_dns(self, request_id: int, ips: Sequence[str], *, now: float) -> None:
        """Answer :class:`DnsRequested` with the addresses of the host, none if it has none.

        :raises LocalProtocolError: if there was no such request.
        """
        self._own.complete_dns(request_id, ips, now=now)
        self._gather(self._time.advance(now))

    def complete_observation(
        self, request_id: int, address: UdpAddress | None, *, now: float
    ) -> None:
        """Answer :class:`ObservationRequested` with where the server sees this node, if it told.

        :raises LocalProtocolError: if there was no such request.
        """
        self._own.complete_observation(request_id, address, now=now)
        self._gather(self._time.advance(now))

    def refresh_own_addresses(self, *, now: float) -> None:
        """Find out anew where this node can be reached, now instead of some seconds later."""
        self._own.refresh(now=now)
        self._gather(self._time.advance(now))

    def complete_challenge(self, request_id: int, *, now: float) -> None:
        """Say that a :class:`ChallengeRequested` was answered.

        :raises LocalProtocolError: if there was no such request.
        """
        self._finder.complete_challenge(request_id, now=now)
        self._gather(self._time.advance(now))

    def network_changed(self, *, now: float) -> None:
        """Take the news that interfaces, addresses or routes changed: nothing is proven any more.

        Payload goes to the DERP servers as well until paths have proven themselves again.
        """
        now = self._time.advance(now)
        if self._state == "started":
            self._finder.network_changed(now=now)
            self._own.network_changed(now=now)
            self._pool.network_changed(now=now)
            self._gather(now)

    def resumed(self, *, now: float) -> None:
        """Take the news that the host slept: other nodes and NATs have forgotten this one."""
        self.network_changed(now=now)

    def close(self, *, now: float) -> None:
        """Close the connections to DERP servers and go quiet.

        What was given to be sent before can still be drained.
        """
        now = self._time.advance(now)
        if self._state == "closed":
            return
        self._state = "closed"
        self._finder.close(now=now)
        self._own.close(now=now)
        self._pool.close(now=now)
        self._gather(now)

    def receive_datagrams(self, batch: Sequence[bytes], addr: Address, *, now: float) -> None:
        """Take UDP datagrams that arrived from one address."""
        now = self._time.advance(now)
        if self._state != "started":
            self._stats.out_of_season += len(batch)
            return
        if isinstance(addr, DerpAddress):
            self._receive_derp(addr, batch, now)
        else:
            self._receive_udp(addr, batch, now)
        self._gather(now)

    def datagrams_to_send(self) -> list[Transmit]:
        """Return the UDP datagrams to send, and forget them."""
        return self._transmits.drain()

    def complete_tcp(self, tcp_id: int, *, error: str | None = None, now: float) -> None:
        """Say that a connection to a DERP server stands, or with ``error`` why it does not."""
        self._pool.complete_tcp(tcp_id, error=error, now=now)
        self._gather(self._time.advance(now))

    def receive_tcp_data(self, tcp_id: int, data: bytes, *, now: float) -> None:
        """Take bytes that arrived on a connection to a DERP server."""
        self._pool.receive_tcp_data(tcp_id, data, now=now)
        self._gather(self._time.advance(now))

    def receive_tcp_eof(self, tcp_id: int, *, now: float) -> None:
        """Take the end of a connection to a DERP server."""
        self._pool.receive_tcp_eof(tcp_id, now=now)
        self._gather(self._time.advance(now))

    def tcp_to_send(self) -> list[int]:
        """Return the connections that have bytes to write. Changes nothing."""
        return self._pool.tcp_to_send()

    def tcp_data_to_send(self, tcp_id: int) -> bytes:
        """Return bytes to write on one connection and forget them; empty when there are none."""
        return self._pool.tcp_data_to_send(tcp_id)

    def handle_timer(self, *, now: float) -> None:
        """Let every deadline at or before ``now`` expire."""
        now = self._time.advance(now)
        self._pool.handle_timer(now=now)
        self._own.handle_timer(now=now)
        self._finder.handle_timer(now=now)
        self._gather(now)

    def get_timer(self) -> float | None:
        """Return the earliest deadline, or ``None``. Changes nothing."""
        return earliest(self._finder.get_timer(), self._own.get_timer(), self._pool.get_timer())

    def next_event(self) -> MagicsockEvent | None:
        """Return the oldest event and forget it, or ``None``."""
        return self._events.popleft() if self._events else None

    # Datagrams in

    def _receive_udp(self, addr: UdpAddress, batch: Sequence[bytes], now: float) -> None:
        self._stats.udp_received += len(batch)
        if are_surely_quic(batch):
            self._deliver_udp(addr, batch, now)
            return
        payloads: list[bytes] = []
        for data in batch:
            if is_stun(data):
                self._own.receive_datagrams((data,), addr, now=now)
            elif is_disco(data):
                # A pong may prove the address: what came before it goes by the key of before.
                self._deliver_udp(addr, payloads, now)
                payloads = []
                self._finder.receive_datagrams((data,), addr, now=now)
            elif may_be_quic(data):
                payloads.append(data)
            else:
                self._stats.malformed += 1
        self._deliver_udp(addr, payloads, now)

    def _deliver_udp(self, addr: UdpAddress, payloads: Sequence[bytes], now: float) -> None:
        if payloads:
            key = self._finder.node_at(addr, now=now)
            self._received.append(addr if key is None else key, addr, payloads)

    def _receive_derp(self, addr: DerpAddress, batch: Sequence[bytes], now: float) -> None:
        self._stats.derp_received += len(batch)
        payloads = batch
        if not are_surely_quic(batch):
            payloads = []
            for data in batch:
                if is_disco(data):
                    self._finder.receive_datagrams((data,), addr, now=now)
                elif may_be_quic(data):
                    payloads.append(data)
                else:
                    self._stats.malformed += 1
        if not payloads:
            return
        if addr.node_id == self._node_id or not self._finder.note_derp_payload(addr, now=now):
            self._stats.strangers_dropped += len(payloads)
            return
        self._received.append(addr.node_id, addr, payloads)

    # Datagrams out

    def _send(self, transmit: Transmit, now: float) -> None:
        """Send what one of the machines within has to send."""
        addr = transmit.addr
        if isinstance(addr, DerpAddress):
            self._send_derp(addr.url, addr.node_id, transmit.datagrams, now)
        else:
            self._enqueue(transmit)

    def _send_udp(self, addr: UdpAddress, datagrams: Sequence[bytes]) -> None:
        self._enqueue(Transmit(addr, datagrams, segment_size_of(datagrams)))

    def _send_derp(
        self, url: DerpUrl, node_id: NodeId, datagrams: Sequence[bytes], now: float
    ) -> None:
        if max(map(len, datagrams)) > DATAGRAM_LIMIT:
            whole, datagrams = datagrams, [d for d in datagrams if len(d) <= DATAGRAM_LIMIT]
            self._stats.unreachable += len(whole) - len(datagrams)
        self._stats.derp_sent += len(datagrams)
        self._pool.send_datagrams(url, node_id, datagrams, now=now)

    def _enqueue(self, transmit: Transmit) -> None:
        self._transmits.append(transmit)
        self._stats.udp_sent += len(transmit.datagrams)

    # The machines within

    def _gather(self, now: float) -> None:
        """Pass on what the machines within have for one another and for the host."""
        while True:
            while self._gather_events(now):
                continue
            received = self._pool.received_payloads()
            transmits = self._own.datagrams_to_send()
            transmits.extend(self._finder.datagrams_to_send())
            if not received and not transmits:
                return
            for payload in received:
                if self._state == "started":
                    self._receive_derp(payload.address, payload.datagrams, now)
            for transmit in transmits:
                self._send(transmit, now)

    def _gather_events(self, now: float) -> bool:
        """Take one event from each machine; say whether there was any."""
        return self._take_pool_event(now) | self._take_own_event(now) | self._take_path_event(now)

    def _take_pool_event(self, now: float) -> bool:
        event = self._pool.next_event()
        if event is None:
            return False
        self._events.append(event)
        if isinstance(event, HomeDerpChanged):
            self._own.set_server(self._address_server(event.url), now=now)
        return True

    def _take_own_event(self, now: float) -> bool:
        event = self._own.next_event()
        match event:
            case None:
                return False
            case InterfacesRequested() | DnsRequested() | ObservationRequested():
                self._events.append(event)
            case OwnAddressesFound():
                self._take_own_addresses(event, now)
            case _:
                assert_never(event)
        return True

    def _take_path_event(self, now: float) -> bool:
        event = self._finder.next_event()
        match event:
            case None:
                return False
            case OwnAddressesWanted():
                self._own.refresh(now=now)
            case (
                PathChanged()
                | PingReceived()
                | PongReceived()
                | CallMeMaybeReceived()
                | ChallengeRequested()
            ):
                self._events.append(event)
            case _:
                assert_never(event)
        return True

    def _take_own_addresses(self, found: OwnAddressesFound, now: float) -> None:
        self._set_reachability(ipv6_works=found.ipv6_works, now=now)
        self._finder.set_own_addresses(found.addresses, hidden=found.hidden, now=now)
        if found.addresses != self._local:
            self._local = found.addresses
            self._events.append(DirectAddressesChanged(addresses=found.addresses))

    def _set_reachability(self, *, ipv6_works: bool, now: float) -> None:
        ipv4_socket, ipv6_socket = self._families
        self._finder.set_reachability(
            ipv4_socket=ipv4_socket, ipv6_socket=ipv6_socket, ipv6_works=ipv6_works, now=now
        )

    def _address_server(self, url: DerpUrl) -> AddressServer | None:
        node = self._derp_map.get(url) or DerpNode(url)
        quic_port = node.quic_port if url.scheme == "https" else None
        if node.stun_port is None and quic_port is None:
            return None
        return AddressServer(host=url.host, stun_port=node.stun_port, quic_port=quic_port)


def _url_of(addr: DerpUrl | DerpAddress) -> DerpUrl:
    return addr.url if isinstance(addr, DerpAddress) else addr
