"""The connections of an endpoint: each event of the machine to whom it concerns."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import anyio

from iroh_anyio.connection import Connection
from iroh_anyio.driver import Driver
from iroh_anyio.link import Link
from iroh_anyio.quic.endpoint_machine import EndpointMachine
from iroh_anyio.quic.events import (
    CloseReason,
    ConnectionClosed,
    ConnectionEstablished,
    EndpointEvent,
    QuicDatagramReceived,
    SendingStopped,
    StreamDataReceived,
    StreamDelivered,
    StreamOpened,
    StreamReset,
    StreamSendable,
)
from iroh_anyio.signals import Signal
from iroh_proto.address import NodeAddr
from iroh_proto.key import NodeId
from iroh_proto.magicsock import PathChanged

logger = logging.getLogger("iroh_anyio.endpoint")

ACCEPT_BACKLOG = 256
"""Connections kept until the application accepts them; more are closed. One that is over by then
makes room for another."""

BACKLOG_FULL_CODE = 0
BACKLOG_FULL_REASON = "too many connections wait to be accepted"


class Dial:
    """A connect attempt that somebody waits for."""

    __slots__ = ("answered", "connection", "number", "reason")

    def __init__(self, number: int) -> None:
        self.number = number
        self.answered = anyio.Event()
        self.connection: Connection | None = None
        self.reason: CloseReason | None = None


class ConnectionTable:
    """All connections of one machine.

    ``handlers`` are the event types it takes. ``incoming`` are those that nobody has accepted
    yet; ``arrived`` wakes who waits for one.
    """

    def __init__(self, machine: EndpointMachine, driver: Driver[EndpointEvent]) -> None:
        self._machine = machine
        self._driver = driver
        self._connections: dict[int, Connection] = {}
        self._by_node: dict[NodeId, set[Connection]] = {}
        self._dials: dict[int, Dial] = {}
        self.incoming: deque[Connection] = deque()
        self.arrived = Signal()
        self.handlers: dict[type, Callable[[Any], None]] = {
            StreamDataReceived: self._on_data,
            StreamSendable: self._on_sendable,
            StreamDelivered: self._on_delivered,
            StreamOpened: self._on_opened,
            StreamReset: self._on_reset,
            SendingStopped: self._on_stopped,
            QuicDatagramReceived: self._on_datagram,
            ConnectionEstablished: self._on_established,
            ConnectionClosed: self._on_closed,
            PathChanged: self._on_path,
        }

    def __len__(self) -> int:
        return len(self._connections) + len(self._dials)

    def dial(self, addr: NodeAddr, *, alpn: bytes) -> Dial:
        """Begin to dial a node. To be ended by :meth:`end_dial`.

        :raises LocalProtocolError: if it cannot be dialled.
        """
        number = self._machine.connect(addr, alpn=alpn, now=self._driver.now())
        dial = self._dials[number] = Dial(number)
        self._driver.flush()
        return dial

    def end_dial(self, dial: Dial, *, give_up: bool) -> None:
        """Forget an attempt. If it is given up, whatever may have come of it is closed."""
        del self._dials[dial.number]
        if give_up and dial.reason is None:
            self._machine.close_connection(dial.number, 0, "", now=self._driver.now())
            self._driver.flush()

    def close_all(self, reason: CloseReason) -> None:
        """Note that everything is over, for a reason that the machine did not give."""
        for connection in list(self._connections.values()):
            connection.note_closed(reason)
        self._connections.clear()
        self._by_node.clear()
        self.incoming.clear()
        self.wake()

    def wake(self) -> None:
        """Wake those who wait for a connection, to look whether there can be one."""
        self.arrived.set()
        for dial in self._dials.values():
            dial.answered.set()

    def _on_established(self, event: ConnectionEstablished) -> None:
        dial = self._dials.get(event.connection)
        if not event.incoming and dial is None:
            return  # the attempt was given up, and the connection is closed already
        if event.incoming and not self._make_room():
            logger.warning("closing a connection: %s", BACKLOG_FULL_REASON)
            self._machine.close_connection(
                event.connection, BACKLOG_FULL_CODE, BACKLOG_FULL_REASON, now=self._driver.now()
            )
            return
        connection = Connection(
            Link(self._machine, self._driver, event.connection),
            remote_node_id=event.node_id,
            alpn=event.alpn,
            incoming=event.incoming,
        )
        self._connections[event.connection] = connection
        self._by_node.setdefault(event.node_id, set()).add(connection)
        way = "by" if event.incoming else "to"
        logger.info("connected %s node %s", way, event.node_id.fmt_short())
        if dial is not None:
            dial.connection = connection
            dial.answered.set()
        else:
            self.incoming.append(connection)
            self.arrived.set()

    def _make_room(self) -> bool:
        """Say whether one more may wait to be accepted."""
        if len(self.incoming) < ACCEPT_BACKLOG:
            return True
        # Or a peer that comes and goes would shut everybody out. What it has sent is lost with it.
        for connection in self.incoming:
            if connection.close_reason is not None:
                self.incoming.remove(connection)
                return True
        return False

    def _on_closed(self, event: ConnectionClosed) -> None:
        dial = self._dials.get(event.connection)
        if dial is not None:
            dial.reason = event.reason
            dial.answered.set()
        connection = self._connections.pop(event.connection, None)
        if connection is None:
            return
        same_node = self._by_node[connection.remote_node_id]
        same_node.discard(connection)
        if not same_node:
            del self._by_node[connection.remote_node_id]
        connection.note_closed(event.reason)
        logger.info("%r: %s: %s", connection, event.reason.kind, event.reason.text)

    def _on_path(self, event: PathChanged) -> None:
        path = event.path
        logger.info("node %s: path %s %s", event.node_id.fmt_short(), path.kind, path.addr)
        for connection in self._by_node.get(event.node_id, ()):
            connection.note_path(path)

    # A connection of which nobody was told has no one to take its news.

    def _on_opened(self, event: StreamOpened) -> None:
        if (connection := self._connections.get(event.connection)) is not None:
            connection.note_opened(event)

    def _on_data(self, event: StreamDataReceived) -> None:
        if (connection := self._connections.get(event.connection)) is not None:
            connection.note_data(event)

    def _on_reset(self, event: StreamReset) -> None:
        if (connection := self._connections.get(event.connection)) is not None:
            connection.note_reset(event)

    def _on_stopped(self, event: SendingStopped) -> None:
        if (connection := self._connections.get(event.connection)) is not None:
            connection.note_stopped(event)

    def _on_delivered(self, event: StreamDelivered) -> None:
        if (connection := self._connections.get(event.connection)) is not None:
            connection.note_delivered(event)

    def _on_sendable(self, event: StreamSendable) -> None:
        if (connection := self._connections.get(event.connection)) is not None:
            connection.note_sendable(event)

    def _on_datagram(self, event: QuicDatagramReceived) -> None:
        if (connection := self._connections.get(event.connection)) is not None:
            connection.note_datagram(event)
