"""Versions of what stands in the rows: an older baggage is copied, and brought up to date in one commit.

The version of the files is that of the header (`durable.header`); this one is of the rows, sealed or not. Version 1 has
no row of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final

from durable.errors import BaggageCorrupt, BaggageNewer
from durable.records import decode, encode
from durable.store import TABLES, Store, laid_over

log: Final = logging.getLogger("durable")

#: Of the rows that this program reads and writes.
VERSION: Final = 1
_TABLE: Final = "node"
_KEY: Final = b"version"


class Rows:
    """The rows of a store with changes over them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.changes: dict[tuple[str, bytes], bytes | None] = {}

    def get(self, table: str, key: bytes) -> bytes | None:
        return self.changes[table, key] if (table, key) in self.changes else self._store.get(table, key)

    def scan(
        self, table: str, prefix: bytes = b"", after: bytes | None = None, limit: int | None = None
    ) -> list[tuple[bytes, bytes]]:
        """As `Store.scan`, with the changes."""
        over = {key: value for (one, key), value in self.changes.items() if one == table}
        return laid_over(
            over, lambda most: self._store.scan(table, prefix, after, most), prefix, after, limit
        )

    def put(self, table: str, key: bytes, value: bytes) -> None:
        self.changes[table, key] = value

    def remove(self, table: str, key: bytes) -> None:
        self.changes[table, key] = None


#: What brings rows from each version to the next.
MIGRATIONS: Final[Mapping[int, Callable[[Rows], None]]] = {}


def version_of(store: Store) -> int | None:
    """The version of the rows; None if there are none. Raises BaggageCorrupt."""
    row = store.get(_TABLE, _KEY)
    if row is None:
        return 1 if any(store.scan(table, limit=1) for table in TABLES) else None
    version = decode(row, table=_TABLE)
    if type(version) is not int or version < 2:
        raise BaggageCorrupt("not a version of rows", table=_TABLE)
    return version


def refuse_newer(store: Store, place: object, to: int = VERSION) -> int | None:
    """The version of the rows, or None. Raises BaggageNewer, with `place`, if it is a later one, and BaggageCorrupt."""
    found = version_of(store)
    if found is not None and found > to:
        raise BaggageNewer(place, found, to)
    return found


def migrate(
    store: Store,
    place: object,
    copy: Callable[[int], object],
    *,
    to: int = VERSION,
    migrations: Mapping[int, Callable[[Rows], None]] = MIGRATIONS,
) -> None:
    """Brings the rows of a store up to date: all of it in one commit, or nothing.

    `copy` is called before the commit, with the version that they have, and says where the copy is. Raises
    BaggageNewer, with `place`, if they are of a later version, and what the migrations, the copy and the store raise.
    """
    found = refuse_newer(store, place, to)
    if found == to or (found is None and to == 1):
        return
    rows = Rows(store)
    for version in range(to if found is None else found, to):
        migrations[version](rows)
    if found is not None:  # now, as one that fails must not leave a copy at each start
        log.warning(
            "%s: its rows have version %d, and are brought to %d; a copy is in %s",
            place,
            found,
            to,
            copy(found),
        )
    rows.put(_TABLE, _KEY, encode(to))
    store.commit(rows.changes)
