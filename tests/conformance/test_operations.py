"""Every accepted form of every operation, what the peer sends, and what makes it abort (wire.md, Operations)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

import ocapn
from tests.support import trio_test_real

from . import cbor
from .encoding import (
    BOOTSTRAP,
    NULL,
    VOID,
    Raw,
    Rec,
    Sym,
    answer,
    encode,
    envelope,
    export,
    locator,
    make_key,
    obj,
    own,
    promise,
    public_key,
    signature,
)
from .peer import CAR_FACTORY_BUILDER, ECHO, GREETER
from .support import FETCH_NONE, alive, pair_of, world

# op:deliver


@trio_test_real
async def test_deliver_with_answer_and_resolver() -> None:
    async with world() as found:
        client = await found.session()
        position = client.answer_position()
        resolver = await client.ask(BOOTSTRAP, Sym("fetch"), CAR_FACTORY_BUILDER, answer=position)
        assert (await client.fulfilled(resolver)).label == "desc:import-object"
        assert (await client.call(answer(position))).label == "desc:import-object"


@trio_test_real
async def test_deliver_with_an_answer_alone() -> None:
    async with world() as found:
        client = await found.session()
        position = client.answer_position()
        await client.send(Rec("op:deliver", BOOTSTRAP, [Sym("fetch"), CAR_FACTORY_BUILDER], position, False))
        await client.nothing_else()
        assert (await client.call(answer(position))).label == "desc:import-object"


@trio_test_real
async def test_deliver_with_neither_is_answered_with_nothing() -> None:
    async with world() as found:
        client = await found.session()
        echo = await client.fetch(ECHO)
        await client.tell(echo, "nobody", "listens")
        await client.tell(BOOTSTRAP, *FETCH_NONE)
        await client.nothing_else()


@trio_test_real
async def test_deliver_only_is_answered_with_nothing() -> None:
    async with world() as found:
        client = await found.session()
        echo = await client.fetch(ECHO)
        await client.tell(echo, "nobody", "listens", old_form=True)
        await client.tell(BOOTSTRAP, *FETCH_NONE, old_form=True)
        await client.nothing_else()


@trio_test_real
async def test_deliver_only_to_an_answer() -> None:
    async with world() as found:
        client = await found.session()
        position = client.answer_position()
        await client.ask(BOOTSTRAP, Sym("fetch"), GREETER, answer=position)
        greeted = client.position()
        await client.tell(answer(position), obj(greeted), old_form=True)
        assert (await client.message_to(export(greeted))).args == ["Hello"]


@trio_test_real
async def test_a_resolver_may_be_a_promise() -> None:
    async with world() as found:
        client = await found.session()
        position = client.position()
        await client.send(
            Rec("op:deliver", BOOTSTRAP, [Sym("fetch"), CAR_FACTORY_BUILDER], False, promise(position))
        )
        assert (await client.fulfilled(export(position))).label == "desc:import-object"
        await client.until_returned(position, 1)


@trio_test_real
async def test_answer_0_and_imports_at_0_are_accepted() -> None:
    """The suite counts its own objects and answers from 0."""
    async with world() as found:
        client = await found.session()
        await client.send(Rec("op:deliver", BOOTSTRAP, [Sym("fetch"), ECHO], 0, obj(0)))
        echo = own(await client.fulfilled(export(0)))
        assert await client.call(answer(0), "by the answer") == ["by the answer"]
        assert await client.call(echo, obj(0)) == [export(0)]
        listener = await client.listen(answer(0))
        assert own(await client.fulfilled(listener)) == echo
        part = client.answer_position()
        await client.send(
            Rec("op:deliver", echo, ["first", "second"], 10, False),
            Rec("op:index", answer(10), 1, part),
        )
        assert await client.fulfilled(await client.listen(answer(part))) == "second"
        assert client.returned[0] == 0, "the bootstrap object is never returned"


@pytest.mark.parametrize("operation", ["op:get", "op:index", "op:untag"])
@trio_test_real
async def test_answer_0_of_a_part(operation: str) -> None:
    key: object = {"op:get": "k", "op:index": 0, "op:untag": "k"}[operation]
    value: object = {"op:get": {"k": 1}, "op:index": [1], "op:untag": Rec("desc:tagged", Sym("k"), 1)}[
        operation
    ]
    async with world() as found:
        client = await found.session()
        echo = await client.fetch(ECHO)
        await client.send(
            Rec("op:deliver", echo, [value], 5, False),
            Rec("op:index", answer(5), 0, 6),
            Rec(operation, answer(6), key, 0),
        )
        assert await client.fulfilled(await client.listen(answer(0))) == 1


@trio_test_real
async def test_method_names_may_be_strings() -> None:
    class Named(ocapn.Target):
        @ocapn.method
        def hello(self) -> str:
            return "hello"

    async with world() as found:
        found.peer.export(Named(), b"named")
        client = await found.session()
        named = await client.fetch(b"named")
        assert await client.call(named, Sym("hello")) == "hello"
        assert await client.call(named, "hello") == "hello"


# Values

VALUES: list[Any] = [
    VOID,
    NULL,
    True,
    False,
    0,
    -1,
    2**64,
    -(10**255),
    0.0,
    -0.0,
    1.5,
    math.inf,
    math.nan,
    "",
    "é 𝄞",
    b"",
    b"\x00\xff",
    Sym(""),
    Sym("a symbol"),
    [],
    [[], [1, [2]]],
    {},
    {"b": 1, "aa": {"c": []}, "": 2},
    Rec("desc:tagged", Sym("tag"), [1]),
    Rec("desc:error", "it broke"),
    locator("elsewhere", {"host": "::1", "port": "1"}),
    Rec("ocapn-peer", Sym("onion"), "abc", False),
    Rec("ocapn-sturdyref", Rec("ocapn-peer", Sym("onion"), "abc", False), b"\x00swiss"),
]


@trio_test_real
async def test_every_value_of_the_model_comes_back_as_it_was() -> None:
    async with world() as found:
        client = await found.session()
        echo = await client.fetch(ECHO)
        for value in VALUES:
            assert encode(await client.call(echo, value)) == encode([value])
        assert encode(await client.call(echo, *VALUES)) == encode(VALUES)


@trio_test_real
async def test_a_tag_may_be_a_string_and_an_error_may_have_further_fields() -> None:
    async with world() as found:
        client = await found.session()
        echo = await client.fetch(ECHO)
        assert await client.call(echo, Rec("desc:tagged", "tag", 1)) == [Rec("desc:tagged", Sym("tag"), 1)]
        assert await client.call(echo, Rec("desc:error", "it broke", Sym("code"), [1])) == [
            Rec("desc:error", "it broke")
        ]


@trio_test_real
async def test_references_keep_their_identity() -> None:
    async with world() as found:
        client = await found.session()
        echo = await client.fetch(ECHO)
        mine, vow = client.position(), client.position()
        assert await client.call(echo, obj(mine), [obj(mine)], echo, BOOTSTRAP) == [
            export(mine),
            [export(mine)],
            obj(echo.fields[0]),
            obj(0),
        ]
        assert await client.call(echo, promise(vow)) == [export(vow)]


MALFORMED = {
    "set": b"#1+2+$",
    "single float": b"F\x00\x00\x00\x00",
    "unknown record": b"<5'what!1+>",
    "record labelled with a string": b'<4"void>',
    "key that is no string": b"{1+2+}",
    "symbol as key": b"{1'a2+}",
    "unsorted keys": b'{1"b1+2"aa1+1"a1+}',
    "duplicate key": b'{1"a1+1"a2+}',
    "leading zero": b"01+",
    "negative zero": b"0-",
    "long form of a length": b"01:a",
    "signalling NaN": b"D\x7f\xf0\x00\x00\x00\x00\x00\x01",
    "negative NaN": b"D\xff\xf8\x00\x00\x00\x00\x00\x00",
    "string that is not UTF-8": b'2"\xc3\x28',
    "surrogate": b'3"\xed\xa0\x80',
    "overlong UTF-8": b'2"\xc0\x80',
    "whitespace": b" 1+",
    "void with a field": b"<4'void1+>",
    "error without message": b"<10'desc:error>",
    "error with a symbol": b"<10'desc:error1'x>",
    "tag that is a number": b"<11'desc:tagged1+1+>",
    "operation inside": b"<8'op:abort1\"x>",
    "negative position": b"<11'desc:export1->",
    "position of 2^63": b"<18'desc:import-object9223372036854775808+>",
    "position that is a string": b"<18'desc:import-object1\"1>",
    "descriptor without position": b"<18'desc:import-object>",
    "sturdyref with a string": b"<15'ocapn-sturdyref<10'ocapn-peer5'onion1\"af>1\"s>",
    "locator with hints that are a list": b"<10'ocapn-peer5'onion1\"a[]>",
    "locator with a hint that is a number": b"<10'ocapn-peer5'onion1\"a{1\"a1+}>",
    "locator with a hint that is true": b"<10'ocapn-peer5'onion1\"at>",
    "nesting of 65": b"[" * 65 + b"]" * 65,
    "integer of 257 digits": b"1" + b"0" * 256 + b"+",
}


@pytest.mark.codec("syrup")
@pytest.mark.parametrize("name", MALFORMED)
@trio_test_real
async def test_a_malformed_argument_aborts(name: str) -> None:
    async with world() as found:
        client = await found.session()
        echo = await client.fetch(ECHO)
        await client.send(Rec("op:deliver", echo, [Raw(MALFORMED[name])], False, False))
        assert "malformed" in await client.aborted()
        assert not found.peer.sessions


ANOTHER_ENCODING = "that is not the one encoding of its value"
ENVELOPE = "d81b836c7369672d656e76656c6f7065"
SOME_SIGNATURE = cbor.encode(signature(make_key(), b"")).hex()
#: In CBOR: the bytes of an argument, in hexadecimal digits, and the rule that they break.
MALFORMED_CBOR = {
    "native integer": ("01", ANOTHER_ENCODING),
    "negative native integer": ("20", ANOTHER_ENCODING),
    "integer with a leading zero byte": ("c2420001", ANOTHER_ENCODING),
    "zero that is a byte": ("c24100", ANOTHER_ENCODING),
    "negative integer with a leading zero byte": ("c3420001", ANOTHER_ENCODING),
    "integer that is no byte string": ("c26101", "an integer is a byte string in the tag 2 or 3"),
    "integer that is an array": ("c28101", "an integer is a byte string in the tag 2 or 3"),
    "long form of a length": ("780161", ANOTHER_ENCODING),
    "longer form of a length": ("59000161", ANOTHER_ENCODING),
    "long form of the length of an array": ("9801f4", ANOTHER_ENCODING),
    "long form of the length of a struct": ("b8016161f4", ANOTHER_ENCODING),
    "long form of a tag": ("da000001186161", ANOTHER_ENCODING),
    "unsorted keys": ("a26162f46161f4", ANOTHER_ENCODING),
    "keys in the order of their lengths": ("a26162f4626161f4", ANOTHER_ENCODING),
    "doubled key": ("a26161f46161f4", "a key stands twice in a struct"),
    "key that is a byte string": ("a14161f4", "a struct's key is a string"),
    "key that is no string": ("a1f4f4", "map key must be a text string"),
    "key that is a symbol": ("a1d901186161f4", "map key must be a text string"),
    "indefinite byte string": ("5f4161ff", "indefinite length"),
    "indefinite string": ("7f6161ff", "indefinite length"),
    "indefinite array": ("9ff4ff", "indefinite length"),
    "indefinite struct": ("bf6161f4ff", "indefinite length"),
    "a break alone": ("ff", "no CBOR"),
    "half float": ("f93c00", ANOTHER_ENCODING),
    "single float": ("fa3f800000", ANOTHER_ENCODING),
    "half NaN": ("f97e00", ANOTHER_ENCODING),
    "signalling NaN": ("fb7ff0000000000001", ANOTHER_ENCODING),
    "negative NaN": ("fbfff8000000000000", ANOTHER_ENCODING),
    "simple value": ("e0", "a simple value that the model does not have"),
    "simple value of two bytes": ("f8ff", "a simple value that the model does not have"),
    "false in two bytes": ("f814", "no CBOR"),
    "reserved form of a length": ("7c61", "no CBOR"),
    "string that is not UTF-8": ("62c328", "utf-8"),
    "surrogate": ("63eda080", "utf-8"),
    "overlong UTF-8": ("62c080", "utf-8"),
    "symbol that is bytes": ("d901184161", "a symbol is a string in the tag 280"),
    "record that is no array": ("d81b6161", "a record is an array in the tag 27"),
    "record without a label": ("d81b80", "a record begins with a string, its label"),
    "record labelled with a symbol": ("d81b81d9011863746167", "a record begins with a string, its label"),
    "unknown record": ("d81b816477686174", "no value is called 'what' here"),
    "operation inside": ("d81b826561626f72746178", "no value is called 'abort' here"),
    "descriptor inside": ("d81b82666578706f7274c240", "no value is called 'export' here"),
    "error without message": ("d81b81656572726f72", "more markers in the arguments than errors"),
    "tag that is a symbol": ("d81b8363746167d901186161f4", "a tag is a string"),
    "tag that is a number": ("d81b8363746167c24101f4", "a tag is a symbol or a string"),
    "locator with hints that are a list": (
        "d81b846470656572d90118656f6e696f6e616180",
        "hints are a struct of strings, or f",
    ),
    "encoded CBOR inside": ("d81841f4", "encoded CBOR is no value"),
    "marker without a reference": ("d81b8166746172676574", "more markers in the arguments than targets"),
    "marker of a promise without one": (
        "d81b816770726f6d697365",
        "more markers in the arguments than promises",
    ),
    "marker with a field": ("d81b8266746172676574c240", "a marker has no fields"),
    "envelope of what is no certificate": (
        ENVELOPE + "4174" + SOME_SIGNATURE,
        "what is signed is a desc:handoff-give or a desc:handoff-receive",
    ),
    "envelope of other bytes": (
        ENVELOPE + "4178" + SOME_SIGNATURE,
        "what is signed, at byte 0: no value begins with byte 0x78",
    ),
    "envelope without a signature": ("d81b826c7369672d656e76656c6f706540", "takes what is signed"),
    "date": ("c06161", "no value of the model has the tag 0"),
    "bignum of another base": ("c5820000", "no value of the model has the tag 5"),
    "pattern": ("d8236128", "no value of the model has the tag 35"),
    "shared value": ("d81c80", "no value of the model has the tag 28"),
    "reference to a string": ("d81900", "no value of the model has the tag 25"),
    "self-described": ("d9d9f7f4", "no value of the model has the tag 55799"),
    "trailing byte": ("f4f4", ANOTHER_ENCODING),
    "truncated": ("6261", "the message ends inside a value"),
    "truncated in a length": ("79", "the message ends inside a value"),
    "array of more than there is": ("9b7fffffffffffffff", "the message ends inside a value"),
    "bytes of more than there are": ("5b7fffffffffffffff", "the message ends inside a value"),
    "nesting of 65": ("81" * 64 + "f4", "nested more than 64 deep"),
    "integer of 257 digits": (
        "c2586b" + (10**256).to_bytes(107, "big").hex(),
        "an integer of more than 256 digits",
    ),
}


@pytest.mark.codec("cbor")
@pytest.mark.parametrize("name", MALFORMED_CBOR)
@trio_test_real
async def test_a_malformed_argument_in_cbor_aborts(name: str) -> None:
    digits, rule = MALFORMED_CBOR[name]
    async with world() as found:
        client = await found.session()
        echo = await client.fetch(ECHO)
        await client.send(Rec("op:deliver", echo, [Raw(bytes.fromhex(digits))], False, False))
        reason = await client.aborted()
        assert "malformed" in reason
        assert rule in reason
        assert not found.peer.sessions


@pytest.mark.codec("cbor")
@pytest.mark.parametrize("name", [name for name in MALFORMED_CBOR if name != "operation inside"])
@trio_test_real
async def test_malformed_cbor_in_place_of_the_start(name: str) -> None:
    async with world() as found:
        client = await (await found.place("client")).connect(found.uri)
        await client.send_bytes(bytes.fromhex(MALFORMED_CBOR[name][0]))
        assert await client.aborted()
        assert await alive(await found.session("another"))


@pytest.mark.codec("cbor")
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (["", [], [], []], "arguments are encoded CBOR"),
        ([Raw(bytes.fromhex("d81841f4")), [], [], []], "an array in it"),
        ([Raw(bytes.fromhex("d8184180")), False, [], []], "targets, promises and errors are lists"),
        (
            [Raw(bytes.fromhex("d8184180")), [1], [], []],
            "more stands beside the arguments than there are markers",
        ),
        (
            [Raw(bytes.fromhex("d8184180")), [], [1], []],
            "more stands beside the arguments than there are markers",
        ),
        (
            [Raw(bytes.fromhex("d8184180")), [], [], [b""]],
            "more stands beside the arguments than there are markers",
        ),
        ([Raw(bytes.fromhex("d8184b81d81b8166746172676574")), [b""], [], []], "the position of a reference"),
        (
            [Raw(bytes.fromhex("d8184b81d81b8166746172676574")), [2**63], [], []],
            "the position of a reference",
        ),
        (
            [Raw(bytes.fromhex("d8184b81d81b8166746172676574")), [-(2**63) - 1], [], []],
            "the position of a reference",
        ),
        ([Raw(bytes.fromhex("d81842f480")), [], [], []], ANOTHER_ENCODING),
        ([Raw(bytes.fromhex("d818f4")), [], [], []], "encoded CBOR is a byte string in the tag 24"),
    ],
)
@trio_test_real
async def test_what_stands_beside_arguments_fits_them(fields: list[Any], reason: str) -> None:
    async with world() as found:
        client = await found.session()
        await client.send_bytes(cbor.encode(Rec("deliver", BOOTSTRAP, *fields, False, False)))
        assert reason in await client.aborted()


# What aborts the session


def sent(to: Any, *args: Any) -> Rec:
    return Rec("op:deliver", to, list(args), False, False)


def asked(position: int) -> Rec:
    """A message whose answer is at `position`."""
    return Rec("op:deliver", BOOTSTRAP, FETCH_NONE, position, False)


def claim() -> Rec:
    """A signed handoff-receive, well formed and worthless."""
    key = make_key()
    give = Rec("desc:handoff-give", public_key(bytes(32)), locator("x", {}), b"", b"", b"id")
    return envelope(key, Rec("desc:handoff-receive", b"", b"", 0, envelope(key, give)))


RESOLVER = obj(90)
#: What is sent, and a part of the reason that it aborts the session with.
VIOLATIONS: dict[str, tuple[list[Rec], str]] = {
    "unknown operation": ([Rec("op:frobnicate", 1)], "op:frobnicate"),
    "a descriptor for an operation": ([export(0)], "desc:export"),
    "deliver misses a field": ([Rec("op:deliver", BOOTSTRAP, [], False)], "4 fields"),
    "deliver exceeds its fields": ([Rec("op:deliver", BOOTSTRAP, [], False, False, False)], "4 fields"),
    "deliver-only misses a field": ([Rec("op:deliver-only", BOOTSTRAP)], "2 fields"),
    "deliver-only exceeds its fields": ([Rec("op:deliver-only", BOOTSTRAP, [], False)], "2 fields"),
    "listen misses a field": ([Rec("op:listen", BOOTSTRAP)], "3 fields"),
    "listen exceeds its fields": ([Rec("op:listen", BOOTSTRAP, RESOLVER, False, False)], "3 fields"),
    "listen with a partial that is no boolean": ([Rec("op:listen", BOOTSTRAP, RESOLVER, 1)], "boolean"),
    "get misses a field": ([Rec("op:get", answer(50), "a")], "3 fields"),
    "get with a symbol": ([Rec("op:get", answer(50), Sym("a"), 51)], "string"),
    "get without an answer": ([Rec("op:get", answer(50), "a", False)], "answer"),
    "index with a negative number": ([Rec("op:index", answer(50), -1, 51)], "index"),
    "index with a string": ([Rec("op:index", answer(50), "0", 51)], "index"),
    "untag with a symbol": ([Rec("op:untag", answer(50), Sym("a"), 51)], "string"),
    "gc-exports misses a field": ([Rec("op:gc-exports", [1])], "2 fields"),
    "gc-exports with integers": ([Rec("op:gc-exports", 1, 1)], "list"),
    "gc-exports with lists of unequal length": ([Rec("op:gc-exports", [1, 2], [1])], "length"),
    "gc-export with lists of unequal length": ([Rec("op:gc-export", [1], [])], "length"),
    "gc-answers exceeds its fields": ([Rec("op:gc-answers", [50], [1])], "1 fields"),
    "gc-answers with an integer": ([Rec("op:gc-answers", 50)], "list"),
    "abort with a symbol": ([Rec("op:abort", Sym("why"))], "reason"),
    "arguments that are no list": ([Rec("op:deliver", BOOTSTRAP, {}, False, False)], "list"),
    "answer that is true": ([Rec("op:deliver", BOOTSTRAP, [], True, False)], "answer"),
    "answer that is negative": ([Rec("op:deliver", BOOTSTRAP, [], -1, False)], "answer"),
    "resolver that is true": ([Rec("op:deliver", BOOTSTRAP, [], False, True)], "resolver"),
    "resolver that is an export": ([Rec("op:deliver", BOOTSTRAP, [], False, export(0))], "resolver"),
    "resolver that is an answer": ([Rec("op:deliver", BOOTSTRAP, [], False, answer(50))], "resolver"),
    "listener that is an export": ([Rec("op:listen", BOOTSTRAP, export(0), False)], "resolver"),
    "to an import": ([sent(obj(1))], "desc:export"),
    "to a value": ([sent("to")], "desc:export"),
    "to an export that never was": ([sent(export(99))], "export 99"),
    "to an answer that never was": ([sent(answer(99))], "answer 99"),
    "old form to an export that never was": ([Rec("op:deliver-only", export(99), [])], "export 99"),
    "listening on an export that never was": ([Rec("op:listen", export(99), RESOLVER, False)], "export 99"),
    "listening on an answer that never was": ([Rec("op:listen", answer(99), RESOLVER, False)], "answer 99"),
    "part of an export that never was": ([Rec("op:get", export(99), "a", 51)], "export 99"),
    "part of an answer that never was": ([Rec("op:index", answer(99), 0, 51)], "answer 99"),
    "an export that never was as argument": ([sent(BOOTSTRAP, export(99))], "export 99"),
    "an answer that never was as argument": ([sent(BOOTSTRAP, answer(99))], "answer 99"),
    "an export that never was, deep inside": (
        [sent(BOOTSTRAP, [{"a": Rec("desc:tagged", Sym("t"), [export(99)])}])],
        "export 99",
    ),
    "an answer in use": ([asked(50), asked(50)], "answer 50"),
    "an answer in use, of a part": ([asked(50), Rec("op:get", answer(50), "a", 50)], "answer 50"),
    "an answer after its release": (
        [asked(50), Rec("op:gc-answers", [50]), sent(answer(50))],
        "answer 50",
    ),
    "an answer released twice": ([asked(50), Rec("op:gc-answers", [50, 50])], "answer 50"),
    "an answer released that never was": ([Rec("op:gc-answers", [99])], "answer 99"),
    "an export returned that never was": ([Rec("op:gc-exports", [99], [1])], "export 99"),
    "an object that was a promise": ([sent(BOOTSTRAP, promise(5), obj(5))], "object and as a promise"),
    "a promise that was an object": (
        [sent(BOOTSTRAP, [obj(5)], {"a": promise(5)})],
        "object and as a promise",
    ),
    "an object that is the resolver, as promise": (
        [Rec("op:deliver", BOOTSTRAP, [obj(5)], False, promise(5))],
        "object and as a promise",
    ),
    "a claim for another than the bootstrap object": ([sent(export(1), claim())], "bootstrap"),
    "a claim without its envelope": (
        [sent(BOOTSTRAP, Sym("withdraw-gift"), claim().fields[0])],
        "desc:sig-envelope",
    ),
}


#: Where another is given in CBOR, which has other fields and labels.
CBOR_REASONS: dict[str, str] = {
    "a descriptor for an operation": "op:export",
    "deliver misses a field": "7 fields",
    "deliver exceeds its fields": "7 fields",
    "deliver-only misses a field": "5 fields",
    "deliver-only exceeds its fields": "5 fields",
    "arguments that are no list": "array",
    "a claim without its envelope": "no value is called 'handoff-receive' here",
}


@pytest.mark.parametrize("name", VIOLATIONS)
@trio_test_real
async def test_a_violation_aborts_with_its_reason(name: str, codec: str) -> None:
    operations, reason = VIOLATIONS[name]
    if codec == "cbor":
        reason = CBOR_REASONS.get(name, reason)
    async with world() as found:
        client = await found.session()
        await client.fetch(ECHO)  # export 1
        await client.send(*operations)
        while (operation := await client.next()).label != "op:abort":
            assert operation.label == "op:deliver"  # what was answered before
        assert reason in operation.fields[0]
        assert await client.receive_bytes() == b""
        assert not found.peer.sessions


@pytest.mark.parametrize("resolver", [obj, promise])
@trio_test_real
async def test_a_resolver_that_waits_is_an_object_or_a_promise_and_stays_that(
    resolver: Callable[[int], Rec],
) -> None:
    async with world() as found:
        client = await found.session()
        vow, _ = await pair_of(client)
        await client.send(Rec("op:listen", vow, resolver(70), False))
        await client.tell(BOOTSTRAP, *FETCH_NONE, resolver(70))
        await client.nothing_else()
        await client.tell(BOOTSTRAP, *FETCH_NONE, obj(70) if resolver is promise else promise(70))
        assert "object and as a promise" in await client.aborted()


@trio_test_real
async def test_bytes_after_the_message_in_its_frame_abort() -> None:
    async with world() as found:
        client = await found.session()
        operation = encode(Rec("op:deliver", BOOTSTRAP, FETCH_NONE, False, False))
        await client.send_bytes(operation + b"1+")
        assert "malformed" in await client.aborted()


@trio_test_real
async def test_a_value_that_is_no_record_aborts() -> None:
    async with world() as found:
        client = await found.session()
        await client.send_bytes(b"[]")
        assert "malformed" in await client.aborted()


@pytest.mark.parametrize("delta", [0, 2])
@trio_test_real
async def test_a_wrong_delta_aborts(delta: int) -> None:
    async with world() as found:
        client = await found.session()
        echo = await client.fetch(ECHO)
        await client.send(Rec("op:gc-exports", [echo.fields[0]], [delta]))
        assert "export 1" in await client.aborted()


@trio_test_real
async def test_an_export_after_its_release_aborts() -> None:
    async with world() as found:
        client = await found.session()
        echo = await client.fetch(ECHO)
        await client.give_back(echo)
        await client.tell(echo, 1)
        assert "export 1" in await client.aborted()


@trio_test_real
async def test_an_abort_is_not_answered_and_ends_the_session() -> None:
    async with world() as found:
        client = await found.session()
        await client.send(Rec("op:abort", "enough"))
        assert await client.receive_bytes() == b""
        assert not found.peer.sessions
