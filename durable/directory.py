"""A store in a directory of the filesystem: SQLite behind a lock (spec/baggage.md has the files byte by byte).

A commit appends one row to a log, which costs what the least of commits costs. What the log holds is moved to the
tables when there is enough of it; until then it is in memory too, and lies over what is read from the tables.

No other code of this process may open `state.db` by itself: closing it would drop the locks that SQLite holds.
"""

from __future__ import annotations

import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Final

from durable.encoding import DIGEST, changes_of, digest_of, digest_start, logged
from durable.errors import BaggageCorrupt, BaggageFailed, BaggageRefused, SealRefused
from durable.header import (
    FORMAT,
    HEADER,
    NEW_HEADER,
    NEXT_HEADER,
    Header,
    finish_header,
    header_of,
    read_header,
    write_header,
    write_next_header,
)
from durable.place import Lock, copy_files, remove, rewrite, settle, sync
from durable.sqlite import ERRORS, SCHEMA, STATE, system_errors, translated
from durable.store import TABLES, Changes, above_prefix, check_table, laid_over, row_name

WAL: Final = "state.db-wal"
#: The database while it is being made: until it is whole it does not bear its name.
_NEW: Final = "state.db.new"
_NEW_FILES: Final = (_NEW, f"{_NEW}-journal", f"{_NEW}-wal", f"{_NEW}-shm")
#: `application_id` of the database: "OCap".
_APPLICATION: Final = 0x4F436170
#: Bytes of commits in the log: a few hundred small ones.
LOG_SIZE: Final = 2 << 20
_PAGE: Final = 4096
#: Rows that are read together where all are.
_ROWS: Final = 1000
_IDENTITY: Final = b"store"
_CONTENT: Final = b"content"
_HEADER: Final = b"header"
_MODULUS: Final = 1 << 8 * DIGEST
_PRAGMAS: Final = (
    "trusted_schema=OFF",
    "cell_size_check=ON",
    "mmap_size=0",
    "synchronous=FULL",
    "fullfsync=ON",
    "secure_delete=ON",
    "wal_autocheckpoint=0",
)
Row = tuple[Any, ...]
#: Makes of a row, by its table, the key and value of the one that takes its place.
Transform = Callable[[str, bytes, bytes], tuple[bytes, bytes]]


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    """The one place where connections are made; tests put faults here. `mode` is that of a SQLite URI."""
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=1.0,  # for another process that looks into the database; ours never wait for each other
    )


class DirectoryStore:
    """Opens the baggage in the directory `path`, or makes one there.

    One connection writes, another reads. Commits are moved from the log to the tables once they have `log_size` bytes,
    of which each counts with a page more. `header` makes that of a new baggage from its store id. A baggage whose rows
    are sealed is for those who say that they know it (`sealed`): here they stand as they are.

    Raises BaggageInUse, BaggageRefused, BaggageCorrupt, BaggageNewer, SealRefused, and BaggageFailed where the
    operating system refuses something.
    """

    store_id: bytes
    header: Header

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        header: Callable[[bytes], Header] = Header,
        sealed: bool = False,
        log_size: int = LOG_SIZE,
    ) -> None:
        if not fspath(path):
            raise BaggageRefused("no directory is named: '.' is the current one")
        self.path = Path(path).absolute()
        self._first_header = header
        self._may_be_sealed = sealed
        self._log_size = log_size
        self._failed: str | None = None
        self._closed = False
        self._writing = threading.Lock()  # commit, scrub, verify, close: one at a time
        self._reading = threading.RLock()  # taken inside `_writing`: a checkpoint meets no read
        self._connections: list[sqlite3.Connection] = []
        #: What the log holds and the tables do not have yet, by table and key, and the size of the log.
        self._recent: dict[str, dict[bytes, bytes | None]] = {table: {} for table in TABLES}
        self._recent_size = 0
        with system_errors(self.path):
            settle(self.path, known=(*_NEW_FILES, STATE, HEADER, NEW_HEADER, NEXT_HEADER))
            self._lock = Lock(self.path)
        try:
            with system_errors(self.path):
                self._open()
        except BaseException:
            self._disconnect()
            raise

    def get(self, table: str, key: bytes) -> bytes | None:
        check_table(table)
        with self._reading:
            self._check()
            recent = self._recent[table]
            return recent[key] if key in recent else self._get(table, key)

    def scan(
        self, table: str, prefix: bytes = b"", after: bytes | None = None, limit: int | None = None
    ) -> list[tuple[bytes, bytes]]:
        check_table(table)
        with self._reading:
            return laid_over(
                self._recent[table],
                lambda most: [(key, value) for key, value, _ in self._read(table, prefix, after, most)],
                prefix,
                after,
                limit,
            )

    @contextmanager
    def still(self) -> Iterator[None]:
        """What is read in the block does not change: reads in it are of the same commits. Raises BaggageFailed."""
        with self._reading:
            self._check()
            yield

    def commit(self, changes: Changes, seen: Callable[[], None] = lambda: None) -> None:
        """`seen` is called as the changes begin to be seen, when they are on disk and nobody reads."""
        for table, _ in changes:
            check_table(table)
        with self._writing:
            self._check()
            with self._fatal("a commit failed"):
                self._append(changes, seen)
                if self._recent_size > self._log_size:
                    self._settle()
                    # Not TRUNCATE: to write over a file again costs less than to have it grow.
                    self._checkpoint("RESTART")

    def scrub(self) -> None:
        """Moves all logs into the database, where deleted rows are overwritten, and empties the write-ahead log.

        While another process reads the database, that is left to the next checkpoint.
        """
        with self._writing:
            self._check()
            with self._fatal("a checkpoint failed"):
                self._settle()
                self._checkpoint()

    def verify(self) -> int:
        with self._writing:
            self._check()
            self._logged()
            with self._fatal("a commit failed"):
                self._settle()
            count = total = 0
            for table in TABLES:
                after = None
                while rows := self._read(table, b"", after, _ROWS):
                    total += sum(int.from_bytes(digest, "big") for _, _, digest in rows)
                    count += len(rows)
                    after = rows[-1][0]
            if (count, total % _MODULUS) != (self._count, self._sum):
                raise BaggageCorrupt(f"the {count} rows found are not the {self._count} written", STATE)
            if self._rows("PRAGMA integrity_check(1)") != [("ok",)]:
                raise BaggageCorrupt("SQLite finds its pages in disorder", STATE)
            return count

    def replace(self, header: Header, transform: Transform | None = None) -> None:
        """Puts another header in the place of the one there is, and for each row what `transform` makes of it.

        After a crash all of it is there or nothing is. What stood in the files before is overwritten, as far as the
        medium allows. Whoever calls it has verified the rows before. Raises BaggageFailed.
        """
        with self._writing:
            self._check()
            with self._fatal("a change of the header failed"):
                self._settle()
                digest = write_next_header(self.path, header)
                self._rewrite(digest, transform)
                finish_header(self.path)
                self.header = header
                busy = self._checkpoint()
        if busy and transform is not None:
            raise BaggageFailed(
                f"{self.path} is changed, but another process reads its database: what stood in it before is "
                "overwritten when the baggage is opened the next time"
            )

    def copy(self, suffix: str) -> Path:
        """Copies the baggage into a directory beside it, whose name ends so, and says which. Raises BaggageFailed."""
        with self._writing:
            self._check()
            with self._fatal("a checkpoint failed"):
                self._settle()
                self._checkpoint()
            with system_errors(self.path):
                return copy_files(self.path, suffix, (STATE, HEADER))

    def close(self) -> None:
        """Commits are on disk before; this empties the write-ahead log. Raises BaggageFailed if that fails."""
        with self._writing:
            if self._closed:
                return
            self._closed = True
            try:
                if self._failed is None:
                    with self._fatal("a checkpoint failed"):
                        self._settle()
                        self._checkpoint()
            finally:
                with self._reading:
                    self._failed = self._failed or f"{self.path} is closed"
                    self._disconnect()

    # Opening

    def _open(self) -> None:
        # A process that was killed, or whose sync failed, left things that this one sees and a crash would undo.
        sync(self.path)
        rewrite(self.path / WAL)
        header = read_header(self.path)
        state = self.path / STATE
        if header is None and not state.exists():
            self._create()
        if not state.exists() or not state.stat().st_size:
            # SQLite would make an empty database here, and delete the write-ahead log.
            raise BaggageCorrupt("the database is gone", STATE)
        try:
            # The reader is closed last: as it cannot write, SQLite then leaves a log alone that may be damaged.
            for mode in ("rw", "ro"):
                connection = _connect(state, mode)
                self._connections.append(connection)
                for pragma in _PRAGMAS:
                    connection.execute(f"PRAGMA {pragma}").fetchall()
                connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        except ERRORS as error:
            raise translated(error) from error
        self._writer, self._reader = self._connections
        self._check_schema()
        self._load()
        belonging = self._get("meta", _HEADER)
        changed = False
        if header is None:
            # Making it stopped before its last step, or the header was lost.
            if self._count or belonging is not None or self._rows("SELECT number FROM log LIMIT 1"):
                raise BaggageCorrupt("the header is gone", HEADER)
            header = self._first_header(self.store_id)
            write_header(self.path, header)
        elif belonging is not None:
            header, changed = header_of(self.path, belonging)
        if header.store_id != self.store_id:
            raise BaggageCorrupt("the database belongs to another header", STATE)
        if header.sealing is not None and not self._may_be_sealed:
            raise SealRefused(f"{self.path} is sealed: it opens with its passphrase or key")
        self.header = header
        self._replay()
        try:
            self._settle()
            self._checkpoint()
        except ERRORS as error:
            raise translated(error) from error
        if changed:
            finish_header(self.path)
        remove(self.path, (NEXT_HEADER,))  # of a change that was not committed

    def _create(self) -> None:
        remove(self.path, (*_NEW_FILES, NEW_HEADER, NEXT_HEADER))
        store_id = secrets.token_bytes(32)
        connection = _connect(self.path / _NEW, "rwc")
        try:
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute(f"PRAGMA application_id={_APPLICATION}")
            connection.execute(f"PRAGMA user_version={FORMAT}")
            connection.execute("BEGIN")
            for sql in SCHEMA.values():
                connection.execute(sql)
            for key, value in ((_IDENTITY, store_id), (_CONTENT, bytes(16 + DIGEST))):
                digest = digest_of(digest_start(store_id, "meta"), key, value)
                connection.execute("INSERT INTO meta VALUES (?, ?, ?)", (key, value, digest))
            connection.execute("COMMIT")
            if connection.execute("PRAGMA journal_mode=WAL").fetchall() != [("wal",)]:
                raise BaggageRefused(
                    f"the filesystem of {self.path} has no shared memory, which SQLite needs"
                )
        except ERRORS as error:
            raise translated(error) from error
        finally:
            connection.close()
        (self.path / _NEW).rename(self.path / STATE)
        sync(self.path)

    def _check_schema(self) -> None:
        for pragma, wanted in (
            ("application_id", _APPLICATION),
            ("user_version", FORMAT),
            ("journal_mode", "wal"),
        ):
            if self._rows(f"PRAGMA {pragma}") != [(wanted,)]:
                raise BaggageCorrupt(f"its {pragma} is not that of a baggage", STATE)
        if self._rows("SELECT name, sql FROM sqlite_schema ORDER BY name") != sorted(SCHEMA.items()):
            raise BaggageCorrupt("its tables are not those of a baggage", STATE)

    def _load(self) -> None:
        """Takes identity and content digest from the table `meta`."""
        rows = self._rows("SELECT value FROM meta WHERE key = ?", (_IDENTITY,))
        identity = rows[0][0] if rows else None
        if type(identity) is not bytes:
            raise BaggageCorrupt("the identity of the store is gone", STATE, "meta")
        self.store_id = identity
        self._starts = {table: digest_start(identity, table) for table in SCHEMA}
        content = self._get("meta", _CONTENT)
        if content is None:
            raise BaggageCorrupt("the digest of the content is gone", STATE, "meta")
        self._count = int.from_bytes(content[:8], "big")
        self._sum = int.from_bytes(content[8:-8], "big")
        self._moved = self._last = int.from_bytes(content[-8:], "big")

    def _replay(self) -> None:
        """Takes what the log holds into memory."""
        for value in self._logged():
            self._last += 1
            self._remember(changes_of(value), len(value))

    def _logged(self) -> list[bytes]:
        """What the log holds, in order."""
        rows = self._rows("SELECT number, value, digest FROM log ORDER BY number")
        for number, (found, value, digest) in enumerate(rows, self._moved + 1):
            if found != number:
                raise BaggageCorrupt(f"commit {number} is missing", STATE, "log")
            self._checked("log", number.to_bytes(8, "big"), value, digest)
        return [value for _, value, _ in rows]

    # Reading

    def _get(self, table: str, key: bytes) -> bytes | None:
        for value, digest in self._rows(f"SELECT value, digest FROM {table} WHERE key = ?", (key,)):
            return self._checked(table, key, value, digest)
        return None

    def _read(self, table: str, prefix: bytes, after: bytes | None, limit: int | None) -> list[Row]:
        """Keys, values and digests, checked. Raises BaggageCorrupt."""
        # One lower bound: of two, SQLite searches by the first and reads all rows up to the second.
        lower, bound = ("key >= ?", prefix) if after is None or after < prefix else ("key > ?", after)
        where, parameters = [lower], [bound]
        if (end := above_prefix(prefix)) is not None:
            where.append("key < ?")
            parameters.append(end)
        rows = self._rows(
            f"SELECT key, value, digest FROM {table} WHERE {' AND '.join(where)} ORDER BY key LIMIT ?",
            (*parameters, -1 if limit is None else limit),
        )
        before = after
        for key, value, digest in rows:
            self._checked(table, key, value, digest)
            if before is not None and key <= before:  # then a search, which `get` is, may miss it
                raise BaggageCorrupt("rows are out of order", STATE, table, row_name(key))
            before = key
        return rows

    def _checked(self, table: str, key: object, value: object, digest: object) -> bytes:
        if type(key) is not bytes:
            raise BaggageCorrupt("a key is no bytes", STATE, table)
        if type(value) is not bytes or self._digest(table, key, value) != digest:
            raise BaggageCorrupt("the row is not what was written", STATE, table, row_name(key))
        return value

    def _digest(self, table: str, key: bytes, value: bytes) -> bytes:
        return digest_of(self._starts[table], key, value)

    def _rows(self, sql: str, parameters: tuple[object, ...] = ()) -> list[Row]:
        """All rows at once, so that no read stays open."""
        with self._reading:
            self._check()
            try:
                return self._reader.execute(sql, parameters).fetchall()
            except ERRORS as error:
                told = translated(error)
                if isinstance(told, BaggageFailed):
                    self._failed = str(told)
                raise told from error

    # Writing

    def _append(self, changes: Changes, seen: Callable[[], None]) -> None:
        number = self._last + 1
        value = logged(changes)
        digest = self._digest("log", number.to_bytes(8, "big"), value)
        self._writer.execute("INSERT INTO log VALUES (?, ?, ?)", (number, value, digest))
        self._last = number
        with self._reading:
            self._remember(changes, len(value))
            seen()

    def _remember(self, changes: Changes, size: int) -> None:
        for (table, key), value in changes.items():
            self._recent[table][key] = value
        self._recent_size += size + _PAGE

    def _settle(self) -> None:
        """Moves what the log holds to the tables. It changes nothing of what is read. Raises BaggageCorrupt."""
        if self._last == self._moved:
            return
        writer, count, total = self._writer, self._count, self._sum
        writer.execute("BEGIN IMMEDIATE")
        for table, rows in self._recent.items():
            for key, value in rows.items():
                old = writer.execute(f"SELECT value, digest FROM {table} WHERE key = ?", (key,)).fetchone()
                if old is not None:
                    # In a damaged table SQLite may find another row, and would remove it.
                    self._checked(table, key, *old)
                    count -= 1
                    total -= int.from_bytes(old[1], "big")
                if value is not None:
                    digest = self._digest(table, key, value)
                    writer.execute(f"REPLACE INTO {table} VALUES (?, ?, ?)", (key, value, digest))
                    count += 1
                    total += int.from_bytes(digest, "big")
                elif old is not None:
                    writer.execute(f"DELETE FROM {table} WHERE key = ?", (key,))
        self._set_content(count, total)
        writer.execute("DELETE FROM log")
        writer.execute("COMMIT")
        self._count, self._sum, self._moved = count, total % _MODULUS, self._last
        with self._reading:
            self._recent = {table: {} for table in TABLES}
            self._recent_size = 0

    def _set_content(self, count: int, total: int) -> None:
        total %= _MODULUS
        self._set_meta(
            _CONTENT, count.to_bytes(8, "big") + total.to_bytes(DIGEST, "big") + self._last.to_bytes(8, "big")
        )

    def _set_meta(self, key: bytes, value: bytes) -> None:
        digest = self._digest("meta", key, value)
        self._writer.execute("REPLACE INTO meta VALUES (?, ?, ?)", (key, value, digest))

    def _rewrite(self, header: bytes, transform: Transform | None) -> None:
        """In one transaction: notes the digest of a header, and puts other rows in the place of those there are.

        The log is empty. The reader sees what was there before, until the end.
        """
        writer, total = self._writer, 0
        writer.execute("BEGIN IMMEDIATE")
        self._set_meta(_HEADER, header)
        if transform is not None:
            for table in TABLES:
                writer.execute(f"DELETE FROM {table}")
                after = None
                while rows := self._read(table, b"", after, _ROWS):
                    for key, value, _ in rows:
                        row = transform(table, key, value)
                        digest = self._digest(table, *row)
                        writer.execute(f"INSERT INTO {table} VALUES (?, ?, ?)", (*row, digest))
                        total += int.from_bytes(digest, "big")
                    after = rows[-1][0]
            self._set_content(self._count, total)
        writer.execute("COMMIT")
        if transform is not None:
            self._sum = total % _MODULUS

    def _checkpoint(self, how: str = "TRUNCATE") -> bool:
        """Whether it was left undone, as another process reads the database."""
        with self._reading:
            ((busy, _, _),) = self._writer.execute(f"PRAGMA wal_checkpoint({how})").fetchall()
            return bool(busy)

    # Ends

    def _check(self) -> None:
        if self._failed is not None:
            raise BaggageFailed(self._failed)

    @contextmanager
    def _fatal(self, what: str) -> Iterator[None]:
        """After an error in the block, KeyboardInterrupt included, nobody knows what is on disk."""
        try:
            yield
        except BaseException as error:
            self._failed = f"{what}, open {self.path} again: {error}"
            if isinstance(error, Exception):
                raise BaggageFailed(self._failed) from error
            raise

    def _disconnect(self) -> None:
        for connection in self._connections:
            try:
                connection.close()
            except ERRORS:
                pass
        self._lock.close()
