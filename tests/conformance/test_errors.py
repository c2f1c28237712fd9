"""Application errors on the wire: they break answers, never the session, and carry no more than they should."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio

import ocapn
from tests.support import trio_test_real

from .client import Client
from .encoding import (
    BOOTSTRAP,
    Rec,
    Sym,
    answer,
    obj,
    own,
)
from .support import World, world


class Refused(ocapn.PassableError):
    """Its name is meant for the other side."""


class Faulty(ocapn.Target):
    def helper(self) -> str:
        return "not for outside"

    @ocapn.method
    def fail(self) -> None:
        secret = "a local variable"
        raise ValueError(f"broken after {len(secret)} steps")

    @ocapn.method
    def silent(self) -> None:
        raise KeyError

    @ocapn.method
    def refuse(self) -> None:
        raise Refused("not you")

    @ocapn.method
    def value(self) -> None:
        raise ocapn.RemoteError("with a value", {"code": 7})

    @ocapn.method
    async def later(self) -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError("broken later")

    @ocapn.method
    def unpassable(self) -> object:
        return {"file": [object()]}

    @ocapn.method
    def one(self, argument: object) -> object:
        return argument

    @ocapn.method
    def give_error(self) -> object:
        return ocapn.RemoteError("as a value")


async def faulty(found: World, client: Client) -> Rec:
    found.peer.export(Faulty(), b"faulty")
    return await client.fetch(b"faulty")


ERRORS: dict[str, Any] = {
    "fail": Rec("desc:error", "broken after 16 steps"),
    "silent": Rec("desc:error", ""),
    "refuse": Rec("desc:error", "Refused: not you"),
    "value": {"code": 7},
    "later": Rec("desc:error", "broken later"),
}


@pytest.mark.parametrize("name", ERRORS)
@trio_test_real
async def test_an_error_breaks_the_answer(name: str) -> None:
    """Its message crosses; its type, unless it says so, its arguments and its traceback do not."""
    async with world() as found:
        client = await found.session()
        to = await faulty(found, client)
        assert await client.broken(await client.ask(to, Sym(name))) == ERRORS[name]
        position = client.answer_position()
        await client.send(Rec("op:deliver", to, [Sym(name)], position, False))
        assert await client.broken(await client.listen(answer(position))) == ERRORS[name]
        assert await client.broken(await client.ask(answer(position), "pipelined")) == ERRORS[name]


@pytest.mark.parametrize("old_form", [False, True])
@pytest.mark.parametrize("name", ERRORS)
@trio_test_real
async def test_an_error_that_nobody_waits_for_is_logged(
    name: str, old_form: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with world() as found:
        client = await found.session()
        to = await faulty(found, client)
        with caplog.at_level(logging.WARNING, "ocapn.captp"):
            await client.tell(to, Sym(name), old_form=old_form)
            assert await client.call(to, Sym("one"), 1) == 1
            await client.nothing_else()
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert len(found.peer.sessions) == 1


@trio_test_real
async def test_an_error_may_be_a_value() -> None:
    async with world() as found:
        client = await found.session()
        to = await faulty(found, client)
        assert await client.call(to, Sym("give_error")) == Rec("desc:error", "as a value")
        error = Rec("desc:error", "there and back")
        assert await client.call(to, Sym("one"), error) == error


@trio_test_real
async def test_a_result_that_cannot_be_passed_breaks_the_answer_with_its_path() -> None:
    async with world() as found:
        client = await found.session()
        error = await client.broken(await client.ask(await faulty(found, client), Sym("unpassable")))
        assert "['file'][0]" in error.fields[0]


UNREACHABLE: dict[str, list[Any]] = {
    "a helper": [Sym("helper")],
    "no such method": [Sym("nothing")],
    "a dunder": [Sym("__init__")],
    "an attribute of the library": [Sym("_ocapn_entry"), []],
    "no name": [],
    "a number": [1],
    "bytes": [b"fail"],
    "too few arguments": [Sym("one")],
    "too many arguments": [Sym("one"), 1, 2],
    "the name alone in a list": [[Sym("one"), 1]],
}


@pytest.mark.parametrize("name", UNREACHABLE)
@trio_test_real
async def test_what_is_no_method_cannot_be_called(name: str) -> None:
    async with world() as found:
        client = await found.session()
        to = await faulty(found, client)
        error = await client.broken(await client.ask(to, *UNREACHABLE[name]))
        assert error.label == "desc:error"
        assert await client.call(to, Sym("one"), 1) == 1


@trio_test_real
async def test_references_in_arguments_of_a_failing_message_stay_usable() -> None:
    async with world() as found:
        client = await found.session()
        to = await faulty(found, client)
        position = client.position()
        await client.broken(await client.ask(to, Sym("fail"), obj(position)))
        assert await client.call(to, Sym("one"), to) == obj(to.fields[0])


@trio_test_real
async def test_an_unknown_swiss_number_says_nothing_of_others() -> None:
    async with world() as found:
        client = await found.session()
        found.peer.export(Faulty(), b"a secret")
        errors = [
            await client.broken(await client.ask(BOOTSTRAP, Sym("fetch"), swiss))
            for swiss in (b"a secre", b"a secret ", b"", bytes(2000))
        ]
        assert errors == [errors[0]] * 4
        assert own(await client.call(BOOTSTRAP, Sym("fetch"), b"a secret"))


@trio_test_real
async def test_a_fetch_after_unexport_breaks_and_what_was_fetched_stays() -> None:
    async with world() as found:
        client = await found.session()
        sturdyref = found.peer.export(Faulty())
        held = await client.fetch(sturdyref.swiss)
        found.peer.unexport(sturdyref)
        assert await client.broken(await client.ask(BOOTSTRAP, Sym("fetch"), sturdyref.swiss))
        assert await client.call(held, Sym("one"), 1) == 1
