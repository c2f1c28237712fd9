"""Backends that break one promise each, for the tests of `check_storage`."""

from __future__ import annotations

import trio

from ocapn.errors import StorageFull
from ocapn.storage.backend import Listed, Quota, StorageStats, entry_size
from ocapn.storage.memory import MemoryStorage


class Honest:
    """Passes everything on to a MemoryStorage."""

    def __init__(self) -> None:
        self.inner = MemoryStorage(now=trio.current_time)

    def get(self, peer: str, key: str) -> bytes | None:
        return self.inner.get(peer, key)

    def set(self, peer: str, key: str, value: bytes, ttl: float | None, quota: Quota) -> None:
        self.inner.set(peer, key, value, ttl, quota)

    def delete(self, peer: str, key: str) -> bool:
        return self.inner.delete(peer, key)

    def list(self, peer: str, prefix: str, after: str | None, limit: int, keys_only: bool) -> Listed:
        return self.inner.list(peer, prefix, after, limit, keys_only)

    def stats(self) -> StorageStats:
        return self.inner.stats()

    def sweep(self) -> None:
        self.inner.sweep()


class HalfAsync(Honest):
    async def delete(self, peer: str, key: str) -> bool:  # type: ignore[override]
        await trio.lowlevel.checkpoint()
        return super().delete(peer, key)


class LosesEmptyValues(Honest):
    def get(self, peer: str, key: str) -> bytes | None:
        return super().get(peer, key) or None


class DeletesAlways(Honest):
    def delete(self, peer: str, key: str) -> bool:
        super().delete(peer, key)
        return True


class KeepsOneName(Honest):
    """Peer and key make one name, with a colon between them."""

    def get(self, peer: str, key: str) -> bytes | None:
        return super().get("", f"{peer}:{key}")

    def set(self, peer: str, key: str, value: bytes, ttl: float | None, quota: Quota) -> None:
        super().set("", f"{peer}:{key}", value, ttl, quota)

    def delete(self, peer: str, key: str) -> bool:
        return super().delete("", f"{peer}:{key}")

    def list(self, peer: str, prefix: str, after: str | None, limit: int, keys_only: bool) -> Listed:
        above = None if after is None else f"{peer}:{after}"
        entries, end = super().list("", f"{peer}:{prefix}", above, limit, keys_only)
        cut = len(peer) + 1
        return [(key[cut:], value) for key, value in entries], None if end is None else end[cut:]


class IgnoresCase(Honest):
    def get(self, peer: str, key: str) -> bytes | None:
        return super().get(peer.lower(), key)

    def set(self, peer: str, key: str, value: bytes, ttl: float | None, quota: Quota) -> None:
        super().set(peer.lower(), key, value, ttl, quota)


class CutsKeys(Honest):
    """A column of 255 characters."""

    def set(self, peer: str, key: str, value: bytes, ttl: float | None, quota: Quota) -> None:
        super().set(peer, key[:255], value, ttl, quota)


class OrdersByUtf16(Honest):
    def list(self, peer: str, prefix: str, after: str | None, limit: int, keys_only: bool) -> Listed:
        entries, _ = super().list(peer, prefix, after, 1000, keys_only)
        return sorted(entries, key=lambda entry: entry[0].encode("utf-16-be")), None


class GivesTooMany(Honest):
    def list(self, peer: str, prefix: str, after: str | None, limit: int, keys_only: bool) -> Listed:
        return super().list(peer, prefix, after, limit + 1, keys_only)


class MatchesPatterns(Honest):
    """A prefix that ends with a star is one without it."""

    def list(self, peer: str, prefix: str, after: str | None, limit: int, keys_only: bool) -> Listed:
        return super().list(peer, prefix.removesuffix("*"), after, limit, keys_only)


class GoesBack(Honest):
    """The next page begins with the last key of the one before."""

    def list(self, peer: str, prefix: str, after: str | None, limit: int, keys_only: bool) -> Listed:
        if after is None:
            return super().list(peer, prefix, after, limit, keys_only)
        value = None if keys_only else self.get(peer, after)
        entries, end = super().list(peer, prefix, after, limit - 1 or 1, keys_only)
        return [(after, value), *entries][:limit], end


class GivesValuesToo(Honest):
    def list(self, peer: str, prefix: str, after: str | None, limit: int, keys_only: bool) -> Listed:
        return super().list(peer, prefix, after, limit, False)


class CountsPages(Honest):
    """Goes on at a number of entries, not after a key."""

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[str, int] = {}

    def list(self, peer: str, prefix: str, after: str | None, limit: int, keys_only: bool) -> Listed:
        entries, _ = super().list(peer, prefix, None, 1000, keys_only)
        first = 0
        if after is not None:
            above = sum(entry[0] <= after for entry in entries)
            first = self.places.pop(after, above)
        page = entries[first : first + limit]
        if first + limit >= len(entries):
            return page, None
        self.places[page[-1][0]] = first + limit
        return page, page[-1][0]


class NeverExpires(Honest):
    def set(self, peer: str, key: str, value: bytes, ttl: float | None, quota: Quota) -> None:
        super().set(peer, key, value, None, quota)


class KeepsTheOldTtl(Honest):
    """A key that is set again without a ttl has the one it had."""

    def __init__(self) -> None:
        super().__init__()
        self.ttls: dict[tuple[str, str], float | None] = {}

    def set(self, peer: str, key: str, value: bytes, ttl: float | None, quota: Quota) -> None:
        ttl = self.ttls[peer, key] = ttl or self.ttls.get((peer, key))
        super().set(peer, key, value, ttl, quota)


class DoesNotSlide(Honest):
    def __init__(self) -> None:
        super().__init__()
        self.until: dict[tuple[str, str], float] = {}

    def set(self, peer: str, key: str, value: bytes, ttl: float | None, quota: Quota) -> None:
        super().set(peer, key, value, ttl, quota)
        self.until[peer, key] = trio.current_time() + (ttl or 1e9)

    def get(self, peer: str, key: str) -> bytes | None:
        if self.until.get((peer, key), 0) <= trio.current_time():
            super().delete(peer, key)
        return super().get(peer, key)


class SlidesWhenListed(Honest):
    def list(self, peer: str, prefix: str, after: str | None, limit: int, keys_only: bool) -> Listed:
        listed = super().list(peer, prefix, after, limit, keys_only)
        for key, _ in listed[0]:
            self.get(peer, key)
        return listed


class HasNoQuota(Honest):
    def set(self, peer: str, key: str, value: bytes, ttl: float | None, quota: Quota) -> None:
        super().set(peer, key, value, ttl, Quota(10**6, quota.size))


class CountsOnlyKeys(Honest):
    def set(self, peer: str, key: str, value: bytes, ttl: float | None, quota: Quota) -> None:
        super().set(peer, key, value, ttl, Quota(quota.keys, 10**9))


class ReplacesNothingWhenFull(Honest):
    def set(self, peer: str, key: str, value: bytes, ttl: float | None, quota: Quota) -> None:
        if len(super().list(peer, "", None, 1000, True)[0]) >= quota.keys:
            raise StorageFull("full")
        super().set(peer, key, value, ttl, quota)


class SetsBeforeItRefuses(Honest):
    def set(self, peer: str, key: str, value: bytes, ttl: float | None, quota: Quota) -> None:
        super().set(peer, key, value, ttl, Quota(10**6, 10**9))
        super().set(peer, key, value, ttl, quota)
        keys = [one for one, _ in super().list(peer, "", None, 1000, True)[0]]
        if len(keys) > quota.keys:
            raise StorageFull("full")
        if (
            sum(entry_size(one, super(SetsBeforeItRefuses, self).get(peer, one) or b"") for one in keys)
            > quota.size
        ):
            raise StorageFull("full")


class CountsWhatHasExpired(Honest):
    def __init__(self) -> None:
        super().__init__()
        self.set_once: dict[str, set[str]] = {}

    def set(self, peer: str, key: str, value: bytes, ttl: float | None, quota: Quota) -> None:
        keys = self.set_once.setdefault(peer, set())
        if len(keys | {key}) > quota.keys:
            raise StorageFull("full")
        super().set(peer, key, value, ttl, quota)
        keys.add(key)

    def delete(self, peer: str, key: str) -> bool:
        self.set_once.get(peer, set()).discard(key)
        return super().delete(peer, key)


class SetsAPart(Honest):
    def set_many(self, peer: str, entries: dict[str, bytes], ttl: float | None, quota: Quota) -> None:
        for key, value in entries.items():
            self.set(peer, key, value, ttl, quota)


class GivesAllThatWasAsked(Honest):
    def get_many(self, peer: str, keys: list[str]) -> dict[str, bytes]:
        return {key: self.get(peer, key) or b"" for key in keys}


class CountsWhatWasAsked(Honest):
    def delete_many(self, peer: str, keys: list[str]) -> int:
        for key in keys:
            self.delete(peer, key)
        return len(keys)


class Miscounts(Honest):
    def stats(self) -> StorageStats:
        stats = super().stats()
        return StorageStats(stats.peers, stats.keys, stats.size - stats.keys)


class SweepsNothing(Honest):
    def sweep(self) -> None:
        pass


class NoCheckpoints:
    """Async, and never a checkpoint."""

    def __init__(self) -> None:
        self.inner = MemoryStorage(now=trio.current_time)

    async def get(self, peer: str, key: str) -> bytes | None:
        return self.inner.get(peer, key)

    async def set(self, peer: str, key: str, value: bytes, ttl: float | None, quota: Quota) -> None:
        self.inner.set(peer, key, value, ttl, quota)

    async def delete(self, peer: str, key: str) -> bool:
        return self.inner.delete(peer, key)

    async def list(self, peer: str, prefix: str, after: str | None, limit: int, keys_only: bool) -> Listed:
        return self.inner.list(peer, prefix, after, limit, keys_only)


#: What each breaks, as the checker says it.
BROKEN = {
    HalfAsync: "unlike delete",
    LosesEmptyValues: "a value of 0 bytes comes back as another",
    DeletesAlways: "delete of a key that is not there",
    KeepsOneName: "no peer sees or changes what another has",
    IgnoresCase: "peers share a key",
    CutsKeys: "is lost or another's",
    OrdersByUtf16: "not listed in the order of code points",
    GivesTooMany: "a page with limit 1 has 2 entries",
    MatchesPatterns: "list of prefix '*'",
    GoesBack: "list of prefix '' after None with limit 1 is wrong",
    GivesValuesToo: "keys_only gives other keys, or values",
    CountsPages: "a key that stays is missing, or there twice",
    NeverExpires: "an entry is listed after its ttl",
    KeepsTheOldTtl: "an entry ends when it was not read for its ttl",
    DoesNotSlide: "an entry ends though it was read within its ttl",
    SlidesWhenListed: "an entry does not end because it was listed",
    HasNoQuota: "more keys are set than the quota has",
    CountsOnlyKeys: "a value is set that is larger than the quota",
    ReplacesNothingWhenFull: "a quota is of keys",
    SetsBeforeItRefuses: "a key that was refused is there",
    CountsWhatHasExpired: "what has expired makes room in the quota",
    SetsAPart: "set_many has set a part",
    GivesAllThatWasAsked: "get_many gives something else than what there is",
    CountsWhatWasAsked: "delete_many of two keys that are there says 3",
    Miscounts: "stats says",
    SweepsNothing: "after a sweep, stats says",
    NoCheckpoints: "every call of an async backend is a checkpoint",
}
