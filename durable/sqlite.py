"""The database: its tables, and what errors mean: damage to it, or a system that does not read or write it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from durable.errors import BaggageCorrupt, BaggageFailed, DurableError
from durable.store import TABLES

STATE: Final = "state.db"
SCHEMA: Final = {
    table: f"CREATE TABLE {table} (key BLOB PRIMARY KEY, value BLOB NOT NULL, digest BLOB NOT NULL) WITHOUT ROWID"
    for table in ("meta", *TABLES)
} | {"log": "CREATE TABLE log (number INTEGER PRIMARY KEY, value BLOB NOT NULL, digest BLOB NOT NULL)"}
#: Codes that tell of what stands in the file; all others tell of the system that does not read or write it.
_CORRUPT: Final = frozenset(
    {
        sqlite3.SQLITE_ERROR,  # a table or column that is not there
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_FORMAT,
        sqlite3.SQLITE_SCHEMA,
        sqlite3.SQLITE_TOOBIG,
        sqlite3.SQLITE_MISMATCH,
    }
)
_CORRUPT_IO: Final = frozenset(
    {sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS, sqlite3.SQLITE_IOERR_DATA}
)
ERRORS: Final = (sqlite3.Error, MemoryError)


def translated(error: BaseException) -> DurableError:
    """What SQLite says, as an error of ours. None of its texts holds a value."""
    code = getattr(error, "sqlite_errorcode", None)
    if isinstance(error, MemoryError):
        return BaggageFailed("out of memory")
    if code is None or code & 0xFF in _CORRUPT or code in _CORRUPT_IO:
        return BaggageCorrupt(str(error), STATE)
    return BaggageFailed(f"cannot read or write {STATE}: {error}")


@contextmanager
def system_errors(path: Path) -> Iterator[None]:
    """In the block, what the operating system refuses is told of as that."""
    try:
        yield
    except OSError as error:
        raise BaggageFailed(f"cannot open {path}: {error}") from error
