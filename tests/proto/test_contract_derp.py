"""The contract of the machines on the client's side of DERP."""

from __future__ import annotations

import random
from collections.abc import Iterable
from functools import partial

import pytest
from hypothesis import strategies as st

from iroh_proto.address import DerpUrl
from iroh_proto.derp.client import DerpClient
from iroh_proto.derp.codec import Form
from iroh_proto.derp.curve_frames import CurveRecvPacket
from iroh_proto.derp.datagram_frames import RecvDatagramBatch
from iroh_proto.derp.dialects import DIALECTS
from iroh_proto.derp.events import ConnectionLost, DerpConnected
from iroh_proto.derp.frames import DATAGRAM_LIMIT, Frame, Ping, RecvPacket, pack_datagrams
from iroh_proto.derp.map import DerpMap
from iroh_proto.derp.node_names import DISCO_MAGIC, SHORTEST_DISCO
from iroh_proto.derp.pool import SERVERS_LIMIT, DerpPool
from iroh_proto.derp.pool_events import DerpServerConnected, DerpServerLost
from iroh_proto.key import SecretKey
from iroh_proto.testing.contract import Call, Flood, React, Run, Subject, contract_tests
from iroh_proto.testing.strategies import mutated, node_ids
from iroh_proto.x25519 import x25519_of
from tests.proto.contract_runs import begun
from tests.proto.derp_cloud import THEIRS, Cloud, Server, cloud_of, cloud_operations, settle

OURS = SecretKey.generate(random.Random("ours"))
URLS = [DerpUrl.from_str(f"http://derp{number}.example") for number in range(3)]
DATAGRAMS = [b"", b"\x01two", bytes(1200)]
PACKED = pack_datagrams(DATAGRAMS)[0]
# Which says whose the X25519 key is that it comes from.
DISCO = (DISCO_MAGIC + THEIRS.public).ljust(SHORTEST_DISCO, b"\x00")

batches = st.lists(st.sampled_from(DATAGRAMS), max_size=3)


def said(dialect: str, frame: Frame) -> bytes:
    """Return the bytes of a frame of a server."""
    form: Form = "websocket" if dialect == "relay-v2" else "framed"
    return DIALECTS[dialect].server_codec(form).encode(frame)


def hear(run: Run[DerpClient]) -> Iterable[Call]:
    server = cloud_of(run).server("the", run.now)
    answer = server.talk(1, b"".join(run.sent), run.now)
    return [Call("receive_data", answer)] if answer else []


def be_connected(run: Run[DerpClient]) -> Iterable[Call]:
    for _ in range(4):
        yield from hear(run)


def peer_sends(run: Run[DerpClient]) -> Iterable[Call]:
    server: Server = cloud_of(run).server("the", run.now)
    server.say(OURS.public, PACKED, run.now)
    return hear(run)


def receive(data: bytes) -> Call:
    return Call("receive_data", data)


def first_and_then(first: bytes, then: bytes, number: int) -> Call:
    return receive(first if number == 0 else then)


IDLE_FLOODS: list[Flood[DerpClient]] = [
    Flood("pings", lambda number: Call("ping")),
    Flood("closes", lambda number: Call("close")),
    Flood("a head", partial(first_and_then, b"HTTP/1.1 101 Switching\r\nx: ", b"y" * 99)),
]
# A packet, and the beginning of a frame of 64 KiB.
PACKETS: dict[str, Frame] = {
    "v3": RecvPacket(THEIRS.public, PACKED),
    "relay-v2": RecvDatagramBatch(THEIRS.public, 2, 1200, bytes(2000)),
    "tailscale": CurveRecvPacket(x25519_of(THEIRS.public), DISCO),
}
ENDLESS = {
    "tailscale": b"\x05\x00\x00\xff\xff",
    "v3": b"\x05\x00\x00\xff\xff",
    "relay-v2": b"\x82\x7e\xff\xff\x06",
}


def connected_floods(dialect: str) -> list[Flood[DerpClient]]:
    packet, ping = said(dialect, PACKETS[dialect]), said(dialect, Ping(bytes(8)))
    return [
        Flood("pings", lambda number: Call("ping")),
        Flood("datagrams", lambda number: Call("send_datagrams", THEIRS.public, [bytes(1200)])),
        Flood("preferences", lambda number: Call("note_preferred", number % 2 == 0), 20_000),
        Flood("packets", lambda number: receive(packet)),
        Flood("their pings", lambda number: receive(ping * 20)),
        Flood("an endless frame", partial(first_and_then, ENDLESS[dialect], bytes(300)), 400),
    ]


CONNECTED = React("the server talks", be_connected)


def client_subject(dialect: str | None, *, is_connected: bool) -> Subject[DerpClient]:
    spoken = dialect or "v3"
    return Subject(
        factory=lambda rng: DerpClient(url=URLS[0], secret_key=OURS, rng=rng, dialect=dialect),
        context=Cloud,
        begin=[Call("start"), *([CONNECTED] if is_connected else [])],
        operations=st.one_of(
            st.sampled_from(
                [React("the server hears", hear), React("it is connected", be_connected)]
            ),
            st.just(React("the peer sends", peer_sends)),
            st.builds(Call, st.just("send_datagrams"), node_ids(), batches),
            st.sampled_from([True, False]).map(lambda preferred: Call("note_preferred", preferred)),
            st.sampled_from([Call("ping"), Call("close"), Call("receive_eof")]),
            st.sampled_from(
                [b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"]
            ).map(lambda data: Call("receive_data", data)),
            mutated(st.just(said(spoken, PACKETS[spoken]))).map(
                lambda data: Call("receive_data", data)
            ),
        ),
        misuses=st.just(Call("start"))
        | st.just(Call("send_datagrams", THEIRS.public, [bytes(DATAGRAM_LIMIT + 1)])),
        floods=connected_floods(spoken) if is_connected else IDLE_FLOODS,
        final=(ConnectionLost,),
    )


TestDerpClientContract = contract_tests(client_subject(None, is_connected=False))
TestConnectedDerpClientContract = contract_tests(client_subject("v3", is_connected=True))
TestTailscaleClientContract = contract_tests(client_subject("tailscale", is_connected=True))
TestRelayClientContract = contract_tests(client_subject("relay-v2", is_connected=True))


def send(url: DerpUrl, *datagrams: bytes) -> Call:
    return Call("send_datagrams", url, THEIRS.public, datagrams)


def far_url(number: int) -> DerpUrl:
    return DerpUrl.from_str(f"http://far{number}.example")


POOL: Subject[DerpPool] = Subject(
    factory=lambda rng: DerpPool(secret_key=OURS, derp_map=DerpMap.from_urls(URLS[:2]), rng=rng),
    context=Cloud,
    begin=[Call("start")],
    operations=st.one_of(
        st.sampled_from(cloud_operations(OURS.public, PACKED)),
        st.sampled_from(cloud_operations(OURS.public, PACKED)),
        st.builds(send, st.sampled_from(URLS), st.sampled_from(DATAGRAMS)),
        st.sampled_from(URLS).map(lambda url: Call("set_home", url)),
        st.sampled_from([Call("network_changed"), Call("close")]),
    ),
    misuses=st.sampled_from(
        [
            Call("start"),
            send(URLS[0], bytes(DATAGRAM_LIMIT + 1)),
            Call("complete_tcp", 99),
            Call("receive_tcp_data", -1, b""),
            Call("receive_tcp_eof", 99),
        ]
    ),
    floods=[
        Flood("datagrams to one server", lambda number: send(URLS[0], bytes(1200))),
        Flood("servers", lambda number: send(far_url(number), bytes(100)), 5 * SERVERS_LIMIT),
        Flood("homes", lambda number: Call("set_home", far_url(number)), 5 * SERVERS_LIMIT),
        Flood("changes", lambda number: Call("network_changed")),
        Flood("connections lost", lambda number: React("lost", lose_all)),
    ],
)


def lose_all(run: Run[DerpPool]) -> Iterable[Call]:
    yield from settle(run)
    for tcp_id in list(run.tcp_ids):
        yield Call("receive_tcp_eof", tcp_id)


TestDerpPoolContract = contract_tests(POOL)


@pytest.mark.parametrize("dialect", ["v3", "relay-v2"])
def test_the_contract_when_connected_is_tried_when_connected(dialect: str) -> None:
    run = begun(client_subject(dialect, is_connected=True), React("the peer sends", peer_sends))
    assert DerpConnected in {type(event) for event in run.events}
    assert run.machine.has_heard_of(THEIRS.public)


def test_the_pool_of_the_contract_can_be_connected() -> None:
    mishaps: list[React[DerpPool]] = cloud_operations(OURS.public, PACKED)
    run = begun(POOL, *mishaps)
    assert {DerpServerConnected, DerpServerLost} <= {type(event) for event in run.events}
