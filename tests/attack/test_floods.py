"""Peers that send all the time, and peers that never read: others are served meanwhile."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
import trio

import ocapn
from ocapn import Backpressure, E, Limits, SessionEnded, is_settled, send_only
from ocapn.connection import _BATCH
from tests.conformance.client import Client
from tests.conformance.encoding import Rec, Sym, answer, encode, obj, own
from tests.support import trio_test_real

from .support import PATIENCE, VICTIM, Scene, Victim, aborted, call, frame, scene


async def until_ended(session: ocapn.Session) -> SessionEnded:
    with trio.fail_after(PATIENCE):
        while session.ended is None:
            await trio.lowlevel.checkpoint()
    return session.ended


async def fill(here: Scene, session: ocapn.Session, ref: Any) -> int:
    """Sends to `ref` until there is no room, also not in a while. Returns how many messages it were."""
    sent = 0
    while True:
        try:
            send_only(ref).note(sent, bytes(50_000))
            sent += 1
        except Backpressure:
            await here.friend.served(5)
            if not session._core.has_room:
                return sent


# Peers that do not read


@pytest.mark.parametrize(
    "limits", [Limits(outbox_frames=300), Limits(outbox_bytes=1 << 20)], ids=["frames", "bytes"]
)
@trio_test_real
async def test_a_peer_that_never_reads(limits: Limits) -> None:
    """Its answers collect, up to twice the cap; then the session ends, and with it what it held."""
    async with scene(limits) as here:
        client = await here.attacker()
        await client.send(call("keep", obj(7), position=2))
        await client.call(VICTIM, Sym("echo"))
        session = here.session(client)
        ref = here.victim.things[0]
        refused = 0
        frames = size = 0
        asks = frame(*[call("echo", bytes(20_000), resolver=obj(100 + number)) for number in range(10)])
        while session.ended is None:
            with trio.move_on_after(PATIENCE):
                await client.send_unframed(asks)
            await here.friend.served()
            stats = session.stats()
            if (
                stats["outbox_messages"] >= limits.outbox_frames
                or stats["outbox_bytes"] >= limits.outbox_bytes
            ):
                # Over the cap, what our application sends breaks; answers still go out.
                assert stats["outbox_messages"] >= frames
                promise = E(ref).question()
                if session.ended is None:
                    assert is_settled(promise)
                    with pytest.raises(Backpressure):
                        send_only(ref).question()
                    with pytest.raises(Backpressure):
                        await promise
                    refused += 1
            frames, size = max(frames, stats["outbox_messages"]), max(size, stats["outbox_bytes"])
        assert refused
        assert "the peer does not read what it is sent" in str(session.ended)
        assert frames <= 2 * limits.outbox_frames + limits.slice_turns
        assert size <= 2 * limits.outbox_bytes + (1 << 20)
        with pytest.raises(SessionEnded):
            await E(ref).question()
        await client.close()


@trio_test_real
async def test_a_peer_that_reads_late_gets_all() -> None:
    """Under twice the cap nothing is lost: what was asked is answered, in order."""
    backlog = 150
    async with scene(Limits(outbox_frames=100, outbox_bytes=64 << 20)) as here:
        client = await here.attacker()
        data = bytes(100_000)
        asks = [call("echo", number, data, resolver=obj(1_000 + number)) for number in range(backlog)]
        for one in asks:
            client.exported[one.fields[3].fields[0]] += 1
        await client.send_unframed(frame(*asks))
        await here.friend.served(20)
        with trio.fail_after(PATIENCE):
            while here.session(client).stats()["turns_waiting"]:
                await trio.lowlevel.checkpoint()
        for number in range(backlog):
            assert (await client.fulfilled(Rec("desc:export", 1_000 + number)))[0] == number
        await client.end()


@trio_test_real
async def test_an_application_that_waits_until_it_may_send() -> None:
    async with scene(Limits(outbox_frames=100)) as here:
        client = await here.attacker()
        await client.send(call("keep", obj(7)))
        await client.call(VICTIM, Sym("echo"))
        session = here.session(client)
        ref = here.victim.things[0]
        sent = await fill(here, session, ref)
        heard: list[int] = []

        async def read() -> None:
            while len(heard) < sent + 1:
                message = await client.message_to(Rec("desc:export", 7))
                heard.append(message.args[1])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            with trio.fail_after(PATIENCE):
                await session.writable()
            send_only(ref).note(sent, b"")
        assert heard == list(range(sent + 1))
        await client.end()


@pytest.mark.parametrize("how", ["messages", "calls", "parts"])
@trio_test_real
async def test_one_attacker_cannot_end_the_session_of_another_that_reads_slowly(how: str) -> None:
    """What is sent on for a peer meets Backpressure, as what our own application sends does."""
    limits = Limits(outbox_frames=100, queued_messages=100_000)
    async with scene(limits) as here:
        slow, client = await here.attacker(), await here.attacker()
        await slow.send(call("keep", obj(7)))
        await slow.call(VICTIM, Sym("echo"))
        session = here.session(slow)
        await client.send(call("kept", position=2))
        large = bytes(20_000)
        operations = []
        for number in range(1_500):
            position = 1_000 + number if how != "messages" else False
            operations.append(call("note", number, large, to=answer(2), position=position))
            if how == "parts":
                operations.append(Rec("op:get", answer(1_000 + number), "x", 10_000 + number))
        for i in range(0, len(operations), 100):
            await client.send_unframed(frame(*operations[i : i + 100]))
            await here.friend.served()
        await client.nothing_else()
        assert session.ended is None
        assert session.stats()["outbox_messages"] <= limits.outbox_frames + 100
        if how != "messages":
            error = await client.broken(await client.listen(answer(1_000 + 1_499), False))
            assert "wait to be sent already" in error.fields[0]
        await client.end()
        first = await slow.message_to(Rec("desc:export", 7))
        assert first.args[:2] == [Sym("note"), 0]
        await slow.close()


@trio_test_real
async def test_gifts_for_a_peer_that_reads_slowly() -> None:
    """Each reference that is passed on is a gift to deposit there: no more than there is room for."""
    limits = Limits(outbox_frames=100)
    async with scene(limits) as here:
        slow, client = await here.attacker(), await here.attacker()
        await slow.send(call("keep", obj(7)))
        await slow.call(VICTIM, Sym("echo"))
        session = here.session(slow)
        ref = here.victim.things[0]
        await fill(here, session, ref)
        for _ in range(300):
            verb, value = await client.outcome(await client.ask(VICTIM, Sym("kept")))
            assert verb == "break"
            assert "wait to be sent already" in value.fields[0]
        assert session.ended is None
        assert session.stats()["outbox_messages"] <= limits.outbox_frames + 1
        await client.end()
        await slow.close()


# Peers that send


@asynccontextmanager
async def flood(client: Client, data: bytes) -> AsyncIterator[list[int]]:
    """Sends `data` again and again, as fast as it is taken; counts how often."""
    sent = [0]

    async def send() -> None:
        while True:
            await client._stream.send_all(data)
            sent[0] += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        yield sent
        nursery.cancel_scope.cancel()


#: What an attacker sends without end: each is as cheap to send and as dear to process as there is.
FLOODS: Final[dict[str, list[Rec]]] = {
    "calls": [call("drop", number) for number in range(200)],
    "failing calls": [call("no such method", number) for number in range(200)],
    "calls with references": [call("drop", *[VICTIM] * 10) for _ in range(50)],
    "large calls": [call("drop", *[[] for _ in range(5_000)])],
    "imports": [call("drop", *[obj(position) for position in range(50)]) for _ in range(10)],
    "garbage": [Rec("op:gc-exports", [0] * 1_000, [1] * 1_000)],
    "answers": [
        one
        for number in range(100)
        for one in (call("note", "flood", number, position=9), Rec("op:gc-answers", [9]))
    ],
    "symbols": [call("drop", *[Sym(f"{number:x}") for number in range(2_000)])],
    "async calls that end": [call("nothing") for _ in range(100)],
    "fetches": [call("fetch", b"guess %d" % number, to=Rec("desc:export", 0)) for number in range(100)],
}


@pytest.mark.parametrize("kind", FLOODS)
@trio_test_real
async def test_others_are_served_during_a_flood(kind: str) -> None:
    async with scene() as here:
        client = await here.attacker()
        async with flood(client, frame(*FLOODS[kind])) as sent:
            with trio.fail_after(PATIENCE):
                while sent[0] < 3:
                    await trio.lowlevel.checkpoint()
            await here.friend.served(30)
            before = sent[0]
            with trio.fail_after(PATIENCE):
                while sent[0] < before + 2:  # and it goes on
                    await trio.lowlevel.checkpoint()
            assert here.session(client).ended is None
        await client.close()


@trio_test_real
async def test_handshakes_during_a_flood() -> None:
    async with scene() as here:
        client = await here.attacker()
        async with flood(client, frame(*FLOODS["calls"])):
            for _ in range(5):
                other = await here.attacker()
                assert await other.call(VICTIM, Sym("echo"), 1) == [1]
                await other.end()
        await client.close()


class Watching(Victim):
    """Writes down how the session is while its messages are processed."""

    def __init__(self, session: ocapn.Session) -> None:
        super().__init__()
        self._core = session._core
        self.seen: list[tuple[int, int, int]] = []  # turns and bytes that wait, messages received

    def see(self) -> None:
        core = self._core
        self.seen.append((core.queued_turns, core.queued_bytes, core.messages_in))

    @ocapn.method
    def note(self, who: str, number: int, *rest: object) -> None:
        self.see()
        super().note(who, number)


@pytest.mark.parametrize("full", ["turns", "bytes"])
@trio_test_real
async def test_reading_stops_and_goes_on(full: str) -> None:
    """While too many turns of a session wait, nothing is read from it; afterwards all is, in order."""
    limits = Limits(queued_turns=100, slice_turns=10)
    size, count = (10, 1_000) if full == "turns" else (900_000, 40)
    async with scene(limits) as here:
        client = await here.attacker()
        here.friend.tell()
        watching = Watching(here.session(client))
        promise, resolver = here.make_promise()
        here.victim.things.append(promise)
        await client.send(call("kept", position=2))
        payload = bytes(size)
        for number in range(count):
            await client.send_unframed(frame(call("note", "attacker", number, payload, to=answer(2))))
        with trio.fail_after(PATIENCE):
            while here.session(client).stats()["messages_on_promises"] < count:
                await trio.lowlevel.checkpoint()
        resolver.fulfill(watching)

        more = [call("note", "attacker", number, payload, to=answer(2)) for number in range(count, 2 * count)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client._stream.send_all, frame(*more))
            await here.friend.served(10)
            await watching.until_heard("attacker", 2 * count)
        assert watching.heard["attacker"] == list(range(2 * count))
        over = [
            (turns, received)
            for turns, waiting, received in watching.seen
            if (turns > 100 + _BATCH if full == "turns" else waiting > (8 << 20) + (1 << 20))
        ]
        assert len(over) > 10
        # What was read in the pass in which the promise was resolved, and no more until the queue was short again.
        assert over[-1][1] - over[0][1] <= _BATCH
        assert watching.seen[-1][2] > over[-1][1]
        await client.end()


@trio_test_real
async def test_the_loop_goes_round_between_slices_of_turns() -> None:
    """Timers, other connections and other tasks wait for a slice, not for all that one message has set free."""
    count = 2_000
    async with scene(Limits(slice_turns=10)) as here:
        client = await here.attacker()
        promise, resolver = here.make_promise()
        here.victim.things.append(promise)
        await client.send(call("kept", position=2))
        notes = [call("note", "attacker", number, to=answer(2)) for number in range(count)]
        await client.send_unframed(frame(*notes))
        await client.nothing_else()
        resolver.fulfill(here.victim)
        rounds = 0
        with trio.fail_after(PATIENCE):
            while len(here.victim.heard.get("attacker", ())) < count:
                await trio.lowlevel.checkpoint()
                rounds += 1
        assert rounds >= count // 10 // 2
        await client.end()


@trio_test_real
async def test_a_flood_is_processed_in_order_and_whole() -> None:
    async with scene(Limits(queued_turns=50, slice_turns=10)) as here:
        client = await here.attacker()
        count = 20_000
        data = frame(*[call("note", "attacker", number) for number in range(count)])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client._stream.send_all, data)
            await here.friend.served(10)
            await here.victim.until_heard("attacker", count)
        assert here.victim.heard["attacker"] == list(range(count))
        assert here.session(client).stats()["turns_waiting"] == 0
        await client.end()


@trio_test_real
async def test_a_flood_that_ends_with_something_bad() -> None:
    """All of the flood that came before is processed."""
    async with scene() as here:
        client = await here.attacker()
        count = 5_000
        data = frame(*[call("note", "attacker", number) for number in range(count)], Rec("op:nope"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client._stream.send_all, data)
            await aborted(client, "no operation is called 'op:nope'")
        await here.victim.until_heard("attacker", count)
        assert here.victim.heard["attacker"] == list(range(count))


# Floods that used to leave something behind


async def _grows(here: Scene, client: Client, make: Any, times: int = 400) -> int:
    """How much memory is taken by sending what `make` makes, after as much of it has been sent already."""

    async def send() -> None:
        for number in range(times):
            await client.send_unframed(make(number))
            if not number % 50:
                await client.nothing_else()
        await client.nothing_else()
        gc.collect()

    await send()
    tracemalloc.start()
    try:
        await send()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["a dead reference", "failing calls", "failing parts", "broken answers"])
@trio_test_real
async def test_what_fails_is_not_kept(kind: str) -> None:
    """An exception keeps the frames that it passed, and they the arguments: none is kept with an answer."""
    payload = bytes(10_000)
    async with scene() as here:
        other, client = await here.attacker(), await here.attacker()
        await other.send(call("keep", obj(7)))
        await other.call(VICTIM, Sym("echo"))
        await client.send(call("kept", position=2), call("echo", {"a": 1}, position=3))
        await client.send(Rec("op:index", answer(3), 0, 4))
        await client.nothing_else()
        await other.end()
        position = 1_000

        def make(number: int) -> bytes:
            nonlocal position
            position += 2
            match kind:
                case "a dead reference":
                    return frame(call("note", payload, to=answer(2)))
                case "failing calls":
                    return frame(call("no such method", payload))
                case "failing parts":
                    echo = call("echo", {"x": payload}, position=position)
                    struct = Rec("op:index", answer(position), 0, position + 1)
                    part = Rec("op:get", answer(position + 1), "y", 100_000 + position)
                    return frame(echo, struct, part, Rec("op:gc-answers", [position, position + 1]))
                case _:
                    return frame(call("no such method", payload, position=position))

        assert await _grows(here, client, make) < 400 * 2_500
        await client.end()


def test_the_floods_are_what_they_say() -> None:
    assert len(encode(FLOODS["large calls"][0])) > 10_000
    assert own(obj(7)) == Rec("desc:export", 7)
