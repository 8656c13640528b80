"""Path finders on a virtual clock, joined by UDP and by one DERP server."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable

from iroh_proto.address import Address, DerpAddress, DerpUrl, UdpAddress
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.paths.finder import FinderEvent, OwnAddressesWanted, PathChanged, PathFinder

URL = DerpUrl.from_str("https://derp.example/")
UDP_LATENCY = 0.01
DERP_LATENCY = 0.04


class Packet:
    """A datagram on its way; ``data`` is ``None`` for authenticated payload."""

    def __init__(self, sender: Peer, source: Address, target: Address, data: bytes | None) -> None:
        self.sender = sender
        self.source = source
        self.target = target
        self.data = data


class Peer:
    """A node behind a firewall that lets in what it has sent to before, or everything."""

    def __init__(self, world: World, name: str, addr: UdpAddress, *, firewall: bool) -> None:
        self.world = world
        self.name = name
        self.secret = SecretKey.generate(random.Random(name))
        self.addr = addr
        self.firewall = firewall
        self.opened: set[UdpAddress] = set()
        self.met: set[NodeId] = set()
        self.finder = PathFinder(secret_key=self.secret, rng=random.Random(name))
        self.events: list[tuple[float, FinderEvent]] = []
        self.payloads: list[tuple[float, Address]] = []
        self.sent: list[tuple[float, Packet]] = []

    @property
    def id(self) -> NodeId:
        return self.secret.public

    def begin(self, *, told: tuple[UdpAddress, ...] | None = None) -> None:
        now = self.world.now
        self.finder.start(now=now)
        self.finder.set_reachability(ipv4_socket=True, ipv6_socket=True, ipv6_works=True, now=now)
        self.finder.set_own_addresses((self.addr,) if told is None else told, now=now)
        self.flush()

    def learn(self, other: Peer, *addrs: UdpAddress, derp: bool = False) -> None:
        url = URL if derp else None
        self.finder.add_node_addr(other.id, addrs, derp_url=url, now=self.world.now)
        self.flush()

    def send(self, other: Peer) -> tuple[tuple[UdpAddress, ...], DerpUrl | None]:
        """Send one payload datagram whatever way it goes now, and return the way."""
        udp, url = self.finder.route(other.id, now=self.world.now)
        self.flush()
        for addr in udp:
            self.world.carry(Packet(self, self.addr, addr, None))
        if url is not None:
            self.world.carry(
                Packet(self, DerpAddress(url, self.id), DerpAddress(url, other.id), None)
            )
        return udp, url

    def flush(self) -> None:
        for transmit in self.finder.datagrams_to_send():
            for data in transmit.datagrams:
                source: Address = self.addr
                if isinstance(transmit.addr, DerpAddress):
                    source = DerpAddress(transmit.addr.url, self.id)
                self.world.carry(Packet(self, source, transmit.addr, data))
        while (event := self.finder.next_event()) is not None:
            self.events.append((self.world.now, event))
            if isinstance(event, OwnAddressesWanted):
                self.world.later(0.2, self.refresh)

    def refresh(self) -> None:
        self.finder.set_own_addresses((self.addr,), now=self.world.now)
        self.flush()

    def kinds(self, other: Peer) -> list[str]:
        """Return the kinds of paths to another node that were announced, in order."""
        return [
            event.path.kind
            for _, event in self.events
            if isinstance(event, PathChanged) and event.node_id == other.id
        ]

    def kind(self, other: Peer) -> str:
        return self.finder.path_info(other.id).kind


class World:
    """Carries packets between peers. ``drop`` says which are lost."""

    def __init__(self) -> None:
        self.now = 100.0
        self.peers: dict[str, Peer] = {}
        self.drop: Callable[[Packet], bool] = lambda packet: False
        self.log: list[Packet] = []
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()

    def peer(self, name: str, addr: str, *, firewall: bool = False) -> Peer:
        peer = Peer(self, name, UdpAddress.from_str(addr), firewall=firewall)
        self.peers[name] = peer
        return peer

    def pair(self, *, firewall: bool = False) -> tuple[Peer, Peer]:
        """Return two nodes that have begun and know nothing of each other."""
        alice = self.peer("alice", "198.51.100.1:1001", firewall=firewall)
        bob = self.peer("bob", "203.0.113.2:1002", firewall=firewall)
        alice.begin()
        bob.begin()
        return alice, bob

    def later(self, delay: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + delay, next(self._serial), action))

    def carry(self, packet: Packet) -> None:
        self.log.append(packet)
        packet.sender.sent.append((self.now, packet))
        if isinstance(packet.target, UdpAddress):
            packet.sender.opened.add(packet.target)
        if self.drop(packet):
            return
        delay = DERP_LATENCY if isinstance(packet.target, DerpAddress) else UDP_LATENCY
        self.later(delay, lambda: self._deliver(packet))

    def run(self, seconds: float) -> None:
        """Let time pass: packets arrive and timers expire."""
        end = self.now + seconds
        while True:
            timers = [
                (deadline, peer)
                for peer in self.peers.values()
                if (deadline := peer.finder.get_timer()) is not None
            ]
            timer = min(timers, key=lambda entry: entry[0], default=None)
            arrival = self._queue[0][0] if self._queue else None
            due = [when for when in (arrival, timer and timer[0]) if when is not None]
            if not due or min(due) > end:
                break
            self.now = max(self.now, min(due))
            if arrival is not None and arrival <= self.now:
                heapq.heappop(self._queue)[2]()
            elif timer is not None:
                timer[1].finder.handle_timer(now=self.now)
                timer[1].flush()
        self.now = end

    def chat(self, left: Peer, right: Peer, seconds: float, *, every: float = 0.5) -> None:
        """Let two nodes send each other payload for a time."""
        end = self.now + seconds
        while self.now < end:
            left.send(right)
            right.send(left)
            self.run(min(every, end - self.now))

    def _deliver(self, packet: Packet) -> None:
        target = self._find(packet.target, packet.source)
        if target is None:
            return
        if packet.data is not None:
            target.finder.receive_datagrams([packet.data], packet.source, now=self.now)
        else:
            target.payloads.append((self.now, packet.source))
            if isinstance(packet.source, DerpAddress):
                target.finder.note_derp_payload(packet.source, now=self.now)
            if packet.sender.id not in target.met and target.finder.stats.nodes:
                target.met.add(packet.sender.id)
                target.finder.adopt(packet.source, packet.sender.id, "disco", now=self.now)
            target.finder.confirm(packet.sender.id, packet.source, now=self.now)
        target.flush()

    def _find(self, target: Address, source: Address) -> Peer | None:
        for peer in self.peers.values():
            if isinstance(target, DerpAddress):
                if target.node_id == peer.id:
                    return peer
            elif target == peer.addr and (not peer.firewall or source in peer.opened):
                return peer
        return None
