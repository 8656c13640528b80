"""Tailscale's own DERP server, run for one test."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

DERPER_VARIABLE = "IROH_TAILSCALE_DERPER"
"""Where the program is; without it these tests are skipped, and say so."""

START_LIMIT = 10.0
STOP_LIMIT = 5.0


@dataclass(frozen=True)
class TailscaleDerper:
    """A running server, without TLS."""

    port: int
    stun_port: int
    log_file: Path

    @property
    def url(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self.log_file.read_text()


def program() -> str:
    """Return the program, or skip the test."""
    path = os.environ.get(DERPER_VARIABLE)
    if not path:
        pytest.skip(f"no Tailscale derper: its path belongs in {DERPER_VARIABLE}")
    return path


@contextmanager
def tailscale_derper(
    folder: Path, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[TailscaleDerper]:
    """Run a server in the network of the calling thread, until the end of the block."""
    port, stun_port = free_port(socket.SOCK_STREAM), free_port(socket.SOCK_DGRAM)
    log_file = folder / "derper.log"
    command: Sequence[str] = [
        program(),
        *("-a", f"127.0.0.1:{port}", "-http-port", "-1", "-stun-port", str(stun_port)),
        *("-c", str(folder / "derper.key")),
        *options,
    ]
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **(environment or {})},
        )
    derper = TailscaleDerper(port, stun_port, log_file)
    try:
        _wait_until_it_listens(process, derper)
        yield derper
    finally:
        process.terminate()
        try:
            process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port(kind: socket.SocketKind) -> int:
    """Return a port of loopback that nobody has."""
    with closing(socket.socket(socket.AF_INET, kind)) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _wait_until_it_listens(process: subprocess.Popen[bytes], derper: TailscaleDerper) -> None:
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", derper.port), 1.0).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    pytest.fail(f"the derper does not listen:\n{derper.log}", pytrace=False)
