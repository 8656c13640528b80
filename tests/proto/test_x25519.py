"""Keys of Tailscale's dialect: how they look. What they do, the vectors of DERP try."""

from __future__ import annotations

from iroh_proto.x25519 import X25519PublicKey

KEY = X25519PublicKey(bytes(range(32)))


def test_a_key_is_written_in_hex() -> None:
    assert str(KEY) == bytes(range(32)).hex()
    assert repr(KEY) == f"X25519PublicKey({KEY})"
    assert KEY.fmt_short() == "0001020304"
