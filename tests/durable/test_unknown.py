"""A peer that says long enough that it does not know a session ends it; a restart does not begin the count again."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio

import durable
from durable.records import decode
from ocapn import E, MemoryNetlayer, MemoryNetwork, SessionLost, Target, method, open_peer
from tests.durable.support import again
from tests.support import trio_test


class Echo(Target):
    @method
    def echo(self, value: object) -> object:
        return value


class Clock:
    """What the computer takes for the time, which somebody may set."""

    def __init__(self) -> None:
        self.ahead = 1.7e9

    def __call__(self) -> float:
        return self.ahead + trio.current_time()


@contextmanager
def clock() -> Iterator[Clock]:
    with pytest.MonkeyPatch.context() as patch:
        one = Clock()
        patch.setattr(time, "time", one)
        yield one


async def life(network: MemoryNetwork, baggage: durable.Baggage, seconds: float) -> durable.MemoryBaggage:
    """A process that goes on with the session, if there is one, for so long; and the baggage that it leaves."""
    async with open_peer([MemoryNetlayer(network, "a")], baggage=baggage):
        await trio.sleep(seconds)
    return again(baggage)


def said(baggage: durable.Baggage) -> list[int]:
    """When the peer has said that it does not know the session, as it is kept."""
    rows = baggage.scan("node", b"unknown/")
    return decode(rows[0][1]) if rows else []


async def forgotten(network: MemoryNetwork) -> tuple[durable.MemoryBaggage, durable.MemoryBaggage]:
    """The baggages of `a` and `b`, which have a session."""
    first, other = durable.MemoryBaggage(), durable.MemoryBaggage()
    async with (
        open_peer([MemoryNetlayer(network, "b")], baggage=other) as b,
        open_peer([MemoryNetlayer(network, "a")], baggage=first) as a,
    ):
        echo = await a.enliven(b.export(Echo()))
        first.provide("held", lambda: "something")
        assert await E(echo).echo(1) == 1
        await trio.sleep(1)
    return again(first), again(other)


@asynccontextmanager
async def alone() -> AsyncIterator[tuple[Clock, MemoryNetwork, durable.MemoryBaggage]]:
    """The baggage of `a`, while `b` is there and has forgotten the session that it had."""
    network = MemoryNetwork()
    with clock() as now:
        baggage, _ = await forgotten(network)
        async with open_peer([MemoryNetlayer(network, "b")]):
            yield now, network, baggage


@trio_test
async def test_over_many_processes() -> None:
    async with alone() as (_, network, baggage):
        start = trio.current_time()
        for number in range(11):
            baggage = await life(network, baggage, 60)
            over = trio.current_time() - start > 601
            assert (baggage.scan("session") == []) is over, number
            assert (said(baggage) == []) is over
            if not over:
                assert len(said(baggage)) == 3
        assert over
        assert len(baggage.scan("node", b"tombstone/")) == 1


@pytest.mark.parametrize("ahead", [-3e8, -500])
@trio_test
async def test_a_clock_that_is_set_back(ahead: float) -> None:
    async with alone() as (now, network, baggage):
        baggage = await life(network, baggage, 300)
        now.ahead += ahead
        start = trio.current_time()
        while baggage.scan("session"):
            baggage = await life(network, baggage, 60)
        assert 300 <= trio.current_time() - start <= 700


@pytest.mark.parametrize("ahead", [-3e8, 3e8])
@trio_test
async def test_a_clock_that_is_set_while_the_process_runs(ahead: float) -> None:
    async with alone() as (now, network, baggage):
        async with open_peer([MemoryNetlayer(network, "a")], baggage=baggage) as a:
            (session,) = a.sessions
            await trio.sleep(200)
            now.ahead += ahead
            await trio.sleep(200)
            assert session.ended is None
        first, *_ = said(baggage)
        assert 380 <= now() - first <= 400  # as if the clock had always been that


@trio_test
async def test_a_peer_that_knows_it_again() -> None:
    network = MemoryNetwork()
    with clock():
        baggage, other = await forgotten(network)
        async with open_peer([MemoryNetlayer(network, "b")]):
            baggage = await life(network, baggage, 60)
        assert len(said(baggage)) == 3
        async with open_peer([MemoryNetlayer(network, "b")], baggage=other):
            baggage = await life(network, baggage, 60)
        assert said(baggage) == []
        assert len(baggage.scan("session")) == 1


@trio_test
async def test_a_peer_that_is_proved_to_have_forgotten_is_believed_at_once() -> None:
    network = MemoryNetwork()
    first = durable.MemoryBaggage()
    async with (
        open_peer([MemoryNetlayer(network, "b")]) as b,
        open_peer([MemoryNetlayer(network, "a", authenticates=True)], baggage=first) as a,
    ):
        echo = await a.enliven(b.export(Echo()))
        await trio.sleep(1)
        (session,) = a.sessions
    del echo
    baggage = again(first)
    async with (
        open_peer([MemoryNetlayer(network, "b")]),
        open_peer([MemoryNetlayer(network, "a", authenticates=True)], baggage=baggage) as a,
    ):
        (session,) = a.sessions
        await trio.sleep(5)
        assert isinstance(session.ended, SessionLost)
    assert said(baggage) == []
