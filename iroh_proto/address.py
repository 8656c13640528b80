"""Where a node may be reached: UDP addresses, DERP servers, and both with a node id.

Later releases of iroh call a DERP URL a relay URL, a node id an endpoint id, and a node address
an endpoint address.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Self, TypeAlias
from urllib.parse import SplitResult, quote, urlsplit

from iroh_proto.errors import DecodeError
from iroh_proto.key import NodeId

IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

# RFC 3986 section 3: what a name and a path may hold as it is. The host goes into a header and the
# path into a request line, where a space or a line end would be read as something else.
_HOST_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=")
_PATH_CHARACTERS = "/%:@!$&'()*+,;=-._~"

# What follows the user: a host, in brackets or without any, and a port.
_AUTHORITY_END = re.compile(r"(?:^|@)(?:\[[^\[\]]*\]|[^\[\]:]*)(?::[0-9]*)?\Z")

_SCOPE = re.compile(r"[!-$&-.0-Z^-~]{1,15}")
"""What an interface may be called: as long as on Linux, without what URLs and addresses mean."""

# RFC 952 and RFC 1123 section 2.1, with the underscore that is found in practice.
_LABEL = "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOSTNAME = re.compile(rf"(?=.{{1,253}}\.?\Z){_LABEL}(\.{_LABEL})*\.?")

DEFAULT_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}


class UdpAddress(NamedTuple):
    """An IP address, as canonical text, and a UDP port. Usable as a socket address as it is.

    IPv4-mapped IPv6 addresses are kept as IPv4; build addresses with :meth:`from_str` or
    :meth:`of`, which see to it.
    """

    ip: str
    port: int

    @classmethod
    def from_str(cls, text: str) -> Self:
        """Parse ``1.2.3.4:80`` or ``[2001:db8::1]:80``.

        :raises DecodeError: naming what is wrong with the text.
        """
        host, colon, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if bracketed:
            host = host[1:-1]
        is_number = port.isascii() and port.isdigit() and len(port) <= 5
        if not colon or not is_number or int(port) > 65535:
            raise DecodeError(f"not an address and port such as 1.2.3.4:80 or [::1]:80: {text!r}")
        if (":" in host) != bracketed:
            raise DecodeError(f"IPv6 addresses, and only they, stand in brackets: {text!r}")
        return cls.of(host, int(port))

    @classmethod
    def of(cls, ip: str | IpAddress, port: int) -> Self:
        """Return the canonical address of ``ip`` and ``port``.

        :raises DecodeError: if ``ip`` is no IP address or ``port`` no port.
        """
        if not 0 <= port <= 65535:
            raise DecodeError(f"a port is 0 to 65535, not {port}")
        return cls(_canonical_ip(str(ip)), port)

    @property
    def is_ipv6(self) -> bool:
        """Whether the IP address is IPv6."""
        return ":" in self.ip

    @property
    def packed_ip(self) -> bytes:
        """The IP address as 4 or 16 bytes; an IPv6 scope is left out."""
        return _packed_ip(self.ip)

    @property
    def sort_key(self) -> tuple[bool, bytes, int, str]:
        """The order of iroh's sets: IPv4 first, then by address, then by port."""
        return (self.is_ipv6, self.packed_ip, self.port, self.ip)

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if self.is_ipv6 else f"{self.ip}:{self.port}"


@dataclass(frozen=True, slots=True)
class DerpUrl:
    """The URL of a DERP server, normalised; ``str(url)`` is its text.

    Host names compare without their trailing dot, which some releases of iroh append.
    """

    scheme: str
    host: str
    port: int
    path: str = "/"

    @classmethod
    def from_str(cls, text: str) -> Self:
        """Parse an ``http``, ``https``, ``ws`` or ``wss`` URL.

        :raises DecodeError: naming what is wrong with the text.
        """
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise DecodeError(f"not a URL: {text!r} ({error})") from None
        if "\\" in text or not _AUTHORITY_END.search(parts.netloc):
            raise DecodeError(f"not a URL: {text!r}")
        scheme = parts.scheme.lower()
        if scheme not in DEFAULT_PORTS:
            raise DecodeError(f"a DERP URL begins with http:// or https://, not {text!r}")
        if not parts.hostname:
            raise DecodeError(f"this DERP URL names no host: {text!r}")
        host = _canonical_host(parts.hostname.rstrip("."))
        return cls(scheme, host, DEFAULT_PORTS[scheme] if port is None else port, _path(parts))

    @property
    def is_tls(self) -> bool:
        """Whether the server is spoken to over TLS."""
        return self.scheme in ("https", "wss")

    @property
    def is_ip_literal(self) -> bool:
        """Whether the host is an IP address rather than a name."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True

    @property
    def authority(self) -> str:
        """The host, and the port if it is not the scheme's own: what a ``Host`` header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def to_rooted_str(self) -> str:
        """Return the text with the dot that iroh 0.13 to 0.95 appends to a host name."""
        if self.is_ip_literal:
            return str(self)
        port = "" if self.port == DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{self.host}.{port}{self.path}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


class DerpAddress(NamedTuple):
    """A node as seen through one DERP server."""

    url: DerpUrl
    node_id: NodeId

    def __str__(self) -> str:
        return f"{self.node_id.fmt_short()} via {self.url}"


def check_hostname(text: str) -> None:
    """Check that a text is a host name, which may stand in a URL and in a header.

    :raises DecodeError: if it is not. An international name has to be in its ASCII form.
    """
    if not _HOSTNAME.fullmatch(text):
        raise DecodeError(f"not a host name in ASCII, such as derp.example.com: {text!r}")


Address: TypeAlias = UdpAddress | DerpAddress
"""Where a datagram came from or goes to."""


class NodeAddr:
    """A node id with what is known of how to reach it. Immutable; equal by value.

    ``node_id`` takes a :class:`NodeId` or its text, ``derp_url`` a :class:`DerpUrl` or its text,
    ``direct_addresses`` take :class:`UdpAddress` or ``"ip:port"`` text; they are kept sorted and
    without doubles.

    :raises DecodeError: if a text does not parse.
    :raises TypeError: if ``node_id`` is neither, or ``direct_addresses`` one address, not a list.
    """

    __slots__ = ("derp_url", "direct_addresses", "node_id")

    node_id: NodeId
    derp_url: DerpUrl | None
    direct_addresses: tuple[UdpAddress, ...]

    def __init__(
        self,
        node_id: NodeId | str,
        *,
        derp_url: DerpUrl | str | None = None,
        direct_addresses: Iterable[UdpAddress | str] = (),
    ) -> None:
        if isinstance(node_id, str):
            node_id = NodeId.from_str(node_id)
        elif not isinstance(node_id, NodeId):
            raise TypeError(f"a node id is a NodeId or its text, not {type(node_id).__name__}")
        if isinstance(direct_addresses, str | UdpAddress):
            raise TypeError("direct_addresses is a list of addresses, not one address")
        url = DerpUrl.from_str(derp_url) if isinstance(derp_url, str) else derp_url
        addresses = {
            UdpAddress.from_str(address) if isinstance(address, str) else address
            for address in direct_addresses
        }
        ordered = tuple(sorted(addresses, key=lambda address: address.sort_key))
        object.__setattr__(self, "node_id", node_id)
        object.__setattr__(self, "derp_url", url)
        object.__setattr__(self, "direct_addresses", ordered)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"NodeAddr is immutable: {name}")

    @property
    def is_empty(self) -> bool:
        """Whether only the node id is known, so that discovery has to find the rest."""
        return self.derp_url is None and not self.direct_addresses

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NodeAddr):
            return NotImplemented
        return (self.node_id, self.derp_url, self.direct_addresses) == (
            other.node_id,
            other.derp_url,
            other.direct_addresses,
        )

    def __hash__(self) -> int:
        return hash((self.node_id, self.derp_url, self.direct_addresses))

    def __repr__(self) -> str:
        direct = [str(address) for address in self.direct_addresses]
        url = None if self.derp_url is None else str(self.derp_url)
        return f"NodeAddr({self.node_id}, derp_url={url!r}, direct_addresses={direct})"


def _path(parts: SplitResult) -> str:
    """Return path and query as they may stand in a request line."""
    path = quote(parts.path or "/", safe=_PATH_CHARACTERS, errors="replace")
    query = quote(parts.query, safe=_PATH_CHARACTERS + "?", errors="replace")
    return f"{path}?{query}" if query else path


def _canonical_host(host: str) -> str:
    if "%" not in host:  # which would begin a scope, and no URL has those
        try:
            return _canonical_ip(host)
        except DecodeError:
            pass
    name = host.lower()
    if not name or not set(name) <= _HOST_CHARACTERS:
        raise DecodeError(f"not a host name or IP address in a DERP URL: {host!r}")
    return name


@lru_cache(maxsize=4096)
def _canonical_ip(text: str) -> str:
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        raise DecodeError(f"not an IP address: {text!r}") from None
    scope = getattr(ip, "scope_id", None)
    if scope is not None and not (ip.is_link_local and _SCOPE.fullmatch(scope)):
        raise DecodeError(f"not the scope of a link-local address: {text!r}")
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return str(mapped or ip)


@lru_cache(maxsize=4096)
def _packed_ip(text: str) -> bytes:
    return ipaddress.ip_address(text).packed
