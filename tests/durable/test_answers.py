"""`durable.when`: a durable object is told once what a promise became, also by another process than asked for it."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio

import durable
from ocapn import E, MemoryNetlayer, MemoryNetwork, Peer, RemoteError, Target, make_promise, method, open_peer
from tests.durable.support import again
from tests.peer.support import CONTEXT
from tests.support import trio_test


@durable.kind("test.asker", version=1)
@attrs.define
class Asker(Target):
    """Writes down what it is told."""

    to: object = None
    got: tuple[object, ...] = ()
    failed: tuple[str, ...] = ()

    def ask(self, number: int) -> None:
        durable.when(E(self.to).later(number), self, "fulfilled", "broken")

    def fulfilled(self, value: object) -> None:
        self.got = (*self.got, value)

    def broken(self, error: Exception) -> None:
        self.failed = (*self.failed, f"{type(error).__name__}: {error}")


class Slow(Target):
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.go = trio.Event()
        self.asked: list[int] = []

    @method
    async def later(self, number: int) -> int:
        self.asked.append(number)
        await self.go.wait()
        if number < 0:
            raise ValueError(f"{number} is negative")
        return number * 10


async def settle() -> None:
    await trio.sleep(1)


async def asking(peer: Peer, baggage: durable.Baggage, other: Peer, slow: Slow) -> Asker:
    asker: Asker = baggage.provide("asker", Asker)
    asker.to = await peer.enliven(other.export(slow))
    await settle()  # until the session is durable
    return asker


@durable.kind("test.marking", version=1)
@attrs.define
class MarkingAsker(Target):
    """Writes down what it finds in its context, and leaves something there."""

    found: tuple[str, ...] = ()

    def told(self, value: object) -> None:
        self.found = (*self.found, CONTEXT.get())
        CONTEXT.set("of a method")


@trio_test
async def test_who_is_told_sees_nothing_of_the_context_of_another() -> None:
    baggage = durable.MemoryBaggage()
    async with open_peer([MemoryNetlayer(MemoryNetwork(), "a")], baggage=baggage):
        asker = baggage.provide("marking", MarkingAsker)
        durable.when(1, asker, "told")
        durable.when(2, asker, "told")
        await settle()
        assert asker.found == ("none", "none")


@trio_test
async def test_an_answer_that_comes_while_the_process_lives() -> None:
    network, baggage, slow = MemoryNetwork(), durable.MemoryBaggage(), Slow()
    async with (
        open_peer([MemoryNetlayer(network, "b")]) as b,
        open_peer([MemoryNetlayer(network, "a")], baggage=baggage) as a,
    ):
        asker = await asking(a, baggage, b, slow)
        asker.ask(1)
        asker.ask(-2)
        durable.when(3, asker, "fulfilled")
        promise, resolver = make_promise()
        durable.when(promise, asker, "fulfilled")
        await settle()
        assert (asker.got, asker.failed) == ((3,), ())
        slow.go.set()
        resolver.fulfill("four")
        await settle()
        assert set(asker.got) == {3, 10, "four"}
        assert asker.failed == ("RemoteError: -2 is negative",)
        assert baggage.scan("promise") == []
        assert a.sessions[0].stats()["questions"] == 0


@pytest.mark.parametrize("when", ["while it is down", "after the restart"])
@trio_test
async def test_an_answer_that_comes_to_another_process(when: str) -> None:
    network, slow = MemoryNetwork(), Slow()
    first = durable.MemoryBaggage()
    async with open_peer([MemoryNetlayer(network, "b")]) as b:
        async with open_peer([MemoryNetlayer(network, "a")], baggage=first) as a:
            asker = await asking(a, first, b, slow)
            asker.ask(1)
            asker.ask(-2)
            promise, _ = make_promise()
            durable.when(promise, asker, "fulfilled", "broken")
            forgotten = E(asker.to).later(5)
            await settle()
            assert slow.asked == [1, -2, 5]
        del forgotten
        if when == "while it is down":
            slow.go.set()
            await settle()
        baggage = again(first)
        async with open_peer([MemoryNetlayer(network, "a")], baggage=baggage) as a:
            asker = baggage["asker"]
            await settle()
            slow.go.set()
            await settle()
            assert asker.got == (10,)
            assert sorted(asker.failed) == [
                "PeerRestarted: the promise ended with the process that had it",
                "RemoteError: -2 is negative",
            ]
            assert slow.asked == [1, -2, 5]
            await settle()
            assert a.sessions[0].stats()["questions"] == b.sessions[0].stats()["answers"] == 0
            a.check()
            b.check()
        baggage = again(baggage)
        async with open_peer([MemoryNetlayer(network, "a")], baggage=baggage):
            await settle()
            assert baggage["asker"].got == (10,)  # told once


@trio_test
async def test_misuse() -> None:
    baggage = durable.MemoryBaggage()
    async with open_peer([MemoryNetlayer(MemoryNetwork(), "a")], baggage=baggage):
        with pytest.raises(TypeError, match="store it first"):
            durable.when(1, Asker(), "fulfilled")
        asker: Any = baggage.provide("asker", Asker)
        with pytest.raises(AttributeError):
            durable.when(1, asker, "nothing")
        with pytest.raises(AttributeError, match="failed is no method of Asker"):
            durable.when(1, asker, "fulfilled", "failed")
        durable.when(RemoteError("a value"), asker, None)
        await settle()
