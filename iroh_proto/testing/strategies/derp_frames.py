"""Strategies for DERP frames, by the dialect that has them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from hypothesis import strategies as st

from iroh_proto.derp import curve_frames
from iroh_proto.derp.datagram_frames import (
    RecvDatagram,
    RecvDatagramBatch,
    SendDatagram,
    SendDatagramBatch,
)
from iroh_proto.derp.dialects import relay_v1, v2, v3
from iroh_proto.derp.frames import (
    PING_SIZE,
    Frame,
    Health,
    KeepAlive,
    NotePreferred,
    PeerGone,
    Ping,
    Pong,
    RecvPacket,
    Restarting,
    SendPacket,
    Status,
    WatchConns,
)
from iroh_proto.errors import LocalProtocolError
from iroh_proto.key import KEY_SIZE
from iroh_proto.testing.strategies.values import node_ids, udp_addresses
from iroh_proto.x25519 import X25519PublicKey

_NODES = node_ids()
_CURVE_KEYS = st.binary(min_size=KEY_SIZE, max_size=KEY_SIZE).map(X25519PublicKey)
_PAYLOADS = st.binary(max_size=300)
_PING_DATA = st.binary(min_size=PING_SIZE, max_size=PING_SIZE)
_SIGNATURES = st.binary(min_size=64, max_size=64)
_MILLISECONDS = st.integers(0, 2**32 - 1)
_ECN = st.integers(0, 3)
_SEGMENT_SIZES = st.integers(0, 0xFFFF)

_OF_ALL: list[st.SearchStrategy[Frame]] = [
    st.builds(PeerGone, _NODES),
    st.builds(Ping, _PING_DATA),
    st.builds(Pong, _PING_DATA),
    st.builds(Health, st.text(max_size=50)),
    st.builds(Restarting, _MILLISECONDS, _MILLISECONDS),
]
_FRAMED: list[st.SearchStrategy[Frame]] = [
    *_OF_ALL,
    st.builds(SendPacket, _NODES, _PAYLOADS),
    st.builds(RecvPacket, _NODES, _PAYLOADS),
    st.builds(KeepAlive),
    st.builds(NotePreferred, st.booleans()),
]
_RELAYED: list[st.SearchStrategy[Frame]] = [
    *_OF_ALL,
    st.builds(
        relay_v1.ServerChallenge,
        st.binary(min_size=relay_v1.CHALLENGE_SIZE, max_size=relay_v1.CHALLENGE_SIZE),
    ),
    st.builds(relay_v1.ClientAuth, _NODES, _SIGNATURES),
    st.builds(relay_v1.ServerConfirmsAuth),
    st.builds(relay_v1.ServerDeniesAuth, st.text(max_size=50)),
    st.builds(SendDatagram, _NODES, _ECN, _PAYLOADS),
    st.builds(SendDatagramBatch, _NODES, _ECN, _SEGMENT_SIZES, _PAYLOADS),
    st.builds(RecvDatagram, _NODES, _ECN, _PAYLOADS),
    st.builds(RecvDatagramBatch, _NODES, _ECN, _SEGMENT_SIZES, _PAYLOADS),
    st.builds(Status, st.integers(0, 255)),
]
_CURVE: list[st.SearchStrategy[Frame]] = [
    st.builds(curve_frames.ServerKey, _CURVE_KEYS),
    st.builds(curve_frames.ClientInfo, _CURVE_KEYS, st.binary(min_size=24, max_size=80)),
    st.builds(curve_frames.ServerInfo, st.binary(min_size=24, max_size=80)),
    st.builds(curve_frames.CurveSendPacket, _CURVE_KEYS, _PAYLOADS),
    st.builds(curve_frames.CurveRecvPacket, _CURVE_KEYS, _PAYLOADS),
    st.builds(curve_frames.CurvePeerGone, _CURVE_KEYS, st.integers(0, 255)),
    st.builds(curve_frames.CurvePeerPresent, _CURVE_KEYS, udp_addresses(), st.integers(0, 255)),
    st.builds(curve_frames.CurveClosePeer, _CURVE_KEYS),
    st.builds(curve_frames.CurveForwardPacket, _CURVE_KEYS, _CURVE_KEYS, _PAYLOADS),
    st.builds(KeepAlive),
    st.builds(NotePreferred, st.booleans()),
    st.builds(WatchConns),
    st.builds(Ping, _PING_DATA),
    st.builds(Pong, _PING_DATA),
    st.builds(Health, st.text(max_size=50)),
    st.builds(Restarting, _MILLISECONDS, _MILLISECONDS),
]
_BY_DIALECT: Mapping[str, list[st.SearchStrategy[Frame]]] = MappingProxyType(
    {
        "v2": [
            *_FRAMED,
            st.builds(v2.ServerKey, _NODES),
            st.builds(v2.ClientInfo, _NODES, st.binary(max_size=80)),
            st.builds(v2.ServerInfo, st.binary(max_size=80)),
            st.builds(v2.PeerPresent, _NODES),
            st.builds(WatchConns),
            st.builds(v2.ClosePeer, _NODES),
            st.builds(v2.ForwardPacket, _NODES, _NODES, st.binary(max_size=50)),
        ],
        "v3": [*_FRAMED, st.builds(v3.ClientInfo, _NODES, _SIGNATURES, st.binary(max_size=20))],
        "tailscale": _CURVE,
        "relay-v1": _RELAYED,
        "relay-v2": _RELAYED,
    }
)


def derp_frames(dialect: str) -> st.SearchStrategy[Frame]:
    """Return frames of a dialect, of both directions, those of the handshake among them.

    :param dialect: a key of :data:`~iroh_proto.derp.dialects.DIALECTS`. The tables of the two
        relay dialects are the same; which frames a side takes is another matter.
    :raises LocalProtocolError: if there are no strategies for such a dialect.
    """
    if dialect not in _BY_DIALECT:
        raise LocalProtocolError(f"no frames of a dialect {dialect!r}")
    return st.one_of(_BY_DIALECT[dialect])
