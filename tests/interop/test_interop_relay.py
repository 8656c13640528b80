"""Released nodes of 1.x whose home relay is our DERP server, which knows them by websockets."""

from __future__ import annotations

import anyio
import pytest

from iroh_anyio import MagicEndpoint
from iroh_anyio.derper import Derper
from iroh_proto import DerpMap, DerpNode, NodeAddr
from tests.interop.conftest import StartPeer
from tests.interop.ours import ALPN, dialled_by, echo
from tests.interop.real_peer import RealPeer

pytestmark = pytest.mark.anyio

VERSION = "1.2.0"

LIMIT = 30.0
"""Seconds for a handshake."""

SIZE = 1_000_000
"""Bytes of an echo through the relay."""


def at(peer: RealPeer, derper: Derper) -> NodeAddr:
    return NodeAddr(peer.node_id, derp_url=derper.url)


def map_of(derper: Derper, dialect: str | None = None) -> DerpMap:
    return DerpMap([DerpNode(derper.url, stun_port=derper.stun_port, dialect=dialect)])


async def test_two_nodes_find_a_home_in_our_derper_and_go_on_directly(
    start_peer: StartPeer,
) -> None:
    async with await Derper.bind(port=0, stun_port=0) as derper:
        relay_urls = [str(derper.url)]
        async with (
            start_peer(VERSION, alpns=[ALPN.decode()], relay_urls=relay_urls) as one,
            start_peer(VERSION, alpns=[ALPN.decode()], relay_urls=relay_urls) as other,
        ):
            for peer in (one, other):
                home = (await peer.call("online"))["relay_url"]
                assert home.rstrip("/") == str(derper.url).rstrip("/")
            dialled = await one.dial(at(other, derper), ALPN)
            assert dialled["remote_id"] == str(other.node_id)
            assert (await other.event("accepted"))["remote_id"] == str(one.node_id)
            echoed = await one.call("echo", connection=dialled["connection"], size=SIZE)
            assert echoed["equal"]
            with anyio.fail_after(LIMIT):
                while await one.path_to(other.node_id) != "direct":  # noqa: ASYNC110 - untold
                    await anyio.sleep(0.1)
            echoed = await one.call("echo", connection=dialled["connection"], size=SIZE)
            assert echoed["equal"]
            stats = derper.machine.stats
            assert stats.connections.clients_admitted == 2
            assert stats.router.packets_routed > 0
            assert stats.connections.faults == 0


@pytest.mark.parametrize("dialect", [None, "relay-v1", "relay-v2"])
async def test_we_reach_a_node_at_our_derper_by_its_id(
    dialect: str | None, start_peer: StartPeer
) -> None:
    async with (
        await Derper.bind(port=0, stun_port=0) as derper,
        start_peer(VERSION, alpns=[ALPN.decode()], relay_urls=[str(derper.url)]) as peer,
        await MagicEndpoint.bind(derp_map=map_of(derper, dialect)) as ours,
    ):
        await peer.call("online")
        with anyio.fail_after(LIMIT):
            connection = await ours.connect(NodeAddr(peer.node_id, derp_url=derper.url), alpn=ALPN)
        await echo(connection, SIZE)
        assert connection.remote_node_id == peer.node_id
        assert (await peer.event("accepted"))["remote_id"] == str(ours.node_id)
        assert derper.machine.stats.router.packets_routed > 0
        assert derper.machine.stats.connections.faults == 0


@pytest.mark.parametrize("dialect", [None, "relay-v1", "relay-v2"])
async def test_a_node_at_our_derper_reaches_us_by_our_id(
    dialect: str | None, start_peer: StartPeer
) -> None:
    async with (
        await Derper.bind(port=0, stun_port=0) as derper,
        start_peer(VERSION, alpns=[], relay_urls=[str(derper.url)]) as peer,
        await MagicEndpoint.bind(alpns=[ALPN], derp_map=map_of(derper, dialect)) as ours,
    ):
        with anyio.fail_after(LIMIT):
            await ours.node_addr()
        await peer.call("online")
        await dialled_by(peer, ours, NodeAddr(ours.node_id, derp_url=derper.url), SIZE)
        assert derper.machine.stats.router.packets_routed > 0
        assert derper.machine.stats.connections.faults == 0


@pytest.mark.parametrize("dialler", ["0.35.0", "1.2.0"])
async def test_a_node_without_and_one_with_disco_meet_at_our_derper(
    dialler: str, start_peer: StartPeer
) -> None:
    alpns = [ALPN.decode()]
    async with (
        await Derper.bind(port=0, stun_port=0) as derper,
        start_peer("0.35.0", alpns=alpns) as old,
        start_peer(VERSION, alpns=alpns, relay_urls=[str(derper.url)]) as new,
    ):
        await new.call("online")
        if dialler == VERSION:
            # Our server is not the old one's home: it comes there to reach somebody.
            old.begin_dial(at(new, derper), b"whatever")
            dialled = await new.dial(at(old, derper), ALPN)
            echoed = await new.call("echo", connection=dialled["connection"], size=SIZE)
        else:
            dialled = await old.dial(at(new, derper), ALPN)
            echoed = await old.call("echo", connection=dialled["connection"], size=SIZE)
        assert echoed["equal"]
        assert await old.path_to(new.node_id) == "relay"
        assert await new.path_to(old.node_id) == "relay"
        stats = derper.machine.stats
        assert stats.connections.faults == 0
