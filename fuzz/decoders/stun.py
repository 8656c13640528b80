"""STUN messages."""

from __future__ import annotations

import ipaddress

from fuzz import seeds
from fuzz.target import Choices, Target, decoded
from iroh_proto.address import UdpAddress
from iroh_proto.stun.message import (
    HEADER_SIZE,
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

_ATTRIBUTE_HEADER_SIZE = 4


def check_stun(data: bytes) -> None:
    """What decodes encodes to the same bytes but for padding; requests and responses keep all.

    Only DecodeError is raised, and by all functions or by none.
    """
    message = decoded(decode_stun, data)
    if message is None:
        assert decoded(verify_fingerprint, data) is None
        assert decoded(verify_integrity, data, b"key") is None
        assert decoded(decode_binding_request, data) is None
        assert decoded(decode_binding_response, data) is None
        return
    assert is_stun(data)
    encoded = message.encode()
    assert decode_stun(encoded) == message
    assert encoded == _with_zero_padding(data[: len(encoded)], message)
    assert decode_stun(message.encode(fingerprint=True)).attributes[:-1] == message.attributes
    verify_fingerprint(data)
    verify_integrity(data, b"key")
    if (transaction_id := decoded(decode_binding_request, data)) is not None:
        assert decode_binding_request(encode_binding_request(transaction_id)) == transaction_id
        assert verify_fingerprint(data) is True
    if (told := decoded(decode_binding_response, data)) is not None:
        assert decode_binding_response(encode_binding_response(*told)) == told
        assert UdpAddress.from_str(str(told[1])) == told[1]


def _with_zero_padding(data: bytes, message: StunMessage) -> bytes:
    zeroed, position = bytearray(data), HEADER_SIZE
    for _, value in message.attributes:
        end = position + _ATTRIBUTE_HEADER_SIZE + len(value)
        position = end + -len(value) % 4
        zeroed[end:position] = bytes(position - end)
    return bytes(zeroed)


def check_binding(data: bytes) -> None:
    """An address told in a response is the one decoded; no byte of a request changes unseen."""
    choices = Choices(data)
    transaction_id = choices.take(12)
    ip, port = choices.take(4 if choices.below(2) else 16), choices.take(2)
    address = decoded(_address_of, ip, int.from_bytes(port, "big"))
    assert address is not None
    told = decode_binding_response(encode_binding_response(transaction_id, address))
    assert told == (transaction_id, address)
    request = bytearray(encode_binding_request(transaction_id, software=choices.take(3).hex()))
    assert decode_binding_request(bytes(request)) == transaction_id
    place = int.from_bytes(choices.take(2), "big") % len(request)
    request[place] ^= 1 + choices.below(255)
    assert decoded(decode_binding_request, bytes(request)) is None


def _address_of(ip: bytes, port: int) -> UdpAddress:
    return UdpAddress.of(ipaddress.ip_address(ip), port)


TARGETS = {
    "stun": Target(check_stun, lambda: seeds.packets("stun.json", "relay.json")),
    "stun-binding": Target(check_binding, lambda: seeds.noise("binding", count=6, size=64)),
}
