"""The backends that ship do what `check_storage` checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import durable
from durable.storage import BaggageStorage
from ocapn.storage.backend import AsyncStorageBackend, StorageBackend
from ocapn.storage.memory import MemoryStorage
from ocapn.testing import check_storage, storage
from tests.storage.broken import BROKEN, Honest
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


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_backend_is_found(broken: type[StorageBackend | AsyncStorageBackend]) -> None:
    @trio_test
    async def run() -> None:
        with pytest.raises(AssertionError) as found:
            await check_storage(broken)
        assert BROKEN[broken] in str(found.value)

    run()


@trio_test
async def test_one_that_passes_everything_on_is_not_broken() -> None:
    await check_storage(Honest)


def test_each_promise_is_broken_by_one() -> None:
    async def run(backend: type[Any]) -> str:
        try:
            await check_storage(backend)
        except AssertionError as error:
            return str(error)
        return ""

    said = [trio.run(run, backend, clock=trio.testing.MockClock(autojump_threshold=0)) for backend in BROKEN]
    assert [text for text, _ in storage._PROMISES if not any(one.startswith(text) for one in said)] == []
