"""The course of one dial: which identity to try, and whose answers to pass over."""

from __future__ import annotations

from iroh_anyio.quic.close_reason import OTHER_IDENTITY_KIND
from iroh_anyio.quic.events import CloseReason
from iroh_anyio.quic.options import IdentityMode
from iroh_anyio.quic.tls import IdentityKind, NodeContext
from iroh_proto.address import Address, NodeAddr, UdpAddress

PASSED_OVER_LIMIT = 8
"""Addresses whose answers one dial passes over before it takes the next failure as final."""


class Dial:
    """One dial, over as many handshakes as it takes.

    Two failures are not the end. A node that speaks only the other kind of identity is dialled
    again with that one. And until the node has proven itself, a failure tells only of whoever is
    at the address it came from; addresses go stale, so where there are other ways the dial
    begins anew and passes over what that address says.
    """

    __slots__ = ("_kinds", "_last_failure", "addr", "alpn", "kind", "passed_over")

    def __init__(
        self, *, addr: NodeAddr, alpn: bytes, mode: IdentityMode, known: IdentityKind | None
    ) -> None:
        self.addr = addr
        self.alpn = alpn
        self.passed_over: set[Address] = set()
        self._last_failure: CloseReason | None = None
        if mode != "auto":
            self._kinds: list[IdentityKind] = [mode]
        else:
            self._kinds = ["x509", "raw"] if known == "x509" else ["raw", "x509"]
        self.kind: IdentityKind = self._kinds.pop(0)

    def goes_on(
        self,
        reason: CloseReason,
        *,
        context: NodeContext | None,
        source: Address | None,
        is_proven_source: bool,
    ) -> bool:
        """Say whether to begin another handshake, of ``kind``, after one failed.

        :param source: where the failure came from, if from a peer.
        :param is_proven_source: whether the node is known to be there.
        """
        if reason.kind in ("local", "unreachable", "idle"):
            return False
        if self._speaks_other_kind(reason, context):
            self.kind = self._kinds.pop(0)
            return True
        self._last_failure = reason
        if not isinstance(source, UdpAddress) or is_proven_source:
            return False
        if len(self.passed_over) >= PASSED_OVER_LIMIT or not self._has_other_way(source):
            return False
        self.passed_over.add(source)
        return True

    def final_reason(self, reason: CloseReason) -> CloseReason:
        """Return the reason to report: what an answer said rather than that none came."""
        if reason.kind == "unreachable" and self._last_failure is not None:
            return self._last_failure
        return reason

    def _speaks_other_kind(self, reason: CloseReason, context: NodeContext | None) -> bool:
        if not self._kinds:
            return False
        if reason.by_peer:
            return reason.code == OTHER_IDENTITY_KIND
        return context is not None and context.kind_mismatch

    def _has_other_way(self, source: UdpAddress) -> bool:
        if self.addr.derp_url is not None:
            return True
        others = set(self.addr.direct_addresses) - self.passed_over - {source}
        return bool(others)
