"""The backends that ship do what `check_storage` checks."""

from __future__ import annotations

from pathlib import Path

import trio

import durable
from durable.storage import BaggageStorage
from ocapn.storage.memory import MemoryStorage
from ocapn.testing import check_storage
from tests.support import trio_test


@trio_test
async def test_memory() -> None:
    await check_storage(lambda: MemoryStorage(now=trio.current_time))


@trio_test
async def test_a_baggage_in_memory() -> None:
    await check_storage(lambda: BaggageStorage(durable.MemoryBaggage(), now=trio.current_time))


@trio_test
async def test_a_baggage_in_a_directory(tmp_path: Path) -> None:
    opened: list[durable.Baggage] = []

    def make() -> BaggageStorage:
        opened.append(durable.open_baggage(tmp_path / str(len(opened))))
        return BaggageStorage(opened[-1], now=trio.current_time)

    try:
        await check_storage(make)
    finally:
        for baggage in opened:
            baggage.close()
