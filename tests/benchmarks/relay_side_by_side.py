"""``python -m tests.benchmarks.relay_side_by_side``: our DERP server beside those of others.

All are given the same load by the same clients, each in the dialect that it has. Those of others
are programs that the environment names, as for the tests against them (tests/interop/README.md);
what it does not name is left out, and said. A server has one core and its clients the other, so
that packets by the second are as many as that one process of clients can move, too. The table tells
processor time a packet, packets a second, and the memory of an idle client.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks.relay_contenders import SERVER_CORE
from tests.benchmarks.relay_server import IDLE_CLIENTS, allow_descriptors
from tests.interop.relay_program import RELAY_0_35, RELAY_1, free_port
from tests.interop.tailscale_derper import DERPER_VARIABLE

ROOT = Path(__file__).parents[2]
ROUNDS = 3
START_LIMIT = 20.0
TIME_LIMIT = 120

Command = Callable[[int, Path], Sequence[str]]


def _ours(port: int, folder: Path) -> Sequence[str]:
    text = f'http_bind_addr = "127.0.0.1:{port}"\nenable_stun = false\nenable_metrics = false\n'
    return [sys.executable, "-m", "iroh_anyio", "derper", "--config", _config(folder, text)]


def _iroh_relay(port: int, folder: Path) -> Sequence[str]:
    text = f'enable_relay = true\nhttp_bind_addr = "127.0.0.1:{port}"\nenable_metrics = false\n'
    return ["-c", _config(folder, text)]


def _tailscale(port: int, folder: Path) -> Sequence[str]:
    return [
        *("-a", f"127.0.0.1:{port}", "-http-port", "-1", "-stun=false"),
        *("-c", str(folder / "derper.key")),
    ]


def _config(folder: Path, text: str) -> str:
    path = folder / "relay.toml"
    path.write_text(text)
    return str(path)


SERVERS: tuple[tuple[str, str | None, Command, Sequence[str]], ...] = (
    ("ours", None, _ours, ("framed", "websocket", "tailscale")),
    ("iroh-relay 1.0.3", RELAY_1.variable, _iroh_relay, ("websocket",)),
    ("iroh-relay 0.35.0", RELAY_0_35.variable, _iroh_relay, ("framed",)),
    ("Tailscale derper", DERPER_VARIABLE, _tailscale, ("tailscale",)),
)
"""A name, where its program is said, its arguments, and the forms to speak to it."""


def main() -> None:
    console = Console(stderr=True)
    allow_descriptors()
    results: dict[str, dict[str, float]] = {}
    for name, variable, command, forms in SERVERS:
        program = [] if variable is None else [os.environ.get(variable, "")]
        if program == [""]:
            console.print(f"{name} is left out: {variable} does not name its program")
            continue
        for form in forms:
            with console.status(f"{name}, {form}"):
                results[f"{name}, {form}"] = _measure(program, command, form)
    table = Table("server, dialect", "µs, bursts", "µs, alone", "1/s, bursts", "1/s, alone", "KiB")
    for name, figures in results.items():
        table.add_row(
            name,
            *(f"{figures[key]:.1f}" for key in ("bursts", "single")),
            *(f"{figures[key]:,.0f}" for key in ("packets", "lone_packets")),
            f"{figures['memory']:.1f}",
        )
    console.print(table)
    print(json.dumps(results))


def _measure(program: Sequence[str], command: Command, form: str) -> dict[str, float]:
    rounds = [_load(program, command, ["--form", form]) for _ in range(ROUNDS)]
    found = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
    memory = ["--memory", "--form", form, "--clients", str(IDLE_CLIENTS)]
    return found | _load(program, command, memory)


def _load(program: Sequence[str], command: Command, options: Sequence[str]) -> dict[str, float]:
    with _serving(program, command) as (port, pid):
        load = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.relay_load", str(port), str(pid), *options],
            cwd=ROOT,
            check=True,
            timeout=TIME_LIMIT,
            stdout=subprocess.PIPE,
            text=True,
        )
    figures: dict[str, float] = json.loads(load.stdout)
    return figures


@contextmanager
def _serving(program: Sequence[str], command: Command) -> Iterator[tuple[int, int]]:
    port = free_port(socket.SOCK_STREAM)
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [*program, *command(port, Path(folder))],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with server:
            try:
                os.sched_setaffinity(server.pid, {SERVER_CORE})
                _wait_for(port, server)
                yield port, server.pid
            finally:
                server.kill()


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError("the server does not listen")


if __name__ == "__main__":
    main()
