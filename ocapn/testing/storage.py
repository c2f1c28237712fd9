"""`check_storage`: what `ocapn.storage.backend` asks of a backend, promise by promise."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final, final

import trio
import trio.testing

from ocapn.errors import StorageFull
from ocapn.storage.access import Awaited, can_block
from ocapn.storage.backend import AsyncStorageBackend, Quota, StorageBackend, entry_size
from ocapn.testing.stage import require

#: What may be kept where a quota is not what is looked at.
_AMPLE: Final = Quota(1_000, 1 << 20)
_KEYS: Final = [
    *("\x00", "\x00a", " ", "*", "-", "?", "[", "\\", "a", "a\x00", "a\n", "a*", "aa", "ab", "b"),
    *("{b}", "\x7f", "é", "éa", "\uffff", "\U0001f600", "x" * 1024),
]


@final
class _Stage:
    """A new backend, and how to let time pass."""

    def __init__(
        self, backend: StorageBackend | AsyncStorageBackend, sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        self.blocks = can_block(backend)
        self.methods = backend
        self.backend: Any = backend if self.blocks else Awaited(backend)
        self.sleep = sleep

    async def set(
        self, peer: str, key: str, value: bytes = b"", ttl: float | None = None, quota: Quota = _AMPLE
    ) -> None:
        await self.backend.set(peer, key, value, ttl, quota)

    async def refuses(self, peer: str, key: str, value: bytes, quota: Quota, why: str) -> None:
        try:
            await self.set(peer, key, value, None, quota)
        except StorageFull:
            return
        raise AssertionError(why)

    async def is_there(self, peer: str, key: str, value: bytes | None, why: str) -> None:
        found = await self.backend.get(peer, key)
        require(found == value, why)

    async def all(
        self,
        peer: str,
        prefix: str = "",
        limit: int = 1000,
        keys_only: bool = False,
        after: str | None = None,
    ) -> list[tuple[str, bytes | None]]:
        """All pages together."""
        found: list[tuple[str, bytes | None]] = []
        while True:
            entries, last = await self.backend.list(peer, prefix, after, limit, keys_only)
            require(len(entries) <= limit, f"a page with limit {limit} has {len(entries)} entries")
            found += entries
            if last is None:
                return found
            require(isinstance(last, str), "the key to go on after is no str")
            require(after is None or last > after, "the key to go on after is not above the one before")
            after = last

    async def keys(self, peer: str, prefix: str = "", limit: int = 1000) -> list[str]:
        return [key for key, _ in await self.all(peer, prefix, limit, True)]


_Check = Callable[[_Stage], Awaitable[None]]
_PROMISES: Final[list[tuple[str, _Check]]] = []


def _promise(text: str) -> Callable[[_Check], _Check]:
    def note(check: _Check) -> _Check:
        _PROMISES.append((text, check))
        return check

    return note


async def check_storage(
    make_backend: Callable[[], StorageBackend | AsyncStorageBackend],
    *,
    sleep: Callable[[float], Awaitable[None]] = trio.sleep,
) -> None:
    """Raises AssertionError where a backend is not what `StorageBackend` or `AsyncStorageBackend` says.

    `make_backend` makes a new, empty one each time, that holds 1,000 keys and 1 MiB at least. `sleep` lets so many
    seconds pass on its clock; on trio's mock clock, `trio.sleep` does.
    """
    for text, check in _PROMISES:
        stage = _Stage(make_backend(), sleep)
        try:
            await check(stage)
        except AssertionError as error:
            raise AssertionError(f"{text}: {error}") from None
        except Exception as error:
            raise AssertionError(f"{text}: a call has raised {type(error).__name__}") from error


@_promise("get, set, delete and list are all async, or none is")
async def _kind(stage: _Stage) -> None:
    names = ["get", "set", "delete", "list"]
    names += [name for name in ("get_many", "set_many", "delete_many") if hasattr(stage.methods, name)]
    for name in names:
        require(
            inspect.iscoroutinefunction(getattr(stage.methods, name)) == stage.blocks,
            f"get {'is' if stage.blocks else 'is not'} async, unlike {name}",
        )


@_promise("what is set is there until it is deleted")
async def _entries(stage: _Stage) -> None:
    await stage.is_there("p", "k", None, "get of a key that was never set is not None")
    for value in (b"1", b"", b"\x00\xff\r\n", bytes(range(256)) * 240):
        await stage.set("p", "k", value)
        await stage.is_there("p", "k", value, f"a value of {len(value)} bytes comes back as another")
    require(await stage.backend.delete("p", "k") is True, "delete of a key that is there is not True")
    await stage.is_there("p", "k", None, "a key is there after delete")
    require(await stage.backend.delete("p", "k") is False, "delete of a key that is not there is not False")
    require(await stage.all("p") == [], "a key is listed after delete")


@_promise("no peer sees or changes what another has")
async def _apart(stage: _Stage) -> None:
    peers = ["", "a", "a:", "a:k", "a:keys", "a\x00", "A", "é", "*", "peer:6:memory1:a"]
    for number, peer in enumerate(peers):
        for key in ("k", ":k", "k:k"):
            await stage.set(peer, key, b"%d %s" % (number, key.encode()))
    for number, peer in enumerate(peers):
        for key in ("k", ":k", "k:k"):
            await stage.is_there(peer, key, b"%d %s" % (number, key.encode()), "peers share a key")
        require(await stage.keys(peer) == [":k", "k", "k:k"], "a peer's list is not that of its own keys")
    for peer in peers[1:]:
        await stage.backend.delete(peer, "k")
    await stage.is_there("", "k", b"0 k", "a peer has deleted what another has")


@_promise("a key is any text, and keys are in the order of code points")
async def _order(stage: _Stage) -> None:
    for key in reversed(_KEYS):
        await stage.set("p", key, key.encode())
    for key in _KEYS:
        await stage.is_there("p", key, key.encode(), f"the key {key[:9]!r} is lost or another's")
    require(await stage.keys("p") == sorted(_KEYS), "keys are not listed in the order of code points")
    for key in _KEYS:
        await stage.backend.delete("p", key)
    require(await stage.keys("p") == [], "a key cannot be deleted")


@_promise("list gives what begins with the prefix and is above the last key, page by page")
async def _pages(stage: _Stage) -> None:
    for key in _KEYS:
        await stage.set("p", key, key.encode())
    for prefix in ("", "a", "a\x00", "é", "*", "\U0001f600", "nothing"):
        wanted = sorted(key for key in _KEYS if key.startswith(prefix))
        for after in (None, "\x00", "a", "az", "\uffff"):
            above = [key for key in wanted if after is None or key > after]
            for limit in (1, 2, 7, 1000):
                found = await stage.all("p", prefix, limit, False, after)
                require(
                    found == [(key, key.encode()) for key in above],
                    f"list of prefix {prefix!r} after {after!r} with limit {limit} is wrong",
                )
            bare = await stage.all("p", prefix, 3, True, after)
            require(bare == [(key, None) for key in above], "keys_only gives other keys, or values")


@_promise("while keys come and go, those that stay are listed once")
async def _changing(stage: _Stage) -> None:
    stay = [f"{number:04}" for number in range(0, 300, 3)]
    for key in stay:
        await stage.set("p", key)
    found: list[str] = []
    after: str | None = None
    for step in range(1000):
        entries, after = await stage.backend.list("p", "", after, 7, True)
        found += [key for key, _ in entries]
        if after is None:
            break
        await stage.set("p", f"{step * 5 % 300:04}+")  # before and after where the list is
        await stage.backend.delete("p", f"{step * 35 % 300:04}+")
        await stage.set("p", f"{after}+")
        await stage.backend.delete("p", f"{after}+")
    require([key for key in found if key in stay] == stay, "a key that stays is missing, or there twice")


@_promise("an entry ends when it was not read for its ttl")
async def _expiry(stage: _Stage) -> None:
    await stage.set("p", "early", b"0", 10.0)
    await stage.set("p", "short", b"1", 10.0)
    await stage.set("p", "long", b"2", 1000.0)
    await stage.set("p", "ever", b"3")
    await stage.set("p", "was short", b"4", 10.0)
    await stage.set("p", "was short", b"4")
    await stage.set("p", "was long", b"5", 1000.0)
    await stage.set("p", "was long", b"5", 10.0)
    await stage.sleep(5)
    await stage.is_there("p", "early", b"0", "an entry ends before its ttl")
    await stage.sleep(6)
    left = ["early", "ever", "long", "was short"]
    require(await stage.keys("p") == left, "an entry is listed after its ttl, or is not before")
    require(await stage.backend.delete("p", "short") is False, "an entry is there, for delete, after its ttl")
    await stage.is_there("p", "was long", None, "an entry is there after its ttl, which was set anew")
    await stage.is_there("p", "was short", b"4", "an entry has a ttl though it was set again without")
    await stage.is_there("p", "long", b"2", "an entry ends before its ttl")
    await stage.sleep(4000)
    await stage.is_there("p", "ever", b"3", "an entry without a ttl ends")


@_promise("a read begins the ttl again, and a list does not")
async def _sliding(stage: _Stage) -> None:
    await stage.set("p", "read", b"1", 100.0)
    await stage.set("p", "listed", b"1", 100.0)
    for _ in range(5):
        await stage.sleep(80)
        await stage.is_there("p", "read", b"1", "an entry ends though it was read within its ttl")
        await stage.all("p")
    await stage.is_there("p", "listed", None, "an entry does not end because it was listed")
    await stage.sleep(101)
    await stage.is_there("p", "read", None, "an entry that was read is there for longer than its ttl after")


@_promise("a quota is of keys, and of bytes of keys and values")
async def _quota(stage: _Stage) -> None:
    few = Quota(3, 1 << 20)
    for key in ("a", "b", "c"):
        await stage.set("p", key, b"1", None, few)
    await stage.refuses("p", "d", b"1", few, "more keys are set than the quota has")
    await stage.is_there("p", "d", None, "a key that was refused is there")
    await stage.set("p", "a", b"2", None, few)
    await stage.is_there("p", "a", b"2", "a key cannot be replaced where no other can be set")
    await stage.set("q", "d", b"1", None, few)
    await stage.backend.delete("p", "b")
    await stage.set("p", "d", b"1", None, few)
    small = Quota(100, entry_size("é", bytes(98)))
    await stage.set("r", "é", bytes(98), None, small)
    await stage.refuses("r", "é", bytes(99), small, "a value is set that is larger than the quota")
    await stage.refuses("r", "k", b"", small, "a key is set that does not fit into the quota")
    await stage.is_there("r", "é", bytes(98), "a value that was refused has replaced another")
    await stage.set("r", "é", bytes(97), None, small)
    await stage.set("r", "k", b"", None, small)
    require(await stage.keys("r") == ["k", "é"], "a key is missing that the quota has room for")


@_promise("what has expired makes room in the quota")
async def _room(stage: _Stage) -> None:
    few = Quota(20, 1 << 20)
    for number in range(20):
        await stage.set("p", f"{number}", b"1", 10.0, few)
    await stage.sleep(11)
    for number in range(20):
        await stage.set("p", f"new {number}", b"1", None, few)
    require(len(await stage.keys("p")) == 20, "entries are missing")
    small = Quota(1_000, 2_100)
    for number in range(40):
        await stage.set("q", f"{number:02}", bytes(48), 10.0, small)
    await stage.sleep(11)
    await stage.set("q", "large", bytes(1_900), None, small)
    require(await stage.keys("q") == ["large"], "an entry is listed after its ttl")


@_promise("the batch methods do what the single ones do")
async def _batches(stage: _Stage) -> None:
    backend = stage.methods
    if hasattr(backend, "set_many"):
        await stage.backend.set_many("p", {"a": b"1", "b": b"2"}, 10.0, _AMPLE)
        require(await stage.all("p") == [("a", b"1"), ("b", b"2")], "set_many sets something else")
        try:
            await stage.backend.set_many("p", {"b": b"3", "c": b"3", "d": b"3"}, None, Quota(3, 1 << 20))
        except StorageFull:
            pass
        else:
            raise AssertionError("set_many sets more keys than the quota has")
        require(await stage.all("p") == [("a", b"1"), ("b", b"2")], "set_many has set a part")
        await stage.sleep(11)
        require(await stage.keys("p") == [], "set_many loses the ttl")
    for key in ("a", "b", "c"):
        await stage.set("p", key, key.encode())
    if hasattr(backend, "get_many"):
        found = await stage.backend.get_many("p", ["c", "x", "a"])
        require(found == {"a": b"a", "c": b"c"}, "get_many gives something else than what there is")
        require(await stage.backend.get_many("q", ["a"]) == {}, "get_many gives what another peer has")
    if hasattr(backend, "delete_many"):
        gone = await stage.backend.delete_many("p", ["c", "x", "a"])
        require(gone == 2, f"delete_many of two keys that are there says {gone}")
        require(await stage.keys("p") == ["b"], "delete_many deletes something else")


@_promise("stats counts peers, keys and bytes")
async def _stats(stage: _Stage) -> None:
    if not hasattr(stage.methods, "stats"):
        return
    await stage.set("p", "a", b"12")
    await stage.set("p", "a", b"1")
    await stage.set("p", "é", b"")
    await stage.set("q", "c", b"", 10.0)
    await stage.set("r", "d", b"")
    await stage.backend.delete("r", "d")
    stats = await stage.backend.stats()
    require((stats.peers, stats.keys, stats.size) == (2, 3, 5), f"stats says {stats}")
    await stage.sleep(11)
    if hasattr(stage.methods, "sweep"):
        await stage.backend.sweep()
        stats = await stage.backend.stats()
        require((stats.peers, stats.keys, stats.size) == (1, 2, 4), f"after a sweep, stats says {stats}")


@_promise("every call of an async backend is a checkpoint")
async def _checkpoints(stage: _Stage) -> None:
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: stage.backend.get("p", "k"),
        lambda: stage.backend.set("p", "k", b"", None, _AMPLE),
        lambda: stage.backend.list("p", "", None, 1, True),
        lambda: stage.backend.delete("p", "k"),
    ]
    for call in calls:
        with trio.testing.assert_checkpoints():
            await call()
