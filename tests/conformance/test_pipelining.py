"""Pipelining on the wire, and the order of messages (wire.md, Operations)."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import ocapn
from ocapn import E
from tests.support import trio_test_real

from .client import Client, Message
from .encoding import BOOTSTRAP, VOID, Rec, Sym, answer, envelope, export, obj, own, public_key
from .peer import ECHO
from .support import World, asked_of, pair_of, world

DEPTH = 100


async def _chained(found: World, client: Client) -> Rec:
    @ocapn.target
    def me(count: int) -> object:
        if count == 0:
            raise ValueError("enough")
        return me

    found.peer.export(me, b"me")
    return await client.fetch(b"me")


@trio_test_real
async def test_pipelining_to_depth_100() -> None:
    async with world() as found:
        client = await found.session()
        me = await _chained(found, client)
        to = me
        operations = []
        for n in range(1, DEPTH + 1):
            position = client.answer_position()
            operations.append(Rec("op:deliver", to, [n], position, False))
            to = answer(position)
        await client.send(*operations)
        assert own(await client.fulfilled(await client.listen(to))) == me


@trio_test_real
async def test_a_broken_pipeline_of_depth_100_breaks_as_a_whole() -> None:
    async with world() as found:
        client = await found.session()
        to = await _chained(found, client)
        operations, resolvers = [], []
        for n in range(DEPTH):
            position, resolver = client.answer_position(), client.position()
            operations.append(Rec("op:deliver", to, [n], position, obj(resolver)))
            resolvers.append(export(resolver))
            to = answer(position)
        await client.send(*operations)
        errors = [await client.broken(resolver) for resolver in resolvers]
        assert errors == [Rec("desc:error", "enough")] * DEPTH


@trio_test_real
async def test_messages_to_a_promise_wait_in_order() -> None:
    """100 messages, and parts between them, reach what the promise becomes in the order they were sent."""
    async with world() as found:
        heard: list[object] = []

        @ocapn.target
        def hear(n: object) -> object:
            heard.append(n)
            return n

        found.peer.export(hear, b"hear")
        client = await found.session()
        hearer = await client.fetch(b"hear")
        vow, resolver = await pair_of(client)
        asked = [await client.ask(vow, n) for n in range(DEPTH)]
        await client.nothing_else()
        assert not heard
        await client.tell(resolver, Sym("fulfill"), hearer)
        direct = await client.ask(vow, DEPTH)
        for n, one in enumerate([*asked, direct]):
            assert await client.fulfilled(one) == n
        assert heard == list(range(DEPTH + 1))


@pytest.mark.parametrize("value", [1, "text", VOID, [], Rec("desc:error", "an error as a value")], ids=repr)
@trio_test_real
async def test_messages_to_what_becomes_data_break(value: object, caplog: pytest.LogCaptureFixture) -> None:
    async with world() as found:
        client = await found.session()
        vow, resolver = await pair_of(client)
        asked = await client.ask(vow, "before")
        await client.tell(vow, "before, wanting nothing")
        with caplog.at_level(logging.WARNING, "ocapn.captp"):
            await client.tell(resolver, Sym("fulfill"), value)
            assert (await client.broken(asked)).label == "desc:error"
            assert (await client.broken(await client.ask(vow, "after"))).label == "desc:error"
        assert len(caplog.records) == 1


@trio_test_real
async def test_messages_to_a_broken_promise_break_with_its_error() -> None:
    async with world() as found:
        client = await found.session()
        vow, resolver = await pair_of(client)
        before = await client.ask(vow, "before")
        await client.tell(resolver, Sym("break"), Sym("gone"))
        assert await client.broken(before) == Sym("gone")
        assert await client.broken(await client.ask(vow, "after")) == Sym("gone")


@trio_test_real
async def test_the_peer_pipelines_to_depth_100() -> None:
    """Nothing is awaited: every message stands on the answer of the one before."""

    def chain(someone: object) -> object:
        last = E(someone)(0)
        for n in range(1, DEPTH):
            last = last(n)
        return last

    async with world() as found:
        client, mine, other, caller = await asked_of(found, chain)
        asked = await other.ask(caller)
        expected = mine
        for n in range(DEPTH):
            message = Message.of(await client.next())
            assert (message.to, message.args) == (expected, [n])
            assert message.answer is not None
            expected = answer(message.answer)
        await client.tell(own(message.resolver), Sym("fulfill"), "the last")
        assert await other.fulfilled(asked) == "the last"


@trio_test_real
async def test_messages_pipelined_to_our_answer_are_ours_again() -> None:
    """The peer's answer becomes our object: what we pipelined to it comes back to us, in order."""
    async with world() as found:
        client = await found.session()
        echo = await client.fetch(ECHO)
        mine = client.position()
        whole, part = client.answer_position(), client.answer_position()
        await client.send(
            Rec("op:deliver", echo, [obj(mine)], whole, False),
            Rec("op:index", answer(whole), 0, part),
            *[Rec("op:deliver", answer(part), [n], False, False) for n in range(10)],
        )
        for n in range(10):
            message = await client.message_to(export(mine))
            assert message.args == [n]


@trio_test_real
async def test_order_of_messages_to_one_target_by_different_ways() -> None:
    """Through an answer that is known, directly, with and without an answer: in the order sent."""
    async with world() as found:
        heard: list[object] = []

        @ocapn.target
        def hear(n: object) -> None:
            heard.append(n)

        found.peer.export(hear, b"hear")
        client = await found.session()
        hearer = await client.fetch(b"hear")
        position = client.answer_position()
        await client.ask(BOOTSTRAP, Sym("fetch"), b"hear", answer=position)
        await client.call(answer(position), "first")
        for n in range(30):
            if n % 3 == 0:
                await client.tell(hearer, n)
            elif n % 3 == 1:
                await client.tell(answer(position), n, old_form=True)
            else:
                await client.ask(hearer, n)
        await client.call(hearer, "last")
        assert heard == ["first", *range(30), "last"]


@pytest.mark.parametrize("gives", [False, True], ids=["the peer's own object", "a third party's"])
@trio_test_real
async def test_what_was_pipelined_to_our_answer_is_not_overtaken(gives: bool) -> None:
    """Our answer turns out to live elsewhere: what the peer pipelined to it, we have to forward.

    So the peer asks a second time, and sends nothing directly before that is answered.
    """
    heard: list[object] = []
    held: list[Any] = []

    @ocapn.target
    def hear(n: object) -> None:
        heard.append(n)

    @ocapn.target
    def start(someone: object) -> None:
        held.append(E(someone)("question"))

    @ocapn.target
    def send(first: int, last: int) -> None:
        for n in range(first, last):
            ocapn.send_only(held[0])(n)

    async with world() as found:
        for target, swiss in ((hear, b"hear"), (start, b"start"), (send, b"send")):
            found.peer.export(target, swiss)
        client = await found.session()
        hearer, sender = await client.fetch(b"hear"), await client.fetch(b"send")
        exporter = await found.session("exporter")
        mine, thing = client.position(), exporter.position()
        await client.call(await client.fetch(b"start"), obj(mine))
        question = await client.message_to(export(mine))
        assert question.answer is not None

        def gift(name: bytes) -> Rec:
            """What our answer is: the peer's own object, or what a third peer has for it by that gift id."""
            give = Rec(
                "desc:handoff-give",
                public_key(client.peer_key),
                exporter.place.location,
                b"session",
                b"side",
                name,
            )
            return envelope(client.key, give) if gives else hearer

        await client.call(sender, 0, 3)
        await client.tell(own(question.resolver), Sym("fulfill"), gift(b"first"))
        pipelined = [await client.next() for _ in range(3)]
        assert [one.fields[:2] for one in pipelined] == [(answer(question.answer), [n]) for n in range(3)]
        again = await client.next()
        assert (again.label, again.fields[0]) == ("op:listen", answer(question.answer))
        await client.call(sender, 3, 6)
        await client.nothing_else()
        assert not heard
        if not gives:
            for one in pipelined:
                await client.tell(hearer, *one.fields[1])
        await client.tell(own(again.fields[1]), Sym("fulfill"), gift(b"second"))
        await client.call(sender, 6, 9)
        if gives:
            withdrawals = [await exporter.message_to(BOOTSTRAP) for _ in range(2)]
            assert [message.args[0] for message in withdrawals] == [Sym("withdraw-gift")] * 2
            for message in withdrawals:
                await exporter.tell(own(message.resolver), Sym("fulfill"), obj(thing))
            for n in range(3, 9):
                operation = await exporter.next()
                assert operation.fields[1] == [n]
        else:
            await client.nothing_else()
            assert heard == list(range(9))
        held.clear()
