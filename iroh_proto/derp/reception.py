"""Which connection a request to a DERP server asks for, if it asks for one.

One port serves every generation. Path and headers tell them apart, but for one pair::

    GET /relay   Upgrade: iroh derp http   v3 framed                0.20 to 0.90
    GET /relay   Upgrade: websocket        v3 websocket             0.21 to 0.90, browsers
      with Sec-WebSocket-Protocol          relay-v1, relay-v2       0.91 and later
    GET /derp    Upgrade: websocket        v3 websocket             0.20, browsers
      with the subprotocol ``derp``        Tailscale's websocket    browsers
    any /derp    Upgrade: DERP             Tailscale's, framed
    GET /derp    Upgrade: iroh derp http   v2, or v3 framed         0.6 to 0.13, or 0.14 to 0.20

v2 and v3 clients send the last one byte for byte alike; who speaks first tells them apart
afterwards. Of the subprotocols that a client offers for its websocket the newest is taken; a client
that offers none that is known here is told so. A client of Tailscale's dialect that knows the
server already may do without an answer, by ``Derp-Fast-Start: 1``.

Source: iroh v0.12.0 ``iroh-net/src/derp/http/server.rs``, v0.35.0 and v1.0.3
``iroh-relay/src/server/http_server.rs``.
"""

from __future__ import annotations

from typing import NamedTuple

from iroh_proto.derp.approach import DERP_PATH, RELAY_PATH, SUBPROTOCOLS
from iroh_proto.derp.codec import Form
from iroh_proto.derp.dialects import relay_v1, tailscale
from iroh_proto.derp.pages import Page, page_for, refusal
from iroh_proto.derp.upgrade import (
    DERP_UPGRADE,
    FAST_START_HEADER,
    FRAMED_UPGRADE,
    WEBSOCKET_UPGRADE,
    WEBSOCKET_VERSION,
    HttpRequest,
    derp_headers,
    framed_headers,
    websocket_headers,
)
from iroh_proto.errors import DecodeError
from iroh_proto.x25519 import X25519PublicKey

TAILSCALE = tailscale.DIALECT.name


class Admission(NamedTuple):
    """An upgrade to agree to.

    :ivar dialect: a key of ``DIALECTS``; ``None`` if only the first frame will tell.
    :ivar form: how frames stand on the stream.
    :ivar headers: those of the 101 answer; ``None`` if there is to be no answer.
    """

    dialect: str | None
    form: Form
    headers: list[tuple[str, str]] | None


def receive_request(request: HttpRequest, *, derp_key: X25519PublicKey) -> Admission | Page:
    """Return what to answer to a request: an upgrade or a page.

    :param derp_key: the server's key in Tailscale's dialect, which its answer names.
    """
    if request.path == DERP_PATH and (request.upgrade or "").upper() == DERP_UPGRADE:
        is_fast = request.header(FAST_START_HEADER.lower()) == "1"
        return Admission(TAILSCALE, "framed", None if is_fast else derp_headers(derp_key))
    if request.method != "GET" or request.path not in (RELAY_PATH, DERP_PATH):
        return page_for(request)
    if request.upgrade is None:
        return refusal("this needs an upgrade of HTTP/1.1")
    # Upstream compares with case, RFC 9110 section 7.8 without.
    upgrade = request.upgrade.lower()
    if upgrade == FRAMED_UPGRADE:
        dialect = "v3" if request.path == RELAY_PATH else None
        return Admission(dialect, "framed", framed_headers())
    if upgrade == WEBSOCKET_UPGRADE:
        return _admit_websocket(request)
    return refusal("no such protocol to upgrade to")


def _admit_websocket(request: HttpRequest) -> Admission | Page:
    offer = request.header("sec-websocket-protocol")
    subprotocol = None
    if offer is not None:
        subprotocol = best_subprotocol(offer, path=request.path)
        if subprotocol is None:
            return refusal("none of these websocket subprotocols is spoken here")
    dialect = "v3" if subprotocol is None else SUBPROTOCOLS[subprotocol]
    try:
        return Admission(dialect, "websocket", websocket_headers(request, subprotocol))
    except DecodeError as error:
        return refusal(str(error), ("sec-websocket-version", WEBSOCKET_VERSION))


def best_subprotocol(offer: str, *, path: str) -> str | None:
    """Return the newest websocket subprotocol of a path that is offered, in whatever order."""
    offered = {name.strip() for name in offer.split(",")}
    known = relay_v1.SUBPROTOCOLS if path == RELAY_PATH else tailscale.SUBPROTOCOLS
    return next((name for name in known if name in offered), None)
