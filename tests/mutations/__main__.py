"""Break one rule of the code after the other, and see which test notices.

::

    python -m tests.mutations              # all of them; fails if one is not caught
    python -m tests.mutations trust pong   # those with a word in their name
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.mutations.table import MUTATIONS, Mutation

ROOT = Path(__file__).parents[2]
PARTS = ("iroh_proto", "iroh_anyio", "tests", "pyproject.toml")
FAILURE = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
TIME_LIMIT = 900.0
"""Seconds for the tests of one mutation. Past it nothing is known, which counts as not caught."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("words", nargs="*", help="only mutations with one of these in their name")
    words = parser.parse_args().words
    chosen = [one for one in MUTATIONS if not words or any(word in one.name for word in words)]
    survivors = 0
    for mutation in chosen:
        caught_by = try_out(mutation)
        survivors += caught_by is None
        print(f"{mutation.name} -> {caught_by or 'NOT CAUGHT'}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} caught")
    return 1 if survivors else 0


def try_out(mutation: Mutation) -> str | None:
    """Run the tests against a broken copy, and return the first one that fails."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in PARTS:
            source = ROOT / part
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, copy / part, ignore=ignored)
            else:
                shutil.copy(source, copy / part)
        mutation.apply(copy)
        return first_failure(copy, [f"tests/proto/{name}" for name in mutation.tests])


def first_failure(copy: Path, tests: list[str]) -> str | None:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        result = subprocess.run(
            command, cwd=copy, capture_output=True, text=True, timeout=TIME_LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return None
    if result.returncode == 0:
        return None
    found = FAILURE.search(result.stdout)
    if found is None:
        raise SystemExit(f"the tests did not run:\n{result.stdout}{result.stderr}")
    return found[1]


if __name__ == "__main__":
    raise SystemExit(main())
