"""Commit, then send: nothing is seen before it is on disk, the loop goes on meanwhile, a failure ends the peer."""

from __future__ import annotations

import threading
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio

import durable
import ocapn
from durable.records import MARK, decode_row
from durable.sessions import SessionKeeper
from durable.store import Changes
from ocapn import E, MemoryNetlayer, MemoryNetwork, is_settled, make_promise, open_peer, send_only
from ocapn.captp.session import Session
from ocapn.commits import Commits
from tests.peer.support import CONTEXT, Marking
from tests.restart.support import Echo, Ledger, inside, linked, two
from tests.support import trio_test, trio_test_real, until


class Gate(durable.Baggage):
    """A baggage whose commits, in their thread, wait until they are let through."""

    def __init__(self) -> None:
        self.store = durable.MemoryStore()
        super().__init__(self.store)
        self.blocks = True
        self.open = threading.Event()
        self.open.set()
        self.once = False  # the next that is let through closes it
        self.waiting = False
        self.batches: list[int] = []
        self.fail = False
        self.store.on_commit = self._wait

    def _wait(self, changes: Changes) -> None:
        self.waiting = True
        assert self.open.wait(10)
        if self.once:
            self.open.clear()
        self.waiting = False
        if self.fail:
            raise OSError("the disk is gone")
        self.batches.append(len(changes))


async def moment() -> None:
    await trio.sleep(0.05)


@trio_test_real
async def test_nothing_is_seen_before_its_commit_and_the_loop_goes_on() -> None:
    network = MemoryNetwork()
    gate = Gate()
    async with (
        open_peer([MemoryNetlayer(network, "a")]) as a,
        open_peer([MemoryNetlayer(network, "b")], baggage=gate) as b,
    ):
        ledger = gate.provide("ledger", Ledger)
        ref = await a.enliven(b.export(ledger))
        echo = Echo()
        back = await b.enliven(a.export(echo))
        await moment()
        (far,), (near,) = a.sessions, b.sessions
        sent, acked = far.stats()["messages_received"], far.stats()["frames_kept"]
        assert not acked
        gate.open.clear()
        gate.batches.clear()
        answer = E(ref).note(1)
        woken: list[object] = []

        async def wait() -> None:
            woken.append(await E(ledger).note(100))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await moment()
            for number in range(2, 20):
                send_only(ref).note(number)
                send_only(back).note(number)
                await trio.sleep(0.002)
            await moment()
            assert len(ledger.seen) == 20  # turns ran
            assert not woken
            assert not echo.seen
            assert not is_settled(answer)
            assert far.stats()["messages_received"] == sent  # neither an answer nor a call
            assert far.stats()["frames_kept"] == 19  # nor an acknowledgement
            assert near.status == "live"
            gate.open.set()
            assert await answer in (1, 2)
        assert woken
        await moment()
        assert echo.seen == list(range(2, 20))
        assert len(gate.batches) <= 6  # grouped
        assert far.stats()["frames_kept"] == 0


@trio_test_real
async def test_a_failing_commit_ends_the_peer_and_nothing_of_it_was_sent() -> None:
    network = MemoryNetwork()
    gate = Gate()
    async with open_peer([MemoryNetlayer(network, "a")]) as a:
        with pytest.raises(durable.BaggageFailed, match="the disk is gone"):  # noqa: PT012
            async with open_peer([MemoryNetlayer(network, "b")], baggage=gate) as b:
                ledger = gate.provide("ledger", Ledger)
                ref = await a.enliven(b.export(ledger))
                await moment()
                on_disk = E(ledger).pause()
                assert await on_disk is None
                gate.fail = True
                received = a.sessions[0].stats()["messages_received"]
                answer = E(ref).note(1)
                await trio.sleep(10)
        assert await on_disk is None
        assert not is_settled(answer)
        assert a.sessions[0].stats()["messages_received"] == received
        assert a.sessions[0].status == "suspended"
        again = durable.MemoryBaggage(gate.store.reopened())
        async with open_peer([MemoryNetlayer(network, "b")], baggage=again):
            with trio.fail_after(8):
                assert await answer == 1
            assert again["ledger"].seen == (1,)


@trio_test
async def test_an_async_method_begins_after_the_commit_of_its_frame_and_not_again() -> None:
    async with two() as (a, b):
        ref = await linked(a, b)
        b.disk.point = lambda number: "before"
        answer = E(ref).never(1)
        send_only(ref).note(2)
        ledger = b.baggage["ledger"]
        await b.crashed.wait()
        b.disk.point = lambda number: None
        await b.ended.wait()
        assert ledger.seen == ()  # it did not begin
        await b.start()
        await trio.sleep(1)
        assert b.baggage["ledger"].seen == (1, 2)
        await b.again()
        with pytest.raises(ocapn.RemoteError, match=r"^PeerRestarted: "):
            await answer
        assert b.baggage["ledger"].seen == (1, 2)


@trio_test
async def test_an_async_method_that_begins_with_a_commit_sees_nothing_of_who_waits_for_that() -> None:
    async with two() as (a, _):
        marking = Marking()
        with inside(a):
            promise = E(marking).told_later()
        a.peer.node.run(10)

        async def waits() -> None:
            CONTEXT.set("of who waits")
            await a.peer.settled()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(waits)
        assert await promise == "none"


@trio_test
async def test_async_methods_that_are_called_together_begin_after_one_commit_and_end_before_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two() as (a, b):
        ref = await linked(a, b)
        await b.peer.settled()
        cuts = 0
        cut = b.baggage.cut

        def counting() -> Any:
            nonlocal cuts
            batch = cut()
            cuts += batch is not None
            return batch

        monkeypatch.setattr(b.baggage, "cut", counting)
        for first in range(0, 400, 50):
            cuts = 0
            promises = [E(ref).later(number) for number in range(first, first + 50)]
            assert [await promise for promise in promises] == list(range(first, first + 50))
            assert cuts <= 6  # with those of acknowledgements, and of what is released
        assert b.baggage["ledger"].seen == tuple(range(400))


@trio_test_real
async def test_what_is_on_disk_is_awaited_without_waiting_for_what_is_not() -> None:
    gate, network = Gate(), MemoryNetwork()
    async with (
        open_peer([MemoryNetlayer(network, "b")]) as b,
        open_peer([MemoryNetlayer(network, "a")], baggage=gate) as a,
    ):
        echo = Echo()
        gone = await a.enliven(b.export(echo))
        a.sessions[0].end("over")
        await a.settled()
        on_disk = E(echo).echo(1)
        assert await on_disk == 1
        await a.settled()
        gate.open.clear()
        try:
            promise, resolver = make_promise()
            resolver.fulfill(on_disk)  # and nothing is on its way
            gate["changed"] = 1
            with trio.move_on_after(0.05) as waiting:
                await promise
            assert waiting.cancelled_caught
            for _ in range(100):
                assert await on_disk == 1
            await until(lambda: gate.waiting)
            assert await on_disk == 1
            promise, resolver = make_promise()
            resolver.fulfill(on_disk)
            broken = E(gone).echo(1)
            for one in (promise, broken):
                with trio.move_on_after(0.05) as waiting:
                    await one
                assert waiting.cancelled_caught
        finally:
            gate.open.set()
        assert await promise == 1
        with pytest.raises(ocapn.SessionEnded):
            await broken


@trio_test_real
async def test_what_is_on_its_way_to_the_disk_is_awaited_without_waiting_for_what_comes_behind_it() -> None:
    gate = Gate()
    async with open_peer([MemoryNetlayer(MemoryNetwork(), "a")], baggage=gate) as a:
        await a.settled()
        gate.open.clear()
        gate["changed"] = 1
        promise, resolver = make_promise()
        resolver.fulfill(5)
        await until(lambda: gate.waiting)  # both, in one step
        gate["changed"] = 2
        order: list[str] = []

        async def first() -> None:
            assert await promise == 5
            order.append("what was settled before")
            assert gate.batches == [1]

        async def second() -> None:
            await a.settled()
            order.append("all")

        gate.batches.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            nursery.start_soon(second)
            await moment()
            assert not order
            gate.once = True
            gate.open.set()
            await until(lambda: bool(order))
            assert order == ["what was settled before"]
            gate.once = False
            gate.open.set()
        assert order == ["what was settled before", "all"]


@trio_test_real
async def test_what_is_not_on_disk_is_not_awaited_in_another_thread() -> None:
    gate = Gate()
    told: list[object] = []

    class Ends(ocapn.Target):
        @ocapn.method
        async def run(self) -> None:
            try:
                await trio.sleep_forever()
            finally:
                gate["ended"] = True  # the last that is committed

    async def elsewhere() -> None:
        try:
            told.append(await promise)
        except ocapn.OCapNError as error:
            told.append(str(error))

    async with open_peer([MemoryNetlayer(MemoryNetwork(), "a")], baggage=gate) as a:
        promise, resolver = make_promise()
        resolver.fulfill(5)
        thread = threading.Thread(target=trio.run, args=(elsewhere,), daemon=True)
        thread.start()
        thread.join(10)
        await a.settled()
        await trio.to_thread.run_sync(trio.run, elsewhere)
        promise = E(Ends()).run()
        await moment()
    await trio.to_thread.run_sync(trio.run, elsewhere)
    assert told == ["a promise is awaited in the thread of its peer", 5, "the method was cancelled"]


@trio_test_real
async def test_while_the_disk_is_busy_what_comes_of_all_sessions_in_a_pass_is_one_batch() -> None:
    class Counting(Gate):
        cuts = 0

        def cut(self) -> Any:
            batch = super().cut()
            self.cuts += batch is not None
            return batch

    network = MemoryNetwork()
    gate = Counting()
    async with AsyncExitStack() as stack:
        b = await stack.enter_async_context(open_peer([MemoryNetlayer(network, "b")], baggage=gate))
        ledger = gate.provide("ledger", Ledger)
        uri = b.export(ledger)
        refs = []
        for number in range(20):
            peer = await stack.enter_async_context(open_peer([MemoryNetlayer(network, f"a{number}")]))
            refs.append(await peer.enliven(uri))
        await moment()
        gate.open.clear()
        try:
            gate["changed"] = 1
            await until(lambda: gate.waiting)
            gate.cuts = 0
            answers = [E(ref).note(1) for ref in refs]
            await until(lambda: len(ledger.seen) == 20)
            await moment()
            assert 0 < gate.cuts <= 4
        finally:
            gate.open.set()
        assert sorted([await answer for answer in answers]) == list(range(1, 21))


@pytest.mark.parametrize("read", [1, 256])
@trio_test
async def test_the_first_frame_after_a_restart_is_alone_in_its_batch_though_the_disk_is_busy(
    monkeypatch: pytest.MonkeyPatch, read: int
) -> None:
    """If it ends the process, nothing is lost with it that came behind it. Frames come one by one, or together."""
    monkeypatch.setattr(Commits, "writing", property(lambda self: True))
    monkeypatch.setattr("ocapn.connection._BATCH", read)
    cut = durable.Baggage.cut
    seen: list[object] = []

    def noting(self: durable.Baggage) -> Any:
        batch = cut(self)
        for (table, _), row in () if batch is None else batch.changes.items():
            if table == "object" and row is not None:
                seen.append(decode_row(row, table)[2].get("seen"))
        return batch

    tries = SessionKeeper.tries
    tried: list[int] = []

    def trying(self: SessionKeeper, session: Session) -> int:
        tried.append(session.received + 1)
        return tries(self, session)

    async with two() as (a, b):
        ref = await linked(a, b)
        monkeypatch.setattr(durable.Baggage, "cut", noting)
        monkeypatch.setattr(SessionKeeper, "tries", trying)
        for life in range(8):  # trio runs tasks in no fixed order
            await b.peer.settled()
            b.crash()
            answers = [E(ref).note(number) for number in range(5)]
            await moment()
            seen.clear()
            tried.clear()
            await b.start()
            assert [await answer for answer in answers] == [5 * life + one for one in range(1, 6)]
            assert len(tried) == 1  # it, and none behind it
            assert len(seen) > 1
            assert seen[0] == {MARK + "t": [*[*range(5)] * life, 0]}


@pytest.mark.parametrize("late", [0, 1, 2, 3, 5, 8, 12, 20])
@pytest.mark.parametrize("mode", ["before", "after"])
@trio_test
async def test_messages_behind_an_async_method_are_not_lost_and_keep_their_order(
    mode: str, late: int
) -> None:
    async with two() as (a, b):
        ref = await linked(a, b)
        start = b.disk.commits
        b.disk.point = lambda number: mode if number == start + 1 + late else None
        send_only(ref).later(0)
        for number in range(1, 6):
            send_only(ref).note(number)
            if number == 3:
                send_only(ref).later(30)
        with inside(b):
            send_only(b.baggage["ledger"]).note(99)
        await trio.sleep(2)
        if not b.alive:
            b.disk.point = lambda number: None
            await b.start()
        await trio.sleep(2)
        seen = b.baggage["ledger"].seen
        assert [number for number in seen if number in range(1, 6)] == [1, 2, 3, 4, 5], seen
        # An `async` method runs at most once.
        assert seen.count(0) <= 1 >= seen.count(30)
        assert seen.count(99) <= 1


@trio_test
async def test_an_await_inside_a_transaction_loses_nothing() -> None:
    """It is refused, and what was to be sent then is sent later."""
    async with two() as (a, b):
        ref = await linked(a, b)
        with pytest.raises(RuntimeError, match="a transaction is open"), a.baggage.transaction():
            await a.peer.enliven(b.sturdyref(b"ledger"))
        assert await E(ref).note(1) == 1
        assert await E(ref).note(2) == 2
        (one,), (other,) = a.peer.sessions, b.peer.sessions
        assert one._core.frames is not None
        assert other._core.frames is not None
        await trio.sleep(1)
        assert one._core.frames.sent == other._core.frames.taken


@trio_test
async def test_a_promise_that_was_settled_is_there_after_the_peer_was_closed() -> None:
    async with two(check=False) as (a, b):
        promise = E(await linked(a, b)).note(1)
        assert await promise == 1
        await a.close()
        assert await promise == 1


@trio_test
async def test_an_answer_that_is_no_text_ends_nothing() -> None:
    class Wrong(ocapn.Target):
        @ocapn.method
        def get(self) -> str:
            return "\ud800"

    async with two() as (a, b):
        ref = await linked(a, b)
        wrong = await a.peer.enliven(b.peer.export(Wrong()))
        with pytest.raises(ocapn.RemoteError):
            await E(wrong).get()
        assert await E(ref).note(1) == 1
        del wrong
