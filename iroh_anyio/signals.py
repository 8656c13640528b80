"""A wake-up for whoever waits at the moment."""

from __future__ import annotations

import anyio


class Signal:
    """Wakes all who wait now; costs next to nothing when nobody does.

    Whoever is woken has to look again for what it waits for.
    """

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    def set(self) -> None:
        """Wake all waiters."""
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self) -> None:
        """Wait for the next :meth:`set`."""
        if self._event is None:
            self._event = anyio.Event()
        await self._event.wait()
