"""A server of pages, on many connections."""

from __future__ import annotations

from http import HTTPStatus

import pytest
from hypothesis import strategies as st

from iroh_proto.derp.page_server import (
    ANSWER_TIMEOUT,
    CONNECTIONS_LIMIT,
    REQUEST_TIMEOUT,
    PageServer,
)
from iroh_proto.derp.pages import Page
from iroh_proto.derp.upgrade import HttpRequest
from iroh_proto.errors import LocalProtocolError
from iroh_proto.machine import TcpCloseRequested
from iroh_proto.testing.contract import Call, Flood, Subject, contract_tests

ASKED = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"


def answer(request: HttpRequest) -> Page:
    return Page(HTTPStatus.OK, (), f"{request.method} {request.path}".encode())


def server(*tcp_ids: int) -> PageServer:
    machine = PageServer(answer)
    for tcp_id in tcp_ids:
        machine.accept_tcp(tcp_id, now=0.0)
    return machine


def closed(machine: PageServer) -> list[int]:
    ids = []
    while (event := machine.next_event()) is not None:
        assert isinstance(event, TcpCloseRequested)
        ids.append(event.tcp_id)
    return ids


def test_a_request_in_pieces_is_answered_once_and_the_connection_closed() -> None:
    machine = server(1)
    for at in range(len(ASKED)):
        assert machine.tcp_to_send() == []
        machine.receive_tcp_data(1, ASKED[at : at + 1], now=1.0)
    machine.receive_tcp_data(1, ASKED, now=1.0)
    assert closed(machine) == [1]
    assert machine.tcp_to_send() == [1]
    assert machine.get_timer() == 1.0 + ANSWER_TIMEOUT
    sent = machine.tcp_data_to_send(1)
    assert sent.startswith(b"HTTP/1.1 200 OK\r\n")
    assert sent.endswith(b"\r\n\r\nGET /metrics")
    assert machine.tcp_data_to_send(1) == b""
    assert machine.get_timer() is None
    assert machine.stats.requests_answered == 1


def test_garbage_is_refused() -> None:
    machine = server(1)
    machine.receive_tcp_data(1, b"\x16\x03\x01", now=0.0)
    assert closed(machine) == [1]
    assert b" 400 " in machine.tcp_data_to_send(1)
    assert machine.stats.faults == 1
    assert machine.stats.requests_answered == 0


def test_who_asks_for_nothing_is_closed_in_time() -> None:
    machine = server(1)
    machine.receive_tcp_data(1, ASKED[:-1], now=REQUEST_TIMEOUT / 2)
    assert machine.get_timer() == REQUEST_TIMEOUT
    machine.handle_timer(now=REQUEST_TIMEOUT)
    assert closed(machine) == [1]
    assert machine.tcp_to_send() == []
    assert machine.stats.faults == 1


def test_each_connection_has_its_own_time() -> None:
    machine = server(1)
    machine.accept_tcp(2, now=1.0)
    machine.handle_timer(now=REQUEST_TIMEOUT)
    assert closed(machine) == [1]
    assert machine.get_timer() == 1.0 + REQUEST_TIMEOUT


def test_an_answer_that_nobody_fetches_is_forgotten() -> None:
    machine = server(1)
    machine.receive_tcp_data(1, ASKED, now=0.0)
    machine.handle_timer(now=ANSWER_TIMEOUT)
    assert machine.tcp_to_send() == []
    assert machine.get_timer() is None
    assert closed(machine) == [1]
    assert machine.stats.faults == 0


def test_the_end_of_a_connection_ends_its_request_and_leaves_its_answer() -> None:
    machine = server(1, 2)
    machine.receive_tcp_eof(1, now=0.0)
    assert closed(machine) == [1]
    machine.receive_tcp_data(2, ASKED, now=0.0)
    machine.receive_tcp_eof(2, now=0.0)
    assert machine.tcp_data_to_send(2)
    assert machine.stats.faults == 1


def test_the_oldest_makes_room_for_the_newest() -> None:
    machine = server(*range(CONNECTIONS_LIMIT))
    machine.accept_tcp(CONNECTIONS_LIMIT, now=0.0)
    assert closed(machine) == [0]
    assert machine.stats.connections_displaced == 1
    machine.receive_tcp_data(CONNECTIONS_LIMIT, ASKED, now=0.0)
    assert machine.tcp_to_send() == [CONNECTIONS_LIMIT]


def test_a_closed_server_refuses() -> None:
    machine = server(1)
    machine.close(now=0.0)
    machine.accept_tcp(2, now=0.0)
    assert closed(machine) == [1, 2]
    assert machine.get_timer() is None


def test_a_number_in_use_is_refused() -> None:
    machine = server(1)
    with pytest.raises(LocalProtocolError):
        machine.accept_tcp(1, now=0.0)


def flood(number: int) -> Call:
    return Call("accept_tcp", 100 + number)


def flood_of_pieces(number: int) -> Call:
    return Call("receive_tcp_data", 1, b"GET / HTTP/1.1\r\nx: " if number == 0 else bytes(500))


TestPageServerContract = contract_tests(
    Subject(
        factory=lambda rng: PageServer(answer),
        begin=[Call("accept_tcp", 1)],
        operations=st.one_of(
            st.integers(1000, 100_000).map(lambda number: Call("accept_tcp", number)),
            st.builds(
                Call,
                st.just("receive_tcp_data"),
                st.integers(1, 6),
                st.sampled_from([ASKED, b"GET / ", b"\xff", b"HEAD / HTTP/1.1\r\n\r\n"]),
            ),
            st.integers(2, 6).map(lambda number: Call("receive_tcp_eof", number)),
            st.just(Call("close")),
        ),
        floods=[Flood("connections", flood), Flood("a head", flood_of_pieces, count=400)],
    )
)
