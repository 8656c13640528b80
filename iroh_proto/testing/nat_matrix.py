"""Whether two nodes behind NATs of every pair of kinds become direct, and how soon.

One run is a whole simulated network: a DERP and STUN server, two NATs, and behind each a
:class:`~iroh_proto.magicsock.Magicsock` that knows of the other only its id and its DERP server.
The first sends payload, the other answers, and the rest is up to them. :func:`predict` says what
the theory of hole punching expects, :func:`run_once` what happened, and :class:`Cell` holds the
runs of one pair beside the prediction::

    for cell in run_matrix(seeds=range(200)):
        print(cell.left, cell.right, cell.share_direct, cell.median_time, cell.agrees)
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from iroh_proto.address import DerpUrl, NodeAddr, UdpAddress
from iroh_proto.derp.map import DerpMap
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.magicsock import Magicsock, ReceivedPayload
from iroh_proto.paths.select import TRUST_TIME
from iroh_proto.testing.derper import SimulatedDerper
from iroh_proto.testing.nat import PORT_OVERLOADING, Dependence, NatKind
from iroh_proto.testing.network import Network, Program, Segment
from iroh_proto.testing.timeline import Timeline
from iroh_proto.trace.tape import Recipe

TIME_LIMIT = 20.0
"""Seconds from the first payload in which a pair has to become direct.

Four searches, which come every 5 s: what did not work by then will not.
"""

HOLD_TIME = TRUST_TIME + 0.5
"""Seconds for which a pair has to stay direct to count: longer than any proof holds by itself."""

SETTLE_LIMIT = 10.0
"""Seconds in which nodes find their home and their own addresses."""

IDLE_TIME = 6.0
"""Seconds, at most, between that and the first payload: more than the heartbeat takes, so that
runs begin at any place in it."""

PAYLOAD_INTERVAL = 0.25
"""Seconds between two payloads of a node."""

LATENCY = (0.002, 0.08)
"""Seconds, from and to, that a NAT's way to the internet takes; drawn for each run and NAT."""

JITTER = 0.002
"""Seconds by which datagrams may be late, so that now and then one overtakes another."""

URL = DerpUrl.from_str("http://derp.example/")
DERP_IP = "198.51.100.1"
OUTER_IPS = ("203.0.113.1", "203.0.113.2")

# What stands for QUIC: a first byte that is QUIC's, and the sender's id instead of a handshake.
_PAYLOAD_HEAD = b"\x41"

_SHORT: Final[Mapping[Dependence, str]] = {
    Dependence.ENDPOINT_INDEPENDENT: "EI",
    Dependence.ADDRESS_DEPENDENT: "AD",
    Dependence.ADDRESS_AND_PORT_DEPENDENT: "APD",
}

KINDS: Final[Mapping[str, NatKind]] = MappingProxyType(
    {
        f"{_SHORT[mapping]}/{_SHORT[filtering]}": NatKind(mapping=mapping, filtering=filtering)
        for mapping in Dependence
        for filtering in Dependence
    }
    | {"Linux": PORT_OVERLOADING}
)
"""The kinds by name: mapping/filtering in the words of RFC 4787, each endpoint-independent (EI),
address-dependent (AD) or address-and-port-dependent (APD), with outer ports by chance; and Linux's
masquerading, where the preserved port matters.

Preserving ports does not matter to the others. Where the mapping is endpoint-independent, STUN
tells the outer port whatever it is; where it depends on the remote, the mapping towards the STUN
server takes the port, and the one towards the peer gets another.
"""


def predict(left: NatKind, right: NatKind) -> bool:
    """Say whether nodes behind these NATs can become direct, without guessing ports.

    Each is told by the other the address that a STUN server saw, and sends to it. A NAT is
    *steady* if the peer is met from that same address.

    * Both steady: each sends to where the other sends from. Whatever the filters, both are open
      as soon as both have sent.
    * One steady: it is sent to from a port that nobody could foretell. A filter by address and
      port stops that; any other has been opened by the steady side's own packets to the other's
      address, and its answer goes to where the packet came from, which every filter lets in.
      The other way round it is not better: what the steady side sends gets in only where anybody
      does, and is answered from that unforetold port.
    * None steady: the first packet arrives only at a NAT that lets in anybody, since the told
      address has a mapping of its own that is used towards the STUN server alone. The answer comes
      from an unforetold port, so that the first sender's filter must not be by address and port.
      Once both ends have seen where the other's packets come from, the same holds for all that
      follows.
    """
    steady = [kind for kind in (left, right) if is_steady(kind)]
    if len(steady) == 2:
        return True
    if len(steady) == 1:
        return not _filters_ports(steady[0])
    return any(
        _lets_in_anybody(host) and not _filters_ports(guest)
        for host, guest in ((left, right), (right, left))
    )


def is_steady(kind: NatKind) -> bool:
    """Say whether a host alone behind such a NAT is met from one address by everybody."""
    if kind.mapping is Dependence.ENDPOINT_INDEPENDENT:
        return True
    return kind.preserves_ports and kind.overloads_ports


def _filters_ports(kind: NatKind) -> bool:
    return kind.filtering is Dependence.ADDRESS_AND_PORT_DEPENDENT


def _lets_in_anybody(kind: NatKind) -> bool:
    return kind.filtering is Dependence.ENDPOINT_INDEPENDENT and not kind.overloads_ports


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What became of the runs of one pair of kinds.

    :ivar left: the name of the kind that the node is behind which sends first.
    :ivar right: the name of the other's.
    :ivar expects_direct: what :func:`predict` says.
    :ivar times: for each seed the virtual seconds from the first payload until both nodes were
        direct, and stayed so; ``None`` if they did not get there.
    """

    left: str
    right: str
    expects_direct: bool
    times: tuple[float | None, ...]

    @property
    def direct_times(self) -> list[float]:
        """The times of the runs that became direct."""
        return [time for time in self.times if time is not None]

    @property
    def share_direct(self) -> float:
        """The share of runs that became direct, from 0 to 1."""
        return len(self.direct_times) / len(self.times)

    @property
    def median_time(self) -> float | None:
        """Virtual seconds until half of those runs were direct, ``None`` if none was."""
        times = self.direct_times
        return statistics.median(times) if times else None

    @property
    def agrees(self) -> bool:
        """Whether each single run did what theory expects."""
        return self.share_direct == (1.0 if self.expects_direct else 0.0)


def run_matrix(*, seeds: Iterable[int], kinds: Mapping[str, NatKind] = KINDS) -> Iterator[Cell]:
    """Run every pair of kinds, each in both roles, with each of the seeds; row by row."""
    seeds = tuple(seeds)
    for left in kinds:
        for right in kinds:
            yield run_cell(left, right, seeds=seeds, kinds=kinds)


def run_cell(
    left: str, right: str, *, seeds: Iterable[int], kinds: Mapping[str, NatKind] = KINDS
) -> Cell:
    """Run one pair of kinds with each of the seeds, of which there is one at least."""
    return Cell(
        left=left,
        right=right,
        expects_direct=predict(kinds[left], kinds[right]),
        times=tuple(run_once(kinds[left], kinds[right], seed=seed) for seed in seeds),
    )


def run_once(left: NatKind, right: NatKind, *, seed: int) -> float | None:
    """Run one pair; return the seconds until both were direct for good, or ``None``."""
    return NatPair(left, right, seed=seed).run()


class NatPair:
    """Two nodes behind NATs and a DERP server, ready to :meth:`run`.

    ``network``, ``first`` and ``second`` are there to look at, before and after.

    :param recorded: whether to write down what happens, in ``timeline``.
    """

    def __init__(self, left: NatKind, right: NatKind, *, seed: int, recorded: bool = False) -> None:
        rng = random.Random(seed)
        self.network = Network(rng=rng)
        self.timeline = Timeline(self.network) if recorded else None
        self._idle_time = rng.uniform(0.0, IDLE_TIME)
        self._add_server(rng)
        self.first = self._add_node("first", left, OUTER_IPS[0], rng)
        self.second = self._add_node("second", right, OUTER_IPS[1], rng)

    def run(self) -> float | None:
        """Let them meet; return the seconds until both were direct for good, or ``None``."""
        network, nodes = self.network, (self.first, self.second)
        network.run_until(lambda: all(node.is_ready for node in nodes), limit=SETTLE_LIMIT)
        network.run_for(self._idle_time)
        start = network.now
        self.first.dial(self.second.node_id)
        direct_since: float | None = None
        while network.now < start + TIME_LIMIT or direct_since is not None:
            network.run_for(PAYLOAD_INTERVAL)
            since = self._direct_since()
            if since is None and network.now >= start + TIME_LIMIT:
                return None
            direct_since = since
            if direct_since is not None and network.now >= direct_since + HOLD_TIME:
                return direct_since - start
            for node in nodes:
                node.talk()
        return None

    def _direct_since(self) -> float | None:
        times = [node.direct_since for node in (self.first, self.second)]
        known = [time for time in times if time is not None]
        return max(known) if len(known) == len(times) else None

    def _add_server(self, rng: random.Random) -> None:
        host = self.network.add_host("derp", ip=DERP_IP, latency=rng.uniform(*LATENCY))
        SimulatedDerper(host, url=URL, secret_key=SecretKey.generate(rng))

    def _add_node(self, name: str, kind: NatKind, ip: str, rng: random.Random) -> Node:
        latency = rng.uniform(*LATENCY)
        router = self.network.add_nat(f"{name} nat", kind=kind, ip=ip, latency=latency)
        router.link.jitter = JITTER
        return Node(self.network, name, router.inside, ip, SecretKey.generate(rng))


class Node:
    """A Magicsock behind a NAT, and on top of it an application that answers who talks to it."""

    def __init__(
        self, network: Network, name: str, lan: Segment, outer_ip: str, secret_key: SecretKey
    ) -> None:
        self.secret_key = secret_key
        self.node_id = secret_key.public
        self.peer: NodeId | None = None
        self.direct_since: float | None = None
        self._outer_ip = outer_ip
        self._network = network
        self._payload = _PAYLOAD_HEAD + self.node_id
        self._has_adopted = False
        derp_map = DerpMap.from_urls([URL])
        self.program: Program[Magicsock] = network.add_host(name, lan, latency=0.001).run(
            Recipe(Magicsock, secret_key=secret_key, derp_map=derp_map),
            name="magicsock",
            udp=[UdpAddress("0.0.0.0", 0)],
            begin=lambda machine, bound, now: machine.start(bound, now=now),
            on_event=lambda event: self._look(),
            on_payload=self._take,
        )

    @property
    def is_ready(self) -> bool:
        """Whether the node has a home and knows its outer address."""
        sock = self.program.machine
        outer = any(addr.ip == self._outer_ip for addr in sock.local_addresses)
        return outer and sock.home_derp is not None

    def dial(self, peer: NodeId) -> None:
        """Begin to talk to a peer of which nothing is known but its DERP server."""
        addr = NodeAddr(peer, derp_url=URL, direct_addresses=())
        self.program.give(lambda sock, now: sock.add_node_addr(addr, now=now))
        self.peer = peer
        self.talk()

    def talk(self) -> None:
        """Send the peer a payload, if there is one."""
        peer = self.peer
        if peer is not None:
            self.program.give(lambda sock, now: sock.send_payloads(peer, [self._payload], now=now))

    def _look(self) -> None:
        """Note since when the path is direct."""
        if self.peer is None or self.program.machine.path_info(self.peer).kind != "direct":
            self.direct_since = None
        elif self.direct_since is None:
            self.direct_since = self._network.now

    def _take(self, item: object) -> None:
        assert isinstance(item, ReceivedPayload)
        sock, now = self.program.machine, self._network.now
        peer = NodeId(item.datagrams[0][1:])
        if not self._has_adopted:
            self._has_adopted, self.peer = True, peer
            sock.adopt(item.source, peer, "disco", now=now)
        else:
            sock.confirm(peer, item.source, now=now)
