"""DERP servers behind an HTTP proxy, which is a real one: proxy.py in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from iroh_anyio import HttpProxy, MagicEndpoint
from iroh_anyio.derper import Derper
from iroh_anyio.dial import dial
from iroh_anyio.proxy import ProxyError
from iroh_proto import DecodeError, DerpMap, DerpUrl, NodeAddr
from iroh_proto.derp.map import DerpNode
from tests.anyio.nodes import ALPN, LIMIT, bind
from tests.anyio.tls_files import Authority, server_context

START_LIMIT = 60.0  # seconds, on a busy machine


@contextmanager
def running_proxy(folder: Path, *arguments: str) -> Iterator[int]:
    """Run a proxy on loopback and yield its port."""
    port_file = folder / "port"
    command = [
        *(sys.executable, "-m", "proxy", "--hostname", "127.0.0.1", "--port", "0"),
        *("--port-file", str(port_file), "--num-workers", "1", "--num-acceptors", "1"),
        *("--log-file", str(folder / "log"), "--data-dir", str(folder), *arguments),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            yield wait_for_port(process, port_file)
        finally:
            process.terminate()
            process.wait(START_LIMIT)


def wait_for_port(process: subprocess.Popen[bytes], port_file: Path) -> int:
    """Return the number in the file, which the proxy writes when it listens."""
    deadline = time.monotonic() + START_LIMIT
    while not port_file.exists() or not port_file.read_text().strip():
        assert process.poll() is None, "the proxy ended"
        assert time.monotonic() < deadline, "the proxy does not start"
        time.sleep(0.05)
    return int(port_file.read_text())


@pytest.fixture(scope="module")
def proxy_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with running_proxy(tmp_path_factory.mktemp("proxy"), "--basic-auth", "user:pass word") as port:
        yield port


class Behind:
    """A DERP server over TLS, and what reaches it."""

    def __init__(self, derper: Derper, ca_file: Path) -> None:
        self.url = f"https://localhost:{derper.port}"
        self.ca_file = ca_file

    async def bind(self, proxy: HttpProxy | str | None, alpns: list[bytes]) -> MagicEndpoint:
        derp_map = DerpMap([DerpNode(self.url, stun_port=None)])
        return await bind(alpns=alpns, derp_map=derp_map, ca_file=self.ca_file, http_proxy=proxy)


@pytest.fixture
async def behind(tmp_path: Path) -> AsyncIterator[Behind]:
    authority = Authority.make()
    context = server_context(authority, tmp_path)
    async with await Derper.bind(port=0, stun_port=None, ssl_context=context) as derper:
        yield Behind(derper, authority.write(tmp_path / "ca.pem"))


@pytest.mark.anyio
async def test_two_nodes_meet_through_a_proxy(behind: Behind, proxy_port: int) -> None:
    proxy = HttpProxy("127.0.0.1", proxy_port, "user", "pass word")
    with anyio.fail_after(3 * LIMIT):
        async with (
            await behind.bind(f"http://user:pass%20word@127.0.0.1:{proxy_port}", [ALPN]) as server,
            await behind.bind(proxy, []) as client,
        ):
            await server.node_addr()
            addr = NodeAddr(server.node_id, derp_url=behind.url)
            connection = await client.connect(addr, alpn=ALPN)
            assert connection.remote_node_id == server.node_id
            assert client.derp_problems == {}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("http://user:wrong@127.0.0.1:{port}", "407, it wants a user and password"),
        ("http://127.0.0.1:{port}", "407, it wants a user and password"),
        ("http://127.0.0.1:9", "127.0.0.1 port 9: Connection refused"),
    ],
)
async def test_a_proxy_that_does_not_let_through_is_named(
    behind: Behind, proxy_port: int, text: str, problem: str
) -> None:
    async with await behind.bind(text.format(port=proxy_port), []) as endpoint:
        with anyio.fail_after(LIMIT):
            while not endpoint.derp_problems:  # noqa: ASYNC110 - it is a property
                await anyio.sleep(0.02)
        (said,) = endpoint.derp_problems.values()
        assert problem in said
        assert "wrong" not in said


@pytest.mark.anyio
async def test_an_authority_that_is_not_named_is_not_trusted(behind: Behind) -> None:
    derp_map = DerpMap([DerpNode(behind.url, stun_port=None)])
    async with await bind(derp_map=derp_map) as endpoint:
        with anyio.fail_after(LIMIT):
            while not endpoint.derp_problems:  # noqa: ASYNC110 - it is a property
                await anyio.sleep(0.02)
        problem = endpoint.derp_problems[DerpUrl.from_str(behind.url)]
        assert "certificate verify failed" in problem
        assert problem.endswith("; if its authority is your own, give it by ca_file (--ca-file)")


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[HttpProxy]:
    """Run what takes itself for a proxy, and says the same to everyone."""
    asked: list[bytes] = []

    async def serve(stream: SocketStream) -> None:
        async with stream:
            asked.append(await stream.receive())
            await stream.send(answer)

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, serve)
        yield HttpProxy("127.0.0.1", listener.extra(SocketAttribute.local_port))
        assert asked[0].startswith(b"CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n")
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "refused ::1:443: 502 Bad Gateway"),
        (b"HTTP/1.1 302 Found\r\n\r\n", "302 Found"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "speaks no HTTP"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 20_000, "speaks no HTTP"),
        (b"HTTP/1.1 200", "speaks no HTTP"),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", "before it was asked"),
    ],
    ids=["502", "redirect", "no HTTP", "too long", "cut off", "too early"],
)
async def test_answers_that_are_no_way_through(answer: bytes, problem: str) -> None:
    with anyio.fail_after(LIMIT):
        async with answering(answer) as proxy:
            with pytest.raises(ProxyError, match=re.escape(problem)):
                await dial("::1", 443, None, proxy=proxy)


@pytest.mark.parametrize(
    ("text", "proxy"),
    [
        ("http://proxy.example:3128", HttpProxy("proxy.example", 3128)),
        ("proxy.example", HttpProxy("proxy.example", 8080)),
        ("proxy.example:3128/", HttpProxy("proxy.example", 3128)),
        ("http://u%40x:p%3aw@[::1]:80", HttpProxy("::1", 80, "u@x", "p:w")),
    ],
)
def test_urls_of_proxies(text: str, proxy: HttpProxy) -> None:
    assert HttpProxy.from_str(text) == proxy


@pytest.mark.parametrize(
    "text",
    [
        "https://hush@x",
        "socks5://x",
        "http://",
        "http://hush@x:port",
        "http://x/hush",
        "http://a b",
    ],
)
def test_what_is_no_proxy_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(DecodeError) as caught:
        HttpProxy.from_str(text)
    assert "hush" not in str(caught.value)


def test_a_proxy_shows_no_password() -> None:
    proxy = HttpProxy.from_str("http://user:hush@[::1]:80")
    assert "hush" not in repr(proxy) + str(proxy)
    assert str(proxy) == "http://[::1]:80"


def test_the_environment_is_asked_in_order() -> None:
    environ = {"http_proxy": "a:1", "https_proxy": "", "HTTP_PROXY": "b:2"}
    assert HttpProxy.from_env(environ) == HttpProxy("b", 2)
    assert HttpProxy.from_env({**environ, "HTTPS_PROXY": "http://c:3"}) == HttpProxy("c", 3)
    assert HttpProxy.from_env({}) is None


@pytest.mark.anyio
async def test_the_environment_counts_for_nothing_unless_asked(
    behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    async with await behind.bind(None, []) as endpoint:
        addr = await endpoint.node_addr()
        assert addr.derp_url == DerpUrl.from_str(behind.url)
