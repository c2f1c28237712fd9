"""Damaged files: a clear error, or exactly what was once committed. `tests.durable.flips` tries every byte."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path

import pytest

import durable.directory
from durable import BaggageCorrupt, DirectoryStore, DurableError
from tests.durable import flips
from tests.durable.flips import HEADER, STATE, WAL, Damage, Original
from tests.durable.support import content, crashed, unsynced


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    with unsynced():
        return Original(tmp_path_factory.mktemp("flips"))


def outcomes(original: Original, damages: Iterable[Damage]) -> Counter[str]:
    return Counter(original.outcome(damage) for damage in damages)


def test_undamaged_it_opens_at_the_last_commit(original: Original) -> None:
    original.contents, contents = original.contents[-1:], original.contents
    assert original.outcome() == "exact"
    original.contents = contents


def test_every_byte_of_the_header(original: Original) -> None:
    found = outcomes(original, flips.flips(original, HEADER, random.Random(1), None))
    assert found == {"error": len(original.files[HEADER])}


def test_every_length_of_the_header(original: Original) -> None:
    lengths = range(len(original.files[HEADER]))
    found = outcomes(original, ((HEADER, original.files[HEADER][:length]) for length in lengths))
    assert found == {"error": len(lengths)}


@pytest.mark.parametrize("name", [STATE, WAL])
def test_bytes(original: Original, name: str) -> None:
    rng = random.Random(2)
    found = outcomes(original, flips.flips(original, name, rng, 100))
    found += outcomes(original, flips.structure(original, name, rng, 150))
    assert found["exact"] > 10  # what the log covers, what no row uses, what is after the last whole commit
    assert found["error"] > 10 or name == WAL


def test_bytes_of_a_sealed_one(tmp_path: Path) -> None:
    with unsynced():
        sealed = Original(tmp_path, seal=lambda store_id: bytes(32))
    rng = random.Random(2)
    assert outcomes(sealed, flips.flips(sealed, HEADER, rng, None)) == {"error": len(sealed.files[HEADER])}
    for name in (STATE, WAL):
        found = outcomes(sealed, flips.flips(sealed, name, rng, 40))
        found += outcomes(sealed, flips.structure(sealed, name, rng, 60))
        assert found["exact"] > 10
        assert found["error"] > 10 or name == WAL


@pytest.mark.parametrize("name", [STATE, WAL])
def test_short_files(original: Original, name: str) -> None:
    found = outcomes(original, flips.shortened(original, name, random.Random(3), 10))
    assert found["error" if name == STATE else "exact"] > 30


@pytest.mark.parametrize("name", [STATE, WAL])
def test_lost_and_misplaced_blocks(original: Original, name: str) -> None:
    outcomes(original, flips.blocks(original, name, random.Random(4), 15))


def test_old_pages(original: Original) -> None:
    assert outcomes(original, flips.stale(original))["error"] > 2


@pytest.mark.parametrize("byte", range(8))
def test_a_key_that_is_out_of_its_order_when_the_log_is_moved(tmp_path: Path, byte: int) -> None:
    """SQLite then finds another row in the place of the one that is to go, and removes it: `flips --all` found that."""
    keys = [
        b"\x1c",
        b"\x3d",
        b"\x3e" + bytes(7),
        b"\x81",
        b"\xa3" + bytes(39),
        b"\xa8" + bytes(7),
        b"\xba" + bytes(39),
    ]
    made, path = tmp_path / "made", tmp_path / "crashed"
    with unsynced(), closing(DirectoryStore(made)) as store:
        store.commit({("node", key): key * 4 for key in keys})
        store.scrub()
        store.commit({("node", key): None for key in (b"\x81", b"\x3d", keys[4], keys[5])})
        store.commit({("node", b"\x1c"): b"new"})
        crashed(made, path)
    (path / f"{STATE}-shm").unlink()
    data = (path / STATE).read_bytes()
    after = {("node", key): key * 4 for key in (keys[2], keys[6])} | {("node", b"\x1c"): b"new"}
    for key in keys:
        place = data.index(key * 5)  # the digest behind it may begin with the same byte
        for bit in range(8):
            damaged = bytearray(data)
            damaged[place + byte % len(key)] ^= 1 << bit
            copy = crashed(path, tmp_path / "copy")
            (copy / STATE).write_bytes(damaged)
            with unsynced(), suppress(DurableError), closing(DirectoryStore(copy)) as store:
                store.verify()
                assert content(store) == after
            shutil.rmtree(copy)


def test_a_lost_write_of_a_page_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row of an old page has the right digest: only the digest of the whole content tells."""
    path, pages = tmp_path / "b", []
    with closing(DirectoryStore(path)) as store:
        for value in (b"old", b"new"):
            store.commit({("user", b"k"): value})
            store.scrub()
            pages.append((path / STATE).read_bytes())
    old, new = pages
    start = new.index(b"new") // 4096 * 4096
    (path / STATE).write_bytes(new[:start] + old[start : start + 4096] + new[start + 4096 :])
    with closing(DirectoryStore(path)) as store, pytest.raises(BaggageCorrupt, match="are not the 1 written"):
        store.verify()
    monkeypatch.setattr(durable.directory, "_MODULUS", 1)
    with closing(DirectoryStore(path)) as store:
        store._sum = 0
        assert store.verify() == 1
        assert store.get("user", b"k") == b"old"


def test_the_log_of_another_store(original: Original, tmp_path: Path) -> None:
    other = Original(tmp_path, seed=5)
    assert original.outcome((WAL, other.files[WAL])) == "error"
    assert original.outcome((STATE, other.files[STATE])) == "error"
    assert original.outcome((STATE, other.files[STATE]), (WAL, other.files[WAL])) == "error"
    assert original.outcome((HEADER, other.files[HEADER])) == "error"


def test_a_damaged_log_is_left_as_it_is(original: Original, tmp_path: Path) -> None:
    """Refusing to open changes nothing: whoever repairs it has all there was."""
    other = Original(tmp_path, seed=5)
    for name, data in ((HEADER, other.files[HEADER]), (STATE, b""), (WAL, other.files[WAL])):
        (original.directory / name).write_bytes(data)
        with pytest.raises(BaggageCorrupt):
            DirectoryStore(original.directory)
        for file, before in original.files.items():
            assert (original.directory / file).read_bytes() == (data if file == name else before)
        (original.directory / name).write_bytes(original.files[name])
