"""The server of the soak, a process of its own: it says its port first and its counts last."""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import sys
from collections import Counter

import anyio

from iroh_anyio.derper import Derper
from iroh_proto.derp.rate import RateLimit
from iroh_proto.derp.relay_events import ClientDisconnected

BURST_BYTES = 200_000
RATE_LIMIT = RateLimit(bytes_per_second=500_000, burst_bytes=BURST_BYTES)


class Log(logging.Handler):
    """Keeps what is logged as an error or worse, and why clients went."""

    def __init__(self) -> None:
        super().__init__()
        self.problems: list[str] = []
        self.ends: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        event = record.args[0] if isinstance(record.args, tuple) and record.args else None
        if record.levelno >= logging.ERROR:
            self.problems.append(record.getMessage())
        elif isinstance(event, ClientDisconnected):
            self.ends[str(event.error)] += 1


async def serve(max_connections: int) -> None:
    """Serve until standard input ends; a line on it asks for a collection of garbage."""
    log = Log()
    logging.getLogger().addHandler(log)
    logging.getLogger("iroh_anyio.derper").setLevel(logging.DEBUG)
    async with await Derper.bind(port=0, stun_port=None, max_connections=max_connections) as derper:
        derper.machine.set_rate_limit(RATE_LIMIT, now=anyio.current_time())
        print(derper.port, flush=True)
        while await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            gc.collect()
            print(json.dumps({"connections": derper.connections}), flush=True)
        stats = derper.machine.stats
    counts = dataclasses.asdict(stats)
    outcome = {"counts": counts, "problems": log.problems, "ends": log.ends}
    print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    anyio.run(serve, int(sys.argv[2]), backend=sys.argv[1])
