"""A DERP server of several processes: one that looks after the others, and those that serve.

All of them listen on one port, and the kernel gives each a part of the connections
(``SO_REUSEPORT``). Workers find each other's clients by the mesh that servers have, over sockets
without a name that this process makes for them. It also answers STUN and address discovery, which
concern no client in particular, shows the metrics of all, and says of clients with the same key at
different workers which is the newest.
"""

from __future__ import annotations

import logging
import secrets
import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import anyio
from anyio.abc import TaskStatus
from anyio.lowlevel import checkpoint

from iroh_anyio.derper.config import DerperConfig
from iroh_anyio.derper.control import (
    Accept,
    Arrived,
    Counted,
    Departed,
    Dial,
    Dialled,
    Drain,
    Failed,
    Message,
    Ready,
    Reinstate,
    Reload,
    Serving,
    SetAside,
    Start,
    settings_file,
)
from iroh_anyio.derper.metrics import DerperCounts, sum_counts
from iroh_anyio.derper.seats import Move, Seats
from iroh_anyio.derper.server import (
    LEAVE_TIMEOUT,
    RELOADABLE,
    check_libraries,
    server_url,
    waiting_keys,
)
from iroh_anyio.derper.side_services import Opened, SideServices
from iroh_anyio.derper.worker_process import END_TIMEOUT, WorkerProcess
from iroh_anyio.listen import listen
from iroh_anyio.service import Service
from iroh_proto.derp.dialects import ClientKey
from iroh_proto.derp.mesh_key import MESH_KEY_SIZE, MeshKey
from iroh_proto.derp.relay_events import DerpServerStats
from iroh_proto.key import SecretKey
from iroh_proto.stun.server import StunServerStats

logger = logging.getLogger("iroh_anyio.derper")

START_TIMEOUT = 60.0
"""Seconds in which all workers must serve at first."""

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 10.0
"""Seconds before a worker that died is started again: doubled each time it dies soon."""

STEADY_TIME = 10.0
"""Seconds after which a worker that dies has not died soon."""

WAITING_PEERS_LIMIT = 8
"""Connections of one worker to another one that wait for this one to be started again."""

PEER_BUFFER_SIZE = 4 * 1024 * 1024
"""Bytes asked of the kernel for packets on the way from one worker to another."""


class WorkersFailed(OSError):
    """The workers of a server could not begin."""


class DerperPool(Service):
    """A DERP server of several processes. Made by :meth:`open`, run by ``async with``.

    Ports are those of :class:`~iroh_anyio.derper.server.Derper`.
    """

    def __init__(self, config: DerperConfig, opened: Opened) -> None:
        super().__init__()
        self._config = replace(config, secret_key=config.secret_key or SecretKey.generate())
        self._holders = opened.sockets.main
        self._host, self.port = self._holders[0].getsockname()[:2]
        self._scheme = "http" if opened.main_context(config) is None else "https"
        self._sides = SideServices(config, opened, main_port=self.port, count=self.count)
        self.quic_port = self._sides.quic_port
        self.stun_port = self._sides.stun_port
        self.plain_port = self._sides.plain_port
        self.metrics_port = self._sides.metrics_port
        self._mesh_key = MeshKey(secrets.token_bytes(MESH_KEY_SIZE))
        self._workers: dict[int, WorkerProcess] = {}
        self._seats = Seats()
        self._waiting_peers: dict[int, deque[socket.socket]] = {}
        self._past = DerperCounts(server=DerpServerStats(), stun=StunServerStats())
        self._began = anyio.Event()
        self._ending = anyio.Event()
        self._all_ended = anyio.Event()
        self._failed_start: str | None = None

    @classmethod
    async def open(cls, config: DerperConfig) -> Self:
        """Take the ports of a server with these settings; it serves once it is entered.

        :raises OSError: if a port cannot be had.
        :raises CertificateError: if the certificate cannot be used.
        :raises ModuleNotFoundError: if a setting needs a library that is not installed.
        """
        await checkpoint()
        check_libraries(config)
        return cls(config, await Opened.by(config, shares_main=True))

    @property
    def url(self) -> str:
        """The URL for clients on this host; others need a name or address of it instead."""
        return server_url(self._scheme, self._host, self.port)

    @property
    def pids(self) -> list[int]:
        """The processes of the workers that serve."""
        return [worker.pid for worker in self._workers.values() if worker.is_serving]

    def worker_of(self, key: ClientKey) -> int | None:
        """Return the number of the worker that has the newest client with a key."""
        return self._seats.worker_of(key)

    def reload(self, config: DerperConfig) -> list[str]:
        """Take up the settings that can change while it runs, and read the certificate again.

        :returns: the keys, as in the file, of what differs and holds only after a restart.
        :raises ModuleNotFoundError: if a setting needs a library that is not installed; nothing
            has changed then.
        :raises OSError: if the system has no file left to tell the workers by; nothing has changed
            then.
        """
        check_libraries(config)
        before = self._config
        config = replace(config, secret_key=config.secret_key or before.secret_key)
        after = replace(before, **{name: getattr(config, name) for name in RELOADABLE})
        with settings_file(after) as settings:
            self._config = after
            self._sides.reload_certificate()
            for worker in self._workers.values():
                if worker.is_started:
                    worker.channel.send(Reload(), [settings])
        return waiting_keys(before, config)

    async def drain(self) -> None:
        """Have all workers tell their clients that the server goes away, and end.

        It returns when they have ended, within the configured ``drain_time`` and a little more.
        """
        self._ending.set()
        self._close_holders()
        for worker in self._workers.values():
            worker.channel.send(Drain())
            if not worker.is_started:
                worker.channel.close()
        with anyio.move_on_after(self._config.drain_time + LEAVE_TIMEOUT + END_TIMEOUT):
            await self._all_ended.wait()

    async def close(self) -> None:
        """Stop all workers and let go of the sockets. Bounded, not cancellable, idempotent."""
        await super().close()
        await self._sides.close()

    async def _run(self, *, task_status: TaskStatus[None]) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                await self._sides.start(tasks)
                tasks.start_soon(self._keep_all)
                with anyio.move_on_after(START_TIMEOUT):
                    await self._began.wait()
                if self._failed_start is not None or not self._began.is_set():
                    raise WorkersFailed(self._failed_start or "the workers do not answer")
                logger.info("serving %s by %d workers", self.url, self._config.workers)
                task_status.started()
        finally:
            self._release_main()

    async def _stop(self) -> None:
        self._ending.set()
        self._sides.stop()
        for worker in self._workers.values():
            worker.channel.close()
        await self._all_ended.wait()

    def _release(self) -> None:
        self._release_main()
        self._sides.release()

    def _release_main(self) -> None:
        self._close_holders()
        for peers in self._waiting_peers.values():
            while peers:
                peers.popleft().close()

    def _close_holders(self) -> None:
        for holder in self._holders:
            holder.close()

    # Processes

    async def _keep_all(self) -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(self._config.workers):
                tasks.start_soon(self._keep, number)
        self._all_ended.set()

    async def _keep(self, number: int) -> None:
        """Have a worker of this number run until the server ends."""
        pause = FIRST_PAUSE
        while not self._ending.is_set():
            started = anyio.current_time()
            outcome = await self._run_worker(number)
            if self._ending.is_set():
                return
            if not self._began.is_set():
                self._failed_start = f"worker {number}: {outcome}"
                self._began.set()
                return
            if anyio.current_time() - started >= STEADY_TIME:
                pause = FIRST_PAUSE
            logger.error("worker %d ended: %s; another one in %g s", number, outcome, pause)
            with anyio.move_on_after(pause):
                await self._ending.wait()
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _run_worker(self, number: int) -> str:
        """Run a worker until it ends, and say how it did."""
        try:
            worker = await WorkerProcess.start()
        except OSError as error:
            return str(error)
        self._workers[number] = worker
        try:
            if not self._ending.is_set():
                await worker.run(lambda message, files: self._heed(number, message, files))
        finally:
            await worker.end()
            self._forget(number)
        return worker.outcome

    def _give_settings(self, number: int) -> None:
        """Have a worker begin, with a listener of its own on the common port.

        It is opened only now: the kernel gives it connections from this moment on.
        """
        worker = self._workers[number]
        ips = [holder.getsockname()[0] for holder in self._holders]
        try:
            listeners = listen(ips, self.port, shares_port=True)
        except OSError as error:
            worker.error = str(error)
            worker.channel.close()
            return
        start = Start(
            worker=number,
            workers=self._config.workers,
            mesh_secret_key=SecretKey.generate(),
            mesh_key=self._mesh_key,
            log_level=logging.getLogger().getEffectiveLevel(),
        )
        with settings_file(self._config) as settings:
            worker.channel.send(start, [settings, *(listener.fileno() for listener in listeners)])
        for listener in listeners:
            listener.close()
        worker.is_started = True
        for peer in self._waiting_peers.pop(number, ()):
            self._introduce(worker, peer)

    def _forget(self, number: int) -> None:
        worker = self._workers.pop(number)
        if worker.counts is not None:
            ended = replace(worker.counts, clients=0, connections=0)
            self._past = sum_counts([self._past, ended])
        for key, heir in self._seats.forget(number):
            self._tell(heir, Reinstate(key=key))

    # What workers say

    def _heed(self, number: int, message: Message, files: Sequence[int]) -> None:
        worker = self._workers[number]
        match message:
            case Ready():
                if not self._ending.is_set():
                    self._give_settings(number)
            case Serving():
                worker.is_serving = True
                if len(self.pids) == self._config.workers:
                    self._began.set()
            case Failed(error=error):
                worker.error = error
            case Dial(tcp_id=tcp_id, worker=target):
                self._connect(worker, tcp_id, target)
            case Arrived(key=key):
                self._move(key, self._seats.arrive(number, key))
            case Departed(key=key):
                self._move(key, self._seats.depart(number, key))
            case Counted(counts=counts):
                worker.counts = counts
            case _:
                raise AssertionError(f"no worker says {message}")

    def _move(self, key: ClientKey, move: Move) -> None:
        if move.set_aside is not None:
            self._tell(move.set_aside, SetAside(key=key))
        if move.reinstate is not None:
            self._tell(move.reinstate, Reinstate(key=key))

    def _tell(self, number: int, message: Message) -> None:
        if (worker := self._workers.get(number)) is not None:
            worker.channel.send(message)

    def _connect(self, worker: WorkerProcess, tcp_id: int, target: int) -> None:
        """Make a connection between two workers."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PEER_BUFFER_SIZE)
        worker.channel.send(Dialled(tcp_id=tcp_id), [ours.fileno()])
        ours.close()
        other = self._workers.get(target)
        if other is not None and other.is_started:
            self._introduce(other, theirs)
            return
        waiting = self._waiting_peers.setdefault(target, deque())
        waiting.append(theirs)
        if len(waiting) > WAITING_PEERS_LIMIT * self._config.workers:
            waiting.popleft().close()

    def _introduce(self, worker: WorkerProcess, peer: socket.socket) -> None:
        worker.channel.send(Accept(), [peer.fileno()])
        peer.close()

    def count(self) -> DerperCounts:
        """Return what all workers have counted, of whom each tells it every second or so."""
        counts = [worker.counts for worker in self._workers.values() if worker.counts is not None]
        return replace(
            sum_counts([self._past, *counts]),
            stun=self._sides.stun_stats,
            qad=self._sides.qad_stats,
            certificate_expires=self._sides.certificate_expires,
        )
