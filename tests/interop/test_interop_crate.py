"""Nodes of the ``iroh`` crate between 0.35 and 1.0, which are on no Python index.

They find direct paths by disco, as those before them; their relay is a websocket from 0.91 on, as
that of those after them. They ask for raw public keys alone.
"""

from __future__ import annotations

import anyio
import pytest

from iroh_anyio import Connection, MagicEndpoint
from iroh_anyio.derper import Derper
from iroh_anyio.errors import ConnectError, WrongIdentity
from iroh_proto import DerpMap, DerpNode, NodeAddr, NodeId, SecretKey
from tests.interop.conftest import StartPeer
from tests.interop.ours import ALPN, ECHO_SIZE, dialled_by, echo
from tests.interop.programs import VARIABLES
from tests.interop.real_peer import PeerError, RealPeer

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("version", VARIABLES)]

LIMIT = 30.0
"""Seconds for a handshake, several rounds of pings included."""

RELAYED_SIZE = 1_000_000
"""Bytes of an echo that begins at the relay."""


def at(peer: RealPeer, derper: Derper) -> NodeAddr:
    return NodeAddr(peer.node_id, derp_url=derper.url)


def map_of(derper: Derper) -> DerpMap:
    return DerpMap([DerpNode(derper.url, stun_port=derper.stun_port)])


async def becomes_direct(connection: Connection) -> None:
    with anyio.fail_after(LIMIT):
        async for path in connection.path_changes():
            if path.kind == "direct":
                return


async def sees_direct(peer: RealPeer, other: NodeId) -> None:
    with anyio.fail_after(LIMIT):
        while await peer.path_to(other) != "direct":  # noqa: ASYNC110 - untold
            await anyio.sleep(0.1)


async def test_we_dial_a_node_directly(version: str, start_peer: StartPeer) -> None:
    async with (
        start_peer(version, alpns=[ALPN.decode()]) as peer,
        await MagicEndpoint.bind() as ours,
    ):
        with anyio.fail_after(LIMIT):
            connection = await ours.connect(peer.node_addr, alpn=ALPN)
        await echo(connection)
        assert connection.remote_node_id == peer.node_id
        assert connection.path.kind == "direct"
        assert ours.machine.magicsock.stats.paths.disco.pongs_received > 0
        assert (await peer.event("accepted"))["remote_id"] == str(ours.node_id)
        assert await peer.path_to(ours.node_id) == "direct"
        connection.close(7, "that was all")
        assert "that was all" in (await peer.event("closed"))["reason"]


async def test_a_node_dials_us_directly(version: str, start_peer: StartPeer) -> None:
    async with (
        start_peer(version, alpns=[]) as peer,
        await MagicEndpoint.bind(alpns=[ALPN]) as ours,
    ):
        dialled, connection = await dialled_by(peer, ours, await ours.node_addr(), ECHO_SIZE)
        await peer.call(
            "hang_up", connection=dialled["connection"], code=9, reason="enough of that"
        )
        with anyio.fail_after(LIMIT):
            reason = await connection.wait_closed()
        assert (reason.code, reason.text, reason.by_peer) == (9, "enough of that", True)


async def test_we_reach_a_node_at_our_derper_by_its_id_and_go_on_directly(
    version: str, start_peer: StartPeer
) -> None:
    async with (
        await Derper.bind(port=0, stun_port=0) as derper,
        start_peer(version, alpns=[ALPN.decode()], relay_urls=[str(derper.url)]) as peer,
        await MagicEndpoint.bind(derp_map=map_of(derper)) as ours,
    ):
        await peer.call("online")
        with anyio.fail_after(LIMIT):
            connection = await ours.connect(at(peer, derper), alpn=ALPN)
        await echo(connection, RELAYED_SIZE)
        assert connection.remote_node_id == peer.node_id
        await becomes_direct(connection)
        await sees_direct(peer, ours.node_id)
        assert derper.machine.stats.router.packets_routed > 0
        assert derper.machine.stats.connections.faults == 0


async def test_a_node_at_our_derper_reaches_us_by_our_id_and_goes_on_directly(
    version: str, start_peer: StartPeer
) -> None:
    async with (
        await Derper.bind(port=0, stun_port=0) as derper,
        start_peer(version, alpns=[], relay_urls=[str(derper.url)]) as peer,
        await MagicEndpoint.bind(alpns=[ALPN], derp_map=map_of(derper)) as ours,
    ):
        with anyio.fail_after(LIMIT):
            await ours.node_addr()
        await peer.call("online")
        addr = NodeAddr(ours.node_id, derp_url=derper.url)
        _, connection = await dialled_by(peer, ours, addr, RELAYED_SIZE)
        await becomes_direct(connection)
        await sees_direct(peer, ours.node_id)
        assert derper.machine.stats.connections.faults == 0


async def test_two_nodes_find_a_home_in_our_derper_and_go_on_directly(
    version: str, start_peer: StartPeer
) -> None:
    async with await Derper.bind(port=0, stun_port=0) as derper:
        settings = {"alpns": [ALPN.decode()], "relay_urls": [str(derper.url)]}
        async with start_peer(version, **settings) as one, start_peer(version, **settings) as other:
            for peer in (one, other):
                await peer.call("online")
            dialled = await one.dial(at(other, derper), ALPN)
            echoed = await one.call("echo", connection=dialled["connection"], size=RELAYED_SIZE)
            assert echoed["equal"]
            await sees_direct(one, other.node_id)
        assert derper.machine.stats.connections.clients_admitted == 2
        assert derper.machine.stats.connections.faults == 0


@pytest.mark.parametrize("neighbour", ["0.35.0", "1.2.0"])
async def test_a_node_is_reached_by_one_of_another_generation_at_our_derper(
    version: str, neighbour: str, start_peer: StartPeer
) -> None:
    alpns = [ALPN.decode()]
    async with await Derper.bind(port=0, stun_port=0) as derper:
        relays = {"relay_urls": [str(derper.url)]}
        async with (
            start_peer(version, alpns=alpns, **relays) as peer,
            start_peer(neighbour, alpns=alpns, **(relays if neighbour == "1.2.0" else {})) as other,
        ):
            await peer.call("online")
            dialled = await other.dial(at(peer, derper), ALPN)
            echoed = await other.call("echo", connection=dialled["connection"], size=RELAYED_SIZE)
            assert echoed["equal"]
            assert dialled["remote_id"] == str(peer.node_id)
            if neighbour == "0.35.0":
                await sees_direct(other, peer.node_id)
        assert derper.machine.stats.connections.faults == 0


async def test_keys_and_protocols_are_proven_both_ways(version: str, start_peer: StartPeer) -> None:
    async with (
        start_peer(version, alpns=[ALPN.decode()]) as peer,
        await MagicEndpoint.bind(alpns=[ALPN], bind_addrs=["0.0.0.0:0"]) as ours,
    ):
        with anyio.fail_after(LIMIT), pytest.raises(ConnectError):
            await ours.connect(peer.node_addr, alpn=b"something else")
        with pytest.raises(PeerError, match="dial failed"):
            await peer.dial(await ours.node_addr(), b"something else")
        stranger = SecretKey.generate().public
        claimed = NodeAddr(stranger, direct_addresses=peer.addresses[:1])
        with anyio.fail_after(LIMIT), pytest.raises(WrongIdentity):
            await ours.connect(claimed, alpn=ALPN)
        addresses = (await ours.node_addr()).direct_addresses
        with pytest.raises(PeerError, match="dial failed"):
            await peer.dial(NodeAddr(stranger, direct_addresses=addresses), ALPN, limit=60)
