"""The disco machine: pings matched to pongs, and what is dropped."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from iroh_proto.address import Address, DerpAddress, DerpUrl, UdpAddress
from iroh_proto.box import SharedBox
from iroh_proto.disco import boxes, pinger
from iroh_proto.disco.boxes import FAILED_OPENS_LIMIT, FAILED_OPENS_WINDOW, BoxKeeper
from iroh_proto.disco.message import (
    DISCO_MAGIC,
    CallMeMaybe,
    Ping,
    Pong,
    seal_envelope,
)
from iroh_proto.disco.pinger import (
    PING_TIMEOUT,
    CallMeMaybeReceived,
    DiscoEvent,
    DiscoPinger,
    PingReceived,
    PingTimedOut,
    PongReceived,
)
from iroh_proto.errors import DecodeError
from iroh_proto.key import NodeId, SecretKey

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "disco.json").read_text()
)
ALICE, BOB, EVE = (SecretKey(bytes((number,)) * 32) for number in (1, 2, 3))
ALICE_ADDR, BOB_ADDR, EVE_ADDR = (UdpAddress("192.0.2.1", port) for port in (1, 2, 3))
URL = DerpUrl.from_str("https://derp.example/")
SMALL_ORDER = NodeId(b"\x01" + bytes(31))


def make(secret: SecretKey, seed: int = 0) -> DiscoPinger:
    return DiscoPinger(secret_key=secret, rng=random.Random(seed))


def events_of(machine: DiscoPinger) -> list[DiscoEvent]:
    return list(iter(machine.next_event, None))


def sent_by(machine: DiscoPinger) -> list[tuple[Address, bytes]]:
    return [(t.addr, data) for t in machine.datagrams_to_send() for data in t.datagrams]


def sealed(message: bytes, sender: SecretKey, receiver: NodeId) -> bytes:
    box = SharedBox(sender, receiver)
    return seal_envelope(message, sender=sender.public, box=box, nonce=bytes(24))


def carry(
    sender: DiscoPinger, receiver: DiscoPinger, source: Address, now: float
) -> list[DiscoEvent]:
    """Deliver what one machine has to send, as if from ``source``."""
    for _, data in sent_by(sender):
        receiver.receive_datagrams([data], source, now=now)
    return events_of(receiver)


def test_a_ping_is_answered_and_measured() -> None:
    alice, bob = make(ALICE), make(BOB)
    assert alice.ping(BOB_ADDR, BOB.public, now=10.0)
    assert alice.get_timer() == 10.0 + PING_TIMEOUT
    (ping,) = carry(alice, bob, ALICE_ADDR, 10.1)
    assert isinstance(ping, PingReceived)
    assert (ping.node_id, ping.source) == (ALICE.public, ALICE_ADDR)
    bob.pong(ping, now=10.1)
    assert carry(bob, alice, BOB_ADDR, 10.25) == [
        PongReceived(
            node_id=BOB.public, addr=BOB_ADDR, source=BOB_ADDR, latency=0.25, observed=ALICE_ADDR
        )
    ]
    assert alice.get_timer() is None


def test_through_a_derp_server_the_pong_names_its_url() -> None:
    alice, bob = make(ALICE), make(BOB)
    alice.ping(DerpAddress(URL, BOB.public), BOB.public, now=0.0)
    (ping,) = carry(alice, bob, DerpAddress(URL, ALICE.public), 0.0)
    assert isinstance(ping, PingReceived)
    bob.pong(ping, now=0.0)
    (pong,) = carry(bob, alice, DerpAddress(URL, BOB.public), 0.0)
    assert isinstance(pong, PongReceived)
    assert pong.observed == URL


def test_a_ping_without_pong_times_out_at_its_deadline() -> None:
    alice = make(ALICE)
    alice.ping(BOB_ADDR, BOB.public, now=1.0)
    alice.ping(EVE_ADDR, EVE.public, now=2.0)
    alice.handle_timer(now=1.0 + PING_TIMEOUT - 1e-6)
    assert events_of(alice) == []
    alice.handle_timer(now=1.0 + PING_TIMEOUT)
    assert events_of(alice) == [PingTimedOut(node_id=BOB.public, addr=BOB_ADDR, sent_at=1.0)]
    assert alice.get_timer() == 2.0 + PING_TIMEOUT


def test_a_pong_at_the_deadline_is_late_even_if_no_timer_ran() -> None:
    alice, bob = make(ALICE), make(BOB)
    alice.ping(BOB_ADDR, BOB.public, now=0.0)
    (ping,) = carry(alice, bob, ALICE_ADDR, 0.0)
    assert isinstance(ping, PingReceived)
    bob.pong(ping, now=0.0)
    assert carry(bob, alice, BOB_ADDR, PING_TIMEOUT) == [
        PingTimedOut(node_id=BOB.public, addr=BOB_ADDR, sent_at=0.0)
    ]
    assert alice.stats.unmatched_pongs == 1


def test_a_pong_counts_once_and_only_from_the_node_that_was_pinged() -> None:
    alice, bob = make(ALICE), make(BOB)
    alice.ping(BOB_ADDR, BOB.public, now=0.0)
    (ping,) = carry(alice, bob, ALICE_ADDR, 0.0)
    assert isinstance(ping, PingReceived)
    pong = Pong(ping.tx_id, ALICE_ADDR).encode()
    alice.receive_datagrams([sealed(pong, EVE, ALICE.public)], EVE_ADDR, now=0.1)
    assert events_of(alice) == []
    alice.receive_datagrams([sealed(pong, BOB, ALICE.public)] * 2, BOB_ADDR, now=0.2)
    assert len(events_of(alice)) == 1
    assert alice.stats.unmatched_pongs == 2


def test_pongs_of_releases_without_tag_match() -> None:
    alice, bob = make(ALICE), make(BOB)
    alice.ping(BOB_ADDR, BOB.public, now=0.0)
    (ping,) = carry(alice, bob, ALICE_ADDR, 0.0)
    assert isinstance(ping, PingReceived)
    tagged = Pong(ping.tx_id, ALICE_ADDR).encode()
    untagged = tagged[:14] + tagged[15:]
    alice.receive_datagrams([sealed(untagged, BOB, ALICE.public)], BOB_ADDR, now=0.5)
    (pong,) = events_of(alice)
    assert isinstance(pong, PongReceived)
    assert pong.observed == ALICE_ADDR


def test_call_me_maybe_is_taken_from_a_derp_server_only() -> None:
    alice, bob = make(ALICE), make(BOB)
    alice.call_me_maybe(DerpAddress(URL, BOB.public), [ALICE_ADDR], now=0.0)
    ((addr, data),) = sent_by(alice)
    assert addr == DerpAddress(URL, BOB.public)
    bob.receive_datagrams([data], ALICE_ADDR, now=0.0)
    assert events_of(bob) == []
    assert bob.stats.calls_over_udp == 1
    source = DerpAddress(URL, ALICE.public)
    bob.receive_datagrams([data], source, now=0.0)
    assert events_of(bob) == [
        CallMeMaybeReceived(node_id=ALICE.public, source=source, addresses=(ALICE_ADDR,))
    ]


def test_disco_from_another_node_than_the_derp_server_says_is_dropped() -> None:
    bob = make(BOB)
    ping = sealed(Ping(bytes(12), ALICE.public).encode(), ALICE, BOB.public)
    bob.receive_datagrams([ping], DerpAddress(URL, EVE.public), now=0.0)
    assert events_of(bob) == []
    assert bob.stats.wrong_source == 1


def test_a_datagram_with_our_own_id_is_dropped() -> None:
    alice = make(ALICE)
    alice.receive_datagrams(
        [sealed(Ping(bytes(12), ALICE.public).encode(), ALICE, BOB.public)], EVE_ADDR, now=0.0
    )
    assert alice.stats.from_self == 1


@pytest.mark.parametrize(
    ("datagram", "counter"),
    [
        (DISCO_MAGIC, "bad_envelope"),
        (DISCO_MAGIC + b"\x02" + bytes(80), "bad_envelope"),
        (DISCO_MAGIC + SMALL_ORDER + bytes(50), "bad_key"),
        (DISCO_MAGIC + ALICE.public + bytes(50), "bad_key"),
        (sealed(b"", ALICE, BOB.public), "bad_message"),
        (sealed(b"\x04\x00", ALICE, BOB.public), "bad_message"),
    ],
)
def test_bad_datagrams_are_counted_and_dropped(datagram: bytes, counter: str) -> None:
    bob = make(BOB)
    bob.receive_datagrams([datagram], ALICE_ADDR, now=0.0)
    assert events_of(bob) == []
    assert sent_by(bob) == []
    assert getattr(bob.stats, counter) == 1


@pytest.mark.parametrize("case", VECTORS["negative_iroh"], ids=lambda case: str(case["name"]))
def test_forged_vectors_leave_no_trace(case: dict[str, Any]) -> None:
    bob = make(SecretKey.from_str(VECTORS["keys"]["bob"]["ed25519_seed"]))
    bob.receive_datagrams([bytes.fromhex(case["packet"])], EVE_ADDR, now=0.0)
    assert events_of(bob) == []
    assert bob.get_timer() is None


def test_a_node_id_that_shares_no_secret_cannot_be_pinged() -> None:
    alice = make(ALICE)
    assert not alice.ping(BOB_ADDR, SMALL_ORDER, now=0.0)
    assert (alice.get_timer(), alice.stats.unsent) == (None, 1)


def test_a_pong_that_does_not_fit_in_the_queue_is_not_counted_as_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alice, bob = make(ALICE), make(BOB)
    alice.ping(BOB_ADDR, BOB.public, now=0.0)
    bob.receive_datagrams([data for _, data in sent_by(alice)], ALICE_ADDR, now=0.0)
    (ping,) = events_of(bob)
    assert isinstance(ping, PingReceived)
    monkeypatch.setattr(pinger, "QUEUED_DATAGRAMS_LIMIT", 1)
    bob.pong(ping, now=0.0)
    bob.pong(ping, now=0.0)
    assert len(sent_by(bob)) == 1
    assert (bob.stats.pongs_sent, bob.stats.unsent) == (1, 1)


def test_outstanding_pings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinger, "OUTSTANDING_PINGS_LIMIT", 3)
    alice = make(ALICE)
    results = [alice.ping(BOB_ADDR, BOB.public, now=0.0) for _ in range(5)]
    assert results == [True] * 3 + [False] * 2
    assert len(sent_by(alice)) == 3
    alice.handle_timer(now=PING_TIMEOUT)
    assert alice.ping(BOB_ADDR, BOB.public, now=PING_TIMEOUT)


def test_queued_datagrams_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinger, "QUEUED_DATAGRAMS_LIMIT", 2)
    alice = make(ALICE)
    for _ in range(4):
        alice.call_me_maybe(DerpAddress(URL, BOB.public), [], now=0.0)
    assert len(sent_by(alice)) == 2
    assert (alice.stats.calls_sent, alice.stats.unsent) == (2, 2)


def test_forgotten_pings_have_no_event() -> None:
    alice = make(ALICE)
    alice.ping(BOB_ADDR, BOB.public, now=0.0)
    alice.ping(EVE_ADDR, EVE.public, now=0.0)
    alice.forget(BOB.public, now=1.0)
    alice.handle_timer(now=PING_TIMEOUT)
    assert [event.node_id for event in events_of(alice)] == [EVE.public]
    alice.ping(BOB_ADDR, BOB.public, now=6.0)
    alice.clear(now=6.0)
    assert alice.get_timer() is None


def test_messages_go_out_in_the_order_they_were_given() -> None:
    alice, bob = make(ALICE), make(BOB)
    source = DerpAddress(URL, ALICE.public)
    alice.ping(DerpAddress(URL, BOB.public), BOB.public, now=0.0)
    alice.ping(BOB_ADDR, BOB.public, now=0.0)
    alice.call_me_maybe(DerpAddress(URL, BOB.public), [], now=0.0)
    kinds = [type(event) for event in carry(alice, bob, source, 0.0)]
    assert kinds == [PingReceived, PingReceived, CallMeMaybeReceived]


def ping_from(secret: SecretKey) -> bytes:
    """Return what follows the header of a ping to Bob."""
    return sealed(Ping(bytes(12), secret.public).encode(), secret, BOB.public)[38:]


def test_boxes_are_kept_after_a_successful_open_only() -> None:
    keeper = BoxKeeper(secret_key=BOB)
    with pytest.raises(DecodeError):
        keeper.open(bytes(60), sender=ALICE.public, source="x", now=0.0)
    assert len(keeper) == 0
    keeper.open(ping_from(ALICE), sender=ALICE.public, source="x", now=0.0)
    assert ALICE.public in keeper


def test_the_box_used_longest_ago_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxes, "BOXES_LIMIT", 2)
    keeper = BoxKeeper(secret_key=BOB)
    carol = SecretKey(bytes((4,)) * 32)
    keeper.box_for(ALICE.public)
    keeper.box_for(EVE.public)
    keeper.open(ping_from(ALICE), sender=ALICE.public, source="x", now=0.0)
    keeper.box_for(carol.public)
    assert len(keeper) == 2
    assert EVE.public not in keeper


def test_a_source_that_fails_too_often_has_to_wait() -> None:
    keeper = BoxKeeper(secret_key=BOB)
    keeper.box_for(EVE.public)
    for _ in range(FAILED_OPENS_LIMIT):
        with pytest.raises(DecodeError, match="does not open"):
            keeper.open(bytes(60), sender=ALICE.public, source="a", now=0.0)
    with pytest.raises(DecodeError, match="too many"):
        keeper.open(ping_from(ALICE), sender=ALICE.public, source="a", now=0.5)
    keeper.open(ping_from(EVE), sender=EVE.public, source="a", now=0.5)  # known: costs little
    keeper.open(ping_from(ALICE), sender=ALICE.public, source="b", now=0.5)
    keeper = BoxKeeper(secret_key=BOB)
    for now in (0.0, FAILED_OPENS_WINDOW):
        for _ in range(FAILED_OPENS_LIMIT):
            with pytest.raises(DecodeError, match="does not open"):
                keeper.open(bytes(60), sender=ALICE.public, source="a", now=now)


def test_failures_of_one_host_count_together_whatever_the_port() -> None:
    bob = make(BOB)
    forged = sealed(CallMeMaybe([]).encode(), ALICE, EVE.public)
    for port in range(1, FAILED_OPENS_LIMIT + 1):
        bob.receive_datagrams([forged], UdpAddress("192.0.2.1", port), now=0.0)
    genuine = sealed(Ping(bytes(12), ALICE.public).encode(), ALICE, BOB.public)
    bob.receive_datagrams([genuine], UdpAddress("192.0.2.1", 9999), now=0.0)
    assert events_of(bob) == []
    assert bob.stats.bad_key == FAILED_OPENS_LIMIT + 1
    bob.receive_datagrams([genuine], UdpAddress("192.0.2.2", 9999), now=0.0)
    assert len(events_of(bob)) == 1


def test_sources_of_failures_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxes, "FAILED_SOURCES_LIMIT", 4)
    keeper = BoxKeeper(secret_key=BOB)
    for number in range(50):
        with pytest.raises(DecodeError):
            keeper.open(bytes(60), sender=ALICE.public, source=number, now=0.0)
    assert len(keeper._failures) == 4


def test_an_empty_call_me_maybe_arrives_empty() -> None:
    bob = make(BOB)
    data = sealed(CallMeMaybe([]).encode(), ALICE, BOB.public)
    bob.receive_datagrams([data], DerpAddress(URL, ALICE.public), now=0.0)
    (event,) = events_of(bob)
    assert isinstance(event, CallMeMaybeReceived)
    assert event.addresses == ()
