"""The commands by name."""

from __future__ import annotations

import click

from iroh_anyio.cli.demo import demo
from iroh_anyio.cli.derper import derper
from iroh_anyio.cli.key import key
from iroh_anyio.cli.lab import lab
from iroh_anyio.cli.pipe import connect, listen
from iroh_anyio.cli.ticket import ticket


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="iroh-proto")
def commands() -> None:
    """Dial any iroh node by its public key, wherever it is.

    Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage.
    """


for command in (demo, listen, connect, derper, key, lab, ticket):
    commands.add_command(command)
