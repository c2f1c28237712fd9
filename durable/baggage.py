"""A baggage: what a peer and its application keep across restarts, over a `Store`.

Changes are made in memory and seen at once; batches of them go to disk together, in order:

    changes ─ cut() ─→ batch ─ write([batch, …]), in any thread ─→ on disk ─ written(batch), on the loop

A peer does that by itself; without one, `flush()` and `close()` do. All but `write` is for one thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from os import PathLike
from types import TracebackType
from typing import Any, Final, Self

from durable.errors import BaggageFailed, NotStorable
from durable.memory import MemoryStore
from durable.records import MAX_SIZE, decode, encode, pack, unpack
from durable.sealing import open_store
from durable.seals import Seal
from durable.store import Changes, Store, check_table, laid_over, row_name

_USER: Final = "user"
_ABSENT: Final = object()


class Batch:
    """Changes that are written together. Made by `cut`, and not changed afterwards."""

    __slots__ = ("changes", "number", "scrub")

    def __init__(self, number: int, changes: Changes, scrub: bool) -> None:
        self.number = number
        self.changes = changes
        #: Whether what was deleted up to here is erased from the files, once this is on disk.
        self.scrub = scrub


class Namespace:
    """A mapping from str keys to values, one part of a baggage that no other part sees into.

    Values are those of `durable.records`: None, bool, int, float, str, bytes, list, and dict with str keys. They are
    copied in and out: to change what is kept, store it again. Raises NotStorable, KeyError, and BaggageFailed once
    the baggage has failed or is closed.
    """

    def __init__(self, baggage: Baggage, path: bytes) -> None:
        self._baggage = baggage
        self._path = path

    def __getitem__(self, key: str) -> Any:
        value = self.get(key, _ABSENT)
        if value is _ABSENT:
            raise KeyError(key)
        return value

    def get(self, key: str, default: Any = None) -> Any:
        row = self._row(key)
        data = self._baggage.read(_USER, row)
        return default if data is None else self._baggage.unpack(_decoded(row, data))

    def __setitem__(self, key: str, value: object) -> None:
        packed = self._baggage.pack(value)
        self._baggage._change_user(self._row(key), encode(packed, max_size=self._baggage._max_value))

    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise KeyError(key)
        self._baggage._change_user(self._row(key), None)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._baggage.read(_USER, self._row(key)) is not None

    def __iter__(self) -> Iterator[str]:
        """The keys in order. What changes meanwhile above the key reached is seen."""
        cursor = None
        while True:
            some, cursor = self._entries("", cursor, 100)
            for row, _ in some:
                yield self._key(row)
            if cursor is None:
                return

    def provide(self, key: str, make: Callable[[], object]) -> Any:
        """What is kept under `key`; if nothing is, what `make` returns, which is kept from now on."""
        if key not in self:
            self[key] = make()
        return self[key]

    def entries(
        self, prefix: str = "", after: str | None = None, limit: int = 100
    ) -> tuple[list[tuple[str, Any]], str | None]:
        """Up to `limit` keys and values, of those whose key begins with `prefix` and is above `after`.

        Ordered by code points. Also returns the `after` for the next call, or None if that was all.
        """
        if limit < 1:
            raise ValueError(f"limit must be above zero, not {limit}")
        rows, cursor = self._entries(prefix, after, limit)
        unpack = self._baggage.unpack
        return [(self._key(row), unpack(_decoded(row, data))) for row, data in rows], cursor

    def namespace(self, name: str) -> Namespace:
        """The mapping below `name`: none of its keys is one of this mapping, or of another name."""
        part = _utf8(name, "name")
        return Namespace(self._baggage, b"%bn%b%b" % (self._path, len(part).to_bytes(4, "big"), part))

    def _entries(
        self, prefix: str, after: str | None, limit: int
    ) -> tuple[list[tuple[bytes, bytes]], str | None]:
        start = None if after is None else self._row(after)
        rows = self._baggage.scan(_USER, self._row(prefix), start, limit + 1)
        if len(rows) <= limit:
            return rows, None
        return rows[:limit], self._key(rows[limit - 1][0])

    def _row(self, key: str) -> bytes:
        return b"%bk%b" % (self._path, _utf8(key, "key"))

    def _key(self, row: bytes) -> str:
        return row[len(self._path) + 1 :].decode()


class Baggage(Namespace):
    """The whole of it: the outermost namespace, and the rows of bytes that a peer keeps.

    `max_value` bounds one value of the application, encoded, in bytes.
    """

    def __init__(self, store: Store, *, max_value: int = MAX_SIZE) -> None:
        super().__init__(self, b"")
        #: Called at the first change after a cut, before it is made: the peer sees to it that a cut follows.
        self.on_dirty: Callable[[], None] | None = None
        #: Why the baggage cannot go on, once it cannot.
        self.failed: BaggageFailed | None = None
        self._gather: Callable[[], None] | None = None
        #: What a value is kept as. With a peer, it may hold references and durable objects too.
        self.pack: Callable[[object], Any] = pack
        self.unpack: Callable[[Any], Any] = unpack
        #: Whether a commit takes long enough for a peer to have it done in a thread. Tests on a mock clock, which knows
        #: nothing of threads, say no.
        self.blocks = not isinstance(store, MemoryStore)
        self._store = store
        self._max_value = max_value
        self._closed = False
        #: The batch that is not cut: its number, its changes.
        self._number = 1
        self._current: dict[tuple[str, bytes], bytes | None] = {}
        self._scrub = False
        #: All that the store does not have for sure: by table and key, the last batch that changed it, the value.
        self._overlay: dict[str, dict[bytes, tuple[int, bytes | None]]] = {}
        #: Batches cut of which `written` has not been said, in order.
        self._cut: list[Batch] = []
        self._committed = 0  # number of the last batch on disk
        self._writing = threading.Lock()
        #: Inside a transaction, for each change of the application: the key, whether the batch had it, its overlay.
        #: Or what undoes a change of something else.
        self._undo: list[tuple[bytes, bool, tuple[int, bytes | None] | None] | Callable[[], None]] = []
        self._depth = 0

    @property
    def store_id(self) -> bytes:
        """32 random bytes that tell this baggage from all others."""
        return self._store.store_id

    def keeper(self, node: Any) -> Any:
        """What keeps the sessions and objects of a peer here: for `ocapn.open_peer(baggage=…)`."""
        from durable.sessions import SessionKeeper

        return SessionKeeper(self, node)

    def attach(
        self,
        on_dirty: Callable[[], None],
        gather: Callable[[], None],
        pack: Callable[[object], Any],
        unpack: Callable[[Any], Any],
    ) -> None:
        """A peer keeps its state here from now on: `gather` writes what of it has changed.

        Raises RuntimeError if another peer does.
        """
        if self.on_dirty is not None:
            raise RuntimeError("a peer is open with this baggage already: it belongs to one at a time")
        self.on_dirty, self._gather, self.pack, self.unpack = on_dirty, gather, pack, unpack

    def detach(self) -> None:
        """The peer has ended."""
        self.on_dirty, self._gather, self.pack, self.unpack = None, None, pack, unpack

    # Rows, for the peer

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Sets a row."""
        self._change(table, key, value)

    def remove(self, table: str, key: bytes) -> None:
        """Removes a row, which need not be there."""
        self._change(table, key, None)

    def scrub_soon(self) -> None:
        """Has what was deleted so far erased from the files, with the commit of the changes so far."""
        self._check()
        if not self.dirty and self.on_dirty is not None:
            self.on_dirty()
        self._scrub = True

    def read(self, table: str, key: bytes) -> bytes | None:
        """The row with all changes made so far, or None."""
        self._check()
        check_table(table)
        entry = self._overlay.get(table, {}).get(key)
        return self._store.get(table, key) if entry is None else entry[1]

    def scan(
        self, table: str, prefix: bytes = b"", after: bytes | None = None, limit: int | None = None
    ) -> list[tuple[bytes, bytes]]:
        """As `Store.scan`, with all changes made so far."""
        self._check()
        check_table(table)
        over = {key: value for key, (_, value) in self._overlay.get(table, {}).items()}
        return laid_over(
            over, lambda most: self._store.scan(table, prefix, after, most), prefix, after, limit
        )

    @property
    def dirty(self) -> bool:
        """Whether there are changes that no batch holds yet, or something is to be erased."""
        return bool(self._current) or self._scrub

    def cut(self) -> Batch | None:
        """Closes the batch of the changes so far; None if there are none. RuntimeError inside a transaction."""
        self._check()
        self.ready()
        if self._gather is not None:
            self._gather()
        if not self.dirty:
            return None
        batch = Batch(self._number, self._current, self._scrub)
        self._cut.append(batch)
        self._current, self._scrub = {}, False
        self._number += 1
        return batch

    def ready(self) -> None:
        """Raises RuntimeError inside a transaction."""
        if self._depth:
            raise RuntimeError(
                "a transaction is open: nothing may await, flush or close between its beginning and its end"
            )

    def write(self, batches: Sequence[Batch]) -> None:
        """Commits the batches, in the order of their cuts, as one; those that `flush` has committed are passed over.

        Blocks, in whatever thread. Raises BaggageFailed, and RuntimeError if a batch before them is missing.
        """
        with self._writing:
            self._check()
            batches = [batch for batch in batches if batch.number > self._committed]
            if not batches:
                return
            first, last = self._committed + 1, self._committed + len(batches)
            if [batch.number for batch in batches] != list(range(first, last + 1)):
                raise RuntimeError(f"batches are written in order: the next is {first}")
            changes: dict[tuple[str, bytes], bytes | None] = {}
            for batch in batches:
                changes.update(batch.changes)
            try:
                self._store.commit(changes)
                if any(batch.scrub for batch in batches):
                    self._store.scrub()
            except BaggageFailed as error:
                self.failed = error
                raise
            self._committed = last

    def written(self, batch: Batch) -> None:
        """Forgets a batch that is on disk. RuntimeError if it is not, or if one before it was left out."""
        if batch not in self._cut:
            return  # `flush` was there first
        if batch.number > self._committed or batch is not self._cut[0]:
            raise RuntimeError(f"batch {batch.number} is not the next that is written")
        del self._cut[0]
        for table, key in batch.changes:
            rows = self._overlay[table]
            if rows[key][0] == batch.number:
                del rows[key]

    def flush(self) -> None:
        """Returns when all changes so far are on disk. Blocks the thread: with a running peer, leave it to the peer."""
        self.cut()
        batches = list(self._cut)
        self.write(batches)
        for batch in batches:
            self.written(batch)

    def scrub(self) -> None:
        """Writes all changes and erases from the files what was deleted, as far as the medium allows. Blocks."""
        self.flush()
        self._store.scrub()

    def verify(self) -> int:
        """Reads everything that is on disk, and says how many rows that is. Raises BaggageCorrupt. Blocks."""
        self._check()
        return self._store.verify()

    # For the application

    def transaction(self) -> AbstractContextManager[None]:
        """All changes that the application makes in the block, to keys and to fields of durable objects, or none if it
        raises. What was sent in it is not unsent.

        An inner transaction is part of the outer one, and rolls back only what was done in it. Between beginning and
        end nothing may `await`: what another task changed would be undone as well, and the peer, which cannot write
        meanwhile, would stop with a RuntimeError.
        """
        return self._transaction()

    @property
    def in_transaction(self) -> bool:
        return self._depth > 0

    def undo_with(self, undo: Callable[[], None]) -> None:
        """Inside a transaction: `undo` is called if it is rolled back."""
        self._undo.append(undo)

    def close(self) -> None:
        """Flushes, and gives the store free for others. May be called again.

        Raises BaggageFailed if something could not be written, unless that was said before.
        """
        if self._closed:
            return
        try:
            if self.failed is None:
                self.flush()
        finally:
            if not self._depth:
                self._closed = True
                self.failed = self.failed or BaggageFailed("the baggage is closed")
                self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._check()
        mark = len(self._undo)
        self._depth += 1
        try:
            yield
        except BaseException:
            while len(self._undo) > mark:
                self._undo_one()
            raise
        finally:
            self._depth -= 1
            if not self._depth:
                self._undo.clear()

    def _undo_one(self) -> None:
        undo = self._undo.pop()
        if not isinstance(undo, tuple):
            undo()
            return
        key, had, entry = undo
        rows = self._overlay[_USER]
        if not had:
            del self._current[_USER, key]
        if entry is None:
            del rows[key]
        else:
            rows[key] = entry
            if had:
                self._current[_USER, key] = entry[1]

    def _change_user(self, key: bytes, value: bytes | None) -> None:
        if self._depth:
            had = (_USER, key) in self._current
            self._undo.append((key, had, self._overlay.get(_USER, {}).get(key)))
        self._change(_USER, key, value)

    def _change(self, table: str, key: bytes, value: bytes | None) -> None:
        self._check()
        check_table(table)
        if not self._current and self.on_dirty is not None:
            self.on_dirty()
        self._current[table, key] = value
        self._overlay.setdefault(table, {})[key] = (self._number, value)

    def _check(self) -> None:
        if self.failed is not None:
            raise BaggageFailed(*self.failed.args)


class MemoryBaggage(Baggage):
    """A baggage that ends with its process. `store` is there to hand on what another one held."""

    def __init__(self, store: MemoryStore | None = None, *, max_value: int = MAX_SIZE) -> None:
        super().__init__(store or MemoryStore(), max_value=max_value)


def open_baggage(
    path: str | PathLike[str], *, seal: Seal | None = None, max_value: int = MAX_SIZE
) -> Baggage:
    """The baggage in the directory `path`, made if absent, with mode 0700. To be closed: `with open_baggage(…) as …`.

    With a `seal` it is encrypted at rest, from its making on: `Passphrase`, `KeyFile`, or a function that is given the
    id of the store and returns a key of 32 bytes. spec/sealing.md says what that protects. `durable.seal` is for one
    that is there.

    Raises BaggageInUse if somebody has it open, BaggageRefused if none can be kept there, SealRefused if the seal is
    not that of the baggage, or one of the two is without; BaggageCorrupt, BaggageNewer, and BaggageFailed where the
    operating system refuses something.
    """
    return Baggage(open_store(path, seal), max_value=max_value)


def _decoded(row: bytes, data: bytes) -> Any:
    return decode(data, table=_USER, row=row_name(row))


def _utf8(text: str, what: str) -> bytes:
    if not isinstance(text, str):
        raise NotStorable(f"must be a str, not a {type(text).__qualname__}", what)
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise NotStorable("a lone surrogate is no text", what) from None
