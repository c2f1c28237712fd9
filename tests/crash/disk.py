"""A disk that remembers what SQLite and Python wrote to a directory, and shows what a crash would leave of it.

    with recording(directory) as disk:
        ...                                  # connections opened in here are recorded, on any thread
        disk.mark("17 committed")
    for upto in range(-1, len(disk.events)):
        materialise(disk.image(upto, Random(upto)), elsewhere)

The model is of a file system with a journal (ext4, XFS, btrfs) on a drive that honours flushes:

- **Content.** A write or truncation that a Sync of its file follows is kept. Of the others, `lose="none"` keeps
  all (a process that dies), "all" loses all, and a `Random` chooses: each is kept, lost, or torn, which leaves a
  prefix up to a boundary of 512 bytes; independently, so later ones may survive earlier ones. One that would
  have made the file longer may make it longer and leave zeros or garbage.
- **Names.** Creations, deletions and renames are kept in their order: after a crash the first few (a random
  number) of those not yet synced have happened. Sync of the directory keeps all; Sync of a file keeps what
  concerns its own name (and the names these operations involve), as the file systems named do.
- **Failed syncs.** What was unsynced when a sync failed is in memory only and marked clean: a later Sync of the
  file does not save it (as on Linux), unless it is written again.
- **Not modelled**: synced data that rots or is lost, sectors outside a write that it damages (SQLite counts on
  "powersafe overwrite" likewise), writes torn within a sector, `-shm` (never in an image: SQLite rebuilds it),
  memory-mapped writes other than SQLite's own through xWrite, `SQLITE_FCNTL_CHUNK_SIZE`, modes and owners,
  empty directories, and files that nobody tells of.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Literal

from tests.crash import calls, shim

Lose = Literal["none", "all"] | Random
Image = dict[str, bytes]
Error = Literal["ENOSPC", "EIO"]

SECTOR = shim.SECTOR


@dataclass(frozen=True, slots=True)
class Create:
    path: str


@dataclass(frozen=True, slots=True)
class Write:
    path: str
    offset: int
    data: bytes

    def __repr__(self) -> str:
        return f"Write({self.path!r}, {self.offset}, <{len(self.data)} bytes>)"


@dataclass(frozen=True, slots=True)
class Truncate:
    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Sync:
    """Of a file, or of a directory: "." is the recorded one."""

    path: str


@dataclass(frozen=True, slots=True)
class SyncFailed:
    path: str


@dataclass(frozen=True, slots=True)
class Delete:
    path: str


@dataclass(frozen=True, slots=True)
class Rename:
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that the test knew at this time."""

    label: object


Event = Create | Write | Truncate | Sync | SyncFailed | Delete | Rename | Mark
_State = Literal["unsynced", "synced", "doomed"]


def _apply(content: bytearray, change: Write | Truncate) -> None:
    if isinstance(change, Truncate):
        if change.size < len(content):
            del content[change.size :]
        else:
            content.extend(bytes(change.size - len(content)))
        return
    if change.offset > len(content):
        content.extend(bytes(change.offset - len(content)))
    content[change.offset : change.offset + len(change.data)] = change.data


@dataclass(slots=True, eq=False)
class _Inode:
    """A file's content. `changes` are those since `durable`, with what syncs have done to each of them."""

    durable: bytearray = field(default_factory=bytearray)
    current: bytearray = field(default_factory=bytearray)
    changes: list[tuple[Write | Truncate, _State]] = field(default_factory=list)
    frozen: dict[str, bytes] = field(default_factory=dict)  # the last answers: most images share most files

    def change(self, change: Write | Truncate) -> None:
        _apply(self.current, change)
        self.changes.append((change, "unsynced"))
        self.frozen.pop("none", None)

    def sync(self) -> None:
        if any(state == "doomed" for _, state in self.changes):
            # the doomed ones stay between the others, in their order
            self.changes = [(change, "synced" if s == "unsynced" else s) for change, s in self.changes]
        else:
            for change, _ in self.changes:
                _apply(self.durable, change)
            self.changes = []
        self.frozen.pop("all", None)

    def doom(self) -> None:
        self.changes = [(change, "doomed" if s == "unsynced" else s) for change, s in self.changes]

    def after_crash(self, lose: Lose) -> bytes:
        if not self.changes:
            lose = "all"
        if isinstance(lose, Random):
            return bytes(self._torn(lose))
        content = self.frozen.get(lose)
        if content is None:
            if lose == "none":
                content = bytes(self.current)
            else:
                kept = bytearray(self.durable)
                for change, state in self.changes:
                    if state == "synced":
                        _apply(kept, change)
                content = bytes(kept)
            self.frozen[lose] = content
        return content

    def _torn(self, random: Random) -> bytearray:
        odds = random.choice((0.1, 0.5, 0.9))
        content = bytearray(self.durable)
        for change, state in self.changes:
            if state == "synced" or random.random() < odds:
                _apply(content, change)
            elif isinstance(change, Write):
                before, end = len(content), change.offset + len(change.data)
                cut = change.offset
                if random.random() < 0.5:
                    cut = random.randint(change.offset // SECTOR, end // SECTOR) * SECTOR
                if cut > change.offset:
                    _apply(content, Write(change.path, change.offset, change.data[: cut - change.offset]))
                if end > len(content) and random.random() < 0.25:
                    _apply(content, Truncate(change.path, end))
                    if random.random() < 0.5:
                        rest = max(before, cut, change.offset)
                        content[rest:end] = random.randbytes(end - rest)
        return content


class _Directory:
    """The state after some of the events."""

    def __init__(self, initial: Mapping[str, bytes]) -> None:
        self.next = 0  # the first event that is not in it
        self.names = {
            path: _Inode(durable=bytearray(content), current=bytearray(content))
            for path, content in initial.items()
        }
        self.durable_names = dict(self.names)
        self.pending: list[dict[str, _Inode | None]] = []  # changes of names, None for deleted

    def apply(self, event: Event) -> None:
        match event:
            case Create(path):
                self._rename({path: _Inode()})
            case Write(path) | Truncate(path):
                if path not in self.names:
                    self._rename({path: _Inode()})
                self.names[path].change(event)
            case Sync(path):
                if (inode := self.names.get(path)) is not None:
                    inode.sync()
                    self._sync_names({path})
                else:
                    here = "" if path == "." else path
                    self._sync_names(
                        {name for names in self.pending for name in names if os.path.dirname(name) == here}
                    )
            case SyncFailed(path):
                if (inode := self.names.get(path)) is not None:
                    inode.doom()
            case Delete(path):
                self._rename({path: None})
            case Rename(old, new):
                self._rename({old: None, new: self.names[old]})
            case Mark():
                pass
        self.next += 1

    def _rename(self, changes: dict[str, _Inode | None]) -> None:
        self.pending.append(changes)
        _rename(self.names, changes)

    def _sync_names(self, names: set[str]) -> None:
        if not self.pending:
            return
        kept, chosen = [], []
        for changes in reversed(self.pending):
            if names.isdisjoint(changes):
                kept.append(changes)
            else:
                names = names | changes.keys()
                chosen.append(changes)
        self.pending = kept[::-1]
        for changes in reversed(chosen):
            _rename(self.durable_names, changes)

    def after_crash(self, lose: Lose, below: str) -> dict[str, bytes]:
        if lose == "none":
            names = self.names
        else:
            names = self.durable_names
            pending = [changes for changes in self.pending if any(path.startswith(below) for path in changes)]
            if isinstance(lose, Random) and pending:
                names = dict(names)
                for changes in pending[: lose.randint(0, len(pending))]:
                    _rename(names, changes)
        return {path: inode.after_crash(lose) for path, inode in names.items() if path.startswith(below)}


def _rename(names: dict[str, _Inode], changes: Mapping[str, _Inode | None]) -> None:
    for path, inode in changes.items():
        if inode is None:
            names.pop(path, None)
        else:
            names[path] = inode


@dataclass(slots=True)
class _Failure:
    after: int
    error: Error
    for_ever: bool


class Disk:
    """What was written to one directory, and what it held before. Made by `recording`.

    `swallow_syncs` makes it a drive that says it has synced and has not: what should then fail, does it?
    """

    def __init__(
        self, directory: Path, *, swallow_syncs: bool = False, after: tuple[Disk, int] | None = None
    ) -> None:
        self.directory = directory
        self.events: list[Event] = []
        there = {path: content for path, content in read(directory).items() if not path.endswith("-shm")}
        if after is None:
            self.initial = there
        else:
            before, upto = after
            if there != before.image(upto, "none"):
                raise ValueError(f"{directory} does not hold what was there after event {upto}")
            self.initial = before.initial
            self.events += before.events[: upto + 1]
        self.failed = 0  # writes and syncs that were refused
        self.operations = 0  # writes and syncs asked for
        self.problems: list[BaseException] = []
        self._swallow_syncs = swallow_syncs
        self._failure: _Failure | None = None
        self._ended = False
        self._lock = threading.Lock()
        self._cursor = _Directory(self.initial)

    # What the test says; the others are for the recorders, and for files that they do not see

    def mark(self, label: object) -> None:
        self._add(Mark(label))

    def wrote(self, path: str, offset: int, data: bytes) -> None:
        self._add(Write(path, offset, data))

    def truncated(self, path: str, size: int) -> None:
        self._add(Truncate(path, size))

    def synced(self, path: str) -> None:
        """A file, or a directory: "." for the recorded one."""
        if not self._swallow_syncs:
            self._add(Sync(path))

    def sync_failed(self, path: str) -> None:
        self._add(SyncFailed(path))

    def created(self, path: str) -> None:
        self._add(Create(path))

    def deleted(self, path: str) -> None:
        self._add(Delete(path))

    def renamed(self, old: str, new: str) -> None:
        self._add(Rename(old, new))

    def broken(self, error: BaseException) -> None:
        self.problems.append(error)

    def _add(self, event: Event) -> None:
        if not self._ended:
            self.events.append(event)

    # Failures

    def fail(self, *, after: int, error: Error, for_ever: bool) -> None:
        """After so many more writes and syncs that go well, one fails, or all from then on.

        A write fails with SQLITE_FULL or SQLITE_IOERR_WRITE, its first half (in whole sectors) done; a sync with
        SQLITE_IOERR_FSYNC in either case, as in SQLite's own VFS; Python sees OSErrors. Truncations do not count;
        on a disk that has failed for ever with EIO they fail too. Replaces an earlier order.
        """
        with self._lock:
            self._failure = _Failure(after, error, for_ever)

    def mend(self) -> None:
        with self._lock:
            self._failure = None

    def refusal(self, kind: shim.Kind, path: str) -> int:
        with self._lock:
            failure = self._failure
            if kind == "truncate":
                gone = failure is not None and failure.after < 0 and failure.error == "EIO"
                return shim.IOERR_TRUNCATE if gone else shim.OK
            self.operations += 1
            if failure is None:
                return shim.OK
            failure.after -= 1
            if failure.after >= 0:
                return shim.OK
            if not failure.for_ever:
                self._failure = None
            self.failed += 1
            if kind == "sync":
                return shim.IOERR_FSYNC
            return shim.FULL if failure.error == "ENOSPC" else shim.IOERR_WRITE

    # Crashes

    def image(self, upto: int, lose: Lose, below: str = "") -> dict[str, bytes]:
        """What the directory holds after a crash just after event `upto`; -1 is before the first event.

        Of the files whose path begins with `below` only: what is on different disks is not lost in the same way.
        Quick when asked in order; going back costs a walk from the start (about 2 µs an event).
        """
        if not -1 <= upto < len(self.events):
            raise IndexError(f"event {upto} of {len(self.events)}")
        if self._cursor.next > upto + 1:
            self._cursor = _Directory(self.initial)
        while self._cursor.next <= upto:
            self._cursor.apply(self.events[self._cursor.next])
        return self._cursor.after_crash(lose, below)

    def end(self) -> None:
        self._ended = True
        if self.problems:
            raise BaseExceptionGroup("the recorder broke", self.problems)


@contextlib.contextmanager
def recording(
    directory: str | os.PathLike[str], *, swallow_syncs: bool = False, after: tuple[Disk, int] | None = None
) -> Iterator[Disk]:
    """Records the SQLite connections and file descriptors opened in this time, in all threads, below the directory.

    The directory exists; what it holds at the beginning counts as synced. Nothing is really synced: the recorder is
    the disk. Several directories may be recorded at a time, if none is in another. Raises `shim.Unavailable` where
    SQLite cannot be reached.

    `after` continues another record from after one of its events on, in a copy of what was there with nothing lost:
    what happens when a process was killed, and the machine crashes while the next one runs.
    """
    disk = Disk(Path(os.path.realpath(directory)), swallow_syncs=swallow_syncs, after=after)
    with shim.observed(disk.directory, disk), calls.observed(disk.directory, disk):
        yield disk
    disk.end()


def read(directory: Path) -> dict[str, bytes]:
    """The content of all regular files below a directory."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if stat.S_ISREG(path.lstat().st_mode):
            found[path.relative_to(directory).as_posix()] = path.read_bytes()
    return found


def materialise(image: Mapping[str, bytes], target: str | os.PathLike[str]) -> None:
    """Makes the files below `target` exactly those of the image, with modes 0700 and 0600."""
    target = os.fspath(target)
    os.makedirs(target, mode=0o700, exist_ok=True)
    for folder, _, names in os.walk(target):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.relpath(path, target) not in image:
                os.unlink(path)
    for name, content in image.items():
        path = os.path.join(target, name)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            rest = memoryview(content)
            while rest:  # over what is there, which is quicker than to truncate first
                rest = rest[os.write(file, rest) :]
            if os.fstat(file).st_size != len(content):
                os.ftruncate(file, len(content))
        finally:
            os.close(file)
