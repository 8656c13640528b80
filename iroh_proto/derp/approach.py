"""Which generation a DERP server is, found out by trying.

A server is asked in one way (an :class:`Approach`) on each TCP connection; a refusal tells which
way to try next, on a new connection. Without a configured dialect::

    GET /relay, framed        101: v3
      404 -> GET /derp, framed      101, then a ServerKey: v2; silence: v3
        426 -> the same with Upgrade: DERP  101: tailscale
      400 -> GET /relay, websocket  101 with a subprotocol: relay-v1 or relay-v2; without: v3
        404 -> GET /derp, websocket   101 with a subprotocol: tailscale; without: v3

No way leads back to one before it, so that trying ends after three. Servers of 0.91 and later know
nothing but websockets, those of 0.20 to 0.90 both paths and forms, older ones only ``/derp``, and
Tailscale's have a page of 200 for ``/relay``. A ``Derp-Public-Key`` in a 101 tells one of those.
Framed is tried first as it costs both sides least where there is a choice; a server that lacks it
says so in one round trip. To older servers, too, the websocket is for proxies that let nothing else
pass.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import NamedTuple

from iroh_proto.address import DerpUrl
from iroh_proto.derp.codec import Form
from iroh_proto.derp.dialects import DIALECTS, relay_v1, tailscale
from iroh_proto.derp.upgrade import DERP_UPGRADE, FRAMED_UPGRADE
from iroh_proto.errors import LocalProtocolError

RELAY_PATH = "/relay"
"""The path of v3 servers since 0.20."""

DERP_PATH = "/derp"
"""The path of v2 servers, and of v3 servers until 0.90."""

SUBPROTOCOLS = {**relay_v1.SUBPROTOCOLS, **tailscale.SUBPROTOCOLS}
"""The dialect of each websocket subprotocol, on whichever path."""

_RELAY_DIALECTS = frozenset(relay_v1.SUBPROTOCOLS.values())
_TAILSCALE = tailscale.DIALECT.name

_NOT_THIS_WAY = frozenset(
    {
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.UPGRADE_REQUIRED,
        HTTPStatus.NOT_IMPLEMENTED,
        HTTPStatus.BAD_GATEWAY,
    }
)


class Approach(NamedTuple):
    """How a connection to a server begins.

    :ivar dialect: a key of ``DIALECTS``; ``None`` to let the server show it: by speaking first, or
        by the subprotocol that it chooses for a websocket.
    """

    dialect: str | None
    path: str
    form: Form

    @property
    def upgrade(self) -> str:
        """The protocol to ask for in the framed form."""
        return DERP_UPGRADE if self.dialect == _TAILSCALE else FRAMED_UPGRADE

    @property
    def subprotocols(self) -> tuple[str, ...]:
        """The websocket subprotocols to offer, the best first: those of the dialect or before."""
        if self.form != "websocket":
            return ()
        known = relay_v1.SUBPROTOCOLS if self.path == RELAY_PATH else tailscale.SUBPROTOCOLS
        names = tuple(known)
        if self.dialect is None:
            return names
        return next(
            (names[at:] for at, name in enumerate(names) if known[name] == self.dialect), ()
        )


def first_approach(url: DerpUrl, dialect: str | None, *, has_token: bool = False) -> Approach:
    """Return the way to try first.

    :param dialect: the configured one, a key of ``DIALECTS``, or ``None`` if it is not known.
    :param has_token: whether the server wants a token, which those of 1.0 and later do. Their
        dialects have words for a denial, where the framed ones have the client believe that it is
        connected.
    :raises LocalProtocolError: if there is no such dialect.
    """
    if dialect is not None and dialect not in DIALECTS:
        raise LocalProtocolError(f"no DERP dialect {dialect!r}; there are {', '.join(DIALECTS)}")
    if dialect == "v2":
        return Approach("v2", DERP_PATH, "framed")
    if dialect in _RELAY_DIALECTS:
        return Approach(dialect, RELAY_PATH, "websocket")
    form: Form = "websocket" if url.scheme in ("ws", "wss") else "framed"
    if dialect == _TAILSCALE:
        return Approach(dialect, DERP_PATH, form)
    if form == "websocket" or (has_token and dialect is None):
        return Approach(dialect, RELAY_PATH, "websocket")
    return Approach("v3", RELAY_PATH, form)


def next_approach(approach: Approach, status: int, *, dialect: str | None) -> Approach | None:
    """Return the way to try when a server answers the upgrade with ``status`` and not 101.

    :param dialect: the configured one, as for :func:`first_approach`.
    :returns: ``None`` if there is none that this status makes likely.
    """
    if approach.path != RELAY_PATH:
        wants_derp = status == HTTPStatus.UPGRADE_REQUIRED and approach.dialect is None
        return approach._replace(dialect=_TAILSCALE) if wants_derp else None
    if dialect in _RELAY_DIALECTS:
        return None
    if status == HTTPStatus.NOT_FOUND or (status == HTTPStatus.OK and dialect is None):
        return Approach(dialect, DERP_PATH, approach.form)
    if status in _NOT_THIS_WAY and approach.form == "framed":
        return Approach(dialect, RELAY_PATH, "websocket")
    return None
