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

from iroh_proto.address import DEFAULT_PORTS, check_hostname
from iroh_proto.derp.landing import LANDING_PAGE, STYLE_SOURCE
from iroh_proto.derp.upgrade import HttpRequest

PROBE_PATHS = frozenset({"/ping", "/relay/probe"})
"""Answered with an empty page, readable from any origin: 0.20 to 0.28 ask for ``/relay/probe``,
0.29 and later for ``/ping``."""

TAILSCALE_PROBE_PATHS = frozenset({"/derp/probe", "/derp/latency-check"})
"""The same for Tailscale's clients, and for iroh 0.6 to 0.19."""

CHALLENGE_PATH = "/generate_204"
"""What clients ask for on plain HTTP, to see whether a captive portal answers instead."""

HEALTH_PATH = "/healthz"
"""Asked by those who watch over a server, since 0.96."""

HOME_PATHS = frozenset({"/", "/index.html"})

_POLICY = (
    "default-src 'none'; frame-ancestors 'none'; form-action 'none'; base-uri 'self'; "
    "block-all-mixed-content; plugin-types 'none'"
)


def _security_headers(policy: str) -> tuple[tuple[str, str], ...]:
    return (
        ("strict-transport-security", "max-age=63072000; includeSubDomains"),
        ("content-security-policy", policy),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
    )


SECURITY_HEADERS = _security_headers(_POLICY)
"""Sent with every page: the first two as iroh's server does since 0.19, the others as
Tailscale's."""

_HOME_HEADERS = _security_headers(f"{_POLICY}; style-src {STYLE_SOURCE}")

_HEALTHY = b'{"status":"ok"}'
_ROBOTS = b"User-agent: *\nDisallow: /\n"
_TEXT = ("content-type", "text/plain; charset=utf-8")
_JSON = ("content-type", "application/json")
_HTML = ("content-type", "text/html; charset=utf-8")
_FOR_ALL = ("access-control-allow-origin", "*")
_NO_CACHE = ("cache-control", "no-cache, no-store, must-revalidate, no-transform, max-age=0")

# The header of a challenge, what it may say, and the header that answers it. Tailscale's clients
# use one more character and one more sign than iroh's; iroh 0.93 renamed the headers.
_CHALLENGES = (
    ("x-tailscale-challenge", re.compile(r"[A-Za-z0-9._:-]{1,64}"), "x-tailscale-response"),
    ("x-iroh-challenge", re.compile(r"[A-Za-z0-9._-]{1,63}"), "x-iroh-response"),
)

# What may stand in a Host header, and so in a redirect: a name or address, and a port.
_HOST = re.compile(r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")


class Page(NamedTuple):
    """An HTTP response: status, headers but those that frame it, body."""

    status: HTTPStatus
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


_BOGUS = Page(
    HTTPStatus.METHOD_NOT_ALLOWED,
    (_TEXT, ("allow", "GET, HEAD"), *SECURITY_HEADERS),
    b"bogus probe method\n",
)
NOT_FOUND = Page(HTTPStatus.NOT_FOUND, (_TEXT, *SECURITY_HEADERS), b"Not Found")


def page_for(request: HttpRequest) -> Page:
    """Return the answer to a request for a page, which may be that there is none."""
    if not _is_read(request):
        return _BOGUS if request.path in TAILSCALE_PROBE_PATHS else NOT_FOUND
    if request.path in PROBE_PATHS or request.path in TAILSCALE_PROBE_PATHS:
        return Page(HTTPStatus.OK, (_FOR_ALL, *SECURITY_HEADERS))
    if request.path == CHALLENGE_PATH:
        return _challenged(request, SECURITY_HEADERS)
    if request.path == HEALTH_PATH:
        return Page(HTTPStatus.OK, (_JSON, *SECURITY_HEADERS), _HEALTHY)
    if request.path == "/robots.txt":
        return Page(HTTPStatus.OK, (_TEXT, *SECURITY_HEADERS), _ROBOTS)
    if request.path in HOME_PATHS:
        return Page(HTTPStatus.OK, (_HTML, *_HOME_HEADERS), LANDING_PAGE)
    return NOT_FOUND


class PlainPages:
    """What the plain HTTP port of a server answers whose pages are on HTTPS.

    Challenges are answered, for what they find out is what becomes of plain HTTP. Other pages are
    said to be on HTTPS. Clients for whom it is the wrong port are told that nothing is there.

    :param https_port: the port of HTTPS.
    :param hostname: the name to send readers to, instead of the one they used.
    :raises DecodeError: if ``hostname`` is no host name.
    """

    def __init__(self, *, https_port: int, hostname: str | None = None) -> None:
        if hostname is not None:
            check_hostname(hostname)
        self._hostname = hostname
        self._port = "" if https_port == DEFAULT_PORTS["https"] else f":{https_port}"

    def page_for(self, request: HttpRequest) -> Page:
        """Return the answer to a request."""
        if not _is_read(request) or request.upgrade is not None:
            return Page(HTTPStatus.NOT_FOUND, (_TEXT,), b"Not Found")
        if request.path == CHALLENGE_PATH:
            return _challenged(request, ())
        host = _HOST.fullmatch(request.header("host") or "")
        name = self._hostname or (None if host is None else host[1])
        if name is None or not request.path.startswith("/"):
            return Page(HTTPStatus.NOT_FOUND, (_TEXT,), b"Not Found")
        query = f"?{request.query}" if request.query else ""
        location = f"https://{name}{self._port}{request.path}{query}"
        return Page(HTTPStatus.FOUND, (("location", location),))


def refusal(reason: str, *headers: tuple[str, str]) -> Page:
    """Return the answer to a request that cannot be granted, for this reason."""
    return Page(HTTPStatus.BAD_REQUEST, (_TEXT, *headers, *SECURITY_HEADERS), reason.encode())


def _is_read(request: HttpRequest) -> bool:
    return request.method in ("GET", "HEAD")


def _challenged(request: HttpRequest, headers: tuple[tuple[str, str], ...]) -> Page:
    responses = [
        (response, f"response {challenge}")
        for name, pattern, response in _CHALLENGES
        if (challenge := request.header(name)) is not None and pattern.fullmatch(challenge)
    ]
    return Page(HTTPStatus.NO_CONTENT, (*responses, _NO_CACHE, *headers))
