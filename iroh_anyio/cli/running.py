"""Runs commands: what signals, failures and exit codes have in common."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Generic, TypeVar

import anyio
import click
from anyio.abc import TaskStatus

from iroh_anyio.errors import EndpointError

R = TypeVar("R")

logger = logging.getLogger("iroh_anyio.cli")

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

EXPECTED = (EndpointError, OSError, click.ClickException)
"""What goes wrong without a defect of this program."""


def run_commands(commands: click.Group, name: str) -> None:
    """Run a command line: what goes wrong is one line on stderr, not a traceback."""
    try:
        sys.exit(commands.main(prog_name=name, standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(exit_code(signal.SIGINT))
    except OSError as error:
        # Commands see to files that are named, so it is what they print that has no room.
        logger.debug("failed", exc_info=error)
        _discard_unwritten()
        click.ClickException(f"cannot write the output: {error.strerror or error}").show()
        sys.exit(1)


def run(
    command: Callable[[], Awaitable[R]], *, endings: Sequence[signal.Signals] = ENDING_SIGNALS
) -> R:
    """Run an async command until it is done or a signal ends it, in good order either way.

    :param endings: the signals that end it. The others of them are the command's own.
    :raises click.ClickException: for a failure that is expected, with a sentence for the user.
    :raises SystemExit: if a signal ended it, with the code that shells know.
    """
    outcome: _Outcome[R] = _Outcome()
    try:
        anyio.run(_run_until_signal, command, outcome, endings)
    except KeyboardInterrupt:  # again, while it was ending
        raise SystemExit(exit_code(signal.SIGINT)) from None
    except (*EXPECTED, BaseExceptionGroup) as error:
        if outcome.signal is None:
            logger.debug("failed", exc_info=error)
            raise _explained(error) from None
    if outcome.signal is not None:
        raise SystemExit(exit_code(outcome.signal))
    return outcome.results[0]


def exit_code(number: int) -> int:
    """Return the exit code of a program that a signal ended, as shells report it."""
    return 128 + number


def _discard_unwritten() -> None:
    """Have the interpreter not try again, at its end, to write what there was no room for."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Outcome(Generic[R]):
    """How a command ended: by a result, or by a signal."""

    def __init__(self) -> None:
        self.results: list[R] = []
        self.signal: int | None = None


async def _run_until_signal(
    command: Callable[[], Awaitable[R]],
    outcome: _Outcome[R],
    endings: Sequence[signal.Signals],
) -> None:
    async with anyio.create_task_group() as tasks:
        await tasks.start(_wait_for_signal, tasks.cancel_scope, outcome, endings)
        outcome.results.append(await command())
        tasks.cancel_scope.cancel()


async def _wait_for_signal(
    scope: anyio.CancelScope,
    outcome: _Outcome[R],
    endings: Sequence[signal.Signals],
    *,
    task_status: TaskStatus[None],
) -> None:
    # Whoever starts a program with nohup or in the background has some of them ignored.
    heeded = [number for number in endings if signal.getsignal(number) != signal.SIG_IGN]
    with anyio.open_signal_receiver(*heeded) as signals:
        task_status.started()
        async for number in signals:
            outcome.signal = number
            scope.cancel()
            return


def _explained(error: BaseException) -> BaseException:
    """Return the first failure that is expected if all are, and else the error itself."""
    leaves = list(_leaves(error))
    if not all(isinstance(leaf, EXPECTED) for leaf in leaves):
        return error
    first = leaves[0]
    if isinstance(first, click.ClickException):
        return first
    if isinstance(first, OSError) and first.strerror:
        place = "" if first.filename is None else f"{first.filename}: "
        return click.ClickException(place + first.strerror)
    return click.ClickException(str(first))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
