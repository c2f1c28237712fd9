"""A sealed store: what it keeps, what its files tell, and what is refused."""

from __future__ import annotations

import itertools
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import durable
import durable.sealing
from durable import BaggageCorrupt, DirectoryStore, Passphrase, SealedStore, SealRefused, Store
from durable.store import TABLES, Changes, row_name
from durable.testing import check_store
from tests.durable.support import FAST, content, crashed, sealed_again, unsynced

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "baggage"


def test_it_conforms(tmp_path: Path) -> None:
    numbers = itertools.count()

    def again(store: Store) -> Store:
        assert isinstance(store, SealedStore)
        return sealed_again(store, FAST)

    check_store(lambda: SealedStore(tmp_path / str(next(numbers)), FAST), again)


def held(lock: Any) -> bool:
    """Whether a lock is taken, as another thread sees it."""
    free = []

    def ask() -> None:
        if lock.acquire(blocking=False):
            free.append(True)
            lock.release()

    asking = threading.Thread(target=ask)
    asking.start()
    asking.join()
    return not free


def test_keys_and_rows_are_of_the_same_commit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reads between a commit that is seen and the keys that come and go with it; none comes into a scan."""
    with closing(SealedStore(path, FAST)) as store:
        note, get, seen = store._note, store.inner.get, []

        def noting(changes: Changes) -> None:
            seen.append(("note", held(store.inner._reading)))
            note(changes)

        def getting(table: str, key: bytes) -> bytes | None:
            seen.append(("get", held(store.inner._reading)))
            return get(table, key)

        monkeypatch.setattr(store, "_note", noting)
        monkeypatch.setattr(store.inner, "get", getting)
        assert not held(store.inner._reading)
        store.commit({("user", b"a"): b"1", ("user", b"b"): b"1"})
        assert store.scan("user") == [(b"a", b"1"), (b"b", b"1")]
        assert seen == [("note", True), ("get", True), ("get", True)]


# What the files tell


SECRETS = (b"clear-key", b"clear-value", b"clear-namespace", b"clear-swiss-number", b"ocapn://clear-location")


def fill(store: Store) -> None:
    store.commit(
        {
            ("user", b"clear-namespace/clear-key"): b"clear-value" * 3,
            ("swiss", b"clear-swiss-number"): b"clear-value",
            ("session", bytes(32)): b"ocapn://clear-location",
        }
    )


def told(path: Path) -> list[tuple[str, bytes]]:
    """What of the secrets stands in which file."""
    return [
        (file.name, secret) for file in path.iterdir() for secret in SECRETS if secret in file.read_bytes()
    ]


def test_the_search_finds_what_is_not_sealed(path: Path) -> None:
    with closing(DirectoryStore(path)) as store:
        fill(store)
        assert len(told(path)) == len(SECRETS)


def test_nothing_is_in_clear_at_any_time(path: Path, tmp_path: Path) -> None:
    store = SealedStore(path, FAST, log_size=20_000)
    fill(store)
    assert told(path) == []
    for number in range(20):
        store.commit({("user", b"clear-key %d" % number): b"clear-value", ("user", b"clear-key"): None})
        assert told(path) == []
    assert store.inner._moved, "the log was never moved"
    store.scrub()
    assert told(path) == []
    store.verify()
    store = sealed_again(store, FAST)
    assert told(path) == []
    store.commit({("swiss", b"clear-swiss-number"): None})
    store.close()
    assert told(path) == []


def test_nothing_is_in_clear_after_a_kill(path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from durable import SealedStore\n"
        "from tests.durable.support import FAST\n"
        "from tests.durable.test_sealing import fill\n"
        "fill(SealedStore(sys.argv[1], FAST))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    process = subprocess.run([sys.executable, "-c", program, str(path)], cwd=ROOT, check=False)
    assert process.returncode == -9
    assert (path / "state.db-wal").stat().st_size > 0
    assert told(path) == []
    with closing(SealedStore(path, FAST)) as store:
        assert store.get("swiss", b"clear-swiss-number") == b"clear-value"
        assert store.verify() == 3
    assert told(path) == []


def test_a_row_written_twice_looks_different(path: Path) -> None:
    with closing(SealedStore(path, FAST)) as store:
        boxes = set()
        for _ in range(5):
            store.commit({("user", b"k"): b"v"})
            ((_, box),) = store.inner.scan("user")
            boxes.add(box)
        assert len(boxes) == 5


# Which seal


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(SealRefused) as caught:
        call()
    return str(caught.value)


def test_every_wrong_seal_is_refused_with_the_same_words(path: Path, tmp_path: Path) -> None:
    key_file = durable.KeyFile(tmp_path / "key")
    key_file.make()
    SealedStore(path, FAST).close()
    wrong = (
        Passphrase("another passphrase"),
        Passphrase("right passphrase "),
        key_file,
        lambda store_id: bytes(32),
    )
    words = {refusal(lambda seal=seal: SealedStore(path, seal)) for seal in wrong}  # type: ignore[misc]
    assert words == {
        "the seal does not open this baggage: another passphrase or key does, or its header was changed"
    }
    SealedStore(path, FAST).close()


def test_a_sealed_one_without_a_seal(path: Path) -> None:
    SealedStore(path, FAST).close()
    for call in (lambda: DirectoryStore(path), lambda: durable.open_baggage(path)):
        assert refusal(call) == f"{path} is sealed: it opens with its passphrase or key"
    SealedStore(path, FAST).close()


def test_a_plain_one_with_a_seal(path: Path) -> None:
    with closing(DirectoryStore(path)) as store:
        store.commit({("user", b"k"): b"v"})
    assert refusal(lambda: durable.open_baggage(path, seal=FAST)) == (
        "the baggage is not sealed: open it without a seal"
    )
    with closing(DirectoryStore(path)) as store:
        assert store.get("user", b"k") == b"v"


def test_something_that_is_no_seal(path: Path) -> None:
    with pytest.raises(TypeError, match="not a str"):
        durable.open_baggage(path, seal="passphrase")  # type: ignore[arg-type]
    assert not path.exists()


def test_a_baggage_is_sealed(path: Path) -> None:
    with durable.open_baggage(path, seal=FAST) as baggage:
        baggage["clear-key"] = "clear-value"
    assert told(path) == []
    with durable.open_baggage(path, seal=FAST) as baggage:
        assert {key: baggage[key] for key in baggage} == {"clear-key": "clear-value"}


def test_making_one_that_stopped_before_the_header(path: Path) -> None:
    SealedStore(path, FAST).close()
    (path / "header.cbor").unlink()
    with closing(SealedStore(path, FAST)) as store:
        store.commit({("user", b"k"): b"v"})
    with closing(SealedStore(path, FAST)) as store:
        assert content(store) == {("user", b"k"): b"v"}


# Rows that somebody changed, with digests that are right: those have no secret


def forge(path: Path, change: Callable[[DirectoryStore], object]) -> None:
    with closing(DirectoryStore(path, sealed=True)) as store:
        change(store)


def damage(path: Path, table: str, mac: bytes, why: str) -> None:
    """Opening names the row, and so does nothing else; the store without its key finds nothing wrong."""
    with closing(DirectoryStore(path, sealed=True)) as store:
        store.verify()
    with pytest.raises(BaggageCorrupt, match=why) as caught:
        SealedStore(path, FAST)
    assert (caught.value.file, caught.value.table, caught.value.row) == ("state.db", table, row_name(mac))
    assert "clear" not in str(caught.value)


@pytest.fixture
def rows(path: Path) -> dict[tuple[str, bytes], tuple[bytes, bytes]]:
    """Sealed rows by table and key."""
    with closing(SealedStore(path, FAST)) as store:
        made = {(table, key): b"clear-" + key for table in ("user", "swiss") for key in (b"a", b"b")}
        store.commit(made)
        found = {row: (mac, store.inner.get(row[0], mac)) for row in made for mac in [store.rows.mac(*row)]}
    assert all(box is not None for _, box in found.values())
    return {row: (mac, box or b"") for row, (mac, box) in found.items()}


def test_every_truncated_row(path: Path, rows: dict[tuple[str, bytes], tuple[bytes, bytes]]) -> None:
    mac, box = rows["user", b"a"]
    for size in range(len(box)):
        forge(path, lambda store, size=size: store.commit({("user", mac): box[:size]}))  # type: ignore[misc]
        damage(path, "user", mac, "the row does not open")
    forge(path, lambda store: store.commit({("user", mac): box + b"\0"}))
    damage(path, "user", mac, "the row does not open")


def test_every_flipped_byte_of_a_row(path: Path, rows: dict[tuple[str, bytes], tuple[bytes, bytes]]) -> None:
    mac, box = rows["user", b"a"]
    with unsynced():
        for place in range(len(box)):
            changed = bytearray(box)
            changed[place] ^= 1 << place % 8
            forge(path, lambda store, box=bytes(changed): store.commit({("user", mac): box}))  # type: ignore[misc]
            damage(path, "user", mac, "the row does not open")


def test_rows_that_were_swapped(path: Path, rows: dict[tuple[str, bytes], tuple[bytes, bytes]]) -> None:
    (mac_a, a), (mac_b, b) = rows["user", b"a"], rows["user", b"b"]
    forge(path, lambda store: store.commit({("user", mac_a): b, ("user", mac_b): a}))
    damage(path, "user", min(mac_a, mac_b), "the row does not open")


def test_a_row_of_another_table(path: Path, rows: dict[tuple[str, bytes], tuple[bytes, bytes]]) -> None:
    mac, box = rows["swiss", b"a"]
    forge(path, lambda store: store.commit({("user", mac): box}))
    damage(path, "user", mac, "the row does not open")


def test_a_row_of_another_store(
    path: Path, tmp_path: Path, rows: dict[tuple[str, bytes], tuple[bytes, bytes]]
) -> None:
    """Even where both have one data key, which only somebody who has it can bring about."""
    with closing(SealedStore(tmp_path / "other", FAST)) as other, closing(SealedStore(path, FAST)) as store:
        strange = durable.sealing.Rows(store.rows.data_key, other.store_id).seal("user", b"a", b"x")
        assert strange[0] == rows["user", b"a"][0]
    forge(path, lambda store: store.commit({("user", strange[0]): strange[1]}))
    damage(path, "user", strange[0], "the row does not open")


def test_a_row_whose_key_is_not_that_of_its_mac(path: Path) -> None:
    """No forger can make one; a fault of ours could."""
    with closing(SealedStore(path, FAST)) as store:
        made = store.rows
    mac = made.mac("user", b"a")
    for clear in (b"\0\0\0\1b", b"\0\0\0\2a", b"\xff\xff\xff\xffa"):
        box = bytes(made._box.encrypt(clear, made._about["user"] + mac))
        forge(path, lambda store, box=box: store.commit({("user", mac): box}))  # type: ignore[misc]
        damage(path, "user", mac, "the row is not that of its key")


@pytest.mark.parametrize("count", [2, 200])
def test_an_open_store_sees_rows_that_change_under_it(path: Path, count: int) -> None:
    with closing(SealedStore(path, FAST)) as store:
        made = {("user", b"%03d" % number): b"%d" % number for number in range(count)}
        store.commit(made)
        assert content(store) == made
        mac = store.rows.mac("user", b"001")
        store.inner.commit({("user", mac): None})
        for call in (lambda: store.scan("user"), store.verify):
            with pytest.raises(BaggageCorrupt, match=r"gone|not those") as caught:
                call()
            assert caught.value.table == "user"


def test_without_the_key_the_structure_is_checked(path: Path) -> None:
    with closing(SealedStore(path, FAST)) as store:
        fill(store)
    with closing(DirectoryStore(path, sealed=True)) as plain:
        assert plain.verify() == 3
    with closing(sqlite3.connect(path / "state.db")) as connection, connection:
        connection.execute("DELETE FROM swiss")
    with (
        closing(DirectoryStore(path, sealed=True)) as plain,
        pytest.raises(BaggageCorrupt, match="the 2 rows found are not the 3 written"),
    ):
        plain.verify()


def test_a_database_of_another_sealed_store(path: Path, tmp_path: Path) -> None:
    for place in (path, tmp_path / "other"):
        SealedStore(place, FAST).close()
    shutil.copy(tmp_path / "other" / "state.db", path / "state.db")
    with pytest.raises(BaggageCorrupt, match="another header"):
        SealedStore(path, FAST)


def test_a_failed_opening_unlocks(path: Path) -> None:
    SealedStore(path, FAST).close()
    for _ in range(2):
        assert "does not open" in refusal(lambda: SealedStore(path, Passphrase("wrong")))


def test_a_copy_of_a_crash_opens(path: Path, tmp_path: Path) -> None:
    with closing(SealedStore(path, FAST)) as store:
        fill(store)
        copy = crashed(path, tmp_path / "copy")
    with closing(SealedStore(copy, FAST)) as store:
        assert store.verify() == 3


def test_tables_are_sealed_apart(path: Path) -> None:
    with closing(SealedStore(path, FAST)) as store:
        assert len({store.rows.mac(table, b"k") for table in TABLES}) == len(TABLES)
