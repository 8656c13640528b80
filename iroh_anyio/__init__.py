"""Iroh endpoints on asyncio and trio.

Begin with :class:`MagicEndpoint`: ``bind`` makes one, ``connect`` and ``accept`` give a
:class:`Connection`, which gives streams and datagrams. What the peer and the network do to them is
an :class:`EndpointError`; :mod:`iroh_anyio.errors` says what else is raised.

Names are loaded when they are first used, so that ``import iroh_anyio.quic`` works without anyio
installed, and a missing extra is named rather than the module that it lacks.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iroh_anyio.connection import Connection
    from iroh_anyio.derper import Derper, DerperConfig
    from iroh_anyio.endpoint import MagicEndpoint
    from iroh_anyio.errors import (
        AlpnNotServed,
        ConnectError,
        ConnectionClosed,
        ConnectionClosedByPeer,
        ConnectionClosedHere,
        ConnectionFailed,
        ConnectionLost,
        ConnectRefused,
        ConnectTimeout,
        DatagramTooLarge,
        EndpointClosed,
        EndpointError,
        NodeUnreachable,
        StreamReset,
        StreamStopped,
        TooManyStreams,
        WrongIdentity,
    )
    from iroh_anyio.key_file import load_or_create_secret_key
    from iroh_anyio.proxy import HttpProxy
    from iroh_anyio.quic.events import CloseReason, ConnectionStats, EndpointEvent
    from iroh_anyio.quic.options import AcceptFilter, EndpointOptions, IncomingAttempt
    from iroh_anyio.streams import BiStream, ReceiveStream, SendStream
    from iroh_proto.magicsock import PathInfo, RemoteInfo

_MODULES = {
    "MagicEndpoint": "iroh_anyio.endpoint",
    "EndpointOptions": "iroh_anyio.quic.options",
    "IncomingAttempt": "iroh_anyio.quic.options",
    "AcceptFilter": "iroh_anyio.quic.options",
    "EndpointEvent": "iroh_anyio.quic.events",
    "CloseReason": "iroh_anyio.quic.events",
    "ConnectionStats": "iroh_anyio.quic.events",
    "PathInfo": "iroh_proto.magicsock",
    "RemoteInfo": "iroh_proto.magicsock",
    "Connection": "iroh_anyio.connection",
    "BiStream": "iroh_anyio.streams",
    "ReceiveStream": "iroh_anyio.streams",
    "SendStream": "iroh_anyio.streams",
    "Derper": "iroh_anyio.derper",
    "DerperConfig": "iroh_anyio.derper",
    "HttpProxy": "iroh_anyio.proxy",
    "load_or_create_secret_key": "iroh_anyio.key_file",
    "EndpointError": "iroh_anyio.errors",
    "EndpointClosed": "iroh_anyio.errors",
    "ConnectError": "iroh_anyio.errors",
    "NodeUnreachable": "iroh_anyio.errors",
    "ConnectTimeout": "iroh_anyio.errors",
    "AlpnNotServed": "iroh_anyio.errors",
    "WrongIdentity": "iroh_anyio.errors",
    "ConnectRefused": "iroh_anyio.errors",
    "ConnectionFailed": "iroh_anyio.errors",
    "ConnectionClosed": "iroh_anyio.errors",
    "ConnectionClosedByPeer": "iroh_anyio.errors",
    "ConnectionClosedHere": "iroh_anyio.errors",
    "ConnectionLost": "iroh_anyio.errors",
    "StreamReset": "iroh_anyio.errors",
    "StreamStopped": "iroh_anyio.errors",
    "TooManyStreams": "iroh_anyio.errors",
    "DatagramTooLarge": "iroh_anyio.errors",
}

__all__ = [
    "AcceptFilter",
    "AlpnNotServed",
    "BiStream",
    "CloseReason",
    "ConnectError",
    "ConnectRefused",
    "ConnectTimeout",
    "Connection",
    "ConnectionClosed",
    "ConnectionClosedByPeer",
    "ConnectionClosedHere",
    "ConnectionFailed",
    "ConnectionLost",
    "ConnectionStats",
    "DatagramTooLarge",
    "Derper",
    "DerperConfig",
    "EndpointClosed",
    "EndpointError",
    "EndpointEvent",
    "EndpointOptions",
    "HttpProxy",
    "IncomingAttempt",
    "MagicEndpoint",
    "NodeUnreachable",
    "PathInfo",
    "ReceiveStream",
    "RemoteInfo",
    "SendStream",
    "StreamReset",
    "StreamStopped",
    "TooManyStreams",
    "WrongIdentity",
    "load_or_create_secret_key",
]

_EXTRA = frozenset({"aioquic", "anyio", "psutil"})


def __getattr__(name: str) -> object:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from iroh_proto.extras import needs_extra  # pytest loads this package, whatever it tests

    with needs_extra(f"iroh_anyio.{name}", "anyio", _EXTRA):
        value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
