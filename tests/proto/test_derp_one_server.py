"""Servers of a mesh that are one to clients: one identity, one place for each node."""

from __future__ import annotations

import random

import pytest

from iroh_proto.derp.frames import PeerGone
from iroh_proto.derp.mesh import MESH_DIALECTS, RETRY_INTERVAL
from iroh_proto.derp.rate import AcceptLimit
from iroh_proto.derp.relay import DerpServer
from iroh_proto.key import SecretKey
from iroh_proto.machine import TcpCloseRequested
from tests.proto.derp_peer import SERVER_KEY, World, key
from tests.proto.test_derp_curve_relay import curve, disco_from
from tests.proto.test_derp_mesh import HOSTS, MESH_KEY, MeshWorld, Site, mesh_of, server_key

ALICE, BOB, CAROL = key(2), key(3), key(4)
SOON = 0.1


class OneServer(MeshWorld):
    """Two or three servers with the same identity, which clients see."""

    def _site(self, host: str, hosts: list[str]) -> Site:
        site = Site(host, [], MESH_KEY)
        site.server = DerpServer(
            secret_key=SERVER_KEY,
            rng=random.Random(host),
            mesh_key=MESH_KEY,
            mesh_servers=mesh_of([other for other in hosts if other != host], MESH_DIALECTS),
            mesh_secret_key=server_key(host),
            mesh_retry_interval=SOON,
        )
        return site

    def __init__(self, hosts: list[str]) -> None:
        super().__init__([])
        self.sites = {host: self._site(host, hosts) for host in hosts}
        for site in self.sites.values():
            site.server.start(now=0.0)
        self.settle()
        self.wait(0.5)

    def set_aside(self, host: str, secret_key: SecretKey) -> None:
        site = self.sites[host]
        site.server.set_aside(secret_key.public, now=site.now)
        self.settle()

    def reinstate(self, host: str, secret_key: SecretKey) -> None:
        site = self.sites[host]
        site.server.reinstate(secret_key.public, now=site.now)
        self.settle()


def test_clients_see_one_identity_and_meet_all_the_same() -> None:
    world = OneServer(list(HOSTS))
    clients = {}
    for host, secret_key in zip(HOSTS, (ALICE, BOB, CAROL), strict=True):
        clients[host] = world.connect(host, "v2", secret_key)
        assert world[host].server.node_id == SERVER_KEY.public
        assert world[host].server.clients == [secret_key.public]
    for host in HOSTS:
        for target in (ALICE, BOB, CAROL):
            world.send(host, clients[host][0], target, host.encode())
    for _, peer in clients.values():
        assert sorted(data for _, data in peer.datagrams()) == sorted(map(str.encode, HOSTS))


def test_another_server_is_looked_for_as_often_as_told() -> None:
    world = OneServer(["one", "two"])
    world.cut("one")
    assert not world.wires
    world.wait(SOON + 0.6)
    assert len(world.wires) == 2 * 2 * len(MESH_DIALECTS)
    assert SOON < RETRY_INTERVAL


class TestGivingWay:
    @pytest.mark.parametrize("way", ["v2", "v3"])
    def test_a_client_that_does_not_wait_is_closed(self, way: str) -> None:
        world = OneServer(["one", "two"])
        older_id, _ = world.connect("one", way, ALICE)
        _, newer = world.connect("two", way, ALICE)
        bob_id, _ = world.connect("one", "v3", BOB)
        world["one"].events.clear()
        world.set_aside("one", ALICE)
        world.send("one", bob_id, ALICE, b"x")
        assert world["one"].server.clients == [BOB.public]
        assert newer.datagrams() == [(BOB.public, b"x")]
        assert world["one"].server.stats.router.clients_replaced == 1
        world.reinstate("one", ALICE)
        assert world["one"].server.clients == [BOB.public]
        world["one"].server.receive_tcp_eof(older_id, now=world["one"].now)

    def test_one_that_waits_is_told_and_gets_its_place_again(self) -> None:
        world = OneServer(["one", "two"])
        older_id, older = world.connect("one", "relay-v2", ALICE)
        newer_id, newer = world.connect("two", "relay-v2", ALICE)
        bob_id, bob = world.connect("one", "v3", BOB)
        older.frames.clear()
        world.set_aside("one", ALICE)
        assert world["one"].server.clients == [BOB.public]
        assert world["one"].server.admitted == {ALICE.public, BOB.public}
        assert older.frames == [older.dialect.standing(is_active=False)]
        world.send("one", bob_id, ALICE, b"x")
        assert [data for _, data in newer.datagrams()] == [b"x"]
        world.send("one", older_id, BOB, b"it may send")
        world.send("two", newer_id, BOB, b"both may")
        assert [data for _, data in bob.datagrams()] == [b"it may send", b"both may"]
        bob.frames.clear()
        older.frames.clear()
        world.leave("two", newer_id)
        world.reinstate("one", ALICE)
        assert older.frames == [older.dialect.standing(is_active=True)]
        world.send("one", bob_id, ALICE, b"y")
        assert [data for _, data in older.datagrams()] == [b"y"]
        assert bob.frames == []
        world.leave("one", older_id)
        assert bob.frames == [PeerGone(ALICE.public)]

    def test_a_third_server_knows_where_the_newer_one_is(self) -> None:
        world = OneServer(list(HOSTS))
        world.connect("one", "relay-v2", ALICE)
        _, newer = world.connect("two", "v3", ALICE)
        bob_id, bob = world.connect("three", "v3", BOB)
        world.set_aside("one", ALICE)
        world.send("three", bob_id, ALICE, b"x")
        assert [data for _, data in newer.datagrams()] == [b"x"]
        assert bob.frames == []

    def test_one_that_waits_may_leave_unnoticed(self) -> None:
        world = OneServer(["one", "two"])
        older_id, _ = world.connect("one", "relay-v2", ALICE)
        newer_id, _ = world.connect("two", "relay-v2", ALICE)
        _, bob = world.connect("two", "v3", BOB)
        world.set_aside("one", ALICE)
        world.send("one", older_id, BOB, b"x")
        bob.frames.clear()
        world.leave("one", older_id)
        assert bob.frames == []
        world.send("two", newer_id, BOB, b"y")
        world.leave("two", newer_id)
        assert PeerGone(ALICE.public) in bob.frames

    def test_a_newer_one_here_has_the_place_of_one_that_waits(self) -> None:
        world = OneServer(["one", "two"])
        _, waits = world.connect("one", "relay-v2", ALICE)
        world.set_aside("one", ALICE)
        latest_id, latest = world.connect("one", "relay-v2", ALICE)
        world.reinstate("one", ALICE)  # it is not free
        bob_id, _ = world.connect("one", "v3", BOB)
        world.send("one", bob_id, ALICE, b"x")
        assert [data for _, data in latest.datagrams()] == [b"x"]
        world.leave("one", latest_id)
        world.send("one", bob_id, ALICE, b"y")
        assert [data for _, data in waits.datagrams()] == [b"y"]

    def test_one_of_tailscales_dialect_may_send_meanwhile(self) -> None:
        world = OneServer(["one", "two"])
        older_id, _ = world.connect("one", "tailscale", ALICE)
        _, newer = world.connect("two", "tailscale", ALICE)
        bob_id, bob = world.connect("one", "v3", BOB)
        site = world["one"]
        site.server.set_aside(curve(ALICE), now=site.now)
        world.settle()
        world.send("one", older_id, BOB, disco_from(ALICE.public))
        assert [data for _, data in bob.datagrams()] == [disco_from(ALICE.public)]
        world.send("one", bob_id, ALICE, disco_from(BOB.public), b"x")
        assert [data for _, data in newer.datagrams()] == [disco_from(BOB.public), b"x"]

    def test_nobody_to_give_way_is_nothing(self) -> None:
        world = OneServer(["one"])
        world.set_aside("one", ALICE)
        world.reinstate("one", ALICE)
        assert world["one"].server.stats.router.clients_replaced == 0


def test_other_servers_come_in_beyond_the_limits() -> None:
    world = World(
        DerpServer(
            secret_key=SERVER_KEY,
            rng=random.Random(1),
            connections_limit=1,
            accept_limit=AcceptLimit(0.001, 1),
        )
    )
    for tcp_id in (1, 2):
        world.server.accept_tcp(tcp_id, now=0.0)
    world.server.accept_tcp(3, heeds_limits=False, now=0.0)
    world.drain_events()
    assert world.events == [TcpCloseRequested(tcp_id=2)]
    assert world.server.stats.connections_accepted == 2
    world.server.drain(now=0.0)
    world.server.accept_tcp(4, heeds_limits=False, now=0.0)
    world.drain_events()
    assert TcpCloseRequested(tcp_id=4) in world.events
