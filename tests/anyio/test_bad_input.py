"""Whatever strangers send to real sockets, good peers are served all the while."""

from __future__ import annotations

import logging
import random
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

import anyio
import pytest
from anyio.lowlevel import checkpoint

from iroh_anyio import Connection, Derper, MagicEndpoint, NodeUnreachable
from iroh_anyio.quic.endpoint_machine import EndpointMachine
from iroh_anyio.signals import Signal
from iroh_proto import DerpMap, DerpNode, NodeAddr, SecretKey, UdpAddress
from iroh_proto.stun.message import decode_binding_response, encode_binding_request
from iroh_proto.testing.snapshot import retained_bytes
from tests.anyio.hostile_peers import (
    BEHAVIOURS,
    conversations,
    converse,
    drip,
    hostile_server,
    strange_datagrams,
)
from tests.anyio.nodes import ALPN, addr_of, bind

pytestmark = pytest.mark.anyio

LIMIT = 30.0
PATIENCE = 3.0
"""Seconds that one answer may take on a busy machine while strangers keep it busier."""
SLACK = 256 * 1024
"""Bytes by which caches may grow without anything of strangers being kept."""


class Companions:
    """Two nodes with a stream between them that never rests."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.answers = 0
        self._answered = Signal()

    async def talk(self) -> None:
        stream = await self.connection.open_bi()
        while True:
            message = self.answers.to_bytes(4, "big") * 500
            received = b""
            with anyio.fail_after(PATIENCE):
                await stream.send(message)
                while len(received) < len(message):
                    received += await stream.receive()
            assert received == message
            self.answers += 1
            self._answered.set()
            await anyio.sleep(0.001)

    async def wait_for(self, answers: int) -> None:
        """Wait for so many answers more."""
        wanted = self.answers + answers
        while self.answers < wanted:
            await self._answered.wait()


async def echo(endpoint: MagicEndpoint) -> None:
    async with anyio.create_task_group() as tasks:
        async for connection in endpoint:
            tasks.start_soon(echo_stream, connection)


async def echo_stream(connection: Connection) -> None:
    stream = await connection.accept_bi()
    async for chunk in stream:
        await stream.send(chunk)


@asynccontextmanager
async def companions(
    server: MagicEndpoint, client: MagicEndpoint, addr: NodeAddr
) -> AsyncIterator[Companions]:
    """Have a server and a client talk to each other for as long as the block takes."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(echo, server)
        pair = Companions(await client.connect(addr, alpn=ALPN))
        tasks.start_soon(pair.talk)
        await pair.wait_for(1)
        yield pair
        await pair.wait_for(1)
        tasks.cancel_scope.cancel()


@contextmanager
def no_complaints(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Check that nothing went wrong enough to be told to the owner of the process."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        yield
    assert [record.getMessage() for record in caplog.records] == []


def first_packet(target: MagicEndpoint) -> bytes:
    """Return the first packet of a client that dials a node."""
    client = EndpointMachine(
        secret_key=SecretKey.generate(), rng=random.SystemRandom(), unix_time=1.7e9
    )
    client.start([UdpAddress("127.0.0.1", 1)], now=0.0)
    client.connect(addr_of(target), alpn=ALPN, now=0.0)
    datagrams = [data for transmit in client.datagrams_to_send() for data in transmit.datagrams]
    return next(data for data in datagrams if len(data) >= 1200)


async def shower(targets: list[UdpAddress], datagrams: list[bytes]) -> None:
    """Send datagrams to each of some addresses, from a few sockets in turn."""
    strangers = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(4)]
    try:
        for index, datagram in enumerate(datagrams):
            for target in targets:
                strangers[index % 4].sendto(datagram, target)
            await (anyio.sleep(0.001) if index % 20 == 0 else checkpoint())
    finally:
        for stranger in strangers:
            stranger.close()


# Datagrams


async def test_any_datagrams_to_any_udp_socket_harm_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rng = random.Random(1)
    with no_complaints(caplog), anyio.fail_after(LIMIT):
        async with await Derper.bind(port=0, stun_port=0) as derper:
            assert derper.stun_port is not None
            derp_map = DerpMap([DerpNode(derper.url, stun_port=derper.stun_port)])
            stun = UdpAddress("127.0.0.1", derper.stun_port)
            async with (
                await bind(alpns=[ALPN], derp_map=derp_map) as server,
                await bind(derp_map=derp_map) as client,
                companions(server, client, addr_of(server)) as pair,
            ):
                targets = [*server.bound_addresses, *client.bound_addresses, stun]
                datagrams = strange_datagrams(server.node_id, first_packet(server), 1500, rng)
                await shower(targets, datagrams[:500])
                before = [retained_bytes(node.machine) for node in (server, client)]
                await shower(targets, datagrams[500:])
                await pair.wait_for(5)
                for node, size in zip((server, client), before, strict=True):
                    stats = node.machine.magicsock.stats
                    assert stats.malformed > 100
                    assert stats.stun.malformed + stats.stun.unmatched > 20
                    assert stats.paths.disco.bad_envelope + stats.paths.disco.bad_key > 20
                    assert node.machine.stats.dropped_malformed > 50
                    assert node.machine.stats.dropped_unknown > 50
                    assert node.machine.stats.quic_failures == 0
                    assert retained_bytes(node.machine) < size + SLACK
                    assert node.udp_stats[0].receive_errors == 0
                assert client.machine.stats.refused > 0
                assert derper.stun_stats.bad_requests > 500
                await answers_stun(stun)
                assert pair.connection.path.kind == "direct"
                late = await client.connect(addr_of(server), alpn=ALPN)
                assert late.remote_node_id == server.node_id


async def answers_stun(server: UdpAddress) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind(("127.0.0.1", 0))
        client.setblocking(False)
        client.sendto(encode_binding_request(bytes(12)), server)
        with anyio.fail_after(PATIENCE):
            await anyio.wait_readable(client)
        transaction_id, address = decode_binding_response(client.recv(2000))
        assert (transaction_id, address) == (bytes(12), UdpAddress(*client.getsockname()))


# Connections to a DERP server


@pytest.mark.parametrize("ending", ["reset", "half", "stay"])
async def test_any_bytes_at_any_stage_to_a_derper_harm_nobody(
    ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(ending)
    talks = conversations(rng)
    with no_complaints(caplog), anyio.fail_after(LIMIT):
        async with await Derper.bind(port=0, stun_port=None) as derper, pair_at(derper) as pair:
            before = retained_bytes(derper.machine)
            async with anyio.create_task_group() as strangers:
                for talk in talks:
                    strangers.start_soon(converse, derper.port, talk, ending)
                await anyio.sleep(0.05)
                await pair.wait_for(3)
            await wait_until(lambda: derper.connections == 2)
            stats = derper.machine.stats
            assert stats.connections_accepted >= len(talks)
            assert stats.connections.faults > len(talks) // 3
            assert stats.connections.requests_answered > 5
            assert len(derper.machine.clients) == 2
            assert retained_bytes(derper.machine) < before + SLACK


async def test_slow_and_silent_clients_of_a_derper_harm_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with no_complaints(caplog), anyio.fail_after(LIMIT):
        async with await Derper.bind(port=0, stun_port=None) as derper, pair_at(derper) as pair:
            async with anyio.create_task_group() as strangers:
                for _ in range(40):
                    request = b"GET /relay HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 100
                    strangers.start_soon(drip, derper.port, request, 0.01)
                for _ in range(40):
                    strangers.start_soon(converse, derper.port, [], "stay")
                await wait_until(lambda: derper.connections >= 60)
                await pair.wait_for(20)
                async with await anyio.connect_tcp("127.0.0.1", derper.port) as stream:
                    await stream.send(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
                    assert (await stream.receive()).startswith(b"HTTP/1.1 200")
                strangers.cancel_scope.cancel()
            await wait_until(lambda: derper.connections == 2)


async def test_any_bytes_to_a_derper_behind_tls_harm_nobody(
    tls_contexts: tuple[ssl.SSLContext, ssl.SSLContext], caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(3)
    hello = client_hello()
    talks = [
        [rng.randbytes(500)],
        [b"GET / HTTP/1.1\r\n\r\n"],
        [hello[:100]],
        [hello, rng.randbytes(500)],
        [hello[:50] + rng.randbytes(400)],
        [hello + hello],
        [],
    ]
    with no_complaints(caplog), anyio.fail_after(LIMIT):
        async with await Derper.bind(port=0, stun_port=None, ssl_context=tls_contexts[0]) as derper:
            async with anyio.create_task_group() as strangers:
                for talk in talks:
                    for ending in ("reset", "half", "stay"):
                        strangers.start_soon(converse, derper.port, talk, ending)
                stream = await anyio.connect_tcp(
                    *("127.0.0.1", derper.port),
                    ssl_context=tls_contexts[1],
                    tls_hostname="localhost",
                )
                async with stream:
                    await stream.send(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
                    assert (await stream.receive()).startswith(b"HTTP/1.1 200")
            await wait_until(lambda: derper.connections == 0)


def client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


@asynccontextmanager
async def pair_at(derper: Derper) -> AsyncIterator[Companions]:
    """Have two nodes talk that meet at a DERP server alone: one has IPv4, the other IPv6."""
    derp_map = DerpMap([DerpNode(derper.url, stun_port=None)])
    async with (
        await bind(alpns=[ALPN], derp_map=derp_map) as server,
        await bind(derp_map=derp_map, bind_addrs=["[::1]:0"]) as client,
        companions(server, client, NodeAddr(server.node_id, derp_url=derper.url)) as pair,
    ):
        yield pair
        assert pair.connection.path.kind == "derp"


async def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - nothing tells of it
        await anyio.sleep(0.01)


# Hostile DERP servers


async def test_hostile_derpers_of_every_kind_harm_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with no_complaints(caplog), anyio.fail_after(LIMIT):
        async with await Derper.bind(port=0, stun_port=None) as derper, AsyncExitStack() as stack:
            hostile = [
                await stack.enter_async_context(hostile_server(name, random.Random(name)))
                for name in BEHAVIOURS
            ]
            nodes = [DerpNode(derper.url, stun_port=None)]
            nodes += [DerpNode(server.url, stun_port=None) for server in hostile]
            settings = {"derp_map": DerpMap(nodes)}
            async with (
                await bind(alpns=[ALPN], **settings) as server,
                await bind(bind_addrs=["[::1]:0"], **settings) as client,
                companions(server, client, NodeAddr(server.node_id, derp_url=derper.url)) as pair,
            ):
                async with anyio.create_task_group() as tasks:
                    for other in hostile:
                        tasks.start_soon(dial_in_vain, client, other.url)
                    await pair.wait_for(5)
                for other in hostile:
                    assert 1 <= other.met < 30, other.name  # each failure doubles the pause
                assert client.home_derp is not None
                assert str(client.home_derp) == f"{derper.url}/"
                stats = client.machine.magicsock.stats.derp
                assert stats.dials_failed >= 3
                assert stats.clients.payloads_dropped == 0
                assert retained_bytes(client.machine) < 4 * 1024 * 1024
                assert pair.connection.path.kind == "derp"


async def dial_in_vain(client: MagicEndpoint, url: str) -> None:
    addr = NodeAddr(SecretKey.generate().public, derp_url=url)
    with pytest.raises(NodeUnreachable):
        await client.connect(addr, alpn=ALPN, timeout=1.5)


@pytest.mark.parametrize("behaviour", ["wrong upgrade", "silence"])
async def test_a_node_finds_a_home_behind_a_hostile_one(
    behaviour: str, caplog: pytest.LogCaptureFixture
) -> None:
    with no_complaints(caplog), anyio.fail_after(LIMIT):
        async with (
            hostile_server(behaviour, random.Random(1)) as hostile,
            await Derper.bind(port=0, stun_port=None) as derper,
        ):
            nodes = [DerpNode(url, stun_port=None) for url in (hostile.url, derper.url)]
            async with (
                await bind(derp_map=DerpMap(nodes)) as endpoint,
                await bind(
                    derp_map=DerpMap([nodes[1]]), bind_addrs=["[::1]:0"], alpns=[ALPN]
                ) as server,
                companions(server, endpoint, NodeAddr(server.node_id, derp_url=derper.url)),
            ):
                await wait_until(lambda: str(endpoint.home_derp) == f"{derper.url}/")
