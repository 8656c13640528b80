"""Streams between two endpoints, on both backends."""

from __future__ import annotations

import gc

import anyio
import pytest
from anyio.abc import ByteReceiveStream

from iroh_anyio import (
    BiStream,
    Connection,
    ConnectionClosedByPeer,
    EndpointOptions,
    StreamReset,
    StreamStopped,
)
from iroh_anyio.streams import CUT_OFF_CODE
from iroh_proto.errors import LocalProtocolError
from tests.anyio.nodes import LIMIT, joined

pytestmark = pytest.mark.anyio


async def open_pair(dialled: Connection, accepted: Connection) -> tuple[BiStream, BiStream]:
    """Return both ends of a stream, over which one byte has gone each way."""
    near = await dialled.open_bi()
    await near.send(b"?")
    far = await accepted.accept_bi()
    assert await far.receive() == b"?"
    await far.send(b"!")
    assert await near.receive() == b"!"
    return near, far


async def read_all(stream: ByteReceiveStream) -> bytes:
    return b"".join([chunk async for chunk in stream])


async def send_for_ever(stream: BiStream) -> None:
    while True:
        await stream.send(bytes(1000))
        await anyio.sleep(0.001)


async def test_bytes_go_both_ways_and_end() -> None:
    async with joined() as (dialled, accepted):
        near, far = await open_pair(dialled, accepted)
        await near.send(b"to")
        await near.send_eof()
        await far.send(b"fro")
        await far.send_eof()
        assert await read_all(far) == b"to"
        assert await read_all(near) == b"fro"
        for stream in (near, far):
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()


async def test_one_way_streams() -> None:
    async with joined() as (dialled, accepted):
        for opener, other in ((dialled, accepted), (accepted, dialled)):
            sender = await opener.open_uni()
            await sender.send(b"one way")
            await sender.send_eof()
            assert await read_all(await other.accept_uni()) == b"one way"


async def test_an_empty_stream_is_an_end_at_once() -> None:
    async with joined() as (dialled, accepted):
        near = await dialled.open_bi()
        await near.send_eof()
        far = await accepted.accept_bi()
        with pytest.raises(anyio.EndOfStream):
            await far.receive()
        await far.send(b"")
        await far.send_eof()
        assert await read_all(near) == b""


@pytest.mark.parametrize("size", [1, 7, 1_000_000])
async def test_no_more_is_received_than_asked_for(size: int) -> None:
    data = bytes(range(250)) * 10
    async with joined() as (dialled, accepted):
        near, far = await open_pair(dialled, accepted)
        await near.send(data)
        await near.send_eof()
        received: list[bytes] = []
        while sum(len(chunk) for chunk in received) < len(data):
            received.append(await far.receive(size))
        assert max(len(chunk) for chunk in received) <= size
        assert b"".join(received) == data
        with pytest.raises(ValueError, match="max_bytes"):
            await far.receive(0)


async def test_tiny_pieces_of_streams_that_take_turns_are_kept_together() -> None:
    async with joined() as (dialled, accepted):
        pairs = [await open_pair(dialled, accepted) for _ in range(2)]
        pieces = [bytes([number % 256, number // 256]) for number in range(300)]

        async def send_by_turns(pieces: list[bytes]) -> None:
            for piece in pieces:
                for near, _ in pairs:
                    await near.send(piece)

        await send_by_turns(pieces[:100])
        # The first chunk grows on while it is read from.
        received = [await far.receive(1) for _, far in pairs]
        await send_by_turns(pieces[100:])
        for (near, far), first in zip(pairs, received, strict=True):
            await near.send_eof()
            await near.wait_delivered()
            assert len(far.receiver._chunks) == 1
            assert first + await read_all(far) == b"".join(pieces)


async def test_what_is_not_tiny_is_kept_as_it_came() -> None:
    async with joined() as (dialled, accepted):
        _, far = await open_pair(dialled, accepted)
        packets = [b"?", bytes(1_100), bytes(1_100), b"?"]
        for data in packets:
            far.receiver.note_data(data, end=False)
        kept = far.receiver._chunks
        assert all(chunk is data for chunk, data in zip(kept, packets, strict=True))


async def test_much_data_arrives_whole_through_both_buffers() -> None:
    data = bytes(range(251)) * 50_000  # 12 MB, more than any window
    async with joined() as (dialled, accepted):
        near, far = await open_pair(dialled, accepted)

        async def send() -> None:
            await near.send(data)
            await near.send_eof()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            assert await read_all(far) == data


async def test_a_sender_waits_for_a_receiver_that_does_not_read() -> None:
    options = EndpointOptions(stream_window=64 * 1024, send_buffer=64 * 1024)
    async with joined({"options": options}, {"options": options}) as (dialled, accepted):
        near, far = await open_pair(dialled, accepted)
        sent = 0
        with anyio.move_on_after(0.3):
            while True:
                await near.send(bytes(10_000))
                sent += 10_000
        assert 64 * 1024 <= sent <= 192 * 1024
        received = len(await far.receive(1))
        with anyio.fail_after(LIMIT):
            while received < sent:
                received += len(await far.receive())


async def test_a_slow_stream_does_not_hold_up_another() -> None:
    options = EndpointOptions(stream_window=64 * 1024, send_buffer=64 * 1024)
    async with joined({"options": options}, {"options": options}) as (dialled, accepted):
        stuck, _unread = await open_pair(dialled, accepted)
        near, far = await open_pair(dialled, accepted)
        with anyio.move_on_after(0.1):
            await stuck.send(bytes(1_000_000))
        await near.send(b"through")
        assert await far.receive() == b"through"


async def test_a_reset_is_told_with_its_code() -> None:
    async with joined() as (dialled, accepted):
        near, far = await open_pair(dialled, accepted)
        near.reset(42)
        with pytest.raises(StreamReset, match="code 42") as caught:
            await far.receive()
        assert caught.value.code == 42
        assert isinstance(caught.value, anyio.BrokenResourceError)
        with pytest.raises(anyio.ClosedResourceError):
            await near.send(b"x")
        with pytest.raises(anyio.ClosedResourceError):
            await near.send_eof()
        await far.send(b"the other half lives")
        assert await near.receive() == b"the other half lives"


async def test_a_reset_drops_what_is_unread() -> None:
    async with joined() as (dialled, accepted):
        near, far = await open_pair(dialled, accepted)
        await near.send(b"read, unread")
        assert await far.receive(4) == b"read"
        near.reset(42)
        await open_pair(dialled, accepted)  # by when the reset has arrived
        for _ in range(2):
            with pytest.raises(StreamReset, match="code 42"):
                await far.receive()


async def test_a_receiver_that_stops_is_told_with_its_code() -> None:
    async with joined() as (dialled, accepted):
        near, far = await open_pair(dialled, accepted)
        far.stop(43)
        with pytest.raises(StreamStopped, match="code 43") as caught:
            await send_for_ever(near)
        assert caught.value.code == 43
        with pytest.raises(StreamStopped):
            await near.send(b"x")
        with pytest.raises(anyio.ClosedResourceError):
            await far.receive()


async def test_stopping_wakes_a_sender_that_waits() -> None:
    async with joined() as (dialled, accepted):
        near, far = await open_pair(dialled, accepted)

        async def send() -> None:
            with pytest.raises(StreamStopped):
                await near.send(bytes(50_000_000))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            await anyio.wait_all_tasks_blocked()
            far.stop(1)


async def test_after_the_end_nothing_can_be_sent() -> None:
    async with joined() as (dialled, accepted):
        near, _ = await open_pair(dialled, accepted)
        await near.send_eof()
        await near.send_eof()
        with pytest.raises(anyio.ClosedResourceError, match="ended"):
            await near.send(b"x")


async def test_closing_ends_and_stops() -> None:
    async with joined() as (dialled, accepted):
        near, far = await open_pair(dialled, accepted)
        async with near:
            await near.send(b"last")
        await near.aclose()
        assert await read_all(far) == b"last"
        with pytest.raises(anyio.ClosedResourceError):
            await near.receive()
        with pytest.raises(anyio.ClosedResourceError):
            await near.send(b"x")
        with pytest.raises(StreamStopped):
            await send_for_ever(far)


SMALL = {"options": EndpointOptions(stream_window=64 * 1024, send_buffer=64 * 1024)}
TOO_MUCH = bytes(1_000_000)
"""Sending it waits for a receiver to read, where both sides are ``SMALL``."""


async def assert_cut_off(stream: ByteReceiveStream) -> None:
    """Check that the stream does not end as one that is whole."""
    with pytest.raises(StreamReset) as caught:
        await read_all(stream)
    assert caught.value.code == CUT_OFF_CODE


async def test_what_was_cut_off_does_not_look_whole() -> None:
    async with joined(SMALL, SMALL) as (dialled, accepted):
        near, far = await open_pair(dialled, accepted)
        one_way = await dialled.open_uni()
        for stream in (near, one_way):
            with anyio.move_on_after(0.1) as scope:
                async with stream:
                    await stream.send(TOO_MUCH)
            assert scope.cancelled_caught
            with pytest.raises(anyio.ClosedResourceError, match="reset"):
                await stream.wait_delivered()
        await assert_cut_off(far)
        await assert_cut_off(await accepted.accept_uni())


async def test_closing_while_another_task_sends_does_not_look_whole() -> None:
    async with joined(SMALL, SMALL) as (dialled, accepted):
        near, far = await open_pair(dialled, accepted)

        async def send() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await near.send(TOO_MUCH)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            await anyio.wait_all_tasks_blocked()
            await near.aclose()
        await assert_cut_off(far)


async def test_a_send_cancelled_before_anything_went_out_is_cut_off_too() -> None:
    async with joined() as (dialled, accepted):
        near, far = await open_pair(dialled, accepted)
        await near.send(b"kept")
        assert await far.receive() == b"kept"
        with anyio.move_on_after(0):
            await near.send(b"lost")
        await near.aclose()
        await assert_cut_off(far)


async def test_an_end_said_after_a_send_that_was_cut_off_is_an_end() -> None:
    async with joined() as (dialled, accepted):
        near, far = await open_pair(dialled, accepted)
        with anyio.move_on_after(0):
            await near.send(b"lost")
        async with near:
            await near.send(b"kept")
            await near.send_eof()
        assert await read_all(far) == b"kept"


async def test_closing_wakes_a_receiver_that_waits() -> None:
    async with joined() as (dialled, accepted):
        near, _ = await open_pair(dialled, accepted)

        async def receive() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await near.receive()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            await anyio.wait_all_tasks_blocked()
            await near.aclose()


async def test_two_tasks_cannot_do_the_same_at_once() -> None:
    async with joined() as (dialled, accepted):
        near, _ = await open_pair(dialled, accepted)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(near.receive)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(anyio.BusyResourceError):
                await near.receive()
            tasks.cancel_scope.cancel()


async def test_a_cancelled_receive_loses_nothing() -> None:
    async with joined() as (dialled, accepted):
        near, far = await open_pair(dialled, accepted)
        for number in range(20):
            with anyio.move_on_after(0):
                await far.receive()
            with anyio.move_on_after(0.001):
                await far.receive()
            await near.send(bytes([number]))
            assert await far.receive() == bytes([number])


async def test_what_arrived_can_be_read_after_the_connection_is_over() -> None:
    async with joined() as (dialled, accepted):
        near, far = await open_pair(dialled, accepted)
        half, other_half = await open_pair(dialled, accepted)
        await near.send(b"all of it")
        await near.send_eof()
        await half.send(b"part")
        await near.wait_delivered()
        dialled.close(3, "bye")
        await accepted.wait_closed()
        assert await read_all(far) == b"all of it"
        assert await other_half.receive() == b"part"
        with pytest.raises(ConnectionClosedByPeer, match="bye"):
            await other_half.receive()
        with pytest.raises(ConnectionClosedByPeer):
            await far.send(b"x")
        await far.aclose()
        far.reset()
        far.stop()


async def test_delivery_can_be_waited_for() -> None:
    data = bytes(3_000_000)
    async with joined() as (dialled, accepted):
        near, far = await open_pair(dialled, accepted)
        with pytest.raises(RuntimeError, match="send_eof"):
            await near.wait_delivered()
        async with anyio.create_task_group() as tasks:
            received: list[bytes] = []

            async def receive() -> None:
                received.append(await read_all(far))

            tasks.start_soon(receive)
            await near.send(data)
            await near.send_eof()
            await near.wait_delivered()
            dialled.close()
        assert received == [data]


async def test_many_streams_come_in_order_and_apart() -> None:
    async with joined() as (dialled, accepted):

        async def send() -> None:
            for number in range(300):
                stream = await dialled.open_uni()
                await stream.send(number.to_bytes(2, "big") * 50)
                await stream.send_eof()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            for number in range(300):
                stream = await accepted.accept_uni()
                assert await read_all(stream) == number.to_bytes(2, "big") * 50


async def test_streams_nobody_holds_do_not_block_the_connection() -> None:
    async with joined() as (dialled, accepted):

        async def answer() -> None:
            for _ in range(30):
                stream = await accepted.accept_bi()
                await stream.send(bytes(1_000_000))
                await stream.send_eof()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answer)
            for _ in range(30):
                stream = await dialled.open_bi()
                await stream.send_eof()
                del stream
                gc.collect(0)
        near, far = await open_pair(dialled, accepted)
        await far.send(b"still works")
        assert await near.receive() == b"still works"


async def test_a_stream_the_peer_has_yet_to_allow_can_be_closed() -> None:
    async with joined({"options": EndpointOptions(max_streams=2)}) as (dialled, accepted):
        allowed = [await open_pair(dialled, accepted) for _ in range(2)]
        async with await dialled.open_bi() as waiting:
            await waiting.send(b"later")
        for near, far in allowed:
            await near.aclose()
            await far.aclose()
        stream = await accepted.accept_bi()
        assert await read_all(stream) == b"later"
        with pytest.raises(StreamStopped):
            await send_for_ever(stream)


async def test_the_half_that_nobody_holds_any_more_is_ended() -> None:
    async with joined({"options": EndpointOptions(max_streams=2)}) as (dialled, accepted):
        for _ in range(5):
            near = await dialled.open_bi()
            await near.send(b"question")
            await near.send_eof()
            far = await accepted.accept_bi()
            assert await read_all(far) == b"question"
            await far.send(b"answer")
            del far
            gc.collect()
            assert await read_all(near) == b"answer"


async def test_a_half_that_was_given_up_before_its_end_could_be_sent_stays_so() -> None:
    async with joined() as (dialled, accepted):
        near, far = await open_pair(dialled, accepted)
        link, stream_id = near.sender._link, near.stream_id
        del near
        gc.collect()
        link.reset_stream(stream_id, 5)
        with pytest.raises(StreamReset, match="code 5"):
            await far.receive()
        await open_pair(dialled, accepted)


async def test_what_was_cut_off_and_let_go_of_does_not_look_whole() -> None:
    async with joined(SMALL, SMALL) as (dialled, accepted):
        sender = await dialled.open_uni()
        with anyio.move_on_after(0.1):
            await sender.send(TOO_MUCH)
        del sender
        gc.collect()
        await assert_cut_off(await accepted.accept_uni())


async def test_a_half_that_nobody_holds_as_the_connection_ends_is_forgotten() -> None:
    async with joined() as (dialled, accepted):
        near, far = await open_pair(dialled, accepted)
        del near
        gc.collect()
        dialled.close()
        with pytest.raises(ConnectionClosedByPeer):
            await far.receive()


async def test_unread_bytes_of_streams_nobody_holds_any_more_do_not_count() -> None:
    size, streams = 50_000, 5
    options = EndpointOptions(connection_window=2 * size, stream_window=size)
    async with joined({"options": options}) as (dialled, accepted):
        for _ in range(streams):
            sender = await dialled.open_uni()
            await sender.send(bytes(size))
            await sender.send_eof()
            receiver = await accepted.accept_uni()
            assert await receiver.receive(1) == b"\0"
            await sender.wait_delivered()  # so that the rest waits in what is dropped now
            del receiver
            gc.collect()


@pytest.mark.parametrize("is_reset", [False, True])
async def test_streams_nobody_looked_at_make_room_for_others(is_reset: bool) -> None:
    async with joined({"options": EndpointOptions(max_streams=2)}) as (dialled, accepted):
        for _ in range(5):
            sender = await dialled.open_uni()
            await sender.send(b"?")
            receiver = await accepted.accept_uni()
            del receiver
            gc.collect()
            if is_reset:
                sender.reset()
            else:
                await sender.send_eof()


async def test_a_code_that_cannot_be_is_refused_and_the_stream_goes_on() -> None:
    async with joined() as (dialled, accepted):
        near, far = await open_pair(dialled, accepted)
        await near.send(b"kept")
        for refused in (far.stop, near.reset):
            with pytest.raises(LocalProtocolError, match="error code"):
                refused(-1)
        await near.send(b"!")
        assert await far.receive(4) == b"kept"
        far.stop(3)
        with pytest.raises(StreamStopped, match="code 3"):
            await send_for_ever(near)
