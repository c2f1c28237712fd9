"""Stores for the tests, and faults to put into them."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

import durable.directory
from durable import Passphrase, Seal, SealedStore
from durable.directory import DirectoryStore

#: Everything in a store, by table and key.
Content = dict[tuple[str, bytes], bytes]


def content(store: Any) -> Content:
    """Reads every row twice, in order and by its key, and compares."""
    rows = {(table, key): value for table in durable.TABLES for key, value in store.scan(table)}
    assert all(store.get(table, key) == value for (table, key), value in rows.items())
    return rows


def crashed(source: Path, target: Path) -> Path:
    """A copy of the directory as it is on disk now, as a crash of its owner would leave it."""
    shutil.copytree(source, target)
    target.chmod(0o700)
    return target


def again(baggage: Any) -> durable.MemoryBaggage:
    """A baggage in memory as the next process finds it after a crash of the one that has it now."""
    return durable.MemoryBaggage(baggage._store.reopened())


class Faulty:
    """A connection that asks before each statement; `ask` raises what the statement is to raise."""

    def __init__(self, connection: sqlite3.Connection, ask: Callable[[str], None]) -> None:
        self._connection = connection
        self._ask = ask

    def execute(self, sql: str, parameters: Any = ()) -> Any:
        self._ask(sql)
        return self._connection.execute(sql, parameters)

    def close(self) -> None:
        self._connection.close()


@contextmanager
def asking(ask: Callable[[str], None]) -> Iterator[None]:
    """While it lasts, connections are made that ask."""
    real = durable.directory._connect
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable.directory, "_connect", lambda path, mode: Faulty(real(path, mode), ask))
        yield


class _Unsynced(Faulty):
    def execute(self, sql: str, parameters: Any = ()) -> Any:
        return super().execute(
            "PRAGMA synchronous=OFF" if sql == "PRAGMA synchronous=FULL" else sql, parameters
        )


@contextmanager
def unsynced() -> Iterator[None]:
    """While it lasts, connections do not wait for the disk: for many openings in a process that does not die."""
    real = durable.directory._connect
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            durable.directory, "_connect", lambda path, mode: _Unsynced(real(path, mode), lambda sql: None)
        )
        yield


def disk_error(code: int, text: str) -> sqlite3.OperationalError:
    """What the sqlite3 module raises for a result code."""
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error


def reopened(store: DirectoryStore) -> DirectoryStore:
    """The store again after its owner has died: the kernel drops its lock and its connections."""
    store._failed = "dead"
    store.close()
    return DirectoryStore(store.path)


#: A seal for tests: a passphrase that is quickly stretched.
FAST: Final = Passphrase("right passphrase", opslimit=1, memlimit=8 << 20)


def sealed_again(store: SealedStore, seal: Seal) -> SealedStore:
    """As `reopened`, of a sealed store."""
    store.inner._failed = "dead"
    store.close()
    return SealedStore(store.path, seal)
