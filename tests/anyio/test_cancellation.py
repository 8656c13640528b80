"""Whatever is cancelled, whenever: nothing is left behind, on both backends."""

from __future__ import annotations

import gc
import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from iroh_anyio import Connection, ConnectionClosed, Derper, EndpointOptions, MagicEndpoint
from iroh_anyio import dial as dial_module
from iroh_proto import DerpMap, DerpNode, NodeAddr, SecretKey, UdpAddress
from tests.anyio.nodes import ALPN, LIMIT, addr_of, bind, joined, two_nodes

pytestmark = pytest.mark.anyio

MOMENTS = (*range(12), 15, 20, 30, 50, 80)
"""Turns of the event loop after which something is cancelled."""

Deed = Callable[[], Awaitable[Any]]


async def cancelled_after(turns: int, deed: Deed) -> bool:
    """Do something, cancel it after some turns of the event loop, and say whether it was."""
    failure: Exception | None = None
    with anyio.fail_after(LIMIT):
        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as scope:
                tasks.start_soon(_cancel_after, turns, scope)
                try:
                    await deed()
                except Exception as error:  # noqa: BLE001  # raised again outside of the group
                    failure = error
    if failure is not None:
        raise failure
    return scope.cancelled_caught


async def _cancel_after(turns: int, scope: anyio.CancelScope) -> None:
    for _ in range(turns):
        await checkpoint()
    scope.cancel()


def open_files() -> int:
    gc.collect()  # what was not closed warns now, and a warning is an error
    return len(os.listdir("/proc/self/fd"))


def running_tasks() -> int:
    return len(anyio.get_running_tasks())


@pytest.fixture(autouse=True)
async def nothing_left(anyio_backend: str) -> AsyncIterator[None]:
    """Check that no file and no task outlives the test."""
    files, tasks = open_files(), running_tasks()
    yield
    with anyio.fail_after(LIMIT):
        while running_tasks() > tasks:  # noqa: ASYNC110 - tasks end without telling anybody
            await anyio.sleep(0.01)
    assert open_files() == files


async def echo(endpoint: MagicEndpoint) -> None:
    async with anyio.create_task_group() as tasks:
        async for connection in endpoint:
            tasks.start_soon(echo_streams, connection)


async def echo_streams(connection: Connection) -> None:
    with suppress(ConnectionClosed, anyio.BrokenResourceError):
        while True:
            stream = await connection.accept_bi()
            async for chunk in stream:
                await stream.send(chunk)
            await stream.send_eof()


async def assert_good(client: MagicEndpoint, server: MagicEndpoint) -> None:
    """Check that two nodes whose server echoes can still talk."""
    connection = await client.connect(addr_of(server), alpn=ALPN)
    stream = await connection.open_bi()
    await stream.send(b"all well?")
    await stream.send_eof()
    assert b"".join([chunk async for chunk in stream]) == b"all well?"
    connection.close()


async def assert_forgotten(*endpoints: MagicEndpoint) -> None:
    """Check that an endpoint's connections go once they are closed."""
    with anyio.fail_after(LIMIT):
        while any(len(one.machine._board) for one in endpoints):  # noqa: ASYNC110 - as above
            await anyio.sleep(0.02)
    for endpoint in endpoints:
        assert (endpoint.machine._board._routes, endpoint.machine._board._dials) == ({}, {})


# Attempts


async def test_connecting() -> None:
    async with two_nodes() as (server, client), anyio.create_task_group() as tasks:
        tasks.start_soon(echo, server)

        async def connect() -> None:
            connection = await client.connect(addr_of(server), alpn=ALPN)
            connection.close()

        outcomes = [await cancelled_after(turns, connect) for turns in MOMENTS]
        assert True in outcomes
        await assert_good(client, server)
        await assert_forgotten(client, server)
        tasks.cancel_scope.cancel()


async def test_connecting_to_who_is_not_there() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        address = UdpAddress(*silent.getsockname())
        addr = NodeAddr(SecretKey.generate().public, direct_addresses=[address])
        async with two_nodes() as (server, client), anyio.create_task_group() as tasks:
            tasks.start_soon(echo, server)
            for turns in MOMENTS:
                assert await cancelled_after(turns, lambda: client.connect(addr, alpn=ALPN))
            await assert_good(client, server)
            tasks.cancel_scope.cancel()


async def test_connecting_through_a_derp_server() -> None:
    async with await Derper.bind(port=0, stun_port=None) as derper:
        derp_map = DerpMap([DerpNode(derper.url, stun_port=None)])
        settings: dict[str, Any] = {"derp_map": derp_map, "bind_addrs": ["[::1]:0"]}
        for turns in MOMENTS[::3]:
            async with two_nodes({"derp_map": derp_map}, settings) as (server, client):
                addr = NodeAddr(server.node_id, derp_url=derper.url)

                async def connect() -> None:
                    connection = await client.connect(addr, alpn=ALPN)  # noqa: B023
                    connection.close()

                await cancelled_after(turns * 3, connect)
                await assert_forgotten(client)


async def test_accepting() -> None:
    async with two_nodes() as (server, client):
        for turns in MOMENTS:
            dialled: list[Connection] = []

            async def dial() -> None:
                dialled.append(await client.connect(addr_of(server), alpn=ALPN))  # noqa: B023

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(dial)
                await cancelled_after(turns, server.accept)
            # A connection was either handed to somebody, or is the next to be accepted.
            dialled[0].close()
            with anyio.move_on_after(0.01):
                await server.accept()
        await assert_forgotten(client, server)


# Streams


async def test_sending_and_receiving() -> None:
    little = {"options": EndpointOptions(send_buffer=100_000)}
    async with joined(little, little) as (dialled, accepted):
        data = random.Random(1).randbytes(300_000)
        for turns in MOMENTS:
            stream = await dialled.open_bi()
            await cancelled_after(turns, lambda: stream.send(data))  # noqa: B023
            other = await accepted.accept_bi() if turns else None
            if other is not None:
                with suppress(anyio.BrokenResourceError):
                    await cancelled_after(turns, lambda: read_all(other))  # noqa: B023
                other.reset(1)
                other.stop(2)
            stream.reset(3)
            stream.stop(4)
        await assert_streams_work(dialled, accepted)


async def test_a_receive_that_is_cancelled_loses_no_byte() -> None:
    async with joined() as (dialled, accepted), anyio.create_task_group() as tasks:
        data = random.Random(2).randbytes(300_000)
        sender = await dialled.open_uni()
        received = bytearray()

        async def send() -> None:
            for start in range(0, len(data), 1_000):
                await sender.send(data[start : start + 1_000])
                await checkpoint()
            await sender.send_eof()

        tasks.start_soon(send)
        stream = await accepted.accept_uni()

        async def receive() -> None:
            received.extend(await stream.receive(700))

        turns = 0
        while len(received) < len(data):
            turns = (turns + 1) % 4
            await cancelled_after(turns, receive)
        assert bytes(received) == data


async def test_ending_and_waiting_for_delivery() -> None:
    async with joined() as (dialled, accepted):
        for turns in MOMENTS:
            stream = await dialled.open_uni()
            await stream.send(b"x" * 10_000)

            async def end() -> None:
                await stream.send_eof()  # noqa: B023
                await stream.wait_delivered()  # noqa: B023

            await cancelled_after(turns, end)
            await cancelled_after(turns, stream.aclose)
            other = await accepted.accept_uni()
            assert await read_all(other) == 10_000
        for turns in MOMENTS[:6]:
            assert await cancelled_after(turns, dialled.accept_bi)
            assert await cancelled_after(turns, dialled.accept_uni)
            assert await cancelled_after(turns, dialled.receive_datagram)
            assert await cancelled_after(turns, dialled.wait_closed)
        await assert_streams_work(dialled, accepted)


async def read_all(stream: Any) -> int:
    size = 0
    async for chunk in stream:
        size += len(chunk)
    return size


async def assert_streams_work(dialled: Connection, accepted: Connection) -> None:
    sender = await dialled.open_uni()
    await sender.send(b"the last word")
    await sender.send_eof()
    with anyio.fail_after(LIMIT):
        while True:
            stream = await accepted.accept_uni()
            with suppress(anyio.BrokenResourceError):
                if await stream.receive() == b"the last word":
                    return


# Whole endpoints


async def test_endpoints_at_any_moment_of_their_life() -> None:

    async def live() -> None:
        async with (
            await Derper.bind(port=0, stun_port=0) as derper,
            await bind(
                alpns=[ALPN], derp_map=DerpMap([DerpNode(derper.url, stun_port=None)])
            ) as server,
            await bind() as client,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(echo, server)
            await assert_good(client, server)
            tasks.cancel_scope.cancel()

    outcomes = [await cancelled_after(turns, live) for turns in (*MOMENTS, 120, 400, 5000)]
    assert outcomes[0]
    assert not outcomes[-1]


async def test_endpoints_that_are_never_entered() -> None:
    for turns in range(5):
        bound: list[MagicEndpoint] = []

        async def make() -> None:
            bound.append(await bind())  # noqa: B023
            await checkpoint()

        await cancelled_after(turns, make)
        for endpoint in bound:
            await endpoint.close()


async def test_closing_while_everything_goes_on() -> None:
    for turns in MOMENTS:
        async with two_nodes() as (server, client):
            connection = await client.connect(addr_of(server), alpn=ALPN)
            stream = await connection.open_bi()

            async def use() -> None:
                with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
                    await stream.send(bytes(10_000_000))  # noqa: B023

            async def close() -> None:
                await client.close()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(use)
                await cancelled_after(turns, close)


async def test_a_node_cancelled_again_and_again_amid_its_work() -> None:
    rng = random.Random(3)
    async with two_nodes() as (server, client), anyio.create_task_group() as tasks:
        tasks.start_soon(echo, server)

        async def work() -> None:
            connection = await client.connect(addr_of(server), alpn=ALPN)
            try:
                async with anyio.create_task_group() as streams:
                    for _ in range(5):
                        streams.start_soon(ask, connection, rng.randbytes(50_000))
            finally:
                connection.close()

        for _ in range(15):
            with anyio.move_on_after(rng.uniform(0.0, 0.04)):
                await work()
        await assert_good(client, server)
        await assert_forgotten(client)
        tasks.cancel_scope.cancel()


async def ask(connection: Connection, data: bytes) -> None:
    stream = await connection.open_bi()
    await stream.send(data)
    await stream.send_eof()
    assert b"".join([chunk async for chunk in stream]) == data


# Sockets


async def test_a_dial_cancelled_as_it_succeeds_leaves_no_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connect, made = dial_module._connect_ip, []

    async def connect_and_cancel(ip: str, port: int) -> socket.socket:
        made.append(await connect(ip, port))
        scope.cancel()
        return made[-1]

    monkeypatch.setattr(dial_module, "_connect_ip", connect_and_cancel)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with anyio.CancelScope() as scope:
            await dial_module.dial("127.0.0.1", listener.getsockname()[1], None)
        assert scope.cancelled_caught
        assert [tcp_socket.fileno() for tcp_socket in made] == [-1]
