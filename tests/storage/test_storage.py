"""What `Storage` takes and refuses, whatever the backend."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocapn import (
    Limits,
    MemoryStorage,
    Storage,
    StorageError,
    StorageLimits,
    StorageRefused,
)
from ocapn.storage.backend import name_given, name_of
from ocapn.storage.checks import cursor_of, encode
from tests.peer.support import Echo

LIMITS = StorageLimits(value=1000, nesting=4, batch=5)


def storage(limits: StorageLimits = LIMITS) -> Storage:
    return Storage(MemoryStorage(limits), "p", limits)


# Values

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(plain)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    kept = storage(StorageLimits())
    kept.set("k", value)
    back = kept.get("k")
    assert back == value
    assert repr(back) == repr(value) or isinstance(value, (dict, list))


def test_a_value_is_a_copy() -> None:
    kept = storage()
    value = {"list": [1]}
    kept.set("k", value)
    value["list"].append(2)
    kept.get("k")["list"].append(3)
    kept.list()[0][0][1]["list"].append(4)
    assert kept.get("k") == {"list": [1]}


def test_not_a_number_is_a_value_too() -> None:
    kept = storage()
    kept.set("k", [math.nan, math.inf])
    assert [math.isnan(one) for one in kept.get("k")] == [True, False]


def test_none_is_a_value() -> None:
    kept = storage()
    kept.set("k", None)
    assert kept.get("k", "nothing") is None
    assert kept.get("l", "nothing") == "nothing"
    assert kept.get_many(["k", "l"]) == {"k": None}


class _Int(int):
    pass


def _nested(depth: int) -> Any:
    value: Any = None
    for _ in range(depth):
        value = [value]
    return value


def _doubled(times: int) -> Any:
    value: Any = []
    for _ in range(times):
        value = [value, value]
    return value


ITSELF: list[Any] = []
ITSELF.append(ITSELF)

REFUSED: dict[str, tuple[Any, str]] = {
    "a tuple": ((1,), "keeps no tuple; it would come back as a list"),
    "a bytearray": (bytearray(1), "keeps no bytearray; keep bytes"),
    "a set": ({1}, "keeps no set"),
    "a subclass": (_Int(1), "keeps no _Int"),
    "a reference": (Echo(), "keeps no Echo"),
    "a key that is no str": ({1: 2}, "the keys of a dict are str, not int"),
    "deep": (_nested(5), "too many containers"),
    "in itself": (ITSELF, "too many containers"),
    "doubled": ([_doubled(3)], "too many containers"),
    "wide": ([[]] * 1_000_000, "too large"),
    "a long text": ("x" * 10_000_000, "too large"),
    "long bytes": (bytes(10_000_000), "too large"),
    "just too long": ("x" * 998, "too large: it may have 1,000 bytes"),
    "a long integer": (1 << 10_000, "too large"),
    "a surrogate": ("\ud800", "the value has a lone surrogate"),
    "a surrogate in a key": ({"\ud800": 1}, "the value has a lone surrogate"),
    "a long key": ({"x" * 10_000: 1}, "too large"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_value_that_is_refused(what: str) -> None:
    value, why = REFUSED[what]
    kept = storage()
    kept.set("k", "before")
    with pytest.raises(StorageRefused, match=why):
        kept.set("k", value)
    with pytest.raises(StorageRefused, match=why):
        kept.set_many({"j": 1, "k": value})
    assert kept.list() == ([("k", "before")], None)


def test_a_value_of_the_largest_size() -> None:
    kept = storage()
    kept.set("k", "x" * 997)
    kept.set("k", _nested(4))
    assert kept.get("k") == _nested(4)


def test_a_value_that_unfolds_without_end_costs_little() -> None:
    with pytest.raises(StorageRefused, match="too large"):
        encode(_doubled(200), 1000, 256)


def test_what_is_too_long_is_refused_before_it_is_copied() -> None:
    long = "x" * 10_000_000
    kept = storage()
    calls: list[Callable[[], object]] = [
        lambda: kept.set("k", long),
        lambda: kept.set("k", {long: 1}),
        lambda: kept.get(long),
        lambda: kept.list(long),
        lambda: kept.list(cursor=long),
    ]
    for call in calls:
        tracemalloc.start()
        try:
            with pytest.raises(StorageRefused):
                call()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 1_000_000


# Keys, and the rest


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("", "may not be empty"),
        ("x" * 1025, "at most 1,024 bytes"),
        ("é" * 513, "at most 1,024 bytes"),
        ("x" * 1_000_000, "at most 1,024 bytes"),
        ("\ud800", "a lone surrogate"),
        (b"k", "is a str, not bytes"),
        (None, "is a str, not NoneType"),
    ],
)
def test_a_key_that_is_refused(key: Any, why: str) -> None:
    kept = storage()
    calls: list[Callable[[], object]] = [
        lambda: kept.get(key),
        lambda: kept.set(key, 1),
        lambda: kept.delete(key),
        lambda: kept.get_many(["a", key]),
        lambda: kept.set_many({"a": 1, key: 1}),
        lambda: kept.delete_many(["a", key]),
    ]
    if key != "":
        calls.append(lambda: kept.list(key))
    for call in calls:
        with pytest.raises(StorageRefused, match=why):
            call()
    assert kept.list() == ([], None)


@pytest.mark.parametrize("ttl", [0, -1, -0.0, math.nan, math.inf, -math.inf, 1e12, 10**400, True, "1", b"1"])
def test_a_ttl_that_is_refused(ttl: Any) -> None:
    kept = storage()
    with pytest.raises(StorageRefused, match="ttl is"):
        kept.set("k", 1, ttl=ttl)
    with pytest.raises(StorageRefused, match="ttl is"):
        kept.set_many({"k": 1}, ttl=ttl)
    assert kept.get("k") is None


@pytest.mark.parametrize("ttl", [None, 1e-300, 1, 0.5, 100 * 366 * 86_400])
def test_a_ttl_that_is_taken(ttl: float | None) -> None:
    time = 0.0
    kept = Storage(MemoryStorage(now=lambda: time), "p", LIMITS)
    kept.set("k", 1, ttl=ttl)
    time = 0.0 if ttl is None else ttl / 2
    assert kept.get("k") == 1
    time = 1e10
    assert kept.get("k") == (1 if ttl is None else None)


@pytest.mark.parametrize("limit", [0, -1, 1001, 1.0, "1", None, True, 10**100])
def test_a_limit_that_is_refused(limit: Any) -> None:
    with pytest.raises(StorageRefused, match="limit is 1 to 1,000"):
        storage().list(limit=limit)


@pytest.mark.parametrize(
    "cursor", ["", "a", "a=", "YQ==", "YR", "é", "_w", "*", "x" * 100_000, cursor_of("x" * 1025), 1, b"YQ"]
)
def test_a_cursor_that_is_none(cursor: Any) -> None:
    with pytest.raises(StorageRefused, match="that is no cursor"):
        storage().list(cursor=cursor)


def test_a_batch_that_is_too_large() -> None:
    kept = storage()
    many = [str(number) for number in range(6)]

    def endless() -> Any:
        while True:
            yield "k"

    for call in (
        lambda: kept.get_many(many),
        lambda: kept.delete_many(many),
        lambda: kept.set_many(dict.fromkeys(many)),
        lambda: kept.get_many(endless()),
    ):
        with pytest.raises(StorageRefused, match="at most 5 keys"):
            call()
    assert kept.list() == ([], None)
    kept.set_many(dict.fromkeys(many[:5], 1))
    assert kept.delete_many(["0", "0", "1", "x"]) == 2
    assert kept.get_many(["2", "2", "0"]) == {"2": 1}


def test_pages() -> None:
    kept = storage()
    for number in range(4):
        kept.set(f"a{number}", number)
        kept.set(f"b{number}", number)
    first, cursor = kept.list("a", limit=3)
    assert first == [("a0", 0), ("a1", 1), ("a2", 2)]
    assert cursor is not None
    assert cursor.isascii()
    assert cursor != "a2"
    assert kept.list("a", cursor) == ([("a3", 3)], None)
    assert kept.list("a", cursor, keys_only=True) == (["a3"], None)
    assert kept.list("a", limit=4)[1] is None


def test_the_names_of_peers_are_apart() -> None:
    names = [
        name_of("memory", "a"),
        name_of("memor", "ya"),
        name_of("memory1:", "a"),
        name_of("memory", "1:a"),
        name_given("6:memory1:a"),
        name_given("peer:6:memory1:a"),
    ]
    assert len(set(names)) == len(names)


def test_no_error_shows_what_is_kept() -> None:
    limits = StorageLimits(peer_keys=1, value=10)
    kept = storage(limits)
    kept.set("a", 1)
    for call in (
        lambda: kept.set("secret", "password"),
        lambda: kept.set("secret" * 1000, 1),
        lambda: kept.set("secret", "password" * 1000),
        lambda: kept.set("secret", {"password": ("password",)}),
        lambda: kept.list(cursor="secret"),
    ):
        with pytest.raises(StorageError) as failed:
            call()
        assert "secret" not in str(failed.value)
        assert "password" not in str(failed.value)
    assert "p" not in repr(kept).removeprefix("<Storage of one caller>")


def test_limits_are_above_zero() -> None:
    for name in ("key", "value", "nesting", "peer_keys", "peer_size", "keys", "size", "batch", "answer"):
        with pytest.raises(ValueError, match=name):
            StorageLimits(**{name: 0})
    assert Limits().storage == StorageLimits()
