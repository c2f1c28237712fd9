"""Connections that are too many, and first messages that are too much (durable.md, Limits)."""

from __future__ import annotations

import gc
import resource
import socket
import tracemalloc
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Final

import pytest
import trio

import ocapn
from ocapn import Limits
from tests.conformance.encoding import Raw, Rec, Sym, encode, locator_of, obj
from tests.support import trio_test_real

from .support import PATIENCE, SWISS, Scene, aborted, ask, attack, call, frame, friend, scene

MANY: Final = 2_000


@contextmanager
def open_files(least: int) -> Iterator[None]:
    """Room for so many open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, least)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Silent:
    """Sockets that are connected to the victim and say nothing, or the beginning of something."""

    def __init__(self, here: Scene) -> None:
        hints = locator_of(here.uri).fields[2]
        self._address = (hints["host"], int(hints["port"]))
        self.sockets: list[socket.socket] = []

    async def open(self, count: int, data: bytes = b"", source: str = "127.0.0.1") -> None:
        for number in range(count):
            one = socket.socket()
            self.sockets.append(one)
            one.bind((source, 0))
            one.connect(self._address)  # the backlog takes it without the loop
            if data:
                one.sendall(data)
            if not number % 20:
                await trio.lowlevel.checkpoint()

    async def until_closed(self, least: int) -> None:
        """Waits until the peer has closed so many of them."""
        left = least
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:

                async def wait(one: socket.socket) -> None:
                    nonlocal left
                    await trio.lowlevel.wait_readable(one)
                    left -= 1
                    if not left:
                        nursery.cancel_scope.cancel()

                for one in self.sockets:
                    nursery.start_soon(wait, one)

    def close(self) -> None:
        for one in self.sockets:
            one.close()
        self.sockets.clear()


async def _settled(peer: ocapn.Peer, connections: int) -> None:
    """Waits until so many connections of the peer have not finished their handshake."""
    with trio.fail_after(PATIENCE):
        while sum(peer._acceptor.unauthenticated.values()) != connections:
            await trio.lowlevel.checkpoint()


@trio_test_real
async def test_connections_that_say_nothing_over_the_limit_of_a_source() -> None:
    """Those above it are closed at once; other sources do not notice, and the same one gets in when they are gone."""
    with open_files(3 * MANY):
        async with scene() as here:
            silent = Silent(here)
            try:
                await silent.open(MANY)
                here.friend.tell()
                await silent.until_closed(MANY - 32)
                await _settled(here.peer, 32)
                assert len(here.peer._acceptor.unauthenticated) == 1
                # From the same source nobody gets in now…
                client = await here.connect()
                await client.ends()
                # … from another one does.
                other = Silent(here)
                await other.open(1, frame(client.start()), "127.0.0.2")
                await _until_sessions(here.peer, 2)
                other.close()
                await _until_sessions(here.peer, 1)
            finally:
                silent.close()
            await _settled(here.peer, 0)
            await _another_gets_in(here)


async def _until_sessions(peer: ocapn.Peer, count: int) -> None:
    with trio.fail_after(PATIENCE):
        while len(peer.sessions) != count:
            await trio.lowlevel.checkpoint()


async def _another_gets_in(here: Scene) -> None:
    async with friend(ocapn.SturdyRef(here.peer.locator(), SWISS), "another") as another:
        await another.served(3)
        await another.check(here.victim)


#: What they send, and how many there are.
HALF: Final = b"400:<16'op:start-session3\"1.0[10'public-key"


@pytest.mark.parametrize(("data", "many"), [(b"", MANY), (HALF, MANY // 4)], ids=["nothing", "half a start"])
@trio_test_real
async def test_many_silent_connections_with_the_limit_raised(data: bytes, many: int) -> None:
    """A good peer gets in beside them, each takes little memory, and all of it comes back."""
    limits = Limits(unauthenticated_in_all=2 * MANY, unauthenticated_per_source=2 * MANY)
    with open_files(3 * MANY):
        async with scene(limits) as here:
            silent = Silent(here)
            await silent.open(100, data)
            await _settled(here.peer, 100)
            silent.close()
            await _settled(here.peer, 0)
            gc.collect()
            tracemalloc.start()
            try:
                before, _ = tracemalloc.get_traced_memory()
                await silent.open(many, data)
                await _settled(here.peer, many)
                during, peak = tracemalloc.get_traced_memory()
                assert during > before
                assert peak - before < many * (64 << 10)
                await _another_gets_in(here)
                here.friend.tell()
                silent.close()
                await _settled(here.peer, 0)
                for _ in range(3):
                    await trio.lowlevel.checkpoint()
                gc.collect()
                after, _ = tracemalloc.get_traced_memory()
                assert after - before < (during - before) / 20
            finally:
                tracemalloc.stop()
                silent.close()


@trio_test_real
async def test_silent_connections_are_given_up_in_time() -> None:
    """The same source gets in again by itself."""
    async with scene(Limits(handshake=0.3, draining=0.1)) as here:
        silent = Silent(here)
        await silent.open(32)
        await _settled(here.peer, 32)
        await silent.until_closed(32)
        await _settled(here.peer, 0)
        await _another_gets_in(here)
        silent.close()


@trio_test_real
async def test_connections_that_are_reset_at_once() -> None:
    async with scene() as here, AsyncExitStack() as stack:
        silent = Silent(here)
        stack.callback(silent.close)
        for _ in range(20):
            await silent.open(20)
            for one in silent.sockets:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            silent.close()
            await here.friend.served()
        await _settled(here.peer, 0)


# What is too much


#: Bytes in place of a frame's beginning, and the reason.
HEADS: Final = {
    "a million digits": (b"1" * 1_000_000, "a message of more than"),
    "twenty digits": (b"1" * 20 + b":", "a message of more than"),
    "eighteen digits": (b"9" * 18 + b":", "a message of more than"),
    "a leading zero": (b"01:x", "a frame begins with its length in decimal digits and a colon"),
    "no digits": (b":x", "a frame begins with its length in decimal digits and a colon"),
    "a letter": (b"12a:x", "a frame begins with its length in decimal digits and a colon"),
    "a minus": (b"-1:x", "a frame begins with its length in decimal digits and a colon"),
    "a string": (b'3"abc', "a frame begins with its length in decimal digits and a colon"),
    "an empty frame": (b"0:", "an empty frame holds no message"),
    "spaces": (b" 3:abc", "a frame begins with its length in decimal digits and a colon"),
    "an HTTP request": (
        b"GET / HTTP/1.1\r\n\r\n",
        "a frame begins with its length in decimal digits and a colon",
    ),
    "a TLS hello": (
        b"\x16\x03\x01\x02\x00\x01\x00",
        "a frame begins with its length in decimal digits and a colon",
    ),
}


@pytest.mark.parametrize("name", HEADS)
@trio_test_real
async def test_heads_of_frames_before_the_start(name: str) -> None:
    data, reason = HEADS[name]
    async with scene() as here:
        client = await here.connect()
        with trio.move_on_after(PATIENCE):
            await client.send_unframed(data)
        await aborted(client, reason)


@pytest.mark.parametrize("name", HEADS)
@trio_test_real
async def test_heads_of_frames_in_a_session(name: str) -> None:
    await attack(*HEADS[name])


@pytest.mark.parametrize("excess", [0, 1])
@trio_test_real
async def test_the_size_of_a_first_message(excess: int) -> None:
    """8 KiB and no more, whatever is in it; the connection does not wait for the rest."""
    async with scene() as here:
        client = await here.connect()
        start = client.start()
        location = Rec("ocapn-peer", *client.place.location.fields[:2], {"hint": "x" * 5_000})
        spare = 8192 + excess - len(encode(client.start(location=location)))
        location = Rec("ocapn-peer", *client.place.location.fields[:2], {"hint": "x" * (5_000 + spare)})
        data = encode(client.start(location=location))
        assert len(data) == 8192 + excess
        assert len(data) > len(encode(start))
        if excess:
            await client.send_unframed(frame(data)[:10])
            await aborted(client, "a message of more than 8192 bytes")
        else:
            await client.send_unframed(frame(data))
            await client.their_start()
            await client.end()


@pytest.mark.parametrize("excess", [0, 1])
@trio_test_real
async def test_the_size_of_a_message_of_a_session(excess: int) -> None:
    limit = Limits().frame
    head = encode(call("drop", b"x" * 1_000_000))
    data = encode(call("drop", b"x" * (1_000_000 + limit + excess - len(head))))
    assert len(data) == limit + excess
    if excess:
        await attack(frame(data)[:20], f"a message of more than {limit} bytes")
        await attack(frame(data), f"a message of more than {limit} bytes")
        return
    async with scene() as here:
        client = await here.attacker()
        await client.send_unframed(frame(data, call("note", "attacker", 1)))
        await here.victim.until_heard("attacker", 1)
        await client.end()


#: Arguments that are too much, and the reason.
TOO_MUCH: Final = {
    "lists 100,000 deep": (b"[" * 100_000 + b"]" * 100_000, "nested more than 64 deep"),
    "structs 100,000 deep": (b'{1"a' * 100_000 + b"t" + b"}" * 100_000, "nested more than 64 deep"),
    "records 100,000 deep": (
        b"<11'desc:tagged1't" * 50_000 + b"t" + b">" * 50_000,
        "nested more than 64 deep",
    ),
    "lists that never close": (b"[" * 100_000, "nested more than 64 deep"),
    "an integer of a million digits": (b"9" * 1_000_000 + b"+", "an integer of more than 256 digits"),
    "a negative one": (b"9" * 1_000_000 + b"-", "an integer of more than 256 digits"),
    "digits without an end": (b"9" * 1_000_000, "an integer of more than 256 digits"),
    "257 digits": (b"9" * 257 + b"+", "an integer of more than 256 digits"),
    "a string of 10^17 bytes": (b'100000000000000000"x', "the message ends inside a value"),
    "a symbol of 10^17 bytes": (b"100000000000000000'x", "the message ends inside a value"),
    "bytes of 10^30 bytes": (b"1" + b"0" * 30 + b":x", "a length beyond every limit"),
}


@pytest.mark.parametrize("name", TOO_MUCH)
@trio_test_real
async def test_arguments_that_are_too_much(name: str) -> None:
    data, reason = TOO_MUCH[name]
    await attack(frame(call("drop", Raw(data))), reason)


@pytest.mark.parametrize("name", TOO_MUCH)
@trio_test_real
async def test_too_much_in_place_of_a_start(name: str) -> None:
    data, reason = TOO_MUCH[name]
    message = b"<16'op:start-session3\"1.0" + data
    async with scene() as here:
        client = await here.connect()
        if len(message) > 8192:
            await client.send_unframed(frame(message)[:10])
            await aborted(client, "a message of more than 8192 bytes")
            client = await here.connect()
            message = message[:8000]
        await client.send_unframed(frame(message))
        await aborted(client, reason)


@pytest.mark.parametrize("name", TOO_MUCH)
@trio_test_real
async def test_too_much_without_frames(name: str) -> None:
    """The decoder sees what comes as it comes: it is refused before it is whole."""
    data, reason = TOO_MUCH[name]
    if "ends inside" in reason:
        reason = "a message of more than"
    async with scene() as here:
        place = await here.place()
        client = await place.connect(here.uri, "none")
        await client.shake_hands()
        note = encode(call("note", "attacker", 1))
        await client.send_unframed(encode(ask(1)) + note + encode(call("drop"))[:-4] + data[:60_000])
        await aborted(client, reason)
        assert here.victim.heard["attacker"] == [1]


@trio_test_real
async def test_too_many_hints() -> None:
    """Hints that fit into 8 KiB are only a struct: no limit but that is needed."""
    async with scene() as here:
        client = await here.connect()
        hints = {f"h{number}": "" for number in range(700)}
        location = Rec("ocapn-peer", Sym("tcp-testing-only"), "attacker-1", hints)
        await client.send_bytes(encode(client.start(location=location)))
        await client.their_start()
        await client.send(call("drop", obj(1), to=Rec("desc:export", 0)))
        await client.end()
