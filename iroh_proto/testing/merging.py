"""Puts the time lines of several real nodes together, so that both ends of a message are there.

Their clocks began at different times. A message tells how far they are apart: it was sent before
it was received. Of the fastest one in each direction half the difference is taken, as NTP does; so
ways of unequal length show as messages that arrive early one way and late the other, but never
before they were sent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import cast

from iroh_proto.errors import DecodeError
from iroh_proto.trace.lines import FORMAT, read_lines
from iroh_proto.trace.values import Json


def merge(timelines: Sequence[Iterable[str]]) -> list[str]:
    """Return the lines of several time lines as those of one, in the time of the first.

    One that has no message in common with those before it keeps its own time.

    :raises DecodeError: if one is no time line, or tells times that no clock can.
    """
    names: list[object] = []
    entries: list[Json] = []
    for lines in timelines:
        head, numbered = read_lines(lines)
        own = [entry for _, entry in numbered]
        offset = _offset(entries, own)
        own = [{**entry, "time": _time(entry) - offset} for entry in own]
        if not all(math.isfinite(_time(entry)) for entry in own):
            raise DecodeError("these time lines are too far apart")
        entries += own
        names += cast("list[object]", head["lifelines"])
    entries.sort(key=_time)
    head = {"format": FORMAT, "lifelines": list(dict.fromkeys(names))}
    return [json.dumps(line) for line in (head, *entries)]


def _offset(there: Sequence[Json], here: Sequence[Json]) -> float:
    """Return by how many seconds the clock here is ahead."""
    inwards = _fastest(_times(there, "DatagramsSent"), _times(here, "DatagramsReceived"))
    outwards = _fastest(_times(here, "DatagramsSent"), _times(there, "DatagramsReceived"))
    if inwards is None or outwards is None:
        return (inwards or 0.0) - (outwards or 0.0)
    return (inwards - outwards) / 2


def _fastest(sent: dict[str, float], received: dict[str, float]) -> float | None:
    return min((received[key] - sent[key] for key in sent.keys() & received.keys()), default=None)


def _times(entries: Iterable[Json], kind: str) -> dict[str, float]:
    """Return by its nonce when each opened message was sent or received first."""
    times: dict[str, float] = {}
    for entry in entries:
        datagrams = entry.get("datagrams")
        if entry["kind"] == kind and isinstance(datagrams, list):
            for message in datagrams:
                if isinstance(message, dict) and "nonce" in message:
                    times.setdefault(str(message["nonce"]), _time(entry))
    return times


def _time(entry: Json) -> float:
    return cast(float, entry["time"])
