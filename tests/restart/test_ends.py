"""How durable sessions end, and how a peer that is closed does not end them."""

from __future__ import annotations

import attrs
import pytest
import trio

import durable
import durable.sessions
import ocapn
from ocapn import E, MemoryNetlayer, MemoryNetwork, RolledBack, SessionLost, is_settled, open_peer
from ocapn.commits import Commits
from tests.restart.support import Disk, agreed, linked, two, world
from tests.support import trio_test


def status(session: ocapn.Session) -> str:
    return session.status


@trio_test
async def test_closing_suspends_and_opening_resumes() -> None:
    async with two() as (a, b):
        ref = await linked(a, b)
        assert await E(ref).note(1) == 1
        (session,) = a.peer.sessions
        lines: list[str] = []
        session.trace(lines.append)
        await b.close()
        answer = E(ref).note(2)
        await trio.sleep(100)
        assert status(session) == "suspended"
        assert not is_settled(answer)
        assert not [line for line in lines if "op:abort" in line]
        await b.start()
        assert await answer == 2
        assert status(session) == "live"
        await a.close()
        await b.close()
        await a.start()
        await b.start()
        assert await E(a.baggage["holder"].held).note(3) == 3


@pytest.mark.parametrize("restarts", [0, 1, 3])
def test_an_end_while_the_other_is_down_is_kept(restarts: int) -> None:
    @trio_test
    async def run() -> None:
        async with two() as (a, b):
            ref = await linked(a, b)
            answer = E(ref).never(1)
            await trio.sleep(1)
            b.crash()
            await trio.sleep(1)
            a.peer.sessions[0].end("enough")
            with pytest.raises(ocapn.SessionEnded, match="enough"):
                await answer
            assert a.peer.sessions == []
            await a.peer.settled()
            for _ in range(restarts):
                await a.again()
                assert a.peer.sessions == []
            await b.start()
            await trio.sleep(60)
            assert b.peer.sessions == []
            if not restarts:
                with pytest.raises(ocapn.SessionEnded):
                    await E(ref).note(2)
            again = await a.peer.enliven(b.sturdyref(b"ledger"))
            await agreed(a, b)
            assert await E(again).note(2) == 2

    run()


@trio_test
async def test_an_expired_session_is_refused_and_its_tombstone_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world() as place:
        limits = ocapn.Limits(suspended=100.0, tombstone_life=100.0)
        a = await place.process("a", limits=limits).start()
        b = await place.process("b", limits=limits).start()
        ref = await linked(a, b)
        await trio.sleep(1)
        b.crash()
        await trio.sleep(120)
        with pytest.raises(SessionLost, match="suspended for more than 100 s"):
            await E(ref).note(1)
        await b.start()
        await trio.sleep(30)
        assert a.peer.sessions == b.peer.sessions == []
        assert any(b"tombstone/" in key for key in a.disk._tables["node"])
        await trio.sleep(110)
        await a.peer.settled()
        assert not any(b"tombstone/" in key for key in a.disk._tables["node"])


@trio_test
async def test_tombstones_go_each_in_its_time_after_a_restart() -> None:
    async with world() as place:
        limits = ocapn.Limits(tombstone_life=100.0)
        a, b = [await place.process(name, limits=limits).start() for name in "ab"]
        for _ in range(5):
            await linked(a, b)
            a.peer.sessions[0].end("enough")
            await trio.sleep(10)
        order = list(a.peer.node._tombstones)
        now = trio.current_time()
        await a.again()
        for session_id, tombstone in list(
            a.peer.node._tombstones.items()
        ):  # what the wall clock would have said
            until = now + 55 + 10 * order.index(session_id)
            a.peer.node._tombstones[session_id] = attrs.evolve(tombstone, until=until)
        for left in (4, 3, 2, 1, 0):
            await trio.sleep(62 if left == 4 else 10)
            assert set(a.peer.node._tombstones) == set(order[5 - left :])


@pytest.mark.parametrize("who", ["a", "b"])
def test_an_older_copy_is_noticed(who: str) -> None:
    @trio_test
    async def run() -> None:
        async with two() as (a, b):
            ref = await linked(a, b)
            assert await E(ref).note(1) == 1
            await trio.sleep(1)
            old, other = (a, b) if who == "a" else (b, a)
            copy: Disk = old.disk.reopened()
            assert await E(ref).note(2) == 2
            await trio.sleep(1)
            old.crash()
            await trio.sleep(100)
            (session,) = other.peer.sessions
            await old.start(copy)
            (returned,) = old.peer.sessions
            await trio.sleep(100)
            assert isinstance(session.ended, RolledBack), session.ended
            assert isinstance(returned.ended, RolledBack), returned.ended
            assert a.peer.sessions == b.peer.sessions == []

    run()


@trio_test
async def test_one_baggage_is_for_one_peer_at_a_time() -> None:
    network = MemoryNetwork()
    baggage = durable.MemoryBaggage()
    async with open_peer([MemoryNetlayer(network, "a")], baggage=baggage):
        with pytest.raises(RuntimeError, match="one at a time"):
            async with open_peer([MemoryNetlayer(network, "b")], baggage=baggage):
                pass
    async with open_peer([MemoryNetlayer(network, "a")], baggage=baggage) as again:
        again.check()


@trio_test
async def test_ending_a_live_session_of_two_peers_with_baggages() -> None:
    async with two() as (a, b):
        ref = await linked(a, b)
        b.peer.sessions[0].end("done")
        with pytest.raises(ocapn.SessionEnded, match="done"):
            await E(ref).note(1)
        await trio.sleep(10)
        assert a.peer.sessions == b.peer.sessions == []
        for process in (a, b):
            await process.again()
            assert process.peer.sessions == []
            assert not process.disk._tables["slot"]
            assert not process.disk._tables["outbox"]


def test_a_session_that_was_ended_and_the_next_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end waits for its commit, and so does the start that follows it."""
    written = Commits._written

    def slow(self: Commits, failed: Exception | None) -> None:
        async def later() -> None:
            await trio.sleep(0.01)
            written(self, failed)

        trio.lowlevel.spawn_system_task(later)

    @trio_test
    async def run() -> None:
        async with two() as (a, b):
            await linked(a, b)
            monkeypatch.setattr(Commits, "_written", slow)
            for _ in range(3):
                a.peer.sessions[0].end()
                ref = await a.peer.enliven(b.sturdyref(b"ledger"))
                assert await E(ref).note(1) > 0

    run()
