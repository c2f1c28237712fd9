"""The directory: its owner, its files, its making, and disks that fail."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

import durable.directory
import durable.encoding
import durable.header
import durable.place
from durable import (
    BaggageCorrupt,
    BaggageFailed,
    BaggageInUse,
    BaggageNewer,
    BaggageRefused,
    DirectoryStore,
)
from durable.header import Header, write_header
from durable.place import filesystem
from durable.records import encode
from durable.store import row_name
from tests.durable.support import asking, content, crashed, disk_error, reopened, unsynced

ROOT = Path(__file__).resolve().parents[2]
FULL = (sqlite3.SQLITE_FULL, "database or disk is full")
SYNC = (sqlite3.SQLITE_IOERR_FSYNC, "disk I/O error")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "baggage"


# The owner


def test_one_owner_at_a_time(path: Path) -> None:
    with closing(DirectoryStore(path)), pytest.raises(BaggageInUse, match=f"process {os.getpid()}") as caught:
        DirectoryStore(path)
    assert caught.value.pid == os.getpid()
    DirectoryStore(path).close()


def test_another_process_owns_it_until_it_dies(path: Path) -> None:
    program = (
        "import sys, durable\n"
        "store = durable.DirectoryStore(sys.argv[1])\n"
        "store.commit({('user', b'k'): b'theirs'})\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"open\n"
        with pytest.raises(BaggageInUse) as caught:
            DirectoryStore(path)
        assert caught.value.pid == owner.pid
        owner.kill()
    pid, boot = (path / "LOCK").read_text().splitlines()
    assert int(pid) == owner.pid
    machine = Path("/proc/sys/kernel/random/boot_id")  # of Linux
    assert boot == (machine.read_text().strip() if machine.exists() else "-")
    with closing(DirectoryStore(path)) as store:
        assert store.get("user", b"k") == b"theirs"
        assert int((path / "LOCK").read_text().splitlines()[0]) == os.getpid()


def test_a_lock_file_that_nobody_holds(path: Path) -> None:
    DirectoryStore(path).close()
    (path / "LOCK").write_text("1\n" * 100)
    with closing(DirectoryStore(path)):
        pid, _ = (path / "LOCK").read_text().splitlines()
        assert pid == str(os.getpid())
        (path / "LOCK").write_text("")  # as between taking the lock and writing
        with pytest.raises(BaggageInUse, match="by a process") as caught:
            DirectoryStore(path)
        assert caught.value.pid is None


def test_closing_unlocks_though_a_child_has_the_file(path: Path) -> None:
    store = DirectoryStore(path)
    waiting, ending = os.pipe()
    child = os.fork()
    if not child:
        os.close(ending)
        os.read(waiting, 1)
        os._exit(0)
    os.close(waiting)
    try:
        store.close()
        DirectoryStore(path).close()
    finally:
        os.close(ending)
        os.waitpid(child, 0)


def test_a_failed_opening_unlocks(path: Path) -> None:
    DirectoryStore(path).close()
    (path / "header.cbor").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(BaggageCorrupt):
            DirectoryStore(path)


# The place


def test_no_directory_is_named() -> None:
    with pytest.raises(BaggageRefused, match=r"no directory is named: '\.' is the current one"):
        DirectoryStore("")


def test_it_is_private(path: Path) -> None:
    DirectoryStore(path / "inner").close()
    assert stat.S_IMODE((path / "inner").stat().st_mode) == 0o700
    (path / "inner").chmod(0o750)
    with pytest.raises(BaggageRefused, match="chmod 700"):
        DirectoryStore(path / "inner")


def test_a_directory_with_something_else_in_it(path: Path) -> None:
    path.mkdir(mode=0o700)
    (path / "letters.txt").touch()
    with pytest.raises(BaggageRefused, match=r"letters\.txt"):
        DirectoryStore(path)
    assert [entry.name for entry in path.iterdir()] == ["letters.txt"]


def test_a_file_in_its_place(path: Path) -> None:
    path.touch()
    with pytest.raises(BaggageFailed, match="cannot open"):
        DirectoryStore(path)


def test_names_that_mean_something_to_others(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.mkdir()
    monkeypatch.chdir(path)
    with closing(DirectoryStore("a b?mode=ro#c%20é'")) as store:
        monkeypatch.chdir("/")
        store.commit({("user", b"k"): b"v"})
        assert store.verify() == 1
    assert [entry.name for entry in path.iterdir()] == ["a b?mode=ro#c%20é'"]


def test_a_filesystem_without_shared_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(path: Path, mode: str) -> sqlite3.Connection:
        return sqlite3.connect(f"{path.as_uri()}?mode={mode}&vfs=unix-none", uri=True, isolation_level=None)

    monkeypatch.setattr(durable.directory, "_connect", connect)
    with pytest.raises(BaggageRefused, match="shared memory"):
        DirectoryStore(path)


def test_network_filesystems(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mounts"
    place = str(path).replace("/", "/").replace(" ", "\\040")
    mounts.write_text(
        "22 1 254:0 / / rw shared:1 - ext4 /dev/vda rw\n"
        f"23 22 0:1 / {place} rw - ext4 /dev/vdb rw\n"
        f"24 22 0:2 / {place}-other rw - nfs4 server:/a rw\n"
        f"25 22 0:3 / {place}/a\\040b rw shared:2 master:1 - nfs4 server:/b rw\n"
        f"26 22 0:4 / {place}/c rw - nfs server:/c rw\n"
        f"27 22 0:5 / {place}/c rw - tmpfs none rw\n"
    )
    monkeypatch.setattr(durable.place, "_MOUNTS", mounts)
    assert filesystem(path) == "ext4"
    assert filesystem(path / "a b" / "c") == "nfs4"
    assert filesystem(path / "c") == "tmpfs"
    with pytest.raises(BaggageRefused, match=r"network filesystem \(nfs4\)"):
        DirectoryStore(path / "a b")
    monkeypatch.setattr(durable.place, "_MOUNTS", tmp_path / "absent")
    assert filesystem(path) == ""


# The files


def test_a_later_format(path: Path) -> None:
    with closing(DirectoryStore(path)) as store:
        write_header(path, Header(store.store_id), number=2)
    with pytest.raises(BaggageNewer, match="format 2, this version reads 1") as caught:
        DirectoryStore(path)
    assert (caught.value.found, caught.value.known) == (2, 1)


@pytest.mark.parametrize(
    ("number", "body"), [(0, {}), (1, {"more": 1}), (1, {"sealing": {"salt": b""}}), (1, {"store": "text"})]
)
def test_a_header_that_no_version_has_written(path: Path, number: int, body: dict[str, Any]) -> None:
    with closing(DirectoryStore(path)) as store:
        data = encode({"store": store.store_id, "sealing": None} | body)
    written = ["ocapn-baggage", number, data, durable.header._digest(number, data)]
    (path / "header.cbor").write_bytes(encode(written))
    with pytest.raises(BaggageCorrupt, match="not a header of this format"):
        DirectoryStore(path)


@pytest.mark.parametrize("name", ["header.cbor", "state.db"])
def test_a_missing_file(path: Path, name: str) -> None:
    with closing(DirectoryStore(path)) as store:
        store.commit({("user", b"k"): b"1"})
    (path / name).unlink()
    with pytest.raises(BaggageCorrupt, match="gone") as caught:
        DirectoryStore(path)
    assert caught.value.file == name
    assert not (path / name).exists()


def test_a_missing_header_though_all_rows_are_in_the_log(path: Path, tmp_path: Path) -> None:
    with closing(DirectoryStore(path)) as store:
        store.commit({("user", b"k"): b"1"})
        copy = crashed(path, tmp_path / "copy")
    (copy / "header.cbor").unlink()
    with pytest.raises(BaggageCorrupt, match="the header is gone"):
        DirectoryStore(copy)
    assert not (copy / "header.cbor").exists()


def test_swapped_files(path: Path, tmp_path: Path) -> None:
    for place in (path, tmp_path / "other"):
        DirectoryStore(place).close()
    shutil.copy(tmp_path / "other" / "state.db", path / "state.db")
    with pytest.raises(BaggageCorrupt, match="another header"):
        DirectoryStore(path)


@pytest.mark.parametrize(
    "statement",
    [
        "PRAGMA application_id=7",
        "PRAGMA user_version=2",
        "PRAGMA journal_mode=DELETE",
        "CREATE TABLE more (x)",
        "CREATE TRIGGER t AFTER INSERT ON user BEGIN DELETE FROM user; END",
        "DROP TABLE user",
        "DELETE FROM meta WHERE key = x'73746f7265'",
        "DELETE FROM meta WHERE key = x'636f6e74656e74'",
        "UPDATE meta SET value = 'text'",
        "UPDATE meta SET digest = x'00'",
        "INSERT INTO log VALUES (3, x'', x'')",
        "INSERT INTO log VALUES (1, x'', x'00')",
    ],
)
def test_a_database_that_is_not_ours(path: Path, statement: str) -> None:
    DirectoryStore(path).close()
    with closing(sqlite3.connect(path / "state.db")) as connection, connection:
        connection.execute(statement)
    with pytest.raises(BaggageCorrupt):
        DirectoryStore(path)


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("UPDATE user SET value = x'00' WHERE key = x'62'", "not what was written"),
        ("UPDATE user SET value = 'b' WHERE key = x'62'", "not what was written"),
        ("UPDATE user SET key = x'63' WHERE key = x'62'", "not what was written"),
        ("UPDATE user SET value = CAST(x'ff' AS TEXT) WHERE key = x'62'", "UTF-8"),
        ("INSERT INTO object SELECT * FROM user", "not what was written"),
        ("DELETE FROM user WHERE key = x'62'", "the 1 rows found are not the 2 written"),
        ("UPDATE user SET key = 'b' WHERE key = x'62'", "the 1 rows found are not the 2 written"),
    ],
)
def test_rows_that_somebody_changed(path: Path, statement: str, why: str) -> None:
    with closing(DirectoryStore(path)) as store:
        store.commit({("user", b"a"): b"a", ("user", b"b"): b"b"})
    with closing(sqlite3.connect(path / "state.db")) as connection, connection:
        connection.execute(statement)
    with closing(DirectoryStore(path)) as store:
        with pytest.raises(BaggageCorrupt, match=why):
            store.verify()
        assert store.get("user", b"a") == b"a"


def page_of(path: Path, table: str) -> tuple[bytearray, int]:
    """The database file, and where the root page of a table begins in it."""
    with closing(sqlite3.connect(path / "state.db")) as connection:
        found = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).fetchone()
    return bytearray((path / "state.db").read_bytes()), (found[0] - 1) * 4096


def test_rows_out_of_order(path: Path) -> None:
    with closing(DirectoryStore(path)) as store:
        store.commit({("user", b"a"): b"a", ("user", b"b"): b"b"})
    data, page = page_of(path, "user")
    data[page + 8 : page + 12] = (
        data[page + 10 : page + 12] + data[page + 8 : page + 10]
    )  # pointers to the rows
    (path / "state.db").write_bytes(data)
    with closing(DirectoryStore(path)) as store, pytest.raises(BaggageCorrupt, match="out of order"):
        store.verify()


def test_a_key_that_became_text(path: Path) -> None:
    with closing(DirectoryStore(path)) as store:
        store.commit({("user", b"a"): b"a", ("user", b"b"): b"b"})
    data, page = page_of(path, "user")
    kinds = data.index(
        bytes([4, 14, 14, 44]) + b"bb", page
    )  # of the columns: BLOB of 1 byte twice, of 16 bytes
    data[kinds + 1] = 15  # TEXT of 1 byte
    (path / "state.db").write_bytes(data)
    with closing(DirectoryStore(path)) as store:
        for call in (lambda: store.scan("user"), store.verify):
            with pytest.raises(BaggageCorrupt, match="a key is no bytes"):
                call()


def test_a_page_in_use_that_is_listed_as_free(path: Path) -> None:
    """Every row reads well, but the next commits would overwrite some."""
    with closing(DirectoryStore(path)) as store:
        store.commit({("slot", b"k"): b"x" * 50_000, ("user", b"k"): b"v"})
        store.commit({("slot", b"k"): None})
    data, page = page_of(path, "user")
    free = (int.from_bytes(data[32:36], "big") - 1) * 4096
    assert int.from_bytes(data[free + 4 : free + 8], "big") > 5
    data[free + 8 : free + 12] = (page // 4096 + 1).to_bytes(4, "big")
    (path / "state.db").write_bytes(data)
    with closing(DirectoryStore(path)) as store:
        assert content(store) == {("user", b"k"): b"v"}
        with pytest.raises(BaggageCorrupt, match="disorder"):
            store.verify()


def test_an_error_names_the_row_and_not_its_key(path: Path) -> None:
    with closing(DirectoryStore(path)) as store:
        store.commit({("user", b"secret-key"): b"secret-value"})
    with closing(sqlite3.connect(path / "state.db")) as connection, connection:
        connection.execute("UPDATE user SET digest = x'00'")
    with closing(DirectoryStore(path)) as store:
        for call in (lambda: store.get("user", b"secret-key"), lambda: store.scan("user"), store.verify):
            with pytest.raises(BaggageCorrupt) as caught:
                call()
            assert (caught.value.file, caught.value.table) == ("state.db", "user")
            assert caught.value.row == row_name(b"secret-key")
            assert "secret" not in str(caught.value)


def test_settings(path: Path) -> None:
    with closing(DirectoryStore(path)) as store:
        wanted = {"synchronous": 2, "trusted_schema": 0, "secure_delete": 1, "wal_autocheckpoint": 0}
        wanted |= {"cell_size_check": 1, "fullfsync": 1, "user_version": 1, "application_id": 0x4F436170}
        for name, value in wanted.items():
            assert store._writer.execute(f"PRAGMA {name}").fetchall() == [(value,)], name
        assert store._writer.execute("PRAGMA journal_mode").fetchall() == [("wal",)]
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            store._reader.execute("DELETE FROM user")


def test_the_logs_do_not_grow_without_end(path: Path) -> None:
    with closing(DirectoryStore(path)) as store:
        moved = set()
        for number in range(60):
            store.commit({("user", b"%d" % (number % 2)): os.urandom(250_000)})
            moved.add(store._moved)
            assert store._last - store._moved < 9
            assert (path / "state.db-wal").stat().st_size < 6 << 20
        assert len(moved) == 7
        assert store.verify() == 2


def log_rows(path: Path) -> int:
    with closing(sqlite3.connect(path / "state.db")) as connection:
        return int(connection.execute("SELECT count(*) FROM log").fetchone()[0])


def test_what_is_read_is_the_same_before_and_after_it_moves_to_the_tables(path: Path, tmp_path: Path) -> None:
    """Rows of the tables, of the log, of both, removed in the log; found by `get`, and by `scan` with limits."""
    with closing(DirectoryStore(path)) as store:
        store.commit({("user", b"%d" % number): b"old" for number in range(6)})
        store.scrub()
        store.commit({("user", b"1"): b"new", ("user", b"2"): None, ("user", b"7"): b"new"})
        store.commit({("user", b"7"): None, ("user", b"8"): b"new", ("object", b"1"): b"other"})

        def seen() -> list[object]:
            found: list[object] = [store.get("user", b"%d" % number) for number in range(9)]
            for after in (None, b"0", b"1", b"2", b"8"):
                found += [store.scan("user", b"", after, limit) for limit in (None, 1, 2, 3, 9)]
            return found

        before = seen()
        copy = crashed(path, tmp_path / "copy")
        store.scrub()
        assert seen() == before
        assert content(store) == {("user", b"%d" % number): b"old" for number in (0, 3, 4, 5)} | {
            ("user", b"1"): b"new",
            ("user", b"8"): b"new",
            ("object", b"1"): b"other",
        }
        assert log_rows(copy) == 2
        with closing(DirectoryStore(copy)) as other:
            assert content(other) == content(store)
            assert other.verify() == 7
        assert log_rows(copy) == 0


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("DELETE FROM log WHERE number = 2", "commit 2 is missing"),
        ("DELETE FROM log WHERE number = 1", "commit 1 is missing"),
        ("UPDATE log SET value = x'00' WHERE number = 2", "not what was written"),
        ("UPDATE log SET value = (SELECT value FROM log WHERE number = 1)", "not what was written"),
        ("UPDATE log SET number = number + 1 WHERE number = 3", "commit 3 is missing"),
        ("INSERT INTO log VALUES (4, x'', x'')", "not what was written"),
    ],
)
def test_commits_in_the_log_that_somebody_changed(
    path: Path, tmp_path: Path, statement: str, why: str
) -> None:
    with closing(DirectoryStore(path)) as store:
        for value in (b"1", b"2", b"3"):
            store.commit({("user", b"k"): value})
        copy = crashed(path, tmp_path / "copy")
    with closing(sqlite3.connect(copy / "state.db")) as connection, connection:
        connection.execute(statement)
    with pytest.raises(BaggageCorrupt, match=why) as caught:
        DirectoryStore(copy)
    assert caught.value.table == "log"


def test_no_read_is_open_while_the_log_is_emptied(path: Path) -> None:
    store: DirectoryStore | None = None
    checkpoints = []

    def ask(sql: str) -> None:
        if store is not None and "checkpoint(" in sql:
            checkpoints.append(store._reading._is_owned())  # type: ignore[attr-defined]  # of RLock

    with asking(ask):
        store = DirectoryStore(path)
        store.commit({("user", b"k"): b"x" * (5 << 20)})
        store.scrub()
        store.close()
    assert checkpoints == [True] * 3


def test_a_page_costs_what_is_on_it(path: Path) -> None:
    with closing(DirectoryStore(path)) as store:
        store.commit({("user", b"%06d" % number): b"" for number in range(20_000)})
        steps: list[None] = []
        store._reader.set_progress_handler(lambda: steps.append(None), 100)
        assert len(store.scan("user", b"0", b"019000", 10)) == 10
        assert len(steps) < 10


def test_scrubbing_erases_what_was_deleted(path: Path) -> None:
    with closing(DirectoryStore(path)) as store:
        store.commit({("user", b"k"): b"secret" * 2_000})
        store.commit({("user", b"k"): None})
        files = [path / "state.db", path / "state.db-wal"]
        assert any(b"secret" in file.read_bytes() for file in files)
        store.scrub()
        assert not any(b"secret" in file.read_bytes() for file in files)
        assert files[1].stat().st_size == 0


def test_closing_empties_the_log(path: Path) -> None:
    with closing(DirectoryStore(path)) as store:
        store.commit({("user", b"k"): b"v"})
    assert (path / "state.db-wal").stat().st_size == 0


# Making it


@contextmanager
def stopping(after: int) -> Iterator[Callable[[], int]]:
    """Ends the process, without a word, before the step `after` of those that touch the disk."""
    steps = 0

    def step(*_: object) -> None:
        nonlocal steps
        if steps == after:
            os._exit(7)
        steps += 1

    def stepping(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            step()
            return real(*args, **keywords)

        return call

    with unsynced(), asking(step), pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", step)
        for name in ("mkdir", "write", "rename", "open", "ftruncate", "unlink"):
            patch.setattr(os, name, stepping(getattr(os, name)))
        patch.setattr(fcntl, "flock", stepping(fcntl.flock))
        yield lambda: steps


def test_a_directory_half_made_is_made_again(tmp_path: Path) -> None:
    after, code = 0, 7
    while code == 7:
        path = tmp_path / str(after) / "baggage"
        child = os.fork()
        if not child:
            with stopping(after):
                DirectoryStore(path)
                os._exit(0)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        for _ in range(2):
            with unsynced(), closing(DirectoryStore(path)) as store:
                assert content(store) == {}
                assert store.verify() == 0
        assert sorted(entry.name for entry in path.iterdir() if ".new" in entry.name) == []
        after += 1
    assert code == 0
    assert after > 40


def test_the_database_has_its_name_before_the_header_does(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On disk, not only in this process: else a crash of the machine may leave a header without a database."""
    steps: list[str] = []
    rename = os.rename
    for module in (durable.directory, durable.place):
        monkeypatch.setattr(module, "sync", lambda directory: steps.append("sync"))

    def renaming(source: Path, target: Path) -> None:
        steps.append(f"rename to {Path(target).name}")
        rename(source, target)

    monkeypatch.setattr(os, "rename", renaming)
    DirectoryStore(path).close()
    assert steps == ["sync", "sync", "rename to state.db", "sync", "rename to header.cbor", "sync"]


# Disks that fail


@pytest.mark.parametrize(("code", "text"), [FULL, SYNC])
@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize(
    "at",
    [
        "INSERT INTO log",
        "BEGIN",
        "SELECT value, digest",
        "REPLACE INTO user",
        "DELETE FROM user",
        "REPLACE INTO meta",
        "DELETE FROM log",
        "COMMIT",
    ],
)
def test_a_commit_that_fails(path: Path, code: int, text: str, once: bool, at: str) -> None:
    """Where it fails as commits are moved to the tables, it is in the log."""
    failing = False

    def ask(sql: str) -> None:
        nonlocal failing
        if failing and sql.startswith(at):
            failing = not once
            raise disk_error(code, text)

    with asking(ask):
        store = DirectoryStore(path, log_size=0)
        store.commit({("user", b"a"): b"1", ("user", b"b"): b"1"})
        failing = True
        for _ in range(2):
            with pytest.raises(BaggageFailed, match="a commit failed, open .* again: " + text):
                store.commit({("user", b"a"): b"2", ("user", b"b"): None})
            for call in (
                lambda: store.get("user", b"a"),
                lambda: store.scan("user"),
                store.verify,
                store.scrub,
            ):
                with pytest.raises(BaggageFailed):
                    call()
        before = [(path / name).read_bytes() for name in ("state.db", "state.db-wal")]
        store.close()
        # Neither the sync nor a checkpoint is tried once more.
        assert [(path / name).read_bytes() for name in ("state.db", "state.db-wal")] == before
    with closing(DirectoryStore(path)) as store:
        appended = at != "INSERT INTO log"
        assert content(store) == (
            {("user", b"a"): b"2"} if appended else {("user", b"a"): b"1", ("user", b"b"): b"1"}
        )
        assert store.verify() == (1 if appended else 2)


def test_a_sync_that_fails_after_the_commit_was_written(path: Path) -> None:
    """The commit may be there when the baggage is opened again, but whole."""

    failing = False

    def ask(sql: str) -> None:
        nonlocal failing
        if failing and sql.startswith("INSERT INTO log"):
            failing = False
            value = durable.encoding.logged(changes)
            digest = store._digest("log", (1).to_bytes(8, "big"), value)
            store._writer.execute(sql, (1, value, digest))
            raise disk_error(*SYNC)

    changes = {("user", b"a"): b"1", ("slot", b"b"): b"2"}
    with asking(ask):
        store = DirectoryStore(path)
        failing = True
        with pytest.raises(BaggageFailed, match="disk I/O error"):
            store.commit(changes)
        store.close()
    with closing(DirectoryStore(path)) as store:
        assert content(store) == changes
        assert store.verify() == 2


def test_opening_moves_the_log_into_the_database(path: Path, tmp_path: Path) -> None:
    with closing(DirectoryStore(path)) as store:
        store.commit({("user", b"k"): b"v"})
        copy = crashed(path, tmp_path / "copy")
    assert (copy / "state.db-wal").stat().st_size
    with closing(DirectoryStore(copy)) as store:
        assert (copy / "state.db-wal").stat().st_size == 0
        assert store.get("user", b"k") == b"v"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (disk_error(sqlite3.SQLITE_IOERR_READ, "disk I/O error"), "disk I/O error"),
        (MemoryError(), "out of memory"),
    ],
)
def test_a_read_that_fails(path: Path, error: Exception, text: str) -> None:
    failing = False

    def ask(sql: str) -> None:
        if failing and sql.startswith("SELECT value"):
            raise error

    with asking(ask):
        store = DirectoryStore(path)
        failing = True
        with pytest.raises(BaggageFailed, match=text):
            store.get("user", b"k")
        failing = False
        with pytest.raises(BaggageFailed, match=text):
            store.commit({("user", b"k"): b"v"})
        store.close()


@pytest.mark.parametrize(
    "code", [sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_CORRUPT_INDEX]
)
def test_a_read_that_meets_damage_leaves_the_rest(path: Path, code: int) -> None:
    failing = False

    def ask(sql: str) -> None:
        if failing and sql.startswith("SELECT value"):
            raise disk_error(code, "broken")

    with asking(ask), closing(DirectoryStore(path)) as store:
        failing = True
        with pytest.raises(BaggageCorrupt, match=r"state\.db: broken"):
            store.get("user", b"k")
        failing = False
        store.commit({("user", b"k"): b"v"})


@pytest.mark.parametrize("end", ["scrub", "close"])
def test_a_checkpoint_that_fails(path: Path, end: str) -> None:
    failing = False

    def ask(sql: str) -> None:
        if failing and "checkpoint(" in sql:
            raise disk_error(*FULL)

    with asking(ask):
        store = DirectoryStore(path)
        store.commit({("user", b"k"): b"v"})
        failing = True
        with pytest.raises(BaggageFailed, match="a checkpoint failed"):
            getattr(store, end)()
        store.close()
    with closing(DirectoryStore(path)) as store:
        assert content(store) == {("user", b"k"): b"v"}


def test_memory_that_ends_in_a_commit(path: Path) -> None:
    def ask(sql: str) -> None:
        if failing and sql.startswith("INSERT INTO log"):
            raise failing.pop()

    failing: list[BaseException] = []
    with asking(ask):
        for error, raised in ((MemoryError(), BaggageFailed), (KeyboardInterrupt(), KeyboardInterrupt)):
            store = DirectoryStore(path)
            failing.append(error)
            with pytest.raises(raised):
                store.commit({("user", b"k"): b"v"})
            with pytest.raises(BaggageFailed):
                store.commit({("user", b"k"): b"v"})
            store.close()


@contextmanager
def file_size(limit: int) -> Iterator[None]:
    """No file grows beyond `limit` bytes: real writes fail, with the kernel's own error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", range(0, 80_000, 5_000))
def test_writes_that_the_system_refuses(path: Path, room: int) -> None:
    store = DirectoryStore(path)
    store.commit({("user", b"k"): b"before"})
    size = (path / "state.db-wal").stat().st_size
    with file_size(size + room), pytest.raises(BaggageFailed, match="a commit failed"):
        store.commit(
            {("user", b"%d" % number): b"x" * 30_000 for number in range(3)} | {("user", b"k"): b"after"}
        )
    store.close()
    with closing(DirectoryStore(path)) as store:
        assert content(store) == {("user", b"k"): b"before"}
        store.commit({("user", b"k"): b"after"})
        assert store.verify() == 1


@pytest.mark.parametrize("limit", [0, 1, 50, 4096, 20_000, 40_000])
def test_a_directory_that_cannot_be_made_for_want_of_room(path: Path, limit: int) -> None:
    with file_size(limit), pytest.raises(BaggageFailed):
        DirectoryStore(path)
    with closing(DirectoryStore(path)) as store:
        assert store.verify() == 0


def test_a_commit_is_there_after_its_owner_died(path: Path) -> None:
    store = DirectoryStore(path)
    store.commit({("user", b"k"): b"v"})
    with closing(reopened(store)) as store:
        assert store.get("user", b"k") == b"v"
