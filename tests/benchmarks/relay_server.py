"""A whole DERP server under load, against a pump that moves the same bytes without a look at them.

The server is one process, on one core, and all its clients another, on the other core. The figures
are of the server: processor time for one relayed packet of 1,200 bytes with 200 clients, the time
that a lone packet takes, and the memory of an idle client.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path

ROUNDS = 5
TIME_LIMIT = 120  # seconds for one measurement
IDLE_CLIENTS = 1_000
DESCRIPTORS = 4_096
BACKENDS = ("asyncio", "trio")
ROOT = Path(__file__).parents[2]


def run() -> dict[str, float]:
    """Return the server's figures over the pump's, and KiB for an idle client."""
    allow_descriptors()
    kinds: list[tuple[str, str | None]] = [("pump", None)]
    kinds += [(backend, form) for form in ("framed", "websocket") for backend in BACKENDS]
    rounds = [{kind: _measure(*kind) for kind in kinds} for _ in range(ROUNDS)]
    found: dict[str, float] = {}
    for backend, form in kinds[1:]:
        for figure in ("bursts", "single", "p50", "p99"):
            ratios = [one[backend, form][figure] / one["pump", None][figure] for one in rounds]
            found[f"{form}_{figure}_{backend}"] = statistics.median(ratios)
    for figure in ("bursts", "single", "p50", "p99"):
        found[f"pump_{figure}_us"] = statistics.median(one["pump", None][figure] for one in rounds)
    for backend in BACKENDS:
        found[f"memory_{backend}"] = _memory(backend)
        found[f"memory_tls_{backend}"] = _memory(f"{backend}-tls")
    return found


def _measure(kind: str, form: str | None) -> dict[str, float]:
    return _with_server(kind, [] if form is None else ["--form", form])


def _memory(kind: str) -> float:
    options = ["--memory", "--form", "framed", "--clients", str(IDLE_CLIENTS)]
    tls = ["--tls"] if kind.endswith("-tls") else []
    return _with_server(kind, [*options, *tls])["memory"]


def _with_server(kind: str, options: list[str]) -> dict[str, float]:
    module = [sys.executable, "-m"]
    server = subprocess.Popen(
        [*module, "tests.benchmarks.relay_contenders", kind],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    with server:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        try:
            load = subprocess.run(
                [*module, "tests.benchmarks.relay_load", port, str(server.pid), *options],
                cwd=ROOT,
                check=True,
                timeout=TIME_LIMIT,
                stdout=subprocess.PIPE,
                text=True,
            )
        finally:
            server.kill()
    figures: dict[str, float] = json.loads(load.stdout)
    return figures


def allow_descriptors() -> None:
    """Have this process, and those it starts, hold as many connections as the benchmarks need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < DESCRIPTORS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(DESCRIPTORS, hard), hard))
