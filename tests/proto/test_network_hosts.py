"""What befalls hosts of the simulated network: sleep, moves, restarts, partitions, NAT stacks."""

from __future__ import annotations

import pytest

from iroh_proto.address import UdpAddress
from iroh_proto.derp.pool_events import DerpServerLost
from iroh_proto.errors import LocalProtocolError
from iroh_proto.testing.nat import FULL_CONE, PORT_RESTRICTED, SYMMETRIC, NatKind
from iroh_proto.testing.network import Network, Program, Router
from iroh_proto.testing.tcp import GIVE_UP_TIME
from tests.proto.magic_world import App, MagicWorld
from tests.proto.talker import (
    SERVER,
    SERVER_IP,
    DnsRequested,
    InterfacesRequested,
    Talker,
    heard,
    make_network,
    say,
    talk,
    told,
)


def two(network: Network) -> tuple[Program[Talker], Program[Talker]]:
    """Return a client and a server, with a TCP connection."""
    host = network.add_host("near", ip="192.0.2.1", latency=0.01)
    near = talk(host, UdpAddress("0.0.0.0", 5))
    far = talk(network.add_host("far", ip=SERVER_IP, latency=0.02), SERVER, tcp=[80])
    near.give(lambda talker, now: talker.dial(1, SERVER_IP))
    network.run_for(1)
    assert told(near, "complete")
    return near, far


def received(program: Program[Talker]) -> bytes:
    return b"".join(
        record.value[2]
        for record in program.events
        if isinstance(record.value, tuple) and record.value[0] == "data"
    )


# Sleep


def test_a_sleeping_host_hears_nothing_and_says_nothing() -> None:
    network = make_network()
    near, far = two(network)
    near.host.sleep()
    say(far, UdpAddress("192.0.2.1", 5), b"awake?")
    network.run_for(10)
    assert network.stats.unheard == 1
    assert heard(near) == []
    with pytest.raises(LocalProtocolError, match="near sleeps"):
        say(near, SERVER, b"z")


def test_timers_that_were_due_in_sleep_are_due_on_waking_after_the_news() -> None:
    network = make_network()
    near, _ = two(network)

    def set_deadline(talker: Talker, now: float) -> None:
        talker.deadline = 5.0

    near.give(set_deadline)
    near.host.sleep()
    network.run_for(99)
    assert told(near, "timer") == []
    near.host.wake()
    network.run_for(1)
    assert told(near, "resumed") == [(100.0, (100.0,))]
    assert told(near, "timer") == [(100.0, (100.0,))]
    near.host.wake()
    assert len(told(near, "resumed")) == 1, "it was awake"


def test_a_short_sleep_holds_a_connection_up_and_loses_nothing() -> None:
    network = make_network()
    near, far = two(network)
    far.give(lambda talker, now: talker.write(0, b"before "))
    near.host.sleep()
    network.run_for(5)
    far.give(lambda talker, now: talker.write(0, b"during "))
    network.run_for(20)
    assert told(near, "data") == []
    near.host.wake()
    network.run_for(5)
    far.give(lambda talker, now: talker.write(0, b"after"))
    network.run_for(5)
    assert received(near) == b"before during after"


def test_who_sleeps_too_long_finds_its_connections_gone_when_it_uses_them() -> None:
    network = make_network()
    near, far = two(network)
    near.host.sleep()
    far.give(lambda talker, now: talker.write(0, b"hello?"))
    network.run_for(GIVE_UP_TIME + 10)
    assert len(told(far, "eof")) == 1
    near.host.wake()
    network.run_for(5)
    assert told(near, "eof") == [], "nobody told it"
    near.give(lambda talker, now: talker.write(1, b"good morning"))
    network.run_for(5)
    assert len(told(near, "eof")) == 1
    assert told(far, "data") == []


def test_an_end_that_was_sent_to_a_sleeper_arrives_when_it_wakes() -> None:
    network = make_network()
    near, far = two(network)
    near.host.sleep()
    far.give(lambda talker, now: talker.hang_up(0))
    network.run_for(20)
    near.host.wake()
    network.run_for(5)
    assert len(told(near, "eof")) == 1


def test_a_sleeping_sender_does_not_give_up() -> None:
    network = make_network()
    near, far = two(network)
    near.host.link.is_up = False
    near.give(lambda talker, now: talker.write(1, b"later"))
    near.host.sleep()
    network.run_for(2 * GIVE_UP_TIME)
    near.host.link.is_up = True
    near.host.wake()
    network.run_for(5)
    assert [result for _, result in told(far, "data")] == [(0, b"later")]


def test_answers_that_come_in_sleep_are_lost() -> None:
    network = make_network()
    network.set_name("far.example", [SERVER_IP])
    near, _ = two(network)
    question = DnsRequested(request_id=1, host="far.example")
    near.give(lambda talker, now: talker.events.append(question))
    near.give(lambda talker, now: talker.dial(2, SERVER_IP))
    near.host.sleep()
    network.run_for(5)
    near.host.wake()
    network.run_for(5)
    assert told(near, "dns") == []
    assert told(near, "complete") == [(0.06, (1, None))]


def test_a_server_asleep_is_asked_until_it_wakes() -> None:
    network = make_network()
    near, far = two(network)
    far.host.sleep()
    near.give(lambda talker, now: talker.dial(2, SERVER_IP))
    network.run_for(10)
    far.host.wake()
    network.run_for(5)
    assert [result for _, result in told(near, "complete")] == [(1, None), (2, None)]


def test_power_comes_back_to_a_host_awake() -> None:
    network = make_network()
    near, _ = two(network)
    near.host.sleep()
    near.host.cut_power()
    near.host.sleep()  # too late
    near.host.wake()
    assert told(near, "resumed") == []
    near.host.boot()
    say(near, SERVER, b"up")
    assert near.host.is_awake
    machine = near.machine
    near.host.boot()
    assert near.machine is machine, "it was up"


# Moves


def test_a_host_that_moves_has_other_addresses_and_knows() -> None:
    network = make_network()
    near, far = two(network)
    cafe = network.add_nat("cafe", ip="203.0.113.1", kind=FULL_CONE, ipv6_subnet="2001:db8:1::/64")
    near.host.move(cafe.inside)
    assert near.host.ips == ["192.168.1.2", "2001:db8:1::2"]
    assert near.host.link.latency == 0.01
    assert told(near, "changed") == [(1.0, (1.0,))]
    say(near, SERVER, b"from the cafe")
    near.give(lambda talker, now: talker.write(1, b"lost"))
    network.run_for(1)
    assert far.seen(object)[-1].addr.ip == "203.0.113.1"  # type: ignore[attr-defined]
    assert told(far, "data") == []
    near.host.move(cafe.inside)
    assert near.host.ip == "192.168.1.3", "a new lease, another address"
    near.host.move(network.internet, "192.0.2.7", "2001:db8:ff::7", latency=0.5)
    assert near.host.ips == ["192.0.2.7", "2001:db8:ff::7"]
    assert near.host.link.latency == 0.5


def test_pulled_cables_are_noticed_and_the_other_interface_is_used() -> None:
    network = make_network()
    near, far = two(network)
    mobile = network.add_nat("mobile", ip="203.0.113.1", kind=FULL_CONE)
    near.host.plug_in(mobile.inside, latency=0.05)
    ethernet = near.host.link
    near.give(lambda talker, now: talker.events.append(InterfacesRequested(request_id=1)))
    say(near, SERVER, b"1")
    network.run_for(1)
    ethernet.is_up = False
    near.host.notice_change()
    near.give(lambda talker, now: talker.events.append(InterfacesRequested(request_id=2)))
    say(near, SERVER, b"2")
    network.run_for(1)
    assert [result[1] for _, result in told(near, "interfaces")] == [
        ["192.0.2.1", "192.168.1.2"],
        ["192.168.1.2"],
    ]
    sources = [event.addr.ip for event in far.seen(object) if hasattr(event, "addr")]
    assert sources == ["192.0.2.1", "203.0.113.1"]
    near.host.set_links(is_up=False)
    say(near, SERVER, b"3")
    near.host.set_links(is_up=True)
    say(near, SERVER, b"4")
    network.run_for(1)
    assert [data for _, data in heard(far)][-1:] == [b"4"]
    assert len(told(near, "changed")) == 3


def test_names_cannot_be_looked_up_without_a_way_to_a_resolver() -> None:
    network = make_network()
    network.set_name("far.example", [SERVER_IP])
    home = network.add_nat("home", ip="203.0.113.1", kind=FULL_CONE)
    near = talk(network.add_host("near", home.inside))
    home.link.is_up = False
    question = DnsRequested(request_id=1, host="far.example")
    near.give(lambda talker, now: talker.events.append(question))
    network.run_for(10)
    assert told(near, "dns") == [(5.0, (1, []))]


def test_an_address_needs_no_resolver() -> None:
    network = make_network()
    near, _ = two(network)
    network.dns_is_up = False
    questions = [
        DnsRequested(request_id=request_id, host=host)
        for request_id, host in enumerate([SERVER_IP, "2001:db8::1", "far.example"])
    ]
    near.give(lambda talker, now: talker.events.extend(questions))
    network.run_for(10)
    answers = [answer for _, answer in told(near, "dns")]
    assert answers == [(0, [SERVER_IP]), (1, ["2001:db8::1"]), (2, [])]


def test_a_sleeper_notices_nothing_of_its_cables() -> None:
    network = make_network()
    near, _ = two(network)
    near.host.sleep()
    near.host.set_links(is_up=False)
    near.host.set_links(is_up=True)
    near.host.wake()
    assert told(near, "changed") == []
    assert len(told(near, "resumed")) == 1


# Restarts and partitions


def test_a_program_restarts_after_a_time_unless_somebody_was_faster() -> None:
    network = make_network()
    near, far = two(network)
    first = far.machine
    far.restart(after=3.0)
    network.run_for(2)
    assert not told(near, "complete")[1:]
    assert told(near, "eof") == [(1.03, (1,))]
    network.run_for(2)
    assert far.machine is not first
    far.restart(after=1.0)
    far.start()
    second = far.machine
    network.run_for(2)
    assert far.machine is second
    far.restart(after=1.0)
    far.host.cut_power()
    network.run_for(2)
    assert not far.is_running


def test_a_partition_stops_everything_between_groups_and_nothing_within() -> None:
    network = make_network()
    programs = [
        talk(network.add_host(name, ip=f"192.0.2.{number}"), UdpAddress("0.0.0.0", 5), tcp=[80])
        for number, name in enumerate(("a", "b", "c"), start=1)
    ]
    a, b, c = programs

    def reached(sender: Program[Talker], receiver: Program[Talker]) -> tuple[bool, bool]:
        for program in programs:
            program.events.clear()
        say(sender, UdpAddress(receiver.host.ip, 5), b"knock")
        sender.give(lambda talker, now: talker.dial(1, receiver.host.ip))
        network.run_for(1)
        done = bool(heard(receiver)), bool(told(sender, "complete"))
        sender.give(lambda talker, now: talker.hang_up(1))
        network.run_for(5)
        return done

    network.partition([a.host, b.host], [c.host])
    network.block_udp(a.host, b.host)
    assert reached(a, b) == (False, True)
    assert reached(a, c) == reached(c, b) == (False, False)
    network.heal()
    assert reached(a, c) == reached(c, b) == (True, True)
    assert reached(a, b) == (False, True), "that was no partition"


# Magicsocks


def settled(world: MagicWorld, left: Router, right: Router) -> tuple[App, App]:
    alice, bob = world.app("alice", left.inside), world.app("bob", right.inside)
    world.settle(alice, bob)
    alice.learn(bob, derp=True)
    return alice, bob


@pytest.mark.parametrize("kind", [FULL_CONE, PORT_RESTRICTED])
@pytest.mark.parametrize("depth", [2, 3])
def test_nodes_meet_through_stacks_of_nats(kind: NatKind, depth: int) -> None:
    world = MagicWorld()
    inner: list[Router] = []
    for number in (1, 2):
        router = world.network.add_nat(
            f"carrier{number}", ip=f"203.0.113.{number}", kind=kind, latency=0.01
        )
        for level in range(1, depth):
            router = world.network.add_nat(
                f"level{level} of {number}", kind=PORT_RESTRICTED, upstream=router.inside
            )
        inner.append(router)
    apps = settled(world, inner[0], inner[1])
    world.chat(*apps, 8.0)
    assert apps[0].kind(apps[1]) == apps[1].kind(apps[0]) == "direct"


@pytest.mark.parametrize("hairpins", [True, False])
def test_customers_of_one_carrier_meet_if_it_hairpins(hairpins: bool) -> None:
    world = MagicWorld()
    carrier = world.network.add_nat(
        "carrier",
        ip="203.0.113.1",
        kind=NatKind(mapping=FULL_CONE.mapping, filtering=FULL_CONE.filtering, hairpins=hairpins),
        subnet="100.64.0.0/10",
        latency=0.01,
    )
    homes = [
        world.network.add_nat(name, kind=PORT_RESTRICTED, upstream=carrier.inside)
        for name in ("one", "other")
    ]
    apps = settled(world, homes[0], homes[1])
    world.chat(*apps, 15.0)
    assert (apps[0].kind(apps[1]) == "direct") is hairpins


def test_a_stack_is_as_strict_as_its_strictest_nat() -> None:
    world = MagicWorld()
    carrier = world.network.add_nat("carrier", ip="203.0.113.1", kind=SYMMETRIC, latency=0.01)
    home = world.network.add_nat("home", kind=FULL_CONE, upstream=carrier.inside)
    other = world.network.add_nat("other", ip="203.0.113.2", kind=PORT_RESTRICTED, latency=0.01)
    apps = settled(world, home, other)
    world.chat(*apps, 15.0)
    assert "direct" not in apps[0].kinds(apps[1])


def test_a_node_that_slept_is_direct_again_soon() -> None:
    world = MagicWorld()
    home = world.network.add_nat("home", ip="203.0.113.1", kind=PORT_RESTRICTED, latency=0.01)
    office = world.network.add_nat("office", ip="203.0.113.2", kind=PORT_RESTRICTED, latency=0.01)
    alice, bob = settled(world, home, office)
    world.chat(alice, bob, 8.0)
    assert alice.kind(bob) == "direct"
    alice.host.sleep()
    for _ in range(300):
        bob.send(alice)
        world.network.run_for(1.0)
    assert bob.kind(alice) != "direct"
    alice.host.wake()
    world.network.run_for(2.0)
    world.chat(alice, bob, 10.0)
    assert alice.kind(bob) == bob.kind(alice) == "direct"


def test_a_node_cut_off_from_its_derp_server_is_back_when_the_cut_is_healed() -> None:
    world = MagicWorld()
    alice, bob = world.app("alice", ip="203.0.113.1"), world.app("bob", ip="203.0.113.2")
    world.settle(alice, bob)
    world.network.partition([world.derp_host], [alice.host])
    world.network.run_for(60.0)
    assert alice.program.seen(DerpServerLost)
    assert world.derp.machine.clients == [bob.id]
    world.network.heal()
    world.network.run_until(lambda: len(world.derp.machine.clients) == 2, limit=30)


def test_a_node_that_moves_is_followed_without_being_told_twice() -> None:
    world = MagicWorld()
    home = world.network.add_nat("home", ip="203.0.113.1", kind=PORT_RESTRICTED, latency=0.01)
    mobile = world.network.add_nat("mobile", ip="203.0.113.3", kind=FULL_CONE, latency=0.05)
    office = world.network.add_nat("office", ip="203.0.113.2", kind=PORT_RESTRICTED, latency=0.01)
    alice, bob = settled(world, home, office)
    world.chat(alice, bob, 8.0)
    alice.host.move(mobile.inside)
    world.chat(alice, bob, 15.0)
    addr = bob.sock.path_info(alice.id).addr
    assert isinstance(addr, UdpAddress)
    assert (bob.kind(alice), addr.ip) == ("direct", "203.0.113.3")


def test_a_kind_of_nat_that_is_none_is_refused_at_once() -> None:
    network = make_network()
    with pytest.raises(TypeError, match="not 'symmetric'"):
        network.add_nat("home", ip="203.0.113.1", kind="symmetric")  # type: ignore[arg-type]
    assert not network.routers
