"""Gives of exporters that are not there: how often they are tried, for whom, and how many."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
import trio

import ocapn
from ocapn import MemoryNetlayer, open_peer, send_only
from ocapn.captp.bootstrap import FETCH
from ocapn.captp.handoff import Certificate
from ocapn.crypto import sign_give
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator
from ocapn.netlayers.base import Channel
from tests.restart.support import Plug, Process, relay, world
from tests.restart.test_waiting import giving
from tests.support import trio_test

GIFTS = 20


@pytest.fixture
def dials(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each designator was dialled."""
    counts: Counter[str] = Counter()
    original = Plug.dial

    async def dial(self: Plug, locator: PeerLocator, limits: Limits) -> Channel:
        counts[locator.designator] += 1
        return await original(self, locator, limits)

    monkeypatch.setattr(Plug, "dial", dial)
    return counts


def give(giver: ocapn.Peer, *exporters: PeerLocator) -> None:
    """Gifts of these exporters, which never deposited any, as arguments of messages that want no answer."""
    (core,) = giver.node.sessions.values()
    random = Random(1)
    for exporter in exporters:
        wire = sign_give(
            core.key,
            core.peer_key,
            exporter,
            random.randbytes(32),
            random.randbytes(16),
            core.form.text_order,
        )
        core.deliver_only(core.bootstrap, [FETCH, Certificate(wire)], forwarded=True)
    giver.pump()


@asynccontextmanager
async def scene() -> AsyncIterator[tuple[Process, ocapn.Peer]]:
    """A process, and a peer with a session to it that gives gifts."""
    async with world(check=False) as place:
        process = await place.process("v").start()
        async with open_peer([MemoryNetlayer(place.network, "g")]) as giver:
            await giver.connect(process.peer.locator())
            yield process, giver


def again(process: Process) -> int:
    return len(process.peer.node.gifts._again)


def test_he_is_tried_less_and_less_often(dials: Counter[str]) -> None:
    @trio_test
    async def run() -> None:
        async with scene() as (v, giver):
            give(giver, PeerLocator("memory", "x"))
            times = []
            seen = 0
            for second in range(700):
                await trio.sleep(1)
                if dials["x"] > seen:
                    seen = dials["x"]
                    times.append(second)
            assert again(v) == 0
            assert v.disk.scan("turn") == []
            gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
            assert 5 <= len(gaps) <= 8
            assert all(later >= 1.5 * sooner for sooner, later in itertools.pairwise(gaps))

    run()


def test_a_transport_that_this_peer_does_not_have_is_not_tried_again() -> None:
    @trio_test
    async def run() -> None:
        async with scene() as (v, giver):
            give(giver, PeerLocator("onion", "x"))
            await trio.sleep(1)
            assert again(v) == 0
            assert v.disk.scan("turn") == []

    run()


def test_of_sessions_that_have_ended_only_so_many_wait(dials: Counter[str]) -> None:
    @trio_test
    async def run() -> None:
        async with world(check=False) as place:
            v = await place.process("v", limits=Limits(gifts=GIFTS)).start()
            for number in range(5):
                async with open_peer([MemoryNetlayer(place.network, f"g{number}")], durable="never") as giver:
                    await giver.connect(v.peer.locator())
                    give(giver, *[PeerLocator("memory", f"x{number}.{i}") for i in range(GIFTS)])
                    await trio.sleep(1)
                    assert again(v) >= GIFTS
            await trio.sleep(30)
            assert again(v) == GIFTS
            await trio.sleep(700)
            assert again(v) == 0
            assert v.disk.scan("turn") == []
            assert dials.total() < 12 * 5 * GIFTS

    run()


def test_an_exporter_that_dies_while_it_is_settled_whether_the_session_is_durable() -> None:
    @trio_test
    async def run() -> None:
        async with world(check=False) as place:
            a, b, c, to_b = await giving(place)
            crashed: list[int] = []

            def point(number: int) -> str | None:
                if not crashed and any(one.designator == "b" for one in c.peer.node.sessions):
                    crashed.append(number)
                    return "before"
                return None

            c.disk.point = point
            place.keep_up(c, after=1.0)
            send_only(to_b).watch(relay(a).to)
            await trio.sleep(300)
            assert crashed
            told: Any = relay(b).told
            assert len(told) == 1, relay(b).failed
            assert relay(b).failed == ()
            assert c.disk.scan("gift") == b.disk.scan("turn") == []
            del told, to_b

    run()
