"""X25519 keys, and the NaCl box between two of them.

Relays of Tailscale name their clients by such keys. A node id has one, ``u = (1 + y) / (1 - y)``,
and each of them two node ids: a point and its negative share ``u``. So a node id is never computed
from an X25519 key, only recognized.

A box is ``crypto_box`` of NaCl: X25519, HSalsa20, XSalsa20-Poly1305. Sealed::

    nonce (24) || tag (16) || ciphertext (n)

Source: Tailscale ``types/key/node.go``; Bernstein, "Cryptography in NaCl", sections 5 to 9.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Self

from nacl import bindings
from nacl.exceptions import CryptoError
from nacl.exceptions import RuntimeError as SodiumError

from iroh_proto.errors import DecodeError, LocalProtocolError
from iroh_proto.key import CHECKED_KEYS_LIMIT, KEY_SIZE, NodeId, SecretKey

NACL_NONCE_SIZE = 24
NACL_OVERHEAD = NACL_NONCE_SIZE + 16
"""Bytes by which a sealed message is longer than its plaintext: nonce and tag."""


class X25519PublicKey(bytes):
    """An X25519 public key: any 32 bytes. It is its own bytes, ``str(key)`` is lower-case hex."""

    __slots__ = ()

    def __new__(cls, data: bytes) -> Self:
        """Wrap 32 bytes.

        :raises DecodeError: if they are not 32.
        """
        if len(data) != KEY_SIZE:
            raise DecodeError(f"an X25519 key is {KEY_SIZE} bytes, not {len(data)}")
        return super().__new__(cls, data)

    def fmt_short(self) -> str:
        """Return the first 10 hex digits, as :meth:`NodeId.fmt_short` does."""
        return self[:5].hex()

    def __str__(self) -> str:
        return self.hex()

    def __repr__(self) -> str:
        return f"X25519PublicKey({self.hex()})"


class X25519SecretKey:
    """An X25519 secret key. It shows itself nowhere: ``repr`` names the public key only."""

    __slots__ = ("_secret", "public")

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_SIZE:
            raise DecodeError(f"a secret key is {KEY_SIZE} bytes, not {len(secret)}")
        self._secret = bytes(secret)
        self.public = X25519PublicKey(bindings.crypto_scalarmult_base(self._secret))

    @classmethod
    def of(cls, secret_key: SecretKey) -> Self:
        """Return the X25519 key of a node, whose public half is :func:`x25519_of` its id."""
        return cls(secret_key.to_x25519())

    def to_bytes(self) -> bytes:
        """Return the 32 bytes. Keep them secret."""
        return self._secret

    def __repr__(self) -> str:
        return f"X25519SecretKey(public={self.public})"


class NaclBox:
    """Seals and opens messages between the owner of ``secret_key`` and ``peer``.

    :raises DecodeError: if ``peer`` is a point of small order, with which no secret can be shared.
    """

    __slots__ = ("_shared",)

    def __init__(self, secret_key: X25519SecretKey, peer: X25519PublicKey) -> None:
        try:
            self._shared = bindings.crypto_box_beforenm(bytes(peer), secret_key.to_bytes())
        except SodiumError:
            raise DecodeError(f"no honest key, a point of small order: {peer}") from None

    def seal(self, plaintext: bytes, nonce: bytes) -> bytes:
        """Return the sealed message, the nonce in front.

        :param nonce: 24 bytes from a random source, never used twice for the same peer.
        :raises LocalProtocolError: if the nonce is not 24 bytes.
        """
        if len(nonce) != NACL_NONCE_SIZE:
            raise LocalProtocolError(f"a nonce is {NACL_NONCE_SIZE} bytes, not {len(nonce)}")
        return nonce + bindings.crypto_box_afternm(plaintext, nonce, self._shared)

    def open(self, sealed: bytes) -> bytes:
        """Return the plaintext of a message that the peer (or this side) sealed.

        :raises DecodeError: if it is too short or was not sealed with this box's key.
        """
        if len(sealed) < NACL_OVERHEAD:
            raise DecodeError(f"a sealed message has {NACL_OVERHEAD} bytes or more: {len(sealed)}")
        nonce, text = sealed[:NACL_NONCE_SIZE], sealed[NACL_NONCE_SIZE:]
        try:
            return bindings.crypto_box_open_afternm(text, nonce, self._shared)
        except CryptoError:
            raise DecodeError("this sealed message does not open") from None


@lru_cache(maxsize=CHECKED_KEYS_LIMIT)
def x25519_of(node_id: bytes) -> X25519PublicKey:
    """Return the X25519 key of a node.

    :raises DecodeError: if it is no node id, or none that an honest node can have.
    """
    return X25519PublicKey(NodeId(node_id).to_x25519())
