"""A node of the ``iroh`` package 0.28.1 or 0.35.0, told what to do by JSON lines.

Both have one API but for a few names. The package offers no choice of relays: its public ones
stay configured, so the tests give the process a network without a way to them. A relay named in
the address of a peer is used beside them.
"""

from __future__ import annotations

import asyncio
from typing import Any

import iroh  # type: ignore[import-not-found]
from iroh import iroh_ffi

from tests.interop.peers import runner

IS_BEFORE_0_35 = hasattr(iroh.Connection, "get_remote_node_id")


class EchoProtocol:
    """Serves one ALPN: sends back every bidirectional stream until the connection ends."""

    def __init__(self, node: Node, alpn: bytes) -> None:
        self._node = node
        self._alpn = alpn

    def create(self, _endpoint: Any, _client: Any = None) -> EchoProtocol:
        """Return the handler; 0.28 passes the client as well."""
        return self

    async def accept(self, connection: Any) -> None:
        """Serve one connection; 0.28 passes one whose handshake is not done."""
        if IS_BEFORE_0_35:
            try:
                connection = await connection.connect()
            except Exception as error:
                self._node.lines.event("refused", error=runner.describe(error))
                raise
        self._node.lines.event(
            "accepted", alpn=self._alpn.decode(), remote_id=remote_id_of(connection)
        )
        try:
            while True:
                await runner.echo_back(await connection.accept_bi())
        except iroh.IrohError:
            self._node.lines.event("closed", reason=await connection.closed())

    async def shutdown(self) -> None:
        """Do nothing: the process ends."""


def remote_id_of(connection: Any) -> str:
    """Return the verified id of the other side as 64 hex digits."""
    if IS_BEFORE_0_35:
        return bytes(connection.get_remote_node_id().to_bytes()).hex()
    return str(connection.remote_node_id())


class Node:
    """The commands."""

    def __init__(self, lines: runner.Lines) -> None:
        self.lines = lines
        self._iroh: Any = None
        self._connections: dict[int, Any] = {}

    async def start(self, alpns: list[str], secret_key: str | None = None) -> runner.JsonObject:
        """Bind to loopback and serve ``alpns`` with an echo."""
        self._iroh = await iroh.Iroh.memory_with_options(
            iroh.NodeOptions(
                ipv4_addr="127.0.0.1:0",
                ipv6_addr="[::1]:0",
                node_discovery=iroh.NodeDiscoveryConfig.NONE,
                secret_key=None if secret_key is None else bytes.fromhex(secret_key),
                protocols={alpn.encode(): EchoProtocol(self, alpn.encode()) for alpn in alpns},
            )
        )
        status = await self._iroh.node().status()
        return {"node_id": await self._node_id(), "addresses": status.listen_addrs()}

    async def dial(
        self, node_id: str, relay_url: str | None, addresses: list[str], alpn: str
    ) -> runner.JsonObject:
        """Connect and keep the connection under a number."""
        key = iroh.PublicKey.from_bytes(bytes.fromhex(node_id))
        address = iroh.NodeAddr(key, relay_url, addresses)
        connection = await self._iroh.node().endpoint().connect(address, alpn.encode())
        number = len(self._connections)
        self._connections[number] = connection
        return {"connection": number, "remote_id": remote_id_of(connection)}

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

    async def path(self, node_id: str) -> runner.JsonObject:
        """Return how this node thinks it reaches another: direct, mixed, relay or none."""
        key = iroh.PublicKey.from_bytes(bytes.fromhex(node_id))
        info = await self._iroh.net().remote_info(key)
        kind = iroh.ConnType.NONE if info is None else info.conn_type.type()
        return {"kind": str(kind.name).lower()}

    async def close(self) -> None:
        """Shut the node down."""
        await self._iroh.node().shutdown(*([False] if IS_BEFORE_0_35 else []))

    async def _node_id(self) -> str:
        key = iroh.PublicKey.from_string(await self._iroh.net().node_id())
        return bytes(key.to_bytes()).hex()


async def main() -> None:
    """Serve commands until stdin ends."""
    iroh_ffi.uniffi_set_event_loop(asyncio.get_running_loop())
    runner.quicken(iroh_ffi._UniffiRustBufferBuilder)
    iroh.set_log_level(iroh.LogLevel[runner.log_level()])
    lines = runner.Lines()
    await runner.serve(lines, Node(lines))


if __name__ == "__main__":
    asyncio.run(main())
