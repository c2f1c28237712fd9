"""The key of a session that nobody can ask for any more is in no file."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import trio

import durable
from durable import DirectoryStore
from durable.records import decode, decode_row
from ocapn import E, Limits, MemoryNetlayer, MemoryNetwork, Peer, Target, method, open_peer
from tests.support import trio_test, trio_test_real

LIFE = 600.0


class Echo(Target):
    @method
    def echo(self, value: object) -> object:
        return value


class Scrubbed(DirectoryStore):
    """Counts."""

    scrubs = 0

    def scrub(self) -> None:
        self.scrubs += 1
        super().scrub()


class Place:
    """A directory, and peers that have sessions with the one that keeps its state there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.network = MemoryNetwork()
        self.store: Scrubbed
        self.baggage: durable.Baggage

    @asynccontextmanager
    async def opened(self, **limits: float) -> AsyncIterator[Peer]:
        self.store = Scrubbed(self.path)
        with durable.Baggage(self.store) as self.baggage:
            self.baggage.blocks = False
            netlayer = MemoryNetlayer(self.network, "a")
            options = Limits(tombstone_life=LIFE, **limits)  # type: ignore[arg-type]
            async with open_peer([netlayer], baggage=self.baggage, limits=options) as peer:
                yield peer

    async def ended(self, peer: Peer, name: str) -> bytes:
        """The key that this peer had in a session that is over."""
        async with open_peer([MemoryNetlayer(self.network, name)]) as other:
            ref = await peer.enliven(other.export(Echo()))
            await trio.sleep(1)
            assert await E(ref).echo(1) == 1
            (session,) = peer.sessions
            session.end()
            await peer.settled()
        (row,) = (data for key, data in self.baggage.scan("node", b"tombstone/" + session._core.id))
        seed: bytes = decode(row)[0]
        assert self.holds(seed)
        return seed

    def holds(self, secret: bytes) -> bool:
        return any(secret in file.read_bytes() for file in self.path.iterdir())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "baggage")


@trio_test
async def test_keys_of_tombstones_that_expire(place: Place) -> None:
    async with place.opened() as peer:
        seeds = [await place.ended(peer, name) for name in "bcd"]
        await trio.sleep(LIFE - 10)
        assert all(map(place.holds, seeds))
        assert place.store.scrubs == 0
        await trio.sleep(20)
        assert not any(map(place.holds, seeds))
        assert place.store.scrubs in (1, 2)  # together, as far as they go together
        scrubs = place.store.scrubs
        await trio.sleep(100)
        assert place.store.scrubs == scrubs


@trio_test
async def test_keys_of_tombstones_that_are_too_many(place: Place) -> None:
    async with place.opened(tombstones=1) as peer:
        seeds = [await place.ended(peer, name) for name in "bcd"]
        await trio.sleep(10)
        assert [place.holds(seed) for seed in seeds] == [False, False, True]
        assert place.store.scrubs <= 2


@trio_test
async def test_keys_of_tombstones_that_expire_while_nothing_runs(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place.opened() as peer:
        seed = await place.ended(peer, "b")
    at = time.time()
    monkeypatch.setattr(time, "time", lambda: at + LIFE + 1)
    async with place.opened() as peer:
        assert place.holds(seed)
        await trio.sleep(6)
        assert not place.holds(seed)
        assert place.store.scrubs == 1


@trio_test
async def test_keys_of_sessions_that_are_set_aside(place: Place) -> None:
    async with open_peer([MemoryNetlayer(place.network, "b")]) as other:
        async with place.opened() as peer:
            await peer.enliven(other.export(Echo()))
            await trio.sleep(1)
            await peer.settled()
            ((session_id, row),) = place.baggage.scan("session")
        seed: bytes = decode_row(row, "session")[0]
        with closing(DirectoryStore(place.path)) as store:
            store.commit({("progress", session_id): None})
        async with place.opened() as peer:
            assert [aside.session_id for aside in peer.set_aside] == [session_id]
            assert place.holds(seed)
            await trio.sleep(6)
            assert not place.holds(seed)
            assert place.store.scrubs == 1


@trio_test_real
async def test_the_loop_does_not_wait_for_it() -> None:
    baggage = durable.MemoryBaggage()
    baggage.blocks = True
    threads = []
    baggage._store.scrub = lambda: threads.append(threading.get_ident())  # type: ignore[method-assign]
    async with open_peer([MemoryNetlayer(MemoryNetwork(), "a")], baggage=baggage) as peer:
        await peer.settled()
        for _ in range(3):
            baggage.scrub_soon()
        await peer.settled()
        assert len(threads) == 1
        assert threads[0] != threading.get_ident()
        baggage["a"] = 1
        await peer.settled()
        assert len(threads) == 1


def test_with_the_commit_of_what_was_deleted(place: Place) -> None:
    place.store = Scrubbed(place.path)
    baggage = durable.Baggage(place.store)
    baggage["key"] = b"something to be erased"
    baggage.flush()
    del baggage["key"]
    baggage.scrub_soon()
    batch = baggage.cut()
    assert batch is not None
    assert baggage.cut() is None
    assert place.holds(b"something to be erased")
    baggage.write([batch])
    assert not place.holds(b"something to be erased")
    baggage.close()
