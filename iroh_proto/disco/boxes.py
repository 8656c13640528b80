"""The boxes shared with peers, kept within limits, and who may cost us new ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from iroh_proto.box import SharedBox
from iroh_proto.errors import DecodeError
from iroh_proto.key import NodeId, SecretKey

# Boxes kept. One is about 1 KiB; a node talks to far fewer peers at a time.
BOXES_LIMIT = 1024

# Datagrams from senders without a kept box that may fail to open, per source and window. Each
# costs two operations on the curve, some 80 us, and anybody can make them up.
FAILED_OPENS_LIMIT = 32
FAILED_OPENS_WINDOW = 1.0  # seconds

# Sources whose failures are counted at the same time. A sender of spoofed datagrams can push
# others out, which lets it fail more often, but takes no more memory.
FAILED_SOURCES_LIMIT = 1024


class BoxKeeper:
    """Seals for and opens from any number of peers with one secret key.

    A box is kept for a peer this node writes to, and for a sender whose datagram opened; never
    for one that did not, so that datagrams with made-up senders displace nothing.
    """

    def __init__(self, *, secret_key: SecretKey) -> None:
        self._secret_key = secret_key
        self._boxes: OrderedDict[NodeId, SharedBox] = OrderedDict()
        self._failures: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._boxes)

    def __contains__(self, peer: NodeId) -> bool:
        return peer in self._boxes

    def box_for(self, peer: NodeId) -> SharedBox:
        """Return the box shared with a peer to write to.

        :raises DecodeError: if no honest node can have this id.
        """
        box = self._boxes.get(peer)
        if box is None:
            box = SharedBox(self._secret_key, peer)
        self._keep(peer, box)
        return box

    def open(self, sealed: bytes, *, sender: NodeId, source: Hashable, now: float) -> bytes:
        """Return what a sender sealed.

        :param source: where it came from, for the limit on failures.
        :raises DecodeError: if it does not open, or this source failed too often.
        """
        box = self._boxes.get(sender)
        if box is not None:
            message = box.open(sealed)
        else:
            self._check_failures(source, now)
            try:
                box = SharedBox(self._secret_key, sender)
                message = box.open(sealed)
            except DecodeError:
                self._count_failure(source, now)
                raise
        self._keep(sender, box)
        return message

    def _keep(self, peer: NodeId, box: SharedBox) -> None:
        self._boxes[peer] = box
        self._boxes.move_to_end(peer)
        if len(self._boxes) > BOXES_LIMIT:
            self._boxes.popitem(last=False)

    def _check_failures(self, source: Hashable, now: float) -> None:
        began, count = self._failures.get(source, (now, 0))
        if count >= FAILED_OPENS_LIMIT and now < began + FAILED_OPENS_WINDOW:
            raise DecodeError(f"too many disco datagrams from {source} did not open")

    def _count_failure(self, source: Hashable, now: float) -> None:
        began, count = self._failures.pop(source, (now, 0))
        if began + FAILED_OPENS_WINDOW <= now:
            began, count = now, 0
        self._failures[source] = (began, count + 1)
        if len(self._failures) > FAILED_SOURCES_LIMIT:
            self._failures.popitem(last=False)
