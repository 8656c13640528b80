"""The rules that are broken on purpose, one at a time, and the tests that are to notice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PATHS = (
    "test_paths_select.py",
    "test_paths_finder.py",
    "test_paths_lessons.py",
    "test_paths_replays.py",
    "test_spoofed_paths.py",
    "test_network_mishaps.py",
)
DISCO = ("test_disco_pinger.py", "test_paths_finder.py", "test_paths_replays.py")
MAGICSOCK = (
    "test_magicsock_network.py",
    "test_magicsock_payload.py",
    "test_spoofed_paths.py",
    "test_network_mishaps.py",
)
POOL = ("test_derp_pool.py", "test_derp_client.py", "test_network_mishaps.py")
ROUTER = ("test_derp_router.py", "test_derp_relay.py")


@dataclass(frozen=True, slots=True)
class Mutation:
    """A text of one source file, which is there once, and what to put in its place."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def apply(self, root: Path) -> None:
        """Break the copy of the project in a folder.

        :raises ValueError: if the text is not there exactly once.
        """
        path = root / self.file
        source = path.read_text()
        if source.count(self.old) != 1:
            raise ValueError(f"{self.file} has {source.count(self.old)} times: {self.old}")
        path.write_text(source.replace(self.old, self.new))


MUTATIONS = (
    # How long a proof holds
    Mutation(
        "trust never expires",
        "iroh_proto/paths/select.py",
        "return now < self.trust_until",
        "return True",
        PATHS,
    ),
    Mutation(
        "a candidate is trusted for an hour",
        "iroh_proto/paths/select.py",
        "self.trust_until = proven_at + TRUST_TIME",
        "self.trust_until = proven_at + 3600.0",
        PATHS,
    ),
    Mutation(
        "payload that arrives keeps a proof alive without any pong",
        "iroh_proto/paths/select.py",
        "max(self.trust_until, min(now + TRUST_TIME, limit))",
        "max(self.trust_until, now + TRUST_TIME)",
        PATHS,
    ),
    Mutation(
        "an old pong shortens the trust in a newer one",
        "iroh_proto/paths/select.py",
        "if at < self.confirmed_at:",
        "if False:",
        PATHS,
    ),
    Mutation(
        "any gain moves a peer to another path",
        "iroh_proto/paths/select.py",
        "_cost(addr, latency) + SWITCH_GAIN <=",
        "_cost(addr, latency) <=",
        PATHS,
    ),
    Mutation(
        "another network takes back no proof",
        "iroh_proto/paths/udp_paths.py",
        "        if self.best is not None:\n            self.best.distrust()\n",
        "        if self.best is not None:\n            pass\n",
        (*PATHS, *MAGICSOCK),
    ),
    Mutation(
        "a ping without answer leaves its address proven",
        "iroh_proto/paths/udp_paths.py",
        "if self.best is not None and self.best.addr == addr:\n            self.best = None",
        "if self.best is not None and self.best.addr == addr:\n            pass",
        PATHS,
    ),
    # What is a proof
    Mutation(
        "a pong that came through a DERP server proves a UDP address",
        "iroh_proto/paths/state.py",
        "if isinstance(addr, UdpAddress) and isinstance(source, UdpAddress):",
        "if isinstance(addr, UdpAddress):",
        (*PATHS, *MAGICSOCK),
    ),
    Mutation(
        "a pong proves the address that it came from, not the one pinged",
        "iroh_proto/paths/state.py",
        "return self.udp.take_pong(addr, latency, now)",
        "return self.udp.take_pong(source, latency, now)",
        (*PATHS, *MAGICSOCK),
    ),
    Mutation(
        "payload from an address without proof moves the peer there",
        "iroh_proto/paths/udp_paths.py",
        "if path.pong is None or now >= path.pong.at + TRUST_TIME:",
        "if path.pong is None:\n            path.pong = PongRecord(0.0, now)\n        if False:",
        (*PATHS, *MAGICSOCK),
    ),
    Mutation(
        "payload is taken to be a peer's after the proof of its address ended",
        "iroh_proto/paths/finder.py",
        "if node is None or not node.udp.is_proven(now):",
        "if node is None:",
        (*PATHS, *MAGICSOCK),
    ),
    Mutation(
        "an answer to a challenge counts however late it is",
        "iroh_proto/paths/challenges.py",
        "return None if challenge is None or challenge.deadline <= now else challenge",
        "return challenge",
        PATHS,
    ),
    Mutation(
        "an address stays proven though another node answers there",
        "iroh_proto/paths/udp_paths.py",
        "        if path is not None:\n            path.pong = None\n        if self.best",
        "        if False:\n            path.pong = None\n        if False and self.best",
        ("regressions/test_taken_address.py",),
    ),
    # How a way is found
    Mutation(
        "a CallMeMaybe goes before the pings that open this node's NAT",
        "iroh_proto/paths/finder.py",
        "        for addr in search.pings:\n            self._ping(node, addr, now)\n"
        "        if search.call_me_maybe is not None:\n"
        "            self._call(node, search.call_me_maybe, now)\n",
        "        if search.call_me_maybe is not None:\n"
        "            self._call(node, search.call_me_maybe, now)\n"
        "        for addr in search.pings:\n            self._ping(node, addr, now)\n",
        PATHS,
    ),
    Mutation(
        "a ping is never pinged back",
        "iroh_proto/paths/state.py",
        "return True, self._may_ping_back(now)",
        "return True, False",
        PATHS,
    ),
    Mutation(
        "every ping is pinged back",
        "iroh_proto/paths/state.py",
        "return True, self._may_ping_back(now)",
        "return True, True",
        ("regressions/test_ping_backs.py",),
    ),
    Mutation(
        "every CallMeMaybe is heeded",
        "iroh_proto/paths/state.py",
        "CALLS_BURST = 4\n",
        "CALLS_BURST = 4_000_000\n",
        PATHS,
    ),
    Mutation(
        "a CallMeMaybe leaves proofs that it contradicts",
        "iroh_proto/paths/udp_paths.py",
        "            if addr not in named:\n                path.pong = None",
        "            if addr not in named:\n                pass",
        PATHS,
    ),
    Mutation(
        "the heartbeat comes once a minute",
        "iroh_proto/paths/finder.py",
        "HEARTBEAT_INTERVAL = 5.0",
        "HEARTBEAT_INTERVAL = 60.0",
        PATHS,
    ),
    Mutation(
        "peers are told addresses from long ago",
        "iroh_proto/paths/finder.py",
        "if found_at is not None and now - found_at <= ADDRESSES_FRESH_TIME:",
        "if found_at is not None:",
        PATHS,
    ),
    Mutation(
        "an address that a STUN server saw is believed for ever",
        "iroh_proto/paths/own_addresses.py",
        "if seen_at + MAPPED_ADDRESS_TIME <= now:",
        "if False:",
        ("test_paths_own_addresses.py",),
    ),
    # Limits
    Mutation(
        "a peer may have any number of addresses",
        "iroh_proto/paths/udp_paths.py",
        "while len(self.paths) >= PATHS_LIMIT:",
        "while False:",
        PATHS,
    ),
    Mutation(
        "addresses that only pings speak for are kept as long as others",
        "iroh_proto/paths/udp_paths.py",
        "            not path.is_hearsay,\n            alive is not None,",
        "            True,\n            alive is not None,",
        PATHS,
    ),
    Mutation(
        "strangers push out known peers",
        "iroh_proto/paths/node_map.py",
        "if len(self._strangers) >= STRANGERS_LIMIT:",
        "if False:",
        PATHS,
    ),
    # disco
    Mutation(
        "a pong of another node than the one pinged is accepted",
        "iroh_proto/disco/pinger.py",
        "if ping is None or ping.node_id != sender:",
        "if ping is None:",
        DISCO,
    ),
    Mutation(
        "a pong counts however late it is",
        "iroh_proto/disco/pinger.py",
        "        self._expire(now)  # a pong at the last moment or later is late\n",
        "",
        DISCO,
    ),
    Mutation(
        "a CallMeMaybe by UDP is heeded",
        "iroh_proto/disco/pinger.py",
        "                if not isinstance(addr, DerpAddress):",
        "                if False:",
        DISCO,
    ),
    Mutation(
        "a disco message is believed though the DERP server names another sender",
        "iroh_proto/disco/pinger.py",
        "if isinstance(addr, DerpAddress) and addr.node_id != sender:",
        "if False:",
        DISCO,
    ),
    Mutation(
        "a ping that was heard before is answered again",
        "iroh_proto/paths/state.py",
        "        if not path.note_ping(tx_id, now):\n",
        "        path.note_ping(tx_id, now)\n        if False:\n",
        PATHS,
    ),
    # Magicsock
    Mutation(
        "a new home is not asked for this node's addresses",
        "iroh_proto/magicsock.py",
        "            self._own.set_server(self._address_server(event.url), now=now)",
        "            pass",
        MAGICSOCK,
    ),
    Mutation(
        "connections to DERP servers are not checked in another network",
        "iroh_proto/magicsock.py",
        "            self._pool.network_changed(now=now)",
        "            pass",
        MAGICSOCK,
    ),
    # DERP pool
    Mutation(
        "the pauses between dials do not grow",
        "iroh_proto/derp/server_link.py",
        "        self.failures += 1\n",
        "",
        POOL,
    ),
    Mutation(
        "PeerGone is ignored",
        "iroh_proto/derp/server_link.py",
        "self._events.append(DerpPeerGone(url=self.url, node_id=event.node_id))",
        "pass",
        POOL,
    ),
    Mutation(
        "datagrams wait for a server without end",
        "iroh_proto/derp/server_link.py",
        "while self._waiting and self._waiting[0][0] <= now:",
        "while False:",
        POOL,
    ),
    Mutation(
        "a home that stays away is kept",
        "iroh_proto/derp/pool.py",
        "return link.down_since + HOME_PATIENCE",
        "return None",
        POOL,
    ),
    Mutation(
        "connections that nobody uses are kept",
        "iroh_proto/derp/pool.py",
        "return link.used_at + IDLE_TIME",
        "return None",
        POOL,
    ),
    Mutation(
        "a connection that broke at once is made again at once",
        "iroh_proto/derp/server_link.py",
        "was_stable = now - self._connected_at >= STABLE_TIME",
        "was_stable = True",
        POOL,
    ),
    # DERP router
    Mutation(
        "packets go to the older of two clients with one key",
        "iroh_proto/derp/router.py",
        "        ids[node_id] = client_id\n",
        "        ids.setdefault(node_id, client_id)\n",
        ROUTER,
    ),
    Mutation(
        "nobody is told that a node left",
        "iroh_proto/derp/router.py",
        "Departure([] if client.key in self._region else self._told(client), None)",
        "Departure([], None)",
        ROUTER,
    ),
    Mutation(
        "nobody takes the place of a client that left",
        "iroh_proto/derp/router.py",
        "heir = ids[client.key] = waiting.pop()",
        "ids[client.key] = waiting.pop()",
        ROUTER,
    ),
    Mutation(
        "destinations are remembered without limit",
        "iroh_proto/derp/router.py",
        "if len(destinations) >= DESTINATIONS_LIMIT:",
        "if False:",
        ROUTER,
    ),
    # Lessons that the mutations above leave alone, each with its own test
    Mutation(
        "lesson 8: payload without any way is an error",
        "iroh_proto/magicsock.py",
        "            self._stats.unreachable += len(datagrams)\n        self._gather(now)",
        '            raise LocalProtocolError("no way")\n        self._gather(now)',
        (
            "test_magicsock_payload.py::test_lesson_08_a_peer_without_any_way_is_counted_not_an_error",
        ),
    ),
    Mutation(
        "lesson 9: payload that went nowhere is not counted",
        "iroh_proto/magicsock.py",
        "        elif not addresses:\n            self._stats.unreachable",
        "        elif False:\n            self._stats.unreachable",
        ("test_magicsock_payload.py::test_lesson_09_pings_are_not_counted_as_payload",),
    ),
    Mutation(
        "lesson 15: a lost server is dialled again only for what waits",
        "iroh_proto/derp/server_link.py",
        "self.retry_at = now + delay",
        "self.retry_at = now + delay if self._waiting else None",
        (
            "test_derp_pool.py::test_lesson_15_a_lost_home_is_connected_again_without_anything_to_send",
        ),
    ),
    Mutation(
        "lesson 16: a server is dialled again while it is being dialled",
        "iroh_proto/derp/server_link.py",
        "        self.retry_at = None\n        self._dial_deadline = now",
        "        self._dial_deadline = now",
        ("test_derp_pool.py::test_lesson_16_a_server_is_dialled_once_and_datagrams_wait_for_it",),
    ),
    Mutation(
        "lesson 16: each change of the network ends the connections to servers",
        "iroh_proto/derp/server_link.py",
        "            self._client.ping(now=now)\n            return\n",
        "            self._client.ping(now=now)\n",
        (
            "test_derp_pool.py::test_lesson_16_a_connection_that_survives_a_change_of_network_is_kept",
        ),
    ),
    Mutation(
        "lesson 20: a known node without any address is an error",
        "iroh_proto/paths/state.py",
        "return udp.dial_addresses(), self.derp_url",
        "return (udp.dial_addresses()[0],), self.derp_url",
        ("test_paths_lessons.py::test_lesson_20_a_known_node_without_any_address_is_no_error",),
    ),
    Mutation(
        "lesson 21: datagrams after the close are an error",
        "iroh_proto/magicsock.py",
        "            self._stats.out_of_season += len(batch)\n            return",
        '            raise LocalProtocolError("closed")',
        (
            "test_magicsock_payload.py::test_lesson_21_before_start_and_after_close_it_is_quiet_and_no_error",
        ),
    ),
    Mutation(
        "lesson 22: a late pong is an error",
        "iroh_proto/disco/pinger.py",
        "            self._stats.unmatched_pongs += 1\n            return",
        "            raise KeyError(pong.tx_id)",
        ("test_paths_lessons.py::test_lesson_22_late_pongs_are_counted_and_harmless",),
    ),
)
