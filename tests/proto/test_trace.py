"""What is written of a machine: values, draws, opened messages, lines."""

from __future__ import annotations

import copy
import json
import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iroh_proto.address import DerpAddress, DerpUrl, NodeAddr, UdpAddress
from iroh_proto.derp.map import DerpMap, DerpNode
from iroh_proto.derp.pool_events import HomeDerpChanged
from iroh_proto.disco.message import DISCO_MAGIC, CallMeMaybe, Ping, Pong
from iroh_proto.errors import DecodeError, LocalProtocolError
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.magicsock import Magicsock
from iroh_proto.paths.own_address_events import AddressServer
from iroh_proto.stun.message import encode_binding_request, encode_binding_response
from iroh_proto.stun.probe import StunProbe
from iroh_proto.stun.server import StunServer
from iroh_proto.testing.strategies import node_ids, udp_addresses
from iroh_proto.trace.disco import BOXES_LIMIT, DiscoReader, label_of
from iroh_proto.trace.lines import (
    FORMAT,
    LineWriter,
    check_lifelines,
    in_words,
    read_lines,
    split_cut_line,
)
from iroh_proto.trace.node_tape import NodeTape
from iroh_proto.trace.tape import Recipe, RecordedRandom, Tape
from iroh_proto.trace.values import (
    QUOTE_LIMIT,
    Json,
    decode_value,
    encode_value,
    fields_of,
    quoted,
)

URL = DerpUrl.from_str("https://derp.example/")
SERVER = UdpAddress("192.0.2.9", 3478)

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
LEAVES = (
    SCALARS
    | st.binary()
    | udp_addresses()
    | node_ids()
    | st.builds(DerpAddress, st.just(URL), node_ids())
    | st.builds(
        NodeAddr,
        node_ids(),
        derp_url=st.sampled_from([None, URL]),
        direct_addresses=st.lists(udp_addresses(), max_size=3),
    )
)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6)


@given(VALUES)
def test_a_value_is_read_back_from_its_json(value: object) -> None:
    back = decode_value(json.loads(json.dumps(encode_value(value))))
    assert back == value
    assert type(back) is type(value)


def test_a_map_and_a_key_are_read_back() -> None:
    derp_map = DerpMap([DerpNode(URL, stun_port=None), DerpNode("http://x/", 1, "v3")])
    secret, server = SecretKey(bytes(range(32))), AddressServer(host="x", stun_port=1)
    assert decode_value(json.loads(json.dumps(encode_value(derp_map)))) == derp_map
    assert decode_value(encode_value(secret)) == secret
    assert decode_value(encode_value(server)) == server


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"$udp": "x"},
        {"$udp": "1.2.3.4:5", "more": 1},
        {"$unknown": "Lock"},
        {"$bytes": 7},
    ],
)
def test_what_is_no_value_is_refused(value: object) -> None:
    with pytest.raises(DecodeError):
        decode_value(value)


def test_of_an_unknown_value_only_the_class_is_written() -> None:
    assert encode_value([object()]) == [{"$unknown": "object"}]


def test_a_recorded_source_of_chance_gives_and_notes_what_its_source_gives() -> None:
    def draw(rng: random.Random) -> list[object]:
        draws = [rng.randbytes(12), rng.uniform(1, 2), rng.choice("abc"), rng.random()]
        return [*draws, rng.randrange(7), rng.sample(range(9), 3)]

    drawn: list[object] = []
    given = draw(RecordedRandom(random.Random(3), drawn))
    assert given == draw(random.Random(3))
    number = int.from_bytes(random.Random(3).randbytes(12), "little")
    assert drawn[0] == [96, f"{number:x}"]
    assert isinstance(drawn[1], float)


def make_probe(lines: LineWriter, *, epoch: float = 0.0) -> StunProbe:
    return Tape.make(Recipe(StunProbe), random.Random(1), lines, "a/probe", epoch=epoch)


def test_a_tape_does_what_its_machine_does_and_writes_it() -> None:
    written: list[Json] = []
    lines = LineWriter(written.append)
    probe, plain = make_probe(lines, epoch=100.0), StunProbe(rng=random.Random(1))
    for machine in (probe, plain):
        assert machine.start(SERVER, now=100.5) == 0
        assert machine.get_timer() is not None
    assert probe.datagrams_to_send() == plain.datagrams_to_send()
    deadline = probe.get_timer()
    assert deadline is not None
    assert deadline == plain.get_timer()
    for machine in (probe, plain):
        machine.handle_timer(now=deadline - 0.01)
        machine.handle_timer(now=deadline)
    assert probe.datagrams_to_send() == plain.datagrams_to_send() != []
    lines.finish()
    kinds = [line["kind"] for line in written]
    assert kinds == [
        "MachineMade", "CommandGiven", "DatagramsSent", "TimerHandled", "DatagramsSent",
    ]  # fmt: skip
    made, started, sent, timer, _ = written
    assert made["machine"] == "StunProbe"
    assert started == {
        "time": 0.5,
        "at": "a/probe",
        "kind": "CommandGiven",
        "command": "start",
        "args": [{"$udp": str(SERVER)}],
        "result": 0,
        "drawn": started["drawn"],
    }
    assert sent["destination"] == str(SERVER)
    assert timer["deadline"] == timer["time"] == deadline - 100.0


def test_what_its_machine_does_not_have_a_tape_does_not_have_either() -> None:
    written: list[Json] = []
    probe = make_probe(LineWriter(written.append))
    for thing in (probe, copy.copy(probe)):
        assert thing.get_timer() is None
        with pytest.raises(AttributeError, match="'StunProbe' object has no attribute 'stop'"):
            thing.stop()  # type: ignore[attr-defined]


def test_what_a_machine_refuses_is_written_and_raised() -> None:
    written: list[Json] = []
    lines = LineWriter(written.append)
    sock = Tape.make(
        Recipe(Magicsock, secret_key=SecretKey(bytes(32)), derp_map=DerpMap()),
        random.Random(1),
        lines,
        "a/magicsock",
        conceal=True,
    )
    with pytest.raises(LocalProtocolError, match="1 to 16 sockets") as caught:
        sock.start([], now=0.0)
    lines.finish()
    assert written[-1]["raised"] == str(caught.value)
    config = written[0]["config"]
    assert isinstance(config, dict)
    assert config["secret_key"] == {"$secret_of": str(SecretKey(bytes(32)).public)}


def test_draws_without_a_line_of_their_own_get_one() -> None:
    written: list[Json] = []
    lines = LineWriter(written.append)
    lines.add(1.0, "a", "X", {})
    lines.note_drawn(1.0, "a", [0.5])
    lines.note_drawn(1.0, "a", [0.25])
    lines.note_drawn(1.0, "b", [0.75])
    lines.stop()
    lines.add(2.0, "a", "Y", {})
    lines.finish()
    assert written == [
        {"time": 1.0, "at": "a", "kind": "X", "drawn": [0.5, 0.25]},
        {"time": 1.0, "at": "b", "kind": "LotsDrawn", "drawn": [0.75]},
    ]


SECRETS = [SecretKey.generate(random.Random(number)) for number in range(3)]


def opened(sender: SecretKey, receiver: SecretKey) -> Json:
    return {
        "from": str(sender.public),
        "to": str(receiver.public),
        "message": Ping(bytes(12), sender.public).encode().hex(),
        "nonce": bytes(range(24)).hex(),
    }


@pytest.mark.parametrize(("sender", "receiver"), [(0, 1), (1, 0)])
def test_a_message_is_sealed_and_opened_with_the_key_of_either_end(
    sender: int, receiver: int
) -> None:
    message = opened(SECRETS[sender], SECRETS[receiver])
    datagrams = set()
    for secret in SECRETS[:2]:
        reader = DiscoReader([secret])
        reader.note_peer(SECRETS[1].public)
        reader.note_peer(SECRETS[0].public)
        datagram = reader.seal(message)
        assert reader.open(datagram) == message
        assert reader.label(datagram) == "ping 0000"
        datagrams.add(datagram)
    assert len(datagrams) == 1
    sealed = DiscoReader([SECRETS[2]]).open(datagrams.pop())
    assert sealed == {"from": str(SECRETS[sender].public), "sealed": 46 + 40}
    assert DiscoReader([SECRETS[2]]).open(DiscoReader().seal(sealed)) == sealed


def test_a_message_of_an_unknown_kind_has_a_label() -> None:
    assert label_of({"message": "09"}) == "unknown disco"
    assert label_of({"sealed": 3}) == "sealed disco"


@pytest.mark.parametrize(
    "wrong", [{}, {"from": "x"}, {"from": str(SECRETS[0].public)}, opened(SECRETS[0], SECRETS[1])]
)
def test_what_cannot_be_sealed_is_refused(wrong: Json) -> None:
    with pytest.raises(DecodeError):
        DiscoReader([SECRETS[2]]).seal(wrong)


def test_a_reader_forgets_the_peers_of_long_ago() -> None:
    reader = DiscoReader([SECRETS[0]])
    reader.note_peer(SECRETS[1].public)
    datagram = reader.seal(opened(SECRETS[0], SECRETS[1]))
    others = [SecretKey.generate(random.Random(10 + n)).public for n in range(BOXES_LIMIT)]
    for node_id in others:
        reader.note_peer(node_id)
    found = reader.open(datagram)
    assert found is not None
    assert "sealed" in found


def sealed(message: bytes) -> bytes:
    return DiscoReader([SECRETS[0]]).seal(
        {**opened(SECRETS[0], SECRETS[1]), "message": message.hex()}
    )


@pytest.mark.parametrize(
    ("datagram", "label"),
    [
        (sealed(Pong(b"\x12\x34" + bytes(10), SERVER).encode()), f"pong 1234, saw {SERVER}"),
        (sealed(CallMeMaybe((SERVER, SERVER)).encode()), "call me maybe (2 addresses)"),
        (DISCO_MAGIC + bytes(3), "broken disco"),
        (encode_binding_request(bytes(12)), "STUN request"),
        (encode_binding_response(bytes(12), SERVER), f"STUN: you are {SERVER}"),
        (b"\x00\x01\x00\x04\x21\x12\xa4\x42" + bytes(12), "broken STUN"),
        (b"\x40quic", "payload of 5 bytes"),
    ],
)
def test_datagrams_have_labels(datagram: bytes, label: str) -> None:
    reader = DiscoReader([SECRETS[0]])
    reader.note_peer(SECRETS[1].public)
    assert reader.label(datagram) == label


def test_disco_datagrams_are_found_in_the_bytes_of_a_derp_connection() -> None:
    first = DiscoReader([SECRETS[0]]).seal(opened(SECRETS[0], SECRETS[1]))
    reader = DiscoReader([SECRETS[1]])
    piece = b"frame" + b"".join(len(data).to_bytes(2, "little") + data for data in [first] * 2)
    found = {"key": bytes(range(8)).hex(), "label": "ping 0000"}
    assert reader.carried(piece) == [found, found]
    assert reader.carried(b"frame") == []


def test_what_comes_from_nobody_s_key_stays_sealed() -> None:
    # A point of small order: no secret can be shared with it, and it is tried but once.
    nobody = NodeId(b"\x01" + bytes(31))
    reader = DiscoReader([SECRETS[0]])
    for size in (40, 50):
        assert reader.open(DISCO_MAGIC + nobody + bytes(size)) == {
            "from": str(nobody),
            "sealed": size,
        }


def test_a_reader_keeps_so_many_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iroh_proto.trace.disco.BOXES_LIMIT", 1)
    reader = DiscoReader([SECRETS[2]])
    for sender in (SECRETS[0], SECRETS[1], SECRETS[0]):
        message = opened(sender, SECRETS[2])
        assert reader.open(DiscoReader([sender]).seal(message)) == message


def test_a_sealed_datagram_is_not_longer_than_udp_permits() -> None:
    with pytest.raises(DecodeError, match="no datagram holds 65536 bytes"):
        DiscoReader().seal({"from": str(SECRETS[0].public), "sealed": 65_536})


def test_lists_that_are_nested_too_deeply_are_refused() -> None:
    nested: list[object] = []
    for _ in range(sys.getrecursionlimit()):
        nested = [nested]
    with pytest.raises(DecodeError, match="too deeply"):
        decode_value(nested)


HEAD = json.dumps({"format": FORMAT, "lifelines": ["a"]})
ENTRY: Json = {"time": 0.0, "at": "a", "kind": "X"}


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([], "the file is empty"),
        (["", " \n"], "the file is empty"),
        (["x"], "no time line: line 1 is not JSON"),
        (["\n", "[]"], "no time line: line 2 is no JSON object"),
        (["[" * 100_000], "no time line: line 1 is nested too deeply"),
        (["{}"], 'no time line: line 1 has no "format"'),
        (['{"format": "x/1", "lifelines": []}'], f'line 1 has the format "x/1", not {FORMAT}'),
        ([f'{{"format": "{FORMAT}"}}'], 'no time line: line 1 has no "lifelines"'),
        ([HEAD.replace('["a"]', '"a"')], "no time line: line 1: lifelines are a list of names"),
        ([HEAD[:9]], "no time line: line 1 is cut short"),
        ([HEAD, json.dumps(ENTRY), '{"time": 1.'], "line 3 is cut short"),
        ([HEAD, '{"time": 1.', json.dumps(ENTRY)], "line 2 is not JSON"),
        ([HEAD, "7"], "line 2 is no JSON object"),
        ([HEAD, "{}"], 'line 2 has no "time"'),
        ([HEAD, '{"time": 0}'], 'line 2 has no "at"'),
        ([HEAD, '{"time": 0, "at": "a"}'], 'line 2 has no "kind"'),
    ],
)
def test_what_is_wrong_with_a_line_is_said_of_that_line(lines: list[str], complaint: str) -> None:
    with pytest.raises(DecodeError) as caught:
        read_lines(lines)
    assert str(caught.value).endswith(complaint)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"at": 1}, 'line 2: "at" is no text'),
        ({"kind": None}, 'line 2: "kind" is no text'),
        ({"time": "1"}, "line 2: its time is no number of seconds"),
        ({"time": 10**400}, "line 2: its time is no number of seconds"),
        ({"time": float("nan")}, "line 2: its time is no number of seconds"),
        ({"packet": [1]}, 'line 2: "packet" is no number'),
        ({"carried": {}}, 'line 2: "carried" are objects with key and label'),
        ({"carried": [{"key": "00"}]}, 'line 2: "carried" are objects with key and label'),
    ],
)
def test_a_line_has_a_time_a_place_and_a_kind(wrong: Json, complaint: str) -> None:
    with pytest.raises(DecodeError) as caught:
        read_lines([HEAD, json.dumps({**ENTRY, **wrong})])
    assert str(caught.value) == complaint


def test_what_is_on_no_lifeline_is_said_of_its_line() -> None:
    lines = [HEAD, json.dumps({**ENTRY, "at": "a/x"}), json.dumps({**ENTRY, "at": "b/x"})]
    with pytest.raises(DecodeError, match='line 3: there is no lifeline "b"'):
        check_lifelines(*read_lines(lines))
    check_lifelines(*read_lines(lines[:2]))


def test_a_last_line_that_is_cut_short_is_told_from_a_wrong_one() -> None:
    whole = [f"{HEAD}\n", f"{json.dumps(ENTRY)}\n"]
    assert split_cut_line(whole) == (whole, None)
    assert split_cut_line([*whole, '{"time"']) == (whole, 3)
    assert split_cut_line([*whole, '{"time"\n']) == ([*whole, '{"time"\n'], None)
    assert split_cut_line([*whole, json.dumps(ENTRY)]) == ([*whole, json.dumps(ENTRY)], None)
    assert split_cut_line([HEAD[:5]]) == ([HEAD[:5]], None)
    assert split_cut_line([]) == ([], None)


def test_values_in_messages_are_short() -> None:
    assert quoted({"a": 1}) == '{"a": 1}'
    assert len(quoted("x" * 1000)) == QUOTE_LIMIT + 1
    assert quoted(b"\0") == json.dumps(str(b"\0"))
    circle: list[object] = []
    circle.append(circle)
    assert quoted(circle) == "what is nested too deeply"


def test_errors_are_told_in_words() -> None:
    assert in_words(DecodeError("no address")) == "no address"
    assert in_words(KeyError("command")) == 'something in it has no "command"'
    assert in_words(KeyError(7)) == in_words(TypeError("f() missing")) == "it says what cannot be"


def test_an_event_without_fields_is_written_as_it_shows_itself() -> None:
    assert fields_of(SERVER.port) == {"value": "3478"}


def test_what_the_endpoint_tells_stands_beside_its_machines() -> None:
    written: list[Json] = []
    tape = NodeTape(SECRETS[0], written.append, now=1000.25)
    tape.note(HomeDerpChanged(url=URL))
    tape.stop()
    name = SECRETS[0].public.fmt_short()
    assert written[1:] == [
        {"time": 0.0, "at": f"{name}/endpoint", "kind": "HomeDerpChanged", "url": str(URL)}
    ]


def test_a_machine_that_draws_no_lots_is_made_without_chance() -> None:
    written: list[Json] = []
    lines = LineWriter(written.append)
    server = Tape.make(Recipe(StunServer), random.Random(1), lines, "a/stun")
    server.receive_datagrams([encode_binding_request(bytes(12))], SERVER, now=1.0)
    lines.finish()
    assert [line["kind"] for line in written] == ["MachineMade", "DatagramsReceived"]
