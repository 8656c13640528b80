"""Decoding a stream of relay frames into typed objects, against wsproto's unmasked parse."""

from __future__ import annotations

import time

from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage

from iroh_proto.derp.codec import FramedCodec
from iroh_proto.derp.dialects.v3 import FRAMES as TABLE
from iroh_proto.derp.frames import RecvPacket
from iroh_proto.key import SecretKey
from tests.benchmarks.timing import interleaved

FRAME_COUNT = 2_080
PACKET = bytes(1200)
CHUNK_SIZE = 64 * 1024


def run() -> dict[str, float]:
    """Return the rate of decoding over wsproto's."""
    node_id = SecretKey(bytes(32)).public
    frame = FramedCodec(TABLE, is_server=True).encode(RecvPacket(node_id, PACKET))
    framed = _chunks(frame * FRAME_COUNT)
    server = Connection(ConnectionType.SERVER)
    messages = _chunks(server.send(BytesMessage(node_id + PACKET)) * FRAME_COUNT)

    def decode() -> float:
        codec = FramedCodec(TABLE, is_server=False)
        count = 0
        started = time.perf_counter()
        for chunk in framed:
            count += len(codec.receive(chunk))
        elapsed = time.perf_counter() - started
        assert count == FRAME_COUNT
        return elapsed

    def parse() -> float:
        connection = Connection(ConnectionType.CLIENT)
        count = 0
        started = time.perf_counter()
        for chunk in messages:
            connection.receive_data(chunk)
            for event in connection.events():
                assert isinstance(event, BytesMessage)
                count += event.message_finished
        elapsed = time.perf_counter() - started
        assert count == FRAME_COUNT
        return elapsed

    times = interleaved({"ours": decode, "wsproto": parse}, rounds=11)
    return {"decode": times["wsproto"] / times["ours"]}


def _chunks(data: bytes) -> list[bytes]:
    return [data[start : start + CHUNK_SIZE] for start in range(0, len(data), CHUNK_SIZE)]
