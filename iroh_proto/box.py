"""The box that seals disco messages between two nodes: X25519, XChaCha20 and Poly1305.

This is libsodium's ``crypto_box_curve25519xchacha20poly1305`` with both keys derived from the
nodes' Ed25519 keys. It is *not* the IETF XChaCha20-Poly1305 AEAD. A sealed message is::

    tag (16) || ciphertext (n) || nonce (24)

The keystream is the original ChaCha20 (64-bit block counter from 0, 8-byte nonce) under
``HChaCha20(box key, nonce[:16])``, where ``box key`` is ``HChaCha20(X25519 result, zeros)``. Its
first 32 bytes key Poly1305 and the message is encrypted from byte 32 on. The tag covers the bare
ciphertext: no lengths, no padding.

Source: iroh v0.12.0 ``iroh-net/src/key/encryption.rs``, v0.35.0 ``iroh/src/key.rs``; RustCrypto
nacl-compat ``crypto_box`` 0.9.1 (``ChaChaBox``); draft-irtf-cfrg-xchacha section 2.2.
"""

from __future__ import annotations

import hmac
from typing import Self

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms
from cryptography.hazmat.primitives.poly1305 import Poly1305
from nacl import bindings

from iroh_proto.errors import DecodeError, LocalProtocolError
from iroh_proto.key import NodeId, SecretKey

BOX_NONCE_SIZE = 24
BOX_TAG_SIZE = 16
BOX_OVERHEAD = BOX_TAG_SIZE + BOX_NONCE_SIZE
"""Bytes by which a sealed message is longer than its plaintext."""

_POLY1305_KEY_SIZE = 32
_SUBKEY_SIZE = 32
_FIRST_BLOCK = bytes(8)  # the block counter: the stream begins at block 0
_NO_TEXT = bytes(_POLY1305_KEY_SIZE)  # encrypting zeros gives the keystream itself


class SharedBox:
    """Seals and opens messages between the owner of ``secret_key`` and ``peer``.

    Both directions share one key. Making a box costs two operations on the curve (about 80 us)
    and using it some 10 us, so it should be kept, within limits, for peers that proved themselves.
    A box has scratch memory of its own: use it from one thread at a time.

    :raises DecodeError: if ``peer`` is no key that an honest node can have: a point of small or
        mixed order.
    """

    __slots__ = ("_hchacha20",)

    def __init__(self, secret_key: SecretKey, peer: NodeId) -> None:
        # to_x25519 lets only points of prime order pass, whose product with a clamped scalar is
        # never zero, so the all-zero secret that libsodium refuses cannot come up here.
        shared = bindings.crypto_scalarmult(secret_key.to_x25519(), peer.to_x25519())
        self._hchacha20 = _box_key(shared)

    @classmethod
    def from_shared_secret(cls, shared: bytes) -> Self:
        """Return the box for the 32-byte result of X25519, however it was agreed on."""
        box = cls.__new__(cls)
        box._hchacha20 = _box_key(shared)
        return box

    def seal(self, plaintext: bytes, nonce: bytes) -> bytes:
        """Return the sealed message.

        :param nonce: 24 bytes from a random source, never used twice for the same peer.
        :raises LocalProtocolError: if the nonce is not 24 bytes.
        """
        if len(nonce) != BOX_NONCE_SIZE:
            raise LocalProtocolError(f"a nonce is {BOX_NONCE_SIZE} bytes, not {len(nonce)}")
        stream = self._keystream(nonce)
        text = stream.update(_NO_TEXT + plaintext)
        ciphertext = text[_POLY1305_KEY_SIZE:]
        tag = Poly1305.generate_tag(text[:_POLY1305_KEY_SIZE], ciphertext)
        return tag + ciphertext + nonce

    def open(self, sealed: bytes) -> bytes:
        """Return the plaintext of a message that the peer (or this node) sealed.

        :raises DecodeError: if it is too short or was not sealed with this box's key.
        """
        if len(sealed) < BOX_OVERHEAD:
            raise DecodeError(f"a sealed message has {BOX_OVERHEAD} bytes or more: {len(sealed)}")
        stream = self._keystream(sealed[-BOX_NONCE_SIZE:])
        ciphertext = sealed[BOX_TAG_SIZE:-BOX_NONCE_SIZE]
        tag = Poly1305.generate_tag(stream.update(_NO_TEXT), ciphertext)
        if not hmac.compare_digest(tag, sealed[:BOX_TAG_SIZE]):
            raise DecodeError("this sealed message does not open")
        return stream.update(ciphertext)

    def _keystream(self, nonce: bytes) -> CipherContext:
        subkey = self._hchacha20.derive(nonce)
        return Cipher(algorithms.ChaCha20(subkey, _FIRST_BLOCK + nonce[16:]), None).encryptor()


class HChaCha20:
    """Derives keys from one 32-byte key (draft-irtf-cfrg-xchacha section 2.2).

    libsodium's secretstream does this as its first step and leaves the result in the first field
    of its state, a struct that its header publishes. That is twice as fast as one ChaCha20 block
    with the input words taken out again, the other way to have it without curve or cipher code
    here.
    """

    __slots__ = ("_key", "_state")

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._state = bindings.crypto_secretstream_xchacha20poly1305_state()

    def derive(self, nonce: bytes) -> bytes:
        """Return the 32-byte key for the first 16 bytes of a 24-byte nonce."""
        state = self._state
        bindings.crypto_secretstream_xchacha20poly1305_init_pull(state, nonce, self._key)
        return bytes(state.statebuf[0:_SUBKEY_SIZE])  # cffi wants the 0


def _box_key(shared: bytes) -> HChaCha20:
    return HChaCha20(HChaCha20(shared).derive(bytes(BOX_NONCE_SIZE)))
