"""An endpoint of the ``iroh`` package 1.x, told what to do by JSON lines.

The minimal preset has no discovery service, and relays are off unless the test names some, so
nothing leaves the machine.
"""

from __future__ import annotations

import asyncio
from typing import Any

import iroh  # type: ignore[import-not-found]
from iroh import iroh_ffi

from tests.interop.peers import runner


class Node:
    """The commands."""

    def __init__(self, lines: runner.Lines) -> None:
        self.lines = lines
        self._endpoint: Any = None
        self._connections: dict[int, Any] = {}
        self._latest: dict[str, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(
        self,
        alpns: list[str],
        secret_key: str | None = None,
        relay_urls: list[str] | None = None,
        bind_addr: str = "127.0.0.1:0",
    ) -> runner.JsonObject:
        """Bind, to loopback unless told otherwise, and serve ``alpns`` with an echo."""
        relays = iroh.RelayMode.custom_from_urls(relay_urls or [])
        self._endpoint = await iroh.Endpoint.bind(
            iroh.EndpointOptions(
                preset=iroh.preset_minimal(),
                bind_addr=bind_addr,
                secret_key=None if secret_key is None else bytes.fromhex(secret_key),
                alpns=[alpn.encode() for alpn in alpns],
                relay_mode=relays if relay_urls else iroh.RelayMode.disabled(),
            )
        )
        self._start(self._accept())
        return {
            "node_id": self._endpoint.id().to_bytes().hex(),
            "addresses": self._endpoint.bound_sockets(),
        }

    async def online(self) -> runner.JsonObject:
        """Wait for a home relay with which the handshake is done; answer its URL."""
        await self._endpoint.online()
        return {"relay_url": self._endpoint.addr().relay_url()}

    async def path(self, node_id: str) -> runner.JsonObject:
        """Answer how the last connection with a node goes: direct, relay or none."""
        kinds = [
            "direct" if path.is_ip else "relay"
            for path in self._latest[node_id].paths()
            if path.is_selected
        ]
        return {"kind": kinds[0] if kinds else "none"}

    async def dial(
        self, node_id: str, relay_url: str | None, addresses: list[str], alpn: str
    ) -> runner.JsonObject:
        """Connect and keep the connection under a number."""
        key = iroh.EndpointId.from_bytes(bytes.fromhex(node_id))
        address = iroh.EndpointAddr(key, relay_url, addresses)
        connection = await self._endpoint.connect(address, alpn.encode())
        number = len(self._connections)
        self._connections[number] = self._latest[node_id] = connection
        return {"connection": number, "remote_id": connection.remote_id().to_bytes().hex()}

    async def echo(self, connection: int, size: int) -> runner.JsonObject:
        """Send ``size`` bytes to an echo and compare."""
        return await runner.echo_out(await self._connections[connection].open_bi(), size)

    async def hang_up(self, connection: int, code: int, reason: str) -> runner.JsonObject:
        """Close a connection."""
        self._connections[connection].close(code, reason.encode())
        return {}

    async def wait_closed(self, connection: int) -> runner.JsonObject:
        """Wait for the end of a connection."""
        return {"reason": await self._connections[connection].closed()}

    async def close(self) -> None:
        """Shut the endpoint down."""
        await self._endpoint.close()

    def _start(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        while (incoming := await self._endpoint.accept_next()) is not None:
            self._start(self._serve(incoming))

    async def _serve(self, incoming: Any) -> None:
        try:
            connection = await (await incoming.accept()).connect()
        except iroh.IrohError as error:
            self.lines.event("refused", error=runner.describe(error))
            return
        remote_id = connection.remote_id().to_bytes().hex()
        self._latest[remote_id] = connection
        self.lines.event("accepted", alpn=connection.alpn().decode(), remote_id=remote_id)
        try:
            while True:
                await runner.echo_back(await connection.accept_bi())
        except iroh.IrohError:
            self.lines.event("closed", reason=await connection.closed())


async def main() -> None:
    """Serve commands until stdin ends."""
    iroh_ffi.uniffi_set_event_loop(asyncio.get_running_loop())
    runner.quicken(iroh_ffi._UniffiRustBufferBuilder)
    iroh.set_log_level(iroh.LogLevel[runner.log_level()])
    lines = runner.Lines()
    await runner.serve(lines, Node(lines))


if __name__ == "__main__":
    asyncio.run(main())
