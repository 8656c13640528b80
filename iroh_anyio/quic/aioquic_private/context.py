"""aioquic's TLS context with every question of identity left open.

Layouts and meanings are those of ``aioquic/tls.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeAlias, cast

from aioquic import tls
from aioquic._buffer import Buffer

Extension: TypeAlias = tuple[int, bytes]


class Signer(Protocol):
    """What signs CertificateVerify."""

    def sign(self, data: bytes, /, *parameters: Any) -> bytes:
        """Return the signature of ``data``."""


class EncodedCertificate:
    """A certificate entry as aioquic wants it: an object with ``public_bytes``."""

    __slots__ = ("_encoded",)

    def __init__(self, encoded: bytes) -> None:
        self._encoded = encoded

    def public_bytes(self, encoding: object) -> bytes:
        """Return the entry, whatever encoding is asked for."""
        return self._encoded


def make_alert(description: tls.AlertDescription, text: str) -> tls.Alert:
    """Return an alert of any kind; raised inside the handshake it becomes CRYPTO_ERROR."""
    alert = tls.Alert(text)
    alert.description = description
    return alert


class HookedContext(tls.Context):
    """A TLS 1.3 context that leaves every question of identity to its subclass.

    aioquic builds its own context, so instances come about by :meth:`HookedConnection.set_tls`
    and ``__init__`` does not run: a subclass sets itself up in :meth:`prepare`.
    """

    own_scheme: int
    has_peer_certificate: bool

    def prepare(self) -> None:
        """Set up; called once, before anything is sent or received. Extend this."""
        self._request_client_certificate = not self._is_client
        self.has_peer_certificate = False

    def choose_identity(self, client_hello: bytes) -> None:
        """Server: call :meth:`use_identity` to suit the ClientHello message, or raise an alert."""
        raise NotImplementedError

    def check_server_extensions(self, extensions: Sequence[Extension]) -> None:
        """Client: judge the EncryptedExtensions that aioquic does not know; may raise an alert."""
        raise NotImplementedError

    def take_peer_certificates(self, entries: Sequence[bytes]) -> None:
        """Judge the peer's certificate entries (at least one); may raise an alert."""
        raise NotImplementedError

    def check_signature(self, scheme: int, signature: bytes, signed: bytes) -> None:
        """Judge the peer's CertificateVerify; raises an alert if it does not hold."""
        raise NotImplementedError

    def use_identity(
        self,
        *,
        certificate: bytes,
        key: Signer,
        scheme: int,
        accepted_schemes: Sequence[int],
        extensions: Iterable[Extension],
    ) -> None:
        """Present ``certificate``, sign with ``key``, and announce what is accepted."""
        self.certificate = cast(Any, EncodedCertificate(certificate))
        self.certificate_private_key = cast(Any, key)
        self.own_scheme = scheme
        self._signature_algorithms = list(accepted_schemes)
        self.handshake_extensions = [*self.handshake_extensions, *extensions]

    def use_groups(self, groups: Sequence[tls.Group]) -> None:
        """Offer and accept these key exchanges, in this order."""
        self._supported_groups = list(groups)

    def _server_handle_hello(
        self, input_buf: Buffer, initial_buf: Buffer, handshake_buf: Buffer
    ) -> None:
        self.choose_identity(input_buf.data_slice(0, input_buf.capacity))
        super()._server_handle_hello(input_buf, initial_buf, handshake_buf)

    def _client_handle_encrypted_extensions(self, input_buf: Buffer) -> None:
        super()._client_handle_encrypted_extensions(input_buf)
        self.check_server_extensions(self.received_extensions or ())

    def _server_handle_certificate(self, input_buf: Buffer) -> None:
        super()._server_handle_certificate(input_buf)
        if not self.has_peer_certificate:
            raise make_alert(
                tls.AlertDescription.certificate_required, "the client proved no identity"
            )

    def _set_peer_certificate(self, certificate: tls.Certificate) -> None:
        self.take_peer_certificates([entry for entry, _ in certificate.certificates])
        self.has_peer_certificate = True

    def _check_certificate_verify_signature(self, verify: tls.CertificateVerify) -> None:
        whose = tls.SERVER_CONTEXT_STRING if self._is_client else tls.CLIENT_CONTEXT_STRING
        schedule = self.key_schedule
        assert schedule is not None
        self.check_signature(
            verify.algorithm, verify.signature, schedule.certificate_verify_data(whose)
        )

    def _signature_algorithms_for_private_key(self) -> list[tls.SignatureAlgorithm]:
        return [tls.SignatureAlgorithm(self.own_scheme)]


def pull_alpn(buf: Buffer) -> str:
    """Read one protocol name, any bytes, as latin-1 text."""
    return tls.pull_opaque(buf, 1).decode("latin-1")


def push_alpn(buf: Buffer, protocol: str) -> None:
    """Write one protocol name given as latin-1 text."""
    tls.push_opaque(buf, 1, protocol.encode("latin-1"))
