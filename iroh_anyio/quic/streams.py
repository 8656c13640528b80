"""Streams of one connection: who may still send what, and whom the application keeps waiting.

aioquic reassembles and retransmits. What is added here is flow control by consumption: the
peer's windows open only as the application reads, its right to open streams grows only as the
application is done with earlier ones, and what the application writes waits in a buffer of
known size.

A stream's receiving side goes ``open -> ended -> closed`` (all bytes arrived, then all consumed),
or to ``stopped`` when the application wants no more (what still comes is credited and dropped),
or to ``closed`` at once when the peer resets it (what is not consumed is credited, and for the
application to drop, as quinn does and RFC 9000, section 3.2, allows). Its sending side goes from
``open`` to ``stopped`` (the peer wants no more) or ``closed`` (ended or reset here). A stream
whose two sides are both at their end is forgotten.
"""

from __future__ import annotations

from collections import deque
from enum import Enum

from iroh_anyio.quic.aioquic_private import HookedConnection
from iroh_anyio.quic.events import (
    EndpointEvent,
    SendingStopped,
    StreamDataReceived,
    StreamDelivered,
    StreamOpened,
    StreamReset,
    StreamSendable,
)
from iroh_anyio.quic.options import EndpointOptions
from iroh_proto.errors import LocalProtocolError

BLOCKED_STREAMS_LIMIT = 1024
"""Streams of each kind that may be opened before the peer allows them; each costs some 2 KiB."""

STOPPED_STREAMS_LIMIT = 1024
"""Streams that are over because the peer stopped them and on which sending goes on being no
error: the application may not have noticed yet."""

WINDOW_STEPS = 4
"""A window is announced again once this fraction of it was consumed: often enough that the peer
is not held up, seldom enough that the frames do not matter."""


class _Side(Enum):
    OPEN = "open"
    ENDED = "ended"
    STOPPED = "stopped"
    CLOSED = "closed"


class _Stream:
    __slots__ = ("consumed", "delivered", "incoming", "receiving", "sending", "touched")

    def __init__(self, *, incoming: bool, receiving: _Side, sending: _Side) -> None:
        self.incoming = incoming
        self.receiving = receiving
        self.sending = sending
        self.touched = not incoming
        self.delivered = 0
        self.consumed = 0


class StreamTable:
    """The streams of connection ``number``. What happens to them is appended to ``events``."""

    def __init__(
        self,
        *,
        quic: HookedConnection,
        number: int,
        is_client: bool,
        options: EndpointOptions,
        events: deque[EndpointEvent],
    ) -> None:
        self._quic = quic
        self._number = number
        self._events = events
        self._window = options.stream_window
        self._window_step = max(1, options.stream_window // WINDOW_STEPS)
        self._send_buffer = options.send_buffer
        self._peer_bit = 1 if is_client else 0
        self._streams: dict[int, _Stream] = {}
        self._opened_by_peer = {True: 0, False: 0}
        self._filled: set[int] = set()
        self._undelivered: set[int] = set()
        self._stopped: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._streams)

    # Commands

    def open(self, *, bidirectional: bool) -> int:
        """Open a stream and return its id. The peer learns of it with the first bytes.

        :raises LocalProtocolError: if too many wait for the peer to allow them.
        """
        if self._quic.blocked_streams(bidirectional=bidirectional) >= BLOCKED_STREAMS_LIMIT:
            raise LocalProtocolError(
                f"{BLOCKED_STREAMS_LIMIT} streams already wait for the peer to allow them"
            )
        stream_id = self._quic.get_next_available_stream_id(is_unidirectional=not bidirectional)
        self._quic.send_stream_data(stream_id, b"")
        self._streams[stream_id] = _Stream(
            incoming=False,
            receiving=_Side.OPEN if bidirectional else _Side.CLOSED,
            sending=_Side.OPEN,
        )
        return stream_id

    def send(self, stream_id: int, data: bytes, *, end: bool) -> bool:
        """Queue bytes, and with ``end`` the end; say whether they may go out now.

        Silently dropped if the peer wants no more.

        :raises LocalProtocolError: if the stream does not exist, cannot be sent on or has ended,
            or if there is less room than bytes.
        """
        self._check_sends(stream_id)
        stream = self._streams.get(stream_id)
        if stream is None and stream_id in self._stopped:
            return False
        if stream is None or stream.sending is _Side.CLOSED:
            raise LocalProtocolError(f"stream {stream_id} has ended; nothing can follow")
        if len(data) > self.room(stream_id):
            raise LocalProtocolError(
                f"{len(data)} bytes for a stream with room for {self.room(stream_id)}: "
                "wait for StreamSendable"
            )
        stream.touched = True
        if stream.sending is _Side.OPEN:
            self._quic.send_stream_data(stream_id, data, end)
            if end:
                self._undelivered.add(stream_id)
            elif 2 * self.room(stream_id) < self._send_buffer:
                self._filled.add(stream_id)
        if end:
            self._close_sending(stream_id, stream)
        return self._quic.is_allowed(stream_id)

    def room(self, stream_id: int) -> int:
        """Return how many bytes may be sent now. A stopped stream takes, and drops, anything.

        :raises LocalProtocolError: if the stream does not exist or cannot be sent on.
        """
        self._check_sends(stream_id)
        stream = self._streams.get(stream_id)
        if stream_id in self._stopped or (stream and stream.sending is _Side.STOPPED):
            return self._send_buffer
        if stream is None or stream.sending is _Side.CLOSED:
            return 0
        return max(0, self._send_buffer - (self._quic.buffered(stream_id) or 0))

    def reset(self, stream_id: int, code: int) -> None:
        """Give up sending; the peer is told ``code``. Nothing happens if it has all the bytes.

        :raises LocalProtocolError: if the stream does not exist or cannot be sent on.
        """
        self._check_sends(stream_id)
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        stream.touched = True
        if self._quic.is_resettable(stream_id):
            self._quic.reset_stream(stream_id, code)
            self._undelivered.discard(stream_id)
        self._close_sending(stream_id, stream)

    def stop(self, stream_id: int, code: int) -> None:
        """Give up receiving; the peer is told ``code``. No event of receiving follows.

        :raises LocalProtocolError: if the stream does not exist or cannot be received on.
        """
        self._check_receives(stream_id)
        stream = self._streams.get(stream_id)
        if stream is None or self._is_done_receiving(stream_id, stream):
            return
        self._credit(stream, stream.delivered)
        if stream.receiving is _Side.OPEN and self._quic.is_stoppable(stream_id):
            stream.receiving = _Side.STOPPED
            self._quic.stop_stream(stream_id, code)
        else:
            self._close_receiving(stream_id, stream)

    def consume(self, stream_id: int, count: int | None) -> bool:
        """Open the windows by ``count`` bytes; say whether the peer is to be told.

        :param count: ``None`` for all that was delivered.

        :raises LocalProtocolError: if the stream does not exist, cannot be received on, or
            delivered fewer bytes.
        """
        self._check_receives(stream_id)
        stream = self._streams.get(stream_id)
        if count is not None and count < 0:
            raise LocalProtocolError(f"{count} bytes consumed")
        if stream is None:
            return False
        if self._is_done_receiving(stream_id, stream):
            return stream_id not in self._streams  # it was the first look, and makes room
        if count is None:
            count = stream.delivered - stream.consumed
        if count > stream.delivered - stream.consumed:
            raise LocalProtocolError(
                f"{count} bytes consumed of {stream.delivered - stream.consumed} delivered"
            )
        self._credit(stream, stream.consumed + count)
        due = self._quic.data_limit.is_due
        if stream.receiving is _Side.OPEN:
            limit = stream.consumed + self._window
            return self._quic.open_window(stream_id, limit, self._window_step) or due
        if stream.consumed == stream.delivered:
            self._close_receiving(stream_id, stream)
            return True
        return due

    # What aioquic reports

    def on_data(self, stream_id: int, data: bytes, end: bool) -> None:
        """Pass on bytes that arrived in order."""
        stream = self._find(stream_id)
        if stream is None:
            return
        stream.delivered += len(data)
        if stream.receiving is _Side.STOPPED:
            self._credit(stream, stream.delivered)
            if end:
                self._close_receiving(stream_id, stream)
            return
        self._queue_data(stream_id, data, end)
        if end:
            stream.receiving = _Side.ENDED
            # Whoever has read all the bytes of a stream need not look for its end.
            if stream.touched and stream.consumed == stream.delivered:
                self._close_receiving(stream_id, stream)

    def on_reset(self, stream_id: int, code: int) -> None:
        """Pass on that the peer gave up sending."""
        stream = self._find(stream_id)
        if stream is None:
            return
        self._credit(stream, self._quic.receive_offset(stream_id) or stream.delivered)
        if stream.receiving is not _Side.STOPPED:
            self._events.append(
                StreamReset(connection=self._number, stream_id=stream_id, code=code)
            )
        self._close_receiving(stream_id, stream)

    def on_stopped(self, stream_id: int, code: int) -> None:
        """Pass on that the peer wants no more."""
        stream = self._find(stream_id)
        if not self._quic.is_resettable(stream_id):
            return  # the peer has all of it already, be that reported or not
        was_undelivered = stream_id in self._undelivered
        self._filled.discard(stream_id)
        self._undelivered.discard(stream_id)
        if was_undelivered or (stream is not None and stream.sending is _Side.OPEN):
            self._events.append(
                SendingStopped(connection=self._number, stream_id=stream_id, code=code)
            )
        if stream is not None and stream.sending is _Side.OPEN:
            stream.sending = _Side.STOPPED
            self._forget_if_done(stream_id, stream)

    def on_progress(self) -> None:
        """Report what acknowledgements and openings changed without an event of aioquic."""
        self._open_up_to(self._quic.bidi_limit.used, bidirectional=True)
        self._open_up_to(self._quic.uni_limit.used, bidirectional=False)
        if self._filled:
            self._report_sendable()
        if self._undelivered:
            self._report_delivered()

    # Helpers

    def _queue_data(self, stream_id: int, data: bytes, end: bool) -> None:
        """Queue bytes as one event with those right before them, if they still wait.

        One event for many packets is cheaper, and it makes no difference then how the packets
        were batched.
        """
        events = self._events
        last = events[-1] if events else None
        if (
            type(last) is StreamDataReceived
            and last.stream_id == stream_id
            and last.connection == self._number
        ):
            events.pop()
            data = last.data + data
        events.append(
            StreamDataReceived(connection=self._number, stream_id=stream_id, data=data, end=end)
        )

    def _report_sendable(self) -> None:
        for stream_id in sorted(self._filled):
            if 2 * (self._quic.buffered(stream_id) or 0) <= self._send_buffer:
                self._filled.discard(stream_id)
                self._events.append(StreamSendable(connection=self._number, stream_id=stream_id))

    def _report_delivered(self) -> None:
        for stream_id in sorted(self._undelivered):
            if not self._quic.is_resettable(stream_id):
                self._undelivered.discard(stream_id)
                self._events.append(StreamDelivered(connection=self._number, stream_id=stream_id))

    def _find(self, stream_id: int) -> _Stream | None:
        stream = self._streams.get(stream_id)
        if stream is None and stream_id & 1 == self._peer_bit:
            self._open_up_to(stream_id // 4 + 1, bidirectional=not stream_id & 2)
            stream = self._streams.get(stream_id)
        return stream

    def _open_up_to(self, count: int, *, bidirectional: bool) -> None:
        for index in range(self._opened_by_peer[bidirectional], count):
            stream_id = 4 * index + self._peer_bit + (0 if bidirectional else 2)
            self._streams[stream_id] = _Stream(
                incoming=True,
                receiving=_Side.OPEN,
                sending=_Side.OPEN if bidirectional else _Side.CLOSED,
            )
            self._events.append(
                StreamOpened(
                    connection=self._number, stream_id=stream_id, bidirectional=bidirectional
                )
            )
            self._opened_by_peer[bidirectional] = index + 1

    def _is_done_receiving(self, stream_id: int, stream: _Stream) -> bool:
        """Note that the application knows the stream; say whether it has nothing more to read."""
        stream.touched = True
        if stream.receiving is _Side.CLOSED:
            self._forget_if_done(stream_id, stream)
        return stream.receiving in (_Side.STOPPED, _Side.CLOSED)

    def _credit(self, stream: _Stream, consumed: int) -> None:
        self._quic.data_limit.grant(consumed - stream.consumed)
        stream.consumed = consumed

    def _close_sending(self, stream_id: int, stream: _Stream) -> None:
        stream.sending = _Side.CLOSED
        self._filled.discard(stream_id)
        self._forget_if_done(stream_id, stream)

    def _close_receiving(self, stream_id: int, stream: _Stream) -> None:
        stream.receiving = _Side.CLOSED
        self._forget_if_done(stream_id, stream)

    def _forget_if_done(self, stream_id: int, stream: _Stream) -> None:
        done = stream.receiving is _Side.CLOSED and stream.sending in (
            _Side.STOPPED,
            _Side.CLOSED,
        )
        if not (done and stream.touched):
            return
        del self._streams[stream_id]
        if stream.sending is _Side.STOPPED:
            self._stopped[stream_id] = None
            if len(self._stopped) > STOPPED_STREAMS_LIMIT:
                del self._stopped[next(iter(self._stopped))]
        if stream.incoming:
            limit = self._quic.uni_limit if stream_id & 2 else self._quic.bidi_limit
            limit.release()

    def _check_sends(self, stream_id: int) -> None:
        self._check_exists(stream_id)
        if stream_id & 2 and stream_id & 1 == self._peer_bit:
            raise LocalProtocolError(f"stream {stream_id} is the peer's to send on")

    def _check_receives(self, stream_id: int) -> None:
        self._check_exists(stream_id)
        if stream_id & 2 and stream_id & 1 != self._peer_bit:
            raise LocalProtocolError(f"stream {stream_id} is ours to send on only")

    def _check_exists(self, stream_id: int) -> None:
        if stream_id in self._streams:
            return
        bidirectional = not stream_id & 2
        if stream_id & 1 == self._peer_bit:
            known = stream_id // 4 < self._opened_by_peer[bidirectional]
        else:
            known = stream_id < self._quic.get_next_available_stream_id(
                is_unidirectional=not bidirectional
            )
        if stream_id < 0 or not known:
            raise LocalProtocolError(f"there is no stream {stream_id}")
