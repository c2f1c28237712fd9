"""Both stores are what `durable.store.Store` says."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from durable import BaggageFailed, DirectoryStore, MemoryStore, Store
from durable.store import Changes, above_prefix
from durable.testing import check_store
from tests.durable.support import reopened


def test_the_store_in_memory_conforms() -> None:
    def again(store: Store) -> Store:
        assert isinstance(store, MemoryStore)
        return store.reopened()

    check_store(MemoryStore, again)


def test_the_store_in_a_directory_conforms(tmp_path: Path) -> None:
    numbers = itertools.count()

    def again(store: Store) -> Store:
        assert isinstance(store, DirectoryStore)
        return reopened(store)

    check_store(lambda: DirectoryStore(tmp_path / str(next(numbers))), again)


def test_the_checks_find_a_store_that_forgets() -> None:
    with pytest.raises(AssertionError, match="opened again"):
        check_store(MemoryStore, lambda store: MemoryStore())


@pytest.mark.parametrize("error", [OSError("no space"), KeyboardInterrupt()])
def test_a_failed_commit_poisons_the_store_in_memory(error: BaseException) -> None:
    store = MemoryStore()
    store.commit({("user", b"k"): b"1"})

    def fail(changes: Changes) -> None:
        raise error

    store.on_commit = fail
    with pytest.raises(BaggageFailed if isinstance(error, Exception) else KeyboardInterrupt):
        store.commit({("user", b"k"): b"2"})
    store.on_commit = None
    for call in (lambda: store.get("user", b"k"), lambda: store.commit({}), store.verify, store.scrub):
        with pytest.raises(BaggageFailed, match="the commit failed"):
            call()
    assert store.reopened().get("user", b"k") == b"1"


def test_the_key_above_a_prefix() -> None:
    assert above_prefix(b"a") == b"b"
    assert above_prefix(b"a\xff\xff") == b"b"
    assert above_prefix(b"\xff") is None
    assert above_prefix(b"") is None
