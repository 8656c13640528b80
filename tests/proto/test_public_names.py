"""What packages promise to export is there, and what they export on purpose is promised."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    name_of(path): path
    for folder in ("iroh_proto", "iroh_anyio/testing")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
PROMISING = [name for name, path in SOURCES.items() if "\n__all__ = " in path.read_text()]


@pytest.mark.parametrize("name", PROMISING)
def test_every_promised_name_exists_once(name: str) -> None:
    module = importlib.import_module(name)
    promised = list(module.__all__)
    assert len(promised) == len(set(promised))
    assert [item for item in promised if not hasattr(module, item)] == []


@pytest.mark.parametrize("name", PROMISING)
def test_every_name_that_a_package_gathers_is_promised(name: str) -> None:
    module = importlib.import_module(name)
    if not hasattr(module, "__path__"):
        assert set(defined_in(module)) <= set(module.__all__)
        return
    gathered = {item for item in gathered_by(module) if not item.startswith("_")}
    assert gathered <= set(module.__all__)


@pytest.mark.parametrize("name", list(SOURCES))
def test_every_public_name_is_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, name
    undocumented = []
    for item in defined_in(module):
        value = getattr(module, item)
        if inspect.isclass(value) or inspect.isfunction(value):
            undocumented += [] if (value.__doc__ or "").strip() else [item]
    assert undocumented == []


def defined_in(module: ModuleType) -> list[str]:
    """Return the public classes and functions that a module itself defines."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    ]


def gathered_by(module: ModuleType) -> set[str]:
    """Return the names that a package imports from the modules of this project, to pass them on."""
    tree = ast.parse(inspect.getsource(module))
    return {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith("iroh_")
        and node.module != "iroh_proto.extras"
        for alias in node.names
    }
