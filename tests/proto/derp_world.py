"""Servers for tests of DERP clients: the server's side of a connection, saying what it is told."""

from __future__ import annotations

import random
from collections.abc import Mapping
from http import HTTPStatus

from iroh_proto.address import DerpUrl
from iroh_proto.box import SharedBox
from iroh_proto.derp.approach import SUBPROTOCOLS
from iroh_proto.derp.client import DerpClient
from iroh_proto.derp.codec import Form, FrameCodec
from iroh_proto.derp.curve_frames import ServerInfo
from iroh_proto.derp.dialects import DIALECTS, ClientKey, tailscale, v2
from iroh_proto.derp.events import DerpClientEvent
from iroh_proto.derp.frames import Frame, Ping, Pong
from iroh_proto.derp.map import DerpMap
from iroh_proto.derp.pool import DerpPool, DerpPoolEvent
from iroh_proto.derp.upgrade import (
    ServerUpgrade,
    derp_headers,
    framed_headers,
    websocket_headers,
)
from iroh_proto.errors import DecodeError
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.machine import TcpCloseRequested, TcpRequested
from iroh_proto.x25519 import NaclBox, X25519PublicKey, X25519SecretKey, x25519_of

URL = DerpUrl.from_str("http://relay.example")
SERVER_KEY = SecretKey.from_bytes(b"\x01" * 32)
CURVE_KEY = x25519_of(SERVER_KEY.public)
CLIENT_KEY = SecretKey.from_bytes(b"\x02" * 32)
PEER = SecretKey.from_bytes(b"\x03" * 32).public
OTHER_PEER = SecretKey.from_bytes(b"\x04" * 32).public

# What servers of each generation answer by path and form, or protocol: a dialect, or a refusal.
Answers = Mapping[tuple[str, str], str]
V2_SERVER: Answers = {("/derp", "framed"): "v2"}  # 0.6 to 0.13
V3_SERVER_0_14: Answers = {("/derp", "framed"): "v3"}  # 0.14 to 0.19
V3_SERVER: Answers = {  # 0.20 to 0.90
    ("/derp", "framed"): "v3",
    ("/relay", "framed"): "v3",
    ("/derp", "websocket"): "v3",
    ("/relay", "websocket"): "v3",
}
RELAY_V1_SERVER: Answers = {("/relay", "websocket"): "relay-v1", ("/relay", "framed"): "400"}
RELAY_V2_SERVER: Answers = {("/relay", "websocket"): "relay-v2", ("/relay", "framed"): "400"}
TAILSCALE_SERVER: Answers = {
    ("/derp", "DERP"): "tailscale",
    ("/derp", "websocket"): "tailscale",
    ("/derp", "framed"): "426",
    ("/relay", "framed"): "200",
    ("/relay", "websocket"): "200",
}
WEBSOCKET_SERVER: Answers = {("/relay", "websocket"): "v3", ("/relay", "framed"): "400"}


class ServerSide:
    """One accepted connection. ``frames`` are those received since the handshake, without pings.

    ``is_broken`` tells that the handshake failed, upon which a server closes.

    :param answers_pings: whether pings are answered.
    :param is_slow: whether a server that speaks first waits for :meth:`begin`.
    """

    def __init__(
        self, answers: Answers, *, answers_pings: bool = True, is_slow: bool = False
    ) -> None:
        self.answers = answers
        self.answers_pings = answers_pings
        self.is_slow = is_slow
        self.path = ""
        self.node_id: ClientKey | None = None
        self.frames: list[Frame] = []
        self.pings = 0
        self.is_broken = False
        self.codec: FrameCodec | None = None
        self.server_details = v2.ServerDetails()
        self.curve_details = tailscale.ServerDetails()
        self._upgrade = ServerUpgrade()
        self._rng = random.Random(1)

    @property
    def is_over(self) -> bool:
        """Whether the server closes the connection."""
        return self.codec is None or self.is_broken

    def receive(self, data: bytes) -> bytes:
        """Take bytes and return the answer."""
        if self.codec is None:
            return self._receive_request(data) if data else b""
        answer = b""
        try:
            for frame in self.codec.receive(data):
                answer += self._receive_frame(frame)
        except DecodeError:
            self.is_broken = True
        return answer + self.codec.replies()

    def send(self, *frames: Frame) -> bytes:
        """Return the bytes of frames."""
        assert self.codec is not None
        return b"".join(self.codec.encode(frame) for frame in frames)

    def begin(self) -> bytes:
        """Return what a server says first."""
        return self.send(*self._handshake.begin())

    def _receive_request(self, data: bytes) -> bytes:
        request = self._upgrade.receive(data)
        assert request is not None
        self.path = request.path
        form: Form = "websocket" if request.upgrade == "websocket" else "framed"
        kind = "DERP" if request.upgrade == "DERP" else form
        answer = self.answers.get((request.path, kind), "404")
        if answer not in DIALECTS:
            return self._upgrade.respond(HTTPStatus(int(answer)))
        chosen = None
        if form == "websocket":
            chosen = next((name for name in SUBPROTOCOLS if SUBPROTOCOLS[name] == answer), None)
        offer = request.header("sec-websocket-protocol") or ""
        assert chosen is None or chosen in offer.split(", ")
        if form == "websocket":
            headers = websocket_headers(request, chosen)
        else:
            headers = derp_headers(CURVE_KEY) if answer == "tailscale" else framed_headers()
        head, trailing = self._upgrade.switch(headers)
        assert not trailing, "upstream's servers refuse clients that do not wait"
        dialect = DIALECTS[answer]
        self.codec = dialect.server_codec(form)
        self._handshake = dialect.server_handshake(secret_key=SERVER_KEY, rng=self._rng)
        return head if self.is_slow else head + self.begin()

    def _receive_frame(self, frame: Frame) -> bytes:
        if self.node_id is None:
            self.node_id = self._handshake.receive(frame)
            return self._accept(self.node_id)
        if isinstance(frame, Ping):
            self.pings += 1
            return self.send(Pong(frame.data)) if self.answers_pings else b""
        self.frames.append(frame)
        return b""

    def _accept(self, node_id: ClientKey) -> bytes:
        frames = self._handshake.accept()
        if isinstance(node_id, NodeId) and frames and self.server_details != v2.ServerDetails():
            sealed = SharedBox(SERVER_KEY, node_id).seal(self.server_details.encode(), bytes(24))
            frames = [v2.ServerInfo(sealed)]
        if isinstance(node_id, X25519PublicKey):
            box = NaclBox(X25519SecretKey.of(SERVER_KEY), node_id)
            frames = [ServerInfo(box.seal(self.curve_details.encode(), bytes(24)))]
        return self.send(*frames)


def exchange(client: DerpClient, server: ServerSide, *, now: float) -> None:
    """Carry bytes both ways until neither side has any."""
    while data := client.data_to_send():
        client.receive_data(server.receive(data), now=now)


def events_of(client: DerpClient) -> list[DerpClientEvent]:
    """Drain the events of a client."""
    return list(iter(client.next_event, None))


class Host:
    """A server that a pool may dial. Set ``is_up`` or ``is_silent`` to have it behave otherwise.

    ``is_silent`` hosts do not even refuse connections.
    """

    def __init__(self, answers: Answers = V3_SERVER) -> None:
        self.answers = answers
        self.is_up = True
        self.is_silent = False
        self.answers_pings = True
        self.closes_at_once = False
        self.is_slow = False
        self.dialled_at: list[float] = []
        self.sides: dict[int, ServerSide] = {}

    @property
    def side(self) -> ServerSide:
        """The only connection."""
        (side,) = self.sides.values()
        return side


class PoolWorld:
    """A pool and the hosts it may dial, with a clock. Bytes take no time.

    ``events`` are those that are no work for a host, ``requests`` the others.
    """

    def __init__(self, hosts: dict[str, Host], derp_map: DerpMap) -> None:
        self.hosts = hosts
        self.pool = DerpPool(secret_key=CLIENT_KEY, derp_map=derp_map, rng=random.Random(11))
        self.now = 0.0
        self.events: list[DerpPoolEvent] = []
        self.requests: list[TcpRequested | TcpCloseRequested] = []
        self._hosts_by_tcp_id: dict[int, Host] = {}

    def start(self) -> None:
        """Start the pool."""
        self.pool.start(now=self.now)
        self.settle()

    def take_events(self) -> list[DerpPoolEvent]:
        """Return the events since the last call."""
        events, self.events = self.events, []
        return events

    def run(self, until: float) -> None:
        """Let time pass."""
        while (deadline := self.pool.get_timer()) is not None and deadline <= until:
            self.now = max(self.now, deadline)
            self.pool.handle_timer(now=self.now)
            self.settle()
        self.now = until

    def settle(self) -> None:
        """Do what the pool asks for, and carry bytes, until there is nothing left to do."""
        while self._take_event() or self._carry_bytes():
            pass

    def push(self, host: Host, *frames: Frame) -> None:
        """Send frames to the pool on every connection of a host."""
        for tcp_id, side in list(host.sides.items()):
            self.pool.receive_tcp_data(tcp_id, side.send(*frames), now=self.now)
        self.settle()

    def take_down(self, host: Host) -> None:
        """Close a host's connections and refuse new ones."""
        host.is_up = False
        for tcp_id in list(host.sides):
            del host.sides[tcp_id]
            self.pool.receive_tcp_eof(tcp_id, now=self.now)
        self.settle()

    def _take_event(self) -> bool:
        event = self.pool.next_event()
        if isinstance(event, TcpRequested):
            self.requests.append(event)
            self.dial(self.hosts[event.host], event.tcp_id)
        elif isinstance(event, TcpCloseRequested):
            self.requests.append(event)
            host = self._hosts_by_tcp_id.pop(event.tcp_id)
            side = host.sides.pop(event.tcp_id, None)
            last = self.pool.tcp_data_to_send(event.tcp_id)
            if side is not None:
                side.receive(last)
        elif event is not None:
            self.events.append(event)
        return event is not None

    def dial(self, host: Host, tcp_id: int) -> None:
        """Do what a host does when it is dialled."""
        self._hosts_by_tcp_id[tcp_id] = host
        host.dialled_at.append(self.now)
        if host.is_silent:
            return
        if not host.is_up:
            self.pool.complete_tcp(tcp_id, error="refused", now=self.now)
            return
        host.sides[tcp_id] = ServerSide(
            host.answers, answers_pings=host.answers_pings, is_slow=host.is_slow
        )
        self.pool.complete_tcp(tcp_id, now=self.now)

    def _carry_bytes(self) -> bool:
        tcp_ids = self.pool.tcp_to_send()
        for tcp_id in tcp_ids:
            host = self._hosts_by_tcp_id[tcp_id]
            answer = host.sides[tcp_id].receive(self.pool.tcp_data_to_send(tcp_id))
            if answer:
                self.pool.receive_tcp_data(tcp_id, answer, now=self.now)
            side = host.sides.get(tcp_id)
            if side is not None and (side.is_over or (host.closes_at_once and side.node_id)):
                del host.sides[tcp_id]
                self.pool.receive_tcp_eof(tcp_id, now=self.now)
        return bool(tcp_ids)
