"""An endpoint on a simulated host, and an application that does what steps say and checks all."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from iroh_anyio.quic.endpoint_machine import EndpointMachine
from iroh_anyio.quic.events import (
    ConnectionClosed,
    ConnectionEstablished,
    QuicDatagramReceived,
    SendingStopped,
    StreamDataReceived,
    StreamReset,
    StreamSendable,
)
from iroh_anyio.quic.options import EndpointOptions
from iroh_proto.address import NodeAddr, UdpAddress
from iroh_proto.disco.pinger import CallMeMaybeReceived
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.testing.network import Host, Program
from tests.proto.interaction.model import LABEL_SIZE, Call, End, Flow, Place, label_bytes

if TYPE_CHECKING:
    from tests.proto.interaction.world import World

ALPN = b"test/1"
OTHER_ALPN = b"test/2"
PORT = 4433
UNIX_TIME = 1_700_000_000.0

OPTIONS = EndpointOptions(stream_window=20_000, connection_window=60_000, send_buffer=15_000)
"""Small enough that flow control and a full buffer are met by small streams."""


class App:
    """A node of the world. Its machine is another one after each restart: another life."""

    def __init__(self, world: World, host: Host) -> None:
        self.world = world
        self.name = host.name
        self.host = host
        self.key = SecretKey.generate(random.Random(host.name))
        self.alpns: tuple[bytes, ...] = (ALPN,)
        self.life = 0
        self.started_at = 0.0
        self.woken_at = 0.0
        self.ends: dict[Place, tuple[Call, End]] = {}
        # Connections that others made, until their first bytes say which call it is.
        self.unknown: dict[Place, ConnectionEstablished] = {}
        self.flows: dict[tuple[Place, int], Flow] = {}
        self.heads: dict[tuple[Place, int], bytes] = {}
        self.heard: dict[int, float] = {}
        self.called_at: dict[NodeId, float] = {}
        self.first_addr: NodeAddr | None = None
        self.program: Program[EndpointMachine] = host.run(
            self._make,
            udp=[UdpAddress("0.0.0.0", PORT), UdpAddress("::", PORT)],
            begin=lambda machine, bound, now: machine.start(bound, now=now),
            on_event=self._take,
            name="endpoint",
        )

    @property
    def machine(self) -> EndpointMachine:
        return self.program.machine

    @property
    def id(self) -> NodeId:
        return self.key.public

    @property
    def now(self) -> float:
        return self.host.network.now

    @property
    def is_running(self) -> bool:
        return self.program.is_running and self.host.is_awake

    def lives(self, end: End) -> bool:
        """Say whether an end is one of this life."""
        return self.is_running and end.place is not None and end.place[0] == self.life

    def number(self, end: End) -> int:
        assert end.place is not None
        assert end.place[0] == self.life
        return end.place[1]

    # What steps do

    def dial(self, addr: NodeAddr, *, alpn: bytes, call: Call) -> None:
        number = self.program.give(lambda machine, now: machine.connect(addr, alpn=alpn, now=now))
        call.dialler.place = self.life, number
        self.ends[self.life, number] = call, call.dialler

    def open(self, call: Call, end: End, size: int, *, bidirectional: bool, ends: bool) -> Flow:
        number = self.number(end)
        stream_id = self.machine.open_stream(number, bidirectional=bidirectional)
        return self._begin(call, end, stream_id, size, ends=ends)

    def answer(self, flow: Flow, size: int) -> Flow:
        """Send something back on a bidirectional stream that the peer opened."""
        assert flow.arrived_at is not None
        place, stream_id = flow.arrived_at
        call, end = self.ends[place]
        answer = self._begin(call, end, stream_id, size, ends=True)
        answer.is_opener = False
        return answer

    def send_more(self, flow: Flow, size: int, *, ends: bool) -> None:
        flow.unsent += flow.more(size)
        flow.is_ended = ends
        self._push(flow)
        self.program.flush()

    def send_datagram(self, end: End, label: int) -> None:
        number = self.number(end)
        room = self.machine.max_datagram_payload(number)
        if room is not None and room >= LABEL_SIZE:
            data = label_bytes(label)
            self.program.give(lambda machine, now: machine.send_datagram(number, data, now=now))

    def _begin(self, call: Call, end: End, stream_id: int, size: int, *, ends: bool) -> Flow:
        flow = self.world.new_flow(call, end, stream_id)
        flow.unsent += flow.data
        self.flows[self._place(end), stream_id] = flow
        self.send_more(flow, size, ends=ends)
        return flow

    def _push(self, flow: Flow) -> None:
        """Send as much as there is room for; the rest follows when there is room again."""
        number = self.number(flow.sender)
        room = self.machine.send_room(number, flow.stream_id)
        data = bytes(flow.unsent[:room])
        del flow.unsent[: len(data)]
        is_end = flow.is_ended and not flow.unsent
        if data or is_end:
            self.machine.send_stream(number, flow.stream_id, data, end=is_end, now=self.now)

    def _place(self, end: End) -> Place:
        assert end.place is not None
        return end.place

    # What comes out of the machine

    def _make(self, rng: random.Random) -> EndpointMachine:
        self.life += 1
        self.started_at = self.now
        self.unknown.clear()
        self.heads.clear()
        return EndpointMachine(
            secret_key=self.key,
            alpns=self.alpns,
            derp_map=self.world.derp_map,
            rng=rng,
            unix_time=UNIX_TIME,
            options=OPTIONS,
        )

    def _take(self, event: object) -> None:
        match event:
            case ConnectionEstablished():
                self._established(event)
            case ConnectionClosed():
                self._closed(event)
            case StreamDataReceived():
                self._received(event)
            case StreamSendable():
                flow = self.flows.get(((self.life, event.connection), event.stream_id))
                if flow is not None and not flow.is_given_up:
                    self._push(flow)
            case StreamReset():
                self._given_up(event.connection, event.stream_id, by_us=False)
                self.machine.consume(event.connection, event.stream_id, 0, now=self.now)
            case SendingStopped():
                self._given_up(event.connection, event.stream_id, by_us=True)
            case QuicDatagramReceived():
                self._datagram(event)
            case CallMeMaybeReceived():
                self.called_at[event.node_id] = self.now
            case _:
                pass

    def _established(self, event: ConnectionEstablished) -> None:
        place = self.life, event.connection
        if event.incoming:
            assert event.alpn in (ALPN, OTHER_ALPN)
            self.unknown[place] = event
            return
        call, end = self.ends[place]
        target = self.world.apps[call.target.node]
        assert event.node_id == target.id, f"{call} reached another node"
        assert event.alpn == call.alpn
        end.established_at = self.now
        # The first stream says at the other end which call this is.
        stream_id = self.machine.open_stream(event.connection, bidirectional=False)
        self._begin(call, end, stream_id, 0, ends=True)

    def _closed(self, event: ConnectionClosed) -> None:
        place = self.life, event.connection
        self.unknown.pop(place, None)
        if place in self.ends:
            call, end = self.ends[place]
            end.closed_at, end.reason = self.now, event.reason
            self.world.check_close(call, end)

    def _received(self, event: StreamDataReceived) -> None:
        place = (self.life, event.connection)
        key = (place, event.stream_id)
        head = self.heads.get(key, b"") + event.data
        self.machine.consume(event.connection, event.stream_id, len(event.data), now=self.now)
        if len(head) < LABEL_SIZE:
            assert not event.end, "a stream without a label"
            self.heads[key] = head
            return
        flow = self.world.flows.get(int.from_bytes(head[:LABEL_SIZE], "big"))
        assert flow is not None, f"{self.name} received bytes that nobody sent"
        data = event.data if len(self.heads.get(key, b"")) >= LABEL_SIZE else head
        self.heads[key] = head[:LABEL_SIZE]
        self._identify(place, flow)
        assert flow.arrived_at in (None, key), f"{flow} arrived twice"
        flow.arrived_at = key
        assert not flow.is_complete, f"{flow} went on after its end"
        start = len(flow.received)
        flow.received += data
        assert flow.received == flow.data[: len(flow.received)], f"{flow} differs from byte {start}"
        if event.end:
            assert flow.is_ended, f"{flow} ended by itself"
            assert len(flow.received) == len(flow.data), f"{flow} ended early"
            flow.is_complete = True

    def _identify(self, place: Place, flow: Flow) -> None:
        """Check that bytes are for this node, from whom they say, and learn whose call it is."""
        call, sender = flow.call, flow.sender
        receiver = flow.receiver
        assert receiver.node == self.name, f"{flow} was delivered to {self.name}"
        established = self.unknown.pop(place, None)
        if established is not None:
            assert established.node_id == self.world.apps[sender.node].id, f"{flow} is of another"
            assert established.alpn == call.alpn
            assert receiver.place is None, f"{call} came in twice"
            receiver.place, receiver.established_at = place, self.now
            self.ends[place] = call, receiver
        assert receiver.place == place, f"{flow} came on another connection"

    def _given_up(self, connection: int, stream_id: int, *, by_us: bool) -> None:
        """Take that the peer reset what it sends, or wants no more of what is sent to it."""
        key = ((self.life, connection), stream_id)
        if by_us:
            flow = self.flows.get(key)
            assert flow is not None
            assert flow.is_given_up, f"{flow} was stopped by itself"
            return
        flows = [
            flow
            for flow in self.world.flows.values()
            if flow.arrived_at == key and flow.receiver.node == self.name
        ]
        assert all(flow.is_given_up for flow in flows), f"{flows} were reset by themselves"

    def _datagram(self, event: QuicDatagramReceived) -> None:
        label = int.from_bytes(event.data, "big")
        sent = self.world.datagrams.get(label)
        assert sent is not None, f"{self.name} received a datagram that nobody sent"
        call, sender = sent
        assert call.other_end(sender).node == self.name, f"a datagram went astray to {self.name}"
        info = self.machine.connection_info(event.connection)
        assert info.node_id == self.world.apps[sender.node].id, "a datagram of another sender"
        assert label not in self.heard, "a datagram came twice"
        self.heard[label] = self.now
