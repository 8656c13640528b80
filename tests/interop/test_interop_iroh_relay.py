"""Two of our endpoints through released ``iroh-relay`` servers."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from iroh_anyio import Connection, MagicEndpoint
from iroh_proto import DerpMap, DerpNode, NodeAddr
from tests.anyio.tls_files import Authority
from tests.interop.mishaps import deaf
from tests.interop.ours import ALPN, echo, serve_echo
from tests.interop.relay_program import (
    RELAY_0_35,
    RELAY_0_90,
    RELAY_0_95,
    RELAY_1,
    RelayProgram,
    free_port,
    running,
)

pytestmark = pytest.mark.anyio

LIMIT = 30.0
"""Seconds for whatever takes one round trip or a few."""

RELAYED_SIZE = 2_000_000
"""Bytes of an echo through the relay."""


@asynccontextmanager
async def meeting_through(
    node: DerpNode, ca_file: Path | None = None
) -> AsyncIterator[tuple[MagicEndpoint, MagicEndpoint]]:
    """Run two endpoints whose home is a relay."""

    async def bind() -> MagicEndpoint:
        return await MagicEndpoint.bind(
            alpns=[ALPN],
            bind_addrs=["0.0.0.0:0"],
            derp_map=DerpMap([node]),
            ca_file=ca_file,
        )

    async with await bind() as server, await bind() as client:
        with anyio.fail_after(LIMIT):
            await server.node_addr()
            await client.node_addr()
        yield server, client


async def echo_through(server: MagicEndpoint, connection: Connection, size: int) -> None:
    async def answer() -> None:
        await serve_echo(accepted)

    accepted = await server.accept()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(answer)
        await echo(connection, size)


async def meet(node: DerpNode, ca_file: Path | None = None) -> None:
    """Talk through the relay while UDP is dead, and directly once it is not."""
    async with meeting_through(node, ca_file) as (server, client):
        ports = [addr.port for one in (server, client) for addr in one.bound_addresses]
        with deaf(ports), anyio.fail_after(LIMIT):
            connection = await client.connect(
                NodeAddr(server.node_id, derp_url=node.url), alpn=ALPN
            )
            await echo_through(server, connection, RELAYED_SIZE)
            assert connection.remote_node_id == server.node_id
            assert client.machine.magicsock.path_info(server.node_id).kind != "direct"
        with anyio.fail_after(LIMIT):
            async for path in connection.path_changes():
                if path.kind == "direct":
                    break


@pytest.mark.parametrize(
    "program", [RELAY_1, RELAY_0_95, RELAY_0_90], ids=lambda program: program.version
)
async def test_we_meet_at_a_relay_without_stun_and_learn_our_address_there(
    program: RelayProgram, tmp_path: Path
) -> None:
    authority = Authority.make()
    ca_file = authority.write(tmp_path / "ca.pem")
    authority.issue(tmp_path / "default.crt", tmp_path / "default.key", serial=1)
    tcp, plain = free_port(socket.SOCK_STREAM), free_port(socket.SOCK_STREAM)
    udp = free_port(socket.SOCK_DGRAM)
    settings = f"""
        http_bind_addr = "127.0.0.1:{plain}"
        enable_quic_addr_discovery = true
        enable_metrics = false
        [tls]
        https_bind_addr = "127.0.0.1:{tcp}"
        quic_bind_addr = "127.0.0.1:{udp}"
        cert_mode = "Manual"
        cert_dir = "{tmp_path}"
    """
    node = DerpNode(f"https://127.0.0.1:{tcp}", stun_port=None, quic_port=udp)
    async with running(program, settings, tcp, tmp_path):
        async with meeting_through(node, ca_file) as endpoints:
            for endpoint in endpoints:
                with anyio.fail_after(LIMIT):
                    while endpoint.machine.qad_stats.answered == 0:  # noqa: ASYNC110 - untold
                        await anyio.sleep(0.05)
        await meet(node, ca_file)


async def test_we_meet_at_a_relay_of_0_35(tmp_path: Path) -> None:
    tcp, udp = free_port(socket.SOCK_STREAM), free_port(socket.SOCK_DGRAM)
    settings = f"""
        enable_relay = true
        http_bind_addr = "127.0.0.1:{tcp}"
        enable_stun = true
        stun_bind_addr = "127.0.0.1:{udp}"
        enable_metrics = false
    """
    node = DerpNode(f"http://127.0.0.1:{tcp}", stun_port=udp)
    async with running(RELAY_0_35, settings, tcp, tmp_path):
        await meet(node)
