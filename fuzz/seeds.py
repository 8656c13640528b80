"""Inputs to start from, made of the golden vectors and of what this package writes itself."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.proto.hostile_bytes import golden_bytes

VECTORS = Path(__file__).parents[1] / "tests" / "vectors"

SEED_LIMIT = 4096
"""Bytes. A fuzzer learns nothing from longer ones that it could not from shorter."""


def packets(*files: str, prefix: bytes = b"") -> list[bytes]:
    """Return the byte strings in some vector files, each behind a prefix that steers the target."""
    return [
        prefix + data for file in files for data in golden_bytes(file) if len(data) < SEED_LIMIT
    ]


def texts(*files: str) -> list[bytes]:
    """Return all texts in some vector files, those of bytes in hexadecimal included."""
    found: dict[str, None] = {}
    for file in files:
        for text in _strings(json.loads((VECTORS / file).read_text(encoding="utf-8"))):
            found[text] = None
    return [text.encode() for text in found if len(text) < SEED_LIMIT]


def noise(label: str, *, count: int, size: int) -> list[bytes]:
    """Return random bytes, the same each time."""
    rng = random.Random(label)
    return [rng.randbytes(size) for _ in range(count)]


def steered(heads: Iterable[bytes], bodies: Iterable[bytes]) -> list[bytes]:
    """Return every body behind every head."""
    tails = list(bodies)
    return [head + tail for head in heads for tail in tails]


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
