"""Durable objects are loaded when they are looked at: what has to be right of those that nobody looks at."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import pytest
import trio

import durable
import ocapn
from durable import inspection
from durable.keeping import Objects
from durable.objects import kinds
from ocapn import E
from tests.restart.support import Ledger, Process, agreed, balanced, linked, two
from tests.support import trio_test


def objects(process: Process) -> Objects:
    keeper = process.peer.node.keeper
    assert keeper is not None
    found: Objects = keeper._objects  # type: ignore[attr-defined]
    return found


def unloaded(process: Process) -> bool:
    """Whether some object has not been found at all."""
    rows = {int.from_bytes(key, "big") for key, _ in process.baggage.scan("object")}
    return bool(rows - objects(process)._objects.keys())


@trio_test
async def test_a_long_chain_of_objects() -> None:
    async with two() as (a, b):
        await linked(a, b)
        first = last = a.baggage.provide("first", Ledger)
        for _ in range(3000):
            last.held = Ledger()
            last = last.held
        await a.peer.settled()
        await a.again()
        link = a.baggage["first"]
        assert not objects(a)._unloaded.keys() - {link._durable_id}
        length = 0
        while link is not None:
            link, length = link.held, length + 1
        assert length == 3001
        assert first is not a.baggage["first"]


@trio_test
async def test_a_long_chain_that_is_stored_at_once() -> None:
    async with two() as (a, b):
        await linked(a, b)
        chain: Any = None
        for _ in range(2000):
            chain = Ledger(held=chain)
        a.baggage["chain"] = chain
        await a.peer.settled()
        await a.again()
        assert a.baggage["chain"].held.held.seen == ()


@trio_test
async def test_a_reference_that_only_an_unloaded_object_holds() -> None:
    """The peer is not told that nobody holds it, in none of the lives in which nobody looks."""
    async with two() as (a, b):
        await linked(a, b)
        far = b.peer.node.swiss[b"ledger"]
        for _ in range(3):
            await a.again()
            await agreed(a, b)
            await balanced(a, b)
            assert unloaded(a)
            assert any(slot.value is far for slot in b.peer.sessions[0]._core.tables.exports.values())
        assert await E(a.baggage["holder"].held).note(1) == 1
        a.baggage["holder"].held = None
        await balanced(a, b)
        assert not any(slot.value is far for slot in b.peer.sessions[0]._core.tables.exports.values())


@trio_test
async def test_of_two_holders_one_lets_go() -> None:
    async with two() as (a, b):
        ref = await linked(a, b)
        a.baggage.provide("other", Ledger).held = (ref, ref)
        del ref
        await a.peer.settled()
        await a.again()
        await agreed(a, b)
        a.baggage["holder"].held = None
        gc.collect()
        await balanced(a, b)
        await a.again()
        ref, _ = a.baggage["other"].held
        assert await E(ref).note(1) == 1


@trio_test
async def test_what_is_told_to_people_loads_nothing() -> None:
    async with two() as (a, b):
        ref = await linked(a, b)
        b.baggage["ledger"].held = Ledger()
        held = await E(ref).give()
        await balanced(a, b)
        await b.again()
        await agreed(a, b)
        (session,) = b.peer.sessions
        assert unloaded(b)
        exports: Any = session.dump()["exports"]
        assert "durable object 2" in [one["is"] for one in exports.values()]
        assert unloaded(b)
        assert await E(held).note(1) == 1


@trio_test
async def test_a_change_that_is_undone_or_made_twice_holds_once() -> None:
    async with two() as (a, b):
        ref = await linked(a, b)
        holder = a.baggage["holder"]
        for _ in range(3):
            holder.held = None
            holder.held = (ref, ref)
            await a.peer.settled()
        inspection.check(a.disk.reopened())
        (slot,) = {position for session, position in objects(a)._holds[holder._durable_id]}
        assert objects(a).holders(a.peer.sessions[0]._core) == {slot: 1}


@trio_test
async def test_an_export_that_is_not_loaded_keeps_its_place() -> None:
    async with two() as (a, b):
        ref = await linked(a, b)
        other = b.baggage.provide("other", Ledger)
        other.held = b.baggage["ledger"]
        seen = await b.peer.enliven(b.peer.export(other, b"other"))
        assert seen is other
        far = await a.peer.enliven(b.sturdyref(b"other"))
        a.baggage.provide("far", Ledger).held = far
        await b.again()
        await agreed(a, b)
        assert await E(far).give() is ref  # the object, found from the other one's field, is exported already
        assert await E(ref).note(1) == 1


@trio_test
async def test_what_is_returned_is_not_loaded() -> None:
    async with two() as (a, b):
        ref = await linked(a, b)
        more = [await E(ref).swap(number) for number in range(3)]
        assert more == [0, 1, 2]
        made = b.baggage.provide("made", Ledger)
        made.held = tuple(Ledger() for _ in range(5))
        far = await a.peer.enliven(b.peer.export(made, b"made"))
        held = await E(far).give()
        assert len(held) == 5
        await balanced(a, b)  # answers hold what they became
        await b.again()
        await agreed(a, b)
        del held
        await balanced(a, b)
        kept = b.peer.sessions[0]._core.tables.exports.keys()
        assert len(kept) == 2
        assert unloaded(b)
        await b.again()
        await agreed(a, b)
        assert b.peer.sessions[0]._core.tables.exports.keys() == kept


@trio_test
async def test_a_session_ends_and_nothing_is_loaded() -> None:
    async with two() as (a, b):
        ref = await linked(a, b)
        await b.peer.settled()
        await b.again()
        await agreed(a, b)
        loaded = dict(objects(b)._objects)
        b.peer.sessions[0].end()
        with pytest.raises(ocapn.SessionEnded):
            await E(ref).note(1)
        assert objects(b)._objects == loaded
        assert b.baggage["ledger"].seen == ()


@trio_test
async def test_a_row_that_is_gone() -> None:
    async with two() as (a, b):
        ref = await linked(a, b)
        await b.peer.settled()
        b.crash()
        (number,) = (key for key, _ in b.disk.scan("object"))
        b.disk._tables["object"].pop(number)
        del b.disk._tables["swiss"][b"ledger"]
        await b.start()
        await agreed(a, b)
        with pytest.raises(ocapn.RemoteError, match="damaged on the disk of its peer"):
            await E(ref).note(1)


@contextmanager
def without(name: str) -> Iterator[None]:
    kind = kinds.pop(name)
    try:
        yield
    finally:
        kinds[name] = kind


def define(version: int, **fields: Any) -> Any:
    """A kind as one release of an application has it."""
    kinds.pop("restart.released", None)
    made = attrs.make_class("Released", fields, bases=(ocapn.Target,))
    made.__qualname__ = "Released"
    return durable.kind("restart.released", version=version)(made)


@trio_test
async def test_kinds_are_looked_at_when_the_peer_is_opened() -> None:
    """Though none of their objects is."""
    async with two() as (a, b):
        await linked(a, b)
        ledger = a.baggage.provide("ledger", Ledger)
        ledger.held = define(1, name=attrs.field(default="x"))()
        number = ledger.held._durable_id
        await a.peer.settled()
        a.crash()
        with without("restart.released"), pytest.raises(durable.MissingKind, match=r"restart\.released"):
            await a.start()
        define(1, name=attrs.field(default="x"), more=attrs.field(kw_only=True))
        with pytest.raises(durable.MissingUpgrade, match="without the field 'more'"):
            await a.start()
        define(2, name=attrs.field(), more=attrs.field())
        with pytest.raises(durable.MissingUpgrade, match=r"version 1 of the kind 'restart\.released'"):
            await a.start()
        upgrades = []

        @durable.upgrade("restart.released", version=1)
        def upgrade(state: dict[str, Any]) -> dict[str, Any]:
            upgrades.append(state["name"])
            return {**state, "more": 7}

        for _ in range(2):
            await a.start()
            await a.peer.settled()
            assert upgrades == ["x"]
            assert objects(a).obj(number).more == 7
            a.crash()
        define(1, name=attrs.field())
        with pytest.raises(durable.BaggageNewer, match=r"restart\.released"):
            await a.start()
        define(2, name=attrs.field(), more=attrs.field())
        await a.start()
        await trio.sleep(1)


@trio_test
async def test_pruning_forgets_what_was_held_and_kinds_of_which_no_object_is_left() -> None:
    async with two() as (a, b):
        ref = await linked(a, b)
        ledger = a.baggage.provide("ledger", Ledger)
        ledger.held = define(1, held=attrs.field(default=None))(ref)
        await a.peer.settled()
        ledger.held = None
        await a.peer.settled()
        a.crash()
        disk = a.disk.reopened()
        baggage = durable.MemoryBaggage(disk)
        inspection.check(baggage)
        assert inspection.prune(baggage, 0.0).objects == {("restart.released", 1): 1}
        inspection.check(baggage)
        baggage.close()
        with without("restart.released"):
            await a.start(disk)
            await agreed(a, b)
            assert await E(a.baggage["holder"].held).note(1) == 1
            a.baggage["holder"].held = None
            await balanced(a, b)
            assert a.peer.sessions[0]._core.tables.imports.keys() == set()
