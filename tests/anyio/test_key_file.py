"""Secret keys in files: made for their owner alone, read again, and never shown."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from iroh_anyio import load_or_create_secret_key
from iroh_anyio.key_file import create_secret_key
from iroh_proto import DecodeError, SecretKey

KEY = SecretKey(bytes(range(32)))


def test_a_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "key"
    made = load_or_create_secret_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_or_create_secret_key(str(path)) == made
    assert SecretKey.from_str(path.read_text()) == made
    with pytest.raises(FileExistsError):
        create_secret_key(path)


@pytest.mark.parametrize("text", [KEY.to_bytes().hex(), KEY.to_base32() + "\n", KEY.to_openssh()])
def test_every_form_of_a_key_is_read(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(0o600)
    assert load_or_create_secret_key(path) == KEY
    assert caplog.text == ""


def test_a_key_that_others_may_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "key"
    path.write_text(KEY.to_base32())
    path.chmod(0o640)
    assert load_or_create_secret_key(path) == KEY
    assert f"chmod 600 {path}" in caplog.text
    assert KEY.to_base32() not in caplog.text


@pytest.mark.parametrize("content", [b"", b"secret" * 8 + b"\n", b"\xff" * 32])
def test_a_file_without_a_key_is_named_but_not_quoted(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(DecodeError, match="holds no secret key") as caught:
        load_or_create_secret_key(path)
    assert str(path) in str(caught.value)
    assert "secretsecret" not in str(caught.value)
    assert path.read_bytes() == content
