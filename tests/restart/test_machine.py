"""Two processes that do anything in any order, and crash: what reaches a durable object does so once, in order."""

from __future__ import annotations

from typing import Any, Final

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

import durable
import ocapn
from ocapn import E, send_only
from tests.restart.support import (
    Echo,
    Process,
    Relay,
    balanced,
    inside,
    linked,
    related,
    relay,
    watch,
    world,
)
from tests.support import trio_test

#: Numbers from here on are sent without an answer.
HALF: Final = 1_000_000
#: What is done, and to whom or how much.
Step = tuple[str, Any]

_SIDES: Final = st.sampled_from("ab")
#: How many commits from now, and on which side of it on disk.
_POINTS: Final = st.tuples(
    st.sampled_from(("a", "b", "ab", "ba")), st.integers(1, 4), st.sampled_from(("before", "after"))
)
#: What the relay of one side asks that of the other for, to be told in the end. The answer waits for a while: for the
#: asker's own side, for a turn that has not begun, or it is in a promise that is exported.
ASKS: Final = ("pass on", "far", "listed", "behind", "behind far", "own", "watch", "send back")
STEPS: Final = st.one_of(
    st.tuples(st.just("call"), _SIDES),
    st.tuples(st.just("send"), _SIDES),
    st.tuples(st.just("fail"), _SIDES),
    st.tuples(st.just("async"), _SIDES),
    st.tuples(st.just("ephemeral"), _SIDES),
    st.tuples(st.just("pass own"), _SIDES),
    st.tuples(st.just("pass back"), _SIDES),
    st.tuples(st.just("drop"), _SIDES),
    st.tuples(st.sampled_from(ASKS), _SIDES),
    st.tuples(st.sampled_from(ASKS), _SIDES),
    st.tuples(st.just("wait"), st.sampled_from((0.0, 0.005, 0.02, 1.0))),
    st.tuples(st.just("cut"), st.none()),
    st.tuples(st.just("crash"), st.sampled_from(("a", "b", "ab"))),
    st.tuples(st.just("crash at"), _POINTS),
    st.tuples(st.just("close"), _SIDES),
    st.tuples(st.just("quiet"), st.none()),
)


class Play:
    """One run. `sent` counts, for each side, the numbers that are committed to be sent with the state that says so."""

    def __init__(self, a: Process, b: Process) -> None:
        self.sides = {"a": a, "b": b}
        self.answers: list[Any] = []

    async def alive(self) -> None:
        for process in self.sides.values():
            if not process.alive:
                if process.failure is not None:
                    raise process.failure
                process.disk.point = lambda number: None
                await process.start()

    async def step(self, what: str, of: Any) -> None:
        if what == "wait":
            await trio.sleep(of)
            return
        if what == "cut":
            self.sides["a"]._network.cut("a", "b")
            return
        if what == "crash":
            for name in of:
                self.sides[name].crash()
            await self.alive()
            return
        await self.alive()
        if what == "crash at":
            who, later, mode = of
            first, *others = [self.sides[name] for name in who]
            number = first.disk.commits + later

            def point(commit: int) -> str | None:
                if commit != number:
                    return None
                for process in others:
                    process.crash()
                return str(mode)

            first.disk.point = point
        elif what == "quiet":
            await trio.sleep(1)
            for process in self.sides.values():
                process.disk.point = lambda number: None
            await self.alive()
            await self.check()
        elif what == "close":
            process = self.sides[of]
            try:
                await process.close()
            finally:
                if not process.alive and process.failure is None:
                    process.disk.point = lambda number: None
            await self.alive()
        else:
            await self.send(self.sides[of], what)

    async def send(self, process: Process, what: str) -> None:
        """The number that is sent and the count of them are changed in one turn."""
        if what in ASKS:
            self.ask(process, what)
            return
        holder, ledger = process.baggage["holder"], process.baggage["ledger"]
        to = holder.held
        if what in ("call", "send", "fail"):
            number = len(holder.seen)
            holder.seen = (*holder.seen, number)
            if what == "send":
                send_only(to).note(number)
            else:
                self.answers.append(getattr(E(to), "note" if what == "call" else "fail")(number))
        elif what == "async":
            send_only(to).pause()
        elif what == "ephemeral":
            self.answers.append(E(to).swap(Echo()))
        elif what == "pass own":
            send_only(to).hold(ledger)
        elif what == "pass back":
            send_only(to).hold(to)
        else:
            send_only(to).drop()

    def ask(self, process: Process, what: str) -> None:
        own = relay(process)
        number = 2 * len(own.asked) + (process.name == "b")
        own.asked = (*own.asked, (what, number))
        to: Any = own.to
        if what == "pass on":
            watch(process, E(to).pass_on(number))
        elif what == "far":
            far = E(to).far()
            send_only(far).note(number + HALF)
            watch(process, far.note(number))
        elif what == "listed":
            watch(process, ocapn.index(ocapn.field(E(to).listed(number), "of"), 0))
        elif what == "behind":
            send_only(to).pause()
            watch(process, E(to).self_().note(number))
        elif what == "behind far":
            send_only(to).pause()
            far = E(to).far()
            send_only(far).note(number + HALF)
            watch(process, far.pass_on(number))
        elif what == "own":
            with inside(process):
                send_only(own).pause()
                watch(process, E(own).far().note(number))
        elif what == "watch":
            send_only(to).watch(E(to).pass_on(number))
        else:
            send_only(to).watch(E(to).self_())
            self.answers.append(E(to).listed(number))

    def expected(self, process: Process, other: Process) -> tuple[list[Any], list[Any]]:
        """The numbers that the relay of a process has to have, and what it has to have been told."""
        seen: list[int] = []
        told: list[object] = []
        for what, number in relay(process).asked:
            if what in ("pass on", "listed", "behind far", "own", "watch", "send back"):
                seen.append(number)
            if what in ("pass on", "far", "listed", "behind", "behind far", "own"):
                told.append(10 * number)
        for what, number in relay(other).asked:
            if what in ("far", "behind"):
                seen.append(number)
            if what in ("far", "behind far"):
                seen.append(number + HALF)
            if what == "watch":
                told.append(10 * number)
            elif what == "send back":
                told.append("itself")
        return sorted(seen), sorted(map(str, told))

    def check_waiting(self) -> None:
        a, b = self.sides.values()
        for one, other in ((a, b), (b, a)):
            found = relay(one)
            seen, told = self.expected(one, other)
            assert sorted(found.seen) == seen, f"{one.name} has {found.seen}, and not {seen}"
            got = sorted("itself" if value is found else str(value) for value in found.told)
            assert got == told, f"{one.name} was told {found.told}, and not {told}"
            assert found.failed == (), f"{one.name} was told {found.failed}"
            for which in (("pass on", "listed", "watch", "send back"), ("behind",)):
                numbers = [number for what, number in relay(one).asked if what in which]
                by = relay(other) if which == ("behind",) else found
                assert [number for number in by.seen if number in numbers] == numbers, "not in order"

    async def check(self) -> None:
        """Everything that was committed to be sent came once, in order; what waited goes on, and is told once."""
        with trio.fail_after(2000):
            while not all(
                process.alive and len(process.peer.sessions) == 1 for process in self.sides.values()
            ):
                await self.alive()
                await trio.sleep(1)
        a, b = self.sides.values()
        await balanced(a, b)
        for one, other in ((a, b), (b, a)):
            sent, got = one.baggage["holder"].seen, other.baggage["ledger"].seen
            assert got == sent, f"{one.name} has sent {sent}, {other.name} has {got}"
        self.check_waiting()


async def play(steps: list[Step], delay: float = 0.0) -> None:
    async with world(delay=delay) as place:
        a, b = await place.process("a").start(), await place.process("b").start()
        await linked(a, b)
        await linked(b, a)
        for one, other in ((a, b), (b, a)):
            one.baggage.provide("relay", Relay)
            relay(one).to = await related(one, other)
            await one.peer.settled()
        run = Play(a, b)
        for what, of in steps:
            await run.step(what, of)
        for process in (a, b):
            process.disk.point = lambda number: None
        await run.alive()
        await run.check()
        for answer in run.answers:
            with trio.move_on_after(5):
                try:
                    await answer
                except (ocapn.RemoteError, ocapn.SessionEnded, durable.BaggageFailed):
                    pass


@settings(max_examples=150)
@given(st.lists(STEPS, min_size=3, max_size=25), st.sampled_from((0.0, 0.003)))
def test_any_order_of_calls_crashes_and_restarts(steps: list[Step], delay: float) -> None:
    @trio_test
    async def run() -> None:
        await play(steps, delay)

    run()
