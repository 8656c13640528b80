"""What a connection of a DERP server has to say to its owner, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from iroh_proto.derp.dialects import ClientKey
from iroh_proto.errors import RemoteProtocolError


@dataclass(slots=True)
class ConnectionStats:
    """Counts since the start, of one connection or of many.

    :ivar requests_answered: requests answered by a page, or refused.
    :ivar clients_admitted: clients that have proven their key and were let in.
    :ivar clients_denied: clients that have proven their key and were not let in.
    :ivar access_timeouts: those of them on whom nobody decided in time.
    :ivar clients_throttled: clients that were over their rate limit, each counted once.
    :ivar pauses: how often such a client was left unread.
    :ivar bytes_over_rate: bytes that such clients had sent too much when they were left unread.
    :ivar pings_answered: pings that clients sent.
    :ivar faults: connections that the other side's bytes or silence ended.
    :ivar packets_returned: packets that clients sent to themselves.
    :ivar packets_dropped: packets dropped because their reader is slow, or because
        it stopped.
    :ivar controls_dropped: pongs and notices dropped because their reader is slow.
    :ivar frames_ignored: frames that decode but are no business of a server.
    """

    requests_answered: int = 0
    clients_admitted: int = 0
    clients_denied: int = 0
    access_timeouts: int = 0
    clients_throttled: int = 0
    pauses: int = 0
    bytes_over_rate: int = 0
    pings_answered: int = 0
    faults: int = 0
    packets_returned: int = 0
    packets_dropped: int = 0
    controls_dropped: int = 0
    frames_ignored: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyProven:
    """The client has proven to be ``node_id`` and waits for ``complete_access``.

    :ivar token: what it showed beside its key (:func:`iroh_proto.derp.access.token_of`).
    """

    node_id: ClientKey
    dialect: str
    token: str | None = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientAdmitted:
    """The client has proven to be ``node_id``. From now on it sends and gets packets."""

    node_id: ClientKey
    dialect: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLost:
    """The last event: send what is left to send, then close.

    ``error`` is ``None`` when all is as it should be: a page was answered, the client left or was
    denied access, or the server closed.
    """

    error: RemoteProtocolError | None


DerpServerConnectionEvent: TypeAlias = KeyProven | ClientAdmitted | ConnectionLost
