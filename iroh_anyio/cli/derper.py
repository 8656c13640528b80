"""``iroh-anyio derper``: run a DERP server."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import click

from iroh_anyio.cli.common import say, verbose_option
from iroh_anyio.cli.running import exit_code, run
from iroh_anyio.derper import Derper, DerperConfig, DerperPool, load_config
from iroh_anyio.derper.certificates import Certificate, CertificateError
from iroh_anyio.derper.config import DEV_PORT, WORKERS_IN_MESH, WORKERS_LIMIT
from iroh_anyio.derper.descriptors import raise_descriptor_limit
from iroh_anyio.derper.ports import PortError
from iroh_anyio.derper.server import check_libraries
from iroh_anyio.derper.toml_table import ConfigError
from iroh_proto import DecodeError, UdpAddress
from iroh_proto.derp.map import STUN_PORT

logger = logging.getLogger("iroh_anyio.cli")

DEV_HOST = "127.0.0.1"


def _parse_host(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    try:
        return None if value is None else UdpAddress.of(value, 0).ip
    except DecodeError as error:
        raise click.BadParameter(str(error), ctx, param) from None


@click.command()
@click.option(
    "--config",
    "--config-path",
    "-c",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The settings: TOML with the names of iroh-relay 1.x.",
)
@click.option(
    "--dev",
    is_flag=True,
    help="Plain HTTP for trying things out, on port 3340. With FILE: as FILE says, but no HTTPS.",
)
@click.option("--check-config", is_flag=True, help="Say whether FILE can be used, and end.")
@click.option(
    "--host",
    callback=_parse_host,
    metavar="IP",
    help="With --dev: the address to listen on, 127.0.0.1 unless given; 0.0.0.0 or :: for all.",
)
@click.option("--port", type=click.IntRange(0, 65535), help="With --dev: the TCP port.")
@click.option(
    "--stun-port",
    type=click.IntRange(0, 65535),
    help="With --dev: the UDP port of STUN, 3478 unless given. If it is taken, the server runs "
    "without STUN.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, WORKERS_LIMIT),
    help="Processes that serve clients on one port, each on a core of its own; 1 unless FILE "
    "says another number.",
)
@verbose_option
def derper(
    path: Path | None,
    dev: bool,
    check_config: bool,
    host: str | None,
    port: int | None,
    stun_port: int | None,
    workers: int | None,
) -> None:
    """Run a DERP server with STUN. Port 0 takes any free one.

    One line of JSON on stdout says what it listens on. With a file, SIGHUP has it and the
    certificate read again, and SIGTERM lets clients leave before the server ends.
    """
    if path is None and check_config:
        raise click.UsageError("--check-config needs --config FILE")
    if path is None and not dev:
        raise click.UsageError("say --config FILE, or --dev to try things out")
    if path is not None and (host, port, stun_port) != (None, None, None):
        raise click.UsageError("--host, --port and --stun-port stand in the file")
    if path is None:
        config = DerperConfig.for_development(
            host or DEV_HOST, _or(port, DEV_PORT), _or(stun_port, STUN_PORT)
        )
        run(lambda: _serve_dev(replace(config, workers=_or(workers, 1))))
        return
    source = _Source(path, dev, workers)
    config = source.load()
    if check_config:
        _check(config)
        click.echo(f"{path}: fine")
    elif run(lambda: _serve(source, config), endings=(signal.SIGINT,)):
        sys.exit(exit_code(signal.SIGTERM))


@dataclass(frozen=True, slots=True)
class _Source:
    """Where the settings come from."""

    path: Path
    dev: bool
    workers: int | None

    def load(self) -> DerperConfig:
        """Read them, and say what in them has no effect.

        :raises click.ClickException: if they cannot be used.
        """
        try:
            config = load_config(self.path, dev=self.dev, environ=os.environ)
        except ConfigError as error:
            raise click.ClickException(str(error)) from None
        for notice in config.notices:
            say(f"warning: {self.path}: {notice}")
        if self.workers is None:
            return config
        if self.workers > 1 and config.mesh_key is not None:
            raise click.UsageError(f"--workers: {WORKERS_IN_MESH}")
        return replace(config, workers=self.workers)


def _check(config: DerperConfig) -> None:
    try:
        check_libraries(config)
        if config.tls is not None:
            Certificate(config.tls.certificate_path, config.tls.key_path)
    except (ModuleNotFoundError, CertificateError) as error:
        raise click.ClickException(str(error)) from None


async def _open(config: DerperConfig) -> Derper | DerperPool:
    raise_descriptor_limit()
    return await (Derper if config.workers == 1 else DerperPool).open(config)


async def _serve_dev(config: DerperConfig) -> None:
    try:
        server = await _open(config)
    except OSError as error:
        is_taken = error.errno in (errno.EADDRINUSE, errno.EACCES)
        raise _explained(error, "give another --port" if is_taken else "") from None
    async with server:
        _tell_ports(server, config)
        await anyio.sleep_forever()


async def _serve(source: _Source, config: DerperConfig) -> bool:
    """Serve until SIGTERM."""
    try:
        server = await _open(config)
    except OSError as error:
        advice = f"set {error.key} in {source.path}" if isinstance(error, PortError) else ""
        raise _explained(error, advice) from None
    except (ModuleNotFoundError, CertificateError) as error:
        raise click.ClickException(str(error)) from None
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGHUP) as signals:
        async with server, anyio.create_task_group() as tasks:
            _tell_ports(server, config)
            is_draining = False
            async for number in signals:
                if number == signal.SIGHUP:
                    _reload(server, source)
                elif is_draining:
                    break
                else:
                    is_draining = True
                    logger.info("letting clients leave")
                    tasks.start_soon(_drain, server, tasks.cancel_scope)
            tasks.cancel_scope.cancel()
    return True


async def _drain(server: Derper | DerperPool, scope: anyio.CancelScope) -> None:
    await server.drain()
    scope.cancel()


def _reload(server: Derper | DerperPool, source: _Source) -> None:
    try:
        waiting = server.reload(source.load())
    except (click.ClickException, ModuleNotFoundError, OSError) as error:
        message = error.message if isinstance(error, click.ClickException) else str(error)
        say(f"warning: keeping the old settings: {message}")
        return
    say(f"read {source.path} again")
    if waiting:
        say(f"warning: these hold after a restart: {', '.join(waiting)}")


def _tell_ports(server: Derper | DerperPool, config: DerperConfig) -> None:
    url = server.url
    if url.startswith("https:") and config.tls is not None and config.tls.hostnames:
        url = f"https://{config.tls.hostnames[0]}:{server.port}"  # what the certificate is for
    listening = {
        "url": url,
        "port": server.port,
        "stun_port": server.stun_port,
        "quic_port": server.quic_port,
        "plain_port": server.plain_port,
        "metrics_port": server.metrics_port,
    }
    click.echo(json.dumps(listening))


def _explained(error: OSError, advice: str) -> click.ClickException:
    return click.ClickException(f"{error.strerror}{advice and f': {advice}'}")


def _or(value: int | None, default: int) -> int:
    return default if value is None else value
