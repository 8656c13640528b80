"""Things with tasks of their own, as ``async with`` blocks that leave the caller's errors alone."""

from __future__ import annotations

import abc
import logging
from contextlib import suppress
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import TaskGroup, TaskStatus

logger = logging.getLogger("iroh_anyio.service")

STOP_TIMEOUT = 3.0
"""Seconds that closing may take; it cannot be cancelled, so it is bounded."""


class Service(abc.ABC):
    """Base of objects that are bound first, run while entered, and closed on leaving.

    An exception of the caller's block leaves it as itself, not inside an exception group. A defect
    of the service does not cancel the block: everything in it that uses the service fails, and if
    the block ends well all the same, the defect is raised then.
    """

    def __init__(self) -> None:
        self._task_group: TaskGroup | None = None
        self._running: anyio.CancelScope | None = None
        self._ended = anyio.Event()
        self._entered = False
        self._stopping = False
        self._failure: Exception | None = None

    async def __aenter__(self) -> Self:
        if self._entered or self._stopping:
            raise RuntimeError(f"a {type(self).__name__} is entered once, and not after close()")
        self._entered = True
        task_group = anyio.create_task_group()
        await task_group.__aenter__()
        self._task_group = task_group
        try:
            await task_group.start(self._supervise)
        except BaseException as error:
            if self._failure is not None:
                await self.__aexit__(None, None, None)
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        if self._running is not None:
            # From now on, cancelling what is around it must not keep it from taking leave of its
            # peers: that reaches the block, whose end closes it.
            self._running.shield = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._task_group is not None
        try:
            await self.close()
        except BaseException as error:
            # asyncio's own cancellation or Ctrl-C: no scope shields from those.
            self._task_group.cancel_scope.cancel()
            with suppress(BaseException):
                await self._task_group.__aexit__(type(error), error, error.__traceback__)
            raise
        self._task_group.cancel_scope.cancel()
        cancelled = anyio.get_cancelled_exc_class()
        try:
            if isinstance(exc, cancelled):
                await self._task_group.__aexit__(exc_type, exc, traceback)
            else:
                await self._task_group.__aexit__(None, None, None)
        except cancelled:
            if exc is None or isinstance(exc, cancelled):
                raise
        if exc is None and self._failure is not None:
            raise self._failure

    async def close(self) -> None:
        """Stop and let go of the sockets. Bounded, not cancellable, idempotent."""
        if self._stopping:
            if self._running is not None:
                await self._ended.wait()
            return
        self._stopping = True
        if self._running is None:
            self._release()
            return
        with anyio.CancelScope(shield=True):
            try:
                with anyio.move_on_after(STOP_TIMEOUT):
                    await self._stop()
            finally:
                self._running.cancel()
            await self._ended.wait()

    @abc.abstractmethod
    async def _run(self, *, task_status: TaskStatus[None]) -> None:
        """Do the work until cancelled, then release everything."""

    @abc.abstractmethod
    async def _stop(self) -> None:
        """Take leave of the peers, while the work still goes on."""

    @abc.abstractmethod
    def _release(self) -> None:
        """Close the sockets of a service that was never entered."""

    def _failed(self, failure: Exception) -> None:  # noqa: B027 - most have nobody waiting
        """Let those who wait for the service know that it has stopped with a defect."""

    async def _supervise(self, *, task_status: TaskStatus[None]) -> None:
        try:
            with anyio.CancelScope() as self._running:
                await self._run(task_status=task_status)
        except Exception as failure:
            logger.exception("%s stopped by a defect", type(self).__name__)
            self._failure = failure
            self._failed(failure)
        finally:
            self._ended.set()
