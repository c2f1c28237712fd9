"""A sealed store does what one in memory does, whatever is committed, scanned, opened again and sealed anew between."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import durable
from durable import MemoryStore, SealedStore
from durable.store import TABLES
from tests.durable.support import sealed_again, unsynced

#: Few, so that rows are written over and removed; alike, so that prefixes matter.
tables = st.sampled_from(("node", "slot", "user"))
keys = st.lists(st.sampled_from((b"a", b"b", b"\x00", b"\xff")), max_size=3).map(b"".join)
values = st.none() | st.binary(max_size=3) | st.just(b"long" * 2_000)


def first_seal(store_id: bytes) -> bytes:
    return bytes(32)


def second_seal(store_id: bytes) -> bytes:
    return store_id


class SealedModel(RuleBasedStateMachine):
    """The model is a MemoryStore."""

    store: SealedStore

    @initialize()
    def make(self) -> None:
        self.place = Path(tempfile.mkdtemp())
        self.seal, self.other = first_seal, second_seal
        self.model = MemoryStore()
        with unsynced():
            self.store = SealedStore(self.place / "baggage", self.seal, log_size=30_000)

    @rule(changes=st.dictionaries(st.tuples(tables, keys), values, max_size=6))
    def commit(self, changes: dict[tuple[str, bytes], bytes | None]) -> None:
        self.store.commit(changes)
        self.model.commit(changes)

    @rule(table=tables, prefix=keys, after=st.none() | keys, limit=st.none() | st.integers(0, 4))
    def scan(self, table: str, prefix: bytes, after: bytes | None, limit: int | None) -> None:
        assert self.store.scan(table, prefix, after, limit) == self.model.scan(table, prefix, after, limit)

    @rule(table=tables, key=keys)
    def get(self, table: str, key: bytes) -> None:
        assert self.store.get(table, key) == self.model.get(table, key)

    @rule()
    def scrub(self) -> None:
        self.store.scrub()

    @rule()
    def verify(self) -> None:
        assert self.store.verify() == self.model.verify()

    @rule()
    def crash(self) -> None:
        with unsynced():
            self.store = sealed_again(self.store, self.seal)

    @rule(rows=st.booleans())
    def rotate(self, rows: bool) -> None:
        self.store.close()
        with unsynced():
            durable.rotate(self.store.path, self.seal, self.other, rows=rows)
            self.seal, self.other = self.other, self.seal
            self.store = SealedStore(self.store.path, self.seal, log_size=30_000)

    @rule()
    def unseal_and_seal(self) -> None:
        self.store.close()
        with unsynced():
            durable.unseal(self.store.path, self.seal)
            durable.seal(self.store.path, self.seal)
            self.store = SealedStore(self.store.path, self.seal, log_size=30_000)

    @invariant()
    def it_reads_as_the_model(self) -> None:
        for table in TABLES:
            assert self.store.scan(table) == self.model.scan(table)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.place)


TestSealed = SealedModel.TestCase
TestSealed.settings = settings(max_examples=25, stateful_step_count=30)
