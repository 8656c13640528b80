"""How long both sides of a DERP connection wait for a pong, and what a late host makes of it."""

from __future__ import annotations

import random
from typing import Protocol

import pytest

from iroh_proto.derp.approach import Approach
from iroh_proto.derp.client import DerpClient
from iroh_proto.derp.datagram_frames import RecvDatagram
from iroh_proto.derp.dialects.relay_v1 import PING_INTERVAL
from iroh_proto.derp.events import ConnectionLost as ClientConnectionLost
from iroh_proto.derp.events import PongReceived
from iroh_proto.derp.frames import Ping, Pong, pack_datagrams
from iroh_proto.derp.map import DerpMap, DerpNode
from iroh_proto.derp.pong_wait import LATE_AFTER, PONG_TIMEOUT, SHORTEST_PONG_TIMEOUT
from iroh_proto.derp.pool import DerpPool
from iroh_proto.derp.pool_events import DerpServerLost
from iroh_proto.derp.rate import RateLimit
from iroh_proto.derp.server import DerpServerConnection
from iroh_proto.derp.server_events import ClientAdmitted, ConnectionLost
from iroh_proto.derp.server_liveness import PING_JITTER
from iroh_proto.key import SecretKey
from iroh_proto.testing.derper import SimulatedDerper
from iroh_proto.testing.network import Network, Program
from tests.proto.derp_peer import ALL_WAYS, SERVER_KEY, Peer, key
from tests.proto.derp_world import (
    CLIENT_KEY,
    PEER,
    RELAY_V1_SERVER,
    RELAY_V2_SERVER,
    TAILSCALE_SERVER,
    URL,
    V2_SERVER,
    V3_SERVER,
    ServerSide,
    events_of,
    exchange,
)

ALICE, BOB = key(2), key(3)
HOURS = 8 * 3600.0
SERVERS = {
    "v2": V2_SERVER,
    "v3": V3_SERVER,
    "relay-v1": RELAY_V1_SERVER,
    "relay-v2": RELAY_V2_SERVER,
    "tailscale": TAILSCALE_SERVER,
}


class Side(Protocol):
    """The side under test. ``now`` is the time of its last input."""

    now: float

    def ping(self) -> None:
        """Have it ping, some time after its last input."""

    def pong(self, *, at: float) -> None:
        """Have it read the pong."""

    def wake(self, *, at: float) -> None:
        """Have it look at its deadlines."""

    @property
    def deadline(self) -> float:
        """When it wants to be woken."""

    @property
    def fault(self) -> str | None:
        """Why it gave the connection up, if it did."""


class ClientSide:
    """A client that is asked to ping."""

    def __init__(self, dialect: str) -> None:
        self.now = 0.0
        self.server = ServerSide(SERVERS[dialect], answers_pings=False)
        _, path, form = ALL_WAYS[dialect]
        self.client = DerpClient(
            url=URL,
            secret_key=CLIENT_KEY,
            rng=random.Random(3),
            approach=Approach(dialect, path, form),
        )
        self.client.start(now=0.0)
        exchange(self.client, self.server, now=0.0)
        assert self.client.is_connected
        self.latencies: list[float] = []
        self._fault: str | None = None
        self._data = b""

    def ping(self) -> None:
        self.now += 1.0
        self.client.ping(now=self.now)
        self._data = self.sent_pings()[-1].data

    def pong(self, *, at: float) -> None:
        self.now = at
        self.client.receive_data(self.server.send(Pong(self._data)), now=at)

    def wake(self, *, at: float) -> None:
        self.now = at
        self.client.handle_timer(now=at)

    @property
    def deadline(self) -> float:
        deadline = self.client.get_timer()
        assert deadline is not None
        return deadline

    @property
    def fault(self) -> str | None:
        for event in events_of(self.client):
            if isinstance(event, ClientConnectionLost):
                self._fault = str(event.error)
            if isinstance(event, PongReceived):
                self.latencies.append(event.latency)
        return self._fault

    def sent_pings(self) -> list[Ping]:
        assert self.server.codec is not None
        frames = self.server.codec.receive(self.client.data_to_send())
        return [frame for frame in frames if isinstance(frame, Ping)]


class RelaySide:
    """A server's connection, which pings after some silence."""

    def __init__(self, dialect: str, rate_limit: RateLimit | None = None) -> None:
        self.now = 0.0
        self.peer = Peer(dialect, ALICE)
        self.connection = DerpServerConnection(
            secret_key=SERVER_KEY, rng=random.Random(1), rate_limit=rate_limit
        )
        self.connection.start(now=0.0)
        self.connection.receive_data(self.peer.request, now=0.0)
        for _ in range(2):
            answer = self.peer.receive(self.connection.data_to_send())
            self.connection.receive_data(answer, now=0.0)
        self.peer.receive(self.connection.data_to_send())
        assert isinstance(self.connection.next_event(), ClientAdmitted)
        self._fault: str | None = None
        self._data = b""

    def ping(self) -> None:
        self.wake(at=self.deadline)
        (ping,) = self.sent_pings()
        self._data = ping.data

    def pong(self, *, at: float) -> None:
        self.give(self.peer.codec.encode(Pong(self._data)), at=at)

    def give(self, data: bytes, *, at: float) -> None:
        """Have it read bytes."""
        self.now = at
        self.connection.receive_data(data, now=at)

    def wake(self, *, at: float) -> None:
        self.now = at
        self.connection.handle_timer(now=at)

    @property
    def deadline(self) -> float:
        deadline = self.connection.get_timer()
        assert deadline is not None
        return deadline

    @property
    def fault(self) -> str | None:
        while (event := self.connection.next_event()) is not None:
            assert isinstance(event, ConnectionLost)
            self._fault = str(event.error)
        return self._fault

    def sent_pings(self) -> list[Ping]:
        self.peer.frames.clear()
        self.peer.receive(self.connection.data_to_send())
        return [frame for frame in self.peer.frames if isinstance(frame, Ping)]


ADAPTING = [
    pytest.param(side, dialect, id=f"{name} {dialect}")
    for name, side in (("client", ClientSide), ("server", RelaySide))
    for dialect in ("relay-v1", "relay-v2")
]
FIXED = [
    pytest.param(ClientSide, "v2", id="client v2"),
    pytest.param(ClientSide, "tailscale", id="client tailscale"),
    pytest.param(ClientSide, "v3", id="client v3"),
    pytest.param(RelaySide, "v3", id="server v3"),
]
adapting = pytest.mark.parametrize(("kind", "dialect"), ADAPTING)
fixed = pytest.mark.parametrize(("kind", "dialect"), FIXED)
all_sides = pytest.mark.parametrize(("kind", "dialect"), ADAPTING + FIXED)
relay_dialects = pytest.mark.parametrize("dialect", ["relay-v1", "relay-v2"])
Kind = type[ClientSide] | type[RelaySide]


def measured(kind: Kind, dialect: str, round_trip: float) -> Side:
    """Return a side that knows a round trip."""
    side = kind(dialect)
    side.ping()
    side.pong(at=side.now + round_trip)
    return side


class TestTimeout:
    @all_sides
    def test_the_first_pong_may_take_5_s(self, kind: Kind, dialect: str) -> None:
        side = kind(dialect)
        side.ping()
        assert side.deadline == side.now + PONG_TIMEOUT
        side.wake(at=side.deadline - 0.001)
        assert side.fault is None
        side.wake(at=side.deadline)
        assert side.fault is not None

    @adapting
    @pytest.mark.parametrize(
        ("round_trip", "timeout"),
        [
            (0.0, SHORTEST_PONG_TIMEOUT),
            (0.125, SHORTEST_PONG_TIMEOUT),
            (0.25, 0.75),
            (1.5, 4.5),
            (2.0, PONG_TIMEOUT),
        ],
    )
    def test_the_next_may_take_three_round_trips(
        self, kind: Kind, dialect: str, round_trip: float, timeout: float
    ) -> None:
        side = measured(kind, dialect, round_trip)
        side.ping()
        assert side.deadline == side.now + timeout
        side.wake(at=side.deadline - 0.001)
        assert side.fault is None
        side.wake(at=side.deadline)
        assert side.fault is not None

    @adapting
    def test_only_the_last_round_trip_counts(self, kind: Kind, dialect: str) -> None:
        side = measured(kind, dialect, 0.25)
        for round_trip, timeout in ((0.625, 1.875), (1.0, 3.0), (0.01, 0.5), (0.25, 0.75)):
            side.ping()
            side.pong(at=side.now + round_trip)
            side.ping()
            assert side.deadline == side.now + timeout
            side.pong(at=side.now + round_trip)

    @fixed
    def test_earlier_dialects_always_wait_5_s(self, kind: Kind, dialect: str) -> None:
        side = measured(kind, dialect, 0.01)
        side.ping()
        assert side.deadline == side.now + PONG_TIMEOUT

    def test_a_client_says_how_long_it_waited(self) -> None:
        side = measured(ClientSide, "relay-v2", 0.25)
        side.ping()
        side.wake(at=side.deadline)
        assert side.fault == "the server did not answer a ping within 0.75 s"

    def test_packets_stand_in_for_a_pong_that_nobody_asked_for(self) -> None:
        side = ClientSide("relay-v2")
        side.ping()
        side.pong(at=side.now + 0.01)
        side.wake(at=side.now + PING_INTERVAL)
        assert side.deadline == side.now + SHORTEST_PONG_TIMEOUT
        packet = side.server.send(RecvDatagram(PEER, 0, b"x"))
        side.client.receive_data(packet, now=side.now + 0.1)
        side.wake(at=side.deadline)
        assert side.fault is None

    def test_a_pong_counts_once(self) -> None:
        side = RelaySide("relay-v2")
        side.ping()
        side.pong(at=side.now + 0.25)
        side.pong(at=side.now + 10.0)
        assert side.connection.stats.frames_ignored == 1
        side.ping()
        assert side.deadline == side.now + 0.75


class TestLateHost:
    @all_sides
    def test_a_pong_read_after_the_late_timer_counts(self, kind: Kind, dialect: str) -> None:
        side = measured(kind, dialect, 0.01)
        for _ in range(3):
            side.ping()
            timeout = side.deadline - side.now
            side.wake(at=side.deadline + 0.7)
            assert side.fault is None
            assert side.deadline == side.now + timeout
            side.pong(at=side.now)
            side.wake(at=side.now + timeout)
            assert side.fault is None

    @all_sides
    def test_a_pong_read_before_the_late_timer_counts(self, kind: Kind, dialect: str) -> None:
        side = measured(kind, dialect, 0.01)
        for _ in range(3):
            side.ping()
            side.pong(at=side.deadline + 0.7)
            side.wake(at=side.now)
            assert side.fault is None
            assert side.deadline > side.now + PONG_TIMEOUT  # nothing is awaited

    @all_sides
    def test_a_timer_that_is_hardly_late_finds_the_peer_dead(
        self, kind: Kind, dialect: str
    ) -> None:
        side = measured(kind, dialect, 0.01)
        side.ping()
        side.wake(at=side.deadline + LATE_AFTER / 2)
        assert side.fault is not None

    @all_sides
    def test_a_deadline_is_moved_once_per_ping(self, kind: Kind, dialect: str) -> None:
        side = measured(kind, dialect, 0.01)
        side.ping()
        side.wake(at=side.deadline + 1.0)
        side.pong(at=side.now)
        side.ping()
        side.wake(at=side.deadline + 1.0)
        assert side.fault is None
        side.wake(at=side.deadline + 1.0)
        assert side.fault is not None

    @all_sides
    def test_a_dead_connection_is_found_soon_after_a_sleep(self, kind: Kind, dialect: str) -> None:
        side = measured(kind, dialect, 0.01)
        side.ping()
        timeout = side.deadline - side.now
        side.wake(at=side.now + 60.0)
        assert side.fault is None
        assert side.deadline == side.now + timeout
        side.wake(at=side.deadline)
        assert side.fault is not None

    @pytest.mark.parametrize("kind", [ClientSide, RelaySide])
    def test_a_sleep_brings_no_second_ping_before_the_pong_to_the_first(self, kind: Kind) -> None:
        side = kind("relay-v2")
        side.ping()
        side.wake(at=side.now + HOURS)
        assert side.sent_pings() == []
        side.pong(at=side.now)
        assert side.fault is None
        side.ping()

    def test_the_time_that_the_host_was_away_makes_the_next_wait_longer(self) -> None:
        side = measured(ClientSide, "relay-v2", 0.01)
        side.ping()
        side.wake(at=side.now + 1.0)
        side.pong(at=side.now)
        side.ping()
        assert side.deadline == side.now + 3.0


class TestPauses:
    """A client over its rate limit is left unread, and its pong with it."""

    def paused(self) -> RelaySide:
        """Return a side that was pinged and paused at once. Its round trip is 0.01 s."""
        side = RelaySide("relay-v2", RateLimit(1_000, 2_000))
        side.ping()
        side.pong(at=side.now + 0.01)
        side.ping()
        (payload,) = pack_datagrams([bytes(1_400)])
        side.give(side.peer.packet_to(PEER, payload) * 4, at=side.now)
        side.wake(at=side.deadline)
        assert side.connection.is_paused
        assert side.deadline > side.now + SHORTEST_PONG_TIMEOUT
        return side

    def test_the_pong_may_take_the_time_out_anew_afterwards(self) -> None:
        side = self.paused()
        side.wake(at=side.deadline)
        assert not side.connection.is_paused
        assert side.deadline == side.now + SHORTEST_PONG_TIMEOUT
        side.pong(at=side.deadline)
        side.wake(at=side.now)
        assert side.fault is None

    def test_a_client_that_says_nothing_afterwards_is_dead(self) -> None:
        side = self.paused()
        side.wake(at=side.deadline)
        side.wake(at=side.deadline)
        assert side.fault == "no pong in time"

    def test_a_late_host_gives_it_more_time_afterwards_once(self) -> None:
        side = self.paused()
        side.wake(at=side.deadline)
        side.wake(at=side.deadline + 1.0)
        assert side.fault is None
        assert side.deadline == side.now + SHORTEST_PONG_TIMEOUT
        side.wake(at=side.deadline + 1.0)
        assert side.fault == "no pong in time"

    def test_a_pong_read_before_the_pause_counts(self) -> None:
        side = self.paused()
        side.pong(at=side.now)
        side.wake(at=side.deadline)
        assert not side.connection.is_paused
        assert side.deadline > side.now + PING_INTERVAL


class PartedWorld:
    """A relay and a client of it, which are parted as soon as the relay has answered its ping.

    :param hears_for: seconds for which another client sends to it before. So long it has no reason
        to ping, and the relay has.
    """

    def __init__(self, dialect: str, *, hears_for: float) -> None:
        self.network = Network(rng=random.Random(1))
        self.derper = SimulatedDerper(self.network.add_host("derp", ip="198.51.100.1"))
        self.derp_map = DerpMap([DerpNode(self.derper.url, dialect=dialect)])
        self.alice = self._run("alice", ALICE, "203.0.113.1")
        bob = self._run("bob", BOB, "203.0.113.2")
        self.network.run_for(1.0)
        until = self.network.now + hears_for
        while self.network.now < until:
            bob.give(self._send_to_alice)
            self.network.run_for(1.0)
        bob.stop()
        pings = self._pings_answered()
        self.network.run_until(lambda: self._pings_answered() > pings, limit=60.0)
        self.network.run_for(0.2)
        self.parted_at = self.network.now
        self.network.partition([self.alice.host], [self.derper.host])

    def noticed_by_client(self) -> float:
        """Return after how many seconds the client gives the connection up."""
        self.network.run_until(lambda: bool(self.alice.seen(DerpServerLost)), limit=60.0)
        return self.network.now - self.parted_at

    def noticed_by_relay(self) -> float:
        """Return after how many seconds the relay gives the client up."""
        self.network.run_until(lambda: not self.derper.clients, limit=60.0)
        return self.network.now - self.parted_at

    def _run(self, name: str, secret_key: SecretKey, ip: str) -> Program[DerpPool]:
        return self.network.add_host(name, ip=ip).run(
            lambda rng: DerpPool(secret_key=secret_key, derp_map=self.derp_map, rng=rng),
            begin=lambda pool, sockets, now: pool.start(now=now),
        )

    def _send_to_alice(self, pool: DerpPool, now: float) -> None:
        pool.send_datagrams(self.derper.url, ALICE.public, [b"hello"], now=now)

    def _pings_answered(self) -> int:
        return self.derper.derp.machine.stats.connections.pings_answered


class TestPartition:
    @relay_dialects
    def test_a_client_notices_soon_after_its_next_ping(self, dialect: str) -> None:
        world = PartedWorld(dialect, hears_for=0.0)
        assert PING_INTERVAL < world.noticed_by_client() < PING_INTERVAL + SHORTEST_PONG_TIMEOUT

    @relay_dialects
    def test_a_relay_that_has_pinged_before_notices_soon_after_its_next(self, dialect: str) -> None:
        world = PartedWorld(dialect, hears_for=60.0)
        shortest, longest = (PING_INTERVAL + jitter for jitter in PING_JITTER)
        noticed_after = world.noticed_by_relay()
        assert shortest < noticed_after < longest + SHORTEST_PONG_TIMEOUT < shortest + PONG_TIMEOUT
