"""Runs a machine: time from the backend's clock, bytes through ports, events to a callback.

Everything an input causes is carried out where it was given: events are dispatched and bytes handed
to the kernel before :meth:`Driver.flush` returns. Only a kernel that cannot take more makes
anything wait, and then in a task of its own. What arrives on sockets is given in a task of the
driver or, on asyncio, by the event loop (:func:`~iroh_anyio.backends.call_when_readable`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import anyio
from anyio.abc import TaskGroup, TaskStatus

from iroh_anyio.backends import backend_clock, soon_caller
from iroh_anyio.udp import UdpSocket
from iroh_proto.address import UdpAddress
from iroh_proto.machine import DatagramMachine, Machine

logger = logging.getLogger("iroh_anyio.driver")

EventT = TypeVar("EventT")


class Port(Protocol):
    """A way for bytes between a machine and the kernel."""

    def start(self, driver: Driver[Any]) -> None:
        """Start the tasks that wait for the kernel, by ``driver.start_soon``."""

    def flush(self) -> bool:
        """Hand what the machine wants sent to the kernel, without waiting.

        Return whether the machine was given an input, as when a connection broke, so that there
        may be events again.
        """

    def close(self) -> None:
        """Close its sockets."""


class Driver(Generic[EventT]):
    """Runs one machine on its ports.

    :param on_event: called with each event; may give the machine commands, must not raise, and must
        not count on a current task.
    """

    def __init__(
        self, machine: Machine[EventT], ports: Sequence[Port], on_event: Callable[[EventT], None]
    ) -> None:
        self._machine = machine
        self._ports = ports
        self._on_event = on_event
        self._handlers: dict[type, Callable[[Any], None]] = {}
        self._clock = anyio.current_time
        self._call_soon: Callable[[Callable[[], None]], None] = _forget
        self._tasks: TaskGroup | None = None
        self._timer_scope: anyio.CancelScope | None = None
        self._armed = math.inf
        self._latest = -math.inf  # what now() returned last, as to ask the clock costs
        self._flushing = False

    def now(self) -> float:
        """Return the backend's clock in seconds, the one its deadlines are on."""
        self._latest = self._clock()
        return self._latest

    def handle(self, kind: type, handler: Callable[[Any], None]) -> None:
        """Have events of exactly this type go to ``handler`` instead of ``on_event``."""
        self._handlers[kind] = handler

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
        """Start a task that lives no longer than :meth:`run`."""
        if self._tasks is not None:
            self._tasks.start_soon(function, *args)

    def call_soon(self, function: Callable[[], None]) -> None:
        """Have a function called in another turn of the event loop, as long as that runs.

        This may be called at any point and in any thread, as finalizers are.
        """
        self._call_soon(function)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled, then close the ports.

        An exception out of it is a defect of a machine or of a callback.
        """
        self._clock, self._call_soon = backend_clock(), soon_caller()
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                for port in self._ports:
                    port.start(self)
                tasks.start_soon(self._run_timer)
                self.flush()
                task_status.started()
        finally:
            self._tasks = None
            for port in self._ports:
                port.close()

    def flush(self) -> None:
        """Dispatch the machine's events, send its bytes, arm its timer. Owed after each input.

        A deadline that was due already when the clock was last looked at, such as that of a pause
        in reading, expires before it returns. Called from inside an event callback it does nothing,
        because the flush under way sees to it all.
        """
        if self._flushing:
            return
        self._dispatch()
        deadline = self._machine.get_timer()
        if deadline is not None and deadline <= self._latest:
            # Once only: what is due again after that must not keep everything else from running.
            self._machine.handle_timer(now=self._latest)
            self._dispatch()
            deadline = self._machine.get_timer()
        if deadline is not None and deadline < self._armed and self._timer_scope is not None:
            # A timer armed too early costs one idle wake-up, re-arming at every flush costs more.
            self._armed = deadline
            self._timer_scope.deadline = deadline

    def _dispatch(self) -> None:
        self._flushing = True
        try:
            machine = self._machine
            event = machine.next_event()
            more = True
            while more:
                while event is not None:
                    self._handlers.get(type(event), self._on_event)(event)
                    event = machine.next_event()
                more = False
                for port in self._ports:
                    more |= port.flush()
                # Gathering what is to be sent may bring out more.
                event = machine.next_event()
                more |= event is not None
        finally:
            self._flushing = False

    async def _run_timer(self) -> None:
        while True:
            deadline = self._machine.get_timer()
            self._armed = math.inf if deadline is None else deadline
            with anyio.CancelScope(deadline=self._armed) as self._timer_scope:
                await anyio.sleep_forever()
            # Backends may fire a little early; the machine must not see that, or it would ask
            # for the same deadline again, and again.
            now = max(self.now(), self._armed)
            self._armed, self._timer_scope = math.inf, None
            deadline = self._machine.get_timer()
            if deadline is not None and deadline <= now:
                self._machine.handle_timer(now=now)
                self.flush()


def _forget(function: Callable[[], None]) -> None:
    """Call nothing: the driver does not run yet."""


class UdpPort:
    """Carries a machine's datagrams over UDP sockets, at most one of each IP version in use.

    What goes to an IP version without a socket is dropped and counted in ``unroutable``.
    """

    def __init__(self, machine: DatagramMachine[Any], sockets: Iterable[UdpSocket]) -> None:
        self.sockets = tuple(sockets)
        self.unroutable = 0
        self._machine = machine
        self._by_version: dict[bool, UdpSocket] = {}
        for udp_socket in self.sockets:
            self._by_version.setdefault(udp_socket.is_ipv6, udp_socket)

    def start(self, driver: Driver[Any]) -> None:
        """Start a reader and a writer per socket."""
        for udp_socket in self.sockets:
            driver.start_soon(self._read, driver, udp_socket)
            driver.start_soon(udp_socket.run_writer)

    def flush(self) -> bool:
        """Send all datagrams the machine has queued."""
        for transmit in self._machine.datagrams_to_send():
            addr = transmit.addr
            if isinstance(addr, UdpAddress):
                udp_socket = self._by_version.get(":" in addr.ip)
                if udp_socket is not None:
                    udp_socket.send(addr, transmit.datagrams, transmit.segment_size)
                    continue
            self.unroutable += len(transmit.datagrams)
        return False

    def close(self) -> None:
        """Close the sockets."""
        for udp_socket in self.sockets:
            udp_socket.close()

    async def _read(self, driver: Driver[Any], udp_socket: UdpSocket) -> None:
        machine = self._machine

        def take() -> None:
            batches = udp_socket.receive()
            now = driver.now()
            for addr, datagrams in batches:
                machine.receive_datagrams(datagrams, addr, now=now)
            driver.flush()

        await udp_socket.call_when_readable(take)
