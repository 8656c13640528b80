"""One waiting time for many things at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import anyio

KeyT = TypeVar("KeyT")


class Patience(Generic[KeyT]):
    """Waits for many things, for each as long, in one task.

    :param seconds: how long.
    :param on_end: called with each thing that was not done with in time.
    """

    def __init__(self, seconds: float, on_end: Callable[[KeyT], None]) -> None:
        self.seconds = seconds
        self._on_end = on_end
        # In the order of the deadlines, since all have the same time.
        self._deadlines: dict[KeyT, float] = {}
        self._changed = anyio.Event()

    def begin(self, key: KeyT) -> None:
        """Wait for something, from now on."""
        self._deadlines.pop(key, None)
        self._deadlines[key] = anyio.current_time() + self.seconds
        self._changed.set()

    def end(self, key: KeyT) -> None:
        """Be done with something, if it is waited for."""
        self._deadlines.pop(key, None)

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            if not self._deadlines:
                self._changed = anyio.Event()
                await self._changed.wait()
            deadline = next(iter(self._deadlines.values()), None)
            if deadline is None:
                continue
            await anyio.sleep_until(deadline)
            now = max(anyio.current_time(), deadline)  # a timer may fire a little early
            for key in [key for key, when in self._deadlines.items() if when <= now]:
                if self._deadlines.pop(key, None) is not None:
                    self._on_end(key)
