"""Tickets of every generation: real ones to the byte, round trips, and bad ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iroh_proto.address import DerpUrl, NodeAddr
from iroh_proto.errors import DecodeError, LocalProtocolError
from iroh_proto.key import NodeId, decode_base32, encode_base32
from iroh_proto.node_record import CustomAddress, NodeRecord, RecordForm
from iroh_proto.testing.strategies import node_addrs, ticket_forms
from iroh_proto.ticket import (
    BlobFormat,
    BlobTicket,
    DocAccess,
    DocTicket,
    Generation,
    NodeTicket,
    Ticket,
    parse_ticket,
)

TICKETS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "tickets.json").read_text()
)["tickets"]
NODE_ID = NodeId.from_str("ae58ff8833241ac82d6ff7611046ed67b5072d142c588d0063e942d9a75502b6")
NODE = NodeRecord(NodeAddr(NODE_ID, direct_addresses=["127.0.0.1:1024"]))
HASH = bytes(range(32))


def of_kind(*kinds: str) -> list[Any]:
    return [
        pytest.param(case, id=f"{case['kind']} {case['versions']} {index}")
        for index, case in enumerate(TICKETS)
        if case["kind"] in kinds
    ]


def expected_addr(case: dict[str, Any]) -> NodeAddr:
    given_ = case["input"]
    node_id = NodeId.from_str(given_["id"])
    url, addresses = given_.get("relay"), given_["addrs"]
    return NodeAddr(node_id, derp_url=url, direct_addresses=addresses)


@pytest.mark.parametrize("case", of_kind("node", "endpoint", "blob", "doc"))
def test_the_text_of_golden_tickets_is_base32_of_their_bytes(case: dict[str, Any]) -> None:
    prefix = "" if case["versions"] == "0.6" else case["kind"]
    assert case["text"] == prefix + encode_base32(bytes.fromhex(case["bytes"]))


@pytest.mark.parametrize("case", of_kind("node"))
def test_golden_node_tickets(case: dict[str, Any]) -> None:
    ticket = NodeTicket(expected_addr(case))
    assert str(ticket) == case["text"]
    assert NodeTicket.from_str(case["text"]) == ticket
    assert parse_ticket(case["text"]).generations == (Generation.V0_12,)


@pytest.mark.parametrize("case", of_kind("endpoint"))
def test_golden_endpoint_tickets(case: dict[str, Any]) -> None:
    ticket = NodeTicket(expected_addr(case))
    assert ticket.to_endpoint_str() == case["text"]
    assert NodeTicket.from_str(case["text"]).node_addr == ticket.node_addr
    assert parse_ticket(case["text"]).generations == (Generation.V0_94,)


@pytest.mark.parametrize("case", of_kind("blob"))
def test_golden_blob_tickets(case: dict[str, Any]) -> None:
    blob_format = {"raw": BlobFormat.RAW, "hashseq": BlobFormat.HASH_SEQ}[case["input"]["format"]]
    blob_hash = bytes.fromhex(case["input"]["hash"])
    ticket = BlobTicket(NodeRecord(expected_addr(case)), blob_hash, blob_format)
    assert str(ticket) == case["text"]
    parsed = parse_ticket(case["text"])
    assert parsed.ticket == ticket
    assert parsed.generations == (Generation.V0_12,)
    assert parsed.ticket.nodes[0].node_addr == expected_addr(case)


DOCS = {
    "0.12+": (
        DocAccess.READ,
        bytes(NODE_ID),
        NodeRecord(NodeAddr(NODE_ID)),
    ),
    "real 0.12.0 node (write capability)": (
        DocAccess.WRITE,
        bytes.fromhex("2d3dcc542afee5c0cf649227536efca371031f12ebc47656f702d17fd34a116e"),
        None,
    ),
    "real 0.12.0 node (read capability)": (
        DocAccess.READ,
        bytes.fromhex("a8744ef120ed2129e838b306d099869ac528eb16216cf8c1b1cd7fd7f0bac093"),
        None,
    ),
}
REAL_0_12_NODE = NodeRecord(
    NodeAddr(
        NodeId.from_str("429a90b33eb9ded8edb78569a3e270985021aa4988d7d5a4356739b685dc4215"),
        derp_url="https://use1-1.derp.iroh.network./",
        direct_addresses=["192.0.2.2:11204"],
    )
)


@pytest.mark.parametrize("case", [case for case in of_kind("doc") if "0.12" in str(case.id)])
def test_golden_document_tickets(case: dict[str, Any]) -> None:
    access, key, node = DOCS.get(case["versions"]) or DOCS[case["origin"]]
    ticket = DocTicket(key, access, (node or REAL_0_12_NODE,))
    assert str(ticket) == case["text"]
    assert parse_ticket(case["text"]) == (ticket, (Generation.V0_12,))


def test_the_golden_document_ticket_of_0_6() -> None:
    (case,) = [case for case in TICKETS if case["versions"] == "0.6"]
    (peer,) = case["decoded"]["peers"]
    addr = NodeAddr(NodeId.from_str(peer["id"]), direct_addresses=peer["addrs"])
    node = NodeRecord(addr, derp_region=peer["derp_region"])
    ticket = DocTicket(bytes.fromhex(case["decoded"]["key"]), None, (node,))
    assert parse_ticket(case["text"]) == (ticket, (Generation.V0_6,))
    assert ticket.to_str(Generation.V0_6) == case["text"]
    assert parse_ticket(ticket.to_str(Generation.V0_9)) == (ticket, (Generation.V0_9,))


@pytest.mark.parametrize(
    ("access", "has_node", "generation"),
    [
        (DocAccess.READ, True, Generation.V0_12),
        (DocAccess.READ, False, Generation.V0_10),
        (None, True, Generation.V0_9),
        (None, False, Generation.V0_9),
    ],
)
def test_a_document_ticket_is_shown_in_the_latest_form_that_can_say_it(
    access: DocAccess | None, has_node: bool, generation: Generation
) -> None:
    ticket = DocTicket(HASH, access, (NODE,) if has_node else ())
    assert str(ticket) == ticket.to_str(generation)
    assert parse_ticket(str(ticket)).ticket == ticket


REGION = NodeRecord(NODE.node_addr, derp_region=300)
REGION_BYTES = b"\x20" + NODE_ID + b"\1\xac\2" + b"\1\0\x7f\0\0\1\x80\x08"
TOKEN = b"let me in"


@pytest.mark.parametrize(
    ("generations", "ticket", "text"),
    [
        pytest.param(
            [Generation.V0_9, Generation.V0_10],
            BlobTicket(REGION, HASH, BlobFormat.HASH_SEQ, TOKEN),
            "blob" + encode_base32(REGION_BYTES + b"\1" + HASH + b"\1\x09" + TOKEN),
            id="blob of 0.9 to 0.11 with a token",
        ),
        pytest.param(
            [Generation.V0_9, Generation.V0_10],
            BlobTicket(REGION, HASH),
            "blob" + encode_base32(REGION_BYTES + b"\0" + HASH + b"\0"),
            id="blob of 0.9 to 0.11",
        ),
        pytest.param(
            [Generation.V0_6],
            BlobTicket(REGION, HASH, BlobFormat.HASH_SEQ, TOKEN),
            encode_base32(REGION_BYTES + HASH + b"\1\x09" + TOKEN + b"\1"),
            id="collection of 0.6 to 0.8 with a token",
        ),
        pytest.param(
            [Generation.V0_6],
            BlobTicket(REGION, HASH),
            encode_base32(REGION_BYTES + HASH + b"\0\0"),
            id="blob of 0.6 to 0.8",
        ),
        pytest.param(
            [Generation.V0_10],
            DocTicket(HASH, DocAccess.WRITE, (REGION, REGION)),
            "doc" + encode_base32(b"\0\x20" + HASH + b"\2" + 2 * REGION_BYTES),
            id="writable doc of 0.10 and 0.11",
        ),
        pytest.param(
            [Generation.V0_10],
            DocTicket(HASH, DocAccess.READ, ()),
            "doc" + encode_base32(b"\1" + HASH + b"\0"),
            id="readable doc of 0.10 and 0.11 without nodes",
        ),
    ],
)
def test_tickets_of_the_oldest_releases_are_written_and_read_as_laid_out(
    generations: list[Generation], ticket: BlobTicket | DocTicket, text: str
) -> None:
    assert [ticket.to_str(generation) for generation in generations] == [text] * len(generations)
    assert parse_ticket(text) == (ticket, tuple(generations))


EVERY_FORM = ticket_forms()


@pytest.mark.parametrize(
    ("generation", "tickets"),
    EVERY_FORM,
    ids=[f"{index} {generation.value}" for index, (generation, _) in enumerate(EVERY_FORM)],
)
@given(data=st.data())
def test_every_ticket_survives_in_every_form(
    data: st.DataObject, generation: Generation, tickets: st.SearchStrategy[Ticket]
) -> None:
    ticket = data.draw(tickets)
    text = ticket.to_str(generation)
    assert text.islower()
    parsed = parse_ticket(text)
    assert parsed.ticket == ticket
    assert generation in parsed.generations
    assert parsed.ticket.to_str(generation) == text


@given(node_addrs())
def test_an_address_survives_in_node_and_endpoint_tickets(addr: NodeAddr) -> None:
    ticket = NodeTicket(addr)
    assert NodeTicket.from_str(str(ticket)).node_addr == addr
    assert NodeTicket.from_str(ticket.to_endpoint_str()).node_addr == addr


def test_tickets_are_read_in_either_case_as_qr_codes_have_them() -> None:
    for ticket in (NodeTicket(NODE), BlobTicket(NODE, HASH), DocTicket(HASH, None, (NODE,))):
        text = str(ticket)
        assert parse_ticket(text.upper()) == parse_ticket(text)
    text = str(NodeTicket(NODE))
    assert NodeTicket.from_str("node" + text[4:].upper()) == NodeTicket(NODE)
    assert NodeTicket.from_str("NODE" + text[4:]) == NodeTicket(NODE)


@pytest.mark.parametrize(
    "text", [str(NodeTicket(NODE))[:-1], str(NodeTicket(NodeAddr(NODE_ID))) + "a"]
)
def test_a_ticket_copied_with_a_character_too_few_or_many_says_so(text: str) -> None:
    with pytest.raises(DecodeError, match="cut short, or has something added") as caught:
        NodeTicket.from_str(text)
    assert text[4:] not in str(caught.value)


@pytest.mark.parametrize("text", [str(NODE_ID), str(NODE_ID).upper(), NODE_ID.to_base32()])
def test_a_node_id_is_named_when_a_ticket_is_wanted(text: str) -> None:
    with pytest.raises(DecodeError, match="this is a node id, not a ticket: ") as caught:
        NodeTicket.from_str(text)
    assert text not in str(caught.value)


def test_white_space_around_a_ticket_does_not_count() -> None:
    for ticket in (NodeTicket(NODE), BlobTicket(NODE, HASH)):
        assert parse_ticket(f" {ticket}\r\n") == parse_ticket(str(ticket))


def test_bytes_after_the_record_are_ignored() -> None:
    payload = decode_base32(str(NodeTicket(NODE)).removeprefix("node"))
    assert NodeTicket.from_str("node" + encode_base32(payload + b"more")) == NodeTicket(NODE)


def test_addresses_are_written_sorted_and_once() -> None:
    addresses = ["[::1]:1", "10.0.0.1:80", "9.0.0.1:80", "10.0.0.1:79", "10.0.0.1:80"]
    ticket = NodeTicket.from_str(str(NodeTicket(NodeAddr(NODE_ID, direct_addresses=addresses))))
    assert [str(address) for address in ticket.node_addr.direct_addresses] == [
        "9.0.0.1:80",
        "10.0.0.1:79",
        "10.0.0.1:80",
        "[::1]:1",
    ]


def test_only_names_get_the_dot_that_releases_before_0_96_append() -> None:
    def url_bytes(url: str) -> bytes:
        addr = NodeAddr(NODE_ID, derp_url=url)
        return NodeRecord(addr).encode(RecordForm.URL)[33:-1]

    assert url_bytes("https://Example.com:8443") == b"\x1ahttps://example.com.:8443/"
    assert url_bytes("http://127.0.0.1:3340") == b"\x16http://127.0.0.1:3340/"
    assert url_bytes("http://[::1]:3340") == b"\x12http://[::1]:3340/"


def test_a_record_names_all_its_servers() -> None:
    urls = tuple(DerpUrl.from_str(f"https://{name}.example") for name in ("a", "b", "c"))
    record = NodeRecord(NodeAddr(NODE_ID, derp_url=urls[1]), more_derp_urls=(urls[0], urls[2]))
    parsed = NodeTicket.from_str(NodeTicket(record).to_endpoint_str())
    assert parsed.node.derp_urls == urls
    assert parsed.node_addr.derp_url == urls[0]
    assert NodeRecord(NodeAddr(NODE_ID)).derp_urls == ()


def test_addresses_of_unknown_transports_are_kept_sorted_and_once() -> None:
    one, other = CustomAddress(300, b"\x01\xff"), CustomAddress(7, b"")
    record = NodeRecord(NodeAddr(NODE_ID), custom_addresses=(one, other, one))
    encoded = record.encode(RecordForm.SET)
    assert encoded == NODE_ID + b"\2" + b"\2\x07\0" + b"\2\xac\2\2\x01\xff"
    parsed = NodeTicket.from_str(NodeTicket(record).to_endpoint_str())
    assert parsed.node.custom_addresses == (other, one)
    assert not parsed.node.is_empty
    assert parsed.node_addr == NodeAddr(NODE_ID)


def test_custom_addresses_print_as_upstream() -> None:
    assert str(CustomAddress(0xAB, b"\x01\xff")) == "ab_01ff"


def test_other_tickets_are_named_when_one_of_a_node_is_wanted() -> None:
    with pytest.raises(DecodeError, match="blob ticket, not one of a node"):
        NodeTicket.from_str(str(BlobTicket(NODE, HASH)))
    with pytest.raises(DecodeError, match="document ticket, not one of a node"):
        NodeTicket.from_str(str(DocTicket(HASH, DocAccess.READ, (NODE,))))


def node_text(payload: bytes) -> str:
    return "node" + encode_base32(payload)


PAYLOAD = b"\0" + NODE_ID


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "begins with none of"),
        ("knot", "begins with none of"),
        ("node", "cut short"),
        ("node!!!!", "not base32"),
        ("nodea", "base32"),
        (node_text(b"\1" + NODE_ID), "variant 1"),
        (node_text(PAYLOAD[:-1]), "cut short"),
        (node_text(b"\0\2" + bytes(31)), "not a point"),
        (node_text(PAYLOAD + b"\2"), "an option begins"),
        (node_text(PAYLOAD + b"\1\3foo\0"), "no URL of one"),
        (node_text(PAYLOAD + b"\1\1\xff\0"), "not UTF-8"),
        (node_text(PAYLOAD + b"\0\1"), "1 items said"),
        (node_text(PAYLOAD + b"\0\1\2\0\0\0\0\0"), "variant 0 or 1, not 2"),
        (node_text(PAYLOAD + b"\0\1\0\x7f\0\0\1\xff\xff\4"), "fit in 16 bits"),
        ("endpoint" + encode_base32(PAYLOAD + b"\1\3\0"), "variant 0 to 2, not 3"),
        ("blob" + encode_base32(PAYLOAD + b"\0\0\2" + HASH), "format of a blob"),
        ("blob" + encode_base32(PAYLOAD + b"\0\0\0" + HASH[1:]), "cut short"),
        ("doc" + encode_base32(b"\0\2"), "capability of a document"),
        ("doc" + encode_base32(b"\0\0\x1f" + HASH + b"\0"), "secret of a document"),
        ("doc" + encode_base32(b"\0\1" + HASH + b"\0"), "at least one node"),
    ],
)
def test_bad_tickets_are_refused_with_a_reason(text: str, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        parse_ticket(text)


def test_forms_that_must_say_where_to_dial_are_refused_without_it() -> None:
    nowhere = b"\x20" + NODE_ID + b"\0\0"
    with pytest.raises(DecodeError, match="where to dial"):
        parse_ticket("blob" + encode_base32(nowhere + b"\0" + HASH + b"\0"))
    only_region = b"\x20" + NODE_ID + b"\1\2\0"
    assert parse_ticket("blob" + encode_base32(only_region + b"\0" + HASH + b"\0"))
    with pytest.raises(DecodeError, match=r"0\.6 to 0\.8"):
        parse_ticket(encode_base32(only_region + HASH + b"\0\0"))


EMPTY = NodeRecord(NodeAddr(NODE_ID))


@pytest.mark.parametrize(
    "write",
    [
        lambda: NodeTicket(NODE).to_str(Generation.V0_10),
        lambda: BlobTicket(NODE, HASH).to_str(Generation.V0_94),
        lambda: DocTicket(HASH, None, (NODE,)).to_str(Generation.V0_94),
        lambda: BlobTicket(NODE, HASH[1:]).to_str(Generation.V0_12),
        lambda: BlobTicket(EMPTY, HASH).to_str(Generation.V0_10),
        lambda: BlobTicket(EMPTY, HASH).to_str(Generation.V0_6),
        lambda: BlobTicket(NodeRecord(NODE.node_addr, 1 << 16), HASH).to_str(Generation.V0_6),
        lambda: DocTicket(HASH[1:], DocAccess.READ, (NODE,)).to_str(Generation.V0_12),
        lambda: DocTicket(HASH, None, (NODE,)).to_str(Generation.V0_12),
        lambda: DocTicket(HASH, None, (NODE,)).to_str(Generation.V0_10),
        lambda: DocTicket(HASH, DocAccess.READ, ()).to_str(Generation.V0_12),
    ],
)
def test_what_a_generation_cannot_say_is_the_callers_mistake(write: Callable[[], str]) -> None:
    with pytest.raises(LocalProtocolError):
        write()


def test_secrets_are_not_shown() -> None:
    ticket = DocTicket(b"\xab" * 32, DocAccess.WRITE, (NODE,))
    assert "\\xab" not in repr(ticket)
    assert "token" not in repr(BlobTicket(NODE, HASH, token=b"token"))


def test_what_is_wrong_in_a_ticket_is_not_shown() -> None:
    url = b"ftp://user:hunter2@h/"
    with pytest.raises(DecodeError) as caught:
        parse_ticket(node_text(PAYLOAD + b"\1" + bytes([len(url)]) + url + b"\0"))
    assert "hunter2" not in str(caught.value)


def test_node_tickets_compare_by_value() -> None:
    assert {NodeTicket(NODE), NodeTicket(NODE.node_addr)} == {NodeTicket(NODE)}
    assert NodeTicket(NODE) != NodeTicket(EMPTY)
    assert NodeTicket(NODE) != str(NodeTicket(NODE))
    assert str(NODE_ID) in repr(NodeTicket(NODE))
    assert NodeTicket(NODE).nodes == (NODE,)


PREFIXES = ["", "node", "endpoint", "blob", "doc"]
heads = [b"", PAYLOAD, b"\0\1" + NODE_ID, b"\x20" + NODE_ID, b"\0\0\x20" + NODE_ID]


@given(st.sampled_from(PREFIXES), st.sampled_from(heads), st.binary(max_size=80))
def test_any_record_raises_nothing_but_decode_errors(prefix: str, head: bytes, tail: bytes) -> None:
    with suppress(DecodeError):
        parse_ticket(prefix + encode_base32(head + tail))


@given(st.sampled_from(PREFIXES), st.text(max_size=40))
def test_any_text_raises_nothing_but_decode_errors(prefix: str, text: str) -> None:
    with suppress(DecodeError):
        parse_ticket(prefix + text)


@given(st.sampled_from(TICKETS), st.data())
def test_damaged_tickets_raise_nothing_but_decode_errors(
    case: dict[str, Any], data: st.DataObject
) -> None:
    text = case["text"]
    position = data.draw(st.integers(0, len(text) - 1))
    replacement = data.draw(st.text("abcdefgh234567", max_size=3))
    with suppress(DecodeError):
        parse_ticket(text[:position] + replacement + text[position + 1 :])
