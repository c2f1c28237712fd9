"""CBOR: the same values and operations as in Syrup, one encoding of each, and nothing else."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

import cbor2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ocapn.codec import cbor
from ocapn.codec.base import Writing
from ocapn.codec.cbor import CBOR, CODECS
from ocapn.codec.messages import SYRUP, Codec
from ocapn.codec.notation import notation
from ocapn.codec.operations import (
    ANSWER,
    EXPORT,
    GET,
    INDEX,
    OBJECT,
    PROMISE,
    UNTAG,
    Deliver,
    Descriptor,
    Envelope,
    Form,
    Give,
    StartSession,
)
from ocapn.codec.syrup import Encoder
from ocapn.codec.syrup import encode as encode_syrup
from ocapn.crypto import SessionKey, sign_give, sign_receive
from ocapn.errors import DecodeError, NotPassable, RemoteError
from ocapn.limits import MAX_POSITION, Limits
from ocapn.model.locators import PeerLocator, SturdyRef
from ocapn.model.values import Null, Symbol, Tagged, equal
from tests.support import fields_of

from . import strategies

LIMITS: Final = Limits()
PEER: Final = PeerLocator("noise", "d", {"b": "1", "aa": "2"})
GIVE: Final = sign_give(SessionKey(bytes(32)), bytes(range(32)), PEER, b"s" * 32, b"g" * 32)
RECEIVE: Final = sign_receive(SessionKey(bytes(32)), b"s" * 32, b"p" * 32, 3, GIVE)


def encode(value: object) -> bytes:
    return CBOR.encoder(LIMITS).encode(value)


def decode(data: bytes, limits: Limits = LIMITS) -> Any:
    return cbor.decode(data, limits)


# Values


EXAMPLES: Final[list[tuple[object, str]]] = [
    # from the draft: packages/ocapn/docs/cbor-encoding.md
    (None, "f7"),
    (Null, "f6"),
    (False, "f4"),
    (True, "f5"),
    (0, "c240"),
    (1, "c24101"),
    (255, "c241ff"),
    (256, "c2420100"),
    (-1, "c340"),
    (-2, "c34101"),
    (-256, "c341ff"),
    (0.0, "fb0000000000000000"),
    (-0.0, "fb8000000000000000"),
    (1.0, "fb3ff0000000000000"),
    (float("inf"), "fb7ff0000000000000"),
    (float("-inf"), "fbfff0000000000000"),
    (float("nan"), "fb7ff8000000000000"),
    ("", "60"),
    ("hello", "6568656c6c6f"),
    (b"", "40"),
    (bytes.fromhex("deadbeef"), "44deadbeef"),
    (Symbol("method"), "d90118666d6574686f64"),
    ([], "80"),
    ([1, 2], "82c24101c24102"),
    ({}, "a0"),
    ({"b": 2, "a": 1}, "a26161c241016162c24102"),
    (Tagged("decimal", "3.14"), "d81b836374616767646563696d616c64332e3134"),
    (RemoteError("no"), "d81b82656572726f72626e6f"),
    # longer keys after their beginnings, and not after all shorter ones
    ({"b": 0, "aa": 0, "a": 0}, "a36161c240626161c2406162c240"),
    ([None] * 24, "9818" + "f7" * 24),
    ([None] * 256, "990100" + "f7" * 256),
    ([None] * 65536, "9a00010000" + "f7" * 65536),
    ("a" * 24, "7818" + "61" * 24),
    (PeerLocator("unix", "a"), "d81b846470656572d9011864756e69786161f4"),
    (
        SturdyRef(PeerLocator("unix", "a", {"path": "/"}), b"s"),
        "d81b8369737475726479726566d81b846470656572d9011864756e69786161a16470617468612f4173",
    ),
]


@pytest.mark.parametrize(("value", "digits"), EXAMPLES, ids=[repr(one)[:20] for one, _ in EXAMPLES])
def test_an_example(value: object, digits: str) -> None:
    assert encode(value).hex() == digits
    assert equal(decode(bytes.fromhex(digits)), value)


@given(strategies.passables())
def test_what_was_encoded_comes_back(value: object) -> None:
    assert equal(decode(encode(value)), value)


@given(strategies.corners(), strategies.corners())
def test_values_are_equal_where_their_encodings_are(one: object, other: object) -> None:
    assert equal(one, other) is (encode(one) == encode(other))


_PIECES: Final = [
    bytes.fromhex(piece)
    for piece in (
        *(
            "c2",
            "c3",
            "c240",
            "c24101",
            "41",
            "01",
            "61",
            "6161",
            "80",
            "81",
            "82",
            "9f",
            "ff",
            "a0",
            "a1",
            "a2",
            "00",
        ),
        *(
            "f4",
            "f5",
            "f6",
            "f7",
            "f97e00",
            "fb7ff8000000000000",
            "fb",
            "d81b",
            "d90118",
            "d818",
            "d9d9f7",
            "5f",
            "78",
        ),
        *("d81b82656572726f726161", "d81b846470656572", "9800", "7801"),
    )
]


@example(bytes.fromhex("a26161f46161f4"))
@given(strategies.mangled(strategies.passables().map(encode), _PIECES))
def test_what_is_read_is_written_so(data: bytes) -> None:
    """There is no other encoding of anything."""
    try:
        value = decode(data)
    except DecodeError:
        pass
    else:
        assert encode(value) == data


@pytest.mark.parametrize(
    "tag", [0, 1, 4, 5, 21, 25, 28, 29, 30, 35, 36, 37, 43, 100, 256, 258, 260, 261, 1004, 43000]
)
def test_tags_that_cbor2_knows_are_refused_before_anything_is_made_of_them(
    tag: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for inside in ("61", "4161", "82c24101c24102", "01", "82181818ff"):
        head = (
            bytes([0xC0 | tag])
            if tag < 24
            else b"\xd8%c" % tag
            if tag < 256
            else b"\xd9" + tag.to_bytes(2, "big")
        )
        with pytest.raises(DecodeError, match=f"no value of the model has the tag {tag}|ends inside"):
            decode(head + bytes.fromhex(inside))


def test_an_error_shows_no_key() -> None:
    data = b"\xa2" + 2 * (cbor2.dumps("swiss-number") + b"\xf4")
    with pytest.raises(DecodeError, match="a key stands twice in a struct") as caught:
        decode(data)
    assert "swiss" not in str(caught.value)


def test_a_costly_tag_costs_nothing() -> None:
    """5([2^62, 1]) is a number of 2^62 bits."""
    with pytest.raises(DecodeError, match="tag 5"):
        decode(bytes.fromhex("c5821b400000000000000001"))


def test_limits() -> None:
    small = Limits(nesting=4, integer_digits=5)
    assert decode(encode([[[[]]]]), small) == [[[[]]]]
    with pytest.raises(DecodeError, match="nested more than 4 deep"):
        decode(encode([[[[[]]]]]), small)
    with pytest.raises(DecodeError, match="nested more than 4 deep"):
        decode(encode([[[[{}]]]]), small)
    with pytest.raises(DecodeError, match="nested more than 4 deep"):
        decode(encode([[[[RemoteError("")]]]]), small)
    for sign in (1, -1):
        assert decode(encode(sign * 99_999), small) == sign * 99_999
        with pytest.raises(DecodeError, match="an integer of more than 5 digits"):
            decode(encode(sign * 100_000), small)
    with pytest.raises(DecodeError, match="no CBOR: maximum container nesting depth"):
        decode(b"\x81" * 100_000 + b"\xf4")


def test_what_a_sender_is_told() -> None:
    encoder = CBOR.encoder(Limits(nesting=4, integer_digits=5))
    for value, path, why in (
        ([[[[[]]]]], "[0][0][0][0]", "nested more than 4 deep"),
        ({"a": [Tagged("t", "\ud800")]}, "['a'][0].value", "a string with a surrogate is not text"),
        ([100_000], "[0]", "an integer of more than 5 digits"),
        ([-100_000], "[0]", "an integer of more than 5 digits"),
        ({1: 2}, "", "a struct's keys are strings, not int"),
        ({"\ud800": 2}, "", "a key with a surrogate is not text"),
        ([object()], "[0]", "a object cannot be passed"),
    ):
        with pytest.raises(NotPassable) as caught:
            encoder.encode(value)
        assert (caught.value.path, caught.value.why) == (path, why)
    assert encoder.encode([True]) == bytes.fromhex("81f5")  # nothing is left of what failed


# Operations


def written(codec: Codec, write: Any) -> bytes:
    """What `write` makes with the codec and an encoder of its descriptors, envelopes and plain data."""

    def other(encoder: Writing, value: object) -> None:
        if isinstance(value, Descriptor):
            encoder.reference(value.kind, value.position)
        else:
            assert isinstance(value, Envelope)
            encoder.certificate(value.wire)

    made: bytes = write(codec, codec.encoder(LIMITS, other))
    return made


def positions() -> st.SearchStrategy[int]:
    return st.one_of(st.integers(0, 300), st.sampled_from([1023, 1024, MAX_POSITION]))


def descriptors(*kinds: int) -> st.SearchStrategy[Descriptor]:
    return st.builds(Descriptor, st.sampled_from(kinds), positions())


def told(value: object) -> object:
    """All that is in an operation, to compare."""
    if isinstance(value, (list, tuple)):
        return [told(one) for one in value]
    if isinstance(value, dict):
        return [(key, told(value[key])) for key in sorted(value)]
    if isinstance(value, Tagged):
        return "tagged", value.tag, told(value.value)
    if isinstance(value, SturdyRef):
        peer = value.peer
        return "sturdyref", peer.transport, peer.designator, told(dict(peer.hints)), value.swiss
    if isinstance(value, Envelope):
        return "envelope", value.wire, value.signature, type(value.signed).__name__
    if type(value).__module__ == Deliver.__module__:
        return type(value).__name__, [told(getattr(value, name)) for name in fields_of(type(value))]
    return repr(value)


GIVEN: Final = Give(bytes(32), PeerLocator("memory", "exporter"), b"", b"", b"", GIVE)
ENVELOPES: Final = [Envelope(GIVEN, b"", GIVE), Envelope(GIVEN, b"", RECEIVE)]


def arguments() -> st.SearchStrategy[list[object]]:
    references = descriptors(OBJECT, PROMISE, EXPORT, ANSWER)
    leaves = st.one_of(strategies.atoms(), references, st.sampled_from(ENVELOPES), strategies.sturdyrefs())
    errors = strategies.texts().map(RemoteError)
    inside = st.recursive(
        st.one_of(leaves, errors),
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.dictionaries(strategies.texts(4), inner, max_size=4),
            st.builds(Tagged, strategies.texts(4), inner),
        ),
        max_leaves=10,
    )
    return st.lists(inside, max_size=5)


@st.composite
def operations(draw: st.DrawFn) -> Any:
    to = draw(descriptors(EXPORT, ANSWER))
    answer, resolver = draw(st.one_of(st.just(-1), positions())), draw(positions())
    args, key = draw(arguments()), draw(st.one_of(strategies.texts(), positions()))
    several = draw(st.lists(positions(), max_size=4))
    form = Form(old_gc=draw(st.booleans()))
    kind = (GET if draw(st.booleans()) else UNTAG) if isinstance(key, str) else INDEX
    reason = draw(st.text(max_size=600))
    return draw(
        st.sampled_from(
            [
                lambda c, e: c.deliver(
                    c.descriptor(to.kind, to.position), e.arguments(args), answer, resolver
                ),
                lambda c, e: c.deliver(c.descriptor(to.kind, to.position), e.arguments(args), -1, -1),
                lambda c, e: c.deliver_only(c.descriptor(to.kind, to.position), e.arguments(args)),
                lambda c, e: c.listen(c.descriptor(to.kind, to.position), resolver),
                lambda c, e: c.select(e, kind, c.descriptor(to.kind, to.position), key, resolver),
                lambda c, e: c.gc_exports(several, several[::-1], form),
                lambda c, e: c.gc_answers(several, form),
                lambda c, e: c.abort(reason),
            ]
        )
    )


@given(operations())
def test_an_operation_is_the_same_in_both_codecs(write: Any) -> None:
    in_syrup, in_cbor = (written(codec, write) for codec in (SYRUP, CBOR))
    syrup, other = SYRUP.decoder(LIMITS).decode(in_syrup), CBOR.decoder(LIMITS).decode(in_cbor)
    assert told(syrup) == told(other)
    assert sorted(notation(in_cbor)) == sorted(notation(in_syrup))  # the keys of structs have other orders


@given(st.data())
def test_a_mangled_operation_is_refused_or_another(data: st.DataObject) -> None:
    whole = written(CBOR, data.draw(operations()))
    mangled = data.draw(strategies.mangled(st.just(whole), _PIECES))
    with suppress(DecodeError):
        CBOR.decoder(LIMITS).decode(mangled)
    with suppress(DecodeError):
        notation(mangled)


@pytest.mark.parametrize(
    "digits", ["d81841f4", "d81b82656162 6f7274d81841f4", "d81b8265 61626f727481d81841f4"]
)
def test_encoded_cbor_in_another_place(digits: str) -> None:
    data = bytes.fromhex(digits)
    for read in (CBOR.decoder(LIMITS).decode, notation):
        with pytest.raises(DecodeError, match=r"encoded CBOR is no value|a reason is a string"):
            read(data)


@pytest.mark.parametrize("name", CODECS)
def test_a_start_is_signed_over_its_own_bytes(name: str) -> None:
    codec = CODECS[name]
    encoder, key = codec.encoder(LIMITS), SessionKey(bytes(32))
    signature = key.sign(codec.location_message(encoder.encode(PEER)))
    operation = StartSession("1.0", key.public_key, PEER, signature)
    found = codec.decoder(LIMITS).decode(codec.start_session(encoder, operation))
    assert isinstance(found, StartSession)
    assert (found.version, found.public_key, found.signature) == ("1.0", key.public_key, signature)
    assert found.location == PEER
    assert found.location.hints == PEER.hints
    assert found.location.wire == encoder.encode(PEER)


def test_a_certificate_is_syrup_inside() -> None:
    """So that a peer to whom it is passed on in the other codec can check it."""
    encoder = written(CBOR, lambda codec, e: e.arguments([ENVELOPES[0]]))
    assert GIVE[len(b"<17'desc:sig-envelope") :].partition(b"[7'sig-val")[0] in encoder
    message = CBOR.deliver(CBOR.descriptor(EXPORT, 0), encoder, -1, -1)
    found: Any = CBOR.decoder(LIMITS).decode(message)
    (envelope,) = found.args
    assert envelope.wire == GIVE
    assert found.references


def test_a_struct_in_text_order_has_the_same_encoding() -> None:
    """There is one order in CBOR, whatever the peer's dialect."""
    value = {"b": 1, "aa": 2}
    assert CBOR.encoder(LIMITS, text_order=True).encode(value) == encode(value)
    assert Encoder(LIMITS, text_order=True).encode(value) != encode_syrup(value)


# For the eyes


def test_the_notation_of_a_message() -> None:
    args: list[object] = [
        Symbol("greet"),
        "Ann",
        Descriptor(OBJECT, 5),
        Descriptor(ANSWER, 1),
        None,
        Null,
        1.5,
    ]
    data = written(CBOR, lambda c, e: c.deliver(c.descriptor(EXPORT, 3), e.arguments(args), 7, 8))
    assert notation(data) == (
        "<op:deliver <desc:export 3> "
        '[\'greet "Ann" <desc:import-object 5> <desc:answer 1> <void> <null> 1.5] 7 <desc:import-object 8>>'
    )


def test_the_notation_tells_no_secrets() -> None:
    def delivered(*args: object) -> bytes:
        return written(CBOR, lambda c, e: c.deliver(c.descriptor(EXPORT, 0), e.arguments(list(args)), -1, -1))

    fetch = delivered(Symbol("fetch"), b"secret")
    assert "['fetch :…(6 bytes)]" in notation(fetch)
    assert b"secret".hex() in notation(fetch, secrets=True)
    assert (b"g" * 32).hex() not in notation(delivered(ENVELOPES[0]))
    assert (b"g" * 32).hex() in notation(delivered(ENVELOPES[0]), secrets=True)
    assert b"secret".hex() not in notation(delivered(SturdyRef(PEER, b"secret")))
