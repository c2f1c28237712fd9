"""Each case of the public conformance suite, under its name there, in every dialect.

The suite's branches say the same of a case with other operations: `test_send_deliver_only` of `main` is
`test_send_deliver_no_answer_or_response` of `remove-op-deliver-only`, and so on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support import trio_test_real

from .client import Client, Message, Place
from .encoding import (
    BOOTSTRAP,
    Rec,
    Sym,
    answer,
    encode,
    envelope,
    export,
    make_key,
    obj,
    own,
    public_id,
    public_key,
    verify,
)
from .peer import CAR_FACTORY_BUILDER, ECHO, GREETER, STURDYREF_ENLIVENER
from .support import World, pair_of, part_of, world


@dataclass(frozen=True)
class Speech:
    """What a branch of the suite speaks, and the dialect that the peer is told to speak with it."""

    branch: str
    dialect: str | None
    framing: str
    old_form: bool
    gc_labels: frozenset[str]

    @asynccontextmanager
    async def world(self) -> AsyncIterator[World]:
        async with world(dialect=self.dialect, framing=self.framing) as found:
            yield found

    async def session(self, found: World, designator: str = "client") -> Client:
        return await found.session(designator, self.framing)

    async def tell(self, client: Client, to: Rec, *args: Any) -> None:
        await client.tell(to, *args, old_form=self.old_form)


_OLD_GC = frozenset({"op:gc-export", "op:gc-answer"})
_NEW_GC = frozenset({"op:gc-exports", "op:gc-answers"})
SPEECHES = [
    Speech("main", "2026-01", "none", True, _OLD_GC),
    Speech("remove-op-deliver-only", "2026-02-singular-gc", "none", False, _OLD_GC),
    Speech("newest", "2026-02", "syrup", False, _NEW_GC),
]
speeches = pytest.mark.parametrize("speech", SPEECHES, ids=lambda speech: speech.branch)


# op:abort


@speeches
@trio_test_real
async def test_abort_before_setup(speech: Speech) -> None:
    async with speech.world() as found:
        client = await (await found.place("client")).connect(found.uri, speech.framing)
        await client.send(Rec("op:abort", "test-abort-before-setup"), client.start())
        await client.send_eof()
        assert await client.receive_bytes() == b""
        assert not found.peer.sessions


@speeches
@trio_test_real
async def test_abort_after_setup(speech: Speech) -> None:
    async with speech.world() as found:
        client = await speech.session(found)
        await client.fetch(ECHO)
        await client.send(Rec("op:abort", "test-abort-after-setup"))
        await client.ask(BOOTSTRAP, Sym("fetch"), ECHO)
        await client.send_eof()
        while data := await client.receive_bytes():  # what was on its way
            assert data.startswith((b"<12'op:gc-", b"<13'op:gc-"))
        assert not found.peer.sessions


# op:deliver, op:deliver-only


@speeches
@trio_test_real
async def test_send_deliver_only(speech: Speech) -> None:
    async with speech.world() as found:
        client = await speech.session(found)
        greeter = await client.fetch(GREETER)
        position = client.position()
        await speech.tell(client, greeter, obj(position))
        greeting = await client.message_to(export(position))
        assert greeting.args == ["Hello"]
        assert not greeting.old_form, "the greeter wants an answer"
        assert greeting.answer is not None
        assert greeting.resolver is not None


@speeches
@trio_test_real
async def test_deliver_with_resolver(speech: Speech) -> None:
    async with speech.world() as found:
        client = await speech.session(found)
        echo = await client.fetch(ECHO)
        args = ["foo", 1, False, b"bar", ["baz"]]
        told = await client.message_to(await client.ask(echo, *args))
        assert told.old_form is speech.old_form
        assert encode(told.args) == encode([Sym("fulfill"), args])


@speeches
@trio_test_real
async def test_deliver_promise_pipeline(speech: Speech) -> None:
    async with speech.world() as found:
        client = await speech.session(found)
        builder, factory, car = (client.answer_position() for _ in range(3))
        await client.ask(BOOTSTRAP, Sym("fetch"), CAR_FACTORY_BUILDER, answer=builder)
        await client.ask(answer(builder), answer=factory)
        await client.ask(answer(factory), [Sym("red"), Sym("zoomracer")], answer=car)
        drive = await client.ask(answer(car))
        assert await client.fulfilled(drive) == "Vroom! I am a red zoomracer car!"


@speeches
@trio_test_real
async def test_promise_pipeline_with_break(speech: Speech) -> None:
    async with speech.world() as found:
        client = await speech.session(found)
        builder, factory, car = (client.answer_position() for _ in range(3))
        await client.ask(BOOTSTRAP, Sym("fetch"), CAR_FACTORY_BUILDER, answer=builder)
        await client.ask(answer(builder), answer=factory)
        order = await client.ask(answer(factory), [1, 2, 3, 4, 5], answer=car)
        drive = await client.ask(answer(car))
        assert await client.broken(order) == await client.broken(drive)


# Garbage collection


@speeches
@trio_test_real
async def test_gc_export_emitted_single_object(speech: Speech) -> None:
    async with speech.world() as found:
        client = await speech.session(found)
        echo = await client.fetch(ECHO)
        position = client.position()
        await speech.tell(client, echo, obj(position))
        await client.until_returned(position, 1)
        assert set(client.gc_labels) <= speech.gc_labels


@speeches
@trio_test_real
async def test_gc_export_with_multiple_refrences(speech: Speech) -> None:
    async with speech.world() as found:
        client = await speech.session(found)
        echo = await client.fetch(ECHO)
        position = client.position()
        await speech.tell(client, echo, *[obj(position)] * 4)
        await client.until_returned(position, 4)


@speeches
@trio_test_real
async def test_gc_export_with_multiple_refrences_in_different_messages(speech: Speech) -> None:
    async with speech.world() as found:
        client = await speech.session(found)
        echo = await client.fetch(ECHO)
        position = client.position()
        for _ in range(4):
            await speech.tell(client, echo, obj(position))
        await client.until_returned(position, 4)


@speeches
@trio_test_real
async def test_gc_answer(speech: Speech) -> None:
    async with speech.world() as found:
        client = await speech.session(found)
        greeter = await client.fetch(GREETER)
        position = client.position()
        await speech.tell(client, greeter, obj(position))
        greeting = await client.message_to(export(position))
        assert greeting.answer is not None
        await speech.tell(client, own(greeting.resolver), Sym("fulfill"), "Hello")
        await client.until_released(greeting.answer)
        assert set(client.gc_labels) <= speech.gc_labels


# op:listen


@speeches
@trio_test_real
async def test_op_listen_to_promise_and_fulfill(speech: Speech) -> None:
    async with speech.world() as found:
        client = await speech.session(found)
        vow, resolver = await pair_of(client)
        listener = await client.listen(vow, False)
        await speech.tell(client, resolver, Sym("fulfill"), Sym("ok"))
        assert await client.outcome(listener) == ("fulfill", Sym("ok"))


@speeches
@trio_test_real
async def test_op_listen_to_promise_and_break(speech: Speech) -> None:
    async with speech.world() as found:
        client = await speech.session(found)
        vow, resolver = await pair_of(client)
        listener = await client.listen(vow, False)
        await speech.tell(client, resolver, Sym("break"), Sym("oh-no"))
        assert await client.outcome(listener) == ("break", Sym("oh-no"))


@speeches
@trio_test_real
async def test_op_listen_already_has_answer(speech: Speech) -> None:
    async with speech.world() as found:
        client = await speech.session(found)
        vow, resolver = await pair_of(client)
        await speech.tell(client, resolver, Sym("fulfill"), Sym("ok"))
        listener = await client.listen(vow, False)
        assert await client.outcome(listener) == ("fulfill", Sym("ok"))


# op:start-session


@speeches
@trio_test_real
async def test_captp_remote_version(speech: Speech) -> None:
    async with speech.world() as found:
        client = await (await found.place("client")).connect(found.uri, speech.framing)
        await client.send(client.start())
        start = await client.next()
        assert start.label == "op:start-session"
        assert start.fields[0] == "1.0"


@speeches
@trio_test_real
async def test_start_session_with_invalid_version(speech: Speech) -> None:
    async with speech.world() as found:
        client = await (await found.place("client")).connect(found.uri, speech.framing)
        await client.send(client.start("invalid-version-number"))
        assert "version" in await client.aborted()


@speeches
@trio_test_real
async def test_start_session_with_invalid_signature(speech: Speech) -> None:
    async with speech.world() as found:
        client = await (await found.place("client")).connect(found.uri, speech.framing)
        await client.send(client.start(signed=b"i am invalid"))
        assert "signature" in await client.aborted()


async def crossed_hellos(speech: Speech, found: World, higher: bool) -> tuple[Client, Client]:
    """The peer has a connection under way to a place that now starts one of its own: inbound and outbound there.

    `higher`: whether the place's key on its own connection has the higher identifier.
    """
    client = await speech.session(found)
    enlivener = await client.fetch(STURDYREF_ENLIVENER)
    other = await found.place("other")
    await speech.tell(client, enlivener, other.sturdyref(b"my-object"))
    inbound = await other.accept(speech.framing)
    key = make_key(lambda identifier: (identifier > inbound.peer_id) is higher)
    outbound = await other.connect(found.uri, speech.framing, key=key)
    await outbound.send(outbound.start())
    return inbound, outbound


@speeches
@trio_test_real
async def test_crossed_hellos_mitigation_aborts_inbound(speech: Speech) -> None:
    async with speech.world() as found:
        inbound, outbound = await crossed_hellos(speech, found, higher=True)
        assert "crossed hellos" in await inbound.aborted()
        await outbound.their_start()
        fetch = await outbound.message_to(BOOTSTRAP)
        assert fetch.args == [Sym("fetch"), b"my-object"]


@speeches
@trio_test_real
async def test_crossed_hellos_mitigation_outbound_aborts(speech: Speech) -> None:
    async with speech.world() as found:
        inbound, outbound = await crossed_hellos(speech, found, higher=False)
        assert "crossed hellos" in await outbound.aborted()
        await inbound.send(inbound.start())
        fetch = await inbound.message_to(BOOTSTRAP)
        assert fetch.args == [Sym("fetch"), b"my-object"]


@speeches
@trio_test_real
async def test_duplicate_start_session_aborts(speech: Speech) -> None:
    async with speech.world() as found:
        client = await speech.session(found)
        client.key = make_key()
        await client.send(client.start())
        assert "second time" in await client.aborted()


@speeches
@trio_test_real
async def test_second_connection_after_first_established(speech: Speech) -> None:
    async with speech.world() as found:
        first = await speech.session(found)
        second = await first.place.session(found.uri, speech.framing)
        assert "session" in await second.aborted()
        assert await first.fetch(ECHO)


@speeches
@trio_test_real
async def test_op_bootstrap(speech: Speech) -> None:
    """The bootstrap object is at 0 from the start; the operation that once asked for it is unknown."""
    async with speech.world() as found:
        client = await speech.session(found)
        assert await client.fetch(ECHO)
        await client.send(Rec("op:bootstrap", 0, obj(client.position())))
        assert "op:bootstrap" in await client.aborted()


# op:index and op:get


@speeches
@trio_test_real
async def test_op_index_success_desc_answer(speech: Speech) -> None:
    async with speech.world() as found:
        client = await speech.session(found)
        echo = await client.fetch(ECHO)
        position = client.answer_position()
        await client.ask(echo, Sym("foo"), Sym("bar"), Sym("baz"), answer=position)
        assert await client.fulfilled(await part_of(client, "op:index", answer(position), 1)) == Sym("bar")


@speeches
@trio_test_real
async def test_op_index_success_desc_export(speech: Speech) -> None:
    async with speech.world() as found:
        client = await speech.session(found)
        vow, resolver = await pair_of(client)
        part = await part_of(client, "op:index", vow, 2)
        await speech.tell(client, resolver, Sym("fulfill"), [100, 200, 300, 400])
        assert await client.fulfilled(part) == 300


@speeches
@trio_test_real
async def test_op_index_on_broken_promise(speech: Speech) -> None:
    async with speech.world() as found:
        client = await speech.session(found)
        vow, resolver = await pair_of(client)
        part = await part_of(client, "op:index", vow, 2)
        await speech.tell(client, resolver, Sym("break"), Sym("oh-no"))
        assert await client.broken(part) == Sym("oh-no")


@speeches
@trio_test_real
async def test_op_index_fails_on_non_list(speech: Speech) -> None:
    async with speech.world() as found:
        client = await speech.session(found)
        vow, resolver = await pair_of(client)
        part = await part_of(client, "op:index", vow, 2)
        await speech.tell(client, resolver, Sym("fulfill"), Sym("not-a-list"))
        assert "list" in (await client.broken(part)).fields[0]


@speeches
@trio_test_real
async def test_op_get_success_desc_answer(speech: Speech) -> None:
    async with speech.world() as found:
        client = await speech.session(found)
        echo = await client.fetch(ECHO)
        whole, first = client.answer_position(), client.answer_position()
        await client.ask(echo, {"foo": 72, "bar": "baz"}, answer=whole)
        await client.send(Rec("op:index", answer(whole), 0, first))
        assert await client.fulfilled(await part_of(client, "op:get", answer(first), "foo")) == 72


@speeches
@trio_test_real
async def test_op_get_success_desc_export(speech: Speech) -> None:
    async with speech.world() as found:
        client = await speech.session(found)
        vow, resolver = await pair_of(client)
        await speech.tell(client, resolver, Sym("fulfill"), {"foo": 72, "bar": "baz"})
        assert await client.fulfilled(await part_of(client, "op:get", vow, "foo")) == 72


@speeches
@trio_test_real
async def test_op_get_broken_promise(speech: Speech) -> None:
    async with speech.world() as found:
        client = await speech.session(found)
        vow, resolver = await pair_of(client)
        await speech.tell(client, resolver, Sym("break"), Sym("oh-no"))
        assert await client.broken(await part_of(client, "op:get", vow, "foo")) == Sym("oh-no")


@speeches
@trio_test_real
async def test_op_get_not_struct(speech: Speech) -> None:
    async with speech.world() as found:
        client = await speech.session(found)
        vow, resolver = await pair_of(client)
        await speech.tell(client, resolver, Sym("fulfill"), Sym("not-a-struct"))
        assert "struct" in (await client.broken(await part_of(client, "op:get", vow, "foo"))).fields[0]


# Third-party handoffs: the peer as receiver


async def receives(speech: Speech, found: World, exporter: Place, prior: Client | None) -> Message:
    """A gifter sends the greeter a gift that is at `exporter`; the peer's withdrawal, its certificates checked."""
    gifter = await speech.session(found, "gifter")
    greeter = await gifter.fetch(GREETER)
    key = make_key()  # of a session between gifter and exporter that is nowhere
    give = Rec(
        "desc:handoff-give", public_key(gifter.peer_key), exporter.location, b"g-e", b"gifter", b"my-gift"
    )
    signed_give = envelope(key, give)
    await speech.tell(gifter, greeter, signed_give)
    session = prior or await exporter.accepted(speech.framing)
    withdrawal = await session.message_to(BOOTSTRAP)
    assert withdrawal.answer is not None
    assert withdrawal.args[0] == Sym("withdraw-gift")
    assert withdrawal.args[1].label == "desc:sig-envelope"
    receive, sig_val = withdrawal.args[1].fields
    assert receive.label == "desc:handoff-receive"
    verify(gifter.peer_key, encode(receive), sig_val)
    receiving_session, side, count, enclosed = receive.fields
    assert receiving_session == session.session_id
    assert side == public_id(session.peer_key)
    assert count == 0
    assert encode(enclosed) == encode(signed_give), "a give is enclosed byte for byte"
    greeting = await session.message_to(answer(withdrawal.answer))
    assert greeting.args == ["Hello"], "what is sent to the gift is pipelined"
    return withdrawal


@speeches
@trio_test_real
async def test_valid_handoff_without_prior_connection(speech: Speech) -> None:
    async with speech.world() as found:
        await receives(speech, found, await found.place("exporter"), None)


@speeches
@trio_test_real
async def test_valid_handoff_with_prior_connection(speech: Speech) -> None:
    async with speech.world() as found:
        exporter = await found.place("exporter")
        prior = await exporter.session(found.uri, speech.framing)
        await receives(speech, found, exporter, prior)


# The peer as exporter


@dataclass
class Gift:
    """The greeter of the peer under test as a gift, from gifter to receiver."""

    speech: Speech
    gifter: Client
    receiver: Client
    greeter: Rec

    @staticmethod
    async def make(speech: Speech, found: World) -> Gift:
        gifter = await speech.session(found, "gifter")
        receiver = await speech.session(found, "receiver")
        return Gift(speech, gifter, receiver, await gifter.fetch(GREETER))

    async def deposit(self) -> None:
        await self.speech.tell(self.gifter, BOOTSTRAP, Sym("deposit-gift"), b"my-gift", self.greeter)


@speeches
@trio_test_real
async def test_valid_handoff(speech: Speech) -> None:
    async with speech.world() as found:
        gift = await Gift.make(speech, found)
        key = make_key()
        give = gift.gifter.give(bytes(key.verify_key), gift.gifter, b"my-gift")
        await gift.deposit()
        await gift.gifter.fetch(ECHO)  # the deposit is there
        got = await gift.receiver.call(BOOTSTRAP, Sym("withdraw-gift"), gift.receiver.claim(key, give))
        assert got.label == "desc:import-object"


@speeches
@trio_test_real
async def test_valid_handoff_wait_deposit_gift(speech: Speech) -> None:
    async with speech.world() as found:
        gift = await Gift.make(speech, found)
        key = make_key()
        give = gift.gifter.give(bytes(key.verify_key), gift.gifter, b"my-gift")
        claim = gift.receiver.claim(key, give)
        resolver = await gift.receiver.ask(BOOTSTRAP, Sym("withdraw-gift"), claim)
        if speech.old_form:  # `add-referencing-tests` waits for a promise before it deposits
            vow = await gift.receiver.fulfilled(resolver)
            assert vow.label == "desc:import-promise"
            resolver = await gift.receiver.listen(own(vow), True)
        await gift.receiver.nothing_else()
        await gift.deposit()
        assert (await gift.receiver.fulfilled(resolver)).label == "desc:import-object"


@speeches
@trio_test_real
async def test_handoff_receive_invalid_handoff_count(speech: Speech) -> None:
    async with speech.world() as found:
        gift = await Gift.make(speech, found)
        key = make_key()
        give = gift.gifter.give(bytes(key.verify_key), gift.gifter, b"my-gift")
        claim = gift.receiver.claim(key, give)
        await gift.deposit()
        await gift.gifter.fetch(ECHO)
        await gift.receiver.call(BOOTSTRAP, Sym("withdraw-gift"), claim)
        await gift.deposit()
        await gift.gifter.fetch(ECHO)
        error = await gift.receiver.broken(await gift.receiver.ask(BOOTSTRAP, Sym("withdraw-gift"), claim))
        assert "count" in error.fields[0]


@speeches
@trio_test_real
async def test_handoff_receive_invalid_signature(speech: Speech) -> None:
    async with speech.world() as found:
        gift = await Gift.make(speech, found)
        key = make_key()
        give = gift.gifter.give(bytes(key.verify_key), gift.gifter, b"my-gift")
        claim = gift.receiver.claim(make_key(), give)
        await gift.deposit()
        await gift.gifter.fetch(ECHO)
        error = await gift.receiver.broken(await gift.receiver.ask(BOOTSTRAP, Sym("withdraw-gift"), claim))
        assert "receiver" in error.fields[0]


# The peer as gifter


@speeches
@trio_test_real
async def test_provides_valid_handoff_give(speech: Speech) -> None:
    async with speech.world() as found:
        receiver = await speech.session(found, "receiver")
        exporter = await speech.session(found, "exporter")
        enlivener = await receiver.fetch(STURDYREF_ENLIVENER)
        asked = await receiver.ask(enlivener, exporter.place.sturdyref(b"swiss"))
        fetch = await exporter.message_to(BOOTSTRAP)
        assert fetch.args == [Sym("fetch"), b"swiss"]
        assert fetch.answer is not None, "the fetch wants an answer"
        position = exporter.position()
        await speech.tell(exporter, own(fetch.resolver), Sym("fulfill"), obj(position))
        deposit = await exporter.message_to(BOOTSTRAP)
        assert deposit.args[0] == Sym("deposit-gift")
        assert deposit.args[2] == export(position)
        assert deposit.answer is None
        assert deposit.old_form is speech.old_form
        signed_give = await receiver.fulfilled(asked)
        assert signed_give.label == "desc:sig-envelope"
        give, sig_val = signed_give.fields
        assert give.label == "desc:handoff-give"
        verify(exporter.peer_key, encode(give), sig_val)
        key, location, session, side, gift_id = give.fields
        assert key == public_key(receiver.public_key)
        assert location == exporter.place.location
        assert session == exporter.session_id
        assert side == exporter.peer_id
        assert gift_id == deposit.args[1]
        assert len(gift_id) == 32
