"""What the host tells machines, on both backends."""

from __future__ import annotations

import socket
from ipaddress import ip_address

import pytest

from iroh_anyio import host
from iroh_anyio.host import SleepWatch, interface_ips, resolve

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("text", "ip"), [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("[2001:DB8::1]", "2001:db8::1")]
)
async def test_an_address_resolves_to_itself(text: str, ip: str) -> None:
    assert await resolve(text) == [ip]


async def test_a_name_resolves_to_addresses_without_doubles() -> None:
    ips = await resolve("localhost")
    assert "127.0.0.1" in ips
    assert len(set(ips)) == len(ips)


@pytest.mark.parametrize("name", ["no-such-name.invalid", "x" * 300, "a..b"])
async def test_a_name_without_address_is_an_empty_answer(name: str) -> None:
    assert await resolve(name) == []


async def test_interfaces_are_listed_with_loopback() -> None:
    ips = interface_ips()
    assert "127.0.0.1" in ips
    for ip in ips:
        ip_address(ip)


async def test_the_address_that_packets_leave_from_is_listed() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; chooses the route
        except OSError:
            pytest.skip("this host has no route out")
        assert probe.getsockname()[0] in interface_ips()


async def test_sleep_is_noticed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    slept = 100.0
    monkeypatch.setattr(host, "_sleep_seconds", lambda: slept)
    watch = SleepWatch()
    assert not watch.slept()
    slept = 101.0
    assert not watch.slept()
    slept = 161.0
    assert watch.slept()
    assert not watch.slept()
