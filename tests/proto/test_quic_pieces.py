"""The set of byte ranges that have arrived."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from iroh_anyio.quic.pieces import PieceSet

RANGES = st.tuples(st.integers(0, 60), st.integers(1, 20))


def as_list(pieces: PieceSet) -> list[range]:
    return [pieces[index] for index in range(len(pieces))]


def runs_of(offsets: set[int]) -> list[range]:
    """Return the maximal runs of consecutive numbers."""
    runs: list[range] = []
    for offset in sorted(offsets):
        if runs and runs[-1].stop == offset:
            runs[-1] = range(runs[-1].start, offset + 1)
        else:
            runs.append(range(offset, offset + 1))
    return runs


@given(st.lists(RANGES, max_size=30))
def test_it_is_the_set_of_all_offsets_added(added: list[tuple[int, int]]) -> None:
    pieces, offsets = PieceSet(), set[int]()
    for start, size in added:
        pieces.add(start, start + size)
        offsets |= set(range(start, start + size))
        assert as_list(pieces) == runs_of(offsets)


@given(st.lists(RANGES, min_size=1, max_size=30))
def test_shift_takes_the_first_run(added: list[tuple[int, int]]) -> None:
    pieces = PieceSet()
    for start, size in added:
        pieces.add(start, start + size)
    before = as_list(pieces)
    assert pieces.shift() == before[0]
    assert as_list(pieces) == before[1:]
