"""Relaying packets, parsed, rewritten and grouped, against wsproto's unmasked parse.

``route`` is the way of a packet from bytes that were read to bytes to write, one piece for each
node, for a client that sends to 4 nodes in turn, 10 packets in a burst as QUIC does. ``route_1`` is
the same for one node, ``route_random`` for one of 50 nodes by chance for each packet, so that
hardly two can be written together. ``server`` is all that a host of :class:`DerpServer` has done
for it, looking up who is connected, queues and timers included, for 4 nodes.

Bytes are copied just before they are parsed, untimed: a server parses what it has just read, which
is in the processor's cache. Time is that of the processor: the slower contender would otherwise
pay for more of what else the machine does.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable

from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage

from iroh_proto.derp.codec import FramedCodec
from iroh_proto.derp.dialects.v3 import FRAMES, FRAMES_OF_CLIENTS, V3ClientHandshake
from iroh_proto.derp.frames import PacketGroups, SendPacket
from iroh_proto.derp.relay import DerpServer
from iroh_proto.key import NodeId, SecretKey
from tests.benchmarks.timing import interleaved

FRAME_COUNT = 2_080
PACKET = bytes(1200)
BURST = 10
CHUNK_SIZE = 64 * 1024
READS = 3  # chunks copied at a time: few enough for the cache, enough to read the clock rarely
REQUEST = b"GET /relay HTTP/1.1\r\nupgrade: iroh derp http\r\n\r\n"
SENDER = SecretKey(bytes(32))
RECEIVERS = [SecretKey(bytes([number]) * 32) for number in range(1, 51)]


def run() -> dict[str, float]:
    """Return rates over wsproto's."""
    times = interleaved(
        {
            "wsproto": _parse(),
            "route": _route(_in_bursts(4)),
            "route_1": _route(_in_bursts(1)),
            "route_random": _route(_at_random(50)),
            "server": _serve(_in_bursts(4)),
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

        def parse(data: bytes) -> None:
            nonlocal count
            connection.receive_data(data)
            for event in connection.events():
                assert isinstance(event, BytesMessage)
                count += event.message_finished

        elapsed = _time(parse, chunks)
        assert count == FRAME_COUNT
        return elapsed

    return measure


def _route(destinations: list[NodeId]) -> Callable[[], float]:
    chunks, size = _packets(destinations)

    def measure() -> float:
        codec = FramedCodec(FRAMES_OF_CLIENTS, is_server=True)
        written = 0

        def route(data: bytes) -> None:
            nonlocal written
            for item in codec.receive_grouped(data, SENDER.public):
                assert isinstance(item, PacketGroups)
                for parts in item.groups.values():
                    (piece,) = codec.encode_relayed(parts)
                    written += len(piece)

        elapsed = _time(route, chunks)
        assert written == size
        return elapsed

    return measure


def _serve(destinations: list[NodeId]) -> Callable[[], float]:
    chunks, size = _packets(destinations)
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
        clock = itertools.count()

        def serve(data: bytes) -> None:
            nonlocal written
            server.receive_tcp_data(0, data, now=next(clock) * 1e-3)
            for tcp_id in server.tcp_to_send():
                while unsent := server.tcp_data_to_send(tcp_id):
                    written += len(unsent)

        elapsed = _time(serve, chunks)
        assert written == size
        return elapsed

    return measure


def _time(work: Callable[[bytes], None], chunks: list[bytes]) -> float:
    elapsed = 0.0
    for start in range(0, len(chunks), READS):
        batch = [bytes(bytearray(chunk)) for chunk in chunks[start : start + READS]]
        started = time.thread_time()
        for data in batch:
            work(data)
        elapsed += time.thread_time() - started
    return elapsed


def _in_bursts(receivers: int) -> list[NodeId]:
    return [RECEIVERS[number // BURST % receivers].public for number in range(FRAME_COUNT)]


def _at_random(receivers: int) -> list[NodeId]:
    rng = random.Random(receivers)
    return [RECEIVERS[rng.randrange(receivers)].public for _ in range(FRAME_COUNT)]


def _packets(destinations: list[NodeId]) -> tuple[list[bytes], int]:
    codec = FramedCodec(FRAMES, is_server=False)
    stream = b"".join(codec.encode(SendPacket(node_id, PACKET)) for node_id in destinations)
    return _chunks(stream), len(stream)


def _chunks(data: bytes) -> list[bytes]:
    return [data[start : start + CHUNK_SIZE] for start in range(0, len(data), CHUNK_SIZE)]
