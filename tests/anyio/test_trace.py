"""Time lines of real endpoints: what is in them, what is not, and that they can be repeated."""

from __future__ import annotations

import json
import logging
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any

import anyio
import pytest

from iroh_anyio import MagicEndpoint, trace_file
from iroh_anyio.derper import Derper
from iroh_anyio.trace_file import TraceFile
from iroh_proto import DerpMap, NodeAddr, SecretKey
from iroh_proto.derp.map import DerpNode
from iroh_proto.paths.finder import PathFinder
from iroh_proto.testing.replay import replay
from iroh_proto.testing.sequence import draw_sequence
from iroh_proto.trace.lines import split_cut_line
from tests.anyio.nodes import ALPN, LIMIT, addr_of, bind, two_nodes

pytestmark = pytest.mark.anyio

TOKEN = "shown-to-the-server-alone"
TOLD = b"what the one node tells the other"


@asynccontextmanager
async def derp_map() -> AsyncIterator[DerpMap]:
    """Run a DERP server on loopback, and yield the map that has it."""
    async with await Derper.bind(port=0, stun_port=0) as derper:
        yield DerpMap([DerpNode(derper.url, derper.stun_port, token=TOKEN)])


async def talk(first: MagicEndpoint, second: MagicEndpoint, addr: NodeAddr) -> None:
    """Have the first dial the second and tell it something, until the path is direct."""
    with anyio.fail_after(LIMIT):
        connection = await first.connect(addr, alpn=ALPN)
        accepted = await second.accept()
        stream = await connection.open_bi()
        await stream.send(TOLD)
        await stream.send_eof()
        received = await accepted.accept_bi()
        assert b"".join([chunk async for chunk in received]) == TOLD
        for end in (connection, accepted):
            async for path in end.path_changes():
                if path.kind == "direct":
                    break


async def punched(folder: Path, keys: tuple[SecretKey, SecretKey]) -> tuple[Path, Path]:
    """Trace two nodes that know of each other only the id and the DERP server."""
    files = folder / "first.jsonl", folder / "second.jsonl"
    async with derp_map() as servers:
        settings: list[dict[str, Any]] = [
            {"derp_map": servers, "secret_key": key, "trace_file": file}
            for key, file in zip(keys, files, strict=True)
        ]
        async with (
            await bind(**settings[0]) as first,
            await bind(alpns=[ALPN], **settings[1]) as second,
        ):
            home = (await second.node_addr()).derp_url
            await first.node_addr()
            await talk(first, second, NodeAddr(second.node_id, derp_url=home))
    return files


def entries(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


async def test_both_ends_of_a_hole_can_be_drawn_and_repeated(tmp_path: Path) -> None:
    keys = SecretKey.generate(), SecretKey.generate()
    files = await punched(tmp_path, keys)
    for own, file in zip(keys, files, strict=True):
        name = own.public.fmt_short()
        lines = file.read_text().splitlines()
        result = replay(lines)
        assert result.difference is None
        assert set(result.inputs) == {f"{name}/paths", f"{name}/addresses"}
        assert min(*result.inputs.values(), *result.outputs.values()) > 4
        picture = draw_sequence(lines)
        assert all(f">{key.public.fmt_short()}<" in picture for key in keys)
        assert "call me maybe (1 addresses) by DERP" in picture
        assert "direct 127.0.0.1:" in picture


async def test_a_time_line_begins_at_zero_and_tells_what_happened(tmp_path: Path) -> None:
    file, _ = await punched(tmp_path, (SecretKey.generate(), SecretKey.generate()))
    head, *rest = entries(file)
    assert 0 <= rest[0]["time"] < 1
    assert head["epoch"] == int(head["epoch"])
    times = [line["time"] for line in rest]
    assert times == sorted(times)
    kinds = {line["kind"] for line in rest}
    assert kinds >= {"HomeDerpChanged", "ConnectionEstablished", "PathChanged", "PongReceived"}
    assert kinds >= {"DatagramsSent", "DatagramsReceived", "OwnAddressesFound"}
    labels = {word for line in rest for word in line.get("labels", ())}
    assert any(label.startswith("STUN: you are 127.0.0.1:") for label in labels)


async def test_neither_keys_nor_data_are_in_a_time_line(tmp_path: Path) -> None:
    keys = SecretKey.generate(), SecretKey.generate()
    for file in await punched(tmp_path, keys):
        text = file.read_text()
        assert len(text) > 1000
        for key in keys:
            assert key.to_bytes().hex() not in text
            assert str(key.public) in text
        for hidden in (TOLD.decode(), TOLD.hex(), TOKEN, TOKEN.encode().hex()):
            assert hidden not in text
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_a_replay_notices_another_decision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = await punched(tmp_path, (SecretKey.generate(), SecretKey.generate()))
    lines = file.read_text().splitlines()
    monkeypatch.setattr(PathFinder, "_take_pong", lambda *_: None)
    difference = replay(lines).difference
    assert difference is not None
    assert difference.program.endswith("/paths")
    assert "PongReceived" in difference.recorded


async def test_without_a_trace_the_machines_stand_for_themselves() -> None:
    async with two_nodes() as (serving, _):
        magicsock = serving.machine.magicsock
        assert type(magicsock._finder) is PathFinder
        assert "receive_datagrams" not in vars(magicsock._finder)


async def test_a_full_disk_ends_the_time_line_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        async with two_nodes(client={"trace_file": "/dev/full"}) as (serving, dialling):
            await talk(dialling, serving, addr_of(serving))
    assert [record.message for record in caplog.records] == [
        "no more is written to /dev/full: No space left on device"
    ]


async def test_a_time_line_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_file, "TRACE_LIMIT", 2000)
    file = tmp_path / "x.jsonl"
    async with two_nodes(client={"trace_file": file}) as (serving, dialling):
        await talk(dialling, serving, addr_of(serving))
    assert 1000 < file.stat().st_size <= 2000
    assert len(entries(file)) > 3


async def test_a_time_line_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    async with two_nodes(client={"trace_file": file}) as (serving, dialling):
        assert len(entries(file)) > 3
        await talk(dialling, serving, addr_of(serving))
        await anyio.sleep(2 * trace_file.FLUSH_INTERVAL)
        text = file.read_text()
        assert "PongReceived" in text
        assert "ConnectionEstablished" in text
        lines, _ = split_cut_line(text.splitlines(keepends=True))
        assert replay(lines, is_cut=True).difference is None


async def test_lines_are_flushed_together_and_only_if_there_are_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_file, "FLUSH_INTERVAL", 0.02)
    trace = TraceFile(tmp_path / "x.jsonl")
    flushes: list[int] = []
    trace._file = Counting(trace._file, flushes)  # type: ignore[assignment]
    for number in range(100):
        trace._write({"number": number})
    assert len(flushes) == trace_file.LINES_FLUSHED_AT_ONCE
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(trace.keep_flushed)
        await anyio.sleep(5 * trace_file.FLUSH_INTERVAL)
        tasks.cancel_scope.cancel()
    assert len(flushes) == trace_file.LINES_FLUSHED_AT_ONCE + 1
    assert len(entries(tmp_path / "x.jsonl")) == 100
    trace.close()


class Counting:
    """A file that notes when it is flushed."""

    def __init__(self, file: IO[str], flushes: list[int]) -> None:
        self._file = file
        self._flushes = flushes
        self.write, self.close = file.write, file.close

    def flush(self) -> None:
        self._flushes.append(self._file.tell())
        self._file.flush()


async def test_a_disk_that_is_full_when_lines_are_flushed_ends_the_time_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_file, "LINES_FLUSHED_AT_ONCE", 0)
    monkeypatch.setattr(trace_file, "FLUSH_INTERVAL", 0.01)
    trace = TraceFile("/dev/full")
    trace._write({})
    with caplog.at_level(logging.WARNING), anyio.fail_after(LIMIT):
        await trace.keep_flushed()
    trace.close()
    assert len(caplog.records) == 1


async def test_a_file_that_cannot_be_opened_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await bind(trace_file=tmp_path / "none" / "x.jsonl")
    with pytest.raises(FileNotFoundError):
        TraceFile(tmp_path / "none" / "x.jsonl")
