r"""Writes down what happens in a simulated network, as JSON lines: :mod:`iroh_proto.trace.lines`.

Beside datagrams stand ``labels``, which say in words what they are, and ``packet``, a number that
stays the same on all of a packet's way; beside TCP data stands ``carried``: what of disco is
inside, with a ``key`` that is the same where it is sent and where it arrives.

A program made by a :class:`~iroh_proto.trace.tape.Recipe` after the time line was begun can be
repeated from the lines (:mod:`iroh_proto.testing.replay`). The secret keys in its recipe are
written down for that, as are tokens for DERP servers: they are of this network, and protect
nothing.

::

    pair = NatPair(PORT_RESTRICTED, PORT_RESTRICTED, seed=1, recorded=True)
    pair.run()
    text = "\n".join(pair.timeline.lines())
"""

from __future__ import annotations

import inspect
import json
import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final, TypeVar, cast

from iroh_proto.errors import LocalProtocolError
from iroh_proto.key import SecretKey
from iroh_proto.magicsock import Magicsock
from iroh_proto.testing.happenings import (
    DatagramsReceived,
    DatagramsSent,
    Happening,
    TcpDataReceived,
    TcpDataSent,
)
from iroh_proto.testing.network import Host, Network
from iroh_proto.testing.routers import Router, routers_above
from iroh_proto.trace.disco import DiscoReader
from iroh_proto.trace.lines import FORMAT, LineWriter
from iroh_proto.trace.tape import Recipe, Tape
from iroh_proto.trace.values import Json, fields_of

MAKE_MAGICSOCK: Final = "make_magicsock"
"""The parameter of a machine that has QUIC on top of a Magicsock. The latter is what can be
repeated, since packets once encrypted are inputs to it."""

MachineT = TypeVar("MachineT")


class Timeline:
    """Records a network from now on.

    :param secret_keys: nodes' keys, with which disco messages are opened to label them. Those in
        recipes are found by themselves; messages of others are labelled as sealed.
    :raises LocalProtocolError: if another time line of the network is going on.
    """

    def __init__(self, network: Network, *, secret_keys: Iterable[SecretKey] = ()) -> None:
        if network.make_machine is not None:
            raise LocalProtocolError("this network has a time line already")
        self._network = network
        self._reader = DiscoReader(secret_keys)
        self._entries: list[Json] = []
        self._lines = LineWriter(self._entries.append)
        network.observers.append(self._observe)
        network.recorders.append(self._record)
        network.make_machine = self._make

    def stop(self) -> None:
        """Record no more."""
        self._lines.stop()
        self._network.observers.remove(self._observe)
        self._network.recorders.remove(self._record)
        self._network.make_machine = None

    def lines(self) -> Iterator[str]:
        """Yield the lines so far, without line ends."""
        self._lines.finish()
        yield json.dumps({"format": FORMAT, "lifelines": lifelines(self._network)})
        for entry in self._entries:
            yield json.dumps(entry)

    def _make(
        self, name: str, factory: Callable[[random.Random], MachineT], rng: random.Random
    ) -> MachineT:
        if not isinstance(factory, Recipe):
            return factory(rng)
        for value in factory.config.values():
            if isinstance(value, SecretKey):
                self._reader.add_key(value)
        recipe = cast("Recipe[MachineT]", factory)
        if MAKE_MAGICSOCK in inspect.signature(recipe.kind).parameters:
            make = partial(self._make_magicsock, f"{name}/magicsock")
            return recipe.kind(**recipe.config, rng=rng, **{MAKE_MAGICSOCK: make})
        return Tape.make(recipe, rng, self._lines, name, time=self._network.now, wires=False)

    def _make_magicsock(self, name: str, *, rng: random.Random, **config: object) -> Magicsock:
        """Make the tape of what is below QUIC in an endpoint."""
        recipe = Recipe(Magicsock, **config)
        return Tape.make(recipe, rng, self._lines, name, time=self._network.now)

    def _observe(self, time: float, name: str, event: object) -> None:
        self._lines.add(time, name, type(event).__name__, fields_of(event))

    def _record(self, time: float, name: str, happening: Happening) -> None:
        fields = fields_of(happening)
        if isinstance(happening, DatagramsSent | DatagramsReceived):
            fields["labels"] = [self._reader.label(data) for data in happening.datagrams]
        elif isinstance(happening, TcpDataSent | TcpDataReceived):
            fields["carried"] = self._reader.carried(happening.data)
        self._lines.add(time, name, type(happening).__name__, fields)


def lifelines(network: Network) -> list[str]:
    """Return hosts and routers: NATs beside their hosts, public hosts in the middle."""
    chains = [
        [host.name, *(router.name for router in _routers_of(host))]
        for host in network.hosts.values()
    ]
    behind = [chain for chain in chains if len(chain) > 1]
    public = [chain[0] for chain in chains if len(chain) == 1]
    half = (len(behind) + 1) // 2
    left = [name for names in behind[:half] for name in names]
    right = [name for names in behind[half:] for name in reversed(names)]
    return list(dict.fromkeys([*left, *public, *right]))


def _routers_of(host: Host) -> Iterable[Router]:
    return routers_above(host.attachments[0].segment) if host.attachments else ()
