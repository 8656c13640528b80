"""What a fuzz target is, and what decoders have in common for one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from iroh_proto.errors import DecodeError

ValueT = TypeVar("ValueT")
P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Target:
    """Something that bytes are thrown at.

    :param check: takes bytes and raises, whatever it likes, if the invariant in the first line of
        its docstring does not hold for them.
    :param seeds: makes the inputs that a fuzzer starts from, none of which may raise.
    """

    check: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]

    @property
    def invariant(self) -> str:
        """The first line of the docstring."""
        return (inspect.getdoc(self.check) or "").partition("\n")[0]


def decoded(decode: Callable[P, ValueT], *args: P.args, **options: P.kwargs) -> ValueT | None:
    """Return what a decoder gives, or ``None`` if it refuses. Other exceptions are findings."""
    try:
        return decode(*args, **options)
    except DecodeError:
        return None


def text_of(data: bytes) -> str:
    """Return bytes as text that a user may have pasted, bytes that are no UTF-8 included."""
    return data.decode(errors="surrogateescape")


def pieces_of(data: bytes, size: int) -> Iterator[bytes]:
    """Yield ``data`` in pieces of ``size`` bytes."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


class Choices:
    """The first bytes of an input, which steer a target; the rest is what is thrown."""

    __slots__ = ("rest",)

    def __init__(self, data: bytes) -> None:
        self.rest = data

    def below(self, limit: int) -> int:
        """Take one byte as a number below ``limit``, 0 if there is none left."""
        head, self.rest = self.rest[:1], self.rest[1:]
        return head[0] % limit if head else 0

    def take(self, size: int) -> bytes:
        """Take ``size`` bytes, made up with zeros."""
        head, self.rest = self.rest[:size], self.rest[size:]
        return head.ljust(size, b"\0")
