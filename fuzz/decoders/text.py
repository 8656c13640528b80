"""What users paste: tickets, keys, key files, addresses and URLs."""

from __future__ import annotations

import base64
import random

from nacl import bindings

from fuzz import seeds
from fuzz.target import Choices, Target, decoded, text_of
from iroh_proto.address import DerpUrl, NodeAddr, UdpAddress
from iroh_proto.key import KEY_SIZE, NodeId, SecretKey, encode_base32
from iroh_proto.node_record import RecordForm, read_node_record
from iroh_proto.openssh import decode_openssh, encode_openssh
from iroh_proto.ticket import ParsedTicket, parse_ticket
from iroh_proto.wire import Reader

OURS = SecretKey.generate(random.Random(501))
PREFIXES = ("node", "endpoint", "blob", "doc", "")
_SECRET_PART = 12  # characters of a secret that an error must not repeat


def check_ticket(data: bytes) -> None:
    """A ticket written in a form that it was read from reads the same; errors do not repeat it."""
    _check_ticket_text(text_of(data))
    prefix, record = PREFIXES[data[0] % len(PREFIXES)] if data else "", data[1:]
    _check_ticket_text(prefix + encode_base32(record))


def _check_ticket_text(text: str) -> None:
    parsed = decoded(parse_ticket, text)
    if parsed is None:
        return
    for generation in parsed.generations:
        again = parse_ticket(parsed.ticket.to_str(generation))
        assert again == parsed, (again, generation)
        assert again.ticket.to_str(generation) == parsed.ticket.to_str(generation)
    assert hash(parsed.ticket) == hash(_reparsed(parsed).ticket)
    for node in parsed.ticket.nodes:
        assert isinstance(node.node_addr, NodeAddr)
        assert node.is_empty or repr(node)


def _reparsed(parsed: ParsedTicket) -> ParsedTicket:
    return parse_ticket(parsed.ticket.to_str(parsed.generations[0]))


def check_node_record(data: bytes) -> None:
    """A node's record that decodes encodes to what decodes the same, in each of the forms."""
    choices = Choices(data)
    form = list(RecordForm)[choices.below(3)]
    record = decoded(read_node_record, Reader(choices.rest), form)
    if record is not None:
        encoded = record.encode(form)
        reader = Reader(encoded)
        assert read_node_record(reader, form) == record
        assert reader.remaining == 0
        assert record.encode(form) == read_node_record(Reader(encoded), form).encode(form)


def check_key(data: bytes) -> None:
    """Each text of a key reads as that key; no text is two keys; errors repeat no secret."""
    text = text_of(data)
    for parse in (NodeId.from_str, NodeId.from_z32):
        node_id = decoded(parse, text)
        if node_id is not None:
            _check_node_id(node_id)
            spellings = (str(node_id), node_id.to_base32(), node_id.to_z32())
            assert text.strip().lower() in spellings
    _check_secret_text(text)
    if len(data) >= KEY_SIZE:
        node_id = decoded(NodeId.from_bytes, data[:KEY_SIZE])
        # libsodium takes points of prime order in canonical form alone, iroh all points.
        valid = bindings.crypto_core_ed25519_is_valid_point(data[:KEY_SIZE])
        assert node_id is not None or not valid
        if node_id is not None:
            _check_node_id(node_id)
        secret = SecretKey.from_bytes(data[:KEY_SIZE])
        assert SecretKey.from_str(secret.to_base32()) == secret
        assert secret.public.verify(data, secret.sign(data))
        assert not secret.public.verify(data + b"x", secret.sign(data))


def _check_node_id(node_id: NodeId) -> None:
    assert NodeId.from_str(str(node_id)) == node_id
    assert NodeId.from_str(node_id.to_base32().upper()) == node_id
    assert NodeId.from_z32(node_id.to_z32()) == node_id
    assert node_id.to_tls_server_name().endswith(".iroh.invalid")
    assert not node_id.verify(b"", bytes(64))
    decoded(node_id.to_x25519)


def _check_secret_text(text: str) -> None:
    try:
        secret = SecretKey.from_str(text)
    except ValueError as error:
        assert len(text) < _SECRET_PART or text[:_SECRET_PART] not in str(error)
        return
    assert text.strip().lower() in (secret.to_bytes().hex(), secret.to_base32())
    assert secret.to_bytes().hex() not in repr(secret)


def check_openssh(data: bytes) -> None:
    """A key file that is read is written to one that reads the same; iroh's own, to itself."""
    _check_openssh_text(text_of(data))
    body = base64.b64encode(data).decode()
    _check_openssh_text(
        f"-----BEGIN OPENSSH PRIVATE KEY-----\n{body}\n-----END OPENSSH PRIVATE KEY-----\n"
    )
    written = SecretKey.from_bytes(data[:KEY_SIZE].ljust(KEY_SIZE, b"\0")).to_openssh()
    assert SecretKey.from_openssh(written).to_openssh() == written


def _check_openssh_text(text: str) -> None:
    pair = decoded(decode_openssh, text)
    secret = decoded(SecretKey.from_openssh, text)
    if pair is None:
        assert secret is None
        return
    assert decode_openssh(encode_openssh(*pair)) == pair
    assert secret is None or (secret.to_bytes(), bytes(secret.public)) == pair


def check_address(data: bytes) -> None:
    """An address or URL that parses has one text, which parses to it, a URL's without spaces."""
    text = text_of(data)
    address = decoded(UdpAddress.from_str, text)
    if address is not None:
        assert UdpAddress.from_str(str(address)) == address
        assert UdpAddress.of(address.ip, address.port) == address
        assert len(address.packed_ip) == (16 if address.is_ipv6 else 4)
    url = decoded(DerpUrl.from_str, text)
    if url is not None:
        assert DerpUrl.from_str(str(url)) == url
        assert DerpUrl.from_str(url.to_rooted_str()) == url
        assert 0 <= url.port <= 65535
        for part in (url.path, url.authority):
            assert part.isascii()
            assert part.isprintable()
            assert " " not in part
        assert url.path.startswith("/")
    if address is not None or url is not None:
        node = decoded(
            NodeAddr, OURS.public, derp_url=url, direct_addresses=[address] if address else []
        )
        assert node is not None
        assert not node.is_empty


def ticket_seeds() -> list[bytes]:
    """Return the vectors' tickets, as text and as records, and one of each generation."""
    found = seeds.texts("tickets.json")
    for text in list(found):
        parsed = decoded(parse_ticket, text.decode())
        if parsed is not None:
            found += [
                parsed.ticket.to_str(generation).encode() for generation in parsed.generations
            ]
    return [*found, *seeds.steered([bytes((n,)) for n in range(5)], seeds.packets("tickets.json"))]


def record_seeds() -> list[bytes]:
    """Return the nodes of the vectors' tickets in every form."""
    parsed = [decoded(parse_ticket, text.decode()) for text in seeds.texts("tickets.json")]
    nodes = [node for ticket in parsed if ticket is not None for node in ticket.ticket.nodes]
    return [
        bytes((number,)) + node.encode(form)
        for number, form in enumerate(RecordForm)
        for node in nodes
    ]


URLS = [
    b"https://derp.example./relay?x=1",
    b"http://[2001:db8::1]:3340",
    b"wss://user@192.0.2.1:65535/%C3%A9",
    "https://b\u00fccher.example".encode(),
]
ADDRESSES = [b"192.0.2.1:80", b"[2001:db8::1]:65535", b"[::ffff:1.2.3.4]:0", b"[fe80::1%eth0]:1"]

TARGETS = {
    "ticket": Target(check_ticket, ticket_seeds),
    "node-record": Target(check_node_record, record_seeds),
    "key": Target(
        check_key, lambda: [*seeds.texts("identity.json"), *seeds.packets("identity.json")]
    ),
    "openssh": Target(
        check_openssh, lambda: [*seeds.texts("identity.json"), OURS.to_openssh().encode()]
    ),
    "address": Target(check_address, lambda: [*URLS, *ADDRESSES, *seeds.texts("tickets.json")]),
}
