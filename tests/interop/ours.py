"""Our endpoint's part in the tests: echo, by whoever dialled."""

from __future__ import annotations

import hashlib
import os

import anyio

from iroh_anyio.connection import Connection
from iroh_anyio.endpoint import MagicEndpoint
from iroh_proto import NodeAddr
from tests.interop.real_peer import JsonObject, RealPeer

ALPN = b"iroh-proto/test/echo/0"

ECHO_SIZE = 10_000_000
"""Bytes: many flow-control windows of either side."""

ECHO_LIMIT = 60.0
"""Seconds for one echo; it takes about one."""

DIAL_LIMIT = 30.0
"""Seconds for a handshake, several rounds of pings included."""

CHUNK_SIZE = 1 << 16


async def dialled_by(
    peer: RealPeer, ours: MagicEndpoint, addr: NodeAddr, size: int
) -> tuple[JsonObject, Connection]:
    """Have a peer dial us at an address and echo to it; return its connection and ours."""
    dialling = peer.begin_dial(addr, ALPN)
    with anyio.fail_after(DIAL_LIMIT):
        connection = await ours.accept()
    dialled = await peer.answer(dialling)
    echoing = peer.begin("echo", connection=dialled["connection"], size=size)
    with anyio.fail_after(ECHO_LIMIT):
        await serve_echo(connection)
    assert (await peer.answer(echoing))["equal"]
    assert dialled["remote_id"] == str(ours.node_id)
    assert connection.remote_node_id == peer.node_id
    return dialled, connection


async def serve_echo(connection: Connection) -> None:
    """Send back what the peer sends on its next bidirectional stream."""
    stream = await connection.accept_bi()
    async for chunk in stream:
        await stream.send(chunk)
    await stream.send_eof()


async def echo(connection: Connection, size: int = ECHO_SIZE) -> None:
    """Send random bytes to an echo and fail unless the same come back, and then the end."""
    data = os.urandom(size)
    stream = await connection.open_bi()

    async def send() -> None:
        for offset in range(0, size, CHUNK_SIZE):
            await stream.send(data[offset : offset + CHUNK_SIZE])
        await stream.send_eof()

    received = bytearray()
    with anyio.fail_after(ECHO_LIMIT):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            async for chunk in stream:
                received += chunk
    assert len(received) == size
    assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()
