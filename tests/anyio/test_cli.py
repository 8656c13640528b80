"""The command line, as a person or a program would use it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import anyio
import pytest

from iroh_anyio import MagicEndpoint
from iroh_anyio.cli import pipe
from iroh_anyio.cli.pipe import DUMBPIPE_ALPN, HELLO
from iroh_proto import NodeAddr, NodeId, SecretKey
from iroh_proto.ticket import NodeTicket

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "iroh_anyio"]
LIMIT = 60.0  # seconds for a command on a busy machine

SECRET = bytes(range(32))


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        capture_output=True,
        timeout=LIMIT,
        cwd=ROOT,
        check=False,
    )


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def first_line(stream: IO[bytes] | None) -> bytes:
    assert stream is not None
    return stream.readline()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["demo"],
        ["listen"],
        ["connect"],
        ["derper"],
        ["key"],
        ["key", "generate"],
        ["key", "show"],
        ["lab"],
        ["lab", "nat-matrix"],
        ["lab", "nat-pair"],
        ["lab", "draw"],
        ["lab", "replay"],
        ["lab", "scale"],
        ["ticket"],
        ["ticket", "show"],
    ],
    ids=" ".join,
)
def test_every_command_has_help(arguments: list[str]) -> None:
    done = run(*arguments, "--help")
    assert done.returncode == 0
    assert b"Usage: iroh-anyio" in done.stdout
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["dance"], b"dance"),
        (["connect", "nonsense"], b"neither a ticket nor a node id"),
        (["connect", str(SecretKey(SECRET).public)], b"where the peer can be met"),
        (["listen", "--bind", "nowhere"], b"not an address and port"),
        (["listen", "--derp", "ftp://example.com"], b"http://"),
        (["listen", "--derp", "http://127.0.0.1", "--no-derp"], b"contradict"),
        (["derper"], b"--dev"),
        (["ticket", "show", "node!"], b"not a ticket"),
        (["demo", "--file", "/nonexistent"], b"/nonexistent"),
        (["lab", "nat-matrix", "--svg", "/nonexistent/x.svg"], b"/nonexistent/x.svg"),
        (["lab", "scale", "--hours", "nan"], b"has to end"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_exit_code_2_and_says_why(arguments: list[str], complaint: bytes) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == b""
    assert complaint in done.stderr


@pytest.mark.parametrize("command", ["--help", "lab nat-pair EI/EI EI/EI"])
def test_output_without_room_is_exit_code_1_and_one_sentence(command: str) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, *command.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=LIMIT,
            cwd=ROOT,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == b"Error: cannot write the output: No space left on device\n"


def test_unreachable_node_is_exit_code_1_and_one_sentence() -> None:
    nobody = NodeAddr(SecretKey(SECRET).public, direct_addresses=["127.0.0.1:9"])
    done = run("connect", str(NodeTicket(nobody)), "--no-derp", "--bind", "127.0.0.1:0")
    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr.startswith(b"Error: ")
    assert b"Traceback" not in done.stderr


def test_generated_key_is_private_and_shown_by_its_node_id(tmp_path: Path) -> None:
    path = tmp_path / "key"
    made = run("key", "generate", str(path))
    assert made.returncode == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    secret_key = SecretKey.from_str(path.read_text().strip())
    assert made.stdout.decode().strip() == str(secret_key.public)
    assert secret_key.to_bytes().hex().encode() not in made.stdout + made.stderr

    shown = run("key", "show", str(path), "--json")
    node_id = secret_key.public
    assert json.loads(shown.stdout) == {
        "node_id": str(node_id),
        "base32": node_id.to_base32(),
        "z32": node_id.to_z32(),
    }


def test_key_generate_does_not_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("precious")
    done = run("key", "generate", str(path))
    assert done.returncode == 1
    assert path.read_text() == "precious"


def test_old_openssh_key_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "keypair"
    path.write_text(SecretKey(SECRET).to_openssh())
    done = run("key", "show", str(path))
    assert done.stdout.decode().strip() == str(SecretKey(SECRET).public)


def test_broken_key_file_is_named_but_not_quoted(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("0" * 63 + "x")
    done = run("key", "show", str(path))
    assert done.returncode == 1
    assert str(path).encode() in done.stderr
    assert b"000000" not in done.stderr


def test_ticket_show_prints_what_is_in_it() -> None:
    addr = NodeAddr(
        SecretKey(SECRET).public,
        derp_url="https://derp.example",
        direct_addresses=["192.0.2.1:7", "[2001:db8::1]:8"],
    )
    done = run("ticket", "show", str(NodeTicket(addr)), "--json")
    assert json.loads(done.stdout) == {
        "node_id": str(addr.node_id),
        "derp_url": "https://derp.example/",
        "direct_addresses": ["192.0.2.1:7", "[2001:db8::1]:8"],
    }


def test_a_ticket_in_upper_case_is_dialled() -> None:
    addr = NodeAddr(SecretKey(SECRET).public, direct_addresses=["192.0.2.1:7"])
    assert pipe.parse_peer(str(NodeTicket(addr)).upper(), (), no_derp=True) == addr


def test_derper_says_where_it_listens_and_warns_of_a_taken_stun_port() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
        with running("derper", "--dev", "--port", "0", "--stun-port", port) as derper:
            listening = json.loads(first_line(derper.stdout))
            assert listening["stun_port"] is None
            assert listening["url"] == f"http://127.0.0.1:{listening['port']}"
            assert first_line(derper.stderr).startswith(f"warning: UDP port {port} is".encode())
            with socket.create_connection(("127.0.0.1", listening["port"]), timeout=10) as web:
                web.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert web.recv(1024).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_pipe_carries_both_directions_whole(size: int) -> None:
    there, back = os.urandom(size), os.urandom(size // 2)
    bind = ["--no-derp", "--bind", "127.0.0.1:0"]
    with running("listen", *bind) as listener:
        ticket = ""
        while not ticket.startswith("node"):
            ticket = first_line(listener.stderr).decode().split()[-1]
        answers: list[bytes] = []
        # The ends read each other's bytes, so both have to be fed and drained at once.
        feeding = threading.Thread(
            target=lambda: answers.extend(listener.communicate(back, timeout=LIMIT))
        )
        feeding.start()
        connecting = run("connect", ticket, *bind, stdin=there)
        feeding.join(LIMIT)
    assert connecting.returncode == 0, connecting.stderr
    assert connecting.stdout == back
    assert answers[0] == there
    assert listener.returncode == 0


def test_a_peer_that_dies_after_its_end_is_noticed_while_stdin_is_silent() -> None:
    with running("listen", "--no-derp", "--bind", "127.0.0.1:0") as listener:
        ticket = ""
        while not ticket.startswith("node"):
            ticket = first_line(listener.stderr).decode().split()[-1]

        async def say_all_and_die() -> None:
            addr = NodeTicket.from_str(ticket).node_addr
            async with await MagicEndpoint.bind(bind_addrs=["127.0.0.1:0"]) as endpoint:
                connection = await endpoint.connect(addr, alpn=DUMBPIPE_ALPN)
                stream = await connection.open_bi()
                await stream.send(HELLO + b"all")
                await stream.send_eof()
                await stream.wait_delivered()
                connection.close(7, "died")

        anyio.run(say_all_and_die)
        assert listener.stdout is not None
        assert listener.stdout.read() == b"all"
        assert listener.wait(LIMIT) == 1
        assert listener.stderr is not None
        assert b"not all data came through" in listener.stderr.read()


def test_who_was_let_in_too_late_is_told() -> None:
    async def come_late() -> None:
        loopback = ["127.0.0.1:0"]
        async with (
            await MagicEndpoint.bind(bind_addrs=loopback, alpns=[DUMBPIPE_ALPN]) as listener,
            await MagicEndpoint.bind(bind_addrs=loopback) as late,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(pipe.turn_away, listener)
            addr = NodeAddr(listener.node_id, direct_addresses=listener.bound_addresses)
            connection = await late.connect(addr, alpn=DUMBPIPE_ALPN)
            reason = await connection.wait_closed()
            assert (reason.code, reason.text) == (pipe.BROKEN, "taken")
            tasks.cancel_scope.cancel()

    anyio.run(come_late)


def test_connect_by_node_id_meets_at_the_derp_server(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    node_id = NodeId.from_str(run("key", "generate", str(key_file)).stdout.decode().strip())
    with running("derper", "--dev", "--port", "0", "--stun-port", "0") as derper:
        derp = ["--derp", json.loads(first_line(derper.stdout))["url"]]
        with running(
            "listen", *derp, "--recv-only", "--secret-key-file", str(key_file)
        ) as listener:
            assert first_line(listener.stderr).startswith(b"Listening")
            connecting = run("connect", str(node_id), *derp, stdin=b"by id alone")
            answers = listener.communicate(b"", timeout=LIMIT)
    assert connecting.returncode == 0, connecting.stderr
    assert answers[0] == b"by id alone"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("arguments", "says_first"),
    [
        (["listen", "--no-derp", "--bind", "127.0.0.1:0"], "stderr"),
        (["derper", "--dev", "--port", "0", "--stun-port", "0"], "stdout"),
        (["demo"], "stderr"),
    ],
    ids=["listen", "derper", "demo"],
)
def test_a_signal_ends_a_command_in_good_order(
    arguments: list[str], says_first: str, number: signal.Signals
) -> None:
    with running(*arguments) as process:
        assert first_line(getattr(process, says_first))
        process.send_signal(number)
        _, complaint = process.communicate(timeout=LIMIT)
    assert process.returncode == 128 + number
    assert b"Traceback" not in complaint
    assert b"Error" not in complaint


def test_ctrl_c_at_one_end_of_a_pipe_fails_the_other() -> None:
    bind = ["--no-derp", "--bind", "127.0.0.1:0"]
    with running("listen", *bind) as listener:
        first_line(listener.stderr)
        ticket = first_line(listener.stderr).decode().split()[-1]
        with running("connect", ticket, *bind, "-v") as connecting:
            while b"Connected to" not in first_line(connecting.stderr):
                pass
            connecting.send_signal(signal.SIGINT)
            connecting.communicate(timeout=LIMIT)
        _, complaint = listener.communicate(timeout=LIMIT)
    assert connecting.returncode == 128 + signal.SIGINT
    assert listener.returncode == 1
    assert b"Error: not all data came through" in complaint


def test_verbose_tells_on_stderr_alone() -> None:
    nobody = NodeAddr(SecretKey(SECRET).public, direct_addresses=["127.0.0.1:9"])
    quiet, loud = (
        run("connect", str(NodeTicket(nobody)), "--no-derp", "--bind", "127.0.0.1:0", *verbose)
        for verbose in ([], ["-v"])
    )
    assert quiet.stdout == loud.stdout == b""
    assert b"iroh_anyio.endpoint" not in quiet.stderr
    assert b"iroh_anyio.endpoint" in loud.stderr


def test_demo_json_reports_a_relayed_start_and_a_direct_end(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(200_000))
    done = run("demo", "--file", str(file), "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    result = json.loads(done.stdout)
    assert result["ok"] is True
    assert (result["first_path"], result["final_path"]) == ("derp", "direct")
    assert result["bytes"] == 200_000
    assert result["sha256_equal"] is True
    assert result["seconds"] > 0
    assert {event["event"] for event in result["events"]} >= {"ready", "path", "verified", "done"}


def test_lab_records_a_pair_of_nats_and_draws_what_happened(tmp_path: Path) -> None:
    recorded = run("lab", "nat-pair", "EI/APD", "EI/APD", "--seed", "3")
    assert recorded.returncode == 0
    assert b"direct after" in recorded.stderr
    drawn = run("lab", "draw", "-", stdin=recorded.stdout)
    assert drawn.returncode == 0
    assert drawn.stdout.startswith(b"<svg ")
    assert b"call me maybe" in drawn.stdout
    refused = run("lab", "draw", "-", stdin=b"no time line")
    assert refused.returncode == 1
    assert b"cannot draw" in refused.stderr


def test_lab_repeats_a_run_and_says_where_it_differs() -> None:
    recorded = run("lab", "nat-pair", "EI/APD", "EI/APD", "--seed", "3").stdout
    same = run("lab", "replay", "-", stdin=recorded)
    assert same.returncode == 0, same.stderr
    assert b"first/magicsock: " in same.stdout
    assert same.stderr == b""
    lines = recorded.decode().splitlines(keepends=True)
    place = next(place for place, line in enumerate(lines) if '"PathChanged"' in line)
    lines[place] = lines[place].replace('"kind": "derp"', '"kind": "direct"')
    other = "".join(lines).encode()
    differs = run("lab", "replay", "-", stdin=other)
    assert differs.returncode == 1
    assert differs.stderr.startswith(f"line {place + 1}, ".encode())
    result = json.loads(run("lab", "replay", "-", "--json", stdin=other).stdout)
    assert result["difference"]["line"] == place + 1
    refused = run("lab", "replay", "-", stdin=b"no time line")
    assert refused.returncode == 1
    assert b"cannot replay" in refused.stderr


@pytest.mark.parametrize(
    ("window", "complaint"),
    [
        (("--from", "5", "--to", "1"), b"--from 5 is not before --to 1"),
        (("--from", "nan"), b"nan is no number of seconds"),
        (("--to", "inf"), b"inf is no number of seconds"),
    ],
)
def test_lab_refuses_a_window_that_cannot_be(window: tuple[str, ...], complaint: bytes) -> None:
    refused = run("lab", "draw", "-", *window, stdin=b"")
    assert refused.returncode == 2
    assert complaint in refused.stderr
    assert refused.stdout == b""


def test_lab_says_when_there_is_nothing_to_draw() -> None:
    recorded = run("lab", "nat-pair", "EI/APD", "EI/APD").stdout
    late = run("lab", "draw", "-", "--from", "1000", "--to", "1010", stdin=recorded)
    assert b"nothing to draw in <stdin>: from 1000 s to 1010 s there is no message" in late.stderr
    bare = run("lab", "draw", "-", stdin=recorded.splitlines()[0])
    assert bare.stderr == b"Error: nothing to draw in <stdin>: nothing is recorded\n"
    head, *entries = recorded.splitlines()
    payload = [line for line in entries if b'"labels": ["payload' in line]
    silent = run("lab", "draw", "-", stdin=b"\n".join([head, *payload]))
    hint = re.search(rb"; there are (\d+) payload datagrams: --payload draws them", silent.stderr)
    assert hint is not None
    assert int(hint[1]) > 0
    assert run("lab", "draw", "-", "--payload", stdin=b"\n".join([head, *payload])).returncode == 0
    for drawn in (late, bare, silent):
        assert drawn.returncode == 1
        assert drawn.stdout.startswith(b"<svg ")


def test_lab_draws_only_together_what_belongs_together(tmp_path: Path) -> None:
    def write(name: str, lifeline: str) -> str:
        head = {"format": "iroh-timeline/1", "lifelines": [lifeline]}
        (tmp_path / name).write_text(json.dumps(head) + "\n")
        return str(tmp_path / name)

    left, right = write("left", "a"), write("right", "b")
    strangers = run("lab", "draw", left, right)
    assert strangers.returncode == 1  # there is nothing in them
    assert f"warning: nothing connects {left} with {right}: ".encode() in strangers.stderr
    again = run("lab", "draw", left, left)
    assert again.returncode == 1
    assert b"the time lines 1 and 2 are the same recording" in again.stderr


def test_lab_says_which_machine_it_does_not_know() -> None:
    recorded = run("lab", "nat-pair", "EI/APD", "EI/APD").stdout
    strange = recorded.replace(b'"machine": "Magicsock"', b'"machine": "Nonsense"', 1)
    done = run("lab", "replay", "-", stdin=strange)
    assert done.returncode == 1
    assert done.stderr == b"not repeated: first/magicsock (unknown machine Nonsense)\n"
    assert b"second/magicsock: " in done.stdout


def test_lab_does_not_pass_off_nothing_as_the_same() -> None:
    head = run("lab", "nat-pair", "EI/APD", "EI/APD").stdout.splitlines()[0]
    done = run("lab", "replay", "-", stdin=head)
    assert done.returncode == 1
    assert b"nothing was repeated" in done.stderr


@pytest.mark.parametrize("command", ["draw", "replay"])
def test_lab_uses_what_precedes_a_line_that_is_cut_short(command: str, tmp_path: Path) -> None:
    lines = run("lab", "nat-pair", "EI/APD", "EI/APD").stdout.splitlines(keepends=True)
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(b"".join(lines[:40]) + lines[40][:20])
    done = run("lab", command, str(cut))
    assert done.returncode == 0
    assert done.stderr == f"{cut}: line 41 is cut short and left out\n".encode()
    assert done.stdout
    cut.write_bytes(b"".join(lines[:40]) + lines[40][:20] + b"\n" + lines[41])
    refused = run("lab", command, str(cut))
    assert refused.returncode == 1
    assert refused.stderr == f"Error: cannot {command} {cut}: line 41 is not JSON\n".encode()


@pytest.mark.parametrize("command", ["draw", "replay"])
@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "the file is empty"),
        (b"\x7fELF\xff\n" * 1000, "no time line: line 1 is not text"),
        (b"{}\n", 'no time line: line 1 has no "format"'),
    ],
)
def test_lab_says_in_words_what_is_no_time_line(
    command: str, content: bytes, complaint: str, tmp_path: Path
) -> None:
    file = tmp_path / "x"
    file.write_bytes(content)
    refused = run("lab", command, str(file))
    assert refused.returncode == 1
    assert refused.stderr.decode() == f"Error: cannot {command} {file}: {complaint}\n"


def test_traced_commands_can_be_drawn_and_repeated(tmp_path: Path) -> None:
    listening, dialling = str(tmp_path / "listen.jsonl"), str(tmp_path / "connect.jsonl")
    with running("derper", "--dev", "--port", "0", "--stun-port", "0") as derper:
        derp = ["--derp", json.loads(first_line(derper.stdout))["url"]]
        with running("listen", *derp, "--recv-only", "--trace", listening) as listener:
            ticket = ""
            while not ticket.startswith("node"):
                ticket = first_line(listener.stderr).decode().split()[-1]
            connecting = run("connect", ticket, "--trace", dialling, stdin=b"seen")
            assert listener.communicate(b"", timeout=LIMIT)[0] == b"seen"
    assert connecting.returncode == 0, connecting.stderr
    for file in (listening, dialling):
        replayed = run("lab", "replay", file)
        assert replayed.returncode == 0, replayed.stderr
        assert b"/paths: " in replayed.stdout
    drawn = run("lab", "draw", listening, dialling)
    assert drawn.returncode == 0, drawn.stderr
    assert b"direct " in drawn.stdout


def test_the_demonstration_can_be_traced(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(200_000))
    traces = tmp_path / "not" / "yet"
    done = run("demo", "--file", str(file), "--json", "--trace", str(traces))
    assert done.returncode == 0, done.stderr
    drawn = run("lab", "draw", *(str(traces / f"{name}.jsonl") for name in ("sender", "receiver")))
    assert drawn.stderr == b""
    assert drawn.stdout.count(b">direct ") >= 2
    assert b"call me maybe" in drawn.stdout


def test_a_trace_that_cannot_be_written_names_its_option(tmp_path: Path) -> None:
    file = tmp_path / "none" / "x.jsonl"
    refused = run("listen", "--no-derp", "--trace", str(file))
    assert refused.returncode == 1
    message = f"Error: --trace: cannot write {file}: No such file or directory\n"
    assert refused.stderr.decode() == message
    refused = run("demo", "--trace", "/dev/null/x")
    assert refused.returncode == 1
    assert refused.stderr == b"Error: --trace: cannot make /dev/null/x: Not a directory\n"


def test_lab_prints_and_draws_the_nat_matrix(tmp_path: Path) -> None:
    picture = tmp_path / "matrix.svg"
    done = run("lab", "nat-matrix", "--seeds", "1", "--jobs", "2", "--json", "--svg", str(picture))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result["cells"]) == 100
    assert all(cell["agrees"] for cell in result["cells"])
    assert picture.read_text(encoding="utf-8").startswith("<svg ")
    assert done.stderr == b""


def test_lab_says_what_a_large_network_costs() -> None:
    size = ("--nodes", "12", "--derpers", "2", "--pairs", "2", "--hours", "0.1")
    done = run("lab", "scale", *size, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["nodes"], report["at_home"], report["seconds"]) == (12, 12, 360)
    assert report["talks"] == report["answered"] > 0
    assert 0 < report["idle_datagrams"] < 0.1
    assert report["cpu_seconds"] > 0
    shown = run("lab", "scale", *size)
    assert b"UDP datagrams per idle endpoint" in shown.stdout
    wrong = run("lab", "scale", "--nodes", "3", "--pairs", "2")
    assert (wrong.returncode, wrong.stdout) == (2, b"")
