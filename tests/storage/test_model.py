"""Each backend does what a dict of entries with times does, in memory and in a baggage, over crashes and rollbacks."""

from __future__ import annotations

from typing import Any

import attrs
import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import durable
from durable.storage import BaggageStorage
from ocapn import StorageFull, StorageLimits
from ocapn.storage.backend import Quota, StorageStats, entry_size
from ocapn.storage.memory import MemoryStorage

PEERS = ("p", "q")
KEYS = ("", "a", "ab", "b", "é")[1:]
QUOTA = Quota(3, 14)
LIMITS = StorageLimits(keys=4, size=22)

peers = st.sampled_from(PEERS)
keys = st.sampled_from(KEYS)
values = st.binary(max_size=9)
ttls = st.none() | st.sampled_from([4.0, 10.0, 100.0])


@attrs.define
class Entry:
    value: bytes
    ttl: float | None
    until: float


class Undone(Exception):
    pass


Model = dict[tuple[str, str], Entry]


class Machine(RuleBasedStateMachine):
    """The model holds what has not expired. Its order is that of use, the longest ago first."""

    storage: Any
    evicts = True

    def make(self) -> Any:
        return MemoryStorage(LIMITS, now=lambda: self.time)

    @initialize()
    def begin(self) -> None:
        self.time = 1000.0
        self.model: Model = {}
        self.storage = self.make()

    def size(self, of: str | None = None) -> tuple[int, int]:
        sizes = [
            entry_size(key, entry.value) for (peer, key), entry in self.model.items() if of in (None, peer)
        ]
        return len(sizes), sum(sizes)

    def renew(self, entry: Entry) -> None:
        if entry.ttl is not None:
            entry.until = self.time + entry.ttl

    def fits(self, peer: str, key: str, value: bytes) -> bool:
        old = self.model.get((peer, key))
        more = 1 if old is None else 0
        bytes_ = entry_size(key, value) - (0 if old is None else entry_size(key, old.value))
        bounds = [(self.size(peer), QUOTA.keys, QUOTA.size)]
        if not self.evicts:
            bounds.append((self.size(), LIMITS.keys, LIMITS.size))
        return all(
            not (more and has + more > most) and not (bytes_ > 0 and held + bytes_ > room)
            for (has, held), most, room in bounds
        )

    @rule(peer=peers, key=keys, value=values, ttl=ttls)
    def set(self, peer: str, key: str, value: bytes, ttl: float | None) -> None:
        if not self.fits(peer, key, value):
            with pytest.raises(StorageFull):
                self.storage.set(peer, key, value, ttl, QUOTA)
            return
        self.storage.set(peer, key, value, ttl, QUOTA)
        self.model.pop((peer, key), None)
        entry = self.model[peer, key] = Entry(value, ttl, float("inf"))
        self.renew(entry)
        while self.evicts and (self.size()[0] > LIMITS.keys or self.size()[1] > LIMITS.size):
            del self.model[next(iter(self.model))]

    @rule(peer=peers, key=keys)
    def get(self, peer: str, key: str) -> None:
        entry = self.model.pop((peer, key), None)
        assert self.storage.get(peer, key) == (None if entry is None else entry.value)
        if entry is not None:
            self.model[peer, key] = entry
            self.renew(entry)

    @rule(peer=peers, key=keys)
    def delete(self, peer: str, key: str) -> None:
        assert self.storage.delete(peer, key) is ((peer, key) in self.model)
        self.model.pop((peer, key), None)

    @rule(seconds=st.sampled_from([1.0, 2.0, 5.0, 50.0]))
    def wait(self, seconds: float) -> None:
        self.time += seconds
        self.model = {place: entry for place, entry in self.model.items() if entry.until > self.time}

    @rule()
    def sweep(self) -> None:
        self.storage.sweep()
        wanted = StorageStats(len({peer for peer, _ in self.model}), *self.size())
        assert self.storage.stats() == wanted

    @rule(
        peer=peers,
        prefix=st.sampled_from(["", "a", "b", "é"]),
        after=st.none() | keys,
        limit=st.integers(1, 3),
        bare=st.booleans(),
    )
    def list(self, peer: str, prefix: str, after: str | None, limit: int, bare: bool) -> None:
        wanted = sorted(
            (key, None if bare else entry.value)
            for (of, key), entry in self.model.items()
            if of == peer and key.startswith(prefix) and (after is None or key > after)
        )
        found = []
        while True:
            page, after = self.storage.list(peer, prefix, after, limit, bare)
            assert len(page) <= limit
            found += page
            if after is None:
                break
        assert found == wanted

    @invariant()
    def nothing_else_is_kept(self) -> None:
        stats = self.storage.stats()
        count, size = self.size()
        assert stats.keys >= count
        assert stats.size >= size
        assert stats.keys <= LIMITS.keys
        assert stats.size <= LIMITS.size


class BaggageMachine(Machine):
    """In a baggage nothing is evicted; a ttl begins again at a read when a tenth of it has gone."""

    evicts = False

    def make(self) -> Any:
        self.store = durable.MemoryStore()
        self.baggage = durable.MemoryBaggage(self.store)
        self.committed: Model = {}
        return self.open()

    def open(self) -> Any:
        return BaggageStorage(self.baggage, LIMITS, now=lambda: self.time - 500, wall=lambda: self.time)

    def renew(self, entry: Entry) -> None:
        if entry.ttl is not None and (
            entry.until == float("inf") or entry.until - self.time <= entry.ttl * 0.9
        ):
            entry.until = self.time + entry.ttl

    def copy(self) -> Model:
        return {place: attrs.evolve(entry) for place, entry in self.model.items()}

    @rule()
    def flush(self) -> None:
        self.baggage.flush()
        self.committed = self.copy()

    @rule()
    def crash(self) -> None:
        self.store = self.store.reopened()
        self.baggage = durable.MemoryBaggage(self.store)
        self.storage = self.open()
        self.model = {
            place: attrs.evolve(entry) for place, entry in self.committed.items() if entry.until > self.time
        }

    @rule(peer=peers, key=keys, value=values, ttl=ttls, other=keys)
    def roll_back(self, peer: str, key: str, value: bytes, ttl: float | None, other: str) -> None:
        before = self.copy()
        try:
            with self.baggage.transaction():
                self.set(peer, key, value, ttl)
                self.get(peer, other)
                self.delete(peer, other)
                raise Undone
        except Undone:
            self.model = before

    @rule(peer=peers, entries=st.dictionaries(keys, values, max_size=4), ttl=ttls)
    def set_many(self, peer: str, entries: dict[str, bytes], ttl: float | None) -> None:
        before = self.copy()
        for key, value in entries.items():
            if not self.fits(peer, key, value):
                with pytest.raises(StorageFull):
                    self.storage.set_many(peer, entries, ttl, QUOTA)
                self.model = before
                return
            self.model.pop((peer, key), None)
            self.renew(self.model.setdefault((peer, key), Entry(value, ttl, float("inf"))))
        self.storage.set_many(peer, entries, ttl, QUOTA)

    @invariant()
    def the_rows_agree(self) -> None:
        root = self.baggage.namespace("ocapn.storage")
        entries = {
            (peer, key): root.namespace("entries").namespace(peer)[key]
            for peer in PEERS
            for key in root.namespace("entries").namespace(peer)
        }
        notes = {row[3]: [peer, key] for (peer, key), row in entries.items() if row[3] is not None}
        assert {note: root.namespace("due")[note] for note in root.namespace("due")} == notes
        sizes = {
            peer: [
                sum(one == peer for one, _ in entries),
                sum(entry_size(key, row[0]) for (one, key), row in entries.items() if one == peer),
            ]
            for peer in {peer for peer, _ in entries}
        }
        assert {peer: root.namespace("sizes")[peer] for peer in root.namespace("sizes")} == sizes
        assert self.storage.stats() == StorageStats(
            len(sizes), len(entries), sum(size for _, size in sizes.values())
        )


TestMemory = Machine.TestCase
TestBaggage = BaggageMachine.TestCase
TestMemory.settings = TestBaggage.settings = settings(max_examples=60, stateful_step_count=30)
