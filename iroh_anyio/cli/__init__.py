"""The command line: ``iroh-anyio`` and ``python -m iroh_anyio``.

Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, and
128 + N for a program that signal N ended, such as 130 for Ctrl-C.
"""

from __future__ import annotations

import sys

INTERRUPTED = 130


def main() -> None:
    """Run the command line, or say which extra it needs."""
    try:
        try:
            from iroh_anyio.cli.group import commands
            from iroh_anyio.cli.running import run_commands
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("iroh_"):
                raise
            sys.stderr.write(
                f"iroh-anyio needs the 'anyio' extra ({error.name} is not installed): "
                "pip install 'iroh-proto[anyio]'\n"
            )
            raise SystemExit(1) from None
        run_commands(commands, "iroh-anyio")
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
