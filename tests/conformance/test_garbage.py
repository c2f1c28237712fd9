"""Garbage collection: what is counted, returned, freed and used again (wire.md, Garbage collection)."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable

import pytest

import ocapn
from ocapn import E
from tests.support import trio_test_real

from .client import Message
from .encoding import (
    BOOTSTRAP,
    Rec,
    Sym,
    answer,
    export,
    obj,
    own,
    promise,
)
from .peer import CAR_FACTORY_BUILDER, ECHO, GREETER
from .support import FETCH_NONE, pair_of, world


@pytest.fixture
def unlogged(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest keeps what is logged, and with an error the frames where it was raised and what they hold."""
    monkeypatch.setattr(logging.getLogger("ocapn.captp"), "disabled", True)


# What the peer returns


@trio_test_real
async def test_many_references_in_one_message() -> None:
    """Every descriptor counts, wherever it stands."""
    async with world() as found:
        client = await found.session()
        echo = await client.fetch(ECHO)
        one, *many = [client.position() for _ in range(1500)]
        args = [
            [obj(position) for position in many],
            [obj(one)] * 50,
            {"a": obj(one), "b": [{"c": obj(one)}]},
            Rec("desc:tagged", Sym("t"), [obj(one)]),
        ]
        await client.tell(echo, *args)
        await client.until_returned(one, 53)
        for position in many:
            await client.until_returned(position, 1)


@trio_test_real
async def test_references_in_the_answer_to_the_peer_are_counted_too() -> None:
    async with world() as found:
        client = await found.session()
        greeted = client.position()
        await client.tell(await client.fetch(GREETER), obj(greeted))
        message = await client.message_to(export(greeted))
        thing = client.position()
        await client.tell(own(message.resolver), Sym("fulfill"), [obj(thing), promise(client.position())])
        await client.give_back(own(message.resolver))
        await client.until_returned(thing, 1)


@trio_test_real
async def test_references_in_different_messages_and_again_after_their_return() -> None:
    async with world() as found:
        client = await found.session()
        echo = await client.fetch(ECHO)
        position = client.position()
        for total in (4, 8, 12):
            for _ in range(4):
                await client.tell(echo, obj(position))
            await client.until_returned(position, total)
        assert client.exported[position] == 0


@trio_test_real
async def test_what_is_held_is_not_returned_until_it_is_let_go() -> None:
    async with world() as found:
        client = await found.session()
        (session,) = found.peer.sessions
        vow, resolver = await pair_of(client)
        position = client.position()
        await client.call(resolver, Sym("fulfill"), obj(position))
        for _ in range(3):
            await client.call(await client.fetch(ECHO), obj(position))
        assert session.stats()["imports"] == 1
        assert client.returned[position] == 0
        await client.give_back(vow, resolver)
        await client.until_returned(position, 4)


@trio_test_real
async def test_promises_of_ours_are_returned() -> None:
    async with world() as found:
        client = await found.session()
        echo = await client.fetch(ECHO)
        position = client.position()
        await client.tell(echo, promise(position), [promise(position)])
        await client.until_returned(position, 2)


@trio_test_real
async def test_each_resolver_is_returned_once_it_was_told() -> None:
    async with world() as found:
        client = await found.session()
        vow, resolver = await pair_of(client)
        mine = client.position()
        operations = [
            Rec("op:deliver", BOOTSTRAP, FETCH_NONE, False, obj(mine)),
            Rec("op:listen", vow, obj(mine), False),
        ]
        await client.send(*operations)
        await client.broken(export(mine))
        await client.until_returned(mine, 1)
        await client.tell(resolver, Sym("fulfill"), 1)
        await client.fulfilled(export(mine))
        await client.until_returned(mine, 2)


@trio_test_real
async def test_a_resolver_that_is_an_argument_as_well_is_counted_for_both() -> None:
    async with world() as found:
        client = await found.session()
        echo = await client.fetch(ECHO)
        mine = client.position()
        await client.send(Rec("op:deliver", echo, [obj(mine), obj(mine)], False, obj(mine)))
        assert await client.fulfilled(export(mine)) == [export(mine)] * 2
        await client.until_returned(mine, 3)


@trio_test_real
async def test_what_an_error_in_a_method_was_given_is_returned(unlogged: None) -> None:
    async with world() as found:

        @ocapn.target
        def fail(*args: object) -> None:
            raise ValueError("no")

        found.peer.export(fail, b"fail")
        client = await found.session()
        failing = await client.fetch(b"fail")
        one, other = client.position(), client.position()
        await client.broken(await client.ask(failing, obj(one)))
        await client.tell(failing, obj(other))
        await client.until_returned(one, 1)
        await client.until_returned(other, 1)


@trio_test_real
async def test_what_cannot_reach_its_target_is_returned(unlogged: None) -> None:
    """Messages to a promise that breaks, and arguments that the bootstrap object does not want."""
    async with world() as found:
        client = await found.session()
        vow, resolver = await pair_of(client)
        waiting, unwanted = client.position(), client.position()
        await client.tell(vow, obj(waiting))
        await client.tell(BOOTSTRAP, obj(unwanted))
        await client.until_returned(unwanted, 1)
        await client.tell(resolver, Sym("break"), Sym("gone"))
        await client.until_returned(waiting, 1)


# What the peer gave


@trio_test_real
async def test_the_same_object_is_the_same_position_until_all_is_returned() -> None:
    async with world() as found:
        client = await found.session()
        echo = await client.fetch(ECHO)
        for _ in range(2):
            assert await client.fetch(ECHO) == echo
        assert await client.call(echo, echo, [echo]) == [obj(echo.fields[0]), [obj(echo.fields[0])]]
        assert client.imported[echo.fields[0]] == 5
        await client.send(Rec("op:gc-exports", [echo.fields[0]], [4]))
        client.imported[echo.fields[0]] -= 4
        assert await client.call(echo, "still there") == ["still there"]
        await client.give_back(echo)
        again = await client.fetch(ECHO)
        assert again != echo, "positions of objects are never used again"
        await client.tell(echo, 1)
        assert f"export {echo.fields[0]}" in await client.aborted()


@trio_test_real
async def test_a_return_that_crosses_a_new_reference_leaves_the_object() -> None:
    """We return what had come, and the peer has sent it once more by then."""
    async with world() as found:
        client = await found.session()
        echo = await client.fetch(ECHO)
        asked = await client.ask(BOOTSTRAP, Sym("fetch"), ECHO)
        assert own(await client.fulfilled(asked)) == echo
        await client.send(Rec("op:gc-exports", [echo.fields[0]], [1]))
        assert await client.call(echo, "still there") == ["still there"]


FORMS: list[Callable[[int, int], Rec]] = [
    lambda position, delta: Rec("op:gc-exports", [position], [delta]),
    lambda position, delta: Rec("op:gc-exports", [position] * delta, [1] * delta),
    lambda position, delta: Rec("op:gc-export", [position], [delta]),
    lambda position, delta: Rec("op:gc-export", position, delta),
]


@pytest.mark.parametrize("form", FORMS, ids=["lists", "the position twice", "old lists", "old integers"])
@trio_test_real
async def test_every_form_of_a_return(form: Callable[[int, int], Rec]) -> None:
    async with world() as found:
        client = await found.session()
        (session,) = found.peer.sessions
        echo = await client.fetch(ECHO)
        await client.fetch(ECHO)
        await client.send(
            form(0, 7), form(echo.fields[0], 2)
        )  # the return of the bootstrap object is ignored
        await client.nothing_else()
        assert session.stats()["exports"] == 0
        await client.tell(echo, 1)
        assert "export 1" in await client.aborted()


@trio_test_real
async def test_returns_of_nothing() -> None:
    async with world() as found:
        client = await found.session()
        for label in ("op:gc-exports", "op:gc-export"):
            await client.send(Rec(label, [], []))
        for label in ("op:gc-answers", "op:gc-answer"):
            await client.send(Rec(label, []))
        await client.nothing_else()


@trio_test_real
async def test_what_was_returned_is_garbage_here() -> None:
    """The peer holds an object for us, and for nobody else."""
    made: list[weakref.ref[ocapn.Target]] = []

    class Thing(ocapn.Target):
        pass

    @ocapn.target
    def make() -> ocapn.Target:
        thing = Thing()
        made.append(weakref.ref(thing))
        return thing

    async with world() as found:
        found.peer.export(make, b"make")
        client = await found.session()
        thing = own(await client.call(await client.fetch(b"make")))
        gc.collect()
        assert made[0]() is not None
        await client.give_back(thing)
        await client.nothing_else()
        gc.collect()
        assert made[0]() is None


@trio_test_real
async def test_a_message_that_could_not_be_sent_counts_for_nothing() -> None:
    async with world() as found:
        client = await found.session()

        @ocapn.target
        def bad() -> object:
            return [bad, object()]

        found.peer.export(bad, b"bad")
        failing = await client.fetch(b"bad")
        error = await client.broken(await client.ask(failing))
        assert "cannot be passed" in error.fields[0]
        await client.give_back(failing)
        await client.tell(failing)
        assert "export 1" in await client.aborted()


# Answers


@pytest.mark.parametrize(
    "form",
    [
        lambda position: Rec("op:gc-answers", [position]),
        lambda position: Rec("op:gc-answer", [position]),
        lambda position: Rec("op:gc-answer", position),
    ],
    ids=["list", "old list", "old integer"],
)
@trio_test_real
async def test_answers_are_released_and_their_positions_used_again(form: Callable[[int], Rec]) -> None:
    async with world() as found:
        client = await found.session()
        for swiss in (ECHO, CAR_FACTORY_BUILDER, ECHO):
            await client.send(Rec("op:deliver", BOOTSTRAP, [Sym("fetch"), swiss], 3, False))
            reply = await client.call(answer(3))
            assert (reply == []) is (swiss == ECHO)
            await client.send(form(3))


@trio_test_real
async def test_an_answer_is_released_and_asked_for_again_in_one_write() -> None:
    async with world() as found:
        client = await found.session()
        echo = await client.fetch(ECHO)
        resolvers = [client.position() for _ in range(50)]
        operations = []
        for n in resolvers:
            operations.append(Rec("op:deliver", echo, [n], 9, obj(n)))
            operations.append(Rec("op:gc-answers", [9]))
        await client.send(*operations)
        for n in resolvers:
            assert await client.fulfilled(export(n)) == [n]


@trio_test_real
async def test_an_answer_that_is_released_before_it_is_known_is_told_all_the_same() -> None:
    """The release gives up the position; the resolver was promised an answer. What was pipelined is delivered."""
    async with world() as found:
        client = await found.session()
        vow, resolver = await pair_of(client)
        told, pipelined = client.position(), client.position()
        await client.send(
            Rec("op:deliver", vow, ["question"], 4, obj(told)),
            Rec("op:index", answer(4), 0, 5),
            Rec("op:listen", answer(5), obj(pipelined), False),
            Rec("op:gc-answers", [4, 5]),
        )
        await client.nothing_else()
        await client.tell(resolver, Sym("fulfill"), await client.fetch(ECHO))
        assert await client.fulfilled(export(told)) == ["question"]
        assert await client.fulfilled(export(pipelined)) == "question"


@trio_test_real
async def test_the_peer_releases_each_answer_that_it_asked_for() -> None:
    """Messages, and parts: released when nobody wants them any more, each once."""
    async with world() as found:

        @ocapn.target
        def ask(someone: object) -> None:
            first = E(someone)("one")
            first("two")
            ocapn.field(first, "f")

        found.peer.export(ask, b"ask")
        client = await found.session()
        mine = client.position()
        await client.tell(await client.fetch(b"ask"), obj(mine))
        asked = [await client.next() for _ in range(3)]
        positions = [operation.fields[2] for operation in asked]
        assert asked[2].label == "op:get"
        assert len(set(positions)) == 3
        for operation in asked[:2]:
            await client.tell(own(Message.of(operation).resolver), Sym("fulfill"), 1)
        for position in positions:
            await client.until_released(position)
        await client.until_returned(mine, 1)


@trio_test_real
async def test_answers_of_the_peer_are_kept_while_somebody_holds_them() -> None:
    async with world() as found:
        held: list[object] = []

        @ocapn.target
        def ask(someone: object) -> None:
            held.append(E(someone)("one"))

        @ocapn.target
        def again() -> None:
            ocapn.send_only(held[0])("two")

        found.peer.export(ask, b"ask")
        found.peer.export(again, b"again")
        client = await found.session()
        mine = client.position()
        await client.call(await client.fetch(b"ask"), obj(mine))
        message = await client.message_to(export(mine))
        assert message.answer is not None
        for _ in range(2):
            await client.call(await client.fetch(b"again"))
            assert (await client.message_to(answer(message.answer))).args == ["two"]
        assert message.answer in client.owed
        held.clear()
        await client.until_released(message.answer)


@trio_test_real
async def test_the_tables_are_empty_when_all_is_released() -> None:
    async with world() as found:
        client = await found.session()
        (session,) = found.peer.sessions
        echo = await client.fetch(ECHO)
        vow, resolver = await pair_of(client)
        mine = client.position()
        await client.send(Rec("op:deliver", echo, [obj(mine), vow], 1, False))
        asked = await client.ask(vow, "question")
        await client.tell(resolver, Sym("fulfill"), echo)
        await client.fulfilled(asked)
        await client.release(1)
        await client.until_returned(mine, 1)
        await client.give_back(*[export(position) for position in list(client.imported)])
        await client.nothing_else()
        stats = session.stats()
        assert {
            name: stats[name] for name in ("exports", "imports", "questions", "answers", "resolvers")
        } == {
            "exports": 0,
            "imports": 0,
            "questions": 0,
            "answers": 0,
            "resolvers": 0,
        }
