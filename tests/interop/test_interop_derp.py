"""Released nodes that know only our id and the URL of our DERP server."""

from __future__ import annotations

import sys

import anyio
import pytest

from iroh_anyio import MagicEndpoint
from iroh_anyio.connection import PathChanges
from iroh_anyio.derper import Derper
from iroh_anyio.quic.events import EndpointEvent
from iroh_proto import DerpMap, DerpNode, NodeAddr
from iroh_proto.magicsock import PathChanged
from tests.interop.conftest import StartPeer
from tests.interop.mishaps import deaf
from tests.interop.ours import ALPN, ECHO_LIMIT, ECHO_SIZE, serve_echo

pytestmark = pytest.mark.anyio

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="mishaps are made with /proc")

LIMIT = 30.0
"""Seconds for a handshake, or for a path to become direct: several rounds of pings."""


def map_of(derper: Derper) -> DerpMap:
    return DerpMap([DerpNode(derper.url, stun_port=derper.stun_port)])


@needs_linux
@pytest.mark.parametrize("version", ["0.28.1", "0.35.0"])
async def test_a_node_finds_us_through_our_derper_and_goes_direct(
    version: str, start_peer: StartPeer
) -> None:
    kinds: list[str] = []

    def observe(event: EndpointEvent) -> None:
        if isinstance(event, PathChanged) and event.node_id == peer.node_id:
            kinds.append(event.path.kind)

    async with (
        start_peer(version, alpns=[]) as peer,
        await Derper.bind(port=0, stun_port=0) as derper,
        await MagicEndpoint.bind(
            alpns=[ALPN],
            derp_map=map_of(derper),
            bind_addrs=["0.0.0.0:0"],
            on_event=observe,
        ) as ours,
    ):
        ports = {address.port for address in (await ours.node_addr()).direct_addresses}
        # Deaf to UDP: the handshake can only come through the server. Otherwise the direct path
        # is there first, on loopback.
        with anyio.fail_after(LIMIT), deaf(ports):
            dialling = peer.begin_dial(NodeAddr(ours.node_id, derp_url=derper.url), ALPN)
            connection = await ours.accept()
            dialled = await peer.answer(dialling)
            path_changes = connection.path_changes()
            assert (await anext(path_changes)).kind in ("derp", "mixed")
        assert connection.remote_node_id == peer.node_id
        assert dialled["remote_id"] == str(ours.node_id)
        with anyio.fail_after(LIMIT):
            await path_of_kind(path_changes, "direct")
        assert kinds[0] == "derp"
        echoing = peer.begin("echo", connection=dialled["connection"], size=ECHO_SIZE)
        with anyio.fail_after(ECHO_LIMIT):
            await serve_echo(connection)
        assert (await peer.answer(echoing))["equal"]
        assert await peer.path_to(ours.node_id) == "direct"


@needs_linux
async def test_streams_go_on_through_the_server_while_the_direct_path_is_dead(
    start_peer: StartPeer,
) -> None:
    async with (
        start_peer("0.35.0", alpns=[]) as peer,
        await Derper.bind(port=0, stun_port=0) as derper,
        await MagicEndpoint.bind(
            alpns=[ALPN], derp_map=map_of(derper), bind_addrs=["0.0.0.0:0"]
        ) as ours,
    ):
        ports = {address.port for address in (await ours.node_addr()).direct_addresses}
        dialling = peer.begin_dial(NodeAddr(ours.node_id, derp_url=derper.url), ALPN)
        with anyio.fail_after(LIMIT):
            connection = await ours.accept()
            path_changes = connection.path_changes()
            await path_of_kind(path_changes, "direct")
        dialled = await peer.answer(dialling)
        peer_ports = {address.port for address in peer.addresses}
        with deaf(ports), deaf(peer_ports, peer.process_id):
            echoing = peer.begin("echo", connection=dialled["connection"], size=1_000_000)
            with anyio.fail_after(ECHO_LIMIT):
                await serve_echo(connection)
            assert (await peer.answer(echoing))["equal"]
            with anyio.fail_after(LIMIT):
                await path_of_kind(path_changes, "derp", "mixed")
        with anyio.fail_after(LIMIT):
            await path_of_kind(path_changes, "direct")


async def path_of_kind(path_changes: PathChanges, *kinds: str) -> None:
    async for path in path_changes:
        if path.kind in kinds:
            return
    raise AssertionError(f"the connection ended before its path was {kinds}")


async def test_0_12_finds_us_through_our_derper(start_peer: StartPeer) -> None:
    async with (
        start_peer("0.12.0") as peer,
        await Derper.bind(port=0, stun_port=0) as derper,
        await MagicEndpoint.bind(alpns=[b"/iroh-bytes/3"], derp_map=map_of(derper)) as ours,
    ):
        await ours.node_addr()
        peer.begin_download(NodeAddr(ours.node_id, derp_url=derper.url))
        with anyio.fail_after(LIMIT):
            connection = await ours.accept()
        assert connection.remote_node_id == peer.node_id
        assert connection.alpn == b"/iroh-bytes/3"
        await peer.event("connected")
