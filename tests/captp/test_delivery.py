"""Promises of the core: settling, long chains, circles, and what a broken promise keeps alive."""

from __future__ import annotations

import gc
import itertools
from weakref import ref

import pytest

from ocapn import Promise, RemoteError, send_only
from ocapn.captp.delivery import BROKEN, FULFILLED, Message, Queue, Vow
from ocapn.captp.handles import PromiseHandle, Waiting
from ocapn.codec.operations import GET
from ocapn.errors import SessionEnded
from tests.captp.sides import Box, Side, empty, exported, pair, quiet


class Note(Waiting):
    """A listener that writes down when it is told."""

    __slots__ = ("name", "notes")
    listens = True

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name = name
        self.notes = notes

    def settle(self, vow: Vow) -> None:
        self.notes.append(self.name)


def chain(side: Side, length: int) -> list[Vow]:
    vows = [Vow(side.node) for _ in range(length)]
    for vow, following in itertools.pairwise(vows):
        vow.resolve(following.handle())
    return vows


@pytest.mark.parametrize("breaks", [False, True])
def test_a_chain_of_ten_thousand_promises(breaks: bool) -> None:
    """Neither resolving the end nor asking the beginning recurses, whichever end the chain grew from."""
    side = Side("a")
    for forwards in (True, False):
        vows = [Vow(side.node) for _ in range(10_000)]
        links = list(itertools.pairwise(vows))
        for vow, following in links if forwards else reversed(links):
            vow.resolve(following.handle())
        notes: list[str] = []
        vows[0].end().add(Note("told", notes))
        if breaks:
            vows[-1].break_with(RemoteError("the end"))
        else:
            vows[-1].resolve(7)
        assert notes == ["told"]
        assert vows[0].end().state == (BROKEN if breaks else FULFILLED)
        assert vows[5000].end().value == vows[-1].value


@pytest.mark.parametrize("breaks", [False, True])
def test_ten_thousand_answers_that_hang_on_each_other(breaks: bool) -> None:
    """Each message goes to the answer of the one before: settling the first settles all, without recursion."""
    side = Side("a")
    first = Vow(side.node)
    vow = first
    for _ in range(10_000):
        answer = Vow(side.node)
        vow.add(Message([1], answer, None))
        vow = answer
    if breaks:
        first.break_with(RemoteError("the end"))
        assert vow.state == BROKEN
        assert str(vow.value) == "the end"
    else:
        first.resolve("data, which takes no messages")
        assert vow.state == BROKEN
        assert "takes no messages" in str(vow.value)


def test_ten_thousand_promises_die_without_recursion() -> None:
    side = Side("a")
    vows = chain(side, 10_000)
    last = ref(vows[-1].handle())
    del vows
    gc.collect()
    assert last() is None


def test_settling_tells_in_order() -> None:
    """What waited first is told first, also across promises that one settling settles."""
    side = Side("a")
    notes: list[str] = []
    first, second, other, third = (Vow(side.node) for _ in range(4))
    first.add(Note("first 1", notes))
    first.add(Message([1], second, None))
    first.add(Message([2], other, None))
    first.add(Note("first 2", notes))
    other.add(Note("other", notes))
    second.add(Note("second 1", notes))
    second.add(Message([1], third, None))
    second.add(Note("second 2", notes))
    third.add(Note("third", notes))
    first.break_with(RemoteError("no"))
    assert notes == ["first 1", "first 2", "second 1", "second 2", "other", "third"]


@pytest.mark.parametrize("length", [1, 7, 60, 100, 1000])
def test_queues_that_merge_forget_what_is_gone(length: int) -> None:
    """However many, and however long: what is gone stays as few as what is wanted, or as can be looked through."""
    wanted = Note("wanted", [])
    queue = Queue()
    queue.add(wanted)
    longest = 0
    for _ in range(100_000 // length):
        other = Queue()
        messages = [Message([], None, None) for _ in range(length)]
        for message in messages:
            other.add(message)
        for message in messages:
            message.drop(RemoteError("no"))
        queue = queue.join(other)
        longest = max(longest, len(queue.items))
    assert longest <= max(64, 2 * length)
    assert wanted in queue.items


def test_a_follower_takes_its_queue_along_in_order() -> None:
    side = Side("a")
    box = Box()
    front, end = Vow(side.node), Vow(side.node)
    for number in (1, 2):
        front.add(Message([number], None, None))
    end.add(Message([0], None, None))
    front.resolve(end.handle())
    front.end().add(Message([3], None, None))
    end.resolve(box)
    front.end().add(Message([4], None, None))
    side.run()
    assert box.got == [[0], [1], [2], [3], [4]]


def test_only_the_first_resolution_counts() -> None:
    side = Side("a")
    vow = Vow(side.node)
    other = Vow(side.node)
    vow.resolve(1)
    vow.resolve(2)
    vow.break_with(RemoteError("late"))
    assert (vow.state, vow.value) == (FULFILLED, 1)
    other.break_with(RemoteError("first"))
    other.resolve(3)
    assert other.state == BROKEN
    following = Vow(side.node)
    target = Vow(side.node)
    following.resolve(target.handle())
    following.resolve(4)
    target.resolve(5)
    assert following.end().value == 5


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_promise_resolved_to_itself_breaks(length: int) -> None:
    side = Side("a")
    vows = chain(side, length)
    vows[-1].resolve(vows[0].handle())
    assert [vow.end().state for vow in vows] == [BROKEN] * length


def test_a_promise_that_goes_round_between_two_peers_breaks() -> None:
    """Messages to it come to an end, and nothing is kept."""
    a, b, link = pair()
    mine, my_vow = a.promise()
    theirs, their_vow = b.promise()
    at_b: Promise = b.hold(link.b, exported(link.a, mine), promise=True)
    at_a: Promise = a.hold(link.a, exported(link.b, theirs), promise=True)
    my_vow.resolve(at_a)
    their_vow.resolve(at_b)
    send_only(mine)(1)
    send_only(theirs)(2)
    a.run()
    b.run()
    for _ in range(100):
        if not link.to_b() + link.to_a():
            break
    else:
        pytest.fail("messages go round for ever")
    assert my_vow.end().state == BROKEN
    assert their_vow.end().state == BROKEN


@pytest.mark.parametrize("chained", [True, False])
def test_a_broken_promise_keeps_no_frames_alive(chained: bool) -> None:
    """An error that was raised carries a traceback, and that every argument of every frame: remote references too."""
    side = Side("a")

    class Held:
        pass

    def raises(held: Held) -> None:
        if not chained:
            raise RemoteError("outer")
        try:
            raise ValueError("inner")
        except ValueError as inner:
            raise RemoteError("outer") from inner

    held = Held()
    watched = ref(held)
    vow = Vow(side.node)
    try:
        raises(held)
    except RemoteError as error:
        vow.break_with(error)
    del held
    gc.collect()
    assert watched() is None
    assert str(vow.value) == "outer"


def test_sends_to_an_ended_session_keep_no_arguments_alive() -> None:
    a, b, link = pair()
    handle = a.hold(link.a, exported(link.b, Box()))
    link.a.disconnected("gone")
    box = Box()
    watched = ref(box)
    for _ in range(3):
        with pytest.raises(SessionEnded):
            send_only(handle)(box)
    del box
    gc.collect()
    assert watched() is None
    del b


def test_selection_through_the_wire_breaks_without_leaving_anything() -> None:
    a, b, link = pair()
    promise, vow = b.promise()
    at_a: PromiseHandle = a.hold(link.a, exported(link.b, promise), promise=True)
    part = link.a.select(at_a._vow.recipient, GET, "x").handle()  # type: ignore[attr-defined]
    part._vow.listen()  # type: ignore[attr-defined]
    vow.resolve([1])
    quiet(link)
    assert part._vow.state == BROKEN
    del part, at_a
    gc.collect()
    quiet(link)
    assert empty(link.a, link.b)
