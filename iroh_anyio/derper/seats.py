"""Which of the workers of a server has the newest client of each key."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from iroh_proto.derp.dialects import ClientKey
from iroh_proto.x25519 import X25519PublicKey

_Seats: TypeAlias = dict[ClientKey, dict[int, int]]


class Move(NamedTuple):
    """What a change brings: who is to give way, and who gets its place again."""

    set_aside: int | None = None
    reinstate: int | None = None


NO_MOVE = Move()


class Seats:
    """Keeps the workers with clients of each key, in the order in which their newest came.

    All comings and goings are told to one place, so that of clients that come at the same time to
    different workers one is the newer for all of them.
    """

    def __init__(self) -> None:
        # By kind of key; of each key the workers, the newest last, with their clients' number.
        self._keys: tuple[_Seats, _Seats] = ({}, {})

    def __len__(self) -> int:
        return sum(map(len, self._keys))

    def worker_of(self, key: ClientKey) -> int | None:
        """Return the worker with the newest client of a key."""
        return _last(self._keys[_kind(key)].get(key, {}))

    def arrive(self, worker: int, key: ClientKey) -> Move:
        """Take that a client has connected to a worker."""
        seats = self._keys[_kind(key)].setdefault(key, {})
        before = _last(seats)
        count = seats.pop(worker, 0)
        seats[worker] = count + 1
        # It may be about to hear that a client of its own is to give way, meaning one before this,
        # that may have left since.
        return Move(set_aside=None if before == worker else before, reinstate=worker)

    def depart(self, worker: int, key: ClientKey) -> Move:
        """Take that a client has disconnected from a worker."""
        keys = self._keys[_kind(key)]
        seats = keys.get(key, {})
        if worker not in seats:
            return NO_MOVE
        was_last = _last(seats) == worker
        seats[worker] -= 1
        if seats[worker]:
            return NO_MOVE
        del seats[worker]
        if not seats:
            del keys[key]
            return NO_MOVE
        return Move(reinstate=_last(seats)) if was_last else NO_MOVE

    def forget(self, worker: int) -> list[tuple[ClientKey, int]]:
        """Take that a worker has ended; return which keys have their newest client where now."""
        moved: list[tuple[ClientKey, int]] = []
        for keys in self._keys:
            for key, seats in list(keys.items()):
                was_last = _last(seats) == worker
                if seats.pop(worker, None) is None:
                    continue
                heir = _last(seats)
                if heir is None:
                    del keys[key]
                elif was_last:
                    moved.append((key, heir))
        return moved


def _kind(key: ClientKey) -> bool:
    return isinstance(key, X25519PublicKey)


def _last(seats: dict[int, int]) -> int | None:
    return next(reversed(seats), None)
