"""How a client comes to a DERP server: from its request to the proof of its key.

States::

    request -> [listening] -> handshake -> [applying] -> let in
       '--> over (a page was answered)

``listening`` is for a request that both v2 and v3 clients send (see
:mod:`iroh_proto.derp.reception`). A v3 client speaks first, a v2 client waits for the server and
a v3 client takes the server's first frame for an error, so the server waits a moment for the
client and only then speaks. ``applying`` is for a server that asks who may use it: the client has
proven its key and is left unread until its access is decided on.

Source: iroh v0.12.0 ``iroh-net/src/derp/client_conn.rs``, v0.35.0 and v1.0.3
``iroh-relay/src/server/{client,http_server}.rs``.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable
from enum import Enum, auto
from typing import NamedTuple, TypeAlias, assert_never

from iroh_proto.derp.access import ACCESS_TIMEOUT, APPLICANT_BYTES_LIMIT, token_of
from iroh_proto.derp.codec import Form, FrameCodec
from iroh_proto.derp.dialects import DIALECTS, ClientKey, Dialect, ServerHandshake
from iroh_proto.derp.frames import Frame
from iroh_proto.derp.mesh_key import MeshKey
from iroh_proto.derp.pages import Page, refusal
from iroh_proto.derp.reception import Admission, receive_request
from iroh_proto.derp.send_queue import SendQueue
from iroh_proto.derp.server_events import ConnectionStats, DerpServerConnectionEvent, KeyProven
from iroh_proto.derp.upgrade import ServerUpgrade
from iroh_proto.errors import DecodeError
from iroh_proto.key import SecretKey
from iroh_proto.x25519 import x25519_of

REQUEST_TIMEOUT = 10.0
"""Seconds from the start to the end of the request's head."""

HANDSHAKE_TIMEOUT = 10.0
"""Seconds from the HTTP upgrade to the proof of the client's key (upstream's)."""

HANDSHAKE_BYTES_LIMIT = 8_192
"""Bytes to receive behind the HTTP upgrade before a key is proven. Handshakes have some 150; a
stranger may not make the server buffer more."""

LISTEN_TIMEOUT = 0.3
"""Seconds to wait for a v3 client to speak before the server speaks as v2. A client further away
than this, one round trip, is served on ``/relay`` only."""


class Session:
    """What speaks with a client behind the HTTP upgrade."""

    __slots__ = ("codec", "dialect", "form", "handshake")

    def __init__(
        self, dialect: Dialect, form: Form, secret_key: SecretKey, rng: random.Random
    ) -> None:
        self.dialect = dialect
        self.form = form
        self.codec: FrameCodec = dialect.server_codec(form)
        self.handshake: ServerHandshake = dialect.server_handshake(secret_key=secret_key, rng=rng)


class Entered(NamedTuple):
    """The client is let in.

    :ivar behind: what was read behind its proof.
    """

    session: Session
    node_id: ClientKey
    is_mesh_member: bool
    behind: bytes


class EntryOver(NamedTuple):
    """The connection is to end, for a fault unless ``problem`` is ``None``."""

    problem: str | None


EntryOutcome: TypeAlias = Entered | EntryOver
"""What an entry ends with, after which it takes no more input."""


class _State(Enum):
    REQUEST = auto()
    LISTENING = auto()
    HANDSHAKE = auto()
    APPLYING = auto()


class ServerEntry:
    """One client on its way in.

    :param queue: where to put what is to be written.
    :param events: where to tell of a key that is proven.
    :param stats: where to count.

    The others are those of :class:`~iroh_proto.derp.server.DerpServerConnection`.

    :ivar session: what speaks with the client, behind the HTTP upgrade.
    """

    __slots__ = (
        "_applicant",
        "_asks_access",
        "_deadline",
        "_events",
        "_handshake_bytes",
        "_listen_deadline",
        "_listen_dialect",
        "_mesh_key",
        "_queue",
        "_rng",
        "_secret_key",
        "_state",
        "_stats",
        "_token",
        "_unread",
        "_upgrade",
        "session",
    )

    def __init__(
        self,
        *,
        secret_key: SecretKey,
        rng: random.Random,
        listen_dialect: str | None,
        asks_access: bool,
        mesh_key: MeshKey | None,
        queue: SendQueue,
        events: deque[DerpServerConnectionEvent],
        stats: ConnectionStats,
        now: float,
    ) -> None:
        self._secret_key = secret_key
        self._rng = rng
        self._listen_dialect = listen_dialect
        self._asks_access = asks_access
        self._mesh_key = mesh_key
        self._queue = queue
        self._events = events
        self._stats = stats
        self._state = _State.REQUEST
        self._upgrade = ServerUpgrade()
        self._handshake_bytes = 0
        self._token: str | None = None
        self._applicant: ClientKey | None = None
        self._unread = bytearray()
        self._deadline = now + REQUEST_TIMEOUT
        self._listen_deadline = math.inf
        self.session: Session | None = None

    @property
    def deadline(self) -> float:
        """When :meth:`handle_timer` has something to do, in seconds."""
        return min(self._deadline, self._listen_deadline)

    @property
    def is_applying(self) -> bool:
        """Whether the client waits for the decision on its access, unread."""
        return self._state is _State.APPLYING

    def receive(self, data: bytes, now: float) -> EntryOutcome | None:
        """Take bytes that arrived, cut anywhere."""
        match self._state:
            case _State.REQUEST:
                return self._receive_request(data, now)
            case _State.LISTENING:
                self._listen_deadline = math.inf
                self._begin_session("v3", "framed")
                return self._receive_handshake(data, now)
            case _State.HANDSHAKE:
                return self._receive_handshake(data, now)
            case _State.APPLYING:
                return self._keep_unread(data)
            case _:
                assert_never(self._state)

    def decide(self, *, allowed: bool, reason: str | None) -> EntryOutcome:
        """Let in a client that applies, or do not."""
        assert self._applicant is not None
        if allowed:
            return self._let_in(self._applicant, bytes(self._unread), is_mesh_member=False)
        return self._deny(reason)

    def handle_timer(self, now: float) -> EntryOutcome | None:
        """Take that ``now`` the :attr:`deadline` has come."""
        if self._deadline <= now:
            return self._run_out_of_time()
        self._listen_deadline = math.inf
        self._begin_session("v2", "framed")
        return None

    def _receive_request(self, data: bytes, now: float) -> EntryOutcome | None:
        request = self._upgrade.receive(data)
        if self._upgrade.error is not None:
            self._answer(refusal("this is no HTTP request"))
            return EntryOver(str(self._upgrade.error))
        if request is None:
            return None
        outcome = receive_request(request, derp_key=x25519_of(self._secret_key.public))
        if isinstance(outcome, Page):
            self._answer(outcome)
            return EntryOver(None)
        self._token = token_of(request) if self._asks_access else None
        return self._admit(outcome, now)

    def _answer(self, page: Page) -> None:
        self._stats.requests_answered += 1
        self._send(self._upgrade.respond(*page))

    def _admit(self, admission: Admission, now: float) -> EntryOutcome | None:
        if admission.headers is None:
            behind = self._upgrade.switch_silently()
        else:
            answer, behind = self._upgrade.switch(admission.headers)
            self._send(answer)
        self._deadline = now + HANDSHAKE_TIMEOUT
        dialect = admission.dialect or self._listen_dialect
        if dialect is None:
            self._state = _State.LISTENING
            self._listen_deadline = now + LISTEN_TIMEOUT
        else:
            self._begin_session(dialect, admission.form)
        return self.receive(behind, now) if behind else None

    def _begin_session(self, dialect: str, form: Form) -> None:
        self._state = _State.HANDSHAKE
        self.session = Session(DIALECTS[dialect], form, self._secret_key, self._rng)
        self._queue.rule = self.session.dialect.queue_rule
        self._send_frames(self.session, self.session.handshake.begin())

    def _receive_handshake(self, data: bytes, now: float) -> EntryOutcome | None:
        session = self.session
        assert session is not None
        codec, handshake = session.codec, session.handshake
        allowed = HANDSHAKE_BYTES_LIMIT - self._handshake_bytes
        frame = codec.receive_one(data[:allowed])
        self._handshake_bytes += len(data)
        self._send(codec.replies())
        if frame is None:
            if codec.error is not None:
                return EntryOver(str(codec.error))
            if codec.is_closed:
                return EntryOver(None)
            if self._handshake_bytes >= HANDSHAKE_BYTES_LIMIT:
                return EntryOver(f"no handshake in {HANDSHAKE_BYTES_LIMIT} bytes")
            return None
        try:
            node_id = handshake.receive(frame)
        except DecodeError as error:
            self._send_frames(session, handshake.reject())
            return EntryOver(str(error))
        is_mesh_member = self._mesh_key is not None and handshake.mesh_key == self._mesh_key
        if not self._asks_access or is_mesh_member:
            return self._let_in(node_id, data[allowed:], is_mesh_member=is_mesh_member)
        self._state = _State.APPLYING
        self._applicant = node_id
        self._deadline = now + ACCESS_TIMEOUT
        token, self._token = self._token, None
        self._events.append(KeyProven(node_id=node_id, dialect=session.dialect.name, token=token))
        return self._keep_unread(data[allowed:])

    def _keep_unread(self, data: bytes) -> EntryOutcome | None:
        self._unread += data
        if len(self._unread) > APPLICANT_BYTES_LIMIT:
            limit = APPLICANT_BYTES_LIMIT
            return EntryOver(f"more than {limit} bytes before access was decided on")
        return None

    def _let_in(self, node_id: ClientKey, behind: bytes, *, is_mesh_member: bool) -> Entered:
        assert self.session is not None
        self._send_frames(self.session, self.session.handshake.accept())
        return Entered(self.session, node_id, is_mesh_member, behind)

    def _deny(self, reason: str | None) -> EntryOver:
        assert self.session is not None
        self._stats.clients_denied += 1
        self._send_frames(self.session, self.session.handshake.refuse(reason))
        return EntryOver(None)

    def _run_out_of_time(self) -> EntryOver:
        if self._state is _State.APPLYING:
            self._stats.access_timeouts += 1
            return self._deny(None)
        awaited = "request" if self._state is _State.REQUEST else "proof of a key"
        return EntryOver(f"no {awaited} in time")

    def _send_frames(self, session: Session, frames: Iterable[Frame]) -> None:
        for frame in frames:
            self._send(session.codec.encode(frame))

    def _send(self, data: bytes) -> None:
        if data:
            # There is always room: what may be said is bounded by what may be heard, which is
            # HANDSHAKE_BYTES_LIMIT, and nobody has sent the client packets yet.
            self._queue.push_control(data)
