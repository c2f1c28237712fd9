"""Durable objects: what their fields hold, what is refused and how, versions."""

from __future__ import annotations

import copy
from typing import Any

import attrs
import pytest
import trio

import durable
import ocapn
from durable.objects import kinds
from ocapn import E, Symbol
from tests.restart.support import Echo, Ledger, agreed, inside, linked, two, world
from tests.support import trio_test


@durable.kind("restart.frozen", version=1)
@attrs.frozen
class Frozen(ocapn.Target):
    name: str
    held: Any = None


@durable.kind("restart.loose", version=1)
@attrs.define(slots=False)
class Loose(ocapn.Target):
    value: int = 0


@durable.kind("restart.child", version=1)
@attrs.define
class Child(Loose):
    more: int = 0

    @ocapn.method
    def grow(self) -> int:
        self.value += 1
        self.more += 10
        return self.value + self.more


@durable.kind("restart.checked", version=1)
@attrs.define
class Checked(ocapn.Target):
    number: int = attrs.field(default=0, converter=int, validator=attrs.validators.ge(0))


class Giver(ocapn.Target):
    @ocapn.method
    def echo(self, thing: object) -> object:
        return thing

    @ocapn.method
    def ledger(self, content: object) -> object:
        return Ledger(held=content)


@trio_test
async def test_every_kind_of_value_in_a_field_comes_back() -> None:
    async with two() as (a, b):
        ref = await linked(a, b)
        other = Ledger(held="other")
        values = (
            None, True, -(1 << 200), 1.5, "text é", b"bytes", Symbol("s"), ocapn.Null,
            a.sturdyref(b"x"), a.peer.locator(), other, ref, (1, (ref, other)),
        )  # fmt: skip
        ledger = a.baggage.provide("ledger", Ledger)
        ledger.held = values
        other.held = (ledger, other)
        await a.peer.settled()
        await a.again()
        ledger = a.baggage["ledger"]
        held: Any = ledger.held
        assert held[:10] == values[:10]
        assert held[10] is held[12][1][1]
        assert held[10].held == (ledger, held[10])
        assert held[10].held[0] is ledger
        assert held[11] is held[12][1][0] is a.baggage["holder"].held
        assert await E(held[11]).note(7) == 1


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ([1], "list"),
        ({"a": 1}, "dict"),
        ((1, [2]), r"held\[1\]: a list"),
        (ocapn.Tagged("t", 1), "Tagged"),
        (lambda: 1, "function"),
        (Echo(), "Echo ends with this process"),
        ({1}, "set"),
        ("\ud800", "surrogate"),
    ],
    ids=str,
)
@trio_test
async def test_what_a_field_cannot_hold_is_refused_with_its_path(value: object, why: str) -> None:
    async with world() as place:
        a = await place.process("a").start()
        ledger = a.baggage.provide("ledger", Ledger)
        with pytest.raises(durable.NotStorable, match=why) as refused:
            ledger.held = value
        assert refused.value.path.startswith("restart.ledger.held") or "surrogate" in why
        assert ledger.held is None
        with pytest.raises(durable.NotStorable, match=why):
            a.baggage["new"] = Ledger(held=value)
        assert "new" not in a.baggage
        await trio.sleep(5)
        assert a.alive, a.failure


@trio_test
async def test_an_open_file_and_a_promise_are_refused() -> None:
    async with two() as (a, b):
        ref = await linked(a, b)
        ledger = a.baggage["holder"]
        with open(__file__) as file, pytest.raises(durable.NotStorable, match=r"restart\.ledger\.held"):  # noqa: ASYNC230
            ledger.held = file
        promise = E(ref).note(1)
        with pytest.raises(durable.NotStorable, match=r"restart\.ledger\.held.*promise"):
            ledger.held = promise
        assert ledger.held is ref
        assert await promise == 1
        ledger.held = promise  # it is a value by now
        await a.peer.settled()
        await a.again()
        assert a.baggage["holder"].held == 1


@trio_test
async def test_classes_of_all_sorts() -> None:
    async with world() as place:
        a = await place.process("a").start()
        a.baggage["frozen"] = Frozen("n", (1, 2))
        a.baggage["loose"] = Loose(3)
        child = a.baggage.provide("child", Child)
        checked = a.baggage.provide("checked", Checked)
        with inside(a):
            assert await E(child).grow() == 11
        checked.number = "5"
        with pytest.raises(ValueError, match="number"):
            checked.number = -1
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            a.baggage["frozen"].name = "other"
        with pytest.raises(TypeError, match="unhashable"):
            hash(child)
        await a.peer.settled()
        await a.again()
        assert a.baggage["frozen"] == Frozen("n", (1, 2))
        assert a.baggage["loose"] == Loose(3)
        assert a.baggage["child"] == Child(1, 10)
        assert type(a.baggage["child"]) is Child
        assert a.baggage["checked"].number == 5


@trio_test
async def test_an_object_belongs_to_one_baggage() -> None:
    async with two() as (a, b):
        mine = a.baggage.provide("ledger", Ledger)
        with pytest.raises(durable.NotStorable, match="another baggage"):
            b.baggage["ledger"] = mine
        with pytest.raises(durable.NotStorable, match="another baggage"):
            b.baggage.provide("holder", Ledger).held = mine
        ref = await a.peer.enliven(b.peer.export(Giver()))
        await agreed(a, b)
        theirs = b.baggage.provide("own", Ledger)
        ocapn.send_only(ref).echo(theirs)
        await trio.sleep(5)
        assert a.alive, a.failure


def _deep(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = ocapn.Tagged("t", value)
    return value


@pytest.mark.parametrize("thing", [[Symbol("a")] * 200_000, _deep(60)], ids=["large", "deep"])
@trio_test
async def test_no_value_from_another_peer_ends_this_one(thing: object) -> None:
    async with two() as (a, b):
        ref = await a.peer.enliven(b.peer.export(Giver()))
        await agreed(a, b)
        assert await E(ref).echo(thing) == thing
        assert b.alive, b.failure


@trio_test
async def test_an_answer_that_cannot_be_kept_does_not_end_the_peer() -> None:
    async with two() as (a, b):
        ref = await a.peer.enliven(b.peer.export(Giver()))
        await agreed(a, b)
        answer = E(ref).ledger(["a list"])
        await trio.sleep(5)
        assert b.alive, b.failure
        del answer


@trio_test
async def test_a_method_that_raises_keeps_what_it_changed_together_with_the_broken_answer() -> None:
    async with two() as (a, b):
        ref = await linked(a, b)
        answer = E(ref).fail(3)
        with pytest.raises(ocapn.RemoteError, match="no more after 3"):
            await answer
        b.crash()
        await b.start()
        assert b.baggage["ledger"].seen == (3,)


@trio_test
async def test_a_missing_kind_is_named() -> None:
    async with world() as place:
        a = await place.process("a").start()
        a.baggage["x"] = Ledger()
        await a.peer.settled()
        a.crash()
        kind = kinds.pop("restart.ledger")
        try:
            with pytest.raises(durable.MissingKind, match=r"'restart\.ledger'"):
                await a.start()
        finally:
            kinds["restart.ledger"] = kind
        await a.start()
        assert a.baggage["x"].seen == ()


def _versions(version: int) -> list[int]:
    """Registers a version of a kind that doubles its value with each; returns a list of the upgrades that run."""
    kinds.pop("restart.versioned", None)

    @durable.kind("restart.versioned", version=version)
    @attrs.define(eq=False)
    class Versioned(ocapn.Target):
        value: int = 1
        other: object = None

    ran: list[int] = []
    for step in range(1, version):

        @durable.upgrade("restart.versioned", version=step)
        def double(state: dict[str, Any], step: int = step) -> dict[str, Any]:
            ran.append(step)
            return {**state, "value": 2 * state["value"]}

    return ran


@trio_test
async def test_an_upgrade_runs_once() -> None:
    async with world() as place:
        a = place.process("a")
        _versions(1)
        await a.start()
        first = kinds["restart.versioned"].cls()
        first.other = first
        a.baggage["x"] = first
        await a.peer.settled()
        a.crash()
        ran = _versions(3)
        await a.start()
        assert ran == [1, 2]
        assert a.baggage["x"].value == 4
        assert a.baggage["x"].other is a.baggage["x"]
        await a.peer.settled()
        await a.again()
        assert ran == [1, 2]
        assert a.baggage["x"].value == 4
        a.crash()
        _versions(2)
        with pytest.raises(durable.BaggageNewer, match=r"restart\.versioned"):
            await a.start()
        _versions(4)
        kinds["restart.versioned"].upgrades.pop(3)
        with pytest.raises(durable.MissingUpgrade, match=r"version=3"):
            await a.start()
        _versions(3)
        await a.start()
        assert a.baggage["x"].value == 4


class Based:
    note = "of the class"


@durable.kind("restart.delegating", version=1)
@attrs.define(slots=False)
class Delegating(ocapn.Target):
    value: int = 0
    other: Any = None

    def __getattr__(self, name: str) -> object:
        return getattr(self.other, name)


@durable.kind("restart.converting", version=1)
@attrs.define
class Converting(ocapn.Target):
    tags: Any = attrs.field(default=(), converter=tuple)
    loose: Any = attrs.field(default=None, converter=attrs.converters.optional(list))


def wide(fields: int) -> type:
    return attrs.make_class("Wide", {f"f{i}": attrs.field(default=None) for i in range(fields)})


def test_a_kind_has_so_many_fields() -> None:
    with pytest.raises(ValueError, match="257 fields, and at most 256"):
        durable.kind("restart.too wide", version=1)(wide(257))
    assert "restart.too wide" not in kinds


@trio_test
async def test_all_fields_may_be_as_large_as_one_may_be() -> None:
    made: Any = durable.kind("restart.wide", version=1)(wide(70))
    async with world() as place:
        a = await place.process("a").start()
        obj = a.baggage.provide("wide", made)
        for i in range(70):
            setattr(obj, f"f{i}", bytes((1 << 20) - 10))
        await a.peer.settled()
        await a.again()
        assert len(a.baggage["wide"].f69) == (1 << 20) - 10


def test_an_attribute_of_the_class_with_the_name_of_a_field() -> None:
    """It would be seen in place of the field of an object that is not loaded."""
    with pytest.raises(TypeError, match="the name of its field 'note'"):

        @durable.kind("restart.hiding", version=1)
        @attrs.define(slots=False)
        class Hiding(Based, ocapn.Target):
            note: str = attrs.field(default="x")


@pytest.mark.parametrize("loaded", [True, False])
@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy])
@trio_test
async def test_a_copy_is_a_new_object(how: Any, loaded: bool) -> None:
    async with world() as place:
        a = await place.process("a").start()
        a.baggage.provide("loose", lambda: Loose(5))
        await a.peer.settled()
        await a.again()
        original = a.baggage["loose"]
        if loaded:
            assert original.value == 5
        copied = how(original)
        copied.value = 99
        await a.peer.settled()
        assert original.value == 5
        a.baggage["copy"] = copied
        await a.peer.settled()
        await a.again()
        assert (a.baggage["loose"].value, a.baggage["copy"].value) == (5, 99)


@trio_test
async def test_a_class_with_a_getattr_of_its_own() -> None:
    async with world() as place:
        a = await place.process("a").start()
        made = Delegating(1, Loose(7))
        a.baggage["delegating"] = made
        await a.peer.settled()
        await a.again()
        made = a.baggage["delegating"]
        assert made.value == 1
        made.value = 2
        with pytest.raises(AttributeError):
            made.absent  # noqa: B018


@trio_test
async def test_what_a_converter_makes_is_what_is_checked() -> None:
    async with world() as place:
        a = await place.process("a").start()
        made = a.baggage.provide("converting", Converting)
        made.tags = [1, 2]
        assert made.tags == (1, 2)
        with pytest.raises(durable.NotStorable, match=r"restart\.converting\.loose"):
            made.loose = (1,)
        assert made.loose is None
        with pytest.raises(AttributeError, match="cannot be deleted"):
            del made.tags
        with pytest.raises(durable.NotStorable, match="too large"):
            made.tags = (b"x" * (1 << 20),)
        await a.peer.settled()
        await a.again()
        assert a.baggage["converting"].tags == (1, 2)


@trio_test
async def test_a_gathering_that_fails_commits_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does what the peer does as it ends."""
    async with world(check=False) as place:
        a = await place.process("a").start()
        one, other = a.baggage.provide("one", Loose), a.baggage.provide("other", Loose)
        await a.peer.settled()
        save = a.baggage.put

        def put(table: str, key: bytes, value: bytes) -> None:
            if table == "object" and key == one._durable_id.to_bytes(8, "big"):
                raise ValueError("a bug")
            save(table, key, value)

        monkeypatch.setattr(a.baggage, "put", put)
        one.value, other.value = 1, 2
        await a.ended.wait()
        assert "a bug" in repr(a.failure)
        monkeypatch.undo()
        await a.start()
        assert (a.baggage["one"].value, a.baggage["other"].value) == (0, 0)
