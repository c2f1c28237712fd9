"""Where what is kept for callers is kept: what a backend must do, and may.

Keys and values come checked, values as bytes, and `peer` is the caller's name: nothing that two callers share. A
`Storage` stands above it and does the rest. `ocapn.testing.check_storage` checks a backend.
"""

from __future__ import annotations

from typing import Protocol

import attrs

from ocapn.errors import StorageFull


@attrs.frozen
class Quota:
    """What one peer may keep: keys, and bytes of keys and values together."""

    keys: int
    size: int


@attrs.frozen
class StorageStats:
    """What is kept: for how many peers, how many keys, how many bytes of keys and values.

    What has expired counts until it is removed.
    """

    peers: int
    keys: int
    size: int


#: Some keys, in the order of their code points, with values where they were asked for; and the key after which to go
#: on, or None if there are no more.
Listed = tuple[list[tuple[str, bytes | None]], str | None]


class StorageBackend(Protocol):
    """One that cannot block. What it raises, other than an OCapNError, callers get as StorageFailed.

    It may have `get_many(peer, keys) → {key: value}` with those that are there, `set_many(peer, {key: value}, ttl,
    quota)`, which sets all or nothing, and `delete_many(peer, keys) → how many there were`; without them, single calls
    are made, one after the other. It may have `stats() → StorageStats`; and `sweep()`, which is called every few
    seconds: to remove some of what has expired.
    """

    def get(self, peer: str, key: str) -> bytes | None:
        """The value, or None. Its ttl begins again, for which up to a tenth of it may have to be gone."""

    def set(self, peer: str, key: str, value: bytes, ttl: float | None, quota: Quota) -> None:
        """Keeps a value, until it was not read for `ttl` seconds. Raises StorageFull, and changes nothing then."""

    def delete(self, peer: str, key: str) -> bool:
        """Whether there was such a key."""

    def list(self, peer: str, prefix: str, after: str | None, limit: int, keys_only: bool) -> Listed:
        """Keys that begin with `prefix` and are above `after`: at most `limit`, the lowest. No ttl begins again.

        May give less than there is, or nothing, if it also says after which key to go on.
        """


class AsyncStorageBackend(Protocol):
    """The same, of one that can block. Every call is a checkpoint; one that is cancelled may have been done or not."""

    async def get(self, peer: str, key: str) -> bytes | None:
        """See StorageBackend."""

    async def set(self, peer: str, key: str, value: bytes, ttl: float | None, quota: Quota) -> None:
        """See StorageBackend."""

    async def delete(self, peer: str, key: str) -> bool:
        """See StorageBackend."""

    async def list(self, peer: str, prefix: str, after: str | None, limit: int, keys_only: bool) -> Listed:
        """See StorageBackend."""


def entry_size(key: str, value: bytes) -> int:
    """The bytes that an entry counts for."""
    return len(key.encode()) + len(value)


def over_quota(quota: Quota) -> StorageFull:
    """The error for a peer that would keep more than it may."""
    return StorageFull(f"the caller may keep {quota.keys:,} keys, of {quota.size:,} bytes with their values")


def over_cap() -> StorageFull:
    """The error where all peers together would."""
    return StorageFull("all that may be kept for all callers is kept")


def name_of(transport: str, designator: str) -> str:
    """The `peer` of one that the netlayer has authenticated. No two are alike: each part says how long it is."""
    return f"peer:{len(transport)}:{transport}{len(designator)}:{designator}"


def name_given(identity: str) -> str:
    """The `peer` of one of whom the application says who it is."""
    return f"name:{identity}"
