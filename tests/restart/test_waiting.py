"""What waits goes on after a restart: for a peer, for a durable object, for a gift; and is told once, in order."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio

import durable
import ocapn
from ocapn import E, send_only
from ocapn.captp.delivery import RemoteVow
from tests.restart.support import (
    Ledger,
    Process,
    Relay,
    World,
    agreed,
    inside,
    linked,
    related,
    relay,
    two,
    watch,
    world,
)
from tests.support import trio_test


class Slow(ocapn.Target):
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.go = trio.Event()
        self.asked: list[int] = []
        self.gift: object = None

    @ocapn.method
    async def note(self, number: int) -> int:
        self.asked.append(number)
        await self.go.wait()
        if number < 0:
            raise ValueError(f"{number} is negative")
        return 10 * number

    @ocapn.method
    async def give(self) -> object:
        await self.go.wait()
        return self.gift


async def chain(place: World) -> tuple[Process, Process, Process, Slow]:
    """Relays of `a` and `b` that hold the next, and something slow in `c`. All sessions are durable."""
    a, b, c = [await place.process(name).start() for name in "abc"]
    slow = Slow()
    a.baggage.provide("relay", Relay).to = await related(a, b)
    b.baggage.provide("relay", Relay).to = await b.peer.enliven(c.peer.export(slow))
    await a.peer.connect(c.peer.locator())
    await agreed(a, b, c)
    return a, b, c, slow


async def crash(who: str, *processes: Process) -> None:
    dead = [process for process in processes if process.name in who]
    for process in dead:
        process.crash()
    for process in dead:
        await process.start()


BEHIND = pytest.mark.parametrize("behind", [False, True], ids=["at once", "behind a turn"])
WHO = pytest.mark.parametrize("who", ["a", "b", "ab"])
WHEN = pytest.mark.parametrize("early", [True, False], ids=["while it is down", "after the restart"])


async def quiet() -> None:
    await trio.sleep(2)


# A promise of another peer


@WHO
@WHEN
@BEHIND
def test_an_answer_that_waits_for_a_third_process(who: str, early: bool, behind: bool) -> None:
    @trio_test
    async def run() -> None:
        async with world() as place:
            a, b, _, slow = await chain(place)
            to = relay(a).to
            if behind:
                send_only(to).pause()
            for number in (1, -2):
                watch(a, E(to).pass_on(number))
            answer = E(to).pass_on(3)
            only = E(to).pass_on(4)
            await quiet()
            del only
            await quiet()
            assert slow.asked == [1, -2, 3, 4]
            for process in (a, b):
                if process.name in who:
                    process.crash()
            if early:
                slow.go.set()
                await quiet()
            for process in (a, b):
                if process.name in who:
                    await process.start()
            await quiet()
            slow.go.set()
            if "a" not in who:
                with trio.fail_after(60):
                    assert await answer == 30
            del answer, to
            await quiet()
            assert relay(a).told == (10,)
            assert relay(a).failed == ("-2 is negative",)
            assert slow.asked == [1, -2, 3, 4]
            await crash("ab", a, b)
            await quiet()
            assert relay(a).told == (10,)
            assert not any(process.peer.sessions[0]._core.tables.questions for process in (a, b))

    run()


@WHO
def test_a_promise_that_was_exported(who: str) -> None:
    @trio_test
    async def run() -> None:
        async with world() as place:
            a, b, _, slow = await chain(place)
            to: Any = relay(a).to
            listed = E(to).listed(5)
            promise = ocapn.index(ocapn.field(listed, "of"), 0)
            watch(a, promise)
            (inner,) = (await listed)["of"]
            send_only(to).watch(inner)  # back to its owner
            await quiet()
            await crash(who, a, b)
            await quiet()
            slow.go.set()
            await quiet()
            if "a" not in who:
                assert await inner == 50
                late = ocapn.index(ocapn.field(listed, "of"), 0)
                assert await late == 50
                del late
            assert relay(a).told == (50,)
            assert relay(b).told == (50,)
            assert slow.asked == [5]
            assert relay(a).failed == relay(b).failed == ()
            del listed, promise, inner, to

    run()


@WHO
@BEHIND
def test_what_was_pipelined_to_an_answer_that_waits(who: str, behind: bool) -> None:
    """The far one becomes an object of the process in between, which the first message must not overtake."""

    @trio_test
    async def run() -> None:
        async with world() as place:
            a, b, _, slow = await chain(place)
            slow.gift = await related(place.processes[2], b, "target")
            to: Any = relay(a).to
            if behind:
                send_only(to).pause()
            far = E(to).far()
            for number in range(4):
                watch(a, far.note(number))
            await quiet()
            await crash(who, a, b)
            await quiet()
            if "a" not in who:
                for number in range(4, 8):
                    send_only(far).note(number)
            slow.go.set()
            await quiet()
            await quiet()
            seen = b.baggage["target"].seen
            assert seen == tuple(range(4 if "a" in who else 8))
            assert relay(a).told == (0, 10, 20, 30)
            assert relay(a).failed == ()
            del far, to
            slow.gift = None

    run()


@WHO
@BEHIND
def test_what_was_pipelined_before_is_not_overtaken(who: str, behind: bool) -> None:
    """By what is sent to the object itself, which lives at the sender."""

    @trio_test
    async def run() -> None:
        async with world() as place:
            a, b, c, slow = await chain(place)
            slow.gift = await related(c, a, "target")
            to: Any = relay(a).to
            if behind:
                send_only(to).pause()
            far = E(to).far()
            for number in range(4):
                send_only(far).note(number)
            durable.when(far, relay(a), "then")
            del far, to
            await quiet()
            await crash(who, a, b)
            await quiet()
            slow.go.set()
            await trio.sleep(60)
            assert a.baggage["target"].seen == (0, 1, 2, 3, 99)
            slow.gift = None

    run()


# A turn that has not begun


async def crash_at_commit(process: Process, act: Callable[[], None]) -> None:
    """The process dies after the first commit that follows what is done."""
    start = process.disk.commits
    process.disk.point = lambda number: "after" if number == start + 1 else None
    act()
    await process.crashed.wait()
    process.disk.point = lambda number: None
    await process.start()
    await quiet()


@trio_test
async def test_what_waits_for_a_kept_turn() -> None:
    """Pipelined messages and selections, exported promises, objects that are told: all behind an `async` method."""
    async with world() as place:
        a, b, _, _ = await chain(place)
        to: Any = relay(a).to
        b.baggage["relay"].to = b.baggage.provide("target", Relay)
        answers: list[Any] = []

        def act() -> None:
            send_only(to).pause()
            given = E(to).give()
            answers.extend(given.note(number) for number in range(3))
            answers.append(E(to).note(7))
            listed = E(to).listed(3)
            answers.append(ocapn.index(ocapn.field(listed, "of"), 0))
            send_only(to).watch(answers[1])
            watch(a, answers[2])
            send_only(given).note(4)

        await crash_at_commit(b, act)
        with trio.fail_after(10):
            assert [await one for one in answers] == [0, 10, 20, 70, 30]
        assert b.baggage["target"].seen == (0, 1, 2, 4, 3)
        assert relay(a).told == (20,)
        assert relay(b).told == (10,)
        answers.clear()


@trio_test
async def test_an_object_is_told_of_a_local_turn_that_was_kept() -> None:
    async with world() as place:
        a = await place.process("a").start()
        own, other = a.baggage.provide("relay", Relay), a.baggage.provide("other", Relay)
        other.to = own
        await a.peer.settled()

        def act() -> None:
            with inside(a):
                send_only(other).pause()
                watch(a, E(other).note(1))
                watch(a, E(other).pass_on(2))
                watch(a, E(other).give().note(3))
                promise, _ = ocapn.make_promise()
                watch(a, promise)
                send_only(promise).note(9)

        await crash_at_commit(a, act)
        assert set(relay(a).told) == {10, 20, 30}
        assert relay(a).failed == ("the promise ended with the process that had it",)
        assert relay(a).seen == (2, 3)


@pytest.mark.parametrize("mode", ["before", "after"])
@pytest.mark.parametrize("number", range(1, 9))
def test_what_waits_for_a_turn_that_waits_for_another(number: int, mode: str) -> None:
    @trio_test
    async def run() -> None:
        async with world() as place:
            a, b, _, _ = await chain(place)
            to: Any = relay(a).to
            relay(b).to = b.baggage.provide("target", Relay)
            await b.peer.settled()
            start = b.disk.commits
            b.disk.point = lambda commit: mode if commit == start + number else None
            place.keep_up(b)
            send_only(to).pause()
            watch(a, E(to).pass_behind(1))
            answer = E(to).pass_behind(2)
            send_only(to).watch(E(to).pass_behind(3))
            watch(a, ocapn.index(ocapn.field(E(to).listed(4), "of"), 0))
            await trio.sleep(60)
            assert await answer == 20
            assert set(relay(a).told) == {10, 40}
            assert relay(b).told == (30,)
            assert b.baggage["target"].seen == (1, 2, 3, 4)
            assert relay(a).failed == relay(b).failed == ()
            del answer, to

    run()


@trio_test
async def test_what_waits_is_not_broken_by_closing() -> None:
    """A turn waits when the process leaves `open_peer`."""
    async with world() as place:
        a = await place.process("a").start()
        a.baggage.provide("relay", Relay)
        for number in range(20):
            with inside(a):
                send_only(relay(a)).pause()
                watch(a, E(relay(a)).self_().note(number))
            for _ in range(number):
                await trio.lowlevel.checkpoint()
            await a.close()
            await a.start()
            await quiet()
            assert relay(a).seen == tuple(range(number + 1))
            assert relay(a).failed == ()
        assert relay(a).told == tuple(range(0, 200, 10))


@trio_test
async def test_numbers_are_not_given_again_while_a_row_names_them() -> None:
    """The turn has begun and its `async` method ended with the process: the answer is not that of a later turn."""
    async with world() as place:
        a, b, _, _ = await chain(place)
        to: Any = relay(a).to
        answer: Any = None

        def act() -> None:
            nonlocal answer
            send_only(to).pause()
            answer = E(to).note(1)

        await crash_at_commit(b, act)
        assert await answer == 10
        for _ in range(3):
            await b.again()
            assert await E(to).note(2) == 20
        assert await answer == 10


# Exactly once, with a crash at every commit


def work(a: Process) -> None:
    """In one turn of `a`: whatever its relay can ask of those of the others."""
    own = relay(a)
    to: Any = own.to
    own.seen = (0,)
    watch(a, E(to).pass_on(1))
    far = E(to).far()
    watch(a, far.note(2))
    watch(a, far.note(3))
    watch(a, ocapn.index(ocapn.field(E(to).listed(4), "of"), 0))
    send_only(to).watch(E(to).pass_on(5))
    send_only(to).watch(far)
    watch(a, E(to).self_().pass_on(6))
    watch(a, far.self_().note(7))


async def run(who: str, number: int, mode: str, back: str, delay: float, lives: list[int]) -> None:
    """One run. What `c` holds, and gives, is the target of `back`. Says how many lives `who` had."""
    async with world(delay=delay) as place:
        a, b, c = [await place.process(name).start() for name in "abc"]
        sides = {"a": a, "b": b, "c": c}
        relay_b, relay_c = b.baggage.provide("relay", Relay), c.baggage.provide("relay", Relay)
        a.baggage.provide("relay", Relay).to = await related(a, b)
        relay_b.to = await related(b, c)
        await a.peer.connect(c.peer.locator())
        target = sides[back].baggage.provide("target", Relay)
        relay_c.to = target if back == "c" else await related(c, sides[back], "target")
        await agreed(a, b, c)
        await quiet()
        crashing = sides[who]
        crashing.disk.commits = 0
        crashing.disk.point = lambda commit: mode if commit == number else None
        place.keep_up(a, b, c)
        with trio.fail_after(600):
            while True:
                if a.alive:
                    if not relay(a).seen:
                        with inside(a):
                            work(a)
                    told = relay(a).told
                    if len(told) + len(relay(a).failed) >= 6:
                        break
                await trio.sleep(0.5)
        await quiet()
        await place.quiet()
        for process in sides.values():
            assert process.failure is None
            assert relay(process).failed == (), process.name
        assert set(told) == {10, 20, 30, 40, 60, 70}
        assert len(told) == 6
        assert relay(c).seen == (1, 4, 5, 6)
        assert sides[back].baggage["target"].seen == (2, 3, 7)
        assert len(relay(b).told) == 2
        assert 50 in relay(b).told
        lives.append(crashing.lives)


@pytest.mark.parametrize("back", ["a", "b", "c"])
@pytest.mark.parametrize("who", ["a", "b", "c"])
def test_exactly_once_with_a_crash_at_every_commit(who: str, back: str) -> None:
    for mode in ("before", "after"):
        for delay in (0.0, 0.004):
            number, lives = 0, [2]
            while lives.pop() > 1:
                number += 1
                try:
                    trio_test(run)(who, number, mode, back, delay, lives)
                except BaseException as error:
                    error.add_note(f"run({who!r}, {number}, {mode!r}, {back!r}, {delay}, [])")
                    raise


# Gifts


async def giving(place: World) -> tuple[Process, Process, Process, Any]:
    """`a` holds the relays of `b`, who is to be given something, and of `c`. Returns what `a` holds of `b`."""
    a, b, c = [await place.process(name).start() for name in "abc"]
    to_b, to_c = await related(a, b), await related(a, c)
    a.baggage.provide("relay", Relay).to = to_c
    await agreed(a, b, c)
    await quiet()
    return a, b, c, to_b


def hold(place: World, sender: str, receiver: str) -> None:
    """Nothing that is sent from now on arrives, until the connection ends."""
    for link in place.network.links_between(sender, receiver):
        link.hold(a_to_b=link.a == sender, b_to_a=link.a == receiver)


@pytest.mark.parametrize("who", ["b", "c", "bc"])
def test_a_withdrawal_that_waits_for_its_deposit(who: str) -> None:
    @trio_test
    async def run() -> None:
        async with world() as place:
            a, b, c, to_b = await giving(place)
            await b.peer.connect(c.peer.locator())
            await agreed(a, b, c)
            hold(place, "a", "c")
            send_only(to_b).watch(relay(a).to)
            await quiet()
            assert c.peer.node.gifts.counts(b.peer.sessions[1]._core.id) == (0, 1)
            await crash(who, b, c)
            if "c" not in who:
                assert relay(b).told == ()
                place.network.cut("a", "c")
            await trio.sleep(60)
            (told,) = relay(b).told
            assert relay(b).failed == ()
            assert await E(told).note(3) == 30
            assert relay(c).seen == (3,)
            assert c.disk.scan("turn") == []
            del told, to_b

    run()


@pytest.mark.parametrize("later", [300.0, 700.0])
def test_a_withdrawal_waits_no_longer_than_a_gift_lives(
    later: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    @trio_test
    async def run() -> None:
        async with world(check=False) as place:
            a, b, c, to_b = await giving(place)
            await b.peer.connect(c.peer.locator())
            await agreed(a, b, c)
            hold(place, "a", "c")
            send_only(to_b).watch(relay(a).to)
            await quiet()
            a.crash()
            c.crash()
            now = time.time()
            monkeypatch.setattr(time, "time", lambda: now + later)
            await c.start()
            await trio.sleep(60)
            assert relay(b).failed == (() if later < 600 else ("the gift did not come in time",))
            await trio.sleep(300)
            assert relay(b).failed == ("the gift did not come in time",)
            assert relay(b).told == ()
            assert c.disk.scan("turn") == []
            await c.again()
            await quiet()
            assert len(relay(b).failed) == 1

    run()


@pytest.mark.parametrize("late", [0.5, 3.0, 5.0])
@pytest.mark.parametrize("who", ["b", "bc", "closed"])
def test_a_gift_whose_exporter_is_not_reached_yet(who: str, late: float) -> None:
    """The connection takes its time, and the process dies meanwhile, or is closed and opened again."""

    @trio_test
    async def run() -> None:
        async with world() as place:
            a, b, c, to_b = await giving(place)
            place.network.delay = lambda one, other: 2.0 if {one, other} == {"b", "c"} else 0.0
            send_only(to_b).watch(relay(a).to)
            await trio.sleep(late)
            assert relay(b).told == ()
            if who == "closed":
                await b.close()
                await b.start()
            else:
                await crash(who, b, c)
            await trio.sleep(60)
            (told,) = relay(b).told
            assert relay(b).failed == ()
            assert await E(told).note(3) == 30
            assert b.disk.scan("turn") == c.disk.scan("turn") == []
            del told, to_b

    run()


@pytest.mark.parametrize("restarted", [False, True])
def test_a_gift_whose_gifter_has_ended_its_session_since(restarted: bool) -> None:
    """The tombstone of the session through which it was deposited outlives the process of the exporter."""

    @trio_test
    async def run() -> None:
        async with world() as place:
            a, b, c, to_b = await giving(place)
            place.network.delay = lambda one, other: 20.0 if {one, other} == {"b", "c"} else 0.0
            send_only(to_b).watch(relay(a).to)
            await quiet()
            assert len(c.disk.scan("gift")) == 1
            (to_c,) = [one for one in a.peer.sessions if one.location == c.peer.locator()]
            to_c.end("enough")
            await quiet()
            if restarted:
                await c.again()
            assert relay(b).told == ()
            place.network.delay = lambda one, other: 0.0
            await trio.sleep(60)
            (told,) = relay(b).told
            assert relay(b).failed == ()
            assert await E(told).note(3) == 30
            assert c.disk.scan("gift") == []
            del told, to_b

    run()


@pytest.mark.parametrize(("back", "told"), [(100.0, True), (900.0, False)])
def test_a_gift_whose_exporter_is_down_when_it_is_given(back: float, told: bool) -> None:
    """He is tried for as long as a gift waits, and not for longer."""

    @trio_test
    async def run() -> None:
        async with world(check=False) as place:
            a, b, c, to_b = await giving(place)
            send_only(to_b).watch(relay(a).to)
            c.crash()
            await trio.sleep(back)
            await c.start()
            await trio.sleep(120)
            assert len(relay(b).told) == told
            assert len(relay(b).failed) == (not told)
            assert b.disk.scan("turn") == []
            del to_b

    run()


@durable.kind("restart.changeable", version=1)
@attrs.define(eq=False)
class Changeable(ocapn.Target):
    """Cannot be kept if it holds a list."""

    items: object = None


@trio_test
async def test_a_turn_whose_argument_became_what_cannot_be_kept_runs_once() -> None:
    async with world() as place:
        a = await place.process("a").start()
        ledger = a.baggage.provide("ledger", Ledger)
        await a.peer.settled()
        with inside(a):
            promise, resolver = ocapn.make_promise()
            a.peer.node.hold_back(ledger)  # as an async method does that has not begun
            send_only(ledger).hold_and_note(7, promise)
            await a.peer.settled()
            assert len(a.baggage.scan("turn")) == 1
            resolver.fulfill(Changeable(items=[1]))
            await a.peer.settled()
            assert a.baggage.scan("turn") == []
            a.peer.node.go_on(ledger)
        await trio.sleep(1)
        assert ledger.seen == (7,)
        await a.again()
        await trio.sleep(1)
        assert a.baggage["ledger"].seen == (7,)


@trio_test
async def test_sessions_that_were_never_durable_are_forgotten_with_what_they_waited_for() -> None:
    class Never(ocapn.Target):
        @ocapn.method
        def get(self) -> object:
            return promise

    async with world(check=False) as place:
        b = await place.process("b").start()
        with inside(b):
            promise, resolver = ocapn.make_promise()
        sturdyref = b.peer.export(Never())
        keeper: Any = b.peer.node.keeper
        for number in range(5):
            other = ocapn.MemoryNetlayer(place.network, f"client{number}")
            async with ocapn.open_peer([other], durable="never") as client:
                answer = E(await client.enliven(sturdyref)).get()
                await trio.sleep(1)
                assert len(keeper._waiters._tellings) == 1
                del answer
            await trio.sleep(1)
            assert not keeper._waiters._tellings
        resolver.fulfill(None)


def promises() -> int:
    """How many there are in this process of those that a peer resolves."""
    gc.collect()
    return sum(type(one) is RemoteVow for one in gc.get_objects())


@trio_test
async def test_promises_that_were_told_are_forgotten() -> None:
    async with two() as (a, b):
        ref = await linked(a, b)
        ledger = a.baggage.provide("ledger", Ledger)
        await trio.sleep(1)
        before = promises()
        for number in range(20):
            durable.when(E(ref).note(number), ledger, "note")
            await trio.sleep(1)
        assert promises() <= before + 1
        assert len(ledger.seen) == 20
