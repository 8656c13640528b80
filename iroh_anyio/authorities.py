"""Certificate authorities of one's own, to vouch for DERP servers beside the usual ones."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_certificates

FILE_SIZE_LIMIT = 4 * 1024 * 1024
"""Bytes of a file that are read, many times what all public authorities need."""


@dataclass(frozen=True, slots=True)
class Authorities:
    """Authorities that were read from a file.

    :ivar pem: their certificates one behind the other, without what else a file may hold.
    """

    pem: bytes

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file of PEM certificates.

        :raises OSError: if it cannot be read, or holds none.
        """
        with Path(path).open("rb") as file:
            data = file.read(FILE_SIZE_LIMIT)
        try:
            certificates = load_pem_x509_certificates(data)
        except ValueError:
            raise OSError(f"{os.fspath(path)} holds no PEM certificates") from None
        return cls(b"".join(each.public_bytes(Encoding.PEM) for each in certificates))

    def ssl_context(self) -> ssl.SSLContext:
        """Return what speaks TLS with servers that they or the system's authorities vouch for."""
        context = ssl.create_default_context()
        context.load_verify_locations(cadata=self.pem.decode("ascii"))
        return context
