"""Replays: the same machine does the same again, and a change of it is found where it shows."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iroh_anyio.quic.endpoint_machine import EndpointMachine
from iroh_anyio.quic.events import ConnectionEstablished
from iroh_proto.address import DerpAddress, DerpUrl, NodeAddr, UdpAddress
from iroh_proto.derp.map import DerpMap
from iroh_proto.derp.relay import DerpServer
from iroh_proto.disco.message import Ping
from iroh_proto.errors import DecodeError, LocalProtocolError
from iroh_proto.key import SecretKey
from iroh_proto.magicsock import Magicsock
from iroh_proto.paths.finder import PathFinder
from iroh_proto.paths.state import NodeState
from iroh_proto.stun.server import StunServer
from iroh_proto.testing.merging import merge
from iroh_proto.testing.nat import FULL_CONE, PORT_RESTRICTED, SYMMETRIC
from iroh_proto.testing.nat_matrix import NatPair
from iroh_proto.testing.network import Host, Network, Program
from iroh_proto.testing.replay import replay
from iroh_proto.testing.sequence import draw_sequence
from iroh_proto.testing.timeline import Timeline
from iroh_proto.trace.disco import DiscoReader
from iroh_proto.trace.node_tape import NodeTape
from iroh_proto.trace.tape import Recipe
from iroh_proto.trace.values import Json

URL = DerpUrl.from_str("http://derp.example/")
ALPN = b"test/1"
PROGRAMS = {"derp/derp", "derp/stun", "first/magicsock", "second/magicsock"}


@cache
def recorded() -> tuple[str, ...]:
    pair = NatPair(PORT_RESTRICTED, PORT_RESTRICTED, seed=1, recorded=True)
    pair.run()
    assert pair.timeline is not None
    return tuple(pair.timeline.lines())


def changed(change: Callable[[dict[str, Any]], bool]) -> tuple[int, list[str]]:
    """Return the time line with the first line changed that ``change`` finds to its taste."""
    lines = list(recorded())
    for place, line in enumerate(lines[1:], start=1):
        entry = json.loads(line)
        if change(entry):
            lines[place] = json.dumps(entry)
            return place + 1, lines
    raise AssertionError("no line was changed")


def test_a_run_can_be_repeated_with_every_program_in_it() -> None:
    result = replay(recorded())
    assert result.difference is None
    assert set(result.inputs) == PROGRAMS
    assert min(result.inputs.values()) > 3
    assert min(result.outputs.values()) > 3


def test_what_comes_of_a_payload_is_taken_out_at_once() -> None:
    pair = NatPair(SYMMETRIC, FULL_CONE, seed=0, recorded=True)
    pair.run()
    assert pair.timeline is not None
    assert replay(pair.timeline.lines()).difference is None


def test_a_run_that_stays_relayed_can_be_repeated() -> None:
    pair = NatPair(PORT_RESTRICTED, SYMMETRIC, seed=3, recorded=True)
    assert pair.run() is None
    assert pair.timeline is not None
    assert replay(pair.timeline.lines()).difference is None


def flip(text: str) -> str:
    return ("1" if text[0] == "0" else "0") + text[1:]


def flip_datagram(entry: dict[str, Any]) -> bool:
    if entry["kind"] == "DatagramsSent" and entry["at"] in PROGRAMS:
        entry["datagrams"][0] = flip(entry["datagrams"][0])
        return True
    return False


def move_datagram(entry: dict[str, Any]) -> bool:
    if entry["kind"] == "DatagramsSent" and entry["at"] in PROGRAMS:
        entry["destination"] = "192.0.2.77:7"
        return True
    return False


def flip_tcp(entry: dict[str, Any]) -> bool:
    if entry["kind"] == "TcpDataSent":
        entry["data"] = flip(entry["data"])
        return True
    return False


def flip_payload(entry: dict[str, Any]) -> bool:
    if entry["kind"] == "PayloadsTaken":
        entry["payloads"][0]["datagrams"][0] = flip(entry["payloads"][0]["datagrams"][0])
        return True
    return False


def move_path(entry: dict[str, Any]) -> bool:
    if entry["kind"] == "PathChanged":
        entry["path"]["addr"] = "192.0.2.77:7"
        return True
    return False


def delay_timer(entry: dict[str, Any]) -> bool:
    if entry["kind"] == "TimerHandled":
        entry["deadline"] += 0.001
        return True
    return False


def claim_a_refusal(entry: dict[str, Any]) -> bool:
    if entry["kind"] == "CommandGiven" and entry["command"] == "add_node_addr":
        entry["raised"] = "no"
        return True
    return False


def rename_connection(entry: dict[str, Any]) -> bool:
    if entry["kind"] == "TcpDataReceived" and entry["at"] == "first/magicsock":
        entry["tcp_id"] += 77
        return True
    return False


@pytest.mark.parametrize(
    "change",
    [
        flip_datagram,
        move_datagram,
        flip_tcp,
        flip_payload,
        move_path,
        delay_timer,
        claim_a_refusal,
        rename_connection,
    ],
)
def test_whatever_differs_is_found_where_it_is(change: Callable[[dict[str, Any]], bool]) -> None:
    line, lines = changed(change)
    difference = replay(lines).difference
    assert difference is not None
    assert difference.line == line
    assert difference.program == json.loads(lines[line - 1])["at"]
    assert difference.time == json.loads(lines[line - 1])["time"]


@pytest.mark.parametrize(
    ("change", "kind", "fields"),
    [
        (flip_datagram, "DatagramsSent", {"datagrams"}),
        (move_datagram, "DatagramsSent", {"destination"}),
        (flip_tcp, "TcpDataSent", {"data"}),
        (flip_payload, "PayloadsTaken", {"datagrams"}),
        (move_path, "PathChanged", {"path"}),
        (delay_timer, "TimerHandled", {"deadline"}),
        (claim_a_refusal, "CommandGiven", {"command", "raised"}),
    ],
)
def test_a_difference_says_of_what_kind_both_are_and_what_differs(
    change: Callable[[dict[str, Any]], bool], kind: str, fields: set[str]
) -> None:
    _, lines = changed(change)
    difference = replay(lines).difference
    assert difference is not None
    for shown in (difference.recorded, difference.repeated):
        name, _, values = shown.partition(" ")
        assert name == kind
        assert set(json.loads(values)) == fields


@pytest.mark.parametrize("kind", ["DatagramsSent", "PayloadsTaken", "PathChanged"])
def test_unlike_things_are_told_by_their_kinds(kind: str) -> None:
    lines = [line for line in recorded() if f'"kind": "{kind}"' not in line]
    difference = replay(lines).difference
    assert difference is not None
    assert kind not in difference.recorded
    assert difference.repeated.split()[0] == kind


@pytest.mark.parametrize("kind", ["DatagramsReceived", "TcpDataReceived"])
def test_what_is_not_done_again_is_nothing(kind: str) -> None:
    lines = [line for line in recorded() if f'"kind": "{kind}"' not in line]
    difference = replay(lines).difference
    assert difference is not None
    assert difference.recorded
    assert "object at" not in difference.repeated


@pytest.mark.parametrize("kind", ["PathChanged", "DatagramsSent", "PayloadsTaken"])
def test_what_was_not_recorded_is_found_before_time_goes_on(kind: str) -> None:
    lines = list(recorded())
    place = next(
        place
        for place, line in enumerate(lines)
        if f'"kind": "{kind}"' in line and json.loads(line)["at"] in PROGRAMS
    )
    lost = json.loads(lines.pop(place))
    later = (
        place
        for place, line in enumerate(lines)
        if (entry := json.loads(line)).get("at") == lost["at"]
        and entry["time"] > lost["time"]
        and entry["kind"] in ("CommandGiven", "TimerHandled", "DatagramsReceived")
    )
    difference = replay(lines).difference
    assert difference is not None
    assert difference.program == lost["at"]
    assert place < difference.line <= next(later) + 1
    if kind == "PathChanged":
        assert "PathChanged" in difference.repeated


def test_what_is_missing_at_the_end_is_found() -> None:
    lines = list(recorded())
    last = max(place for place, line in enumerate(lines) if '"kind": "PayloadsTaken"' in line)
    difference = replay(lines[:last]).difference
    assert difference is not None
    assert difference.recorded == "the end"


def test_what_is_missing_at_the_end_of_a_cut_time_line_is_no_difference() -> None:
    lines = recorded()
    cuts = range(20, len(lines), 29)
    assert all(replay(lines[:cut], is_cut=True).difference is None for cut in cuts)
    assert any(replay(lines[:cut]).difference is not None for cut in cuts)


def test_lots_that_were_drawn_in_a_line_that_is_cut_away_are_no_difference() -> None:
    lines = list(of_one_node())
    last = max(place for place, line in enumerate(lines) if '"drawn"' in line)
    entry = json.loads(lines[last])
    del entry["drawn"]
    lines[last:] = [json.dumps(entry)]
    assert replay(lines, is_cut=True).difference is None
    difference = replay(lines).difference
    assert difference is not None
    assert difference.recorded == "drew nothing more"


def test_a_payload_that_is_not_taken_again_is_nothing() -> None:
    lines = list(recorded())
    place = next(place for place, line in enumerate(lines) if '"kind": "PayloadsTaken"' in line)
    difference = replay([*lines[: place + 1], lines[place]]).difference
    assert difference is not None
    assert difference.recorded.startswith("PayloadsTaken ")
    assert difference.repeated == "nothing"


def test_a_difference_before_the_cut_is_found() -> None:
    line, lines = changed(move_path)
    difference = replay(lines[:line], is_cut=True).difference
    assert difference is not None
    assert difference.line == line


def test_another_rule_of_paths_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NodeState, "take_pong", lambda *_: False)
    difference = replay(recorded()).difference
    assert difference is not None
    assert difference.program.endswith("/magicsock")


@pytest.mark.parametrize(("kind", "drawn"), [(list, "bits"), (float, "a number from 0 to 1")])
def test_another_source_of_chance_is_found(kind: type, drawn: str) -> None:
    def draw_otherwise(entry: dict[str, Any]) -> bool:
        for place, draw in enumerate(entry.get("drawn", ())):
            if isinstance(draw, kind):
                entry["drawn"][place] = [7, "00"]  # never drawn are as few bits as these
                return True
        return False

    _, lines = changed(draw_otherwise)
    difference = replay(lines).difference
    assert difference is not None
    assert drawn in difference.repeated


def test_a_program_without_a_recipe_is_left_out() -> None:
    network = Network(rng=random.Random(1))
    timeline = Timeline(network)
    host = network.add_host("a", ip="198.51.100.1")
    host.run(lambda rng: StunServer(), udp=[UdpAddress("0.0.0.0", 3478)])
    network.run_for(1.0)
    result = replay(timeline.lines())
    assert result.difference is None
    assert result.inputs == {}


def test_a_machine_of_an_unknown_name_is_left_out_and_never_looked_for() -> None:
    def rename(entry: dict[str, Any]) -> bool:
        if entry["kind"] == "MachineMade" and entry["machine"] == "StunServer":
            entry["machine"] = "os.system"
            return True
        return False

    _, lines = changed(rename)
    result = replay(lines)
    assert result.difference is None
    assert set(result.inputs) == PROGRAMS - {"derp/stun"}
    assert result.unknown == {"derp/stun": "os.system"}


def test_a_program_that_is_started_again_is_made_again() -> None:
    network = Network(rng=random.Random(1))
    timeline = Timeline(network)
    secret = SecretKey.generate(random.Random(2))
    host = network.add_host("a", ip="198.51.100.1")
    host.run(
        Recipe(Magicsock, secret_key=secret, derp_map=DerpMap.from_urls([URL])),
        udp=[UdpAddress("0.0.0.0", 0)],
        begin=lambda machine, bound, now: machine.start(bound, now=now),
    )
    network.run_for(3.0)
    host.cut_power()
    network.run_for(1.0)
    host.boot()
    network.run_for(3.0)
    lines = list(timeline.lines())
    assert sum('"MachineMade"' in line for line in lines) == 2
    assert replay(lines).difference is None


def endpoint(network: Network, name: str, number: int) -> tuple[Program[EndpointMachine], Host]:
    host = network.add_host(name, ip=f"198.51.100.{number}", latency=0.01)
    program = host.run(
        Recipe(
            EndpointMachine,
            secret_key=SecretKey.generate(random.Random(name)),
            alpns=(ALPN,),
            derp_map=DerpMap.from_urls([URL]),
            unix_time=1_700_000_000.0,
        ),
        udp=[UdpAddress("0.0.0.0", 0)],
        begin=lambda machine, bound, now: machine.start(bound, now=now),
        name="endpoint",
    )
    return program, host


def test_a_whole_endpoint_is_repeated_below_quic() -> None:
    network = Network(rng=random.Random(1), start=500.0)
    network.set_name(URL.host, ["198.51.100.1"])
    timeline = Timeline(network)
    derp = network.add_host("derp", ip="198.51.100.1")
    secret = SecretKey.generate(random.Random("derp"))
    derp.run(Recipe(DerpServer, secret_key=secret), tcp_ports=[80])
    (alice, _), (bob, _) = endpoint(network, "alice", 2), endpoint(network, "bob", 3)
    network.run_until(
        lambda: all(node.machine.magicsock.home_derp for node in (alice, bob)), limit=10
    )
    addr = NodeAddr(bob.machine.node_id, derp_url=URL)
    number = alice.give(lambda machine, now: machine.connect(addr, alpn=ALPN, now=now))
    network.run_until(lambda: bool(alice.seen(ConnectionEstablished)), limit=10)

    def send(machine: EndpointMachine, now: float) -> None:
        stream = machine.open_stream(number, bidirectional=True)
        machine.send_stream(number, stream, bytes(20_000), end=True, now=now)

    alice.give(send)
    network.run_for(10.0)
    assert alice.machine.connection_info(number).path.kind == "direct"
    result = replay(timeline.lines())
    assert result.difference is None
    assert set(result.inputs) == {
        "derp/program",
        "alice/endpoint/magicsock",
        "bob/endpoint/magicsock",
    }
    assert result.outputs["bob/endpoint/magicsock"] > 20


class Peers:
    """Two path finders joined without a network, the first of which is written down."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        rng = random.Random(5)
        self.secrets = SecretKey.generate(rng), SecretKey.generate(rng)
        tape = NodeTape(self.secrets[0], self._write, now=1000.25)
        self.tape = tape
        self.finders = (
            tape.make(PathFinder, "paths", rng=rng, secret_key=self.secrets[0]),
            PathFinder(secret_key=self.secrets[1], rng=rng),
        )
        self.addrs = UdpAddress("192.0.2.1", 1), UdpAddress("192.0.2.2", 2)
        self.now = 1000.3
        for finder, addr in zip(self.finders, self.addrs, strict=True):
            finder.start(now=self.now)
            finder.set_reachability(
                ipv4_socket=True, ipv6_socket=False, ipv6_works=False, now=self.now
            )
            finder.set_own_addresses([addr], now=self.now)

    def _write(self, line: Json) -> None:
        self.lines.append(json.dumps(line))

    def meet(self) -> None:
        first, second = self.finders
        peer = self.secrets[1].public
        first.add_node_addr(peer, [self.addrs[1]], derp_url=URL, now=self.now)
        first.route(peer, now=self.now)
        self._drain_events()
        for _ in range(4):
            self.now += 0.1
            self._carry(first, second, 0)
            self._carry(second, first, 1)
        self.now = first.get_timer() or 0.0
        first.handle_timer(now=self.now)
        self._drain_events()
        self._carry(first, second, 0)
        self.tape.stop()

    def _drain_events(self) -> None:
        for finder in self.finders:
            while finder.next_event() is not None:
                pass

    def _carry(self, sender: PathFinder, receiver: PathFinder, number: int) -> None:
        for transmit in sender.datagrams_to_send():
            source: UdpAddress | DerpAddress = self.addrs[number]
            if isinstance(transmit.addr, DerpAddress):
                source = DerpAddress(URL, self.secrets[number].public)
            receiver.receive_datagrams(list(transmit.datagrams), source, now=self.now)
        self._drain_events()


def test_a_node_is_repeated_without_its_key() -> None:
    peers = Peers()
    peers.meet()
    result = replay(peers.lines)
    assert result.difference is None
    assert result.outputs[f"{peers.secrets[0].public.fmt_short()}/paths"] > 4
    text = "\n".join(peers.lines)
    assert peers.secrets[0].to_bytes().hex() not in text
    assert "PathChanged" in text
    assert "ping" in text


def test_an_answer_to_a_node_that_nobody_named_is_written_opened() -> None:
    peers = Peers()
    recorded_finder, stranger = peers.finders
    own = peers.secrets[0].public
    stranger.add_node_addr(own, [peers.addrs[0]], derp_url=None, now=peers.now)
    stranger.route(own, now=peers.now)
    peers._carry(stranger, recorded_finder, 1)
    peers._carry(recorded_finder, stranger, 0)
    peers.tape.stop()
    labels = [word for line in peers.lines for word in json.loads(line).get("labels", ())]
    assert [label.split()[0] for label in labels] == ["ping", "pong", "ping"]
    assert "sealed" not in "".join(peers.lines)
    assert replay(peers.lines).difference is None


def test_a_peer_that_is_talked_to_is_not_forgotten_for_strangers() -> None:
    peers = Peers()
    tape, peer = NodeTape(peers.secrets[0], lambda _: None, now=0.0), peers.secrets[1].public
    reader = tape._reader
    reader.note_peer(peer)
    datagram = DiscoReader([peers.secrets[0]]).seal(
        {
            "from": str(peers.secrets[0].public),
            "to": str(peer),
            "message": Ping(bytes(12), peers.secrets[0].public).encode().hex(),
            "nonce": bytes(24).hex(),
        }
    )
    strangers = [SecretKey.generate(random.Random(number)).public for number in range(8)]
    for stranger in strangers:
        reader.note_peer(stranger)
        assert "message" in cast("Json", tape._encode(datagram))
    assert next(reversed(reader._peers)) == peer


def test_what_nobody_can_open_counts_as_it_did() -> None:
    peers = Peers()
    finder = peers.finders[0]
    stranger = SecretKey.generate(random.Random(9)).public
    own = peers.secrets[0].public
    for sender in (stranger, own):
        junk = b"TS\xf0\x9f\x92\xac" + sender + bytes(60)
        finder.receive_datagrams([junk, junk[:20]], peers.addrs[1], now=peers.now)
    peers.meet()
    assert finder.stats.disco.bad_key == 1
    assert finder.stats.disco.from_self == 1
    assert replay(peers.lines).difference is None


def test_another_decision_is_found_without_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    peers = Peers()
    peers.meet()
    monkeypatch.setattr(NodeState, "take_pong", lambda *_: False)
    difference = replay(peers.lines).difference
    assert difference is not None
    assert difference.program.endswith("/paths")
    assert "drew" in difference.recorded  # a nonce for a pong, and now there is another ping


def test_a_refused_command_is_refused_again() -> None:
    peers = Peers()
    finder = peers.finders[0]
    with pytest.raises(LocalProtocolError):
        finder.complete_challenge(77, now=peers.now)
    peers.meet()
    assert any('"raised"' in line for line in peers.lines)
    assert replay(peers.lines).difference is None


HEAD = '{"format": "iroh-timeline/1", "lifelines": []}'
MADE = json.dumps(
    {"time": 0, "at": "a/b", "kind": "MachineMade", "machine": "StunServer", "config": {}}
)


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["nothing"],
        ["{}"],
        ["[]"],
        ['{"format": "another/1"}'],
        [HEAD, "{}"],
        [HEAD, '{"time": "x", "at": "a", "kind": "b"}'],
        [HEAD, '{"time": 0, "at": "a", "kind": "MachineMade"}'],
        [HEAD.replace("[]", "[[]]")],
        [HEAD, '{"time": 0, "at": "a", "kind": "b", "drawn": null}'],
        [HEAD, '{"time": NaN, "at": "a", "kind": "b"}'],
        [HEAD, MADE.replace("{}}", '{"size": 1}}')],
        [HEAD, MADE.replace("{}}", '{"x": {"$never": 1}}}')],
        [HEAD, MADE, '{"time": 0, "at": "a/b", "kind": "CommandGiven"}'],
        [HEAD, MADE, '{"time": 0, "at": "a/b", "kind": "CommandGiven", "command": "_answer"}'],
        [HEAD, MADE, '{"time": 0, "at": "a/b", "kind": "DatagramsReceived", "source": "x"}'],
        [HEAD, MADE, '{"time": 0, "at": "a/b", "kind": "TcpDataSent", "tcp_id": 0, "data": ""}'],
    ],
)
def test_what_is_no_time_line_is_refused(lines: list[str]) -> None:
    with pytest.raises(DecodeError):
        replay(lines)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


@cache
def of_one_node() -> tuple[str, ...]:
    peers = Peers()
    peers.meet()
    return tuple(peers.lines)


@given(st.data(), JSON)
def test_no_line_does_more_than_be_refused(data: st.DataObject, value: object) -> None:
    lines = list(of_one_node())
    place = data.draw(st.integers(0, len(lines) - 1))
    entry = json.loads(lines[place])
    entry[data.draw(st.sampled_from(sorted(entry)))] = value
    lines[place] = json.dumps(entry)
    for read in (replay, draw_sequence, lambda lines: merge([lines, of_one_node()])):
        with contextlib.suppress(DecodeError):
            read(lines)


def test_an_opened_datagram_needs_the_node_that_opened_it() -> None:
    datagram = json.dumps({"from": "00", "sealed": 3})
    line = (
        '{"time": 0, "at": "a/b", "kind": "DatagramsReceived", "source": "192.0.2.1:1",'
        f' "datagrams": [{datagram}]}}'
    )
    with pytest.raises(DecodeError):
        replay([HEAD, MADE, line])
