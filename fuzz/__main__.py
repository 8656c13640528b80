"""``python -m fuzz [TARGET...] --seconds N``: see README.md."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path

from fuzz.campaign import Outcome, fuzz, fuzz_all
from fuzz.machines import target_names as machine_names
from fuzz.targets import PLANTED, load, names

HERE = Path(__file__).parent


def main() -> int:
    """Do what the command line says; return the exit status."""
    parser = _parser()
    options = parser.parse_args()
    if options.replay is not None and len(options.targets) != 1:
        parser.error("--replay wants one target")
    unknown = set(options.targets) - {*names(), PLANTED}
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}; see --list")
    if options.list:
        for name in names():
            print(f"{name:28} {load(name).invariant}")
        return 0
    if options.replay is not None:
        try:
            data = options.replay.read_bytes()
        except OSError as error:
            parser.error(f"cannot read {options.replay}: {error.strerror}")
        return _replay(options.targets[0], data)
    if importlib.util.find_spec("atheris") is None:
        print("fuzzing needs atheris: pip install -e '.[fuzz]'", file=sys.stderr)
        return 2
    if options.self_check:
        return _self_check(options.seconds)
    return _fuzz(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="all unless named")
    parser.add_argument("--seconds", type=_positive, default=10, help="for each target (10)")
    parser.add_argument("--runs", type=_positive, help="stop a target after so many executions")
    parser.add_argument(
        "--seed", type=int, default=0, help="what chance begins with; 0 is another one each time"
    )
    parser.add_argument(
        "--jobs", type=_positive, default=os.cpu_count() or 1, help="targets at a time"
    )
    parser.add_argument("--corpus", type=Path, default=HERE / "corpus", help="kept between runs")
    parser.add_argument("--crashes", type=Path, default=HERE / "crashes")
    parser.add_argument("--json", action="store_true", help="print facts instead of a table")
    parser.add_argument("--list", action="store_true", help="print targets and invariants")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run a target on one input")
    parser.add_argument(
        "--self-check", action="store_true", help="succeed if a planted defect is found"
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("it has to be 1 or more")
    return number


def _fuzz(options: argparse.Namespace) -> int:
    targets: list[str] = options.targets or names()
    outcomes: list[Outcome] = []
    if not options.json:
        print(f"{'target':28} {'executions':>11} {'exec/s':>8} {'corpus':>7} {'edges':>6}  crash")
    results = fuzz_all(
        targets,
        lambda target: fuzz(
            target,
            seconds=options.seconds,
            runs=options.runs,
            seed=options.seed,
            corpus=options.corpus,
            crashes=options.crashes,
        ),
        jobs=options.jobs,
    )
    for outcome in results:
        outcomes.append(outcome)
        if not options.json:
            print(_row(outcome), flush=True)
    broken = [outcome for outcome in outcomes if outcome.crash is not None]
    if options.json:
        print(json.dumps([outcome.to_json() for outcome in outcomes], indent=1))
    else:
        total = sum(outcome.executions for outcome in outcomes)
        print(f"{len(outcomes)} targets, {total:,} executions, {len(broken)} crashes")
    for outcome in broken:
        print(f"\n{outcome.log}\n\n{regression(outcome)}", file=sys.stderr)
    return 1 if broken else 0


def _row(outcome: Outcome) -> str:
    return (
        f"{outcome.target:28} {outcome.executions:11,} {outcome.executions_per_second:8,.0f}"
        f" {outcome.corpus:7,} {outcome.edges:6,}  {outcome.crash or '-'}"
    )


def regression(outcome: Outcome) -> str:
    """Return a test to paste that fails for as long as the defect is there."""
    if outcome.crash is None:
        raise ValueError("this target did not break")
    again = f"python -m fuzz {outcome.target} --replay {outcome.crash}"
    if outcome.target in machine_names():
        return (
            f"# {again}\n# Take the script from the note of the exception: inputs mean something"
            "\n# else when the contract test changes.\n"
        )
    name = outcome.target.replace("-", "_")
    return (
        f"# {again}\ndef test_{name}_found_by_fuzzing() -> None:\n"
        f'    load("{outcome.target}").check({outcome.crash.read_bytes()!r})\n'
    )


def _replay(target: str, data: bytes) -> int:
    try:
        load(target).check(data)
    except Exception:  # noqa: BLE001  # whatever a target raises is what was to be seen
        traceback.print_exc()
        return 1
    print(f"{target} holds for these {len(data)} bytes", file=sys.stderr)
    return 0


def _self_check(seconds: int) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        outcome = fuzz(
            PLANTED,
            seconds=seconds,
            runs=None,
            seed=0,
            corpus=folder / "in",
            crashes=folder / "out",
        )
        print(_row(outcome))
        if outcome.crash is None:
            print("the planted defect was not found", file=sys.stderr)
            return 1
        print(regression(outcome))
        return 1 - _replay(PLANTED, outcome.crash.read_bytes())


if __name__ == "__main__":
    sys.exit(main())
