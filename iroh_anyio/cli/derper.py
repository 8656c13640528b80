"""``iroh-anyio derper``: run a DERP server."""

from __future__ import annotations

import json

import anyio
import click

from iroh_anyio.cli.common import run, say, verbose_option
from iroh_anyio.derper import Derper

DEV_PORT = 3340
STUN_PORT = 3478


@click.command()
@click.option("--dev", is_flag=True, help="Plain HTTP for trying things out (the only form yet).")
@click.option("--host", default="127.0.0.1", show_default=True, help="IP address to listen on.")
@click.option(
    "--port", default=DEV_PORT, show_default=True, type=click.IntRange(0, 65535), help="TCP port."
)
@click.option(
    "--stun-port",
    default=STUN_PORT,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="UDP port of the STUN server. If it is taken, the server runs without STUN.",
)
@verbose_option
def derper(dev: bool, host: str, port: int, stun_port: int) -> None:
    """Run a DERP server with STUN. Port 0 takes any free one.

    One line of JSON on stdout says what it listens on.
    """
    if not dev:
        raise click.UsageError("only the development form exists yet: say --dev")
    run(lambda: _serve(host, port, stun_port))


async def _serve(host: str, port: int, stun_port: int) -> None:
    async with await Derper.bind(host=host, port=port, stun_port=stun_port) as server:
        if server.stun_port is None:
            say(f"warning: UDP port {stun_port} is taken; running without STUN")
        listening = {"url": server.url, "port": server.port, "stun_port": server.stun_port}
        click.echo(json.dumps(listening))
        await anyio.sleep_forever()
