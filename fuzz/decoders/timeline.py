"""Readers of recorded time lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from xml.etree import ElementTree

from fuzz.seeds import SEED_LIMIT
from fuzz.target import Target, decoded, text_of
from iroh_proto.testing.nat import PORT_RESTRICTED
from iroh_proto.testing.nat_matrix import NatPair
from iroh_proto.testing.sequence import draw_sequence
from iroh_proto.testing.timeline import Timeline


def check_drawing(data: bytes) -> None:
    """Any lines are refused with DecodeError, or drawn as XML that parses."""
    lines = text_of(data).split("\n")
    for payload in (False, True):
        picture = decoded(draw_sequence, lines, payload=payload)
        assert picture is None or ElementTree.fromstring(picture).tag.endswith("svg")


def recordings() -> Iterator[bytes]:
    """Yield pieces of a recording in which two nodes meet, without the bytes of their packets."""
    pair = NatPair(PORT_RESTRICTED, PORT_RESTRICTED, seed=1)
    timeline = Timeline(pair.network, secret_keys=pair.secret_keys)
    pair.run()
    head, *entries = timeline.lines()
    lines = [head]
    for entry in entries:
        fields = json.loads(entry)
        if not fields.keys() & {"labels", "carried", "path", "new_source"}:
            continue
        line = json.dumps({**fields, "datagrams": [], "data": ""})
        if sum(map(len, lines)) + len(line) > SEED_LIMIT:
            yield "\n".join(lines).encode()
            lines = [head]
        lines.append(line)


TARGETS = {"timeline-drawing": Target(check_drawing, recordings)}
