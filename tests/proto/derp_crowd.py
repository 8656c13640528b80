"""Clients that come, talk and leave at random: what the contract of a DERP server is tried with."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from hypothesis import strategies as st

from iroh_proto.derp.curve_frames import CurveSendPacket
from iroh_proto.derp.dialects import v2
from iroh_proto.derp.frames import DATAGRAM_LIMIT, Ping
from iroh_proto.derp.rate import AcceptLimit, RateLimit
from iroh_proto.derp.relay import DerpServer
from iroh_proto.testing.contract import Call, React, Run
from iroh_proto.testing.run import Operation
from iroh_proto.x25519 import x25519_of
from tests.proto.derp_peer import (
    ALL_WAYS,
    CURVE_WAYS,
    EAGER_WAYS,
    RELAY_WAYS,
    SERVER_KEY,
    Peer,
    key,
)


class Crowd:
    """What the scripted peers of a run remember."""

    def __init__(self) -> None:
        self.ids = itertools.count(1)
        self.peers: dict[int, Peer] = {}
        self.seen = 0


def join(way: str, number: int) -> React[DerpServer]:
    def function(run: Run[DerpServer]) -> Iterable[Call]:
        crowd = crowd_of(run)
        tcp_id = next(crowd.ids)
        peer = crowd.peers[tcp_id] = Peer(way, key(number))
        yield Call("accept_tcp", tcp_id)
        yield Call("receive_tcp_data", tcp_id, peer.request)
        if way in EAGER_WAYS:
            yield Call("receive_tcp_data", tcp_id, peer.begin())
        elif way in RELAY_WAYS | CURVE_WAYS and (challenge := run.tcp_sent.get(tcp_id)):
            yield Call("receive_tcp_data", tcp_id, peer.receive(challenge))

    return React(f"join as {number} by {way}", function)


def talk(sender: int, number: int, size: int) -> React[DerpServer]:
    def function(run: Run[DerpServer]) -> Iterable[Call]:
        crowd = crowd_of(run)
        for tcp_id, peer in list(crowd.peers.items()):
            if peer.node_id == key(sender).public:
                packets = peer.packet_to(key(number).public, bytes(size)) * 3
                ping = peer.codec.encode(Ping(b"12345678"))
                yield Call("receive_tcp_data", tcp_id, packets + ping)

    return React(f"{sender} talks to {number} of {size}", function)


def talk_barely(sender: int, number: int, size: int) -> React[DerpServer]:
    """Have Tailscale's clients send what no node of iroh would: it packs no empty datagram."""

    def function(run: Run[DerpServer]) -> Iterable[Call]:
        packet = CurveSendPacket(x25519_of(key(number).public), bytes(size))
        for tcp_id, peer in list(crowd_of(run).peers.items()):
            if peer.node_id == key(sender).public and peer.dialect.has_curve_keys:
                yield Call("receive_tcp_data", tcp_id, peer.codec.encode(packet) * 2)

    return React(f"{sender} talks barely to {number} of {size}", function)


def leave(index: int) -> React[DerpServer]:
    def function(run: Run[DerpServer]) -> Iterable[Call]:
        crowd = crowd_of(run)
        if crowd.peers:
            tcp_id = sorted(crowd.peers)[index % len(crowd.peers)]
            del crowd.peers[tcp_id]
            yield Call("receive_tcp_eof", tcp_id)

    return React(f"leave {index}", function)


def answer_server_key(index: int) -> React[DerpServer]:
    """Have a v2 client that saw the server's key prove its own."""

    def function(run: Run[DerpServer]) -> Iterable[Call]:
        crowd = crowd_of(run)
        waiting = [
            (tcp_id, peer)
            for tcp_id, peer in crowd.peers.items()
            if peer.dialect.name == "v2" and not peer.handshake.is_done
        ]
        if waiting:
            tcp_id, peer = waiting[index % len(waiting)]
            replies = peer.handshake.receive(v2.ServerKey(SERVER_KEY.public))
            yield Call("receive_tcp_data", tcp_id, b"".join(map(peer.codec.encode, replies)))
            peer.handshake.is_done = True  # type: ignore[misc]  # that is all it has to say

    return React(f"answer the server's key {index}", function)


def crowd_of(run: Run[DerpServer]) -> Crowd:
    assert isinstance(run.context, Crowd)
    return run.context


def operations() -> st.SearchStrategy[Operation[DerpServer]]:
    few = st.integers(2, 4)
    return st.one_of(
        st.builds(join, st.sampled_from(sorted(ALL_WAYS)), few),
        st.builds(talk, few, few, st.sampled_from([0, 5, 1200])),
        st.builds(talk_barely, few, few, st.sampled_from([0, 5, DATAGRAM_LIMIT + 1])),
        st.builds(leave, st.integers(0, 5)),
        st.builds(answer_server_key, st.integers(0, 5)),
        st.just(Call("close")),
    )


def operations_of_a_host() -> st.SearchStrategy[Operation[DerpServer]]:
    """Return what the host of a server decides."""
    reason = st.sampled_from([None, "no"])
    limit = st.sampled_from([None, RateLimit(1000), RateLimit(50_000, 10)])
    return st.one_of(
        st.builds(decide, st.booleans(), reason),
        limit.map(lambda limit: Call("set_rate_limit", limit)),
        st.integers(0, 3).map(lambda number: Call("dismiss", [key(number).public])),
        st.sampled_from([None, AcceptLimit(0.5, 2)]).map(
            lambda limit: Call("set_accept_limit", limit)
        ),
        st.just(Call("drain")),
    )


def decide(allowed: bool, reason: str | None) -> React[DerpServer]:
    def function(run: Run[DerpServer]) -> Iterable[Call]:
        for tcp_id in list(crowd_of(run).peers):
            yield Call("complete_access", tcp_id, allowed=allowed, reason=reason)

    return React(f"let them in: {allowed}", function)


def flood_of_pings(number: int) -> Operation[DerpServer]:
    ping = Peer("v3", key(2)).codec.encode(Ping(number.to_bytes(8, "big")))
    return Call("receive_tcp_data", 1, ping * 30)


def flood_of_packets(number: int) -> Operation[DerpServer]:
    packet = Peer("v3", key(2)).packet_to(key(2 + number % 2).public, bytes(1200))
    return Call("receive_tcp_data", 1, packet)


def flood_of_pieces(number: int) -> Operation[DerpServer]:
    return Call("receive_tcp_data", 1, b"\x04\x00\x01\x00\x00" if number == 0 else bytes(500))


def flood_of_requests(number: int) -> Operation[DerpServer]:
    return React(
        f"request {number}",
        lambda run: [
            Call("accept_tcp", 100 + number),
            Call("receive_tcp_data", 100 + number, b"GET /ping HTTP/1.1\r\nx: " + bytes([65]) * 99),
        ],
    )
