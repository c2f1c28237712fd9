"""Sealing, unsealing and rotating, crashed at every boundary of writes and syncs: one of two seals opens all rows."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

import durable
from durable import Seal, SealedStore, SealRefused, Store
from durable.sealing import open_store
from tests.crash.disk import Disk, Image, Mark, materialise, recording
from tests.crash.script import Content, lose, read_all

SECRET = b"very-secret"
RETURNED = "returned"


def old_seal(store_id: bytes) -> bytes:
    return bytes(32)


def new_seal(store_id: bytes) -> bytes:
    return bytes(range(32))


@dataclass(frozen=True)
class Change:
    """A change of the seal, and the seals before it and after it."""

    run: Callable[[Path], None]
    old: Seal | None
    new: Seal | None


CHANGES = {
    "seal": Change(lambda path: durable.seal(path, new_seal), None, new_seal),
    "unseal": Change(lambda path: durable.unseal(path, old_seal), old_seal, None),
    "rotate": Change(lambda path: durable.rotate(path, old_seal, new_seal), old_seal, new_seal),
    "rotate the key": Change(
        lambda path: durable.rotate(path, old_seal, new_seal, rows=False), old_seal, new_seal
    ),
}


@pytest.fixture(params=CHANGES)
def change(request: pytest.FixtureRequest) -> Change:
    return CHANGES[request.param]


def filled(path: Path, seal: Seal | None, random: Random) -> Content:
    """A baggage that died: with rows in its tables and in its log."""
    content: Content = {
        (table, SECRET + random.randbytes(8)): SECRET + random.randbytes(random.choice((0, 20, 900)))
        for table in durable.TABLES
        for _ in range(6)
    }
    store = open_store(path, seal)
    store.commit(content)
    store.commit({("user", b"large"): SECRET * 2_000})
    store.scrub()
    store.commit({("user", b"large"): None, ("user", b"late"): SECRET})
    inner = store.inner if isinstance(store, SealedStore) else store
    inner._failed = "dead"  # type: ignore[attr-defined]
    store.close()
    return content | {("user", b"late"): SECRET}


def changed(path: Path, change: Change) -> Disk:
    """The record of a change, with a mark where it has returned."""
    with recording(path) as disk:
        change.run(path)
        disk.mark(RETURNED)
    return disk


def opened(path: Path, change: Change, returned: bool) -> tuple[Store, Seal | None]:
    """The store, by whichever of its seals: the new one alone once that is promised."""
    if returned:
        return open_store(path, change.new), change.new
    try:
        return open_store(path, change.old), change.old
    except SealRefused:
        return open_store(path, change.new), change.new


def recovered(
    image: Image, target: Path, change: Change, content: Content, returned: bool
) -> Exception | None:
    """What is wrong with what a crash left."""
    materialise(image, target)
    try:
        with recording(target):
            store, seal = opened(target, change, returned)
            with closing(store):
                assert read_all(store) == content, "other rows"
                assert store.verify() == len(content)
                assert not (target / "header.cbor.next").exists(), "the next header is left"
                store.commit({("user", b"after"): b"x"})
            with closing(open_store(target, seal)) as store:
                assert read_all(store) == content | {("user", b"after"): b"x"}, "other rows later"
            if seal is not None:
                told = [file.name for file in target.iterdir() if SECRET in file.read_bytes()]
                assert told == [], f"in clear in {told}"
    except Exception as error:
        return error
    except AssertionError as error:
        return ValueError(str(error))
    return None


def test_a_crash_at_every_boundary(place: Path, change: Change) -> None:
    content = filled(place / "store", change.old, Random(1))
    disk = changed(place / "store", change)
    wrong, tried, seals = [], set(), set()
    returned = False
    for upto in range(-1, len(disk.events)):
        if upto >= 0 and disk.events[upto] == Mark(RETURNED):
            returned = True
        for name in ("all", ("none", "random")[upto % 2]):
            image = disk.image(upto, lose(name, 1, upto))
            key = hash((returned, frozenset(image.items())))
            if key not in tried:
                tried.add(key)
                error = recovered(image, place / "after", change, content, returned)
                if error is not None:
                    wrong.append(f"event {upto} of {len(disk.events)}, lose {name}: {error!r}")
                seals.add((place / "after" / "header.cbor").read_bytes())
    assert wrong == []
    assert returned
    assert len(seals) == 2, "a crash has never left the old seal, or never the new one"
    assert len(tried) > 25, len(tried)


def test_a_crash_while_recovering_from_a_crash(place: Path, change: Change) -> None:
    content = filled(place / "store", change.old, Random(2))
    disk = changed(place / "store", change)
    wrong = []
    for upto in range(0, len(disk.events), len(disk.events) // 5):
        first = place / f"first-{upto}"
        materialise(disk.image(upto, Random(upto)), first)
        with recording(first) as recovery:
            store, seal = opened(first, change, returned=False)
            recovery.mark(RETURNED)
            store.close()
        shown = Change(change.run, seal, seal)
        returned = False
        for point in range(len(recovery.events)):
            returned = returned or recovery.events[point] == Mark(RETURNED)
            for name in (("all", "random")[point % 2],):
                image = recovery.image(point, lose(name, upto, point))
                # What was shown to be open with one seal is not with the other afterwards.
                error = recovered(image, place / "second", shown if returned else change, content, returned)
                if error is not None:
                    wrong.append(f"event {upto}, then {point}, lose {name}: {error!r}")
    assert wrong == []


def test_a_disk_that_fails_at_any_time(place: Path, change: Change) -> None:
    content = filled(place / "store", change.old, Random(3))
    shutil.copytree(place / "store", place / "whole")
    operations = changed(place / "whole", change).operations
    for after in range(0, operations, 2):
        copy = place / "copy"
        shutil.copytree(place / "store", copy)
        copy.chmod(0o700)
        with recording(copy) as disk:
            disk.fail(after=after, error="EIO" if after % 4 else "ENOSPC", for_ever=after % 3 == 0)
            with pytest.raises((durable.BaggageFailed, durable.BaggageCorrupt)):
                change.run(copy)
            assert disk.failed
            disk.mend()
            store, seal = opened(copy, change, returned=False)
            disk.mark(RETURNED)
            with closing(store):
                assert read_all(store) == content
        for upto in Random(after).sample(range(disk.events.index(Mark(RETURNED)), len(disk.events)), 1):
            image = disk.image(upto, lose("random", after, upto))
            error = recovered(image, place / "after", Change(change.run, seal, seal), content, True)
            assert error is None, f"{after}, {upto}: {error!r}"
        shutil.rmtree(copy)


def test_syncs_that_are_swallowed_are_found(place: Path, change: Change) -> None:
    """The checks above would notice a sync too few."""
    content = filled(place / "store", change.old, Random(4))
    with recording(place / "store", swallow_syncs=True) as disk:
        change.run(place / "store")
        disk.mark(RETURNED)
    last = len(disk.events) - 1
    assert any(
        recovered(disk.image(last, lose(name, 4, last)), place / "after", change, content, True) is not None
        for name in ("all", "random", "random 2", "random 3")
    )
