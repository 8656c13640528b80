"""Two nodes that know only each other's id: hello by relay, then by a direct path.

Runs by itself: it starts a DERP server of its own. On asyncio; ``echo.py trio`` for trio.
"""

from __future__ import annotations

import sys

import anyio

from iroh_anyio import MagicEndpoint
from iroh_anyio.derper import Derper
from iroh_proto import DerpMap, DerpNode, NodeAddr

ALPN = b"example/echo/0"


async def serve(server: MagicEndpoint) -> None:
    """Echo one stream of each connection."""
    async for connection in server:
        stream = await connection.accept_bi()
        async for chunk in stream:
            await stream.send(chunk)
        await stream.send_eof()


async def main() -> None:
    """Start a relay and two endpoints, and say hello."""
    async with await Derper.bind(port=0, stun_port=0) as derper:
        derp_map = DerpMap([DerpNode(derper.url, stun_port=derper.stun_port)])
        async with (
            await MagicEndpoint.bind(alpns=[ALPN], derp_map=derp_map) as server,
            await MagicEndpoint.bind(derp_map=derp_map) as client,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(serve, server)
            addr = NodeAddr(server.node_id, derp_url=derper.url)
            connection = await client.connect(addr, alpn=ALPN)
            stream = await connection.open_bi()
            await stream.send(b"hello")
            await stream.send_eof()
            print(b"".join([chunk async for chunk in stream]).decode())
            async for path in connection.path_changes():
                print(path.kind, path.addr, path.latency)
                if path.kind == "direct":
                    break
            tasks.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
