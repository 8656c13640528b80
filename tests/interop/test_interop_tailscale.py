"""Two of our endpoints at a DERP server of Tailscale, and servers in one mesh."""

from __future__ import annotations

import socket
import ssl
import sys
from pathlib import Path

import anyio
import pytest

from iroh_anyio import MagicEndpoint
from iroh_anyio.derper import Derper
from iroh_anyio.derper.config_file import parse_config
from iroh_anyio.quic.events import EndpointEvent
from iroh_proto import DerpMap, DerpNode, NodeAddr
from iroh_proto.derp.pool import DerpServerConnected
from tests.anyio.tls_files import Authority
from tests.interop.mishaps import deaf
from tests.interop.ours import ALPN, ECHO_SIZE, echo, serve_echo
from tests.interop.tailscale_derper import free_port, tailscale_derper
from tests.interop.test_interop_derp import path_of_kind

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="mishaps are made with /proc"),
]

LIMIT = 30.0
"""Seconds for a handshake, or for a path to become direct: several rounds of pings."""


@pytest.mark.parametrize("dialect", [None, "tailscale"])
@pytest.mark.parametrize("scheme", ["http", "ws"])
async def test_two_endpoints_meet_at_it_and_go_direct(
    scheme: str, dialect: str | None, tmp_path: Path
) -> None:
    dialects: list[str] = []

    def observe(event: EndpointEvent) -> None:
        if isinstance(event, DerpServerConnected):
            dialects.append(event.dialect)

    with tailscale_derper(tmp_path) as derper:
        url = derper.url.replace("http", scheme)
        derp_map = DerpMap([DerpNode(url, stun_port=derper.stun_port, dialect=dialect)])
        async with (
            await MagicEndpoint.bind(
                alpns=[ALPN], derp_map=derp_map, bind_addrs=["0.0.0.0:0"], on_event=observe
            ) as one,
            await MagicEndpoint.bind(
                derp_map=derp_map, bind_addrs=["0.0.0.0:0"], on_event=observe
            ) as other,
            anyio.create_task_group() as tasks,
        ):

            async def serve() -> None:
                connection = await one.accept()
                while True:
                    await serve_echo(connection)

            with anyio.fail_after(LIMIT):
                addresses = [await one.node_addr(), await other.node_addr()]
            ports = {addr.port for known in addresses for addr in known.direct_addresses}
            tasks.start_soon(serve)
            with deaf(ports):  # nothing but the server leads from one to the other
                with anyio.fail_after(LIMIT):
                    connection = await other.connect(NodeAddr(one.node_id, derp_url=url), alpn=ALPN)
                path_changes = connection.path_changes()
                assert (await anext(path_changes)).kind in ("derp", "mixed")
                await echo(connection, ECHO_SIZE)
            with anyio.fail_after(LIMIT):
                await path_of_kind(path_changes, "direct")
            await echo(connection, ECHO_SIZE)
            assert connection.remote_node_id == one.node_id
            tasks.cancel_scope.cancel()
    assert dialects == ["tailscale", "tailscale"]


async def test_it_is_in_a_mesh_with_our_derper(tmp_path: Path) -> None:
    authority = Authority.make()
    authority.issue(tmp_path / "default.crt", tmp_path / "default.key", serial=1)
    ca_file = authority.write(tmp_path / "ca.pem")
    key_file = tmp_path / "mesh.key"
    key_file.write_text("6d" * 32)
    port = free_port(socket.SOCK_STREAM)
    options = ("-mesh-with", f"127.0.0.1:{port}", "-mesh-psk-file", str(key_file))
    with tailscale_derper(
        tmp_path, *options, environment={"SSL_CERT_FILE": str(ca_file)}
    ) as theirs:
        config = parse_config(
            'http_bind_addr = "127.0.0.1:0"\nenable_stun = false\nenable_metrics = false\n'
            f'[tls]\ncert_mode = "Manual"\ncert_dir = "{tmp_path}"\n'
            f'https_bind_addr = "127.0.0.1:{port}"\n'
            f'[derper.mesh]\nkey_file = "{key_file}"\nwith = ["{theirs.url}"]\n'
            'dialects = ["tailscale"]\n'
        )
        trusting = ssl.create_default_context(cafile=ca_file)
        async with await Derper.open(config) as ours:
            maps = [
                DerpMap([DerpNode(f"https://127.0.0.1:{port}", stun_port=None)]),
                DerpMap([DerpNode(theirs.url, stun_port=None)]),
            ]
            async with (
                await MagicEndpoint.bind(
                    alpns=[ALPN], derp_map=maps[0], derp_ssl_context=lambda: trusting
                ) as at_ours,
                await MagicEndpoint.bind(derp_map=maps[1], bind_addrs=["0.0.0.0:0"]) as at_theirs,
                anyio.create_task_group() as tasks,
            ):

                async def serve() -> None:
                    await serve_echo(await at_ours.accept())

                with anyio.fail_after(LIMIT):
                    await at_ours.node_addr()
                    addr = await at_theirs.node_addr()
                    # Theirs dials every 5 s; then it is a client of ours, and told of the others.
                    while ours.machine.stats.connections.clients_admitted < 2:  # noqa: ASYNC110 - untold
                        await anyio.sleep(0.1)
                tasks.start_soon(serve)
                with deaf({known.port for known in addr.direct_addresses}):
                    with anyio.fail_after(LIMIT):
                        connection = await at_theirs.connect(
                            NodeAddr(at_ours.node_id, derp_url=theirs.url), alpn=ALPN
                        )
                    await echo(connection, 1_000_000)
                assert connection.remote_node_id == at_ours.node_id
                tasks.cancel_scope.cancel()
            stats = ours.machine.stats
            assert stats.router.packets_forwarded > 100
            assert stats.connections.faults == 0
            assert stats.mesh.dials == 1
