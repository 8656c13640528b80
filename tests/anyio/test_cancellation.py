"""Whatever is cancelled, whenever: nothing is left behind, on both backends."""

from __future__ import annotations

import socket

import anyio
import pytest

from iroh_anyio import dial as dial_module

pytestmark = pytest.mark.anyio


async def test_a_dial_cancelled_as_it_succeeds_leaves_no_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connect, made = dial_module._connect, []

    async def connect_and_cancel(ip: str, port: int) -> socket.socket:
        made.append(await connect(ip, port))
        scope.cancel()
        return made[-1]

    monkeypatch.setattr(dial_module, "_connect", connect_and_cancel)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with anyio.CancelScope() as scope:
            await dial_module.dial("127.0.0.1", listener.getsockname()[1], None)
        assert scope.cancelled_caught
        assert [tcp_socket.fileno() for tcp_socket in made] == [-1]
