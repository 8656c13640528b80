"""What machines have in common."""

from __future__ import annotations

import pytest

from iroh_proto.address import UdpAddress
from iroh_proto.machine import Transmit

ADDR = UdpAddress("192.0.2.1", 1)


def test_transmits_compare_by_content() -> None:
    transmit = Transmit(ADDR, [b"ab", b"c"], 2)
    assert transmit == Transmit(ADDR, (b"ab", b"c"), 2)
    assert transmit != Transmit(UdpAddress("192.0.2.1", 2), [b"ab", b"c"], 2)
    assert transmit != Transmit(ADDR, [b"ab"], 2)
    assert transmit != Transmit(ADDR, [b"ab", b"c"])
    assert transmit != (ADDR, [b"ab", b"c"], 2)
    with pytest.raises(TypeError):
        hash(transmit)


def test_transmits_show_sizes_and_no_content() -> None:
    assert repr(Transmit(ADDR, [b"secret", b"c"])) == "Transmit(192.0.2.1:1, sizes=[6, 1])"
