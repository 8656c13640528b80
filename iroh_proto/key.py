"""Node ids and secret keys: Ed25519 with iroh's text formats.

A node id is the 32-byte compressed Edwards point of an Ed25519 public key (RFC 8032). Its text
is 64 lower-case hex digits; releases before 0.30 print 52 characters of lower-case base32
(RFC 4648, no padding) instead. Both spellings, in either case and with white space around them, are
accepted everywhere.

Source: iroh v0.12.0 ``iroh-net/src/key.rs``, v0.35.0 ``iroh-base/src/key.rs``.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import random
from functools import lru_cache
from typing import ClassVar, Self

from nacl import bindings
from nacl.exceptions import BadSignatureError, CryptoError

from iroh_proto.errors import DecodeError
from iroh_proto.openssh import decode_openssh, encode_openssh

KEY_SIZE = 32
SIGNATURE_SIZE = 64

# Checked keys are remembered: a point check costs about 25 us, and relays name the same few peers
# in every frame. 16,384 entries of about 100 bytes.
CHECKED_KEYS_LIMIT = 16_384

_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P) % _P
_Z_BASE_32 = "ybndrfg8ejkmcpqxot1uwisza345h769"
_RFC_BASE_32 = "abcdefghijklmnopqrstuvwxyz234567"
_BASE_32_HEX = "0123456789abcdefghijklmnopqrstuv"
_BASE_32_CHARACTERS = frozenset(_RFC_BASE_32 + _RFC_BASE_32.upper())
_LEFT_OVER = "base32 with bits left over: it is cut short, or has something added or changed"
_TO_Z = str.maketrans(_RFC_BASE_32, _Z_BASE_32)
_FROM_Z = str.maketrans(_Z_BASE_32, _RFC_BASE_32)
_TO_HEX = str.maketrans(_RFC_BASE_32, _BASE_32_HEX)


class NodeId(bytes):
    """A node's identity: 32 bytes that are a point of the Edwards curve.

    It is its own bytes, so it may be sent, compared and used as a key as they can.
    ``str(node_id)`` is lower-case hex.
    """

    __slots__ = ()

    def __new__(cls, data: bytes) -> Self:
        """Check and wrap 32 bytes.

        :raises DecodeError: if they are not 32 bytes or not a point of the curve.
        """
        if len(data) != KEY_SIZE:
            raise DecodeError(f"a node id is {KEY_SIZE} bytes, not {len(data)}")
        data = bytes(data)
        if not _is_curve_point(data):
            raise DecodeError(f"not a point of the Edwards curve: {data.hex()}")
        return super().__new__(cls, data)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return the node id with these 32 bytes.

        :raises DecodeError: if they are not 32 bytes or not a point of the curve.
        """
        return cls(data)

    @classmethod
    def from_str(cls, text: str) -> Self:
        """Parse 64 hex digits or 52 characters of base32, in either case.

        White space around them, such as the line end of a file, does not count.

        :raises DecodeError: naming what is wrong with the text.
        """
        return cls(decode_key_text(text.strip(), "node id"))

    @classmethod
    def from_z32(cls, text: str) -> Self:
        """Parse the 52 characters of z-base-32 used in DNS names.

        :raises DecodeError: naming what is wrong with the text.
        """
        if not set(text) <= set(_Z_BASE_32):
            raise DecodeError(f"not z-base-32: {text!r}")
        return cls(_decode_base32(text.translate(_FROM_Z), "node id"))

    def to_base32(self) -> str:
        """Return the 52 characters that releases before 0.30 print."""
        return encode_base32(self)

    def to_z32(self) -> str:
        """Return the 52 characters of z-base-32 used in DNS names."""
        return encode_base32(self).translate(_TO_Z)

    def to_tls_server_name(self) -> str:
        """Return the server name that iroh 0.33 to 1.0 sends when it dials this node."""
        return encode_base32(self).translate(_TO_HEX) + ".iroh.invalid"

    def fmt_short(self) -> str:
        """Return the first 10 hex digits, as the logs of iroh 0.30 and later show."""
        return self[:5].hex()

    def fmt_short_base32(self) -> str:
        """Return the first 16 characters of base32, as the logs of iroh 0.8 to 0.29 show."""
        return encode_base32(self[:10])

    def verify(self, message: bytes, signature: bytes) -> bool:
        """Say whether this node signed ``message`` (strict RFC 8032: libsodium's rules)."""
        if len(signature) != SIGNATURE_SIZE:
            return False
        try:
            bindings.crypto_sign_open(signature + message, bytes(self))
        except BadSignatureError:
            return False
        return True

    def to_x25519(self) -> bytes:
        """Return the X25519 public key at this point: u = (1 + y) / (1 - y).

        :raises DecodeError: for a point of small or mixed order, which no honest node has.
        """
        try:
            return bindings.crypto_sign_ed25519_pk_to_curve25519(bytes(self))
        except CryptoError:
            raise DecodeError(f"no honest key, a point of small or mixed order: {self}") from None

    def __str__(self) -> str:
        return self.hex()

    def __repr__(self) -> str:
        return f"NodeId({self.hex()})"


class SecretKey:
    """An Ed25519 secret key, kept as its 32-byte seed.

    It shows itself nowhere: ``repr`` and ``str`` name the public key only. Comparison takes
    constant time.
    """

    __slots__ = ("_public", "_seed", "_signing_key")

    __hash__: ClassVar[None]  # type: ignore[assignment]

    def __init__(self, seed: bytes) -> None:
        if len(seed) != KEY_SIZE:
            raise DecodeError(f"a secret key is {KEY_SIZE} bytes, not {len(seed)}")
        self._seed = bytes(seed)
        public, self._signing_key = bindings.crypto_sign_seed_keypair(self._seed)
        self._public = NodeId(public)

    @classmethod
    def generate(cls, rng: random.Random | None = None) -> Self:
        """Make a new key, from libsodium's generator unless given another source."""
        return cls(bindings.randombytes(KEY_SIZE) if rng is None else rng.randbytes(KEY_SIZE))

    @classmethod
    def from_bytes(cls, seed: bytes) -> Self:
        """Return the key with this 32-byte seed.

        :raises DecodeError: if it is not 32 bytes.
        """
        return cls(seed)

    @classmethod
    def from_str(cls, text: str) -> Self:
        """Parse 64 hex digits or 52 characters of base32, in either case.

        White space around them, such as the line end of a file, does not count.

        :raises DecodeError: naming what is wrong, without repeating the text.
        """
        return cls(decode_key_text(text.strip(), "secret key"))

    @classmethod
    def from_openssh(cls, text: str) -> Self:
        """Read an OpenSSH private key file, as iroh 0.6 to 0.29 and ``ssh-keygen`` write it.

        :raises DecodeError: if it is no such file, is encrypted, or holds no Ed25519 key. The
            message never repeats the content.
        """
        seed, public = decode_openssh(text)
        key = cls(seed)
        if key.public != public:
            raise DecodeError("the secret and the public part of this OpenSSH key do not match")
        return key

    @property
    def public(self) -> NodeId:
        """The id of the node that has this key, for others to dial."""
        return self._public

    def to_bytes(self) -> bytes:
        """Return the 32-byte seed. Keep it secret."""
        return self._seed

    def to_openssh(self) -> str:
        """Return the key file that iroh 0.6 to 0.29 writes, to the byte. Keep it secret."""
        return encode_openssh(self._seed, self.public)

    def to_base32(self) -> str:
        """Return the 52 characters that releases before 0.30 print. Keep them secret."""
        return encode_base32(self._seed)

    def to_x25519(self) -> bytes:
        """Return the X25519 secret key: the clamped first half of SHA-512 of the seed."""
        return bindings.crypto_sign_ed25519_sk_to_curve25519(self._signing_key)

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature of ``message`` (RFC 8032, deterministic)."""
        return bindings.crypto_sign(message, self._signing_key)[:SIGNATURE_SIZE]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SecretKey):
            return NotImplemented
        return hmac.compare_digest(self._seed, other._seed)

    def __repr__(self) -> str:
        return f"SecretKey(public={self.public})"


def encode_base32(data: bytes) -> str:
    """Return lower-case RFC 4648 base32 without padding."""
    return base64.b32encode(data).decode("ascii").rstrip("=").lower()


def decode_base32(text: str) -> bytes:
    """Decode RFC 4648 base32 without padding, in either case, strictly.

    :raises DecodeError: for a foreign character, a length that no byte count gives, or trailing
        bits that are not zero.
    """
    if not set(text) <= _BASE_32_CHARACTERS:
        raise DecodeError("not base32 (letters and the digits 2 to 7)")
    try:
        data = base64.b32decode(text.upper() + "=" * (-len(text) % 8))
    except binascii.Error:
        raise DecodeError(_LEFT_OVER) from None
    if encode_base32(data) != text.lower():
        raise DecodeError(_LEFT_OVER)
    return data


def decode_key_text(text: str, what: str) -> bytes:
    """Decode the text of a key, 64 hex digits or 52 of base32, without repeating it in errors.

    :raises DecodeError: naming ``what`` and the trouble.
    """
    if len(text) == 2 * KEY_SIZE:
        try:
            return binascii.unhexlify(text)
        except (binascii.Error, ValueError):
            raise DecodeError(f"this {what} has 64 characters that are not all hex") from None
    return _decode_base32(text, what)


def _decode_base32(text: str, what: str) -> bytes:
    if len(text) != 52:
        raise DecodeError(f"a {what} has 64 hex digits or 52 of base32, not {len(text)} characters")
    try:
        return decode_base32(text)
    except DecodeError as error:
        raise DecodeError(f"this {what} is {error}") from None


@lru_cache(maxsize=CHECKED_KEYS_LIMIT)
def _is_curve_point(data: bytes) -> bool:
    """Say whether the compressed point has an x: RFC 8032, 5.1.3, with y reduced modulo p."""
    y = (int.from_bytes(data, "little") & ((1 << 255) - 1)) % _P
    y_squared = y * y % _P
    numerator = y_squared - 1
    denominator = _D * y_squared + 1
    residue = pow(numerator * denominator % _P, (_P - 1) // 2, _P)
    return residue in (0, 1)
