"""``iroh-anyio derper`` as an operator runs it: its file, its signals, the examples of both."""

from __future__ import annotations

import configparser
import errno
import json
import logging
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from iroh_anyio.cli.derper import _reload, _Source
from iroh_anyio.derper import DerperPool
from iroh_anyio.derper.access import SharedTokens
from iroh_anyio.derper.config import DerperConfig
from iroh_anyio.derper.config_file import load_config
from iroh_anyio.derper.descriptors import descriptor_limit, raise_descriptor_limit
from tests.anyio.tls_files import Authority

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "derper"
COMMAND = [sys.executable, "-m", "iroh_anyio", "derper"]
LIMIT = 60.0  # seconds for a command on a busy machine

LOCAL = """
http_bind_addr = "127.0.0.1:0"
metrics_bind_addr = "127.0.0.1:0"
stun_bind_addr = "127.0.0.1:0"
"""


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        cwd=ROOT,
        env={**os.environ, **environ},
        check=False,
    )


class Running:
    """A server in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self.process = process
        self._errors = process.stderr
        line = process.stdout.readline()
        assert line, self._errors.read()
        self.ports: dict[str, Any] = json.loads(line)

    def said(self, words: str) -> str:
        """Wait for a line on stderr with these words; the test's time-out bounds it."""
        for line in self._errors:
            if words in line:
                return line
        raise AssertionError(f"it ended without saying {words!r}")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def get(self, path: str) -> int:
        with urllib.request.urlopen(self.ports["url"] + path, timeout=LIMIT) as response:
            return int(response.status)


@contextmanager
def running(*arguments: str, by: Sequence[str] = ()) -> Iterator[Running]:
    """Run a server, perhaps by way of another command."""
    with subprocess.Popen(
        [*by, *COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        try:
            yield Running(process)
        finally:
            process.kill()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "derper.toml"
    file.write_text(LOCAL)
    return file


class TestCheckConfig:
    def test_a_good_file_is_said_to_be_fine(self, path: Path) -> None:
        done = run("--config", str(path), "--check-config")
        assert (done.returncode, done.stdout) == (0, f"{path}: fine\n")

    def test_a_bad_file_is_an_error_that_names_file_and_key(self, path: Path) -> None:
        path.write_text("http_bind_addr = 80")
        done = run("-c", str(path), "--check-config")
        assert done.returncode == 1
        assert done.stderr.startswith(f"Error: {path}: http_bind_addr: ")
        assert done.stdout == ""

    def test_what_has_no_effect_is_a_warning(self, path: Path) -> None:
        path.write_text(f"key_cache_capacity = 5\n{LOCAL}")
        done = run("--config-path", str(path), "--check-config")
        assert done.returncode == 0
        assert done.stderr.startswith(f"warning: {path}: key_cache_capacity has no effect: ")

    def test_certificates_are_looked_at(self, path: Path) -> None:
        missing = path.parent / "default.crt"
        path.write_text(f'[tls]\ncert_mode = "Manual"\ncert_dir = "{path.parent}"')
        done = run("--config", str(path), "--check-config")
        assert done.returncode == 1
        assert f"{missing}: No such file" in done.stderr

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([], "--config FILE, or --dev"),
            (["--check-config"], "needs --config"),
            (["--config", "x", "--port", "1"], "stand in the file"),
        ],
    )
    def test_wrong_usage_is_told(self, arguments: list[str], words: str) -> None:
        done = run(*arguments)
        assert done.returncode == 2
        assert words in done.stderr


class TestSignals:
    def test_hangup_has_the_file_and_the_certificate_read_again(self, path: Path) -> None:
        authority, folder = Authority.make(), path.parent
        files = folder / "default.crt", folder / "default.key"
        authority.issue(*files, serial=1)
        tls = (
            f'{LOCAL}[tls]\ncert_mode = "Reloading"\ncert_dir = "{folder}"\n'
            'https_bind_addr = "127.0.0.1:0"\nhostname = ["localhost", "other"]\n'
        )
        path.write_text(tls)
        with running("--config", str(path), "-v") as server:
            assert server.ports["url"] == f"https://localhost:{server.ports['port']}"
            authority.issue(*files, serial=2)
            path.write_text(tls + "[limits]\naccept_conn_limit = 5\n")
            server.signal(signal.SIGHUP)
            server.said(f"new certificate from {files[0]}")
            server.said(f"read {path} again")
            files[1].write_text("no key")
            server.signal(signal.SIGHUP)
            server.said("keeping the old certificate")
            path.write_text("nonsense = 1")
            server.signal(signal.SIGHUP)
            server.said(f"keeping the old settings: {path}: nonsense: no such key")
            path.write_text(f"key_cache_capacity = {'1' * 5000}")
            server.signal(signal.SIGHUP)
            server.said(f"keeping the old settings: {path}: a number has too many digits")
            path.write_text(tls + "[derper]\nmax_connections = 3\n")
            server.signal(signal.SIGHUP)
            server.said("these hold after a restart: derper.max_connections")
            assert server.process.poll() is None

    def test_that_the_file_was_read_is_said_always(
        self, path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        class Taking(DerperPool):
            def __init__(self) -> None: ...

            def reload(self, config: DerperConfig) -> list[str]:
                return []

        _reload(Taking(), _Source(path, dev=False, workers=None))
        assert capsys.readouterr().err == f"read {path} again\n"

    def test_settings_that_cannot_be_passed_on_leave_the_old_ones(
        self, path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        class Full(DerperPool):
            def __init__(self) -> None: ...

            def reload(self, config: DerperConfig) -> list[str]:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        _reload(Full(), _Source(path, dev=False, workers=None))
        assert "keeping the old settings: [Errno 24] Too many open files" in capsys.readouterr().err

    def test_terminate_lets_clients_go_and_ends(self, path: Path) -> None:
        with running("--config", str(path), "-v") as server:
            assert server.get("/ping") == 200
            server.signal(signal.SIGTERM)
            server.said("letting clients leave")
            assert server.process.wait(LIMIT) == 128 + signal.SIGTERM

    def test_terminate_twice_ends_at_once(self, path: Path) -> None:
        path.write_text(f"{LOCAL}[derper]\ndrain_time = 3600")
        with running("--config", str(path), "-vv") as server, client_of(server):
            server.said("ClientConnected")  # clients of v3 believe so earlier
            server.signal(signal.SIGTERM)
            server.said("letting clients leave")
            server.signal(signal.SIGTERM)
            assert server.process.wait(LIMIT) == 128 + signal.SIGTERM

    def test_interrupt_ends_it(self, path: Path) -> None:
        with running("--config", str(path)) as server:
            server.signal(signal.SIGINT)
            assert server.process.wait(LIMIT) == 128 + signal.SIGINT


class TestOpenFiles:
    FEW = ("sh", "-c", 'ulimit -S -n 200 && exec "$@"', "sh")

    @pytest.mark.parametrize("workers", [1, 2])
    def test_a_server_may_have_as_many_as_the_hard_limit(self, path: Path, workers: int) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        arguments = "--config", str(path), "--workers", str(workers), "-v"
        with running(*arguments, by=self.FEW) as server:
            server.said(f"up to {hard} open files, where the limit was 200")
            children = children_of(server.process.pid)
            assert len(children) == (workers if workers > 1 else 0)
            for pid in (server.process.pid, *children):
                assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (hard, hard)

    @pytest.mark.parametrize("soft", [500, resource.RLIM_INFINITY])
    def test_a_limit_that_is_no_lower_stays(
        self, soft: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, 500))
        monkeypatch.setattr(resource, "setrlimit", None)
        raise_descriptor_limit()
        assert descriptor_limit() == (500 if soft == 500 else sys.maxsize)

    def test_a_system_that_does_not_let_it_is_no_error(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def refuse(which: int, limits: tuple[int, int]) -> None:
            raise PermissionError("not here")

        monkeypatch.setattr(resource, "getrlimit", lambda which: (100, 500))
        monkeypatch.setattr(resource, "setrlimit", refuse)
        with caplog.at_level(logging.INFO):
            raise_descriptor_limit()
        assert "no more than 100 open files: not here" in caplog.text


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def client_of(server: Running) -> Iterator[None]:
    """Run a node whose home is the server."""
    url = f"http://127.0.0.1:{server.ports['port']}"
    node = [sys.executable, "-m", "iroh_anyio", "listen", "--bind", "127.0.0.1:0", "--derp", url]
    nothing = subprocess.DEVNULL
    with subprocess.Popen(
        node, stdin=subprocess.PIPE, stdout=nothing, stderr=nothing, cwd=ROOT
    ) as process:
        try:
            yield
        finally:
            process.kill()


def test_a_taken_port_names_address_file_and_key(path: Path) -> None:
    with running("--config", str(path)) as server:
        path.write_text(LOCAL.replace(":0", f":{server.ports['port']}", 1))
        done = run("--config", str(path))
        assert done.returncode == 1
        assert done.stderr == (
            f"Error: cannot bind 127.0.0.1 TCP port {server.ports['port']}: Address already in "
            f"use: set http_bind_addr in {path}\n"
        )


def test_dev_serves_plain_http_what_the_file_says_otherwise(path: Path) -> None:
    path.write_text(f'{LOCAL}[tls]\ncert_mode = "Manual"\n')
    done = run("--config", str(path), "--check-config", "--dev")
    assert "default.crt: No such file" in done.stderr  # for address discovery it is needed still
    path.write_text(LOCAL)
    with running("--config", str(path), "--dev") as server:
        assert server.ports["url"].startswith("http://")
        assert server.get("/healthz") == 200


class TestExamples:
    @pytest.mark.parametrize("name", ["minimal.toml", "tls.toml", "tokens.toml"])
    def test_every_file_is_read_without_a_notice(self, name: str) -> None:
        assert load_config(EXAMPLES / name).notices == ()

    def test_they_are_all_tried(self) -> None:
        assert {file.name for file in EXAMPLES.glob("*.toml")} == {
            "minimal.toml",
            "tls.toml",
            "tokens.toml",
        }

    def test_tokens_are_required_by_the_one_about_tokens(self) -> None:
        config = load_config(EXAMPLES / "tokens.toml")
        assert isinstance(config.access, SharedTokens)
        assert len(config.access.tokens) == 2

    def test_what_the_one_about_tls_calls_usual_is_usual(self) -> None:
        config = load_config(EXAMPLES / "tls.toml")
        usual = DerperConfig(http_bind_addr=config.http_bind_addr)
        assert config.max_connections == usual.max_connections
        assert config.drain_time == usual.drain_time

    @pytest.mark.parametrize("key", ["ExecStartPre", "ExecStart"])
    def test_the_unit_runs_what_there_is(self, key: str, path: Path) -> None:
        unit = read_unit()
        program, *arguments = shlex.split(unit["Service"][key])
        assert Path(program).name == "iroh-anyio"
        arguments[arguments.index("/etc/derper/derper.toml")] = str(path)
        done = run(*arguments[1:], *([] if "--check-config" in arguments else ["--check-config"]))
        assert done.returncode == 0, done.stderr

    def test_the_unit_waits_longer_than_the_server_drains(self) -> None:
        unit = read_unit()
        config = load_config(EXAMPLES / "tls.toml")
        assert float(unit["Service"]["TimeoutStopSec"]) > config.drain_time + 5
        assert int(unit["Service"]["SuccessExitStatus"]) == 128 + signal.SIGTERM

    def test_the_container_opens_the_ports_of_the_file(self) -> None:
        text = (EXAMPLES / "Containerfile").read_text()
        config = load_config(EXAMPLES / "tls.toml")
        assert config.tls is not None
        tcp = [config.http_bind_addr, config.tls.https_bind_addr, config.metrics_bind_addr]
        udp = [config.stun_bind_addr, config.tls.quic_bind_addr]
        expected = {f"{address.port}/tcp" for address in tcp if address is not None}
        expected |= {f"{address.port}/udp" for address in udp if address is not None}
        exposed = re.search(r"^EXPOSE (.*)$", text, re.MULTILINE)
        assert exposed is not None
        assert set(exposed[1].split()) == expected
        entry = re.search(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)
        assert entry is not None
        assert json.loads(entry[1])[1:] == ["derper"]


def read_unit() -> configparser.ConfigParser:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]  # keys as they are written
    unit.read(EXAMPLES / "derper.service")
    return unit
