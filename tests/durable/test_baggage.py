"""The baggage: the mapping of an application, the rows of a peer, batches, transactions, ends."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

import pytest

from durable import (
    BaggageFailed,
    BaggageInUse,
    DirectoryStore,
    MemoryBaggage,
    MemoryStore,
    NotStorable,
    open_baggage,
)
from durable.baggage import Baggage, Batch, Namespace
from durable.store import Changes
from tests.durable.support import crashed


def cut(baggage: Baggage) -> Batch:
    """A batch, where there is something to cut."""
    batch = baggage.cut()
    assert batch is not None
    return batch


# The mapping


def test_a_mapping() -> None:
    baggage = MemoryBaggage()
    baggage["a"] = {"x": [1, None, b"\x00"]}
    assert baggage["a"] == {"x": [1, None, b"\x00"]}
    assert "a" in baggage
    assert "b" not in baggage
    assert 1 not in baggage
    assert baggage.get("b") is None
    assert baggage.get("b", 3) == 3
    del baggage["a"]
    for use in (lambda: baggage["a"], lambda: baggage.__delitem__("a")):
        with pytest.raises(KeyError, match="a"):
            use()
    assert list(baggage) == []


def test_none_is_a_value() -> None:
    baggage = MemoryBaggage()
    baggage["a"] = None
    assert "a" in baggage
    assert baggage.get("a", 3) is None
    assert baggage["a"] is None
    assert baggage.provide("a", lambda: 4) is None


def test_values_are_copies() -> None:
    baggage = MemoryBaggage()
    value = [1]
    baggage["a"] = value
    value.append(2)
    baggage["a"].append(3)
    assert baggage["a"] == [1]
    made: list[int] = []
    baggage.provide("b", lambda: made).append(1)
    made.append(2)
    assert baggage["b"] == []


def test_provide_makes_once() -> None:
    baggage = MemoryBaggage()
    assert baggage.provide("a", lambda: 1) == 1
    assert baggage.provide("a", lambda: 2) == 1


def test_what_cannot_be_kept_changes_nothing() -> None:
    baggage = MemoryBaggage(max_value=100)
    baggage["a"] = 1
    for value in ((1,), "x" * 100, object()):
        with pytest.raises(NotStorable):
            baggage["a"] = value
    assert baggage["a"] == 1
    for key in (1, "\ud800"):
        with pytest.raises(NotStorable, match="key"):
            baggage[key] = 1  # type: ignore[index]


def test_namespaces_are_apart() -> None:
    names = [
        "",
        "a",
        "b",
        "ab",
        "k",
        "n",
        "ka",
        "\x00",
        "\x00\x00\x00\x01a",
        "n\x00\x00\x00\x01ak",
        "😀",
        "\U0010ffff",
    ]
    baggage = MemoryBaggage()
    spaces: dict[tuple[str, ...], Namespace] = {(): baggage}
    spaces |= {(one,): baggage.namespace(one) for one in names}
    spaces |= {(one, two): baggage.namespace(one).namespace(two) for one in names for two in names}
    for path, space in spaces.items():
        for key in names:
            space[key] = [*path, "/", key]
    for path, space in spaces.items():
        assert list(space) == sorted(names)
        assert space.entries() == ([(key, [*path, "/", key]) for key in sorted(names)], None)


def test_entries_come_in_pages() -> None:
    baggage = MemoryBaggage()
    for number in range(25):
        baggage[f"a{number:02}"] = number
        baggage[f"b{number:02}"] = -number
    baggage.flush()
    for number in range(0, 25, 2):
        del baggage[f"a{number:02}"]
    found, cursor, pages = [], None, 0
    while True:
        some, cursor = baggage.entries("a", cursor, 5)
        found += some
        pages += 1
        if cursor is None:
            break
    assert found == [(f"a{number:02}", number) for number in range(1, 25, 2)]
    assert pages == 3
    assert baggage.entries("a", "a05", 1) == ([("a07", 7)], "a07")
    assert baggage.entries("a", "a23") == ([], None)
    assert baggage.entries("a1", limit=5)[1] is None  # exactly five
    with pytest.raises(ValueError, match="limit"):
        baggage.entries(limit=0)


def test_iterating_while_changing() -> None:
    baggage = MemoryBaggage()
    for number in range(250):
        baggage[f"{number:03}"] = number
    for key in baggage:
        del baggage[key]
    assert list(baggage) == []


# Batches


def test_rows_are_read_through_the_batches() -> None:
    store = MemoryStore()
    baggage = MemoryBaggage(store)
    assert baggage.cut() is None
    baggage.put("slot", b"a", b"1")
    baggage.put("slot", b"b", b"1")
    first = cut(baggage)
    baggage.put("slot", b"a", b"2")
    second = cut(baggage)
    baggage.remove("slot", b"b")
    assert baggage.scan("slot") == [(b"a", b"2")]
    assert store.scan("slot") == []
    baggage.write([first])
    assert store.scan("slot") == [(b"a", b"1"), (b"b", b"1")]
    assert baggage.scan("slot") == [(b"a", b"2")]
    baggage.written(first)
    baggage.write([second])
    baggage.written(second)
    assert baggage.scan("slot") == [(b"a", b"2")]
    assert baggage.read("slot", b"b") is None
    dirty = [baggage.dirty]
    baggage.flush()
    assert [*dirty, baggage.dirty] == [True, False]
    assert store.scan("slot") == [(b"a", b"2")]


def test_batches_are_written_together() -> None:
    store = MemoryStore()
    commits: list[Changes] = []
    store.on_commit = lambda changes: commits.append(dict(changes))
    baggage = MemoryBaggage(store)
    batches = []
    for number in range(3):
        baggage.put("slot", b"a", b"%d" % number)
        baggage.put("slot", b"b%d" % number, b"")
        batches.append(cut(baggage))
    baggage.write(batches)
    assert commits == [
        {("slot", b"a"): b"2", ("slot", b"b0"): b"", ("slot", b"b1"): b"", ("slot", b"b2"): b""}
    ]


def test_batches_keep_their_order() -> None:
    baggage = MemoryBaggage()
    batches = []
    for number in range(3):
        baggage.put("slot", b"a", b"%d" % number)
        batches.append(cut(baggage))
    for wrong in ([batches[1]], [batches[0], batches[2]], [batches[1], batches[0]]):
        with pytest.raises(RuntimeError, match="in order"):
            baggage.write(wrong)
    with pytest.raises(RuntimeError, match="not the next"):
        baggage.written(batches[0])
    baggage.write(batches[:2])
    with pytest.raises(RuntimeError, match="not the next"):
        baggage.written(batches[1])
    baggage.written(batches[0])
    with pytest.raises(RuntimeError, match="not the next"):
        baggage.written(batches[2])
    assert baggage.read("slot", b"a") == b"2"


def test_flush_writes_what_was_cut_before() -> None:
    """As when a peer is cancelled between `cut` and `write`, or a flush gets ahead of its writer."""
    store = MemoryStore()
    baggage = MemoryBaggage(store)
    baggage.put("slot", b"a", b"1")
    batch = cut(baggage)
    baggage.put("slot", b"b", b"1")
    baggage.flush()
    assert store.scan("slot") == [(b"a", b"1"), (b"b", b"1")]
    baggage.put("slot", b"a", b"2")
    baggage.flush()
    baggage.write([batch])
    baggage.written(batch)
    assert store.get("slot", b"a") == b"2"


def test_reading_goes_on_while_a_batch_is_written() -> None:
    store = MemoryStore()
    baggage = MemoryBaggage(store)
    baggage.put("slot", b"a", b"1")
    batch = cut(baggage)
    writer = threading.Thread(target=baggage.write, args=([batch],))
    baggage._writing.acquire()
    writer.start()
    assert baggage.read("slot", b"a") == b"1"
    baggage.put("slot", b"a", b"2")
    baggage._writing.release()
    writer.join()
    baggage.written(batch)
    assert baggage.read("slot", b"a") == b"2"
    assert store.get("slot", b"a") == b"1"


def test_who_is_told_of_changes() -> None:
    baggage = MemoryBaggage()
    told: list[bool] = []
    baggage.on_dirty = lambda: told.append(baggage.dirty)
    baggage["a"] = 1
    baggage["b"] = 1
    assert told == [False]
    cut(baggage)
    assert told == [False]
    baggage.put("slot", b"a", b"")
    assert len(told) == 2
    with pytest.raises(RuntimeError, match="stopped"):
        raise_on_change(baggage)
    assert baggage.get("c") is None


def raise_on_change(baggage: Baggage) -> None:
    def stopped() -> None:
        raise RuntimeError("stopped")

    baggage.flush()
    baggage.on_dirty = stopped
    baggage["c"] = 1


def test_tables() -> None:
    baggage = MemoryBaggage()
    for use in (
        lambda: baggage.put("nonesuch", b"", b""),
        lambda: baggage.remove("nonesuch", b""),
        lambda: baggage.read("nonesuch", b""),
        lambda: baggage.scan("nonesuch"),
    ):
        with pytest.raises(ValueError, match="nonesuch"):
            use()
    assert not baggage.dirty


# Transactions


def test_a_transaction_that_raises_changes_nothing_of_the_application() -> None:
    baggage = MemoryBaggage()
    baggage["kept"] = 1
    baggage.flush()
    baggage["cut"] = 1
    cut(baggage)
    baggage["current"] = 1

    def fails() -> None:
        with baggage.transaction():
            baggage["kept"] = 2
            baggage["kept"] = 3
            baggage["cut"] = 2
            del baggage["current"]
            baggage["current"] = 3
            baggage["new"] = 1
            baggage.put("slot", b"peer", b"1")
            assert baggage["kept"] == 3
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    for _ in range(2):
        assert baggage.entries()[0] == [("current", 1), ("cut", 1), ("kept", 1)]
        assert baggage.read("slot", b"peer") == b"1"
        baggage.flush()


def test_an_inner_transaction_rolls_back_its_own_part() -> None:
    baggage = MemoryBaggage()
    with baggage.transaction():
        baggage["a"] = 1
        with suppress(ZeroDivisionError), baggage.transaction():
            baggage["a"] = 2
            baggage["b"] = 1 / 0
        with baggage.transaction():
            baggage["c"] = 1
        assert baggage.entries()[0] == [("a", 1), ("c", 1)]
    assert baggage.entries()[0] == [("a", 1), ("c", 1)]
    assert baggage._undo == []  # what would be undone is not kept for ever
    with suppress(ZeroDivisionError), baggage.transaction():
        with baggage.transaction():
            baggage["a"] = 3
        baggage["b"] = 1 / 0
    assert baggage["a"] == 1


def test_a_transaction_rolled_back_leaves_nothing_to_write() -> None:
    baggage = MemoryBaggage()
    with suppress(ZeroDivisionError), baggage.transaction():
        baggage["a"] = 1
        baggage["a"] = 1 / 0
    assert not baggage.dirty
    assert baggage.cut() is None


def test_nothing_is_cut_inside_a_transaction(tmp_path: Path) -> None:
    with open_baggage(tmp_path / "b") as baggage:
        with baggage.transaction():
            baggage["a"] = 1
            for use in (baggage.cut, baggage.flush, baggage.close, baggage.scrub):
                with pytest.raises(RuntimeError, match="transaction is open"):
                    use()
        assert baggage["a"] == 1


# Ends


def test_it_is_there_after_closing(tmp_path: Path) -> None:
    with open_baggage(tmp_path / "b") as baggage:
        baggage["a"] = 1
        identity = baggage.store_id
        with pytest.raises(BaggageInUse):
            open_baggage(tmp_path / "b")
    baggage.close()
    with pytest.raises(BaggageFailed, match="closed"):
        baggage.get("a")
    with open_baggage(str(tmp_path / "b")) as baggage:
        assert baggage["a"] == 1
        assert baggage.store_id == identity
        assert baggage.verify() == 1


def test_a_flush_is_on_disk(tmp_path: Path) -> None:
    with open_baggage(tmp_path / "b") as baggage:
        baggage["a"] = 1
        baggage.flush()
        baggage["a"] = 2
        with open_baggage(crashed(tmp_path / "b", tmp_path / "copy")) as copy:
            assert copy["a"] == 1


def test_scrubbing_erases(tmp_path: Path) -> None:
    with open_baggage(tmp_path / "b") as baggage:
        baggage["a"] = "secret"
        baggage.flush()
        del baggage["a"]
        baggage.scrub()
        assert not any(b"secret" in file.read_bytes() for file in (tmp_path / "b").iterdir())


def test_a_program_that_raises_keeps_what_it_changed(tmp_path: Path) -> None:
    with suppress(ZeroDivisionError), open_baggage(tmp_path / "b") as baggage:
        baggage["a"] = 1
        raise ZeroDivisionError
    with open_baggage(tmp_path / "b") as baggage:
        assert baggage["a"] == 1


def test_a_baggage_that_failed() -> None:
    store = MemoryStore()
    baggage = MemoryBaggage(store)
    baggage["a"] = 1
    baggage.flush()

    def fail(changes: Changes) -> None:
        raise OSError("no space left")

    store.on_commit = fail
    baggage["a"] = 2
    with pytest.raises(BaggageFailed, match="no space left"):
        baggage.flush()
    assert baggage.failed is not None
    for use in (
        lambda: baggage["a"],
        lambda: list(baggage),
        lambda: baggage.__setitem__("a", 3),
        baggage.cut,
        baggage.flush,
        baggage.verify,
        lambda: baggage.transaction().__enter__(),
    ):
        with pytest.raises(BaggageFailed, match="no space left"):
            use()
    baggage.close()  # it has been said
    assert MemoryBaggage(store.reopened())["a"] == 1


def test_closing_says_what_could_not_be_written(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "b")
    baggage = Baggage(store)
    baggage["a"] = 1
    store._failed = "gone"
    with pytest.raises(BaggageFailed, match="gone"):
        baggage.close()
    baggage.close()
    DirectoryStore(tmp_path / "b").close()
