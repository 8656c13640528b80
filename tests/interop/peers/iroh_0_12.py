"""A node of the ``iroh`` package 0.12.0, told what to do by JSON lines.

The package serves blobs under its own ALPN, ``/iroh-bytes/3``, and dials where a download sends
it; custom protocols came later. It binds UDP port 11204 of every interface, or any port if that
one is taken, and offers no choice of DERP servers: its public ones stay configured, so the tests
give the process a network without a way to them. A DERP server named in the address of a peer
is used beside them.
"""

from __future__ import annotations

import asyncio
import tempfile
from typing import Any

import iroh  # type: ignore[import-not-found]

from tests.interop.peers import runner

ALPN = "/iroh-bytes/3"


class Progress(iroh.DownloadCallback):  # type: ignore[misc]
    """Reports the steps of a download, of which ``connected`` is the first."""

    def __init__(self, lines: runner.Lines) -> None:
        self._lines = lines
        self.steps: list[str] = []

    def progress(self, progress: Any) -> None:
        """Take one step."""
        step = progress.type().name.lower()
        if progress.type() == iroh.DownloadProgressType.ABORT:
            step = f"abort: {progress.as_abort().error}"
        self.steps.append(step)
        self._lines.event(step)


class Node:
    """The commands."""

    def __init__(self, lines: runner.Lines) -> None:
        self.lines = lines
        self._node: Any = None

    async def start(self) -> runner.JsonObject:
        """Begin to serve blobs, of which there are none."""
        self._node = await asyncio.to_thread(iroh.IrohNode, tempfile.mkdtemp())
        status = await asyncio.to_thread(self._node.status)
        key = iroh.PublicKey.from_string(await asyncio.to_thread(self._node.node_id))
        return {
            "node_id": bytes(key.to_bytes()).hex(),
            "addresses": [_text(address) for address in status.listen_addrs()],
            "alpn": ALPN,
        }

    async def download(
        self, node_id: str, relay_url: str | None, addresses: list[str]
    ) -> runner.JsonObject:
        """Ask another node for a blob that nobody has; answered with the steps of it."""
        request = iroh.BlobDownloadRequest(
            iroh.Hash(b"a blob that nobody has"),
            iroh.BlobFormat.RAW,
            iroh.NodeAddr(
                iroh.PublicKey.from_bytes(bytes.fromhex(node_id)),
                None if relay_url is None else iroh.Url.from_string(relay_url),
                [_address(text) for text in addresses],
            ),
            iroh.SetTagOption.auto(),
            iroh.DownloadLocation.internal(),
        )
        progress = Progress(self.lines)
        await asyncio.to_thread(self._node.blobs_download, request, progress)
        return {"steps": progress.steps}

    async def path(self, node_id: str) -> runner.JsonObject:
        """Return how this node thinks it reaches another: direct, mixed, relay or none."""
        key = iroh.PublicKey.from_bytes(bytes.fromhex(node_id))
        info = await asyncio.to_thread(self._node.connection_info, key)
        kind = iroh.ConnType.NONE if info is None else info.conn_type.type()
        return {"kind": str(kind.name).lower()}

    async def close(self) -> None:
        """Do nothing: the package has no way to shut a node down."""


def _text(address: Any) -> str:
    if address.type() == iroh.SocketAddrType.V4:
        return str(address.as_ipv4().to_string())
    return str(address.as_ipv6().to_string())


def _address(text: str) -> Any:
    host, _, port = text.rpartition(":")
    if host.startswith("["):
        return iroh.SocketAddr.from_ipv6(iroh.Ipv6Addr.from_string(host[1:-1]), int(port))
    return iroh.SocketAddr.from_ipv4(iroh.Ipv4Addr.from_string(host), int(port))


async def main() -> None:
    """Serve commands until stdin ends."""
    iroh.set_log_level(iroh.LogLevel[runner.log_level()])
    lines = runner.Lines()
    await runner.serve(lines, Node(lines))


if __name__ == "__main__":
    asyncio.run(main())
