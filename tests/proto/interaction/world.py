"""A whole network with endpoints, derpers and what the test knows of them."""

from __future__ import annotations

import random
from collections.abc import Iterator

from iroh_proto.address import DerpUrl, NodeAddr, UdpAddress
from iroh_proto.derp.map import DerpMap
from iroh_proto.derp.relay import DerpServer
from iroh_proto.key import SecretKey
from iroh_proto.paths.select import TRUST_TIME
from iroh_proto.stun.server import StunServer
from iroh_proto.testing.clock import LimitReached
from iroh_proto.testing.mishaps import Mishap, Wake
from iroh_proto.testing.shapes import NetworkShape, expects_direct
from tests.proto.interaction.app import App
from tests.proto.interaction.checks import IDLE_TIMEOUT, Trail, check_close, check_memory
from tests.proto.interaction.model import Call, End, Flow, label_bytes

START_LIMIT = 15.0
"""Seconds until every node has a home."""

RECOVERY_LIMIT = 75.0
"""Seconds after the last mishap in which everything that can work has to.

A node learns by its DERP server's silence (20 s) that its NAT has another address; its next look
for own addresses comes 26 s later at most, peers believe old ones for up to 60 s; a server that
was away for long is dialled every 16 s.
"""

CHAT_INTERVAL = 1.0
HOLD_TIME = 7.0
"""Seconds for which pairs have to stay direct: more than any proof lasts by itself."""


class World:
    """Steps are performed on it; what must not happen raises :class:`AssertionError`."""

    def __init__(self, shape: NetworkShape, *, seed: int) -> None:
        self.shape = shape
        self.network = shape.build(rng=random.Random(seed), start=100.0)
        self.trail = Trail(self.network)
        self.calls: list[Call] = []
        self.flows: dict[int, Flow] = {}
        self.datagrams: dict[int, tuple[Call, End]] = {}
        self._next_label = 1
        self.disturbed_at = self.network.now
        self.troubles: dict[Mishap, Mishap] = {}
        self.derp_map = DerpMap.from_urls(
            [DerpUrl.from_str(f"http://{name}.example/") for name in shape.derpers]
        )
        for name in shape.derpers:
            self._run_derper(name)
        self.apps = {node.name: App(self, self.network.hosts[node.name]) for node in shape.nodes}
        self.network.run_until(self._all_have_a_home, limit=START_LIMIT)
        self.network.run_for(1.0)
        for app in self.apps.values():
            app.first_addr = app.machine.node_addr

    def _run_derper(self, name: str) -> None:
        host = self.network.hosts[name]
        secret = SecretKey.generate(random.Random(name))
        host.run(lambda rng: DerpServer(secret_key=secret, rng=rng), tcp_ports=[80], name="derp")
        host.run(lambda rng: StunServer(), udp=[UdpAddress("0.0.0.0", 3478)], name="stun")

    def _all_have_a_home(self) -> bool:
        return all(app.machine.magicsock.home_derp for app in self.apps.values())

    # What is true now

    @property
    def now(self) -> float:
        return self.network.now

    def was_calm_for(self, seconds: float) -> bool:
        """Say whether nothing went wrong for some seconds."""
        return not self.troubles and self.now - self.disturbed_at >= seconds

    def open_ends(self) -> list[tuple[Call, End]]:
        """Return the ends that a node can send on now."""
        return [
            (call, end)
            for call in self.calls
            for end in call.ends
            if end.is_open and self.apps[end.node].lives(end)
        ]

    def live_calls(self) -> list[Call]:
        """Return the calls that stand at both ends."""
        return [
            call
            for call in self.calls
            if all(end.is_open and self.apps[end.node].lives(end) for end in call.ends)
        ]

    def is_direct(self, first: App, second: App) -> bool:
        """Say whether both send to each other directly, and got there since the last mishap.

        A node believes for some seconds in the address that its peer has just left.
        """
        return self._sends_directly(first, second) and self._sends_directly(second, first)

    def _sends_directly(self, node: App, peer: App) -> bool:
        path = node.machine.magicsock.path_info(peer.id)
        if path.kind != "direct" or not isinstance(path.addr, UdpAddress):
            return False
        reached = self.trail.last_reached(node.name, path.addr, peer.name)
        return reached is not None and reached >= self.disturbed_at

    # What steps use

    def suffer(self, mishap: Mishap) -> None:
        mishap.apply(self.network)
        self.disturb()
        if isinstance(mishap, Wake) and mishap.host in self.apps:
            self.apps[mishap.host].woken_at = self.now
        remedy = mishap.remedy
        if remedy is not None:
            self.troubles[mishap] = remedy
        for trouble in [one for one, cure in self.troubles.items() if cure == mishap]:
            del self.troubles[trouble]

    def disturb(self) -> None:
        self.disturbed_at = self.now

    def dial(self, by: App, to: App, addr: NodeAddr, alpn: bytes) -> Call:
        home = to.machine.magicsock.home_derp if to.is_running else None
        has_home = home is not None and addr.derp_url == home
        call = Call(len(self.calls), End(by.name), End(to.name), alpn, self.now, has_home)
        self.calls.append(call)
        by.dial(addr, alpn=alpn, call=call)
        return call

    def new_flow(self, call: Call, sender: End, stream_id: int) -> Flow:
        label = self._take_label()
        flow = Flow(label, call, sender, stream_id, bytearray(label_bytes(label)))
        self.flows[label] = flow
        return flow

    def send_datagram(self, call: Call, end: End) -> int:
        label = self._take_label()
        self.datagrams[label] = call, end
        self.apps[end.node].send_datagram(end, label)
        return label

    def _take_label(self) -> int:
        self._next_label += 1
        return self._next_label

    def check_close(self, call: Call, end: End) -> None:
        check_close(self, call, end)

    def check(self) -> None:
        """Check what has to hold at any time."""
        self.trail.check_proofs(self.apps.values())
        check_memory(self)

    # The end of all mishaps

    def mend(self) -> None:
        """End all mishaps that last."""
        for remedy in list(self.troubles.values()):
            self.suffer(remedy)

    def settle(self) -> None:
        """End all mishaps, let everybody chat, and wait until all is as good as it can be."""
        self.mend()
        for app in self.apps.values():
            assert app.is_running
        begun, chat = self.now, _Chat(self)
        # What a mishap cut off may still be trusted for as long as a proof lasts, and what it lost
        # may be missed as late as that.
        while self.now - begun < TRUST_TIME or not chat.is_all_well():
            if self.now - begun > RECOVERY_LIMIT:
                raise LimitReached(f"after {RECOVERY_LIMIT} s: {'; '.join(chat.complaints())}")
            chat.talk()
            self.network.run_for(CHAT_INTERVAL)
        self._hold(chat)
        self.check()

    def _hold(self, chat: _Chat) -> None:
        """Let everybody chat on: who is direct stays so, but for a moment after a CallMeMaybe.

        A node that finds another own address as late as this calls its peers. The address that they
        know by its pongs alone is not on its list, and doubted until its next pong.
        """
        until = self.now + HOLD_TIME
        while self.now < until:
            chat.talk()
            self.network.run_for(CHAT_INTERVAL)
            complaints = chat.complaints(excuses_calls=True)
            assert not complaints, "; ".join(complaints)


class _Chat:
    """Datagrams to and fro on one call of each pair that ever talked, dialled again if need be."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.pairs: dict[frozenset[str], Call] = {}
        self.said: dict[tuple[int, str], int] = {}
        for call in world.calls:
            self.pairs[frozenset(end.node for end in call.ends)] = call

    def talk(self) -> None:
        world = self.world
        live = world.live_calls()
        for pair, call in self.pairs.items():
            of_pair = [one for one in live if frozenset(end.node for end in one.ends) == pair]
            if call not in live:
                self.pairs[pair] = call = of_pair[-1] if of_pair else self._redial(call)
            for end in call.ends:
                if end.is_open and world.apps[end.node].lives(end):
                    label = world.send_datagram(call, end)
                    self.said.setdefault((call.number, end.node), label)

    def is_all_well(self) -> bool:
        return not any(True for _ in self._complaints())

    def complaints(self, *, excuses_calls: bool = False) -> list[str]:
        return list(self._complaints(excuses_calls=excuses_calls))

    def _complaints(self, *, excuses_calls: bool = False) -> Iterator[str]:
        world = self.world
        live = world.live_calls()
        for call in self.pairs.values():
            if call not in live:
                yield f"{call} does not stand: {[end.reason for end in call.ends]}"
                continue
            for end in call.ends:
                label = self.said.get((call.number, end.node))
                receiver = world.apps[call.other_end(end).node]
                if label is None or not any(
                    world.datagrams[heard] == (call, end)
                    for heard in receiver.heard
                    if heard >= label
                ):
                    yield f"nothing of {end.node} came on {call}"
            first, second = (world.apps[end.node] for end in call.ends)
            excused = excuses_calls and self._were_called(first, second)
            if not (excused or self._is_as_direct_as_can_be(first, second)):
                infos = [
                    node.machine.magicsock.path_info(peer.id)
                    for node, peer in ((first, second), (second, first))
                ]
                yield f"{first.name} and {second.name} are not direct: {infos}"
        for flow in world.flows.values():
            is_due = flow.call in live and flow.is_ended and not flow.is_given_up
            if is_due and not flow.is_complete:
                yield f"{flow} has {len(flow.received)} of {len(flow.data)} bytes"

    def _is_as_direct_as_can_be(self, first: App, second: App) -> bool:
        can_be_direct = expects_direct(self.world.network, first.host, second.host) is True
        return not can_be_direct or self.world.is_direct(first, second)

    def _were_called(self, first: App, second: App) -> bool:
        """Say whether one of them told the other its addresses since the last round."""
        calls = first.called_at.get(second.id), second.called_at.get(first.id)
        return any(at is not None and self.world.now - at < CHAT_INTERVAL for at in calls)

    def _redial(self, call: Call) -> Call:
        """Dial again, unless that is being done."""
        world = self.world
        by, to = (world.apps[end.node] for end in call.ends)
        is_dialling = call.dialler.closed_at is None and by.lives(call.dialler)
        target_knows = call.target.place is None
        if is_dialling and target_knows and world.now - call.dialled_at < IDLE_TIMEOUT:
            return call
        addr = to.machine.node_addr
        return world.dial(by, to, addr, call.alpn if call.alpn in to.alpns else to.alpns[0])
