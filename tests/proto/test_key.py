"""Keys: every text form of every release, and what may not be a key."""

from __future__ import annotations

import copy
import json
import pickle
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iroh_proto.errors import DecodeError
from iroh_proto.key import NodeId, SecretKey, decode_base32, encode_base32

IDENTITY: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "identity.json").read_text()
)
KEYS: list[dict[str, Any]] = IDENTITY["keys"]
KEY = SecretKey(bytes(range(32)))

seeds = st.binary(min_size=32, max_size=32)


@pytest.mark.parametrize("entry", KEYS, ids=lambda entry: entry["short_hex"])
def test_golden_node_ids_have_every_text_form(entry: dict[str, Any]) -> None:
    node_id = SecretKey.from_bytes(bytes.fromhex(entry["secret_seed_hex"])).public
    assert str(node_id) == node_id.hex() == entry["public_hex"]
    assert node_id.to_base32() == entry["public_base32_lower"] == entry["mdns_label"]
    assert node_id.to_z32() == entry["public_zbase32"]
    assert node_id.to_tls_server_name() == entry["tls_server_name"]
    assert node_id.to_tls_server_name() == entry["public_base32hex_lower"] + ".iroh.invalid"
    assert node_id.fmt_short() == entry["short_hex"]
    assert node_id.fmt_short_base32() == entry["short_base32"]


@pytest.mark.parametrize("entry", KEYS, ids=lambda entry: entry["short_hex"])
def test_golden_node_ids_are_read_from_every_text_form(entry: dict[str, Any]) -> None:
    expected = NodeId.from_bytes(bytes.fromhex(entry["public_hex"]))
    for text in (entry["public_hex"], entry["public_base32_lower"]):
        assert NodeId.from_str(text) == NodeId.from_str(text.upper()) == expected
    assert NodeId.from_z32(entry["public_zbase32"]) == expected


@pytest.mark.parametrize("entry", KEYS, ids=lambda entry: entry["short_hex"])
def test_golden_secret_keys_are_read_and_written(entry: dict[str, Any]) -> None:
    seed = bytes.fromhex(entry["secret_seed_hex"])
    for text in (entry["secret_hex"], entry["secret_base32_lower"]):
        assert SecretKey.from_str(text) == SecretKey.from_str(text.upper()) == SecretKey(seed)
    assert SecretKey(seed).to_bytes() == seed
    assert SecretKey(seed).to_base32() == entry["secret_base32_lower"]


@pytest.mark.parametrize("entry", KEYS, ids=lambda entry: entry["short_hex"])
def test_golden_signatures_are_made_and_verified(entry: dict[str, Any]) -> None:
    case = entry["signature_of_utf8_iroh"]
    message, signature = case["message_utf8"].encode(), bytes.fromhex(case["signature_hex"])
    key = SecretKey.from_str(entry["secret_seed_hex"])
    assert key.sign(message) == signature
    assert key.public.verify(message, signature)


@pytest.mark.parametrize("case", IDENTITY["parse_public_key"], ids=lambda case: case["input"][:12])
def test_what_any_release_accepts_as_a_node_id_is_accepted(case: dict[str, str]) -> None:
    verdicts = [verdict for name, verdict in case.items() if name != "input"]
    if any(verdict.startswith("ok") for verdict in verdicts):
        assert NodeId.from_str(case["input"])
    else:
        with pytest.raises(DecodeError):
            NodeId.from_str(case["input"])


@pytest.mark.parametrize("text", [KEY.to_bytes().hex(), KEY.to_base32()])
def test_white_space_around_a_key_as_in_a_file_does_not_count(text: str) -> None:
    assert SecretKey.from_str(f"{text}\n") == SecretKey.from_str(f"  {text}\r\n") == KEY
    assert NodeId.from_str(f" {KEY.public}\n") == KEY.public


def test_bytes_that_are_no_canonical_point_are_kept_as_given() -> None:
    assert NodeId.from_str("ff" * 32) == b"\xff" * 32
    assert str(NodeId(b"\xff" * 32)) == "ff" * 32
    assert NodeId(bytes(32)) == bytes(32)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "32 bytes, not 0"),
        (bytes(31), "32 bytes, not 31"),
        (bytes(33), "32 bytes, not 33"),
        (b"\x02" + bytes(31), "not a point"),
    ],
)
def test_bytes_that_are_no_node_id_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        NodeId(data)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not 0 characters"),
        ("a" * 51, "not 51 characters"),
        ("a" * 65, "not 65 characters"),
        ("g" * 64, "not all hex"),
        ("\u0663" * 64, "not all hex"),
        ("a " + "a" * 62, "not all hex"),
        ("1" * 52, "not base32"),
        ("\u017f" * 52, "base32"),
        ("a" * 51 + "b", "bits left over"),
        ("\u212a" * 52, "not base32"),
    ],
)
def test_text_that_is_no_key_is_refused(text: str, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        NodeId.from_str(text)
    with pytest.raises(DecodeError, match=reason):
        SecretKey.from_str(text)


@pytest.mark.parametrize("text", ["", "y" * 51, "l" * 52, "0" * 52, "y" * 51 + "b"])
def test_text_that_is_no_z_base_32_is_refused(text: str) -> None:
    with pytest.raises(DecodeError):
        NodeId.from_z32(text)


def test_errors_do_not_repeat_a_secret() -> None:
    for text in ("secret" * 10 + "1234", "secret" * 8 + "1234", "secret" * 3):
        with pytest.raises(DecodeError) as caught:
            SecretKey.from_str(text)
        assert "secretsecret" not in str(caught.value)
        assert caught.value.__cause__ is None


@given(seeds)
def test_node_ids_survive_in_every_text_form(seed: bytes) -> None:
    node_id = SecretKey(seed).public
    assert NodeId.from_str(str(node_id)) == node_id
    assert NodeId.from_str(node_id.to_base32()) == node_id
    assert NodeId.from_z32(node_id.to_z32()) == node_id


@given(st.binary(max_size=70))
def test_base32_survives(data: bytes) -> None:
    text = encode_base32(data)
    assert decode_base32(text) == decode_base32(text.upper()) == data


@given(st.text(max_size=70) | st.text("abcdefghijklmnopqrstuvwxyz234567=", max_size=70))
def test_base32_is_read_in_one_spelling_only(text: str) -> None:
    with suppress(DecodeError):
        assert encode_base32(decode_base32(text)) == text.lower()


@given(st.text(max_size=70) | st.text("0123456789abcdefABCDEF", min_size=64, max_size=64))
def test_any_text_raises_nothing_but_decode_errors(text: str) -> None:
    for parse in (NodeId.from_str, NodeId.from_z32, SecretKey.from_str):
        with suppress(DecodeError):
            parse(text)


def recover_x(data: bytes) -> int | None:
    """Decompress a point as RFC 8032 section 5.1.3 has it, by the square root itself."""
    p = 2**255 - 19
    d = -121665 * pow(121666, -1, p) % p
    y = (int.from_bytes(data, "little") & ((1 << 255) - 1)) % p
    u, v = (y * y - 1) % p, (d * y * y + 1) % p
    root = u * v**3 * pow(u * v**7, (p - 5) // 8, p) % p
    for x in (root, root * pow(2, (p - 1) // 4, p) % p):
        if (-x * x + y * y - 1 - d * x * x * y * y) % p == 0:
            return x
    return None


@given(seeds | seeds.map(lambda seed: bytes(SecretKey(seed).public)))
def test_bytes_are_a_node_id_when_they_are_a_point(data: bytes) -> None:
    if recover_x(data) is None:
        with pytest.raises(DecodeError, match="not a point"):
            NodeId(data)
    else:
        assert NodeId(data) == data


def test_a_node_id_is_its_own_bytes() -> None:
    node_id = KEY.public
    assert isinstance(node_id, bytes)
    assert {node_id: 1}[NodeId(bytes(node_id))] == 1
    assert {node_id: 1}[bytes(node_id)] == 1  # type: ignore[index]
    assert b"" + node_id == bytes(node_id)
    assert repr(node_id) == f"NodeId({node_id.hex()})"
    assert sorted([NodeId(b"\xff" * 32), node_id]) == [node_id, NodeId(b"\xff" * 32)]


def test_a_node_id_can_be_copied_and_pickled() -> None:
    assert copy.deepcopy(KEY.public) == pickle.loads(pickle.dumps(KEY.public)) == KEY.public


@given(seeds, st.binary(max_size=100))
def test_what_a_key_signs_only_its_node_verifies(seed: bytes, message: bytes) -> None:
    key = SecretKey(seed)
    signature = key.sign(message)
    assert key.public.verify(message, signature)
    assert not key.public.verify(message + b"x", signature)
    assert not key.public.verify(message, signature[:-1])
    assert not key.public.verify(message, signature[:63] + bytes([signature[63] ^ 1]))
    assert not SecretKey(bytes([seed[0] ^ 1]) + seed[1:]).public.verify(message, signature)


@pytest.mark.parametrize("cut", [0, 63, 65, 71])
def test_a_signature_has_64_bytes_and_the_message_does_not_make_up_for_them(cut: int) -> None:
    signed = KEY.sign(b"message") + b"message"
    assert KEY.public.verify(signed[64:], signed[:64])
    assert not KEY.public.verify(signed[cut:], signed[:cut])


def test_signatures_are_checked_strictly() -> None:
    # Under a key of small order, one signature would fit every message.
    neutral = NodeId(b"\x01" + bytes(31))
    assert not neutral.verify(b"anything", bytes(neutral) + bytes(32))
    # S must be below the group's order, or there would be a second signature of each message.
    order = 2**252 + 27742317777372353535851937790883648493
    signature = KEY.sign(b"message")
    scalar = int.from_bytes(signature[32:], "little") + order
    assert not KEY.public.verify(b"message", signature[:32] + scalar.to_bytes(32, "little"))


@given(st.binary(max_size=80), st.binary(max_size=100))
def test_no_signature_raises(signature: bytes, message: bytes) -> None:
    assert not KEY.public.verify(message, signature)


def test_a_secret_key_shows_only_its_public_part() -> None:
    for text in (repr(KEY), str(KEY), f"{KEY}"):
        assert text == f"SecretKey(public={KEY.public})"


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_secret_key_is_32_bytes(size: int) -> None:
    with pytest.raises(DecodeError, match=f"32 bytes, not {size}"):
        SecretKey.from_bytes(bytes(size))


def test_the_public_part_is_documented_and_stays() -> None:
    assert SecretKey.public.__doc__
    with pytest.raises(AttributeError):
        KEY.public = KEY.public  # type: ignore[misc]


def test_secret_keys_compare_by_value_and_are_no_dictionary_keys() -> None:
    assert SecretKey(bytes(32)) == SecretKey(bytes(32))
    assert SecretKey(bytes(32)) != KEY
    assert KEY.to_bytes() != KEY
    with pytest.raises(TypeError, match="unhashable"):
        hash(KEY)


def test_keys_are_made_from_the_given_source_of_chance_or_the_systems() -> None:
    assert SecretKey.generate(random.Random(5)) == SecretKey.generate(random.Random(5))
    assert SecretKey.generate() != SecretKey.generate()
