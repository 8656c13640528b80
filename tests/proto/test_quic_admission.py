"""What strangers' first packets get, and what they cost."""

from __future__ import annotations

import random

import pytest
from aioquic._buffer import Buffer
from aioquic.quic.packet import QuicPacketType, pull_quic_header
from hypothesis import given
from hypothesis import strategies as st

from iroh_anyio.quic.admission import Admission, Admitted
from iroh_anyio.quic.aioquic_private import QUIC_VERSION
from iroh_anyio.quic.events import EndpointStats
from iroh_anyio.quic.header import decode_long_header, long_destination_cid
from iroh_anyio.quic.options import EndpointOptions, IncomingAttempt
from iroh_anyio.quic.retry import TOKEN_LIFETIME, RetryTokens
from iroh_proto.address import Address, DerpAddress, DerpUrl, UdpAddress
from iroh_proto.errors import DecodeError
from iroh_proto.key import NodeId, SecretKey
from tests.proto.quic_pair import QuicPair

SOURCE = UdpAddress("192.0.2.7", 700)
NODE = SecretKey(bytes(32)).public
RELAYED = DerpAddress(DerpUrl.from_str("http://derp.example/"), NODE)


def first_datagram() -> bytes:
    pair = QuicPair()
    return pair.client.connection.flush(0.0)[0]


class Door:
    """An admission with its counts."""

    def __init__(self, **options: object) -> None:
        self.stats = EndpointStats()
        self.admission = Admission(
            options=EndpointOptions(**options),  # type: ignore[arg-type]
            rng=random.Random(1),
            stats=self.stats,
        )
        self.admission.serves = True

    def judge(
        self,
        datagram: bytes,
        source: Address = SOURCE,
        node_id: NodeId | None = None,
        *,
        connections: int = 0,
        half_open: int = 0,
        now: float = 0.0,
    ) -> Admitted | bytes | None:
        return self.admission.judge(
            datagram, source, node_id, connections=connections, half_open=half_open, now=now
        )


def test_a_first_initial_is_admitted() -> None:
    datagram = first_datagram()
    cid = long_destination_cid(datagram)
    assert Door().judge(datagram) == Admitted(cid, cid, None)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:1199],
        lambda data: data[:20],
        lambda data: bytes([data[0] & ~0x40]) + data[1:],
        lambda data: data[:14],
        lambda data: data[:5] + b"\xff" + data[6:],
        lambda data: data[:5] + b"\x15" + bytes(21) + b"\x08" + bytes(1200),
        lambda data: data[:5] + b"\x08" + bytes(8) + b"\x15" + bytes(1200),
        lambda data: b"",
        lambda data: data[:1] + bytes(4) + data[5:],
    ],
    ids=[
        "too short",
        "cut",
        "no fixed bit",
        "ends behind an id",
        "id of 255 bytes",
        "id of 21 bytes",
        "client's id of 21 bytes",
        "empty",
        "version 0",
    ],
)
def test_what_is_no_initial_is_dropped_without_answer(change: object) -> None:
    assert callable(change)
    door = Door()
    assert door.judge(change(first_datagram())) is None
    assert door.stats.dropped_malformed == 1


@pytest.mark.parametrize("first_byte", [0x40, 0xD0, 0xE0, 0xF0])
def test_packets_of_connections_nobody_has_are_dropped(first_byte: int) -> None:
    door = Door()
    assert door.judge(bytes([first_byte]) + first_datagram()[1:]) is None
    assert door.stats.dropped_unknown == 1


def test_a_short_destination_id_is_not_a_clients() -> None:
    datagram = first_datagram()
    short = datagram[:5] + b"\x07" + datagram[7:14] + datagram[14:] + b"\x00"
    door = Door()
    assert door.judge(short) is None
    assert door.stats.dropped_unknown == 1


def test_another_version_is_told_which_one_is_spoken() -> None:
    datagram = first_datagram()
    door = Door()
    answer = door.judge(datagram[:1] + b"\x1a\x2a\x3a\x4a" + datagram[5:])
    assert isinstance(answer, bytes)
    assert len(answer) < len(datagram)
    header = pull_quic_header(Buffer(data=answer))
    ours = decode_long_header(datagram, version=QUIC_VERSION)
    assert header.packet_type is QuicPacketType.VERSION_NEGOTIATION
    assert header.supported_versions == [QUIC_VERSION]
    assert (header.destination_cid, header.source_cid) == (ours.source_cid, ours.destination_cid)
    assert door.stats.versions_offered == 1


def test_an_endpoint_that_serves_nothing_refuses() -> None:
    door = Door()
    door.admission.serves = False
    assert_refused(door.judge(first_datagram()))
    assert door.stats.refused == 1


def assert_refused(answer: object) -> None:
    """Check that a client understands the answer as CONNECTION_REFUSED."""
    assert isinstance(answer, bytes)
    assert len(answer) < 200
    header = decode_long_header(answer, version=QUIC_VERSION)
    assert header.kind == 0


def test_a_client_understands_that_it_is_refused() -> None:
    pair = QuicPair()
    (datagram,) = pair.client.connection.flush(0.0)
    door = Door(accept_filter=lambda attempt: False)
    answer = door.judge(datagram)
    assert isinstance(answer, bytes)
    pair.client.connection.receive([answer], 0.01)
    reason = pair.client.connection.reason
    assert reason is not None
    assert (reason.kind, reason.code, reason.by_peer) == ("refused", 2, True)


def test_the_filter_sees_who_it_is_and_decides() -> None:
    seen: list[IncomingAttempt] = []

    def accept(attempt: IncomingAttempt) -> bool:
        seen.append(attempt)
        return attempt.node_id is not None

    door = Door(accept_filter=accept)
    assert isinstance(door.judge(first_datagram(), RELAYED, NODE), Admitted)
    assert_refused(door.judge(first_datagram()))
    assert seen == [
        IncomingAttempt(source=RELAYED, node_id=NODE),
        IncomingAttempt(source=SOURCE, node_id=None),
    ]


def test_a_full_endpoint_refuses() -> None:
    door = Door(max_connections=3)
    assert isinstance(door.judge(first_datagram(), connections=2), Admitted)
    assert_refused(door.judge(first_datagram(), connections=3))
    assert door.stats.dropped_connection_limit == 1


def test_too_many_half_open_handshakes_are_met_with_silence() -> None:
    door = Door(max_half_open=5, retry_threshold=99)
    assert isinstance(door.judge(first_datagram(), half_open=4), Admitted)
    assert door.judge(first_datagram(), half_open=5) is None
    assert door.stats.dropped_half_open_limit == 1


# Retry


@pytest.mark.parametrize("source", [SOURCE, RELAYED], ids=["udp", "relayed"])
def test_under_pressure_a_source_proves_its_address_first(source: Address) -> None:
    pair = QuicPair()
    (datagram,) = pair.client.connection.flush(0.0)
    original = long_destination_cid(datagram)
    door = Door(retry_threshold=2)
    assert isinstance(door.judge(datagram, source, half_open=1), Admitted)
    retry = door.judge(datagram, source, half_open=2)
    assert isinstance(retry, bytes)
    assert len(retry) < len(datagram)
    pair.client.connection.receive([retry], 0.01)
    (again,) = pair.client.connection.flush(0.01)
    admitted = door.judge(again, source, half_open=2, now=0.02)
    assert admitted == Admitted(long_destination_cid(again), original, long_destination_cid(again))
    assert long_destination_cid(again) != original


def test_a_token_is_good_for_its_source_and_time_only() -> None:
    pair = QuicPair()
    (datagram,) = pair.client.connection.flush(0.0)
    door = Door(retry_threshold=0)
    retry = door.judge(datagram)
    assert isinstance(retry, bytes)
    pair.client.connection.receive([retry], 0.01)
    (again,) = pair.client.connection.flush(0.01)
    elsewhere = UdpAddress("192.0.2.7", 701)
    assert isinstance(door.judge(again, elsewhere), bytes)
    assert isinstance(door.judge(again, RELAYED), bytes)
    assert isinstance(door.judge(again, now=TOKEN_LIFETIME), bytes)
    assert door.stats.bad_tokens == 3
    assert isinstance(door.judge(again, now=TOKEN_LIFETIME - 0.1), Admitted)


def test_another_servers_token_does_not_count() -> None:
    tokens = RetryTokens(random.Random(1))
    cid, token = tokens.create(SOURCE, original_destination_cid=b"original", now=5.0)
    opened = tokens.open(token, SOURCE, destination_cid=cid, now=6.0)
    assert opened is not None
    assert (opened.original_destination_cid, opened.retry_source_cid) == (b"original", cid)
    others = RetryTokens(random.Random(2))
    assert others.open(token, SOURCE, destination_cid=cid, now=6.0) is None
    assert tokens.open(token, SOURCE, destination_cid=b"another", now=6.0) is None


@given(st.binary(max_size=100))
def test_no_bytes_make_a_token(data: bytes) -> None:
    tokens = RetryTokens(random.Random(1))
    assert tokens.open(data, SOURCE, destination_cid=b"x" * 8, now=0.0) is None


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_token_works_on_any_clock(now: float) -> None:
    tokens = RetryTokens(random.Random(1))
    cid, token = tokens.create(SOURCE, original_destination_cid=b"o" * 20, now=now)
    assert tokens.open(token, SOURCE, destination_cid=cid, now=now) is not None


# Headers


@given(st.binary(max_size=80))
def test_any_bytes_have_a_header_or_none(data: bytes) -> None:
    long_destination_cid(data)
    try:
        header = decode_long_header(data, version=QUIC_VERSION)
    except DecodeError:
        return
    assert header.destination_cid == long_destination_cid(data)


@given(
    st.integers(0, 3),
    st.binary(max_size=20),
    st.binary(max_size=20),
    st.binary(max_size=100),
    st.binary(min_size=20, max_size=40),
)
def test_headers_are_read_as_aioquic_reads_them(
    kind: int, destination: bytes, source: bytes, token: bytes, payload: bytes
) -> None:
    data = bytes([0xC0 | kind << 4]) + QUIC_VERSION.to_bytes(4, "big")
    data += bytes([len(destination)]) + destination + bytes([len(source)]) + source
    if kind == 0:
        data += (len(token) | 0x4000).to_bytes(2, "big") + token
    if kind != 3:
        data += (len(payload) | 0x4000).to_bytes(2, "big")
    data += payload
    theirs = pull_quic_header(Buffer(data=data))
    ours = decode_long_header(data, version=QUIC_VERSION)
    assert (ours.destination_cid, ours.source_cid) == (theirs.destination_cid, theirs.source_cid)
    assert ours.version == theirs.version
    assert ours.token == (theirs.token if kind == 0 else b"")
