"""One target per decoder."""

from __future__ import annotations

from fuzz.decoders import derp, disco, http, identity, quic, stun, text, timeline, wire
from fuzz.target import Target

TARGETS: dict[str, Target] = {
    name: target
    for module in (stun, disco, derp, http, text, identity, wire, quic, timeline)
    for name, target in module.TARGETS.items()
}
"""The targets by name."""
