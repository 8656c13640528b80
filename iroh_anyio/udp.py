"""Non-blocking UDP sockets that move datagrams in batches.

Linux can hand over up to 64 KiB of equal-sized datagrams in one call, both ways: generic receive
offload (GRO) and generic segmentation offload (GSO). Both are used where the kernel has them, and
nothing is lost where it has not. A socket whose kernel buffer is full keeps a bounded queue and
drops the oldest, counted, as a full wire would.

Source: udp(7), kernel ``Documentation/networking/segmentation-offloads.rst``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import anyio
from anyio.lowlevel import checkpoint

from iroh_anyio.backends import call_when_readable
from iroh_proto.address import UdpAddress

logger = logging.getLogger("iroh_anyio.udp")

# <linux/udp.h>; the socket module has no names for them.
SOL_UDP = 17
UDP_SEGMENT = 103
UDP_GRO = 104
# <asm-generic/socket.h>: the same options without the system's limits, for the privileged.
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33
# <linux/in.h>, <linux/in6.h>: set "do not fragment" and ignore what the kernel believes about the
# path, as QUIC wants (RFC 9000 section 14).
IP_MTU_DISCOVER = 10
IPV6_MTU_DISCOVER = 23
PMTUDISC_PROBE = 3

RECEIVE_SIZE = 65_535
"""Bytes one receive call can return: the largest UDP datagram, or one coalesced run of them."""

BATCH_LIMIT = 64
"""Datagrams after which a wake-up stops reading, so that one busy socket does not hold up the
rest. A coalesced run is never cut, so a batch can be one run longer."""

SEGMENT_LIMIT = 50
"""Datagrams per segmented call; kernels before 6.9 refuse more than 64."""

SEGMENTED_SIZE_LIMIT = 65_000
"""Bytes per segmented call: all of it has to fit one IP packet of 65,535 bytes with headers."""

BACKLOG_LIMIT = 1_024
"""Datagrams kept while the kernel's buffer is full; about 1.5 MB."""

KERNEL_BUFFER_SIZE = 4 * 1024 * 1024
"""Bytes asked of the kernel for each direction; it grants what its limits allow, and to the
privileged all of it."""

ADDRESS_CACHE_LIMIT = 1_024
"""Source addresses remembered in their canonical form."""

# What kernels and drivers answer when they cannot do segmentation: EIO without checksum offload,
# EINVAL for too many segments, the others where the option is unknown.
_NO_SEGMENTATION = frozenset(
    {errno.EIO, errno.EINVAL, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EMSGSIZE}
)
_SEGMENT_SIZE = struct.Struct("=H")
_GRO_SIZE = struct.Struct("=i")
_GRO_CONTROL_SIZE = socket.CMSG_SPACE(_GRO_SIZE.size) if hasattr(socket, "CMSG_SPACE") else 0


@dataclass(slots=True)
class UdpStats:
    """Counts of one socket, in datagrams."""

    received: int = 0
    sent: int = 0
    dropped: int = 0
    """Oldest ones of a full backlog, and those that wait when the socket is closed."""
    failed: int = 0
    """Refused by the kernel: no route, too large, forbidden by a filter."""
    receive_errors: int = 0


class UdpSocket:
    """One bound, non-blocking UDP socket.

    :meth:`receive` and :meth:`send` never wait. Whoever owns the socket keeps one task in
    :meth:`call_when_readable`, or in :meth:`wait_readable`, and one in :meth:`run_writer`. To be
    closed with :meth:`close`.

    :param addr: where to bind; port 0 takes any free one.
    :param offload: whether to use GRO and GSO where the kernel has them.
    :raises OSError: if it cannot be bound.
    """

    def __init__(self, addr: UdpAddress, *, offload: bool = True) -> None:
        family = socket.AF_INET6 if addr.is_ipv6 else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            _set_options(self._socket, family)
            self._socket.bind(addr)
        except BaseException:
            self._socket.close()
            raise
        name = self._socket.getsockname()
        self.local_address = UdpAddress.of(name[0].partition("%")[0], name[1])
        self._gro = offload and _enable_gro(self._socket)
        self._gso = offload and sys.platform == "linux"
        self._backlog: deque[tuple[UdpAddress, bytes]] = deque()
        self._backlogged = anyio.Event()
        self._controls: dict[int, list[tuple[int, int, bytes]]] = {}
        self._addresses: dict[tuple[str | int, ...], UdpAddress] = {}
        self._stats = UdpStats()
        self._may_have_more = False
        self._waiters = 0
        self._closed = False

    @property
    def is_ipv6(self) -> bool:
        """Whether it carries IPv6; then it carries nothing else."""
        return self.local_address.is_ipv6

    @property
    def stats(self) -> UdpStats:
        """A snapshot of its counts."""
        return dataclasses.replace(self._stats)

    @property
    def backlog(self) -> int:
        """Datagrams waiting for room in the kernel's buffer."""
        return len(self._backlog)

    def receive(self) -> list[tuple[UdpAddress, list[bytes]]]:
        """Return what has arrived: runs of datagrams with their common source, in order."""
        batches: list[tuple[UdpAddress, list[bytes]]] = []
        self._may_have_more = True
        try:
            if self._gro:
                self._receive_coalesced(batches)
            else:
                self._receive_single(batches)
        except (BlockingIOError, InterruptedError):
            self._may_have_more = False
        except OSError as error:
            if self._closed:
                self._may_have_more = False
            else:
                self._stats.receive_errors += 1
                logger.debug("%s: receiving: %s", self.local_address, error)
        for _, datagrams in batches:
            self._stats.received += len(datagrams)
        return batches

    def send(
        self, addr: UdpAddress, datagrams: Sequence[bytes], segment_size: int | None = None
    ) -> None:
        """Send datagrams to one address, or queue them while the kernel's buffer is full.

        :param segment_size: the size of each but the last, if they are all of one size.
        """
        if self._backlog:
            self._enqueue(addr, datagrams)
        elif segment_size is not None and self._gso and len(datagrams) > 1:
            self._send_segmented(addr, datagrams, segment_size)
        else:
            self._send_each(addr, datagrams)

    async def call_when_readable(self, serve: Callable[[], None]) -> None:
        """Call ``serve`` whenever something may have arrived, until cancelled, and only then close.

        This is faster than to wait again and again.
        """
        await call_when_readable(self._socket.fileno(), serve)

    async def wait_readable(self) -> None:
        """Wait until something may have arrived.

        :raises anyio.ClosedResourceError: if the socket is closed.
        """
        if self._closed:
            raise anyio.ClosedResourceError
        if self._may_have_more:
            # The last call ended by its limit. Looking again is cheaper than asking to be told.
            self._may_have_more = False
            await checkpoint()
            return
        self._waiters += 1
        try:
            await anyio.wait_readable(self._socket)
        finally:
            self._waiters -= 1

    async def run_writer(self) -> None:
        """Send the backlog whenever the kernel has room again, until cancelled or closed."""
        while True:
            await self._backlogged.wait()
            if self._closed:
                return
            self._waiters += 1
            try:
                await anyio.wait_writable(self._socket)
            except anyio.ClosedResourceError:
                return
            finally:
                self._waiters -= 1
            self._send_backlog()

    def close(self) -> None:
        """Close it and wake its waiters. What is still queued is lost. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._stats.dropped += len(self._backlog)
        self._backlog.clear()
        self._backlogged.set()
        if self._waiters:
            anyio.notify_closing(self._socket)
        self._socket.close()

    def _receive_single(self, batches: list[tuple[UdpAddress, list[bytes]]]) -> None:
        receive = self._socket.recvfrom
        last: tuple[str | int, ...] | None = None
        run: list[bytes] = []
        for _ in range(BATCH_LIMIT):
            data, source = receive(RECEIVE_SIZE)
            if source != last:
                last, run = source, []
                batches.append((self._canonical(source), run))
            run.append(data)

    def _receive_coalesced(self, batches: list[tuple[UdpAddress, list[bytes]]]) -> None:
        receive = self._socket.recvmsg
        last: tuple[str | int, ...] | None = None
        run: list[bytes] = []
        count = 0
        while count < BATCH_LIMIT:
            data, control, _, source = receive(RECEIVE_SIZE, _GRO_CONTROL_SIZE)
            if source != last:
                last, run = source, []
                batches.append((self._canonical(source), run))
            size = _segment_size(control) if control else 0
            if 0 < size < len(data):
                segments = [data[i : i + size] for i in range(0, len(data), size)]
                run += segments
                count += len(segments)
            else:
                run.append(data)
                count += 1

    def _canonical(self, source: tuple[str | int, ...]) -> UdpAddress:
        addr = self._addresses.get(source)
        if addr is None:
            if len(self._addresses) >= ADDRESS_CACHE_LIMIT:
                self._addresses.clear()
            addr = UdpAddress.of(str(source[0]), int(source[1]))
            self._addresses[source] = addr
        return addr

    def _send_each(self, addr: UdpAddress, datagrams: Sequence[bytes]) -> None:
        sendto = self._socket.sendto
        stats = self._stats
        for index, data in enumerate(datagrams):
            try:
                sendto(data, addr)
            except (BlockingIOError, InterruptedError):
                self._enqueue(addr, datagrams[index:])
                return
            except OSError as error:
                self._note_failure(addr, error, 1)
            else:
                stats.sent += 1

    def _send_segmented(
        self, addr: UdpAddress, datagrams: Sequence[bytes], segment_size: int
    ) -> None:
        step = min(SEGMENT_LIMIT, SEGMENTED_SIZE_LIMIT // segment_size)
        if step < 2:
            self._send_each(addr, datagrams)
            return
        control = self._control(segment_size)
        for start in range(0, len(datagrams), step):
            chunk = datagrams[start : start + step]
            try:
                self._socket.sendmsg(chunk, control, 0, addr)
            except (BlockingIOError, InterruptedError):
                self._enqueue(addr, datagrams[start:])
                return
            except OSError as error:
                if error.errno in _NO_SEGMENTATION:
                    self._send_unsegmented(addr, datagrams[start:], error)
                else:
                    self._note_failure(addr, error, len(datagrams) - start)
                return
            self._stats.sent += len(chunk)

    def _send_unsegmented(
        self, addr: UdpAddress, datagrams: Sequence[bytes], error: OSError
    ) -> None:
        # The same errors come from addresses that cannot be sent to at all; only if single
        # datagrams pass was it segmentation that failed.
        sent = self._stats.sent
        self._send_each(addr, datagrams)
        if self._stats.sent > sent:
            self._gso = False
            logger.info("%s: no segmentation offload here: %s", self.local_address, error)

    def _control(self, segment_size: int) -> list[tuple[int, int, bytes]]:
        control = self._controls.get(segment_size)
        if control is None:
            # One entry per size ever used: at most 65,000 / 2, in practice a handful.
            control = [(SOL_UDP, UDP_SEGMENT, _SEGMENT_SIZE.pack(segment_size))]
            self._controls[segment_size] = control
        return control

    def _enqueue(self, addr: UdpAddress, datagrams: Iterable[bytes]) -> None:
        backlog = self._backlog
        for data in datagrams:
            backlog.append((addr, data))
        excess = len(backlog) - BACKLOG_LIMIT
        for _ in range(excess):
            backlog.popleft()
        if excess > 0:
            self._stats.dropped += excess
        self._backlogged.set()

    def _send_backlog(self) -> None:
        backlog = self._backlog
        while backlog:
            addr, data = backlog[0]
            try:
                self._socket.sendto(data, addr)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._note_failure(addr, error, 1)
            else:
                self._stats.sent += 1
            backlog.popleft()
        self._backlogged = anyio.Event()

    def _note_failure(self, addr: UdpAddress, error: OSError, count: int) -> None:
        self._stats.failed += count
        logger.debug("%s: sending to %s: %s", self.local_address, addr, error)


def bind_sockets(addrs: Iterable[UdpAddress], *, offload: bool = True) -> list[UdpSocket]:
    """Bind a socket per address. Hosts without IPv6 are common: that it fails is tolerated.

    :raises OSError: if an IPv4 address, or every address, cannot be bound.
    """
    sockets: list[UdpSocket] = []
    last_error: OSError | None = None
    try:
        for addr in addrs:
            try:
                sockets.append(UdpSocket(addr, offload=offload))
            except OSError as error:
                if not addr.is_ipv6:
                    why = error.strerror or str(error)
                    raise OSError(error.errno, f"cannot bind UDP {addr}: {why}") from error
                logger.info("going on without UDP %s: %s", addr, error)
                last_error = error
        if not sockets and last_error is not None:
            raise last_error
    except BaseException:
        for udp_socket in sockets:
            udp_socket.close()
        raise
    return sockets


def _set_options(udp_socket: socket.socket, family: socket.AddressFamily) -> None:
    for option, forced in ((socket.SO_RCVBUF, SO_RCVBUFFORCE), (socket.SO_SNDBUF, SO_SNDBUFFORCE)):
        with contextlib.suppress(OSError):
            udp_socket.setsockopt(socket.SOL_SOCKET, option, KERNEL_BUFFER_SIZE)
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                udp_socket.setsockopt(socket.SOL_SOCKET, forced, KERNEL_BUFFER_SIZE)
    if family == socket.AF_INET6:
        udp_socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            if family == socket.AF_INET6:
                udp_socket.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_PROBE)
            else:
                udp_socket.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_PROBE)


def _segment_size(control: list[tuple[int, int, bytes]]) -> int:
    for level, kind, value in control:
        if level == SOL_UDP and kind == UDP_GRO and len(value) == _GRO_SIZE.size:
            return int(_GRO_SIZE.unpack(value)[0])
    return 0


def _enable_gro(udp_socket: socket.socket) -> bool:
    if sys.platform != "linux":
        return False
    try:
        udp_socket.setsockopt(SOL_UDP, UDP_GRO, 1)
    except OSError:
        return False
    return True
