"""What a process of a server knows of the others that serve clients together with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from iroh_proto.derp.dialects import ClientKey
from iroh_proto.derp.mesh import MeshServer
from iroh_proto.derp.mesh_key import MeshKey
from iroh_proto.key import SecretKey

RETRY_INTERVAL = 0.1
"""Seconds between attempts to reach another process, which is about to be started again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """The other processes, and how to reach them.

    :ivar mesh_key: what all of them know one another by.
    :ivar secret_key: by which the others know this one, where clients know all by one.
    :ivar servers: the others.
    :ivar dial: called with a number and the host of one of ``servers`` to get a connection, by
        :meth:`~iroh_anyio.derper.server.Derper.complete_dial`.
    :ivar tell: called with the key of a client that connected (true) or disconnected (false).
    """

    mesh_key: MeshKey = field(repr=False)
    secret_key: SecretKey
    servers: Sequence[MeshServer]
    dial: Callable[[int, str], None]
    tell: Callable[[ClientKey, bool], None]
