"""What the strategies for tests give."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from iroh_proto.address import Address, DerpUrl, NodeAddr, UdpAddress
from iroh_proto.testing.strategies import (
    Splice,
    addresses,
    chunk_sizes,
    chunkings,
    derp_urls,
    mutated,
    node_addrs,
    udp_addresses,
)

DATA = bytes(range(20))


@given(addr=udp_addresses())
def test_udp_addresses_are_canonical(addr: UdpAddress) -> None:
    assert UdpAddress.from_str(str(addr)) == addr


@given(url=derp_urls())
def test_derp_urls_are_canonical(url: DerpUrl) -> None:
    assert DerpUrl.from_str(str(url)) == url


@given(addr=addresses(), other=addresses())
def test_addresses_can_be_compared_and_used_as_keys(addr: Address, other: Address) -> None:
    assert len({addr, other}) == (1 if addr == other else 2)


@given(addr=node_addrs())
def test_node_addresses_are_equal_by_value(addr: NodeAddr) -> None:
    again = NodeAddr(
        addr.node_id, derp_url=addr.derp_url, direct_addresses=reversed(addr.direct_addresses)
    )
    assert again == addr


@given(chunks=chunkings(DATA))
def test_chunkings_lose_nothing(chunks: list[bytes]) -> None:
    assert b"".join(chunks) == DATA
    assert all(chunks)


@given(chunks=chunkings(b""))
def test_nothing_is_cut_into_nothing(chunks: list[bytes]) -> None:
    assert chunks == []


@given(sizes=chunk_sizes())
def test_chunk_sizes_always_make_progress(sizes: list[int]) -> None:
    assert all(size > 0 for size in itertools.islice(itertools.cycle(sizes), 10))


@given(data=mutated(st.just(DATA)))
def test_mutated_bytes_differ(data: bytes) -> None:
    assert data != DATA


def test_a_splice_takes_away_and_puts_in() -> None:
    assert Splice(0.0, 1, b"").apply(b"abc") == b"bc"
    assert Splice(1.0, 9, b"d").apply(b"abc") == b"abcd"
    assert Splice(0.5, 1, b"XY").apply(b"abcd") == b"abXYd"
