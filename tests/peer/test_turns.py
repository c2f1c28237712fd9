"""semantics.md, Turns."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import trio

import durable
from ocapn import (
    E,
    Lease,
    Limits,
    MemoryNetlayer,
    MemoryNetwork,
    Peer,
    Promise,
    Reconnect,
    RemoteError,
    Target,
    make_promise,
    method,
    open_peer,
    send_only,
    target,
)
from ocapn.references import current_caller
from ocapn.testing import linked_peers, quiet
from tests.peer.support import CONTEXT, Echo, Gate, Marking, Recorder, between, far, settle
from tests.support import trio_test

# Later turns, never re-entrantly


class Nested(Target):
    """Counts how deep its methods are inside one another."""

    def __init__(self, session_of: Peer | None = None) -> None:
        self.depth = 0
        self.deepest = 0
        self.runs = 0
        self.session_of = session_of

    def enter(self) -> None:
        self.depth += 1
        self.runs += 1
        self.deepest = max(self.deepest, self.depth)

    @method
    def run(self, more: int) -> None:
        self.enter()
        if more:
            E(self).run(more - 1)
            send_only(self).run(0)
        self.depth -= 1

    @method
    async def end_sessions(self) -> None:
        """Sends to itself and does what makes the peer work, all in one step."""
        self.enter()
        E(self).run(0)
        assert self.session_of is not None
        for session in self.session_of.sessions:
            session.end()
        promise, resolver = make_promise()
        promise.run(0)
        resolver.fulfill(self)
        self.depth -= 1


@trio_test
async def test_a_message_to_a_local_target_runs_in_a_later_turn_never_re_entrantly() -> None:
    async with linked_peers("a", "b") as (a, b):
        nested = Nested()
        for receiver in (nested, await far(b, a, nested)):
            nested.runs = 0
            await E(receiver).run(5)
            await quiet(a, b)
            assert nested.runs == 11
        assert nested.deepest == 1


@trio_test
async def test_ending_a_session_runs_no_turns_in_the_callers_stack() -> None:
    async with linked_peers("a", "b") as (a, b):
        await far(a, b, Echo())
        nested = Nested(b)
        await E(nested).end_sessions()
        await quiet(a, b)
        assert nested.runs == 3
        assert nested.deepest == 1
        assert a.sessions == b.sessions == []

        await far(a, b, Echo())
        recorder = Recorder()
        E(recorder).note(1)
        between(b, a).end()
        assert recorder.seen == []
        await settle()
        assert recorder.seen == [1]


# Slices


class Spinner(Target):
    """Sends itself a message for each that it gets, until it is stopped."""

    def __init__(self) -> None:
        self.spins = 0
        self.going = True

    @method
    def spin(self) -> None:
        self.spins += 1
        if self.going:
            send_only(self).spin()


@trio_test
async def test_a_bounded_slice_of_turns_runs_in_a_loop_pass() -> None:
    """A bounded slice of turns runs in a loop pass: other tasks and other peers get their turn."""
    async with linked_peers("a", "b", limits=Limits(slice_turns=10)) as (a, b):
        spinner = Spinner()
        echo = await far(a, b, Echo())
        E(spinner).spin()
        most = 0
        for _ in range(100):
            before = spinner.spins
            await trio.lowlevel.checkpoint()
            most = max(most, spinner.spins - before)
        assert 0 < most <= 20  # a pass of the loop or two
        before = spinner.spins
        assert await E(echo).echo(1) == 1
        assert spinner.spins - before < 1000
        spinner.going = False


@trio_test
async def test_a_bounded_slice_of_turns_runs_of_what_is_read_together() -> None:
    async with linked_peers("a", "b", limits=Limits(slice_turns=10)) as (a, b):
        recorder = Recorder()
        ref = await far(a, b, recorder)
        last = [E(ref).note(number) for number in range(500)][-1]
        ran = [0]

        class Ran(trio.abc.Instrument):
            def before_io_wait(self, timeout: float) -> None:
                ran.append(len(recorder.seen))

        trio.lowlevel.add_instrument(Ran())
        await last
        assert recorder.seen == list(range(500))
        passes = [after - before for before, after in pairwise(ran)]
        assert 0 < max(passes) <= 20  # the reader's slice, and the peer's own


@trio_test
async def test_no_sender_starves_the_rest() -> None:
    async with linked_peers("flood", "drop", "target") as (flood, drop, target):
        recorder = Recorder()
        from_flood = await far(target, flood, recorder)
        from_drop = await far(target, drop, recorder)
        last = [E(from_flood).note("flood") for _ in range(5_000)][-1]
        await E(from_drop).note("drop")
        await last
        assert recorder.seen.count("flood") == 5_000
        assert recorder.seen.index("drop") < 2_500


# The order of one sender and one target


class Steps(Target):
    """Methods of every shape write down when they begin."""

    def __init__(self) -> None:
        self.begun: list[int] = []

    @method
    def sync(self, number: int) -> None:
        self.begun.append(number)

    @method
    async def checkpoint_first(self, number: int) -> None:
        self.begun.append(number)
        await trio.lowlevel.checkpoint()

    @method
    async def sleeps(self, number: int) -> None:
        self.begun.append(number)
        await trio.sleep(1)

    @method
    async def never_waits(self, number: int) -> None:
        self.begun.append(number)

    @method
    async def raises_at_once(self, number: int) -> None:
        self.begun.append(number)
        raise ValueError(number)

    @method
    def raises(self, number: int) -> None:
        self.begun.append(number)
        raise ValueError(number)

    @method
    def answers_later(self, number: int) -> Promise:
        self.begun.append(number)
        return E(Gate()).wait()


SHAPES = [
    "sync",
    "checkpoint_first",
    "sleeps",
    "never_waits",
    "raises_at_once",
    "raises",
    "answers_later",
]


@pytest.mark.parametrize("slice_turns", [1, 7, 200])
@pytest.mark.parametrize("where", ["local", "remote", "held"])
def test_messages_from_one_sender_to_one_target_are_begun_in_the_order_sent(
    where: str, slice_turns: int
) -> None:
    """A message is begun only after the method of the one before has run its first step."""

    @trio_test
    async def run() -> None:
        network = MemoryNetwork()
        limits = Limits(slice_turns=slice_turns)
        async with linked_peers("a", "b", network=network, limits=limits) as (a, b):
            steps = Steps()
            receiver: Any = steps if where == "local" else await far(a, b, steps)
            links = network.links_between("a", "b")
            if where == "held":
                links[0].hold()
            choose = random.Random(slice_turns)
            for number in range(300):
                shape = choose.choice(SHAPES)
                if number % 3:
                    E(receiver)[shape](number)
                else:
                    send_only(receiver)[shape](number)
                if where != "held" and number % 50 == 0:
                    await trio.lowlevel.checkpoint()
            for link in links:
                link.release()
            await trio.sleep(5)
            assert steps.begun == list(range(300))

    run()


@trio_test
async def test_a_message_is_begun_only_after_the_first_step_of_the_one_before() -> None:
    """The first step is all up to the first checkpoint, and not only its beginning."""
    events: list[str] = []

    class Two(Target):
        @method
        async def first(self) -> None:
            events.append("first begins")
            E(Echo()).echo(1)
            events.append("first waits")
            await trio.lowlevel.checkpoint()
            events.append("first goes on")

        @method
        def second(self) -> None:
            events.append("second")

    for _ in range(20):  # trio starts tasks in no fixed order
        events.clear()
        async with linked_peers("a"):
            two = Two()
            first = E(two).first()
            E(two).second()
            await first
        assert events[:2] == ["first begins", "first waits"]
        assert events.index("second") >= 2


@trio_test
async def test_a_target_whose_method_has_not_begun_holds_up_no_other_target() -> None:
    async with linked_peers("a"):
        order: list[str] = []

        class Named(Target):
            def __init__(self, name: str) -> None:
                self.name = name

            @method
            async def run(self) -> None:
                order.append(self.name)

            @method
            def sync(self) -> None:
                order.append(f"{self.name} sync")

        slow, other = Named("slow"), Named("other")
        send_only(slow).run()
        send_only(slow).sync()
        send_only(other).sync()
        await settle()
        assert order == ["other sync", "slow", "slow sync"]


class _Passes(trio.abc.Instrument):
    """Counts passes of the loop."""

    count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


@trio_test
async def test_async_methods_of_one_target_begin_in_one_pass_and_in_order() -> None:
    """What is no `async` method waits for those before it."""
    passes = _Passes()

    class Stepping(Target):
        def __init__(self) -> None:
            self.begun: list[tuple[int, int]] = []

        @method
        async def run(self, number: int) -> None:
            self.begun.append((number, passes.count))
            await trio.lowlevel.checkpoint()

        @method
        def sync(self, number: int) -> None:
            self.begun.append((number, passes.count))

    async with linked_peers("a", "b") as (a, b):
        stepping = Stepping()
        here = await far(a, b, stepping)
        calls = target(stepping.run)
        there = await far(a, b, calls)
        await quiet(a, b)
        trio.lowlevel.add_instrument(passes)
        for receiver in (stepping, here):
            stepping.begun.clear()
            promises = [E(receiver).run(number) for number in range(40)]
            promises += [E(receiver).sync(40), E(receiver).run(41)]
            for promise in promises:
                await promise
            assert [number for number, _ in stepping.begun] == list(range(42))
            first, last = stepping.begun[0][1], stepping.begun[39][1]
            assert first == last < stepping.begun[40][1] < stepping.begun[41][1]
        stepping.begun.clear()
        for promise in [E(there)(number) for number in range(40)]:
            await promise
        assert [number for number, _ in stepping.begun] == list(range(40))
        assert stepping.begun[0][1] == stepping.begun[39][1]
        trio.lowlevel.remove_instrument(passes)


@pytest.mark.parametrize("kept", [False, True])
@trio_test
async def test_a_bounded_slice_of_async_methods_begins_in_one_pass(kept: bool) -> None:
    passes = _Passes()
    begun: list[int] = []

    class Counting(Target):
        @method
        async def run(self) -> None:
            begun.append(passes.count)

    baggage = durable.MemoryBaggage() if kept else None
    limits = Limits(slice_turns=10)
    async with open_peer([MemoryNetlayer(MemoryNetwork(), "a")], baggage=baggage, limits=limits) as a:
        trio.lowlevel.add_instrument(passes)
        targets = [Counting() for _ in range(3)]
        promises = []
        if a._commits is not None:
            await a.settled()
            a._commits._token, token = None, a._commits._token  # as if the disk were slow
            assert baggage is not None
            baggage["changed"] = 1
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
        for number in range(100):
            promises.append(E(targets[number % 3]).run())
            if number % 5 == 0:
                await trio.lowlevel.checkpoint()
        if a._commits is not None:
            assert not begun
            a._commits._token = token
        for promise in promises:
            await promise
        trio.lowlevel.remove_instrument(passes)
    assert len(begun) == 100
    assert 5 < max(Counter(begun).values()) <= 10 + len(targets)


@pytest.mark.parametrize("passes", [0, 5])
@pytest.mark.parametrize("kept", [False, True])
@trio_test
async def test_a_burst_of_calls_of_a_quick_async_method_is_not_too_much(kept: bool, passes: int) -> None:
    """Though they are more than may run at once: those that have no room yet are turns that wait."""

    class Quick(Target):
        @method
        async def run(self, number: int) -> int:
            for _ in range(passes):
                await trio.lowlevel.checkpoint()
            return number

    network = MemoryNetwork()
    limits = Limits(slice_turns=20, running_methods=50)
    baggage = durable.MemoryBaggage() if kept else None
    async with (
        open_peer([MemoryNetlayer(network, "a")], baggage=baggage, limits=limits) as a,
        open_peer([MemoryNetlayer(network, "b")]) as b,
    ):
        ref = await far(a, b, Quick())
        promises = [E(ref).run(number) for number in range(300)]
        assert [await promise for promise in promises] == list(range(300))


@trio_test
async def test_a_method_sees_nothing_of_the_context_of_another() -> None:
    """Whoever ends as the last has what waits run; and who reads from a connection, what comes over it."""
    async with linked_peers("a", "b") as (a, b):
        marking = Marking()
        for other in (marking, await far(a, b, marking)):
            await E(other).sets()
            assert await E(other).told() == await E(other).told_later() == "none"
            await E(other).sets_and_sends()
            await settle()
        function = target(marking.sets)
        await E(function)()
        await E(marking).told()
    assert marking.seen == ["none"] * 9


@trio_test
async def test_a_method_sees_nothing_of_the_context_of_whoever_has_dialled() -> None:
    network, here = MemoryNetwork(), Marking()
    async with (
        open_peer([MemoryNetlayer(network, "a")]) as a,
        open_peer([MemoryNetlayer(network, "b")]) as b,
    ):
        sturdyref = b.export(Marking())

        async def dial() -> None:
            CONTEXT.set("of who dialled")
            await E(await a.enliven(sturdyref)).calls(here)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial)
        await E(await a.enliven(sturdyref)).calls(here)
    assert here.seen == ["none"] * 4


@trio_test
async def test_what_a_peer_runs_has_the_context_of_whoever_has_opened_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And not of the method that does, or that wants something kept."""
    seen: list[object] = []
    network = MemoryNetwork()

    async def run(self: object) -> None:
        seen.append((CONTEXT.get(), current_caller.get()))
        await trio.sleep_forever()

    monkeypatch.setattr("ocapn.supervision.SupervisedConnection.run", run)
    monkeypatch.setattr("ocapn.leases.Tenure.run", run)

    def authenticate(introduction: object) -> bool:
        seen.append((CONTEXT.get(), current_caller.get()))
        return True

    class Opening(Target):
        @method
        async def opens(self) -> None:
            async with open_peer([MemoryNetlayer(network, "inner")], authenticate=authenticate) as inner:
                await a.enliven(inner.export(Echo()))
                CONTEXT.set("of a method")
                await inner.enliven(a.export(Echo()))
                inner._registry.limit(inner.sessions[0], Lease(idle=60))
                inner._supervise(b.locator(), Reconnect())
                await settle()

    async with (
        open_peer([MemoryNetlayer(network, "a")]) as a,
        open_peer([MemoryNetlayer(network, "b")]) as b,
    ):
        await E(await far(a, b, Opening())).opens()
    assert len(seen) == 3
    assert set(seen) == {("none", None)}


# Sync and async methods


@trio_test
async def test_a_sync_method_is_one_turn_and_needs_no_task() -> None:
    class Counts(Target):
        @method
        def sync(self) -> int:
            return trio.lowlevel.current_statistics().tasks_living

        @method
        async def task(self) -> int:
            return trio.lowlevel.current_statistics().tasks_living

    async with linked_peers("a", "b", durable="never") as (a, b):
        for counts in (Counts(), await far(a, b, Counts())):
            here = trio.lowlevel.current_statistics().tasks_living
            assert await E(counts).sync() == here
            assert await E(counts).task() == here + 1


@trio_test
async def test_the_steps_of_an_async_method_interleave_with_others() -> None:
    """An `async` method is a turn up to each checkpoint, and its steps interleave with others."""
    events: list[str] = []

    class Stepping(Target):
        @method
        async def run(self) -> None:
            for _ in range(3):
                events.append("step begins")
                events.append("step ends")
                await trio.sleep(1)

        @method
        def between(self) -> None:
            events.append("between")

    async with linked_peers("a"):
        stepping = Stepping()
        done = E(stepping).run()
        for _ in range(2):
            await trio.sleep(0.5)
            await E(stepping).between()
            await trio.sleep(0.5)
        await done
    step = ["step begins", "step ends"]
    assert events == [*step, "between", *step, "between", *step]


@trio_test
async def test_many_async_methods_of_one_target_run_at_once() -> None:
    async with linked_peers("a", "b") as (a, b):
        gate = Gate()
        ref = await far(a, b, gate)
        answers = [E(ref).wait(i) for i in range(20)]
        await settle()
        assert gate.waiting == 20
        gate.opened.set()
        assert [await answer for answer in answers] == list(range(20))


# Promises, and what they become


class Promiser(Target):
    """Answers `what` later, with `value`."""

    def __init__(self, value: object) -> None:
        self.value = value
        self.ready = trio.Event()

    @method
    async def what(self) -> object:
        await self.ready.wait()
        return self.value

    @method
    def now(self) -> object:
        """The same, as a promise that the method returns at once."""
        promise, resolver = make_promise()
        self.resolve_later(resolver)
        return promise

    def resolve_later(self, resolver: Any) -> None:
        E(self).what_then(resolver)

    @method
    async def what_then(self, resolver: Any) -> None:
        await self.ready.wait()
        resolver.fulfill(self.value)


def delays(seed: int) -> Callable[[str, str], float]:
    """Every message takes up to a second, so that links overtake each other."""
    choose = random.Random(seed)
    return lambda a, b: choose.uniform(0, 1)


class Sending:
    """Numbers to a receiver, in every way there is, over some time."""

    def __init__(self, seed: int) -> None:
        self.choose = random.Random(seed)
        self.numbers = itertools.count()
        self.sent = 0

    async def some(self, count: int, *receivers: object) -> None:
        for _ in range(count):
            receiver = self.choose.choice(receivers)
            number = next(self.numbers)
            self.sent += 1
            match self.choose.randrange(3):
                case 0:
                    E(receiver).note(number)
                case 1:
                    E(receiver).note_later(number)
                case 2:
                    send_only(receiver).note(number)
            if self.choose.random() < 0.5:
                await trio.sleep(self.choose.uniform(0, 0.3))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ask", ["what", "now"])
@pytest.mark.parametrize("chain", [1, 2, 3])
@pytest.mark.parametrize("lives", ["a", "b", "c"])
def test_sends_to_a_promise_and_direct_sends_keep_the_order(
    lives: str, chain: int, ask: str, seed: int
) -> None:
    """`b` sends to a promise of `a` that becomes an object of a, of b itself, or of c, by way of others."""

    @trio_test
    async def run() -> None:
        network = MemoryNetwork(delay=delays(seed))
        async with linked_peers("a", "c", "b", network=network) as (a, c, b):
            peers = {"a": a, "b": b, "c": c}
            recorder = Recorder()
            promisers: list[Promiser] = []
            at, value = lives, recorder
            for i in range(chain):
                home = "a" if i == chain - 1 else "c" if (i - chain) % 2 else "a"
                promiser = Promiser(value if at == home else await far(peers[at], peers[home], value))
                if i:  # the value is a promiser: its answer is the value
                    before: Any = promiser.value
                    promiser = Relay(before, ask)
                promisers.append(promiser)
                at, value = home, promiser  # type: ignore[assignment]
            promise = E(await far(a, b, promisers[-1]))[ask]()
            sending = Sending(seed)
            await sending.some(10, promise)
            for promiser in promisers:
                promiser.ready.set()
                await sending.some(10, promise)
            ref = await promise
            if lives == "b":
                assert ref is recorder
            await sending.some(10, promise, ref)
            await trio.sleep(60)
            assert recorder.seen == list(range(sending.sent))
            await quiet(a, b, c)

    run()


class Relay(Promiser):
    """Its value is another promiser: answers with what that answers."""

    def __init__(self, behind: object, ask: str) -> None:
        super().__init__(behind)
        self.ask = ask

    @method
    async def what(self) -> object:
        answer: object = E(self.value)[self.ask]()
        await self.ready.wait()
        return answer

    @method
    def now(self) -> object:
        return E(self.value)[self.ask]()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("lives", ["a", "b", "c"])
def test_sends_to_a_promise_that_was_passed_keep_the_order(lives: str, seed: int) -> None:
    """`a` was given a promise of `b` and sends to it; it becomes an object of a itself, of b, or of c."""

    class Sender(Target):
        def __init__(self) -> None:
            self.sending = Sending(seed)

        @method
        async def start(self, parts: list[Promise]) -> None:
            (promise,) = parts
            await self.sending.some(30, promise)
            ref = await promise
            await self.sending.some(10, promise, ref)

    @trio_test
    async def run() -> None:
        network = MemoryNetwork(delay=delays(seed))
        async with linked_peers("c", "a", "b", network=network) as (c, a, b):
            recorder = Recorder()
            value: Any = recorder if lives == "b" else await far({"a": a, "c": c}[lives], b, recorder)
            sender = Sender()
            promise, resolver = make_promise()
            done = E(await far(a, b, sender)).start([promise])
            await trio.sleep(2)
            resolver.fulfill(value)
            await done
            await trio.sleep(60)
            assert recorder.seen == list(range(sender.sending.sent))
            await quiet(a, b, c)

    run()


@trio_test
async def test_order_is_kept_while_the_way_through_the_promise_is_held() -> None:
    """The last send, made directly, does not overtake the first, which waits on its way through `a`."""
    network = MemoryNetwork()
    async with linked_peers("a", "b", "c", network=network) as (a, b, c):
        recorder = Recorder()
        promiser = Promiser(await far(c, a, recorder))
        promiser.ready.set()
        await far(c, b, recorder)  # b and c have a session
        ref = await far(a, b, promiser)
        (forward,) = network.links_between("a", "c")
        forward.hold(a_to_b=True, b_to_a=True)
        promise = E(ref).what()
        first = promise.note("first")
        await trio.sleep(1)
        assert recorder.seen == []
        last = promise.note("last")
        await trio.sleep(1)
        assert recorder.seen == []
        forward.release()
        await first
        await last
        assert recorder.seen == ["first", "last"]


@trio_test
async def test_messages_to_a_promise_break_in_order_if_it_breaks() -> None:
    async with linked_peers("a", "b") as (a, b):

        class Breaks(Target):
            @method
            async def what(self) -> None:
                await trio.sleep(1)
                raise ValueError("nothing to be had")

        broken: list[int] = []
        promise = E(await far(a, b, Breaks())).what()

        async def send(number: int) -> None:
            with pytest.raises(RemoteError, match="nothing to be had"):
                await promise.note(number)
            broken.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(send, number)
        assert sorted(broken) == list(range(5))
