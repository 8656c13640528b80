"""The driver, running tiny machines on real sockets, on both backends."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import anyio
import pytest

from iroh_anyio.driver import Driver, UdpPort
from iroh_anyio.udp import BATCH_LIMIT, UdpSocket
from iroh_proto import Address, Transmit, UdpAddress

pytestmark = pytest.mark.anyio

LOCALHOST = UdpAddress("127.0.0.1", 0)


class Talker:
    """Echoes datagrams once, reports them as events, and keeps one settable deadline."""

    def __init__(self) -> None:
        self.events: deque[bytes] = deque()
        self.transmits: list[Transmit] = []
        self.deadline: float | None = None
        self.expiries: list[float] = []
        self.inputs: list[int] = []

    def say(self, data: bytes, addr: UdpAddress) -> None:
        self.transmits.append(Transmit(addr, [data]))

    def receive_datagrams(self, batch: Sequence[bytes], addr: Address, *, now: float) -> None:
        self.inputs.append(len(batch))
        for data in batch:
            self.events.append(data)
            if data.startswith(b"echo "):
                self.transmits.append(Transmit(addr, [data[5:]]))

    def datagrams_to_send(self) -> list[Transmit]:
        transmits, self.transmits = self.transmits, []
        return transmits

    def handle_timer(self, *, now: float) -> None:
        assert self.deadline is not None
        assert now >= self.deadline
        self.expiries.append(now)
        self.deadline = None
        self.events.append(b"expired")

    def get_timer(self) -> float | None:
        return self.deadline

    def next_event(self) -> bytes | None:
        return self.events.popleft() if self.events else None


class Host:
    """A talker running on a socket of its own, with the events it gave."""

    def __init__(self, on_event: Callable[[bytes], None] | None = None) -> None:
        self.machine = Talker()
        self.socket = UdpSocket(LOCALHOST)
        self.port = UdpPort(self.machine, [self.socket])
        self.events: list[bytes] = []
        self._changed = anyio.Event()
        self._react = on_event
        self.driver: Driver[bytes] = Driver(self.machine, [self.port], self._on_event)

    def _on_event(self, event: bytes) -> None:
        self.events.append(event)
        if self._react is not None:
            self._react(event)
        self._changed.set()
        self._changed = anyio.Event()

    async def wait_for(self, count: int) -> None:
        with anyio.fail_after(5):
            while len(self.events) < count:
                await self._changed.wait()


@asynccontextmanager
async def running(*hosts: Host) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        for host in hosts:
            await tasks.start(host.driver.run)
        yield
        tasks.cancel_scope.cancel()


async def test_what_arrives_is_answered_and_reported() -> None:
    left, right = Host(), Host()
    async with running(left, right):
        left.machine.say(b"echo hello", right.socket.local_address)
        left.driver.flush()
        await left.wait_for(1)
    assert right.events == [b"echo hello"]
    assert left.events == [b"hello"]


async def test_what_is_sent_leaves_before_flush_returns() -> None:
    left, right = Host(), Host()
    async with running(left):
        left.machine.say(b"now", right.socket.local_address)
        left.driver.flush()
        assert left.socket.stats.sent == 1
    assert right.socket.receive() == [(left.socket.local_address, [b"now"])]
    right.socket.close()


async def test_commands_given_by_an_event_are_carried_out_by_the_same_flush() -> None:
    left, right = Host(), Host()

    def react(event: bytes) -> None:
        left.machine.say(b"because of " + event, right.socket.local_address)
        left.driver.flush()

    left._react = react
    async with running(left, right):
        left.machine.events.append(b"it")
        left.driver.flush()
        await right.wait_for(1)
    assert left.events == [b"it"]
    assert right.events == [b"because of it"]


async def test_a_deadline_expires_once_and_not_early() -> None:
    host = Host()
    async with running(host):
        host.machine.deadline = deadline = host.driver.now() + 0.03
        host.driver.flush()
        await host.wait_for(1)
        assert host.machine.expiries[0] >= deadline
        await anyio.sleep(0.03)
    assert len(host.machine.expiries) == 1


async def test_an_earlier_deadline_takes_the_place_of_a_later_one() -> None:
    host = Host()
    async with running(host):
        start = host.driver.now()
        host.machine.deadline = start + 60
        host.driver.flush()
        await anyio.wait_all_tasks_blocked()
        host.machine.deadline = start + 0.02
        host.driver.flush()
        await host.wait_for(1)
    assert host.machine.expiries[0] < start + 5


async def test_a_deadline_that_moved_away_does_not_expire() -> None:
    host = Host()
    async with running(host):
        start = host.driver.now()
        host.machine.deadline = start + 0.02
        host.driver.flush()
        host.machine.deadline = start + 60
        host.driver.flush()
        await anyio.sleep(0.04)
        assert host.machine.expiries == []
        host.machine.deadline = host.driver.now() + 0.02
        host.driver.flush()
        await host.wait_for(1)
        host.machine.deadline = host.driver.now() + 0.02
        host.driver.flush()
        host.machine.deadline = None
        await anyio.sleep(0.04)
    assert len(host.machine.expiries) == 1


async def test_a_deadline_in_the_past_expires_at_once() -> None:
    host = Host()
    host.machine.deadline = -1e9
    async with running(host):
        await host.wait_for(1)


async def test_a_deadline_that_is_due_expires_before_flush_returns() -> None:
    host = Host()
    async with running(host):
        host.machine.deadline = host.driver.now()
        host.driver.flush()
        assert host.events == [b"expired"]


async def test_a_deadline_is_heeded_though_the_task_of_the_timer_has_no_turn() -> None:
    host = Host()
    async with running(host):
        host.machine.deadline = host.driver.now() + 0.01
        host.driver.flush()
        while host.driver.now() <= host.machine.deadline + 0.01:
            pass  # as long as this goes on no other task runs
        host.driver.flush()
        assert host.events == [b"expired"]
        await anyio.wait_all_tasks_blocked()
        assert host.events == [b"expired"]


async def test_a_deadline_that_is_always_due_keeps_nothing_else_from_running() -> None:
    host = Host()
    async with running(host):

        def again(event: bytes) -> None:
            host.machine.deadline = host.driver.now()

        host._react = again
        again(b"")
        host.driver.flush()
        await host.wait_for(100)
        host._react = None


async def test_idling_wakes_nobody() -> None:
    host = Host()
    polls = 0
    get_timer = host.machine.get_timer

    def counting() -> float | None:
        nonlocal polls
        polls += 1
        return get_timer()

    host.machine.get_timer = counting  # type: ignore[method-assign]
    async with running(host):
        await anyio.wait_all_tasks_blocked()
        before = polls
        await anyio.sleep(0.1)
        assert polls == before


async def test_a_burst_is_given_in_batches() -> None:
    left, right = Host(), Host()
    left.machine.transmits.append(
        Transmit(right.socket.local_address, [b"x" * 100] * 200, segment_size=100)
    )
    async with running(left, right):
        await right.wait_for(200)
    assert sum(right.machine.inputs) == 200
    assert len(right.machine.inputs) < 20


async def test_lesson_19_a_busy_socket_does_not_hold_up_the_other() -> None:
    host, sender = Host(), UdpSocket(LOCALHOST)
    other = UdpSocket(LOCALHOST)
    host.port = UdpPort(host.machine, [host.socket, other])
    host.driver = Driver(host.machine, [host.port], host._on_event)
    flood = 5 * BATCH_LIMIT
    for _ in range(flood):
        sender.send(host.socket.local_address, [b"flood"])
    sender.send(other.local_address, [b"let me through"])
    async with running(host):
        await host.wait_for(flood + 1)
    sender.close()
    assert host.events.index(b"let me through") <= 2 * BATCH_LIMIT


async def test_datagrams_for_a_missing_ip_version_are_counted() -> None:
    host = Host()
    async with running(host):
        host.machine.say(b"x", UdpAddress("::1", 9))
        host.driver.flush()
        assert host.port.unroutable == 1


async def test_ending_closes_the_sockets() -> None:
    host = Host()
    async with running(host):
        pass
    with pytest.raises(anyio.ClosedResourceError):
        await host.socket.wait_readable()


async def test_a_defect_in_a_machine_ends_the_run_with_its_exception() -> None:
    class Defect(Exception):
        pass

    def react(event: bytes) -> None:
        raise Defect

    host = Host(react)
    host.machine.events.append(b"x")
    with pytest.raises(ExceptionGroup) as caught:
        await host.driver.run()
    assert caught.value.split(Defect)[1] is None
