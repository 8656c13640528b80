from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import events as ws
from wsproto.connection import Connection, ConnectionType

from iroh_proto.derp.datagram_frames import SendDatagram, SendDatagramBatch
from iroh_proto.derp.dialects import v2, v3
from iroh_proto.derp.frames import (
    HEADER,
    Frame,
    Health,
    KeepAlive,
    NotePreferred,
    PacketParts,
    PeerGone,
    Ping,
    Pong,
    RecvPacket,
    Restarting,
    WatchConns,
    pack_datagrams,
)
from iroh_proto.derp.pong_wait import PONG_TIMEOUT
from iroh_proto.derp.rate import RateLimit
from iroh_proto.derp.router_reports import Presence
from iroh_proto.derp.segments import SINGLE_HEADER
from iroh_proto.derp.send_queue import QUEUED_CONTROL_BYTES_LIMIT
from iroh_proto.derp.server import DerpServerConnection
from iroh_proto.derp.server_entry import (
    HANDSHAKE_BYTES_LIMIT,
    HANDSHAKE_TIMEOUT,
    LISTEN_TIMEOUT,
    REQUEST_TIMEOUT,
)
from iroh_proto.derp.server_events import (
    ClientAdmitted,
    ConnectionLost,
    DerpServerConnectionEvent,
)
from iroh_proto.derp.server_liveness import PING_JITTER
from iroh_proto.errors import LocalProtocolError, RemoteProtocolError
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.testing.contract import Call, Flood, React, Run, Subject, contract_tests
from iroh_proto.testing.run import Operation
from iroh_proto.testing.strategies import chunkings
from iroh_proto.x25519 import x25519_of
from tests.proto.derp_peer import EAGER_WAYS, PACKED_WAYS, RELAY_WAYS, SERVER_KEY, WAYS, Peer, key

ALICE, BOB = key(2), key(3)
OLD_REQUEST = b"GET /derp HTTP/1.1\r\nupgrade: iroh derp http\r\n\r\n"
NEW_REQUEST = b"GET /relay HTTP/1.1\r\nupgrade: iroh derp http\r\nhost: relay.example\r\n\r\n"


@pytest.fixture(scope="module")
def vectors(vectors_path: Path) -> dict[str, dict[str, object]]:
    loaded = json.loads((vectors_path / "relay.json").read_text())
    assert isinstance(loaded, dict)
    return loaded


class Dice(random.Random):
    """Chance that always falls the same way: the nonce of the vectors."""

    def randbytes(self, n: int) -> bytes:
        return bytes(range(0x18, 0x18 + n))


def started(**options: object) -> DerpServerConnection:
    connection = DerpServerConnection(secret_key=SERVER_KEY, rng=Dice(1), **options)  # type: ignore[arg-type]
    connection.start(now=0.0)
    return connection


def events(connection: DerpServerConnection) -> list[DerpServerConnectionEvent]:
    drained = []
    while (event := connection.next_event()) is not None:
        drained.append(event)
    return drained


def answer_to(request: bytes) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """Return status line, headers and body that a request gets, and see that it ends there."""
    connection = started()
    connection.receive_data(request, now=0.0)
    head, _, body = connection.data_to_send().partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    (lost,) = events(connection)
    assert lost == ConnectionLost(error=None)
    assert connection.get_timer() is None
    return status, dict(line.lower().split(b": ", 1) for line in lines), body


def admitted(way: str, secret_key: SecretKey = ALICE) -> tuple[DerpServerConnection, Peer]:
    """Return a connection whose client has proven its key at time 0, or 0.3 if it waited."""
    connection, peer = started(), Peer(way, secret_key)
    connection.receive_data(peer.request, now=0.0)
    if peer.dialect.server_speaks_first:
        connection.handle_timer(now=LISTEN_TIMEOUT)
    for _ in range(2):
        connection.receive_data(peer.receive(connection.data_to_send()), now=0.0)
    peer.receive(connection.data_to_send())
    (event,) = events(connection)
    assert event == ClientAdmitted(node_id=secret_key.public, dialect=peer.dialect.name)
    assert connection.node_id == secret_key.public
    return connection, peer


class TestPages:
    @pytest.mark.parametrize("path", [b"/ping", b"/relay/probe", b"/derp/probe"])
    def test_probes_are_empty_and_readable_from_anywhere(self, path: bytes) -> None:
        status, headers, body = answer_to(b"GET " + path + b" HTTP/1.1\r\nhost: x\r\n\r\n")
        assert status == b"HTTP/1.1 200 OK"
        assert headers[b"access-control-allow-origin"] == b"*"
        assert headers[b"connection"] == b"close"
        assert body == b""

    @pytest.mark.parametrize(
        ("challenge", "response"),
        [
            (b"X-Tailscale-Challenge: ts_example.com", b"x-tailscale-response"),
            (b"X-Iroh-Challenge: ts_example.com", b"x-iroh-response"),
            (b"x-tailscale-challenge: " + b"a:" * 32, b"x-tailscale-response"),
            (b"x-iroh-challenge: " + b"a" * 63, b"x-iroh-response"),
        ],
    )
    def test_a_challenge_is_answered(self, challenge: bytes, response: bytes) -> None:
        status, headers, body = answer_to(
            b"GET /generate_204 HTTP/1.1\r\n" + challenge + b"\r\n\r\n"
        )
        assert status == b"HTTP/1.1 204 No Content"
        assert headers[response] == b"response " + challenge.split(b": ")[1]
        assert body == b""
        assert b"content-length" not in headers

    @pytest.mark.parametrize(
        "challenge",
        [
            b"x-tailscale-challenge: " + b"a" * 65,
            b"x-tailscale-challenge: a b",
            b"x-iroh-challenge: " + b"a" * 64,
            b"x-iroh-challenge: a:b",
            b"x-iroh-challenge:",
            b"x-other: a",
        ],
    )
    def test_what_is_no_challenge_is_not_answered(self, challenge: bytes) -> None:
        status, headers, _ = answer_to(b"GET /generate_204 HTTP/1.1\r\n" + challenge + b"\r\n\r\n")
        assert status == b"HTTP/1.1 204 No Content"
        assert [name for name in headers if b"response" in name] == []

    def test_both_challenges_are_answered_at_once(
        self, vectors: dict[str, dict[str, object]]
    ) -> None:
        given_204 = vectors["http"]["generate_204"]
        assert isinstance(given_204, dict)
        cases = [given_204["tailscale"], given_204["iroh_0_93_plus"]]
        asked = "".join(case["request_header_text"] + "\r\n" for case in cases)
        _, headers, _ = answer_to(f"GET /generate_204 HTTP/1.1\r\n{asked}\r\n".encode())
        for case in cases:
            name, value = case["response_header_text"].lower().encode().split(b": ", 1)
            assert headers[name] == value

    def test_robots_are_sent_away(self) -> None:
        status, _, body = answer_to(b"GET /robots.txt HTTP/1.1\r\n\r\n")
        assert status == b"HTTP/1.1 200 OK"
        assert body == b"User-agent: *\nDisallow: /\n"

    def test_those_who_watch_over_it_hear_that_it_is_well(self) -> None:
        status, headers, body = answer_to(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert status == b"HTTP/1.1 200 OK"
        assert headers[b"content-type"] == b"application/json"
        assert json.loads(body) == {"status": "ok"}

    @pytest.mark.parametrize("path", [b"/", b"/index.html", b"/?x=1"])
    def test_there_is_a_home_page(self, path: bytes) -> None:
        status, headers, body = answer_to(b"GET " + path + b" HTTP/1.1\r\n\r\n")
        assert status == b"HTTP/1.1 200 OK"
        assert headers[b"content-type"].startswith(b"text/html")
        assert int(headers[b"content-length"]) == len(body) > 0
        assert headers[b"strict-transport-security"] == b"max-age=63072000; includesubdomains"

    @pytest.mark.parametrize("line", [b"GET /nothing", b"POST /ping", b"DELETE /", b"GET /derp/x"])
    def test_anything_else_is_not_found(self, line: bytes) -> None:
        status, _, body = answer_to(line + b" HTTP/1.1\r\n\r\n")
        assert status == b"HTTP/1.1 404 Not Found"
        assert body == b"Not Found"

    def test_head_gets_the_head(self) -> None:
        status, headers, body = answer_to(b"HEAD / HTTP/1.1\r\n\r\n")
        assert status == b"HTTP/1.1 200 OK"
        assert int(headers[b"content-length"]) > 0
        assert body == b""

    @pytest.mark.parametrize(
        "request_head",
        [
            b"GET /derp HTTP/1.1\r\n",
            b"GET /relay HTTP/1.1\r\n",
            b"GET /relay HTTP/1.0\r\nupgrade: iroh derp http\r\n",
            b"GET /relay HTTP/1.1\r\nupgrade: iroh derp http\r\ncontent-length: 3\r\n",
            b"GET /relay HTTP/1.1\r\nupgrade: something else\r\n",
            b"GET /relay HTTP/1.1\r\nupgrade: DERP\r\n",
            b"GET /relay HTTP/1.1\r\nupgrade: websocket\r\n",
            b"GET /relay HTTP/1.1\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n",
            b"GET /relay HTTP/1.1\r\nupgrade: websocket\r\nsec-websocket-key: AAAA\r\n"
            b"sec-websocket-version: 8\r\n",
            b"GET /relay HTTP/1.1\r\nupgrade: websocket\r\nsec-websocket-key: AAAA\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-protocol: derp\r\n",
            b"GET /derp HTTP/1.1\r\nupgrade: websocket\r\nsec-websocket-key: AAAA\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-protocol: iroh-relay-v1\r\n",
        ],
    )
    def test_an_upgrade_that_cannot_be_is_refused(self, request_head: bytes) -> None:
        status, headers, body = answer_to(request_head + b"\r\n")
        assert status == b"HTTP/1.1 400 Bad Request"
        assert body != b""
        if b"version: 8" in request_head:
            assert headers[b"sec-websocket-version"] == b"13"

    @pytest.mark.parametrize(
        "noise",
        [b"\x16\x03\x01\x02\x00\x01\x00\x01", b"hello\r\n\r\n", b"GET / HTTP/1.1\r\n:\r\n\r\n"],
    )
    def test_what_is_no_request_is_a_fault(self, noise: bytes) -> None:
        connection = started()
        connection.receive_data(noise, now=0.0)
        assert connection.data_to_send().startswith(b"HTTP/1.1 400 ")
        (lost,) = events(connection)
        assert isinstance(lost, ConnectionLost)
        assert isinstance(lost.error, RemoteProtocolError)
        assert connection.stats.faults == 1

    def test_a_head_without_end_is_a_fault(self) -> None:
        connection = started()
        connection.receive_data(b"GET / HTTP/1.1\r\nx: ", now=0.0)
        connection.receive_data(bytes([65]) * 20_000, now=0.0)
        assert isinstance(events(connection)[0], ConnectionLost)


class TestGenerations:
    @pytest.mark.parametrize("way", WAYS)
    def test_each_way_to_connect_is_recognized(self, way: str) -> None:
        admitted(way)

    def test_the_golden_requests_are_the_ones_tested(
        self, vectors: dict[str, dict[str, object]]
    ) -> None:
        old = vectors["iroh_0_6_to_0_13_derp_v2"]["http_request_0_6_to_0_19_text"]
        new = vectors["iroh_0_14_to_0_90_relay_v3"]["http_request_0_28_to_0_90_text"]
        assert old == OLD_REQUEST.decode()
        assert new == NEW_REQUEST.decode()

    def test_a_v2_client_is_spoken_to_byte_for_byte_as_in_the_vectors(
        self, vectors: dict[str, dict[str, object]]
    ) -> None:
        golden = vectors["iroh_0_6_to_0_13_derp_v2"]
        connection = started()
        connection.receive_data(OLD_REQUEST, now=0.0)
        head = connection.data_to_send()
        assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
        assert head.endswith(b"\r\n\r\n")  # and not a byte more before the moment has passed
        assert connection.get_timer() == LISTEN_TIMEOUT
        connection.handle_timer(now=LISTEN_TIMEOUT)
        assert connection.data_to_send().hex() == golden["server_key_frame"]
        client_info, server_info = golden["client_info"], golden["server_info"]
        assert isinstance(client_info, list)
        assert isinstance(server_info, list)
        connection.receive_data(bytes.fromhex(client_info[0]["frame"]), now=0.4)
        assert connection.data_to_send().hex() == server_info[0]["frame"]
        client = NodeId.from_str(str(golden["client_ed25519_public"]))
        assert events(connection) == [ClientAdmitted(node_id=client, dialect="v2")]
        frames = golden["frames"]
        assert isinstance(frames, dict)
        connection.receive_data(bytes.fromhex(frames["ping"]), now=0.5)
        assert connection.data_to_send().hex() == frames["pong"]
        connection.receive_data(bytes.fromhex(frames["send_packet"]), now=0.5)
        ((destination, parts),) = connection.received_packets().items()
        assert destination.hex() == golden["peer_ed25519_public"]
        assert b"".join(parts).hex() == frames["recv_packet"]

    @pytest.mark.parametrize("variant", [0, 1, 2])
    def test_every_golden_v2_client_is_admitted(
        self, variant: int, vectors: dict[str, dict[str, object]]
    ) -> None:
        client_info = vectors["iroh_0_6_to_0_13_derp_v2"]["client_info"]
        assert isinstance(client_info, list)
        connection = started(listen_dialect="v2")
        connection.receive_data(OLD_REQUEST, now=0.0)
        connection.receive_data(bytes.fromhex(client_info[variant]["frame"]), now=0.0)
        assert isinstance(events(connection)[0], ClientAdmitted)

    @pytest.mark.parametrize("request_bytes", [OLD_REQUEST, NEW_REQUEST])
    def test_a_golden_v3_client_that_speaks_first_gets_silence(
        self, request_bytes: bytes, vectors: dict[str, dict[str, object]]
    ) -> None:
        golden = vectors["iroh_0_14_to_0_90_relay_v3"]
        connection = started()
        connection.receive_data(request_bytes, now=0.0)
        connection.data_to_send()
        info = golden["client_info"]
        assert isinstance(info, dict)
        connection.receive_data(bytes.fromhex(info["framed_stream"]), now=LISTEN_TIMEOUT / 2)
        client = NodeId.from_str(str(golden["client_public"]))
        assert events(connection) == [ClientAdmitted(node_id=client, dialect="v3")]
        connection.handle_timer(now=LISTEN_TIMEOUT)
        assert connection.data_to_send() == b""
        frames = golden["frames"]
        assert isinstance(frames, dict)
        for name in ("keepalive", "note_preferred_true", "peer_gone", "pong", "restarting_10_20"):
            connection.receive_data(bytes.fromhex(frames[name]["framed_stream"]), now=0.4)
        connection.receive_data(bytes.fromhex(frames["ping"]["framed_stream"]), now=0.4)
        assert connection.data_to_send().hex() == frames["pong"]["framed_stream"]
        packet = frames["send_packet_goodbye"]["framed_stream"]
        connection.receive_data(bytes.fromhex(packet), now=0.5)
        assert connection.data_to_send().hex() == "05" + packet[2:]  # it sends to itself
        assert events(connection) == []

    @pytest.mark.parametrize("first_byte", [b"\x02", b"\x00", b"G"])
    def test_the_first_byte_of_a_client_decides_that_it_speaks_first(
        self, first_byte: bytes
    ) -> None:
        connection = started()
        connection.receive_data(OLD_REQUEST, now=0.0)
        connection.data_to_send()
        connection.receive_data(first_byte, now=0.1)
        connection.handle_timer(now=1.0)
        assert connection.data_to_send() == b""  # above all no ServerKey

    def test_upgrade_and_the_rest_may_come_in_one_piece(self) -> None:
        for way in ("v3", "v3 on the old path", "v3 websocket"):
            connection, peer = started(), Peer(way, ALICE)
            connection.receive_data(
                peer.request + peer.begin() + peer.packet_to(BOB.public, b"x"), now=0.0
            )
            assert [type(event) for event in events(connection)] == [ClientAdmitted]
            assert list(connection.received_packets()) == [BOB.public]

    @pytest.mark.parametrize("way", ["v3", "v3 on the old path", "v3 websocket"])
    def test_more_than_a_handshake_may_hold_may_follow_it_in_one_piece(self, way: str) -> None:
        connection, peer = started(), Peer(way, ALICE)
        packet = peer.packet_to(BOB.public, bytes(HANDSHAKE_BYTES_LIMIT // 4))
        connection.receive_data(peer.request + peer.begin() + packet * 8, now=0.0)
        assert [type(event) for event in events(connection)] == [ClientAdmitted]
        assert len(connection.received_packets()[BOB.public]) == 2 * 8

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("frame", [Ping(b"12345678"), Pong(b"12345678")])
    def test_another_first_frame_than_the_handshakes_is_a_fault(
        self, way: str, frame: Frame
    ) -> None:
        connection, peer = started(), Peer(way, ALICE)
        connection.receive_data(peer.request, now=0.0)
        connection.handle_timer(now=LISTEN_TIMEOUT)
        connection.data_to_send()
        connection.receive_data(peer.codec.encode(frame), now=0.5)
        (lost,) = events(connection)
        assert isinstance(lost, ConnectionLost)
        assert isinstance(lost.error, RemoteProtocolError)
        assert connection.node_id is None

    def test_a_stranger_cannot_make_the_server_remember_much(self) -> None:
        connection = started()
        connection.receive_data(NEW_REQUEST, now=0.0)
        connection.receive_data(HEADER.pack(4, 60_000), now=0.0)
        connection.receive_data(bytes(HANDSHAKE_BYTES_LIMIT), now=0.0)
        (lost,) = events(connection)
        assert isinstance(lost, ConnectionLost)

    @pytest.mark.parametrize(
        "frame",
        [
            WatchConns(),
            v2.ClosePeer(BOB.public),
            v2.ForwardPacket(BOB.public, ALICE.public, b"x"),
            Health("sick"),
        ],
    )
    def test_frames_that_no_client_may_send_end_a_v2_connection(self, frame: Frame) -> None:
        connection, peer = admitted("v2")
        connection.receive_data(peer.codec.encode(frame), now=1.0)
        assert isinstance(events(connection)[0], ConnectionLost)

    @pytest.mark.parametrize("way", ["v3", "v3 websocket"])
    def test_health_from_a_client_ends_a_v3_connection(self, way: str) -> None:
        connection, peer = admitted(way)
        connection.receive_data(peer.codec.encode(Health("sick")), now=1.0)
        assert isinstance(events(connection)[0], ConnectionLost)

    @pytest.mark.parametrize("way", PACKED_WAYS)
    def test_frames_of_servers_from_a_client_are_ignored_and_counted(self, way: str) -> None:
        connection, peer = admitted(way)
        frames = [
            KeepAlive(),
            PeerGone(BOB.public),
            RecvPacket(BOB.public, b"x"),
            Restarting(1, 2),
            Pong(b"unasked!"),
        ]
        connection.receive_data(b"".join(map(peer.codec.encode, frames)), now=1.0)
        assert connection.stats.frames_ignored == len(frames)
        assert events(connection) == []
        assert connection.received_packets() == {}

    def test_a_websocket_is_closed_politely_from_both_sides(self) -> None:
        connection, peer = admitted("v3 websocket")
        connection.receive_data(peer.codec.goodbye(), now=1.0)
        assert events(connection) == [ConnectionLost(error=None)]
        peer.receive(connection.data_to_send())
        assert peer.codec.is_closed
        connection, peer = admitted("v3 websocket")
        connection.close(now=1.0)
        assert events(connection) == [ConnectionLost(error=None)]
        peer.receive(connection.data_to_send())
        assert peer.codec.is_closed

    @pytest.mark.parametrize("way", RELAY_WAYS)
    def test_a_websocket_that_is_closed_before_the_proof_is_no_fault(self, way: str) -> None:
        connection, peer = started(), Peer(way, ALICE)
        connection.receive_data(peer.request, now=0.0)
        peer.receive(connection.data_to_send())
        connection.receive_data(peer.codec.goodbye(), now=1.0)
        assert events(connection) == [ConnectionLost(error=None)]
        assert connection.stats.faults == 0
        peer.receive(connection.data_to_send())
        assert peer.codec.is_closed
        assert connection.get_timer() is None

    @pytest.mark.parametrize("way", ["v3 websocket", *RELAY_WAYS])
    def test_a_ping_of_the_websocket_itself_is_answered(self, way: str) -> None:
        connection, peer = admitted(way)
        websocket = Connection(ConnectionType.CLIENT)
        connection.receive_data(websocket.send(ws.Ping(payload=b"there?")), now=1.0)
        websocket.receive_data(connection.data_to_send())
        assert list(websocket.events()) == [ws.Pong(payload=b"there?")]
        assert events(connection) == []
        connection.receive_data(peer.packet_to(BOB.public, pack_datagrams([b"x"])[0]), now=2.0)
        assert list(connection.received_packets()) == [BOB.public]


class TestTime:
    def test_a_request_has_to_come_in_time(self) -> None:
        connection = started()
        connection.receive_data(b"GET /relay HT", now=1.0)
        assert connection.get_timer() == REQUEST_TIMEOUT
        connection.handle_timer(now=REQUEST_TIMEOUT)
        (lost,) = events(connection)
        assert isinstance(lost, ConnectionLost)
        assert "request" in str(lost.error)

    @pytest.mark.parametrize("way", WAYS)
    def test_a_proof_has_to_come_in_time(self, way: str) -> None:
        connection, peer = started(), Peer(way, ALICE)
        connection.receive_data(peer.request, now=3.0)
        connection.handle_timer(now=3.0 + LISTEN_TIMEOUT)
        connection.data_to_send()
        assert connection.get_timer() == 3.0 + HANDSHAKE_TIMEOUT
        connection.handle_timer(now=3.0 + HANDSHAKE_TIMEOUT)
        (lost,) = events(connection)
        assert isinstance(lost, ConnectionLost)
        assert "proof" in str(lost.error)

    def test_a_client_that_is_listened_for_is_not_taken_for_an_old_one_early(self) -> None:
        connection, peer = started(), Peer("v3 on the old path", ALICE)
        connection.receive_data(peer.request, now=0.0)
        connection.data_to_send()
        connection.handle_timer(now=LISTEN_TIMEOUT - 0.01)
        assert connection.get_timer() == LISTEN_TIMEOUT
        assert connection.data_to_send() == b""
        connection.receive_data(peer.begin(), now=LISTEN_TIMEOUT - 0.01)
        assert events(connection) == [ClientAdmitted(node_id=ALICE.public, dialect="v3")]

    @pytest.mark.parametrize("way", ["v3", "relay-v2"])
    def test_a_client_that_sends_is_alive_though_its_pong_waits_behind_that(self, way: str) -> None:
        connection, peer = admitted(way)
        asked = connection.get_timer()
        assert asked is not None
        connection.handle_timer(now=asked)
        assert connection.data_to_send()
        packet = peer.packet_to(BOB.public, b"\x05\x00hello")
        connection.receive_data(packet, now=asked + 4.0)
        connection.handle_timer(now=asked + PONG_TIMEOUT)
        assert events(connection) == []
        again = connection.get_timer()
        assert again is not None
        assert again >= asked + 4.0 + v3.PING_INTERVAL
        connection.handle_timer(now=again)
        assert connection.data_to_send()
        connection.handle_timer(now=again + PONG_TIMEOUT)
        (lost,) = events(connection)
        assert isinstance(lost, ConnectionLost)

    def test_pings_come_after_silence_and_want_their_own_pong(self) -> None:
        connection, peer = admitted("v3")
        due = connection.get_timer()
        assert due is not None
        assert v3.PING_INTERVAL + PING_JITTER[0] <= due <= v3.PING_INTERVAL + PING_JITTER[1]
        connection.receive_data(peer.codec.encode(NotePreferred(True)), now=4.0)
        assert connection.get_timer() == due + 4.0  # any frame ends the silence
        connection.handle_timer(now=due + 4.0)
        peer.receive(connection.data_to_send())
        (ping,) = peer.frames
        assert isinstance(ping, Ping)
        connection.receive_data(peer.codec.encode(Pong(b"wrong---")), now=due + 5.0)
        assert connection.get_timer() == due + 4.0 + PONG_TIMEOUT
        connection.receive_data(peer.codec.encode(Pong(ping.data)), now=due + 6.0)
        assert connection.get_timer() == due + 6.0 + due
        connection.handle_timer(now=2 * due + 6.0)
        connection.data_to_send()
        connection.handle_timer(now=2 * due + 6.0 + PONG_TIMEOUT)
        (lost,) = events(connection)
        assert isinstance(lost, ConnectionLost)
        assert "pong" in str(lost.error)

    def test_a_client_that_is_busy_reading_is_not_pinged(self) -> None:
        connection, peer = admitted("v3")
        due = connection.get_timer()
        assert due is not None
        connection.send_packets([HEADER.pack(5, 33) + BOB.public, b"x"] * 3, now=due - 0.5)
        connection.data_to_send(1)
        connection.send_packets([HEADER.pack(5, 33) + BOB.public, b"x"], now=due - 0.5)
        connection.handle_timer(now=due)
        peer.receive(connection.data_to_send())
        assert {type(frame) for frame in peer.frames} == {RecvPacket}
        assert connection.get_timer() == 2 * due


class TestMisuse:
    @pytest.mark.parametrize(
        "call",
        [
            lambda connection: connection.receive_data(b"x", now=0.0),
            lambda connection: connection.receive_eof(now=0.0),
            lambda connection: connection.close(now=0.0),
            lambda connection: connection.send_packets([b"h", b"p"], now=0.0),
        ],
    )
    def test_a_connection_has_to_be_started(
        self, call: Callable[[DerpServerConnection], None]
    ) -> None:
        connection = DerpServerConnection(secret_key=SERVER_KEY, rng=random.Random(1))
        with pytest.raises(LocalProtocolError, match="start"):
            call(connection)

    def test_packets_wait_for_the_proof_and_come_too_late_after_the_end(self) -> None:
        connection = started()
        with pytest.raises(LocalProtocolError, match="proven"):
            connection.send_packets([b"h", b"p"], now=0.0)
        with pytest.raises(LocalProtocolError, match="proven"):
            connection.send_peer_gone(BOB.public, now=0.0)
        with pytest.raises(LocalProtocolError, match="started"):
            connection.start(now=0.0)
        connection.close(now=0.0)
        connection.send_packets([b"h", b"p"], now=0.0)
        connection.send_peer_gone(BOB.public, now=0.0)
        assert connection.data_to_send() == b""
        assert connection.stats.clients_admitted == 0

    def test_what_comes_after_the_end_is_ignored(self) -> None:
        connection, peer = admitted("v3")
        connection.set_rate_limit(None, now=1.0)
        connection.close(now=1.0)
        assert events(connection) == [ConnectionLost(error=None)]
        connection.receive_data(peer.codec.encode(Ping(bytes(8))), now=1.0)
        connection.receive_eof(now=1.0)
        connection.send_not_here(x25519_of(BOB.public), now=1.0)
        connection.send_presence(Presence(BOB.public, None, True, 0), now=1.0)
        connection.tell_standing(is_active=False, now=1.0)
        connection.announce_restart(reconnect_in=1.0, try_for=2.0, now=1.0)
        connection.complete_access(allowed=True, now=1.0)
        connection.abandon("too slow", now=1.0)
        assert events(connection) == []
        assert connection.data_to_send() == b""
        assert connection.stats.faults == 0
        assert connection.get_timer() is None

    def test_what_waits_for_a_client_that_is_given_up_is_dropped_and_counted(self) -> None:
        connection, _ = admitted("v3")
        connection.send_packets([b"h", b"p"], now=0.0)
        assert connection.has_data_to_send
        connection.abandon("too slow", now=0.0)
        assert connection.data_to_send() == b""
        assert connection.stats.packets_dropped == 1
        (lost,) = events(connection)
        assert isinstance(lost, ConnectionLost)
        assert str(lost.error) == "too slow"

    @pytest.mark.parametrize("way", ["v2", "v3"])
    def test_older_dialects_have_no_words_for_a_client_s_standing(self, way: str) -> None:
        connection, _ = admitted(way)
        connection.tell_standing(is_active=False, now=1.0)
        assert connection.data_to_send() == b""

    def test_a_rate_limit_may_be_set_before_the_proof(self) -> None:
        connection = started()
        connection.set_rate_limit(RateLimit(1_000, 100), now=0.0)
        peer = Peer("v3", ALICE)
        connection.receive_data(peer.request, now=0.0)
        connection.receive_data(b"", now=0.0)
        connection.receive_data(peer.receive(connection.data_to_send()), now=0.0)
        connection.receive_data(peer.packet_to(BOB.public, bytes(1_000)), now=0.0)
        connection.handle_timer(now=0.0)
        assert connection.is_paused

    def test_control_frames_that_nobody_reads_are_dropped_and_counted(self) -> None:
        connection, peer = admitted("v3")
        pings = peer.codec.encode(Ping(bytes(8))) * (QUEUED_CONTROL_BYTES_LIMIT // 13 + 2)
        connection.receive_data(pings, now=0.0)
        assert connection.stats.controls_dropped == 2
        assert len(connection.data_to_send()) <= QUEUED_CONTROL_BYTES_LIMIT

    @pytest.mark.parametrize("dialect", ["v7", "relay-v1"])
    def test_a_dialect_that_is_not_framed_is_refused(self, dialect: str) -> None:
        rng = random.Random(1)
        with pytest.raises(LocalProtocolError, match=f"no framed DERP dialect '{dialect}'"):
            DerpServerConnection(secret_key=SERVER_KEY, rng=rng, listen_dialect=dialect)


class TestCutting:
    @pytest.mark.parametrize("way", EAGER_WAYS)
    @given(data=st.data())
    def test_a_whole_conversation_may_be_cut_anywhere(self, way: str, data: st.DataObject) -> None:
        peer = Peer(way, ALICE)
        stream = (
            peer.request
            + peer.begin()
            + peer.packet_to(BOB.public, b"one")
            + peer.codec.encode(Ping(b"12345678"))
            + peer.packet_to(ALICE.public, b"two")
            + peer.packet_to(BOB.public, b"three")
            + peer.codec.goodbye()
        )
        whole, cut = started(), started()
        whole.receive_data(stream, now=0.0)
        written = b""
        for piece in data.draw(chunkings(stream)):
            cut.receive_data(piece, now=0.0)
            written += cut.data_to_send()
        assert written == whole.data_to_send()
        assert events(cut) == events(whole)
        assert packets(cut) == packets(whole)


def packets(connection: DerpServerConnection) -> dict[bytes, bytes]:
    received = connection.received_packets().items()
    return {destination: b"".join(parts) for destination, parts in received}


class Sent:
    """Packets to one destination, in the form in which the contract looks at payloads."""

    def __init__(self, destination: bytes, datagrams: PacketParts) -> None:
        self.destination = destination
        self.datagrams = datagrams


class Observed(DerpServerConnection):
    """A connection whose packets the contract sees."""

    def received_payloads(self) -> list[Sent]:
        return [Sent(*group) for group in self.received_packets().items()]


def prove(way: str) -> React[DerpServerConnection]:
    """Have a client connect this way, as far as it gets without an answer."""

    def function(run: Run[DerpServerConnection]) -> Iterable[Call]:
        peer = Peer(way, ALICE)
        is_fresh = not run.sent
        yield Call("receive_data", peer.request)
        if way in RELAY_WAYS and is_fresh:
            yield Call("receive_data", peer.receive(b"".join(run.sent)))
        yield Call("receive_data", peer.begin())

    return React(f"connect by {way}", function)


def say(way: str, frame: Frame) -> Call:
    return Call("receive_data", Peer(way, ALICE).codec.encode(frame))


def operations() -> st.SearchStrategy[Operation[DerpServerConnection]]:
    frames = st.sampled_from(
        [Ping(b"12345678"), Pong(b"12345678"), NotePreferred(False), RecvPacket(BOB.public, b"x")]
    )
    relay_frames = st.sampled_from(
        [
            Pong(b"12345678"),
            SendDatagram(BOB.public, 2, b"x"),
            SendDatagramBatch(BOB.public, 0, 3, b"hello"),
            SendDatagram(BOB.public, 0, b""),
        ]
    )
    return st.one_of(
        st.builds(prove, st.sampled_from(sorted(WAYS))),
        st.builds(say, st.sampled_from(["v3", "v3 websocket"]), frames),
        st.builds(say, st.sampled_from(sorted(RELAY_WAYS)), relay_frames),
        st.just(Call("receive_data", Peer("v3", ALICE).packet_to(BOB.public, b"hello") * 2)),
        st.just(Call("send_packets", [HEADER.pack(5, 37) + BOB.public, b"\x03\0new"])),
        st.just(Call("send_packets", [SINGLE_HEADER.pack(6, BOB.public, 2), b"hello"])),
        st.sampled_from([True, False]).map(lambda active: Call("tell_standing", is_active=active)),
        st.just(Call("send_peer_gone", BOB.public)),
        st.just(Call("receive_data", b"GET /ping HTTP/1.1\r\n\r\n")),
        st.just(Call("receive_eof")),
        st.just(Call("close")),
    )


def flood(
    label: str, make: Callable[[int], bytes], count: int = 3000
) -> Flood[DerpServerConnection]:
    return Flood(label, lambda number: Call("receive_data", make(number)), count)


PAYLOAD = pack_datagrams([bytes(1198)])[0]
PACKETS = [HEADER.pack(5, 1232) + BOB.public, PAYLOAD]

TestDerpServerConnectionContract = contract_tests(
    Subject(
        factory=lambda rng: Observed(secret_key=SERVER_KEY, rng=rng),
        begin=[Call("start")],
        operations=operations(),
        misuses=st.just(Call("start")),
        final=(ConnectionLost,),
        floods=[
            flood("a head", lambda number: b"GET / HTTP/1.1\r\nx: y" if number == 0 else b"y" * 9)
        ],
    )
)


def admitted_subject(way: str, endless: bytes) -> Subject[DerpServerConnection]:
    peer = Peer(way, ALICE)
    ping, packet = peer.codec.encode(Ping(bytes(8))), peer.packet_to(BOB.public, PAYLOAD)
    return Subject(
        factory=lambda rng: Observed(secret_key=SERVER_KEY, rng=rng),
        begin=[Call("start"), prove(way)],
        operations=operations(),
        misuses=st.just(Call("start")),
        final=(ConnectionLost,),
        floods=[
            flood("pings", lambda number: ping * 20),
            flood("packets", lambda number: packet),
            flood("an endless frame", lambda number: endless + bytes(495), 400),
            Flood("packets to it", lambda number: Call("send_packets", PACKETS)),
            Flood("news for it", lambda number: Call("send_peer_gone", BOB.public), 8000),
        ],
    )


TestAdmittedConnectionContract = contract_tests(
    admitted_subject("v3", endless=HEADER.pack(4, 65_000))
)
TestAdmittedRelayConnectionContract = contract_tests(
    admitted_subject("relay-v2", endless=b"\x82\xfe\xff\xff\0\0\0\0\x04")
)
