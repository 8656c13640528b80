"""How much a large network costs: thousands of endpoints, most of them idle, for hours.

::

    report = ScaleRun(nodes=1_000, derpers=10, pairs=50, seed=1).run(hours=1.0)

Each endpoint has its home at one of the derpers and keeps it, and its own addresses, up to date. A
few pairs dial each other now and then, send something and get it back, and hang up.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from iroh_anyio.testing.endpoint import SimulatedEndpoint
from iroh_proto.address import NodeAddr
from iroh_proto.derp.map import DerpMap
from iroh_proto.testing.derper import SimulatedDerper
from iroh_proto.testing.nat import PORT_RESTRICTED
from iroh_proto.testing.network import Network

ALPN = b"scale/0"

SETTLE_TIME = 60.0
"""Seconds in which endpoints are started one after the other and find their homes; not counted."""

TALK_INTERVAL = (60.0, 300.0)
"""Seconds, from and to, between two talks of a pair."""

TALK_SIZE = 10_000
"""Bytes that are sent, and sent back."""

TALK_TIME = 10.0
"""Seconds from the dial until the connection is closed."""

LATENCY = (0.005, 0.05)
"""Seconds, from and to, that the cable of a host takes."""

DERPERS_LIMIT = 250
NODES_LIMIT = 60_000

_HOUR = 3_600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleReport:
    """What happened in the counted time.

    :ivar seconds: virtual seconds.
    :ivar talks: talks that were begun.
    :ivar answered: talks whose bytes came back.
    :ivar became_direct: talks whose path was direct at the end.
    :ivar at_home: endpoints that had their home at the end.
    :ivar idle_nodes: endpoints that talk to nobody.
    :ivar idle_datagrams: UDP datagrams that an idle endpoint sent, per second.
    :ivar idle_inputs: times that an idle endpoint was given something to do, per second: packets,
        TCP bytes, answers and timers.
    :ivar idle_wakeups: those of them that were timers.
    """

    nodes: int
    derpers: int
    pairs: int
    seconds: float
    talks: int
    answered: int
    became_direct: int
    at_home: int
    idle_nodes: int
    idle_datagrams: float
    idle_inputs: float
    idle_wakeups: float


class ScaleRun:
    """A network of endpoints and derpers, ready to :meth:`run`.

    The first ``2 * pairs`` endpoints stand behind NATs of their own and talk; the others are idle.

    :param nodes: endpoints, at least two for each pair.
    :param derpers: homes among which they are spread.
    :param pairs: pairs of endpoints that talk.
    """

    def __init__(self, *, nodes: int, derpers: int, pairs: int, seed: int = 0) -> None:
        if not 0 <= 2 * pairs <= nodes <= NODES_LIMIT or not 0 < derpers <= DERPERS_LIMIT:
            raise ValueError(
                f"{nodes} nodes, {derpers} derpers and {pairs} pairs: at most {NODES_LIMIT} nodes "
                f"and {DERPERS_LIMIT} derpers, two nodes to a pair"
            )
        self._rng = random.Random(seed)
        self.network = Network(rng=self._rng)
        self._has_ended = False
        self.derpers = [self._add_derper(number) for number in range(derpers)]
        self.endpoints: list[SimulatedEndpoint] = []
        for number in range(nodes):
            delay = SETTLE_TIME / 2 * number / nodes
            self.network.clock.call_later(delay, self._adder(number, is_idle=number >= 2 * pairs))
        self._pairs = pairs
        self._talks: list[_Talk] = []
        self._nodes = nodes

    def run(
        self, *, hours: float, on_progress: Callable[[float], None] | None = None
    ) -> ScaleReport:
        """Let everybody find a home, then let time pass, and say what happened.

        :param on_progress: called now and then with the share of the time that passed.
        """
        self.network.run_for(SETTLE_TIME)
        idle = self.endpoints[2 * self._pairs :]
        before = [_Load.of(endpoint) for endpoint in idle]
        for number in range(self._pairs):
            self._talk_later(*self.endpoints[2 * number : 2 * number + 2])
        steps = 100
        for step in range(steps):
            self.network.run_for(hours * _HOUR / steps)
            if on_progress is not None:
                on_progress((step + 1) / steps)
        self._has_ended = True
        self.network.run_for(TALK_TIME)
        loads = [
            _Load.of(endpoint).since(earlier)
            for endpoint, earlier in zip(idle, before, strict=True)
        ]
        share = 1.0 / (max(1, len(idle)) * hours * _HOUR)
        return ScaleReport(
            nodes=self._nodes,
            derpers=len(self.derpers),
            pairs=self._pairs,
            seconds=hours * _HOUR,
            talks=len(self._talks),
            answered=sum(talk.is_answered for talk in self._talks),
            became_direct=sum(talk.was_direct for talk in self._talks),
            at_home=self._count_at_home(),
            idle_nodes=len(idle),
            idle_datagrams=share * sum(load.datagrams for load in loads),
            idle_inputs=share * sum(load.inputs for load in loads),
            idle_wakeups=share * sum(load.wakeups for load in loads),
        )

    def _count_at_home(self) -> int:
        clients = {derper.url: set(derper.clients) for derper in self.derpers}
        homes = [(one.machine.magicsock.home_derp, one.node_id) for one in self.endpoints]
        return sum(home is not None and node_id in clients[home] for home, node_id in homes)

    def _add_derper(self, number: int) -> SimulatedDerper:
        ip = f"198.51.{100 + number // 250}.{number % 250 + 1}"
        host = self.network.add_host(f"derp{number}", ip=ip, latency=self._latency())
        return SimulatedDerper(host, keeps=False)

    def _adder(self, number: int, *, is_idle: bool) -> Callable[[], None]:
        return lambda: self.endpoints.append(self._add_endpoint(number, is_idle=is_idle))

    def _add_endpoint(self, number: int, *, is_idle: bool) -> SimulatedEndpoint:
        network, home = self.network, number % len(self.derpers)
        ip = f"203.{number // 62_500}.{number // 250 % 250}.{number % 250 + 1}"
        if is_idle:
            host = network.add_host(f"node{number}", ip=ip, latency=self._latency())
        else:
            router = network.add_nat(
                f"nat{number}",
                ip=ip,
                kind=PORT_RESTRICTED,
                subnet="192.168.1.0/24",
                latency=self._latency(),
            )
            host = network.add_host(f"node{number}", router.inside)
        order = [*self.derpers[home:], *self.derpers[:home]]
        return SimulatedEndpoint(
            host,
            alpns=[ALPN],
            derp_map=DerpMap(derper.derp_node for derper in order),
            serve=_echo,
            keeps=False,
        )

    def _latency(self) -> float:
        return self._rng.uniform(*LATENCY)

    def _talk_later(self, dialler: SimulatedEndpoint, dialled: SimulatedEndpoint) -> None:
        def talk() -> None:
            if not self._has_ended:
                self._talks.append(_Talk(dialler, dialled, self._rng.randbytes(TALK_SIZE)))
                self._talk_later(dialler, dialled)

        self.network.clock.call_later(self._rng.uniform(*TALK_INTERVAL), talk)


class _Talk:
    """One dial, one question, its answer if it comes, and the end."""

    def __init__(
        self, dialler: SimulatedEndpoint, dialled: SimulatedEndpoint, question: bytes
    ) -> None:
        self.is_answered = False
        self.was_direct = False
        self._dialler = dialler
        self._dialled = dialled
        self._question = question
        addr = NodeAddr(dialled.node_id, derp_url=dialled.machine.magicsock.home_derp)
        self._stream_id: int | None = None
        self._connection = dialler.connect(addr, alpn=ALPN, on_established=self._ask)
        dialler.host.network.clock.call_later(TALK_TIME, self._end)

    def _ask(self, connection: int) -> None:
        self._stream_id = self._dialler.send(connection, self._question)

    def _end(self) -> None:
        if self._stream_id is not None:
            answer = self._dialler.received.get((self._connection, self._stream_id), b"")
            self.is_answered = bytes(answer) == self._question
        self.was_direct = self._dialler.path_to(self._dialled).kind == "direct"
        self._dialler.close_connection(self._connection)


class _Load(NamedTuple):
    """What an endpoint did so far."""

    datagrams: int
    inputs: int
    wakeups: int

    @classmethod
    def of(cls, endpoint: SimulatedEndpoint) -> _Load:
        program = endpoint.program
        return cls(endpoint.machine.magicsock.stats.udp_sent, program.inputs, program.wakeups)

    def since(self, earlier: _Load) -> _Load:
        return _Load(*(now - then for now, then in zip(self, earlier, strict=True)))


def _echo(question: bytes) -> bytes:
    return question
