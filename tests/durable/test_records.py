"""Values as bytes, and what is refused."""

from __future__ import annotations

import enum
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable import BaggageCorrupt, NotStorable
from durable.records import MAX_DEPTH, decode, encode

values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def same(one: Any, other: Any) -> bool:
    """Equal, and of the same types: True is not 1 here, nor -0.0 what 0.0 is."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other)
    return bool(one == other)


@given(values)
def test_values_come_back(value: Any) -> None:
    assert same(decode(encode(value)), value)


@given(st.dictionaries(st.text(), st.integers()))
def test_the_same_value_has_the_same_bytes(value: dict[str, int]) -> None:
    assert encode(value) == encode(dict(reversed(value.items())))


@given(st.binary(max_size=40))
def test_bytes_are_a_value_or_corrupt(data: bytes) -> None:
    try:
        value = decode(data)
    except BaggageCorrupt:
        return
    assert encode(value) == data


def test_numbers_at_their_edges() -> None:
    for number in (2**64, -(2**64), -(2**64) - 1, 2**63, 2**4000, -(2**4000), 0.1, 1e300, math.inf, 5e-324):
        assert same(decode(encode(number)), number)
    assert math.isnan(decode(encode(math.nan)))


class Colour(enum.IntEnum):
    RED = 1


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": [(1, 2)]}, "value['a'][0]"),
        (bytearray(b"x"), "value"),
        ([1, {"x": {2}}], "value[1]['x']"),
        ({"a": {1: 2}}, "value['a']"),
        ({"a": {Text("k"): 2}}, "value['a']"),
        ([Colour.RED], "value[0]"),
        (Text("x"), "value"),
        ({"it's": object()}, 'value["it\'s"]'),
        (["\ud800"], "value[0]"),
        ({"a": {"\ud800": 1}}, "value['a']['\\ud800']"),
    ],
)
def test_what_cannot_be_kept_is_named(value: object, path: str) -> None:
    with pytest.raises(NotStorable) as caught:
        encode(value)
    assert caught.value.path == path
    assert str(caught.value).startswith(path + ": ")


def test_depth() -> None:
    value: list[Any] = []
    for _ in range(MAX_DEPTH - 1):
        value = [value]
    assert decode(encode(value)) == value
    with pytest.raises(NotStorable, match="inside each other"):
        encode([value])
    with pytest.raises(BaggageCorrupt):
        decode(b"\x81" + encode(value))
    value.append(value)
    with pytest.raises(NotStorable):
        encode(value)


def test_size() -> None:
    assert encode(b"x" * 97, max_size=99)
    for value in (b"x" * 98, "x" * 98, [0] * 98, [False] * 98, {"k" * 96: 1}, 2**790, [1.0] * 33):
        with pytest.raises(NotStorable, match="too large"):
            encode(value, max_size=99)
    assert len(encode(b"x" * ((1 << 20) - 5))) == 1 << 20
    with pytest.raises(NotStorable):
        encode(b"x" * ((1 << 20) - 4))


def test_a_list_shared_again_and_again_is_too_large() -> None:
    value: list[Any] = [0]
    for _ in range(60):
        value = [value, value]
    with pytest.raises(NotStorable, match="too large"):
        encode(value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\x00",  # something after it
        b"\x18\x01",  # not the shortest
        b"\x9f\x01\xff",  # of indefinite length
        b"\xa2\x61b\x00\x61a\x00",  # keys out of order
        b"\xa2\x61a\x00\x61a\x01",  # a key twice
        b"\xa1\x01\x02",  # a key that is no text
        b"\xf7",  # undefined
        b"\xe0",  # a simple value
        b"\xc1\x00",  # a date
        b"\xd8\x23\x61(",  # a regular expression that is none
        b"\xd8\x1c\x81\xd8\x1d\x00",  # a list that holds itself
        b"\xc2\x41\x01",  # a small number as a large one
        b"\xfb\x3f\xf8\x00\x00\x00\x00\x00\x00",  # 1.5 in eight bytes
        b"\x5b\x7f\xff\xff\xff\xff\xff\xff\xff",  # a length that is not there
        b"\x61\xff",  # no UTF-8
        b"\x81" * 5000,
    ],
)
def test_malformed(data: bytes) -> None:
    with pytest.raises(
        BaggageCorrupt, match="table user, the row whose key has digest 12ab: malformed value"
    ) as caught:
        decode(data, table="user", row="12ab")
    assert (caught.value.table, caught.value.row) == ("user", "12ab")
