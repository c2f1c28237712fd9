"""What a peer that returns nothing, or an application that asks often, makes this one keep."""

from __future__ import annotations

import gc
import weakref

import pytest
import trio

import ocapn
from ocapn import E
from ocapn.codec.operations import form_of
from ocapn.testing import linked_peers, quiet
from tests.invariants import Watch
from tests.support import interpreted, trio_test


class Giver(ocapn.Target):
    @ocapn.method
    def give(self) -> ocapn.Target:
        return ocapn.target(print)


@interpreted
@trio_test
async def test_a_resolver_that_was_used_keeps_nothing_alive(
    monkeypatch: pytest.MonkeyPatch, invariants: Watch
) -> None:
    invariants.excuse("I7")
    async with linked_peers("a", "b") as (a, b):
        ref = await b.enliven(a.export(Giver()))
        (at_a,) = a._node.sessions.values()
        monkeypatch.setattr(type(at_a.outbox), "returned", lambda *_: None)  # a never returns a resolver
        given = weakref.ref(await E(ref).give())
        await quiet()
        assert given() is None
        (at_b,) = b._node.sessions.values()
        used = [slot["is"] for slot in at_b.dump()["exports"].values()]  # type: ignore[attr-defined]
        assert "resolver, used" in used
        assert await E(ref).give() is not None  # and the session goes on


@trio_test
async def test_watching_often_keeps_only_what_is_wanted() -> None:
    async with linked_peers("a", "b") as (a, b):
        ref = await b.enliven(a.export(Giver()))
        (session,) = b._node.sessions.values()
        kept = ocapn.when_broken(ref)
        for _ in range(1000):
            ocapn.when_broken(ref)
        gc.collect()
        ocapn.when_broken(ref)
        assert len(session._watchers) < 200
        session.abort("over")
        assert isinstance(await kept, ocapn.SessionEnded)


def test_the_dialect_of_text_order() -> None:
    form = form_of("2026-02-text-order")
    assert (form.old_deliver, form.old_gc, form.text_order) == (False, False, True)


@trio_test
async def test_a_finaliser_does_not_touch_the_run_queue() -> None:
    """The cyclic collector may run inside trio's own bookkeeping, where rescheduling a task would lose tasks."""
    async with linked_peers("a", "b") as (a, b):
        ref = await b.enliven(a.export(Giver()))
        await quiet(a, b)
        runnable = trio.lowlevel.current_statistics().tasks_runnable
        del ref
        assert b._node._finalised
        assert trio.lowlevel.current_statistics().tasks_runnable == runnable
        await quiet(a, b)
        assert b.sessions[0].stats()["imports"] == 0
