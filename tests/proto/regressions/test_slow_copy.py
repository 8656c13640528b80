"""A dial by a direct address and through a DERP server that takes much longer."""

from __future__ import annotations

from tests.proto.endpoint_world import EndpointWorld


def test_a_first_packet_that_comes_again_after_the_handshake_begins_no_other() -> None:
    """The copy through the server did, and took room among half-open handshakes for 10 s."""
    world = EndpointWorld(derp=True, derp_latency=0.2)
    alice, bob = world.two(derp=True)
    world.connect(alice, bob.addr(direct=True, derp=True))
    world.network.run_for(1.0)
    assert bob.machine.stats.received > 0
    assert bob.machine.stats.handshakes_begun == 1
    assert len(bob.machine._board) == 1
