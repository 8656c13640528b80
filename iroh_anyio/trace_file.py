"""The time line of an endpoint, in a file."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from functools import partial
from typing import IO, Final

import anyio

from iroh_anyio.quic.events import ConnectionClosed, ConnectionEstablished, EndpointEvent
from iroh_proto.derp.pool_events import (
    DerpPeerGone,
    DerpServerConnected,
    DerpServerLost,
    DerpServerTroubled,
    DerpServerUnreachable,
    HomeDerpChanged,
)
from iroh_proto.key import SecretKey
from iroh_proto.magicsock import Magicsock
from iroh_proto.paths.finder import PathFinder
from iroh_proto.paths.own_addresses import OwnAddresses
from iroh_proto.trace.node_tape import NodeTape
from iroh_proto.trace.values import Json

logger = logging.getLogger("iroh_anyio.trace")

PRIVATE_MODE: Final = 0o600
"""Of new files. Whoever reads TLS secrets reads the traffic, and a time line says who talked to
whom, and from where: its owner may give it to others."""

TRACE_LIMIT: Final = 256 * 1024 * 1024
"""Bytes after which no more is written: a week of an idle peer, or some 20 GB transferred."""

FLUSH_INTERVAL: Final = 1.0
"""Seconds at most that a line waits in this process: what is lost if it is killed."""

LINES_FLUSHED_AT_ONCE: Final = 16
"""Lines at the beginning, which are written as they come: whoever looks sees that it works, and one
that dies early has told what it began with."""

TOLD_EVENTS: Final = frozenset(
    {
        ConnectionClosed,
        ConnectionEstablished,
        DerpPeerGone,
        DerpServerConnected,
        DerpServerLost,
        DerpServerTroubled,
        DerpServerUnreachable,
        HomeDerpChanged,
    }
)
"""What is written of the endpoint's events: none that carries data."""


class TraceFile:
    """One file, written anew.

    What cannot be written is a warning in the log and the end of the time line, since nobody's
    connections are to break because of it.

    :raises OSError: if the file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        self._file = open_private(self._path, os.O_TRUNC)
        self._size = 0
        self._count = 0
        self._is_flushed = True
        self._has_ended = False
        self._tape: NodeTape | None = None

    def begin(self, secret_key: SecretKey, *, now: float) -> Callable[..., Magicsock]:
        """Begin the time line of a node, and return what makes its Magicsock."""
        self._tape = tape = NodeTape(secret_key, self._write, now=now)
        return partial(
            Magicsock,
            make_finder=partial(tape.make, PathFinder, "paths"),
            make_own_addresses=partial(tape.make, OwnAddresses, "addresses"),
        )

    def observer(
        self, on_event: Callable[[EndpointEvent], None] | None
    ) -> Callable[[EndpointEvent], None]:
        """Return what to call with each event of the endpoint: it tells ``on_event``, too."""

        def observe(event: EndpointEvent) -> None:
            if self._tape is not None and type(event) in TOLD_EVENTS:
                self._tape.note(event)
            if on_event is not None:
                on_event(event)

        return observe

    async def keep_flushed(self) -> None:
        """Flush every :data:`FLUSH_INTERVAL` seconds until cancelled, or nothing can be written."""
        while not self._has_ended:
            await anyio.sleep(FLUSH_INTERVAL)
            if self._tape is not None:
                self._tape.finish_line()
            self._flush()

    def close(self) -> None:
        """Write what is left, and close the file. Idempotent."""
        if self._tape is not None:
            self._tape.stop()
            self._tape = None
        try:
            self._file.close()
        except OSError as error:
            self._give_up(error.strerror)

    def _write(self, line: Json) -> None:
        if self._has_ended:
            return
        text = json.dumps(line) + "\n"
        if self._size + len(text) > TRACE_LIMIT:
            self._give_up(f"it has {self._size} bytes, which is enough")
            return
        self._size += len(text)
        self._count += 1
        self._is_flushed = False
        try:
            self._file.write(text)
        except OSError as error:
            self._give_up(error.strerror)
        if self._count <= LINES_FLUSHED_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        if self._is_flushed or self._has_ended:
            return
        self._is_flushed = True
        try:
            self._file.flush()
        except OSError as error:
            self._give_up(error.strerror)

    def _give_up(self, why: str | None) -> None:
        if not self._has_ended:
            logger.warning("no more is written to %s: %s", self._path, why)
        self._has_ended = True
        if self._tape is not None:
            self._tape.stop()


def open_private(path: str | os.PathLike[str], flag: int) -> IO[str]:
    """Open a text file to write, by :data:`os.O_APPEND` or :data:`os.O_TRUNC`.

    :raises OSError: if it cannot be opened.
    """
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | flag, PRIVATE_MODE), "w", encoding="ascii")
