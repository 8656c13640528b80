"""TCP and TLS for machines, on real loopback sockets, on both backends."""

from __future__ import annotations

import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from typing import cast

import anyio
import pytest

from iroh_anyio import tcp
from iroh_anyio.dial import secure
from iroh_anyio.driver import Driver
from iroh_anyio.tcp import TcpDialer, TcpPort
from iroh_proto.machine import TcpCloseRequested, TcpRequested

pytestmark = pytest.mark.anyio

Event = TcpRequested | TcpCloseRequested | str
CHUNK = 100_000


class Carried:
    """A machine with TCP connections: notes what arrives, sends what it is told to."""

    def __init__(self) -> None:
        self.events: deque[Event] = deque()
        self.received: dict[int, bytearray] = {}
        self.ended: list[int] = []
        self.completed: dict[int, str | None] = {}
        self.out: dict[int, bytearray] = {}
        self.echo = False

    def request(self, tcp_id: int, host: str, port: int, *, tls: bool = False) -> None:
        self.events.append(TcpRequested(tcp_id=tcp_id, host=host, port=port, tls=tls))

    def request_close(self, tcp_id: int) -> None:
        self.events.append(TcpCloseRequested(tcp_id=tcp_id))

    def send(self, tcp_id: int, data: bytes) -> None:
        self.out.setdefault(tcp_id, bytearray()).extend(data)

    def complete_tcp(self, tcp_id: int, *, error: str | None = None, now: float) -> None:
        assert tcp_id not in self.completed
        self.completed[tcp_id] = error
        self.events.append("completed")

    def receive_tcp_data(self, tcp_id: int, data: bytes, *, now: float) -> None:
        assert tcp_id not in self.ended
        self.received.setdefault(tcp_id, bytearray()).extend(data)
        if self.echo:
            self.send(tcp_id, data)
        self.events.append("received")

    def receive_tcp_eof(self, tcp_id: int, *, now: float) -> None:
        assert tcp_id not in self.ended
        self.ended.append(tcp_id)
        self.events.append("ended")

    def tcp_to_send(self) -> list[int]:
        return [tcp_id for tcp_id, data in self.out.items() if data]

    def tcp_data_to_send(self, tcp_id: int) -> bytes:
        buffer = self.out.get(tcp_id, bytearray())
        data = bytes(buffer[:CHUNK])
        del buffer[:CHUNK]
        return data

    def handle_timer(self, *, now: float) -> None:
        raise AssertionError("it has no deadlines")

    def get_timer(self) -> float | None:
        return None

    def next_event(self) -> Event | None:
        return self.events.popleft() if self.events else None


class Host:
    """A carried machine that runs."""

    def __init__(
        self,
        context: ssl.SSLContext | None = None,
        write_timeout: float = 5.0,
        contexts: list[ssl.SSLContext] | None = None,
    ) -> None:
        self.machine = Carried()
        self.port: TcpPort = TcpDialer(
            self.machine,
            ssl_context=lambda: (
                contexts.pop() if contexts else context or ssl.create_default_context()
            ),
            write_timeout=write_timeout,
        )
        self.driver: Driver[Event] = Driver(self.machine, [self.port], self._on_event)
        self._changed = anyio.Event()

    def _on_event(self, event: Event) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def wait_completed(self, tcp_id: int) -> str | None:
        with anyio.fail_after(5):
            while tcp_id not in self.machine.completed:
                await self._changed.wait()
        return self.machine.completed[tcp_id]

    async def wait_received(self, tcp_id: int, count: int) -> bytes:
        with anyio.fail_after(10):
            while len(self.machine.received.get(tcp_id, b"")) < count:
                await self._changed.wait()
        return bytes(self.machine.received[tcp_id])

    async def wait_ended(self, tcp_id: int) -> None:
        with anyio.fail_after(5):
            while tcp_id not in self.machine.ended:
                await self._changed.wait()

    async def wait_gone(self) -> None:
        with anyio.fail_after(5):
            await self.port.wait_empty()


@asynccontextmanager
async def running(*hosts: Host) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        for host in hosts:
            await tasks.start(host.driver.run)
        yield
        tasks.cancel_scope.cancel()


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def tls(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


Contexts = tuple[ssl.SSLContext, ssl.SSLContext]


@contextmanager
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


async def accept(listener: socket.socket) -> socket.socket:
    with anyio.fail_after(5):
        await anyio.wait_readable(listener)
    accepted, _ = listener.accept()
    accepted.setblocking(False)
    return accepted


@asynccontextmanager
async def dialled(host: Host, tls: bool, contexts: Contexts) -> AsyncIterator[socket.socket]:
    """Run a host with connection 1, whose other end is yielded."""
    with listening() as listener:
        async with running(host):
            host.machine.request(1, "localhost", listener.getsockname()[1], tls=tls)
            host.driver.flush()
            peer = await accept(listener)
            if tls:
                peer = await secure(peer, contexts[0])
            with peer:
                assert await host.wait_completed(1) is None
                yield peer


@asynccontextmanager
async def connected(tls: bool, contexts: Contexts) -> AsyncIterator[tuple[Host, Host]]:
    """Two running hosts joined by connection 1 of the first, which is 7 of the second."""
    left, right = Host(contexts[1]), Host()
    async with dialled(left, tls, contexts) as peer, running(right):
        right.port.adopt(7, peer)
        yield left, right


async def test_bytes_go_both_ways(tls: bool, tls_contexts: Contexts) -> None:
    async with connected(tls, tls_contexts) as (left, right):
        right.machine.echo = True
        left.machine.send(1, b"hello")
        left.driver.flush()
        assert await left.wait_received(1, 5) == b"hello"
        assert right.machine.received[7] == b"hello"


async def test_much_at_once_arrives_whole_and_in_order(tls: bool, tls_contexts: Contexts) -> None:
    data = bytes(range(251)) * 80_000
    async with connected(tls, tls_contexts) as (left, right):
        right.machine.echo = True
        left.machine.send(1, data)
        left.driver.flush()
        assert await left.wait_received(1, len(data)) == data


async def test_what_the_kernel_takes_a_part_of_arrives_whole_though_nothing_follows(
    tls: bool, tls_contexts: Contexts
) -> None:
    left, right = Host(tls_contexts[1]), Host()
    async with dialled(left, tls, tls_contexts) as peer, running(right):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        right.port.adopt(7, peer)
        data = bytes(range(250)) * (CHUNK // 250)  # all that it has, given away at a time
        right.machine.send(7, data)
        right.driver.flush()
        assert await left.wait_received(1, len(data)) == data


async def test_a_machine_is_asked_for_bytes_only_while_the_peer_takes_them(
    tls: bool, tls_contexts: Contexts
) -> None:
    left = Host(tls_contexts[1])
    total = 40_000_000
    async with dialled(left, tls, tls_contexts) as peer:
        left.machine.send(1, bytes(total))
        left.driver.flush()
        await anyio.sleep(0.05)
        for _ in range(3):
            left.driver.flush()
        assert len(left.machine.out[1]) > 10_000_000
        with anyio.fail_after(20):
            while total:
                try:
                    total -= len(peer.recv(1 << 20))
                except (BlockingIOError, ssl.SSLWantReadError):
                    await anyio.wait_readable(peer)
        assert left.machine.tcp_to_send() == []


async def test_the_end_of_a_connection_is_told_once(tls: bool, tls_contexts: Contexts) -> None:
    async with connected(tls, tls_contexts) as (left, right):
        right.machine.request_close(7)
        right.driver.flush()
        await left.wait_ended(1)
        await left.wait_gone()
        await right.wait_gone()
        left.machine.send(1, b"too late")
        left.driver.flush()
        assert left.machine.ended == [1]
        assert right.machine.ended == []
        assert left.machine.tcp_to_send() == []


async def test_closing_sends_the_last_bytes_even_over_unread_ones(
    tls: bool, tls_contexts: Contexts
) -> None:
    last = bytes(3_000_000)
    async with connected(tls, tls_contexts) as (left, right):
        left.machine.send(1, b"x" * 200_000)
        left.driver.flush()
        right.machine.send(7, last)
        right.machine.request_close(7)
        right.driver.flush()
        assert await left.wait_received(1, len(last)) == last
        await left.wait_ended(1)
        await left.wait_gone()
        await right.wait_gone()


@pytest.mark.parametrize("unsent", [0, 40_000_000])
async def test_closing_does_not_wait_for_ever_for_the_peer(
    tls: bool, tls_contexts: Contexts, unsent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp, "CLOSE_TIMEOUT", 0.05)
    left = Host(tls_contexts[1])
    async with dialled(left, tls, tls_contexts):
        left.machine.send(1, bytes(unsent))
        left.machine.request_close(1)
        left.driver.flush()
        assert len(left.port) == 1
        await left.wait_gone()
        assert left.machine.ended == []


async def test_a_peer_that_takes_nothing_is_given_up(tls: bool, tls_contexts: Contexts) -> None:
    left = Host(tls_contexts[1], write_timeout=0.05)
    async with dialled(left, tls, tls_contexts):
        left.machine.send(1, bytes(40_000_000))
        left.driver.flush()
        await left.wait_ended(1)
        assert len(left.port) == 0


async def test_a_connection_that_breaks_is_told_as_its_end(
    tls: bool, tls_contexts: Contexts
) -> None:
    left = Host(tls_contexts[1])
    async with dialled(left, tls, tls_contexts) as peer:
        left.machine.send(1, b"unread")
        left.driver.flush()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.close()
        await left.wait_ended(1)
        await left.wait_gone()


async def test_a_refused_connection_is_an_answer() -> None:
    host = Host()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with running(host):
        host.machine.request(1, "localhost", port)
        host.driver.flush()
        assert "refused" in str(await host.wait_completed(1))


async def test_a_name_that_does_not_exist_is_an_answer() -> None:
    host = Host()
    async with running(host):
        host.machine.request(1, "no-such-name.invalid", 1)
        host.driver.flush()
        assert await host.wait_completed(1) == "the name no-such-name.invalid has no address"


async def test_a_certificate_nobody_vouches_for_is_refused(tls_contexts: Contexts) -> None:
    host = Host(ssl.create_default_context())
    with listening() as listener:
        async with running(host):
            host.machine.request(1, "127.0.0.1", listener.getsockname()[1], tls=True)
            host.driver.flush()
            accepted = await accept(listener)
            with pytest.raises(ssl.SSLError):
                await secure(accepted, tls_contexts[0])
            assert "certificate" in str(await host.wait_completed(1))


async def test_authorities_are_read_again_after_a_certificate_was_refused(
    tls_contexts: Contexts,
) -> None:
    """What could not be read, as for want of descriptors, is not missing for ever."""
    contexts = [tls_contexts[1], ssl.create_default_context()]
    host = Host(contexts=contexts)
    with listening() as listener, ExitStack() as stack:
        async with running(host):
            for tcp_id in (1, 2):
                host.machine.request(tcp_id, "localhost", listener.getsockname()[1], tls=True)
                host.driver.flush()
                with suppress(ssl.SSLError):
                    stack.enter_context(await secure(await accept(listener), tls_contexts[0]))
            assert "certificate" in str(await host.wait_completed(1))
            assert await host.wait_completed(2) is None
    assert contexts == []


async def test_a_name_that_tls_knows_none_by_is_an_answer(tls_contexts: Contexts) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        with pytest.raises(OSError, match=r"\.example is no name for TLS"):
            await secure(ours, tls_contexts[1], server_name=".example")
        assert ours.fileno() == -1


async def test_a_withdrawn_request_is_not_answered(tls_contexts: Contexts) -> None:
    host = Host(tls_contexts[1])
    with listening() as listener:
        async with running(host):
            host.machine.request(1, "127.0.0.1", listener.getsockname()[1], tls=True)
            host.driver.flush()
            with await accept(listener) as accepted, anyio.fail_after(5):
                await anyio.wait_readable(accepted)
                assert accepted.recv(65536).startswith(b"\x16\x03")  # a TLS handshake
                host.machine.request_close(1)
                host.driver.flush()
                await anyio.wait_readable(accepted)
                assert accepted.recv(1) == b""
            assert host.machine.completed == {}


async def test_the_second_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(host: str) -> list[str]:
        # The first refuses, because only 127.0.0.1 listens.
        return ["::1", "127.0.0.1"]

    monkeypatch.setattr("iroh_anyio.dial.resolve", resolve)
    host = Host()
    with listening() as listener:
        async with running(host):
            host.machine.request(1, "two.example", listener.getsockname()[1])
            host.driver.flush()
            assert await host.wait_completed(1) is None
            (await accept(listener)).close()


async def test_ending_closes_connections(tls: bool, tls_contexts: Contexts) -> None:
    left = Host(tls_contexts[1])
    with listening() as listener:
        async with running(left):
            left.machine.request(1, "127.0.0.1", listener.getsockname()[1], tls=tls)
            left.driver.flush()
            peer = await accept(listener)
            if tls:
                peer = await secure(peer, tls_contexts[0])
            await left.wait_completed(1)
    with peer, anyio.fail_after(5):
        await anyio.wait_readable(peer)
        assert peer.recv(1) == b""


class Turned:
    """A socket as TLS may make it: it wants to read before it writes, and the other way round."""

    def __init__(self, real: socket.socket, turns: int) -> None:
        self.real = real
        self.turns_to_send = self.turns_to_receive = turns

    def send(self, data: bytes) -> int:
        if self.turns_to_send:
            self.turns_to_send -= 1
            raise ssl.SSLWantReadError
        return self.real.send(data)

    def recv(self, size: int) -> bytes:
        if self.turns_to_receive:
            self.turns_to_receive -= 1
            raise ssl.SSLWantWriteError
        return self.real.recv(size)

    def setsockopt(self, *args: int) -> None:
        self.real.setsockopt(*args)

    def shutdown(self, how: int) -> None:
        self.real.shutdown(how)

    def fileno(self) -> int:
        return self.real.fileno()

    def close(self) -> None:
        self.real.close()


async def test_tls_that_has_to_turn_round_loses_nothing() -> None:
    # OpenSSL does so when a peer changes its keys, which Python gives no way to have it do.
    near, far = socket.socketpair()
    for end in (near, far):
        end.setblocking(False)
    host = Host()
    async with running(host):
        host.port.adopt(1, cast(socket.socket, Turned(near, 3)))
        for number in range(5):
            host.machine.send(1, bytes([number]) * 10)
            host.driver.flush()
            far.send(bytes([number]) * 7)
            await host.wait_received(1, 7 * (number + 1))
        with far, anyio.fail_after(5):
            received = b""
            while len(received) < 50:
                await anyio.wait_readable(far)
                received += far.recv(100)
        assert received == b"".join(bytes([number]) * 10 for number in range(5))
        await host.wait_ended(1)
