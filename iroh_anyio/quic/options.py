"""Settings of an endpoint's QUIC side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from iroh_proto.address import Address
from iroh_proto.errors import LocalProtocolError
from iroh_proto.key import NodeId

if TYPE_CHECKING:
    from aioquic.quic.logger import QuicLogger

MIN_DATAGRAM_SIZE = 1200
"""Bytes. Every QUIC path carries at least this much (RFC 9000, section 14)."""

MAX_DATAGRAM_SIZE = 16_383
"""Bytes. The largest UDP payload sent: packets and frames are written with lengths of two bytes,
which tell no more (variable-length integers; RFC 9000, section 16)."""

MIN_TIME, MAX_TIME = 0.001, 31_536_000.0
"""Seconds. Time-outs are told to peers in milliseconds, none of which means without end; a year
is as good as that."""

MAX_NUMBER = 1 << 59
"""Sizes and counts are at most this. QUIC has no more than 2^60 streams (RFC 9000, section 4.6) and
2^62 bytes, and what a peer may send grows from here as it is used."""

IdentityMode: TypeAlias = Literal["auto", "raw", "x509"]
"""How nodes prove who they are: raw public keys (0.34 and later), libp2p-style X.509
certificates (up to 0.35), or whichever the peer speaks."""


class TextSink(Protocol):
    """Something to write lines of text to, such as an open file."""

    def write(self, text: str, /) -> object:
        """Write text."""

    def flush(self) -> object:
        """Pass on what was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IncomingAttempt:
    """A first packet that would open a connection, before any handshake work is spent on it.

    ``source`` is where it came from. ``node_id`` is who that is believed to be: certain for a
    relayed packet as far as the relay is trusted, hearsay for a UDP address, ``None`` if unknown.
    """

    source: Address
    node_id: NodeId | None


AcceptFilter: TypeAlias = Callable[[IncomingAttempt], bool]
"""Says whether a handshake may begin. Must not raise and should be quick: strangers call it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointOptions:
    """Settings of an endpoint's QUIC side. Times are seconds up to a year, sizes bytes.

    ``idle_timeout`` ends a connection that heard nothing for so long (the smaller of both peers'
    settings counts); ``keep_alive_interval`` has a PING sent after so long without an
    authenticated packet, ``None`` never. ``handshake_timeout`` bounds a dial and a half-open
    incoming handshake alike.

    ``max_datagram_size`` is the largest UDP payload sent, 1200 to 16383; raise it above 1200 only
    for paths known to carry it. ``stream_window`` and ``connection_window`` are the data a peer may
    send ahead of what the application has consumed; ``send_buffer`` is how much of one stream is
    kept until the peer acknowledges it. ``max_streams`` bounds the streams of each kind a peer may
    have open. ``datagrams`` offers QUIC datagrams (RFC 9221); at most ``datagram_queue`` of them
    wait to be sent, newer ones driving out older ones.

    ``max_connections`` bounds connections of both directions, ``max_half_open`` incoming
    handshakes not yet complete; from ``retry_threshold`` of those on, a source must prove its
    address first (Retry, RFC 9000, section 8.1.2). ``accept_filter`` may refuse a source before
    the handshake.

    ``identity`` ``"auto"`` accepts both kinds at once and dials with raw keys first, then X.509.
    ``ca_certificates`` are the authorities, as PEM, that may vouch for servers of address
    discovery, instead of the usual ones; ``ca_bundle`` is a file of further ones, which OpenSSL
    reads.

    ``qlog`` is an aioquic logger, ``keylog`` takes lines in the form of SSLKEYLOGFILE.

    :raises LocalProtocolError: if a value makes no sense.
    """

    idle_timeout: float = 30.0
    keep_alive_interval: float | None = 5.0
    handshake_timeout: float = 10.0
    max_datagram_size: int = MIN_DATAGRAM_SIZE
    stream_window: int = 4 * 1024 * 1024
    connection_window: int = 16 * 1024 * 1024
    send_buffer: int = 2 * 1024 * 1024
    max_streams: int = 100
    datagrams: bool = True
    datagram_queue: int = 1024
    max_connections: int = 4096
    max_half_open: int = 256
    retry_threshold: int = 64
    accept_filter: AcceptFilter | None = None
    identity: IdentityMode = "auto"
    ca_certificates: bytes | None = None
    ca_bundle: str | None = None
    qlog: QuicLogger | None = None
    keylog: TextSink | None = None

    def __post_init__(self) -> None:
        if self.identity not in ("auto", "raw", "x509"):
            raise LocalProtocolError(f"identity is 'auto', 'raw' or 'x509', not {self.identity!r}")
        for name in _TIMES:
            _check_time(name, getattr(self, name))
        if self.keep_alive_interval is not None:
            _check_time("keep_alive_interval", self.keep_alive_interval)
        _check_number(
            "max_datagram_size", self.max_datagram_size, MIN_DATAGRAM_SIZE, MAX_DATAGRAM_SIZE
        )
        for name in _NUMBERS:
            _check_number(name, getattr(self, name), 1, MAX_NUMBER)
        _check_number("retry_threshold", self.retry_threshold, 0, MAX_NUMBER)


_TIMES = ("idle_timeout", "handshake_timeout")
_NUMBERS = (
    "stream_window",
    "connection_window",
    "send_buffer",
    "max_streams",
    "datagram_queue",
    "max_connections",
    "max_half_open",
)


def _check_time(name: str, value: object) -> None:
    if not isinstance(value, int | float) or not MIN_TIME <= value <= MAX_TIME:
        raise LocalProtocolError(f"{name} is {MIN_TIME:g} to {MAX_TIME:.0f} seconds, not {value!r}")


def _check_number(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or not least <= value <= most:
        raise LocalProtocolError(f"{name} is an integer from {least} to {most}, not {value!r}")
