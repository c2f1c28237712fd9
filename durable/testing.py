"""Checks for whoever writes a store."""

from __future__ import annotations

import threading
from collections.abc import Callable

from durable.errors import BaggageFailed
from durable.store import TABLES, Store


def check_store(make_store: Callable[[], Store], reopen: Callable[[Store], Store] | None = None) -> None:
    """Raises AssertionError where a store is not what `durable.store.Store` says.

    `make_store` makes a new, empty store each time. `reopen` opens again what a store held that was not closed, as
    after a crash: whatever was committed must be there. The stores made are closed.
    """
    for check in (_identity, _rows, _order, _atomic, _threads, _tables, _sizes, _closing):
        store = make_store()
        try:
            check(store)
        finally:
            store.close()
    store, other = make_store(), make_store()
    try:
        _expect(store.store_id != other.store_id, "two stores have the same id")
    finally:
        store.close()
        other.close()
    if reopen is not None:
        _reopening(make_store(), reopen)


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


def _identity(store: Store) -> None:
    _expect(len(store.store_id) == 32, "store_id has not 32 bytes")
    _expect(store.verify() == 0, "a new store is not empty")


def _rows(store: Store) -> None:
    store.commit(
        {("user", b"k"): b"1", ("node", b"k"): b"2", ("user", b""): b"", ("user", b"\x00\xff"): b"\x00"}
    )
    _expect(store.get("user", b"k") == b"1", "a row reads differently from what was committed")
    _expect(store.get("node", b"k") == b"2", "tables are not apart")
    _expect(store.get("object", b"k") is None, "a row that was never written is there")
    _expect(store.get("user", b"") == b"", "an empty key or an empty value is lost")
    _expect(store.verify() == 4, "verify miscounts")
    store.commit({("user", b"k"): b"3", ("node", b"k"): None, ("slot", b"absent"): None})
    _expect(store.get("user", b"k") == b"3", "a row is not replaced")
    _expect(store.get("node", b"k") is None, "a row is not removed")
    store.commit({})
    store.scrub()
    _expect(
        store.scan("user") == [(b"", b""), (b"\x00\xff", b"\x00"), (b"k", b"3")],
        "scrub or an empty commit changed rows",
    )
    _expect(store.verify() == 3, "verify miscounts after a removal")


def _order(store: Store) -> None:
    keys = [
        b"",
        b"\x00",
        b"a",
        b"a\x00",
        b"a\xff",
        b"a\xff\xff",
        b"b",
        b"\xfe",
        b"\xff",
        b"\xff\x00",
        b"\xff\xff",
    ]
    store.commit({("user", key): key for key in reversed(keys)})
    _expect([key for key, _ in store.scan("user")] == keys, "scan is not in the order of keys")
    for prefix in (b"", b"a", b"a\xff", b"\xff", b"\xff\xff", b"c"):
        for after in (None, b"", b"a", b"a\x01", b"\xff", b"\xff\xff\xff"):
            for limit in (None, 0, 1, 3, 100):
                wanted = [key for key in keys if key.startswith(prefix) and (after is None or key > after)][
                    :limit
                ]
                found = store.scan("user", prefix, after, limit)
                _expect(
                    found == [(key, key) for key in wanted], f"scan({prefix!r}, {after!r}, {limit}) is wrong"
                )


def _atomic(store: Store) -> None:
    changes: dict[tuple[str, bytes], bytes | None] = {("user", b"a"): b"1"}
    store.commit(changes)
    changes["user", b"a"] = b"2"
    changes["user", b"b"] = b"2"
    _expect(store.scan("user") == [(b"a", b"1")], "the store holds on to the mapping that was committed")


def _threads(store: Store) -> None:
    """A reader sees whole commits, while another thread makes them."""
    failures: list[BaseException] = []

    def commits() -> None:
        try:
            for number in range(50):
                value = b"%d" % number
                store.commit({("user", b"a"): value, ("user", b"b"): value})
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=commits)
    thread.start()
    while thread.is_alive():
        rows = dict(store.scan("user"))
        _expect(len(set(rows.values())) < 2 and len(rows) != 1, "a read shows part of a commit")
    thread.join()
    _expect(not failures, f"a commit in another thread raised {failures}")
    _expect(store.get("user", b"a") == b"49", "commits are out of order")


def _tables(store: Store) -> None:
    for table in TABLES:
        store.commit({(table, b"k"): table.encode()})
    for table in TABLES:
        _expect(store.scan(table) == [(b"k", table.encode())], f"table {table} does not keep its row")
    calls: list[Callable[[], object]] = [
        lambda: store.get("nonesuch", b"k"),
        lambda: store.scan("nonesuch"),
        lambda: store.commit({("user", b"k"): b"changed", ("nonesuch", b"k"): b"1"}),
    ]
    for call in calls:
        _raises(ValueError, call, "a table that is not in TABLES is taken")
    _expect(store.get("user", b"k") == b"user", "a commit that was refused has changed something")
    store.commit({("user", b"k"): b"later"})


def _sizes(store: Store) -> None:
    for size in (100, 5_000, 3 << 20):
        store.commit(
            {("user", b"%d" % size): bytes([size % 256]) * size, ("user", bytes([size % 256]) * 5_000): b"k"}
        )
    for size in (100, 5_000, 3 << 20):
        _expect(
            store.get("user", b"%d" % size) == bytes([size % 256]) * size,
            f"a value of {size:,} bytes is lost",
        )
        _expect(store.get("user", bytes([size % 256]) * 5_000) == b"k", "a long key is lost")
    store.commit({("outbox", b"%06d" % number): b"x" for number in range(3_000)})
    _expect(len(store.scan("outbox")) == 3_000, "a commit of 3,000 rows is lost")
    _expect(store.verify() == 3_006, "verify miscounts many rows")


def _closing(store: Store) -> None:
    store.close()
    store.close()
    calls: list[Callable[[], object]] = [
        lambda: store.get("user", b""),
        lambda: store.scan("user"),
        lambda: store.commit({("user", b""): b""}),
        store.scrub,
        store.verify,
    ]
    for call in calls:
        _raises(BaggageFailed, call, "a closed store answers")


def _reopening(store: Store, reopen: Callable[[Store], Store]) -> None:
    try:
        identity = store.store_id
        for number in range(5):
            store.commit({("user", b"%d" % number): b"1", ("user", b"last"): b"%d" % number})
            store = reopen(store)
            _expect(store.store_id == identity, "the store's id changes when it is opened again")
            _expect(
                store.get("user", b"last") == b"%d" % number,
                "a commit is lost when the store is opened again",
            )
            _expect(store.verify() == number + 2, "rows are lost when the store is opened again")
    finally:
        store.close()


def _raises(kind: type[BaseException], call: Callable[[], object], what: str) -> None:
    try:
        call()
    except kind:
        return
    raise AssertionError(what)
