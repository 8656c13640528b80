"""``iroh-anyio demo``: two nodes meet at a DERP server, punch through and move a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import click
from anyio.streams.text import TextReceiveStream
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from iroh_anyio.cli.common import verbose_option
from iroh_anyio.cli.running import run
from iroh_anyio.derper import Derper
from iroh_proto import DerpMap, DerpNode

SAMPLE_SIZE = 24 * 1024 * 1024  # bytes; a second or two, long enough to watch
EXIT_WAIT = 2.0  # seconds for a node to end by itself
STALL_LIMIT = 60.0  # seconds without a sign of life of either node

Json = dict[str, Any]


@dataclass
class Outcome:
    """What the two nodes reported, in the order of time."""

    started: float
    size: int
    events: list[Json] = field(default_factory=list)
    reports: dict[str, Json] = field(default_factory=dict)
    stopped: str | None = None
    """Why it was broken off, in a sentence."""

    def add(self, node: str, report: Json) -> None:
        """Take one line from a node."""
        event = report["event"]
        if event == "progress":
            return
        self.reports[f"{node}.{event}"] = report
        at = round(report["at"] - self.started, 4)
        shown = {name: value for name, value in report.items() if name not in ("at", "event")}
        self.events.append({"seconds": at, "node": node, "event": event, **shown})

    def paths(self, node: str = "sender") -> list[str]:
        """Return the kinds of path that a node used, in order."""
        return [e["kind"] for e in self.events if e["node"] == node and e["event"] == "path"]

    @property
    def identities_verified(self) -> bool:
        """Whether each node proved to the other the id that the other knew."""
        ids = {n: self.reports.get(f"{n}.ready", {}).get("node_id") for n in ("sender", "receiver")}
        return (
            None not in ids.values()
            and self.reports.get("sender.verified", {}).get("node_id") == ids["receiver"]
            and self.reports.get("receiver.verified", {}).get("node_id") == ids["sender"]
        )

    def summary(self) -> Json:
        """Return the result as ``--json`` prints it."""
        sent = self.reports.get("sender.done", {})
        received = self.reports.get("receiver.done", {})
        paths = self.paths()
        equal = "sha256" in sent and sent["sha256"] == received.get("sha256")
        first, final = (paths[0], paths[-1]) if paths else (None, None)
        error = self._error(equal, first, final)
        return {
            "ok": error is None,
            "error": error,
            "identities_verified": self.identities_verified,
            "first_path": first,
            "final_path": final,
            "bytes": received.get("bytes", 0),
            "seconds": sent.get("seconds", 0.0),
            "sha256_equal": equal,
            "sha256": received.get("sha256"),
            "events": sorted(self.events, key=lambda event: event["seconds"]),
        }

    def _error(self, equal: bool, first: str | None, final: str | None) -> str | None:
        """Say in a sentence what went wrong, if anything did."""
        for event in self.events:
            if event["event"] == "failed":
                return f"the {event['node']} failed: {event['error']}"
        if self.stopped is not None:
            return self.stopped
        if not self.identities_verified:
            return "the nodes did not verify each other's identity"
        if not equal:
            return "the file did not arrive whole"
        if (first, final) != ("derp", "direct"):
            return f"the path went from {first} to {final}, not from derp to direct"
        return None


@click.command()
@click.option(
    "--file",
    "path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help=f"The file to send instead of {SAMPLE_SIZE // 2**20} MiB of random bytes.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one line of JSON.")
@click.option(
    "--trace",
    "trace_folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Write sender.jsonl and receiver.jsonl to FOLDER, for `lab draw` and `lab replay`. It is "
    "made if it is not there.",
)
@verbose_option
def demo(path: Path | None, as_json: bool, trace_folder: Path | None) -> None:
    """Show the main thing: two nodes that know only each other's id move a file.

    Starts a DERP server and two endpoints in processes of their own. They begin on the server,
    find a direct path, and end with a table. Nothing leaves this machine.
    """
    if trace_folder is not None:
        make_folder(trace_folder)
    with sample_file() if path is None else given_file(path) as file:
        summary = run(lambda: demonstrate(file, trace_folder, quiet=as_json))
    if as_json:
        click.echo(json.dumps(summary))
    else:
        Console().print(result_table(summary))
    if not summary["ok"]:
        raise click.ClickException(summary["error"])


def make_folder(folder: Path) -> None:
    """Make the folder for traces unless it is there.

    :raises click.ClickException: if it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(f"--trace: cannot make {folder}: {error.strerror}") from None


@contextmanager
def sample_file() -> Iterator[Path]:
    """Make a file of random bytes for the time of the demonstration."""
    with tempfile.TemporaryDirectory(prefix="iroh-demo-") as folder:
        path = Path(folder) / "sample"
        path.write_bytes(os.urandom(SAMPLE_SIZE))
        yield path


@contextmanager
def given_file(path: Path) -> Iterator[Path]:
    """Use the user's file."""
    yield path


async def demonstrate(file: Path, trace_folder: Path | None, *, quiet: bool) -> Json:
    """Run a DERP server and both nodes, and return the summary."""
    size = (await anyio.Path(file).stat()).st_size
    outcome = Outcome(time.monotonic(), size)
    with anyio.move_on_after(STALL_LIMIT) as limit, Display(outcome, limit, quiet=quiet) as display:
        async with await Derper.bind(host="127.0.0.1", port=0, stun_port=0) as derper:
            server = ["--derp", derper.url, "--stun-port", str(derper.stun_port)]
            if trace_folder is not None:
                server += ["--trace", str(trace_folder)]
            async with node("receiver", [*server, "receive"]) as receiver:
                ready = await display.wait_ready(receiver)
                if ready is not None:
                    arguments = [*server, "send", ready["node_id"], str(file)]
                    async with node("sender", arguments) as sender:
                        await _follow_both(display, receiver, sender)
    if limit.cancelled_caught:
        outcome.stopped = f"nothing happened for {STALL_LIMIT:g} s"
    return outcome.summary()


async def _follow_both(display: Display, receiver: Node, sender: Node) -> None:
    """Show what both nodes report until they end, or one of them ends too early."""
    async with anyio.create_task_group() as tasks:

        async def follow(reporter: Node) -> None:
            if not await display.follow(reporter):
                tasks.cancel_scope.cancel()

        tasks.start_soon(follow, receiver)
        tasks.start_soon(follow, sender)


class Node:
    """A child process that reports in lines of JSON. Iterate over it until it ends."""

    def __init__(self, name: str, process: anyio.abc.Process) -> None:
        self.name = name
        self._process = process
        assert process.stdout is not None
        self._text = TextReceiveStream(process.stdout)
        self._rest = ""

    def __aiter__(self) -> Node:
        return self

    async def __anext__(self) -> Json:
        while "\n" not in self._rest:
            try:
                self._rest += await self._text.receive()
            except anyio.EndOfStream:
                raise StopAsyncIteration from None
        line, _, self._rest = self._rest.partition("\n")
        report: Json = json.loads(line)
        return report


@asynccontextmanager
async def node(name: str, arguments: list[str]) -> AsyncIterator[Node]:
    """Run a node in a process of its own, which ends with the block, or with this process."""
    command = [sys.executable, "-m", "iroh_anyio.cli.demo_node", *arguments]
    process = await anyio.open_process(
        command,
        stdin=subprocess.PIPE,  # its end is how a node learns that it shall end
        stdout=subprocess.PIPE,
        stderr=None,
        start_new_session=True,  # Ctrl-C is for this process, which ends the others in good order
    )
    assert process.stdin is not None
    try:
        yield Node(name, process)
    finally:
        with anyio.CancelScope(shield=True):
            await process.stdin.aclose()
            with anyio.move_on_after(EXIT_WAIT) as waiting:
                await process.wait()
            if waiting.cancelled_caught:
                process.kill()
            await process.aclose()


class Display:
    """Shows the time line and a progress bar on stderr."""

    def __init__(self, outcome: Outcome, limit: anyio.CancelScope, *, quiet: bool) -> None:
        self._outcome = outcome
        self._limit = limit
        console = Console(stderr=True, quiet=quiet)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._progress.stop()

    async def wait_ready(self, reporter: Node) -> Json | None:
        """Show the reports of one node until it is ready, and return that one."""
        async for report in reporter:
            self.show(reporter.name, report)
            if report["event"] == "ready":
                return report
        self._outcome.stopped = f"the {reporter.name} did not start"
        return None

    async def follow(self, reporter: Node) -> bool:
        """Show the reports of one node until it ends; return whether it was done with its work."""
        async for report in reporter:
            self.show(reporter.name, report)
        is_done = f"{reporter.name}.done" in self._outcome.reports
        if not is_done and self._outcome.stopped is None:
            self._outcome.stopped = f"the {reporter.name} ended too early"
        return is_done

    def show(self, name: str, report: Json) -> None:
        """Show one report."""
        self._limit.deadline = anyio.current_time() + STALL_LIMIT
        self._outcome.add(name, report)
        if report["event"] == "progress":
            if self._task is None:
                self._task = self._progress.add_task("sending", total=self._outcome.size)
            self._progress.update(self._task, completed=report["bytes"])
            return
        at = (report["at"] - self._outcome.started) * 1000
        console = self._progress.console
        console.print(
            f"[dim]{at:8.1f} ms[/]  [cyan]{name:8}[/]  {describe(report)}",
            highlight=False,
            # One line each: cut at the edge of a terminal, whole in a file.
            soft_wrap=not console.is_terminal,
            no_wrap=True,
            overflow="ellipsis",
        )


def describe(report: Json) -> str:
    """Return one line of the time line."""
    match report["event"]:
        case "ready":
            return f"ready as {report['node_id'][:10]}…"
        case "home":
            return f"home server {report['url']}"
        case "verified":
            return f"handshake done: peer proved to be {report['node_id'][:10]}…"
        case "pong":
            return f"pong after {report['latency'] * 1000:.2f} ms from {escape(report['addr'])}"
        case "call_me_maybe":
            count = report["addresses"]
            return f"peer asks to be pinged at {count} address{'' if count == 1 else 'es'}"
        case "path":
            latency = report["latency"]
            took = "" if latency is None else f" ({latency * 1000:.2f} ms)"
            return f"[bold]path: {report['kind']}[/] {escape(report['addr'])}{took}"
        case "done":
            return f"{report['bytes']:,} bytes, sha256 {report['sha256'][:16]}…"
        case "failed":
            return f"[red]{escape(report['error'])}[/]"
        case other:
            return str(other)


def result_table(summary: Json) -> Table:
    """Return the table that ends the demonstration."""
    table = Table(title="iroh-anyio demo", show_header=False)
    seconds = summary["seconds"]
    rate = f"{summary['bytes'] / seconds / 1e6:.1f} MB/s" if seconds else "-"
    kinds = [e["kind"] for e in summary["events"] if e["event"] == "path" and e["node"] == "sender"]
    rows = {
        "identities verified": _yes_no(summary["identities_verified"]),
        "paths used": " → ".join(kinds) or "none",
        "bytes": f"{summary['bytes']:,}",
        "hash equal": _yes_no(summary["sha256_equal"]),
        "speed": rate,
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def demo_map(url: str, stun_port: int) -> DerpMap:
    """Return the map that the demonstration's nodes use."""
    return DerpMap([DerpNode(url, stun_port=stun_port)])


def _yes_no(value: bool) -> str:
    return "[green]yes[/]" if value else "[red]no[/]"
