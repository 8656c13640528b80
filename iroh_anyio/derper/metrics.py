"""What a server counts, as OpenMetrics, with the names that iroh-relay gives it.

A name of iroh-relay means here what it means there. What it has no name for begins with
``derper_``. Counts that do not exist here (what differs between disco packets and others) are left
out.

Source: iroh v1.0.3 ``iroh-relay/src/server/metrics.rs``, v0.35.0 for those of STUN.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar

from iroh_anyio.derper.extra import import_extra
from iroh_anyio.quic.qad_server import QadServerStats
from iroh_proto.derp.pages import Page
from iroh_proto.derp.relay_events import DerpServerStats
from iroh_proto.derp.upgrade import HttpRequest
from iroh_proto.stun.server import StunServerStats

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from prometheus_client.core import Metric

CONTENT_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
"""What scrapers want to read. iroh-relay says ``text/plain``, which newer ones refuse."""

_Values = dict[str, tuple[str, float]]
_CountsT = TypeVar("_CountsT", bound="DataclassInstance")


@dataclass(frozen=True, slots=True, kw_only=True)
class DerperCounts:
    """Everything that a server has counted, at one moment.

    :ivar clients: nodes connected.
    :ivar connections: TCP connections being served.
    :ivar accepted: TCP connections that ever were.
    :ivar disconnects: clients that have left.
    :ivar refused: connections turned away before they were looked at.
    :ivar certificate_expires: when the certificate ends, in Unix time.
    """

    server: DerpServerStats
    stun: StunServerStats
    qad: QadServerStats | None = None
    clients: int = 0
    connections: int = 0
    accepted: int = 0
    disconnects: int = 0
    refused: int = 0
    certificate_expires: float | None = None


def sum_counts(counts: Sequence[DerperCounts]) -> DerperCounts:
    """Return what several servers have counted together, of which one has each of the services."""
    return functools.reduce(_sum, counts)


class DerperMetrics:
    """Answers scrapes.

    :raises ModuleNotFoundError: if prometheus-client is not installed.
    """

    def __init__(self, count: Callable[[], DerperCounts]) -> None:
        self._count = count
        self._core = import_extra("prometheus_client.core", "enable_metrics")
        exposition = import_extra("prometheus_client.openmetrics.exposition", "enable_metrics")
        self._write = exposition.generate_latest
        self._registry = self._core.CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def page_for(self, request: HttpRequest) -> Page:
        """Return the metrics, whatever the path is."""
        if request.method not in ("GET", "HEAD"):
            return Page(HTTPStatus.METHOD_NOT_ALLOWED, (("allow", "GET, HEAD"),))
        headers = (("content-type", CONTENT_TYPE),)
        return Page(HTTPStatus.OK, headers, self._write(self._registry))

    def collect(self) -> Iterator[Metric]:
        """Yield each metric; prometheus-client calls it."""
        counts = self._count()
        for name, (text, value) in _counters(counts).items():
            counter = self._core.CounterMetricFamily(name, text)
            counter.add_metric([], value)
            yield counter
        for name, (text, value) in _gauges(counts).items():
            gauge = self._core.GaugeMetricFamily(name, text)
            gauge.add_metric([], value)
            yield gauge


def _sum(one: _CountsT, other: _CountsT) -> _CountsT:
    """Add up what stands under each name; what only one has stays as it is."""
    totals: dict[str, object] = {}
    for field in fields(one):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if left is None or right is None:
            totals[field.name] = right if left is None else left
        else:
            totals[field.name] = _sum(left, right) if is_dataclass(left) else left + right
    return replace(one, **totals)


def _counters(counts: DerperCounts) -> _Values:
    server, stun = counts.server, counts.stun
    router, connections = server.router, server.connections
    sent = router.packets_routed + connections.packets_returned
    dropped = router.packets_without_route + connections.packets_dropped
    bytes_recv = router.bytes_routed + router.bytes_without_route
    requests = stun.responses + stun.bad_requests + stun.overflows
    upstream: _Values = {
        "bytes_sent": ("Number of bytes sent.", router.bytes_routed),
        "bytes_recv": ("Number of bytes received.", bytes_recv),
        "send_packets_sent": ("Number of 'send' packets relayed.", sent),
        "send_packets_recv": (
            "Number of 'send' packets received.",
            sent + router.packets_without_route,
        ),
        "send_packets_dropped": ("Number of 'send' packets dropped.", dropped),
        "other_packets_sent": ("Always 0, as upstream.", 0),
        "other_packets_recv": ("Always 0, as upstream.", 0),
        "other_packets_dropped": ("Always 0, as upstream.", 0),
        "got_ping": ("Number of pings received from clients.", connections.pings_answered),
        "sent_pong": ("Number of pongs sent to clients.", connections.pings_answered),
        "unknown_frames": (
            "Number of frames that are no business of a server.",
            connections.frames_ignored,
        ),
        "bytes_rx_ratelimited": (
            "Number of bytes received from clients beyond their rate limit.",
            connections.bytes_over_rate,
        ),
        "conns_rx_ratelimited": (
            "Number of client connections which have been rate-limited.",
            connections.clients_throttled,
        ),
        "accepts": ("Number of clients let in.", connections.clients_admitted),
        "disconnects": ("Number of clients that have then disconnected.", counts.disconnects),
        "unique_client_keys": (
            "Number of clients let in, as upstream counts.",
            connections.clients_admitted,
        ),
        "clients_inactive_added": (
            "Number of clients that gave way to another one with their key.",
            router.clients_set_aside,
        ),
        "clients_inactive_removed": (
            "Number of such clients that left or got their place back.",
            router.clients_back,
        ),
        "http_connections": ("Number of connections accepted.", counts.accepted),
        "http_connections_closed": (
            "Number of connections closed.",
            counts.accepted - counts.connections,
        ),
        "http_connections_errored": (
            "Number of connections closed for a fault.",
            connections.faults,
        ),
    }
    if (qad := counts.qad) is not None:
        upstream |= {
            "qad_incoming": ("Number of QUIC connections begun.", qad.accepted),
            "qad_incoming_error": ("Number of them turned away.", qad.refused),
            "qad_connections": ("Number of QUIC connections established.", qad.completed),
            "qad_connections_closed": ("Number of them closed by the client.", qad.closed),
            "qad_connections_errored": ("Number of them that ended otherwise.", qad.errored),
        }
    own: _Values = {
        "requests_answered": ("Number of pages sent.", connections.requests_answered),
        "clients_denied": ("Number of clients not let in.", connections.clients_denied),
        "access_timeouts": (
            "Number of those on whom was not decided in time.",
            connections.access_timeouts,
        ),
        "packets_without_route": (
            "Number of packets for nodes that are not here.",
            router.packets_without_route,
        ),
        "write_timeouts": ("Number of clients that stopped reading.", server.write_timeouts),
        "connections_refused": (
            "Number of connections refused, being too many.",
            counts.refused + server.connections_refused,
        ),
        "connections_over_rate": (
            "Number of those refused for coming too fast.",
            server.connections_over_rate,
        ),
        "strangers_displaced": (
            "Number of connections without a key that made room for newer ones.",
            server.strangers_displaced,
        ),
    }
    return {
        **{f"relayserver_{name}": value for name, value in upstream.items()},
        **{f"derper_{name}": value for name, value in own.items()},
        "stun_requests": ("Number of STUN requests.", requests),
        "stun_responses": ("Number of STUN requests answered.", stun.responses),
        "stun_bad_requests": ("Number of datagrams that were none.", stun.bad_requests),
        "stun_failures": ("Number of STUN requests that could not be answered.", stun.overflows),
    }


def _gauges(counts: DerperCounts) -> _Values:
    gauges: _Values = {
        "derper_clients": ("Nodes connected.", counts.clients),
        "derper_connections": ("TCP connections being served.", counts.connections),
    }
    if counts.certificate_expires is not None:
        gauges["derper_certificate_expires_seconds"] = (
            "When the certificate ends, in Unix time.",
            counts.certificate_expires,
        )
    return gauges
