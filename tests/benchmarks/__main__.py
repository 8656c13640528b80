"""``python -m tests.benchmarks``: every benchmark, nearly all as a ratio taken in one run.

The table goes to stderr and one line of JSON to stdout. Nothing fails for being slow.
"""

from __future__ import annotations

import argparse
import importlib
import json
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Item:
    """One line of the table: a ratio or size that a module's ``run()`` returns under ``key``."""

    module: str
    key: str
    text: str
    goal: float
    at_least: bool = True
    unit: str = "x"

    def met(self, ratio: float) -> bool:
        return ratio >= self.goal if self.at_least else ratio <= self.goal


RELAY_SERVER = (
    ("framed_bursts", "server time a relayed packet in bursts of 8, of a pump's", 3.0, "x"),
    ("framed_single", "the same, one packet per read", 2.0, "x"),
    ("websocket_bursts", "the same, bursts of 8 by websocket", 10.0, "x"),
    ("framed_p50", "time that a lone packet takes, of a pump's", 1.5, "x"),
    ("framed_p99", "the same, 99th percentile", 2.5, "x"),
    ("memory", "memory of an idle client", 10.0, " KiB"),
    ("memory_tls", "the same with TLS", 30.0, " KiB"),
)

ITEMS = (
    Item("frame_codec", "decode", "typed frame decode, of wsproto's parse rate", 8.0),
    Item("relay_route", "route", "relay parse, rewrite, group, of wsproto's parse rate", 15.0),
    Item("disco_box", "seal", "disco seal, of PyNaCl's XChaCha20 AEAD rate", 0.3),
    Item("disco_box", "open", "disco open, of PyNaCl's XChaCha20 AEAD rate", 0.3),
    Item("udp_io", "receive_asyncio", "UDP receive on asyncio, of raw recvfrom", 0.8),
    Item("udp_io", "receive_trio", "UDP receive on trio, of raw recvfrom", 0.8),
    Item("udp_io", "receive_gro_asyncio", "the same with GRO on asyncio", 3.0),
    Item("udp_io", "receive_gro_trio", "the same with GRO on trio", 3.0),
    Item("udp_io", "send_asyncio", "UDP send on asyncio, of raw sendto", 0.85),
    Item("udp_io", "send_trio", "UDP send on trio, of raw sendto", 0.85),
    Item("udp_io", "send_gso_asyncio", "the same with GSO on asyncio", 4.0),
    Item("udp_io", "send_gso_trio", "the same with GSO on trio", 4.0),
    Item("bulk_stream", "asyncio", "one stream on asyncio, of aioquic.asyncio", 1.5),
    Item("bulk_stream", "trio", "one stream on trio, of aioquic.asyncio", 1.5),
    *(
        Item("relay_server", f"{key}_{backend}", f"{text}, {backend}", goal, False, unit)
        for backend in ("asyncio", "trio")
        for key, text, goal, unit in RELAY_SERVER
    ),
    Item("handshake", "time", "handshake, times bare aioquic's", 1.5, at_least=False),
)


def main() -> None:
    names = list(dict.fromkeys(item.module for item in ITEMS))
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("only", nargs="*", help=f"some of: {', '.join(names)}")
    chosen = parser.parse_args().only or names
    if unknown := set(chosen) - set(names):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")

    console = Console(stderr=True)
    results: dict[str, dict[str, float]] = {}
    for name in chosen:
        with console.status(f"running {name}"):
            results[name] = importlib.import_module(f"tests.benchmarks.{name}").run()

    table = Table("item", "measured", "goal", "met")
    for item in ITEMS:
        if item.module in results:
            ratio = results[item.module][item.key]
            sign = "≥" if item.at_least else "≤"
            met = "[green]yes[/]" if item.met(ratio) else "[red]no[/]"
            measured, goal = f"{ratio:.2f}{item.unit}", f"{sign} {item.goal}{item.unit}"
            table.add_row(item.text, measured, goal, met)
    console.print(table)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
