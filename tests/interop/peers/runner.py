"""What every peer script shares: JSON lines on stdin and stdout, and a quick way to copy bytes.

Runs inside the peer's own process, beside the released ``iroh`` package; standard library only.

Each line of stdin is ``{"id": 1, "command": "echo", ...}``; it is answered on stdout by
``{"id": 1, "result": {...}}`` or ``{"id": 1, "error": "..."}``, in any order. Lines with ``event``
report what happened by itself. End of stdin ends the process at once, so that a peer never
outlives the test that started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import json
import os
import sys
import time
import traceback
from typing import Any, NoReturn, Protocol, TypeAlias

JsonObject: TypeAlias = dict[str, Any]

LINE_LIMIT = 1 << 20
"""Bytes in one command: a few hundred addresses would fit."""

CLOSE_LIMIT = 1.0
"""Seconds to take leave of other nodes before the process ends."""

CHUNK_SIZE = 1 << 16
"""Bytes handed to the Rust library at once."""


class Lines:
    """The two pipes to the test."""

    def __init__(self) -> None:
        # The Rust libraries log to descriptor 1: give that to stderr, keep the pipe for answers.
        self._answers = os.dup(1)
        os.dup2(2, 1)

    def write(self, message: JsonObject) -> None:
        """Send one line."""
        os.write(self._answers, json.dumps(message).encode() + b"\n")

    def event(self, event: str, **details: object) -> None:
        """Report something that happened by itself."""
        self.write({"event": event, **details})


def log_level() -> str:
    """Return how much the Rust library shall log to stderr: ``IROH_PEER_LOG``, else warnings."""
    return os.environ.get("IROH_PEER_LOG", "WARN").upper()


class Node(Protocol):
    """What a peer script implements; its other methods are the commands."""

    async def close(self) -> None:
        """Tell other nodes that this one leaves."""


async def serve(lines: Lines, node: Node) -> NoReturn:
    """Call the methods of ``node`` that commands name, each in a task of its own.

    When stdin ends the process ends, without Python's clean-up, during which the Rust libraries
    may hang or abort.
    """
    reader = asyncio.StreamReader(limit=LINE_LIMIT)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    running = set()
    while line := await reader.readline():
        task = loop.create_task(_answer(lines, node, json.loads(line)))
        running.add(task)
        task.add_done_callback(running.discard)
    with contextlib.suppress(Exception):
        await asyncio.wait_for(node.close(), CLOSE_LIMIT)
    sys.stderr.flush()
    os._exit(0)


async def _answer(lines: Lines, node: object, request: JsonObject) -> None:
    number = request.pop("id")
    method = getattr(node, request.pop("command"))
    try:
        result = await method(**request)
    except Exception as error:  # noqa: BLE001 - whatever it is, the test wants to read it
        traceback.print_exc()
        lines.write({"id": number, "error": describe(error)})
    else:
        lines.write({"id": number, "result": result})


def describe(error: BaseException) -> str:
    """Return the text of an exception; those of the Rust library hide theirs in a method."""
    message = getattr(error, "message", None)
    if callable(message):
        with contextlib.suppress(Exception):
            return f"{type(error).__name__}: {message()}"
    return repr(error)


def quicken(builder_class: Any) -> None:
    """Replace the binding's way of copying bytes into Rust memory.

    The generated ``write`` copies one byte at a time in a Python loop, 5 MB/s at best, and a test
    of 10 MB would measure that loop. This copies with ``memmove``.
    """

    def write(self: Any, value: bytes) -> None:
        with self._reserve(len(value)):
            start = ctypes.addressof(self.rbuf.data.contents) + self.rbuf.len
            ctypes.memmove(start, bytes(value), len(value))

    builder_class.write = write


async def echo_back(stream: Any) -> int:
    """Send back what a bidirectional stream brings, to its end; return how many bytes."""
    total = 0
    while data := await stream.recv().read(CHUNK_SIZE):
        await stream.send().write_all(data)
        total += len(data)
    await stream.send().finish()
    return total


async def echo_out(stream: Any, size: int) -> JsonObject:
    """Send ``size`` random bytes on a bidirectional stream and compare what comes back."""
    block = os.urandom(CHUNK_SIZE)
    sent = hashlib.sha256()
    received = hashlib.sha256()
    count = 0
    started = time.monotonic()

    async def write() -> None:
        for offset in range(0, size, CHUNK_SIZE):
            data = block[: min(CHUNK_SIZE, size - offset)]
            sent.update(data)
            await stream.send().write_all(data)
        await stream.send().finish()

    writing = asyncio.ensure_future(write())
    while data := await stream.recv().read(CHUNK_SIZE):
        received.update(data)
        count += len(data)
    await writing
    return {
        "size": count,
        "equal": count == size and sent.digest() == received.digest(),
        "seconds": time.monotonic() - started,
    }
