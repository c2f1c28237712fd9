"""The recorder under plain SQLite: what it promises to find is there, and what it should catch it catches."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from random import Random

import pytest

from tests.crash import shim
from tests.crash.disk import (
    Create,
    Disk,
    Error,
    Lose,
    Mark,
    Sync,
    SyncFailed,
    Write,
    materialise,
    read,
    recording,
)

DATABASE = "state.db"


@pytest.fixture(autouse=True, scope="module")
def reachable(tmp_path_factory: pytest.TempPathFactory) -> None:
    try:
        with recording(tmp_path_factory.mktemp("probe")):
            pass
    except shim.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = tmp_path / "place"
    directory.mkdir()
    return directory


# A ledger: one row counts the commits, the others depend on the count alone


def opened(directory: Path, synchronous: str = "FULL") -> sqlite3.Connection:
    connection = sqlite3.connect(directory / DATABASE, isolation_level=None, check_same_thread=False)
    try:
        if connection.execute("pragma journal_mode = wal").fetchone() != (
            "wal",
        ):  # it says no more of a failure
            raise sqlite3.OperationalError("no WAL")
        connection.execute(f"pragma synchronous = {synchronous}")
        connection.execute("pragma wal_autocheckpoint = 0")
        connection.execute("create table if not exists ledger (key integer primary key, value blob) strict")
    except BaseException:
        connection.close()
        raise
    return connection


@cache
def value(key: int, count: int) -> bytes:
    return Random(f"{key} {count}").randbytes(20 + 150 * (count % 7))


def counted(connection: sqlite3.Connection) -> int:
    return int(
        connection.execute("select coalesce(max(length(value)), 0) from ledger where key = 0").fetchone()[0]
    )


def commit(connection: sqlite3.Connection, count: int) -> None:
    """Key 0 holds as many bytes as there were commits; commit n writes two keys of fifty."""
    connection.execute("begin immediate")
    try:
        assert counted(connection) == count - 1
        rows = [(0, bytes(count)), *((key, value(key, count)) for key in keys(count))]
        connection.executemany("insert or replace into ledger values (?, ?)", rows)
        connection.execute("commit")
    except BaseException:
        if connection.in_transaction:
            connection.execute("rollback")
        raise


def keys(count: int) -> tuple[int, int]:
    return 1 + count * 7 % 50, 1 + count * 13 % 50


@cache
def expected(count: int) -> dict[int, bytes]:
    rows = {0: bytes(count)} if count else {}
    for number in range(1, count + 1):
        rows.update((key, value(key, number)) for key in keys(number))
    return rows


def run(directory: Path, disk: Disk, commits: int, synchronous: str = "FULL") -> None:
    """Commits with checkpoints of each kind and reopenings between them; marks what began and what ended."""
    connection = opened(directory, synchronous)
    try:
        for count in range(counted(connection) + 1, commits + 1):
            disk.mark(("begun", count))
            commit(connection, count)
            disk.mark(("done", count))
            if count % 15 == 0:
                mode = ("passive", "restart", "truncate")[count // 15 % 3]
                assert connection.execute(f"pragma wal_checkpoint({mode})").fetchone()[0] == 0
            if count % 40 == 0:
                connection.close()
                connection = opened(directory, synchronous)
    finally:
        connection.close()


def bounds(disk: Disk) -> Iterator[tuple[int, int, int]]:
    """Each point of crash, with the commits that had ended and those that had begun."""
    done = begun = 0
    yield -1, done, begun
    for upto, event in enumerate(disk.events):
        match event:
            case Mark(("begun", int(count))):
                begun = count
            case Mark(("done", int(count))):
                done = count
        yield upto, done, begun


class Lost(Exception):
    pass


def recovered(directory: Path, done: int, begun: int) -> int:
    """Opens what a crash left, and goes on with one commit. Raises what is wrong: `Lost`, or SQLite's errors."""
    with closing(opened(directory)) as connection:
        count = counted(connection)
        if not done <= count <= begun:
            raise Lost(f"{count} commits are there; {done} had returned, {begun} had begun")
        if (verdict := connection.execute("pragma integrity_check").fetchone()[0]) != "ok":
            raise Lost(verdict)
        if dict(connection.execute("select key, value from ledger")) != expected(count):
            raise Lost(f"not the state after commit {count}")
        commit(connection, count + 1)
    return count


def crash_everywhere(disk: Disk, target: Path, loses: Callable[[int], tuple[Lose, ...]]) -> list[str]:
    """What went wrong at which points. Images that were tried with the same bounds are not tried again."""
    wrong = []
    tried = set()
    for upto, done, begun in bounds(disk):
        for lose in loses(upto):
            image = disk.image(upto, lose)
            this = (hash(frozenset(image.items())), done, begun)
            if this in tried:
                continue
            tried.add(this)
            materialise(image, target)
            try:
                with recording(target):  # which spares the real syncs
                    recovered(target, done, begun)
            except (Lost, sqlite3.DatabaseError) as error:
                wrong.append(f"event {upto}, lose {lose}: {type(error).__name__}: {error}")
    return wrong


def all_ways(upto: int) -> tuple[Lose, ...]:
    return "none", "all", Random(upto), Random(-upto - 2)


# Crashes


def test_full_sync_loses_no_commit(place: Path, tmp_path: Path) -> None:
    with recording(place) as disk:
        run(place, disk, 130)
    assert len(disk.events) > 1000
    assert crash_everywhere(disk, tmp_path / "after", all_ways) == []


def test_commits_in_a_worker_thread(place: Path, tmp_path: Path) -> None:
    """The thread that has the GIL and the one that is in SQLite change places at every event."""
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            sum(range(100))

    with recording(place) as disk:
        worker = threading.Thread(target=run, args=(place, disk, 20))
        spinning = threading.Thread(target=spin)
        spinning.start()
        worker.start()
        worker.join()
        stop.set()
        spinning.join()
    assert Mark(("done", 20)) in disk.events
    assert crash_everywhere(disk, tmp_path / "after", all_ways) == []


def test_a_crash_while_recovering_from_a_crash(place: Path, tmp_path: Path) -> None:
    with recording(place) as disk:
        run(place, disk, 50)
    points = list(bounds(disk))
    for upto, done, begun in points[:: len(points) // 12]:
        first = tmp_path / f"first-{upto}"
        materialise(disk.image(upto, Random(upto)), first)
        with recording(first) as recovery:
            recovered(first, done, begun)
        for again in range(-1, len(recovery.events)):
            materialise(recovery.image(again, Random(again)), tmp_path / "second")
            with recording(tmp_path / "second"):
                recovered(tmp_path / "second", done, begun + 1)


@pytest.mark.parametrize("swallow", [False, True])
def test_commits_that_are_not_synced_are_found_lost(place: Path, tmp_path: Path, swallow: bool) -> None:
    with recording(place, swallow_syncs=swallow) as disk:
        run(place, disk, 40, "FULL" if swallow else "OFF")
    assert crash_everywhere(disk, tmp_path / "after", lambda _: ("none",)) == []
    lost = crash_everywhere(disk, tmp_path / "after", lambda _: ("all",))
    assert len(lost) > 30
    assert any("0 commits are there" in line for line in lost)
    assert len(crash_everywhere(disk, tmp_path / "after", lambda upto: (Random(upto),))) > 30


def test_normal_sync_is_found_to_lose_the_last_commits_and_nothing_else(place: Path, tmp_path: Path) -> None:
    with recording(place) as disk:
        run(place, disk, 40, "NORMAL")
    wrong = crash_everywhere(disk, tmp_path / "after", all_ways)
    assert wrong
    assert all("had returned" in line for line in wrong)


def test_what_was_there_counts_as_synced(place: Path, tmp_path: Path) -> None:
    with recording(place) as disk:
        run(place, disk, 17)
    materialise(disk.image(len(disk.events) - 1, "none"), tmp_path / "second")
    with recording(tmp_path / "second") as again:
        assert again.image(-1, "all") == read(tmp_path / "second")
        run(tmp_path / "second", again, 25)
    target = tmp_path / "after"
    for upto, done, begun in bounds(again):
        materialise(again.image(upto, "all"), target)
        with recording(target):
            recovered(target, max(done, 17), max(begun, 17))


# The recorder itself


def test_the_image_with_nothing_lost_is_the_directory(place: Path) -> None:
    with recording(place) as disk:
        connection = opened(place)
        for count in range(1, 40):
            commit(connection, count)
            there = {path: content for path, content in read(place).items() if not path.endswith("-shm")}
            assert disk.image(len(disk.events) - 1, "none") == there
            if count % 10 == 0:
                connection.execute("pragma wal_checkpoint(truncate)")
        connection.close()
    assert disk.image(len(disk.events) - 1, "none") == read(place)


def test_images_in_any_order_are_the_same(place: Path) -> None:
    with recording(place) as disk:
        run(place, disk, 20)
    points = [(upto, seed) for upto in range(-1, len(disk.events)) for seed in (1, 2)]
    in_order = {point: disk.image(point[0], Random(point[1])) for point in points}
    Random(0).shuffle(points)
    for upto, seed in points[:100]:
        assert disk.image(upto, Random(seed)) == in_order[upto, seed]
    with pytest.raises(IndexError):
        disk.image(len(disk.events), "all")


def test_only_what_is_below_the_directory_is_recorded(place: Path, tmp_path: Path) -> None:
    before = opened(place)
    (tmp_path / "other").mkdir()
    (tmp_path / "place-not").mkdir()
    with recording(place) as disk, recording(tmp_path / "other") as other:
        for directory in (tmp_path, tmp_path / "place-not"):
            with closing(opened(directory)) as connection:
                commit(connection, 1)
        commit(before, 1)
        assert disk.events == other.events == []
        with closing(opened(tmp_path / "other")) as connection:
            commit(connection, 1)
        assert disk.events == []
        assert other.events[0] == Create(DATABASE)
        with pytest.raises(ValueError, match="observed already"), recording(place / "in"):
            pass
        lasting = opened(place)
    length = len(disk.events)
    commit(lasting, 2)  # connections outlive the recording
    lasting.close()
    with closing(opened(place)) as connection:
        assert counted(connection) == 2
    before.close()
    assert len(disk.events) == length


def test_an_exception_in_the_recorder_is_an_error_of_the_disk_and_comes_out(place: Path) -> None:
    class Broken(Disk):
        def wrote(self, path: str, offset: int, data: bytes) -> None:
            raise ZeroDivisionError

    disk = Broken(place)
    with shim.observed(place, disk), pytest.raises(sqlite3.OperationalError):
        opened(place)
    with pytest.raises(BaseExceptionGroup) as caught:
        disk.end()
    assert caught.group_contains(ZeroDivisionError)


# Files that Python writes


def test_a_file_replaced_the_right_way_is_old_or_new(place: Path) -> None:
    (place / "header").write_bytes(b"old")
    with recording(place) as disk:
        disk.created("header.new")
        disk.wrote("header.new", 0, b"new")
        disk.synced("header.new")
        disk.renamed("header.new", "header")
        disk.synced(".")
    for upto in range(-1, len(disk.events)):
        loses: list[Lose] = ["none", "all", *map(Random, range(20))]
        for lose in loses:
            assert disk.image(upto, lose)["header"] in (b"old", b"new")
    assert disk.image(3, "all") == {"header": b"old", "header.new": b"new"}
    assert disk.image(3, "none") == disk.image(4, "all") == {"header": b"new"}


def test_a_file_renamed_before_its_sync_may_be_empty_or_torn(place: Path) -> None:
    (place / "header").write_bytes(b"old")
    with recording(place) as disk:
        disk.wrote("header.new", 0, bytes(1000))
        disk.renamed("header.new", "header")
        disk.synced(".")
    assert disk.image(2, "all") == {"header": b""}
    lengths = {len(disk.image(2, Random(seed))["header"]) for seed in range(50)}
    assert lengths == {0, 512, 1000}


def test_a_new_name_is_lost_until_it_is_synced(place: Path) -> None:
    (place / "in").mkdir()
    with recording(place) as disk:
        disk.created("a")
        disk.created("in/b")
        disk.wrote("c", 0, b"c")
        disk.deleted("a")
        disk.synced("c")
        disk.created("a")
        disk.synced("in")
        disk.synced(".")
    assert [sorted(disk.image(upto, "all")) for upto in range(8)] == [
        [],
        [],
        [],
        [],
        ["c"],
        ["c"],
        ["c", "in/b"],
        ["a", "c", "in/b"],
    ]
    assert {tuple(sorted(disk.image(3, Random(seed)))) for seed in range(50)} == {
        (),
        ("a",),
        ("a", "in/b"),
        ("a", "c", "in/b"),
        ("c", "in/b"),
    }


def test_random_losses_tear_at_sectors_and_keep_what_is_synced(place: Path) -> None:
    with recording(place) as disk:
        disk.wrote("f", 0, b"a" * 2048)
        disk.synced("f")
        disk.synced(".")
        disk.wrote("f", 100, b"b" * 1500)
        disk.truncated("f", 1800)
    seen = set()
    for seed in range(200):
        content = disk.image(4, Random(seed))["f"]
        assert content.startswith(b"a" * 100)
        assert len(content) in (1800, 2048)
        end = 100 + content.count(b"b")
        assert content == b"a" * 100 + b"b" * (end - 100) + b"a" * (len(content) - end)
        seen.add((end, len(content)))
    assert seen == {(end, length) for end in (100, 512, 1024, 1536, 1600) for length in (1800, 2048)}


def test_a_failed_sync_is_not_made_good_by_the_next(place: Path) -> None:
    (place / "f").write_bytes(b"....")
    with recording(place) as disk:
        disk.wrote("f", 0, b"ab")
        disk.sync_failed("f")
        disk.wrote("f", 1, b"cd")
        disk.synced("f")
        disk.wrote("f", 3, b"e")
    assert disk.image(3, "none") == {"f": b"acd."}
    assert disk.image(3, "all") == disk.image(4, "all") == {"f": b".cd."}
    assert {disk.image(4, Random(seed))["f"] for seed in range(50)} == {b".cd.", b".cde", b"acd.", b"acde"}


# Disks that fail


def operations(place: Path, commits: int) -> int:
    with recording(place) as disk:
        run(place, disk, commits)
    return disk.operations


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("for_ever", [True, False])
def test_a_disk_that_fails_at_any_time_keeps_the_commits_before(
    place: Path, tmp_path: Path, error: Error, for_ever: bool
) -> None:
    for after in range(operations(place, 18)):
        directory = tmp_path / f"{after}"
        directory.mkdir()
        with recording(directory) as disk:
            disk.fail(after=after, error=error, for_ever=for_ever)
            try:
                run(directory, disk, 18)
            except sqlite3.OperationalError:
                pass
            else:  # closing a connection says nothing of a checkpoint that failed
                assert Mark(("done", 18)) in disk.events
        assert disk.failed >= 1
        upto, done, begun = list(bounds(disk))[-1]
        for lose in all_ways(after):
            materialise(disk.image(upto, lose), tmp_path / "after")
            with recording(tmp_path / "after"):
                recovered(tmp_path / "after", done, begun)
        with recording(directory):  # and without a crash
            recovered(directory, done, begun)


def test_sqlite_goes_on_after_one_failed_sync(place: Path, tmp_path: Path) -> None:
    """It writes the frames again, which a retried sync alone would not have saved."""
    with recording(place) as disk:
        connection = opened(place)
        commit(connection, 1)
        for after in range(100):
            disk.fail(after=after, error="EIO", for_ever=False)
            with pytest.raises(sqlite3.OperationalError):
                commit(connection, 2)
            if SyncFailed(f"{DATABASE}-wal") in disk.events:
                break
        commit(connection, 2)
        materialise(disk.image(len(disk.events) - 1, "all"), tmp_path / "after")
        connection.close()
    recovered(tmp_path / "after", 2, 2)


def test_half_a_write_is_done_when_the_disk_is_full(place: Path) -> None:
    with recording(place) as disk:
        connection = opened(place)
        connection.execute("begin")
        connection.execute("insert into ledger values (0, x'00')")
        disk.fail(after=1, error="ENOSPC", for_ever=True)
        with pytest.raises(sqlite3.OperationalError, match="full"):
            connection.execute("commit")
        writes = [event for event in disk.events if isinstance(event, Write)]
        assert len(writes[-1].data) == 2048
        disk.mend()
        if connection.in_transaction:
            connection.execute("rollback")
        commit(connection, 1)
        assert disk.events[-1] == Sync(f"{DATABASE}-wal")
        connection.close()
