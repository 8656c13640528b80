"""Nodes that can meet at a DERP server alone, and what they make of its troubles."""

from __future__ import annotations

import ssl
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup, TaskStatus

from iroh_anyio import Connection, Derper
from iroh_proto import DerpMap, DerpNode, NodeAddr
from tests.anyio.nodes import ALPN, two_nodes

pytestmark = pytest.mark.anyio

# One has IPv4 and the other IPv6 alone, so no direct path can be found.
IPV4: dict[str, Any] = {"bind_addrs": ["127.0.0.1:0"]}
IPV6: dict[str, Any] = {"bind_addrs": ["[::1]:0"]}


COUNT = 400


def block(number: int) -> bytes:
    return number.to_bytes(4, "big") * 250


async def send_blocks(connection: Connection) -> None:
    stream = await connection.open_uni()
    for number in range(COUNT):
        await stream.send(block(number))
        await anyio.sleep(0.001)
    await stream.send_eof()


class Receiver:
    """Receives a stream to its end, and says when it has begun."""

    def __init__(self) -> None:
        self.began = anyio.Event()
        self.data = bytearray()

    async def run(self, connection: Connection) -> None:
        async for chunk in await connection.accept_uni():
            self.data += chunk
            self.began.set()


class Servers:
    """Derpers one after another on one port."""

    def __init__(self, tasks: TaskGroup) -> None:
        self._tasks = tasks
        self._port = 0
        self._stopping = anyio.Event()
        self._stopped = anyio.Event()

    async def start(self) -> str:
        self._stopping, self._stopped = anyio.Event(), anyio.Event()
        url: str = await self._tasks.start(self._run)
        return url

    async def stop(self) -> None:
        self._stopping.set()
        await self._stopped.wait()

    async def _run(self, *, task_status: TaskStatus[str]) -> None:
        async with await Derper.bind(port=self._port, stun_port=None) as derper:
            self._port = derper.port
            task_status.started(derper.url)
            await self._stopping.wait()
        self._stopped.set()


async def test_streams_go_on_when_the_server_comes_back() -> None:
    async with anyio.create_task_group() as tasks:
        servers = Servers(tasks)
        url = await servers.start()
        settings = {"derp_map": DerpMap([DerpNode(url, stun_port=None)])}
        async with two_nodes(IPV4 | settings, IPV6 | settings) as (server, client):
            dialled = await client.connect(NodeAddr(server.node_id, derp_url=url), alpn=ALPN)
            accepted = await server.accept()
            receiver = Receiver()
            async with anyio.create_task_group() as transfer:
                transfer.start_soon(receiver.run, accepted)
                transfer.start_soon(send_blocks, dialled)
                await receiver.began.wait()
                await servers.stop()
                await anyio.sleep(0.05)
                before = len(receiver.data)
                await anyio.sleep(0.2)
                assert len(receiver.data) == before < COUNT * 1000
                await servers.start()
            assert bytes(receiver.data) == b"".join(block(number) for number in range(COUNT))
            assert dialled.path.kind == "derp"
        await servers.stop()


async def test_nodes_meet_at_a_server_over_tls(
    tls_contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    server_context, client_context = tls_contexts
    async with await Derper.bind(port=0, stun_port=None, ssl_context=server_context) as derper:
        url = f"https://localhost:{derper.port}"
        settings: dict[str, Any] = {
            "derp_map": DerpMap([DerpNode(url, stun_port=None)]),
            "derp_ssl_context": lambda: client_context,
        }
        async with two_nodes(IPV4 | settings, IPV6 | settings) as (server, client):
            connection = await client.connect(NodeAddr(server.node_id, derp_url=url), alpn=ALPN)
            stream = await connection.open_uni()
            await stream.send(b"sealed twice")
            accepted = await server.accept()
            assert await (await accepted.accept_uni()).receive() == b"sealed twice"


async def test_a_server_that_appears_late_is_found() -> None:
    derper = await Derper.bind(port=0, stun_port=None)
    await derper.close()
    derp_map = DerpMap([DerpNode(derper.url, stun_port=None)])
    settings = {"derp_map": derp_map}
    async with two_nodes(IPV4 | settings, IPV6 | settings) as (server, client):
        await anyio.sleep(0.1)
        assert server.home_derp is None
        async with await Derper.bind(port=derper.port, stun_port=None):
            addr = NodeAddr(server.node_id, derp_url=derper.url)
            connection = await client.connect(addr, alpn=ALPN)
            assert connection.remote_node_id == server.node_id


async def test_the_second_server_of_the_map_is_home_if_the_first_is_out_of_reach() -> None:
    async with await Derper.bind(port=0, stun_port=None) as derper:
        derp_map = DerpMap(
            [
                DerpNode("http://127.0.0.1:9", stun_port=None),
                DerpNode(derper.url, stun_port=None),
            ]
        )
        settings = {"derp_map": derp_map}
        async with two_nodes(IPV4 | settings, IPV6 | settings) as (server, client):
            addr = await server.node_addr()
            assert str(addr.derp_url) == f"{derper.url}/"
            await client.connect(addr, alpn=ALPN)
