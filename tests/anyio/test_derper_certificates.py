"""Certificates that change while a server runs."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest
from cryptography.hazmat.primitives import serialization

from iroh_anyio.derper.certificates import Certificate, CertificateError
from tests.anyio.tls_files import Authority


class Files:
    """The two files of a server, and who issues them."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority.make()
        self.certificate_path = folder / "server.crt"
        self.key_path = folder / "server.key"
        self.issue(1)

    def issue(self, serial: int) -> None:
        self.authority.issue(self.certificate_path, self.key_path, serial)

    def load(self) -> Certificate:
        return Certificate(self.certificate_path, self.key_path)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def shake_hands(server: ssl.SSLContext, files: Files) -> int:
    """Return the serial number of the certificate that a client sees."""
    client = ssl.create_default_context(
        cafile=files.authority.write(Path(files.key_path.parent / "ca"))
    )
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (ours, theirs, ours, theirs):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    shown = ours.getpeercert()
    assert shown is not None
    return int(str(shown["serialNumber"]), 16)


def test_new_files_are_taken_up(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    certificate = files.load()
    assert shake_hands(certificate.context, files) == 1
    assert certificate.expires > datetime.now(UTC) + timedelta(hours=23)
    assert not certificate.reload()
    files.issue(2)
    assert shake_hands(certificate.context, files) == 1
    assert certificate.reload()
    assert shake_hands(certificate.context, files) == 2


def test_a_link_to_other_files_is_noticed(files: Files, tmp_path: Path) -> None:
    """As certbot changes them: the links in its live folder come to point elsewhere."""
    other = tmp_path / "other"
    other.mkdir()
    later = Files(other)
    later.authority = files.authority
    later.issue(2)
    link, key_link = tmp_path / "fullchain.pem", tmp_path / "privkey.pem"
    link.symlink_to(files.certificate_path)
    key_link.symlink_to(files.key_path)
    certificate = Certificate(link, key_link)
    for path, target in ((link, later.certificate_path), (key_link, later.key_path)):
        path.unlink()
        path.symlink_to(target)
    assert certificate.reload()
    assert shake_hands(certificate.context, files) == 2


def break_certificate(files: Files) -> None:
    files.certificate_path.write_text("no certificate")


def break_key(files: Files) -> None:
    files.key_path.write_text("")


def remove_key(files: Files) -> None:
    files.key_path.unlink()


def issue_half(files: Files) -> None:
    files.authority.issue(files.certificate_path, files.key_path.with_name("elsewhere"), 2)


def encrypt_key(files: Files) -> None:
    key = serialization.load_pem_private_key(files.key_path.read_bytes(), None)
    files.key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
    )


@pytest.mark.parametrize(
    "harm", [break_certificate, break_key, remove_key, issue_half, encrypt_key]
)
def test_files_that_cannot_be_used_leave_the_old_certificate(
    files: Files, harm: object, caplog: pytest.LogCaptureFixture
) -> None:
    assert callable(harm)
    certificate = files.load()
    harm(files)
    with caplog.at_level(logging.ERROR):
        assert not certificate.reload()
    assert "keeping the old certificate: " in caplog.text
    assert str(files.key_path) in caplog.text or str(files.certificate_path) in caplog.text
    assert shake_hands(certificate.context, files) == 1
    caplog.clear()
    assert not certificate.reload()
    assert caplog.text == ""  # said once
    files.issue(3)
    assert certificate.reload()
    assert shake_hands(certificate.context, files) == 3
    harm(files)
    with pytest.raises(CertificateError):
        files.load()


def test_files_that_become_readable_later_are_taken_up(
    files: Files, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a hook that writes them first and sets their mode then."""
    certificate = files.load()
    files.issue(2)
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(Path, "open", refuse)  # a mode would not keep root from reading
        assert not certificate.reload()
        assert not certificate.reload()
    assert caplog.text.count("keeping the old certificate: ") == 1
    assert certificate.reload()
    assert shake_hands(certificate.context, files) == 2
    assert not certificate.reload()


def test_a_key_in_the_place_of_the_certificate_is_seen(files: Files) -> None:
    words = f"^{files.key_path} is to be a certificate, and holds a private key: is it swapped with"
    with pytest.raises(CertificateError, match=words):
        Certificate(files.key_path, files.certificate_path)


def refuse(path: Path, mode: str) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)


@pytest.mark.anyio
async def test_a_watch_takes_up_new_files(files: Files) -> None:
    certificate = files.load()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(certificate.watch, 0.01)
        files.issue(2)
        with anyio.fail_after(5):
            while shake_hands(certificate.context, files) != 2:  # noqa: ASYNC110 - none tells
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
