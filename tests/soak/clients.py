"""What comes to a DERP server: correct clients, and all kinds of others.

Each role is a coroutine that does one thing and then raises :class:`Broken` if the server did not
do as it should. The soak repeats them, many at a time.
"""

from __future__ import annotations

import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
from anyio.lowlevel import checkpoint

from iroh_proto.derp.frames import PeerGone, Ping, Pong, pack_datagrams
from iroh_proto.derp.relay_output import WRITE_TIMEOUT
from iroh_proto.derp.server_entry import HANDSHAKE_TIMEOUT, REQUEST_TIMEOUT
from iroh_proto.key import NodeId, SecretKey
from tests.proto.derp_peer import WAYS, Peer
from tests.soak.server import BURST_BYTES, RATE_LIMIT

PATIENCE = 30.0  # seconds for what takes no time on an idle machine
READ_SIZE = 65_536
BURST = 8
SIGN_OF_LIFE = b"are you?"
FLOOD_TIME = 3.0  # seconds
PAUSES = (0.5, 6.0)  # seconds between two bursts of one pair
# A v3 client on the old path has to speak within the moment that the server listens for it, which
# clients in this one process cannot promise.
SOAKED_WAYS = [way for way in WAYS if way != "v3 on the old path"]
FRAMED_WAYS = [way for way in SOAKED_WAYS if WAYS[way][2] == "framed"]


class Broken(AssertionError):
    """The server did not do as it should."""


class Link:
    """A TCP connection to the server."""

    def __init__(self, tcp_socket: socket.socket) -> None:
        self.socket = tcp_socket

    @classmethod
    async def open(cls, port: int, *, receive_buffer: int | None = None) -> Link:
        tcp_socket = socket.socket()
        tcp_socket.setblocking(False)
        if receive_buffer is not None:
            tcp_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            with suppress(BlockingIOError):
                tcp_socket.connect(("127.0.0.1", port))
            await anyio.wait_writable(tcp_socket)
        except BaseException:
            tcp_socket.close()
            raise
        return cls(tcp_socket)

    async def send(self, data: bytes) -> None:
        """Send everything, or raise ``OSError``."""
        view = memoryview(data)
        while view:
            try:
                view = view[self.socket.send(view) :]
            except BlockingIOError:
                await anyio.wait_writable(self.socket)

    async def receive(self) -> bytes:
        """Return what arrives, empty at the end of the connection, orderly or not."""
        while True:
            try:
                return self.socket.recv(READ_SIZE)
            except BlockingIOError:
                await anyio.wait_readable(self.socket)
            except OSError:
                return b""

    async def expect_end(self, seconds: float, why: str) -> bytes:
        """Return what arrives until the end, which must come in time."""
        received = b""
        with anyio.move_on_after(seconds + PATIENCE):
            while data := await self.receive():
                received += data
            return received
        raise Broken(f"{why}: still connected after {seconds} s")

    def close(self, *, abruptly: bool = False) -> None:
        if abruptly:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        anyio.notify_closing(self.socket)
        self.socket.close()


class Client(Link):
    """A client that has proven its key."""

    peer: Peer

    @classmethod
    async def join(
        cls, port: int, way: str, secret_key: SecretKey, *, receive_buffer: int | None = None
    ) -> Client:
        client = cls((await Link.open(port, receive_buffer=receive_buffer)).socket)
        client.peer = Peer(way, secret_key)
        try:
            await client.send(client.peer.request)
            with anyio.fail_after(PATIENCE):
                while not (client.peer.upgrade.is_switched and client.peer.handshake.is_done):
                    await client.send(client.peer.receive(await client._some()))
            # v3 says nothing when it lets one in, so ask for a sign of life.
            await client.send(client.peer.codec.encode(Ping(SIGN_OF_LIFE)))
            await client.until(lambda: Pong(SIGN_OF_LIFE) in client.peer.frames)
            client.peer.frames.clear()
        except BaseException:
            client.close()
            raise
        return client

    async def until(self, is_so: Callable[[], bool], seconds: float = PATIENCE) -> None:
        """Read, and answer pings, until something is so."""
        with anyio.fail_after(seconds):
            while not is_so():
                self.peer.receive(await self._some())
                for frame in [one for one in self.peer.frames if isinstance(one, Ping)]:
                    self.peer.frames.remove(frame)
                    await self.send(self.peer.codec.encode(Pong(frame.data)))

    async def be_idle(self, seconds: float) -> None:
        """Do nothing but answer pings."""
        with anyio.move_on_after(seconds):
            await self.until(lambda: False, seconds + PATIENCE)

    async def send_datagrams(self, dst: NodeId, datagrams: list[bytes]) -> None:
        for payload in pack_datagrams(datagrams):
            await self.send(self.peer.packet_to(dst, payload))

    async def _some(self) -> bytes:
        data = await self.receive()
        if not data:
            raise Broken("a correct client was thrown out")
        return data


class Crowd:
    """Those who come to one server.

    :ivar done: how often each role was played to its end.
    :ivar delivered: datagrams that correct clients received.
    """

    def __init__(self, port: int, rng: random.Random) -> None:
        self.port = port
        self.rng = rng
        self.done: Counter[str] = Counter()
        self.delivered = 0
        self._last_key = 0

    def new_key(self) -> SecretKey:
        self._last_key += 1
        return SecretKey(self._last_key.to_bytes(32, "big"))

    def any_way(self) -> str:
        return self.rng.choice(SOAKED_WAYS)

    async def correct_pair(self) -> None:
        """Two clients of any dialects talk for a while: everything arrives, in order, once."""
        pair = [await Client.join(self.port, self.any_way(), self.new_key())]
        try:
            pair.append(await Client.join(self.port, self.any_way(), self.new_key()))
            for turn in range(self.rng.randrange(2, 9)):
                sender, receiver = self.rng.sample(pair, 2)
                datagrams = [
                    struct.pack(">II", turn, number) + bytes(self.rng.randrange(1200))
                    for number in range(BURST)
                ]
                await sender.send_datagrams(receiver.peer.node_id, datagrams)
                expected = [(sender.peer.node_id, datagram) for datagram in datagrams]
                await receiver.until(
                    lambda: len(receiver.peer.datagrams()) >= BURST  # noqa: B023
                )
                if receiver.peer.datagrams() != expected:
                    raise Broken("datagrams were lost, changed, or out of order")
                receiver.peer.frames.clear()
                self.delivered += BURST
                async with anyio.create_task_group() as tasks:
                    pause = self.rng.uniform(*PAUSES)
                    for client in pair:
                        tasks.start_soon(client.be_idle, pause)
        finally:
            for client in pair:
                client.close(abruptly=self.rng.random() < 0.5)

    async def two_with_one_key(self) -> None:
        """The newer of two with one key gets what is sent to it; the older does not."""
        key, way = self.new_key(), self.any_way()
        older = await Client.join(self.port, way, key)
        newer = await Client.join(self.port, self.any_way(), key)
        other = await Client.join(self.port, self.any_way(), self.new_key())
        try:
            await other.send_datagrams(key.public, [b"to the newer"])
            await newer.until(lambda: bool(newer.peer.datagrams()))
            if older.peer.datagrams():
                raise Broken("the older of two with one key got a packet")
            if not older.peer.dialect.older_waits:
                await older.expect_end(0.0, "the older of two with one key")
        finally:
            for client in (older, newer, other):
                client.close()

    async def half_open(self) -> None:
        """Who says nothing, or stops in the middle of the handshake, is let go in time."""
        link = await Link.open(self.port)
        peer = Peer(self.any_way(), self.new_key())
        request = peer.request
        try:
            await link.send(request[: self.rng.choice([0, 10, len(request)])])
            started = time.monotonic()
            await link.expect_end(REQUEST_TIMEOUT + HANDSHAKE_TIMEOUT, "a stranger")
            if time.monotonic() - started < 1.0:
                raise Broken("a stranger was let go at once")
        finally:
            link.close()

    async def slow_handshake(self) -> None:
        """Who sends its request byte by byte has no more time than others."""
        link = await Link.open(self.port)
        try:
            with suppress(OSError):
                started = time.monotonic()
                for byte in Peer("v3", self.new_key()).request * 10:
                    await link.send(bytes([byte]))
                    await anyio.sleep(0.3)
                    if time.monotonic() > started + REQUEST_TIMEOUT + PATIENCE:
                        raise Broken("a slow stranger has all the time in the world")
        finally:
            link.close()

    async def garbage(self) -> None:
        """Noise at each stage ends the connection, and nothing else."""
        stage = self.rng.choice(["request", "handshake", "frames"])
        noise = self.rng.randbytes(self.rng.choice([1_000, 20_000, 200_000]))
        link: Link = await Link.open(self.port)
        try:
            if stage == "frames":
                link.close()
                link = await Client.join(self.port, self.any_way(), self.new_key())
                noise = b"\xff" * 10 + noise  # in no dialect the beginning of a frame
            elif stage == "handshake":
                await link.send(Peer(self.any_way(), self.new_key()).request)
                await link.receive()
            with suppress(OSError):
                await link.send(noise)
            await link.expect_end(REQUEST_TIMEOUT + HANDSHAKE_TIMEOUT, f"garbage in {stage}")
        finally:
            link.close()

    async def oversized_frame(self) -> None:
        """A frame that is too long ends the connection before it is there."""
        way = self.any_way()
        client = await Client.join(self.port, way, self.new_key())
        try:
            length = (2 << 20).to_bytes(8, "big")
            head = b"\x82\xff" + length + bytes(4) + b"\x04"
            if way in FRAMED_WAYS:
                head = b"\x04" + length[4:]
            with suppress(OSError):
                await client.send(head + bytes(100))
            await client.expect_end(0.0, "an oversized frame")
        finally:
            client.close()

    async def slow_reader(self) -> None:
        """Who stops reading is cut off; who sends to it is not held up."""
        reader = await Client.join(
            self.port, self.rng.choice(FRAMED_WAYS), self.new_key(), receive_buffer=4_096
        )
        sender = await Client.join(self.port, self.any_way(), self.new_key())
        try:
            # Who has sent something is told of at its end.
            await reader.send_datagrams(sender.peer.node_id, [b"hello"])
            await sender.until(lambda: bool(sender.peer.datagrams()))
            end = PeerGone(reader.peer.node_id)
            with anyio.move_on_after(WRITE_TIMEOUT + 2 * PATIENCE):
                while end not in sender.peer.frames:
                    with anyio.fail_after(PATIENCE):
                        await sender.send_datagrams(reader.peer.node_id, [bytes(1200)] * 40)
                    with anyio.move_on_after(0.2):
                        await sender.until(lambda: end in sender.peer.frames)
                return
            raise Broken("a client that does not read is kept")
        finally:
            sender.close()
            reader.close()

    async def flood(self) -> None:
        """Who sends without end gets its rate through and no more, and loses nothing."""
        sender = await Client.join(self.port, "v3", self.new_key())
        reader = await Client.join(self.port, "v3", self.new_key())
        packet = sender.peer.packet_to(reader.peer.node_id, b"\xb0\x04" + bytes(1200))
        sent = received = 0
        is_over = False
        started = time.monotonic()

        async def send() -> None:
            nonlocal sent, is_over
            while time.monotonic() < started + FLOOD_TIME:
                await sender.send(packet)
                sent += len(packet)
                await checkpoint()
            is_over = True

        try:
            with anyio.fail_after(FLOOD_TIME + 4 * PATIENCE):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(send)
                    while not is_over or received < sent:
                        if not (data := await reader.receive()):
                            raise Broken("a reader of a flood was thrown out")
                        received += len(data)
            allowed = RATE_LIMIT.bytes_per_second * (time.monotonic() - started)
            if received > allowed + 2 * BURST_BYTES + READ_SIZE:
                raise Broken("a flood came through faster than the limit")
        finally:
            sender.close()
            reader.close()

    async def impostor(self) -> None:
        """Who does not hold a key gets nothing that is sent to it."""
        victim, forger = self.new_key().public, Peer(self.any_way(), self.new_key())
        sender = await Client.join(self.port, self.any_way(), self.new_key())
        link = await Link.open(self.port)
        try:
            await link.send(forger.request)
            data = b""
            while not forger.upgrade.is_switched:
                data = forger.upgrade.receive(await link.receive())
            proof = list(forger.handshake.begin())
            while not proof:
                for frame in forger.codec.receive(data or await link.receive()):
                    proof += forger.handshake.receive(frame)
                data = b""
            for frame in proof:
                frame.node_id = victim  # type: ignore[attr-defined]  # as all proofs have one
                with suppress(OSError):
                    await link.send(forger.codec.encode(frame))
            secret = self.rng.randbytes(32)
            await sender.send_datagrams(victim, [secret])
            if secret in await link.expect_end(HANDSHAKE_TIMEOUT, "an impostor"):
                raise Broken("an impostor got what was not for it")
        finally:
            link.close()
            sender.close()

    def roles(self) -> dict[Callable[[], Awaitable[None]], int]:
        """Return the roles, and how many of a hundred play each."""
        return {
            self.correct_pair: 60,
            self.two_with_one_key: 5,
            self.half_open: 8,
            self.slow_handshake: 4,
            self.garbage: 8,
            self.oversized_frame: 4,
            self.slow_reader: 4,
            self.flood: 2,
            self.impostor: 5,
        }
