"""Bytes that come slowly, or never: every wait has its end (durable.md, Limits: handshake, progress of a frame).

On a mock clock, over byte streams in memory: no test waits in earnest.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

import ocapn
from ocapn import E, Limits, MemoryNetlayer, MemoryNetwork
from ocapn.codec.framing import Framer
from ocapn.codec.syrup import Record, decode
from ocapn.crypto import SessionKey, location_message
from ocapn.model.locators import PeerLocator
from tests.conformance.encoding import Rec, Sym, encode
from tests.support import trio_test

from .pipes import PipeNetlayer, Stream
from .support import SWISS, Friend, Victim, ask, call

FRAMINGS = pytest.mark.parametrize("framing", ["syrup", "netstring", "none"])


class Slow:
    """An attacker on one end of a pipe."""

    def __init__(self, stream: Stream, framing: str) -> None:
        self.stream = stream
        self.framer = Framer(Limits(), framing)
        self.reader = Framer(Limits())  # the peer cannot know our framing before a frame is whole
        self.framing = framing
        self.key = SessionKey(bytes(32))

    def start(self) -> bytes:
        location = PeerLocator("pipe", "attacker")
        signature = self.key.sign(location_message(location))
        key = [Sym("public-key"), [Sym("ecc"), [Sym("curve"), Sym("Ed25519")], [Sym("flags"), Sym("eddsa")]]]
        key[1].append([Sym("q"), self.key.public_key])  # type: ignore[attr-defined]
        sig_val = [Sym("sig-val"), [Sym("eddsa"), [Sym("r"), signature[:32]], [Sym("s"), signature[32:]]]]
        peer = Rec("ocapn-peer", Sym("pipe"), "attacker", False)
        return self.framer.frame([encode(Rec("op:start-session", "1.0", key, peer, sig_val))])

    def frame(self, *operations: Rec) -> bytes:
        return self.framer.frame([encode(operation) for operation in operations])

    async def shake_hands(self) -> None:
        await self.stream.send_all(self.start())
        assert (await self.message()).startswith("<op:start-session")
        await self.stream.send_all(self.frame(ask(1)))

    async def message(self) -> str:
        """The next message of the peer, as its label and first field; "" at the end."""
        while not (messages := self.reader.take(1)):
            data = await self.stream.receive_some()
            if not data:
                return ""
            self.reader.feed(bytes(data))
        record = decode(messages[0])
        assert isinstance(record, Record)
        return f"<{record.label.name} {record.fields[0]}"

    async def aborted(self, reason: str) -> None:
        message = await self.message()
        assert message.startswith("<op:abort"), message
        assert reason in message
        assert await self.message() == ""

    async def drip(self, data: bytes, seconds: float = 1.0) -> None:
        """Sends a byte, waits, and again, until all is sent or the peer has closed the connection."""
        try:
            for byte in data:
                await self.stream.send_all(bytes([byte]))
                await trio.sleep(seconds)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass


class Pipes:
    """The peer under attack, on the mock clock."""

    def __init__(self, netlayer: PipeNetlayer, victim: Victim, friend: Friend) -> None:
        self.netlayer = netlayer
        self.victim = victim
        self.friend = friend

    def connect(self, framing: str) -> Slow:
        return Slow(self.netlayer.connect(), framing)

    async def attacker(self, framing: str) -> Slow:
        slow = self.connect(framing)
        await slow.shake_hands()
        return slow


@asynccontextmanager
async def pipes() -> AsyncIterator[Pipes]:
    network = MemoryNetwork()
    netlayer = PipeNetlayer("victim")
    async with ocapn.open_peer([MemoryNetlayer(network, "victim"), netlayer]) as peer:
        victim = Victim()
        sturdyref = peer.export(victim, SWISS)
        async with ocapn.open_peer([MemoryNetlayer(network, "friend")]) as other:
            friend = Friend(other, await other.enliven(sturdyref), "friend")
            await friend.served(2)
            yield Pipes(netlayer, victim, friend)
            await friend.check(victim)
            peer.check()


@trio_test
async def test_a_connection_that_sends_nothing() -> None:
    async with pipes() as here:
        slow = here.connect("syrup")
        await slow.aborted("no op:start-session within 10 s")
        assert trio.current_time() == pytest.approx(10, abs=0.5)


@FRAMINGS
@trio_test
async def test_half_a_start(framing: str) -> None:
    async with pipes() as here:
        slow = here.connect(framing)
        start = slow.start()
        await slow.stream.send_all(start[: len(start) // 2])
        await slow.aborted("no op:start-session within 10 s")
        assert trio.current_time() == pytest.approx(10, abs=0.5)


@FRAMINGS
@trio_test
async def test_a_start_that_drips(framing: str) -> None:
    async with pipes() as here, trio.open_nursery() as nursery:
        slow = here.connect(framing)
        nursery.start_soon(slow.drip, slow.start())
        await slow.aborted("no op:start-session within 10 s")
        assert trio.current_time() == pytest.approx(10, abs=0.5)
        nursery.cancel_scope.cancel()


@FRAMINGS
@trio_test
async def test_a_message_that_never_ends(framing: str) -> None:
    """What came before it in the same piece is processed, and its answer goes out in time."""
    async with pipes() as here:
        slow = await here.attacker(framing)
        await trio.sleep(100)
        began = trio.current_time()
        half = slow.frame(call("drop", b"x" * 100))[:-50]
        await slow.stream.send_all(slow.frame(call("note", "attacker", 1)) + half)
        await here.victim.until_heard("attacker", 1)
        here.friend.tell()
        await slow.aborted("a message took more than 30 s to arrive")
        assert trio.current_time() - began == pytest.approx(30, abs=0.5)


@FRAMINGS
@pytest.mark.parametrize("split", ["a piece of its own", "behind another message"])
@trio_test
async def test_a_message_that_drips(framing: str, split: str) -> None:
    """A byte now and then does not help: the time is from the first byte to the last."""
    async with pipes() as here, trio.open_nursery() as nursery:
        slow = await here.attacker(framing)
        drip = slow.frame(call("note", "attacker", 2))
        if split == "behind another message":
            await slow.stream.send_all(slow.frame(call("note", "attacker", 1)) + drip[:3])
            drip = drip[3:]
        began = trio.current_time()
        nursery.start_soon(slow.drip, drip)
        await slow.aborted("a message took more than 30 s to arrive")
        assert trio.current_time() - began == pytest.approx(30, abs=0.5)
        assert here.victim.heard.get("attacker", []) == ([1] if split == "behind another message" else [])
        nursery.cancel_scope.cancel()


@FRAMINGS
@trio_test
async def test_slow_messages_that_are_in_time(framing: str) -> None:
    """Each takes 25 s, for a quarter of an hour: slow is not wrong."""
    async with pipes() as here:
        slow = await here.attacker(framing)
        for number in range(40):
            message = slow.frame(call("note", "attacker", number))
            await slow.drip(message, 25 / len(message))
        await here.victim.until_heard("attacker", 40)
        await slow.stream.send_all(slow.frame(Rec("op:abort", "done")))
        assert await slow.message() == ""


@FRAMINGS
@trio_test
async def test_a_session_may_be_silent_between_messages(framing: str) -> None:
    async with pipes() as here:
        slow = await here.attacker(framing)
        await trio.sleep(3600)
        await slow.stream.send_all(slow.frame(call("note", "attacker", 1)))
        await here.victim.until_heard("attacker", 1)
        await E(here.friend.ref).drop()
        await slow.stream.aclose()


@FRAMINGS
@trio_test
async def test_a_connection_that_ends_inside_a_message(framing: str) -> None:
    async with pipes() as here:
        slow = await here.attacker(framing)
        note = slow.frame(call("note", "attacker", 1))
        await slow.stream.send_all(note + note[: len(note) // 2])
        await slow.stream.send_eof()
        assert await slow.message() == ""
        assert here.victim.heard["attacker"] == [1]
