"""What a connection and its streams share: their machine, their driver, and whether it is over."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

from iroh_anyio.driver import Driver
from iroh_anyio.errors import raise_closed
from iroh_anyio.quic.endpoint_machine import EndpointMachine
from iroh_anyio.quic.events import CloseReason, EndpointEvent
from iroh_proto.errors import LocalProtocolError


class Link:
    """One connection of a machine. Each command is carried out before its method returns.

    ``reason`` is why the connection is over, once it is; the machine no longer knows it then.
    """

    __slots__ = ("driver", "machine", "number", "reason")

    def __init__(
        self, machine: EndpointMachine, driver: Driver[EndpointEvent], number: int
    ) -> None:
        self.machine = machine
        self.driver = driver
        self.number = number
        self.reason: CloseReason | None = None

    @property
    def is_open(self) -> bool:
        """Whether the connection stands."""
        return self.reason is None

    def check_open(self) -> None:
        """Raise the reason if the connection is over.

        :raises ConnectionClosed: as one of its kinds.
        """
        if self.reason is not None:
            raise_closed(self.reason)

    def send_room(self, stream_id: int) -> int:
        """Return how many bytes a stream takes now."""
        return self.machine.send_room(self.number, stream_id)

    def send_stream(self, stream_id: int, data: bytes, *, end: bool = False) -> None:
        """Send bytes for which there is room."""
        driver = self.driver
        self.machine.send_stream(self.number, stream_id, data, end=end, now=driver.now())
        driver.flush()

    def reset_stream(self, stream_id: int, code: int) -> None:
        """Give up sending, unless the connection is over."""
        if self.reason is None:
            self.machine.reset_stream(self.number, stream_id, code, now=self.driver.now())
            self.driver.flush()

    def stop_sending(self, stream_id: int, code: int) -> None:
        """Give up receiving, unless the connection is over."""
        if self.reason is None:
            self.machine.stop_sending(self.number, stream_id, code, now=self.driver.now())
            self.driver.flush()

    def end_soon(self, stream_id: int) -> None:
        """Send the end of a stream, if that is still possible, in another turn of the event loop.

        For finalizers, as :meth:`discard_soon` is.
        """
        if self.reason is None:
            self.driver.call_soon(partial(self._end_if_open, stream_id))

    def reset_soon(self, stream_id: int, code: int) -> None:
        """Give up sending in another turn of the event loop; see :meth:`end_soon`."""
        if self.reason is None:
            self.driver.call_soon(partial(self.reset_stream, stream_id, code))

    def discard_soon(self, stream_id: int) -> None:
        """Let the peer send on as if all were read, in another turn of the event loop.

        For finalizers: these run at any point, within a command of the machine, too.
        """
        if self.reason is None:
            self.driver.call_soon(partial(self.consume, stream_id, None))

    def consume(self, stream_id: int, count: int | None) -> None:
        """Let the peer send on, unless the connection is over; ``None`` is for all there was."""
        if self.reason is None:
            self.machine.consume(self.number, stream_id, count, now=self.driver.now())
            self.driver.flush()

    def _end_if_open(self, stream_id: int) -> None:
        # Within the turn the peer may have stopped it, with so many others that it is forgotten.
        if self.reason is None:
            with suppress(LocalProtocolError):
                self.send_stream(stream_id, b"", end=True)
