"""What guards a DERP server, on real sockets: pauses, limits before TLS, draining."""

from __future__ import annotations

import random
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from iroh_anyio.driver import Driver
from iroh_anyio.listen import TcpAcceptor, listen
from iroh_proto.derp import server_entry
from iroh_proto.derp.frames import Restarting
from iroh_proto.derp.rate import AcceptLimit, RateLimit
from iroh_proto.derp.relay import DerpServer
from iroh_proto.derp.relay_events import AccessRequested, DerpServerEvent
from iroh_proto.key import SecretKey
from tests.anyio.nodes import LIMIT
from tests.soak.clients import Client, Link

pytestmark = pytest.mark.anyio

Contexts = tuple[ssl.SSLContext, ssl.SSLContext]
ALICE, BOB = (SecretKey(bytes([number]) * 32) for number in (1, 2))
SERVER_KEY = SecretKey(bytes(32))
PACKET = b"\xe8\x03" + bytes(1000)


class Served:
    """A server on sockets, and what it did."""

    def __init__(self, context: ssl.SSLContext | None = None, **options: Any) -> None:
        self.machine = DerpServer(secret_key=SERVER_KEY, rng=random.Random(1), **options)
        listeners = listen(["127.0.0.1"], 0)
        self.port: int = listeners[0].getsockname()[1]
        self.acceptor = TcpAcceptor(
            self.machine,
            listeners,
            ssl_context=None if context is None else lambda: context,
            max_connections=100,
        )
        self.driver: Driver[DerpServerEvent] = Driver(self.machine, [self.acceptor], self._on_event)
        self.events: list[DerpServerEvent] = []
        self.allowed = True

    def _on_event(self, event: DerpServerEvent) -> None:
        self.events.append(event)
        if isinstance(event, AccessRequested):
            self.driver.start_soon(self._decide, event.tcp_id)

    async def _decide(self, tcp_id: int) -> None:
        await anyio.sleep(0.05)
        self.machine.complete_access(tcp_id, allowed=self.allowed, now=self.driver.now())
        self.driver.flush()


@asynccontextmanager
async def serving(context: ssl.SSLContext | None = None, **options: Any) -> AsyncIterator[Served]:
    served = Served(context, **options)
    async with anyio.create_task_group() as tasks:
        await tasks.start(served.driver.run)
        yield served
        tasks.cancel_scope.cancel()


async def wait_until(condition: Any) -> None:
    with anyio.fail_after(LIMIT):
        while not condition():  # noqa: ASYNC110 - nothing tells
            await anyio.sleep(0.01)


async def test_a_client_over_its_rate_has_to_wait_and_loses_nothing() -> None:
    rate = 200_000
    async with serving(rate_limit=RateLimit(rate, 20_000)) as served:
        sender = await Client.join(served.port, "v3", ALICE)
        reader = await Client.join(served.port, "v3", BOB)
        frame = sender.peer.packet_to(BOB.public, PACKET)
        count = 300
        started = time.monotonic()
        await sender.send(frame * count)
        with anyio.fail_after(LIMIT):
            await reader.until(lambda: len(reader.peer.frames) >= count)
        assert len(reader.peer.frames) == count
        # The last read may have been of as much as is read at once.
        least = (count * len(frame) - 20_000 - 65_536) / rate
        assert time.monotonic() - started >= least
        assert served.machine.stats.connections.pauses > 0
        sender.close()
        reader.close()


@pytest.mark.parametrize("way", ["v2", "v3", "relay-v2"])
async def test_who_is_asked_for_is_let_in_after_the_answer(way: str) -> None:
    async with serving(asks_access=True) as served:
        client = await Client.join(served.port, way, ALICE)
        assert served.machine.clients == [ALICE.public]
        await client.send_datagrams(ALICE.public, [b"hello"])
        await client.until(lambda: bool(client.peer.datagrams()))
        client.close()
        served.allowed = False
        with pytest.raises((AssertionError, ValueError)):
            await Client.join(served.port, way, BOB)
        assert served.machine.stats.connections.clients_denied == 1


async def test_a_client_that_is_left_unread_and_breaks_off_is_let_go() -> None:
    async with serving(rate_limit=RateLimit(1_000, 1_000)) as served:
        client = await Client.join(served.port, "v3", ALICE)
        await client.send(client.peer.packet_to(BOB.public, bytes(60_000)))
        await wait_until(lambda: served.machine.stats.connections.pauses == 1)
        client.close(abruptly=True)
        await wait_until(lambda: len(served.acceptor) == 0)
        assert served.machine.clients == []


async def test_connections_come_no_faster_than_they_may(tls_contexts: Contexts) -> None:
    for context in (None, tls_contexts[0]):
        async with serving(context, accept_limit=AcceptLimit(0.1, 3)) as served:
            links = [await Link.open(served.port) for _ in range(8)]
            for link in links[3:]:
                assert await link.expect_end(0.0, "one too many") == b""
            stats = served.machine.stats
            assert stats.connections_over_rate == 5
            assert len(served.acceptor) == 3
            for link in links:
                link.close()


async def test_who_never_begins_tls_is_let_go_in_time(
    tls_contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_entry, "REQUEST_TIMEOUT", 0.2)
    async with serving(tls_contexts[0]) as served:
        silent, slow = await Link.open(served.port), await Link.open(served.port)
        await slow.send(b"\x16\x03\x01")
        for link in (silent, slow):
            with anyio.fail_after(LIMIT):
                await link.expect_end(0.2, "who never begins TLS")
            link.close()
        assert served.machine.stats.connections.faults == 2
        assert len(served.acceptor) == 0


async def test_tls_that_fails_is_the_end_of_the_connection(tls_contexts: Contexts) -> None:
    async with serving(tls_contexts[0]) as served:
        link = await Link.open(served.port)
        await link.send(b"GET / HTTP/1.1\r\n\r\n")
        await link.expect_end(0.0, "who speaks no TLS")
        await wait_until(lambda: len(served.acceptor) == 0)
        assert served.machine.stats.connections.faults == 1
        link.close()


async def test_draining_tells_clients_and_ends() -> None:
    async with serving() as served:
        client = await Client.join(served.port, "relay-v2", ALICE)
        served.acceptor.stop_listening()
        served.machine.drain(timeout=0.3, now=served.driver.now())
        served.driver.flush()
        await client.until(lambda: any(isinstance(f, Restarting) for f in client.peer.frames))
        with anyio.fail_after(LIMIT):
            await served.acceptor.wait_empty()
        with pytest.raises(OSError):  # noqa: PT011 - refused, whatever it is called
            socket.create_connection(("127.0.0.1", served.port), 1.0)
        client.close()


async def test_many_connections_take_their_turns() -> None:
    async with serving() as served:
        clients = [
            await Client.join(served.port, "v3", SecretKey(bytes([number]) * 32))
            for number in range(10, 90)
        ]
        first = clients[0]
        for client in clients:
            await client.send_datagrams(first.peer.node_id, [b"hello"] * 3)
        await first.until(lambda: len(first.peer.datagrams()) >= 3 * len(clients))
        assert served.machine.stats.connections.packets_dropped == 0
        for client in clients:
            client.close()
        await wait_until(lambda: len(served.acceptor) == 0)
