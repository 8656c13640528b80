"""Every end of a connection has its exception, and every exception says what to do."""

from __future__ import annotations

from typing import get_args

import anyio
import pytest

from iroh_anyio import errors
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
    EndpointClosed,
    EndpointError,
    NodeUnreachable,
    WrongIdentity,
    connect_error,
    raise_closed,
)
from iroh_anyio.quic.events import CloseKind, CloseReason
from iroh_proto import SecretKey

NODE_ID = SecretKey.from_bytes(bytes(32)).public
ADVICE = ("check", "try again", "ask its owner", "given up")


def reason(kind: CloseKind, *, by_peer: bool = True) -> CloseReason:
    return CloseReason(kind=kind, code=0x178, text="because", by_peer=by_peer)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("alpn", AlpnNotServed),
        ("identity", WrongIdentity),
        ("refused", ConnectRefused),
        ("application", ConnectRefused),
        ("unreachable", NodeUnreachable),
        ("idle", NodeUnreachable),
        ("local", ConnectionFailed),
        ("transport", ConnectionFailed),
    ],
)
def test_a_dial_that_fails_says_why_and_what_to_do(
    kind: CloseKind, expected: type[ConnectError]
) -> None:
    error = connect_error(NODE_ID, b"proto/1", reason(kind))
    assert type(error) is expected
    assert error.node_id == NODE_ID
    assert NODE_ID.fmt_short() in str(error)
    assert any(advice in str(error) for advice in ADVICE)


def test_every_kind_of_end_is_covered() -> None:
    for kind in get_args(CloseKind):
        assert isinstance(connect_error(NODE_ID, b"x", reason(kind)), ConnectError)
        with pytest.raises(ConnectionClosed):
            raise_closed(reason(kind))


@pytest.mark.parametrize(
    ("kind", "by_peer", "expected", "base"),
    [
        ("application", True, ConnectionClosedByPeer, anyio.BrokenResourceError),
        ("local", False, ConnectionClosedHere, anyio.ClosedResourceError),
        ("idle", False, ConnectionLost, anyio.BrokenResourceError),
        ("transport", True, ConnectionLost, anyio.BrokenResourceError),
        ("identity", True, ConnectionLost, anyio.BrokenResourceError),
    ],
)
def test_a_connection_that_is_over_says_why(
    kind: CloseKind, by_peer: bool, expected: type[ConnectionClosed], base: type[Exception]
) -> None:
    with pytest.raises(expected) as caught:
        raise_closed(reason(kind, by_peer=by_peer))
    assert isinstance(caught.value, base)
    assert (caught.value.code, caught.value.reason) == (0x178, "because")
    assert caught.value.by_peer is by_peer


def test_one_base_catches_them_all() -> None:
    for name, value in vars(errors).items():
        if isinstance(value, type) and value.__module__ == errors.__name__:
            assert issubclass(value, EndpointError), name
    assert issubclass(ConnectTimeout, TimeoutError)
    assert issubclass(EndpointClosed, anyio.ClosedResourceError)
