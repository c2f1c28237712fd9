"""Backends that fail, hang, or give back something else; and the async end of storage."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio
import trio.testing

import durable
from ocapn import (
    AsyncStorage,
    E,
    MemoryNetlayer,
    MemoryNetwork,
    MemoryStorage,
    Quota,
    RemoteError,
    Storage,
    StorageFailed,
    StorageFull,
    StorageLimits,
    StorageRefused,
    Target,
    current_async_storage,
    current_storage,
    method,
    open_peer,
)
from tests.peer.support import far
from tests.storage.broken import Honest
from tests.support import trio_test

LIMITS = StorageLimits(value=1000, nesting=4, batch=5)


class Fails(Honest):
    sweeping: Exception = OSError("the secret")

    def get(self, peer: str, key: str) -> bytes | None:
        raise OSError("the disk with the secret is gone")

    def stats(self) -> Any:
        raise OSError("gone")

    def sweep(self) -> None:
        raise self.sweeping


class Garbled(Honest):
    """What is kept is not what was set."""

    data: Any = b""

    def get(self, peer: str, key: str) -> bytes | None:
        found: bytes | None = self.data
        return found


class Empty(Honest):
    """One that says how much it holds, which is nothing as yet."""

    def __len__(self) -> int:
        return self.inner.stats().keys


class Hangs:
    """An async backend that answers when `go` is set."""

    def __init__(self) -> None:
        self.inner = MemoryStorage()
        self.go = trio.Event()
        self.sweeps = 0

    async def get(self, peer: str, key: str) -> bytes | None:
        await self.go.wait()
        await trio.lowlevel.checkpoint()
        return self.inner.get(peer, key)

    async def set(self, peer: str, key: str, value: bytes, ttl: float | None, quota: Quota) -> None:
        await trio.lowlevel.checkpoint()
        self.inner.set(peer, key, value, ttl, quota)

    async def delete(self, peer: str, key: str) -> bool:
        await trio.lowlevel.checkpoint()
        raise ExceptionGroup("secret", [OSError("secret")])

    async def list(self, peer: str, prefix: str, after: str | None, limit: int, keys_only: bool) -> Any:
        await trio.lowlevel.checkpoint()
        return self.inner.list(peer, prefix, after, limit, keys_only)

    async def sweep(self) -> None:
        self.sweeps += 1
        await trio.sleep_forever()


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"\x01\x01", b"\xd8\x2a\x01", b"\x81" * 100 + b"\x01", 5, "text"]
)
def test_what_is_damaged(data: Any) -> None:
    backend = Garbled()
    backend.data = data
    with pytest.raises(StorageFailed, match="damaged"):
        Storage(backend, "p", LIMITS).get("k")


def test_what_a_backend_raises_does_not_show() -> None:
    with pytest.raises(StorageFailed, match=r"^the storage has failed$") as failed:
        Storage(Fails(), "p", LIMITS).get("k")
    assert isinstance(failed.value.__cause__, OSError)


class Shelf(Target):
    @method
    async def put(self, key: str, value: object) -> None:
        await current_async_storage().set(key, value)

    @method
    async def get(self, key: str) -> object:
        return await current_async_storage().get(key)

    @method
    async def take(self, key: str) -> object:
        return await current_async_storage().delete(key)

    @method
    def get_now(self, key: str) -> object:
        return current_storage().get(key)

    @method
    def hello(self) -> str:
        return "hello"


@trio_test
async def test_a_backend_that_hangs_or_fails_costs_one_answer() -> None:
    network = MemoryNetwork()
    backend = Hangs()
    async with (
        open_peer([MemoryNetlayer(network, "a", authenticates=True)], storage=backend) as a,
        open_peer([MemoryNetlayer(network, "b", authenticates=True)]) as b,
    ):
        shelf = await far(a, b, Shelf())
        await E(shelf).put("k", 1)
        began = trio.current_time()
        answers = [E(shelf).get("k") for _ in range(3)]
        assert await E(shelf).hello() == "hello"
        for answer in answers:
            with pytest.raises(RemoteError, match=r"^the storage has not answered in 5 s$"):
                await answer
        assert trio.current_time() - began == pytest.approx(5, abs=0.1)
        with pytest.raises(RemoteError, match=r"^the storage has failed$"):
            await E(shelf).take("k")
        with pytest.raises(RemoteError, match=r"await. the methods of ocapn\.current_async_storage"):
            await E(shelf).get_now("k")
        backend.go.set()
        assert await E(shelf).get("k") == 1
        await trio.sleep(60)
        assert backend.sweeps > 4
        assert await E(shelf).hello() == "hello"


@pytest.mark.parametrize("kept", [False, True])
def test_the_backend_that_is_given_is_the_one(kept: bool) -> None:
    @trio_test
    async def run() -> None:
        network = MemoryNetwork()
        backend = Empty()
        baggage = durable.MemoryBaggage() if kept else None
        async with (
            open_peer(
                [MemoryNetlayer(network, "a", authenticates=True)], storage=backend, baggage=baggage
            ) as a,
            open_peer([MemoryNetlayer(network, "b", authenticates=True)]) as b,
        ):
            await E(await far(a, b, Shelf())).put("k", 1)
            assert len(backend) == 1
            assert backend.get("peer:6:memory1:b", "k") == b"\x01"

    run()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError("the secret"), "the storage has failed with OSError"),
        (StorageFailed("no server answers"), "no server answers"),
    ],
)
def test_a_sweep_that_fails_is_logged_and_ends_nothing(
    error: Exception, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    @trio_test
    async def run() -> None:
        network = MemoryNetwork()
        backend = Fails()
        backend.sweeping = error
        async with (
            open_peer([MemoryNetlayer(network, "a", authenticates=True)], storage=backend) as a,
            open_peer([MemoryNetlayer(network, "b", authenticates=True)]) as b,
        ):
            shelf = await far(a, b, Shelf())
            with caplog.at_level(logging.WARNING, "ocapn.storage"):
                await trio.sleep(12)
            assert caplog.text.count(f"expired entries are not removed: {told}\n") == 2
            assert "secret" not in caplog.text
            assert await E(shelf).hello() == "hello"

    run()


@trio_test
async def test_every_method_is_a_checkpoint_with_every_backend() -> None:
    hangs = Hangs()
    hangs.go.set()
    for backend in (MemoryStorage(), hangs):
        kept = AsyncStorage(backend, "p", LIMITS)
        for call in (
            lambda: kept.set("k", [1]),  # noqa: B023
            lambda: kept.get("k"),  # noqa: B023
            lambda: kept.list(),  # noqa: B023
            lambda: kept.set_many({}),  # noqa: B023
            lambda: kept.get_many([]),  # noqa: B023
            lambda: kept.delete_many([]),  # noqa: B023
        ):
            with trio.testing.assert_checkpoints():
                await call()


@trio_test
async def test_the_async_one_does_what_the_other_does() -> None:
    kept = AsyncStorage(MemoryStorage(LIMITS), "p", StorageLimits(batch=5, peer_keys=3))
    await kept.set("a", [1])
    await kept.set_many({"b": 2, "c": None})
    assert await kept.get("a") == [1]
    assert await kept.get("x", 5) == 5
    assert await kept.get_many(["a", "c", "x"]) == {"a": [1], "c": None}
    page, cursor = await kept.list(limit=2)
    assert page == [("a", [1]), ("b", 2)]
    assert await kept.list(cursor=cursor, keys_only=True) == (["c"], None)
    with pytest.raises(StorageFull):
        await kept.set("d", 1)
    with pytest.raises(StorageRefused):
        await kept.get("")
    assert await kept.delete("a") is True
    assert await kept.delete_many(["a", "b", "c"]) == 2


@trio_test
async def test_a_cancelled_call_is_cancelled() -> None:
    kept = AsyncStorage(Hangs(), "p", StorageLimits(answer=50))
    with trio.move_on_after(1) as scope:
        await kept.get("k")
    assert scope.cancelled_caught
    assert trio.current_time() - scope.deadline < 1
