"""A baggage that cannot be written any more ends its peer; and nobody waits for a peer that has ended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import trio

import durable
from ocapn import (
    E,
    Limits,
    MemoryNetlayer,
    MemoryNetwork,
    Peer,
    SessionEnded,
    SessionEvent,
    Target,
    make_promise,
    method,
    open_peer,
    send_only,
    when_broken,
)
from ocapn.cli.exits import leaves
from tests.support import trio_test


class Busy(Target):
    """Never answers."""

    @method
    async def never(self, data: bytes = b"") -> None:
        await trio.sleep_forever()


def no_space(changes: object) -> None:
    raise OSError(28, "no space left on device")


@asynccontextmanager
async def failing(
    network: MemoryNetwork, **options: Any
) -> AsyncIterator[tuple[durable.MemoryBaggage, Peer]]:
    """A peer `b` whose disk is full when the block says so."""
    baggage = durable.MemoryBaggage()
    async with open_peer([MemoryNetlayer(network, "b")], baggage=baggage, **options) as peer:
        yield baggage, peer


def fills_up(baggage: durable.MemoryBaggage) -> None:
    baggage._store.on_commit = no_space  # type: ignore[attr-defined]
    baggage["a"] = 1


@contextmanager
def fails(text: str = "no space left") -> Iterator[None]:
    with pytest.raises(durable.BaggageFailed, match=text):
        yield


async def told(awaitable: Any, errors: list[BaseException]) -> None:
    try:
        await awaitable
    except Exception as error:
        errors.append(error)


async def listen(channel: trio.MemoryReceiveChannel[SessionEvent], events: list[str]) -> None:
    async with channel:
        async for event in channel:
            events.append(event.status)
    events.append("end")


@trio_test
async def test_it_leaves_as_it_is_also_when_the_block_was_cancelled_for_it() -> None:
    with fails():
        async with failing(MemoryNetwork()) as (baggage, _):
            fills_up(baggage)
            await trio.sleep(100)
    assert isinstance(getattr(baggage.failed, "__cause__", None), OSError)
    assert trio.current_time() == 0  # nobody waits for what will not come


@trio_test
async def test_who_awaits_something_gets_it_in_whatever_task() -> None:
    network, errors = MemoryNetwork(), list[BaseException]()
    async with open_peer([MemoryNetlayer(network, "a")]) as a, trio.open_nursery() as nursery:
        with fails():
            async with failing(network) as (baggage, b):
                ref = await b.enliven(a.export(Busy()))
                answer, (local, resolver) = E(ref).never(), make_promise()
                settled, _ = make_promise()
                for promise in (answer, local, when_broken(ref)):
                    nursery.start_soon(told, promise, errors)
                await trio.sleep(1)
                resolver.fulfill("not on disk")
                fills_up(baggage)
                nursery.start_soon(told, b.settled(), errors)
                await settled
        await trio.testing.wait_all_tasks_blocked()
        assert [type(error) for error in errors] == [durable.BaggageFailed] * 4
        for late in (answer, local, b.settled()):
            with pytest.raises(durable.BaggageFailed, match="no space left"):
                await late


@trio_test
async def test_it_leaves_as_it_is_from_nurseries_of_the_block() -> None:
    with fails():
        async with failing(MemoryNetwork()) as (baggage, b), trio.open_nursery() as nursery:
            fills_up(baggage)
            for _ in range(3):
                nursery.start_soon(b.settled)
                nursery.start_soon(trio.sleep_forever)


@trio_test
async def test_what_the_block_raises_at_the_same_time_is_seen_as_well() -> None:
    for wait in (True, False):
        errors = list[BaseException]()

        async def block() -> None:
            async with failing(MemoryNetwork()) as (baggage, _):
                fills_up(baggage)
                try:
                    if wait:  # noqa: B023
                        await trio.sleep_forever()
                finally:
                    raise ValueError("of its own")

        await told(block(), errors)
        found = sorted(leaves(errors[0]), key=repr)
        assert [type(error) for error in found] == [durable.BaggageFailed, ValueError]


@pytest.mark.parametrize("cancelled", [True, False])
@trio_test
async def test_the_last_commit_fails(cancelled: bool) -> None:
    with fails(), trio.CancelScope() as scope:
        async with failing(MemoryNetwork()) as (baggage, _):
            fills_up(baggage)
            if cancelled:
                scope.cancel()
                await trio.sleep_forever()
    assert trio.current_time() == 0


@trio_test
async def test_the_application_meets_the_failure_first() -> None:
    with fails():
        async with failing(MemoryNetwork()) as (baggage, _):
            fills_up(baggage)
            baggage.flush()
    with fails("closed"):
        async with failing(MemoryNetwork()) as (baggage, _):
            baggage.close()
            await trio.sleep(100)
            with fails("closed"):
                baggage["a"] = 1


@trio_test
async def test_nobody_waits_for_a_peer_that_was_left() -> None:
    """Its sessions are suspended, and break nothing."""
    events = list[str]()
    network, errors = MemoryNetwork(), list[BaseException]()
    async with open_peer([MemoryNetlayer(network, "a")]) as a, trio.open_nursery() as nursery:
        async with failing(network, limits=Limits(outbox_frames=100)) as (_, b):
            ref = await b.enliven(a.export(Busy()))
            await trio.sleep(1)
            (link,) = network.links
            link.hold()
            answer = E(ref).never()
            for _ in range(99):
                send_only(ref).never()
            (session,) = b.sessions
            for awaitable in (answer, when_broken(ref), session.writable()):
                nursery.start_soon(told, awaitable, errors)
            nursery.start_soon(listen, session.events(), events)
            await trio.sleep(1)
            assert errors == []
        await trio.testing.wait_all_tasks_blocked()
        assert [str(error) for error in errors] == ["the peer was closed"] * 3
        assert events == ["suspended", "end"]
        with pytest.raises(SessionEnded, match="the peer was closed"):
            await answer
