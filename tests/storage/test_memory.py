"""Storage in memory: what goes when there is no more room, and what it costs."""

from __future__ import annotations

import pytest

from ocapn import MemoryStorage, Quota, Storage, StorageFull, StorageLimits

AMPLE = Quota(1_000_000, 1 << 30)


class Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time


def test_what_was_not_used_for_longest_goes_first() -> None:
    storage = MemoryStorage(StorageLimits(keys=3))
    for peer, key in (("p", "a"), ("q", "a"), ("p", "b")):
        storage.set(peer, key, b"1", None, AMPLE)
    storage.get("p", "a")
    storage.list("q", "", None, 10, False)  # which is no use
    storage.set("p", "c", b"1", None, AMPLE)
    assert storage.get("q", "a") is None
    storage.set("p", "b", b"2", None, AMPLE)
    storage.set("q", "d", b"1", None, AMPLE)
    assert [key for key, _ in storage.list("p", "", None, 10, True)[0]] == ["b", "c"]
    assert storage.stats().keys == 3


def test_the_cap_on_bytes_is_hard() -> None:
    storage = MemoryStorage(StorageLimits(size=100))
    for number in range(50):
        storage.set(f"peer {number % 7}", f"{number:02}", bytes(8), None, AMPLE)
        assert storage.stats().size <= 100
    assert storage.stats().keys == 10
    storage.set("p", "kk", bytes(98), None, AMPLE)
    assert storage.stats().keys == 1
    with pytest.raises(StorageFull, match="for all callers"):
        storage.set("p", "kk", bytes(99), None, AMPLE)
    assert storage.get("p", "kk") == bytes(98)


def test_what_has_expired_goes_before_what_has_not() -> None:
    clock = Clock()
    storage = MemoryStorage(StorageLimits(keys=40), now=clock.now)
    storage.set("p", "old", b"", None, AMPLE)
    for number in range(39):
        storage.set("q", f"{number}", b"", 10.0, AMPLE)
    clock.time = 10.0
    storage.set("p", "new", b"", None, AMPLE)
    assert storage.get("p", "old") == b""


def test_all_that_has_expired_goes_before_anything_that_has_not() -> None:
    clock = Clock()
    storage = MemoryStorage(StorageLimits(size=500), now=clock.now)
    storage.set("p", "old", bytes(7), None, AMPLE)
    for number in range(40):
        storage.set("q", f"{number:02}", bytes(8), 10.0, AMPLE)
    clock.time = 10.0
    storage.set("p", "new", bytes(477), None, AMPLE)
    assert storage.get("p", "old") == bytes(7)


def test_each_change_removes_some_of_what_has_expired() -> None:
    clock = Clock()
    storage = MemoryStorage(now=clock.now)
    for number in range(20):
        storage.set("p", f"{number}", b"", 10.0, AMPLE)
    clock.time = 10.0
    for left in (5, 2):
        storage.set("q", f"{left}", b"", None, AMPLE)
        assert storage.stats().keys == left


def test_what_was_replaced_does_not_pile_up() -> None:
    storage = MemoryStorage()
    for number in range(10_000):
        storage.set("p", f"{number % 5}", b"", 1000.0 - number % 7, AMPLE)
    assert len(storage._due) < 200
    for number in range(5):
        storage.delete("p", f"{number}")
    assert storage.stats().peers == 0
    assert storage._peers == {}


def test_100_000_keys_in_pages_while_they_change() -> None:
    limits = StorageLimits(keys=200_000, peer_keys=200_000)
    backend = MemoryStorage(limits)
    storage = Storage(backend, "p", limits)
    stay = [f"{number:06}" for number in range(0, 200_000, 2)]
    for key in stay:
        backend.set("p", key, b"\x01", None, AMPLE)
    found: list[str] = []
    cursor = None
    pages = 0
    while True:
        page, cursor = storage.list(cursor=cursor, limit=1000, keys_only=True)
        found += page
        pages += 1
        if cursor is None:
            break
        for number in (1, pages * 2001 + 2, pages * 3001, 199_999):
            storage.set(f"{number | 1:06}", 1)
        storage.delete(f"{(pages * 2001 + 2) | 1:06}")
        assert storage.delete("000001")
    assert pages > 99
    assert [key for key in found if int(key) % 2 == 0] == stay
    assert len(set(found)) == len(found)
    assert len(found) > len(stay)  # of those that came, some were met
