"""Which module may import which, and why: the house's walls, checked on the syntax trees."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

_NO_IO = "the host does the I/O: bytes go in and out through methods"
_NO_TASKS = "the host has the tasks, and machines run in one"
_NO_CLOCK = "time comes in as now, or tests could not run in virtual time"
_NO_CHANCE = "chance comes in as rng, or runs could not be repeated"
_NO_PROCESS = "a machine depends on its inputs only, not on the process it runs in"

FORBIDDEN_IN_MACHINES = {
    "socket": _NO_IO,
    "ssl": _NO_IO,
    "select": _NO_IO,
    "selectors": _NO_IO,
    "socketserver": _NO_IO,
    "http.client": _NO_IO,
    "http.server": _NO_IO,
    "urllib.request": _NO_IO,
    "psutil": _NO_IO,
    "httpx": _NO_IO,
    "asyncio": _NO_TASKS,
    "anyio": _NO_TASKS,
    "trio": _NO_TASKS,
    "sniffio": _NO_TASKS,
    "threading": _NO_TASKS,
    "concurrent": _NO_TASKS,
    "multiprocessing": _NO_TASKS,
    "queue": _NO_TASKS,
    "aioquic.asyncio": _NO_TASKS,
    "time": _NO_CLOCK,
    "logging": "a log record reads the clock: count in stats, or emit an event",
    "warnings": "what goes wrong is an event, a count or an exception",
    "os": _NO_PROCESS,
    "signal": _NO_PROCESS,
    "subprocess": _NO_PROCESS,
    "tempfile": _NO_IO,
    "pathlib": _NO_IO,
    "secrets": _NO_CHANCE,
    "uuid": _NO_CHANCE,
}

# What a machine may do with these modules; anything else of them reads a clock or draws lots.
ONLY_THESE_NAMES = {
    "random": ({"Random"}, _NO_CHANCE),
    "datetime": ({"datetime", "timedelta", "timezone", "UTC"}, _NO_CLOCK),
}
CLOCK_READINGS = {"now", "utcnow", "today"}

# The libraries each part of iroh_proto is built on. Others are for a reason to be given here.
LIBRARIES = {
    "nacl": {"key", "box", "openssh", "x25519"},
    "cryptography": {"box", "openssh", "stun", "identity"},
    "h11": {"derp"},
    "wsproto": {"derp"},
    "websockets": {"derp"},
    "blake3": {"derp"},
    "hypothesis": {"testing"},
    "dns": {"discovery"},
    "defusedxml": {"portmap"},
}

# The modules of testing that need the testing extra. The simulator is for every install.
NEEDS_HYPOTHESIS = {"contract", "checks", "subject", "strategies"}

FOUNDATION = {
    "errors",
    "extras",
    "address",
    "key",
    "box",
    "wire",
    "timers",
    "machine",
    "ticket",
    "node_record",
    "openssh",
    "x25519",
}
FAMILIES = {"stun", "disco", "derp", "portmap", "discovery", "identity"}
ABOVE_FAMILIES = {"paths", "netcheck"}
TOP = {"magicsock"}
TRACE = {"trace"}  # it writes down what passes between the machines below, and their hosts

MAY_IMPORT: dict[str, set[str]] = {
    **dict.fromkeys(FOUNDATION, FOUNDATION),
    **{part: FOUNDATION | {part} for part in FAMILIES},
    **{part: FOUNDATION | FAMILIES | {part} for part in ABOVE_FAMILIES},
    **dict.fromkeys(TRACE, FOUNDATION | FAMILIES | ABOVE_FAMILIES | TRACE),
    **dict.fromkeys(TOP, FOUNDATION | FAMILIES | ABOVE_FAMILIES | TOP),
    "__init__": FOUNDATION | FAMILIES | ABOVE_FAMILIES | TOP,
    "testing": FOUNDATION | FAMILIES | ABOVE_FAMILIES | TOP | TRACE | {"testing"},
}


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def pure_sources() -> list[Path]:
    return sources("iroh_proto") + sources("iroh_anyio/quic") + sources("iroh_anyio/testing")


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and full name of everything imported, in functions and for types too."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: say where from: iroh_proto...."
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def part_of(name: str) -> str:
    """Return the part of iroh_proto that a full name lies in: ``iroh_proto.derp.map`` in derp."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@pytest.mark.parametrize("path", pure_sources(), ids=name_of)
def test_machines_import_nothing_that_does_io_or_reads_the_world(path: Path) -> None:
    wrong = [
        f"{path.name}:{line} imports {name}: {reason}"
        for line, name in imports_of(path)
        for module, reason in FORBIDDEN_IN_MACHINES.items()
        if is_within(name, module)
    ]
    assert not wrong


@pytest.mark.parametrize("path", pure_sources(), ids=name_of)
def test_machines_use_chance_and_dates_as_types_only(path: Path) -> None:
    in_testing = "testing" in path.parts
    wrong = [
        f"{path.name}:{node.lineno} uses {module}.{name}: {reason}"
        for module, (names, reason) in ONLY_THESE_NAMES.items()
        for node, name in uses_of(path, module)
        if name not in names
    ]
    wrong += [
        f"{path.name}:{node.lineno} makes a Random: {_NO_CHANCE}"
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and is_random(node.func) and not in_testing
    ]
    wrong += [
        f"{path.name}:{node.lineno} reads the clock: {_NO_CLOCK}"
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute)
        and node.attr in CLOCK_READINGS
        and ast.unparse(node.value) in ("datetime", "datetime.datetime", "date")
    ]
    assert not wrong


def uses_of(path: Path, module: str) -> Iterator[tuple[ast.expr | ast.ImportFrom, str]]:
    is_imported = any(name == module for _, name in imports_of(path))
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and node.module == module:
            yield from ((node, alias.name) for alias in node.names)
        elif is_imported and isinstance(node, ast.Attribute) and ast.unparse(node.value) == module:
            yield node, node.attr


def is_random(function: ast.expr) -> bool:
    return ast.unparse(function) in ("random.Random", "Random", "random.SystemRandom")


@pytest.mark.parametrize("path", sources("iroh_proto"), ids=name_of)
def test_parts_of_iroh_proto_import_only_what_lies_below_them(path: Path) -> None:
    part = part_of(name_of(path))
    assert part in MAY_IMPORT, f"say in this test where {part} belongs"
    wrong = []
    for line, name in imports_of(path):
        assert not is_within(name, "iroh_anyio"), f"{path}:{line}: the core knows no adapter"
        if is_within(name, "iroh_proto") and part_of(name) not in MAY_IMPORT[part]:
            wrong.append(f"{part} may not import {name} (line {line})")
    assert not wrong


@pytest.mark.parametrize("path", sources("iroh_proto"), ids=name_of)
def test_parts_of_iroh_proto_use_the_libraries_meant_for_them(path: Path) -> None:
    part = part_of(name_of(path))
    wrong = []
    for line, name in imports_of(path):
        library = name.partition(".")[0]
        if library in sys.stdlib_module_names or library == "iroh_proto":
            continue
        if part not in LIBRARIES.get(library, set()):
            wrong.append(f"{part} may not import {name} (line {line})")
        if library == "hypothesis" and not needs_hypothesis(path):
            wrong.append(f"{path.stem} is for installs without hypothesis (line {line})")
    assert not wrong


def needs_hypothesis(path: Path) -> bool:
    parts = name_of(path).removeprefix("iroh_proto.testing.").split(".")
    return parts[0] in NEEDS_HYPOTHESIS


@pytest.mark.parametrize("path", sources("iroh_proto/testing"), ids=name_of)
def test_the_simulator_needs_no_module_that_needs_hypothesis(path: Path) -> None:
    if needs_hypothesis(path):
        return
    needed = {f"iroh_proto.testing.{module}" for module in NEEDS_HYPOTHESIS}
    assert not [
        name for _, name in imports_of(path) for module in needed if is_within(name, module)
    ]


@pytest.mark.parametrize("path", sources("iroh_anyio/quic"), ids=name_of)
def test_the_quic_machines_know_only_the_core_and_aioquic(path: Path) -> None:
    allowed = {"iroh_proto", "aioquic", "cryptography"}
    wrong = []
    for line, name in imports_of(path):
        library = name.partition(".")[0]
        if library in sys.stdlib_module_names or is_within(name, "iroh_anyio.quic"):
            continue
        if library not in allowed or is_within(name, "iroh_proto.testing"):
            wrong.append(f"{path.name}:{line} imports {name}")
    assert not wrong


@pytest.mark.parametrize("path", sources("iroh_anyio/testing"), ids=name_of)
def test_simulated_endpoints_know_only_the_core_the_quic_machines_and_each_other(
    path: Path,
) -> None:
    allowed = ("iroh_proto", "iroh_anyio.quic", "iroh_anyio.testing")
    assert not [
        f"{path.name}:{line} imports {name}"
        for line, name in imports_of(path)
        if name.partition(".")[0] not in sys.stdlib_module_names
        and not any(is_within(name, package) for package in allowed)
    ]


@pytest.mark.parametrize("path", sources("iroh_anyio"), ids=name_of)
def test_the_adapter_keeps_testing_tools_out_of_production(path: Path) -> None:
    inside = path.relative_to(ROOT / "iroh_anyio").with_suffix("").as_posix()
    if inside == "pytest_plugin" or inside.startswith(("testing/", "cli/lab")):
        return
    tools = ("iroh_proto.testing", "iroh_anyio.testing", "hypothesis", "pytest")
    assert not [name for _, name in imports_of(path) for tool in tools if is_within(name, tool)]


def run_python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


BLOCK = """
import sys, importlib.abc
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError("not installed: " + name)
sys.meta_path.insert(0, Block())
"""


@pytest.mark.parametrize(
    ("statement", "missing"),
    [
        ("import iroh_proto, iroh_proto.stun.probe", {"aioquic", "anyio", "hypothesis", "trio"}),
        ("import iroh_anyio.quic", {"anyio", "trio", "hypothesis", "click", "psutil"}),
        ("import iroh_proto.testing.network, iroh_proto.testing.pair", {"anyio", "hypothesis"}),
        ("import iroh_anyio.testing", {"anyio", "trio", "hypothesis", "click", "psutil", "pytest"}),
        ("import iroh_anyio.pytest_plugin", {"aioquic", "anyio", "trio", "hypothesis", "psutil"}),
    ],
)
def test_it_imports_without_the_extras_it_does_not_need(statement: str, missing: set[str]) -> None:
    result = run_python(BLOCK.format(blocked=missing) + statement)
    assert result.returncode == 0, result.stderr
