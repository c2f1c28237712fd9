"""Storage in memory: it ends with the process, and what was not used for longest makes room for what is new."""

from __future__ import annotations

import heapq
import time
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, final

from ocapn.limits import StorageLimits
from ocapn.storage.backend import Listed, Quota, StorageStats, entry_size, over_cap, over_quota

#: Expired entries that are removed at each change, and at each `sweep`.
_BIT: Final = 16
_SWEEP: Final = 1_000


@final
class _Entry:
    __slots__ = ("expires", "key", "peer", "size", "ttl", "value")

    def __init__(
        self, peer: str, key: str, value: bytes, size: int, ttl: float | None, expires: float
    ) -> None:
        self.peer = peer
        self.key = key
        self.value: bytes | None = value  # None once it is no entry any more
        self.size = size
        self.ttl = ttl
        self.expires = expires


@final
class _Peer:
    """The keys of one peer, sorted, and their size."""

    __slots__ = ("keys", "size")

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.size = 0


@final
class MemoryStorage:
    """A StorageBackend. `limits.keys` and `limits.size` are a hard cap on what it keeps for all peers together.

    Where they are met, the entry of whichever peer that was not read or set for longest goes. So a peer can push out
    what others keep, with as much as its own quota. `now` is a monotonic clock, in seconds.
    """

    def __init__(
        self, limits: StorageLimits | None = None, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits or StorageLimits()
        self._now = now
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()  # the least recently used first
        self._peers: dict[str, _Peer] = {}
        self._size = 0
        #: When to look whether an entry has expired: never later than that is so.
        self._due: list[tuple[float, int, _Entry]] = []
        self._count = 0

    def get(self, peer: str, key: str) -> bytes | None:
        entry = self._entries.get((peer, key))
        if entry is None:
            return None
        if entry.ttl is not None:
            now = self._now()
            if entry.expires <= now:
                self._remove(entry)
                return None
            entry.expires = now + entry.ttl
        self._entries.move_to_end((peer, key))
        return entry.value

    def set(self, peer: str, key: str, value: bytes, ttl: float | None, quota: Quota) -> None:
        self._expire(_BIT)
        size = entry_size(key, value)
        if size > self._limits.size:
            raise over_cap()
        if not self._fits(peer, key, size, quota):
            self._expire(None)
            if not self._fits(peer, key, size, quota):
                raise over_quota(quota)
        old = self._entries.get((peer, key))
        if old is not None:
            self._remove(old)
        expires = float("inf") if ttl is None else self._now() + ttl
        entry = self._entries[peer, key] = _Entry(peer, key, value, size, ttl, expires)
        its = self._peers.setdefault(peer, _Peer())
        insort(its.keys, key)
        its.size += size
        self._size += size
        if ttl is not None:
            self._watch(entry)
        if len(self._entries) > self._limits.keys or self._size > self._limits.size:
            self._expire(None)
        while len(self._entries) > self._limits.keys or self._size > self._limits.size:
            self._remove(next(iter(self._entries.values())))

    def delete(self, peer: str, key: str) -> bool:
        entry = self._entries.get((peer, key))
        if entry is None:
            return False
        self._remove(entry)
        return entry.expires > self._now()

    def list(self, peer: str, prefix: str, after: str | None, limit: int, keys_only: bool) -> Listed:
        its = self._peers.get(peer)
        if its is None:
            return [], None
        first = bisect_left(its.keys, prefix)
        if after is not None:
            first = max(first, bisect_right(its.keys, after))
        now = self._now()
        found: list[tuple[str, bytes | None]] = []
        for place in range(first, len(its.keys)):
            key = its.keys[place]
            if not key.startswith(prefix):
                break
            if place == first + limit:
                return found, its.keys[place - 1]
            entry = self._entries[peer, key]
            if entry.expires > now:
                found.append((key, None if keys_only else entry.value))
        return found, None

    def stats(self) -> StorageStats:
        return StorageStats(len(self._peers), len(self._entries), self._size)

    def sweep(self) -> None:
        self._expire(_SWEEP)

    def _fits(self, peer: str, key: str, size: int, quota: Quota) -> bool:
        its = self._peers.get(peer) or _Peer()
        old = self._entries.get((peer, key))
        more = size - (0 if old is None else old.size)
        return (old is not None or len(its.keys) < quota.keys) and (
            more <= 0 or its.size + more <= quota.size
        )

    def _watch(self, entry: _Entry) -> None:
        self._count += 1
        heapq.heappush(self._due, (entry.expires, self._count, entry))
        if len(self._due) > 2 * len(self._entries) + 100:  # most are of entries that are gone
            self._due = [one for one in self._due if one[2].value is not None]
            heapq.heapify(self._due)

    def _expire(self, most: int | None) -> None:
        """Removes what has expired; `most` bounds what is looked at."""
        now = self._now()
        while self._due and self._due[0][0] <= now and most != 0:
            entry = heapq.heappop(self._due)[2]
            if entry.value is not None:
                if entry.expires <= now:
                    self._remove(entry)
                else:
                    self._watch(entry)
            most = None if most is None else most - 1

    def _remove(self, entry: _Entry) -> None:
        del self._entries[entry.peer, entry.key]
        entry.value = None
        its = self._peers[entry.peer]
        del its.keys[bisect_left(its.keys, entry.key)]
        its.size -= entry.size
        self._size -= entry.size
        if not its.keys:
            del self._peers[entry.peer]
