"""STUN messages: golden bytes of RFC 5769, of real servers and of both upstreams."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iroh_proto.address import UdpAddress
from iroh_proto.errors import DecodeError, LocalProtocolError
from iroh_proto.stun.message import (
    BINDING_INDICATION,
    BINDING_REQUEST,
    BINDING_RESPONSE,
    FINGERPRINT,
    MAPPED_ADDRESS,
    MESSAGE_INTEGRITY,
    SOFTWARE,
    TAILSCALE_SOFTWARE,
    XOR_MAPPED_ADDRESS,
    StunMessage,
    decode_binding_request,
    decode_binding_response,
    decode_stun,
    encode_binding_request,
    encode_binding_response,
    is_stun,
    verify_fingerprint,
    verify_integrity,
)
from iroh_proto.testing.strategies import stun_messages, transaction_ids, udp_addresses

VECTORS = Path(__file__).parents[1] / "vectors"
STUN: dict[str, Any] = json.loads((VECTORS / "stun.json").read_text())
DISCO: dict[str, Any] = json.loads((VECTORS / "disco.json").read_text())
RFC_5769 = {case["name"]: case for case in STUN["rfc5769"]}
REJECTED = {case["name"]: case for case in STUN["reject"]}
TRANSACTION_ID = bytes(range(1, 13))
USERNAME, REALM, NONCE = 0x0006, 0x0014, 0x0015


def packet_of(case: dict[str, Any]) -> bytes:
    return bytes.fromhex(case["packet"])


def by_name(case: dict[str, Any]) -> str:
    return str(case["name"])


@pytest.mark.parametrize("case", STUN["is_stun"], ids=lambda case: case["packet"][:8] or "empty")
def test_stun_is_told_from_other_datagrams(case: dict[str, Any]) -> None:
    assert is_stun(packet_of(case)) is case["is_stun"]


@pytest.mark.parametrize("case", DISCO["classify"], ids=lambda case: case["class"])
def test_disco_and_quic_are_not_taken_for_stun(case: dict[str, Any]) -> None:
    assert is_stun(packet_of(case)) is (case["class"] == "stun")


@pytest.mark.parametrize("case", STUN["requests"], ids=by_name)
def test_requests_are_byte_identical_to_upstreams(case: dict[str, Any]) -> None:
    software = TAILSCALE_SOFTWARE if case["name"] == "tailscale_request" else None
    packet = encode_binding_request(bytes.fromhex(case["tx_id"]), software=software)
    assert packet.hex() == case["packet"]
    assert len(packet) == case["length"]
    assert decode_binding_request(packet).hex() == case["tx_id"]
    assert verify_fingerprint(packet) is True
    assert decode_stun(packet).get(FINGERPRINT) == bytes.fromhex(case["fingerprint"])


@pytest.mark.parametrize("case", STUN["responses_built"], ids=by_name)
def test_responses_are_byte_identical_to_upstreams(case: dict[str, Any]) -> None:
    transaction_id, addr = bytes.fromhex(case["tx_id"]), UdpAddress(case["addr"], case["port"])
    assert encode_binding_response(transaction_id, addr).hex() == case["packet"]
    assert decode_binding_response(packet_of(case)) == (transaction_id, addr)


@pytest.mark.parametrize("case", STUN["parse_response_upstream"]["cases"], ids=by_name)
def test_responses_of_real_servers_are_understood(case: dict[str, Any]) -> None:
    expected = (bytes.fromhex(case["tx_id"]), UdpAddress(case["addr"], case["port"]))
    assert decode_binding_response(packet_of(case)) == expected


@pytest.mark.parametrize("case", STUN["parse_response_extra"], ids=by_name)
def test_the_masked_address_wins_under_either_number(case: dict[str, Any]) -> None:
    ip, port = case["recommended"] if "recommended" in case else (case["addr"], case["port"])
    expected = (bytes.fromhex(case["tx_id"]), UdpAddress(ip, port))
    assert decode_binding_response(packet_of(case)) == expected


@pytest.mark.parametrize("name", [name for name in REJECTED if "parse_request" in REJECTED[name]])
def test_bad_requests_are_rejected(name: str) -> None:
    with pytest.raises(DecodeError):
        decode_binding_request(packet_of(REJECTED[name]))


@pytest.mark.parametrize("name", [name for name in REJECTED if "parse_response" in REJECTED[name]])
def test_bad_responses_are_rejected(name: str) -> None:
    with pytest.raises(DecodeError):
        decode_binding_response(packet_of(REJECTED[name]))


def test_an_error_response_is_named_with_its_code() -> None:
    with pytest.raises(DecodeError, match=r"error 420 \('Unknown'\)"):
        decode_binding_response(packet_of(REJECTED["binding_error_response_420"]))
    bare = StunMessage(0x0111, TRANSACTION_ID).encode()
    with pytest.raises(DecodeError, match="error without a code"):
        decode_binding_response(bare)


def test_rfc_5769_request() -> None:
    case = RFC_5769["2.1 request"]
    packet = packet_of(case)
    assert decode_binding_request(packet).hex() == case["tx_id"]
    message = decode_stun(packet)
    assert message.get(SOFTWARE) == case["software"].encode()
    assert message.get(USERNAME) == case["username"].encode()
    assert message.get(FINGERPRINT) == bytes.fromhex(case["fingerprint"])
    assert verify_integrity(packet, case["password"].encode())


@pytest.mark.parametrize("name", ["2.2 response IPv4", "2.3 response IPv6"])
def test_rfc_5769_responses(name: str) -> None:
    case = RFC_5769[name]
    packet = packet_of(case)
    expected = (bytes.fromhex(case["tx_id"]), UdpAddress(case["addr"], case["port"]))
    assert decode_binding_response(packet) == expected
    message = decode_stun(packet)
    assert message.get(SOFTWARE) == case["software"].encode()
    assert message.get(FINGERPRINT) == bytes.fromhex(case["fingerprint"])
    assert verify_fingerprint(packet) is True
    assert verify_integrity(packet, case["password"].encode())


def test_rfc_5769_request_with_long_term_authentication() -> None:
    case = RFC_5769["2.4 request with long-term authentication"]
    packet = packet_of(case)
    message = decode_stun(packet)
    assert message.message_type == BINDING_REQUEST
    assert message.transaction_id.hex() == case["tx_id"]
    assert message.get(USERNAME) == case["username"].encode()
    assert message.get(REALM) == case["realm"].encode()
    assert message.get(NONCE) == case["nonce"].encode()
    secret = f"{case['username']}:{case['realm']}:{case['password_after_saslprep']}"
    assert verify_integrity(packet, hashlib.md5(secret.encode()).digest())
    assert verify_fingerprint(packet) is None
    assert message.encode() == packet
    with pytest.raises(DecodeError, match="must end with FINGERPRINT"):
        decode_binding_request(packet)


@pytest.mark.parametrize("case", STUN["rfc5769"], ids=by_name)
def test_integrity_fails_under_another_key_and_for_a_changed_message(case: dict[str, Any]) -> None:
    packet = packet_of(case)
    assert not verify_integrity(packet, b"another password")
    key = case.get("password", "").encode()
    changed = packet[:19] + bytes([packet[19] ^ 1]) + packet[20:]
    assert not verify_integrity(changed, key)


def test_a_message_without_integrity_is_not_verified() -> None:
    packet = encode_binding_request(TRANSACTION_ID)
    assert decode_stun(packet).get(MESSAGE_INTEGRITY) is None
    assert not verify_integrity(packet, b"")


def test_only_a_fingerprint_at_the_end_makes_a_request() -> None:
    inside = decode_stun(encode_binding_request(TRANSACTION_ID)).attributes
    message = StunMessage(BINDING_REQUEST, TRANSACTION_ID, [*inside, (SOFTWARE, b"late")])
    with pytest.raises(DecodeError, match="must end with FINGERPRINT"):
        decode_binding_request(message.encode())


def test_responses_and_indications_are_no_requests() -> None:
    for message_type in (BINDING_RESPONSE, BINDING_INDICATION):
        packet = StunMessage(message_type, TRANSACTION_ID).encode(fingerprint=True)
        with pytest.raises(DecodeError, match="not a Binding request"):
            decode_binding_request(packet)
        with pytest.raises(DecodeError, match=r"no address|not a Binding response"):
            decode_binding_response(packet)


def test_a_wrong_fingerprint_spoils_a_response_that_need_not_have_one() -> None:
    response = decode_stun(encode_binding_response(TRANSACTION_ID, UdpAddress("192.0.2.1", 7)))
    right = response.encode(fingerprint=True)
    assert decode_binding_response(right) == (TRANSACTION_ID, UdpAddress("192.0.2.1", 7))
    with pytest.raises(DecodeError, match="FINGERPRINT"):
        decode_binding_response(right[:-1] + bytes([right[-1] ^ 1]))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "cut short"),
        ("0001", "cut short"),
        ("0001 1f90 7f0000", "cut short"),
        ("0002 1f90 7f000001", "cut short"),
        ("0003 1f90 7f000001", "family"),
    ],
)
@pytest.mark.parametrize("attribute_type", [MAPPED_ADDRESS, XOR_MAPPED_ADDRESS])
def test_a_malformed_address_spoils_the_response(
    attribute_type: int, value: str, reason: str
) -> None:
    good = (MAPPED_ADDRESS, bytes.fromhex("0001 1f90 7f000001"))
    bad = (attribute_type, bytes.fromhex(value))
    packet = StunMessage(BINDING_RESPONSE, TRANSACTION_ID, [good, bad]).encode()
    with pytest.raises(DecodeError, match=reason):
        decode_binding_response(packet)


def test_a_length_that_is_no_multiple_of_four_is_rejected() -> None:
    packet = bytes.fromhex("000100022112a442") + TRANSACTION_ID + bytes(4)
    with pytest.raises(DecodeError, match="multiple of 4"):
        decode_stun(packet)


@pytest.mark.parametrize(
    "message",
    [
        StunMessage(0x4000, TRANSACTION_ID),
        StunMessage(-1, TRANSACTION_ID),
        StunMessage(BINDING_REQUEST, TRANSACTION_ID[1:]),
        StunMessage(BINDING_REQUEST, TRANSACTION_ID, [(SOFTWARE, bytes(65_536))]),
        StunMessage(BINDING_REQUEST, TRANSACTION_ID, [(SOFTWARE, bytes(30_000))] * 3),
    ],
)
def test_what_does_not_fit_the_wire_is_the_callers_mistake(message: StunMessage) -> None:
    with pytest.raises(LocalProtocolError):
        message.encode()


def test_messages_show_their_types_and_compare_by_value() -> None:
    message = StunMessage(BINDING_REQUEST, TRANSACTION_ID, [(SOFTWARE, b"x")])
    assert repr(message) == "StunMessage(0x0001, 0102030405060708090a0b0c, [0x8022])"
    assert message != StunMessage(BINDING_REQUEST, TRANSACTION_ID)
    assert message != "a message"


@given(stun_messages(), st.booleans(), st.binary(max_size=9))
def test_messages_decode_to_what_was_encoded(
    message: StunMessage, fingerprint: bool, garbage: bytes
) -> None:
    packet = message.encode(fingerprint=fingerprint)
    assert is_stun(packet)
    decoded = decode_stun(packet + garbage)
    if fingerprint:
        assert decoded.attributes[-1][0] == FINGERPRINT
        decoded = StunMessage(message.message_type, message.transaction_id, decoded.attributes[:-1])
    assert decoded == message


@given(transaction_ids(), udp_addresses())
def test_addresses_survive_the_mask(transaction_id: bytes, addr: UdpAddress) -> None:
    packet = encode_binding_response(transaction_id, addr)
    assert len(packet) == (44 if addr.is_ipv6 else 32)
    assert decode_binding_response(packet) == (transaction_id, addr)


@given(transaction_ids(), st.none() | st.text(max_size=40))
def test_every_request_built_is_accepted(transaction_id: bytes, software: str | None) -> None:
    packet = encode_binding_request(transaction_id, software=software)
    assert decode_binding_request(packet) == transaction_id


near_stun = st.binary(max_size=80).map(
    lambda tail: bytes.fromhex("0101") + tail[:2] + bytes.fromhex("2112a442") + tail[2:]
)


@given(st.binary(max_size=100) | near_stun)
def test_any_bytes_raise_nothing_but_decode_errors(data: bytes) -> None:
    for decode in (
        decode_stun,
        decode_binding_request,
        decode_binding_response,
        verify_fingerprint,
        lambda data: verify_integrity(data, b"key"),
    ):
        with suppress(DecodeError):
            decode(data)


@given(st.sampled_from([packet_of(case) for case in STUN["rfc5769"]]), st.data())
def test_damaged_messages_raise_nothing_but_decode_errors(
    packet: bytes, data: st.DataObject
) -> None:
    position = data.draw(st.integers(min_value=0, max_value=len(packet) - 1))
    damaged = packet[:position] + data.draw(st.binary(max_size=4)) + packet[position + 1 :]
    for decode in (decode_binding_request, decode_binding_response):
        with suppress(DecodeError):
            decode(damaged)
