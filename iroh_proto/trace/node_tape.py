"""The time line of one real node: why its paths are what they are, without its secret key.

Written down are the two machines that a node's paths follow from:
:class:`~iroh_proto.paths.finder.PathFinder` (``"node/paths"``), with all disco messages opened,
and :class:`~iroh_proto.paths.own_addresses.OwnAddresses` (``"node/addresses"``), with STUN; and
what the endpoint tells about connections and DERP servers (``"node/endpoint"``). That is all it
takes to draw how a hole was punched, and to make the same machines decide the same again.

No secret key is in it, and nothing that was sent or received: payload does not pass through these
machines, and nothing is written of DERP connections. The transaction ids and nonces in
it are worth nothing once their 5 seconds are over. It does tell node ids and IP addresses of this
node and its peers, DERP servers, and when there was traffic: to be shown to those who may know.

Writing down a whole :class:`~iroh_proto.magicsock.Magicsock` with the key would repeat the
connections to DERP servers, too. But such a file could not be given to anybody, which is what it
is for.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from iroh_proto.address import DerpAddress, NodeAddr, UdpAddress
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.trace.disco import DiscoReader
from iroh_proto.trace.lines import FORMAT, LineWriter
from iroh_proto.trace.tape import MachineT, Recipe, Tape
from iroh_proto.trace.values import Json, fields_of


class NodeTape:
    """Writes down one node from ``now`` on.

    :param secret_key: the node's, to open disco messages; it is not written.
    :param write: given each line as an object, the first at once.
    """

    def __init__(self, secret_key: SecretKey, write: Callable[[Json], None], *, now: float) -> None:
        self._epoch = float(math.floor(now))
        self._time = now
        self._own = str(secret_key.public)
        self._name = secret_key.public.fmt_short()
        self._reader = DiscoReader([secret_key])
        self._lines = LineWriter(write)
        write({"format": FORMAT, "lifelines": [self._name], "epoch": self._epoch})

    def make(
        self, kind: Callable[..., MachineT], program: str, *, rng: random.Random, **config: object
    ) -> MachineT:
        """Make a machine and return what stands in for it."""
        return Tape.make(
            Recipe(kind, **config),
            rng,
            self._lines,
            f"{self._name}/{program}",
            time=self._time,
            epoch=self._epoch,
            conceal=True,
            encode_datagram=self._encode,
            label=self._reader.label,
            observe=self._note_peers,
        )

    def note(self, event: object) -> None:
        """Write down an event of the endpoint, of which everything may be known."""
        place = f"{self._name}/endpoint"
        self._lines.add(self._lines.latest, place, type(event).__name__, fields_of(event))

    def finish_line(self) -> None:
        """Write the last line. Not while a machine is called, which may yet add to it."""
        self._lines.finish()

    def stop(self) -> None:
        """Write what is left, and then no more."""
        self._lines.stop()

    def _encode(self, datagram: bytes) -> object:
        opened = self._reader.open(datagram)
        if opened is None:
            return datagram.hex()
        if "message" in opened:
            # A node that nobody named is answered at once, before any command names it.
            end = "to" if opened["from"] == self._own else "from"
            self._reader.note_peer(NodeId.from_str(str(opened[end])))
        return opened

    def _note_peers(self, values: object) -> None:
        """Learn for whom messages may be, from what the machine is told."""
        match values:
            case NodeId():
                self._reader.note_peer(values)
            case NodeAddr() | DerpAddress():
                self._reader.note_peer(values.node_id)
            case UdpAddress():
                return
            case tuple():
                for value in values:
                    self._note_peers(value)
