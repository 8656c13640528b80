"""What a firewall lets through: the rules, and the table of flows that were begun inside.

The table only; :mod:`iroh_proto.testing.network` puts it into routers, inside of their NAT.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Set
from dataclasses import dataclass

from iroh_proto.address import UdpAddress

UDP_FLOW_TIME = 30.0
"""Seconds that a UDP flow may be silent before its answers are not let in any more: Linux's."""

FLOWS_LIMIT = 65_536
"""Flows at the same time, the oldest being dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirewallRules:
    """What passes a firewall.

    :ivar lets_in: whether strangers may begin something with hosts inside.
    :ivar udp: whether UDP passes at all.
    :ivar tcp_ports: the ports outside to which hosts may connect, ``None`` for all.
    :ivar udp_flow_time: seconds of silence after which a UDP flow is over.
    """

    lets_in: bool = False
    udp: bool = True
    tcp_ports: Set[int] | None = None
    udp_flow_time: float = UDP_FLOW_TIME


OUTBOUND_ONLY = FirewallRules()
"""Answers come in, nothing else: what home routers do with IPv6 (RFC 6092)."""

UDP_BLOCKED = FirewallRules(udp=False)
"""TCP to anywhere, no UDP: many company and hotel networks."""

WEB_ONLY = FirewallRules(udp=False, tcp_ports=frozenset({80, 443}))
"""TCP to ports 80 and 443, no UDP: the strictest networks that still let people browse."""

OPEN = FirewallRules(lets_in=True)
"""Everything passes: a mere router."""


class Firewall:
    """Rules and the UDP flows that hosts inside began. Give it the time with each packet."""

    def __init__(self, rules: FirewallRules) -> None:
        self.rules = rules
        self._flows: OrderedDict[tuple[UdpAddress, UdpAddress], float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._flows)

    def outbound(self, inner: UdpAddress, remote: UdpAddress, now: float) -> bool:
        """Say whether a UDP packet may leave; it may be answered from now."""
        if not self.rules.udp:
            return False
        if not self.rules.lets_in:
            self._note((inner, remote), now)
        return True

    def inbound(self, inner: UdpAddress, remote: UdpAddress, now: float) -> bool:
        """Say whether a UDP packet may come in."""
        if not self.rules.udp or self.rules.lets_in:
            return self.rules.udp
        flow = (inner, remote)
        if self._flows.get(flow, now) <= now:
            return False
        self._note(flow, now)
        return True

    def permits_tcp(self, port: int) -> bool:
        """Say whether hosts inside may have a connection to a port outside."""
        return self.rules.tcp_ports is None or port in self.rules.tcp_ports

    def clear(self) -> None:
        """Forget all flows."""
        self._flows.clear()

    def _note(self, flow: tuple[UdpAddress, UdpAddress], now: float) -> None:
        self._flows[flow] = now + self.rules.udp_flow_time
        self._flows.move_to_end(flow)
        if len(self._flows) > FLOWS_LIMIT:
            self._flows.popitem(last=False)
