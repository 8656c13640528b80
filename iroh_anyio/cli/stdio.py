"""Standard input and output, waited for without a thread wherever the system can wait for them.

A thread that reads or writes cannot be cancelled: Ctrl-C would hang until somebody reads on.
"""

from __future__ import annotations

import os
import select
import stat
import sys

import anyio
import anyio.to_thread

CHUNK_SIZE = 64 * 1024
"""Bytes read at a time: what a pipe holds on Linux."""

SAFE_WRITE = select.PIPE_BUF
"""Bytes that never block where poll says that there is room (pipe(7))."""


class StandardInput:
    """What is read from the program's standard input; nothing if that was closed by its parent."""

    def __init__(self) -> None:
        self._fd = None if sys.stdin is None else sys.stdin.fileno()
        self._waits = self._fd is not None and _can_wait_for(self._fd)

    async def read(self) -> bytes:
        """Return some bytes, or none at the end.

        :raises OSError: if it cannot be read.
        """
        while self._fd is not None:
            if self._waits:
                await anyio.wait_readable(self._fd)
            try:
                return os.read(self._fd, CHUNK_SIZE)
            except BlockingIOError:  # somebody else who has it was faster
                continue
            except OSError as error:
                raise OSError(error.errno, f"cannot read stdin: {error.strerror}") from error
        return b""


class StandardOutput:
    """What goes to the program's standard output."""

    def __init__(self) -> None:
        self._fd = None if sys.stdout is None else sys.stdout.fileno()
        self._waits = self._fd is not None and _can_wait_for(self._fd)
        self._poll = select.poll()
        if self._fd is not None:
            self._poll.register(self._fd, select.POLLOUT)

    async def write(self, data: bytes) -> None:
        """Write all of it, waiting for room.

        :raises OSError: if it cannot be written, because nobody reads it for example.
        """
        if self._fd is None:
            raise OSError("cannot write stdout: it is closed")
        try:
            if self._waits:
                await self._write_where_room_is(self._fd, memoryview(data))
            else:
                await anyio.to_thread.run_sync(_write_all, self._fd, memoryview(data))
        except OSError as error:
            raise OSError(error.errno, f"cannot write stdout: {error.strerror}") from error

    async def _write_where_room_is(self, fd: int, data: memoryview) -> None:
        while data:
            if not self._poll.poll(0):
                await anyio.wait_writable(fd)
            try:
                written = os.write(fd, data[:SAFE_WRITE])
            except BlockingIOError:
                continue
            data = data[written:]


def _write_all(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _can_wait_for(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd)
