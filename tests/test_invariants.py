"""The watch over I3, I7, I8 and I9 (`tests.invariants`) finds what it is there to find."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

import durable
import ocapn
from durable.sessions import SessionKeeper
from ocapn import E, Limits, MemoryNetlayer, MemoryNetwork, open_peer
from ocapn.captp.frames import Frames
from ocapn.captp.handoff import HandoffCounts
from ocapn.captp.node import Node, TurnResult
from ocapn.captp.session import Session
from ocapn.captp.tables import Export, Tables
from ocapn.commits import Commits
from ocapn.peer import Peer
from tests.invariants import watching
from tests.peer.support import Box, Echo, far
from tests.restart.support import Ledger, agreed, linked, world
from tests.support import interpreted, trio_test

pytestmark = interpreted

Scenario = Callable[[], None]
Mutant = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(autouse=True)
def invariants() -> None:
    """In place of the one of every test: here each watches by itself."""


def found(scenario: Scenario) -> str:
    """What the watch says of it. What else goes wrong is not of interest."""
    with pytest.raises(AssertionError) as caught, watching(), contextlib.suppress(Exception):
        scenario()
    return str(caught.value)


def is_found(mutant: Mutant, scenario: Scenario, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scenario is in order as it is, and with the mutant it is not."""
    with watching():
        scenario()
    mutant(monkeypatch)
    said = found(scenario)
    assert text in said, said


# What happens


@trio_test
async def many_messages() -> None:
    async with world(check=False) as place:
        a, b = [await place.process(name).start() for name in "ab"]
        ref = await linked(a, b)
        async with trio.open_nursery() as nursery:
            for _ in range(60):
                nursery.start_soon(burst, ref)
        await trio.sleep(1)


async def burst(ref: Any) -> None:
    answers = [E(ref).note(n) for n in range(20)]
    for answer in answers:
        await answer


@trio_test
async def references() -> None:
    """Are sent, held, given back; and a message with one fails to be sent."""
    async with world(check=False) as place:
        a, b = [await place.process(name).start() for name in "ab"]
        ref = await linked(a, b)
        own = a.baggage.provide("ledger", Ledger)
        await E(ref).hold(own)
        with pytest.raises(ocapn.NotPassable):
            await E(ref).hold_and_note([own, own], object())
        await E(ref).hold(own)
        for _ in range(3):
            await E(ref).hold(Ledger())
            await trio.sleep(1)
        await b.close()
        await a.close()


@trio_test
async def memory_alone() -> None:
    network = MemoryNetwork()
    async with (
        open_peer([MemoryNetlayer(network, "a")]) as a,
        open_peer([MemoryNetlayer(network, "b")]) as b,
    ):
        box = await far(b, a, Box())
        for _ in range(3):
            await E(box).put(Echo())
            await trio.sleep(1)


@trio_test
async def a_crash() -> None:
    async with world(check=False) as place:
        a, b = [await place.process(name).start() for name in "ab"]
        ref = await linked(a, b)
        await E(ref).hold(a.baggage.provide("ledger", Ledger))
        await trio.sleep(1)
        await a.again()
        with trio.move_on_after(100):
            await E(a.baggage["holder"].held).hold(a.baggage.provide("another", Ledger))
        await trio.sleep(1)


@trio_test
async def gifts_and_a_crash() -> None:
    async with world(check=False) as place:
        a, b, c = [await place.process(name).start() for name in "abc"]
        to_b = await linked(a, b)
        for number in range(2):
            ledger = c.baggage.provide(f"ledger {number}", Ledger)
            to_c = await a.peer.enliven(c.peer.export(ledger, b"%d" % number))
            await agreed(a, b, c)
            with trio.move_on_after(100):
                await E(to_b).hold_later(to_c)
            await trio.sleep(1)
            await b.again()
            await trio.sleep(1)


@trio_test
async def an_end() -> None:
    """Long ago: its tombstone has gone."""
    async with world(check=False) as place:
        limits = Limits(tombstone_life=100.0)
        a, b = [await place.process(name, limits=limits).start() for name in "ab"]
        await linked(a, b)
        await trio.sleep(1)
        a.peer.sessions[0].end("enough")
        await trio.sleep(200)
        await b.close()
        await a.close()


# Mutants


def sends_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    show = Commits.show

    def hasty(self: Any, result: TurnResult) -> None:
        touched = self._node.take_touched()
        for session in dict.fromkeys([*result.outbound, *touched]):
            session.outbox.release(session.outbox.seal())
            self._flush(session)
        self._node._touched |= touched
        show(self, TurnResult([], result.events))

    patch.setattr(Commits, "show", hasty)


def tells_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    show = Commits.show

    def hasty(self: Commits, result: TurnResult) -> None:
        for tell in result.events:
            tell()
        show(self, TurnResult(result.outbound, []))

    patch.setattr(Commits, "show", hasty)


def acknowledges_what_is_taken(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Frames, "committed", property(lambda self: self.taken))


def resumes_without_a_commit(patch: pytest.MonkeyPatch) -> None:
    async def settled(self: Peer) -> None:
        await trio.lowlevel.checkpoint()

    patch.setattr(Peer, "settled", settled)


def claims_what_is_not_committed(patch: pytest.MonkeyPatch) -> None:
    claims = Frames.claims

    def forged(self: Frames) -> Any:
        self.sent += 1
        try:
            return claims(self)
        finally:
            self.sent -= 1

    patch.setattr(Frames, "committed_sent", property(lambda self: self.sent))
    patch.setattr(Frames, "claims", forged)


@pytest.mark.parametrize(
    ("mutant", "scenario", "text"),
    [
        (sends_before_the_commit, many_messages, "is sent, and what came before it is not committed"),
        (sends_before_the_commit, many_messages, "are committed"),
        (tells_before_the_commit, many_messages, "the application is told of what is not committed"),
        (acknowledges_what_is_taken, many_messages, "is acknowledged, and"),
        (resumes_without_a_commit, a_crash, "op:resume-confirm is sent, and its epoch"),
        (claims_what_is_not_committed, a_crash, "are claimed, and"),
    ],
)
def test_i3(mutant: Mutant, scenario: Scenario, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    is_found(mutant, scenario, text, monkeypatch)


def drops_exports_twice(patch: pytest.MonkeyPatch) -> None:
    drop = Tables.drop_export

    def twice(self: Tables, slot: Export, count: int) -> None:
        drop(self, slot, min(2 * count, slot.count))

    patch.setattr(Tables, "drop_export", twice)


def counts_exports_twice(patch: pytest.MonkeyPatch) -> None:
    export = Tables.export

    def twice(self: Tables, value: Any, key: int) -> Export:
        slot = export(self, value, key)
        slot.count += 1
        return slot

    patch.setattr(Tables, "export", twice)


def counts_imports_twice(patch: pytest.MonkeyPatch) -> None:
    arrived = Tables.import_slot

    def twice(self: Tables, session: Session, position: int, promise: bool) -> Any:
        slot = arrived(self, session, position, promise)
        slot.count += 1
        return slot

    patch.setattr(Tables, "import_slot", twice)


def forgets_what_is_held(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Session, "_return", lambda self, position, count: None)


@pytest.mark.parametrize(
    ("mutant", "scenario", "text"),
    [
        (drops_exports_twice, references, "the tables say 0"),
        (counts_exports_twice, references, "references that were sent and not returned"),
        (counts_exports_twice, memory_alone, "references that were sent and not returned"),
        (counts_imports_twice, references, "times, and is returned"),
        (counts_imports_twice, memory_alone, "times, and is returned"),
        (forgets_what_is_held, references, "references that came and were not returned"),
        (forgets_what_is_held, memory_alone, "references that came and were not returned"),
    ],
)
def test_i7(mutant: Mutant, scenario: Scenario, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    is_found(mutant, scenario, text, monkeypatch)


def on_restart(change: Callable[[Session], None]) -> Mutant:
    def mutant(patch: pytest.MonkeyPatch) -> None:
        restored = Session.restored

        def changed(self: Session, frames: Frames, since: float) -> None:
            change(self)
            restored(self, frames, since)

        patch.setattr(Session, "restored", changed)

    return mutant


def begins_exports_again(session: Session) -> None:
    session.tables.next_export = 1


def begins_before_the_last(session: Session) -> None:
    """Of the three last exports at least one is still there."""
    session.tables.next_export -= 3


def begins_handoffs_again(session: Session) -> None:
    session.handoffs = HandoffCounts()


def frees_and_uses_again(patch: pytest.MonkeyPatch) -> None:
    """What was freed is the next to be given."""
    drop = Tables.drop_export

    def again(self: Tables, slot: Export, count: int) -> None:
        drop(self, slot, count)
        self.next_export = min({*range(1, self.next_export + 1)} - self.exports.keys())

    patch.setattr(Tables, "drop_export", again)


def asks_again(patch: pytest.MonkeyPatch) -> None:
    deliver = Session.deliver

    def again(self: Session, *args: Any, **options: Any) -> Any:
        self.tables.next_question = 1
        return deliver(self, *args, **options)

    patch.setattr(Session, "deliver", again)


@pytest.mark.parametrize(
    ("mutant", "scenario", "text"),
    [
        (on_restart(begins_exports_again), a_crash, "was freed, and is sent again"),
        (on_restart(begins_before_the_last), a_crash, "is given to a second thing"),
        (on_restart(begins_handoffs_again), gifts_and_a_crash, "handoff count 0 is used again"),
        (frees_and_uses_again, references, "was freed, and is sent again"),
        (frees_and_uses_again, memory_alone, "was freed, and is sent again"),
        (asks_again, many_messages, "is asked for again, and was not released"),
        (asks_again, memory_alone, "I8: "),
    ],
)
def test_i8(mutant: Mutant, scenario: Scenario, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    is_found(mutant, scenario, text, monkeypatch)


def keeps_records(patch: pytest.MonkeyPatch) -> None:
    """The record of a session that is over stays."""
    remove = durable.Baggage.remove

    def not_quite(self: durable.Baggage, table: str, key: bytes) -> None:
        if table != "session":
            remove(self, table, key)

    patch.setattr(durable.Baggage, "remove", not_quite)


def keeps_tombstones(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SessionKeeper, "forget", lambda self, session_id: None)


def never_expires(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Node, "expire", lambda self: None)


def notes_keys(patch: pytest.MonkeyPatch) -> None:
    """A key is written down in a place of its own."""
    save = SessionKeeper._save

    def noted(self: Any, session: Session) -> None:
        save(self, session)
        self._baggage.put("node", b"last key", session.key.seed)

    patch.setattr(SessionKeeper, "_save", noted)


@pytest.mark.parametrize(
    ("mutant", "text"),
    [
        (keeps_records, "a session that has ended is kept, with its key"),
        (keeps_tombstones, "a tombstone is on disk that the peer has erased"),
        (never_expires, "a tombstone is kept beyond its time"),
        (notes_keys, "a key is in the table node, in no row of its session"),
    ],
)
def test_i9(mutant: Mutant, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    is_found(mutant, an_end, text, monkeypatch)


@pytest.mark.parametrize("leaves", [False, True])
def test_i9_in_files(leaves: bool, tmp_path: Path) -> None:
    """A key that is erased is in no file of a directory that was closed."""

    @trio_test
    async def run() -> None:
        network = MemoryNetwork()
        limits = Limits(tombstone_life=10.0)
        with durable.open_baggage(tmp_path / "baggage") as baggage:
            baggage.blocks = False
            async with (
                open_peer([MemoryNetlayer(network, "a")], baggage=baggage, limits=limits) as a,
                open_peer([MemoryNetlayer(network, "b")]) as b,
            ):
                assert await E(await far(b, a, Echo())).echo(1) == 1
                (session,) = a.sessions
                await trio.sleep(1)
                assert session.durable
                seed = session._core.key.seed
                session.end()
                await trio.sleep(100)
                assert not a.node._tombstones
            if leaves:
                (tmp_path / "baggage" / "state.db-backup").write_bytes(b"..." + seed + b"...")

    if leaves:
        assert "state.db-backup has the key of a session that is erased" in found(run)
    else:
        with watching():
            run()
