"""Operations that are well-formed Syrup and wrong (wire.md, Operations)."""

from __future__ import annotations

from typing import Any, Final

import pytest

from tests.conformance.client import Client
from tests.conformance.encoding import BOOTSTRAP, Rec, Sym, answer, export, obj, own, promise
from tests.support import trio_test_real

from .support import VICTIM, aborted, ask, attack, call, frame, scene

CERTIFICATE: Final = "what is signed is a desc:handoff-give or a desc:handoff-receive"


@pytest.mark.parametrize(
    "operation",
    [
        Rec("op:nope"),
        Rec("op:nope", VICTIM, [], False, False),
        Rec("OP:DELIVER", VICTIM, [], False, False),
        Rec("op:deliver ", VICTIM, [], False, False),
        Rec("", VICTIM),
        Rec("deliver", VICTIM, [], False, False),
        Rec("op:" + "x" * 10_000),
        Rec("desc:export", 0),
        Rec("void"),
        Rec("op:pick", answer(1), 0, 2),
    ],
    ids=lambda operation: operation.label[:20] or "empty",
)
@trio_test_real
async def test_unknown_operations(operation: Rec) -> None:
    await attack(frame(operation), f"no operation is called {operation.label[:40]!r}")


# Fields

#: Operations that would be right, by name; position 1 is the victim as an answer.
RIGHT: Final = {
    "deliver": Rec("op:deliver", VICTIM, [Sym("drop")], 7, obj(7)),
    "deliver-only": Rec("op:deliver-only", VICTIM, [Sym("drop")]),
    "listen": Rec("op:listen", VICTIM, obj(7), False),
    "get": Rec("op:get", VICTIM, "field", 7),
    "index": Rec("op:index", VICTIM, 0, 7),
    "untag": Rec("op:untag", VICTIM, "tag", 7),
    "gc-exports": Rec("op:gc-exports", [0], [1]),
    "gc-export": Rec("op:gc-export", [0], [1]),
    "gc-export of one": Rec("op:gc-export", 0, 1),
    "gc-answers": Rec("op:gc-answers", []),
    "gc-answer": Rec("op:gc-answer", []),
    "gc-answer of one": Rec("op:gc-answer", 1),
    "abort": Rec("op:abort", "reason"),
}
#: Records inside messages.
VALUES: Final = {
    "import-object": obj(7),
    "import-promise": promise(7),
    "export": export(0),
    "answer": answer(1),
    "void": Rec("void"),
    "null": Rec("null"),
    "tagged": Rec("desc:tagged", Sym("tag"), 1),
    "peer": Rec("ocapn-peer", Sym("memory"), "designator", False),
    "sturdyref": Rec("ocapn-sturdyref", Rec("ocapn-peer", Sym("memory"), "designator", False), b"swiss"),
    "envelope": Rec("desc:sig-envelope", Rec("void"), []),
    "give": Rec("desc:handoff-give", [], Rec("void"), b"", b"", b""),
    "receive": Rec("desc:handoff-receive", b"", b"", 0, Rec("void")),
}


@trio_test_real
async def test_the_right_operations_are_right() -> None:
    """So that what the other tests change is what is refused."""
    for name, operation in RIGHT.items():
        async with scene() as here:
            client = await here.attacker()
            await client.send_unframed(frame(operation, call("note", "attacker", 1, to=BOOTSTRAP)))
            if name == "abort":
                await client.ends()
            else:
                await client.send_unframed(frame(ask(99), call("note", "attacker", 2, to=answer(99))))
                await here.victim.until_heard("attacker", 1)
                await client.end()
    for name in list(VALUES)[:9]:
        async with scene() as here:
            client = await here.attacker()
            await client.send_unframed(frame(call("drop", VALUES[name]), call("note", "attacker", 1)))
            await here.victim.until_heard("attacker", 1)
            await client.end()


def _fewer(record: Rec) -> Rec:
    return Rec(record.label, *record.fields[:-1])


def _more(record: Rec) -> Rec:
    return Rec(record.label, *record.fields, False)


@pytest.mark.parametrize("change", [_fewer, _more], ids=["fewer", "more"])
@pytest.mark.parametrize("name", RIGHT)
@trio_test_real
async def test_field_counts_of_operations(name: str, change: Any) -> None:
    operation = change(RIGHT[name])
    if operation.label == "op:listen" and len(operation.fields) == 2:
        operation = _fewer(operation)  # two fields are the old form
    await attack(frame(operation), f"{operation.label}: takes")


@pytest.mark.parametrize("name", RIGHT)
@trio_test_real
async def test_operations_without_fields(name: str) -> None:
    await attack(frame(Rec(RIGHT[name].label)), f"{RIGHT[name].label}: takes")


@pytest.mark.parametrize("change", [_fewer, _more], ids=["fewer", "more"])
@pytest.mark.parametrize("name", VALUES)
@trio_test_real
async def test_field_counts_of_values(name: str, change: Any) -> None:
    value = VALUES[name]
    if not value.fields:
        change = _more
    await attack(frame(call("drop", change(value))), f"{value.label}: takes")


@trio_test_real
async def test_an_error_without_a_message() -> None:
    await attack(frame(call("drop", Rec("desc:error"))), "an error has a message, a string")


@pytest.mark.parametrize("name", VALUES)
@trio_test_real
async def test_values_of_the_wrong_types(name: str) -> None:
    """Every field replaced by a struct: no field of these is one, but hints, and what a tag is on."""
    value = VALUES[name]
    for i in range(len(value.fields)):
        if (name, i) in (("peer", 2), ("tagged", 1)):
            continue
        fields = [{} if i == j else field for j, field in enumerate(value.fields)]
        await attack(frame(call("drop", Rec(value.label, *fields))), f"{value.label}: ")


WRONG: Final[list[Any]] = [{}, True, 1.5, Rec("void"), obj(9), b"bytes", Sym("symbol")]
#: By operation and field, values of no type that is read there.
WRONG_TYPES: Final[list[tuple[str, int, Any]]] = [
    (name, i, wrong)
    for name, operation in RIGHT.items()
    for i in range(len(operation.fields))
    for wrong in WRONG
    if not (
        (name == "listen" and i in (1, 2) and wrong in (True, obj(9)))
        or (name == "deliver" and i == 3 and wrong == obj(9))
    )
]


@pytest.mark.parametrize("name", RIGHT)
@trio_test_real
async def test_fields_of_the_wrong_type(name: str) -> None:
    for one, i, wrong in WRONG_TYPES:
        if one == name:
            operation = RIGHT[name]
            fields = [wrong if i == j else field for j, field in enumerate(operation.fields)]
            await attack(frame(Rec(operation.label, *fields)), f"{operation.label}: ", notes=0)


# Positions

NEVER: Final = 77
#: What is no position, anywhere.
NO_POSITION: Final = {
    "negative": -1,
    "2^63": 2**63,
    "2^200": 2**200,
    "float": 1.0,
    "string": "1",
    "true": True,
}
#: Every place where a position stands, and the reason when nothing is there.
PLACES: Final[dict[str, tuple[Any, str | None]]] = {
    "deliver to export": (lambda n: Rec("op:deliver", export(n), [], False, False), "export"),
    "deliver to answer": (lambda n: Rec("op:deliver", answer(n), [], False, False), "answer"),
    "deliver-only to export": (lambda n: Rec("op:deliver-only", export(n), []), "export"),
    "deliver-only to answer": (lambda n: Rec("op:deliver-only", answer(n), []), "answer"),
    "argument export": (lambda n: call("drop", export(n)), "export"),
    "argument answer": (lambda n: call("drop", answer(n)), "answer"),
    "argument import-object": (lambda n: call("drop", obj(n)), None),
    "argument import-promise": (lambda n: call("drop", promise(n)), None),
    "nested export": (lambda n: call("drop", [{"a": Rec("desc:tagged", Sym("t"), export(n))}]), "export"),
    "argument of the bootstrap": (lambda n: call("fetch", export(n), to=BOOTSTRAP), "export"),
    "answer position": (lambda n: call("drop", position=n), None),
    "resolver": (lambda n: call("drop", resolver=obj(n)), None),
    "resolver promise": (lambda n: call("drop", resolver=promise(n)), None),
    "listen to export": (lambda n: Rec("op:listen", export(n), obj(7), False), "export"),
    "listen to answer": (lambda n: Rec("op:listen", answer(n), obj(7), False), "answer"),
    "listen resolver": (lambda n: Rec("op:listen", VICTIM, obj(n), False), None),
    "get from export": (lambda n: Rec("op:get", export(n), "f", 7), "export"),
    "get from answer": (lambda n: Rec("op:get", answer(n), "f", 7), "answer"),
    "get answer": (lambda n: Rec("op:get", VICTIM, "f", n), None),
    "index from export": (lambda n: Rec("op:index", export(n), 0, 7), "export"),
    "index from answer": (lambda n: Rec("op:index", answer(n), 0, 7), "answer"),
    "index itself": (lambda n: Rec("op:index", VICTIM, n, 7), None),
    "index answer": (lambda n: Rec("op:index", VICTIM, 0, n), None),
    "untag from export": (lambda n: Rec("op:untag", export(n), "t", 7), "export"),
    "untag from answer": (lambda n: Rec("op:untag", answer(n), "t", 7), "answer"),
    "untag answer": (lambda n: Rec("op:untag", VICTIM, "t", n), None),
    "gc-exports position": (lambda n: Rec("op:gc-exports", [n], [1]), "gc of export"),
    "gc-exports delta": (lambda n: Rec("op:gc-exports", [NEVER], [n]), None),
    "gc-export position in a list": (lambda n: Rec("op:gc-export", [n], [1]), "gc of export"),
    "gc-export position": (lambda n: Rec("op:gc-export", n, 1), "gc of export"),
    "gc-export delta": (lambda n: Rec("op:gc-export", NEVER, n), None),
    "gc-answers": (lambda n: Rec("op:gc-answers", [n]), "gc of answer"),
    "gc-answer in a list": (lambda n: Rec("op:gc-answer", [n]), "gc of answer"),
    "gc-answer": (lambda n: Rec("op:gc-answer", n), "gc of answer"),
    "handoff count": (lambda n: call("drop", Rec("desc:handoff-receive", b"", b"", n, Rec("void"))), None),
}


@pytest.mark.parametrize("bad", NO_POSITION)
@pytest.mark.parametrize("place", PLACES)
@trio_test_real
async def test_what_is_no_position(place: str, bad: str) -> None:
    await attack(frame(PLACES[place][0](NO_POSITION[bad])), "malformed at byte")


@pytest.mark.parametrize("position", [NEVER, 2**63 - 1])
@pytest.mark.parametrize("place", [place for place, (_, reason) in PLACES.items() if reason])
@trio_test_real
async def test_positions_where_nothing_is(place: str, position: int) -> None:
    make, reason = PLACES[place]
    await attack(frame(make(position)), f"{reason} {position}")


@pytest.mark.parametrize(
    "place", [place for place, (_, reason) in PLACES.items() if reason and "export" in reason]
)
@trio_test_real
async def test_an_export_that_was_returned(place: str) -> None:
    make, reason = PLACES[place]
    async with scene() as here:
        client = await here.attacker()
        there = own(await client.fulfilled(await client.ask(VICTIM, Sym("me"))))
        await client.give_back(there)
        await client.send_unframed(frame(call("note", "attacker", 1), make(there.fields[0])))
        await aborted(client, f"{reason} {there.fields[0]}")
        assert here.victim.heard["attacker"] == [1]


@pytest.mark.parametrize(
    "place", [place for place, (_, reason) in PLACES.items() if reason and "answer" in reason]
)
@trio_test_real
async def test_an_answer_that_was_released(place: str) -> None:
    make, reason = PLACES[place]
    released = frame(ask(NEVER), Rec("op:gc-answers", [NEVER]), make(NEVER))
    await attack(released, f"{reason} {NEVER}")


@pytest.mark.parametrize(
    "again",
    [
        ask(1),
        Rec("op:get", VICTIM, "f", 1),
        Rec("op:index", VICTIM, 0, 1),
        Rec("op:untag", VICTIM, "t", 1),
        call("drop", position=1, resolver=obj(3)),
    ],
    ids=["deliver", "get", "index", "untag", "with a resolver"],
)
@trio_test_real
async def test_an_answer_asked_for_twice(again: Rec) -> None:
    await attack(frame(again), "answer 1 is asked for twice")


@trio_test_real
async def test_an_answer_position_may_be_used_again_once_released() -> None:
    async with scene() as here:
        client = await here.attacker()
        for number in range(50):
            note = call("note", "attacker", number, to=answer(NEVER))
            await client.send_unframed(frame(ask(NEVER), note, Rec("op:gc-answers", [NEVER])))
        await here.victim.until_heard("attacker", 50)
        await client.end()


@pytest.mark.parametrize("positions", [[1, 1], [NEVER], [1, NEVER]])
@trio_test_real
async def test_answers_released_that_are_not_there(positions: list[int]) -> None:
    await attack(frame(Rec("op:gc-answers", positions)), f"gc of answer {positions[-1]}")


# Counts


async def _export_held(client: Client, times: int) -> int:
    """Has the victim sent that often; its position."""
    positions = set()
    for _ in range(times):
        positions.add(own(await client.fulfilled(await client.ask(VICTIM, Sym("me")))).fields[0])
    (position,) = positions
    assert isinstance(position, int)
    return position


@pytest.mark.parametrize("label", ["op:gc-exports", "op:gc-export"])
@pytest.mark.parametrize("delta", [0, 4, 2**63 - 1])
@trio_test_real
async def test_deltas_that_cannot_be(delta: int, label: str) -> None:
    async with scene() as here:
        client = await here.attacker()
        position = await _export_held(client, 3)
        await client.send_unframed(frame(call("note", "attacker", 1), Rec(label, [position], [delta])))
        await aborted(client, f"gc of export {position} by {delta}, which the peer holds 3 times")
        assert here.victim.heard["attacker"] == [1]


@pytest.mark.parametrize(
    ("positions", "deltas"), [([0], []), ([], [1]), ([0, 0], [1]), ([0], [1, 1]), ([0, 0, 0], [1, 1])]
)
@pytest.mark.parametrize("label", ["op:gc-exports", "op:gc-export"])
@trio_test_real
async def test_gc_lists_of_unequal_length(positions: list[int], deltas: list[int], label: str) -> None:
    await attack(frame(Rec(label, positions, deltas)), "positions and deltas are lists of one length")


@pytest.mark.parametrize(("position", "delta"), [([0], 1), (0, [1])])
@trio_test_real
async def test_a_gc_of_a_list_and_an_integer(position: object, delta: object) -> None:
    await attack(frame(Rec("op:gc-export", position, delta)), "op:gc-export: ")


@trio_test_real
async def test_one_position_twice_in_one_gc() -> None:
    """Each takes its own off the count; what is more than there is aborts."""
    async with scene() as here:
        client = await here.attacker()
        position = await _export_held(client, 3)
        gc = Rec("op:gc-exports", [position, position], [1, 1])
        await client.send_unframed(frame(gc, call("note", "attacker", 1, to=export(position))))
        await here.victim.until_heard("attacker", 1)
        assert here.session(client).dump()["exports"] == {position: {"count": 1, "is": "Victim"}}
        await client.send_unframed(frame(call("note", "attacker", 2), gc))
        await aborted(client, f"gc of export {position}, which was never exported or is freed")
        assert here.victim.heard["attacker"] == [1, 2]


@trio_test_real
async def test_one_position_twice_in_one_gc_for_more_than_it_counts() -> None:
    async with scene() as here:
        client = await here.attacker()
        position = await _export_held(client, 3)
        await client.send_unframed(frame(Rec("op:gc-exports", [position, position], [2, 2])))
        await aborted(client, f"gc of export {position} by 2, which the peer holds 1 times")


@trio_test_real
async def test_gc_of_the_bootstrap_object_changes_nothing() -> None:
    async with scene() as here:
        client = await here.attacker()
        await client.send_unframed(
            frame(
                Rec("op:gc-exports", [0, 0], [1, 2**63 - 1]),
                ask(5),
                call("note", "attacker", 1, to=answer(5)),
            )
        )
        await here.victim.until_heard("attacker", 1)
        await client.end()


# Descriptors where they do not belong


@pytest.mark.parametrize("resolver", [export(0), answer(1), 7, True, Sym("resolver"), [obj(7)]], ids=str)
@pytest.mark.parametrize("make", ["deliver", "listen"])
@trio_test_real
async def test_what_is_no_resolver(make: str, resolver: object) -> None:
    if make == "deliver":
        operation = call("drop", resolver=resolver)
    else:
        operation = Rec("op:listen", VICTIM, resolver, False)
    await attack(frame(operation), "a resolver is a desc:import-object or a desc:import-promise")


@pytest.mark.parametrize("to", [obj(7), promise(7), 0, False, Rec("void"), [export(0)]], ids=str)
@pytest.mark.parametrize("name", ["deliver", "deliver-only", "listen", "get", "index", "untag"])
@trio_test_real
async def test_what_is_no_recipient(name: str, to: object) -> None:
    operation = RIGHT[name]
    await attack(frame(Rec(operation.label, to, *operation.fields[1:])), "is a desc:export or a desc:answer")


#: Ways to name an import, by the kind that each says it is.
NAMED: Final = {
    "object": lambda n: call("hang", obj(n)),
    "promise": lambda n: call("hang", promise(n)),
    "resolver object": lambda n: call("hang", resolver=obj(n)),
    "resolver promise": lambda n: call("hang", resolver=promise(n)),
    "listener object": lambda n: Rec("op:listen", answer(2), obj(n), False),
    "listener promise": lambda n: Rec("op:listen", answer(2), promise(n), False),
}


@pytest.mark.parametrize("position", [0, 5])
@pytest.mark.parametrize(
    ("first", "second"),
    [(one, two) for one in NAMED for two in NAMED if ("object" in one) != ("object" in two)],
)
@trio_test_real
async def test_one_position_as_object_and_as_promise(first: str, second: str, position: int) -> None:
    data = frame(call("promise", position=2), NAMED[first](position), NAMED[second](position))
    await attack(data, f"import {position} was sent as an object and as a promise")


@trio_test_real
async def test_one_position_as_object_and_as_promise_in_one_message() -> None:
    await attack(frame(call("drop", obj(5), promise(5))), "import 5 was sent as an object and as a promise")


@pytest.mark.parametrize("name", RIGHT)
@trio_test_real
async def test_operations_in_arguments(name: str) -> None:
    operation = RIGHT[name]
    for value in (operation, [operation], {"a": operation}, Rec("desc:tagged", Sym("t"), operation)):
        await attack(frame(call("drop", value)), f"no value is called '{operation.label}'", notes=0)


@pytest.mark.parametrize("around", ["op:deliver", "op:abort", "op:gc-answers"])
@trio_test_real
async def test_operations_in_operations(around: str) -> None:
    await attack(frame(Rec(around, RIGHT["deliver"])), "no value is called 'op:deliver'")


@trio_test_real
async def test_a_second_start() -> None:
    async with scene() as here:
        client = await here.attacker()
        await client.send_unframed(frame(call("note", "attacker", 1), client.start()))
        await aborted(client, "op:start-session came a second time on this connection")
        assert here.victim.heard["attacker"] == [1]


# Certificates where they do not belong


@pytest.mark.parametrize("where", ["argument", "nested", "answer", "resolver"])
@trio_test_real
async def test_a_handoff_receive_to_an_application_object(where: str) -> None:
    async with scene() as here:
        client = await here.attacker()
        give = client.give(client.public_key, client, b"gift")
        claim = client.claim(client.key, give)
        if where == "answer":
            operation = call("drop", claim, position=3)
        elif where == "resolver":
            resolver = export(await _question(client))
            operation = Rec("op:deliver", resolver, [Sym("fulfill"), claim], False, False)
        else:
            operation = call("drop", claim if where == "argument" else [{"a": claim}])
        await client.send_unframed(frame(call("note", "attacker", 1), operation))
        await aborted(client, "a desc:handoff-receive is for the bootstrap object alone")
        assert here.victim.heard["attacker"] == [1]


async def _question(client: Client) -> int:
    """The position of the resolver that came with a question of the peer."""
    await client.send(call("call_back", obj(40)))
    question = await client.message_to(export(40))
    assert question.resolver is not None
    position = question.resolver.fields[0]
    assert isinstance(position, int)
    return position


@pytest.mark.parametrize("bare", ["give", "receive"])
@trio_test_real
async def test_a_certificate_without_its_envelope(bare: str) -> None:
    """It is no value of the model, and no object of ours must see it."""
    async with scene() as here:
        client = await here.attacker()
        give = client.give(client.public_key, client, b"gift")
        claim = client.claim(client.key, give)
        value = (give if bare == "give" else claim).fields[0]
        for to in (VICTIM, BOOTSTRAP):
            await client.send_unframed(frame(call("note", "attacker", 1), call("echo", value, to=to)))
            await aborted(client, f"a desc:handoff-{bare} stands in a desc:sig-envelope")
            client = await here.attacker()
        await client.end()


@pytest.mark.parametrize("signed", [Rec("void"), 1, [], VICTIM, "text"], ids=str)
@trio_test_real
async def test_an_envelope_of_something_else(signed: object) -> None:
    async with scene() as here:
        client = await here.attacker()
        signature = client.start().fields[3]
        value = Rec("desc:sig-envelope", signed, signature)
        await client.send_unframed(frame(call("note", "attacker", 1), call("drop", value)))
        await aborted(client, CERTIFICATE)
        assert here.victim.heard["attacker"] == [1]
