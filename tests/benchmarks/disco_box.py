"""Sealing and opening disco messages with a cached key, against PyNaCl's XChaCha20 AEAD."""

from __future__ import annotations

from nacl import bindings

from iroh_proto.box import BOX_NONCE_SIZE, SharedBox
from iroh_proto.key import SecretKey
from tests.benchmarks.timing import interleaved, seconds_per_call

MESSAGE = bytes(128)
CALLS = 5_000


def run() -> dict[str, float]:
    """Return the rates of sealing and opening over those of the AEAD."""
    box = SharedBox(SecretKey(bytes(32)), SecretKey(b"\1" * 32).public)
    nonce, key = b"\2" * BOX_NONCE_SIZE, b"\3" * 32
    sealed = box.seal(MESSAGE, nonce)
    encrypt = bindings.crypto_aead_xchacha20poly1305_ietf_encrypt
    decrypt = bindings.crypto_aead_xchacha20poly1305_ietf_decrypt
    encrypted = encrypt(MESSAGE, None, nonce, key)
    times = interleaved(
        {
            "seal": lambda: seconds_per_call(lambda: box.seal(MESSAGE, nonce), CALLS),
            "open": lambda: seconds_per_call(lambda: box.open(sealed), CALLS),
            "encrypt": lambda: seconds_per_call(lambda: encrypt(MESSAGE, None, nonce, key), CALLS),
            "decrypt": lambda: seconds_per_call(
                lambda: decrypt(encrypted, None, nonce, key), CALLS
            ),
        }
    )
    return {
        "seal": times["encrypt"] / times["seal"],
        "open": times["decrypt"] / times["open"],
    }
