"""How a node finds out where it can be reached."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest

from iroh_proto.address import UdpAddress
from iroh_proto.errors import LocalProtocolError
from iroh_proto.paths.own_address_events import (
    AddressServer,
    DnsRequested,
    InterfacesRequested,
    ObservationRequested,
    OwnAddressesEvent,
    OwnAddressesFound,
)
from iroh_proto.paths.own_addresses import (
    INTERFACE_ADDRESSES_LIMIT,
    MAPPED_ADDRESS_TIME,
    OBSERVATION_DELAY,
    OWN_ADDRESSES_LIMIT,
    ROUND_INTERVAL,
    ROUND_TIMEOUT,
    OwnAddresses,
)
from iroh_proto.stun.message import decode_binding_request, encode_binding_response

ANY_V4, ANY_V6 = UdpAddress("0.0.0.0", 4000), UdpAddress("::", 4001)
SERVER_IP = "192.0.2.53"
SERVER = AddressServer(host=SERVER_IP, stun_port=3478)
PUBLIC = UdpAddress("203.0.113.5", 61000)


class Host:
    """Answers what the machine asks, on a virtual clock."""

    def __init__(self, *bound: UdpAddress, ips: tuple[str, ...] = ("10.1.2.3",)) -> None:
        self.machine = OwnAddresses(rng=random.Random(1))
        self.now = 0.0
        self.ips: tuple[str, ...] | None = ips
        self.names: dict[str, tuple[str, ...]] = {}
        self.seen_as: UdpAddress | None = PUBLIC
        self.observed_as: UdpAddress | None = None
        self.found: list[tuple[float, OwnAddressesFound]] = []
        self.asked: list[OwnAddressesEvent] = []
        self.probed: list[tuple[float, UdpAddress]] = []
        self.machine.start(bound or (ANY_V4,), now=0.0)
        self.serve()

    @property
    def last(self) -> OwnAddressesFound:
        return self.found[-1][1]

    def told(self) -> list[str]:
        return [str(addr) for addr in self.last.addresses]

    def serve(self) -> None:
        while self._serve_once():
            continue

    def _serve_once(self) -> bool:
        event = self.machine.next_event()
        transmits = self.machine.datagrams_to_send()
        for transmit in transmits:
            assert isinstance(transmit.addr, UdpAddress)
            self.probed.append((self.now, transmit.addr))
            if self.seen_as is not None:
                tx_id = decode_binding_request(transmit.datagrams[0])
                reply = encode_binding_response(tx_id, self.seen_as)
                self.machine.receive_datagrams([reply], transmit.addr, now=self.now)
        if isinstance(event, OwnAddressesFound):
            self.found.append((self.now, event))
        elif event is not None:
            self.asked.append(event)
        if isinstance(event, InterfacesRequested) and self.ips is not None:
            self.machine.complete_interfaces(event.request_id, self.ips, now=self.now)
        if isinstance(event, DnsRequested) and event.host in self.names:
            self.machine.complete_dns(event.request_id, self.names[event.host], now=self.now)
        if isinstance(event, ObservationRequested) and self.observed_as is not None:
            self.machine.complete_observation(event.request_id, self.observed_as, now=self.now)
        return event is not None or bool(transmits)

    def observations(self) -> list[ObservationRequested]:
        return [event for event in self.asked if isinstance(event, ObservationRequested)]

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while (deadline := self.machine.get_timer()) is not None and deadline <= end:
            self.now = deadline
            self.machine.handle_timer(now=deadline)
            self.serve()
        self.now = end


def test_without_a_server_the_interface_addresses_are_told() -> None:
    host = Host(ANY_V4, ANY_V6, ips=("10.1.2.3", "2001:db8::7", "127.0.0.1", "::1", "fe80::1%eth0"))
    assert host.told() == ["10.1.2.3:4000", "[2001:db8::7]:4001"]
    assert host.last.ipv6_works
    assert {str(addr) for addr in host.last.hidden} == {
        "127.0.0.1:4000",
        "[::1]:4001",
        "[fe80::1%eth0]:4001",
    }


def test_link_local_and_unique_local_addresses_are_told_when_there_is_nothing_else() -> None:
    host = Host(ANY_V4, ANY_V6, ips=("169.254.3.3", "fd00::1", "fe80::1"))
    assert host.told() == ["169.254.3.3:4000", "[fd00::1]:4001"]
    host = Host(ANY_V4, ANY_V6, ips=("169.254.3.3", "fd00::1", "10.0.0.1"))
    assert host.told() == ["10.0.0.1:4000"]
    assert not host.last.ipv6_works


def test_a_host_on_its_own_tells_its_loopback_addresses() -> None:
    assert Host(ips=("127.0.0.1",)).told() == ["127.0.0.1:4000"]
    assert Host(ips=()).told() == ["127.0.0.1:4000"]


def test_a_socket_bound_to_one_address_tells_that_one() -> None:
    host = Host(UdpAddress("127.0.0.1", 5), UdpAddress("::1", 6))
    assert host.told() == ["127.0.0.1:5", "[::1]:6"]
    assert not host.last.ipv6_works


def test_what_a_stun_server_sees_is_told_too() -> None:
    host = Host()
    host.machine.set_server(SERVER, now=host.now)
    host.serve()
    assert host.probed == [(0.0, UdpAddress(SERVER_IP, 3478))]
    assert host.told() == ["10.1.2.3:4000", str(PUBLIC)]


def test_an_address_without_a_port_is_not_told_whoever_saw_it() -> None:
    host = Host()
    host.seen_as = UdpAddress(PUBLIC.ip, 0)
    host.machine.set_server(SERVER, now=host.now)
    host.serve()
    assert host.told() == ["10.1.2.3:4000"]


def test_the_name_of_a_server_is_resolved_first() -> None:
    host = Host()
    host.names["derp.example"] = ("bad", "2001:db8::53", "192.0.2.53", "192.0.2.54")
    host.machine.set_server(AddressServer(host="derp.example", stun_port=3478), now=host.now)
    host.serve()
    assert [addr for _, addr in host.probed] == [UdpAddress(SERVER_IP, 3478)]
    assert str(PUBLIC) in host.told()


def test_servers_are_asked_by_each_family_that_can_be_answered() -> None:
    host = Host(ANY_V4, ANY_V6, ips=("10.1.2.3", "2001:db8::7"))
    host.names["derp.example"] = ("2001:db8::53", "192.0.2.53")
    host.machine.set_server(AddressServer(host="derp.example", stun_port=1), now=host.now)
    host.serve()
    assert {addr.ip for _, addr in host.probed} == {"2001:db8::53", "192.0.2.53"}
    host = Host(ANY_V4, ANY_V6, ips=("10.1.2.3",))
    host.names["derp.example"] = ("2001:db8::53", "192.0.2.53")
    host.machine.set_server(AddressServer(host="derp.example", stun_port=1), now=host.now)
    host.serve()
    assert {addr.ip for _, addr in host.probed} == {"192.0.2.53"}


def test_rounds_come_every_20_to_26_seconds_and_each_one_ends() -> None:
    host = Host()
    host.run(600.0)
    times = [when for when, _ in host.found]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(gaps) >= 23
    assert all(ROUND_INTERVAL[0] <= gap <= ROUND_INTERVAL[1] for gap in gaps)
    assert len(set(gaps)) > 1


def test_a_round_ends_without_answers() -> None:
    host = Host()
    host.ips = None
    host.machine.set_server(AddressServer(host="nowhere.example", stun_port=3478), now=host.now)
    host.serve()
    host.run(ROUND_TIMEOUT - 0.01)
    assert len(host.found) == 1
    host.run(0.01)
    assert len(host.found) == 2
    assert host.told() == ["10.1.2.3:4000"]  # known from before


def test_a_silent_server_ends_the_round_with_its_probe() -> None:
    host = Host()
    host.seen_as = None
    host.machine.set_server(SERVER, now=host.now)
    host.serve()
    host.run(3.0)
    assert [when for when, _ in host.found] == [0.0, 3.0]
    assert not host.machine.is_running


def test_an_address_seen_outside_outlasts_a_lost_round_but_not_many() -> None:
    host = Host()
    host.machine.set_server(SERVER, now=host.now)
    host.serve()
    host.seen_as = None
    host.run(MAPPED_ADDRESS_TIME - 10.0)
    assert str(PUBLIC) in host.told()
    host.run(50.0)
    assert str(PUBLIC) not in host.told()


def with_qad(*, stun_port: int | None = 3478) -> AddressServer:
    return AddressServer(host=SERVER_IP, stun_port=stun_port, quic_port=7842)


def test_a_server_that_answers_stun_is_not_asked_by_qad() -> None:
    host = Host()
    host.machine.set_server(with_qad(), now=host.now)
    host.serve()
    assert str(PUBLIC) in host.told()
    host.run(100.0)
    assert host.observations() == []


def test_a_server_without_stun_is_asked_by_qad_at_once() -> None:
    host = Host()
    host.observed_as = PUBLIC
    host.machine.set_server(with_qad(stun_port=None), now=host.now)
    host.serve()
    (asked,) = host.observations()
    assert asked.address == UdpAddress(SERVER_IP, 7842)
    assert asked.server_name == SERVER_IP
    assert host.probed == []
    assert host.told() == ["10.1.2.3:4000", str(PUBLIC)]


def test_a_silent_stun_server_is_asked_by_qad_soon_and_the_next_time_at_once() -> None:
    host = Host()
    host.seen_as, host.observed_as = None, PUBLIC
    host.machine.set_server(with_qad(), now=host.now)
    host.serve()
    assert host.observations() == []
    host.run(OBSERVATION_DELAY)
    assert host.found[-1][0] == OBSERVATION_DELAY  # without waiting for STUN any longer
    assert str(PUBLIC) in host.told()
    host.run(5.0)
    host.machine.refresh(now=host.now)
    host.serve()
    assert len(host.observations()) == 2
    assert host.found[-1][0] == host.now


@pytest.mark.parametrize(
    "change",
    [
        lambda machine, now: machine.set_server(
            AddressServer(host="192.0.2.54", stun_port=3478, quic_port=7842), now=now
        ),
        lambda machine, now: machine.network_changed(now=now),
    ],
    ids=["server", "network"],
)
def test_stun_goes_first_again_after_a_change(
    change: Callable[[OwnAddresses, float], None],
) -> None:
    host = Host()
    host.seen_as, host.observed_as = None, PUBLIC
    host.machine.set_server(with_qad(), now=host.now)
    host.serve()
    host.run(OBSERVATION_DELAY + 5.0)
    asked = len(host.observations())
    host.seen_as = PUBLIC
    change(host.machine, host.now)
    host.serve()
    assert str(PUBLIC) in host.told()
    assert len(host.observations()) == asked


def test_a_late_stun_answer_makes_qad_needless() -> None:
    host = Host()
    host.seen_as = None
    host.machine.set_server(with_qad(), now=host.now)
    host.serve()
    host.seen_as = PUBLIC
    host.run(OBSERVATION_DELAY)  # a retransmission is answered first
    assert str(PUBLIC) in host.told()
    assert not host.machine.is_running


def test_the_same_server_once_more_is_no_news() -> None:
    host = Host()
    host.machine.set_server(with_qad(), now=host.now)
    host.serve()
    rounds = len(host.found)
    host.machine.set_server(with_qad(), now=host.now)
    assert not host.machine.is_running
    host.serve()
    assert len(host.found) == rounds


def test_a_server_that_was_taken_away_is_not_asked_by_qad() -> None:
    host = Host()
    host.seen_as = None
    host.machine.set_server(with_qad(), now=host.now)
    host.serve()
    host.machine.set_server(None, now=host.now)
    host.run(ROUND_TIMEOUT + 1.0)
    assert host.observations() == []
    assert not host.machine.is_running


def test_a_round_does_not_wait_for_qad_for_ever() -> None:
    host = Host()
    host.machine.set_server(with_qad(stun_port=None), now=host.now)
    host.serve()
    host.run(ROUND_TIMEOUT)
    assert [when for when, _ in host.found] == [0.0, ROUND_TIMEOUT]
    (late,) = host.observations()
    host.machine.complete_observation(late.request_id, PUBLIC, now=host.now)
    assert str(PUBLIC) not in host.told()


def test_an_observation_of_the_other_family_is_none() -> None:
    host = Host()
    host.observed_as = UdpAddress("2001:db8::7", 1)
    host.machine.set_server(with_qad(stun_port=None), now=host.now)
    host.serve()
    assert host.told() == ["10.1.2.3:4000"]


def test_a_changed_network_forgets_what_was_seen_outside() -> None:
    host = Host()
    host.machine.set_server(SERVER, now=host.now)
    host.serve()
    host.seen_as, host.ips = None, ("10.9.9.9",)
    host.machine.network_changed(now=host.now)
    host.serve()
    host.run(3.0)
    assert host.told() == ["10.9.9.9:4000"]


def test_a_refresh_during_a_round_is_followed_by_one_other_round() -> None:
    host = Host()
    host.seen_as = None
    host.machine.set_server(SERVER, now=host.now)
    host.serve()
    for _ in range(3):
        host.machine.refresh(now=host.now)
    host.run(10.0)
    assert [when for when, _ in host.found] == [0.0, 3.0, 6.0]


def test_late_answers_are_ignored_and_made_up_ones_refused() -> None:
    host = Host()
    host.machine.complete_interfaces(1, ["192.0.2.1"], now=0.0)
    host.machine.complete_dns(1, ["192.0.2.1"], now=0.0)
    host.serve()
    assert len(host.found) == 1
    for request_id in (0, 99):
        with pytest.raises(LocalProtocolError):
            host.machine.complete_interfaces(request_id, [], now=0.0)
        with pytest.raises(LocalProtocolError):
            host.machine.complete_dns(request_id, [], now=0.0)


def test_addresses_are_bounded() -> None:
    ips = tuple(f"10.0.{number // 250}.{number % 250 + 1}" for number in range(1000))
    host = Host(ips=ips)
    assert len(host.last.addresses) == OWN_ADDRESSES_LIMIT
    assert len(host.machine._interfaces) == INTERFACE_ADDRESSES_LIMIT


def test_start_is_given_once_with_sockets() -> None:
    host = Host()
    with pytest.raises(LocalProtocolError, match="once"):
        host.machine.start([ANY_V4], now=0.0)
    for bound in ([], [ANY_V4] * 17):
        with pytest.raises(LocalProtocolError, match="sockets"):
            OwnAddresses(rng=random.Random(1)).start(bound, now=0.0)


def test_before_start_nothing_happens_and_after_close_nothing_more() -> None:
    machine = OwnAddresses(rng=random.Random(1))
    machine.set_server(SERVER, now=0.0)
    assert machine.next_event() is None
    host = Host()
    host.seen_as = None
    host.machine.set_server(SERVER, now=0.0)
    host.machine.refresh(now=0.0)
    host.machine.close(now=0.0)
    assert host.machine.get_timer() is None
    host.machine.refresh(now=50.0)
    host.machine.handle_timer(now=100.0)
    assert host.machine.stats.requests == 1


def test_a_probe_that_a_round_did_not_wait_for_ends_with_close() -> None:
    host = Host()
    host.seen_as, host.observed_as = None, PUBLIC
    host.machine.set_server(with_qad(), now=host.now)
    host.serve()
    host.run(OBSERVATION_DELAY + 5.0)
    host.machine.refresh(now=host.now)
    host.serve()  # QAD answers at once now
    assert len(host.found) >= 2
    host.machine.close(now=host.now)
    assert host.machine.get_timer() is None
    host.machine.handle_timer(now=host.now + 1.0)
    assert host.machine.datagrams_to_send() == []
