"""Third-party handoffs: the peer as exporter, right and wrong (wire.md, Third-party handoff)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from nacl.signing import SigningKey

import ocapn
from tests.support import trio_test_real

from .client import Client
from .encoding import (
    BOOTSTRAP,
    VOID,
    Rec,
    Sym,
    answer,
    envelope,
    export,
    locator,
    make_key,
    obj,
    own,
    promise,
    public_key,
)
from .peer import ECHO, GREETER
from .support import SUBJECT, World, pair_of, world

WITHDRAW, DEPOSIT = Sym("withdraw-gift"), Sym("deposit-gift")
GIFT = b"my-gift"


@dataclass
class Triangle:
    """A gifter and a receiver, both with a session with the peer, which exports the gift: its echo.

    `key` is the receiver's in its session with the gifter.
    """

    found: World
    gifter: Client
    receiver: Client
    key: SigningKey
    gift: Rec

    @staticmethod
    async def make(found: World) -> Triangle:
        gifter, receiver = await found.session("gifter"), await found.session("receiver")
        return Triangle(found, gifter, receiver, make_key(), await gifter.fetch(ECHO))

    async def deposit(self, gift_id: bytes = GIFT, gift: Any = None) -> None:
        """Deposits the echo, or something else, and sees to it that the peer has read that."""
        await self.gifter.tell(BOOTSTRAP, DEPOSIT, gift_id, self.gift if gift is None else gift)
        await self.gifter.nothing_else()

    def give(self, gift_id: bytes = GIFT, **wrong: Any) -> Rec:
        return self.gifter.give(bytes(self.key.verify_key), self.gifter, gift_id, **wrong)

    async def withdraw(self, claim: Rec) -> Rec:
        return await self.receiver.ask(BOOTSTRAP, WITHDRAW, claim)

    def claim(self, count: int = 0, gift_id: bytes = GIFT) -> Rec:
        return self.receiver.claim(self.key, self.give(gift_id), count)

    async def gets_the_gift(self, resolver: Rec) -> None:
        gift = own(await self.receiver.fulfilled(resolver))
        assert await self.receiver.call(gift, "the echo") == ["the echo"]


@trio_test_real
async def test_deposit_first() -> None:
    async with world() as found:
        triangle = await Triangle.make(found)
        await triangle.deposit()
        (session, _) = found.peer.sessions
        assert session.stats()["gifts_waiting"] == 1
        await triangle.gets_the_gift(await triangle.withdraw(triangle.claim()))
        assert session.stats()["gifts_waiting"] == 0


@trio_test_real
async def test_withdrawal_first_with_messages_pipelined_to_the_gift() -> None:
    async with world() as found:
        triangle = await Triangle.make(found)
        receiver = triangle.receiver
        position, resolver = receiver.answer_position(), receiver.position()
        await receiver.send(
            Rec("op:deliver", BOOTSTRAP, [WITHDRAW, triangle.claim()], position, obj(resolver))
        )
        pipelined = [await receiver.ask(answer(position), n) for n in range(10)]
        await receiver.nothing_else()
        await triangle.deposit()
        gift = own(await receiver.fulfilled(export(resolver)))
        for n, one in enumerate(pipelined):
            assert await receiver.fulfilled(one) == [n]
        assert await receiver.call(gift, "direct") == ["direct"]


@trio_test_real
async def test_the_hints_of_the_exporter_s_location_do_not_count() -> None:
    async with world() as found:
        triangle = await Triangle.make(found)
        await triangle.deposit()
        give = triangle.give(location=locator(SUBJECT, {"host": "elsewhere"}))
        await triangle.gets_the_gift(await triangle.withdraw(triangle.receiver.claim(triangle.key, give)))


@trio_test_real
async def test_a_deposit_may_want_an_answer() -> None:
    async with world() as found:
        triangle = await Triangle.make(found)
        assert await triangle.gifter.call(BOOTSTRAP, DEPOSIT, GIFT, triangle.gift) == VOID
        await triangle.gets_the_gift(await triangle.withdraw(triangle.claim()))


def _tampered(triangle: Triangle) -> Rec:
    """A give whose gift id was changed after it was signed."""
    other = triangle.give(b"other").fields[1]
    return Rec("desc:sig-envelope", triangle.give().fields[0], other)


def _tampered_receive(triangle: Triangle) -> Rec:
    claim, other = triangle.claim(7), triangle.claim(0)
    return Rec("desc:sig-envelope", other.fields[0], claim.fields[1])


WRONG_CLAIMS: dict[str, tuple[Callable[[Triangle], Rec], str]] = {
    "receiving session": (
        lambda it: it.receiver.claim(it.key, it.give(), session=it.gifter.session_id),
        "another session",
    ),
    "receiving side": (
        lambda it: it.receiver.claim(it.key, it.give(), side=it.gifter.public_id),
        "another session",
    ),
    "receiving side is the exporter's": (
        lambda it: it.receiver.claim(it.key, it.give(), side=it.receiver.peer_id),
        "another session",
    ),
    "exporter location": (
        lambda it: it.receiver.claim(it.key, it.give(location=it.receiver.place.location)),
        "another exporter",
    ),
    "exporter transport": (
        lambda it: it.receiver.claim(
            it.key, it.give(location=Rec("ocapn-peer", Sym("onion"), SUBJECT, False))
        ),
        "another exporter",
    ),
    "gifter's side is the exporter's": (
        lambda it: it.receiver.claim(it.key, it.give(side=it.gifter.peer_id)),
        "gifter's side",
    ),
    "gifter's side is the receiver's": (
        lambda it: it.receiver.claim(it.key, it.give(side=it.receiver.public_id)),
        "gifter's side",
    ),
    "unknown gifter session": (
        lambda it: it.receiver.claim(it.key, it.give(session=bytes(32))),
        "no session",
    ),
    "gifter session is the receiver's": (
        lambda it: it.receiver.claim(it.key, it.give(session=it.receiver.session_id)),
        "gifter's side",
    ),
    "the receiver gives to itself in the gifter's name": (
        lambda it: it.receiver.claim(
            it.key, it.give(session=it.receiver.session_id, side=it.receiver.public_id)
        ),
        "not signed by the gifter",
    ),
    "give signed by another": (
        lambda it: it.receiver.claim(it.key, it.give(key=make_key())),
        "not signed by the gifter",
    ),
    "give signed by the receiver": (
        lambda it: it.receiver.claim(it.key, it.give(key=it.key)),
        "not signed by the gifter",
    ),
    "give tampered with": (lambda it: it.receiver.claim(it.key, _tampered(it)), "not signed by the gifter"),
    "receive signed by another": (
        lambda it: it.receiver.claim(make_key(), it.give()),
        "not signed by the receiver",
    ),
    "receive signed by the receiver's session key": (
        lambda it: it.receiver.claim(it.receiver.key, it.give()),
        "not signed by the receiver",
    ),
    "receive signed by the gifter": (
        lambda it: it.receiver.claim(it.gifter.key, it.give()),
        "not signed by the receiver",
    ),
    "receive tampered with": (_tampered_receive, "not signed by the receiver"),
}


@pytest.mark.parametrize("name", WRONG_CLAIMS)
@trio_test_real
async def test_a_wrong_claim_breaks_and_takes_nothing(name: str) -> None:
    """Neither the gift nor the handoff count is used up."""
    make, reason = WRONG_CLAIMS[name]
    async with world() as found:
        triangle = await Triangle.make(found)
        await triangle.deposit()
        error = await triangle.receiver.broken(await triangle.withdraw(make(triangle)))
        assert reason in error.fields[0]
        await triangle.gets_the_gift(await triangle.withdraw(triangle.claim()))


@pytest.mark.parametrize("name", WRONG_CLAIMS)
@trio_test_real
async def test_a_wrong_claim_does_not_wait_for_the_gift(name: str) -> None:
    make, reason = WRONG_CLAIMS[name]
    async with world() as found:
        triangle = await Triangle.make(found)
        error = await triangle.receiver.broken(await triangle.withdraw(make(triangle)))
        assert reason in error.fields[0]
        waiting = await triangle.withdraw(triangle.claim())
        await triangle.deposit()
        await triangle.gets_the_gift(waiting)


@trio_test_real
async def test_a_reused_handoff_count() -> None:
    async with world() as found:
        triangle = await Triangle.make(found)
        for gift_id in (b"one", b"two"):
            await triangle.deposit(gift_id)
        await triangle.gets_the_gift(await triangle.withdraw(triangle.claim(5, b"one")))
        error = await triangle.receiver.broken(await triangle.withdraw(triangle.claim(5, b"two")))
        assert "count" in error.fields[0]
        await triangle.gets_the_gift(await triangle.withdraw(triangle.claim(0, b"two")))


@trio_test_real
async def test_a_handoff_count_is_of_its_session() -> None:
    async with world() as found:
        triangle = await Triangle.make(found)
        other = await found.session("other receiver")
        for gift_id in (b"one", b"two"):
            await triangle.deposit(gift_id)
        await triangle.gets_the_gift(await triangle.withdraw(triangle.claim(0, b"one")))
        claim = other.claim(triangle.key, triangle.give(b"two"), 0)
        assert own(await other.call(BOOTSTRAP, WITHDRAW, claim))


@pytest.mark.parametrize("count", [-1, 2**63, False, "0"], ids=repr)
@trio_test_real
async def test_a_handoff_count_that_is_none_aborts(count: Any) -> None:
    async with world() as found:
        triangle = await Triangle.make(found)
        await triangle.deposit()
        await triangle.receiver.tell(
            BOOTSTRAP, WITHDRAW, triangle.receiver.claim(triangle.key, triangle.give(), count)
        )
        assert "handoff count" in await triangle.receiver.aborted()


@trio_test_real
async def test_a_gift_is_withdrawn_once() -> None:
    """A second claim waits for a second deposit, and gets that."""
    async with world() as found:
        triangle = await Triangle.make(found)
        await triangle.deposit()
        await triangle.gets_the_gift(await triangle.withdraw(triangle.claim(0)))
        second = await triangle.withdraw(triangle.claim(1))
        await triangle.receiver.nothing_else()
        await triangle.deposit(gift=await triangle.gifter.fetch(GREETER))
        greeter = own(await triangle.receiver.fulfilled(second))
        greeted = triangle.receiver.position()
        await triangle.receiver.tell(greeter, obj(greeted))
        assert (await triangle.receiver.message_to(export(greeted))).args == ["Hello"]


@trio_test_real
async def test_two_claims_on_a_gift_that_has_not_come() -> None:
    async with world() as found:
        triangle = await Triangle.make(found)
        first = await triangle.withdraw(triangle.claim(0))
        second = await triangle.withdraw(triangle.claim(1))
        assert "already" in (await triangle.receiver.broken(second)).fields[0]
        await triangle.deposit()
        await triangle.gets_the_gift(first)


@trio_test_real
async def test_another_receiver_gets_nothing() -> None:
    """Somebody who saw the give, and the claim, and has no key of the receiver."""
    async with world() as found:
        triangle = await Triangle.make(found)
        thief = await found.session("thief")
        await triangle.deposit()
        stolen = [
            thief.claim(thief.key, triangle.give()),
            thief.claim(make_key(), triangle.give(), 1),
            triangle.claim(),
            Rec(
                "desc:sig-envelope",
                thief.claim(make_key(), triangle.give()).fields[0],
                triangle.claim().fields[1],
            ),
        ]
        for claim in stolen:
            assert await thief.broken(await thief.ask(BOOTSTRAP, WITHDRAW, claim))
        await triangle.gets_the_gift(await triangle.withdraw(triangle.claim()))


@pytest.mark.parametrize("size", [1, 32, 64])
@trio_test_real
async def test_gift_ids_of_1_to_64_bytes(size: int) -> None:
    async with world() as found:
        triangle = await Triangle.make(found)
        await triangle.deposit(bytes(size))
        await triangle.gets_the_gift(await triangle.withdraw(triangle.claim(gift_id=bytes(size))))


@pytest.mark.parametrize("size", [0, 65])
@trio_test_real
async def test_gift_ids_of_other_sizes(size: int, caplog: pytest.LogCaptureFixture) -> None:
    """A deposit is refused and logged; a certificate is malformed."""
    async with world() as found:
        triangle = await Triangle.make(found)
        with caplog.at_level(logging.WARNING, "ocapn.captp"):
            await triangle.deposit(bytes(size))
        assert "1 to 64 bytes" in caplog.text
        assert all(session.stats()["gifts_waiting"] == 0 for session in found.peer.sessions)
        await triangle.withdraw(triangle.claim(gift_id=bytes(size)))
        assert "gift id" in await triangle.receiver.aborted()
        await triangle.gifter.nothing_else()


@trio_test_real
async def test_an_id_whose_gift_was_withdrawn_may_be_deposited_again() -> None:
    async with world() as found:
        triangle = await Triangle.make(found)
        for count in range(3):
            await triangle.deposit()
            await triangle.gets_the_gift(await triangle.withdraw(triangle.claim(count)))


@trio_test_real
async def test_an_id_in_use_is_refused_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with world() as found:
        triangle = await Triangle.make(found)
        await triangle.deposit()
        with caplog.at_level(logging.WARNING, "ocapn.captp"):
            await triangle.deposit(gift=await triangle.gifter.fetch(GREETER))
        assert "in use" in caplog.text
        await triangle.gets_the_gift(await triangle.withdraw(triangle.claim()))


@trio_test_real
async def test_gift_ids_are_of_their_gifter() -> None:
    async with world() as found:
        triangle = await Triangle.make(found)
        other = await found.session("other gifter")
        await other.tell(BOOTSTRAP, DEPOSIT, GIFT, await other.fetch(GREETER))
        await other.nothing_else()
        await triangle.deposit()
        await triangle.gets_the_gift(await triangle.withdraw(triangle.claim()))
        give = other.give(bytes(triangle.key.verify_key), other, GIFT)
        claim = triangle.receiver.claim(triangle.key, give, 1)
        assert own(await triangle.receiver.fulfilled(await triangle.withdraw(claim)))


NOT_OWN: dict[str, Any] = {
    "an object of the gifter": obj(70),
    "a promise of the gifter": promise(70),
    "data": [1],
    "nothing": VOID,
}


@pytest.mark.parametrize("name", NOT_OWN)
@trio_test_real
async def test_a_deposit_of_what_the_exporter_does_not_own(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is refused and logged, not kept; a claim waits for the right deposit."""
    async with world() as found:
        triangle = await Triangle.make(found)
        with caplog.at_level(logging.WARNING, "ocapn.captp"):
            await triangle.deposit(gift=NOT_OWN[name])
        assert "that this peer exported" in caplog.text
        assert all(session.stats()["gifts_waiting"] == 0 for session in found.peer.sessions)
        waiting = await triangle.withdraw(triangle.claim())
        await triangle.deposit(gift=NOT_OWN[name])
        await triangle.receiver.nothing_else()
        await triangle.deposit()
        await triangle.gets_the_gift(waiting)


@trio_test_real
async def test_a_deposit_of_a_promise_or_of_a_third_party_s_object(caplog: pytest.LogCaptureFixture) -> None:
    """A promise of the exporter is no object yet; what another peer exports is handed off by that peer."""
    async with world() as found:
        triangle = await Triangle.make(found)
        gifter = triangle.gifter
        vow, _ = await pair_of(gifter)
        third = await found.place("third")
        session = await third.session(found.uri)
        give = Rec(
            "desc:handoff-give", public_key(gifter.peer_key), third.location, b"session", b"side", b"id"
        )
        with caplog.at_level(logging.WARNING, "ocapn.captp"):
            await triangle.deposit(gift=vow)
            await triangle.deposit(gift=envelope(gifter.key, give))
        assert [record.getMessage().count("that this peer exported") for record in caplog.records] == [1, 1]
        assert (await session.message_to(BOOTSTRAP)).args[0] == WITHDRAW
        waiting = await triangle.withdraw(triangle.claim())
        await triangle.receiver.nothing_else()
        await triangle.deposit()
        await triangle.gets_the_gift(waiting)


@pytest.mark.parametrize(
    "args",
    [
        [DEPOSIT],
        [DEPOSIT, GIFT],
        [DEPOSIT, "text", export(0)],
        [DEPOSIT, GIFT, export(0), 1],
        [WITHDRAW],
        [WITHDRAW, 1],
        [WITHDRAW, b"my-gift"],
        ["withdraw-gift", 1],
        [Sym("fetch")],
        [Sym("fetch"), "text"],
        [Sym("fetch"), b""],
        [Sym("enliven"), b"x"],
        [],
    ],
    ids=repr,
)
@trio_test_real
async def test_what_the_bootstrap_object_does_not_understand(args: list[Any]) -> None:
    async with world() as found:
        client = await found.session()
        assert (await client.broken(await client.ask(BOOTSTRAP, *args))).label == "desc:error"
        assert await client.fetch(ECHO)


@trio_test_real
async def test_a_give_for_the_bootstrap_object_to_withdraw() -> None:
    """A handoff-give is no claim; and what stands in its place is withdrawn for the peer, not for the sender."""
    async with world() as found:
        triangle = await Triangle.make(found)
        await triangle.deposit()
        error = await triangle.receiver.broken(await triangle.withdraw(triangle.give()))
        assert "handoff-receive" in error.fields[0]
        await triangle.gets_the_gift(await triangle.withdraw(triangle.claim()))


@pytest.mark.parametrize("how", ["op:abort", "close"])
@trio_test_real
async def test_the_gifter_s_session_ends_while_a_withdrawal_waits(how: str) -> None:
    async with world() as found:
        triangle = await Triangle.make(found)
        receiver = triangle.receiver
        position = receiver.answer_position()
        resolver = receiver.position()
        await receiver.send(
            Rec("op:deliver", BOOTSTRAP, [WITHDRAW, triangle.claim()], position, obj(resolver))
        )
        pipelined = await receiver.ask(answer(position), "never")
        await receiver.nothing_else()
        if how == "close":
            await triangle.gifter.close()
        else:
            await triangle.gifter.end()
        assert "can no longer come" in (await receiver.broken(export(resolver))).fields[0]
        assert "can no longer come" in (await receiver.broken(pipelined)).fields[0]
        late = await triangle.withdraw(triangle.claim(1))
        assert "can no longer come" in (await receiver.broken(late)).fields[0]


@trio_test_real
async def test_the_gifter_s_session_ends_while_a_gift_waits() -> None:
    """The gift stays for its life; its checks are made with the keys of the session that was."""
    async with world() as found:
        triangle = await Triangle.make(found)
        await triangle.deposit()
        await triangle.gifter.end()
        wrong = triangle.receiver.claim(triangle.key, triangle.give(key=make_key()))
        error = await triangle.receiver.broken(await triangle.withdraw(wrong))
        assert "not signed by the gifter" in error.fields[0]
        await triangle.gets_the_gift(await triangle.withdraw(triangle.claim()))


@trio_test_real
async def test_a_new_session_of_the_gifter_is_another_session() -> None:
    """Its gifts are its own, those of the old one are the old one's."""
    async with world() as found:
        triangle = await Triangle.make(found)
        await triangle.deposit()
        old = triangle.gifter
        await old.end()
        triangle.gifter = await old.place.session(found.uri)
        triangle.gift = await triangle.gifter.fetch(GREETER)
        await triangle.deposit()
        give = old.give(bytes(triangle.key.verify_key), old, GIFT)
        await triangle.gets_the_gift(await triangle.withdraw(triangle.receiver.claim(triangle.key, give)))
        assert own(await triangle.receiver.fulfilled(await triangle.withdraw(triangle.claim(1))))


@trio_test_real
async def test_the_receiver_s_session_ends_while_its_withdrawal_waits() -> None:
    """The gift that comes then is there for the receiver's next session."""
    async with world() as found:
        triangle = await Triangle.make(found)
        await triangle.withdraw(triangle.claim())
        await triangle.receiver.nothing_else()
        await triangle.receiver.end()
        await triangle.deposit()
        triangle.receiver = await triangle.receiver.place.session(found.uri)
        await triangle.gets_the_gift(await triangle.withdraw(triangle.claim()))


@trio_test_real
async def test_gifts_and_withdrawals_have_a_limit(caplog: pytest.LogCaptureFixture) -> None:
    async with world(limits=ocapn.Limits(gifts=2)) as found:
        triangle = await Triangle.make(found)
        with caplog.at_level(logging.WARNING, "ocapn.captp"):
            for gift_id in (b"1", b"2", b"3"):
                await triangle.deposit(gift_id)
        assert "2 gifts wait already" in caplog.text
        waiting = [await triangle.withdraw(triangle.claim(n, bytes([65 + n]))) for n in range(3)]
        assert "2 withdrawals wait already" in (await triangle.receiver.broken(waiting[2])).fields[0]
        await triangle.gets_the_gift(await triangle.withdraw(triangle.claim(10, b"1")))
        await triangle.deposit(b"B")
        await triangle.gets_the_gift(waiting[1])


# Receiver and exporter on one peer


@pytest.mark.parametrize("deposited", [True, False], ids=["deposit first", "give first"])
@trio_test_real
async def test_the_peer_is_receiver_and_exporter(deposited: bool) -> None:
    """The give stands for the peer's own object, which comes back as that."""
    async with world() as found:
        triangle = await Triangle.make(found)
        gifter = triangle.gifter
        give = gifter.give(gifter.peer_key, gifter, GIFT)
        if deposited:
            await triangle.deposit()
        asked = await gifter.ask(triangle.gift, "first", give)
        if not deposited:
            await gifter.tell(BOOTSTRAP, DEPOSIT, GIFT, triangle.gift)
        first, came = await gifter.fulfilled(asked)
        assert first == "first"
        if came.label == "desc:import-promise":
            verb, came = await gifter.settled(await gifter.listen(own(came)))
            assert verb == "fulfill"
        assert own(came) == triangle.gift


WRONG_GIVES: dict[str, dict[str, Any]] = {
    "for another receiver": {},
    "gifter's side": {"side": bytes(32)},
    "gifter's session": {"session": bytes(32)},
    "signature": {"key": make_key()},
}


@pytest.mark.parametrize("name", WRONG_GIVES)
@trio_test_real
async def test_the_peer_is_receiver_and_exporter_and_the_give_is_wrong(name: str) -> None:
    async with world() as found:
        triangle = await Triangle.make(found)
        gifter = triangle.gifter
        await triangle.deposit()
        receiver_key = gifter.peer_key if WRONG_GIVES[name] else bytes(32)
        give = gifter.give(receiver_key, gifter, GIFT, **WRONG_GIVES[name])
        (came,) = await gifter.call(triangle.gift, give)
        verb, error = await gifter.settled(await gifter.listen(own(came)))
        assert verb == "break"
        assert error.label == "desc:error"
        await triangle.gets_the_gift(await triangle.withdraw(triangle.claim()))
