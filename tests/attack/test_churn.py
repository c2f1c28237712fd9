"""Sessions that begin and end in a loop: what is bounded for one session is bounded for all that have been."""

from __future__ import annotations

import gc
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import pytest
import trio

import ocapn
from ocapn import E, Limits, MemoryNetlayer, MemoryNetwork
from ocapn.captp.session import Session as CoreSession
from tests.conformance.client import Client
from tests.conformance.encoding import BOOTSTRAP, Rec, Sym, answer, export, obj, own
from tests.support import trio_test, trio_test_real

from .support import PATIENCE, VICTIM, Scene, Victim, aborted, call, frame, scene

FEW: Final = 20


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(PATIENCE):
        while not condition():
            await trio.lowlevel.checkpoint()


async def only_the_friend(here: Scene) -> None:
    """Waits until all other sessions are over, and their connections closed."""
    await until(lambda: len(here.peer._connections) == 1)


async def _abort(client: Client) -> None:
    await client.end()


async def _half_close(client: Client) -> None:
    await client.send_eof()
    await client.ends()


async def _close(client: Client) -> None:
    await client.close()


async def _break_the_protocol(client: Client) -> None:
    await client.send_bytes(b"x")
    await client.ends()


ENDS: Final[list[Callable[[Client], Awaitable[None]]]] = [_abort, _half_close, _close, _break_the_protocol]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
@trio_test_real
async def test_nothing_is_left_of_a_session(end: Callable[[Client], Awaitable[None]]) -> None:
    async with scene() as here:
        for number in range(30):
            client = await here.attacker("the same attacker")
            await client.send(call("keep", obj(5)), call("drop", obj(6)), call("promise", position=9))
            await client.send(Rec("op:listen", answer(9), obj(7), False), call("hang", position=11))
            await client.call(VICTIM, Sym("fresh"))
            await here.friend.served()
            await end(client)
            await only_the_friend(here)
            here.victim.things.clear()
            here.victim.promises.clear()
            assert here.victim.running == number + 1
        assert len(here.peer._node.sessions) == len(here.peer._node._by_id) == 1
        assert here.peer._acceptor.unauthenticated == {}
        # What keeps them is the method that runs on: once it is gone, so are they.
        for _, public in here.peer._methods._outliving:
            for method in public.methods:
                method.cancel()
        del _, public, method
        await until(lambda: here.victim.running == 0)
        here.peer._methods._outliving.clear()
        # Garbage is told of a moment later, and tasks end.
        await until(lambda: gc.collect() >= 0 and len(core_sessions(here)) == 1)


def core_sessions(here: Scene) -> list[CoreSession]:
    """Those of the peer there is a trace of."""
    return [one for one in gc.get_objects() if type(one) is CoreSession and one.node is here.peer._node]


@trio_test_real
async def test_sessions_that_are_remembered_for_handoffs() -> None:
    """Only so many; the oldest go first."""
    async with scene(Limits(past_sessions=FEW)) as here:
        ids = []
        for _ in range(3 * FEW):
            client = await here.attacker()
            ids.append(client.session_id)
            await client.end()
        await only_the_friend(here)
        assert list(here.peer._node._past) == ids[-FEW:]


@trio_test
async def test_sessions_are_forgotten_after_the_life_of_a_gift() -> None:
    network = MemoryNetwork()
    async with ocapn.open_peer([MemoryNetlayer(network, "victim")]) as peer:
        sturdyref = peer.export(Victim())
        async with ocapn.open_peer([MemoryNetlayer(network, "other")]) as other:
            await E(await other.enliven(sturdyref)).me()
        assert len(peer._node._past) == 1
        await trio.sleep(peer.limits.gift_life + 30)
        assert peer._node._past == {}


@trio_test_real
async def test_gifts_outlive_their_sessions_in_bounded_number() -> None:
    limits = Limits(gifts=FEW)
    async with scene(limits) as here:
        gifts = here.peer._node.gifts
        for _ in range(40):
            client = await here.attacker()
            gift = own(await client.call(VICTIM, Sym("me")))
            for number in range(FEW):
                await client.tell(BOOTSTRAP, Sym("deposit-gift"), b"gift %d" % number, gift)
            await client.nothing_else()
            await client.end()
            assert len(gifts._deposits) <= 11 * FEW
            here.peer.check()
        await only_the_friend(here)
        assert 5 * FEW <= len(gifts._deposits) <= 10 * FEW
        # The last are there, and can be withdrawn.
        gifter, receiver = client, await here.attacker()
        give = gifter.give(receiver.public_key, receiver, b"gift 7")
        found = await receiver.call(BOOTSTRAP, Sym("withdraw-gift"), receiver.claim(receiver.key, give))
        assert own(found) == own(await receiver.call(VICTIM, Sym("me")))
        await receiver.end()


@trio_test_real
async def test_withdrawals_end_with_their_session() -> None:
    async with scene() as here:
        gifter = await here.attacker()
        for _ in range(20):
            client = await here.attacker()
            for number in range(10):
                give = gifter.give(client.public_key, client, b"gift %d" % number)
                claim = client.claim(client.key, give, number)
                await client.send(
                    Rec("op:deliver", BOOTSTRAP, [Sym("withdraw-gift"), claim], number + 5, False)
                )
            # The session ends before all of them had their turn.
            await client.end()
        await here.friend.served(3)
        assert here.peer._node.gifts._withdrawals == {}
        await gifter.end()


@pytest.mark.parametrize("known", [True, False], ids=["one by one", "all at once"])
@trio_test_real
async def test_listeners_on_a_promise_that_stays(known: bool) -> None:
    """Those of sessions that have ended are let go, as more come: to the promise, or to an answer that becomes it."""
    async with scene() as here:
        promise, resolver = here.make_promise()
        here.victim.things.append(promise)
        for _ in range(40):
            client = await here.attacker()
            listens = [Rec("op:listen", answer(2), obj(number), False) for number in range(50)]
            if known:
                await client.send(call("kept", position=2))
                await client.nothing_else()
                await client.send_unframed(frame(*listens))
            else:
                await client.send_unframed(frame(call("kept", position=2), *listens))
            await client.nothing_else()
            await client.end()
        await only_the_friend(here)
        waiting = promise._vow.waiting
        assert waiting is not None
        assert len(waiting.items) <= 256  # of 2,000
        resolver.fulfill(1)
        await here.friend.served()


@pytest.mark.parametrize("kind", ["messages", "calls", "parts", "bytes"])
@trio_test_real
async def test_messages_on_a_promise_that_stays(kind: str) -> None:
    """Those of ended sessions wait on, as many as one session may have; of more the oldest are dropped."""
    limits = Limits(queued_messages=10 * FEW, kept_bytes=1 << 20)
    async with scene(limits) as here:
        promise, resolver = here.make_promise()
        here.victim.things.append(promise)
        payload = bytes(20_000 if kind == "bytes" else 1)
        for session in range(40):
            client = await here.attacker()
            await client.send(call("kept", position=2))
            operations = []
            for number in range(FEW):
                position = 100 + number if kind in ("calls", "parts") else False
                if kind == "parts":
                    operations.append(Rec("op:get", answer(2), "field", position))
                else:
                    args = ("note", "attacker", FEW * session + number, payload)
                    operations.append(call(*args, to=answer(2), position=position))
            await client.send_unframed(frame(*operations))
            await client.nothing_else()
            await client.end()
        await only_the_friend(here)
        node = here.peer._node
        held = [item for session in node._left for item in session.held]
        most = 50 if kind == "bytes" else 10 * FEW
        assert most - 2 * FEW < len(held) <= most
        waiting = promise._vow.waiting
        assert waiting is not None
        assert len(waiting.items) <= 64 + 4 * most
        if kind == "parts":
            resolver.fulfill({"field": 1})
            return
        resolver.fulfill(Notes(here.victim))
        await here.friend.served()
        heard = here.victim.heard["attacker"]
        assert heard == list(range(40 * FEW - len(held), 40 * FEW))  # the last ones, all, in order


class Notes(ocapn.Target):
    """Passes notes on, whatever comes with them."""

    def __init__(self, victim: Victim) -> None:
        self._victim = victim

    @ocapn.method
    def note(self, who: str, number: int, payload: bytes) -> None:
        self._victim.note(who, number)


@trio_test_real
async def test_methods_that_outlive_their_sessions() -> None:
    """They run on, as many as one session may have; of more those are cancelled whose session ended first."""
    async with scene(Limits(running_methods=FEW)) as here:
        for _ in range(30):
            client = await here.attacker()
            before = here.victim.running
            await client.send_unframed(frame(*[call("hang") for _ in range(FEW // 2)]))
            await until(lambda: here.victim.running == before + FEW // 2)  # noqa: B023
            await client.end()
            await only_the_friend(here)
            await until(lambda: here.victim.running <= FEW)
        assert here.victim.running == FEW
        client = await here.attacker()
        assert await client.call(VICTIM, Sym("echo"), 1) == [1]
        await client.send_unframed(frame(*[call("hang") for _ in range(FEW)]))
        await until(lambda: here.victim.running == 2 * FEW)
        await here.friend.served()
        await client.end()
        await until(lambda: here.victim.running == FEW)


@trio_test_real
async def test_methods_begun_after_their_session_has_ended() -> None:
    """Messages that waited on a promise, and are delivered late."""
    async with scene(Limits(running_methods=FEW)) as here:
        promise, resolver = here.make_promise()
        here.victim.things.append(promise)
        for _ in range(5):
            client = await here.attacker()
            await client.send(call("kept", position=2))
            await client.send_unframed(frame(*[call("hang", to=answer(2)) for _ in range(10)]))
            await client.nothing_else()
            await client.end()
        await only_the_friend(here)
        resolver.fulfill(here.victim)
        await until(lambda: here.victim.running == FEW)
        await here.friend.served(3)
        assert here.victim.running == FEW


@trio_test_real
async def test_failures_are_not_logged_without_end(caplog: pytest.LogCaptureFixture) -> None:
    """A peer that sends messages that fail does not fill the disk; and of other sessions everything is logged."""
    async with scene() as here:
        client, other = await here.attacker(), await here.attacker()
        with caplog.at_level(logging.WARNING):
            for _ in range(10):
                await client.send_unframed(frame(*[call("no such method") for _ in range(100)]))
            await client.nothing_else()
            assert 100 <= caplog.text.count("no method is called 'no such method'") <= 200
            caplog.clear()
            await other.tell(VICTIM, Sym("another method"))
            await other.nothing_else()
            assert caplog.text.count("no method is called 'another method'") == 1
        await client.end()
        await other.end()


@trio_test_real
async def test_a_reason_that_is_too_long_to_send() -> None:
    async with scene() as here:
        client = await here.attacker()
        here.session(client).end("x" * 1_000_000)
        assert await aborted(client, "x") == "x" * 500


@pytest.mark.parametrize(
    "reason",
    ["x" * 500_000, "one line\n2026-01-01 CRITICAL another", "\x1b[2J", "\u202e", "é" * 1_000],
    ids=["long", "newline", "escape", "right to left", "accents"],
)
@trio_test_real
async def test_what_is_logged_of_a_reason(reason: str, caplog: pytest.LogCaptureFixture) -> None:
    """One line, and a short one, whatever the other side writes."""
    async with scene() as here:
        with caplog.at_level(logging.DEBUG):
            client = await here.attacker()
            await client.send(Rec("op:abort", reason))
            await client.ends()
            client = await here.attacker()
            await client.send(call("drop", to=export(0)), Rec("op:deliver", VICTIM, [reason], False, False))
            location = Rec("ocapn-peer", Sym("a transport: " + reason), "designator", False)
            await client.send(call("drop", location))
            await client.ends()
        for record in caplog.records:
            line = record.getMessage()
            assert len(line) < 700
            assert line.isprintable(), line
