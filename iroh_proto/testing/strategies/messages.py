"""Strategies for the messages that find paths: disco and STUN."""

from __future__ import annotations

from hypothesis import strategies as st

from iroh_proto.box import BOX_NONCE_SIZE, SharedBox
from iroh_proto.disco.message import (
    CALL_ME_MAYBE_ADDRESSES_LIMIT,
    TRANSACTION_ID_SIZE,
    CallMeMaybe,
    DiscoMessage,
    Ping,
    Pong,
    seal_envelope,
)
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.stun.message import (
    StunMessage,
    encode_binding_request,
    encode_binding_response,
)
from iroh_proto.testing.strategies.values import derp_urls, node_ids, udp_addresses

LONGEST_STUN_VALUE = 40
"""Bytes of an attribute; longer ones are no different."""


def transaction_ids() -> st.SearchStrategy[bytes]:
    """Return transaction ids: those of disco and those of STUN are of one length."""
    return st.binary(min_size=TRANSACTION_ID_SIZE, max_size=TRANSACTION_ID_SIZE)


def disco_messages() -> st.SearchStrategy[DiscoMessage]:
    """Return disco messages of each kind."""
    addresses = st.lists(udp_addresses(), max_size=4) | st.lists(
        udp_addresses(), min_size=1, max_size=1
    ).map(lambda one: one * CALL_ME_MAYBE_ADDRESSES_LIMIT)
    return st.one_of(
        st.builds(Ping, transaction_ids(), node_ids()),
        st.builds(Pong, transaction_ids(), udp_addresses() | derp_urls()),
        st.builds(CallMeMaybe, addresses),
    )


def disco_datagrams(sender: SecretKey, receiver: NodeId) -> st.SearchStrategy[bytes]:
    """Return disco messages as one node seals them for another."""
    box = SharedBox(sender, receiver)

    def seal(message: DiscoMessage, nonce: bytes) -> bytes:
        return seal_envelope(message.encode(), sender=sender.public, box=box, nonce=nonce)

    nonces = st.binary(min_size=BOX_NONCE_SIZE, max_size=BOX_NONCE_SIZE)
    return st.builds(seal, disco_messages(), nonces)


def stun_messages() -> st.SearchStrategy[StunMessage]:
    """Return STUN messages of any type, with any attributes."""
    attributes = st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=LONGEST_STUN_VALUE))
    return st.builds(
        StunMessage, st.integers(0, 0x3FFF), transaction_ids(), st.lists(attributes, max_size=6)
    )


def stun_datagrams() -> st.SearchStrategy[bytes]:
    """Return binding requests and responses as clients and servers send them."""
    requests = st.builds(
        encode_binding_request, transaction_ids(), software=st.none() | st.text(max_size=20)
    )
    return requests | st.builds(encode_binding_response, transaction_ids(), udp_addresses())
