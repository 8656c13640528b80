"""The contract of the machine that joins all the others."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from hypothesis import strategies as st

from iroh_proto.address import Address, DerpAddress, DerpUrl, NodeAddr, UdpAddress
from iroh_proto.derp.frames import pack_datagrams
from iroh_proto.derp.map import DerpMap
from iroh_proto.errors import DecodeError
from iroh_proto.key import SecretKey
from iroh_proto.machine import Transmit
from iroh_proto.magicsock import (
    DnsRequested,
    InterfacesRequested,
    Magicsock,
)
from iroh_proto.paths.challenges import ChallengeRequested
from iroh_proto.paths.finder import PathFinder
from iroh_proto.stun.message import decode_binding_request, encode_binding_response
from iroh_proto.testing.contract import (
    Call,
    Flood,
    React,
    Run,
    Subject,
    contract_tests,
)
from tests.proto.contract_runs import begun
from tests.proto.derp_cloud import THEIRS, Cloud, cloud_operations, converse, settle

OURS = SecretKey.generate(random.Random(301))
PEER = THEIRS.public
URL = DerpUrl.from_str("http://derp.example")
VIA = DerpAddress(URL, PEER)
BOUND, SEEN = UdpAddress("198.51.100.1", 9), UdpAddress("203.0.113.9", 99)
STUN_SERVER = UdpAddress("192.0.2.53", 3478)
UDP = [UdpAddress("192.0.2.1", 1), UdpAddress("192.0.2.2", 2)]
PLACES: list[Address] = [VIA, *UDP]
QUIC = [b"\x40" + bytes(99), b"\x40" + bytes(9)]


class World(Cloud):
    """A peer, which is on every DERP server too, and a host for one Magicsock."""

    def __init__(self) -> None:
        super().__init__()
        self.peer = PathFinder(secret_key=THEIRS, rng=random.Random(5))
        self.peer.set_reachability(ipv4_socket=True, ipv6_socket=True, ipv6_works=True, now=-2000.0)
        self.heard = 0
        self.asked = 0

    def peer_hears(self, run: Run[Magicsock]) -> list[Transmit]:
        """Have the peer hear what came by UDP, and return what it has to say to it."""
        batch, self.heard = run.sent[self.heard :], len(run.sent)
        disco = [data for data in batch if data[:2] == b"TS"]
        self.peer.receive_datagrams(disco, BOUND, now=run.now)
        return self.peer.datagrams_to_send()


def world_of(run: Run[Magicsock]) -> World:
    assert isinstance(run.context, World)
    return run.context


def datagrams_of(transmits: Iterable[Transmit]) -> list[bytes]:
    return [data for transmit in transmits for data in transmit.datagrams]


def peer_speaks(source: UdpAddress, *, dials: bool) -> React[Magicsock]:
    def act(run: Run[Magicsock]) -> list[Call]:
        world = world_of(run)
        world.peer.set_own_addresses(UDP, now=run.now)
        if dials:
            world.peer.add_node_addr(OURS.public, [BOUND], derp_url=None, now=run.now)
            world.peer.route(OURS.public, now=run.now)
        sent = datagrams_of(world.peer_hears(run))
        return [Call("receive_datagrams", [QUIC[0], *sent, *QUIC], source)]

    return React(f"the peer {'dials' if dials else 'answers'} from {source}", act)


def peer_dials_by_derp(run: Run[Magicsock]) -> Iterable[Call]:
    """Have pings, a CallMeMaybe and payload of the peer come through the DERP servers."""
    world = world_of(run)
    world.peer.set_own_addresses(UDP, now=run.now)
    world.peer.add_node_addr(OURS.public, [], derp_url=URL, now=run.now)
    world.peer.route(OURS.public, now=run.now)
    sent = datagrams_of(world.peer_hears(run))
    for packet in pack_datagrams([QUIC[0], *sent, b"\x00", *QUIC]):
        for server in world.servers.values():
            server.say(OURS.public, packet, run.now)
    yield from converse(run)


def answer_host(run: Run[Magicsock]) -> list[Call]:
    world = world_of(run)
    events, world.asked = run.events[world.asked :], len(run.events)
    calls = []
    for event in events:
        match event:
            case InterfacesRequested():
                calls.append(Call("complete_interfaces", event.request_id, ["10.0.0.1"]))
            case DnsRequested():
                calls.append(Call("complete_dns", event.request_id, [STUN_SERVER.ip]))
            case _:
                pass
    return calls


def answer_stun(run: Run[Magicsock]) -> Iterable[Call]:
    for data in run.sent[-4:]:
        try:
            reply = encode_binding_response(decode_binding_request(data), SEEN)
        except DecodeError:
            continue
        yield Call("receive_datagrams", [reply], STUN_SERVER)


def answer_challenges(run: Run[Magicsock]) -> list[Call]:
    asked = [event for event in run.events if isinstance(event, ChallengeRequested)]
    return [Call("complete_challenge", event.request_id) for event in asked]


HOST_ANSWERS = React("the host answers", answer_host)
STUN_ANSWERS = React("STUN answers", answer_stun)
BEGINNING: Sequence[Call | React[Magicsock]] = [Call("start", [BOUND])]
AT_HOME: Sequence[Call | React[Magicsock]] = [
    *BEGINNING,
    React("servers are reached", settle),
    HOST_ANSWERS,  # to the round that began before there was a home
    HOST_ANSWERS,
    STUN_ANSWERS,
]


def magicsock_subject(
    begin: Sequence[Call | React[Magicsock]], floods: Sequence[Flood[Magicsock]]
) -> Subject[Magicsock]:
    return Subject(
        factory=lambda rng: Magicsock(secret_key=OURS, derp_map=DerpMap.from_urls([URL]), rng=rng),
        begin=begin,
        operations=operations(),
        misuses=MISUSES,
        floods=floods,
        garbage=st.just(b"") | st.binary().map(lambda data: b"\x3f" + data),
        context=World,
        effort=0.5,
    )


def operations() -> st.SearchStrategy[Call | React[Magicsock]]:
    return st.one_of(
        st.sampled_from([HOST_ANSWERS, STUN_ANSWERS]),
        st.sampled_from(cloud_operations(OURS.public, pack_datagrams(QUIC)[0])),
        st.sampled_from(
            [
                React("the peer dials by DERP", peer_dials_by_derp),
                Call("send_payloads", PEER, QUIC),
            ]
        ),
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
    )


MISUSES = st.sampled_from(
    [
        Call("start", [BOUND]),
        Call("add_node_addr", NodeAddr(OURS.public)),
        Call("complete_interfaces", 10**9, []),
        Call("complete_dns", 10**9, []),
        Call("complete_challenge", 10**9),
        Call("complete_tcp", 10**9),
    ]
)

FLOODS: list[Flood[Magicsock]] = [
    Flood("payload to a peer", lambda number: Call("send_payloads", UDP[0], QUIC * 16)),
    Flood(
        "payload from everywhere",
        lambda number: Call(
            "receive_datagrams", QUIC * 8, UdpAddress(f"10.0.0.{number & 255}", number + 1)
        ),
        count=6000,
    ),
]

TestMagicsockContract = contract_tests(magicsock_subject(BEGINNING, FLOODS))

TestMagicsockAtHomeContract = contract_tests(
    magicsock_subject(
        AT_HOME,
        [
            Flood(
                "packets by DERP", lambda number: React("it dials", peer_dials_by_derp), count=600
            ),
            Flood("payload to the peer", lambda number: Call("send_payloads", PEER, QUIC * 16)),
            Flood("changes", lambda number: Call("network_changed")),
        ],
    )
)


def test_the_contract_at_home_is_tried_at_home() -> None:
    run = begun(magicsock_subject(AT_HOME, []), React("the peer dials by DERP", peer_dials_by_derp))
    assert run.machine.home_derp == URL
    assert SEEN in run.machine.node_addr.direct_addresses
    assert run.machine.stats.derp_received > len(QUIC)
    assert run.machine.path_info(PEER).derp_url == URL
