"""Links that carry only so much: MTU, bandwidth, and queues that UDP and TCP share."""

from __future__ import annotations

import random

import pytest

from iroh_proto.address import UdpAddress
from iroh_proto.testing.congestion import INITIAL_WINDOW, SMALLEST_WINDOW, CongestionWindow
from iroh_proto.testing.links import Link
from iroh_proto.testing.network import Program
from iroh_proto.testing.tcp import GIVE_UP_TIME
from tests.proto.talker import SERVER, SERVER_IP, Talker, heard, make_network, say, talk, told

MEGABIT = 125_000


class Line:
    """A host with a link to try, and a server that hears all."""

    def __init__(self) -> None:
        self.network = make_network()
        self.near = talk(self.network.add_host("near", ip="192.0.2.1", latency=0.01))
        self.far = talk(self.network.add_host("far", ip=SERVER_IP, latency=0.02), SERVER, tcp=[80])
        self.link = self.near.host.link

    def connect(self) -> None:
        self.near.give(lambda talker, now: talker.dial(1, SERVER_IP))
        self.network.run_for(1)
        assert told(self.near, "complete")[-1][1] == (1, None)

    def write(self, program: Program[Talker], tcp_id: int, size: int) -> None:
        program.give(lambda talker, now: talker.write(tcp_id, bytes(size)))

    def arrivals(self, program: Program[Talker]) -> list[tuple[float, int]]:
        return [
            (record.time, len(record.value[2]))
            for record in program.events
            if isinstance(record.value, tuple) and record.value[0] == "data"
        ]

    def received(self, program: Program[Talker]) -> int:
        return sum(size for _, size in self.arrivals(program))


@pytest.mark.parametrize(("ip", "overhead"), [(SERVER_IP, 28), ("2001:db8::2", 48)])
def test_a_datagram_larger_than_the_mtu_disappears(ip: str, overhead: int) -> None:
    network = make_network()
    near_host = network.add_host("near", ip="192.0.2.1", ipv6="2001:db8::1")
    far_host = network.add_host("far", ip=SERVER_IP, ipv6="2001:db8::2")
    near = talk(near_host, UdpAddress("0.0.0.0", 5), UdpAddress("::", 6))
    far = talk(far_host, UdpAddress("0.0.0.0", 5), UdpAddress("::", 6))
    far_host.link.mtu = 1280
    fitting = 1280 - overhead
    target = UdpAddress(ip, 6 if ":" in ip else 5)
    say(near, target, bytes(fitting), bytes(fitting + 1), b"small")
    network.run_for(1)
    assert [len(data) for _, data in heard(far)] == [fitting, 5]
    assert network.stats.too_big == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("loss", 1.5),
        ("loss", float("nan")),
        ("duplication", -0.1),
        ("reordering", 7),
        ("latency", -1.0),
        ("jitter", "1"),
        ("mtu", 10),
        ("bandwidth", 0.0),
        ("queue_limit", -1),
    ],
)
def test_what_no_link_can_have_is_refused(name: str, value: object) -> None:
    link = Link(random.Random(0))
    with pytest.raises(ValueError, match=f"{name} of a link is from"):
        setattr(link, name, value)
    with pytest.raises(ValueError, match=f"{name} of a link is from"):
        Link(random.Random(0), **{name: value})  # type: ignore[arg-type]


def test_datagrams_leave_one_after_the_other_at_the_bandwidth() -> None:
    line = Line()
    line.link.bandwidth = 10_000
    say(line.near, SERVER, *(bytes(972) for _ in range(3)))  # 1,000 bytes each with its headers
    line.network.run_for(1)
    assert [round(when, 6) for when, _ in heard(line.far)] == [0.13, 0.23, 0.33]


def test_both_ways_have_the_whole_bandwidth() -> None:
    line = Line()
    line.link.bandwidth = 10_000
    say(line.near, SERVER, bytes(972))
    back = UdpAddress("192.0.2.1", line.near.sockets[0].port)
    say(line.far, back, bytes(972))
    line.network.run_for(1)
    assert [round(when, 6) for when, _ in heard(line.near) + heard(line.far)] == [0.13, 0.13]


def test_a_full_queue_loses_what_comes() -> None:
    line = Line()
    line.link.bandwidth, line.link.queue_limit = 10_000, 5_000
    say(line.near, SERVER, *(bytes(972) for _ in range(8)))
    line.network.run_for(0.25)
    say(line.near, SERVER, *(bytes(972) for _ in range(8)))  # two and a half have left
    line.network.run_for(2)
    assert len(heard(line.far)) == 5 + 2
    assert line.network.stats.overflowed == 9


def test_the_queue_of_the_receivers_link_serves_who_is_there_first() -> None:
    network = make_network()
    far = talk(network.add_host("far", ip=SERVER_IP), SERVER)
    far.host.link.bandwidth = 10_000
    distant = talk(network.add_host("distant", ip="192.0.2.1", latency=0.5))
    close = talk(network.add_host("close", ip="192.0.2.2", latency=0.1))
    say(distant, SERVER, b"d" * 972)
    say(close, SERVER, b"c" * 972)
    network.run_for(1)
    assert [(round(when, 6), data[:1]) for when, data in heard(far)] == [(0.2, b"c"), (0.6, b"d")]


def test_a_link_without_limits_carries_a_burst_at_once() -> None:
    line = Line()
    say(line.near, SERVER, *(bytes(60_000) for _ in range(100)))
    line.network.run_for(1)
    assert {round(when, 6) for when, _ in heard(line.far)} == {0.03}


def test_a_stream_gets_what_the_narrowest_link_carries() -> None:
    line = Line()
    line.far.host.link.bandwidth = MEGABIT
    line.connect()
    for _ in range(10):
        line.write(line.near, 1, 100_000)
    line.network.run_for(30)
    assert line.received(line.far) == 1_000_000
    end = max(when for when, _ in line.arrivals(line.far))
    assert 8.0 < end - 1.0 < 10.0, "1 MB and its headers at 1 Mbit/s, with hardly a pause"


@pytest.mark.parametrize("is_near", [True, False])
def test_a_stream_that_outgrows_the_queue_loses_segments_and_comes_whole(is_near: bool) -> None:
    line = Line()
    link = line.link if is_near else line.far.host.link
    link.bandwidth, link.queue_limit = MEGABIT, 8_000
    line.connect()
    program, tcp_id, other = (line.near, 1, line.far) if is_near else (line.far, 0, line.near)
    data = bytes(range(256)) * 1_000
    program.give(lambda talker, now: talker.write(tcp_id, data))
    line.network.run_for(60)
    received = b"".join(
        record.value[2]
        for record in other.events
        if isinstance(record.value, tuple) and record.value[0] == "data"
    )
    assert received == data
    end = max(when for when, _ in line.arrivals(other))
    assert 2.0 < end - 1.0 < 30.0


def test_a_stream_leaves_room_for_datagrams_and_datagrams_for_the_stream() -> None:
    line = Line()
    line.link.bandwidth, line.link.queue_limit = MEGABIT, 30_000
    line.connect()
    for _ in range(40):
        line.write(line.near, 1, 50_000)
    line.network.run_for(5)
    share_alone = line.received(line.far)
    for _ in range(200):  # 0.4 Mbit/s
        say(line.near, SERVER, bytes(972))
        line.network.run_for(0.02)
    line.network.run_for(2)
    assert len(heard(line.far)) > 100, "the stream does not starve them"
    delays = [when for when, _ in heard(line.far)]
    assert delays == sorted(delays)
    later = [size for when, size in line.arrivals(line.far) if 6.0 < when < 10.0]
    assert 0.3 * share_alone * 4 / 5 < sum(later) < 0.9 * share_alone * 4 / 5


def test_the_end_of_a_stream_does_not_overtake_its_bytes() -> None:
    line = Line()
    line.link.bandwidth, line.link.queue_limit = MEGABIT, 4_000
    line.connect()
    line.write(line.near, 1, 100_000)
    line.near.give(lambda talker, now: talker.hang_up(1))
    line.network.run_for(60)
    assert line.received(line.far) == 100_000
    assert len(told(line.far, "eof")) == 1


def test_a_limit_that_comes_and_goes_keeps_the_order() -> None:
    line = Line()
    line.connect()
    sent = b""
    for number in range(60):
        line.link.bandwidth = MEGABIT if number % 20 < 10 else None
        data = b"%03d" % number * 1_000
        sent += data
        line.near.give(lambda talker, now, data=data: talker.write(1, data))  # type: ignore[misc]
        line.network.run_for(0.01)
    line.network.run_for(20)
    got = b"".join(
        record.value[2]
        for record in line.far.events
        if isinstance(record.value, tuple) and record.value[0] == "data"
    )
    assert got == sent


def test_a_limited_stream_stalls_with_its_link_and_goes_on() -> None:
    line = Line()
    line.link.bandwidth = MEGABIT
    line.connect()
    line.write(line.near, 1, 200_000)
    line.network.run_for(0.5)
    line.link.is_up = False
    line.network.run_for(20)
    before = line.received(line.far)
    assert 0 < before < 200_000
    line.link.is_up = True
    line.network.run_for(20)
    assert line.received(line.far) == 200_000


def test_a_limited_stream_that_moves_nothing_for_long_is_lost() -> None:
    line = Line()
    line.link.bandwidth = MEGABIT
    line.connect()
    line.write(line.near, 1, 200_000)
    line.network.run_for(0.5)
    line.link.is_up = False
    line.network.run_for(GIVE_UP_TIME + 10)
    assert len(told(line.near, "eof")) == 1


def test_a_limited_stream_without_a_sender_is_no_more() -> None:
    line = Line()
    line.link.bandwidth, line.link.queue_limit = MEGABIT, 4_000
    line.connect()
    line.write(line.near, 1, 200_000)
    line.network.run_for(0.1)
    line.near.host.cut_power()
    line.network.run_for(60)
    assert line.network.clock.next_time is None


def test_the_window_doubles_until_something_is_lost_and_then_grows_slowly() -> None:
    window = CongestionWindow()
    for _ in range(10):
        window.note_sent(1_400)
    assert not window.has_room
    for _ in range(10):
        window.note_acknowledged(1_400)
    assert window.size == 2 * INITIAL_WINDOW
    window.note_lost(1.0)
    window.note_lost(1.1)
    assert window.size == INITIAL_WINDOW, "losses of one round trip count once"
    for _ in range(10):
        window.note_sent(1_400)
        window.note_acknowledged(1_400)
    assert INITIAL_WINDOW + 1_300 < window.size < INITIAL_WINDOW + 1_400
    for number in range(20):
        window.note_lost(2.0 + number)
    assert window.size == SMALLEST_WINDOW
