"""Hypothesis strategies for all that machines deal in, from keys to whole networks.

Needs the ``testing`` extra, as :mod:`iroh_proto.testing.contract` does.
"""

from __future__ import annotations

from iroh_proto.extras import needs_extra

with needs_extra(__name__, "testing", {"hypothesis"}):
    from iroh_proto.testing.strategies.derp_frames import derp_frames
    from iroh_proto.testing.strategies.messages import (
        disco_datagrams,
        disco_messages,
        stun_datagrams,
        stun_messages,
        transaction_ids,
    )
    from iroh_proto.testing.strategies.networks import mishap_sequences, mishaps, network_shapes
    from iroh_proto.testing.strategies.tickets import (
        region_records,
        set_records,
        ticket_forms,
        ticket_texts,
        url_records,
    )
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
    "derp_frames",
    "derp_urls",
    "disco_datagrams",
    "disco_messages",
    "ipv4_addresses",
    "ipv6_addresses",
    "mishap_sequences",
    "mishaps",
    "mutated",
    "network_shapes",
    "node_addrs",
    "node_ids",
    "ports",
    "region_records",
    "secret_keys",
    "set_records",
    "splices",
    "stun_datagrams",
    "stun_messages",
    "ticket_forms",
    "ticket_texts",
    "transaction_ids",
    "udp_addresses",
    "url_records",
]
