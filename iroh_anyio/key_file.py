"""A node's lasting identity, in a file that its owner alone may read."""

from __future__ import annotations

import logging
import os
import stat
from typing import Final

from iroh_proto.errors import DecodeError
from iroh_proto.key import SecretKey

logger = logging.getLogger("iroh_anyio.key_file")

MAX_KEY_FILE_SIZE: Final = 64 * 1024
"""Bytes read of a key file; the largest that is one has some hundred."""

KEY_FILE_MODE: Final = 0o600
OTHERS_MAY_READ: Final = stat.S_IRWXG | stat.S_IRWXO


def load_or_create_secret_key(path: str | os.PathLike[str]) -> SecretKey:
    """Read a secret key from a file, or make one and keep it there, with mode 0600.

    The file holds hex, as ``iroh-anyio key generate`` writes it, base32, or an OpenSSH key. One
    that others may read is used, with a warning to the log ``iroh_anyio.key_file``.

    :raises OSError: if the file cannot be read or written.
    :raises DecodeError: if it holds no key. The message never repeats the content.
    """
    return load_secret_key(path) if os.path.lexists(path) else create_secret_key(path)


def load_secret_key(path: str | os.PathLike[str]) -> SecretKey:
    """Read a secret key, as :func:`load_or_create_secret_key` does, from a file that is there.

    :raises OSError: if the file cannot be read.
    :raises DecodeError: if it holds no key. The message never repeats the content.
    """
    with open(path, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        data = file.read(MAX_KEY_FILE_SIZE)
    shown = os.fspath(path)
    try:
        secret_key = _parse(data)
    except DecodeError as error:
        raise DecodeError(f"{shown} holds no secret key: {error}") from None
    if mode & OTHERS_MAY_READ:
        logger.warning(
            "others may read %s (mode %04o), and whoever has read it can be this node: "
            "chmod 600 %s",
            shown,
            stat.S_IMODE(mode),
            shown,
        )
    return secret_key


def create_secret_key(path: str | os.PathLike[str]) -> SecretKey:
    """Write a new secret key to a new file that only its owner may read.

    :raises OSError: if the file cannot be written, or is there already (``FileExistsError``).
    """
    secret_key = SecretKey.generate()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, KEY_FILE_MODE)
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(secret_key.to_bytes().hex() + "\n")
    return secret_key


def _parse(data: bytes) -> SecretKey:
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        raise DecodeError("it is not text") from None
    is_openssh = text.startswith("-----BEGIN OPENSSH")
    return SecretKey.from_openssh(text) if is_openssh else SecretKey.from_str(text)
