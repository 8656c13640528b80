"""Pairs of NATs: what the simulated network does is what the theory of hole punching says."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from iroh_proto.testing.nat import (
    ADDRESS_RESTRICTED,
    FULL_CONE,
    PORT_OVERLOADING,
    PORT_RESTRICTED,
    SYMMETRIC,
    NatKind,
)
from iroh_proto.testing.nat_matrix import (
    HOLD_TIME,
    KINDS,
    TIME_LIMIT,
    Cell,
    NatPair,
    predict,
    run_cell,
    run_matrix,
    run_once,
)
from iroh_proto.testing.nat_picture import describe, draw_matrix

# A bound on what a node sends while it searches in vain: each 5 s pings to the few addresses a peer
# has and a call, payload by guess four times a second, and STUN.
IDLE_DATAGRAMS_LIMIT = 8 * TIME_LIMIT

RELAYED = [
    (PORT_RESTRICTED, SYMMETRIC),
    (SYMMETRIC, SYMMETRIC),
    (PORT_OVERLOADING, SYMMETRIC),
]
DIRECT = [
    (FULL_CONE, SYMMETRIC),
    (ADDRESS_RESTRICTED, SYMMETRIC),
    (PORT_RESTRICTED, PORT_RESTRICTED),
    (PORT_OVERLOADING, PORT_OVERLOADING),
    (KINDS["APD/EI"], KINDS["APD/EI"]),
]


@pytest.mark.parametrize("left", KINDS)
def test_every_pair_of_nats_does_what_theory_predicts(left: str) -> None:
    wrong = [
        describe(cell)
        for cell in (run_cell(left, right, seeds=[len(left), 77]) for right in KINDS)
        if not cell.agrees
    ]
    assert wrong == []


@pytest.mark.parametrize(("left", "right"), DIRECT)
def test_theory_knows_the_pairs_that_are_known_to_work(left: NatKind, right: NatKind) -> None:
    assert predict(left, right)
    assert predict(right, left)


@pytest.mark.parametrize(("left", "right"), RELAYED)
def test_theory_knows_the_pairs_that_are_known_to_fail(left: NatKind, right: NatKind) -> None:
    assert not predict(left, right)
    assert not predict(right, left)


def test_the_kinds_are_all_of_rfc_4787_and_linux() -> None:
    assert len({(kind.mapping, kind.filtering) for kind in KINDS.values()}) == 9
    assert len(KINDS) == 10


def test_a_matrix_lists_each_pair_in_both_roles_row_by_row() -> None:
    kinds = {"cone": FULL_CONE, "symmetric": SYMMETRIC}
    cells = list(run_matrix(seeds=[1], kinds=kinds))
    assert [(cell.left, cell.right) for cell in cells] == [(a, b) for a in kinds for b in kinds]
    assert [cell.share_direct for cell in cells] == [1.0, 1.0, 1.0, 0.0]


def test_a_run_repeats_from_its_seed() -> None:
    times = [run_once(PORT_RESTRICTED, FULL_CONE, seed=seed) for seed in (3, 3, 4)]
    assert times[0] == times[1] != times[2]
    assert times[0] is not None
    assert 0.0 < times[0] < TIME_LIMIT


def test_a_run_that_became_direct_has_stayed_so() -> None:
    pair = NatPair(ADDRESS_RESTRICTED, SYMMETRIC, seed=1)
    assert pair.run() is not None
    for node in (pair.first, pair.second):
        assert node.direct_since is not None
        assert pair.network.now - node.direct_since >= HOLD_TIME


@pytest.mark.parametrize(
    ("left", "right", "seed"), [("APD/EI", "APD/EI", 96), ("APD/AD", "APD/EI", 131)]
)
def test_a_path_is_kept_whose_proof_is_just_before_a_heartbeat(
    left: str, right: str, seed: int
) -> None:
    assert run_once(KINDS[left], KINDS[right], seed=seed) is not None


@pytest.mark.parametrize(("left", "right"), [*DIRECT, *RELAYED])
def test_nodes_search_without_a_storm(left: NatKind, right: NatKind) -> None:
    pair = NatPair(left, right, seed=2)
    pair.run()
    for node in (pair.first, pair.second):
        assert node.program.machine.stats.udp_sent < IDLE_DATAGRAMS_LIMIT


def cell(*times: float | None, expects_direct: bool = True) -> Cell:
    return Cell(left="A<B", right="C", expects_direct=expects_direct, times=times)


def test_a_cell_says_how_many_runs_became_direct_and_how_soon() -> None:
    some = cell(1.0, None, 3.0, 0.5)
    assert (some.share_direct, some.median_time, some.agrees) == (0.75, 1.0, False)
    assert cell(1.0, 2.0).agrees
    none = cell(None, None, expects_direct=False)
    assert (none.share_direct, none.median_time, none.agrees) == (0.0, None, True)
    assert not cell(None).agrees
    assert not cell(1.0, None, expects_direct=False).agrees


@pytest.mark.parametrize(
    ("shown", "text", "is_framed"),
    [
        (cell(0.25), "0.25 s", False),
        (cell(60.0), "60.00 s", False),
        (cell(None, expects_direct=False), "relay", False),
        (cell(None), "relay", True),
        (cell(2.0, None), "50.0%", True),
    ],
)
def test_the_picture_is_well_formed_and_shows_the_cell(
    shown: Cell, text: str, is_framed: bool
) -> None:
    root = ElementTree.fromstring(draw_matrix([shown]))
    texts = [element.text for element in root.iter() if element.text]
    assert text in texts
    assert "A<B" in texts
    assert describe(shown) in texts
    groups = [element for element in root if element.tag.endswith("}g")]
    assert ("stroke" in groups[0][1].attrib) is is_framed
