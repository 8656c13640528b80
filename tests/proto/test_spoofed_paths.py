"""Old packets, and copies of fresh ones, from where a peer is not: its payload stays on its way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from iroh_anyio.quic import connection as connection_module
from iroh_anyio.quic.options import EndpointOptions, IdentityMode
from iroh_anyio.quic.parameters import peer_parameters
from iroh_proto.address import DerpAddress, DerpUrl
from iroh_proto.paths.candidate import PATHS_LIMIT
from iroh_proto.paths.select import TRUST_TIME
from tests.proto.endpoint_world import Node
from tests.proto.hostile_world import MALLORY, HostileWorld, Overheard, arrive, sealed_ping

AFTER = 20.0
"""Seconds for which attacks go on after the connection stands: three times any trust."""


@dataclass
class Scene:
    """Alice, who dials, and Bob, on a tapped internet. ``number`` is her connection."""

    world: HostileWorld
    alice: Node
    bob: Node
    derp: bool
    number: int = -1

    def dial(self) -> None:
        self.number = self.alice.dial(self.bob.addr(derp=self.derp))
        self.world.network.run_until(
            lambda: bool(self.alice.established() and self.bob.established()), limit=9.0
        )

    def paths(self) -> set[tuple[str, object]]:
        """Return where both send to each other."""
        return {
            (path.kind, path.addr)
            for path in (
                self.alice.machine.magicsock.path_info(self.bob.id),
                self.bob.machine.magicsock.path_info(self.alice.id),
            )
        }

    def assert_on_their_own_ways(self) -> None:
        assert self.paths() == {("direct", self.alice.udp), ("direct", self.bob.udp)}
        assert self.world.talk(self.alice, self.number, self.bob)
        accepted = self.bob.established()[0].connection
        assert self.world.talk(self.bob, accepted, self.alice)
        for node in (self.alice, self.bob):
            assert node.reason(node.established()[0].connection) is None

    def assert_little_went_astray(self, since: float) -> None:
        """Check that the impostor got no payload but what probes addresses: twice a second."""
        astray = [one for one in self.world.sent_to(MALLORY, since=since) if one.is_quic]
        established = [one for one in astray if one.is_established_quic]
        assert len(established) <= 2 * 2 * (self.world.now - since) + 4


@pytest.fixture(params=["disco", "quic"])
def scheme(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How peers find paths. Peers of 0.96 and later say so, and are deaf to disco."""
    if request.param == "quic":
        read = peer_parameters

        def read_as_new(extensions: object) -> object:
            return replace(read(extensions), punches_in_quic=True)  # type: ignore[arg-type]

        monkeypatch.setattr(connection_module, "peer_parameters", read_as_new)
    return str(request.param)


@pytest.fixture(params=["raw", "x509"])
def identity(request: pytest.FixtureRequest) -> IdentityMode:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=[False, True], ids=["direct", "derp"])
def scene(scheme: str, identity: IdentityMode, request: pytest.FixtureRequest) -> Scene:
    derp = bool(request.param)
    world = HostileWorld(derp=derp)
    alice = world.node("alice", derp=derp, options=EndpointOptions(identity=identity))
    bob = world.node("bob", derp=derp)
    if scheme == "quic":
        world.is_lost = lambda one: one.is_disco
        for node in (alice, bob):
            node.machine.magicsock._finder._pinger.pong = (  # type: ignore[method-assign]
                lambda ping, *, now: None
            )
    world.network.run_for(3.0)
    return Scene(world, alice, bob, derp)


def replay_pings(scene: Scene, number: int) -> None:
    """Send each of the two an old ping of the other."""
    arrive(scene.alice, MALLORY, sealed_ping(scene.bob, scene.alice, number))
    arrive(scene.bob, MALLORY, sealed_ping(scene.alice, scene.bob, number))


def while_time_passes(scene: Scene, attack: Callable[[int], None], seconds: float = AFTER) -> None:
    for turn in range(int(2 * seconds)):
        attack(turn)
        scene.world.network.run_for(0.5)


@pytest.mark.parametrize("begin", ["before", "during", "after"])
def test_old_pings_lead_nobody_astray(scene: Scene, begin: str) -> None:
    if begin == "before":
        replay_pings(scene, 900)
    elif begin == "during":
        scene.world.network.clock.call_later(0.015, lambda: replay_pings(scene, 901))
    scene.dial()
    since = scene.world.now
    while_time_passes(scene, lambda turn: replay_pings(scene, turn))
    scene.assert_on_their_own_ways()
    scene.assert_little_went_astray(since)


def test_one_ping_from_everywhere_pushes_out_nobodys_address(scene: Scene) -> None:
    sources = [MALLORY._replace(port=port) for port in range(1, 3 * PATHS_LIMIT)]

    def flood(turn: int) -> None:
        for source in sources:
            arrive(scene.alice, source, sealed_ping(scene.bob, scene.alice, turn))
            arrive(scene.bob, source, sealed_ping(scene.alice, scene.bob, turn))

    flood(900)
    scene.dial()
    while_time_passes(scene, flood, 1.0)
    scene.world.network.run_for(TRUST_TIME)
    scene.assert_on_their_own_ways()
    for info in scene.alice.machine.magicsock.remote_infos():
        assert len(info.paths) <= PATHS_LIMIT


def test_the_whole_session_sent_again_moves_nobody(scene: Scene) -> None:
    scene.dial()
    assert scene.world.talk(scene.alice, scene.number, scene.bob)
    scene.world.network.run_for(1.0)
    recorded = list(scene.world.wire)
    since = scene.world.now

    def send_again(turn: int) -> None:
        for one in recorded[turn::10]:
            node = scene.bob if one.destination == scene.bob.udp else scene.alice
            arrive(node, MALLORY, one.data)

    while_time_passes(scene, send_again, 5.0)
    scene.world.network.run_for(TRUST_TIME)
    scene.assert_on_their_own_ways()
    scene.assert_little_went_astray(since)


@pytest.mark.parametrize("until", ["handshake", "always"])
def test_copies_that_are_faster_than_the_packets_lead_nobody_astray(
    scene: Scene, until: str, scheme: str
) -> None:
    """Off-path forwarding: RFC 9000, section 9.3.3. Whatever is sent to the impostor is lost."""
    ends = {"handshake": 0.2, "always": 1e9}[until] + scene.world.now
    nodes = {scene.alice.udp: scene.alice, scene.bob.udp: scene.bob}

    def forward(one: Overheard) -> None:
        node = nodes.get(one.destination)
        forged = one.source in nodes and scene.world.now < ends
        if node is not None and forged and not scene.world.is_lost(one):
            scene.world.network.clock.call_later(0.0, lambda: arrive(node, MALLORY, one.data))

    scene.world.on_datagram = forward
    scene.dial()
    scene.world.network.run_for(1.0)
    since = scene.world.now
    for _ in range(4):
        scene.assert_on_their_own_ways()
        scene.world.network.run_for(5.0)
    scene.assert_little_went_astray(since)


def test_copies_by_a_hostile_derper_lead_nobody_astray(scene: Scene) -> None:
    """A server that Bob uses as well says it heard Alice there, and carries nothing."""
    scene.dial()
    scene.world.network.run_for(1.0)
    assert scene.world.talk(scene.alice, scene.number, scene.bob)
    packets = [one.data for one in scene.world.sent_by(scene.alice)]
    packets += [sealed_ping(scene.alice, scene.bob, 7)]
    before = scene.bob.machine.magicsock.remote_infos()[0].derp_url
    address = DerpAddress(DerpUrl.from_str("http://hostile.example/"), scene.alice.id)
    scene.bob.give(lambda machine, now: machine.receive_datagrams(packets, address, now=now))
    scene.world.network.run_for(TRUST_TIME)
    after = scene.bob.machine.magicsock.remote_infos()[0].derp_url
    # Where none was known it is better than none, beside the address that is proven.
    assert after == (before or address.url)
    scene.assert_on_their_own_ways()


def test_a_peer_whose_address_changes_is_followed(scene: Scene, scheme: str) -> None:
    """The other side of not being led astray: a NAT that forgets is no reason to lose a peer."""
    scene.dial()
    assert scene.world.talk(scene.alice, scene.number, scene.bob)
    scene.world.network.run_for(1.0)
    moved = MALLORY._replace(port=7777)
    old, nodes = scene.alice.udp, scene.world

    def translate(one: Overheard) -> None:
        """Alice's NAT has another port for her from now on, and forgot the one before."""
        if one.source == old and one.destination == scene.bob.udp:
            nodes.network.clock.call_later(0.02, lambda: arrive(scene.bob, moved, one.data))
        elif one.source == scene.bob.udp and one.destination == moved:
            nodes.network.clock.call_later(
                0.02, lambda: arrive(scene.alice, scene.bob.udp, one.data)
            )

    lost = scene.world.is_lost
    scene.world.on_datagram = translate
    scene.world.is_lost = lambda one: lost(one) or old in (one.source, one.destination)
    if scheme == "quic":
        scene.world.on_datagram = lambda one: None if one.is_disco else translate(one)
    assert scene.world.talk(scene.alice, scene.number, scene.bob)
    scene.world.network.run_for(TRUST_TIME + 3.0)
    path = scene.bob.machine.magicsock.path_info(scene.alice.id)
    assert (path.kind, path.addr) == ("direct", moved)
    assert scene.world.talk(scene.bob, scene.bob.established()[0].connection, scene.alice)
