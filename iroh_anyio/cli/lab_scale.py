"""``iroh-anyio lab scale``: what thousands of endpoints cost, most of them idle."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict

import click
import psutil  # type: ignore[import-untyped]
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from iroh_anyio.testing.scale import DERPERS_LIMIT, NODES_LIMIT, ScaleReport, ScaleRun


@click.command()
@click.option(
    "--nodes",
    type=click.IntRange(1, NODES_LIMIT),
    default=1_000,
    show_default=True,
    help="Endpoints, QUIC included.",
)
@click.option(
    "--derpers",
    type=click.IntRange(1, DERPERS_LIMIT),
    default=10,
    show_default=True,
    help="Relays among which they are spread.",
)
@click.option(
    "--hours",
    type=click.FloatRange(min=0.0, min_open=True),
    default=1.0,
    show_default=True,
    help="Virtual time.",
)
@click.option(
    "--pairs",
    type=click.IntRange(min=0),
    default=50,
    show_default=True,
    help="Pairs that talk now and then, behind NATs.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Which run.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def scale(nodes: int, derpers: int, hours: float, pairs: int, seed: int, *, as_json: bool) -> None:
    """Run a large network that is mostly idle, and say what it costs.

    Exits with 1 if an endpoint is without its relay at the end, or a talk got no answer.
    """
    if not math.isfinite(hours):
        raise click.UsageError("virtual time has to end")
    if 2 * pairs > nodes:
        raise click.UsageError(f"{pairs} pairs are more than {nodes} nodes make")
    memory_before, began = _memory(), time.process_time()
    run = ScaleRun(nodes=nodes, derpers=derpers, pairs=pairs, seed=seed)
    columns = (TextColumn("virtual time"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("", total=1.0)
        report = run.run(
            hours=hours, on_progress=lambda share: progress.update(task, completed=share)
        )
    cpu_seconds = time.process_time() - began
    bytes_per_node = (_memory() - memory_before) / nodes
    if as_json:
        measured = {"cpu_seconds": cpu_seconds, "bytes_per_node": bytes_per_node}
        click.echo(json.dumps({**asdict(report), **measured}))
    else:
        Console().print(_table(report, cpu_seconds, bytes_per_node))
    if report.at_home < nodes or report.answered < report.talks:
        raise click.ClickException(
            f"{nodes - report.at_home} endpoints are without their relay, "
            f"{report.talks - report.answered} talks got no answer"
        )


def _memory() -> int:
    return int(psutil.Process().memory_info().rss)


def _table(report: ScaleReport, cpu_seconds: float, bytes_per_node: float) -> Table:
    table = Table(title="A large network, mostly idle", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    per_node_hour = cpu_seconds / report.nodes / (report.seconds / 3_600) * 1_000
    rows = {
        "endpoints, relays, pairs": f"{report.nodes:,}, {report.derpers}, {report.pairs}",
        "virtual time": f"{report.seconds / 3_600:g} h",
        "processor time": f"{cpu_seconds:.1f} s",
        "the same per endpoint and hour": f"{per_node_hour:.0f} ms",
        "memory per endpoint": f"{bytes_per_node / 1024:.0f} KiB",
        "endpoints with their relay": f"{report.at_home:,}",
        "talks, answered, direct": f"{report.talks:,}, {report.answered:,}, "
        f"{report.became_direct:,}",
    }
    if report.idle_nodes:
        rows |= {
            "UDP datagrams per idle endpoint": f"{report.idle_datagrams:.3f} /s",
            "inputs per idle endpoint": f"{report.idle_inputs:.3f} /s",
            "of them timers": f"{report.idle_wakeups:.3f} /s",
        }
    for name, value in rows.items():
        table.add_row(name, value)
    return table
