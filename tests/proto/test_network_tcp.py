"""TCP on the simulated network."""

from __future__ import annotations

import pytest

from iroh_proto.testing.nat import PORT_RESTRICTED
from iroh_proto.testing.network import Program
from iroh_proto.testing.tcp import GIVE_UP_TIME, LONGEST_RETRANSMISSION_TIME
from tests.proto.talker import (
    SERVER_IP,
    Talker,
    make_network,
    talk,
    told,
)


class Tcp:
    """A client behind a NAT and a server, 30 ms apart, with one connection between them."""

    def __init__(self, *, tls: bool = False, connect: bool = True) -> None:
        self.network = make_network()
        self.router = self.network.add_nat(
            "home", ip="203.0.113.1", kind=PORT_RESTRICTED, latency=0.01
        )
        self.client = talk(self.network.add_host("client", self.router.inside))
        server = self.network.add_host("server", ip=SERVER_IP, latency=0.02)
        self.server = talk(server, tcp=[80], tls=[443])
        self.network.set_name("server.example", [SERVER_IP])
        if connect:
            self.dial(SERVER_IP, 443 if tls else 80, tls=tls)
            self.network.run_for(1)
            assert told(self.client, "complete")[0][1] == (1, None)

    def dial(self, host: str, port: int, *, tls: bool = False) -> None:
        self.client.give(lambda talker, now: talker.dial(1, host, port, tls=tls))

    def write(self, program: Program[Talker], tcp_id: int, data: bytes) -> None:
        program.give(lambda talker, now: talker.write(tcp_id, data))

    def got(self, program: Program[Talker]) -> bytes:
        return b"".join(data for _, data in self.chunks(program))

    def chunks(self, program: Program[Talker]) -> list[tuple[float, bytes]]:
        return [
            (record.time, record.value[2])
            for record in program.events
            if isinstance(record.value, tuple) and record.value[0] == "data"
        ]


@pytest.mark.parametrize(("tls", "trips"), [(False, 1), (True, 2)])
def test_a_connection_takes_its_round_trips(tls: bool, trips: int) -> None:
    tcp = Tcp(tls=tls)
    assert told(tcp.server, "accepted") == [(round(0.06 * trips - 0.03, 6), (0,))]
    assert told(tcp.client, "complete") == [(round(0.06 * trips, 6), (1, None))]


def test_bytes_go_both_ways_and_the_end_follows_them() -> None:
    tcp = Tcp()
    tcp.write(tcp.client, 1, b"request")
    tcp.write(tcp.server, 0, b"answer")
    tcp.client.give(lambda talker, now: talker.write(1, b" and more"))
    tcp.client.give(lambda talker, now: talker.hang_up(1))
    tcp.network.run_for(1)
    assert tcp.got(tcp.server) == b"request and more"
    assert told(tcp.server, "eof") == [(1.03, (0,))]
    assert told(tcp.client, "eof") == [], "a machine that closed is told no more"


@pytest.mark.parametrize(
    ("host", "port", "tls", "error", "when"),
    [
        (SERVER_IP, 81, False, "connection refused", 0.06),
        (SERVER_IP, 80, True, "no TLS, or nothing but TLS, there", 0.12),
        ("no.example", 80, False, "no.example has no address", 0.02),
        ("2001:db8::1", 80, False, "no route to host", 0.0),
        ("192.0.2.99", 80, False, "connection timed out", 127.0),
    ],
)
def test_a_connection_that_cannot_be_says_why(
    host: str, port: int, tls: bool, error: str, when: float
) -> None:
    tcp = Tcp(connect=False)
    tcp.dial(host, port, tls=tls)
    tcp.network.run_for(200)
    assert told(tcp.client, "complete") == [(when, (1, error))]


def test_a_withdrawn_request_is_not_completed() -> None:
    tcp = Tcp(connect=False)
    tcp.dial("server.example", 80)
    tcp.network.run_for(0.06)
    assert told(tcp.server, "accepted")
    tcp.client.give(lambda talker, now: talker.hang_up(1))
    tcp.network.run_for(1)
    assert told(tcp.client, "complete") == []
    assert told(tcp.server, "eof")


def test_bytes_that_are_lost_come_later_but_in_order() -> None:
    tcp = Tcp()
    tcp.router.link.loss = tcp.router.link.jitter = 0.3
    sent = b""
    for number in range(50):
        data = b"%03d" % number
        sent += data
        tcp.write(tcp.client, 1, data)
        tcp.network.run_for(0.01)
    tcp.network.run_for(20)
    assert tcp.got(tcp.server) == sent
    assert tcp.chunks(tcp.server)[-1][0] - 1 > 0.5 + 0.03


def test_one_that_hangs_up_at_the_first_bytes_gets_none_that_overtook_them() -> None:
    tcp = Tcp()
    (end,) = tcp.server._tcp.values()
    end.take(1, b"second")
    assert tcp.got(tcp.server) == b""
    tcp.server.on_event = lambda event: hang_up_at_data(tcp, event)
    end.take(0, b"first")
    assert tcp.got(tcp.server) == b"first"


def hang_up_at_data(tcp: Tcp, event: object) -> None:
    if isinstance(event, tuple) and event[0] == "data":
        tcp.server.give(lambda talker, now: talker.hang_up(0))


def test_a_connection_stalls_while_its_link_is_down_and_goes_on() -> None:
    tcp = Tcp()
    tcp.router.link.is_up = False
    tcp.write(tcp.client, 1, b"patience")
    tcp.network.run_for(20)
    assert tcp.got(tcp.server) == b""
    tcp.router.link.is_up = True
    tcp.network.run_for(4)
    assert tcp.got(tcp.server) == b"patience"


@pytest.mark.parametrize(("outage", "arrives"), [(5.0, True), (70.0, False)])
def test_bytes_that_meet_a_link_that_failed_go_on_if_it_is_back_in_time(
    outage: float, arrives: bool
) -> None:
    tcp = Tcp()
    tcp.client.host.link.bandwidth = 1e6
    tcp.write(tcp.client, 1, b"under way")
    tcp.network.run_for(0.001)
    tcp.server.host.link.is_up = False
    tcp.network.run_for(outage)
    assert tcp.got(tcp.server) == b""
    tcp.server.host.link.is_up = True
    tcp.network.run_for(10)
    assert tcp.got(tcp.server) == (b"under way" if arrives else b"")
    assert len(told(tcp.client, "eof")) == (not arrives)


@pytest.mark.parametrize("bandwidth", [None, 1e6])
def test_a_connection_that_moves_nothing_for_long_is_lost(bandwidth: float | None) -> None:
    tcp = Tcp()
    tcp.client.host.link.bandwidth = bandwidth
    tcp.network.block_tcp(tcp.client.host, tcp.server.host)
    tcp.write(tcp.client, 1, b"hello?")
    tcp.network.run_for(70)
    assert 60 < told(tcp.client, "eof")[0][0] < 65
    assert told(tcp.server, "eof") == [], "the other side has nothing to send, and knows nothing"


def test_a_program_that_cannot_write_keeps_its_bytes() -> None:
    tcp = Tcp()
    tcp.router.link.is_up = False
    for _ in range(20):
        tcp.write(tcp.client, 1, bytes(100_000))
    assert 0 < len(tcp.client.machine.tcp[1]) < 2_000_000 - 256 * 1024 + 100_000
    tcp.router.link.is_up = True
    tcp.network.run_for(10)
    assert len(tcp.got(tcp.server)) == 2_000_000


def test_a_stopped_program_closes_its_connections_and_starts_with_a_new_machine() -> None:
    tcp = Tcp()
    machine = tcp.server.machine
    tcp.server.stop()
    tcp.network.run_for(1)
    assert told(tcp.client, "eof") == [(1.03, (1,))]
    tcp.dial(SERVER_IP, 80)
    tcp.network.run_for(1)
    assert told(tcp.client, "complete")[-1][1] == (1, "connection refused")
    tcp.server.start()
    assert tcp.server.machine is not machine
    tcp.dial(SERVER_IP, 80)
    tcp.network.run_for(1)
    assert told(tcp.client, "complete")[-1][1] == (1, None)


def test_a_power_cut_is_noticed_when_the_host_is_back() -> None:
    tcp = Tcp()
    tcp.server.host.cut_power()
    tcp.network.run_for(10)
    tcp.write(tcp.client, 1, b"anybody?")
    tcp.network.run_for(10)
    assert told(tcp.client, "eof") == []
    tcp.server.host.boot()
    tcp.network.run_for(10)
    assert len(told(tcp.client, "eof")) == 1


def test_a_nat_that_reboots_drops_connections_silently() -> None:
    tcp = Tcp()
    tcp.router.reboot()
    tcp.write(tcp.server, 0, b"are you there?")
    tcp.network.run_for(30)
    assert tcp.got(tcp.client) == b""
    assert told(tcp.client, "eof") == []


def test_nobody_connects_from_outside_to_a_nat() -> None:
    tcp = Tcp(connect=False)
    tcp.server.give(lambda talker, now: talker.dial(1, "203.0.113.1"))
    tcp.network.run_for(200)
    assert told(tcp.server, "complete") == [(127.0, (1, "connection timed out"))]


@pytest.mark.parametrize("bandwidth", [None, 1e6])
def test_blocked_tcp_goes_on_when_unblocked(bandwidth: float | None) -> None:
    tcp = Tcp()
    tcp.client.host.link.bandwidth = bandwidth
    tcp.network.block_tcp(tcp.client.host)
    tcp.write(tcp.client, 1, b"knock")
    tcp.network.run_for(5)
    assert tcp.got(tcp.server) == b""
    tcp.network.unblock_tcp(tcp.client.host)
    tcp.network.run_for(5)
    assert tcp.got(tcp.server) == b"knock"


def test_a_server_that_goes_down_between_syn_and_answer_is_asked_again() -> None:
    tcp = Tcp(connect=False)
    tcp.dial(SERVER_IP, 80)
    tcp.network.run_for(0.01)
    tcp.server.host.is_up = False
    tcp.network.run_for(5)
    assert told(tcp.client, "complete") == []
    tcp.server.host.is_up = True
    tcp.network.run_for(5)
    assert [result for _, result in told(tcp.client, "complete")] == [(1, None)]


def test_a_request_withdrawn_at_once_makes_no_connection() -> None:
    tcp = Tcp(connect=False)
    tcp.dial(SERVER_IP, 80)
    tcp.client.give(lambda talker, now: talker.hang_up(1))
    tcp.network.run_for(1)
    assert told(tcp.server, "accepted") == []


def test_what_is_left_in_the_machine_is_sent_before_the_end() -> None:
    tcp = Tcp()

    def write_and_hang_up(talker: Talker, now: float) -> None:
        talker.hang_up(1)
        talker.write(1, b"by the way")

    tcp.client.give(write_and_hang_up)
    tcp.network.run_for(1)
    assert tcp.got(tcp.server) == b"by the way"
    assert len(told(tcp.server, "eof")) == 1


def test_both_ends_may_close_at_once() -> None:
    tcp = Tcp()
    tcp.client.give(lambda talker, now: talker.hang_up(1))
    tcp.server.stop()
    tcp.network.run_for(1)
    assert told(tcp.client, "eof") == []


def test_a_host_that_loses_power_stops_trying() -> None:
    tcp = Tcp()
    tcp.router.link.is_up = False
    tcp.write(tcp.client, 1, b"never")
    tcp.client.host.cut_power()
    tcp.router.link.is_up = True
    tcp.network.run_for(5)
    assert tcp.got(tcp.server) == b""


def test_one_who_gave_up_asks_a_host_without_power_no_more() -> None:
    tcp = Tcp()
    tcp.write(tcp.client, 1, b"on its way")
    tcp.server.host.cut_power()
    tcp.network.run_for(1)
    tcp.client.stop()
    tcp.network.run_for(GIVE_UP_TIME + LONGEST_RETRANSMISSION_TIME)
    assert tcp.network.clock.next_time is None


@pytest.mark.parametrize("bandwidth", [None, 1e9])
def test_nothing_arrives_before_the_connection_stands(bandwidth: float | None) -> None:
    class Eager(Talker):
        def accept_tcp(self, tcp_id: int, *, now: float) -> None:
            self.write(tcp_id, b"welcome")

    for seed in range(20):
        network = make_network(seed)
        client = talk(network.add_host("client", ip="192.0.2.1", latency=0.01))
        client.host.link.jitter, client.host.link.bandwidth = 0.1, bandwidth
        network.add_host("server", ip=SERVER_IP).run(lambda rng: Eager(), tcp_ports=[80])
        client.give(lambda talker, now: talker.dial(1, SERVER_IP))
        network.run_for(1)
        kinds = [record.value[0] for record in client.events if isinstance(record.value, tuple)]
        assert kinds == ["complete", "data"]
