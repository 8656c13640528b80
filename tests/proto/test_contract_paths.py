"""The contract of the machines that find paths and this node's own addresses."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from iroh_proto.address import Address, DerpAddress, DerpUrl, UdpAddress
from iroh_proto.disco.pinger import PingReceived
from iroh_proto.errors import DecodeError
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.paths.challenges import ChallengeRequested
from iroh_proto.paths.finder import PathFinder
from iroh_proto.paths.node_map import STRANGERS_LIMIT
from iroh_proto.paths.own_address_events import (
    AddressServer,
    DnsRequested,
    InterfacesRequested,
    ObservationRequested,
)
from iroh_proto.paths.own_addresses import OwnAddresses
from iroh_proto.stun.message import decode_binding_request, encode_binding_response
from iroh_proto.testing.contract import Call, Flood, React, Run, Subject, contract_tests
from iroh_proto.testing.strategies import node_ids, udp_addresses

OURS, THEIRS = (SecretKey.generate(random.Random(seed)) for seed in (201, 202))
URL = DerpUrl.from_str("http://derp.example")
VIA = DerpAddress(URL, THEIRS.public)
UDP = [UdpAddress("192.0.2.1", 1), UdpAddress("192.0.2.2", 2), UdpAddress("2001:db8::1", 3)]
PLACES: list[Address] = [VIA, *UDP]
PLACE = st.sampled_from(PLACES)
OWN = UdpAddress("198.51.100.1", 9)


class Peer:
    """A whole node at the other end, that answers as one does."""

    def __init__(self) -> None:
        self.finder = PathFinder(secret_key=THEIRS, rng=random.Random(5))
        self.finder.set_reachability(
            ipv4_socket=True, ipv6_socket=True, ipv6_works=True, now=-2000.0
        )
        self.finder.set_own_addresses(UDP, now=-2000.0)
        self.heard = 0

    def speak(self, source: Address) -> list[Call]:
        sent = [data for t in self.finder.datagrams_to_send() for data in t.datagrams]
        return [Call("receive_datagrams", sent, source)] if sent else []


def peer_of(run: Run[PathFinder]) -> Peer:
    assert isinstance(run.context, Peer)
    return run.context


def answer_from(source: Address) -> React[PathFinder]:
    def act(run: Run[PathFinder]) -> list[Call]:
        peer = peer_of(run)
        batch, peer.heard = run.sent[peer.heard :], len(run.sent)
        seen = DerpAddress(URL, OURS.public) if isinstance(source, DerpAddress) else OWN
        peer.finder.receive_datagrams(batch, seen, now=run.now)
        return peer.speak(source)

    return React(f"the peer answers from {source}", act)


def dial_from(source: Address) -> React[PathFinder]:
    def act(run: Run[PathFinder]) -> list[Call]:
        peer = peer_of(run)
        peer.finder.set_own_addresses(UDP, now=run.now)
        peer.finder.add_node_addr(OURS.public, [OWN], derp_url=URL, now=run.now)
        peer.finder.route(OURS.public, now=run.now)
        return peer.speak(source)

    return React(f"the peer dials from {source}", act)


def secret_of(number: int) -> SecretKey:
    return SecretKey.generate(random.Random(f"stranger {number}"))


def valid_ping(number: int) -> bytes:
    secret = secret_of(number)
    finder = PathFinder(secret_key=secret, rng=random.Random(number))
    finder.add_node_addr(OURS.public, (), derp_url=URL, now=0.0)
    finder.route(OURS.public, now=0.0)
    ((data,),) = (transmit.datagrams for transmit in finder.datagrams_to_send())
    return data


def forged_ping(place: int) -> bytes:
    data = bytearray(valid_ping(1))
    data[place] ^= 1
    return bytes(data)


def address_of(number: int) -> UdpAddress:
    return UdpAddress(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 1 + number % 60000)


def node_of(number: int) -> NodeId:
    return secret_of(number).public


def answer_challenges(run: Run[PathFinder]) -> list[Call]:
    """Answer every challenge there ever was, most of them again."""
    asked = [event for event in run.events if isinstance(event, ChallengeRequested)]
    return [Call("complete_challenge", event.request_id) for event in asked]


FINDER: Subject[PathFinder] = Subject(
    factory=lambda rng: PathFinder(secret_key=OURS, rng=rng),
    begin=[
        Call("start"),
        Call("set_reachability", ipv4_socket=True, ipv6_socket=True, ipv6_works=True),
        Call("set_own_addresses", [OWN]),
    ],
    operations=st.one_of(
        st.lists(st.sampled_from(UDP) | udp_addresses(), max_size=3).map(
            lambda addrs: Call("add_node_addr", THEIRS.public, addrs, derp_url=URL)
        ),
        st.just(Call("route", THEIRS.public)),
        st.just(Call("route", THEIRS.public)),
        PLACE.map(answer_from),
        PLACE.map(answer_from),
        PLACE.map(dial_from),
        st.builds(
            Call,
            st.just("adopt"),
            PLACE,
            st.just(THEIRS.public),
            st.sampled_from(["disco", "quic"]),
        ),
        PLACE.map(lambda addr: Call("confirm", THEIRS.public, addr)),
        st.just(React("the peer answers challenges", answer_challenges)),
        node_ids().map(lambda node_id: Call("note_derp_payload", DerpAddress(URL, node_id))),
        st.lists(st.sampled_from([OWN, *UDP]), max_size=2).map(
            lambda own: Call("set_own_addresses", own)
        ),
        st.booleans().map(
            lambda works: Call(
                "set_reachability", ipv4_socket=True, ipv6_socket=True, ipv6_works=works
            )
        ),
        st.sampled_from([Call("forget", THEIRS.public), Call("network_changed"), Call("close")]),
    ),
    misuses=st.sampled_from(
        [
            Call("add_node_addr", OURS.public, [], derp_url=None),
            Call("complete_challenge", 0),
            Call("complete_challenge", 10**9),
        ]
    ),
    floods=[
        Flood(
            "pings of strangers",
            lambda number: Call("receive_datagrams", [valid_ping(number)], address_of(number)),
            count=3 * STRANGERS_LIMIT,
        ),
        Flood(
            "strangers at a DERP server",
            lambda number: Call("note_derp_payload", DerpAddress(URL, node_of(number))),
            count=3 * STRANGERS_LIMIT,
        ),
        Flood(
            "addresses of one peer",
            lambda number: Call(
                "add_node_addr", THEIRS.public, [address_of(number)], derp_url=None
            ),
        ),
        Flood(
            "payload from anywhere",
            lambda number: Call("confirm", THEIRS.public, address_of(number)),
        ),
    ],
    garbage=st.binary() | st.integers(0, 123).map(forged_ping),
    context=Peer,
)

TestPathFinderContract = contract_tests(FINDER)


def answer_interfaces(*ips: str) -> React[OwnAddresses]:
    def act(run: Run[OwnAddresses]) -> list[Call]:
        asked = [event for event in run.events if isinstance(event, InterfacesRequested)]
        return [Call("complete_interfaces", event.request_id, ips) for event in asked[-2:]]

    return React(f"interfaces: {ips}", act)


def answer_dns(*ips: str) -> React[OwnAddresses]:
    def act(run: Run[OwnAddresses]) -> list[Call]:
        asked = [event for event in run.events if isinstance(event, DnsRequested)]
        return [Call("complete_dns", event.request_id, ips) for event in asked[-2:]]

    return React(f"DNS: {ips}", act)


def answer_observation(address: UdpAddress | None) -> React[OwnAddresses]:
    def act(run: Run[OwnAddresses]) -> list[Call]:
        asked = [event for event in run.events if isinstance(event, ObservationRequested)]
        return [Call("complete_observation", event.request_id, address) for event in asked[-2:]]

    return React(f"observed: {address}", act)


def answer_stun(run: Run[OwnAddresses]) -> list[Call]:
    calls = []
    for data in run.sent[-4:]:
        try:
            reply = encode_binding_response(decode_binding_request(data), OWN)
        except DecodeError:  # pragma: no cover
            continue
        calls.append(Call("receive_datagrams", [reply, reply], UdpAddress("192.0.2.53", 3478)))
    return calls


OWN_ADDRESSES: Subject[OwnAddresses] = Subject(
    factory=lambda rng: OwnAddresses(rng=rng),
    begin=[Call("start", [UdpAddress("0.0.0.0", 5), UdpAddress("::", 6)])],
    operations=st.one_of(
        st.sampled_from(
            [
                answer_interfaces(),
                answer_interfaces("10.0.0.1", "2001:db8::1", "nonsense"),
                answer_dns(),
                answer_dns("192.0.2.53"),
                answer_observation(None),
                answer_observation(OWN),
                React("STUN answers", answer_stun),
            ]
        ),
        st.sampled_from(
            [
                Call("set_server", AddressServer(host="192.0.2.53", stun_port=3478)),
                Call("set_server", AddressServer(host="192.0.2.53", stun_port=3478, quic_port=1)),
                Call("set_server", AddressServer(host="derp.example", stun_port=None, quic_port=1)),
                Call("set_server", None),
                Call("refresh"),
                Call("network_changed"),
                Call("close"),
            ]
        ),
    ),
    misuses=st.sampled_from(
        [
            Call("start", [UdpAddress("0.0.0.0", 5)]),
            Call("complete_interfaces", 10**9, []),
            Call("complete_dns", 0, []),
            Call("complete_observation", 10**9, None),
        ]
    ),
    floods=[
        Flood("refreshes", lambda number: Call("refresh")),
        Flood(
            "servers",
            lambda number: Call(
                "set_server", AddressServer(host=f"10.0.{number >> 8}.{number & 255}", stun_port=1)
            ),
        ),
    ],
    garbage=st.binary(),
)

TestOwnAddressesContract = contract_tests(OWN_ADDRESSES)


def test_a_ping_of_the_floods_is_a_valid_one() -> None:
    ours = PathFinder(secret_key=OURS, rng=random.Random(1))
    ours.receive_datagrams([valid_ping(3)], DerpAddress(URL, node_of(3)), now=0.0)
    assert isinstance(ours.next_event(), PingReceived)
