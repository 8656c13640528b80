"""Allowances of bytes, and the pauses that come of spending more."""

from __future__ import annotations

import math

from iroh_proto.derp.rate import RateLimit, ReadThrottle


def test_a_throttle_that_is_woken_early_does_nothing() -> None:
    throttle = ReadThrottle(RateLimit(bytes_per_second=100, burst_bytes=100), now=0.0)
    throttle.handle_timer(0.0)
    assert (throttle.is_paused, throttle.deadline) == (False, math.inf)
    throttle.note_read(200, 1.0)
    throttle.handle_timer(0.5)
    assert (throttle.is_paused, throttle.deadline) == (False, 1.0)
    throttle.handle_timer(1.0)
    assert throttle.is_paused
    assert throttle.overdraft == 100
    ends_at = throttle.deadline
    throttle.handle_timer(ends_at - 0.01)
    assert throttle.is_paused
    throttle.handle_timer(ends_at)
    assert not throttle.is_paused
