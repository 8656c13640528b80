"""Ways through an HTTP proxy: CONNECT, RFC 9110 section 9.3.6.

The proxy is told a name and a port, resolves the name itself, and passes bytes on from then on.
TLS is with the server behind it, so that the proxy sees no more than the name.
"""

from __future__ import annotations

import base64
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Self
from urllib.parse import unquote, urlsplit

import anyio
import h11

from iroh_proto.errors import DecodeError

PROXY_PORT = 8080
"""The port of a proxy whose URL names none."""

ANSWER_LIMIT = 16_384
"""Most bytes in the head of a proxy's answer."""

_VARIABLES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")
_HOST = re.compile(r"[A-Za-z0-9._:-]+")


class ProxyError(OSError):
    """A proxy that does not let a connection through."""


@dataclass(frozen=True, slots=True)
class HttpProxy:
    """An HTTP proxy, and who uses it."""

    host: str
    port: int
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    @classmethod
    def from_str(cls, text: str) -> Self:
        """Parse ``http://host:port`` or ``http://user:password@host:port``.

        :raises DecodeError: naming what is wrong with the text, without repeating it: it may hold
            a password.
        """
        try:
            parts = urlsplit(text if "://" in text else f"http://{text}")
            port = parts.port
        except ValueError:
            raise DecodeError("this proxy is no URL such as http://proxy.example:8080") from None
        if parts.scheme != "http":
            raise DecodeError("a proxy is spoken to by plain http://, not otherwise")
        if not parts.hostname or not _HOST.fullmatch(parts.hostname):
            raise DecodeError("this proxy URL names no host")
        if parts.path.strip("/") or parts.query:
            raise DecodeError("a proxy URL has no path")
        return cls(
            parts.hostname,
            PROXY_PORT if port is None else port,
            unquote(parts.username or ""),
            unquote(parts.password or ""),
        )

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self | None:
        """Return the proxy that ``HTTPS_PROXY`` or else ``HTTP_PROXY`` names, in either case.

        :raises DecodeError: if it is no URL of a proxy.
        """
        text = next((environ[name] for name in _VARIABLES if environ.get(name)), None)
        return None if text is None else cls.from_str(text)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def request(self, host: str, port: int) -> h11.Request:
        """Return the request for a way to a server."""
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        headers = [("Host", target)]
        if self.username or self.password:
            pair = base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
            headers.append(("Proxy-Authorization", f"Basic {pair}"))
        return h11.Request(method="CONNECT", target=target, headers=headers)


async def connect_through(
    proxy: HttpProxy, tcp_socket: socket.socket, host: str, port: int
) -> None:
    """Ask a proxy, to which the non-blocking socket is connected, for a way to a server.

    :raises ProxyError: if it refuses, or answers with something else than HTTP.
    """
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=ANSWER_LIMIT)
    request = connection.send(proxy.request(host, port)) or b""
    await _send(tcp_socket, request + (connection.send(h11.EndOfMessage()) or b""))
    try:
        answer = connection.next_event()
        while not isinstance(answer, h11.Response):
            if answer is h11.NEED_DATA:
                connection.receive_data(await _receive(tcp_socket))
            answer = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise ProxyError(f"the proxy {proxy} speaks no HTTP: {error}") from None
    if not HTTPStatus.OK <= answer.status_code < HTTPStatus.MULTIPLE_CHOICES:
        raise ProxyError(f"the proxy {proxy} refused {host}:{port}: {_reason(answer)}")
    if connection.trailing_data[0]:
        raise ProxyError(f"the proxy {proxy} sent something before it was asked to")


def _reason(answer: h11.Response) -> str:
    if answer.status_code == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        return f"{answer.status_code}, it wants a user and password"
    return f"{answer.status_code} {answer.reason.decode('latin-1')}".strip()


async def _send(tcp_socket: socket.socket, data: bytes) -> None:
    while data:
        try:
            data = data[tcp_socket.send(data) :]
        except BlockingIOError:
            await anyio.wait_writable(tcp_socket)


async def _receive(tcp_socket: socket.socket) -> bytes:
    while True:
        try:
            return tcp_socket.recv(ANSWER_LIMIT)
        except BlockingIOError:
            await anyio.wait_readable(tcp_socket)
