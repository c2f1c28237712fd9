"""Third-party handoffs: the peer as receiver, right and wrong (wire.md, Third-party handoff)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import ocapn
from tests.support import trio_test_real

from .client import Client
from .encoding import (
    BOOTSTRAP,
    VOID,
    Rec,
    Sym,
    answer,
    encode,
    envelope,
    export,
    obj,
    own,
    public_key,
    verify,
)
from .peer import ECHO, GREETER
from .support import world

WITHDRAW, DEPOSIT = Sym("withdraw-gift"), Sym("deposit-gift")
GIFT = b"my-gift"


def give_of(gifter: Client, exporter: Rec, gift_id: bytes = GIFT, **wrong: Any) -> Rec:
    """A give by `gifter`, who says that it has a session with `exporter`: the peer cannot know."""
    key = wrong.get("receiver_key", gifter.peer_key)
    give = Rec("desc:handoff-give", public_key(key), exporter, b"session", b"side", gift_id)
    return envelope(gifter.key, give, wrong.get("text_order", False))


async def withdrawn(session: Client, gifter: Client, give: Rec, count: int) -> Any:
    """The peer's withdrawal at the exporter, checked."""
    message = await session.message_to(BOOTSTRAP)
    assert message.args[0] == WITHDRAW
    receive, sig_val = message.args[1].fields
    assert receive.label == "desc:handoff-receive"
    assert receive.fields == (session.session_id, session.peer_id, count, give)
    verify(gifter.peer_key, encode(receive), sig_val)
    return message


@trio_test_real
async def test_the_peer_withdraws_with_handoff_counts_from_0_in_each_session() -> None:
    async with world() as found:
        gifter = await found.session("gifter")
        echo = await gifter.fetch(ECHO)
        place = await found.place("exporter")
        for _ in range(2):
            session = None
            for count in range(3):
                give = give_of(gifter, place.location, b"gift %d" % count)
                await gifter.tell(echo, give)
                session = session or await place.accepted()
                await withdrawn(session, gifter, give, count)
            assert session is not None
            await session.end()


@trio_test_real
async def test_gives_stand_for_references_wherever_they_are() -> None:
    async with world() as found:
        gifter = await found.session("gifter")
        greeted = gifter.position()
        await gifter.tell(await gifter.fetch(GREETER), obj(greeted))
        greeting = await gifter.message_to(export(greeted))
        place = await found.place("exporter")
        session = await place.session(found.uri)
        gives = [give_of(gifter, place.location, b"%d" % n) for n in range(4)]
        await gifter.tell(
            await gifter.fetch(ECHO), [gives[0], {"a": gives[1]}], Rec("desc:tagged", Sym("t"), gives[2])
        )
        await gifter.tell(own(greeting.resolver), Sym("fulfill"), gives[3])
        for count, give in enumerate(gives):
            await withdrawn(session, gifter, give, count)


@trio_test_real
async def test_what_is_sent_to_the_gift_reaches_it_in_order() -> None:
    """Pipelined to the withdrawal while it waits, to the gift afterwards."""
    held: list[Any] = []

    @ocapn.target
    def keep(reference: object) -> None:
        held.append(reference)

    @ocapn.target
    def send(first: int, last: int) -> None:
        for n in range(first, last):
            ocapn.send_only(held[0])(n)

    async with world() as found:
        found.peer.export(keep, b"keep")
        found.peer.export(send, b"send")
        gifter = await found.session("gifter")
        place = await found.place("exporter")
        session = await place.session(found.uri)
        give = give_of(gifter, place.location)
        await gifter.tell(await gifter.fetch(b"keep"), give)
        message = await withdrawn(session, gifter, give, 0)
        assert message.answer is not None
        sender = await gifter.fetch(b"send")
        await gifter.call(sender, 0, 5)
        for n in range(5):
            assert (await session.message_to(answer(message.answer))).args == [n]
        thing = session.position()
        await session.tell(own(message.resolver), Sym("fulfill"), obj(thing))
        await session.give_back(own(message.resolver))
        await session.nothing_else()
        await gifter.call(sender, 5, 10)
        for n in range(5, 10):
            assert (await session.message_to(export(thing))).args == [n]
        held.clear()
        await session.until_returned(thing, 1)
        await session.until_released(message.answer)


@trio_test_real
async def test_the_exporter_may_be_the_gifter() -> None:
    async with world() as found:
        gifter = await found.session("gifter")
        give = give_of(gifter, gifter.place.location)
        asked = await gifter.ask(await gifter.fetch(GREETER), give)
        message = await withdrawn(gifter, gifter, give, 0)
        assert message.answer is not None
        assert (await gifter.message_to(answer(message.answer))).args == ["Hello"]
        assert await gifter.fulfilled(asked) == VOID


async def _breaks(gifter: Client, give: Rec) -> Any:
    """What the reference that the give stands for breaks with."""
    (came,) = await gifter.call(await gifter.fetch(ECHO), give)
    verb, error = await gifter.settled(await gifter.listen(own(came)))
    assert verb == "break"
    return error


@trio_test_real
async def test_a_give_for_another_receiver() -> None:
    async with world() as found:
        gifter, other = await found.session("gifter"), await found.session("other")
        place = await found.place("exporter")
        session = await place.session(found.uri)
        give = give_of(gifter, place.location, receiver_key=other.peer_key)
        assert "another receiver" in (await _breaks(gifter, give)).fields[0]
        await session.nothing_else()


@trio_test_real
async def test_an_exporter_that_cannot_be_reached() -> None:
    async with world() as found:
        gifter = await found.session("gifter")
        place = await found.place("exporter")
        await place.listener.aclose()
        assert "exporter" in (await _breaks(gifter, give_of(gifter, place.location))).fields[0]
        nowhere = Rec("ocapn-peer", Sym("onion"), "exporter", False)
        assert "onion" in (await _breaks(gifter, give_of(gifter, nowhere))).fields[0]
        no_hints = Rec("ocapn-peer", Sym("tcp-testing-only"), "elsewhere", False)
        assert "hints" in (await _breaks(gifter, give_of(gifter, no_hints))).fields[0]


@trio_test_real
async def test_an_exporter_that_refuses() -> None:
    async with world() as found:
        gifter = await found.session("gifter")
        place = await found.place("exporter")
        session = await place.session(found.uri)
        give = give_of(gifter, place.location)
        asked = await gifter.ask(await gifter.fetch(ECHO), give)
        message = await withdrawn(session, gifter, give, 0)
        await session.tell(own(message.resolver), Sym("break"), Rec("desc:error", "no such gift"))
        (came,) = await gifter.fulfilled(asked)
        assert await gifter.settled(await gifter.listen(own(came))) == (
            "break",
            Rec("desc:error", "no such gift"),
        )


@trio_test_real
async def test_an_exporter_whose_session_ends() -> None:
    async with world() as found:
        gifter = await found.session("gifter")
        place = await found.place("exporter")
        session = await place.session(found.uri)
        give = give_of(gifter, place.location)
        (came,) = await gifter.call(await gifter.fetch(ECHO), give)
        listener = await gifter.listen(own(came))
        await withdrawn(session, gifter, give, 0)
        await session.send(Rec("op:abort", "the exporter leaves"))
        assert "the exporter leaves" in (await gifter.broken(listener)).fields[0]


@pytest.mark.parametrize("size", [0, 65])
@trio_test_real
async def test_a_give_with_a_bad_gift_id_aborts(size: int) -> None:
    async with world() as found:
        gifter = await found.session("gifter")
        give = give_of(gifter, gifter.place.location, bytes(size))
        await gifter.tell(await gifter.fetch(ECHO), give)
        assert "gift id" in await gifter.aborted()


MALFORMED_GIVES: dict[str, Callable[[Rec], Rec]] = {
    "bare": lambda give: give.fields[0],
    "an envelope of something else": lambda give: Rec("desc:sig-envelope", 1, give.fields[1]),
    "no signature": lambda give: Rec("desc:sig-envelope", give.fields[0], b""),
    "a short signature": lambda give: Rec(
        "desc:sig-envelope",
        give.fields[0],
        [Sym("sig-val"), [Sym("eddsa"), [Sym("r"), bytes(31)], [Sym("s"), bytes(32)]]],
    ),
    "a field too few": lambda give: Rec(
        "desc:sig-envelope", Rec("desc:handoff-give", *give.fields[0].fields[:4]), give.fields[1]
    ),
    "no key": lambda give: Rec(
        "desc:sig-envelope", Rec("desc:handoff-give", bytes(32), *give.fields[0].fields[1:]), give.fields[1]
    ),
}


@pytest.mark.parametrize("name", MALFORMED_GIVES)
@trio_test_real
async def test_a_malformed_give_aborts(name: str) -> None:
    async with world() as found:
        gifter = await found.session("gifter")
        give = MALFORMED_GIVES[name](give_of(gifter, gifter.place.location))
        await gifter.tell(await gifter.fetch(ECHO), give)
        assert await gifter.aborted()


@pytest.mark.codec("syrup")
@trio_test_real
async def test_a_give_in_text_order_is_enclosed_byte_for_byte() -> None:
    """The gifter writes in text order, the exporter reads Syrup order: the give stays as it was signed."""
    async with world() as found:
        gifter = await found.session("gifter")
        gifter.text_order = True
        place = await found.place("exporter", framing="syrup")
        session = await place.session(found.uri)
        give = give_of(gifter, place.location, text_order=True)
        await gifter.tell(await gifter.fetch(ECHO), give)
        raw = await session.receive_bytes()
        while b"withdraw-gift" not in raw:
            raw = await session.receive_bytes()
        assert encode(give, text_order=True) != encode(give)
        assert encode(give, text_order=True) in raw
