"""Time lines of simulated networks, and the pictures drawn of them."""

from __future__ import annotations

import json
import random
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from functools import cache

import pytest

from iroh_proto.errors import DecodeError, LocalProtocolError
from iroh_proto.key import SecretKey
from iroh_proto.stun.message import encode_binding_request
from iroh_proto.testing.nat import ADDRESS_RESTRICTED, PORT_RESTRICTED, SYMMETRIC, NatKind
from iroh_proto.testing.nat_matrix import NatPair
from iroh_proto.testing.network import Network
from iroh_proto.testing.scene import read_scene
from iroh_proto.testing.sequence import draw_sequence
from iroh_proto.testing.timeline import Timeline, lifelines
from iroh_proto.trace.disco import DiscoReader


@cache
def recorded(left: NatKind, right: NatKind, *, is_opened: bool = True) -> tuple[str, ...]:
    pair = NatPair(left, right, seed=1, recorded=is_opened)
    timeline = pair.timeline or Timeline(pair.network)
    pair.run()
    return tuple(timeline.lines())


def entries_of(lines: Sequence[str], kind: str) -> list[dict[str, object]]:
    return [entry for entry in map(json.loads, lines[1:]) if entry["kind"] == kind]


def texts_of(picture: str) -> list[str]:
    """Return the texts above the legend."""
    root = ElementTree.fromstring(picture)
    legend = root.find("{*}g[@class='legend']")
    assert legend is not None
    root.remove(legend)
    return [element.text or "" for element in root.iter()]


def test_a_time_line_has_inputs_outputs_timers_and_events_of_every_place_in_order() -> None:
    lines = recorded(PORT_RESTRICTED, PORT_RESTRICTED)
    entries = [json.loads(line) for line in lines[1:]]
    assert [entry["time"] for entry in entries] == sorted(entry["time"] for entry in entries)
    assert {entry["at"] for entry in entries} == {
        "first/magicsock",
        "second/magicsock",
        "first nat",
        "second nat",
        "derp/derp",
        "derp/stun",
    }
    kinds = {entry["kind"] for entry in entries}
    assert kinds >= {"DatagramsSent", "DatagramsReceived", "PacketTranslated", "PacketFiltered"}
    assert kinds >= {"TcpDataSent", "TcpDataReceived", "TimerHandled", "PathChanged"}


def test_a_packet_keeps_its_number_and_bytes_on_its_way() -> None:
    lines = recorded(PORT_RESTRICTED, PORT_RESTRICTED)
    sent = {entry["packet"]: entry for entry in entries_of(lines, "DatagramsSent")}
    received = entries_of(lines, "DatagramsReceived")
    assert len(sent) == len(entries_of(lines, "DatagramsSent"))
    assert received
    for entry in received:
        assert entry["datagrams"] == sent[entry["packet"]]["datagrams"]
    translated = entries_of(lines, "PacketTranslated")
    assert {entry["packet"] for entry in translated} <= set(sent)


def test_labels_say_what_datagrams_are_if_the_keys_are_known() -> None:
    def labels(*, is_opened: bool) -> set[str]:
        lines = recorded(PORT_RESTRICTED, PORT_RESTRICTED, is_opened=is_opened)
        sent = entries_of(lines, "DatagramsSent")
        return {str(label).split()[0] for entry in sent for label in list(entry["labels"])}  # type: ignore[call-overload]

    assert labels(is_opened=True) == {"ping", "pong", "STUN", "STUN:", "payload"}
    assert labels(is_opened=False) == {"sealed", "STUN", "STUN:", "payload"}


def test_what_a_derp_server_carries_has_one_key_from_end_to_end() -> None:
    lines = recorded(PORT_RESTRICTED, PORT_RESTRICTED)
    places: dict[str, list[str]] = {}
    for entry in map(json.loads, lines[1:]):
        for item in entry.get("carried", ()):
            if item["label"].startswith("call me maybe"):
                places.setdefault(item["key"], []).append(entry["at"])
    ways = set(map(tuple, places.values()))
    there = ("first/magicsock", "derp/derp", "derp/derp", "second/magicsock")
    assert ways == {there, there[::-1]}


def test_a_time_line_repeats_and_recording_changes_nothing() -> None:
    pair = NatPair(PORT_RESTRICTED, SYMMETRIC, seed=1)
    pair.run()
    silent = pair.network.stats
    pair = NatPair(PORT_RESTRICTED, SYMMETRIC, seed=1, recorded=True)
    pair.run()
    assert pair.network.stats == silent
    assert pair.timeline is not None
    assert tuple(pair.timeline.lines()) == recorded(PORT_RESTRICTED, SYMMETRIC)


def test_a_stopped_time_line_records_no_more() -> None:
    pair = NatPair(PORT_RESTRICTED, SYMMETRIC, seed=1, recorded=True)
    assert pair.timeline is not None
    before = list(pair.timeline.lines())
    pair.timeline.stop()
    pair.run()
    assert list(pair.timeline.lines()) == before


def test_a_network_has_one_time_line_at_a_time() -> None:
    network = Network(rng=random.Random(1))
    timeline = Timeline(network)
    with pytest.raises(LocalProtocolError):
        Timeline(network)
    timeline.stop()
    Timeline(network)


def test_lifelines_put_nats_beside_their_hosts_and_servers_between() -> None:
    network = Network(rng=random.Random(1))
    network.add_host("server", ip="198.51.100.1")
    carrier = network.add_nat("carrier", ip="203.0.113.1", kind=SYMMETRIC, subnet="100.64.0.0/10")
    home = network.add_nat("home", kind=PORT_RESTRICTED, upstream=carrier.inside)
    network.add_host("left", home.inside)
    office = network.add_nat("office", ip="203.0.113.2", kind=PORT_RESTRICTED)
    network.add_host("right", office.inside)
    assert lifelines(network) == ["left", "home", "carrier", "server", "office", "right"]


def test_a_reader_takes_any_bytes() -> None:
    reader = DiscoReader([SecretKey(bytes(32))])
    assert reader.label(b"TS\xf0\x9f\x92\xac") == "broken disco"
    assert reader.label(b"") == "payload of 0 bytes"
    request = encode_binding_request(bytes(12))
    assert reader.label(request[:4] + request[4:20] + b"\xff" * 8) == "broken STUN"
    assert reader.carried(b"TS\xf0\x9f\x92\xac") == [{"key": "", "label": "payload of 0 bytes"}]
    assert reader.carried(b"nothing") == []


def test_the_picture_shows_how_a_hole_is_punched() -> None:
    picture = draw_sequence(recorded(PORT_RESTRICTED, PORT_RESTRICTED))
    texts = texts_of(picture)
    for name in ("first", "first nat", "derp", "second nat", "second"):
        assert name in texts
    assert sum(text.startswith("call me maybe") for text in texts) == 2
    assert any(text.startswith("not let in: 203.0.113.2:") for text in texts)
    assert sum(text.startswith("direct 203.0.113.") for text in texts) == 2
    assert not any("payload" in text for text in texts)
    assert not any("STUN" in text for text in texts)


def test_the_picture_shows_why_a_hole_is_not_punched() -> None:
    texts = texts_of(draw_sequence(recorded(PORT_RESTRICTED, SYMMETRIC)))
    refused = [text for text in texts if text.startswith("not let in")]
    assert {text.split()[-1].split(":")[0] for text in refused} == {"203.0.113.1", "203.0.113.2"}
    assert not any(text.startswith("direct") for text in texts)


def test_the_window_can_be_chosen_and_payload_shown() -> None:
    lines = recorded(ADDRESS_RESTRICTED, ADDRESS_RESTRICTED)
    assert any("STUN request" in text for text in texts_of(draw_sequence(lines, begin=0.0)))
    everything = texts_of(draw_sequence(lines, begin=0.0, end=30.0, payload=True))
    assert any(text.startswith("payload") for text in everything)
    assert len(texts_of(draw_sequence(lines, begin=50.0, end=60.0))) < 30


def test_one_end_of_the_window_is_never_past_the_other() -> None:
    lines = recorded(PORT_RESTRICTED, PORT_RESTRICTED)
    late, early = read_scene(lines, begin=1000.0), read_scene(lines, end=0.1)
    assert (late.begin, late.end) == (1000.0, 1000.0)
    assert (early.begin, early.end) == (0.1, 0.1)
    assert late.is_empty
    assert early.is_empty
    assert not read_scene(lines).is_empty


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["{}"],
        ["[]"],
        ["nothing"],
        ['{"format": "another/1", "lifelines": []}'],
        ['{"format": "iroh-timeline/1", "lifelines": []}', "{}"],
        ['{"format": "iroh-timeline/1", "lifelines": []}', '{"time": 0, "at": "x", "kind": "y"}'],
    ],
)
def test_what_is_no_time_line_is_refused(lines: list[str]) -> None:
    with pytest.raises(DecodeError):
        draw_sequence(lines)


def test_an_empty_time_line_is_an_empty_picture() -> None:
    picture = draw_sequence(['{"format": "iroh-timeline/1", "lifelines": ["a"]}'])
    assert "a" in texts_of(picture)
