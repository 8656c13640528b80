"""The contract of the disco machine."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from iroh_proto.address import Address, DerpAddress, DerpUrl, UdpAddress
from iroh_proto.disco.pinger import (
    OUTSTANDING_PINGS_LIMIT,
    DiscoEvent,
    DiscoPinger,
    PingReceived,
)
from iroh_proto.key import SecretKey
from iroh_proto.testing.contract import Call, Flood, React, Run, Subject, contract_tests
from iroh_proto.testing.strategies import addresses, mutated, node_ids, udp_addresses

OURS, THEIRS = (SecretKey.generate(random.Random(seed)) for seed in (101, 102))
DERP = DerpAddress(DerpUrl.from_str("http://derp.example"), THEIRS.public)
PLACES: list[Address] = [DERP, UdpAddress("192.0.2.1", 1), UdpAddress("2001:db8::1", 2)]
PLACE = st.sampled_from(PLACES)


class Peer:
    """A node that pings and answers pings, on a machine of its own."""

    def __init__(self) -> None:
        self.pinger = DiscoPinger(secret_key=THEIRS, rng=random.Random(5))
        self.heard = 0

    def hear(self, run: Run[DiscoPinger]) -> list[PingReceived]:
        """Take what the machine sent since the last time, wherever it was sent."""
        batch, self.heard = run.sent[self.heard :], len(run.sent)
        self.pinger.receive_datagrams(batch, UdpAddress("192.0.2.99", 1), now=run.now)
        return [event for event in events_of(self.pinger) if isinstance(event, PingReceived)]

    def speak(self, source: Address) -> list[Call]:
        sent = [data for transmit in self.pinger.datagrams_to_send() for data in transmit.datagrams]
        return [Call("receive_datagrams", sent, source)] if sent else []


def events_of(pinger: DiscoPinger) -> list[DiscoEvent]:
    events = []
    while (event := pinger.next_event()) is not None:
        events.append(event)
    return events


def peer_of(run: Run[DiscoPinger]) -> Peer:
    assert isinstance(run.context, Peer)
    return run.context


def answer(run: Run[DiscoPinger]) -> list[Call]:
    peer = peer_of(run)
    for ping in peer.hear(run):
        peer.pinger.pong(ping, now=run.now)
    return peer.speak(PLACES[1])


def ping_us(source: Address) -> React[DiscoPinger]:
    def act(run: Run[DiscoPinger]) -> list[Call]:
        peer = peer_of(run)
        peer.pinger.ping(source, OURS.public, now=run.now)
        return peer.speak(source)

    return React(f"the peer pings from {source}", act)


def call_us(run: Run[DiscoPinger]) -> list[Call]:
    peer = peer_of(run)
    there = DerpAddress(DERP.url, OURS.public)
    peer.pinger.call_me_maybe(there, [UdpAddress("192.0.2.7", 7)], now=run.now)
    return peer.speak(DERP)


def answer_pings(run: Run[DiscoPinger]) -> list[Call]:
    return [Call("pong", event) for event in run.events if isinstance(event, PingReceived)]


def valid_ping(number: int) -> Call:
    pinger = DiscoPinger(
        secret_key=SecretKey.generate(random.Random(number)), rng=random.Random(number)
    )
    pinger.ping(PLACES[1], OURS.public, now=0.0)
    return Call("receive_datagrams", pinger.datagrams_to_send()[0].datagrams, PLACES[1])


def forged_ping(number: int) -> Call:
    data = bytearray(valid_ping_bytes(number))
    data[-1] ^= 1
    return Call(
        "receive_datagrams", [bytes(data)], UdpAddress(f"10.0.{number >> 8}.{number & 255}", 1)
    )


def valid_ping_bytes(number: int) -> bytes:
    (batch, _) = valid_ping(number).args
    assert isinstance(batch, list)
    assert isinstance(batch[0], bytes)
    return batch[0]


PINGER: Subject[DiscoPinger] = Subject(
    factory=lambda rng: DiscoPinger(secret_key=OURS, rng=rng),
    operations=st.one_of(
        PLACE.map(lambda addr: Call("ping", addr, THEIRS.public)),
        st.builds(Call, st.just("ping"), addresses(), node_ids()),
        st.just(React("the peer answers", answer)),
        st.just(React("pings are answered", answer_pings)),
        st.just(React("the peer calls", call_us)),
        PLACE.map(ping_us),
        st.lists(udp_addresses(), max_size=3).map(lambda own: Call("call_me_maybe", DERP, own)),
        st.sampled_from([Call("forget", THEIRS.public), Call("clear")]),
    ),
    floods=[
        Flood(
            "pings",
            lambda number: Call("ping", UdpAddress("192.0.2.1", number), THEIRS.public),
            count=3 * OUTSTANDING_PINGS_LIMIT,
        ),
        Flood("pings of new nodes", valid_ping),
        Flood("forged pings", forged_ping),
    ],
    garbage=st.binary() | mutated(st.just(valid_ping_bytes(1))),
    context=Peer,
)

TestDiscoPingerContract = contract_tests(PINGER)
