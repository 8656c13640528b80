"""Two released nodes of a kind meet at our DERP server and go direct from there."""

from __future__ import annotations

import pytest

from iroh_anyio.derper import Derper
from iroh_proto import NodeAddr
from tests.interop.conftest import StartPeer
from tests.interop.real_peer import RealPeer

pytestmark = pytest.mark.anyio

ALPN = b"iroh-proto/test/derper/0"


def at(peer: RealPeer, derper: Derper) -> NodeAddr:
    return NodeAddr(peer.node_id, derp_url=derper.url)


@pytest.mark.parametrize("version", ["0.28.1", "0.35.0"])
async def test_nodes_that_know_only_each_others_id_connect(
    version: str, start_peer: StartPeer
) -> None:
    async with (
        start_peer(version, alpns=[ALPN.decode()]) as one,
        start_peer(version, alpns=[ALPN.decode()]) as other,
        await Derper.bind(port=0, stun_port=0) as derper,
    ):
        # Our server is nobody's home: each must dial to be there for the other.
        dialling = [
            one.begin_dial(at(other, derper), ALPN),
            other.begin_dial(at(one, derper), ALPN),
        ]
        assert (await one.answer(dialling[0]))["remote_id"] == str(other.node_id)
        dialled = await other.answer(dialling[1])
        assert dialled["remote_id"] == str(one.node_id)
        echoed = await other.call("echo", connection=dialled["connection"], size=1_000_000)
        assert echoed["equal"]
        assert await other.path_to(one.node_id) == "direct"
        stats = derper.machine.stats
        assert stats.connections.clients_admitted >= 2
        assert stats.router.packets_routed > 0
        assert stats.connections.faults == 0


async def test_0_12_nodes_that_know_only_each_others_id_connect(start_peer: StartPeer) -> None:
    async with (
        start_peer("0.12.0") as one,
        start_peer("0.12.0") as other,
        await Derper.bind(port=0, stun_port=0) as derper,
    ):
        downloads = [
            one.begin_download(at(other, derper)),
            other.begin_download(at(one, derper)),
        ]
        assert (await one.answer(downloads[0]))["steps"] == ["connected"]
        assert (await other.answer(downloads[1]))["steps"] == ["connected"]
        stats = derper.machine.stats
        assert stats.connections.clients_admitted >= 2
        assert stats.router.packets_routed > 0
