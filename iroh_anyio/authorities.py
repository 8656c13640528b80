"""Certificate authorities that vouch for DERP servers, beside the usual ones."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import certifi

FILE_SIZE_LIMIT = 4 * 1024 * 1024
"""Bytes of a file that are read, many times what all public authorities need."""


@dataclass(frozen=True, slots=True)
class Authorities:
    """Authorities of one's own."""

    own: str

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file of PEM certificates.

        :raises OSError: if it cannot be read, or holds none.
        """
        with Path(path).open("rb") as file:
            data = file.read(FILE_SIZE_LIMIT)
        try:
            authorities = cls(data.decode("ascii"))
            authorities.ssl_context()
        except (UnicodeDecodeError, ssl.SSLError):
            raise OSError(f"{os.fspath(path)} holds no PEM certificates") from None
        return authorities

    def ssl_context(self) -> ssl.SSLContext:
        """Return what speaks TLS with servers that they or the system's authorities vouch for."""
        context = ssl.create_default_context()
        context.load_verify_locations(cadata=self.own)
        return context

    @property
    def pem(self) -> bytes:
        """They and those that aioquic usually trusts."""
        return certifi.contents().encode() + b"\n" + self.own.encode()
