"""Fixtures for tests of programs that use iroh, found by pytest once this package is installed.

``simulated_network``
    A :class:`~iroh_proto.testing.network.Network` without hosts, in virtual time. Its seed is 0;
    ``@pytest.mark.parametrize("simulated_network", range(20), indirect=True)`` runs a test with
    each of many.
``iroh_derper``
    A running :class:`~iroh_anyio.Derper` on loopback, at free ports.
``iroh_endpoint_pair``
    Two running endpoints on loopback, as an :class:`EndpointPair`, with that derper as their home.
    They serve :data:`DEFAULT_ALPN`, or what ``@pytest.mark.iroh_alpns(b"one/0", b"other/0")`` says.

The last two are for async tests, which anyio's plugin runs on the backends that the fixture
``anyio_backend`` names. They need the ``anyio`` extra, and say so where it is missing.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from iroh_anyio import Connection, Derper, MagicEndpoint
    from iroh_proto import DerpMap, NodeAddr
    from iroh_proto.testing.network import Network

DEFAULT_ALPN = b"iroh-pytest/0"
"""What the endpoints of a pair serve unless told otherwise."""

START_LIMIT = 10.0
"""Seconds until the endpoints of a pair have to have their home; it takes a few milliseconds."""

NEEDED = ("anyio", "aioquic", "psutil")

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class EndpointPair:
    """Two running endpoints that can meet at a derper.

    :ivar first: one.
    :ivar second: the other.
    :ivar derp_map: the map of both, with the derper alone.
    :ivar alpns: the protocols that both serve.
    """

    first: MagicEndpoint
    second: MagicEndpoint
    derp_map: DerpMap
    alpns: tuple[bytes, ...]

    @property
    def first_addr(self) -> NodeAddr:
        """How to dial the first: its id, and the derper."""
        return self._addr_of(self.first)

    @property
    def second_addr(self) -> NodeAddr:
        """How to dial the second: its id, and the derper."""
        return self._addr_of(self.second)

    async def connect(self, *, alpn: bytes | None = None) -> tuple[Connection, Connection]:
        """Have the first dial the second, and return both ends of the connection in that order.

        :param alpn: the protocol, the first of ``alpns`` unless given.
        """
        dialled = await self.first.connect(self.second_addr, alpn=alpn or self.alpns[0])
        return dialled, await self.second.accept()

    def _addr_of(self, endpoint: MagicEndpoint) -> NodeAddr:
        from iroh_proto import NodeAddr

        (node,) = self.derp_map
        return NodeAddr(endpoint.node_id, derp_url=node.url)


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers", "iroh_alpns(*alpns): the protocols that iroh_endpoint_pair serves"
    )


@pytest.fixture
def simulated_network(request: pytest.FixtureRequest) -> Network:
    """Return a simulated network without hosts; a parameter is its seed."""
    from iroh_proto.testing.network import Network

    return Network(rng=random.Random(getattr(request, "param", 0)))


def _missing() -> Sequence[str]:
    return [name for name in NEEDED if not _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ImportError:  # somebody's import hook refuses it; no reason to stop all of pytest
        return False


if missing := _missing():
    # Async fixtures would be of no use: nobody runs them without anyio.

    def _complain(fixture: str) -> None:
        pytest.fail(
            f"the fixture {fixture} needs {', '.join(missing)}: install the extra, "
            "pip install 'iroh-proto[anyio]'",
            pytrace=False,
        )

    @pytest.fixture(name="iroh_derper")
    def _no_derper() -> None:
        _complain("iroh_derper")

    @pytest.fixture(name="iroh_endpoint_pair")
    def _no_endpoint_pair() -> None:
        _complain("iroh_endpoint_pair")

else:

    @pytest.fixture
    async def iroh_derper(
        anyio_backend: object, request: pytest.FixtureRequest
    ) -> AsyncIterator[Derper]:
        """Run a derper on loopback, for async tests."""
        from iroh_anyio import Derper

        _expect_async_test(request)
        async with await Derper.bind(host=LOOPBACK, port=0, stun_port=0) as derper:
            yield derper

    @pytest.fixture
    async def iroh_endpoint_pair(
        iroh_derper: Derper, request: pytest.FixtureRequest
    ) -> AsyncIterator[EndpointPair]:
        """Run two endpoints on loopback that can meet at ``iroh_derper``."""
        import anyio

        from iroh_anyio import MagicEndpoint
        from iroh_proto import DerpMap, DerpNode

        marker = request.node.get_closest_marker("iroh_alpns")
        alpns = (DEFAULT_ALPN,) if marker is None else marker.args
        if not alpns:
            pytest.fail("the marker iroh_alpns names one protocol or more", pytrace=False)
        derp_map = DerpMap([DerpNode(iroh_derper.url, iroh_derper.stun_port)])
        bind_addrs = [f"{LOOPBACK}:0"]
        async with (
            await MagicEndpoint.bind(
                alpns=alpns, derp_map=derp_map, bind_addrs=bind_addrs
            ) as first,
            await MagicEndpoint.bind(
                alpns=alpns, derp_map=derp_map, bind_addrs=bind_addrs
            ) as second,
        ):
            with anyio.fail_after(START_LIMIT):
                for endpoint in (first, second):
                    while endpoint.home_derp is None:
                        await endpoint.node_addr()
            yield EndpointPair(first, second, derp_map, alpns)


def _expect_async_test(request: pytest.FixtureRequest) -> None:
    """Fail where nothing would serve: the event loop stands still while a plain test runs."""
    names = ("iroh_endpoint_pair", "iroh_derper")
    fixture = next(name for name in names if name in request.fixturenames)
    inner = getattr(getattr(request.function, "hypothesis", None), "inner_test", request.function)
    if not iscoroutinefunction(inner):
        pytest.fail(f"the fixture {fixture} is for async tests, of anyio's plugin", pytrace=False)
