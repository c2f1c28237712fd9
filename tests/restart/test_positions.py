"""An answer's position that the peer has released may be used again, for another question."""

from __future__ import annotations

import gc

import attrs
import trio

import durable
import ocapn
from durable.pages import SIZE, entries
from durable.records import decode
from durable.store import number_key
from ocapn import E
from tests.restart.support import agreed, slots_in, two
from tests.support import trio_test

PENDING: list[ocapn.Resolver] = []


@durable.kind("restart.promiser", version=1)
@attrs.define(eq=False)
class Promiser(ocapn.Target):
    """Answers with promises that the test resolves."""

    @ocapn.method
    def ask(self) -> object:
        promise, resolver = ocapn.make_promise()
        PENDING.append(resolver)
        return promise


@trio_test
async def test_an_answer_at_a_position_that_was_released_while_its_promise_was_pending() -> None:
    PENDING.clear()
    async with two() as (a, b):
        ref = await a.peer.enliven(b.peer.export(b.baggage.provide("promiser", Promiser)))
        await agreed(a, b)
        (asking,), (asked,) = a.peer.sessions, b.peer.sessions
        ours, theirs = asking._core.tables, asked._core.tables

        answer = E(ref).ask()
        await trio.sleep(1)
        (position,) = theirs.answers
        slot = (asked._core.id, b"a", position)
        del answer
        gc.collect(0)
        await trio.sleep(1)
        assert not theirs.answers
        assert slot not in slots_in(b.disk._tables["answer"])

        ours.next_question = position
        answer = E(ref).ask()
        await trio.sleep(1)
        assert list(theirs.answers) == [position]
        first, second = PENDING
        second.fulfill(2)
        await b.peer.settled()
        page = position // SIZE
        written = b.disk.last["answer", asked._core.id + b"A" + number_key(page)]
        assert written is not None
        assert entries(page, decode(written))[position] == [1, 2]
        first.fulfill(1)
        assert await answer == 2
