"""How an endpoint fares with DERP servers: told in its log, and kept for error messages."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from iroh_proto.address import DerpUrl
from iroh_proto.derp.pool_events import (
    DerpServerConnected,
    DerpServerLost,
    DerpServerTroubled,
    DerpServerUnreachable,
)

logger = logging.getLogger("iroh_anyio.endpoint")

PROBLEMS_LIMIT = 64
"""Servers whose problem is kept; addresses of peers may name any number of them."""


class DerpWatch:
    """Takes the news of DERP servers. ``handlers`` are the event types it wants.

    ``problems`` holds, by URL, why a server could not be reached when it was last tried, or what it
    said before it closed the connection.
    """

    def __init__(self) -> None:
        self.problems: dict[DerpUrl, str] = {}
        self._said: dict[DerpUrl, str] = {}
        self._warned: dict[tuple[DerpUrl, str], None] = {}
        self.handlers: dict[type, Callable[[Any], None]] = {
            DerpServerConnected: self._on_connected,
            DerpServerLost: self._on_lost,
            DerpServerTroubled: self._on_troubled,
            DerpServerUnreachable: self._on_unreachable,
        }

    def problem_with(self, url: DerpUrl | None) -> str:
        """Say in words that a server cannot be reached; empty if nothing is known against it."""
        problem = None if url is None else self.problems.get(url)
        return f"its DERP server {url} cannot be reached: {problem}" if problem else ""

    def _on_connected(self, event: DerpServerConnected) -> None:
        self.problems.pop(event.url, None)
        self._said.pop(event.url, None)
        logger.info("DERP server %s: connected, dialect %s", event.url, event.dialect)

    def _on_lost(self, event: DerpServerLost) -> None:
        why = "no longer needed" if event.error is None else f"lost, {event.error}"
        logger.info("DERP server %s: %s", event.url, why)
        said = self._said.pop(event.url, None)
        if event.error is not None and said is not None:
            self._note(event.url, f"it closed the connection and said: {said}")

    def _on_troubled(self, event: DerpServerTroubled) -> None:
        if event.problem:
            # Who is not let in tries again and again, and is told the same each time.
            level = logging.DEBUG if (event.url, event.problem) in self._warned else logging.WARNING
            logger.log(level, "DERP server %s says: %s", event.url, event.problem)
            self._warned[event.url, event.problem] = None
            if len(self._warned) > PROBLEMS_LIMIT:
                del self._warned[next(iter(self._warned))]
            if len(self._said) < PROBLEMS_LIMIT:
                self._said[event.url] = event.problem
        else:
            self._said.pop(event.url, None)
            self._warned = {warned: None for warned in self._warned if warned[0] != event.url}

    def _on_unreachable(self, event: DerpServerUnreachable) -> None:
        # It is tried for as long as the endpoint lives; once is enough to be told.
        level = logging.DEBUG if event.url in self.problems else logging.INFO
        logger.log(level, "DERP server %s: cannot be reached, %s", event.url, event.error)
        self._note(event.url, event.error)

    def _note(self, url: DerpUrl, problem: str) -> None:
        if url not in self.problems and len(self.problems) >= PROBLEMS_LIMIT:
            del self.problems[next(iter(self.problems))]
        self.problems[url] = problem
