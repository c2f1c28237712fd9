"""A disk that is slow, a peer that is closed meanwhile, and a system without threads."""

from __future__ import annotations

import threading

import pytest
import trio

import durable
import ocapn
from durable.store import Changes
from tests.support import trio_test


class Slow(durable.MemoryStore):
    """Commits, once told to be slow, when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = False
        self.begun = False
        self.may = threading.Event()
        self.commits: list[Changes] = []

    def commit(self, changes: Changes) -> None:
        if self.slow:
            self.begun = True
            assert self.may.wait(30)
        super().commit(changes)
        self.commits.append(changes)


@trio_test
async def test_leaving_waits_for_a_write_that_is_under_way() -> None:
    store = Slow()
    baggage = durable.Baggage(store)
    baggage.blocks = True

    async def later() -> None:
        await trio.sleep(1000)
        store.may.set()

    async with ocapn.open_peer([ocapn.MemoryNetlayer(ocapn.MemoryNetwork(), "a")], baggage=baggage) as peer:
        await peer.settled()
        store.slow = True
        store.commits.clear()
        baggage["key"] = 1
        trio.lowlevel.spawn_system_task(later)
        while not store.begun:  # noqa: ASYNC110
            await trio.sleep(0.001)
        baggage["key"] = 2
    assert len(store.commits) == 2
    assert trio.current_time() >= 1000


@trio_test
async def test_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise RuntimeError("can't start new thread")

    baggage = durable.Baggage(durable.MemoryStore())
    baggage.blocks = True

    async def run() -> None:
        network = ocapn.MemoryNetwork()
        async with ocapn.open_peer([ocapn.MemoryNetlayer(network, "a")], baggage=baggage) as peer:
            await peer.settled()
            monkeypatch.setattr(trio.lowlevel, "start_thread_soon", refuse)
            baggage["key"] = 1
            await trio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as caught:
        await run()
    assert caught.group_contains(RuntimeError, match="new thread")
