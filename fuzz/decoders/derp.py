"""Frames of DERP: each dialect in each form, for both roles."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import TypeAlias

from fuzz import seeds
from fuzz.target import Choices, Target, pieces_of
from iroh_proto.derp.codec import Form, FrameCodec
from iroh_proto.derp.curve_frames import CurveSendPacket
from iroh_proto.derp.datagram_frames import (
    RecvDatagram,
    RecvDatagramBatch,
    SendDatagram,
    SendDatagramBatch,
)
from iroh_proto.derp.dialects import (
    DIALECTS,
    ClientHandshake,
    ClientKey,
    Dialect,
    ServerHandshake,
)
from iroh_proto.derp.frames import (
    DATAGRAM_LIMIT,
    Frame,
    Health,
    KeepAlive,
    NotePreferred,
    PacketGroups,
    PeerGone,
    Ping,
    Pong,
    RecvPacket,
    Restarting,
    SendPacket,
    Status,
    UnknownFrame,
    pack_datagrams,
    split_datagrams,
)
from iroh_proto.derp.segments import CONVERTED_LIMIT, batches, segments
from iroh_proto.errors import DecodeError, LocalProtocolError
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.x25519 import x25519_of

CLIENT, SERVER, OTHER = (SecretKey.generate(random.Random(seed)) for seed in (401, 402, 403))
DATAGRAMS = [b"one", bytes(70), bytes(70), b"last"]

Content: TypeAlias = tuple[list[Frame], dict[bytes, bytes]]
"""Frames that carry nothing, and the datagrams for each destination, one behind the other."""


def receiver(dialect: Dialect, form: Form, *, is_server: bool) -> FrameCodec:
    """Return a codec of one side."""
    if is_server:
        return dialect.server_codec(form)
    return dialect.client_codec(form, rng=random.Random(0))


def client_key(dialect: Dialect) -> ClientKey:
    """Return the key by which a client is known in a dialect."""
    return x25519_of(CLIENT.public) if dialect.has_curve_keys else CLIENT.public


def frames_target(dialect: Dialect, form: Form) -> Target:
    """Return the target of a dialect's codecs in one form."""

    def check(data: bytes) -> None:
        """Cut anywhere a stream gives the same frames; each encodes to what decodes the same.

        The three ways to receive agree. The framed form encodes to the same bytes.
        """
        choices = Choices(data)
        is_server, size = bool(choices.below(2)), 1 + choices.below(256)
        stream = choices.rest
        whole = receiver(dialect, form, is_server=is_server)
        frames = whole.receive(stream)
        assert whole.error is None or whole.receive(stream) == []
        _check_pieces(dialect, form, is_server, list(pieces_of(stream, size)), frames, whole)
        _check_one_by_one(receiver(dialect, form, is_server=is_server), stream, frames)
        sender = receiver(dialect, form, is_server=not is_server)
        known = [frame for frame in frames if not isinstance(frame, UnknownFrame)]
        again = b"".join(map(sender.encode, known))
        assert receiver(dialect, form, is_server=is_server).receive(again) == known
        # Tailscale's frames may be longer than what is known of them.
        assert form != "framed" or dialect.has_curve_keys or stream.startswith(again)
        if is_server:
            grouped = receiver(dialect, form, is_server=True)
            found = _content(grouped.receive_grouped(stream, client_key(dialect)))
            # Groups leave it open whether a destination is a node id.
            assert whole.error is not None or (found, grouped.error) == (_content(frames), None)

    return Target(check, lambda: frame_seeds(dialect, form))


def _check_pieces(
    dialect: Dialect,
    form: Form,
    is_server: bool,
    pieces: list[bytes],
    frames: list[Frame],
    whole: FrameCodec,
) -> None:
    cut = receiver(dialect, form, is_server=is_server)
    assert [frame for piece in pieces for frame in cut.receive(piece)] == frames
    assert repr(cut.error) == repr(whole.error)
    assert cut.is_closed == whole.is_closed
    assert cut.replies() == whole.replies()


def _check_one_by_one(codec: FrameCodec, stream: bytes, frames: list[Frame]) -> None:
    found: list[Frame] = []
    frame = codec.receive_one(stream)
    while frame is not None:
        found.append(frame)
        frame = codec.receive_one(b"")
    assert found == frames


def _content(frames: Iterable[Frame | PacketGroups]) -> Content:
    others: list[Frame] = []
    carried: dict[bytes, bytes] = {}
    for frame in frames:
        match frame:
            case PacketGroups():
                for destination, parts in frame.groups.items():
                    assert parts
                    data = b"".join(map(bytes, parts[1::2]))
                    carried[destination] = carried.get(destination, b"") + data
            case SendPacket() | CurveSendPacket():
                carried[frame.dst] = carried.get(frame.dst, b"") + frame.payload
            case SendDatagram() | SendDatagramBatch():
                carried[frame.dst] = carried.get(frame.dst, b"") + frame.data
            case _:
                others.append(frame)
    return others, carried


def check_relaying(data: bytes) -> None:
    """Datagrams arrive as they were sent, in order, between clients of any two dialects.

    All but those that the newer dialects do not carry: none are empty or above the limit. No more
    are sent than a server converts at a time.
    """
    choices = Choices(data)
    spoken = [(dialect, form) for dialect, form in SPOKEN if not dialect.has_curve_keys]
    (theirs, sends), (ours, receives) = (spoken[choices.below(len(spoken))] for _ in range(2))
    datagrams = list(islice(_datagrams(choices), CONVERTED_LIMIT))
    client = theirs.client_codec(sends, rng=random.Random(0))
    packets = client.encode_packets(SERVER.public, pack_datagrams(datagrams))
    hub, far_hub = theirs.server_codec(sends), ours.server_codec(receives)
    far = ours.client_codec(receives, rng=random.Random(0))
    arrived: list[bytes] = []
    for groups in hub.receive_grouped(packets, CLIENT.public):
        assert isinstance(groups, PacketGroups)
        assert list(groups.groups) == [SERVER.public]
        for piece in far_hub.encode_relayed(groups.groups[SERVER.public]):
            for frame in far.receive(piece):
                arrived += _carried(frame, CLIENT.public)
    assert hub.error is None
    assert far.error is None
    if "framed" not in theirs.forms or "framed" not in ours.forms:
        datagrams = [datagram for datagram in datagrams if datagram]
    assert arrived == datagrams


def _carried(frame: Frame, source: NodeId) -> list[bytes]:
    assert isinstance(frame, RecvPacket | RecvDatagram | RecvDatagramBatch)
    assert frame.src == source
    return split_datagrams(frame.payload) if isinstance(frame, RecvPacket) else frame.datagrams()


def _datagrams(choices: Choices) -> Iterator[bytes]:
    """Yield datagrams, often several of one size."""
    while choices.rest:
        count, scale = 1 + choices.below(8), choices.below(4)
        size = choices.below(256) << 2 * scale
        for _ in range(count):
            yield choices.take(min(size, DATAGRAM_LIMIT))[:size]


def check_payload(data: bytes) -> None:
    """Datagrams packed, batched or cut into segments are the same afterwards, in order."""
    datagrams = split_datagrams(data)
    assert [
        d for payload in pack_datagrams(datagrams) for d in split_datagrams(payload)
    ] == datagrams
    carried = [d for size, part in batches(datagrams) for d in segments(part, size)]
    assert carried == [datagram for datagram in datagrams if 0 < len(datagram) <= DATAGRAM_LIMIT]
    size = int.from_bytes(data[:2], "big")
    assert b"".join(segments(data, size)) == data


def check_handshake(data: bytes) -> None:
    """A handshake refuses with DecodeError, or lets in whom the first frame proves to be there.

    What is in a box or under a signature is hostile as well.
    """
    choices = Choices(data)
    spoken = list(SPOKEN)
    dialect, form = spoken[choices.below(len(spoken))]
    rng = random.Random(choices.below(256))
    theirs = dialect.server_handshake(secret_key=SERVER, rng=rng)
    ours = dialect.client_handshake(secret_key=CLIENT, rng=rng)
    _meet(dialect, form, ours, theirs)
    for is_server in (True, False):
        codec = receiver(dialect, form, is_server=is_server)
        _stand_up_to(dialect, codec.receive(choices.rest), is_server)
        _stand_up_to(dialect, _proven(dialect, choices.rest), is_server)


def _meet(dialect: Dialect, form: Form, ours: ClientHandshake, theirs: ServerHandshake) -> None:
    """Have two honest sides let each other in."""
    to_server = dialect.client_codec(form, rng=random.Random(0))
    server, to_client = dialect.server_codec(form), dialect.server_codec(form)
    client = dialect.client_codec(form, rng=random.Random(0))

    def carry(sender: FrameCodec, receiving: FrameCodec, frames: Sequence[Frame]) -> list[Frame]:
        return receiving.receive(b"".join(map(sender.encode, frames)))

    said = list(ours.begin())
    for frame in carry(to_client, client, theirs.begin()):
        said += ours.receive(frame)
    (proof,) = carry(to_server, server, said)
    assert theirs.receive(proof) == client_key(dialect)
    for frame in carry(to_client, client, theirs.accept()):
        ours.receive(frame)
    assert ours.is_done


def _stand_up_to(dialect: Dialect, frames: Sequence[Frame], is_server: bool) -> None:
    with suppress(DecodeError):
        if is_server:
            handshake = dialect.server_handshake(secret_key=SERVER, rng=random.Random(0))
            for frame in frames:
                name = "key" if dialect.has_curve_keys else "node_id"
                assert handshake.receive(frame) == getattr(frame, name, None)
                handshake.accept()
        else:
            asking = dialect.client_handshake(secret_key=CLIENT, rng=random.Random(0))
            for frame in frames:
                asking.receive(frame)
    if is_server:
        handshake = dialect.server_handshake(secret_key=SERVER, rng=random.Random(0))
        for answer in (*handshake.reject(), *handshake.refuse("no")):
            assert isinstance(answer, Frame)


def _proven(dialect: Dialect, content: bytes) -> list[Frame]:
    """Return what one who has a key may say, with any content."""
    return [frame for make in PROOFS.get(dialect.name, ()) for frame in make(content)]


def _boxed(content: bytes) -> list[Frame]:
    from iroh_proto.box import SharedBox
    from iroh_proto.derp.dialects import v2

    nonce = bytes(24)
    to_server = SharedBox(OTHER, SERVER.public).seal(content, nonce)
    to_client = SharedBox(SERVER, CLIENT.public).seal(content, nonce)
    return [
        v2.ServerKey(SERVER.public),
        v2.ServerInfo(to_client),
        v2.ClientInfo(OTHER.public, to_server),
    ]


def _signed(content: bytes) -> list[Frame]:
    from iroh_proto.derp.dialects import v3

    return [v3.ClientInfo(OTHER.public, OTHER.sign(content), content)]


PROOFS: dict[str, tuple[Callable[[bytes], list[Frame]], ...]] = {"v2": (_boxed,), "v3": (_signed,)}


def sample_frames(dialect: Dialect) -> list[Frame]:
    """Return one frame of each kind or more, some of which a dialect may not have."""
    key, (packed, *_) = OTHER.public, pack_datagrams(DATAGRAMS)
    server = dialect.server_handshake(secret_key=SERVER, rng=random.Random(1))
    client = dialect.client_handshake(secret_key=CLIENT, rng=random.Random(1))
    return [
        *server.begin(),
        *client.begin(),
        SendPacket(key, packed),
        SendPacket(key, packed),
        RecvPacket(key, packed),
        SendDatagram(key, 1, b"one"),
        SendDatagramBatch(key, 2, 2, b"threetwo1"),
        RecvDatagram(key, 1, b"one"),
        RecvDatagramBatch(key, 2, 2, b"threetwo1"),
        KeepAlive(),
        NotePreferred(True),
        PeerGone(key),
        Ping(b"pingpong"),
        Pong(b"pingpong"),
        Health("a problem"),
        Status(2),
        Restarting(1000, 2000),
    ]


def frame_seeds(dialect: Dialect, form: Form) -> list[bytes]:
    """Return streams for each role: of golden bytes, of one frame, and of all frames."""
    streams = [*seeds.packets("relay.json")] if form == "framed" else []
    found: list[bytes] = []
    for is_server in (False, True):
        sender = receiver(dialect, form, is_server=not is_server)
        encoded: list[bytes] = []
        for frame in sample_frames(dialect):
            with suppress(LocalProtocolError):  # this dialect has no such frame
                encoded.append(sender.encode(frame))
        head = bytes((is_server, 6))
        found += [head + stream for stream in (*streams, *encoded)]
        found.append(head + b"".join(encoded) + sender.goodbye())
    return found


def handshake_seeds() -> Iterator[bytes]:
    """Yield what is said in honest handshakes."""
    for number, (dialect, form) in enumerate(SPOKEN):
        head = bytes((number, 0))
        yield from (head + content for content in (b"\x03", b"\x02\x00\x01\x00", b"\x02\x05\x06"))
        yield from (head + stream[2:] for stream in frame_seeds(dialect, form)[:40])


SPOKEN: list[tuple[Dialect, Form]] = [
    (dialect, form) for dialect in DIALECTS.values() for form in sorted(dialect.forms)
]

TARGETS = {
    **{f"derp-{dialect.name}-{form}": frames_target(dialect, form) for dialect, form in SPOKEN},
    "derp-handshake": Target(check_handshake, handshake_seeds),
    "derp-relaying": Target(
        check_relaying,
        lambda: [
            *seeds.noise("relaying", count=6, size=400),
            *(
                bytes((ours, theirs, 3, 1, 30, 1, 0, 0, 2, 3, 255))
                for ours in range(5)
                for theirs in range(5)
            ),
        ],
    ),
    "derp-payload": Target(
        check_payload, lambda: [*seeds.packets("relay.json"), *pack_datagrams(DATAGRAMS)]
    ),
}
