"""A baggage does what a dict does, whatever is cut, written, rolled back or opened again in between."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from durable import BaggageFailed, DirectoryStore, MemoryStore, Store
from durable.baggage import Baggage, Batch, Namespace
from tests.durable.support import reopened, unsynced

PATHS = ((), ("a",), ("a", "k"), ("\x00",))
Place = tuple[tuple[str, ...], str]
State = tuple[dict[Place, Any], dict[bytes, bytes]]

places = st.tuples(st.sampled_from(PATHS), st.sampled_from(["", "a", "ab", "b", "k\x00", "é"]))
values = st.none() | st.integers(0, 3) | st.lists(st.text("xy", max_size=2), max_size=2)
changes = st.tuples(st.just("set"), places, values) | st.tuples(st.just("delete"), places, st.none())
#: What is done in a transaction: changes, and transactions in it, of which some raise at their end.
blocks = st.recursive(
    st.lists(changes, max_size=4),
    lambda inner: st.lists(changes | st.tuples(st.just("block"), st.booleans(), inner), max_size=4),
    max_leaves=6,
)
rows = st.binary(max_size=2)


class Undone(Exception):
    pass


class BaggageModel(RuleBasedStateMachine):
    """The model: a dict for the application, one for the peer, and copies of both at each cut."""

    store: Store
    baggage: Baggage

    def make(self) -> Store:
        return MemoryStore()

    def again(self) -> Store:
        assert isinstance(self.store, MemoryStore)
        return self.store.reopened()

    @initialize()
    def begin(self) -> None:
        self.store = self.make()
        self.baggage = Baggage(self.store)
        self.user: dict[Place, Any] = {}
        self.peer: dict[bytes, bytes] = {}
        self.committed: State = ({}, {})
        self.cut_off: list[tuple[Batch, State]] = []  # cut, not said to be written
        self.on_disk = 0  # so many of them are committed

    def space(self, path: Iterable[str]) -> Namespace:
        space: Namespace = self.baggage
        for name in path:
            space = space.namespace(name)
        return space

    def change(self, state: dict[Place, Any], step: Any) -> None:
        what, (path, key), value = step
        if what == "set":
            self.space(path)[key] = value
            state[path, key] = value
        elif (path, key) in state:
            del self.space(path)[key]
            del state[path, key]

    @rule(step=changes)
    def change_user(self, step: Any) -> None:
        self.change(self.user, step)

    @rule(key=rows, value=rows | st.none())
    def change_peer(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            self.baggage.remove("slot", key)
            self.peer.pop(key, None)
        else:
            self.baggage.put("slot", key, value)
            self.peer[key] = value

    @rule(fails=st.booleans(), block=blocks)
    def transact(self, fails: bool, block: list[Any]) -> None:
        self.user = self.run_block(self.user, fails, block)

    def run_block(self, state: dict[Place, Any], fails: bool, block: list[Any]) -> dict[Place, Any]:
        inside = dict(state)
        try:
            with self.baggage.transaction():
                for step in block:
                    if step[0] == "block":
                        inside = self.run_block(inside, step[1], step[2])
                    else:
                        self.change(inside, step)
                    assert self.seen() == inside
                if fails:
                    raise Undone
        except Undone:
            return state
        return inside

    @rule()
    def cut(self) -> None:
        dirty = self.baggage.dirty
        batch = self.baggage.cut()
        assert dirty == (batch is not None)
        if batch is not None:
            self.cut_off.append((batch, (dict(self.user), dict(self.peer))))

    @precondition(lambda self: self.on_disk < len(self.cut_off))
    @rule(count=st.integers(1, 3))
    def write(self, count: int) -> None:
        some = self.cut_off[self.on_disk : self.on_disk + count]
        self.baggage.write([batch for batch, _ in some])
        self.on_disk += len(some)
        self.committed = some[-1][1]

    @precondition(lambda self: self.on_disk)
    @rule()
    def written(self) -> None:
        self.baggage.written(self.cut_off.pop(0)[0])
        self.on_disk -= 1

    @rule()
    def flush(self) -> None:
        self.baggage.flush()
        self.cut_off, self.on_disk = [], 0
        self.committed = (dict(self.user), dict(self.peer))

    @rule()
    def close(self) -> None:
        self.baggage.close()
        self.committed = (dict(self.user), dict(self.peer))
        self.reopen()

    @rule()
    def crash(self) -> None:
        self.reopen()

    def reopen(self) -> None:
        self.store = self.again()
        self.baggage = Baggage(self.store)
        self.user, self.peer = dict(self.committed[0]), dict(self.committed[1])
        self.cut_off, self.on_disk = [], 0
        assert self.store.verify() == len(self.user) + len(self.peer)

    def seen(self) -> dict[Place, Any]:
        return {(path, key): self.space(path)[key] for path in PATHS for key in self.space(path)}

    @invariant()
    def it_reads_as_the_model(self) -> None:
        assert self.seen() == self.user
        assert self.baggage.scan("slot") == sorted(self.peer.items())

    @rule(place=places, limit=st.integers(1, 4), after=st.none() | st.sampled_from(["", "a", "az"]))
    def page(self, place: Place, limit: int, after: str | None) -> None:
        path, prefix = place
        wanted = sorted(
            (key, value)
            for (where, key), value in self.user.items()
            if where == path and key.startswith(prefix) and (after is None or key > after)
        )
        cursor = wanted[limit - 1][0] if len(wanted) > limit else None
        assert self.space(path).entries(prefix, after, limit) == (wanted[:limit], cursor)

    @rule(prefix=rows, after=rows | st.none(), limit=st.integers(0, 4))
    def scan(self, prefix: bytes, after: bytes | None, limit: int) -> None:
        keys = sorted(key for key in self.peer if key.startswith(prefix) and (after is None or key > after))
        assert self.baggage.scan("slot", prefix, after, limit) == [
            (key, self.peer[key]) for key in keys[:limit]
        ]


class DirectoryModel(BaggageModel):
    def make(self) -> Store:
        self.place = Path(tempfile.mkdtemp())
        with unsynced():
            return DirectoryStore(self.place / "baggage")

    def again(self) -> Store:
        assert isinstance(self.store, DirectoryStore)
        with unsynced():
            return reopened(self.store)

    def teardown(self) -> None:
        if hasattr(self, "place"):
            try:
                self.store.close()
            except BaggageFailed:
                pass
            shutil.rmtree(self.place)


TestInMemory = BaggageModel.TestCase
TestInADirectory = DirectoryModel.TestCase
TestInADirectory.settings = settings(max_examples=20)
