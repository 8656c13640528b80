"""Messages of a websocket, after its HTTP upgrade.

Binary messages carry frames, one each, and text messages are skipped; or they carry a stream cut
anywhere, and text is a fault. wsproto parses whatever is not simply a whole message
(:mod:`iroh_proto.derp.whole_messages`). They are built here, because wsproto takes its masks from
the operating system and not from the machine's ``rng``.

Source: RFC 6455 section 5.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.frame_protocol import CloseReason, Opcode

from iroh_proto.derp.whole_messages import MASK_SIZE, WholeMessages, apply_mask
from iroh_proto.errors import DecodeError

FRAMES_BEFORE_DATA_LIMIT = 16
"""Frames without data that may come before the first with some. Each costs a server more than its
six bytes cost whoever sends it, and who that is, is not known yet."""

_FINAL = 0x80
_MASKED = 0x80
_SHORT_LENGTH_LIMIT = 125
_U16_LENGTH = 126
_U64_LENGTH = 127

_TEXT = "a websocket message of text"
_BAD_TEXT = "not a websocket frame: text that is not UTF-8"


class WebsocketMessages:
    """One side of a websocket.

    :param mask_rng: where a client takes its masks from (RFC 6455 section 5.3); a server, which
        does not mask, gives ``None``.
    :param check: is given the first byte of each message and the bytes behind it so far, and
        raises :class:`DecodeError` for too many. This bounds what is kept of an unfinished one;
        of a stream nothing is kept.
    :ivar is_closed: whether the peer began the closing handshake, after which nothing is read.
    """

    __slots__ = (
        "_check",
        "_connection",
        "_frames_before_data",
        "_mask_rng",
        "_message",
        "_replies",
        "_whole",
        "is_closed",
    )

    def __init__(
        self,
        *,
        mask_rng: random.Random | None,
        check: Callable[[int, int], None] = lambda number, length: None,
    ) -> None:
        self._mask_rng = mask_rng
        self._check = check
        is_server = mask_rng is None
        self._connection = Connection(ConnectionType.SERVER if is_server else ConnectionType.CLIENT)
        self._message = bytearray()
        self._frames_before_data: int | None = 0
        self._whole = WholeMessages(is_masked=is_server, check=check)
        self._replies: list[bytes] = []
        self.is_closed = False

    def receive(self, data: bytes) -> Iterator[bytes]:
        """Yield the binary messages that ``data`` completes, in order.

        What is left when the iteration is given up comes with the next call.

        :raises DecodeError: for what is no websocket; receive no more then.
        """
        if not self._whole.is_over:
            for message in self._whole.receive(data):
                self._frames_before_data = None
                yield message
            data = self._whole.rest()
            if not data:
                return
        for event in self._events(data):
            if isinstance(event, BytesMessage):
                self._message += event.data
                if self._message:
                    self._check(self._message[0], len(self._message) - 1)
                if event.message_finished:
                    message = bytes(self._message)
                    self._message.clear()
                    yield message

    def receive_stream(self, data: bytes) -> Iterator[bytes]:
        """Yield what binary messages hold, whole or not, as it comes.

        :raises DecodeError: for what is no websocket, or for text; receive no more then.
        """
        for event in self._events(data, bad_text=_TEXT):
            if isinstance(event, TextMessage):
                raise DecodeError(_TEXT)
            if isinstance(event, BytesMessage):
                yield bytes(event.data)

    @property
    def has_news(self) -> bool:
        """Whether there are replies, or the peer began the closing handshake."""
        return self.is_closed or bool(self._replies)

    def build(self, *parts: bytes | memoryview) -> bytes:
        """Return the bytes of a binary message that has these parts."""
        return self._build(Opcode.BINARY, b"".join(parts))

    def build_pairs(self, parts: Sequence[bytes | memoryview]) -> list[bytes]:
        """Return the bytes of a binary message for every two parts, for a server."""
        messages: list[bytes] = []
        header, header_length = b"", -1
        for start, data in zip(parts[::2], parts[1::2], strict=True):
            length = len(start) + len(data)
            if length != header_length:
                header, header_length = _header(Opcode.BINARY, 0, length), length
            messages.append(b"".join((header, start, data)))
        return messages

    def replies(self) -> bytes:
        """Return the answers to pings and to the closing handshake, and forget them."""
        if not self._replies:
            return b""
        replies = b"".join(self._replies)
        self._replies.clear()
        return replies

    def goodbye(self) -> bytes:
        """Return the bytes that begin the closing handshake."""
        return self._build(Opcode.CLOSE, CloseReason.NORMAL_CLOSURE.to_bytes(2, "big"))

    def _events(self, data: bytes, *, bad_text: str = _BAD_TEXT) -> Iterator[Event]:
        """Yield the messages, or parts of them; what else there is, is seen to.

        :param bad_text: what to call text that is not UTF-8.
        """
        if self.is_closed:
            return
        self._connection.receive_data(data)
        for event in self._connection.events():
            if self._frames_before_data is not None:
                self._check_for_data(event)
            if isinstance(event, Ping):
                self._replies.append(self._build(Opcode.PONG, bytes(event.payload)))
            elif isinstance(event, CloseConnection):
                self._take_close(event, bad_text)
            else:
                yield event

    def _check_for_data(self, event: Event) -> None:
        if isinstance(event, BytesMessage) and event.data:
            self._frames_before_data = None
        elif getattr(event, "frame_finished", True):
            self._frames_before_data = (self._frames_before_data or 0) + 1
            if self._frames_before_data > FRAMES_BEFORE_DATA_LIMIT:
                raise DecodeError(f"more than {FRAMES_BEFORE_DATA_LIMIT} frames without data")

    def _take_close(self, event: CloseConnection, bad_text: str) -> None:
        if self._connection.state is not ConnectionState.REMOTE_CLOSING:
            if event.code == CloseReason.INVALID_FRAME_PAYLOAD_DATA:
                # Where in it the wrong byte is depends on how it was cut on the way.
                raise DecodeError(bad_text)
            raise DecodeError(f"not a websocket frame: {event.reason}")
        # 1005 stands for a close without a code and must not be sent (RFC 6455 section 7.4.1).
        has_code = event.code != CloseReason.NO_STATUS_RCVD
        code = int(event.code).to_bytes(2, "big") if has_code else b""
        self._replies.append(self._build(Opcode.CLOSE, code))
        self.is_closed = True

    def _build(self, opcode: Opcode, payload: bytes) -> bytes:
        if self._mask_rng is None:
            return _header(opcode, 0, len(payload)) + payload
        mask = self._mask_rng.randbytes(MASK_SIZE)
        return _header(opcode, _MASKED, len(payload)) + mask + apply_mask(payload, mask)


def _header(opcode: int, masked: int, length: int) -> bytes:
    """Return what comes before the payload of a final frame, or before its mask."""
    if length <= _SHORT_LENGTH_LIMIT:
        return bytes((_FINAL | opcode, masked | length))
    if length < 1 << 16:
        return bytes((_FINAL | opcode, masked | _U16_LENGTH)) + length.to_bytes(2, "big")
    return bytes((_FINAL | opcode, masked | _U64_LENGTH)) + length.to_bytes(8, "big")
