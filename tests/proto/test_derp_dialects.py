"""The handshakes of the dialects, both sides, byte by byte."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from iroh_proto.box import SharedBox
from iroh_proto.derp.codec import FramedCodec
from iroh_proto.derp.curve_codec import CurveCodec, CurveWebsocketCodec
from iroh_proto.derp.dialects import DIALECTS, Dialect, v2, v3
from iroh_proto.derp.frames import Frame, Health, KeepAlive, Ping, SendRate
from iroh_proto.derp.mesh_key import MeshKey
from iroh_proto.derp.message_codec import WebsocketCodec
from iroh_proto.derp.relay_codec import RelayCodec
from iroh_proto.errors import DecodeError, LocalProtocolError
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.x25519 import x25519_of

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "relay.json").read_text())
V2: dict[str, Any] = VECTORS["iroh_0_6_to_0_13_derp_v2"]
V3: dict[str, Any] = VECTORS["iroh_0_14_to_0_90_relay_v3"]

SERVER = SecretKey.from_bytes(bytes.fromhex(V2["server_seed"]))
CLIENT = SecretKey.from_bytes(bytes.fromhex(V2["client_seed"]))
V3_CLIENT = SecretKey.from_bytes(bytes.fromhex(V3["client_seed"]))
SMALL_ORDER = NodeId(b"\x01" + bytes(31))


class Nonce(random.Random):
    """Chance that falls as a vector says."""

    def __init__(self, nonce: str) -> None:
        super().__init__(0)
        self._nonce = bytes.fromhex(nonce)

    def randbytes(self, n: int) -> bytes:
        assert n == len(self._nonce)
        return self._nonce


def by_name(items: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (item,) = [item for item in items if item["name"] == name]
    return item


def framed(dialect: Dialect, frame: Frame) -> str:
    return dialect.server_codec("framed").encode(frame).hex()


# v2


def test_v2_server_says_its_key_first() -> None:
    assert str(SERVER.public) == V2["server_ed25519_public"]
    handshake = v2.DIALECT.server_handshake(secret_key=SERVER, rng=random.Random(0))
    (frame,) = handshake.begin()
    assert framed(v2.DIALECT, frame) == V2["server_key_frame"]
    decoded = v2.DIALECT.client_codec("framed", rng=random.Random(0)).receive(
        bytes.fromhex(V2["server_key_frame"])
    )
    assert decoded == [v2.ServerKey(SERVER.public)]


def test_v2_client_answers_as_in_the_vector() -> None:
    vector = by_name(V2["client_info"], "no_mesh")
    handshake = v2.DIALECT.client_handshake(secret_key=CLIENT, rng=Nonce(vector["nonce"]))
    assert handshake.begin() == ()
    (frame,) = handshake.receive(v2.ServerKey(SERVER.public))
    assert framed(v2.DIALECT, frame) == vector["frame"]
    assert handshake.server_key == SERVER.public
    assert not handshake.is_done


@pytest.mark.parametrize("vector", V2["client_info"], ids=lambda vector: str(vector["name"]))
def test_v2_server_reads_every_client_info(vector: dict[str, Any]) -> None:
    mesh_key = vector["fields"]["mesh_key"]
    details = v2.ClientDetails(
        version=vector["fields"]["version"],
        mesh_key=None if mesh_key is None else MeshKey.from_str(mesh_key),
        can_ack_pings=vector["fields"]["can_ack_pings"],
        is_prober=vector["fields"]["is_prober"],
    )
    assert details.encode().hex() == vector["postcard"]
    assert v2.ClientDetails.decode(details.encode() + b"more") == details
    box = SharedBox(CLIENT, SERVER.public)
    sealed = box.seal(details.encode(), bytes.fromhex(vector["nonce"]))
    assert sealed.hex() == vector["sealed_tag_ct_nonce"]
    assert sealed.hex() == vector["tag"] + vector["ciphertext"] + vector["nonce"]

    codec = v2.DIALECT.server_codec("framed")
    (frame,) = codec.receive(bytes.fromhex(vector["frame"]))
    handshake = v2.DIALECT.server_handshake(secret_key=SERVER, rng=random.Random(0))
    assert handshake.receive(frame) == CLIENT.public
    assert handshake.details == details


def test_v2_server_lets_in_as_in_the_vector() -> None:
    vector = by_name(V2["server_info"], "no_limit")
    handshake = v2.DIALECT.server_handshake(secret_key=SERVER, rng=Nonce(vector["nonce"]))
    client_info = bytes.fromhex(V2["client_info"][0]["frame"])
    handshake.receive(v2.DIALECT.server_codec("framed").receive(client_info)[0])
    (frame,) = handshake.accept()
    assert framed(v2.DIALECT, frame) == vector["frame"]
    assert handshake.refuse("no") == ()


@pytest.mark.parametrize("vector", V2["server_info"], ids=lambda vector: str(vector["name"]))
def test_v2_client_reads_every_server_info(vector: dict[str, Any]) -> None:
    fields = vector["fields"]
    details = v2.ServerDetails(
        version=fields["version"],
        bytes_per_second=fields["token_bucket_bytes_per_second"],
        burst_bytes=fields["token_bucket_bytes_burst"],
    )
    assert details.encode().hex() == vector["postcard"]
    assert v2.ServerDetails.decode(details.encode() + b"more") == details
    handshake = v2.DIALECT.client_handshake(secret_key=CLIENT, rng=random.Random(0))
    handshake.receive(v2.ServerKey(SERVER.public))
    codec = v2.DIALECT.client_codec("framed", rng=random.Random(0))
    (frame,) = codec.receive(bytes.fromhex(vector["frame"]))
    assert isinstance(frame, v2.ServerInfo)
    assert frame.sealed.hex() == vector["sealed_tag_ct_nonce"]
    assert handshake.receive(frame) == ()
    assert handshake.is_done
    limited = vector["name"] == "limited"
    assert handshake.send_rate == (SendRate(1_000_000, 4096) if limited else None)


def v2_server_info(details: bytes) -> v2.ServerInfo:
    return v2.ServerInfo(SharedBox(SERVER, CLIENT.public).seal(details, bytes(24)))


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (KeepAlive(), "wanted ServerInfo, got KeepAlive"),
        (v2.ServerInfo(b"too short"), "40 bytes or more"),
        (v2.ServerInfo(bytes(60)), "does not open"),
        (v2_server_info(b"\x03\x00\x00"), "version 3, not 2"),
        (v2_server_info(b"\x02\x00"), "cut short"),
        (v2_server_info(b""), "cut short"),
    ],
)
def test_v2_client_refuses_a_bad_server_info(frame: Frame, reason: str) -> None:
    handshake = v2.DIALECT.client_handshake(secret_key=CLIENT, rng=random.Random(0))
    handshake.receive(v2.ServerKey(SERVER.public))
    with pytest.raises(DecodeError, match=reason):
        handshake.receive(frame)
    assert not handshake.is_done


@pytest.mark.parametrize(
    "frame", [Ping(bytes(8)), v2.ServerInfo(bytes(60)), v2.ServerKey(SMALL_ORDER)]
)
def test_v2_client_wants_a_server_key_first(frame: Frame) -> None:
    handshake = v2.DIALECT.client_handshake(secret_key=CLIENT, rng=random.Random(0))
    with pytest.raises(DecodeError):
        handshake.receive(frame)


def test_a_rate_of_which_one_number_is_zero_is_none() -> None:
    for rate in (v2.ServerDetails(bytes_per_second=5), v2.ServerDetails(burst_bytes=5)):
        handshake = v2.DIALECT.client_handshake(secret_key=CLIENT, rng=random.Random(0))
        handshake.receive(v2.ServerKey(SERVER.public))
        handshake.receive(v2_server_info(rate.encode()))
        assert handshake.send_rate is None


def v2_client_info(details: bytes) -> v2.ClientInfo:
    sealed = SharedBox(CLIENT, SERVER.public).seal(details, bytes(24))
    return v2.ClientInfo(CLIENT.public, sealed)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (Ping(bytes(8)), "wanted ClientInfo, got Ping"),
        (v2.ClientInfo(CLIENT.public, b""), "40 bytes or more"),
        (v2.ClientInfo(CLIENT.public, bytes(44)), "does not open"),
        (v2.ClientInfo(V3_CLIENT.public, v2_client_info(b"\x02\0\1\0").sealed), "does not open"),
        (v2.ClientInfo(SMALL_ORDER, bytes(44)), "order"),
        (v2_client_info(b"\x02\x00\x01"), "cut short"),
        (v2_client_info(b"\x02\x02\x01\x00"), "0 or 1, not 2"),
        (v2_client_info(b"\x02\x00\x02\x00"), "0 or 1, not 2"),
    ],
)
def test_v2_server_refuses_what_proves_nothing(frame: Frame, reason: str) -> None:
    handshake = v2.DIALECT.server_handshake(secret_key=SERVER, rng=random.Random(0))
    with pytest.raises(DecodeError, match=reason):
        handshake.receive(frame)
    with pytest.raises(LocalProtocolError):
        handshake.accept()


def test_v2_server_does_not_check_the_version_of_a_client() -> None:
    handshake = v2.DIALECT.server_handshake(secret_key=SERVER, rng=random.Random(0))
    assert handshake.receive(v2_client_info(b"\x07\0\1\0")) == CLIENT.public


# v3


def test_v3_client_speaks_first_as_in_the_vector() -> None:
    vector = V3["client_info"]
    assert str(V3_CLIENT.public) == V3["client_public"]
    handshake = v3.DIALECT.client_handshake(secret_key=V3_CLIENT, rng=random.Random(0))
    (frame,) = handshake.begin()
    assert isinstance(frame, v3.ClientInfo)
    assert handshake.is_done
    assert frame.info.hex() == vector["signed_message_postcard"]
    assert frame.signature.hex() == vector["signature"]
    assert vector["magic"] == v3.MAGIC.hex()
    assert framed(v3.DIALECT, frame) == vector["framed_stream"]
    assert v3.FRAMES.encode_message(frame).hex() == vector["websocket_message"]
    with pytest.raises(DecodeError):
        handshake.receive(KeepAlive())


def test_v3_server_knows_the_client_of_the_vector() -> None:
    handshake = v3.DIALECT.server_handshake(secret_key=SERVER, rng=random.Random(0))
    assert handshake.begin() == ()
    message = bytes.fromhex(V3["client_info"]["websocket_message"])
    assert handshake.receive(v3.FRAMES.decode_message(message)) == V3_CLIENT.public
    assert handshake.accept() == ()
    codec = v3.DIALECT.server_codec("framed")
    (frame,) = codec.receive(bytes.fromhex(V3["client_info"]["framed_stream"]))
    assert handshake.receive(frame) == V3_CLIENT.public


def test_v3_server_refuses_in_words() -> None:
    handshake = v3.DIALECT.server_handshake(secret_key=SERVER, rng=random.Random(0))
    assert handshake.refuse("not authenticated") == (Health("not authenticated"),)


def v3_client_info(info: bytes, signed: bytes | None = None) -> v3.ClientInfo:
    signature = V3_CLIENT.sign(info if signed is None else signed)
    return v3.ClientInfo(V3_CLIENT.public, signature, info)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (Ping(bytes(8)), "wanted ClientInfo, got Ping"),
        (v3_client_info(b"\x03", signed=b"\x02"), "not the signature of"),
        (v3_client_info(b"\x03more", signed=b"\x03"), "not the signature of"),
        (v3_client_info(b"\x02"), "version 2, not 3"),
        (v3_client_info(b"\x83\x01"), "version 131, not 3"),
        (v3_client_info(b""), "cut short"),
        (v3.ClientInfo(CLIENT.public, v3_client_info(b"\x03").signature, b"\x03"), "signature"),
        (v3.ClientInfo(SMALL_ORDER, bytes(64), b"\x03"), "signature"),
    ],
)
def test_v3_server_refuses_what_proves_nothing(frame: Frame, reason: str) -> None:
    handshake = v3.DIALECT.server_handshake(secret_key=SERVER, rng=random.Random(0))
    with pytest.raises(DecodeError, match=reason):
        handshake.receive(frame)


def test_v3_server_ignores_bytes_behind_the_version() -> None:
    handshake = v3.DIALECT.server_handshake(secret_key=SERVER, rng=random.Random(0))
    assert handshake.receive(v3_client_info(b"\x03more")) == V3_CLIENT.public


@pytest.mark.parametrize("body", [b"DERP" + bytes(101), v3.MAGIC[:-1] + bytes(97)])
def test_v3_client_info_needs_its_magic(body: bytes) -> None:
    with pytest.raises(DecodeError, match="magic"):
        v3.FRAMES.decode_message(b"\x02" + body)


def test_v3_client_info_has_a_least_length() -> None:
    with pytest.raises(DecodeError, match="105 to 4096 bytes, not 104"):
        v3.FRAMES.decode_message(b"\x02" + v3.MAGIC + bytes(95))


def test_a_v2_server_refuses_a_v3_client_info() -> None:
    codec = v2.DIALECT.server_codec("framed")
    assert codec.receive(bytes.fromhex(V3["client_info"]["framed_stream"])) == []
    assert codec.error is not None


# Both


def test_dialects_go_by_their_names() -> None:
    assert list(DIALECTS) == ["v2", "v3", "relay-v1", "relay-v2", "tailscale"]
    for name, dialect in DIALECTS.items():
        assert dialect.name == name
    assert v2.DIALECT.server_speaks_first
    assert not v3.DIALECT.server_speaks_first
    assert DIALECTS["relay-v1"].server_speaks_first


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("v2", "framed"),
        ("v3", "framed"),
        ("v3", "websocket"),
        ("relay-v1", "websocket"),
        ("relay-v2", "websocket"),
        ("tailscale", "framed"),
        ("tailscale", "websocket"),
    ],
)
def test_both_sides_of_a_dialect_agree(name: str, form: Any) -> None:
    dialect = DIALECTS[name]
    assert form in dialect.forms
    rng = random.Random(7)
    client = dialect.client_handshake(secret_key=CLIENT, rng=rng)
    server = dialect.server_handshake(secret_key=SERVER, rng=rng)
    client_codec, server_codec = dialect.client_codec(form, rng=rng), dialect.server_codec(form)
    kinds = {
        "v2": FramedCodec,
        "v3": FramedCodec if form == "framed" else WebsocketCodec,
        "tailscale": CurveCodec if form == "framed" else CurveWebsocketCodec,
    }
    assert isinstance(client_codec, kinds.get(name, RelayCodec))
    assert isinstance(server_codec, kinds.get(name, RelayCodec))
    upwards = [*client.begin()]
    for frame in client_codec.receive(b"".join(map(server_codec.encode, server.begin()))):
        upwards += client.receive(frame)
    (frame,) = server_codec.receive(b"".join(map(client_codec.encode, upwards)))
    ours = x25519_of(CLIENT.public) if dialect.has_curve_keys else CLIENT.public
    assert server.receive(frame) == ours
    assert server.mesh_key is None
    for frame in client_codec.receive(b"".join(map(server_codec.encode, server.accept()))):
        assert client.receive(frame) == ()
    assert client.is_done
