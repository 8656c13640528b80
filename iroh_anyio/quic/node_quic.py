"""aioquic's connections set up for nodes, and what makes them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, cast

from aioquic.quic.configuration import QuicConfiguration

from iroh_anyio.quic.aioquic_private import CONNECTION_ID_SIZE, QUIC_VERSION, HookedConnection
from iroh_anyio.quic.options import EndpointOptions
from iroh_anyio.quic.tls import IdentityKind, LocalIdentity, NodeContext
from iroh_proto.key import NodeId, SecretKey

DATAGRAM_FRAME_SIZE = 65_536
"""Bytes. What is announced for DATAGRAM frames; aioquic refuses frames of exactly this size, and
iroh announces one less."""

CONGESTION_CONTROL = "cubic"
"""As in iroh; it also regains its speed sooner than Reno after a loss on a long path."""

_VERIFY_NOTHING = 0
"""``ssl.CERT_NONE``: the checks of chain and host name are not ours."""

_PLACEHOLDER: Any = object()
"""aioquic wants a certificate and key to be set before the handshake chooses among ours."""


class NodeQuic(HookedConnection):
    """aioquic's connection with nodes' TLS. ``context`` is there once the handshake began.

    :param begin_tls: owes the context its ``begin_client`` or ``begin_server``.
    """

    context: NodeContext | None = None

    def __init__(
        self,
        *,
        configuration: QuicConfiguration,
        max_streams: int,
        begin_tls: Callable[[NodeContext], None],
        original_destination_cid: bytes | None = None,
        retry_source_cid: bytes | None = None,
    ) -> None:
        super().__init__(
            configuration=configuration,
            max_streams=max_streams,
            original_destination_cid=original_destination_cid,
            retry_source_cid=retry_source_cid,
        )
        self._begin_tls = begin_tls

    def prepare_tls(self) -> None:
        """Set up TLS for a node."""
        self.context = self.set_tls(NodeContext)
        self._begin_tls(self.context)


class QuicFactory:
    """Makes connections for one endpoint."""

    def __init__(
        self, *, secret_key: SecretKey, rng: random.Random, options: EndpointOptions
    ) -> None:
        self._identity = LocalIdentity(secret_key=secret_key, rng=rng)
        self._options = options
        self._server_configuration = self._configuration(is_client=False, alpns=())

    def set_alpns(self, alpns: Sequence[bytes]) -> None:
        """Serve these protocols, preferred in this order, on connections accepted from now on."""
        self._server_configuration = self._configuration(is_client=False, alpns=alpns)

    def dial(
        self, node_id: NodeId, *, alpn: bytes, kind: IdentityKind, unix_time: float
    ) -> NodeQuic:
        """Return a connection that will dial ``node_id`` with one kind of identity."""

        def begin_tls(context: NodeContext) -> None:
            context.begin_client(self._identity, kind=kind, expected=node_id, unix_time=unix_time)

        return NodeQuic(
            configuration=self._configuration(is_client=True, alpns=(alpn,)),
            max_streams=self._options.max_streams,
            begin_tls=begin_tls,
        )

    def accept(
        self, *, original_destination_cid: bytes, retry_source_cid: bytes | None, unix_time: float
    ) -> NodeQuic:
        """Return a connection that will answer a client's first Initial."""

        def begin_tls(context: NodeContext) -> None:
            context.begin_server(self._identity, mode=self._options.identity, unix_time=unix_time)

        return NodeQuic(
            configuration=self._server_configuration,
            max_streams=self._options.max_streams,
            begin_tls=begin_tls,
            original_destination_cid=original_destination_cid,
            retry_source_cid=retry_source_cid,
        )

    def _configuration(self, *, is_client: bool, alpns: Sequence[bytes]) -> QuicConfiguration:
        options = self._options
        return QuicConfiguration(
            is_client=is_client,
            alpn_protocols=[alpn.decode("latin-1") for alpn in alpns],
            certificate=_PLACEHOLDER,
            private_key=_PLACEHOLDER,
            congestion_control_algorithm=CONGESTION_CONTROL,
            connection_id_length=CONNECTION_ID_SIZE,
            idle_timeout=options.idle_timeout,
            max_data=options.connection_window,
            max_stream_data=options.stream_window,
            max_datagram_size=options.max_datagram_size,
            max_datagram_frame_size=DATAGRAM_FRAME_SIZE if options.datagrams else None,
            quic_logger=options.qlog,
            secrets_log_file=cast(Any, options.keylog),
            supported_versions=[QUIC_VERSION],
            verify_mode=_VERIFY_NOTHING,
        )
