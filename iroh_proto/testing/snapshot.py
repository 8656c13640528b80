"""What a machine remembers, as a plain value that can be compared and measured.

Some rules of the contract say that something changes nothing. They are checked by describing the
machine before and after: :func:`snapshot` turns every attribute, however deep, into nested tuples
of plain values, so that two lives of a machine compare equal when they remember the same.
"""

from __future__ import annotations

import enum
import itertools
import random
import sys
import types
from collections import deque
from collections.abc import Iterator, Mapping, Set
from typing import TypeAlias

from iroh_proto.timers import LatestTime

Snapshot: TypeAlias = "bool | int | float | str | bytes | tuple[Snapshot, ...] | None"
"""A value made of plain values only."""

# Objects of these packages are named, not entered: they are handles into C code, or reach state
# that every object of the process shares.
OPAQUE_PACKAGES = frozenset(
    {"cryptography", "nacl", "_cffi_backend", "ssl", "logging", "hypothesis"}
)

_Scalar: TypeAlias = "bool | int | str | bytes | None"
_SCALARS = (type(None), bool, int, str, bytes)
_NAMED = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)
_MAPPINGS = ("dict", "OrderedDict", "defaultdict", "mappingproxy")
_COUNTERS = (itertools.count, range, slice)


def snapshot(value: object) -> Snapshot:
    """Describe a value by its content.

    Objects are entered through ``__dict__`` and ``__slots__``; a source of chance is described by
    its state, so that a draw counts as a change. A :class:`~iroh_proto.timers.LatestTime` is left
    out: having been told the time is not a change. Functions and handles into C code count by
    their names alone.
    """
    return _Walk().describe(value)


def difference(before: Snapshot, after: Snapshot, where: str = "machine") -> str | None:
    """Say where two snapshots differ first, for a reader; ``None`` if they do not."""
    if before == after:
        return None
    if not (isinstance(before, tuple) and isinstance(after, tuple)) or before[:1] != after[:1]:
        return f"{where}: {before!r} became {after!r}"
    for index, (old, new) in enumerate(zip(before[1:], after[1:], strict=False)):
        name = _name_of(before, old)
        if name is None:
            found = difference(old, new, f"{where}[{index}]")
        elif name == _name_of(after, new):
            found = difference(_item_of(old), _item_of(new), where + name)
        else:
            found = f"{where}: {old!r} became {new!r}"
        if found is not None:
            return found
    return f"{where}: {len(before) - 1} items became {len(after) - 1}"


def retained_bytes(value: object) -> int:
    """Estimate the memory in bytes that a value holds on to, shared objects counted once."""
    return _Walk().measure(value)


class _Walk:
    """One walk over an object graph; remembers what it has met, so that cycles end."""

    def __init__(self) -> None:
        self._met: dict[int, int] = {}
        # An object that is collected during the walk could lend its id to another one.
        self._alive: list[object] = []

    def describe(self, value: object) -> Snapshot:
        if isinstance(value, _SCALARS) and not isinstance(value, enum.Enum):
            return _scalar(value)
        if isinstance(value, float):
            return value if value == value else "nan"
        if isinstance(value, _NAMED):
            return ("name", getattr(value, "__qualname__", value.__name__))
        if isinstance(value, (bytearray, memoryview)):
            return (type(value).__name__, bytes(value))
        if isinstance(value, _COUNTERS):
            return (type(value).__name__, repr(value))
        return self._describe_object(value)

    def _describe_object(self, value: object) -> Snapshot:
        kind = type(value).__name__
        if isinstance(value, LatestTime) or _is_opaque(value):
            return (kind,)
        if isinstance(value, random.Random):
            return (kind, _chance(value))
        if not _is_frozen(value) and self._meet(value):
            return ("met", self._met[id(value)])
        if isinstance(value, Mapping):
            items = [(self.describe(key), self.describe(item)) for key, item in value.items()]
            return (kind, *items, *self._attributes(value))
        if isinstance(value, Set):
            return (kind, *sorted((self.describe(item) for item in value), key=repr))
        if isinstance(value, (tuple, list, deque)):
            return (kind, *[self.describe(item) for item in value], *self._attributes(value))
        if isinstance(value, BaseException):
            return (kind, self.describe(value.args))
        return (kind, *self._attributes(value))

    def measure(self, value: object) -> int:
        if isinstance(value, _NAMED) or _is_opaque(value) or self._meet(value):
            return 0
        size = sys.getsizeof(value)
        if isinstance(value, Mapping):
            size += sum(self.measure(key) + self.measure(item) for key, item in value.items())
        elif isinstance(value, (tuple, list, deque, Set)):
            size += sum(self.measure(item) for item in value)
        elif isinstance(value, memoryview):
            size += value.nbytes
        return size + sum(self.measure(item) for _, item in _attributes_of(value))

    def _attributes(self, value: object) -> Iterator[Snapshot]:
        for name, item in _attributes_of(value):
            yield (f".{name}", self.describe(item))

    def _meet(self, value: object) -> bool:
        if id(value) in self._met:
            return True
        self._met[id(value)] = len(self._met)
        self._alive.append(value)
        return False


def _attributes_of(value: object) -> Iterator[tuple[str, object]]:
    yield from getattr(value, "__dict__", {}).items()
    if isinstance(value, types.MethodType):
        yield "__self__", value.__self__
    for base in type(value).__mro__:
        slots = base.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            name = f"_{base.__name__.lstrip('_')}{slot}" if _is_mangled(slot) else slot
            if slot not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield name, getattr(value, name)


def _is_frozen(value: object) -> bool:
    """Say whether sharing the object or having two equal ones makes no difference."""
    if isinstance(value, (tuple, frozenset)):
        return True
    parameters = getattr(value, "__dataclass_params__", None)
    return parameters is not None and bool(parameters.frozen)


def _is_mangled(name: str) -> bool:
    return name.startswith("__") and not name.endswith("__")


def _scalar(value: _Scalar) -> Snapshot:
    """Return the value as its plain type: a node id is its bytes."""
    for plain in (bytes, str):
        if isinstance(value, plain):
            return plain(value) if plain is bytes else str.__str__(value)  # type: ignore[arg-type]
    return value


def _chance(rng: random.Random) -> int:
    try:
        return hash(rng.getstate())
    except NotImplementedError:  # the system's generator has no state to look at
        return 0


def _is_opaque(value: object) -> bool:
    return type(value).__module__.partition(".")[0] in OPAQUE_PACKAGES


def _name_of(parent: tuple[Snapshot, ...], child: Snapshot) -> str | None:
    """Return how a reader names the attribute or the item of a mapping that ``child`` is."""
    if not (isinstance(child, tuple) and len(child) == 2):
        return None
    if isinstance(child[0], str) and child[0].startswith("."):
        return child[0]
    return f"[{child[0]!r}]" if parent[0] in _MAPPINGS else None


def _item_of(child: Snapshot) -> Snapshot:
    return child[1] if isinstance(child, tuple) else child
