"""What Magicsock makes of datagrams: told apart, kept in batches, bounded."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from iroh_proto.address import Address, DerpAddress, DerpUrl, NodeAddr, UdpAddress
from iroh_proto.derp.frames import DATAGRAM_LIMIT
from iroh_proto.derp.map import DerpMap, DerpNode
from iroh_proto.disco.pinger import DiscoPinger, PingReceived
from iroh_proto.errors import LocalProtocolError
from iroh_proto.key import SecretKey
from iroh_proto.machine import TcpCloseRequested, TcpRequested, Transmit
from iroh_proto.magicsock import (
    ChallengeRequested,
    DnsRequested,
    InterfacesRequested,
    Magicsock,
    ReceivedPayload,
)
from iroh_proto.paths import payload
from iroh_proto.paths.select import TRUST_TIME
from iroh_proto.stun.message import encode_binding_request, encode_binding_response

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "disco.json").read_text()
)
OURS, THEIRS, MALLORY = (SecretKey.generate(random.Random(seed)) for seed in (1, 2, 3))
PEER = THEIRS.public
URL = DerpUrl.from_str("http://derp.example/")
BOUND = UdpAddress("198.51.100.1", 7000)
PEER_ADDR, OTHER_ADDR = UdpAddress("203.0.113.1", 1), UdpAddress("203.0.113.2", 2)
VIA = DerpAddress(URL, PEER)
QUIC = b"\x40" + bytes(1199)


def make(*, derp_map: DerpMap | None = None) -> Magicsock:
    sock = Magicsock(secret_key=OURS, derp_map=derp_map or DerpMap(), rng=random.Random(1))
    sock.start([BOUND], now=0.0)
    return sock


def make_direct() -> Magicsock:
    """Return a Magicsock whose peer is proven to be at its address."""
    sock = make()
    sock.adopt(PEER_ADDR, PEER, "quic", now=0.0)
    answer_challenges(sock, now=0.0)
    sock.datagrams_to_send()
    return sock


def answer_challenges(sock: Magicsock, *, now: float) -> None:
    """Have the peer answer all challenges."""
    while (event := sock.next_event()) is not None:
        if isinstance(event, ChallengeRequested):
            sock.complete_challenge(event.request_id, now=now)


def addr_of(*addrs: UdpAddress, derp: bool = False) -> NodeAddr:
    return NodeAddr(PEER, derp_url=URL if derp else None, direct_addresses=addrs)


def received(sock: Magicsock) -> list[tuple[object, Address, list[bytes]]]:
    return [(item.key, item.source, item.datagrams) for item in sock.received_payloads()]


def peer_ping() -> bytes:
    pinger = DiscoPinger(secret_key=THEIRS, rng=random.Random(5))
    pinger.ping(BOUND, OURS.public, now=0.0)
    return pinger.datagrams_to_send()[0].datagrams[0]


def test_a_batch_to_a_direct_peer_is_one_transmit_with_a_segment_size() -> None:
    sock = make_direct()
    batch = [QUIC] * 59 + [b"\x40" * 700]
    sock.send_payloads(PEER, batch, now=1.0)
    (transmit,) = sock.datagrams_to_send()
    assert transmit == Transmit(PEER_ADDR, batch, 1200)
    assert transmit.datagrams is batch


def test_datagrams_of_different_sizes_have_no_segment_size() -> None:
    sock = make_direct()
    for sizes in ([100, 200], [200, 100, 200]):
        sock.send_payloads(PEER, [b"\x40" * size for size in sizes], now=1.0)
    assert [transmit.segment_size for transmit in sock.datagrams_to_send()] == [None, None]
    sock.send_payloads(PEER, [QUIC], now=1.0)
    assert sock.datagrams_to_send()[0].segment_size == 1200


def test_a_batch_from_a_direct_peer_is_one_payload_under_its_id() -> None:
    sock = make_direct()
    sock.receive_datagrams([QUIC] * 60, PEER_ADDR, now=1.0)
    assert received(sock) == [(PEER, PEER_ADDR, [QUIC] * 60)]
    assert received(sock) == []


def test_an_unknown_address_is_a_provisional_key_and_is_answered_there() -> None:
    sock = make()
    sock.receive_datagrams([QUIC], OTHER_ADDR, now=1.0)
    assert received(sock) == [(OTHER_ADDR, OTHER_ADDR, [QUIC])]
    sock.send_payloads(OTHER_ADDR, [QUIC], now=1.0)
    assert [transmit.addr for transmit in sock.datagrams_to_send()] == [OTHER_ADDR]
    assert sock.stats.paths.nodes == 0


def test_a_known_address_that_is_not_proven_is_provisional_too() -> None:
    """Else whoever is there now would have its dial answered on another node's paths."""
    sock = make()
    sock.add_node_addr(addr_of(PEER_ADDR), now=0.0)
    sock.receive_datagrams([QUIC], PEER_ADDR, now=1.0)
    assert received(sock) == [(PEER_ADDR, PEER_ADDR, [QUIC])]
    sock.adopt(PEER_ADDR, PEER, "quic", now=1.0)
    sock.receive_datagrams([QUIC], PEER_ADDR, now=1.0)
    assert received(sock) == [(PEER_ADDR, PEER_ADDR, [QUIC])]
    answer_challenges(sock, now=1.0)
    sock.receive_datagrams([QUIC], PEER_ADDR, now=2.0)
    assert received(sock) == [(PEER, PEER_ADDR, [QUIC])]
    sock.receive_datagrams([QUIC], PEER_ADDR, now=1.0 + TRUST_TIME)
    assert received(sock) == [(PEER_ADDR, PEER_ADDR, [QUIC])]


@pytest.mark.parametrize("case", VECTORS["classify"], ids=lambda case: str(case["packet"])[:12])
def test_datagrams_are_told_apart_as_iroh_does(case: dict[str, Any]) -> None:
    sock = make()
    data = bytes.fromhex(case["packet"])
    sock.receive_datagrams([data], OTHER_ADDR, now=1.0)
    stats = sock.stats
    disco = stats.paths.disco
    seen = {
        "stun": stats.stun.malformed + stats.stun.unmatched,
        "disco": disco.bad_key,
        "quic": len(received(sock)),
        "quic (would be dropped: fixed bit 0x40 clear)": stats.malformed,
    }
    assert seen == {kind: int(kind == case["class"]) for kind in seen}


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x3f" * 30, b"\x80" * 30])
def test_what_can_be_nothing_is_counted_and_dropped(data: bytes) -> None:
    sock = make()
    sock.receive_datagrams([QUIC, data, QUIC], OTHER_ADDR, now=1.0)
    sock.receive_datagrams([QUIC, data, QUIC], VIA, now=1.0)
    assert [item[2] for item in received(sock)] == [[QUIC, QUIC], [QUIC, QUIC]]
    assert sock.stats.malformed == 2


def test_stun_through_a_derp_server_is_nothing() -> None:
    sock = make()
    sock.receive_datagrams([encode_binding_request(bytes(12))], VIA, now=1.0)
    assert received(sock) == []
    assert sock.stats.malformed == 1


def test_disco_amid_payload_is_found_and_the_rest_stays_in_order() -> None:
    sock = make()
    first, last = QUIC + b"1", QUIC + b"2"
    sock.receive_datagrams([first, peer_ping(), last], PEER_ADDR, now=1.0)
    assert received(sock) == [(PEER_ADDR, PEER_ADDR, [first, last])]
    events = list(iter(sock.next_event, None))
    assert any(isinstance(event, PingReceived) for event in events)
    pong, ping_back = sock.datagrams_to_send()
    assert pong.addr == ping_back.addr == PEER_ADDR


def test_a_pong_amid_payload_changes_the_key_from_there_on() -> None:
    sock = make()
    sock.add_node_addr(addr_of(PEER_ADDR), now=0.0)
    sock.send_payloads(PEER, [QUIC], now=0.0)
    ping = sock.datagrams_to_send()[0].datagrams
    peer = DiscoPinger(secret_key=THEIRS, rng=random.Random(5))
    peer.receive_datagrams(ping, BOUND, now=0.0)
    event = peer.next_event()
    assert isinstance(event, PingReceived)
    peer.pong(event, now=0.0)
    ((pong,),) = (transmit.datagrams for transmit in peer.datagrams_to_send())
    first, last = QUIC + b"1", QUIC + b"2"
    sock.receive_datagrams([first, pong, last], PEER_ADDR, now=0.1)
    assert received(sock) == [(PEER_ADDR, PEER_ADDR, [first]), (PEER, PEER_ADDR, [last])]


def test_lesson_18_the_short_end_of_a_coalesced_batch_is_examined() -> None:
    sock = make()
    sock.receive_datagrams([QUIC, QUIC, peer_ping()], PEER_ADDR, now=1.0)
    assert len(sock.datagrams_to_send()) == 2


def test_payload_begins_with_discos_first_byte_at_times() -> None:
    sock = make()
    data = b"\x54" + bytes(50)
    sock.receive_datagrams([QUIC, data], OTHER_ADDR, now=1.0)
    sock.receive_datagrams([data], VIA, now=1.0)
    assert [item[2] for item in received(sock)] == [[QUIC, data], [data]]


def test_a_dial_goes_to_all_addresses_and_derp_with_pings_first() -> None:
    sock = make()
    sock.add_node_addr(addr_of(PEER_ADDR, OTHER_ADDR, derp=True), now=0.0)
    sock.send_payloads(PEER, [QUIC], now=0.0)
    sent = [(t.addr, t.datagrams[0][:2]) for t in sock.datagrams_to_send()]
    assert sent == [
        (PEER_ADDR, b"TS"),
        (OTHER_ADDR, b"TS"),
        (PEER_ADDR, QUIC[:2]),
        (OTHER_ADDR, QUIC[:2]),
    ]
    assert sock.stats.derp_sent >= 1
    requests = [e for e in iter(sock.next_event, None) if isinstance(e, TcpRequested)]
    assert [(request.host, request.port) for request in requests] == [("derp.example", 80)]


def test_lesson_08_a_peer_without_any_way_is_counted_not_an_error() -> None:
    sock = make()
    sock.send_payloads(PEER, [QUIC] * 3, now=0.0)
    sock.add_node_addr(addr_of(), now=0.0)
    sock.send_payloads(PEER, [QUIC], now=0.0)
    sock.add_node_addr(addr_of(UdpAddress("2001:db8::1", 1)), now=0.0)  # there is no such socket
    sock.send_payloads(PEER, [QUIC], now=0.0)
    assert sock.stats.unreachable == 5
    assert sock.datagrams_to_send() == []


def test_lesson_09_pings_are_not_counted_as_payload() -> None:
    sock = make()
    sock.add_node_addr(addr_of(UdpAddress("2001:db8::1", 1), derp=False), now=0.0)
    sock.send_payloads(PEER, [QUIC], now=0.0)
    assert (sock.stats.udp_sent, sock.stats.unreachable) == (0, 1)


def test_datagrams_too_long_for_a_derp_frame_are_dropped() -> None:
    sock = make()
    sock.add_node_addr(addr_of(derp=True), now=0.0)
    sock.send_payloads(PEER, [bytes(DATAGRAM_LIMIT + 1), QUIC], now=0.0)
    assert sock.stats.unreachable == 1


def test_payload_from_derp_is_a_nodes_and_is_answered_through_derp() -> None:
    sock = make()
    sock.receive_datagrams([QUIC, QUIC], VIA, now=1.0)
    assert received(sock) == [(PEER, VIA, [QUIC, QUIC])]
    assert sock.path_info(PEER).kind == "derp"


def test_payload_that_claims_to_be_ours_is_dropped() -> None:
    sock = make()
    sock.receive_datagrams([QUIC], DerpAddress(URL, OURS.public), now=1.0)
    assert received(sock) == []
    assert sock.stats.strangers_dropped == 1


def test_unauthenticated_payload_moves_nobody() -> None:
    sock = make_direct()
    for number in range(1, 100):
        addr = UdpAddress("192.0.2.66", number)
        sock.receive_datagrams([QUIC], addr, now=1.0)
        sock.receive_datagrams([QUIC], DerpAddress(URL, PEER), now=1.0)
    assert sock.path_info(PEER).addr == PEER_ADDR
    sock.send_payloads(PEER, [QUIC], now=2.0)
    assert [transmit.addr for transmit in sock.datagrams_to_send()] == [PEER_ADDR]


def test_received_payload_is_bounded_and_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload, "QUEUED_DATAGRAMS_LIMIT", 10)
    sock = make()
    for number in range(1, 9):
        sock.receive_datagrams([QUIC] * 2, UdpAddress("192.0.2.1", number // 2 + 1), now=1.0)
    items = sock.received_payloads()
    assert sum(len(item.datagrams) for item in items) == 10
    assert sock.stats.received_dropped == 6
    sock.receive_datagrams([b"\x40" + bytes((number,)) for number in range(15)], BOUND, now=1.0)
    (item,) = sock.received_payloads()
    assert [data[1] for data in item.datagrams] == list(range(5, 15))


def test_payload_to_send_is_bounded_and_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload, "QUEUED_DATAGRAMS_LIMIT", 10)
    sock = make()
    for number in range(1, 9):
        sock.send_payloads(UdpAddress("192.0.2.1", number), [QUIC] * 3, now=1.0)
    transmits = sock.datagrams_to_send()
    assert [
        transmit.addr.port for transmit in transmits if isinstance(transmit.addr, UdpAddress)
    ] == [6, 7, 8]
    assert sock.stats.sent_dropped == 15


def test_what_was_drained_takes_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload, "QUEUED_DATAGRAMS_LIMIT", 10)
    sock = make()
    for _ in range(10):
        for port in (1, 2):
            sock.send_payloads(UdpAddress("192.0.2.1", port), [QUIC] * 3, now=1.0)
        assert len(sock.datagrams_to_send()) == 2
    assert sock.stats.sent_dropped == 0


def test_sending_nothing_sends_nothing() -> None:
    sock = make_direct()
    sock.send_payloads(PEER, [], now=1.0)
    assert sock.datagrams_to_send() == []


def test_lesson_21_before_start_and_after_close_it_is_quiet_and_no_error() -> None:
    sock = Magicsock(secret_key=OURS, derp_map=DerpMap(), rng=random.Random(1))
    sock.receive_datagrams([QUIC], PEER_ADDR, now=0.0)
    sock.send_payloads(PEER_ADDR, [QUIC], now=0.0)
    sock.adopt(PEER_ADDR, PEER, "quic", now=0.0)
    sock.confirm(PEER, PEER_ADDR, now=0.0)
    sock.network_changed(now=0.0)
    assert (received(sock), sock.datagrams_to_send(), sock.get_timer()) == ([], [], None)
    sock.start([BOUND], now=0.0)
    sock.close(now=1.0)
    sock.close(now=1.0)
    sock.receive_datagrams([QUIC, peer_ping()], PEER_ADDR, now=2.0)
    sock.receive_datagrams([QUIC], VIA, now=2.0)
    assert (received(sock), sock.datagrams_to_send(), sock.get_timer()) == ([], [], None)
    assert sock.stats.paths.nodes == 0
    for state in (sock, make()):
        with pytest.raises(LocalProtocolError):
            state.start([BOUND], now=3.0)


def test_what_was_given_before_the_close_still_leaves() -> None:
    sock = make_direct()
    sock.send_payloads(PEER, [QUIC], now=1.0)
    sock.close(now=1.0)
    assert len(sock.datagrams_to_send()) == 1


def test_oneself_cannot_be_added_or_adopted() -> None:
    sock = make()
    with pytest.raises(LocalProtocolError):
        sock.add_node_addr(NodeAddr(OURS.public, direct_addresses=[PEER_ADDR]), now=0.0)
    sock.adopt(PEER_ADDR, OURS.public, "quic", now=0.0)
    assert sock.stats.paths.nodes == 0


def test_an_adopted_derp_url_is_where_the_node_is() -> None:
    sock = make()
    sock.adopt(URL, PEER, "quic", now=0.0)
    info = sock.path_info(PEER)
    assert (info.kind, info.derp_url) == ("derp", URL)
    (remote,) = sock.remote_infos()
    assert (remote.node_id, remote.derp_url) == (PEER, URL)
    sock.forget(PEER, now=1.0)
    assert sock.remote_infos() == []


def test_the_stun_server_is_the_homes_own() -> None:
    def asked(node: DerpNode) -> object:
        sock = make(derp_map=DerpMap([node]))
        sock._pool.set_home(node.url, now=0.0)
        sock.complete_interfaces(1, ["10.0.0.1"], now=0.0)
        requests = [e for e in iter(sock.next_event, None) if isinstance(e, DnsRequested)]
        if not requests:
            return None
        sock.complete_dns(requests[0].request_id, ["192.0.2.53"], now=0.0)
        (transmit,) = sock.datagrams_to_send()
        return transmit.addr

    assert asked(DerpNode(URL)) == UdpAddress("192.0.2.53", 3478)
    assert asked(DerpNode(URL, stun_port=3333)) == UdpAddress("192.0.2.53", 3333)
    assert asked(DerpNode(URL, stun_port=None)) is None


def test_stun_answers_become_addresses() -> None:
    sock = make(derp_map=DerpMap.from_urls(["http://192.0.2.53/"]))
    sock._pool.set_home(DerpUrl.from_str("http://192.0.2.53/"), now=0.0)
    for _ in range(2):  # the round that began without a server, and the one with it
        (asked,) = (e for e in iter(sock.next_event, None) if isinstance(e, InterfacesRequested))
        sock.complete_interfaces(asked.request_id, [], now=0.0)
    (transmit,) = sock.datagrams_to_send()
    tx_id = transmit.datagrams[0][8:20]
    public = UdpAddress("203.0.113.77", 777)
    assert isinstance(transmit.addr, UdpAddress)
    sock.receive_datagrams([encode_binding_response(tx_id, public)], transmit.addr, now=0.1)
    assert public in sock.local_addresses
    assert sock.node_addr.direct_addresses == sock.local_addresses


def test_connections_to_derp_are_closed_with_it() -> None:
    sock = make(derp_map=DerpMap.from_urls([URL]))
    (request,) = (e for e in iter(sock.next_event, None) if isinstance(e, TcpRequested))
    sock.complete_tcp(request.tcp_id, now=0.1)
    assert sock.tcp_to_send() == [request.tcp_id]
    assert sock.tcp_data_to_send(request.tcp_id).startswith(b"GET /")
    sock.receive_tcp_eof(request.tcp_id, now=0.2)
    assert any(isinstance(e, TcpCloseRequested) for e in iter(sock.next_event, None))
    sock.close(now=0.3)
    assert sock.home_derp is None
    with pytest.raises(LocalProtocolError):
        sock.complete_tcp(99, now=0.4)


def test_payload_shows_itself_briefly() -> None:
    item = ReceivedPayload(PEER_ADDR, PEER_ADDR, [QUIC])
    assert repr(item) == f"ReceivedPayload({PEER_ADDR!r}, {PEER_ADDR}, sizes=[1200])"
    assert make().node_id == OURS.public
