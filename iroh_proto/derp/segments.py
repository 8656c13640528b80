"""Datagrams as relays of iroh 0.91 and later carry them, and how they pass to older ones.

There, one frame holds one datagram, or a batch of equal ones of which the last may be shorter,
as UDP segmentation offload has them. Until 0.90 a payload holds datagrams of any length, each
behind its own (:func:`~iroh_proto.derp.frames.pack_datagrams`)::

    single   ecn (1) || datagram
    batch    ecn (1) || segment size (u16be) || datagrams
    packed   (length (u16le) || datagram) ...

The two low bits of ``ecn`` are those of the IP header: 0 none, 1 ECT(1), 2 ECT(0), 3 CE. A packed
payload has no place for them.

At a relay of Tailscale each packet is one bare datagram.

On their way through a server packets of 0.91 and later are
:data:`~iroh_proto.derp.frames.PacketParts` whose header is that of the frame for the receiver,
``6 || source (32) || ecn`` or ``7 || source (32) || ecn || segment size``. Its first byte tells
both kinds apart.

Source: iroh v1.0.3 ``iroh-relay/src/protos/relay.rs``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from struct import Struct

from iroh_proto.derp.frames import (
    DATAGRAM_LIMIT,
    KEYED_HEADER,
    RELAYED_PACKET,
    PacketParts,
    pack_datagrams,
    split_datagrams,
)
from iroh_proto.key import KEY_SIZE

ECN_MASK = 0b11
"""The bits that count in the byte for ECN."""

RELAYED_DATAGRAM = 6
"""The number of the frame that brings a single datagram to a client."""

RELAYED_BATCH = 7
"""The number of the frame that brings a batch to a client."""

BATCH_LIMIT = DATAGRAM_LIMIT - 2
"""Most bytes of datagrams in one batch: a whole frame, its number included, has at most 65,536."""

CONVERTED_LIMIT = 512
"""Datagrams that are brought into another form for one receiver at a time, the most that any queue
has room for. What is more is left out: a packet of some ten thousand datagrams without bytes would
cost a server half a second."""

SINGLE_HEADER = Struct(">B32sB")
BATCH_HEADER = Struct(">B32sBH")

_SEGMENT_SIZE_AT = BATCH_HEADER.size - 2


def segments(data: bytes, segment_size: int) -> list[bytes]:
    """Return the datagrams of a batch; ``segment_size`` is 0 for a single one.

    Nothing is no datagram.
    """
    if not data:
        return []
    if not 0 < segment_size < len(data):
        return [data]
    return [data[start : start + segment_size] for start in range(0, len(data), segment_size)]


def batches(datagrams: Iterable[bytes]) -> list[tuple[int, bytes]]:
    """Return these datagrams in order as ``(segment size, data)``, as few as hold them.

    The segment size of a single one is 0. Empty ones and those above ``DATAGRAM_LIMIT``, which no
    relay of 0.91 or later passes on, are left out.
    """
    found: list[tuple[int, bytes]] = []
    run: list[bytes] = []
    run_size = segment_size = 0
    for datagram in datagrams:
        size = len(datagram)
        if not 0 < size <= DATAGRAM_LIMIT:
            continue
        if run and (size > segment_size or run_size + size > BATCH_LIMIT):
            found.append(_batch(run, segment_size))
            run = []
        if not run:
            run_size, segment_size = 0, size
        run.append(datagram)
        run_size += size
        if size < segment_size:
            found.append(_batch(run, segment_size))
            run = []
    if run:
        found.append(_batch(run, segment_size))
    return found


def holds_segments(parts: PacketParts) -> bool:
    """Say whether these packets came from a client of 0.91 or later."""
    return parts[0][0] != RELAYED_PACKET


def packed_parts(parts: PacketParts) -> PacketParts:
    """Return packets of 0.91 or later as those before have them; one may become several."""
    packed: PacketParts = []
    room = CONVERTED_LIMIT
    for header, data in zip(parts[::2], parts[1::2], strict=True):
        source = header[1 : 1 + KEY_SIZE]
        is_batch = header[0] == RELAYED_BATCH
        segment_size = int.from_bytes(header[_SEGMENT_SIZE_AT:], "big") if is_batch else 0
        taken = bytes(data[: room * segment_size] if segment_size else data)
        datagrams = segments(taken, segment_size)
        for payload in pack_datagrams(datagrams):
            length = KEY_SIZE + len(payload)
            packed.append(KEYED_HEADER.pack(RELAYED_PACKET, length, source))
            packed.append(payload)
        room -= len(datagrams)
        if room <= 0:
            break
    return packed


def unpacked_parts(parts: PacketParts) -> Iterator[tuple[bytes, int, bytes]]:
    """Yield packets up to 0.90 as batches of later ones: source, segment size, data.

    As in :func:`batches` the segment size of a single one is 0, and not all are passed on.
    """
    room = CONVERTED_LIMIT
    for header, payload in zip(parts[::2], parts[1::2], strict=True):
        datagrams = split_datagrams(bytes(payload), limit=room)
        for segment_size, data in batches(datagrams):
            yield bytes(header[-KEY_SIZE:]), segment_size, data
        room -= len(datagrams)
        if room <= 0:
            return


def single_parts(parts: PacketParts, source: bytes) -> PacketParts:
    """Return bare datagrams as relays of 0.91 and later have them, from ``source``.

    Empty ones and those above ``DATAGRAM_LIMIT``, which these do not pass on, are left out.
    """
    header = SINGLE_HEADER.pack(RELAYED_DATAGRAM, source, 0)
    singles: PacketParts = []
    for datagram in parts[1::2]:
        if 0 < len(datagram) <= DATAGRAM_LIMIT:
            singles.append(header)
            singles.append(datagram)
    return singles


def bare_parts(parts: PacketParts, source: bytes, *, limit: int = CONVERTED_LIMIT) -> PacketParts:
    """Return packets of iroh, of whatever kind, as packets of one bare datagram each.

    :param limit: how many of them at most.
    """
    bare: PacketParts = []
    if holds_segments(parts):
        parts = packed_parts(parts)
    for payload in parts[1::2]:
        if limit <= 0:
            break
        datagrams = split_datagrams(bytes(payload), limit=limit)
        for datagram in datagrams:
            bare.append(KEYED_HEADER.pack(RELAYED_PACKET, KEY_SIZE + len(datagram), source))
            bare.append(datagram)
        limit -= len(datagrams)
    return bare


def _batch(run: Sequence[bytes], segment_size: int) -> tuple[int, bytes]:
    return (0, run[0]) if len(run) == 1 else (segment_size, b"".join(run))
