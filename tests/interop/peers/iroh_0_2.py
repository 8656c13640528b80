"""A node of the ``iroh`` package 0.2.0 (iroh 0.6), told what to do by JSON lines.

The package serves blobs under ``/iroh-bytes/2`` and documents under its sync and gossip ALPNs. It
dials the nodes of a document that it joins. It binds UDP port 11204 of every interface, or any
port if that one is taken. Its DERP regions are compiled in, some by IP address, so the tests give
the process a network without a way to them; it cannot be told of another DERP server.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import os
import tempfile
from typing import Any

import iroh  # type: ignore[import-not-found]

from tests.interop.peers import runner

ALPN = "/iroh-bytes/2"


class Node:
    """The commands."""

    def __init__(self, lines: runner.Lines) -> None:
        self.lines = lines
        self._node: Any = None

    async def start(self) -> runner.JsonObject:
        """Begin to serve blobs, of which there are none."""
        self._node = await asyncio.to_thread(iroh.IrohNode, tempfile.mkdtemp())
        document = await asyncio.to_thread(self._node.doc_new)
        ticket = await asyncio.to_thread(lambda: document.share_write().to_string())
        node_id, addresses = decode_ticket(ticket)
        return {"node_id": node_id.hex(), "addresses": addresses, "alpn": ALPN}

    async def join(self, node_id: str, addresses: list[str]) -> runner.JsonObject:
        """Join a document, new to everybody, that the ticket says another node has."""
        ticket = iroh.DocTicket.from_string(encode_ticket(bytes.fromhex(node_id), addresses))
        await asyncio.to_thread(self._node.doc_join, ticket)
        return {}

    async def path(self, node_id: str) -> runner.JsonObject:
        """Return how this node thinks it reaches another: direct, relay or none."""
        for info in await asyncio.to_thread(self._node.connections):
            if bytes(info.public_key.to_bytes()).hex() == node_id:
                return {"kind": type(info.conn_type).__name__.rpartition(".")[2].lower()}
        return {"kind": "none"}

    async def close(self) -> None:
        """Do nothing: the package has no way to shut a node down."""


def encode_ticket(node_id: bytes, addresses: list[str]) -> str:
    """Return a document ticket of iroh 0.6: key, then a list of one node.

    Layout: 32-byte key; varint count; per node ``20`` and its 32-byte id, ``00`` for no DERP
    region, varint count of addresses; per address ``00`` or ``01``, 4 or 16 bytes, varint port.
    """
    data = os.urandom(32) + b"\x01\x20" + node_id + b"\x00" + _varint(len(addresses))
    for text in addresses:
        host, _, port = text.rpartition(":")
        ip = ipaddress.ip_address(host.strip("[]"))
        data += bytes([ip.version == 6]) + ip.packed + _varint(int(port))
    return base64.b32encode(data).decode().rstrip("=").lower()


def decode_ticket(text: str) -> tuple[bytes, list[str]]:
    """Return id and addresses of the first node that a document ticket names."""
    data = base64.b32decode(text.upper() + "=" * (-len(text) % 8))
    offset = 34
    node_id = data[offset : offset + 32]
    offset += 32
    has_region = data[offset]
    offset += 1
    if has_region:
        _, offset = _read_varint(data, offset)
    count, offset = _read_varint(data, offset)
    addresses = []
    for _ in range(count):
        size = 16 if data[offset] else 4
        ip = ipaddress.ip_address(data[offset + 1 : offset + 1 + size])
        port, offset = _read_varint(data, offset + 1 + size)
        addresses.append(f"[{ip}]:{port}" if size == 16 else f"{ip}:{port}")
    return node_id, addresses


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, offset: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[offset]
        offset += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, offset
        shift += 7


async def main() -> None:
    """Serve commands until stdin ends."""
    iroh.set_log_level(iroh.LogLevel[runner.log_level()])
    lines = runner.Lines()
    await runner.serve(lines, Node(lines))


if __name__ == "__main__":
    asyncio.run(main())
