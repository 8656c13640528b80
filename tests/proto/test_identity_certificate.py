"""Certificates of real nodes, our own, and every way of being refused."""

from __future__ import annotations

import datetime
import json
import random
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from iroh_proto.errors import DecodeError
from iroh_proto.identity.certificate import (
    ECDSA_SECP256R1_SHA256,
    ECDSA_SECP384R1_SHA384,
    ED25519,
    EXTENSION_OID,
    SERIAL_BITS,
    build_certificate,
    examine_certificate,
    make_certificate_key,
    make_serial,
    verify_certificate,
)
from iroh_proto.key import SecretKey

PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey

REAL_CERTIFICATES: list[dict[str, str]] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "identity.json").read_text()
)["libp2p_certificates"]
NOW = 1_700_000_000.0
NOT_BEFORE = datetime.datetime(1975, 1, 1, tzinfo=datetime.UTC)
NOT_AFTER = datetime.datetime(4096, 1, 1, tzinfo=datetime.UTC)
NODE = SecretKey(bytes(range(32)))
CERTIFICATE_KEY = make_certificate_key(random.Random(1))
CERTIFICATE = build_certificate(NODE, certificate_key=CERTIFICATE_KEY, serial=1)
PREFIX = b"libp2p-tls-handshake:"


def vouch(key: PrivateKey, node: SecretKey = NODE, prefix: bytes = PREFIX) -> bytes:
    """Make the value of the extension in which a node signs for a certificate's key."""
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    signature = node.sign(prefix + spki)
    return b"\x30\x64\x04\x20" + node.public + b"\x04\x40" + signature


def make_certificate(
    key: PrivateKey = CERTIFICATE_KEY,
    *,
    extensions: Sequence[tuple[x509.ObjectIdentifier, bytes, bool]] | None = None,
    signer: PrivateKey | None = None,
    digest: hashes.HashAlgorithm | None = None,
) -> bytes:
    """Make a certificate as no honest node would, with the library's builder."""
    if extensions is None:
        extensions = [(EXTENSION_OID, vouch(key), True)]
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOT_BEFORE)
        .not_valid_after(NOT_AFTER)
    )
    for oid, value, critical in extensions:
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, value), critical)
    if not isinstance(key, ed25519.Ed25519PrivateKey) and digest is None:
        digest = hashes.SHA256()
    return builder.sign(signer or key, digest).public_bytes(Encoding.DER)  # type: ignore[arg-type]


@pytest.mark.parametrize("case", REAL_CERTIFICATES, ids=lambda case: case["source"])
def test_certificates_of_real_nodes_name_them(case: dict[str, str]) -> None:
    verified = examine_certificate([bytes.fromhex(case["der_hex"])], unix_time=NOW)
    assert verified.node_id.hex() == case["node_id_hex"]
    assert verified.signature_scheme == ECDSA_SECP256R1_SHA256


def masked(der: bytes) -> bytes:
    """Cut out what differs from node to node: the key, the identity and the last signature."""
    certificate = x509.load_der_x509_certificate(der)
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    identity = certificate.extensions[0].value.public_bytes()
    tbs = certificate.tbs_certificate_bytes
    assert tbs.count(point) == tbs.count(identity) == 1
    return tbs.replace(point, b"point").replace(identity[4:36], b"id").replace(identity[38:], b"")


@pytest.mark.parametrize("case", REAL_CERTIFICATES, ids=lambda case: case["source"])
def test_ours_is_laid_out_to_the_byte_as_a_real_one(case: dict[str, str]) -> None:
    real = bytes.fromhex(case["der_hex"])
    serial = x509.load_der_x509_certificate(real).serial_number
    if serial.bit_length() > SERIAL_BITS:  # rcgen may use one bit more than RFC 5280 allows
        real = real.replace(serial.to_bytes(21, "big"), bytes([0x7F]) * 20)
        real = real.replace(b"\x02\x15\x7f", b"\x02\x14\x7f")
        real = bytes.fromhex("3082017f30820125") + real[8:]
        serial = int.from_bytes(bytes([0x7F]) * 20, "big")
    ours = build_certificate(NODE, certificate_key=CERTIFICATE_KEY, serial=serial)
    assert masked(ours) == masked(real)
    outer_algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    assert ours.count(outer_algorithm) == real.count(outer_algorithm) == 2


def test_the_same_arguments_give_the_same_certificate() -> None:
    again = build_certificate(NODE, certificate_key=CERTIFICATE_KEY, serial=1)
    assert again == CERTIFICATE
    assert build_certificate(NODE, certificate_key=CERTIFICATE_KEY, serial=2) != CERTIFICATE


def test_the_same_source_of_chance_gives_the_same_key_and_serial() -> None:
    keys = [make_certificate_key(random.Random(7)).private_numbers() for _ in range(2)]
    assert keys[0] == keys[1]
    serials = {make_serial(random.Random(seed)) for seed in range(50)}
    assert len(serials) == 50
    assert all(0 < serial < 1 << SERIAL_BITS for serial in serials)


@given(st.binary(min_size=32, max_size=32), st.randoms())
def test_every_certificate_built_verifies_and_names_its_node(
    seed: bytes, rng: random.Random
) -> None:
    node = SecretKey(seed)
    key = make_certificate_key(rng)
    der = build_certificate(node, certificate_key=key, serial=make_serial(rng))
    assert verify_certificate([der], unix_time=NOW) == node.public
    public_key = examine_certificate([der], unix_time=NOW).public_key
    assert isinstance(public_key, ec.EllipticCurvePublicKey)
    assert public_key.public_numbers() == key.public_key().public_numbers()


@pytest.mark.parametrize("chain", [[], [CERTIFICATE, CERTIFICATE]], ids=["none", "two"])
def test_there_must_be_exactly_one_certificate(chain: list[bytes]) -> None:
    with pytest.raises(DecodeError, match="exactly one"):
        verify_certificate(chain, unix_time=NOW)


@pytest.mark.parametrize("unix_time", [NOT_BEFORE.timestamp(), NOW, NOT_AFTER.timestamp()])
def test_a_certificate_is_good_from_its_first_to_its_last_second(unix_time: float) -> None:
    assert verify_certificate([CERTIFICATE], unix_time=unix_time) == NODE.public


@pytest.mark.parametrize(
    "unix_time",
    [NOT_BEFORE.timestamp() - 1, NOT_AFTER.timestamp() + 1, float("nan"), float("-inf")],
)
def test_a_certificate_is_bad_at_other_times(unix_time: float) -> None:
    with pytest.raises(DecodeError, match="which is not now"):
        verify_certificate([CERTIFICATE], unix_time=unix_time)


@pytest.mark.parametrize(
    ("key", "digest", "scheme"),
    [
        (CERTIFICATE_KEY, hashes.SHA256(), ECDSA_SECP256R1_SHA256),
        (ec.derive_private_key(7, ec.SECP384R1()), hashes.SHA384(), ECDSA_SECP384R1_SHA384),
        (ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)), None, ED25519),
    ],
    ids=["P-256", "P-384", "Ed25519"],
)
def test_the_scheme_of_the_handshake_follows_from_key_and_signature(
    key: PrivateKey, digest: hashes.HashAlgorithm | None, scheme: int
) -> None:
    verified = examine_certificate([make_certificate(key, digest=digest)], unix_time=NOW)
    assert verified.node_id == NODE.public
    assert verified.signature_scheme == scheme


@pytest.mark.parametrize(
    ("key", "digest"),
    [
        (CERTIFICATE_KEY, hashes.SHA384()),
        (ec.derive_private_key(7, ec.SECP384R1()), hashes.SHA256()),
        (ec.derive_private_key(7, ec.SECP521R1()), hashes.SHA512()),
        (ec.derive_private_key(7, ec.SECP256K1()), hashes.SHA256()),
    ],
    ids=["P-256 with SHA-384", "P-384 with SHA-256", "P-521", "secp256k1"],
)
def test_other_schemes_are_refused(key: PrivateKey, digest: hashes.HashAlgorithm) -> None:
    with pytest.raises(DecodeError, match="unsupported key and signature"):
        verify_certificate([make_certificate(key, digest=digest)], unix_time=NOW)


def test_rsa_is_refused() -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    with pytest.raises(DecodeError, match="is ECDSA or Ed25519"):
        verify_certificate([make_certificate(key)], unix_time=NOW)


def test_the_certificate_must_be_signed_with_its_own_key() -> None:
    der = make_certificate(signer=ec.derive_private_key(7, ec.SECP256R1()))
    with pytest.raises(DecodeError, match="not signed with its own key"):
        verify_certificate([der], unix_time=NOW)


def test_an_ed25519_certificate_must_be_signed_with_its_own_key_too() -> None:
    key, other = (ed25519.Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in range(2))
    with pytest.raises(DecodeError, match="not signed with its own key"):
        verify_certificate([make_certificate(key, signer=other)], unix_time=NOW)


@pytest.mark.parametrize(
    "value",
    [
        vouch(ec.derive_private_key(7, ec.SECP256R1())),
        vouch(CERTIFICATE_KEY, prefix=b"libp2p-tls-handshake"),
        # Under the neutral point this signature of anything passes where checks are not strict.
        b"\x30\x64\x04\x20\x01" + bytes(31) + b"\x04\x40\x01" + bytes(63),
    ],
    ids=["another key", "another prefix", "neutral point"],
)
def test_the_node_must_have_signed_for_the_key(value: bytes) -> None:
    der = make_certificate(extensions=[(EXTENSION_OID, value, True)])
    with pytest.raises(DecodeError, match="did not sign"):
        verify_certificate([der], unix_time=NOW)


GOOD = vouch(CERTIFICATE_KEY)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        GOOD[:-1],
        GOOD + b"\0",
        b"\x31" + GOOD[1:],
        GOOD[:1] + b"\x63" + GOOD[2:],
        GOOD[:2] + b"\x03" + GOOD[3:],
        GOOD[:3] + b"\x21" + GOOD[4:],
        GOOD[:36] + b"\x04\x3f" + GOOD[38:],
        b"\x30\x81\x64" + GOOD[2:],
    ],
)
def test_a_malformed_extension_is_refused(value: bytes) -> None:
    der = make_certificate(extensions=[(EXTENSION_OID, value, True)])
    with pytest.raises(DecodeError, match="extension that names a node is malformed"):
        verify_certificate([der], unix_time=NOW)


def test_a_node_id_that_is_no_point_is_refused() -> None:
    value = GOOD[:4] + b"\x02" + bytes(31) + GOOD[36:]
    der = make_certificate(extensions=[(EXTENSION_OID, value, True)])
    with pytest.raises(DecodeError, match="not a point"):
        verify_certificate([der], unix_time=NOW)


OID_CONTENT = bytes.fromhex("2b0601040183a25a0101")
OTHER_OID = x509.ObjectIdentifier("1.3.6.1.4.1.53594.1.2")


def test_a_certificate_without_our_extension_is_refused() -> None:
    der = make_certificate(extensions=[(OTHER_OID, b"\x05\0", False)])
    with pytest.raises(DecodeError, match="names a node"):
        verify_certificate([der], unix_time=NOW)
    with pytest.raises(DecodeError, match="names a node"):
        verify_certificate([make_certificate(extensions=[])], unix_time=NOW)


def test_another_critical_extension_is_refused_and_an_uncritical_one_ignored() -> None:
    ours = (EXTENSION_OID, GOOD, True)
    refused = make_certificate(extensions=[ours, (OTHER_OID, b"\x05\0", True)])
    with pytest.raises(DecodeError, match=r"unknown critical extension.*53594\.1\.2"):
        verify_certificate([refused], unix_time=NOW)
    accepted = make_certificate(extensions=[(OTHER_OID, b"\x05\0", False), ours])
    assert verify_certificate([accepted], unix_time=NOW) == NODE.public


@pytest.mark.parametrize(
    ("oid", "value"),
    [
        ("2.5.29.17", "3004a3023000"),  # a subjectAltName of the kind x400Address
        ("1.3.6.1.5.5.7.1.24", "3003020163"),  # TLS feature 99
        ("2.5.29.17", "3013a411300f310d300b0603550403030400616263"),  # a name of bits
    ],
)
def test_an_extension_that_the_library_has_no_words_for_is_refused(oid: str, value: str) -> None:
    other = (x509.ObjectIdentifier(oid), bytes.fromhex(value), False)
    der = make_certificate(extensions=[(EXTENSION_OID, GOOD, True), other])
    with pytest.raises(DecodeError, match="malformed certificate extensions"):
        verify_certificate([der], unix_time=NOW)


def test_a_date_in_no_year_is_refused() -> None:
    der = make_certificate(extensions=[(EXTENSION_OID, GOOD, True)])
    start = der.index(b"Z", der.index(b"Z") + 1) - 14
    assert der[start : start + 4].isdigit()
    forged = der[:start] + b"00000101000000" + der[start + 14 :]
    with pytest.raises(DecodeError, match="dates of this certificate"):
        examine_certificate([forged], unix_time=NOW)


def test_our_extension_need_not_be_critical() -> None:
    der = make_certificate(extensions=[(EXTENSION_OID, GOOD, False)])
    assert verify_certificate([der], unix_time=NOW) == NODE.public


def test_our_extension_twice_is_refused() -> None:
    der = make_certificate(extensions=[(EXTENSION_OID, GOOD, True), (OTHER_OID, GOOD, True)])
    twice = der.replace(bytes.fromhex("060a2b0601040183a25a0102"), b"\x06\x0a" + OID_CONTENT)
    assert twice.count(OID_CONTENT) == 2
    with pytest.raises(DecodeError, match="malformed certificate extensions"):
        verify_certificate([twice], unix_time=NOW)


def test_the_extension_has_the_number_of_the_specification() -> None:
    assert OID_CONTENT in CERTIFICATE


def compress_key(der: bytes) -> bytes:
    """Put the key of a P-256 certificate in compressed form, shortening all that holds it."""
    plain = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")
    start = der.index(plain)
    point = der[start + len(plain) - 1 : start + len(plain) + 64]
    short = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200")
    compressed = short + bytes([2 + point[-1] % 2]) + point[1:33]
    der = der[:start] + compressed + der[start + len(plain) + 64 :]
    outer, inner = (int.from_bytes(der[at : at + 2], "big") - 32 for at in (2, 6))
    return b"".join(
        [b"\x30\x82", outer.to_bytes(2, "big"), b"\x30\x82", inner.to_bytes(2, "big"), der[8:]]
    )


def test_a_compressed_key_is_refused() -> None:
    # The longest serial keeps the lengths in their three-byte form.
    longest = (1 << SERIAL_BITS) - 1
    der = build_certificate(NODE, certificate_key=CERTIFICATE_KEY, serial=longest)
    with pytest.raises(DecodeError, match="plain form"):
        verify_certificate([compress_key(der)], unix_time=NOW)


def test_a_key_off_its_curve_is_refused() -> None:
    point = CERTIFICATE_KEY.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    der = CERTIFICATE.replace(point, point[:-1] + bytes([point[-1] ^ 1]))
    with pytest.raises(DecodeError, match="of no use"):
        verify_certificate([der], unix_time=NOW)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@pytest.mark.parametrize("serial", [b"\x00", b"\xff"])
def test_a_serial_number_that_is_not_positive_is_refused(serial: bytes) -> None:
    der = CERTIFICATE.replace(b"\x02\x01\x01", b"\x02\x01" + serial, 1)
    with pytest.raises(DecodeError, match="not positive"):
        verify_certificate([der], unix_time=NOW)


def test_what_the_library_warns_of_is_refused_where_warnings_are_errors() -> None:
    der = CERTIFICATE.replace(b"\x02\x01\x01", b"\x02\x01\xff", 1)
    with pytest.raises(DecodeError, match="serial number"):
        verify_certificate([der], unix_time=NOW)


REAL_DER = [bytes.fromhex(case["der_hex"]) for case in REAL_CERTIFICATES]


@given(st.binary(max_size=400))
def test_any_bytes_are_refused_in_one_way(data: bytes) -> None:
    with pytest.raises(DecodeError):
        verify_certificate([data], unix_time=NOW)


@given(st.sampled_from(REAL_DER), st.data())
def test_a_changed_certificate_never_verifies_as_its_node(der: bytes, data: st.DataObject) -> None:
    damaged = bytearray(der)
    position = data.draw(st.integers(min_value=0, max_value=len(der) - 1))
    damaged[position] ^= data.draw(st.integers(min_value=1, max_value=255))
    with pytest.raises(DecodeError):
        verify_certificate([bytes(damaged)], unix_time=NOW)


@given(st.sampled_from(REAL_DER), st.data())
def test_a_cut_or_patched_certificate_raises_nothing_but_decode_errors(
    der: bytes, data: st.DataObject
) -> None:
    start = data.draw(st.integers(min_value=0, max_value=len(der)))
    end = data.draw(st.integers(min_value=start, max_value=min(len(der), start + 8)))
    damaged = der[:start] + data.draw(st.binary(max_size=8)) + der[end:]
    with suppress(DecodeError):
        verify_certificate([damaged], unix_time=NOW)
