"""How each generation of iroh writes down, in postcard, where a node is.

Three forms exist. All write socket addresses as ``00`` + 4 or ``01`` + 16 bytes + varint port,
sorted and without doubles, and leave IPv6 scopes out.

=========  ============  ======================================================================
form       releases      layout
=========  ============  ======================================================================
``REGION`` 0.5 to 0.11   ``20`` + id (32) | option: varint DERP region | socket addresses
``URL``    0.12 to 0.93  id (32) | option: DERP URL | socket addresses
``SET``    0.94 onward   id (32) | sequence of: ``00`` + URL, ``01`` + socket address, or
                         ``02`` + varint id + byte string (a custom transport)
=========  ============  ======================================================================

Source: iroh v0.6.0 and v0.12.0 ``iroh-net/src/magic_endpoint.rs``, v0.35.0
``iroh-base/src/node_addr.rs``, v1.0.3 ``iroh-base/src/endpoint_addr.rs``.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from iroh_proto.address import DerpUrl, NodeAddr, UdpAddress
from iroh_proto.errors import DecodeError, LocalProtocolError
from iroh_proto.key import KEY_SIZE, NodeId
from iroh_proto.wire import (
    Reader,
    encode_byte_string,
    encode_option,
    encode_sequence,
    encode_string,
    encode_varint,
)

DERP_REGION_MAX = 0xFFFF

_RELAY, _IP, _CUSTOM = range(3)
_IP_SIZES = (4, 16)  # by the variant of a socket address


class RecordForm(Enum):
    """The layouts of a node's record, by what they say of DERP servers."""

    REGION = "0.5 to 0.11"
    URL = "0.12 to 0.93"
    SET = "0.94 and later"


class CustomAddress(NamedTuple):
    """An address of a transport that this package does not speak (0.97 and later)."""

    transport_id: int
    data: bytes

    def encode(self) -> bytes:
        """Return it as postcard has it, in releases after 1.0.3."""
        return encode_varint(self.transport_id) + encode_byte_string(self.data)

    def __str__(self) -> str:
        return f"{self.transport_id:x}_{self.data.hex()}"


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node's address with what only some generations can say.

    ``node_addr`` is what one dials with. ``derp_region`` is the number of a DERP server in a map
    that both sides had to have (up to 0.11). ``more_derp_urls`` are the second and later servers
    that the newest form may name, ``custom_addresses`` those of transports unknown here.
    """

    node_addr: NodeAddr
    derp_region: int | None = None
    more_derp_urls: tuple[DerpUrl, ...] = ()
    custom_addresses: tuple[CustomAddress, ...] = ()

    @staticmethod
    def of(node: NodeAddr | NodeRecord) -> NodeRecord:
        """Return a record of an address, or the record itself."""
        return NodeRecord(node) if isinstance(node, NodeAddr) else node

    @property
    def derp_urls(self) -> tuple[DerpUrl, ...]:
        """All DERP servers that are named by URL."""
        first = self.node_addr.derp_url
        return self.more_derp_urls if first is None else (first, *self.more_derp_urls)

    @property
    def is_empty(self) -> bool:
        """Whether only the node id is known."""
        known = self.node_addr.direct_addresses or self.derp_urls or self.custom_addresses
        return not known and self.derp_region is None

    def encode(self, form: RecordForm) -> bytes:
        """Return the record in one of the forms, without what that form cannot say.

        :raises LocalProtocolError: if the DERP region is no 16-bit number.
        """
        if form is RecordForm.REGION:
            return self._encode_region()
        if form is RecordForm.URL:
            return self._encode_url()
        return self._encode_set()

    def _encode_region(self) -> bytes:
        region = self.derp_region
        if region is not None and not 0 <= region <= DERP_REGION_MAX:
            raise LocalProtocolError(f"a DERP region is 0 to {DERP_REGION_MAX}, not {region}")
        return (
            encode_byte_string(self.node_addr.node_id)
            + encode_option(None if region is None else encode_varint(region))
            + encode_sequence(map(encode_udp_address, self.node_addr.direct_addresses))
        )

    def _encode_url(self) -> bytes:
        url = self.node_addr.derp_url
        return (
            self.node_addr.node_id
            + encode_option(None if url is None else encode_string(url.to_rooted_str()))
            + encode_sequence(map(encode_udp_address, self.node_addr.direct_addresses))
        )

    def _encode_set(self) -> bytes:
        urls = sorted({str(url) for url in self.derp_urls})
        addresses = self.node_addr.direct_addresses
        custom = sorted(set(self.custom_addresses))
        items = [
            *(encode_varint(_RELAY) + encode_string(url) for url in urls),
            *(encode_varint(_IP) + encode_udp_address(address) for address in addresses),
            *(encode_varint(_CUSTOM) + address.encode() for address in custom),
        ]
        return self.node_addr.node_id + encode_sequence(items)


def read_node_record(reader: Reader, form: RecordForm) -> NodeRecord:
    """Read a record in one of the forms.

    :raises DecodeError: naming what is wrong.
    """
    if form is RecordForm.REGION:
        return _read_region(reader)
    if form is RecordForm.URL:
        return _read_url(reader)
    return _read_set(reader)


def encode_udp_address(address: UdpAddress) -> bytes:
    """Return a socket address as postcard has it."""
    packed = address.packed_ip
    return encode_varint(_IP_SIZES.index(len(packed))) + packed + encode_varint(address.port)


def read_udp_address(reader: Reader) -> UdpAddress:
    """Read a socket address.

    :raises DecodeError: if it is cut short or neither IPv4 nor IPv6.
    """
    variant = reader.varint(32)
    if variant >= len(_IP_SIZES):
        raise DecodeError(f"a socket address is variant 0 or 1, not {variant}")
    ip = ipaddress.ip_address(reader.take(_IP_SIZES[variant]))
    return UdpAddress.of(ip, reader.varint(16))


def _read_region(reader: Reader) -> NodeRecord:
    node_id = NodeId(reader.byte_string())
    region = reader.option(lambda: reader.varint(16))
    addresses = reader.sequence(lambda: read_udp_address(reader))
    return NodeRecord(NodeAddr(node_id, direct_addresses=addresses), derp_region=region)


def _read_url(reader: Reader) -> NodeRecord:
    node_id = NodeId(reader.take(KEY_SIZE))
    url = reader.option(lambda: _read_derp_url(reader))
    addresses = reader.sequence(lambda: read_udp_address(reader))
    return NodeRecord(NodeAddr(node_id, derp_url=url, direct_addresses=addresses))


def _read_set(reader: Reader) -> NodeRecord:
    node_id = NodeId(reader.take(KEY_SIZE))
    items = reader.sequence(lambda: _read_transport_address(reader))
    # In the order of upstream's sets, whatever the order of the items.
    urls = sorted({item for item in items if isinstance(item, DerpUrl)}, key=str)
    addresses = [item for item in items if isinstance(item, UdpAddress)]
    custom = {item for item in items if isinstance(item, CustomAddress)}
    return NodeRecord(
        NodeAddr(node_id, derp_url=urls[0] if urls else None, direct_addresses=addresses),
        more_derp_urls=tuple(urls[1:]),
        custom_addresses=tuple(sorted(custom)),
    )


def _read_transport_address(reader: Reader) -> DerpUrl | UdpAddress | CustomAddress:
    variant = reader.varint(32)
    if variant == _RELAY:
        return _read_derp_url(reader)
    if variant == _IP:
        return read_udp_address(reader)
    if variant == _CUSTOM:
        return CustomAddress(reader.varint(), reader.byte_string())
    raise DecodeError(f"a transport address is variant 0 to 2, not {variant}")


def _read_derp_url(reader: Reader) -> DerpUrl:
    text = reader.string()
    try:
        return DerpUrl.from_str(text)
    except DecodeError:
        # Without the text, which is part of a ticket.
        raise DecodeError("a DERP server is named by what is no URL of one") from None
