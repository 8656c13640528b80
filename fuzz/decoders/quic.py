"""The parts of QUIC packets that this package reads itself."""

from __future__ import annotations

import random

from aioquic._buffer import Buffer
from aioquic.quic.packet import QuicPacketType, pull_quic_header

from fuzz import seeds
from fuzz.target import Choices, Target, decoded
from iroh_anyio.quic.header import (
    INITIAL,
    LongHeader,
    decode_long_header,
    long_destination_cid,
)
from iroh_anyio.quic.observed_address import (
    OBSERVED_IPV4,
    OBSERVED_IPV6,
    decode_observed,
    encode_observed,
    frame_type_of,
    wants_observations,
)
from iroh_anyio.quic.retry import TOKEN_LIFETIME, RetryTokens
from iroh_proto.address import Address, DerpAddress, DerpUrl, UdpAddress
from iroh_proto.key import SecretKey
from iroh_proto.wire import decode_quic_varint

VERSION_1 = 1
SOURCES: list[Address] = [
    UdpAddress("192.0.2.1", 1),
    UdpAddress("192.0.2.1", 2),
    UdpAddress("2001:db8::1", 1),
    DerpAddress(
        DerpUrl.from_str("http://derp.example"), SecretKey.generate(random.Random(7)).public
    ),
]


def check_header(data: bytes) -> None:
    """A long header that decodes is what its bytes say, and what aioquic reads in them too."""
    header = decoded(decode_long_header, data, version=VERSION_1)
    destination = long_destination_cid(data)
    if header is None:
        return
    assert header.destination_cid == destination
    assert header.version == int.from_bytes(data[1:5], "big")
    front = data[:5] + _sized(header.destination_cid) + _sized(header.source_cid)
    assert data.startswith(front)
    if header.token:
        size, start = decode_quic_varint(data, len(front))
        assert data[start : start + size] == header.token
    _compare_with_aioquic(data, header)


def _compare_with_aioquic(data: bytes, header: LongHeader) -> None:
    try:
        theirs = pull_quic_header(Buffer(data=data), host_cid_length=8)
    except ValueError:
        return
    assert theirs.version == header.version
    assert theirs.destination_cid == header.destination_cid
    assert theirs.source_cid == header.source_cid
    is_initial = header.version == VERSION_1 and header.kind == INITIAL
    assert is_initial == (
        theirs.packet_type == QuicPacketType.INITIAL and theirs.version == VERSION_1
    )
    assert not is_initial or theirs.token == header.token


def _sized(connection_id: bytes) -> bytes:
    return bytes((len(connection_id),)) + connection_id


def check_retry_token(data: bytes) -> None:
    """A token opens for its source, its connection id and its time, and no other bytes do."""
    choices = Choices(data)
    tokens = RetryTokens(random.Random(choices.below(256)))
    source, other = (SOURCES[choices.below(len(SOURCES))] for _ in range(2))
    now, flip, place = float(choices.below(256)), 1 + choices.below(255), choices.take(2)
    noise = choices.rest
    original = noise[:20]
    retry_cid, token = tokens.create(source, original_destination_cid=original, now=now)

    def opens(token: bytes, source: Address, cid: bytes = retry_cid, at: float = now) -> bool:
        return tokens.open(token, source, destination_cid=cid, now=at) is not None

    found = tokens.open(token, source, destination_cid=retry_cid, now=now)
    assert found is not None
    assert (found.original_destination_cid, found.retry_source_cid) == (original, retry_cid)
    assert opens(token, other) == (source == other)
    assert not opens(token, source, at=now + TOKEN_LIFETIME)
    assert opens(token, source, cid=noise) == (noise == retry_cid)
    bent = bytearray(token)
    bent[int.from_bytes(place, "big") % len(bent)] ^= flip
    assert not opens(bytes(bent), source)
    assert not opens(noise, source)
    assert not opens(token + noise[:1] if noise else token[:-1], source)


def check_observed(data: bytes) -> None:
    """An observed address that is read is written in as few bytes or fewer, which read the same."""
    wants_observations(data)
    choices = Choices(data)
    frame_type = OBSERVED_IPV6 if choices.below(2) else OBSERVED_IPV4
    read = decoded(decode_observed, frame_type, choices.rest)
    if read is not None:
        sequence, address, end = read
        written = encode_observed(sequence, address)
        assert len(written) <= end <= len(choices.rest)
        again = decode_observed(frame_type_of(address), written)
        assert again == (sequence, address, len(written))
        assert len(written) < end or written == choices.rest[:end]


def header_seeds() -> list[bytes]:
    """Return first packets of real peers, and headers of all kinds."""
    cids = _sized(b"destinat") + _sized(b"source")
    kinds = [bytes((0xC0 | kind << 4,)) for kind in range(4)]
    versions = [version.to_bytes(4, "big") for version in (0, 1, 2, 0x6B3343CF)]
    token = b"\x40\x05token" + b"\x40\x28" + bytes(40)
    made = [kind + version + cids + token for kind in kinds for version in versions]
    return [*made, *seeds.packets("identity.json")]


TARGETS = {
    "quic-header": Target(check_header, header_seeds),
    "quic-observed-address": Target(
        check_observed,
        lambda: seeds.steered(
            [b"\0", b"\1"], [b"\x07" + bytes(range(24)), b"\x40\x07" + bytes(24)]
        ),
    ),
    "quic-retry-token": Target(
        check_retry_token, lambda: seeds.noise("retry token", count=6, size=64)
    ),
}
