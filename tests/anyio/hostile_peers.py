"""Clients and servers on real sockets that do what none should."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import anyio
from anyio.abc import SocketAttribute, SocketStream

from iroh_proto.address import DerpUrl
from iroh_proto.box import SharedBox
from iroh_proto.derp.client import DerpClient
from iroh_proto.disco.message import Ping, seal_envelope
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.stun.message import encode_binding_request
from tests.proto.hostile_bytes import bend, golden_bytes, initials, noise

GOLDEN = golden_bytes()

FRAMED_REQUEST = b"GET /relay HTTP/1.1\r\nHost: x\r\nUpgrade: iroh derp http\r\n\r\n"
OLD_REQUEST = b"GET /derp HTTP/1.1\r\nUpgrade: iroh derp http\r\n\r\n"
WEBSOCKET_REQUEST = (
    b"GET /relay HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: iroh derp http\r\nConnection: upgrade\r\n\r\n"
)
FRAME = struct.Struct(">BI")


def strange_datagrams(
    target: NodeId, first_packet: bytes, count: int, rng: random.Random
) -> list[bytes]:
    """Return datagrams of every protocol that an endpoint speaks, most of them bent."""
    datagrams = list(initials(first_packet, rng))
    while len(datagrams) < count:
        sender = SecretKey.generate(rng)
        ping = seal_envelope(
            Ping(rng.randbytes(12), sender.public).encode(),
            sender=sender.public,
            box=SharedBox(sender, target),
            nonce=rng.randbytes(24),
        )
        datagrams += [
            noise(rng),
            bend(first_packet, rng),
            bend(rng.choice(GOLDEN), rng),
            bend(ping, rng),
            bend(encode_binding_request(rng.randbytes(12)), rng),
            rng.choice(GOLDEN),
        ]
    return [datagram[:9000] for datagram in datagrams]


def frames(rng: random.Random, count: int) -> bytes:
    """Return frames of every kind with bodies that mostly do not fit."""
    parts = []
    for _ in range(count):
        number = rng.choice((*range(17), 255))
        body = rng.choice(
            (
                rng.randbytes(rng.randrange(80)),
                bytes(SecretKey.generate(rng).public) + bend(rng.choice(GOLDEN), rng)[:2000],
                b"",
            )
        )
        parts.append(FRAME.pack(number, len(body)) + body)
    return b"".join(parts)


def admitted(rng: random.Random) -> bytes:
    """Return what an honest v3 client sends behind its upgrade: proof of a key of its own."""
    client = DerpClient(
        url=DerpUrl.from_str("http://127.0.0.1"),
        secret_key=SecretKey.generate(rng),
        rng=rng,
        dialect="v3",
    )
    client.start(now=0.0)
    client.data_to_send()
    client.receive_data(SWITCHED, now=0.0)
    return client.data_to_send()


def conversations(rng: random.Random) -> list[list[bytes]]:
    """Return what hostile clients say to a DERP server, in pieces, one for each stage."""
    huge = FRAME.pack(4, 0xFFFFFFFF) + bytes(70_000)
    garbage = [
        rng.randbytes(3000),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(500),  # TLS
        bytes(5000),
        b"\r\n" * 20_000,
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 10_000,
        b"GET /" + b"a" * 40_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /relay HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n" + bytes(9000),
        b"GET /relay HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n",
        b"GET /relay HTTP/1.1\r\nHost: x\r\nUpgrade: \xff\xfe\r\n\r\n",
        b"GET /relay HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\r\n",
        b"GET \x00 HTTP/1.1\r\n\r\n",
    ]
    talks = [[data] for data in garbage]
    for request in (FRAMED_REQUEST, OLD_REQUEST, WEBSOCKET_REQUEST):
        talks += [
            [request[:20], rng.randbytes(200)],
            [request, rng.randbytes(40_000)],
            [request, huge],
            [request, FRAME.pack(2, 106) + rng.randbytes(106)],
            [request, frames(rng, 40)],
            [request, FRAME.pack(2, 106) + rng.randbytes(50)],
            [request + rng.randbytes(100)],
        ]
    for ending in (
        huge,
        frames(rng, 200),
        rng.randbytes(50_000),
        FRAME.pack(4, 1200) + bytes(600),
        FRAME.pack(12, 8) + bytes(8) + b"\x0c\x00\x00",
        (FRAME.pack(12, 8) + bytes(8)) * 5000,  # pings, whose pongs nobody reads
    ):
        talks.append([FRAMED_REQUEST, admitted(rng) + ending])
    talks.append([WEBSOCKET_REQUEST, b"\x89\xfe\xff\xff" + rng.randbytes(5000)])
    talks.append([WEBSOCKET_REQUEST, b"\x02\x7f" + b"\xff" * 8 + rng.randbytes(5000)])
    talks.append([WEBSOCKET_REQUEST, (b"\x02\xfe\x10\x00" + rng.randbytes(4100)) * 40])
    return talks


async def converse(port: int, pieces: Sequence[bytes], ending: str) -> None:
    """Say something to a server in pieces and go, in one of the ways there are."""
    with suppress(OSError, anyio.EndOfStream, anyio.BrokenResourceError):
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            for piece in pieces:
                await stream.send(piece)
                with anyio.move_on_after(0.02):
                    await stream.receive()
            await _go(stream, ending)


async def _go(stream: SocketStream, ending: str) -> None:
    if ending == "reset":
        raw = stream.extra(SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif ending == "half":
        await stream.send_eof()
        with anyio.move_on_after(0.1):
            while True:
                await stream.receive()
    elif ending == "stay":
        await anyio.sleep(0.3)


async def drip(port: int, data: bytes, interval: float) -> None:
    """Say something to a server byte by byte, for as long as it listens."""
    with suppress(OSError, anyio.BrokenResourceError):
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            for index in range(len(data)):
                await stream.send(data[index : index + 1])
                await anyio.sleep(interval)


Behaviour = Callable[[SocketStream, random.Random], Awaitable[None]]


async def _garbage(stream: SocketStream, rng: random.Random) -> None:
    await stream.send(rng.randbytes(5000))


async def _silence(stream: SocketStream, rng: random.Random) -> None:
    await anyio.sleep_forever()


async def _endless_header(stream: SocketStream, rng: random.Random) -> None:
    await stream.send(b"HTTP/1.1 101 Switching Protocols\r\n")
    while True:
        await stream.send(b"X-More: " + b"x" * 1000 + b"\r\n")


async def _endless_prelude(stream: SocketStream, rng: random.Random) -> None:
    for _ in range(2000):
        await stream.send(b"HTTP/1.1 100 Continue\r\n\r\n" * 10)
        await anyio.sleep(0.002)


async def _wrong_upgrade(stream: SocketStream, rng: random.Random) -> None:
    await stream.receive()
    answers = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 999 \xff\xff\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
    )
    await stream.send(rng.choice(answers))
    await stream.send(rng.randbytes(100))


async def _frames(stream: SocketStream, rng: random.Random) -> None:
    await stream.receive()
    await stream.send(SWITCHED)
    await stream.send(frames(rng, 30))


async def _huge_frame(stream: SocketStream, rng: random.Random) -> None:
    await stream.receive()
    await stream.send(SWITCHED + FRAME.pack(5, 0xFFFFFFFF))
    while True:
        await stream.send(bytes(65_536))


async def _strangers(stream: SocketStream, rng: random.Random) -> None:
    """Deliver packets of nodes that never sent any."""
    await stream.receive()
    await stream.send(SWITCHED)
    for _ in range(300):
        datagram = bend(rng.choice(GOLDEN), rng)[:1500]
        body = bytes(SecretKey.generate(rng).public) + struct.pack("<H", len(datagram)) + datagram
        await stream.send(FRAME.pack(5, len(body)) + body)
    await anyio.sleep(0.2)


async def _flood_of_pings(stream: SocketStream, rng: random.Random) -> None:
    await stream.receive()
    await stream.send(SWITCHED)
    while True:
        await stream.send((FRAME.pack(12, 8) + rng.randbytes(8)) * 500)


BEHAVIOURS: dict[str, Behaviour] = {
    "garbage": _garbage,
    "silence": _silence,
    "endless header": _endless_header,
    "endless prelude": _endless_prelude,
    "wrong upgrade": _wrong_upgrade,
    "frames": _frames,
    "huge frame": _huge_frame,
    "strangers": _strangers,
    "pings": _flood_of_pings,
}


class HostileServer:
    """A DERP server that behaves badly. ``met`` says how often it was dialled."""

    def __init__(self, name: str, rng: random.Random, port: int) -> None:
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self.met = 0
        self._behaviour = BEHAVIOURS[name]
        self._rng = rng

    async def handle(self, stream: SocketStream) -> None:
        self.met += 1
        with suppress(OSError, anyio.EndOfStream, anyio.BrokenResourceError):
            async with stream:
                with anyio.move_on_after(2.0):
                    await self._behaviour(stream, self._rng)


@asynccontextmanager
async def hostile_server(name: str, rng: random.Random) -> AsyncIterator[HostileServer]:
    """Run a DERP server that behaves in one of the ways of BEHAVIOURS."""
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        port = listener.extra(SocketAttribute.local_port)
        server = HostileServer(name, rng, port)
        tasks.start_soon(listener.serve, server.handle)
        yield server
        tasks.cancel_scope.cancel()
