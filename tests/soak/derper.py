"""``python -m tests.soak.derper``: a DERP server among correct clients and all kinds of others.

A thousand clients come and go at random on the loopback interface. In the end every one of them has
left, and the server must have logged no error, be as small as after the first crowd, and have
treated everyone as it should. The exit code is 1 if not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.soak.clients import Crowd

ROOT = Path(__file__).parents[2]
WARM_UP = 0.2  # of the time, before memory is looked at
LEAVE_TIME = 30.0  # seconds until the server has noticed that all are gone
GROWTH_FACTOR, GROWTH_BYTES = 1.25, 16 << 20
DESCRIPTORS_PER_CLIENT = 3
PROBLEMS_SHOWN = 10


class Server:
    """The server's process."""

    def __init__(self, backend: str, max_connections: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.soak.server", backend, str(max_connections)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port: int = self._answer()

    def connections(self) -> int:
        """Have it collect its garbage; return how many connections it has."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        connections: int = self._answer()["connections"]
        return connections

    def memory(self) -> int:
        """Return its resident bytes."""
        statm = Path(f"/proc/{self._process.pid}/statm").read_text(encoding="ascii")
        return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> dict[str, Any]:
        """End it; return its counts and problems."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        last: dict[str, Any] = self._answer()
        self._process.wait(LEAVE_TIME)
        return last

    def kill(self) -> None:
        """End it in any case."""
        with suppress(ProcessLookupError):
            self._process.kill()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline() or "null")


class Soak:
    """One run.

    :ivar problems: what went wrong, with how often.
    """

    def __init__(self, server: Server, clients: int, seconds: float, seed: int) -> None:
        self.crowd = Crowd(server.port, random.Random(seed))
        self.problems: Counter[str] = Counter()
        self.peak = 0
        self._server = server
        self._clients = clients
        self._seconds = seconds
        self._roles = self.crowd.roles()

    async def run(self, progress: Progress) -> None:
        """Let the crowd come, twice."""
        bar = progress.add_task("soaking", total=self._seconds)
        sizes, done = [], 0.0
        for part in (WARM_UP, 1 - WARM_UP):
            began = time.monotonic()
            end = began + part * self._seconds
            async with anyio.create_task_group() as tasks:
                for _ in range(self._clients // 2):  # most roles are played by two
                    tasks.start_soon(self._come_and_go, end)
                while time.monotonic() < end:
                    await anyio.sleep(0.5)
                    progress.update(bar, completed=done + time.monotonic() - began)
                    self.peak = max(self.peak, self._server.memory())
            done += part * self._seconds
            sizes.append(await self._size_when_empty())
        self.memory = tuple(sizes)
        if sizes[1] > GROWTH_FACTOR * sizes[0] + GROWTH_BYTES:
            self.problems[f"the server grew from {sizes[0]} to {sizes[1]} bytes"] += 1

    async def _come_and_go(self, end: float) -> None:
        rng = self.crowd.rng
        await anyio.sleep(rng.uniform(0.0, self._seconds * WARM_UP / 2))
        while time.monotonic() < end:
            (role,) = rng.choices(list(self._roles), list(self._roles.values()))
            name = role.__name__
            try:
                await role()
            except Exception as error:  # noqa: BLE001 - whatever went wrong is the outcome
                self.problems[f"{name}: {type(error).__name__} {error}"] += 1
            else:
                self.crowd.done[name] += 1

    async def _size_when_empty(self) -> int:
        deadline = time.monotonic() + LEAVE_TIME
        while connections := await anyio.to_thread.run_sync(self._server.connections):
            if time.monotonic() > deadline:
                self.problems[f"{connections} connections stayed when all had left"] += 1
                break
            await anyio.sleep(0.2)
        return self._server.memory()


def summary(soak: Soak, last: dict[str, Any]) -> dict[str, Any]:
    """Return the outcome of a run."""
    problems = dict(soak.problems)
    for message in last["problems"]:
        problems[f"the server logged: {message}"] = problems.get(message, 0) + 1
    return {
        "done": dict(soak.crowd.done),
        "datagrams": soak.crowd.delivered,
        "memory": [*soak.memory, soak.peak],
        "counts": last["counts"],
        "ends": last["ends"],
        "problems": problems,
    }


def show(outcome: dict[str, Any], console: Console) -> None:
    """Print a summary for people."""
    table = Table("what", "how often")
    for name, count in sorted(outcome["done"].items()):
        table.add_row(name.replace("_", " "), str(count))
    table.add_row("datagrams delivered to correct clients", str(outcome["datagrams"]))
    for name, size in zip(
        ("after the first crowd", "in the end", "at its peak"), outcome["memory"], strict=True
    ):
        table.add_row(f"memory {name}", f"{size / (1 << 20):.1f} MiB")
    for name, count in list(outcome["problems"].items())[:PROBLEMS_SHOWN]:
        table.add_row(f"[red]{name}[/]", str(count))
    console.print(table)


def main() -> int:
    """Run the soak; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.derper", description=__doc__)
    parser.add_argument("--clients", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    chosen = parser.parse_args()

    needed = DESCRIPTORS_PER_CLIENT * chosen.clients + 256
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard), hard))
    console = Console(stderr=True)
    server = Server(chosen.backend, needed)
    try:
        soak = Soak(server, chosen.clients, chosen.seconds, chosen.seed)
        with Progress(console=console) as progress:
            anyio.run(soak.run, progress)
        outcome = summary(soak, server.stop())
    finally:
        server.kill()
    show(outcome, console)
    if chosen.json:
        print(json.dumps(outcome))
    return 1 if outcome["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
