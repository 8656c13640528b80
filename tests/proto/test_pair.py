"""Two machines on one wire."""

from __future__ import annotations

import random

import pytest

from iroh_proto.address import DerpUrl, UdpAddress
from iroh_proto.derp.client import DerpClient
from iroh_proto.derp.events import ConnectionLost, DerpConnected, PongReceived
from iroh_proto.derp.server import DerpServerConnection
from iroh_proto.derp.server_events import ClientAdmitted
from iroh_proto.key import SecretKey
from iroh_proto.stun.probe import StunAddressFound, StunProbe, StunProbeTimedOut
from iroh_proto.stun.server import StunServer
from iroh_proto.testing.clock import LimitReached
from iroh_proto.testing.pair import DatagramPair, StreamPair

CLIENT, SERVER = UdpAddress("192.0.2.1", 1), UdpAddress("192.0.2.2", 3478)
OURS, THEIRS = (SecretKey.generate(random.Random(seed)) for seed in (1, 2))


def derp_pair(
    *, latency: float = 0.0, chunk_sizes: tuple[int, ...] = ()
) -> StreamPair[DerpClient, DerpServerConnection]:
    client = DerpClient(
        url=DerpUrl.from_str("http://derp.example"),
        secret_key=OURS,
        rng=random.Random(3),
        dialect="v3",
    )
    server = DerpServerConnection(secret_key=THEIRS, rng=random.Random(4))
    pair = StreamPair(client, server, now=100.0, latency=latency, chunk_sizes=chunk_sizes)
    client.start(now=pair.now)
    server.start(now=pair.now)
    return pair


def stun_pair(
    *, loss: float = 0.0, server: UdpAddress = SERVER
) -> DatagramPair[StunProbe, StunServer]:
    pair = DatagramPair(
        StunProbe(rng=random.Random(1)),
        StunServer(),
        left_addr=CLIENT,
        right_addr=SERVER,
        latency=0.03,
        loss=loss,
        rng=random.Random(5),
    )
    pair.left.machine.start(server, now=pair.now)
    return pair


@pytest.mark.parametrize("chunk_sizes", [(), (1,), (3, 50, 7)])
def test_a_stream_pair_shakes_hands_however_the_bytes_are_cut(chunk_sizes: tuple[int, ...]) -> None:
    pair = derp_pair(latency=0.05, chunk_sizes=chunk_sizes)
    pair.run_until(lambda: bool(pair.left.seen(PongReceived)), limit=5)
    assert [event.dialect for event in pair.left.seen(DerpConnected)] == ["v3"]
    assert [event.node_id for event in pair.right.seen(ClientAdmitted)] == [OURS.public]
    whole = derp_pair(latency=0.05)
    whole.run_until(lambda: bool(whole.left.seen(PongReceived)), limit=5)
    assert (pair.left.sent, pair.right.sent) == (whole.left.sent, whole.right.sent)
    assert pair.now == whole.now


def test_a_stream_pair_takes_the_latency_and_keeps_timers() -> None:
    pair = derp_pair(latency=0.5)
    when = pair.run_until(lambda: bool(pair.left.seen(PongReceived)), limit=10)
    assert pair.left.seen(PongReceived)[0].latency == 1.0
    pair.run_for(30.0)
    assert pair.now == when + 30.0
    assert len(pair.left.seen(PongReceived)) > 1


def test_a_side_that_closes_ends_the_other_after_what_it_sent() -> None:
    pair = derp_pair(latency=0.1)
    pair.run_until(lambda: bool(pair.left.seen(DerpConnected)), limit=5)
    pair.left.close()
    pair.run_for(1.0)
    assert len([record for record in pair.right.events if "Lost" in repr(record.value)]) == 1
    assert pair.left.seen(ConnectionLost) == []


def test_a_datagram_pair_asks_and_answers() -> None:
    pair = stun_pair()
    when = pair.run_until(lambda: bool(pair.left.seen(StunAddressFound)), limit=5)
    (found,) = pair.left.seen(StunAddressFound)
    assert (when, found.address, found.latency) == (0.06, CLIENT, 0.06)
    assert (len(pair.left.sent), len(pair.right.sent)) == (1, 1)


def test_a_lossy_datagram_pair_loses_what_its_chance_says() -> None:
    pair = stun_pair(loss=1.0)
    pair.run_until(lambda: bool(pair.left.seen(StunProbeTimedOut)), limit=5)
    assert pair.right.sent == []


def test_datagrams_to_somebody_else_do_not_arrive() -> None:
    pair = stun_pair(server=UdpAddress("192.0.2.3", 3478))
    with pytest.raises(LimitReached):
        pair.run_until(lambda: bool(pair.right.sent), limit=2)
    assert pair.now == 2.0
