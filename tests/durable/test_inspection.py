"""What is in a baggage, for people: without kinds, and without a peer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

import durable
import ocapn
from durable import BaggageCorrupt, inspection
from durable.baggage import Baggage
from durable.objects import kinds
from durable.pages import PLACES, SIZE
from durable.records import decode, encode
from durable.store import number_key
from ocapn import E, MemoryNetlayer, MemoryNetwork, open_peer
from tests.support import trio_test


@durable.kind("test.inspection.node", version=2)
@attrs.define
class Node(ocapn.Target):
    """Leads to another, and holds a reference."""

    next: object = None
    ref: object = None

    @ocapn.method
    def echo(self, value: object) -> object:
        return value

    @ocapn.method
    def hold(self, value: object) -> None:
        self.ref = value

    @ocapn.method
    def fresh(self) -> object:
        return Node()


class Echo(ocapn.Target):
    @ocapn.method
    def echo(self, value: object) -> object:
        return value


async def fill(path: Path) -> None:
    """A baggage with a session that was cut with frames on the way, a tombstone, objects, and keys."""
    network = MemoryNetwork()
    with durable.open_baggage(path) as baggage:
        baggage.blocks = False  # the clock knows nothing of threads
        async with open_peer([MemoryNetlayer(network, "kept")], baggage=baggage) as peer:
            async with open_peer([MemoryNetlayer(network, "ended")]) as ended:
                gone: Any = await ended.enliven(peer.export(Node()))
                await E(gone).echo(1)
            root = baggage.provide("root", Node)
            root.next = Node(next=Node())
            peer.export(root, b"swiss number")
            ledger = baggage.namespace("ledger")
            for number in range(3):
                ledger.namespace("inner")[f"{number}"] = {"sum": number, "raw": b"\x00"}
            baggage["values"] = [(1, 2), ocapn.Symbol("s"), {"\0k": 1}, ocapn.Null]
            async with open_peer([MemoryNetlayer(network, "other")]) as other:
                there = await peer.enliven(other.export(Echo()))
                root.ref = there
                held = await other.enliven(ocapn.SturdyRef(peer.locator(), b"swiss number"))
                await E(held).hold(Echo())
                assert await E(there).echo(root.next) is root.next
                network._listeners.clear()  # so that nobody finds the other again
                network.cut("kept", "other")
                (session,) = [one for one in peer.sessions if one.location.designator == "other"]
                while session.status == "live":  # noqa: ASYNC110 - it is the peer that notices the cut
                    await trio.sleep(0.001)
                for number in range(3):
                    ocapn.send_only(there).echo(number)
                await peer.settled()
                rows = {table: baggage.scan(table) for table in durable.TABLES}
    # What `peer` and `other` have told each other as they left is undone: the baggage is as at a crash before.
    with durable.open_baggage(path) as baggage:
        for table in durable.TABLES:
            for key, _ in baggage.scan(table):
                baggage.remove(table, key)
            for key, value in rows[table]:
                baggage.put(table, key, value)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inspection") / "baggage"
    trio.run(fill, path)
    return path


@pytest.fixture
def baggage(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Baggage]:
    """A copy of it in memory, where no kind is known."""
    monkeypatch.setattr("durable.objects.kinds", {})
    copy = durable.MemoryBaggage()
    with durable.open_baggage(filled) as source:
        for table in durable.TABLES:
            for key, value in source.scan(table):
                copy.put(table, key, value)
    copy.flush()
    yield copy
    copy.close()


def test_every_table_is_known() -> None:
    assert frozenset(durable.TABLES) == inspection.KNOWN, "say how the new table names objects"


def test_summary(baggage: Baggage) -> None:
    assert kinds
    found = inspection.summary(baggage)
    (session,) = found.sessions
    assert (session.transport, session.designator) == ("memory", "other")
    assert session.agreed
    assert session.sent - session.acked == session.outbox_frames >= 3
    assert session.outbox_bytes > 30
    assert session.received > 0
    assert session.exports >= 1
    assert session.imports >= 1
    assert 0 < session.cut_at <= time.time()
    (tombstone,) = found.tombstones
    assert tombstone.until > time.time()
    assert found.kinds == {("test.inspection.node", 2): 4}
    assert found.sturdyrefs == 2
    assert {path: keys.count for path, keys in found.namespaces.items()} == {(): 2, ("ledger", "inner"): 3}
    assert sum(keys.size for keys in found.namespaces.values()) > 50


def test_values(baggage: Baggage) -> None:
    values = {(path, key): value for path, key, value in inspection.user_keys(baggage)}
    assert values[("ledger", "inner"), "2"] == {"sum": 2, "raw": b"\x00"}
    assert inspection.mark_of(values[(), "root"]) == ("o", 2)
    pair, symbol, escaped, null = values[(), "values"]
    assert inspection.mark_of(pair) == ("t", [1, 2])
    assert inspection.mark_of(symbol) == ("s", "s")
    assert inspection.mark_of(escaped) is None
    assert inspection.fields(escaped) == {"\0k": 1}
    assert inspection.mark_of(null) == ("n", None)
    assert b"swiss number" in [ref.swiss for ref in inspection.sturdyrefs(baggage)]


def test_it_is_whole(baggage: Baggage) -> None:
    rows = sum(len(baggage.scan(table)) for table in durable.TABLES)
    assert inspection.check(baggage) == rows == baggage.verify()
    empty = durable.MemoryBaggage()
    assert inspection.check(empty) == 0
    assert inspection.summary(empty) == inspection.Summary()


def test_files(filled: Path, tmp_path: Path) -> None:
    assert inspection.is_baggage(filled)
    assert not inspection.is_baggage(tmp_path)
    assert not inspection.is_baggage(tmp_path / "nosuch")
    assert {"LOCK", "header.cbor", "state.db"} <= inspection.files(filled).keys()


def change(
    table: str, change: Callable[[Any], Any], which: int = 0
) -> Callable[[Baggage], tuple[str, bytes]]:
    """Has a row hold something else, or nothing."""

    def damage(baggage: Baggage) -> tuple[str, bytes]:
        key, data = baggage.scan(table)[which]
        raw = table == "outbox"
        value = change(data if raw else decode(data))
        if value is None:
            baggage.remove(table, key)
        else:
            baggage.put(table, key, value if raw else encode(value))
        return table, key

    return damage


def add(table: str, key: bytes, value: object) -> Callable[[Baggage], tuple[str, bytes]]:
    def damage(baggage: Baggage) -> tuple[str, bytes]:
        baggage.put(table, key, encode(value))
        return table, key

    return damage


def fewer_frames(which: int, blamed: tuple[str, int]) -> Callable[[Baggage], tuple[str, bytes]]:
    def damage(baggage: Baggage) -> tuple[str, bytes]:
        table, number = blamed
        key = baggage.scan(table)[number][0]
        baggage.remove("outbox", baggage.scan("outbox")[which][0])
        return table, key

    return damage


def first_import(entry: object) -> Callable[[Baggage], tuple[str, bytes]]:
    """Has the first import that durable objects hold be kept as something else."""

    def damage(baggage: Baggage) -> tuple[str, bytes]:
        for key, data in baggage.scan("slot"):
            positions, said = decode(data)
            for i, one in enumerate(said):
                if key[32:33] == b"I" and type(one) is list:
                    said[i] = entry
                    baggage.put("slot", key, encode([positions, said]))
                    return "slot", key
        raise AssertionError("no import is held")

    return damage


def fewer_counts(baggage: Baggage) -> tuple[str, bytes]:
    ((key, _),) = baggage.scan("progress")
    baggage.remove("progress", key)
    return "session", key


def altered_frame(baggage: Baggage) -> tuple[str, bytes]:
    key, data = baggage.scan("outbox")[0]
    baggage.put("outbox", key, data[:-1] + bytes([data[-1] ^ 1]))
    return "session", key[:32]


def unnamed(number: int) -> Callable[[Baggage], tuple[str, bytes]]:
    """Takes an object away that another names."""

    def damage(baggage: Baggage) -> tuple[str, bytes]:
        baggage.remove("object", number.to_bytes(8, "big"))
        return "object", (number - 1).to_bytes(8, "big")

    return damage


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (fewer_frames(-1, ("session", 0)), "the last 3 are missing"),
        (fewer_frames(0, ("outbox", 1)), "of the session should stand here"),
        (change("outbox", lambda data: data + b"x", 1), "not a row of frames"),
        (change("outbox", lambda data: b""), "not a row of frames"),
        (altered_frame, "its frames are not those that were sent"),
        (change("slot", lambda row: [row[0], row[1][1:]]), "not a page of slots"),
        (change("slot", lambda row: [[99, *row[0][1:]], row[1]]), "not a page of slots"),
        (change("slot", lambda row: [[row[0][0], *row[0]], [0, *row[1]]]), "not a page of slots"),
        (change("slot", lambda row: [[], []]), "not a page of slots"),
        (change("slot", lambda row: row[0]), "not a page of slots"),
        (first_import(True), "not the entry of an import"),
        (first_import([1, False]), "not the entry of an import"),
        (first_import([1, False, 7]), "it miscounts the durable objects"),
        (first_import(1), "it miscounts the durable objects"),
        (change("session", lambda row: row[:3]), "not the row of a session"),
        (change("progress", lambda row: row[:3]), "not the counts of a session"),
        (change("progress", lambda row: [row[0][1:], *row[1:]]), "not the counts of a session"),
        (fewer_counts, "its counts are missing"),
        (add("progress", bytes(32), [[1, 1, 1, 1, 1], [], [], [], 0]), "it belongs to no session"),
        (change("session", lambda row: None), "it belongs to no session"),
        (change("object", lambda row: row[:2]), "not the row of a durable object"),
        (unnamed(4), "it names the durable object 4, which is not there"),
        (add("slot", bytes(41), [1]), "it belongs to no session"),
        (add("answer", b"x", [1]), "it belongs to no session"),
        (add("user", b"x", 1), "not the key of an application"),
        (add("user", b"n\0\0\0\xffx", 1), "not the key of an application"),
        (add("user", b"k\xff", 1), "not the key of an application"),
        (add("user", b"kx", [{"a": {"\0o": 77}}]), "it names the durable object 77"),
        (add("swiss", b"x", {"\0o": 77}), "it names the durable object 77"),
        (add("turn", b"x", [77, None, [], False, None]), "it names the durable object 77"),
        (add("turn", b"x", [[3, 1], None, [{"\0o": 77}], False, None]), "it names the durable object 77"),
        (add("turn", b"x", [True, None, [], False, None]), "it does not begin with the number of an object"),
        (add("promise", b"x", [None, None, None, None]), "it does not begin with the number of an object"),
        (add("gift", b"x", ["no"]), "it does not begin with the number of an object"),
        (add("node", b"next-object", 4), "it would give the number of an object to another"),
        (add("node", b"tombstone/x", 4), "not the row of a tombstone"),
    ],
)
def test_what_is_wrong_is_named(
    baggage: Baggage, damage: Callable[[Baggage], tuple[str, bytes]], why: str
) -> None:
    table, key = damage(baggage)
    with pytest.raises(BaggageCorrupt, match=why) as caught:
        inspection.check(baggage)
    if table != "session" or "belongs" not in why:
        assert caught.value.row == durable.store.row_name(key)
        assert caught.value.table == table


def test_a_slot_of_no_kind(baggage: Baggage) -> None:
    (session,) = inspection.sessions(baggage)
    for key in (session.id + b"z" + bytes(8), session.id + b"e"):
        baggage.put("slot", key, encode([1]))
        with pytest.raises(BaggageCorrupt, match="not the key of a slot"):
            inspection.check(baggage)
        baggage.remove("slot", key)
    assert inspection.check(baggage)


@pytest.mark.parametrize("kind", ["export", "answer"])
def test_a_slot_is_in_a_page_or_has_a_row(baggage: Baggage, kind: str) -> None:
    (session,) = inspection.sessions(baggage)
    table, letter = PLACES[kind]
    key = session.id + letter.lower() + number_key(1 << 40)
    baggage.put(table, key, encode([None]))
    assert inspection.check(baggage)
    page = session.id + letter + number_key((1 << 40) // SIZE)
    baggage.put(table, page, encode([[1 << 40], [0]]))
    with pytest.raises(BaggageCorrupt, match=f"the {kind} is in a page as well") as caught:
        inspection.check(baggage)
    assert caught.value.row == durable.store.row_name(key)


@trio_test
async def test_what_can_be_stored_passes_the_check() -> None:
    deep: Any = ()
    with durable.MemoryBaggage() as baggage:
        async with open_peer([MemoryNetlayer(MemoryNetwork(), "a")], baggage=baggage):
            node = baggage.provide("node", Node)
            try:
                while True:
                    node.next = deep
                    deep = (deep,)
            except durable.NotStorable:
                pass
        assert inspection.check(baggage)


# Pruning


def test_nothing_is_pruned_that_something_leads_to(baggage: Baggage) -> None:
    before = {table: baggage.scan(table) for table in durable.TABLES}
    assert inspection.prune(baggage, time.time()) == inspection.Pruned()
    assert {table: baggage.scan(table) for table in durable.TABLES} == before


def test_what_has_expired_and_what_nothing_leads_to_is_pruned(baggage: Baggage) -> None:
    (tombstone,) = inspection.tombstones(baggage)
    later = tombstone.until + 1
    (first, *_) = [ref.swiss for ref in inspection.sturdyrefs(baggage) if ref.swiss != b"swiss number"]
    baggage.remove("swiss", first)  # the only thing that led to object 1
    for dry_run in (True, False, False):
        done = inspection.prune(baggage, later, dry_run=dry_run)
        if dry_run:
            first_done = done
    assert first_done.tombstones == [tombstone]
    assert first_done.objects == {("test.inspection.node", 2): 1}
    assert done == inspection.Pruned()
    assert [one.number for one in inspection.objects(baggage)] == [2, 3, 4]
    assert inspection.check(baggage)


def test_what_a_pruned_object_held_is_held_no_more(baggage: Baggage) -> None:
    baggage.remove("user", b"kroot")
    for table in ("swiss", "slot", "answer", "turn"):
        for key, data in baggage.scan(table):
            if b"b\0o" in data:  # it names an object
                baggage.remove(table, key)
    assert any(type(one) is list for one in imports(baggage))
    done = inspection.prune(baggage, time.time())
    assert done.objects == {("test.inspection.node", 2): 4}
    assert any(type(one) is list and one[2] == 0 for one in imports(baggage))
    assert inspection.check(baggage)


def imports(baggage: Baggage) -> list[Any]:
    return [one for key, data in baggage.scan("slot") if key[32:33] == b"I" for one in decode(data)[1]]


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("user", b"kx", [{"a": {"\0o": 1}}]),
        ("swiss", b"x", {"\0o": 1}),
        ("slot", b"x", [1, 0, {"\0o": 1}]),
        ("answer", b"x", [[1, {"\0o": 1}]]),
        ("promise", b"x", [1, None, None, None]),
        ("turn", b"x", [2, None, [{"\0o": 1}], False, None]),
        ("turn", b"x", [[3, 5], None, [{"\0o": 1}], False, None]),
        ("turn", b"x", [1, None, [], False, None]),
        ("gift", b"x", [1, 0]),
    ],
)
def test_each_of_these_leads_to_an_object(baggage: Baggage, table: str, key: bytes, value: object) -> None:
    for swiss, _ in baggage.scan("swiss"):
        baggage.remove("swiss", swiss)
    gone = inspection.prune(baggage, 0, dry_run=True).objects.total()
    assert gone >= 1
    baggage.put(table, key, encode(value))
    assert inspection.prune(baggage, 0, dry_run=True).objects.total() == gone - 1


def test_objects_that_lead_to_each_other_alone(baggage: Baggage) -> None:
    for number, other in ((8, 9), (9, 8)):
        row = ["test.unknown", 1, {"next": {"\0o": other}}]
        baggage.put("object", number.to_bytes(8, "big"), encode(row))
    assert inspection.prune(baggage, 0).objects == {("test.unknown", 1): 2}


def test_progress_is_told(baggage: Baggage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "_PAGE", 5)
    told: list[tuple[str, int]] = []
    rows = inspection.check(baggage, lambda table, count: told.append((table, count)))
    assert [count for _, count in told] == list(range(5, rows + 1, 5))
    inspection.prune(baggage, 0, dry_run=True, progress=lambda table, count: told.append((table, count)))
    assert len(told) == 2 * (rows // 5)


@trio_test
async def test_a_peer_goes_on_with_what_was_pruned(filled: Path, tmp_path: Path) -> None:
    copy = durable.MemoryBaggage()
    with durable.open_baggage(filled) as source:
        for table in durable.TABLES:
            for key, value in source.scan(table):
                copy.put(table, key, value)
    inspection.prune(copy, time.time())
    async with open_peer([MemoryNetlayer(MemoryNetwork(), "kept")], baggage=copy) as peer:
        root = copy["root"]
        assert root.next.next.next is None
        (session,) = peer.sessions
        assert session.status == "suspended"
        await trio.lowlevel.checkpoint()
