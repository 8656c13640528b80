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
from dataclasses import dataclass
from itertools import combinations
from typing import cast

from iroh_proto.errors import DecodeError
from iroh_proto.trace.lines import FORMAT, check_lifelines, read_lines
from iroh_proto.trace.values import Json


def merge(timelines: Sequence[Iterable[str]]) -> list[str]:
    """Return the lines of several time lines as those of one, in the time of the first.

    One that has no message in common with those before it keeps its own time.

    :raises DecodeError: if one is no time line, or tells times that no clock can, or is of a
        simulated network, which has all ends already, or if two are the same recording.
    """
    recordings = [_Recording.read(lines) for lines in timelines]
    _check_distinct(recordings)
    names: list[object] = []
    entries: list[Json] = []
    for recording in recordings:
        own = recording.entries
        offset = _offset(entries, own)
        own = [{**entry, "time": _time(entry) - offset} for entry in own]
        if not all(math.isfinite(_time(entry)) for entry in own):
            raise DecodeError("these time lines are too far apart")
        entries += own
        names += cast("list[object]", recording.head["lifelines"])
    entries.sort(key=_time)
    head = {"format": FORMAT, "lifelines": list(dict.fromkeys(names))}
    return [json.dumps(line) for line in (head, *entries)]


def connected(timelines: Sequence[Iterable[str]]) -> list[list[int]]:
    """Return the places of time lines in groups: messages connect those of one group.

    :raises DecodeError: if one is no time line.
    """
    groups: list[tuple[list[int], set[str]]] = []
    for place, lines in enumerate(timelines):
        entries = _Recording.read(lines).entries
        messages = {*_times(entries, "DatagramsSent"), *_times(entries, "DatagramsReceived")}
        joined = [group for group in groups if not messages.isdisjoint(group[1])]
        groups = [group for group in groups if messages.isdisjoint(group[1])]
        places = sorted([place, *(other for group in joined for other in group[0])])
        groups.append((places, messages.union(*(group[1] for group in joined))))
    return sorted(places for places, _ in groups)


@dataclass(frozen=True, slots=True)
class _Recording:
    """A time line that was read."""

    head: Json
    entries: list[Json]
    texts: list[str]

    @classmethod
    def read(cls, lines: Iterable[str]) -> _Recording:
        texts = list(lines)
        head, numbered = read_lines(texts)
        check_lifelines(head, numbered)
        return cls(head, [entry for _, entry in numbered], texts)

    @property
    def is_simulated(self) -> bool:
        return any("packet" in entry for entry in self.entries)

    def is_same(self, other: _Recording) -> bool:
        """Say whether both are of one run of one node, though one may be longer."""
        pairs = zip(self.texts, other.texts, strict=False)
        return all(mine.rstrip("\r\n") == theirs.rstrip("\r\n") for mine, theirs in pairs)


def _check_distinct(recordings: Sequence[_Recording]) -> None:
    """See that there are as many nodes as there are recordings, if there are several."""
    for (first, one), (second, other) in combinations(enumerate(recordings, start=1), 2):
        if one.is_same(other):
            raise DecodeError(f"the time lines {first} and {second} are the same recording")
        if one.is_simulated or other.is_simulated:
            number = first if one.is_simulated else second
            raise DecodeError(
                f"the time line {number} is of a simulated network, which has all ends already"
            )


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
