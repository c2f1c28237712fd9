"""Storage in a real Redis."""

from __future__ import annotations

import gc
import itertools
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import coredis
import pytest
import trio

from ocapn import (
    AsyncStorage,
    E,
    Limits,
    MemoryNetlayer,
    MemoryNetwork,
    RemoteError,
    StorageFailed,
    StorageFull,
    StorageLimits,
    Target,
    current_async_storage,
    current_storage,
    method,
    open_peer,
)
from ocapn.storage.backend import Quota
from ocapn.storage.redis import RedisStorage
from ocapn.testing import check_storage
from tests.peer.support import far
from tests.storage.conftest import Server
from tests.support import trio_test_real

_numbers = itertools.count()
AMPLE = Quota(100, 10_000)


class Clock:
    """A clock in place of the server's, so that no test waits."""

    def __init__(self) -> None:
        self.time = 1e9

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds


@asynccontextmanager
async def client(server: Server) -> AsyncIterator[Any]:
    async with coredis.Redis(unix_socket_path=server.socket, decode_responses=False) as opened:
        yield opened


def prefix() -> str:
    return f"test {next(_numbers)}:"


def test_it_is_checked(redis_server: Server) -> None:
    @trio_test_real
    async def run() -> None:
        async with client(redis_server) as redis:
            clock = Clock()
            await check_storage(
                lambda: RedisStorage(redis, prefix=prefix(), now=clock.now), sleep=clock.sleep
            )

    run()


def test_the_clock_of_the_server(redis_server: Server) -> None:
    @trio_test_real
    async def run() -> None:
        async with client(redis_server) as redis:
            storage = RedisStorage(redis, prefix=prefix())
            await storage.set("p", "k", b"1", 1000.0, AMPLE)
            assert await storage.get("p", "k") == b"1"
            await redis.script_flush()  # as a server that was started again
            assert await storage.get("p", "k") == b"1"
            seconds = float((await redis.time()).timestamp())
            late = RedisStorage(redis, prefix=storage._prefix.decode(), now=lambda: seconds + 900)
            assert await late.get("p", "k") == b"1"
            later = RedisStorage(redis, prefix=storage._prefix.decode(), now=lambda: seconds + 1901)
            assert await later.get("p", "k") is None

    run()


def test_the_cap_over_all(redis_server: Server) -> None:
    @trio_test_real
    async def run() -> None:
        async with client(redis_server) as redis:
            clock = Clock()
            limits = StorageLimits(keys=3, size=30)
            storage = RedisStorage(redis, limits, prefix=prefix(), now=clock.now)
            await storage.set("p", "a", b"1", 10.0, AMPLE)
            await storage.set("p", "b", b"1", None, AMPLE)
            await storage.set("q", "a", b"1", None, AMPLE)
            for peer, key, value in (("q", "b", b"1"), ("q", "a", bytes(27)), ("r", "a", b"")):
                with pytest.raises(StorageFull, match="for all callers"):
                    await storage.set(peer, key, value, None, AMPLE)
            await clock.sleep(10)  # what another peer had has expired
            await storage.set("q", "b", b"1", None, AMPLE)
            stats = await storage.stats()
            assert (stats.peers, stats.keys, stats.size) == (2, 3, 6)
            for peer, key in (("p", "b"), ("q", "a"), ("q", "b")):
                assert await storage.delete(peer, key)
            stats = await storage.stats()
            assert (stats.peers, stats.keys, stats.size) == (0, 0, 0)
            left = [key async for key in redis.scan_iter(match=storage._prefix + b"*")]
            assert left == [storage._prefix + b"total"]  # nothing is left of peers that keep nothing

    run()


def test_each_change_removes_some_of_what_has_expired(redis_server: Server) -> None:
    @trio_test_real
    async def run() -> None:
        async with client(redis_server) as redis:
            clock = Clock()
            storage = RedisStorage(redis, prefix=prefix(), now=clock.now)
            for number in range(20):
                await storage.set("p", f"{number}", b"", 10.0, AMPLE)
            await clock.sleep(10)
            for left in (5, 2):
                await storage.set("p", f"left {left}", b"", None, AMPLE)
                assert (await storage.stats()).keys == left

    run()


def test_a_quota_is_exact_whoever_writes_at_the_same_time(redis_server: Server) -> None:
    @trio_test_real
    async def run() -> None:
        async with client(redis_server) as one, client(redis_server) as other:
            shared = prefix()
            storages = [RedisStorage(redis, prefix=shared) for redis in (one, other)]
            quota = Quota(5, 10_000)
            full = 0

            async def write(number: int) -> None:
                nonlocal full
                try:
                    await storages[number % 2].set("p", f"{number}", b"", None, quota)
                except StorageFull:
                    full += 1

            async with trio.open_nursery() as nursery:
                for number in range(40):
                    nursery.start_soon(write, number)
            assert full == 35
            assert (await storages[0].stats()).keys == 5

    run()


# coredis leaves the streams of a connection that broke to the garbage collector.
@pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning")
def test_a_server_that_is_not_there_any_more(redis_server: Server) -> None:
    @trio_test_real
    async def run() -> None:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "socket"
            path.symlink_to(redis_server.socket)
            async with coredis.Redis(unix_socket_path=str(path), decode_responses=False) as redis:
                storage = AsyncStorage(RedisStorage(redis, prefix=prefix()), "p", StorageLimits(answer=3.0))
                await storage.set("k", 1)
                path.unlink()
                path.symlink_to("nowhere")
                async with client(redis_server) as killer:
                    await killer.client_kill(type_=b"normal", skipme=True)
                with pytest.raises(StorageFailed, match=r"^the storage has (failed|not answered in 3 s)$"):
                    await storage.get("k")
                path.unlink()
                path.symlink_to(redis_server.socket)
                assert await storage.get("k") == 1

    run()
    gc.collect()


class Shelf(Target):
    @method
    async def put(self, key: str, value: object) -> None:
        await current_async_storage().set(key, value)

    @method
    async def get(self, key: str) -> object:
        return await current_async_storage().get(key, "nothing")

    @method
    def get_now(self, key: str) -> object:
        return current_storage().get(key)


def test_two_peers_one_redis_and_one_that_hangs(redis_server: Server) -> None:
    """What was kept through one process is there in the other; a server that hangs costs an answer, and no more."""

    @trio_test_real
    async def run() -> None:
        network = MemoryNetwork()
        limits = Limits(storage=StorageLimits(answer=0.3))
        async with client(redis_server) as redis:
            storage = RedisStorage(redis, prefix=prefix())

            def peer(name: str, **options: Any) -> Any:
                return open_peer(
                    [MemoryNetlayer(network, name, authenticates=True)], limits=limits, **options
                )

            async with peer("a", storage=storage) as a, peer("b", storage=storage) as b, peer("c") as c:
                one, other = await far(a, c, Shelf()), await far(b, c, Shelf())
                await E(one).put("k", [1, "é"])
                assert await E(other).get("k") == [1, "é"]
                assert a.storage_stats() is None
                with pytest.raises(RemoteError, match=r"ocapn\.current_async_storage"):
                    await E(one).get_now("k")
                os.kill(redis_server.process.pid, signal.SIGSTOP)
                try:
                    with pytest.raises(RemoteError, match=r"^the storage has not answered in 0\.3 s$"):
                        await E(one).get("k")
                finally:
                    os.kill(redis_server.process.pid, signal.SIGCONT)
                assert await E(one).get("k") == [1, "é"]

    run()
