"""No secret key shows itself: not in a log, an exception, or what an object says of itself."""

from __future__ import annotations

import base64
import gc
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from iroh_anyio import Derper, EndpointOptions, MagicEndpoint
from iroh_proto import DerpMap, DerpNode, NodeAddr, NodeId, SecretKey
from iroh_proto.errors import DecodeError, LocalProtocolError
from iroh_proto.key import encode_base32
from tests.anyio.nodes import ALPN, addr_of, bind, two_nodes

OUR_PACKAGES = ("iroh_proto", "iroh_anyio")


def spellings(secret: bytes) -> Iterator[str]:
    """Yield every way in which a secret may be written down, in lower case."""
    yield secret.hex()
    yield encode_base32(secret)
    yield NodeId.to_z32(secret)  # type: ignore[arg-type]
    yield base64.b64encode(secret).decode().rstrip("=").lower()
    yield base64.urlsafe_b64encode(secret).decode().rstrip("=").lower()
    yield repr(secret)[2:-1].lower()
    yield repr(list(secret)).lower()
    yield repr(tuple(secret))[1:-1].lower()
    yield str(int.from_bytes(secret, "big"))
    yield str(int.from_bytes(secret, "little"))
    yield secret.decode("latin-1").lower()


def secrets_of(*keys: SecretKey) -> list[str]:
    """Return all spellings of some keys, and of the keys that follow from them."""
    return [
        text
        for key in keys
        for secret in (key.to_bytes(), key.to_x25519(), key.to_x25519()[1:31])
        for text in spellings(secret)
    ] + [line for key in keys for line in key.to_openssh().lower().splitlines()[1:-1]]


class Heard(logging.Handler):
    """Keeps all that any logger says, as it would be written."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter("%(name)s %(message)s"))
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))
        self.texts.append(repr(record.args))


@pytest.fixture
def heard() -> Iterator[Heard]:
    handler, root = Heard(), logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    quieted = [
        (logger, logger.level)
        for logger in logging.root.manager.loggerDict.values()
        if isinstance(logger, logging.Logger)
    ]
    for logger, _ in quieted:
        logger.setLevel(logging.DEBUG)
    yield handler
    for logger, level in quieted:
        logger.setLevel(level)
    root.setLevel(before)
    root.removeHandler(handler)


def what_objects_say() -> Iterator[tuple[str, str]]:
    """Yield what each living object of ours says of itself."""
    for thing in gc.get_objects():
        kind = type(thing)
        if kind.__module__.partition(".")[0] in OUR_PACKAGES:
            for text in (repr(thing), str(thing), f"{thing}"):
                yield kind.__qualname__, text


def assert_silent(where: str, text: str, secrets: list[str]) -> None:
    lowered = text.lower()
    for secret in secrets:
        assert secret not in lowered, f"{where} tells a secret"


def test_the_search_finds_what_is_told() -> None:
    key = SecretKey.generate()
    secrets = secrets_of(key)
    for told in (
        str(key.to_bytes()),
        key.to_bytes().hex().upper(),
        key.to_base32(),
        key.to_openssh(),
        repr(list(key.to_x25519())),
    ):
        with pytest.raises(AssertionError, match="tells a secret"):
            assert_silent("a test", told, secrets)
    assert_silent("a test", f"{key} {key!r} {key.public}", secrets)


@pytest.mark.anyio
@pytest.mark.parametrize("identity", ["raw", "x509"])
async def test_a_whole_session_tells_no_secret(identity: Any, heard: Heard) -> None:
    ours, theirs, derpers, others = (SecretKey.generate() for _ in range(4))
    secrets = secrets_of(ours, theirs, derpers, others)
    failures: list[BaseException] = []
    events: list[object] = []
    said: list[tuple[str, str]] = []

    async def fails(endpoint: MagicEndpoint, addr: NodeAddr, alpn: bytes = ALPN) -> None:
        try:
            await endpoint.connect(addr, alpn=alpn, timeout=0.3)
        except Exception as error:  # noqa: BLE001 - of whatever kind, its text is what counts
            failures.append(error)

    async with await Derper.bind(port=0, stun_port=0, secret_key=derpers) as derper:
        derp_map = DerpMap([DerpNode(derper.url, stun_port=derper.stun_port)])
        settings = {"derp_map": derp_map, "on_event": events.append}
        async with two_nodes(
            {**settings, "secret_key": theirs},
            {**settings, "secret_key": ours, "options": EndpointOptions(identity=identity)},
        ) as (server, client):
            addr = NodeAddr(server.node_id, derp_url=derper.url)
            connection = await client.connect(addr, alpn=ALPN)
            accepted = await server.accept()
            stream = await connection.open_bi()
            await stream.send(b"hello")
            other = await accepted.accept_bi()
            assert await other.receive() == b"hello"
            async for path in connection.path_changes():
                if path.kind == "direct":
                    break
            await fails(client, addr, b"nobody/serves/this")
            await fails(client, addr_of(server, others.public))
            await fails(client, NodeAddr(client.node_id))
            await fails(client, NodeAddr(others.public))
            for endpoint in (client, server):
                said += [(str(info), repr(info)) for info in endpoint.remote_infos()]
                said.append(("stats", repr(endpoint.machine.magicsock.stats)))
            said += what_objects_say()
            other.reset(7)
            with anyio.move_on_after(1):
                try:
                    await stream.receive()
                except Exception as error:  # noqa: BLE001 - as above
                    failures.append(error)
            connection.close(3, "bye")
            await accepted.wait_closed()
            said.append(("connection", repr(connection)))
    assert len(failures) == 5
    assert len(heard.texts) > 20
    assert len(events) > 10
    for name, text in said:
        assert_silent(name, text, secrets)
    for event in events:
        assert_silent("an event", repr(event), secrets)
    for text in heard.texts:
        assert_silent("a log record", text, secrets)
    for failure in failures:
        assert_silent("an exception", "".join(traceback.format_exception(failure)), secrets)


@pytest.mark.anyio
async def test_options_that_make_no_sense_tell_no_secret() -> None:
    key = SecretKey.generate()
    for settings in (
        {"bind_addrs": ["nonsense"]},
        {"idle_timeout": -1.0},
        {"alpns": [b""]},
        {"derp_map": DerpMap([DerpNode("http://127.0.0.1:1", dialect="v9")])},
    ):
        with pytest.raises((DecodeError, LocalProtocolError)) as caught:
            await bind(secret_key=key, **settings)
        text = "".join(traceback.format_exception(caught.value))
        assert_silent("an exception", text, secrets_of(key))


@pytest.mark.parametrize("spoil", ["cut", "long", "letter", "case"])
def test_a_text_that_is_no_key_is_not_repeated(spoil: str) -> None:
    key = SecretKey.generate()
    spoils = {
        "cut": lambda text: text[:-3],
        "long": lambda text: text + "aa",
        "letter": lambda text: text[:30] + "!" + text[31:],
        "case": lambda text: text[:-1] + "\N{KELVIN SIGN}",
    }
    for text in (key.to_bytes().hex(), key.to_base32(), key.to_openssh()):
        bad = spoils[spoil](text)
        parse = SecretKey.from_openssh if "OPENSSH" in text else SecretKey.from_str
        try:
            parse(bad)
        except ValueError as error:
            said = "".join(traceback.format_exception(error)).lower()
            secret = "".join(line for line in text.splitlines() if "KEY" not in line).lower()
            for start in range(0, len(secret) - 12, 6):
                assert secret[start : start + 12] not in said
        else:
            assert "OPENSSH" in text  # where something after the end marker does no harm


def test_a_key_file_that_is_broken_is_not_repeated(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from iroh_anyio.cli.group import commands

    key = SecretKey.generate()
    for content in (key.to_bytes().hex()[:-2], key.to_base32() + "!", key.to_openssh()[:-60]):
        path = tmp_path / "secret"
        path.write_text(content)
        path.chmod(0o600)
        result = CliRunner().invoke(commands, ["key", "show", str(path)])
        assert result.exit_code != 0
        assert content[20:40].lower() not in result.output.lower()
