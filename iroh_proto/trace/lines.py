"""The lines of a time line, and how they come to be.

The first line names the format and the lifelines. Every other line is an object with

* ``time``: seconds since ``epoch``, which the first line has (0 without it), a whole number, so
  that adding it gives exactly the time that the machine was told;
* ``at``: a program, ``"host/program"``, or a router;
* ``kind``: the class of an event of the program's machine, or of what happened to it, with its
  fields; bytes are hexadecimal, addresses are text;
* ``drawn``, if the machine drew lots by then: a number from 0 to 1, or ``[bits, hex]``, in order.

Kinds beside the events, and the names of their fields: ``MachineMade`` (machine, config),
``CommandGiven`` (command, args, options, result or raised), ``TimerHandled`` (deadline),
``DatagramsReceived`` (source, datagrams), ``DatagramsSent`` (destination, datagrams),
``TcpDataReceived`` and ``TcpDataSent`` (tcp_id, data), ``PayloadsTaken`` (payloads), and
``LotsDrawn`` for what belongs to no other line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final, cast

from iroh_proto.errors import DecodeError
from iroh_proto.trace.values import Json

FORMAT: Final = "iroh-timeline/1"

MALFORMED: Final = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RecursionError,
)
"""What comes of reading lines that nobody has written; of giving them to machines, too, which trust
their hosts."""


def read_lines(lines: Iterable[str]) -> tuple[Json, list[tuple[int, Json]]]:
    """Return the first line, and the others with their numbers, the first being 1.

    :raises DecodeError: if that is no time line. What its lines say beyond time, place and kind is
        not looked at.
    """
    try:
        parsed = [(n, json.loads(line)) for n, line in enumerate(lines, start=1) if line.strip()]
        (_, head), *entries = parsed
        if head["format"] != FORMAT:
            raise DecodeError(f"not {FORMAT}: {head['format']}")
        if not all(isinstance(name, str) for name in [*head["lifelines"]]):
            raise DecodeError("a lifeline is a name")
        for number, entry in entries:
            entry["time"] = float(entry["time"])
            if not math.isfinite(entry["time"]):
                raise DecodeError(f"line {number}: nothing happens at {entry['time']}")
            if not isinstance(entry["at"], str) or not isinstance(entry["kind"], str):
                raise DecodeError(f"line {number} has no place or no kind")
    except DecodeError:
        raise
    except MALFORMED as error:
        raise DecodeError(f"not a time line: {error!r}") from None
    return head, entries


class LineWriter:
    """Gives each line to ``write`` once nothing can be added to it any more."""

    def __init__(self, write: Callable[[Json], None]) -> None:
        self._write = write
        self._last: Json | None = None
        self._is_stopped = False
        self.latest = 0.0
        """The time of the last line, in seconds."""

    def add(self, time: float, at: str, kind: str, fields: Json) -> Json:
        """Add a line. Until the next one it may be changed."""
        self.finish()
        self.latest = time
        self._last = {"time": time, "at": at, "kind": kind, **fields}
        return self._last

    def note_drawn(self, time: float, at: str, draws: Sequence[object]) -> None:
        """Note what a program's machine drew: in the last line, if that is the program's."""
        last = self._last
        if last is None or last["at"] != at:
            last = self.add(time, at, "LotsDrawn", {})
        last["drawn"] = [*cast("list[object]", last.get("drawn", [])), *draws]

    def finish(self) -> None:
        """Write the last line."""
        last, self._last = self._last, None
        if last is not None and not self._is_stopped:
            self._write(last)

    def stop(self) -> None:
        """Write no more."""
        self.finish()
        self._is_stopped = True
