"""Tickets: text that a user pastes to say where something is, of every generation of iroh.

The text is a prefix and the base32 (RFC 4648, lower case, no padding) of a postcard record:

========  ==============  ============  =======================================================
kind      releases        prefix        record
========  ==============  ============  =======================================================
node      0.12 to 0.93    ``node``      ``00`` | node
endpoint  0.94 onward     ``endpoint``  ``00`` | node
blob      0.6 to 0.8      none          node | hash (32) | option: token | bool: is a collection
blob      0.9 to 0.11     ``blob``      node | format | hash (32) | option: token
blob      0.12 to 0.93    ``blob``      ``00`` | node | format | hash (32)
doc       0.6 to 0.8      none          key (32) | sequence: node
doc       0.9             ``doc``       key (32) | sequence: node
doc       0.10 and 0.11   ``doc``       capability | sequence: node
doc       0.12 to 0.93    ``doc``       ``00`` | capability | sequence: node
========  ==============  ============  =======================================================

*node* is a record of :mod:`iroh_proto.node_record` in the form of the release, *token* a byte
string, *format* ``00`` for one blob and ``01`` for a sequence of them, *capability* ``00`` ``20``
and a namespace's secret, or ``01`` and its id. All of it is read in either case (QR codes hold
upper case in less room), without white space around it. Bytes after the record are ignored, as
upstream does.

Source: iroh v0.6.0 ``iroh/src/rpc_protocol.rs``, v0.10.0 ``iroh/src/ticket.rs``, v0.12.0
``iroh-net/src/ticket/node.rs``, v0.28.1 ``iroh-base/src/ticket.rs``; iroh-tickets 1.0.0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from iroh_proto.address import NodeAddr
from iroh_proto.errors import DecodeError, LocalProtocolError
from iroh_proto.key import KEY_SIZE, NodeId, decode_base32, encode_base32
from iroh_proto.node_record import NodeRecord, RecordForm, read_node_record
from iroh_proto.wire import (
    Reader,
    encode_bool,
    encode_byte_string,
    encode_option,
    encode_sequence,
    encode_varint,
)

HASH_SIZE = 32

TicketT = TypeVar("TicketT")

_VARIANT = b"\x00"  # of an enum that has had one variant so far
_NO_ADDRESSES = "releases that write this form refuse tickets that say nothing of where to dial"
_NO_PREFIX = (
    "not a ticket: it begins with none of node, endpoint, blob and doc, and is none of the "
    "tickets without such a beginning that iroh 0.6 to 0.8 write"
)
_NODE_ID = (
    "this is a node id, not a ticket: a ticket says where to dial the node, too, and begins with "
    "node or endpoint"
)
_NO_NODES = "a document ticket names at least one node"


class Generation(Enum):
    """Spans of releases that write tickets alike."""

    V0_6 = "0.6 to 0.8"
    V0_9 = "0.9"
    V0_10 = "0.10 and 0.11"
    V0_12 = "0.12 to 0.93"
    V0_94 = "0.94 and later"


class BlobFormat(IntEnum):
    """What the hash of a blob ticket names."""

    RAW = 0
    """One blob."""
    HASH_SEQ = 1
    """A sequence of hashes, such as a collection."""


class DocAccess(IntEnum):
    """What the key of a document ticket allows."""

    WRITE = 0
    """The key is the namespace's secret."""
    READ = 1
    """The key is the namespace's id."""


class NodeTicket:
    """Where one node is: a ``node`` or an ``endpoint`` ticket.

    Takes a :class:`~iroh_proto.address.NodeAddr`, or a record with what only some generations
    can say. ``str(ticket)`` is the ``node`` form, :meth:`to_endpoint_str` the newer one.
    """

    __slots__ = ("node",)

    node: NodeRecord

    def __init__(self, node: NodeAddr | NodeRecord) -> None:
        self.node = NodeRecord.of(node)

    @classmethod
    def from_str(cls, text: str) -> NodeTicket:
        """Parse a ``node`` or an ``endpoint`` ticket.

        :raises DecodeError: naming what is wrong, or which other kind of ticket it is.
        """
        ticket = parse_ticket(text).ticket
        if not isinstance(ticket, NodeTicket):
            kind = "blob" if isinstance(ticket, BlobTicket) else "document"
            raise DecodeError(f"this is a {kind} ticket, not one of a node")
        return ticket

    @property
    def node_addr(self) -> NodeAddr:
        """The address of the node."""
        return self.node.node_addr

    @property
    def nodes(self) -> tuple[NodeRecord, ...]:
        """The one node."""
        return (self.node,)

    def to_endpoint_str(self) -> str:
        """Return the text that iroh 0.94 and later read."""
        return self.to_str(Generation.V0_94)

    def to_str(self, generation: Generation) -> str:
        """Return the text of a generation, without what it cannot say.

        :raises LocalProtocolError: if that generation has no tickets of nodes.
        """
        return _write(_NODE_FORMS, self, generation)

    def __str__(self) -> str:
        return self.to_str(Generation.V0_12)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NodeTicket):
            return NotImplemented
        return self.node == other.node

    def __hash__(self) -> int:
        return hash(self.node)

    def __repr__(self) -> str:
        return f"NodeTicket({self.node!r})"


@dataclass(frozen=True, slots=True)
class BlobTicket:
    """Where to get what a BLAKE3 hash names. ``str(ticket)`` is the form of 0.12 to 0.93.

    Releases up to 0.11 may want a ``token`` presented, and up to 0.13 refuse tickets that say
    nothing of where the node is.
    """

    node: NodeRecord
    hash: bytes
    format: BlobFormat = BlobFormat.RAW
    token: bytes | None = field(default=None, repr=False)

    @property
    def nodes(self) -> tuple[NodeRecord, ...]:
        """The one node that has it."""
        return (self.node,)

    def to_str(self, generation: Generation) -> str:
        """Return the text of a generation, without what it cannot say.

        :raises LocalProtocolError: if the hash is not 32 bytes, the generation has no such
            tickets, or would refuse one without addresses.
        """
        if len(self.hash) != HASH_SIZE:
            raise LocalProtocolError(f"a hash is {HASH_SIZE} bytes, not {len(self.hash)}")
        return _write(_BLOB_FORMS, self, generation)

    def __str__(self) -> str:
        return self.to_str(Generation.V0_12)


@dataclass(frozen=True, slots=True)
class DocTicket:
    """Where a document is and what one may do with it.

    ``str(ticket)`` is the form of 0.12 on or, if that has no words for it, the latest one that has.

    ``access`` is ``None`` for tickets up to 0.9, which do not say what their key is. The key may
    be a secret, so it is not shown.
    """

    key: bytes = field(repr=False)
    access: DocAccess | None
    nodes: tuple[NodeRecord, ...]

    def to_str(self, generation: Generation) -> str:
        """Return the text of a generation, without what it cannot say.

        :raises LocalProtocolError: if the key is not 32 bytes, the generation has no such
            tickets, wants to know what the key is, or would refuse one without nodes.
        """
        if len(self.key) != KEY_SIZE:
            raise LocalProtocolError(f"the key of a document is {KEY_SIZE} bytes")
        return _write(_DOC_FORMS, self, generation)

    def __str__(self) -> str:
        if self.access is None:
            return self.to_str(Generation.V0_9)
        return self.to_str(Generation.V0_12 if self.nodes else Generation.V0_10)


Ticket: TypeAlias = NodeTicket | BlobTicket | DocTicket


class ParsedTicket(NamedTuple):
    """A ticket, and which releases write it like that."""

    ticket: Ticket
    generations: tuple[Generation, ...]


def parse_ticket(text: str) -> ParsedTicket:
    """Parse a ticket of any kind and generation.

    Some forms can be told apart only by trying; the newest that fits is taken.

    :raises DecodeError: naming what is wrong. The message never repeats the ticket.
    """
    text = text.strip()
    best_error, best_progress = DecodeError(_NODE_ID if _is_node_id(text) else _NO_PREFIX), -1
    for form in _ALL_FORMS:
        prefix, rest = text[: len(form.prefix)], text[len(form.prefix) :]
        if prefix.lower() != form.prefix:
            continue
        reader = Reader(b"")
        try:
            reader = Reader(decode_base32(rest))
            return ParsedTicket(form.read(reader), form.generations)
        except DecodeError as error:
            # The form that could read furthest is the likeliest to have been meant.
            if form.prefix and reader.position > best_progress:
                best_progress = reader.position
                best_error = DecodeError(f"not a good {form.prefix} ticket: {error}")
    raise best_error


def _is_node_id(text: str) -> bool:
    try:
        NodeId.from_str(text)
    except DecodeError:
        return False
    return True


def _read_node_url(reader: Reader) -> NodeTicket:
    _read_variant(reader)
    return NodeTicket(read_node_record(reader, RecordForm.URL))


def _write_node_url(ticket: NodeTicket) -> bytes:
    return _VARIANT + ticket.node.encode(RecordForm.URL)


def _read_node_set(reader: Reader) -> NodeTicket:
    _read_variant(reader)
    return NodeTicket(read_node_record(reader, RecordForm.SET))


def _write_node_set(ticket: NodeTicket) -> bytes:
    return _VARIANT + ticket.node.encode(RecordForm.SET)


def _read_blob_0_12(reader: Reader) -> BlobTicket:
    _read_variant(reader)
    node = read_node_record(reader, RecordForm.URL)
    blob_format = _read_blob_format(reader)
    return BlobTicket(node, reader.take(HASH_SIZE), blob_format)


def _write_blob_0_12(ticket: BlobTicket) -> bytes:
    node = ticket.node.encode(RecordForm.URL)
    return _VARIANT + node + encode_varint(ticket.format) + ticket.hash


def _read_blob_0_9(reader: Reader) -> BlobTicket:
    node = read_node_record(reader, RecordForm.REGION)
    if node.is_empty:
        raise DecodeError(_NO_ADDRESSES)
    blob_format = _read_blob_format(reader)
    blob_hash = reader.take(HASH_SIZE)
    return BlobTicket(node, blob_hash, blob_format, reader.option(reader.byte_string))


def _write_blob_0_9(ticket: BlobTicket) -> bytes:
    node = ticket.node
    if not node.node_addr.direct_addresses and node.derp_region is None:
        raise LocalProtocolError(_NO_ADDRESSES)
    blob_format = encode_varint(ticket.format)
    return node.encode(RecordForm.REGION) + blob_format + ticket.hash + _encode_token(ticket)


def _read_blob_0_6(reader: Reader) -> BlobTicket:
    node = read_node_record(reader, RecordForm.REGION)
    if not node.node_addr.direct_addresses:
        raise DecodeError(_NO_ADDRESSES)
    blob_hash = reader.take(HASH_SIZE)
    token = reader.option(reader.byte_string)
    blob_format = BlobFormat.HASH_SEQ if reader.boolean() else BlobFormat.RAW
    return BlobTicket(node, blob_hash, blob_format, token)


def _write_blob_0_6(ticket: BlobTicket) -> bytes:
    if not ticket.node.node_addr.direct_addresses:
        raise LocalProtocolError(_NO_ADDRESSES)
    is_collection = encode_bool(ticket.format is BlobFormat.HASH_SEQ)
    node = ticket.node.encode(RecordForm.REGION)
    return node + ticket.hash + _encode_token(ticket) + is_collection


def _read_doc_0_12(reader: Reader) -> DocTicket:
    _read_variant(reader)
    access, key = _read_capability(reader)
    nodes = reader.sequence(lambda: read_node_record(reader, RecordForm.URL))
    if not nodes:
        raise DecodeError(_NO_NODES)
    return DocTicket(key, access, tuple(nodes))


def _write_doc_0_12(ticket: DocTicket) -> bytes:
    if not ticket.nodes:
        raise LocalProtocolError(_NO_NODES)
    nodes = encode_sequence(node.encode(RecordForm.URL) for node in ticket.nodes)
    return _VARIANT + _encode_capability(ticket) + nodes


def _read_doc_0_10(reader: Reader) -> DocTicket:
    access, key = _read_capability(reader)
    nodes = reader.sequence(lambda: read_node_record(reader, RecordForm.REGION))
    return DocTicket(key, access, tuple(nodes))


def _write_doc_0_10(ticket: DocTicket) -> bytes:
    nodes = encode_sequence(node.encode(RecordForm.REGION) for node in ticket.nodes)
    return _encode_capability(ticket) + nodes


def _read_doc_0_6(reader: Reader) -> DocTicket:
    key = reader.take(KEY_SIZE)
    nodes = reader.sequence(lambda: read_node_record(reader, RecordForm.REGION))
    return DocTicket(key, None, tuple(nodes))


def _write_doc_0_6(ticket: DocTicket) -> bytes:
    return ticket.key + encode_sequence(node.encode(RecordForm.REGION) for node in ticket.nodes)


def _read_variant(reader: Reader) -> None:
    if (variant := reader.varint(32)) != 0:
        raise DecodeError(f"variant {variant} of this ticket is not known here")


def _read_blob_format(reader: Reader) -> BlobFormat:
    value = reader.varint(32)
    try:
        return BlobFormat(value)
    except ValueError:
        raise DecodeError(f"the format of a blob is 0 or 1, not {value}") from None


def _encode_token(ticket: BlobTicket) -> bytes:
    return encode_option(None if ticket.token is None else encode_byte_string(ticket.token))


def _read_capability(reader: Reader) -> tuple[DocAccess, bytes]:
    value = reader.varint(32)
    if value == DocAccess.READ:
        return DocAccess.READ, reader.take(KEY_SIZE)
    if value != DocAccess.WRITE:
        raise DecodeError(f"the capability of a document is 0 or 1, not {value}")
    secret = reader.byte_string()
    if len(secret) != KEY_SIZE:
        raise DecodeError(f"the secret of a document is {KEY_SIZE} bytes, not {len(secret)}")
    return DocAccess.WRITE, secret


def _encode_capability(ticket: DocTicket) -> bytes:
    if ticket.access is None:
        raise LocalProtocolError("this ticket does not say if its key is a secret or an id")
    key = encode_byte_string(ticket.key) if ticket.access is DocAccess.WRITE else ticket.key
    return encode_varint(ticket.access) + key


def _write(forms: Sequence[_Form[TicketT]], ticket: TicketT, generation: Generation) -> str:
    for form in forms:
        if generation in form.generations:
            return form.prefix + encode_base32(form.write(ticket))
    raise LocalProtocolError(f"iroh {generation.value} has no such tickets")


class _Form(NamedTuple, Generic[TicketT]):
    """One way to write one kind of ticket."""

    prefix: str
    generations: tuple[Generation, ...]
    read: Callable[[Reader], TicketT]
    write: Callable[[TicketT], bytes]


_NODE_FORMS = [
    _Form("endpoint", (Generation.V0_94,), _read_node_set, _write_node_set),
    _Form("node", (Generation.V0_12,), _read_node_url, _write_node_url),
]
_BLOB_FORMS = [
    _Form("blob", (Generation.V0_12,), _read_blob_0_12, _write_blob_0_12),
    _Form("blob", (Generation.V0_9, Generation.V0_10), _read_blob_0_9, _write_blob_0_9),
    _Form("", (Generation.V0_6,), _read_blob_0_6, _write_blob_0_6),
]
_DOC_FORMS = [
    _Form("doc", (Generation.V0_12,), _read_doc_0_12, _write_doc_0_12),
    _Form("doc", (Generation.V0_10,), _read_doc_0_10, _write_doc_0_10),
    _Form("doc", (Generation.V0_9,), _read_doc_0_6, _write_doc_0_6),
    _Form("", (Generation.V0_6,), _read_doc_0_6, _write_doc_0_6),
]
_ALL_FORMS: list[_Form[NodeTicket] | _Form[BlobTicket] | _Form[DocTicket]] = [
    *_NODE_FORMS,
    *_BLOB_FORMS,
    *_DOC_FORMS,
]
