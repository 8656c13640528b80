"""Relaying packets, parsed, rewritten and grouped, against wsproto's unmasked parse.

``route`` is the way of a packet through codec and router, from bytes that were read to bytes to
write, for packets that go to 8 nodes at random; ``route_1`` and ``route_50`` are the same for
other numbers of them. ``server`` is all that a host of :class:`DerpServer` has done for it, queues
and timers included. Every way writes all packets.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage

from iroh_proto.derp.codec import FramedCodec
from iroh_proto.derp.dialects.v3 import FRAMES, FRAMES_OF_CLIENTS, V3ClientHandshake
from iroh_proto.derp.frames import PacketGroups, SendPacket
from iroh_proto.derp.relay import DerpServer
from iroh_proto.derp.router import DerpRouter
from iroh_proto.key import NodeId, SecretKey
from tests.benchmarks.timing import interleaved

FRAME_COUNT = 2_080
PACKET = bytes(1200)
CHUNK_SIZE = 64 * 1024
REQUEST = b"GET /relay HTTP/1.1\r\nupgrade: iroh derp http\r\n\r\n"
SENDER = SecretKey(bytes(32))
RECEIVERS = [SecretKey(bytes([number]) * 32) for number in range(1, 51)]


def run() -> dict[str, float]:
    """Return rates over wsproto's."""
    times = interleaved(
        {
            "wsproto": _parse(),
            "route": _route(8),
            "route_1": _route(1),
            "route_50": _route(50),
            "server": _serve(8),
        },
        rounds=11,
    )
    return {name: times["wsproto"] / times[name] for name in times if name != "wsproto"}


def _parse() -> Callable[[], float]:
    server = Connection(ConnectionType.SERVER)
    message = server.send(BytesMessage(SENDER.public + PACKET))
    chunks = _chunks(message * FRAME_COUNT)

    def measure() -> float:
        connection = Connection(ConnectionType.CLIENT)
        count = 0
        started = time.perf_counter()
        for chunk in chunks:
            connection.receive_data(chunk)
            for event in connection.events():
                assert isinstance(event, BytesMessage)
                count += event.message_finished
        elapsed = time.perf_counter() - started
        assert count == FRAME_COUNT
        return elapsed

    return measure


def _route(receivers: int) -> Callable[[], float]:
    chunks, size = _packets(receivers)
    router = DerpRouter()
    router.connect(0, SENDER.public)
    for number, receiver in enumerate(RECEIVERS, 1):
        router.connect(number, receiver.public)

    def measure() -> float:
        codec = FramedCodec(FRAMES_OF_CLIENTS, is_server=True)
        written = 0
        started = time.perf_counter()
        for chunk in chunks:
            for item in codec.receive_grouped(chunk, SENDER.public):
                assert isinstance(item, PacketGroups)
                for _, parts in router.route(0, item.groups):
                    for piece in codec.encode_relayed(parts):
                        written += len(piece)
        elapsed = time.perf_counter() - started
        assert written == size
        return elapsed

    return measure


def _serve(receivers: int) -> Callable[[], float]:
    chunks, size = _packets(receivers)
    server = DerpServer(secret_key=SENDER, rng=random.Random(1))
    codec = FramedCodec(FRAMES, is_server=False)
    for tcp_id, secret_key in enumerate([SENDER, *RECEIVERS]):
        server.accept_tcp(tcp_id, now=0.0)
        handshake = V3ClientHandshake(secret_key=secret_key)
        proof = b"".join(codec.encode(frame) for frame in handshake.begin())
        server.receive_tcp_data(tcp_id, REQUEST + proof, now=0.0)
        while server.tcp_data_to_send(tcp_id):
            pass
    while server.next_event() is not None:
        pass

    def measure() -> float:
        written = 0
        started = time.perf_counter()
        for number, chunk in enumerate(chunks):
            server.receive_tcp_data(0, chunk, now=number * 1e-3)
            for tcp_id in server.tcp_to_send():
                while data := server.tcp_data_to_send(tcp_id):
                    written += len(data)
        elapsed = time.perf_counter() - started
        assert written == size
        return elapsed

    return measure


def _packets(receivers: int) -> tuple[list[bytes], int]:
    codec = FramedCodec(FRAMES, is_server=False)
    frames = [codec.encode(SendPacket(node_id, PACKET)) for node_id in _node_ids(receivers)]
    rng = random.Random(receivers)
    stream = b"".join(rng.choice(frames) for _ in range(FRAME_COUNT))
    return _chunks(stream), len(stream)


def _node_ids(count: int) -> list[NodeId]:
    return [receiver.public for receiver in RECEIVERS[:count]]


def _chunks(data: bytes) -> list[bytes]:
    return [data[start : start + CHUNK_SIZE] for start in range(0, len(data), CHUNK_SIZE)]
