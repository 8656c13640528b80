"""Endpoints on simulated hosts, with a DERP and STUN server if wanted."""

from __future__ import annotations

import random

from iroh_anyio.quic.events import CloseReason
from iroh_anyio.quic.options import EndpointOptions
from iroh_anyio.testing import SimulatedDerper, SimulatedEndpoint
from iroh_proto.address import DerpUrl, NodeAddr, UdpAddress
from iroh_proto.derp.map import DerpMap
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.testing.network import Host, Network, Segment

ALPN = b"test/1"
URL = DerpUrl.from_str("http://derp.example/")
DERP_IP = "198.51.100.250"
UNIX_TIME = 1_700_000_000.0
PORT = 4433


class Node(SimulatedEndpoint):
    """One endpoint that serves :data:`ALPN` on IPv4."""

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
        super().__init__(
            host,
            secret_key=key,
            alpns=alpns,
            derp_map=DerpMap.from_urls([URL]) if derp else None,
            options=options,
            udp=[UdpAddress("0.0.0.0", port)],
            name=f"endpoint {port}",
        )

    @property
    def key(self) -> SecretKey:
        return self.secret_key

    @property
    def id(self) -> NodeId:
        return self.node_id

    @property
    def udp(self) -> UdpAddress:
        return UdpAddress(self.host.ips[0], self.program.sockets[0].port)

    def addr(self, *, direct: bool = True, derp: bool = False) -> NodeAddr:
        return NodeAddr(
            self.id,
            derp_url=URL if derp else None,
            direct_addresses=[self.udp] if direct else [],
        )

    def reason(self, number: int) -> CloseReason | None:
        return self.close_reason(number)

    def dial(self, addr: NodeAddr, *, alpn: bytes = ALPN) -> int:
        return self.connect(addr, alpn=alpn)


class EndpointWorld:
    """The internet."""

    def __init__(self, *, derp: bool = False, derp_latency: float = 0.02, seed: int = 1) -> None:
        self.network = Network(rng=random.Random(seed), start=500.0)
        if derp:
            self.derp_host = self.network.add_host("derp", ip=DERP_IP, latency=derp_latency)
            self.derp = SimulatedDerper(self.derp_host, url=URL).derp

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
        self.network.run_until(lambda: dialler.is_established(number), limit=15)
        return number

    def ended(self, node: Node, number: int, *, limit: float = 15.0) -> CloseReason:
        """Run until a connection is over, and return why."""
        self.network.run_until(lambda: node.close_reason(number) is not None, limit=limit)
        reason = node.close_reason(number)
        assert reason is not None
        return reason
