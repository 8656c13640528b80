"""The pages of a DERP server, on its own port and on the plain one beside HTTPS."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from http import HTTPStatus

import pytest

from iroh_proto.derp.pages import Page, PlainPages, page_for
from iroh_proto.derp.upgrade import HttpRequest, ServerUpgrade
from iroh_proto.errors import DecodeError


def request(head: str) -> HttpRequest:
    parsed = ServerUpgrade().receive(f"{head}\r\n\r\n".encode())
    assert parsed is not None
    return parsed


def get(path: str, *headers: str) -> HttpRequest:
    return request("\r\n".join([f"GET {path} HTTP/1.1", *headers]))


def headers_of(page: Page) -> dict[str, str]:
    return dict(page.headers)


@pytest.mark.parametrize("path", ["/ping", "/relay/probe", "/derp/probe", "/derp/latency-check"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_every_probe_is_empty_and_readable_from_anywhere(path: str, method: str) -> None:
    page = page_for(request(f"{method} {path} HTTP/1.1"))
    assert page.status == HTTPStatus.OK
    assert headers_of(page)["access-control-allow-origin"] == "*"
    assert page.body == b""


@pytest.mark.parametrize("path", ["/derp/probe", "/derp/latency-check"])
def test_probing_in_another_way_is_told_in_tailscales_words(path: str) -> None:
    page = page_for(request(f"POST {path} HTTP/1.1"))
    assert page.status == HTTPStatus.METHOD_NOT_ALLOWED
    assert page.body == b"bogus probe method\n"


@pytest.mark.parametrize("path", ["/", "/ping", "/healthz", "/robots.txt", "/generate_204", "/no"])
def test_every_page_has_the_headers_that_protect_its_reader(path: str) -> None:
    headers = headers_of(page_for(get(path)))
    assert headers["strict-transport-security"] == "max-age=63072000; includeSubDomains"
    assert headers["content-security-policy"].startswith("default-src 'none'; frame-ancestors")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"


def test_a_challenge_is_not_to_be_answered_from_a_cache() -> None:
    for page in (
        page_for(get("/generate_204")),
        PlainPages(https_port=1).page_for(get("/generate_204")),
    ):
        assert headers_of(page)["cache-control"].startswith("no-cache, no-store")


class TestLandingPage:
    PAGE = page_for(get("/"))

    def test_its_policy_allows_its_own_style_and_no_other(self) -> None:
        styles = re.findall(rb"<style>(.*?)</style>", self.PAGE.body, re.DOTALL)
        assert len(styles) == 1
        digest = base64.b64encode(hashlib.sha256(styles[0]).digest()).decode()
        policy = headers_of(self.PAGE)["content-security-policy"]
        assert f"style-src 'sha256-{digest}'" in policy
        assert b"style=" not in self.PAGE.body

    def test_it_needs_nothing_but_itself(self) -> None:
        assert re.findall(rb"src=|<link|@import|url\(|<script", self.PAGE.body) == []

    def test_its_tags_are_closed(self) -> None:
        checker = TagChecker()
        checker.feed(self.PAGE.body.decode())
        assert checker.open == []


class TagChecker(HTMLParser):
    VOID = frozenset({"meta"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


class TestPlainPort:
    def test_it_answers_challenges_without_the_headers_of_pages(self) -> None:
        asked = get("/generate_204", "host: x", "x-iroh-challenge: ts_x")
        page = PlainPages(https_port=443).page_for(asked)
        assert page.status == HTTPStatus.NO_CONTENT
        assert headers_of(page)["x-iroh-response"] == "response ts_x"
        assert "strict-transport-security" not in headers_of(page)

    @pytest.mark.parametrize(
        ("host", "port", "location"),
        [
            ("derp.example.com", 443, "https://derp.example.com/a?b=c"),
            ("derp.example.com:80", 443, "https://derp.example.com/a?b=c"),
            ("derp.example.com", 8443, "https://derp.example.com:8443/a?b=c"),
            ("[2001:db8::1]:80", 443, "https://[2001:db8::1]/a?b=c"),
        ],
    )
    def test_readers_are_sent_to_https(self, host: str, port: int, location: str) -> None:
        page = PlainPages(https_port=port).page_for(get("/a?b=c", f"host: {host}"))
        assert page.status == HTTPStatus.FOUND
        assert headers_of(page)["location"] == location

    def test_the_configured_name_goes_before_the_one_that_was_used(self) -> None:
        asked = get("/", "host: 10.0.0.1")
        page = PlainPages(https_port=443, hostname="derp.example.com").page_for(asked)
        assert headers_of(page)["location"] == "https://derp.example.com/"

    @pytest.mark.parametrize("hostname", ["dérp.example", "a\n", "a b", "a/b", "u@a", "a:1", ""])
    def test_a_name_that_could_not_be_told_is_refused_at_once(self, hostname: str) -> None:
        with pytest.raises(DecodeError, match="not a host name in ASCII"):
            PlainPages(https_port=443, hostname=hostname)

    @pytest.mark.parametrize(
        "head",
        [
            "GET / HTTP/1.1",
            "GET / HTTP/1.1\r\nhost: evil.example/path",
            "GET / HTTP/1.1\r\nhost: user@evil.example",
            "GET http://evil.example/ HTTP/1.1\r\nhost: x",
            "POST / HTTP/1.1\r\nhost: x",
            "GET /relay HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket",
        ],
    )
    def test_others_find_nothing(self, head: str) -> None:
        page = PlainPages(https_port=443).page_for(request(head))
        assert page.status == HTTPStatus.NOT_FOUND
