"""Endpoints for tests, on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio

from iroh_anyio import Connection, MagicEndpoint
from iroh_proto import NodeAddr, NodeId

ALPN = b"test/0"
LIMIT = 10.0
"""Seconds after which a test gives up; nothing here takes long unless it hangs."""


async def bind(**settings: Any) -> MagicEndpoint:
    """Bind an endpoint on 127.0.0.1 alone."""
    return await MagicEndpoint.bind(**{"bind_addrs": ["127.0.0.1:0"], **settings})


def addr_of(endpoint: MagicEndpoint, node_id: NodeId | None = None) -> NodeAddr:
    """Return the direct address of an endpoint, maybe under another's id."""
    return NodeAddr(node_id or endpoint.node_id, direct_addresses=endpoint.bound_addresses)


@asynccontextmanager
async def two_nodes(
    server: dict[str, Any] | None = None, client: dict[str, Any] | None = None
) -> AsyncIterator[tuple[MagicEndpoint, MagicEndpoint]]:
    """Run a server and a client."""
    async with (
        await bind(alpns=[ALPN], **(server or {})) as serving,
        await bind(**(client or {})) as dialling,
    ):
        with anyio.fail_after(LIMIT):
            yield serving, dialling


@asynccontextmanager
async def joined(
    server: dict[str, Any] | None = None, client: dict[str, Any] | None = None
) -> AsyncIterator[tuple[Connection, Connection]]:
    """Run two nodes and yield both ends of a connection, the dialling one first."""
    async with two_nodes(server, client) as (serving, dialling):
        dialled = await dialling.connect(addr_of(serving), alpn=ALPN)
        accepted = await serving.accept()
        yield dialled, accepted
