"""What a DERP server answers to HTTP requests that ask for no upgrade.

Clients measure latency with the probes, and look for captive portals with a challenge that a
portal would not know how to answer. Paths of all generations of iroh are served side by side.

Source: iroh v0.12.0 ``iroh-net/src/bin/derper.rs``, v0.35.0 and v1.0.3
``iroh-relay/src/server.rs``.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import NamedTuple

from iroh_proto.derp.upgrade import HttpRequest

PROBE_PATHS = frozenset({"/ping", "/relay/probe", "/derp/probe"})
"""Answered with an empty page, readable from any origin: 0.6 to 0.28 ask for the ``probe`` paths,
0.29 and later for ``/ping``."""

HEALTH_PATH = "/healthz"
"""Asked by those who watch over a server, since 0.96."""

HOME_PATHS = frozenset({"/", "/index.html"})

SECURITY_HEADERS = (
    ("strict-transport-security", "max-age=63072000; includeSubDomains"),
    (
        "content-security-policy",
        "default-src 'none'; frame-ancestors 'none'; form-action 'none'; base-uri 'self'; "
        "block-all-mixed-content; plugin-types 'none'",
    ),
)
"""Sent with every page, as iroh's server does since 0.19."""

_HOME = b"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>DERP server</title></head>
<body>
<h1>DERP server</h1>
<p>This is a relay for <a href="https://iroh.computer/">iroh</a> nodes. It passes encrypted
packets between nodes that cannot reach each other directly.</p>
</body>
</html>
"""
_HEALTHY = b'{"status":"ok"}'
_ROBOTS = b"User-agent: *\nDisallow: /\n"
_TEXT = ("content-type", "text/plain; charset=utf-8")
_JSON = ("content-type", "application/json")
_HTML = ("content-type", "text/html; charset=utf-8")

# The header of a challenge, what it may say, and the header that answers it. Tailscale's clients
# use one more character and one more sign than iroh's; iroh 0.93 renamed the headers.
_CHALLENGES = (
    ("x-tailscale-challenge", re.compile(r"[A-Za-z0-9._:-]{1,64}"), "x-tailscale-response"),
    ("x-iroh-challenge", re.compile(r"[A-Za-z0-9._-]{1,63}"), "x-iroh-response"),
)


class Page(NamedTuple):
    """An HTTP response: status, headers but those that frame it, body."""

    status: HTTPStatus
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


NOT_FOUND = Page(HTTPStatus.NOT_FOUND, (_TEXT, *SECURITY_HEADERS), b"Not Found")


def page_for(request: HttpRequest) -> Page:
    """Return the answer to a request for a page, which may be that there is none."""
    if request.method not in ("GET", "HEAD"):
        return NOT_FOUND
    if request.path in PROBE_PATHS:
        return Page(HTTPStatus.OK, (("access-control-allow-origin", "*"), *SECURITY_HEADERS))
    if request.path == "/generate_204":
        return Page(HTTPStatus.NO_CONTENT, (*_responses(request), *SECURITY_HEADERS))
    if request.path == HEALTH_PATH:
        return Page(HTTPStatus.OK, (_JSON, *SECURITY_HEADERS), _HEALTHY)
    if request.path == "/robots.txt":
        return Page(HTTPStatus.OK, (_TEXT, *SECURITY_HEADERS), _ROBOTS)
    if request.path in HOME_PATHS:
        return Page(HTTPStatus.OK, (_HTML, *SECURITY_HEADERS), _HOME)
    return NOT_FOUND


def refusal(reason: str, *headers: tuple[str, str]) -> Page:
    """Return the answer to a request that cannot be granted, for this reason."""
    return Page(HTTPStatus.BAD_REQUEST, (_TEXT, *headers, *SECURITY_HEADERS), reason.encode())


def _responses(request: HttpRequest) -> list[tuple[str, str]]:
    return [
        (response, f"response {challenge}")
        for name, pattern, response in _CHALLENGES
        if (challenge := request.header(name)) is not None and pattern.fullmatch(challenge)
    ]
