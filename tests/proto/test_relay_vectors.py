"""What the relay vectors hold beside frames: the box's intermediate keys, and STUN."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nacl import bindings

from iroh_proto.address import UdpAddress
from iroh_proto.box import HChaCha20, SharedBox
from iroh_proto.key import SecretKey
from iroh_proto.stun.message import (
    decode_binding_request,
    decode_binding_response,
    encode_binding_request,
    encode_binding_response,
)

RELAY: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "relay.json").read_text()
)
V2 = RELAY["iroh_0_6_to_0_13_derp_v2"]


def test_v2_keys_become_the_expected_x25519_keys() -> None:
    server = SecretKey.from_str(V2["server_seed"])
    client = SecretKey.from_str(V2["client_seed"])
    assert server.public.to_x25519().hex() == V2["server_x25519_public"]
    assert client.public.to_x25519().hex() == V2["client_x25519_public"]
    assert client.to_x25519().hex() == V2["client_x25519_secret_clamped"]
    shared = bindings.crypto_scalarmult(client.to_x25519(), server.public.to_x25519())
    assert shared.hex() == V2["x25519_shared"]
    assert HChaCha20(shared).derive(bytes(24)).hex() == V2["box_key_hchacha20"]


def test_v2_peer_seed_is_the_third_partys_key() -> None:
    assert str(SecretKey.from_str(V2["peer_seed"]).public) == V2["peer_ed25519_public"]


def test_published_box_vector_seals_and_opens() -> None:
    published = {
        name: bytes.fromhex(value)
        for name, value in RELAY["crypto_box_chacha_published"].items()
        if name != "source"
    }
    shared = bindings.crypto_scalarmult(published["alice_secret"], published["bob_public"])
    box = SharedBox.from_shared_secret(shared)
    sealed = box.seal(published["plaintext"], published["nonce"])
    assert sealed == published["ciphertext_tag_first"] + published["nonce"]
    assert box.open(sealed) == published["plaintext"]


def test_stun_exchange_of_a_relay() -> None:
    stun = RELAY["stun"]
    transaction_id = bytes.fromhex(stun["transaction_id"])
    request = bytes.fromhex(stun["request_with_fingerprint"])
    response = bytes.fromhex(stun["response_xor_mapped"])
    mapped = UdpAddress.from_str(stun["mapped_text"])
    assert encode_binding_request(transaction_id) == request
    assert decode_binding_request(request) == transaction_id
    assert encode_binding_response(transaction_id, mapped) == response
    assert decode_binding_response(response) == (transaction_id, mapped)
