"""Endpoints that speak different generations of the relay protocol to one DERP server."""

from __future__ import annotations

import os

import pytest

from iroh_anyio.derper import Derper
from iroh_anyio.quic.events import EndpointEvent
from iroh_proto import DerpMap, DerpNode, NodeAddr
from iroh_proto.derp.pool_events import DerpServerConnected
from tests.anyio.nodes import ALPN, two_nodes

pytestmark = pytest.mark.anyio

DATA = os.urandom(200_000)


@pytest.mark.parametrize(
    ("dialling", "serving"),
    [("relay-v2", "relay-v2"), ("relay-v2", "v3"), ("v3", "relay-v1"), ("relay-v1", "v2")],
)
async def test_nodes_meet_whatever_each_speaks_to_the_server(dialling: str, serving: str) -> None:
    spoken: list[str] = []

    def observe(event: EndpointEvent) -> None:
        if isinstance(event, DerpServerConnected):
            spoken.append(event.dialect)

    async with await Derper.bind(port=0, stun_port=0) as derper:
        server, client = (
            {"derp_map": DerpMap([DerpNode(derper.url, derper.stun_port, dialect)])}
            for dialect in (serving, dialling)
        )
        async with two_nodes(
            server={**server, "on_event": observe}, client={**client, "on_event": observe}
        ) as (listener, dialler):
            await listener.node_addr()  # once its home is there
            addr = NodeAddr(listener.node_id, derp_url=derper.url)
            sent_to = await dialler.connect(addr, alpn=ALPN)
            received_from = await listener.accept()
            stream = await sent_to.open_bi()
            await stream.send(DATA)
            await stream.send_eof()
            arrived = b"".join([chunk async for chunk in await received_from.accept_bi()])
            assert arrived == DATA
            assert sorted(spoken) == sorted([dialling, serving])
            stats = derper.machine.stats
            assert stats.router.packets_routed > 0
            assert stats.connections.faults == 0
