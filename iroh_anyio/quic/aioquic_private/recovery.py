"""aioquic's record of what was sent, kept small whatever the peer acknowledges.

Meanings are those of ``aioquic/quic/recovery.py``.
"""

from __future__ import annotations

from itertools import islice

from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketRecovery, QuicPacketSpace

ACK_ONLY_LIMIT = 1000
"""Packets of nothing but acknowledgements, of some 500 bytes each, that are remembered in each
packet number space. They count towards no congestion window, and whoever only sends can have any
number of them sent. quinn forgets them at the same number
(``MAX_UNACKED_NON_ACK_ELICITING_TAIL``)."""


class BoundedRecovery(QuicPacketRecovery):
    """aioquic's recovery that forgets old acknowledgements, and does not search in vain."""

    def on_ack_received(
        self, *, ack_rangeset: RangeSet, ack_delay: float, now: float, space: QuicPacketSpace
    ) -> None:
        """Take an ACK frame.

        aioquic lists all that was sent for each frame, and hundreds of stale ones fit a packet.
        """
        oldest = next(iter(space.sent_packets), None)
        if oldest is None or ack_rangeset.bounds().stop <= oldest:
            return
        super().on_ack_received(
            ack_rangeset=ack_rangeset, ack_delay=ack_delay, now=now, space=space
        )

    def forget_acknowledgements(self) -> None:
        """Forget the older half of the packets of acknowledgements where there are too many.

        An acknowledgement of one is only a hint from where on to acknowledge, and its loss none.
        """
        for space in self.spaces:
            sent = space.sent_packets
            if len(sent) - space.ack_eliciting_in_flight <= ACK_ONLY_LIMIT:
                continue
            old = (number for number, packet in sent.items() if not packet.in_flight)
            for number in list(islice(old, ACK_ONLY_LIMIT // 2)):
                del sent[number]
