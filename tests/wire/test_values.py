"""The types of the model that Python lacks, and pass-invariant equality."""

from __future__ import annotations

import copy
import enum
import math
import pickle
import struct
from threading import Barrier, Thread

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ocapn.codec.syrup import encode
from ocapn.errors import RemoteError
from ocapn.model.locators import PeerLocator, SturdyRef
from ocapn.model.values import Null, NullType, Symbol, Tagged, equal

from . import strategies

# Symbol


@given(strategies.texts())
def test_symbols_of_one_name_are_one_object(name: str) -> None:
    symbol = Symbol(name)
    for same in (
        Symbol("".join(name)),
        copy.copy(symbol),
        copy.deepcopy([symbol])[0],
        pickle.loads(pickle.dumps(symbol)),
    ):
        assert same is symbol
    assert symbol.name == name
    assert {symbol: 1}[Symbol(name)] == 1


def test_symbols_of_different_names_differ() -> None:
    assert Symbol("a") is not Symbol("b")
    assert Symbol("a") != Symbol("b")
    assert Symbol("é") is not Symbol("e\u0301")  # names are not normalised


def test_a_symbol_is_not_its_name() -> None:
    name: object = "a"
    assert Symbol("a") != name
    assert name not in {Symbol("a"): 1}
    assert Symbol("a") not in {name: 1}


def test_a_symbol_cannot_be_changed() -> None:
    for name in ("name", "other"):
        with pytest.raises(AttributeError, match="a Symbol cannot be changed"):
            setattr(Symbol("a"), name, "b")
    assert Symbol("a").name == "a"


def test_a_symbol_shows_its_name() -> None:
    assert repr(Symbol("it's")) == 'Symbol("it\'s")'


@pytest.mark.parametrize("name", [1, None, b"a", Symbol("a"), 1.5])
def test_a_symbol_s_name_is_a_str(name: object) -> None:
    with pytest.raises(TypeError, match=f"a symbol's name is a str, not {type(name).__name__}"):
        Symbol(name)  # type: ignore[arg-type]  # as it says


def test_a_symbol_s_name_has_no_surrogates() -> None:
    with pytest.raises(UnicodeEncodeError):
        Symbol("\ud800")


def test_a_name_of_a_subclass_of_str_is_its_text() -> None:
    class Method(str, enum.Enum):  # noqa: UP042  # its str() is not its text, unlike that of a StrEnum
        GREET = "greet-by-an-enum"

    assert Symbol(Method.GREET).name == "greet-by-an-enum"
    assert type(Symbol(Method.GREET).name) is str
    assert Symbol(Method.GREET) is Symbol("greet-by-an-enum")


def test_symbols_made_in_many_threads_are_one_object() -> None:
    names = [f"threaded-{n}" for n in range(200)]
    found: list[list[Symbol]] = []
    barrier = Barrier(4)

    def make() -> None:
        barrier.wait()
        found.append([Symbol(name) for name in names])

    threads = [Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for symbols in zip(*found, strict=True):
        assert len(set(map(id, symbols))) == 1


# Null


def test_null_is_one_object() -> None:
    for same in (NullType(), copy.copy(Null), copy.deepcopy([Null])[0], pickle.loads(pickle.dumps(Null))):
        assert same is Null
    assert repr(Null) == "Null"
    assert not Null


def test_null_is_not_undefined() -> None:
    assert Null != None  # noqa: E711  # its equality is what is asked for
    assert not equal(Null, None)


# Tagged


def test_tagged_compares_tag_and_value() -> None:
    assert Tagged("a", [1]) == Tagged("a", [1])
    assert Tagged("a", [1]) == Tagged("a", (1,))
    assert Tagged("a", 1) != Tagged("b", 1)
    assert Tagged("a", 1) != Tagged("a", True)
    assert Tagged("a", 1) != ("a", 1)
    assert Tagged("a", math.nan) == Tagged("a", math.nan)


def test_tagged_is_not_hashable() -> None:
    with pytest.raises(TypeError, match="unhashable type: 'Tagged'"):
        hash(Tagged("a", 1))


@pytest.mark.parametrize("tag", [1, None, b"a", Symbol("a")])
def test_a_tag_is_a_str(tag: object) -> None:
    with pytest.raises(TypeError, match=f"a tag is a str, not {type(tag).__name__}"):
        Tagged(tag, 1)  # type: ignore[arg-type]  # as it says


def test_tagged_shows_both_and_is_copied_by_value() -> None:
    tagged = Tagged("a", [1])
    assert repr(tagged) == "Tagged('a', [1])"
    for other in (copy.deepcopy(tagged), pickle.loads(pickle.dumps(tagged))):
        assert other == tagged
        assert other.value is not tagged.value


# Equality


class Greeter:
    """A reference that says it equals every other: its word does not count."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


def _nan(bits: str) -> float:
    number: float = struct.unpack(">d", bytes.fromhex(bits))[0]
    return number


PEER = PeerLocator("unix", "a")
GREETER = Greeter()


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (True, 1),
        (False, 0),
        (True, 1.0),
        (1, 1.0),
        (0, 0.0),
        (0, -0.0),
        (0.0, -0.0),
        (math.nan, 0.0),
        (math.nan, math.inf),
        ("a", b"a"),
        ("a", Symbol("a")),
        ("", None),
        (b"", ""),
        ([], {}),
        ([], ""),
        ([], None),
        ({}, None),
        ([1], [1, 2]),
        ([1, 2], [2, 1]),
        ([True], [1]),
        ({"a": 1}, {"a": 1.0}),
        ({"a": 1}, {"b": 1}),
        ({"a": None}, {}),
        ({"a": None}, {"b": None}),
        (Tagged("a", 0.0), Tagged("a", -0.0)),
        (Tagged("a", 1), Tagged("b", 1)),
        (Tagged("a", 1), ["a", 1]),
        (RemoteError("a"), RemoteError("b")),
        (RemoteError("a"), "a"),
        (RemoteError("a"), ValueError("a")),
        (PEER, PeerLocator("unix", "b")),
        (PEER, PeerLocator("onion", "a")),
        (PEER, SturdyRef(PEER, b"a")),
        (PEER, PEER.uri),
        (SturdyRef(PEER, b"a"), SturdyRef(PEER, b"b")),
        (SturdyRef(PEER, b"a"), SturdyRef(PeerLocator("unix", "b"), b"a")),
        (None, Null),
        (None, False),
        (Null, False),
        (Greeter(), Greeter()),
        (Greeter(), 1),
        (Greeter(), [Greeter()]),
        ([Greeter()], [Greeter()]),
    ],
    ids=repr,
)
def test_these_differ(left: object, right: object) -> None:
    assert not equal(left, right)
    assert not equal(right, left)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (math.nan, _nan("7ff8000000000000")),
        (math.nan, _nan("fff8000000000001")),
        ([math.nan], [_nan("7ff0000000000001")]),
        (10**30, 10**15 * 10**15),
        ([1, [2]], (1, (2,))),
        ([], ()),
        ({"a": 1, "b": [True]}, {"b": [True], "a": 1}),
        ("ab", "".join(["a", "b"])),
        (Symbol("a"), Symbol("a")),
        (Tagged("a", (1,)), Tagged("a", [1])),
        (RemoteError("a"), RemoteError("a", value=5)),
        (PEER, PeerLocator("unix", "a", {"path": "/tmp"})),
        (SturdyRef(PEER, b"a"), SturdyRef(PeerLocator("unix", "a", {"path": "/tmp"}), b"a")),
        (GREETER, GREETER),
        ([GREETER, {"g": GREETER}], (GREETER, {"g": GREETER})),
    ],
    ids=repr,
)
def test_these_are_equal(left: object, right: object) -> None:
    assert equal(left, right)
    assert equal(right, left)


def variants(value: object) -> st.SearchStrategy[object]:
    """Other forms of the same value: tuples for lists, structs in another order, other NaNs."""
    if isinstance(value, (list, tuple)):
        members = st.tuples(*[variants(member) for member in value])
        return st.one_of(members, members.map(list))
    if isinstance(value, dict):
        fields = st.tuples(*[st.tuples(st.just(key), variants(member)) for key, member in value.items()])
        return fields.flatmap(lambda pairs: st.permutations(pairs)).map(dict)
    if isinstance(value, Tagged):
        return variants(value.value).map(lambda inner: Tagged(value.tag, inner))
    if isinstance(value, float) and value != value:
        return st.sampled_from([_nan("7ff8000000000000"), _nan("fff0000000000001")])
    if isinstance(value, RemoteError):
        return st.just(RemoteError(value.message))
    return st.just(value)


@given(strategies.passables(), st.data())
def test_equality_is_reflexive_across_forms(value: object, data: st.DataObject) -> None:
    assert equal(value, value)
    other = data.draw(variants(value))
    assert equal(value, other)
    assert equal(other, value)


@given(strategies.corners(), strategies.corners())
@example([True], [1])
def test_equality_is_symmetric(left: object, right: object) -> None:
    assert equal(left, right) == equal(right, left)


@given(st.lists(strategies.corners(), min_size=3, max_size=12))
def test_equality_is_transitive(values: list[object]) -> None:
    for one in values:
        same = [other for other in values if equal(one, other)]
        for other in same:
            assert [equal(other, third) for third in values] == [equal(one, third) for third in values]


@given(strategies.corners(), strategies.corners())
@example(0.0, -0.0)
@example({"a": 1}, {"a": True})
def test_plain_values_are_equal_when_their_encodings_are(left: object, right: object) -> None:
    assert equal(left, right) == (encode(left) == encode(right))


@given(strategies.plain_data(), strategies.plain_data(), st.data())
def test_larger_plain_values_are_equal_when_their_encodings_are(
    left: object, right: object, data: st.DataObject
) -> None:
    assert equal(left, right) == (encode(left) == encode(right))
    assert encode(data.draw(variants(left))) == encode(left)


@given(strategies.passables(), strategies.passables())
def test_unequal_values_have_different_encodings(left: object, right: object) -> None:
    assume(not equal(left, right))
    assert encode(left) != encode(right)
