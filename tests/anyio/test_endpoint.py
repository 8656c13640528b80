"""Endpoints on real loopback sockets, on both backends."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from pathlib import Path
from typing import Any

import anyio
import pytest

from iroh_anyio import (
    AlpnNotServed,
    ConnectError,
    Connection,
    ConnectionClosed,
    ConnectionClosedByPeer,
    ConnectionClosedHere,
    ConnectionFailed,
    ConnectionLost,
    ConnectRefused,
    ConnectTimeout,
    Derper,
    EndpointClosed,
    EndpointOptions,
    IncomingAttempt,
    MagicEndpoint,
    NodeUnreachable,
    WrongIdentity,
    host,
    table,
)
from iroh_anyio import endpoint as endpoint_module
from iroh_anyio.quic.events import ConnectionEstablished
from iroh_proto import DerpMap, DerpNode, NodeAddr, SecretKey, UdpAddress
from iroh_proto.magicsock import DirectAddressesChanged
from tests.anyio.nodes import ALPN, LIMIT, addr_of, bind, joined, two_nodes

pytestmark = pytest.mark.anyio

LOOPBACK = "127.0.0.1"


async def echo(endpoint: MagicEndpoint) -> None:
    """Serve one connection after another, and one stream after another."""
    async for connection in endpoint:
        with contextlib.suppress(ConnectionClosed):
            while True:
                stream = await connection.accept_bi()
                async for chunk in stream:
                    await stream.send(chunk)
                await stream.send_eof()


async def ask(connection: Connection, data: bytes) -> bytes:
    stream = await connection.open_bi()
    await stream.send(data)
    await stream.send_eof()
    return b"".join([chunk async for chunk in stream])


async def test_two_nodes_talk_by_direct_address() -> None:
    async with two_nodes() as (server, client), anyio.create_task_group() as tasks:
        tasks.start_soon(echo, server)
        connection = await client.connect(addr_of(server), alpn=ALPN)
        assert await ask(connection, b"hello") == b"hello"
        assert connection.remote_node_id == server.node_id
        assert connection.alpn == ALPN
        assert not connection.incoming
        assert connection.rtt is not None
        assert 0 < connection.rtt < 1
        tasks.cancel_scope.cancel()


async def test_two_nodes_talk_over_ipv6() -> None:
    settings = {"bind_addrs": ["[::1]:0"]}
    async with joined(settings, settings) as (dialled, accepted):
        await dialled.send_datagram(b"six")
        assert await accepted.receive_datagram() == b"six"


async def test_the_accepting_side_knows_who_dialled() -> None:
    async with two_nodes() as (server, client):
        await client.connect(addr_of(server), alpn=ALPN)
        connection = await server.accept()
        assert connection.remote_node_id == client.node_id
        assert connection.alpn == ALPN
        assert connection.incoming


async def test_a_node_is_met_at_a_derp_server_and_then_directly() -> None:
    async with await Derper.bind(port=0, stun_port=0) as derper:
        derp_map = DerpMap([DerpNode(derper.url, stun_port=derper.stun_port)])
        settings: dict[str, Any] = {"derp_map": derp_map, "bind_addrs": ["0.0.0.0:0"]}
        async with (
            two_nodes(settings, settings) as (server, client),
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(echo, server)
            addr = NodeAddr(server.node_id, derp_url=derper.url)
            connection = await client.connect(addr, alpn=ALPN)
            assert await ask(connection, b"hello") == b"hello"
            kinds = []
            async for path in connection.path_changes():
                kinds.append(path.kind)
                if path.kind == "direct":
                    break
            assert set(kinds[:-1]) <= {"derp", "mixed"}
            assert await ask(connection, b"direct now") == b"direct now"
            assert client.home_derp is not None
            assert str(client.home_derp) == f"{derper.url}/"
            tasks.cancel_scope.cancel()


async def test_nodes_that_cannot_reach_each_other_stay_on_the_derp_server() -> None:
    async with await Derper.bind(port=0, stun_port=None) as derper:
        derp_map = DerpMap([DerpNode(derper.url, stun_port=None)])
        async with two_nodes(
            {"derp_map": derp_map, "bind_addrs": ["127.0.0.1:0"]},
            {"derp_map": derp_map, "bind_addrs": ["[::1]:0"]},
        ) as (server, client):
            addr = NodeAddr(server.node_id, derp_url=derper.url)
            dialled = await client.connect(addr, alpn=ALPN)
            accepted = await server.accept()
            sender, data = await dialled.open_uni(), bytes(range(256)) * 1_000
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(sender.send, data)
                receiver = await accepted.accept_uni()
                received = b""
                while len(received) < len(data):
                    received += await receiver.receive()
            assert received == data
            assert dialled.path.kind == "derp"


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"secret_key": "ab" * 32}, "secret_key is a SecretKey, not str: see SecretKey.from_str"),
        (
            {"derp_map": ["http://a.example"]},
            "derp_map is a DerpMap, not list: see DerpMap.from_urls",
        ),
        ({"bind_addrs": "127.0.0.1:0"}, "bind_addrs is a list of addresses, not one address"),
    ],
)
async def test_a_setting_of_another_type_is_named_at_once(
    settings: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(TypeError, match=complaint) as caught:
        await MagicEndpoint.bind(**settings)
    assert "abab" not in str(caught.value)


async def test_node_addr_waits_for_what_others_need() -> None:
    async with await Derper.bind(port=0, stun_port=0) as derper:
        derp_map = DerpMap([DerpNode(derper.url, stun_port=derper.stun_port)])
        async with await bind(derp_map=derp_map, bind_addrs=["0.0.0.0:0"]) as endpoint:
            early = await endpoint.node_addr(wait=False)
            assert early.node_id == endpoint.node_id
            with anyio.fail_after(LIMIT):
                addr = await endpoint.node_addr()
            assert str(addr.derp_url) == f"{derper.url}/"
            assert endpoint.bound_addresses[0].port in {a.port for a in addr.direct_addresses}


async def test_node_addr_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "NODE_ADDR_TIMEOUT", 0.05)
    derp_map = DerpMap.from_urls(["http://127.0.0.1:9"])
    async with await bind(derp_map=derp_map) as endpoint:
        with anyio.fail_after(LIMIT):
            addr = await endpoint.node_addr()
        assert addr.derp_url is None
        assert addr.direct_addresses == endpoint.bound_addresses


async def test_a_node_that_does_not_answer_is_a_timeout() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        addr = NodeAddr(
            SecretKey.generate().public, direct_addresses=[UdpAddress(*silent.getsockname())]
        )
        async with await bind() as client:
            with pytest.raises(ConnectTimeout, match=r"within 0\.1 s: check that it is online"):
                await client.connect(addr, alpn=ALPN, timeout=0.1)
        options = EndpointOptions(handshake_timeout=0.1)
        async with await bind(options=options) as client:
            with anyio.fail_after(LIMIT), pytest.raises(NodeUnreachable, match="online"):
                await client.connect(addr, alpn=ALPN)


async def test_a_node_without_address_cannot_be_reached() -> None:
    async with await bind() as client:
        with anyio.fail_after(1), pytest.raises(NodeUnreachable, match="no address") as caught:
            await client.connect(SecretKey.generate().public, alpn=ALPN)
        assert isinstance(caught.value, ConnectError)


async def test_a_derp_server_out_of_reach_is_named() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    settings = {"derp_map": DerpMap.from_urls([url])}
    addr = NodeAddr(SecretKey.generate().public, derp_url=url)
    words = f"its DERP server {url}/ cannot be .*: check the DERP server, or give another one"
    async with await bind(options=EndpointOptions(handshake_timeout=0.5), **settings) as client:
        with anyio.fail_after(LIMIT), pytest.raises(NodeUnreachable, match=words):
            await client.connect(addr, alpn=ALPN)
        assert [str(known) for known in client.derp_problems] == [f"{url}/"]
    async with await bind(**settings) as client:
        with anyio.fail_after(LIMIT), pytest.raises(ConnectTimeout, match=words):
            await client.connect(addr, alpn=ALPN, timeout=0.5)


async def test_a_protocol_nobody_serves_is_named() -> None:
    async with two_nodes() as (server, client):
        with pytest.raises(AlpnNotServed, match=r"b'other/1'.*check the ALPN"):
            await client.connect(addr_of(server), alpn=b"other/1")
        server.set_alpns([b"other/1"])
        await client.connect(addr_of(server), alpn=b"other/1")
        with pytest.raises(AlpnNotServed):
            await client.connect(addr_of(server), alpn=ALPN)


async def test_an_endpoint_that_serves_nothing_refuses() -> None:
    options = EndpointOptions(handshake_timeout=0.5)
    async with two_nodes({}, {"options": options}) as (server, client):
        with pytest.raises(ConnectError):
            await server.connect(addr_of(client), alpn=ALPN, timeout=1)


async def test_who_answers_must_be_who_was_dialled() -> None:
    async with two_nodes() as (server, client):
        other = SecretKey.generate().public
        with pytest.raises(WrongIdentity, match="check the node id") as caught:
            await client.connect(addr_of(server, other), alpn=ALPN)
        assert caught.value.node_id == other
        assert (await client.connect(addr_of(server), alpn=ALPN)).remote_node_id == server.node_id


async def test_an_endpoint_does_not_dial_itself() -> None:
    async with two_nodes() as (server, _):
        with pytest.raises(ConnectionFailed, match="itself"):
            await server.connect(addr_of(server), alpn=ALPN)


async def test_an_accept_filter_refuses_before_the_handshake() -> None:
    attempts: list[IncomingAttempt] = []

    def refuse(attempt: IncomingAttempt) -> bool:
        attempts.append(attempt)
        return False

    async with two_nodes({"accept_filter": refuse}) as (server, client):
        with pytest.raises(ConnectRefused):
            await client.connect(addr_of(server), alpn=ALPN)
        assert attempts[0].source == client.bound_addresses[0]


async def test_a_cancelled_attempt_leaves_nothing_behind() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        addr = NodeAddr(
            SecretKey.generate().public, direct_addresses=[UdpAddress(*silent.getsockname())]
        )
        async with two_nodes() as (server, client):
            for _ in range(3):
                with anyio.move_on_after(0.02) as scope:
                    await client.connect(addr, alpn=ALPN)
                assert scope.cancelled_caught
            assert len(client._table) == 0
            await client.connect(addr_of(server), alpn=ALPN)


async def test_an_attempt_cancelled_as_it_succeeds_is_closed() -> None:
    scope = anyio.CancelScope()
    async with two_nodes() as (server, client):
        establish = client._handlers[ConnectionEstablished]

        def cancel_and_establish(event: ConnectionEstablished) -> None:
            scope.cancel()
            establish(event)

        client._handlers[ConnectionEstablished] = cancel_and_establish
        with scope:
            await client.connect(addr_of(server), alpn=ALPN)
        assert scope.cancelled_caught
        assert len(client._table) == 0
        await (await server.accept()).wait_closed()


async def test_both_sides_may_dial_at_once() -> None:
    async with two_nodes({}, {"alpns": [ALPN]}) as (left, right):
        found: dict[str, Connection] = {}

        async def dial(name: str, here: MagicEndpoint, there: MagicEndpoint) -> None:
            found[name] = await here.connect(addr_of(there), alpn=ALPN)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(dial, "left", left, right)
            tasks.start_soon(dial, "right", right, left)
        assert found["left"].remote_node_id == right.node_id
        assert found["right"].remote_node_id == left.node_id


async def test_closing_tells_the_peer_and_everybody_here() -> None:
    async with two_nodes() as (server, client):
        dialled = await client.connect(addr_of(server), alpn=ALPN)
        accepted = await server.accept()
        stream = await dialled.open_bi()
        await stream.send(b"x")
        accepted_stream = await accepted.accept_bi()
        await client.close()
        reason = await accepted.wait_closed()
        assert reason.by_peer
        with pytest.raises(anyio.ClosedResourceError):
            await stream.send(b"y")
        with pytest.raises(ConnectionClosedHere):
            await dialled.accept_bi()
        assert await accepted_stream.receive() == b"x"
        with pytest.raises(anyio.BrokenResourceError):
            await accepted_stream.receive()
        with pytest.raises(EndpointClosed, match="bind another"):
            await client.connect(addr_of(server), alpn=ALPN)
        with pytest.raises(EndpointClosed):
            await client.accept()
        await client.close()


async def test_closing_wakes_those_who_wait() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        addr = NodeAddr(
            SecretKey.generate().public, direct_addresses=[UdpAddress(*silent.getsockname())]
        )
        ended: list[str] = []

        async def iterate(endpoint: MagicEndpoint) -> None:
            async for _ in endpoint:
                raise AssertionError
            ended.append("iteration")

        async def accept(endpoint: MagicEndpoint) -> None:
            with pytest.raises(EndpointClosed):
                await endpoint.accept()
            ended.append("accept")

        async def connect(endpoint: MagicEndpoint) -> None:
            with pytest.raises(EndpointClosed):
                await endpoint.connect(addr, alpn=ALPN)
            ended.append("connect")

        async with await bind(alpns=[ALPN]) as endpoint:
            with anyio.fail_after(LIMIT):
                async with anyio.create_task_group() as tasks:
                    for function in (iterate, accept, connect):
                        tasks.start_soon(function, endpoint)
                    await anyio.wait_all_tasks_blocked()
                    await endpoint.close()
        assert sorted(ended) == ["accept", "connect", "iteration"]


async def test_it_must_be_entered_before_use() -> None:
    endpoint = await bind()
    with pytest.raises(EndpointClosed, match="async with"):
        await endpoint.accept()
    with pytest.raises(EndpointClosed, match="async with"):
        await endpoint.connect(SecretKey.generate().public, alpn=ALPN)
    await endpoint.close()


class Mine(Exception):
    pass


async def test_the_exception_of_the_block_leaves_it_as_itself() -> None:
    with pytest.raises(Mine):
        async with await bind():
            raise Mine


async def test_cancellation_of_the_block_stays_cancellation() -> None:
    with anyio.move_on_after(0.05) as scope:
        async with two_nodes() as (server, client):
            await client.connect(addr_of(server), alpn=ALPN)
            await anyio.sleep_forever()
    assert scope.cancelled_caught


async def test_leaving_is_quick_with_open_connections() -> None:
    with anyio.fail_after(LIMIT):
        async with two_nodes() as (server, client):
            await client.connect(addr_of(server), alpn=ALPN)
            start = anyio.current_time()
        assert anyio.current_time() - start < 1


async def test_a_port_that_is_taken_is_an_error() -> None:
    async with await bind() as endpoint:
        [address] = endpoint.bound_addresses
        with pytest.raises(OSError, match=f"cannot bind UDP {address}"):
            await MagicEndpoint.bind(bind_addrs=[address])


async def test_a_peer_that_falls_silent_is_given_up() -> None:
    settings = {"idle_timeout": 0.3, "keep_alive_interval": None}
    async with joined(settings, settings) as (dialled, accepted):
        accepted._link.driver._ports[0].close()
        reason = await dialled.wait_closed()
        assert reason.kind == "idle"
        with pytest.raises(ConnectionLost, match="connect again"):
            await dialled.open_bi()


async def test_keep_alive_keeps_an_idle_connection() -> None:
    settings = {"idle_timeout": 0.4, "keep_alive_interval": 0.1}
    async with joined(settings, settings) as (dialled, accepted):
        await anyio.sleep(0.8)
        await dialled.send_datagram(b"still here")
        assert await accepted.receive_datagram() == b"still here"


async def test_too_many_unaccepted_connections_are_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(table, "ACCEPT_BACKLOG", 1)
    async with two_nodes() as (server, client):
        first = await client.connect(addr_of(server), alpn=ALPN)
        second = await client.connect(addr_of(server), alpn=ALPN)
        reason = await second.wait_closed()
        assert (reason.kind, reason.text) == (
            "application",
            "too many connections wait to be accepted",
        )
        assert (await server.accept()).remote_node_id == client.node_id
        assert first.close_reason is None


async def connect_and_say(client: MagicEndpoint, server: MagicEndpoint, data: bytes) -> Connection:
    """Return a connection that the server has, unaccepted, with a stream on it."""
    connection = await client.connect(addr_of(server), alpn=ALPN)
    stream = await connection.open_uni()
    await stream.send(data)
    await stream.send_eof()
    await stream.wait_delivered()
    return connection


async def test_connections_that_are_over_shut_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "ACCEPT_BACKLOG", 2)
    async with two_nodes() as (server, client):
        await connect_and_say(client, server, b"first")
        for _ in range(4):
            over = await connect_and_say(client, server, b"over")
            over.close()
            await server._table.incoming[-1].wait_closed()
        await connect_and_say(client, server, b"last")
        shut_out = await client.connect(addr_of(server), alpn=ALPN)
        assert (await shut_out.wait_closed()).text == table.BACKLOG_FULL_REASON
        for expected in (b"first", b"last"):
            accepted = await server.accept()
            assert accepted.close_reason is None
            assert await (await accepted.accept_uni()).receive() == expected


async def test_a_connection_that_is_over_can_still_be_accepted() -> None:
    async with two_nodes() as (server, client):
        over = await connect_and_say(client, server, b"said before")
        over.close(3, "over")
        await server._table.incoming[-1].wait_closed()
        accepted = await server.accept()
        assert await (await accepted.accept_uni()).receive() == b"said before"
        with pytest.raises(ConnectionClosedByPeer, match="code 3"):
            await accepted.accept_uni()


async def test_garbage_harms_nobody() -> None:
    async with two_nodes() as (server, client):
        [target] = server.bound_addresses
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for size in (0, 1, 19, 20, 32, 62, 100, 1200, 1500):
                for first in (0x00, 0x01, 0x40, 0x54, 0x80, 0xC0, 0xFF):
                    stranger.sendto(bytes([first]) * size, target)
        connection = await client.connect(addr_of(server), alpn=ALPN)
        assert connection.remote_node_id == server.node_id


def files_in(folder: Path, pattern: str) -> list[Path]:
    return list(folder.glob(pattern))


async def test_qlog_and_keylog_are_written(tmp_path: Path) -> None:
    keylog = tmp_path / "keys.log"
    settings = {"qlog_dir": tmp_path, "keylog_file": keylog}
    async with two_nodes({}, settings) as (server, client):
        connection = await client.connect(addr_of(server), alpn=ALPN)
        connection.close()
        await connection.wait_closed()
    assert "CLIENT_TRAFFIC_SECRET_0" in keylog.read_text()
    assert keylog.stat().st_mode & 0o077 == 0
    assert files_in(tmp_path, "*.qlog")


async def test_log_files_that_cannot_be_written_harm_no_connection(tmp_path: Path) -> None:
    folder = tmp_path / "qlog"
    folder.mkdir()
    settings = {"qlog_dir": folder, "keylog_file": "/dev/full"}
    async with joined(settings, settings) as (dialled, accepted):
        await dialled.send_datagram(b"to")
        assert await accepted.receive_datagram() == b"to"
        folder.rmdir()


async def test_an_endpoint_lives_on_while_interfaces_cannot_be_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listed = anyio.Event()

    def fail() -> list[str]:
        listed.set()
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(endpoint_module, "WATCH_INTERVAL", 0.01)
    async with joined() as (dialled, accepted):
        monkeypatch.setattr(host, "interface_ips", fail)
        await listed.wait()
        await anyio.wait_all_tasks_blocked()
        await dialled.send_datagram(b"to")
        assert await accepted.receive_datagram() == b"to"


async def test_the_environment_names_the_keylog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys.log"))
    async with joined():
        pass
    assert "TRAFFIC_SECRET" in (tmp_path / "keys.log").read_text()


async def test_an_observer_sees_events_and_may_be_at_fault(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[str] = []

    def observe(event: object) -> None:
        seen.append(type(event).__name__)
        raise Mine

    async with two_nodes({"on_event": observe}) as (server, client):
        await client.connect(addr_of(server), alpn=ALPN)
        await server.accept()
    assert "ConnectionEstablished" in seen
    assert "on_event raised" in caplog.text


async def test_logs_hold_no_secrets(caplog: pytest.LogCaptureFixture) -> None:
    secret_key = SecretKey.generate()
    with caplog.at_level(logging.DEBUG):
        async with two_nodes({"secret_key": secret_key}) as (server, client):
            await client.connect(addr_of(server), alpn=ALPN)
    assert server.node_id == secret_key.public
    assert secret_key.public.fmt_short() in caplog.text
    assert secret_key.to_bytes().hex() not in caplog.text


async def test_remote_infos_tell_of_peers() -> None:
    async with two_nodes() as (server, client):
        await client.connect(addr_of(server), alpn=ALPN)
        assert [info.node_id for info in client.remote_infos()] == [server.node_id]


async def test_a_node_dialled_before_is_dialled_by_its_id_alone() -> None:
    async with two_nodes() as (server, client):
        await client.connect(addr_of(server), alpn=ALPN)
        assert (await client.connect(server.node_id, alpn=ALPN)).remote_node_id == server.node_id


async def test_a_closed_connection_says_who_closed_it() -> None:
    async with joined() as (dialled, accepted):
        dialled.close(7, "enough")
        dialled.close(8, "twice")
        reason = await accepted.wait_closed()
        assert (reason.kind, reason.code, reason.text, reason.by_peer) == (
            "application",
            7,
            "enough",
            True,
        )
        with pytest.raises(ConnectionClosedByPeer, match="code 7: enough") as caught:
            await accepted.open_bi()
        assert (caught.value.code, caught.value.reason, caught.value.by_peer) == (7, "enough", True)
        with pytest.raises(ConnectionClosedHere):
            await dialled.open_bi()
        assert (await dialled.wait_closed()).kind == "local"


async def test_a_defect_fails_everything_and_is_raised_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def defect(*args: object, **kwargs: object) -> None:
        raise Mine

    async def main() -> None:
        async with await bind() as client:
            connection = await client.connect(addr_of(server), alpn=ALPN)
            monkeypatch.setattr(client.machine, "receive_datagrams", defect)
            await (await server.accept()).send_datagram(b"x")
            with pytest.raises(ConnectionLost, match="stopped by a defect"):
                await connection.receive_datagram()
            with pytest.raises(EndpointClosed, match="stopped by a defect"):
                await client.accept()

    async with await bind(alpns=[ALPN]) as server:
        with anyio.fail_after(LIMIT), pytest.raises(ExceptionGroup) as caught:
            await main()
        assert caught.value.split(Mine)[1] is None


async def test_changes_of_the_host_are_told_to_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(endpoint_module, "WATCH_INTERVAL", 0.01)
    told: list[str] = []
    async with await bind() as endpoint:
        await anyio.sleep(0.03)
        for name in ("network_changed", "resumed"):
            monkeypatch.setattr(endpoint.machine, name, lambda now, name=name: told.append(name))
        await anyio.sleep(0.03)
        assert told == []
        monkeypatch.setattr(host, "interface_ips", lambda: ["127.0.0.1", "198.51.100.7"])
        await anyio.sleep(0.05)
        assert told == ["network_changed"]
        monkeypatch.setattr(host, "_sleep_seconds", lambda: 1e9)
        await anyio.sleep(0.05)
        assert told == ["network_changed", "resumed"]


async def test_a_server_known_by_name_tells_our_address() -> None:
    async with await Derper.bind(port=0, stun_port=0) as derper:
        url = f"http://localhost:{derper.port}"
        derp_map = DerpMap([DerpNode(url, stun_port=derper.stun_port)])
        found = anyio.Event()

        def observe(event: object) -> None:
            if isinstance(event, DirectAddressesChanged) and LOOPBACK in {
                address.ip for address in event.addresses
            }:
                found.set()

        # Loopback is no address to be reached at by itself; only the STUN answer makes it one.
        async with await bind(
            derp_map=derp_map, bind_addrs=["0.0.0.0:0"], on_event=observe
        ) as endpoint:
            with anyio.fail_after(LIMIT):
                await found.wait()
            assert endpoint.stats.received == 0
