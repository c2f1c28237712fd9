"""A session that wants more than its limits allow (durable.md, Limits)."""

from __future__ import annotations

import gc
import logging
import time
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from typing import Final

import pytest
import trio

import ocapn
from ocapn import Limits
from ocapn.captp.delivery import Vow
from ocapn.captp.session import Session as CoreSession
from ocapn.codec import syrup
from ocapn.model import values
from tests.conformance.client import Client
from tests.conformance.encoding import (
    BOOTSTRAP,
    Raw,
    Rec,
    Sym,
    answer,
    encode,
    export,
    obj,
    own,
    promise,
)
from tests.peer.support import waiting_on
from tests.support import trio_test_real

from .support import PATIENCE, VICTIM, Scene, aborted, call, frame, scene

FEW: Final = 50


def core(here: Scene, client: Client) -> CoreSession:
    return here.session(client)._core


async def until(condition: Callable[[], object]) -> None:
    """Waits until it holds."""
    with trio.fail_after(PATIENCE):
        while not condition():
            await trio.lowlevel.checkpoint()


# Slots


@trio_test_real
async def test_a_peer_that_never_returns_what_it_got() -> None:
    """Once the table is full, answers that would need a place break; the session goes on."""
    async with scene(Limits(slots=FEW)) as here:
        client = await here.attacker()
        got = 0
        while (found := await client.outcome(await client.ask(VICTIM, Sym("fresh"))))[0] == "fulfill":
            got += 1
        assert "the session holds 50 references, its limit" in found[1].fields[0]
        assert got == FEW - 1  # and the resolver of the last question
        await client.give_back(*[export(position) for position in list(client.imported)])
        assert (await client.outcome(await client.ask(VICTIM, Sym("fresh"))))[0] == "fulfill"
        await client.end()


@pytest.mark.parametrize("kind", [obj, promise], ids=["objects", "promises"])
@trio_test_real
async def test_imports_without_end(kind: Callable[[int], Rec]) -> None:
    async with scene(Limits(slots=FEW)) as here:
        client = await here.attacker()
        kept = [call("keep", kind(position)) for position in range(1, 200)]
        await client.send_unframed(frame(*kept))
        await aborted(client, "more than 50 references in one session")
        assert len(here.victim.things) <= FEW


@trio_test_real
async def test_imports_without_end_in_one_message() -> None:
    async with scene(Limits(slots=FEW)) as here:
        client = await here.attacker()
        await client.send_unframed(frame(call("keep", *[obj(position) for position in range(1, 200)])))
        await aborted(client, "more than 50 references in one session")
        assert here.victim.things == []


@trio_test_real
async def test_imports_that_nobody_keeps_are_not_counted_for_long() -> None:
    """However many come: what is dropped is given back, and counts no more."""
    async with scene(Limits(slots=FEW)) as here:
        client = await here.attacker()
        for position in range(0, 40 * FEW, 10):
            await client.call(VICTIM, Sym("drop"), *[obj(position + i) for i in range(10)])
            await until(lambda: here.session(client).stats()["imports"] == 0)
        await client.end()


@pytest.mark.parametrize("resolvers", ["one", "many"])
@pytest.mark.parametrize("to", ["a promise", "an answer", "a call that hangs"])
@trio_test_real
async def test_listening_without_end(to: str, resolvers: str) -> None:
    """Each listener is a reference to be told, though it may be the same each time."""
    slots = 5_000
    async with scene(Limits(slots=slots, answers=2 * slots, running_methods=2 * slots)) as here:
        client = await here.attacker()
        there, _ = await client.call(VICTIM, Sym("pair"))
        target = own(there) if to == "a promise" else answer(2)
        await client.send(call("promise", position=2))
        operations = []
        for number in range(slots + 1):
            resolver = obj(1_000 + (0 if resolvers == "one" else number))
            if to == "a call that hangs":
                operations.append(call("promise", resolver=resolver))
            else:
                operations.append(Rec("op:listen", target, resolver, False))
        await client.send_unframed(frame(*operations))
        await aborted(client, f"more than {slots} references in one session")
        gc.collect()
        assert all(waiting_on(promise) <= slots for promise, _ in here.victim.promises)


@trio_test_real
async def test_listening_a_million_times_on_one_promise() -> None:
    """With the limits as they are."""
    async with scene() as here:
        client = await here.attacker()
        there, _ = await client.call(VICTIM, Sym("pair"))
        some = frame(*[Rec("op:listen", own(there), obj(1_000), False)] * 1_000)

        async def send() -> None:
            try:
                for _ in range(1_000):
                    await client.send_unframed(some)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the peer has closed it

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await aborted(client, "more than 100000 references in one session")


# Answers


@trio_test_real
async def test_asking_for_answers_without_end() -> None:
    async with scene(Limits(answers=FEW)) as here:
        client = await here.attacker()
        asked = [call("note", "attacker", number, position=100 + number) for number in range(100)]
        await client.send_unframed(frame(*asked))
        await aborted(client, "more than 50 answers held in one session")
        assert here.victim.heard["attacker"] == list(range(FEW - 1))  # the victim is the first answer


@trio_test_real
async def test_answers_of_parts_without_end() -> None:
    async with scene(Limits(answers=FEW)) as here:
        client = await here.attacker()
        parts = [Rec("op:get", answer(99 + number), "x", 100 + number) for number in range(100)]
        await client.send_unframed(frame(call("promise", position=99), *parts))
        await aborted(client, "more than 50 answers held in one session")


@trio_test_real
async def test_the_bytes_behind_answers() -> None:
    """What the arguments of large messages take is bounded though the answers are few: over it, calls break."""
    async with scene(Limits(kept_bytes=1 << 20)) as here:
        client = await here.attacker()
        large = bytes(100_000)
        outcomes = []
        for position in range(100, 120):
            outcomes.append(
                await client.outcome(await client.ask(VICTIM, Sym("echo"), large, answer=position))
            )
        verbs = [verb for verb, _ in outcomes]
        assert verbs == ["fulfill"] * 10 + ["break"] * 10
        assert "too many bytes are kept for answers that are not released" in outcomes[-1][1].fields[0]
        assert core(here, client).kept_bytes > 1_000_000
        await client.release(*range(100, 120))
        assert await client.call(VICTIM, Sym("echo"), large) == [large]
        assert core(here, client).kept_bytes == 0
        await client.end()


# What waits on promises


def _to_promise(number: int, kind: str, to: Rec) -> list[Rec]:
    """A message, or a selection, to a promise."""
    position = 1_000 + number
    match kind:
        case "messages":
            return [call("note", "attacker", number, to=to)]
        case "calls":
            return [call("note", "attacker", number, to=to, position=position)]
        case "calls released":
            released = Rec("op:gc-answers", [position])
            return [call("note", "attacker", number, to=to, position=position), released]
        case "parts released":
            return [Rec("op:get", to, "field", position), Rec("op:gc-answers", [position])]
        case "parts":
            return [Rec("op:index", to, number, position)]
    raise AssertionError(kind)


KINDS: Final = ["messages", "calls", "calls released", "parts", "parts released"]


@pytest.mark.parametrize("kind", KINDS)
@trio_test_real
async def test_messages_to_a_promise_that_is_never_resolved(kind: str) -> None:
    async with scene(Limits(queued_messages=FEW)) as here:
        client = await here.attacker()
        await client.send(call("promise", position=2))
        operations = [one for number in range(200) for one in _to_promise(number, kind, answer(2))]
        await client.send_unframed(frame(*operations))
        await aborted(client, "too many messages to promises that are not resolved")


@pytest.mark.parametrize("kind", KINDS)
@trio_test_real
async def test_messages_to_many_promises_that_are_never_resolved(kind: str) -> None:
    """They count for the session, not for the promise."""
    async with scene(Limits(queued_messages=FEW)) as here:
        client = await here.attacker()
        operations: list[Rec] = []
        for number in range(200):
            operations.append(call("promise", position=number + 5_000))
            operations += _to_promise(number, kind, answer(number + 5_000))
        await client.send_unframed(frame(*operations))
        await aborted(client, "too many messages to promises that are not resolved")


@trio_test_real
async def test_the_bytes_of_messages_to_promises() -> None:
    async with scene(Limits(kept_bytes=1 << 20)) as here:
        client = await here.attacker()
        await client.send(call("promise", position=2))
        large = [call("drop", bytes(100_000), to=answer(2)) for _ in range(11)]
        await client.send_unframed(frame(call("note", "attacker", 1), *large))
        await aborted(client, "too many messages to promises that are not resolved")
        assert here.victim.heard["attacker"] == [1]


@pytest.mark.parametrize("kind", KINDS)
@trio_test_real
async def test_messages_to_a_promise_count_no_more_once_it_is_resolved(kind: str) -> None:
    async with scene(Limits(queued_messages=FEW)) as here:
        client = await here.attacker()
        for number in range(0, 20 * FEW, FEW):
            there, resolver = await client.call(VICTIM, Sym("pair"))
            to, resolver = own(there), own(resolver)
            operations = [
                one for i in range(FEW) for one in _to_promise(number + i, kind.removesuffix(" released"), to)
            ]
            await client.send_unframed(frame(*operations))
            await client.send(Rec("op:deliver", resolver, [Sym("fulfill"), VICTIM], False, False))
            await client.nothing_else()
            stats = here.session(client).stats()
            assert stats["messages_on_promises"] == 0
            released = [1_000 + number + i for i in range(FEW)] if kind not in ("messages",) else []
            await client.release(*released)
        await client.end()


@trio_test_real
async def test_messages_behind_a_promise_that_was_asked_for_twice() -> None:
    """A second attacker has them wait here: it was sent messages, says that it is somebody else's, and is asked once
    more to keep the order. It does not answer."""
    async with scene(Limits(queued_messages=FEW)) as here:
        other = await here.attacker()
        await other.send(call("keep", promise(70)))
        await here.victim.until_heard("friend", 2)
        client = await here.attacker()
        await client.send(
            call("kept", position=2), call("note", "attacker", 1, to=answer(2), resolver=obj(900))
        )
        message = await other.message_to(export(70))
        assert message.args == [Sym("note"), "attacker", 1]
        while (operation := await other.next()).label != "op:listen":
            pass
        resolver = own(operation.fields[1])
        await other.send(Rec("op:deliver", resolver, [Sym("fulfill"), VICTIM], False, False))
        while (operation := await other.next()).label != "op:listen":
            pass  # it asks again
        many = [call("note", "attacker", number, to=answer(2)) for number in range(200)]
        await client.send_unframed(frame(*many))
        await aborted(client, "too many messages to promises that are not resolved")
        assert "attacker" not in here.victim.heard
        await other.end()


# Running methods


@trio_test_real
async def test_methods_that_never_end() -> None:
    async with scene(Limits(running_methods=FEW)) as here:
        client = await here.attacker()
        await client.send_unframed(frame(*[call("hang") for _ in range(FEW)]))
        await until(lambda: here.victim.running == FEW)
        for _ in range(5):
            error = await client.broken(await client.ask(VICTIM, Sym("hang")))
            assert error.fields[0] == "50 methods run for this session already"
        assert await client.call(VICTIM, Sym("echo"), 1) == [1]  # what is no task goes on
        assert here.victim.running == FEW
        await client.end()


@trio_test_real
async def test_the_bytes_of_running_methods() -> None:
    async with scene(Limits(kept_bytes=1 << 20)) as here:
        client = await here.attacker()
        large = bytes(100_000)
        await client.send_unframed(frame(*[call("hang", large) for _ in range(10)]))
        await until(lambda: here.victim.running == 10)
        error = await client.broken(await client.ask(VICTIM, Sym("hang"), large))
        assert error.fields[0] == "too many bytes are kept for methods that run for this session"
        assert core(here, client).kept_bytes > 1_000_000
        await client.end()


# Handoffs


@trio_test_real
async def test_deposits_without_end(caplog: pytest.LogCaptureFixture) -> None:
    async with scene(Limits(gifts=FEW)) as here:
        client = await here.attacker()
        gift = own(await client.call(VICTIM, Sym("me")))
        with caplog.at_level(logging.WARNING):
            for number in range(200):
                await client.tell(BOOTSTRAP, Sym("deposit-gift"), b"gift %d" % number, gift)
            await client.nothing_else()
        assert here.session(client).stats()["gifts_waiting"] == FEW
        assert (
            caplog.text.count("50 gifts wait already, the limit of a session") == 100
        )  # it is not logged for ever
        assert caplog.text.count("no more of them are logged") == 1
        await client.end()


@trio_test_real
async def test_withdrawals_of_gifts_that_never_come() -> None:
    async with scene(Limits(gifts=FEW)) as here:
        gifter, client = await here.attacker(), await here.attacker()
        for number in range(FEW + 20):
            give = gifter.give(client.public_key, client, b"gift %d" % number)
            claim = client.claim(client.key, give, number)
            await client.send(
                Rec("op:deliver", BOOTSTRAP, [Sym("withdraw-gift"), claim], 100 + number, False)
            )
        error = await client.broken(await client.listen(answer(100 + FEW), False))
        assert error.fields[0] == "50 withdrawals wait already, the limit of a session"
        assert here.session(client).stats()["withdrawals_waiting"] == FEW
        await gifter.end()
        error = await client.broken(await client.listen(answer(100), False))
        assert error.fields[0] == "the gift can no longer come: its session has ended"
        assert here.session(client).stats()["withdrawals_waiting"] == 0
        await client.end()


@trio_test_real
async def test_gives_that_name_exporters_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has us dial whom the attacker names: only so many at once."""
    monkeypatch.setattr("ocapn.dialling._CROSSING", 0.01)  # how long a dial that failed waits for another
    async with scene(Limits(gifts=5)) as here:
        client = await here.attacker()
        listener = await here.place("an exporter")
        accepted: list[trio.SocketStream] = []

        async def accept() -> None:
            while True:
                accepted.append(await listener.listener.accept())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            for number in range(20):
                port = str(listener.location.fields[2]["port"])
                hints = {"host": "127.0.0.1", "port": port}
                location = Rec("ocapn-peer", Sym("tcp-testing-only"), f"exporter {number}", hints)
                give = client.give(client.peer_key, client, b"gift", location=location)
                await client.send(call("drop", give, position=100 + number))
            await client.send(
                call("echo", client.give(client.peer_key, client, b"g", location=location), position=99)
            )
            part = Rec("op:index", answer(99), 0, 98)
            await client.send(part)
            error = await client.broken(await client.listen(answer(98), False))
            assert error.fields[0] == "5 gifts wait for connections to their exporters already"
            await until(lambda: len(accepted) == 5)
            assert len(here.peer._node.dials) == 5
            nursery.cancel_scope.cancel()
        for stream in accepted:
            await trio.aclose_forcefully(stream)
        await until(lambda: not core(here, client).withdrawing)
        await client.end()


def test_handoff_counts_take_bounded_memory() -> None:
    """All that come in order are taken, each once; of those far behind the highest none is."""
    from tests.captp.sides import pair

    _, _, link = pair()
    session = link.b
    for count in range(100_000):
        assert session.handoffs.use(count)
        if not count % 997:
            assert not session.handoffs.use(count)
            assert len(session.handoffs.used) <= 2_000
    assert not session.handoffs.use(0)
    assert not session.handoffs.use(99_999)
    assert session.handoffs.use(2**63 - 1)
    assert session.handoffs.use(100_000)
    for count in range(2**62, 2**62 + 5_000):
        session.handoffs.use(count)
    assert len(session.handoffs.used) <= 2_000


@trio_test_real
async def test_handoff_counts_out_of_order_and_used_twice() -> None:
    async with scene() as here:
        gifter, client = await here.attacker(), await here.attacker()
        gift = own(await gifter.call(VICTIM, Sym("me")))
        for number, count in enumerate([5, 0, 3, 2**63 - 1, 5, 3]):
            gift_id = b"gift %d" % number
            await gifter.tell(BOOTSTRAP, Sym("deposit-gift"), gift_id, gift)
            give = gifter.give(client.public_key, client, gift_id)
            resolver = await client.ask(
                BOOTSTRAP, Sym("withdraw-gift"), client.claim(client.key, give, count)
            )
            verb, value = await client.outcome(resolver)
            if number < 4:
                assert verb == "fulfill"
            else:
                assert value.fields[0] == "the handoff count was used before in this session"
        await gifter.end()
        await client.end()


# Caches


def _some(kind: str, start: int, count: int) -> bytes:
    """A message with so many of them."""
    if kind == "symbols":
        one = b"5'%05x"
    else:
        one = b"<15'ocapn-sturdyref<10'ocapn-peer1'm1\"df>5:%05x>"
    many = b"".join([one % number for number in range(start, start + count)])
    return encode(call("drop", Raw(many)))


@pytest.mark.parametrize(("kind", "total"), [("symbols", 1 << 18), ("sturdyrefs", 1 << 15)])
@trio_test_real
async def test_tiny_values_without_end(kind: str, total: int) -> None:
    """None is kept for longer than its message, but for as many symbols as the cache has room for."""
    piece = 1 << 12
    async with scene() as here:
        client = await here.attacker()
        await client.send_unframed(frame(_some(kind, 0, piece)))
        await client.nothing_else()
        gc.collect()
        before = len(values._symbols)
        for start in range(piece, total, piece):
            if start == total - piece:
                gc.collect()
                tracemalloc.start()
            await client.send_unframed(frame(_some(kind, start, piece)))
        await client.nothing_else()
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(syrup._symbols) <= 2048
        assert len(values._symbols) <= before + 2048
        assert kept < 600 << 10
        await client.end()


# Chains


@pytest.mark.parametrize("kind", ["parts", "calls"])
@pytest.mark.parametrize("end", ["data", "broken", "a promise of the attacker", "an object of the attacker"])
@trio_test_real
async def test_a_long_chain_of_answers(kind: str, end: str) -> None:
    """Each is asked of the one before, and the first is known last: no step may recurse."""
    length = 4_000 if "attacker" in end else 9_900
    async with scene() as here:
        client = await here.attacker()
        there, resolver = await client.call(VICTIM, Sym("pair"))
        to = own(there)
        operations = []
        for position in range(100, 100 + length):
            if kind == "parts":
                operations.append(Rec("op:get", to, "field", position))
            else:
                operations.append(call("method", to=to, position=position))
            to = answer(position)
        await client.send_unframed(frame(*operations))
        what = {
            "data": [Sym("fulfill"), 7],
            "broken": [Sym("break"), Rec("desc:error", "no")],
            "a promise of the attacker": [Sym("fulfill"), promise(50)],
            "an object of the attacker": [Sym("fulfill"), obj(50)],
        }[end]
        await client.send(Rec("op:deliver", own(resolver), what, False, False))
        if "attacker" in end and not (kind == "parts" and "object" in end):
            asked = 0
            target = export(50)
            while asked < length:  # all of it is asked of the attacker now, in order
                operation = await client.receive()
                if operation.label in ("op:get", "op:deliver"):
                    assert operation.fields[0] == target
                    target = answer(operation.fields[2])
                    asked += 1
        else:
            verb, _ = await client.outcome(await client.listen(answer(99 + length), False))
            assert verb == "break"
        await client.end()


def _chain(here: Scene, length: int, front_to_back: bool) -> tuple[list[ocapn.Promise], list[ocapn.Resolver]]:
    pairs = [here.make_promise() for _ in range(length)]
    promises, resolvers = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    order = range(length - 1) if front_to_back else range(length - 2, -1, -1)
    for i in order:
        resolvers[i].fulfill(promises[i + 1])
    return promises, resolvers


@pytest.mark.parametrize("front_to_back", [True, False], ids=["front to back", "back to front"])
@trio_test_real
async def test_a_chain_of_100000_promises(front_to_back: bool) -> None:
    """Asking each of them is quick, whatever the order, and the chain can be let go at its beginning."""
    length = 100_000
    async with scene() as here:
        promises, resolvers = _chain(here, length, front_to_back)
        began = time.perf_counter()
        ends = {id(one._vow.end()) for one in reversed(promises)}
        assert len(ends) == 1
        assert time.perf_counter() - began < PATIENCE  # it would be hours
        resolvers[-1].fulfill(7)
        assert await promises[0] == 7
        assert await promises[length // 2] == 7
        promises, resolvers = _chain(here, length, front_to_back)
        del promises[1:], resolvers
        gc.collect()
        assert not ocapn.is_settled(promises[0])
        promises.clear()
        gc.collect()
        await here.friend.served()


@pytest.mark.parametrize(("first", "second"), [(2, 200), (200, 2), (0, 5), (5, 0), (70, 70)])
@trio_test_real
async def test_queues_that_become_one(first: int, second: int) -> None:
    """What waited on the promise itself comes first, then what waited on the one that became it."""
    async with scene() as here:
        client = await here.attacker()
        (one, becoming), (other, resolver) = here.make_promise(), here.make_promise()
        here.victim.things.append([one, other])
        await client.send(call("kept", position=2))
        await client.send(Rec("op:index", answer(2), 0, 3), Rec("op:index", answer(2), 1, 4))
        to_one = [call("note", "attacker", first + number, to=answer(3)) for number in range(second)]
        to_other = [call("note", "attacker", number, to=answer(4)) for number in range(first)]
        await client.send(*to_one, *to_other)
        await client.nothing_else()
        becoming.fulfill(other)
        resolver.fulfill(here.victim)
        await here.victim.until_heard("attacker", first + second)
        assert here.victim.heard["attacker"] == list(range(first + second))
        await client.end()


@trio_test_real
async def test_a_queue_that_is_moved_from_promise_to_promise() -> None:
    """Each move takes the time of the shorter queue, and the order stays."""
    async with scene(Limits(queued_messages=20_000)) as here:
        client = await here.attacker()
        pairs = [here.make_promise() for _ in range(2_000)]
        here.victim.things.append(pairs[0][0])
        await client.send(call("kept", position=2))
        await client.send_unframed(
            frame(*[call("note", "attacker", number, to=answer(2)) for number in range(10_000)])
        )
        await until(lambda: here.session(client).stats()["messages_on_promises"] == 10_000)
        waiting = None
        for (_, resolver), (following, _) in pairwise(pairs):
            resolver.fulfill(following)
            vow: Vow = following._vow
            assert vow.waiting is not None
            assert waiting in (None, id(vow.waiting))  # it is the list itself that moves
            waiting = id(vow.waiting)
        pairs[-1][1].fulfill(here.victim)
        await here.victim.until_heard("attacker", 10_000)
        assert here.victim.heard["attacker"] == list(range(10_000))
        await client.end()
