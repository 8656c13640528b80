"""Whole endpoints and derpers in the simulated network, in virtual time.

::

    network = Network(rng=random.Random(7))
    derper = SimulatedDerper(network.add_host("derp", ip="198.51.100.1", latency=0.02))
    home = network.add_nat("home", ip="203.0.113.1", kind=PORT_RESTRICTED, latency=0.01)
    alice = SimulatedEndpoint(network.add_host("alice", home.inside), derp_map=derper.derp_map)
    bob = SimulatedEndpoint(
        network.add_host("bob", ip="203.0.113.2"),
        alpns=[b"shout/0"],
        derp_map=derper.derp_map,
        serve=bytes.upper,
    )
    connection = alice.connect(NodeAddr(bob.node_id, derp_url=derper.url), alpn=b"shout/0")
    network.run_until(lambda: alice.is_established(connection), limit=5.0)
    stream = alice.send(connection, b"hello")
    network.run_until(lambda: (connection, stream) in alice.ended, limit=5.0)
    assert alice.received[connection, stream] == b"HELLO"

It is as pure as what runs in it: no socket, no clock, no task. Of the extra ``anyio`` it needs
aioquic alone.
"""

from iroh_proto.extras import needs_extra
from iroh_proto.testing.derper import SimulatedDerper

with needs_extra(__name__, "anyio", {"aioquic"}):
    from iroh_anyio.testing.endpoint import SimulatedEndpoint

__all__ = ["SimulatedDerper", "SimulatedEndpoint"]
