"""TLS identities."""

from __future__ import annotations

import random

from cryptography import x509

from fuzz import seeds
from fuzz.target import Choices, Target, decoded
from iroh_proto.identity.certificate import (
    build_certificate,
    examine_certificate,
    make_certificate_key,
)
from iroh_proto.identity.raw_key import SPKI_SIZE, decode_spki, encode_spki
from iroh_proto.key import KEY_SIZE, NodeId, SecretKey

OURS = SecretKey.generate(random.Random(601))
CERTIFICATE_KEY = make_certificate_key(random.Random(602))
OUR_CERTIFICATE = build_certificate(OURS, certificate_key=CERTIFICATE_KEY, serial=77)
_UNIX_TIME = 1_700_000_000.0


def check_certificate(data: bytes) -> None:
    """A certificate is accepted only if each byte that its owner signed is as it was signed."""
    examined = decoded(examine_certificate, [data], unix_time=_UNIX_TIME)
    if examined is not None:
        known = x509.load_der_x509_certificate(data).tbs_certificate_bytes
        assert known in _SIGNED
        assert decoded(examine_certificate, [data], unix_time=-1.0e12) is None
        assert decoded(examine_certificate, [data, data], unix_time=_UNIX_TIME) is None
    choices = Choices(data)
    place, flip = int.from_bytes(choices.take(2), "big"), 1 + choices.below(255)
    bent = bytearray(OUR_CERTIFICATE)
    bent[place % len(bent)] ^= flip
    assert decoded(examine_certificate, [bytes(bent)], unix_time=_UNIX_TIME) is None


def check_raw_key(data: bytes) -> None:
    """What decodes as a raw public key encodes to the same bytes, and every node id decodes."""
    node_id = decoded(decode_spki, data)
    assert node_id is None or encode_spki(node_id) == data
    own = decoded(NodeId, data[-KEY_SIZE:])
    if own is not None:
        assert decode_spki(encode_spki(own)) == own
        assert len(encode_spki(own)) == SPKI_SIZE


def certificates() -> list[bytes]:
    """Return certificates of real nodes, good and bad, and ours."""
    return [OUR_CERTIFICATE, *(data for data in seeds.packets("identity.json") if data[0] == 0x30)]


def _signed_parts() -> frozenset[bytes]:
    """Return what owners signed in the good ones of the certificates."""
    return frozenset(
        x509.load_der_x509_certificate(data).tbs_certificate_bytes
        for data in certificates()
        if decoded(examine_certificate, [data], unix_time=_UNIX_TIME) is not None
    )


_SIGNED = _signed_parts()

TARGETS = {
    "certificate": Target(
        check_certificate,
        # The short ones bend ours in one place each.
        lambda: [*certificates(), *(bytes((0, place, 1)) for place in range(0, 256, 8))],
    ),
    "raw-key": Target(
        check_raw_key, lambda: [*seeds.packets("identity.json"), encode_spki(OURS.public)]
    ),
}
