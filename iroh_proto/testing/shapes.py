"""Whole networks as values, and what theory says of the pairs in them.

A :class:`NetworkShape` says which NATs there are and which node is behind which; it can be drawn,
printed and built again::

    shape = NetworkShape(
        nats=(NatShape("carrier", "EI/APD"), NatShape("home", "Linux", behind="carrier")),
        nodes=(NodeShape("alice", behind="home"), NodeShape("bob", has_ipv6=True)),
        derpers=("derp1",),
    )
    network = shape.build(rng=random.Random(7))
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from iroh_proto.testing.mishaps import INTERNET
from iroh_proto.testing.nat import Dependence, NatKind
from iroh_proto.testing.nat_matrix import KINDS, is_steady, predict
from iroh_proto.testing.network import Host, Network, Router
from iroh_proto.testing.routers import routers_above
from iroh_proto.testing.topology import Attachment, Segment

NAT_IPS = "203.0.113"
NODE_IPS = "198.51.100"
NODE_IPS6 = "2001:db8:"
DERPER_IPS = "192.0.2"
LINK_LATENCY = 0.01
"""Seconds one way."""


@dataclass(frozen=True, slots=True)
class NatShape:
    """A NAT; ``kind`` is a name in :data:`~iroh_proto.testing.nat_matrix.KINDS`.

    :ivar behind: the NAT that its outer address belongs to.
    :ivar subnet: the addresses of its LAN, which may be those of another; its own unless given.
    """

    name: str
    kind: str
    behind: str = INTERNET
    subnet: str | None = None


@dataclass(frozen=True, slots=True)
class NodeShape:
    """A host with one interface, behind a NAT or public; with IPv6 there is a public one more."""

    name: str
    behind: str = INTERNET
    has_ipv6: bool = False


@dataclass(frozen=True, slots=True)
class NetworkShape:
    """NATs, each after the one it is behind, nodes, and hosts for DERP servers.

    A DERP server's host can be looked up as its name with ``.example`` behind.
    """

    nats: tuple[NatShape, ...] = ()
    nodes: tuple[NodeShape, ...] = ()
    derpers: tuple[str, ...] = ()

    def build(self, *, rng: random.Random, start: float = 0.0) -> Network:
        """Make the network, with nothing running in it."""
        network = Network(rng=rng, start=start)
        for number, nat in enumerate(self.nats, 1):
            is_outer = nat.behind == INTERNET
            network.add_nat(
                nat.name,
                kind=KINDS[nat.kind],
                ip=f"{NAT_IPS}.{number}" if is_outer else None,
                subnet=nat.subnet,
                upstream=_segment(network, nat.behind),
                latency=LINK_LATENCY,
            )
        for number, node in enumerate(self.nodes, 1):
            segment = _segment(network, node.behind)
            ip = f"{NODE_IPS}.{number}" if node.behind == INTERNET else None
            host = network.add_host(node.name, segment, ip=ip, latency=LINK_LATENCY)
            if node.has_ipv6:
                host.attach(network.internet, f"{NODE_IPS6}:{number}", latency=LINK_LATENCY)
        for number, name in enumerate(self.derpers, 1):
            ip = f"{DERPER_IPS}.{number}"
            network.add_host(name, ip=ip, latency=LINK_LATENCY)
            network.set_name(f"{name}.example", [ip])
        return network


def expects_direct(network: Network, first: Host, second: Host) -> bool | None:
    """Say whether two nodes can become direct as hosts and NATs are placed now.

    ``None`` where theory does not say: behind one outer NAT it depends on hairpins, behind a
    firewall on its rules. A NAT that overloads ports shows one port of a socket only where nobody
    else has that port: no other host, nor a flow that a host left behind with its old address.
    """
    if _has_ipv6(first) and _has_ipv6(second):
        return True
    ends = [_first_ipv4(host) for host in (first, second)]
    if ends[0].segment is ends[1].segment:
        return True
    ways = [list(routers_above(end.segment)) for end in ends]
    routers = [router for way in ways for router in way]
    if set(ways[0]) & set(ways[1]) or any(router.firewall for router in routers):
        return None
    if any(_overloads(router) and _is_contended(network, router) for router in routers):
        return None
    return predict(_stacked(ways[0]), _stacked(ways[1]))


def _stacked(routers: Sequence[Router]) -> NatKind:
    """Return the one kind of NAT that is like all of these together."""
    kinds = [router.nat.kind for router in routers if router.nat is not None]
    mappings = [kind.mapping for kind in kinds if not is_steady(kind)]
    return NatKind(
        mapping=_strictest(mappings),
        filtering=_strictest([kind.filtering for kind in kinds]),
    )


def _strictest(dependences: Sequence[Dependence]) -> Dependence:
    order = list(Dependence)
    return max(dependences, key=order.index, default=Dependence.ENDPOINT_INDEPENDENT)


def _overloads(router: Router) -> bool:
    return router.nat is not None and router.nat.kind.overloads_ports


def _is_contended(network: Network, router: Router) -> bool:
    behind = [
        host
        for host in network.hosts.values()
        if any(router in routers_above(end.segment) for end in host.attachments)
    ]
    displaces = router.nat is not None and router.nat.displaces_ports(network.now)
    return len(behind) > 1 or displaces


def _first_ipv4(host: Host) -> Attachment:
    return next(end for end in host.attachments if ":" not in end.ip)


def _has_ipv6(host: Host) -> bool:
    return any(":" in ip for ip in host.ips)


def _segment(network: Network, name: str) -> Segment:
    return network.internet if name == INTERNET else network.routers[name].inside
