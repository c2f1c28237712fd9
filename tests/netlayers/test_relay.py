"""Relays: what they pass on, what they cannot do to it, and what others cannot do to them."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from unittest import mock

import attrs
import pytest
import trio
import trio.testing

from ocapn import ConnectFailed, E, Identity, Limits, NoiseNetlayer, PeerLocator, open_peer
from ocapn import relay as module
from ocapn.crypto import designator_of
from ocapn.errors import BadLocator
from ocapn.netlayers import relaying
from ocapn.netlayers.backoff import Backoff
from ocapn.netlayers.base import Channel, ChannelBroken
from ocapn.netlayers.noise import parse_address
from ocapn.netlayers.relaying import (
    IS_ALIVE,
    MOST_WAITING,
    REGISTER,
    REGISTERED,
    TAKES,
    TOKEN,
    write_refused,
    write_wanted,
)
from ocapn.noise.handshake import FIRST
from ocapn.noise.packets import packet
from ocapn.relay import Relay, RelayLimits
from ocapn.testing import check_netlayer
from tests.peer.support import Echo, Recorder, between
from tests.support import trio_test, trio_test_real, until

RELAY = Identity(bytes([1]) * 32)
BOB = Identity(bytes([2]) * 32)
MALLORY = Identity(bytes([3]) * 32)
SECRET = b"nobody on the way reads this"

Copy = Callable[[module._Both, trio.SocketStream, trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def relaying_at(relay: Relay | None = None) -> AsyncIterator[PeerLocator]:
    async with trio.open_nursery() as nursery:
        yield await nursery.start((relay or Relay(identity=RELAY)).run)
        nursery.cancel_scope.cancel()


def hidden(relay: PeerLocator, identity: Identity | None = BOB, **options: Any) -> NoiseNetlayer:
    return NoiseNetlayer(listen=False, relays=[relay], identity=identity, **options)


def dials() -> list[NoiseNetlayer]:
    return [NoiseNetlayer(listen=False)]


async def stream_to(relay: PeerLocator) -> trio.SocketStream:
    return await trio.open_tcp_stream(*parse_address(relay.hints["addr"]))


async def ended(stream: trio.SocketStream) -> bool:
    with trio.fail_after(5):
        try:
            return not await stream.receive_some(1)
        except trio.BrokenResourceError:
            return True


def first_for(identity: Identity) -> bytes:
    handshake = NoiseNetlayer(listen=False).handshake(identity.public_key)
    return packet(handshake.first())


# What it is for


@trio_test_real
async def test_check_netlayer() -> None:
    async with relaying_at() as relay:

        def make(*, listen: bool) -> NoiseNetlayer:
            return hidden(relay, None) if listen else NoiseNetlayer(listen=False)

        nobody = PeerLocator("noise", BOB.designator, {"relay": relay.hints["addr"]})
        await check_netlayer(make, malformed=[PeerLocator("noise", BOB.designator)], nobody=[nobody])


@trio_test_real
async def test_both_sides_are_proved_and_the_locator_names_the_relay() -> None:
    async with relaying_at() as relay, open_peer([hidden(relay)]) as b, open_peer(dials()) as a:
        assert b.locator().hints == {"relay": relay.hints["addr"]}
        echo = await a.enliven(b.export(Echo()).uri)
        assert await E(echo).echo(1) == 1
        assert between(a, b).authenticated
        assert between(b, a).authenticated
        (connection,) = b._connections.values()
        (other,) = a._connections.values()
        assert connection.channel.binding == other.channel.binding != b""
        # that of the dialler, as the relay says
        assert connection.channel.source == f"127.0.0.1 through the relay {RELAY.designator}"


@trio_test_real
async def test_a_relay_that_is_killed_cuts_and_one_in_its_place_goes_on() -> None:
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def first(task_status: trio.TaskStatus[PeerLocator]) -> None:
            with scope:
                await Relay(identity=RELAY).run(task_status=task_status)

        relay = await nursery.start(first)
        port = parse_address(relay.hints["addr"])[1]
        async with open_peer([hidden(relay)]) as b, open_peer(dials()) as a:
            recorder = Recorder()
            ref = await a.enliven(b.export(recorder))
            await E(ref).note(1)
            await until(lambda: all(one.durable for one in (*a.sessions, *b.sessions)))
            session = between(a, b)
            scope.cancel()
            await until(lambda: session.status == "suspended")
            again = await nursery.start(Relay(port=port, identity=RELAY).run)
            assert again == relay
            with trio.fail_after(30):
                await E(ref).note(2)
            assert recorder.seen == [1, 2]
            assert between(a, b) is session
        nursery.cancel_scope.cancel()


@trio_test_real
async def test_a_peer_is_dialled_directly_where_that_works_and_through_the_relay_else() -> None:
    seen: list[str] = []
    real = Relay._pass_on

    async def passes_on(self: Relay, stream: Any, source: str, first: bytes, designator: str) -> None:
        seen.append(designator)
        await real(self, stream, source, first, designator)

    with mock.patch.object(Relay, "_pass_on", passes_on):
        async with (
            relaying_at() as relay,
            open_peer([NoiseNetlayer(identity=BOB, relays=[relay])]) as b,
            open_peer(dials()) as a,
            open_peer(dials()) as other,
        ):
            assert set(b.locator().hints) == {"addr", "relay"}
            await a.connect(b.locator())
            assert seen == []
            with contextlib.closing(trio.socket.socket()) as nowhere:
                await nowhere.bind(("127.0.0.1", 0))  # and does not listen
                dead = f"127.0.0.1:{nowhere.getsockname()[1]}"
                hints = {"addr": dead, "relay": relay.hints["addr"]}
                await other.connect(PeerLocator("noise", BOB.designator, hints))
            assert seen == [BOB.designator]


@trio_test_real
async def test_who_is_not_registered_is_not_found() -> None:
    async with relaying_at() as relay, open_peer(dials()) as a:
        with pytest.raises(ConnectFailed, match="nobody there is that peer"):
            await a.connect(PeerLocator("noise", BOB.designator, {"relay": relay.hints["addr"]}))


@trio_test_real
async def test_a_relay_is_no_peer() -> None:
    async with relaying_at() as relay, open_peer(dials()) as a:
        with pytest.raises(ConnectFailed, match="this is a relay, and no peer: it has no objects"):
            await a.connect(relay)


# Registering


@trio_test_real
async def test_a_relay_with_another_key() -> None:
    async with relaying_at() as relay:
        wrong = PeerLocator("noise", MALLORY.designator, relay.hints)
        with pytest.raises(ConnectFailed, match="nobody there is that peer"):
            async with open_peer([hidden(wrong)]):
                raise AssertionError


@trio_test_real
async def test_a_relay_that_is_not_there(caplog: pytest.LogCaptureFixture) -> None:
    """Without another way to the peer that is an error; else it is tried again."""
    with contextlib.closing(trio.socket.socket()) as nowhere:
        await nowhere.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{nowhere.getsockname()[1]}"
        relay = PeerLocator("noise", RELAY.designator, {"addr": dead})
        with pytest.raises(ConnectFailed, match="Connection refused"):
            async with open_peer([hidden(relay)]):
                raise AssertionError
        async with open_peer([NoiseNetlayer(relays=[relay])]) as b, open_peer(dials()) as a:
            await a.connect(b.locator())
    assert "Connection refused" in caplog.text


@trio_test_real
async def test_a_peer_is_no_relay() -> None:
    async with open_peer([NoiseNetlayer(identity=RELAY)]) as b:
        with pytest.raises(ConnectFailed, match="no registration with the relay"):
            async with open_peer([hidden(b.locator())]):
                raise AssertionError


@trio_test_real
async def test_the_second_with_a_key_takes_the_place_of_the_first() -> None:
    """What is under way goes on."""
    relay = Relay(identity=RELAY)
    async with relaying_at(relay) as at, open_peer([hidden(at)]) as b, open_peer(dials()) as a:
        echo = await a.enliven(b.export(Echo()).uri)
        before = relay._clients[BOB.designator]
        channel = await NoiseNetlayer(listen=False, identity=BOB).dial(at, Limits())
        await channel.send([REGISTER])
        assert await channel.receive(1) == [REGISTERED]
        assert relay._clients[BOB.designator] is not before
        assert before.scope.cancel_called
        assert await E(echo).echo(2) == 2
        await channel.aclose()


def test_what_is_no_locator_of_a_relay() -> None:
    with pytest.raises(BadLocator, match="needs the hint addr, which ocapn://"):
        NoiseNetlayer(relays=[PeerLocator("noise", BOB.designator, {"relay": "a:1"})])
    several = [
        PeerLocator("noise", RELAY.designator, {"addr": ",".join(f"a:{n + m}" for m in range(5))})
        for n in (1, 6)
    ]
    NoiseNetlayer(relays=[several[0], several[0]])
    with pytest.raises(ValueError, match="the relays have more than 8 addresses together"):
        NoiseNetlayer(relays=several)
    with pytest.raises(BadLocator, match="the locator of a relay is one of noise"):
        NoiseNetlayer(relays=["ocapn://x.unix?path=%2Fx"])
    with pytest.raises(BadLocator, match="needs the hint addr"):
        NoiseNetlayer(relays=[PeerLocator("noise", BOB.designator)])
    with pytest.raises(ValueError, match="and as many relays"):
        NoiseNetlayer(relays=[PeerLocator("noise", BOB.designator, {"addr": "a:1"})] * 9)


@pytest.mark.parametrize("name", [field.name for field in attrs.fields(RelayLimits)])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_limits_are_above_zero(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"limit {name} must be above zero"):
        RelayLimits(**{name: value})


def test_who_may_register_is_named_by_designators() -> None:
    with pytest.raises(BadLocator):
        Relay(allow=[BOB.designator, "bob"])
    with pytest.raises(TypeError, match="allow has designators, and is not one"):
        Relay(allow=BOB.designator)


# A relay that means ill


class Sides:
    """Which way a copy goes: the first of a pair is that from the peer which took the connection."""

    def __init__(self) -> None:
        self._begun: list[trio.SocketStream] = []

    def toward(self, one: trio.SocketStream, other: trio.SocketStream) -> str:
        if other in self._begun:
            self._begun.remove(other)
            return "peer"
        self._begun.append(one)
        return "dialler"


def split(data: bytes) -> list[bytes]:
    """The whole packets at the beginning of it."""
    packets = []
    while len(data) >= 2 and len(data) >= (size := 2 + int.from_bytes(data[:2], "big")):
        packets.append(data[:size])
        data = data[size:]
    return packets


def altering(at: int, toward: str) -> Copy:
    """Changes one bit of what is passed on, so many bytes from the beginning."""

    async def copy(self: module._Both, one: trio.SocketStream, other: trio.SocketStream) -> None:
        left = at
        target = sides.toward(one, other)
        try:
            while data := await one.receive_some(1 << 16):
                if target == toward and 0 <= left < len(data):
                    data = data[:left] + bytes([data[left] ^ 1]) + data[left + 1 :]
                left -= len(data)
                await other.send_all(data)
            await other.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._scope.cancel()

    sides = Sides()
    return copy


@pytest.mark.parametrize(
    ("at", "toward"),
    [*((at, "dialler") for at in (0, 1, 2, 40, 100, 195)), *((at, "peer") for at in (0, 1, 2, 40, 100, 161))],
)
def test_an_altered_handshake(at: int, toward: str) -> None:
    @trio_test_real
    async def run() -> None:
        with mock.patch.object(module._Both, "copy", altering(at, toward)):
            async with relaying_at() as relay, open_peer([hidden(relay)]) as b:
                async with open_peer(dials(), limits=Limits(handshake=1.0)) as a:
                    with pytest.raises(ConnectFailed):
                        await a.connect(b.locator())
                assert b.sessions == []

    run()


@pytest.mark.parametrize("at", [0, 1, 2, 33, 50, 67])
def test_an_altered_first_packet(at: int) -> None:
    @trio_test_real
    async def run() -> None:
        def altered(body: bytes) -> bytes:
            data = bytearray(packet(body))
            if len(body) == FIRST:
                data[2 + at] ^= 1
            return bytes(data)

        async with relaying_at() as relay, open_peer([hidden(relay)]) as b:
            with mock.patch.object(module, "packet", altered):
                async with open_peer(dials(), limits=Limits(handshake=1.0)) as a:
                    with pytest.raises(ConnectFailed):
                        await a.connect(b.locator())
            assert b.sessions == []

    run()


#: What a relay may do to the packets that it has, two at least: each with its length.
LATER: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "altered": lambda packets: [packets[0][:-1] + bytes([packets[0][-1] ^ 1]), *packets[1:]],
    "its length altered": lambda packets: [
        packets[0][:1] + bytes([packets[0][1] ^ 1]) + packets[0][2:],
        *packets[1:],
    ],
    "dropped": lambda packets: packets[1:],
    "cut short": lambda packets: [packets[0][:-3], *packets[1:]],
    "in another order": lambda packets: [packets[1], packets[0], *packets[2:]],
    "twice": lambda packets: [packets[0], *packets],
    "made up": lambda packets: [packet(bytes(40)), *packets],
    "ended": lambda packets: [],
}


@pytest.mark.parametrize("toward", ["dialler", "peer"])
@pytest.mark.parametrize("how", LATER)
def test_what_a_relay_does_later_is_a_cut_and_nothing_is_lost(how: str, toward: str) -> None:
    spoils = False
    spoilt = 0
    sides = Sides()

    async def copy(self: module._Both, one: trio.SocketStream, other: trio.SocketStream) -> None:
        nonlocal spoils, spoilt
        target = sides.toward(one, other)
        held = b""
        try:
            while data := await one.receive_some(1 << 16):
                if spoils and target == toward:
                    held += data
                    packets = split(held)
                    if len(packets) < 2:
                        continue
                    spoils = False
                    spoilt += 1
                    data = b"".join(LATER[how](packets)) + held[len(b"".join(packets)) :]
                    if not data:
                        break
                await other.send_all(data)
            await other.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._scope.cancel()

    @trio_test_real
    async def run() -> None:
        nonlocal spoils
        recorder = Recorder()
        with mock.patch.object(module._Both, "copy", copy):
            async with relaying_at() as relay, open_peer([hidden(relay)]) as b, open_peer(dials()) as a:
                ref = await a.enliven(b.export(recorder))
                await until(lambda: all(one.durable for one in (*a.sessions, *b.sessions)))
                session = between(a, b)
                (before,) = a._connections.values()
                spoils = True
                answers = []
                with trio.fail_after(20):
                    for n in range(40):
                        answers.append(E(ref).note(n))
                        await trio.testing.wait_all_tasks_blocked()
                    for answer in answers:
                        await answer
                assert recorder.seen == list(range(40))
                assert spoilt == 1
                assert between(a, b) is session
                (after,) = a._connections.values()
                assert after is not before

    run()


@trio_test_real
async def test_one_of_two_connections_is_lost_and_the_other_goes_on() -> None:
    scopes: list[trio.CancelScope] = []
    real = module._Both.copy

    async def copy(self: module._Both, one: Any, other: Any) -> None:
        scopes.append(self._scope)
        await real(self, one, other)

    with mock.patch.object(module._Both, "copy", copy):
        async with (
            relaying_at() as relay,
            open_peer([hidden(relay)]) as b,
            open_peer(dials()) as a,
            open_peer(dials()) as other,
        ):
            recorder = Recorder()
            ref = await a.enliven(b.export(recorder))
            lost, _ = scopes
            (mine,) = a._connections.values()
            also = await other.enliven(b.export(recorder))
            (others,) = other._connections.values()
            await until(lambda: all(one.durable for one in (*a.sessions, *other.sessions, *b.sessions)))
            lost.cancel()
            await until(lambda: list(a._connections.values()) != [mine])
            with trio.fail_after(20):
                await E(also).note("other")
                await E(ref).note("mine")
            assert recorder.seen == ["other", "mine"]
            assert list(other._connections.values()) == [others]


def _sockets() -> Counter[str]:
    found: Counter[str] = Counter()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[os.readlink(f"/proc/self/fd/{number}").partition(":")[0]] += 1
    return found


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_cancelled_at_any_step_it_leaves_no_socket_open() -> None:
    """The relay, a peer that is registered, one that dials it: all are cancelled after so many passes of the loop."""

    class After(trio.abc.Instrument):
        def __init__(self, passes: int) -> None:
            self.left = passes
            self.scope = trio.CancelScope()

        def after_io_wait(self, timeout: float) -> None:
            self.left -= 1
            if self.left == 0:
                self.scope.cancel()

    done = False

    async def life(after: After) -> None:
        nonlocal done
        trio.lowlevel.add_instrument(after)
        with after.scope:
            async with relaying_at() as relay, open_peer([hidden(relay)]) as b, open_peer(dials()) as a:
                echo = await a.enliven(b.export(Echo()).uri)
                assert await E(echo).echo(1) == 1
                after.left = 0
                done = True

    trio.run(life, After(0))  # what is opened once is open
    assert done
    before = _sockets()
    passes = 1
    done = False
    while not done:
        with warnings.catch_warnings(record=True) as unclosed:
            warnings.simplefilter("always", ResourceWarning)
            trio.run(life, After(passes))
            gc.collect()
        assert not unclosed, passes
        assert _sockets() == before, passes
        passes += 1
    assert passes > 30


@trio_test_real
async def test_a_relay_that_passes_nothing_on() -> None:
    async def nothing(*_: object) -> None:
        await trio.sleep_forever()

    with mock.patch.object(module._Both, "copy", nothing):
        async with relaying_at() as relay, open_peer([hidden(relay)]) as b:
            async with open_peer(dials(), limits=Limits(handshake=0.3)) as a:
                with pytest.raises(ConnectFailed, match=r"did not answer within 0\.3 s"):
                    await a.connect(b.locator())
            assert b.sessions == []


@trio_test_real
async def test_a_relay_that_replays_and_reads() -> None:
    """All that was passed on to a peer is passed on once more; nothing of it was in clear."""
    seen: dict[str, bytes] = {"dialler": b"", "peer": b""}
    first: list[bytes] = []

    def noting(body: bytes) -> bytes:
        first.append(packet(body))
        return packet(body)

    async def copy(self: module._Both, one: trio.SocketStream, other: trio.SocketStream) -> None:
        side = "peer" if seen["dialler"] and not seen["peer"] else ""
        try:
            while data := await one.receive_some(1 << 16):
                side = side or ("dialler" if not seen["dialler"] else "peer")
                seen[side] += data
                await other.send_all(data)
            await other.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._scope.cancel()

    recorder = Recorder()
    async with relaying_at() as relay, open_peer([hidden(relay)]) as b:
        with mock.patch.object(module._Both, "copy", copy), mock.patch.object(module, "packet", noting):
            async with open_peer(dials(), durable="never") as a:
                ref = await a.enliven(b.export(recorder, b"swiss number of it"))
                await E(ref).note(SECRET)
        assert recorder.seen == [SECRET]
        everything = seen["dialler"] + seen["peer"]
        assert len(everything) > 1000
        assert SECRET not in everything
        assert b"swiss number" not in everything
        await until(lambda: b.sessions == [])
        dialler = next(one for one in first if one[2:34] == BOB.public_key)
        for later in (seen["dialler"], seen["peer"]):
            stream = await stream_to(relay)
            await stream.send_all(dialler + later)
            while not await ended(stream):
                pass
            await stream.aclose()
        assert recorder.seen == [SECRET]
        assert b.sessions == []


@trio_test_real
async def test_a_relay_that_connects_to_another_peer() -> None:
    async with (
        relaying_at() as relay,
        open_peer([hidden(relay)]) as b,
        open_peer([hidden(relay, MALLORY)]) as mallory,
        open_peer(dials(), limits=Limits(handshake=2.0)) as a,
    ):
        other = mallory.locator().designator
        real = designator_of

        def misled(key: bytes) -> str:
            return other if real(key) == BOB.designator else real(key)

        with mock.patch.object(module, "designator_of", misled), pytest.raises(ConnectFailed):
            await a.connect(b.locator())
        assert mallory.sessions == []
        assert b.sessions == []
        await a.connect(b.locator())


@trio_test_real
async def test_a_relay_that_answers_in_place_of_the_peer() -> None:
    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            data = await stream.receive_some(2 + FIRST)
            handshake = NoiseNetlayer(identity=MALLORY).handshake()
            second = handshake.second(MALLORY.public_key + data[34:])
            await stream.send_all(packet(second))
            await stream.receive_some(1)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, answer, 0)
        port = listeners[0].socket.getsockname()[1]
        async with open_peer(dials()) as a:
            with pytest.raises(ConnectFailed):
                await a.connect(PeerLocator("noise", BOB.designator, {"relay": f"127.0.0.1:{port}"}))
        nursery.cancel_scope.cancel()


class EvilRelay:
    """Takes registrations, and then says what it is told to."""

    def __init__(self, *says: bytes, registered: bytes = REGISTERED) -> None:
        self.says = says
        self.registered = registered
        self.count = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[PeerLocator]:
        netlayer = NoiseNetlayer(identity=RELAY)
        listener = await netlayer.listen(Limits())
        assert listener is not None

        async def serve(channel: Channel) -> None:
            with contextlib.suppress(ChannelBroken):
                await channel.begin()
                self.count += 1
                assert await channel.receive(1) == [REGISTER]
                await channel.send([self.registered, *self.says])
                while await channel.receive(64):
                    pass
            await channel.aclose()

        async def accept() -> None:
            while True:
                nursery.start_soon(serve, await listener.accept())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            yield netlayer.location
            nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await listener.aclose()


@pytest.mark.parametrize(
    ("says", "why"),
    [
        (b"1+", "what is no record"),
        (b"<", "what is no record"),
        (b"<5'hello>", "what a relay does not"),
        (REGISTERED, "what a relay does not"),
        (b"<12'relay:wanted1:x>", "what a relay does not"),
        (b"<" + bytes(9000), "a message of more than 8192 bytes"),
    ],
)
def test_a_relay_that_says_what_none_says(says: bytes, why: str, caplog: pytest.LogCaptureFixture) -> None:
    @trio_test_real
    async def run() -> None:
        evil = EvilRelay(says)
        async with evil.running() as relay, open_peer([NoiseNetlayer(identity=BOB, relays=[relay])]) as b:
            await until(lambda: evil.count >= 2)  # it registers again
            async with open_peer(dials()) as a:  # and others are not hurt
                await a.connect(b.locator())

    run()
    assert why in caplog.text


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (write_refused("no\nway"), r"no\\nway"),
        (b"1+", "what is no record"),
        (b"<5'hello>", "it is no relay"),
        (write_wanted(bytes(32), ""), "it is no relay"),
    ],
)
def test_a_registration_that_is_not_taken(answer: bytes, why: str) -> None:
    @trio_test_real
    async def run() -> None:
        async with EvilRelay(registered=answer).running() as relay:
            with pytest.raises(ConnectFailed, match=why):
                async with open_peer([hidden(relay)]):
                    raise AssertionError

    run()


@trio_test_real
async def test_a_relay_that_tells_of_connections_without_end() -> None:
    """No more than so many are taken at once."""
    evil = EvilRelay(*[write_wanted(bytes([n % 256]) * TOKEN, "x" * 500) for n in range(1000)])
    most = 0
    taken: set[str] = set()

    async def fetch(self: Any, token: bytes, source: str) -> None:
        nonlocal most
        most = max(most, self._waiting)
        taken.add(source)
        await trio.sleep_forever()

    with mock.patch.object(relaying.Registration, "_fetch", fetch):
        async with evil.running() as relay, open_peer([hidden(relay)]):
            await until(lambda: most == MOST_WAITING)
            await trio.testing.wait_all_tasks_blocked()
    assert most == MOST_WAITING
    assert taken == {"x" * 100}


@trio_test_real
async def test_a_connection_counts_until_its_handshake_has_ended() -> None:
    """Whatever source the relay says it is from."""
    limits = RelayLimits(handshake=20.0)
    async with relaying_at(Relay(identity=RELAY, limits=limits)) as relay, open_peer([hidden(relay)]) as b:
        (_, listener), *_ = b._acceptor._listeners
        assert isinstance(listener, relaying.RelayedListener)
        (registration,) = listener.registrations
        async with await stream_to(relay) as slow:
            await slow.send_all(first_for(BOB))
            await slow.receive_some(1)  # the second packet: it was taken
            assert registration._waiting == 1
            async with open_peer(dials()) as a:
                await a.connect(b.locator())
                await until(lambda: registration._waiting == 1)
        await until(lambda: registration._waiting == 0)


@trio_test_real
async def test_sources_that_a_relay_names_shut_nobody_out_elsewhere() -> None:
    async with (
        relaying_at() as relay,
        open_peer(
            [NoiseNetlayer(identity=BOB, relays=[relay])], limits=Limits(unauthenticated_per_source=1)
        ) as b,
        await stream_to(relay) as slow,
        open_peer(dials()) as a,
    ):
        await slow.send_all(first_for(BOB))
        await slow.receive_some(1)
        (source,) = b._acceptor.unauthenticated
        assert source == f"noise 127.0.0.1 through the relay {RELAY.designator}"
        await a.connect(PeerLocator("noise", BOB.designator, {"addr": b.locator().hints["addr"]}))


@trio_test_real
async def test_where_a_connection_is_from_is_no_line_of_a_log(caplog: pytest.LogCaptureFixture) -> None:
    evil = EvilRelay(*[write_wanted(bytes(TOKEN), "x\ny")])
    taken: list[str] = []

    async def fetch(self: Any, token: bytes, source: str) -> None:
        taken.append(source)

    with mock.patch.object(relaying.Registration, "_fetch", fetch):
        async with evil.running() as relay, open_peer([hidden(relay)]):
            await until(lambda: bool(taken))
    assert taken == ["x\\ny"]


@trio_test_real
async def test_a_token_of_another_length_is_not_taken() -> None:
    evil = EvilRelay(write_wanted(bytes(31), ""), write_wanted(bytes(33), ""))
    with mock.patch.object(relaying.Registration, "_dial", side_effect=AssertionError):
        async with evil.running() as relay, open_peer([hidden(relay)]):
            await trio.testing.wait_all_tasks_blocked()


@trio_test
async def test_silence_is_noticed_and_alive_is_said() -> None:
    async def nothing(most: int) -> None:
        await trio.sleep_forever()

    channel = mock.Mock(receive=nothing)
    channel.send = mock.AsyncMock(side_effect=[None, None, ChannelBroken("gone")])
    began = trio.current_time()
    with pytest.raises(ChannelBroken, match="nothing was heard for 60 s"):
        await relaying.within_silence(channel)
    assert trio.current_time() - began == 60
    await relaying._say_alive(channel)
    assert trio.current_time() - began == 120
    assert channel.send.mock_calls == 3 * [mock.call([relaying.IS_ALIVE])]


@trio_test_real
async def test_a_relay_that_comes_and_goes_is_asked_less_and_less_often() -> None:
    delays: list[float] = []

    async def sleep(seconds: float) -> None:
        delays.append(seconds)
        if len(delays) > 9:
            enough.set()
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()

    enough = trio.Event()
    netlayer = mock.Mock(dial=mock.AsyncMock(side_effect=ConnectFailed("no")))
    registration = relaying.Registration(netlayer, RELAY_LOCATOR, Limits(), mock.AsyncMock())
    async with trio.open_nursery() as nursery:
        with mock.patch("trio.sleep", sleep):
            nursery.start_soon(registration.run)
            await enough.wait()
        nursery.cancel_scope.cancel()
    assert delays[:9] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


@trio_test
async def test_a_relay_that_lasted_is_asked_soon_again() -> None:
    backoff = Backoff()
    waits = []

    async def waited() -> None:
        before = trio.current_time()
        await backoff.wait()
        waits.append(trio.current_time() - before)

    for life in (0, 1, 60, 61, 1):
        backoff.there()
        await trio.sleep(life)
        backoff.lost()
        await waited()
    assert waits == [0.5, 1, 2, 0.5, 1]


RELAY_LOCATOR = PeerLocator("noise", RELAY.designator, {"addr": "127.0.0.1:1"})


# Those who mean ill to a relay


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\0",
        b"\xff\xff",
        packet(bytes(len(TAKES) + TOKEN)),
        packet(TAKES + bytes(TOKEN)),
        packet(bytes(FIRST)),
        packet(RELAY.public_key + bytes(FIRST - 32)),
        first_for(BOB),
        first_for(RELAY) + b"\0\xa0" + bytes(160),
    ],
    ids=range(9),
)
def test_what_is_not_meant_for_a_relay_is_closed_at_once(said: bytes) -> None:
    @trio_test_real
    async def run() -> None:
        relay = Relay(identity=RELAY)
        async with relaying_at(relay) as at:
            async with await stream_to(at) as stream:
                await stream.send_all(said)
                with trio.fail_after(5):
                    while not await ended(stream):
                        pass
            await until(lambda: not relay._sources)
            assert (relay._total, relay._clients, relay._traffic, relay._tokens) == (0, {}, {}, {})
            async with open_peer([hidden(at)]) as b, open_peer(dials()) as a:
                await a.connect(b.locator())

    run()


@pytest.mark.parametrize("said", [b"", b"\0", first_for(BOB)[:40], first_for(RELAY)], ids=range(4))
def test_who_says_nothing_more_is_closed_after_a_while(said: bytes) -> None:
    @trio_test_real
    async def run() -> None:
        relay = Relay(identity=RELAY, limits=RelayLimits(handshake=0.1))
        async with relaying_at(relay) as at, await stream_to(at) as stream:
            await stream.send_all(said)
            with trio.fail_after(5):
                while not await ended(stream):
                    pass
            await until(lambda: relay._total == 0)
            await trio.testing.wait_all_tasks_blocked()  # what failed in the relay has ended it by now
            async with await stream_to(at):
                await until(lambda: relay._total == 1)

    run()


@trio_test_real
async def test_a_first_packet_that_comes_byte_by_byte() -> None:
    """Its time is that of the whole."""
    relay = Relay(identity=RELAY, limits=RelayLimits(handshake=0.3))
    async with relaying_at(relay) as at, await stream_to(at) as stream:
        sent = 0
        with trio.fail_after(5), contextlib.suppress(trio.BrokenResourceError):
            for byte in first_for(BOB):
                await stream.send_all(bytes([byte]))
                sent += 1
                with trio.move_on_after(0.1):
                    assert await ended(stream)
                    break
        assert sent < 10
        await trio.testing.wait_all_tasks_blocked()
        async with await stream_to(at):
            await until(lambda: relay._total == 1)


@pytest.mark.parametrize("limits", [RelayLimits(per_source=3), RelayLimits(total=3)])
def test_connections_from_one_source_and_in_all(limits: RelayLimits) -> None:
    @trio_test_real
    async def run() -> None:
        relay = Relay(identity=RELAY, limits=limits)
        async with relaying_at(relay) as at, contextlib.AsyncExitStack() as stack:
            for _ in range(3):
                await stack.enter_async_context(await stream_to(at))
            await until(lambda: relay._total == 3)
            async with await stream_to(at) as fourth:
                assert await ended(fourth)
            if limits.per_source == 3:
                with contextlib.closing(trio.socket.socket()) as other:
                    await other.bind(("127.0.0.2", 0))
                    await other.connect(parse_address(at.hints["addr"]))
                    await until(lambda: relay._total == 4)

    run()


@trio_test_real
async def test_peers_that_are_registered() -> None:
    limits = RelayLimits(clients=1)
    async with relaying_at(Relay(identity=RELAY, limits=limits)) as relay, open_peer([hidden(relay)]):
        with pytest.raises(ConnectFailed, match="this relay has as many peers as it takes"):
            async with open_peer([hidden(relay, MALLORY)]):
                raise AssertionError
        channel = await NoiseNetlayer(listen=False, identity=BOB).dial(relay, Limits())
        await channel.send([REGISTER])  # who is registered may again
        assert await channel.receive(1) == [REGISTERED]
        await channel.aclose()


@trio_test_real
async def test_only_those_that_are_allowed_register() -> None:
    async with (
        relaying_at(Relay(identity=RELAY, allow=[BOB.designator])) as relay,
        open_peer([hidden(relay)]),
    ):
        with pytest.raises(ConnectFailed, match="this relay is for others"):
            async with open_peer([hidden(relay, MALLORY)]):
                raise AssertionError


@trio_test_real
async def test_connections_to_one_peer() -> None:
    relay = Relay(identity=RELAY, limits=RelayLimits(connections=1))
    async with relaying_at(relay) as at, open_peer([hidden(at)]) as b, open_peer(dials()) as a:
        await a.connect(b.locator())
        async with open_peer(dials()) as other:
            with pytest.raises(ConnectFailed):
                await other.connect(b.locator())
            between(a, b).end()
            await until(lambda: not relay._traffic[BOB.designator].connections)
            await other.connect(b.locator())


@trio_test_real
async def test_connections_that_a_peer_has_not_taken() -> None:
    """It is told of, and takes none: each waits for a while, and only so many do."""
    relay = Relay(identity=RELAY, limits=RelayLimits(waiting=2, handshake=2))
    async with relaying_at(relay) as at:
        channel = await NoiseNetlayer(listen=False, identity=BOB).dial(at, Limits())
        await channel.send([REGISTER])
        assert await channel.receive(1) == [REGISTERED]
        streams = [await stream_to(at) for _ in range(2)]
        for stream in streams:
            await stream.send_all(first_for(BOB))
        await until(lambda: len(relay._tokens) == 2)
        async with await stream_to(at) as third:
            await third.send_all(first_for(BOB))
            assert await ended(third)
        assert len(relay._tokens) == 2
        for stream in streams:
            assert await ended(stream)
            await stream.aclose()
        traffic = relay._traffic[BOB.designator]
        assert (relay._tokens, traffic.connections, traffic.waiting) == ({}, 0, 0)
        await channel.aclose()


@trio_test_real
async def test_what_a_peer_has_taken_does_not_wait() -> None:
    """And counts for it while it lasts, though it be registered no more."""
    relay = Relay(identity=RELAY, limits=RelayLimits(waiting=1, rate=12_345_678))
    async with relaying_at(relay) as at, open_peer(dials()) as a, open_peer(dials()) as other:
        async with open_peer([hidden(at)]) as b:
            await a.connect(b.locator())
            await other.connect(b.locator())
            traffic = relay._traffic[BOB.designator]
            assert (traffic.connections, traffic.waiting, traffic._rate) == (2, 0, 12_345_678)
            client = relay._clients[BOB.designator]
            client.scope.cancel()
            await until(lambda: relay._clients.get(BOB.designator) is not client)
            assert relay._traffic[BOB.designator] is traffic
        await until(lambda: not relay._traffic)


@trio_test_real
async def test_what_a_peer_cannot_be_told_of_is_closed_at_once() -> None:
    relay = Relay(identity=RELAY, limits=RelayLimits(waiting=3))
    async with relaying_at(relay) as at, open_peer([hidden(at)]):
        told = relay._clients[BOB.designator]._tell
        assert told.statistics().max_buffer_size == 3
        for _ in range(4):
            with contextlib.suppress(trio.WouldBlock):
                told.send_nowait(IS_ALIVE)
        with mock.patch.object(module._Client, "told", return_value=False):
            async with await stream_to(at) as stream:
                await stream.send_all(first_for(BOB))
                assert await ended(stream)


@trio_test_real
async def test_a_relay_goes_on_when_it_cannot_accept(caplog: pytest.LogCaptureFixture) -> None:
    real = trio.SocketListener.accept
    failures = [OSError("too many open files")]

    async def accept(self: trio.SocketListener) -> trio.SocketStream:
        if failures:
            raise failures.pop()
        return await real(self)

    with mock.patch.object(trio.SocketListener, "accept", accept):
        async with relaying_at() as relay, open_peer([hidden(relay)]) as b, open_peer(dials()) as a:
            await a.connect(b.locator())
    assert "cannot accept: too many open files" in caplog.text


@trio_test_real
async def test_a_token_is_taken_once() -> None:
    relay = Relay(identity=RELAY)
    async with relaying_at(relay) as at:
        channel = await NoiseNetlayer(listen=False, identity=BOB).dial(at, Limits())
        await channel.send([REGISTER])
        assert await channel.receive(1) == [REGISTERED]
        wants = await stream_to(at)
        first = first_for(BOB)
        await wants.send_all(first)
        await until(lambda: len(relay._tokens) == 1)
        (token,) = relay._tokens
        one = await stream_to(at)
        await one.send_all(packet(TAKES + token))
        assert await one.receive_some(2 + FIRST) == first
        async with await stream_to(at) as other:
            await other.send_all(packet(TAKES + token))
            assert await ended(other)
        await one.send_all(b"there")
        assert await wants.receive_some(5) == b"there"
        await wants.send_eof()
        assert await one.receive_some(1) == b""
        await one.send_all(b"on")  # the other way goes on
        assert await wants.receive_some(2) == b"on"
        for stream in (wants, one):
            await stream.aclose()
        await until(lambda: not relay._traffic[BOB.designator].connections)
        assert relay._total == 1  # that of the registration
        await channel.aclose()


@pytest.mark.parametrize("ends", ["dialler", "peer"])
@trio_test
async def test_a_connection_that_one_side_has_ended_is_kept_while_the_other_speaks(ends: str) -> None:
    relay = Relay(identity=RELAY)
    dialler, of_dialler = trio.testing.memory_stream_pair()
    peer, of_peer = trio.testing.memory_stream_pair()
    one, other = (dialler, peer) if ends == "dialler" else (peer, dialler)
    there: Any = of_dialler
    taking: Any = of_peer
    waiting = relay._tokens[b"token"] = module._Waiting(there, b"first", module._Traffic(1000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay._taken, taking, b"token")
        assert await peer.receive_some() == b"first"
        await trio.sleep(2 * relaying.SILENCE)  # neither has ended
        await one.send_eof()
        assert await other.receive_some() == b""
        for _ in range(3):
            await trio.sleep(relaying.SILENCE - 1)
            await other.send_all(b"on")
            assert await one.receive_some() == b"on"
        assert not waiting.done.is_set()
        with trio.fail_after(relaying.SILENCE + 1):
            await waiting.done.wait()


@pytest.mark.parametrize(("seconds", "read"), [(10, True), (200, True), (10, False)])
@trio_test
async def test_what_is_passed_on_is_paid_for_and_that_is_no_silence(seconds: int, read: bool) -> None:
    """All that a side has said before it ended arrives, however slow the rate; if it is read."""
    relay = Relay(identity=RELAY)
    dialler, of_dialler = trio.testing.memory_stream_pair()
    peer, of_peer = trio.testing.memory_stream_pair()
    there: Any = of_dialler
    taking: Any = of_peer
    piece = bytes(1 << 16)
    if not read:  # a memory stream takes everything

        async def send_all(data: Any) -> None:
            await trio.sleep_forever()

        of_dialler.send_all = send_all  # type: ignore[method-assign]
    rate = len(piece) // seconds
    waiting = relay._tokens[b"token"] = module._Waiting(there, b"first", module._Traffic(rate))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay._taken, taking, b"token")
        assert await peer.receive_some() == b"first"
        began = trio.current_time()
        await dialler.send_eof()
        await peer.send_all(3 * piece)
        await peer.send_eof()
        await waiting.done.wait()
        took = trio.current_time() - began
        if read:
            data = b""
            while more := await dialler.receive_some():
                data += more
            assert data == 3 * piece
            assert took == pytest.approx(3 * seconds, rel=0.01, abs=1)
        else:
            assert took == pytest.approx(seconds - 1 + relaying.SILENCE, abs=1)


@trio_test
async def test_a_peer_that_does_not_read_is_told_of_a_bounded_number() -> None:
    channel = mock.Mock(send=mock.AsyncMock(side_effect=ChannelBroken("gone")))
    client = module._Client(channel, 3)
    assert [client.told(b"") for _ in range(5)] == [True, True, True, False, False]


@trio_test
async def test_a_peer_that_does_not_read_is_gone_though_it_says_that_it_is_alive() -> None:
    async def send(messages: list[bytes]) -> None:
        await trio.sleep_forever()

    async def receive(most: int) -> list[bytes]:
        await trio.sleep(relaying.ALIVE)
        return [IS_ALIVE]

    client = module._Client(mock.Mock(send=send, receive=receive), 3)
    with trio.fail_after(relaying.SILENCE + 1):
        await client.run()


@trio_test
async def test_a_peer_that_says_without_end_that_it_is_alive_is_not_read_faster() -> None:
    read = 0

    async def receive(most: int) -> list[bytes]:
        nonlocal read
        read += 1
        assert read <= 101
        await trio.lowlevel.checkpoint()
        return [IS_ALIVE] * most

    client = module._Client(mock.Mock(send=mock.AsyncMock(), receive=receive), 3)
    with trio.move_on_after(100):
        await client.run()
    assert read > 90


@trio_test
async def test_a_peer_that_says_something_else_is_gone() -> None:
    channel = mock.Mock(send=mock.AsyncMock(), receive=mock.AsyncMock(return_value=[IS_ALIVE, REGISTER]))
    with trio.fail_after(1):
        await module._Client(channel, 3).run()


@trio_test_real
async def test_a_connection_that_has_ended_is_paid_for_by_the_next() -> None:
    """Else one after the other would have the credit of a second each."""
    relay = Relay(identity=RELAY)
    async with relaying_at(relay) as at:
        async with open_peer([hidden(at)]) as b:
            for _ in range(2):
                async with open_peer(dials(), durable="never") as a:
                    await a.connect(b.locator())
                await until(lambda: not relay._traffic[BOB.designator].connections)
            traffic = relay._traffic[BOB.designator]
            async with open_peer(dials(), durable="never") as a:
                await a.connect(b.locator())
                assert relay._traffic[BOB.designator] is traffic
        await until(lambda: not relay._traffic and not relay._clients)


@trio_test_real
async def test_two_sources_keep_nobody_from_a_peer() -> None:
    """They say what a connection begins with, which needs no key, and then nothing."""
    relay = Relay(identity=RELAY)
    async with relaying_at(relay) as at, open_peer([hidden(at)]) as b, contextlib.AsyncExitStack() as stack:
        for source in ("127.0.0.2", "127.0.0.3"):
            for _ in range(60):
                slow = trio.socket.socket()
                stack.callback(slow.close)
                await slow.bind((source, 0))
                await slow.connect(parse_address(at.hints["addr"]))
                await slow.send(first_for(BOB))
        await until(
            lambda: sum(b._acceptor.unauthenticated.values()) == 2 * b.limits.unauthenticated_per_source
        )
        async with open_peer(dials()) as a:
            with trio.fail_after(5):
                await a.connect(b.locator())


@trio_test
async def test_bytes_a_second() -> None:
    traffic = module._Traffic(1000)
    began = trio.current_time()
    await traffic.pay(1000)  # what was not used in the second before
    assert trio.current_time() == began
    for n in range(1, 4):
        await traffic.pay(500)
        assert trio.current_time() - began == pytest.approx(n / 2)
    await trio.sleep(100)
    later = trio.current_time()
    await traffic.pay(1000)
    assert trio.current_time() == later
    await traffic.pay(1000)
    assert trio.current_time() - later == pytest.approx(1)


@trio_test_real
async def test_a_registered_peer_that_says_what_none_says() -> None:
    relay = Relay(identity=RELAY)
    async with relaying_at(relay) as at, open_peer([hidden(at)]) as b, open_peer(dials()) as a:
        channel = await NoiseNetlayer(listen=False, identity=MALLORY).dial(at, Limits())
        await channel.send([REGISTER])
        assert await channel.receive(1) == [REGISTERED]
        with contextlib.suppress(ChannelBroken):
            await channel.send([b"<1'x>"] * 1000 + [b"<" + bytes(9000)])
        await until(lambda: MALLORY.designator not in relay._clients)
        await channel.aclose()
        await a.connect(b.locator())


@trio_test_real
async def test_no_secrets_are_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    tokens: list[bytes] = []
    real = write_wanted

    def noting(token: bytes, source: str) -> bytes:
        tokens.append(token)
        return real(token, source)

    with mock.patch.object(module, "write_wanted", noting):
        async with relaying_at() as relay, open_peer([hidden(relay)]) as b, open_peer(dials()) as a:
            await a.connect(b.locator())
    assert len(tokens) == 1
    for secret in (tokens[0], RELAY.seed, BOB.seed):
        assert secret.hex() not in caplog.text
        assert repr(secret)[2:-1] not in caplog.text
