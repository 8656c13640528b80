"""Addresses: text forms, normalisation, and text that is refused."""

from __future__ import annotations

import ipaddress
from contextlib import suppress

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iroh_proto.address import DerpAddress, DerpUrl, NodeAddr, UdpAddress, check_hostname
from iroh_proto.errors import DecodeError
from iroh_proto.key import NodeId, SecretKey

NODE_ID = SecretKey(bytes(32)).public

ports = st.integers(min_value=0, max_value=65535)


@pytest.mark.parametrize(
    ("text", "ip", "port"),
    [
        ("1.2.3.4:80", "1.2.3.4", 80),
        ("0.0.0.0:0", "0.0.0.0", 0),
        ("1.2.3.4:00080", "1.2.3.4", 80),
        ("[2001:DB8:0::1]:65535", "2001:db8::1", 65535),
        ("[::ffff:1.2.3.4]:80", "1.2.3.4", 80),
        ("[fe80::1%eth0]:80", "fe80::1%eth0", 80),
    ],
)
def test_udp_addresses_are_read_in_canonical_form(text: str, ip: str, port: int) -> None:
    assert UdpAddress.from_str(text) == (ip, port)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not an address and port"),
        ("1.2.3.4", "not an address and port"),
        ("1.2.3.4:", "not an address and port"),
        ("1.2.3.4:65536", "not an address and port"),
        ("1.2.3.4:+80", "not an address and port"),
        ("1.2.3.4:-1", "not an address and port"),
        ("1.2.3.4:\u0663", "not an address and port"),
        pytest.param("1.2.3.4:" + "9" * 5000, "not an address and port", id="many digits"),
        ("::1:80", "stand in brackets"),
        ("[1.2.3.4]:80", "stand in brackets"),
        ("[::1:80", "stand in brackets"),
        ("1.2.3:80", "not an IP address"),
        ("01.2.3.4:80", "not an IP address"),
        ("example.com:80", "not an IP address"),
        (":80", "not an IP address"),
        ("[::g]:80", "not an IP address"),
    ],
)
def test_text_that_is_no_udp_address_is_refused(text: str, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        UdpAddress.from_str(text)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_number_that_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(DecodeError, match="a port is"):
        UdpAddress.of("1.2.3.4", port)


@given(st.ip_addresses(), ports)
def test_udp_addresses_survive_as_text(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    address = UdpAddress.of(ip, port)
    assert UdpAddress.from_str(str(address)) == address
    assert ipaddress.ip_address(address.packed_ip) == ipaddress.ip_address(address.ip)
    assert address.is_ipv6 is (len(address.packed_ip) == 16)


def test_mapped_addresses_are_ipv4_however_they_come() -> None:
    mapped = ipaddress.IPv6Address("::ffff:192.0.2.1")
    assert UdpAddress.of(mapped, 1) == UdpAddress.of("192.0.2.1", 1) == ("192.0.2.1", 1)


def test_a_scope_is_left_out_of_the_bytes() -> None:
    assert UdpAddress.of("fe80::1%eth0", 1).packed_ip == UdpAddress.of("fe80::1", 1).packed_ip


def test_udp_addresses_sort_as_irohs_sets_do() -> None:
    texts = ["9.0.0.1:2", "10.0.0.1:1", "10.0.0.1:2", "[::1]:1", "[2001:db8::1]:1"]
    addresses = [UdpAddress.from_str(text) for text in texts]
    assert sorted(set(addresses), key=lambda address: address.sort_key) == addresses


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("https://example.com", "https://example.com/"),
        ("https://example.com./", "https://example.com/"),
        ("HTTPS://EXAMPLE.COM:443/", "https://example.com/"),
        ("http://example.com:80", "http://example.com/"),
        ("http://example.com:443", "http://example.com:443/"),
        ("ws://example.com:80/relay", "ws://example.com/relay"),
        ("wss://example.com:443", "wss://example.com/"),
        ("http://127.0.0.1:3340", "http://127.0.0.1:3340/"),
        ("http://[2001:DB8::0:1]:3340/", "http://[2001:db8::1]:3340/"),
        ("http://[::ffff:192.0.2.1]/", "http://192.0.2.1/"),
        ("https://example.com:/a/b?c=d", "https://example.com/a/b?c=d"),
        ("https://example.com/a b?c d", "https://example.com/a%20b?c%20d"),
        ("https://example.com/\u00e9", "https://example.com/%C3%A9"),
        ("https://example.com/a%20b", "https://example.com/a%20b"),
        ("https://user:secret@example.com/#part", "https://example.com/"),
        ("https://a_b-c.example", "https://a_b-c.example/"),
    ],
)
def test_derp_urls_are_normalised(text: str, normal: str) -> None:
    assert str(DerpUrl.from_str(text)) == normal


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "begins with http"),
        ("example.com", "begins with http"),
        ("ftp://example.com", "begins with http"),
        ("//example.com", "begins with http"),
        ("https:", "names no host"),
        ("https:///", "names no host"),
        ("https://:443/", "names no host"),
        ("https://example.com:99999/", "not a URL"),
        ("https://example.com:x/", "not a URL"),
        ("https://[::1/", "not a URL"),
        ("https://./", "not a host name"),
        ("https://exam ple.com/", "not a host name"),
        ("https://exam\x00ple.com/", "not a host name"),
        ("https://exam%20ple.com/", "not a host name"),
        ("https://b\u00fccher.example/", "not a host name"),
        ("https://[fe80::1%25eth0]/", "not a host name"),
    ],
)
def test_text_that_is_no_derp_url_is_refused(text: str, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        DerpUrl.from_str(text)


def test_the_dot_after_a_host_makes_no_difference() -> None:
    with_dot, without = (
        DerpUrl.from_str("https://a.example./"),
        DerpUrl.from_str("https://a.example"),
    )
    assert with_dot == without
    assert hash(with_dot) == hash(without)
    assert with_dot.to_rooted_str() == without.to_rooted_str() == "https://a.example./"


@pytest.mark.parametrize(
    ("text", "rooted"),
    [
        ("https://a.example:8443/x", "https://a.example.:8443/x"),
        ("http://127.0.0.1:3340", "http://127.0.0.1:3340/"),
        ("http://[::1]/", "http://[::1]/"),
    ],
)
def test_only_names_are_rooted(text: str, rooted: str) -> None:
    assert DerpUrl.from_str(text).to_rooted_str() == rooted


@pytest.mark.parametrize(
    ("text", "authority", "tls", "ip_literal"),
    [
        ("http://a.example/", "a.example", False, False),
        ("https://a.example:8443/", "a.example:8443", True, False),
        ("wss://a.example/", "a.example", True, False),
        ("http://[::1]:3340/", "[::1]:3340", False, True),
        ("http://127.0.0.1/", "127.0.0.1", False, True),
    ],
)
def test_what_a_client_needs_to_know_of_a_url(
    text: str, authority: str, tls: bool, ip_literal: bool
) -> None:
    url = DerpUrl.from_str(text)
    assert (url.authority, url.is_tls, url.is_ip_literal) == (authority, tls, ip_literal)


hosts = st.from_regex(r"\A[a-z0-9_-]{1,9}(\.[a-z0-9]{1,5}){0,2}\.?\Z") | st.ip_addresses().map(
    lambda ip: f"[{ip}]" if ip.version == 6 else str(ip)
)
url_texts = st.builds(
    "{}://{}:{}/{}".format,
    st.sampled_from(["http", "https", "ws", "wss", "HTTP"]),
    hosts | st.text(max_size=12),
    ports | st.just(""),
    st.text(max_size=12),
)


@given(url_texts | st.text(max_size=40))
def test_a_derp_url_survives_as_text_and_fits_in_a_request(text: str) -> None:
    try:
        url = DerpUrl.from_str(text)
    except DecodeError:
        return
    assert DerpUrl.from_str(str(url)) == url
    assert DerpUrl.from_str(url.to_rooted_str()) == url
    request = h11.Request(method="GET", target=url.path, headers=[("Host", url.authority)])
    assert request.target.decode() == url.path


@given(st.text(max_size=40))
def test_any_text_raises_nothing_but_decode_errors(text: str) -> None:
    for parse in (DerpUrl.from_str, UdpAddress.from_str):
        with suppress(DecodeError):
            parse(text)


LONG_LABEL = "a" * 63
LONG_NAME = ".".join([LONG_LABEL] * 3 + ["a" * 61])


@pytest.mark.parametrize(
    "name",
    [
        "localhost",
        "Derp-1.Example.com",
        "derp.example.com.",
        "xn--drper-bsa.example",
        "_srv.example",
        "192.0.2.1",
        LONG_NAME,
    ],
)
def test_host_names_are_known(name: str) -> None:
    check_hostname(name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a..b",
        "-a",
        "a-",
        "a b",
        "a\n",
        "a:80",
        "a/b",
        "u@a",
        "::1",
        "d\N{LATIN SMALL LETTER E WITH ACUTE}rper.example",
        "\N{ARABIC-INDIC DIGIT ONE}",
        "a" * 64,
        f"{LONG_NAME}a",
    ],
)
def test_text_that_is_no_host_name_is_refused(text: str) -> None:
    with pytest.raises(DecodeError, match="not a host name in ASCII, such as"):
        check_hostname(text)


def test_a_node_addr_keeps_its_addresses_sorted_and_once() -> None:
    texts = ["[::1]:1", "10.0.0.1:80", "9.0.0.1:80", "[::ffff:10.0.0.1]:80"]
    addr = NodeAddr(NODE_ID, direct_addresses=[*texts, UdpAddress("9.0.0.1", 80)])
    assert [str(address) for address in addr.direct_addresses] == [
        "9.0.0.1:80",
        "10.0.0.1:80",
        "[::1]:1",
    ]


def test_node_addrs_compare_by_value() -> None:
    one = NodeAddr(NODE_ID, derp_url="https://a.example", direct_addresses=["1.1.1.1:1"])
    same = NodeAddr(
        NODE_ID,
        derp_url=DerpUrl.from_str("https://a.example./"),
        direct_addresses=[UdpAddress("1.1.1.1", 1)],
    )
    assert one == same
    assert hash(one) == hash(same)
    assert one != NodeAddr(NODE_ID, derp_url="https://a.example")
    assert one != "https://a.example"


def test_a_node_id_may_be_text_and_nothing_else() -> None:
    assert NodeAddr(str(NODE_ID)) == NodeAddr(NODE_ID)
    with pytest.raises(DecodeError, match="node id"):
        NodeAddr("nobody")
    with pytest.raises(TypeError, match="not builtin_function_or_method"):
        NodeAddr(NODE_ID.hex)  # type: ignore[arg-type]


def test_a_node_addr_is_immutable() -> None:
    addr = NodeAddr(NODE_ID)
    with pytest.raises(AttributeError, match="immutable"):
        addr.derp_url = DerpUrl.from_str("https://a.example")


def test_a_node_addr_is_empty_until_something_is_known() -> None:
    assert NodeAddr(NODE_ID).is_empty
    assert not NodeAddr(NODE_ID, derp_url="https://a.example").is_empty
    assert not NodeAddr(NODE_ID, direct_addresses=["1.1.1.1:1"]).is_empty


@pytest.mark.parametrize(("derp_url", "direct_addresses"), [("nonsense", []), (None, ["nonsense"])])
def test_a_node_addr_refuses_bad_text(derp_url: str | None, direct_addresses: list[str]) -> None:
    with pytest.raises(DecodeError, match="nonsense"):
        NodeAddr(NODE_ID, derp_url=derp_url, direct_addresses=direct_addresses)


def test_addresses_print_for_people() -> None:
    url = DerpUrl.from_str("https://a.example")
    addr = NodeAddr(NodeId(NODE_ID), derp_url=url, direct_addresses=["1.1.1.1:1"])
    assert str(DerpAddress(url, NODE_ID)) == "3b6a27bcce via https://a.example/"
    assert repr(addr) == (
        f"NodeAddr({NODE_ID}, derp_url='https://a.example/', direct_addresses=['1.1.1.1:1'])"
    )
    assert repr(NodeAddr(NODE_ID)) == f"NodeAddr({NODE_ID}, derp_url=None, direct_addresses=[])"


@pytest.mark.parametrize(
    "text",
    ["[::1%\0]:5", "[fe80::1%a b]:5", "[fe80::1%]:5", "[fe80::1%0123456789abcdef]:5", "[::1%1]:5"],
)
def test_a_scope_is_the_name_of_an_interface_of_a_link_local_address(text: str) -> None:
    with pytest.raises(DecodeError):
        UdpAddress.from_str(text)


def test_addresses_of_two_scopes_have_an_order() -> None:
    one, other = (UdpAddress.from_str(f"[fe80::1%{scope}]:5") for scope in ("eth0", "eth1"))
    node_id = SecretKey(bytes(32)).public
    ways = [NodeAddr(node_id, direct_addresses=both) for both in ([one, other], [other, one])]
    assert ways[0] == ways[1]
    assert ways[0].direct_addresses == (one, other)


@pytest.mark.parametrize("url", ["http://h\\@evil/", "http://[::1]x:80/", "http://a@[::1]x/"])
def test_a_url_that_parsers_read_differently_is_none(url: str) -> None:
    with pytest.raises(DecodeError, match="not a URL"):
        DerpUrl.from_str(url)


@pytest.mark.parametrize("address", ["192.0.2.1:5", UdpAddress("192.0.2.1", 5)])
def test_one_direct_address_is_no_list(address: UdpAddress | str) -> None:
    with pytest.raises(TypeError, match="direct_addresses is a list of addresses, not one"):
        NodeAddr(NODE_ID, direct_addresses=address)  # type: ignore[arg-type]
