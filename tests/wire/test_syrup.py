"""Syrup: one value, one encoding."""

from __future__ import annotations

import enum
import gc
import itertools
import math
import weakref
from collections import OrderedDict, defaultdict
from typing import NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ocapn.codec import operations, syrup
from ocapn.codec.base import Reading, Writing
from ocapn.codec.syrup import ANY_RECORD, Decoder, Encoder, Record, Records, decode, encode
from ocapn.errors import DecodeError, NotPassable, RemoteError
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator, SturdyRef
from ocapn.model.values import Null, Symbol, Tagged, equal

from . import strategies, vectors

LIMITS = Limits()

#: Offset and rule of every vector that must be refused.
REFUSALS: dict[str, tuple[int, str]] = {
    "leading-zero-int": (0, "begins with a zero"),
    "negative-zero": (0, "zero has no negative form"),
    "no-sign": (2, "ends inside a value"),
    "leading-zero-length": (0, "begins with a zero"),
    "truncated-string": (5, "ends inside a value"),
    "negative-length": (0, "no value begins with byte 0x2d"),
    "bad-utf8": (0, "a string is not well-formed UTF-8"),
    "surrogate": (0, "a string is not well-formed UTF-8"),
    "unsorted-struct": (0, "keys of a struct are not in order"),
    "duplicate-key": (0, "the key 'a' stands twice"),
    "odd-struct": (4, "a key that has no value"),
    "unterminated-list": (5, "ends inside a value"),
    "unterminated-record": (6, "ends inside a value"),
    "stray-close": (0, "closes what is not open"),
    "whitespace": (0, "no value begins with byte 0x20"),
    "trailing": (2, "bytes are left over"),
    "empty": (0, "there is nothing"),
    "single-float": (0, "single floats are not in the OCapN model"),
    "short-double": (3, "ends inside a value"),
    "noncanonical-nan": (0, "a NaN is 7ff8000000000000"),
    "unknown-byte": (0, "no value begins with byte 0x78"),
    "record-label-int": (0, "a record begins with a symbol"),
    "symbol-key-struct-in-passable": (1, "a struct's key is a string"),
    "huge-length": (0, "a length beyond every limit"),
    "set": (0, "sets are not in the OCapN model"),
    "struct-neither-order": (0, "keys of a struct are not in order"),
    "nesting-100": (64, "nested more than 64 deep"),
    "digits-300": (0, "more than 256 digits"),
}
REFUSED = vectors.MALFORMED | vectors.OVER_LIMITS
#: What a stream that stops in the middle of a value looks like as one message.
UNFINISHED = {name for name, (_, rule) in REFUSALS.items() if rule == "ends inside a value"} | {"empty"}

ROUND_TRIPS = vectors.OPERATIONS | vectors.PASSABLES
TEXT_ORDER = ROUND_TRIPS.pop("struct-text-order")


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_a_vector_round_trips_byte_for_byte(name: str) -> None:
    data = ROUND_TRIPS[name]
    decoder = Decoder(LIMITS)
    assert encode(decoder.decode(data)) == data
    assert not decoder.text_order


@pytest.mark.parametrize("name", vectors.PASSABLES)
def test_a_passable_vector_round_trips_as_a_value_of_the_model(name: str) -> None:
    data = vectors.PASSABLES[name]
    value = Decoder(LIMITS, operations.PASSABLES).decode(data)
    assert not isinstance(value, Record)
    assert Encoder(LIMITS, text_order=name == "struct-text-order").encode(value) == data


def test_the_passable_vectors_are_the_values_they_are_named_for() -> None:
    expected: dict[str, object] = {
        "undefined": None,
        "null": Null,
        "true": True,
        "false": False,
        "zero": 0,
        "big": 2**200,
        "negbig": -(2**200),
        "float": 1.5,
        "negzero-float": -0.0,
        "inf": math.inf,
        "nan": math.nan,
        "string": "björn",
        "empty-string": "",
        "kanji": "熊",
        "symbol": Symbol("fetch"),
        "symbol-utf8": Symbol("hämta"),
        "bytes": b"\0\1\xff",
        "empty-bytes": b"",
        "list": [1, [2, [3, []]]],
        "struct": {"": 0, "a": 1, "b": 2, "aa": 3},
        "tagged": Tagged("decimal", "3.14"),
        "error": RemoteError("boom"),
        "sturdyref": SturdyRef(PeerLocator("tcp-testing-only", "alice-designator"), b"swiss-number"),
        "peer": PeerLocator("tcp-testing-only", "alice-designator"),
        "peer-no-hints": PeerLocator("onion", "abcdefghijklmnop"),
        "struct-text-order": {"memo": "x", "ok": True},
        "struct-syrup-order": {"memo": "x", "ok": True},
    }
    assert expected.keys() == vectors.PASSABLES.keys()
    for name, value in expected.items():
        found = Decoder(LIMITS, operations.PASSABLES).decode(vectors.PASSABLES[name])
        assert equal(found, value), name


# Refusals


def test_every_refused_vector_has_its_place_and_rule() -> None:
    assert REFUSALS.keys() == REFUSED.keys()


@pytest.mark.parametrize("records", [ANY_RECORD, operations.PASSABLES], ids=["any", "passables"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_malformed_vector_is_refused_with_offset_and_rule(name: str, records: Records) -> None:
    offset, rule = REFUSALS[name]
    with pytest.raises(DecodeError) as caught:
        Decoder(LIMITS, records).decode(REFUSED[name])
    assert caught.value.offset == offset
    assert rule in caught.value.rule
    assert str(offset) in str(caught.value)


@pytest.mark.parametrize("name", REFUSED)
def test_a_malformed_vector_that_arrives_in_bytes_never_becomes_a_value(name: str) -> None:
    found, failure = _read_in_chunks([bytes([octet]) for octet in REFUSED[name]])
    # What is left over after a message is the next value of a stream.
    assert found == ([1, 1] if name == "trailing" else [])
    if name in UNFINISHED or name == "trailing":
        assert failure is None
    else:
        assert failure is not None
        assert failure.offset == REFUSALS[name][0]
        assert REFUSALS[name][1] in failure.rule


def _read_in_chunks(pieces: list[bytes]) -> tuple[list[object], DecodeError | None]:
    decoder = Decoder(LIMITS)
    found: list[object] = []
    try:
        for piece in pieces:
            decoder.feed(piece)
            while (value := decoder.next_value()) is not None:
                found.append(value[0])
    except DecodeError as error:
        return found, error
    return found, None


def test_after_an_error_a_stream_yields_nothing_more() -> None:
    decoder = Decoder(LIMITS)
    decoder.feed(b"[[1+")
    assert decoder.next_value() is None
    decoder.feed(b"]x")
    for more in (b"", b"]", b"1+"):
        decoder.feed(more)
        with pytest.raises(DecodeError, match="byte 5: no value begins with byte 0x78"):
            decoder.next_value()


def test_a_decoder_of_whole_messages_goes_on_after_an_error() -> None:
    decoder = Decoder(LIMITS)
    with pytest.raises(DecodeError):
        decoder.decode(b'[[{1"a')
    assert decoder.decode(b"[1+]") == [1]


@pytest.mark.parametrize("closer", [b"]", b">", b"}"])
@pytest.mark.parametrize("opener", [b"[", b"<1'a", b"{"])
def test_each_bracket_closes_its_own_kind(opener: bytes, closer: bytes) -> None:
    if (opener[:1], closer) in {(b"[", b"]"), (b"<", b">"), (b"{", b"}")}:
        decode(opener + closer)
    else:
        with pytest.raises(DecodeError, match="closes what is not open") as caught:
            decode(opener + closer)
        assert caught.value.offset == len(opener)


@pytest.mark.parametrize("octet", [o for o in range(256) if o not in b"0123456789tfD<>[]{}#F"])
def test_no_value_begins_with_any_other_byte(octet: int) -> None:
    with pytest.raises(DecodeError, match=f"byte 1: no value begins with byte 0x{octet:02x}"):
        decode(b"[%c]" % octet)


def test_a_number_is_followed_by_one_of_five_bytes() -> None:
    accepted = {octet for octet in range(256) if _refusal(b"2" + bytes([octet]) + b"aa") is None}
    assert accepted == set(b"\"':")
    assert {octet for octet in range(256) if _refusal(b"2" + bytes([octet])) is None} == set(b"+-")


def _refusal(data: bytes, text_order_allowed: bool = True) -> DecodeError | None:
    try:
        Decoder(LIMITS, text_order_allowed=text_order_allowed).decode(data)
    except DecodeError as error:
        return error
    return None


@pytest.mark.parametrize("kind", [b'"', b"'"])
@pytest.mark.parametrize(
    "text",
    [
        b"\xc0\x80",
        b"\xe0\x80\x80",
        b"\xf4\x90\x80\x80",
        b"\xf5\x80\x80\x80",
        b"\xed\xbf\xbf",
        b"\x80",
        b"\xc3",
    ],
    ids=["overlong-nul", "overlong-3", "above-10ffff", "f5", "surrogate", "continuation", "cut-short"],
)
def test_text_is_well_formed_utf8(kind: bytes, text: bytes) -> None:
    with pytest.raises(DecodeError, match=r"byte 1: a (string|symbol) is not well-formed UTF-8"):
        decode(b"[%d%b%b]" % (len(text), kind, text))


def test_a_nan_has_one_encoding() -> None:
    for raw in ("7ff8000000000001", "fff8000000000000", "7ff0000000000001", "ffffffffffffffff"):
        with pytest.raises(DecodeError, match="a NaN is 7ff8000000000000"):
            decode(b"D" + bytes.fromhex(raw))


@pytest.mark.parametrize("label", [b"1+", b'1"a', b"1:a", b"[]", b"<1'a>", b"t", b""])
def test_a_record_begins_with_a_symbol(label: bytes) -> None:
    with pytest.raises(DecodeError, match="byte 1: a record begins with a symbol"):
        decode(b"[<%b>]" % label)


@pytest.mark.parametrize("key", [b"1+", b"1'a", b"1:a", b"[]", b"{}", b"<1'a>", b"t", b"D" + bytes(8)])
def test_a_key_is_a_string(key: bytes) -> None:
    for data in (b"{%bt}", b'{0"t%bt}', b'{2"aat1"bt%bt}'):
        with pytest.raises(DecodeError, match="a struct's key is a string") as caught:
            decode(data % key)
        assert data[: caught.value.offset] + key == (data % key)[: caught.value.offset + len(key)]


# Struct keys


def test_text_order_is_accepted_noticed_and_written_where_it_is_wanted() -> None:
    decoder = Decoder(LIMITS)
    value = decoder.decode(TEXT_ORDER)
    assert value == {"memo": "x", "ok": True}
    assert decoder.text_order
    assert Encoder(LIMITS, text_order=True).encode(value) == TEXT_ORDER
    assert encode(value) == vectors.PASSABLES["struct-syrup-order"]


def test_text_order_is_refused_where_it_is_not_allowed() -> None:
    with pytest.raises(DecodeError, match="keys of a struct are not in order"):
        Decoder(LIMITS, text_order_allowed=False).decode(TEXT_ORDER)


@pytest.mark.parametrize("data", [b'{1"a}', b'{1"at1"b}', b'{2"aat1"b}', b'{2"aat1"bt1"c}'])
def test_a_key_has_a_value(data: bytes) -> None:
    with pytest.raises(DecodeError, match="a struct ends after a key that has no value"):
        decode(data)


def test_structs_in_either_order_arrive_in_single_bytes() -> None:
    data = b'[{1"a%b1"b%b}t]' % (TEXT_ORDER, vectors.PASSABLES["struct-syrup-order"])
    wanted = Decoder(LIMITS).decode(data)
    decoder = Decoder(LIMITS)
    for octet in data[:-1]:
        decoder.feed(bytes([octet]))
        assert decoder.next_value() is None
    decoder.feed(data[-1:])
    assert decoder.next_value() == (wanted, data)
    assert decoder.text_order


def test_a_struct_that_is_in_both_orders_shows_no_text_order() -> None:
    decoder = Decoder(LIMITS)
    decoder.decode(b'{0"0+1"a1+1"b2+2"cc3+}')
    assert not decoder.text_order


def test_text_order_once_shown_stays_shown() -> None:
    decoder = Decoder(LIMITS)
    decoder.decode(TEXT_ORDER)
    decoder.decode(b"t")
    assert decoder.text_order


@pytest.mark.parametrize(
    "keys",
    [["a", "b", "a"], ["b", "aa", "b"], ["aa", "b", "aa"], ["b", "b"], ["aa", "b", "b"], ["", ""]],
)
def test_a_key_stands_once_in_either_order(keys: list[str]) -> None:
    data = b"{" + b"".join(encode(key) + b"t" for key in keys) + b"}"
    with pytest.raises(DecodeError, match=r"stands twice|not in order"):
        decode(data)


def test_a_struct_is_in_one_order_throughout() -> None:
    b_aa, aa_b = b'{1"bt2"aat}', b'{2"aat1"bt}'
    assert decode(b"[" + b_aa + aa_b + b"]") == [{"b": True, "aa": True}] * 2
    for data in (b'{1"bt2"aat1"ct}', b'{2"aat1"bt1"at}', b'{1"ct2"aat1"bt}'):
        with pytest.raises(DecodeError, match="not in order"):
            decode(data)


@given(st.dictionaries(strategies.texts(), st.booleans(), max_size=8))
def test_the_encoder_sorts_keys_by_encoded_bytes_or_by_text(struct: dict[str, bool]) -> None:
    syrup = sorted(struct, key=lambda key: b'%d"%b' % (len(key.encode()), key.encode()))
    text = sorted(struct, key=lambda key: key.encode())
    for order, text_order in ((syrup, False), (text, True)):
        data = Encoder(LIMITS, text_order=text_order).encode(struct)
        assert list(_struct(data)) == order
        assert data == Encoder(LIMITS, text_order=text_order).encode(dict(reversed(struct.items())))


def _struct(data: bytes) -> dict[str, object]:
    value = decode(data)
    assert isinstance(value, dict)
    return value


# Limits


def test_the_limits_themselves_are_allowed() -> None:
    assert decode(b"9" * 256 + b"+") == 10**256 - 1
    assert decode(b"9" * 256 + b"-") == 1 - 10**256
    assert encode(10**256 - 1) == b"9" * 256 + b"+"
    assert decode(b"[" * 64 + b"]" * 64) is not None


@pytest.mark.parametrize("digits", [4, 5, 8, 9, 10, 17, 18, 19, 20, 4300])
def test_the_digits_of_an_integer_are_limited_on_both_sides(digits: int) -> None:
    limits = Limits(integer_digits=digits)
    for sign, tail in ((1, b"+"), (-1, b"-")):
        most = b"9" * digits + tail
        assert Decoder(limits).decode(most) == sign * (10**digits - 1)
        assert Encoder(limits).encode(sign * (10**digits - 1)) == most
        with pytest.raises(DecodeError, match=f"more than {digits} digits"):
            Decoder(limits).decode(b"1" + b"0" * digits + tail)
        with pytest.raises(NotPassable, match=f"more than {digits} digits"):
            Encoder(limits).encode(sign * 10**digits)


def test_four_digits_are_always_allowed() -> None:
    limits = Limits(integer_digits=1)
    for n in (1023, 1024, 9999, -9999):
        assert Decoder(limits).decode(Encoder(limits).encode(n)) == n


def test_a_limit_on_digits_is_not_one_on_lengths() -> None:
    limits = Limits(integer_digits=1)
    assert Decoder(limits).decode(b"12345:" + bytes(12345)) == bytes(12345)


def test_more_digits_than_python_converts_are_refused_whatever_the_limits() -> None:
    limits = Limits(integer_digits=1_000_000)
    with pytest.raises(DecodeError, match="more than 4300 digits"):
        Decoder(limits).decode(b"9" * 5000 + b"+")
    with pytest.raises(NotPassable, match="more than 4300 digits"):
        Encoder(limits).encode(10**5000)


@pytest.mark.parametrize("tail", [b"", b"+", b"-", b'"', b":"])
def test_a_million_digits_are_refused_before_they_are_converted(tail: bytes) -> None:
    # Python itself refuses to convert so many, with a ValueError.
    with pytest.raises(DecodeError, match="byte 1: an integer of more than 256 digits"):
        decode(b"[" + b"9" * 1_000_000 + tail)


def test_too_many_digits_are_refused_before_the_number_ends() -> None:
    decoder = Decoder(LIMITS)
    decoder.feed(b"9" * 256)
    assert decoder.next_value() is None
    decoder.feed(b"9")
    with pytest.raises(DecodeError, match="more than 256 digits"):
        decoder.next_value()


@pytest.mark.parametrize("kind", [b'"', b"'", b":"])
@pytest.mark.parametrize(("digits", "rule"), [(18, "ends inside a value"), (19, "beyond every limit")])
def test_a_huge_length_is_refused_without_its_bytes(digits: int, rule: str, kind: bytes) -> None:
    with pytest.raises(DecodeError, match=rule):
        decode(b"9" * digits + kind + b"x")


def test_a_stream_tells_how_much_a_huge_length_needs() -> None:
    decoder = Decoder(LIMITS)
    decoder.feed(b"[" + b"9" * 18 + b":x")
    assert decoder.next_value() is None
    assert decoder.needed == 20 + 10**18 - 1


@pytest.mark.parametrize("opener", [b"[", b"<1'a", b'{0"'])
def test_a_hundred_thousand_containers_are_refused_at_the_limit(opener: bytes) -> None:
    with pytest.raises(DecodeError, match="nested more than 64 deep") as caught:
        decode(opener * 100_000)
    assert caught.value.offset == 64 * len(opener)


def test_the_decoder_does_not_recurse() -> None:
    limits = Limits()
    object.__setattr__(limits, "nesting", 100_000)  # beyond what Limits allows, as encoding does recurse
    value = Decoder(limits).decode(b"[" * 100_000 + b"]" * 100_000)
    depth = 0
    while isinstance(value, list):
        depth += 1
        value = value[0] if value else None
    assert depth == 100_000


LEAVES: dict[str, object] = {
    "integer": 1,
    "text": "a",
    "undefined": None,
    "null": Null,
    "symbol": Symbol("a"),
    "list": [],
    "struct": {},
    "tagged": Tagged("a", 1),
    "tagged-list": Tagged("a", []),
    "error": RemoteError("a"),
    "peer": PeerLocator("unix", "a"),
    "peer-with-hints": PeerLocator("unix", "a", {"path": "/"}),
    "sturdyref": SturdyRef(PeerLocator("unix", "a", {"path": "/"}), b"s"),
    "record": Record(Symbol("a"), [Record(Symbol("b"), [])]),
}


@pytest.mark.parametrize("wrap", ["list", "struct", "tagged", "record"])
@pytest.mark.parametrize("name", LEAVES)
def test_the_encoder_refuses_as_deep_as_the_decoder(name: str, wrap: str) -> None:
    loose = Encoder(Limits(nesting=200))
    refused = 0
    for depth in range(58, 68):
        value: object = LEAVES[name]
        for _ in range(depth):
            value = {
                "list": [value],
                "struct": {"a": value},
                "tagged": Tagged("a", value),
                "record": Record(Symbol("a"), [value]),
            }[wrap]
        refusal = _refusal(loose.encode(value))
        if refusal is not None:
            assert refusal.rule == "nested more than 64 deep"
            refused += 1
            with pytest.raises(NotPassable, match="nested more than 64 deep"):
                encode(value)
        else:
            encode(value)
    assert 3 <= refused <= 7


def test_what_is_written_for_a_reference_has_room_for_one_record() -> None:
    depths: list[int] = []

    def write_other(encoder: Writing, value: object) -> None:
        assert isinstance(encoder, Encoder)
        depths.append(encoder.depth)
        encoder.parts.append(b"<11'desc:export0+>")

    encoder = Encoder(LIMITS, write_other)
    value: object = object()
    for _ in range(63):
        value = [value]
    decode(encoder.encode(value))
    assert depths == [63]
    with pytest.raises(NotPassable, match="nested more than 64 deep"):
        encoder.encode([value])
    assert depths == [63]


# A growing buffer


@pytest.mark.parametrize("step", [1, 1024])
def test_a_long_byte_string_is_waited_for_and_not_read_again(step: int) -> None:
    size = 1 << 20
    data = b"[%d:%b]" % (size, bytes(size))
    decoder = Decoder(LIMITS)
    whole = len(data) - 1
    start = 0
    for start in range(0, len(data) - 1 - step, step):
        decoder.feed(data[start : start + step])
        assert decoder.next_value() is None
        if start >= 16:
            assert decoder.needed == whole
            assert len(decoder._buffer) <= max(16, step)  # what comes is not even put together
    decoder.feed(data[start + step :])
    assert decoder.next_value() == ([bytes(size)], data)


def test_a_list_that_arrives_in_single_bytes_is_read_once() -> None:
    data = b"[" + b"".join([b"%d+[]{}<1'a>" % n for n in range(1000, 3000)]) + b"]"
    decoder = Decoder(LIMITS)
    for number, octet in enumerate(data[:-1], 1):
        decoder.feed(bytes([octet]))
        assert decoder.next_value() is None
        # Only a number whose end has not come is read again, from its first digit.
        assert decoder._pos >= number - 4
    decoder.feed(data[-1:])
    assert decoder.next_value() == (decode(data), data)


@given(st.lists(st.integers(0, 3000), max_size=40), st.lists(st.integers(1, 40), min_size=1))
def test_values_in_pieces(numbers: list[int], sizes: list[int]) -> None:
    """Several in a piece, one in several pieces: each with its bytes, and an error where it is in its own."""
    values = [[number, str(number), {"k": bytes(number % 7)}] for number in numbers]
    data = b"".join([encode(value) for value in values]) + b"[x"
    decoder = Decoder(LIMITS)
    found: list[object] = []

    def read() -> None:
        left = data
        for size in itertools.cycle(sizes):
            assert left
            decoder.feed(left[:size])
            left = left[size:]
            while (one := decoder.next_value()) is not None:
                assert one[1] == encode(one[0])
                found.append(one[0])

    with pytest.raises(DecodeError, match="malformed at byte 1: no value begins with byte 0x78"):
        read()
    assert found == values


def test_nothing_is_kept_of_values_that_were_taken() -> None:
    decoder = Decoder(LIMITS)
    decoder.feed(encode([b"secret"]) + encode(1))
    assert decoder.next_value() == ([b"secret"], encode([b"secret"]))
    assert decoder.next_value() == (1, b"1+")
    assert (decoder._buffer, decoder._chunks, decoder.pending, decoder.needed) == (b"", [], 0, 1)
    decoder.feed(b"2+")
    assert decoder.next_value() == (2, b"2+")


def test_the_cache_of_keys_is_bounded() -> None:
    for n in range(6000):
        assert decode(encode({f"bounded-{n}": n})) == {f"bounded-{n}": n}
    assert 0 < len(syrup._ENCODED_KEYS) <= 2048
    long = "k" * 65
    assert decode(encode({long: 1})) == {long: 1}
    assert long not in syrup._ENCODED_KEYS
    assert "bounded-5999" in syrup._ENCODED_KEYS
    assert max(len(syrup._known_keys), len(syrup._SHAPES) * 4) <= 2048
    assert expected_keys()[:1] == ["bounded-5999"]
    assert long.encode() not in syrup._known_keys
    assert ("bounded-5999",) in syrup._SHAPES
    assert (long,) not in syrup._SHAPES
    many = tuple(f"k{n:02}" for n in range(20))
    assert decode(encode(dict.fromkeys(many, 1))) == dict.fromkeys(many, 1)
    assert expected_keys() == list(many[:16])
    assert many not in syrup._SHAPES


def expected_keys(after: syrup._Key = syrup._START) -> list[str]:
    """Those that the decoder expects of a struct, if each is as it expects."""
    found = []
    key = after.next
    while key is not None:
        found.append(key.text)
        key = key.next
    return found


def test_the_keys_that_are_expected_are_bounded() -> None:
    """Not even a peer that lets one lead to the next makes the decoder keep many, for others or for one that waits."""
    keys = [f"key-{n:05}" for n in range(6000)]
    longest = 0
    for n in range(5999, 0, -1):
        decode(encode({keys[n - 1]: 1, keys[n]: 2}))
        if n % 100 == 0:
            first = expected_keys()
            decode(encode(dict.fromkeys([*first[:15], keys[5999 - n]], 1)))
            longest = max(longest, len(first), len(expected_keys()))
    assert 1000 < longest <= 2048 + 16

    before = "!" * 65  # is not remembered, and comes before the others: what a struct begins with stays
    longest = kept = 0
    decode(encode({keys[0]: 1}))
    waiting = Decoder(LIMITS)
    waiting.feed(encode({keys[0]: 1})[:-1])
    assert waiting.next_value() is None
    for first_key, second_key in itertools.pairwise(keys):
        decode(b"{%bt%bt%bt}" % (encode(before), encode(first_key), encode(second_key)))
        if second_key.endswith("00"):
            longest = max(longest, len(expected_keys()))
            kept = max(kept, len(expected_keys(waiting._key)))
    assert 1000 < longest <= 2048
    assert 1000 < kept <= 2048


def test_a_decoder_that_waits_for_the_next_value_keeps_no_key() -> None:
    decoder = Decoder(LIMITS)
    data = encode({"k" * 1000: 1})
    decoder.feed(data[:-1])
    assert decoder.next_value() is None
    assert decoder._key is not syrup._START
    decoder.feed(data[-1:])
    assert decoder.next_value() == ({"k" * 1000: 1}, data)
    assert decoder._key is syrup._START


@pytest.mark.parametrize("records", [ANY_RECORD, operations.OPERATIONS], ids=["any", "operations"])
def test_a_message_that_ends_inside_a_container_is_not_kept(records: Records) -> None:
    decoder = Decoder(LIMITS, records)
    long = b'66"' + b"k" * 66
    for data in (
        b'{1"a6:secret',
        b'{1"a6:secret1"b',
        b'{1"a6:secret1"bx',
        b"[6:secret",
        b"{" + long,
        b"{" + long + b"[6:secret",
        b"<10'op:deliver<11'desc:export7+>[6:secret",
    ):
        with pytest.raises(DecodeError):
            decoder.decode(data)
        assert (decoder._buffer, decoder._items, decoder._members) == (b"", [], {})
        assert decoder._key is syrup._START
        assert [decoder._structs, decoder._lists, decoder._last_keys, decoder._places] == [[], [], [], []]


def test_structs_whose_keys_are_known_are_encoded_as_others_are() -> None:
    class Text(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = str.__hash__

    class Same(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return hash("known")

    for _ in range(2):
        assert encode({"known": 1, "a": 2}) == b'{1"a2+5"known1+}'
        assert encode({"a": 2, "known": 1}) == b'{1"a2+5"known1+}'
        assert encode({Text("known"): 1, "a": 2}) == b'{1"a2+5"known1+}'
    assert encode({Same("other"): 1}) == b'{5"other1+}'
    assert Encoder(LIMITS, text_order=True).encode({"known": 1, "a": 2, "zz": 3}) == b'{1"a2+5"known1+2"zz3+}'
    assert encode({"known": 1, "a": 2, "zz": 3}) == b'{1"a2+2"zz3+5"known1+}'
    for data in (
        b'{2"ka1+2"kb2+}',
        b'{2"ka1+2"kc2+}',
        b'{2"ka1+2"kb2+}',
        b'{2"ka1+}',
        b'{2"ka1+2"kb2+2"kc3+}',
    ):
        for _ in range(2):
            value = decode(data)
            assert encode(value) == data
    syrup._known_keys.clear()
    syrup._START.next = None
    assert decode(b'{2"ka1+2"kb2+}') == {"ka": 1, "kb": 2}
    for _ in range(2):
        with pytest.raises(DecodeError, match="not in order"):
            decode(b'{2"ka1+2"zz2+1"b3+}')
        with pytest.raises(DecodeError, match="twice"):
            decode(b'{2"ka1+2"ka2+}')


def test_pending_counts_what_is_not_yet_a_value() -> None:
    decoder = Decoder(LIMITS)
    decoder.feed(b"1+[1+")
    assert decoder.next_value() == (1, b"1+")
    assert decoder.pending == 3
    assert decoder.next_value() is None
    assert decoder.needed == 4
    decoder.feed(b"]")
    assert decoder.next_value() == ([1], b"[1+]")
    assert decoder.pending == 0


@given(st.lists(strategies.syrup_values(), max_size=4), st.lists(st.integers(0, 10_000), max_size=8))
def test_values_are_the_same_in_any_chunks(values: list[object], cuts: list[int]) -> None:
    data = b"".join(map(encode, values))
    found, failure = _read_in_chunks(strategies.chunks(data, cuts))
    assert failure is None
    assert [encode(value) for value in found] == [encode(value) for value in values]


def test_raw_is_the_record_as_it_arrived() -> None:
    seen: list[bytes] = []

    def make(items: list[object], decoder: Reading) -> object:
        seen.append(decoder.raw())
        return items

    records = Records({Symbol("a"): make, Symbol("b"): make}, {Symbol("a"): make, Symbol("b"): make})
    data = b"<1'a1+<1'b[<1'a>]>2+>"
    expected = [b"<1'a>", b"<1'b[<1'a>]>", data]
    Decoder(LIMITS, records).decode(data)
    assert seen == expected
    seen.clear()
    decoder = Decoder(LIMITS, records)
    for octet in b"1+" + data:
        decoder.feed(bytes([octet]))
        decoder.next_value()
    assert seen == expected


# Both directions


@given(strategies.passables())
def test_passables_come_back_equal(value: object) -> None:
    data = encode(value)
    decoder = Decoder(LIMITS, operations.PASSABLES, text_order_allowed=False)
    assert equal(decoder.decode(data), value)
    assert encode(decoder.decode(data)) == data


@given(strategies.passables())
def test_passables_come_back_equal_in_text_order(value: object) -> None:
    encoder = Encoder(LIMITS, text_order=True)
    data = encoder.encode(value)
    back = Decoder(LIMITS, operations.PASSABLES).decode(data)
    assert equal(back, value)
    assert encoder.encode(back) == data


@given(strategies.mangled(strategies.syrup_values().map(encode)))
@example(b"00+")
@example(b'{1"b1+1"a2+}')
def test_any_bytes_are_refused_or_the_only_encoding_of_their_value(data: bytes) -> None:
    refusal = _refusal(data, text_order_allowed=False)
    if refusal is None:
        assert encode(decode(data)) == data
    else:
        assert 0 <= refusal.offset <= len(data)


@given(
    strategies.mangled(strategies.syrup_values().map(encode)), st.lists(st.integers(0, 10_000), max_size=8)
)
def test_any_bytes_mean_the_same_whole_and_in_chunks(data: bytes, cuts: list[int]) -> None:
    found, failure = _read_in_chunks(strategies.chunks(data, cuts))
    refusal = _refusal(data)
    if refusal is None:
        assert failure is None
        assert [encode(value) for value in found] == [encode(decode(data))]
    elif found:
        assert refusal.rule == "bytes are left over after the value"
        assert encode(decode(data[: refusal.offset])) == encode(found[0])
    elif failure is None:
        assert refusal.offset == len(data)  # cut short, or nothing at all
    else:
        assert (failure.offset, failure.rule) == (refusal.offset, refusal.rule)


# The encoder


class Colour(enum.IntEnum):
    RED = 3


class Mode(str, enum.Enum):  # noqa: UP042  # its str() is not its text, unlike that of a StrEnum
    OPEN = "open"


class Level(enum.StrEnum):
    LOW = "low"


class Pair(NamedTuple):
    left: int
    right: str


class OddInt(int):
    def __int__(self) -> int:
        return 99


class OddFloat(float):
    def __float__(self) -> float:
        return 99.0


class OddBytes(bytes):
    def __bytes__(self) -> bytes:
        return b"other"


@pytest.mark.parametrize(
    ("value", "same_as"),
    [
        (Colour.RED, 3),
        (Mode.OPEN, "open"),
        (Level.LOW, "low"),
        (Pair(1, "a"), [1, "a"]),
        (OddInt(5), 5),
        (OddInt(5000), 5000),
        (OddFloat(1.5), 1.5),
        (OddBytes(b"own"), b"own"),
        (defaultdict(int, {"a": 1}), {"a": 1}),
        (OrderedDict([("b", 2), ("a", 1)]), {"a": 1, "b": 2}),
        (bytearray(b"abc"), b"abc"),
        (memoryview(b"abc"), b"abc"),
        (memoryview(b"abcdef")[::2], b"ace"),
        ((1, (2,)), [1, [2]]),
        ({Mode.OPEN: 1}, {"open": 1}),
        (Tagged(Mode.OPEN, 1), Tagged("open", 1)),
        ([Colour.RED, {"m": Mode.OPEN}], [3, {"m": "open"}]),
    ],
    ids=repr,
)
def test_an_instance_of_a_subclass_is_sent_as_the_plain_type(value: object, same_as: object) -> None:
    assert encode(value) == encode(same_as)


class Key(str):
    """Unequal to any other key, whatever the text."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


def _cycle() -> list[object]:
    items: list[object] = [1]
    items.append(items)
    return items


def _released() -> memoryview:
    view = memoryview(b"abc")
    view.release()
    return view


def _record_cycle() -> Record:
    record = Record(Symbol("a"), [])
    record.fields.append(record)
    return record


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({1: 2}, "a struct's keys are strings, not int"),
        ({b"a": 2}, "a struct's keys are strings, not bytes"),
        ({Symbol("a"): 2}, "a struct's keys are strings, not Symbol"),
        ({None: 2}, "a struct's keys are strings, not NoneType"),
        ({Key("a"): 1, "a": 2}, "two keys of a struct have the same text"),
        ("\ud800", "a string with a surrogate is not text"),
        ({"\udfff": 1}, "a key with a surrogate is not text"),
        (Tagged("\ud800", 1), "a tag is a str without surrogates"),
        (RemoteError("\ud800"), "a string with a surrogate is not text"),
        (RemoteError(5), "an error's message is a str, not int"),  # type: ignore[arg-type]  # as it says
        (_cycle(), "nested more than 64 deep"),
        (_record_cycle(), "nested more than 64 deep"),
        (10**256, "an integer of more than 256 digits"),
        (-(10**256), "an integer of more than 256 digits"),
        (10**5000, "an integer of more than 256 digits"),
        (_released(), "a memoryview that was released has no bytes"),
        ({1, 2}, "a set cannot be passed"),
        (frozenset(), "a frozenset cannot be passed"),
        (object(), "a object cannot be passed"),
        (1j, "a complex cannot be passed"),
        (ValueError("no"), "a ValueError cannot be passed"),
        (range(3), "a range cannot be passed"),
        (int, "a type cannot be passed"),
        (operations.Descriptor(operations.EXPORT, 1), "a Descriptor cannot be passed"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_cannot_be_passed_is_refused_with_the_reason(value: object, why: str) -> None:
    with pytest.raises(NotPassable) as caught:
        encode(value)
    assert caught.value.why == why
    with pytest.raises(NotPassable) as caught:
        encode(["first", (0, {"a": 1, "file": value})])
    assert caught.value.why == why
    assert caught.value.path.startswith("[1][1]['file']")
    assert str(caught.value) == f"{caught.value.path}: {why}"


def test_the_path_leads_to_what_cannot_be_passed() -> None:
    wrong = object()
    for value, path in [
        (wrong, ""),
        ([1, wrong, 2, wrong], "[1]"),
        ({"b": 1, "aa": {"ü": wrong}}, "['aa']['ü']"),
        (Tagged("t", [wrong]), ".value[0]"),
        ([Pair(1, "a"), (0, Tagged("t", wrong))], "[1][1].value"),
        ({"quote\"d'": wrong}, "['quote\"d\\'']"),
    ]:
        with pytest.raises(NotPassable) as caught:
            encode(value)
        assert caught.value.path == path


def test_an_encoder_goes_on_after_a_refusal() -> None:
    encoder = Encoder(LIMITS)
    with pytest.raises(NotPassable):
        encoder.encode([1, [2, object()]])
    assert encoder.encode([1]) == b"[1+]"


@given(strategies.plain_data())
def test_encoding_leaves_a_value_as_it_was(value: object) -> None:
    first = encode(value)
    assert encode(value) == first


@pytest.mark.parametrize("n", [0, 9, 10, 64, 65, 1022, 1023, 1024, 1025, 99_999_999, 100_000_000, 10**9])
def test_integers_and_lengths_are_written_in_full_on_either_side_of_every_table(n: int) -> None:
    assert encode([n, -n]) == (b"[%d+%d-]" % (n, n) if n else b"[0+0+]")
    assert decode(encode([n, -n])) == [n, -n]
    if n < 2000:
        text = "a" * n
        for value, mark in ((text, b'"'), (text.encode(), b":"), (Symbol(text), b"'")):
            assert encode(value) == b"%d%b%b" % (n, mark, text.encode())
            assert decode(encode(value)) == value
        assert encode({text: 1}) == b'{%d"%b1+}' % (n, text.encode())


def test_long_symbols_are_not_kept() -> None:
    def pass_on(name: str) -> weakref.ref[Symbol]:
        symbol = decode(encode(Symbol(name)))
        assert isinstance(symbol, Symbol)
        assert decode(encode([symbol])) == [symbol]
        return weakref.ref(symbol)

    gone = pass_on("long" * 1000)
    gc.collect()
    assert gone() is None


def test_the_caches_of_symbols_are_bounded() -> None:
    kept = []
    for n in range(6000):
        symbol = decode(encode(Symbol(f"bounded-{n}")))
        assert isinstance(symbol, Symbol)
        kept.append(weakref.ref(symbol))
    del symbol
    gc.collect()
    assert sum(1 for one in kept if one() is not None) <= 2 * 2048
