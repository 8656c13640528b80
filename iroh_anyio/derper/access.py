"""Who may relay: everyone, those on a list, those with a token, those that a web service allows.

Source: iroh v1.0.3 ``iroh-relay/src/main.rs`` (``AccessConfig``, ``http_access_check``).
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeAlias, assert_never
from urllib.parse import urlsplit

import anyio

from iroh_anyio.derper.extra import import_extra
from iroh_proto.derp.dialects import ClientKey
from iroh_proto.derp.region import alias_of
from iroh_proto.errors import DecodeError
from iroh_proto.key import NodeId
from iroh_proto.x25519 import X25519PublicKey

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger("iroh_anyio.derper.access")

CALLOUT_TIMEOUT = 5.0
"""Seconds that a web service has to answer; a client waits no longer than 10 s."""

CLOSE_TIMEOUT = 1.0
"""Seconds to take leave of a web service."""

CALLOUTS_LIMIT = 64
"""Questions that a web service is asked at the same time. Others wait, within their 5 s."""

_NODE_ID_HEADER = "X-Iroh-NodeId"  # 1.0.3 documents another name and sends this one
_YES = b"true"


@dataclass(frozen=True, slots=True)
class Everyone:
    """Whoever has proven a key."""


@dataclass(frozen=True, slots=True)
class Allowlist:
    """These nodes alone."""

    node_ids: frozenset[NodeId]


@dataclass(frozen=True, slots=True)
class Denylist:
    """Everyone but these nodes."""

    node_ids: frozenset[NodeId]


@dataclass(frozen=True, slots=True)
class SharedTokens:
    """Whoever shows one of these tokens.

    :raises DecodeError: if one of them is none, as :func:`check_token` has it.
    """

    tokens: tuple[str, ...] = field(repr=False)

    def __post_init__(self) -> None:
        for token in self.tokens:
            check_token(token)


@dataclass(frozen=True, slots=True)
class HttpCallout:
    """Whom a web service allows: it is asked by POST and answers 200 ``true``, or anything else.

    :ivar bearer_token: what the server shows the web service, if anything.
    :raises DecodeError: if one of them cannot be used.
    """

    url: str
    bearer_token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_callout_url(self.url)
        if self.bearer_token is not None:
            check_token(self.bearer_token)


AccessRule: TypeAlias = Everyone | Allowlist | Denylist | SharedTokens | HttpCallout


def check_token(token: str) -> None:
    """Check that a token can stand in a header.

    :raises DecodeError: if it cannot. The message does not show it.
    """
    if not (token and token.isascii() and token.isprintable() and token == token.strip()):
        raise DecodeError("a token is printable ASCII, without spaces around it")


def check_callout_url(url: str) -> None:
    """Check that a web service can be asked at a URL, which log messages may show.

    :raises DecodeError: if it cannot. The message does not show it, for it may hold a password.
    """
    authority = _http_authority(url)
    if authority is None:
        raise DecodeError("a URL such as https://example.com/allowed")
    if "@" in authority:
        raise DecodeError("a URL without user and password: what the service sees is bearer_token")


class AccessControl:
    """Applies a rule, which may be changed at any time.

    Close it in the event loop it was used in.
    """

    def __init__(self, rule: AccessRule) -> None:
        self.rule = rule
        self._client: httpx.AsyncClient | None = None
        self._limiter = anyio.CapacityLimiter(CALLOUTS_LIMIT)

    def decide(self, node_id: ClientKey, token: str | None) -> bool | None:
        """Say whether a node may relay that has proven its key and shows this token, if any.

        :returns: ``None`` if a web service has to be :meth:`asked <ask>`.
        """
        match self.rule:
            case Everyone():
                return True
            case Allowlist(node_ids):
                return _is_listed(node_id, node_ids)
            case Denylist(node_ids):
                return not _is_listed(node_id, node_ids)
            case SharedTokens(tokens):
                return token is not None and _is_one_of(token, tokens)
            case HttpCallout():
                # It is asked about nodes, which such a client is not known to be.
                return False if isinstance(node_id, X25519PublicKey) else None
            case _:
                assert_never(self.rule)

    def denied(self, clients: Iterable[ClientKey]) -> frozenset[ClientKey]:
        """Return those that were let in before, and are not by the list of the present rule.

        What else they showed when they came is not known any more.
        """
        if not isinstance(self.rule, Allowlist | Denylist):
            return frozenset()
        return frozenset(key for key in clients if not self.decide(key, None))

    async def ask(
        self, node_id: ClientKey, token: str | None, *, still_waits: Callable[[], bool]
    ) -> bool:
        """Decide as :meth:`decide` does, asking the web service of the rule if there is one.

        Whatever goes wrong with it means no. What counts is the rule in force at the end.

        :param still_waits: says whether the client is there. Nothing is asked about those that are
            not: they would keep the places of others.
        :raises ModuleNotFoundError: if httpx is not installed.
        """
        while (allowed := self.decide(node_id, token)) is None:
            rule = self.rule
            assert isinstance(rule, HttpCallout)  # others decide at once
            answer = await self._answer(rule, node_id, still_waits)
            if self.rule == rule:
                return answer
        return allowed

    async def close(self) -> None:
        """Close the connections to the web service. Bounded, not cancellable, idempotent."""
        client, self._client = self._client, None
        if client is not None:
            with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
                await client.aclose()

    async def _answer(
        self, rule: HttpCallout, node_id: ClientKey, still_waits: Callable[[], bool]
    ) -> bool:
        """Return what a web service says, when there is a place to ask it."""
        try:
            with anyio.fail_after(CALLOUT_TIMEOUT):
                async with self._limiter:
                    return still_waits() and await self._post(rule, node_id)
        except TimeoutError:
            if still_waits():
                logger.warning("%s gave no answer within %g s", rule.url, CALLOUT_TIMEOUT)
            return False

    async def _post(self, rule: HttpCallout, node_id: ClientKey) -> bool:
        httpx = import_extra("httpx", "access.http")
        if self._client is None:
            # What is set in the environment for the programs of a person is not for a server.
            self._client = httpx.AsyncClient(timeout=CALLOUT_TIMEOUT, trust_env=False)
        headers = {_NODE_ID_HEADER: str(node_id), "Accept-Encoding": "identity"}
        if rule.bearer_token is not None:
            headers["Authorization"] = f"Bearer {rule.bearer_token}"
        try:
            async with self._client.stream("POST", rule.url, headers=headers) as response:
                return response.status_code == HTTPStatus.OK and await _says_yes(response)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            logger.warning("cannot ask %s: %s", rule.url, str(error) or type(error).__name__)
            return False
        except Exception:
            # A defect there must neither let anybody in nor end the server.
            logger.exception("cannot ask %s", rule.url)
            return False


def _http_authority(url: str) -> str | None:
    """Return what names the server in a URL of HTTP, ``None`` if it is no such URL."""
    try:
        parts = urlsplit(url)
        is_http = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    return parts.netloc if is_http else None


def _is_listed(key: ClientKey, node_ids: frozenset[NodeId]) -> bool:
    """Say whether a client is one of these nodes, by whichever key it is known."""
    if isinstance(key, X25519PublicKey):
        return key in _curve_keys(node_ids)
    return key in node_ids


@lru_cache(maxsize=1)
def _curve_keys(node_ids: frozenset[NodeId]) -> frozenset[bytes]:
    return frozenset(key for key in map(alias_of, node_ids) if key is not None)


async def _says_yes(response: httpx.Response) -> bool:
    body = b""
    async for chunk in response.aiter_bytes():
        # To the end, however long: the time is limited, and trio wants iterators to be exhausted.
        body = (body + chunk)[: len(_YES) + 1]
    return body == _YES


def _is_one_of(token: str, tokens: tuple[str, ...]) -> bool:
    """Compare with all of them, in a time that tells nothing of what they have in common."""
    shown = token.encode()
    found = False
    for known in tokens:
        found |= hmac.compare_digest(shown, known.encode())
    return found
