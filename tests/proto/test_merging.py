"""Time lines of real nodes put together, and what is drawn of them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import pytest

from iroh_proto.address import UdpAddress
from iroh_proto.box import BOX_OVERHEAD
from iroh_proto.disco.message import CallMeMaybe, Ping, Pong
from iroh_proto.errors import DecodeError
from iroh_proto.key import SecretKey
from iroh_proto.testing.merging import connected, merge
from iroh_proto.testing.sequence import draw_sequence
from iroh_proto.trace.disco import label_of
from iroh_proto.trace.lines import FORMAT
from iroh_proto.trace.values import Json

ALICE, BOB = (SecretKey(bytes([number]) * 32).public for number in (1, 2))
A, B = ALICE.fmt_short(), BOB.fmt_short()
ALICE_IP, BOB_IP = "203.0.113.1:1000", "203.0.113.2:2000"
VIA = {"$derp": ["http://derp.example/", str(BOB)]}

PING = Ping(bytes(12), ALICE).encode().hex()
PONG = Pong(bytes(12), UdpAddress.from_str(ALICE_IP)).encode().hex()
CALL = CallMeMaybe([UdpAddress.from_str(ALICE_IP)]).encode().hex()


def message(nonce: int, text: str, *, back: bool = False) -> Json:
    ends = (BOB, ALICE) if back else (ALICE, BOB)
    return {"from": str(ends[0]), "to": str(ends[1]), "message": text, "nonce": f"{nonce:048x}"}


def sent(time: float, at: str, to: object, what: Json) -> Json:
    kind = {"time": time, "at": f"{at}/paths", "kind": "DatagramsSent", "destination": to}
    return {**kind, "datagrams": [what], "labels": [label_of(what)]}


def received(time: float, at: str, source: object, what: Json) -> Json:
    kind = {"time": time, "at": f"{at}/paths", "kind": "DatagramsReceived", "source": source}
    return {**kind, "datagrams": [what], "labels": [label_of(what)]}


def timeline(name: str, entries: Sequence[Json]) -> list[str]:
    return [json.dumps(line) for line in ({"format": FORMAT, "lifelines": [name]}, *entries)]


OF_ALICE = timeline(
    A,
    [
        sent(1.0, A, VIA, message(1, CALL)),
        sent(2.0, A, BOB_IP, message(2, PING)),
        received(2.3, A, BOB_IP, message(3, PONG, back=True)),
        sent(3.0, A, BOB_IP, message(4, Ping(b"unanswered!!", ALICE).encode().hex())),
    ],
)
OF_BOB = timeline(
    B,
    [
        received(101.1, B, VIA, message(1, CALL)),
        received(102.1, B, ALICE_IP, message(2, PING)),
        sent(102.1, B, ALICE_IP, message(3, PONG, back=True)),
    ],
)


def above_legend(picture: str) -> str:
    return picture.partition('<g class="legend">')[0]


def legend_of(picture: str) -> str:
    return picture.partition('<g class="legend">')[2]


def test_clocks_are_set_by_the_fastest_messages() -> None:
    head, *entries = [json.loads(line) for line in merge([OF_ALICE, OF_BOB])]
    assert head["lifelines"] == [A, B]
    # There the fastest took 0.1 s and 100 s of clock, back 0.2 s less 100 s: half the difference.
    times = {(line["at"], line["kind"]): line["time"] for line in entries}
    assert times[f"{B}/paths", "DatagramsSent"] == pytest.approx(2.15)
    assert [line["time"] for line in entries] == sorted(line["time"] for line in entries)


def test_one_way_is_enough_and_none_keeps_the_time() -> None:
    one_way = timeline(B, [received(101.1, B, VIA, message(1, CALL))])
    assert json.loads(merge([OF_ALICE, one_way])[2])["time"] == pytest.approx(1.0)
    back = timeline(B, [sent(102.1, B, ALICE_IP, message(3, PONG, back=True))])
    times = [json.loads(line)["time"] for line in merge([OF_ALICE, back])[1:]]
    assert times == pytest.approx([1.0, 2.0, 2.3, 2.3, 3.0])
    strange = timeline(B, [received(7.0, B, VIA, message(9, CALL))])
    assert json.loads(merge([OF_ALICE, strange])[-1])["time"] == 7.0


def test_messages_connect_time_lines() -> None:
    strange = timeline("c", [received(7.0, "c", VIA, message(9, CALL))])
    other = timeline("d", [sent(7.0, "d", VIA, message(9, CALL))])
    assert connected([OF_ALICE]) == [[0]]
    assert connected([OF_ALICE, OF_BOB]) == [[0, 1]]
    assert connected([OF_ALICE, strange, OF_BOB]) == [[0, 2], [1]]
    assert connected([OF_ALICE, strange, OF_BOB, other]) == [[0, 2], [1, 3]]
    both = merge([strange, OF_BOB])
    assert connected([OF_ALICE, other, both]) == [[0, 1, 2]]


def test_a_recording_is_not_put_together_with_itself() -> None:
    for again in (OF_ALICE, OF_ALICE[:2], OF_ALICE[:1]):
        with pytest.raises(DecodeError, match="time lines 1 and 3 are the same recording"):
            merge([OF_ALICE, OF_BOB, again])
    later = timeline(A, [sent(9.0, A, BOB_IP, message(9, PING))])
    assert len(merge([OF_ALICE, OF_BOB, later])) == len(OF_ALICE) + len(OF_BOB)


def test_a_simulated_network_is_put_together_with_nothing() -> None:
    packet = {"time": 1.0, "at": "first", "kind": "DatagramsSent", "packet": 1}
    simulated = timeline("first", [packet])
    assert len(merge([simulated])) == 2
    for place, timelines in ((1, [simulated, OF_BOB]), (2, [OF_BOB, simulated])):
        with pytest.raises(DecodeError, match=f"time line {place} is of a simulated network"):
            merge(timelines)


def test_what_nobody_opened_sets_no_clock() -> None:
    sealed = {"time": 0.5, "at": f"{A}/paths", "kind": "DatagramsSent", "destination": BOB_IP}
    ours = [*OF_ALICE, json.dumps({**sealed, "datagrams": ["00ff"], "labels": ["disco"]})]
    theirs = [*OF_BOB, json.dumps({**sealed, "at": f"{B}/paths", "datagrams": ["00ff"]})]
    times = [json.loads(line)["time"] for line in merge([ours, theirs])[1:]]
    usual = [json.loads(line)["time"] for line in merge([OF_ALICE, OF_BOB])[1:]]
    assert len(times) == len(usual) + 2
    assert set(usual) < set(times)


def test_what_an_endpoint_and_its_magicsock_say_alike_is_said_once() -> None:
    way = {"kind": "direct", "addr": BOB_IP, "latency": 0.1}
    path = {"time": 1.0, "kind": "PathChanged", "node_id": str(BOB), "path": way}
    lines = timeline(A, [{**path, "at": f"{A}/endpoint"}, {**path, "at": f"{A}/endpoint"}])
    assert draw_sequence(lines).count(f">direct {BOB_IP}<") == 1
    later = timeline(A, [{**path, "at": f"{A}/endpoint", "time": time} for time in (1.0, 2.0)])
    assert draw_sequence(later).count(f">direct {BOB_IP}<") == 2


UNPROVEN: Json = {
    "kind": "PathChanged",
    "node_id": str(BOB),
    "path": {"kind": "direct", "addr": BOB_IP, "latency": None},
}
PONG_RECEIVED: Json = {"kind": "PongReceived", "node_id": str(BOB), "addr": BOB_IP}
CHALLENGE: Json = {
    "kind": "ChallengeRequested",
    "request_id": 7,
    "node_id": str(BOB),
    "addr": BOB_IP,
}
ANSWERED: Json = {"kind": "CommandGiven", "command": "complete_challenge", "args": [7]}


def boxes_drawn(*events: Json) -> list[str]:
    """Return what boxes say of events at 1.0 s, 1.1 s and so on, or when they say."""
    lines = [
        {"time": 1.0 + count / 10, "at": f"{A}/paths", **event}
        for count, event in enumerate(events)
    ]
    return re.findall(r">((?:direct|tries) [^<]*)<", draw_sequence(timeline(A, lines)))


def test_a_path_is_tried_until_an_answer_proves_it() -> None:
    assert boxes_drawn(UNPROVEN) == [f"tries {BOB_IP}"]
    proven = [f"tries {BOB_IP}", f"direct {BOB_IP}"]
    assert boxes_drawn(UNPROVEN, PONG_RECEIVED, PONG_RECEIVED) == proven
    assert boxes_drawn(UNPROVEN, CHALLENGE, ANSWERED, ANSWERED) == proven


@pytest.mark.parametrize(
    "event",
    [
        {**PONG_RECEIVED, "addr": ALICE_IP},
        {**PONG_RECEIVED, "node_id": str(ALICE)},
        {**PONG_RECEIVED, "at": f"{B}/paths"},
        ANSWERED,
        {**ANSWERED, "args": []},
    ],
)
def test_what_answers_from_elsewhere_proves_nothing(event: Json) -> None:
    lines = timeline(A, [{"time": 1.0, "at": f"{A}/paths", **UNPROVEN}])
    lines += timeline(B, [{"time": 1.1, "at": f"{A}/paths", **event}])[1:]
    head = json.dumps({"format": FORMAT, "lifelines": [A, B]})
    assert ">direct" not in draw_sequence([head, *lines[1:]])


def test_a_challenge_answered_too_late_proves_nothing() -> None:
    late = {**ANSWERED, "time": 7.0}
    assert boxes_drawn(UNPROVEN, CHALLENGE, late) == [f"tries {BOB_IP}"]


def test_what_was_proven_after_the_first_change_is_in_the_picture() -> None:
    late = {**PONG_RECEIVED, "time": 2.5}
    assert boxes_drawn(UNPROVEN, late) == [f"tries {BOB_IP}", f"direct {BOB_IP}"]


def test_what_is_said_again_after_its_proof_is_not_tried_again() -> None:
    again = {**UNPROVEN, "time": 1.0, "at": f"{A}/endpoint"}
    events = (UNPROVEN, {**PONG_RECEIVED, "time": 1.0}, again, PONG_RECEIVED)
    assert boxes_drawn(*events) == [f"tries {BOB_IP}", f"direct {BOB_IP}"]


def test_a_message_that_is_none_is_drawn_as_what_its_label_says() -> None:
    lines = timeline(A, [sent(1.0, A, BOB_IP, message(1, PING))])
    head, entry = (json.loads(line) for line in lines)
    entry["datagrams"][0]["message"] = "07"
    picture = draw_sequence([json.dumps(head), json.dumps(entry)])
    assert "ping 0000" in picture
    assert "no answer" not in picture  # there is no telling which answer would be its own


def test_one_end_alone_shows_what_is_known_of_the_other() -> None:
    picture = above_legend(draw_sequence(OF_ALICE, end=10.0))
    assert f">{A}<" in picture
    assert f">{B}<" in picture
    assert "call me maybe (1 addresses) by DERP<" in picture
    assert f"ping 0000 → {BOB_IP}<" in picture
    assert f"ping 756e → {BOB_IP}: no answer<" in picture
    assert "from " not in picture  # the pong came from where its ping went
    # The call and the unanswered ping may have got lost: their arrows are dotted.
    assert picture.count('stroke-dasharray="1 3"') == 2


def sealed_of(text: str) -> Json:
    return {"from": str(BOB), "sealed": len(text) // 2 + BOX_OVERHEAD}


BOB_PING = Ping(b"of bob himse", BOB).encode().hex()
ANSWERED_BY_ALICE = timeline(
    A,
    [
        sent(2.0, A, BOB_IP, message(2, PING)),
        received(2.2, A, BOB_IP, message(3, PONG, back=True)),
        received(2.3, A, BOB_IP, message(4, BOB_PING, back=True)),
    ],
)
SEALED_BY_BOB = timeline(
    B,
    [
        received(102.1, B, ALICE_IP, message(2, PING)),
        sent(102.1, B, ALICE_IP, sealed_of(PONG)),
        sent(102.1, B, ALICE_IP, sealed_of(BOB_PING)),
    ],
)


def lifelines_of(picture: str) -> list[str]:
    return re.findall(r'font-weight="600"[^>]*>([0-9a-z]+)<', picture)


def test_what_the_sender_could_not_open_is_one_arrow_with_the_words_of_the_receiver() -> None:
    picture = above_legend(draw_sequence(merge([ANSWERED_BY_ALICE, SEALED_BY_BOB]), end=10.0))
    assert lifelines_of(picture) == [A, B]
    assert picture.count("<polygon") == 3
    for words in ("ping 0000", "pong 0000", "ping 6f66"):
        assert picture.count(f">{words}") == 1
    assert "sealed" not in picture


def test_what_is_sealed_goes_to_the_node_that_was_heard_from_there() -> None:
    picture = above_legend(draw_sequence(SEALED_BY_BOB, end=200.0))
    assert lifelines_of(picture) == [B, A]
    assert picture.count(f">sealed disco → {ALICE_IP}<") == 2
    unheard = timeline(B, [sent(102.1, B, ALICE_IP, sealed_of(PONG))])
    picture = above_legend(draw_sequence(unheard))
    assert lifelines_of(picture) == [B]
    assert f">sealed disco → {ALICE_IP}<" in picture


def test_an_answer_after_the_window_counts_as_well() -> None:
    assert "no answer" not in draw_sequence(OF_ALICE, begin=0.0, end=2.1)


def test_both_ends_show_what_arrived_and_what_did_not() -> None:
    picture = above_legend(draw_sequence(merge([OF_ALICE, OF_BOB]), end=10.0))
    assert picture.count("did not arrive") == 1
    assert "no answer" not in picture
    assert f">from {ALICE_IP}<" in picture
    assert 'stroke-dasharray="1 3"' not in picture


def test_an_address_that_a_ping_and_its_pong_share_stands_there_once() -> None:
    picture = above_legend(draw_sequence(merge([OF_ALICE, OF_BOB]), end=2.9))
    assert picture.count(BOB_IP) == 1
    assert picture.count(ALICE_IP) == 1
    assert ">pong 0000<" in picture


def test_an_answer_from_elsewhere_says_from_where() -> None:
    elsewhere = "203.0.113.9:9"
    lines = timeline(
        A,
        [
            sent(2.0, A, BOB_IP, message(2, PING)),
            received(2.3, A, elsewhere, message(3, PONG, back=True)),
        ],
    )
    assert f">from {elsewhere}<" in draw_sequence(lines, end=10.0)


def test_the_legend_explains_what_is_in_the_picture_and_nothing_else() -> None:
    legend = legend_of(draw_sequence(merge([OF_ALICE, OF_BOB]), end=10.0))
    for meaning in ("by UDP", "DERP server", "answer to a ping", "did not arrive", "came from"):
        assert meaning in legend
    for absent in (">direct<", ">tries<", "nothing tells whether", "that a NAT"):
        assert absent not in legend
    way = {"kind": "mixed", "addr": BOB_IP, "latency": None}
    lines = timeline(A, [{"time": 1.0, "at": A, "kind": "PathChanged", "path": way}])
    assert ">mixed<" in legend_of(draw_sequence(lines))


def test_no_text_lies_under_an_arrow_or_on_the_line_of_its_own() -> None:
    picture = above_legend(draw_sequence(merge([OF_ALICE, OF_BOB]), end=10.0))
    assert picture.rindex("<polygon") < picture.index(">ping 0000")
    ping = re.search(r'y="([0-9.]+)"[^>]*>ping 0000', picture)
    origin = re.search(r'y="([0-9.]+)"[^>]*>from ', picture)
    ways = re.findall(r'y1="([0-9.]+)" x2="[0-9.]+" y2="([0-9.]+)" stroke="#1c2330"', picture)
    assert ping is not None
    assert origin is not None
    assert float(ping[1]) < float(ways[0][0])
    assert float(origin[1]) > float(ways[0][1]) + 8


def test_notes_tell_what_befell_connections() -> None:
    notes: list[Json] = [
        {"kind": "DerpServerUnreachable", "error": "connection refused"},
        {"kind": "DerpServerLost", "error": None},
        {"kind": "ConnectionEstablished", "connection": 0},
        {"kind": "ConnectionClosed", "connection": 0, "reason": {"kind": "idle"}},
    ]
    lines = timeline(A, [{"time": 1.0, "at": f"{A}/endpoint", **note} for note in notes])
    picture = draw_sequence([*lines, lines[-1]])
    assert picture.count(">closed (idle)<") == 1
    for text in ("no DERP server: connection refused", "connected", "closed (idle)"):
        assert f">{text}<" in picture


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        ["x"],
        ["{}"],
        ['{"format": "other", "lifelines": []}'],
        [json.dumps({"format": FORMAT, "lifelines": [[]]})],
    ],
)
def test_what_is_no_time_line_is_refused(wrong: list[str]) -> None:
    with pytest.raises(DecodeError):
        merge([OF_ALICE, wrong])
