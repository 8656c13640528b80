"""Rates taken side by side, so that the noise of the machine hits both alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def seconds_per_call(function: Callable[[], object], calls: int) -> float:
    """Return the mean time of one call in seconds."""
    started = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - started) / calls


def interleaved(contenders: Mapping[str, Callable[[], float]], rounds: int = 7) -> dict[str, float]:
    """Return the median of each contender's measurements, taken in turns."""
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, measure in contenders.items():
            measured[name].append(measure())
    return {name: statistics.median(values) for name, values in measured.items()}
