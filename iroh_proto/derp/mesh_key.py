"""The secret that the servers of a mesh share."""

from __future__ import annotations

import binascii
import hmac
from typing import ClassVar, Self

from iroh_proto.errors import DecodeError

MESH_KEY_SIZE = 32
_NONE = bytes(MESH_KEY_SIZE)


class MeshKey:
    """A mesh key: 32 bytes, not all zero. It shows itself nowhere, and compares in constant time.

    :raises DecodeError: if they are not 32 bytes, or all zero, which means that there is no key.
    """

    __slots__ = ("_key",)

    __hash__: ClassVar[None]  # type: ignore[assignment]

    def __init__(self, key: bytes) -> None:
        if len(key) != MESH_KEY_SIZE:
            raise DecodeError(f"a mesh key is {MESH_KEY_SIZE} bytes, not {len(key)}")
        if hmac.compare_digest(key, _NONE):
            raise DecodeError("a mesh key of nothing but zeros")
        self._key = bytes(key)

    @classmethod
    def from_str(cls, text: str) -> Self:
        """Parse 64 hex digits, as ``derper`` reads them from a file; white space around is fine.

        :raises DecodeError: naming what is wrong, without repeating the text.
        """
        try:
            key = binascii.unhexlify(text.strip())
        except ValueError:
            raise DecodeError(f"a mesh key is written as {2 * MESH_KEY_SIZE} hex digits") from None
        return cls(key)

    @classmethod
    def received(cls, key: bytes | None) -> Self | None:
        """Return the key that a peer gave, ``None`` if it gave none or one of zeros.

        :raises DecodeError: if it is not 32 bytes.
        """
        return None if not key or key == _NONE else cls(key)

    def to_bytes(self) -> bytes:
        """Return the 32 bytes. Keep them secret."""
        return self._key

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MeshKey):
            return NotImplemented
        return hmac.compare_digest(self._key, other._key)

    def __repr__(self) -> str:
        return "MeshKey(...)"
