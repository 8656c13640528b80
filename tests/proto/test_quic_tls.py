"""Who proves what to whom in the handshake."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aioquic import tls
from aioquic._buffer import Buffer
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from iroh_anyio.quic.aioquic_private.context import pull_alpn, push_alpn
from iroh_anyio.quic.events import CloseReason, ConnectionEstablished
from iroh_anyio.quic.options import EndpointOptions, IdentityMode
from iroh_anyio.quic.parameters import INITIAL_MAX_PATH_ID, N0_NAT_TRAVERSAL, peer_parameters
from iroh_anyio.quic.tls import (
    CLIENT_CERTIFICATE_TYPE,
    CLIENT_GROUPS,
    RAW_SCHEMES,
    SERVER_CERTIFICATE_TYPE,
    SERVER_GROUPS,
    IdentityKind,
    NodeContext,
    client_hello_extensions,
)
from iroh_proto.identity.certificate import (
    SIGNATURE_SCHEMES,
    build_certificate,
    make_certificate_key,
)
from iroh_proto.key import SecretKey
from tests.proto.quic_pair import (
    ALPN,
    CLIENT_KEY,
    OTHER_KEY,
    SERVER_KEY,
    UNIX_TIME,
    QuicPair,
)
from tests.proto.test_identity_certificate import NODE, make_certificate

KINDS: list[IdentityKind] = ["raw", "x509"]

RENEGOTIATION_SIGNAL = "00ff"
"""TLS_EMPTY_RENEGOTIATION_INFO_SCSV (RFC 5746), which rustls lists among its cipher suites."""


def both_reasons(pair: QuicPair) -> tuple[CloseReason | None, CloseReason | None]:
    pair.run_for(3.0)
    return pair.client.connection.reason, pair.server.connection.reason


@pytest.mark.parametrize("kind", KINDS)
def test_both_sides_learn_who_the_other_is(kind: IdentityKind) -> None:
    pair = QuicPair(kind=kind)
    pair.run_for(1.0)
    (ours,) = pair.client.seen(ConnectionEstablished)
    (theirs,) = pair.server.seen(ConnectionEstablished)
    assert (ours.node_id, ours.incoming) == (SERVER_KEY.public, False)
    assert (theirs.node_id, theirs.incoming) == (CLIENT_KEY.public, True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_is_not_the_node_dialled_is_refused(kind: IdentityKind) -> None:
    ours, theirs = both_reasons(QuicPair(kind=kind, dialled=OTHER_KEY.public))
    assert ours is not None
    assert theirs is not None
    assert (ours.kind, ours.by_peer) == ("identity", False)
    assert str(SERVER_KEY.public) in ours.text
    assert (theirs.kind, theirs.by_peer) == ("identity", True)
    assert str(OTHER_KEY.public) not in theirs.text  # whom we dialled is nobody's business


@pytest.mark.parametrize(
    ("kind", "mode"), [("raw", "x509"), ("x509", "raw")], ids=["raw to x509", "x509 to raw"]
)
def test_a_server_of_the_other_kind_says_so_as_iroh_does(
    kind: IdentityKind, mode: IdentityMode
) -> None:
    ours, _ = both_reasons(QuicPair(kind=kind, server=EndpointOptions(identity=mode)))
    assert ours is not None
    assert (ours.kind, ours.code, ours.by_peer) == ("identity", 0x128, True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["auto", "same"])
def test_one_listener_serves_both_kinds_or_one(kind: IdentityKind, mode: str) -> None:
    options = EndpointOptions(identity="auto" if mode == "auto" else kind)
    pair = QuicPair(kind=kind, server=options)
    pair.run_for(1.0)
    assert pair.server.connection.node_id == CLIENT_KEY.public


@pytest.mark.parametrize("alpn", [b"a", b"\x00\xff\x80", b"x" * 255])
def test_a_protocol_name_is_any_bytes(alpn: bytes) -> None:
    pair = QuicPair(alpn=alpn, serves=(b"other", alpn))
    pair.run_for(1.0)
    assert pair.client.connection.alpn == pair.server.connection.alpn == alpn
    assert pair.client.connection.is_established


@pytest.mark.parametrize("name", [bytes([byte]) for byte in (0, 127, 128, 255)])
def test_protocol_names_pass_through_aioquic_unchanged(name: bytes) -> None:
    buffer = Buffer(capacity=300)
    push_alpn(buffer, name.decode("latin-1"))
    assert buffer.data == b"\x01" + name
    assert pull_alpn(Buffer(data=buffer.data)).encode("latin-1") == name


def test_a_protocol_that_is_not_served_ends_the_handshake() -> None:
    ours, theirs = both_reasons(QuicPair(alpn=b"other"))
    assert ours is not None
    assert theirs is not None
    assert (ours.kind, ours.code, ours.by_peer) == ("alpn", 0x178, True)
    assert theirs.kind == "alpn"


class Anonymous(NodeContext):
    """A client that keeps its identity to itself."""

    def _signature_algorithms_for_private_key(self) -> list[tls.SignatureAlgorithm]:
        return []


def sign_with_other_key(context: NodeContext) -> None:
    """Sign with a key that is not the one that is shown."""
    context.certificate_private_key = Signer(OTHER_KEY)  # type: ignore[assignment]


class Signer:
    def __init__(self, key: SecretKey) -> None:
        self._key = key

    def sign(self, data: bytes, *parameters: object) -> bytes:
        return self._key.sign(data)


def with_client_context(
    pair: QuicPair,
    context_type: type[NodeContext],
    change: Callable[[NodeContext], None] | None = None,
    *,
    kind: IdentityKind = "raw",
) -> QuicPair:
    """Begin the handshake anew with a client that is not one of ours in every way."""
    connection = pair.client.connection
    quic = pair.client.factory.dial(
        SERVER_KEY.public, alpn=connection.alpn or ALPN, kind=kind, unix_time=UNIX_TIME
    )
    begin_tls = quic._begin_tls

    def begin(context: NodeContext) -> None:
        begin_tls(context)
        context.__class__ = context_type
        if change is not None:
            change(context)

    quic._begin_tls = begin
    pair.client.hold(quic, incoming=False, now=0.0)
    pair.client.connection.dial(0.0)
    answer = pair.server.factory.accept(
        original_destination_cid=quic.original_destination_connection_id,
        retry_source_cid=None,
        unix_time=UNIX_TIME,
    )
    pair.server.hold(answer, incoming=True, now=0.0)
    return pair


def test_a_client_without_identity_is_refused_with_certificate_required() -> None:
    ours, theirs = both_reasons(with_client_context(QuicPair(), Anonymous))
    assert theirs is not None
    assert (theirs.kind, theirs.code) == ("identity", 0x174)
    assert ours is not None
    assert (ours.kind, ours.code, ours.by_peer) == ("identity", 0x174, True)


def test_a_client_that_does_not_hold_the_key_it_shows_is_refused() -> None:
    pair = with_client_context(QuicPair(), NodeContext, sign_with_other_key)
    _, theirs = both_reasons(pair)
    assert theirs is not None
    assert (theirs.kind, theirs.by_peer) == ("identity", False)
    assert not pair.server.connection.is_established


def test_a_client_that_shows_two_keys_is_refused() -> None:
    def show_two(context: NodeContext) -> None:
        context.certificate_chain = [context.certificate]  # type: ignore[list-item]

    _, theirs = both_reasons(with_client_context(QuicPair(), NodeContext, show_two))
    assert theirs is not None
    assert theirs.kind == "identity"
    assert "2 raw keys" in theirs.text


def test_a_client_that_offers_raw_keys_for_one_side_only_is_refused() -> None:
    def drop_client_type(context: NodeContext) -> None:
        context.handshake_extensions = [
            extension
            for extension in context.handshake_extensions
            if extension[0] != CLIENT_CERTIFICATE_TYPE
        ]

    _, theirs = both_reasons(with_client_context(QuicPair(), NodeContext, drop_client_type))
    assert theirs is not None
    assert theirs.code == 0x128


@pytest.mark.parametrize(
    ("kind", "answers", "code"),
    [("raw", [], 0x128), ("raw", [(20, b"\x02")], 0x128), ("x509", [(20, b"\x02")], 0x16E)],
)
def test_a_server_that_answers_another_kind_than_asked_for_is_refused(
    kind: IdentityKind, answers: list[tuple[int, bytes]], code: int
) -> None:
    pair = QuicPair(kind=kind)
    begin_tls = pair.server.connection._quic._begin_tls

    class Obstinate(NodeContext):
        def choose_identity(self, client_hello: bytes) -> None:
            super().choose_identity(client_hello)
            types = (CLIENT_CERTIFICATE_TYPE, SERVER_CERTIFICATE_TYPE)
            kept = [item for item in self.handshake_extensions if item[0] not in types]
            self.handshake_extensions = kept + answers

    def begin(context: NodeContext) -> None:
        begin_tls(context)
        context.__class__ = Obstinate

    pair.server.connection._quic._begin_tls = begin
    ours, _ = both_reasons(pair)
    assert ours is not None
    assert (ours.kind, ours.code, ours.by_peer) == ("identity", code, False)
    context = pair.client.connection.context
    assert context is not None
    assert context.kind_mismatch


def test_a_peer_that_shows_our_own_id_is_refused() -> None:
    def borrow(context: NodeContext) -> None:
        context.certificate = Entry(SERVER_KEY)  # type: ignore[assignment]
        context.certificate_private_key = Signer(SERVER_KEY)  # type: ignore[assignment]

    _, theirs = both_reasons(with_client_context(QuicPair(), NodeContext, borrow))
    assert theirs is not None
    assert theirs.kind == "identity"


class Entry:
    def __init__(self, key: SecretKey) -> None:
        self._key = key

    def public_bytes(self, encoding: object) -> bytes:
        return bytes.fromhex("302a300506032b6570032100") + self._key.public


def test_a_certificate_is_judged_by_the_time_it_is_told() -> None:
    pair = QuicPair(kind="x509")
    quic = pair.client.factory.dial(SERVER_KEY.public, alpn=b"test/1", kind="x509", unix_time=1e12)
    answer = pair.server.factory.accept(
        original_destination_cid=quic.original_destination_connection_id,
        retry_source_cid=None,
        unix_time=0.0,
    )
    pair.client.hold(quic, incoming=False, now=0.0)
    pair.client.connection.dial(0.0)
    pair.server.hold(answer, incoming=True, now=0.0)
    ours, _ = both_reasons(pair)
    assert ours is not None
    assert (ours.kind, ours.by_peer) == ("identity", False)


def test_a_signature_must_fit_the_key_in_its_scheme() -> None:
    context = NodeContext.__new__(NodeContext)
    context._is_client = True
    context.identity_failed = False
    context._peer_key = SERVER_KEY.public
    signature = SERVER_KEY.sign(b"signed")
    context.check_signature(0x0807, signature, b"signed")
    for scheme, signed in [(0x0403, b"signed"), (0x0807, b"other")]:
        with pytest.raises(tls.Alert):
            context.check_signature(scheme, signature, signed)
    assert context.identity_failed


def context_of_a_server() -> NodeContext:
    context = NodeContext.__new__(NodeContext)
    context._is_client = False
    context.kind = "x509"
    context._expected = None
    context._unix_time = UNIX_TIME
    context.identity_failed = False
    context.identity = QuicPair().server.factory._identity
    return context


def test_a_certificate_of_an_ed25519_key_takes_signatures_of_that_key_only() -> None:
    key, other = (ed25519.Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in (5, 6))
    context = context_of_a_server()
    context.take_peer_certificates([make_certificate(key)])
    assert context.peer_id == NODE.public
    context.check_signature(0x0807, key.sign(b"signed"), b"signed")
    assert not context.identity_failed
    with pytest.raises(tls.Alert):
        context.check_signature(0x0807, other.sign(b"signed"), b"signed")
    with pytest.raises(tls.Alert):  # the node's own key is another one than its certificate's
        context.check_signature(0x0807, NODE.sign(b"signed"), b"signed")
    assert context.identity_failed


def test_a_certificate_of_a_p256_key_takes_no_other_curves_scheme() -> None:
    rng = random.Random(4)
    key = make_certificate_key(rng)
    context = context_of_a_server()
    context.take_peer_certificates([build_certificate(OTHER_KEY, certificate_key=key, serial=5)])
    assert context.peer_id == OTHER_KEY.public
    signature = key.sign(b"signed", ec.ECDSA(hashes.SHA256()))
    context.check_signature(0x0403, signature, b"signed")
    for scheme in (0x0503, 0x0807):
        with pytest.raises(tls.Alert):
            context.check_signature(scheme, signature, b"signed")
    with pytest.raises(tls.Alert):
        context.check_signature(0x0403, signature[:-1] + b"\x00", b"signed")


def test_extensions_are_found_in_a_client_hello() -> None:
    quic = QuicPair().client.connection._quic
    hello = bytes(quic._crypto_streams[tls.Epoch.INITIAL].sender._buffer)
    extensions = client_hello_extensions(hello)
    assert extensions[CLIENT_CERTIFICATE_TYPE] == extensions[SERVER_CERTIFICATE_TYPE] == b"\x01\x02"
    parsed = tls.pull_client_hello(Buffer(data=hello))
    for kind, data in parsed.other_extensions:
        assert extensions[kind] == data
    groups = [parsed.key_share[0][0]] if parsed.key_share else []
    assert groups == [tls.Group.X25519]
    assert parsed.server_name is None


def test_a_client_hello_that_breaks_off_anywhere_is_read_without_raising() -> None:
    quic = QuicPair().client.connection._quic
    hello = bytes(quic._crypto_streams[tls.Epoch.INITIAL].sender._buffer)
    for size in range(len(hello)):
        client_hello_extensions(hello[:size])


def vectors(path: Path) -> dict[str, Any]:
    observed: dict[str, Any] = json.loads((path / "identity.json").read_text())["quic_observed"]
    return observed


def encode_parameters(parameters: dict[str, str]) -> bytes:
    encoded = b""
    for name, value in parameters.items():
        identifier, data = int(name, 16), bytes.fromhex(value)
        encoded += (identifier | 0xC000_0000_0000_0000).to_bytes(8, "big")
        encoded += bytes([len(data)]) + data
    return encoded


def test_released_peers_announce_whether_they_punch_in_quic(vectors_path: Path) -> None:
    peers = vectors(vectors_path)
    old = peers["v0_28_1_client"]["transport_params"]
    new = {**old, **peers["v1_4_1_client"]["extra_transport_params"]}
    for announced, punches in [(old, False), (new, True)]:
        parameters = peer_parameters([(10, b""), (0x39, encode_parameters(announced))])
        assert parameters.punches_in_quic is punches
        assert parameters.max_udp_payload_size == 1472
        assert parameters.idle_timeout == 30.0


@pytest.mark.parametrize("identifier", [INITIAL_MAX_PATH_ID, N0_NAT_TRAVERSAL])
def test_multipath_and_hole_punching_each_tell_that_a_peer_punches_in_quic(identifier: int) -> None:
    parameters = peer_parameters([(0x39, encode_parameters({hex(identifier): "01"}))])
    assert parameters.punches_in_quic


def test_certificate_types_are_those_of_released_peers(vectors_path: Path) -> None:
    pair = QuicPair()
    pair.run_for(1.0)
    ours = dict(pair.server.connection._quic.received_extensions)
    answered = dict(pair.client.connection._quic.received_extensions)
    for kind in (CLIENT_CERTIFICATE_TYPE, SERVER_CERTIFICATE_TYPE):
        for name in ("v0_35_0_client", "v1_4_1_client"):
            peer = vectors(vectors_path)[name]
            assert ours[kind].hex() == peer["extensions_seen"][str(kind)]
        observed = vectors(vectors_path)["v0_35_0_client"]["encrypted_extensions"]
        assert answered[kind].hex() == observed[str(kind)]


@pytest.mark.parametrize(
    ("release", "kind"),
    [("v0_28_1_client", "x509"), ("v0_35_0_client", "raw"), ("v1_4_1_client", "raw")],
)
def test_what_released_clients_offer_is_enough(
    release: str, kind: IdentityKind, vectors_path: Path
) -> None:
    offered = vectors(vectors_path)[release]
    suites = [number for number in offered["cipher_suites"] if number != RENEGOTIATION_SIGNAL]

    def offer_the_same(context: NodeContext) -> None:
        context._server_name = offered["server_name"]
        context._cipher_suites = [tls.CipherSuite(int(number, 16)) for number in suites]
        context._signature_algorithms = [int(number, 16) for number in offered["sig_algs"]]
        if "groups" in offered:
            context._supported_groups = [tls.Group(int(n, 16)) for n in offered["groups"]]

    pair = with_client_context(QuicPair(kind=kind), NodeContext, offer_the_same, kind=kind)
    pair.run_for(1.0)
    assert pair.server.connection.node_id == CLIENT_KEY.public
    assert pair.client.connection.is_established


def test_signature_schemes_are_those_of_released_peers(vectors_path: Path) -> None:
    peers = vectors(vectors_path)
    with_certificates, with_raw_keys = (
        [f"{scheme:04x}" for scheme in schemes] for schemes in (SIGNATURE_SCHEMES, RAW_SCHEMES)
    )
    assert with_certificates == peers["v0_28_1_client"]["sig_algs"]
    assert with_raw_keys == peers["v1_4_1_client"]["sig_algs"]
    # As server 0.35 asks for more of a raw key than such a key can sign; ours is among it.
    assert set(with_raw_keys) <= set(peers["v0_35_0_client"]["certificate_request_sig_algs"])


def test_the_key_share_of_released_clients_is_ours(vectors_path: Path) -> None:
    offered = vectors(vectors_path)["v0_28_1_client"]["key_share"]
    assert [int(number, 16) for number in offered] == list(CLIENT_GROUPS)
    assert set(CLIENT_GROUPS) <= set(SERVER_GROUPS)


def test_no_quic_bit_is_greased(vectors_path: Path) -> None:
    pair = QuicPair().establish()
    extensions = dict(pair.server.connection._quic.received_extensions)
    parameters = peer_parameters([(0x39, extensions[0x39])])
    assert not parameters.punches_in_quic
    assert (0x2AB2 | 0x4000).to_bytes(2, "big") not in extensions[0x39]
