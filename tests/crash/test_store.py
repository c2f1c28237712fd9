"""The directory store, crashed at every boundary of its writes and syncs. `python -m tests.crash` does more of it."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path
from random import Random

from durable import DirectoryStore
from tests.crash.disk import Error, Mark, Rename, Sync, materialise, read, recording
from tests.crash.script import (
    crash_everywhere,
    fail_and_recover,
    kill_and_recover,
    live,
    promises,
    recover,
    short_life,
)


def new(path: Path) -> Path:
    path.mkdir(mode=0o700)
    return path


def test_a_crash_at_every_boundary(place: Path) -> None:
    with recording(new(place / "store")) as disk:
        live(place / "store", disk, Random(1), commits=150)
    there = {path: content for path, content in read(place / "store").items() if not path.endswith("-shm")}
    assert disk.image(len(disk.events) - 1, "none") == there, "the recorder missed something"
    wrong = []
    points = 0
    for found in crash_everywhere(disk, place / "after", lambda upto: ("all", ("none", "random")[upto % 2])):
        points += 1
        if found is not None:
            wrong.append(f"{found}")
    assert wrong == []
    assert points >= 2000, points


def test_a_crash_while_recovering_from_a_crash(place: Path) -> None:
    with recording(new(place / "store")) as disk:
        live(place / "store", disk, Random(2), commits=30)
    every = list(promises(disk))
    for upto, promise in every[:: len(every) // 12]:
        first = place / f"first-{upto}"
        materialise(disk.image(upto, Random(upto)), first)
        with recording(first) as recovery:
            recover(first, promise, recovery)
        ways = crash_everywhere(recovery, place / "second", lambda _: ("all", "random"), promise=promise)
        assert [found for found in ways if found is not None] == []


def test_a_killed_process_and_then_a_crash(place: Path) -> None:
    """What the next process showed is on disk, although the one before it had not synced all that it wrote."""
    disk = short_life(new(place / "store"), seed=5)
    wrong = []
    for upto in range(-1, len(disk.events)):
        later = kill_and_recover(place / "killed", disk, upto)
        returned = max(number for number, event in enumerate(later.events) if isinstance(event, Mark))
        for point in (returned, Random(upto).randrange(upto, len(later.events))):
            ways = crash_everywhere(
                later, place / "after", lambda _: ("all", "random"), first=point, last=point
            )
            wrong += [f"killed after event {upto}, {found}" for found in ways if found is not None]
    assert wrong == []


def test_a_disk_that_fails_at_any_time(place: Path) -> None:
    """What returned before is kept; and what was seen after opening again without a crash, is kept in a later one."""
    wrong = []
    for after in range(short_life(new(place / "whole"), seed=3).operations):
        error: Error = "EIO" if after % 2 else "ENOSPC"
        directory = new(place / "store")
        disk, ended = fail_and_recover(directory, after, error, after % 3 == 0, seed=3)
        assert disk.failed
        for point in Random(after).sample(range(ended, len(disk.events)), 4):
            ways = crash_everywhere(
                disk, place / "after", lambda _: ("all", "random"), first=point, last=point
            )
            wrong += [f"{error} after {after} operations, {found}" for found in ways if found is not None]
        shutil.rmtree(directory)
    assert wrong == []


def test_syncs_that_are_swallowed_are_found(place: Path) -> None:
    with recording(new(place / "store"), swallow_syncs=True) as disk:
        live(place / "store", disk, Random(4), commits=10)
    ways = crash_everywhere(disk, place / "after", lambda _: ("all", "random"))
    assert len([found for found in ways if found is not None]) > 20


def test_a_copy_is_on_disk_before_it_has_its_name(place: Path) -> None:
    """A crash leaves all of it, or nothing that looks like a copy."""
    with closing(DirectoryStore(new(place / "store"))) as store:
        store.commit({("user", b"key"): b"value"})
        with recording(place) as disk:
            store.copy(".copy")
    assert disk.events[-5:] == [
        Sync("store.copy.new/state.db"),
        Sync("store.copy.new/header.cbor"),
        Sync("store.copy.new"),
        Rename("store.copy.new", "store.copy"),
        Sync("."),
    ]
