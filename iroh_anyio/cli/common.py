"""Options and manners that the commands share."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click

from iroh_anyio import AcceptFilter, HttpProxy, MagicEndpoint, load_or_create_secret_key
from iroh_anyio.trace_file import TRACE_LIMIT
from iroh_proto import DecodeError, DerpMap, DerpUrl, LocalProtocolError, UdpAddress

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_BIND = (UdpAddress("0.0.0.0", 0), UdpAddress("::", 0))

_FILE = click.Path(dir_okay=False, path_type=Path)


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """What the common options say about the endpoint to bind."""

    derp_map: DerpMap
    no_derp: bool
    bind: tuple[UdpAddress, ...]
    secret_key_file: Path | None
    ca_file: Path | None
    proxy: HttpProxy | None
    trace_file: Path | None

    @property
    def derp_urls(self) -> tuple[DerpUrl, ...]:
        """The DERP servers, the preferred one first."""
        return tuple(node.url for node in self.derp_map)

    async def open(
        self, *, alpns: tuple[bytes, ...] = (), accept_filter: AcceptFilter | None = None
    ) -> MagicEndpoint:
        """Bind the endpoint; the caller enters it.

        :raises click.ClickException: if the file with the key, or the trace, cannot be used.
        """
        key_file = self.secret_key_file
        secret_key = None
        if key_file is not None:
            with key_file_errors(key_file):
                secret_key = load_or_create_secret_key(key_file)
        try:
            return await MagicEndpoint.bind(
                secret_key=secret_key,
                alpns=alpns,
                derp_map=self.derp_map if len(self.derp_map) else None,
                bind_addrs=self.bind,
                accept_filter=accept_filter,
                ca_file=self.ca_file,
                http_proxy=self.proxy,
                trace_file=self.trace_file,
            )
        except OSError as error:
            if self.trace_file is None or error.filename != os.fspath(self.trace_file):
                raise
            raise click.ClickException(
                f"--trace: cannot write {error.filename}: {error.strerror}"
            ) from None


def _parse_urls(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> tuple[DerpUrl, ...]:
    try:
        return tuple(DerpUrl.from_str(value) for value in values)
    except DecodeError as error:
        raise click.BadParameter(str(error), ctx, param) from None


def _parse_addresses(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> tuple[UdpAddress, ...]:
    try:
        return tuple(UdpAddress.from_str(value) for value in values)
    except DecodeError as error:
        raise click.BadParameter(str(error), ctx, param) from None


def _parse_proxy(ctx: click.Context, param: click.Parameter, value: str | None) -> HttpProxy | None:
    try:
        return None if value is None else HttpProxy.from_str(value)
    except DecodeError as error:
        raise click.BadParameter(str(error), ctx, param) from None


def endpoint_options(function: Callable[..., R]) -> Callable[..., R]:
    """Add the options of an endpoint; the command gets them as its argument ``settings``."""

    @functools.wraps(function)
    def command(
        *,
        derp: tuple[DerpUrl, ...],
        derp_token: str | None,
        no_derp: bool,
        bind: tuple[UdpAddress, ...],
        secret_key_file: Path | None,
        ca_file: Path | None,
        proxy: HttpProxy | None,
        proxy_from_env: bool,
        trace_file: Path | None,
        **others: object,
    ) -> R:
        if no_derp and derp:
            raise click.UsageError("--no-derp and --derp contradict each other")
        settings = EndpointSettings(
            derp_map=_derp_map(derp, derp_token),
            no_derp=no_derp,
            bind=bind or DEFAULT_BIND,
            secret_key_file=secret_key_file,
            ca_file=ca_file,
            proxy=_choose_proxy(proxy, from_env=proxy_from_env),
            trace_file=trace_file,
        )
        return function(settings=settings, **others)

    decorated: Callable[..., R] = command
    for add_option in reversed(_ENDPOINT_OPTIONS):
        decorated = add_option(decorated)
    return decorated


def _derp_map(urls: tuple[DerpUrl, ...], token: str | None) -> DerpMap:
    try:
        return DerpMap.from_urls(urls, token=token)
    except LocalProtocolError as error:
        raise click.UsageError(f"--derp-token: {error}") from None


def _choose_proxy(proxy: HttpProxy | None, *, from_env: bool) -> HttpProxy | None:
    if not from_env:
        return proxy
    if proxy is not None:
        raise click.UsageError("--proxy and --proxy-from-env exclude each other")
    try:
        return HttpProxy.from_env(os.environ)
    except DecodeError as error:
        raise click.UsageError(f"the proxy that the environment names: {error}") from None


class _LikeSay(logging.Formatter):
    """Begins lines as :func:`say` is used: ``warning: ...``."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {super().format(record)}"


_VERBOSE = logging.Formatter("%(relativeCreated)8.0f ms %(name)s: %(message)s")


def verbose_option(function: Callable[P, R]) -> Callable[P, R]:
    """Add ``-v``, which shows log messages on stderr (``-vv``: all of them)."""

    def set_level(ctx: click.Context, param: click.Parameter, count: int) -> None:
        level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(count, 2)]
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_VERBOSE if count else _LikeSay())
        logging.basicConfig(level=level, handlers=[handler])

    return click.option(
        "-v",
        "--verbose",
        count=True,
        expose_value=False,
        callback=set_level,
        help="Show what happens, on stderr; -vv for all of it.",
    )(function)


_ENDPOINT_OPTIONS: tuple[Callable[[Callable[..., Any]], Callable[..., Any]], ...] = (
    click.option(
        "--derp",
        "--relay",
        "derp",
        callback=_parse_urls,
        multiple=True,
        metavar="URL",
        help="A DERP server (relay) to meet peers at. Repeatable; the first reachable is home.",
    ),
    click.option(
        "--derp-token",
        envvar="IROH_DERP_TOKEN",
        metavar="TOKEN",
        help="What to show to the DERP servers. Others can read a command line: better said in "
        "the environment, as IROH_DERP_TOKEN.",
    ),
    click.option("--no-derp", is_flag=True, help="Use direct addresses alone."),
    click.option(
        "--ca-file",
        type=_FILE,
        metavar="FILE",
        help="Trust DERP servers also with these authorities (PEM).",
    ),
    click.option(
        "--proxy",
        callback=_parse_proxy,
        metavar="URL",
        help="Reach DERP servers through this HTTP proxy, http://[user:password@]host:port.",
    ),
    click.option(
        "--proxy-from-env",
        is_flag=True,
        help="Reach them through the proxy that HTTPS_PROXY or HTTP_PROXY names, if any.",
    ),
    click.option(
        "--bind",
        callback=_parse_addresses,
        multiple=True,
        metavar="ADDR",
        help="An ip:port to bind instead of 0.0.0.0:0 and [::]:0. Repeatable.",
    ),
    click.option(
        "--secret-key-file",
        type=_FILE,
        metavar="FILE",
        help="Keep the node's identity in FILE (created with mode 0600). "
        "Without it each run has a new one.",
    ),
    click.option(
        "--trace",
        "trace_file",
        type=_FILE,
        metavar="FILE",
        help="Write to FILE why paths are what they are, for `lab draw` and `lab replay`. It "
        "tells node ids and IP addresses, but no secret key and no data. It ends at "
        f"{TRACE_LIMIT // 2**20} MiB.",
    ),
    verbose_option,
)


@contextmanager
def key_file_errors(path: Path) -> Iterator[None]:
    """Have what goes wrong with a key file end the command.

    :raises click.ClickException: instead of :class:`OSError` and :class:`DecodeError`.
    """
    try:
        yield
    except OSError as error:
        raise click.ClickException(f"the key file {path}: {error.strerror}") from None
    except DecodeError as error:
        raise click.ClickException(str(error)) from None


def say(message: str) -> None:
    """Tell the person at the terminal something, on stderr."""
    click.echo(message, err=True)
