"""One node of ``iroh-anyio demo``, in a process of its own: reports in lines of JSON."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import click

from iroh_anyio import MagicEndpoint
from iroh_anyio.cli.demo import demo_map
from iroh_anyio.cli.running import run, run_commands
from iroh_anyio.connection import Connection
from iroh_anyio.errors import EndpointError
from iroh_anyio.quic.events import EndpointEvent
from iroh_proto import DerpAddress, DerpMap, NodeAddr, NodeId
from iroh_proto.derp.pool_events import HomeDerpChanged
from iroh_proto.disco.pinger import CallMeMaybeReceived, PongReceived
from iroh_proto.paths.finder import PathChanged

ALPN = b"iroh-anyio/demo/0"
CHUNK_SIZE = 256 * 1024
PROGRESS_INTERVAL = 0.1  # seconds
DIRECT_WAIT = 20.0  # seconds after the transfer for the direct path to be found


def report(event: str, **facts: Any) -> None:
    """Write one line for the parent."""
    sys.stdout.write(json.dumps({"event": event, "at": time.monotonic(), **facts}) + "\n")
    sys.stdout.flush()


def observe(event: EndpointEvent) -> None:
    """Report those of the endpoint's events that belong on a time line."""
    match event:
        case HomeDerpChanged(url=url):
            report("home", url=str(url))
        case PongReceived(addr=addr, latency=latency):
            by = addr.url if isinstance(addr, DerpAddress) else addr
            report("pong", addr=str(by), latency=latency)
        case PathChanged(path=path) if path.kind != "none":
            report("path", kind=path.kind, addr=str(path.addr), latency=path.latency)
        case CallMeMaybeReceived(addresses=addresses):
            report("call_me_maybe", addresses=len(addresses))
        case _:
            pass


@dataclass(frozen=True, slots=True)
class Settings:
    """What both nodes are told: the server, and the folder for their time lines."""

    derp: str
    derp_map: DerpMap
    trace_folder: Path | None

    async def bind(self, name: str, *, alpns: tuple[bytes, ...] = ()) -> MagicEndpoint:
        """Bind the endpoint of a node; the caller enters it."""
        folder = self.trace_folder
        return await MagicEndpoint.bind(
            alpns=alpns,
            derp_map=self.derp_map,
            trace_file=None if folder is None else folder / f"{name}.jsonl",
            on_event=observe,
        )


@click.group()
@click.option("--derp", required=True)
@click.option("--stun-port", type=int, required=True)
@click.option("--trace", type=click.Path(path_type=Path))
@click.pass_context
def commands(ctx: click.Context, derp: str, stun_port: int, trace: Path | None) -> None:
    """Run one node of the demonstration."""
    ctx.obj = Settings(derp, demo_map(derp, stun_port), trace)


@commands.command()
@click.pass_obj
def receive(settings: Settings) -> None:
    """Receive one file."""
    run(lambda: _work(_receive(settings)))


@commands.command()
@click.argument("node_id")
@click.argument("file", type=click.Path(exists=True, path_type=Path))
@click.pass_obj
def send(settings: Settings, node_id: str, file: Path) -> None:
    """Send one file."""
    addr = NodeAddr(NodeId.from_str(node_id), derp_url=settings.derp)
    run(lambda: _work(_send(settings, addr, file)))


async def _work(part: Coroutine[Any, Any, None]) -> None:
    """Do this node's part for as long as the demonstration lives, and report its failure."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_end_with_parent, tasks.cancel_scope)
        try:
            await part
        except (EndpointError, OSError) as error:
            report("failed", error=str(error))
        tasks.cancel_scope.cancel()


async def _end_with_parent(scope: anyio.CancelScope) -> None:
    await anyio.wait_readable(sys.stdin)  # nobody writes to it: it is readable when it ends
    scope.cancel()


async def _receive(settings: Settings) -> None:
    async with await settings.bind("receiver", alpns=(ALPN,)) as endpoint:
        report("ready", node_id=str(endpoint.node_id))
        connection = await endpoint.accept()
        report("verified", node_id=str(connection.remote_node_id))
        stream = await connection.accept_bi()
        digest, count = hashlib.sha256(), 0
        async for chunk in stream:
            digest.update(chunk)
            count += len(chunk)
        report("done", bytes=count, sha256=digest.hexdigest())
        await stream.send(digest.digest())
        await stream.send_eof()
        await connection.wait_closed()


async def _send(settings: Settings, addr: NodeAddr, file: Path) -> None:
    async with await settings.bind("sender") as endpoint:
        report("ready", node_id=str(endpoint.node_id))
        connection = await endpoint.connect(addr, alpn=ALPN)
        report("verified", node_id=str(connection.remote_node_id))
        await _send_file(connection, file)
        with anyio.move_on_after(DIRECT_WAIT):
            async for path in connection.path_changes():
                if path.kind == "direct":
                    break
        connection.close(0, "done")


async def _send_file(connection: Connection, file: Path) -> None:
    stream = await connection.open_bi()
    started = shown = time.monotonic()
    digest, count = hashlib.sha256(), 0
    async with await anyio.open_file(file, "rb") as source:
        while chunk := await source.read(CHUNK_SIZE):
            digest.update(chunk)
            await stream.send(chunk)
            count += len(chunk)
            if time.monotonic() - shown >= PROGRESS_INTERVAL:
                shown = time.monotonic()
                report("progress", bytes=count)
    await stream.send_eof()
    answer = b"".join([chunk async for chunk in stream])
    report("progress", bytes=count)
    seconds = time.monotonic() - started
    if answer != digest.digest():
        report("failed", error="the receiver computed another hash")
        return
    report("done", bytes=count, sha256=digest.hexdigest(), seconds=seconds)


if __name__ == "__main__":
    run_commands(commands, "demo_node")
