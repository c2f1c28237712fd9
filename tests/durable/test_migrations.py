"""Rows of older versions are copied, and brought up to date in one commit; those of later ones are refused."""

from __future__ import annotations

import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import durable
from durable import BaggageCorrupt, BaggageFailed, BaggageNewer, MemoryStore, migrations
from durable.directory import DirectoryStore
from durable.migrations import Rows, migrate, version_of
from durable.records import encode
from durable.store import Store
from tests.durable.support import FAST


def double(rows: Rows) -> None:
    """Values of `user` stand twice."""
    for key, value in rows.scan("user"):
        rows.put("user", key, value + value)


def rename(rows: Rows) -> None:
    """Keys get a prefix, and one goes to another table."""
    for key, value in rows.scan("user"):
        rows.remove("user", key)
        rows.put("user", b"x" + key, value)
    first = rows.get("user", b"xa")
    assert first is not None
    rows.put("object", b"a", first)


CHAIN: dict[int, Callable[[Rows], None]] = {1: double, 2: rename}


def old() -> MemoryStore:
    store = MemoryStore()
    store.commit({("user", b"a"): b"1", ("user", b"b"): b"2"})
    return store


def test_a_chain_runs_forward_after_a_copy_and_in_one_commit(caplog: pytest.LogCaptureFixture) -> None:
    store = old()
    commits: list[object] = []
    copied: list[tuple[int, int]] = []
    store.on_commit = commits.append

    def copy(version: int) -> str:
        copied.append((version, len(commits)))
        return "the copy"

    migrate(store, "the place", copy, to=3, migrations=CHAIN)
    assert store.scan("user") == [(b"xa", b"11"), (b"xb", b"22")]
    assert store.get("object", b"a") == b"11"
    assert version_of(store) == 3
    assert copied == [(1, 0)]
    assert len(commits) == 1
    assert "the place: its rows have version 1, and are brought to 3; a copy is in the copy" in caplog.text
    migrate(store, "the place", copy, to=3, migrations=CHAIN)
    assert len(commits) == 1
    migrate(store, "the place", copy, to=4, migrations={3: lambda rows: rows.remove("object", b"a")})
    assert copied == [(1, 0), (3, 1)]
    assert (version_of(store), store.get("object", b"a")) == (4, None)


def test_a_step_that_fails_changes_nothing() -> None:
    store = old()
    before = store.reopened()._tables

    def fails(rows: Rows) -> None:
        raise BaggageCorrupt("not what a version 2 has")

    with pytest.raises(BaggageCorrupt, match="version 2"):
        migrate(store, "p", lambda version: "c", to=3, migrations={1: double, 2: fails})
    assert store._tables == before
    with pytest.raises(OSError, match="full"):
        migrate(store, "p", full, to=3, migrations=CHAIN)
    assert store._tables == before

    def crash(changes: object) -> None:
        raise OSError("power loss")

    store.on_commit = crash
    with pytest.raises(BaggageFailed, match="power loss"):
        migrate(store, "p", lambda version: "c", to=3, migrations=CHAIN)
    assert store._tables == before


def full(version: int) -> object:
    raise OSError("the disk is full")


def test_an_empty_store_is_of_this_version() -> None:
    store = MemoryStore()
    assert version_of(store) is None
    migrate(store, "p", full, to=1)
    assert version_of(store) is None
    migrate(store, "p", full, to=3, migrations=CHAIN)
    assert version_of(store) == 3


def test_rows_of_a_later_version_are_refused_untouched() -> None:
    store = old()
    migrate(store, "p", lambda version: "c", to=3, migrations=CHAIN)
    before = store.reopened()._tables
    with pytest.raises(BaggageNewer, match="format 3, this version reads 2"):
        migrate(store, "p", full, to=2, migrations=CHAIN)
    assert store._tables == before


@pytest.mark.parametrize("row", [encode(1), encode(0), encode("2"), encode(True), encode(-3), b"\xff"])
def test_a_version_that_is_none_is_corrupt(row: bytes) -> None:
    store = old()
    store.commit({("node", b"version"): row})
    with pytest.raises(BaggageCorrupt):
        version_of(store)


def test_every_version_before_this_one_has_a_migration() -> None:
    assert set(migrations.MIGRATIONS) == set(range(1, migrations.VERSION))


@pytest.mark.parametrize("seal", [None, FAST], ids=["plain", "sealed"])
def test_opening_migrates_and_leaves_a_copy_that_opens(
    tmp_path: Path, seal: durable.Seal | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "b"
    with durable.open_baggage(path, seal=seal) as baggage:
        baggage["a"] = "first"

    def upgrade(rows: Rows) -> None:
        for key, _ in rows.scan("user"):
            rows.put("user", key, encode("second"))

    with monkeypatch.context() as later:
        later.setattr(migrations.migrate, "__kwdefaults__", {"to": 2, "migrations": {1: upgrade}})
        for _ in range(2):
            with durable.open_baggage(path, seal=seal) as baggage:
                assert baggage["a"] == "second"
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["b", "b.version-1"]
    with pytest.raises(BaggageNewer):
        durable.open_baggage(path, seal=seal)
    copy = tmp_path / "b.version-1"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in copy.iterdir()} == {0o600}
    with durable.open_baggage(copy, seal=seal) as baggage:
        assert baggage["a"] == "first"
        baggage.verify()


def test_a_copy_takes_the_place_of_none_that_is_there(tmp_path: Path) -> None:
    left = tmp_path / "b.copy.new"
    left.mkdir()
    (left / "half").write_text("of a copy")
    with closing(DirectoryStore(tmp_path / "b")) as store:
        store.commit({("user", b"k"): b"v"})
        first = store.copy(".copy")
        store.commit({("user", b"k"): b"w"})
        second = store.copy(".copy")
    assert (first.name, second.name) == ("b.copy", "b.copy-2")
    assert sorted(file.name for file in first.iterdir()) == ["header.cbor", "state.db"]
    for path, value in ((first, b"v"), (second, b"w")):
        with closing(DirectoryStore(path)) as store:
            assert store.get("user", b"k") == value


def test_a_store_can_be_any(tmp_path: Path) -> None:
    """The chain asks no more of a store than the protocol has."""
    stores: list[Store] = [MemoryStore(), DirectoryStore(tmp_path / "b")]
    for store in stores:
        store.commit({("user", b"a"): b"1"})
        migrate(store, "p", lambda version: "c", to=3, migrations=CHAIN)
        assert store.scan("user") == [(b"xa", b"11")]
        store.close()
