"""One stream between two processes: ``MagicEndpoint`` at both ends against ``aioquic.asyncio``.

Both send datagrams of 1,200 bytes. The figure is the rate of bytes as the receiver saw it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.benchmarks.timing import interleaved

SIZE = 20 * 1024 * 1024
ROUNDS = 5
TIME_LIMIT = 120  # seconds for one transfer
ROOT = Path(__file__).parents[2]
PEER = [sys.executable, "-m", "tests.benchmarks.bulk_peer"]


def transfer(kind: str) -> float:
    """Return the rate of one transfer in bytes per second."""
    receiver = subprocess.Popen(
        [*PEER, kind, "receive", str(SIZE)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    with receiver:
        assert receiver.stdout is not None
        where = receiver.stdout.readline().strip()
        try:
            subprocess.run(
                [*PEER, kind, "send", str(SIZE), where],
                cwd=ROOT,
                check=True,
                timeout=TIME_LIMIT,
            )
            return float(receiver.stdout.readline())
        finally:
            receiver.terminate()


def run() -> dict[str, float]:
    """Return our rate on each backend over that of ``aioquic.asyncio``."""
    kinds = ("aioquic", "asyncio", "trio")
    rates = interleaved({kind: lambda kind=kind: transfer(kind) for kind in kinds}, ROUNDS)  # type: ignore[misc]
    return {
        "asyncio": rates["asyncio"] / rates["aioquic"],
        "trio": rates["trio"] / rates["aioquic"],
        "aioquic_mb_per_s": rates["aioquic"] / 1e6,
        "asyncio_mb_per_s": rates["asyncio"] / 1e6,
        "trio_mb_per_s": rates["trio"] / 1e6,
    }
