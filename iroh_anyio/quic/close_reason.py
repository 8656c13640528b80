"""From QUIC's error codes to a reason a caller can act on."""

from __future__ import annotations

from aioquic.quic.events import ConnectionTerminated
from aioquic.quic.packet import QuicErrorCode
from aioquic.tls import AlertDescription

from iroh_anyio.quic.events import CloseKind, CloseReason
from iroh_anyio.quic.tls import NodeContext

CRYPTO_ERROR = int(QuicErrorCode.CRYPTO_ERROR)
"""A TLS alert is reported as this plus its description (RFC 9001, section 4.8)."""

OTHER_IDENTITY_KIND = CRYPTO_ERROR + int(AlertDescription.handshake_failure)
"""What a node says that speaks only the other kind of identity."""

_IDENTITY_ALERTS = frozenset(
    CRYPTO_ERROR + int(alert)
    for alert in (
        AlertDescription.handshake_failure,
        AlertDescription.bad_certificate,
        AlertDescription.unsupported_certificate,
        AlertDescription.certificate_expired,
        AlertDescription.certificate_unknown,
        AlertDescription.unknown_ca,
        AlertDescription.access_denied,
        AlertDescription.decrypt_error,
        AlertDescription.unsupported_extension,
        AlertDescription.certificate_required,
    )
)

_NO_PROTOCOL = CRYPTO_ERROR + int(AlertDescription.no_application_protocol)

_IDLE_TEXT = "Idle timeout"


def explain_close(
    event: ConnectionTerminated, *, by_peer: bool, context: NodeContext | None
) -> CloseReason:
    """Return the reason for what aioquic reports.

    :param context: the handshake's TLS, which knows more of a failure found on this side.
    """
    code, text = int(event.error_code), event.reason_phrase
    kind: CloseKind = "transport"
    if event.frame_type is None:
        kind = "application" if by_peer else "local"
    elif code == _NO_PROTOCOL:
        kind = "alpn"
    elif code in _IDENTITY_ALERTS:
        kind = "identity"
    elif code == QuicErrorCode.CONNECTION_REFUSED:
        kind = "refused"
    elif by_peer and code == QuicErrorCode.APPLICATION_ERROR:
        # What an application says so early may not be passed on (RFC 9000, section 10.2.3).
        text = text or "the peer ended it before the handshake was complete at its end"
    elif not by_peer and code == QuicErrorCode.INTERNAL_ERROR and text == _IDLE_TEXT:
        kind, text = "idle", "nothing was heard from the peer for the idle time-out"
    if not by_peer and context is not None and context.identity_failed:
        kind = "identity"
        if context.answered_by is not None:
            text = f"{context.answered_by} answered instead of the node dialled"
    return CloseReason(kind=kind, code=code, text=text, by_peer=by_peer)
