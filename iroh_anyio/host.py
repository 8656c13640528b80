"""What machines ask of their host: names resolved, interfaces listed, changes of both noticed."""

from __future__ import annotations

import logging
import socket
import time
from ipaddress import ip_address

import anyio
import psutil  # type: ignore[import-untyped]

logger = logging.getLogger("iroh_anyio.host")

RESOLVED_LIMIT = 16
"""Addresses taken from one DNS answer."""

SLEEP_THRESHOLD = 2.0
"""Seconds the machine must have slept for it to matter; below, the path has not changed."""


async def resolve(host: str) -> list[str]:
    """Return the IP addresses of a host name in the order of the resolver, none if it has none.

    An IP address is returned as it is, in brackets or not.
    """
    literal = host.removeprefix("[").removesuffix("]")
    try:
        return [str(ip_address(literal))]
    except ValueError:
        pass
    try:
        found = await anyio.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        logger.info("no address for %s: %s", host, error)
        return []
    ips = dict.fromkeys(str(address[0]) for *_, address in found)
    return list(ips)[:RESOLVED_LIMIT]


def interface_ips() -> list[str]:
    """Return the IP addresses of the interfaces that are up, loopback and all, as text.

    IPv6 link-local addresses keep their scope, ``fe80::1%eth0``.

    :raises OSError: if they cannot be listed, as for want of descriptors.
    """
    states = psutil.net_if_stats()
    ips: dict[str, None] = {}
    for name, addresses in psutil.net_if_addrs().items():
        state = states.get(name)
        if state is not None and not state.isup:
            continue
        for address in addresses:
            if address.family in (socket.AF_INET, socket.AF_INET6):
                ips[address.address] = None
    return list(ips)


class SleepWatch:
    """Notices that the machine slept: the clock that counts sleep runs ahead of the other."""

    def __init__(self) -> None:
        self._ahead = _sleep_seconds()

    def slept(self) -> bool:
        """Return whether the machine slept since the last call."""
        before, self._ahead = self._ahead, _sleep_seconds()
        return self._ahead - before >= SLEEP_THRESHOLD


def _sleep_seconds() -> float:
    # Only Linux has both clocks; elsewhere a jump of the wall clock would have to do, and that
    # is moved by time servers too.
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
