"""One end of the bulk transfer: ``KIND receive SIZE`` or ``KIND send SIZE WHERE``.

The receiver prints where it listens, then the rate in bytes per second.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time

import anyio
from aioquic.asyncio.client import connect
from aioquic.asyncio.server import serve
from aioquic.quic.configuration import QuicConfiguration

from iroh_anyio import MagicEndpoint
from iroh_proto import NodeAddr, NodeId
from tests.benchmarks.certificate import self_signed_certificate

ALPN = "bench/0"
CHUNK = bytes(64 * 1024)


class Meter:
    """Counts what arrives and prints the rate at the end."""

    def __init__(self) -> None:
        self.count = 0
        self.started = 0.0

    def add(self, count: int) -> None:
        if not self.count:
            self.started = time.perf_counter()
        self.count += count

    def finish(self) -> None:
        print(self.count / (time.perf_counter() - self.started), flush=True)


async def receive_magic(size: int) -> None:
    async with await MagicEndpoint.bind(
        alpns=[ALPN.encode()], bind_addrs=("127.0.0.1:0",)
    ) as endpoint:
        addr = await endpoint.node_addr()
        where = [str(addr.node_id), [str(address) for address in addr.direct_addresses]]
        print(json.dumps(where), flush=True)
        connection = await endpoint.accept()
        stream = await connection.accept_bi()
        meter = Meter()
        while meter.count < size:
            meter.add(len(await stream.receive()))
        meter.finish()
        await stream.send(b"done")
        await stream.send_eof()
        await connection.wait_closed()


async def send_magic(size: int, where: str) -> None:
    node_id, addresses = json.loads(where)
    async with await MagicEndpoint.bind(bind_addrs=("127.0.0.1:0",)) as endpoint:
        addr = NodeAddr(NodeId.from_str(node_id), direct_addresses=addresses)
        connection = await endpoint.connect(addr, alpn=ALPN.encode())
        stream = await connection.open_bi()
        for _ in range(size // len(CHUNK)):
            await stream.send(CHUNK)
        await stream.send_eof()
        assert b"".join([chunk async for chunk in stream]) == b"done"


async def receive_aioquic(size: int) -> None:
    configuration = QuicConfiguration(alpn_protocols=[ALPN], is_client=False)
    configuration.certificate, configuration.private_key = self_signed_certificate()
    finished = asyncio.Event()

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        meter = Meter()
        while meter.count < size:
            meter.add(len(await reader.read(65536)))
        meter.finish()
        writer.write(b"done")
        writer.write_eof()
        await asyncio.sleep(0.5)
        finished.set()

    tasks = set()

    def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.get_running_loop().create_task(receive(reader, writer)))

    server = await serve("127.0.0.1", 0, configuration=configuration, stream_handler=handle)
    assert server._transport is not None
    print(server._transport.get_extra_info("sockname")[1], flush=True)
    await finished.wait()


async def send_aioquic(size: int, where: str) -> None:
    configuration = QuicConfiguration(alpn_protocols=[ALPN], verify_mode=ssl.CERT_NONE)
    async with connect("127.0.0.1", int(where), configuration=configuration) as client:
        reader, writer = await client.create_stream()
        for _ in range(size // len(CHUNK)):
            writer.write(CHUNK)
        writer.write_eof()
        assert await reader.read() == b"done"


def main() -> None:
    kind, role, size, *rest = sys.argv[1:]
    if kind == "aioquic":
        asyncio.run(
            receive_aioquic(int(size)) if role == "receive" else send_aioquic(int(size), *rest)
        )
    else:
        anyio.run(
            lambda: receive_magic(int(size)) if role == "receive" else send_magic(int(size), *rest),
            backend=kind,
        )


if __name__ == "__main__":
    main()
