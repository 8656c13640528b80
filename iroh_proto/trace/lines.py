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

from iroh_proto.errors import DecodeError, LocalProtocolError
from iroh_proto.trace.values import Json, quoted

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

    :raises DecodeError: if that is no time line; it says which line is wrong. What the lines say
        beyond time, place and kind, and which packets they are about, is not looked at.
    """
    written = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not written:
        raise DecodeError("the file is empty")
    last = written[-1][0]
    try:
        head = _object(*written[0], last)
        _check_head(written[0][0], head)
    except DecodeError as error:
        raise DecodeError(f"no time line: {error}") from None
    entries = [(number, _object(number, line, last)) for number, line in written[1:]]
    for number, entry in entries:
        _check_entry(number, entry)
    return head, entries


def check_lifelines(head: Json, entries: Iterable[tuple[int, Json]]) -> None:
    """See that the place of every entry is, or is on, a lifeline.

    :raises DecodeError: if not; it says of which line.
    """
    names = cast("list[str]", head["lifelines"])
    for number, entry in entries:
        name = host_of(entry)
        if name not in names:
            raise DecodeError(f"line {number}: there is no lifeline {quoted(name)}")


def host_of(entry: Json) -> str:
    """Return the lifeline that an entry is on."""
    return str(entry["at"]).partition("/")[0]


def split_cut_line(lines: Sequence[str]) -> tuple[Sequence[str], int | None]:
    """Return the lines without the last one if it is cut short, and the number of that one.

    So ends the file of a program that was killed, or of which there was no room for more.

    :param lines: with line ends. The first is never taken for cut: nothing precedes it.
    """
    if len(lines) < 2 or lines[-1].endswith("\n"):
        return lines, None
    try:
        _object(len(lines), lines[-1], len(lines))
    except DecodeError:
        return lines[:-1], len(lines)
    return lines, None


def in_words(error: Exception) -> str:
    """Return what is wrong with a line, given what came of reading it: one of `MALFORMED`."""
    if isinstance(error, DecodeError | LocalProtocolError):
        return str(error)
    if isinstance(error, KeyError) and isinstance(error.args[0], str):
        return f"something in it has no {quoted(error.args[0])}"
    return "it says what cannot be"


def _object(number: int, line: str, last: int) -> Json:
    try:
        value = json.loads(line)
    except RecursionError:
        raise DecodeError(f"line {number} is nested too deeply") from None
    except ValueError:
        is_cut = number == last and line.lstrip().startswith("{")
        raise DecodeError(f"line {number} is {'cut short' if is_cut else 'not JSON'}") from None
    if not isinstance(value, dict):
        raise DecodeError(f"line {number} is no JSON object")
    return value


def _check_head(number: int, head: Json) -> None:
    for name in ("format", "lifelines"):
        if name not in head:
            raise DecodeError(f"line {number} has no {quoted(name)}")
    if head["format"] != FORMAT:
        raise DecodeError(f"line {number} has the format {quoted(head['format'])}, not {FORMAT}")
    names = head["lifelines"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DecodeError(f"line {number}: lifelines are a list of names")


def _check_entry(number: int, entry: Json) -> None:
    """See that an entry has what everybody looks at, and make its time a float."""
    for name in ("time", "at", "kind"):
        if name not in entry:
            raise DecodeError(f"line {number} has no {quoted(name)}")
    for name in ("at", "kind"):
        if not isinstance(entry[name], str):
            raise DecodeError(f"line {number}: {quoted(name)} is no text")
    time = _finite(entry["time"])
    if time is None:
        raise DecodeError(f"line {number}: its time is no number of seconds")
    entry["time"] = time
    if not isinstance(entry.get("packet", 0), int):
        raise DecodeError(f"line {number}: {quoted('packet')} is no number")
    if not _is_carried(entry.get("carried", [])):
        raise DecodeError(f"line {number}: {quoted('carried')} are objects with key and label")


def _finite(time: object) -> float | None:
    """Return a number as a float, ``None`` if that is no time."""
    try:
        seconds = float(time) if isinstance(time, int | float) else math.nan
    except OverflowError:
        return None
    return seconds if math.isfinite(seconds) else None


def _is_carried(carried: object) -> bool:
    return isinstance(carried, list) and all(
        isinstance(item, dict)
        and isinstance(item.get("key"), str)
        and isinstance(item.get("label"), str)
        for item in carried
    )


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
