"""Tailscale's dialect: every vector, both sides of the handshake, and what is tolerated."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iroh_proto.address import UdpAddress
from iroh_proto.derp.curve_codec import (
    LONGEST_PING,
    LONGEST_SERVER_KEY,
    MESSAGE_LIMIT,
    CurveCodec,
    CurveWebsocketCodec,
)
from iroh_proto.derp.curve_frames import (
    GONE_DISCONNECTED,
    GONE_NOT_HERE,
    PRESENT_REGULAR,
    ClientInfo,
    CurveClosePeer,
    CurveForwardPacket,
    CurvePeerGone,
    CurvePeerPresent,
    CurveRecvPacket,
    CurveSendPacket,
    ServerInfo,
    ServerKey,
)
from iroh_proto.derp.dialects import tailscale
from iroh_proto.derp.dialects.tailscale import (
    ClientDetails,
    ServerDetails,
    TailscaleClientHandshake,
    TailscaleServerHandshake,
)
from iroh_proto.derp.frames import (
    FRAME_LIMIT,
    HEADER,
    PACKET_LIMIT,
    Frame,
    Health,
    KeepAlive,
    NotePreferred,
    PacketGroups,
    PacketParts,
    Ping,
    Pong,
    Restarting,
    SendRate,
    UnknownFrame,
    WatchConns,
    pack_datagrams,
)
from iroh_proto.derp.mesh_key import MeshKey
from iroh_proto.derp.websocket import WebsocketMessages
from iroh_proto.errors import DecodeError, LocalProtocolError
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.testing.strategies import chunkings
from iroh_proto.x25519 import NaclBox, X25519PublicKey, X25519SecretKey, x25519_of

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "relay.json").read_text()
)["tailscale_derp"]
FRAMES: dict[str, Any] = VECTORS["frames"]

SERVER = X25519SecretKey(bytes.fromhex(VECTORS["server_private"]))
CLIENT = X25519SecretKey(bytes.fromhex(VECTORS["client_private"]))
OTHER = X25519PublicKey(bytes.fromhex(FRAMES["send_packet"]["dst"]))
SMALL_ORDER = X25519PublicKey(bytes(32))
DETAILS = {
    "plain": ClientDetails(can_ack_pings=False),
    "ack": ClientDetails(),
    "mesh": ClientDetails(mesh_key=MeshKey(b"\x6d" * 32), is_prober=True, app_name="demo"),
}

# The frames of the vectors, by who sends them.
OF_CLIENTS: dict[str, Frame] = {
    "send_packet": CurveSendPacket(OTHER, b"hello"),
    "note_preferred_true": NotePreferred(True),
    "note_preferred_false": NotePreferred(False),
    "forward_packet": CurveForwardPacket(CLIENT.public, OTHER, b"hello"),
    "watch_conns": WatchConns(),
    "close_peer": CurveClosePeer(OTHER),
    "ping": Ping(bytes(range(8))),
}
OF_SERVERS: dict[str, Frame] = {
    "recv_packet": CurveRecvPacket(CLIENT.public, b"hello"),
    "keepalive": KeepAlive(),
    "peer_gone_disconnected": CurvePeerGone(OTHER, GONE_DISCONNECTED),
    "peer_gone_not_here": CurvePeerGone(OTHER, GONE_NOT_HERE),
    "peer_present_v4_regular": CurvePeerPresent(
        OTHER, UdpAddress("192.0.2.7", 41641), PRESENT_REGULAR
    ),
    "ping": Ping(bytes(range(8))),
    "pong": Pong(bytes(range(8))),
    "health_clear": Health(""),
    "health_text": Health("oops"),
    "restarting_10ms_20ms": Restarting(10, 20),
}


class Nonce(random.Random):
    """Chance that falls as a vector says."""

    def __init__(self, nonce: str) -> None:
        super().__init__(0)
        self._nonce = bytes.fromhex(nonce)

    def randbytes(self, n: int) -> bytes:
        assert n == len(self._nonce)
        return self._nonce


def data_of(name: str) -> bytes:
    vector = FRAMES[name]
    return bytes.fromhex(vector["frame"] if isinstance(vector, dict) else vector)


def client_codec() -> CurveCodec:
    return CurveCodec(is_server=False)


def server_codec() -> CurveCodec:
    return CurveCodec(is_server=True)


# Keys and boxes


def test_the_keys_of_the_vectors_agree() -> None:
    assert str(SERVER.public) == VECTORS["server_public"]
    assert str(CLIENT.public) == VECTORS["client_public"]
    assert VECTORS["metacert_common_name_text"] == f"derpkey{SERVER.public}"


def test_a_secret_key_shows_itself_nowhere() -> None:
    secret = X25519SecretKey(bytes(range(32)))
    assert secret.to_bytes().hex() not in repr(secret) + str(secret)
    key = MeshKey(b"\x6d" * 32)
    assert key.to_bytes().hex() not in repr(key) + str(key)
    assert key.to_bytes().hex() not in repr(DETAILS["mesh"])


def test_a_node_has_the_x25519_key_of_its_id() -> None:
    node = SecretKey.from_bytes(b"\x07" * 32)
    assert X25519SecretKey.of(node).public == x25519_of(node.public)
    with pytest.raises(DecodeError):
        x25519_of(b"\x01" + bytes(31))


@pytest.mark.parametrize("size", [0, 31, 33])
def test_keys_have_32_bytes(size: int) -> None:
    for kind in (X25519PublicKey, X25519SecretKey, MeshKey):
        with pytest.raises(DecodeError, match="32 bytes"):
            kind(bytes(size))


def test_boxes_want_a_nonce_and_an_honest_key() -> None:
    box = NaclBox(CLIENT, SERVER.public)
    with pytest.raises(LocalProtocolError, match="24 bytes"):
        box.seal(b"text", bytes(23))
    with pytest.raises(DecodeError, match="small order"):
        NaclBox(CLIENT, SMALL_ORDER)
    with pytest.raises(DecodeError, match="40 bytes or more"):
        box.open(bytes(39))
    with pytest.raises(DecodeError, match="does not open"):
        box.open(bytes(40))


def test_mesh_keys_are_written_in_hex_and_never_zero() -> None:
    assert MeshKey.from_str(f"  {'6D' * 32}\n") == MeshKey(b"\x6d" * 32)
    assert MeshKey(b"\x6d" * 32) != MeshKey(b"\x6e" * 32)
    assert MeshKey(b"\x6d" * 32) != b"\x6d" * 32
    assert MeshKey.received(bytes(32)) is None
    assert MeshKey.received(None) is None
    secret = "7" * 63
    for text in (secret, "0" * 64, "zz" * 32):
        with pytest.raises(DecodeError) as caught:
            MeshKey.from_str(text)
        assert secret not in str(caught.value)


# Frames


def test_every_frame_of_the_vectors_is_tried() -> None:
    assert OF_CLIENTS.keys() | OF_SERVERS.keys() == FRAMES.keys()


@pytest.mark.parametrize("name", OF_CLIENTS)
def test_frames_of_clients_are_encoded_and_decoded(name: str) -> None:
    data = data_of(name)
    assert client_codec().encode(OF_CLIENTS[name]) == data
    codec = server_codec()
    assert codec.receive(data) == [OF_CLIENTS[name]]
    assert codec.error is None


@pytest.mark.parametrize("name", OF_SERVERS)
def test_frames_of_servers_are_encoded_and_decoded(name: str) -> None:
    data = data_of(name)
    if name != "ping":  # a server sends none, but may
        assert server_codec().encode(OF_SERVERS[name]) == data
    codec = client_codec()
    assert codec.receive(data) == [OF_SERVERS[name]]
    assert codec.error is None


@pytest.mark.parametrize("is_server", [True, False])
def test_frames_taken_one_by_one_are_the_same(is_server: bool) -> None:
    frames = OF_CLIENTS if is_server else OF_SERVERS
    codec = CurveCodec(is_server=is_server)
    taken = [codec.receive_one(b"".join(map(data_of, frames)))]
    taken += [codec.receive_one(b"") for _ in frames]
    assert taken == [*frames.values(), None]


def test_a_client_may_send_a_pong_which_a_server_skips() -> None:
    data = data_of("pong")
    assert client_codec().encode(Pong(bytes(range(8)))) == data
    assert server_codec().receive(data) == [UnknownFrame(0x13)]


def test_older_forms_decode() -> None:
    key = bytes(OTHER)
    present = data_of("peer_present_v4_regular")[HEADER.size :]
    forms = [
        (8, key, CurvePeerGone(OTHER, GONE_DISCONNECTED)),
        (8, key + b"\x01more", CurvePeerGone(OTHER, GONE_NOT_HERE)),
        (9, key, CurvePeerPresent(OTHER)),
        (9, present[:-1], CurvePeerPresent(OTHER, UdpAddress("192.0.2.7", 41641))),
        (9, present + b"more", OF_SERVERS["peer_present_v4_regular"]),
        (0x12, bytes(range(8)) + b"more", Ping(bytes(range(8)))),
        (0x14, b"\xff", Health("\ufffd")),
        (0x15, data_of("restarting_10ms_20ms")[HEADER.size :] + b"more", Restarting(10, 20)),
    ]
    for number, body, frame in forms:
        codec = client_codec()
        assert codec.receive(HEADER.pack(number, len(body)) + body) == [frame]
        assert codec.error is None
    ping = HEADER.pack(0x12, LONGEST_PING) + bytes(LONGEST_PING)
    assert server_codec().receive(ping) == [Ping(bytes(8))]
    assert server_codec().receive(HEADER.pack(7, 1) + b"\x07") == [NotePreferred(True)]


def test_an_address_that_is_not_known_is_all_zeros() -> None:
    data = server_codec().encode(CurvePeerPresent(OTHER, None, PRESENT_REGULAR))
    assert data[HEADER.size + 32 :] == bytes(18) + b"\x01"
    assert client_codec().receive(data) == [CurvePeerPresent(OTHER, None, PRESENT_REGULAR)]
    ipv6 = CurvePeerPresent(OTHER, UdpAddress("2001:db8::1", 1), 6)
    assert client_codec().receive(server_codec().encode(ipv6)) == [ipv6]


UNKNOWN = HEADER.pack(0x77, 3000) + bytes(3000)


@given(data=st.data())
def test_what_is_not_known_is_skipped_however_cut_and_long(data: st.DataObject) -> None:
    short = b"".join(HEADER.pack(number, 7) + bytes(7) for number in (5, 8, 9, 0x12, 0x13, 0x15))
    stream = data_of("ping") + UNKNOWN + short + data_of("keepalive")
    codec = client_codec()
    received: list[Frame] = []
    for chunk in data.draw(chunkings(stream)):
        received += codec.receive(chunk)
    unknown: Sequence[Frame] = [UnknownFrame(n) for n in (0x77, 5, 8, 9, 0x12, 0x13, 0x15)]
    assert received == [OF_SERVERS["ping"], *unknown, KeepAlive()]
    assert codec.error is None


def test_of_a_skipped_frame_nothing_is_kept() -> None:
    codec = server_codec()
    assert codec.receive(HEADER.pack(0x77, 2**32 - 1)) == [UnknownFrame(0x77)]
    for _ in range(200):
        assert codec.receive(bytes(65_536)) == []
        assert not codec._partial


@pytest.mark.parametrize(
    ("number", "length"),
    [
        (2, 55),
        (2, 9999),
        (4, 31),
        (4, PACKET_LIMIT + 33),
        (7, 0),
        (7, 2),
        (0x0A, 63),
        (0x0A, PACKET_LIMIT + 65),
        (0x10, 1),
        (0x11, 31),
        (0x11, 33),
        (0x12, 7),
        (0x12, LONGEST_PING + 1),
    ],
)
def test_a_server_takes_frames_of_a_wrong_length_for_a_fault(number: int, length: int) -> None:
    for receive_grouped in (False, True):
        codec = server_codec()
        data = HEADER.pack(number, length)
        if receive_grouped:
            codec.receive_grouped(data + bytes(64), CLIENT.public)
        else:
            codec.receive(data)
        assert codec.error is not None


@pytest.mark.parametrize(
    ("number", "length"),
    [(1, LONGEST_SERVER_KEY + 1), (0x77, FRAME_LIMIT + 1), (6, FRAME_LIMIT + 1), (5, 2**32 - 1)],
)
def test_a_client_takes_frames_that_are_too_long_for_a_fault(number: int, length: int) -> None:
    codec = client_codec()
    codec.receive(HEADER.pack(number, length))
    assert codec.error is not None


def test_a_client_sends_each_datagram_in_a_packet_of_its_own() -> None:
    node_id = SecretKey.from_bytes(b"\x07" * 32).public
    datagrams = [b"one", b"", bytes(1200)]
    data = client_codec().encode_packets(node_id, pack_datagrams(datagrams))
    key = x25519_of(node_id)
    expected: list[Frame] = [CurveSendPacket(key, datagram) for datagram in datagrams]
    assert server_codec().receive(data) == expected
    assert client_codec().encode_packets(NodeId(b"\x01" + bytes(31)), [b"\x01\x00x"]) == b""


def test_packets_pass_through_a_server_as_they_are() -> None:
    sent = [CurveSendPacket(OTHER, b"x"), CurveSendPacket(OTHER, bytes(PACKET_LIMIT))]
    stream = b"".join(client_codec().encode(frame) for frame in sent)
    (groups,) = server_codec().receive_grouped(stream, CLIENT.public)
    assert isinstance(groups, PacketGroups)
    pieces = server_codec().encode_relayed(groups.groups[OTHER])
    received = client_codec().receive(b"".join(pieces))
    assert received == [CurveRecvPacket(CLIENT.public, frame.payload) for frame in sent]


# The websocket form


@given(data=st.data())
def test_a_websocket_carries_the_stream_in_messages_cut_anywhere(data: st.DataObject) -> None:
    frames = [*OF_CLIENTS.values(), UnknownFrame(0x77)]
    stream = b"".join(data_of(name) for name in OF_CLIENTS) + UNKNOWN
    sender = WebsocketMessages(mask_rng=random.Random(1))
    wire = b"".join(sender.build(message) for message in data.draw(chunkings(stream)))
    codec = CurveWebsocketCodec(mask_rng=None)
    received: list[Frame] = []
    for chunk in data.draw(chunkings(wire)):
        received += codec.receive(chunk)
    assert received == frames
    assert codec.error is None


def test_a_server_gives_each_packet_a_message_of_its_own() -> None:
    client, server = (
        CurveWebsocketCodec(mask_rng=random.Random(1)),
        CurveWebsocketCodec(mask_rng=None),
    )
    node_id = SecretKey.from_bytes(b"\x07" * 32).public
    stream = client.encode_packets(node_id, pack_datagrams([b"one", b"two"]))
    (groups,) = server.receive_grouped(stream, CLIENT.public)
    assert isinstance(groups, PacketGroups)
    pieces = server.encode_relayed(groups.groups[x25519_of(node_id)])
    assert [client.receive(piece) for piece in pieces] == [
        [CurveRecvPacket(CLIENT.public, payload)] for payload in (b"one", b"two")
    ]
    assert client.encode_packets(NodeId(b"\x01" + bytes(31)), [b"\x01\x00x"]) == b""


def test_messages_are_no_longer_than_upstreams_server_reads() -> None:
    node_id = SecretKey.from_bytes(b"\x07" * 32).public
    client = CurveWebsocketCodec(mask_rng=random.Random(1))
    server = CurveWebsocketCodec(mask_rng=None)
    datagrams = [bytes((number,)) * 1200 for number in range(50)]
    wire = client.encode_packets(node_id, pack_datagrams(datagrams))
    wire += client.encode(CurveSendPacket(OTHER, bytes(PACKET_LIMIT)))
    sizes = [len(message) for message in WebsocketMessages(mask_rng=None).receive(wire)]
    assert max(sizes) == MESSAGE_LIMIT == 32_768
    payloads = [
        frame.payload for frame in server.receive(wire) if isinstance(frame, CurveSendPacket)
    ]
    assert payloads == [*datagrams, bytes(PACKET_LIMIT)]
    parts: PacketParts = [HEADER.pack(5, PACKET_LIMIT + 32) + OTHER, bytes(PACKET_LIMIT)]
    (piece,) = server.encode_relayed(parts)
    back = list(WebsocketMessages(mask_rng=random.Random(1)).receive(piece))
    assert [len(message) for message in back] == [32_768, 32_768, 37]


def test_a_message_of_text_is_a_fault_and_a_close_is_the_end() -> None:
    codec = CurveWebsocketCodec(mask_rng=random.Random(1))
    assert codec.receive(b"\x82\x05" + data_of("keepalive") + b"\x81\x01x") == [KeepAlive()]
    assert "text" in str(codec.error)
    assert codec.receive(b"\x82\x05" + data_of("keepalive")) == []
    closing = CurveWebsocketCodec(mask_rng=random.Random(1))
    closing.receive(b"\x88\x02\x03\xe8")
    assert closing.is_closed
    assert closing.replies()
    assert closing.error is None


def test_a_fault_inside_a_websocket_is_told() -> None:
    codec = CurveWebsocketCodec(mask_rng=None)
    masked = WebsocketMessages(mask_rng=random.Random(1)).build(HEADER.pack(4, 5) + bytes(5))
    assert codec.receive(masked) == []
    assert codec.error is not None


# Handshakes


def test_the_server_says_its_key_first() -> None:
    handshake = TailscaleServerHandshake(secret_key=SERVER, rng=random.Random(0))
    (frame,) = handshake.begin()
    assert server_codec().encode(frame).hex() == VECTORS["server_key_frame"]
    assert client_codec().receive(bytes.fromhex(VECTORS["server_key_frame"])) == [frame]
    longer = HEADER.pack(1, 50) + frame.encode_body() + bytes(10)
    assert client_codec().receive(longer) == [frame]
    codec = client_codec()
    codec.receive(HEADER.pack(1, 40) + bytes(40))
    assert "magic" in str(codec.error)


@pytest.mark.parametrize("vector", VECTORS["client_info"], ids=lambda vector: str(vector["name"]))
def test_the_server_reads_every_client_info(vector: dict[str, Any]) -> None:
    details = DETAILS[vector["name"]]
    assert details.encode().decode() == vector["json_text"]
    assert ClientDetails.decode(details.encode()) == details
    sealed = NaclBox(CLIENT, SERVER.public).seal(details.encode(), bytes.fromhex(vector["nonce"]))
    assert sealed.hex() == vector["nonce"] + vector["box"]
    (frame,) = server_codec().receive(bytes.fromhex(vector["frame"]))
    assert frame == ClientInfo(CLIENT.public, sealed)
    handshake = TailscaleServerHandshake(secret_key=SERVER, rng=random.Random(0))
    assert handshake.mesh_key is None
    assert handshake.receive(frame) == CLIENT.public
    assert handshake.details == details
    assert handshake.mesh_key == details.mesh_key


@pytest.mark.parametrize("name", ["ack", "mesh"])
def test_the_client_answers_and_is_let_in_as_in_the_vectors(name: str) -> None:
    (vector,) = [vector for vector in VECTORS["client_info"] if vector["name"] == name]
    mesh_key = DETAILS[name].mesh_key
    client = TailscaleClientHandshake(
        secret_key=CLIENT, rng=Nonce(vector["nonce"]), mesh_key=mesh_key
    )
    assert client.begin() == ()
    (frame,) = client.receive(ServerKey(SERVER.public))
    if name == "ack":
        assert client_codec().encode(frame).hex() == vector["frame"]
    server_info = VECTORS["server_info"]
    server = TailscaleServerHandshake(secret_key=SERVER, rng=Nonce(server_info["nonce"]))
    assert server.receive(frame) == CLIENT.public
    assert server.mesh_key == mesh_key
    (answer,) = server.accept()
    assert server_codec().encode(answer).hex() == server_info["frame"]
    assert ServerDetails().encode().decode() == server_info["json_text"]
    was_done = client.is_done
    assert client.receive(*client_codec().receive(bytes.fromhex(server_info["frame"]))) == ()
    assert (was_done, client.is_done) == (False, True)
    assert client.send_rate is None
    assert client.server_key == SERVER.public
    assert (server.refuse("no"), server.reject()) == ((), ())


def server_info(text: bytes) -> ServerInfo:
    return ServerInfo(NaclBox(SERVER, CLIENT.public).seal(text, bytes(24)))


def after_server_key() -> TailscaleClientHandshake:
    handshake = TailscaleClientHandshake(secret_key=CLIENT, rng=random.Random(0))
    handshake.receive(ServerKey(SERVER.public))
    return handshake


def test_a_rate_is_heeded_whatever_the_case_of_its_name() -> None:
    text = b'{"VERSION":2,"tokenbucketbytespersecond":1000,"TOKENBUCKETBYTESBURST":500,"new":[{}]}'
    handshake = after_server_key()
    handshake.receive(server_info(text))
    assert handshake.send_rate == SendRate(1000, 500, overhead=35)
    limited = ServerDetails(bytes_per_second=7, burst_bytes=8)
    assert ServerDetails.decode(limited.encode()) == limited
    for rate in (ServerDetails(bytes_per_second=5), ServerDetails(burst_bytes=5)):
        handshake = after_server_key()
        handshake.receive(server_info(rate.encode()))
        assert handshake.send_rate is None


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (KeepAlive(), "wanted ServerInfo, got KeepAlive"),
        (ServerInfo(b"too short"), "40 bytes or more"),
        (ServerInfo(bytes(60)), "does not open"),
        (server_info(b"\xff"), "no JSON"),
        (server_info(b"[]"), "no JSON object"),
        (server_info(b"[" * 3000), "no JSON"),
        (server_info(b'{"version":true}'), "version is not of type int"),
        (server_info(b'{"version":"2"}'), "version is not of type int"),
        (server_info(b'{"tokenBucketBytesBurst":-1}'), "out of range"),
        (server_info(b'{"tokenBucketBytesBurst":%d}' % 2**63), "out of range"),
        (server_info(b'{"tokenBucketBytesBurst":%s}' % (b"9" * 3500)), "out of range"),
        (server_info(b'{"tokenBucketBytesPerSecond":NaN}'), "not of type int"),
    ],
)
def test_the_client_refuses_a_bad_server_info(frame: Frame, reason: str) -> None:
    handshake = after_server_key()
    with pytest.raises(DecodeError, match=reason):
        handshake.receive(frame)
    assert not handshake.is_done


@pytest.mark.parametrize("frame", [Ping(bytes(8)), ServerInfo(bytes(60)), ServerKey(SMALL_ORDER)])
def test_the_client_wants_a_server_key_first(frame: Frame) -> None:
    handshake = TailscaleClientHandshake(secret_key=CLIENT, rng=random.Random(0))
    with pytest.raises(DecodeError):
        handshake.receive(frame)


def client_info(text: bytes) -> ClientInfo:
    sealed = NaclBox(CLIENT, SERVER.public).seal(text, bytes(24))
    return ClientInfo(CLIENT.public, sealed)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (Ping(bytes(8)), "wanted ClientInfo, got Ping"),
        (ClientInfo(CLIENT.public, bytes(24)), "40 bytes or more"),
        (ClientInfo(CLIENT.public, bytes(44)), "does not open"),
        (ClientInfo(OTHER, client_info(b"{}").sealed), "does not open"),
        (ClientInfo(SMALL_ORDER, bytes(44)), "small order"),
        (client_info(b'{"meshKey":"6d"}'), "64 hex digits"),
        (client_info(b'{"meshKey":"zz"}'), "64 hex digits"),
        (client_info(b'{"meshKey":7}'), "not of type str"),
        (client_info(b'{"CanAckPings":1}'), "not of type bool"),
        (client_info(b"{"), "no JSON"),
    ],
)
def test_the_server_refuses_what_proves_nothing(frame: Frame, reason: str) -> None:
    handshake = TailscaleServerHandshake(secret_key=SERVER, rng=random.Random(0))
    with pytest.raises(DecodeError, match=reason):
        handshake.receive(frame)
    with pytest.raises(LocalProtocolError):
        handshake.accept()


def test_the_server_reads_names_in_any_case_and_null_as_nothing() -> None:
    text = b'{"MESHKEY":null,"Version":3,"canackpings":true,"isprober":null,"x":1}'
    handshake = TailscaleServerHandshake(secret_key=SERVER, rng=random.Random(0))
    assert handshake.receive(client_info(text)) == CLIENT.public
    assert handshake.details == ClientDetails(version=3)
    zeros = b'{"meshKey":"%s"}' % (b"0" * 64)
    assert ClientDetails.decode(zeros).mesh_key is None


def test_nodes_take_part_by_the_x25519_keys_of_their_ids() -> None:
    server_key, client_key = SecretKey.from_bytes(b"\x01" * 32), SecretKey.from_bytes(b"\x02" * 32)
    rng = random.Random(0)
    client = tailscale.DIALECT.client_handshake(secret_key=client_key, rng=rng)
    server = tailscale.DIALECT.server_handshake(secret_key=server_key, rng=rng)
    (answer,) = client.receive(*server.begin())
    assert server.receive(answer) == x25519_of(client_key.public)
    client.receive(*server.accept())
    assert client.is_done
    assert client.server_key == x25519_of(server_key.public)
    assert tailscale.DIALECT.standing(is_active=False) is None
