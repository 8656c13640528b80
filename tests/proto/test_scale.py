"""Large networks that are mostly idle."""

from __future__ import annotations

import pytest

from iroh_anyio.testing.scale import ScaleRun

SIZES = {"nodes": 16, "derpers": 3, "pairs": 3}


def test_everybody_has_a_home_and_every_talk_its_answer() -> None:
    progress: list[float] = []
    report = ScaleRun(**SIZES, seed=1).run(hours=0.1, on_progress=progress.append)
    assert (report.nodes, report.derpers, report.pairs, report.idle_nodes) == (16, 3, 3, 10)
    assert report.seconds == pytest.approx(360)
    assert report.at_home == 16
    assert report.talks >= 3, "each pair talks every 300 s at least"
    assert report.answered == report.became_direct == report.talks
    assert len(progress) == 100
    assert progress[-1] == 1.0


def test_an_idle_endpoint_does_next_to_nothing() -> None:
    run = ScaleRun(nodes=10, derpers=2, pairs=0, seed=2)
    report = run.run(hours=0.25)
    # A STUN request every 20 to 26 s. A ping to the home every 15 s without a word from it, and
    # each a timer; then answers, and names to be looked up.
    assert 1 / 26 < report.idle_datagrams < 0.1
    assert 1 / 26 + 1 / 16 < report.idle_wakeups < 0.2
    assert report.idle_wakeups < report.idle_inputs < 0.4
    homes = [endpoint.machine.magicsock.home_derp for endpoint in run.endpoints]
    assert len(set(homes)) == 2, "they are spread"
    assert all(endpoint.program.events == [] for endpoint in run.endpoints), "nothing piles up"


def test_a_seed_gives_the_same_run() -> None:
    first, second = (ScaleRun(**SIZES, seed=5).run(hours=0.04) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("nodes", "derpers", "pairs"), [(3, 1, 2), (10, 0, 1), (10, 251, 1), (60_001, 1, 0), (4, 1, -1)]
)
def test_sizes_that_make_no_sense_are_refused(nodes: int, derpers: int, pairs: int) -> None:
    with pytest.raises(ValueError, match="two nodes to a pair"):
        ScaleRun(nodes=nodes, derpers=derpers, pairs=pairs)
