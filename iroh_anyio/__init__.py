"""Iroh endpoints on asyncio and trio.

Names are loaded when they are first used, so that ``import iroh_anyio.quic`` works without anyio
installed, and a missing extra is named rather than the module that it lacks.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iroh_anyio.connection import Connection
    from iroh_anyio.derper import Derper
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
    from iroh_anyio.quic.options import EndpointOptions, IncomingAttempt
    from iroh_anyio.streams import BiStream, ReceiveStream, SendStream

_MODULES = {
    "MagicEndpoint": "endpoint",
    "EndpointOptions": "quic.options",
    "IncomingAttempt": "quic.options",
    "Connection": "connection",
    "BiStream": "streams",
    "ReceiveStream": "streams",
    "SendStream": "streams",
    "Derper": "derper",
    "EndpointError": "errors",
    "EndpointClosed": "errors",
    "ConnectError": "errors",
    "NodeUnreachable": "errors",
    "ConnectTimeout": "errors",
    "AlpnNotServed": "errors",
    "WrongIdentity": "errors",
    "ConnectRefused": "errors",
    "ConnectionFailed": "errors",
    "ConnectionClosed": "errors",
    "ConnectionClosedByPeer": "errors",
    "ConnectionClosedHere": "errors",
    "ConnectionLost": "errors",
    "StreamReset": "errors",
    "StreamStopped": "errors",
    "TooManyStreams": "errors",
    "DatagramTooLarge": "errors",
}

__all__ = [
    "AlpnNotServed",
    "BiStream",
    "ConnectError",
    "ConnectRefused",
    "ConnectTimeout",
    "Connection",
    "ConnectionClosed",
    "ConnectionClosedByPeer",
    "ConnectionClosedHere",
    "ConnectionFailed",
    "ConnectionLost",
    "DatagramTooLarge",
    "Derper",
    "EndpointClosed",
    "EndpointError",
    "EndpointOptions",
    "IncomingAttempt",
    "MagicEndpoint",
    "NodeUnreachable",
    "ReceiveStream",
    "SendStream",
    "StreamReset",
    "StreamStopped",
    "TooManyStreams",
    "WrongIdentity",
]

_EXTRA = frozenset({"aioquic", "anyio", "psutil"})


def __getattr__(name: str) -> object:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f"{__name__}.{module}"), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _EXTRA:
            raise
        raise ModuleNotFoundError(
            f"iroh_anyio.{name} needs {error.name}: install the extra, "
            "pip install 'iroh-proto[anyio]'",
            name=error.name,
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
