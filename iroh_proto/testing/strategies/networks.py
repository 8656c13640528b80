"""Strategies for whole networks, and for what goes wrong in them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from hypothesis import strategies as st

from iroh_proto.testing.mishaps import (
    INTERNET,
    AddressChange,
    DnsDown,
    LinkDown,
    LinkTrouble,
    Mishap,
    Move,
    NatReboot,
    Partition,
    PowerCut,
    ProcessRestart,
    UdpBlocked,
)
from iroh_proto.testing.nat_matrix import KINDS
from iroh_proto.testing.network import Network
from iroh_proto.testing.shapes import NatShape, NetworkShape, NodeShape

NODE_NAMES = ("alice", "bob", "carol", "dave")
DERPER_NAMES = ("derp1", "derp2")
NATS_LIMIT = 3

SHARED_SUBNET = "192.168.0.0/24"
"""The addresses that many home routers give, so that hosts in different LANs have the same."""

SPARE_IPS = tuple(f"203.0.113.{number}" for number in range(200, 206))
"""Few, so that a host may get the address that another one had."""

T = TypeVar("T")


@st.composite
def network_shapes(
    draw: st.DrawFn, *, min_nodes: int = 2, max_nodes: int = 3, max_derpers: int = 2
) -> NetworkShape:
    """Return networks of a few nodes: public, behind NATs of every kind, and NATs behind NATs."""
    nats: list[NatShape] = []
    for number in range(draw(st.integers(0, NATS_LIMIT))):
        names = [INTERNET, *(nat.name for nat in nats)]
        kind, behind = draw(st.sampled_from(list(KINDS))), draw(st.sampled_from(names))
        # Behind a NAT of the same subnet a host could not tell which of the two is meant.
        subnet = SHARED_SUBNET if behind == INTERNET and draw(st.booleans()) else None
        nats.append(NatShape(f"nat{number + 1}", kind, behind, subnet))
    places = st.sampled_from([INTERNET, *(nat.name for nat in nats)])
    count = draw(st.integers(min_nodes, max_nodes))
    nodes = [NodeShape(name, draw(places), draw(st.booleans())) for name in NODE_NAMES[:count]]
    derpers = DERPER_NAMES[: draw(st.integers(1, max_derpers))]
    return NetworkShape(tuple(nats), tuple(nodes), derpers)


def mishaps(network: Network, shape: NetworkShape) -> st.SearchStrategy[Mishap]:
    """Return what may happen next to a network of this shape, as it is now."""
    nodes = [node.name for node in shape.nodes]
    nats, derpers = [nat.name for nat in shape.nats], list(shape.derpers)
    outer_nats = [nat.name for nat in shape.nats if nat.behind == INTERNET]
    node, derper = _one_of(nodes), _one_of(derpers)
    places = _one_of([*nodes, *nats, *derpers])
    ips = _one_of([ip for ip in SPARE_IPS if network.internet.owner_of(ip) is None])
    public = [name for name in nodes if network.hosts[name].attachments[0].segment.subnet is None]
    private = [name for name in nodes if name not in public]
    return st.one_of(
        places.map(LinkDown),
        st.builds(
            LinkTrouble,
            places,
            loss=st.sampled_from([0.0, 0.05, 0.3]),
            jitter=st.sampled_from([0.0, 0.02]),
            reordering=st.sampled_from([0.0, 0.1]),
            duplication=st.sampled_from([0.0, 0.1]),
        ).filter(lambda trouble: trouble.remedy is not None),
        st.builds(AddressChange, _one_of(public), ips, st.booleans()),
        st.builds(AddressChange, _one_of(private), is_told=st.booleans()),
        st.builds(Move, node, _one_of(nats)),
        st.builds(Move, node, st.just(INTERNET), ips),
        _one_of(nats).map(NatReboot),
        st.builds(NatReboot, _one_of(outer_nats), ips),
        st.builds(ProcessRestart, _one_of([*nodes, *derpers])),
        st.builds(PowerCut, _one_of([*nodes, *derpers])),
        st.builds(Partition, node, derper),
        st.builds(UdpBlocked, node),
        _two_of(nodes, lambda first, second: UdpBlocked(first, second)),
        _two_of(nodes, Partition),
        st.just(DnsDown()),
    )


@st.composite
def mishap_sequences(
    draw: st.DrawFn, shape: NetworkShape, *, max_size: int = 10
) -> list[Mishap]:
    """Return mishaps that can happen to a network of this shape one after the other."""
    network, remedies = shape.build(rng=random.Random(0)), list[Mishap]()
    sequence: list[Mishap] = []
    for _ in range(draw(st.integers(0, max_size))):
        choices = mishaps(network, shape)
        mishap = draw(choices | st.sampled_from(remedies) if remedies else choices)
        mishap.apply(network)
        sequence.append(mishap)
        if mishap in remedies:
            remedies.remove(mishap)
        elif mishap.remedy is not None:
            remedies.append(mishap.remedy)
    return sequence


def _one_of(values: Sequence[T]) -> st.SearchStrategy[T]:
    return st.sampled_from(values) if values else st.nothing()


def _two_of(
    names: Sequence[str], mishap: Callable[[str, str], Mishap]
) -> st.SearchStrategy[Mishap]:
    pairs = st.permutations(names).map(lambda some: mishap(some[0], some[1]))
    return pairs if len(names) > 1 else st.nothing()
