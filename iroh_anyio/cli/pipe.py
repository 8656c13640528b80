"""``iroh-anyio listen`` and ``connect``: stdin and stdout become a pipe between two nodes.

Wire-compatible with dumbpipe: the same ALPN, and the side that opens the stream sends ``hello``
first, because a QUIC stream shows itself to the peer only with its first byte.
Source: dumbpipe 0.39 ``src/lib.rs``.
"""

from __future__ import annotations

import logging

import anyio
import click

from iroh_anyio import BiStream, Connection, ConnectionClosed, EndpointError, MagicEndpoint
from iroh_anyio.cli.common import EndpointSettings, endpoint_options, say
from iroh_anyio.cli.running import run
from iroh_anyio.cli.stdio import StandardInput, StandardOutput
from iroh_proto import DecodeError, DerpUrl, NodeAddr, NodeId
from iroh_proto.ticket import NodeTicket

logger = logging.getLogger("iroh_anyio.cli")

DUMBPIPE_ALPN = b"DUMBPIPEV0"
HELLO = b"hello"

HELLO_WAIT = 10.0
"""Seconds a peer has for its greeting; meanwhile others may come first."""

BROKEN = 1
"""Close code of a pipe whose end was not reached, and of a peer that got none."""

TAKEN = "taken"
"""What a peer is told that came after another one."""


@click.command()
@endpoint_options
@click.option("--recv-only", is_flag=True, help="Send nothing; leave stdin alone.")
def listen(settings: EndpointSettings, recv_only: bool) -> None:
    """Wait for one peer; then stdin and stdout are a pipe to it.

    The ticket that the peer needs is printed on stderr. Without --derp it holds addresses of this
    machine alone, which are of use where they can be reached.
    """
    run(lambda: _listen(settings, recv_only))


@click.command()
@click.argument("peer", metavar="TICKET|NODE_ID")
@endpoint_options
@click.option("--recv-only", is_flag=True, help="Send nothing; leave stdin alone.")
def connect(settings: EndpointSettings, peer: str, recv_only: bool) -> None:
    """Dial a listening peer; then stdin and stdout are a pipe to it.

    A bare node id needs --derp, to say where the peer may be met; most tickets say it themselves.
    """
    addr = parse_peer(peer, settings.derp_urls, no_derp=settings.no_derp)
    run(lambda: _connect(settings, addr, recv_only))


def parse_peer(text: str, derp_urls: tuple[DerpUrl, ...], *, no_derp: bool) -> NodeAddr:
    """Return the address in a ticket or of a node id.

    Where it names no DERP server, the first of those given is taken.

    :raises click.UsageError: if the text is neither, or does not say where the peer is.
    """
    try:
        if text.strip().lower().startswith(("node", "endpoint")):
            addr = NodeTicket.from_str(text).node_addr
        else:
            addr = NodeAddr(NodeId.from_str(text))
    except DecodeError as error:
        raise click.UsageError(f"{text!r} is neither a ticket nor a node id: {error}") from None
    derp_url = addr.derp_url or (derp_urls[0] if derp_urls else None)
    if no_derp:
        derp_url = None
    if derp_url is None and not addr.direct_addresses:
        advice = "a ticket with direct addresses" if no_derp else "--derp URL, or a ticket"
        raise click.UsageError(f"{text!r} does not say where the peer can be met: give {advice}")
    return NodeAddr(addr.node_id, derp_url=derp_url, direct_addresses=addr.direct_addresses)


async def _listen(settings: EndpointSettings, recv_only: bool) -> None:
    door = _Door()
    endpoint = await settings.open(alpns=(DUMBPIPE_ALPN,), accept_filter=lambda _: door.is_open)
    async with endpoint:
        ticket = NodeTicket(await _own_addr(endpoint, settings))
        say("Listening. Connect with one of:")
        say(f"  iroh-anyio connect {ticket}")
        say(f"  dumbpipe connect {ticket.to_endpoint_str()}")
        connection, stream = await door.first_peer(endpoint)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(turn_away, endpoint)
            await _forward(connection, stream, recv_only)
            tasks.cancel_scope.cancel()


async def turn_away(endpoint: MagicEndpoint) -> None:
    """Close the connections of those whose handshake was under way when the door was shut."""
    async for connection in endpoint:
        connection.close(BROKEN, TAKEN)


async def _own_addr(endpoint: MagicEndpoint, settings: EndpointSettings) -> NodeAddr:
    """Return what to put into the ticket, and say what is wrong with it."""
    addr = await endpoint.node_addr()
    if addr.derp_url is not None or not settings.derp_urls:
        return addr
    for url in settings.derp_urls:
        problem = endpoint.derp_problems.get(url, "it does not answer")
        say(f"warning: DERP server {url} cannot be reached, trying on: {problem}")
    return NodeAddr(
        addr.node_id, derp_url=settings.derp_urls[0], direct_addresses=addr.direct_addresses
    )


class _Door:
    """Lets peers in until one of them has greeted."""

    def __init__(self) -> None:
        self.is_open = True
        self._first: tuple[Connection, BiStream] | None = None

    async def first_peer(self, endpoint: MagicEndpoint) -> tuple[Connection, BiStream]:
        """Return the first connection on which a greeting came, and the stream of it."""
        async with anyio.create_task_group() as tasks:
            async for connection in endpoint:
                tasks.start_soon(self._greet, connection, tasks.cancel_scope)
        assert self._first is not None, "an endpoint that is closed leaves no task behind"
        return self._first

    async def _greet(self, connection: Connection, scope: anyio.CancelScope) -> None:
        node_id = connection.remote_node_id
        try:
            with anyio.fail_after(HELLO_WAIT):
                stream = await connection.accept_bi()
                is_greeted = await _receive_hello(stream)
            if is_greeted and self._first is None:
                self._first, self.is_open = (connection, stream), False
                say(f"Connected to {node_id}")
                scope.cancel()
        except (EndpointError, TimeoutError) as error:
            logger.info("node %s did not greet: %s", node_id.fmt_short(), error)
        finally:
            if self._first is None or self._first[0] is not connection:
                connection.close(BROKEN, "invalid handshake" if self.is_open else TAKEN)


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
    """Carry both directions to their ends, and leave only when the peer has everything.

    :raises click.ClickException: if the connection ended before the data did.
    """
    unsent = anyio.CancelScope()
    try:
        async with anyio.create_task_group() as tasks:
            if recv_only:
                await stream.send_eof()
                unsent.cancel()
            else:
                tasks.start_soon(_send_stdin, stream, unsent)
            await _receive_to_stdout(stream)
            with unsent:
                # stdin may say nothing for ever, and only with the next bytes of it would the end
                # of the connection be noticed.
                await connection.wait_closed()
                await stream.send_eof()
        await _wait_delivered(stream)
        connection.close(0, "done")
    except* ConnectionClosed as group:
        closed: BaseException = group
        while isinstance(closed, BaseExceptionGroup):
            closed = closed.exceptions[0]
        raise click.ClickException(f"not all data came through: {closed}") from None
    finally:
        connection.close(BROKEN, "the other end of the pipe broke off")


async def _wait_delivered(stream: BiStream) -> None:
    try:
        await stream.wait_delivered()
    except ConnectionClosed as closed:
        # The peer was done first: it closes only when it has everything, as this side does.
        if not closed.by_peer or closed.code != 0:
            raise


async def _send_stdin(stream: BiStream, unsent: anyio.CancelScope) -> None:
    """Send all of stdin, and cancel what goes on only until then."""
    stdin = StandardInput()
    while chunk := await stdin.read():
        await stream.send(chunk)
    await stream.send_eof()
    unsent.cancel()


async def _receive_to_stdout(stream: BiStream) -> None:
    stdout = StandardOutput()
    async for chunk in stream:
        await stdout.write(chunk)
