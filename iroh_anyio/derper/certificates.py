"""The certificate of a server, read again when its files change."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import anyio
from cryptography import x509

logger = logging.getLogger("iroh_anyio.derper.certificates")

WATCH_INTERVAL = 10.0
"""Seconds between looks at the files. Two calls of stat(2) each time."""

_Fingerprint = tuple[tuple[int, int, int], ...]


class CertificateError(ValueError):
    """A certificate and key that cannot be used. The message names the file."""


class Certificate:
    """A certificate chain and its key, in two PEM files.

    :ivar expires: until when it is valid.
    :ivar on_new: called when there is a new one.
    :ivar context: serves TLS with what was read last. Connections that stand keep what they began
        with.
    :raises CertificateError: if the files cannot be read, or do not belong together.
    """

    def __init__(self, certificate_path: Path, key_path: Path) -> None:
        self.certificate_path = certificate_path
        self.key_path = key_path
        self.expires: datetime
        self.on_new: Callable[[], None] | None = None
        self._seen = self._fingerprint()
        self._has_failed = False
        self.context = self._load()

    def current(self) -> ssl.SSLContext:
        """Return the context to use for a new connection."""
        return self.context

    def reload(self) -> bool:
        """Read the files again if they changed; return whether there is a new certificate.

        What cannot be used is logged once, and the old certificate stays. That is so as well when
        a writer is caught between one file and the other; it ends with the next look. Files that
        could not be used are read at each look: that they may be read does not show in them.
        """
        seen = self._fingerprint()
        has_changed = seen != self._seen
        if not has_changed and not self._has_failed:
            return False
        self._seen = seen
        try:
            self.context = self._load()
        except CertificateError as error:
            self._has_failed = True
            if has_changed:
                logger.error("keeping the old certificate: %s", error)
            return False
        self._has_failed = False
        logger.info("new certificate from %s, until %s", self.certificate_path, self.expires)
        if self.on_new is not None:
            self.on_new()
        return True

    async def watch(self, interval: float = WATCH_INTERVAL) -> None:
        """Look at the files from time to time, until cancelled."""
        while True:
            await anyio.sleep(interval)
            self.reload()

    def _fingerprint(self) -> _Fingerprint:
        """Return what changes when a file is written or replaced, also by way of a link."""
        return tuple(_stat(path) for path in (self.certificate_path, self.key_path))

    def _load(self) -> ssl.SSLContext:
        for path in (self.certificate_path, self.key_path):
            try:
                path.open("rb").close()
            except OSError as error:
                raise CertificateError(f"{path}: {error.strerror}") from None
        # A new context each time, since a pair that does not fit spoils the one it is loaded into.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self.certificate_path, self.key_path, password=_no_password)
            chain = x509.load_pem_x509_certificates(self.certificate_path.read_bytes())
        except (OSError, ValueError) as error:
            if _is_key(self.certificate_path):
                raise CertificateError(
                    f"{self.certificate_path} is to be a certificate, and holds a private key: is "
                    f"it swapped with {self.key_path}?"
                ) from None
            reason = getattr(error, "reason", None)
            raise CertificateError(
                f"{self.certificate_path} and {self.key_path} are no certificate with its key"
                + (f" ({reason.lower().replace('_', ' ')})" if reason else "")
            ) from None
        self.expires = chain[0].not_valid_after_utc
        return context


def _is_key(path: Path) -> bool:
    try:
        pem = path.read_bytes()
    except OSError:
        return False
    return b"PRIVATE KEY-----" in pem and b"BEGIN CERTIFICATE-----" not in pem


def _stat(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def _no_password() -> str:
    """Have an encrypted key refused, where OpenSSL would ask at the terminal."""
    return ""
