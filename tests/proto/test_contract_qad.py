"""The contract of both ends of QUIC address discovery, each with the other as its peer.

Randomness inside the QUIC implementation is its own, lengths of connection ids in bent packets
included, so datagrams are compared by their number alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from hypothesis import strategies as st

from iroh_anyio.quic.qad_client import QadClient
from iroh_anyio.quic.qad_server import QadServer
from iroh_proto.address import UdpAddress
from iroh_proto.testing.contract import Call, Flood, React, Run, Subject, contract_tests
from tests.proto.qad_world import CA_PEM, NAME, make_server

SERVER = UdpAddress("198.51.100.7", 7842)
HERE, ELSEWHERE = UdpAddress("192.0.2.1", 5000), UdpAddress("192.0.2.2", 6000)


class Server:
    """What a client under test talks to."""

    def __init__(self) -> None:
        self.machine = make_server(random.Random(7))
        self.heard = 0


def server_answers(source: UdpAddress) -> React[QadClient]:
    def act(run: Run[QadClient]) -> Iterable[Call]:
        assert isinstance(run.context, Server)
        server = run.context
        server.machine.handle_timer(now=run.now)
        batch, server.heard = run.sent[server.heard :], len(run.sent)
        server.machine.receive_datagrams(batch, source, now=run.now)
        for transmit in server.machine.datagrams_to_send():
            yield Call("receive_datagrams", list(transmit.datagrams), SERVER)

    return React(f"the server answers {source}", act)


def talk(times: int) -> list[React[QadClient]]:
    return [server_answers(HERE)] * times


ASK = Call("ask", 1, SERVER, server_name=NAME)

CLIENT: Subject[QadClient] = Subject(
    factory=lambda rng: QadClient(ca_certificates=CA_PEM),
    context=Server,
    begin=[ASK, *talk(3)],
    operations=st.one_of(
        st.sampled_from([*talk(2), server_answers(ELSEWHERE)]),
        st.sampled_from([ASK, Call("ask", 2, SERVER, server_name=NAME)]),
        st.sampled_from(
            [
                Call("ask", 3, UdpAddress("198.51.100.8", 7842), server_name=NAME),
                Call("ask", 4, UdpAddress("2001:db8::7", 7842), server_name=NAME),
                Call("network_changed"),
                Call("close"),
            ]
        ),
    ),
    floods=[
        Flood(
            "servers",
            lambda number: Call(
                "ask",
                number,
                UdpAddress(f"10.0.{number >> 8}.{number & 255}", 7842),
                server_name=NAME,
            ),
            count=60,
        ),
        Flood("questions", lambda number: Call("ask", number, SERVER, server_name=NAME)),
        Flood(
            "moves", lambda number: server_answers(UdpAddress("192.0.2.1", 1 + number)), count=200
        ),
    ],
    garbage=st.binary(max_size=30).map(lambda data: b"\x40" + data),
    stats=lambda machine: machine.stats,
    blur=bool,
    answers_when_drained=True,
    effort=0.25,
)

TestQadClientContract = contract_tests(CLIENT)


class Client:
    """What a server under test talks to."""

    def __init__(self) -> None:
        self.machine = QadClient(ca_certificates=CA_PEM)
        self.heard = 0


def client_speaks(
    label: str, *, asks: bool = False, closes: bool = False, source: UdpAddress = HERE
) -> React[QadServer]:
    def act(run: Run[QadServer]) -> Iterable[Call]:
        assert isinstance(run.context, Client)
        client = run.context
        client.machine.handle_timer(now=run.now)
        batch, client.heard = run.sent[client.heard :], len(run.sent)
        client.machine.receive_datagrams(batch, SERVER, now=run.now)
        if asks:
            client.machine.ask(1, SERVER, server_name=NAME, now=run.now)
        if closes:
            client.machine.close(now=run.now)
        for transmit in client.machine.datagrams_to_send():
            yield Call("receive_datagrams", list(transmit.datagrams), source)

    return React(f"the client {label}", act)


def new_client(number: int) -> React[QadServer]:
    def act(run: Run[QadServer]) -> Iterable[Call]:
        client = QadClient(ca_certificates=CA_PEM)
        client.ask(1, SERVER, server_name=NAME, now=run.now)
        source = UdpAddress(f"10.0.{number >> 8}.{number & 255}", 1)
        for transmit in client.datagrams_to_send():
            yield Call("receive_datagrams", list(transmit.datagrams), source)

    return React(f"client {number}", act)


SERVER_SUBJECT: Subject[QadServer] = Subject(
    factory=make_server,
    context=Client,
    begin=[client_speaks("asks", asks=True), client_speaks("goes on"), client_speaks("goes on")],
    operations=st.sampled_from(
        [
            client_speaks("asks", asks=True),
            client_speaks("goes on"),
            client_speaks("moves", asks=True, source=ELSEWHERE),
            client_speaks("leaves", closes=True),
            Call("close"),
        ]
    ),
    floods=[
        Flood("clients", new_client, count=700),
        Flood(
            "packets of nobody",
            lambda number: Call(
                "receive_datagrams", [b"\x40" + number.to_bytes(1199, "big")], HERE
            ),
        ),
    ],
    garbage=st.binary(max_size=30).map(lambda data: b"\x40" + data),
    stats=lambda machine: machine.stats,
    blur=bool,
    answers_when_drained=True,
    effort=0.25,
)

TestQadServerContract = contract_tests(SERVER_SUBJECT)
