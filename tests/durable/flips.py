"""Damage to the files of a baggage: `python -m tests.durable.flips --all --seed S` tries every byte.

Whatever is flipped, cut off, zeroed or old: opening and `verify` raise an error of this package, or the content is
exactly that after some commit; then the store goes on from there.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from durable import TABLES, DirectoryStore, DurableError, Seal, SealedStore
from durable.sealing import open_store
from tests.durable.support import Content, content, crashed, unsynced

HEADER, STATE, WAL = "header.cbor", "state.db", "state.db-wal"

Damage = tuple[str, bytes]


class Original:
    """A baggage that died with rows in its tables, later commits in the log in its database, and the last of them in
    its write-ahead log."""

    def __init__(self, place: Path, seed: int = 0, seal: Seal | None = None) -> None:
        rng = random.Random(seed)
        store = open_store(place / "made", seal)
        inner = store.inner if isinstance(store, SealedStore) else store
        assert isinstance(inner, DirectoryStore)
        rows: Content = {}
        self.contents: list[Content] = []
        for number in range(14):
            changes: dict[tuple[str, bytes], bytes | None] = {}
            for _ in range(12):
                key = (rng.choice(TABLES), rng.randbytes(rng.choice((1, 8, 40))))
                changes[key] = rng.randbytes(rng.choice((0, 30, 300, 300, 300, 6_000)))
            for key in rng.sample(sorted(rows), len(rows) // 6):
                changes[key] = None
            store.commit(changes)
            rows.update({key: value for key, value in changes.items() if value is not None})
            for key in [key for key, value in changes.items() if value is None]:
                rows.pop(key, None)
            if number == 4:
                store.scrub()
                self.early = (place / "made" / STATE).read_bytes()
            if number == 8:
                store.scrub()
            if number == 11:
                inner._checkpoint()
            if number >= 8:
                self.contents.append(dict(rows))
        self.directory = crashed(place / "made", place / "original")
        store.close()
        (self.directory / f"{STATE}-shm").unlink()  # rebuilt from the log at each opening
        self.files = {name: (self.directory / name).read_bytes() for name in (HEADER, STATE, WAL)}
        self._place = place
        self._seal = seal

    def outcome(self, *damages: Damage) -> str:
        """Opens a copy with other bytes in some files: "error" or "exact". AssertionError for all else."""
        copy = crashed(self.directory, self._place / "copy")
        try:
            for name, data in damages:
                (copy / name).write_bytes(data)
            with unsynced():
                return self._opened(copy)
        finally:
            shutil.rmtree(copy)

    def _opened(self, directory: Path) -> str:
        try:
            store = open_store(directory, self._seal)
        except DurableError:
            return "error"
        try:
            count = store.verify()
            found = content(store)
            assert found in self.contents, "content that was never committed"
            assert count == len(found)
            store.commit({("user", b"next"): b"\x01" * 9_000, ("user", b"more"): b"\x02" * 500})
            assert store.verify() == count + 2
            assert content(store) == found | {
                ("user", b"next"): b"\x01" * 9_000,
                ("user", b"more"): b"\x02" * 500,
            }
            store.close()
        except DurableError:
            return "error"
        finally:
            try:
                store.close()
            except DurableError:
                pass
        return "exact"


def flips(original: Original, name: str, rng: random.Random, count: int | None) -> Iterator[Damage]:
    """Single bytes changed: at `count` positions, or at every one."""
    data = original.files[name]
    positions = (
        range(len(data)) if count is None else sorted(rng.sample(range(len(data)), min(count, len(data))))
    )
    for position in positions:
        changed = bytearray(data)
        changed[position] ^= rng.choice((1 << rng.randrange(8), rng.randrange(1, 256)))
        yield name, bytes(changed)


def structure(original: Original, name: str, rng: random.Random, count: int) -> Iterator[Damage]:
    """Single bytes changed where SQLite keeps its own: the first 110 bytes of a file, the first 60 of a page."""
    data = original.files[name]
    page = 4096 + (24 if name == WAL else 0)
    places = [*range(110), *(p for p in range(len(data)) if (p - (32 if name == WAL else 0)) % page < 60)]
    for position in rng.sample(places, min(count, len(places))):
        changed = bytearray(data)
        changed[position] ^= rng.randrange(1, 256)
        yield name, bytes(changed)


def shortened(original: Original, name: str, rng: random.Random, count: int) -> Iterator[Damage]:
    """Files cut short: at every length for a small one, else at the ends of pages and at some lengths."""
    data = original.files[name]
    lengths = {0, 1, 24, 31, 32, 99, 100, 512, len(data) - 1, *range(4096, len(data), 4096)}
    lengths |= {rng.randrange(len(data)) for _ in range(count)}
    for length in sorted(length for length in lengths if length < len(data)):
        yield name, data[:length]


def blocks(original: Original, name: str, rng: random.Random, count: int) -> Iterator[Damage]:
    """Blocks of the disk that are zero, or hold another block of the same file."""
    data = original.files[name]
    for size in (512, 4096):
        starts = range(0, len(data) - size + 1, size)
        for start in rng.sample(starts, min(count, len(starts))):
            other = rng.choice(starts)
            for block in (bytes(size), data[other : other + size]):
                yield name, data[:start] + block + data[start + size :]


def stale(original: Original) -> Iterator[Damage]:
    """Pages of the database that are as they were before: a write that the disk has lost."""
    data, early = original.files[STATE], original.early
    for start in range(0, min(len(data), len(early)), 4096):
        if early[start : start + 4096] != data[start : start + 4096]:
            yield STATE, data[:start] + early[start : start + 4096] + data[start + 4096 :]


def all_damage(original: Original, seed: int, every: bool) -> Iterator[Damage]:
    """Some hundreds of each kind; if `every`, each byte of each file as well, and ten times as much of the rest."""
    rng = random.Random(seed)
    times = 10 if every else 1
    for name in (HEADER, WAL, STATE):
        yield from shortened(original, name, rng, 50 * times)
        if name != HEADER:
            yield from structure(original, name, rng, 200 * times)
            yield from blocks(original, name, rng, 20 * times)
    yield from stale(original)
    for name in (HEADER, WAL, STATE):
        yield from flips(original, name, rng, None if every else 300)


def outcomes(seed: int, every: bool, job: int, jobs: int) -> Counter[str]:
    """What came of the cases of one process: each `jobs`-th, from number `job`. The first tells how far it is."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        original = Original(Path(place), seed)
        total = sum(1 for _ in all_damage(original, seed, every)) if not job else 0
        for number, (name, data) in enumerate(all_damage(original, seed, every)):
            if number % jobs != job:
                continue
            if not job and not number // jobs % 100:
                print(f"\r{number:,} of {total:,} cases", end="", file=sys.stderr, flush=True)
            try:
                counts[f"{name}: {original.outcome((name, data))}"] += 1
            except BaseException as error:
                before = original.files[name]
                where = next(
                    (i for i, pair in enumerate(zip(before, data, strict=False)) if pair[0] != pair[1]),
                    len(data),
                )
                error.add_note(f"case {number}, seed {seed}: {name} from byte {where}")
                raise
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="every byte, which takes an hour; else a sample")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the work")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    with ProcessPoolExecutor(options.jobs) as pool:
        jobs = [
            pool.submit(outcomes, options.seed, options.all, job, options.jobs) for job in range(options.jobs)
        ]
        for job in as_completed(jobs):
            counts += job.result()
    print(file=sys.stderr)
    for what, count in sorted(counts.items()):
        print(f"{what}: {count:,}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
