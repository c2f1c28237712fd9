"""What cannot be kept is refused where it is stored, with what to do instead."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio

import durable
from ocapn import E, MemoryNetlayer, MemoryNetwork, Target, make_promise, method, open_peer
from tests.support import trio_test


@durable.kind("test.advice.holder", version=1)
@attrs.define(eq=False)
class Holder(Target):
    held: object = None


class Echo(Target):
    @method
    def echo(self, value: object) -> object:
        return value


def refused(baggage: durable.Baggage, value: object, advice: str) -> None:
    for stored, path in ((value, "value"), ([value], "value[0]"), ({"a": (1, value)}, "value['a'][1]")):
        baggage["x"] = "before"
        with pytest.raises(durable.NotStorable) as caught:
            baggage["x"] = stored
        assert (caught.value.path, caught.value.why) == (path, advice)
        assert baggage["x"] == "before"


@trio_test
async def test_under_a_key() -> None:
    network, baggage = MemoryNetwork(), durable.MemoryBaggage()
    async with (
        open_peer([MemoryNetlayer(network, "b")]) as b,
        open_peer([MemoryNetlayer(network, "a")], baggage=baggage) as a,
    ):
        ref = await a.enliven(b.export(Echo()))
        await trio.sleep(1)
        advice = (
            "a reference to an object of another peer is not kept here: put it in a field of a durable object"
        )
        refused(baggage, ref, advice)
        promise, resolver = make_promise()
        refused(baggage, promise, "a promise cannot be kept: await it first, or use durable.when")
        resolver.fulfill(ref)
        refused(baggage, promise, advice)
        refused(baggage, Echo(), "a Echo ends with this process: make its class a @durable.kind")
        baggage["holder"] = Holder(ref)  # as it was advised
        holder: Any = baggage["holder"]
        assert await E(holder.held).echo(1) == 1


@trio_test
async def test_in_a_field() -> None:
    baggage = durable.MemoryBaggage()
    async with open_peer([MemoryNetlayer(MemoryNetwork(), "a")], baggage=baggage):
        holder = baggage.provide("holder", Holder)
        for value, kind in (([1], "list"), ({"a": 1}, "dict")):
            with pytest.raises(durable.NotStorable) as caught:
                holder.held = value
            assert str(caught.value) == (
                f"test.advice.holder.held: a {kind} can change without being noticed: "
                "use a tuple, or keys of the baggage"
            )
        assert holder.held is None
