"""StunServer answers Binding requests and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Never

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iroh_proto.address import DerpAddress, DerpUrl, UdpAddress
from iroh_proto.key import SecretKey
from iroh_proto.machine import DatagramMachine
from iroh_proto.stun.message import decode_binding_response, encode_binding_request
from iroh_proto.stun.server import MAX_QUEUED_RESPONSES, StunServer

STUN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "stun.json").read_text())
CLIENT = UdpAddress("203.0.113.7", 40000)
REQUEST = encode_binding_request(bytes(12))


@pytest.mark.parametrize("case", STUN["requests"], ids=lambda case: case["name"])
@pytest.mark.parametrize("client", [CLIENT, UdpAddress("2001:db8::7", 40000)], ids=str)
def test_each_kind_of_request_is_answered(case: dict[str, Any], client: UdpAddress) -> None:
    server = StunServer()
    server.receive_datagrams([bytes.fromhex(case["packet"])], client, now=0.0)
    (transmit,) = server.datagrams_to_send()
    assert transmit.addr == client
    (response,) = transmit.datagrams
    assert decode_binding_response(response) == (bytes.fromhex(case["tx_id"]), client)
    assert transmit.segment_size == len(response) == (44 if client.is_ipv6 else 32)
    assert server.datagrams_to_send() == []


@pytest.mark.parametrize("case", STUN["reject"], ids=lambda case: case["name"])
def test_bad_requests_earn_silence(case: dict[str, Any]) -> None:
    server = StunServer()
    server.receive_datagrams([bytes.fromhex(case["packet"])], CLIENT, now=0.0)
    assert server.datagrams_to_send() == []
    assert server.stats.bad_requests == 1


def test_a_request_through_a_relay_earns_silence() -> None:
    server = StunServer()
    derp = DerpAddress(DerpUrl.from_str("https://derp.example"), SecretKey(bytes(32)).public)
    server.receive_datagrams([REQUEST], derp, now=0.0)
    assert server.datagrams_to_send() == []
    assert server.stats.bad_requests == 1


def test_responses_to_one_client_leave_together_however_they_were_asked_for() -> None:
    at_once, one_by_one = StunServer(), StunServer()
    at_once.receive_datagrams([REQUEST, b"noise", REQUEST], CLIENT, now=0.0)
    for data in (REQUEST, b"noise", REQUEST):
        one_by_one.receive_datagrams([data], CLIENT, now=0.0)
    transmits = at_once.datagrams_to_send()
    assert [len(transmit.datagrams) for transmit in transmits] == [2]
    assert one_by_one.datagrams_to_send() == transmits


def test_the_queue_is_bounded_and_what_it_drops_is_counted() -> None:
    server = StunServer()
    server.receive_datagrams([REQUEST] * (MAX_QUEUED_RESPONSES + 3), CLIENT, now=0.0)
    server.receive_datagrams([REQUEST], UdpAddress("203.0.113.8", 1), now=0.0)
    (transmit,) = server.datagrams_to_send()
    assert len(transmit.datagrams) == MAX_QUEUED_RESPONSES == server.stats.responses
    assert server.stats.overflows == 4
    server.receive_datagrams([REQUEST], CLIENT, now=0.0)
    assert len(server.datagrams_to_send()) == 1


def test_there_is_nothing_to_wait_for() -> None:
    server: DatagramMachine[Never] = StunServer()
    server.receive_datagrams([REQUEST], CLIENT, now=0.0)
    server.handle_timer(now=100.0)
    assert server.get_timer() is None
    assert server.next_event() is None


@given(st.lists(st.binary(max_size=60) | st.just(REQUEST), max_size=8))
def test_any_datagrams_are_counted_and_nothing_raises(batch: list[bytes]) -> None:
    server = StunServer()
    server.receive_datagrams(batch, CLIENT, now=0.0)
    stats = server.stats
    assert stats.responses + stats.bad_requests == len(batch)
    assert stats.responses == batch.count(REQUEST)
