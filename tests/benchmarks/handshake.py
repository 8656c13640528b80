"""A handshake with mutual authentication, in memory, against bare aioquic limited to X25519.

Both sides of each run on one core. Ours goes through whole endpoints: disco, path selection and
connection routing included.
"""

from __future__ import annotations

import random
import ssl
import time

from aioquic import tls
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import HandshakeCompleted

from iroh_anyio.quic.endpoint_machine import EndpointMachine
from iroh_anyio.quic.events import ConnectionEstablished
from iroh_proto import NodeAddr, SecretKey, UdpAddress
from tests.benchmarks.certificate import self_signed_certificate
from tests.benchmarks.timing import interleaved

ALPN = "bench/0"
HANDSHAKES = 20
CLIENT, SERVER = UdpAddress("127.0.0.1", 1), UdpAddress("127.0.0.1", 2)


def run() -> dict[str, float]:
    """Return the time of our handshake over that of bare aioquic."""
    times = interleaved({"ours": ours, "aioquic": bare}, rounds=5)
    return {"time": times["ours"] / times["aioquic"], "ms": times["ours"] * 1000}


def ours() -> float:
    """Return the seconds of one handshake between two endpoints."""
    rng = random.Random(1)
    machines = {
        addr: EndpointMachine(
            secret_key=SecretKey.generate(rng),
            alpns=[ALPN.encode()],
            rng=rng,
            unix_time=time.time(),
        )
        for addr in (CLIENT, SERVER)
    }
    for addr, machine in machines.items():
        machine.start([addr], now=time.monotonic())
    target = NodeAddr(machines[SERVER].node_id, direct_addresses=[SERVER])

    started = time.perf_counter()
    for _ in range(HANDSHAKES):
        machines[CLIENT].connect(target, alpn=ALPN.encode(), now=time.monotonic())
        established = 0
        while established < 2:
            for addr, machine in machines.items():
                while (event := machine.next_event()) is not None:
                    established += isinstance(event, ConnectionEstablished)
                for transmit in machine.datagrams_to_send():
                    other = machines.get(UdpAddress(*transmit.addr))
                    if other is not None:
                        other.receive_datagrams(transmit.datagrams, addr, now=time.monotonic())
    return (time.perf_counter() - started) / HANDSHAKES


def bare() -> float:
    """Return the seconds of one handshake between two connections of aioquic."""
    client, server = _configuration(is_client=True), _configuration(is_client=False)
    started = time.perf_counter()
    for _ in range(HANDSHAKES):
        a = _LimitedConnection(configuration=client)
        a.connect(SERVER, now=time.monotonic())
        b = _LimitedConnection(
            configuration=server,
            original_destination_connection_id=a.original_destination_connection_id,
        )
        completed = 0
        while completed < 2:
            for one, other, source in ((a, b, CLIENT), (b, a, SERVER)):
                for data, _ in one.datagrams_to_send(now=time.monotonic()):
                    other.receive_datagram(data, source, now=time.monotonic())
                while (event := other.next_event()) is not None:
                    completed += isinstance(event, HandshakeCompleted)
    return (time.perf_counter() - started) / HANDSHAKES


class _LimitedConnection(QuicConnection):
    """A connection with X25519 alone, whose server asks for the client's certificate."""

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self.tls._supported_groups = [tls.Group.X25519]
        self.tls._request_client_certificate = True


def _configuration(*, is_client: bool) -> QuicConfiguration:
    configuration = QuicConfiguration(
        alpn_protocols=[ALPN], is_client=is_client, verify_mode=ssl.CERT_NONE
    )
    configuration.certificate, configuration.private_key = self_signed_certificate()
    return configuration
