"""Peer locators and sturdyrefs, as values and as URIs."""

from __future__ import annotations

import copy
import pickle
import traceback
from typing import Any

import pytest
from hypothesis import given

from ocapn.codec.syrup import encode
from ocapn.errors import BadLocator
from ocapn.model.locators import PeerLocator, SturdyRef, parse_uri

from . import strategies, vectors

SWISS = b"\x00\xfbswiss/?#%&=+ \xff"
SWISS_PERCENT = "%00%FBswiss%2F%3F%23%25%26%3D%2B%20%FF"
SWISS_BASE64 = "APtzd2lzcy8_IyUmPSsg_w"

PEERS: dict[str, PeerLocator] = {
    "ocapn://alice-designator.tcp-testing-only?host=127.0.0.1&port=22045": PeerLocator(
        "tcp-testing-only", "alice-designator", {"host": "127.0.0.1", "port": "22045"}
    ),
    "ocapn://4zcbxp.websocket?url=wss%3A%2F%2Fexample.org%2Fa%3Fb": PeerLocator(
        "websocket", "4zcbxp", {"url": "wss://example.org/a?b"}
    ),
    "ocapn://abcdefghijklmnop.onion": PeerLocator("onion", "abcdefghijklmnop"),
    "ocapn://a.unix?path=%2Frun%2Fa%20b.sock": PeerLocator("unix", "a", {"path": "/run/a b.sock"}),
    "ocapn://k.noise?addr=%5B%3A%3A1%5D%3A9%2Chost%3A9&relay=r%26s%3Dt%2Bu": PeerLocator(
        "noise", "k", {"addr": "[::1]:9,host:9", "relay": "r&s=t+u"}
    ),
}


@pytest.mark.parametrize("uri", PEERS)
def test_a_peer_locator_s_uri_both_ways(uri: str) -> None:
    peer = PEERS[uri]
    assert peer.uri == uri
    found = PeerLocator.parse(uri)
    assert found == peer
    assert dict(found.hints) == dict(peer.hints)


@pytest.mark.parametrize("uri", PEERS)
def test_a_sturdyref_s_uri_both_ways(uri: str) -> None:
    peer = PEERS[uri]
    place, question, query = uri.partition("?")
    swiss = SWISS_BASE64 if peer.transport in ("websocket", "onion") else SWISS_PERCENT
    sturdy = f"{place}/s/{swiss}{question}{query}"
    assert SturdyRef(peer, SWISS).uri == sturdy
    found = SturdyRef.parse(sturdy)
    assert found == SturdyRef(peer, SWISS)
    assert dict(found.peer.hints) == dict(peer.hints)
    assert parse_uri(sturdy) == found


@pytest.mark.parametrize("who", ["alice", "bob"])
def test_the_vectors_locations(who: str) -> None:
    vector = vectors.WIRE["handshake"][who]
    peer = PeerLocator.parse(vector["location_uri"])
    assert peer.uri == vector["location_uri"]
    assert encode(peer).hex() == vector["location_syrup"]


def test_the_last_dot_separates_the_transport() -> None:
    peer = PeerLocator.parse("ocapn://a.b.c.onion")
    assert (peer.designator, peer.transport) == ("a.b.c", "onion")
    assert PeerLocator("onion", "a.b.c").uri == "ocapn://a.b.c.onion"


@pytest.mark.parametrize("swiss", [b"\xff", b"\xff\xff", b"\xff\xff\xff", b"\xfb\xef\xbe", bytes(32)])
@pytest.mark.parametrize("transport", ["websocket", "onion"])
def test_swiss_numbers_of_deployed_transports_are_base64url_without_padding(
    transport: str, swiss: bytes
) -> None:
    uri = SturdyRef(PeerLocator(transport, "a"), swiss).uri
    text = uri.removeprefix(f"ocapn://a.{transport}/s/")
    assert not set(text) & set("=+/%")
    assert SturdyRef.parse(uri).swiss == swiss


def test_percent_signs_may_write_base64_too() -> None:
    assert SturdyRef.parse("ocapn://a.onion/s/%2Dw").swiss == b"\xfb"


def test_a_uri_is_read_with_room_around_it_and_in_any_case_of_the_scheme() -> None:
    for uri in ("OCapN://a.unix", " ocapn://a.unix\n", "ocapn://a.unix/", "ocapn://a.unix?"):
        assert parse_uri(uri) == PeerLocator("unix", "a")
        assert not PeerLocator.parse(uri).hints


def test_a_plus_in_the_hints_is_a_space_as_in_any_query() -> None:
    assert PeerLocator.parse("ocapn://a.unix?path=a+b").hints == {"path": "a b"}


MALFORMED: dict[str, str] = {
    "": "begins with ocapn://",
    "a.unix": "begins with ocapn://",
    "ocapn:a.unix": "begins with ocapn://",
    "http://a.unix": "begins with ocapn://",
    "ocapn://a.unix#part": "has no fragment",
    "ocapn://unix": "there is no dot",
    "ocapn://": "there is no dot",
    "ocapn:///s/a.b": "there is no dot",
    "ocapn://.unix": "a designator may not be empty",
    "ocapn://a.": "a transport is letters, digits",
    "ocapn://a.un ix": "a transport is letters, digits",
    "ocapn://a.unix\u0660é": "a transport is letters, digits",
    "ocapn://a.-unix": "a transport is letters, digits",
    "ocapn://a.un%69x": "a transport is letters, digits",
    "ocapn://%FF.unix": "the designator is not UTF-8 text",
    "ocapn://a.unix?path": "not name=value pairs",
    "ocapn://a.unix?path=1&": "not name=value pairs",
    "ocapn://a.unix?path=%FF": "not name=value pairs of UTF-8 text",
    "ocapn://a.unix?path=1&path=2": "the hint 'path' is given twice",
    "ocapn://a.unix/x": "after the peer comes nothing, or /s/",
    "ocapn://a.unix/s": "after the peer comes nothing, or /s/",
    "ocapn://a.unix//s/a": "after the peer comes nothing, or /s/",
    "ocapn://a.unix/s/": "the swiss number after /s/ is empty",
    "ocapn://a.unix\ud800": "a URI holds a surrogate",
}


@pytest.mark.parametrize("uri", MALFORMED, ids=ascii)
def test_a_malformed_uri_is_refused_with_what_is_wrong(uri: str) -> None:
    with pytest.raises(BadLocator) as caught:
        parse_uri(uri)
    assert MALFORMED[uri] in str(caught.value)


SECRET = "SeCrEtSwIsS"
MALFORMED_STURDY: dict[str, str] = {
    f"ocapn://a.unix/s/{SECRET}/": "a swiss number holds no /",
    f"ocapn://a.unix/s/a/{SECRET}": "a swiss number holds no /",
    f"ocapn://a.unix/s/{SECRET}%": "a % that two hexadecimal digits do not follow",
    f"ocapn://a.unix/s/%4{SECRET}": "a % that two hexadecimal digits do not follow",
    f"ocapn://a.unix/s/{SECRET}#": "has no fragment",
    f"ocapn://a.unix/s/{SECRET}\ud800": "a URI holds a surrogate",
    f"ocapn://a.unix/s/{SECRET}?path": "not name=value pairs",
    f"ocapn://a.un ix/s/{SECRET}": "a transport is letters, digits",
    f"ocapn://%FF.unix/s/{SECRET}": "the designator is not UTF-8 text",
    f"ocapn://a.unix/t/{SECRET}": "after the peer comes nothing, or /s/",
    f"ocapn://a.onion/s/{SECRET}==": "base64url without padding",
    f"ocapn://a.onion/s/{SECRET}aa": "base64url without padding",
    f"ocapn://a.onion/s/{SECRET}+": "base64url without padding",
    f"ocapn://a.websocket/s/{SECRET}%2F": "base64url without padding",
    f"ocapn://a.websocket/s/{SECRET}é": "base64url without padding",
    f"ocapn://ab/s/{SECRET}": "there is no dot",
    f"oc://a.unix/s/{SECRET}": "begins with ocapn://",
}


@pytest.mark.parametrize("uri", MALFORMED_STURDY, ids=ascii)
def test_a_malformed_sturdyref_is_refused_without_telling_its_swiss_number(uri: str) -> None:
    with pytest.raises(BadLocator) as caught:
        SturdyRef.parse(uri)
    assert MALFORMED_STURDY[uri] in str(caught.value)
    report = "".join(traceback.format_exception(caught.value))
    assert SECRET not in report


def test_a_uri_is_a_str() -> None:
    with pytest.raises(BadLocator, match="a URI is a str, not bytes"):
        parse_uri(b"ocapn://a.unix")  # type: ignore[arg-type]  # as it says


def test_the_two_kinds_of_uri_are_not_taken_for_each_other() -> None:
    with pytest.raises(BadLocator, match="this URI is a sturdyref") as caught:
        PeerLocator.parse(f"ocapn://a.unix/s/{SECRET}")
    assert SECRET not in str(caught.value)
    with pytest.raises(BadLocator, match="this URI names a peer, not an object"):
        SturdyRef.parse("ocapn://a.unix")


# Values


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, "a"), "a transport must be a string, not int"),
        (("un.ix", "a"), "a transport is letters, digits"),
        (("", "a"), "a transport is letters, digits"),
        (("unix\n", "a"), "a transport is letters, digits"),
        (("unix", b"a"), "a designator must be a string, not bytes"),
        (("unix", ""), "a designator may not be empty"),
        (("unix", "\ud800"), "a designator holds a surrogate"),
        (("unix", "a", {1: "b"}), "a hint's name must be a string, not int"),
        (("unix", "a", {"\ud800": "b"}), "a hint's name holds a surrogate"),
        (("unix", "a", {"b": 1}), "the hint 'b' must be a string, not int"),
        (("unix", "a", {"b": "\ud800"}), "the hint 'b' holds a surrogate"),
    ],
)
def test_a_peer_locator_checks_its_parts(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(BadLocator) as caught:
        PeerLocator(*arguments)
    assert message in str(caught.value)


def test_a_sturdyref_checks_its_parts() -> None:
    peer: Any = "ocapn://a.unix"
    with pytest.raises(BadLocator, match="a sturdyref's peer is a PeerLocator, not str"):
        SturdyRef(peer, b"a")
    swiss: Any = SECRET
    with pytest.raises(BadLocator, match="a swiss number is bytes, not str") as caught:
        SturdyRef(PeerLocator("unix", "a"), swiss)
    assert SECRET not in str(caught.value)


def test_hints_never_count_for_equality() -> None:
    one, other = PeerLocator("unix", "a", {"path": "/a"}, b"wire"), PeerLocator("unix", "a")
    assert one == other
    assert hash(one) == hash(other)
    assert SturdyRef(one, b"s") == SturdyRef(other, b"s")
    assert hash(SturdyRef(one, b"s")) == hash(SturdyRef(other, b"s"))


def test_transport_designator_and_swiss_number_count() -> None:
    peer = PeerLocator("unix", "a")
    assert peer != PeerLocator("unix", "b")
    assert peer != PeerLocator("onion", "a")
    assert peer != PeerLocator("unix", "A")
    assert SturdyRef(peer, b"s") != SturdyRef(peer, b"t")
    assert SturdyRef(peer, b"s") != SturdyRef(PeerLocator("unix", "b"), b"s")
    assert peer != SturdyRef(peer, b"s")
    assert peer != peer.uri


def test_locators_cannot_be_changed() -> None:
    source = {"path": "/a"}
    peer = PeerLocator("unix", "a", source)
    source["path"] = "/b"
    assert peer.hints == {"path": "/a"}
    with pytest.raises(AttributeError, match="a PeerLocator cannot be changed"):
        peer.designator = "b"
    hints: Any = peer.hints
    with pytest.raises(TypeError, match="does not support item assignment"):
        hints["path"] = "/b"
    with pytest.raises(AttributeError, match="a SturdyRef cannot be changed"):
        SturdyRef(peer, b"s").swiss = b"t"


def test_repr_hides_the_swiss_number() -> None:
    ref = SturdyRef(PeerLocator("unix", "a", {"path": "/a"}), SECRET.encode())
    for shown in (repr(ref), str(ref), f"{ref}", repr([ref]), f"{ref!a}"):
        assert SECRET not in shown
        assert ref.peer.uri in shown
        assert "hidden" in shown
    assert SECRET in ref.uri
    assert repr(ref.peer) == "PeerLocator('ocapn://a.unix?path=%2Fa')"


@given(strategies.locators())
def test_any_peer_locator_s_uri_reads_back(peer: PeerLocator) -> None:
    uri = peer.uri
    assert uri.isascii()
    found = PeerLocator.parse(uri)
    assert found == peer
    assert dict(found.hints) == dict(peer.hints)
    assert found.uri == uri


@given(strategies.sturdyrefs())
def test_any_sturdyref_s_uri_reads_back(ref: SturdyRef) -> None:
    uri = ref.uri
    assert uri.isascii()
    found = SturdyRef.parse(uri)
    assert found == ref
    assert dict(found.peer.hints) == dict(ref.peer.hints)
    assert found.uri == uri


@given(strategies.sturdyrefs())
def test_locators_are_copied_whole(ref: SturdyRef) -> None:
    for other in (copy.copy(ref), copy.deepcopy(ref), pickle.loads(pickle.dumps(ref))):
        assert other == ref
        assert dict(other.peer.hints) == dict(ref.peer.hints)
