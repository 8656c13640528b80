"""Endpoints that learn where they are seen from a server that answers QAD and no STUN."""

from __future__ import annotations

from iroh_anyio.quic.options import EndpointOptions
from iroh_anyio.quic.qad_client import ANSWER_TIMEOUT
from iroh_anyio.quic.qad_server import QadServer
from iroh_anyio.testing import SimulatedDerper, SimulatedEndpoint
from iroh_proto.address import DerpUrl, UdpAddress
from iroh_proto.derp.map import QUIC_PORT, DerpMap, DerpNode
from iroh_proto.paths.own_addresses import ROUND_INTERVAL, ROUND_TIMEOUT
from iroh_proto.testing.nat import FULL_CONE
from iroh_proto.testing.network import Program
from tests.proto.endpoint_world import DERP_IP, EndpointWorld
from tests.proto.qad_world import CA_PEM, NAME, make_server

OLD_IP, NEW_IP = "203.0.113.1", "203.0.113.2"


class QadWorld:
    """An endpoint behind a NAT, and a derper that answers QAD if anybody does."""

    def __init__(self, *, serves: bool = True) -> None:
        self.network = EndpointWorld().network
        self.far = self.network.add_host("derp", ip=DERP_IP, latency=0.02)
        url = DerpUrl.from_str(f"https://{NAME}/")
        SimulatedDerper(self.far, url=url, stun_port=None)
        self.server: Program[QadServer] | None = None
        if serves:
            self.server = self.far.run(make_server, udp=[UdpAddress("0.0.0.0", QUIC_PORT)])
        self.nat = self.network.add_nat("nat", kind=FULL_CONE, ip=OLD_IP, latency=0.01)
        self.node = SimulatedEndpoint(
            self.network.add_host("alice", self.nat.inside, latency=0.01),
            derp_map=DerpMap([DerpNode(url, stun_port=None)]),
            options=EndpointOptions(ca_certificates=CA_PEM),
            udp=[UdpAddress("0.0.0.0", 4433)],
        )

    def mapped(self) -> list[str]:
        """Return the addresses outside of the NAT that the endpoint tells of itself."""
        ips = {address.ip for address in self.node.node_addr.direct_addresses}
        return sorted(ips & {OLD_IP, NEW_IP})

    def lose_all(self, lost: bool) -> None:
        self.far.attachments[0].link.loss = float(lost)


def test_an_endpoint_tells_the_address_that_a_qad_server_sees() -> None:
    world = QadWorld()
    world.network.run_until(lambda: bool(world.mapped()), limit=3)
    assert world.mapped() == [OLD_IP]
    stats = world.node.machine.qad_stats
    assert (stats.dialled, stats.answered, stats.failed) == (1, 1, 0)


def test_an_endpoint_whose_qad_server_is_silent_tells_its_own_addresses() -> None:
    world = QadWorld(serves=False)
    world.network.run_for(ROUND_TIMEOUT)
    assert world.mapped() == []
    assert [addr.port for addr in world.node.node_addr.direct_addresses] == [4433]
    stats = world.node.machine.qad_stats
    assert (stats.dialled, stats.answered, stats.failed) == (1, 0, 1)


def test_what_a_server_tells_unasked_is_asked_for_at_once() -> None:
    world = QadWorld()
    world.network.run_until(lambda: world.mapped() == [OLD_IP], limit=3)
    world.nat.reboot(ip=NEW_IP)
    world.lose_all(True)
    machine = world.node.machine
    world.network.run_until(
        lambda: machine.qad_stats.failed == 1, limit=ROUND_INTERVAL[1] + ANSWER_TIMEOUT
    )
    assert machine.qad_stats.answered == 1
    # The question is repeated by QUIC, though nobody waits for an answer any more.
    world.lose_all(False)
    world.network.run_until(lambda: world.mapped() == [NEW_IP], limit=ROUND_INTERVAL[0] / 2)
    assert machine.qad_stats.dialled == 1
    assert machine.qad_stats.answered == 2


def test_a_changed_network_and_a_sleep_have_the_server_asked_anew() -> None:
    world = QadWorld()
    machine = world.node.machine
    world.network.run_until(lambda: world.mapped() == [OLD_IP], limit=3)
    for dialled, ip in ((2, NEW_IP), (3, OLD_IP)):
        world.nat.reboot(ip=ip)
        tell = machine.network_changed if ip == NEW_IP else machine.resumed
        world.node.give(lambda _, now, tell=tell: tell(now=now))  # type: ignore[misc]
        world.network.run_until(lambda ip=ip: world.mapped() == [ip], limit=3)  # type: ignore[misc]
        assert machine.qad_stats.dialled == dialled
    assert world.server is not None
    assert world.server.machine.stats.accepted == 3
