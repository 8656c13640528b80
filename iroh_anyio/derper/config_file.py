"""Reads the settings of a DERP server from TOML with the names of iroh-relay 1.x.

A file written for iroh-relay works. What iroh-relay does not have stands in a table of its own,
``[derper]``. Nothing is ignored in silence: an unknown key or an impossible value is an error, and
a key that means nothing here is told in ``notices``.

Secrets in the environment go before those in the file::

    IROH_RELAY_HTTP_BEARER_TOKEN   access.http.bearer_token
    IROH_RELAY_ACCESS_TOKEN        the one token of access.shared_token
    IROH_DERPER_SECRET_KEY         secret_key
    IROH_DERPER_MESH_KEY           what is in the file derper.mesh.key_file

White space around tokens in the environment does not count. In the file they are what is quoted.

Source: iroh v1.0.3 ``iroh-relay/src/main.rs``; v0.35.0 for ``enable_stun`` and
``stun_bind_addr``, v0.27.0 for ``secret_key``.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from iroh_anyio.derper.access import (
    AccessRule,
    Allowlist,
    Denylist,
    Everyone,
    HttpCallout,
    SharedTokens,
    check_callout_url,
    check_token,
)
from iroh_anyio.derper.config import (
    DEV_PORT,
    DRAIN_TIME,
    HTTP_PORT,
    HTTPS_PORT,
    MAX_CONNECTIONS,
    METRICS_PORT,
    WORKERS_IN_MESH,
    WORKERS_LIMIT,
    DerperConfig,
    TlsConfig,
)
from iroh_anyio.derper.toml_table import ConfigError, TomlTable
from iroh_proto.address import DerpUrl, UdpAddress, check_hostname
from iroh_proto.derp.map import QUIC_PORT, STUN_PORT
from iroh_proto.derp.mesh import MESH_DIALECTS, MeshServer
from iroh_proto.derp.mesh import SERVERS_LIMIT as MESH_SERVERS_LIMIT
from iroh_proto.derp.mesh_key import MeshKey
from iroh_proto.derp.rate import AcceptLimit, RateLimit
from iroh_proto.errors import DecodeError
from iroh_proto.key import NodeId, SecretKey

T = TypeVar("T")

BEARER_TOKEN_VARIABLE = "IROH_RELAY_HTTP_BEARER_TOKEN"
ACCESS_TOKEN_VARIABLE = "IROH_RELAY_ACCESS_TOKEN"
SECRET_KEY_VARIABLE = "IROH_DERPER_SECRET_KEY"
MESH_KEY_VARIABLE = "IROH_DERPER_MESH_KEY"

FILE_SIZE_LIMIT = 8 * 1024 * 1024
"""Bytes of a file that are read, enough for a list of 100,000 node ids."""

TOP_KEYS = frozenset(
    {
        "access",
        "derper",
        "enable_metrics",
        "enable_quic_addr_discovery",
        "enable_relay",
        "enable_stun",
        "http_bind_addr",
        "key_cache_capacity",
        "limits",
        "metrics_bind_addr",
        "secret_key",
        "stun_bind_addr",
        "tls",
    }
)
ACCESS_KINDS = ("allowlist", "denylist", "http", "shared_token")
_ACCESS = f'"everyone", or a table with one of {", ".join(ACCESS_KINDS)}'
LISTEN_DIALECTS = ("v2", "v3")
CERT_MODES = ("Manual", "Reloading", "LetsEncrypt")

MESH_KEY_FILE_LIMIT = 1024

RATE_LIMIT = 2**32 - 1  # upstream's type
CONNECTIONS_LIMIT = 2**20
DRAIN_LIMIT = 3600.0

NO_LETS_ENCRYPT = (
    "certificates from Let's Encrypt are left to certbot or caddy: have one of them write the "
    'files and say cert_mode = "Reloading", manual_cert_path and manual_key_path'
)


def load_config(
    path: Path, *, dev: bool = False, environ: Mapping[str, str] | None = None
) -> DerperConfig:
    """Read a file.

    :param dev: serve plain HTTP alone, on port 3340 unless the file says another.
    :param environ: the environment, for the secrets in it.
    :raises ConfigError: if the file cannot be used; the message begins with its path.
    """
    try:
        with path.open("rb") as file:
            data = file.read(FILE_SIZE_LIMIT + 1)
        if len(data) > FILE_SIZE_LIMIT:
            raise ConfigError(f"more than {FILE_SIZE_LIMIT} bytes")
        return parse_config(data.decode("utf-8"), dev=dev, environ=environ)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not TOML: not UTF-8") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse_config(
    text: str, *, dev: bool = False, environ: Mapping[str, str] | None = None
) -> DerperConfig:
    """Read the text of a file, as :func:`load_config` does.

    :raises ConfigError: if it is not TOML, or a key or value in it is wrong.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not TOML: {error}") from None
    except RecursionError:
        raise ConfigError("tables or lists are nested too deeply") from None
    except ValueError:  # Python's limit of int(), which tomllib passes on
        raise ConfigError("a number has too many digits") from None
    return _Reader(TomlTable(values, top_keys=TOP_KEYS), environ or {}, dev=dev).read()


class _Reader:
    """Reads one file, a table at a time."""

    def __init__(self, root: TomlTable, environ: Mapping[str, str], *, dev: bool) -> None:
        self._root = root
        self._environ = environ
        self._dev = dev
        self._notices: list[str] = []

    def read(self) -> DerperConfig:
        root = self._root
        http = root.address("http_bind_addr")
        http = http or UdpAddress("::", DEV_PORT if self._dev else HTTP_PORT)
        tls = self._read_tls(http)
        rate_limit, accept_limit = self._read_limits()
        own = root.table("derper") or TomlTable({}, "derper")
        mesh_key, mesh_servers = self._read_mesh(own)
        if root.integer("key_cache_capacity", least=1, most=2**63 - 1) is not None:
            self._note(root, "key_cache_capacity", "keys are cached within a limit of their own")
        config = DerperConfig(
            enable_relay=_or(root.flag("enable_relay"), True),
            http_bind_addr=http,
            tls=tls,
            stun_bind_addr=self._read_service("enable_stun", "stun_bind_addr", http, STUN_PORT),
            metrics_bind_addr=self._read_service(
                "enable_metrics", "metrics_bind_addr", http, METRICS_PORT
            ),
            rate_limit=rate_limit,
            accept_limit=accept_limit,
            access=self._read_access(),
            secret_key=self._read_secret_key(),
            max_connections=_or(
                own.integer("max_connections", least=1, most=CONNECTIONS_LIMIT), MAX_CONNECTIONS
            ),
            workers=self._read_workers(own),
            drain_time=_or(own.number("drain_time", above=0, most=DRAIN_LIMIT), DRAIN_TIME),
            listen_dialect=own.choice("listen_dialect", LISTEN_DIALECTS),
            mesh_key=mesh_key,
            mesh_servers=mesh_servers,
            notices=tuple(self._notices),
        )
        own.finish()
        root.finish()
        _check_ports(config)
        return config

    def _read_service(
        self, switch: str, key: str, http: UdpAddress, port: int
    ) -> UdpAddress | None:
        """Read where a service is bound that is on unless it is switched off."""
        address = self._root.address(key) or http._replace(port=port)
        return address if _or(self._root.flag(switch), True) else None

    def _read_tls(self, http: UdpAddress) -> TlsConfig | None:
        table = self._root.table("tls")
        wants_quic = _or(self._root.flag("enable_quic_addr_discovery"), False)
        if table is None:
            if wants_quic:
                raise self._root.error("enable_quic_addr_discovery", "needs the table tls")
            return None
        mode = table.choice("cert_mode", CERT_MODES)
        if mode is None:
            raise table.error("cert_mode", 'missing: "Manual" or "Reloading"')
        if mode == "LetsEncrypt":
            raise table.error("cert_mode", NO_LETS_ENCRYPT)
        for key, value in (
            ("prod_tls", table.flag("prod_tls")),
            ("contact", table.text("contact")),
        ):
            if value is not None:
                self._note(table, key, "it is for Let's Encrypt")
        https = table.address("https_bind_addr") or http._replace(port=HTTPS_PORT)
        quic = table.address("quic_bind_addr") or https._replace(port=QUIC_PORT)
        folder = table.path("cert_dir") or Path()
        certificate, key_file = table.path("manual_cert_path"), table.path("manual_key_path")
        http_only = _or(table.flag("dangerous_http_only"), False)
        tls = TlsConfig(
            https_bind_addr=None if http_only or self._dev else https,
            quic_bind_addr=quic if wants_quic else None,
            hostnames=_read_hostnames(table),
            certificate_path=certificate or folder / "default.crt",
            key_path=key_file or folder / "default.key",
        )
        table.finish()
        return tls

    def _read_limits(self) -> tuple[RateLimit | None, AcceptLimit | None]:
        limits = self._root.table("limits") or TomlTable({}, "limits")
        client = limits.table("client") or TomlTable({}, "limits.client")
        rx = client.table("rx") or TomlTable({}, "limits.client.rx")
        rate = rx.integer("bytes_per_second", least=1, most=RATE_LIMIT)
        burst = rx.integer("max_burst_bytes", least=1, most=RATE_LIMIT)
        accepts = limits.number("accept_conn_limit", above=0, most=RATE_LIMIT)
        accept_burst = limits.integer("accept_conn_burst", least=1, most=RATE_LIMIT)
        if burst is not None and rate is None:
            raise rx.error("max_burst_bytes", "needs bytes_per_second beside it")
        if accept_burst is not None and accepts is None:
            raise limits.error("accept_conn_burst", "needs accept_conn_limit beside it")
        for table in (rx, client, limits):
            table.finish()
        return (
            None if rate is None else RateLimit(rate, burst),
            None if accepts is None else AcceptLimit(accepts, accept_burst or math.ceil(accepts)),
        )

    def _read_access(self) -> AccessRule:
        if self._root.is_text("access"):
            if self._root.text("access") == "everyone":
                return Everyone()
            raise self._root.error("access", _ACCESS)
        table = self._root.table("access")
        if table is None:
            return Everyone()
        kinds = [kind for kind in ACCESS_KINDS if kind in table]
        allowlist, denylist = _read_ids(table, "allowlist"), _read_ids(table, "denylist")
        tokens, http = _read_shared_tokens(table), table.table("http")
        callout = None if http is None else self._read_callout(http)
        table.finish()
        if len(kinds) > 1:
            raise self._root.error("access", f"has {' and '.join(kinds)}: one rule at a time")
        if not kinds:
            raise self._root.error("access", _ACCESS)
        if allowlist is not None:
            return Allowlist(allowlist)
        if denylist is not None:
            return Denylist(denylist)
        if callout is not None:
            return callout
        if token := self._read_token(ACCESS_TOKEN_VARIABLE):
            return SharedTokens((token,))
        if not tokens:
            raise table.error("shared_token", "a list of strings, none of them empty")
        return SharedTokens(tuple(tokens))

    def _read_callout(self, table: TomlTable) -> HttpCallout:
        url = table.parsed("url", _parse_url)
        if url is None:
            raise table.error("url", "missing: where to ask whether a node may relay")
        token = table.secret("bearer_token")
        table.finish()
        if token is not None:
            _check_token(table.name("bearer_token"), token)
        return HttpCallout(url, self._read_token(BEARER_TOKEN_VARIABLE) or token)

    def _read_token(self, variable: str) -> str | None:
        """Read a token from the environment, where many come from a file that ends a line."""
        token = self._environ.get(variable, "").strip()
        if token:
            _check_token(variable, token)
        return token or None

    def _read_workers(self, own: TomlTable) -> int:
        workers = _or(own.integer("workers", least=1, most=WORKERS_LIMIT), 1)
        if workers > 1 and "mesh" in own:
            raise own.error("workers", WORKERS_IN_MESH)
        return workers

    def _read_mesh(self, own: TomlTable) -> tuple[MeshKey | None, tuple[MeshServer, ...]]:
        table = own.table("mesh")
        if table is None:
            return None, ()
        key = self._read_mesh_key(table)
        dialects = table.texts("dialects") or list(MESH_DIALECTS)
        if not set(dialects) <= set(MESH_DIALECTS):
            raise table.error("dialects", f"some of {', '.join(MESH_DIALECTS)}")
        urls: list[DerpUrl] = []
        for text in table.texts("with") or ():
            try:
                urls.append(DerpUrl.from_str(text))
            except DecodeError as error:
                raise table.error("with", str(error)) from None
        servers = tuple(MeshServer(url, dialect) for url in urls for dialect in dialects)
        if len(servers) > MESH_SERVERS_LIMIT:
            raise table.error("with", f"at most {MESH_SERVERS_LIMIT // len(dialects)} servers")
        table.finish()
        return key, servers

    def _read_mesh_key(self, table: TomlTable) -> MeshKey:
        path, name = table.path("key_file"), table.name("key_file")
        try:
            if MESH_KEY_VARIABLE in self._environ:
                name = MESH_KEY_VARIABLE
                return MeshKey.from_str(self._environ[MESH_KEY_VARIABLE])
            if path is None:
                raise table.error("key_file", "missing: the file with 64 hex digits")
            with path.open(encoding="ascii", errors="replace") as file:
                return MeshKey.from_str(file.read(MESH_KEY_FILE_LIMIT))
        except OSError as error:
            raise ConfigError(f"{name}: {path}: {error.strerror}") from None
        except DecodeError as error:
            raise ConfigError(f"{name}: {error}") from None

    def _read_secret_key(self) -> SecretKey | None:
        text = self._root.secret("secret_key")
        name = self._root.name("secret_key")
        if SECRET_KEY_VARIABLE in self._environ:
            text, name = self._environ[SECRET_KEY_VARIABLE], SECRET_KEY_VARIABLE
        if text is None:
            return None
        try:
            return SecretKey.from_str(text)
        except DecodeError as error:
            raise ConfigError(f"{name}: {error}") from None

    def _note(self, table: TomlTable, key: str, why: str) -> None:
        self._notices.append(f"{table.name(key)} has no effect: {why}")


def _read_hostnames(table: TomlTable) -> tuple[str, ...]:
    hostnames = table.texts("hostname", single=True) or ()
    for hostname in hostnames:
        try:
            check_hostname(hostname)
        except DecodeError as error:
            raise table.error("hostname", str(error)) from None
    return tuple(hostnames)


def _read_ids(table: TomlTable, key: str) -> frozenset[NodeId] | None:
    texts = table.texts(key)
    if texts is None:
        return None
    ids = set()
    for text in texts:
        try:
            ids.add(NodeId.from_str(text))
        except DecodeError as error:
            raise table.error(key, f"{text!r}: {error}") from None
    return frozenset(ids)


def _read_shared_tokens(table: TomlTable) -> list[str] | None:
    tokens = table.texts("shared_token")
    for token in tokens or ():
        _check_token(table.name("shared_token"), token)
    return tokens


def _check_token(name: str, token: str) -> None:
    try:
        check_token(token)
    except DecodeError as error:
        raise ConfigError(f"{name}: {error}") from None


def _parse_url(text: str) -> str:
    check_callout_url(text)
    return text


def _check_ports(config: DerperConfig) -> None:
    """Refuse two services on one port, where the second would find it taken."""
    taken: dict[tuple[str, UdpAddress], str] = {}
    tls = config.tls
    services = [
        ("TCP", "http_bind_addr", config.http_bind_addr),
        ("TCP", "tls.https_bind_addr", None if tls is None else tls.https_bind_addr),
        ("TCP", "metrics_bind_addr", config.metrics_bind_addr),
        ("UDP", "stun_bind_addr", config.stun_bind_addr),
        ("UDP", "tls.quic_bind_addr", None if tls is None else tls.quic_bind_addr),
    ]
    for protocol, key, address in services:
        if address is None or address.port == 0:
            continue
        other = taken.setdefault((protocol, address), key)
        if other != key:
            raise ConfigError(f"{key}: {address} is taken by {other}")


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
