"""The life of things with tasks of their own, on both backends."""

from __future__ import annotations

import asyncio

import anyio
import pytest
from anyio.abc import TaskStatus

from iroh_anyio import service
from iroh_anyio.service import Service

pytestmark = pytest.mark.anyio


class Defect(Exception):
    pass


class Mine(Exception):
    pass


class Fragile(Service):
    """Runs until told to break; leaves in its own time."""

    def __init__(self, *, break_at_start: bool = False, leave: float = 0.0) -> None:
        super().__init__()
        self.broken = anyio.Event()
        self.log: list[str] = []
        self._leave = leave
        self.break_at_start = break_at_start

    async def _run(self, *, task_status: TaskStatus[None]) -> None:
        self.log.append("run")
        if self.break_at_start:
            raise Defect
        task_status.started()
        await self.broken.wait()
        raise Defect

    async def _stop(self) -> None:
        self.log.append("stop")
        await anyio.sleep(self._leave)
        self.log.append("left")

    def _release(self) -> None:
        self.log.append("released")

    def _failed(self, failure: Exception) -> None:
        self.log.append(f"failed by {type(failure).__name__}")


class Ending(Fragile):
    """Says when its work ends."""

    async def _run(self, *, task_status: TaskStatus[None]) -> None:
        try:
            await super()._run(task_status=task_status)
        finally:
            self.log.append("ended")


async def test_it_stops_before_it_is_cancelled() -> None:
    async with Fragile(leave=0.01) as fragile:
        pass
    assert fragile.log == ["run", "stop", "left"]


async def test_leaving_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "STOP_TIMEOUT", 0.02)
    with anyio.fail_after(5):
        async with Fragile(leave=1000) as fragile:
            pass
    assert fragile.log == ["run", "stop"]


async def test_leaving_is_not_cut_short_by_cancellation() -> None:
    fragile = Fragile(leave=0.05)
    with anyio.move_on_after(0.01):
        async with fragile:
            await anyio.sleep_forever()
    assert fragile.log == ["run", "stop", "left"]


async def test_it_runs_until_it_has_left_when_all_around_it_is_cancelled() -> None:
    class Busy(Fragile):
        async def _run(self, *, task_status: TaskStatus[None]) -> None:
            try:
                await super()._run(task_status=task_status)
            finally:
                self.log.append("over")

    with anyio.move_on_after(0.01):
        async with Busy(leave=0.05) as busy:
            await anyio.sleep_forever()
    assert busy.log == ["run", "stop", "left", "over"]


async def test_closing_twice_and_at_once_stops_once() -> None:
    async with Fragile(leave=0.02) as fragile, anyio.create_task_group() as tasks:
        tasks.start_soon(fragile.close)
        tasks.start_soon(fragile.close)
    assert fragile.log == ["run", "stop", "left"]


async def test_closing_unentered_only_releases() -> None:
    fragile = Fragile()
    await fragile.close()
    assert fragile.log == ["released"]


async def test_a_defect_is_raised_when_the_block_ends_well() -> None:
    async def main() -> None:
        async with Fragile() as fragile:
            fragile.broken.set()
            await anyio.wait_all_tasks_blocked()
            assert fragile.log == ["run", "failed by Defect"]

    with anyio.fail_after(5), pytest.raises(Defect):
        await main()


async def test_a_defect_does_not_hide_the_exception_of_the_block() -> None:
    async def main() -> None:
        async with Fragile() as fragile:
            fragile.broken.set()
            await anyio.wait_all_tasks_blocked()
            raise Mine

    with anyio.fail_after(5), pytest.raises(Mine):
        await main()


async def test_a_defect_at_the_start_is_raised_by_entering() -> None:
    with anyio.fail_after(5), pytest.raises(Defect):
        await Fragile(break_at_start=True).__aenter__()


async def test_it_is_entered_once() -> None:
    async with Fragile() as fragile:
        with pytest.raises(RuntimeError, match="entered once"):
            await fragile.__aenter__()


async def test_what_no_scope_shields_from_leaves_nothing_behind() -> None:
    class Interrupted(Ending):
        async def _stop(self) -> None:
            raise KeyboardInterrupt

    interrupted = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        async with interrupted:
            pass
    assert interrupted.log == ["run", "ended"]
    await interrupted.close()


def test_cancellation_by_asyncio_itself_while_it_leaves_leaves_nothing_behind() -> None:
    async def main() -> list[str]:
        leaving = anyio.Event()

        class Slow(Ending):
            async def _stop(self) -> None:
                leaving.set()
                await anyio.sleep_forever()

        slow = Slow()

        async def use() -> None:
            async with slow:
                pass

        task = asyncio.create_task(use())
        await leaving.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return slow.log

    assert asyncio.run(main()) == ["run", "ended"]
