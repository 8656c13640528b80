"""disco messages against the golden vectors, and malformed ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iroh_proto.address import DerpUrl, UdpAddress
from iroh_proto.box import SharedBox
from iroh_proto.disco.message import (
    CALL_ME_MAYBE_ADDRESSES_LIMIT,
    DISCO_MAGIC,
    CallMeMaybe,
    DiscoMessage,
    Ping,
    Pong,
    decode_disco_message,
    is_disco,
    open_envelope,
    seal_envelope,
)
from iroh_proto.errors import DecodeError
from iroh_proto.key import NodeId, SecretKey

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "disco.json").read_text()
)
SECRETS = {
    name: SecretKey.from_str(VECTORS["keys"][name]["ed25519_seed"]) for name in ("alice", "bob")
}
TX_ID = bytes(range(1, 13))
REFUSED = {
    "ping_version_1",
    "unknown_type_4",
    "pong_udp_extra_byte",
    "call_me_maybe_bad_length",
}


def by_name(cases: list[dict[str, Any]]) -> Any:
    return [pytest.param(case, id=case.get("name")) for case in cases]


def expected_message(case: dict[str, Any]) -> DiscoMessage:
    """Build the message a vector describes in words."""
    if "node_key" in case:
        return Ping(bytes.fromhex(case["tx_id"]), NodeId.from_str(case["node_key"]))
    if "observed" in case:
        return Pong(TX_ID, UdpAddress.from_str(case["observed"]))
    if "observed_relay" in case:
        return Pong(TX_ID, DerpUrl.from_str(case["observed_relay"]))
    return CallMeMaybe([UdpAddress.from_str(text) for text in case.get("addrs", [])])


def open_from(packet: bytes, receiver: str) -> bytes:
    sender, sealed = open_envelope(packet)
    return SharedBox(SECRETS[receiver], sender).open(sealed)


def test_magic_is_the_vectors() -> None:
    assert bytes.fromhex(VECTORS["magic"]) == DISCO_MAGIC


@pytest.mark.parametrize("case", by_name(VECTORS["inner_iroh"]["cases"]))
def test_messages_encode_and_decode_as_iroh(case: dict[str, Any]) -> None:
    inner = bytes.fromhex(case["inner"])
    message = expected_message(case)
    assert message.encode() == inner
    assert decode_disco_message(inner) == message


@pytest.mark.parametrize("case", by_name(VECTORS["inner_iroh_0_6"]["cases"]))
def test_pongs_without_tag_are_read_but_never_sent(case: dict[str, Any]) -> None:
    inner = bytes.fromhex(case["inner"])
    message = decode_disco_message(inner)
    assert message == Pong(TX_ID, UdpAddress.from_str(case["observed"]))
    assert message.encode() == inner[:14] + b"\x00" + inner[14:]


def test_pong_with_url_as_long_as_an_untagged_pong_is_read_as_url() -> None:
    pong = Pong(TX_ID, DerpUrl.from_str("http://127.0.0.1/"))
    assert len(pong.encode()) == 2 + 30
    assert decode_disco_message(pong.encode()) == pong


def test_untagged_pong_that_looks_like_a_tag_is_still_an_address() -> None:
    inner = b"\x02\x00" + TX_ID + b"\x01" + bytes(15) + b"\x01\x00"
    assert decode_disco_message(inner) == Pong(TX_ID, UdpAddress.from_str("[100::]:1"))


# Tailscale's messages whose length fits iroh's framing; ports and keys mean something else there.
SAME_LENGTH = {
    "ping_with_nodekey_src",
    "ping_with_padding_and_nodekey_src",
    "pong",
    "pongv6",
    "call_me_maybe",
    "call_me_maybe_endpoints",
}


@pytest.mark.parametrize("case", by_name(VECTORS["inner_tailscale"]["cases"]))
def test_tailscale_messages_are_refused_unless_their_length_fits(case: dict[str, Any]) -> None:
    inner = bytes.fromhex(case["inner"])
    if case["name"] in SAME_LENGTH:
        assert isinstance(decode_disco_message(inner), Ping | Pong | CallMeMaybe)
        return
    with pytest.raises(DecodeError):
        decode_disco_message(inner)


@pytest.mark.parametrize("case", by_name(VECTORS["sealed_iroh"]["cases"]))
def test_envelopes_are_sealed_and_opened_as_iroh(case: dict[str, Any]) -> None:
    sender, receiver = SECRETS[case["from"]], SECRETS[case["to"]]
    packet, inner = bytes.fromhex(case["packet"]), bytes.fromhex(case["inner"])
    box = SharedBox(sender, receiver.public)
    nonce = bytes.fromhex(case["nonce"])
    assert seal_envelope(inner, sender=sender.public, box=box, nonce=nonce) == packet
    assert len(packet) == case["length"]
    assert is_disco(packet)
    assert open_envelope(packet)[0] == sender.public
    assert open_from(packet, case["to"]) == inner


@pytest.mark.parametrize("case", by_name(VECTORS["sealed_iroh"]["cases"]))
def test_opened_messages_decode_or_are_refused_as_by_iroh(case: dict[str, Any]) -> None:
    inner = bytes.fromhex(case["inner"])
    if case["name"] in REFUSED:
        with pytest.raises(DecodeError):
            decode_disco_message(inner)
        return
    if case["name"] == "ping_with_trailing_bytes":
        case = {**VECTORS["sealed_iroh"]["cases"][0]}
    assert decode_disco_message(inner) == expected_message(case)


@pytest.mark.parametrize("case", by_name(VECTORS["negative_iroh"]))
def test_forged_envelopes_are_disco_and_do_not_open(case: dict[str, Any]) -> None:
    packet = bytes.fromhex(case["packet"])
    assert is_disco(packet)  # also the shortened one: nothing with the magic reaches QUIC
    with pytest.raises(DecodeError):
        open_from(packet, "bob")


@pytest.mark.parametrize("case", by_name(VECTORS["sealed_tailscale"]["cases"]))
def test_tailscale_envelopes_do_not_open(case: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        open_from(bytes.fromhex(case["packet"]), "bob")


@pytest.mark.parametrize("case", by_name(VECTORS["classify"]))
def test_classification_by_magic(case: dict[str, Any]) -> None:
    assert is_disco(bytes.fromhex(case["packet"])) == (case["class"] == "disco")


def test_call_me_maybe_keeps_a_bounded_number_of_addresses() -> None:
    many = b"\x03\x00" + b"".join(
        UdpAddress("10.0.0.1", port).packed_ip.rjust(16, b"\x00") + port.to_bytes(2, "little")
        for port in range(1, 200)
    )
    message = decode_disco_message(many)
    assert isinstance(message, CallMeMaybe)
    assert len(message.addresses) == CALL_ME_MAYBE_ADDRESSES_LIMIT
    assert len(CallMeMaybe([UdpAddress("10.0.0.1", 1)] * 100).addresses) == 64


@pytest.mark.parametrize(
    "inner",
    [
        b"",
        b"\x01",
        b"\x01\x00" + bytes(43),
        b"\x02\x00" + TX_ID + b"\x00\x00",
        b"\x02\x00" + TX_ID + b"\x02" + bytes(18),
        b"\x02\x00" + TX_ID + b"\x01\xff\xfe",
        b"\x02\x00" + TX_ID + b"\x01ftp://x/",
    ],
)
def test_malformed_messages_are_refused(inner: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_disco_message(inner)


def test_envelope_without_magic_is_refused() -> None:
    with pytest.raises(DecodeError, match="magic"):
        open_envelope(bytes(100))


@given(data=st.binary(max_size=120), kind=st.integers(0, 5))
def test_any_bytes_decode_to_a_message_that_encodes_back_or_are_refused(
    data: bytes, kind: int
) -> None:
    try:
        message = decode_disco_message(bytes((kind, 0)) + data)
    except DecodeError:
        return
    assert decode_disco_message(message.encode()) == message


@given(data=st.binary(max_size=200))
def test_any_bytes_behind_the_magic_open_to_nothing(data: bytes) -> None:
    with pytest.raises(DecodeError):
        open_from(DISCO_MAGIC + data, "bob")


def test_messages_compare_and_hash_by_value_and_show_themselves() -> None:
    alice = SECRETS["alice"].public
    ping, pong = Ping(TX_ID, alice), Pong(TX_ID, UdpAddress("1.2.3.4", 5))
    call = CallMeMaybe([UdpAddress("1.2.3.4", 5)])
    assert len({ping, Ping(TX_ID, alice), pong, Pong(TX_ID, pong.observed), call}) == 3
    assert ping != pong
    assert pong != call
    assert call != ping
    assert repr(call) == "CallMeMaybe([1.2.3.4:5])"
    assert repr(pong) == f"Pong({TX_ID.hex()}, 1.2.3.4:5)"
    assert repr(ping) == f"Ping({TX_ID.hex()}, {alice.fmt_short()})"
