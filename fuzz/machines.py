"""One target per machine, and one for the memory of all of them.

What may be done with a machine, and what it must never do, is said once: in the contract tests of
``tests/proto``. The bytes of an input are read as the choices that hypothesis makes when it runs
those: which rule, which operations, which hostile bytes between them.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeAlias, TypeVar, cast

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz import seeds
from fuzz.target import Target
from iroh_proto.testing.contract import (
    Script,
    Subject,
    check_bounds,
    check_cutting,
    check_determinism,
    check_draining,
    check_early_timer,
    check_end,
    check_peer_bytes,
    check_refusals,
    check_timer,
)
from iroh_proto.testing.strategies import chunk_sizes

MachineT = TypeVar("MachineT")
Rule: TypeAlias = Callable[[Subject[MachineT], Script[MachineT], list[int], bool], None]

BOUNDS = "machine-memory"
"""The target of rule 7."""

_TESTS = Path(__file__).parents[1] / "tests" / "proto"
_CONTRACT = re.compile(r"^Test(\w+)Contract = contract_tests\(", re.MULTILINE)
_CAMEL_HUMP = re.compile(r"(?<!^)(?=[A-Z])")
_TOYS = "test_contract_itself"

# Operations of a flood that are not even begun in fuzzing are no loss: the contract tests do those.
_SHORT_FLOOD = 4000


@cache
def contract_modules() -> dict[str, str]:
    """Return the module with the contract of each machine, by the name of its target."""
    return {
        target_name(match[1]): path.stem
        for path in sorted(_TESTS.glob("test_*.py"))
        if path.stem != _TOYS
        for match in _CONTRACT.finditer(path.read_text(encoding="utf-8"))
    }


def target_name(class_name: str) -> str:
    """Return ``stun-probe`` for ``StunProbe``."""
    return _CAMEL_HUMP.sub("-", class_name).lower()


def target_names() -> list[str]:
    """Return the names of the targets."""
    return [*contract_modules(), BOUNDS]


def load(name: str) -> Target:
    """Return a target, importing no more than its machine."""
    if name == BOUNDS:
        return memory_target(list(map(subject_of, contract_modules())))
    return rules_target(subject_of(name))


def subject_of(name: str) -> Subject[object]:
    """Return the machine with what its contract test does to it."""
    module = importlib.import_module(f"tests.proto.{contract_modules()[name]}")
    for attribute, value in vars(module).items():
        contract = _CONTRACT.match(f"{attribute} = contract_tests(")
        if contract is not None and target_name(contract[1]) == name:
            return cast("Subject[object]", value.subject_under_test)
    raise LookupError(name)


def rules_of(subject: Subject[MachineT]) -> list[Rule[MachineT]]:
    """Return what is checked of a machine: rules 2 to 6 of the contract."""
    rules: list[Rule[MachineT]] = [
        lambda subject, script, sizes, drains: check_peer_bytes(subject, script),
        lambda subject, script, sizes, drains: check_timer(subject, script),
        lambda subject, script, sizes, drains: check_early_timer(subject, script, sizes[0] / 1500),
        check_cutting,
        lambda subject, script, sizes, drains: check_determinism(subject, script),
        lambda subject, script, sizes, drains: check_draining(subject, script),
        lambda subject, script, sizes, drains: check_refusals(subject, script),
    ]
    if subject.final:
        rules.append(lambda subject, script, sizes, drains: check_end(subject, script))
    return rules


def rules_target(subject: Subject[MachineT]) -> Target:
    """Return the target of one machine."""
    rules = rules_of(subject)

    @settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.tuples(st.integers(0, len(rules) - 1), chunk_sizes(), st.booleans(), subject.scripts())
    )
    def hold(case: tuple[int, list[int], bool, Script[MachineT]]) -> None:
        number, sizes, drains, script = case
        try:
            rules[number](subject, script, sizes, drains)
        except BaseException as error:
            error.add_note(f"rule {number} of rules_of(subject), {sizes=}, {drains=}, {script}")
            raise

    choose = hold.hypothesis.fuzz_one_input  # type: ignore[attr-defined]

    def check(data: bytes) -> None:
        """Peers' bytes never raise; timers, cuts, drains, refusals and seeds keep the contract."""
        choose(data)

    return Target(check, lambda: seeds.noise("machine", count=10, size=160))


def memory_target(subjects: list[Subject[object]]) -> Target:
    """Return the target of rule 7: a flood after anything else that may happen."""
    floods = [
        (subject, flood)
        for subject in subjects
        for flood in subject.floods
        if flood.count <= _SHORT_FLOOD
    ]

    @settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def hold(data: st.DataObject) -> None:
        subject, flood = floods[data.draw(st.integers(0, len(floods) - 1))]
        script = data.draw(subject.scripts())
        try:
            check_bounds(subject, script, flood)
        except BaseException as error:
            error.add_note(f"flood {flood.label!r} of {subject.factory}, {script}")
            raise

    choose = hold.hypothesis.fuzz_one_input  # type: ignore[attr-defined]

    def check(data: bytes) -> None:
        """After anything that may happen, whatever is done without end, memory stops growing."""
        choose(data)

    return Target(check, lambda: seeds.noise("memory", count=2, size=100))
