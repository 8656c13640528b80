"""What should happen in an interaction test: calls, the flows on them, and how each may end."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from iroh_anyio.quic.events import CloseReason

LABEL_SIZE = 8
"""Bytes at the beginning of each stream and datagram that say which one it is."""

Place = tuple[int, int]
"""Which life of a node, and the number of a connection in it."""


@dataclass(eq=False)
class End:
    """One end of a call: where it is, and what became of it."""

    node: str
    place: Place | None = None
    established_at: float | None = None
    closed_at: float | None = None
    reason: CloseReason | None = None
    closed_by_us: bool = False

    @property
    def is_open(self) -> bool:
        return self.established_at is not None and self.closed_at is None


@dataclass(eq=False)
class Call:
    """A connection as the test knows it: who dialled whom, and what is seen of both ends."""

    number: int
    dialler: End
    target: End
    alpn: bytes
    dialled_at: float
    has_home: bool
    """Whether the dialler was told the target's home of that time, so that it has to get there."""

    @property
    def ends(self) -> tuple[End, End]:
        return self.dialler, self.target

    def end_of(self, node: str) -> End:
        return self.dialler if self.dialler.node == node else self.target

    def other_end(self, end: End) -> End:
        return self.target if end is self.dialler else self.dialler

    def __repr__(self) -> str:
        return f"call {self.number} from {self.dialler.node} to {self.target.node}"


@dataclass(eq=False)
class Flow:
    """The bytes of one direction of a stream: those given to be sent, and those that came."""

    label: int
    call: Call
    sender: End
    stream_id: int
    data: bytearray
    is_opener: bool = True
    """Whether it began the stream, and is not the answer to another flow."""
    unsent: bytearray = field(default_factory=bytearray)
    is_ended: bool = False
    is_given_up: bool = False
    received: bytearray = field(default_factory=bytearray)
    is_complete: bool = False
    arrived_at: tuple[Place, int] | None = None

    @property
    def receiver(self) -> End:
        return self.call.other_end(self.sender)

    def more(self, size: int) -> bytes:
        """Return the next bytes to send."""
        data = random.Random(self.label * 1_000_003 + len(self.data)).randbytes(size)
        self.data += data
        return data

    def __repr__(self) -> str:
        return f"flow {self.label} by {self.sender.node} on {self.call}"


def label_bytes(label: int) -> bytes:
    return label.to_bytes(LABEL_SIZE, "big")
