"""What the callers of a peer keep, in its baggage: `ocapn.storage.backend.StorageBackend`, implemented.

All is in namespaces of the application's table, so that it changes in the transaction of the turn, and a transaction
that is rolled back takes it along. spec/storage.md describes the rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, final

from durable.baggage import Baggage, Namespace
from ocapn.errors import StorageFull
from ocapn.limits import StorageLimits
from ocapn.storage.backend import Listed, Quota, StorageStats, entry_size, over_cap, over_quota

#: The namespace of it all.
NAMESPACE: Final = "ocapn.storage"
#: A ttl begins again at a read once so much of it has gone: not every read is a write.
_RENEW: Final = 0.1
#: What of the time between two processes counts at most, seconds: a clock that was set wrong cannot do more.
_AWAY: Final = 7 * 86_400.0
#: How far the clock that is kept may be behind, seconds.
_CLOCK: Final = 3_600.0
#: Expired entries that are removed at each change, and at each `sweep`.
_BIT: Final = 4
_SWEEP: Final = 200
_FULL: Final = 2_000
#: Above every note of when to look.
_LAST: Final = "g"

#: An entry: value, ttl, until when, and the note that says when to look; three times None without a ttl.
_Row = list[Any]


@final
class _Counts:
    """Of one peer keys and bytes, of all peers, keys and bytes, as the rows say; and what was added to both since."""

    __slots__ = ("all", "its", "keys", "size")

    def __init__(self, its: list[int], all_: list[int]) -> None:
        self.its = its
        self.all = all_
        self.keys = self.size = 0


@final
class BaggageStorage:
    """A StorageBackend. `limits.keys` and `limits.size` are a hard cap on what it keeps for all peers together.

    Nothing makes room for something new but what has expired: who would go beyond the cap gets StorageFull. `now` is
    a monotonic clock, `wall` one that goes on between processes.
    """

    def __init__(
        self,
        baggage: Baggage,
        limits: StorageLimits | None = None,
        *,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._baggage = baggage
        self._limits = limits or StorageLimits()
        self._now = now
        self._wall = wall
        root = baggage.namespace(NAMESPACE)
        self._entries = root.namespace("entries")
        self._sizes = root.namespace("sizes")
        self._due = root.namespace("due")
        self._totals = root.namespace("totals")
        self._start: tuple[float, float] | None = None  # the time, and `now` then
        self._next = ""  # no note that is there comes before

    def get(self, peer: str, key: str) -> bytes | None:
        space = self._entries.namespace(peer)
        row = space.get(key)
        if row is None:
            return None
        value, ttl, until, due = row
        if ttl is not None:
            time = self._time()
            if until <= time:
                with self._baggage.transaction():
                    self._remove(peer, key, space, row)
                return None
            if until - time <= ttl * (1 - _RENEW):
                space[key] = [value, ttl, time + ttl, due]
        data: bytes = value
        return data

    def set(self, peer: str, key: str, value: bytes, ttl: float | None, quota: Quota) -> None:
        self.set_many(peer, {key: value}, ttl, quota)

    def set_many(self, peer: str, entries: dict[str, bytes], ttl: float | None, quota: Quota) -> None:
        self._expire(_BIT)
        try:
            with self._baggage.transaction():
                self._set_many(peer, entries, ttl, quota)
        except StorageFull:
            # What has expired is removed before anybody is refused: the caller's first, then all that is due.
            if not (self._remove_expired(peer) + self._expire(_FULL)):
                raise
            with self._baggage.transaction():
                self._set_many(peer, entries, ttl, quota)

    def _set_many(self, peer: str, entries: dict[str, bytes], ttl: float | None, quota: Quota) -> None:
        space = self._entries.namespace(peer)
        counts = self._counts(peer)
        for key, value in entries.items():
            row = space.get(key)
            full = self._full(counts, key, value, row, quota)
            if full is not None:
                raise full
            self._set(peer, key, space, row, value, ttl)
            counts.keys += row is None
            counts.size += len(value) - len(row[0]) if row is not None else entry_size(key, value)
        self._count(peer, counts)

    def delete(self, peer: str, key: str) -> bool:
        space = self._entries.namespace(peer)
        row = space.get(key)
        if row is None:
            return False
        with self._baggage.transaction():
            self._remove(peer, key, space, row)
        return row[1] is None or row[2] > self._time()

    def list(self, peer: str, prefix: str, after: str | None, limit: int, keys_only: bool) -> Listed:
        rows, end = self._entries.namespace(peer).entries(prefix, after, limit)
        time = self._time()
        found = [
            (key, None if keys_only else value)
            for key, (value, ttl, until, _) in rows
            if ttl is None or until > time
        ]
        return found, end

    def stats(self) -> StorageStats:
        return StorageStats(*self._totals.get("all", [0, 0, 0]))

    def sweep(self) -> None:
        self._expire(_SWEEP)
        if self._totals.get("clock") is not None and next(iter(self._due), None) is not None:
            self._keep_clock()

    # Entries

    def _set(
        self, peer: str, key: str, space: Namespace, row: _Row | None, value: bytes, ttl: float | None
    ) -> None:
        old: _Row = row or [b"", None, None, None]
        until = due = None
        if ttl is not None:
            until = self._time() + ttl
            # A note may be early, as it is after a ttl has begun again: so most need no other.
            due = old[3] if old[2] is not None and old[2] <= until else self._watch(peer, key, until)
            self._keep_clock()
        if old[3] is not None and due != old[3]:
            del self._due[old[3]]
        space[key] = [value, ttl, until, due]

    def _full(
        self, counts: _Counts, key: str, value: bytes, row: _Row | None, quota: Quota
    ) -> StorageFull | None:
        """Why an entry cannot be set in the place of `row`."""
        more = row is None
        size = entry_size(key, value) if row is None else len(value) - len(row[0])
        keys, held = counts.its[0] + counts.keys, counts.its[1] + counts.size
        if (more and keys >= quota.keys) or (size > 0 and held + size > quota.size):
            return over_quota(quota)
        keys, held = counts.all[1] + counts.keys, counts.all[2] + counts.size
        if (more and keys >= self._limits.keys) or (size > 0 and held + size > self._limits.size):
            return over_cap()
        return None

    def _remove(self, peer: str, key: str, space: Namespace, row: _Row) -> None:
        del space[key]
        if row[3] is not None:
            del self._due[row[3]]
        counts = self._counts(peer)
        counts.keys, counts.size = -1, -entry_size(key, row[0])
        self._count(peer, counts)

    def _counts(self, peer: str) -> _Counts:
        return _Counts(self._sizes.get(peer, [0, 0]), self._totals.get("all", [0, 0, 0]))

    def _count(self, peer: str, counts: _Counts) -> None:
        keys, size = counts.keys, counts.size
        if not keys and not size:
            return
        its, (peers, all_keys, all_size) = counts.its, counts.all
        peers += (its[0] + keys > 0) - (its[0] > 0)
        self._totals["all"] = [peers, all_keys + keys, all_size + size]
        if its[0] + keys:
            self._sizes[peer] = [its[0] + keys, its[1] + size]
        else:
            del self._sizes[peer]

    # Time

    def _watch(self, peer: str, key: str, until: float) -> str:
        """Notes when to look whether an entry has expired; no two entries have the same note."""
        number = self._totals.get("notes", 0)
        self._totals["notes"] = number + 1
        note = f"{int(until * 1000):016x}{number:016x}"
        self._due[note] = [peer, key]
        self._next = min(self._next, note)
        return note

    def _remove_expired(self, peer: str) -> int:
        """Removes what has expired of one peer, as far as `_FULL` entries show it; how many those were."""
        space, time = self._entries.namespace(peer), self._time()
        rows, _ = space.entries(limit=_FULL)
        expired = [(key, row) for key, row in rows if row[1] is not None and row[2] <= time]
        with self._baggage.transaction():
            for key, row in expired:
                self._remove(peer, key, space, row)
        return len(expired)

    def _expire(self, most: int) -> int:
        """Removes what has expired; `most` bounds what is looked at. Says how many entries that were."""
        with self._baggage.transaction():
            return self._expired(most)

    def _expired(self, most: int) -> int:
        time = self._time()
        before = f"{int(time * 1000):016x}"
        removed = 0
        if self._next[:16] > before:
            return removed
        notes, more = self._due.entries(limit=most)
        self._next = _LAST if more is None else notes[-1][0]
        if self._baggage.in_transaction:
            self._baggage.undo_with(self._look_again)
        for note, (peer, key) in notes:
            if note[:16] > before:
                self._next = min(self._next, note)
                break
            space = self._entries.namespace(peer)
            row = space[key]
            if row[2] <= time:
                self._remove(peer, key, space, row)
                removed += 1
            else:  # its ttl has begun again
                del self._due[note]
                space[key] = [*row[:3], self._watch(peer, key, row[2])]
        return removed

    def _look_again(self) -> None:
        """What was removed, or noted later, is there again as it was."""
        self._next = ""

    def _time(self) -> float:
        """Seconds since 1970, as far as the clock is right: it never goes back, and goes on as `now` does.

        Between two processes it goes on as `wall`, by no less than nothing and no more than seven days.
        """
        if self._start is None:
            wall, kept = self._wall(), self._totals.get("clock")
            start = wall if kept is None else min(max(wall, kept), kept + _AWAY)
            self._start = start, self._now()
        start, then = self._start
        return start + self._now() - then

    def _keep_clock(self) -> None:
        kept, time = self._totals.get("clock"), self._time()
        if kept is None or time - kept >= _CLOCK:
            self._totals["clock"] = time
