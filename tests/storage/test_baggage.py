"""Storage in a baggage: in the transaction of the turn, there after a restart, and a clock that may be wrong."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio

import durable
import ocapn
from durable.storage import BaggageStorage
from ocapn import (
    E,
    Limits,
    MemoryNetlayer,
    MemoryNetwork,
    Quota,
    RemoteError,
    Storage,
    StorageFailed,
    StorageFull,
    StorageLimits,
    current_storage,
    open_peer,
    send_only,
)
from tests.durable.support import again
from tests.restart.support import Process, linked, world
from tests.storage.test_memory import AMPLE, Clock
from tests.support import trio_test


@durable.kind("tests.storage.shelf", version=1)
@attrs.define
class Shelf(ocapn.Target):
    """Counts its calls in the storage of who calls, and tells each number on."""

    @ocapn.method
    def count(self, ledger: Any) -> int:
        storage = current_storage()
        number = storage.get("count", 0) + 1
        storage.set("count", number, ttl=1e6)
        send_only(ledger).note(number)
        return int(number)

    @ocapn.method
    def put(self, key: str, value: object) -> None:
        current_storage().set(key, value)

    @ocapn.method
    def get(self, key: str) -> object:
        return current_storage().get(key, "nothing")

    @ocapn.method
    def fails(self) -> None:
        """What it does in the transaction is undone, what it does after it is not."""
        with pytest.raises(ZeroDivisionError), baggages[0].transaction():
            self.undone()
        current_storage().set("kept", 1)
        raise ValueError("as it is meant to")

    def undone(self) -> None:
        current_storage().set("undone", 1)
        current_storage().set("count", 5)
        raise ZeroDivisionError


baggages: list[durable.Baggage] = []


@trio_test
async def test_it_is_there_after_a_restart_for_the_peer_that_has_kept_it() -> None:
    network = MemoryNetwork()
    baggage = durable.MemoryBaggage()

    def proved(name: str, **options: Any) -> Any:
        return open_peer([MemoryNetlayer(network, name, authenticates=True)], **options)

    async with proved("a", baggage=baggage) as a, proved("b") as b, proved("c") as c:
        shelf = a.export(Shelf(), b"shelf")
        await E(await b.enliven(shelf)).put("k", {"é": [1, b"x"]})
        await E(await c.enliven(shelf)).put("k", "of c")
        stats = a.storage_stats()
        assert stats is not None
        assert (stats.peers, stats.keys) == (2, 2)
    async with proved("a", baggage=again(baggage)) as a, proved("b") as b, proved("c") as c, proved("d") as d:
        shelf = a.export(Shelf())
        assert await E(await b.enliven(shelf)).get("k") == {"é": [1, b"x"]}
        assert await E(await c.enliven(shelf)).get("k") == "of c"
        assert await E(await d.enliven(shelf)).get("k") == "nothing"


@trio_test
async def test_the_application_does_not_see_it_among_its_keys() -> None:
    baggage = durable.MemoryBaggage()
    baggage["mine"] = 1
    storage = BaggageStorage(baggage)
    storage.set("p", "k", b"1", 10.0, AMPLE)
    assert list(baggage) == ["mine"]
    assert list(baggage.namespace("ocapn.storage")) == []


@trio_test
async def test_a_transaction_that_is_rolled_back_takes_it_along_and_an_error_does_not() -> None:
    network = MemoryNetwork()
    baggage = durable.MemoryBaggage()
    baggages[:] = [baggage]
    async with (
        open_peer([MemoryNetlayer(network, "a", authenticates=True)], baggage=baggage) as a,
        open_peer([MemoryNetlayer(network, "b", authenticates=True)]) as b,
    ):
        shelf = await b.enliven(a.export(Shelf()))
        with pytest.raises(RemoteError, match="as it is meant to"):
            await E(shelf).fails()
        assert await E(shelf).get("undone") == "nothing"
        assert await E(shelf).get("count") == "nothing"
        assert await E(shelf).get("kept") == 1
        stats = a.storage_stats()
        assert stats is not None
        assert (stats.keys, stats.size) == (1, len("kept") + 1)


async def _counts(mode: str, number: int) -> bool:
    """Counts to six, with a crash of who keeps it at a commit; whether there was that commit."""
    crashed = False

    def point(commit: int) -> str | None:
        nonlocal crashed
        if commit != number:
            return None
        crashed = True
        return mode

    async with world() as place:
        a = await place.process("a", authenticates=True).start()
        b = await place.process("b", authenticates=True).start()
        await linked(a, b)
        shelf = b.baggage.provide("shelf", Shelf)
        far = await a.peer.enliven(b.peer.export(shelf, b"shelf"))
        ledger = a.baggage.provide("counts", _ledger)
        await a.peer.settled()
        await b.peer.settled()
        b.disk.commits = 0
        b.disk.point = point
        place.keep_up(b)
        for number_of in range(1, 7):
            assert await E(far).count(ledger) == number_of
        await trio.sleep(60)
        await place.quiet()
        assert ledger.seen == tuple(range(1, 7))
        assert _count_of(b) == 6
        return crashed


def _ledger() -> Any:
    from tests.restart.support import Ledger

    return Ledger()


def _count_of(process: Process) -> object:
    storage = BaggageStorage(process.baggage)
    return Storage(storage, "peer:6:memory1:a", StorageLimits()).get("count")


@pytest.mark.parametrize("mode", ["before", "after"])
def test_a_set_and_a_send_of_one_turn_are_both_there_after_a_crash_or_neither(mode: str) -> None:
    crashes = 0

    @trio_test
    async def run(number: int) -> None:
        nonlocal crashes
        crashes += await _counts(mode, number)

    for number in range(1, 13):
        run(number)
    assert crashes > 6


# Time


def keeping(
    baggage: durable.Baggage, clock: Clock, wall: Clock | None = None, limits: StorageLimits | None = None
) -> BaggageStorage:
    return BaggageStorage(baggage, limits, now=clock.now, wall=(wall or clock).now)


def has_changes(baggage: durable.Baggage) -> bool:
    return baggage.dirty


def test_a_clock_that_jumps_while_the_process_runs_is_not_heeded() -> None:
    clock, wall = Clock(), Clock()
    storage = keeping(durable.MemoryBaggage(), clock, wall)
    wall.time = 1e9
    storage.set("p", "k", b"1", 100.0, AMPLE)
    for jump in (1e9, -5e8, 0.0):
        wall.time += jump
        clock.time += 40
        assert storage.get("p", "k") == b"1"
    clock.time += 101
    assert storage.get("p", "k") is None


DAY = 86_400.0


@pytest.mark.parametrize(
    ("passes", "ttl", "there"),
    [
        (50.0, 100.0, True),
        (150.0, 100.0, False),
        (-1e9, 100.0, True),
        (1e9, 6 * DAY, False),
        (1e9, 8 * DAY, True),  # more than seven days between two processes do not count
        (8 * DAY, 7.5 * DAY, True),
    ],
)
def test_the_time_between_two_processes_counts_within_bounds(passes: float, ttl: float, there: bool) -> None:
    baggage = durable.MemoryBaggage()
    clock, wall = Clock(), Clock()
    wall.time = 1.7e9
    keeping(baggage, clock, wall).set("p", "k", b"1", ttl, AMPLE)
    baggage.flush()
    wall.time += passes
    clock.time = 0.0
    baggage = again(baggage)
    storage = keeping(baggage, clock, wall)
    assert (storage.get("p", "k") is not None) == there
    clock.time += ttl + 1
    assert storage.get("p", "k") is None  # whatever was wrong, it does not stay for ever


def test_a_clock_that_was_set_back_does_not_make_entries_older_at_each_start() -> None:
    baggage = durable.MemoryBaggage()
    clock, wall = Clock(), Clock()
    wall.time = 1.7e9
    keeping(baggage, clock, wall).set("p", "k", b"1", 3 * DAY, AMPLE)
    baggage.flush()
    for _ in range(5):
        wall.time = 1e9
        baggage = again(baggage)
        assert keeping(baggage, clock, wall).list("p", "", None, 1, True) == ([("k", None)], None)


def test_the_clock_goes_on_while_nothing_is_kept_anew() -> None:
    """A process that ran for twenty days, and is started again at once."""
    baggage = durable.MemoryBaggage()
    clock = Clock()
    storage = keeping(baggage, clock)
    storage.set("p", "k", b"1", 30 * DAY, AMPLE)
    for _ in range(20):
        clock.time += DAY
        storage.sweep()
        baggage.flush()
    assert keeping(again(baggage), clock)._time() == pytest.approx(clock.time)


def test_not_every_read_is_a_write_and_not_every_sweep() -> None:
    baggage = durable.MemoryBaggage()
    clock = Clock()
    storage = keeping(baggage, clock)
    storage.set("p", "k", b"1", 100.0, AMPLE)
    storage.set("p", "ever", b"1", None, AMPLE)
    baggage.flush()
    clock.time = 9.0
    assert storage.get("p", "k") == b"1"
    assert storage.get("p", "ever") == b"1"
    storage.sweep()
    assert not has_changes(baggage)
    clock.time = 10.0
    assert storage.get("p", "k") == b"1"
    assert has_changes(baggage)
    clock.time = 109.0
    assert storage.get("p", "k") == b"1"


# Room


def test_nothing_is_evicted() -> None:
    storage = keeping(durable.MemoryBaggage(), Clock(), limits=StorageLimits(keys=2, size=10))
    storage.set("p", "a", b"1", None, AMPLE)
    storage.set("q", "a", b"1", None, AMPLE)
    for peer, key, size in (("r", "b", 1), ("p", "a", 8)):
        with pytest.raises(StorageFull, match="for all callers"):
            storage.set(peer, key, bytes(size), None, AMPLE)
    storage.set("p", "a", bytes(7), None, AMPLE)
    assert storage.get("q", "a") == b"1"


def test_limits_that_were_lowered_let_one_replace_and_shrink() -> None:
    storage = keeping(durable.MemoryBaggage(), Clock())
    for key in ("a", "b", "c"):
        storage.set("p", key, bytes(10), None, AMPLE)
    low = Quota(1, 5)
    storage.set("p", "a", bytes(9), None, low)
    with pytest.raises(StorageFull):
        storage.set("p", "a", bytes(10), None, low)
    with pytest.raises(StorageFull):
        storage.set("p", "d", b"", None, low)


def test_each_change_removes_some_of_what_has_expired() -> None:
    clock = Clock()
    storage = keeping(durable.MemoryBaggage(), clock)
    for number in range(5):
        storage.set("p", f"{number}", b"", 10.0, AMPLE)
    clock.time = 10.0
    for left in (2, 2, 3):
        storage.set("q", f"{storage.stats()}", b"", None, AMPLE)
        assert storage.stats().keys == left


def test_much_that_has_expired_at_once_is_removed_bit_by_bit() -> None:
    baggage = durable.MemoryBaggage()
    clock = Clock()
    storage = keeping(baggage, clock)
    for number in range(450):
        storage.set("p", f"{number}", b"", 10.0, AMPLE)
    clock.time = 10.0
    for left in (250, 50, 0, 0):
        storage.sweep()
        assert storage.stats().keys == left
    baggage.flush()
    rows = baggage.scan("user")
    assert len(rows) == 3  # the clock, the next note, the totals


def test_what_was_read_meanwhile_is_looked_at_again_before_what_ends_later() -> None:
    clock = Clock()
    storage = keeping(durable.MemoryBaggage(), clock)
    storage.set("p", "read", b"", 10.0, AMPLE)
    storage.set("p", "late", b"", 50.0, AMPLE)
    clock.time = 5.0
    storage.get("p", "read")
    clock.time = 10.0
    storage.sweep()
    assert storage.stats().keys == 2
    clock.time = 15.0
    storage.sweep()
    assert storage.stats().keys == 1


def test_what_a_transaction_has_removed_and_given_back_is_removed_later() -> None:
    baggage = durable.MemoryBaggage()
    clock = Clock()
    storage = keeping(baggage, clock)
    storage.set("p", "k", b"", 10.0, AMPLE)
    clock.time = 10.0

    def sweep_and_fail() -> None:
        with baggage.transaction():
            storage.sweep()
            assert storage.stats().keys == 0
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sweep_and_fail()
    assert storage.stats().keys == 1
    storage.sweep()
    assert storage.stats().keys == 0


@trio_test
async def test_a_peer_with_a_quota_in_its_baggage() -> None:
    network = MemoryNetwork()
    limits = Limits(storage=StorageLimits(peer_keys=1))
    async with (
        open_peer(
            [MemoryNetlayer(network, "a", authenticates=True)], baggage=durable.MemoryBaggage(), limits=limits
        ) as a,
        open_peer([MemoryNetlayer(network, "b", authenticates=True)]) as b,
    ):
        shelf = await b.enliven(a.export(Shelf()))
        await E(shelf).put("k", 1)
        with pytest.raises(RemoteError, match="the caller may keep 1 keys"):
            await E(shelf).put("l", 1)
        assert await E(shelf).get("k") == 1


def test_100_000_keys_in_pages_while_they_change() -> None:
    baggage = durable.MemoryBaggage()
    storage = keeping(baggage, Clock(), limits=StorageLimits(keys=200_000))
    stay = [f"{number:06}" for number in range(0, 200_000, 2)]
    for first in range(0, len(stay), 1000):
        storage.set_many("p", dict.fromkeys(stay[first : first + 1000], b"\x01"), None, AMPLE)
        baggage.flush()
    found: list[str] = []
    after = None
    for page in range(1000):
        entries, after = storage.list("p", "", after, 1000, True)
        found += [key for key, _ in entries]
        if after is None:
            break
        for number in (1, page * 2001 + 2, 199_999):
            storage.set("p", f"{number | 1:06}", b"", None, AMPLE)
        assert storage.delete("p", "000001")
    assert [key for key in found if int(key) % 2 == 0] == stay
    assert len(set(found)) == len(found)
    assert len(found) > len(stay)


def test_what_cannot_be_stored_leaves_nothing() -> None:
    """A value that the baggage does not take, though the limits of storage do."""
    baggage = durable.MemoryBaggage(max_value=4096)
    limits = StorageLimits()
    storage = Storage(BaggageStorage(baggage, limits), "peer:x", limits)
    for number in range(5):
        storage.set(f"k{number}", 1, ttl=100)
        with pytest.raises(StorageFailed):
            storage.set(f"k{number}", bytes(5000))
        assert storage.get(f"k{number}") == 1
        assert storage.delete(f"k{number}")
        with pytest.raises(StorageFailed):
            storage.set(f"k{number}", bytes(5000), ttl=1.0)
    stats = BaggageStorage(baggage, limits).stats()
    assert (stats.peers, stats.keys, stats.size) == (0, 0, 0)
    assert list(baggage.namespace("ocapn.storage").namespace("due")) == []


def test_what_has_expired_is_removed_before_anybody_is_refused() -> None:
    now = [0.0]
    limits = StorageLimits(keys=5_000, peer_keys=3_000)
    backend = BaggageStorage(durable.MemoryBaggage(), limits, now=lambda: now[0], wall=lambda: 1e9)
    one, other = Storage(backend, "peer:x", limits), Storage(backend, "peer:y", limits)
    for batch in range(3):
        one.set_many({f"{batch} {number}": 1 for number in range(800)}, ttl=1)
        other.set_many({f"{batch} {number}": 1 for number in range(800)}, ttl=2)
    with pytest.raises(StorageFull):
        other.set_many({f"more {number}": 1 for number in range(800)})
    now[0] = 100.0
    other.set_many({f"new {number}": 1 for number in range(800)})
    one.set("new", 1)
