"""Names the extra to install where a module that it brings is missing."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager


@contextmanager
def needs_extra(what: str, extra: str, modules: Collection[str]) -> Iterator[None]:
    """Import within this what needs an extra.

    :param what: what needs it, for the message.
    :param extra: its name, as in ``pip install 'iroh-proto[extra]'``.
    :param modules: the top-level modules that it brings.
    :raises ModuleNotFoundError: if one of them is not installed; says how to get it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in modules:
            raise
        raise ModuleNotFoundError(
            f"{what} needs {error.name}: install the extra, pip install 'iroh-proto[{extra}]'",
            name=error.name,
        ) from error
