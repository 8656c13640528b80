"""Frames on a stream, in both forms, and datagrams in payloads."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, TextMessage
from wsproto.events import Ping as WebsocketPing
from wsproto.events import Pong as WebsocketPong

from iroh_proto.derp.codec import RUN_LIMIT, FrameCodec, FramedCodec
from iroh_proto.derp.curve_codec import CurveCodec
from iroh_proto.derp.dialects import v2, v3
from iroh_proto.derp.frames import (
    DATAGRAM_LIMIT,
    FRAME_LIMIT,
    HANDSHAKE_FRAME_LIMIT,
    HEADER,
    PACKED_LIMIT,
    PACKET_LIMIT,
    Frame,
    Health,
    KeepAlive,
    NotePreferred,
    PacketGroups,
    PeerGone,
    Ping,
    Pong,
    RecvPacket,
    Restarting,
    SendPacket,
    WatchConns,
    node_id_of,
    pack_datagrams,
    packed_size,
    parts_of_run,
    split_datagrams,
)
from iroh_proto.derp.message_codec import WebsocketCodec
from iroh_proto.errors import DecodeError, LocalProtocolError
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.testing.strategies import chunkings, derp_frames

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "relay.json").read_text())
V2 = VECTORS["iroh_0_6_to_0_13_derp_v2"]
V3 = VECTORS["iroh_0_14_to_0_90_relay_v3"]
BATCHING = VECTORS["packet_payload_batching_0_5_to_0_90"]

A = SecretKey.from_bytes(b"\x2a" * 32).public
CLIENT = SecretKey.from_bytes(b"\x02" * 32).public
PEER = SecretKey.from_bytes(b"\x03" * 32).public

V2_FRAMES: dict[str, Frame] = {
    "send_packet": SendPacket(PEER, b"hello"),
    "recv_packet": RecvPacket(CLIENT, b"hello"),
    "keepalive": KeepAlive(),
    "note_preferred_true": NotePreferred(True),
    "note_preferred_false": NotePreferred(False),
    "peer_gone": PeerGone(PEER),
    "peer_present": v2.PeerPresent(PEER),
    "watch_conns": WatchConns(),
    "close_peer": v2.ClosePeer(PEER),
    "ping": Ping(bytes(range(8))),
    "pong": Pong(bytes(range(8))),
    "health": Health("hello world!"),
    "restarting_10_20": Restarting(10, 20),
    "forward_packet": v2.ForwardPacket(CLIENT, PEER, b"hello"),
}
V3_FRAMES: dict[str, Frame] = {
    "send_packet_goodbye": SendPacket(A, b"Goodbye!"),
    "recv_packet_hello": RecvPacket(A, b"Hello World!"),
    "keepalive": KeepAlive(),
    "note_preferred_true": NotePreferred(True),
    "peer_gone": PeerGone(A),
    "ping": Ping(b"\x2a" * 8),
    "pong": Pong(b"\x2a" * 8),
    "health": Health("Hello? Yes this is dog."),
    "health_not_authenticated": Health("not authenticated"),
    "restarting_10_20": Restarting(10, 20),
}


def test_every_frame_of_the_vectors_is_tried() -> None:
    assert V2_FRAMES.keys() == V2["frames"].keys()
    assert V3_FRAMES.keys() == V3["frames"].keys()


@pytest.mark.parametrize("name", V2_FRAMES)
def test_v2_frames_are_encoded_and_decoded(name: str) -> None:
    data = bytes.fromhex(V2["frames"][name])
    codec = FramedCodec(v2.FRAMES, is_server=False)
    assert codec.encode(V2_FRAMES[name]) == data
    assert codec.receive(data) == [V2_FRAMES[name]]
    assert codec.error is None


@pytest.mark.parametrize("name", V3_FRAMES)
def test_v3_frames_are_encoded_and_decoded(name: str) -> None:
    data = bytes.fromhex(V3["frames"][name]["framed_stream"])
    codec = FramedCodec(v3.FRAMES, is_server=False)
    assert codec.encode(V3_FRAMES[name]) == data
    assert codec.receive(data) == [V3_FRAMES[name]]


@pytest.mark.parametrize("name", V3_FRAMES)
def test_v3_messages_are_encoded_and_decoded(name: str) -> None:
    message = bytes.fromhex(V3["frames"][name]["websocket_message"])
    assert v3.FRAMES.encode_message(V3_FRAMES[name]) == message
    assert v3.FRAMES.decode_message(message) == V3_FRAMES[name]


@pytest.mark.parametrize("dialect", ["v2", "v3"])
@pytest.mark.parametrize("is_server", [False, True])
@given(data=st.data())
def test_framed_streams_may_be_cut_anywhere(
    dialect: str, is_server: bool, data: st.DataObject
) -> None:
    table = {"v2": v2.FRAMES, "v3": v3.FRAMES}[dialect]
    sent = data.draw(st.lists(derp_frames(dialect), max_size=6))
    stream = b"".join(FramedCodec(table, is_server=False).encode(frame) for frame in sent)
    codec = FramedCodec(table, is_server=is_server)
    received: list[Frame] = []
    for chunk in data.draw(chunkings(stream)):
        received += codec.receive(chunk)
    assert received == sent
    assert codec.error is None


def ungrouped(frames: list[Frame | PacketGroups]) -> list[object]:
    """Return frames, with the packets for each destination between two of them."""
    flat: list[object] = []
    for frame in frames:
        if not isinstance(frame, PacketGroups):
            flat.append(frame)
            continue
        if not (flat and isinstance(flat[-1], dict)):
            flat.append({})
        packets = flat[-1]
        assert isinstance(packets, dict)
        for destination, parts in frame.groups.items():
            packets[destination] = packets.get(destination, b"") + b"".join(parts)
    return flat


@given(
    sent=st.lists(
        st.builds(SendPacket, st.sampled_from([A, PEER]), st.binary(max_size=100))
        | st.builds(Ping, st.binary(min_size=8, max_size=8)),
        max_size=12,
    ),
    data=st.data(),
)
@pytest.mark.parametrize("form", ["framed", "websocket"])
def test_packets_are_grouped_as_they_leave_wherever_the_stream_is_cut(
    form: str, sent: list[SendPacket | Ping], data: st.DataObject
) -> None:
    rng = random.Random(1)
    client: FrameCodec = FramedCodec(v3.FRAMES, is_server=False)
    server: FrameCodec = FramedCodec(v3.FRAMES, is_server=True)
    if form == "websocket":
        client, server = (
            WebsocketCodec(v3.FRAMES, mask_rng=rng),
            WebsocketCodec(v3.FRAMES, mask_rng=None),
        )
    stream = b"".join(client.encode(frame) for frame in sent)
    received: list[Frame | PacketGroups] = []
    for chunk in data.draw(chunkings(stream)):
        received += server.receive_grouped(chunk, CLIENT)
    relayed = FramedCodec(v3.FRAMES, is_server=True)
    expected: list[object] = []
    for frame in sent:
        if isinstance(frame, Ping):
            expected.append(frame)
            continue
        if not (expected and isinstance(expected[-1], dict)):
            expected.append({})
        packets = expected[-1]
        assert isinstance(packets, dict)
        packet = relayed.encode(RecvPacket(CLIENT, frame.payload))
        packets[frame.dst] = packets.get(frame.dst, b"") + packet
    assert ungrouped(received) == expected
    assert server.error is None


class TestRuns:
    """Reads that are whole packets of one size for one destination."""

    @staticmethod
    def codec() -> FramedCodec:
        """Return a server's codec that has seen a packet as long as the others."""
        codec = FramedCodec(v3.FRAMES, is_server=True)
        codec.receive_grouped(packets_to(A, [bytes(50)]), CLIENT)
        return codec

    @pytest.mark.parametrize("count", [1, 2, 8])
    def test_they_are_taken_in_one_piece(self, count: int) -> None:
        payloads = [bytes([number]) * 50 for number in range(count)]
        run = self.codec().receive_run(packets_to(PEER, payloads))
        assert run is not None
        destination, data, packets = run
        assert (destination, packets) == (PEER, count)
        server = FramedCodec(v3.FRAMES, is_server=True)
        assert data == server.encode_packets(CLIENT, payloads)
        assert server.encode_relayed(parts_of_run(run)) == [data]

    def test_a_payload_that_looks_like_a_header_stays_as_it_is(self) -> None:
        header = packets_to(PEER, [bytes(50)])[:37]
        payloads = [(header * 2)[:50], bytes(13) + header, header + bytes(13)]
        run = self.codec().receive_run(packets_to(PEER, payloads))
        assert run is not None
        assert run[1] == FramedCodec(v3.FRAMES, is_server=True).encode_packets(CLIENT, payloads)

    @pytest.mark.parametrize(
        "stream",
        [
            b"",
            HEADER.pack(4, 32 + 50),
            FramedCodec(v3.FRAMES, is_server=False).encode(Ping(bytes(8))),
        ],
    )
    def test_what_is_none_is_left(self, stream: bytes) -> None:
        codec = self.codec()
        assert codec.receive_run(stream) is None
        assert codec.receive_run(packets_to(PEER, [bytes(50)])) is not None

    @pytest.mark.parametrize(
        "stream",
        [
            lambda: packets_to(PEER, [bytes(51)]),
            lambda: packets_to(PEER, [bytes(50), bytes(49)]),
            lambda: packets_to(PEER, [bytes(50)]) + packets_to(A, [bytes(50)]),
            lambda: packets_to(PEER, [bytes(50)] * 2)[:-1],
            lambda: packets_to(PEER, [bytes(50)] * (RUN_LIMIT + 1)),
        ],
    )
    def test_other_packets_are_left(self, stream: Callable[[], bytes]) -> None:
        assert self.codec().receive_run(stream()) is None

    def test_the_rest_of_a_packet_is_no_run_however_it_looks(self) -> None:
        codec = self.codec()
        inner = packets_to(PEER, [bytes(50)])
        whole = packets_to(PEER, [inner])
        assert codec.receive_grouped(whole[:37], CLIENT) == []
        assert codec.receive_run(whole[37:]) is None
        (groups,) = codec.receive_grouped(whole[37:], CLIENT)
        assert isinstance(groups, PacketGroups)
        assert bytes(groups.groups[bytes(PEER)][1]) == inner

    def test_there_are_none_behind_a_fault(self) -> None:
        codec = self.codec()
        codec.receive_grouped(HEADER.pack(99, 0), CLIENT)
        assert codec.error is not None
        assert codec.receive_run(packets_to(PEER, [bytes(50)])) is None

    def test_a_frame_that_tailscale_skips_may_hold_what_looks_like_one(self) -> None:
        codec = CurveCodec(is_server=True)
        packet = HEADER.pack(4, 32 + 50) + PEER + bytes(50)
        codec.receive_grouped(packet, CLIENT)
        assert codec.receive_run(packet) is not None
        codec.receive_grouped(HEADER.pack(0x77, len(packet)), CLIENT)
        assert codec.receive_run(packet) is None
        assert codec.receive_grouped(packet, CLIENT) == []
        assert codec.receive_run(packet) is not None


def packets_to(node_id: NodeId, payloads: Sequence[bytes]) -> bytes:
    return FramedCodec(v3.FRAMES, is_server=False).encode_packets(node_id, payloads)


def test_one_frame_can_be_taken_before_others() -> None:
    codec = FramedCodec(v3.FRAMES, is_server=True)
    stream = codec.encode(Ping(bytes(8))) + codec.encode(Ping(b"\x01" * 8)) + b"\x0c"
    assert codec.receive_one(stream[:4]) is None
    assert codec.receive_one(stream[4:]) == Ping(bytes(8))
    assert codec.receive(b"") == [Ping(b"\x01" * 8)]
    assert codec.receive(codec.encode(Ping(bytes(8)))[1:]) == [Ping(bytes(8))]


def test_packets_encode_as_single_frames_do() -> None:
    payloads = [b"a", b"bb", b"cc", b"", bytes(PACKET_LIMIT)]
    server = FramedCodec(v2.FRAMES, is_server=True)
    client = FramedCodec(v2.FRAMES, is_server=False)
    assert server.encode_packets(A, payloads) == b"".join(
        server.encode(RecvPacket(A, payload)) for payload in payloads
    )
    assert client.encode_packets(A, payloads) == b"".join(
        client.encode(SendPacket(A, payload)) for payload in payloads
    )


NOT_A_KEY = b"\x02" + bytes(31)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (HEADER.pack(99, 0), "unknown frame number 99"),
        (HEADER.pack(4, 31), "SendPacket has 32 to 65568 bytes, not 31"),
        (HEADER.pack(4, PACKET_LIMIT + 33), "SendPacket has 32 to 65568 bytes, not 65569"),
        (HEADER.pack(5, PACKET_LIMIT + 33), "RecvPacket has"),
        (HEADER.pack(6, 1), "KeepAlive has 0 to 0 bytes, not 1"),
        (HEADER.pack(7, 1) + b"\x02", "NotePreferred says 0 or 1, not 02"),
        (HEADER.pack(8, 33), "PeerGone has 32 to 32 bytes, not 33"),
        (HEADER.pack(8, 32) + NOT_A_KEY, "not a point of the Edwards curve"),
        (HEADER.pack(4, 33) + NOT_A_KEY + b"x", "not a point of the Edwards curve"),
        (HEADER.pack(12, 9), "Ping has 8 to 8 bytes, not 9"),
        (HEADER.pack(13, 7), "Pong has"),
        (HEADER.pack(14, 2) + b"\xff\xfe", "a Health frame that is not UTF-8"),
        (HEADER.pack(14, FRAME_LIMIT + 1), "Health has"),
        (HEADER.pack(15, 4), "Restarting has"),
        (HEADER.pack(2, HANDSHAKE_FRAME_LIMIT + 1), "ClientInfo has"),
        (HEADER.pack(16, 64 + v2.FORWARD_LIMIT + 1), "ForwardPacket has"),
        (HEADER.pack(1, 40) + b"DERP" + bytes(36), "without DERP's magic"),
        (HEADER.pack(1, 41), "ServerKey has 40 to 40 bytes, not 41"),
    ],
)
def test_a_fault_ends_decoding_behind_the_frames_that_came_before(data: bytes, reason: str) -> None:
    for pieces in ([data], [data[i : i + 1] for i in range(len(data))]):
        codec = FramedCodec(v2.FRAMES, is_server=True)
        good = codec.encode(Ping(bytes(8)))
        received = codec.receive(good + pieces[0])
        for piece in pieces[1:]:
            received += codec.receive(piece)
        assert received == [Ping(bytes(8))]
        assert codec.error is not None
        assert reason in str(codec.error)
        assert codec.receive(good) == []
        assert codec.receive_grouped(good, A) == []
        assert codec.receive_one(good) is None


def test_v3_has_no_frames_of_meshes_or_server_keys() -> None:
    for number in (1, 3, 9, 10, 11, 16):
        with pytest.raises(DecodeError, match="unknown"):
            v3.FRAMES.decoder(number, 0)
    with pytest.raises(LocalProtocolError, match="no WatchConns"):
        FramedCodec(v3.FRAMES, is_server=False).encode(WatchConns())
    with pytest.raises(LocalProtocolError, match="cannot have 9 bytes"):
        FramedCodec(v3.FRAMES, is_server=False).encode(Ping(bytes(9)))


def test_what_no_client_may_send_is_a_fault_to_servers() -> None:
    for table, frame in (
        (v2.FRAMES_OF_CLIENTS, Health("")),
        (v3.FRAMES_OF_CLIENTS, Health("")),
    ):
        codec = FramedCodec(table, is_server=True)
        assert codec.receive(codec.encode(frame)) == []
        assert codec.error is not None


@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_raise(data: bytes, is_server: bool) -> None:
    for table in (v2.FRAMES, v3.FRAMES):
        FramedCodec(table, is_server=is_server).receive(data)
        FramedCodec(table, is_server=is_server).receive_one(data)
        FramedCodec(table, is_server=True).receive_grouped(data, A)
        WebsocketCodec(table, mask_rng=None if is_server else random.Random(1)).receive(data)


def test_an_endless_frame_of_small_pieces_costs_linear_time() -> None:
    # Joining all that has arrived for each piece would copy 20 GB here.
    codec = FramedCodec(v3.FRAMES, is_server=False)
    codec.receive(HEADER.pack(14, FRAME_LIMIT))
    for _ in range(FRAME_LIMIT // 32 - 1):
        assert codec.receive(b"x" * 32) == []
    assert codec.receive(b"x" * 32) == [Health("x" * FRAME_LIMIT)]


# Websockets


def websocket_pair() -> tuple[WebsocketCodec, WebsocketCodec]:
    rng = random.Random(5)
    return WebsocketCodec(v3.FRAMES, mask_rng=rng), WebsocketCodec(v3.FRAMES, mask_rng=None)


@given(data=st.data())
def test_websocket_streams_may_be_cut_anywhere(data: st.DataObject) -> None:
    sent = data.draw(st.lists(derp_frames("v3"), max_size=6))
    client, server = websocket_pair()
    for sender, receiver in ((client, server), (server, client)):
        stream = b"".join(sender.encode(frame) for frame in sent)
        received: list[Frame] = []
        for chunk in data.draw(chunkings(stream)):
            received += receiver.receive(chunk)
        assert received == sent
        assert receiver.error is None


def test_a_message_is_refused_as_soon_as_its_kind_is_known_to_be_shorter() -> None:
    ping, unmasked = 12, bytes(4)
    head = b"\x82\xfe\x10\x00" + unmasked
    for size in (1, 9):  # the server learns of it in pieces of that size
        _, server = websocket_pair()
        for start in range(0, len(head), size):
            assert server.receive(head[start : start + size]) == []
        assert server.error is None
        assert server.receive(bytes((ping,))) == []
        assert str(server.error) == "a message of more than 8 bytes"


@pytest.mark.parametrize("size", [0, 91, 92, 93, 65_502, 65_503, PACKET_LIMIT])
def test_messages_of_each_length_are_what_wsproto_reads(size: int) -> None:
    client, server = websocket_pair()
    payload = random.Random(size).randbytes(size)
    for codec, kind, number in (
        (client, ConnectionType.SERVER, 4),
        (server, ConnectionType.CLIENT, 5),
    ):
        connection = Connection(kind)
        connection.receive_data(codec.encode_packets(A, [payload, b"next"]))
        read = [event.data for event in connection.events() if isinstance(event, BytesMessage)]
        assert b"".join(read) == bytes((number,)) + A + payload + bytes((number,)) + A + b"next"
        assert (
            codec.encode_packets(A, [payload])[:2]
            == codec.encode(SendPacket(A, payload) if number == 4 else RecvPacket(A, payload))[:2]
        )


def test_relayed_packets_are_rewrapped_as_messages() -> None:
    client, server = websocket_pair()
    stream = client.encode_packets(PEER, [b"one", b"two"])
    (groups,) = server.receive_grouped(stream, CLIENT)
    assert isinstance(groups, PacketGroups)
    pieces = server.encode_relayed(groups.groups[bytes(PEER)])
    assert len(pieces) == 2
    assert client.receive(b"".join(pieces)) == [
        RecvPacket(CLIENT, b"one"),
        RecvPacket(CLIENT, b"two"),
    ]


def test_fragments_are_joined_and_text_is_skipped() -> None:
    peer = Connection(ConnectionType.CLIENT)
    message = v3.FRAMES.encode_message(Ping(bytes(8)))
    _, server = websocket_pair()
    stream = peer.send(TextMessage(data="hello"))
    stream += peer.send(BytesMessage(data=message[:3], message_finished=False))
    stream += peer.send(WebsocketPing(payload=b"there?"))
    stream += peer.send(BytesMessage(data=message[3:]))
    assert server.receive(stream) == [Ping(bytes(8))]
    peer.receive_data(server.replies())
    assert list(peer.events()) == [WebsocketPong(payload=b"there?")]
    assert server.replies() == b""


@pytest.mark.parametrize(
    ("payload", "code"), [(b"\x03\xe8", 1000), (b"\x03\xe9bye", 1001), (b"", 1005)]
)
def test_a_closing_handshake_is_answered(payload: bytes, code: int) -> None:
    peer = Connection(ConnectionType.CLIENT)
    _, server = websocket_pair()
    closing = bytes((0x88, 0x80 | len(payload))) + bytes(4) + payload
    assert server.receive(closing + b"anything") == []
    assert server.is_closed
    assert server.error is None
    assert server.receive(b"\xff" * 10) == []
    peer.receive_data(server.replies())
    (answer,) = peer.events()
    assert isinstance(answer, CloseConnection)
    assert answer.code == code


def test_a_goodbye_is_a_closing_handshake() -> None:
    client, server = websocket_pair()
    assert server.receive(client.goodbye()) == []
    assert server.is_closed
    assert client.receive(server.replies()) == []
    assert client.is_closed


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x82\x00", "not a websocket frame"),  # a client that does not mask
        (b"\x82\x80\0\0\0\0", "an empty message"),
        (b"\x82\x81\0\0\0\0\x63", "unknown frame number 99"),
        (b"\x82\x8a\0\0\0\0\x0c" + bytes(9), "more than"),
        (b"\x82\x81\0\0\0\0\x0c", "Ping has 8 to 8 bytes, not 0"),
        (b"\xf2\x80\0\0\0\0", "not a websocket frame"),
        (b"\x81\x82\0\0\0\0\xff\xfe", "not a websocket frame"),
    ],
)
def test_a_fault_in_a_websocket_ends_decoding(data: bytes, reason: str) -> None:
    client, server = websocket_pair()
    good = client.encode(Ping(bytes(8)))
    assert server.receive(good + data) == [Ping(bytes(8))]
    assert server.error is not None
    assert reason in str(server.error)
    assert server.receive(good) == []
    assert server.receive_one(good) is None
    assert server.receive_grouped(good, A) == []


def test_a_message_is_refused_as_soon_as_it_is_too_long_for_its_kind() -> None:
    _, server = websocket_pair()
    header = b"\x82\xff" + (1 << 40).to_bytes(8, "big") + bytes(4)
    server.receive(header)
    assert server.error is None
    server.receive(b"\x04")
    assert server.error is not None


# Payloads


def test_datagrams_are_packed_as_in_the_vector() -> None:
    datagrams = [text.encode() for text in BATCHING["datagrams_text"]]
    payload = bytes.fromhex(BATCHING["payload"])
    assert pack_datagrams(datagrams) == [payload]
    assert split_datagrams(payload) == datagrams
    assert packed_size(datagrams) == len(payload)
    assert BATCHING["max_payload_after_prefixes"] == PACKED_LIMIT


@given(st.lists(st.binary(max_size=40) | st.sampled_from([bytes(1200), bytes(60_000)])))
def test_what_was_packed_is_split_again(datagrams: list[bytes]) -> None:
    payloads = pack_datagrams(datagrams)
    assert [item for payload in payloads for item in split_datagrams(payload)] == datagrams
    assert all(len(payload) <= PACKED_LIMIT for payload in payloads)


def test_payloads_are_filled_to_the_limit_and_no_further() -> None:
    assert pack_datagrams([]) == []
    assert pack_datagrams([b""]) == [b"\0\0"]
    whole = bytes(DATAGRAM_LIMIT)
    assert [len(payload) for payload in pack_datagrams([whole, b""])] == [PACKED_LIMIT, 2]
    shorter = bytes(DATAGRAM_LIMIT - 2)
    assert [len(payload) for payload in pack_datagrams([shorter, b""])] == [PACKED_LIMIT]
    with pytest.raises(LocalProtocolError, match="at most 65502"):
        pack_datagrams([bytes(DATAGRAM_LIMIT + 1)])


@pytest.mark.parametrize(
    ("payload", "datagrams"),
    [
        ("", []),
        ("05", []),
        ("0500", []),
        ("050048656c6c", []),
        ("050048656c6c6f06", [b"Hello"]),
        ("050048656c6c6f060057", [b"Hello"]),
        ("00000000", [b"", b""]),
        ("0000", [b""]),
    ],
)
def test_a_datagram_cut_short_is_left_out(payload: str, datagrams: list[bytes]) -> None:
    assert split_datagrams(bytes.fromhex(payload)) == datagrams


@given(st.binary(max_size=100))
def test_any_payload_splits(payload: bytes) -> None:
    assert packed_size(split_datagrams(payload)) <= len(payload)


def test_node_ids_of_frames_are_checked() -> None:
    assert node_id_of(bytes(A)) == A
    assert isinstance(node_id_of(bytes(A)), NodeId)
    with pytest.raises(DecodeError):
        node_id_of(NOT_A_KEY)
