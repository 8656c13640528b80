"""``iroh-anyio derper``: run a DERP server."""

from __future__ import annotations

import errno
import json

import anyio
import click

from iroh_anyio.cli.common import verbose_option
from iroh_anyio.cli.running import run
from iroh_anyio.derper import Derper
from iroh_proto import DecodeError, UdpAddress

DEV_PORT = 3340
STUN_PORT = 3478


def _parse_host(ctx: click.Context, param: click.Parameter, value: str) -> str:
    try:
        return UdpAddress.of(value, 0).ip
    except DecodeError as error:
        raise click.BadParameter(str(error), ctx, param) from None


@click.command()
@click.option("--dev", is_flag=True, help="Plain HTTP for trying things out (the only form yet).")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    callback=_parse_host,
    metavar="IP",
    help="Address to listen on; 0.0.0.0 or :: for all, so that other machines can use it.",
)
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
    try:
        derper = await Derper.bind(host=host, port=port, stun_port=stun_port)
    except OSError as error:
        advice = ": give another --port" if error.errno == errno.EADDRINUSE else ""
        raise click.ClickException(f"{error.strerror}{advice}") from None
    async with derper as server:
        listening = {"url": server.url, "port": server.port, "stun_port": server.stun_port}
        click.echo(json.dumps(listening))
        await anyio.sleep_forever()
