"""The HTTP upgrade before DERP."""

from __future__ import annotations

import random
from http import HTTPStatus

from fuzz import seeds
from fuzz.target import Choices, Target, decoded, pieces_of
from iroh_proto.address import DerpUrl
from iroh_proto.derp.codec import Form
from iroh_proto.derp.upgrade import (
    ClientUpgrade,
    HttpRequest,
    ServerUpgrade,
    framed_headers,
    websocket_headers,
)

URL = DerpUrl.from_str("http://derp.example")
OFFER = ("iroh-relay-v2", "iroh-relay-v1")


def check_request(data: bytes) -> None:
    """Cut anywhere a head gives the same request, which written anew reads the same.

    Every request, and every fault, has an answer.
    """
    choices = Choices(data)
    size, stream = 1 + choices.below(64), choices.rest
    whole = ServerUpgrade()
    request = whole.receive(stream)
    cut, pieces = ServerUpgrade(), list(pieces_of(stream, size))
    found = None
    while pieces and found is None:
        found = cut.receive(pieces.pop(0))
    assert found == request
    assert repr(cut.error) == repr(whole.error)
    if request is None:
        assert whole.respond(HTTPStatus.BAD_REQUEST).startswith(b"HTTP/1.1 400 ")
        return
    assert whole.error is None
    headers = decoded(websocket_headers, request, OFFER[0]) or framed_headers()
    if request.upgrade is None:
        assert whole.respond(HTTPStatus.NOT_FOUND, body=b"none").startswith(b"HTTP/1.1 404 ")
        return
    answer, rest = whole.switch(headers)
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert stream.endswith(rest)
    assert rest == cut.switch(headers)[1] + b"".join(pieces)
    assert ServerUpgrade().receive(_written(request)) == request


def _written(request: HttpRequest) -> bytes:
    target = f"{request.path}?{request.query}" if request.query else request.path
    lines = [f"{request.method} {target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in request.headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def check_response(data: bytes) -> None:
    """Cut anywhere an answer means the same, and what is behind it is handed on whole."""
    choices = Choices(data)
    form: Form = "websocket" if choices.below(2) else "framed"
    size, stream = 1 + choices.below(64), choices.rest
    whole, cut = upgrade(form), upgrade(form)
    rest = whole.receive(stream)
    pieces = list(pieces_of(stream, size))
    behind = b""
    while pieces and not cut.is_switched:
        behind = cut.receive(pieces.pop(0))
    behind += b"".join(pieces) if cut.is_switched else b""
    assert behind == rest
    assert repr(cut.error) == repr(whole.error)
    assert (cut.status, cut.subprotocol) == (whole.status, whole.subprotocol)
    assert whole.is_switched == cut.is_switched
    assert stream.endswith(rest)
    assert whole.is_switched or not rest
    assert whole.subprotocol is None or whole.error is not None or whole.subprotocol in OFFER


def upgrade(form: Form) -> ClientUpgrade:
    """Return a request, the same each time."""
    return ClientUpgrade(
        url=URL, path="/relay", form=form, rng=random.Random(0), subprotocols=OFFER
    )


def request_seeds() -> list[bytes]:
    """Return requests of real clients and of ours."""
    heads = [data for data in seeds.packets("relay.json") if data.startswith(b"GET ")]
    bodies = [
        *heads,
        upgrade("framed").request + b"\x02",
        upgrade("websocket").request + b"\x82\x80",
        b"HEAD /generate_204?x=1 HTTP/1.0\nX-Iroh-Challenge: ts_example.com\n\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc",
        b"GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
    ]
    return seeds.steered([b"\x00", b"\x08"], bodies)


def response_seeds() -> list[bytes]:
    """Return answers of servers, good ones among them."""
    found: list[bytes] = []
    forms: tuple[Form, Form] = ("framed", "websocket")
    for number, form in enumerate(forms):
        server = ServerUpgrade()
        request = server.receive(upgrade(form).request)
        assert request is not None
        websocket = form == "websocket"
        headers = websocket_headers(request, OFFER[1]) if websocket else framed_headers()
        answer, _ = server.switch(headers)
        refusal = ServerUpgrade().respond(HTTPStatus.NOT_FOUND, [("server", "x")], b"none")
        interim = b"HTTP/1.1 100 Continue\r\n\r\n" + answer + bytes(range(40))
        found += seeds.steered([bytes((number, 9))], [answer, refusal, interim])
    return found


TARGETS = {
    "http-request": Target(check_request, request_seeds),
    "http-response": Target(check_response, response_seeds),
}
