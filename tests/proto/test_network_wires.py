"""The simulated network itself: links, hosts, names and time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest

from iroh_proto.address import UdpAddress
from iroh_proto.errors import LocalProtocolError
from iroh_proto.testing.clock import LimitReached, VirtualClock
from iroh_proto.testing.hosting import Hosted
from iroh_proto.testing.nat import FULL_CONE
from iroh_proto.testing.run import ContractBroken
from tests.proto.talker import (
    SERVER,
    SERVER_IP,
    DnsRequested,
    Heard,
    InterfacesRequested,
    Talker,
    heard,
    make_network,
    say,
    talk,
    told,
)


def test_a_datagram_takes_the_latency_of_both_links() -> None:
    network = make_network()
    near = talk(network.add_host("near", ip="192.0.2.1", latency=0.01))
    far = talk(network.add_host("far", ip=SERVER_IP, latency=0.02), SERVER)
    say(near, SERVER, b"a", b"b")
    network.run_for(1)
    assert heard(far) == [(0.03, b"a"), (0.03, b"b")]
    assert far.seen(Heard)[0].addr == UdpAddress("192.0.2.1", near.sockets[0].port)


def test_datagrams_to_nobody_are_counted() -> None:
    network = make_network()
    near = talk(network.add_host("near", ip="192.0.2.1"))
    network.add_host("far", ip=SERVER_IP)
    say(near, UdpAddress("192.0.2.99", 1), b"no such address")
    say(near, SERVER, b"no such port")
    say(near, UdpAddress("2001:db8::1", 1), b"no such socket")
    say(talk(near.host, UdpAddress("::", 6)), UdpAddress("2001:db8::1", 1), b"no such interface")
    network.run_for(1)
    assert (network.stats.sent, network.stats.unroutable, network.stats.unheard) == (4, 3, 1)


def test_loss_jitter_reordering_and_duplication_are_drawn_from_the_seed() -> None:
    def play(seed: int) -> list[tuple[float, bytes]]:
        network = make_network(seed)
        near = talk(network.add_host("near", ip="192.0.2.1", latency=0.01))
        far = talk(network.add_host("far", ip=SERVER_IP), SERVER)
        link = near.host.link
        link.loss, link.jitter, link.reordering, link.duplication = 0.2, 0.001, 0.1, 0.1
        for number in range(500):
            say(near, SERVER, b"%d" % number)
            network.run_for(0.01)
        network.run_for(1)
        return heard(far)

    arrived = play(1)
    numbers = [int(data) for _, data in arrived]
    assert 350 < len(set(numbers)) < 450
    assert len(numbers) - len(set(numbers)) in range(20, 80)
    assert numbers != sorted(numbers)
    assert play(1) == arrived
    assert play(2) != arrived


def test_a_link_that_is_down_loses_what_is_sent() -> None:
    network = make_network()
    near = talk(network.add_host("near", ip="192.0.2.1"))
    far = talk(network.add_host("far", ip=SERVER_IP), SERVER)
    far.host.link.is_up = False
    say(near, SERVER, b"lost")
    network.run_for(1)
    far.host.link.is_up = True
    say(near, SERVER, b"found")
    network.run_for(1)
    assert [data for _, data in heard(far)] == [b"found"]
    assert network.stats.lost == 1


def test_udp_can_be_blocked_between_two_hosts_or_around_one() -> None:
    network = make_network()
    one, two, three = (
        talk(network.add_host(name, ip=f"192.0.2.{number}"), UdpAddress("0.0.0.0", 9))
        for number, name in enumerate(["one", "two", "three"], start=1)
    )

    def reached() -> list[bool]:
        for program in (one, two, three):
            program.events.clear()
        say(one, UdpAddress("192.0.2.2", 9), b"12")
        say(three, UdpAddress("192.0.2.2", 9), b"32")
        say(two, UdpAddress("192.0.2.1", 9), b"21")
        network.run_for(1)
        return [
            any(data == wanted for program in (one, two) for _, data in heard(program))
            for wanted in (b"12", b"32", b"21")
        ]

    assert reached() == [True, True, True]
    network.block_udp(one.host, two.host)
    assert reached() == [False, True, False]
    network.block_udp(three.host)
    assert reached() == [False, False, False]
    network.unblock_udp(one.host, two.host)
    network.unblock_udp(three.host)
    assert reached() == [True, True, True]
    assert network.stats.blocked == 5


def test_a_host_uses_the_interface_of_the_destination() -> None:
    network = make_network()
    home = network.add_nat("home", ip="203.0.113.1", kind=FULL_CONE)
    both = network.add_host("both", home.inside)
    both.attach(network.internet, "2001:db8::5")
    near = talk(both, UdpAddress("0.0.0.0", 5), UdpAddress("::", 6))
    neighbour = talk(network.add_host("neighbour", home.inside), UdpAddress("0.0.0.0", 7))
    far = talk(network.add_host("far", ip="2001:db8::1"), UdpAddress("::", 7))
    say(near, UdpAddress(neighbour.host.ip, 7), b"lan")
    say(near, UdpAddress("2001:db8::1", 7), b"six")
    say(near, UdpAddress("127.0.0.1", 5), b"self")
    network.run_for(1)
    assert neighbour.seen(Heard) == [Heard(data=b"lan", addr=UdpAddress(both.ip, 5))]
    assert far.seen(Heard) == [Heard(data=b"six", addr=UdpAddress("2001:db8::5", 6))]
    assert near.seen(Heard) == [Heard(data=b"self", addr=UdpAddress("127.0.0.1", 5))]


def test_an_unplugged_interface_gets_nothing_and_its_address_is_free_again() -> None:
    network = make_network()
    near = talk(network.add_host("near", ip="192.0.2.1", latency=0.1))
    far = talk(network.add_host("far", ip=SERVER_IP), SERVER)
    say(near, SERVER, b"too late")
    far.host.detach(far.host.attachments[0])
    network.run_for(1)
    assert heard(far) == []
    network.add_host("other", ip=SERVER_IP)
    with pytest.raises(LocalProtocolError, match="taken"):
        network.add_host("third", ip=SERVER_IP)


def test_names_and_interfaces_are_answered() -> None:
    network = make_network()
    network.set_name("derp.example", ["192.0.2.7"])
    program = talk(network.add_host("host", ip="192.0.2.1"))
    program.give(
        lambda talker, now: talker.events.append(DnsRequested(request_id=1, host="derp.example"))
    )
    program.give(
        lambda talker, now: talker.events.append(DnsRequested(request_id=2, host="no.example"))
    )
    program.give(lambda talker, now: talker.events.append(InterfacesRequested(request_id=3)))
    network.run_for(1)
    assert told(program, "dns") == [(0.02, (1, ["192.0.2.7"])), (0.02, (2, []))]
    assert told(program, "interfaces") == [(0.0, (3, ["192.0.2.1"]))]
    network.dns_is_up = False
    program.give(
        lambda talker, now: talker.events.append(DnsRequested(request_id=4, host="derp.example"))
    )
    network.run_for(10)
    assert told(program, "dns")[2:] == [(6.0, (4, []))]


def test_timers_are_kept_to_the_moment_and_moving_them_later_costs_no_wakeup() -> None:
    network = make_network()
    program = talk(network.add_host("host", ip="192.0.2.1"))

    def set_deadline(deadline: float | None) -> None:
        def command(talker: Talker, now: float) -> None:
            talker.deadline = deadline

        program.give(command)

    set_deadline(5.0)
    set_deadline(7.5)
    network.run_for(6)
    set_deadline(6.25)
    network.run_for(1)
    set_deadline(8.0)
    set_deadline(None)
    network.run_for(10)
    assert told(program, "timer") == [(6.25, (6.25,))]


def test_a_machine_whose_timer_does_not_move_is_reported_instead_of_spinning() -> None:
    class Stuck(Talker):
        def handle_timer(self, *, now: float) -> None:
            pass

    network = make_network()

    def begin(machine: Stuck, bound: Sequence[UdpAddress], now: float) -> None:
        machine.deadline = 1.0

    network.add_host("host", ip="192.0.2.1").run(lambda rng: Stuck(), begin=begin)
    with pytest.raises(ContractBroken, match=r"the timer is 1\.0"):
        network.run_for(2)


def test_waiting_for_what_never_happens_ends_at_the_limit() -> None:
    clock = VirtualClock(5.0)
    clock.call_at(6.0, lambda: None)
    with pytest.raises(LimitReached, match=r"within 3 s from 5 s on"):
        clock.run_until(lambda: False, limit=3)
    assert clock.now == 8.0
    assert clock.run_until(lambda: True, limit=3) == 8.0


def test_what_did_not_happen_is_named_by_its_place() -> None:
    def happens() -> bool:
        return False

    clock, line = VirtualClock(), happens.__code__.co_firstlineno
    with pytest.raises(LimitReached, match=rf"happens \(.*test_network_wires\.py:{line}\) did not"):
        clock.run_until(happens, limit=3)
    with pytest.raises(LimitReached, match=r"functools\.partial\(.*\) did not"):
        clock.run_until(partial(happens), limit=3)


def test_a_thousand_idle_hosts_cost_nothing() -> None:
    network = make_network()
    for number in range(1000):
        talk(network.add_host(f"host{number}", ip=f"10.0.{number // 250}.{number % 250 + 1}"))
    steps = 0
    while network.clock.step():
        steps += 1
    assert steps == 0


def test_observers_see_each_event_with_time_and_place() -> None:
    network = make_network()
    seen: list[tuple[float, str, object]] = []
    network.observers.append(lambda time, name, event: seen.append((time, name, event)))
    far = network.add_host("far", ip=SERVER_IP, latency=0.5).run(
        lambda rng: Talker(), name="ear", udp=[SERVER]
    )
    say(talk(network.add_host("near", ip="192.0.2.1")), SERVER, b"psst")
    network.run_for(1)
    assert seen == [(0.5, "far/ear", far.seen(Heard)[0])]


def test_what_is_taken_is_refused() -> None:
    network = make_network()
    home = network.add_nat("home", ip="203.0.113.1", kind=FULL_CONE, subnet="10.0.0.0/30")
    program = talk(network.add_host("near", home.inside), UdpAddress("0.0.0.0", 5), tcp=[80])
    with pytest.raises(LocalProtocolError, match="a host near"):
        network.add_host("near", ip="192.0.2.9")
    with pytest.raises(LocalProtocolError, match="a router home"):
        network.add_nat("home", kind=FULL_CONE)
    with pytest.raises(LocalProtocolError, match="no address is free"):
        network.add_host("far", home.inside)
    with pytest.raises(LocalProtocolError, match="say which address"):
        network.add_host("far")
    with pytest.raises(LocalProtocolError, match="no address of home lan"):
        network.add_host("far", home.inside, ip="10.0.1.1")
    with pytest.raises(LocalProtocolError, match=r"203\.0\.113\.1 is taken in internet"):
        network.add_host("far", ip="203.0.113.1")
    with pytest.raises(LocalProtocolError, match="taken on near"):
        talk(program.host, UdpAddress("0.0.0.0", 5))
    with pytest.raises(LocalProtocolError, match=r"\[80\] is taken on near"):
        talk(program.host, tcp=[80])
    with pytest.raises(LocalProtocolError, match="near/program is running"):
        program.start()


def test_parts_show_themselves() -> None:
    network = make_network()
    program = talk(network.add_host("near", ip="192.0.2.1"))
    assert repr(program.host) == "Host('near', ['192.0.2.1'])"
    assert repr(program.host.attachments[0]) == "Attachment(192.0.2.1 in internet)"
    assert repr(network.internet) == "Segment('internet')"


def test_a_stopped_program_is_told_nothing() -> None:
    network = make_network()
    network.set_name("far.example", [SERVER_IP])
    program = talk(network.add_host("near", ip="192.0.2.1"), UdpAddress("0.0.0.0", 5))
    question = DnsRequested(request_id=1, host="far.example")
    program.give(lambda talker, now: talker.events.append(question))
    program.give(lambda talker, now: talker.dial(1, "no.example"))
    program.stop()
    program.flush()
    network.run_for(1)
    program.start()
    network.run_for(1)
    assert told(program, "dns") == told(program, "complete") == []


def test_nothing_happens_at_no_time() -> None:
    with pytest.raises(LocalProtocolError, match="nan"):
        VirtualClock().call_at(float("nan"), lambda: None)


def test_a_machine_without_end_of_events_is_reported() -> None:
    class Chatty(Talker):
        def next_event(self) -> object:
            return "and"

    network = make_network()
    with pytest.raises(ContractBroken, match="event after event"):
        network.add_host("near", ip="192.0.2.1").run(lambda rng: Chatty())


def test_a_bare_host_has_no_wires() -> None:
    talker = Talker()
    bare = Hosted(VirtualClock(), talker)
    talker.say(SERVER, b"hello?")
    with pytest.raises(NotImplementedError):
        bare.flush()
    with pytest.raises(NotImplementedError):
        bare.flush()  # TCP this time
    with pytest.raises(NotImplementedError):
        bare.send_data(b"")


def test_an_application_may_answer_an_event_with_a_command() -> None:
    network = make_network()
    near = talk(network.add_host("near", ip="192.0.2.1", latency=0.1))
    far = network.add_host("far", ip=SERVER_IP)

    def echo(event: object) -> None:
        if isinstance(event, Heard):
            assert isinstance(event.addr, UdpAddress)
            program.machine.say(event.addr, event.data)

    program = far.run(lambda rng: Talker(), udp=[SERVER], on_event=echo)
    say(near, SERVER, b"echo")
    network.run_for(1)
    assert heard(near) == [(0.2, b"echo")]
