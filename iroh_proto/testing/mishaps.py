"""What goes wrong in a network, as values: to be drawn, kept in a list, printed and played again.

::

    for mishap in (LinkDown("home"), NatReboot("home", ip="203.0.113.9"), LinkUp("home")):
        mishap.apply(network)
        network.run_for(5.0)

Hosts and NATs are named as they were added to the network. What lasts has a ``remedy``, another
mishap that ends it. Names that the network does not have raise :class:`KeyError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, cast

from iroh_proto.testing.firewall import Firewall, FirewallRules
from iroh_proto.testing.links import Link
from iroh_proto.testing.network import Host, Network

INTERNET = "internet"
"""The name of the network that all others are behind."""


class Mishap(Protocol):
    """One thing that happens to a network at once. A frozen dataclass whose repr makes it again."""

    def apply(self, network: Network) -> None:
        """Have it happen."""

    @property
    def remedy(self) -> Mishap | None:
        """What ends it, ``None`` if it does not last."""


class _Momentary:
    """A mishap that is over at once."""

    __slots__ = ()

    @property
    def remedy(self) -> Mishap | None:
        """``None``: it does not last."""
        return None


@dataclass(frozen=True, slots=True)
class LinkDown:
    """Nothing crosses the cables of a host, or the one that leads out of a NAT."""

    at: str

    def apply(self, network: Network) -> None:
        """Have it happen."""
        for link in _links(network, self.at):
            link.is_up = False

    @property
    def remedy(self) -> Mishap:
        """The cables are plugged in again."""
        return LinkUp(self.at)


@dataclass(frozen=True, slots=True)
class LinkUp(_Momentary):
    """The cables of a host, or the one that leads out of a NAT, work again."""

    at: str

    def apply(self, network: Network) -> None:
        """Have it happen."""
        for link in _links(network, self.at):
            link.is_up = True


@dataclass(frozen=True, slots=True)
class LinkTrouble:
    """The cables of a host, or the one out of a NAT, treat datagrams badly.

    The shares are of datagrams, ``jitter`` is in seconds; see
    :class:`~iroh_proto.testing.links.Link`. One without trouble is the end of all.
    """

    at: str
    loss: float = 0.0
    jitter: float = 0.0
    reordering: float = 0.0
    duplication: float = 0.0

    def apply(self, network: Network) -> None:
        """Have it happen."""
        for link in _links(network, self.at):
            link.loss, link.jitter = self.loss, self.jitter
            link.reordering, link.duplication = self.reordering, self.duplication

    @property
    def remedy(self) -> Mishap | None:
        """The cables are as good as new."""
        clean = LinkTrouble(self.at)
        return None if self == clean else clean


@dataclass(frozen=True, slots=True)
class AddressChange(_Momentary):
    """The first interface of a host gets another address in the same network.

    :ivar ip: the new address; a free one of the LAN unless given.
    :ivar is_told: whether the programs learn of it (``network_changed``).
    """

    host: str
    ip: str | None = None
    is_told: bool = True

    def apply(self, network: Network) -> None:
        """Have it happen."""
        host = network.hosts[self.host]
        old = host.attachments[0]
        new = host.attach(old.segment, self.ip, latency=old.link.latency)
        _replace_first(host, new)
        if self.is_told:
            tell_of_change(host)


@dataclass(frozen=True, slots=True)
class Move(_Momentary):
    """The first interface of a host is plugged into another network, and programs are told.

    :ivar to: the NAT to be behind, or :data:`INTERNET`.
    :ivar ip: the new address, which the internet has to be told; a free one of the LAN unless
        given.
    """

    host: str
    to: str
    ip: str | None = None

    def apply(self, network: Network) -> None:
        """Have it happen."""
        host = network.hosts[self.host]
        segment = network.internet if self.to == INTERNET else network.routers[self.to].inside
        new = host.attach(segment, self.ip, latency=host.attachments[0].link.latency)
        _replace_first(host, new)
        tell_of_change(host)


@dataclass(frozen=True, slots=True)
class NatReboot(_Momentary):
    """A NAT forgets its mappings and TCP connections, and comes back at another address or not."""

    nat: str
    ip: str | None = None

    def apply(self, network: Network) -> None:
        """Have it happen."""
        network.routers[self.nat].reboot(ip=self.ip)


@dataclass(frozen=True, slots=True)
class ProcessRestart(_Momentary):
    """The programs of a host, such as a DERP server, end and start anew; TCP peers notice.

    Nothing happens to those of one that sleeps.
    """

    host: str

    def apply(self, network: Network) -> None:
        """Have it happen."""
        host = network.hosts[self.host]
        programs = [one for one in host.programs if one.is_running and host.is_awake]
        for program in programs:
            program.stop()
        for program in programs:
            program.start()


@dataclass(frozen=True, slots=True)
class PowerCut:
    """A host is gone without a word."""

    host: str

    def apply(self, network: Network) -> None:
        """Have it happen."""
        if network.hosts[self.host].is_up:
            network.hosts[self.host].cut_power()

    @property
    def remedy(self) -> Mishap:
        """The host boots."""
        return PowerBack(self.host)


@dataclass(frozen=True, slots=True)
class PowerBack(_Momentary):
    """A host that had no power boots, and its programs start anew."""

    host: str

    def apply(self, network: Network) -> None:
        """Have it happen."""
        if not network.hosts[self.host].is_up:
            network.hosts[self.host].boot()


@dataclass(frozen=True, slots=True)
class Partition:
    """Nothing gets through between two hosts, such as a node and a relay; TCP stalls."""

    first: str
    second: str

    def apply(self, network: Network) -> None:
        """Have it happen."""
        pair = network.hosts[self.first], network.hosts[self.second]
        network.block_udp(*pair)
        network.block_tcp(*pair)

    @property
    def remedy(self) -> Mishap:
        """The hosts reach each other again."""
        return PartitionHealed(self.first, self.second)


@dataclass(frozen=True, slots=True)
class PartitionHealed(_Momentary):
    """Two hosts reach each other again."""

    first: str
    second: str

    def apply(self, network: Network) -> None:
        """Have it happen."""
        pair = network.hosts[self.first], network.hosts[self.second]
        network.unblock_udp(*pair)
        network.unblock_tcp(*pair)


@dataclass(frozen=True, slots=True)
class UdpBlocked:
    """A host can neither send nor receive UDP, or not with one other host."""

    host: str
    other: str | None = None

    def apply(self, network: Network) -> None:
        """Have it happen."""
        network.block_udp(*_pair(network, self.host, self.other))

    @property
    def remedy(self) -> Mishap:
        """UDP is let through."""
        return UdpUnblocked(self.host, self.other)


@dataclass(frozen=True, slots=True)
class UdpUnblocked(_Momentary):
    """What :class:`UdpBlocked` stopped is let through."""

    host: str
    other: str | None = None

    def apply(self, network: Network) -> None:
        """Have it happen."""
        network.unblock_udp(*_pair(network, self.host, self.other))


@dataclass(frozen=True, slots=True)
class DnsDown:
    """No name is resolved."""

    def apply(self, network: Network) -> None:
        """Have it happen."""
        network.dns_is_up = False

    @property
    def remedy(self) -> Mishap:
        """Names are resolved again."""
        return DnsUp()


@dataclass(frozen=True, slots=True)
class DnsUp(_Momentary):
    """Names are resolved again."""

    def apply(self, network: Network) -> None:
        """Have it happen."""
        network.dns_is_up = True


@dataclass(frozen=True, slots=True)
class Sleep:
    """A host freezes: nothing comes in or out and no timer is due, while time passes."""

    host: str

    def apply(self, network: Network) -> None:
        """Have it happen."""
        network.hosts[self.host].sleep()

    @property
    def remedy(self) -> Mishap:
        """The host wakes up."""
        return Wake(self.host)


@dataclass(frozen=True, slots=True)
class Wake(_Momentary):
    """A host that sleeps goes on; its programs are told (``resumed``)."""

    host: str

    def apply(self, network: Network) -> None:
        """Have it happen."""
        network.hosts[self.host].wake()


@dataclass(frozen=True, slots=True)
class Walled:
    """The router of a NAT begins to filter, as after an update of its rules."""

    nat: str
    rules: FirewallRules

    def apply(self, network: Network) -> None:
        """Have it happen."""
        network.routers[self.nat].firewall = Firewall(self.rules)

    @property
    def remedy(self) -> Mishap:
        """The router filters no more."""
        return Unwalled(self.nat)


@dataclass(frozen=True, slots=True)
class Unwalled(_Momentary):
    """The router of a NAT filters no more."""

    nat: str

    def apply(self, network: Network) -> None:
        """Have it happen."""
        network.routers[self.nat].firewall = None


@dataclass(frozen=True, slots=True)
class PortalClosed:
    """A captive portal stands before everything behind a NAT, as when a paid hour is over."""

    nat: str

    def apply(self, network: Network) -> None:
        """Have it happen."""
        network.add_portal(network.routers[self.nat])

    @property
    def remedy(self) -> Mishap:
        """Somebody agrees to its terms."""
        return PortalOpened(self.nat)


@dataclass(frozen=True, slots=True)
class PortalOpened(_Momentary):
    """Somebody agrees to the terms of a captive portal."""

    nat: str

    def apply(self, network: Network) -> None:
        """Have it happen."""
        network.routers[self.nat].leave_portal()


class _Told(Protocol):
    def network_changed(self, *, now: float) -> None: ...


def tell_of_change(host: Host) -> None:
    """Tell the programs of a host, as an operating system does, that its network changed."""
    if not host.is_awake:
        return
    for program in host.programs:
        if program.is_running and hasattr(program.machine, "network_changed"):
            program.give(lambda machine, now: cast(_Told, machine).network_changed(now=now))


def _links(network: Network, name: str) -> Iterator[Link]:
    if name in network.routers:
        yield network.routers[name].link
        return
    for attachment in network.hosts[name].attachments:
        yield attachment.link


def _replace_first(host: Host, new: object) -> None:
    """Unplug the first interface, and have the one plugged in last take its place."""
    old = host.attachments[0]
    latest = host.attachments[-1]
    assert latest is new
    latest.link.is_up = old.link.is_up
    host.detach(old)
    host.attachments.insert(0, host.attachments.pop())


def _pair(network: Network, first: str, second: str | None) -> tuple[Host, Host | None]:
    return network.hosts[first], None if second is None else network.hosts[second]
