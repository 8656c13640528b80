"""Being called for what there is to read, on both backends."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import anyio
import pytest

from iroh_anyio.backends import backend_clock, call_when_readable

pytestmark = pytest.mark.anyio


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


async def test_it_is_called_for_each_arrival(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    read: list[bytes] = []
    arrived = anyio.Event()

    def serve() -> None:
        read.append(ours.recv(100))
        arrived.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call_when_readable, ours.fileno(), serve)
        for number in range(3):
            arrived = anyio.Event()
            theirs.send(bytes([number]))
            await arrived.wait()
        tasks.cancel_scope.cancel()
    assert read == [b"\0", b"\1", b"\2"]


async def test_it_is_called_again_for_what_it_leaves_and_others_have_their_turn(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    theirs.send(bytes(20))
    turns: list[str] = []
    done = anyio.Event()

    def serve() -> None:
        ours.recv(1)
        turns.append("serve")
        if turns.count("serve") == 20:
            done.set()

    async def be_another() -> None:
        while True:
            turns.append("other")
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call_when_readable, ours.fileno(), serve)
        tasks.start_soon(be_another)
        await done.wait()
        tasks.cancel_scope.cancel()
    first = turns.index("serve")
    assert "other" in turns[first : first + 4]


async def test_what_it_raises_is_raised_once_and_ends_the_waiting(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    theirs.send(b"unread")
    calls: list[int] = []

    def serve() -> None:
        calls.append(1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await call_when_readable(ours.fileno(), serve)
    await anyio.wait_all_tasks_blocked()
    assert calls == [1]


async def test_what_it_raises_after_it_cancelled_the_waiting_is_raised_too(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    theirs.send(b"unread")
    with pytest.RaisesGroup(ZeroDivisionError):
        async with anyio.create_task_group() as tasks:

            def serve() -> None:
                tasks.cancel_scope.cancel()
                raise ZeroDivisionError

            tasks.start_soon(call_when_readable, ours.fileno(), serve)


async def test_nothing_is_called_once_it_is_cancelled(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    calls: list[bytes] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call_when_readable, ours.fileno(), lambda: calls.append(ours.recv(9)))
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    theirs.send(b"too late")
    await anyio.wait_readable(ours)
    assert calls == []


async def test_the_clock_is_the_one_of_deadlines() -> None:
    before = anyio.current_time()
    now = backend_clock()()
    assert before <= now <= anyio.current_time()
