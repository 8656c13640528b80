"""On plain asyncio, without any relay: dial a node by its id and its direct addresses."""

from __future__ import annotations

import asyncio

from iroh_anyio import MagicEndpoint

ALPN = b"example/greeting/0"


async def greet(server: MagicEndpoint) -> None:
    """Greet the first node that dials, by name, on a stream of our own."""
    connection = await server.accept()
    async with await connection.open_uni() as stream:
        await stream.send(f"hello {connection.remote_node_id.fmt_short()}".encode())
    await connection.wait_closed()


async def main() -> None:
    """Bind two endpoints and have one dial the other."""
    async with (
        await MagicEndpoint.bind(alpns=[ALPN]) as server,
        await MagicEndpoint.bind() as client,
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(greet(server))
        connection = await client.connect(await server.node_addr(), alpn=ALPN)
        stream = await connection.accept_uni()
        print(b"".join([chunk async for chunk in stream]).decode())
        connection.close(0, "thank you")


if __name__ == "__main__":
    asyncio.run(main())
