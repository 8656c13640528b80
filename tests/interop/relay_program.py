"""Released ``iroh-relay`` servers as programs, built by whoever runs the tests.

Their paths come from the environment, since building one takes minutes; see the README here.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

START_LIMIT = 20.0
"""Seconds until a server accepts connections."""

STOP_LIMIT = 5.0
"""Seconds that a server has to end when it is asked to."""


@dataclass(frozen=True)
class RelayProgram:
    """A release: where the environment says its program is, and how it is configured."""

    version: str
    variable: str

    def path(self) -> Path:
        """Return the program, or skip the test where nobody has built it."""
        value = os.environ.get(self.variable)
        if not value:
            pytest.skip(f"{self.variable} does not name an iroh-relay {self.version}")
        return Path(value)


RELAY_1 = RelayProgram("1.0.3", "IROH_RELAY_1")
RELAY_0_95 = RelayProgram("0.95.1", "IROH_RELAY_0_95")
RELAY_0_90 = RelayProgram("0.90.0", "IROH_RELAY_0_90")
RELAY_0_35 = RelayProgram("0.35.0", "IROH_RELAY_0_35")


def free_port(kind: socket.SocketKind) -> int:
    """Return a port of 127.0.0.1 that nothing has now."""
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def running(
    program: RelayProgram, settings: str, port: int, scratch: Path
) -> AsyncIterator[None]:
    """Run a server with a configuration file until it is not needed any more."""
    log_path = scratch / "relay.log"
    process = _start(program.path(), settings, scratch / "relay.toml", log_path)
    try:
        await _wait_for(port, process)
        yield
    except Exception as error:
        error.add_note(f"--- iroh-relay {program.version} ---\n{log_path.read_text()[-3000:]}")
        raise
    finally:
        process.terminate()
        try:
            process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _start(path: Path, settings: str, config: Path, log_path: Path) -> subprocess.Popen[bytes]:
    config.write_text(settings)
    # Not by anyio: on trio that forks from a worker thread, whose network may be another.
    with log_path.open("wb") as log:
        return subprocess.Popen(
            [path, "-c", config], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


async def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    with anyio.fail_after(START_LIMIT):
        while process.poll() is None:
            try:
                stream = await anyio.connect_tcp("127.0.0.1", port)
            except OSError:
                await anyio.sleep(0.05)
            else:
                await stream.aclose()
                return
    raise RuntimeError(f"iroh-relay ended by itself with {process.returncode}")
