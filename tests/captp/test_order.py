"""Order, whatever becomes of a promise: explicit interleavings of sends with the messages of each link."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from random import Random
from typing import Any

import pytest

from ocapn import Promise, send_only
from ocapn.captp.delivery import FULFILL, RemoteVow
from ocapn.codec.operations import EXPORT, descriptor_bytes
from tests.captp.sides import Box, Link, Side, exported, pair, quiet

Resolve = Callable[[], None]


def numbers(box: Box) -> list[object]:
    return [args[0] for args in box.got]


class Two:
    """`a` holds a promise of `b`, which `b` is to resolve."""

    def __init__(self) -> None:
        self.a, self.b, self.link = pair()
        self.handle, self.vow = self.b.promise()
        position = exported(self.link.b, self.handle)
        self.promise: Promise = self.a.hold(self.link.a, position, promise=True)
        self.box = Box()

    def to_home(self) -> Resolve:
        """The promise becomes an object of `a`."""
        exported(self.link.a, self.box)
        mine = self.b.hold(self.link.b, 1)
        return lambda: self.vow.resolve(mine)

    def to_b(self) -> Resolve:
        return lambda: self.vow.resolve(self.box)

    def to_promise_at_home(self) -> Resolve:
        """The promise becomes one of `a`'s own, which became an object of `b` or will."""
        handle, vow = self.a.promise()
        exported(self.link.a, handle)
        theirs = self.b.hold(self.link.b, 1, promise=True)
        position = exported(self.link.b, self.box)
        ref = self.a.hold(self.link.a, position)
        self.keep = (handle, theirs)

        def resolve() -> None:
            self.vow.resolve(theirs)
            vow.resolve(ref)

        return resolve

    def to_own_promise(self) -> Resolve:
        """The promise becomes another one of `b`, and that an object of `a`."""
        handle, vow = self.b.promise()
        exported(self.link.a, self.box)
        mine = self.b.hold(self.link.b, 1)

        def resolve() -> None:
            self.vow.resolve(handle)
            vow.resolve(mine)

        return resolve


@pytest.mark.parametrize("kind", ["to_home", "to_b", "to_promise_at_home", "to_own_promise"])
@pytest.mark.parametrize("listens", [False, True])
def test_two_sides(kind: str, listens: bool) -> None:
    """Sends (S), the resolution (R) and single messages to b (b) and to a (a), in every order there is."""
    for word in product("SRba", repeat=6):
        if word[0] != "S" or word.count("R") > 1:
            continue
        two = Two()
        resolve = getattr(two, kind)()
        if listens:
            vow = two.promise._vow
            assert isinstance(vow, RemoteVow)
            vow.listen()
        sent = 0
        resolved = False
        for letter in (*word, "S", "R", "S"):
            if letter == "S":
                sent += 1
                send_only(two.promise)(sent)
                two.a.run()
            elif letter == "R" and not resolved:
                resolved = True
                resolve()
                two.b.run()
            elif letter == "b":
                two.link.to_b(1)
            elif letter == "a":
                two.link.to_a(1)
        quiet(two.link)
        send_only(two.promise)(sent + 1)
        quiet(two.link)
        assert numbers(two.box) == list(range(1, sent + 2)), "".join(word)


class Three:
    """As `Two`, with a third side `c` where things live."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.sides = [Side(name) for name in "abc"]
        self.a, self.b, self.c = self.sides
        self.ab, self.bc, self.ac = Link(self.a, self.b), Link(self.b, self.c), Link(self.a, self.c)
        self.links = (self.ab, self.bc, self.ac)
        self.box = Box()
        self.sent = 0

    def given(self, link: Link, giver: Side, value: Any, *, promise: bool = False) -> Any:
        """`value` of `giver`, as the other side of the link holds it."""
        mine, theirs = (link.a, link.b) if link.sides[0] is giver else (link.b, link.a)
        taker = link.sides[1] if link.sides[0] is giver else link.sides[0]
        return taker.hold(theirs, exported(mine, value), promise=promise)

    def send(self, promise: Promise) -> None:
        self.sent += 1
        send_only(promise)(self.sent)
        self.a.run()

    def jostle(self, steps: int, *actions: Callable[[], None]) -> None:
        """Single messages on random links, and the actions, each once, in random places."""
        todo = [*actions, *[None] * steps]
        self.random.shuffle(todo)
        for action in todo:
            if action is not None:
                action()
                for side in self.sides:
                    side.run()
            else:
                link = self.random.choice(self.links)
                self.random.choice((link.to_a, link.to_b))(self.random.choice((1, 1, 2)))


def a_promise_that_becomes_a_third_party_s(three: Three) -> tuple[Promise, list[Callable[[], None]]]:
    handle, vow = three.b.promise()
    promise = three.given(three.ab, three.b, handle, promise=True)
    ref = three.given(three.bc, three.c, three.box)
    return promise, [lambda: vow.resolve(ref)]


def a_promise_of_a_promise_of_the_third(three: Three) -> tuple[Promise, list[Callable[[], None]]]:
    handle, vow = three.b.promise()
    promise = three.given(three.ab, three.b, handle, promise=True)
    theirs, their_vow = three.c.promise()
    other = three.given(three.bc, three.c, theirs, promise=True)
    mine = three.given(three.ac, three.a, three.box)
    return promise, [lambda: vow.resolve(other), lambda: their_vow.resolve(mine)]


def a_promise_that_comes_home(three: Three) -> tuple[Promise, list[Callable[[], None]]]:
    """b's promise becomes a's own, to which b has sent too, and that becomes an object of c."""
    handle, vow = three.b.promise()
    promise = three.given(three.ab, three.b, handle, promise=True)
    own, own_vow = three.a.promise()
    at_b = three.given(three.ab, three.a, own, promise=True)
    ref = three.given(three.ac, three.c, three.box)
    at_b._vow.listen()
    noise = Random(three.random.random())

    def send_own() -> None:
        send_only(at_b)(-1 if noise.random() < 0.5 else -2)

    return promise, [send_own, lambda: vow.resolve(at_b), lambda: own_vow.resolve(ref)]


@pytest.mark.parametrize(
    "scene",
    [a_promise_that_becomes_a_third_party_s, a_promise_of_a_promise_of_the_third, a_promise_that_comes_home],
)
def test_three_sides(scene: Callable[[Three], tuple[Promise, list[Callable[[], None]]]]) -> None:
    for seed in range(600):
        three = Three(Random(seed))
        promise, actions = scene(three)
        if seed % 2:
            promise._vow.listen()  # type: ignore[attr-defined]
        sends = [partial(three.send, promise)] * 5
        three.jostle(14, *actions, *sends)
        three.send(promise)
        three.jostle(8)
        three.send(promise)
        quiet(*three.links)
        three.send(promise)
        quiet(*three.links)
        assert [n for n in numbers(three.box) if n > 0] == list(range(1, three.sent + 1)), f"seed {seed}"  # type: ignore[operator]


def test_a_promise_that_the_peer_names_as_another_of_its_own() -> None:
    """Other implementations tell of a promise that became another pending one: what was sent to it counts there."""
    two = Two()
    next_handle, next_vow = two.b.promise()
    followed: Promise = two.a.hold(two.link.a, exported(two.link.b, next_handle), promise=True)
    exported(two.link.a, two.box)
    mine = two.b.hold(two.link.b, 1)
    two.promise._vow.listen()  # type: ignore[attr-defined]
    two.link.to_b()
    (resolver,) = two.link.b.tables._resolvers
    followed._vow.listen()  # type: ignore[attr-defined]
    two.link.to_b()
    send_only(two.promise)(1)
    two.a.run()
    two.link.collect()  # the message is under way
    two.link.b.deliver_only(descriptor_bytes(EXPORT, resolver), [FULFILL, next_handle])
    two.vow.waiting = None  # it has been told
    two.vow.resolve(next_handle)
    next_vow.resolve(mine)
    two.b.run()
    two.link.to_a()
    send_only(two.promise)(2)
    two.a.run()
    quiet(two.link)
    assert numbers(two.box) == [1, 2]
