"""Readers of recorded time lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from xml.etree import ElementTree

from fuzz.seeds import SEED_LIMIT
from fuzz.target import Target, decoded, text_of
from iroh_proto.testing.merging import connected, merge
from iroh_proto.testing.nat import PORT_RESTRICTED
from iroh_proto.testing.nat_matrix import NatPair
from iroh_proto.testing.replay import replay
from iroh_proto.testing.scene import read_scene
from iroh_proto.testing.sequence import draw_scene
from iroh_proto.trace.lines import FORMAT, read_lines
from iroh_proto.trace.values import decode_value, encode_value

OTHER = (
    json.dumps({"format": FORMAT, "lifelines": ["other"], "epoch": 1.0}),
    json.dumps({"time": 1.5, "at": "other/paths", "kind": "LotsDrawn"}),
    json.dumps(
        {
            "time": 2.5,
            "at": "other/paths",
            "kind": "DatagramsSent",
            "destination": "192.0.2.1:1",
            "datagrams": [{"nonce": "00"}],
            "labels": ["unknown disco"],
        }
    ),
)
"""A recording that others are put together with."""


def lines_of(data: bytes) -> list[str]:
    """Return bytes as the lines of a file."""
    return text_of(data).split("\n")


def check_drawing(data: bytes) -> None:
    """Any lines are refused with DecodeError, or drawn as XML that parses."""
    for payload in (False, True):
        scene = decoded(read_scene, lines_of(data), payload=payload)
        assert scene is None or ElementTree.fromstring(draw_scene(scene)).tag.endswith("svg")


def check_merging(data: bytes) -> None:
    """Time lines that are read are put together in one that is read, with all of their entries."""
    lines = lines_of(data)
    read = decoded(read_lines, lines)
    if read is None:
        assert decoded(merge, [lines]) is None
        return
    assert decoded(merge, [lines, lines]) is None
    merged = decoded(merge, [lines, OTHER])
    assert merged is None or len(read_lines(merged)[1]) == len(read[1]) + len(OTHER) - 1
    assert merged is None or connected([lines, OTHER]) in ([[0], [1]], [[0, 1]])


def check_replay(data: bytes) -> None:
    """Any lines are refused with DecodeError, or repeated up to the first difference."""
    lines = lines_of(data)
    result = decoded(replay, lines)
    if result is not None and result.difference is not None:
        assert 1 <= result.difference.line <= len(lines) + len(result.inputs) + 1


def check_values(data: bytes) -> None:
    """A value that is read is written as what reads the same."""
    try:
        written: object = json.loads(text_of(data))
    except (ValueError, RecursionError):
        return
    value = decoded(decode_value, written)
    if value is not None and value == value:  # all but NaN
        assert decode_value(encode_value(value)) == value


@cache
def recording() -> tuple[str, ...]:
    """Return the lines of a meeting of two nodes that can be repeated."""
    pair = NatPair(PORT_RESTRICTED, PORT_RESTRICTED, seed=1, recorded=True)
    pair.run()
    assert pair.timeline is not None
    return tuple(pair.timeline.lines())


def pieces(lines: Sequence[str]) -> Iterator[bytes]:
    """Yield time lines that are short enough to fuzz, in which something is to be seen."""
    head, *entries = lines
    piece = [head]
    for entry in entries:
        fields = json.loads(entry)
        if not fields.keys() & {"labels", "carried", "path", "new_source", "args"}:
            continue
        line = json.dumps({**fields, "data": ""})
        if sum(map(len, piece)) + len(line) > SEED_LIMIT and len(piece) > 1:
            yield "\n".join(piece).encode()
            piece = [head]
        piece.append(line)


def drawing_seeds() -> list[bytes]:
    """Return some pieces of the recording."""
    return list(pieces(recording()))[:30]


def merging_seeds() -> list[bytes]:
    """Return these pieces as if real nodes had recorded them, who number no packets."""
    return [re.sub(rb'"packet": \d+, ', b"", piece) for piece in drawing_seeds()]


def replay_seeds() -> Iterator[bytes]:
    """Yield beginnings of the recording, each with a whole life of each program so far."""
    for count in (1, 4, 8, 12, 16, 24, 32):
        yield "\n".join(recording()[:count]).encode()


def value_seeds() -> list[bytes]:
    """Return values of each kind that commands and configurations have."""
    found = {'[1, 2.5, null, true, "x"]', '{"$bytes": "00ff"}', '{"$udp": "192.0.2.1:4242"}'}
    for line in recording():
        entry = json.loads(line)
        found.update(json.dumps(item) for item in entry.get("args", []))
        found.update(json.dumps(item) for item in entry.get("config", {}).values())
    return [text.encode() for text in sorted(found) if len(text) < SEED_LIMIT]


TARGETS = {
    "timeline-drawing": Target(check_drawing, drawing_seeds),
    "timeline-merging": Target(check_merging, merging_seeds),
    "timeline-replay": Target(check_replay, replay_seeds),
    "timeline-values": Target(check_values, value_seeds),
}
