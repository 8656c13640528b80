"""A direct path that dies without a word, and comes back, while a stream goes on.

Two hosts and a DERP server between them, in network namespaces. Each host has a cable to the
server and one to a switch of their own, which the test can break where neither host sees it::

    alice ---- 10.77.1.0/24 ---- server ---- 10.77.2.0/24 ---- bob
      └------- 10.77.3.0/24 ---- switch ---- 10.77.3.0/24 -----┘
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Any, TypeAlias

import pytest

ROOT = Path(__file__).parents[2]
NODE = Path(__file__).parent / "failover_node.py"

TRUST = 6.5  # seconds a silent direct path is believed in
START_LIMIT = 30.0  # seconds for a process to be ready on a busy machine
RETURN_LIMIT = 20.0  # seconds for the direct path to be found again: some heartbeats of 5 s

Report: TypeAlias = dict[str, Any]

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None,
    reason="needs network namespaces: Linux, root and iproute2",
)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=10)


class Hosts:
    """The namespaces ``alice``, ``bob``, ``server`` and ``switch``, wired as above."""

    def __init__(self, tag: str) -> None:
        self.names = {n: f"irohtest-{tag}-{n}" for n in ("alice", "bob", "server", "switch")}

    def build(self) -> None:
        for name in self.names.values():
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        self._cable("alice", "toserver", "10.77.1.2/24", "server", "alice", "10.77.1.1/24")
        self._cable("bob", "toserver", "10.77.2.2/24", "server", "bob", "10.77.2.1/24")
        switch = self.names["switch"]
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        for host, address in (("alice", "10.77.3.1/24"), ("bob", "10.77.3.2/24")):
            self._cable(host, "toswitch", address, "switch", host, None)
            ip("-n", switch, "link", "set", host, "master", "bridge")
        # The server listens on one address, which both hosts reach.
        ip("-n", self.names["server"], "addr", "add", "10.77.0.1/32", "dev", "lo")
        ip("-n", self.names["alice"], "route", "add", "10.77.0.1", "via", "10.77.1.1")
        ip("-n", self.names["bob"], "route", "add", "10.77.0.1", "via", "10.77.2.1")

    def _cable(
        self, a: str, a_link: str, a_address: str, b: str, b_link: str, b_address: str | None
    ) -> None:
        space_a, space_b = self.names[a], self.names[b]
        ip(*f"link add {a_link} netns {space_a} type veth".split(),
           *f"peer name {b_link} netns {space_b}".split())  # fmt: skip
        ip("-n", space_a, "addr", "add", a_address, "dev", a_link)
        ip("-n", space_a, "link", "set", a_link, "up")
        if b_address is not None:
            ip("-n", space_b, "addr", "add", b_address, "dev", b_link)
        ip("-n", space_b, "link", "set", b_link, "up")

    def set_switch(self, *, working: bool) -> None:
        ip("-n", self.names["switch"], "link", "set", "bridge", "up" if working else "down")

    def remove(self) -> None:
        for name in self.names.values():
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


class Process:
    """A process on one of the hosts that reports in lines of JSON."""

    def __init__(self, space: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", space, sys.executable, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self._reports: Queue[Report] = Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._reports.put(json.loads(line))

    def wait_for(self, wanted: Callable[[Report], bool], limit: float) -> Report:
        """Return the first report that is wanted; numbers have to be in order."""
        deadline = time.monotonic() + limit
        seen: list[Report] = []
        while True:
            try:
                report = self._reports.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                pytest.fail(f"not reported within {limit} s; seen instead: {seen[-5:]}")
            assert report.get("event") != "disorder", report
            if wanted(report):
                return report
            seen.append(report)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        self._reader.join(10)
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture(params=["asyncio", "trio"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    hosts = Hosts(str(os.getpid()))
    try:
        hosts.build()
        yield hosts
    finally:
        hosts.remove()


@contextmanager
def process(space: str, *arguments: str) -> Iterator[Process]:
    running = Process(space, *arguments)
    try:
        yield running
    finally:
        running.close()


def is_path(*kinds: str) -> Callable[[Report], bool]:
    return lambda report: report.get("event") == "path" and report["kind"] in kinds


def is_number_from(number: int) -> Callable[[Report], bool]:
    return lambda report: report.get("event") == "number" and report["number"] >= number


def test_stream_survives_the_death_and_return_of_the_direct_path(
    hosts: Hosts, backend: str
) -> None:
    names = hosts.names
    with ExitStack() as stack:
        derper = stack.enter_context(
            process(
                names["server"],
                *("-m", "iroh_anyio", "derper", "--dev", "--host", "10.77.0.1", "--port", "3340"),
            )
        )
        derp = derper.wait_for(lambda report: "url" in report, START_LIMIT)["url"]
        node = [str(NODE), backend]
        alice = stack.enter_context(process(names["alice"], *node, "serve", derp))
        ready = alice.wait_for(lambda report: report["event"] == "ready", START_LIMIT)
        bob = stack.enter_context(process(names["bob"], *node, "dial", derp, ready["node_id"]))

        direct = bob.wait_for(is_path("direct"), START_LIMIT)
        assert direct["addr"].startswith("10.77.3.1:")

        hosts.set_switch(working=False)
        bob.wait_for(is_path("derp", "mixed"), TRUST + 1.0)
        carried = bob.wait_for(is_number_from(0), TRUST)["number"]
        bob.wait_for(is_number_from(carried + 50), 10.0)

        hosts.set_switch(working=True)
        direct = bob.wait_for(is_path("direct"), RETURN_LIMIT)
        assert direct["addr"].startswith("10.77.3.1:")
        carried = bob.wait_for(is_number_from(0), TRUST)["number"]
        bob.wait_for(is_number_from(carried + 50), 10.0)
