"""Third-party handoffs: the peer as gifter (wire.md, Third-party handoff)."""

from __future__ import annotations

from typing import Any

import pytest

import ocapn
from ocapn import E
from tests.support import trio_test_real

from .client import Client, Message
from .encoding import (
    BOOTSTRAP,
    Rec,
    Sym,
    encode,
    export,
    locator,
    obj,
    own,
    public_id,
    public_key,
    verify,
)
from .peer import ECHO, STURDYREF_ENLIVENER
from .support import world

WITHDRAW, DEPOSIT = Sym("withdraw-gift"), Sym("deposit-gift")
GIFT = b"my-gift"


async def enlivened(receiver: Client, exporter: Client) -> tuple[Rec, Message, int]:
    """The receiver has the peer enliven an object of the exporter: the give, the deposit, the object's position."""
    enlivener = await receiver.fetch(STURDYREF_ENLIVENER)
    asked = await receiver.ask(enlivener, exporter.place.sturdyref(b"swiss"))
    fetch = await exporter.message_to(BOOTSTRAP)
    assert fetch.args == [Sym("fetch"), b"swiss"]
    position = exporter.position()
    await exporter.tell(own(fetch.resolver), Sym("fulfill"), obj(position))
    await exporter.give_back(own(fetch.resolver))
    deposit = await exporter.message_to(BOOTSTRAP)
    assert deposit.args[0] == DEPOSIT
    assert deposit.args[2] == export(position)
    assert (deposit.answer, deposit.resolver) == (None, None)
    give = await receiver.fulfilled(asked)
    assert isinstance(give, Rec)
    return give, deposit, position


def check_give(give: Rec, deposit: Message, receiver: Client, exporter: Client) -> None:
    assert give.label == "desc:sig-envelope"
    signed, sig_val = give.fields
    assert signed.label == "desc:handoff-give"
    verify(exporter.peer_key, encode(signed, receiver.text_order), sig_val)
    assert signed.fields == (
        public_key(receiver.public_key),
        exporter.place.location,
        exporter.session_id,
        public_id(exporter.peer_key),
        deposit.args[1],
    )
    assert len(deposit.args[1]) == 32


@trio_test_real
async def test_the_peer_gives_and_deposits() -> None:
    async with world() as found:
        receiver, exporter = await found.session("receiver"), await found.session("exporter")
        ids = set()
        for _ in range(3):
            give, deposit, position = await enlivened(receiver, exporter)
            check_give(give, deposit, receiver, exporter)
            ids.add(deposit.args[1])
            await exporter.until_returned(position, 1)
        assert len(ids) == 3, "a new gift id each time"


@trio_test_real
async def test_a_reference_sent_twice_is_two_gifts() -> None:
    async with world() as found:
        receiver, exporter = await found.session("receiver"), await found.session("exporter")
        held: list[object] = []

        @ocapn.target
        def keep(value: object) -> None:
            held.append(value)

        @ocapn.target
        def twice() -> list[object]:
            return [held[0], {"again": held[0]}]

        found.peer.export(keep, b"keep")
        found.peer.export(twice, b"twice")
        position = exporter.position()
        await exporter.call(await exporter.fetch(b"keep"), obj(position))
        one, other = await receiver.call(await receiver.fetch(b"twice"))
        deposits = [await exporter.message_to(BOOTSTRAP) for _ in range(2)]
        check_give(one, deposits[0], receiver, exporter)
        check_give(other["again"], deposits[1], receiver, exporter)
        assert deposits[0].args[1] != deposits[1].args[1]


@trio_test_real
async def test_a_reference_that_goes_home_is_no_gift() -> None:
    async with world() as found:
        client = await found.session()
        position = client.position()
        assert await client.call(await client.fetch(ECHO), obj(position)) == [export(position)]
        await client.nothing_else()


@trio_test_real
async def test_a_reference_whose_exporter_is_gone_comes_broken() -> None:
    async with world() as found:
        receiver, exporter = await found.session("receiver"), await found.session("exporter")
        held: list[object] = []

        @ocapn.target
        def keep(value: object) -> None:
            held.append(value)

        @ocapn.target
        def tell() -> list[object]:
            return held

        found.peer.export(keep, b"keep")
        found.peer.export(tell, b"tell")
        await exporter.call(await exporter.fetch(b"keep"), obj(exporter.position()))
        await exporter.end()
        (came,) = await receiver.call(await receiver.fetch(b"tell"))
        verb, error = await receiver.settled(await receiver.listen(own(came)))
        assert verb == "break"
        assert error == Rec("desc:error", "the test is done")


@pytest.mark.codec("syrup")
@trio_test_real
async def test_the_give_is_in_the_order_that_its_receiver_reads() -> None:
    """The exporter's hints are written anew, and signed as they are written."""
    async with world() as found:
        receiver = await found.session("receiver")
        receiver.text_order = True
        echo = await receiver.fetch(ECHO)
        await receiver.call(echo, {"aa": 1, "b": 2})  # shows text order
        place = await found.place("exporter", framing="syrup")
        exporter = await place.session(found.uri)
        give, deposit, _ = await enlivened(receiver, exporter)
        assert encode(give) != encode(give, text_order=True)
        check_give(give, deposit, receiver, exporter)


@trio_test_real
async def test_the_triangle_closed() -> None:
    """The peer gives the echo of a second peer to a client, which withdraws it there."""
    netlayer = ocapn.TcpTestingNetlayer(designator="second")
    async with world() as found, ocapn.open_peer([netlayer]) as second:

        @ocapn.target
        def hello(name: str) -> str:
            return f"hello {name}"

        sturdyref = second.export(hello, b"hello")
        receiver = await found.session("receiver")
        hints = dict(sturdyref.peer.hints)
        wanted = Rec("ocapn-sturdyref", locator("second", hints), b"hello")
        give = await receiver.call(await receiver.fetch(STURDYREF_ENLIVENER), wanted)
        assert give.label == "desc:sig-envelope"
        session = await receiver.place.session(second.locator().uri)
        claim = session.claim(receiver.key, give)
        gift = own(await session.call(BOOTSTRAP, WITHDRAW, claim))
        assert await session.call(gift, "receiver") == "hello receiver"
        second.check()
        await session.end()


@trio_test_real
async def test_the_peer_gives_what_a_promise_became() -> None:
    """Somebody listens on a promise that is fulfilled with a third party's object."""
    async with world() as found:
        receiver, exporter = await found.session("receiver"), await found.session("exporter")
        holder: list[Any] = []

        @ocapn.target
        def ask(someone: object) -> None:
            holder.append(E(someone)("a thing"))

        @ocapn.target
        def answered() -> object:
            return holder[0]

        found.peer.export(ask, b"ask")
        found.peer.export(answered, b"answered")
        mine = exporter.position()
        await exporter.call(await exporter.fetch(b"ask"), obj(mine))
        question = await exporter.message_to(export(mine))
        asked = await receiver.ask(await receiver.fetch(b"answered"))
        await receiver.nothing_else()
        thing = exporter.position()
        await exporter.tell(own(question.resolver), Sym("fulfill"), obj(thing))
        give = await receiver.fulfilled(asked)
        deposit = await exporter.message_to(BOOTSTRAP)
        assert deposit.args[2] == export(thing)
        check_give(give, deposit, receiver, exporter)
        holder.clear()
