"""QUIC address discovery: its bytes, and client and server in a simulated network."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import QuicErrorCode, QuicPacketType

from iroh_anyio.quic import qad_server
from iroh_anyio.quic.aioquic_private import ObservingConnection
from iroh_anyio.quic.aioquic_private.recovery import ACK_ONLY_LIMIT
from iroh_anyio.quic.observed_address import (
    CLOSE_CODE,
    CLOSE_REASON,
    OBSERVED_IPV4,
    OBSERVED_IPV6,
    QAD_ALPN,
    RECEIVES,
    ROLE_PARAMETER,
    SENDS,
    decode_observed,
    encode_observed,
    encode_role,
    frame_type_of,
    wants_observations,
)
from iroh_anyio.quic.qad_client import (
    ANSWER_TIMEOUT,
    IDLE_TIMEOUT,
    AddressObserved,
    ObservationChanged,
    ObservationFailed,
    QadClient,
)
from iroh_anyio.quic.qad_server import HANDSHAKE_TIMEOUT, MAX_HALF_OPEN, QadServer
from iroh_proto.address import DerpAddress, DerpUrl, UdpAddress
from iroh_proto.errors import DecodeError, LocalProtocolError
from iroh_proto.key import SecretKey
from iroh_proto.testing.nat import FULL_CONE
from iroh_proto.testing.network import Host, Network, Program
from iroh_proto.wire import encode_quic_varint
from tests.proto.hostile_quic import forge
from tests.proto.qad_world import CA_PEM, CERTIFICATE, KEY, NAME, OTHER_CA_PEM, make_server

PING = 0x01
SERVER = UdpAddress("198.51.100.7", 7842)


@pytest.fixture(scope="module")
def vectors(vectors_path: Path) -> dict[str, str | int]:
    text = (vectors_path / "relay.json").read_text()
    found: dict[str, str | int] = json.loads(text)["iroh_0_91_to_1_x_relay"]["qad"]
    return found


def test_roles_and_names_are_those_of_the_vectors(vectors: dict[str, str | int]) -> None:
    assert encode_role(SENDS).hex() == vectors["transport_parameter_send_only"]
    assert encode_role(RECEIVES).hex() == vectors["transport_parameter_receive_only"]
    assert hex(ROLE_PARAMETER) == vectors["transport_parameter_id"]
    assert QAD_ALPN.decode() == vectors["alpn_text"]
    assert vectors["close_code"] == CLOSE_CODE
    assert vectors["close_reason_text"] == CLOSE_REASON


@pytest.mark.parametrize(
    ("key", "kind", "sequence", "address"),
    [
        ("observed_v4_seq0_192_0_2_7_41641", OBSERVED_IPV4, 0, "192.0.2.7:41641"),
        ("observed_v6_seq1_2001_db8__1_443", OBSERVED_IPV6, 1, "[2001:db8::1]:443"),
    ],
)
def test_observed_addresses_are_those_of_the_vectors(
    vectors: dict[str, str | int], key: str, kind: int, sequence: int, address: str
) -> None:
    whole = bytes.fromhex(str(vectors[key]))
    frame_type = encode_quic_varint(kind)
    body = whole.removeprefix(frame_type)
    expected = UdpAddress.from_str(address)
    assert frame_type_of(expected) == kind
    assert frame_type + encode_observed(sequence, expected) == whole
    assert decode_observed(kind, body + b"next") == (sequence, expected, len(body))
    for size in range(len(body)):
        with pytest.raises(DecodeError):
            decode_observed(kind, body[:size])


def test_an_ipv4_address_in_an_ipv6_frame_is_ipv4() -> None:
    body = b"\x05" + bytes(10) + b"\xff\xff" + bytes((192, 0, 2, 9)) + b"\x00\x50"
    assert decode_observed(OBSERVED_IPV6, body)[1] == UdpAddress("192.0.2.9", 80)


@pytest.mark.parametrize(
    ("parameter", "wants"),
    [(None, False), (b"", False), (b"\0", False), (b"\1", True), (b"\2", True), (b"\1\1", False)],
)
def test_only_receivers_want_observations(parameter: bytes | None, wants: bool) -> None:
    assert wants_observations(parameter) is wants


class World:
    """A server in the internet, and a client behind a NAT."""

    def __init__(self, *, ca: bytes = CA_PEM, seed: int = 1) -> None:
        self.network = Network(rng=random.Random(seed))
        far = self.network.add_host("server", ip=SERVER.ip, latency=0.02)
        self.server: Program[QadServer] = far.run(
            make_server, udp=[UdpAddress("0.0.0.0", SERVER.port)]
        )
        self.nat = self.network.add_nat("nat", kind=FULL_CONE, ip="203.0.113.1", latency=0.01)
        self.host = self.network.add_host("client", self.nat.inside)
        self.client = self.run_client(self.host, ca=ca)

    def run_client(self, host: Host, *, ca: bytes = CA_PEM) -> Program[QadClient]:
        return host.run(
            lambda rng: QadClient(ca_certificates=ca), udp=[UdpAddress("0.0.0.0", 4000)]
        )

    def ask(self, request_id: int, *, name: str = NAME) -> None:
        self.client.give(
            lambda machine, now: machine.ask(request_id, SERVER, server_name=name, now=now)
        )

    def answer(self, request_id: int) -> UdpAddress:
        def answers() -> list[AddressObserved]:
            seen = self.client.seen(AddressObserved)
            return [event for event in seen if event.request_id == request_id]

        self.network.run_until(lambda: bool(answers()), limit=5)
        (event,) = answers()
        return event.address


def test_a_client_learns_the_outer_address_of_its_nat() -> None:
    world = World()
    world.ask(1)
    seen = world.answer(1)
    assert seen.ip == world.nat.ip
    assert seen.port != 4000
    stats = world.server.machine.stats
    assert (stats.accepted, stats.completed, stats.observations) == (1, 1, 1)
    assert world.client.machine.is_server(SERVER)


def test_asking_again_takes_one_round_trip_on_the_same_connection() -> None:
    world = World()
    world.ask(1)
    first = world.answer(1)
    world.network.run_for(20.0)
    asked_at = world.network.now
    world.ask(2)
    assert world.answer(2) == first
    assert world.network.now - asked_at == pytest.approx(0.06, abs=0.03)
    assert world.server.machine.stats.accepted == 1
    assert world.client.machine.stats.dialled == 1


def test_a_client_is_told_when_its_nat_gives_it_another_address() -> None:
    world = World()
    world.ask(1)
    world.answer(1)
    world.nat.reboot(ip="203.0.113.2")
    world.ask(2)
    world.network.run_until(
        lambda: world.server.machine.stats.observations == 2, limit=ANSWER_TIMEOUT
    )
    world.network.run_for(1.0)
    world.ask(3)
    assert world.answer(3).ip == "203.0.113.2"


def test_an_unasked_observation_is_news() -> None:
    world = World()
    world.ask(1)
    world.answer(1)
    world.nat.reboot(ip="203.0.113.2")
    # A late packet of the client's shows the server the new address.
    (server,) = world.client.machine._servers.values()
    server.link.quic.send_ping(9)
    world.client.give(lambda machine, now: machine._settle(SERVER, server, now))
    world.network.run_until(lambda: bool(world.client.seen(ObservationChanged)), limit=3)


def test_a_silent_server_is_given_up_in_time() -> None:
    world = World()
    world.server.host.is_up = False
    world.network.block_udp(world.host)
    world.ask(1)
    world.network.run_for(ANSWER_TIMEOUT - 0.1)
    assert not world.client.seen(ObservationFailed)
    world.network.run_for(0.1)
    assert world.client.seen(ObservationFailed) == [ObservationFailed(request_id=1)]
    assert world.client.machine.get_timer() is None
    assert not world.client.machine.is_server(SERVER)


@pytest.mark.parametrize(("ca", "name"), [(OTHER_CA_PEM, NAME), (CA_PEM, "other.example")])
def test_a_server_that_nobody_vouches_for_is_not_believed(ca: bytes, name: str) -> None:
    world = World(ca=ca)
    world.ask(1, name=name)
    world.network.run_for(ANSWER_TIMEOUT)
    assert world.client.seen(ObservationFailed) == [ObservationFailed(request_id=1)]
    assert not world.client.seen(AddressObserved)
    assert world.client.machine.stats.failed == 1


def test_another_server_of_the_same_family_replaces_the_first() -> None:
    world = World()
    world.ask(1)
    world.answer(1)
    other = UdpAddress("198.51.100.8", 7842)
    world.client.give(lambda machine, now: machine.ask(2, other, server_name=NAME, now=now))
    assert not world.client.machine.is_server(SERVER)
    world.network.run_for(1.0)
    assert world.server.machine.stats.closed == 1
    world.network.run_for(5.0)
    assert len(world.server.machine) == 0


def test_a_server_of_each_family_may_be_asked() -> None:
    client = QadClient()
    other = UdpAddress("2001:db8::7", 7842)
    for number, server in enumerate((SERVER, other)):
        client.ask(number, server, server_name=NAME, now=0.0)
    assert client.is_server(SERVER)
    assert client.is_server(other)
    assert client.next_event() is None


def test_a_client_that_falls_silent_is_forgotten() -> None:
    world = World()
    world.ask(1)
    world.answer(1)
    world.host.cut_power()
    world.network.run_for(IDLE_TIMEOUT + 1.0)
    assert len(world.server.machine) == 0
    assert world.server.machine.stats.errored == 1


def test_a_client_may_change_the_id_by_which_the_server_knows_it() -> None:
    world = World()
    world.ask(1)
    world.answer(1)
    (server,) = world.client.machine._servers.values()
    known = set(world.server.machine._routes)
    server.link.quic.change_connection_id()
    world.ask(2)
    world.answer(2)
    world.network.run_for(1.0)
    assert len(known - set(world.server.machine._routes)) == 1
    world.ask(3)
    world.answer(3)
    assert world.server.machine.stats.accepted == 1


def test_a_changed_network_has_connections_begin_anew() -> None:
    world = World()
    world.ask(1)
    world.answer(1)
    world.client.give(lambda machine, now: machine.network_changed(now=now))
    world.ask(2)
    world.answer(2)
    assert world.server.machine.stats.accepted == 2


def test_a_server_closing_tells_its_clients() -> None:
    world = World()
    world.ask(1)
    world.answer(1)
    world.server.give(lambda machine, now: machine.close(now=now))
    world.network.run_for(1.0)
    world.ask(2)
    world.network.run_for(ANSWER_TIMEOUT)
    assert world.client.seen(ObservationFailed) == [ObservationFailed(request_id=2)]


def test_other_certificates_are_shown_from_then_on() -> None:
    world = World()
    world.server.machine.set_certificates([CERTIFICATE], KEY)
    world.ask(1)
    world.answer(1)
    with pytest.raises(LocalProtocolError, match="certificate"):
        world.server.machine.set_certificates([], KEY)


def fail(*arguments: object, **options: object) -> None:
    raise RuntimeError("a defect")


@pytest.mark.parametrize("method", ["_payload_received", "datagrams_to_send"])
def test_a_client_in_which_aioquic_fails_begins_anew(method: str) -> None:
    world = World()
    world.ask(1)
    world.answer(1)
    (server,) = world.client.machine._servers.values()
    setattr(server.link.quic, method, fail)  # as a defect would
    world.ask(2)
    world.network.run_for(ANSWER_TIMEOUT)
    assert world.client.seen(ObservationFailed) == [ObservationFailed(request_id=2)]
    assert not world.client.machine.is_server(SERVER)
    assert world.client.machine.get_timer() is None
    world.ask(3)
    assert world.answer(3).ip == world.nat.ip


@pytest.mark.parametrize("method", ["_payload_received", "datagrams_to_send", "handle_timer"])
def test_a_server_in_which_aioquic_fails_serves_the_others(method: str) -> None:
    world = World()
    world.ask(1)
    world.answer(1)
    (connection,) = world.server.machine._clients
    setattr(connection.link.quic, method, fail)  # as a defect would
    if method != "handle_timer":
        world.ask(2)
    world.network.run_for(IDLE_TIMEOUT + 1.0)
    assert len(world.server.machine) == 0
    assert world.server.machine.stats.errored == 1
    world.ask(3)
    world.answer(3)


def hear_forged(world: World, body: bytes) -> None:
    """Have the client hear an observation that its server never meant to send."""
    (connection,) = world.server.machine._clients
    forged = forge(connection.link.quic, QuicPacketType.ONE_RTT, OBSERVED_IPV4, body)
    world.client.give(lambda machine, now: machine.receive_datagrams(forged, SERVER, now=now))


def test_an_older_observation_does_not_count() -> None:
    world = World()
    world.ask(1)
    seen = world.answer(1)
    hear_forged(world, encode_observed(0, UdpAddress("192.0.2.66", 66)))
    assert world.client.seen(ObservationChanged) == []
    world.ask(2)
    assert world.answer(2) == seen
    hear_forged(world, encode_observed(1, UdpAddress("192.0.2.66", 66)))
    assert len(world.client.seen(ObservationChanged)) == 1


def test_an_observation_that_breaks_off_ends_the_connection() -> None:
    world = World()
    world.ask(1)
    world.answer(1)
    (server,) = world.client.machine._servers.values()
    hear_forged(world, b"\0\xc0")
    assert server.link.quic.close_event is not None
    assert server.link.quic.close_event.error_code == QuicErrorCode.FRAME_ENCODING_ERROR
    world.ask(2)
    world.answer(2)
    assert world.client.machine.stats.dialled == 2


def test_of_a_client_that_never_acknowledges_little_is_kept() -> None:
    world = World()
    world.ask(1)
    source = world.answer(1)
    (server,) = world.client.machine._servers.values()
    (client,) = world.server.machine._clients
    now, sent = world.network.now, 0
    for _ in range(6 * ACK_ONLY_LIMIT):  # every other one brings an acknowledgement
        now += 0.002
        pings = forge(server.link.quic, QuicPacketType.ONE_RTT, PING, b"")
        world.server.machine.receive_datagrams(pings, source, now=now)
        sent += len(world.server.machine.datagrams_to_send())
    assert sent > 2 * ACK_ONLY_LIMIT
    assert client.link.quic.unacknowledged <= ACK_ONLY_LIMIT + 1
    assert not client.is_over


def test_a_server_drops_what_came_through_a_derper() -> None:
    server = make_server(random.Random(1))
    source = DerpAddress(DerpUrl.from_str("http://derp.example/"), SecretKey(bytes(32)).public)
    server.receive_datagrams([*first_packets(1), b"x"], source, now=0.0)
    assert len(server) == 0
    assert server.datagrams_to_send() == []
    assert server.stats.malformed == 2


def first_packets(number: int) -> list[bytes]:
    configuration = QuicConfiguration(is_client=True, alpn_protocols=[QAD_ALPN.decode()])
    client = ObservingConnection(configuration=configuration)
    client.connect(SERVER, now=0.0)
    return [data for data, _ in client.datagrams_to_send(now=0.0)]


def test_half_open_handshakes_are_bounded_and_end() -> None:
    server = make_server(random.Random(1))
    for number in range(80):
        source = UdpAddress(f"192.0.2.{number}", 1)
        server.receive_datagrams(first_packets(number), source, now=0.0)
    server.datagrams_to_send()
    # From some number on, strangers must first prove their address.
    assert len(server) < 80 < MAX_HALF_OPEN
    now = 0.0
    while (deadline := server.get_timer()) is not None and deadline < 60.0:
        now = deadline
        server.handle_timer(now=now)
        server.datagrams_to_send()
    assert len(server) == 0
    assert now >= HANDSHAKE_TIMEOUT
    assert server.stats.errored == server.stats.accepted


def test_clients_whose_handshake_is_complete_take_no_room_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(qad_server, "MAX_HALF_OPEN", 1)
    world = World()
    world.ask(1)
    world.answer(1)
    world.server.machine.receive_datagrams(first_packets(1), UdpAddress("192.0.2.1", 1), now=0.0)
    assert len(world.server.machine) == 2


def test_a_full_or_closed_server_takes_no_more_clients() -> None:
    server = QadServer(
        certificates=[CERTIFICATE], private_key=KEY, rng=random.Random(1), max_connections=1
    )
    for number in range(2):
        server.receive_datagrams(first_packets(number), UdpAddress("192.0.2.1", 1), now=0.0)
    assert (server.stats.accepted, server.stats.refused) == (1, 1)
    server = make_server(random.Random(1))
    server.close(now=0.0)
    server.receive_datagrams(first_packets(1), UdpAddress("192.0.2.1", 1), now=0.0)
    assert server.stats.accepted == 0


def test_garbage_begins_nothing() -> None:
    server = make_server(random.Random(1))
    header = bytes((0xC3, 0, 0, 0, 1, 8, *range(8), 8, *range(8), 0, 0x44, 0xB0))
    for data in (b"", b"\x40" + bytes(30), bytes(1200), header + bytes(1200 - len(header))):
        server.receive_datagrams([data], UdpAddress("192.0.2.1", 1), now=0.0)
    assert len(server) == 0
    assert server.stats.accepted == 0
    assert server.stats.malformed == 4
    assert server.get_timer() is None


def test_a_client_drops_what_is_from_nobody_it_asked() -> None:
    client = QadClient()
    client.receive_datagrams([b"\x40" + bytes(30)], SERVER, now=0.0)
    assert client.next_event() is None
    assert client.datagrams_to_send() == []
    assert client.stats.strangers == 1


def test_deadlines_are_never_nearer_than_a_host_can_sleep() -> None:
    client = QadClient()
    client.ask(1, SERVER, server_name=NAME, now=0.0)
    deadline = client.get_timer()
    assert deadline is not None
    now = deadline - 0.0001
    client.receive_datagrams([b"noise"], SERVER, now=now)
    later = client.get_timer()
    assert later is not None
    assert later >= now + 0.001
