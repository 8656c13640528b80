"""The nodes of one host behind a NAT: ``node.py BACKEND serve|dial DERP FOLDER``.

Each line of stdin asks for a node more: ``{"name": ...}`` for one that waits, with ``node_id`` and
``limit`` (seconds) for one that dials. Reports are lines of JSON with that name. All is over when
stdin ends.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream

from iroh_anyio import Connection, EndpointError, MagicEndpoint
from iroh_proto import DerpMap, NodeAddr, NodeId
from iroh_proto.testing.nat_matrix import HOLD_TIME, PAYLOAD_INTERVAL

ALPN = b"nat-matrix/0"
KIND_SIZE = 6  # bytes of a kind of path, filled up with spaces

Order = dict[str, Any]


def report(order: Order, **facts: Any) -> None:
    sys.stdout.write(json.dumps({"name": order["name"], **facts}) + "\n")
    sys.stdout.flush()


async def serve(order: Order, derp: str, folder: Path) -> None:
    """Wait for a peer, and answer whatever it says with the kind of path to it."""
    trace = folder / f"{order['name']}.second.jsonl"
    async with await MagicEndpoint.bind(
        alpns=[ALPN], derp_map=DerpMap.from_urls([derp]), trace_file=trace
    ) as endpoint:
        addr = await endpoint.node_addr()
        report(order, node_id=str(addr.node_id), has_home=addr.derp_url is not None)
        connection = await endpoint.accept()
        stream = await connection.accept_bi()
        async for _ in stream:
            await stream.send(connection.path.kind.ljust(KIND_SIZE).encode())
        await stream.send_eof()
        await connection.wait_closed()


async def dial(order: Order, derp: str, folder: Path) -> None:
    """Talk to a peer until both ends are direct and stay so, or it is too late for that."""
    trace = folder / f"{order['name']}.first.jsonl"
    async with await MagicEndpoint.bind(
        derp_map=DerpMap.from_urls([derp]), trace_file=trace
    ) as endpoint:
        await endpoint.node_addr()
        addr = NodeAddr(NodeId.from_str(order["node_id"]), derp_url=derp)
        connection = await endpoint.connect(addr, alpn=ALPN)
        report(order, seconds=await direct_after(connection, order["limit"]))
        connection.close(0, "done")


async def direct_after(connection: Connection, limit: float) -> float | None:
    """Return after how many seconds both ends were direct for good, ``None`` if they were not."""
    stream = await connection.open_bi()
    answers = BufferedByteReceiveStream(stream)
    start = anyio.current_time()
    since: float | None = None
    while True:
        await stream.send(b"?")
        there = await answers.receive_exactly(KIND_SIZE)
        now = anyio.current_time()
        is_direct = connection.path.kind == "direct" and there.strip() == b"direct"
        since = (now if since is None else since) if is_direct else None
        if since is not None and now >= since + HOLD_TIME:
            return since - start
        if since is None and now >= start + limit:
            return None
        await anyio.sleep(PAYLOAD_INTERVAL)


async def main(role: str, derp: str, folder: str) -> None:
    work = {"serve": serve, "dial": dial}[role]
    async with anyio.create_task_group() as tasks:
        stdin = anyio.wrap_file(sys.stdin)
        async for line in stdin:
            tasks.start_soon(attempt, work, json.loads(line), derp, Path(folder))
        tasks.cancel_scope.cancel()


async def attempt(
    work: Callable[[Order, str, Path], Awaitable[None]], order: Order, derp: str, folder: Path
) -> None:
    try:
        await work(order, derp, folder)
    except (EndpointError, OSError) as error:
        report(order, error=str(error) or type(error).__name__)


if __name__ == "__main__":
    anyio.run(main, *sys.argv[2:], backend=sys.argv[1])  # type: ignore[arg-type]
