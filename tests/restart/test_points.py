"""Exactly once: two processes stream numbers to each other, and one or both crash at each commit there is."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
import trio

import ocapn
from ocapn import E, send_only
from tests.restart.support import Process, Streamer, linked, world
from tests.support import trio_test

#: Numbers that each side sends.
_TOTAL = 7
#: Commits of one side in a run without a crash are fewer.
_COMMITS = 26


async def answered(streamer: Streamer, number: int, answer: Any) -> None:
    try:
        assert await answer == number + 1
        streamer.answered += 1
    except ocapn.RemoteError as error:
        if not str(error).startswith("PeerRestarted: "):
            raise
        streamer.broken += 1


async def streams(process: Process) -> None:
    """Sends the numbers that it has not sent yet: without an answer, or with one; several in one turn, or not."""
    streamer: Streamer | None = None
    while streamer is None or streamer.to is None:
        await trio.sleep(0.01)
        streamer = process.baggage.get("streamer")
    async with trio.open_nursery() as nursery:
        while streamer.next < _TOTAL:
            number = streamer.next
            if number % 3 == 2 or number == _TOTAL - 1:
                send_only(streamer.to).note(number)
            else:
                nursery.start_soon(answered, streamer, number, E(streamer.to).note(number))
            streamer.next += 1
            if number % 3:
                await trio.sleep(0.003 * (number % 4))


async def run(who: str, mode: str, number: int, later: int = 0, seed: int = 0) -> None:
    """One run, with a crash of `who` at a commit of the first of them.

    `mode`: "before" or "after" the commit is on disk, or "later" by that many checkpoints.
    """
    random = Random(seed)
    async with world(delay=random.choice((0.0, 0.001, 0.004))) as place:
        a, b = await place.process("a", streams).start(), await place.process("b", streams).start()
        for one, other in ((a, b), (b, a)):
            await linked(one, other)
        first, *others = [{"a": a, "b": b}[name] for name in who]

        async def crash_later() -> None:
            for _ in range(later):
                await trio.lowlevel.checkpoint()
            for process in (first, *others):
                process.crash()

        def point(commit: int) -> str | None:
            if commit != number:
                return None
            if mode == "later":
                place.soon(crash_later)
                return None
            for process in others:
                process.crash()
            return mode

        for process in (a, b):
            process.baggage["streamer"] = Streamer(process.baggage["holder"].held)
            await process.peer.settled()
        first.disk.commits = 0
        first.disk.point = point
        place.keep_up(a, b, after=random.choice((0.0, 0.02, 1.0)))
        with trio.fail_after(3000):
            while not (done(a) and done(b)):
                await trio.sleep(0.5)
                for process in (a, b):
                    if process.failure is not None:
                        raise process.failure
        await place.quiet()
        for process in (a, b):
            ledger = process.baggage["ledger"]
            assert ledger.seen == tuple(range(_TOTAL)), f"{process.name} got {ledger.seen}"


def done(process: Process) -> bool:
    if not process.alive:
        return False
    streamer, ledger = process.baggage.get("streamer"), process.baggage["ledger"]
    return streamer is not None and streamer.next >= _TOTAL <= len(ledger.seen)


def points() -> Iterator[tuple[str, str, int, int]]:
    for who in ("a", "b", "ab", "ba"):
        for number in range(1, _COMMITS):
            yield who, "before", number, 0
            yield who, "after", number, 0
            yield who, "later", number, number % 9


@pytest.mark.parametrize("who", ["a", "b", "ab", "ba"])
def test_exactly_once_with_a_crash_at_every_commit(who: str) -> None:
    for side, mode, number, later in points():
        if side == who:
            try:
                trio_test(run)(side, mode, number, later, number)
            except BaseException as error:
                error.add_note(f"run({side!r}, {mode!r}, {number}, {later}, {number})")
                raise
