"""Every private name of aioquic this package leans on, in one place, checked at import.

aioquic offers no public way to prove a node id, to open flow-control windows as data is consumed
or to enlarge the pacer's bucket. :class:`HookedContext` and :class:`HookedConnection` turn its
private methods into hooks with names of their own; nothing outside this package touches a private
name. Should a release of aioquic rename one, importing this package fails with a sentence that
says which.
"""

from aioquic import tls

from iroh_anyio.quic.aioquic_private.checks import PINNED_VERSION, check_private_names

check_private_names()

from iroh_anyio.quic.aioquic_private.connection import (  # noqa: E402
    CHALLENGE_SIZE,
    HookedConnection,
)
from iroh_anyio.quic.aioquic_private.context import (  # noqa: E402
    Extension,
    HookedContext,
    Signer,
    make_alert,
    pull_alpn,
    push_alpn,
)
from iroh_anyio.quic.aioquic_private.observing import ObservingConnection  # noqa: E402
from iroh_anyio.quic.aioquic_private.packets import (  # noqa: E402
    CONNECTION_ID_SIZE,
    PEER,
    QUIC_VERSION,
    encode_initial_close,
)

__all__ = [
    "CHALLENGE_SIZE",
    "CONNECTION_ID_SIZE",
    "PEER",
    "PINNED_VERSION",
    "QUIC_VERSION",
    "Extension",
    "HookedConnection",
    "HookedContext",
    "ObservingConnection",
    "Signer",
    "check_private_names",
    "encode_initial_close",
    "make_alert",
]

# Protocol names are bytes in iroh; aioquic encodes text as ASCII and skips what does not decode.
tls.pull_alpn_protocol = pull_alpn
tls.push_alpn_protocol = push_alpn
