"""A seeded life of a directory store on a recorded disk, and the check of what a crash leaves of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from durable.directory import DirectoryStore
from durable.errors import BaggageFailed
from durable.store import TABLES, Store
from tests.crash.disk import Disk, Error, Event, Image, Lose, Mark, materialise, recording

Row = tuple[str, bytes]
Content = dict[Row, bytes]

#: Commits in the lives that end with a failing disk.
SHORT = 12
#: So that commits are moved to the tables every dozen or so.
LOG_SIZE = 60_000
#: Every commit writes its number here.
NUMBER: Row = ("user", b"number")


@dataclass(frozen=True)
class Opened:
    """A store has come up."""

    store_id: bytes


@dataclass(frozen=True)
class Begun:
    """A commit is about to begin; `content` is what it would make of the store."""

    number: int
    content: Content


@dataclass(frozen=True)
class Returned:
    """A commit, or all there was when a store came up again, was told to be on disk."""

    number: int


class Wrong(Exception):
    """What a crash left is not what was promised."""


def changes(random: Random, number: int) -> dict[Row, bytes | None]:
    """What commit `number` writes: often one row, sometimes many; seldom values of many pages."""
    made: dict[Row, bytes | None] = {}
    for _ in range(random.choice((0, 1, 1, 1, 1, 2, 2, 12))):
        row = random.choice(TABLES), b"%02d" % random.randrange(10)
        size = random.choice((0, 10, 10, 100, 100, 100, 1_000, 6_000))
        made[row] = None if random.random() < 0.4 else random.randbytes(size)
    made[NUMBER] = b"%d" % number
    return made


def after(content: Content, made: dict[Row, bytes | None]) -> Content:
    content = dict(content)
    for row, value in made.items():
        if value is None:
            content.pop(row, None)
        else:
            content[row] = value
    return content


def commit(disk: Disk, store: Store, content: Content, made: dict[Row, bytes | None]) -> Content:
    content = after(content, made)
    number = int(content[NUMBER])
    disk.mark(Begun(number, content))
    store.commit(made)
    disk.mark(Returned(number))
    return content


def live(directory: Path, disk: Disk, random: Random, commits: int, content: Content | None = None) -> None:
    """Makes or opens a store and commits to it, with scrubs and reopenings between. Raises what the store raises."""
    content = content or {}
    number = int(content.get(NUMBER, b"0"))
    store = DirectoryStore(directory, log_size=LOG_SIZE)
    try:
        disk.mark(Opened(store.store_id))
        for _ in range(commits):
            number += 1
            content = commit(disk, store, content, changes(random, number))
            chance = random.random()
            if chance < 0.06:
                store.scrub()
            elif chance < 0.1:
                store.close()
                store = DirectoryStore(directory, log_size=LOG_SIZE)
                disk.mark(Opened(store.store_id))
        store.close()
    finally:
        store.close()


def read_all(store: Store) -> Content:
    return {(table, key): value for table in TABLES for key, value in store.scan(table)}


@dataclass(frozen=True)
class Promise:
    """What was promised at a point: the commit that must be there, and those that may."""

    store_id: bytes | None = None
    returned: int = 0
    contents: tuple[tuple[int, Content], ...] = ((0, {}),)

    def after(self, event: Event) -> Promise:
        match event:
            case Mark(Opened(store_id)):
                return Promise(store_id, self.returned, self.contents)
            case Mark(Begun(number, content)):
                return Promise(self.store_id, self.returned, (*self.contents, (number, content)))
            case Mark(Returned(number)):
                kept = tuple((n, content) for n, content in self.contents if n >= number)
                return Promise(self.store_id, number, kept)
        return self

    def check(self, store: Store) -> Content:
        """Raises Wrong, or what the store raises."""
        if self.store_id is not None and store.store_id != self.store_id:
            raise Wrong("it is another store")
        rows = store.verify()
        content = read_all(store)
        if rows != len(content):
            raise Wrong(f"verify counts {rows} rows, and {len(content)} are there")
        number = int(content.get(NUMBER, b"0"))
        known = dict(self.contents)
        if number not in known:
            raise Wrong(f"commit {number} is there: {self.returned} had returned, {max(known)} had begun")
        if content != known[number]:
            raise Wrong(f"not what commit {number} made")
        return content


def promises(disk: Disk, promise: Promise | None = None) -> Iterator[tuple[int, Promise]]:
    """Each point of crash with what was promised there; it begins with `promise`."""
    promise = promise or Promise()
    yield -1, promise
    for upto, event in enumerate(disk.events):
        promise = promise.after(event)
        yield upto, promise


def recover(directory: Path, promise: Promise, disk: Disk | None = None) -> Content:
    """Opens what a crash left, checks it, and commits and closes once more. Raises Wrong, or what the store raises."""
    store = DirectoryStore(directory, log_size=LOG_SIZE)
    try:
        content = promise.check(store)
        number = int(content.get(NUMBER, b"0"))
        made: dict[Row, bytes | None] = {NUMBER: b"%d" % (number + 1), ("node", b"after"): b"x"}
        if disk is None:
            store.commit(made)
            content = after(content, made)
        else:
            disk.mark(Opened(store.store_id))
            disk.mark(Returned(number))
            content = commit(disk, store, content, made)
        store.close()
    finally:
        store.close()
    return content


@dataclass(frozen=True)
class Found:
    """What is wrong after a crash, and how to come back to it."""

    upto: int
    lose: str
    error: Exception
    image: Image

    def __str__(self) -> str:
        return f"event {self.upto}, lose {self.lose}: {self.error!r}"


def crash_everywhere(
    disk: Disk,
    target: Path,
    loses: Callable[[int], Iterable[str]],
    *,
    seed: int = 0,
    promise: Promise | None = None,
    first: int = -1,
    last: int | None = None,
) -> Iterator[Found | None]:
    """Crashes at the points `first` to `last`, in the ways that `loses` names for each; yields what was wrong, or None.

    Ways are "none", "all", and all that begins with "random". An image that was tried with the same promise is not
    tried again, and not counted. `promise` is that of the beginning.
    """
    tried: set[int] = set()
    before = None
    for upto, now in promises(disk, promise):
        if upto < first:
            continue
        if last is not None and upto > last:
            break
        if now is not before:
            tried.clear()
            before = now
        for name in loses(upto):
            image = disk.image(upto, lose(name, seed, upto))
            key = hash(frozenset(image.items()))
            if key not in tried:
                tried.add(key)
                error = recovery(image, target, now)
                yield None if error is None else Found(upto, name, error, image)


def fail_and_recover(
    directory: Path, after: int, error: Error, for_ever: bool, seed: int
) -> tuple[Disk, int]:
    """A life that ends with a failing disk, and another after it was mended, with no crash between.

    Returns the record, and the event at which the first life had ended.
    """
    with recording(directory) as disk:
        disk.fail(after=after, error=error, for_ever=for_ever)
        try:
            live(directory, disk, Random(f"life {seed}"), SHORT)
        except BaggageFailed:
            pass
        disk.mend()
        ended = len(disk.events) - 1
        *_, (_, promise) = promises(disk)
        recover(directory, promise, disk)
    return disk, ended


def kill_and_recover(directory: Path, disk: Disk, upto: int) -> Disk:
    """The process dies after an event, and another opens what it wrote, synced or not."""
    materialise(disk.image(upto, "none"), directory)
    with recording(directory, after=(disk, upto)) as later:
        *_, (_, promise) = promises(later)
        recover(directory, promise, later)
    return later


def short_life(directory: Path, seed: int) -> Disk:
    with recording(directory) as disk:
        live(directory, disk, Random(f"life {seed}"), SHORT)
    return disk


def lose(name: str, seed: int, upto: int) -> Lose:
    """The way of that name, which differs from point to point where it is random."""
    if name == "none":
        return "none"
    return "all" if name == "all" else Random(f"{name} {seed} {upto}")


def recovery(image: Image, target: Path, promise: Promise) -> Exception | None:
    """What is wrong with the recovery from an image."""
    materialise(image, target)
    try:
        with recording(target):  # which spares the real syncs
            recover(target, promise)
    except Exception as error:
        return error
    return None
