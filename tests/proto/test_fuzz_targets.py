"""The targets of fuzz/: they hold for their seeds, can fail, and leave no decoder out."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fuzz import machines
from fuzz.decoders import TARGETS
from fuzz.planted import TARGET as PLANTED
from fuzz.target import Target
from fuzz.targets import load, names
from iroh_proto.address import UdpAddress

ROOT = Path(__file__).parents[2]

Break = Callable[[Any], Any]


def is_broken(target: Target) -> bool:
    """Say whether the invariant fails for one of the seeds."""
    for data in target.seeds():
        try:
            target.check(data)
        except Exception:  # noqa: BLE001  # any exception is how a target says so
            return True
    return False


@pytest.mark.parametrize("name", names())
def test_the_invariant_holds_for_the_seeds(name: str) -> None:
    target = load(name)
    assert target.invariant.endswith(".")
    checked = 0
    for data in target.seeds():
        target.check(data)
        checked += 1
    assert checked


def raising(_: object) -> object:
    """Replace a function by one that raises what no decoder may."""

    def broken(*args: object, **options: object) -> object:
        raise IndexError("broken on purpose")

    return broken


def raising_os_error(_: object) -> object:
    """Replace a function by one that raises what readers of time lines let through."""

    def broken(*args: object, **options: object) -> object:
        raise OSError("broken on purpose")

    return broken


def giving(value: object) -> Break:
    """Replace a function by one that gives the same for all."""
    return lambda _: lambda *args, **options: value


def flipped(address: UdpAddress) -> UdpAddress:
    """Return an address with another port, and with the first one if done again."""
    return address._replace(port=address.port ^ 1)


DEFECTS: dict[str, tuple[str, Break]] = {
    "stun": (
        "iroh_proto.stun.message._locate_attributes",
        lambda locate: lambda data: locate(data)[:-1],
    ),
    "stun-binding": ("iroh_proto.stun.message.verify_fingerprint", giving(True)),
    "disco-message": (
        "iroh_proto.disco.message._encode_address",
        lambda encode: lambda address: encode(address)[:-2] + b"\x00\x07",
    ),
    "disco-envelope": ("iroh_proto.box.hmac.compare_digest", giving(True)),
    "wire-labels": ("iroh_proto.trace.disco.label_of", giving("two\nlines")),
    "derp-handshake": ("iroh_proto.derp.dialects.v2.ClientDetails.decode", raising),
    "derp-relaying": (
        "iroh_proto.derp.codec.packed_parts",
        lambda pack: lambda parts: pack(parts)[:-2],
    ),
    "derp-payload": ("iroh_proto.derp.segments._batch", lambda _: lambda run, size: (0, run[0])),
    "http-request": ("iroh_proto.derp.upgrade.ServerUpgrade._parse", raising),
    "http-response": ("iroh_proto.derp.upgrade._Head.rest", giving(b"")),
    "ticket": ("iroh_proto.ticket._VARIANT", lambda _: b"\x01"),
    "node-record": (
        "iroh_proto.node_record.read_udp_address",
        lambda read: lambda reader: flipped(read(reader)),
    ),
    "key": ("iroh_proto.key.NodeId.to_z32", lambda write: lambda node_id: write(node_id) + "y"),
    "openssh": (
        "iroh_proto.openssh._read_private_section",
        lambda read: lambda fields, public: read(fields, public)[::-1],
    ),
    "address": (
        "iroh_proto.address.DerpUrl.to_rooted_str",
        lambda write: lambda url: write(url) + "x",
    ),
    "certificate": ("iroh_proto.identity.certificate._check_self_signature", giving(None)),
    "raw-key": ("iroh_proto.identity.raw_key.SPKI_SIZE", lambda size: size + 1),
    "postcard": (
        "fuzz.decoders.wire.encode_signed",
        lambda encode: lambda value: encode(value + 1),
    ),
    "quic-varint": (
        "fuzz.decoders.wire.encode_quic_varint",
        lambda _: lambda value: (value | 3 << 62).to_bytes(8, "big"),
    ),
    "quic-header": ("iroh_anyio.quic.header.INITIAL", lambda kind: kind + 1),
    "quic-observed-address": (
        "fuzz.decoders.quic.encode_observed",
        lambda encode: lambda sequence, address: encode(sequence + 1, address),
    ),
    "quic-retry-token": ("iroh_anyio.quic.retry._address_bytes", giving(b"")),
    "timeline-drawing": ("iroh_proto.testing.sequence.document", giving("<svg")),
    "timeline-merging": (
        "fuzz.decoders.timeline.merge",
        lambda merge: lambda timelines: merge(timelines[:1]),
    ),
    "timeline-replay": ("iroh_proto.testing.replay._config", raising_os_error),
    "timeline-values": ("fuzz.decoders.timeline.encode_value", giving("none")),
}
# All dialects have it.
DEFECT_OF_FRAMES = (
    "iroh_proto.derp.frames.Ping.encode_body",
    lambda encode: lambda frame: encode(frame)[::-1],
)


@pytest.mark.parametrize("name", TARGETS)
def test_a_decoder_broken_on_purpose_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, damage = DEFECTS.get(name, DEFECT_OF_FRAMES)
    assert name in DEFECTS or name.startswith("derp-")
    owner, _, attribute = place.rpartition(".")
    found = resolve(owner)
    monkeypatch.setattr(found, attribute, damage(getattr(found, attribute)))
    assert is_broken(TARGETS[name])


def resolve(path: str) -> Any:
    """Return the module or class with a dotted name."""
    try:
        return __import__(path, fromlist=["_"])
    except ModuleNotFoundError:
        owner, _, attribute = path.rpartition(".")
        return getattr(resolve(owner), attribute)


@pytest.mark.parametrize("name", machines.contract_modules())
def test_a_machine_broken_on_purpose_is_found(name: str) -> None:
    subject = machines.subject_of(name)

    def factory(rng: Any) -> Any:
        machine = subject.factory(rng)

        class Failing(type(machine)):  # type: ignore[misc]
            """Fails when time passes."""

            def handle_timer(self, *, now: float) -> None:
                raise IndexError("broken on purpose")

        machine.__class__ = Failing
        return machine

    assert is_broken(machines.rules_target(replace(subject, factory=factory)))


def test_memory_without_bounds_is_found() -> None:
    subject = machines.subject_of("stun-server")
    assert is_broken(machines.memory_target([replace(subject, memory_limit=10)]))


def test_a_planted_defect_is_in_reach_of_its_seeds_only_by_fuzzing() -> None:
    assert not is_broken(PLANTED)
    with pytest.raises(IndexError):
        PLANTED.check(b"iroh\x07")


def public_decoders() -> list[str]:
    """Return the functions that turn bytes or text of others into something."""
    sources = [*(ROOT / "iroh_proto").rglob("*.py"), *(ROOT / "iroh_anyio/quic").rglob("*.py")]
    return sorted(
        {
            node.name
            for path in sources
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, ast.FunctionDef)
            and node.name.startswith(("decode_", "parse_", "read_", "verify_", "open_", "examine_"))
        }
    )


# What has no target by its own name, and which one it is part of.
PARTS = {
    "decode_base32": "ticket",
    "decode_key_text": "key",
    "read_udp_address": "node-record",
    "verify_certificate": "certificate",
}


@pytest.mark.parametrize("name", public_decoders())
def test_every_decoder_has_a_target(name: str) -> None:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "fuzz/decoders").glob("*.py")]
    is_called = any(f"{name}(" in text or f"{name}," in text for text in texts)
    assert is_called or PARTS.get(name) in TARGETS, f"write a target for {name}"
