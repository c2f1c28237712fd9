"""Hypothesis strategies for everything that can be passed without a session."""

from __future__ import annotations

import math

from hypothesis import strategies as st

from ocapn.codec.syrup import Record
from ocapn.errors import RemoteError
from ocapn.model.locators import PeerLocator, SturdyRef
from ocapn.model.values import Null, Symbol, Tagged

LARGEST = 10**256 - 1

_CORNERS: tuple[object, ...] = (
    *(None, Null, True, False, 0, 1, -1, 0.0, -0.0, 1.0, -1.0, math.nan, -math.nan, math.inf, -math.inf),
    *("", "0", "1", "a", "b", "aa", b"", b"0", b"a", Symbol(""), Symbol("a"), Symbol("void"), Symbol("null")),
    *("\uffff", "\U00010000", "é", "e\u0301"),
)


def texts(max_size: int = 20) -> st.SearchStrategy[str]:
    """OCapN text: any code points but surrogates."""
    return st.text(st.characters(exclude_categories=["Cs"]), max_size=max_size)


def symbols() -> st.SearchStrategy[Symbol]:
    return texts(10).map(Symbol)


def integers() -> st.SearchStrategy[int]:
    """All that the default limits let pass, and often those where something changes."""
    edges = st.sampled_from([n for k in (8, 9, 10, 18, 19, 255, 256) for n in (10**k - 1, 10 ** (k - 1))])
    signed = st.tuples(edges, st.sampled_from([1, -1])).map(lambda pair: pair[0] * pair[1])
    return st.one_of(
        st.integers(-2000, 2000), st.integers(-(2**64), 2**64), st.integers(-LARGEST, LARGEST), signed
    )


def atoms() -> st.SearchStrategy[object]:
    """Values without members."""
    return st.one_of(
        st.sampled_from(_CORNERS), integers(), st.floats(), texts(), st.binary(max_size=40), symbols()
    )


def corners() -> st.SearchStrategy[object]:
    """Few values that are easily taken for each other, so that two draws are often equal, or nearly."""
    return _containers(st.sampled_from(_CORNERS), max_leaves=4)


def _containers(leaves: st.SearchStrategy[object], max_leaves: int) -> st.SearchStrategy[object]:
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=6),
            st.lists(inner, max_size=6).map(tuple),
            st.dictionaries(st.one_of(st.sampled_from(["a", "b", "aa", "é"]), texts(12)), inner, max_size=6),
            st.builds(Tagged, st.one_of(st.sampled_from(["a", "b"]), texts(8)), inner),
        ),
        max_leaves=max_leaves,
    )


def plain_data() -> st.SearchStrategy[object]:
    """Values whose equality is that of their encodings: no locators, which compare without their hints."""
    errors: st.SearchStrategy[object] = texts().map(RemoteError)
    return _containers(st.one_of(atoms(), errors), max_leaves=12)


def transports() -> st.SearchStrategy[str]:
    known = st.sampled_from(["tcp-testing-only", "websocket", "onion", "unix", "noise"])
    return st.one_of(known, st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,8}\Z"))


def locators() -> st.SearchStrategy[PeerLocator]:
    return st.builds(
        PeerLocator, transports(), texts().filter(bool), st.dictionaries(texts(8), texts(12), max_size=4)
    )


def sturdyrefs() -> st.SearchStrategy[SturdyRef]:
    return st.builds(SturdyRef, locators(), st.binary(min_size=1, max_size=40))


def passables() -> st.SearchStrategy[object]:
    """Everything that can be passed without a session: all of the model but references."""
    return _containers(st.one_of(atoms(), texts().map(RemoteError), locators(), sturdyrefs()), max_leaves=12)


def syrup_values() -> st.SearchStrategy[object]:
    """What a decoder for any record makes: plain Syrup with records of any label."""
    leaves = st.one_of(st.booleans(), integers(), st.floats(), texts(), st.binary(max_size=40), symbols())
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=5),
            st.dictionaries(texts(12), inner, max_size=5),
            st.builds(Record, symbols(), st.lists(inner, max_size=5)),
        ),
        max_leaves=12,
    )


def chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` cut at `cuts`, which are taken modulo its length."""
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[i:j] for i, j in zip([0, *places], [*places, len(data)], strict=True)]


_PIECES = [
    *(
        b"0",
        b"1",
        b"2",
        b"9",
        b"10",
        b"+",
        b"-",
        b'"',
        b"'",
        b":",
        b"[",
        b"]",
        b"{",
        b"}",
        b"<",
        b">",
        b"t",
        b"f",
    ),
    *(
        b"D",
        b"F",
        b"#",
        b"$",
        b"a",
        b"\xff",
        b"\xc3\xa9",
        b'1"a',
        b'2"aa',
        b"1'a",
        b"0+",
        b"1-",
        b"[]",
        b"{}",
    ),
    *(b"D\x7f\xf8\0\0\0\0\0\0", b"\0", b" ", b"<4'void>", b"<4'null>"),
]


def mangled(whole: st.SearchStrategy[bytes], pieces: list[bytes] = _PIECES) -> st.SearchStrategy[bytes]:
    """Encodings with some bytes replaced, removed or repeated, and heaps of pieces, by default of Syrup."""
    piece = st.sampled_from(pieces)
    edits = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 3), piece), max_size=3)
    return st.one_of(st.builds(_damage, whole, edits), st.lists(piece, max_size=12).map(b"".join))


def _damage(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for place, removed, piece in edits:
        place %= len(data) + 1
        data = data[:place] + piece + data[place + removed :]
    return data
