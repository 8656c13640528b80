"""A whole derper in the simulated network: DERP and STUN on one host, and its name in DNS."""

from __future__ import annotations

import random
from collections.abc import Callable

from iroh_proto.address import DerpUrl, UdpAddress
from iroh_proto.derp.dialects import ClientKey
from iroh_proto.derp.map import STUN_PORT, DerpMap, DerpNode
from iroh_proto.derp.relay import CONNECTIONS_LIMIT, DerpServer
from iroh_proto.key import SecretKey
from iroh_proto.stun.server import StunServer
from iroh_proto.testing.network import Host, Program
from iroh_proto.trace.tape import Recipe

ANY_ADDRESSES = ("0.0.0.0", "::")


class SimulatedDerper:
    """A DERP server and a STUN server on one host.

    Both begin at once. ``derp`` and ``stun`` are the programs, to be stopped and started;
    :meth:`restart` does so with both.

    :param url: where clients find it; over plain HTTP at a name made from the host's unless given.
        A name is put into DNS with all addresses of the host.
    :param secret_key: the server's own identity, made from the host's name unless given.
    :param stun_port: the UDP port for STUN, ``None`` for none.
    :param listen_dialect: see :class:`~iroh_proto.derp.relay.DerpServer`.
    :param connections_limit: see :class:`~iroh_proto.derp.relay.DerpServer`.
    :param keeps: whether the programs keep their events.
    """

    def __init__(
        self,
        host: Host,
        *,
        url: DerpUrl | str | None = None,
        secret_key: SecretKey | None = None,
        stun_port: int | None = STUN_PORT,
        listen_dialect: str | None = None,
        connections_limit: int = CONNECTIONS_LIMIT,
        keeps: bool = True,
    ) -> None:
        url = f"http://{host.name}.example/" if url is None else url
        self.host = host
        self.url = url if isinstance(url, DerpUrl) else DerpUrl.from_str(url)
        self.derp_node = DerpNode(self.url, stun_port)
        self.stun: Program[StunServer] | None = None
        if not self.url.is_ip_literal:
            host.network.set_name(self.url.host, host.ips)
        key = secret_key or key_of(host)
        self.derp: Program[DerpServer] = host.run(
            Recipe(
                DerpServer,
                secret_key=key,
                listen_dialect=listen_dialect,
                connections_limit=connections_limit,
            ),
            name="derp",
            tcp_ports=[] if self.url.is_tls else [self.url.port],
            tls_ports=[self.url.port] if self.url.is_tls else [],
            keeps=keeps,
        )
        if stun_port is not None:
            self.stun = host.run(
                Recipe(StunServer),
                name="stun",
                udp=[UdpAddress(ip, stun_port) for ip in ANY_ADDRESSES],
                keeps=keeps,
            )

    @property
    def derp_map(self) -> DerpMap:
        """A map of this server alone."""
        return DerpMap([self.derp_node])

    @property
    def clients(self) -> list[ClientKey]:
        """The nodes that are connected, and the keys of clients of Tailscale's dialect."""
        return self.derp.machine.clients

    def restart(self, *, after: float = 0.0) -> None:
        """End both servers, and start them again some seconds later."""
        for restart in self._restarts():
            restart(after=after)

    def _restarts(self) -> list[Callable[..., None]]:
        return [self.derp.restart, *([] if self.stun is None else [self.stun.restart])]


def key_of(host: Host) -> SecretKey:
    """Return a secret key that is always the same for a host's name: not a secret at all."""
    return SecretKey.generate(random.Random(host.name))
