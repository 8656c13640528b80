"""A machine under test: how it is made, and what callers, peers and attackers do to it.

Needs the ``testing`` extra (hypothesis).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

from hypothesis import strategies as st

from iroh_proto.testing.run import (
    HANDLE_TIMER,
    STRANGER,
    Call,
    Operation,
    Oversleep,
    Run,
    Wait,
)
from iroh_proto.testing.strategies import Splice, splices

MachineT = TypeVar("MachineT")
AnyMachineT = TypeVar("AnyMachineT")

DEFAULT_MEMORY_LIMIT = 64 << 20
"""Bytes that a machine may hold on to after any flood, unless its subject says otherwise."""

_ZERO_DELAYS = (0.0, 0.001, 0.1)
_TYPICAL_DELAYS = (0.5, 1.0, 3.0, 5.0, 15.0, 30.0, 61.0, 150.0)


@dataclass(frozen=True, slots=True)
class Hostile:
    """Bytes that no honest peer sends: noise, or bytes of this run again, changed or not.

    ``source`` is ``"noise"``, ``"sent"`` (what the machine sent before) or ``"received"`` (what
    it was given before); ``index`` picks which of them, and which connection or address they
    come from.
    """

    source: str
    index: int
    noise: bytes = b""
    changes: tuple[Splice, ...] = ()

    def calls(self, run: Run[AnyMachineT]) -> Iterable[Call]:
        """Return the calls that bring the bytes to each wire the machine is on."""
        data = self._data(run)
        if run.has("receive_data"):
            yield Call("receive_data", data)
        if run.has("receive_datagrams"):
            yield Call("receive_datagrams", [data], _pick(run.addresses, self.index, STRANGER))
        if run.has("receive_tcp_data") and run.tcp_ids:
            yield Call("receive_tcp_data", _pick(run.tcp_ids, self.index, 0), data)

    def _data(self, run: Run[AnyMachineT]) -> bytes:
        if self.source == "noise":
            return self.noise
        data = _pick(run.sent if self.source == "sent" else run.received, self.index, self.noise)
        for change in self.changes:
            data = change.apply(data)
        return data


@dataclass(frozen=True, slots=True)
class Flood(Generic[MachineT]):
    """Something a peer or a caller may do again and again, made different by its number.

    ``count`` must be more than twice the limit of every table that the flood fills, and what is
    done at least some 10 bytes, or growth goes unnoticed.
    """

    label: str
    operation: Callable[[int], Operation[MachineT]]
    count: int = 3000


@dataclass(frozen=True, slots=True)
class Script(Generic[MachineT]):
    """The inputs of one run: what happens, when it begins, and how chance falls."""

    operations: Sequence[Operation[MachineT]]
    start: float = 0.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Subject(Generic[MachineT]):
    """A machine under test and what may be done with it.

    :param factory: makes the machine, in the state in which ``begin`` finds it.
    :param operations: what callers and honest peers do: mostly :class:`Call` and :class:`React`.
    :param begin: operations that every run begins with, such as ``start``.
    :param misuses: calls that break the machine's rules in whatever state it is. A ``now`` that
        is not finite is tried for every call anyway.
    :param floods: what might fill a buffer or table without end.
    :param final: the classes of the event after which the machine is inert.
    :param garbage: datagrams that the machine must drop and count in ``stats``.
    :param stats: what it counts in, if that is not ``stats`` alone.
    :param context: makes what a scripted peer remembers (``run.context``), anew for each run.
    :param memory_limit: bytes that the machine may hold on to after a flood.
    :param blur: what is compared of bytes that are sent, where their content cannot repeat.
    :param answers_when_drained: whether replies are only made when drained, so that a host that
        drains in the middle of a batch gets other packets for it.
    :param has_peers: whether hostile bytes are put between the operations.
    :param effort: the share of hypothesis' examples to try, for a machine that takes long.
    """

    factory: Callable[[random.Random], MachineT]
    operations: st.SearchStrategy[Operation[MachineT]]
    begin: Sequence[Operation[MachineT]] = ()
    misuses: st.SearchStrategy[Call] | None = None
    floods: Sequence[Flood[MachineT]] = ()
    final: tuple[type, ...] = ()
    garbage: st.SearchStrategy[bytes] | None = None
    stats: Callable[[MachineT], object] = field(
        default=lambda machine: getattr(machine, "stats", None)
    )
    context: Callable[[], object] = field(default=lambda: None)
    memory_limit: int = DEFAULT_MEMORY_LIMIT
    blur: Callable[[bytes], Hashable] = bytes
    answers_when_drained: bool = False
    has_peers: bool = True
    effort: float = 1.0

    def run(self, script: Script[MachineT]) -> Run[MachineT]:
        """Make a machine for a script and begin its run."""
        machine = self.factory(random.Random(script.seed))
        run = Run(machine, start=script.start, context=self.context())
        run.give(HANDLE_TIMER)
        return run

    def script_of(self, script: Script[MachineT]) -> list[Operation[MachineT]]:
        """Return the operations of a script with those that every run begins with."""
        return [*self.begin, *script.operations]

    def scripts(self) -> st.SearchStrategy[Script[MachineT]]:
        """Return scripts of operations, waits and hostile bytes."""
        waits = st.sampled_from(_ZERO_DELAYS) | st.sampled_from(_TYPICAL_DELAYS) | st.floats(0, 10)
        kinds: list[st.SearchStrategy[object]] = [
            self.operations,
            self.operations,
            waits.map(Wait) | waits.map(Oversleep),
        ]
        if self.has_peers:
            kinds.append(_hostile())
        # Hypothesis makes lists of about five items; deeper states need more steps.
        some = st.lists(st.one_of(kinds), max_size=12)
        scripts = st.builds(
            Script,
            st.tuples(some, some).map(lambda halves: [*halves[0], *halves[1]]),
            st.sampled_from([0.0, -1000.5, 1e6]),
            st.integers(0, 3),
        )
        return cast("st.SearchStrategy[Script[MachineT]]", scripts)


def _hostile() -> st.SearchStrategy[Hostile]:
    return st.builds(
        Hostile,
        st.sampled_from(["noise", "sent", "received"]),
        st.integers(0, 7),
        st.binary(max_size=40),
        st.lists(splices(), max_size=2).map(tuple),
    )


ItemT = TypeVar("ItemT")


def _pick(items: Sequence[ItemT], index: int, default: ItemT) -> ItemT:
    """Return an item, counted from the latest one backwards."""
    return items[-1 - index % len(items)] if items else default
