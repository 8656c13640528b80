"""Sans-IO state machines that reach any iroh node by its public key."""

from iroh_proto.address import Address, DerpAddress, DerpUrl, NodeAddr, UdpAddress
from iroh_proto.derp.map import DerpMap, DerpNode
from iroh_proto.errors import DecodeError, LocalProtocolError, ProtocolError, RemoteProtocolError
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.machine import Transmit

__all__ = [
    "Address",
    "DecodeError",
    "DerpAddress",
    "DerpMap",
    "DerpNode",
    "DerpUrl",
    "LocalProtocolError",
    "NodeAddr",
    "NodeId",
    "ProtocolError",
    "RemoteProtocolError",
    "SecretKey",
    "Transmit",
    "UdpAddress",
]
