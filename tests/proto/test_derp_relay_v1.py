"""The relay protocol of iroh 0.91 and later, both sides, byte by byte."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iroh_proto.derp.approach import Approach
from iroh_proto.derp.client import DerpClient
from iroh_proto.derp.datagram_frames import (
    RecvDatagram,
    RecvDatagramBatch,
    SendDatagram,
    SendDatagramBatch,
)
from iroh_proto.derp.dialects import DIALECTS, relay_v1
from iroh_proto.derp.dialects.relay_v1 import (
    FRAMES,
    FRAMES_OF_CLIENTS,
    FRAMES_OF_V1_SERVERS,
    FRAMES_OF_V2_SERVERS,
    SUBPROTOCOLS,
    ClientAuth,
    ServerChallenge,
    ServerConfirmsAuth,
    ServerDeniesAuth,
)
from iroh_proto.derp.events import (
    ConnectionLost,
    DerpConnected,
    HealthReported,
    PeerGone,
    PongReceived,
    ReceivedDatagrams,
)
from iroh_proto.derp.frames import (
    DATAGRAM_LIMIT,
    KEYED_HEADER,
    LENGTH_PREFIX_SIZE,
    PACKED_LIMIT,
    RECOVERED,
    RELAYED_PACKET,
    SAME_NODE_ID_PROBLEM,
    Frame,
    FrameTable,
    Health,
    NotePreferred,
    PacketGroups,
    PacketParts,
    Ping,
    Pong,
    Restarting,
    SendPacket,
    Status,
    pack_datagrams,
    split_datagrams,
)
from iroh_proto.derp.frames import PeerGone as PeerGoneFrame
from iroh_proto.derp.reception import best_subprotocol
from iroh_proto.derp.relay_codec import BODY_LIMIT, MESSAGE_LIMIT, RelayCodec
from iroh_proto.derp.segments import (
    BATCH_HEADER,
    BATCH_LIMIT,
    CONVERTED_LIMIT,
    RELAYED_BATCH,
    bare_parts,
    batches,
    packed_parts,
    segments,
    unpacked_parts,
)
from iroh_proto.derp.server import DerpServerConnection
from iroh_proto.derp.server_events import ClientAdmitted
from iroh_proto.derp.server_events import ConnectionLost as ServerConnectionLost
from iroh_proto.derp.websocket import WebsocketMessages
from iroh_proto.errors import DecodeError, LocalProtocolError
from iroh_proto.key import KEY_SIZE, SecretKey
from iroh_proto.testing.strategies import chunkings, derp_frames
from tests.proto.derp_peer import RELAY_WAYS, SERVER_KEY, Peer
from tests.proto.derp_world import (
    CLIENT_KEY,
    OTHER_PEER,
    PEER,
    RELAY_V1_SERVER,
    RELAY_V2_SERVER,
    URL,
    V3_SERVER,
    Answers,
    ServerSide,
    events_of,
    exchange,
)

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "vectors" / "relay.json").read_text()
)["iroh_0_91_to_1_x_relay"]
AUTH: dict[str, str] = VECTORS["challenge_handshake"]
EXPORTER: dict[str, str] = VECTORS["tls_exporter_handshake"]

KEY = SecretKey.from_bytes(bytes.fromhex(VECTORS["client_seed"]))
A = KEY.public
CHALLENGE = bytes.fromhex(AUTH["challenge"])
EIGHT = b"\x2a" * 8
HELLO = b"Hello World!"

SNAPSHOTS: dict[str, Frame] = {
    "client_ping": Ping(EIGHT),
    "client_pong": Pong(EIGHT),
    "client_datagram_batch_ce_seg6": SendDatagramBatch(A, 3, 6, HELLO),
    "client_datagram_ce": SendDatagram(A, 3, HELLO),
    "server_health_v1": Health("Hello? Yes this is dog."),
    "server_endpoint_gone": PeerGoneFrame(A),
    "server_ping": Ping(EIGHT),
    "server_pong": Pong(EIGHT),
    "server_datagram_batch_ce_seg6": RecvDatagramBatch(A, 3, 6, HELLO),
    "server_datagram_ce": RecvDatagram(A, 3, HELLO),
    "server_restarting_10_20": Restarting(10, 20),
    "server_status_same_endpoint_v2": Status(1),
}
OTHERS: dict[str, Frame] = {
    VECTORS["server_status_rate_limited_v2_main_only"]: Status(2),
    VECTORS["server_status_healthy_v2"]: Status(0),
    VECTORS["datagram_no_ecn"]: SendDatagram(A, 0, HELLO),
    VECTORS["datagram_ect0"]: SendDatagram(A, 2, HELLO),
    VECTORS["datagram_ect1"]: SendDatagram(A, 1, HELLO),
    AUTH["server_challenge_frame"]: ServerChallenge(CHALLENGE),
    AUTH["client_auth_frame"]: ClientAuth(A, bytes.fromhex(AUTH["signature"])),
    AUTH["server_confirms_frame"]: ServerConfirmsAuth(),
    AUTH["server_denies_not_authorized_frame"]: ServerDeniesAuth("not authorized"),
    AUTH["server_denies_signature_invalid_frame"]: ServerDeniesAuth("signature invalid"),
}

FROM_CLIENT: list[Frame] = [
    ClientAuth(A, bytes(64)),
    SendDatagram(A, 0, b"x"),
    SendDatagramBatch(A, 0, 1, b"xy"),
]
FROM_SERVER: list[Frame] = [
    ServerChallenge(CHALLENGE),
    ServerConfirmsAuth(),
    ServerDeniesAuth("no"),
    RecvDatagram(A, 0, b"x"),
    RecvDatagramBatch(A, 0, 1, b"xy"),
    PeerGoneFrame(A),
    Restarting(1, 2),
]


def client_codec(table: FrameTable = FRAMES) -> RelayCodec:
    return RelayCodec(table, mask_rng=random.Random(5))


def server_codec(table: FrameTable = FRAMES_OF_CLIENTS) -> RelayCodec:
    return RelayCodec(table, mask_rng=None)


def message(content: bytes) -> bytes:
    """Return a message of a client, whatever it holds."""
    return WebsocketMessages(mask_rng=random.Random(1), check=lambda *_: None).build(content)


# Frames


def test_every_upstream_snapshot_is_tried() -> None:
    snapshots = dict(VECTORS["frames_upstream_snapshot"])
    del snapshots["source"]
    assert SNAPSHOTS.keys() == snapshots.keys()


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_frames_are_those_of_upstreams_snapshots(name: str) -> None:
    data = bytes.fromhex(VECTORS["frames_upstream_snapshot"][name])
    assert FRAMES.encode_message(SNAPSHOTS[name]) == data
    assert FRAMES.decode_message(data) == SNAPSHOTS[name]


@pytest.mark.parametrize("data", OTHERS)
def test_other_frames_are_those_of_the_vectors(data: str) -> None:
    assert FRAMES.encode_message(OTHERS[data]).hex() == data
    assert FRAMES.decode_message(bytes.fromhex(data)) == OTHERS[data]


@given(sent=st.lists(derp_frames("relay-v1"), max_size=6), data=st.data())
def test_streams_may_be_cut_anywhere(sent: list[Frame], data: st.DataObject) -> None:
    for sender, receiver in (
        (client_codec(), server_codec(FRAMES)),
        (server_codec(FRAMES), client_codec()),
    ):
        stream = b"".join(map(sender.encode, sent))
        received: list[Frame] = []
        for chunk in data.draw(chunkings(stream)):
            received += receiver.receive(chunk)
        assert received == sent
        assert receiver.error is None


@pytest.mark.parametrize("width", [2, 4, 8])
def test_numbers_may_be_written_longer_than_needed(width: int) -> None:
    prefix = {2: 0x40, 4: 0x80, 8: 0xC0}[width]
    codec = server_codec()
    number = bytes((prefix, *bytes(width - 2), 9))
    assert codec.receive(message(number + EIGHT)) == [Ping(EIGHT)]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "an empty message"),
        (b"\x0e", "unknown frame number 14"),
        (b"\x40\x40", "unknown frame number 64"),
        (b"\x80\x00", "cut short"),
        (b"\x04" + A, "SendDatagram has 33 to 65536 bytes, not 32"),
        (b"\x05" + A + b"\0\0", "SendDatagramBatch has 35 to 65536 bytes, not 34"),
        (b"\x04" + b"\x02" + bytes(32), "not a point"),
        (b"\x04" + A + bytes(BODY_LIMIT - 31), "SendDatagram has 33 to 65536 bytes, not 65537"),
        (b"\x09" + bytes(9), "Ping has 8 to 8 bytes, not 9"),
        (b"\x0a" + bytes(7), "Pong has 8 to 8 bytes, not 7"),
        (b"\x01" + A + b"\x3f" + bytes(64), "a signature has 64 bytes, not 63"),
        (b"\x01" + A + b"\x41" + bytes(64), "cut short"),
        (b"\x01" + bytes(4096), "cut short|not 4096|point|signature"),
    ],
)
def test_a_fault_ends_decoding_behind_the_frames_that_came_before(
    content: bytes, reason: str
) -> None:
    codec, good = server_codec(), message(b"\x09" + EIGHT)
    assert codec.receive(good + message(content)) == [Ping(EIGHT)]
    with pytest.raises(DecodeError, match=reason):
        raise codec.error or AssertionError
    assert codec.receive(good) == []
    assert codec.receive_one(good) is None
    assert codec.receive_grouped(good, A) == []


def test_a_message_is_refused_as_soon_as_it_is_too_long() -> None:
    head = b"\xff" + (1 << 40).to_bytes(8, "big") + bytes(4) + b"\x04"
    codec = server_codec()
    codec.receive(b"\x82" + head[:-1])
    assert codec.error is None
    codec.receive(head[-1:])
    assert "a message of more than" in str(codec.error)
    of_parts = server_codec()
    of_parts.receive(b"\x02" + head + bytes(65_000))
    assert of_parts.error is None
    of_parts.receive(bytes(1000))
    assert "a message of more than" in str(of_parts.error)


@pytest.mark.parametrize("frame", [*FROM_SERVER, Health("sick"), Status(1)])
def test_a_frame_of_servers_ends_a_clients_connection(frame: Frame) -> None:
    codec = server_codec()
    assert codec.receive(client_codec().encode(frame)) == []
    assert "unknown frame number" in str(codec.error)


@pytest.mark.parametrize("frame", FROM_CLIENT)
@pytest.mark.parametrize("table", [FRAMES_OF_V1_SERVERS, FRAMES_OF_V2_SERVERS])
def test_a_frame_of_clients_ends_a_servers_connection(table: FrameTable, frame: Frame) -> None:
    codec = client_codec(table)
    assert codec.receive(server_codec().encode(frame)) == []
    assert "unknown frame number" in str(codec.error)


def test_each_version_has_its_own_way_to_tell_of_problems() -> None:
    for table, own, other in (
        (FRAMES_OF_V1_SERVERS, Health("sick"), Status(1)),
        (FRAMES_OF_V2_SERVERS, Status(1), Health("sick")),
    ):
        codec = client_codec(table)
        assert codec.receive(server_codec().encode(own)) == [own]
        assert codec.receive(server_codec().encode(other)) == []
        assert codec.error is not None


def test_only_the_low_bits_of_ecn_count_and_later_bytes_of_a_status_do_not() -> None:
    assert FRAMES.decode_message(b"\x06" + A + b"\xffx") == RecvDatagram(A, 3, b"x")
    assert FRAMES.encode_message(RecvDatagram(A, 0xFF, b"x")) == b"\x06" + A + b"\x03x"
    assert FRAMES.decode_message(b"\x0d\x01more") == Status(1)
    with pytest.raises(DecodeError, match="Status has"):
        FRAMES.decode_message(b"\x0d")


def test_there_is_nothing_of_older_dialects() -> None:
    for frame in (NotePreferred(True), SendPacket(A, b"")):
        with pytest.raises(LocalProtocolError, match="no "):
            client_codec().encode(frame)


@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_raise(data: bytes, is_framed: bool) -> None:
    data = message(data) if is_framed else data
    server_codec().receive(data)
    server_codec().receive_one(data)
    server_codec().receive_grouped(data, A)
    client_codec().receive(data)


# Datagrams

sizes = st.sampled_from([1, 2, 7, 1200, 1200, 1200, 30_000, BATCH_LIMIT, DATAGRAM_LIMIT])
datagram_lists = st.lists(sizes.map(lambda size: bytes((size % 251,)) * size), max_size=12)


@given(datagram_lists)
def test_what_was_put_in_batches_is_split_again(datagrams: list[bytes]) -> None:
    found = batches(datagrams)
    assert [item for size, data in found for item in segments(data, size)] == datagrams
    for size, data in found:
        assert len(data) <= (BATCH_LIMIT if size else DATAGRAM_LIMIT)
        assert 0 <= size < len(data)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([5], [(0, 5)]),
        ([5, 5], [(5, 10)]),
        ([5, 5, 3], [(5, 13)]),
        ([5, 3, 3], [(5, 8), (0, 3)]),
        ([3, 5, 5], [(0, 3), (5, 10)]),
        ([0, 5, 0, 5], [(5, 10)]),
        ([DATAGRAM_LIMIT + 1, 5], [(0, 5)]),
        ([DATAGRAM_LIMIT, DATAGRAM_LIMIT], [(0, DATAGRAM_LIMIT), (0, DATAGRAM_LIMIT)]),
        ([1310] * 51, [(1310, 1310 * 50), (0, 1310)]),
    ],
)
def test_batches_are_as_few_as_can_be(sizes: list[int], expected: list[tuple[int, int]]) -> None:
    found = batches([bytes(size) for size in sizes])
    assert [(size, len(data)) for size, data in found] == expected


@pytest.mark.parametrize(
    ("data", "segment_size", "datagrams"),
    [
        (b"", 0, []),
        (b"", 3, []),
        (b"abcdefg", 0, [b"abcdefg"]),
        (b"abcdefg", 7, [b"abcdefg"]),
        (b"abcdefg", 9, [b"abcdefg"]),
        (b"abcdefg", 3, [b"abc", b"def", b"g"]),
    ],
)
def test_a_batch_is_its_datagrams(data: bytes, segment_size: int, datagrams: list[bytes]) -> None:
    assert segments(data, segment_size) == datagrams
    assert RecvDatagramBatch(A, 0, segment_size, data).datagrams() == datagrams


def relay(
    sender: RelayCodec, receiver_dialect: str, receiver_form: Any, stream: Iterable[bytes]
) -> tuple[list[bytes], list[Frame]]:
    """Pass a client's stream through a server; return the pieces and what a client makes of it."""
    receiving = server_codec()
    dialect = DIALECTS[receiver_dialect]
    pieces: list[bytes] = []
    for data in stream:
        for item in receiving.receive_grouped(data, A):
            assert isinstance(item, PacketGroups)
            pieces += dialect.server_codec(receiver_form).encode_relayed(item.groups[PEER])
    assert receiving.error is None
    client = dialect.client_codec(receiver_form, rng=random.Random(9))
    return pieces, client.receive(b"".join(pieces))


@pytest.mark.parametrize("name", ["relay-v1", "relay-v2"])
def test_within_the_generation_frames_pass_as_they_are(name: str) -> None:
    codec = client_codec()
    sent: list[Frame] = [SendDatagram(PEER, 2, b"one"), SendDatagramBatch(PEER, 3, 3, b"twothr")]
    pieces, received = relay(codec, name, "websocket", map(codec.encode, sent))
    assert received == [RecvDatagram(A, 2, b"one"), RecvDatagramBatch(A, 3, 3, b"twothr")]
    assert len(pieces) == 2


@pytest.mark.parametrize("segment_size", [0, 6, 100])
def test_a_batch_of_one_is_passed_on_as_a_single_datagram(segment_size: int) -> None:
    codec = client_codec()
    stream = [codec.encode(SendDatagramBatch(PEER, 1, segment_size, b"single"))]
    _, received = relay(codec, "relay-v2", "websocket", stream)
    assert received == [RecvDatagram(A, 1, b"single")]


@pytest.mark.parametrize(
    ("dialect", "form"), [("v2", "framed"), ("v3", "framed"), ("v3", "websocket")]
)
@given(datagrams=datagram_lists)
def test_older_generations_get_the_same_datagrams_packed(
    dialect: str, form: str, datagrams: list[bytes]
) -> None:
    codec = client_codec()
    stream = codec.encode_packets(PEER, pack_datagrams(datagrams))
    pieces, received = relay(codec, dialect, form, [stream])
    payloads = [getattr(frame, "payload") for frame in received]  # noqa: B009
    assert [item for payload in payloads for item in split_datagrams(payload)] == datagrams
    assert all(len(payload) <= PACKED_LIMIT for payload in payloads)
    assert (pieces == []) == (datagrams == [])


@pytest.mark.parametrize(
    ("dialect", "form"), [("v2", "framed"), ("v3", "framed"), ("v3", "websocket")]
)
@given(datagrams=datagram_lists)
def test_later_generations_get_packed_datagrams_in_frames(
    dialect: str, form: Any, datagrams: list[bytes]
) -> None:
    sender = DIALECTS[dialect].client_codec(form, rng=random.Random(2))
    stream = sender.encode_packets(PEER, pack_datagrams(datagrams))
    received: list[Frame] = []
    for item in DIALECTS[dialect].server_codec(form).receive_grouped(stream, A):
        assert isinstance(item, PacketGroups)
        for piece in server_codec().encode_relayed(item.groups[PEER]):
            (frame,) = client_codec().receive(piece)
            received.append(frame)
    found: list[bytes] = []
    for frame in received:
        assert isinstance(frame, RecvDatagram | RecvDatagramBatch)
        assert (frame.src, frame.ecn) == (A, 0)
        found += frame.datagrams()
    assert found == datagrams


def test_a_batch_that_grows_too_long_when_packed_becomes_several_packets() -> None:
    codec = client_codec()
    size = 130
    stream = [codec.encode(SendDatagramBatch(PEER, 0, size, bytes(BATCH_LIMIT)))]
    pieces, received = relay(codec, "v3", "framed", stream)
    assert len(pieces) == 1
    payloads = [getattr(frame, "payload") for frame in received]  # noqa: B009
    most = PACKED_LIMIT // (LENGTH_PREFIX_SIZE + size)
    counts = [len(split_datagrams(payload)) for payload in payloads]
    assert counts == [most, -(-BATCH_LIMIT // size) - most]


def test_of_tiny_datagrams_no_more_are_converted_than_a_queue_holds() -> None:
    limit = CONVERTED_LIMIT
    batch: PacketParts = [BATCH_HEADER.pack(RELAYED_BATCH, A, 0, 1), bytes(BATCH_LIMIT)]
    packed = packed_parts([*batch, *batch])
    assert sum(len(split_datagrams(bytes(payload))) for payload in packed[1::2]) == limit
    assert len(bare_parts([*batch, *batch], A)) == 2 * limit
    header = KEYED_HEADER.pack(RELAYED_PACKET, KEY_SIZE + 3 * limit, A)
    payload = b"\x01\x00x" * (limit - 10)
    tiny: PacketParts = [header, payload, header, payload]
    assert sum(len(segments(data, size)) for _, size, data in unpacked_parts(tiny)) == limit
    assert len(bare_parts(tiny, A)) == 2 * limit
    assert len(bare_parts(tiny, A, limit=7)) == 2 * 7
    assert bare_parts(tiny, A, limit=0) == []


@pytest.mark.parametrize(
    "frame",
    [
        SendDatagram(PEER, 0, b""),
        SendDatagramBatch(PEER, 0, 3, b""),
        SendDatagram(PEER, 0, bytes(MESSAGE_LIMIT - 33)),
        SendDatagramBatch(PEER, 0, 1200, bytes(MESSAGE_LIMIT - 35)),
    ],
    ids=lambda frame: f"{type(frame).__name__} {len(frame.data)}",
)
def test_what_would_end_the_receivers_connection_is_not_passed_on(frame: Frame) -> None:
    codec = server_codec()
    assert codec.receive_grouped(client_codec().encode(frame), A) == [frame]
    assert codec.error is None


def test_the_longest_that_may_be_passed_on_is() -> None:
    codec = client_codec()
    for frame in (
        SendDatagram(PEER, 0, bytes(DATAGRAM_LIMIT)),
        SendDatagramBatch(PEER, 0, 1200, bytes(BATCH_LIMIT)),
    ):
        _, (received,) = relay(codec, "relay-v2", "websocket", [codec.encode(frame)])
        assert isinstance(received, RecvDatagram | RecvDatagramBatch)
        assert len(FRAMES.encode_message(received)) == MESSAGE_LIMIT


def test_a_packet_without_a_whole_datagram_is_none_for_later_generations() -> None:
    sender = DIALECTS["v3"].client_codec("framed", rng=random.Random(2))
    stream = sender.encode_packets(PEER, [b"", b"\x05\x00cut", b"\0\0"])
    (groups,) = DIALECTS["v3"].server_codec("framed").receive_grouped(stream, A)
    assert isinstance(groups, PacketGroups)
    assert server_codec().encode_relayed(groups.groups[PEER]) == []


@given(
    sent=st.lists(
        st.builds(SendDatagram, st.sampled_from([A, PEER]), st.integers(0, 3), st.binary())
        | st.builds(
            SendDatagramBatch,
            st.sampled_from([A, PEER]),
            st.integers(0, 3),
            st.integers(0, 9),
            st.binary(),
        )
        | st.builds(Ping, st.binary(min_size=8, max_size=8)),
        max_size=12,
    ),
    data=st.data(),
)
def test_datagrams_are_grouped_as_they_leave_wherever_the_stream_is_cut(
    sent: list[SendDatagram | SendDatagramBatch | Ping], data: st.DataObject
) -> None:
    sender, receiver = client_codec(), server_codec()
    received: list[Frame | PacketGroups] = []
    for chunk in data.draw(chunkings(b"".join(map(sender.encode, sent)))):
        received += receiver.receive_grouped(chunk, OTHER_PEER)
    others: list[Frame] = []
    relayed: dict[bytes, list[bytes]] = {}
    for item in received:
        if isinstance(item, PacketGroups):
            for destination, parts in item.groups.items():
                relayed.setdefault(destination, []).extend(map(bytes, packed_parts(parts)[1::2]))
        else:
            others.append(item)
    expected: dict[bytes, list[bytes]] = {}
    for frame in sent:
        if not isinstance(frame, Ping) and frame.data:
            size = frame.segment_size if isinstance(frame, SendDatagramBatch) else 0
            payloads = pack_datagrams(segments(frame.data, size))
            expected.setdefault(frame.dst, []).extend(payloads)
    assert others == [frame for frame in sent if isinstance(frame, Ping) or not frame.data]
    assert relayed == expected


# Handshakes


def test_the_challenge_is_signed_as_in_the_vector() -> None:
    assert AUTH["blake3_derive_key_context_text"] == relay_v1.SIGNATURE_CONTEXT
    assert relay_v1.message_to_sign(CHALLENGE).hex() == AUTH["message_to_sign"]
    handshake = relay_v1.DIALECT_V2.client_handshake(secret_key=KEY, rng=random.Random(0))
    assert handshake.begin() == ()
    (frame,) = handshake.receive(ServerChallenge(CHALLENGE))
    assert FRAMES.encode_message(frame).hex() == AUTH["client_auth_frame"]
    assert not handshake.is_done
    assert handshake.receive(ServerConfirmsAuth()) == ()
    assert handshake.is_done


class Dice(random.Random):
    """Chance that always falls as the vector's challenge."""

    def randbytes(self, n: int) -> bytes:
        return CHALLENGE[:n]


def test_the_server_lets_in_as_in_the_vector() -> None:
    handshake = relay_v1.DIALECT_V1.server_handshake(secret_key=SERVER_KEY, rng=Dice(0))
    (challenge,) = handshake.begin()
    assert FRAMES.encode_message(challenge).hex() == AUTH["server_challenge_frame"]
    auth = FRAMES.decode_message(bytes.fromhex(AUTH["client_auth_frame"]))
    assert handshake.receive(auth) == A
    (confirmation,) = handshake.accept()
    assert FRAMES.encode_message(confirmation).hex() == AUTH["server_confirms_frame"]
    assert handshake.reject() == ()
    (denial,) = handshake.refuse("not authorized")
    assert FRAMES.encode_message(denial).hex() == AUTH["server_denies_not_authorized_frame"]


@pytest.mark.parametrize("what", ["signature", "node_id", "challenge"])
def test_the_server_denies_a_proof_of_something_else(what: str) -> None:
    rng = random.Random(0) if what == "challenge" else Dice(0)
    handshake = relay_v1.DIALECT_V2.server_handshake(secret_key=SERVER_KEY, rng=rng)
    handshake.begin()
    signature = bytes.fromhex(AUTH["signature"])
    if what == "signature":
        signature = signature[:-1] + bytes((signature[-1] ^ 1,))
    with pytest.raises(DecodeError, match="not the signature"):
        handshake.receive(ClientAuth(PEER if what == "node_id" else A, signature))
    (denial,) = handshake.reject()
    assert FRAMES.encode_message(denial).hex() == AUTH["server_denies_signature_invalid_frame"]


def test_the_server_answers_another_frame_with_silence() -> None:
    handshake = relay_v1.DIALECT_V2.server_handshake(secret_key=SERVER_KEY, rng=Dice(0))
    with pytest.raises(DecodeError, match="wanted ClientAuth, got Ping"):
        handshake.receive(Ping(EIGHT))
    assert handshake.reject() == ()


@pytest.mark.parametrize(
    ("before", "frame", "reason"),
    [
        ([], ServerDeniesAuth("not authorized"), "not authorized"),
        ([], ServerConfirmsAuth(), "no place"),  # nothing was proved, nothing is confirmed
        ([], Ping(EIGHT), "Ping has no place"),
        ([ServerChallenge(CHALLENGE)], ServerChallenge(CHALLENGE), "no place"),
        ([ServerChallenge(CHALLENGE)], ServerDeniesAuth("signature invalid"), "invalid"),
    ],
)
def test_the_client_wants_challenge_and_confirmation(
    before: list[Frame], frame: Frame, reason: str
) -> None:
    handshake = relay_v1.DIALECT_V1.client_handshake(secret_key=KEY, rng=random.Random(0))
    for earlier in before:
        handshake.receive(earlier)
    with pytest.raises(DecodeError, match=reason):
        handshake.receive(frame)
    assert not handshake.is_done


# The server's side of the upgrade


@pytest.mark.parametrize(
    ("offer", "chosen"),
    [
        (VECTORS["subprotocol_offer_text"]["0.91-0.97"], "iroh-relay-v1"),
        (VECTORS["subprotocol_offer_text"]["0.98+"], "iroh-relay-v2"),
        ("iroh-relay-v1,iroh-relay-v2", "iroh-relay-v2"),
        ("derp, iroh-relay-v1", "iroh-relay-v1"),
        ("iroh-relay-v3", None),
        ("", None),
    ],
)
def test_the_newest_known_subprotocol_is_chosen(offer: str, chosen: str | None) -> None:
    assert best_subprotocol(offer, path="/relay") == chosen
    assert best_subprotocol(offer, path="/derp") == ("derp" if "derp" in offer else None)


def asked(*headers: str, rng: random.Random | None = None) -> DerpServerConnection:
    connection = DerpServerConnection(secret_key=SERVER_KEY, rng=rng or random.Random(1))
    connection.start(now=0.0)
    lines = [
        "GET /relay?token=x HTTP/1.1",
        "Host: relay.example",
        "Upgrade: websocket",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        *headers,
    ]
    connection.receive_data("".join(line + "\r\n" for line in lines).encode() + b"\r\n", now=0.0)
    return connection


def test_a_real_clients_request_is_answered_as_upstream_does() -> None:
    # A proof by TLS's keying material in the request changes nothing: the challenge follows.
    parts = (EXPORTER["header_name_text"], EXPORTER["header_value_b64url_nopad_text"])
    proof = base64.urlsafe_b64decode(parts[1] + "=")
    assert proof.hex() == EXPORTER["postcard_body_113_bytes"]
    assert proof[:32] == A
    assert A.verify(bytes.fromhex(EXPORTER["signed_message_first16"]), proof[33:97])
    offer = VECTORS["subprotocol_offer_text"]["0.98+"]
    connection = asked(f"sec-websocket-protocol: {offer}", ": ".join(parts), rng=Dice(0))
    head, _, behind = connection.data_to_send().partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    assert status == b"HTTP/1.1 101 Switching Protocols"
    assert set(lines) == {
        b"upgrade: websocket",
        b"connection: upgrade",
        b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
        b"sec-websocket-protocol: iroh-relay-v2",
    }
    assert behind.hex() == "8211" + AUTH["server_challenge_frame"]
    auth = bytes.fromhex(AUTH["client_auth_frame"])
    connection.receive_data(message(auth), now=0.1)
    assert connection.data_to_send().hex() == "8201" + AUTH["server_confirms_frame"]
    assert connection.next_event() == ClientAdmitted(node_id=A, dialect="relay-v2")
    connection.receive_data(
        message(bytes.fromhex(VECTORS["frames_upstream_snapshot"]["client_ping"])), now=0.2
    )
    pong = VECTORS["frames_upstream_snapshot"]["server_pong"]
    assert connection.data_to_send().hex() == "8209" + pong
    connection.receive_data(message(bytes.fromhex(VECTORS["datagram_ect0"])), now=0.3)
    echoed = connection.data_to_send().hex()  # it sends to itself
    assert echoed == "822e" + "06" + VECTORS["datagram_ect0"][2:]


def test_a_forged_proof_is_denied_in_words_before_the_end() -> None:
    connection = asked("sec-websocket-protocol: iroh-relay-v1")
    connection.data_to_send()
    connection.receive_data(message(bytes.fromhex(AUTH["client_auth_frame"])), now=0.1)
    denial = AUTH["server_denies_signature_invalid_frame"]
    assert connection.data_to_send().hex() == "8213" + denial
    lost = connection.next_event()
    assert isinstance(lost, ServerConnectionLost)
    assert lost.error is not None
    assert connection.node_id is None


@pytest.mark.parametrize("way", RELAY_WAYS)
@given(data=st.data())
def test_a_whole_conversation_may_be_cut_anywhere(way: str, data: st.DataObject) -> None:
    peer = Peer(way, KEY)
    said: list[Frame] = [
        FRAMES.decode_message(bytes.fromhex(AUTH["client_auth_frame"])),
        SendDatagram(PEER, 2, b"one"),
        SendDatagramBatch(A, 0, 2, b"to me"),
        Ping(EIGHT),
        SendDatagramBatch(PEER, 1, 3, b"twothree"),
        SendDatagram(PEER, 0, b""),
    ]
    frames = b"".join(map(peer.codec.encode, said))
    stream = peer.request + frames + peer.codec.goodbye()
    whole, cut = (
        DerpServerConnection(secret_key=SERVER_KEY, rng=Dice(0)),
        DerpServerConnection(secret_key=SERVER_KEY, rng=Dice(0)),
    )
    written: list[bytes] = []
    for connection, pieces in ((whole, [stream]), (cut, data.draw(chunkings(stream)))):
        connection.start(now=0.0)
        for piece in pieces:
            connection.receive_data(piece, now=0.0)
        written.append(connection.data_to_send())
    assert written[0] == written[1]
    packets = whole.received_packets()
    assert list(packets) == [PEER]
    assert list(map(bytes, packets[PEER][1::2])) == [b"one", b"twothree"]
    assert cut.received_packets() == packets
    assert whole.stats == cut.stats
    for connection in (whole, cut):
        assert connection.next_event() == ClientAdmitted(node_id=A, dialect=way)
        assert connection.next_event() == ServerConnectionLost(error=None)


@pytest.mark.parametrize("way", RELAY_WAYS)
def test_datagrams_that_go_nowhere_are_counted(way: str) -> None:
    peer = Peer(way, KEY)
    connection = DerpServerConnection(secret_key=SERVER_KEY, rng=random.Random(1))
    connection.start(now=0.0)
    connection.receive_data(peer.request, now=0.0)
    connection.receive_data(peer.receive(connection.data_to_send()), now=0.0)
    assert connection.node_id == A
    connection.receive_data(peer.codec.encode(SendDatagram(PEER, 0, b"")), now=1.0)
    assert connection.received_packets() == {}
    assert connection.stats.frames_ignored == 1


# The client's side


RELAY_V1 = Approach("relay-v1", "/relay", "websocket")
RELAY_V2 = Approach("relay-v2", "/relay", "websocket")
EITHER = Approach(None, "/relay", "websocket")
V3_WEBSOCKET = Approach("v3", "/relay", "websocket")


def test_subprotocols_are_offered_down_from_the_dialects_own() -> None:
    assert ", ".join(EITHER.subprotocols) == VECTORS["subprotocol_offer_text"]["0.98+"]
    assert EITHER.subprotocols == RELAY_V2.subprotocols == tuple(SUBPROTOCOLS)
    assert RELAY_V1.subprotocols == (VECTORS["subprotocol_offer_text"]["0.91-0.97"],)
    for approach in (
        V3_WEBSOCKET,
        Approach("v3", "/relay", "framed"),
        Approach(None, "/derp", "framed"),
        Approach("v3", "/derp", "websocket"),
    ):
        assert approach.subprotocols == ()


def new_client(approach: Approach) -> DerpClient:
    return DerpClient(url=URL, secret_key=CLIENT_KEY, rng=random.Random(3), approach=approach)


@pytest.mark.parametrize(
    ("approach", "answers", "found"),
    [
        (EITHER, RELAY_V1_SERVER, RELAY_V1),
        (EITHER, RELAY_V2_SERVER, RELAY_V2),
        (EITHER, V3_SERVER, V3_WEBSOCKET),
        (RELAY_V1, RELAY_V1_SERVER, RELAY_V1),
        (RELAY_V2, RELAY_V2_SERVER, RELAY_V2),
        (RELAY_V2, RELAY_V1_SERVER, RELAY_V1),
    ],
)
@given(data=st.data())
def test_a_client_connects_however_the_stream_is_cut(
    approach: Approach, answers: Answers, found: Approach, data: st.DataObject
) -> None:
    client, server = new_client(approach), ServerSide(answers)
    client.note_preferred(True, now=0.0)
    client.start(now=0.0)
    while answer := client.data_to_send():
        for chunk in data.draw(chunkings(server.receive(answer))):
            client.receive_data(chunk, now=0.25)
    assert events_of(client) == [
        DerpConnected(dialect=str(found.dialect), approach=found),
        PongReceived(latency=0.0),
    ]
    assert server.node_id == CLIENT_KEY.public
    assert server.frames == ([NotePreferred(True)] if found.dialect == "v3" else [])


def connected(approach: Approach) -> tuple[DerpClient, ServerSide]:
    client = new_client(approach)
    server = ServerSide(RELAY_V1_SERVER if approach is RELAY_V1 else RELAY_V2_SERVER)
    client.start(now=0.0)
    exchange(client, server, now=0.0)
    assert client.is_connected
    events_of(client)
    return client, server


@pytest.mark.parametrize("approach", [RELAY_V1, RELAY_V2])
def test_datagrams_go_both_ways(approach: Approach) -> None:
    client, server = connected(approach)
    client.send_datagrams(PEER, [b"one", b"two", b"a", b"three"], now=1.0)
    client.note_preferred(True, now=1.0)  # there are no words for it
    exchange(client, server, now=1.0)
    assert server.frames == [
        SendDatagramBatch(PEER, 0, 3, b"onetwoa"),
        SendDatagram(PEER, 0, b"three"),
    ]
    packets = [RecvDatagramBatch(PEER, 2, 2, b"aabbc"), RecvDatagram(OTHER_PEER, 3, b"x")]
    client.receive_data(server.send(*packets, RecvDatagram(PEER, 0, b"")), now=2.0)
    assert client.received_payloads() == [
        ReceivedDatagrams(PEER, [b"aa", b"bb", b"c"]),
        ReceivedDatagrams(OTHER_PEER, [b"x"]),
    ]
    assert client.stats.datagrams_sent == 4
    assert client.stats.datagrams_received == 4
    assert client.has_heard_of(PEER)
    client.receive_data(server.send(PeerGoneFrame(PEER)), now=3.0)
    assert events_of(client) == [PeerGone(node_id=PEER)]
    assert not client.has_heard_of(PEER)


def test_an_empty_datagram_is_not_sent() -> None:
    client, _ = connected(RELAY_V2)
    client.send_datagrams(PEER, [b""], now=1.0)
    assert not client.has_data_to_send


@pytest.mark.parametrize(
    ("approach", "frame", "problem"),
    [
        (RELAY_V1, Health("sick"), "sick"),
        (RELAY_V1, Health(RECOVERED), ""),
        (RELAY_V2, Status(0), ""),
        (RELAY_V2, Status(1), SAME_NODE_ID_PROBLEM),
        (RELAY_V2, Status(2), "the server limits the rate of this connection"),
        (RELAY_V2, Status(77), "unknown status 77"),
    ],
)
def test_problems_are_told_in_words(approach: Approach, frame: Frame, problem: str) -> None:
    client, server = connected(approach)
    client.receive_data(server.send(frame), now=1.0)
    assert events_of(client) == [HealthReported(problem=problem)]


def lost(client: DerpClient) -> ConnectionLost:
    (event,) = events_of(client)
    assert isinstance(event, ConnectionLost)
    return event


def test_a_denial_is_the_end_with_the_servers_reason() -> None:
    client, server = new_client(EITHER), ServerSide(RELAY_V2_SERVER, is_slow=True)
    client.start(now=0.0)
    head = server.receive(client.data_to_send())
    client.receive_data(head + server.send(ServerDeniesAuth("not authorized")), now=0.0)
    assert "not authorized" in str(lost(client).error)


@pytest.mark.parametrize(
    ("approach", "chosen", "reason"),
    [
        (RELAY_V2, None, "chose no websocket subprotocol"),
        (RELAY_V1, "iroh-relay-v2", "'iroh-relay-v2', which was not offered"),
        (EITHER, "derp", "'derp', which was not offered"),
        (V3_WEBSOCKET, "iroh-relay-v1", "which was not offered"),
    ],
)
def test_a_server_has_to_choose_among_what_was_offered(
    approach: Approach, chosen: str | None, reason: str
) -> None:
    client, server = new_client(approach), ServerSide(V3_SERVER)
    client.start(now=0.0)
    head = server.receive(client.data_to_send())
    if chosen is not None:
        head = head.replace(b"\r\n\r\n", f"\r\nSec-WebSocket-Protocol: {chosen}\r\n\r\n".encode())
    client.receive_data(head, now=0.0)
    event = lost(client)
    assert reason in str(event.error)
    assert event.retry is None
