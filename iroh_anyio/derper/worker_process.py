"""A worker as the process sees it that started it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Self

import anyio
from anyio.abc import Process

from iroh_anyio.derper.control import ControlChannel, Message
from iroh_anyio.derper.metrics import DerperCounts

END_TIMEOUT = 3.0
"""Seconds that a worker has to end once its control channel is closed; then it is killed."""


SILENCE_LIMIT = 30.0
"""Seconds without a word after which a worker that serves hangs; it counts aloud every second."""

LAST_WORD_TIME = 1.0
"""Seconds in which to read what it said, if it was this process that did not come to listen."""


class WorkerProcess:
    """One process, from its start to its end.

    :ivar channel: the way to it.
    :ivar counts: what it said last that it has counted.
    :ivar is_started: whether it was given its settings.
    :ivar is_serving: whether it serves clients.
    :ivar error: why it could not, if it said so.
    """

    def __init__(self, process: Process, channel: ControlChannel) -> None:
        self._process = process
        self.channel = channel
        self.counts: DerperCounts | None = None
        self.is_started = False
        self.is_serving = False
        self.error: str | None = None

    @classmethod
    async def start(cls) -> Self:
        """Start a worker.

        :raises OSError: if the system does not let it.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        descriptor = theirs.fileno()
        command = [sys.executable, "-P", "-m", "iroh_anyio.derper.worker", str(descriptor)]
        try:
            process = await anyio.open_process(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=None,
                # With -P nothing is imported from the working directory; what is imported has to
                # come from where it came from here.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # signals of the terminal are for this process
                pass_fds=[descriptor],
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return cls(process, ControlChannel(ours))

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def outcome(self) -> str:
        """How it ended, for people."""
        if self.error is not None:
            return self.error
        code = self._process.returncode
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"

    async def run(self, heed: Callable[[Message, Sequence[int]], None]) -> None:
        """Give its messages to ``heed`` until it has nothing more to say, and let it end.

        One that hangs is killed.
        """
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.channel.run_writer)
            while (received := await self._hear()) is not None:
                heed(*received)
            self.channel.close()
        with anyio.move_on_after(END_TIMEOUT):
            await self._process.wait()

    async def _hear(self) -> tuple[Message, Sequence[int]] | None:
        if not self.is_serving:  # how long it takes to begin depends on the machine
            return await self.channel.receive()
        for seconds in (SILENCE_LIMIT, LAST_WORD_TIME):
            with anyio.move_on_after(seconds):
                return await self.channel.receive()
        self.error = f"no sign of life for {SILENCE_LIMIT:g} s"
        self._process.kill()
        return None

    async def end(self) -> None:
        """End it at once, if it has not ended. Not cancellable."""
        self.channel.close()
        with anyio.CancelScope(shield=True):
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()
