"""The contract of the machine that joins all the others."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from iroh_proto.address import Address, DerpAddress, DerpUrl, NodeAddr, UdpAddress
from iroh_proto.derp.map import DerpMap
from iroh_proto.derp.relay import DerpServer
from iroh_proto.key import SecretKey
from iroh_proto.machine import TcpCloseRequested, TcpRequested
from iroh_proto.magicsock import DnsRequested, InterfacesRequested, Magicsock
from iroh_proto.paths.challenges import ChallengeRequested
from iroh_proto.paths.finder import PathFinder
from iroh_proto.testing.contract import Call, Flood, React, Run, Subject, contract_tests

OURS, THEIRS = (SecretKey.generate(random.Random(seed)) for seed in (301, 302))
PEER = THEIRS.public
URL = DerpUrl.from_str("http://derp.example")
VIA = DerpAddress(URL, PEER)
BOUND = UdpAddress("198.51.100.1", 9)
UDP = [UdpAddress("192.0.2.1", 1), UdpAddress("192.0.2.2", 2)]
PLACES: list[Address] = [VIA, *UDP]
QUIC = [b"\x40" + bytes(99), b"\x40" + bytes(9)]


class World:
    """A peer and a DERP server for one Magicsock."""

    def __init__(self) -> None:
        self.peer = PathFinder(secret_key=THEIRS, rng=random.Random(5))
        self.peer.set_reachability(ipv4_socket=True, ipv6_socket=True, ipv6_works=True, now=-2000.0)
        self.heard = 0
        self.server = DerpServer(secret_key=THEIRS, rng=random.Random(6))
        self.accepted: set[int] = set()
        self.asked = 0


def world_of(run: Run[Magicsock]) -> World:
    assert isinstance(run.context, World)
    return run.context


def peer_speaks(source: UdpAddress, *, dials: bool) -> React[Magicsock]:
    def act(run: Run[Magicsock]) -> list[Call]:
        world = world_of(run)
        peer = world.peer
        peer.set_own_addresses(UDP, now=run.now)
        if dials:
            peer.add_node_addr(OURS.public, [BOUND], derp_url=None, now=run.now)
            peer.route(OURS.public, now=run.now)
        batch, world.heard = run.sent[world.heard :], len(run.sent)
        peer.receive_datagrams([data for data in batch if data[:2] == b"TS"], BOUND, now=run.now)
        sent = [data for t in peer.datagrams_to_send() for data in t.datagrams]
        return [Call("receive_datagrams", [QUIC[0], *sent, *QUIC], source)]

    return React(f"the peer {'dials' if dials else 'answers'} from {source}", act)


def answer_host(run: Run[Magicsock]) -> list[Call]:
    world = world_of(run)
    events, world.asked = run.events[world.asked :], len(run.events)
    calls = []
    for event in events:
        match event:
            case InterfacesRequested():
                calls.append(Call("complete_interfaces", event.request_id, ["10.0.0.1"]))
            case DnsRequested():
                calls.append(Call("complete_dns", event.request_id, ["192.0.2.53"]))
            case TcpRequested():
                if TcpCloseRequested(tcp_id=event.tcp_id) not in run.events:
                    calls.append(Call("complete_tcp", event.tcp_id))
                    world.server.accept_tcp(event.tcp_id, now=run.now)
                    world.accepted.add(event.tcp_id)
            case _:
                pass
    return calls


def serve_derp(run: Run[Magicsock]) -> list[Call]:
    world, calls = world_of(run), []
    for tcp_id in sorted(world.accepted):
        data = run.machine.tcp_data_to_send(tcp_id)
        world.server.receive_tcp_data(tcp_id, data, now=run.now)
        while reply := world.server.tcp_data_to_send(tcp_id):
            calls.append(Call("receive_tcp_data", tcp_id, reply))
    return calls


def answer_challenges(run: Run[Magicsock]) -> list[Call]:
    asked = [event for event in run.events if isinstance(event, ChallengeRequested)]
    return [Call("complete_challenge", event.request_id) for event in asked]


MAGICSOCK: Subject[Magicsock] = Subject(
    factory=lambda rng: Magicsock(secret_key=OURS, derp_map=DerpMap.from_urls([URL]), rng=rng),
    begin=[Call("start", [BOUND])],
    operations=st.one_of(
        st.just(React("the host answers", answer_host)),
        st.sampled_from(UDP).map(lambda addr: peer_speaks(addr, dials=True)),
        st.sampled_from(UDP).map(lambda addr: peer_speaks(addr, dials=False)),
        st.lists(st.sampled_from(UDP), max_size=2).map(
            lambda addrs: Call(
                "add_node_addr", NodeAddr(PEER, derp_url=URL, direct_addresses=addrs)
            )
        ),
        st.sampled_from([PEER, *UDP]).map(lambda key: Call("send_payloads", key, QUIC)),
        st.sampled_from(PLACES).map(lambda addr: Call("receive_datagrams", QUIC, addr)),
        st.builds(
            Call,
            st.just("adopt"),
            st.sampled_from([*PLACES, URL]),
            st.just(PEER),
            st.sampled_from(["disco", "quic"]),
        ),
        st.sampled_from(PLACES).map(lambda addr: Call("confirm", PEER, addr)),
        st.just(React("the peer answers challenges", answer_challenges)),
        st.sampled_from(
            [
                Call("network_changed"),
                Call("resumed"),
                Call("forget", PEER),
                Call("close"),
            ]
        ),
    ),
    misuses=st.sampled_from(
        [
            Call("start", [BOUND]),
            Call("add_node_addr", NodeAddr(OURS.public)),
            Call("complete_interfaces", 10**9, []),
            Call("complete_dns", 10**9, []),
            Call("complete_challenge", 10**9),
            Call("complete_tcp", 10**9),
        ]
    ),
    floods=[
        Flood("payload to a peer", lambda number: Call("send_payloads", UDP[0], QUIC * 16)),
        Flood(
            "payload from everywhere",
            lambda number: Call(
                "receive_datagrams", QUIC * 8, UdpAddress(f"10.0.0.{number & 255}", number + 1)
            ),
            count=6000,
        ),
    ],
    garbage=st.just(b"") | st.binary().map(lambda data: b"\x3f" + data),
    context=World,
)

TestMagicsockContract = contract_tests(MAGICSOCK)
