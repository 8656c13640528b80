"""The contract's own tests: it passes correct machines and catches each kind of broken one."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st

from iroh_proto.address import Address, UdpAddress
from iroh_proto.errors import LocalProtocolError, RemoteProtocolError
from iroh_proto.machine import TcpCloseRequested, TcpRequested, Transmit
from iroh_proto.testing.contract import (
    Call,
    ContractBroken,
    Flood,
    React,
    Run,
    Script,
    Subject,
    Wait,
    check_cutting,
    contract_tests,
)
from iroh_proto.testing.run import Operation, inputs
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

TestGreeter = contract_tests(GREETER)
TestLines = contract_tests(LINES)
TestDialer = contract_tests(DIALER)


class BelievesEveryClock(Greeter):
    def greet(self, addr: Address | None, *, now: float) -> None:
        super().greet(addr, now=now)
        if addr is not None:
            self.timers.set(addr, now + 5)


class TakesAnyNumberForATime(Greeter):
    def handle_timer(self, *, now: float) -> None:
        if math.isfinite(now):
            super().handle_timer(now=now)


class SendsTwice(Greeter):
    def datagrams_to_send(self) -> list[Transmit]:
        return list(self.outbox)


class CountsDrains(Greeter):
    drains = 0

    def next_event(self) -> Greeted | NeighbourLost | None:
        self.drains += 1
        return super().next_event()


class CountsLooksAtTheTimer(Greeter):
    looks = 0

    def get_timer(self) -> float | None:
        self.looks += 1
        return super().get_timer()


class ExpiresTooLate(Greeter):
    def expire(self, now: float) -> None:
        super().expire(math.nextafter(now, -math.inf))


class HasATimerThatIsNever(Greeter):
    def get_timer(self) -> float | None:
        return super().get_timer() or math.inf


class SpeaksWhenWokenEarly(Greeter):
    def expire(self, now: float) -> None:
        super().expire(now)
        self.outbox += [Transmit(addr, [b"?"]) for addr in self.numbers]


class StartsAgainWhenWokenEarly(Greeter):
    def expire(self, now: float) -> None:
        super().expire(now)
        for addr in self.numbers:
            self.timers.set(addr, now + 5)


class ExpiresTooSoon(Greeter):
    def expire(self, now: float) -> None:
        super().expire(now + 1e-6)


class TrustsItsPeers(Greeter):
    def receive_one(self, data: bytes, addr: Address, now: float) -> None:
        if data[0] == 55:
            int(data)
        super().receive_one(data, addr, now)


class BlamesItsCallerForAPeer(Greeter):
    def receive_one(self, data: bytes, addr: Address, now: float) -> None:
        if data == b"7":
            raise LocalProtocolError("seven")
        super().receive_one(data, addr, now)


class DropsWithoutCounting(Greeter):
    def receive_one(self, data: bytes, addr: Address, now: float) -> None:
        if addr in self.numbers:
            super().receive_one(data, addr, now)


class AnswersGarbage(Greeter):
    def receive_one(self, data: bytes, addr: Address, now: float) -> None:
        super().receive_one(data, addr, now)
        self.outbox.append(Transmit(addr, [b"what?"]))


class ForgivesMisuse(Greeter):
    def greet(self, addr: Address | None, *, now: float) -> None:
        if addr is not None:
            super().greet(addr, now=now)


class RaisesWhatItLikes(Greeter):
    def greet(self, addr: Address | None, *, now: float) -> None:
        if addr is None:
            raise ValueError("greet somebody")
        super().greet(addr, now=now)


class ChangesBeforeItRefuses(Greeter):
    def greet(self, addr: Address | None, *, now: float) -> None:
        self.rng.random()
        super().greet(addr, now=now)


class TellsTimeAfterItsWork(Greeter):
    def greet(self, addr: Address | None, *, now: float) -> None:
        if addr is not None:
            self.make_room(addr)
            self.numbers.setdefault(addr, b"??")
        super().greet(addr, now=now)


class ReadsOnlyTheFirstOfABatch(Greeter):
    def receive_datagrams(self, batch: Sequence[bytes], addr: Address, *, now: float) -> None:
        super().receive_datagrams(batch[:1], addr, now=now)


class HasChanceOfItsOwn(Greeter):
    def __init__(self, *, rng: random.Random) -> None:
        super().__init__(rng=random.SystemRandom())


class RemembersEverybody(Greeter):
    def make_room(self, addr: Address) -> None:
        pass


class RemembersStrangers(Greeter):
    def __init__(self, *, rng: random.Random) -> None:
        super().__init__(rng=rng)
        self.strangers: set[Address] = set()

    def receive_one(self, data: bytes, addr: Address, now: float) -> None:
        self.strangers.add(addr)
        super().receive_one(data, addr, now)


class ReadsLinesByChunk(Lines):
    def parse(self, data: bytes) -> None:
        super().parse(data)
        self.tail = b""


class AnswersByChunk(Lines):
    def parse(self, data: bytes) -> None:
        super().parse(data)
        self.unsent += b"k"


class GoesOnAfterItsEnd(Lines):
    def receive_eof(self, *, now: float) -> None:
        self.time.advance(now)
        self.lose(None)


class TicksAfterItsEnd(Lines):
    def lose(self, error: Exception | None) -> None:
        super().lose(error)
        self.deadline = self.time.value + 1


class SpeaksAfterItsEnd(Lines):
    def lose(self, error: Exception | None) -> None:
        super().lose(error)
        self.events.append(LineReceived(line=b"by the way"))


class BlamesItself(Lines):
    def lose(self, error: Exception | None) -> None:
        super().lose(error and KeyError("oops"))


class QueuesForever(Lines):
    def queue(self, data: bytes) -> None:
        self.unsent += data


class WaitsForTheLineEnd(Lines):
    def parse(self, data: bytes) -> None:
        if b"\n" in data:
            super().parse(data)
        else:
            self.tail += data


class ForgetsTheRestOfAChunk(Dialer):
    def receive_tcp_data(self, tcp_id: int, data: bytes, *, now: float) -> None:
        head = data.partition(b"\n")[0] + b"\n" if len(data) > 4 else data
        super().receive_tcp_data(tcp_id, head, now=now)


class SendsOnlyOnce(Dialer):
    looks = 0

    def tcp_to_send(self) -> list[int]:
        self.looks += 1
        return super().tcp_to_send()


BROKEN: list[tuple[Callable[..., Any], str, str]] = [
    (BelievesEveryClock, "test_an_earlier_now_counts_as_the_latest", "rule 1"),
    (TakesAnyNumberForATime, "test_a_refused_call_changes_nothing", "rule 5.*not refused"),
    (SendsTwice, "test_a_second_drain_gives_nothing", "rule 2.*gave"),
    (CountsDrains, "test_a_second_drain_gives_nothing", "rule 2.*drain after"),
    (CountsLooksAtTheTimer, "test_a_handled_timer_lies_in_the_future", "rule 3: get_timer after"),
    (ExpiresTooLate, "test_a_handled_timer_lies_in_the_future", "rule 3: handled at"),
    (HasATimerThatIsNever, "test_a_handled_timer_lies_in_the_future", "rule 3.*inf"),
    (SpeaksWhenWokenEarly, "test_an_early_timer_emits_nothing", "rule 3.*before.*gave"),
    (StartsAgainWhenWokenEarly, "test_an_early_timer_emits_nothing", "rule 3.*moved"),
    (ExpiresTooSoon, "test_an_early_timer_emits_nothing", "rule 3.*before.*gave"),
    (TrustsItsPeers, "test_bytes_from_peers_never_raise", "rule 4.*raised"),
    (BlamesItsCallerForAPeer, "test_bytes_from_peers_never_raise", "rule 4.*seven"),
    (DropsWithoutCounting, "test_garbage_is_dropped_and_counted", "rule 4.*not counted"),
    (AnswersGarbage, "test_garbage_is_dropped_and_counted", "rule 4: garbage gave"),
    (GoesOnAfterItsEnd, "test_the_final_event_is_final", "rule 4: after its final event"),
    (TicksAfterItsEnd, "test_the_final_event_is_final", "rule 4: no final event.*timer"),
    (SpeaksAfterItsEnd, "test_the_final_event_is_final", "rule 4: no final event"),
    (BlamesItself, "test_the_final_event_is_final", "rule 4.*KeyError"),
    (ForgivesMisuse, "test_misuse_is_refused", "rule 5.*not refused"),
    (RaisesWhatItLikes, "test_misuse_is_refused", "rule 5.*ValueError"),
    (ChangesBeforeItRefuses, "test_misuse_is_refused", "rule 5.*rng"),
    (TellsTimeAfterItsWork, "test_a_refused_call_changes_nothing", "rule 5.*changed the machine"),
    (ReadsOnlyTheFirstOfABatch, "test_cutting_changes_nothing", "rule 6"),
    (ReadsLinesByChunk, "test_cutting_changes_nothing", "rule 6"),
    (AnswersByChunk, "test_cutting_changes_nothing", "rule 6"),
    (ForgetsTheRestOfAChunk, "test_cutting_changes_nothing", "rule 6"),
    (HasChanceOfItsOwn, "test_the_same_seed_gives_the_same_outputs", "rule 6"),
    (RemembersEverybody, "test_memory_is_bounded", "rule 7: greetings"),
    (RemembersStrangers, "test_memory_is_bounded", "rule 7: strangers"),
    (QueuesForever, "test_memory_is_bounded", "rule 7: lines said"),
    (WaitsForTheLineEnd, "test_memory_is_bounded", "rule 7: no line end"),
]


@pytest.mark.parametrize(
    ("machine", "test", "complaint"),
    [pytest.param(*broken, id=broken[0].__name__) for broken in BROKEN],
)
def test_a_broken_machine_is_caught(machine: type, test: str, complaint: str) -> None:
    tests = contract_tests(subject_of(machine))
    check = getattr(tests, test)
    if test != "test_memory_is_bounded":
        check = settings(max_examples=300, phases=[Phase.generate])(check)
    with pytest.raises(ContractBroken, match=f"(?s){complaint}"):
        check(tests())


def subject_of(machine: type) -> Subject[Any]:
    if issubclass(machine, Greeter):
        return replace(GREETER, factory=lambda rng: machine(rng=rng))
    subject: Subject[Any] = LINES if issubclass(machine, Lines) else DIALER
    return replace(subject, factory=lambda rng: machine())


def test_memory_over_the_limit_of_the_subject_is_caught() -> None:
    tests = contract_tests(replace(GREETER, memory_limit=1000))
    with pytest.raises(ContractBroken, match=r"rule 7.*more than 1000"):
        tests().test_memory_is_bounded()


def test_a_script_repeats_what_a_failing_test_printed() -> None:
    subject = replace(LINES, factory=lambda rng: ReadsLinesByChunk())
    script: Script[Lines] = Script([Call("receive_data", b"one\n"), Wait(1.0)])
    with pytest.raises(ContractBroken, match="rule 6"):
        check_cutting(subject, script, sizes=[2])


def test_a_host_that_waits_wakes_the_machine_at_each_deadline() -> None:
    run = GREETER.run(Script(()))
    first, second = Call("greet", neighbour(0)), Call("greet", neighbour(1))
    script: list[Operation[Greeter]] = [first, Wait(1.0), second, Wait(9.0)]
    times = []
    for call in inputs(run, script):
        run.give(call)
        times += [run.now for event in run.drain().events if isinstance(event, NeighbourLost)]
    assert times == [5.0, 6.0]
    assert run.now == 10.0
