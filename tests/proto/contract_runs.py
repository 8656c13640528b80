"""One run of a contract's subject, to show that its tests begin where they say they do."""

from __future__ import annotations

from typing import TypeVar

from iroh_proto.testing.contract import Run, Script, Subject
from iroh_proto.testing.run import Operation, inputs

MachineT = TypeVar("MachineT")


def begun(subject: Subject[MachineT], *operations: Operation[MachineT]) -> Run[MachineT]:
    """Return a run after what every run begins with, and some operations more."""
    script = Script(operations)
    run = subject.run(script)
    for call in inputs(run, subject.script_of(script)):
        run.give(call)
        run.note_output(run.drain())
    return run
