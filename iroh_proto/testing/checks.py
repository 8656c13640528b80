"""One function per rule of :mod:`iroh_proto.machine`, each for one script.

Each raises :class:`~iroh_proto.testing.run.ContractBroken` if the machine breaks it. Needs the
``testing`` extra.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TypeVar

from iroh_proto.address import Address
from iroh_proto.errors import LocalProtocolError, RemoteProtocolError
from iroh_proto.testing.run import (
    HANDLE_TIMER,
    STRANGER,
    Call,
    ContractBroken,
    Output,
    Run,
    inputs,
    transcript,
)
from iroh_proto.testing.snapshot import Snapshot, difference, retained_bytes, snapshot
from iroh_proto.testing.subject import Flood, Script, Subject

MachineT = TypeVar("MachineT")

# What memory may still grow by in the second half of a flood, as a share of its growth in the
# first half, and in bytes: a hash table doubles its slots now and then, even if the number of
# entries stays.
_GROWTH_SHARE = 0.25
_GROWTH_BYTES = 8192


def check_earlier_now(
    subject: Subject[MachineT], script: Script[MachineT], back: float = 1.0
) -> None:
    """Rule 1: an earlier ``now`` counts as the latest; one that is not finite is refused."""

    def play(seconds: float) -> Snapshot:
        run, outputs, timers = subject.run(script), list[Output](), list[float | None]()
        for call in inputs(run, subject.script_of(script)):
            knows_the_time = bool(run.results) and call is not HANDLE_TIMER
            run.give(call, now=run.now - seconds if knows_the_time else run.now)
            outputs.append(_drain(run))
            timers.append(run.timer)
            run.give(HANDLE_TIMER)
            run.give(HANDLE_TIMER, now=run.now - seconds)
            outputs.append(_drain(run))
            timers.append(run.timer)
        return (transcript(outputs, subject.blur), snapshot(timers))

    _expect_same(
        play(0.0), play(back), f"rule 1: now {back} s early is not the same as the latest now"
    )


def check_draining(subject: Subject[MachineT], script: Script[MachineT]) -> None:
    """Rule 2: what was drained does not come again, and asking again changes nothing."""
    run = subject.run(script)
    for call in inputs(run, subject.script_of(script)):
        run.give(call)
        _drain(run)
        before = run.state()
        again = run.drain()
        if again:
            raise ContractBroken(f"rule 2: after {call}, a second drain gave {again}")
        _expect_unchanged(run, before, f"rule 2: a second drain after {call}")


def check_timer(subject: Subject[MachineT], script: Script[MachineT]) -> None:
    """Rule 3: looking at the timer changes nothing; a timer that was handled lies in the future."""
    run = subject.run(script)
    for call in inputs(run, subject.script_of(script)):
        run.give(call)
        if call.name == "handle_timer":
            _expect_later_timer(run, "before the drain")
        _drain(run)
        _expect_pure_timer(run, call)
        if call.name == "handle_timer":
            _expect_later_timer(run, "after the drain")


def check_early_timer(
    subject: Subject[MachineT], script: Script[MachineT], fraction: float = 1.0
) -> None:
    """Rule 3: ``handle_timer`` before the deadline emits nothing and moves no deadline.

    ``fraction`` says how far before: 0 is now, 1 the last moment before the deadline.
    """
    run = subject.run(script)
    for call in inputs(run, subject.script_of(script)):
        run.give(call)
        _drain(run)
        deadline = run.timer
        if deadline is not None and deadline <= run.now:
            continue
        if deadline is not None:
            last = math.nextafter(deadline, -math.inf)
            run.now = last if fraction == 1 else min(last, run.now + fraction * (last - run.now))
        run.give(HANDLE_TIMER)
        output = _drain(run)
        if output:
            raise ContractBroken(
                f"rule 3: handle_timer at {run.now}, before {deadline}, gave {output}"
            )
        if run.timer != deadline:
            raise ContractBroken(
                f"rule 3: handle_timer at {run.now} moved the deadline {deadline} to {run.timer}"
            )


def check_peer_bytes(subject: Subject[MachineT], script: Script[MachineT]) -> None:
    """Rule 4: nothing that arrives on a wire raises."""
    run = subject.run(script)
    for call in inputs(run, subject.script_of(script)):
        run.give(call)
        _drain(run)


def check_end(subject: Subject[MachineT], script: Script[MachineT]) -> None:
    """Rule 4: there is one final event, after which the machine is inert."""
    run, ended = subject.run(script), False
    for call in inputs(run, subject.script_of(script)):
        run.give(call)
        output = _drain(run)
        if ended and (output or run.timer is not None):
            raise ContractBroken(
                f"rule 4: after its final event, {call} gave {output} and timer {run.timer}"
            )
        finals = [event for event in output.events if isinstance(event, subject.final)]
        ended = ended or bool(finals)
        if not finals:
            continue
        if len(finals) > 1 or output.events[-1] is not finals[0] or run.timer is not None:
            raise ContractBroken(
                f"rule 4: no final event: {output.events}, timer {run.timer} after {call}"
            )
        error = getattr(finals[0], "error", None)
        if call.is_from_peer and not isinstance(error, (RemoteProtocolError, type(None))):
            raise ContractBroken(f"rule 4: a peer's bytes ended it with {error!r}")


def check_garbage(
    subject: Subject[MachineT],
    script: Script[MachineT],
    data: bytes,
    addr: Address = STRANGER,
) -> None:
    """Rule 4: a datagram that is not for this machine is dropped, and counted in ``stats``."""
    run = subject.run(script)
    for call in inputs(run, subject.script_of(script)):
        run.give(call)
    _drain(run)
    before = snapshot(subject.stats(run.machine))
    run.give(Call("receive_datagrams", [data], addr))
    if output := _drain(run):
        raise ContractBroken(f"rule 4: garbage gave {output}")
    if snapshot(subject.stats(run.machine)) == before:
        raise ContractBroken(f"rule 4: the dropped datagram {data!r} is not counted in stats")


def check_misuse(subject: Subject[MachineT], script: Script[MachineT], misuse: Call) -> None:
    """Rule 5: misuse raises ``LocalProtocolError``, and nothing has changed."""
    run = subject.run(script)
    for call in inputs(run, subject.script_of(script)):
        run.give(call)
        _drain(run)
    _expect_refusal(run, misuse, run.now)


def check_refusals(
    subject: Subject[MachineT], script: Script[MachineT], bad_now: float = math.nan
) -> None:
    """Rule 5: no operation changes anything when it is refused, for its ``now`` or otherwise."""
    run, ended = subject.run(script), False
    for call in inputs(run, subject.script_of(script)):
        if not (call.is_timeless or ended):
            _expect_refusal(run, call, bad_now)
        before, refusals = run.state(), len(run.refusals)
        run.give(call)
        if len(run.refusals) > refusals:
            _expect_unchanged(run, before, f"rule 5: the refused {call}")
        output = _drain(run)
        ended = ended or any(isinstance(event, subject.final) for event in output.events)


def check_cutting(
    subject: Subject[MachineT],
    script: Script[MachineT],
    sizes: Sequence[int] = (1,),
    drains: bool = False,
) -> None:
    """Rule 6: streams and batches may be cut anywhere.

    ``sizes`` are used in turn for the pieces; ``drains`` has the machine drained between them.
    """
    drains = drains and not subject.answers_when_drained

    def play(cut: bool) -> Snapshot:
        run, outputs = subject.run(script), list[Output]()
        for call in inputs(run, subject.script_of(script)):
            of_call = list[Output]()
            for piece in call.cut(sizes) if cut else [call]:
                run.give(piece)
                if drains:
                    of_call.append(run.drain())
            of_call.append(run.drain())
            run.note_output(Output.joined(of_call))
            outputs += of_call
        return (transcript(outputs, subject.blur), run.timer, snapshot(subject.stats(run.machine)))

    _expect_same(
        play(False), play(True), f"rule 6: cut into pieces of {sizes}, the outcome differs"
    )


def check_determinism(subject: Subject[MachineT], script: Script[MachineT]) -> None:
    """Rule 6: the same seed and inputs give the same outputs at the same times."""

    def play() -> Snapshot:
        run, steps = subject.run(script), list[Snapshot]()
        for call in inputs(run, subject.script_of(script)):
            run.give(call)
            steps.append((transcript([_drain(run)], subject.blur), run.timer))
        return tuple(steps)

    _expect_same(play(), play(), "rule 6: the same inputs gave two outcomes")


def check_bounds(
    subject: Subject[MachineT], script: Script[MachineT], flood: Flood[MachineT]
) -> None:
    """Rule 7: whatever is done without end, memory stops growing.

    Streams are congested meanwhile: nothing is taken out of them.
    """
    run = subject.run(script)
    for call in inputs(run, subject.script_of(script)):
        run.give(call)
        _drain(run)
    numbers, sizes = itertools.count(), [retained_bytes(run.machine)]
    for _ in range(2):
        for number in itertools.islice(numbers, flood.count // 2):
            for call in flood.operation(number).calls(run):
                run.give(call)
            run.drain_all_but_streams()
        _forget(run)
        sizes.append(retained_bytes(run.machine))
    empty, half, full = sizes
    if full - half > (half - empty) * _GROWTH_SHARE + _GROWTH_BYTES:
        raise ContractBroken(
            f"rule 7: {flood.label} x {flood.count // 2} hold {half} bytes, twice as many {full}"
        )
    if full > subject.memory_limit:
        raise ContractBroken(
            f"rule 7: {flood.label} x {flood.count} hold {full} bytes,"
            f" more than {subject.memory_limit}"
        )


def _drain(run: Run[MachineT]) -> Output:
    output = run.drain()
    run.note_output(output)
    return output


def _forget(run: Run[MachineT]) -> None:
    """Let go of what the run wrote down, which is no part of the machine."""
    for record in (run.events, run.sent, run.received, run.addresses, run.results, run.refusals):
        record.clear()


def _expect_same(first: Snapshot, second: Snapshot, problem: str) -> None:
    found = difference(first, second, "outcome")
    if found is not None:
        raise ContractBroken(f"{problem}: {found}")


def _expect_unchanged(run: Run[MachineT], before: Snapshot, what: str) -> None:
    found = difference(before, run.state())
    if found is not None:
        raise ContractBroken(f"{what} changed the machine: {found}")


def _expect_pure_timer(run: Run[MachineT], call: Call) -> None:
    before = run.state()
    deadline = run.timer
    if deadline is not None and not math.isfinite(deadline):
        raise ContractBroken(f"rule 3: get_timer gave {deadline} after {call}")
    if run.timer != deadline:
        raise ContractBroken(f"rule 3: get_timer gave {deadline}, then {run.timer}, after {call}")
    _expect_unchanged(run, before, f"rule 3: get_timer after {call}")


def _expect_later_timer(run: Run[MachineT], when: str) -> None:
    deadline = run.timer
    if deadline is not None and deadline <= run.now:
        raise ContractBroken(f"rule 3: handled at {run.now}, the timer is {deadline} {when}")


def _expect_refusal(run: Run[MachineT], call: Call, now: float) -> None:
    before = run.state()
    try:
        call.make(run.machine, now=now)
    except LocalProtocolError:
        _expect_unchanged(run, before, f"rule 5: the refused {call} at {now}")
    except Exception as error:
        raise ContractBroken(f"rule 5: {call} at {now} raised {error!r}") from error
    else:
        raise ContractBroken(f"rule 5: {call} at {now} was not refused")
