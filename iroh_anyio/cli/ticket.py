"""``iroh-anyio ticket``: look into tickets."""

from __future__ import annotations

import json

import click

from iroh_proto import DecodeError
from iroh_proto.ticket import NodeTicket


@click.group()
def ticket() -> None:
    """Look into tickets."""


@ticket.command()
@click.argument("text", metavar="TICKET")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(text: str, as_json: bool) -> None:
    """Print the node id, DERP server and direct addresses in a node or endpoint ticket."""
    try:
        addr = NodeTicket.from_str(text).node_addr
    except DecodeError as error:
        raise click.UsageError(f"not a ticket that this program reads: {error}") from None
    derp_url = None if addr.derp_url is None else str(addr.derp_url)
    direct = [str(address) for address in addr.direct_addresses]
    if as_json:
        shown = {"node_id": str(addr.node_id), "derp_url": derp_url, "direct_addresses": direct}
        click.echo(json.dumps(shown))
        return
    click.echo(f"node id  {addr.node_id}")
    click.echo(f"derp     {derp_url or '-'}")
    for address in direct:
        click.echo(f"direct   {address}")
