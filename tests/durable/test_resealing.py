"""Sealing a baggage that is there, taking the seal off, and putting another on."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import durable
import durable.header
from durable import (
    BaggageCorrupt,
    BaggageFailed,
    BaggageInUse,
    BaggageRefused,
    DirectoryStore,
    KeyFile,
    Passphrase,
    SealedStore,
    SealRefused,
)
from durable.header import Header, header_bytes, read_header
from durable.records import encode
from durable.sealing import open_store
from tests.durable.support import FAST, Content, asking, content, disk_error

OTHER = Passphrase("another passphrase", opslimit=1, memlimit=8 << 20)
#: Whatever is of the content, in clear.
SECRET = b"very-secret"
ROWS: Content = {
    (table, b"%b %d" % (SECRET, number)): SECRET * (1 if number % 3 else 700)
    for table in durable.TABLES
    for number in range(12)
} | {("user", b""): b""}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "baggage"


def filled(path: Path, seal: durable.Seal | None) -> bytes:
    """Makes one in which there is something of all sorts, also what was deleted; returns its id."""
    with closing(open_store(path, seal)) as store:
        for turn in range(3):
            store.commit(ROWS)
            store.commit(dict.fromkeys(list(ROWS)[turn::5]))
            if turn == 1:
                store.scrub()
        store.commit({("object", b"%b %d" % (SECRET, number)): SECRET for number in range(3_000)})
        store.scrub()
        store.commit({("object", b"%b %d" % (SECRET, number)): None for number in range(3_000)})
        store.commit(ROWS)
        return store.store_id


def holds(path: Path, secret: bytes = SECRET) -> list[str]:
    return [file.name for file in path.iterdir() if secret in file.read_bytes()]


def expect(path: Path, seal: durable.Seal | None, store_id: bytes) -> None:
    with closing(open_store(path, seal)) as store:
        assert store.store_id == store_id
        assert store.verify() == len(ROWS)
        assert content(store) == ROWS
        store.commit({("user", b"more"): b"1"})
        store.commit({("user", b"more"): None})
    assert sorted(entry.name for entry in path.iterdir()) == [
        *("LOCK", "header.cbor", "state.db", "state.db-shm", "state.db-wal")
    ]


def test_sealing_and_unsealing(path: Path) -> None:
    store_id = filled(path, None)
    assert "state.db" in holds(path)
    durable.seal(path, FAST)
    assert holds(path) == []
    expect(path, FAST, store_id)
    assert holds(path) == []
    durable.unseal(path, FAST)
    assert "state.db" in holds(path)
    expect(path, None, store_id)


def test_rotating(path: Path, tmp_path: Path) -> None:
    seals: list[durable.Seal] = [
        FAST,
        OTHER,
        KeyFile(tmp_path / "key"),
        lambda store_id: store_id[::-1],
        FAST,
    ]
    store_id = filled(path, seals[0])
    keys = set()
    for old, new in itertools.pairwise(seals):
        durable.rotate(path, old, new)
        with pytest.raises(SealRefused):
            open_store(path, old)
        expect(path, new, store_id)
        assert holds(path) == []
        with closing(SealedStore(path, new)) as store:
            keys.add(store.rows.data_key)
    assert len(keys) == 4


def test_rotating_the_key_alone(path: Path) -> None:
    store_id = filled(path, FAST)
    with closing(SealedStore(path, FAST)) as store:
        before = store.rows.data_key, store.inner.scan("user")
    durable.rotate(path, FAST, OTHER, rows=False)
    with pytest.raises(SealRefused):
        open_store(path, FAST)
    expect(path, OTHER, store_id)
    with closing(SealedStore(path, OTHER)) as store:
        assert (store.rows.data_key, store.inner.scan("user")) == before


def test_rotating_to_the_same_seal_makes_a_new_data_key(path: Path) -> None:
    store_id = filled(path, FAST)
    with closing(SealedStore(path, FAST)) as store:
        before, rows = store.rows.data_key, store.inner.scan("user")
    durable.rotate(path, FAST, FAST)
    expect(path, FAST, store_id)
    with closing(SealedStore(path, FAST)) as store:
        assert store.rows.data_key != before
        assert not set(store.inner.scan("user")) & set(rows)


def test_an_empty_one(path: Path) -> None:
    DirectoryStore(path).close()
    durable.seal(path, FAST)
    durable.rotate(path, FAST, OTHER)
    durable.unseal(path, OTHER)
    with closing(DirectoryStore(path)) as store:
        assert store.verify() == 0


def test_no_old_header_fits_the_rows_afterwards(path: Path) -> None:
    """Not even one that its seal opens: what it holds would not open the rows."""
    filled(path, FAST)
    before = (path / "header.cbor").read_bytes()
    durable.rotate(path, FAST, FAST)
    (path / "header.cbor").write_bytes(before)
    for call in (lambda: SealedStore(path, FAST), lambda: DirectoryStore(path, sealed=True)):
        with pytest.raises(BaggageCorrupt, match="the rows belong to another header"):
            call()


def test_a_plain_header_in_place_of_a_sealed_one(path: Path) -> None:
    """Nobody is brought to write in clear into a baggage that was sealed."""
    store_id = filled(path, None)
    durable.seal(path, FAST)
    (path / "header.cbor").write_bytes(header_bytes(Header(store_id)))
    with pytest.raises(BaggageCorrupt, match="the rows belong to another header"):
        DirectoryStore(path)


def test_a_header_that_is_lost_after_a_change(path: Path) -> None:
    """Also where there are no rows: a header that is made anew would be without its seal."""
    DirectoryStore(path).close()
    durable.seal(path, FAST)
    (path / "header.cbor").unlink()
    with pytest.raises(BaggageCorrupt, match="the header is gone"):
        DirectoryStore(path)


@pytest.mark.parametrize("before", [None, FAST], ids=["plain", "sealed"])
def test_a_next_header_that_was_not_committed_goes(path: Path, before: durable.Seal | None) -> None:
    store_id = filled(path, before)
    for _ in range(2):
        for data in (b"", b"half", header_bytes(Header(bytes(32)))):
            (path / "header.cbor.next").write_bytes(data)
            expect(path, before, store_id)
        if before is not None:  # and again where a header was changed before
            durable.rotate(path, FAST, FAST)


def test_a_next_header_that_was_committed_is_taken(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_id = filled(path, None)

    def die(directory: Path) -> None:
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("durable.directory.finish_header", die)
        with pytest.raises(BaggageFailed, match="a change of the header failed"):
            durable.seal(path, FAST)
    header = read_header(path)
    assert header is not None
    assert header.sealing is None
    with pytest.raises(SealRefused):
        DirectoryStore(path)
    expect(path, FAST, store_id)
    assert holds(path) == []


@pytest.mark.parametrize(
    "at", ["BEGIN", "REPLACE INTO meta", "DELETE FROM slot", "INSERT INTO swiss", "COMMIT", "PRAGMA wal"]
)
def test_a_change_that_fails(path: Path, at: str) -> None:
    store_id = filled(path, FAST)
    failing = False

    def ask(sql: str) -> None:
        if failing and sql.startswith(at):
            raise disk_error(13, "database or disk is full")

    with asking(ask), closing(SealedStore(path, FAST)) as store:
        failing = True
        with pytest.raises(BaggageFailed, match=r"a change of the header failed, open .* again: database or"):
            store.inner.replace(Header(store.store_id), store.rows.open)
        with pytest.raises(BaggageFailed):
            store.get("user", b"")
    expect(path, None if at.startswith("PRAGMA") else FAST, store_id)


# What is refused


CHANGES: dict[str, Callable[[Path], None]] = {
    "seal": lambda path: durable.seal(path, OTHER),
    "unseal": lambda path: durable.unseal(path, FAST),
    "rotate": lambda path: durable.rotate(path, FAST, OTHER),
}


@pytest.mark.parametrize("change", CHANGES)
def test_none_is_made(tmp_path: Path, change: str) -> None:
    for place in (tmp_path, tmp_path / "nosuch"):
        with pytest.raises(BaggageRefused, match="there is no baggage in"):
            CHANGES[change](place)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", [durable.sealed_by, durable.verify_sealed, CHANGES["seal"]])
def test_one_that_is_made_in_part(path: Path, call: Callable[[Path], object]) -> None:
    """Whoever looks into it does not decide that it is a plain one."""
    SealedStore(path, FAST).close()
    (path / "header.cbor").unlink()
    with pytest.raises(BaggageRefused, match="making the baggage has stopped before its end"):
        call(path)
    assert not (path / "header.cbor").exists()
    SealedStore(path, FAST).close()
    assert durable.sealed_by(path) == "passphrase"


def test_which_seal_it_has(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(path, None)
    assert durable.sealed_by(path) is None
    durable.seal(path, FAST)
    assert durable.sealed_by(path) == "passphrase"
    with closing(SealedStore(path, FAST)):
        assert durable.sealed_by(path) == "passphrase"  # though it is in use
    durable.rotate(path, FAST, KeyFile(tmp_path / "key"))
    assert durable.sealed_by(path) == "key-file"
    monkeypatch.setattr("durable.directory.finish_header", lambda directory: None)
    durable.rotate(path, KeyFile(tmp_path / "key"), lambda store_id: bytes(32))
    monkeypatch.undo()
    header = read_header(path)
    assert header is not None
    assert header.sealing is not None
    assert header.sealing.kind == "key-file", "the header that goes was not left"
    assert durable.sealed_by(path) == "caller"


@pytest.mark.parametrize("change", CHANGES)
def test_one_that_is_in_use(path: Path, change: str) -> None:
    seal = None if change == "seal" else FAST
    with closing(open_store(path, seal)), pytest.raises(BaggageInUse):
        CHANGES[change](path)


@pytest.mark.parametrize(
    ("change", "seal", "why"),
    [
        ("seal", FAST, "is sealed already: rotate"),
        ("seal", OTHER, "is sealed already: rotate"),
        ("unseal", None, "is not sealed"),
        ("unseal", OTHER, "the seal does not open"),
        ("rotate", None, "is not sealed"),
        ("rotate", OTHER, "the seal does not open"),
    ],
)
def test_a_seal_that_is_not_as_thought(path: Path, change: str, seal: durable.Seal | None, why: str) -> None:
    store_id = filled(path, seal)
    before = (path / "header.cbor").read_bytes()
    with pytest.raises(SealRefused, match=why):
        CHANGES[change](path)
    assert (path / "header.cbor").read_bytes() == before
    expect(path, seal, store_id)


@pytest.mark.parametrize("change", ["seal", "rotate"])
def test_a_new_seal_that_is_none(path: Path, tmp_path: Path, change: str) -> None:
    """Nothing has changed if the new key is not had."""
    seal = None if change == "seal" else FAST
    store_id = filled(path, seal)
    for new, error in (
        (KeyFile(tmp_path / "nosuch" / "key"), BaggageFailed),
        (lambda store_id: b"short", SealRefused),
        ("text", TypeError),
    ):
        with pytest.raises(error):
            durable.seal(path, new) if seal is None else durable.rotate(path, seal, new)  # type: ignore[arg-type]
        expect(path, seal, store_id)


@pytest.mark.parametrize("change", CHANGES)
def test_damage_is_found_before_anything_is_written_anew(path: Path, change: str) -> None:
    """A row that is missing would not be missed any more afterwards."""
    filled(path, None if change == "seal" else FAST)
    with closing(DirectoryStore(path, sealed=True)) as store:
        store._writer.execute("DELETE FROM swiss WHERE key = (SELECT min(key) FROM swiss)")
        store._failed = "dead"
    before = (path / "header.cbor").read_bytes()
    with pytest.raises(BaggageCorrupt, match="are not the"):
        CHANGES[change](path)
    assert (path / "header.cbor").read_bytes() == before
    assert not (path / "header.cbor.next").exists()


def test_the_header_is_synced_before_the_rows_and_renamed_after_them(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(path, None)
    steps: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def syncing(fd: int) -> None:
        steps.append(f"sync {Path(os.readlink(f'/proc/self/fd/{fd}')).name}")
        fsync(fd)

    def renaming(source: Path, target: Path) -> Path:
        steps.append(f"rename {source.name}")
        return rename(source, target)

    def ask(sql: str) -> None:
        if sql in ("COMMIT", "BEGIN IMMEDIATE"):
            steps.append(sql)

    with asking(ask), closing(DirectoryStore(path)) as store:
        monkeypatch.setattr(os, "fsync", syncing)
        monkeypatch.setattr(Path, "rename", renaming)
        steps.clear()
        store.replace(Header(store.store_id))
        assert steps == [
            *("sync header.cbor.next", "sync baggage"),
            *("BEGIN IMMEDIATE", "COMMIT", "rename header.cbor.next", "sync baggage"),
        ]


def test_rows_of_a_later_version_keep_their_seal(tmp_path: Path) -> None:
    path = tmp_path / "b"
    with durable.open_baggage(path) as baggage:
        baggage.put("node", b"version", encode(9))
        baggage["k"] = 1
    with pytest.raises(durable.BaggageNewer):
        durable.seal(path, FAST)
    with closing(DirectoryStore(path)) as store:
        store.commit({("node", b"version"): None})
    durable.seal(path, FAST)
    with closing(durable.SealedStore(path, FAST)) as sealed:
        sealed.commit({("node", b"version"): encode(9)})
    with pytest.raises(durable.BaggageNewer):
        durable.unseal(path, FAST)
    with pytest.raises(durable.BaggageNewer):
        durable.rotate(path, FAST, FAST)


def test_a_reader_that_keeps_the_old_rows_in_the_files_is_told_of(tmp_path: Path) -> None:
    path = tmp_path / "b"
    with durable.open_baggage(path) as baggage:
        baggage["k"] = "plain secret"
    reader = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('BEGIN');"
            "c.execute('SELECT count(*) FROM user').fetchall(); print(flush=True); sys.stdin.read()",
            str(path / "state.db"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        with pytest.raises(durable.BaggageFailed, match="another process reads its database"):
            durable.seal(path, FAST)
        reader.communicate()
    with durable.open_baggage(path, seal=FAST) as baggage:
        assert baggage["k"] == "plain secret"
    assert not any(b"plain secret" in file.read_bytes() for file in path.iterdir())
