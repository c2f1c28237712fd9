"""What a restart finds of sessions: the list, how it compares with live peers, and what cannot be used."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

import durable
from durable import inspection
from durable.records import decode_row, encode, encode_flat
from durable.sessions import _ABOUT, _ASIDE, _MAX_ASIDE
from ocapn import (
    Change,
    ConnectFailed,
    E,
    Lease,
    MemoryNetlayer,
    MemoryNetwork,
    Peer,
    PeerLocator,
    Reconnect,
    RestoredSession,
    SessionEnded,
    SturdyRef,
    open_peer,
    send_only,
)
from tests.peer.support import Box, Recorder, between
from tests.peer.test_durable import agreed
from tests.peer.test_supervision import peer, until
from tests.support import trio_test

B = PeerLocator("memory", "b")


@asynccontextmanager
async def kept(
    network: MemoryNetwork, name: str, store: durable.MemoryStore, **options: Any
) -> AsyncIterator[Peer]:
    """A peer with a baggage in `store`."""
    baggage = durable.Baggage(store)
    baggage.blocks = False
    async with open_peer([MemoryNetlayer(network, name)], baggage=baggage, **options) as one:
        yield one


class Clock:
    """The wall clock, which jumps. It goes with trio's."""

    def __init__(self) -> None:
        self.offset = 1_800_000_000.0

    def time(self) -> float:
        return self.offset + trio.current_time()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "time", clock.time)
    return clock


async def one_life(network: MemoryNetwork, store: durable.MemoryStore, *, seconds: float = 100.0) -> None:
    """A peer with a durable session with b, in which so much time goes by, and three messages are not acknowledged."""
    async with kept(network, "a", store) as a:
        ref = await far_of(a)
        await agreed(a)
        await trio.sleep(seconds)
        await a.settled()
        (link,) = network.links_between("a", "b")
        link.hold()
        for number in range(3):
            send_only(ref).note(number)
        await a.settled()
    link.release()
    await trio.sleep(0.001)


async def far_of(a: Peer) -> Any:
    return await a.enliven(SWISS)


SWISS = "ocapn://b.memory/s/" + "A" * 42 + "A"


@asynccontextmanager
async def other(network: MemoryNetwork, **options: Any) -> AsyncIterator[tuple[Peer, Recorder]]:
    """The peer b, with an object that a reaches as SWISS."""
    async with peer(network, "b", **options) as b:
        recorder = Recorder()
        b.export(recorder, SturdyRef.parse(SWISS).swiss)
        yield b, recorder


def test_restored_sessions_are_offered_as_a_list(clock: Clock) -> None:
    @trio_test
    async def check() -> None:
        network, store = MemoryNetwork(), durable.MemoryStore()
        async with other(network) as (_, recorder):
            await one_life(network, store, seconds=1000.0)
            await trio.sleep(500.0)
            async with kept(network, "a", store.reopened()) as a:
                (restored,) = a.restored
                assert restored.peer == B
                assert restored.outbox == 3
                assert 1439.0 <= restored.age <= 1502.0
                assert 500.0 <= restored.silent <= 561.0
                assert restored.session is a.sessions[0]
                assert "stored=" not in repr(restored)
                await trio.sleep(1.0)
                assert recorder.seen == [0, 1, 2]
                assert not await restored.reconcile()
        async with kept(network, "c", durable.MemoryStore()) as c:
            assert c.restored == ()
            assert list(c.set_aside) == []

    check()


@pytest.mark.parametrize("jump", [-1e8, 1e8])
def test_a_clock_that_jumps_does_no_harm(clock: Clock, jump: float) -> None:
    """Set back, it takes nothing from what a session may last; set forward, somebody is asked once more."""
    asked: list[str] = []

    async def yes(session: object, why: str) -> bool:
        asked.append(why)
        return True

    @trio_test
    async def check() -> None:
        network, store = MemoryNetwork(), durable.MemoryStore()
        async with other(network) as (_, recorder):
            await one_life(network, store)
            clock.offset += jump
            lease = Lease(life=1000.0, on_reauthorise=yes)
            async with kept(network, "a", store.reopened(), lease=lease) as a:
                (restored,) = a.restored
                assert restored.age >= 0.0
                await trio.sleep(10.0)
                assert recorder.seen == [0, 1, 2]
                assert asked == (["life"] if jump > 0 else [])
                assert a.sessions[0].status == "live"

    check()


def test_a_lease_goes_on_over_a_restart(clock: Clock) -> None:
    @trio_test
    async def check() -> None:
        network, store = MemoryNetwork(), durable.MemoryStore()
        async with other(network):
            await one_life(network, store, seconds=600.0)
            await trio.sleep(300.0)
            async with kept(network, "a", store.reopened(), lease=Lease(life=1000.0)) as a:
                began = trio.current_time()
                connection = await a.connect(B, Reconnect())
                await until(connection, "expired")
                assert 30.0 < trio.current_time() - began < 170.0

    check()


# Reconciling


@trio_test
async def test_what_differs_is_said_and_for_the_application_to_judge() -> None:
    network, store = MemoryNetwork(), durable.MemoryStore()
    async with other(network):
        await one_life(network, store)
    async with kept(network, "a", store.reopened()) as a:
        (restored,) = a.restored
        with trio.move_on_after(10.0) as waiting:
            await restored.reconcile()  # nobody is there
        assert waiting.cancelled_caught
    store = store.reopened()
    async with (
        peer(network, "b", durable="never") as b,
        kept(network, "a", store) as a,
    ):
        (restored,) = a.restored
        await b.connect(a.locator())  # it has forgotten everything
        difference = await restored.reconcile()
        assert difference
        assert difference.session is not restored.session
        assert difference.session.location == B
        assert {change.what for change in difference.changes} == {"key", "limits", "durable"}
        assert Change("durable", True, False) in difference.changes
        difference.accept()
        assert not await restored.reconcile()
        difference.refuse("you are another")
        assert str(difference.session.ended) == "you are another"
        with pytest.raises(SessionEnded):
            difference.accept()


def test_hints_that_have_moved_are_a_difference() -> None:
    @trio_test
    async def check() -> None:
        network, store = MemoryNetwork(), durable.MemoryStore()
        async with other(network):
            await one_life(network, store)
            async with kept(network, "a", store.reopened()) as a:
                (restored,) = a.restored
                await trio.sleep(1.0)
                restored.session._core.moved({"host": "elsewhere"})
                assert (await restored.reconcile()).changes == (Change("hints", {}, {"host": "elsewhere"}),)

    check()


# What cannot be used


def rows(store: durable.MemoryStore, table: str) -> dict[bytes, bytes]:
    return store._tables[table]


def session_row(store: durable.MemoryStore, change: Callable[[list[Any]], Any]) -> None:
    ((key, data),) = rows(store, "session").items()
    row = decode_row(data, "session")
    rows(store, "session")[key] = encode(change(row))


def other_version(store: durable.MemoryStore) -> None:
    ((key, data),) = [(key, data) for key, data in rows(store, "node").items() if key.startswith(_ABOUT)]
    rows(store, "node")[key] = encode([99, *decode_row(data, "node")[1:]])


def no_about(store: durable.MemoryStore) -> None:
    for key in [key for key in rows(store, "node") if key.startswith(_ABOUT)]:
        del rows(store, "node")[key]


def no_counts(store: durable.MemoryStore) -> None:
    rows(store, "progress").clear()


def odd_counts(store: durable.MemoryStore) -> None:
    for key in rows(store, "progress"):
        rows(store, "progress")[key] = encode_flat([[1, 2], [], [], [], 0])


def fewer_frames(store: durable.MemoryStore) -> None:
    del rows(store, "outbox")[max(rows(store, "outbox"))]


def torn_frames(store: durable.MemoryStore) -> None:
    last = max(rows(store, "outbox"))
    rows(store, "outbox")[last] = rows(store, "outbox")[last][:-1]


def not_cbor(store: durable.MemoryStore) -> None:
    for key in rows(store, "session"):
        rows(store, "session")[key] = b"\xff\xff"


def later_version_of_another_layout(store: durable.MemoryStore) -> None:
    other_version(store)
    session_row(store, lambda row: {"another": "layout"})


def huge_times(store: durable.MemoryStore) -> None:
    ((key, _),) = [(key, data) for key, data in rows(store, "node").items() if key.startswith(_ABOUT)]
    rows(store, "node")[key] = encode([1, 10**400, 0, 0])


def odd_terms(store: durable.MemoryStore) -> None:
    session_row(store, lambda row: [*row[:5], ["x", 5, None]])


def odd_hints(store: durable.MemoryStore) -> None:
    session_row(store, lambda row: [*row[:2], ["memory", "b", [[1]]], *row[3:]])


def odd_export(store: durable.MemoryStore) -> None:
    """Found out only once all sessions were read."""
    (sid,) = rows(store, "session")
    rows(store, "slot")[sid + b"e" + (1).to_bytes(8, "big")] = encode(5)


UNUSABLE: dict[str, tuple[Callable[[durable.MemoryStore], None], str]] = {
    "unknown version": (other_version, "version 99, and this program reads 1"),
    "no times": (no_about, "not known when it began"),
    "a later layout": (later_version_of_another_layout, "version 99, and this program reads 1"),
    "huge times": (huge_times, "a count, a position or a time is none"),
    "odd terms": (odd_terms, "a count, a position or a time is none"),
    "odd hints": (odd_hints, "AttributeError: 'list' object has no attribute"),
    "an odd export": (odd_export, "a record has not the shape of its version (TypeError: cannot unpack"),
    "wrong key": (
        lambda store: session_row(store, lambda row: [bytes(32), *row[1:]]),
        "its keys are those of another session",
    ),
    "a key of the wrong length": (
        lambda store: session_row(store, lambda row: [b"short", *row[1:]]),
        "ValueError: The seed must be exactly 32 bytes long",
    ),
    "a field too few": (
        lambda store: session_row(store, lambda row: row[:-1]),
        "ValueError: not enough values",
    ),
    "a locator that is none": (
        lambda store: session_row(store, lambda row: [*row[:2], ["memory", "", False], *row[3:]]),
        "BadLocator: a designator may not be empty",
    ),
    "no record": (
        lambda store: session_row(store, lambda row: 5),
        "shape of its version (TypeError: cannot unpack",
    ),
    "no cbor": (not_cbor, "malformed value"),
    "no counts": (no_counts, "the counts of a session are missing"),
    "odd counts": (odd_counts, "shape of its version (IndexError: list index out of range)"),
    "fewer frames": (fewer_frames, "frames that the peer has not acknowledged are missing"),
    "a torn frame": (torn_frames, "not a row of frames"),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_a_record_that_cannot_be_used_is_set_aside(what: str, caplog: pytest.LogCaptureFixture) -> None:
    damage, reason = UNUSABLE[what]
    seeds: list[bytes] = []

    @trio_test
    async def check() -> None:
        network, store = MemoryNetwork(), durable.MemoryStore()
        async with other(network) as (_, recorder):
            await one_life(network, store)
            (data,) = rows(store, "session").values()
            seeds.append(decode_row(data, "session")[0])
            damage(store)
            broken = set(rows(store, "session"))
            async with kept(network, "a", store.reopened()) as a:
                assert a.restored == ()
                (aside,) = a.set_aside
                assert {aside.session_id} == broken
                assert reason in aside.reason
                assert aside.peer in (None, "ocapn://b.memory")
                connection = await a.connect(B, Reconnect())
                fresh = await connection.session()
                ref = await far_of(a)
                await E(ref).note("fresh")
                assert recorder.seen[-1:] == ["fresh"]
                await trio.sleep(2000.0)
                assert connection.snapshot().session is fresh, "it begins anew again and again"
                assert [session.location for session in a.sessions] == [B]
                a.check()
                assert not any(key.startswith(_ABOUT + aside.session_id) for key in rows_of(a))
            again = store_of(a).reopened()
            assert not any(
                key.startswith(aside.session_id)
                for table in ("session", "progress", "outbox", "slot", "answer")
                for key in rows(again, table)
            )
            assert not any(
                seeds[0] in value for table in durable.TABLES for value in rows(again, table).values()
            )
            inspection.check(durable.Baggage(again))
            copy = durable.Baggage(again.reopened())
            (told,) = inspection.summary(copy).aside
            assert (told.id, told.reason, told.peer) == (aside.session_id, aside.reason, aside.peer)
            assert inspection.prune(copy, 0.0).aside == [told]
            assert inspection.summary(copy).aside == []
            async with kept(network, "a", again) as a:
                assert list(a.set_aside) == [aside]
                assert len(a.restored) == 1

    check()
    logged = [record for record in caplog.records if "set aside" in record.getMessage()]
    assert [record.levelno for record in logged] == [logging.ERROR]


def store_of(a: Peer) -> durable.MemoryStore:
    store = a.node.keeper._baggage._store  # type: ignore[union-attr]
    assert isinstance(store, durable.MemoryStore)
    return store


def rows_of(a: Peer) -> list[bytes]:
    return list(rows(store_of(a), "node"))


@trio_test
async def test_the_store_s_own_damage_is_not_taken_for_a_session_s() -> None:
    network, store = MemoryNetwork(), durable.MemoryStore()
    async with other(network):
        await one_life(network, store)
    broken = store.reopened()

    def get(table: str, key: bytes) -> bytes | None:
        if table == "progress":
            raise durable.BaggageCorrupt("the row is not what was written", "state.db", table)
        return durable.MemoryStore.get(broken, table, key)

    broken.get = get  # type: ignore[method-assign]
    with pytest.raises(durable.BaggageCorrupt, match="not what was written"):
        async with kept(network, "a", broken):
            pass


@trio_test
async def test_so_many_are_kept_for_inspection_and_no_more() -> None:
    network, store = MemoryNetwork(), durable.MemoryStore()
    async with other(network):
        await one_life(network, store)
    for number in range(_MAX_ASIDE):
        rows(store, "node")[_ASIDE + number.to_bytes(32, "big")] = encode(["why", None, 1000 + number])
    no_counts(store)
    async with kept(network, "a", store.reopened()) as a:
        ids = [aside.session_id for aside in a.set_aside]
        assert len(ids) == _MAX_ASIDE
        assert bytes(32) not in ids


@trio_test
async def test_rows_that_only_help_are_passed_over() -> None:
    network, store = MemoryNetwork(), durable.MemoryStore()
    async with other(network) as (_, recorder):
        await one_life(network, store)
        (sid,) = rows(store, "session")
        for junk in (encode(5), encode([1]), encode([1, 2]), b"\xff\xff"):
            copy = store.reopened()
            for kind in (b"trying/", b"unknown/"):
                rows(copy, "node")[kind + sid] = junk
            rows(copy, "node")[b"tombstone/" + bytes(32)] = encode(5)
            async with kept(MemoryNetwork(), "a", copy) as a:
                assert len(a.restored) == 1
                assert list(a.set_aside) == []
                await a.settled()
                assert b"tombstone/" + bytes(32) not in rows_of(a)
        rows(store, "node")[b"trying/" + sid] = encode(5)
        async with kept(network, "a", store.reopened()) as a:
            await trio.sleep(5.0)
            assert recorder.seen == [0, 1, 2]


@trio_test
async def test_a_session_with_a_short_id_takes_no_other_along() -> None:
    network, store = MemoryNetwork(), durable.MemoryStore()
    async with other(network) as (_, recorder):
        await one_life(network, store)
        rows(store, "session")[b""] = encode(5)
        async with kept(network, "a", store.reopened()) as a:
            assert len(a.restored) == 1
            assert [aside.session_id for aside in a.set_aside] == [b""]
            await trio.sleep(5.0)
            assert recorder.seen == [0, 1, 2]


@trio_test
async def test_reconcile_ends_with_the_peer() -> None:
    network, store = MemoryNetwork(), durable.MemoryStore()
    async with other(network):
        await one_life(network, store)
    errors: list[BaseException] = []

    async def compare(restored: RestoredSession) -> None:
        try:
            await restored.reconcile()
        except (ConnectFailed, SessionEnded) as error:
            errors.append(error)

    async with trio.open_nursery() as nursery, kept(network, "a", store.reopened()) as a:
        nursery.start_soon(compare, a.restored[0])
        await trio.sleep(1.0)
    assert len(errors) == 1


@trio_test
async def test_what_waits_for_a_renewal_is_sent_by_the_next_process() -> None:
    network, store = MemoryNetwork(), durable.MemoryStore()
    async with other(network) as (b, recorder):
        inner = Recorder()
        b.export(Box(inner), b"box")
        lease = Lease(life=100.0, within=1000.0)
        async with kept(network, "a", store, lease=lease) as a:
            ref = await far_of(a)
            box = await a.enliven(SturdyRef(B, b"box"))
            await agreed(a)
            await trio.sleep(110.0)
            assert between(a, b).status == "expired"
            for number in range(3):
                send_only(ref).note(number)
            answer = E(ref).note(3)
            piped = E(box).get()
            for number in range(3):
                send_only(piped).note(number)
            await a.settled()
            assert recorder.seen == []
            copy = store.reopened()  # it is killed here
            assert answer is not None
        async with kept(network, "a", copy):
            await trio.sleep(100.0)
            assert recorder.seen == [0, 1, 2, 3]
            assert inner.seen == [0, 1, 2]
            assert len(rows(copy, "turn")) == 0
