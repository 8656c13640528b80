"""The contract of the endpoint machine, with a whole endpoint as its peer.

Randomness inside the QUIC implementation is its own, so bytes on the wire are compared by length.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from contextlib import suppress

from hypothesis import strategies as st

from iroh_anyio.quic.endpoint_machine import EndpointMachine
from iroh_anyio.quic.events import ConnectionEstablished, StreamDataReceived
from iroh_anyio.quic.options import EndpointOptions
from iroh_proto.address import NodeAddr, UdpAddress
from iroh_proto.errors import LocalProtocolError
from iroh_proto.key import SecretKey
from iroh_proto.magicsock import InterfacesRequested
from iroh_proto.testing.contract import Call, Flood, React, Run, Subject, Wait, contract_tests
from tests.proto.contract_runs import begun

OURS, THEIRS = (SecretKey.generate(random.Random(seed)) for seed in (301, 302))
HERE, THERE = UdpAddress("192.0.2.1", 5000), UdpAddress("192.0.2.2", 6000)
PEER_ADDR = NodeAddr(THEIRS.public, direct_addresses=[THERE])
OUR_ADDR = NodeAddr(OURS.public, direct_addresses=[HERE])
ALPN = b"contract/0"
UNIX_TIME = 1_700_000_000.0

# Small limits, so that floods meet them soon: a connection takes about 100 KiB.
OPTIONS = EndpointOptions(
    identity="raw",
    max_connections=16,
    max_half_open=6,
    retry_threshold=3,
    stream_window=65_536,
    connection_window=131_072,
    send_buffer=65_536,
    datagram_queue=16,
    max_streams=8,
)


def make_endpoint(secret_key: SecretKey, rng: random.Random) -> EndpointMachine:
    return EndpointMachine(
        secret_key=secret_key, alpns=[ALPN], rng=rng, unix_time=UNIX_TIME, options=OPTIONS
    )


class Peer:
    """The node at the other end. It talks back what it hears on streams."""

    def __init__(self) -> None:
        self.machine = make_endpoint(THEIRS, random.Random(7))
        self.heard = 0
        self.is_started = False
        self.connections: list[int] = []

    def hear(self, run: Run[EndpointMachine]) -> None:
        if not self.is_started:
            self.is_started = True
            self.machine.start([THERE], now=run.now)
            self.react(run.now)
        self.machine.handle_timer(now=run.now)
        batch, self.heard = run.sent[self.heard :], len(run.sent)
        self.machine.receive_datagrams(batch, HERE, now=run.now)
        self.react(run.now)

    def react(self, now: float) -> None:
        while (event := self.machine.next_event()) is not None:
            if isinstance(event, ConnectionEstablished):
                self.connections.append(event.connection)
            elif isinstance(event, InterfacesRequested):
                self.machine.complete_interfaces(event.request_id, [THERE.ip], now=now)
            elif isinstance(event, StreamDataReceived):
                self.machine.consume(event.connection, event.stream_id, len(event.data), now=now)

    def speak(self) -> Iterable[Call]:
        for transmit in self.machine.datagrams_to_send():
            if transmit.addr == HERE:
                yield Call("receive_datagrams", list(transmit.datagrams), THERE)


def peer_of(run: Run[EndpointMachine]) -> Peer:
    assert isinstance(run.context, Peer)
    return run.context


def converse(run: Run[EndpointMachine], rounds: int = 1) -> Iterable[Call]:
    for _ in range(rounds):
        peer_of(run).hear(run)
        yield from peer_of(run).speak()


def peer_does(
    label: str, command: Callable[[EndpointMachine, int, float], object]
) -> React[EndpointMachine]:
    """Have the peer do something on its latest connection."""

    def act(run: Run[EndpointMachine]) -> Iterable[Call]:
        peer = peer_of(run)
        peer.hear(run)
        if peer.connections:
            with suppress(LocalProtocolError):  # that one may be over
                command(peer.machine, peer.connections[-1], run.now)
        return peer.speak()

    return React(f"the peer {label}", act)


def peer_dials(run: Run[EndpointMachine]) -> Iterable[Call]:
    peer = peer_of(run)
    peer.hear(run)
    with suppress(LocalProtocolError):  # it may have enough connections
        peer.machine.connect(OUR_ADDR, alpn=ALPN, now=run.now)
    yield from peer.speak()
    yield from converse(run, 2)


def peer_sends(machine: EndpointMachine, connection: int, now: float) -> None:
    stream_id = machine.open_stream(connection, bidirectional=True)
    machine.send_stream(connection, stream_id, bytes(3000), end=True, now=now)


def peer_resets(machine: EndpointMachine, connection: int, now: float) -> None:
    stream_id = machine.open_stream(connection, bidirectional=False)
    machine.send_stream(connection, stream_id, b"never mind", now=now)
    machine.reset_stream(connection, stream_id, 7, now=now)


def peer_closes(machine: EndpointMachine, connection: int, now: float) -> None:
    machine.close_connection(connection, 9, "enough", now=now)


def answer_interfaces(run: Run[EndpointMachine]) -> Iterable[Call]:
    for event in run.events:
        if isinstance(event, InterfacesRequested):
            yield Call("complete_interfaces", event.request_id, [HERE.ip])


CONVERSE = React("they talk", converse)
HANDSHAKE: React[EndpointMachine] = React("they talk for long", lambda run: converse(run, 4))
DIAL = Call("connect", PEER_ADDR, alpn=ALPN)

connections = st.sampled_from([0, 0, 0, 1])
streams = st.sampled_from([0, 0, 1, 2, 3, 5])
codes = st.sampled_from([0, 7, 2**62 - 1, 2**62])


def commands() -> st.SearchStrategy[Call]:
    return st.one_of(
        st.builds(
            lambda connection, bidirectional: Call.timeless(
                "open_stream", connection, bidirectional=bidirectional
            ),
            connections,
            st.booleans(),
        ),
        st.builds(
            lambda connection, stream, size, end: Call(
                "send_stream", connection, stream, bytes(size), end=end
            ),
            connections,
            streams,
            st.sampled_from([0, 5, 5000, 70_000]),
            st.booleans(),
        ),
        st.builds(Call, st.just("reset_stream"), connections, streams, codes),
        st.builds(Call, st.just("stop_sending"), connections, streams, codes),
        st.builds(Call, st.just("consume"), connections, streams, st.sampled_from([0, 10, 3000])),
        st.builds(
            Call, st.just("send_datagram"), connections, st.sampled_from([b"", b"x", bytes(1300)])
        ),
        st.builds(Call, st.just("close_connection"), connections, codes, st.just("bye")),
    )


def operations() -> st.SearchStrategy[Call | React[EndpointMachine]]:
    return st.one_of(
        commands(),
        commands(),
        st.sampled_from([CONVERSE, HANDSHAKE]),
        st.sampled_from([DIAL, React("the peer dials", peer_dials)]),
        st.sampled_from(
            [
                peer_does("sends", peer_sends),
                peer_does("resets", peer_resets),
                peer_does("closes", peer_closes),
            ]
        ),
        st.sampled_from(
            [
                Call.timeless("set_alpns", [b"other"]),
                Call("network_changed"),
                Call("resumed"),
                Call("close"),
            ]
        ),
    )


def new_client(number: int) -> React[EndpointMachine]:
    """Have a client nobody knows send its first packets from an address of its own."""

    def act(run: Run[EndpointMachine]) -> Iterable[Call]:
        client = make_endpoint(SecretKey.generate(random.Random(number)), random.Random(number))
        client.start([THERE], now=run.now)
        client.connect(OUR_ADDR, alpn=ALPN, now=run.now)
        source = UdpAddress(f"10.0.{number >> 8}.{number & 255}", 1)
        for transmit in client.datagrams_to_send():
            yield Call("receive_datagrams", list(transmit.datagrams), source)

    return React(f"client {number}", act)


def endpoint_subject(
    begin: list[Call | React[EndpointMachine]], floods: list[Flood[EndpointMachine]]
) -> Subject[EndpointMachine]:
    return Subject(
        factory=lambda rng: make_endpoint(OURS, rng),
        context=Peer,
        begin=[Call("start", [HERE]), *begin],
        operations=operations(),
        misuses=st.sampled_from(
            [
                Call("start", [HERE]),
                Call("connect", OUR_ADDR, alpn=ALPN),
                Call("connect", PEER_ADDR, alpn=b""),
                Call("send_stream", 99, 0, b""),
                Call("consume", 99, 0, 1),
                Call("close_connection", 99, 0, ""),
                Call("close_connection", 0, 0, "\udc80"),
                Call("complete_interfaces", 10**9, []),
                Call("complete_dns", 10**9, []),
                Call.timeless("set_alpns", [b"x" * 256]),
            ]
        ),
        floods=floods,
        garbage=st.binary(max_size=30).map(lambda data: b"\x40" + data),
        stats=lambda machine: (machine.stats, machine.magicsock.stats),
        blur=len,
        answers_when_drained=True,
        effort=0.25,
    )


HOST_ANSWERS = React("the host answers", answer_interfaces)
CONNECTED: list[Call | React[EndpointMachine]] = [HOST_ANSWERS, DIAL, HANDSHAKE]

TestEndpointContract = contract_tests(
    endpoint_subject(
        [HOST_ANSWERS],
        [
            Flood("clients", new_client, count=60),
            Flood("dials", lambda number: DIAL, count=60),
            Flood(
                "packets of nobody",
                lambda number: Call(
                    "receive_datagrams", [b"\x40" + number.to_bytes(1199, "big")], THERE
                ),
            ),
        ],
    )
)

TestConnectedEndpointContract = contract_tests(
    endpoint_subject(
        CONNECTED,
        [
            Flood("streams", lambda number: Call.timeless("open_stream", 0, bidirectional=True)),
            Flood("bytes", lambda number: Call("send_stream", 0, 0, bytes(500)), count=600),
            Flood("datagrams", lambda number: Call("send_datagram", 0, bytes(1000)), count=600),
            Flood("resets", lambda number: Call("reset_stream", 0, 4 * number, 1), count=600),
            Flood("their streams", lambda number: peer_does("sends", peer_sends), count=400),
        ],
    )
)


def test_the_contract_when_connected_is_tried_when_connected() -> None:
    opens = Call.timeless("open_stream", 0, bidirectional=True)
    sends = Call("send_stream", 0, 0, bytes(3000))
    they_send = peer_does("sends", peer_sends)
    a_while = Wait(0.1)  # QUIC paces what it sends
    subject = endpoint_subject(CONNECTED, [])
    run = begun(subject, opens, sends, a_while, they_send, a_while, CONVERSE, CONVERSE)
    kinds = {type(event) for event in run.events}
    assert {ConnectionEstablished, StreamDataReceived} <= kinds
    assert run.refusals == []
    assert run.machine.magicsock.path_info(THEIRS.public).kind == "direct"
