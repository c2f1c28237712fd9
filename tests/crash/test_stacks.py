"""Two whole stacks, crashed at the boundaries of what both stores write and sync.

The life of the first test has some 3,300 boundaries. It is crashed at each sync, and at four of five of the others:
all would take four minutes. The ways of the two sides to lose writes go round; what they leave is not tried
again if it was since something was last shown. `python -m tests.crash --stacks` has lives of which every boundary is
crashed, in four ways each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from durable import directory
from ocapn.captp.frames import Frames
from ocapn.captp.node import TurnResult
from ocapn.captp.outbox import Outbox
from ocapn.commits import Commits
from tests.crash.both import PAIRS, boundaries, crash_both, crashed, life, run
from tests.crash.disk import Disk, Mark, Sync, Write, materialise, read, recording
from tests.crash.script import Found
from tests.crash.stacks import SIDES, TURNS, go_on
from tests.crash.wire import Shown
from tests.support import interpreted


@pytest.fixture(autouse=True)
def invariants() -> None:
    """Not watched: one session goes on from thousands of copies, which looks as if it were rolled back each time."""


def test_a_crash_of_both_at_each_sync_and_most_writes(place: Path) -> None:
    disk = life(place / "life", "1")
    there = {path: content for path, content in read(place / "life").items() if not path.endswith("-shm")}
    assert disk.image(len(disk.events) - 1, "none") == there, "the recorder missed something"
    turns = [
        event.label.count
        for event in disk.events
        if isinstance(event, Mark) and isinstance(event.label, Shown) and event.label.what == "counter"
    ]
    assert max(turns) >= TURNS - 17, "the last answers were not seen"
    assert {event.path for event in disk.events if isinstance(event, Sync)} >= {
        f"{side}/{name}" for side in SIDES for name in ("state.db", "state.db-wal")
    }
    points = 0
    wrong = []
    chosen = [
        (upto, promise)
        for number, (upto, promise) in enumerate(boundaries(disk))
        if number % 5 or follows_a_sync(disk, upto)
    ]
    for found in crash_both(
        disk, place / "after", lambda number: [PAIRS[number % len(PAIRS)]], points=chosen
    ):
        points += 1
        if found is not None:
            wrong.append(f"{found}")
    assert wrong == []
    assert points >= 2000, points


def follows_a_sync(disk: Disk, upto: int) -> bool:
    while upto >= 0 and isinstance(disk.events[upto], Mark):
        upto -= 1
    return upto >= 0 and isinstance(disk.events[upto], Sync)


def test_a_crash_while_recovering_from_a_crash(place: Path) -> None:
    disk = life(place / "life", "2", turns=40)
    every = list(boundaries(disk))
    for upto, promise in every[40 :: len(every) // 5]:
        first = place / f"first-{upto}"
        materialise(crashed(disk, upto, ("random", "random"), 2), first)
        with recording(first) as recovery:
            run(f"2 {upto}", go_on, first, recovery.mark, f"2 {upto}", promise)
        points = list(boundaries(recovery, promise))[::7]
        ways = crash_both(
            recovery, place / "second", lambda number: [PAIRS[number % len(PAIRS)]], points=points
        )
        assert [f"{upto}: {found}" for found in ways if found is not None] == []


def test_the_same_seed_makes_the_same_writes(place: Path) -> None:
    def shape(disk: Disk) -> list[Any]:
        return [
            (event.path, event.offset, len(event.data)) if isinstance(event, Write) else event
            for event in disk.events
        ]

    one, other = life(place / "one", "3", turns=60), life(place / "other", "3", turns=60)
    assert shape(one) == shape(other)
    assert shape(one) != shape(life(place / "third", "4", turns=60))


# What is broken is found


def wrong(disk: Disk, place: Path, most: int = 100) -> list[Found]:
    """What crashes that lose all on both sides show, at boundaries evenly over a life."""
    every = list(boundaries(disk))
    points = every[:: max(1, len(every) // most)]
    ways = crash_both(disk, place / "after", lambda _: [("all", "all")], points=points)
    return [found for found in ways if found is not None]


def test_commits_without_a_sync_are_found(place: Path) -> None:
    pragmas = tuple(one.replace("synchronous=FULL", "synchronous=OFF") for one in directory._PRAGMAS)
    with mock.patch.object(directory, "_PRAGMAS", pragmas):
        disk = life(place / "life", "5", turns=60)
    assert any("were shown" in str(found) for found in wrong(disk, place))


def test_syncs_that_are_swallowed_are_found(place: Path) -> None:
    disk = life(place / "life", "6", turns=60, swallow_syncs=True)
    assert wrong(disk, place)


@interpreted
def test_messages_that_are_sent_before_their_commit_are_found(place: Path) -> None:
    append, show = Outbox.append, Commits.show

    def at_once(outbox: Outbox, message: bytes) -> None:
        append(outbox, message)
        outbox.messages += outbox._held
        outbox._held = []

    def early(commits: Commits, result: TurnResult) -> None:
        show(commits, result)
        for session in result.outbound:
            commits._flush(session)

    with mock.patch.object(Outbox, "append", at_once), mock.patch.object(Commits, "show", early):
        disk = life(place / "life", "7", turns=60)
    assert any("sent of the session" in str(found) for found in wrong(disk, place))


@interpreted
def test_acknowledgements_of_what_is_not_committed_are_found(place: Path) -> None:
    taken = property(lambda frames: frames.taken)
    with mock.patch.multiple(Frames, committed=taken, ack_due=property(lambda frames: frames.untold > 0)):
        disk = life(place / "life", "8", turns=60)
    assert any("taken of the session" in str(found) for found in wrong(disk, place, 200))


@interpreted
def test_a_frame_that_comes_again_after_a_crash_is_found(place: Path) -> None:
    disk = life(place / "life", "9", turns=60)
    attach = Frames.attach

    def once_more(frames: Frames, received: int, first: int, now: float) -> tuple[list[bytes], list[bytes]]:
        again = [frames.kept[received - frames.acked - 1][0]] if received > frames.acked else []
        committed, uncommitted = attach(frames, received, first, now)
        return again + committed, uncommitted

    assert wrong(disk, place, 20) == []
    with mock.patch.object(Frames, "attach", once_more):
        assert wrong(disk, place, 20)
