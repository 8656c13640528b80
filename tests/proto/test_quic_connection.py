"""Time, ends, datagrams and trouble of one connection."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from typing import Any

import pytest
from aioquic.quic.logger import QuicLogger
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.rangeset import RangeSet
from aioquic.tls import Epoch

from iroh_anyio.quic import aioquic_private
from iroh_anyio.quic.aioquic_private import checks
from iroh_anyio.quic.aioquic_private.connection import (
    CLOSING_LIMIT,
    CRYPTO_PIECES_LIMIT,
    IDLE_SLACK,
    OPEN_CHALLENGES_LIMIT,
    TLS_MESSAGE_LIMIT,
)
from iroh_anyio.quic.aioquic_private.limits import BURST_PACKETS_LIMIT, PACER_BURST, WidePacer
from iroh_anyio.quic.connection import CLOSE_TEXT_SIZE, CODE_LIMIT, UNACKNOWLEDGED_LIMIT
from iroh_anyio.quic.events import QuicDatagramReceived, StreamDataReceived
from iroh_anyio.quic.node_quic import NodeQuic
from iroh_anyio.quic.options import (
    MAX_DATAGRAM_SIZE,
    MAX_NUMBER,
    MAX_TIME,
    MIN_TIME,
    EndpointOptions,
)
from iroh_anyio.quic.parameters import MAX_UDP_PAYLOAD_SIZE
from iroh_anyio.quic.tls import NodeContext
from iroh_anyio.quic.upkeep import KeepAlive
from iroh_proto.errors import LocalProtocolError
from iroh_proto.wire import encode_quic_varint
from tests.proto.hostile_quic import CRYPTO_FRAME, crypto_frame, forge
from tests.proto.quic_pair import QuicPair

PATH_RESPONSE = 0x1B
QUIET = EndpointOptions(keep_alive_interval=None)


def reasons(pair: QuicPair) -> list[tuple[str, int, str, bool] | None]:
    found: list[tuple[str, int, str, bool] | None] = []
    for side in pair.sides:
        reason = side.connection.reason
        found.append(
            None if reason is None else (reason.kind, reason.code, reason.text, reason.by_peer)
        )
    return found


# Ends


@pytest.mark.parametrize("closer", [0, 1], ids=["client", "server"])
def test_a_close_brings_code_and_text_to_the_peer(closer: int) -> None:
    pair = QuicPair().establish()
    pair.sides[closer].connection.close(70_000, "so long ☂")
    pair.run_for(1.0)
    found = reasons(pair)
    assert found[closer] == ("local", 70_000, "so long ☂", False)
    assert found[1 - closer] == ("application", 70_000, "so long ☂", True)
    assert all(side.connection.is_gone for side in pair.sides)


def test_a_long_text_is_clipped_to_what_fits() -> None:
    pair = QuicPair().establish()
    pair.client.connection.close(1, "☂" * 1000)
    pair.run_for(1.0)
    reason = pair.server.connection.reason
    assert reason is not None
    assert reason.text == "☂" * (CLOSE_TEXT_SIZE // 3)


def test_the_first_close_counts() -> None:
    pair = QuicPair().establish()
    pair.client.connection.close(1, "first")
    pair.client.connection.close(2, "second")
    pair.run_for(1.0)
    assert reasons(pair)[1] == ("application", 1, "first", True)


@pytest.mark.parametrize("code", [-1, CODE_LIMIT])
def test_a_code_that_does_not_fit_is_refused(code: int) -> None:
    pair = QuicPair().establish()
    with pytest.raises(LocalProtocolError):
        pair.client.connection.close(code, "")
    assert pair.client.connection.reason is None


def test_a_lost_close_is_repeated_when_the_peer_goes_on() -> None:
    pair = QuicPair(client=QUIET, server=QUIET).establish()
    closes = itertools.count()
    pair.is_lost = lambda from_client, index: from_client and next(closes) == 0
    pair.client.connection.close(5, "")
    pair.run_for(0.01)
    streams = pair.server.connection.streams
    streams.send(streams.open(bidirectional=False), b"hello?", end=False)
    pair.run_for(0.1)
    assert reasons(pair)[1] == ("application", 5, "", True)


def test_a_closed_connection_answers_less_and_less() -> None:
    pair = QuicPair(client=QUIET, server=QUIET).establish()
    pair.is_lost = lambda from_client, index: from_client
    pair.client.connection.close(5, "")
    pair.run_for(0.001)
    before = len(pair.client.sent)
    for _ in range(16):
        pair.client.connection.receive([pair.server.sent[-1]], pair.now)
        pair.client.sent += pair.client.connection.flush(pair.now)
    assert len(pair.client.sent) - before == 5  # after 1, 2, 4, 8 and 16


def test_an_idle_connection_ends_at_both_ends() -> None:
    options = EndpointOptions(keep_alive_interval=None, idle_timeout=4.0)
    pair = QuicPair(client=options, server=QUIET).establish()
    pair.run_for(3.0)
    assert reasons(pair) == [None, None]
    pair.run_for(2.0)
    assert [reason and reason[0] for reason in reasons(pair)] == ["idle", "idle"]


def slow_down(pair: QuicPair, rtt: float) -> None:
    """Have both ends believe in a round-trip time in seconds."""
    for side in pair.sides:
        side.connection._quic._loss._rtt_smoothed = rtt


def test_a_peer_that_seems_far_away_is_waited_for_a_little_longer_and_not_without_end() -> None:
    for rtt, wait in ((3.0, 9.0), (1000.0, 4.0 + IDLE_SLACK)):
        options = replace(QUIET, idle_timeout=4.0)
        pair = QuicPair(client=options, server=options).establish()
        slow_down(pair, rtt)
        start = pair.now
        pair.client.connection.send_datagram(b"x")
        pair.run_until(lambda: pair.server.connection.reason is not None, limit=60.0)  # noqa: B023
        assert wait <= pair.now - start < wait + 2.0


def test_a_closed_connection_to_a_peer_that_seems_far_away_is_forgotten_in_time() -> None:
    for rtt, wait in ((1.0, 3.0), (1000.0, CLOSING_LIMIT)):
        pair = QuicPair(client=QUIET, server=QUIET).establish()
        slow_down(pair, rtt)
        start = pair.now
        pair.client.connection.close(0, "")
        pair.run_until(
            lambda: all(side.connection.is_gone for side in pair.sides),  # noqa: B023
            limit=60.0,
        )
        assert wait <= pair.now - start < wait + 1.0


def test_keep_alive_of_one_side_keeps_both_alive() -> None:
    lively = EndpointOptions(keep_alive_interval=1.0, idle_timeout=4.0)
    pair = QuicPair(client=QUIET, server=lively).establish()
    pair.run_for(60.0)
    assert reasons(pair) == [None, None]
    assert 50 <= len(pair.server.sent) <= 140


def test_keep_alives_suit_the_peers_idle_time_out() -> None:
    hasty = EndpointOptions(keep_alive_interval=None, idle_timeout=2.0)
    pair = QuicPair(server=hasty).establish()
    pair.run_for(20.0)
    assert reasons(pair) == [None, None]


def test_keep_alives_have_their_interval_where_nobody_limits_the_idle_time() -> None:
    keep_alive = KeepAlive(5.0)
    keep_alive.begin(1.0, None, None)
    assert keep_alive.deadline == 6.0
    assert not keep_alive.expire(5.9)
    assert keep_alive.expire(6.0)
    assert keep_alive.deadline == 11.0


def test_without_keep_alive_an_idle_connection_is_silent() -> None:
    pair = QuicPair(client=QUIET, server=QUIET).establish()
    before = len(pair.client.sent) + len(pair.server.sent)
    pair.run_for(25.0)
    assert len(pair.client.sent) + len(pair.server.sent) == before


def test_a_dial_nobody_answers_ends_in_time() -> None:
    pair = QuicPair(is_lost=lambda from_client, index: True)
    pair.run_for(9.9)
    assert reasons(pair) == [None, None]
    pair.run_for(0.2)
    reason = pair.client.connection.reason
    assert reason is not None
    assert reason.kind == "unreachable"
    assert reason.text == "no address of the node answered in time"


def test_a_dial_that_gets_stuck_says_that_there_was_an_answer() -> None:
    pair = QuicPair(is_lost=lambda from_client, index: not from_client)
    pair.run_for(0.02)
    # Its Initial packet can be read, the Handshake packet behind it cannot.
    answer = bytearray(pair.server.sent[0])
    initial_end = 26 + (int.from_bytes(answer[24:26], "big") & 0x3FFF)
    answer[initial_end + 40] ^= 1
    pair.client.connection.receive([bytes(answer)], pair.now)
    pair.run_for(11.0)
    reason = pair.client.connection.reason
    assert reason is not None
    assert reason.kind == "unreachable"
    assert "did not complete" in reason.text


def test_a_half_open_handshake_ends_in_time() -> None:
    pair = QuicPair(is_lost=lambda from_client, index: from_client and index > 0)
    pair.run_for(11.0)
    reason = pair.server.connection.reason
    assert reason is not None
    assert reason.kind == "unreachable"
    assert not pair.server.connection.is_established


def test_no_route_is_left_of_a_connection_that_is_forgotten() -> None:
    pair = QuicPair().establish()
    for side in pair.sides:
        assert len(side.routes) > 1
        side.connection.forget_routes()
        assert side.routes == {}


def test_new_connection_ids_are_routed_before_the_peer_knows_them() -> None:
    pair = QuicPair().establish()
    for side, peer in (pair.sides, pair.sides[::-1]):
        known = {cid.cid for cid in peer.connection._quic._peer_cid_available}
        assert known <= set(side.routes)
        assert known


def test_retired_connection_ids_are_routed_no_more() -> None:
    pair = QuicPair().establish()
    before = set(pair.server.routes)
    pair.client.connection._quic.change_connection_id()
    pair.run_for(0.5)
    after = set(pair.server.routes)
    assert len(before - after) == 1
    assert len(after) == len(before)
    pair.client.connection.close(0, "")
    pair.run_for(0.5)
    assert pair.server.connection.reason is not None


def test_a_dial_closed_just_before_its_time_out_stays_closed_for_that_reason() -> None:
    pair = QuicPair(is_lost=lambda from_client, index: not from_client)
    pair.run_for(9.9)
    connection = pair.client.connection
    connection.close(3, "never mind")
    connection.flush(pair.now)
    assert connection.deadline is not None
    connection.handle_timer(pair.now + 0.1)
    assert reasons(pair)[0] == ("local", 3, "never mind", False)
    pair.run_for(5.0)
    assert connection.is_gone
    assert reasons(pair)[0] == ("local", 3, "never mind", False)


def test_to_a_connection_that_is_over_time_and_paths_do_nothing() -> None:
    pair = QuicPair().establish()
    connection = pair.client.connection
    connection.close(3, "bye")
    closing = connection.flush(pair.now)
    assert len(closing) == 1
    for restart in (True, False):
        connection.note_path_change(pair.now, restart=restart)
        assert connection.flush(pair.now) == []
    pair.run_for(5.0)
    assert connection.is_gone
    connection.handle_timer(pair.now + 100.0)
    assert connection.flush(pair.now + 100.0) == []
    assert connection.deadline is None
    with pytest.raises(LocalProtocolError, match="closed: bye"):
        connection.check_open()


def test_a_server_that_chooses_no_protocol_is_refused() -> None:
    pair = QuicPair()
    quic = pair.server.connection._quic
    quic._configuration = replace(quic._configuration, alpn_protocols=None)
    pair.run_for(1.0)
    for side in pair.sides:
        assert side.connection.reason is not None
        assert side.connection.reason.kind == "alpn"
        assert not side.connection.is_established
        assert not side.events


# Loss


@pytest.mark.parametrize("lost", range(8))
@pytest.mark.parametrize("from_client", [True, False])
def test_a_handshake_survives_any_single_loss(lost: int, from_client: bool) -> None:
    def is_lost(sent_by_client: bool, index: int) -> bool:
        return sent_by_client is from_client and index == lost

    pair = QuicPair(is_lost=is_lost)
    pair.run_until(lambda: all(side.connection.is_established for side in pair.sides), limit=9)
    assert reasons(pair) == [None, None]


# Datagrams


def test_datagrams_arrive_up_to_the_size_that_fits() -> None:
    pair = QuicPair().establish()
    connection = pair.client.connection
    limit = connection.max_datagram_payload
    assert limit is not None
    assert 1150 < limit < 1200
    for data in (b"", b"x", bytes(limit)):
        connection.send_datagram(data)
    pair.run_for(0.5)
    assert [event.data for event in pair.server.seen(QuicDatagramReceived)] == [
        b"",
        b"x",
        bytes(limit),
    ]
    with pytest.raises(LocalProtocolError, match="holds"):
        connection.send_datagram(bytes(limit + 1))


def test_the_largest_packets_carry_streams_and_datagrams() -> None:
    large = EndpointOptions(max_datagram_size=MAX_DATAGRAM_SIZE)
    pair = QuicPair(client=large, server=large).establish()
    connection = pair.client.connection
    limit = connection.max_datagram_payload
    assert limit is not None
    assert limit > 16_000
    for size in (limit, 1):
        connection.send_datagram(bytes(size))
    data = random.Random(1).randbytes(300_000)
    stream_id = connection.streams.open(bidirectional=False)
    connection.streams.send(stream_id, data, end=True)
    pair.run_for(2.0)
    assert [len(event.data) for event in pair.server.seen(QuicDatagramReceived)] == [limit, 1]
    assert b"".join(event.data for event in pair.server.seen(StreamDataReceived)) == data
    assert max(map(len, pair.client.sent)) == MAX_DATAGRAM_SIZE


def test_datagrams_need_a_peer_that_takes_them() -> None:
    pair = QuicPair(server=EndpointOptions(datagrams=False)).establish()
    assert pair.client.connection.max_datagram_payload is None
    with pytest.raises(LocalProtocolError, match="takes no"):
        pair.client.connection.send_datagram(b"x")


def test_waiting_datagrams_drive_out_the_oldest() -> None:
    pair = QuicPair(client=EndpointOptions(datagram_queue=10)).establish()
    for index in range(25):
        pair.client.connection.send_datagram(bytes([index]))
    pair.run_for(1.0)
    arrived = [event.data[0] for event in pair.server.seen(QuicDatagramReceived)]
    assert arrived == list(range(15, 25))
    assert pair.client.connection.stats.datagrams_dropped == 15


def test_receiving_without_end_keeps_no_record_of_every_answer() -> None:
    pair = QuicPair(client=QUIET, server=QUIET).establish()
    for _ in range(3 * UNACKNOWLEDGED_LIMIT):
        pair.client.connection.send_datagram(b"news")
        pair.run_for(0.05)
    assert len(pair.server.seen(QuicDatagramReceived)) == 3 * UNACKNOWLEDGED_LIMIT
    assert pair.server.connection._quic.unacknowledged <= UNACKNOWLEDGED_LIMIT + 1


# Challenges


@pytest.mark.parametrize("full_size", [True, False])
def test_a_challenge_is_answered_wherever_it_arrives(full_size: bool) -> None:
    pair = QuicPair(client=QUIET, server=QUIET).establish()
    connection = pair.client.connection
    before = connection.stats
    datagram = connection.make_challenge(b"12345678", full_size=full_size)
    assert datagram is not None
    assert (len(datagram) == 1200) is full_size
    assert connection.stats.packets_sent == before.packets_sent + 1
    assert connection.stats.bytes_sent == before.bytes_sent + len(datagram)
    assert connection.take_challenge_answers() == []
    pair.server.connection.receive([datagram], pair.now)
    pair.run_for(0.5)
    assert connection.take_challenge_answers() == [b"12345678"]
    assert connection.take_challenge_answers() == []
    assert reasons(pair) == [None, None]


def test_an_answer_to_a_challenge_that_was_never_made_is_none() -> None:
    pair = QuicPair(client=QUIET, server=QUIET).establish()
    (forged,) = forge(
        pair.server.connection._quic, QuicPacketType.ONE_RTT, PATH_RESPONSE, b"12345678"
    )
    pair.client.connection.receive([forged], pair.now)
    assert pair.client.connection.take_challenge_answers() == []


def test_of_too_many_challenges_the_oldest_counts_no_more() -> None:
    pair = QuicPair(client=QUIET, server=QUIET).establish()
    connection = pair.client.connection
    made = [number.to_bytes(8, "big") for number in range(OPEN_CHALLENGES_LIMIT + 1)]
    sent = [connection.make_challenge(data, full_size=False) for data in made]
    arriving = [data for data in (sent[0], sent[1], sent[-1]) if data is not None]
    pair.server.connection.receive(arriving, pair.now)
    pair.run_for(0.5)
    assert connection.take_challenge_answers() == [made[1], made[-1]]


def test_no_challenge_is_made_before_and_after_a_connection_stands() -> None:
    pair = QuicPair()
    connection = pair.client.connection
    assert connection.make_challenge(b"12345678", full_size=False) is None
    pair.establish()
    assert connection.make_challenge(b"12345678", full_size=False) is not None
    connection.close(0, "")
    assert connection.make_challenge(b"12345678", full_size=False) is None


# Trouble


@pytest.mark.parametrize(
    "hook",
    ["choose_identity", "check_server_extensions", "take_peer_certificates", "check_signature"],
)
def test_a_question_of_identity_that_nobody_answers_lets_nobody_in(
    hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(NodeContext, hook)
    pair = QuicPair()
    pair.run_for(1.0)
    assert not any(side.connection.is_established for side in pair.sides)
    assert any("NotImplementedError" in (reason or ("",) * 3)[2] for reason in reasons(pair))


def test_a_connection_that_sets_up_no_tls_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(NodeQuic, "prepare_tls")
    reason = QuicPair().client.connection.reason
    assert reason is not None
    assert "NotImplementedError" in reason.text


def test_of_a_stream_that_is_forgotten_nothing_is_known() -> None:
    pair = QuicPair().establish()
    quic = pair.client.connection._quic
    stream_id = pair.client.connection.streams.open(bidirectional=True)
    assert quic.buffered(stream_id) == quic.receive_offset(stream_id) == 0
    assert quic.open_window(stream_id, 1 << 40, 1)
    assert quic.is_stoppable(stream_id)
    assert quic.is_resettable(stream_id)
    gone = stream_id + 4
    assert quic.buffered(gone) is quic.receive_offset(gone) is None
    assert not quic.open_window(gone, 1 << 40, 1)
    assert not quic.is_stoppable(gone)
    assert not quic.is_resettable(gone)


@pytest.mark.parametrize(
    "frames",
    [
        [crypto_frame(2 * index + 1, b"x") for index in range(CRYPTO_PIECES_LIMIT + 1)],
        [crypto_frame(TLS_MESSAGE_LIMIT, b"x")],
    ],
    ids=["too many pieces", "too far off"],
)
def test_a_stranger_cannot_have_much_of_a_handshake_kept(frames: list[bytes]) -> None:
    pair = QuicPair()
    quic, server = pair.client.connection._quic, pair.server.connection
    for frame in frames:
        assert server.reason is None
        server.receive(forge(quic, QuicPacketType.INITIAL, CRYPTO_FRAME, frame), 0.0)
    assert server.reason is not None
    assert (server.reason.code, server.reason.text) == (0xD, "too much to keep")


def test_a_challenge_that_fails_ends_the_connection() -> None:
    pair = QuicPair().establish()

    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("a defect")

    connection = pair.client.connection
    setattr(connection._quic, "make_challenge", fail)  # noqa: B010  # as a defect would
    assert connection.make_challenge(b"12345678", full_size=True) is None
    assert connection.reason is not None
    assert "a defect" in connection.reason.text
    pair.run_for(1.0)
    assert reasons(pair)[1] == ("transport", 1, "internal error", True)


def test_an_endless_handshake_message_is_cut_off() -> None:
    pair = QuicPair()
    sender = pair.client.connection._quic._crypto_streams[Epoch.INITIAL].sender
    endless = b"\x01\xff\xff\xff" + bytes(3 * TLS_MESSAGE_LIMIT)
    sender._pending = RangeSet()
    sender._buffer, sender._buffer_stop = bytearray(), 0
    sender.write(endless)
    pair.run_for(5.0)
    reason = pair.server.connection.reason
    assert reason is not None
    assert (reason.code, reason.text) == (0xD, "too much to keep")
    kept = len(pair.server.connection._quic.tls._receive_buffer)
    assert kept < 3 * TLS_MESSAGE_LIMIT


def test_a_failure_of_aioquic_ends_the_connection_and_nothing_else() -> None:
    pair = QuicPair().establish()

    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("a defect")

    connection = pair.server.connection
    setattr(connection._quic, "_payload_received", fail)  # noqa: B010  # as a defect would
    streams = pair.client.connection.streams
    streams.send(streams.open(bidirectional=False), b"x", end=True)
    pair.run_for(1.0)
    assert connection.reason is not None
    assert connection.reason.kind == "transport"
    assert "RuntimeError: a defect" in connection.reason.text
    assert connection.failures == 1
    assert reasons(pair)[0] == ("transport", 1, "internal error", True)


@pytest.mark.parametrize("method", ["datagrams_to_send", "get_timer", "handle_timer"])
def test_a_failure_of_aioquic_outside_of_receiving_is_caught_too(method: str) -> None:
    pair = QuicPair().establish()

    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("a defect")

    connection = pair.client.connection
    setattr(connection._quic, method, fail)
    connection.handle_timer(pair.now + 5.0)
    connection.flush(pair.now + 5.0)
    assert connection.reason is not None
    assert "a defect" in connection.reason.text
    connection.handle_timer(pair.now + 60.0)
    connection.flush(pair.now + 60.0)
    connection.flush(pair.now + 60.0)
    assert connection.is_gone


def test_missing_private_names_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_CONTEXT_ATTRIBUTES", ("_is_client", "_gone"))
    with pytest.raises(ImportError, match=r"Context\._gone.*aioquic==1\.7\.2"):
        aioquic_private.check_private_names()


def test_changed_private_methods_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def _initialize(self: object, peer_cid: bytes, more: int) -> None: ...

    monkeypatch.setattr("aioquic.quic.connection.QuicConnection._initialize", _initialize)
    with pytest.raises(ImportError, match=r"QuicConnection\._initialize"):
        aioquic_private.check_private_names()


# The nature of the path


def test_the_handshakes_buffers_are_released() -> None:
    pair = QuicPair().establish()
    assert all(side.connection._quic._crypto_buffers == {} for side in pair.sides)


def test_a_burst_may_be_as_long_as_the_pacers_bucket() -> None:
    pair = QuicPair(latency=0.0005).establish()
    streams = pair.client.connection.streams
    stream_id = streams.open(bidirectional=False)
    streams.send(stream_id, bytes(1_000_000), end=True)
    pair.run_for(2.0)
    pacer = pair.client.connection._quic._loss._pacer
    assert pacer.packet_time is not None
    assert pacer.bucket_max >= min(PACER_BURST, BURST_PACKETS_LIMIT * pacer.packet_time)
    assert pacer.bucket_max > 16 * pacer.packet_time


def test_a_burst_is_bounded_however_fast_the_path() -> None:
    pacer = WidePacer(max_datagram_size=1200)
    pacer.update_rate(congestion_window=100_000_000, smoothed_rtt=0.001)
    assert pacer.packet_time is not None
    assert pacer.bucket_max == pytest.approx(BURST_PACKETS_LIMIT * pacer.packet_time)


def test_a_path_of_another_nature_is_measured_anew() -> None:
    pair = QuicPair().establish()
    connection = pair.client.connection
    streams = connection.streams
    streams.send(streams.open(bidirectional=False), bytes(500_000), end=True)
    pair.run_for(0.2)
    grown = connection.stats.congestion_window
    assert grown > 20_000
    connection.note_path_change(pair.now, restart=True)
    assert connection.stats.congestion_window < grown
    assert connection._quic.smoothed_rtt is None
    pair.latency = 0.1
    pair.run_for(20.0)
    assert connection.rtt is not None
    assert connection.rtt > 0.15
    assert sum(len(event.data) for event in pair.server.seen(StreamDataReceived)) == 500_000


def test_bytes_in_flight_survive_a_new_measurement() -> None:
    pair = QuicPair().establish()
    connection = pair.client.connection
    streams = connection.streams
    streams.send(streams.open(bidirectional=False), bytes(100_000), end=True)
    pair.run_for(0.005)
    assert connection.stats.bytes_in_flight > 0
    connection.note_path_change(pair.now, restart=True)
    pair.run_for(10.0)
    assert connection.stats.bytes_in_flight == 0


def test_of_a_path_that_was_never_measured_the_congestion_window_alone_bounds_a_burst() -> None:
    pair = QuicPair(client=QUIET, server=QUIET).establish()
    connection = pair.client.connection
    connection.note_path_change(pair.now, restart=True)
    window = connection.stats.congestion_window
    connection.streams.send(connection.streams.open(bidirectional=False), bytes(100_000), end=True)
    burst = connection.flush(pair.now)  # and lost
    size = max(map(len, burst))
    assert window - size < sum(map(len, burst)) <= window
    pair.run_for(5.0)
    assert sum(len(event.data) for event in pair.server.seen(StreamDataReceived)) == 100_000


def test_after_an_outage_a_change_of_path_brings_data_at_once() -> None:
    pair = QuicPair(client=QUIET, server=QUIET).establish()
    streams = pair.client.connection.streams
    pair.is_lost = lambda from_client, index: True
    streams.send(streams.open(bidirectional=False), b"x", end=True)
    pair.run_for(12.0)
    pair.is_lost = lambda from_client, index: False
    pair.client.connection.note_path_change(pair.now, restart=False)
    pair.run_for(0.2)
    assert pair.server.seen(StreamDataReceived)


def test_a_peer_with_small_packets_gets_no_larger_ones() -> None:
    large = EndpointOptions(max_datagram_size=1452)
    pair = QuicPair(client=large, server=large).establish()
    connection = pair.client.connection
    connection._quic.reduce_datagram_size(1300)
    connection._quic.reduce_datagram_size(1400)
    streams = connection.streams
    streams.send(streams.open(bidirectional=False), bytes(100_000), end=True)
    before = len(pair.client.sent)
    pair.run_for(2.0)
    assert max(map(len, pair.client.sent[before:])) == 1300


def test_a_peer_that_announces_small_packets_gets_no_larger_ones() -> None:
    large = EndpointOptions(max_datagram_size=1452)
    pair = QuicPair(client=large, server=large)
    quic = pair.server.connection._quic
    serialize = quic._serialize_transport_parameters
    announced = bytes((MAX_UDP_PAYLOAD_SIZE, 2)) + encode_quic_varint(1250)
    setattr(quic, "_serialize_transport_parameters", lambda: serialize() + announced)  # noqa: B010
    pair.establish()
    assert pair.client.connection.parameters is not None
    assert pair.client.connection.parameters.max_udp_payload_size == 1250
    before = [len(side.sent) for side in pair.sides]
    for side in pair.sides:
        streams = side.connection.streams
        streams.send(streams.open(bidirectional=False), bytes(100_000), end=True)
    pair.run_for(2.0)
    sent = zip(pair.sides, before, strict=True)
    assert [max(map(len, side.sent[start:])) for side, start in sent] == [1250, 1452]


def test_deadlines_are_never_nearer_than_a_host_can_sleep() -> None:
    pair = QuicPair().establish()
    streams = pair.client.connection.streams
    streams.send(streams.open(bidirectional=False), bytes(1_000_000), end=True)
    for _ in range(200):
        pair.client.connection.flush(pair.now)
        deadline = pair.client.connection.deadline
        assert deadline is not None
        assert deadline >= pair.now + 0.001
        pair.run_for(0.0013)


# What can be watched


class Lines:
    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str, /) -> None:
        self.text += text

    def flush(self) -> None: ...


def test_secrets_are_written_as_wireshark_reads_them() -> None:
    lines = Lines()
    pair = QuicPair(client=EndpointOptions(keylog=lines)).establish()
    labels = [line.split()[0] for line in lines.text.splitlines()]
    assert sorted(labels) == [
        "CLIENT_HANDSHAKE_TRAFFIC_SECRET",
        "CLIENT_TRAFFIC_SECRET_0",
        "SERVER_HANDSHAKE_TRAFFIC_SECRET",
        "SERVER_TRAFFIC_SECRET_0",
    ]
    assert pair.client.connection.is_established


def test_a_log_of_packets_names_the_frames_that_open_windows() -> None:
    logger = QuicLogger()
    options = EndpointOptions(stream_window=4_000, connection_window=8_000, qlog=logger)
    pair = QuicPair(server=options).establish()
    streams = pair.client.connection.streams
    stream_id = streams.open(bidirectional=False)
    streams.send(stream_id, bytes(20_000), end=True)
    for _ in range(20):
        pair.run_for(0.1)
        count = sum(len(event.data) for event in pair.server.seen(StreamDataReceived))
        pair.server.events.clear()
        pair.server.connection.streams.consume(stream_id, count)
    frames = {
        frame["frame_type"]
        for trace in logger.to_dict()["traces"]
        for event in trace["events"]
        if event["name"] == "transport:packet_sent"
        for frame in event["data"]["frames"]
    }
    assert {"max_data", "max_stream_data"} <= frames


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"identity": "pgp"}, "'auto', 'raw' or 'x509', not 'pgp'"),
        ({"max_datagram_size": 1199}, "from 1200 to 16383, not 1199"),
        ({"max_datagram_size": 16_384}, "from 1200 to 16383, not 16384"),
        ({"idle_timeout": 0.0}, "0.001 to 31536000 seconds, not 0.0"),
        ({"idle_timeout": 1e-9}, "not 1e-09"),
        ({"idle_timeout": math.inf}, "not inf"),
        ({"idle_timeout": math.nan}, "not nan"),
        ({"handshake_timeout": math.inf}, "not inf"),
        ({"handshake_timeout": "10"}, "not '10'"),
        ({"keep_alive_interval": 0.0}, "not 0.0"),
        ({"keep_alive_interval": math.inf}, "not inf"),
        ({"stream_window": 0}, "an integer from 1 to 576460752303423488, not 0"),
        ({"stream_window": 1.5}, "not 1.5"),
        ({"stream_window": 1 << 62}, "not 4611686018427387904"),
        ({"connection_window": 1 << 62}, "not 4611686018427387904"),
        ({"max_streams": 1 << 61}, "not 2305843009213693952"),
        ({"datagram_queue": None}, "not None"),
        ({"retry_threshold": -1}, "an integer from 0 to 576460752303423488, not -1"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any], text: str) -> None:
    (name,) = wrong
    with pytest.raises(LocalProtocolError, match=f"^{name} is .*{text}$"):
        EndpointOptions(**wrong)


@pytest.mark.parametrize("time", [MIN_TIME, MAX_TIME])
@pytest.mark.parametrize("number", [1, MAX_NUMBER])
def test_extreme_settings_work(time: float, number: int) -> None:
    options = EndpointOptions(
        idle_timeout=time,
        keep_alive_interval=time,
        handshake_timeout=MAX_TIME,
        stream_window=number,
        connection_window=number,
        send_buffer=number,
        max_streams=number,
        datagram_queue=number,
    )
    pair = QuicPair(client=options, server=options)
    pair.run_until(lambda: all(side.connection.is_established for side in pair.sides))
    for side in pair.sides:
        streams = side.connection.streams
        streams.send(streams.open(bidirectional=False), b"x", end=True)
    pair.run_for(0.5)
    for side in pair.sides:
        assert [event.data for event in side.seen(StreamDataReceived)] == [b"x"]
