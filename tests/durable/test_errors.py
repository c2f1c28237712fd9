"""What broke a promise is the same after a restart."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

import attrs
import pytest
import trio

import durable
from durable.records import MARK
from ocapn import (
    Aborted,
    Disconnected,
    E,
    MemoryNetlayer,
    MemoryNetwork,
    ObjectLost,
    Peer,
    Promise,
    RemoteError,
    SessionLost,
    Symbol,
    Target,
    make_promise,
    method,
    open_peer,
)
from ocapn.captp.delivery import broken
from ocapn.errors import Backpressure, PeerRestarted, RolledBack
from tests.durable.support import again
from tests.restart.support import Process, agreed, two
from tests.support import trio_test


@durable.kind("test.errors.holder", version=1)
@attrs.define(eq=False)
class Holder(Target):
    """Keeps a promise, breaks answers, and is told."""

    held: object = None
    told: tuple[str, ...] = ()

    @method
    def fail(self, value: object) -> None:
        raise RemoteError("no", value)

    @method
    def read(self) -> None:
        raise ValueError("no file \udcff")

    def tell(self, error: BaseException) -> None:
        self.told = (*self.told, f"{type(error).__name__}: {error}")


class Other(Target):
    """Ends with its process."""


async def error_of(promise: Any) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        await promise
    return caught.value


async def held(a: Process, b: Process) -> Any:
    """What `a` holds of a Holder of `b`, over a durable session."""
    ref = await a.peer.enliven(b.peer.export(b.baggage.provide("holder", Holder)))
    await agreed(a, b)
    return ref


def alone(baggage: durable.Baggage) -> AbstractAsyncContextManager[Peer]:
    """A peer that knows no other."""
    return open_peer([MemoryNetlayer(MemoryNetwork(), "a")], baggage=baggage)


def parts(error: BaseException) -> tuple[object, ...]:
    return type(error), str(error), getattr(error, "value", None), vars(error).get("delivered")


@pytest.mark.parametrize(
    "value", [None, "text", Symbol("closed"), {"code": 7, "of": [b"\0", Symbol("s")]}, {MARK + "e": 1}]
)
@trio_test
async def test_an_answer_that_is_owed(value: object) -> None:
    async with two() as (a, b):
        ref = await held(a, b)
        start = b.disk.commits
        b.disk.point = lambda number: "after" if number == start + 1 else None
        answer = E(ref).fail(value)
        await b.crashed.wait()
        later = E(answer).anything()  # meets the answer in the new process
        await b.ended.wait()
        await b.start()
        first, second = await error_of(answer), await error_of(later)
        assert parts(first) == parts(second)
        assert isinstance(second, RemoteError)
        assert second.value == value


@trio_test
async def test_a_value_that_cannot_be_kept_is_left_out() -> None:
    first = durable.MemoryBaggage()
    async with alone(first) as a:
        promise, resolver = make_promise()
        resolver.break_(RemoteError("no", [Other()]))
        a.export(promise, b"promise")
    second = again(first)
    async with alone(second) as a:
        kept = a._node.swiss[b"promise"]
        assert parts(await error_of(kept)) == (RemoteError, "no", None, None)


@trio_test
async def test_text_that_is_none_does_not_end_the_peer() -> None:
    """As of a file whose name is not UTF-8."""
    async with two() as (a, b):
        ref = await held(a, b)
        with pytest.raises(RemoteError):
            await E(ref).read()
        holder = b.baggage["holder"]
        holder.held = broken(b.peer.node, RemoteError("file \udcff")).handle()
        await b.peer.settled()
        assert b.failure is None


ERRORS: list[tuple[BaseException, BaseException]] = [
    (RemoteError("no", {"code": [7]}), RemoteError("no", {"code": [7]})),
    (RemoteError("no"), RemoteError("no")),
    (Aborted("enough"), SessionLost("enough")),
    (Disconnected("the cable"), SessionLost("the cable")),
    (SessionLost("gone", 3, 2, 1), SessionLost("gone", 3, 2, 1)),
    (RolledBack("old", 3), SessionLost("old", 3)),
    (PeerRestarted("why"), PeerRestarted("why")),
    (ObjectLost("why"), ObjectLost("why")),
    (Backpressure("full"), RemoteError("full")),
    (RemoteError("x\udcff"), RemoteError("x?")),
]


@pytest.mark.parametrize(("error", "expected"), ERRORS)
@trio_test
async def test_a_promise_in_a_field(error: BaseException, expected: BaseException) -> None:
    baggage = durable.MemoryBaggage()
    async with alone(baggage) as a:
        holder = baggage.provide("holder", Holder)
        holder.held = broken(a.node, error).handle()
    for _ in range(2):
        baggage = again(baggage)
        async with alone(baggage):
            holder = baggage["holder"]
            assert isinstance(holder.held, Promise)
            assert parts(await error_of(holder.held)) == parts(expected)
            assert str(expected) in (str(error), "x?")
            holder.told = ("something",)  # has it written again


@pytest.mark.parametrize("error", [error for error, _ in ERRORS])
@trio_test
async def test_an_object_is_told_by_the_next_process(error: BaseException) -> None:
    """It waits for its turn when the process ends."""
    baggage = durable.MemoryBaggage()
    async with alone(baggage) as a:
        holder = baggage.provide("holder", Holder)
        await trio.sleep(1)
        durable.when(broken(a.node, error).handle(), holder, None, "tell")
        a._node.take()
        assert list(a._node.waiting_turns)
        baggage.flush()  # as the commit of a pass of the loop in which many turns were left
        after = again(baggage)
    async with alone(after):
        await trio.sleep(1)
        (told,) = after["holder"].told
        assert told.endswith(str(error).replace("\udcff", "?"))
