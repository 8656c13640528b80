"""One of the processes of a server that serve clients. Started by :mod:`iroh_anyio.derper.pool`.

It heeds nothing but its control channel: signals are for the process that started it, and when that
one ends, however it does, the channel ends and with it the worker.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace

import anyio
from anyio.abc import TaskGroup

from iroh_anyio.derper.certificates import CertificateError
from iroh_anyio.derper.config import DerperConfig
from iroh_anyio.derper.control import (
    Accept,
    Arrived,
    ControlChannel,
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
    read_settings,
)
from iroh_anyio.derper.descriptors import raise_descriptor_limit
from iroh_anyio.derper.peers import Peers
from iroh_anyio.derper.server import Derper
from iroh_proto.address import DerpUrl
from iroh_proto.derp.dialects import ClientKey
from iroh_proto.derp.mesh import MESH_DIALECTS, MeshServer
from iroh_proto.derp.rate import AcceptLimit

COUNT_INTERVAL = 1.0
"""Seconds between the times that the counts are passed on, which is also a sign of life."""

_PEER_HOST = "worker-"


class Worker:
    """A server that is one of several, and what it hears from the process that started it."""

    def __init__(
        self,
        start: Start,
        config: DerperConfig,
        listeners: Sequence[socket.socket],
        channel: ControlChannel,
    ) -> None:
        self._channel = channel
        self._workers = start.workers
        self._derper = Derper.as_peer(
            share_of(config, start.workers),
            listeners,
            Peers(
                mesh_key=start.mesh_key,
                secret_key=start.mesh_secret_key,
                servers=[
                    MeshServer(DerpUrl.from_str(f"http://{_PEER_HOST}{number}"), dialect)
                    for number in range(start.workers)
                    if number != start.worker
                    for dialect in MESH_DIALECTS
                ],
                dial=self._dial,
                tell=self._tell,
            ),
        )

    async def run(self) -> None:
        """Serve until told to end."""
        async with self._derper, anyio.create_task_group() as tasks:
            self._channel.send(Serving())
            tasks.start_soon(self._pass_on_counts)
            while (received := await self._channel.receive()) is not None:
                self._heed(*received, tasks)
            tasks.cancel_scope.cancel()

    def _heed(self, message: Message, files: Sequence[int], tasks: TaskGroup) -> None:
        match message:
            case Reload():
                self._derper.reload(share_of(read_settings(files[0]), self._workers))
            case Drain():
                tasks.start_soon(self._drain, tasks)
            case Dialled(tcp_id=tcp_id):
                self._derper.complete_dial(tcp_id, socket.socket(fileno=files[0]))
            case Accept():
                self._derper.accept_peer(socket.socket(fileno=files[0]))
            case SetAside(key=key):
                self._derper.set_aside(key)
            case Reinstate(key=key):
                self._derper.reinstate(key)
            case _:
                raise AssertionError(f"a worker is not told {message}")

    async def _drain(self, tasks: TaskGroup) -> None:
        await self._derper.drain()
        self._count()
        tasks.cancel_scope.cancel()

    async def _pass_on_counts(self) -> None:
        while True:
            self._count()
            await anyio.sleep(COUNT_INTERVAL)

    def _count(self) -> None:
        self._channel.send(Counted(counts=self._derper.count()))

    def _dial(self, tcp_id: int, host: str) -> None:
        self._channel.send(Dial(tcp_id=tcp_id, worker=int(host.removeprefix(_PEER_HOST))))

    def _tell(self, key: ClientKey, is_here: bool) -> None:
        self._channel.send(Arrived(key=key) if is_here else Departed(key=key))


def share_of(config: DerperConfig, workers: int) -> DerperConfig:
    """Return the settings of one of several processes that share what is limited for all.

    The kernel spreads connections evenly, but not exactly so.
    """
    limit = config.accept_limit
    return replace(
        config,
        max_connections=math.ceil(config.max_connections / workers),
        accept_limit=None
        if limit is None
        else AcceptLimit(limit.per_second / workers, math.ceil(limit.burst / workers)),
    )


async def serve(control: socket.socket) -> None:
    """Be a worker until the other end of its control channel is closed."""
    channel = ControlChannel(control)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(channel.run_writer)
        channel.send(Ready())
        received = await channel.receive()
        if received is not None:
            await _start(channel, *received)
        channel.close()


async def _start(channel: ControlChannel, start: Message, files: Sequence[int]) -> None:
    assert isinstance(start, Start)
    logging.basicConfig(
        stream=sys.stderr,
        level=start.log_level,
        format=f"%(levelname)s: worker {start.worker}: %(message)s",
    )
    raise_descriptor_limit()
    listeners = [socket.socket(fileno=file) for file in files[1:]]
    try:
        worker = Worker(start, read_settings(files[0]), listeners, channel)
    except (OSError, CertificateError, ModuleNotFoundError) as error:
        channel.send(Failed(error=str(error)))
    else:
        await worker.run()


def main(descriptor: int) -> None:
    """Run a worker with the descriptor of its end of the control channel."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.set_inheritable(descriptor, False)
    anyio.run(serve, socket.socket(fileno=descriptor))


if __name__ == "__main__":
    main(int(sys.argv[1]))
