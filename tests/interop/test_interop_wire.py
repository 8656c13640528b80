"""What released nodes put on the wire, read by our decoders, and our answers, read by them."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

import anyio
import pytest

from iroh_proto import NodeAddr, NodeId, SecretKey, UdpAddress
from iroh_proto.box import SharedBox
from iroh_proto.derp.dialects import DIALECTS
from iroh_proto.derp.frames import Frame, SendPacket, split_datagrams
from iroh_proto.derp.upgrade import ServerUpgrade, framed_headers
from iroh_proto.disco.message import (
    CallMeMaybe,
    DiscoMessage,
    Ping,
    decode_disco_message,
    is_disco,
    open_envelope,
)
from iroh_proto.disco.pinger import DiscoEvent, DiscoPinger, PingReceived, PongReceived
from tests.interop.conftest import StartPeer
from tests.interop.real_peer import RealPeer

pytestmark = pytest.mark.anyio

EventT = TypeVar("EventT")

ALPN = b"iroh-proto/test/wire/0"

WAIT = 15.0
"""Seconds for something to arrive from a peer: three rounds of its pings."""

RNG = random.SystemRandom()

LONG_HEADER = 0xC0
"""The bits of a QUIC handshake packet's first byte (RFC 9000, 17.2)."""


class DerpEar:
    """The server's end of one DERP connection, as far as a test wants to hear."""

    def __init__(self, sock: socket.socket, dialect: str) -> None:
        self._socket = sock
        self._dialect = DIALECTS[dialect]
        self._codec = self._dialect.server_codec("framed")
        self._frames: list[Frame] = []

    async def upgrade(self) -> bytes:
        """Take a request and agree to it; return its bytes, which must be all that comes."""
        upgrade = ServerUpgrade()
        received = await receive(self._socket)
        while upgrade.receive(received) is None:
            received += await receive(self._socket)
        answer, behind = upgrade.switch(framed_headers())
        assert behind == b""
        self._socket.sendall(answer)
        return received

    async def shake_hands(self) -> NodeId:
        """Run the handshake as a server with a fresh key and return who is there."""
        handshake = self._dialect.server_handshake(secret_key=SecretKey.generate(), rng=RNG)
        self._send(handshake.begin())
        node_id = handshake.receive(await self.frame())
        self._send(handshake.accept())
        assert isinstance(node_id, NodeId)
        return node_id

    async def frame(self) -> Frame:
        """Return the next frame."""
        while not self._frames:
            self._frames = self._codec.receive(await receive(self._socket))
            assert self._codec.error is None
        return self._frames.pop(0)

    async def datagrams(self, dst: NodeId) -> list[bytes]:
        """Return the datagrams of the next packet, which must be for ``dst``."""
        while not isinstance(frame := await self.frame(), SendPacket):
            pass
        assert frame.dst == dst
        return split_datagrams(frame.payload)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _send(self, frames: Iterable[Frame]) -> None:
        self._socket.sendall(b"".join(self._codec.encode(frame) for frame in frames))


async def receive(sock: socket.socket) -> bytes:
    await anyio.wait_readable(sock)
    if data := sock.recv(65536):
        return data
    raise ConnectionResetError


@contextmanager
def bound(kind: socket.SocketKind) -> Iterator[socket.socket]:
    with socket.socket(type=kind) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        yield sock


def begin_dial(peer: RealPeer, addr: NodeAddr) -> None:
    if peer.version == "0.12.0":
        peer.begin_download(addr)
    else:
        peer.begin_dial(addr, ALPN)


@pytest.mark.parametrize(
    ("version", "dialect", "generation", "vector"),
    [
        ("0.12.0", "v2", "iroh_0_6_to_0_13_derp_v2", "http_request_0_6_to_0_19_text"),
        ("0.28.1", "v3", "iroh_0_14_to_0_90_relay_v3", "http_request_0_28_to_0_90_text"),
        ("0.35.0", "v3", "iroh_0_14_to_0_90_relay_v3", "http_request_0_28_to_0_90_text"),
    ],
)
async def test_a_dial_through_a_derp_server_decodes(
    version: str,
    dialect: str,
    generation: str,
    vector: str,
    start_peer: StartPeer,
    vectors_path: Path,
) -> None:
    request: str = json.loads((vectors_path / "relay.json").read_text())[generation][vector]
    secret_key = SecretKey.generate()
    async with start_peer(version, **options(version)) as peer:
        with bound(socket.SOCK_STREAM) as listener:
            listener.listen()
            authority = f"127.0.0.1:{listener.getsockname()[1]}"
            begin_dial(peer, NodeAddr(secret_key.public, derp_url=f"http://{authority}"))
            with anyio.fail_after(WAIT):
                wanted = request.replace("relay.example", authority)
                with closing(await shake_hands(listener, dialect, wanted, peer.node_id)) as ear:
                    messages, quic = await first_datagrams(ear, secret_key, peer.node_id)
    assert isinstance(messages[0], Ping | CallMeMaybe)
    assert quic[0][0] & LONG_HEADER == LONG_HEADER


async def shake_hands(
    listener: socket.socket, dialect: str, request: str, node_id: NodeId
) -> DerpEar:
    """Let a node in that sends exactly this request.

    0.12 may hang up and come again, when its view of the machine's interfaces changes.
    """
    while True:
        await anyio.wait_readable(listener)
        sock, _ = listener.accept()
        ear = DerpEar(sock, dialect)
        try:
            assert await ear.upgrade() == request.encode()
            assert await ear.shake_hands() == node_id
        except ConnectionError:
            ear.close()
        else:
            return ear


async def first_datagrams(
    ear: DerpEar, secret_key: SecretKey, sender: NodeId
) -> tuple[list[DiscoMessage], list[bytes]]:
    """Return the first datagrams for us: disco messages, opened, and QUIC; some of each."""
    messages: list[DiscoMessage] = []
    quic: list[bytes] = []
    while not (messages and quic):
        for data in await ear.datagrams(secret_key.public):
            if is_disco(data):
                messages.append(open_disco(data, secret_key, sender))
            else:
                quic.append(data)
    return messages, quic


@pytest.mark.parametrize("version", ["0.2.0", "0.12.0", "0.28.1", "0.35.0"])
async def test_a_node_answers_our_pings(version: str, start_peer: StartPeer) -> None:
    pinger = DiscoPinger(secret_key=SecretKey.generate(), rng=RNG)
    async with start_peer(version, **options(version)) as peer:
        with bound(socket.SOCK_DGRAM) as sock:
            pinger.ping(peer.addresses[0], peer.node_id, now=anyio.current_time())
            event = await run_until(PongReceived, pinger, sock)
            assert event.node_id == peer.node_id
            assert event.observed == UdpAddress(*sock.getsockname())


@pytest.mark.parametrize("version", ["0.12.0", "0.28.1", "0.35.0"])
async def test_a_node_takes_our_pong_for_a_direct_path(version: str, start_peer: StartPeer) -> None:
    secret_key = SecretKey.generate()
    pinger = DiscoPinger(secret_key=secret_key, rng=RNG)
    async with start_peer(version, **options(version)) as peer:
        with bound(socket.SOCK_DGRAM) as sock:
            own = UdpAddress(*sock.getsockname())
            addr = NodeAddr(secret_key.public, direct_addresses=[own])
            begin_dial(peer, addr)
            ping = await run_until(PingReceived, pinger, sock)
            assert ping.node_id == peer.node_id
            pinger.pong(ping, now=anyio.current_time())
            send(pinger, sock)
            with anyio.fail_after(WAIT):
                while await peer.path_to(secret_key.public) != "direct":
                    await receive(sock)  # its next packet chooses the path anew


def options(version: str) -> dict[str, object]:
    """Return what the start of a release needs."""
    return {"alpns": []} if version in ("0.28.1", "0.35.0") else {}


def open_disco(datagram: bytes, secret_key: SecretKey, sender: NodeId) -> DiscoMessage:
    claimed, sealed = open_envelope(datagram)
    assert claimed == sender
    return decode_disco_message(SharedBox(secret_key, sender).open(sealed))


async def run_until(kind: type[EventT], pinger: DiscoPinger, sock: socket.socket) -> EventT:
    """Run a pinger on a socket until it tells something of a kind; answer nothing else."""
    with anyio.fail_after(WAIT):
        while True:
            send(pinger, sock)
            event: DiscoEvent | None
            while (event := pinger.next_event()) is not None:
                if isinstance(event, kind):
                    return event
            await anyio.wait_readable(sock)
            data, source = sock.recvfrom(65536)
            if is_disco(data):
                now = anyio.current_time()
                pinger.receive_datagrams([data], UdpAddress(*source), now=now)


def send(pinger: DiscoPinger, sock: socket.socket) -> None:
    for transmit in pinger.datagrams_to_send():
        for data in transmit.datagrams:
            assert isinstance(transmit.addr, UdpAddress)
            sock.sendto(data, transmit.addr)
