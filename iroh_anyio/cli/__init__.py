"""The command line: ``iroh-anyio`` and ``python -m iroh_anyio``.

Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, or say which extra it needs."""
    try:
        import anyio  # noqa: F401
        import click  # noqa: F401
        import rich  # noqa: F401
    except ImportError as error:
        sys.stderr.write(
            f"iroh-anyio needs the 'anyio' extra ({error.name} is not installed): "
            "pip install 'iroh-proto[anyio]'\n"
        )
        raise SystemExit(1) from None
    from iroh_anyio.cli.group import commands

    commands(prog_name="iroh-anyio")
