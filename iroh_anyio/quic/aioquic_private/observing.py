"""aioquic's connection with the frames and the parameter of QUIC address discovery.

Layouts and meanings are those of ``aioquic/quic/connection.py``; what is added to them is in
:mod:`iroh_anyio.quic.observed_address`.
"""

from __future__ import annotations

from typing import Any, cast

from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnectionError, QuicNetworkPath, QuicReceiveContext
from aioquic.quic.packet import QuicErrorCode, QuicPacketType
from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilder

from iroh_anyio.quic.aioquic_private.connection import HookedConnection
from iroh_anyio.quic.observed_address import (
    OBSERVED_IPV4,
    OBSERVED_IPV6,
    OBSERVED_SIZE_LIMIT,
    RECEIVES,
    SENDS,
    decode_observed,
    encode_observed,
    encode_role,
    frame_type_of,
)
from iroh_proto.address import UdpAddress
from iroh_proto.errors import DecodeError

_FRAME_HANDLERS = "_QuicConnection__frame_handlers"


class ObservingConnection(HookedConnection):
    """A connection whose server tells the client where its packets come from.

    Servers send observations, clients receive them. Addresses are real ones
    (:class:`UdpAddress`), and so are the checks of certificates: the server's is an ordinary one.

    :ivar observed: client: where the server sees this side, once it said so.
    """

    def __init__(
        self,
        *,
        configuration: QuicConfiguration,
        original_destination_cid: bytes | None = None,
        retry_source_cid: bytes | None = None,
    ) -> None:
        super().__init__(
            configuration=configuration,
            max_streams=0,
            original_destination_cid=original_destination_cid,
            retry_source_cid=retry_source_cid,
        )
        self.observed: UdpAddress | None = None
        self._observed_sequence = -1
        self._due: UdpAddress | None = None
        self._sequence = 0
        if self._is_client:
            handlers = cast("dict[int, Any]", getattr(self, _FRAME_HANDLERS))
            for frame_type in (OBSERVED_IPV4, OBSERVED_IPV6):
                handlers[frame_type] = (
                    self._handle_observed_address_frame,
                    frozenset({tls.Epoch.ONE_RTT}),
                )

    def prepare_tls(self) -> None:
        """Leave TLS as it is: with certificates that authorities vouch for."""

    @property
    def peer_address(self) -> UdpAddress:
        """Where the peer's packets come from by now."""
        return cast(UdpAddress, self._network_paths[0].addr)

    def tell_observed(self, address: UdpAddress) -> None:
        """Server: tell the client where its packets come from, until it acknowledges that."""
        self._due = address

    def _serialize_transport_parameters(self) -> bytes:
        role = RECEIVES if self._is_client else SENDS
        return super()._serialize_transport_parameters() + encode_role(role)

    def _write_application(
        self, builder: QuicPacketBuilder, network_path: QuicNetworkPath, now: float
    ) -> None:
        if self._due is not None and self._handshake_complete:
            self._write_observed(builder, self._due)
        super()._write_application(builder, network_path, now)

    def _write_observed(self, builder: QuicPacketBuilder, address: UdpAddress) -> None:
        builder.start_packet(QuicPacketType.ONE_RTT, self._cryptos[tls.Epoch.ONE_RTT])
        buffer = builder.start_frame(
            frame_type_of(address),
            capacity=OBSERVED_SIZE_LIMIT,
            handler=self._on_observed_delivery,
            handler_args=(address,),
        )
        buffer.push_bytes(encode_observed(self._sequence, address))
        self._sequence += 1
        self._due = None

    def _on_observed_delivery(self, delivery: QuicDeliveryState, address: UdpAddress) -> None:
        is_news = self._due is None and address == self.peer_address
        if is_news and delivery is not QuicDeliveryState.ACKED:
            self._due = address

    def _handle_observed_address_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        start = buf.tell()
        try:
            sequence, address, size = decode_observed(
                frame_type, buf.data_slice(start, buf.capacity)
            )
        except DecodeError:
            raise QuicConnectionError(
                error_code=QuicErrorCode.FRAME_ENCODING_ERROR,
                frame_type=frame_type,
                reason_phrase="Failed to parse frame",
            ) from None
        buf.seek(start + size)
        if sequence > self._observed_sequence:
            self._observed_sequence = sequence
            self.observed = address
