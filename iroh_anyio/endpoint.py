"""The entry point: an endpoint that dials nodes by their id and is dialled by them."""

from __future__ import annotations

import enum
import logging
import math
import os
import random
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final, Self

import anyio
import certifi
from anyio.abc import TaskStatus
from anyio.lowlevel import checkpoint

from iroh_anyio import host
from iroh_anyio.authorities import Authorities
from iroh_anyio.connection import Connection
from iroh_anyio.derp_watch import DerpWatch
from iroh_anyio.driver import Driver, UdpPort
from iroh_anyio.errors import (
    ConnectionFailed,
    EndpointClosed,
    connect_error,
    connect_timeout,
    no_address,
)
from iroh_anyio.log_files import LogFiles
from iroh_anyio.proxy import HttpProxy
from iroh_anyio.quic.endpoint_machine import EndpointMachine
from iroh_anyio.quic.events import CloseReason, EndpointEvent, EndpointStats
from iroh_anyio.quic.options import AcceptFilter, EndpointOptions
from iroh_anyio.service import Service
from iroh_anyio.signals import Signal
from iroh_anyio.table import ConnectionTable
from iroh_anyio.tcp import TcpDialer
from iroh_anyio.udp import UdpSocket, UdpStats, bind_sockets
from iroh_proto.address import DerpUrl, NodeAddr, UdpAddress
from iroh_proto.derp.map import DerpMap
from iroh_proto.errors import LocalProtocolError
from iroh_proto.key import NodeId, SecretKey
from iroh_proto.magicsock import (
    DirectAddressesChanged,
    DnsRequested,
    HomeDerpChanged,
    InterfacesRequested,
    Magicsock,
    RemoteInfo,
)

logger = logging.getLogger("iroh_anyio.endpoint")

CONNECT_TIMEOUT = 30.0
"""Seconds a connect attempt may take unless told otherwise: three tries of a lossy handshake."""

NODE_ADDR_TIMEOUT = 5.0
"""Seconds :meth:`MagicEndpoint.node_addr` waits: a DERP server out of reach must not block it."""

WATCH_INTERVAL = 5.0
"""Seconds between looks at the interfaces and for a sleep of the machine; each takes 0.3 ms."""


CLOSED = CloseReason(kind="local", code=0, text="", by_peer=False)
FAILED = CloseReason(
    kind="transport", code=1, text="the endpoint was stopped by a defect", by_peer=False
)


class _Unset(enum.Enum):
    UNSET = enum.auto()


UNSET: Final = _Unset.UNSET


class MagicEndpoint(Service):
    """A node: one identity, its UDP sockets, and its connections to other nodes.

    Made by :meth:`bind`, which opens sockets, and run by ``async with``, which starts its tasks.
    Iterating over it gives incoming connections until it is closed.
    """

    def __init__(
        self,
        machine: EndpointMachine,
        sockets: Sequence[UdpSocket],
        dialer: TcpDialer,
        *,
        has_derp: bool,
        log_files: LogFiles,
        on_event: Callable[[EndpointEvent], None] | None,
    ) -> None:
        super().__init__()
        self._machine = machine
        self._has_derp = has_derp
        self._log_files = log_files
        self._observer = on_event
        self._udp = UdpPort(machine, sockets)
        self._tcp = dialer
        self._driver: Driver[EndpointEvent] = Driver(machine, [self._udp, dialer], self._on_event)
        self._is_running = False
        self._table = ConnectionTable(machine, self._driver)
        self._addr_changed = Signal()
        self._interface_ips: list[str] = []
        self._derp_watch = DerpWatch()
        self._handlers: dict[type, Callable[[Any], None]] = {
            **self._table.handlers,
            **self._derp_watch.handlers,
            DirectAddressesChanged: self._on_addr_changed,
            HomeDerpChanged: self._on_addr_changed,
            InterfacesRequested: self._on_interfaces_requested,
            DnsRequested: self._on_dns_requested,
        }

    @classmethod
    async def bind(
        cls,
        *,
        secret_key: SecretKey | None = None,
        alpns: Iterable[bytes] = (),
        derp_map: DerpMap | None = None,
        bind_addrs: Iterable[str | UdpAddress] = ("0.0.0.0:0", "[::]:0"),
        idle_timeout: float | _Unset = UNSET,
        keep_alive_interval: float | _Unset | None = UNSET,
        accept_filter: AcceptFilter | _Unset | None = UNSET,
        options: EndpointOptions | None = None,
        derp_ssl_context: Callable[[], ssl.SSLContext] | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        http_proxy: HttpProxy | str | None = None,
        qlog_dir: str | os.PathLike[str] | None = None,
        keylog_file: str | os.PathLike[str] | None = None,
        trace_file: str | os.PathLike[str] | None = None,
        on_event: Callable[[EndpointEvent], None] | None = None,
    ) -> Self:
        """Open the sockets of an endpoint; its tasks start when it is entered.

        :param secret_key: its identity, by default a new one.
        :param alpns: the protocols it serves; without any it takes no incoming connections.
        :param derp_map: the servers it may be met at; without any it has direct addresses alone.
        :param bind_addrs: where to bind UDP. That IPv6 cannot be had is tolerated.
        :param idle_timeout: seconds of silence after which a connection is given up, 30 unless
            told; the smaller of both sides' counts. What was sent to a peer that died is lost, and
            that is noticed no sooner: have your protocol acknowledge what must not be.
        :param keep_alive_interval: seconds of silence after which a connection is pinged, 5 unless
            told, ``None`` for never.
        :param accept_filter: says by its source whether a handshake may begin.
        :param options: all other settings of QUIC; those above take precedence.
        :param ca_file: PEM certificates of authorities to trust with DERP servers, beside the
            usual ones.
        :param derp_ssl_context: makes the TLS context for DERP servers, instead.
        :param http_proxy: the proxy to reach DERP servers through, by CONNECT; a text such as
            ``http://user:password@proxy.example:8080``. What the environment says does not count,
            unless it is given here: :meth:`HttpProxy.from_env`.
        :param qlog_dir: an existing folder for a qlog file per connection.
        :param keylog_file: a file that TLS secrets are appended to, by default what the
            environment's ``SSLKEYLOGFILE`` says. Whoever has it can read everything.
        :param trace_file: a file to write anew, in which is told why paths are what they are, for
            ``iroh-anyio lab draw`` and ``replay``. No secret key and no payload is in it, but node
            ids and IP addresses are (:mod:`iroh_proto.trace.node_tape`).
        :param on_event: called with every event of the machine, from inside its tasks.
        :raises OSError: if an IPv4 address, or every address, cannot be bound, or a file cannot
            be opened.
        :raises DecodeError: if an address or proxy does not parse.
        :raises LocalProtocolError: if a setting makes no sense.
        :raises TypeError: if a key, a map or the addresses are something else.
        """
        await checkpoint()
        _check_types(secret_key, derp_map, bind_addrs)
        addrs = [
            addr if isinstance(addr, UdpAddress) else UdpAddress.from_str(addr)
            for addr in bind_addrs
        ]
        proxy = HttpProxy.from_str(http_proxy) if isinstance(http_proxy, str) else http_proxy
        options = options or EndpointOptions()
        make_ssl_context = derp_ssl_context or ssl.create_default_context
        if ca_file is not None:
            if derp_ssl_context is not None:
                raise LocalProtocolError("ca_file and derp_ssl_context exclude each other")
            authorities = Authorities.load(ca_file)
            make_ssl_context = authorities.ssl_context
            options = replace(options, ca_certificates=authorities.pem, ca_bundle=certifi.where())
        if idle_timeout is not UNSET:
            options = replace(options, idle_timeout=idle_timeout)
        if keep_alive_interval is not UNSET:
            options = replace(options, keep_alive_interval=keep_alive_interval)
        if accept_filter is not UNSET:
            options = replace(options, accept_filter=accept_filter)
        secret_key = secret_key or SecretKey.generate()
        log_files = LogFiles.open(qlog_dir, keylog_file, trace_file)
        options = log_files.apply(options)
        make_magicsock: Callable[..., Magicsock] = Magicsock
        if log_files.trace is not None:
            make_magicsock = log_files.trace.begin(secret_key, now=anyio.current_time())
            on_event = log_files.trace.observer(on_event)
        sockets: list[UdpSocket] = []
        try:
            machine = EndpointMachine(
                secret_key=secret_key,
                alpns=tuple(alpns),
                derp_map=derp_map,
                rng=random.SystemRandom(),
                unix_time=time.time(),
                options=options,
                make_magicsock=make_magicsock,
            )
            sockets = bind_sockets(addrs)
            dialer = TcpDialer(
                machine,
                ssl_context=make_ssl_context,
                proxy=proxy,
                authority_advice="if its authority is your own, give it by ca_file (--ca-file)",
            )
            has_derp = derp_map is not None and len(derp_map) > 0
            return cls(
                machine, sockets, dialer, has_derp=has_derp, log_files=log_files, on_event=on_event
            )
        except BaseException:
            for udp_socket in sockets:
                udp_socket.close()
            log_files.close()
            raise

    # What it is

    @property
    def node_id(self) -> NodeId:
        """The id that other nodes dial."""
        return self._machine.node_id

    @property
    def machine(self) -> EndpointMachine:
        """The machine behind it, for its counts."""
        return self._machine

    @property
    def stats(self) -> EndpointStats:
        """Counts of packets and handshakes, and of what was dropped."""
        return self._machine.stats

    @property
    def home_derp(self) -> DerpUrl | None:
        """The DERP server at which it can be met, once there is one."""
        return self._machine.magicsock.home_derp

    @property
    def derp_problems(self) -> dict[DerpUrl, str]:
        """DERP servers that could not be reached when last tried, and why; they are tried on."""
        return dict(self._derp_watch.problems)

    @property
    def bound_addresses(self) -> tuple[UdpAddress, ...]:
        """Where its UDP sockets are bound."""
        return tuple(udp_socket.local_address for udp_socket in self._udp.sockets)

    @property
    def udp_stats(self) -> tuple[UdpStats, ...]:
        """Counts of its UDP sockets, in the order of :attr:`bound_addresses`."""
        return tuple(udp_socket.stats for udp_socket in self._udp.sockets)

    @property
    def udp_unroutable(self) -> int:
        """Datagrams dropped because no socket has the IP version of their destination."""
        return self._udp.unroutable

    @property
    def derp_unwritten(self) -> int:
        """Bytes dropped because the connections to DERP servers they were for broke before."""
        return self._tcp.unwritten

    async def node_addr(self, *, wait: bool = True) -> NodeAddr:
        """Return all that another node needs to dial it.

        It waits until the home DERP server and direct addresses are known, but no longer than
        :data:`NODE_ADDR_TIMEOUT` seconds; with ``wait=False`` it returns what is known now. An
        address without ``derp_url`` says that no server was reached; :attr:`derp_problems` has why.

        :raises EndpointClosed: if it is not running.
        """
        await checkpoint()
        self._check_running()
        if wait:
            with anyio.move_on_after(NODE_ADDR_TIMEOUT):
                while not self._is_addr_known():
                    await self._addr_changed.wait()
                    self._check_running()
        return self._machine.magicsock.node_addr

    def set_alpns(self, alpns: Iterable[bytes]) -> None:
        """Serve these protocols instead, on connections accepted from now on."""
        self._machine.set_alpns(tuple(alpns))

    def remote_infos(self) -> list[RemoteInfo]:
        """Return what is known of other nodes and the ways to them."""
        return self._machine.magicsock.remote_infos()

    # Connections

    async def connect(
        self,
        addr: NodeAddr | NodeId,
        *,
        alpn: bytes,
        timeout: float | None = CONNECT_TIMEOUT,  # noqa: ASYNC109 - part of a failure's text
    ) -> Connection:
        """Dial a node and return the connection once it has proven who it is.

        A node id alone is enough for a node whose address is known from before. Cancelling gives
        the attempt up.

        :param alpn: the protocol to speak, which the node has to serve.
        :param timeout: seconds the attempt may take.
        :raises ConnectError: as one of its kinds, if there is no connection.
        :raises EndpointClosed: if the endpoint is not running, or is closed meanwhile.
        """
        await checkpoint()
        self._check_running()
        addr = addr if isinstance(addr, NodeAddr) else NodeAddr(addr)
        if not self._has_way_to(addr):
            raise no_address(addr.node_id)
        try:
            dial = self._table.dial(addr, alpn=alpn)
        except LocalProtocolError as error:
            raise ConnectionFailed(str(error), addr.node_id) from error
        given_up = True
        try:
            with anyio.move_on_after(math.inf if timeout is None else timeout):
                await dial.answered.wait()
            given_up = dial.connection is None
        finally:
            self._table.end_dial(dial, give_up=given_up and self._is_running)
        if dial.connection is not None:
            return dial.connection
        self._check_running()
        derp_problem = self._derp_watch.problem_with(addr.derp_url)
        if dial.reason is not None:
            raise connect_error(addr.node_id, alpn, dial.reason, derp_problem)
        raise connect_timeout(addr.node_id, timeout, derp_problem)

    async def accept(self) -> Connection:
        """Return the next connection that a node made to us, waiting for it.

        It may be over already, and what the node sent before can be had from it.

        :raises EndpointClosed: if the endpoint is not running, or is closed meanwhile.
        """
        await checkpoint()
        while True:
            self._check_running()
            if self._table.incoming:
                return self._table.incoming.popleft()
            await self._table.arrived.wait()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Connection:
        try:
            return await self.accept()
        except EndpointClosed:
            if not self._stopping or self._failure is not None:
                raise
            raise StopAsyncIteration from None

    # Life

    async def _run(self, *, task_status: TaskStatus[None]) -> None:
        now = self._driver.now()
        self._machine.start(self.bound_addresses, now=now)
        try:
            async with anyio.create_task_group() as tasks:
                await tasks.start(self._driver.run)
                tasks.start_soon(self._watch)
                if self._log_files.trace is not None:
                    tasks.start_soon(self._log_files.trace.keep_flushed)
                self._is_running = True
                logger.info("node %s on UDP %s", self.node_id, _listed(self.bound_addresses))
                task_status.started()
        finally:
            self._is_running = False
            self._table.close_all(CLOSED if self._stopping else FAILED)
            self._addr_changed.set()
            self._release()

    async def _stop(self) -> None:
        self._machine.close(now=self._driver.now())
        self._driver.flush()
        self._is_running = False
        self._table.wake()
        self._addr_changed.set()
        await self._tcp.wait_empty()

    def _release(self) -> None:
        self._udp.close()
        self._log_files.close()

    async def _watch(self) -> None:
        """Notice what no packet tells: that the machine slept, or has other interfaces."""
        sleep_watch, before = host.SleepWatch(), set(self._list_interfaces())
        while True:
            await anyio.sleep(WATCH_INTERVAL)
            after = set(self._list_interfaces())
            if sleep_watch.slept():
                logger.info("the machine slept")
                self._machine.resumed(now=self._driver.now())
            if after != before:
                logger.info("the interfaces changed")
                before = after
                self._machine.network_changed(now=self._driver.now())
            self._driver.flush()

    def _check_running(self) -> None:
        if self._is_running:
            return
        if self._failure is not None:
            raise EndpointClosed("the endpoint was stopped by a defect") from self._failure
        if self._stopping:
            raise EndpointClosed("the endpoint is closed: bind another")
        raise EndpointClosed("the endpoint is not running: enter it with `async with` first")

    def _has_way_to(self, addr: NodeAddr) -> bool:
        if addr.derp_url is not None or addr.direct_addresses:
            return True
        # Oneself is refused by the machine, with a better reason.
        known = self._machine.magicsock.path_info(addr.node_id).kind != "none"
        return known or addr.node_id == self.node_id

    def _is_addr_known(self) -> bool:
        magicsock = self._machine.magicsock
        if self._has_derp and magicsock.home_derp is None:
            return False
        return bool(magicsock.local_addresses)

    # Events

    def _on_event(self, event: EndpointEvent) -> None:
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)
        if self._observer is not None:
            try:
                self._observer(event)
            except Exception:
                logger.exception("on_event raised")

    def _on_addr_changed(self, event: DirectAddressesChanged | HomeDerpChanged) -> None:
        logger.debug("%s", event)
        self._addr_changed.set()

    def _on_interfaces_requested(self, event: InterfacesRequested) -> None:
        ips = self._list_interfaces()
        self._machine.complete_interfaces(event.request_id, ips, now=self._driver.now())

    def _list_interfaces(self) -> list[str]:
        """Return the addresses of the interfaces, those known last if they cannot be had."""
        try:
            self._interface_ips = host.interface_ips()
        except OSError as error:  # as for want of descriptors, which will pass
            logger.warning("the interfaces cannot be listed: %s", error)
        return self._interface_ips

    def _on_dns_requested(self, event: DnsRequested) -> None:
        self._driver.start_soon(self._resolve, event)

    async def _resolve(self, event: DnsRequested) -> None:
        ips = await host.resolve(event.host)
        self._machine.complete_dns(event.request_id, ips, now=self._driver.now())
        self._driver.flush()


def _check_types(secret_key: object, derp_map: object, bind_addrs: object) -> None:
    if secret_key is not None and not isinstance(secret_key, SecretKey):
        kind = type(secret_key).__name__
        raise TypeError(f"secret_key is a SecretKey, not {kind}: see SecretKey.from_str()")
    if derp_map is not None and not isinstance(derp_map, DerpMap):
        kind = type(derp_map).__name__
        raise TypeError(f"derp_map is a DerpMap, not {kind}: see DerpMap.from_urls()")
    if isinstance(bind_addrs, str | UdpAddress):
        raise TypeError("bind_addrs is a list of addresses, not one address")


def _listed(addresses: Iterable[UdpAddress]) -> str:
    return ", ".join(str(address) for address in addresses)
