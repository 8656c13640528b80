"""Every pair of NATs that nftables can build does what theory predicts: real kernels, real nodes.

One host behind each kind of NAT dials one behind each kind, some times at once. It needs root and
nftables, and takes about half a minute.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from types import MappingProxyType
from typing import Any, Final

import anyio
import pytest
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from iroh_proto.testing.merging import merge
from iroh_proto.testing.nat import (
    ADDRESS_RESTRICTED,
    FULL_CONE,
    PORT_RESTRICTED,
    SYMMETRIC,
    NatKind,
)
from iroh_proto.testing.nat_matrix import TIME_LIMIT, predict
from iroh_proto.testing.replay import replay
from iroh_proto.testing.sequence import draw_sequence
from tests.interop.packages import REQUIRE_VARIABLE
from tests.nat.internet import SERVER_IP, Internet, missing

ROOT = Path(__file__).parents[2]

KINDS: Final[Mapping[str, NatKind]] = MappingProxyType(
    {
        "full cone": FULL_CONE,
        "address-restricted": ADDRESS_RESTRICTED,
        "port-restricted": PORT_RESTRICTED,
        "symmetric": SYMMETRIC,
    }
)
RUNS = 3
"""Runs of each pair, all at the same time."""

DIRECT_LIMIT = 120.0
"""Seconds for a pair to become direct. It takes 5, but a busy machine lets processes wait, and no
answer of theirs is in time then. What is not to become direct is watched for as long as in the
simulator."""

LIMIT = 220
"""Seconds for everything, on a busy machine."""

LINE_LIMIT = 4096  # bytes of a report

Order = dict[str, Any]
Report = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Matrix:
    """What became of all runs: by pair, the seconds until direct, or ``None``."""

    seconds: dict[tuple[str, str], list[float | None]]
    folder: Path

    def traces(self, left: str, right: str, run: int = 0) -> tuple[Path, Path]:
        name = name_of(left, right, run)
        return self.folder / f"{name}.first.jsonl", self.folder / f"{name}.second.jsonl"


def name_of(left: str, right: str, run: int) -> str:
    return f"{left}~{right}~{run}"


def limit_of(left: str, right: str) -> float:
    return DIRECT_LIMIT if predict(KINDS[left], KINDS[right]) else TIME_LIMIT


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    """Run all pairs."""
    lacking = missing()
    if lacking is not None:
        if os.environ.get(REQUIRE_VARIABLE) == "1":
            pytest.fail(f"real NATs are required: {lacking}", pytrace=False)
        pytest.skip(f"no real NATs: {lacking}")
    folder = tmp_path_factory.mktemp("nat")
    internet = Internet()
    try:
        seconds = anyio.run(run_all, internet, folder)
        yield Matrix(seconds, folder)
    finally:
        internet.remove()


async def run_all(internet: Internet, folder: Path) -> dict[tuple[str, str], list[float | None]]:
    names = {
        (left, right, run): name_of(left, right, run)
        for left in KINDS
        for right in KINDS
        for run in range(RUNS)
    }
    async with AsyncExitStack() as stack:
        with anyio.fail_after(LIMIT):
            derper = await stack.enter_async_context(
                running(internet.server, *f"iroh_anyio derper --dev --host {SERVER_IP}".split())
            )
            url = json.loads(await line_of(derper))["url"]
            waiting, dialling = Hosts(), Hosts()
            for number, kind in enumerate(KINDS):
                backends = ("asyncio", "trio")[:: 1 if number % 2 else -1]
                for hosts, role, backend in zip(
                    (dialling, waiting), ("dial", "serve"), backends, strict=True
                ):
                    space = internet.add_host(f"{role}{number}", kind)
                    program = ("tests.nat.node", backend, role, url, str(folder))
                    hosts[kind] = await stack.enter_async_context(running(space, *program))
            ready = await waiting.do({name: (right, {}) for (_, right, _), name in names.items()})
            orders = {
                name: (left, {"node_id": ready[name]["node_id"], "limit": limit_of(left, right)})
                for (left, right, _), name in names.items()
            }
            done = await dialling.do(orders)
    cells: dict[tuple[str, str], list[float | None]] = {}
    for (left, right, _), name in names.items():
        assert "error" not in done[name], f"{name}: {done[name]['error']}"
        cells.setdefault((left, right), []).append(done[name]["seconds"])
    return cells


class Hosts(dict[str, Process]):
    """The process behind each kind of NAT."""

    async def do(self, orders: dict[str, tuple[str, Order]]) -> dict[str, Report]:
        """Have nodes work, by name: where, and at what; return what they report."""
        done: dict[str, Report] = {}

        async def collect(kind: str, process: Process) -> None:
            assert process.stdin is not None
            mine = {name: order for name, (where, order) in orders.items() if where == kind}
            for name, order in mine.items():
                await process.stdin.send(json.dumps({"name": name, **order}).encode() + b"\n")
            lines = lines_of(process)
            while not mine.keys() <= done.keys():
                report = json.loads(await lines.receive_until(b"\n", LINE_LIMIT))
                done[report["name"]] = report

        async with anyio.create_task_group() as tasks:
            for kind, process in self.items():
                tasks.start_soon(collect, kind, process)
        return done


@asynccontextmanager
async def running(space: str, *module: str) -> AsyncIterator[Process]:
    """Run a module in a network namespace."""
    process = await anyio.open_process(
        ["ip", "netns", "exec", space, sys.executable, "-m", *module],
        stdin=PIPE,
        stdout=PIPE,
        stderr=None,
        cwd=ROOT,
    )
    try:
        yield process
    finally:
        process.terminate()
        with anyio.CancelScope(shield=True):
            await process.aclose()


def lines_of(process: Process) -> BufferedByteReceiveStream:
    assert process.stdout is not None
    return BufferedByteReceiveStream(process.stdout)


async def line_of(process: Process) -> bytes:
    return await lines_of(process).receive_until(b"\n", LINE_LIMIT)


@pytest.mark.parametrize("left", KINDS)
@pytest.mark.parametrize("right", KINDS)
def test_a_pair_does_what_theory_predicts(matrix: Matrix, left: str, right: str) -> None:
    times = matrix.seconds[left, right]
    is_direct = [seconds is not None for seconds in times]
    assert is_direct == [predict(KINDS[left], KINDS[right])] * RUNS, (
        f"{times}: iroh-anyio lab draw {' '.join(map(repr, map(str, matrix.traces(left, right))))}"
    )


def test_the_picture_shows_how_a_hole_was_punched(matrix: Matrix) -> None:
    files = matrix.traces("port-restricted", "port-restricted")
    picture = draw_sequence(merge([file.read_text().splitlines() for file in files]))
    assert picture.count("call me maybe") >= 2
    assert "did not arrive" in picture
    assert picture.count(">direct 203.0.113.") >= 2


def test_the_picture_shows_why_a_hole_was_not_punched(matrix: Matrix) -> None:
    first, _ = matrix.traces("port-restricted", "symmetric")
    picture = draw_sequence(first.read_text().splitlines())
    assert picture.count("no answer") > 2
    assert ">direct" not in picture


def test_what_real_nodes_decided_can_be_repeated(matrix: Matrix) -> None:
    for left in KINDS:
        for file in matrix.traces(left, "symmetric"):
            assert replay(file.read_text().splitlines()).difference is None
