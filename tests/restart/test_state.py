"""What is there after a crash of one side, or of both: state, references, answers, what was lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio

import ocapn
from durable import inspection
from durable.records import decode
from ocapn import E, send_only
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator
from ocapn.netlayers.base import Channel
from tests.restart.support import Echo, Ledger, Process, World, agreed, inside, linked, two, world
from tests.support import trio_test

WHO = pytest.mark.parametrize("who", ["a", "b", "ab"])


async def crash(who: str, a: Process, b: Process) -> None:
    dead = [process for process in (a, b) if process.name in who]
    for process in dead:
        process.crash()
    for process in dead:
        await process.start()


@contextmanager
def broken(text: str) -> Iterator[None]:
    with pytest.raises(ocapn.RemoteError, match=text):
        yield


@WHO
@trio_test
async def test_state_references_and_sturdyrefs(who: str) -> None:
    async with two() as (a, b):
        ref = await linked(a, b)
        assert await E(ref).note(1) == 1
        own = a.baggage.provide("ledger", Ledger)
        assert await E(ref).hold(own) is None
        await b.peer.settled()
        next_export = a.peer.sessions[0]._core.tables.next_export
        await crash(who, a, b)
        ref = a.baggage["holder"].held
        assert a.baggage.provide("ledger", Ledger) is a.baggage["ledger"]
        assert await E(ref).note(2) == 2
        assert b.baggage["ledger"].seen == (1, 2)
        assert await E(ref).give() is a.baggage["ledger"]  # back to its own
        assert await a.peer.enliven(b.sturdyref(b"ledger")) is ref
        assert await E(b.baggage["ledger"].held).note(9) == 1
        assert a.baggage["ledger"].seen == (9,)
        assert a.peer.sessions[0]._core.tables.next_export > next_export


@WHO
@trio_test
async def test_an_ephemeral_export_is_lost(who: str) -> None:
    async with two() as (a, b):
        await linked(a, b)
        holder = a.baggage["holder"]
        holder.held = await a.peer.enliven(b.peer.export(Echo()))
        await a.peer.settled()
        await crash(who, a, b)
        answer = E(a.baggage["holder"].held).note(1)
        if "b" in who:
            with broken("^ObjectLost: "):
                await answer
        else:
            assert await answer == 1
        del answer
        a.baggage["holder"].held = None


@trio_test
async def test_an_answer_that_is_owed_breaks() -> None:
    async with two() as (a, b):
        ref = await linked(a, b)
        answer = E(ref).never(1)
        await trio.sleep(1)
        await b.again()
        with broken("^PeerRestarted: "):
            await answer
        await trio.sleep(1)
        assert b.baggage["ledger"].seen in ((), (1,))
        assert await E(ref).note(2) > 0


@trio_test
async def test_what_the_dead_process_asked_is_released() -> None:
    async with two() as (a, b):
        ref = await linked(a, b)
        answers = [E(ref).never(number) for number in range(5)]
        await trio.sleep(1)
        (session,) = b.peer.sessions
        assert len(session._core.tables.answers) >= 5
        await a.again()
        await trio.sleep(5)
        assert not session._core.tables.answers
        del answers


@pytest.mark.parametrize("settled", [False, True])
@WHO
@trio_test
async def test_a_promise_that_was_passed(who: str, settled: bool) -> None:
    async with two() as (a, b):
        ref = await linked(a, b)
        own = a.baggage.provide("own", Ledger)
        with inside(a):
            promise: Any = E(own).note(1) if settled else E(own).never(1)
        keeper = Echo()
        echo = await a.peer.enliven(b.peer.export(keeper))
        answer = E(echo).echo(promise)
        await trio.sleep(1)
        await crash(who, a, b)
        if "a" not in who:
            if settled:
                assert await answer == 1
            else:
                with trio.move_on_after(5):
                    await answer
                with inside(a):
                    assert await E(own).note(2) == 2
            ref = a.baggage["holder"].held
        else:
            ref = a.baggage["holder"].held
        assert await E(ref).note(3) == 1
        del answer, promise, echo


@trio_test
async def test_imports_that_nothing_durable_holds_are_returned() -> None:
    async with two() as (a, b):
        ref = await linked(a, b)
        mine = [a.baggage.provide(f"own{number}", Ledger) for number in range(3)]
        keeper = Echo()
        echo = await a.peer.enliven(b.peer.export(keeper))
        for one in mine:
            for _ in range(3):
                assert await E(echo).note(one) is one
        assert await E(ref).hold(mine[2]) is None
        await trio.sleep(1)
        exports = a.peer.sessions[0]._core.tables.exports

        def counts() -> dict[int, int]:
            return {id(slot.value): slot.count for slot in exports.values() if isinstance(slot.value, Ledger)}

        assert counts() == {id(mine[0]): 3, id(mine[1]): 3, id(mine[2]): 4}
        await b.again()
        await trio.sleep(5)
        assert counts() == {id(mine[2]): 4}


@trio_test
async def test_a_call_is_made_again_by_nobody() -> None:
    """An answer that had come, and the one that had not."""
    async with two() as (a, b):
        ref = await linked(a, b)
        assert await E(ref).note(0) == 1
        send_only(ref).note(1)
        b.disk.point = lambda number: "after"
        with trio.fail_after(10):
            await b.crashed.wait()
        b.disk.point = lambda number: None
        await b.start()
        assert await E(ref).whole() == [0, 1]


@trio_test
async def test_three_processes_and_a_gift() -> None:
    async with world() as place:
        a, b, c = [await place.process(name).start() for name in "abc"]
        to_b = await linked(a, b)
        ledger = c.baggage.provide("ledger", Ledger)
        to_c = await a.peer.enliven(c.peer.export(ledger, b"ledger"))
        await agreed(a, b, c)
        assert await E(to_b).hold_later(to_c) is None
        await trio.sleep(1)
        for one in (b, c):
            await one.again()
            held = b.baggage["ledger"].held
            assert isinstance(held, ocapn.Ref)
            before = len(c.baggage["ledger"].seen)
            assert await E(held).note(1) == before + 1
            del held


@trio_test
async def test_where_a_peer_has_moved_to_is_kept() -> None:
    async with two() as (a, b):
        await linked(a, b)
        (session,) = a.peer.sessions
        session._core.moved({"host": "elsewhere"})
        a.peer.node.touch(session._core)
        await a.peer.settled()
        b.crash()  # so that it does not say where it is
        await a.again()
        (session,) = a.peer.sessions
        assert session.location.hints == {"host": "elsewhere"}
        await b.start()


async def resumed_by(dialler: Process, other: Process, place: World) -> None:
    """The session is cut, and `dialler` resumes it."""

    async def dial(locator: PeerLocator, limits: Limits) -> Channel:
        await trio.lowlevel.checkpoint()
        raise ocapn.ConnectFailed("not now")

    before, other.plug.dial = other.plug.dial, dial  # type: ignore[method-assign]
    place.cut()
    await trio.sleep(60)
    other.plug.dial = before  # type: ignore[method-assign]
    assert [one.status for one in (*dialler.peer.sessions, *other.peer.sessions)] == ["live", "live"]


@pytest.mark.parametrize("dialler", [0, 1])
@trio_test
async def test_that_a_session_was_resumed_is_kept_whoever_dialled(dialler: int) -> None:
    async with world() as place:
        processes = await place.process("a").start(), await place.process("b").start()
        await linked(*processes)
        await agreed(*processes)
        await resumed_by(processes[dialler], processes[1 - dialler], place)
        for process in processes:
            await process.peer.settled()
            ((_, row),) = process.disk.scan("progress")
            assert decode(row)[-1] == 0, "it is kept as suspended, and would expire"


@trio_test
async def test_where_a_peer_says_it_is_when_it_resumes_is_kept() -> None:
    async with world() as place:
        a, b = await place.process("a").start(), await place.process("b").start()
        await linked(a, b)
        await agreed(a, b)
        b.plug.location = b.plug._inner.location = PeerLocator("memory", "b", {"port": "2"})
        await resumed_by(b, a, place)
        await a.peer.settled()
        ((_, row),) = a.disk.scan("session")
        assert decode(row)[2][2] == {"port": "2"}


@pytest.mark.parametrize("acknowledged", [0, 1, 2, 3])
@trio_test
async def test_frames_of_one_row_that_are_acknowledged_in_part(acknowledged: int) -> None:
    async with world(check=False) as place:
        a, b = await place.process("a").start(), await place.process("b").start()
        ref = await linked(a, b)
        await agreed(a, b)
        await trio.sleep(20)
        b.crash()
        await trio.sleep(1)
        (session,) = a.peer.sessions
        frames = session._core.frames
        assert frames is not None
        assert not frames.kept
        with inside(a):
            for number in range(3):
                send_only(ref).note(number)
        await a.peer.settled()
        assert len(a.disk.scan("outbox")) == 1
        kept = [message for message, _ in frames.kept]
        frames.acknowledge(frames.acked + acknowledged)
        a.peer.node.touch(session._core)
        await a.peer.settled()
        assert len(a.disk.scan("outbox")) == (acknowledged < 3)
        inspection.check(a.disk)
        before = frames.sent, frames.acked, frames.sent_digest
        await a.again()
        (session,) = a.peer.sessions
        frames = session._core.frames
        assert frames is not None
        assert [message for message, _ in frames.kept] == kept[acknowledged:]
        assert (frames.sent, frames.acked, frames.sent_digest) == before
