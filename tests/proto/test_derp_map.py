"""The map of DERP servers."""

from __future__ import annotations

import pytest

from iroh_proto.address import DerpUrl
from iroh_proto.derp.map import STUN_PORT, DerpMap, DerpNode
from iroh_proto.errors import DecodeError, LocalProtocolError

A, B = DerpUrl.from_str("https://a.example"), DerpUrl.from_str("https://b.example:8443")


def test_a_map_keeps_the_order_it_was_given() -> None:
    assert [node.url for node in DerpMap.from_urls([B, "https://a.example"])] == [B, A]
    assert len(DerpMap.from_urls([A, B])) == 2
    assert len(DerpMap()) == 0


def test_of_two_servers_with_one_url_the_first_stays() -> None:
    first, second = DerpNode(A, stun_port=1), DerpNode("https://a.example./", stun_port=2)
    derp_map = DerpMap([first, DerpNode(B), second])
    assert [node.stun_port for node in derp_map] == [1, STUN_PORT]


def test_a_server_is_found_by_its_url() -> None:
    derp_map = DerpMap([DerpNode(A, dialect="v2")])
    node = derp_map.get(DerpUrl.from_str("https://A.example./"))
    assert node is not None
    assert node.dialect == "v2"
    assert derp_map.get(B) is None


def test_servers_have_the_usual_settings_unless_told() -> None:
    node = DerpNode("https://a.example")
    assert (node.url, node.stun_port, node.dialect) == (A, 3478, None)
    assert DerpNode(A, stun_port=None).stun_port is None
    assert DerpNode(A) == DerpNode("https://a.example")


def test_bad_urls_are_refused() -> None:
    with pytest.raises(DecodeError, match="nonsense"):
        DerpNode("nonsense")
    with pytest.raises(DecodeError, match="nonsense"):
        DerpMap.from_urls([A, "nonsense"])


def test_one_url_is_no_list_and_a_url_no_server() -> None:
    for url in ("https://a.example", A):
        with pytest.raises(TypeError, match="urls is a list of URLs, not one URL"):
            DerpMap.from_urls(url)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"a list of DerpNode, not of .*: see from_urls"):
            DerpMap([url])  # type: ignore[list-item]


def test_maps_compare_in_order_and_are_no_dictionary_keys() -> None:
    assert DerpMap.from_urls([A, B]) == DerpMap([DerpNode(A), DerpNode(B)])
    assert DerpMap.from_urls([A, B]) != DerpMap.from_urls([B, A])
    assert DerpMap() != []
    with pytest.raises(TypeError, match="unhashable"):
        hash(DerpMap())


def test_maps_print_their_urls() -> None:
    assert repr(DerpMap.from_urls([A, B])) == (
        "DerpMap([https://a.example/, https://b.example:8443/])"
    )


def test_a_token_is_kept_for_its_server_and_shown_nowhere() -> None:
    derp_map = DerpMap([DerpNode(A, token="hush"), DerpNode(B)])
    assert [node.token for node in derp_map] == ["hush", None]
    assert [node.token for node in DerpMap.from_urls([A, B], token="hush")] == ["hush", "hush"]
    assert "hush" not in repr(derp_map) + repr(list(derp_map))


@pytest.mark.parametrize("token", ["", "two words", "line\r\nend", "ümlaut"])
def test_a_token_that_cannot_stand_in_a_header_is_refused(token: str) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        DerpNode(A, token=token)
    assert not token or token not in str(caught.value)
