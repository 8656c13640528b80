"""How the processes of one server talk: messages with open files attached, over a Unix socket.

The sockets are made in pairs before a process is started, and have no name. So nobody else can take
part, and what is said may be secret. What one process has to say at a time is small; the settings,
which may be large, go as a file in memory.
"""

from __future__ import annotations

import os
import pickle
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import anyio

from iroh_anyio.derper.config import DerperConfig
from iroh_anyio.derper.metrics import DerperCounts
from iroh_proto.derp.dialects import ClientKey
from iroh_proto.derp.mesh_key import MeshKey
from iroh_proto.key import SecretKey

MESSAGE_SIZE_LIMIT = 65_536
"""Bytes of one message."""

FILES_LIMIT = 16
"""Open files that come with one message."""

BACKLOG_LIMIT = 262_144
"""Messages that wait for a process to read them: four for each client that it may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a worker has to know; comes with its settings and the sockets that it listens on.

    :ivar worker: its number, from 0 on.
    :ivar workers: how many there are.
    :ivar mesh_secret_key: the worker's, which the other workers see.
    :ivar mesh_key: what the workers know one another by.
    :ivar log_level: of messages on stderr.
    """

    worker: int
    workers: int
    mesh_secret_key: SecretKey
    mesh_key: MeshKey = field(repr=False)
    log_level: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A worker has what it needs to begin, and waits for its settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """A worker serves clients."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A worker cannot begin."""

    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reload:
    """The settings that come with it hold from now on, as far as they can change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """A worker is to let its clients leave, and end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dial:
    """A worker wants a connection to another one."""

    tcp_id: int
    worker: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialled:
    """The end of such a connection, for who wanted it."""

    tcp_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Accept:
    """The other end of such a connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A client with this key has connected to a worker."""

    key: ClientKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Departed:
    """A client with this key has disconnected from a worker."""

    key: ClientKey


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside:
    """A newer client with this key is at another worker."""

    key: ClientKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Reinstate:
    """The clients with this key of no other worker are newer."""

    key: ClientKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What a worker has counted so far."""

    counts: DerperCounts


FromWorker: TypeAlias = Ready | Serving | Failed | Dial | Arrived | Departed | Counted
ToWorker: TypeAlias = Start | Reload | Drain | Dialled | Accept | SetAside | Reinstate
Message: TypeAlias = FromWorker | ToWorker


class ControlChannel:
    """One end. One task may be in :meth:`receive`, another one in :meth:`run_writer`.

    :param control: a ``SOCK_SEQPACKET`` socket, the channel's own from now on.
    """

    def __init__(self, control: socket.socket) -> None:
        control.setblocking(False)
        self._socket = control
        self._waiting: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._has_waiting = anyio.Event()
        self._is_closed = False

    def send(self, message: Message, files: Sequence[int] = ()) -> None:
        """Say something, in order. Without a reader at the other end it is lost.

        :param files: descriptors that go with it. They stay the caller's.
        """
        if self._is_closed:
            return
        data = pickle.dumps(message)
        if not self._waiting and self._send(data, files):
            return
        if len(self._waiting) >= BACKLOG_LIMIT:
            self.close()  # the other process hangs: it is told by the end of the channel
            return
        self._waiting.append((data, tuple(os.dup(file) for file in files)))
        self._has_waiting.set()

    async def receive(self) -> tuple[Message, list[int]] | None:
        """Return the next message and the descriptors that came with it, the caller's now.

        ``None`` if the other process has ended, or this end is closed.
        """
        while True:
            try:
                await anyio.wait_readable(self._socket)
                data, files, _, _ = socket.recv_fds(self._socket, MESSAGE_SIZE_LIMIT, FILES_LIMIT)
            except (BlockingIOError, InterruptedError):
                continue
            except (OSError, anyio.ClosedResourceError):
                return None
            if not data:
                return None
            # Who wrote it is this program: nobody else has the other end.
            message: Message = pickle.loads(data)
            return message, files

    async def run_writer(self) -> None:
        """Send what could not be sent at once, until closed."""
        while not self._is_closed:
            if not self._waiting:
                self._has_waiting = anyio.Event()
                await self._has_waiting.wait()
                continue
            try:
                await anyio.wait_writable(self._socket)
            except (OSError, anyio.ClosedResourceError):
                return
            while self._waiting and self._send(*self._waiting[0]):
                _, files = self._waiting.popleft()
                _close_all(files)

    def close(self) -> None:
        """Close this end; the other process sees it. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._has_waiting.set()
        for _, files in self._waiting:
            _close_all(files)
        self._waiting.clear()
        anyio.notify_closing(self._socket)
        self._socket.close()

    def _send(self, data: bytes, files: Sequence[int]) -> bool:
        """Hand a message to the kernel; say whether it is done with."""
        try:
            socket.send_fds(self._socket, [data], files)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True  # the other process is gone, which the reader will see
        return True


@contextmanager
def settings_file(config: DerperConfig) -> Iterator[int]:
    """Give a file in memory with settings, for :func:`read_settings` to read."""
    file = os.memfd_create("derper-settings")
    try:
        with os.fdopen(os.dup(file), "wb") as writer:
            pickle.dump(config, writer)
        yield file
    finally:
        os.close(file)


def read_settings(file: int) -> DerperConfig:
    """Read settings, and close their file. Others may read it at the same time."""
    try:
        data = os.pread(file, os.fstat(file).st_size, 0)
    finally:
        os.close(file)
    config: DerperConfig = pickle.loads(data)
    return config


def _close_all(files: Sequence[int]) -> None:
    for file in files:
        os.close(file)
