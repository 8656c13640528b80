"""An endpoint of the simulated network, QUIC included, and a simple application on top of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from iroh_anyio.quic.endpoint_machine import EndpointMachine
from iroh_anyio.quic.events import (
    CloseReason,
    ConnectionClosed,
    ConnectionEstablished,
    QuicDatagramReceived,
    StreamDataReceived,
    StreamReset,
    StreamSendable,
)
from iroh_anyio.quic.options import EndpointOptions
from iroh_proto.address import NodeAddr, UdpAddress
from iroh_proto.derp.map import DerpMap
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.paths.select import PathInfo
from iroh_proto.testing.derper import ANY_ADDRESSES, key_of
from iroh_proto.testing.network import Host, Program
from iroh_proto.trace.tape import Recipe

UNIX_TIME = 1_700_000_000.0
"""Seconds since 1970 when machines begin, the simulated time added. One that is started again
begins with the same, which does no harm: certificates are valid for centuries."""

ANY_SOCKETS = tuple(UdpAddress(ip, 0) for ip in ANY_ADDRESSES)
"""One socket for each family, at any port."""

_UNIDIRECTIONAL = 2  # the bit of a stream's id (RFC 9000, section 2.1)

ResultT = TypeVar("ResultT")
StreamKey = tuple[int, int]


class SimulatedEndpoint:
    """One endpoint on a simulated host, and an application that consumes and keeps all it gets.

    The application knows streams by the numbers of their connection and their own. ``received``
    holds the bytes of each, ``ended`` those that came to their end, ``datagrams`` the QUIC
    datagrams of each connection. They are of the present machine, and begin anew with the next.

    :param secret_key: who it is; made from the host's name unless given.
    :param alpns: the protocols it serves.
    :param derp_map: the DERP servers it may make its home.
    :param options: settings of QUIC.
    :param udp: where its sockets are bound; a port of 0 is any free one.
    :param serve: gives the answer to a stream that a peer opened and ended, once it is there.
        Without it such streams are kept in ``received`` and not answered.
    :param on_event: called with each event, after the application has seen it.
    :param name: what the program is called on its host.
    :param keeps: whether the program keeps its events, and the application what it answered.
    """

    def __init__(
        self,
        host: Host,
        *,
        secret_key: SecretKey | None = None,
        alpns: Iterable[bytes] = (),
        derp_map: DerpMap | None = None,
        options: EndpointOptions | None = None,
        udp: Sequence[UdpAddress] = ANY_SOCKETS,
        serve: Callable[[bytes], bytes] | None = None,
        on_event: Callable[[object], None] | None = None,
        name: str = "endpoint",
        keeps: bool = True,
    ) -> None:
        self.host = host
        self.secret_key = secret_key or key_of(host)
        self.received: dict[StreamKey, bytearray] = {}
        self.datagrams: dict[int, list[bytes]] = {}
        self.ended: set[StreamKey] = set()
        self._unsent: dict[StreamKey, bytes] = {}
        self._opened: set[StreamKey] = set()
        self._reasons: dict[int, CloseReason] = {}
        self._established: dict[int, ConnectionEstablished] = {}
        self._on_established: dict[int, Callable[[int], None]] = {}
        self._serve = serve
        self._on_event = on_event
        self._keeps = keeps
        self.program: Program[EndpointMachine] = host.run(
            Recipe(
                EndpointMachine,
                secret_key=self.secret_key,
                alpns=tuple(alpns),
                derp_map=derp_map,
                unix_time=UNIX_TIME + self.now,
                options=options,
            ),
            udp=udp,
            begin=self._begin,
            on_event=self._take,
            name=name,
            keeps=keeps,
        )

    # Facts

    @property
    def machine(self) -> EndpointMachine:
        """The machine, for whatever else it can do; give it commands by :meth:`give`."""
        return self.program.machine

    @property
    def now(self) -> float:
        """The virtual time, in seconds."""
        return self.host.network.now

    @property
    def node_id(self) -> NodeId:
        """The id that others dial."""
        return self.secret_key.public

    @property
    def node_addr(self) -> NodeAddr:
        """All that is known so far of how to dial it."""
        return self.machine.node_addr

    def established(self) -> list[ConnectionEstablished]:
        """Return the connections whose handshake was completed, those that are over included."""
        return list(self._established.values())

    def is_established(self, connection: int) -> bool:
        """Say whether the handshake of a connection was completed."""
        return connection in self._established

    def close_reason(self, connection: int) -> CloseReason | None:
        """Return why a connection is over, ``None`` if it is not."""
        return self._reasons.get(connection)

    def path_to(self, peer: SimulatedEndpoint | NodeId) -> PathInfo:
        """Return where payload for a peer goes."""
        node_id = peer.node_id if isinstance(peer, SimulatedEndpoint) else peer
        return self.machine.magicsock.path_info(node_id)

    def seen(self, kind: type[ResultT]) -> list[ResultT]:
        """Return the events of one class, in their order."""
        return self.program.seen(kind)

    # Commands

    def give(self, command: Callable[[EndpointMachine, float], ResultT]) -> ResultT:
        """Give the machine a command: ``give(lambda machine, now: machine.close(now=now))``."""
        return self.program.give(command)

    def connect(
        self,
        addr: NodeAddr,
        *,
        alpn: bytes,
        on_established: Callable[[int], None] | None = None,
    ) -> int:
        """Dial a node and return the connection's number.

        :param on_established: called with that number when the handshake was completed.
        """

        def dial(machine: EndpointMachine, now: float) -> int:
            number = machine.connect(addr, alpn=alpn, now=now)
            if on_established is not None:
                self._on_established[number] = on_established
            return number

        return self.give(dial)

    def send(self, connection: int, data: bytes) -> int:
        """Send bytes on a stream of its own, and its end, as fast as there is room for them.

        :return: the id of the stream, on which the peer may answer.
        :raises LocalProtocolError: if the connection is not established, or over.
        """

        def begin(machine: EndpointMachine, now: float) -> int:
            stream_id = machine.open_stream(connection, bidirectional=True)
            self._opened.add((connection, stream_id))
            self._push((connection, stream_id), data)
            return stream_id

        return self.give(begin)

    def send_datagram(self, connection: int, data: bytes) -> None:
        """Send a QUIC datagram."""
        self.give(lambda machine, now: machine.send_datagram(connection, data, now=now))

    def close_connection(self, connection: int, code: int = 0, reason: str = "") -> None:
        """Close a connection."""
        self.give(lambda machine, now: machine.close_connection(connection, code, reason, now=now))

    # The application

    def _begin(self, machine: EndpointMachine, bound: Sequence[UdpAddress], now: float) -> None:
        for memory in (self.received, self.datagrams, self._unsent, self._reasons):
            memory.clear()
        for known in (self.ended, self._opened):
            known.clear()
        self._established.clear()
        self._on_established.clear()
        machine.start(bound, now=now)

    def _take(self, event: object) -> None:
        match event:
            case StreamDataReceived():
                self._take_data(event)
            case StreamReset():
                self.machine.consume(event.connection, event.stream_id, 0, now=self.now)
            case StreamSendable():
                key = event.connection, event.stream_id
                if key in self._unsent:
                    self._push(key, self._unsent.pop(key))
            case QuicDatagramReceived():
                self.datagrams.setdefault(event.connection, []).append(event.data)
            case ConnectionEstablished():
                self._established[event.connection] = event
                call = self._on_established.pop(event.connection, None)
                if call is not None:
                    call(event.connection)
            case ConnectionClosed():
                self._reasons[event.connection] = event.reason
                self._forget(event.connection)
        if self._on_event is not None:
            self._on_event(event)

    def _take_data(self, event: StreamDataReceived) -> None:
        key = event.connection, event.stream_id
        self.received.setdefault(key, bytearray()).extend(event.data)
        self.machine.consume(*key, len(event.data), now=self.now)
        if not event.end:
            return
        self.ended.add(key)
        if self._serve is not None and key not in self._opened and not key[1] & _UNIDIRECTIONAL:
            self._push(key, self._serve(bytes(self.received[key])))

    def _push(self, key: StreamKey, data: bytes) -> None:
        """Send as much as there is room for, and keep the rest."""
        room = self.machine.send_room(*key)
        self.machine.send_stream(*key, data[:room], end=len(data) <= room, now=self.now)
        if len(data) > room:
            self._unsent[key] = data[room:]

    def _forget(self, connection: int) -> None:
        """Drop what was not sent on a connection, and what nobody wants to look at."""
        self._on_established.pop(connection, None)
        for key in [key for key in self._unsent if key[0] == connection]:
            del self._unsent[key]
        if self._keeps:
            return
        self.datagrams.pop(connection, None)
        self._established.pop(connection, None)
        self._reasons.pop(connection, None)
        for key in [key for key in self.received if key[0] == connection]:
            del self.received[key]
            self.ended.discard(key)
        self._opened = {key for key in self._opened if key[0] != connection}
