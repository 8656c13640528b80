"""What a DERP server can be told: its settings, and what they are when nothing is said.

:mod:`iroh_anyio.derper.config_file` reads them from TOML.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from iroh_anyio.derper.access import AccessRule, Everyone
from iroh_proto.address import UdpAddress, check_hostname
from iroh_proto.derp.mesh import MeshServer
from iroh_proto.derp.mesh_key import MeshKey
from iroh_proto.derp.rate import AcceptLimit, RateLimit
from iroh_proto.key import SecretKey

HTTP_PORT = 80
HTTPS_PORT = 443
METRICS_PORT = 9090

DEV_PORT = 3340
"""TCP port of a development server, as in iroh's releases."""

MAX_CONNECTIONS = 4_096
"""TCP connections served at once. The usual limit of file descriptors is 1,024 to 65,536."""

WORKERS_LIMIT = 64
"""Processes of one server. Each has two connections to each other one."""

WORKERS_IN_MESH = "1 with derper.mesh: other servers would see the clients of one worker alone"

DRAIN_TIME = 2.0
"""Seconds that clients have to leave after they were told that the server goes away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsConfig:
    """A certificate and what is served with it. Its PEM files are read again when they change.

    :ivar https_bind_addr: where the server is, ``None`` to serve plain HTTP all the same.
    :ivar quic_bind_addr: where QUIC address discovery is answered, ``None`` for nowhere.
    :ivar hostnames: the names under which clients know the server, the first one the main one.
    :raises DecodeError: if one of them is no host name.
    """

    https_bind_addr: UdpAddress | None
    quic_bind_addr: UdpAddress | None = None
    hostnames: tuple[str, ...] = ()
    certificate_path: Path
    key_path: Path

    def __post_init__(self) -> None:
        for hostname in self.hostnames:
            check_hostname(hostname)


@dataclass(frozen=True, slots=True, kw_only=True)
class DerperConfig:
    """All settings of a server. Read by :mod:`iroh_anyio.derper.config_file`.

    :ivar enable_relay: whether clients may meet here; without it there are pages and STUN alone.
    :ivar http_bind_addr: plain HTTP. With TLS it only answers ``/generate_204`` and redirects.
    :ivar tls: the certificate and HTTPS, or ``None`` for plain HTTP alone.
    :ivar stun_bind_addr: where STUN is answered, ``None`` for nowhere.
    :ivar may_lack_stun: that the port for STUN is taken is a warning, not an error.
    :ivar metrics_bind_addr: where metrics are read, ``None`` for nowhere.
    :ivar rate_limit: what each client may send.
    :ivar accept_limit: how often clients may connect.
    :ivar access: who may relay.
    :ivar secret_key: the identity that v2 clients see; ``None`` for a new one.
    :ivar max_connections: TCP connections served at once.
    :ivar workers: processes that serve clients, each on a core of its own.
    :ivar drain_time: seconds that clients have to leave when the server ends.
    :ivar listen_dialect: which clients to expect where a request does not tell, ``"v2"`` or
        ``"v3"``; ``None`` waits a moment to see.
    :ivar mesh_key: the secret that servers of a mesh share; ``None`` for no mesh.
    :ivar mesh_servers: the others that this one dials.
    :ivar notices: sentences about keys that were accepted and have no effect.
    """

    enable_relay: bool = True
    http_bind_addr: UdpAddress
    tls: TlsConfig | None = None
    stun_bind_addr: UdpAddress | None = None
    may_lack_stun: bool = False
    metrics_bind_addr: UdpAddress | None = None
    rate_limit: RateLimit | None = None
    accept_limit: AcceptLimit | None = None
    access: AccessRule = field(default_factory=Everyone)
    secret_key: SecretKey | None = None
    max_connections: int = MAX_CONNECTIONS
    workers: int = 1
    drain_time: float = DRAIN_TIME
    listen_dialect: str | None = None
    mesh_key: MeshKey | None = None
    mesh_servers: tuple[MeshServer, ...] = ()
    notices: tuple[str, ...] = ()

    @classmethod
    def for_development(cls, host: str, port: int, stun_port: int | None) -> Self:
        """Return the settings of a server to try things out with: plain HTTP, no metrics.

        :raises DecodeError: if ``host`` is no IP address or a port no port.
        """
        return cls(
            http_bind_addr=UdpAddress.of(host, port),
            stun_bind_addr=None if stun_port is None else UdpAddress.of(host, stun_port),
            may_lack_stun=True,
        )
