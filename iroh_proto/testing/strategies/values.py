"""Hypothesis strategies for the values that machines deal in.

Needs the ``testing`` extra, as :mod:`iroh_proto.testing.contract` does.
"""

from __future__ import annotations

import ipaddress
import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

from iroh_proto.address import Address, DerpAddress, DerpUrl, NodeAddr, UdpAddress
from iroh_proto.key import KEY_SIZE, NodeId, SecretKey

# Few keys, made once: a key costs 20 us, and machines are more interesting when the same few
# nodes meet again.
_FEW_KEYS = tuple(SecretKey.generate(random.Random(seed)) for seed in range(8))

_HOST_NAMES = ("derp.example", "eu.derp.example", "127.0.0.1", "2001:db8::7")


def secret_keys() -> st.SearchStrategy[SecretKey]:
    """Return secret keys: often one of a few, else any."""
    return st.sampled_from(_FEW_KEYS) | st.binary(min_size=KEY_SIZE, max_size=KEY_SIZE).map(
        SecretKey.from_bytes
    )


def node_ids() -> st.SearchStrategy[NodeId]:
    """Return node ids that some secret key belongs to."""
    return secret_keys().map(lambda key: key.public)


def ipv4_addresses() -> st.SearchStrategy[str]:
    """Return the text of IPv4 addresses."""
    return st.ip_addresses(v=4).map(str)


def ipv6_addresses() -> st.SearchStrategy[str]:
    """Return the text of IPv6 addresses, none of them mapped IPv4."""
    return (
        st.ip_addresses(v=6)
        .filter(lambda ip: isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is None)
        .map(str)
    )


def ports() -> st.SearchStrategy[int]:
    """Return the UDP and TCP ports that can be sent to."""
    return st.integers(1, 65535)


def udp_addresses() -> st.SearchStrategy[UdpAddress]:
    """Return UDP addresses: often one of a few, else any of either family."""
    few = [UdpAddress("192.0.2.7", 7), UdpAddress("10.0.0.2", 5000), UdpAddress("2001:db8::9", 9)]
    any_address = st.builds(UdpAddress.of, ipv4_addresses() | ipv6_addresses(), ports())
    return st.sampled_from(few) | any_address


def derp_urls() -> st.SearchStrategy[DerpUrl]:
    """Return URLs of DERP servers, most of them one of a few."""
    return st.builds(
        DerpUrl,
        st.sampled_from(["http", "https"]),
        st.sampled_from(_HOST_NAMES),
        st.sampled_from([80, 443, 3340]) | ports(),
    )


def addresses() -> st.SearchStrategy[Address]:
    """Return addresses of both kinds."""
    return udp_addresses() | st.builds(DerpAddress, derp_urls(), node_ids())


def node_addrs() -> st.SearchStrategy[NodeAddr]:
    """Return node addresses, from a bare id to one with a DERP server and UDP addresses."""
    return st.builds(
        NodeAddr,
        node_ids(),
        derp_url=st.none() | derp_urls(),
        direct_addresses=st.lists(udp_addresses(), max_size=4),
    )


def chunk_sizes() -> st.SearchStrategy[list[int]]:
    """Return sizes in which to cut a stream or a batch, to be used in turn, over and over."""
    return st.lists(st.integers(1, 7) | st.integers(8, 1500), min_size=1, max_size=4)


def chunkings(data: bytes) -> st.SearchStrategy[list[bytes]]:
    """Return ways to cut ``data`` into non-empty pieces, bytewise and in one piece among them."""

    def cut(at: Iterable[int]) -> list[bytes]:
        edges = [0, *sorted(at), len(data)]
        return [data[start:end] for start, end in itertools.pairwise(edges)]

    if len(data) < 2:
        return st.just([data] if data else [])
    return st.just(cut(range(1, len(data)))) | st.sets(
        st.integers(1, len(data) - 1), max_size=8
    ).map(cut)


@dataclass(frozen=True, slots=True)
class Splice:
    """A change to some bytes: at a relative place, take some away and put others there.

    ``place`` is from 0 (the beginning) to 1 (the end).
    """

    place: float
    remove: int
    insert: bytes

    def apply(self, data: bytes) -> bytes:
        """Return the changed bytes."""
        start = round(self.place * len(data))
        return data[:start] + self.insert + data[start + self.remove :]


def splices() -> st.SearchStrategy[Splice]:
    """Return small changes: a flipped byte, a lost tail, something put in between."""
    return st.builds(
        Splice,
        st.sampled_from([0.0, 1.0]) | st.floats(0, 1),
        st.sampled_from([0, 1, 2, 1 << 20]),
        st.binary(max_size=4),
    )


def mutated(data: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Return bytes that were good before a few changes were made, and differ from them."""

    def change(original: bytes, changes: Sequence[Splice]) -> tuple[bytes, bytes]:
        changed = original
        for splice in changes:
            changed = splice.apply(changed)
        return original, changed

    pairs = st.builds(change, data, st.lists(splices(), min_size=1, max_size=3))
    return pairs.filter(lambda pair: pair[0] != pair[1]).map(lambda pair: pair[1])
