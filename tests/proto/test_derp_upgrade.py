"""The HTTP upgrade, both sides, with the requests of every generation."""

from __future__ import annotations

import json
import random
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iroh_proto.address import DerpUrl
from iroh_proto.derp.access import token_of
from iroh_proto.derp.upgrade import (
    HEAD_LIMIT,
    ClientUpgrade,
    HttpRequest,
    ServerUpgrade,
    framed_headers,
    websocket_headers,
)
from iroh_proto.errors import DecodeError, LocalProtocolError
from iroh_proto.testing.strategies import chunkings

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "relay.json").read_text())
OLD_REQUEST = VECTORS["iroh_0_6_to_0_13_derp_v2"]["http_request_0_6_to_0_19_text"].encode()
NEW_REQUEST = VECTORS["iroh_0_14_to_0_90_relay_v3"]["http_request_0_28_to_0_90_text"].encode()
ACCEPT: dict[str, str] = VECTORS["http"]["websocket_accept"]
URL = DerpUrl.from_str("http://relay.example:3340/some/path")


def client(form: Any = "framed", path: str = "/relay", url: DerpUrl = URL) -> ClientUpgrade:
    return ClientUpgrade(url=url, path=path, form=form, rng=random.Random(1))


def request_of(data: bytes) -> HttpRequest:
    request = ServerUpgrade().receive(data)
    assert request is not None
    return request


# The server's side


@pytest.mark.parametrize(
    ("request_bytes", "path", "host"),
    [(OLD_REQUEST, "/derp", ""), (NEW_REQUEST, "/relay", "relay.example")],
    ids=["0.6 to 0.19, without Host", "0.28 to 0.90"],
)
@given(data=st.data())
def test_requests_of_released_clients_are_read_however_they_are_cut(
    request_bytes: bytes, path: str, host: str, data: st.DataObject
) -> None:
    server = ServerUpgrade()
    chunks = data.draw(chunkings(request_bytes))
    requests = [server.receive(chunk) for chunk in chunks]
    assert requests[:-1] == [None] * (len(chunks) - 1)
    request = requests[-1]
    assert request is not None
    assert (request.method, request.path, request.query) == ("GET", path, "")
    assert request.upgrade == "iroh derp http"
    assert request.header("host") == host
    answer, trailing = server.switch(framed_headers())
    assert answer.startswith(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: iroh derp http\r\n")
    assert answer.endswith(b"\r\n\r\n")
    assert trailing == b""


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"])
@pytest.mark.parametrize(
    "lines",
    [
        [b"GET /derp HTTP/1.1", b"upgrade: DERP"],
        [b"GET /derp HTTP/1.1", b"HOST: relay.example", b"UPGRADE: DERP"],
        [b"GET /derp HTTP/1.1", b"upgrade: DERP", b"Host: relay.example"],
        [b"GET /derp HTTP/1.1", b"x-host: h", b"upgrade: DERP"],
    ],
)
def test_host_may_be_missing_or_spelt_in_any_way(lines: list[bytes], line_end: bytes) -> None:
    server = ServerUpgrade()
    request = server.receive(line_end.join([*lines, b"", b"early frames"]))
    assert request is not None
    assert request.upgrade == "DERP"
    assert server.switch(framed_headers())[1] == b"early frames"


def test_a_request_without_headers_is_one() -> None:
    request = request_of(b"GET /ping?x=1&y HTTP/1.1\r\n\r\n")
    assert (request.path, request.query, request.upgrade) == ("/ping", "x=1&y", None)


def test_headers_of_one_name_are_joined() -> None:
    request = request_of(b"GET / HTTP/1.1\r\nX-A: 1\r\nx-b: 2\r\nx-a: 3\r\n\r\n")
    assert request.header("x-a") == "1, 3"
    assert request.header("x-c") is None


@pytest.mark.parametrize(
    "data",
    [
        b"GET /derp HTTP/1.0\r\nupgrade: iroh derp http\r\n\r\n",
        b"POST /derp HTTP/1.1\r\nupgrade: DERP\r\ncontent-length: 1\r\n\r\n",
        b"POST /derp HTTP/1.1\r\nupgrade: DERP\r\ntransfer-encoding: chunked\r\n\r\n",
    ],
    ids=["HTTP/1.0", "body", "chunked body"],
)
def test_what_cannot_be_upgraded_says_so(data: bytes) -> None:
    assert request_of(data).upgrade is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x16\x03\x01", "first byte"),
        (b"\r\n\r\n", "first byte"),
        (b"\x00", "first byte"),
        (b"GET\r\n\r\n", ""),
        (b"GET / HTCPCP/1.0\r\n\r\n", ""),
        (b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", "Host"),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", ""),
        (b"GET / HTTP/1.1\r\ncontent-length: x\r\n\r\n", ""),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * HEAD_LIMIT, "more than 16384"),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * HEAD_LIMIT + b"\r\n\r\n", "more than 16384"),
    ],
)
def test_what_is_no_request_can_still_be_answered(data: bytes, reason: str) -> None:
    for pieces in ([data], [data[i : i + 1000] for i in range(0, len(data), 1000)]):
        server = ServerUpgrade()
        assert [server.receive(piece) for piece in pieces] == [None] * len(pieces)
        assert server.error is not None
        assert reason in str(server.error)
        assert server.receive(b"GET / HTTP/1.1\r\n\r\n") is None
        answer = server.respond(HTTPStatus.BAD_REQUEST)
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")


def test_a_head_of_just_the_limit_is_read() -> None:
    start, end = b"GET / HTTP/1.1\r\nupgrade: x\r\nx: ", b"\r\n\r\n"
    head = start + b"y" * (HEAD_LIMIT - len(start) - len(end)) + end
    server = ServerUpgrade()
    assert server.receive(head[:-1]) is None
    assert server.receive(head[-1:] + bytes(100_000)) is not None
    assert server.switch(framed_headers())[1] == bytes(100_000)


@given(st.binary(max_size=200), st.data())
def test_no_bytes_raise_from_a_server(data: bytes, draw: st.DataObject) -> None:
    whole, cut = ServerUpgrade(), ServerUpgrade()
    expected = whole.receive(data)
    received = [cut.receive(chunk) for chunk in draw.draw(chunkings(data))]
    assert [request for request in received if request] == ([expected] if expected else [])
    assert str(cut.error) == str(whole.error)
    whole.respond(HTTPStatus.NOT_FOUND)


@given(
    st.sampled_from([b"GET /", b"HOST", b" HTTP/1.1", b"\r\n", b"\n", b":", b"upgrade: x", b"\0"])
    .flatmap(lambda first: st.lists(st.just(first) | st.sampled_from([b"\r\n", b" ", b"a:b"])))
    .map(b"".join)
)
def test_no_text_that_looks_like_http_raises(data: bytes) -> None:
    ServerUpgrade().receive(data)
    client().receive(data)


def test_a_response_ends_the_connection() -> None:
    server = ServerUpgrade()
    server.receive(b"GET /robots.txt HTTP/1.1\r\n\r\n")
    answer = server.respond(HTTPStatus.OK, [("content-type", "text/plain")], b"User-agent: *\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"HTTP/1.1 200 OK",
        b"content-type: text/plain",
        b"content-length: 14",
        b"connection: close",
    ]
    assert body == b"User-agent: *\n"
    with pytest.raises(LocalProtocolError):
        server.respond(HTTPStatus.OK)
    with pytest.raises(LocalProtocolError):
        server.switch(framed_headers())


def test_a_head_request_gets_no_body() -> None:
    server = ServerUpgrade()
    server.receive(b"HEAD / HTTP/1.1\r\n\r\n")
    answer = server.respond(HTTPStatus.OK, body=b"four")
    assert b"content-length: 4" in answer
    assert answer.endswith(b"\r\n\r\n")


def test_no_content_has_no_length() -> None:
    server = ServerUpgrade()
    server.receive(b"GET /generate_204 HTTP/1.1\r\n\r\n")
    assert b"content-length" not in server.respond(HTTPStatus.NO_CONTENT)


def test_switching_takes_a_request_for_it() -> None:
    server = ServerUpgrade()
    server.receive(b"GET /ping HTTP/1.1\r\n\r\n")
    with pytest.raises(LocalProtocolError):
        server.switch(framed_headers())


def test_a_websocket_is_accepted_as_in_the_rfc() -> None:
    request = request_of(
        b"GET /relay HTTP/1.1\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        + f"Sec-WebSocket-Key: {ACCEPT['key_text']}\r\n\r\n".encode()
    )
    assert ("sec-websocket-accept", ACCEPT["accept_text"]) in websocket_headers(request)


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        (b"Sec-WebSocket-Version: 13\r\n", "Sec-WebSocket-Key"),
        (b"Sec-WebSocket-Key: \r\nSec-WebSocket-Version: 13\r\n", "Sec-WebSocket-Key"),
        (b"Sec-WebSocket-Key: a\r\n", "Sec-WebSocket-Version: 13"),
        (b"Sec-WebSocket-Key: a\r\nSec-WebSocket-Version: 8\r\n", "Sec-WebSocket-Version: 13"),
    ],
)
def test_a_websocket_needs_key_and_version(headers: bytes, reason: str) -> None:
    request = request_of(b"GET /relay HTTP/1.1\r\nUpgrade: websocket\r\n" + headers + b"\r\n")
    with pytest.raises(DecodeError, match=reason):
        websocket_headers(request)


# The client's side


def test_a_client_asks_for_the_framed_form() -> None:
    lines = client().request.split(b"\r\n")
    assert lines[0] == b"GET /relay HTTP/1.1"
    assert set(lines[1:-2]) == {
        b"Host: relay.example:3340",
        b"Upgrade: iroh derp http",
        b"Connection: upgrade",
    }
    assert lines[-2:] == [b"", b""]


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://relay.example.", b"relay.example"),
        ("http://192.0.2.1:80", b"192.0.2.1"),
        ("http://[2001:db8::1]:3340", b"[2001:db8::1]:3340"),
    ],
)
def test_a_client_names_the_host(url: str, host: bytes) -> None:
    assert b"\r\nHost: " + host + b"\r\n" in client(url=DerpUrl.from_str(url)).request


@pytest.mark.parametrize("form", ["framed", "websocket"])
@given(data=st.data())
def test_both_sides_agree_however_the_answer_is_cut(form: str, data: st.DataObject) -> None:
    asking, server = client(form), ServerUpgrade()
    request = server.receive(asking.request)
    assert request is not None
    headers = websocket_headers(request) if form == "websocket" else framed_headers()
    answer, _ = server.switch(headers)
    received = b""
    for chunk in data.draw(chunkings(answer + b"frames")):
        received += chunk if asking.is_switched else asking.receive(chunk)
    assert asking.is_switched
    assert received == b"frames"
    assert asking.receive(b"more") == b""


def test_an_answer_as_hyper_writes_it_will_do() -> None:
    asking = client()
    answer = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: iroh derp http\r\ndate: x\r\n\r\n"
    assert asking.receive(answer + b"\x01") == b"\x01"
    assert asking.is_switched


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: iroh derp http\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
    ],
    ids=["switched", "refused", "no HTTP"],
)
def test_what_comes_behind_the_answer_is_none_of_the_upgrades(answer: bytes) -> None:
    asking = client()
    asking.receive(answer)
    verdict = (asking.status, str(asking.error), asking.is_switched)
    assert asking.receive(b"HTTP/1.1 101 OK\r\nupgrade: iroh derp http\r\n\r\nframes") == b""
    assert (asking.status, str(asking.error), asking.is_switched) == verdict


def test_interim_answers_are_passed_over() -> None:
    asking = client()
    interim = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    answer = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: iroh derp http\r\n\r\n"
    assert asking.receive(interim) == b""
    assert asking.status is None
    assert asking.receive(interim + interim + answer + b"x") == b"x"
    assert asking.is_switched


@pytest.mark.parametrize("status", [200, 400, 404, 502])
def test_a_refusal_tells_its_status(status: int) -> None:
    asking = client()
    answer = f"HTTP/1.1 {status} Whatever\r\ncontent-length: 5\r\n\r\nno!!!".encode()
    assert asking.receive(answer) == b""
    assert asking.status == status
    assert not asking.is_switched
    assert asking.error is None


@pytest.mark.parametrize(
    "answer",
    [
        b"\x16\x03\x01",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 101 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 101 OK\r\nx: " + b"y" * HEAD_LIMIT,
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
    ],
)
def test_what_is_no_answer_is_told(answer: bytes) -> None:
    asking = client()
    assert asking.receive(answer) == b""
    assert asking.error is not None
    assert "not an HTTP response" in str(asking.error)
    assert not asking.is_switched


@pytest.mark.parametrize("accept", [b"", b"sec-websocket-accept: wrong\r\n"])
def test_a_websocket_that_was_not_accepted_is_none(accept: bytes) -> None:
    asking = client("websocket")
    asking.receive(b"HTTP/1.1 101 OK\r\nupgrade: websocket\r\n" + accept + b"\r\n")
    assert asking.error is not None
    assert not asking.is_switched


@given(st.binary(max_size=200))
def test_no_bytes_raise_from_a_client(data: bytes) -> None:
    client().receive(data)
    client("websocket").receive(b"HTTP/1.1 " + data)


# Tokens


@pytest.mark.parametrize("form", ["framed", "websocket"])
def test_a_token_is_shown_as_upstream_does(form: Any) -> None:
    upgrade = ClientUpgrade(
        url=URL, path="/relay", form=form, rng=random.Random(1), token="a-token"
    )
    request = request_of(upgrade.request)
    assert request.header("authorization") == "Bearer a-token"
    assert token_of(request) == "a-token"
    assert token_of(request_of(client(form).request)) is None


def test_the_query_of_the_url_is_kept() -> None:
    request = request_of(client(url=DerpUrl.from_str("http://a/b?token=x%20y&z")).request)
    assert (request.path, request.query) == ("/relay", "token=x%20y&z")
    assert token_of(request) == "x y"
