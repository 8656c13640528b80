"""How a NAT rewrites and filters UDP, in the words of RFC 4787.

The tables only; :mod:`iroh_proto.testing.network` puts them into routers.
"""

from __future__ import annotations

import enum
import random
from collections import OrderedDict
from dataclasses import dataclass
from typing import TypeAlias

from iroh_proto.address import UdpAddress

DEFAULT_MAPPING_TIMEOUT = 120.0
"""Seconds that a mapping lives without traffic: the least that RFC 4787 (REQ-5) permits, and what
Linux gives to a flow that was answered. Many routers give 30."""

FIRST_PORT = 1024
"""The lowest port that a NAT gives out, unless it preserves a lower one."""

MAPPINGS_LIMIT = 65_536 - FIRST_PORT
"""Mappings at the same time, the oldest being dropped: there are no more ports."""


class Dependence(enum.Enum):
    """What a mapping, or the permission to answer, is made for (RFC 4787, sections 4.1 and 5)."""

    ENDPOINT_INDEPENDENT = enum.auto()
    ADDRESS_DEPENDENT = enum.auto()
    ADDRESS_AND_PORT_DEPENDENT = enum.auto()

    def key(self, remote: UdpAddress) -> RemoteKey:
        """Return as much of a remote address as matters."""
        if self is Dependence.ENDPOINT_INDEPENDENT:
            return None
        return remote.ip if self is Dependence.ADDRESS_DEPENDENT else remote


RemoteKey: TypeAlias = str | UdpAddress | None
"""What is left of a remote address after a :class:`Dependence`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NatKind:
    """The behaviour of a NAT.

    :ivar mapping: for which remote addresses an inner one gets an outer port of its own.
    :ivar filtering: which remote addresses may send to an outer port: all, or those that were
        sent to.
    :ivar preserves_ports: whether the outer port is the inner one, where it is free.
    :ivar overloads_ports: whether a port is free as long as no mapping for the same remote has it.
        Who sends to it from where no mapping leads is not let in, whatever the filtering. Together
        with ``preserves_ports`` a host keeps its port towards everybody, as if the mapping were
        endpoint-independent, unless a neighbour has the same port and the same peer.
    :ivar hairpins: whether hosts inside reach one another by their outer addresses.
    :ivar mapping_timeout: seconds that a mapping lives without traffic.
    :ivar is_refreshed_by_inbound: whether packets from outside count as traffic, too.
    """

    mapping: Dependence
    filtering: Dependence
    preserves_ports: bool = False
    overloads_ports: bool = False
    hairpins: bool = False
    mapping_timeout: float = DEFAULT_MAPPING_TIMEOUT
    is_refreshed_by_inbound: bool = True


FULL_CONE = NatKind(
    mapping=Dependence.ENDPOINT_INDEPENDENT, filtering=Dependence.ENDPOINT_INDEPENDENT
)
"""Endpoint-independent mapping and filtering: anybody may answer."""

ADDRESS_RESTRICTED = NatKind(
    mapping=Dependence.ENDPOINT_INDEPENDENT, filtering=Dependence.ADDRESS_DEPENDENT
)
"""Endpoint-independent mapping, address-dependent filtering."""

PORT_RESTRICTED = NatKind(
    mapping=Dependence.ENDPOINT_INDEPENDENT,
    filtering=Dependence.ADDRESS_AND_PORT_DEPENDENT,
    preserves_ports=True,
)
"""Port-preserving endpoint-independent mapping, address-and-port-dependent filtering: what most
home routers do."""

SYMMETRIC = NatKind(
    mapping=Dependence.ADDRESS_AND_PORT_DEPENDENT,
    filtering=Dependence.ADDRESS_AND_PORT_DEPENDENT,
)
"""Address-and-port-dependent mapping: each remote address sees another port."""

PORT_OVERLOADING = NatKind(
    mapping=Dependence.ADDRESS_AND_PORT_DEPENDENT,
    filtering=Dependence.ADDRESS_AND_PORT_DEPENDENT,
    preserves_ports=True,
    overloads_ports=True,
)
"""A table of whole flows in which the inner port is kept: Linux's masquerading."""


class _Mapping:
    """One outer port of a NAT."""

    __slots__ = ("expires_at", "inner", "key", "permitted", "place", "port")

    def __init__(self, key: tuple[UdpAddress, RemoteKey], place: tuple[int, RemoteKey]) -> None:
        self.key = key
        self.inner = key[0]
        self.place = place
        self.port = place[0]
        self.expires_at = 0.0
        self.permitted: dict[RemoteKey, float] = {}


class Nat:
    """The table of one NAT. Give it the time with each packet."""

    def __init__(self, kind: NatKind, *, ip: str, rng: random.Random) -> None:
        self.kind = kind
        self.ip = ip
        self._rng = rng
        self._by_key: OrderedDict[tuple[UdpAddress, RemoteKey], _Mapping] = OrderedDict()
        # By outer port, and where ports are overloaded by the remote as well.
        self._by_place: dict[tuple[int, RemoteKey], _Mapping] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def outbound(self, inner: UdpAddress, remote: UdpAddress, now: float) -> UdpAddress:
        """Return the outer address that a packet from inside gets; it may be answered from now."""
        kind = self.kind
        key = (inner, kind.mapping.key(remote))
        mapping = self._by_key.get(key)
        if mapping is not None and mapping.expires_at <= now:
            self._drop(mapping)
            mapping = None
        if mapping is None:
            mapping = self._add(key, now)
        mapping.expires_at = now + kind.mapping_timeout
        mapping.permitted[kind.filtering.key(remote)] = mapping.expires_at
        self._by_key.move_to_end(key)
        return UdpAddress(self.ip, mapping.port)

    def inbound(self, port: int, remote: UdpAddress, now: float) -> UdpAddress | None:
        """Return the inner address for a packet to an outer port, or ``None`` to drop it."""
        mapping = self._by_place.get((port, self._sharer(self.kind.mapping.key(remote))))
        if mapping is None or mapping.expires_at <= now:
            return None
        key = self.kind.filtering.key(remote)
        if mapping.permitted.get(key, now) <= now:
            return None
        if self.kind.is_refreshed_by_inbound:
            mapping.expires_at = mapping.permitted[key] = now + self.kind.mapping_timeout
        return mapping.inner

    def displaces_ports(self, now: float) -> bool:
        """Say whether a flow of now has another port than inside: its own was taken."""
        return any(
            mapping.port != mapping.inner.port and mapping.expires_at > now
            for mapping in self._by_key.values()
        )

    def clear(self) -> None:
        """Forget all mappings."""
        self._by_key.clear()
        self._by_place.clear()

    def _add(self, key: tuple[UdpAddress, RemoteKey], now: float) -> _Mapping:
        if len(self._by_key) >= MAPPINGS_LIMIT:
            self._drop(next(iter(self._by_key.values())))
        mapping = _Mapping(key, self._free_place(key[0].port, self._sharer(key[1]), now))
        self._by_key[key] = self._by_place[mapping.place] = mapping
        return mapping

    def _drop(self, mapping: _Mapping) -> None:
        del self._by_key[mapping.key]
        del self._by_place[mapping.place]

    def _sharer(self, remote: RemoteKey) -> RemoteKey:
        """Return what tells mappings of one port apart."""
        return remote if self.kind.overloads_ports else None

    def _free_place(self, wanted: int, sharer: RemoteKey, now: float) -> tuple[int, RemoteKey]:
        if self.kind.preserves_ports and self._is_free((wanted, sharer), now):
            return wanted, sharer
        # A NAT that counts up from a random port would be easy to guess; few do today.
        port = FIRST_PORT + self._rng.randrange(MAPPINGS_LIMIT)
        while not self._is_free((port, sharer), now):
            port = FIRST_PORT + (port - FIRST_PORT + 1) % MAPPINGS_LIMIT
        return port, sharer

    def _is_free(self, place: tuple[int, RemoteKey], now: float) -> bool:
        mapping = self._by_place.get(place)
        if mapping is not None and mapping.expires_at <= now:
            self._drop(mapping)
            mapping = None
        return mapping is None
