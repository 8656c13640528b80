"""Released nodes of 1.x between which no UDP gets through: hosts in namespaces of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from iroh_proto import NodeAddr
from tests.interop.conftest import StartPeer
from tests.interop.ours import ALPN
from tests.interop.packages import REQUIRE_VARIABLE
from tests.interop.real_peer import ROOT
from tests.nat.internet import SERVER_IP, Internet, missing

pytestmark = pytest.mark.anyio

VERSION = "1.2.0"

SIZE = 50_000_000
"""Bytes, through the relay and back."""

LIMIT = 180.0
"""Seconds for them. An idle machine takes a tenth."""


@pytest.fixture
def internet() -> Iterator[Internet]:
    """Two hosts behind NATs that let no UDP pass, and a server."""
    lacking = missing()
    if lacking is not None:
        if os.environ.get(REQUIRE_VARIABLE) == "1":
            pytest.fail(lacking, pytrace=False)
        pytest.skip(lacking)
    network = Internet()
    try:
        yield network
    finally:
        network.remove()


@contextmanager
def derper_in(space: str, scratch: Path) -> Iterator[str]:
    """Run our server in a namespace; yield its URL as seen by others."""
    command = ["-m", "iroh_anyio", "derper", "--dev", "--host", SERVER_IP, "--port", "0"]
    with (scratch / "derper.stderr").open("wb") as stderr:
        process = subprocess.Popen(
            ["ip", "netns", "exec", space, sys.executable, *command, "--stun-port", "0"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_50_megabytes_go_through_our_derper_where_udp_does_not(
    internet: Internet, start_peer: StartPeer, tmp_path: Path
) -> None:
    spaces = [internet.add_host(name, "port-restricted") for name in ("one", "other")]
    for space in spaces:
        internet.block_udp(space)
    with derper_in(internet.server, tmp_path) as url:
        settings = {"alpns": [ALPN.decode()], "relay_urls": [url], "bind_addr": "0.0.0.0:0"}
        async with (
            start_peer(VERSION, space=spaces[0], **settings) as one,
            start_peer(VERSION, space=spaces[1], **settings) as other,
        ):
            for peer in (one, other):
                assert (await peer.call("online"))["relay_url"].rstrip("/") == url.rstrip("/")
            dialled = await one.dial(NodeAddr(other.node_id, derp_url=url), ALPN)
            echoed = await one.call(
                "echo", connection=dialled["connection"], size=SIZE, limit=LIMIT
            )
            assert echoed["equal"]
            assert await one.path_to(other.node_id) == "relay"
