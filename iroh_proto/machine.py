"""The contract of every state machine in this package. Start reading here.

A machine eats bytes and time and emits bytes and events. It owns no socket, clock, task or
source of randomness; a host (an event loop, a ``select`` loop, a simulator) does.

**Inputs** are ``receive_*`` (bytes from a wire), ``handle_timer`` (time), ``complete_*`` (the
answer to something the machine asked of its host) and plain verbs (commands). Each carries
``now``: finite seconds on any monotonic scale. A ``now`` earlier than the last is treated as the
last. **Outputs** are queued by inputs and drained by ``next_event``, ``datagrams_to_send``,
``data_to_send``, ``received_payloads``, ``tcp_data_to_send``; draining twice gives nothing the
second time.

After each input a host drains the events (whose handling may give commands), then the bytes, and
reads :meth:`Machine.get_timer` last. The rules, each a property test in
:mod:`iroh_proto.testing.contract` that runs against every machine:

1. Inputs carry ``now``, outputs do not.
2. Outputs are queued by inputs; draining twice gives nothing the second time.
3. ``get_timer()`` changes nothing. After ``handle_timer(now=t)`` it is ``None`` or later than
   ``t``. Calling ``handle_timer`` early emits nothing.
4. Bytes from a peer never raise. A bad datagram is dropped and counted in ``stats``; a bad stream
   yields one final event with a :class:`~iroh_proto.errors.RemoteProtocolError`, after which the
   machine is inert.
5. Misuse by the caller raises :class:`~iroh_proto.errors.LocalProtocolError` before anything
   changes.
6. Cutting a stream or a batch elsewhere never changes what comes out. The same seed and inputs
   give the same outputs.
7. Every buffer and table has a named limit. Expiry is ``deadline <= now``, everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from iroh_proto.address import Address

EventT_co = TypeVar("EventT_co", covariant=True)


class Transmit:
    """Datagrams for one destination, in the order to be sent.

    ``segment_size`` is the size in bytes of every datagram but possibly the last, which may be
    shorter; it is what generic segmentation offload needs. It is ``None`` when the sizes differ
    otherwise.
    """

    __slots__ = ("addr", "datagrams", "segment_size")

    def __init__(
        self, addr: Address, datagrams: Sequence[bytes], segment_size: int | None = None
    ) -> None:
        self.addr = addr
        self.datagrams = datagrams
        self.segment_size = segment_size

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Transmit):
            return NotImplemented
        return (
            self.addr == other.addr
            and list(self.datagrams) == list(other.datagrams)
            and self.segment_size == other.segment_size
        )

    __hash__ = None  # type: ignore[assignment]  # mutable content

    def __repr__(self) -> str:
        sizes = [len(datagram) for datagram in self.datagrams]
        return f"Transmit({self.addr}, sizes={sizes})"


class Machine(Protocol[EventT_co]):
    """What every machine has: time in, events out."""

    def handle_timer(self, *, now: float) -> None:
        """Let every deadline at or before ``now`` expire."""

    def get_timer(self) -> float | None:
        """Return the earliest deadline, or ``None``. Changes nothing."""

    def next_event(self) -> EventT_co | None:
        """Return the oldest queued event and forget it, or ``None``."""


class StreamMachine(Machine[EventT_co], Protocol[EventT_co]):
    """A machine on one reliable byte stream (TCP or TLS)."""

    def receive_data(self, data: bytes, *, now: float) -> None:
        """Take bytes that arrived, cut anywhere."""

    def receive_eof(self, *, now: float) -> None:
        """Take the news that the peer will send no more."""

    def data_to_send(self) -> bytes:
        """Return the bytes to write, and forget them; empty when there are none."""


class DatagramMachine(Machine[EventT_co], Protocol[EventT_co]):
    """A machine on datagrams."""

    def receive_datagrams(self, batch: Sequence[bytes], addr: Address, *, now: float) -> None:
        """Take datagrams that arrived from one address."""

    def datagrams_to_send(self) -> list[Transmit]:
        """Return the datagrams to send, and forget them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpRequested:
    """The machine wants a TCP connection, answered by ``complete_tcp(tcp_id, ...)``.

    The host resolves ``host``, connects, and if ``tls`` is true completes a TLS handshake with
    ``host`` as server name before it answers. The machine keeps the deadline.
    """

    tcp_id: int
    host: str
    port: int
    tls: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpCloseRequested:
    """The machine is done with a connection: send what ``tcp_data_to_send`` gives, then close.

    It also withdraws a :class:`TcpRequested` that was not answered yet. No ``complete_tcp``,
    ``receive_tcp_data`` or ``receive_tcp_eof`` is owed for it any more; late ones are ignored.
    """

    tcp_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpPauseRequested:
    """The machine wants nothing more from a connection for now: the host stops reading from it.

    What was read already is given all the same. The kernel's buffers fill up then and the peer has
    to wait; nothing is lost. The end of the connection need not be told while it is paused.
    """

    tcp_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpResumeRequested:
    """The host reads again from a connection that a :class:`TcpPauseRequested` was about."""

    tcp_id: int


class TcpUser(Protocol):
    """A machine that has its host keep TCP connections for it.

    The host pulls bytes only when the connection can take them, so that queues stay in the
    machine, where their limits are.
    """

    def complete_tcp(self, tcp_id: int, *, error: str | None = None, now: float) -> None:
        """Say that the connection stands, or with ``error`` why it does not."""

    def receive_tcp_data(self, tcp_id: int, data: bytes, *, now: float) -> None:
        """Take bytes that arrived on a connection."""

    def receive_tcp_eof(self, tcp_id: int, *, now: float) -> None:
        """Take the end of a connection, orderly or not."""

    def tcp_to_send(self) -> list[int]:
        """Return the connections that have bytes to write. Changes nothing."""

    def tcp_data_to_send(self, tcp_id: int) -> bytes:
        """Return bytes to write on one connection and forget them; empty when there are none."""
