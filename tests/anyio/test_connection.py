"""Connections: datagrams, paths and ends, on both backends."""

from __future__ import annotations

import anyio
import pytest

from iroh_anyio import (
    Connection,
    ConnectionClosed,
    ConnectionClosedByPeer,
    ConnectionClosedHere,
    DatagramTooLarge,
    EndpointOptions,
    SendStream,
    TooManyStreams,
)
from iroh_anyio import connection as connection_module
from iroh_proto.errors import LocalProtocolError
from iroh_proto.magicsock import PathInfo
from tests.anyio.nodes import joined

pytestmark = pytest.mark.anyio


async def test_datagrams_go_both_ways() -> None:
    async with joined() as (dialled, accepted):
        await dialled.send_datagram(b"to")
        assert await accepted.receive_datagram() == b"to"
        await accepted.send_datagram(b"fro")
        assert await dialled.receive_datagram() == b"fro"


async def test_a_datagram_of_the_largest_size_fits_and_no_larger() -> None:
    async with joined() as (dialled, accepted):
        size = dialled.max_datagram_size
        assert size > 1000
        await dialled.send_datagram(bytes(size))
        assert len(await accepted.receive_datagram()) == size
        with pytest.raises(DatagramTooLarge, match="use a stream") as caught:
            await dialled.send_datagram(bytes(size + 1))
        assert caught.value.limit == size


async def test_a_peer_may_take_no_datagrams() -> None:
    async with joined({"options": EndpointOptions(datagrams=False)}) as (dialled, _):
        assert dialled.max_datagram_size == 0
        with pytest.raises(DatagramTooLarge, match="takes no datagrams"):
            await dialled.send_datagram(b"")


async def test_unread_datagrams_are_bounded_and_the_oldest_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection_module, "RECEIVED_DATAGRAMS_LIMIT", 3)
    async with joined() as (dialled, accepted):
        for number in range(5):
            await dialled.send_datagram(bytes([number]))
        stream = await dialled.open_uni()
        await stream.send(b"after them")
        await (await accepted.accept_uni()).receive()
        assert accepted.datagrams_dropped == 2
        assert [await accepted.receive_datagram() for _ in range(3)] == [b"\2", b"\3", b"\4"]


async def test_unread_datagrams_are_bounded_by_their_bytes_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection_module, "RECEIVED_DATAGRAM_BYTES_LIMIT", 2_000)

    async def send(dialled: Connection, accepted: Connection, *datagrams: bytes) -> None:
        for data in datagrams:
            await dialled.send_datagram(data)
        stream = await dialled.open_uni()
        await stream.send(b"after them")
        await (await accepted.accept_uni()).receive()

    async with joined() as (dialled, accepted):
        await send(dialled, accepted, b"1" * 900, b"2" * 100, b"3" * 1_000)
        assert accepted.datagrams_dropped == 0
        await send(dialled, accepted, b"4" * 901)
        assert accepted.datagrams_dropped == 2
        assert [(await accepted.receive_datagram())[:1] for _ in range(2)] == [b"3", b"4"]
        await send(dialled, accepted, b"5" * 1_000, b"6" * 1_000)  # what was taken is not counted
        assert accepted.datagrams_dropped == 2
        assert [(await accepted.receive_datagram())[:1] for _ in range(2)] == [b"5", b"6"]


async def test_waiting_for_anything_ends_with_the_connection() -> None:
    async with joined() as (dialled, accepted):
        ended: list[str] = []

        async def wait(name: str) -> None:
            with pytest.raises(ConnectionClosedByPeer, match="code 9: over"):
                await getattr(accepted, name)()
            ended.append(name)

        async def follow_paths() -> None:
            async for _ in accepted.path_changes():
                pass
            ended.append("path_changes")

        async with anyio.create_task_group() as tasks:
            for name in ("accept_bi", "accept_uni", "receive_datagram"):
                tasks.start_soon(wait, name)
            tasks.start_soon(follow_paths)
            await anyio.wait_all_tasks_blocked()
            dialled.close(9, "over")
        assert sorted(ended) == ["accept_bi", "accept_uni", "path_changes", "receive_datagram"]


async def test_after_the_end_everything_says_so() -> None:
    async with joined() as (dialled, accepted):
        before = dialled.stats
        dialled.close(1, "done")
        assert dialled.close_reason is not None
        for call in (
            dialled.open_bi,
            dialled.open_uni,
            dialled.accept_bi,
            dialled.receive_datagram,
        ):
            with pytest.raises(ConnectionClosedHere):
                await call()
        with pytest.raises(ConnectionClosedHere):
            await dialled.send_datagram(b"x")
        assert dialled.stats.packets_sent >= before.packets_sent > 0
        assert dialled.rtt is not None
        assert dialled.path.kind == "direct"
        assert dialled.max_datagram_size == 0
        assert "closed" in repr(dialled)
        assert [path.kind async for path in dialled.path_changes()] == ["direct"]
        await accepted.wait_closed()


@pytest.mark.parametrize(("code", "reason"), [(-1, ""), (1 << 62, ""), (1, "half of \udc80")])
async def test_an_end_that_cannot_be_told_is_refused(code: int, reason: str) -> None:
    async with joined() as (dialled, accepted):
        with pytest.raises(LocalProtocolError):
            dialled.close(code, reason)
        assert dialled.close_reason is None
        dialled.close((1 << 62) - 1, "\U0001f44b")
        told = await accepted.wait_closed()
        assert (told.code, told.text) == ((1 << 62) - 1, "\U0001f44b")


async def test_what_a_peer_sent_before_closing_can_still_be_accepted() -> None:
    async with joined() as (dialled, accepted):
        await dialled.send_datagram(b"first")
        stream = await dialled.open_uni()
        await stream.send(b"second")
        await stream.send_eof()
        await stream.wait_delivered()
        dialled.close()
        await accepted.wait_closed()
        assert await accepted.receive_datagram() == b"first"
        assert await (await accepted.accept_uni()).receive() == b"second"
        with pytest.raises(ConnectionClosed):
            await accepted.receive_datagram()


async def test_path_changes_begin_with_the_path_and_go_on_with_each_change() -> None:
    async with joined() as (dialled, _):
        changes = dialled.path_changes()
        assert (await anext(changes)) == dialled.path
        paths = [
            PathInfo(kind=kind, addr=None, derp_url=None, latency=None)
            for kind in ("mixed", "none", "derp")
        ]
        for path in paths:
            dialled.note_path(path)
        assert await anext(changes) == paths[0]
        assert await anext(changes) == paths[2]


async def test_path_changes_may_be_left_and_forgotten() -> None:
    async with joined() as (dialled, _):
        async for path in dialled.path_changes():
            assert path.kind == "direct"
            break
        assert len(dialled._path_changes) == 0


async def test_path_changes_nobody_takes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "PATH_CHANGES_LIMIT", 2)
    async with joined() as (dialled, _):
        changes = dialled.path_changes()
        for latency in (0.1, 0.2, 0.3):
            dialled.note_path(PathInfo(kind="derp", addr=None, derp_url=None, latency=latency))
        assert (await anext(changes)).latency == 0.2
        assert (await anext(changes)).latency == 0.3


async def test_streams_that_wait_for_the_peer_are_bounded() -> None:
    async with joined() as (dialled, _):

        async def open_all(connection: Connection) -> list[SendStream]:
            return [await connection.open_uni() for _ in range(2_000)]

        with pytest.raises(TooManyStreams, match="end some of them first"):
            await open_all(dialled)


async def test_stats_count() -> None:
    async with joined() as (dialled, accepted):
        before = accepted.stats
        stream = await dialled.open_uni()
        await stream.send(bytes(100_000))
        receiver, received = await accepted.accept_uni(), 0
        while received < 100_000:
            received += len(await receiver.receive())
        after = accepted.stats
        assert after.bytes_received - before.bytes_received > 100_000
        assert after.packets_received - before.packets_received > 80


async def test_the_counts_of_a_connection_that_is_over_are_those_at_its_end() -> None:
    async with joined() as (dialled, accepted):
        stream = await dialled.open_uni()
        await stream.send(bytes(100_000))
        await stream.send_eof()
        received = await accepted.accept_uni()
        assert len(b"".join([chunk async for chunk in received])) == 100_000
        await stream.wait_delivered()
        dialled.close()
        await accepted.wait_closed()
        assert dialled.stats.bytes_sent > 100_000
        assert accepted.stats.bytes_received > 100_000
