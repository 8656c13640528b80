"""What must never happen, whatever is done."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, assert_never

from aioquic.quic.packet import QuicErrorCode

from iroh_proto.address import UdpAddress
from iroh_proto.disco.pinger import PING_TIMEOUT
from iroh_proto.errors import LocalProtocolError
from iroh_proto.paths.candidate import PATHS_LIMIT
from iroh_proto.paths.select import PAYLOAD_TRUST_LIMIT
from iroh_proto.testing.happenings import (
    DatagramsReceived,
    DatagramsSent,
    Happening,
    TimerHandled,
)
from iroh_proto.testing.network import Network

if TYPE_CHECKING:
    from tests.proto.interaction.app import App
    from tests.proto.interaction.model import Call, End
    from tests.proto.interaction.world import World

IDLE_TIMEOUT = 30.0
"""Seconds: the default of an endpoint."""

HANDSHAKE_TIMEOUT = 10.0

RECONNECT_TIME = 45.0
"""Seconds that a node without any direct path may be out of reach after the last mishap.

It finds out by silence (20 s) that its connection to the server is dead, and tries again every
16 s.
"""

PROOF_TIME = PAYLOAD_TRUST_LIMIT + PING_TIMEOUT
"""Seconds that can lie between the ping that got there and the end of what it proved."""

FAREWELL_LIMIT = 10.0
"""Seconds for which a node that is awake may remember a connection that ended."""

PACKETS_REMEMBERED = 5_000

WAKE_UPS = 150.0, 3.0
DATAGRAMS = 300.0, 4.0
"""What a node may do: at once, and for each second and peer."""


class Trail:
    """What really happened on the wires: who reached whom at which address, and how often."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._on_their_way: dict[int, tuple[str, UdpAddress]] = {}
        self._reached: dict[tuple[str, UdpAddress, str], float] = {}
        self.wake_ups: dict[str, int] = {}
        self.sent: dict[str, int] = {}
        network.recorders.append(self._record)

    def _record(self, time: float, program: str, happening: Happening) -> None:
        host = program.partition("/")[0]
        match happening:
            case DatagramsSent():
                self.sent[host] = self.sent.get(host, 0) + len(happening.datagrams)
                self._on_their_way[happening.packet] = host, happening.destination
                if len(self._on_their_way) > PACKETS_REMEMBERED:
                    del self._on_their_way[next(iter(self._on_their_way))]
            case DatagramsReceived():
                sent = self._on_their_way.get(happening.packet)
                if sent is not None:
                    self._reached[(*sent, host)] = time
            case TimerHandled():
                self.wake_ups[host] = self.wake_ups.get(host, 0) + 1
            case _:
                pass

    def last_reached(self, sender: str, addr: UdpAddress, receiver: str) -> float | None:
        """Return when a packet that one host sent to an address last reached the other."""
        return self._reached.get((sender, addr, receiver))

    def check_proofs(self, apps: Iterable[App]) -> None:
        """Check that payload goes by UDP alone only to where the peer was reached of late."""
        running = [app for app in apps if app.is_running]
        names = {app.id: app.name for app in apps}
        for app in running:
            for info in app.machine.magicsock.remote_infos():
                if info.path.kind != "direct" or info.derp_url is None:
                    continue
                addr, peer = info.path.addr, names[info.node_id]
                assert isinstance(addr, UdpAddress)
                reached = self.last_reached(app.name, addr, peer)
                assert reached is not None, f"{app.name} trusts {addr} to be {peer}, who never was"
                age = self._network.now - reached
                assert age <= PROOF_TIME, f"{app.name} trusts {addr}: {peer} was there {age} s ago"


def check_close(world: World, call: Call, end: End) -> None:
    """Check that an end of a call had a reason to close."""
    reason = end.reason
    assert reason is not None
    other = call.other_end(end)
    peer_is_gone = not world.apps[other.node].lives(other) or other.closed_at is not None
    target = world.apps[call.target.node]
    match reason.kind:
        case "local":
            justified = end.closed_by_us
        case "application":
            justified = other.closed_by_us
        case "idle":
            calm = world.was_calm_for(IDLE_TIMEOUT + RECONNECT_TIME)
            justified = peer_is_gone or not calm
        case "unreachable" | "identity":
            # Another node may have come to where the dialled one was said to be.
            calm = world.was_calm_for(HANDSHAKE_TIMEOUT + RECONNECT_TIME)
            justified = not (call.has_home and calm)
        case "alpn" | "refused":
            justified = call.alpn not in target.alpns or not world.was_calm_for(HANDSHAKE_TIMEOUT)
        case "transport":
            # One end has the last of the handshake, the other waited for it in vain.
            gave_up = reason.by_peer and reason.code == QuicErrorCode.APPLICATION_ERROR
            calm = world.was_calm_for(HANDSHAKE_TIMEOUT + RECONNECT_TIME)
            justified = gave_up and other.established_at is None and not calm
        case _:
            assert_never(reason.kind)
    assert justified, f"{end.node} lost {call} at {world.now}: {reason}"


def check_memory(world: World) -> None:
    """Check that nodes keep no more than the others that there are, and no ended connections."""
    names = {app.id for app in world.apps.values()}
    for app in world.apps.values():
        if not app.is_running:
            continue
        infos = app.machine.magicsock.remote_infos()
        assert {info.node_id for info in infos} <= names - {app.id}
        assert all(len(info.paths) <= PATHS_LIMIT for info in infos)
        for (life, number), (_, end) in app.ends.items():
            if life != app.life or end.closed_at is None:
                continue
            awake_since = max(end.closed_at, app.woken_at)
            if world.now - awake_since >= FAREWELL_LIMIT:
                assert is_gone(app, number), f"{app.name} keeps a connection that ended"


def is_gone(app: App, number: int) -> bool:
    try:
        app.machine.connection_info(number)
    except LocalProtocolError:
        return True
    return False


class Calmness:
    """What nodes do during some seconds, to be compared with what they may do."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._begun = world.now
        self._wake_ups = dict(world.trail.wake_ups)
        self._sent = dict(world.trail.sent)

    def check(self) -> None:
        """Check that nobody was busy without reason."""
        world, seconds = self._world, self._world.now - self._begun
        peers = len(world.apps) - 1
        for name in world.apps:
            wake_ups = world.trail.wake_ups.get(name, 0) - self._wake_ups.get(name, 0)
            sent = world.trail.sent.get(name, 0) - self._sent.get(name, 0)
            for what, count, (burst, rate) in (
                ("wake-ups", wake_ups, WAKE_UPS),
                ("datagrams", sent, DATAGRAMS),
            ):
                limit = burst + rate * seconds * peers
                assert count <= limit, f"{name}: {count} {what} in {seconds} s"
