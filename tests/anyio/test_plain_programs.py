"""In a program that runs asyncio or trio itself: nothing has told anyio of the backend there."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
import trio

from iroh_anyio import MagicEndpoint
from iroh_anyio.backends import call_when_readable
from iroh_anyio.derper import Derper
from iroh_proto.address import NodeAddr
from iroh_proto.derp.map import DerpMap, DerpNode

ALPN = b"backends/0"

Run = Callable[[Callable[[], Awaitable[None]]], None]


def run_asyncio(function: Callable[[], Any]) -> None:
    asyncio.run(function())


@pytest.fixture(params=[run_asyncio, trio.run], ids=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Run:
    found: Run = request.param
    return found


def test_endpoints_talk_through_a_server_and_part(run: Run) -> None:
    async def talk() -> None:
        async with await Derper.bind(port=0, stun_port=0) as derper:
            derp_map = DerpMap([DerpNode(derper.url, derper.stun_port, "v3")])
            async with await MagicEndpoint.bind(alpns=[ALPN], derp_map=derp_map) as listener:
                await listener.node_addr()
                addr = NodeAddr(listener.node_id, derp_url=derper.url)
                for _ in range(2):  # the first to part must not have harmed anybody
                    async with await MagicEndpoint.bind(derp_map=derp_map) as dialler:
                        await exchange(listener, dialler, addr)

    async def exchange(listener: MagicEndpoint, dialler: MagicEndpoint, addr: NodeAddr) -> None:
        with anyio.fail_after(20):
            dialled = await dialler.connect(addr, alpn=ALPN)
            accepted = await listener.accept()
            stream = await dialled.open_bi()
            await stream.send(bytes(300_000))
            await stream.send_eof()
            assert sum([len(data) async for data in await accepted.accept_bi()]) == 300_000

    run(talk)


def test_anyio_is_of_use_to_what_is_called(run: Run) -> None:
    ours, theirs = socket.socketpair()
    times: list[float] = []

    async def serve_once() -> None:
        async with anyio.create_task_group() as tasks:

            def serve() -> None:
                ours.recv(1)
                times.append(anyio.current_time())
                anyio.CancelScope()
                tasks.cancel_scope.cancel()

            theirs.send(b"x")
            tasks.start_soon(call_when_readable, ours.fileno(), serve)

    with ours, theirs:
        ours.setblocking(False)
        run(serve_once)
    assert len(times) == 1
