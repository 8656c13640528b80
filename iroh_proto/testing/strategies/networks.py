"""Strategies for whole networks, and for what goes wrong in them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

from hypothesis import strategies as st

from iroh_proto.testing.firewall import OUTBOUND_ONLY, UDP_BLOCKED, WEB_ONLY
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
    PortalClosed,
    PowerCut,
    ProcessRestart,
    Sleep,
    UdpBlocked,
    Walled,
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


@st.composite
def network_shapes(
    draw: st.DrawFn, *, min_nodes: int = 2, max_nodes: int = 3, max_derpers: int = 2
) -> NetworkShape:
    """Return networks of a few nodes: public, behind NATs of every kind, and NATs behind NATs."""
    nats: list[NatShape] = []
    for number in range(draw(st.sampled_from([2, 1, 0, *range(2, NATS_LIMIT + 1)]))):
        names = [INTERNET, *(nat.name for nat in nats)]
        kind, behind = draw(st.sampled_from(list(KINDS))), draw(st.sampled_from(names))
        # Behind a NAT of the same subnet a host could not tell which of the two is meant.
        subnet = SHARED_SUBNET if behind == INTERNET and draw(st.booleans()) else None
        nats.append(NatShape(f"nat{number + 1}", kind, behind, subnet))
    places = st.sampled_from([*(nat.name for nat in nats), INTERNET])
    count = draw(st.integers(min_nodes, max_nodes))
    nodes = [NodeShape(name, draw(places), draw(st.booleans())) for name in NODE_NAMES[:count]]
    derpers = DERPER_NAMES[: draw(st.integers(1, max_derpers))]
    return NetworkShape(tuple(nats), tuple(nodes), derpers)


@st.composite
def mishaps(draw: st.DrawFn, network: Network, shape: NetworkShape) -> Mishap:
    """Return what may happen next to a network of this shape, as it is now."""
    # One choice after another: strategies for all that may happen are slow to make.
    situation = _Situation(network, shape)
    return draw(st.sampled_from(_KINDS))(draw, situation)


@st.composite
def mishap_sequences(draw: st.DrawFn, shape: NetworkShape, *, max_size: int = 10) -> list[Mishap]:
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


class _Situation:
    """What there is to choose from."""

    def __init__(self, network: Network, shape: NetworkShape) -> None:
        self.nodes = [node.name for node in shape.nodes]
        self.nats = [nat.name for nat in shape.nats]
        self.outer_nats = [nat.name for nat in shape.nats if nat.behind == INTERNET]
        self.derpers = list(shape.derpers)
        self.free_ips = [ip for ip in SPARE_IPS if network.internet.owner_of(ip) is None]
        self.public = [
            name
            for name in self.nodes
            if network.hosts[name].attachments[0].segment is network.internet
        ]
        self.private = [name for name in self.nodes if name not in self.public]


def _cut_link(draw: st.DrawFn, now: _Situation) -> Mishap:
    return LinkDown(draw(st.sampled_from([*now.nodes, *now.nats, *now.derpers])))


def _trouble_link(draw: st.DrawFn, now: _Situation) -> Mishap:
    at = draw(st.sampled_from([*now.nodes, *now.nats, *now.derpers]))
    return draw(_TROUBLES)(at)


def _change_private_address(draw: st.DrawFn, now: _Situation) -> Mishap:
    if not now.private:
        return _change_public_address(draw, now)
    return AddressChange(draw(st.sampled_from(now.private)), is_told=draw(st.booleans()))


def _change_public_address(draw: st.DrawFn, now: _Situation) -> Mishap:
    holders = [*now.public, *now.outer_nats]
    if not (holders and now.free_ips):
        return _restart_process(draw, now)
    holder, ip = draw(st.sampled_from(holders)), draw(st.sampled_from(now.free_ips))
    if holder in now.outer_nats:
        return NatReboot(holder, ip)
    return AddressChange(holder, ip, is_told=draw(st.booleans()))


def _move(draw: st.DrawFn, now: _Situation) -> Mishap:
    places = [*now.nats, *([INTERNET] if now.free_ips else [])]
    if not places:
        return _restart_process(draw, now)
    host, to = draw(st.sampled_from(now.nodes)), draw(st.sampled_from(places))
    return Move(host, to, draw(st.sampled_from(now.free_ips)) if to == INTERNET else None)


def _reboot_nat(draw: st.DrawFn, now: _Situation) -> Mishap:
    if not now.nats:
        return _restart_process(draw, now)
    return NatReboot(draw(st.sampled_from(now.nats)))


def _restart_process(draw: st.DrawFn, now: _Situation) -> Mishap:
    return ProcessRestart(draw(st.sampled_from([*now.nodes, *now.derpers])))


def _cut_power(draw: st.DrawFn, now: _Situation) -> Mishap:
    return PowerCut(draw(st.sampled_from([*now.nodes, *now.derpers])))


def _part(draw: st.DrawFn, now: _Situation) -> Mishap:
    first = draw(st.sampled_from(now.nodes))
    others = [name for name in (*now.nodes, *now.derpers) if name != first]
    return Partition(first, draw(st.sampled_from(others)))


def _block_udp(draw: st.DrawFn, now: _Situation) -> Mishap:
    host = draw(st.sampled_from(now.nodes))
    others = [None, *(name for name in (*now.nodes, *now.derpers) if name != host)]
    return UdpBlocked(host, draw(st.sampled_from(others)))


def _cut_dns(draw: st.DrawFn, now: _Situation) -> Mishap:
    return DnsDown()


def _sleep(draw: st.DrawFn, now: _Situation) -> Mishap:
    return Sleep(draw(st.sampled_from([*now.nodes, *now.derpers])))


def _wall(draw: st.DrawFn, now: _Situation) -> Mishap:
    if not now.nats:
        return _block_udp(draw, now)
    return Walled(draw(st.sampled_from(now.nats)), draw(_RULES))


def _close_portal(draw: st.DrawFn, now: _Situation) -> Mishap:
    if not now.nats:
        return _cut_dns(draw, now)
    return PortalClosed(draw(st.sampled_from(now.nats)))


_KINDS: Sequence[Callable[[st.DrawFn, _Situation], Mishap]] = (
    _cut_link,
    _trouble_link,
    _change_private_address,
    _change_public_address,
    _move,
    _reboot_nat,
    _restart_process,
    _cut_power,
    _part,
    _block_udp,
    _cut_dns,
    _sleep,
    _wall,
    _close_portal,
)

_RULES = st.sampled_from([OUTBOUND_ONLY, UDP_BLOCKED, WEB_ONLY])

_TROUBLES = st.sampled_from(
    [
        partial(LinkTrouble, loss=0.05),
        partial(LinkTrouble, loss=0.3, jitter=0.02),
        partial(LinkTrouble, jitter=0.02, reordering=0.1),
        partial(LinkTrouble, duplication=0.1, loss=0.05),
    ]
)
