"""Flow control by consumption, bounded send buffers, and how streams end."""

from __future__ import annotations

import random

import pytest
from aioquic.quic.packet import QuicPacketType
from aioquic.tls import Epoch
from hypothesis import given
from hypothesis import strategies as st

from iroh_anyio.quic import streams
from iroh_anyio.quic.aioquic_private.connection import STREAM_PIECES_LIMIT
from iroh_anyio.quic.events import (
    SendingStopped,
    StreamDataReceived,
    StreamDelivered,
    StreamOpened,
    StreamReset,
    StreamSendable,
)
from iroh_anyio.quic.options import EndpointOptions
from iroh_anyio.quic.streams import BLOCKED_STREAMS_LIMIT, StreamTable
from iroh_proto.errors import LocalProtocolError
from iroh_proto.wire import encode_quic_varint
from tests.proto.hostile_quic import forge
from tests.proto.quic_pair import QuicPair, Side

ACK, STOP_SENDING = 0x02, 0x05
SMALL = EndpointOptions(
    stream_window=8_000, connection_window=20_000, send_buffer=10_000, max_streams=4
)


def small_pair(**options: object) -> QuicPair:
    return QuicPair(client=SMALL, server=SMALL).establish()


def received(side: Side, stream_id: int) -> bytes:
    events = side.seen(StreamDataReceived)
    return b"".join(event.data for event in events if event.stream_id == stream_id)


def has_ended(side: Side, stream_id: int) -> bool:
    events = side.seen(StreamDataReceived)
    return any(event.end for event in events if event.stream_id == stream_id)


def streams_of(side: Side) -> StreamTable:
    return side.connection.streams


def pour(pair: QuicPair, data: bytes, *, bidirectional: bool = True) -> int:
    """Send as the client, as fast as room allows, with the server consuming at once."""
    client, server = streams_of(pair.client), streams_of(pair.server)
    stream_id = client.open(bidirectional=bidirectional)
    taken = sent = 0
    for _ in range(10_000):
        room = client.room(stream_id)
        if sent < len(data) and room:
            piece = data[sent : sent + room]
            sent += len(piece)
            client.send(stream_id, piece, end=sent == len(data))
        pair.run_for(0.01)
        arrived = received(pair.server, stream_id)
        server.consume(stream_id, len(arrived) - taken)
        taken = len(arrived)
        if has_ended(pair.server, stream_id):
            return stream_id
    raise AssertionError(f"only {taken} of {len(data)} bytes arrived")


def test_bytes_arrive_in_order_and_the_end_with_them() -> None:
    pair = small_pair()
    data = random.Random(1).randbytes(100_000)
    stream_id = pour(pair, data)
    assert received(pair.server, stream_id) == data
    assert pair.server.seen(StreamOpened) == [
        StreamOpened(connection=7, stream_id=stream_id, bidirectional=True)
    ]
    pair.run_for(0.5)
    assert pair.client.seen(StreamDelivered) == [StreamDelivered(connection=7, stream_id=stream_id)]


def test_the_peer_is_held_up_by_an_application_that_does_not_read() -> None:
    pair = small_pair()
    client = streams_of(pair.client)
    stream_id = client.open(bidirectional=True)
    client.send(stream_id, bytes(10_000), end=False)
    pair.run_for(2.0)
    assert len(received(pair.server, stream_id)) == SMALL.stream_window
    streams_of(pair.server).consume(stream_id, 5_000)
    pair.run_for(2.0)
    assert len(received(pair.server, stream_id)) == 10_000


def test_all_streams_together_are_held_up_by_the_window_of_the_connection() -> None:
    pair = small_pair()
    client = streams_of(pair.client)
    ids = [client.open(bidirectional=False) for _ in range(4)]
    for stream_id in ids:
        client.send(stream_id, bytes(8_000), end=True)
    pair.run_for(2.0)
    arrived = sum(len(received(pair.server, stream_id)) for stream_id in ids)
    assert arrived == SMALL.connection_window
    for stream_id in ids:
        streams_of(pair.server).consume(stream_id, len(received(pair.server, stream_id)))
    pair.run_for(2.0)
    assert all(has_ended(pair.server, stream_id) for stream_id in ids)


def test_consuming_what_was_not_delivered_is_refused() -> None:
    pair = small_pair()
    stream_id = streams_of(pair.client).open(bidirectional=True)
    streams_of(pair.client).send(stream_id, b"abc", end=False)
    pair.run_for(0.5)
    server = streams_of(pair.server)
    with pytest.raises(LocalProtocolError, match="4 bytes consumed of 3"):
        server.consume(stream_id, 4)
    with pytest.raises(LocalProtocolError):
        server.consume(stream_id, -1)
    server.consume(stream_id, 3)
    with pytest.raises(LocalProtocolError):
        server.consume(stream_id, 1)


def test_a_send_buffer_holds_so_much_and_says_when_it_has_room() -> None:
    pair = small_pair()
    client = streams_of(pair.client)
    stream_id = client.open(bidirectional=True)
    assert client.room(stream_id) == SMALL.send_buffer
    client.send(stream_id, bytes(9_000), end=False)
    assert client.room(stream_id) == 1_000
    with pytest.raises(LocalProtocolError, match="room for 1000"):
        client.send(stream_id, bytes(1_001), end=False)
    pair.run_for(1.0)
    assert pair.client.seen(StreamSendable) == [StreamSendable(connection=7, stream_id=stream_id)]
    assert client.room(stream_id) >= SMALL.send_buffer // 2


def test_no_room_is_announced_to_those_who_never_lacked_it() -> None:
    pair = small_pair()
    client = streams_of(pair.client)
    stream_id = client.open(bidirectional=True)
    client.send(stream_id, bytes(5_000), end=False)
    pair.run_for(1.0)
    assert pair.client.seen(StreamSendable) == []


def test_a_peer_may_open_so_many_streams_and_more_when_earlier_ones_are_done() -> None:
    pair = small_pair()
    client, server = streams_of(pair.client), streams_of(pair.server)
    ids = [client.open(bidirectional=False) for _ in range(10)]
    for stream_id in ids:
        client.send(stream_id, b"x", end=True)
    pair.run_for(2.0)
    assert [event.stream_id for event in pair.server.seen(StreamOpened)] == ids[:4]
    for stream_id in ids[:4]:
        server.consume(stream_id, 1)
    pair.run_for(2.0)
    assert [event.stream_id for event in pair.server.seen(StreamOpened)] == ids[:8]


def test_empty_streams_count_until_their_end_was_read() -> None:
    pair = small_pair()
    client, server = streams_of(pair.client), streams_of(pair.server)
    ids = [client.open(bidirectional=False) for _ in range(6)]
    for stream_id in ids:
        client.send(stream_id, b"", end=True)
    pair.run_for(2.0)
    assert len(pair.server.seen(StreamOpened)) == 4
    for stream_id in ids[:4]:
        server.consume(stream_id, 0)
    pair.run_for(2.0)
    assert len(pair.server.seen(StreamOpened)) == 6


def test_an_end_that_comes_after_all_was_read_needs_no_reading() -> None:
    pair = small_pair()
    client, server = streams_of(pair.client), streams_of(pair.server)
    stream_id = client.open(bidirectional=False)
    client.send(stream_id, b"x", end=False)
    pair.run_for(0.5)
    server.consume(stream_id, 1)
    client.send(stream_id, b"", end=True)
    pair.run_for(0.5)
    assert has_ended(pair.server, stream_id)
    assert len(server) == 0
    assert server.consume(stream_id, 0) is False


def test_a_stream_is_not_done_while_our_side_of_it_is_open() -> None:
    pair = small_pair()
    client, server = streams_of(pair.client), streams_of(pair.server)
    ids = [client.open(bidirectional=True) for _ in range(5)]
    for stream_id in ids:
        client.send(stream_id, b"x", end=True)
    pair.run_for(2.0)
    for stream_id in ids[:4]:
        server.consume(stream_id, 1)
    pair.run_for(2.0)
    assert len(pair.server.seen(StreamOpened)) == 4
    server.send(ids[0], b"", end=True)
    server.reset(ids[1], 3)
    pair.run_for(2.0)
    assert len(pair.server.seen(StreamOpened)) == 5


def test_many_short_streams_leave_nothing_behind() -> None:
    pair = small_pair()
    for index in range(50):
        stream_id = pour(pair, bytes(index + 1))
        streams_of(pair.server).send(stream_id, b"ok", end=True)
        pair.run_for(0.2)
        streams_of(pair.client).consume(stream_id, 2)
        pair.run_for(0.2)
        pair.client.events.clear()
        pair.server.events.clear()
    pair.run_for(1.0)
    for side in pair.sides:
        assert len(streams_of(side)) == 0
        assert side.connection._quic._streams == {}


def test_higher_streams_open_those_below_them() -> None:
    pair = small_pair()
    client = streams_of(pair.client)
    ids = [client.open(bidirectional=True) for _ in range(3)]
    client.send(ids[2], b"last", end=False)
    pair.run_for(0.5)
    assert [event.stream_id for event in pair.server.seen(StreamOpened)] == ids


def test_opening_streams_is_bounded() -> None:
    pair = small_pair()
    client = streams_of(pair.client)
    for _ in range(4 + BLOCKED_STREAMS_LIMIT):
        client.open(bidirectional=True)
    with pytest.raises(LocalProtocolError, match="wait for the peer"):
        client.open(bidirectional=True)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_a_stream_given_up_before_the_peer_allows_it_is_given_up_once_it_does(
    bidirectional: bool,
) -> None:
    pair = small_pair()
    client, server = streams_of(pair.client), streams_of(pair.server)
    ids = [client.open(bidirectional=bidirectional) for _ in range(SMALL.max_streams)]
    for stream_id in ids:
        assert client.send(stream_id, b"x", end=True) is True
    waiting = client.open(bidirectional=bidirectional)
    assert client.send(waiting, b"never sent", end=False) is False
    client.reset(waiting, 5)
    if bidirectional:
        client.stop(waiting, 6)
    pair.run_for(1.0)
    assert [event.stream_id for event in pair.server.seen(StreamOpened)] == ids
    for stream_id in ids:
        server.consume(stream_id, 1)
        if bidirectional:
            server.send(stream_id, b"", end=True)
    pair.run_for(1.0)
    assert pair.server.seen(StreamReset) == [
        StreamReset(connection=7, stream_id=waiting, code=5),
    ]
    stopped = [SendingStopped(connection=7, stream_id=waiting, code=6)]
    assert pair.server.seen(SendingStopped) == (stopped if bidirectional else [])
    assert received(pair.server, waiting) == b""
    assert [side.connection.reason for side in pair.sides] == [None, None]


def test_a_long_stream_goes_on_while_another_waits_to_be_given_up() -> None:
    pair = small_pair()
    client = streams_of(pair.client)
    ids = [client.open(bidirectional=False) for _ in range(SMALL.max_streams + 1)]
    client.reset(ids[-1], 5)
    data = random.Random(4).randbytes(SMALL.stream_window)
    client.send(ids[0], data, end=True)
    pair.run_for(1.0)
    assert received(pair.server, ids[0]) == data
    assert len(pair.server.seen(StreamOpened)) == 1


def test_a_reset_ends_the_stream_and_gives_back_the_window() -> None:
    pair = small_pair()
    client, server = streams_of(pair.client), streams_of(pair.server)
    for _ in range(10):  # far more than the window of the connection in total
        stream_id = client.open(bidirectional=False)
        client.send(stream_id, bytes(8_000), end=False)
        pair.run_for(0.5)
        client.reset(stream_id, 42)
        pair.run_for(0.5)
        (event,) = pair.server.seen(StreamReset)
        assert event == StreamReset(connection=7, stream_id=stream_id, code=42)
        server.consume(stream_id, 8_000)  # late, and without effect
        assert len(received(pair.server, stream_id)) == 8_000
        pair.server.events.clear()
    assert pair.client.seen(StreamDelivered) == []


def test_looking_at_a_stream_that_was_reset_is_for_the_peer_to_know() -> None:
    pair = small_pair()
    client, server = streams_of(pair.client), streams_of(pair.server)
    stream_id = client.open(bidirectional=False)
    client.reset(stream_id, 1)
    pair.run_for(0.5)
    assert pair.server.seen(StreamReset)
    assert server.consume(stream_id, 0) is True
    assert server.consume(stream_id, 0) is False


def test_stopping_tells_the_peer_and_gives_back_the_window() -> None:
    pair = small_pair()
    client, server = streams_of(pair.client), streams_of(pair.server)
    for _ in range(10):
        stream_id = client.open(bidirectional=False)
        client.send(stream_id, bytes(8_000), end=False)
        pair.run_for(0.5)
        server.stop(stream_id, 9)
        pair.run_for(0.5)
        (event,) = pair.client.seen(SendingStopped)
        assert event == SendingStopped(connection=7, stream_id=stream_id, code=9)
        pair.client.events.clear()
    assert pair.server.seen(StreamReset) == []
    assert len(server) == 0


def test_what_is_sent_to_a_peer_that_stopped_is_dropped() -> None:
    pair = small_pair()
    client, server = streams_of(pair.client), streams_of(pair.server)
    stream_id = client.open(bidirectional=True)
    client.send(stream_id, b"x", end=False)
    pair.run_for(0.5)
    server.stop(stream_id, 9)
    pair.run_for(0.5)
    client.send(stream_id, bytes(SMALL.send_buffer), end=False)
    client.send(stream_id, bytes(SMALL.send_buffer), end=True)
    pair.run_for(0.5)
    assert received(pair.server, stream_id) == b"x"


def test_a_stopped_stream_that_is_forgotten_still_takes_and_drops_bytes() -> None:
    pair = small_pair()
    client, server = streams_of(pair.client), streams_of(pair.server)
    stream_id = client.open(bidirectional=False)
    client.send(stream_id, b"x", end=False)
    pair.run_for(0.5)
    server.stop(stream_id, 9)
    pair.run_for(0.5)
    assert len(client) == 0
    assert client.room(stream_id) == SMALL.send_buffer
    client.send(stream_id, bytes(5_000), end=True)
    client.reset(stream_id, 1)
    pair.run_for(0.5)
    assert pair.client.connection.reason is None


def test_an_end_that_the_peer_no_longer_wants_is_reported_as_stopped() -> None:
    pair = small_pair()
    client, server = streams_of(pair.client), streams_of(pair.server)
    stream_id = client.open(bidirectional=False)
    client.send(stream_id, bytes(9_000), end=True)  # more than the window
    pair.run_for(0.5)
    server.stop(stream_id, 4)
    pair.run_for(0.5)
    assert pair.client.seen(SendingStopped) == [
        SendingStopped(connection=7, stream_id=stream_id, code=4)
    ]
    assert pair.client.seen(StreamDelivered) == []


def test_data_under_way_when_we_stopped_is_not_delivered() -> None:
    pair = small_pair()
    client, server = streams_of(pair.client), streams_of(pair.server)
    stream_id = client.open(bidirectional=True)
    client.send(stream_id, b"x", end=False)
    pair.run_for(0.5)
    client.send(stream_id, bytes(5_000), end=True)
    server.stop(stream_id, 1)
    pair.run_for(1.0)
    assert received(pair.server, stream_id) == b"x"
    assert pair.server.connection._quic.data_limit.granted == SMALL.connection_window + 5_001


def test_stopping_after_the_end_only_lets_go_of_what_is_unread() -> None:
    pair = small_pair()
    client, server = streams_of(pair.client), streams_of(pair.server)
    stream_id = client.open(bidirectional=False)
    client.send(stream_id, bytes(5_000), end=True)
    pair.run_for(0.5)
    server.stop(stream_id, 1)
    pair.run_for(0.5)
    assert pair.client.seen(SendingStopped) == []
    assert pair.server.connection._quic.data_limit.granted == SMALL.connection_window + 5_000
    assert len(server) == 0


def test_an_end_is_read_when_the_last_byte_before_it_was() -> None:
    pair = small_pair()
    client, server = streams_of(pair.client), streams_of(pair.server)
    stream_id = client.open(bidirectional=False)
    client.send(stream_id, bytes(100), end=True)
    pair.run_for(0.5)
    assert server.consume(stream_id, 99) is False
    assert len(server) == 1
    assert server.consume(stream_id, 1) is True
    assert len(server) == 0


def test_giving_up_what_the_peer_has_got_tells_it_nothing() -> None:
    pair = small_pair()
    client = streams_of(pair.client)
    stream_id = client.open(bidirectional=True)
    client.send(stream_id, b"x", end=True)
    pair.run_for(0.5)
    client.reset(stream_id, 1)
    pair.run_for(0.5)
    assert pair.server.seen(StreamReset) == []
    assert has_ended(pair.server, stream_id)


def test_a_peer_that_stops_what_it_has_got_changes_nothing() -> None:
    pair = small_pair()
    client = streams_of(pair.client)
    stream_id = client.open(bidirectional=True)
    client.send(stream_id, b"x", end=True)
    pair.run_for(0.5)
    assert pair.client.seen(StreamDelivered)
    quic = pair.server.connection._quic
    body = encode_quic_varint(stream_id) + encode_quic_varint(9)
    stopping = forge(quic, QuicPacketType.ONE_RTT, STOP_SENDING, body)
    pair.client.connection.receive(stopping, pair.now)
    assert pair.client.seen(SendingStopped) == []
    assert pair.client.connection.reason is None


def test_what_is_acknowledged_in_the_packet_that_stops_it_is_delivered() -> None:
    pair = small_pair()
    pair.is_lost = lambda from_client, index: not from_client
    client = streams_of(pair.client)
    stream_id = client.open(bidirectional=False)
    client.send(stream_id, b"x", end=True)
    pair.run_for(0.015)
    assert has_ended(pair.server, stream_id)
    last = pair.client.connection._quic._packet_number - 1
    # The last packet alone, without a delay; then a frame of its own.
    acknowledgement = encode_quic_varint(last) + bytes(3)
    stop = bytes([STOP_SENDING]) + encode_quic_varint(stream_id) + encode_quic_varint(9)
    quic = pair.server.connection._quic
    packet = forge(quic, QuicPacketType.ONE_RTT, ACK, acknowledgement + stop)
    pair.client.connection.receive(packet, pair.now)
    pair.run_for(0.5)
    assert pair.client.seen(StreamDelivered) == [StreamDelivered(connection=7, stream_id=stream_id)]
    assert pair.client.seen(SendingStopped) == []


def test_of_too_many_stopped_streams_the_oldest_take_no_more_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "STOPPED_STREAMS_LIMIT", 1)
    pair = small_pair()
    client, server = streams_of(pair.client), streams_of(pair.server)
    opened = [client.open(bidirectional=False) for _ in range(2)]
    for stream_id in opened:
        client.send(stream_id, b"x", end=False)
        pair.run_for(0.5)
        server.stop(stream_id, 1)
        pair.run_for(0.5)
    client.send(opened[1], b"dropped", end=False)
    with pytest.raises(LocalProtocolError, match="has ended"):
        client.send(opened[0], b"refused", end=False)


def test_commands_on_streams_that_cannot_take_them_are_refused() -> None:
    pair = small_pair()
    client, server = streams_of(pair.client), streams_of(pair.server)
    uni = client.open(bidirectional=False)
    client.send(uni, b"x", end=True)
    pair.run_for(0.5)
    for refused in (
        lambda: client.send(uni, b"more", end=False),
        lambda: client.consume(uni, 0),
        lambda: client.stop(uni, 0),
        lambda: server.send(uni, b"", end=False),
        lambda: server.reset(uni, 0),
        lambda: server.room(uni),
        lambda: client.room(uni + 4),
        lambda: server.consume(uni + 4, 0),
        lambda: server.room(1),
        lambda: client.room(-1),
    ):
        with pytest.raises(LocalProtocolError):
            refused()
    assert client.room(uni) == 0


def test_commands_on_a_stream_that_is_done_do_nothing() -> None:
    pair = small_pair()
    stream_id = pour(pair, b"x", bidirectional=False)
    pair.run_for(0.5)
    client, server = streams_of(pair.client), streams_of(pair.server)
    assert server.consume(stream_id, 5) is False
    server.stop(stream_id, 1)
    client.reset(stream_id, 1)
    pair.run_for(0.5)
    assert pair.server.connection.reason is None


def test_one_event_carries_bytes_of_many_packets() -> None:
    pair = QuicPair().establish()
    client = streams_of(pair.client)
    stream_id = client.open(bidirectional=False)
    client.send(stream_id, bytes(10_000), end=True)
    pair.run_for(0.02)
    assert len(pair.server.seen(StreamDataReceived)) == 1


@given(st.integers(0, 2**32), st.floats(0.0, 0.3))
def test_no_byte_is_lost_to_loss(seed: int, loss: float) -> None:
    rng = random.Random(seed)
    pair = small_pair()
    pair.is_lost = lambda from_client, index: rng.random() < loss
    data = rng.randbytes(30_000)
    assert received(pair.server, pour(pair, data)) == data


def test_a_stream_given_up_as_lost_bytes_are_sent_again_has_the_size_it_had_reached() -> None:
    options = EndpointOptions(stream_window=1_000_000, connection_window=10_000_000)
    pair = QuicPair(client=options, server=options).establish()
    pair.is_lost = lambda from_client, index: from_client and 30 <= index % 60 < 40
    client = streams_of(pair.client)
    for step in range(30):
        stream_id = client.open(bidirectional=False)
        client.send(stream_id, bytes(client.room(stream_id)), end=False)
        pair.run_for(0.02 + 0.002 * step)  # in the midst of it
        client.reset(stream_id, 42)
        pair.run_for(1.0)
        assert pair.server.connection.reason is None
        assert pair.server.seen(StreamReset)[-1].stream_id == stream_id


def test_a_long_stream_crosses_a_change_of_keys() -> None:
    pair = QuicPair().establish()
    data = random.Random(8).randbytes(400_000)
    client = pair.client.connection
    stream_id = streams_of(pair.client).open(bidirectional=False)
    streams_of(pair.client).send(stream_id, data, end=True)
    phases = set()
    for _ in range(3):
        pair.run_for(0.05)
        phases.add(client._quic._cryptos[Epoch.ONE_RTT].key_phase)
        client._quic.request_key_update()
    pair.run_for(5.0)
    assert received(pair.server, stream_id) == data
    assert phases == {0, 1}


@pytest.mark.parametrize("offset", [2**29 - 100_000, 2**30 - 100_000, 2**40])
def test_a_stream_goes_on_beyond_where_its_offsets_grow_wider(offset: int) -> None:
    pair = QuicPair().establish()
    stream_id = streams_of(pair.client).open(bidirectional=False)
    streams_of(pair.client).send(stream_id, b"x", end=False)
    pair.run_for(0.5)
    sending = pair.client.connection._quic._streams[stream_id]
    receiving = pair.server.connection._quic._streams[stream_id]
    sending.sender._buffer_start = sending.sender._buffer_stop = offset
    sending.sender.highest_offset = offset
    receiving.receiver._buffer_start = receiving.receiver.highest_offset = offset
    sending.max_stream_data_remote = receiving.max_stream_data_local = offset + 1_000_000
    data = random.Random(9).randbytes(300_000)
    streams_of(pair.client).send(stream_id, data, end=True)
    pair.run_for(5.0)
    assert received(pair.server, stream_id) == b"x" + data
    assert has_ended(pair.server, stream_id)


def test_control_frames_are_not_held_up_by_a_burst() -> None:
    options = EndpointOptions(stream_window=60_000, send_buffer=200_000)
    pair = QuicPair(client=options, server=options).establish()
    client, server = streams_of(pair.client), streams_of(pair.server)
    up, down = client.open(bidirectional=False), server.open(bidirectional=False)
    taken = 0
    for _ in range(100):
        client.send(up, bytes(client.room(up)), end=False)
        server.send(down, bytes(server.room(down)), end=False)
        pair.run_for(0.02)
        for table, side, stream_id in ((client, pair.client, down), (server, pair.server, up)):
            arrived = len(received(side, stream_id))
            side.events.clear()
            table.consume(stream_id, arrived)
            taken += arrived if side is pair.client else 0
    # Many windows: so what the client had to say about them got through its own bytes.
    assert taken > 10 * options.stream_window


def test_a_peer_that_tears_a_stream_to_pieces_is_cut_off() -> None:
    pair = QuicPair().establish()
    client = pair.client.connection
    stream_id = streams_of(pair.client).open(bidirectional=False)
    streams_of(pair.client).send(stream_id, bytes(2 * STREAM_PIECES_LIMIT + 100), end=False)
    sender = client._quic._streams[stream_id].sender
    sender._pending.subtract(0, 2 * STREAM_PIECES_LIMIT + 100)
    for index in range(1, STREAM_PIECES_LIMIT + 20):
        if index % 100 == 0:
            pair.run_for(0.05)
        sender._pending._RangeSet__ranges.append(range(2 * index, 2 * index + 1))  # type: ignore[attr-defined]
        sender.buffer_is_empty = False
    pair.run_for(2.0)
    assert pair.server.connection.reason is not None
    assert pair.server.connection.reason.text == "too much to keep"
    assert pair.client.connection.reason is not None
    assert pair.client.connection.reason.code == 0x3
