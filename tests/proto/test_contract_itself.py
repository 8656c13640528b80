"""The contract's own tests: it passes correct machines and catches each kind of broken one."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import Phase, given, settings

from iroh_proto.address import Address
from iroh_proto.errors import LocalProtocolError
from iroh_proto.machine import Transmit
from iroh_proto.testing.contract import (
    Call,
    ContractBroken,
    Hostile,
    Script,
    Subject,
    Wait,
    check_cutting,
    check_early_timer,
    contract_tests,
)
from iroh_proto.testing.run import Operation, inputs
from tests.proto.toy_machines import (
    DIALER,
    GREETER,
    LINES,
    Dialer,
    Greeted,
    Greeter,
    LineReceived,
    Lines,
    NeighbourLost,
    neighbour,
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


class ThrowsDiceForItsTimer(Greeter):
    dice = random.SystemRandom()

    def get_timer(self) -> float | None:
        return self.time.value + 1 + self.dice.random()


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
    (ThrowsDiceForItsTimer, "test_a_handled_timer_lies_in_the_future", "rule 3: get_timer gave"),
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


class SpeaksLater(Greeter):
    """A correct machine that puts off its greetings to the next wake-up, which is now."""

    def greet(self, addr: Address | None, *, now: float) -> None:
        super().greet(addr, now=now)
        assert addr is not None
        self.timers.set(addr, self.time.value)


def test_a_timer_that_is_due_at_once_is_not_early() -> None:
    subject = replace(GREETER, factory=lambda rng: SpeaksLater(rng=rng))
    check_early_timer(subject, Script([Call("greet", neighbour(0)), Wait(1.0)]), 0.5)


def test_a_machine_without_peers_is_spared_hostile_bytes() -> None:
    strategy = replace(GREETER, has_peers=False).scripts()

    @given(script=strategy)
    def check(script: Script[Greeter]) -> None:
        assert not any(isinstance(operation, Hostile) for operation in script.operations)

    check()


def test_less_effort_tries_fewer_examples() -> None:
    made: list[Greeter] = []

    def factory(rng: random.Random) -> Greeter:
        made.append(Greeter(rng=rng))
        return made[-1]

    counts = []
    for effort in (1.0, 0.25):
        made.clear()
        tests: Any = contract_tests(replace(GREETER, factory=factory, effort=effort))
        tests().test_a_second_drain_gives_nothing()
        counts.append(len(made))
    assert counts[1] * 3 < counts[0]


def test_calls_without_time_and_calls_show_themselves() -> None:
    call = Call.timeless("set", 1, name="x")
    assert repr(call) == "Call.timeless('set', 1, name='x')"
    assert repr(Call("ping", 2)) == "Call('ping', 2)"

    class Settable:
        def set(self, value: int, *, name: str) -> tuple[int, str]:
            return value, name

    assert call.make(Settable(), now=0.0) == (1, "x")
