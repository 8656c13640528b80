"""Endpoints on simulated hosts, with a DERP and STUN server if wanted."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from iroh_anyio.quic.endpoint_machine import EndpointMachine
from iroh_anyio.quic.events import (
    CloseReason,
    ConnectionClosed,
    ConnectionEstablished,
    StreamDataReceived,
    StreamSendable,
)
from iroh_anyio.quic.options import EndpointOptions
from iroh_proto.address import DerpUrl, NodeAddr, UdpAddress
from iroh_proto.derp.map import DerpMap
from iroh_proto.derp.relay import DerpServer
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.stun.server import StunServer
from iroh_proto.testing.network import Host, Network, Program, Segment

ALPN = b"test/1"
URL = DerpUrl.from_str("http://derp.example/")
DERP_IP = "198.51.100.250"
UNIX_TIME = 1_700_000_000.0
PORT = 4433

EventT = TypeVar("EventT")


class Node:
    """One endpoint, and an application that consumes and keeps all it gets."""

    def __init__(
        self,
        host: Host,
        *,
        key: SecretKey | None = None,
        alpns: tuple[bytes, ...] = (ALPN,),
        options: EndpointOptions | None = None,
        derp: bool = False,
        port: int = PORT,
    ) -> None:
        self.host = host
        self.key = key or SecretKey.generate(random.Random(host.name))
        self.received: dict[tuple[int, int], bytearray] = {}
        self.ended: set[tuple[int, int]] = set()
        self._to_send: dict[tuple[int, int], bytes] = {}
        self.program: Program[EndpointMachine] = host.run(
            lambda rng: EndpointMachine(
                secret_key=self.key,
                alpns=alpns,
                derp_map=DerpMap.from_urls([URL]) if derp else None,
                rng=rng,
                unix_time=UNIX_TIME,
                options=options,
            ),
            udp=[UdpAddress("0.0.0.0", port)],
            begin=lambda machine, bound, now: machine.start(bound, now=now),
            on_event=self._take,
            name=f"endpoint {port}",
        )

    @property
    def machine(self) -> EndpointMachine:
        return self.program.machine

    @property
    def id(self) -> NodeId:
        return self.key.public

    @property
    def udp(self) -> UdpAddress:
        return UdpAddress(self.host.ips[0], self.program.sockets[0].port)

    @property
    def now(self) -> float:
        return self.host.network.now

    def addr(self, *, direct: bool = True, derp: bool = False) -> NodeAddr:
        return NodeAddr(
            self.id,
            derp_url=URL if derp else None,
            direct_addresses=[self.udp] if direct else [],
        )

    def give(self, command: Callable[[EndpointMachine, float], EventT]) -> EventT:
        return self.program.give(command)

    def dial(self, addr: NodeAddr, *, alpn: bytes = ALPN) -> int:
        return self.give(lambda machine, now: machine.connect(addr, alpn=alpn, now=now))

    def seen(self, kind: type[EventT]) -> list[EventT]:
        return self.program.seen(kind)

    def established(self) -> list[ConnectionEstablished]:
        return self.seen(ConnectionEstablished)

    def reason(self, number: int) -> CloseReason | None:
        closed = [event for event in self.seen(ConnectionClosed) if event.connection == number]
        assert len(closed) <= 1
        return closed[0].reason if closed else None

    def send(self, connection: int, data: bytes) -> int:
        """Send data on a stream of its own, and the end, as fast as there is room."""

        def begin(machine: EndpointMachine, now: float) -> int:
            stream_id = machine.open_stream(connection, bidirectional=True)
            self._to_send[connection, stream_id] = data
            self._push(connection, stream_id)
            return stream_id

        return self.give(begin)

    def _push(self, connection: int, stream_id: int) -> None:
        data = self._to_send[connection, stream_id]
        room = self.machine.send_room(connection, stream_id)
        self._to_send[connection, stream_id] = data[room:]
        self.machine.send_stream(
            connection, stream_id, data[:room], end=len(data) <= room, now=self.now
        )
        if len(data) <= room:
            del self._to_send[connection, stream_id]

    def _take(self, event: object) -> None:
        if isinstance(event, StreamDataReceived):
            key = event.connection, event.stream_id
            self.received.setdefault(key, bytearray()).extend(event.data)
            self.machine.consume(*key, len(event.data), now=self.now)
            if event.end:
                self.ended.add(key)
        elif isinstance(event, StreamSendable) and self._is_sending(event):
            self._push(event.connection, event.stream_id)

    def _is_sending(self, event: StreamSendable) -> bool:
        return (event.connection, event.stream_id) in self._to_send


class EndpointWorld:
    """The internet."""

    def __init__(self, *, derp: bool = False, seed: int = 1) -> None:
        self.network = Network(rng=random.Random(seed), start=500.0)
        if derp:
            self.network.set_name(URL.host, [DERP_IP])
            self.derp_host = self.network.add_host("derp", ip=DERP_IP, latency=0.02)
            secret = SecretKey.generate(random.Random("derp"))
            self.derp = self.derp_host.run(
                lambda rng: DerpServer(secret_key=secret, rng=rng), tcp_ports=[80]
            )
            self.derp_host.run(
                lambda rng: StunServer(), udp=[UdpAddress("0.0.0.0", 3478)], name="stun"
            )

    def node(
        self,
        name: str,
        segment: Segment | None = None,
        *,
        ip: str | None = None,
        key: SecretKey | None = None,
        alpns: tuple[bytes, ...] = (ALPN,),
        options: EndpointOptions | None = None,
        derp: bool = False,
    ) -> Node:
        if ip is None and segment is None:
            ip = f"198.51.100.{len(self.network.hosts) + 1}"
        host = self.network.add_host(name, segment, ip=ip, latency=0.01)
        return Node(host, key=key, alpns=alpns, options=options, derp=derp)

    def two(
        self, *, derp: bool = False, options: EndpointOptions | None = None
    ) -> tuple[Node, Node]:
        alice = self.node("alice", derp=derp, options=options)
        bob = self.node("bob", derp=derp, options=options)
        if derp:
            self.network.run_until(
                lambda: all(node.machine.magicsock.home_derp for node in (alice, bob)), limit=10
            )
        return alice, bob

    def connect(self, dialler: Node, addr: NodeAddr) -> int:
        """Dial, and run until it stands."""
        number = dialler.dial(addr)
        self.network.run_until(
            lambda: any(event.connection == number for event in dialler.established()), limit=15
        )
        return number

    def ended(self, node: Node, number: int, *, limit: float = 15.0) -> CloseReason:
        """Run until a connection is over, and return why."""
        self.network.run_until(lambda: node.reason(number) is not None, limit=limit)
        reason = node.reason(number)
        assert reason is not None
        return reason
