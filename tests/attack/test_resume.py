"""Attacks on durable sessions over TCP: what is never acknowledged, too much, too often, half, or nonsense."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable
from hashlib import sha256
from random import Random
from typing import Any, Final

import pytest
import trio

import ocapn
from ocapn import (
    Backpressure,
    E,
    Limits,
    MemoryNetlayer,
    MemoryNetwork,
    PeerLocator,
    Target,
    method,
    send_only,
)
from ocapn.netlayers.base import Channel, Listener, Netlayer
from ocapn.references import current_node
from tests.attack.test_connections import Silent
from tests.attack.test_secrets import holds, keys_of
from tests.conformance.client import Client
from tests.conformance.encoding import BOOTSTRAP, Rec, Sym, encode, obj, read_one, signature
from tests.peer.support import Echo
from tests.support import trio_test, trio_test_real

from .support import PATIENCE, Scene, ask, call, frame, scene

CHANNEL: Final = [Sym("tcp-testing-only"), b""]
TERMS: Final = [Sym("durable-session"), 1, 86_400, 10_000, 64 << 20]


class Durable:
    """A durable session of an attacker, which knows the protocol and keeps to it as far as a test wants.

    `sent` and `received` are the frames of both directions; `acked` is the last number that the peer acknowledged.
    """

    def __init__(self, here: Scene, client: Client) -> None:
        self.here = here
        self.client = client
        self.key = client.key
        self.ids = client.public_id, client.peer_id
        self.session = client.session_id
        self.sent: list[bytes] = []
        self.received: list[bytes] = []
        self.acked = 0
        self.epoch = self.proven = 0

    @staticmethod
    async def open(here: Scene) -> Durable:
        """One in which our public identifier is the higher: our resumes are never refused as crossed."""
        place = await here.place()
        while True:
            client = await place.session(here.uri)
            if client.public_id > client.peer_id:
                break
            await client.end()
        self = Durable(here, client)
        await self.send(Rec("op:deliver", BOOTSTRAP, TERMS, False, obj(1)), ask(1))
        await self.until(1)
        assert self.received[0].startswith(b"<10'op:deliver<11'desc:export1+>[7'fulfill")
        await self.ack()
        return self

    async def send(self, *messages: Rec | bytes) -> None:
        whole = [message if isinstance(message, bytes) else encode(message) for message in messages]
        self.sent += whole
        await self.client.send_bytes(*whole)

    async def ack(self, number: int | None = None) -> None:
        await self.client.send_bytes(b"<6'op:ack%d+>" % (len(self.received) if number is None else number))

    async def read(self) -> bytes:
        """The next message, which is counted if it is a frame."""
        message = await self.client.receive_bytes()
        if message.startswith(b"<6'op:ack"):
            acked = read_one(message)[0].fields[0]
            assert self.acked <= acked <= len(self.sent)
            self.acked = acked
        elif message and not message.startswith(b"<8'op:abort"):
            self.received.append(message)
        return message

    async def until(self, count: int) -> None:
        """Reads until so many frames have come."""
        while len(self.received) < count:
            assert await self.read(), "the peer closed the connection"

    async def aborted(self) -> str:
        while not (message := await self.read()).startswith(b"<8'op:abort"):
            assert message, "the peer closed the connection without a word"
        reason = read_one(message)[0].fields[0]
        assert isinstance(reason, str)
        await self.client.ends()
        return reason

    # Resuming

    @property
    def claims(self) -> list[Any]:
        digest = sha256(b"ocapn-durable-1" + self.session + self.ids[1]).digest()
        for message in self.received:
            digest = sha256(digest + message).digest()
        return [self.epoch, self.proven, len(self.sent), self.acked, len(self.received), digest]

    def resume(self, nonce: bytes = bytes(32)) -> bytes:
        self.first = [nonce, False, self.claims]
        signed = Rec("ocapn-durable-1:resume", self.session, CHANNEL, nonce, *self.ids, False, self.first[2])
        return encode(
            Rec("op:resume-session", self.session, *self.first, signature(self.key, encode(signed)))
        )

    def confirm(self, accept: bytes) -> bytes:
        record, _ = read_one(accept)
        assert record.label == "op:resume-accept"
        nonce, epoch, hints, claims, _ = record.fields
        self.accepted = claims
        self.next_epoch = epoch
        nonces = [self.first[0], nonce]
        signed = Rec(
            "ocapn-durable-1:confirm",
            self.session,
            CHANNEL,
            *nonces,
            *self.ids,
            epoch,
            False,
            hints,
            self.first[2],
            claims,
        )
        return encode(Rec("op:resume-confirm", signature(self.key, encode(signed))))

    async def connect(self) -> Client:
        return await self.client.place.connect(self.here.uri, key=self.key)

    async def resumed(self, nonce: bytes = bytes(32)) -> tuple[bytes, bytes, bytes]:
        """The session goes on on a new connection; the messages of the resume are returned."""
        client = await self.connect()
        first = self.resume(nonce)
        await client.send_bytes(first)
        accept = await client.receive_bytes()
        confirm = self.confirm(accept)
        await client.send_bytes(confirm)
        self.client = client
        assert (await self.read()).startswith(b"<6'op:ack")
        self.epoch = self.proven = self.next_epoch
        await self.ack()
        await client.send_bytes(*self.sent[self.accepted[4] :])
        return first, accept, confirm

    async def noted(self, number: int) -> None:
        """A message arrives, and its answer."""
        count = len(self.received)
        await self.send(call("note", "attacker", number, resolver=obj(1000 + number)))
        await self.here.victim.until_heard("attacker", number + 1)
        await self.until(count + 1)

    @property
    def public(self) -> ocapn.Session:
        return self.here.session(self.client)


async def until(condition: Callable[[], object]) -> None:
    """Waits until it holds."""
    with trio.fail_after(PATIENCE):
        while not condition():
            await trio.lowlevel.checkpoint()


async def settled(here: Scene, most: int = 0) -> None:
    """Nothing is left of the connections that did not become a session's."""
    await until(
        lambda: (
            not (
                sum(here.peer._acceptor.unauthenticated.values()) > most
                or (not most and here.peer._dialler._attempts)
            )
        )
    )


async def ends_somehow(client: Client) -> list[str]:
    """What comes until the peer closes the connection."""
    labels = []
    while message := await client.receive_bytes():
        labels.append(read_one(message)[0].label)
    await client.close()
    return labels


# Acknowledgements


@trio_test_real
async def test_a_peer_that_never_acknowledges() -> None:
    """Applications meet Backpressure at the limit; answers still go out; at twice the limit the session ends."""
    async with scene(Limits(outbox_frames=100)) as here:
        attacker = await Durable.open(here)
        public = attacker.public
        await attacker.send(call("keep", obj(9)))
        await until(lambda: here.victim.things)
        (thing,) = here.victim.things
        for _ in range(100 - public.stats()["frames_kept"]):
            told(here, thing)
        with pytest.raises(Backpressure):
            told(here, thing)
        here.friend.tell(20)
        with contextlib.suppress(trio.BrokenResourceError):
            for number in range(250):
                await attacker.send(call("note", "attacker", number, resolver=obj(10 + number)))
        with trio.fail_after(1):
            await until(lambda: public.ended is not None)
        assert "does not read" in str(public.ended)
        assert 50 < len(here.victim.heard["attacker"]) <= 150


def told(here: Scene, thing: Any) -> None:
    """An application of the peer under attack sends something."""
    token = current_node.set(here.peer._node)
    try:
        send_only(thing).question()
    finally:
        current_node.reset(token)


@trio_test_real
async def test_a_peer_that_acknowledges_too_much() -> None:
    for wrong in (b"<6'op:ack1000000+>", b"<6'op:ack%d+>" % (2**63 - 1), b"<6'op:ack0+>", b"<6'op:ackff>"):
        async with scene() as here:
            attacker = await Durable.open(here)
            await attacker.client.send_bytes(wrong)
            assert "op:ack" in await attacker.aborted()
            assert [one.location.designator for one in here.peer.sessions] == ["friend"]


@trio_test_real
async def test_acknowledgements_without_end() -> None:
    """They are neither frames nor answered with frames."""
    async with scene() as here:
        attacker = await Durable.open(here)
        await attacker.client.send_bytes(*[b"<6'op:ack%d+>" % len(attacker.received)] * 20_000)
        here.friend.tell(20)
        await attacker.noted(0)
        assert attacker.public.stats()["frames_kept"] < 10


# Resumes


@trio_test_real
async def test_a_peer_that_resumes_all_the_time() -> None:
    async with scene() as here:
        attacker = await Durable.open(here)
        public = attacker.public
        for number in range(100):
            old = attacker.client
            await attacker.resumed(sha256(b"%d" % number).digest())
            if not number % 10:
                here.friend.tell(2)
                await attacker.noted(number // 10)
            if number % 3:
                await old.close()
        await settled(here)
        assert attacker.public is public
        assert here.victim.heard["attacker"] == list(range(10))
        await until(lambda: len(here.peer._connections) <= 2)


@trio_test_real
async def test_half_finished_resumes_from_many_connections() -> None:
    """The limit of connections without a session holds; nothing is kept of them; the owner resumes all the while."""
    async with scene() as here:
        attacker = await Durable.open(here)
        first = attacker.resume()
        silent = Silent(here)
        try:
            await silent.open(200, frame(first), "127.0.0.2")
            await silent.until_closed(168)
            await attacker.noted(0)
            await attacker.resumed(b"x" * 32)
            await attacker.noted(1)
            here.friend.tell(5)
            # the half-finished ones are over as soon as the session has gone on elsewhere
            await settled(here)
            await silent.open(200, frame(first), "127.0.0.2")
            await settled(here, 32)
            await silent.open(20, frame(first), "127.0.0.3")
            await settled(here, 52)
            await attacker.resumed(b"y" * 32)
            await attacker.noted(2)
        finally:
            silent.close()
        await settled(here)
        assert not here.peer._dialler._attempts
        gc.collect()


@trio_test_real
async def test_a_first_message_that_is_replayed_evicts_nobody() -> None:
    async with scene() as here:
        attacker = await Durable.open(here)
        first, accept, confirm = await attacker.resumed()
        for after in (b"", accept, confirm, first):
            client = await attacker.connect()
            await client.send_bytes(first)
            assert (await client.receive_bytes()).startswith(b"<16'op:resume-accept")
            if after:
                await client.send_bytes(after)
                assert await ends_somehow(client) == ["op:abort"]
            else:
                await client.close()
        await attacker.noted(0)
        await settled(here)


@trio_test_real
async def test_a_replayed_resume_while_the_session_is_suspended() -> None:
    async with scene() as here:
        attacker = await Durable.open(here)
        first, *_ = await attacker.resumed()
        await attacker.client.close()
        await until(lambda: attacker.public.status == "suspended")
        for _ in range(10):
            client = await attacker.connect()
            await client.send_bytes(first)
            assert (await client.receive_bytes()).startswith(b"<16'op:resume-accept")
            await client.close()
        assert attacker.public.status == "suspended"
        await attacker.resumed(b"z" * 32)
        await attacker.noted(0)


@trio_test_real
async def test_a_first_message_that_is_large() -> None:
    """It is refused by the length that it announces."""
    async with scene() as here:
        attacker = await Durable.open(here)
        whole = attacker.resume()
        head = whole[: whole.index(b"f[")]
        large = head + b'{4"host1000000"%b}' % (b"x" * 1_000_000) + whole[whole.index(b"f[") + 1 :]
        for data in (b"%d:%b" % (len(large), large[:3000]), b"8193:" + large[:8000]):
            client = await attacker.connect()
            await client.send_unframed(data)
            assert await ends_somehow(client) == ["op:abort"]
        await attacker.noted(0)
        await settled(here)


@trio_test_real
async def test_a_large_frame_right_behind_the_first_ack() -> None:
    """The limit of messages before a session is there does not hold for what comes after the resume."""
    async with scene() as here:
        heard: list[str] = []

        class Ear(Target):
            @method
            def question(self, text: str) -> None:
                heard.append(text)

        friend = here.friend
        await E(friend.ref).keep(Ear())
        await until(lambda: friend.session.durable)
        (theirs,) = here.peer.sessions
        theirs._core.disconnected("cut")
        friend.session._core.disconnected("cut")
        token = current_node.set(here.peer._node)
        try:
            for size in (500_000, 10, 900_000):
                E(here.victim.things[-1]).question("x" * size)
        finally:
            current_node.reset(token)
        await until(lambda: len(heard) == 3)
        assert [len(text) for text in heard] == [500_000, 10, 900_000]


def mutated(random: Random, message: bytes) -> bytes:
    data = bytearray(message)
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(data))
        what = random.randrange(4)
        if what == 0:
            data[at] ^= 1 << random.randrange(8)
        elif what == 1:
            del data[at : at + random.randint(1, 40)]
        elif what == 2:
            data[at:at] = random.randbytes(random.randint(1, 10))
        else:
            other = random.randrange(len(data))
            data[at:at] = data[other : other + random.randint(1, 60)]
    return bytes(data)


@trio_test_real
async def test_nonsense_in_every_message_of_a_resume() -> None:
    """Whatever it is, the connection ends cleanly, and the session goes on where it was."""
    random = Random(20)
    async with scene() as here:
        attacker = await Durable.open(here)
        done = 0
        for number in range(120):
            client = await attacker.connect()
            first = attacker.resume(random.randbytes(32))
            if number % 2:
                await client.send_bytes(first)
                good = attacker.confirm(await client.receive_bytes())
            else:
                good = first
            bad = mutated(random, good)
            if bad == good or not bad:
                await client.close()
                continue
            await client.send_bytes(bad)
            labels = await ends_somehow(client)
            assert labels in (["op:abort"], ["op:resume-refuse"]), (labels, bad)
            assert labels != ["op:resume-refuse"] or not number % 2  # `unknown`: the session's id was hit
            done += 1
            if not number % 20:
                here.friend.tell(2)
        assert done > 100
        await attacker.noted(0)
        await settled(here)


@trio_test_real
async def test_refusals_by_an_attacker_who_replays() -> None:
    """Without the key of the session nothing that is said after an accept is believed."""
    async with scene() as here:
        attacker = await Durable.open(here)
        first, *_ = await attacker.resumed()
        for reason in ("retry", "ended", "expired", "i-rolled-back", "you-rolled-back", "diverged", "stale"):
            client = await attacker.connect()
            await client.send_bytes(first)
            nonce = read_one(await client.receive_bytes())[0].fields[0]
            for_session = [attacker.session, nonce, Sym(reason), False]
            await client.send_bytes(encode(Rec("op:resume-refuse", *for_session, False)))
            assert await ends_somehow(client) == ["op:abort"]
        await attacker.noted(0)
        assert attacker.public.status == "live"


@trio_test_real
async def test_a_start_with_the_key_of_a_durable_session() -> None:
    async with scene() as here:
        attacker = await Durable.open(here)
        for designator in (attacker.client.place.designator, "elsewhere"):
            place = await here.place(designator)
            client = await place.connect(here.uri, key=attacker.key)
            await client.send(client.start())
            assert await ends_somehow(client) == ["op:abort"]
        await attacker.noted(0)


@trio_test_real
async def test_a_peer_that_we_dial_and_that_grants_nonsense() -> None:
    async with scene() as here:
        for value in (1, [], [*TERMS[:4], 1], [Sym("durable-session"), 2, *TERMS[2:]], obj(5)):
            place = await here.place()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_connects, here.peer, place.uri)
                client = await place.accepted()
                await client.receive_bytes()  # it asks
                await client.send(
                    Rec("op:deliver", Rec("desc:export", 1), [Sym("fulfill"), value], False, False)
                )
                assert await ends_somehow(client) == ["op:abort"]


async def _connects(peer: ocapn.Peer, uri: str) -> None:
    await peer.connect(uri)


@trio_test_real
async def test_no_secret_of_a_session_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    lines: list[str] = []
    async with scene() as here:
        attacker = await Durable.open(here)
        keys = [*keys_of(here.peer), *keys_of(here.friend.peer), bytes(attacker.key)]
        for session in here.peer.sessions:
            session.trace(lines.append)
        await attacker.resumed()
        await attacker.noted(0)
        for message in (
            attacker.resume(),
            attacker.resume()[:-5] + b"xxxxx",
            encode(Rec("op:resume-confirm")),
        ):
            client = await attacker.connect()
            await client.send_bytes(message)
            await client.send_bytes(b"<17'op:resume-confirmf>")
            await ends_somehow(client)
        session = attacker.public
        lines += [repr(session), repr(session._core), repr(session._core.frames), repr(session.dump())]
        await attacker.client.close()
        await until(lambda: session.status == "suspended")
        await attacker.resumed(b"q" * 32)
        session.end()
        await attacker.aborted()
        client = await attacker.connect()
        await client.send_bytes(attacker.resume())
        assert await ends_somehow(client) == ["op:resume-refuse"]
    text = "\n".join([*(record.getMessage() for record in caplog.records), *lines])
    assert "resume" in text
    assert not holds(text, *keys)


@trio_test_real
async def test_an_end_is_told_with_what_was_accepted() -> None:
    """To its owner; whoever replays learns no more than that. A stranger's id is unknown."""
    async with scene() as here:
        attacker = await Durable.open(here)
        await attacker.noted(0)
        accepted = len(attacker.sent)
        attacker.public.end()
        await attacker.aborted()
        client = await attacker.connect()
        await client.send_bytes(attacker.resume())
        refuse, _ = read_one(await client.receive_bytes())
        assert refuse.fields[:4] == (attacker.session, bytes(32), Sym("ended"), accepted)
        unsigned = encode(Rec("op:resume-session", bytes(32), *attacker.first, signature(attacker.key, b"")))
        client = await attacker.connect()
        await client.send_bytes(unsigned)
        refuse, _ = read_one(await client.receive_bytes())
        assert refuse == Rec("op:resume-refuse", bytes(32), bytes(32), Sym("unknown"), False, False)


class _ProvesWhomItDials(Netlayer):
    """Reaches peers by a hint, proves whoever is there, and nobody who comes."""

    transport = "memory"

    def __init__(self, network: MemoryNetwork, name: str) -> None:
        self._inner = MemoryNetlayer(network, name)
        self.location = self._inner.location

    async def listen(self, limits: Limits) -> Listener | None:
        return await self._inner.listen(limits)

    async def dial(self, locator: PeerLocator, limits: Limits) -> Channel:
        at = locator.hints.get("at", locator.designator)
        channel = await self._inner.dial(PeerLocator("memory", at), limits)
        channel.authenticated = at
        return channel


class _CallsItselfVictim(Netlayer):
    transport = "memory"

    def __init__(self, network: MemoryNetwork) -> None:
        self._inner = MemoryNetlayer(network, "mallory")
        self._dialled = False
        self.location = PeerLocator("memory", "victim", {"at": "mallory"})

    async def listen(self, limits: Limits) -> Listener | None:
        return await self._inner.listen(limits)

    async def dial(self, locator: PeerLocator, limits: Limits) -> Channel:
        await trio.lowlevel.checkpoint()
        if self._dialled:
            raise ocapn.ConnectFailed("it waits to be dialled")
        self._dialled = True
        return await self._inner.dial(locator, limits)


@trio_test
async def test_a_session_is_not_resumed_with_another_than_the_netlayer_has_proved() -> None:
    network = MemoryNetwork()
    async with (
        ocapn.open_peer([_ProvesWhomItDials(network, "server")]) as server,
        ocapn.open_peer([_CallsItselfVictim(network)]) as mallory,
    ):
        await mallory.enliven(server.export(Echo()))
        (session,) = server.sessions
        await trio.sleep(3.0)
        assert (session.location.designator, session.authenticated, session.durable) == (
            "victim",
            False,
            True,
        )
        for link in list(network.links):
            link.cut()
        await trio.sleep(60.0)
        assert session.status == "suspended"
        assert not session.authenticated
