"""Messages of a websocket, those that are whole frames and all others."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from iroh_proto.derp.websocket import FRAMES_BEFORE_DATA_LIMIT, WebsocketMessages
from iroh_proto.derp.whole_messages import WholeMessages, apply_mask
from iroh_proto.errors import DecodeError
from iroh_proto.testing.strategies import chunkings

SIZES = [0, 1, 3, 4, 125, 126, 127, 300]
FINAL_BINARY = b"\x82"


def unlimited(first: int, length: int) -> None:
    pass


def events() -> st.SearchStrategy[list[Event]]:
    sizes = st.sampled_from(SIZES)
    whole = sizes.map(lambda size: BytesMessage(data=random.Random(size).randbytes(size)))
    part = sizes.map(lambda size: BytesMessage(data=bytes(size), message_finished=False))
    others = st.sampled_from([Ping(payload=b"ping"), TextMessage(data="text")])
    fragmented = st.tuples(part, whole).map(list)
    one = whole.map(lambda event: [event])
    single = one | one | one | fragmented | others.map(lambda event: [event])
    return st.lists(single, max_size=6).map(lambda lists: list(itertools.chain(*lists)))


@pytest.mark.parametrize("is_server", [True, False])
@given(data=st.data())
def test_messages_arrive_as_they_were_sent_however_cut(
    is_server: bool, data: st.DataObject
) -> None:
    peer = Connection(ConnectionType.CLIENT if is_server else ConnectionType.SERVER)
    receiver = WebsocketMessages(mask_rng=None if is_server else random.Random(1), check=unlimited)
    stream, expected, unfinished, pings = b"", [], b"", 0
    for event in data.draw(events()):
        stream += peer.send(event)
        if isinstance(event, BytesMessage):
            unfinished += bytes(event.data)
            if event.message_finished:
                expected.append(unfinished)
                unfinished = b""
        pings += isinstance(event, Ping)
    stream += peer.send(CloseConnection(code=1000))
    received: list[bytes] = []
    replies = b""
    for chunk in data.draw(chunkings(stream)):
        received += receiver.receive(chunk)
        replies += receiver.replies()
    assert received == expected
    assert receiver.is_closed
    peer.receive_data(replies)
    assert len(list(peer.events())) == pings + 1


def test_pongs_and_pings_are_no_part_of_a_stream() -> None:
    peer = Connection(ConnectionType.CLIENT)
    receiver = WebsocketMessages(mask_rng=None)
    first = BytesMessage(data=b"begin", message_finished=False)
    sent = [first, Pong(payload=b"x"), Ping(payload=b"y"), BytesMessage(data=b"end")]
    stream = b"".join(peer.send(event) for event in sent)
    assert b"".join(receiver.receive_stream(stream)) == b"beginend"
    peer.receive_data(receiver.replies())
    assert list(peer.events()) == [Pong(payload=b"y")]


@pytest.mark.parametrize("is_server", [True, False])
def test_a_message_may_begin_with_a_fragment_of_nothing(is_server: bool) -> None:
    peer = Connection(ConnectionType.CLIENT if is_server else ConnectionType.SERVER)
    seen: list[tuple[int, int]] = []
    receiver = WebsocketMessages(
        mask_rng=None if is_server else random.Random(1),
        check=lambda number, length: seen.append((number, length)),
    )
    for data in (b"\x04frame", b""):
        pieces = [peer.send(BytesMessage(data=b"", message_finished=False))]
        pieces.append(peer.send(BytesMessage(data=data)))
        assert [list(receiver.receive(piece)) for piece in pieces] == [[], [data]]
    assert seen == [(4, 5)]  # where there is no first byte, there is no kind to check by


@pytest.mark.parametrize("size", [125, 126, 65_535, 65_536, 70_000])
def test_lengths_of_every_form_are_read(size: int) -> None:
    sender = WebsocketMessages(mask_rng=random.Random(1))
    message = random.Random(size).randbytes(size)
    stream = sender.build(message) * 2
    for cut in (1000, len(stream)):
        whole = WholeMessages(is_masked=True, check=unlimited)
        received: list[bytes] = []
        for start in range(0, len(stream), cut):
            received += whole.receive(stream[start : start + cut])
        assert received == [message, message]
        assert not whole.is_over


@given(data=st.data())
def test_given_up_iterations_lose_nothing(data: st.DataObject) -> None:
    sender = WebsocketMessages(mask_rng=random.Random(1))
    messages = [bytes([number]) * number for number in range(1, 6)]
    receiver = WebsocketMessages(mask_rng=None)
    received = []
    for chunk in data.draw(chunkings(b"".join(map(sender.build, messages)))):
        for message in receiver.receive(chunk):
            received.append(message)
            break
    while message := next(receiver.receive(b""), b""):
        received.append(message)
    assert received == messages


@pytest.mark.parametrize(
    "start",
    [
        b"\x82\x05",  # not masked
        b"\x02\x85",  # not final
        b"\xc2\x85",  # an extension
        b"\x81\x85",  # text
        b"\x82\xfe\x00\x05",  # a length written too long
        b"\x82\xff" + bytes(6) + b"\xff\xff",
    ],
)
def test_anything_else_is_left_as_it_is(start: bytes) -> None:
    for size in (1, 100):
        whole = WholeMessages(is_masked=True, check=unlimited)
        stream = start + bytes(20)
        received: list[bytes] = []
        for offset in range(0, len(stream), size):
            received += whole.receive(stream[offset : offset + size])
            if whole.is_over:
                assert whole.rest() == stream[: offset + size]
                break
        assert whole.is_over
        assert received == []


def test_a_length_is_checked_before_the_message_is_there() -> None:
    seen: list[tuple[int, int]] = []

    def check(first: int, length: int) -> None:
        seen.append((first, length))
        raise DecodeError("too long")

    whole = WholeMessages(is_masked=True, check=check)
    header = FINAL_BINARY + b"\xfe\xff\xff" + b"\x10\x20\x30\x40"
    assert list(whole.receive(header)) == []
    with pytest.raises(DecodeError):
        list(whole.receive(b"\x15"))
    assert seen == [(0x05, 65_534)]


@given(payload=st.binary(max_size=300), mask=st.binary(min_size=4, max_size=4))
def test_a_mask_undoes_itself(payload: bytes, mask: bytes) -> None:
    masked = apply_mask(payload, mask)
    assert masked == bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    assert apply_mask(masked, mask) == payload


@pytest.mark.parametrize("event", [Ping(), Pong(), TextMessage(data="")])
def test_a_stranger_may_send_few_frames_without_data(event: Event) -> None:
    peer = Connection(ConnectionType.CLIENT)
    receiver = WebsocketMessages(mask_rng=None)
    for _ in range(FRAMES_BEFORE_DATA_LIMIT):
        assert list(receiver.receive(peer.send(event))) == []
    with pytest.raises(DecodeError, match="16 frames without data"):
        list(receiver.receive(peer.send(event)))


@pytest.mark.parametrize("size", [1, 100])
def test_who_has_sent_data_may_send_more_of_them(size: int) -> None:
    peer = Connection(ConnectionType.CLIENT)
    receiver = WebsocketMessages(mask_rng=None)
    greeting = peer.send(BytesMessage(data=bytes(100)))
    frames = b"".join(peer.send(Ping()) for _ in range(5 * FRAMES_BEFORE_DATA_LIMIT))
    stream = peer.send(Ping()) + greeting + frames
    pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
    assert [m for piece in pieces for m in receiver.receive(piece)] == [bytes(100)]
