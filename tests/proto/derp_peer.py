"""Clients for tests of a DERP server: bare codecs and handshakes, without a client's own rules."""

from __future__ import annotations

import random

from iroh_proto.address import DerpUrl
from iroh_proto.derp.approach import Approach
from iroh_proto.derp.codec import Form, FrameCodec
from iroh_proto.derp.curve_frames import CurveRecvPacket
from iroh_proto.derp.datagram_frames import RecvDatagram, RecvDatagramBatch
from iroh_proto.derp.dialects import DIALECTS
from iroh_proto.derp.frames import Frame, RecvPacket, pack_datagrams, split_datagrams
from iroh_proto.derp.mesh_key import MeshKey
from iroh_proto.derp.node_names import NodeNames
from iroh_proto.derp.relay import DerpServer
from iroh_proto.derp.upgrade import ClientUpgrade
from iroh_proto.key import NodeId, SecretKey

URL = DerpUrl.from_str("http://relay.example")
SERVER_KEY = SecretKey.from_bytes(b"\x01" * 32)

# How clients of each generation connect: dialect, path, form. Up to 0.90 payloads are packed, and
# pass unchanged.
PACKED_WAYS: dict[str, tuple[str, str, Form]] = {
    "v2": ("v2", "/derp", "framed"),
    "v3": ("v3", "/relay", "framed"),
    "v3 on the old path": ("v3", "/derp", "framed"),
    "v3 websocket": ("v3", "/relay", "websocket"),
    "v3 websocket on the old path": ("v3", "/derp", "websocket"),
}
RELAY_WAYS: dict[str, tuple[str, str, Form]] = {
    "relay-v1": ("relay-v1", "/relay", "websocket"),
    "relay-v2": ("relay-v2", "/relay", "websocket"),
}
WAYS = PACKED_WAYS | RELAY_WAYS
# Their clients are known by X25519 keys; packets pass to the others where it is known whose.
CURVE_WAYS: dict[str, tuple[str, str, Form]] = {
    "tailscale": ("tailscale", "/derp", "framed"),
    "tailscale websocket": ("tailscale", "/derp", "websocket"),
}
ALL_WAYS = WAYS | CURVE_WAYS
EAGER_WAYS = [way for way in WAYS if not DIALECTS[WAYS[way][0]].server_speaks_first]


def key(number: int) -> SecretKey:
    """Return the secret key of a client."""
    return SecretKey.from_bytes(bytes((number,)) * 32)


class Peer:
    """A client's side of a connection, as bytes."""

    def __init__(self, way: str, secret_key: SecretKey, *, mesh_key: MeshKey | None = None) -> None:
        name, path, form = ALL_WAYS[way]
        self.dialect = DIALECTS[name]
        self.node_id = secret_key.public
        rng = random.Random(secret_key.public)
        self.names = NodeNames()
        approach = Approach(name, path, form)
        self.upgrade = ClientUpgrade(
            url=URL,
            path=path,
            form=form,
            rng=rng,
            upgrade=approach.upgrade,
            subprotocols=approach.subprotocols,
        )
        self.codec: FrameCodec = self.dialect.client_codec(form, rng=rng)
        self.handshake = self.dialect.client_handshake(
            secret_key=secret_key, rng=rng, mesh_key=mesh_key
        )
        self.request = self.upgrade.request
        self.frames: list[Frame] = []
        self._is_upgraded = False

    def begin(self) -> bytes:
        """Return what follows the upgrade if the client speaks first."""
        return b"".join(self.codec.encode(frame) for frame in self.handshake.begin())

    def receive(self, data: bytes) -> bytes:
        """Take what the server sent; return the answer, up to the end of the handshake."""
        answer = b""
        if not self._is_upgraded:
            data = self.upgrade.receive(data)
            if not self.upgrade.is_switched:
                return b""
            self._is_upgraded = True
            answer = self.begin()
        for frame in self.codec.receive(data):
            if self.handshake.is_done:
                self.frames.append(frame)
            else:
                replies = self.handshake.receive(frame)
                answer += b"".join(self.codec.encode(reply) for reply in replies)
        assert self.codec.error is None
        return answer

    def packets(self) -> list[tuple[NodeId, bytes]]:
        """Return source and payload of the packets received so far, packed ones as they are."""
        packets: list[tuple[NodeId, bytes]] = []
        for frame in self.frames:
            if isinstance(frame, RecvPacket):
                packets.append((frame.src, frame.payload))
            elif isinstance(frame, RecvDatagram | RecvDatagramBatch):
                packets += [(frame.src, payload) for payload in pack_datagrams(frame.datagrams())]
            elif isinstance(frame, CurveRecvPacket):
                source = self.names.sender(frame.src, frame.payload)
                assert source is not None, "from a stranger"
                packets += [(source, payload) for payload in pack_datagrams([frame.payload])]
        return packets

    def datagrams(self) -> list[tuple[NodeId, bytes]]:
        """Return source and content of the datagrams received so far."""
        return [
            (source, datagram)
            for source, payload in self.packets()
            for datagram in split_datagrams(payload)
        ]

    def packet_to(self, dst: NodeId, payload: bytes) -> bytes:
        """Return the bytes of a packet, or of the datagrams packed in it."""
        self.names.want(dst)
        return self.codec.encode_packets(dst, [payload])


class World:
    """A server, peers on it, and a clock."""

    def __init__(self, server: DerpServer | None = None) -> None:
        self.server = server or DerpServer(secret_key=SERVER_KEY, rng=random.Random(1))
        self.now = 0.0
        self.events: list[object] = []
        self.peers: dict[int, Peer] = {}
        self._last_id = 0

    def connect(
        self, way: str, secret_key: SecretKey, *, mesh_key: MeshKey | None = None
    ) -> tuple[int, Peer]:
        """Bring a peer on to the server, handshake done."""
        self._last_id += 1
        peer = self.peers[self._last_id] = Peer(way, secret_key, mesh_key=mesh_key)
        self.server.accept_tcp(self._last_id, now=self.now)
        self.give(self._last_id, peer.request)
        if not peer.handshake.is_done:
            self.wait(0.5)
        self.flush()
        return self._last_id, peer

    def give(self, tcp_id: int, data: bytes) -> None:
        """Have bytes arrive at the server, and everything they cause."""
        self.server.receive_tcp_data(tcp_id, data, now=self.now)
        self.flush()

    def send(self, tcp_id: int, dst: NodeId, payload: bytes) -> None:
        """Have a peer send a packet."""
        self.give(tcp_id, self.peers[tcp_id].packet_to(dst, payload))

    def wait(self, seconds: float) -> None:
        """Let time pass, with every deadline met."""
        end = self.now + seconds
        while (deadline := self.server.get_timer()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            self.server.handle_timer(now=self.now)
            self.flush()
        self.now = end

    def wait_silently(self, seconds: float) -> None:
        """Let time pass for the server; what it has to say stays with it."""
        self.now += seconds
        self.server.handle_timer(now=self.now)

    def flush(self) -> None:
        """Drain the server until it is quiet; peers answer handshakes."""
        while True:
            self.drain_events()
            writable = self.server.tcp_to_send()
            if not writable:
                return
            for tcp_id in writable:
                while data := self.server.tcp_data_to_send(tcp_id):
                    if tcp_id in self.peers and (answer := self.peers[tcp_id].receive(data)):
                        self.server.receive_tcp_data(tcp_id, answer, now=self.now)

    def drain_events(self) -> None:
        """Take the server's events."""
        while (event := self.server.next_event()) is not None:
            self.events.append(event)
