"""Real DERP servers as scripted peers of a machine under the contract."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import TypeVar, cast

from iroh_proto.derp.relay import DerpServer
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.testing.contract import Call, React, Run
from tests.proto.derp_peer import SERVER_KEY, Peer

MachineT = TypeVar("MachineT")

THEIRS = SecretKey.generate(random.Random("theirs"))

# The number of the peer's connection at a server, which no machine under test reaches.
_PEER_ID = 1 << 40


class Server:
    """A DERP server with another node on it."""

    def __init__(self, start: float) -> None:
        self.machine = DerpServer(secret_key=SERVER_KEY, rng=random.Random(3))
        self.peer = Peer("v3", THEIRS)
        self.read: dict[int, int] = {}
        self.machine.accept_tcp(_PEER_ID, now=start)
        self.machine.receive_tcp_data(_PEER_ID, self.peer.request, now=start)
        self.carry(start)

    def talk(self, tcp_id: int, data: bytes, now: float) -> bytes:
        """Take all that was ever sent on a connection, and return what there is to say to it."""
        if tcp_id not in self.read:
            self.read[tcp_id] = 0
            self.machine.accept_tcp(tcp_id, now=now)
        self.machine.handle_timer(now=now)
        news = data[self.read[tcp_id] :]
        self.read[tcp_id] = len(data)
        self.machine.receive_tcp_data(tcp_id, news, now=now)
        return self.carry(now).get(tcp_id, b"")

    def carry(self, now: float) -> dict[int, bytes]:
        """Answer for the peer; return what the server has to say to others."""
        said: dict[int, bytes] = {}
        while waiting := self.machine.tcp_to_send():
            for tcp_id in waiting:
                data = self.machine.tcp_data_to_send(tcp_id)
                if tcp_id == _PEER_ID:
                    self.machine.receive_tcp_data(_PEER_ID, self.peer.receive(data), now=now)
                else:
                    said[tcp_id] = said.get(tcp_id, b"") + data
        while self.machine.next_event() is not None:
            pass
        return said

    def say(self, node_id: NodeId, payload: bytes, now: float) -> None:
        """Have the peer send a packet."""
        self.machine.receive_tcp_data(_PEER_ID, self.peer.packet_to(node_id, payload), now=now)


class Cloud:
    """The DERP servers that a TCP user under test may dial, one per host name."""

    def __init__(self) -> None:
        self.servers: dict[str, Server] = {}
        self.hosts: dict[int, str] = {}

    def server(self, host: str, now: float) -> Server:
        """Return the server of a host name."""
        if host not in self.servers:
            self.servers[host] = Server(now)
        return self.servers[host]


def connect(run: Run[MachineT]) -> Iterable[Call]:
    """Have all connections that are wanted stand."""
    cloud = cloud_of(run)
    for wanted in list(run.wanted_tcp):
        cloud.hosts[wanted.tcp_id] = wanted.host
        yield Call("complete_tcp", wanted.tcp_id)


def refuse(run: Run[MachineT]) -> Iterable[Call]:
    """Have all connections that are wanted fail."""
    for wanted in list(run.wanted_tcp):
        yield Call("complete_tcp", wanted.tcp_id, error="connection refused")


def converse(run: Run[MachineT]) -> Iterable[Call]:
    """Have the servers hear and answer."""
    cloud = cloud_of(run)
    for tcp_id in list(run.tcp_ids):
        server = cloud.server(cloud.hosts[tcp_id], run.now)
        said = server.talk(tcp_id, run.tcp_sent.get(tcp_id, b""), run.now)
        if said:
            yield Call("receive_tcp_data", tcp_id, said)


def settle(run: Run[MachineT]) -> Iterable[Call]:
    """Have connections stand, and some rounds of talk on them."""
    yield from connect(run)
    for _ in range(3):
        yield from converse(run)


def hang_up(run: Run[MachineT]) -> Iterable[Call]:
    """Have the servers end all connections."""
    return [Call("receive_tcp_eof", tcp_id) for tcp_id in run.tcp_ids]


def peer_says(node_id: NodeId, payload: bytes) -> Callable[[Run[MachineT]], Iterable[Call]]:
    """Have the node on each server send something."""

    def act(run: Run[MachineT]) -> Iterable[Call]:
        for server in cloud_of(run).servers.values():
            server.say(node_id, payload, run.now)
        return converse(run)

    return act


def cloud_operations(node_id: NodeId, payload: bytes) -> list[React[MachineT]]:
    """Return what DERP servers may do to a node."""
    return [
        React("connections stand", connect),
        React("connections are refused", refuse),
        React("servers talk", converse),
        React("servers are reached", settle),
        React("servers hang up", hang_up),
        React("the peer sends", peer_says(node_id, payload)),
    ]


def cloud_of(run: Run[MachineT]) -> Cloud:
    return cast(Cloud, run.context)
