"""Every program in the README runs as written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.interop.island import island

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


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


def test_readme_has_programs() -> None:
    assert PROGRAMS


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_program_runs_as_written(program: str, backend: str) -> None:
    if backend == "trio":
        assert "anyio.run(main)" in program
        program = program.replace("anyio.run(main)", 'anyio.run(main, backend="trio")')
    # Where it can be had, a network of its own, so that the port in the program is free.
    with island(), dev_derper(port=3340):
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=ROOT,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    kinds = [line.split()[0] for line in done.stdout.splitlines()]
    assert kinds[-1] == "direct"
    assert kinds[0] in ("derp", "mixed", "direct")
