"""QUIC streams as anyio byte streams.

Back-pressure goes both ways: ``send`` waits while the stream's send buffer is full, and the peer's
flow-control window opens only as ``receive`` hands bytes out.
"""

from __future__ import annotations

from collections import deque

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream, ByteStream
from anyio.lowlevel import checkpoint

from iroh_anyio.errors import StreamReset, StreamStopped
from iroh_anyio.link import Link
from iroh_anyio.signals import Signal

CUT_OFF_CODE = 0
"""What a peer is told of a stream that is closed while a ``send`` on it is not complete."""

MERGED_CHUNK_SIZE = 1024
"""Bytes up to which what arrived is kept as one chunk with what came right before. A chunk takes
some 40 bytes besides its own, which would be many times the window for a stream in tiny pieces.
Packets of bulk data are larger, so that they are not copied for this."""


class SendStream(ByteSendStream):
    """A stream, or the half of one, that this side sends on.

    One that nobody holds any more is ended or reset as by :meth:`aclose`.
    """

    def __init__(self, link: Link, stream_id: int) -> None:
        self._link = link
        self._stream_id = stream_id
        self._guard = anyio.ResourceGuard("sending to")
        self._progress = Signal()
        self._unsent = 0
        self._ended = False
        self._reset = False
        self._delivered = False
        self._stopped: int | None = None

    def __del__(self) -> None:
        # Nobody has to say that a stream is done with. It counts against what the peer may open
        # until it has ended, and the peer may wait for the end.
        if self._ended or self._stopped is not None:
            return
        if self._unsent:
            self._link.reset_soon(self._stream_id, CUT_OFF_CODE)
        else:
            self._link.end_soon(self._stream_id)

    @property
    def stream_id(self) -> int:
        """The stream's number in QUIC."""
        return self._stream_id

    async def send(self, item: bytes) -> None:
        """Send bytes, waiting for room as long as the send buffer is full.

        Cancelled while it waits, it has sent an unknown part of them; :meth:`aclose` then resets
        the stream, lest the peer take that part for the whole.

        :raises anyio.ClosedResourceError: if this side ended or reset the stream.
        :raises StreamStopped: if the peer wants no more.
        :raises ConnectionClosed: if the connection is over.
        """
        link, stream_id = self._link, self._stream_id
        with self._guard:
            self._unsent += len(item)
            await checkpoint()
            while True:
                self._check_sendable()
                room = link.send_room(stream_id)
                if room >= len(item):
                    link.send_stream(stream_id, item)
                    self._unsent -= len(item)
                    return
                if room:
                    link.send_stream(stream_id, item[:room])
                    self._unsent -= room
                    item = item[room:]
                else:
                    await self._progress.wait()

    async def send_eof(self) -> None:
        """Say that nothing follows. What was sent before is still delivered. Idempotent.

        :raises anyio.ClosedResourceError: if this side reset the stream.
        :raises StreamStopped: if the peer wants no more.
        :raises ConnectionClosed: if the connection is over.
        """
        with self._guard:
            await checkpoint()
            if not self._ended or self._reset:
                self._check_sendable()
                self._end()

    async def wait_delivered(self) -> None:
        """Wait until the peer has acknowledged every byte and the end, after ``send_eof``.

        It says that the bytes reached the peer's machine, not that its program has read them.

        :raises anyio.ClosedResourceError: if this side reset the stream.
        :raises StreamStopped: if the peer wants no more.
        :raises ConnectionClosed: if the connection ended before.
        """
        await checkpoint()
        if not self._ended:
            raise RuntimeError("call send_eof() before wait_delivered()")
        while not self._delivered:
            if self._stopped is not None:
                raise StreamStopped(self._stopped)
            if self._reset:
                raise anyio.ClosedResourceError("this side has reset the stream")
            self._link.check_open()
            await self._progress.wait()

    def reset(self, code: int = 0) -> None:
        """Give up sending: what the peer has not read may be lost, and it is told ``code``.

        Nothing happens on a connection that is over.
        """
        if not self._delivered:
            self._link.reset_stream(self._stream_id, code)
            self._ended = self._reset = True
        self._progress.set()

    async def aclose(self) -> None:
        """End the stream as ``send_eof`` does, if that is still possible.

        If a ``send`` was cut off, or is under way in another task, the stream is reset with
        :data:`CUT_OFF_CODE` instead. That an ``async with`` block is left by an exception between
        two of them does not count: where the peer could take what it has for the whole, call
        :meth:`reset` before.
        """
        if not self._ended and self._stopped is None and self._link.is_open:
            if self._unsent:
                self.reset(CUT_OFF_CODE)
            else:
                self._end()
        self._ended = True
        self._progress.set()
        await checkpoint()

    def note_stopped(self, code: int) -> None:
        """Take the news that the peer wants no more."""
        self._stopped = code
        self._progress.set()

    def note_delivered(self) -> None:
        """Take the news that the peer has everything."""
        self._delivered = True
        self._progress.set()

    def wake(self) -> None:
        """Take the news that there is room, or that the connection is over."""
        self._progress.set()

    def _end(self) -> None:
        self._ended = True
        self._link.send_stream(self._stream_id, b"", end=True)
        self._progress.set()

    def _check_sendable(self) -> None:
        if self._stopped is not None:
            raise StreamStopped(self._stopped)
        if self._reset:
            raise anyio.ClosedResourceError("this side has reset the stream: open another")
        if self._ended:
            raise anyio.ClosedResourceError("this side has ended the stream: send before that")
        self._link.check_open()


class ReceiveStream(ByteReceiveStream):
    """A stream, or the half of one, that the peer sends on."""

    def __init__(self, link: Link, stream_id: int) -> None:
        self._link = link
        self._stream_id = stream_id
        self._guard = anyio.ResourceGuard("receiving from")
        self._arrived = Signal()
        # Bounded by the flow-control window: the peer may not send on before it is consumed.
        self._chunks: deque[bytes] = deque()
        self._offset = 0
        self._ended = False
        self._stopped = False
        self._reset: int | None = None
        self._end_was_told = False

    def __del__(self) -> None:
        # Nobody has to say that a stream is done with. What is left of it counts against what the
        # peer may send and open.
        if not self._stopped and not self._end_was_told:
            self._link.discard_soon(self._stream_id)

    @property
    def stream_id(self) -> int:
        """The stream's number in QUIC."""
        return self._stream_id

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Return at least one and at most ``max_bytes`` bytes, waiting for them if need be.

        What arrived before the end of the connection is returned first; a reset drops what is
        unread.

        :raises anyio.EndOfStream: after the last byte.
        :raises anyio.ClosedResourceError: if this side stopped or closed the stream.
        :raises StreamReset: if the peer gave up sending.
        :raises ConnectionClosed: if the connection is over.
        """
        if max_bytes < 1:
            raise ValueError(f"max_bytes is at least 1, not {max_bytes}")
        with self._guard:
            await checkpoint()
            while True:
                if self._stopped:
                    raise anyio.ClosedResourceError("this side has stopped receiving the stream")
                if self._chunks:
                    data = self._take(max_bytes)
                    self._link.consume(self._stream_id, len(data))
                    return data
                if self._ended or self._reset is not None:
                    # A stream without bytes counts as unread, and against what the peer may
                    # open, until somebody has looked at it.
                    self._link.consume(self._stream_id, 0)
                    self._end_was_told = True
                if self._ended:
                    raise anyio.EndOfStream
                if self._reset is not None:
                    raise StreamReset(self._reset)
                self._link.check_open()
                await self._arrived.wait()

    def stop(self, code: int = 0) -> None:
        """Give up receiving: the peer is told ``code``, and what it sent is dropped.

        Nothing happens on a connection that is over.
        """
        if not self._stopped:
            self._link.stop_sending(self._stream_id, code)
            self._stopped = True
            self._chunks.clear()
            self._arrived.set()

    async def aclose(self) -> None:
        """Stop receiving, with code 0 if there could be more to come."""
        self.stop()
        await checkpoint()

    def note_data(self, data: bytes, end: bool) -> None:
        """Take bytes that arrived."""
        chunks = self._chunks
        if data and not self._stopped:
            if chunks and len(chunks[-1]) + len(data) <= MERGED_CHUNK_SIZE:
                chunks[-1] += data
            else:
                chunks.append(data)
        if end:
            self._ended = True
        self._arrived.set()

    def note_reset(self, code: int) -> None:
        """Take the news that the peer gave up sending, and drop what is unread."""
        self._reset = code
        # The peer may send as many bytes on other streams now: kept ones would have no bound.
        self._chunks.clear()
        self._offset = 0
        self._arrived.set()

    def wake(self) -> None:
        """Take the news that the connection is over."""
        self._arrived.set()

    def _take(self, limit: int) -> bytes:
        chunks = self._chunks
        first = chunks[0]
        if self._offset or len(first) > limit:
            # Small reads move an offset; cutting the chunk each time would copy it each time.
            data = first[self._offset : self._offset + limit]
            self._offset += len(data)
            if self._offset == len(first):
                chunks.popleft()
                self._offset = 0
            return data
        if len(chunks) == 1:
            return chunks.popleft()
        taken: list[bytes] = []
        while chunks and len(chunks[0]) <= limit:
            limit -= len(chunks[0])
            taken.append(chunks.popleft())
        return b"".join(taken)


class BiStream(ByteStream):
    """A stream that both sides send on.

    ``aclose`` ends or resets one half, as :meth:`SendStream.aclose` says, and stops the other.
    """

    def __init__(self, sender: SendStream, receiver: ReceiveStream) -> None:
        self.sender = sender
        self.receiver = receiver

    @property
    def stream_id(self) -> int:
        """The stream's number in QUIC."""
        return self.sender.stream_id

    async def send(self, item: bytes) -> None:
        """Send bytes; see :meth:`SendStream.send`."""
        await self.sender.send(item)

    async def send_eof(self) -> None:
        """Say that nothing follows; see :meth:`SendStream.send_eof`."""
        await self.sender.send_eof()

    async def wait_delivered(self) -> None:
        """Wait until the peer has everything; see :meth:`SendStream.wait_delivered`."""
        await self.sender.wait_delivered()

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Return bytes that arrived; see :meth:`ReceiveStream.receive`."""
        return await self.receiver.receive(max_bytes)

    def reset(self, code: int = 0) -> None:
        """Give up sending; see :meth:`SendStream.reset`."""
        self.sender.reset(code)

    def stop(self, code: int = 0) -> None:
        """Give up receiving; see :meth:`ReceiveStream.stop`."""
        self.receiver.stop(code)

    async def aclose(self) -> None:
        """End sending, or reset it if a ``send`` was cut off, and stop receiving."""
        try:
            await self.sender.aclose()
        finally:
            await self.receiver.aclose()
