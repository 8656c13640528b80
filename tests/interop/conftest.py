"""Fixtures that run released iroh nodes as peers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.interop import packages, programs
from tests.interop.island import island
from tests.interop.real_peer import SCRIPTS, RealPeer, real_peer

StartPeer: TypeAlias = Callable[..., AbstractAsyncContextManager[RealPeer]]


@pytest.fixture(scope="session", autouse=True)
def _releases() -> None:
    """Install what is missing before the first test moves to a network without the index."""
    for version in SCRIPTS:
        with contextlib.suppress(packages.PeerUnavailableError):
            packages.installed(version)


@pytest.fixture(autouse=True)
def isolated() -> Iterator[bool]:
    """Give the test and its peers a network with loopback only, where that is possible."""
    with island() as is_isolated:
        yield is_isolated


@pytest.fixture
def start_peer(tmp_path: Path) -> StartPeer:
    """Return ``start_peer(version, **options)``, an async context manager of a running peer."""

    def start(
        version: str, *, space: str | None = None, **options: object
    ) -> AbstractAsyncContextManager[RealPeer]:
        require(version)
        scratch = tmp_path / f"{version}-{len(list(tmp_path.iterdir()))}"
        scratch.mkdir()
        return real_peer(version, scratch, space=space, **options)

    return start


def require(version: str) -> None:
    """Skip the test if a release is not there, or fail it if peers are required.

    Nobody is required to have built one.
    """
    try:
        if version in programs.VARIABLES:
            programs.program(version)
        else:
            packages.installed(version)
    except programs.PeerNotBuiltError as error:
        pytest.skip(str(error))
    except packages.PeerUnavailableError as error:
        if os.environ.get(packages.REQUIRE_VARIABLE) == "1":
            pytest.fail(f"peers are required: {error}", pytrace=False)
        pytest.skip(f"no iroh {version} to test against: {error}")
