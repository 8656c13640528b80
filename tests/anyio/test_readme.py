"""Every program and every test in the texts runs as written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from iroh_anyio.derper.config import DEV_PORT
from iroh_proto import NodeTicket, SecretKey
from tests.interop.island import island

ROOT = Path(__file__).parent.parent.parent
TEXTS = [ROOT / "README.md", ROOT / "docs" / "testing.md"]
SNIPPETS = [
    snippet
    for path in TEXTS
    for snippet in re.findall(
        r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
]
TESTS = [snippet for snippet in SNIPPETS if "def test_" in snippet]
PROGRAMS = [snippet for snippet in SNIPPETS if f'"http://127.0.0.1:{DEV_PORT}"' in snippet]
"""Those that want a server of the development form. The others are in test_docs_derper.py."""


@contextmanager
def dev_derper(port: int) -> Iterator[dict[str, object]]:
    command = [sys.executable, "-m", "iroh_anyio", "derper", "--dev", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield json.loads(line)
        finally:
            process.terminate()
            process.wait(10)


def test_the_texts_have_programs_and_tests() -> None:
    assert PROGRAMS
    assert TESTS


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_program_runs_as_written(program: str, backend: str, tmp_path: Path) -> None:
    if backend == "trio":
        assert "anyio.run(main)" in program
        program = program.replace("anyio.run(main)", 'anyio.run(main, backend="trio")')
    # Where it can be had, a network of its own, so that the port in the program is free.
    with island(), dev_derper(port=DEV_PORT):
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    if "load_or_create_secret_key" in program:
        key_file = tmp_path / "node.key"
        node_addr = NodeTicket.from_str(done.stdout).node_addr
        assert node_addr.node_id == SecretKey.from_str(key_file.read_text()).public
        assert node_addr.derp_url is not None
        return
    kinds = [line.split()[0] for line in done.stdout.splitlines()]
    assert kinds[-1] == "direct"
    assert kinds[0] in ("derp", "mixed", "direct")


@pytest.mark.parametrize("snippet", TESTS)
def test_test_passes_as_written(snippet: str, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "import pytest\n\n"
        "@pytest.fixture(params=['asyncio', 'trio'])\n"
        "def anyio_backend(request):\n"
        "    return request.param\n"
    )
    (tmp_path / "test_snippet.py").write_text(snippet, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "--strict-markers", "-W", "error", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
