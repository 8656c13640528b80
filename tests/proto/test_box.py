"""The disco box against golden bytes, and every way of not opening."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl import bindings

from iroh_proto.box import BOX_NONCE_SIZE, BOX_OVERHEAD, HChaCha20, SharedBox
from iroh_proto.errors import DecodeError, LocalProtocolError
from iroh_proto.key import NodeId, SecretKey

VECTORS = Path(__file__).parents[1] / "vectors"
DISCO: dict[str, Any] = json.loads((VECTORS / "disco.json").read_text())
IDENTITY: dict[str, Any] = json.loads((VECTORS / "identity.json").read_text())

ENVELOPE_SIZE = 6 + 32  # magic and sender id stand before the box in a disco datagram
KEYS = {
    name: SecretKey(bytes.fromhex(DISCO["keys"][name]["ed25519_seed"])) for name in ("alice", "bob")
}

# The eight points of small order, as node ids (RFC 8032 encoding).
SMALL_ORDER_KEYS = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
]


def test_hchacha20_gives_the_check_value_of_its_draft() -> None:
    # draft-irtf-cfrg-xchacha-03 section 2.2.1
    key = bytes(range(32))
    nonce = bytes.fromhex("000000090000004a0000000031415927")
    expected = "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc"
    derived = HChaCha20(key).derive(nonce + bytes(8))
    assert derived.hex() == expected


@pytest.mark.parametrize("name", ["alice", "bob"])
def test_ed25519_keys_become_the_expected_x25519_keys(name: str) -> None:
    expected = DISCO["keys"][name]
    assert KEYS[name].public.hex() == expected["ed25519_public"]
    assert KEYS[name].to_x25519().hex() == expected["x25519_secret_clamped"]
    assert KEYS[name].public.to_x25519().hex() == expected["x25519_public"]


@pytest.mark.parametrize("entry", IDENTITY["keys"], ids=lambda entry: entry["short_hex"])
def test_x25519_keys_of_the_identity_vectors(entry: dict[str, str]) -> None:
    secret_key = SecretKey.from_str(entry["secret_seed_hex"])
    assert secret_key.to_x25519().hex() == entry["x25519_secret_hex"]
    assert secret_key.public.to_x25519().hex() == entry["x25519_public_hex"]


def test_hchacha20_leaves_the_golden_box_key_and_subkeys() -> None:
    shared = bytes.fromhex(DISCO["keys"]["x25519_shared"])
    box_key = HChaCha20(shared).derive(bytes(BOX_NONCE_SIZE))
    assert box_key.hex() == DISCO["keys"]["box_key"]
    for case in DISCO["sealed_iroh"]["cases"]:
        assert HChaCha20(box_key).derive(bytes.fromhex(case["nonce"])).hex() == case["subkey"]


def sealed_part(case: dict[str, Any]) -> bytes:
    return bytes.fromhex(case["packet"])[ENVELOPE_SIZE:]


@pytest.mark.parametrize("case", DISCO["sealed_iroh"]["cases"], ids=lambda case: case["name"])
def test_golden_disco_messages_are_sealed_and_opened_to_the_byte(case: dict[str, Any]) -> None:
    sender, receiver = KEYS[case["from"]], KEYS[case["to"]]
    inner, nonce = bytes.fromhex(case["inner"]), bytes.fromhex(case["nonce"])
    sealed = SharedBox(sender, receiver.public).seal(inner, nonce)
    assert sealed.hex() == case["tag"] + case["ciphertext"] + case["nonce"]
    assert sealed == sealed_part(case)
    assert SharedBox(receiver, sender.public).open(sealed) == inner


@pytest.mark.parametrize("case", DISCO["negative_iroh"], ids=lambda case: case["name"])
def test_damaged_disco_messages_do_not_open(case: dict[str, Any]) -> None:
    packet = bytes.fromhex(case["packet"])
    with pytest.raises(DecodeError):
        SharedBox(KEYS["bob"], NodeId(packet[6:ENVELOPE_SIZE])).open(packet[ENVELOPE_SIZE:])


def test_the_identity_box_is_sealed_and_opened_to_the_byte() -> None:
    case = IDENTITY["shared_box"]
    secret_key = SecretKey.from_str(case["secret_a"])
    peer = NodeId.from_str(case["public_b"])
    shared = bindings.crypto_scalarmult(secret_key.to_x25519(), peer.to_x25519())
    assert shared.hex() == case["x25519_shared"]
    assert HChaCha20(shared).derive(bytes(BOX_NONCE_SIZE)).hex() == case["box_key"]
    plaintext, nonce = bytes.fromhex(case["plaintext"]), bytes.fromhex(case["nonce"])
    box = SharedBox(secret_key, peer)
    assert box.seal(plaintext, nonce).hex() == case["sealed"]
    assert box.open(bytes.fromhex(case["sealed"])) == plaintext


def test_the_ping_of_the_identity_vectors_opens() -> None:
    case = IDENTITY["disco_ping"]
    sender = SecretKey.from_str(case["sender_secret"])
    box = SharedBox(sender, NodeId.from_str(case["receiver_public"]))
    inner = box.open(bytes.fromhex(case["datagram"])[ENVELOPE_SIZE:])
    assert inner == b"\x01\x00" + bytes.fromhex(case["tx_id"]) + sender.public
    assert box.seal(inner, bytes.fromhex(case["nonce"])) == bytes.fromhex(case["datagram"])[38:]


def test_upstreams_known_answer_with_bare_x25519_keys() -> None:
    case = DISCO["box_known_answer"]
    secret = bytes.fromhex(case["alice_x25519_secret"])
    shared = bindings.crypto_scalarmult(secret, bytes.fromhex(case["bob_x25519_public"]))
    assert HChaCha20(shared).derive(bytes(BOX_NONCE_SIZE)).hex() == case["box_key"]
    box = SharedBox.from_shared_secret(shared)
    plaintext, nonce = bytes.fromhex(case["plaintext"]), bytes.fromhex(case["nonce"])
    assert box.seal(plaintext, nonce).hex() == case["sealed"] + case["nonce"]
    assert box.open(bytes.fromhex(case["sealed"]) + nonce) == plaintext


@pytest.mark.parametrize("case", DISCO["sealed_tailscale"]["cases"], ids=lambda case: case["name"])
def test_the_box_of_tailscale_is_another_one(case: dict[str, Any]) -> None:
    packet = bytes.fromhex(case["packet"])
    secret = bytes.fromhex(case["disco_secret_recipient"])
    box = SharedBox.from_shared_secret(bindings.crypto_scalarmult(secret, packet[6:ENVELOPE_SIZE]))
    nonce, sealed = packet[38:62], packet[62:]
    assert nonce.hex() == case["nonce"]
    with pytest.raises(DecodeError, match="does not open"):
        box.open(sealed + nonce)


@pytest.mark.parametrize("key", SMALL_ORDER_KEYS)
def test_keys_of_small_order_are_refused(key: str) -> None:
    with pytest.raises(DecodeError, match="small or mixed order"):
        SharedBox(KEYS["alice"], NodeId.from_str(key))


def test_a_key_of_mixed_order_is_refused() -> None:
    torsion = bytes.fromhex(SMALL_ORDER_KEYS[4])
    mixed = NodeId(bindings.crypto_core_ed25519_add(bytes(KEYS["bob"].public), torsion))
    with pytest.raises(DecodeError, match="small or mixed order"):
        SharedBox(KEYS["alice"], mixed)


@pytest.mark.parametrize("size", [0, 23, 25])
def test_a_nonce_of_another_size_is_the_callers_mistake(size: int) -> None:
    box = SharedBox(KEYS["alice"], KEYS["bob"].public)
    with pytest.raises(LocalProtocolError, match="24 bytes"):
        box.seal(b"ping", bytes(size))


@given(st.binary(max_size=1300), st.binary(min_size=BOX_NONCE_SIZE, max_size=BOX_NONCE_SIZE))
def test_both_ends_share_one_key_and_what_is_sealed_opens(plaintext: bytes, nonce: bytes) -> None:
    ours = SharedBox(KEYS["alice"], KEYS["bob"].public)
    theirs = SharedBox(KEYS["bob"], KEYS["alice"].public)
    sealed = ours.seal(plaintext, nonce)
    assert len(sealed) == len(plaintext) + BOX_OVERHEAD
    assert theirs.seal(plaintext, nonce) == sealed
    assert theirs.open(sealed) == ours.open(sealed) == plaintext


@given(st.binary(max_size=200))
def test_foreign_bytes_never_open(data: bytes) -> None:
    with pytest.raises(DecodeError):
        SharedBox(KEYS["alice"], KEYS["bob"].public).open(data)


@given(st.data())
def test_any_changed_bit_keeps_the_box_shut(data: st.DataObject) -> None:
    box = SharedBox(KEYS["alice"], KEYS["bob"].public)
    sealed = bytearray(box.seal(b"a disco message", bytes(range(BOX_NONCE_SIZE))))
    bit = data.draw(st.integers(0, 8 * len(sealed) - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(DecodeError, match="does not open"):
        box.open(bytes(sealed))
