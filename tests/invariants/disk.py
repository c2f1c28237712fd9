"""What is on disk, and which keys: kept from the commits of a store as they return."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import cbor2

from durable.baggage import Baggage
from durable.errors import DurableError
from durable.memory import MemoryStore
from durable.store import TABLES, Changes, Store

_TOMBSTONE: Final = b"tombstone/"

Report = Callable[[str], None]


class Disk:
    """One store. `sessions`, `progress` and `tombstones` are its rows, by session id; `keys` the seeds that it was to
    keep."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.sessions: dict[bytes, bytes] = {}
        self.progress: dict[bytes, bytes] = {}
        self.tombstones: dict[bytes, bytes] = {}
        self.keys: dict[bytes, bytes] = {}
        self._read: tuple[bytes, list[Any]] = (b"", [])

    def load(self) -> None:
        """A peer begins with what is there."""
        try:
            self.sessions = dict(self.store.scan("session"))
            self.progress = dict(self.store.scan("progress"))
            self.tombstones = {
                key.removeprefix(_TOMBSTONE): row for key, row in self.store.scan("node", _TOMBSTONE)
            }
            for session_id, row in (*self.sessions.items(), *self.tombstones.items()):
                self.keys[cbor2.loads(row)[0]] = session_id
        except (DurableError, cbor2.CBORDecodeError, LookupError, TypeError):
            pass  # the peer that is about to read it says what is wrong

    def commit(self, changes: Changes) -> None:
        """These are on disk."""
        for (table, key), value in changes.items():
            if table == "session":
                _set(self.sessions, key, value)
            elif table == "progress":
                _set(self.progress, key, value)
            elif table == "node" and key.startswith(_TOMBSTONE):
                _set(self.tombstones, key.removeprefix(_TOMBSTONE), value)

    def _progress(self, session_id: bytes) -> list[Any] | None:
        """How far a session is: spec/baggage.md, Session."""
        row = self.progress.get(session_id)
        if row is None:
            return None
        if self._read[0] is not row:
            self._read = (row, cbor2.loads(row))
        return self._read[1]

    def counts(self, session_id: bytes) -> list[int] | None:
        """`[epoch, proven, sent, acked, taken]` of a session that is kept."""
        row = self._progress(session_id)
        return None if row is None else row[0]

    def taken_digest(self, session_id: bytes) -> bytes | None:
        row = self._progress(session_id)
        return None if row is None else row[1][1]

    def received(self, session_id: bytes) -> int | None:
        """The final count of frames taken, of a session that is over."""
        row = self.tombstones.get(session_id)
        return None if row is None else cbor2.loads(row)[3]

    # I9

    def check_keys(self, report: Report) -> None:
        """Every key stands in the record of its session, or in its tombstone, and nowhere else."""
        store = self.store
        if not self.keys or not isinstance(store, MemoryStore):
            return
        rows = store._tables
        for seed, session_id in self.keys.items():
            homes = [("session", session_id), ("node", _TOMBSTONE + session_id)]
            at_home = [home for home in homes if seed in rows[home[0]].get(home[1], b"")]
            if len(at_home) == 2:
                report("I9: a key is in a session's record and in its tombstone")
            for table in TABLES:
                values = b"\0".join(rows[table].values())
                if values.count(seed) > sum(home[0] == table for home in at_home):
                    report(f"I9: a key is in the table {table}, in no row of its session")
                if any(seed in key for key in rows[table]):
                    report(f"I9: a key is in a key of the table {table}")

    def check_files(self, path: Path, report: Report) -> None:
        """Once the files are cleaned: none has the key of a session of which nothing is kept."""
        kept = self.sessions.keys() | self.tombstones.keys()
        gone = [seed for seed, session_id in self.keys.items() if session_id not in kept]
        if not gone:
            return
        for file in path.iterdir():
            data = file.read_bytes() if file.is_file() else b""
            if any(seed in data for seed in gone):
                report(f"I9: {file.name} has the key of a session that is erased")

    def check_tombstones(self, known: Iterable[bytes], report: Report) -> None:
        """A peer has ended, and all is committed: it knows every tombstone that is on disk."""
        if self.tombstones.keys() - set(known):
            report("I9: a tombstone is on disk that the peer has erased")


def _set(rows: dict[bytes, bytes], key: bytes, value: bytes | None) -> None:
    if value is None:
        rows.pop(key, None)
    else:
        rows[key] = value


class Bag:
    """One baggage: which of its changes are on disk.

    `now` counts the cuts. What happens between two of them may be shown once the second is committed, with all
    before it; a cut of no changes stands for the batch before it.
    """

    def __init__(self, baggage: Baggage, disk: Disk) -> None:
        self.disk = disk
        self.now = 0
        self.committed = 0
        self._cut: list[int] = []  # batches, by cut
        self._last = 0

    def cut(self, batch: int | None) -> None:
        if batch is not None:
            self._last = batch
        self._cut.append(self._last)
        self.now += 1

    def shown(self, when: int) -> bool:
        """Whether what happened then may be shown."""
        return when < len(self._cut) and self._cut[when] <= self.committed
