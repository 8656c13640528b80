"""disco messages and their envelope."""

from __future__ import annotations

import random
from collections.abc import Iterator

from fuzz import seeds
from fuzz.target import Choices, Target, decoded
from iroh_proto.box import SharedBox
from iroh_proto.disco.message import (
    CALL_ME_MAYBE_ADDRESSES_LIMIT,
    DISCO_MAGIC,
    CallMeMaybe,
    Ping,
    decode_disco_message,
    is_disco,
    open_envelope,
    seal_envelope,
)
from iroh_proto.key import KEY_SIZE, SecretKey
from iroh_proto.trace.disco import DiscoReader

OURS, THEIRS = (SecretKey.generate(random.Random(seed)) for seed in (101, 102))
BOX = SharedBox(OURS, THEIRS.public)
_NONCE_SIZE = 24
_PING_SIZE = 46


def check_message(data: bytes) -> None:
    """What decodes encodes to what decodes the same; pings and CallMeMaybe to the same bytes."""
    message = decoded(decode_disco_message, data)
    if message is None:
        return
    encoded = message.encode()
    assert decode_disco_message(encoded) == message
    assert hash(decode_disco_message(encoded)) == hash(message)
    if isinstance(message, Ping):
        assert data[:_PING_SIZE] == encoded
    elif isinstance(message, CallMeMaybe):
        assert data[: len(encoded)] == encoded
        is_full = len(message.addresses) == CALL_ME_MAYBE_ADDRESSES_LIMIT
        assert is_full or len(data) == len(encoded)
    assert repr(message)


def check_envelope(data: bytes) -> None:
    """What was sealed opens to itself, and nothing else opens; no bytes raise but DecodeError."""
    opened = decoded(open_envelope, data)
    if opened is not None:
        assert is_disco(data)
        sender, sealed = opened
        assert DISCO_MAGIC + sender + sealed == data
        assert sealed in _SEALED or decoded(BOX.open, sealed) is None
        box = decoded(SharedBox, OURS, sender)
        assert box is None or sender == THEIRS.public or decoded(box.open, sealed) is None
    choices = Choices(data)
    nonce, flip, place = choices.take(_NONCE_SIZE), 1 + choices.below(255), choices.take(2)
    datagram = seal_envelope(choices.rest, sender=THEIRS.public, box=BOX, nonce=nonce)
    node_id, inside = open_envelope(datagram)
    assert (node_id, BOX.open(inside)) == (THEIRS.public, choices.rest)
    bent = bytearray(inside)
    bent[int.from_bytes(place, "big") % len(bent)] ^= flip
    assert decoded(BOX.open, bytes(bent)) is None


def check_labels(data: bytes) -> None:
    """A recorder of wires has words for any bytes, in one line, and reads what nodes say."""
    reader = DiscoReader([OURS, THEIRS])
    assert "\n" not in reader.label(data)
    for carried in reader.carried(data):
        assert set(carried) == {"key", "label"}
    nonce = data[:_NONCE_SIZE].ljust(_NONCE_SIZE, b"\0")
    sealed = seal_envelope(data, sender=THEIRS.public, box=BOX, nonce=nonce)
    message = decoded(decode_disco_message, data)
    assert reader.label(sealed).endswith("unknown disco") == (message is None)
    for datagram in (data, sealed):
        opened = reader.open(datagram)
        if opened is not None:
            assert reader.open(reader.seal(opened)) == opened


def _sealed_seeds() -> Iterator[bytes]:
    for number, message in enumerate(golden_messages()):
        nonce = bytes((number,)) * _NONCE_SIZE
        yield seal_envelope(message, sender=THEIRS.public, box=BOX, nonce=nonce)


def golden_messages() -> list[bytes]:
    """Return the messages of the vectors."""
    found = seeds.packets("disco.json")
    return [data for data in found if decoded(decode_disco_message, data) is not None]


_SEALED = frozenset(datagram[len(DISCO_MAGIC) + KEY_SIZE :] for datagram in _sealed_seeds())

TARGETS = {
    "disco-message": Target(check_message, lambda: seeds.packets("disco.json")),
    "disco-envelope": Target(
        check_envelope, lambda: [*seeds.packets("disco.json"), *_sealed_seeds()]
    ),
    "wire-labels": Target(
        check_labels, lambda: [*seeds.packets("disco.json", "stun.json"), *_sealed_seeds()]
    ),
}
