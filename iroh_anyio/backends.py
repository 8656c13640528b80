"""What asyncio and trio are asked directly: for speed, or because anyio has no word for it.

:func:`anyio.wait_readable` ends at each event. To call it again takes asyncio's event loop two
turns and two system calls, which is most of what a relay adds to the latency of a packet. So where
descriptors are read again and again, it is the backend that calls.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress


async def call_when_readable(descriptor: int, serve: Callable[[], None]) -> None:
    """Call ``serve`` whenever a descriptor can be read from, until cancelled.

    It is called again, after others had their turn, for what it leaves unread. On asyncio no task
    is the current one then: it can start some and ask for the time, but enter no cancel scope. What
    it raises ends the waiting and is raised here. Close the descriptor only after that.
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


def soon_caller() -> Callable[[Callable[[], None]], None]:
    """Return what has a function called in another turn of the event loop that runs now.

    It may be called at any point and in any thread, as finalizers are. Once the loop has ended it
    does nothing.
    """
    if not _is_on_trio():
        loop, context = asyncio.get_running_loop(), _asyncio_context()

        def call_soon(function: Callable[[], None]) -> None:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(function, context=context)

        return call_soon
    run_soon: Callable[[Callable[[], None]], None]
    run_soon = sys.modules["trio"].lowlevel.current_trio_token().run_sync_soon

    def call_soon_on_trio(function: Callable[[], None]) -> None:
        with suppress(RuntimeError):
            run_soon(function)

    return call_soon_on_trio


async def _be_called_back(descriptor: int, serve: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    failure: BaseException | None = None
    failed: asyncio.Future[None] = loop.create_future()

    def take_turn() -> None:
        nonlocal failure
        try:
            serve()
        except BaseException as error:  # noqa: BLE001  # raised by the task that waits
            failure = error
            loop.remove_reader(descriptor)
            if not failed.done():
                failed.set_result(None)

    loop.add_reader(descriptor, _asyncio_context().run, take_turn)
    try:
        await failed
    finally:
        loop.remove_reader(descriptor)
        if failure is not None:
            # Even if cancelled, possibly by what failed: a defect is not to go unnoticed.
            raise failure


def _asyncio_context() -> contextvars.Context:
    """Return a context in which anyio knows its backend outside of a task, too.

    Where sniffio is installed anyio asks it, and sniffio looks for a task unless it was told.
    """
    context = contextvars.copy_context()
    sniffio = sys.modules.get("sniffio")
    if sniffio is not None:
        context.run(sniffio.current_async_library_cvar.set, "asyncio")
    return context


def _is_on_trio() -> bool:
    trio = sys.modules.get("trio")
    return trio is not None and bool(trio.lowlevel.in_trio_task())
