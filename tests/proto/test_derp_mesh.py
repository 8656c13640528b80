"""Meshes of DERP servers: clients at one reach those at another, of whatever generation."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import strategies as st

from iroh_proto.address import DerpUrl
from iroh_proto.derp.client import CONNECT_TIMEOUT
from iroh_proto.derp.curve_frames import (
    GONE_DISCONNECTED,
    GONE_NOT_HERE,
    PRESENT_MESH_PEER,
    PRESENT_REGULAR,
    CurveClosePeer,
    CurveForwardPacket,
    CurvePeerGone,
    CurvePeerPresent,
)
from iroh_proto.derp.dialects.v2 import (
    FORWARD_LIMIT,
    KEEP_ALIVE_INTERVAL,
    ClosePeer,
    ForwardPacket,
    PeerPresent,
)
from iroh_proto.derp.events import ConnectionLost
from iroh_proto.derp.frames import Frame, PeerGone, Ping, WatchConns, pack_datagrams
from iroh_proto.derp.mesh import (
    MESH_DIALECTS,
    RETRY_INTERVAL,
    SERVERS_LIMIT,
    DerpMesh,
    MeshServer,
    MeshServerConnected,
    MeshServerLost,
)
from iroh_proto.derp.mesh_client import MeshClient
from iroh_proto.derp.mesh_key import MeshKey
from iroh_proto.derp.pong_wait import PONG_TIMEOUT
from iroh_proto.derp.rate import RateLimit
from iroh_proto.derp.region import Region
from iroh_proto.derp.relay import DerpServer
from iroh_proto.derp.relay_events import AccessRequested, ClientDisconnected
from iroh_proto.derp.relay_mesh import RelayMesh
from iroh_proto.derp.router import DerpRouter
from iroh_proto.derp.router_reports import Forward
from iroh_proto.errors import LocalProtocolError
from iroh_proto.key import SecretKey
from iroh_proto.machine import TcpCloseRequested, TcpRequested
from iroh_proto.testing.contract import Call, React, Run, Subject, contract_tests
from iroh_proto.x25519 import x25519_of
from tests.proto.derp_peer import ALL_WAYS, CURVE_WAYS, WAYS, Peer, World, key
from tests.proto.derp_world import URL, V2_SERVER, ServerSide, events_of, exchange
from tests.proto.test_derp_curve_relay import curve, disco_from

MESH_KEY = MeshKey(b"\x6d" * 32)
ALICE, BOB, CAROL = key(2), key(3), key(4)
HOSTS = ("one", "two", "three")


def server_key(host: str) -> SecretKey:
    return key(100 + HOSTS.index(host))


def url_of(host: str) -> DerpUrl:
    return DerpUrl.from_str(f"http://{host}")


def mesh_of(hosts: Iterable[str], dialects: Iterable[str] = MESH_DIALECTS) -> list[MeshServer]:
    return [MeshServer(url_of(host), dialect) for host in hosts for dialect in dialects]


class Site(World):
    """A server of a mesh with its clients."""

    def __init__(self, host: str, servers: list[MeshServer], mesh_key: MeshKey) -> None:
        self.host = host
        self.is_up = True
        super().__init__(
            DerpServer(
                secret_key=server_key(host),
                rng=random.Random(host),
                mesh_key=mesh_key,
                mesh_servers=servers,
            )
        )

    def flush(self) -> None:
        """Drain what is for clients; what is for other servers is carried by the mesh."""
        while True:
            self.drain_events()
            writable = [tcp_id for tcp_id in self.server.tcp_to_send() if tcp_id in self.peers]
            if not writable:
                return
            for tcp_id in writable:
                while data := self.server.tcp_data_to_send(tcp_id):
                    if answer := self.peers[tcp_id].receive(data):
                        self.server.receive_tcp_data(tcp_id, answer, now=self.now)


class MeshWorld:
    """Servers that dial one another, and a clock. Bytes take no time."""

    def __init__(
        self,
        hosts: Iterable[str] = HOSTS[:2],
        dialects: Iterable[str] = MESH_DIALECTS,
        keys: dict[str, MeshKey] | None = None,
    ) -> None:
        hosts, dialects = list(hosts), list(dialects)
        self.sites = {
            host: Site(
                host,
                mesh_of([other for other in hosts if other != host], dialects),
                (keys or {}).get(host, MESH_KEY),
            )
            for host in hosts
        }
        # Both ends of each connection between servers, as (host, number there).
        self.wires: dict[tuple[str, int], tuple[str, int]] = {}
        self._last_id = 10_000
        for site in self.sites.values():
            site.server.start(now=0.0)
        self.settle()
        if self.sites:
            self.wait(0.5)  # a server of v2 first waits whether a client of v3 speaks

    def __getitem__(self, host: str) -> Site:
        return self.sites[host]

    def settle(self) -> None:
        """Carry bytes and make connections until there is nothing left to do."""
        while sum(self._serve(site) for site in self.sites.values()):
            pass

    def wait(self, seconds: float) -> None:
        """Let time pass for all servers, with every deadline met."""
        (now,) = {site.now for site in self.sites.values()}
        end = now + seconds
        while True:
            deadlines = [site.server.get_timer() for site in self.sites.values()]
            due = min((deadline for deadline in deadlines if deadline is not None), default=end)
            now = max(now, min(due, end))
            for site in self.sites.values():
                site.now = now
                if due <= end:
                    site.server.handle_timer(now=now)
            self.settle()
            if due > end or now >= end:
                break
        for site in self.sites.values():
            site.now = end

    def connect(self, host: str, way: str, secret_key: SecretKey) -> tuple[int, Peer]:
        """Bring a client on to a server."""
        site = self.sites[host]
        site.flush()
        before = site.now
        result = site.connect(way, secret_key)
        self.settle()
        for other in self.sites.values():
            other.now = max(before, site.now)
        return result

    def send(self, host: str, tcp_id: int, dst: SecretKey, *datagrams: bytes) -> None:
        """Have a client send datagrams to a node."""
        for payload in pack_datagrams(datagrams):
            self.sites[host].send(tcp_id, dst.public, payload)
            self.settle()

    def leave(self, host: str, tcp_id: int) -> None:
        """End the connection of a client."""
        site = self.sites[host]
        site.server.receive_tcp_eof(tcp_id, now=site.now)
        self.settle()

    def cut(self, host: str) -> None:
        """End the connections between a server and the others."""
        for end, other in list(self.wires.items()):
            if host in (end[0], other[0]) and end in self.wires:
                self._close(end)
                site = self.sites[end[0]]
                site.server.receive_tcp_eof(end[1], now=site.now)
        self.settle()

    def _serve(self, site: Site) -> bool:
        site.flush()
        events = [
            event for event in site.events if isinstance(event, TcpRequested | TcpCloseRequested)
        ]
        site.events = [event for event in site.events if event not in events]
        for event in events:
            if isinstance(event, TcpRequested):
                self._dial(site, event)
            else:
                self._close((site.host, event.tcp_id))
        writable = [tcp_id for tcp_id in site.server.tcp_to_send() if tcp_id not in site.peers]
        for tcp_id in writable:
            data = site.server.tcp_data_to_send(tcp_id)
            other = self.wires.get((site.host, tcp_id))
            if other is not None:
                peer = self.sites[other[0]]
                peer.server.receive_tcp_data(other[1], data, now=peer.now)
        return bool(events or writable)

    def _dial(self, site: Site, request: TcpRequested) -> None:
        target = self.sites.get(request.host)
        if target is None or not target.is_up:
            site.server.complete_tcp(request.tcp_id, error="refused", now=site.now)
            return
        self._last_id += 1
        ends = (site.host, request.tcp_id), (target.host, self._last_id)
        self.wires[ends[0]], self.wires[ends[1]] = ends[1], ends[0]
        target.server.accept_tcp(self._last_id, now=target.now)
        site.server.complete_tcp(request.tcp_id, now=site.now)

    def _close(self, end: tuple[str, int]) -> None:
        other = self.wires.pop(end, None)
        if other is not None:
            del self.wires[other]
            site = self.sites[other[0]]
            site.server.receive_tcp_eof(other[1], now=site.now)


class TestCrossing:
    @pytest.mark.parametrize("first", ALL_WAYS)
    @pytest.mark.parametrize("second", ["v2", "v3", "relay-v2", "tailscale"])
    def test_datagrams_cross_between_clients_of_all_generations(
        self, first: str, second: str
    ) -> None:
        world = MeshWorld()
        alice_id, alice = world.connect("one", first, ALICE)
        bob_id, bob = world.connect("two", second, BOB)
        bodies = [bytes(1200), bytes(1200), b"x", bytes(60_000)]
        world.send("one", alice_id, BOB, disco_from(ALICE.public), *bodies)
        world.send("two", bob_id, ALICE, disco_from(BOB.public), *bodies)
        assert bob.datagrams() == [
            (ALICE.public, data) for data in (disco_from(ALICE.public), *bodies)
        ]
        assert alice.datagrams() == [
            (BOB.public, data) for data in (disco_from(BOB.public), *bodies)
        ]
        for site in world.sites.values():
            assert site.server.stats.router.packets_without_route == 0
            assert site.server.stats.mesh.dials == 2
            assert site.server.stats.mesh.packets_unsent == 0

    @pytest.mark.parametrize("dialect", MESH_DIALECTS)
    def test_one_dialect_is_enough_for_clients_that_say_who_they_are(self, dialect: str) -> None:
        world = MeshWorld(dialects=[dialect])
        node_id, node = world.connect("one", "v3", ALICE)
        curve_id, peer = world.connect("two", "tailscale", BOB)
        # By v2 a server is told of the client once it is known which node it is.
        other_id, _ = world.connect("two", "v3", CAROL)
        world["two"].send(curve_id, CAROL.public, pack_datagrams([disco_from(BOB.public)])[0])
        world.settle()
        world.send("one", node_id, BOB, disco_from(ALICE.public), b"there")
        world.send("two", curve_id, ALICE, disco_from(BOB.public), b"back")
        assert [data for _, data in peer.datagrams()] == [disco_from(ALICE.public), b"there"]
        assert [data for _, data in node.datagrams()] == [disco_from(BOB.public), b"back"]
        assert world["two"].server.clients.count(CAROL.public) == 1
        assert other_id in world["two"].peers

    def test_a_client_here_is_preferred_to_one_there(self) -> None:
        world = MeshWorld()
        _, there = world.connect("two", "v3", BOB)
        _, here = world.connect("one", "v3", BOB)
        alice_id, _ = world.connect("one", "v3", ALICE)
        world.send("one", alice_id, BOB, b"x")
        assert [data for _, data in here.datagrams()] == [b"x"]
        assert there.frames == []

    def test_nothing_is_forwarded_twice(self) -> None:
        # Each server believes that the client is at the next one, as when news are on their way.
        world = MeshWorld(HOSTS, dialects=["v2"])
        alice_id, _ = world.connect("one", "v3", ALICE)
        for host in HOSTS:
            world[host].server._router.add_remote(0, CAROL.public)
        world.send("one", alice_id, CAROL, b"round and round")
        forwarded = [site.server.stats.router.packets_forwarded for site in world.sites.values()]
        lost = [site.server.stats.router.packets_without_route for site in world.sites.values()]
        assert (sum(forwarded), sum(lost)) == (1, 1)

    @pytest.mark.parametrize("way", ["v3", "tailscale"])
    def test_packets_for_nobody_in_the_mesh_go_nowhere(self, way: str) -> None:
        world = MeshWorld()
        alice_id, _ = world.connect("one", way, ALICE)
        _, bob = world.connect("two", "v3", BOB)
        world.send("one", alice_id, CAROL, b"x")
        assert world["one"].server.stats.router.packets_without_route == 1
        for site in world.sites.values():
            assert site.server.stats.router.packets_forwarded == 0
            assert site.server.stats.mesh.packets_unsent == 0
        assert bob.frames == []

    def test_three_servers_are_enough_for_three_clients(self) -> None:
        world = MeshWorld(HOSTS)
        clients = {
            host: world.connect(host, "v2", secret)
            for host, secret in zip(HOSTS, (ALICE, BOB, CAROL), strict=True)
        }
        secrets = dict(zip(HOSTS, (ALICE, BOB, CAROL), strict=True))
        for host in HOSTS:
            for other in HOSTS:
                world.send(host, clients[host][0], secrets[other], host.encode())
        for host in HOSTS:
            assert sorted(data for _, data in clients[host][1].datagrams()) == sorted(
                other.encode() for other in HOSTS
            )

    def test_what_v2_cannot_forward_is_left_out(self) -> None:
        world = MeshWorld(dialects=["v2"])
        alice_id, alice = world.connect("one", "v3", ALICE)
        _, bob = world.connect("two", "v3", BOB)
        for size in (FORWARD_LIMIT, FORWARD_LIMIT + 1):
            world["one"].give(alice_id, alice.codec.encode_packets(BOB.public, [bytes(size)]))
            world.settle()
        assert bob.packets() == [(ALICE.public, bytes(FORWARD_LIMIT))]


class TestComingAndGoing:
    @pytest.mark.parametrize("way", ["v3", "v2", "tailscale"])
    @pytest.mark.parametrize("dialects", [["v2"], ["tailscale"], MESH_DIALECTS])
    def test_who_was_sent_to_hears_that_a_client_elsewhere_left(
        self, way: str, dialects: list[str]
    ) -> None:
        world = MeshWorld(dialects=dialects)
        alice_id, _ = world.connect("one", way, ALICE)
        _, node = world.connect("two", "v3", BOB)
        _, peer = world.connect("two", "tailscale", CAROL)
        if way == "tailscale" and dialects == ["v2"]:
            # Known to the others once it said who it is, to somebody who wants to know.
            world.connect("one", "v3", key(7))
            world.send("one", alice_id, key(7), disco_from(ALICE.public))
        if "tailscale" in dialects:
            world.send("one", alice_id, CAROL, disco_from(ALICE.public))
        world.send("one", alice_id, BOB, disco_from(ALICE.public))
        assert [source for source, _ in node.datagrams()] == [ALICE.public]
        node.frames.clear()
        was_heard = bool(peer.frames)
        peer.frames.clear()
        world.leave("one", alice_id)
        assert node.frames == [PeerGone(ALICE.public)]
        gone = CurvePeerGone(curve(ALICE), GONE_DISCONNECTED)
        assert peer.frames == ([gone] if was_heard else [])

    def test_nobody_hears_of_a_client_that_moved(self) -> None:
        world = MeshWorld()
        alice_id, _ = world.connect("one", "v3", ALICE)
        _, bob = world.connect("one", "v3", BOB)
        world.send("one", alice_id, BOB, b"x")
        bob.frames.clear()
        moved_id, _ = world.connect("two", "v3", ALICE)
        world.leave("one", alice_id)
        assert bob.frames == []
        world.send("two", moved_id, BOB, b"y")
        assert [data for _, data in bob.datagrams()] == [b"y"]

    def test_a_server_that_is_lost_takes_its_clients_along_and_comes_back(self) -> None:
        world = MeshWorld(dialects=["v2"])
        alice_id, _ = world.connect("one", "v3", ALICE)
        bob_id, bob = world.connect("two", "v3", BOB)
        world.send("one", alice_id, BOB, b"before")
        world["one"].events.clear()
        bob.frames.clear()
        world.cut("one")
        assert bob.frames == [PeerGone(ALICE.public)]
        assert MeshServerLost in [type(event) for event in world["one"].events]
        world.send("one", alice_id, BOB, b"lost")
        assert world["one"].server.stats.router.packets_without_route == 1
        world.wait(RETRY_INTERVAL - 0.1)
        assert not world.wires
        world.wait(0.6)
        assert MeshServerConnected(server=mesh_of(["two"], ["v2"])[0]) in world["one"].events
        world.send("one", alice_id, BOB, b"after")
        world.send("two", bob_id, ALICE, b"too")
        assert [data for _, data in bob.datagrams()] == [b"after"]

    def test_a_server_that_is_down_is_tried_every_five_seconds(self) -> None:
        world = MeshWorld(dialects=["tailscale"])
        world.cut("two")
        world["two"].is_up = False
        world.wait(3 * RETRY_INTERVAL + 0.1)
        assert world["one"].server.stats.mesh.dials == 4
        assert world["one"].server.stats.mesh.dials_failed == 3
        world["two"].is_up = True
        world.wait(RETRY_INTERVAL)
        assert len(world.wires) == 4  # both dial, and each connection has two ends


class TestRights:
    @pytest.mark.parametrize("dialect", MESH_DIALECTS)
    def test_with_another_key_nobody_is_a_member(self, dialect: str) -> None:
        world = MeshWorld(dialects=[dialect], keys={"two": MeshKey(b"\x6e" * 32)})
        alice_id, _ = world.connect("one", "v3", ALICE)
        world.connect("two", "v3", BOB)
        world.send("one", alice_id, BOB, b"x")
        assert world["one"].server.stats.router.packets_forwarded == 0
        lost = [event for event in world["one"].events if isinstance(event, MeshServerLost)]
        assert lost
        assert world["two"].server.stats.connections.faults == 1

    @pytest.mark.parametrize("way", ["v2", "tailscale", "tailscale websocket"])
    @pytest.mark.parametrize("mesh_key", [None, MeshKey(b"\x6e" * 32)])
    @pytest.mark.parametrize("number", range(3))
    def test_what_members_may_ask_for_ends_the_connection_of_others(
        self, way: str, mesh_key: MeshKey | None, number: int
    ) -> None:
        site = Site("one", [], MESH_KEY)
        bob_id, bob = site.connect("v3", BOB)
        tcp_id, peer = site.connect(way, ALICE, mesh_key=mesh_key)
        frames = curve_requests() if way in CURVE_WAYS else v2_requests()
        request = frames[number]
        site.give(tcp_id, peer.codec.encode(request) + peer.codec.encode(Ping(bytes(8))))
        (left,) = [event for event in site.events if isinstance(event, ClientDisconnected)]
        assert type(request).__name__ in str(left.error)
        assert peer.frames == []
        assert bob.frames == []
        assert site.server.clients == [BOB.public]
        assert bob_id in site.peers

    def test_a_member_is_let_in_unasked_and_unlimited(self) -> None:
        server = DerpServer(
            secret_key=server_key("one"),
            rng=random.Random(1),
            asks_access=True,
            rate_limit=RateLimit(10, 10),
            mesh_key=MESH_KEY,
        )
        site = World(server)
        tcp_id, peer = site.connect("tailscale", ALICE, mesh_key=MESH_KEY)
        for _ in range(100):
            site.give(tcp_id, peer.codec.encode(Ping(bytes(8))))
        server.set_rate_limit(RateLimit(5, 5), now=site.now)
        for _ in range(100):
            site.give(tcp_id, peer.codec.encode(Ping(bytes(8))))
        assert len(peer.frames) == 200
        assert not [event for event in site.events if isinstance(event, AccessRequested)]
        site.connect("tailscale", BOB)
        assert [event for event in site.events if isinstance(event, AccessRequested)]

    def test_a_member_stays_though_clients_with_its_key_may_not(self) -> None:
        site = Site("one", [], MESH_KEY)
        site.connect("v2", ALICE, mesh_key=MESH_KEY)
        bob_id, _ = site.connect("v2", BOB)
        site.server.dismiss([ALICE.public, BOB.public], now=site.now)
        site.flush()
        left = [event.tcp_id for event in site.events if isinstance(event, ClientDisconnected)]
        assert left == [bob_id]

    def test_a_mesh_needs_its_key_a_dialect_that_has_it_and_not_too_many_servers(self) -> None:
        def server(servers: list[MeshServer], mesh_key: MeshKey | None) -> DerpServer:
            return DerpServer(
                secret_key=server_key("one"),
                rng=random.Random(1),
                mesh_key=mesh_key,
                mesh_servers=servers,
            )

        with pytest.raises(LocalProtocolError, match="key"):
            server(mesh_of(["two"]), None)
        with pytest.raises(LocalProtocolError, match="v3"):
            server(mesh_of(["two"], ["v3"]), MESH_KEY)
        with pytest.raises(LocalProtocolError, match="at most"):
            server(mesh_of(["two"]) * SERVERS_LIMIT, MESH_KEY)

    def test_numbers_of_connections_are_kept_apart(self) -> None:
        without = DerpServer(secret_key=server_key("one"), rng=random.Random(1))
        without.start(now=0.0)
        for server in (without, MeshWorld()["one"].server):
            with pytest.raises(LocalProtocolError, match="negative"):
                server.accept_tcp(-1, now=0.0)
            with pytest.raises(LocalProtocolError, match="not asked for"):
                server.complete_tcp(-99, now=0.0)
            with pytest.raises(LocalProtocolError, match="not asked for"):
                server.receive_tcp_data(-99, b"", now=0.0)
            with pytest.raises(LocalProtocolError, match="not asked for"):
                server.receive_tcp_eof(-99, now=0.0)
        with pytest.raises(LocalProtocolError, match="once"):
            MeshWorld()["one"].server.start(now=0.0)


def v2_requests() -> list[Frame]:
    return [
        WatchConns(),
        ClosePeer(BOB.public),
        ForwardPacket(CAROL.public, BOB.public, b"\x01\x00x"),
    ]


def curve_requests() -> list[Frame]:
    return [
        WatchConns(),
        CurveClosePeer(curve(BOB)),
        CurveForwardPacket(curve(CAROL), curve(BOB), disco_from(CAROL.public)),
    ]


class TestServing:
    """What another server, here a scripted one, asks for and is told."""

    def test_a_watcher_of_v2_is_told_of_nodes(self) -> None:
        site = Site("one", [], MESH_KEY)
        site.connect("v3", ALICE)
        watcher_id, watcher = site.connect("v2", server_key("two"), mesh_key=MESH_KEY)
        site.give(watcher_id, watcher.codec.encode(WatchConns()))
        assert watcher.frames == [PeerPresent(ALICE.public), PeerPresent(server_key("two").public)]
        watcher.frames.clear()
        curve_id, _ = site.connect("tailscale", BOB)
        assert watcher.frames == []
        site.send(curve_id, ALICE.public, pack_datagrams([disco_from(BOB.public)])[0])
        assert watcher.frames == [PeerPresent(BOB.public)]
        site.server.receive_tcp_eof(curve_id, now=site.now)
        site.flush()
        assert watcher.frames[1:] == [PeerGone(BOB.public)]

    def test_a_watcher_of_tailscale_is_told_of_keys_and_kinds(self) -> None:
        site = Site("one", [], MESH_KEY)
        site.connect("tailscale", ALICE)
        watcher_id, watcher = site.connect("tailscale", server_key("two"), mesh_key=MESH_KEY)
        site.give(watcher_id, watcher.codec.encode(WatchConns()))
        assert watcher.frames == [
            CurvePeerPresent(curve(ALICE), None, PRESENT_REGULAR),
            CurvePeerPresent(curve(server_key("two")), None, PRESENT_MESH_PEER),
        ]
        watcher.frames.clear()
        first_id, _ = site.connect("relay-v2", BOB)
        second_id, _ = site.connect("relay-v2", BOB)
        assert watcher.frames == [CurvePeerPresent(curve(BOB), None, PRESENT_REGULAR)] * 2
        watcher.frames.clear()
        site.server.receive_tcp_eof(second_id, now=site.now)
        site.flush()
        assert watcher.frames == []
        site.server.receive_tcp_eof(first_id, now=site.now)
        site.flush()
        assert watcher.frames == [CurvePeerGone(curve(BOB), GONE_DISCONNECTED)]
        site.server.receive_tcp_eof(watcher_id, now=site.now)
        site.connect("v3", CAROL)  # of which nobody is told
        assert not site.server._router.take_presences()

    def test_a_server_that_watches_itself_is_told_nothing(self) -> None:
        for way in MESH_DIALECTS:
            site = Site("one", [], MESH_KEY)
            tcp_id, itself = site.connect(way, server_key("one"), mesh_key=MESH_KEY)
            site.give(tcp_id, itself.codec.encode(WatchConns()))
            assert itself.frames == []

    def test_a_server_that_dials_itself_notices_and_leaves_it(self) -> None:
        for dialect in MESH_DIALECTS:
            site = Site("one", mesh_of(["one"], [dialect]), MESH_KEY)
            world = MeshWorld([])
            world.sites["one"] = site
            site.server.start(now=0.0)
            world.settle()
            world.wait(1.0)
            assert not world.wires
            world.wait(3 * RETRY_INTERVAL)
            assert site.server.stats.mesh.dials == 1
            assert site.server.clients == []

    @pytest.mark.parametrize("dialect", MESH_DIALECTS)
    def test_nobody_is_closed_where_nobody_has_the_key(self, dialect: str) -> None:
        site = Site("one", [], MESH_KEY)
        site.connect("v3", ALICE)
        tcp_id, member = site.connect(dialect, server_key("two"), mesh_key=MESH_KEY)
        requests = curve_requests() if dialect == "tailscale" else v2_requests()
        site.give(tcp_id, member.codec.encode(requests[1]))
        assert site.server.clients == [ALICE.public]

    def test_of_a_stranger_elsewhere_nothing_passes_to_nodes(self) -> None:
        site = Site("one", [], MESH_KEY)
        _, bob = site.connect("v3", BOB)
        tcp_id, member = site.connect("tailscale", server_key("two"), mesh_key=MESH_KEY)
        for payload in (b"quic", disco_from(CAROL.public), b"quic"):
            frame = CurveForwardPacket(curve(CAROL), curve(BOB), payload)
            site.give(tcp_id, member.codec.encode(frame))
        # Its server does not say that it is there: by its own word it is known for one packet.
        assert site.server.stats.router.packets_without_name == 2
        assert bob.datagrams() == [(CAROL.public, disco_from(CAROL.public))]

    def test_packets_for_nobody_are_answered_to_the_server(self) -> None:
        site = Site("one", [], MESH_KEY)
        tcp_id, member = site.connect("tailscale", server_key("two"), mesh_key=MESH_KEY)
        for payload in (disco_from(ALICE.public), b"quic"):
            frame = CurveForwardPacket(curve(ALICE), curve(BOB), payload)
            site.give(tcp_id, member.codec.encode(frame))
        assert member.frames == [CurvePeerGone(curve(BOB), GONE_NOT_HERE)]
        assert site.server.stats.router.packets_without_route == 2

    @pytest.mark.parametrize("way", WAYS)
    def test_packets_are_delivered_from_their_source(self, way: str) -> None:
        site = Site("one", [], MESH_KEY)
        _, bob = site.connect(way, BOB)
        v2_id, v2_member = site.connect("v2", server_key("two"), mesh_key=MESH_KEY)
        curve_id, member = site.connect("tailscale", server_key("two"), mesh_key=MESH_KEY)
        for request in v2_requests()[2:]:
            site.give(v2_id, v2_member.codec.encode(request))
        for request in curve_requests()[2:]:
            site.give(curve_id, member.codec.encode(request))
        assert bob.datagrams() == [(CAROL.public, b"x"), (CAROL.public, disco_from(CAROL.public))]

    @pytest.mark.parametrize("way", [*WAYS, *CURVE_WAYS])
    @pytest.mark.parametrize("member_way", MESH_DIALECTS)
    def test_a_peer_is_closed_with_all_its_connections(self, way: str, member_way: str) -> None:
        site = Site("one", [], MESH_KEY)
        site.connect(way, BOB)
        site.connect(way, BOB)
        tcp_id, member = site.connect(member_way, server_key("two"), mesh_key=MESH_KEY)
        if way in CURVE_WAYS and member_way == "v2":
            request: Frame = ClosePeer(BOB.public)
        else:
            request = (curve_requests() if member_way == "tailscale" else v2_requests())[1]
        site.give(tcp_id, member.codec.encode(request) * 2)
        assert site.server.clients == []

    def test_a_member_may_ask_for_its_own_end(self) -> None:
        site = Site("one", [], MESH_KEY)
        tcp_id, member = site.connect("v2", server_key("two"), mesh_key=MESH_KEY)
        site.give(tcp_id, member.codec.encode(ClosePeer(server_key("two").public)))
        assert site.server.clients == []

    def test_a_member_may_ask_for_the_end_of_another_and_its_own_at_once(self) -> None:
        site = Site("one", [], MESH_KEY)
        alice_id, _ = site.connect("v3", ALICE)
        tcp_id, member = site.connect("v2", server_key("two"), mesh_key=MESH_KEY)
        site.connect("v3", BOB)
        site.give(tcp_id, member.codec.encode(WatchConns()))
        requests = [ClosePeer(ALICE.public), ClosePeer(server_key("two").public)]
        site.give(tcp_id, b"".join(map(member.codec.encode, requests)))
        assert site.server.clients == [BOB.public]
        left = [event for event in site.events if isinstance(event, ClientDisconnected)]
        assert sorted(event.tcp_id for event in left) == [alice_id, tcp_id]
        assert [event.error for event in left] == [None, None]

    def test_a_member_that_is_let_go_as_a_client_is_lost_is_not_asked_for_its_own_deadline(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        site = Site("one", [], MESH_KEY)
        alice_id, _ = site.connect("v3", ALICE)
        tcp_id, member = site.connect("v2", server_key("two"), mesh_key=MESH_KEY)
        site.give(tcp_id, member.codec.encode(WatchConns()))
        site.wait(20.0)  # Alice was pinged, and will not answer
        monkeypatch.setattr("iroh_proto.derp.server.QUEUED_PRESENCE_BYTES_LIMIT", 1)
        site.wait_silently(2 * PONG_TIMEOUT)  # so late a look gives her more time, this once
        site.wait_silently(2 * KEEP_ALIVE_INTERVAL)  # the deadlines of both pass at once
        site.drain_events()
        left = [event for event in site.events if isinstance(event, ClientDisconnected)]
        assert {event.tcp_id: str(event.error) for event in left} == {
            alice_id: "no pong in time",
            tcp_id: "a member of the mesh reads too slowly",
        }
        assert site.server.clients == []
        assert site.server.get_timer() is None

    def test_a_member_that_does_not_read_what_it_must_is_let_go(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("iroh_proto.derp.server.QUEUED_PRESENCE_BYTES_LIMIT", 200)
        site = Site("one", [], MESH_KEY)
        tcp_id, member = site.connect("v2", server_key("two"), mesh_key=MESH_KEY)
        site.server.receive_tcp_data(tcp_id, member.codec.encode(WatchConns()), now=site.now)
        for number in range(10, 20):
            site.server.accept_tcp(number, now=site.now)
            peer = Peer("v3", key(number))
            site.server.receive_tcp_data(number, peer.request, now=site.now)
            site.server.receive_tcp_data(number, peer.begin(), now=site.now)
        site.drain_events()
        (left,) = [event for event in site.events if isinstance(event, ClientDisconnected)]
        assert "reads too slowly" in str(left.error)
        assert len(site.server.clients) == 10


class TestRegion:
    def test_a_client_at_two_servers_is_gone_once_it_is_at_none(self) -> None:
        region = Region()
        for link in (3, 1):
            region.add(link, ALICE.public)
            region.add(link, ALICE.public)
        assert region.link_to(ALICE.public, is_curve=False) == 3
        assert region.link_to(ALICE.public, is_curve=True) is None
        assert region.node_of(curve(ALICE)) == ALICE.public
        assert not region.remove(3, ALICE.public)
        assert not region.remove(3, ALICE.public)
        assert region.link_to(ALICE.public, is_curve=False) == 1
        assert ALICE.public in region
        region.add(1, curve(BOB))
        assert len(region) == 2
        assert region.remove_link(1) == [ALICE.public, curve(BOB)]
        assert region.remove_link(1) == []
        assert not region
        assert region.node_of(curve(ALICE)) is None

    def test_so_many_and_no_more(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("iroh_proto.derp.region.PEERS_LIMIT", 2)
        region = Region()
        for secret in (ALICE, BOB, CAROL):
            region.add(0, curve(secret))
        assert len(region) == 2
        assert not region.remove(0, curve(CAROL))

    def test_remote_senders_are_remembered_up_to_a_limit(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("iroh_proto.derp.router.REMOTE_SENDERS_LIMIT", 2)
        router = DerpRouter()
        router.connect(1, BOB.public)
        senders = [key(number).public for number in (10, 11, 12)]
        for sender in senders:
            router.add_remote(0, sender)
            router.route_forwarded(sender, BOB.public, [b"\x05" + bytes(36), b"\x01\x00x"])
        assert router.remove_link(0) == [(1, sender) for sender in senders[1:]]

    def test_who_is_sent_to_again_from_elsewhere_costs_nobody_the_news_of_the_end(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("iroh_proto.derp.router.DESTINATIONS_LIMIT", 2)
        router = DerpRouter()
        router.connect(1, ALICE.public)
        router.connect(2, BOB.public)
        router.add_remote(0, CAROL.public)
        for receiver in (ALICE, BOB, BOB):
            router.route_forwarded(CAROL.public, receiver.public, [b"header", b"\x01\x00x"])
        assert router.remove_link(0) == [(1, CAROL.public), (2, CAROL.public)]


class Beyond:
    """The servers that a mesh under test dials."""

    def __init__(self) -> None:
        self.sites: dict[str, Site] = {}
        self.read: dict[int, int] = {}
        self.hosts: dict[int, str] = {}


def accept(run: Run[Any]) -> Iterable[Call]:
    beyond = run.context
    assert isinstance(beyond, Beyond)
    for wanted in list(run.wanted_tcp):
        site = beyond.sites.setdefault(wanted.host, Site(wanted.host, [], MESH_KEY))
        site.server.accept_tcp(-wanted.tcp_id + 500, now=run.now)
        beyond.hosts[wanted.tcp_id] = wanted.host
        yield Call("complete_tcp", wanted.tcp_id)


def refuse(run: Run[Any]) -> Iterable[Call]:
    for wanted in list(run.wanted_tcp):
        yield Call("complete_tcp", wanted.tcp_id, error="refused")


def converse(run: Run[Any]) -> Iterable[Call]:
    beyond = run.context
    assert isinstance(beyond, Beyond)
    for tcp_id in list(run.tcp_ids):
        site = beyond.sites[beyond.hosts[tcp_id]]
        data = run.tcp_sent.get(tcp_id, b"")
        news = data[beyond.read.get(tcp_id, 0) :]
        beyond.read[tcp_id] = len(data)
        site.server.receive_tcp_data(-tcp_id + 500, news, now=run.now)
        site.flush()
        if answer := site.server.tcp_data_to_send(-tcp_id + 500):
            yield Call("receive_tcp_data", tcp_id, answer)


def watch(run: Run[Any]) -> Iterable[Call]:
    yield from accept(run)
    for _ in range(4):
        yield from converse(run)


def come(way: str, number: int) -> React[Any]:
    def act(run: Run[Any]) -> Iterable[Call]:
        beyond = run.context
        assert isinstance(beyond, Beyond)
        for site in beyond.sites.values():
            site.now = max(site.now, run.now)
            site.connect(way, key(number))
        return converse(run)

    return React(f"{number} comes by {way}", act)


def hang_up(run: Run[Any]) -> Iterable[Call]:
    return [Call("receive_tcp_eof", tcp_id) for tcp_id in run.tcp_ids]


SERVERS = [MeshServer(url_of("two"), "v2"), MeshServer(url_of("three"), "tailscale")]


def new_mesh(rng: random.Random) -> DerpMesh:
    return DerpMesh(servers=SERVERS, secret_key=server_key("one"), mesh_key=MESH_KEY, rng=rng)


def new_relay_mesh(rng: random.Random) -> RelayMesh:
    return RelayMesh(
        router=DerpRouter(),
        connections={},
        servers=SERVERS,
        secret_key=server_key("one"),
        mesh_key=MESH_KEY,
        rng=rng,
    )


def mesh_subject(factory: Callable[[random.Random], object]) -> Subject[Any]:
    return Subject(
        factory=factory,
        context=Beyond,
        begin=[Call("start")],
        operations=st.one_of(
            st.sampled_from(
                [
                    React("connections stand", accept),
                    React("connections are refused", refuse),
                    React("servers talk", converse),
                    React("servers are watched", watch),
                    React("servers hang up", hang_up),
                    Call("close"),
                ]
            ),
            st.builds(come, st.sampled_from(["v3", "tailscale"]), st.integers(2, 4)),
        ),
        misuses=st.sampled_from(
            [
                Call("start"),
                Call("complete_tcp", 1),
                Call("receive_tcp_data", -99, b""),
                Call("receive_tcp_eof", 0),
            ]
        ),
    )


TestDerpMeshContract = contract_tests(mesh_subject(new_mesh))
TestRelayMeshContract = contract_tests(mesh_subject(new_relay_mesh))


def test_no_connection_in_time_is_none() -> None:
    mesh = new_mesh(random.Random(1))
    mesh.start(now=0.0)
    assert mesh.get_timer() == CONNECT_TIMEOUT
    mesh.handle_timer(now=CONNECT_TIMEOUT)
    lost = [event for event in iter(mesh.next_event, None) if isinstance(event, MeshServerLost)]
    assert [event.error for event in lost] == ["no connection within 10 s"] * 2
    assert mesh.get_timer() == CONNECT_TIMEOUT + RETRY_INTERVAL
    assert x25519_of(BOB.public) == curve(BOB)


class TestLinks:
    """Connections to other servers, one by one."""

    def test_a_closed_mesh_closes_its_connections_and_dials_no_more(self) -> None:
        world = MeshWorld(dialects=["v2"])
        site = world["one"]
        site.server.close(now=site.now)
        world.settle()
        assert not world.wires
        assert site.server.stats.mesh.dials == 1
        assert site.server.get_timer() is None
        site.server.close(now=site.now)
        site.drain_events()
        assert MeshServerLost not in map(type, site.events)  # it was not lost, but left

    def test_a_mesh_that_is_closed_between_two_attempts_makes_no_other(self) -> None:
        mesh = new_mesh(random.Random(1))
        mesh.start(now=0.0)
        for event in list(iter(mesh.next_event, None)):
            assert isinstance(event, TcpRequested)
            mesh.complete_tcp(event.tcp_id, error="refused", now=0.0)
        assert mesh.get_timer() == RETRY_INTERVAL
        mesh.close(now=0.0)
        assert mesh.get_timer() is None

    def test_packets_for_a_server_that_is_not_there_are_counted(self) -> None:
        mesh = new_mesh(random.Random(1))
        mesh.start(now=0.0)
        forward = Forward(0, ALICE.public, BOB.public, [b"header", b"x", b"header", b"y"])
        mesh.forward(forward, now=0.0)
        (first, _) = list(iter(mesh.next_event, None))
        assert isinstance(first, TcpRequested)
        mesh.complete_tcp(first.tcp_id, now=0.0)
        mesh.forward(forward, now=0.0)
        assert mesh.stats.packets_unsent == 4
        client = new_mesh_client()
        client.forward(forward, now=0.0)
        assert client.stats.datagrams_unsent == 2

    def test_a_connection_is_complete_once_and_has_bytes_only_then(self) -> None:
        mesh = new_mesh(random.Random(1))
        mesh.start(now=0.0)
        first, second = list(iter(mesh.next_event, None))
        assert isinstance(first, TcpRequested)
        assert isinstance(second, TcpRequested)
        with pytest.raises(LocalProtocolError, match="not complete"):
            mesh.receive_tcp_data(first.tcp_id, b"x", now=0.0)
        with pytest.raises(LocalProtocolError, match="not complete"):
            mesh.receive_tcp_eof(first.tcp_id, now=0.0)
        mesh.complete_tcp(first.tcp_id, now=0.0)
        with pytest.raises(LocalProtocolError, match="complete already"):
            mesh.complete_tcp(first.tcp_id, now=0.0)
        mesh.close(now=0.0)
        mesh.complete_tcp(second.tcp_id, now=0.0)  # too late
        mesh.receive_tcp_data(second.tcp_id, b"x", now=0.0)
        assert mesh.tcp_to_send() == []
        assert mesh.tcp_data_to_send(second.tcp_id) == b""
        assert mesh.get_timer() is None

    def test_a_server_that_tells_more_than_is_taken_is_let_go(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("iroh_proto.derp.mesh_client.TOLD_LIMIT", 3)
        client, server = new_mesh_client(), ServerSide(V2_SERVER)
        client.start(now=0.0)
        exchange(client, server, now=0.0)
        assert server.frames == [WatchConns()]
        events_of(client)
        client.receive_data(server.send(PeerPresent(ALICE.public)) * 3, now=0.0)
        assert client.take_told() == [(ALICE.public, True)] * 3
        client.receive_data(server.send(PeerPresent(ALICE.public)) * 4, now=0.0)
        (lost,) = events_of(client)
        assert isinstance(lost, ConnectionLost)
        assert "nobody asked" in str(lost.error)


def new_mesh_client() -> MeshClient:
    return MeshClient(
        url=URL,
        secret_key=server_key("one"),
        mesh_key=MESH_KEY,
        rng=random.Random(1),
        dialect="v2",
    )
