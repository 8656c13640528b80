"""What several processes of one server cost: processor time for a packet, here or across.

Pairs of clients are at one worker or at two as the kernel has it, so that of two workers about half
of the packets cross; what a crossing packet takes is worked out from that. The clients are one
process, on a core of its own. Packets per second are those of that one process, and tell something
only where there are more cores than workers.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import anyio

from iroh_anyio.derper import DerperPool
from iroh_anyio.derper.config_file import parse_config

ROOT = Path(__file__).parents[2]
ROUNDS = 3
SETTLING_TIME = 2.0  # seconds in which workers find each other, and tell what they counted
TEXT = """
http_bind_addr = "127.0.0.1:0"
enable_stun = false
enable_metrics = false
[derper]
workers = {workers}
"""


def run() -> dict[str, float]:
    """Return microseconds and packets per second, by workers, and what crossing costs."""
    rounds = [_round() for _ in range(ROUNDS)]
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


def _round() -> dict[str, float]:
    found: dict[str, float] = {}
    for workers in (1, 2):
        figures = anyio.run(_measure, workers)
        found |= {f"{name}_{workers}": value for name, value in figures.items()}
    crossing = found.pop("crossing_2")
    del found["crossing_1"]
    for name in ("bursts", "single"):
        local = found[f"{name}_1"]
        across = local + (found[f"{name}_2"] - local) / crossing
        found[f"{name}_across"] = across
        found[f"{name}_across_ratio"] = across / local
    return found


async def _measure(workers: int) -> dict[str, float]:
    async with await DerperPool.open(parse_config(TEXT.format(workers=workers))) as pool:
        await anyio.sleep(SETTLING_TIME)
        pids = map(str, pool.pids)
        load = await anyio.run_process(
            [
                *(sys.executable, "-m", "tests.benchmarks.relay_load", str(pool.port), *pids),
                *("--form", "framed", "--seconds", "2"),
            ],
            cwd=ROOT,
            stderr=None,
        )
        await anyio.sleep(SETTLING_TIME)
        router = pool.count().server.router
        figures: dict[str, float] = json.loads(load.stdout)
        return figures | {"crossing": router.packets_forwarded / max(1, router.packets_routed)}


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
