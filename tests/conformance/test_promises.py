"""Promises on the wire: listening, resolving, parts (wire.md, Operations)."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import ocapn
from ocapn import E
from tests.support import trio_test_real

from .client import Client, Message
from .encoding import (
    BOOTSTRAP,
    VOID,
    Rec,
    Sym,
    answer,
    export,
    obj,
    own,
    promise,
)
from .peer import ECHO, GREETER
from .support import asked_of, pair_of, part_of, world

# op:listen

PARTIALS: list[tuple[bool, ...]] = [(), (False,), (True,)]
partials = pytest.mark.parametrize("partial", PARTIALS, ids=["two fields", "f", "t"])


@partials
@trio_test_real
async def test_listening_on_a_promise(partial: tuple[bool, ...]) -> None:
    async with world() as found:
        client = await found.session()
        vow, resolver = await pair_of(client)
        listeners = [await client.listen(vow, *partial) for _ in range(3)]
        await client.nothing_else()
        await client.tell(resolver, Sym("fulfill"), ["settled"])
        for listener in listeners:
            told = Message.of(await client.next())
            assert (told.to, told.args) == (listener, [Sym("fulfill"), ["settled"]])
        assert await client.fulfilled(await client.listen(vow, *partial)) == ["settled"]
        await client.nothing_else()  # each is told once


@partials
@trio_test_real
async def test_listening_on_a_broken_promise(partial: tuple[bool, ...]) -> None:
    async with world() as found:
        client = await found.session()
        vow, resolver = await pair_of(client)
        before = await client.listen(vow, *partial)
        await client.tell(resolver, Sym("break"), Rec("desc:error", "it broke"))
        for listener in (before, await client.listen(vow, *partial)):
            assert await client.broken(listener) == Rec("desc:error", "it broke")


@partials
@trio_test_real
async def test_listening_on_a_target_is_answered_with_the_target(partial: tuple[bool, ...]) -> None:
    async with world() as found:
        client = await found.session()
        echo = await client.fetch(ECHO)
        assert own(await client.fulfilled(await client.listen(echo, *partial))) == echo
        assert own(await client.fulfilled(await client.listen(BOOTSTRAP, *partial))) == BOOTSTRAP


@trio_test_real
async def test_listening_on_an_answer() -> None:
    async with world() as found:
        client = await found.session()
        position = client.answer_position()
        await client.send(Rec("op:deliver", BOOTSTRAP, [Sym("fetch"), ECHO], position, False))
        echo = own(await client.fulfilled(await client.listen(answer(position))))
        assert await client.call(echo, 1) == [1]


@trio_test_real
async def test_a_listener_may_be_a_promise() -> None:
    async with world() as found:
        client = await found.session()
        echo = await client.fetch(ECHO)
        position = client.position()
        await client.send(Rec("op:listen", echo, promise(position), False))
        assert own(await client.fulfilled(export(position))) == echo
        await client.until_returned(position, 1)


@trio_test_real
async def test_a_promise_resolved_to_another_of_the_same_peer_is_followed() -> None:
    async with world() as found:
        client = await found.session()
        first, resolve_first = await pair_of(client)
        second, resolve_second = await pair_of(client)
        listener = await client.listen(first)
        await client.tell(resolve_first, Sym("fulfill"), second)
        await client.nothing_else()
        late = await client.listen(first)
        await client.nothing_else()
        await client.tell(resolve_second, Sym("fulfill"), "the end")
        assert await client.fulfilled(listener) == "the end"
        assert await client.fulfilled(late) == "the end"


@trio_test_real
async def test_a_promise_resolved_to_itself_breaks() -> None:
    async with world() as found:
        client = await found.session()
        vow, resolver = await pair_of(client)
        listener = await client.listen(vow)
        await client.tell(resolver, Sym("fulfill"), vow)
        assert (await client.broken(listener)).label == "desc:error"


@trio_test_real
async def test_a_circle_of_promises_breaks() -> None:
    async with world() as found:
        client = await found.session()
        first, resolve_first = await pair_of(client)
        second, resolve_second = await pair_of(client)
        listeners = [await client.listen(first), await client.listen(second)]
        await client.tell(resolve_first, Sym("fulfill"), second)
        await client.tell(resolve_second, Sym("fulfill"), first)
        for listener in listeners:
            assert (await client.broken(listener)).label == "desc:error"


@trio_test_real
async def test_a_promise_of_ours_is_listened_on_when_the_peer_wants_to_know() -> None:
    """The peer's promise is fulfilled with a promise of ours; what that becomes, another session is told."""
    async with world() as found:
        client, other = await found.session("client"), await found.session("other")
        holder: list[Any] = []

        @ocapn.target
        def keep(value: object) -> None:
            holder.append(value)

        @ocapn.target
        async def know() -> object:
            return await holder[0]

        found.peer.export(keep, b"keep")
        found.peer.export(know, b"know")
        vow = client.position()
        await client.tell(await client.fetch(b"keep"), promise(vow))
        asked = await other.ask(await other.fetch(b"know"))
        listening = await client.next()
        assert (listening.label, listening.fields[0], listening.fields[2]) == (
            "op:listen",
            export(vow),
            False,
        )
        await client.tell(own(listening.fields[1]), Sym("fulfill"), 42)
        assert await other.fulfilled(asked) == 42
        holder.clear()


@trio_test_real
async def test_a_settled_promise_ignores_its_resolver() -> None:
    async with world() as found:
        client = await found.session()
        vow, resolver = await pair_of(client)
        await client.tell(resolver, Sym("fulfill"), 1)
        await client.tell(resolver, Sym("fulfill"), 2)
        await client.tell(resolver, Sym("break"), Sym("late"))
        assert await client.outcome(await client.listen(vow)) == ("fulfill", 1)


# Resolvers of the peer


@trio_test_real
async def test_our_answer_to_the_peer_may_be_a_value_an_error_or_a_promise() -> None:
    """The peer passes on what its own question became, to another session."""
    async with world() as found:
        client, mine, other, caller = await asked_of(found, lambda someone: E(someone)("what?"))
        answers: list[tuple[str, object]] = [
            ("fulfill", [1, "a"]),
            ("break", Rec("desc:error", "no")),
            ("break", Sym("no")),
        ]
        for verb, value in answers:
            asked = await other.ask(caller)
            message = await client.message_to(mine)
            await client.tell(own(message.resolver), Sym(verb), value)
            assert await other.outcome(asked) == (verb, value)
        asked = await other.ask(caller)
        message = await client.message_to(mine)
        vow = client.position()
        await client.tell(own(message.resolver), Sym("fulfill"), promise(vow), old_form=True)
        listening = await client.next()
        assert (listening.label, listening.fields[0]) == ("op:listen", export(vow))
        await client.tell(own(listening.fields[1]), Sym("fulfill"), "in the end")
        assert await other.fulfilled(asked) == "in the end"


@trio_test_real
async def test_a_promise_of_ours_comes_back_as_ours_at_once() -> None:
    """The peer does not make us wait for ourselves: an answer that is our own promise is told as that."""
    async with world() as found:

        @ocapn.target
        def ask(someone: object) -> object:
            return E(someone)("what?")

        found.peer.export(ask, b"ask")
        client = await found.session()
        mine = client.position()
        asked = await client.ask(await client.fetch(b"ask"), obj(mine))
        message = await client.message_to(export(mine))
        assert message.answer is not None
        assert await client.fulfilled(asked) == answer(message.answer)


@trio_test_real
async def test_what_a_resolver_does_not_understand(caplog: pytest.LogCaptureFixture) -> None:
    async with world() as found:
        client = await found.session()
        greeter = await client.fetch(GREETER)
        position = client.position()
        await client.tell(greeter, obj(position))
        message = await client.message_to(export(position))
        resolver = own(message.resolver)
        with caplog.at_level(logging.WARNING, "ocapn.captp"):
            await client.tell(resolver, Sym("fulfill"))
            await client.tell(resolver, "fulfill", 1)
            await client.tell(resolver)
            assert "resolver" in (await client.broken(await client.ask(resolver, 1, 2))).fields[0]
        assert len(caplog.records) == 3
        assert all("resolver" in record.getMessage() for record in caplog.records)


# op:get, op:index, op:untag

STRUCT, LIST, TAGGED = {"a": 1}, [1, 2], Rec("desc:tagged", Sym("t"), [1])
PARTS: list[tuple[str, object, object, object]] = [
    ("op:get", STRUCT, "a", 1),
    ("op:get", {"": VOID}, "", VOID),
    ("op:index", LIST, 0, 1),
    ("op:index", LIST, 1, 2),
    ("op:untag", TAGGED, "t", [1]),
    ("op:untag", Rec("desc:tagged", "t", [1]), "t", [1]),
]
NO_PARTS: list[tuple[str, object, object]] = [
    ("op:get", STRUCT, "b"),
    ("op:get", LIST, "a"),
    ("op:get", TAGGED, "t"),
    ("op:get", "text", "a"),
    ("op:get", VOID, "a"),
    ("op:index", LIST, 2),
    ("op:index", [], 0),
    ("op:index", STRUCT, 0),
    ("op:index", "text", 0),
    ("op:index", b"bytes", 0),
    ("op:index", TAGGED, 0),
    ("op:index", LIST, 2**62),
    ("op:untag", TAGGED, "u"),
    ("op:untag", STRUCT, "a"),
    ("op:untag", LIST, "t"),
    ("op:untag", 1, "t"),
]


@pytest.mark.parametrize("settled_first", [False, True], ids=["before", "after"])
@trio_test_real
async def test_parts(settled_first: bool) -> None:
    """Of a promise and of an answer, asked for before and after it is known."""
    async with world() as found:
        client = await found.session()
        for operation, value, key, part in PARTS:
            vow, resolver = await pair_of(client)
            if settled_first:
                await client.tell(resolver, Sym("fulfill"), value)
            of_vow = await part_of(client, operation, vow, key)
            position = client.answer_position()
            await client.send(Rec("op:listen", vow, obj(client.position()), False))
            echoed = await part_of(client, operation, await _echoed(client, value, position), key)
            if not settled_first:
                await client.tell(resolver, Sym("fulfill"), value)
            assert await client.fulfilled(of_vow) == part
            assert await client.fulfilled(echoed) == part


async def _echoed(client: Client, value: object, position: int) -> Rec:
    """The answer that is `value`: the first of what the echo says."""
    whole = client.answer_position()
    await client.send(
        Rec("op:deliver", await client.fetch(ECHO), [value], whole, False),
        Rec("op:index", answer(whole), 0, position),
    )
    return answer(position)


@pytest.mark.parametrize(("operation", "value", "key"), NO_PARTS)
@trio_test_real
async def test_parts_that_there_are_not(operation: str, value: object, key: object) -> None:
    """They break, and what is asked of them breaks alike; the session goes on."""
    async with world() as found:
        client = await found.session()
        vow, resolver = await pair_of(client)
        part = client.answer_position()
        await client.send(Rec(operation, vow, key, part))
        broken = [
            await client.listen(answer(part)),
            await client.ask(answer(part), "a message"),
            await part_of(client, "op:get", answer(part), "further"),
        ]
        await client.tell(resolver, Sym("fulfill"), value)
        errors = [await client.broken(one) for one in broken]
        assert errors[0].label == "desc:error"
        assert errors.count(errors[0]) == 3
        again = await part_of(client, operation, vow, key)
        assert await client.broken(again) == errors[0]


@pytest.mark.parametrize(("operation", "key"), [("op:get", "a"), ("op:index", 0), ("op:untag", "a")])
@trio_test_real
async def test_a_target_has_no_parts(operation: str, key: object) -> None:
    async with world() as found:
        client = await found.session()
        echo = await client.fetch(ECHO)
        for target in (echo, BOOTSTRAP):
            error = await client.broken(await part_of(client, operation, target, key))
            assert error.label == "desc:error"


@trio_test_real
async def test_a_part_that_is_a_reference_takes_messages() -> None:
    async with world() as found:
        client = await found.session()
        echo = await client.fetch(ECHO)
        whole, first, inner = (client.answer_position() for _ in range(3))
        resolver = client.position()
        await client.send(
            Rec("op:deliver", echo, [{"it": echo}], whole, False),
            Rec("op:index", answer(whole), 0, first),
            Rec("op:get", answer(first), "it", inner),
            Rec("op:deliver", answer(inner), ["pipelined"], False, obj(resolver)),
        )
        assert await client.fulfilled(export(resolver)) == ["pipelined"]


@trio_test_real
async def test_the_peer_asks_for_parts() -> None:
    """`field`, `index` and `untag` of a promise of ours are pipelined."""

    def parts(someone: object) -> object:
        return ocapn.untag(ocapn.index(ocapn.field(E(someone)("whole"), "f"), 3), "t")

    async with world() as found:
        client, mine, other, caller = await asked_of(found, parts)
        asked = await other.ask(caller)
        message = await client.message_to(mine)
        assert message.answer is not None
        expected = answer(message.answer)
        for label, key in (("op:get", "f"), ("op:index", 3), ("op:untag", "t")):
            selection = await client.next()
            assert selection.label == label
            assert selection.fields[:2] == (expected, key)
            expected = answer(selection.fields[2])
        listening = await client.next()
        assert (listening.label, listening.fields[0]) == ("op:listen", expected)
        await client.tell(own(listening.fields[1]), Sym("fulfill"), "part")
        assert await other.fulfilled(asked) == "part"
