"""What a lone packet waits for: to be told that there is something to read, and of the time.

:func:`anyio.wait_readable` ends at each event. To call it again takes asyncio's event loop two
turns and two system calls, which is most of what a relay adds to the latency of a packet. So where
descriptors are read again and again, the backend is asked directly.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable


async def call_when_readable(descriptor: int, serve: Callable[[], None]) -> None:
    """Call ``serve`` whenever a descriptor can be read from, until cancelled.

    It is called again, after others had their turn, for what it leaves unread. What it raises ends
    the waiting and is raised here. Close the descriptor only after that.
    """
    if not _is_on_trio():
        await _be_called_back(descriptor, serve)
        return
    wait_readable: Callable[[int], Awaitable[None]] = sys.modules["trio"].lowlevel.wait_readable
    while True:
        await wait_readable(descriptor)
        serve()


def backend_clock() -> Callable[[], float]:
    """Return what :func:`anyio.current_time` calls after looking up the backend."""
    if not _is_on_trio():
        return asyncio.get_running_loop().time
    clock: Callable[[], float] = sys.modules["trio"].current_time
    return clock


async def _be_called_back(descriptor: int, serve: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    failure: asyncio.Future[None] = loop.create_future()

    def take_turn() -> None:
        try:
            serve()
        except BaseException as error:  # noqa: BLE001  # raised by the task that waits
            loop.remove_reader(descriptor)
            if not failure.done():
                failure.set_exception(error)

    loop.add_reader(descriptor, take_turn)
    try:
        await failure
    finally:
        loop.remove_reader(descriptor)


def _is_on_trio() -> bool:
    trio = sys.modules.get("trio")
    return trio is not None and bool(trio.lowlevel.in_trio_task())
