"""What the tests of this directory have found, each as the smallest case."""

from __future__ import annotations

import gc
import warnings
from typing import Any
from unittest import mock

import attrs
import pytest
import trio

import durable
import ocapn
from ocapn import E, send_only
from tests.peer.support import Box, Gate, between, far
from tests.restart.support import (
    Ledger,
    Process,
    Relay,
    agreed,
    balanced,
    inside,
    linked,
    related,
    relay,
    two,
    watch,
    world,
)
from tests.restart.test_waiting import chain
from tests.support import trio_test


@durable.kind("restart.found.asker", version=1)
@attrs.define(eq=False)
class Asker(ocapn.Target):
    told: tuple[object, ...] = ()

    async def later(self, value: object) -> None:
        self.told = (*self.told, value)


BAGGAGE: list[durable.Baggage] = []


@durable.kind("restart.found.ending", version=1)
@attrs.define(eq=False)
class Ending(ocapn.Target):
    ends: int = 0

    @ocapn.method
    async def run(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            BAGGAGE[0]["ends"] = 1
            self.ends += 1


@trio_test
async def test_garbage_that_was_not_told_survives_a_crash() -> None:
    async with two(check=False) as (a, b):
        ref = await linked(a, b)
        assert await E(ref).note(0) == 1
        a.baggage["row"] = 1  # any change: the rows of what is released go with it
        await a.peer.settled()
        a.crash()
        await a.start()
        await balanced(a, b)


@trio_test
async def test_a_settled_promise_is_not_seen_before_its_commit() -> None:
    async with two() as (a, b):
        await linked(a, b)
        with inside(a):
            promise = E(a.baggage["holder"]).note(5)
        a.peer.node.run(10)  # the turn has its turn, and nothing of it is on disk yet
        before = a.disk.commits
        assert await promise == 1
        assert a.disk.commits > before


@trio_test
async def test_an_object_of_an_unregistered_subclass_is_refused() -> None:
    @attrs.define(eq=False)
    class Sub(Ledger):
        extra: int = 5

    async with two() as (a, _):
        with pytest.raises((durable.NotStorable, TypeError)):
            a.baggage["x"] = Sub(extra=9)


@trio_test
async def test_turns_that_wait_keep_their_order_over_a_crash() -> None:
    async with world(check=False) as place:
        a = await place.process("a").start()
        one, other = a.baggage.provide("one", Ledger), a.baggage.provide("other", Ledger)
        await a.peer.settled()
        start = a.disk.commits
        a.disk.point = lambda number: "after" if number == start + 1 else None
        with inside(a):
            E(one).later(0)
            send_only(one).note(1)
            for number in range(300):
                send_only(other).note(number)
            send_only(one).note(2)
        await a.crashed.wait()
        await a.start()
        await trio.sleep(1)
        assert a.baggage["other"].seen == tuple(range(300))
        assert a.baggage["one"].seen == (1, 2)


@pytest.mark.filterwarnings("ignore:coroutine")
@trio_test
async def test_when_calls_an_async_method_or_refuses_it() -> None:
    async with two() as (a, b):
        ref = await linked(a, b)
        asker = a.baggage.provide("asker", Asker)
        try:
            durable.when(E(ref).note(1), asker, "later")
        except TypeError:
            return
        await trio.sleep(1)
        assert asker.told == (1,)


@trio_test
async def test_what_a_cancelled_method_changes_is_kept_or_refused_as_a_whole() -> None:
    async with two() as (a, b):
        await linked(a, b)
        BAGGAGE[:] = [b.baggage]
        ending = b.baggage.provide("ending", Ending)
        answer = E(await a.peer.enliven(b.peer.export(ending))).run()
        await trio.sleep(1)
        await b.close()
        await b.start()
        del answer
        assert b.baggage["ending"].ends == b.baggage.get("ends", 0)


@trio_test
async def test_a_transaction_undoes_assignments() -> None:
    async with two() as (a, _):
        ledger = a.baggage.provide("ledger", Ledger)
        with pytest.raises(ZeroDivisionError), a.baggage.transaction():  # noqa: PT012
            ledger.seen = (1,)
            a.baggage["row"] = 1
            raise ZeroDivisionError
        assert "row" not in a.baggage
        assert ledger.seen == ()


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("later", [False, True], ids=["at once", "after a restart"])
def test_a_transaction_undoes_that_an_object_wants_to_be_told(settled: bool, later: bool) -> None:
    @trio_test
    async def run() -> None:
        async with two() as (a, b):
            ref = await linked(a, b)
            a.baggage["ref"] = Ledger(held=ref)
            ledger = a.baggage.provide("ledger", Ledger)
            answer = E(ref).note(1)
            if settled:
                assert await answer == 1
            with inside(a):
                with pytest.raises(ZeroDivisionError), a.baggage.transaction():  # noqa: PT012
                    durable.when(answer, ledger, "note")
                    raise ZeroDivisionError
                with a.baggage.transaction():
                    durable.when(E(ref).note(2), ledger, "note")
            del answer
            if later:
                await a.peer.settled()
                await a.again()
            await trio.sleep(10)
            gc.collect()
            await trio.sleep(10)
            assert a.baggage["ledger"].seen == (2,)
            assert a.baggage.scan("promise") == a.baggage.scan("turn") == []
            assert a.peer.sessions[0].stats()["questions"] == 0
            del ref

    run()


@trio_test
async def test_what_a_refused_object_holds_is_not_kept_either() -> None:
    async with two() as (a, _):
        inner = Ledger()
        outer = Ledger(held=(inner, [1]))
        inner.held = outer
        with pytest.raises(durable.NotStorable):
            a.baggage["x"] = outer
        await trio.sleep(10)
        assert a.alive, a.failure


@trio_test
async def test_bytes_that_no_row_holds_are_refused_at_the_assignment() -> None:
    async with two() as (a, _):
        ledger = a.baggage.provide("ledger", Ledger)
        try:
            ledger.held = bytes(70 << 20)
        except durable.NotStorable:
            return
        await trio.sleep(10)
        assert a.alive, a.failure


@trio_test
async def test_a_message_with_a_promise_that_waits_behind_an_async_method_is_not_lost() -> None:
    async with two(check=False) as (a, b):
        ref = await linked(a, b)
        with inside(a):
            pending = E(a.baggage.provide("mine", Ledger)).never(0)
        await trio.sleep(1)
        start = b.disk.commits
        b.disk.point = lambda number: "after" if number == start + 1 else None
        send_only(ref).later(0)
        send_only(ref).hold_and_note(1, pending)
        await b.crashed.wait()
        await b.start()
        await trio.sleep(1)
        assert b.baggage["ledger"].seen == (1,)


@trio_test
async def test_a_method_that_never_begins_is_closed() -> None:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        async with two(check=False) as (a, b):
            ref = await linked(a, b)
            b.disk.point = lambda number: "before"
            send_only(ref).later(0)
            await b.ended.wait()
        gc.collect()
    assert not [one for one in warned if "never awaited" in str(one.message)]


@trio_test
async def test_a_restarted_peer_is_at_rest_while_the_other_is_away() -> None:
    """It had taken more frames than are acknowledged at once, and turned for ever: nobody was there to be told."""
    async with two(check=False) as (a, b):
        ref = await linked(a, b)
        for number in range(80):
            send_only(ref).note(number)
        await balanced(a, b)
        a.crash()
        await b.again()
        b.baggage["row"] = 1  # any commit
        with mock.patch.object(b.peer, "pump", wraps=b.peer.pump) as pump:
            for _ in range(1000):
                await trio.lowlevel.checkpoint()
        assert pump.call_count < 20


@trio_test
async def test_garbage_of_before_the_agreement_survives_a_crash() -> None:
    """The session is first kept when a resolver of the peer has been told already, and not yet returned."""
    async with world(check=False) as place:
        a, b = place.process("a"), place.process("b")
        for process in (a, b):
            await process.start()
            process.peer.export(process.baggage.provide("ledger", Ledger), b"ledger")
        async with (
            trio.open_nursery() as nursery
        ):  # the one whose dial loses asks for something before it is asked
            nursery.start_soon(a.peer.enliven, b.sturdyref(b"ledger"))
            nursery.start_soon(b.peer.enliven, a.sturdyref(b"ledger"))
        await agreed_on_disk(a, b)
        for process in (a, b):
            process.crash()
        for process in (a, b):
            await process.start()
        await balanced(a, b)


async def agreed_on_disk(*processes: Process) -> None:
    """Returns at once when that is so, before garbage is sent."""
    while not all(one.durable for process in processes for one in process.peer.sessions):
        await trio.lowlevel.checkpoint()
    for process in processes:
        await process.peer.settled()


@trio_test
async def test_what_a_kept_row_named_is_let_go_with_the_row() -> None:
    async with two() as (a, b):
        ref = await b.peer.enliven(a.peer.export(a.baggage.provide("ledger", Ledger)))
        await agreed(a, b)
        for number in range(5):
            with inside(b):
                promise, resolver = ocapn.make_promise()
                send_only(ref).pause()  # so that what follows is held back, and kept
                send_only(ref).hold_and_note(number, promise)
            await trio.sleep(1)
            resolver.fulfill(1)
            del promise, resolver
        gc.collect()
        await trio.sleep(5)
        gc.collect()
        await trio.sleep(5)
        assert a.peer.sessions[0].stats()["imports"] == 0
        assert b.peer.sessions[0].stats()["exports"] == 0


class Giver(ocapn.Target):
    """Gives a list with a promise in it, which the other side imports."""

    def __init__(self, process: Process) -> None:
        self.process = process

    @ocapn.method
    def listed(self) -> object:
        return [E(relay(self.process).to).give()]


class Holder(ocapn.Target):
    thing: object = None

    @ocapn.method
    def get(self) -> object:
        return self.thing


@trio_test
async def test_a_promise_that_was_released_when_the_process_died_is_not_asked_for_again() -> None:
    async with world() as place:
        a, b, c, slow = await chain(place)
        a.baggage.provide("target", Relay)
        slow.gift = await related(c, a, "target")  # what the promise becomes lives elsewhere
        holder = Holder()
        at_c = await c.peer.enliven(a.peer.export(holder))
        giver: Any = await a.peer.enliven(b.peer.export(Giver(b)))
        await agreed(a, b, c)
        (holder.thing,) = await E(giver).listed()
        answer = E(at_c).get()  # a resolver of c's waits on the promise
        await trio.sleep(2)
        del answer  # not the resolver
        holder.thing = None
        (core,) = [one._core for one in a.peer.sessions if one.location == b.peer.locator()]
        while not core.outbox._exports:  # noqa: ASYNC110 - it is released, and b has not been told
            await trio.sleep(0.001)
        send_only(relay(a).to).note(5)
        await a.peer.settled()
        await a.again()
        await trio.sleep(2)
        slow.go.set()
        await trio.sleep(60)
        assert {one.location.designator for one in a.peer.sessions} == {"b", "c"}
        del at_c, giver


@trio_test
async def test_what_a_peer_has_told_is_told_on_though_it_waited_in_a_gate_when_the_process_died() -> None:
    """The resolver was used and returned before: the next process has to ask again."""
    async with world(check=False) as place:
        a, b, c = [await place.process(name).start() for name in "abc"]
        gate = Gate()
        promise = E(await far(b.peer, a.peer, gate)).wait("value")
        a.baggage.provide("relay", Relay)
        watch(a, promise)
        box = await far(a.peer, c.peer, Box({"promise": promise}))
        await agreed(a, b, c)
        told: list[object] = []

        async def listen() -> None:
            told.append(await theirs)

        with inside(c):
            theirs = ocapn.field(E(box).get(), "promise")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            await trio.sleep(1.0)
            a.peer.limit(between(a.peer, b.peer), ocapn.Lease(life=20.0, within=1000.0))
            await trio.sleep(25.0)
            with inside(a):
                answer = E(promise).note(1)
            gate.opened.set()
            await trio.sleep(1.0)
            assert (told, relay(a).told) == ([], ())
            await a.again()
            await trio.sleep(300.0)
            assert (told, relay(a).told) == (["value"], ("value",))
            del answer
