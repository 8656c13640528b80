"""The list of private names, and the check that they are there."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from aioquic import tls
from aioquic.quic import connection as _connection
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketPacer, QuicPacketSpace
from aioquic.quic.stream import QuicStream

PINNED_VERSION = "1.7.2"
"""The release of aioquic whose private names these are."""

_METHODS: dict[type, dict[str, tuple[str, ...]]] = {
    tls.Context: {
        "_server_handle_hello": ("self", "input_buf", "initial_buf", "handshake_buf"),
        "_client_handle_encrypted_extensions": ("self", "input_buf"),
        "_server_handle_certificate": ("self", "input_buf"),
        "_set_peer_certificate": ("self", "certificate"),
        "_check_certificate_verify_signature": ("self", "verify"),
        "_signature_algorithms_for_private_key": ("self",),
    },
    QuicConnection: {
        "_close_begin": ("self", "is_initiator", "now"),
        "_get_or_create_stream": ("self", "frame_type", "stream_id"),
        "_get_or_create_stream_for_send": ("self", "stream_id"),
        "_handle_ack_frame": ("self", "context", "frame_type", "buf"),
        "_handle_crypto_frame": ("self", "context", "frame_type", "buf"),
        "_handle_path_response_frame": ("self", "context", "frame_type", "buf"),
        "_idle_timeout": ("self",),
        "_initialize": ("self", "peer_cid"),
        "_serialize_transport_parameters": ("self",),
        "_write_application": ("self", "builder", "network_path", "now"),
        "_write_connection_limits": ("self", "builder", "space"),
        "_write_reset_stream_frame": ("self", "builder", "stream"),
        "_write_stop_sending_frame": ("self", "builder", "stream"),
        "_write_stream_limits": ("self", "builder", "space", "stream"),
        "_on_connection_limit_delivery": ("self", "delivery", "limit"),
        "_on_max_stream_data_delivery": ("self", "delivery", "stream"),
        "_send_probe": ("self",),
    },
    QuicPacketPacer: {"update_rate": ("self", "congestion_window", "smoothed_rtt")},
}

_MODULE_NAMES = {
    tls: ("pull_alpn_protocol", "push_alpn_protocol", "pull_opaque", "push_opaque"),
    _connection: (
        "CONNECTION_LIMIT_FRAME_CAPACITY",
        "MAX_STREAM_DATA_FRAME_CAPACITY",
        "TRANSPORT_CLOSE_FRAME_CAPACITY",
    ),
}

_CONTEXT_ATTRIBUTES = (
    "_is_client",
    "_receive_buffer",
    "_request_client_certificate",
    "_signature_algorithms",
    "_supported_groups",
    "certificate_private_key",
    "handshake_extensions",
    "key_schedule",
    "received_extensions",
)

_CONNECTION_ATTRIBUTES = (
    "_close_at",
    "_close_event",
    "_configuration",
    "_crypto_buffers",
    "_crypto_streams",
    "_cryptos",
    "_datagrams_pending",
    "_QuicConnection__frame_handlers",
    "_handshake_complete",
    "_handshake_confirmed",
    "_handshake_done_pending",
    "_host_cids",
    "_local_max_data",
    "_local_max_streams_bidi",
    "_local_max_streams_uni",
    "_logger",
    "_is_client",
    "_loss",
    "_max_datagram_size",
    "_network_paths",
    "_packet_number",
    "_peer_cid",
    "_ping_pending",
    "_probe_pending",
    "_quic_logger",
    "_remote_max_data",
    "_remote_max_data_used",
    "_remote_max_datagram_frame_size",
    "_remote_max_idle_timeout",
    "_retire_connection_ids",
    "_spaces",
    "_spin_bit",
    "_state",
    "_streams",
    "_streams_blocked_bidi",
    "_streams_blocked_pending",
    "_streams_blocked_uni",
    "_streams_queue",
)

_RECOVERY_ATTRIBUTES = (
    "_cc",
    "_logger",
    "_pacer",
    "_pto_count",
    "_rtt_initialized",
    "_rtt_latest",
    "_rtt_min",
    "_rtt_smoothed",
    "_rtt_variance",
)


_BUILDER_ATTRIBUTES = (
    "_datagram_init",
    "_datagrams",
    "_flight_bytes",
    "_packet_number",
    "_packets",
    "_total_bytes",
)

_SENDER_ATTRIBUTES = ("_buffer", "_buffer_fin", "_buffer_start", "_buffer_stop", "_pending")


_SPACE_ATTRIBUTES = (
    "ack_at",
    "ack_eliciting_in_flight",
    "largest_received_packet",
    "sent_packets",
)


def check_private_names() -> None:
    """Check that every private name exists and takes what it is given.

    :raises ImportError: naming the first that does not, and the release that has it.
    """
    for module, names in _MODULE_NAMES.items():
        _require(module, module.__name__, names)
    for owner, methods in _METHODS.items():
        _require(owner, owner.__name__, methods)
        for name, parameters in methods.items():
            if tuple(inspect.signature(getattr(owner, name)).parameters) != parameters:
                _refuse(f"{owner.__name__}.{name}{parameters}")
    stream = QuicStream(stream_id=0)
    connection = QuicConnection(configuration=QuicConfiguration())
    _require(tls.Context(is_client=True), "Context", _CONTEXT_ATTRIBUTES)
    _require(connection, "QuicConnection", _CONNECTION_ATTRIBUTES)
    _require(connection._loss, "QuicPacketRecovery", _RECOVERY_ATTRIBUTES)
    _require(stream.sender, "QuicStreamSender", _SENDER_ATTRIBUTES)
    _require(stream.receiver, "QuicStreamReceiver", ("_ranges",))
    builder = QuicPacketBuilder(
        host_cid=b"", peer_cid=b"", version=1, is_client=True, max_datagram_size=1200
    )
    _require(builder, "QuicPacketBuilder", _BUILDER_ATTRIBUTES)
    _require(QuicPacketSpace(), "QuicPacketSpace", _SPACE_ATTRIBUTES)


def _require(owner: object, label: str, names: Iterable[str]) -> None:
    for name in names:
        if not hasattr(owner, name):
            _refuse(f"{label}.{name}")


def _refuse(what: str) -> None:
    raise ImportError(
        f"this release of aioquic has no {what}; install aioquic=={PINNED_VERSION}, "
        "the release this package is written for"
    )
