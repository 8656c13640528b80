"""Runs targets under atheris, each in a process of its own, and sums up what they say."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from fuzz.targets import load

ROOT = Path(__file__).parents[1]

INPUT_LIMIT = 8192
"""Bytes of an input. Packets have 1,500; streams are met by their beginnings."""

HANG_LIMIT = 120
"""Seconds that one input may take on a busy machine before it is a finding."""

MEMORY_LIMIT = 2048
"""MiB that a target's process may take before that is a finding."""

_STARTING = 300  # seconds for imports and the corpus, beyond which a process is stuck

_LOG_TAIL = 3000  # characters of what libFuzzer says that are kept where nothing was raised
_RAISED = "=== Uncaught Python exception"

_EDGES = re.compile(r"cov: (\d+)")
_CORPUS = re.compile(r"corp: (\d+)/")
_EXECUTIONS = re.compile(r"^stat::number_of_executed_units:\s*(\d+)", re.MULTILINE)
_PROGRESS = re.compile(r"^#(\d+)\s", re.MULTILINE)
_SECONDS = re.compile(r"^Done \d+ runs in (\d+) second", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one target: ``crash`` is the input that broke it, ``log`` what was said."""

    target: str
    executions: int
    seconds: float
    corpus: int
    edges: int
    crash: Path | None
    log: str

    @property
    def executions_per_second(self) -> float:
        """How fast it went."""
        return self.executions / self.seconds if self.seconds else 0.0

    def to_json(self) -> dict[str, object]:
        """Return the facts, without the log of a run that went well."""
        facts = asdict(self)
        facts["crash"] = None if self.crash is None else str(self.crash)
        facts["executions_per_second"] = round(self.executions_per_second, 1)
        if self.crash is None:
            del facts["log"]
        return facts


def write_seeds(target: str, folder: Path) -> None:
    """Write a target's seeds, named by their content as the fuzzer names what it adds."""
    folder.mkdir(parents=True, exist_ok=True)
    for data in load(target).seeds():
        (folder / hashlib.sha1(data, usedforsecurity=False).hexdigest()).write_bytes(data)


def fuzz(
    target: str, *, seconds: int, runs: int | None, seed: int, corpus: Path, crashes: Path
) -> Outcome:
    """Fuzz one target until the time is over, so many runs are done, or it breaks."""
    own_corpus, own_crashes = corpus / target, crashes / target
    write_seeds(target, own_corpus)
    own_crashes.mkdir(parents=True, exist_ok=True)
    known = set(own_crashes.iterdir())
    arguments = [
        f"-max_total_time={seconds}",
        f"-seed={seed}",
        f"-max_len={INPUT_LIMIT}",
        f"-timeout={HANG_LIMIT}",
        f"-rss_limit_mb={MEMORY_LIMIT}",
        f"-artifact_prefix={own_crashes}/",
        "-print_final_stats=1",
        "-use_value_profile=1",
        *([] if runs is None else [f"-runs={runs}"]),
        str(own_corpus),
    ]
    log = _run([sys.executable, "-m", "fuzz.child", target, *arguments], seconds + _STARTING)
    # A slow unit is worth a look, but no failure.
    found = sorted(p for p in {*own_crashes.iterdir()} - known if not p.name.startswith("slow"))
    crash = found[0] if found else None
    finished = _SECONDS.search(log)
    if crash is None and finished is None:  # it did not even begin, or was stuck
        crash = own_crashes / "no-input"
        crash.write_bytes(b"")
    return Outcome(
        target=target,
        executions=_last(_EXECUTIONS, log) or _last(_PROGRESS, log),
        seconds=float(finished[1]) if finished else float(seconds),
        corpus=_last(_CORPUS, log),
        edges=_last(_EDGES, log),
        crash=crash,
        log=log[log.rfind(_RAISED) :] if _RAISED in log else log[-_LOG_TAIL:],
    )


def fuzz_all(
    targets: Iterable[str], run: Callable[[str], Outcome], *, jobs: int
) -> Iterable[Outcome]:
    """Yield what came of each target, several at a time."""
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(run, targets)


def _run(command: list[str], limit: int) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=limit,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        return f"{(error.stdout or b'').decode(errors='replace')}\nnot done after {limit} seconds"
    return done.stdout.decode(errors="replace")


def _last(pattern: re.Pattern[str], log: str) -> int:
    found = pattern.findall(log)
    return int(found[-1]) if found else 0
