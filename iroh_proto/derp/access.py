"""Who may use a DERP server: what a client shows beside its key, and how long the answer may take.

Source: iroh v1.0.3 ``iroh-relay/src/server.rs`` (``ClientRequest``).
"""

from __future__ import annotations

from urllib.parse import parse_qsl

from iroh_proto.derp.upgrade import HttpRequest
from iroh_proto.errors import LocalProtocolError

ACCESS_TIMEOUT = 5.0
"""Seconds after which a client whose access nobody has decided on is denied it."""

REASON_LIMIT = 1_024
"""Most bytes of a reason that a client is told, in UTF-8."""

APPLICANT_BYTES_LIMIT = 128 * 1024
"""Bytes kept of a client while its access is decided on. It is left unread meanwhile, so these are
what its host had read already: a v3 client may send packets right behind the proof of its key."""

_TOKEN_PARAMETER = "token"


def token_of(request: HttpRequest) -> str | None:
    """Return the token that a client shows in its request, or ``None``.

    It is that of the first ``Authorization`` header with the scheme ``Bearer``, else the parameter
    ``token`` of the query, for browsers. An ``Authorization`` that is no visible ASCII is as good
    as no token at all.
    """
    for name, value in request.headers:
        if name != "authorization":
            continue
        if not (value.isascii() and value.isprintable()):
            return None
        scheme, _, token = value.partition(" ")
        if token and scheme.lower() == "bearer":
            return token
    parameters = parse_qsl(request.query, keep_blank_values=True)
    return next((value for name, value in parameters if name == _TOKEN_PARAMETER), None)


def check_reason(reason: str | None) -> None:
    """Check that a client can be told this reason.

    :raises LocalProtocolError: if it is empty or has more than :data:`REASON_LIMIT` bytes.
    """
    if reason is not None and not 0 < len(reason.encode()) <= REASON_LIMIT:
        raise LocalProtocolError(f"a reason has 1 to {REASON_LIMIT} bytes")
