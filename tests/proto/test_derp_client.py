"""One connection to a DERP server, from the client's side."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iroh_proto.address import DerpUrl
from iroh_proto.derp.approach import Approach, first_approach, next_approach
from iroh_proto.derp.client import (
    CONNECT_TIMEOUT,
    LISTEN_TIME,
    DerpClient,
)
from iroh_proto.derp.codec import Form
from iroh_proto.derp.curve_frames import GONE_NOT_HERE, CurvePeerGone, CurveSendPacket
from iroh_proto.derp.dialects import DIALECTS, tailscale, v2
from iroh_proto.derp.events import (
    ConnectionLost,
    DerpConnected,
    HealthReported,
    PeerGone,
    PongReceived,
    ReceivedDatagrams,
    RestartAnnounced,
)
from iroh_proto.derp.frames import (
    DATAGRAM_LIMIT,
    Frame,
    Health,
    KeepAlive,
    NotePreferred,
    Ping,
    Pong,
    RecvPacket,
    Restarting,
    SendPacket,
    pack_datagrams,
)
from iroh_proto.derp.frames import PeerGone as PeerGoneFrame
from iroh_proto.derp.inbox import HEARD_OF_LIMIT, RECEIVED_LIMIT
from iroh_proto.derp.pong_wait import PONG_TIMEOUT
from iroh_proto.derp.send_queue import QUEUED_PACKETS_LIMIT
from iroh_proto.errors import LocalProtocolError, RemoteProtocolError
from iroh_proto.key import SecretKey
from iroh_proto.testing.strategies import chunkings
from iroh_proto.x25519 import x25519_of
from tests.proto.derp_world import (
    CLIENT_KEY,
    OTHER_PEER,
    PEER,
    RELAY_V1_SERVER,
    RELAY_V2_SERVER,
    TAILSCALE_SERVER,
    URL,
    V2_SERVER,
    V3_SERVER,
    V3_SERVER_0_14,
    WEBSOCKET_SERVER,
    Answers,
    ServerSide,
    events_of,
    exchange,
)

V2 = Approach("v2", "/derp", "framed")
V3 = Approach("v3", "/relay", "framed")
V3_OLD = Approach("v3", "/derp", "framed")
V3_WEBSOCKET = Approach("v3", "/relay", "websocket")
WEBSOCKET = Approach(None, "/relay", "websocket")
RELAY_V1 = Approach("relay-v1", "/relay", "websocket")
RELAY_V2 = Approach("relay-v2", "/relay", "websocket")
LISTEN = Approach(None, "/derp", "framed")
OLD_WEBSOCKET = Approach(None, "/derp", "websocket")
TAILSCALE = Approach("tailscale", "/derp", "framed")
TAILSCALE_WEBSOCKET = Approach("tailscale", "/derp", "websocket")


def new_client(
    approach: Approach | None = None, *, dialect: str | None = None, url: DerpUrl = URL
) -> DerpClient:
    return DerpClient(
        url=url,
        secret_key=CLIENT_KEY,
        rng=random.Random(3),
        dialect=dialect,
        approach=approach,
    )


def connected(
    approach: Approach = V3, *, answers_pings: bool = True
) -> tuple[DerpClient, ServerSide]:
    """Return a client that has connected at time 0, and its server; their pings are done."""
    client = new_client(approach)
    server = ServerSide(
        V2_SERVER if approach.dialect == "v2" else V3_SERVER, answers_pings=answers_pings
    )
    client.start(now=0.0)
    exchange(client, server, now=0.0)
    assert client.is_connected
    events_of(client)
    return client, server


def lost(client: DerpClient) -> ConnectionLost:
    """Return the only event, which is the last."""
    (event,) = events_of(client)
    assert isinstance(event, ConnectionLost)
    assert client.get_timer() is None
    assert not client.is_connected
    return event


# Connecting


@pytest.mark.parametrize("approach", [V2, V3, V3_OLD, V3_WEBSOCKET])
@given(data=st.data())
def test_a_client_connects_however_the_stream_is_cut(
    approach: Approach, data: st.DataObject
) -> None:
    client = new_client(approach)
    server = ServerSide(V2_SERVER if approach.dialect == "v2" else V3_SERVER)
    client.start(now=0.0)
    while answer := client.data_to_send():
        for chunk in data.draw(chunkings(server.receive(answer))):
            client.receive_data(chunk, now=0.25)
    assert events_of(client) == [
        DerpConnected(dialect=str(approach.dialect), approach=approach),
        PongReceived(latency=0.0),
    ]
    assert server.node_id == CLIENT_KEY.public
    assert server.path == approach.path
    assert client.has_ponged


@pytest.mark.parametrize("approach", [V2, V3, V3_WEBSOCKET])
def test_datagrams_go_both_ways(approach: Approach) -> None:
    client, server = connected(approach)
    client.send_datagrams(PEER, [b"one", b"two"], now=1.0)
    client.send_datagrams(OTHER_PEER, [b"three"], now=1.0)
    exchange(client, server, now=1.0)
    assert server.frames == [
        SendPacket(PEER, b"\x03\x00one\x03\x00two"),
        SendPacket(OTHER_PEER, b"\x05\x00three"),
    ]
    packets = [RecvPacket(PEER, *pack_datagrams([b"a", b"bb"])), RecvPacket(OTHER_PEER, b"\0\0")]
    client.receive_data(server.send(*packets), now=2.0)
    assert client.received_payloads() == [
        ReceivedDatagrams(PEER, [b"a", b"bb"]),
        ReceivedDatagrams(OTHER_PEER, [b""]),
    ]
    assert client.received_payloads() == []
    assert client.stats.datagrams_sent == 3
    assert client.stats.datagrams_received == 3


def test_received_datagrams_compare_by_content_and_show_no_content() -> None:
    received = ReceivedDatagrams(PEER, [b"secret"])
    assert received == ReceivedDatagrams(PEER, [b"secret"])
    assert received != ReceivedDatagrams(OTHER_PEER, [b"secret"])
    assert received != b"secret"
    assert repr(received) == f"ReceivedDatagrams({PEER.fmt_short()}, sizes=[6])"


def test_a_large_batch_becomes_several_packets() -> None:
    client, server = connected()
    datagrams = [bytes((number,)) * 1200 for number in range(100)]
    client.send_datagrams(PEER, datagrams, now=1.0)
    exchange(client, server, now=1.0)
    assert [type(frame) for frame in server.frames] == [SendPacket, SendPacket]


def test_nothing_follows_the_request_before_its_answer() -> None:
    client = new_client(V3)
    client.note_preferred(True, now=0.0)
    client.start(now=0.0)
    assert client.data_to_send().endswith(b"\r\n\r\n")
    assert not client.has_data_to_send
    with pytest.raises(LocalProtocolError, match="once the client is connected"):
        client.send_datagrams(PEER, [b"early"], now=0.0)
    assert not client.has_data_to_send


def test_commands_in_the_wrong_order_are_refused() -> None:
    client = new_client()
    with pytest.raises(LocalProtocolError):
        client.receive_data(b"x", now=0.0)
    with pytest.raises(LocalProtocolError):
        client.receive_eof(now=0.0)
    client.start(now=0.0)
    with pytest.raises(LocalProtocolError):
        client.start(now=0.0)
    with pytest.raises(LocalProtocolError, match="no DERP dialect 'v9'; there are v2, v3"):
        new_client(dialect="v9")


def test_a_datagram_that_is_too_long_is_refused() -> None:
    client, _ = connected()
    with pytest.raises(LocalProtocolError, match="at most 65502"):
        client.send_datagrams(PEER, [b"x", bytes(DATAGRAM_LIMIT + 1)], now=0.0)
    assert not client.has_data_to_send


@pytest.mark.parametrize("progress", ["nothing", "upgrade", "server key"])
def test_connecting_takes_ten_seconds_at_most(progress: str) -> None:
    client, server = new_client(V2), ServerSide(V2_SERVER, is_slow=progress == "upgrade")
    client.start(now=5.0)
    if progress != "nothing":
        client.receive_data(server.receive(client.data_to_send()), now=6.0)
    assert client.get_timer() == 5.0 + CONNECT_TIMEOUT
    client.handle_timer(now=14.9)
    assert events_of(client) == []
    client.handle_timer(now=15.0)
    assert "within 10 s" in str(lost(client).error)


# Finding out the generation


@pytest.mark.parametrize(
    ("url", "dialect", "approach"),
    [
        ("http://a", None, V3),
        ("https://a", None, V3),
        ("http://a", "v3", V3),
        ("http://a", "v2", V2),
        ("ws://a", None, WEBSOCKET),
        ("wss://a", "v3", V3_WEBSOCKET),
        ("ws://a", "v2", V2),
        ("http://a", "relay-v1", RELAY_V1),
        ("wss://a", "relay-v2", RELAY_V2),
        ("https://a", "tailscale", TAILSCALE),
        ("wss://a", "tailscale", TAILSCALE_WEBSOCKET),
    ],
)
def test_the_first_way_follows_url_and_dialect(
    url: str, dialect: str | None, approach: Approach
) -> None:
    assert first_approach(DerpUrl.from_str(url), dialect) == approach


@pytest.mark.parametrize(
    ("dialect", "form"),
    [(None, "websocket"), ("v3", "framed"), ("v2", "framed"), ("relay-v2", "websocket")],
)
def test_a_server_that_wants_a_token_is_asked_in_a_dialect_that_can_say_no(
    dialect: str | None, form: str
) -> None:
    assert first_approach(DerpUrl.from_str("http://a"), dialect, has_token=True).form == form
    client = DerpClient(
        url=DerpUrl.from_str("http://a"),
        secret_key=SecretKey(bytes(32)),
        rng=random.Random(1),
        dialect=dialect,
        token="t",
    )
    client.start(now=0.0)
    assert (b"Upgrade: websocket" in client.data_to_send()) is (form == "websocket")


@pytest.mark.parametrize(
    ("approach", "dialect", "status", "following"),
    [
        (V3, None, 404, LISTEN),
        (V3, "v3", 404, V3_OLD),
        (V3, None, 400, WEBSOCKET),
        (V3, None, 426, WEBSOCKET),
        (V3, "v3", 400, V3_WEBSOCKET),
        (WEBSOCKET, None, 404, OLD_WEBSOCKET),
        (WEBSOCKET, None, 200, OLD_WEBSOCKET),
        (WEBSOCKET, None, 400, None),
        (RELAY_V1, "relay-v1", 404, None),
        (RELAY_V2, None, 404, OLD_WEBSOCKET),
        (V3, None, 403, None),
        (V3, None, 500, None),
        (V3, None, 200, LISTEN),
        (V3, "v3", 200, None),
        (V3_WEBSOCKET, None, 404, OLD_WEBSOCKET),
        (V3_WEBSOCKET, "v3", 404, Approach("v3", "/derp", "websocket")),
        (V3_WEBSOCKET, None, 400, None),
        (LISTEN, None, 404, None),
        (LISTEN, None, 426, TAILSCALE),
        (V2, "v2", 404, None),
        (V2, "v2", 426, None),
        (TAILSCALE, "tailscale", 426, None),
        (TAILSCALE, None, 404, None),
    ],
)
def test_a_refusal_tells_the_next_way(
    approach: Approach, dialect: str | None, status: int, following: Approach | None
) -> None:
    assert next_approach(approach, status, dialect=dialect) == following


@pytest.mark.parametrize("dialect", [None, *DIALECTS])
@given(url=st.sampled_from(["http://a", "wss://a"]), statuses=st.lists(st.integers(200, 599)))
def test_trying_ends_whatever_a_server_answers(
    dialect: str | None, url: str, statuses: list[int]
) -> None:
    approach: Approach | None = first_approach(DerpUrl.from_str(url), dialect)
    tried = []
    for status in [*statuses, 400, 404, 404, 404]:
        if approach is None:
            break
        tried.append(approach)
        approach = next_approach(approach, status, dialect=dialect)
    assert approach is None
    assert len(tried) <= 3
    assert len(set(tried)) == len(tried)


@pytest.mark.parametrize(
    ("answers", "way"),
    [
        (V3_SERVER, [V3]),
        (V2_SERVER, [V3, LISTEN]),
        (V3_SERVER_0_14, [V3, LISTEN]),
        (WEBSOCKET_SERVER, [V3, WEBSOCKET]),
        (RELAY_V1_SERVER, [V3, WEBSOCKET]),
        (RELAY_V2_SERVER, [V3, WEBSOCKET]),
        (TAILSCALE_SERVER, [V3, LISTEN, TAILSCALE]),
        ({**TAILSCALE_SERVER, ("/derp", "framed"): "tailscale"}, [V3, LISTEN]),
        (TAILSCALE_SERVER, [WEBSOCKET, OLD_WEBSOCKET]),
    ],
)
def test_every_generation_of_servers_is_found_out(answers: Answers, way: list[Approach]) -> None:
    approach: Approach | None = way[0]
    for step in way:
        client, server = new_client(approach), ServerSide(answers)
        client.start(now=0.0)
        exchange(client, server, now=0.0)
        client.handle_timer(now=LISTEN_TIME)
        exchange(client, server, now=LISTEN_TIME)
        events = events_of(client)
        if isinstance(events[0], DerpConnected):
            assert step == way[-1]
            is_tailscale = events[0].dialect == "tailscale"
            ours = CLIENT_KEY.public
            assert server.node_id == (x25519_of(ours) if is_tailscale else ours)
            assert events[0].dialect in answers.values()
            # Next time it is known.
            again, server = new_client(events[0].approach), ServerSide(answers)
            again.start(now=0.0)
            exchange(again, server, now=0.0)
            assert again.is_connected
            return
        (event,) = events
        assert isinstance(event, ConnectionLost)
        assert "status" in str(event.error)
        approach = event.retry
    raise AssertionError(f"no connection; next would be {approach}")


@pytest.mark.parametrize(
    ("url", "hint"), [("http://derp.example", "; is it https://?"), ("https://derp.example", "")]
)
def test_a_server_that_hangs_up_without_an_answer_may_be_one_of_https(url: str, hint: str) -> None:
    client = new_client(V2, url=DerpUrl.from_str(url))
    client.start(now=0.0)
    client.receive_eof(now=1.0)
    assert str(lost(client).error) == f"the server closed the connection{hint}"


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("http://derp.example", ": no DERP server there; if it has HTTPS, use that URL"),
        ("https://derp.example", ": no DERP server there"),
    ],
)
def test_a_server_without_derp_is_said_to_be_none(url: str, hint: str) -> None:
    client = new_client(V2, url=DerpUrl.from_str(url))
    client.start(now=0.0)
    client.receive_data(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", now=1.0)
    assert str(lost(client).error) == f"the server answered GET /derp with status 404{hint}"


def test_a_silent_server_is_spoken_to_after_a_while() -> None:
    client, server = new_client(LISTEN), ServerSide(V3_SERVER_0_14)
    client.start(now=0.0)
    client.receive_data(server.receive(client.data_to_send()), now=0.5)
    assert client.get_timer() == 0.5 + LISTEN_TIME
    client.handle_timer(now=0.5 + LISTEN_TIME - 0.01)
    assert not client.has_data_to_send
    client.handle_timer(now=0.5 + LISTEN_TIME)
    exchange(client, server, now=2.0)
    assert server.node_id == CLIENT_KEY.public


def test_a_server_that_speaks_otherwise_is_no_v2() -> None:
    client, server = new_client(LISTEN), ServerSide(V3_SERVER_0_14)
    client.start(now=0.0)
    head = server.receive(client.data_to_send())
    client.receive_data(head + server.send(Health("hello")), now=0.1)
    assert events_of(client) == [
        DerpConnected(dialect="v3", approach=V3_OLD),
        HealthReported(problem="hello"),
    ]


@pytest.mark.parametrize("end", ["late key", "eof"])
def test_a_wrong_guess_is_made_good(end: str) -> None:
    client, server = new_client(LISTEN), ServerSide(V2_SERVER, is_slow=True)
    client.start(now=0.0)
    client.receive_data(server.receive(client.data_to_send()), now=0.0)
    client.handle_timer(now=LISTEN_TIME)
    assert isinstance(events_of(client)[0], DerpConnected)
    if end == "late key":
        client.receive_data(server.begin(), now=2.0)
    else:
        client.receive_eof(now=2.0)
    assert lost(client).retry == V2


def test_a_good_guess_is_kept() -> None:
    client, server = new_client(LISTEN), ServerSide(V3_SERVER_0_14)
    client.start(now=0.0)
    exchange(client, server, now=0.0)
    client.handle_timer(now=LISTEN_TIME)
    exchange(client, server, now=2.0)
    events_of(client)
    client.receive_eof(now=3.0)
    assert lost(client).retry is None


# Staying alive


def test_a_v3_client_pings_after_silence_and_gives_up_without_a_pong() -> None:
    client, server = connected()
    assert client.get_timer() == 15.0
    client.receive_data(server.send(KeepAlive()), now=10.0)
    assert client.get_timer() == 25.0
    client.handle_timer(now=24.9)
    assert not client.has_data_to_send
    client.handle_timer(now=25.0)
    exchange(client, server, now=25.5)
    assert server.pings == 2
    assert events_of(client) == [PongReceived(latency=0.5)]
    client.handle_timer(now=40.5)
    assert client.get_timer() == 40.5 + PONG_TIMEOUT
    client.handle_timer(now=45.4)
    assert client.is_connected
    client.handle_timer(now=45.5)
    assert "did not answer a ping" in str(lost(client).error)


def test_a_late_timer_pings_at_once() -> None:
    client, _ = connected()
    client.handle_timer(now=1000.0)
    assert client.is_connected
    assert client.get_timer() == 1000.0 + PONG_TIMEOUT


def test_a_pong_may_wait_behind_packets() -> None:
    client, server = connected(answers_pings=False)
    client.receive_data(server.send(RecvPacket(PEER, b"\0\0")), now=1.0)
    client.handle_timer(now=PONG_TIMEOUT)
    assert client.is_connected
    assert client.get_timer() == 16.0


def test_an_asked_for_ping_wants_its_pong_whatever_else_arrives() -> None:
    for approach in (V2, V3):
        client, server = connected(approach, answers_pings=False)
        client.ping(now=6.0)
        client.ping(now=7.0)
        assert len(client.data_to_send()) == 13
        client.receive_data(server.send(RecvPacket(PEER, b"\0\0")), now=8.0)
        assert client.get_timer() == 11.0
        client.handle_timer(now=11.0)
        assert isinstance(lost(client).error, RemoteProtocolError)


def test_an_asked_for_ping_takes_the_place_of_one_on_its_way() -> None:
    client, server = connected(answers_pings=False)
    client.ping(now=1.0)
    server.answers_pings = True
    exchange(client, server, now=1.5)
    assert events_of(client) == [PongReceived(latency=0.5)]


def test_a_pong_that_nobody_asked_for_proves_nothing() -> None:
    client, server = connected(answers_pings=False)
    client.receive_data(server.send(Pong(bytes(8))), now=1.0)
    assert events_of(client) == []
    assert not client.has_ponged


def test_a_v2_client_waits_two_minutes_for_a_frame() -> None:
    client, server = connected(V2, answers_pings=False)
    client.handle_timer(now=PONG_TIMEOUT)
    assert client.is_connected
    client.receive_data(server.send(KeepAlive()), now=65.0)
    assert client.get_timer() == 185.0
    client.handle_timer(now=185.0)
    assert "said nothing for 120 s" in str(lost(client).error)


@pytest.mark.parametrize("approach", [V2, V3, V3_WEBSOCKET])
def test_pings_are_answered(approach: Approach) -> None:
    client, server = connected(approach)
    client.receive_data(server.send(Ping(b"whatever")), now=1.0)
    exchange(client, server, now=1.0)
    assert server.frames == [Pong(b"whatever")]


def test_a_server_that_pings_and_does_not_read_fills_no_memory() -> None:
    client, server = connected()
    for _ in range(100):
        client.receive_data(server.send(Ping(bytes(8))) * 1000, now=1.0)
    assert client.stats.replies_dropped > 90_000
    assert len(client.data_to_send()) <= 64 * 1024


# What else servers say


def test_news_of_the_server_are_passed_on() -> None:
    client, server = connected()
    frames = [PeerGoneFrame(PEER), Health("sick"), Health(""), Restarting(10, 2000), KeepAlive()]
    client.receive_data(server.send(*frames), now=1.0)
    assert events_of(client) == [
        PeerGone(node_id=PEER),
        HealthReported(problem="sick"),
        HealthReported(problem=""),
        RestartAnnounced(reconnect_in=0.01, try_for=2.0),
    ]


@pytest.mark.parametrize(
    ("approach", "frame"),
    [
        (V3, SendPacket(PEER, b"")),
        (V3, NotePreferred(True)),
        (V2, v2.ServerKey(PEER)),
        (V2, v2.PeerPresent(PEER)),
        (V2, v2.ServerInfo(b"")),
    ],
)
def test_a_frame_that_servers_do_not_send_ends_it(approach: Approach, frame: Frame) -> None:
    client, server = connected(approach)
    client.receive_data(server.send(frame) + server.send(Ping(bytes(8))), now=1.0)
    assert type(frame).__name__ in str(lost(client).error)
    assert client.data_to_send() == b""


@pytest.mark.parametrize("make", [lambda: b"\xff" * 5, lambda: b"\x0c\0\0\0\x09"])
def test_bytes_that_are_no_frames_end_it_behind_those_that_are(
    make: Callable[[], bytes],
) -> None:
    client, server = connected()
    client.receive_data(server.send(RecvPacket(PEER, b"\x01\x00x")) + make(), now=1.0)
    assert client.received_payloads() == [ReceivedDatagrams(PEER, [b"x"])]
    assert isinstance(lost(client).error, RemoteProtocolError)
    client.receive_data(b"more", now=2.0)
    client.receive_eof(now=2.0)
    client.handle_timer(now=1000.0)
    client.close(now=1000.0)
    client.ping(now=1000.0)
    client.note_preferred(True, now=1000.0)
    client.send_datagrams(PEER, [b"late"], now=1000.0)
    assert events_of(client) == []
    assert client.data_to_send() == b""
    assert client.stats.datagrams_unsent == 1


def test_a_handshake_that_fails_ends_it() -> None:
    client, server = new_client(V2), ServerSide(V2_SERVER)
    client.start(now=0.0)
    client.receive_data(server.receive(client.data_to_send()) + server.send(KeepAlive()), now=0.0)
    assert "wanted ServerInfo" in str(lost(client).error)


def test_what_is_no_http_ends_it() -> None:
    client = new_client()
    client.start(now=0.0)
    client.receive_data(b"\x16\x03\x01", now=0.0)
    event = lost(client)
    assert "HTTP" in str(event.error)
    assert event.retry is None


def test_the_end_of_the_stream_is_the_end() -> None:
    client, _ = connected()
    client.send_datagrams(PEER, [b"x"], now=1.0)
    client.receive_eof(now=1.0)
    assert "closed the connection" in str(lost(client).error)
    assert not client.has_data_to_send


def test_a_closed_websocket_is_the_end() -> None:
    client, server = connected(V3_WEBSOCKET)
    assert server.codec is not None
    client.receive_data(server.codec.goodbye(), now=1.0)
    assert "closed the websocket" in str(lost(client).error)


# What the owner says


@pytest.mark.parametrize("approach", [V2, V3])
def test_the_home_is_told_that_it_is(approach: Approach) -> None:
    client = new_client(approach)
    server = ServerSide(V2_SERVER if approach is V2 else V3_SERVER)
    client.note_preferred(True, now=0.0)
    client.start(now=0.0)
    exchange(client, server, now=0.0)
    client.note_preferred(True, now=1.0)
    client.note_preferred(False, now=2.0)
    exchange(client, server, now=2.0)
    assert server.frames == [NotePreferred(True), NotePreferred(False)]


def test_a_slow_wire_pushes_out_the_oldest_packets() -> None:
    client, server = connected()
    for number in range(QUEUED_PACKETS_LIMIT + 3):
        client.send_datagrams(PEER, [number.to_bytes(2, "big")], now=1.0)
    exchange(client, server, now=1.0)
    assert client.stats.packets_dropped == 3
    assert len(server.frames) == QUEUED_PACKETS_LIMIT
    assert server.frames[0] == SendPacket(PEER, b"\x02\x00\x00\x03")
    for _ in range(20):
        client.send_datagrams(PEER, [bytes(60_000)], now=1.0)
    assert 450_000 < len(client.data_to_send()) < 600_000


def test_bytes_may_be_taken_piece_by_piece() -> None:
    client, server = connected()
    for _ in range(10):
        client.send_datagrams(PEER, [bytes(1000)], now=1.0)
    pieces = []
    while client.has_data_to_send:
        pieces.append(client.data_to_send(2000))
    assert len(pieces) > 3
    server.receive(b"".join(pieces))
    assert len(server.frames) == 10


def test_a_v2_server_can_limit_the_rate() -> None:
    client, server = new_client(V2), ServerSide(V2_SERVER)
    server.server_details = v2.ServerDetails(bytes_per_second=100, burst_bytes=200)
    client.start(now=0.0)
    exchange(client, server, now=0.0)
    payload = bytes(66)  # 100 bytes with its key and its length
    for now in (0.0, 0.0, 0.5, 1.0, 1.1):
        client.send_datagrams(PEER, [payload], now=now)
    exchange(client, server, now=2.0)
    assert len(server.frames) == 3
    assert client.stats.datagrams_unsent == 2


def test_a_tailscale_server_limits_the_rate_of_each_datagram_by_itself() -> None:
    client, server = new_client(TAILSCALE), ServerSide(TAILSCALE_SERVER)
    server.curve_details = tailscale.ServerDetails(bytes_per_second=100, burst_bytes=250)
    client.start(now=0.0)
    exchange(client, server, now=0.0)
    client.send_datagrams(PEER, [bytes(80)] * 3, now=0.0)
    exchange(client, server, now=0.0)
    assert server.frames == [CurveSendPacket(x25519_of(PEER), bytes(80))] * 2
    assert client.stats.datagrams_unsent == 1


def test_that_somebody_left_who_was_never_heard_of_is_no_news() -> None:
    client, server = new_client(TAILSCALE), ServerSide(TAILSCALE_SERVER)
    client.start(now=0.0)
    exchange(client, server, now=0.0)
    events_of(client)
    client.receive_data(server.send(CurvePeerGone(x25519_of(PEER), GONE_NOT_HERE)), now=1.0)
    assert events_of(client) == []
    assert client.is_connected


def test_payloads_that_are_cut_short_are_counted() -> None:
    client, server = connected()
    packets = [RecvPacket(PEER, payload) for payload in (b"", b"\x05\0x", b"\x01\0x\x09", b"\0\0")]
    client.receive_data(server.send(*packets), now=1.0)
    assert client.received_payloads() == [
        ReceivedDatagrams(PEER, [b"x"]),
        ReceivedDatagrams(PEER, [b""]),
    ]
    assert client.stats.payloads_cut_short == 2


def test_payloads_that_nobody_takes_are_bounded() -> None:
    client, server = connected()
    data = server.send(RecvPacket(PEER, b"\0\0")) * (RECEIVED_LIMIT + 5)
    client.receive_data(data, now=1.0)
    assert len(client.received_payloads()) == RECEIVED_LIMIT
    assert client.stats.payloads_dropped == 5


def test_it_is_remembered_who_was_heard_until_he_leaves() -> None:
    client, server = connected()
    assert not client.has_heard_of(PEER)
    client.receive_data(server.send(RecvPacket(PEER, b"")), now=1.0)
    assert client.has_heard_of(PEER)
    client.receive_data(server.send(PeerGoneFrame(PEER), PeerGoneFrame(OTHER_PEER)), now=2.0)
    assert not client.has_heard_of(PEER)


def test_those_heard_are_bounded() -> None:
    client, server = connected()
    rng = random.Random(1)
    heard = [SecretKey.generate(rng).public for _ in range(HEARD_OF_LIMIT + 1)]
    client.receive_data(server.send(*[RecvPacket(node_id, b"") for node_id in heard]), now=1.0)
    assert [node_id for node_id in heard if not client.has_heard_of(node_id)] == heard[:1]


@pytest.mark.parametrize("form", ["framed", "websocket"])
def test_closing_lets_what_is_queued_be_written(form: Form) -> None:
    client, server = connected(V3 if form == "framed" else V3_WEBSOCKET)
    client.send_datagrams(PEER, [b"last words"], now=1.0)
    client.close(now=1.0)
    assert lost(client) == ConnectionLost(error=None)
    server.receive(client.data_to_send())
    assert len(server.frames) == 1
    assert server.codec is not None
    assert server.codec.is_closed == (form == "websocket")


def test_closing_before_the_connection_stands_writes_nothing() -> None:
    client = new_client()
    client.start(now=0.0)
    client.close(now=0.0)
    assert lost(client).error is None
    assert client.data_to_send() == b""
