"""Virtual time: what happens next happens now."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import TypeAlias

from iroh_proto.errors import LocalProtocolError

Action: TypeAlias = Callable[[], None]


class LimitReached(AssertionError):
    """What :meth:`VirtualClock.run_until` waited for did not happen in time."""


class Appointment:
    """Something to be done at a virtual time. It can be cancelled."""

    __slots__ = ("action", "when")

    def __init__(self, when: float, action: Action) -> None:
        self.when = when
        self.action: Action | None = action

    def cancel(self) -> None:
        """Let it not happen. One that has happened is left alone."""
        self.action = None


class VirtualClock:
    """Seconds that pass from one appointment to the next, at the speed of the computer.

    Appointments for the same time are kept in the order they were made, so that runs repeat.
    Making one and keeping one cost O(log n).
    """

    def __init__(self, start: float = 0.0) -> None:
        self.now = start
        self._heap: list[tuple[float, int, Appointment]] = []
        self._serial = 0

    def call_at(self, when: float, action: Action) -> Appointment:
        """Have ``action`` called at a time; one that lies in the past counts as now.

        :raises LocalProtocolError: if the time is not finite.
        """
        if not math.isfinite(when):
            raise LocalProtocolError(f"nothing happens at {when}")
        appointment = Appointment(max(when, self.now), action)
        self._serial += 1
        heapq.heappush(self._heap, (appointment.when, self._serial, appointment))
        return appointment

    def call_later(self, delay: float, action: Action) -> Appointment:
        """Have ``action`` called some seconds from now."""
        return self.call_at(self.now + delay, action)

    @property
    def next_time(self) -> float | None:
        """When the next appointment is, or ``None`` if there is none."""
        self._drop_cancelled()
        return self._heap[0][0] if self._heap else None

    def step(self) -> bool:
        """Keep the next appointment, and say whether there was one."""
        self._drop_cancelled()
        if not self._heap:
            return False
        when, _, appointment = heapq.heappop(self._heap)
        self.now = when
        action, appointment.action = appointment.action, None
        assert action is not None
        action()
        return True

    def run_for(self, seconds: float) -> None:
        """Keep all appointments of the next ``seconds``, and be at their end."""
        end, heap = self.now + seconds, self._heap
        while heap and heap[0][0] <= end:
            when, _, appointment = heapq.heappop(heap)
            action, appointment.action = appointment.action, None
            if action is not None:  # else it was cancelled
                self.now = when
                action()
        self.now = end

    def run_until(self, condition: Callable[[], bool], *, limit: float) -> float:
        """Keep appointments until a condition holds, and return the time at which it did.

        :param limit: seconds from now to wait at most.
        :raises LimitReached: if it does not hold by then.
        """
        start, end = self.now, self.now + limit
        while not condition():
            when = self.next_time
            if when is None or when > end:
                self.now = end
                what = _described(condition)
                raise LimitReached(f"{what} did not hold within {limit:g} s from {start:g} s on")
            self.step()
        return self.now

    def _drop_cancelled(self) -> None:
        heap = self._heap
        while heap and heap[0][2].action is None:
            heapq.heappop(heap)


def _described(condition: Callable[[], bool]) -> str:
    """Return the name of a function and where it is written, for most are called ``<lambda>``."""
    name, code = (
        getattr(condition, "__name__", repr(condition)),
        getattr(condition, "__code__", None),
    )
    return name if code is None else f"{name} ({code.co_filename}:{code.co_firstlineno})"
