"""Raw public keys: 44 golden bytes and nothing else."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from iroh_proto.errors import DecodeError
from iroh_proto.identity.raw_key import SPKI_SIZE, decode_spki, encode_spki
from iroh_proto.key import NodeId, SecretKey

KEYS: list[dict[str, str]] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "identity.json").read_text()
)["keys"]
NODE_ID = NodeId.from_str(KEYS[0]["public_hex"])
PREFIX = encode_spki(NODE_ID)[:12]


@pytest.mark.parametrize("entry", KEYS, ids=lambda entry: entry["short_hex"])
def test_golden_keys_are_written_and_read(entry: dict[str, str]) -> None:
    node_id = NodeId.from_str(entry["public_hex"])
    spki = encode_spki(node_id)
    assert spki.hex() == entry["spki_der_hex"]
    assert len(spki) == SPKI_SIZE == 44
    assert decode_spki(spki) == node_id


def test_a_library_writes_the_same() -> None:
    key = ed25519.Ed25519PublicKey.from_public_bytes(NODE_ID)
    assert encode_spki(NODE_ID) == key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        encode_spki(NODE_ID)[:-1],
        encode_spki(NODE_ID) + b"\0",
        bytes(NODE_ID),
        bytes.fromhex("302a300506032b656e032100") + NODE_ID,  # X25519
    ],
)
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(DecodeError, match="SubjectPublicKeyInfo"):
        decode_spki(data)


def test_a_key_that_is_no_point_is_refused() -> None:
    with pytest.raises(DecodeError, match="not a point"):
        decode_spki(encode_spki(NODE_ID)[:12] + b"\x02" + bytes(31))


@given(st.binary(min_size=32, max_size=32))
def test_every_node_is_read_back(seed: bytes) -> None:
    node_id = SecretKey(seed).public
    assert decode_spki(encode_spki(node_id)) == node_id


@given(st.binary(max_size=60) | st.binary(min_size=32, max_size=32).map(lambda key: PREFIX + key))
def test_any_bytes_raise_nothing_but_decode_errors(data: bytes) -> None:
    with suppress(DecodeError):
        assert encode_spki(decode_spki(data)) == data
