"""The server's side of one TCP connection, whichever generation of client is behind it.

States::

    idle -> entry -> relaying -> over
              '--> over

In ``entry`` (:mod:`iroh_proto.derp.server_entry`) the client has yet to ask, to prove its key and
to be let in.

What keeps a connection alive, by dialect: from v3 on the server pings after 15 s of silence and
some more at random and wants the pong in 5 s, from relay-v1 on within some round trips once one is
known; on v2 it sends a KeepAlive every 65 s, on Tailscale's every 60 to 65 s. Pings are answered on
all. That bytes to send are fetched at all is for the owner to watch, who hands them out.

Source: iroh v0.12.0 ``iroh-net/src/derp/client_conn.rs``, v0.35.0 and v1.0.3
``iroh-relay/src/server/{client,http_server}.rs``.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum, auto
from typing import assert_never

from iroh_proto.derp.access import check_reason
from iroh_proto.derp.codec import FrameCodec, FramedCodec
from iroh_proto.derp.curve_frames import GONE_NOT_HERE, CurvePeerGone
from iroh_proto.derp.dialects import FRAMED_DIALECTS, ClientKey
from iroh_proto.derp.frames import (
    Frame,
    NotePreferred,
    PacketGroups,
    PacketParts,
    PacketRun,
    Ping,
    Pong,
    Restarting,
    parts_of_run,
)
from iroh_proto.derp.mesh_frames import (
    QUEUED_PRESENCE_BYTES_LIMIT,
    MeshRequest,
    gone_frame,
    presence_frame,
)
from iroh_proto.derp.mesh_key import MeshKey
from iroh_proto.derp.rate import RateLimit, ReadThrottle, TokenBucket
from iroh_proto.derp.router_reports import Presence
from iroh_proto.derp.send_queue import SendQueue
from iroh_proto.derp.server_entry import (
    Entered,
    EntryOutcome,
    EntryOver,
    ServerEntry,
    Session,
)
from iroh_proto.derp.server_events import (
    ClientAdmitted,
    ConnectionLost,
    ConnectionStats,
    DerpServerConnectionEvent,
)
from iroh_proto.derp.server_liveness import ServerLiveness
from iroh_proto.errors import LocalProtocolError, RemoteProtocolError
from iroh_proto.key import SecretKey
from iroh_proto.timers import LatestTime
from iroh_proto.x25519 import X25519PublicKey

NOT_HERE_PER_SECOND = 1.0
NOT_HERE_BURST = 3.0
"""How often a client of Tailscale's dialect is told that it has sent to nobody (upstream's)."""


class _State(Enum):
    IDLE = auto()
    ENTRY = auto()
    RELAYING = auto()
    OVER = auto()


class DerpServerConnection:
    """One accepted connection.

    Call :meth:`start` when it stands, TLS included. After each input, drain the events, then
    :meth:`received_packets` (they are views of what was received), then write.

    :param secret_key: the server's; v2 clients are shown its public half.
    :param listen_dialect: what to take clients for whose request does not tell, instead of
        waiting for them: a key of ``DIALECTS``.
    :param asks_access: whether a client that has proven its key waits for :meth:`complete_access`.
    :param rate_limit: how fast the client may send, if that is limited.
    :param mesh_key: who gives the same is taken for a server of the mesh. It is let in without
        being asked for, has no rate limit, and may ask for what other clients may not.
    :param stats: where to count, if not in counts of its own.
    :ivar node_id: who the client is, once it was let in.
    :ivar queue: what waits to be written, for an owner who does without :meth:`data_to_send`.
    :ivar received: what :meth:`received_packets` returns.
    :ivar is_mesh_member: whether the client is a server of the mesh.
    :ivar is_paused: whether the client is to be left unread for now. What was read already is
        taken all the same.
    :ivar has_news: whether something other than packets for others came out since the owner last
        set it to false: events, bytes to write, deadlines that are earlier.
    :raises LocalProtocolError: if there is no such framed dialect.
    """

    __slots__ = (
        "_asks_access",
        "_codec",
        "_entry",
        "_events",
        "_framed",
        "_heard_at",
        "_listen_dialect",
        "_liveness",
        "_mesh_key",
        "_mesh_requests",
        "_not_here",
        "_rate_limit",
        "_rng",
        "_secret_key",
        "_session",
        "_state",
        "_stats",
        "_throttle",
        "_time",
        "_was_throttled",
        "has_news",
        "is_mesh_member",
        "is_paused",
        "node_id",
        "queue",
        "received",
    )

    def __init__(
        self,
        *,
        secret_key: SecretKey,
        rng: random.Random,
        listen_dialect: str | None = None,
        asks_access: bool = False,
        rate_limit: RateLimit | None = None,
        mesh_key: MeshKey | None = None,
        stats: ConnectionStats | None = None,
    ) -> None:
        if listen_dialect is not None and listen_dialect not in FRAMED_DIALECTS:
            raise LocalProtocolError(f"no framed DERP dialect {listen_dialect!r}")
        self._secret_key = secret_key
        self._rng = rng
        self._listen_dialect = listen_dialect
        self._asks_access = asks_access
        self._rate_limit = rate_limit
        self._mesh_key = mesh_key
        self._stats = ConnectionStats() if stats is None else stats
        self._time = LatestTime()
        self._state = _State.IDLE
        self._events: deque[DerpServerConnectionEvent] = deque()
        self.queue = SendQueue()
        self.received: dict[bytes, PacketParts] = {}
        self._session: Session | None = None
        self._codec: FrameCodec | None = None  # while packets pass
        self._framed: FramedCodec | None = None  # the same, if it is that
        self._heard_at = -math.inf  # when the last frame came
        self._entry: ServerEntry | None = None
        self._liveness: ServerLiveness | None = None
        self._throttle: ReadThrottle | None = None
        self._was_throttled = False
        self._not_here: TokenBucket | None = None
        self._mesh_requests: list[MeshRequest] = []
        self.node_id: ClientKey | None = None
        self.is_mesh_member = False
        self.is_paused = False
        self.has_news = False

    @property
    def stats(self) -> ConnectionStats:
        """A copy of the counts."""
        return replace(self._stats)

    @property
    def has_data_to_send(self) -> bool:
        """Whether :meth:`data_to_send` would give anything."""
        return bool(self.queue.entries)

    def start(self, *, now: float) -> None:
        """Begin to wait for the client's request.

        :raises LocalProtocolError: if called twice.
        """
        now = self._time.advance(now)
        if self._state is not _State.IDLE:
            raise LocalProtocolError("this connection has started already")
        self._state = _State.ENTRY
        self._entry = ServerEntry(
            secret_key=self._secret_key,
            rng=self._rng,
            listen_dialect=self._listen_dialect,
            asks_access=self._asks_access,
            mesh_key=self._mesh_key,
            queue=self.queue,
            events=self._events,
            stats=self._stats,
            now=now,
        )

    def receive_data(self, data: bytes, *, now: float) -> None:
        """Take bytes that arrived, cut anywhere.

        :raises LocalProtocolError: before :meth:`start`.
        """
        run = self.take_data(data, self._advance(now))
        if run is not None:
            self.take_run(run)

    def receive_eof(self, *, now: float) -> None:
        """Take the news that the client will send no more, which ends the connection.

        :raises LocalProtocolError: before :meth:`start`.
        """
        self._advance(now)
        if self._state is _State.RELAYING:
            self._end(None)
        else:
            self._fail("the client left before it had proven a key")

    def complete_access(self, *, allowed: bool, reason: str | None = None, now: float) -> None:
        """Decide on the access of a client that has proven its key. Ignored when that is over.

        :param reason: what to tell a client that is not let in, if its dialect has words for it.
        :raises LocalProtocolError: before :meth:`start`, or if the reason is too long.
        """
        check_reason(reason)
        now = self._advance(now)
        if (entry := self._entry) is not None and entry.is_applying:
            self._take_entry(entry, entry.decide(allowed=allowed, reason=reason), now)

    def set_rate_limit(self, limit: RateLimit | None, *, now: float) -> None:
        """Change how fast the client may send. What it was over the old limit is forgotten.

        :raises LocalProtocolError: before :meth:`start`.
        """
        now = self._advance(now)
        self._rate_limit = limit
        if self._liveness is not None:
            self._throttle = None
            if limit is not None and not self.is_mesh_member:
                self._throttle = ReadThrottle(limit, now=now)
            self.is_paused = False
            self._liveness.resume(now)

    def send_packets(self, parts: PacketParts, *, now: float) -> None:
        """Relay packets to the client. When it is slow, some are dropped as its dialect has it.

        :raises LocalProtocolError: before :class:`ClientAdmitted`.
        """
        self._advance(now)
        self.relay(parts)

    # The way of every packet, for an owner whose time has advanced and whose client is let in.

    def take_data(self, data: bytes, now: float) -> PacketRun | None:
        """Do what :meth:`receive_data` does, without a look at the time.

        :returns: packets to route, or to :meth:`take_run`; there is nothing in :attr:`received`
            then.
        """
        codec = self._codec
        if codec is None:
            if data and (entry := self._entry) is not None:
                self._take_entry(entry, entry.receive(data, now), now)
            return None
        if self._throttle is not None:
            self._throttle.note_read(len(data), now)
            self.has_news = True
        if self._framed is not None:
            run = self._framed.receive_run(data)
            if run is not None:
                self._heard_at = now
                return run
        self._receive_frames(codec, data, now)
        return None

    def take_run(self, run: PacketRun) -> None:
        """Have the packets that :meth:`take_data` returned among those of :attr:`received`."""
        self._take_groups({run[0]: parts_of_run(run)})

    def relay_run(self, run: PacketRun) -> bool:
        """Relay packets that are joined already; say whether something waits to be written."""
        if self._framed is None:
            return self.relay(parts_of_run(run))
        _, data, count = run
        dropped = self.queue.push_packets(data, count)
        if dropped:
            self._stats.packets_dropped += dropped
        return True

    def relay(self, parts: PacketParts) -> bool:
        """Do what :meth:`send_packets` does; say whether something waits to be written."""
        codec, queue = self._codec, self.queue
        if codec is None:
            self._admitted()
            return bool(queue.entries)
        pieces = codec.encode_relayed(parts)
        if self._framed is not None:
            dropped = queue.push_packets(pieces[0], len(parts) // 2)
        else:
            dropped = queue.push_pieces(pieces)
        if dropped:
            self._stats.packets_dropped += dropped
        return bool(queue.entries)

    def send_peer_gone(self, key: ClientKey, *, now: float) -> None:
        """Tell the client that somebody it has heard from is gone.

        :param key: of the kind that the client's dialect has.
        :raises LocalProtocolError: before :class:`ClientAdmitted`.
        """
        self._advance(now)
        if (session := self._admitted()) is not None:
            self._send(session.codec.encode(gone_frame(key)))

    def send_not_here(self, key: X25519PublicKey, *, now: float) -> None:
        """Tell the client that it has sent to nobody. Told too often, it is not told again soon.

        :raises LocalProtocolError: before :class:`ClientAdmitted`.
        """
        now = self._advance(now)
        if (session := self._admitted()) is None:
            return
        if self._not_here is None:
            self._not_here = TokenBucket(
                per_second=NOT_HERE_PER_SECOND, limit=NOT_HERE_BURST, now=now
            )
        if self._not_here.take(1, now=now):
            self._send(session.codec.encode(CurvePeerGone(key, GONE_NOT_HERE)))

    def send_presence(self, presence: Presence, *, now: float) -> None:
        """Tell a member of the mesh that a client came or went.

        The connection ends if it reads too slowly, as it must miss nothing.

        :raises LocalProtocolError: before :class:`ClientAdmitted`.
        """
        self._advance(now)
        if (session := self._admitted()) is None:
            return
        frame = presence_frame(presence, has_curve_keys=session.dialect.has_curve_keys)
        if frame is None:
            return
        data = session.codec.encode(frame)
        if not self.queue.push_control(data, limit=QUEUED_PRESENCE_BYTES_LIMIT):
            self._fail("a member of the mesh reads too slowly")

    def tell_standing(self, *, is_active: bool, now: float) -> None:
        """Tell the client whether it gets packets, if its dialect has words for that.

        It does not while another client has its key.

        :raises LocalProtocolError: before :class:`ClientAdmitted`.
        """
        self._advance(now)
        if (session := self._admitted()) is not None:
            frame = session.dialect.standing(is_active=is_active)
            if frame is not None:
                self._send(session.codec.encode(frame))

    def announce_restart(self, *, reconnect_in: float, try_for: float, now: float) -> None:
        """Tell the client that the server is about to restart.

        :param reconnect_in: seconds after which it should come back.
        :param try_for: seconds for which it should try to.
        :raises LocalProtocolError: before :class:`ClientAdmitted`.
        """
        self._advance(now)
        if (session := self._admitted()) is not None:
            frame = Restarting(round(reconnect_in * 1000), round(try_for * 1000))
            self._send(session.codec.encode(frame))

    def close(self, *, now: float) -> None:
        """End the connection in good order.

        :raises LocalProtocolError: before :meth:`start`.
        """
        self._advance(now)
        session = self._session if self._entry is None else self._entry.session
        if session is not None:
            self._send(session.codec.goodbye())
        self._end(None)

    def abandon(self, problem: str, *, now: float) -> None:
        """End the connection for a fault that its owner has found. What waits is dropped.

        :raises LocalProtocolError: before :meth:`start`.
        """
        self._advance(now)
        self._fail(problem)
        self._stats.packets_dropped += self.queue.packets
        self.queue = SendQueue()

    def handle_timer(self, *, now: float) -> None:
        """Let every deadline at or before ``now`` expire."""
        now = self._time.advance(now)
        if (entry := self._entry) is not None and entry.deadline <= now:
            self._take_entry(entry, entry.handle_timer(now), now)
        if self._throttle is not None and self._throttle.deadline <= now:
            self._heed_rate_limit(self._throttle, now)
        if self._liveness is not None and self._liveness.finds_dead(now, self._heard_at):
            self._fail("no pong in time")
        if self._liveness is not None and self._liveness.due(self._heard_at) <= now:
            self._keep_alive(self._liveness, now)

    def get_timer(self) -> float | None:
        """Return the earliest deadline, or ``None``. Changes nothing."""
        deadline = math.inf if self._entry is None else self._entry.deadline
        if (liveness := self._liveness) is not None:
            deadline = min(deadline, liveness.due(self._heard_at), liveness.pong.deadline)
        if self._throttle is not None:
            deadline = min(deadline, self._throttle.deadline)
        return None if deadline == math.inf else deadline

    def next_event(self) -> DerpServerConnectionEvent | None:
        """Return the oldest queued event and forget it, or ``None``."""
        return self._events.popleft() if self._events else None

    def received_packets(self) -> dict[bytes, PacketParts]:
        """Return the packets that the client sent, by destination, and forget them.

        A destination is 32 bytes that need not be a node id. Packets to the client itself are not
        among them; they are on their way back already.
        """
        received = self.received
        if received:
            self.received = {}
        return received

    def mesh_requests(self) -> Sequence[MeshRequest]:
        """Return what a member of the mesh asks for, in order, and forget it."""
        requests = self._mesh_requests
        if requests:
            self._mesh_requests = []
        return requests

    def data_to_send(self, size_wanted: int | None = None) -> bytes:
        """Return the bytes to write, and forget them; empty when there are none.

        :param size_wanted: return no more than these and the end of the last piece. What stays
            behind is subject to this connection's limits rather than the host's buffers.
        """
        return self.queue.pull(size_wanted)

    def _take_entry(self, entry: ServerEntry, outcome: EntryOutcome | None, now: float) -> None:
        self.has_news = True
        match outcome:
            case None:
                self.is_paused = entry.is_applying
            case Entered():
                self._let_in(outcome, now)
            case EntryOver(problem):
                if problem is None:
                    self._end(None)
                else:
                    self._fail(problem)
            case _:
                assert_never(outcome)

    def _let_in(self, entered: Entered, now: float) -> None:
        session = self._session = entered.session
        self._entry = None
        self._state = _State.RELAYING
        self._codec = session.codec
        self._framed = session.codec if isinstance(session.codec, FramedCodec) else None
        self._liveness = ServerLiveness(session.dialect, rng=self._rng, now=now)
        self.node_id, self.is_mesh_member = entered.node_id, entered.is_mesh_member
        if self._rate_limit is not None and not self.is_mesh_member:
            self._throttle = ReadThrottle(self._rate_limit, now=now)
        self.is_paused = False
        self._stats.clients_admitted += 1
        self._events.append(ClientAdmitted(node_id=entered.node_id, dialect=session.dialect.name))
        # What came with the proof may be whole frames, also if there is nothing behind it.
        self._receive_frames(session.codec, entered.behind, now)

    def _heed_rate_limit(self, throttle: ReadThrottle, now: float) -> None:
        assert self._session is not None
        assert self._liveness is not None
        throttle.handle_timer(now)
        self.is_paused = throttle.is_paused
        if not throttle.is_paused:
            self._liveness.resume(now)
            return
        self._liveness.pause()
        self._stats.pauses += 1
        self._stats.bytes_over_rate += throttle.overdraft
        if not self._was_throttled:
            self._was_throttled = True
            self._stats.clients_throttled += 1
            if (notice := self._session.dialect.throttled()) is not None:
                self._send(self._session.codec.encode(notice))

    def _receive_frames(self, codec: FrameCodec, data: bytes, now: float) -> None:
        node_id = self.node_id
        assert node_id is not None
        frames = codec.receive_grouped(data, node_id)
        if frames:
            self._heard_at = now
        for frame in frames:
            if isinstance(frame, PacketGroups):
                self._take_groups(frame.groups)
            elif isinstance(frame, MeshRequest):
                if not self.is_mesh_member:
                    self._fail(f"{type(frame).__name__} of somebody who is no member of the mesh")
                    return
                self._mesh_requests.append(frame)
                self.has_news = True
            else:
                self._take_frame(frame, now)
        if codec.has_news:
            self._check_form(codec)

    def _take_groups(self, groups: dict[bytes, PacketParts]) -> None:
        # What a client sends to itself takes its place among the answers to its other frames,
        # which it would lose on a way round by the router.
        assert self.node_id is not None
        to_itself = groups.pop(self.node_id, None)
        if to_itself is not None:
            self._stats.packets_returned += len(to_itself) // 2
            self.has_news |= self.relay(to_itself)
        if not self.received:
            self.received = groups
            return
        for destination, parts in groups.items():
            self.received.setdefault(destination, []).extend(parts)

    def _take_frame(self, frame: Frame, now: float) -> None:
        assert self._session is not None
        assert self._liveness is not None
        if isinstance(frame, Ping):
            self._stats.pings_answered += 1
            self._send(self._session.codec.encode(Pong(frame.data)))
        elif isinstance(frame, Pong) and self._liveness.note_pong(frame.data, now=now):
            pass
        elif not isinstance(frame, NotePreferred):  # a statistic at most, in every generation
            self._stats.frames_ignored += 1

    def _check_form(self, codec: FrameCodec) -> None:
        """Look for what the codec found beside frames."""
        if replies := codec.replies():
            self._send(replies)
        if codec.error is not None:
            self._fail(str(codec.error))
        elif codec.is_closed:
            self._end(None)

    def _keep_alive(self, liveness: ServerLiveness, now: float) -> None:
        assert self._session is not None
        may_ping = not self.queue and not self.is_paused
        frame = liveness.next_frame(now, may_ping=may_ping)
        if frame is not None:
            self._send(self._session.codec.encode(frame))

    def _send(self, data: bytes) -> None:
        self.has_news = True
        if data and self._state is not _State.OVER and not self.queue.push_control(data):
            self._stats.controls_dropped += 1

    def _advance(self, now: float) -> float:
        now = self._time.advance(now)
        if self._state is _State.IDLE:
            raise LocalProtocolError("start this connection first")
        return now

    def _admitted(self) -> Session | None:
        """Return what packets go through, or ``None`` if it is too late for them."""
        if self._state is _State.OVER:
            return None
        if self._state is not _State.RELAYING or self._session is None:
            raise LocalProtocolError("nobody has proven a key on this connection yet")
        return self._session

    def _fail(self, problem: str) -> None:
        if self._state is not _State.OVER:
            self._stats.faults += 1
            self._end(RemoteProtocolError(problem))

    def _end(self, error: RemoteProtocolError | None) -> None:
        if self._state is not _State.OVER:
            self._state = _State.OVER
            self._entry = self._session = self._codec = self._framed = self._liveness = None
            self._throttle = None
            self.is_paused = False
            self._events.append(ConnectionLost(error=error))
            self.has_news = True
