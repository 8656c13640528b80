"""The contract of the STUN machines."""

from __future__ import annotations

from hypothesis import strategies as st

from iroh_proto.address import UdpAddress
from iroh_proto.machine import Transmit
from iroh_proto.stun.message import encode_binding_request
from iroh_proto.stun.probe import MAX_PROBES, StunProbe
from iroh_proto.stun.server import MAX_QUEUED_RESPONSES, StunServer
from iroh_proto.testing.contract import Call, Flood, React, Run, Subject, contract_tests
from iroh_proto.testing.strategies import mutated, udp_addresses

SERVERS = [UdpAddress("192.0.2.1", 3478), UdpAddress("2001:db8::1", 3478)]


def request(number: int) -> bytes:
    return encode_binding_request(number.to_bytes(12, "big"))


def start(server: UdpAddress, delays: tuple[float, ...]) -> Call:
    return Call("start", server, delays=delays)


def servers_answer(run: Run[StunProbe]) -> list[Call]:
    """Let a real server answer all that was sent."""
    server = StunServer()
    for data in run.sent:
        server.receive_datagrams([data], UdpAddress("203.0.113.5", 1234), now=run.now)
    answers: list[Transmit] = server.datagrams_to_send()
    batch = [data for answer in answers for data in answer.datagrams]
    return [Call("receive_datagrams", batch, addr) for addr in SERVERS]


PROBE: Subject[StunProbe] = Subject(
    factory=lambda rng: StunProbe(rng=rng),
    operations=st.one_of(
        st.builds(
            start,
            st.sampled_from(SERVERS),
            st.lists(st.floats(0, 2.9), min_size=1, max_size=3).map(sorted).map(tuple),
        ),
        st.integers(0, 3).map(lambda probe_id: Call("cancel", probe_id)),
        st.just(React("the servers answer", servers_answer)),
    ),
    misuses=st.sampled_from([(), (1.0, 0.5), (-1.0,), (3.0,), (0.0,) * 9]).map(
        lambda delays: start(SERVERS[0], delays)
    ),
    floods=[Flood("probes", lambda number: start(SERVERS[0], (0.0,)), count=4 * MAX_PROBES)],
    garbage=st.binary() | mutated(st.just(request(7))),
)

SERVER: Subject[StunServer] = Subject(
    factory=lambda rng: StunServer(),
    operations=st.builds(
        Call,
        st.just("receive_datagrams"),
        st.lists(st.integers(0, 9).map(request) | mutated(st.just(request(1))), max_size=4),
        udp_addresses(),
    ),
    floods=[
        Flood(
            "requests",
            lambda number: Call(
                "receive_datagrams", [request(number)] * (3 * MAX_QUEUED_RESPONSES), SERVERS[0]
            ),
            count=4,
        )
    ],
    garbage=st.binary(),
)

TestStunProbeContract = contract_tests(PROBE)
TestStunServerContract = contract_tests(SERVER)
