"""Released nodes and our endpoint, by direct addresses alone."""

from __future__ import annotations

import anyio
import pytest

from iroh_anyio import Connection, MagicEndpoint
from iroh_anyio.errors import ConnectError, WrongIdentity
from iroh_proto import NodeAddr, SecretKey
from tests.interop.conftest import StartPeer
from tests.interop.ours import ALPN, ECHO_SIZE, dialled_by, echo
from tests.interop.real_peer import PeerError

pytestmark = pytest.mark.anyio

CUSTOM_PROTOCOLS = ["0.28.1", "0.35.0", "1.2.0"]
"""Releases whose package lets a test serve and dial protocols of its own."""

OLD_ALPNS = {"0.2.0": b"/iroh-bytes/2", "0.12.0": b"/iroh-bytes/3"}
"""What the others serve."""

LIMIT = 30.0
"""Seconds for one handshake, several rounds of pings included."""


def assert_proven(ours: MagicEndpoint, connection: Connection) -> None:
    """Check that the path was proven in the peer's own way: by pongs, or QUIC's challenges."""
    [info] = ours.remote_infos()
    stats = ours.machine.magicsock.stats.paths
    proofs = stats.challenges_answered if info.scheme == "quic" else stats.disco.pongs_received
    assert proofs > 0
    assert connection.path.kind == "direct"
    assert connection.path.latency is not None


@pytest.mark.parametrize("version", CUSTOM_PROTOCOLS)
async def test_we_dial_a_node_and_it_echoes_ten_megabytes(
    version: str, start_peer: StartPeer
) -> None:
    async with (
        start_peer(version, alpns=[ALPN.decode()]) as peer,
        await MagicEndpoint.bind() as ours,
    ):
        with anyio.fail_after(LIMIT):
            connection = await ours.connect(peer.node_addr, alpn=ALPN)
        await echo(connection)
        assert_proven(ours, connection)
        accepted = await peer.event("accepted")
        connection.close(7, "that was all")
        closed = await peer.event("closed")
        assert connection.remote_node_id == peer.node_id
        assert accepted["remote_id"] == str(ours.node_id)
        assert "that was all" in closed["reason"]


@pytest.mark.parametrize("version", CUSTOM_PROTOCOLS)
async def test_a_node_dials_us_and_we_echo_ten_megabytes(
    version: str, start_peer: StartPeer
) -> None:
    async with (
        start_peer(version, alpns=[]) as peer,
        await MagicEndpoint.bind(alpns=[ALPN]) as ours,
    ):
        dialled, connection = await dialled_by(peer, ours, await ours.node_addr(), ECHO_SIZE)
        assert_proven(ours, connection)
        assert connection.alpn == ALPN
        await peer.call(
            "hang_up", connection=dialled["connection"], code=9, reason="enough of that"
        )
        with anyio.fail_after(LIMIT):
            reason = await connection.wait_closed()
        assert (reason.code, reason.text, reason.by_peer) == (9, "enough of that", True)


@pytest.mark.parametrize("version", OLD_ALPNS)
async def test_we_dial_an_old_node(version: str, start_peer: StartPeer) -> None:
    async with start_peer(version) as peer, await MagicEndpoint.bind() as ours:
        with anyio.fail_after(LIMIT):
            connection = await ours.connect(peer.node_addr, alpn=OLD_ALPNS[version])
        assert connection.remote_node_id == peer.node_id
        assert await peer.path_to(ours.node_id) == "direct"


async def test_0_12_dials_us(start_peer: StartPeer) -> None:
    alpn = OLD_ALPNS["0.12.0"]
    async with (
        start_peer("0.12.0") as peer,
        await MagicEndpoint.bind(alpns=[alpn]) as ours,
    ):
        peer.begin_download(await ours.node_addr())
        with anyio.fail_after(LIMIT):
            connection = await ours.accept()
        assert connection.remote_node_id == peer.node_id
        await peer.event("connected")
        assert await peer.path_to(ours.node_id) == "direct"


async def test_0_2_dials_us(start_peer: StartPeer) -> None:
    alpns = [b"/iroh-sync/1", b"/iroh-sync/2", b"/iroh-gossip/0"]
    async with (
        start_peer("0.2.0") as peer,
        await MagicEndpoint.bind(alpns=alpns) as ours,
    ):
        with anyio.fail_after(LIMIT):
            # It forgets addresses that it was only told when it dials, but not those that it was
            # pinged from.
            await ours.connect(peer.node_addr, alpn=OLD_ALPNS["0.2.0"])
            await peer.join(await ours.node_addr())
            connection = await ours.accept()
        assert connection.remote_node_id == peer.node_id
        assert connection.alpn in alpns


@pytest.mark.parametrize("version", ["0.28.1", "0.35.0", "1.2.0"])
async def test_a_node_that_expects_another_key_of_us_gives_up(
    version: str, start_peer: StartPeer
) -> None:
    async with (
        start_peer(version, alpns=[]) as peer,
        await MagicEndpoint.bind(alpns=[ALPN]) as ours,
    ):
        real = await ours.node_addr()
        claimed = NodeAddr(SecretKey.generate().public, direct_addresses=real.direct_addresses)
        with pytest.raises(PeerError, match="dial failed"):
            await peer.dial(claimed, ALPN, limit=60)
        with anyio.move_on_after(1) as accepting:
            await ours.accept()
        assert accepting.cancelled_caught


@pytest.mark.parametrize("version", ["0.28.1", "0.35.0", "1.2.0"])
async def test_we_give_up_on_a_node_with_another_key(version: str, start_peer: StartPeer) -> None:
    async with (
        start_peer(version, alpns=[ALPN.decode()]) as peer,
        await MagicEndpoint.bind(bind_addrs=["0.0.0.0:0"]) as ours,
    ):
        with anyio.fail_after(LIMIT):
            # Releases with disco listen to nobody who did not ping them under their right id.
            await ours.connect(peer.node_addr, alpn=ALPN)
            await peer.event("accepted")
        # One address: with more, the dial would pass over who answers here and go on elsewhere.
        claimed = NodeAddr(SecretKey.generate().public, direct_addresses=peer.addresses[:1])
        with anyio.fail_after(LIMIT), pytest.raises(WrongIdentity):
            await ours.connect(claimed, alpn=ALPN)
        with pytest.raises(PeerError):
            await peer.event("accepted", limit=1)


@pytest.mark.parametrize("version", ["0.28.1", "0.35.0", "1.2.0"])
async def test_a_protocol_nobody_serves_is_refused_both_ways(
    version: str, start_peer: StartPeer
) -> None:
    async with (
        start_peer(version, alpns=[ALPN.decode()]) as peer,
        await MagicEndpoint.bind(alpns=[ALPN]) as ours,
    ):
        with anyio.fail_after(LIMIT), pytest.raises(ConnectError):
            await ours.connect(peer.node_addr, alpn=b"something else")
        with pytest.raises(PeerError, match="dial failed"):
            await peer.dial(await ours.node_addr(), b"something else")
