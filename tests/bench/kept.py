"""The benchmarks with a baggage on both sides."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import attrs
import trio

import durable
import ocapn
from ocapn import E


@durable.kind("bench.counter", version=1)
@attrs.define
class Counter(ocapn.Target):
    """A durable object whose state changes with each call."""

    count: int = 0

    @ocapn.method
    def add(self, number: int) -> int:
        self.count += number
        return self.count


@durable.kind("bench.client", version=1)
@attrs.define
class Client(ocapn.Target):
    """Keeps the reference, so that it is durable on this side too."""

    to: object = None


@contextmanager
def directory() -> Iterator[Path]:
    """On a disk, like a baggage in use."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        yield Path(name)


def bare_commits(place: Path) -> Callable[[int], None]:
    """Two commits of a small row in sequence, so many times, on a store that is set up as a baggage is."""
    database = sqlite3.connect(place / "bare.db", isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE rows (key INTEGER PRIMARY KEY, value BLOB)")
    value = Random(1).randbytes(150)

    def work(count: int) -> None:
        for _ in range(2 * count):
            database.execute("BEGIN")
            database.execute("INSERT INTO rows (value) VALUES (?)", (value,))
            database.execute("COMMIT")

    return work


async def connected(
    uri: str, baggage: durable.Baggage | None, measure: Callable[[ocapn.Ref], object]
) -> object:
    """Connects, waits until the session is durable, and measures."""
    async with ocapn.open_peer([ocapn.TcpTestingNetlayer(listen=False)], baggage=baggage) as peer:
        ref = await peer.enliven(uri)
        while not peer.sessions[0].durable:  # noqa: ASYNC110
            await trio.sleep(0.01)
        if baggage is not None:
            baggage["client"] = Client(ref)
        result = measure(ref)
        assert hasattr(result, "__await__")
        return await result


async def sequential(ref: ocapn.Ref, count: int) -> None:
    for _ in range(count):
        await E(ref).add(1)


async def outstanding(ref: ocapn.Ref, count: int) -> None:
    for _ in range(count // 1000):
        promises = [E(ref).add(1) for _ in range(1000)]
        for promise in promises:
            await promise
