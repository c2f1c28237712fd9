"""Pages of slots and rows of frames: what stands in them, and when they are written and removed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import durable
from durable.errors import NotStorable
from durable.outbox import pack_frames, unpack_frames
from durable.pages import PLACES, SIZE, Pages, entries
from durable.records import decode, encode, encode_flat, encode_row
from durable.store import number_key

ID = b"s" * 32

ENTRIES = st.none() | st.integers(0, 1 << 63) | st.booleans() | st.lists(st.integers(-5, 5), max_size=3)
SAID = st.dictionaries(st.integers(0, 4 * SIZE), ENTRIES)


def rows(baggage: durable.MemoryBaggage) -> dict[bytes, Any]:
    found = {}
    for table in ("slot", "answer"):
        for key, data in baggage.scan(table):
            assert key[:32] == ID
            found[key[32:]] = decode(data)
    return found


@given(st.lists(st.tuples(st.sampled_from(sorted(PLACES)), SAID), max_size=6))
def test_pages_are_what_was_said_last(steps: list[tuple[str, dict[int, Any]]]) -> None:
    with durable.MemoryBaggage() as baggage:
        pages = Pages(baggage, ID)
        model: dict[str, dict[int, Any]] = {kind: {} for kind in PLACES}
        for kind, said in steps:
            pages.save(kind, said)
            model[kind] = {
                position: entry for position, entry in (model[kind] | said).items() if entry is not None
            }
            again = Pages(baggage, ID)
            again.load()
            for name, wanted in model.items():
                assert dict(pages.all(name)) == dict(again.all(name)) == wanted
                for position in (0, 1, SIZE - 1, SIZE):
                    assert pages.get(name, position) == wanted.get(position)
        wanted_rows = {
            letter + number_key(position // SIZE)
            for kind, (_, letter) in PLACES.items()
            for position in model[kind]
        }
        assert rows(baggage).keys() == wanted_rows
        for key, row in rows(baggage).items():
            number = int.from_bytes(key[1:], "big")
            assert all(position // SIZE == number for position in entries(number, row))


def test_a_page_that_nothing_changes_is_not_written() -> None:
    with durable.MemoryBaggage() as baggage:
        pages = Pages(baggage, ID)
        pages.save("question", {1: True, SIZE: True})
        baggage.flush()
        pages.save("question", {2: None, 5 * SIZE: None})
        assert not baggage.dirty
        pages.save("resolver", {3: None})
        assert not baggage.dirty, "a page that was never stored is not removed"
        pages.save("question", {1: None})
        assert rows(baggage) == {b"Q" + number_key(1): [[SIZE], [True]]}


def test_a_page_that_is_none_is_corrupt() -> None:
    with durable.MemoryBaggage() as baggage:
        baggage.put("slot", ID + b"I" + number_key(0), encode([[1], []]))
        with pytest.raises(durable.BaggageCorrupt, match="not a page of slots") as caught:
            Pages(baggage, ID).load()
        assert caught.value.table == "slot"
        assert caught.value.row


@pytest.mark.parametrize(
    "row", [None, [], [[], []], [[1]], [[1], [1, 2]], [[SIZE], [1]], [[True], [1]], [[1, 1], [1, 1]], [1, 1]]
)
def test_what_is_no_page(row: Any) -> None:
    with pytest.raises(ValueError, match="not a page of slots"):
        entries(0, row)


@given(
    st.recursive(
        st.booleans() | st.integers() | st.binary() | st.text(st.characters(max_codepoint=127)), st.lists
    )
)
def test_what_is_flat_has_one_encoding(value: Any) -> None:
    assert encode_flat([value]) == encode([value])


@pytest.mark.parametrize("encode", [encode_flat, encode_row])
def test_a_row_has_a_limit(encode: Callable[[Any], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durable.records.MAX_ROW", 100)
    assert len(encode([bytes(97)])) == 100
    with pytest.raises(NotStorable, match="too large: more than 100 bytes"):
        encode([bytes(98)])


@given(st.lists(st.binary(min_size=1), min_size=1))
def test_frames_come_back(frames: list[bytes]) -> None:
    data = pack_frames(frames)
    assert unpack_frames(data) == frames
    for cut in range(len(data)):
        try:
            found = unpack_frames(data[:cut])
        except ValueError:
            pass
        else:
            assert found == frames[: len(found)]


@pytest.mark.parametrize("data", [b"", b"\0", b"\0\0\0\1", b"\0\0\0\2x", b"\0\0\0\1xy"])
def test_what_is_no_row_of_frames(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a row of frames"):
        unpack_frames(data)
