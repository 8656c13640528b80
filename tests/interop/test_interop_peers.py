"""The peers prove themselves first: each release with another node of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from iroh_proto import NodeAddr, SecretKey
from tests.interop import packages
from tests.interop.conftest import StartPeer
from tests.interop.real_peer import PeerError

pytestmark = pytest.mark.anyio

ALPN = b"iroh-proto/test/echo/0"
ECHO_SIZE = 10_000_000


@pytest.mark.parametrize("version", ["0.28.1", "0.35.0", "1.2.0"])
async def test_two_nodes_of_a_release_echo_ten_megabytes(
    version: str, start_peer: StartPeer
) -> None:
    async with (
        start_peer(version, alpns=[ALPN.decode()]) as server,
        start_peer(version, alpns=[]) as client,
    ):
        dialled = await client.dial(server.node_addr, ALPN)
        accepted = await server.event("accepted")
        echoed = await client.call("echo", connection=dialled["connection"], size=ECHO_SIZE)
        assert dialled["remote_id"] == str(server.node_id)
        assert accepted["remote_id"] == str(client.node_id)
        assert accepted["alpn"] == ALPN.decode()
        assert echoed["equal"]


@pytest.mark.parametrize("version", ["0.28.1", "0.35.0", "1.2.0"])
async def test_a_node_refuses_one_with_another_id(version: str, start_peer: StartPeer) -> None:
    async with (
        start_peer(version, alpns=[ALPN.decode()]) as server,
        start_peer(version, alpns=[]) as client,
    ):
        await client.dial(server.node_addr, ALPN)  # disco lets only known nodes through
        stranger = NodeAddr(SecretKey.generate().public, direct_addresses=server.addresses)
        with pytest.raises(PeerError, match="dial failed"):
            await client.dial(stranger, ALPN, limit=60)


async def test_0_12_connects_to_another_for_a_blob_that_nobody_has(
    start_peer: StartPeer,
) -> None:
    async with start_peer("0.12.0") as server, start_peer("0.12.0") as client:
        assert await client.download(server.node_addr) == ["connected"]
        assert await client.path_to(server.node_id) == "direct"
        assert await server.path_to(client.node_id) == "direct"


async def test_0_2_tells_its_addresses_and_joins_a_document(start_peer: StartPeer) -> None:
    async with start_peer("0.2.0") as node, start_peer("0.2.0") as other:
        assert node.addresses
        await other.join(node.node_addr)


async def test_a_silent_peer_is_reported_with_its_stderr(start_peer: StartPeer) -> None:
    with pytest.raises(PeerError, match="no news of 'accepted' within 0 s") as caught:
        async with start_peer("1.2.0", alpns=[]) as peer:
            await peer.event("accepted", limit=0.1)
    assert "end of the stderr of iroh 1.2.0" in caught.value.__notes__[0]


async def test_stopping_a_peer_leaves_no_process(start_peer: StartPeer) -> None:
    async with start_peer("0.35.0", alpns=[]) as peer:
        group = peer.process_id
        os.killpg(group, 0)
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)


def test_an_unknown_release_is_unavailable_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(packages.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(packages.PeerUnavailableError, match=r"iroh==0\.0\.0"):
        packages.installed("0.0.0")
    assert list(tmp_path.iterdir()) == []
