"""Bytes that are no values, at every stage of a connection (wire.md, Syrup; vectors `malformed`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest

from tests.conformance.encoding import Raw, Rec, Sym
from tests.support import trio_test_real
from tests.wire.vectors import MALFORMED, OPERATIONS, OVER_LIMITS, PASSABLES

from .support import VICTIM, aborted, attack, call, frame, scene

#: By vector, the rule that it breaks as a whole message.
RULES: Final = {
    "leading-zero-int": "a number begins with a zero that is not needed",
    "negative-zero": "zero has no negative form",
    "no-sign": "the message ends inside a value",
    "leading-zero-length": "a number begins with a zero that is not needed",
    "truncated-string": "the message ends inside a value",
    "negative-length": "no value begins with byte 0x2d",
    "bad-utf8": "a string is not well-formed UTF-8",
    "surrogate": "a string is not well-formed UTF-8",
    "unsorted-struct": "the keys of a struct are not in order",
    "duplicate-key": "the key 'a' stands twice in a struct",
    "odd-struct": "a struct ends after a key that has no value",
    "unterminated-list": "the message ends inside a value",
    "unterminated-record": "the message ends inside a value",
    "stray-close": "closes what is not open",
    "whitespace": "no value begins with byte 0x20",
    "trailing": "bytes are left over after the value",
    "empty": "an empty frame holds no message",
    "single-float": "single floats are not in the OCapN model",
    "short-double": "the message ends inside a value",
    "noncanonical-nan": "a NaN is 7ff8000000000000 and nothing else",
    "unknown-byte": "no value begins with byte 0x78",
    "record-label-int": "a record begins with a symbol, its label",
    "symbol-key-struct-in-passable": "a struct's key is a string",
    "huge-length": "a length beyond every limit",
    "set": "sets are not in the OCapN model",
    "struct-neither-order": "the keys of a struct are not in order",
    "nesting-100": "nested more than 64 deep",
    "digits-300": "an integer of more than 256 digits",
}
BAD: Final = MALFORMED | OVER_LIMITS
EVERY: Final = pytest.mark.parametrize("name", BAD)


def test_every_vector_has_its_rule() -> None:
    assert set(RULES) == set(BAD)


@EVERY
@trio_test_real
async def test_in_place_of_the_start(name: str) -> None:
    async with scene() as here:
        client = await here.connect()
        await client.send_unframed(frame(BAD[name]))
        await aborted(client, RULES[name])


@EVERY
@trio_test_real
async def test_before_the_start(name: str) -> None:
    """A start that follows in the same piece does not help."""
    async with scene() as here:
        client = await here.connect()
        await client.send_unframed(frame(BAD[name], client.start()))
        await aborted(client, RULES[name])
        assert len(here.peer.sessions) == 1


#: Where in an op:start-session: the index of the field, and how to put the vector there.
FIELDS: Final[dict[str, Callable[[Rec, Raw], Rec]]] = {
    "version": lambda start, bad: Rec("op:start-session", bad, *start.fields[1:]),
    "key": lambda start, bad: Rec("op:start-session", start.fields[0], bad, *start.fields[2:]),
    "key bytes": lambda start, bad: Rec(
        "op:start-session",
        start.fields[0],
        [Sym("public-key"), [Sym("ecc"), *start.fields[1][1][1:3], [Sym("q"), bad]]],
        *start.fields[2:],
    ),
    "location": lambda start, bad: Rec("op:start-session", *start.fields[:2], bad, start.fields[3]),
    "designator": lambda start, bad: _location(start, Sym("tcp-testing-only"), bad, False),
    "hints": lambda start, bad: _location(start, Sym("tcp-testing-only"), "attacker", bad),
    "hint": lambda start, bad: _location(start, Sym("tcp-testing-only"), "attacker", {"host": bad}),
    "signature": lambda start, bad: Rec("op:start-session", *start.fields[:3], bad),
    "a fifth field": lambda start, bad: Rec("op:start-session", *start.fields, bad),
}


def _location(start: Rec, *fields: Any) -> Rec:
    version, key, _, signature = start.fields
    return Rec("op:start-session", version, key, Rec("ocapn-peer", *fields), signature)


@pytest.mark.parametrize("field", FIELDS)
@EVERY
@trio_test_real
async def test_inside_the_start(name: str, field: str) -> None:
    async with scene() as here:
        client = await here.connect()
        start = FIELDS[field](client.start(), Raw(BAD[name]))
        await client.send_unframed(frame(start))
        if name == "empty" and field == "a fifth field":  # then it is a start like any other
            await client.their_start()
            await client.end()
        else:
            await aborted(client, "malformed at byte")
        assert len(here.peer.sessions) == 1


@EVERY
@trio_test_real
async def test_as_a_message_of_a_session(name: str) -> None:
    await attack(frame(BAD[name]), RULES[name])


#: Values around a vector.
AROUND: Final[dict[str, Callable[[Raw], Any]]] = {
    "argument": lambda bad: bad,
    "in a list": lambda bad: [1, [bad], 2],
    "in a struct": lambda bad: {"a": bad},
    "in a tagged": lambda bad: Rec("desc:tagged", Sym("tag"), bad),
    "in an error": lambda bad: Rec("desc:error", "message", bad),
    "in a sturdyref": lambda bad: Rec("ocapn-sturdyref", bad, b"swiss"),
}


@pytest.mark.parametrize("around", AROUND)
@EVERY
@trio_test_real
async def test_as_an_argument(name: str, around: str) -> None:
    value = AROUND[around](Raw(BAD[name]))
    if name in ("empty", "trailing") and around in ("argument", "in a list", "in an error"):
        async with scene() as here:  # none or two values instead of one are no mistake there
            client = await here.attacker()
            resolver = await client.ask(VICTIM, Sym("drop"), value)
            assert await client.fulfilled(resolver) == Rec("void")
            await client.end()
    else:
        await attack(frame(call("drop", value)), "malformed at byte")


@pytest.mark.parametrize("name", ["trailing"])
@pytest.mark.parametrize("operation", OPERATIONS)
@trio_test_real
async def test_bytes_after_a_message(name: str, operation: str) -> None:
    await attack(frame(OPERATIONS[operation] + MALFORMED[name]), "bytes are left over after the value")


@pytest.mark.parametrize("name", PASSABLES)
@trio_test_real
async def test_a_value_that_is_no_operation(name: str) -> None:
    """A value of the model is no message; in place of the start it is none either."""
    await attack(frame(PASSABLES[name]), "malformed")
    async with scene() as here:
        client = await here.connect()
        await client.send_unframed(frame(PASSABLES[name]))
        record = PASSABLES[name].startswith(b"<")
        await aborted(client, "no operation is called" if record else "the first message of a connection is")


@pytest.mark.parametrize("operation", OPERATIONS)
@trio_test_real
async def test_every_operation_in_place_of_the_start(operation: str) -> None:
    async with scene() as here:
        client = await here.connect()
        await client.send_unframed(frame(OPERATIONS[operation]))
        if operation == "abort":
            await client.ends()
        else:
            await aborted(client, "the first message of a connection is op:start-session")


@pytest.mark.parametrize("operation", OPERATIONS)
@trio_test_real
async def test_every_operation_cut_anywhere(operation: str) -> None:
    """In whole frames that hold the beginning of a message, at each length."""
    data = OPERATIONS[operation]
    async with scene() as here:
        for length in range(1, len(data), 7):
            client = await here.attacker()
            await client.send_unframed(frame(call("note", "attacker", length), data[:length]))
            await aborted(client, "malformed at byte")
        heard = here.victim.heard["attacker"]
        assert heard == list(range(1, len(data), 7))
