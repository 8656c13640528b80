"""No machine escapes the contract."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = Path(__file__).parent

METHODS_OF_A_MACHINE = {"handle_timer", "get_timer", "next_event"}


def machines() -> list[str]:
    """Return the names of all classes that have the methods of a machine."""
    sources = [
        *(ROOT / "iroh_proto").rglob("*.py"),
        *(ROOT / "iroh_anyio" / "quic").rglob("*.py"),
    ]
    return sorted(
        node.name
        for path in sources
        if "testing" not in path.parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and is_machine(node)
    )


def is_machine(node: ast.ClassDef) -> bool:
    methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
    is_protocol = any("Protocol" in ast.unparse(base) for base in node.bases)
    return methods >= METHODS_OF_A_MACHINE and not is_protocol


def contracts() -> str:
    """Return the text of all test files that hold something to the contract."""
    texts = [path.read_text(encoding="utf-8") for path in TESTS.glob("test_*.py")]
    return "\n".join(text for text in texts if "contract_tests(" in text)


@pytest.mark.parametrize("name", machines())
def test_every_machine_is_held_to_the_contract(name: str) -> None:
    is_tested = re.search(rf"\b{name}\(|\bSubject\[{name}\]", contracts()) is not None
    assert is_tested, f"write contract tests for {name}"


def test_there_are_machines() -> None:
    assert {"StunProbe", "DiscoPinger", "DerpServer", "Magicsock"} <= set(machines())
