"""A released iroh node in a process of its own, driven by JSON lines, on asyncio and on trio."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any, TypeAlias

import anyio

from iroh_proto import NodeAddr, NodeId, UdpAddress
from tests.interop import packages, programs

JsonObject: TypeAlias = dict[str, Any]

ROOT = Path(__file__).parents[2]

SCRIPTS = {
    "0.2.0": "iroh_0_2",
    "0.12.0": "iroh_0_12",
    "0.28.1": "iroh_0_35",
    "0.35.0": "iroh_0_35",
    "1.2.0": "iroh_1_2",
}
"""The runner of each release that is a package; :mod:`tests.interop.programs` has the others."""

ANSWER_LIMIT = 30.0
"""Seconds for one answer: twice what an old release takes to give up on a dial."""

START_LIMIT = 60.0
"""Seconds until a node is ready: loading 35 MB, and 3 s of probes where there is a network."""

EXIT_LIMIT = 5.0
"""Seconds from the end of stdin to the end of the process."""

STDERR_TAIL = 3000
"""Characters of a peer's stderr shown with a failure."""


class PeerError(Exception):
    """A peer answered with an error, or not at all."""


class RealPeer:
    """One running peer; made by :func:`real_peer`."""

    node_id: NodeId
    addresses: tuple[UdpAddress, ...]  # IPv4 before IPv6

    def __init__(self, version: str, scratch: Path, *, space: str | None = None) -> None:
        self.version = version
        self._space = space
        self._stderr_path = scratch / f"peer-{version}.stderr"
        self._process = self._spawn(scratch)
        os.set_blocking(self._output.fileno(), False)
        self._partial = b""
        self._lines: list[JsonObject] = []
        self._reading = anyio.Lock()
        self._commands: list[str] = []

    def _spawn(self, scratch: Path) -> subprocess.Popen[bytes]:
        command, environment = _command(self.version)
        with self._stderr_path.open("wb") as stderr:
            # Not by anyio: on trio that forks from a worker thread, whose network may be another.
            inside = [] if self._space is None else ["ip", "netns", "exec", self._space]
            return subprocess.Popen(
                [*inside, *command],
                cwd=ROOT,
                env={**os.environ, **environment, "TMPDIR": str(scratch)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )

    @property
    def _output(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    @property
    def process_id(self) -> int:
        """The id of the process, and of the process group that it leads."""
        return self._process.pid

    @property
    def node_addr(self) -> NodeAddr:
        """The id and the direct addresses."""
        return NodeAddr(self.node_id, direct_addresses=self.addresses)

    async def start(self, **options: object) -> None:
        """Start the node and learn its id and addresses."""
        answer = await self.call("start", limit=START_LIMIT, **options)
        self.node_id = NodeId.from_str(answer["node_id"])
        addresses = [_on_loopback(UdpAddress.from_str(text)) for text in answer["addresses"]]
        self.addresses = tuple(sorted(addresses, key=lambda address: address.sort_key))

    async def dial(self, addr: NodeAddr, alpn: bytes, *, limit: float = ANSWER_LIMIT) -> JsonObject:
        """Have the peer dial a node; answers ``connection``, a number, and ``remote_id``."""
        return await self.answer(self.begin_dial(addr, alpn), limit=limit)

    def begin_dial(self, addr: NodeAddr, alpn: bytes) -> int:
        """Do as :meth:`dial`, but do not wait for the :meth:`answer`."""
        return self.begin("dial", alpn=alpn.decode(), **_fields(addr))

    async def download(self, addr: NodeAddr, *, limit: float = ANSWER_LIMIT) -> list[str]:
        """Have a 0.12 ask a node for a blob that nobody has; return how far that came.

        The first step is "connected", when the node proved its id; each is an event as well.
        """
        steps: list[str] = (await self.answer(self.begin_download(addr), limit=limit))["steps"]
        return steps

    def begin_download(self, addr: NodeAddr) -> int:
        """Do as :meth:`download`, but do not wait for the :meth:`answer`."""
        return self.begin("download", **_fields(addr))

    async def join(self, addr: NodeAddr) -> None:
        """Have a 0.2 join a new document that a node is said to have; it dials from then on."""
        fields = _fields(addr)
        del fields["relay_url"]  # its DERP servers have numbers, compiled in
        await self.call("join", **fields)

    async def path_to(self, node_id: NodeId) -> str:
        """Return how the peer thinks it reaches a node: direct, mixed, relay or none."""
        return str((await self.call("path", node_id=str(node_id)))["kind"])

    async def call(
        self, command: str, *, limit: float = ANSWER_LIMIT, **parameters: object
    ) -> JsonObject:
        """Give a command and return its answer.

        :raises PeerError: if the answer is an error, or none came within ``limit`` seconds.
        """
        return await self.answer(self.begin(command, **parameters), limit=limit)

    def begin(self, command: str, **parameters: object) -> int:
        """Give a command and return its number."""
        self._commands.append(command)
        number = len(self._commands)
        request = {"id": number, "command": command, **parameters}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        return number

    async def answer(self, number: int, *, limit: float = ANSWER_LIMIT) -> JsonObject:
        """Return the answer to a command.

        :raises PeerError: if it is an error, or did not come within ``limit`` seconds.
        """
        command = self._commands[number - 1]
        line = await self._line(lambda line: line.get("id") == number, limit, f"to {command}")
        if "error" in line:
            raise PeerError(f"iroh {self.version}: {command} failed: {line['error']}")
        result: JsonObject = line["result"]
        return result

    async def event(self, name: str, *, limit: float = ANSWER_LIMIT) -> JsonObject:
        """Return the oldest event of this name, waiting for one if need be.

        :raises PeerError: if none came within ``limit`` seconds.
        """
        return await self._line(lambda line: line.get("event") == name, limit, f"of {name!r}")

    async def _line(
        self, is_wanted: Callable[[JsonObject], bool], limit: float, what: str
    ) -> JsonObject:
        with anyio.move_on_after(limit):
            while True:
                async with self._reading:
                    for line in self._lines:
                        if is_wanted(line):
                            self._lines.remove(line)
                            return line
                    await self._read()
        raise PeerError(f"iroh {self.version}: no news {what} within {limit:.0f} s")

    async def _read(self) -> None:
        if not await self._receive():
            code = self._process.wait(EXIT_LIMIT)
            raise PeerError(f"iroh {self.version}: the process ended by itself with {code}")

    async def _receive(self) -> bool:
        """Take the lines that are there, waiting for some; return false at the end."""
        await anyio.wait_readable(self._output.fileno())
        data = os.read(self._output.fileno(), 65536)
        *lines, self._partial = (self._partial + data).split(b"\n")
        self._lines.extend(json.loads(line) for line in lines)
        return bool(data)

    def stderr_tail(self) -> str:
        """Return the end of what the peer wrote to stderr."""
        tail = self._stderr_path.read_text(errors="replace")[-STDERR_TAIL:]
        return f"--- end of the stderr of iroh {self.version} ---\n{tail}"

    async def stop(self) -> None:
        """End the process and all of its group, gently within a limit."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with anyio.CancelScope(shield=True), anyio.move_on_after(EXIT_LIMIT):
            while await self._receive():
                pass
        os.killpg(self.process_id, signal.SIGKILL)
        self._process.wait()
        self._output.close()


@asynccontextmanager
async def real_peer(
    version: str, scratch: Path, *, space: str | None = None, **options: object
) -> AsyncIterator[RealPeer]:
    """Run a release; ``options`` go to the ``start`` command of its runner.

    :param space: the network namespace to run it in, by default that of the caller.
    :raises packages.PeerUnavailableError: if the release cannot be installed.
    :raises programs.PeerNotBuiltError: if the release is a program that nobody built.
    """
    peer = RealPeer(version, scratch, space=space)
    try:
        await peer.start(**options)
        yield peer
    except Exception as error:
        # Our side may be the one that noticed; the peer may still be the one who knows why.
        error.add_note(peer.stderr_tail())
        raise
    finally:
        await peer.stop()


def _command(version: str) -> tuple[list[str], dict[str, str]]:
    """Return how to run a release, and what its environment needs beside ours."""
    if version in programs.VARIABLES:
        return [str(programs.program(version))], {}
    path = os.pathsep.join([str(packages.installed(version)), str(ROOT)])
    script = f"tests.interop.peers.{SCRIPTS[version]}"
    return [sys.executable, "-m", script], {"PYTHONPATH": path}


def _fields(addr: NodeAddr) -> JsonObject:
    return {
        "node_id": str(addr.node_id),
        "relay_url": None if addr.derp_url is None else str(addr.derp_url),
        "addresses": [str(address) for address in addr.direct_addresses],
    }


def _on_loopback(address: UdpAddress) -> UdpAddress:
    """Return the loopback address of the same socket: the old releases bind every interface."""
    return UdpAddress("::1" if address.is_ipv6 else "127.0.0.1", address.port)
