"""Sans-IO state machines that reach any iroh node by its public key.

Which one to embed, by what is wanted:

========================================  ======================================================
:class:`iroh_proto.magicsock.Magicsock`   all of it: payloads to nodes, over the best path
:class:`iroh_proto.derp.pool.DerpPool`    packets to nodes through several DERP servers
:class:`iroh_proto.derp.client.DerpClient`  packets to nodes through one connection to one
:class:`iroh_proto.disco.pinger.DiscoPinger`  whether a node answers at an address, and how fast
:class:`iroh_proto.stun.probe.StunProbe`  the address that others see this socket at
========================================  ======================================================

All follow the contract of :mod:`iroh_proto.machine`.
"""

from iroh_proto.address import Address, DerpAddress, DerpUrl, NodeAddr, UdpAddress
from iroh_proto.derp.map import DerpMap, DerpNode
from iroh_proto.errors import DecodeError, LocalProtocolError, ProtocolError, RemoteProtocolError
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.machine import Transmit
from iroh_proto.ticket import NodeTicket

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
    "NodeTicket",
    "ProtocolError",
    "RemoteProtocolError",
    "SecretKey",
    "Transmit",
    "UdpAddress",
]
