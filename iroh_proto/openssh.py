"""Private key files of OpenSSH: how iroh 0.6 to 0.29 keeps a node's key (file ``keypair``).

Between its two marker lines the file is base64, wrapped at 70 columns, of::

    "openssh-key-v1" 00 | str "none" | str "none" | str ""     cipher, kdf, kdf options
    u32 1 | str( public key ) | str( private section )         one key
    public key      = str "ssh-ed25519" | str public(32)
    private section = u32 check | u32 check | public key | str seed(32) public(32)
                      | str comment | 01 02 03 ... up to a multiple of 8
    str x           = u32 length (big-endian) | x

OpenSSH draws ``check`` at random; iroh takes the exclusive or of the seed's eight words, so the
same key gives the same file.

Source: OpenSSH ``PROTOCOL.key``; iroh v0.12.0 ``iroh-net/src/key.rs``.
"""

from __future__ import annotations

import base64
import binascii
import struct

from iroh_proto.errors import DecodeError

_BEGIN = "-----BEGIN OPENSSH PRIVATE KEY-----"
_END = "-----END OPENSSH PRIVATE KEY-----"
_MAGIC = b"openssh-key-v1\0"
_KEY_TYPE = b"ssh-ed25519"
_COLUMNS = 70
_BLOCK_SIZE = 8  # bytes; what padding fills up, there being no cipher
_U32 = struct.Struct(">I")
_SEED = struct.Struct(">8I")


def encode_openssh(seed: bytes, public: bytes) -> str:
    """Return the key file of a 32-byte seed and its public key, as iroh writes it."""
    public_key = _string(_KEY_TYPE) + _string(public)
    check = 0
    for word in _SEED.unpack(seed):
        check ^= word
    section = 2 * _U32.pack(check) + public_key + _string(seed + public) + _string(b"")
    section += bytes(range(1, 1 + -len(section) % _BLOCK_SIZE))
    no_cipher = _string(b"none") + _string(b"none") + _string(b"")
    blob = _MAGIC + no_cipher + _U32.pack(1) + _string(public_key) + _string(section)
    body = base64.b64encode(blob).decode()
    lines = [body[at : at + _COLUMNS] for at in range(0, len(body), _COLUMNS)]
    return "\n".join([_BEGIN, *lines, _END, ""])


def decode_openssh(text: str) -> tuple[bytes, bytes]:
    """Return the seed and the public key in a key file, 32 bytes each.

    Files of ``ssh-keygen -t ed25519`` without a passphrase are read too. Whether the two belong
    together is left to the caller, who knows the curve.

    :raises DecodeError: if it is no key file, is encrypted, or holds anything but one Ed25519
        key. The message never repeats the content.
    """
    blob = _Fields(_decode_armour(text))
    if blob.take(len(_MAGIC)) != _MAGIC:
        raise DecodeError("not an OpenSSH private key")
    if blob.string() != b"none" or blob.string() != b"none":
        raise DecodeError("this OpenSSH key is encrypted; remove its passphrase first")
    blob.string()  # options of the kdf that is not used
    if (count := blob.u32()) != 1:
        raise DecodeError(f"an OpenSSH key file for a node holds one key, not {count}")
    public = _read_public_key(_Fields(blob.string()))
    return _read_private_section(_Fields(blob.string()), public)


def _decode_armour(text: str) -> bytes:
    lines = [line.strip() for line in text.strip().splitlines()]
    if len(lines) < 2 or lines[0] != _BEGIN or lines[-1] != _END:
        raise DecodeError(f"an OpenSSH key file stands between {_BEGIN!r} and {_END!r}")
    try:
        return binascii.a2b_base64("".join(lines[1:-1]), strict_mode=True)
    except ValueError:
        raise DecodeError("the body of this OpenSSH key file is not base64") from None


def _read_public_key(fields: _Fields) -> bytes:
    if fields.string() != _KEY_TYPE:
        raise DecodeError("this OpenSSH key is not an Ed25519 key")
    return fields.string(32)


def _read_private_section(fields: _Fields, public: bytes) -> tuple[bytes, bytes]:
    if fields.u32() != fields.u32():
        raise DecodeError("the check words of this OpenSSH key differ")
    again = _read_public_key(fields)
    pair = fields.string(64)
    if not public == again == pair[32:]:
        raise DecodeError("this OpenSSH key names different public keys")
    fields.string()  # the comment
    padding = fields.rest()
    if len(padding) >= _BLOCK_SIZE or padding != bytes(range(1, 1 + len(padding))):
        raise DecodeError("the padding of this OpenSSH key is wrong")
    return pair[:32], public


class _Fields:
    """Reads the fields of a key file one after the other."""

    __slots__ = ("_data", "_position")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, size: int) -> bytes:
        data = self._data[self._position : self._position + size]
        if len(data) < size:
            raise DecodeError("this OpenSSH key is cut short")
        self._position += size
        return data

    def u32(self) -> int:
        value: int = _U32.unpack(self.take(_U32.size))[0]
        return value

    def string(self, size: int | None = None) -> bytes:
        """Read a string, which has ``size`` bytes if that is given."""
        data = self.take(self.u32())
        if size is not None and len(data) != size:
            raise DecodeError(f"a key in this OpenSSH key has {len(data)} bytes, not {size}")
        return data

    def rest(self) -> bytes:
        return self._data[self._position :]


def _string(data: bytes) -> bytes:
    return _U32.pack(len(data)) + data
