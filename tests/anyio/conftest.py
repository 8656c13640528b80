"""Fixtures of the tests on real sockets."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from tests.anyio.tls_files import issue_self_signed


@pytest.fixture(scope="session")
def tls_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``certificate.pem`` for ``localhost`` and 127.0.0.1, and ``key.pem``."""
    folder = tmp_path_factory.mktemp("tls")
    issue_self_signed(folder / "certificate.pem", folder / "key.pem")
    return folder


@pytest.fixture(scope="session")
def tls_contexts(tls_folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context for ``localhost`` and 127.0.0.1, and a client's that trusts it."""
    certificate_path = tls_folder / "certificate.pem"
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate_path, tls_folder / "key.pem")
    client = ssl.create_default_context(cafile=str(certificate_path))
    return server, client
