"""Files of authorities, as people write them."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from iroh_anyio.authorities import Authorities
from iroh_proto import LocalProtocolError
from tests.anyio.nodes import bind
from tests.anyio.tls_files import Authority


def test_a_file_may_hold_several_and_words_beside_them(tmp_path: Path) -> None:
    pems = [Authority.make().write(tmp_path / str(number)).read_text() for number in range(2)]
    path = tmp_path / "ca.pem"
    path.write_bytes(f"# ours\n{pems[0]}\n\n# theirs\n{pems[1]}\n".replace("\n", "\r\n").encode())
    authorities = Authorities.load(path)
    assert authorities.pem.decode() == "".join(pems)
    usual = len(ssl.create_default_context().get_ca_certs())
    assert len(authorities.ssl_context().get_ca_certs()) == usual + 2


@pytest.mark.parametrize("text", ["", "nothing", "-----BEGIN CERTIFICATE-----\nxx\n"])
@pytest.mark.anyio
async def test_a_file_without_certificates_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ca.pem"
    path.write_text(text)
    with pytest.raises(OSError, match=r"ca\.pem holds no PEM certificates"):
        await bind(ca_file=path)


@pytest.mark.anyio
async def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.pem"):
        await bind(ca_file=tmp_path / "missing.pem")


@pytest.mark.anyio
async def test_a_file_and_a_context_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(LocalProtocolError, match="exclude each other"):
        await bind(ca_file=tmp_path / "ca.pem", derp_ssl_context=ssl.create_default_context)
