"""What nodes say in a time line: the ways their payload goes, and what befell connections.

A node that knows of no DERP server sends payload to an address before anybody answered from there.
It *tries* that address, until a pong or the answer to a path challenge proves it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from iroh_proto.disco.pinger import PING_TIMEOUT
from iroh_proto.testing.flights import Numbered, Point, time_of
from iroh_proto.trace.values import Json

_Peer: TypeAlias = tuple[str, str]  # who says it, and of which node


def sayings_of(entries: Sequence[Numbered]) -> Iterator[Point]:
    """Yield what nodes say, ways as ``"box"`` and the rest as ``"note"``.

    An endpoint says what its Magicsock says; that is once enough.
    """
    said: set[tuple[float, str, str]] = set()
    for point in _sayings(entries):
        key = (point.time, point.lifeline, point.text)
        if key not in said:
            said.add(key)
            yield point


def _sayings(entries: Sequence[Numbered]) -> Iterator[Point]:
    ways = _Ways()
    for number, entry in entries:
        for text, mark in ((ways.take(entry), "box"), (_note(entry), "note")):
            if text:
                yield Point(time_of(entry), str(entry["at"]), number, text, mark)


def _note(entry: Json) -> str:
    match entry["kind"]:
        case "DerpServerUnreachable":
            return f"no DERP server: {entry.get('error')}"
        case "DerpServerLost":
            return "lost the DERP server"
        case "ConnectionEstablished":
            return "connected"
        case "ConnectionClosed":
            reason = entry.get("reason")
            return f"closed ({reason.get('kind')})" if isinstance(reason, dict) else "closed"
        case _:
            return ""


class _Ways:
    """The ways of payload, and which addresses are yet to be proven."""

    def __init__(self) -> None:
        self._tried: dict[_Peer, object] = {}
        self._latest: dict[_Peer, tuple[float, Json]] = {}
        self._challenges: dict[tuple[str, str], Json] = {}

    def take(self, entry: Json) -> str:
        """Return what a line says of a way, or nothing."""
        place = str(entry["at"])
        match entry["kind"]:
            case "PathChanged":
                return self._change(entry)
            case "PongReceived":
                return self._prove(place, entry)
            case "ChallengeRequested":
                self._challenges[place, str(entry.get("request_id"))] = entry
            case "CommandGiven" if entry.get("command") == "complete_challenge":
                args = entry.get("args")
                number = args[0] if isinstance(args, list) and args else None
                challenge = self._challenges.pop((place, str(number)), None)
                if challenge is not None and time_of(entry) < time_of(challenge) + PING_TIMEOUT:
                    return self._prove(place, challenge)
        return ""

    def _change(self, entry: Json) -> str:
        path, peer = entry.get("path"), (str(entry["at"]), str(entry.get("node_id")))
        change = (time_of(entry), path)
        if not isinstance(path, dict) or self._latest.get(peer) == change:
            return ""
        self._latest[peer] = (time_of(entry), path)
        self._tried.pop(peer, None)
        kind, addr = path.get("kind"), path.get("addr")
        if kind == "direct" and path.get("latency") is None:
            self._tried[peer] = addr
            return f"tries {addr}"
        return str(kind) if kind in ("derp", "none") else f"{kind} {addr}"

    def _prove(self, place: str, proof: Json) -> str:
        peer, addr = (place, str(proof.get("node_id"))), proof.get("addr")
        if peer not in self._tried or self._tried[peer] != addr:
            return ""
        del self._tried[peer]
        return f"direct {addr}"
