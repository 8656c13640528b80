"""Magicsocks on simulated hosts, with a DERP and STUN server, and an application on top."""

from __future__ import annotations

import random

from iroh_proto.address import Address, DerpAddress, DerpUrl, NodeAddr, UdpAddress
from iroh_proto.derp.map import DerpMap, DerpNode
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.magicsock import ChallengeRequested, Magicsock, PathChanged, ReceivedPayload
from iroh_proto.testing.derper import SimulatedDerper
from iroh_proto.testing.network import Host, Network, Program, Segment

URL = DerpUrl.from_str("http://derp.example/")
DERP_IP = "198.51.100.1"
DERP_MAP = DerpMap([DerpNode(URL)])

# What stands for QUIC: a first byte that is QUIC's, the sender's id instead of a handshake that
# proves it, and a number.
HEAD = b"\x41"
CHALLENGE, ANSWER = b"\x42", b"\x43"


class App:
    """What an endpoint does with its Magicsock: it trusts ids, and answers as it was asked."""

    def __init__(
        self, host: Host, *, scheme: str = "disco", bound: tuple[UdpAddress, ...] = ()
    ) -> None:
        self.host = host
        self.secret = SecretKey.generate(random.Random(host.name))
        self.scheme = scheme
        self.heard: list[tuple[float, NodeId, Address, int]] = []
        self.program: Program[Magicsock] = host.run(
            lambda rng: Magicsock(secret_key=self.secret, derp_map=DERP_MAP, rng=rng),
            udp=bound or [UdpAddress("0.0.0.0", 0)],
            begin=lambda machine, sockets, now: machine.start(sockets, now=now),
            on_event=self._take_event,
            on_payload=self._take,
        )

    @property
    def sock(self) -> Magicsock:
        return self.program.machine

    @property
    def id(self) -> NodeId:
        return self.secret.public

    @property
    def now(self) -> float:
        return self.host.network.now

    def learn(self, other: App, *addrs: UdpAddress, derp: bool = False) -> None:
        addr = NodeAddr(other.id, derp_url=URL if derp else None, direct_addresses=addrs)
        self.program.give(lambda sock, now: sock.add_node_addr(addr, now=now))

    def send(self, other: App, *numbers: int) -> None:
        datagrams = [HEAD + self.id + bytes((number,)) * 40 for number in numbers or (0,)]
        self.program.give(lambda sock, now: sock.send_payloads(other.id, datagrams, now=now))

    def kind(self, other: App) -> str:
        return self.sock.path_info(other.id).kind

    def kinds(self, other: App) -> list[str]:
        changes = list(self.program.seen(PathChanged))
        return [change.path.kind for change in changes if change.node_id == other.id]

    def sources(self, other: App, *, since: float = 0.0) -> list[Address]:
        return [
            source for when, node, source, _ in self.heard if node == other.id and when >= since
        ]

    def _take_event(self, event: object) -> None:
        if isinstance(event, ChallengeRequested):
            body = event.request_id.to_bytes(8, "big")
            self.sock.send_payloads(event.addr, [CHALLENGE + self.id + body], now=self.now)

    def _take(self, item: object) -> None:
        assert isinstance(item, ReceivedPayload)
        now = self.now
        for data in item.datagrams:
            kind, node_id, body = data[:1], NodeId(data[1:33]), data[33:]
            if kind == CHALLENGE and isinstance(item.source, UdpAddress):
                self.sock.send_payloads(item.source, [ANSWER + self.id + body], now=now)
                continue
            if kind == ANSWER:
                self.sock.complete_challenge(int.from_bytes(body, "big"), now=now)
                continue
            known = any(node == node_id for _, node, _, _ in self.heard)
            self.heard.append((now, node_id, item.source, data[33]))
            if not known:
                scheme = "quic" if self.scheme == "quic" else "disco"
                self.sock.adopt(item.source, node_id, scheme, now=now)  # type: ignore[arg-type]
            else:
                self.sock.confirm(node_id, item.source, now=now)
        self.host.network.clock.call_later(0.0, self.program.flush)  # events came of it


class MagicWorld:
    """The internet with a DERP and a STUN server."""

    def __init__(self, seed: int = 1) -> None:
        self.network = Network(rng=random.Random(seed), start=1000.0)
        self.derp_host = self.network.add_host("derp", ip=DERP_IP, latency=0.02)
        self.derper = SimulatedDerper(self.derp_host, url=URL)
        self.derp = self.derper.derp

    def app(
        self,
        name: str,
        segment: Segment | None = None,
        *,
        ip: str | None = None,
        scheme: str = "disco",
        bound: tuple[UdpAddress, ...] = (),
    ) -> App:
        host = self.network.add_host(name, segment, ip=ip, latency=0.005)
        return App(host, scheme=scheme, bound=bound)

    def settle(self, *apps: App) -> None:
        """Let nodes find their home and their addresses."""
        self.network.run_until(
            lambda: all(
                app.sock.home_derp is not None
                and any(not addr.ip.startswith("192.168.") for addr in app.sock.local_addresses)
                for app in apps
            ),
            limit=10.0,
        )

    def chat(self, left: App, right: App, seconds: float, *, every: float = 0.25) -> None:
        """Let two nodes send each other payload for a time."""
        end = self.network.now + seconds
        while self.network.now < end:
            left.send(right)
            right.send(left)
            self.network.run_for(min(every, end - self.network.now))


def via(app: App) -> DerpAddress:
    """Return a node as others see it through the DERP server."""
    return DerpAddress(URL, app.id)
