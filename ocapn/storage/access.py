"""The storage of one caller: what all backends have in common."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Literal, ParamSpec, TypeVar, final, overload

import trio

from ocapn.errors import OCapNError, StorageFailed, StorageRefused
from ocapn.limits import StorageLimits
from ocapn.storage.backend import AsyncStorageBackend, Listed, Quota, StorageBackend
from ocapn.storage.checks import (
    after_cursor,
    check_key,
    check_limit,
    check_prefix,
    check_ttl,
    cursor_of,
    decode,
    encode,
)

_P = ParamSpec("_P")
_R = TypeVar("_R")


def can_block(backend: StorageBackend | AsyncStorageBackend) -> bool:
    """Whether it is an AsyncStorageBackend."""
    return inspect.iscoroutinefunction(backend.get)


class _Terms:
    """What is asked, checked and as a backend takes it; what it answers, as the application takes it."""

    __slots__ = ("_limits", "_peer", "_quota")

    def __init__(self, peer: str, limits: StorageLimits) -> None:
        self._peer = peer
        self._limits = limits
        self._quota = Quota(limits.peer_keys, limits.peer_size)

    def _key(self, key: object) -> str:
        return check_key(key, self._limits.key)

    def _keys(self, keys: Iterable[str]) -> list[str]:
        checked: dict[str, None] = {}
        for count, key in enumerate(keys):
            self._count(count)
            checked[self._key(key)] = None
        return list(checked)

    def _entries(self, entries: Mapping[str, object]) -> dict[str, bytes]:
        self._count(len(entries) - 1)
        return {self._key(key): self._encode(value) for key, value in entries.items()}

    def _count(self, before: int) -> None:
        if before >= self._limits.batch:
            raise StorageRefused(f"at most {self._limits.batch:,} keys may be given at once")

    def _encode(self, value: object) -> bytes:
        return encode(value, self._limits.value, self._limits.nesting)

    def _decode(self, data: object) -> Any:
        return decode(data, self._limits.nesting)

    def _page(
        self, prefix: object, cursor: object, limit: object, keys_only: object
    ) -> tuple[str, str | None, int, bool]:
        most = self._limits.key
        return check_prefix(prefix, most), after_cursor(cursor, most), check_limit(limit), bool(keys_only)

    def _listed(self, listed: Listed, keys_only: bool) -> tuple[list[Any], str | None]:
        entries, after = listed
        cursor = None if after is None else cursor_of(after)
        if keys_only:
            return [key for key, _ in entries], cursor
        return [(key, self._decode(data)) for key, data in entries], cursor

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of one caller>"


@final
class Storage(_Terms):
    """What one peer keeps here: a mapping of its own from str keys to values, in a backend that cannot block.

    Values are None, bool, int, float, str, bytes, list, and dict with str keys, and are copied in and out. Keys have 1
    to 1,024 bytes in UTF-8. Every method may raise StorageRefused for its arguments and StorageFailed.
    """

    __slots__ = ("_backend",)

    def __init__(self, backend: StorageBackend, peer: str, limits: StorageLimits) -> None:
        super().__init__(peer, limits)
        self._backend = backend

    def get(self, key: str, default: Any = None) -> Any:
        """The value under `key`, whose ttl begins again; `default` if there is none."""
        data = _call(self._backend.get, self._peer, self._key(key))
        return default if data is None else self._decode(data)

    def set(self, key: str, value: object, *, ttl: float | None = None) -> None:
        """Keeps a value under `key`, for ever, or until it was not read for `ttl` seconds. Raises StorageFull."""
        self._set(self._key(key), self._encode(value), check_ttl(ttl))

    def delete(self, key: str) -> bool:
        """Whether there was such a key."""
        return bool(_call(self._backend.delete, self._peer, self._key(key)))

    @overload
    def list(
        self, prefix: str = "", cursor: str | None = None, limit: int = 100, *, keys_only: Literal[True]
    ) -> tuple[list[str], str | None]: ...
    @overload
    def list(
        self,
        prefix: str = "",
        cursor: str | None = None,
        limit: int = 100,
        *,
        keys_only: Literal[False] = ...,
    ) -> tuple[list[tuple[str, Any]], str | None]: ...
    def list(
        self, prefix: str = "", cursor: str | None = None, limit: int = 100, *, keys_only: bool = False
    ) -> tuple[list[Any], str | None]:
        """Keys that begin with `prefix`, ordered by code points, with their values; and a cursor for the next call.

        The cursor is None after the last page; a page may have fewer entries than `limit`, 1 to 1,000, or none, and
        not be the last. Whatever is set and deleted between two calls, a key that stays is given once. No ttl begins
        again.
        """
        page = self._page(prefix, cursor, limit, keys_only)
        return self._listed(_call(self._backend.list, self._peer, *page), keys_only)

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """As `get`: those of the keys, at most 1,000, that there are."""
        wanted = self._keys(keys)
        many = getattr(self._backend, "get_many", None)
        found: dict[str, bytes | None]
        if many is not None:
            found = _call(many, self._peer, wanted)
        else:
            found = {key: _call(self._backend.get, self._peer, key) for key in wanted}
        return {key: self._decode(data) for key, data in found.items() if data is not None}

    def set_many(self, entries: Mapping[str, object], *, ttl: float | None = None) -> None:
        """As `set`, of at most 1,000. All are checked before the first is set; whether a StorageFull leaves some of
        them set is for the backend: of those here, it leaves none in the baggage."""
        wanted, checked = self._entries(entries), check_ttl(ttl)
        many = getattr(self._backend, "set_many", None)
        if many is not None:
            _call(many, self._peer, wanted, checked, self._quota)
        else:
            for key, data in wanted.items():
                self._set(key, data, checked)

    def delete_many(self, keys: Iterable[str]) -> int:
        """As `delete`, of at most 1,000: how many of the keys there were."""
        wanted = self._keys(keys)
        many = getattr(self._backend, "delete_many", None)
        if many is not None:
            return int(_call(many, self._peer, wanted))
        return sum(_call(self._backend.delete, self._peer, key) for key in wanted)

    def _set(self, key: str, data: bytes, ttl: float | None) -> None:
        _call(self._backend.set, self._peer, key, data, ttl, self._quota)


@final
class AsyncStorage(_Terms):
    """As `Storage`, in any backend. Every method is a checkpoint.

    What takes longer than `limits.storage.answer` seconds is cancelled, and raises StorageFailed.
    """

    __slots__ = ("_backend",)

    def __init__(
        self, backend: StorageBackend | AsyncStorageBackend, peer: str, limits: StorageLimits
    ) -> None:
        super().__init__(peer, limits)
        self._backend: Any = backend if can_block(backend) else Awaited(backend)

    async def get(self, key: str, default: Any = None) -> Any:
        """See `Storage.get`."""
        data = await self._call(self._backend.get, self._peer, self._key(key))
        return default if data is None else self._decode(data)

    async def set(self, key: str, value: object, *, ttl: float | None = None) -> None:
        """See `Storage.set`."""
        await self._set(self._key(key), self._encode(value), check_ttl(ttl))

    async def delete(self, key: str) -> bool:
        """See `Storage.delete`."""
        return bool(await self._call(self._backend.delete, self._peer, self._key(key)))

    @overload
    async def list(
        self, prefix: str = "", cursor: str | None = None, limit: int = 100, *, keys_only: Literal[True]
    ) -> tuple[list[str], str | None]: ...
    @overload
    async def list(
        self,
        prefix: str = "",
        cursor: str | None = None,
        limit: int = 100,
        *,
        keys_only: Literal[False] = ...,
    ) -> tuple[list[tuple[str, Any]], str | None]: ...
    async def list(
        self, prefix: str = "", cursor: str | None = None, limit: int = 100, *, keys_only: bool = False
    ) -> tuple[list[Any], str | None]:
        """See `Storage.list`."""
        start, after, most, bare = self._page(prefix, cursor, limit, keys_only)
        listed = await self._call(self._backend.list, self._peer, start, after, most, bare)
        return self._listed(listed, keys_only)

    async def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """See `Storage.get_many`."""
        wanted = self._keys(keys)
        many = getattr(self._backend, "get_many", None)
        found: dict[str, bytes | None]
        if many is not None:
            found = await self._call(many, self._peer, wanted)
        else:
            await trio.lowlevel.checkpoint()
            found = {key: await self._call(self._backend.get, self._peer, key) for key in wanted}
        return {key: self._decode(data) for key, data in found.items() if data is not None}

    async def set_many(self, entries: Mapping[str, object], *, ttl: float | None = None) -> None:
        """See `Storage.set_many`."""
        wanted, checked = self._entries(entries), check_ttl(ttl)
        many = getattr(self._backend, "set_many", None)
        if many is not None:
            await self._call(many, self._peer, wanted, checked, self._quota)
        else:
            await trio.lowlevel.checkpoint()
            for key, data in wanted.items():
                await self._set(key, data, checked)

    async def delete_many(self, keys: Iterable[str]) -> int:
        """See `Storage.delete_many`."""
        wanted = self._keys(keys)
        many = getattr(self._backend, "delete_many", None)
        if many is not None:
            return int(await self._call(many, self._peer, wanted))
        await trio.lowlevel.checkpoint()
        return sum([await self._call(self._backend.delete, self._peer, key) for key in wanted])

    async def _set(self, key: str, data: bytes, ttl: float | None) -> None:
        await self._call(self._backend.set, self._peer, key, data, ttl, self._quota)

    async def _call(self, method: Callable[_P, Awaitable[_R]], /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            with trio.fail_after(self._limits.answer):
                return await method(*args, **kwargs)
        except trio.TooSlowError:
            raise StorageFailed(f"the storage has not answered in {self._limits.answer:g} s") from None
        except OCapNError:
            raise
        except Exception as error:
            raise StorageFailed("the storage has failed") from error


def _call(method: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
    try:
        return method(*args, **kwargs)
    except OCapNError:
        raise
    except Exception as error:
        raise StorageFailed("the storage has failed") from error


@final
class Awaited:
    """A backend that cannot block, with a checkpoint before each call."""

    __slots__ = ("_backend",)

    def __init__(self, backend: StorageBackend | AsyncStorageBackend) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._backend, name)

        async def call(*args: Any) -> Any:
            await trio.lowlevel.checkpoint()
            return method(*args)

        return call
