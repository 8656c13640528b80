"""The HTTP/1.1 upgrade that begins every DERP connection, for both roles.

A client asks for the framed form or for a websocket (RFC 6455)::

    GET /relay HTTP/1.1              GET /relay HTTP/1.1
    Host: relay.example              Host: relay.example
    Upgrade: iroh derp http          Upgrade: websocket
    Connection: upgrade              Connection: upgrade
                                     Sec-WebSocket-Key: <16 bytes, base64>
                                     Sec-WebSocket-Version: 13
                                     Sec-WebSocket-Protocol: <dialects, since 0.91>

and sends nothing more until the server has answered 101. h11 parses and writes. Every iroh client
before 0.28 leaves ``Host`` out, which h11 rightly refuses, so the head of a request is gathered
first and an empty ``Host`` put in where there is none. Releases before 0.28 send no ``Connection``
either; upstream's servers do not look at it, proxies on the way do.

Source: iroh v0.12.0 ``iroh-net/src/derp/http/{client,server}.rs``, v0.35.0
``iroh-relay/src/{client,server/http_server}.rs``; RFC 9110 section 7.8, RFC 9112 section 3.2.
"""

from __future__ import annotations

import base64
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeAlias

import h11
from wsproto.utilities import generate_accept_token

from iroh_proto.address import DerpUrl
from iroh_proto.derp.codec import Form
from iroh_proto.errors import DecodeError, LocalProtocolError
from iroh_proto.x25519 import X25519PublicKey

HEAD_LIMIT = 16_384
"""Most bytes in the head of a request or response (as h11's own limit, and Apache's twice)."""

FRAMED_UPGRADE = "iroh derp http"
"""What the ``Upgrade`` header says for the framed form, in every release of iroh."""

DERP_UPGRADE = "DERP"
"""What it says for that of Tailscale's dialect."""

DERP_KEY_HEADER = "Derp-Public-Key"
"""The header of a 101 by which a server of Tailscale's dialect gives its X25519 key, in hex."""

FAST_START_HEADER = "Derp-Fast-Start"
"""The header by which a client of Tailscale's dialect does without an HTTP answer: it says 1."""

_DERP_VERSION = "2"

WEBSOCKET_UPGRADE = "websocket"
WEBSOCKET_VERSION = "13"

Headers: TypeAlias = Iterable[tuple[str, str]]

_KEY_SIZE = 16
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_HOST_LINE = re.compile(rb"^host[ \t]*:", re.IGNORECASE | re.MULTILINE)


class ClientUpgrade:
    """A client's request and the answer to it.

    :param path: what to ask for; of the URL only the query counts beside it, as upstream.
    :param subprotocols: what to offer with a websocket, the best first.
    :param upgrade: what to ask for in the framed form.
    :param token: what to show to a server that lets in none without one.
    :ivar request: the bytes to send.
    :ivar names_derp_key: whether the answer has the key of a server of Tailscale's dialect.
    :ivar subprotocol: the one that the server chose, if it did.
    :ivar status: the status of the answer, once there is one.
    :ivar error: why the answer is none, or no good although it says 101.
    """

    __slots__ = (
        "_connection",
        "_head",
        "_key",
        "_offer",
        "error",
        "names_derp_key",
        "request",
        "status",
        "subprotocol",
    )

    def __init__(
        self,
        *,
        url: DerpUrl,
        path: str,
        form: Form,
        rng: random.Random,
        upgrade: str = FRAMED_UPGRADE,
        subprotocols: Sequence[str] = (),
        token: str | None = None,
    ) -> None:
        headers = [("Host", url.authority)]
        self._key: bytes | None = None
        if form == "websocket":
            self._key = base64.b64encode(rng.randbytes(_KEY_SIZE))
            headers += [
                ("Upgrade", WEBSOCKET_UPGRADE),
                ("Connection", "upgrade"),
                ("Sec-WebSocket-Key", self._key.decode("ascii")),
                ("Sec-WebSocket-Version", WEBSOCKET_VERSION),
            ]
            if subprotocols:
                headers.append(("Sec-WebSocket-Protocol", ", ".join(subprotocols)))
        else:
            headers += [("Upgrade", upgrade), ("Connection", "upgrade")]
        if token is not None:
            headers.append(("Authorization", f"Bearer {token}"))
        _, has_query, query = url.path.partition("?")
        target = f"{path}?{query}" if has_query else path
        self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_LIMIT)
        request = h11.Request(method="GET", target=target, headers=headers)
        self.request = _sent(self._connection, request) + _sent(
            self._connection, h11.EndOfMessage()
        )
        self._head = _Head()
        self._offer = tuple(subprotocols)
        self.status: int | None = None
        self.subprotocol: str | None = None
        self.names_derp_key = False
        self.error: DecodeError | None = None

    @property
    def is_switched(self) -> bool:
        """Whether the server agreed; what follows belongs to the codec."""
        return self.status == HTTPStatus.SWITCHING_PROTOCOLS and self.error is None

    def receive(self, data: bytes) -> bytes:
        """Take bytes of the answer and return those behind it, once it is complete and 101."""
        if self.status is not None or self.error is not None:
            return b""
        try:
            self._head.add(data)
            head = self._head.take()
            while head is not None and not self._receive_head(head):
                head = self._head.take()
        except (DecodeError, h11.RemoteProtocolError) as error:
            self.error = DecodeError(f"not an HTTP response: {error}")
        return self._head.rest() if self.is_switched else b""

    def _receive_head(self, head: bytes) -> bool:
        """Take one head and say whether it is the answer; interim ones may come before."""
        self._connection.receive_data(head)
        event = self._connection.next_event()
        # A head that is complete is one of these, or h11 has raised.
        assert isinstance(event, h11.InformationalResponse | h11.Response)
        switches = event.status_code == HTTPStatus.SWITCHING_PROTOCOLS
        if isinstance(event, h11.InformationalResponse) and not switches:
            return False
        self.status = event.status_code
        headers = dict(event.headers)
        self.names_derp_key = switches and DERP_KEY_HEADER.lower().encode() in headers
        if switches and self._key is not None:
            if headers.get(b"sec-websocket-accept") != generate_accept_token(self._key):
                raise DecodeError("it does not accept this websocket")
            self._take_subprotocol(headers.get(b"sec-websocket-protocol"))
        return True

    def _take_subprotocol(self, value: bytes | None) -> None:
        if value is None:
            return
        self.subprotocol = value.decode("latin-1").strip()
        if self.subprotocol not in self._offer:
            raise DecodeError(f"it chose {self.subprotocol!r}, which was not offered")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """The head of a request. Names of headers are lower case.

    ``upgrade`` is the ``Upgrade`` header if the server may agree to it: it names a protocol,
    HTTP/1.0 has no upgrade, and a request with a body would have to end first.
    """

    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    upgrade: str | None

    def header(self, name: str) -> str | None:
        """Return the value of a header, several joined by commas (RFC 9110 section 5.3)."""
        return _header(self.headers, name)


class ServerUpgrade:
    """One request to a server and the answer: 101, or a response after which it closes.

    :ivar error: why what came is no request. :meth:`respond` still works then.
    """

    __slots__ = ("_connection", "_head", "_is_answered", "_request", "error")

    def __init__(self) -> None:
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT)
        self._head = _Head()
        self._request: HttpRequest | None = None
        self._is_answered = False
        self.error: DecodeError | None = None

    def receive(self, data: bytes) -> HttpRequest | None:
        """Take bytes and return the request when its head is complete, which is once.

        Bytes behind the head are kept for :meth:`switch`. Give no more once it returned something.
        """
        if self._request is not None or self.error is not None:
            return None
        try:
            self._head.add(data)
            head = self._head.take()
            if head is not None:
                self._request = self._parse(head)
        except (DecodeError, h11.RemoteProtocolError) as error:
            self.error = DecodeError(f"not an HTTP request: {error}")
        return self._request

    def switch(self, headers: Headers) -> tuple[bytes, bytes]:
        """Agree to the upgrade.

        :param headers: those that belong to it; :func:`framed_headers` or
            :func:`websocket_headers`, and more.
        :returns: the bytes to send, and those received behind the request, for the codec.
        :raises LocalProtocolError: if there is no request for an upgrade to agree to.
        """
        self._take_answer()
        answer = h11.InformationalResponse(
            status_code=HTTPStatus.SWITCHING_PROTOCOLS,
            headers=list(headers),
            reason=HTTPStatus.SWITCHING_PROTOCOLS.phrase,
        )
        return _sent(self._connection, answer), self._head.rest()

    def switch_silently(self) -> bytes:
        """Agree to the upgrade without an answer; return what was received behind the request.

        :raises LocalProtocolError: if an answer was given already.
        """
        self._take_answer()
        return self._head.rest()

    def respond(self, status: HTTPStatus, headers: Headers = (), body: bytes = b"") -> bytes:
        """Return a complete response, after which the connection is to be closed.

        :raises LocalProtocolError: if an answer was given already.
        """
        self._take_answer()
        framing = [("content-length", str(len(body))), ("connection", "close")]
        if status == HTTPStatus.NO_CONTENT:
            del framing[0]
        answer = h11.Response(
            status_code=status, headers=[*headers, *framing], reason=status.phrase
        )
        data = _sent(self._connection, answer)
        if body and (self._request is None or self._request.method != "HEAD"):
            data += _sent(self._connection, h11.Data(data=body))
        return data

    def _take_answer(self) -> None:
        if self._is_answered:
            raise LocalProtocolError("this request has its answer")
        self._is_answered = True

    def _parse(self, head: bytes) -> HttpRequest:
        if not _HOST_LINE.search(head):
            head = _HEAD_END.sub(b"\r\nhost:\r\n\r\n", head)
        self._connection.receive_data(head)
        request = self._connection.next_event()
        assert isinstance(request, h11.Request)  # a complete head is one, or h11 has raised
        has_body = not isinstance(self._connection.next_event(), h11.EndOfMessage)
        path, _, query = request.target.decode("latin-1").partition("?")
        headers = tuple(
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers
        )
        may_switch = request.http_version == b"1.1" and not has_body
        return HttpRequest(
            method=request.method.decode("latin-1"),
            path=path,
            query=query,
            headers=headers,
            upgrade=_named_upgrade(headers) if may_switch else None,
        )


class _Head:
    """Gathers the head of a message, within :data:`HEAD_LIMIT`."""

    __slots__ = ("_buffer", "_searched")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0

    def add(self, data: bytes) -> None:
        """Take bytes."""
        self._buffer += data

    def take(self) -> bytes | None:
        """Return a head with the empty line that ends it, or ``None`` if it is not complete.

        :raises DecodeError: if it is too long, or begins no HTTP message. TLS on a plain port and
            such are told by their first byte, rather than by waiting for a line end that may
            never come.
        """
        if self._buffer and self._buffer[0] <= ord(" "):
            raise DecodeError("the first byte is no letter")
        end = _HEAD_END.search(self._buffer, self._searched)
        size = len(self._buffer) if end is None else end.end()
        if size > HEAD_LIMIT:
            raise DecodeError(f"a head of more than {HEAD_LIMIT} bytes")
        if end is None:
            self._searched = max(0, size - 3)
            return None
        head = bytes(self._buffer[:size])
        del self._buffer[:size]
        self._searched = 0
        return head

    def rest(self) -> bytes:
        """Return the bytes behind the heads that were taken, and forget them."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest


def framed_headers() -> list[tuple[str, str]]:
    """Return the headers that agree to the framed form."""
    return [("upgrade", FRAMED_UPGRADE), ("connection", "upgrade")]


def derp_headers(server_key: X25519PublicKey) -> list[tuple[str, str]]:
    """Return the headers that agree to the framed form of Tailscale's dialect."""
    return [
        ("Upgrade", DERP_UPGRADE),
        ("Connection", "Upgrade"),
        ("Derp-Version", _DERP_VERSION),
        (DERP_KEY_HEADER, str(server_key)),
    ]


def websocket_headers(
    request: HttpRequest, subprotocol: str | None = None
) -> list[tuple[str, str]]:
    """Return the headers that agree to a websocket.

    :param subprotocol: the one chosen of those that the client offers, if it offers any.
    :raises DecodeError: if the request lacks a key or wants another version than 13.
    """
    key = request.header("sec-websocket-key")
    if not key:
        raise DecodeError("a websocket needs Sec-WebSocket-Key")
    if request.header("sec-websocket-version") != WEBSOCKET_VERSION:
        raise DecodeError(f"a websocket needs Sec-WebSocket-Version: {WEBSOCKET_VERSION}")
    accept = generate_accept_token(key.encode("latin-1")).decode("ascii")
    headers = [
        ("upgrade", WEBSOCKET_UPGRADE),
        ("connection", "upgrade"),
        ("sec-websocket-accept", accept),
    ]
    if subprotocol is not None:
        headers.append(("sec-websocket-protocol", subprotocol))
    return headers


def _header(headers: tuple[tuple[str, str], ...], name: str) -> str | None:
    values = [value for key, value in headers if key == name]
    return ", ".join(values) if values else None


def _named_upgrade(headers: tuple[tuple[str, str], ...]) -> str | None:
    value = _header(headers, "upgrade")
    # A list may be of empty elements alone (RFC 9110 section 5.6.1).
    return value if value and value.strip(", \t") else None


def _sent(connection: h11.Connection, event: h11.Event) -> bytes:
    try:
        return connection.send(event) or b""
    except h11.LocalProtocolError as error:
        raise LocalProtocolError(str(error)) from None
