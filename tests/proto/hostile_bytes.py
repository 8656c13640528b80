"""Bytes that strangers send: golden packets bent in every way, and noise."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

VECTORS = Path(__file__).parents[1] / "vectors"
_HEX = re.compile(r"(?:[0-9a-f]{2}){4,}\Z")


def golden_bytes(files: str = "*.json") -> list[bytes]:
    """Return every byte string of the golden vectors, of packets and of what is in them."""
    found: dict[bytes, None] = {}
    for path in sorted(VECTORS.glob(files)):
        for text in _strings(json.loads(path.read_text())):
            if _HEX.match(text):
                found[bytes.fromhex(text)] = None
            elif text.startswith("GET "):
                found[text.encode()] = None
    return list(found)


def bend(data: bytes, rng: random.Random) -> bytes:
    """Return something like ``data``: bits flipped, cut short, made longer, or torn."""
    bent = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        way = rng.randrange(7)
        at = rng.randrange(len(bent)) if bent else 0
        if way == 0 and bent:
            bent[at] ^= 1 << rng.randrange(8)
        elif way == 1:
            del bent[at:]
        elif way == 2:
            bent += rng.randbytes(rng.randrange(1, 200))
        elif way == 3 and bent:
            bent[at] = rng.choice((0x00, 0x01, 0x3F, 0x40, 0x7F, 0x80, 0xC0, 0xFF))
        elif way == 4:
            bent[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif way == 5:
            del bent[at : at + rng.randrange(1, 9)]
        else:
            bent += data
    return bytes(bent)


def initials(client_packet: bytes, rng: random.Random) -> Iterator[bytes]:
    """Yield first packets of QUIC with other versions, ids, tokens and lengths than they had."""
    for version in (0, 1, 2, 0x6B3343CF, 0xFF00001D, 0xFFFFFFFF, 0x0A1A2A3A):
        yield client_packet[:1] + version.to_bytes(4, "big") + client_packet[5:]
    for size in (0, 1, 5, 6, 7, 20, 50, 1199):
        yield client_packet[:size]
    for size in (0, 7, 20, 21, 255):
        head = client_packet[:5] + bytes((size,)) + rng.randbytes(size)
        yield (head + client_packet[6:]).ljust(1200, b"\0")[:1500]
    for first in range(0x80, 0x100, 8):
        yield bytes((first,)) + client_packet[1:]


def noise(rng: random.Random) -> bytes:
    """Return random bytes of a likely or an unlikely size, with a likely first byte or not."""
    size = rng.choice((0, 1, 7, 19, 20, 28, 62, 78, 120, 1199, 1200, 1472, 9000))
    data = rng.randbytes(size)
    return bytes((rng.choice((0x00, 0x01, 0x40, 0x54, 0x80, 0xC0, 0xE0)),)) + data[1:]


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
