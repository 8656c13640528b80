"""One node of the failover test: ``failover_node.py BACKEND serve DERP`` or ``... dial DERP ID``.

Reports in lines of JSON: its id, each path, and each number that came back in order.
"""

from __future__ import annotations

import json
import sys

import anyio

from iroh_anyio import MagicEndpoint
from iroh_anyio.connection import Connection
from iroh_anyio.streams import BiStream
from iroh_proto import DerpMap, NodeAddr, NodeId

ALPN = b"failover/0"
WIDTH = 1000  # bytes of each number as text: more than one datagram in ten of them
INTERVAL = 0.02  # seconds between numbers


def report(event: str, **facts: object) -> None:
    print(json.dumps({"event": event, **facts}), flush=True)


async def serve(derp: str) -> None:
    async with await MagicEndpoint.bind(
        alpns=[ALPN], derp_map=DerpMap.from_urls([derp])
    ) as endpoint:
        report("ready", node_id=str(endpoint.node_id))
        connection = await endpoint.accept()
        stream = await connection.accept_bi()
        async for chunk in stream:
            await stream.send(chunk)
        await stream.send_eof()
        await connection.wait_closed()


async def dial(derp: str, node_id: str) -> None:
    async with await MagicEndpoint.bind(derp_map=DerpMap.from_urls([derp])) as endpoint:
        report("ready", node_id=str(endpoint.node_id))
        addr = NodeAddr(NodeId.from_str(node_id), derp_url=derp)
        connection = await endpoint.connect(addr, alpn=ALPN)
        stream = await connection.open_bi()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(report_paths, connection)
            tasks.start_soon(count, stream)
            await check(stream)


async def count(stream: BiStream) -> None:
    number = 0
    while True:
        await stream.send(f"{number:{WIDTH}}".encode())
        number += 1
        await anyio.sleep(INTERVAL)


async def check(stream: BiStream) -> None:
    number, rest = 0, b""
    async for chunk in stream:
        rest += chunk
        while len(rest) >= WIDTH:
            text, rest = rest[:WIDTH], rest[WIDTH:]
            if int(text) != number:
                report("disorder", wanted=number, got=int(text))
                return
            report("number", number=number)
            number += 1


async def report_paths(connection: Connection) -> None:
    async for path in connection.path_changes():
        report("path", kind=path.kind, addr=str(path.addr))


if __name__ == "__main__":
    backend, role, *arguments = sys.argv[1:]
    anyio.run(serve if role == "serve" else dial, *arguments, backend=backend)  # type: ignore[arg-type]
