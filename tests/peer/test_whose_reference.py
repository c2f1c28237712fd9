"""semantics.md, Whose reference."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import trio

from ocapn import (
    E,
    MemoryNetlayer,
    MemoryNetwork,
    Peer,
    Promise,
    Target,
    WrongContext,
    field,
    make_promise,
    method,
    open_peer,
    send_only,
)
from ocapn.testing import linked_peers, quiet
from tests.peer.support import Echo, Recorder, Trace, between, far
from tests.support import trio_test, trio_test_real


def home(promise: Promise, *peers: Peer) -> Peer:
    """The peer that a promise belongs to; there is no public way to ask."""
    (found,) = [peer for peer in peers if promise._vow.node is peer._node]
    return found


class Sends(Target):
    """Sends to objects of its own peer, from every place that a method has."""

    def __init__(self) -> None:
        self.promises: list[Promise] = []

    @method
    def sync(self) -> None:
        self.promises += [E(Echo()).echo(1), make_promise()[0]]

    @method
    async def task(self) -> None:
        self.promises += [E(Echo()).echo(1), make_promise()[0]]
        await trio.lowlevel.checkpoint()
        self.promises += [E(Echo()).echo(1), make_promise()[0]]
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _() -> None:
                self.promises += [E(Echo()).echo(1), make_promise()[0]]


@trio_test
async def test_a_reference_is_used_through_the_peer_that_imported_it() -> None:
    """A reference belongs to the peer that imported it. `E` on it uses that peer, whatever the context."""
    async with linked_peers("a", "b", "c") as (a, b, c):
        echo = Echo()
        by_b, by_c = await far(a, b, echo), await far(a, c, echo)
        await quiet(a, b, c)
        trace_b, trace_c = Trace(between(b, a)), Trace(between(c, a))
        promise = E(by_b).echo(1)
        assert home(promise, a, b, c) is b
        assert await promise == 1
        assert len(trace_b.sent("op:deliver")) == 1
        assert trace_c.sent("op:deliver") == []
        assert home(E(by_c).echo(1), a, b, c) is c
        assert home(E(promise).run(), a, b, c) is b


@trio_test
async def test_a_local_object_is_used_through_the_peer_of_the_body() -> None:
    """On a local object, the peer of the current context: the body of `open_peer`."""
    network = MemoryNetwork()
    async with open_peer([MemoryNetlayer(network, "a")]) as a:
        assert home(E(Echo()).echo(1), a) is a
        async with open_peer([MemoryNetlayer(network, "b")]) as b:
            assert home(E(Echo()).echo(1), a, b) is b
            assert home(make_promise()[0], a, b) is b

            async def in_a_task() -> None:
                await trio.lowlevel.checkpoint()
                assert home(E(Echo()).echo(1), a, b) is b

            async with trio.open_nursery() as nursery:
                nursery.start_soon(in_a_task)
        assert home(E(Echo()).echo(1), a) is a


@pytest.mark.parametrize("name", ["sync", "task"])
@pytest.mark.parametrize("dialler", ["a", "b", "nobody's task"])
def test_a_method_uses_its_own_peer_whoever_dialled(name: str, dialler: str) -> None:
    """Or the peer of the running method: not that of the task that happened to open the connection."""

    @trio_test
    async def run() -> None:
        network = MemoryNetwork()
        ask, asked = trio.open_memory_channel[tuple[Peer, Peer]](0)
        connected = trio.Event()

        async def connect() -> None:
            peer, other = await asked.receive()
            with pytest.raises(WrongContext):
                E(Echo()).echo(1)
            await peer.connect(other.locator())
            connected.set()

        async with trio.open_nursery() as outside:
            outside.start_soon(connect)  # here, where there is no peer
            async with linked_peers("a", "b", network=network) as (a, b):
                if dialler == "a":
                    await a.connect(b.locator())
                elif dialler == "b":
                    await b.connect(a.locator())
                else:
                    await ask.send((a, b))
                    await connected.wait()
                on_a, on_b = Sends(), Sends()
                await E(await far(a, b, on_a))[name]()
                await E(await far(b, a, on_b))[name]()
                assert {home(promise, a, b) for promise in on_a.promises} == {a}
                assert {home(promise, a, b) for promise in on_b.promises} == {b}
                own = Sends()
                await E(own)[name]()
                assert {home(promise, a, b) for promise in own.promises} == {b}
                outside.cancel_scope.cancel()

    run()


@trio_test
async def test_methods_that_run_while_the_peer_closes_find_their_peer() -> None:
    promises: list[Promise] = []

    class Last(Target):
        @method
        def run(self) -> None:
            promises.append(E(Echo()).echo(1))

    async with linked_peers("a", "b") as (a, b):
        await b.connect(a.locator())
        send_only(Last()).run()  # its turn comes in the closing
    assert len(promises) == 1
    assert home(promises[0], a, b) is b


@trio_test
async def test_without_a_peer_the_error_says_so() -> None:
    """Else an error that says so."""
    local = Echo()
    for _ in range(2):
        for use in (E(local).echo, E(local), E(local)["x"], send_only(local).echo, send_only(local)):
            with pytest.raises(WrongContext, match=r"E on a local object needs a peer: use it in the body"):
                use(1)
        with pytest.raises(WrongContext, match="needs a peer"):
            make_promise()
        async with linked_peers("a"):
            assert await E(local).echo(1) == 1


async def _refused_in_a_thread(uses: dict[str, Callable[[], object]]) -> None:
    for use in uses.values():
        with pytest.raises(WrongContext, match=r"its own thread; use trio\.from_thread\.run_sync"):
            await trio.to_thread.run_sync(use)


@trio_test_real
async def test_E_from_another_thread_is_refused() -> None:
    """`E` from another thread is refused."""
    async with linked_peers("a", "b") as (a, b):
        recorder = Recorder()
        ref = await far(a, b, recorder)
        pending = make_promise()[0]
        for receiver in (recorder, ref, pending, E(ref).note("by the peer's own thread")):
            await _refused_in_a_thread(
                {
                    "E": lambda r=receiver: E(r).note(1),  # type: ignore[misc]
                    "E()": lambda r=receiver: E(r)(1),  # type: ignore[misc]
                    "send_only": lambda r=receiver: send_only(r).note(1),  # type: ignore[misc]
                }
            )
        await _refused_in_a_thread(
            {
                "p.name()": lambda: pending.note(1),
                "p()": lambda: pending(1),
                "field": lambda: field(pending, "x"),
            }
        )
        promise, resolver = make_promise()
        await _refused_in_a_thread(
            {"fulfill": lambda: resolver.fulfill(1), "break_": lambda: resolver.break_("in a thread")}
        )
        resolver.fulfill(2)
        assert await promise == 2
        await E(ref).note("end")
        assert recorder.seen == ["by the peer's own thread", "end"]


@trio_test_real
async def test_a_thread_without_a_context_is_refused_too() -> None:
    async with linked_peers("a", "b") as (a, b):
        ref = await far(a, b, Echo())
        caught: list[str] = []

        def use() -> None:
            for receiver in (ref, Echo()):
                try:
                    E(receiver).echo(1)
                except WrongContext as error:
                    caught.append(str(error))

        thread = threading.Thread(target=use)
        thread.start()
        await trio.to_thread.run_sync(thread.join)
        assert ["its own thread" in caught[0], "needs a peer" in caught[1]] == [True, True]


@trio_test_real
async def test_a_thread_sends_by_way_of_the_peers_thread() -> None:
    async with linked_peers("a", "b") as (a, b):
        ref = await far(a, b, Echo())

        def use() -> Any:
            return trio.from_thread.run_sync(lambda: E(ref).echo("from a thread"))

        assert await (await trio.to_thread.run_sync(use)) == "from a thread"


@trio_test_real
async def test_a_promise_that_is_pending_is_not_awaited_in_another_thread() -> None:
    async with linked_peers("a") as (a,):
        promise, resolver = make_promise()

        async def wait() -> None:
            await promise

        with pytest.raises(WrongContext, match="in the thread of its peer"):
            await trio.to_thread.run_sync(trio.run, wait)
        resolver.fulfill(1)
        assert await promise == 1

        async def again() -> None:
            with trio.testing.assert_checkpoints():
                assert await promise == 1
            with trio.testing.assert_checkpoints():
                assert await promise == 1

        node = a._node
        before = node.awaits_left, node.awaits_until  # which are about the peer's own loop, and its clock
        await trio.to_thread.run_sync(trio.run, again)
        assert (node.awaits_left, node.awaits_until) == before
