"""StunProbe by itself and against a real StunServer, in virtual time."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iroh_proto.address import DerpAddress, DerpUrl, UdpAddress
from iroh_proto.errors import LocalProtocolError
from iroh_proto.key import SecretKey
from iroh_proto.stun.message import (
    SOFTWARE,
    TAILSCALE_SOFTWARE,
    StunMessage,
    decode_binding_request,
    decode_stun,
    encode_binding_response,
)
from iroh_proto.stun.probe import (
    MAX_PROBES,
    MAX_REQUESTS,
    PROBE_TIMEOUT,
    REQUEST_DELAYS,
    StunAddressFound,
    StunProbe,
    StunProbeEvent,
    StunProbeTimedOut,
)
from iroh_proto.stun.server import StunServer

SERVER = UdpAddress("192.0.2.1", 3478)
OTHER_SERVER = UdpAddress("2001:db8::1", 3478)
CLIENT = UdpAddress("203.0.113.7", 40000)


def make_probe(software: str | None = None) -> StunProbe:
    return StunProbe(rng=random.Random(1), software=software)


def sent_requests(probe: StunProbe) -> list[bytes]:
    """Drain what a probe sends to SERVER."""
    transmits = probe.datagrams_to_send()
    assert all(transmit.addr == SERVER for transmit in transmits)
    return [data for transmit in transmits for data in transmit.datagrams]


def events_of(probe: StunProbe) -> list[StunProbeEvent]:
    events = []
    while (event := probe.next_event()) is not None:
        events.append(event)
    return events


def respond(request: bytes, addr: UdpAddress = CLIENT) -> bytes:
    return encode_binding_response(decode_binding_request(request), addr)


def run_until_idle(probe: StunProbe) -> list[float]:
    """Let time pass until nothing is left to wait for; return when requests were sent."""
    sent_at = []
    while (deadline := probe.get_timer()) is not None:
        probe.handle_timer(now=deadline)
        sent_at += [deadline] * len(sent_requests(probe))
    return sent_at


def test_a_server_tells_the_address_it_sees() -> None:
    probe, server = make_probe(), StunServer()
    probe_id = probe.start(SERVER, now=5.0)
    for transmit in probe.datagrams_to_send():
        server.receive_datagrams(transmit.datagrams, CLIENT, now=5.02)
    for transmit in server.datagrams_to_send():
        assert transmit.addr == CLIENT
        probe.receive_datagrams(transmit.datagrams, SERVER, now=5.05)
    (event,) = events_of(probe)
    assert isinstance(event, StunAddressFound)
    assert (event.probe_id, event.server, event.address) == (probe_id, SERVER, CLIENT)
    assert event.latency == pytest.approx(0.05)
    assert probe.get_timer() is None
    assert probe.stats.requests == probe.stats.responses == server.stats.responses == 1


def test_silence_is_asked_again_at_each_delay_and_then_given_up() -> None:
    probe = make_probe()
    probe_id = probe.start(SERVER, now=10.0)
    assert len(sent_requests(probe)) == 1
    assert probe.get_timer() == 10.0 + REQUEST_DELAYS[1]
    assert run_until_idle(probe) == [10.0 + delay for delay in REQUEST_DELAYS[1:]]
    assert events_of(probe) == [StunProbeTimedOut(probe_id=probe_id, server=SERVER)]
    assert probe.stats.requests == len(REQUEST_DELAYS)


def test_a_probe_ends_at_its_time_out_and_not_before() -> None:
    probe = make_probe()
    probe.start(SERVER, now=0.0)
    just_before = math.nextafter(PROBE_TIMEOUT, 0.0)
    probe.handle_timer(now=just_before)
    assert events_of(probe) == []
    assert probe.get_timer() == PROBE_TIMEOUT
    probe.handle_timer(now=PROBE_TIMEOUT)
    assert len(events_of(probe)) == 1


def test_every_request_is_a_transaction_of_its_own() -> None:
    probe = make_probe()
    probe.start(SERVER, now=0.0)
    requests = sent_requests(probe)
    probe.handle_timer(now=0.1)
    requests += sent_requests(probe)
    assert len({decode_binding_request(request) for request in requests}) == 2


def test_the_round_trip_is_measured_from_the_request_that_was_answered() -> None:
    probe = make_probe()
    probe.start(SERVER, now=0.0)
    sent_requests(probe)
    probe.handle_timer(now=0.1)
    (second,) = sent_requests(probe)
    probe.receive_datagrams([respond(second)], SERVER, now=0.13)
    (event,) = events_of(probe)
    assert isinstance(event, StunAddressFound)
    assert event.latency == pytest.approx(0.03)


def test_an_answer_to_an_earlier_request_counts_too_and_later_ones_are_dropped() -> None:
    probe = make_probe()
    probe.start(SERVER, now=0.0)
    (first,) = sent_requests(probe)
    probe.handle_timer(now=0.1)
    (second,) = sent_requests(probe)
    probe.receive_datagrams([respond(first), respond(second)], SERVER, now=0.2)
    (event,) = events_of(probe)
    assert isinstance(event, StunAddressFound)
    assert event.latency == pytest.approx(0.2)
    assert probe.stats.unmatched == 1
    assert probe.get_timer() is None


def test_a_response_from_another_address_is_dropped() -> None:
    probe = make_probe()
    probe.start(SERVER, now=0.0)
    (request,) = sent_requests(probe)
    derp = DerpAddress(DerpUrl.from_str("https://derp.example"), SecretKey(bytes(32)).public)
    for source in (UdpAddress("192.0.2.1", 3479), UdpAddress("192.0.2.2", 3478), derp):
        probe.receive_datagrams([respond(request)], source, now=0.01)
    assert events_of(probe) == []
    assert probe.stats.unmatched == 3
    probe.receive_datagrams([respond(request)], SERVER, now=0.02)
    assert len(events_of(probe)) == 1


def test_datagrams_that_answer_nothing_are_counted() -> None:
    probe = make_probe()
    probe.start(SERVER, now=0.0)
    (request,) = sent_requests(probe)
    stranger = encode_binding_response(bytes(12), CLIENT)
    probe.receive_datagrams([b"", b"no stun", request, stranger], SERVER, now=0.01)
    assert events_of(probe) == []
    assert (probe.stats.malformed, probe.stats.unmatched) == (3, 1)


def test_probes_of_several_servers_do_not_mix() -> None:
    probe = make_probe()
    ids = [probe.start(server, now=0.0) for server in (SERVER, OTHER_SERVER)]
    to_first, to_second = probe.datagrams_to_send()
    assert (to_first.addr, to_second.addr) == (SERVER, OTHER_SERVER)
    probe.receive_datagrams([respond(to_second.datagrams[0])], OTHER_SERVER, now=0.05)
    (event,) = events_of(probe)
    assert (event.probe_id, event.server) == (ids[1], OTHER_SERVER)
    run_until_idle(probe)
    assert events_of(probe) == [StunProbeTimedOut(probe_id=ids[0], server=SERVER)]


def test_a_cancelled_probe_is_silent() -> None:
    probe = make_probe()
    probe_id = probe.start(SERVER, now=0.0)
    (request,) = sent_requests(probe)
    probe.cancel(probe_id, now=0.05)
    assert probe.get_timer() is None
    probe.receive_datagrams([respond(request)], SERVER, now=0.06)
    probe.handle_timer(now=9.0)
    assert events_of(probe) == []
    probe.cancel(probe_id, now=10.0)


def test_requests_missed_while_nobody_called_are_not_made_up_for() -> None:
    probe = make_probe()
    probe.start(SERVER, delays=(0.0, 0.1, 0.2, 0.3), now=0.0)
    sent_requests(probe)
    probe.handle_timer(now=0.25)
    assert len(sent_requests(probe)) == 1
    assert probe.get_timer() == 0.3


def test_a_first_request_may_be_delayed() -> None:
    probe = make_probe()
    probe.start(SERVER, delays=[0.5, 1.0], now=0.0)
    assert sent_requests(probe) == []
    assert run_until_idle(probe) == [0.5, 1.0]


def test_requests_name_the_software_when_told_to() -> None:
    probe = make_probe(software=TAILSCALE_SOFTWARE)
    probe.start(SERVER, now=0.0)
    (request,) = sent_requests(probe)
    assert decode_stun(request).get(SOFTWARE) == b"tailnode"
    plain = make_probe()
    plain.start(SERVER, now=0.0)
    assert len(sent_requests(plain)[0]) == 28


@pytest.mark.parametrize(
    "delays",
    [
        (),
        (0.1, 0.0),
        (-0.1,),
        (PROBE_TIMEOUT,),
        (math.nan,),
        (math.nan, 1.0),
        (math.inf,),
        (0.0,) * (MAX_REQUESTS + 1),
    ],
)
def test_delays_that_make_no_plan_are_the_callers_mistake(delays: Sequence[float]) -> None:
    probe = make_probe()
    with pytest.raises(LocalProtocolError):
        probe.start(SERVER, delays=delays, now=0.0)
    assert probe.get_timer() is None
    assert sent_requests(probe) == []


def test_the_number_of_probes_is_limited() -> None:
    probe = make_probe()
    first = probe.start(SERVER, now=0.0)
    for _ in range(MAX_PROBES - 1):
        probe.start(SERVER, now=0.0)
    with pytest.raises(LocalProtocolError, match="running"):
        probe.start(SERVER, now=0.0)
    probe.cancel(first, now=0.0)
    probe.start(SERVER, now=0.0)


@given(st.lists(st.binary(max_size=60) | st.just(b"answer"), max_size=8), st.randoms())
def test_any_datagrams_are_counted_and_nothing_raises(
    datagrams: list[bytes], rng: random.Random
) -> None:
    probe = StunProbe(rng=rng)
    probe.start(SERVER, now=0.0)
    (request,) = sent_requests(probe)
    batch = [respond(request) if data == b"answer" else data for data in datagrams]
    probe.receive_datagrams(batch, SERVER, now=1.0)
    stats = probe.stats
    assert stats.responses + stats.malformed + stats.unmatched == len(batch)
    assert stats.responses == len(events_of(probe)) == min(1, datagrams.count(b"answer"))


@given(
    st.lists(st.floats(min_value=0.0, max_value=2.9), min_size=1, max_size=MAX_REQUESTS),
    st.floats(min_value=0.0, max_value=1e6),
)
def test_every_plan_sends_each_request_on_time_and_ends(delays: list[float], start: float) -> None:
    probe = make_probe()
    plan = sorted(delays)
    probe.start(SERVER, delays=plan, now=start)
    at_once = len(sent_requests(probe))
    assert at_once <= 1
    sent_at = [start] * at_once + run_until_idle(probe)
    assert sent_at == sorted({start + delay for delay in plan})
    assert [type(event) for event in events_of(probe)] == [StunProbeTimedOut]


def test_stats_are_a_copy() -> None:
    probe = make_probe()
    before = probe.stats
    probe.start(SERVER, now=0.0)
    assert (before.requests, probe.stats.requests) == (0, 1)


def test_an_error_response_does_not_end_the_probe() -> None:
    probe = make_probe()
    probe.start(SERVER, now=0.0)
    (request,) = sent_requests(probe)
    refusal = StunMessage(0x0111, decode_binding_request(request)).encode()
    probe.receive_datagrams([refusal], SERVER, now=0.01)
    assert events_of(probe) == []
    assert probe.stats.malformed == 1
    assert probe.get_timer() == REQUEST_DELAYS[1]
