"""On trio: unreliable datagrams, and refusing strangers before any handshake work is done."""

from __future__ import annotations

import ipaddress

import trio

from iroh_anyio import MagicEndpoint
from iroh_anyio.quic.options import IncomingAttempt
from iroh_proto import UdpAddress

ALPN = b"example/ticks/0"
TICKS = 5


def only_neighbours(attempt: IncomingAttempt) -> bool:
    """Admit connections that come directly from a private address."""
    source = attempt.source
    return isinstance(source, UdpAddress) and ipaddress.ip_address(source.ip).is_private


async def count(server: MagicEndpoint) -> None:
    """Send numbered datagrams to the first node that dials, until it leaves."""
    connection = await server.accept()
    for number in range(TICKS):
        await connection.send_datagram(f"tick {number}".encode())
    await connection.wait_closed()


async def main() -> None:
    """Bind two endpoints and have one listen to the other's ticks."""
    async with (
        await MagicEndpoint.bind(alpns=[ALPN], accept_filter=only_neighbours) as server,
        await MagicEndpoint.bind() as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(count, server)
        connection = await client.connect(await server.node_addr(), alpn=ALPN)
        for _ in range(TICKS):
            print((await connection.receive_datagram()).decode())
        connection.close(0, "enough")


if __name__ == "__main__":
    trio.run(main)
