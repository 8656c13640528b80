"""A DERP server of several processes on one port, which to clients is one server."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream

from iroh_anyio import MagicEndpoint
from iroh_anyio.derper import Derper, DerperPool, worker_process
from iroh_anyio.derper.config_file import parse_config
from iroh_proto import DerpMap, DerpNode, NodeAddr, SecretKey, UdpAddress
from iroh_proto.address import DerpUrl
from iroh_proto.derp.frames import Frame, PeerGone, Ping, pack_datagrams
from iroh_proto.x25519 import x25519_of
from tests.anyio.nodes import ALPN, bind
from tests.anyio.test_derp_outage import IPV4, IPV6, Receiver, block, send_blocks
from tests.anyio.test_derper import ask_stun
from tests.anyio.test_derper_service import LOCAL, Tls, get, is_let_in, scrape
from tests.proto.derp_peer import Peer, key
from tests.proto.test_derp_curve_relay import disco_from

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
LIMIT = 60.0  # seconds, on a busy machine that starts some interpreters
ALICE, BOB, CAROL = key(2), key(3), key(4)
ENDS = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)
PORT_SETTING = 'http_bind_addr = "127.0.0.1:0"'


async def settled(is_so: Callable[[], bool]) -> None:
    with anyio.fail_after(LIMIT):
        while not is_so():  # noqa: ASYNC110 - nothing tells
            await anyio.sleep(0.01)


@asynccontextmanager
async def pool_of(workers: int, text: str = LOCAL) -> AsyncIterator[DerperPool]:
    with anyio.fail_after(2 * LIMIT):
        config = parse_config(f"{text}\n[derper]\nworkers = {workers}\ndrain_time = 0.5\n")
        async with await DerperPool.open(config) as pool:
            yield pool


async def test_workers_of_any_program_may_have_as_many_files_as_the_hard_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 500), hard))
    try:
        async with pool_of(2) as pool:
            for pid in pool.pids:
                assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Client:
    """A client of one generation, as bare as can be, on a socket."""

    def __init__(self, way: str, secret_key: SecretKey, stream: ByteStream) -> None:
        self.peer = Peer(way, secret_key)
        self.stream = stream
        self.is_closed = False

    async def prove_key(self) -> None:
        await self.stream.send(self.peer.request)
        while not (self.peer.upgrade.is_switched and self.peer.handshake.is_done):
            await self.stream.send(self.peer.receive(await self.stream.receive()) or b"")

    async def send(self, to: SecretKey, *datagrams: bytes) -> None:
        for payload in pack_datagrams(datagrams):
            await self.stream.send(self.peer.packet_to(to.public, payload))

    async def read(self) -> None:
        """Take what comes until the end."""
        with contextlib.suppress(*ENDS):
            while True:
                self.peer.receive(await self.stream.receive())
        self.is_closed = True

    def take(self, kind: type[Frame]) -> list[Frame]:
        """Return what came of a kind, and forget all that came."""
        found = [frame for frame in self.peer.frames if isinstance(frame, kind)]
        self.peer.frames.clear()
        return found

    async def received(self, *datagrams: bytes) -> None:
        """Wait until these have come, whatever else there is."""
        await settled(lambda: {data for _, data in self.peer.datagrams()} >= set(datagrams))

    async def is_reached_by(self, other: Client, own: SecretKey) -> None:
        """Have another client send until something arrives."""
        with anyio.fail_after(LIMIT):
            while not self.peer.datagrams():
                await other.send(own, b"are you there?")
                await anyio.sleep(0.05)


class Clients:
    """Brings clients on to workers of a server."""

    def __init__(self, pool: DerperPool) -> None:
        self._pool = pool
        self._tasks = anyio.create_task_group()
        self._streams: list[ByteStream] = []

    async def __aenter__(self) -> Clients:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *failure: Any) -> None:
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(*failure)
        for stream in self._streams:
            await stream.aclose()

    async def connect(self, way: str, secret_key: SecretKey, worker: int | None = None) -> Client:
        """Connect a client, to that worker: which one it is the kernel decides, so try again."""
        is_curve = way.startswith("tailscale")
        client_key = x25519_of(secret_key.public) if is_curve else secret_key.public
        while True:
            client = await self._connect(way, secret_key)
            await settled(lambda: self._pool.worker_of(client_key) is not None)
            if worker in (None, self._pool.worker_of(client_key)):
                self._tasks.start_soon(client.read)
                return client
            await client.stream.aclose()
            await settled(lambda: self._pool.worker_of(client_key) is None)

    async def connect_beside(self, way: str, secret_key: SecretKey, worker: int) -> Client:
        """Connect a second client with a key, to that worker."""
        while True:
            client = await self._connect(way, secret_key)
            with anyio.move_on_after(1):
                await settled(lambda: self._pool.worker_of(secret_key.public) == worker)
                self._tasks.start_soon(client.read)
                return client
            await client.stream.aclose()

    async def _connect(self, way: str, secret_key: SecretKey) -> Client:
        stream = await anyio.connect_tcp("127.0.0.1", self._pool.port)
        self._streams.append(stream)
        client = Client(way, secret_key, stream)
        await client.prove_key()
        return client


class TestMeeting:
    async def test_clients_of_all_generations_at_three_workers(self) -> None:
        async with pool_of(3) as pool, Clients(pool) as clients:
            ways = ["v2", "v3", "relay-v1", "relay-v2", "tailscale", "v3 websocket"]
            keys = [key(10 + number) for number in range(len(ways))]
            all_clients = [
                await clients.connect(way, secret_key, number % 3)
                for number, (way, secret_key) in enumerate(zip(ways, keys, strict=True))
            ]
            await settled(lambda: pool.count().clients == len(ways))
            await mesh_stands(pool)
            for client, source in zip(all_clients, keys, strict=True):
                for target in keys:
                    # By the first it is known which node a client of Tailscale's dialect is.
                    await client.send(target, disco_from(source.public))
                    await client.send(target, source.public + bytes(1000))
            for client, own in zip(all_clients, keys, strict=True):
                others = [source for source in keys if source is not own]
                await client.received(*(source.public + bytes(1000) for source in others))
            await settled(lambda: pool.count().server.router.packets_forwarded > 20)

    @pytest.mark.parametrize(("dialling", "serving"), [("relay-v2", "v3"), ("v2", "tailscale")])
    async def test_endpoints_talk_across_workers(self, dialling: str, serving: str) -> None:
        data = os.urandom(1_000_000)
        async with (
            pool_of(2) as pool,
            node_at(pool, serving, 0, alpns=[ALPN], **IPV4) as server,
            node_at(pool, dialling, 1, **IPV6) as client,
        ):
            await mesh_stands(pool)
            addr = NodeAddr(server.node_id, derp_url=pool.url)
            sent_to = await client.connect(addr, alpn=ALPN)
            received_from = await server.accept()
            async with anyio.create_task_group() as tasks:
                stream = await sent_to.open_bi()

                async def send() -> None:
                    await stream.send(data)
                    await stream.send_eof()

                tasks.start_soon(send)
                arrived = b"".join([chunk async for chunk in await received_from.accept_bi()])
            assert arrived == data
            assert sent_to.path.kind == "derp"


async def mesh_stands(pool: DerperPool) -> None:
    """Wait until each worker is connected to each other one."""
    workers = pool._config.workers
    links = 2 * workers * (workers - 1)  # one in each dialect that has meshes
    await settled(
        lambda: pool.count().server.connections.clients_admitted >= links + pool.count().clients
    )


@asynccontextmanager
async def node_at(
    pool: DerperPool, dialect: str, worker: int, **settings: Any
) -> AsyncIterator[MagicEndpoint]:
    """Run a node whose home is a worker: which one it is the kernel decides, so try again."""
    derp_map = DerpMap([DerpNode(pool.url, stun_port=None, dialect=dialect)])
    while True:
        async with await bind(derp_map=derp_map, **settings) as endpoint:
            await endpoint.node_addr()
            if await worker_with(pool, endpoint, dialect) == worker:
                yield endpoint
                return


async def worker_with(pool: DerperPool, endpoint: MagicEndpoint, dialect: str) -> int | None:
    node_id = endpoint.node_id
    client_key = x25519_of(node_id) if dialect == "tailscale" else node_id
    await settled(lambda: pool.worker_of(client_key) is not None)
    return pool.worker_of(client_key)


class TestOneKeyAtTwoWorkers:
    async def test_the_older_one_is_closed_up_to_v3(self) -> None:
        async with pool_of(2) as pool, Clients(pool) as clients:
            older = await clients.connect("v3", ALICE, 0)
            bob = await clients.connect("v3", BOB, 0)
            await mesh_stands(pool)
            newer = await clients.connect_beside("v3", ALICE, 1)
            await settled(lambda: older.is_closed)
            await newer.is_reached_by(bob, ALICE)

    async def test_the_older_one_of_later_generations_waits_and_takes_its_place_again(self) -> None:
        async with pool_of(2) as pool, Clients(pool) as clients:
            older = await clients.connect("relay-v2", ALICE, 0)
            bob = await clients.connect("v3", BOB, 0)
            await mesh_stands(pool)
            newer = await clients.connect_beside("relay-v2", ALICE, 1)
            standing = older.peer.dialect.standing(is_active=False)
            await settled(lambda: standing in older.peer.frames)
            await newer.is_reached_by(bob, ALICE)
            older.peer.frames.clear()
            await bob.send(ALICE, b"to the newer")
            await newer.received(b"to the newer")
            await newer.stream.aclose()
            again = older.peer.dialect.standing(is_active=True)
            await settled(lambda: again in older.peer.frames)
            await bob.send(ALICE, b"to the older")
            await older.received(b"to the older")
            assert not older.is_closed
            assert (ALICE.public, b"to the newer") not in older.peer.datagrams()

    async def test_that_a_node_is_gone_is_told_when_it_left_the_whole_server(self) -> None:
        async with pool_of(2) as pool, Clients(pool) as clients:
            first = await clients.connect("relay-v2", ALICE, 0)
            bob = await clients.connect("v3", BOB, 1)
            await mesh_stands(pool)
            second = await clients.connect_beside("relay-v2", ALICE, 1)
            await first.send(BOB, b"first")
            await second.send(BOB, b"second")
            await bob.received(b"first", b"second")
            bob.peer.frames.clear()
            await first.stream.aclose()
            await settled(lambda: pool._seats._keys[0][ALICE.public] == {1: 1})
            await bob.stream.send(bob.peer.codec.encode(Ping(bytes(8))))
            await settled(lambda: bool(bob.peer.frames))
            assert bob.take(PeerGone) == []
            await second.stream.aclose()
            await settled(lambda: PeerGone(ALICE.public) in bob.peer.frames)


class TestLosingWorkers:
    async def test_streams_go_on_when_a_worker_is_killed(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with (
            pool_of(2) as pool,
            node_at(pool, "v3", 0, alpns=[ALPN], **IPV4) as server,
            node_at(pool, "relay-v2", 1, **IPV6) as client,
        ):
            await mesh_stands(pool)
            before = pool.pids
            addr = NodeAddr(server.node_id, derp_url=pool.url)
            dialled = await client.connect(addr, alpn=ALPN)
            accepted = await server.accept()
            receiver = Receiver()
            async with anyio.create_task_group() as transfer:
                transfer.start_soon(receiver.run, accepted)
                transfer.start_soon(send_blocks, dialled)
                await receiver.began.wait()
                os.kill(pool._workers[0].pid, signal.SIGKILL)
            assert bytes(receiver.data) == b"".join(block(number) for number in range(400))
            await settled(lambda: len(pool.pids) == 2)
            assert len(set(pool.pids) - set(before)) == 1
            assert "signal 9" in caplog.text
            # Whoever comes from now on may be at either, and finds those at the other.
            async with Clients(pool) as clients:
                alice = await clients.connect("v3", ALICE, 0)
                bob = await clients.connect("v3", BOB, 1)
                await bob.is_reached_by(alice, BOB)
                await alice.is_reached_by(bob, ALICE)

    async def test_a_worker_that_hangs_is_replaced_and_an_idle_one_is_not(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(worker_process, "SILENCE_LIMIT", 4.0)
        async with pool_of(2) as pool:
            hanging, idle = (pool._workers[number].pid for number in (0, 1))
            os.kill(hanging, signal.SIGSTOP)
            await settled(lambda: len(pool.pids) == 2 and hanging not in pool.pids)
            assert idle in pool.pids
            assert "no sign of life for 4 s" in caplog.text

    async def test_counts_of_a_worker_that_died_stay(self) -> None:
        async with pool_of(2) as pool, Clients(pool) as clients:
            await clients.connect("v3", ALICE, 0)
            await settled(lambda: pool.count().clients == 1)
            os.kill(pool._workers[0].pid, signal.SIGKILL)
            await settled(lambda: pool.count().clients == 0)
            metrics = await scrape_pool(pool)
            assert metrics["relayserver_accepts_total"] >= 1
            assert metrics["derper_clients"] == 0
            assert pool.worker_of(ALICE.public) is None


async def scrape_pool(pool: DerperPool) -> dict[str, float]:
    return await scrape(pool)  # type: ignore[arg-type]  # it has the same ports


class TestServices:
    async def test_what_is_beside_the_relay_is_there_once(self, tmp_path: Path) -> None:
        tls = Tls(tmp_path)
        text = tls.text.replace(
            "[tls]", 'enable_quic_addr_discovery = true\n[tls]\nquic_bind_addr = "127.0.0.1:0"'
        )
        async with pool_of(2, text) as pool:
            assert pool.stun_port is not None
            assert await ask_stun(UdpAddress("127.0.0.1", pool.stun_port))
            async with tls.client() as client:
                for _ in range(4):  # at whichever worker
                    assert (await client.get(f"{pool.url}/ping")).status_code == 200
            assert (await get(f"http://127.0.0.1:{pool.plain_port}/generate_204")).is_success
            url = f"https://localhost:{pool.port}"
            node = DerpNode(url, stun_port=None, quic_port=pool.quic_port)
            settings = {"derp_map": DerpMap([node]), "ca_file": tls.ca_file}
            async with await bind(**settings) as endpoint:
                await endpoint.node_addr()
                await settled(lambda: endpoint.machine.qad_stats.answered == 1)
                await settled(lambda: pool.count().clients == 1)
            metrics = await scrape_pool(pool)
            assert metrics["relayserver_qad_connections_total"] == 1
            assert metrics["stun_responses_total"] == 1
            expires = tls.authority.certificate.not_valid_after_utc.timestamp()
            assert metrics["derper_certificate_expires_seconds"] == expires

    async def test_settings_change_in_all_workers(self) -> None:
        async with pool_of(2) as pool:
            assert await is_let_in(pool, ALICE)  # type: ignore[arg-type]
            text = f'{LOCAL}access.denylist = ["{ALICE.public}"]\n[derper]\nworkers = 2\n'
            assert pool.reload(parse_config(text)) == []
            for _ in range(5):
                assert not await is_let_in(pool, ALICE)  # type: ignore[arg-type]
            assert await is_let_in(pool, BOB)  # type: ignore[arg-type]
            assert pool.reload(parse_config(text.replace("2", "3"))) != []

    async def test_settings_that_cannot_be_passed_on_change_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(name: str) -> int:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        async with pool_of(2) as pool:
            text = f'{LOCAL}access.denylist = ["{ALICE.public}"]\n[derper]\nworkers = 2\n'
            with monkeypatch.context() as patch:
                patch.setattr(os, "memfd_create", refuse)
                with pytest.raises(OSError, match="Too many open files"):
                    pool.reload(parse_config(text))
            os.kill(pool.pids[0], signal.SIGKILL)  # whoever comes instead is given what holds
            await settled(lambda: len(pool.pids) < 2)
            await settled(lambda: len(pool.pids) == 2)
            for _ in range(5):
                assert await is_let_in(pool, ALICE)  # type: ignore[arg-type]

    async def test_a_port_that_somebody_has_is_an_error(self) -> None:
        async with pool_of(2) as pool:
            text = LOCAL.replace(PORT_SETTING, f'http_bind_addr = "127.0.0.1:{pool.port}"')
            assert text != LOCAL
            for kind, workers in ((DerperPool, 2), (Derper, 1)):
                with pytest.raises(OSError, match="cannot bind"):
                    await kind.open(parse_config(f"{text}[derper]\nworkers = {workers}\n"))
        # And it is free again at once.
        async with await Derper.open(parse_config(text)) as derper:
            assert DerpUrl.from_str(derper.url).port == pool.port


class TestEnding:
    async def test_clients_are_told_and_all_processes_end(self) -> None:
        async with pool_of(2) as pool, Clients(pool) as clients:
            alice = await clients.connect("v3", ALICE, 0)
            bob = await clients.connect("relay-v2", BOB, 1)
            await mesh_stands(pool)
            pids = pool.pids
            start = anyio.current_time()
            await pool.drain()
            assert anyio.current_time() - start < 10
            await settled(lambda: alice.is_closed and bob.is_closed)
            assert not any(map(is_running, pids))
            assert len(bob.peer.frames) > 0
            with pytest.raises(OSError, match=r"."):
                await anyio.connect_tcp("127.0.0.1", pool.port)

    async def test_an_idle_server_is_drained_at_once(self) -> None:
        config = parse_config(f"{LOCAL}[derper]\nworkers = 2\ndrain_time = 600\n")
        async with await DerperPool.open(config) as pool:
            with anyio.fail_after(LIMIT):
                await pool.drain()


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


class TestCommand:
    """``iroh-anyio derper --workers``, as seen from outside."""

    @pytest.mark.parametrize(
        ("number", "code"),
        [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)],
        ids=lambda value: value.name if isinstance(value, signal.Signals) else "",
    )
    def test_no_process_is_left_whatever_ends_it(
        self, number: signal.Signals, code: int, tmp_path: Path
    ) -> None:
        file = tmp_path / "derper.toml"
        file.write_text(f"{LOCAL}[derper]\ndrain_time = 0.5\n")
        with command("--config", str(file), "--workers", "2") as process:
            listening = json.loads(process.stdout.readline())
            assert set(listening) >= {"url", "port", "stun_port", "metrics_port"}
            workers = children_of(process.pid)
            assert len(workers) == 2
            with socket.create_connection(("127.0.0.1", listening["port"]), timeout=10) as web:
                web.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert web.recv(1024).startswith(b"HTTP/1.1 200")
            process.send_signal(number)
            assert process.wait(LIMIT) == code
            end = time.monotonic() + LIMIT
            while any(map(is_running, workers)) and time.monotonic() < end:
                time.sleep(0.02)
            assert not any(map(is_running, workers))
            assert b"Traceback" not in process.stderr.read()

    def test_the_number_in_the_file_holds_and_a_mesh_does_not_go_with_it(
        self, tmp_path: Path
    ) -> None:
        file = tmp_path / "derper.toml"
        mesh = f'{LOCAL}[derper.mesh]\nkey_file = "{tmp_path}/key"\n'
        (tmp_path / "key").write_text("ab" * 32)
        file.write_text(mesh)
        with command("--config", str(file), "--workers", "2") as process:
            assert process.wait(LIMIT) == 2
            assert b"derper.mesh" in process.stderr.read()
        file.write_text(mesh.replace("[derper.mesh]", "[derper]\nworkers = 2\n[derper.mesh]"))
        with command("--config", str(file), "--check-config") as process:
            assert process.wait(LIMIT) == 1
            assert b"derper.workers" in process.stderr.read()


@contextmanager
def command(*arguments: str) -> Iterator[Any]:
    with subprocess.Popen(
        [sys.executable, "-m", "iroh_anyio", "derper", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]
