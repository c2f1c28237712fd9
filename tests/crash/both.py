"""Crashes of two stacks at once: where, in which ways, and what is wrong afterwards.

Time is mock time, commits are made on the loop, and all randomness comes from a seed: the same seed makes the same
writes, with the same PYTHONHASHSEED.
"""

from __future__ import annotations

import gc
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import trio

from tests.crash.disk import Disk, Image, Mark, materialise, recording
from tests.crash.script import Found, lose
from tests.crash.stacks import SIDES, TURNS, go_on, live
from tests.crash.wire import Promise
from tests.support import trio_test

#: A way to lose writes for each of SIDES.
Ways = tuple[str, str]
#: Each of three for one side with each for the other, the order mixed so that neighbours differ in both.
PAIRS: tuple[Ways, ...] = tuple(
    (("none", "all", "random")[number % 3], ("all", "random", "none")[(number + number // 3) % 3])
    for number in range(9)
)


@contextmanager
def determined(seed: str) -> Iterator[None]:
    """Keys, nonces, and the order in which trio runs tasks come from the seed; garbage is collected when we say."""
    run = trio._core._run
    before = run._r.getstate()
    collecting = gc.isenabled()
    with (
        mock.patch.object(run, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
        mock.patch.object(secrets, "token_bytes", Random(f"secrets {seed}").randbytes),
    ):
        run._r.seed(seed)
        gc.disable()
        try:
            yield
        finally:
            run._r.setstate(before)
            if collecting:
                gc.enable()


def run(seed: str, function: Callable[..., Awaitable[None]], *args: Any) -> None:
    with determined(seed):
        trio_test(function)(*args)


def life(place: Path, seed: str, turns: int = TURNS, *, burst: int = 40, swallow_syncs: bool = False) -> Disk:
    """The record of a life in a directory that is made. The smaller the bursts, the more commits."""
    for name in SIDES:
        (place / name).mkdir(mode=0o700, parents=True)
    with recording(place, swallow_syncs=swallow_syncs) as disk:
        run(seed, live, place, disk.mark, seed, turns, burst)
    return disk


def boundaries(disk: Disk, promise: Promise | None = None) -> Iterator[tuple[int, Promise]]:
    """The points of crash: after each write, sync or change of a name, and all that was shown before the next."""
    promise = promise or Promise()
    point = -1
    for upto, event in enumerate(disk.events):
        if not isinstance(event, Mark):
            yield point, promise
        point, promise = upto, promise.after(event)
    yield point, promise


def crashed(disk: Disk, upto: int, ways: Ways, seed: int) -> Image:
    """What both directories hold after a crash of both processes at once, each losing writes in its own way."""
    image: Image = {}
    for side, way in zip(SIDES, ways, strict=True):
        image |= disk.image(upto, lose(way, seed, upto), f"{side}/")
    return image


def recovery(image: Image, place: Path, promise: Promise, seed: str) -> Exception | None:
    """What is wrong with what the two sides make of an image."""
    materialise(image, place)
    try:
        run(seed, go_on, place, lambda shown: None, seed, promise)
    except Exception as error:
        return error
    return None


def crash_both(
    disk: Disk,
    place: Path,
    ways: Callable[[int], Iterable[Ways]],
    *,
    seed: int = 0,
    points: Iterable[tuple[int, Promise]] | None = None,
) -> Iterator[Found | None]:
    """Crashes at all boundaries, or at these, in the ways for the number of each; yields what was wrong, or None.

    An image that was tried with the same promise is not tried again, and not counted.
    """
    tried: set[int] = set()
    before = None
    for number, (upto, promise) in enumerate(boundaries(disk) if points is None else points):
        if promise is not before:
            tried.clear()
            before = promise
        for pair in ways(number):
            image = crashed(disk, upto, pair, seed)
            key = hash(frozenset(image.items()))
            if key not in tried:
                tried.add(key)
                error = recovery(image, place, promise, f"{seed} {upto} {pair}")
                yield None if error is None else Found(upto, ",".join(pair), error, image)
