"""A DERP server as its configuration file has it: TLS, pages, access, metrics, reload, drain."""

from __future__ import annotations

import errno
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import httpx
import pytest
from anyio.abc import SocketAttribute, SocketStream
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from iroh_anyio import ConnectTimeout, MagicEndpoint
from iroh_anyio.derper import Derper
from iroh_anyio.derper.access import (
    AccessControl,
    AccessRule,
    Allowlist,
    Denylist,
    HttpCallout,
    SharedTokens,
)
from iroh_anyio.derper.certificates import CertificateError
from iroh_anyio.derper.config_file import parse_config
from iroh_anyio.derper.ports import PortError
from iroh_proto import DerpMap, NodeAddr, NodeId, SecretKey
from iroh_proto.derp.map import DerpNode
from iroh_proto.derp.rate import AcceptLimit, RateLimit
from iroh_proto.x25519 import X25519PublicKey
from tests.anyio.nodes import ALPN, LIMIT, bind
from tests.anyio.tls_files import Authority
from tests.proto.derp_peer import Peer
from tests.soak.clients import Link

pytestmark = pytest.mark.anyio

ALICE, BOB = SecretKey(bytes(range(32))), SecretKey(bytes(range(1, 33)))
LOCAL = """
http_bind_addr = "127.0.0.1:0"
metrics_bind_addr = "127.0.0.1:0"
stun_bind_addr = "127.0.0.1:0"
"""


class Tls:
    """An authority, a certificate of it, and what a file says of them."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority.make()
        self.ca_file = self.authority.write(folder / "ca.pem")
        self.paths = folder / "default.crt", folder / "default.key"
        self.issue(serial=1)
        self.text = (
            f'{LOCAL}[tls]\ncert_mode = "Reloading"\ncert_dir = "{folder}"\n'
            'https_bind_addr = "127.0.0.1:0"\nhostname = "localhost"\n'
        )

    def issue(self, serial: int) -> None:
        self.authority.issue(*self.paths, serial=serial)

    def client(self) -> httpx.AsyncClient:
        context = ssl.create_default_context(cafile=self.ca_file)
        return httpx.AsyncClient(verify=context, trust_env=False)


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return Tls(tmp_path)


@asynccontextmanager
async def serving(text: str) -> AsyncIterator[Derper]:
    with anyio.fail_after(3 * LIMIT):
        async with await Derper.open(parse_config(text)) as derper:
            yield derper


async def get(url: str, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.get(url, headers=headers)


def endpoint_at(
    derper: Derper,
    secret_key: SecretKey,
    *,
    token: str | None = None,
    ca_file: Path | None = None,
    dialect: str | None = None,
) -> dict[str, object]:
    url = derper.url.replace("127.0.0.1", "localhost")
    derp_map = DerpMap([DerpNode(url, stun_port=None, token=token, dialect=dialect)])
    return {"secret_key": secret_key, "derp_map": derp_map, "ca_file": ca_file}


@asynccontextmanager
async def meeting(
    derper: Derper, *, ca_file: Path | None = None, token: str | None = None
) -> AsyncIterator[tuple[MagicEndpoint, MagicEndpoint]]:
    """Run two nodes that have met at the server."""
    alice = endpoint_at(derper, ALICE, ca_file=ca_file, token=token)
    bob = endpoint_at(derper, BOB, ca_file=ca_file, token=token)
    async with await bind(alpns=[ALPN], **alice) as server, await bind(**bob) as client:
        addr = await server.node_addr()
        assert addr.derp_url is not None
        connection = await client.connect(
            NodeAddr(server.node_id, derp_url=addr.derp_url), alpn=ALPN
        )
        assert connection.remote_node_id == ALICE.public
        yield server, client


async def is_let_in(derper: Derper, secret_key: SecretKey, token: str | None = None) -> bool:
    """Say whether a node finds its home there."""
    node = endpoint_at(derper, secret_key, token=token, dialect="relay-v2")
    async with await bind(**node) as endpoint:
        with anyio.fail_after(LIMIT):
            while endpoint.home_derp is None and not endpoint.derp_problems:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        return endpoint.home_derp is not None


async def test_with_tls_the_plain_port_answers_challenges_and_redirects(tls: Tls) -> None:
    async with serving(tls.text) as derper:
        assert derper.url.startswith("https://127.0.0.1:")
        plain = f"http://127.0.0.1:{derper.plain_port}"
        challenged = await get(f"{plain}/generate_204", **{"X-Iroh-Challenge": "ts_x"})
        assert challenged.status_code == 204
        assert challenged.headers["x-iroh-response"] == "response ts_x"
        moved = await get(f"{plain}/healthz?x=1")
        assert moved.status_code == 302
        assert moved.headers["location"] == f"https://localhost:{derper.port}/healthz?x=1"
        async with tls.client() as client:
            page = await client.get(moved.headers["location"])
            assert page.json()["status"] == "ok"
            assert page.headers["x-content-type-options"] == "nosniff"
            assert "where nodes meet" in (await client.get(derper.url)).text


async def test_nodes_meet_over_tls(tls: Tls) -> None:
    async with serving(tls.text) as derper, meeting(derper, ca_file=tls.ca_file):
        assert set(derper.machine.clients) == {ALICE.public, BOB.public}


class TestAddressDiscovery:
    """By QUIC, with the certificate of the server and the authority that clients were given."""

    @staticmethod
    def text(tls: Tls) -> str:
        return tls.text.replace(
            "[tls]", 'enable_quic_addr_discovery = true\n[tls]\nquic_bind_addr = "127.0.0.1:0"'
        )

    @staticmethod
    def node(derper: Derper, tls: Tls) -> dict[str, object]:
        node = DerpNode(
            f"https://localhost:{derper.port}", stun_port=None, quic_port=derper.quic_port
        )
        return {"derp_map": DerpMap([node]), "ca_file": tls.ca_file}

    async def test_a_client_learns_its_address(self, tls: Tls) -> None:
        async with serving(self.text(tls)) as derper:
            async with await bind(**self.node(derper, tls)) as endpoint:
                await settled(lambda: endpoint.machine.qad_stats.answered == 1)
            metrics = await scrape(derper)
            assert metrics["relayserver_qad_connections_total"] == 1
            assert metrics["relayserver_qad_incoming_total"] >= 1

    async def test_it_shows_a_new_certificate(self, tls: Tls) -> None:
        async with serving(self.text(tls)) as derper:
            other = Authority.make()
            other.issue(*tls.paths, serial=2)
            other.write(tls.ca_file)
            derper.reload(parse_config(self.text(tls)))
            async with await bind(**self.node(derper, tls)) as endpoint:
                await settled(lambda: endpoint.machine.qad_stats.answered == 1)

    async def test_it_frees_its_port(self, tls: Tls) -> None:
        derper = await Derper.open(parse_config(self.text(tls)))
        await derper.close()
        again = self.text(tls).replace(
            'quic_bind_addr = "127.0.0.1:0"', f'quic_bind_addr = "127.0.0.1:{derper.quic_port}"'
        )
        async with serving(again) as second:
            assert second.quic_port == derper.quic_port
            with pytest.raises(OSError, match=r"."):
                await Derper.open(parse_config(again))


async def test_without_relaying_there_are_pages_alone() -> None:
    async with serving(f"{LOCAL}enable_relay = false") as derper:
        assert (await get(f"{derper.url}/ping")).status_code == 200
        assert (await get(f"{derper.url}/relay")).status_code == 404
        assert not await is_let_in(derper, ALICE)


async def test_a_certificate_that_cannot_be_used_is_an_error(tls: Tls) -> None:
    tls.paths[1].write_text("no key")
    with pytest.raises(CertificateError, match=r"default\.key"):
        await Derper.open(parse_config(tls.text))


async def test_a_taken_port_is_an_error_and_frees_the_others() -> None:
    async with serving(LOCAL) as derper:
        taken = f'stun_bind_addr = "127.0.0.1:{derper.stun_port}"'
        text = LOCAL.replace('stun_bind_addr = "127.0.0.1:0"', taken)
        with pytest.raises(PortError, match=f"cannot bind 127.0.0.1 UDP port {derper.stun_port}"):
            await Derper.open(parse_config(text))
    freed = f'http_bind_addr = "127.0.0.1:{derper.port}"'
    async with serving(LOCAL.replace('http_bind_addr = "127.0.0.1:0"', freed)):
        pass


@pytest.mark.parametrize(
    ("key", "protocol"),
    [
        ("http_bind_addr", "TCP"),
        ("tls.https_bind_addr", "TCP"),
        ("metrics_bind_addr", "TCP"),
        ("stun_bind_addr", "UDP"),
        ("tls.quic_bind_addr", "UDP"),
    ],
)
async def test_the_error_of_a_taken_port_names_address_and_key(
    tls: Tls, key: str, protocol: str
) -> None:
    kind = socket.SOCK_STREAM if protocol == "TCP" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        text = f"enable_quic_addr_discovery = true\n{tls.text}"
        text += 'quic_bind_addr = "127.0.0.1:0"\n'
        name = key.removeprefix("tls.")
        text = text.replace(f'{name} = "127.0.0.1:0"', f'{name} = "127.0.0.1:{port}"')
        words = f"cannot bind 127.0.0.1 {protocol} port {port}: {os.strerror(errno.EADDRINUSE)}"
        with pytest.raises(PortError, match=words) as caught:
            await Derper.open(parse_config(text))
        assert caught.value.key == key


class TestAccess:
    async def test_lists(self) -> None:
        for text, alice, bob in (
            (f'access.allowlist = ["{ALICE.public}"]', True, False),
            (f'access.denylist = ["{ALICE.public}"]', False, True),
            ('access = "everyone"', True, True),
        ):
            async with serving(f"{LOCAL}{text}") as derper:
                assert await is_let_in(derper, ALICE) is alice
                assert await is_let_in(derper, BOB) is bob

    async def test_shared_tokens(self) -> None:
        async with serving(f'{LOCAL}access.shared_token = ["one", "two"]') as derper:
            assert not await is_let_in(derper, ALICE)
            assert not await is_let_in(derper, ALICE, "three")
            assert await is_let_in(derper, ALICE, "one")
            assert await is_let_in(derper, BOB, "two")
            assert derper.machine.stats.connections.clients_denied >= 2
            async with meeting(derper, token="two"):
                pass

    @pytest.mark.parametrize(
        ("dialect", "words"), [("v3", "not authenticated"), ("relay-v2", "not authorized")]
    )
    async def test_who_is_denied_is_told_so(self, dialect: str, words: str) -> None:
        async with (
            serving(f"{LOCAL}access.allowlist = []") as derper,
            await bind(**endpoint_at(derper, ALICE, dialect=dialect)) as endpoint,
        ):
            await settled(lambda: words in "".join(endpoint.derp_problems.values()))

    async def test_who_is_denied_is_warned_once(self, caplog: pytest.LogCaptureFixture) -> None:
        async with (
            serving(f"{LOCAL}access.allowlist = []") as derper,
            await bind(**endpoint_at(derper, ALICE, dialect="v3")),
        ):
            await settled(lambda: derper.machine.stats.connections.clients_denied >= 3)
        warnings = [
            record.getMessage() for record in caplog.records if record.levelname == "WARNING"
        ]
        assert [warning.partition(" says: ")[2] for warning in warnings] == ["not authenticated"]

    @pytest.mark.parametrize(
        ("status", "body", "is_allowed"),
        [
            (200, b"true", True),
            (200, b"true ", False),
            (200, b"TRUE", False),
            (200, b"false", False),
            (200, b"", False),
            (201, b"true", False),
            (403, b"true", False),
            (500, b"", False),
        ],
    )
    async def test_a_web_service_is_asked(self, status: int, body: bytes, is_allowed: bool) -> None:
        async with web_service(status, body) as (url, requests):
            text = f'{LOCAL}access.http = {{url = "{url}/may?x=1", bearer_token = "hush"}}'
            async with serving(text) as derper:
                assert await is_let_in(derper, ALICE) is is_allowed
        request = requests[0].lower()
        assert request.startswith(b"post /may?x=1 http/1.1\r\n")
        assert b"\r\nx-iroh-nodeid: " + str(ALICE.public).encode() + b"\r\n" in request
        assert b"\r\nauthorization: bearer hush\r\n" in request

    async def test_a_web_service_that_is_away_lets_nobody_in(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING):
            async with serving(f'{LOCAL}access.http.url = "http://127.0.0.1:9/"') as derper:
                assert not await is_let_in(derper, ALICE)
        assert "cannot ask http://127.0.0.1:9/" in caplog.text

    async def test_a_defect_of_the_library_lets_nobody_in_and_ends_nothing(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(*arguments: object, **settings: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(httpx.AsyncClient, "stream", broken)
        async with serving(f'{LOCAL}access.http.url = "http://127.0.0.1:9/"') as derper:
            assert not await is_let_in(derper, ALICE)
            assert not await is_let_in(derper, BOB)
        assert "ZeroDivisionError" in caplog.text

    async def test_a_web_service_that_hangs_lets_nobody_in(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("iroh_anyio.derper.access.CALLOUT_TIMEOUT", 0.2)
        with caplog.at_level(logging.WARNING):
            async with (
                web_service(200, b"true", gate=anyio.Event()) as (url, _),
                serving(f'{LOCAL}access.http.url = "{url}"') as derper,
            ):
                assert not await is_let_in(derper, ALICE)
        assert "gave no answer within 0.2 s" in caplog.text

    @pytest.mark.parametrize(
        ("answer", "rule", "is_allowed"),
        [
            (b"true", Denylist(frozenset([ALICE.public])), False),
            (b"false", Denylist(frozenset()), True),
            (b"true", SharedTokens(("another",)), False),
            (b"false", SharedTokens(("hush",)), True),
        ],
    )
    async def test_a_rule_that_came_meanwhile_goes_before_the_answer(
        self, answer: bytes, rule: AccessRule, is_allowed: bool
    ) -> None:
        gate = anyio.Event()
        async with web_service(200, answer, gate=gate) as (url, requests):
            access = AccessControl(HttpCallout(url))

            async def change() -> None:
                await settled(lambda: bool(requests))
                access.rule = rule
                gate.set()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(change)
                allowed = await access.ask(ALICE.public, "hush", still_waits=lambda: True)
            assert allowed is is_allowed
            await access.close()

    async def test_another_web_service_that_came_meanwhile_is_asked(self) -> None:
        async with web_service(200, b"false") as (url, _), web_service(200, b"true") as (other, _):
            access = AccessControl(HttpCallout(url))

            def change() -> bool:
                access.rule = HttpCallout(other)
                return True

            assert await access.ask(ALICE.public, None, still_waits=change)
            await access.close()

    async def test_nobody_is_asked_about_who_has_left(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("iroh_anyio.derper.access.CALLOUTS_LIMIT", 1)
        gate = anyio.Event()
        async with (
            web_service(200, b"true", gate=gate) as (url, requests),
            serving(f'{LOCAL}access.http.url = "{url}"') as derper,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(is_let_in, derper, ALICE)
            await settled(lambda: len(requests) == 1)
            leaver = SecretKey(bytes([7]) * 32)
            await prove_and_leave(derper.port, leaver)
            tasks.start_soon(is_let_in, derper, BOB)
            await settled(lambda: derper.connections == 3)
            gate.set()
            await settled(lambda: derper.machine.stats.connections.clients_denied == 1)
        assert not any(str(leaver.public).encode() in request for request in requests)
        assert len(requests) == 2

    async def test_who_waits_no_more_is_no_warning(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("iroh_anyio.derper.access.CALLOUT_TIMEOUT", 0.1)
        async with web_service(200, b"true", gate=anyio.Event()) as (url, _):
            access = AccessControl(HttpCallout(url))
            waits = iter([True, False])
            assert not await access.ask(ALICE.public, None, still_waits=lambda: next(waits))
            await access.close()
        assert caplog.text == ""


async def prove_and_leave(port: int, secret_key: SecretKey) -> None:
    link, peer = await Link.open(port), Peer("relay-v2", secret_key)
    await link.send(peer.request)
    proof = b""
    while not proof:
        received = await link.receive()
        assert received
        proof = peer.receive(received)
    await link.send(proof)
    link.close()


@asynccontextmanager
async def web_service(
    status: int, body: bytes, *, gate: anyio.Event | None = None
) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Run one that answers the same to all, once ``gate`` is open."""
    requests: list[bytes] = []

    async def serve(stream: SocketStream) -> None:
        async with stream:
            # Who asks may have run out of patience before it has spoken.
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                requests.append(await stream.receive())
                if gate is not None:
                    await gate.wait()
                head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n\r\n"
                await stream.send(head.encode() + body)

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, serve)
        port = listener.extra(SocketAttribute.local_port)
        yield f"http://127.0.0.1:{port}", requests
        tasks.cancel_scope.cancel()


async def scrape(derper: Derper) -> dict[str, float]:
    """Return the metrics, as a scraper reads them."""
    response = await get(f"http://127.0.0.1:{derper.metrics_port}/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    families = list(text_string_to_metric_families(response.text))  # type: ignore[no-untyped-call]
    assert all(family.documentation for family in families)
    return {sample.name: sample.value for family in families for sample in family.samples}


UPSTREAM = {
    f"relayserver_{name}_total"
    for names in (
        "accepts disconnects unique_client_keys clients_inactive_added clients_inactive_removed",
        "bytes_sent bytes_recv send_packets_sent send_packets_recv send_packets_dropped",
        "other_packets_sent other_packets_recv other_packets_dropped unknown_frames",
        "got_ping sent_pong bytes_rx_ratelimited conns_rx_ratelimited",
        "http_connections http_connections_closed http_connections_errored",
    )
    for name in names.split()
}


class TestMetrics:
    async def test_a_scraper_reads_the_names_of_upstream(self) -> None:
        async with serving(LOCAL) as derper:
            assert set(await scrape(derper)) >= UPSTREAM

    async def test_they_count_what_happens(self) -> None:
        async with serving(f'{LOCAL}access.denylist = ["{SecretKey(bytes(32)).public}"]') as derper:
            before = await scrape(derper)
            assert before["relayserver_accepts_total"] == 0
            async with meeting(derper):
                during = await scrape(derper)
            assert not await is_let_in(derper, SecretKey(bytes(32)))
            await settled(lambda: derper.connections == 0)
            after = await scrape(derper)
        assert during["derper_clients"] == 2
        assert during["relayserver_accepts_total"] == 2
        assert during["relayserver_bytes_recv_total"] >= 1200
        assert during["relayserver_bytes_sent_total"] >= 1200
        assert during["relayserver_send_packets_sent_total"] >= 1
        assert during["relayserver_got_ping_total"] >= 2
        assert after["relayserver_disconnects_total"] == 2
        assert after["derper_clients"] == 0
        assert after["derper_clients_denied_total"] >= 1
        served = after["relayserver_http_connections_total"]
        assert served == after["relayserver_http_connections_closed_total"] >= 3
        assert all(after[name] >= value for name, value in during.items() if "_total" in name)

    async def test_they_say_when_the_certificate_ends(self, tls: Tls) -> None:
        async with serving(tls.text) as derper:
            expires = (await scrape(derper))["derper_certificate_expires_seconds"]
        assert expires == tls.authority.certificate.not_valid_after_utc.timestamp()

    async def test_only_reading_is_answered(self) -> None:
        async with serving(LOCAL) as derper, httpx.AsyncClient(trust_env=False) as client:
            url = f"http://127.0.0.1:{derper.metrics_port}/"
            assert (await client.post(url)).status_code == 405
            assert (await client.head(url)).status_code == 200

    async def test_they_can_be_switched_off(self) -> None:
        async with serving(f"{LOCAL}enable_metrics = false") as derper:
            assert derper.metrics_port is None


async def settled(is_so: Callable[[], bool]) -> None:
    with anyio.fail_after(LIMIT):
        while not is_so():  # noqa: ASYNC110 - nothing tells
            await anyio.sleep(0.01)


class TestReload:
    async def test_access_and_limits_change_while_it_runs(self) -> None:
        async with serving(LOCAL) as derper:
            assert await is_let_in(derper, ALICE)
            text = f'{LOCAL}access.denylist = ["{ALICE.public}"]\n'
            assert derper.reload(parse_config(text)) == []
            assert not await is_let_in(derper, ALICE)
            assert await is_let_in(derper, BOB)
            text = f"{LOCAL}[limits]\naccept_conn_limit = 0.001\naccept_conn_burst = 1\n"
            assert derper.reload(parse_config(text)) == []
            assert await is_let_in(derper, BOB)
            assert not await is_let_in(derper, BOB)

    async def test_who_is_denied_now_is_sent_away_and_nobody_else(self) -> None:
        async with serving(LOCAL) as derper, meeting(derper):
            assert set(derper.machine.clients) == {ALICE.public, BOB.public}
            text = f'{LOCAL}access.denylist = ["{ALICE.public}"]\n'
            assert derper.reload(parse_config(text)) == []
            assert derper.machine.clients == [BOB.public]
            text = f'{LOCAL}access.allowlist = ["{ALICE.public}"]\n'
            assert derper.reload(parse_config(text)) == []
            assert derper.machine.clients == []

    async def test_a_rate_limit_holds_for_who_is_connected(self) -> None:
        async with serving(LOCAL) as derper, meeting(derper) as (_, client):
            text = f"{LOCAL}[limits.client.rx]\nbytes_per_second = 100\nmax_burst_bytes = 1"
            assert derper.reload(parse_config(text)) == []
            # By the name that is its home: two connections of one key would displace each other.
            nobody = NodeAddr(SecretKey(bytes(32)).public, derp_url=str(client.home_derp))
            with pytest.raises(ConnectTimeout):
                await client.connect(nobody, alpn=ALPN, timeout=0.5)
            assert derper.machine.stats.router.clients_replaced == 0
            assert derper.machine.stats.connections.clients_throttled >= 1

    async def test_a_new_certificate_is_taken_up(self, tls: Tls) -> None:
        async with serving(tls.text) as derper:
            other = Authority.make()
            other.issue(*tls.paths, serial=2)
            derper.reload(parse_config(tls.text))
            with pytest.raises(httpx.ConnectError):
                async with tls.client() as client:
                    await client.get(f"{derper.url}/ping")
            other.write(tls.ca_file)
            async with tls.client() as client:
                assert (await client.get(f"{derper.url}/ping")).status_code == 200

    async def test_what_holds_after_a_restart_only_is_named(self, tls: Tls) -> None:
        async with serving(LOCAL) as derper:
            text = tls.text.replace('metrics_bind_addr = "127.0.0.1:0"', "enable_metrics = false")
            text += "[derper]\nmax_connections = 5\n"
            waiting = derper.reload(parse_config(text))
            assert waiting == ["tls", "metrics_bind_addr", "derper.max_connections"]
            assert derper.reload(parse_config(text)) == waiting

    async def test_of_tls_what_holds_after_a_restart_is_named_by_key(self, tls: Tls) -> None:
        async with serving(tls.text) as derper:
            text = tls.text.replace('https_bind_addr = "127.0.0.1:0"', "manual_cert_path = 'x'")
            waiting = derper.reload(parse_config(text.replace('"localhost"', '"elsewhere"')))
            assert waiting == ["tls.https_bind_addr", "tls.hostname", "tls.manual_cert_path"]


class TestDrain:
    async def test_clients_are_told_and_find_another_server(self) -> None:
        async with serving(f"{LOCAL}[derper]\ndrain_time = 0.5") as derper, meeting(derper):
            assert derper.connections == 2
            start = anyio.current_time()
            await derper.drain()
            assert 0.4 < anyio.current_time() - start < 5
            assert derper.connections == 0
            with pytest.raises(OSError, match=r"."):
                await anyio.connect_tcp("127.0.0.1", derper.port)

    async def test_an_idle_server_is_drained_at_once(self) -> None:
        async with serving(f"{LOCAL}[derper]\ndrain_time = 60") as derper:
            with anyio.fail_after(LIMIT):
                await derper.drain()


def test_lists_know_nodes_by_their_x25519_keys_too() -> None:
    """As clients of Tailscale's dialect have them, so that none gets round a list by it."""
    alice, bob = (X25519PublicKey(key.public.to_x25519()) for key in (ALICE, BOB))
    ids = frozenset([ALICE.public, NodeId(bytes(32))])  # one of them has no such key
    allowed = AccessControl(Allowlist(ids))
    assert allowed.decide(alice, None) is True
    assert allowed.decide(bob, None) is False
    denied = AccessControl(Denylist(ids))
    assert denied.decide(alice, None) is False
    assert denied.decide(bob, None) is True
    assert AccessControl(HttpCallout("http://x")).decide(alice, None) is False


def test_rules_are_equal_by_value() -> None:
    """Reloading tells by that what has changed."""
    ids = frozenset([ALICE.public])
    assert Allowlist(ids) == Allowlist(frozenset(ids))
    assert Denylist(ids) != Denylist(frozenset())
    assert SharedTokens(("a",)) != SharedTokens(("b",))
    assert RateLimit(1) != RateLimit(2)
    assert AcceptLimit(1, 2) == AcceptLimit(1, 2)
