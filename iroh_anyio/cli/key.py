"""``iroh-anyio key``: make and show identities."""

from __future__ import annotations

import json
from pathlib import Path

import click

from iroh_anyio.cli.common import key_file_errors, say
from iroh_anyio.key_file import create_secret_key, load_secret_key
from iroh_proto import NodeId, SecretKey


@click.group()
def key() -> None:
    """Make and show secret keys."""


@key.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def generate(file: Path | None, as_json: bool) -> None:
    """Make a secret key in FILE (mode 0600) and print its node id.

    Without FILE the secret key itself is printed, as 64 hex digits.
    """
    if file is None:
        secret_key = SecretKey.generate()
        secret = secret_key.to_bytes().hex()
        if as_json:
            click.echo(json.dumps({"secret_key": secret, **_spellings(secret_key.public)}))
        else:
            say(f"node id {secret_key.public}")
            click.echo(secret)
        return
    with key_file_errors(file):
        secret_key = create_secret_key(file)
    _show(secret_key.public, as_json)


@key.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print every spelling of it as JSON.")
def show(file: Path, as_json: bool) -> None:
    """Print the node id of the secret key in FILE (hex, base32 or an OpenSSH key file)."""
    with key_file_errors(file):
        secret_key = load_secret_key(file)
    _show(secret_key.public, as_json)


def _show(node_id: NodeId, as_json: bool) -> None:
    click.echo(json.dumps(_spellings(node_id)) if as_json else str(node_id))


def _spellings(node_id: NodeId) -> dict[str, str]:
    return {
        "node_id": str(node_id),
        "base32": node_id.to_base32(),
        "z32": node_id.to_z32(),
    }
