"""semantics.md, Awaiting."""

from __future__ import annotations

import gc
import time
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing

from ocapn import (
    E,
    MemoryNetwork,
    Ref,
    RemoteError,
    SessionEnded,
    Target,
    make_promise,
    method,
    send_only,
)
from ocapn.testing import linked_peers, quiet
from tests.peer.support import Box, Echo, Gate, Recorder, Trace, between, far, settle, waiting_on
from tests.support import trio_test, trio_test_real


class Relay(Target):
    """Answers with the promise of somebody else's answer."""

    def __init__(self, behind: object) -> None:
        self.behind = behind

    @method
    def echo(self, value: object) -> object:
        return E(self.behind).echo(value)


@trio_test
async def test_await_follows_promises_to_the_end() -> None:
    """`await p` follows promises to the end."""
    async with linked_peers("a", "b", "c") as (a, b, c):
        end = await far(c, b, Echo())
        middle = await far(b, a, Relay(Relay(end)))
        assert await E(Relay(middle)).echo("through three peers") == "through three peers"

        first, resolve_first = make_promise()
        second, resolve_second = make_promise()
        third, resolve_third = make_promise()
        resolve_third.fulfill("the end")
        resolve_first.fulfill(second)
        resolve_second.fulfill(third)
        assert await first == "the end"


@trio_test
async def test_a_long_chain_of_promises_is_followed_without_recursion() -> None:
    async with linked_peers("a"):
        first, resolver = make_promise()
        for _ in range(10_000):
            following, next_resolver = make_promise()
            resolver.fulfill(following)
            resolver = next_resolver
        resolver.fulfill("the end")
        assert await first == "the end"


@trio_test
async def test_await_is_a_checkpoint() -> None:
    """`await p` is a checkpoint: also of what is settled, fulfilled, broken or a reference."""
    async with linked_peers("a", "b") as (a, b):
        fulfilled, resolver = make_promise()
        resolver.fulfill(1)
        broken, resolver = make_promise()
        resolver.break_("broken")
        for settled in (fulfilled, broken):
            with trio.testing.assert_checkpoints(), suppress(RemoteError):
                await settled
            for _ in range(63):
                with suppress(RemoteError):
                    await settled
        ref = await far(a, b, Echo())
        with trio.testing.assert_checkpoints():
            assert await ref is ref
        with trio.testing.assert_checkpoints():
            await E(ref).echo(1)
        with trio.CancelScope() as scope:
            await fulfilled
            scope.cancel()
            await fulfilled  # without a pass of the loop
        assert scope.cancelled_caught


@trio_test
async def test_who_awaits_what_is_settled_lets_others_run() -> None:
    """Not at each, but soon."""
    async with linked_peers("a"), trio.open_nursery() as nursery:
        promise, resolver = make_promise()
        resolver.fulfill(1)
        ran = 0

        async def other() -> None:
            nonlocal ran
            while ran < 20:
                ran += 1
                await trio.lowlevel.checkpoint()

        nursery.start_soon(other)
        for _ in range(21 * 64):
            await promise
        assert ran == 20


@trio_test_real
async def test_who_awaits_what_is_settled_lets_others_run_after_a_while() -> None:
    """And is cancelled in time, however long it takes between awaits."""
    async with linked_peers("a"):
        promise, resolver = make_promise()
        resolver.fulfill(1)
        await promise
        with trio.move_on_after(0.001) as scope:
            end = time.perf_counter() + 0.003
            while time.perf_counter() < end:
                pass
            await promise
        assert scope.cancelled_caught


@trio_test
async def test_await_gives_the_value() -> None:
    async with linked_peers("a", "b") as (a, b):
        for echo in (Echo(), await far(a, b, Echo())):
            assert await E(echo).echo({"x": [1, "two", b"three"]}) == {"x": [1, "two", b"three"]}


@trio_test
async def test_each_await_of_a_container_gives_a_copy_of_its_own() -> None:
    async with linked_peers("a", "b") as (a, b):
        for echo in (Echo(), await far(a, b, Echo())):
            promise = E(echo).echo([[1]])
            one, other = await promise, await promise
            one[0].append(2)
            assert other == [[1]]
            assert await promise == [[1]]


@trio_test
async def test_the_same_reference_is_the_same_object_while_it_is_held() -> None:
    """Or the reference, always the same Python object for the same target while it is held."""
    async with linked_peers("a", "b") as (a, b):
        kept = Echo()
        box = await far(a, b, Box(kept))
        one = await E(box).get()
        assert type(one) is Ref
        assert await E(box).get() is one
        assert await far(a, b, kept) is one
        assert (await E(box).get(), [one]) == (one, [one])
        together = [E(box).get() for _ in range(3)]
        assert all([await promise is one for promise in together])
        assert await E(await far(a, b, Echo())).echo([one, {"x": one}]) == [one, {"x": one}]
        await quiet(a, b)


@trio_test
async def test_an_object_of_our_own_that_comes_back_is_the_object_itself() -> None:
    """Or, for an object of our own that came back, the object itself."""
    async with linked_peers("a", "b") as (a, b):
        ours = Recorder()
        box = await far(a, b, Box())
        await E(box).put([ours])
        assert (await E(box).get())[0] is ours
        assert await E(await far(a, b, Echo())).echo(ours) is ours
        assert await E(Echo()).echo(ours) is ours
        assert await b.enliven(b.export(ours)) is ours


@trio_test
async def test_any_number_of_tasks_may_await() -> None:
    """Any number of tasks may await."""
    results: list[object] = []
    async with linked_peers("a", "b") as (a, b):
        gate = Gate()
        promise = E(await far(a, b, gate)).wait("opened")

        async def wait() -> None:
            results.append(await promise)

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(wait)
            await settle()
            assert results == []
            gate.opened.set()
        assert results == ["opened"] * 50


@trio_test
async def test_each_break_raises_a_fresh_exception_that_names_the_error() -> None:
    """Each break raises a fresh exception that names the error the other side sent."""
    caught: list[RemoteError] = []
    async with linked_peers("a", "b") as (a, b):

        class Broken(Target):
            @method
            def run(self) -> None:
                raise ValueError("the door is locked")

        for broken in (Broken(), await far(a, b, Broken())):
            promise = E(broken).run()

            async def wait(promise: Any = promise) -> None:
                with pytest.raises(RemoteError, match="the door is locked") as info:
                    await promise
                caught.append(info.value)

            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(wait)
            await wait()
    assert len({id(error) for error in caught}) == 8
    assert all(error.message == "the door is locked" for error in caught)


@trio_test
async def test_what_breaks_with_a_session_raises_fresh_exceptions_too() -> None:
    network = MemoryNetwork()
    async with linked_peers("a", "b", network=network) as (a, b):
        promise = E(await far(a, b, Gate())).wait()
        network.cut("a", "b")
        errors = []
        for _ in range(2):
            with pytest.raises(SessionEnded) as info:
                await promise
            errors.append(info.value)
        assert errors[0] is not errors[1]
        assert errors[0].reason == errors[1].reason


@trio_test
async def test_a_break_with_a_value_gives_the_value() -> None:
    async with linked_peers("a", "b") as (a, b):
        box = Box()
        promise, resolver = make_promise()
        await E(await far(a, b, box)).put(resolver)
        send_only(box.content)["break"]({"code": 3})
        with pytest.raises(RemoteError, match="code") as info:
            await promise
        assert info.value.value == {"code": 3}


@trio_test
async def test_cancelling_the_wait_keeps_the_send() -> None:
    network = MemoryNetwork()
    async with linked_peers("a", "b", network=network) as (a, b):
        recorder = Recorder()
        ref = await far(a, b, recorder)
        (link,) = network.links_between("a", "b")
        link.hold()
        with trio.move_on_after(1) as scope:
            await E(ref).note("kept")
        assert scope.cancelled_caught
        assert recorder.seen == []
        link.release()
        await quiet(a, b)
        assert recorder.seen == ["kept"]


@trio_test
async def test_cancelling_one_wait_leaves_the_others_and_the_promise() -> None:
    """Cancelling the wait gives up only the interest."""
    async with linked_peers("a", "b") as (a, b):
        gate = Gate()
        promise = E(await far(a, b, gate)).wait("opened")
        results: list[object] = []

        async def wait() -> None:
            results.append(await promise)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            with trio.move_on_after(1):
                await promise
            gate.opened.set()
        assert results == ["opened"]
        assert await promise == "opened"


@trio_test
async def test_nothing_is_kept_of_waits_that_were_cancelled() -> None:
    async with linked_peers("a", "b") as (a, b):
        for promise in (make_promise()[0], E(await far(a, b, Gate())).wait()):
            before = waiting_on(promise)
            for _ in range(100):
                with trio.move_on_after(0.01):
                    await promise
            assert waiting_on(promise) == before


@trio_test
async def test_cancelling_a_wait_that_has_just_ended_is_harmless() -> None:
    async with linked_peers("a"):
        promise, resolver = make_promise()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _() -> None:
                await promise

            await settle()
            resolver.fulfill(1)  # the waiting task is told once the turn is out
            nursery.cancel_scope.cancel()
        assert await promise == 1


@trio_test
async def test_an_answer_that_nobody_holds_is_released_on_the_wire() -> None:
    """When nobody holds the promise its answer is released on the wire."""
    async with linked_peers("a", "b") as (a, b):
        ref = await far(a, b, Gate())
        await quiet(a, b)
        trace = Trace(between(b, a))
        promise = E(ref).wait()
        with trio.move_on_after(1):
            await promise
        await quiet(a, b)
        assert not trace.sent("op:gc-answers")  # somebody holds it
        del promise
        gc.collect()
        await quiet(a, b)
        assert len(trace.sent("op:gc-answers")) == 1
        assert between(a, b).stats()["answers"] == 0
        assert between(b, a).stats()["questions"] == 0


@trio_test
async def test_a_cancelled_wait_on_an_unnamed_promise_releases_its_answer() -> None:
    async with linked_peers("a", "b") as (a, b):
        ref = await far(a, b, Gate())
        with trio.move_on_after(1):
            await E(ref).wait()
        await quiet(a, b)
        assert between(a, b).stats()["answers"] == 0


@trio_test
async def test_timeouts_are_the_callers() -> None:
    """Timeouts are the caller's (`trio.move_on_after`): without one, the wait has no end."""
    async with linked_peers("a", "b") as (a, b):
        gate = Gate()
        promise = E(await far(a, b, gate)).wait("late")
        with trio.move_on_after(3600) as scope:
            await promise
        assert scope.cancelled_caught
        with pytest.raises(trio.TooSlowError):
            with trio.fail_after(60):
                await promise
        gate.opened.set()
        assert await promise == "late"
