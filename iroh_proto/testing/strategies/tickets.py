"""Strategies for tickets, in each form that a release of iroh wrote."""

from __future__ import annotations

from hypothesis import strategies as st

from iroh_proto.address import NodeAddr
from iroh_proto.node_record import CustomAddress, NodeRecord
from iroh_proto.testing.strategies.values import derp_urls, node_addrs
from iroh_proto.ticket import (
    BlobFormat,
    BlobTicket,
    DocAccess,
    DocTicket,
    Generation,
    NodeTicket,
    Ticket,
)

_HASHES = st.binary(min_size=32, max_size=32)
_TOKENS = st.binary(max_size=40)


def region_records() -> st.SearchStrategy[NodeRecord]:
    """Return nodes that name their DERP server by the number of a region, as up to 0.10."""

    def record(addr: NodeAddr, region: int | None) -> NodeRecord:
        bare = NodeAddr(addr.node_id, direct_addresses=addr.direct_addresses)
        return NodeRecord(bare, derp_region=region)

    return st.builds(record, node_addrs(), st.none() | st.integers(0, 0xFFFF))


def url_records() -> st.SearchStrategy[NodeRecord]:
    """Return nodes that name one DERP server by its URL at most."""
    return st.builds(NodeRecord, node_addrs())


@st.composite
def set_records(draw: st.DrawFn) -> NodeRecord:
    """Return nodes that only the newest form can hold; its URLs come sorted from the wire."""
    addr = draw(node_addrs())
    urls = sorted(draw(st.sets(derp_urls(), max_size=3)), key=str)
    custom = draw(st.sets(st.builds(CustomAddress, st.integers(0, 2**64 - 1), st.binary())))
    return NodeRecord(
        NodeAddr(
            addr.node_id,
            derp_url=urls[0] if urls else None,
            direct_addresses=addr.direct_addresses,
        ),
        more_derp_urls=tuple(urls[1:]),
        custom_addresses=tuple(sorted(custom)),
    )


def ticket_forms() -> list[tuple[Generation, st.SearchStrategy[Ticket]]]:
    """Return each form of ticket: the generation that writes it, and the tickets it can hold."""
    regions = region_records()
    reachable = regions.filter(lambda node: not node.is_empty)
    addressed = regions.filter(lambda node: bool(node.node_addr.direct_addresses))
    accesses = st.sampled_from(DocAccess)
    return [
        (Generation.V0_94, st.builds(NodeTicket, set_records())),
        (Generation.V0_12, st.builds(NodeTicket, url_records())),
        (Generation.V0_12, _blobs(url_records(), st.none())),
        (Generation.V0_10, _blobs(reachable, st.none() | _TOKENS)),
        (Generation.V0_9, _blobs(reachable, st.none() | _TOKENS)),
        (Generation.V0_6, _blobs(addressed, st.none() | _TOKENS)),
        (Generation.V0_12, _docs(url_records(), accesses)),
        (Generation.V0_10, _docs(regions, accesses)),
        (Generation.V0_9, _docs(regions, st.none())),
        (Generation.V0_6, _docs(regions, st.none())),
    ]


def ticket_texts() -> st.SearchStrategy[str]:
    """Return the text of tickets of every kind and form."""
    return st.one_of(
        [
            tickets.map(lambda ticket, form=generation: ticket.to_str(form))  # type: ignore[misc]
            for generation, tickets in ticket_forms()
        ]
    )


def _blobs(
    nodes: st.SearchStrategy[NodeRecord], tokens: st.SearchStrategy[bytes | None]
) -> st.SearchStrategy[Ticket]:
    return st.builds(BlobTicket, nodes, _HASHES, st.sampled_from(BlobFormat), tokens)


def _docs(
    nodes: st.SearchStrategy[NodeRecord], access: st.SearchStrategy[DocAccess | None]
) -> st.SearchStrategy[Ticket]:
    lists = st.lists(nodes, min_size=1, max_size=3).map(tuple)
    return st.builds(DocTicket, _HASHES, access, lists)
