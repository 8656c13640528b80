"""Three tiny machines that keep the contract, one for each kind of wire, and their subjects."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from iroh_proto.address import Address, UdpAddress
from iroh_proto.errors import LocalProtocolError, RemoteProtocolError
from iroh_proto.machine import TcpCloseRequested, TcpRequested, Transmit
from iroh_proto.testing.contract import (
    Call,
    Flood,
    React,
    Run,
    Subject,
)
from iroh_proto.timers import LatestTime, TimerTable

NEIGHBOURS_LIMIT = 8
LINE_LIMIT = 32
UNSENT_LIMIT = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeted:
    addr: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighbourLost:
    addr: Address


@dataclass(slots=True)
class ToyStats:
    dropped: int = 0


class Whisper:
    __slots__ = ("addr", "datagrams")

    def __init__(self, addr: Address, datagrams: list[bytes]) -> None:
        self.addr = addr
        self.datagrams = datagrams


class Greeter:
    """Greets neighbours with a number, and loses those that say nothing for five seconds."""

    def __init__(self, *, rng: random.Random) -> None:
        self.rng = rng
        self.time = LatestTime()
        self.timers: TimerTable[Address] = TimerTable()
        self.numbers: dict[Address, bytes] = {}
        self.events: deque[Greeted | NeighbourLost] = deque()
        self.outbox: list[Transmit] = []
        self.whispers: list[Whisper] = []
        self._stats = ToyStats()

    @property
    def stats(self) -> ToyStats:
        return replace(self._stats)

    def greet(self, addr: Address | None, *, now: float) -> None:
        if addr is None:
            raise LocalProtocolError("greet somebody")
        now = self.time.advance(now)
        self.make_room(addr)
        self.numbers[addr] = self.rng.randbytes(2)
        self.timers.set(addr, now + 5)
        self.outbox.append(Transmit(addr, [b"hi" + self.numbers[addr]]))

    def make_room(self, addr: Address) -> None:
        if addr not in self.numbers and len(self.numbers) == NEIGHBOURS_LIMIT:
            oldest = next(iter(self.numbers))
            del self.numbers[oldest]
            self.timers.cancel(oldest)

    def receive_datagrams(self, batch: Sequence[bytes], addr: Address, *, now: float) -> None:
        now = self.time.advance(now)
        for data in batch:
            self.receive_one(data, addr, now)

    def receive_one(self, data: bytes, addr: Address, now: float) -> None:
        if addr not in self.numbers:
            self._stats.dropped += 1
        elif data == b"hi" + self.numbers[addr]:
            self.timers.set(addr, now + 5)
            self.events.append(Greeted(addr=addr))
        elif data[:1] == b"w":
            self.whispers.append(Whisper(addr, [data]))
        else:
            self._stats.dropped += 1

    def received_payloads(self) -> list[Whisper]:
        whispers, self.whispers = self.whispers, []
        return whispers

    def datagrams_to_send(self) -> list[Transmit]:
        outbox, self.outbox = self.outbox, []
        return outbox

    def next_event(self) -> Greeted | NeighbourLost | None:
        return self.events.popleft() if self.events else None

    def get_timer(self) -> float | None:
        return self.timers.earliest()

    def handle_timer(self, *, now: float) -> None:
        self.expire(self.time.advance(now))

    def expire(self, now: float) -> None:
        for addr in self.timers.pop_expired(now):
            del self.numbers[addr]
            self.events.append(NeighbourLost(addr=addr))


@dataclass(frozen=True, slots=True, kw_only=True)
class LineReceived:
    line: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLost:
    error: Exception | None


class Lines:
    """Speaks lines of text; a line too long, silence for 30 seconds or the end lose it."""

    def __init__(self) -> None:
        self.time = LatestTime()
        self.tail = b""
        self.unsent = b""
        self.deadline: float | None = None
        self.events: deque[LineReceived | ConnectionLost] = deque()
        self.is_lost = False

    def say(self, line: bytes, *, now: float) -> None:
        if b"\n" in line or self.is_lost:
            raise LocalProtocolError("one line at a time, on a connection that stands")
        self.deadline = self.time.advance(now) + 30
        self.queue(line + b"\n")

    def queue(self, data: bytes) -> None:
        if len(self.unsent) + len(data) <= UNSENT_LIMIT:
            self.unsent += data

    def receive_data(self, data: bytes, *, now: float) -> None:
        now = self.time.advance(now)
        if self.is_lost:
            return
        self.parse(data)
        if not self.is_lost:
            self.deadline = now + 30

    def parse(self, data: bytes) -> None:
        *lines, tail = (self.tail + data).split(b"\n")
        for line in lines:
            if len(line) > LINE_LIMIT:
                self.lose(RemoteProtocolError("this line is too long"))
                return
            self.events.append(LineReceived(line=line))
        self.tail = tail
        if len(tail) > LINE_LIMIT:
            self.lose(RemoteProtocolError("this line is too long"))

    def receive_eof(self, *, now: float) -> None:
        self.time.advance(now)
        if not self.is_lost:
            self.lose(None)

    def lose(self, error: Exception | None) -> None:
        self.is_lost = True
        self.tail = self.unsent = b""
        self.deadline = None
        self.events.append(ConnectionLost(error=error))

    def data_to_send(self) -> bytes:
        unsent, self.unsent = self.unsent, b""
        return unsent

    def next_event(self) -> LineReceived | ConnectionLost | None:
        return self.events.popleft() if self.events else None

    def get_timer(self) -> float | None:
        return self.deadline

    def handle_timer(self, *, now: float) -> None:
        now = self.time.advance(now)
        if self.deadline is not None and self.deadline <= now:
            self.lose(None)


class Dialer:
    """Keeps one connection per call of ``dial`` and says lines back, up to four at once."""

    def __init__(self) -> None:
        self.time = LatestTime()
        self.next_id = 0
        self.streams: dict[int, Lines] = {}
        self.events: deque[TcpRequested | TcpCloseRequested] = deque()

    def dial(self, host: str, *, now: float) -> None:
        if not host or len(self.streams) == 4:
            raise LocalProtocolError("name a host, and four at most")
        self.time.advance(now)
        self.streams[self.next_id] = Lines()
        self.events.append(TcpRequested(tcp_id=self.next_id, host=host, port=1, tls=False))
        self.next_id += 1

    def complete_tcp(self, tcp_id: int, *, error: str | None = None, now: float) -> None:
        now = self.time.advance(now)
        if tcp_id in self.streams and error is None:
            self.streams[tcp_id].say(b"hello", now=now)
        else:
            self.streams.pop(tcp_id, None)

    def receive_tcp_data(self, tcp_id: int, data: bytes, *, now: float) -> None:
        now = self.time.advance(now)
        stream = self.streams.get(tcp_id)
        if stream is not None:
            stream.receive_data(data, now=now)
            self.answer(tcp_id, stream, now)

    def answer(self, tcp_id: int, stream: Lines, now: float) -> None:
        while isinstance(event := stream.next_event(), LineReceived):
            if not stream.is_lost:
                stream.say(event.line, now=now)
        if isinstance(event, ConnectionLost):
            del self.streams[tcp_id]
            self.events.append(TcpCloseRequested(tcp_id=tcp_id))

    def receive_tcp_eof(self, tcp_id: int, *, now: float) -> None:
        self.time.advance(now)
        self.streams.pop(tcp_id, None)

    def tcp_to_send(self) -> list[int]:
        return [tcp_id for tcp_id, stream in self.streams.items() if stream.unsent]

    def tcp_data_to_send(self, tcp_id: int) -> bytes:
        return self.streams[tcp_id].data_to_send() if tcp_id in self.streams else b""

    def next_event(self) -> TcpRequested | TcpCloseRequested | None:
        return self.events.popleft() if self.events else None

    def get_timer(self) -> float | None:
        return None

    def handle_timer(self, *, now: float) -> None:
        self.time.advance(now)


def receive(data: bytes, addr: Address) -> Call:
    return Call("receive_datagrams", [data], addr)


def answer_greetings(run: Run[Greeter]) -> list[Call]:
    return [receive(b"hi" + number, addr) for addr, number in run.machine.numbers.items()]


def complete_all(run: Run[Dialer]) -> list[Call]:
    return [Call("complete_tcp", wanted.tcp_id) for wanted in run.wanted_tcp]


def speak_to_all(run: Run[Dialer]) -> list[Call]:
    return [Call("receive_tcp_data", tcp_id, b"one\ntwo\n") for tcp_id in run.tcp_ids]


def neighbour(number: int) -> UdpAddress:
    return UdpAddress("192.0.2.2", number + 1)


ADDRESSES = st.sampled_from([neighbour(number) for number in range(10)])
PAYLOADS = st.sampled_from([b"hi", b"w1", b"w2", b"7"])

GREETER: Subject[Greeter] = Subject(
    factory=lambda rng: Greeter(rng=rng),
    operations=st.one_of(
        ADDRESSES.map(lambda addr: Call("greet", addr)),
        st.just(React("neighbours answer", answer_greetings)),
        st.builds(receive, PAYLOADS, ADDRESSES),
        st.lists(PAYLOADS, max_size=4).map(
            lambda batch: Call("receive_datagrams", batch, neighbour(0))
        ),
    ),
    misuses=st.just(Call("greet", None)),
    floods=[
        Flood("greetings", lambda number: Call("greet", neighbour(number))),
        Flood("strangers", lambda number: receive(b"hi", neighbour(number))),
    ],
    garbage=st.binary().filter(lambda data: data[:1] != b"w"),
    memory_limit=100_000,
)
LINES: Subject[Lines] = Subject(
    factory=lambda rng: Lines(),
    operations=st.one_of(
        st.just(Call("say", b"hello")),
        st.sampled_from([b"\n", b"one\ntwo\nthr", b"ee\n", b"x" * 33]).map(
            lambda data: Call("receive_data", data)
        ),
        st.just(Call("receive_eof")),
    ),
    misuses=st.just(Call("say", b"two\nlines")),
    floods=[
        Flood("lines said", lambda number: Call("say", b"%20d" % number)),
        Flood("no line end", lambda number: Call("receive_data", b"x" * 20)),
    ],
    final=(ConnectionLost,),
)
DIALER: Subject[Dialer] = Subject(
    factory=lambda rng: Dialer(),
    operations=st.sampled_from(
        [
            Call("dial", "host"),
            React("all stand", complete_all),
            React("all speak", speak_to_all),
            Call("receive_tcp_eof", 0),
        ]
    ),
    misuses=st.just(Call("dial", "")),
    floods=[Flood("calls", lambda number: Call("dial", "host"))],
)
