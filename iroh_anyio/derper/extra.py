"""Libraries that only some servers need: imported when they are, missing ones named."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def import_extra(module: str, purpose: str) -> ModuleType:
    """Import a library of the extra ``derper``.

    :raises ModuleNotFoundError: if it is not installed, naming what it is needed for.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        root = module.partition(".")[0]
        if error.name != root:
            raise
        raise ModuleNotFoundError(
            f"{purpose} needs {root}: pip install 'iroh-proto[derper]'", name=root
        ) from None
