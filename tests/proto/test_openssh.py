"""OpenSSH key files: real ones to the byte, and every way of being no key file."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_ssh_private_key,
)
from hypothesis import given
from hypothesis import strategies as st

from iroh_proto.errors import DecodeError
from iroh_proto.key import SecretKey

FILES: list[dict[str, str]] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "identity.json").read_text()
)["openssh"]
KEY = SecretKey(bytes(range(32)))
BEGIN, END = KEY.to_openssh().splitlines()[0], KEY.to_openssh().splitlines()[-1]
BLOB = base64.b64decode("".join(KEY.to_openssh().splitlines()[1:-1]))


def armour(blob: bytes) -> str:
    return "\n".join([BEGIN, base64.b64encode(blob).decode(), END, ""])


def write_with_library(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()


@pytest.mark.parametrize("case", FILES, ids=lambda case: case["source"])
def test_golden_files_are_written_and_read_to_the_byte(case: dict[str, str]) -> None:
    key = SecretKey.from_openssh(case["pem"])
    assert key.to_bytes().hex() == case["secret_seed_hex"]
    assert key.public.hex() == case["public_hex"]
    assert SecretKey.from_str(case["secret_seed_hex"]).to_openssh() == case["pem"]


@given(st.binary(min_size=32, max_size=32))
def test_every_key_survives_and_others_read_it(seed: bytes) -> None:
    text = SecretKey(seed).to_openssh()
    assert SecretKey.from_openssh(text).to_bytes() == seed
    read = load_ssh_private_key(text.encode(), None)
    assert isinstance(read, ed25519.Ed25519PrivateKey)
    assert read.private_bytes_raw() == seed


@given(st.binary(min_size=32, max_size=32))
def test_files_of_others_are_read(seed: bytes) -> None:
    text = write_with_library(ed25519.Ed25519PrivateKey.from_private_bytes(seed))
    assert SecretKey.from_openssh(text).to_bytes() == seed


def test_a_comment_windows_line_ends_and_blank_lines_around_do_no_harm() -> None:
    comment = b"me@here"  # 7 bytes, which with the 5 of padding make 12: 8 and 4 again
    section_size = 136 + 8
    start = BLOB.index(b"\0\0\0\x88") + 4
    section = BLOB[start : start + 127] + b"\0\0\0\x07" + comment
    section += bytes(range(1, 1 + section_size - len(section)))
    blob = BLOB[: start - 4] + section_size.to_bytes(4, "big") + section
    text = "\n\n" + armour(blob).replace("\n", "\r\n") + "\n"
    assert SecretKey.from_openssh(text) == KEY


def test_an_encrypted_file_is_named_as_such() -> None:
    blob = BLOB.replace(b"\0\0\0\x04none", b"\0\0\0\x0aaes256-ctr", 1)
    with pytest.raises(DecodeError, match="encrypted"):
        SecretKey.from_openssh(armour(blob))


def test_another_kind_of_key_is_named_as_such() -> None:
    key = ec.derive_private_key(7, ec.SECP256R1())
    with pytest.raises(DecodeError, match="not an Ed25519 key"):
        SecretKey.from_openssh(write_with_library(key))


def patched(offset_of: bytes, replacement: bytes, occurrence: int = 1) -> str:
    """Replace one occurrence of some bytes of a good file by as many others."""
    assert len(offset_of) == len(replacement)
    position = -1
    for _ in range(occurrence):
        position = BLOB.index(offset_of, position + 1)
    return armour(BLOB[:position] + replacement + BLOB[position + len(replacement) :])


def long_padded(padding: int) -> str:
    """Return a good file but for as many bytes of padding, which repeat themselves."""
    start = BLOB.index(b"\0\0\0\x88") + 4
    section = BLOB[start : start + 131] + bytes(number & 0xFF for number in range(1, 1 + padding))
    blob = BLOB[: start - 4] + len(section).to_bytes(4, "big") + section
    return armour(blob)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "stands between"),
        (BEGIN, "stands between"),
        ("a" * 64, "stands between"),
        (f"{BEGIN}\nno base64!\n{END}\n", "not base64"),
        (f"{BEGIN}\nb3\u00e9\n{END}\n", "not base64"),
        (armour(b""), "cut short"),
        (armour(b"openssh-key-v2\0" + BLOB[15:]), "not an OpenSSH private key"),
        (armour(BLOB[:-40]), "cut short"),
        (patched(b"\0\0\0\x01", b"\0\0\0\x02"), "one key, not 2"),
        (patched(KEY.public[:4], b"\1\2\3\4", occurrence=1), "different public keys"),
        (patched(KEY.public[:4], b"\1\2\3\4", occurrence=2), "different public keys"),
        (patched(KEY.public[:4], b"\1\2\3\4", occurrence=3), "different public keys"),
        (patched(bytes(range(8, 32)), bytes(24)), "do not match"),
        (patched(b"\0\0\0\x88" + bytes(4), b"\0\0\0\x88" + b"\0\0\0\1"), "check words"),
        (patched(b"\1\2\3\4\5", b"\1\2\3\4\4", occurrence=2), "padding"),
        (long_padded(301), "padding"),
        (patched(b"\0\0\0\x20" + KEY.public[:4], b"\0\0\0\x1f" + KEY.public[:4]), "31 bytes"),
    ],
)
def test_bad_files_are_refused_with_a_reason(text: str, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        SecretKey.from_openssh(text)


def test_errors_never_repeat_the_secret() -> None:
    for size in range(len(BLOB)):
        with pytest.raises(DecodeError) as caught:
            SecretKey.from_openssh(armour(BLOB[:size]))
        assert "AAECAwQ" not in str(caught.value)
        assert caught.value.__cause__ is None


@given(st.binary(max_size=300) | st.binary(max_size=200).map(lambda tail: BLOB[:60] + tail))
def test_any_content_raises_nothing_but_decode_errors(blob: bytes) -> None:
    with suppress(DecodeError):
        SecretKey.from_openssh(armour(blob))


@given(st.text(max_size=200))
def test_any_text_raises_nothing_but_decode_errors(text: str) -> None:
    for candidate in (text, f"{BEGIN}\n{text}\n{END}"):
        with pytest.raises(DecodeError):
            SecretKey.from_openssh(candidate)
