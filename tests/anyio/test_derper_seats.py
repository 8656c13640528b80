"""Which worker has the newest client of a key, whatever order comings and goings have."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from iroh_anyio.derper.seats import NO_MOVE, Move, Seats
from iroh_proto.x25519 import X25519PublicKey
from tests.proto.derp_peer import key

ALICE = key(2).public


def test_the_newer_one_is_the_one_told_last() -> None:
    seats = Seats()
    assert seats.arrive(0, ALICE) == Move(reinstate=0)
    assert seats.arrive(1, ALICE) == Move(set_aside=0, reinstate=1)
    assert seats.worker_of(ALICE) == 1
    assert seats.depart(1, ALICE) == Move(reinstate=0)
    assert seats.depart(0, ALICE) == NO_MOVE
    assert len(seats) == 0


def test_a_worker_that_may_be_about_to_set_its_newer_client_aside_is_told_again() -> None:
    seats = Seats()
    seats.arrive(0, ALICE)
    seats.arrive(1, ALICE)
    assert seats.arrive(0, ALICE) == Move(set_aside=1, reinstate=0)
    assert seats.depart(0, ALICE) == NO_MOVE  # its older one
    assert seats.worker_of(ALICE) == 0


def test_a_client_that_comes_is_not_set_aside_in_the_place_of_one_that_left() -> None:
    """Both of its workers had set it aside in the end, and it got nothing."""
    seats = Seats()
    seats.arrive(1, ALICE)
    assert seats.arrive(0, ALICE) == Move(set_aside=1, reinstate=0)
    seats.depart(1, ALICE)
    seats.depart(0, ALICE)
    # By now another client is at worker 1, which heeds the first message only then.
    assert seats.arrive(1, ALICE) == Move(reinstate=1)


def test_who_is_set_aside_may_leave_unnoticed() -> None:
    seats = Seats()
    seats.arrive(0, ALICE)
    seats.arrive(1, ALICE)
    assert seats.depart(0, ALICE) == NO_MOVE
    assert seats.depart(0, ALICE) == NO_MOVE  # which it was not told to have
    assert seats.worker_of(ALICE) == 1


def test_a_worker_that_ends_takes_its_clients_along() -> None:
    seats = Seats()
    for number in range(4):
        seats.arrive(number % 2, key(10 + number).public)
    seats.arrive(1, ALICE)
    seats.arrive(0, ALICE)
    assert seats.forget(0) == [(ALICE, 1)]
    assert len(seats) == 3
    assert seats.forget(0) == []


def test_keys_of_both_kinds_are_kept_apart() -> None:
    seats = Seats()
    curve, node_id = X25519PublicKey(ALICE), ALICE
    seats.arrive(0, node_id)
    assert seats.arrive(1, curve) == Move(reinstate=1)
    assert (seats.worker_of(node_id), seats.worker_of(curve)) == (0, 1)


@settings(max_examples=400)
@given(st.randoms(use_true_random=False), st.integers(2, 4))
def test_with_news_under_way_one_worker_has_it_in_the_end(rng: random.Random, workers: int) -> None:
    """Workers act at once and are told late; what each believes in the end fits together."""
    seats = Seats()
    active, waiting = [False] * workers, [0] * workers
    said: list[list[bool]] = [[] for _ in range(workers)]
    told: list[list[str]] = [[] for _ in range(workers)]

    def take(worker: int) -> None:
        is_here = said[worker].pop(0)
        move = (seats.arrive if is_here else seats.depart)(worker, ALICE)
        if move.set_aside is not None:
            told[move.set_aside].append("set aside")
        if move.reinstate is not None:
            told[move.reinstate].append("reinstate")

    def heed(worker: int) -> None:
        message = told[worker].pop(0)
        if message == "set aside" and active[worker]:
            active[worker], waiting[worker] = False, waiting[worker] + 1
        elif message == "reinstate" and not active[worker] and waiting[worker]:
            active[worker], waiting[worker] = True, waiting[worker] - 1

    def act(worker: int) -> None:
        if rng.random() < 0.6:
            waiting[worker] += active[worker]
            active[worker] = True
            said[worker].append(True)
        elif active[worker]:
            active[worker] = waiting[worker] > 0
            waiting[worker] -= active[worker]
            said[worker].append(False)
        elif waiting[worker]:
            waiting[worker] -= 1
            said[worker].append(False)

    for _ in range(60):
        worker = rng.randrange(workers)
        step = rng.choice([act, take, heed])
        if step is act or (said if step is take else told)[worker]:
            step(worker)
    while any(said) or any(told):
        for worker in range(workers):
            while said[worker]:
                take(worker)
            while told[worker]:
                heed(worker)
    clients = sum(active) + sum(waiting)
    assert [number for number, is_active in enumerate(active) if is_active] == (
        [seats.worker_of(ALICE)] if clients else []
    )
