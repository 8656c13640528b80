"""The settings of a DERP server, as files have them."""

from __future__ import annotations

import dataclasses
import os
import traceback
from pathlib import Path

import pytest

from iroh_anyio.derper.access import Allowlist, Denylist, Everyone, HttpCallout, SharedTokens
from iroh_anyio.derper.config import DerperConfig, TlsConfig
from iroh_anyio.derper.config_file import TOP_KEYS, load_config, parse_config
from iroh_anyio.derper.toml_table import ConfigError
from iroh_proto import NodeId, SecretKey, UdpAddress
from iroh_proto.derp.rate import AcceptLimit, RateLimit
from iroh_proto.errors import DecodeError

ALICE = SecretKey(bytes(range(32))).public
BOB = SecretKey(bytes(32)).public
KEY = bytes(range(1, 33)).hex()

FULL = f"""
enable_relay = true
http_bind_addr = "0.0.0.0:8080"
enable_stun = true
stun_bind_addr = "0.0.0.0:3479"
enable_quic_addr_discovery = true
enable_metrics = true
metrics_bind_addr = "127.0.0.1:9091"
key_cache_capacity = 1000
secret_key = "{KEY}"
access.allowlist = ["{ALICE}", "{BOB.to_base32()}"]

[tls]
https_bind_addr = "0.0.0.0:8443"
quic_bind_addr = "0.0.0.0:7843"
hostname = ["derp.example.com", "relay.example.com"]
cert_mode = "Reloading"
manual_cert_path = "/etc/derper/fullchain.pem"
manual_key_path = "/etc/derper/privkey.pem"
prod_tls = true
contact = "ops@example.com"

[limits]
accept_conn_limit = 2.5
accept_conn_burst = 40
[limits.client.rx]
bytes_per_second = 1000000
max_burst_bytes = 2000000

[derper]
max_connections = 500
drain_time = 1.5
listen_dialect = "v2"
"""


def test_every_key_of_a_full_file_is_read() -> None:
    config = parse_config(FULL)
    notices = config.notices
    assert dataclasses.replace(config, notices=()) == DerperConfig(
        enable_relay=True,
        http_bind_addr=UdpAddress("0.0.0.0", 8080),
        tls=TlsConfig(
            https_bind_addr=UdpAddress("0.0.0.0", 8443),
            quic_bind_addr=UdpAddress("0.0.0.0", 7843),
            hostnames=("derp.example.com", "relay.example.com"),
            certificate_path=Path("/etc/derper/fullchain.pem"),
            key_path=Path("/etc/derper/privkey.pem"),
        ),
        stun_bind_addr=UdpAddress("0.0.0.0", 3479),
        metrics_bind_addr=UdpAddress("127.0.0.1", 9091),
        rate_limit=RateLimit(1_000_000, 2_000_000),
        accept_limit=AcceptLimit(2.5, 40),
        access=Allowlist(frozenset([ALICE, BOB])),
        secret_key=SecretKey.from_str(KEY),
        max_connections=500,
        drain_time=1.5,
        listen_dialect="v2",
    )
    assert [notice.partition(" has no effect: ")[0] for notice in notices] == [
        "tls.prod_tls",
        "tls.contact",
        "key_cache_capacity",
    ]


def test_an_empty_file_means_the_defaults_of_iroh_relay() -> None:
    assert parse_config("") == DerperConfig(
        http_bind_addr=UdpAddress("::", 80),
        stun_bind_addr=UdpAddress("::", 3478),
        metrics_bind_addr=UdpAddress("::", 9090),
        access=Everyone(),
    )


def test_addresses_follow_the_one_before() -> None:
    config = parse_config(
        'http_bind_addr = "127.0.0.1:0"\nenable_quic_addr_discovery = true\n'
        '[tls]\ncert_mode = "Manual"\ncert_dir = "/certs"'
    )
    assert config.tls is not None
    assert config.tls.https_bind_addr == UdpAddress("127.0.0.1", 443)
    assert config.tls.quic_bind_addr == UdpAddress("127.0.0.1", 7842)
    assert config.tls.certificate_path == Path("/certs/default.crt")
    assert config.tls.key_path == Path("/certs/default.key")
    assert config.stun_bind_addr == UdpAddress("127.0.0.1", 3478)
    assert config.metrics_bind_addr == UdpAddress("127.0.0.1", 9090)


def test_settings_of_a_program_name_no_host_that_is_none() -> None:
    with pytest.raises(DecodeError, match="not a host name"):
        TlsConfig(
            https_bind_addr=None,
            hostnames=("derp.example.com", "d\u00e9rp.example"),
            certificate_path=Path("a"),
            key_path=Path("b"),
        )


def test_services_can_be_switched_off() -> None:
    config = parse_config("enable_relay = false\nenable_stun = false\nenable_metrics = false")
    assert not config.enable_relay
    assert config.stun_bind_addr is None
    assert config.metrics_bind_addr is None


def test_quic_is_off_unless_switched_on() -> None:
    config = parse_config('[tls]\ncert_mode = "Manual"')
    assert config.tls is not None
    assert config.tls.quic_bind_addr is None


def test_dev_means_plain_http_on_its_own_port() -> None:
    text = '[tls]\ncert_mode = "Manual"\nhostname = "one.example.com"'
    config = parse_config(text, dev=True)
    assert config.http_bind_addr == UdpAddress("::", 3340)
    assert config.tls is not None
    assert config.tls.https_bind_addr is None
    assert config.tls.hostnames == ("one.example.com",)
    chosen = parse_config('http_bind_addr = "127.0.0.1:8080"', dev=True)
    assert chosen.http_bind_addr == UdpAddress("127.0.0.1", 8080)
    only_http = parse_config(text + "\ndangerous_http_only = true")
    assert only_http.tls is not None
    assert only_http.tls.https_bind_addr is None


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ('access = "everyone"', Everyone()),
        ("access.allowlist = []", Allowlist(frozenset())),
        (f'[access]\ndenylist = ["{ALICE}"]', Denylist(frozenset([ALICE]))),
        ('access.shared_token = ["a", "b"]', SharedTokens(("a", "b"))),
        ('access.http.url = "https://x/y"', HttpCallout("https://x/y")),
        (
            '[access.http]\nurl = "http://x"\nbearer_token = "secret"',
            HttpCallout("http://x", "secret"),
        ),
    ],
)
def test_access(text: str, rule: object) -> None:
    assert parse_config(text).access == rule


def test_secrets_of_the_environment_go_before_those_of_the_file() -> None:
    environ = {
        "IROH_RELAY_ACCESS_TOKEN": "from-environ",
        "IROH_RELAY_HTTP_BEARER_TOKEN": "bearer-from-environ",
        "IROH_DERPER_SECRET_KEY": KEY,
    }
    shared = parse_config('access.shared_token = ["a", "b"]', environ=environ)
    assert shared.access == SharedTokens(("from-environ",))
    http = parse_config('access.http = {url = "http://x", bearer_token = "a"}', environ=environ)
    assert http.access == HttpCallout("http://x", "bearer-from-environ")
    assert http.secret_key == SecretKey.from_str(KEY)
    assert parse_config("access.allowlist = []", environ=environ).access == Allowlist(frozenset())
    no_token_in_file = parse_config("access.shared_token = []", environ=environ)
    assert no_token_in_file.access == SharedTokens(("from-environ",))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("http_bind_adr = 1", "http_bind_adr: no such key; did you mean http_bind_addr?"),
        ("[tls]\ncert_mod = 1", "tls.cert_mode: missing"),
        ('[tls]\ncert_mode = "Manual"\nport = 1', "tls.port: no such key; .*there are cert_mode"),
        ("[limits.client.rx]\nburst = 1", "limits.client.rx.burst: no such key"),
        ("[limits.client.tx]", "limits.client.tx: no such key"),
        ("[limits]\nx = 1", "limits.x: no such key"),
        ("[derper]\nworker = 1", "derper.worker: no such key"),
        (
            '[tls]\ncert_mode = "Manual"\naccess.allowlist = []',
            r"tls.access: no such key; .*: put it above the first \[table\], or as \[access\]$",
        ),
        (
            "[limits]\nenable_stun = false",
            r"limits.enable_stun: no such key; .*: put it above the first \[table\]$",
        ),
        (
            'access = "nobody"',
            'access: "everyone", or a table with one of allowlist, denylist, http, shared_token',
        ),
        ("access = 5", "access: a table, not 5"),
        ("[access]", 'access: "everyone", or a table with one of allowlist, denylist, http'),
        (
            "access = {allowlist = [], denylist = []}",
            "access: has allowlist and denylist: one rule at a time",
        ),
        ("access.allow = []", "access.allow: no such key; did you mean allowlist?"),
        ('access.allowlist = ["abc"]', "access.allowlist: 'abc': a node id has 64 hex"),
        ("access.shared_token = []", "access.shared_token: a list of strings, none of them empty"),
        ('access.shared_token = [""]', "access.shared_token: a list of strings, none of"),
        ('access.shared_token = ["a", "b\\n"]', "access.shared_token: a token is printable ASCII"),
        (
            "access.shared_token = ['caf\N{LATIN SMALL LETTER E WITH ACUTE}']",
            "access.shared_token: a token is",
        ),
        (
            "access.http = {url = 'http://x', bearer_token = ' x'}",
            "access.http.bearer_token: a token",
        ),
        ("access.http.bearer_token = 'x'", "access.http.url: missing"),
        (
            "access.http.url = 'http://user:hush@x'",
            "access.http.url: a URL without user and password",
        ),
        ("access.http.url = 'ftp://x'", "access.http.url: a URL such as https"),
        ("access.http.url = 'http://x:port'", "access.http.url: a URL such as https"),
        ("access.http = {url = 'http://x', urls = 1}", "access.http.urls: no such key"),
        ("enable_relay = 1", "enable_relay: true or false, not 1"),
        ('http_bind_addr = "localhost:80"', "http_bind_addr: not an IP address: 'localhost'"),
        ("http_bind_addr = 80", "http_bind_addr: a string that is not empty, not 80"),
        ("[tls]\ncert_mode = 'manual'", 'tls.cert_mode: one of "Manual", "Reloading"'),
        ("[tls]\ncert_mode = 'LetsEncrypt'", "tls.cert_mode: .*certbot or caddy.*Reloading"),
        ("tls = true", "tls: a table, not true"),
        ("[tls]\ncert_mode = 'Manual'\nhostname = [1]", "tls.hostname: a string or a list of"),
        (
            "[tls]\ncert_mode = 'Manual'\nhostname = ['a', 'd\u00e9']",
            "tls.hostname: not a host name",
        ),
        ('[tls]\ncert_mode = "Manual"\nhostname = "a\\n"', "tls.hostname: not a host name"),
        ("enable_quic_addr_discovery = true", "enable_quic_addr_discovery: needs the table tls"),
        ("[limits.client.rx]\nbytes_per_second = 0", "a whole number from 1 to 4294967295, not 0"),
        ("[limits.client.rx]\nbytes_per_second = true", "bytes_per_second: .* not true"),
        ("[limits.client.rx]\nmax_burst_bytes = 9", "max_burst_bytes: needs bytes_per_second"),
        ("[limits]\naccept_conn_limit = -1", "limits.accept_conn_limit: a number above 0"),
        ("[limits]\naccept_conn_limit = nan", "limits.accept_conn_limit: a number above 0"),
        ("[limits]\naccept_conn_burst = 1", "accept_conn_burst: needs accept_conn_limit"),
        ("[derper]\nlisten_dialect = 'v9'", 'derper.listen_dialect: one of "v2", "v3"'),
        ("metrics_bind_addr = '[::]:80'", r"metrics_bind_addr: \[::\]:80 is taken by http_bind"),
        ("a = ", "not TOML: "),
        (f"a = {'[' * 3000}", "tables or lists are nested too deeply"),
        (f"key_cache_capacity = {'1' * 5000}", "a number has too many digits"),
        (
            f"key_cache_capacity = 0x{'f' * 5000}",
            "key_cache_capacity: a whole .*, not one so large",
        ),
        (
            f"[limits]\naccept_conn_limit = {'9' * 400}",
            "limits.accept_conn_limit: a number above 0",
        ),
        (f"tls = {'9' * 400}", "tls: a table, not one so large"),
        (
            '[derper.mesh]\nkey_file = "a\\u0000b"',
            "derper.mesh.key_file: a path, which holds no NUL",
        ),
        *(
            (f'[tls]\ncert_mode = "Manual"\n{key} = "a\\u0000b"', f"tls.{key}: a path, which holds")
            for key in ("cert_dir", "manual_cert_path", "manual_key_path")
        ),
    ],
)
def test_what_cannot_be_used_is_an_error_that_names_the_key(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse_config(text)


def test_the_keys_of_the_whole_file_are_known() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config("nonsense = 1")
    assert set(str(caught.value).partition("there are ")[2].split(", ")) == TOP_KEYS


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("access.http = {url = 'http://x', bearer_token = 271828}", "271828"),
        ("access.shared_token = [271828]", "271828"),
        ("secret_key = 271828", "271828"),
        (f"secret_key = '{KEY[:-1]}x'", KEY[:40]),
        ("access.http.url = 'http://user:hush@x/'", "hush"),
        ("access.http.url = 'http://user:hush@x:port/'", "hush"),
        ("access.http.url = 'ftp://user:hush@x/'", "hush"),
        ("access.http = {url = 'http://x', bearer_token = 'hush '}", "hush"),
        ('access.shared_token = ["hush\\n"]', "hush"),
    ],
)
def test_no_message_shows_a_secret(text: str, secret: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    assert secret not in str(caught.value)


def test_no_repr_shows_a_secret() -> None:
    text = f'secret_key = "{KEY}"\naccess.shared_token = ["hush-hush"]'
    shown = repr(parse_config(text)) + repr(HttpCallout("http://x", "hush-hush"))
    assert "hush" not in shown
    assert KEY not in shown


def test_a_bad_secret_of_the_environment_is_named_by_its_variable() -> None:
    with pytest.raises(ConfigError, match=r"^IROH_DERPER_SECRET_KEY: "):
        parse_config("", environ={"IROH_DERPER_SECRET_KEY": "abc"})


TOKEN_VARIABLES = (
    ("IROH_RELAY_ACCESS_TOKEN", "access.shared_token = ['of-the-file']"),
    ("IROH_RELAY_HTTP_BEARER_TOKEN", "access.http = {url = 'http://x', bearer_token = 'a'}"),
)


@pytest.mark.parametrize(("variable", "text"), TOKEN_VARIABLES)
@pytest.mark.parametrize("around", ["%s\n", "%s\r\n", " %s "])
def test_white_space_around_a_token_of_the_environment_is_not_part_of_it(
    variable: str, text: str, around: str
) -> None:
    rule = parse_config(text, environ={variable: around % "hush-hush"}).access
    assert rule in (SharedTokens(("hush-hush",)), HttpCallout("http://x", "hush-hush"))
    assert parse_config(text, environ={variable: around % ""}) == parse_config(text)


@pytest.mark.parametrize(("variable", "text"), TOKEN_VARIABLES)
@pytest.mark.parametrize("token", [os.fsdecode(b"hush\xe9"), "hush\xe9", "hush\nhush", "hush\x7f"])
def test_a_bad_token_of_the_environment_is_named_by_its_variable_and_not_shown(
    variable: str, text: str, token: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{variable}: a token is printable ASCII") as caught:
        parse_config(text, environ={variable: token})
    assert "hush" not in "".join(traceback.format_exception(caught.value))


def test_rules_of_a_program_hold_no_token_that_cannot_be_shown() -> None:
    for token in ("hush\n", "hush\xe9", os.fsdecode(b"hush\xe9"), ""):
        with pytest.raises(DecodeError, match=r"^a token is printable ASCII"):
            SharedTokens(("fine", token))
        with pytest.raises(DecodeError, match=r"^a token is printable ASCII"):
            HttpCallout("http://x", token)
    with pytest.raises(DecodeError, match=r"^a URL without user and password"):
        HttpCallout("http://user:hush@x")


def test_errors_of_files_begin_with_the_path(tmp_path: Path) -> None:
    path = tmp_path / "derper.toml"
    with pytest.raises(ConfigError, match=f"^{path}: No such file"):
        load_config(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=f"^{path}: not TOML: not UTF-8"):
        load_config(path)
    path.write_text("nonsense = 1")
    with pytest.raises(ConfigError, match=f"^{path}: nonsense: no such key"):
        load_config(path)
    path.write_text('http_bind_addr = "127.0.0.1:0"')
    assert load_config(path).http_bind_addr == UdpAddress("127.0.0.1", 0)


def test_a_file_too_long_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iroh_anyio.derper.config_file.FILE_SIZE_LIMIT", 100)
    path = tmp_path / "derper.toml"
    path.write_text("#" * 101)
    with pytest.raises(ConfigError, match="more than 100 bytes"):
        load_config(path)


def test_node_ids_are_taken_in_both_spellings() -> None:
    for text in (str(ALICE), ALICE.to_base32()):
        assert parse_config(f'access.denylist = ["{text}"]').access == Denylist(
            frozenset([NodeId.from_str(str(ALICE))])
        )
