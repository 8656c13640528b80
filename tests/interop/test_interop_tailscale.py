"""Two of our endpoints at a DERP server of Tailscale, and servers in one mesh."""

from __future__ import annotations

import sys
from pathlib import Path

import anyio
import pytest

from iroh_anyio import MagicEndpoint
from iroh_anyio.quic.events import EndpointEvent
from iroh_proto import DerpMap, DerpNode, NodeAddr
from iroh_proto.derp.pool import DerpServerConnected
from tests.interop.mishaps import deaf
from tests.interop.ours import ALPN, ECHO_SIZE, echo, serve_echo
from tests.interop.tailscale_derper import tailscale_derper
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
