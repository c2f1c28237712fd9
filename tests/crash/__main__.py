"""A campaign by hand: `python -m tests.crash --points 20000 --seed 1`. What was wrong is printed with how to repeat it.

Of the store, a quarter of the points is after a disk that failed, a quarter after a process that was killed. With
--stacks it is two peers that both crash, over lives that differ in what they write and in how much they commit at once.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tests.crash import both
from tests.crash.disk import Disk, Error, materialise, recording
from tests.crash.script import Found, crash_everywhere, fail_and_recover, kill_and_recover, live, short_life

WAYS = ("none", "all", "random 1", "random 2")
REPEAT = "PYTHONHASHSEED=0 python -m tests.crash --stacks --seed "


def crashes(place: Path, seed: int, commits: int) -> Iterator[tuple[str, Found | None]]:
    """Lives of so many commits, each crashed everywhere."""
    for life in itertools.count():
        directory = fresh(place / "store")
        with recording(directory) as disk:
            live(directory, disk, Random(f"{seed} {life}"), commits)
        for found in crash_everywhere(disk, place / "after", lambda _: WAYS, seed=seed):
            yield f"life {life}", found


def failures(place: Path, seed: int) -> Iterator[tuple[str, Found | None]]:
    """Lives that end with a disk that failed."""
    for life in itertools.count(seed * 1000):
        random = Random(life)
        for after in range(short_life(fresh(place / "whole"), life).operations):
            error: Error = random.choice(("ENOSPC", "EIO"))
            for_ever = random.random() < 0.5
            disk, ended = fail_and_recover(fresh(place / "store"), after, error, for_ever, life)
            what = f"short life {life}, {error} after {after} operations{' for ever' if for_ever else ''}"
            for found in some(disk, ended, place, random):
                yield what, found


def kills(place: Path, seed: int) -> Iterator[tuple[str, Found | None]]:
    """Lives that end with a process that was killed."""
    for life in itertools.count(seed * 1000):
        random = Random(life)
        disk = short_life(fresh(place / "store"), life)
        for upto in range(-1, len(disk.events)):
            later = kill_and_recover(place / "killed", disk, upto)
            for found in some(later, upto, place, random):
                yield f"short life {life}, killed after event {upto}", found


def stacks(place: Path, seed: int, life: int | None, event: int | None) -> Iterator[tuple[str, Found | None]]:
    """Lives of two stacks, each crashed at each boundary in several ways; or one life, or one boundary of it."""
    for one in itertools.count() if life is None else (life,):
        name = f"{seed} {one}"
        disk = both.life(fresh(place / "life"), name, burst=(40, 5, 20, 10)[one % 4])
        points = [point for point in both.boundaries(disk) if event in (None, point[0])]
        pairs = Random(name)

        def ways(_: int, pairs: Random = pairs) -> list[both.Ways]:
            every = [*both.PAIRS, ("random 2", "random 2"), ("all", "random 3"), ("random 3", "all")]
            return every if event is not None else pairs.sample(every, 4)

        for found in both.crash_both(disk, fresh(place / "after"), ways, seed=seed, points=points):
            again = "" if found is None else f" --life {one} --event {found.upto}"
            yield f"{REPEAT}{seed}{again}", found


def some(disk: Disk, first: int, place: Path, random: Random) -> Iterator[Found | None]:
    for point in random.sample(range(first, len(disk.events)), 8):
        yield from crash_everywhere(disk, place / "after", lambda _: WAYS[1:], first=point, last=point)


def fresh(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
    return directory


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--points", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commits", type=int, default=300, help="in a life that ends with a crash alone")
    parser.add_argument("--wrong", type=int, default=10, help="stop after so many")
    parser.add_argument("--keep", type=Path, help="a directory for the first image that was wrong")
    parser.add_argument("--stacks", action="store_true", help="two peers, and not the store alone")
    parser.add_argument("--life", type=int, help="of the stacks: this one only")
    parser.add_argument("--event", type=int, help="in that life: after this event only, in all ways")
    options = parser.parse_args()
    if (
        options.stacks and os.environ.get("PYTHONHASHSEED") != "0"
    ):  # sets have an order of their own in each process
        os.execve(sys.executable, sys.orig_argv, os.environ | {"PYTHONHASHSEED": "0"})
    place = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    began = time.monotonic()
    wrong = points = 0
    try:
        kinds = [
            itertools.islice(crashes(fresh(place / "1"), options.seed, options.commits), options.points // 2),
            itertools.islice(failures(fresh(place / "2"), options.seed), options.points // 4),
            itertools.islice(kills(fresh(place / "3"), options.seed), options.points // 4),
        ]
        if options.stacks:
            every = stacks(place, options.seed, options.life, options.event)
            kinds = [itertools.islice(every, options.points)]
        for what, found in itertools.chain(*kinds):
            points += 1
            if found is not None:
                wrong += 1
                print(f"seed {options.seed}, {what}, {found}", flush=True)
                if options.keep is not None and wrong == 1:
                    materialise(found.image, options.keep)
                if wrong >= options.wrong:
                    break
    finally:
        shutil.rmtree(place)
    taken = time.monotonic() - began
    print(
        f"{points} points of seed {options.seed}, {wrong} wrong, {taken:.0f} s, {points / taken:.0f} a second"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
