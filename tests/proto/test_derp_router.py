from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iroh_proto.derp.codec import FrameCodec
from iroh_proto.derp.dialects import DIALECTS
from iroh_proto.derp.frames import (
    HEADER,
    PACKET_LIMIT,
    Frame,
    NotePreferred,
    PacketGroups,
    PacketParts,
    Ping,
    SendPacket,
)
from iroh_proto.derp.router import DESTINATIONS_LIMIT, DerpRouter
from iroh_proto.derp.send_queue import (
    NEWEST_DROPPED,
    QUEUED_CONTROL_BYTES_LIMIT,
    QUEUED_PACKET_BYTES_LIMIT,
    QUEUED_PACKETS_LIMIT,
    QueueRule,
    SendQueue,
)
from iroh_proto.errors import LocalProtocolError
from iroh_proto.key import NodeId
from iroh_proto.testing.strategies import chunkings
from tests.proto.derp_peer import key

A, B, C = (key(number).public for number in (2, 3, 4))
OLDEST_DROPPED = QueueRule(QUEUED_PACKETS_LIMIT, drops_oldest=True)
FORMS = [("v2", "framed"), ("v3", "framed"), ("v3", "websocket")]


def server_codec(dialect: str, form: str) -> FrameCodec:
    return DIALECTS[dialect].server_codec(form)  # type: ignore[arg-type]


def client_codec(dialect: str, form: str) -> FrameCodec:
    return DIALECTS[dialect].client_codec(form, rng=random.Random(7))  # type: ignore[arg-type]


def client_frames() -> st.SearchStrategy[list[Frame]]:
    packets = st.builds(SendPacket, st.sampled_from([A, B, C]), st.binary(max_size=60))
    pings = st.builds(Ping, st.binary(min_size=8, max_size=8))
    return st.lists(packets | packets | pings | st.just(NotePreferred(True)), max_size=12)


def summarize(received: Sequence[Frame | PacketGroups]) -> tuple[object, object]:
    """Tell frames in their order, and packets in theirs for each destination."""
    packets: dict[bytes, list[bytes]] = {}
    for item in received:
        if isinstance(item, PacketGroups):
            for destination, parts in item.groups.items():
                packets.setdefault(destination, []).append(b"".join(parts))
    frames = [frame for frame in received if not isinstance(frame, PacketGroups)]
    return frames, {destination: b"".join(data) for destination, data in packets.items()}


class TestGrouping:
    @pytest.mark.parametrize(("dialect", "form"), FORMS)
    @given(data=st.data(), frames=client_frames())
    def test_it_finds_the_frames_that_one_by_one_decoding_finds_however_cut(
        self, dialect: str, form: str, data: st.DataObject, frames: list[Frame]
    ) -> None:
        sender = client_codec(dialect, form)
        stream = b"".join(sender.encode(frame) for frame in frames)
        codec = server_codec(dialect, form)
        received: list[Frame | PacketGroups] = []
        for piece in data.draw(chunkings(stream)):
            received += codec.receive_grouped(piece, C)
        expected: dict[bytes, bytes] = {}
        relay = DIALECTS["v2"].server_codec("framed")
        for frame in frames:
            if isinstance(frame, SendPacket):
                so_far = expected.get(frame.dst, b"")
                expected[frame.dst] = so_far + relay.encode_packets(C, [frame.payload])
        others = [frame for frame in frames if not isinstance(frame, SendPacket)]
        assert summarize(received) == (others, expected)
        assert codec.error is None

    @pytest.mark.parametrize(("dialect", "form"), FORMS)
    @given(noise=st.binary(max_size=300), sizes=st.lists(st.integers(1, 50), min_size=1))
    def test_noise_never_raises_and_cutting_it_changes_nothing(
        self, dialect: str, form: str, noise: bytes, sizes: list[int]
    ) -> None:
        whole, pieces = server_codec(dialect, form), server_codec(dialect, form)
        at_once = whole.receive_grouped(noise, A)
        bit_by_bit: list[Frame | PacketGroups] = []
        start = index = 0
        while start < len(noise):
            size = sizes[index % len(sizes)]
            bit_by_bit += pieces.receive_grouped(noise[start : start + size], A)
            start, index = start + size, index + 1
        assert summarize(bit_by_bit) == summarize(at_once)
        assert (pieces.error is None) == (whole.error is None)

    @pytest.mark.parametrize(("dialect", "form"), FORMS)
    def test_one_frame_can_be_taken_and_the_rest_left_for_later(
        self, dialect: str, form: str
    ) -> None:
        sender, codec = client_codec(dialect, form), server_codec(dialect, form)
        stream = b"".join(
            sender.encode(frame)
            for frame in (Ping(b"12345678"), SendPacket(B, b"after"), Ping(b"87654321"))
        )
        assert codec.receive_one(stream[:3]) is None
        assert codec.receive_one(stream[3:]) == Ping(b"12345678")
        rest = codec.receive_grouped(b"", A)
        assert summarize(rest)[0] == [Ping(b"87654321")]
        assert isinstance(rest[0], PacketGroups)
        assert list(rest[0].groups) == [B]

    @pytest.mark.parametrize(("dialect", "form"), FORMS)
    def test_packets_for_two_destinations_in_turn_stay_in_order(
        self, dialect: str, form: str
    ) -> None:
        sender, codec = client_codec(dialect, form), server_codec(dialect, form)
        turns = [(B, b"1"), (C, b"2"), (B, b"3"), (C, b"4"), (B, b"5")]
        stream = b"".join(sender.encode(SendPacket(*turn)) for turn in turns)
        (groups,) = codec.receive_grouped(stream, A)
        assert isinstance(groups, PacketGroups)
        payloads = {dst: b"".join(parts[1::2]) for dst, parts in groups.groups.items()}
        assert payloads == {B: b"135", C: b"24"}

    @pytest.mark.parametrize(("dialect", "form"), FORMS)
    def test_a_first_frame_that_is_none_is_a_fault(self, dialect: str, form: str) -> None:
        codec = server_codec(dialect, form)
        unknown = b"\xff" + bytes(4) if form == "framed" else b"\x82\x81" + bytes(4) + b"\xff"
        assert codec.receive_one(unknown) is None
        assert "unknown frame number 255" in str(codec.error)
        assert codec.receive_one(client_codec(dialect, form).encode(Ping(bytes(8)))) is None

    @pytest.mark.parametrize(("dialect", "form"), FORMS)
    def test_a_packet_alone_in_a_read_is_the_same_whatever_came_before(
        self, dialect: str, form: str
    ) -> None:
        sender, codec = client_codec(dialect, form), server_codec(dialect, form)
        assert codec.receive_grouped(b"", A) == []
        for frame in (
            SendPacket(B, b"12345678"),
            SendPacket(C, b"87654321"),  # as long, for another one
            Ping(b"12345678"),
            SendPacket(C, b"longer than before"),
            SendPacket(B, b"as long as is that"),
        ):
            data = sender.encode(frame)
            assert codec.receive_grouped(data[:7], A) == []
            fresh = server_codec(dialect, form).receive_grouped(data, A)
            assert summarize(codec.receive_grouped(data[7:], A)) == summarize(fresh)
            assert summarize(codec.receive_grouped(data, A)) == summarize(fresh)

    @pytest.mark.parametrize(("dialect", "form"), FORMS)
    def test_nothing_is_taken_behind_a_fault_however_well_known(
        self, dialect: str, form: str
    ) -> None:
        codec = server_codec(dialect, form)
        packet = client_codec(dialect, form).encode(SendPacket(B, b"payload"))
        assert codec.receive_grouped(packet, A)
        codec.receive_grouped(b"\xff" * 5, A)
        assert codec.error is not None
        assert codec.receive_grouped(packet, A) == []

    def test_groups_stand_where_their_packets_stood(self) -> None:
        sender = client_codec("v3", "framed")
        frames = [SendPacket(B, b"1"), Ping(bytes(8)), SendPacket(B, b"2"), SendPacket(C, b"3")]
        received = server_codec("v3", "framed").receive_grouped(
            b"".join(map(sender.encode, frames)), A
        )
        groups = [item.groups if isinstance(item, PacketGroups) else item for item in received]
        assert [list(item) if isinstance(item, dict) else item for item in groups] == [
            [B],
            Ping(bytes(8)),
            [B, C],
        ]

    @pytest.mark.parametrize("length", [0, 31, 33 + PACKET_LIMIT, 2**32 - 1])
    def test_a_packet_without_a_key_or_above_the_limit_is_a_fault(self, length: int) -> None:
        codec = server_codec("v3", "framed")
        good = client_codec("v3", "framed").encode(SendPacket(B, b"good"))
        received = codec.receive_grouped(good + HEADER.pack(4, length) + bytes(64), A)
        assert len(received) == 1  # what came before the fault counts
        assert codec.error is not None

    def test_packets_of_any_permitted_length_pass(self) -> None:
        codec, sender = server_codec("v2", "framed"), client_codec("v2", "framed")
        stream = sender.encode(SendPacket(B, b"")) + sender.encode(
            SendPacket(B, bytes(PACKET_LIMIT))
        )
        received = codec.receive_grouped(stream, A)
        assert codec.error is None
        relay = DIALECTS["v2"].server_codec("framed")
        assert summarize(received)[1] == {B: relay.encode_packets(A, [b"", bytes(PACKET_LIMIT)])}

    @pytest.mark.parametrize(("dialect", "form"), FORMS)
    @given(payloads=st.lists(st.binary(max_size=200), min_size=1, max_size=5))
    def test_relayed_packets_arrive_as_sent_whatever_the_destination_speaks(
        self, dialect: str, form: str, payloads: list[bytes]
    ) -> None:
        stream = client_codec("v3", "framed").encode_packets(B, payloads)
        (groups,) = server_codec("v3", "framed").receive_grouped(stream, A)
        assert isinstance(groups, PacketGroups)
        pieces = server_codec(dialect, form).encode_relayed(groups.groups[B])
        assert len(pieces) in (1, len(payloads))
        expected = server_codec(dialect, form).encode_packets(A, payloads)
        assert b"".join(pieces) == expected


def sent(*groups: tuple[NodeId | bytes, Sequence[bytes]]) -> dict[bytes, PacketParts]:
    return {
        destination: [part for payload in payloads for part in (b"header", payload)]
        for destination, payloads in groups
    }


class TestRouting:
    def test_packets_go_to_who_has_the_key(self) -> None:
        router = DerpRouter()
        assert router.connect(1, A) is None
        assert router.connect(2, B) is None
        assert router.node_ids == [A, B]
        deliveries = router.route(1, sent((B, [b"x", b"y"]), (A, [b"to myself"])))
        assert deliveries == [
            (2, [b"header", b"x", b"header", b"y"]),
            (1, [b"header", b"to myself"]),
        ]
        assert router.stats.packets_routed == 3
        assert router.stats.packets_without_route == 0
        assert router.stats.bytes_routed == len("xy" + "to myself")

    def test_packets_for_nobody_are_dropped_and_counted(self) -> None:
        router = DerpRouter()
        router.connect(1, A)
        assert router.route(1, sent((B, [b"x", b"y"]), (b"\xff" * 32, [b"z"]))) == []
        assert router.stats.packets_without_route == 3
        assert router.stats.bytes_without_route == 3
        assert router.stats.bytes_routed == 0

    def test_a_stranger_sends_nothing(self) -> None:
        router = DerpRouter()
        router.connect(1, A)
        assert router.route(9, sent((A, [b"x"]))) == []
        assert router.stats.packets_without_route == 1

    def test_a_newer_connection_takes_the_place_of_the_older(self) -> None:
        router = DerpRouter()
        router.connect(1, A)
        router.connect(2, B)
        router.route(1, sent((B, [b"x"])))
        assert router.connect(3, A) == 1
        assert [target for target, _ in router.route(2, sent((A, [b"y"])))] == [3]
        assert router.route(1, sent((B, [b"from the old one"]))) == []
        assert router.disconnect(1) == ([], None)  # its node is still there: nobody is told
        assert router.disconnect(3) == ([], None)  # and whom the old one had sent to is forgotten
        assert router.stats.clients_replaced == 1
        assert len(router) == 1

    def test_one_that_waits_gets_its_place_back(self) -> None:
        router = DerpRouter()
        router.connect(1, A, waits=True)
        router.connect(2, A, waits=True)
        router.connect(3, B)
        assert router.connect(4, A) == 2
        assert [router.is_waiting(number) for number in (1, 2, 3, 4, 5)] == [
            True,
            True,
            False,
            False,
            False,
        ]
        assert router.stats.clients_set_aside == 2
        assert router.node_ids == [B, A]
        for sender in (1, 4):
            assert [target for target, _ in router.route(sender, sent((B, [b"x"])))] == [3]
        assert router.disconnect(4) == ([], 2)
        assert [target for target, _ in router.route(3, sent((A, [b"y"])))] == [2]
        assert router.disconnect(1) == ([], None)
        assert router.disconnect(2) == ([(3, A)], None)  # for what the one that waited had sent
        assert router.stats.clients_back == 2

    def test_nothing_is_kept_of_a_node_whose_clients_all_gave_way_to_one_elsewhere(self) -> None:
        router = DerpRouter()
        router.connect(1, A)
        assert router.set_aside(A) == 1
        assert router._aliases == {}
        router.connect(2, A, waits=True)
        assert router.set_aside(A) == 2
        assert router.disconnect(2) == ([], None)
        assert router._aliases == {}
        assert router._waiting == ({}, {})

    def test_who_was_sent_to_hears_of_the_end(self) -> None:
        router = DerpRouter()
        for client_id, node_id in ((1, A), (2, B), (3, C)):
            router.connect(client_id, node_id)
        router.route(1, sent((B, [b"x"]), (A, [b"self"])))
        router.route(3, sent((A, [b"y"])))
        assert router.disconnect(1) == ([(2, A)], None)
        assert router.disconnect(1) == ([], None)
        assert router.disconnect(3) == ([], None)  # whom it had sent to is gone

    def test_a_client_connects_once(self) -> None:
        router = DerpRouter()
        router.connect(1, A)
        with pytest.raises(LocalProtocolError, match="already"):
            router.connect(1, B)
        assert router.node_ids == [A]

    def test_destinations_are_remembered_up_to_a_limit(self) -> None:
        router = DerpRouter()
        router.connect(0, A)
        keys = [key(number % 251).public + number.to_bytes(4, "big") for number in range(1, 5000)]
        for number, node_id in enumerate(keys, 1):
            router.connect(number, node_id)  # type: ignore[arg-type]  # any bytes will do here
            router.route(0, sent((node_id, [b"x"])))
        told = router.disconnect(0).told
        assert len(told) == DESTINATIONS_LIMIT
        assert told[-1] == (len(keys), A)  # the latest are the ones that are kept


def framed(payload: bytes) -> bytes:
    return HEADER.pack(5, len(payload)) + payload


class TestSendQueue:
    def test_bytes_leave_in_the_order_they_came(self) -> None:
        queue = SendQueue()
        assert not queue
        queue.push_control(b"a")
        queue.push_packets(framed(b"b"), 1)
        queue.push_control(b"c")
        assert queue
        assert queue.pull() == b"a" + framed(b"b") + b"c"
        assert not queue
        assert queue.pull() == b""
        assert (queue.packets, queue.packet_bytes, queue.control_bytes) == (0, 0, 0)

    def test_it_gives_pieces_of_about_the_wanted_size(self) -> None:
        queue = SendQueue()
        for letter in (b"a", b"b", b"c"):
            queue.push_packets(letter * 10, 1)
        assert queue.pull(11) == b"a" * 10 + b"b" * 10
        assert queue.pull(1) == b"c" * 10

    def test_the_oldest_packets_are_dropped_one_by_one(self) -> None:
        queue = SendQueue(OLDEST_DROPPED)
        batch = b"".join(framed(bytes((number,))) for number in range(10))
        assert queue.push_packets(batch, 10) == 0
        dropped = sum(
            queue.push_packets(framed(b"new"), 1) for _ in range(QUEUED_PACKETS_LIMIT - 7)
        )
        assert dropped == 3
        kept = b"".join(framed(bytes((number,))) for number in range(3, 10))
        assert queue.pull(1) == kept
        assert queue.packets == QUEUED_PACKETS_LIMIT - 7

    def test_by_default_the_newest_packets_are_dropped_one_by_one(self) -> None:
        queue = SendQueue()
        for number in range(QUEUED_PACKETS_LIMIT - 3):
            assert queue.push_packets(framed(number.to_bytes(2, "big")), 1) == 0
        batch = b"".join(framed(bytes((letter,))) for letter in b"abcde")
        assert queue.push_packets(batch, 5) == 2
        assert queue.push_packets(framed(b"late"), 1) == 1
        assert queue.pull().endswith(framed(b"a") + framed(b"b") + framed(b"c"))
        assert queue.push_packets(framed(b"late"), 1) == 0

    def test_control_bytes_survive_and_keep_their_place(self) -> None:
        queue = SendQueue(OLDEST_DROPPED)
        queue.push_packets(framed(b"old"), 1)
        queue.push_control(b"control")
        half = bytes(QUEUED_PACKET_BYTES_LIMIT // 2)
        for _ in range(3):
            queue.push_packets(framed(half[: len(half) - 5]), 1)
        data = queue.pull()
        assert data.startswith(b"control" + framed(half[: len(half) - 5]))
        assert len(data) == len(b"control") + 2 * len(half)

    def test_too_much_control_is_refused(self) -> None:
        queue = SendQueue()
        while queue.push_control(bytes(1000)):
            pass
        assert queue.control_bytes <= QUEUED_CONTROL_BYTES_LIMIT
        queue.pull(1)
        assert queue.push_control(bytes(1000))

    @given(
        batches=st.lists(
            st.lists(st.sampled_from([0, 7, 1200, 60_000]), min_size=1, max_size=40), max_size=30
        ),
        rule=st.sampled_from([NEWEST_DROPPED, OLDEST_DROPPED]),
    )
    def test_batches_and_single_packets_leave_the_same_behind(
        self, batches: list[list[int]], rule: QueueRule
    ) -> None:
        together, in_pieces, singly = SendQueue(rule), SendQueue(rule), SendQueue(rule)
        number = dropped_together = dropped_in_pieces = dropped_singly = 0
        for batch in batches:
            packets = []
            for size in batch:
                number += 1
                packets.append(framed(number.to_bytes(4, "big") + bytes(size)))
            dropped_together += together.push_packets(b"".join(packets), len(packets))
            dropped_in_pieces += in_pieces.push_pieces(packets)
            dropped_singly += sum(singly.push_packets(packet, 1) for packet in packets)
            assert together.packets <= QUEUED_PACKETS_LIMIT
            assert together.packet_bytes <= QUEUED_PACKET_BYTES_LIMIT
        assert (together.packets, dropped_together) == (singly.packets, dropped_singly)
        assert (in_pieces.packets, dropped_in_pieces) == (singly.packets, dropped_singly)
        assert together.pull() == in_pieces.pull() == singly.pull()
