"""The client's side of one connection to a DERP server.

States::

    idle -> upgrading -> [listening] -> handshaking -> connected -> over

``listening`` is for servers of unknown generation on ``/derp``: one that sends its key first speaks
v2, one that stays silent v3. The owner opens TCP (and TLS), calls :meth:`DerpClient.start`, and
when the connection is lost opens a new one for a new client; :mod:`iroh_proto.derp.pool` does that.

What keeps a connection alive, by dialect: from v3 on the client pings after 15 s of silence and
wants the pong in 5 s, from relay-v1 on within some round trips once one is known; on v2 and
Tailscale's it gives up after 120 s without a frame. Pings are answered on all.

Source: iroh v0.12.0 ``iroh-net/src/derp/client.rs``, v0.35.0
``iroh/src/magicsock/relay_actor.rs`` and ``iroh-relay/src/ping_tracker.rs``.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Literal, TypeAlias

from iroh_proto.address import DerpUrl
from iroh_proto.derp.approach import SUBPROTOCOLS, Approach, first_approach, next_approach
from iroh_proto.derp.codec import FrameCodec
from iroh_proto.derp.curve_frames import CurvePeerGone, CurvePeerPresent, CurveRecvPacket
from iroh_proto.derp.datagram_frames import RecvDatagram, RecvDatagramBatch
from iroh_proto.derp.dialects import DIALECTS, ClientHandshake, Dialect
from iroh_proto.derp.events import (
    ConnectionLost,
    DerpClientEvent,
    DerpClientStats,
    DerpConnected,
    HealthReported,
    PeerGone,
    PongReceived,
    ReceivedDatagrams,
    RestartAnnounced,
)
from iroh_proto.derp.frames import (
    PING_SIZE,
    RECOVERED,
    Frame,
    Health,
    KeepAlive,
    NotePreferred,
    Ping,
    Pong,
    RecvPacket,
    Restarting,
    Status,
    UnknownFrame,
    pack_datagrams,
    packed_size,
    split_datagrams,
)
from iroh_proto.derp.frames import PeerGone as PeerGoneFrame
from iroh_proto.derp.inbox import Inbox
from iroh_proto.derp.node_names import NodeNames
from iroh_proto.derp.ping_tracker import PingTracker
from iroh_proto.derp.rate import TokenBucket
from iroh_proto.derp.send_queue import OLDEST_DROPPED, SendQueue
from iroh_proto.derp.upgrade import ClientUpgrade
from iroh_proto.errors import DecodeError, LocalProtocolError, RemoteProtocolError
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.timers import LatestTime, earliest

CONNECT_TIMEOUT = 10.0
"""Seconds from :meth:`DerpClient.start` to the end of the handshake (upstream's dial budget)."""

LISTEN_TIME = 1.0
"""Seconds that a server of unknown generation has to speak first. One of v2 does so in the flight
of its 101; the wait is for slow machines."""

_ALL = 1 << 30  # the queue is bounded, far below this
_FIRST_BYTE_OF_SERVER_KEY = 1
_MILLISECOND = 0.001

_State: TypeAlias = Literal["idle", "upgrading", "listening", "handshaking", "connected", "over"]


class DerpClient:
    """One connection to a DERP server, from the HTTP request on.

    :param url: the server; its path does not count.
    :param dialect: a key of :data:`~iroh_proto.derp.dialects.DIALECTS`; ``None`` to find out.
    :param approach: how to begin, when an earlier connection has shown that; by default what
        ``url`` and ``dialect`` make likely.
    :param names: the nodes that other connections of this side know by their X25519 keys, to be
        shared with this one.
    :param token: what to show to a server that lets in none without one.
    :raises LocalProtocolError: if there is no such dialect.
    """

    def __init__(
        self,
        *,
        url: DerpUrl,
        secret_key: SecretKey,
        rng: random.Random,
        dialect: str | None = None,
        approach: Approach | None = None,
        names: NodeNames | None = None,
        token: str | None = None,
    ) -> None:
        self._secret_key = secret_key
        self._rng = rng
        self._configured = dialect
        self._is_tls = url.is_tls
        self._names = NodeNames() if names is None else names
        self._approach = approach or first_approach(url, dialect, has_token=token is not None)
        self._upgrade = ClientUpgrade(
            url=url,
            path=self._approach.path,
            form=self._approach.form,
            upgrade=self._approach.upgrade,
            rng=rng,
            subprotocols=self._approach.subprotocols,
            token=token,
        )
        self._state: _State = "idle"
        self._dialect: Dialect | None = None
        self._codec: FrameCodec | None = None
        self._handshake: ClientHandshake | None = None
        self._bucket: TokenBucket | None = None
        self._packet_overhead = 0
        self._is_preferred = False
        self._time = LatestTime()
        self._connect_deadline: float | None = None
        self._listen_deadline: float | None = None
        self._tracker: PingTracker | None = None
        self._has_ponged = False
        self._events: deque[DerpClientEvent] = deque()
        self._queue = SendQueue(OLDEST_DROPPED)
        self._stats = DerpClientStats()
        self._inbox = Inbox(self._stats)

    # Getters

    @property
    def is_connected(self) -> bool:
        """Whether datagrams may be sent. See :class:`DerpConnected` on when others reach us."""
        return self._state == "connected"

    @property
    def has_ponged(self) -> bool:
        """Whether the server ever answered a ping, which makes it worth coming back to at once."""
        return self._has_ponged

    @property
    def has_data_to_send(self) -> bool:
        """Whether :meth:`data_to_send` has something."""
        return bool(self._queue)

    @property
    def stats(self) -> DerpClientStats:
        """A copy of the counts."""
        return replace(self._stats)

    def has_heard_of(self, node_id: NodeId) -> bool:
        """Say whether the node sent something, and the server has not said since that it left."""
        return self._inbox.has_heard_of(node_id)

    # Commands

    def start(self, *, now: float) -> None:
        """Begin to speak: the connection stands.

        :raises LocalProtocolError: if it was started before.
        """
        now = self._time.advance(now)
        if self._state != "idle":
            raise LocalProtocolError("this client was started before")
        self._state = "upgrading"
        self._connect_deadline = now + CONNECT_TIMEOUT
        self._queue.push_control(self._upgrade.request)

    def send_datagrams(self, dst: NodeId, datagrams: Sequence[bytes], *, now: float) -> None:
        """Send datagrams to a node through the server, together where they fit.

        Past the limits of the queue the oldest packets go. After the end they are counted only.

        :raises LocalProtocolError: before :class:`DerpConnected`, or for a datagram that is too
            long.
        """
        now = self._time.advance(now)
        payloads = pack_datagrams(datagrams)
        if self._state == "over":
            self._stats.datagrams_unsent += len(datagrams)
            return
        if self._state != "connected" or self._codec is None:
            raise LocalProtocolError("datagrams may be sent once the client is connected")
        if self._dialect is not None and self._dialect.has_curve_keys:
            self._names.want(dst)
            if self._bucket is not None:  # which counts each packet, and each holds one datagram
                payloads = [payload for one in datagrams for payload in pack_datagrams([one])]
        for payload in payloads:
            if self._is_too_fast(payload, now):
                continue
            packet = self._codec.encode_packets(dst, [payload])
            if packet:  # later dialects have no empty datagrams
                self._stats.packets_dropped += self._queue.push_packets(packet, 1)
        self._stats.datagrams_sent += len(datagrams)

    def note_preferred(self, preferred: bool, *, now: float) -> None:
        """Say whether this server is the home; it is told as soon as it can be."""
        self._time.advance(now)
        if preferred != self._is_preferred and self._state == "connected":
            self._tell_preference(preferred)
        self._is_preferred = preferred

    def ping(self, *, now: float) -> None:
        """Have the server show by a pong, due in 5 s or sooner, that the connection works.

        Without it the connection is lost, by the rules of :mod:`iroh_proto.derp.pong_wait`. Before
        :class:`DerpConnected` and after the end nothing happens.
        """
        now = self._time.advance(now)
        if self._tracker is not None and not self._tracker.awaits_strictly():
            self._send_ping(self._tracker, now, is_strict=True)

    def close(self, *, now: float) -> None:
        """End the connection; what is queued may still be written."""
        self._time.advance(now)
        if self._state == "over":
            return
        if self._state == "connected" and self._codec is not None:
            self._push_control(self._codec.goodbye())
        else:
            self._queue = SendQueue(OLDEST_DROPPED)
        self._end(None)

    # Bytes and time

    def receive_data(self, data: bytes, *, now: float) -> None:
        """Take bytes from the server, cut anywhere.

        :raises LocalProtocolError: before :meth:`start`.
        """
        now = self._time.advance(now)
        if self._state == "idle":
            raise LocalProtocolError("this client was not started")
        if data and self._state == "upgrading":
            data = self._receive_upgrade(data, now)
        if data and self._state == "listening":
            is_v2 = data[0] == _FIRST_BYTE_OF_SERVER_KEY
            self._speak("v2" if is_v2 else "v3", now)
        if data and self._codec is not None and self._state != "over":
            self._receive_frames(self._codec, data, now)

    def receive_eof(self, *, now: float) -> None:
        """Take the end of the stream, orderly or not.

        :raises LocalProtocolError: before :meth:`start`.
        """
        self._time.advance(now)
        if self._state == "idle":
            raise LocalProtocolError("this client was not started")
        if self._state != "over":
            is_mute = self._state == "upgrading" and not self._is_tls  # as a port of HTTPS is
            hint = "; is it https://?" if is_mute else ""
            self._lose(f"the server closed the connection{hint}")

    def data_to_send(self, size_wanted: int = _ALL) -> bytes:
        """Return the bytes to write, and forget them; empty when there are none.

        :param size_wanted: about how many to return; packets are only pushed out of the queue as
            long as they are in it.
        """
        return self._queue.pull(size_wanted)

    def received_payloads(self) -> list[ReceivedDatagrams]:
        """Return what other nodes sent, in order, and forget it."""
        return self._inbox.take()

    def next_event(self) -> DerpClientEvent | None:
        """Return the oldest queued event and forget it, or ``None``."""
        return self._events.popleft() if self._events else None

    def get_timer(self) -> float | None:
        """Return the earliest deadline, or ``None``. Changes nothing."""
        return earliest(
            self._connect_deadline,
            self._listen_deadline,
            None if self._tracker is None else self._tracker.get_timer(),
        )

    def handle_timer(self, *, now: float) -> None:
        """Let every deadline at or before ``now`` expire."""
        now = self._time.advance(now)
        if _is_due(self._connect_deadline, now):
            self._lose(f"the server did not answer within {CONNECT_TIMEOUT:g} s")
        if _is_due(self._listen_deadline, now):
            self._speak("v3", now)
        if self._tracker is not None:
            self._check_pulse(self._tracker, now)

    # The way to a connection

    def _receive_upgrade(self, data: bytes, now: float) -> bytes:
        """Take bytes of the HTTP answer and return those behind it."""
        trailing = self._upgrade.receive(data)
        status = self._upgrade.status
        if self._upgrade.error is not None:
            self._lose(str(self._upgrade.error))
        elif self._upgrade.is_switched:
            self._begin(now)
        elif status is not None:
            retry = next_approach(self._approach, status, dialect=self._configured)
            path = self._approach.path
            hint = ""
            if status == HTTPStatus.NOT_FOUND:
                instead = "" if self._is_tls else "; if it has HTTPS, use that URL"
                hint = f": no DERP server there{instead}"
            self._lose(f"the server answered GET {path} with status {status}{hint}", retry)
        return trailing

    def _begin(self, now: float) -> None:
        wanted = self._approach.dialect
        chosen = self._upgrade.subprotocol
        if chosen is not None:
            self._speak(SUBPROTOCOLS[chosen], now)
        elif wanted is None and self._upgrade.names_derp_key:
            self._speak("tailscale", now)
        elif self._approach.form == "websocket" and wanted in (None, "v3"):
            self._speak("v3", now)
        elif self._approach.subprotocols:
            self._lose("the server chose no websocket subprotocol")
        elif wanted is None:
            self._state = "listening"
            self._listen_deadline = now + LISTEN_TIME
        else:
            self._speak(wanted, now)

    def _speak(self, name: str, now: float) -> None:
        """Begin the handshake of a dialect."""
        self._listen_deadline = None
        self._dialect = dialect = DIALECTS[name]
        self._codec = dialect.client_codec(self._approach.form, rng=self._rng)
        self._handshake = self._new_handshake(dialect)
        self._state = "handshaking"
        for frame in self._handshake.begin():
            self._send(frame)
        if self._handshake.is_done:
            self._connect(self._handshake, now)

    def _new_handshake(self, dialect: Dialect) -> ClientHandshake:
        return dialect.client_handshake(secret_key=self._secret_key, rng=self._rng)

    def _connect(self, handshake: ClientHandshake, now: float) -> None:
        assert self._dialect is not None
        self._state = "connected"
        self._connect_deadline = None
        self._tracker = PingTracker(self._dialect, now=now)
        if (rate := handshake.send_rate) is not None:
            self._packet_overhead = rate.overhead
            self._bucket = TokenBucket(
                per_second=rate.bytes_per_second, limit=rate.burst_bytes, now=now
            )
        name = self._dialect.name
        approach = self._approach._replace(dialect=name)
        self._events.append(DerpConnected(dialect=name, approach=approach))
        if self._is_preferred:
            self._tell_preference(True)
        self._send_ping(self._tracker, now, is_strict=False)

    # Frames

    def _receive_frames(self, codec: FrameCodec, data: bytes, now: float) -> None:
        for frame in codec.receive(data):
            if self._tracker is None:
                self._receive_handshake(frame, now)
            elif isinstance(frame, RecvPacket):
                datagrams = split_datagrams(frame.payload)
                if packed_size(datagrams) != len(frame.payload):
                    self._stats.payloads_cut_short += 1
                self._inbox.put(frame.src, datagrams)
            else:
                self._receive_other(self._tracker, frame, now)
            if self._state == "over":
                return
        if self._tracker is not None:
            self._tracker.note_data(now)
        self._push_control(codec.replies())
        if codec.error is not None:
            self._lose(str(codec.error))
        elif codec.is_closed:
            self._lose("the server closed the websocket")

    def _receive_handshake(self, frame: Frame, now: float) -> None:
        assert self._handshake is not None
        try:
            replies = self._handshake.receive(frame)
        except DecodeError as error:
            self._lose(str(error))
            return
        for reply in replies:
            self._send(reply)
        if self._handshake.is_done:
            self._connect(self._handshake, now)

    def _receive_other(self, tracker: PingTracker, frame: Frame, now: float) -> None:
        match frame:
            case RecvDatagram() | RecvDatagramBatch():
                self._inbox.put(frame.src, frame.datagrams())
            case CurveRecvPacket():
                self._receive_datagram(frame)
            case KeepAlive() | UnknownFrame() | CurvePeerPresent():
                pass
            case Ping():
                self._send(Pong(frame.data))
            case Pong():
                latency = tracker.note_pong(frame.data, now=now)
                if latency is not None:
                    self._has_ponged = True
                    self._events.append(PongReceived(latency=latency))
            case PeerGoneFrame():
                self._forget_peer(frame.node_id)
            case CurvePeerGone():
                if (node_id := self._names.find(frame.key)) is not None:
                    self._forget_peer(node_id)
            case Health():
                problem = "" if frame.problem == RECOVERED else frame.problem
                self._events.append(HealthReported(problem=problem))
            case Status():
                self._events.append(HealthReported(problem=frame.problem))
            case Restarting():
                self._events.append(
                    RestartAnnounced(
                        reconnect_in=frame.reconnect_in * _MILLISECOND,
                        try_for=frame.try_for * _MILLISECOND,
                    )
                )
            case _:
                self._lose(f"a server does not send {type(frame).__name__} to a client")

    def _receive_datagram(self, packet: CurveRecvPacket) -> None:
        node_id = self._names.sender(packet.src, packet.payload)
        if node_id is None:
            self._stats.strangers_dropped += 1
        else:
            self._inbox.put(node_id, [packet.payload])

    def _forget_peer(self, node_id: NodeId) -> None:
        self._inbox.forget(node_id)
        self._events.append(PeerGone(node_id=node_id))

    def _check_pulse(self, tracker: PingTracker, now: float) -> None:
        fault = tracker.find_fault(now)
        if fault is not None:
            self._lose(fault)
        elif tracker.should_ping(now):
            self._send_ping(tracker, now, is_strict=False)

    def _send_ping(self, tracker: PingTracker, now: float, *, is_strict: bool) -> None:
        data = self._rng.randbytes(PING_SIZE)
        tracker.note_ping(data, is_strict=is_strict, now=now)
        self._send(Ping(data))

    def _tell_preference(self, preferred: bool) -> None:
        if self._dialect is not None and self._dialect.tells_preference:
            self._send(NotePreferred(preferred))

    def _is_too_fast(self, payload: bytes, now: float) -> bool:
        cost = self._packet_overhead + len(payload)
        if self._bucket is None or self._bucket.take(cost, now=now):
            return False
        self._stats.datagrams_unsent += len(split_datagrams(payload))
        return True

    def _send(self, frame: Frame) -> None:
        assert self._codec is not None
        self._push_control(self._codec.encode(frame))

    def _push_control(self, data: bytes) -> None:
        if data and not self._queue.push_control(data):
            self._stats.replies_dropped += 1

    # The end

    def _lose(self, reason: str, retry: Approach | None = None) -> None:
        self._stats.packets_dropped += self._queue.packets
        self._queue = SendQueue(OLDEST_DROPPED)
        self._end(RemoteProtocolError(reason), retry or self._guess())

    def _guess(self) -> Approach | None:
        """Return how to go on with a server that was silent at first and then disappointed."""
        was_a_guess = self._approach.dialect is None and self._approach.form == "framed"
        if not was_a_guess or self._dialect is not DIALECTS["v3"] or self._has_ponged:
            return None
        return self._approach._replace(dialect="v2")

    def _end(self, error: Exception | None, retry: Approach | None = None) -> None:
        self._state = "over"
        self._connect_deadline = self._listen_deadline = None
        self._tracker = None
        self._events.append(ConnectionLost(error=error, retry=retry))


def _is_due(deadline: float | None, now: float) -> bool:
    return deadline is not None and deadline <= now
