"""Garbage: what an application drops is released on the wire, exactly (wire.md, Garbage collection)."""

from __future__ import annotations

import gc
import logging
import random
import threading
from typing import Any

import pytest
import trio

from ocapn import (
    E,
    MemoryNetwork,
    Peer,
    Promise,
    RemoteError,
    Session,
    Target,
    field,
    make_promise,
    method,
    send_only,
)
from ocapn.testing import linked_peers, quiet
from tests.peer.support import Box, Echo, Gate, Trace, between, far
from tests.support import trio_test, trio_test_real

EMPTY = {"exports": 0, "imports": 0, "questions": 0, "answers": 0, "resolvers": 0}


def tables(session: Session) -> dict[str, int]:
    stats = session.stats()
    return {name: stats[name] for name in EMPTY}


async def nothing_left(*peers: Peer) -> None:
    """No peer keeps anything of another."""
    await quiet(*peers)
    for peer in peers:
        for session in peer.sessions:
            assert tables(session) == EMPTY, session.dump()
            stats = session.stats()
            waiting = [name for name in stats if name.endswith("_waiting") or name.startswith("outbox_")]
            assert {name: stats[name] for name in waiting} == dict.fromkeys(waiting, 0)
            assert stats["messages_on_promises"] == 0


class Maker(Target):
    """Makes new objects."""

    def __init__(self) -> None:
        self.promises: list[Any] = []

    @method
    def make(self, count: int = 1) -> list[Target]:
        return [Echo() for _ in range(count)]

    @method
    def promise(self) -> list[Promise]:
        promise, resolver = make_promise()
        self.promises.append(resolver)
        return [promise]

    @method
    def forget(self) -> None:
        """Its promises will never be kept."""
        while self.promises:
            self.promises.pop().break_("forgotten")

    @method
    def echo(self, value: object) -> object:
        return value


# Release


@trio_test
async def test_what_is_dropped_is_released_on_the_wire() -> None:
    async with linked_peers("a", "b", durable="never") as (a, b):
        ref = await far(a, b, Echo())
        await quiet(a, b)
        trace = Trace(between(b, a))
        assert tables(between(b, a))["imports"] == tables(between(a, b))["exports"] == 1
        await quiet(a, b)
        assert trace.lines == []  # it is held
        del ref
        await quiet(a, b)
        assert trace.lines == ["-> <op:gc-exports [1] [1]>"]
        await nothing_left(a, b)


@trio_test
async def test_releases_are_batched() -> None:
    async with linked_peers("a", "b") as (a, b):
        maker = await far(a, b, Maker())
        refs = await E(maker).make(1200)
        await quiet(a, b)
        trace = Trace(between(b, a))
        del refs
        await quiet(a, b)
        assert 1 <= len(trace.sent("op:gc-exports")) <= 4
        assert sum(line.count(" ") for line in trace.sent("op:gc-exports")) > 2400
        del maker
        await nothing_left(a, b)


@trio_test
async def test_the_count_is_how_often_the_reference_came() -> None:
    async with linked_peers("a", "b") as (a, b):
        echo = Echo()
        maker = await far(a, b, Maker())
        box = await far(a, b, Box([echo, [echo], {"x": echo}]))
        content = await E(box).get()
        assert content[0] is content[1][0] is content[2]["x"]
        await quiet(a, b)
        trace = Trace(between(b, a))
        ref = content[0]
        del content
        await E(box).get()  # three more, dropped at once; but one handle is held
        await quiet(a, b)
        assert not trace.sent("op:gc-exports")
        del ref
        await quiet(a, b)
        (line,) = trace.sent("op:gc-exports")
        assert line.endswith("[6]>")
        del maker, box
        await nothing_left(a, b)


@trio_test
async def test_counts_are_exact_with_references_in_flight() -> None:
    """A release that crosses with the same reference on its way does not free what is held."""
    network = MemoryNetwork()
    async with linked_peers("a", "b", network=network) as (a, b):
        kept = Echo()
        box = await far(a, b, Box(kept))
        ref = await E(box).get()
        (link,) = network.links_between("a", "b")
        again = E(box).get()
        link.hold(a_to_b=link.a == "a", b_to_a=link.a == "b")  # from a to b
        await trio.sleep(1)
        del ref
        gc.collect()
        await trio.sleep(1)  # the release is with a; the reference is on its way
        assert between(a, b).stats()["exports"] >= 1
        link.release()
        ref = await again
        await quiet(a, b)
        assert await E(ref).echo("alive") == "alive"
        del again, ref, box
        await nothing_left(a, b)


@pytest.mark.parametrize("kind", ["reference", "promise"])
def test_what_is_dropped_as_it_comes_again_is_not_released(kind: str) -> None:
    """The finaliser ran, and before the peer looked at it the same reference came once more."""

    @trio_test
    async def run() -> None:
        network = MemoryNetwork()
        async with linked_peers("a", "b", network=network) as (a, b):
            own = Maker()
            kept: Any = Echo() if kind == "reference" else own.promise()[0]
            own_box = Box([kept])
            box = await far(a, b, own_box)
            held = await E(box).get()
            (link,) = network.links_between("a", "b")
            link.hold(a_to_b=link.a == "a", b_to_a=link.a == "b")
            again = E(box).get()
            await trio.sleep(1)
            link.release()
            held.clear()
            gc.collect()
            (arrived,) = await again
            await quiet(a, b)
            if kind == "reference":
                assert await E(arrived).echo("alive") == "alive"
            else:
                own.promises[0].fulfill("kept")
                assert await arrived == "kept"
            own_box.content = kept = None
            del again, arrived, box
            await nothing_left(a, b)

    for _ in range(10):  # trio wakes tasks in no fixed order
        run()


@trio_test
async def test_a_reference_that_is_sent_back_as_it_is_dropped_arrives() -> None:
    """The release goes after what was sent before it."""
    async with linked_peers("a", "b") as (a, b):
        kept = Maker()
        box = Box()
        remote_box = await far(a, b, box)
        ref = await far(a, b, kept)
        for send in (E(remote_box).put, send_only(remote_box).put):
            send(ref)
            del ref
            gc.collect()
            await quiet(a, b)
            assert box.content is kept
            ref = await far(a, b, kept)
        del ref, remote_box, send
        box.content = None
        await nothing_left(a, b)


@trio_test
async def test_a_reference_that_comes_again_after_its_release_is_a_new_one() -> None:
    async with linked_peers("a", "b") as (a, b):
        kept = Echo()
        box = await far(a, b, Box(kept))
        for _ in range(3):
            ref = await E(box).get()
            assert await E(ref).echo(1) == 1
            del ref
            await quiet(a, b)
            assert tables(between(b, a))["imports"] == 1  # the box
        del box
        await nothing_left(a, b)


@trio_test
async def test_cycles_are_collected_where_they_stand() -> None:
    async with linked_peers("a", "b") as (a, b):
        knot: list[Any] = [await far(a, b, Echo())]
        knot.append(knot)
        await quiet(a, b)
        assert tables(between(b, a))["imports"] == 1
        del knot
        await nothing_left(a, b)  # `quiet` runs the collector


@trio_test_real
async def test_finalisation_in_another_thread() -> None:
    async with linked_peers("a", "b") as (a, b):
        maker = await far(a, b, Maker())
        holders = [[ref] for ref in await E(maker).make(200)]
        promises = [E(maker).echo(number) for number in range(200)]
        await quiet(a, b)
        assert tables(between(b, a))["imports"] == 201

        def drop(part: list[list[Any]], more: list[Promise]) -> None:
            while part:
                part.pop().clear()
                more.pop()

        shares = [(holders[i::4], promises[i::4]) for i in range(4)]
        holders.clear()
        promises.clear()
        threads = [threading.Thread(target=drop, args=share) for share in shares]
        for thread in threads:
            thread.start()
        for thread in threads:
            await trio.to_thread.run_sync(thread.join)
        del shares, maker
        with trio.fail_after(5):
            while tables(between(a, b)) != EMPTY:  # the thread woke the peer: nobody else does anything here
                await trio.testing.wait_all_tasks_blocked(0.02)
        await nothing_left(a, b)


@trio_test_real
async def test_finalisation_after_the_end_is_harmless() -> None:
    async with linked_peers("a", "b") as (a, b):
        ref = await far(a, b, Echo())
        promise = E(ref).echo(1)
        held = [ref, promise]
    thread = threading.Thread(target=held.clear)
    del ref, promise
    thread.start()
    thread.join()
    assert held == []


# Answers


@trio_test
async def test_answers_are_released_when_settled() -> None:
    async with linked_peers("a", "b") as (a, b):
        ref = await far(a, b, Echo())
        await quiet(a, b)
        held = [E(ref).echo(number) for number in range(10)]
        await quiet(a, b)
        assert tables(between(a, b))["answers"] == tables(between(b, a))["questions"] == 0
        assert [await promise for promise in held] == list(range(10))  # though the promises are held
        del ref
        await nothing_left(a, b)


@trio_test
async def test_answers_are_released_when_dropped() -> None:
    async with linked_peers("a", "b") as (a, b):
        gate = Gate()
        ref = await far(a, b, gate)
        promises = [E(ref).wait([Echo()]) for _ in range(10)]
        chained = [promise.echo(1) for promise in promises]
        parts = [field(promise, "x") for promise in promises]
        await quiet(a, b)
        assert tables(between(a, b))["answers"] == 30
        del promises, chained, parts
        await quiet(a, b)
        assert tables(between(a, b))["answers"] == 0
        gate.opened.set()
        del ref
        await nothing_left(a, b)


@trio_test
async def test_an_answer_that_brings_references_to_nobody_is_released_whole() -> None:
    async with linked_peers("a", "b") as (a, b):
        maker = await far(a, b, Maker())
        for _ in range(5):
            E(maker).make(10)
        E(maker).promise()
        await quiet(a, b)
        del maker
        await nothing_left(a, b)


@trio_test
async def test_a_pipelined_send_keeps_the_answer_until_it_is_made() -> None:
    async with linked_peers("a", "b") as (a, b):
        maker = await far(a, b, Maker())
        assert await E(maker).echo(maker).echo("through a promise that nobody holds") == (
            "through a promise that nobody holds"
        )
        del maker
        await nothing_left(a, b)


@trio_test
async def test_a_send_only_to_a_promise_that_is_dropped_arrives() -> None:
    async with linked_peers("a", "b") as (a, b):
        box = Box()
        maker = await far(a, b, Maker())
        ref = await far(a, b, box)
        send_only(E(maker).echo(ref)).put("arrived")
        await quiet(a, b)
        assert box.content == "arrived"
        del maker, ref
        await nothing_left(a, b)


# Promises and resolvers


@trio_test
async def test_promises_that_were_passed_are_released_when_dropped_and_when_settled() -> None:
    async with linked_peers("a", "b") as (a, b):
        own = Maker()
        maker = await far(a, b, own)
        (dropped,) = await E(maker).promise()
        resolver = own.promises.pop()
        del dropped
        await quiet(a, b)
        assert tables(between(b, a))["imports"] == 1
        resolver.fulfill(1)

        (settled,) = await E(maker).promise()
        own.promises.pop().fulfill([Echo()])
        await settled
        assert tables(between(b, a))["imports"] >= 1
        del settled, maker, resolver
        await nothing_left(a, b)


@trio_test
async def test_a_promise_of_ours_that_the_other_side_holds_is_kept_for_it() -> None:
    async with linked_peers("a", "b") as (a, b):
        box = Box()
        remote = await far(a, b, box)
        promise, resolver = make_promise()
        await E(remote).put([promise])
        del promise
        await quiet(a, b)
        assert tables(between(b, a))["exports"] == 1
        resolver.fulfill("for those who wait")
        assert await box.content[0] == "for those who wait"
        box.content = None
        del remote, resolver
        await nothing_left(a, b)


@trio_test
async def test_resolvers_that_are_sent_are_objects_like_any_other() -> None:
    async with linked_peers("a", "b") as (a, b):
        box = Box()
        remote = await far(a, b, box)
        promise, resolver = make_promise()
        await E(remote).put(resolver)
        await E(box.content).fulfill("told")
        assert await promise == "told"
        box.content = None
        del remote, resolver, promise
        await nothing_left(a, b)


# Errors, ends, and everything at once


@pytest.fixture
def _no_log(caplog: pytest.LogCaptureFixture) -> None:
    """A log that is captured keeps tracebacks, and with them what the frames refer to."""
    caplog.set_level(logging.CRITICAL, "ocapn.captp")


@pytest.mark.usefixtures("_no_log")
@trio_test
async def test_what_breaks_leaves_nothing_behind() -> None:
    class Breaks(Target):
        @method
        def run(self, value: object) -> None:
            raise ValueError("broken")

    async with linked_peers("a", "b") as (a, b):
        breaks = await far(a, b, Breaks())
        for _ in range(10):
            with pytest.raises(RemoteError):
                await E(breaks).run([Echo()]).and_then(Echo())
            send_only(breaks).run(Echo())
            send_only(breaks).nothing_of_that_name(Echo())
        del breaks
        await nothing_left(a, b)


@trio_test
async def test_an_ended_session_keeps_nothing() -> None:
    network = MemoryNetwork()
    async with linked_peers("a", "b", network=network, durable="never") as (a, b):
        box = Box()
        ref = await far(a, b, box)
        await E(ref).put(Echo())
        held = E(await far(a, b, Gate())).wait()
        sessions = [between(a, b), between(b, a)]
        network.cut("a", "b")
        await quiet(a, b)
        for session in sessions:
            assert tables(session) == EMPTY
            session.check()
        del held, ref


@trio_test
async def test_handoffs_leave_nothing_behind() -> None:
    async with linked_peers("a", "c", "b") as (a, c, b):
        box = Box()
        remote_box = await far(c, b, box)
        gift = await far(a, b, Echo())
        await E(remote_box).put(gift)
        got = await box.content
        assert await E(got).echo("handed over") == "handed over"
        box.content = None
        del got, gift, remote_box
        await nothing_left(a, b, c)


@pytest.mark.usefixtures("_no_log")
@pytest.mark.parametrize("seed", range(8))
def test_whatever_was_done_nothing_is_left(seed: int) -> None:
    """Random traffic between three peers, links that overtake each other; then all is dropped."""

    @trio_test
    async def run() -> None:
        choose = random.Random(seed)
        network = MemoryNetwork(delay=lambda a, b: choose.uniform(0, 0.2))
        async with linked_peers("a", "b", "c", network=network) as peers:
            held: list[Any] = []
            for exporter in peers:
                for importer in peers:
                    if exporter is not importer:
                        held += [await far(exporter, importer, thing) for thing in (Maker(), Box())]
            for _ in range(150):
                refs = [thing for thing in held if not isinstance(thing, list)]
                receiver, argument = choose.choice(refs), choose.choice([*refs, 1, Echo()])
                match choose.randrange(9):
                    case 0:
                        held.append(E(receiver).echo(argument))
                    case 1:
                        held.append(E(receiver).echo([argument, argument]))
                    case 2:
                        held.append(E(receiver).put(argument))
                    case 3:
                        held.append(E(receiver).get())
                    case 4:
                        held.append(E(receiver).promise())
                    case 5:
                        send_only(receiver).put(argument)
                    case 6 if len(held) > 14:
                        del held[12 + choose.randrange(len(held) - 12)]
                    case 7:
                        await trio.sleep(choose.uniform(0, 0.3))
                    case _:
                        E(E(receiver).echo(argument)).get()
            del refs, receiver, argument
            await trio.sleep(5)
            for box in [thing for thing in held[:12] if not isinstance(thing, Promise)]:
                send_only(box).put(None)  # a Maker says that it has no such method, and a Box to the next
                send_only(box).forget()
            del box
            held.clear()
            await trio.sleep(5)
            await nothing_left(*peers)

    run()
