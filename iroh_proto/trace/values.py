"""Values as JSON: arguments that can be read back, and events to look at.

What JSON has itself stands as it is, and a sequence is a list. Anything else that can be an
argument is an object with one member, whose name begins with ``$``::

    {"$bytes": "00ff"}                {"$udp": "192.0.2.1:4242"}
    {"$node": "3b6a…"}                {"$url": "https://derp.example/"}
    {"$derp": [url, node]}            {"$secret": "9d61…"}
    {"$node_addr": [node, url or null, [address, …]]}
    {"$derp_map": [fields of a DerpNode, …]}
    {"$address_server": fields of an AddressServer}

``{"$secret_of": "3b6a…"}`` stands for the secret key of a node, which is not told.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias, cast

from iroh_proto.address import DerpAddress, DerpUrl, NodeAddr, UdpAddress
from iroh_proto.derp.map import DerpMap, DerpNode
from iroh_proto.errors import DecodeError
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.paths.own_address_events import AddressServer

Json: TypeAlias = dict[str, object]

RESERVED: Final = ("time", "at", "kind", "drawn")
"""Members that any line may have. A field of such a name has ``event_`` before it."""


QUOTE_LIMIT: Final = 80
"""Characters of a value that an error message repeats: a line of a terminal."""


def encode_value(value: object) -> object:
    """Return what :func:`decode_value` makes the value of again.

    Of a value of another class only the name of the class is kept.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    for kind, (name, encode) in _ENCODERS.items():
        if isinstance(value, kind):
            return {name: encode(value)}
    if isinstance(value, list | tuple):
        return [encode_value(item) for item in value]
    return {"$unknown": type(value).__name__}


def decode_value(value: object) -> object:
    """Return the value that :func:`encode_value` was given; a list comes back as a tuple.

    :raises DecodeError: if it is no such value.
    """
    if isinstance(value, list):
        try:
            return tuple([decode_value(item) for item in value])
        except RecursionError:
            raise DecodeError("values are nested too deeply") from None
    if not isinstance(value, dict):
        return value
    try:
        [(name, inner)] = value.items()
        return _DECODERS[name](inner)
    except DecodeError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError):
        raise DecodeError(f"no value: {quoted(value)}") from None


def fields_of(value: object) -> Json:
    """Return the fields of an event, to be read by people and compared with others."""
    if not dataclasses.is_dataclass(value):
        return {"value": repr(value)}
    fields = _fields(value)
    return {f"event_{name}" if name in RESERVED else name: fields[name] for name in fields}


def plain(value: object) -> object:
    """Return a value as JSON that is easy to read: addresses and the like are text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, NodeId):
        return str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, UdpAddress | DerpAddress):
        return str(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, DerpUrl) or not dataclasses.is_dataclass(value):
        return str(value)
    return _fields(value)


def quoted(value: object) -> str:
    """Return a value as JSON, cut short if it is long."""
    try:
        text = json.dumps(value, default=str)
    except (ValueError, RecursionError):
        return "what is nested too deeply"
    return text if len(text) <= QUOTE_LIMIT else f"{text[:QUOTE_LIMIT]}…"


def _fields(value: object) -> Json:
    names = [field.name for field in dataclasses.fields(value)]  # type: ignore[arg-type]
    return {name: plain(getattr(value, name)) for name in names}


def _encode_node_addr(addr: NodeAddr) -> object:
    url = None if addr.derp_url is None else str(addr.derp_url)
    return [str(addr.node_id), url, [str(direct) for direct in addr.direct_addresses]]


def _decode_node_addr(value: object) -> NodeAddr:
    node_id, url, direct = cast("tuple[str, str | None, list[str]]", value)
    return NodeAddr(NodeId.from_str(node_id), derp_url=url, direct_addresses=direct)


def _decode_derp_address(value: object) -> DerpAddress:
    url, node_id = cast("tuple[str, str]", value)
    return DerpAddress(DerpUrl.from_str(url), NodeId.from_str(node_id))


# In this order: a node id is bytes, too, and addresses are tuples.
_ENCODERS: Final[Mapping[type, tuple[str, Callable[..., object]]]] = {
    NodeId: ("$node", str),
    UdpAddress: ("$udp", str),
    DerpAddress: ("$derp", lambda addr: [str(addr.url), str(addr.node_id)]),
    DerpUrl: ("$url", str),
    NodeAddr: ("$node_addr", _encode_node_addr),
    DerpMap: ("$derp_map", lambda derp_map: [_fields(node) for node in derp_map]),
    AddressServer: ("$address_server", lambda server: _fields(server)),
    SecretKey: ("$secret", lambda secret: secret.to_bytes().hex()),
    bytes: ("$bytes", bytes.hex),
}

_DECODERS: Final[Mapping[str, Callable[..., object]]] = {
    "$node": NodeId.from_str,
    "$udp": UdpAddress.from_str,
    "$derp": _decode_derp_address,
    "$url": DerpUrl.from_str,
    "$node_addr": _decode_node_addr,
    "$derp_map": lambda nodes: DerpMap(DerpNode(**node) for node in nodes),
    "$address_server": lambda fields: AddressServer(**fields),
    "$secret": lambda text: SecretKey(bytes.fromhex(text)),
    "$bytes": bytes.fromhex,
}
