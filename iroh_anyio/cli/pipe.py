"""``iroh-anyio listen`` and ``connect``: stdin and stdout become a pipe between two nodes.

Wire-compatible with dumbpipe: the same ALPN, and the side that opens the stream sends ``hello``
first, because a QUIC stream shows itself to the peer only with its first byte.
Source: dumbpipe 0.39 ``src/lib.rs``.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import anyio
import anyio.to_thread
import click

from iroh_anyio.cli.common import (
    EndpointSettings,
    endpoint_options,
    endpoint_settings,
    run,
    say,
)
from iroh_anyio.connection import Connection
from iroh_anyio.errors import ConnectionClosedByPeer
from iroh_anyio.streams import BiStream
from iroh_proto import DecodeError, DerpUrl, NodeAddr, NodeId
from iroh_proto.ticket import NodeTicket

DUMBPIPE_ALPN = b"DUMBPIPEV0"
HELLO = b"hello"

CHUNK_SIZE = 64 * 1024
ADDRESS_WAIT = 5.0  # seconds to learn our own addresses before the ticket is printed


@click.command()
@endpoint_options
@click.option("--recv-only", is_flag=True, help="Send nothing; leave stdin alone.")
def listen(
    derp: tuple[DerpUrl, ...],
    no_derp: bool,
    bind: tuple[str, ...],
    secret_key_file: Path | None,
    recv_only: bool,
) -> None:
    """Wait for one peer; then stdin and stdout are a pipe to it.

    The ticket that the peer needs is printed on stderr.
    """
    settings = endpoint_settings(derp, no_derp, bind, secret_key_file)
    run(lambda: _listen(settings, recv_only))


@click.command()
@click.argument("peer", metavar="TICKET|NODE_ID")
@endpoint_options
@click.option("--recv-only", is_flag=True, help="Send nothing; leave stdin alone.")
def connect(
    peer: str,
    derp: tuple[DerpUrl, ...],
    no_derp: bool,
    bind: tuple[str, ...],
    secret_key_file: Path | None,
    recv_only: bool,
) -> None:
    """Dial a listening peer; then stdin and stdout are a pipe to it.

    A bare node id needs --derp, to say where the peer may be met.
    """
    settings = endpoint_settings(derp, no_derp, bind, secret_key_file)
    try:
        addr = parse_peer(peer, settings.derp_urls)
    except DecodeError as error:
        raise click.UsageError(f"{peer!r} is neither a ticket nor a node id: {error}") from None
    run(lambda: _connect(settings, addr, recv_only))


def parse_peer(text: str, derp_urls: tuple[DerpUrl, ...]) -> NodeAddr:
    """Return the address in a node or endpoint ticket, or of a node id at the first DERP URL.

    :raises DecodeError: if the text is neither.
    """
    if text.startswith(("node", "endpoint")):
        return NodeTicket.from_str(text).node_addr
    return NodeAddr(NodeId.from_str(text), derp_url=derp_urls[0] if derp_urls else None)


async def _listen(settings: EndpointSettings, recv_only: bool) -> None:
    async with await settings.open(alpns=(DUMBPIPE_ALPN,)) as endpoint:
        with anyio.move_on_after(ADDRESS_WAIT):
            await endpoint.node_addr()
        ticket = NodeTicket(await endpoint.node_addr(wait=False))
        say("Listening. Connect with one of:")
        say(f"  iroh-anyio connect {ticket}")
        say(f"  dumbpipe connect {ticket.to_endpoint_str()}")
        async for connection in endpoint:
            stream = await connection.accept_bi()
            if await _receive_hello(stream):
                say(f"Connected to {connection.remote_node_id}")
                await _forward(connection, stream, recv_only)
                return
            connection.close(1, "invalid handshake")


async def _connect(settings: EndpointSettings, addr: NodeAddr, recv_only: bool) -> None:
    async with await settings.open() as endpoint:
        connection = await endpoint.connect(addr, alpn=DUMBPIPE_ALPN)
        stream = await connection.open_bi()
        await stream.send(HELLO)
        say(f"Connected to {connection.remote_node_id}")
        await _forward(connection, stream, recv_only)


async def _receive_hello(stream: BiStream) -> bool:
    received = b""
    while len(received) < len(HELLO):
        try:
            received += await stream.receive(len(HELLO) - len(received))
        except anyio.EndOfStream:
            return False
    return received == HELLO


async def _forward(connection: Connection, stream: BiStream, recv_only: bool) -> None:
    """Carry both directions to their ends, and leave only when the peer has everything."""
    async with anyio.create_task_group() as tasks:
        if recv_only:
            await stream.send_eof()
        else:
            tasks.start_soon(_send_stdin, stream)
        await _receive_to_stdout(stream)
    try:
        await stream.wait_delivered()
    except ConnectionClosedByPeer as closed:
        # The peer was done first: it closes only when it has everything, as this side does.
        if closed.code != 0:
            raise
    connection.close(0, "done")


async def _send_stdin(stream: BiStream) -> None:
    source = sys.stdin.fileno()
    mode = os.fstat(source).st_mode
    pollable = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(source)
    while True:
        if pollable:
            # Waiting here rather than in a thread's read leaves nothing behind when cancelled.
            await anyio.wait_readable(source)
        chunk = os.read(source, CHUNK_SIZE)
        if not chunk:
            await stream.send_eof()
            return
        await stream.send(chunk)


async def _receive_to_stdout(stream: BiStream) -> None:
    async for chunk in stream:
        await anyio.to_thread.run_sync(_write_stdout, chunk)


def _write_stdout(chunk: bytes) -> None:
    sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()
