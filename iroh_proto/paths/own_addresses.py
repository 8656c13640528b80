"""Finds out where this node can be reached: interface addresses, and what a server sees.

The server beside the home DERP server is asked by STUN. Where it does not answer, QUIC address
discovery (QAD) is tried: servers since 0.90 have nothing else. STUN goes first because it costs
one small packet each way; a server that was silent once is asked by QAD at once the next time.

States::

            start, timer, refresh                 all answers in, or ROUND_TIMEOUT
    idle ─────────────────────────> round begun ──────────────────────────────────> idle
                                     │  ^   └ refresh: another round follows
                   InterfacesRequested  DnsRequested, then STUN, then ObservationRequested

Each round ends in :class:`OwnAddressesFound`, whatever was found, so that whoever waits for fresh
addresses goes on.

Source: iroh v0.35.0 ``iroh/src/magicsock.rs`` (``update_direct_addresses``), ``net/ip.rs``.
"""

from __future__ import annotations

import ipaddress
import random
from collections import deque
from collections.abc import Iterable, Sequence
from functools import lru_cache

from iroh_proto.address import Address, IpAddress, UdpAddress
from iroh_proto.errors import DecodeError, LocalProtocolError
from iroh_proto.machine import Transmit
from iroh_proto.paths.own_address_events import (
    AddressServer,
    DnsRequested,
    InterfacesRequested,
    ObservationRequested,
    OwnAddressesEvent,
    OwnAddressesFound,
)
from iroh_proto.stun.probe import StunAddressFound, StunProbe, StunProbeStats
from iroh_proto.timers import LatestTime, TimerTable, earliest

ROUND_INTERVAL = (20.0, 26.0)
"""Seconds from the beginning of a round to that of the next, picked at random between.

Below 30 s, after which many NATs forget a UDP mapping.
"""

ROUND_TIMEOUT = 5.0
"""Seconds after which a round ends with what it has; a STUN probe takes 3 s at most."""

OBSERVATION_DELAY = 0.5
"""Seconds that STUN gets to answer before QAD is tried: a round trip to most places."""

MAPPED_ADDRESS_TIME = 60.0
"""Seconds for which an address that a server saw is believed without being seen again.

Two rounds may lose all their packets before peers are told that the address is gone.
"""

INTERFACE_ADDRESSES_LIMIT = 128
"""Addresses of interfaces that are considered; a host with containers may have dozens."""

OWN_ADDRESSES_LIMIT = 64
"""Addresses that peers are told: as many as they believe."""

SOCKETS_LIMIT = 16
"""Bound sockets."""


class OwnAddresses:
    """This node's addresses, found out again and again. A datagram machine for STUN datagrams.

    :param rng: for transaction ids and the time between rounds.
    """

    def __init__(self, *, rng: random.Random) -> None:
        self._rng = rng
        self._time = LatestTime()
        self._timers: TimerTable[str] = TimerTable()
        self._stun = StunProbe(rng=rng)
        self._events: deque[OwnAddressesEvent] = deque()
        self._is_started = False
        self._bound: tuple[UdpAddress, ...] = ()  # none before the start and after the close
        self._server: AddressServer | None = None
        self._next_request_id = 0
        self._round: _Round | None = None
        self._wants_another = False
        self._interfaces: tuple[IpAddress, ...] = ()
        # By family: what a server saw last, and when.
        self._mapped: dict[bool, tuple[UdpAddress, float]] = {}
        # The families in which the server did not answer STUN the last time.
        self._silent: set[bool] = set()

    @property
    def stats(self) -> StunProbeStats:
        """A copy of the counters of STUN datagrams."""
        return self._stun.stats

    @property
    def is_running(self) -> bool:
        """Whether a round is going on."""
        return self._round is not None

    def start(self, bound: Sequence[UdpAddress], *, now: float) -> None:
        """Begin the first round.

        :param bound: where the UDP sockets are bound, with their real ports.
        :raises LocalProtocolError: if there are none, or too many, or it was begun before.
        """
        if self._is_started:
            raise LocalProtocolError("start() may be given once")
        if not 0 < len(bound) <= SOCKETS_LIMIT:
            raise LocalProtocolError(f"there must be 1 to {SOCKETS_LIMIT} sockets: {len(bound)}")
        now = self._time.advance(now)
        self._is_started = True
        self._bound = tuple(bound)
        self._begin_round(now)

    def set_server(self, server: AddressServer | None, *, now: float) -> None:
        """Ask another server from now on."""
        now = self._time.advance(now)
        if server != self._server:
            self._server = server
            self._silent.clear()
            self._refresh(now)

    def refresh(self, *, now: float) -> None:
        """Find the addresses out again: at once, or after the round that is going on."""
        self._refresh(self._time.advance(now))

    def network_changed(self, *, now: float) -> None:
        """Forget what a server saw, and find the addresses out again."""
        now = self._time.advance(now)
        self._mapped.clear()
        self._silent.clear()
        self._refresh(now)

    def close(self, *, now: float) -> None:
        """Ask nobody any more."""
        now = self._time.advance(now)
        self._stun.cancel_all(now=now)
        self._bound = ()
        self._round = None
        self._wants_another = False
        self._timers.clear()

    def complete_interfaces(self, request_id: int, ips: Sequence[str], *, now: float) -> None:
        """Answer :class:`InterfacesRequested`. What is no IP address is left out.

        :raises LocalProtocolError: if there was no such request.
        """
        self._check_request(request_id)
        now = self._time.advance(now)
        current = self._round
        if current is None or current.interfaces_id != request_id:
            return
        current.interfaces_id = None
        self._interfaces = tuple(_parse_ips(ips[:INTERFACE_ADDRESSES_LIMIT]))
        self._end_round_if_done(now)

    def complete_dns(self, request_id: int, ips: Sequence[str], *, now: float) -> None:
        """Answer :class:`DnsRequested`. The first address of each family is asked.

        :raises LocalProtocolError: if there was no such request.
        """
        self._check_request(request_id)
        now = self._time.advance(now)
        current = self._round
        if current is None or current.dns_id != request_id or self._server is None:
            return
        current.dns_id = None
        self._ask(current, _parse_ips(ips), self._server, now)
        self._end_round_if_done(now)

    def complete_observation(
        self, request_id: int, address: UdpAddress | None, *, now: float
    ) -> None:
        """Answer :class:`ObservationRequested` with where the server sees this node.

        :raises LocalProtocolError: if there was no such request.
        """
        self._check_request(request_id)
        now = self._time.advance(now)
        current = self._round
        family = None if current is None else current.observations.pop(request_id, None)
        if current is None or family is None:
            return
        if address is not None and address.is_ipv6 == family:
            self._mapped[family] = (address, now)
            current.forget_probes(family)
        self._end_round_if_done(now)

    def receive_datagrams(self, batch: Sequence[bytes], addr: Address, *, now: float) -> None:
        """Take STUN datagrams; what answers no probe is counted and dropped."""
        now = self._time.advance(now)
        self._stun.receive_datagrams(batch, addr, now=now)
        self._take_stun(now)

    def handle_timer(self, *, now: float) -> None:
        """Begin the round that is due, or end the one that takes too long."""
        now = self._time.advance(now)
        self._stun.handle_timer(now=now)
        self._take_stun(now)
        for name in self._timers.pop_expired(now):
            match name:
                case "round timeout":
                    self._end_round(now)
                case "observation":
                    self._observe()
                case _:
                    self._refresh(now)

    def get_timer(self) -> float | None:
        """Return the earliest deadline, or ``None``. Changes nothing."""
        return earliest(self._timers.earliest(), self._stun.get_timer())

    def next_event(self) -> OwnAddressesEvent | None:
        """Return the oldest event and forget it, or ``None``."""
        return self._events.popleft() if self._events else None

    def datagrams_to_send(self) -> list[Transmit]:
        """Return the datagrams to send, and forget them."""
        return self._stun.datagrams_to_send()

    def _refresh(self, now: float) -> None:
        if not self._bound:
            return
        if self._round is not None:
            self._wants_another = True
            return
        self._begin_round(now)

    def _begin_round(self, now: float) -> None:
        self._wants_another = False
        self._timers.set("next round", now + self._rng.uniform(*ROUND_INTERVAL))
        self._timers.set("round timeout", now + ROUND_TIMEOUT)
        current = self._round = _Round()
        current.interfaces_id = self._take_request_id()
        self._events.append(InterfacesRequested(request_id=current.interfaces_id))
        if self._server is None:
            return
        server = self._server
        try:
            ips = [_parse_ip(server.host)]
        except DecodeError:
            current.dns_id = self._take_request_id()
            self._events.append(DnsRequested(request_id=current.dns_id, host=server.host))
            return
        self._ask(current, ips, server, now)

    def _ask(
        self, current: _Round, ips: Iterable[IpAddress], server: AddressServer, now: float
    ) -> None:
        """Begin to ask the server at its first address of each family."""
        families = {addr.is_ipv6 for addr in self._bound}
        for ip in ips:
            is_ipv6 = ip.version == 6
            if is_ipv6 not in families or not self._can_ask(ip):
                continue
            families.remove(is_ipv6)
            if server.stun_port is not None:
                probe_id = self._stun.start(UdpAddress.of(ip, server.stun_port), now=now)
                current.probes[probe_id] = is_ipv6
            if server.quic_port is not None:
                current.unobserved[is_ipv6] = UdpAddress.of(ip, server.quic_port)
        if self._silent.issuperset(current.unobserved) or server.stun_port is None:
            self._observe()
        else:
            self._timers.set("observation", now + OBSERVATION_DELAY)

    def _observe(self) -> None:
        """Ask by QAD in the families in which STUN has not answered."""
        current, server = self._round, self._server
        if current is None or server is None:
            return
        for is_ipv6, address in current.unobserved.items():
            request_id = self._take_request_id()
            current.observations[request_id] = is_ipv6
            self._events.append(
                ObservationRequested(
                    request_id=request_id, address=address, server_name=server.host
                )
            )
        current.unobserved.clear()

    def _can_ask(self, ip: IpAddress) -> bool:
        """Say whether a server may answer: without an IPv6 address the wait would be in vain."""
        if ip.version == 4 or ip.is_loopback or not self._interfaces:
            return True
        return any(own.version == 6 for own in _regular_ips(self._interfaces))

    def _take_stun(self, now: float) -> None:
        while (event := self._stun.next_event()) is not None:
            is_ipv6 = event.server.is_ipv6
            current = self._round
            if isinstance(event, StunAddressFound):
                self._mapped[event.address.is_ipv6] = (event.address, now)
                self._silent.discard(is_ipv6)
                if current is not None:
                    current.forget_observation(is_ipv6)
            else:
                self._silent.add(is_ipv6)
                if current is not None and is_ipv6 in current.unobserved:
                    self._observe()
            if current is not None:
                current.probes.pop(event.probe_id, None)
        self._end_round_if_done(now)

    def _end_round_if_done(self, now: float) -> None:
        if self._round is not None and self._round.is_done:
            self._end_round(now)

    def _end_round(self, now: float) -> None:
        self._end_probes(now)
        self._round = None
        self._timers.cancel("round timeout")
        self._timers.cancel("observation")
        for family, (_, seen_at) in list(self._mapped.items()):
            if seen_at + MAPPED_ADDRESS_TIME <= now:
                del self._mapped[family]
        self._events.append(self._found())
        if self._wants_another:
            self._begin_round(now)

    def _end_probes(self, now: float) -> None:
        if self._round is not None:
            for probe_id in self._round.probes:
                self._stun.cancel(probe_id, now=now)

    def _found(self) -> OwnAddressesFound:
        mapped = [address for address, _ in self._mapped.values()]
        regular = _regular_ips(self._interfaces)
        told = [address for address in mapped if address.port]
        hidden: list[UdpAddress] = []
        for addr in self._bound:
            if not _parse_ip(addr.ip).is_unspecified:
                told.append(addr)
                continue
            of_family = [ip for ip in self._interfaces if (ip.version == 6) == addr.is_ipv6]
            for ip in of_family:
                addresses = told if ip in regular else hidden
                addresses.append(UdpAddress.of(ip, addr.port))
            hidden.append(UdpAddress("::1" if addr.is_ipv6 else "127.0.0.1", addr.port))
        if not told:
            # Nothing but this host itself: nodes on it can still find one another.
            told = [addr for addr in hidden if _parse_ip(addr.ip).is_loopback]
        addresses = sorted(dict.fromkeys(told), key=lambda addr: addr.sort_key)
        return OwnAddressesFound(
            addresses=tuple(addresses[:OWN_ADDRESSES_LIMIT]),
            hidden=tuple(addr for addr in dict.fromkeys(hidden) if addr not in told),
            ipv6_works=any(_is_working_ipv6(addr) for addr in addresses),
        )

    def _take_request_id(self) -> int:
        self._next_request_id += 1
        return self._next_request_id

    def _check_request(self, request_id: int) -> None:
        if not 0 < request_id <= self._next_request_id:
            raise LocalProtocolError(f"there was no request {request_id}")


class _Round:
    """What one round waits for."""

    __slots__ = ("dns_id", "interfaces_id", "observations", "probes", "unobserved")

    def __init__(self) -> None:
        self.interfaces_id: int | None = None
        self.dns_id: int | None = None
        # By number, whether it is about IPv6.
        self.probes: dict[int, bool] = {}
        self.observations: dict[int, bool] = {}
        # By family, the QAD servers to be asked unless STUN answers before.
        self.unobserved: dict[bool, UdpAddress] = {}

    @property
    def is_done(self) -> bool:
        """Whether all answers are in."""
        asked = self.interfaces_id is not None or self.dns_id is not None
        return not (asked or self.probes or self.observations or self.unobserved)

    def forget_probes(self, is_ipv6: bool) -> None:
        """Wait for no STUN answer in a family any more; a late one is welcome all the same."""
        self.probes = {
            number: family for number, family in self.probes.items() if family != is_ipv6
        }

    def forget_observation(self, is_ipv6: bool) -> None:
        """Ask nobody by QAD in a family, and do not wait for an answer."""
        self.unobserved.pop(is_ipv6, None)
        self.observations = {
            number: family for number, family in self.observations.items() if family != is_ipv6
        }


# The same few addresses come up in every round.
@lru_cache(maxsize=1024)
def _parse_ip(text: str) -> IpAddress:
    return ipaddress.ip_address(UdpAddress.of(text, 0).ip)


def _parse_ips(texts: Iterable[str]) -> list[IpAddress]:
    ips = []
    for text in texts:
        try:
            ips.append(_parse_ip(text))
        except DecodeError:
            continue
    return ips


def _regular_ips(ips: Iterable[IpAddress]) -> set[IpAddress]:
    """Return the addresses that peers may have use for.

    Never loopback or IPv6 link-local; IPv4 link-local and IPv6 unique local only if there is
    nothing else.
    """
    usable = [
        ip
        for ip in ips
        if not (ip.is_loopback or ip.is_unspecified or ip.is_multicast)
        and not (ip.version == 6 and ip.is_link_local)
    ]
    wide = {ip for ip in usable if not (ip.is_link_local or _is_unique_local(ip))}
    return wide or set(usable)


def _is_unique_local(ip: IpAddress) -> bool:
    return ip.version == 6 and ip.packed[0] & 0xFE == 0xFC


def _is_working_ipv6(addr: UdpAddress) -> bool:
    return addr.is_ipv6 and not _parse_ip(addr.ip).is_loopback
