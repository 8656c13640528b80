"""``iroh-anyio lab``: experiments in the simulated network."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TextIO

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from iroh_anyio.cli.common import say
from iroh_anyio.cli.lab_scale import scale
from iroh_anyio.cli.lab_timeline import draw, replay_command
from iroh_proto.testing.nat_matrix import KINDS, Cell, NatPair, run_cell
from iroh_proto.testing.nat_picture import describe, draw_matrix

DEFAULT_SEEDS = 20  # runs a cell: a minute on one core


@click.group()
def lab() -> None:
    """Experiments in a simulated network, on a virtual clock."""


lab.add_command(scale)
lab.add_command(draw)
lab.add_command(replay_command)


@lab.command()
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=DEFAULT_SEEDS,
    show_default=True,
    help="Runs of each pair, with the seeds 0, 1, 2 and so on.",
)
@click.option(
    "--svg",
    type=click.File("w", encoding="utf-8", lazy=False),
    metavar="FILE",
    help="Draw a heat map into FILE.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, each run's time included.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=lambda: os.cpu_count() or 1,
    show_default="one per core",
    help="Processes to share the work.",
)
def nat_matrix(seeds: int, svg: TextIO | None, as_json: bool, jobs: int) -> None:
    """Run every pair of NAT kinds and compare it with theory.

    Two nodes that know only each other's id and relay try to become direct through their NATs.
    Each cell of the table says how many of the runs did, and the median of the virtual seconds
    that it took. Exits with 1 if a cell differs from theory.

    A kind is how it maps and how it filters, by RFC 4787: EI is endpoint-independent, AD
    address-dependent, APD address-and-port-dependent.
    """
    cells = _run_all(seeds, jobs)
    if svg is not None:
        svg.write(draw_matrix(cells))
        svg.close()
    if as_json:
        click.echo(json.dumps({"seeds": seeds, "cells": [_as_json(cell) for cell in cells]}))
    else:
        Console(width=None if os.isatty(1) else 120).print(_table(cells, seeds))
    wrong = [cell for cell in cells if not cell.agrees]
    if wrong:
        raise click.ClickException(
            "\n".join([f"{len(wrong)} cells differ from theory", *map(describe, wrong)])
        )


@lab.command()
@click.argument("left", type=click.Choice(list(KINDS)))
@click.argument("right", type=click.Choice(list(KINDS)))
@click.option("--seed", type=int, default=0, show_default=True, help="Which run.")
def nat_pair(left: str, right: str, seed: int) -> None:
    """Run one pair of NAT kinds and print its time line as JSON lines.

    The node behind LEFT dials the one behind RIGHT. `iroh-anyio lab draw` makes a picture of it.
    A kind is how the NAT maps and how it filters, by RFC 4787: EI is endpoint-independent, AD
    address-dependent, APD address-and-port-dependent.
    """
    pair = NatPair(KINDS[left], KINDS[right], seed=seed, recorded=True)
    seconds = pair.run()
    assert pair.timeline is not None
    for line in pair.timeline.lines():
        click.echo(line)
    say("relayed" if seconds is None else f"direct after {seconds:.2f} s")


def _run_all(seeds: int, jobs: int) -> list[Cell]:
    """Run all pairs, showing on stderr how far it is, and return them row by row."""
    pairs = [(left, right) for left in KINDS for right in KINDS]
    columns = (TextColumn("pairs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    done: dict[tuple[str, str], Cell] = {}
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        for cell in progress.track(_cells(pairs, seeds, jobs), total=len(pairs)):
            done[cell.left, cell.right] = cell
    return [done[pair] for pair in pairs]


def _cells(pairs: list[tuple[str, str]], seeds: int, jobs: int) -> Iterator[Cell]:
    """Yield cells as they are done, in any order."""
    if jobs == 1:
        for left, right in pairs:
            yield run_cell(left, right, seeds=range(seeds))
        return
    with ProcessPoolExecutor(jobs) as pool:
        runs = [pool.submit(run_cell, left, right, seeds=range(seeds)) for left, right in pairs]
        try:
            for run in as_completed(runs):
                yield run.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _table(cells: list[Cell], seeds: int) -> Table:
    agreeing = sum(cell.agrees for cell in cells)
    table = Table(
        title="Share of runs that became direct, and the median time, by mapping/filtering",
        caption=f"Rows dial, columns are dialled. {seeds} runs a cell; "
        f"{agreeing} of {len(cells)} cells as theory predicts.",
    )
    table.add_column("NAT", style="bold", no_wrap=True)
    for name in KINDS:
        table.add_column(name, justify="right")
    by_pair = {(cell.left, cell.right): cell for cell in cells}
    for left in KINDS:
        table.add_row(left, *(_shown(by_pair[left, right]) for right in KINDS))
    return table


def _shown(cell: Cell) -> str:
    median = cell.median_time
    text = (
        f"{cell.share_direct:.0%}" if median is None else f"{cell.share_direct:.0%} {median:.1f}s"
    )
    if not cell.agrees:
        return f"[bold red]{text} ![/]"
    return f"[green]{text}[/]" if cell.expects_direct else f"[dim]{text}[/]"


def _as_json(cell: Cell) -> dict[str, Any]:
    return {
        "left": cell.left,
        "right": cell.right,
        "theory": "direct" if cell.expects_direct else "relayed",
        "agrees": cell.agrees,
        "share_direct": cell.share_direct,
        "median_seconds": cell.median_time,
        "seconds": list(cell.times),
    }
