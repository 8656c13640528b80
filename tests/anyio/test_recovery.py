"""A DERP server's process is killed, or stands still, under streams that have no other way."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from iroh_anyio import Connection, MagicEndpoint
from iroh_proto import DerpMap, DerpNode, NodeAddr
from iroh_proto.derp.server_link import FIRST_BACKOFF
from tests.anyio.nodes import ALPN, bind

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
LIMIT = 40.0  # seconds on a busy machine; each test takes some
START_LIMIT = 20.0
CHUNK = 20_000  # bytes between two pauses of a sender


class DerperProcess:
    """``iroh-anyio derper`` in a process of its own, on a port that stays the same."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[str] | None = None

    async def start(self) -> None:
        command = ("-m", "iroh_anyio", "derper", "--dev", "--port", str(self.port))
        self._process = subprocess.Popen(  # noqa: ASYNC220 - it takes no time
            [sys.executable, *command, "--stun-port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert self._process.stdout is not None
        with anyio.fail_after(START_LIMIT):
            line = await to_thread.run_sync(self._process.stdout.readline)
        assert json.loads(line)["url"] == self.url

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def kill(self) -> None:
        """End it without any leave-taking."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        await to_thread.run_sync(process.wait)
        assert process.stdout is not None
        process.stdout.close()


@asynccontextmanager
async def derper_process() -> AsyncIterator[DerperProcess]:
    derper = DerperProcess()
    try:
        await derper.start()
        yield derper
    finally:
        with anyio.CancelScope(shield=True):
            await derper.kill()


class Transfer:
    """Bytes that go to an echo and come back, with pauses that let them be under way for long."""

    def __init__(self, connection: Connection, size: int) -> None:
        self.data = random.Random(size).randbytes(size)
        self.received = bytearray()
        self._connection = connection

    async def run(self) -> None:
        stream = await self._connection.open_bi()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._send, stream)
            async for chunk in stream:
                self.received += chunk
        assert bytes(self.received) == self.data

    async def _send(self, stream: Any) -> None:
        for start in range(0, len(self.data), CHUNK):
            await stream.send(self.data[start : start + CHUNK])
            await anyio.sleep(0.005)
        await stream.send_eof()

    async def wait_for_more(self, size: int) -> None:
        """Wait until so many bytes more have come back."""
        wanted = len(self.received) + size
        while len(self.received) < wanted:  # noqa: ASYNC110 - as it comes
            await anyio.sleep(0.01)


async def echo(endpoint: MagicEndpoint) -> None:
    connection = await endpoint.accept()
    async with anyio.create_task_group() as tasks:
        while True:
            stream = await connection.accept_bi()
            tasks.start_soon(echo_stream, stream)


async def echo_stream(stream: Any) -> None:
    async for chunk in stream:
        await stream.send(chunk)
    await stream.send_eof()


@asynccontextmanager
async def met_at(url: str) -> AsyncIterator[tuple[MagicEndpoint, MagicEndpoint, Connection]]:
    """Connect two nodes of which one has IPv4 alone and the other IPv6: they only have the DERP.

    Yields the one that echoes, the one that dialled, and its connection.
    """
    settings: dict[str, Any] = {"derp_map": DerpMap([DerpNode(url, stun_port=None)])}
    async with (
        await bind(alpns=[ALPN], **settings) as server,
        await bind(bind_addrs=["[::1]:0"], **settings) as client,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(echo, server)
        with anyio.fail_after(LIMIT):
            addr = NodeAddr(server.node_id, derp_url=url)
            yield server, client, await client.connect(addr, alpn=ALPN)
        tasks.cancel_scope.cancel()


def dials(endpoint: MagicEndpoint) -> tuple[int, int]:
    stats = endpoint.machine.magicsock.stats.derp
    return stats.dials, stats.dials_failed


async def test_streams_survive_a_derper_that_is_killed_and_comes_back() -> None:
    outage = 1.0
    # Each pause is twice as long as the one before, less up to half by chance.
    most_dials = math.log2(2 * outage / FIRST_BACKOFF) + 3
    async with derper_process() as derper, met_at(derper.url) as (server, client, connection):
        transfers = [Transfer(connection, size) for size in (2_000_000, 700_000, 1)]
        async with anyio.create_task_group() as tasks:
            for transfer in transfers:
                tasks.start_soon(transfer.run)
            await transfers[0].wait_for_more(200_000)
            before = [dials(endpoint) for endpoint in (server, client)]
            await derper.kill()
            await anyio.sleep(outage)
            for endpoint, (dialled, failed) in zip((server, client), before, strict=True):
                more, more_failed = dials(endpoint)
                assert 3 < more - dialled < most_dials
                assert more_failed > failed + 2
            assert connection.close_reason is None
            assert len(transfers[0].received) < len(transfers[0].data)
            await derper.start()
        assert connection.path.kind == "derp"
        assert client.home_derp is not None


async def test_streams_survive_a_derper_that_stands_still_for_a_while() -> None:
    async with derper_process() as derper, met_at(derper.url) as (server, client, connection):
        transfer = Transfer(connection, 1_000_000)
        before = [dials(endpoint) for endpoint in (server, client)]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(transfer.run)
            await transfer.wait_for_more(200_000)
            derper.signal(signal.SIGSTOP)
            await anyio.sleep(0.3)
            received = len(transfer.received)
            await anyio.sleep(1.5)
            assert len(transfer.received) == received
            derper.signal(signal.SIGCONT)
        assert [dials(endpoint) for endpoint in (server, client)] == before
        assert connection.path.kind == "derp"


async def test_a_node_that_starts_while_its_derper_is_down_is_met_when_it_is_up() -> None:
    async with derper_process() as derper:
        await derper.kill()
        settings: dict[str, Any] = {"derp_map": DerpMap([DerpNode(derper.url, stun_port=None)])}
        async with (
            await bind(alpns=[ALPN], **settings) as server,
            await bind(bind_addrs=["[::1]:0"], **settings) as client,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(echo, server)
            await anyio.sleep(0.5)
            assert server.home_derp is None
            await derper.start()
            with anyio.fail_after(LIMIT):
                addr = NodeAddr(server.node_id, derp_url=derper.url)
                connection = await client.connect(addr, alpn=ALPN)
                await Transfer(connection, 100_000).run()
            tasks.cancel_scope.cancel()
