"""A small internet in network namespaces: NATs made of nftables rules, and a host behind each.

::

    host ── 192.168.0.0/24 ── NAT ─┐
    host ── 192.168.0.0/24 ── NAT ─┼─ 203.0.113.0/24 ── internet, with the DERP server
    ...                            ┘

All hosts have the same address: what leads from one to another is not in their own addresses.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

RULES = Path(__file__).parent

SERVER_IP = "203.0.113.1"
FIRST_NAT = 10  # the last number of the first NAT's outer address

RULESETS = {
    "full cone": ("full-cone", "guard"),
    "address-restricted": ("eim-addr-filter", "guard"),
    "port-restricted": ("port-restricted", "guard"),
    "symmetric": ("symmetric", "guard"),
}
"""The kinds of NAT that nftables can build, by name: the files of their rules."""


def missing() -> str | None:
    """Return what this machine lacks, ``None`` if nothing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    for program, package in (("ip", "iproute2"), ("nft", "nftables")):
        if shutil.which(program) is None:
            return f"there is no {program}: apt-get install {package}"
    return None


class Internet:
    """Namespaces with a name of this process; to be removed whatever happens."""

    def __init__(self) -> None:
        self._spaces: list[str] = []
        self._nats = 0
        self.server = self._space("internet")
        _ip("-n", self.server, "link", "add", "wan", "type", "bridge")
        _ip("-n", self.server, "addr", "add", f"{SERVER_IP}/24", "dev", "wan")
        _ip("-n", self.server, "link", "set", "wan", "up")

    def add_host(self, name: str, kind: str) -> str:
        """Add a NAT and a host behind it; return the host's namespace."""
        number, self._nats = self._nats, self._nats + 1
        nat, host = self._space(f"{name}-nat"), self._space(name)
        _cable(nat, "WAN", self.server, f"nat{number}")
        _ip("-n", self.server, "link", "set", f"nat{number}", "master", "wan")
        _cable(nat, "LAN", host, "eth0")
        _ip("-n", nat, "addr", "add", f"203.0.113.{FIRST_NAT + number}/24", "dev", "WAN")
        _ip("-n", nat, "addr", "add", "192.168.0.1/24", "dev", "LAN")
        _ip("-n", host, "addr", "add", "192.168.0.2/24", "dev", "eth0")
        _ip("-n", host, "route", "add", "default", "via", "192.168.0.1")
        _run("ip", "netns", "exec", nat, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        for ruleset in RULESETS[kind]:
            _run("ip", "netns", "exec", nat, "nft", "-f", str(RULES / f"{ruleset}.nft"))
        return host

    def block_udp(self, host: str) -> None:
        """Let no UDP of a host leave its namespace, nor any arrive."""
        for hook in ("input", "output"):
            chain = f"chain {hook} {{ type filter hook {hook} priority 0; ip protocol udp drop; }}"
            _run("ip", "netns", "exec", host, "nft", f"table inet block {{ {chain}; }}")

    def remove(self) -> None:
        """Take everything down."""
        for space in self._spaces:
            subprocess.run(["ip", "netns", "delete", space], check=False, capture_output=True)

    def _space(self, name: str) -> str:
        space = f"irohnat-{os.getpid()}-{name}"
        _ip("netns", "add", space)
        self._spaces.append(space)
        _ip("-n", space, "link", "set", "lo", "up")
        return space


def _cable(one: str, one_link: str, other: str, other_link: str) -> None:
    _ip(*f"link add {one_link} netns {one} type veth peer name {other_link} netns {other}".split())
    _ip("-n", one, "link", "set", one_link, "up")
    _ip("-n", other, "link", "set", other_link, "up")


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=20)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
