"""DERP servers on sockets that serve their clients together."""

from __future__ import annotations

import socket
from contextlib import AsyncExitStack, closing
from pathlib import Path

import anyio
import pytest

from iroh_anyio.derper import Derper
from iroh_anyio.derper.access import AccessControl, Allowlist, Denylist, HttpCallout
from iroh_anyio.derper.config_file import MESH_KEY_VARIABLE, parse_config
from iroh_anyio.derper.toml_table import ConfigError
from iroh_proto import DerpMap, DerpNode, NodeAddr, SecretKey
from iroh_proto.address import DerpUrl
from iroh_proto.derp.mesh import MeshServer
from iroh_proto.derp.mesh_key import MeshKey
from iroh_proto.x25519 import x25519_of
from tests.anyio.nodes import ALPN, LIMIT, bind

KEY = "6d" * 32
ALICE, BOB = SecretKey(bytes(range(32))), SecretKey(bytes(range(1, 33)))


def free_port() -> int:
    with closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def text_of(port: int, mesh: str) -> str:
    return (
        f'http_bind_addr = "127.0.0.1:{port}"\nenable_stun = false\nenable_metrics = false\n'
        f"[derper.mesh]\n{mesh}"
    )


def members_of(server: Derper) -> int:
    return server.machine.stats.connections.clients_admitted


@pytest.mark.anyio
@pytest.mark.parametrize("dialects", [("v3", "v3"), ("tailscale", "v3"), ("v3", "tailscale")])
async def test_endpoints_at_two_servers_meet(dialects: tuple[str, str], tmp_path: Path) -> None:
    key_file = tmp_path / "mesh.key"
    key_file.write_text(f"{KEY}\n")
    ports = [free_port(), free_port()]
    async with AsyncExitStack() as stack:
        servers = []
        for port, other in (ports, reversed(ports)):
            mesh = f'key_file = "{key_file}"\nwith = ["http://127.0.0.1:{other}"]'
            servers.append(await Derper.open(parse_config(text_of(port, mesh))))
        for server in servers:
            await stack.enter_async_context(server)
        # Each lets the other in, in two dialects.
        with anyio.fail_after(LIMIT):
            while any(members_of(server) < 2 for server in servers):  # noqa: ASYNC110 - untold
                await anyio.sleep(0.05)
        nodes = []
        for server, dialect in zip(servers, dialects, strict=True):
            derp_map = DerpMap([DerpNode(server.url, stun_port=None, dialect=dialect)])
            nodes.append(
                await stack.enter_async_context(await bind(alpns=[ALPN], derp_map=derp_map))
            )
        with anyio.fail_after(LIMIT):
            for node in nodes:
                await node.node_addr()
            # The dialled node is not at the server that the dialling one sends to.
            addr = NodeAddr(nodes[1].node_id, derp_url=servers[0].url)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(nodes[1].accept)
                connection = await nodes[0].connect(addr, alpn=ALPN)
        assert connection.remote_node_id == nodes[1].node_id
        for server in servers:
            assert server.machine.stats.router.packets_forwarded > 0
            assert server.machine.stats.mesh.dials_failed == 0


def test_a_file_names_the_mesh(tmp_path: Path) -> None:
    key_file = tmp_path / "mesh.key"
    key_file.write_text(f"  {KEY}\n")
    config = parse_config(
        text_of(1, f'key_file = "{key_file}"\nwith = ["https://a"]\ndialects = ["v2"]')
    )
    assert config.mesh_key == MeshKey.from_str(KEY)
    assert config.mesh_servers == (MeshServer(DerpUrl.from_str("https://a"), "v2"),)
    environ = {MESH_KEY_VARIABLE: "6e" * 32}
    config = parse_config(text_of(1, 'with = ["http://a", "http://b"]'), environ=environ)
    assert config.mesh_key == MeshKey(b"\x6e" * 32)
    assert [server.dialect for server in config.mesh_servers] == ["v2", "tailscale"] * 2
    assert KEY not in repr(config)
    assert parse_config("").mesh_key is None


@pytest.mark.parametrize(
    ("mesh", "names"),
    [
        ("", "derper.mesh.key_file"),
        ('key_file = "nowhere"', "derper.mesh.key_file"),
        ('key_file = "FILE"\nwith = ["ftp://a"]', "derper.mesh.with"),
        ('key_file = "FILE"\ndialects = ["v3"]', "derper.mesh.dialects"),
        ('key_file = "FILE"\nfriends = 1', "derper.mesh.friends"),
        ('key_file = "BAD"', "derper.mesh.key_file"),
    ],
)
def test_a_mesh_that_cannot_be_is_told_by_its_key(mesh: str, names: str, tmp_path: Path) -> None:
    secret = "6" * 63
    (tmp_path / "good").write_text(KEY)
    (tmp_path / "bad").write_text(secret)
    text = mesh.replace("FILE", str(tmp_path / "good")).replace("BAD", str(tmp_path / "bad"))
    with pytest.raises(ConfigError, match=names) as caught:
        parse_config(text_of(1, text))
    assert secret not in str(caught.value)


def test_lists_of_nodes_hold_for_clients_that_come_by_their_x25519_keys() -> None:
    alice, bob = x25519_of(ALICE.public), x25519_of(BOB.public)
    listed = frozenset([ALICE.public])
    allowing, denying = AccessControl(Allowlist(listed)), AccessControl(Denylist(listed))
    assert (allowing.decide(alice, None), allowing.decide(bob, None)) == (True, False)
    assert (denying.decide(alice, None), denying.decide(bob, None)) == (False, True)
    asking = AccessControl(HttpCallout("http://127.0.0.1:1"))
    assert asking.decide(alice, None) is False
    assert asking.decide(ALICE.public, None) is None
