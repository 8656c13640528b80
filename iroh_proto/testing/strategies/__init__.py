"""Hypothesis strategies for all that machines deal in, from keys to whole networks.

Needs the ``testing`` extra, as :mod:`iroh_proto.testing.contract` does.
"""

from __future__ import annotations

from iroh_proto.testing.strategies.networks import mishap_sequences, mishaps, network_shapes
from iroh_proto.testing.strategies.values import (
    Splice,
    addresses,
    chunk_sizes,
    chunkings,
    derp_urls,
    ipv4_addresses,
    ipv6_addresses,
    mutated,
    node_addrs,
    node_ids,
    ports,
    secret_keys,
    splices,
    udp_addresses,
)

__all__ = [
    "Splice",
    "addresses",
    "chunk_sizes",
    "chunkings",
    "derp_urls",
    "ipv4_addresses",
    "ipv6_addresses",
    "mishap_sequences",
    "mishaps",
    "mutated",
    "network_shapes",
    "node_addrs",
    "node_ids",
    "ports",
    "secret_keys",
    "splices",
    "udp_addresses",
]
