"""A QUIC connection to a node: streams, datagrams, the path it takes, and its end."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from weakref import WeakSet, WeakValueDictionary

from anyio.lowlevel import checkpoint

from iroh_anyio.errors import DatagramTooLarge, TooManyStreams
from iroh_anyio.link import Link
from iroh_anyio.quic.events import (
    CloseReason,
    ConnectionInfo,
    ConnectionStats,
    QuicDatagramReceived,
    SendingStopped,
    StreamDataReceived,
    StreamDelivered,
    StreamOpened,
    StreamReset,
    StreamSendable,
)
from iroh_anyio.signals import Signal
from iroh_anyio.streams import BiStream, ReceiveStream, SendStream
from iroh_proto.errors import LocalProtocolError
from iroh_proto.key import NodeId
from iroh_proto.magicsock import PathInfo

RECEIVED_DATAGRAMS_LIMIT = 1_024
"""Datagrams kept until the application takes them; the oldest are dropped first."""

RECEIVED_DATAGRAM_BYTES_LIMIT = 1_250_000
"""Bytes of such datagrams together, as one may be of 65 kB. Source: iroh-quinn-proto 0.13
``src/config/transport.rs``, ``datagram_receive_buffer_size``."""

PATH_CHANGES_LIMIT = 64
"""Path changes kept for an iterator that nobody advances; the oldest are dropped first."""


class PathChanges:
    """The path of a connection, then each change of it, until the connection is over.

    An async iterator. It may be left at any time, and need not be closed.
    """

    def __init__(self, link: Link, path: PathInfo) -> None:
        self._link = link
        self._queue: deque[PathInfo] = deque(maxlen=PATH_CHANGES_LIMIT)
        self._arrived = Signal()
        self.note(path)

    def __aiter__(self) -> PathChanges:
        return self

    async def __anext__(self) -> PathInfo:
        await checkpoint()
        while not self._queue:
            if not self._link.is_open:
                raise StopAsyncIteration
            await self._arrived.wait()
        return self._queue.popleft()

    def note(self, path: PathInfo) -> None:
        """Take the path that is used now."""
        # A connection that has no path is about to have one, or to end.
        if path.kind != "none":
            self._queue.append(path)
            self._arrived.set()

    def wake(self) -> None:
        """Take the news that the connection is over."""
        self._arrived.set()


class Connection:
    """A connection to the node ``remote_node_id``, which has proven to be it.

    Got from :meth:`MagicEndpoint.connect` or :meth:`MagicEndpoint.accept`. It ends when either
    side closes it, when nothing is heard for the idle time-out, or with its endpoint.
    """

    def __init__(self, link: Link, *, remote_node_id: NodeId, alpn: bytes, incoming: bool) -> None:
        self._link = link
        self.remote_node_id = remote_node_id
        self.alpn = alpn
        self.incoming = incoming
        self.datagrams_dropped = 0
        """Received datagrams dropped because the application did not take them in time."""
        self._info = link.machine.connection_info(link.number)
        # Weak, because nobody has to say that a stream is done with; news of it is for its users.
        self._senders: WeakValueDictionary[int, SendStream] = WeakValueDictionary()
        self._receivers: WeakValueDictionary[int, ReceiveStream] = WeakValueDictionary()
        # Bounded by the limit of streams that the peer was given.
        self._opened_bi: deque[BiStream] = deque()
        self._opened_uni: deque[ReceiveStream] = deque()
        self._opened = Signal()
        self._datagrams: deque[bytes] = deque()
        self._datagram_bytes = 0
        self._datagram_arrived = Signal()
        self._over = Signal()
        self._path_changes: WeakSet[PathChanges] = WeakSet()

    def __repr__(self) -> str:
        state = "open" if self._link.is_open else "closed"
        return f"<Connection {self._link.number} with {self.remote_node_id.fmt_short()}, {state}>"

    # Streams

    async def open_bi(self) -> BiStream:
        """Open a stream that both sides send on. The peer learns of it with the first bytes.

        :raises TooManyStreams: if too many wait for the peer to allow them.
        :raises ConnectionClosed: if the connection is over.
        """
        stream_id = await self._open(bidirectional=True)
        return self._make_bi(stream_id)

    async def open_uni(self) -> SendStream:
        """Open a stream that this side sends on. The peer learns of it with the first bytes.

        :raises TooManyStreams: if too many wait for the peer to allow them.
        :raises ConnectionClosed: if the connection is over.
        """
        stream_id = await self._open(bidirectional=False)
        return self._make_sender(stream_id)

    async def accept_bi(self) -> BiStream:
        """Return the next stream the peer opened that both sides send on, waiting for it.

        :raises ConnectionClosed: if the connection is over.
        """
        await checkpoint()
        while not self._opened_bi:
            self._link.check_open()
            await self._opened.wait()
        return self._opened_bi.popleft()

    async def accept_uni(self) -> ReceiveStream:
        """Return the next stream the peer opened that only it sends on, waiting for it.

        :raises ConnectionClosed: if the connection is over.
        """
        await checkpoint()
        while not self._opened_uni:
            self._link.check_open()
            await self._opened.wait()
        return self._opened_uni.popleft()

    # Datagrams

    async def send_datagram(self, data: bytes) -> None:
        """Send a datagram, which may get lost. If too many wait to be sent the oldest is dropped.

        :raises DatagramTooLarge: if it does not fit one packet, or the peer takes none.
        :raises ConnectionClosed: if the connection is over.
        """
        await checkpoint()
        link = self._link
        link.check_open()
        limit = link.machine.max_datagram_payload(link.number)
        if limit is None or len(data) > limit:
            raise DatagramTooLarge(len(data), limit or 0)
        link.machine.send_datagram(link.number, data, now=link.driver.now())
        link.driver.flush()

    async def receive_datagram(self) -> bytes:
        """Return the next datagram, waiting for it.

        :raises ConnectionClosed: if the connection is over and none is left.
        """
        await checkpoint()
        while not self._datagrams:
            self._link.check_open()
            await self._datagram_arrived.wait()
        return self._take_datagram()

    # The connection itself

    def close(self, code: int = 0, reason: str = "") -> None:
        """Close the connection at once; the peer is told ``code`` and ``reason``. Idempotent.

        What was sent and not yet acknowledged may be lost: wait for the peer's answer before, or
        for :meth:`SendStream.wait_delivered`.

        :raises LocalProtocolError: if the code is not 0 to 2^62 - 1, or the reason has no UTF-8.
        """
        link = self._link
        if link.is_open:
            link.machine.close_connection(link.number, code, reason, now=link.driver.now())
            link.driver.flush()

    async def wait_closed(self) -> CloseReason:
        """Wait until the connection is over, and return why."""
        await checkpoint()
        while self._link.reason is None:
            await self._over.wait()
        return self._link.reason

    @property
    def close_reason(self) -> CloseReason | None:
        """Why the connection is over, ``None`` while it stands."""
        return self._link.reason

    @property
    def rtt(self) -> float | None:
        """The smoothed round-trip time in seconds, ``None`` before the first sample."""
        return self._current().rtt

    @property
    def stats(self) -> ConnectionStats:
        """Counts of packets and bytes; those at its end if the connection is over."""
        return self._current().stats

    @property
    def path(self) -> PathInfo:
        """The path used now; the last one if the connection is over."""
        return self._current().path

    @property
    def max_datagram_size(self) -> int:
        """Bytes that fit a datagram now, 0 if the peer takes none or the connection is over."""
        link = self._link
        return (link.machine.max_datagram_payload(link.number) or 0) if link.is_open else 0

    def path_changes(self) -> PathChanges:
        """Return an async iterator of the path used now and then each change of it."""
        changes = PathChanges(self._link, self.path)
        self._path_changes.add(changes)
        return changes

    # News from the endpoint

    def note_opened(self, event: StreamOpened) -> None:
        """Take a stream that the peer opened."""
        if event.bidirectional:
            self._opened_bi.append(self._make_bi(event.stream_id))
        else:
            self._opened_uni.append(self._make_receiver(event.stream_id))
        self._opened.set()

    def note_data(self, event: StreamDataReceived) -> None:
        """Take bytes of a stream."""
        receiver = self._receivers.get(event.stream_id)
        if receiver is not None:
            receiver.note_data(event.data, event.end)
        else:
            self._link.consume(event.stream_id, len(event.data))

    def note_reset(self, event: StreamReset) -> None:
        """Take the news that the peer gave up sending on a stream."""
        receiver = self._receivers.get(event.stream_id)
        if receiver is not None:
            receiver.note_reset(event.code)
        else:
            self._link.consume(event.stream_id, 0)

    def note_stopped(self, event: SendingStopped) -> None:
        """Take the news that the peer wants no more of a stream."""
        sender = self._senders.get(event.stream_id)
        if sender is not None:
            sender.note_stopped(event.code)

    def note_delivered(self, event: StreamDelivered) -> None:
        """Take the news that the peer has all of a stream."""
        sender = self._senders.get(event.stream_id)
        if sender is not None:
            sender.note_delivered()

    def note_sendable(self, event: StreamSendable) -> None:
        """Take the news that a stream has room again."""
        sender = self._senders.get(event.stream_id)
        if sender is not None:
            sender.wake()

    def note_datagram(self, event: QuicDatagramReceived) -> None:
        """Take a datagram."""
        self._datagrams.append(event.data)
        self._datagram_bytes += len(event.data)
        while (
            len(self._datagrams) > RECEIVED_DATAGRAMS_LIMIT
            or self._datagram_bytes > RECEIVED_DATAGRAM_BYTES_LIMIT
        ):
            self._take_datagram()
            self.datagrams_dropped += 1
        self._datagram_arrived.set()

    def note_path(self, path: PathInfo) -> None:
        """Take a change of path."""
        for changes in list(self._path_changes):
            changes.note(path)

    def note_closed(self, reason: CloseReason) -> None:
        """Take the news that it is over, and wake everybody."""
        with suppress(LocalProtocolError):  # the machine keeps the facts of a few that are over
            self._current()
        self._link.reason = reason
        for signal in (self._opened, self._datagram_arrived, self._over):
            signal.set()
        for sender in list(self._senders.values()):
            sender.wake()
        for receiver in list(self._receivers.values()):
            receiver.wake()
        for changes in list(self._path_changes):
            changes.wake()

    # Helpers

    async def _open(self, *, bidirectional: bool) -> int:
        await checkpoint()
        link = self._link
        link.check_open()
        try:
            return link.machine.open_stream(link.number, bidirectional=bidirectional)
        except LocalProtocolError as error:
            raise TooManyStreams(f"{error}: end some of them first") from error

    def _take_datagram(self) -> bytes:
        data = self._datagrams.popleft()
        self._datagram_bytes -= len(data)
        return data

    def _make_bi(self, stream_id: int) -> BiStream:
        return BiStream(self._make_sender(stream_id), self._make_receiver(stream_id))

    def _make_sender(self, stream_id: int) -> SendStream:
        sender = self._senders[stream_id] = SendStream(self._link, stream_id)
        return sender

    def _make_receiver(self, stream_id: int) -> ReceiveStream:
        receiver = self._receivers[stream_id] = ReceiveStream(self._link, stream_id)
        return receiver

    def _current(self) -> ConnectionInfo:
        if self._link.is_open:
            self._info = self._link.machine.connection_info(self._link.number)
        return self._info
