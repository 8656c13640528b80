"""``iroh-anyio lab draw`` and ``replay``: what recorded time lines tell."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import click

from iroh_anyio.cli.common import say
from iroh_proto import DecodeError
from iroh_proto.testing.merging import connected, merge
from iroh_proto.testing.replay import Replay, replay
from iroh_proto.testing.scene import Scene, read_scene
from iroh_proto.testing.sequence import draw_scene
from iroh_proto.trace.lines import check_lifelines, read_lines, split_cut_line

# Bytes that are no text come as lone surrogates, so that the line can be named which has them.
_FILE = click.File(encoding="utf-8", errors="surrogateescape")


class _Seconds(click.types.FloatParamType):
    """A time in a time line: any number but those that are none."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        seconds = float(super().convert(value, param, ctx))
        if not math.isfinite(seconds):
            self.fail(f"{value} is no number of seconds", param, ctx)
        return seconds


_SECONDS = _Seconds()


@click.command()
@click.argument("files", type=_FILE, nargs=-1, required=True)
@click.option("--from", "begin", type=_SECONDS, metavar="SECONDS", help="Where to begin.")
@click.option("--to", "end", type=_SECONDS, metavar="SECONDS", help="Where to end.")
@click.option("--payload", is_flag=True, help="Show payload datagrams, too.")
def draw(files: tuple[TextIO, ...], begin: float | None, end: float | None, payload: bool) -> None:
    """Print a sequence diagram of the time line in FILES as SVG; - is stdin.

    Several are of real nodes that met, one each: then both ends of a message are seen.

    Without --from it begins with the first message between nodes; without --to it ends after the
    last change of a path. Below it stands what arrows, colours, boxes and digits mean: solid arrows
    are UDP, dashed ones go by way of a DERP server, dotted ones may not have arrived, and "ping
    18f4" is answered by "pong 18f4". Where there is nothing to draw it says why, and exits with 1.
    """
    if begin is not None and end is not None and begin >= end:
        raise click.UsageError(f"--from {begin:g} is not before --to {end:g}")
    names = " and ".join(file.name for file in files)
    timelines = [_read(file, "draw")[0] for file in files]
    with _refusals(f"draw {names}"):
        lines = timelines[0] if len(files) == 1 else merge(timelines)
        _warn_of_strangers([file.name for file in files], connected(timelines))
        scene = read_scene(lines, begin=begin, end=end, payload=payload)
    click.echo(draw_scene(scene), nl=False)
    if scene.is_empty:
        payloads = len(read_scene(lines, begin=begin, end=end, payload=True).flights)
        hint = f"; there are {payloads} payload datagrams: --payload draws them" if payloads else ""
        raise click.ClickException(f"nothing to draw in {names}: {_why_empty(scene)}{hint}")


def _warn_of_strangers(names: Sequence[str], groups: Sequence[Sequence[int]]) -> None:
    if len(groups) > 1:
        ends = " with ".join(" and ".join(names[place] for place in group) for group in groups)
        say(
            f"warning: nothing connects {ends}: they have no message in common, so that it is not "
            "known how far apart their clocks are"
        )


def _why_empty(scene: Scene) -> str:
    if scene.recorded is None:
        return "nothing is recorded"
    first, last = scene.recorded
    window = f"from {scene.begin:g} s to {scene.end:g} s"
    recorded = f"recorded: {first:g} s to {last:g} s"
    return f"{window} there is no message between nodes and no change of a path ({recorded})"


@click.command("replay")
@click.argument("file", type=_FILE)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def replay_command(file: TextIO, as_json: bool) -> None:
    """Repeat the programs of the time line in FILE and compare what they do; - is stdin.

    Each machine is made anew and given the recorded inputs: commands, datagrams, TCP data, timers
    and answers, at their times, and the lots that were drawn. Its events, results, datagrams, TCP
    data and payload have to be the recorded ones, bytes included. Not repeated are QUIC, and of a
    real endpoint, whose secret key is not in FILE, the connections to DERP servers.

    Exits with 1 at the first difference, and says where it is; also if something could not be
    repeated, since the machine that it was made of is not known, or if nothing was.
    """
    lines, is_cut = _read(file, "replay")
    with _refusals(f"replay {file.name}"):
        result = replay(lines, is_cut=is_cut)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(result)))
    else:
        _show_replay(result)
    if result.difference is not None or result.unknown or not result.inputs:
        sys.exit(1)


def _show_replay(result: Replay) -> None:
    for program, inputs in result.inputs.items():
        click.echo(f"{program}: {inputs} inputs given, {result.outputs[program]} outputs the same")
    for program, machine in result.unknown.items():
        say(f"not repeated: {program} (unknown machine {machine})")
    difference = result.difference
    if not result.inputs and not result.unknown:
        say("nothing was repeated: no program in it says how it was made")
    elif difference is not None:
        say(f"line {difference.line}, {difference.time:.6f} s, {difference.program} differs")
        say(f"  recorded: {difference.recorded}")
        say(f"  repeated: {difference.repeated}")


def _read(file: TextIO, purpose: str) -> tuple[Sequence[str], bool]:
    """Return the lines of a time line without a last one that is cut short, and whether one was.

    :raises click.ClickException: if it is none, with the name of the file.
    """
    with _refusals(f"{purpose} {file.name}"):
        lines, cut = split_cut_line(list(_texts(file)))
        head, entries = read_lines(lines)
        if purpose == "draw":
            check_lifelines(head, entries)
    if cut is not None:
        say(f"{file.name}: line {cut} is cut short and left out")
    return lines, cut is not None


def _texts(file: TextIO) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        try:
            line.encode()
        except UnicodeEncodeError:
            raise DecodeError(f"no time line: line {number} is not text") from None
        yield line


@contextmanager
def _refusals(purpose: str) -> Iterator[None]:
    """Turn what is wrong with a time line into a sentence for the user."""
    try:
        yield
    except DecodeError as error:
        raise click.ClickException(f"cannot {purpose}: {error}") from None
