"""What README and ``docs/derper.md`` say of DERP servers, from nothing to nodes that meet."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import pytest

from iroh_anyio.derper.config import DerperConfig, TlsConfig
from iroh_anyio.derper.config_file import parse_config
from tests.interop.island import island

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FIRST_PART = README.split("\n## Run your own DERP server\n")[1].split("\n## ")[0]
OTHER_PARTS = (ROOT / "docs" / "derper.md").read_text(encoding="utf-8")
LIMIT = 120.0  # seconds for a snippet on a busy machine
SERVE = "iroh-anyio derper --config derper.toml"


class Snippet(NamedTuple):
    """A part of the text in a fence, and the word behind the fence."""

    kind: str
    text: str


def snippets(text: str) -> list[Snippet]:
    return [Snippet(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)]


@pytest.fixture(params=["asyncio", "trio"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Where ``iroh-anyio`` is this project, as after the installation."""
    program = tmp_path / "bin" / "iroh-anyio"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m iroh_anyio "$@"\n')
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}


def run(arguments: list[str], folder: Path, environ: dict[str, str]) -> str:
    done = subprocess.run(
        arguments,
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout}{done.stderr}"
    return done.stdout


@contextmanager
def serving(folder: Path, environ: dict[str, str]) -> Iterator[None]:
    with subprocess.Popen(
        SERVE.split(), cwd=folder, env=environ, stdout=subprocess.PIPE, text=True
    ) as process:
        # A reader of its own, since a server that does not start says nothing.
        killer = threading.Timer(LIMIT, process.kill)
        killer.start()
        try:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["url"] == "https://127.0.0.1:8443"
            yield
        finally:
            killer.cancel()
            process.terminate()
            process.wait(LIMIT)


def test_the_first_part_leads_from_nothing_to_nodes_that_meet(
    tmp_path: Path, environ: dict[str, str], backend: str
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    installation, *steps = snippets(FIRST_PART)
    assert "pip install '.[derper]'" in installation.text  # what the environment stands for
    at = next(i for i, step in enumerate(steps) if step.kind == "console")
    assert steps[at].text == f"$ {SERVE}\n"
    # Where it can be had, a network of its own, so that the ports in the text are free.
    with island():
        said = [take(step, folder, environ, backend) for step in steps[:at]]
        assert said[-1] == "derper.toml: fine\n"
        with serving(folder, environ):
            said = [take(step, folder, environ, backend) for step in steps[at + 1 :]]
    assert '"status":"ok"' in said[0]
    assert "relayserver_accepts_total 0" in said[0]
    assert said[1] == "hello\n"


def take(step: Snippet, folder: Path, environ: dict[str, str], backend: str) -> str:
    """Do what a snippet says and return what came out."""
    if step.kind == "sh":
        return run(["sh", "-eu", "-c", step.text], folder, environ)
    if step.kind == "python":
        assert "anyio.run(main)" in step.text
        program = step.text.replace("anyio.run(main)", f'anyio.run(main, backend="{backend}")')
        return run([sys.executable, "-c", program], folder, environ)
    assert step.kind == "toml"
    (folder / "derper.toml").write_text(step.text)
    return ""


def test_every_other_file_in_the_text_is_one() -> None:
    files = [snippet.text for snippet in snippets(OTHER_PARTS) if snippet.kind == "toml"]
    assert len(files) == 3
    for text in files:
        assert parse_config(text, environ={"IROH_DERPER_MESH_KEY": "1" * 64}).notices == ()


def test_every_setting_is_in_the_table() -> None:
    table = OTHER_PARTS[OTHER_PARTS.index("## Settings") :]
    own = {"max_connections", "drain_time", "listen_dialect", "mesh", "workers"}
    config = {field.name for field in fields(DerperConfig)}
    # What the file calls otherwise, or does not have.
    config -= {"notices", "may_lack_stun", "rate_limit", "accept_limit", "tls", *own}
    config -= {"mesh_key", "mesh_servers"}
    tls = {field.name for field in fields(TlsConfig)}
    tls -= {"hostnames", "certificate_path", "key_path"}
    expected = config | {f"tls.{name}" for name in tls} | {f"derper.{name}" for name in own}
    assert {name for name in expected if f"`{name}`" not in table} == set()
