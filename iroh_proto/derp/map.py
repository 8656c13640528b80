"""The DERP servers an endpoint may use."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from iroh_proto.address import DerpUrl
from iroh_proto.errors import LocalProtocolError

STUN_PORT = 3478
"""UDP port of the STUN server that runs beside a DERP server, unless the map says otherwise."""

QUIC_PORT = 7842
"""UDP port of the server for QUIC address discovery, likewise."""

_TOKEN = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True, init=False)
class DerpNode:
    """One DERP server. ``url`` takes a :class:`DerpUrl` or its text.

    ``stun_port`` is ``None`` when the server answers no STUN, as those of 0.90 and later.
    ``quic_port`` is for QUIC address discovery, which needs a certificate: servers with an
    ``https`` URL are asked there when they do not answer STUN, ``None`` if never. ``dialect``
    names the protocol generation (a key of :data:`iroh_proto.derp.dialects.DIALECTS`); ``None``
    has it found out. ``token`` is shown to this server, which may let in none without one, and to
    no other.

    :raises DecodeError: if the URL does not parse.
    :raises LocalProtocolError: if the token cannot stand in a header.
    """

    url: DerpUrl
    stun_port: int | None
    dialect: str | None
    quic_port: int | None
    token: str | None = field(repr=False)

    def __init__(
        self,
        url: DerpUrl | str,
        stun_port: int | None = STUN_PORT,
        dialect: str | None = None,
        *,
        quic_port: int | None = QUIC_PORT,
        token: str | None = None,
    ) -> None:
        if token is not None and not _TOKEN.fullmatch(token):
            raise LocalProtocolError("a token is visible ASCII without spaces")
        object.__setattr__(self, "url", DerpUrl.from_str(url) if isinstance(url, str) else url)
        object.__setattr__(self, "stun_port", stun_port)
        object.__setattr__(self, "dialect", dialect)
        object.__setattr__(self, "quic_port", quic_port)
        object.__setattr__(self, "token", token)


class DerpMap:
    """DERP servers in order of preference, at most one per URL (the first stays).

    :raises TypeError: if one of them is no :class:`DerpNode`; :meth:`from_urls` takes URLs.
    """

    __slots__ = ("_nodes",)

    def __init__(self, nodes: Iterable[DerpNode] = ()) -> None:
        self._nodes: dict[DerpUrl, DerpNode] = {}
        for node in nodes:
            if not isinstance(node, DerpNode):
                raise TypeError(
                    f"a map is a list of DerpNode, not of {type(node).__name__}: see from_urls()"
                )
            self._nodes.setdefault(node.url, node)

    @classmethod
    def from_urls(cls, urls: Iterable[DerpUrl | str], *, token: str | None = None) -> DerpMap:
        """Return a map of servers with the usual settings.

        :param token: what to show to each of them.
        :raises DecodeError: if a URL does not parse.
        :raises LocalProtocolError: if the token cannot stand in a header.
        :raises TypeError: if it is one URL, not a list of them.
        """
        if isinstance(urls, str | DerpUrl):
            raise TypeError("urls is a list of URLs, not one URL")
        return cls(DerpNode(url, token=token) for url in urls)

    def get(self, url: DerpUrl) -> DerpNode | None:
        """Return the server with this URL, if the map has it."""
        return self._nodes.get(url)

    def __iter__(self) -> Iterator[DerpNode]:
        return iter(self._nodes.values())

    def __len__(self) -> int:
        return len(self._nodes)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DerpMap):
            return NotImplemented
        return list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # compared in order, not meant as a key

    def __repr__(self) -> str:
        return f"DerpMap([{', '.join(str(node.url) for node in self)}])"
