"""A store in memory: for tests, and for a peer whose state may go with its process."""

from __future__ import annotations

import secrets
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable

from durable.errors import BaggageFailed
from durable.store import TABLES, Changes, above_prefix, check_table


class MemoryStore:
    """Keeps what `DirectoryStore` keeps, as long as the process.

    `on_commit`, where set, is called with the changes before they are made; what it raises fails the commit.
    """

    def __init__(self) -> None:
        self.store_id = secrets.token_bytes(32)
        self.on_commit: Callable[[Changes], None] | None = None
        self._tables: dict[str, dict[bytes, bytes]] = {table: {} for table in TABLES}
        self._order: dict[
            str, list[bytes]
        ] = {}  # the sorted keys of tables that were scanned since they changed
        self._lock = threading.Lock()
        self._failed: str | None = None

    def reopened(self) -> MemoryStore:
        """A new store with the identity and the committed content of this one: as after a crash."""
        store = MemoryStore()
        store.store_id = self.store_id
        store._tables = {table: dict(rows) for table, rows in self._tables.items()}
        return store

    def get(self, table: str, key: bytes) -> bytes | None:
        check_table(table)
        with self._lock:
            self._check()
            return self._tables[table].get(key)

    def scan(
        self, table: str, prefix: bytes = b"", after: bytes | None = None, limit: int | None = None
    ) -> list[tuple[bytes, bytes]]:
        check_table(table)
        with self._lock:
            self._check()
            rows = self._tables[table]
            keys = self._order.get(table)
            if keys is None:
                keys = self._order[table] = sorted(rows)
            end = above_prefix(prefix)
            first = bisect_left(keys, prefix)
            if after is not None:
                first = max(first, bisect_right(keys, after))
            last = len(keys) if end is None else bisect_left(keys, end)
            if limit is not None:
                last = min(last, first + limit)
            return [(key, rows[key]) for key in keys[first:last]]

    def commit(self, changes: Changes) -> None:
        for table, _ in changes:
            check_table(table)
        with self._lock:
            self._check()
            if self.on_commit is not None:
                try:
                    self.on_commit(changes)
                except BaseException as error:
                    self._failed = f"the commit failed: {error}"
                    if isinstance(error, Exception):
                        raise BaggageFailed(self._failed) from error
                    raise
            for (table, key), value in changes.items():
                self._order.pop(table, None)
                if value is None:
                    self._tables[table].pop(key, None)
                else:
                    self._tables[table][key] = value

    def scrub(self) -> None:
        with self._lock:
            self._check()

    def verify(self) -> int:
        with self._lock:
            self._check()
            return sum(len(rows) for rows in self._tables.values())

    def close(self) -> None:
        with self._lock:
            self._failed = self._failed or "the store is closed"

    def _check(self) -> None:
        if self._failed is not None:
            raise BaggageFailed(self._failed)
