"""Reads TOML tables strictly: every problem is an error that names the key."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from iroh_proto.address import UdpAddress
from iroh_proto.errors import DecodeError

T = TypeVar("T")


SHOWN_LIMIT = 40
"""Characters of a value that a message shows."""


class ConfigError(ValueError):
    """A setting that cannot be used. The message names its key and says what is allowed."""


class TomlTable:
    """One table while it is read. It remembers which keys were asked for.

    Each reader returns ``None`` for a key that is not there.

    :param path: the key of the table itself, empty for the whole file.
    :param top_keys: keys of the whole file. Those of them that stand in a table got there because
        they were written below its head.
    """

    def __init__(
        self, values: Mapping[str, object], path: str = "", top_keys: Collection[str] = ()
    ) -> None:
        self._values = values
        self._path = path
        self._top_keys = top_keys
        self._known: dict[str, None] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def name(self, key: str) -> str:
        """Return the full name of a key, such as ``tls.hostname``."""
        return f"{self._path}.{key}" if self._path else key

    def error(self, key: str, problem: str) -> ConfigError:
        """Return the error that says what is wrong with a key."""
        return ConfigError(f"{self.name(key)}: {problem}")

    def is_text(self, key: str) -> bool:
        """Say whether a string stands under a key, where a table may stand too."""
        return isinstance(self._values.get(key), str)

    def flag(self, key: str) -> bool | None:
        """Read true or false."""
        value = self._take(key)
        if value is None or isinstance(value, bool):
            return value
        raise self.error(key, f"true or false, not {_shown(value)}")

    def text(self, key: str) -> str | None:
        """Read a string, which may not be empty."""
        value = self._take(key)
        if value is None or (isinstance(value, str) and value):
            return value
        raise self.error(key, f"a string that is not empty, not {_shown(value)}")

    def path(self, key: str) -> Path | None:
        """Read the path of a file or folder."""
        text = self.text(key)
        if text is None:
            return None
        if "\0" in text:
            raise self.error(key, f"a path, which holds no NUL, not {_shown(text)}")
        return Path(text)

    def secret(self, key: str) -> str | None:
        """Read a string that is not empty and that no message may show."""
        value = self._take(key)
        if value is None or (isinstance(value, str) and value):
            return value
        raise self.error(key, "a string that is not empty")

    def choice(self, key: str, allowed: Sequence[str]) -> str | None:
        """Read one of some strings."""
        value = self._take(key)
        if value is None or (isinstance(value, str) and value in allowed):
            return value
        raise self.error(key, f"one of {_quoted(allowed)}, not {_shown(value)}")

    def integer(self, key: str, *, least: int, most: int) -> int | None:
        """Read a whole number within bounds."""
        value = self._take(key)
        if value is None:
            return None
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        raise self.error(key, f"a whole number from {least} to {most}, not {_shown(value)}")

    def number(self, key: str, *, above: float, most: float) -> float | None:
        """Read a number within bounds, the lower one excluded."""
        value = self._take(key)
        if value is None:
            return None
        if isinstance(value, int | float) and not isinstance(value, bool) and above < value <= most:
            return float(value)
        raise self.error(key, f"a number above {above:g}, at most {most:g}, not {_shown(value)}")

    def texts(self, key: str, *, single: bool = False) -> list[str] | None:
        """Read a list of strings, none of them empty; with ``single`` one string will do."""
        value = self._take(key)
        if value is None:
            return None
        items = [value] if single and isinstance(value, str) else value
        if isinstance(items, list) and all(isinstance(item, str) and item for item in items):
            return items
        what = "a string or a list of strings" if single else "a list of strings"
        raise self.error(key, f"{what}, none of them empty")

    def address(self, key: str) -> UdpAddress | None:
        """Read an IP address with a port."""
        return self.parsed(key, UdpAddress.from_str)

    def parsed(self, key: str, parse: Callable[[str], T]) -> T | None:
        """Read a string that ``parse`` makes sense of or raises :class:`DecodeError` for."""
        text = self.text(key)
        if text is None:
            return None
        try:
            return parse(text)
        except DecodeError as error:
            raise self.error(key, str(error)) from None

    def table(self, key: str) -> TomlTable | None:
        """Read a table within this one; :meth:`finish` it as well."""
        value = self._take(key)
        if value is None:
            return None
        if isinstance(value, dict):
            return TomlTable(value, self.name(key), self._top_keys)
        raise self.error(key, f"a table, not {_shown(value)}")

    def finish(self) -> None:
        """Say that all keys were asked for.

        :raises ConfigError: if there are others, naming the first and those that are known.
        """
        for key, value in self._values.items():
            if key not in self._known:
                if key in self._top_keys:
                    as_table = f", or as [{key}]" if isinstance(value, dict) else ""
                    raise self.error(
                        key,
                        f"no such key; {key} is one of the whole file: put it above the first "
                        f"[table]{as_table}",
                    )
                similar = difflib.get_close_matches(key, self._known, n=1)
                hint = f"did you mean {similar[0]}? " if similar else ""
                raise self.error(key, f"no such key; {hint}there are {', '.join(self._known)}")

    def _take(self, key: str) -> object:
        self._known[key] = None
        return self._values.get(key)


def _shown(value: object) -> str:
    """Return a value as a message may show it: short, and no value of a whole table or list."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) >= 10**SHOWN_LIMIT:
        return "one so large"  # and repr() refuses some of them
    text = repr(value)
    return text if len(text) <= SHOWN_LIMIT else f"{text[:SHOWN_LIMIT]}..."


def _quoted(values: Sequence[str]) -> str:
    return ", ".join(f'"{value}"' for value in values)
