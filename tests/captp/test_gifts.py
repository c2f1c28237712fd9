"""Handoffs between nodes driven by hand: gifts and withdrawals in either order, their life, their end."""

from __future__ import annotations

import gc

import pytest

from ocapn import Limits, Promise, RemoteError, send_only
from ocapn.captp.delivery import BROKEN, FULFILLED
from tests.captp.sides import Box, Clock, Link, Side, exported, quiet


class Handoff:
    """`a` (gifter) gives `b` (receiver) a reference to `box`, of `c` (exporter)."""

    def __init__(self, *, linked: bool = True) -> None:
        self.clock = Clock()
        limits = Limits(gift_life=100.0, gifts=2)
        self.a, self.b, self.c = (Side(name, clock=self.clock, limits=limits) for name in "abc")
        self.ab, self.ac = Link(self.a, self.b), Link(self.a, self.c)
        self.links = [self.ab, self.ac]
        if linked:
            self.link_b_to_c()
        self.box, self.got = Box("box"), Box("got")
        self.ref = self.a.hold(self.ac.a, exported(self.ac.b, self.box))
        self.to_b = self.a.hold(self.ab.a, exported(self.ab.b, self.got))

    def link_b_to_c(self) -> None:
        self.bc = Link(self.b, self.c)
        self.links.append(self.bc)

    def give(self) -> None:
        send_only(self.to_b)(self.ref)
        self.a.run()

    def expire(self, after: float) -> None:
        self.clock.now += after
        self.c.node.expire()
        self.c.run()

    @property
    def promise(self) -> Promise:
        promise = self.got.got[-1][0]
        assert isinstance(promise, Promise)
        return promise

    @property
    def waiting(self) -> tuple[int, int]:
        stats = [session.stats() for session in self.c.node.sessions.values()]
        return sum(one["gifts_waiting"] for one in stats), sum(one["withdrawals_waiting"] for one in stats)


@pytest.mark.parametrize("deposit_first", [True, False])
def test_either_order(deposit_first: bool) -> None:
    handoff = Handoff()
    handoff.give()
    first, second = (handoff.ac, handoff.bc) if deposit_first else (handoff.bc, handoff.ac)
    handoff.ab.to_b()
    send_only(handoff.promise)("hello")
    handoff.b.run()
    first.to_b()
    assert handoff.waiting == ((1, 0) if deposit_first else (0, 1))
    handoff.c.node.check()
    second.to_b()
    quiet(*handoff.links)
    assert handoff.waiting == (0, 0)
    assert handoff.box.got == [["hello"]]
    assert handoff.promise._vow.end().state == FULFILLED
    handoff.c.node.check()


def test_a_gift_lives_as_long_as_it_may_and_no_longer() -> None:
    for after, there in ((99.0, True), (100.0, False)):
        handoff = Handoff()
        handoff.give()
        handoff.ac.to_b()
        handoff.expire(after)
        assert handoff.waiting == ((1, 0) if there else (0, 0))
        handoff.ab.to_b()
        quiet(*handoff.links)
        assert (handoff.promise._vow.end().state == FULFILLED) == there
        if not there:
            handoff.expire(100.0)
            quiet(*handoff.links)
            assert handoff.promise._vow.end().state == BROKEN
            handoff.c.node.check()


def test_a_withdrawal_waits_as_long_as_it_may_and_no_longer() -> None:
    handoff = Handoff()
    handoff.give()
    handoff.ab.to_b()
    handoff.bc.to_b()
    handoff.expire(99.0)
    assert handoff.waiting == (0, 1)
    handoff.expire(1.0)
    assert handoff.waiting == (0, 0)
    handoff.bc.to_a()
    vow = handoff.promise._vow.end()
    assert vow.state == BROKEN
    assert "did not come in time" in str(vow.value)


def test_a_withdrawal_breaks_when_the_gifter_goes() -> None:
    handoff = Handoff()
    handoff.give()
    handoff.ab.to_b()
    handoff.bc.to_b()
    handoff.ac.b.disconnected("gone")
    handoff.c.run()
    quiet(handoff.bc)
    vow = handoff.promise._vow.end()
    assert vow.state == BROKEN
    assert "its session has ended" in str(vow.value)
    assert handoff.waiting == (0, 0)


def test_a_gift_outlives_its_gifter() -> None:
    handoff = Handoff()
    handoff.give()
    handoff.ac.to_b()
    handoff.ac.b.disconnected("gone")
    handoff.ab.to_b()
    quiet(handoff.bc, handoff.ab)
    assert handoff.promise._vow.end().state == FULFILLED


def test_a_past_session_is_forgotten_after_the_life_of_a_gift() -> None:
    handoff = Handoff()
    handoff.give()
    handoff.ac.to_b()
    handoff.ac.b.disconnected("gone")
    assert handoff.c.node.past_session(handoff.ac.b.id) is not None
    handoff.expire(100.0)
    assert handoff.c.node.past_session(handoff.ac.b.id) is None
    handoff.ab.to_b()
    quiet(handoff.bc, handoff.ab)
    assert "no session between gifter and exporter" in str(handoff.promise._vow.end().value)


def test_gifts_are_limited_by_session() -> None:
    handoff = Handoff()
    for _ in range(3):
        handoff.give()
    handoff.ac.to_b()
    assert handoff.waiting == (2, 0)
    handoff.c.node.check()


def test_no_way_to_the_exporter() -> None:
    handoff = Handoff(linked=False)
    handoff.give()
    handoff.ab.to_b()
    assert [locator.designator for locator, _ in handoff.b.wanted] == ["c"]
    handoff.b.refuse_wanted()
    assert handoff.promise._vow.end().state == BROKEN


def test_a_way_that_is_found_later() -> None:
    """What was sent to the gift meanwhile arrives in order."""
    handoff = Handoff(linked=False)
    handoff.give()
    handoff.ab.to_b()
    promise = handoff.promise
    for number in range(3):
        send_only(promise)(number)
    handoff.link_b_to_c()
    ((_, callback),) = handoff.b.wanted
    callback(handoff.bc.a)
    handoff.b.run()
    send_only(promise)(3)
    quiet(*handoff.links)
    send_only(promise)(4)
    quiet(*handoff.links)
    assert handoff.box.got == [[0], [1], [2], [3], [4]]


def test_the_same_certificate_twice_gives_one_gift() -> None:
    handoff = Handoff()
    handoff.give()
    handoff.ab.collect()
    handoff.ab.under_way[0].extend(list(handoff.ab.under_way[0]))
    quiet(*handoff.links)
    states = [args[0]._vow.end().state for args in handoff.got.got]  # type: ignore[attr-defined]
    assert states[0] == FULFILLED
    assert states[1] != FULFILLED
    handoff.expire(100.0)
    quiet(*handoff.links)
    assert isinstance(handoff.got.got[1][0]._vow.end().value, RemoteError)  # type: ignore[attr-defined]


def test_all_is_dropped_afterwards() -> None:
    handoff = Handoff()
    handoff.give()
    quiet(*handoff.links)
    handoff.got.got.clear()
    del handoff.ref, handoff.to_b
    gc.collect()
    quiet(*handoff.links)
    for side in (handoff.a, handoff.b, handoff.c):
        for session in side.node.sessions.values():
            assert not any(session.tables.sizes().values())
