"""The DERP server on real sockets, on both backends."""

from __future__ import annotations

import contextlib
import logging
import resource
import socket
import ssl
from collections.abc import Iterator

import anyio
import pytest
from anyio.abc import ByteStream

from iroh_anyio import listen
from iroh_anyio.derper import Derper
from iroh_anyio.udp import UdpSocket
from iroh_proto import UdpAddress
from iroh_proto.stun.message import decode_binding_response, encode_binding_request

pytestmark = pytest.mark.anyio

Contexts = tuple[ssl.SSLContext, ssl.SSLContext]
LOCALHOST = UdpAddress("127.0.0.1", 0)


async def bind(**settings: object) -> Derper:
    return await Derper.bind(port=0, **{"stun_port": 0, **settings})  # type: ignore[arg-type]


async def fetch(stream: ByteStream, path: str, *, close: bool = True) -> bytes:
    """Return the response to a request, whose body is nothing we want to know."""
    end = "close" if close else "keep-alive"
    await stream.send(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: {end}\r\n\r\n".encode())
    with anyio.fail_after(5):
        return await stream.receive()


async def read_to_end(stream: ByteStream) -> None:
    with anyio.fail_after(5):
        try:
            while True:
                await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            pass


async def test_it_answers_http_requests_and_stun() -> None:
    async with await bind() as derper:
        assert derper.url == f"http://127.0.0.1:{derper.port}"
        async with await anyio.connect_tcp("127.0.0.1", derper.port) as stream:
            assert (await fetch(stream, "/ping")).startswith(b"HTTP/1.1 200")
        async with await anyio.connect_tcp("127.0.0.1", derper.port) as stream:
            assert (await fetch(stream, "/no/such/page")).startswith(b"HTTP/1.1 404")
        assert derper.stun_port is not None
        assert await ask_stun(UdpAddress("127.0.0.1", derper.stun_port))


async def ask_stun(server: UdpAddress) -> bool:
    client = UdpSocket(LOCALHOST)
    try:
        transaction_id = bytes(range(12))
        client.send(server, [encode_binding_request(transaction_id)])
        with anyio.fail_after(5):
            await client.wait_readable()
        [(source, [response])] = client.receive()
        assert source == server
        assert decode_binding_response(response) == (transaction_id, client.local_address)
        return True
    finally:
        client.close()


async def test_it_serves_tls(tls_contexts: Contexts) -> None:
    async with await bind(ssl_context=tls_contexts[0]) as derper:
        assert derper.url.startswith("https://")
        stream = await anyio.connect_tcp(
            "127.0.0.1", derper.port, ssl_context=tls_contexts[1], tls_hostname="localhost"
        )
        async with stream:
            assert (await fetch(stream, "/ping")).startswith(b"HTTP/1.1 200")


async def test_a_client_that_fails_tls_harms_nobody(tls_contexts: Contexts) -> None:
    async with await bind(ssl_context=tls_contexts[0]) as derper:
        async with await anyio.connect_tcp("127.0.0.1", derper.port) as plain:
            await plain.send(b"GET / HTTP/1.1\r\n\r\n")
            await read_to_end(plain)
        stream = await anyio.connect_tcp(
            "127.0.0.1", derper.port, ssl_context=tls_contexts[1], tls_hostname="localhost"
        )
        async with stream:
            assert (await fetch(stream, "/ping")).startswith(b"HTTP/1.1 200")


async def test_a_taken_stun_port_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    taken = UdpSocket(LOCALHOST)
    try:
        with caplog.at_level(logging.WARNING, "iroh_anyio.derper"):
            async with await bind(stun_port=taken.local_address.port) as derper:
                assert derper.stun_port is None
                async with await anyio.connect_tcp("127.0.0.1", derper.port) as stream:
                    assert b" 200 " in await fetch(stream, "/ping")
        assert f"UDP port {taken.local_address.port} is taken" in caplog.text
    finally:
        taken.close()


async def test_it_can_do_without_stun() -> None:
    async with await bind(stun_port=None) as derper:
        assert derper.stun_port is None


async def test_a_taken_tcp_port_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot bind 127.0.0.1 TCP port {port}"):
            await Derper.bind(port=port, stun_port=None)


async def test_every_address_of_both_ip_versions_is_served() -> None:
    async with await bind(host="::") as derper:
        for ip in ("127.0.0.1", "::1"):
            async with await anyio.connect_tcp(ip, derper.port) as stream:
                assert b" 200 " in await fetch(stream, "/ping")
            assert derper.stun_port is not None
            if ip == "127.0.0.1":
                assert await ask_stun(UdpAddress(ip, derper.stun_port))


async def test_connections_beyond_the_limit_are_turned_away() -> None:
    async with await bind(max_connections=2) as derper:
        first = await anyio.connect_tcp("127.0.0.1", derper.port)
        second = await anyio.connect_tcp("127.0.0.1", derper.port)
        third = await anyio.connect_tcp("127.0.0.1", derper.port)
        async with first, second, third:
            await read_to_end(third)
            assert derper.refused == 1
            assert derper.connections == 2
            assert b" 200 " in await fetch(first, "/ping")


async def test_leaving_closes_connections_and_frees_the_port() -> None:
    async with await bind() as derper:
        stream = await anyio.connect_tcp("127.0.0.1", derper.port)
        assert b" 200 " in await fetch(stream, "/ping", close=False)
    async with stream:
        await read_to_end(stream)
    async with await Derper.bind(port=derper.port, stun_port=derper.stun_port):
        pass


async def test_it_can_be_closed_without_being_entered() -> None:
    derper = await bind()
    await derper.close()
    await derper.close()
    with pytest.raises(RuntimeError):
        await derper.__aenter__()


class Mine(Exception):
    pass


async def test_an_exception_leaves_the_block_as_itself() -> None:
    with pytest.raises(Mine):
        async with await bind():
            raise Mine


async def test_cancellation_leaves_the_block_as_itself() -> None:
    with anyio.move_on_after(0.02) as scope:
        async with await bind():
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    with pytest.raises(TimeoutError), anyio.fail_after(0.02):
        async with await bind():
            await anyio.sleep_forever()
    async with anyio.create_task_group() as tasks, await bind():
        tasks.cancel_scope.cancel()
        await anyio.sleep_forever()


async def test_an_exception_while_being_cancelled_leaves_the_block_as_itself() -> None:
    async def main(scope: anyio.CancelScope) -> None:
        async with await bind():
            scope.cancel()
            raise Mine

    with anyio.CancelScope() as scope, pytest.raises(Mine):
        await main(scope)


async def test_garbage_is_answered_or_closed() -> None:
    async with await bind() as derper:
        for garbage in (b"\0" * 100, b"\r\n" * 50_000, b"GET /derp HTTP/1.1\r\n\r\n", b"\xff" * 9):
            async with await anyio.connect_tcp("127.0.0.1", derper.port) as stream:
                await stream.send(garbage)
                await stream.send_eof()
                await read_to_end(stream)
        async with await anyio.connect_tcp("127.0.0.1", derper.port) as stream:
            assert b" 200 " in await fetch(stream, "/ping")


async def test_a_process_out_of_descriptors_goes_on_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listen, "ACCEPT_PAUSE", 0.01)
    async with await bind() as derper:
        with spare_descriptors(2), caplog.at_level(logging.WARNING, "iroh_anyio.listen"):
            clients = [socket.socket(), socket.socket()]
            for client in clients:
                client.connect(("127.0.0.1", derper.port))
            await anyio.sleep(0.05)
            assert "cannot accept for now" in caplog.text
            for client in clients:
                client.close()
        async with await anyio.connect_tcp("127.0.0.1", derper.port) as stream:
            assert b" 200 " in await fetch(stream, "/ping")


async def test_strangers_make_room_before_descriptors_run_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("iroh_anyio.derper.server.descriptor_limit", lambda: 8)
    async with await bind() as derper, contextlib.AsyncExitStack() as stack:
        for _ in range(6):
            await stack.enter_async_context(await anyio.connect_tcp("127.0.0.1", derper.port))
        async with await anyio.connect_tcp("127.0.0.1", derper.port) as stream:
            assert b" 200 " in await fetch(stream, "/ping")
        assert derper.machine.stats.strangers_displaced == 3


@contextlib.contextmanager
def spare_descriptors(count: int) -> Iterator[None]:
    """Leave the process so many file descriptors and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = socket.socket()
    highest = probe.fileno()
    taken = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 40, hard))
        with contextlib.suppress(OSError):
            while True:
                taken.append(socket.socket())
        for spare in taken[-count:]:
            spare.close()
        yield
    finally:
        for sock in (probe, *taken):
            sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
