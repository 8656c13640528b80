"""QUIC address discovery on real sockets."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from iroh_anyio import MagicEndpoint
from iroh_anyio.derper import Derper
from iroh_anyio.derper.qad import QadListener, load_certificates
from iroh_anyio.quic.options import EndpointOptions
from iroh_proto import DerpMap, DerpNode, UdpAddress

pytestmark = pytest.mark.anyio

LIMIT = 10.0

TlsContexts = tuple[ssl.SSLContext, ssl.SSLContext]


@asynccontextmanager
async def endpoint_of(
    node: DerpNode, context: ssl.SSLContext, ca: bytes
) -> AsyncIterator[MagicEndpoint]:
    async with await MagicEndpoint.bind(
        bind_addrs=["0.0.0.0:0"],
        derp_map=DerpMap([node]),
        derp_ssl_context=lambda: context,
        options=EndpointOptions(ca_certificates=ca),
    ) as endpoint:
        with anyio.fail_after(LIMIT):
            yield endpoint


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - counts tell nobody that they changed
        await anyio.sleep(0.01)


async def listener(folder: Path) -> QadListener:
    certificates, key = load_certificates(folder / "certificate.pem", folder / "key.pem")
    return await QadListener.bind(certificates=certificates, private_key=key, port=0)


async def test_an_endpoint_learns_its_address_where_there_is_no_stun(
    tls_folder: Path, tls_contexts: TlsContexts
) -> None:
    server_context, client_context = tls_contexts
    ca = (tls_folder / "certificate.pem").read_bytes()
    async with (
        await Derper.bind(port=0, stun_port=None, ssl_context=server_context) as derper,
        await listener(tls_folder) as qad,
        endpoint_of(
            DerpNode(derper.url, stun_port=None, quic_port=qad.port), client_context, ca
        ) as endpoint,
    ):
        (bound,) = endpoint.bound_addresses
        seen = UdpAddress("127.0.0.1", bound.port)
        await until(lambda: seen in endpoint.machine.node_addr.direct_addresses)
        assert endpoint.machine.qad_stats.answered == 1
        assert qad.stats.completed == qad.stats.observations == 1
        await endpoint.close()
        await until(lambda: qad.stats.closed == 1)
        assert qad.stats.errored == 0


async def test_a_silent_stun_server_is_passed_over(
    tls_folder: Path, tls_contexts: TlsContexts
) -> None:
    server_context, client_context = tls_contexts
    ca = (tls_folder / "certificate.pem").read_bytes()
    with anyio.fail_after(LIMIT):
        async with (
            await anyio.create_udp_socket(local_host="127.0.0.1") as deaf,
            await Derper.bind(port=0, stun_port=None, ssl_context=server_context) as derper,
            await listener(tls_folder) as qad,
            endpoint_of(
                DerpNode(
                    derper.url,
                    stun_port=deaf.extra(anyio.abc.SocketAttribute.local_port),
                    quic_port=qad.port,
                ),
                client_context,
                ca,
            ) as endpoint,
        ):
            await until(lambda: endpoint.machine.qad_stats.answered == 1)
            assert endpoint.machine.magicsock.stats.stun.responses == 0


async def test_an_authority_that_is_not_trusted_is_not_believed(
    tls_folder: Path, tls_contexts: TlsContexts
) -> None:
    server_context, client_context = tls_contexts
    async with (
        await Derper.bind(port=0, stun_port=None, ssl_context=server_context) as derper,
        await listener(tls_folder) as qad,
        endpoint_of(
            DerpNode(derper.url, stun_port=None, quic_port=qad.port), client_context, b""
        ) as endpoint,
    ):
        await until(lambda: endpoint.machine.qad_stats.failed == 1)
        assert endpoint.machine.qad_stats.answered == 0


def test_files_that_quic_cannot_use_are_refused(tls_folder: Path, tmp_path: Path) -> None:
    certificate, key = tls_folder / "certificate.pem", tls_folder / "key.pem"
    assert len(load_certificates(certificate, key)[0]) == 1
    empty = tmp_path / "empty.pem"
    empty.write_bytes(b"")
    for pair in [(empty, key), (certificate, empty)]:
        with pytest.raises(ValueError, match=r"(?i)pem|certificate"):
            load_certificates(*pair)
    with pytest.raises(OSError, match="missing"):
        load_certificates(tmp_path / "missing.pem", key)
