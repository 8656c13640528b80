"""The UDP socket on real loopback sockets, on both backends."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import anyio
import pytest

from iroh_anyio import udp
from iroh_anyio.udp import BACKLOG_LIMIT, BATCH_LIMIT, UdpSocket, bind_sockets
from iroh_proto import UdpAddress

pytestmark = pytest.mark.anyio

LOCALHOST = UdpAddress("127.0.0.1", 0)


@pytest.fixture(params=[True, False], ids=["offload", "plain"])
def offload(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def pair(offload: bool) -> Iterator[tuple[UdpSocket, UdpSocket]]:
    left, right = UdpSocket(LOCALHOST, offload=offload), UdpSocket(LOCALHOST, offload=offload)
    yield left, right
    left.close()
    right.close()


async def receive_all(receiver: UdpSocket, count: int) -> list[tuple[UdpAddress, list[bytes]]]:
    batches: list[tuple[UdpAddress, list[bytes]]] = []
    with anyio.fail_after(5):
        while sum(len(datagrams) for _, datagrams in batches) < count:
            await receiver.wait_readable()
            batches += receiver.receive()
    return batches


def flatten(batches: list[tuple[UdpAddress, list[bytes]]]) -> list[bytes]:
    return [data for _, datagrams in batches for data in datagrams]


async def test_datagrams_arrive_in_order_with_their_source(
    pair: tuple[UdpSocket, UdpSocket],
) -> None:
    left, right = pair
    sent = [bytes([n]) * (n + 1) for n in range(20)]
    left.send(right.local_address, sent)
    batches = await receive_all(right, 20)
    assert flatten(batches) == sent
    assert {addr for addr, _ in batches} == {left.local_address}
    assert left.stats.sent == 20
    assert right.stats.received == 20


@pytest.mark.parametrize("count", [1, 2, 49, 50, 51, 130])
@pytest.mark.parametrize("size", [1, 1200, 1452, 30_000, 60_000])
async def test_a_run_of_one_size_arrives_whole_whatever_its_length(
    pair: tuple[UdpSocket, UdpSocket], count: int, size: int
) -> None:
    left, right = pair
    if count * size > 1_000_000:
        count = 1_000_000 // size
    sent = [n.to_bytes(2, "big") * (size // 2) + b"x" * (size % 2) for n in range(count)]
    sent[-1] = sent[-1][: size // 2 + 1]
    left.send(right.local_address, sent, segment_size=size)
    assert flatten(await receive_all(right, count)) == sent
    assert left.stats.sent == count
    assert left.stats.failed == 0


async def test_one_wakeup_reads_a_bounded_batch(pair: tuple[UdpSocket, UdpSocket]) -> None:
    left, right = pair
    for _ in range(3 * BATCH_LIMIT):
        left.send(right.local_address, [b"x"])
    await right.wait_readable()
    assert len(flatten(right.receive())) == BATCH_LIMIT


async def test_datagrams_of_several_sources_are_told_apart(offload: bool) -> None:
    receiver = UdpSocket(LOCALHOST, offload=offload)
    senders = [UdpSocket(LOCALHOST, offload=offload) for _ in range(3)]
    try:
        for number, sender in enumerate(senders):
            sender.send(receiver.local_address, [bytes([number])] * 2)
        batches = await receive_all(receiver, 6)
        assert batches == [
            (sender.local_address, [bytes([number])] * 2) for number, sender in enumerate(senders)
        ]
    finally:
        for udp_socket in [receiver, *senders]:
            udp_socket.close()


async def test_ipv6_addresses_are_canonical() -> None:
    left, right = (UdpSocket(UdpAddress("::1", 0)) for _ in range(2))
    try:
        left.send(right.local_address, [b"x"])
        assert await receive_all(right, 1) == [(left.local_address, [b"x"])]
        assert left.local_address.ip == "::1"
        assert left.is_ipv6
    finally:
        left.close()
        right.close()


async def test_nothing_to_read_is_an_empty_list(pair: tuple[UdpSocket, UdpSocket]) -> None:
    assert pair[0].receive() == []


async def test_an_address_that_cannot_be_sent_to_is_counted_and_harms_nothing(
    pair: tuple[UdpSocket, UdpSocket],
) -> None:
    left, right = pair
    left.send(UdpAddress("::1", 9), [b"a", b"b"])
    left.send(UdpAddress("::1", 9), [b"a", b"b"], segment_size=1)
    assert left.stats.failed == 4
    left.send(right.local_address, [b"c"] * 3, segment_size=1)
    assert flatten(await receive_all(right, 3)) == [b"c"] * 3
    assert left.stats.sent == 3


async def test_a_kernel_that_refuses_segmentation_is_sent_single_datagrams(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # More segments than any kernel takes in one call are refused with EINVAL by all of them.
    monkeypatch.setattr(udp, "SEGMENT_LIMIT", 1_000)
    left, right = UdpSocket(LOCALHOST), UdpSocket(LOCALHOST)
    try:
        for _ in range(2):
            left.send(right.local_address, [b"x"] * 300, segment_size=1)
            assert flatten(await receive_all(right, 300)) == [b"x"] * 300
        assert left.stats.sent == 600
        assert left.stats.failed == 0
    finally:
        left.close()
        right.close()


class FullSocket:
    """A socket whose kernel buffer is full until told otherwise.

    A loopback socket never fills, because what is sent is charged to the receiver at once.
    """

    def __init__(self, real: socket.socket) -> None:
        self.real = real
        self.full = True

    def sendto(self, data: bytes, addr: UdpAddress) -> int:
        if self.full:
            raise BlockingIOError(errno.EAGAIN, "full")
        return self.real.sendto(data, addr)

    def sendmsg(self, *args: object) -> int:
        raise BlockingIOError(errno.EAGAIN, "full")

    def fileno(self) -> int:
        return self.real.fileno()

    def close(self) -> None:
        self.real.close()


async def test_a_full_wire_queues_and_sends_later_in_order(
    pair: tuple[UdpSocket, UdpSocket], monkeypatch: pytest.MonkeyPatch
) -> None:
    left, right = pair
    full = FullSocket(left._socket)
    monkeypatch.setattr(left, "_socket", full)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(left.run_writer)
        left.send(right.local_address, [b"1", b"2"])
        left.send(right.local_address, [b"3", b"4"], segment_size=1)
        assert left.backlog == 4
        await anyio.sleep(0.01)
        full.full = False
        left.send(right.local_address, [b"5"])
        assert flatten(await receive_all(right, 5)) == [b"1", b"2", b"3", b"4", b"5"]
        assert left.backlog == 0
        left.send(right.local_address, [b"6"])
        assert flatten(await receive_all(right, 1)) == [b"6"]
        tasks.cancel_scope.cancel()


async def test_a_full_queue_drops_the_oldest_and_counts_them(
    pair: tuple[UdpSocket, UdpSocket], monkeypatch: pytest.MonkeyPatch
) -> None:
    left, right = pair
    full = FullSocket(left._socket)
    monkeypatch.setattr(left, "_socket", full)
    datagrams = [n.to_bytes(4, "big") for n in range(BACKLOG_LIMIT + 10)]
    left.send(right.local_address, datagrams)
    assert left.backlog == BACKLOG_LIMIT
    assert left.stats.dropped == 10
    full.full = False
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(left.run_writer)
        assert flatten(await receive_all(right, BACKLOG_LIMIT)) == datagrams[10:]
        tasks.cancel_scope.cancel()


async def test_closing_wakes_reader_and_writer() -> None:
    udp_socket = UdpSocket(LOCALHOST)

    async def read() -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await udp_socket.wait_readable()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            tasks.start_soon(udp_socket.run_writer)
            await anyio.wait_all_tasks_blocked()
            udp_socket.close()
            udp_socket.close()
    with pytest.raises(anyio.ClosedResourceError):
        await udp_socket.wait_readable()
    assert udp_socket.receive() == []


async def test_ipv6_that_cannot_be_bound_is_tolerated() -> None:
    # 2001:db8::/32 is for documentation: no host has it.
    sockets = bind_sockets([LOCALHOST, UdpAddress("2001:db8::1", 0)])
    try:
        assert [udp_socket.is_ipv6 for udp_socket in sockets] == [False]
    finally:
        for udp_socket in sockets:
            udp_socket.close()
    with pytest.raises(OSError, match="assign"):
        bind_sockets([UdpAddress("2001:db8::1", 0)])


async def test_ipv4_that_cannot_be_bound_is_an_error() -> None:
    taken = UdpSocket(LOCALHOST)
    try:
        with pytest.raises(OSError, match=f"cannot bind UDP {taken.local_address}"):
            bind_sockets([LOCALHOST, taken.local_address])
    finally:
        taken.close()
