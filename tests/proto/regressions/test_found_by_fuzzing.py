"""Inputs that once broke a target of fuzz/, by what they showed."""

from __future__ import annotations

import json

import pytest

from fuzz.decoders.disco import OURS, THEIRS
from fuzz.targets import load
from iroh_proto.errors import DecodeError
from iroh_proto.testing.merging import merge
from iroh_proto.trace.disco import DiscoReader

_HEAD = json.dumps({"format": "iroh-timeline/1", "lifelines": ["here"]})


def time_line(**fields: object) -> bytes:
    """Return a recording of one line."""
    line = {"time": 1.0, "at": "here", "kind": "PathChanged", **fields}
    return f"{_HEAD}\n{json.dumps(line)}".encode()


FOUND = {
    "STUN: a match hid that a later attribute is cut short": (
        "stun",
        bytes.fromhex(
            "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f70200020"
            "00080001a147e112a643000800142b91f57979797979797979797979797979797979797979797979"
            "7979"
        ),
    ),
    "Tailscale's websocket: a close behind a fault was seen or not": (
        "derp-tailscale-websocket",
        bytes.fromhex(
            "0006822d010000002844455250f09f949176afca17af0a61536f3308b2210a29b40dbc88ad7643ff"
            "f4c15ba0237c9e326082050601000000820d120000000870696e67706f6e67820d13000000087069"
            "6e67706f6e67820e1400000009612070726f626c656d820d1500000008000003e8000007d0880203"
            "e8"
        ),
    ),
    "Tailscale's frames: a server read on in one that it skips": (
        "derp-tailscale-websocket",
        bytes.fromhex(
            "010682863c00000000000000cc06828dbe6f9f62ac6f9f62b61ff60cd91ff00cd9828dac4c09c2bf"
            "4c09c2a43c60accb3c66accb88828206e7e381ee"
        ),
    ),
    "Tailscale's websocket: what text is refused for depended on its cut": (
        "derp-tailscale-websocket",
        bytes.fromhex(
            "0106828da3a3a3be9a606b57f09162ac6f0000150001ff008206ff650b00ff000000000000000000"
            "0100009f94a8f09162"
        ),
    ),
    "websocket: a refusal told how much of a message had come": (
        "derp-v3-websocket",
        bytes.fromhex("0106828aedc1657ceba0450c97ae071080ac01"),
    ),
    "websocket: a refusal told where in a piece a byte is wrong": (
        "derp-relay-v1-websocket",
        bytes.fromhex("0106018978c3a96774c3a96490c3a960a8"),
    ),
    "HTTP: bytes behind an interim response were refused only when more came": (
        "http-response",
        b"\0\x09HTTP/1.1 100 Continue\r\nx: 0123456789\r\n\r\n\0\1\2\3\4\5\6\7",
    ),
    "websocket: an empty message that came in pieces was seen with the next one": (
        "derp-v3-websocket",
        b"\x01\x01\x82\x80\x00\x00\x30\x00",
    ),
    "a node's record: which of its servers is the first depended on their order": (
        "node-record",
        b"\x02" + OURS.public + b"\x02\x00\x13http://b.example:5/\x00\x13http://a.example:5/",
    ),
    "HTTP: an upgrade that names no protocol was offered to be agreed to": (
        "http-request",
        b"\x08GET /derp HTTP/1.1\r\nupgrade:\r\n\r\n",
    ),
    "time line: a line that carries nothing with a key": (
        "timeline-drawing",
        time_line(carried=[{"label": "ping"}]),
    ),
    "time line: text that XML cannot hold": (
        "timeline-drawing",
        time_line(path={"kind": "direct\x00\udc80"}),
    ),
    "time line: a packet whose number is a list": (
        "timeline-drawing",
        time_line(kind="DatagramsSent", packet=[1]),
    ),
    "time line: lists in lists in lists": ("timeline-drawing", b"[" * 8000),
    "time line: a value of the wrong kind": ("timeline-values", b'{"$udp": 5}'),
    "time line: values nested deeper than can be followed": (
        "timeline-values",
        b"[" * 980 + b"]" * 980,
    ),
}


@pytest.mark.parametrize(("target", "data"), FOUND.values(), ids=FOUND)
def test_the_invariant_holds(target: str, data: bytes) -> None:
    load(target).check(data)


@pytest.mark.parametrize(
    "datagram",
    [
        {"from": str(OURS.public), "sealed": 10**15},
        {"from": str(OURS.public), "to": str(THEIRS.public), "message": "", "nonce": "00"},
    ],
)
def test_no_datagram_of_impossible_size_is_made_again(datagram: dict[str, object]) -> None:
    with pytest.raises(DecodeError):
        DiscoReader([OURS, THEIRS]).seal(datagram)


def test_time_lines_that_are_farther_apart_than_numbers_go_are_refused() -> None:
    def meeting(kind: str, time: float) -> list[str]:
        entry = {"time": time, "at": "here", "kind": kind, "datagrams": [{"nonce": "00"}]}
        return [_HEAD, json.dumps(entry)]

    with pytest.raises(DecodeError, match="too far apart"):
        merge([meeting("DatagramsSent", 1e308), meeting("DatagramsReceived", -1e308)])
