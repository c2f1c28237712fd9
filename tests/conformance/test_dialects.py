"""What the peer sends: the newest form, the form of its dialect, or in kind (wire.md, Dialects)."""

from __future__ import annotations

from typing import Any

import pytest
import trio

import ocapn
from tests.support import trio_test_real

from .client import Client, Message
from .encoding import (
    BOOTSTRAP,
    Raw,
    Rec,
    Sym,
    export,
    obj,
    own,
)
from .peer import ECHO, GREETER
from .support import FETCH_NONE, World, world


async def greeting(client: Client, greeter: Rec) -> Message:
    """Has the greeter greet something new."""
    position = client.position()
    await client.tell(greeter, obj(position))
    return await client.message_to(export(position))


@trio_test_real
async def test_what_the_peer_sends_unasked_is_in_the_newest_form() -> None:
    async with world() as found:
        client = await found.session()
        told = await client.message_to(await client.ask(BOOTSTRAP, *FETCH_NONE))
        assert not told.old_form
        greeted = await greeting(client, await client.fetch(GREETER))
        assert greeted.answer is not None
        await client.until_released(greeted.answer)
        assert set(client.gc_labels) <= {"op:gc-exports", "op:gc-answers"}


@trio_test_real
async def test_messages_in_kind_once_deliver_only_was_seen() -> None:
    async with world() as found:
        client = await found.session()
        other = await found.session("other")
        await client.tell(BOOTSTRAP, *FETCH_NONE, old_form=True)
        told = await client.message_to(await client.ask(BOOTSTRAP, *FETCH_NONE))
        assert told.old_form
        greeted = await greeting(client, await client.fetch(GREETER))
        assert greeted.resolver is not None, "old peers cannot read `f` there"
        assert greeted.answer is not None
        await client.until_released(greeted.answer)
        assert set(client.gc_labels) <= {"op:gc-exports", "op:gc-answers"}, "these it has not shown"
        told = await other.message_to(await other.ask(BOOTSTRAP, *FETCH_NONE))
        assert not told.old_form, "another session has shown nothing"


@pytest.mark.parametrize("shown", ["op:gc-export", "op:gc-answer"])
@trio_test_real
async def test_garbage_in_kind_once_a_singular_label_was_seen(shown: str) -> None:
    async with world() as found:
        client = await found.session()
        if shown == "op:gc-export":
            echo = await client.fetch(ECHO)
            await client.send(Rec(shown, [echo.fields[0]], [1]))
        else:
            await client.broken(await client.ask(BOOTSTRAP, *FETCH_NONE, answer=7))
            await client.send(Rec(shown, [7]))
        await client.nothing_else()
        client.gc_labels.clear()
        greeted = await greeting(client, await client.fetch(GREETER))
        assert greeted.answer is not None
        await client.until_released(greeted.answer)
        position = client.position()
        await client.tell(await client.fetch(ECHO), obj(position))
        await client.until_returned(position, 1)
        assert set(client.gc_labels) == {"op:gc-export", "op:gc-answer"}
        told = await client.message_to(await client.ask(BOOTSTRAP, *FETCH_NONE))
        assert not told.old_form, "that it has not shown"


DIALECTS: dict[str, tuple[bool, set[str]]] = {
    "2026-02": (False, {"op:gc-exports", "op:gc-answers"}),
    "2026-02-singular-gc": (False, {"op:gc-export", "op:gc-answer"}),
    "2026-01": (True, {"op:gc-export", "op:gc-answer"}),
}


@pytest.mark.parametrize("dialect", DIALECTS)
@trio_test_real
async def test_each_dialect_from_the_start(dialect: str) -> None:
    old_form, gc_labels = DIALECTS[dialect]
    async with world(dialect=dialect) as found:
        client = await found.session()
        told = await client.message_to(await client.ask(BOOTSTRAP, *FETCH_NONE))
        assert told.old_form is old_form
        greeted = await greeting(client, await client.fetch(GREETER))
        assert not greeted.old_form
        assert greeted.resolver is not None
        assert greeted.answer is not None
        await client.until_released(greeted.answer)
        position = client.position()
        await client.tell(await client.fetch(ECHO), obj(position))
        await client.until_returned(position, 1)
        assert set(client.gc_labels) == gc_labels


@trio_test_real
async def test_a_dialect_for_one_locator_is_spoken_where_that_is_dialled() -> None:
    """`dialects` holds for the peers that it names, and for no others."""
    async with ocapn.open_peer([ocapn.TcpTestingNetlayer(designator="helper")]) as helper:
        found = World(helper)
        old, new = await found.place("old"), await found.place("new")
        netlayer = ocapn.TcpTestingNetlayer(designator="dialler", listen=False)
        named = {ocapn.PeerLocator("tcp-testing-only", "old"): "2026-01"}
        try:
            async with ocapn.open_peer([netlayer], dialects=named, durable="never") as peer:
                for place, old_form in ((old, True), (new, False)):
                    reference = peer.enliven(ocapn.SturdyRef(ocapn.PeerLocator.parse(place.uri), b"x"))
                    client = await _answer_enliven(place, reference)
                    told = await client.message_to(await client.ask(BOOTSTRAP, *FETCH_NONE))
                    assert told.old_form is old_form
                    await client.close()
        finally:
            await old.close()
            await new.close()


async def _answer_enliven(place: Any, reference: Any) -> Client:
    clients: list[Client] = []

    async def serve() -> None:
        client = await place.accepted()
        clients.append(client)
        fetch = await client.message_to(BOOTSTRAP)
        await client.tell(own(fetch.resolver), Sym("fulfill"), obj(client.position()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        assert isinstance(await reference, ocapn.Ref)
    return clients[0]


# Structs in the order of their keys' text

UNORDERED = {"memo": 1, "ok": 2, "": 3, "a": 4}  # Syrup puts "ok" before "memo"


@trio_test_real
async def test_structs_are_sent_in_syrup_order_until_text_order_is_seen() -> None:
    async with world() as found:
        client = await found.session()
        other = await found.session("other")
        echo = await client.fetch(ECHO)
        assert await client.call(echo, UNORDERED) == [UNORDERED]
        client.text_order = True
        assert await client.call(echo, UNORDERED) == [UNORDERED]
        assert await client.call(echo, {"b": 1}, UNORDERED) == [{"b": 1}, UNORDERED], "from now on"
        assert await other.call(await other.fetch(ECHO), UNORDERED) == [UNORDERED]


@trio_test_real
async def test_a_struct_in_neither_order_aborts_also_from_a_text_ordered_peer() -> None:
    async with world() as found:
        client = await found.session()
        client.text_order = True
        echo = await client.fetch(ECHO)
        await client.call(echo, UNORDERED)
        await client.tell(echo, Raw(b'{2"ok1+1"a1+4"memo1+}'))
        assert "malformed" in await client.aborted()


@pytest.mark.codec("syrup")
@trio_test_real
async def test_text_order_in_the_hints_of_the_first_message_is_text_order_shown() -> None:
    """The signature is over the bytes that came; what is sent back is in text order from the first message."""
    async with world(framing="none") as found:  # the peer's hints: framing, host, port
        place = await found.place("texty", framing="none")
        client = await place.session(found.uri, "none", text_order=True)
        echo = await client.fetch(ECHO)
        assert await client.call(echo, UNORDERED) == [UNORDERED]


@pytest.mark.codec("syrup")
@trio_test_real
async def test_hints_in_text_order_are_sent_on_in_the_order_of_each_peer() -> None:
    async with world(framing="none") as found:
        texty = await (await found.place("texty", framing="none")).session(found.uri, "none", text_order=True)
        syrupy = await (await found.place("syrupy", framing="none")).session(found.uri, "none")
        mine, yours = texty.place.location, syrupy.place.location
        assert await syrupy.call(await syrupy.fetch(ECHO), mine, yours) == [mine, yours]
        assert await texty.call(await texty.fetch(ECHO), mine, yours) == [mine, yours]
