"""The exceptions of endpoints, connections and streams. Each says what to do about it.

What the peer and the network do is an :class:`EndpointError`. Misuse is not: it raises
:class:`~iroh_proto.errors.LocalProtocolError`, :class:`TypeError`, :class:`ValueError` or
:class:`RuntimeError`; on a stream that this side has ended, :class:`anyio.ClosedResourceError`, and
while another task uses it, :class:`anyio.BusyResourceError`. ``bind`` raises :class:`OSError` for
sockets and files, and :class:`~iroh_proto.errors.DecodeError` for texts that do not parse, too.

They are anyio's exceptions too where those fit, so that code written for any
:class:`anyio.abc.ByteStream` need not know them: what this side closed raises
:class:`anyio.ClosedResourceError`, what the peer or the network ended raises
:class:`anyio.BrokenResourceError`, and the orderly end of a stream is :class:`anyio.EndOfStream`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import anyio

if TYPE_CHECKING:
    from iroh_anyio.quic.events import CloseReason
    from iroh_proto.key import NodeId


class EndpointError(Exception):
    """Base of what the peer and the network do, and of what this side has closed."""


class EndpointClosed(EndpointError, anyio.ClosedResourceError):
    """The endpoint was closed, or its ``async with`` block was left or not yet entered."""


class ConnectError(EndpointError):
    """A connection could not be established.

    ``node_id`` is who was dialled, ``code`` the QUIC error code if there was one.
    """

    def __init__(self, message: str, node_id: NodeId, code: int | None = None) -> None:
        super().__init__(message)
        self.node_id = node_id
        self.code = code


class NodeUnreachable(ConnectError):
    """Nothing at the known addresses answered as the node, or no address is known."""


class ConnectTimeout(NodeUnreachable, TimeoutError):
    """The time limit of the attempt passed before the node answered."""


class AlpnNotServed(ConnectError):
    """The node answered, but does not serve the protocol asked for."""


class WrongIdentity(ConnectError):
    """Who answered could not prove to be the node, or did not accept our proof."""


class ConnectRefused(ConnectError):
    """The node answered that it takes no connection now."""


class ConnectionFailed(ConnectError):
    """The handshake broke off for another reason."""


class ConnectionClosed(EndpointError):
    """The connection is over. ``code`` and ``reason`` are what the closing side gave.

    ``by_peer`` says which side that was.
    """

    def __init__(self, message: str, code: int, reason: str, *, by_peer: bool) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.by_peer = by_peer


class ConnectionClosedByPeer(ConnectionClosed, anyio.BrokenResourceError):
    """The peer's application closed the connection."""


class ConnectionLost(ConnectionClosed, anyio.BrokenResourceError):
    """The connection ended without either application's will: silence, or a protocol error."""


class ConnectionClosedHere(ConnectionClosed, anyio.ClosedResourceError):
    """This side closed the connection."""


class StreamReset(EndpointError, anyio.BrokenResourceError):
    """The peer gave up sending on the stream, with ``code``; what is missing will not come."""

    def __init__(self, code: int) -> None:
        super().__init__(
            f"the peer reset the stream with code {code}: what is not yet read is lost; "
            "open another stream to try again"
        )
        self.code = code


class StreamStopped(EndpointError, anyio.BrokenResourceError):
    """The peer wants no more of the stream, with ``code``."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the peer stopped reading the stream with code {code}: send it no more")
        self.code = code


class TooManyStreams(EndpointError):
    """More streams wait for the peer to allow them than are kept."""


class DatagramTooLarge(EndpointError, ValueError):
    """A datagram exceeds what fits one packet. ``limit`` is the room in bytes, 0 if there is none.

    It is 0 when the peer takes no datagrams at all.
    """

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"a datagram of {size} bytes does not fit, {limit} do: send less, or use a stream"
            if limit
            else "the peer takes no datagrams: use a stream"
        )
        self.limit = limit


def connect_error(
    node_id: NodeId, alpn: bytes, reason: CloseReason, derp_problem: str = ""
) -> ConnectError:
    """Return the exception for a dial that ended so.

    :param derp_problem: what is wrong with the DERP server at which the node was to be met.
    """
    node = node_id.fmt_short()
    detail = f" ({reason.text})" if reason.text else ""
    match reason.kind:
        case "alpn":
            return AlpnNotServed(
                f"node {node} does not serve the protocol {alpn!r}: check the ALPN on both "
                "sides, and that the other program is running",
                node_id,
                reason.code,
            )
        case "identity":
            return WrongIdentity(
                f"who answered for node {node} did not prove to be it, or did not accept our "
                f"key{detail}: check the node id and its address",
                node_id,
                reason.code,
            )
        case "refused":
            return ConnectRefused(
                f"node {node} takes no connection now{detail}: try again later, or ask its "
                "owner whether it lets you in",
                node_id,
                reason.code,
            )
        case "unreachable" | "idle":
            return unreachable(node_id, "" if derp_problem else reason.text, derp_problem)
        case "application":
            return ConnectRefused(
                f"node {node} closed the connection with code {reason.code}{detail}: ask its "
                "owner why",
                node_id,
                reason.code,
            )
        case "local":
            return ConnectionFailed(f"the attempt to reach node {node} was given up", node_id)
        case _:
            return ConnectionFailed(
                f"the handshake with node {node} failed, QUIC error {reason.code:#x}{detail}: "
                "try again; if it stays, the peer is not compatible",
                node_id,
                reason.code,
            )


def unreachable(node_id: NodeId, detail: str = "", derp_problem: str = "") -> NodeUnreachable:
    """Return the exception for a node that did not answer."""
    why = f" ({detail})" if detail else ""
    return NodeUnreachable(
        f"node {node_id.fmt_short()} did not answer{why}{_cause_and_advice(derp_problem)}", node_id
    )


def connect_timeout(
    node_id: NodeId, timeout: float | None, derp_problem: str = ""
) -> ConnectTimeout:
    """Return the exception for a dial that nobody answered within its limit."""
    within = "" if timeout is None else f" within {timeout:g} s"
    return ConnectTimeout(
        f"node {node_id.fmt_short()} did not answer{within}{_cause_and_advice(derp_problem)}",
        node_id,
    )


def _cause_and_advice(derp_problem: str) -> str:
    if derp_problem:
        return (
            f" ({derp_problem}): check the DERP server, or give another one or a direct address "
            "where the node can be met"
        )
    return ": check that it is online, and give a DERP URL or a direct address where it can be met"


def no_address(node_id: NodeId) -> NodeUnreachable:
    """Return the exception for a node of which nothing but its id is known."""
    return NodeUnreachable(
        f"no address of node {node_id.fmt_short()} is known: give a DERP URL or a direct address "
        "where it can be met",
        node_id,
    )


def raise_closed(reason: CloseReason) -> NoReturn:
    """Raise the exception for using a connection that ended so.

    :raises ConnectionClosed: always, as one of its kinds.
    """
    detail = f": {reason.text}" if reason.text else ""
    if reason.kind == "local" and not reason.by_peer:
        raise ConnectionClosedHere(
            f"this side closed the connection{detail}; connect again to go on",
            reason.code,
            reason.text,
            by_peer=False,
        )
    if reason.kind == "application" and reason.by_peer:
        raise ConnectionClosedByPeer(
            f"the peer closed the connection with code {reason.code}{detail}",
            reason.code,
            reason.text,
            by_peer=True,
        )
    what = (
        "nothing came from the peer for the idle time-out"
        if reason.kind == "idle"
        else (f"QUIC error {reason.code:#x}{detail}")
    )
    raise ConnectionLost(
        f"the connection was lost, {what}; connect again to go on",
        reason.code,
        reason.text,
        by_peer=reason.by_peer,
    )
