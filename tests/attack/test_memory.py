"""Memory: under 64 KiB a connection, plus 64 times the bytes of the frame in progress (durable.md, Limits).

What an attacker sends is made before the measurement begins, so that what is measured is what the peer takes.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import count
from typing import Final

import pytest
import trio

from ocapn import Limits
from tests.conformance.client import Client
from tests.conformance.encoding import BOOTSTRAP, Raw, Rec, Sym, encode
from tests.support import trio_test_real

from .support import PATIENCE, VICTIM, Scene, aborted, call, frame, scene

FRAME: Final = 64 << 10
#: What a connection may take, and how often the bytes of a frame.
IDLE: Final = 64 << 10
FACTOR: Final = 64


def _numbered(pattern: bytes, start: int = 0, least: int = 1 << 30) -> Callable[[], Iterator[bytes]]:
    """From `start` on, and after `least` again from there."""
    return lambda: (pattern % (start + number % least) for number in count())


def _same(value: bytes) -> Callable[[], Iterator[bytes]]:
    return lambda: (value for _ in count())


def _deep(opening: bytes, inside: bytes, closing: bytes, levels: int) -> Callable[[], Iterator[bytes]]:
    return _same(opening * levels + inside + closing * levels)


_PEER: Final = b"<10'ocapn-peer1'm1\"df>"
#: By name, values that are small on the wire and large in memory, without end.
DEAR: Final[dict[str, Callable[[], Iterator[bytes]]]] = {
    "empty lists": _same(b"[]"),
    "lists of one": _same(b"[t]"),
    "lists of five": _same(b"[ttttt]"),
    "lists in lists": _deep(b"[", b"", b"]", 61),
    "two lists in lists": _deep(b"[[]", b"", b"]", 58),
    "empty structs": _same(b"{}"),
    "structs of one": _same(b'{0"t}'),
    "structs of two": _same(b'{0"t1"at}'),
    "structs in structs": _deep(b'{0"', b"t", b"}", 61),
    "structs of six": _same(b'{0"t1"at1"bt1"ct1"dt1"et}'),
    "structs with keys of their own": _numbered(b'{5"%05xt}'),
    "a large struct": lambda: iter([b"{" + b"".join(b'5"%05xt' % number for number in range(7_200)) + b"}"]),
    "void": _same(b"<4'void>"),
    "null": _same(b"<4'null>"),
    "tagged": _same(b"<11'desc:tagged0'[]>"),
    "tagged in tagged": _deep(b"<11'desc:tagged0'", b"[]", b">", 60),
    "errors": _numbered(b"<10'desc:error5\"%05x>"),
    "errors with more fields": _same(b"<10'desc:error0\"[][][][]>"),
    "peers": _same(_PEER),
    "peers with hints": _same(b'<10\'ocapn-peer1\'m1"d{0"0"}>'),
    "sturdyrefs": _numbered(b"<15'ocapn-sturdyref" + _PEER + b"5:%05x>"),
    "small integers": _numbered(b"%d+", 300),
    "large integers": _numbered(b"%018d+".replace(b"%018d", b"1%017d")),
    "floats": _same(b"D\0\0\0\0\0\0\0\0"),
    "empty strings": _same(b'0"'),
    "strings": _numbered(b'3"%03x', least=4096),
    "strings of two bytes a character": _numbered('6"é%04x'.encode()),
    "strings of four bytes a character": _numbered('8"\U0001f600%04x'.encode()),
    "bytes": _numbered(b"3:%03x", least=4096),
    "symbols": _numbered(b"4'%04x"),
    "short symbols": _numbered(b"3'%03x", least=4096),
    "long symbols": _numbered(b"70'%070x"),
    "booleans": _same(b"t"),
    "objects": _numbered(b"<18'desc:import-object%d+>", 100),
    "one object": _same(b"<18'desc:import-object100+>"),
    "promises": _numbered(b"<19'desc:import-promise%d+>", 100),
    "exports": _same(b"<11'desc:export0+>"),
    "answers": _same(b"<11'desc:answer1+>"),
}


def filled(name: str, extra: bytes = b"", to: Rec = VICTIM) -> bytes:
    """A call with as many of them as a frame holds, in one list, after `extra`."""
    parts = [b"[", extra]
    room = FRAME - len(encode(call("drop", [], to=to))) - len(extra) - 2
    for part in DEAR[name]():
        room -= len(part)
        if room < 0:
            break
        parts.append(part)
    parts.append(b"]")
    data = encode(call("drop", Raw(b"".join(parts)), to=to))
    assert FRAME * 3 // 5 < len(data) <= FRAME
    return data


async def until_taken(here: Scene, client: Client, before: int) -> None:
    """Waits until the peer has received one more message, or given the session up."""
    with trio.fail_after(PATIENCE):
        while True:
            sessions = [one for one in here.peer.sessions if one.location.designator != "friend"]
            if not sessions or sessions[0].stats()["messages_received"] > before:
                return
            await trio.lowlevel.checkpoint()


async def peak(here: Scene, client: Client, data: bytes) -> int:
    """The most memory that is taken while `data` arrives as the next message."""
    # What the first of its kind leaves in caches is not of this frame.
    await client.nothing_else()
    before = here.session(client).stats()["messages_received"]
    gc.collect()
    tracemalloc.start()
    try:
        base, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        await client.send_unframed(data)
        await until_taken(here, client, before)
        _, most = tracemalloc.get_traced_memory()
        return most - base
    finally:
        tracemalloc.stop()


#: Those that other values are in: with a reference beside them, they are all looked through.
CONTAINERS: Final = [
    "empty lists",
    "lists in lists",
    "structs of one",
    "structs in structs",
    "tagged in tagged",
]


@pytest.mark.parametrize(
    ("name", "extra"),
    [*((name, b"") for name in DEAR), *((name, b"<11'desc:export0+>") for name in CONTAINERS)],
)
@trio_test_real
async def test_a_frame_of_values_that_are_dear(name: str, extra: bytes) -> None:
    """The whole way: read, decoded, its references looked up, and handed to a method."""
    async with scene(Limits(frame=FRAME)) as here:
        client = await here.attacker()
        data = frame(filled(name, extra))
        taken = await peak(here, client, data)
        assert taken < IDLE + FACTOR * len(data)
        await client.send_unframed(frame(call("note", "attacker", 1)))
        await here.victim.until_heard("attacker", 1)  # it was as it should be
        await client.close()


@pytest.mark.parametrize("name", [*CONTAINERS, "errors", "sturdyrefs", "symbols", "strings", "promises"])
@trio_test_real
async def test_a_frame_that_does_not_come_to_its_end(name: str) -> None:
    """Without frames, what has come is decoded already while the rest is awaited."""
    async with scene(Limits(frame=FRAME)) as here:
        place = await here.place()
        client = await place.connect(here.uri, "none")
        await client.shake_hands()
        data = filled(name, to=BOOTSTRAP)[:-6]
        core = here.session(client)._core
        gc.collect()
        tracemalloc.start()
        try:
            base, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            await client.send_unframed(data)
            channel = here.peer._connections[here.session(client)._core].channel
            with trio.fail_after(PATIENCE):
                while channel._framer.pending < len(data):  # type: ignore[attr-defined]
                    await trio.lowlevel.checkpoint()
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert core.messages_in == 0
        assert most - base < IDLE + FACTOR * len(data)
        await client.close()


@pytest.mark.parametrize("name", ["empty lists", "structs of one", "symbols", "lists in lists"])
@trio_test_real
async def test_a_frame_that_is_refused_at_its_end(name: str) -> None:
    async with scene(Limits(frame=FRAME)) as here:
        client = await here.attacker()
        data = filled(name)
        taken = await peak(here, client, frame(data[:-4] + b"]x"))
        assert taken < IDLE + FACTOR * len(data)
        await aborted(client, "malformed at byte")


async def until_nothing_is_imported(here: Scene, client: Client) -> None:
    """Waits until the peer has given back all that it got, and told so."""
    with trio.fail_after(PATIENCE):
        while here.session(client).stats()["imports"] or here.peer._node._garbage:
            await trio.lowlevel.checkpoint()
    gc.collect()


@pytest.mark.parametrize("name", ["empty lists", "errors", "objects", "promises"])
@trio_test_real
async def test_what_is_left_of_a_large_message(name: str) -> None:
    """While a session waits for the next message, nothing of the last one is kept."""
    async with scene(Limits(frame=FRAME)) as here:
        client = await here.attacker()
        data = frame(filled(name))
        for position in range(100, 5_000):
            client.exported[position] = 4
        tracemalloc.start()
        try:
            for _ in range(3):
                await client.send_unframed(data)
                await client.nothing_else()
                await until_nothing_is_imported(here, client)
            base, _ = tracemalloc.get_traced_memory()
            before = here.session(client).stats()["messages_received"]
            await client.send_unframed(data)
            await until_taken(here, client, before)
            await until_nothing_is_imported(here, client)
            left = tracemalloc.get_traced_memory()[0] - base
        finally:
            tracemalloc.stop()
        assert left < IDLE / 8
        await client.close()


@pytest.mark.parametrize("stage", ["silent", "half a start", "a session", "a session that was busy"])
@trio_test_real
async def test_connections_that_wait(stage: str) -> None:
    """What one takes that does nothing; the attackers' own ends are in it, as they are in this process."""
    number = 25
    async with scene(Limits(unauthenticated_per_source=2 * number)) as here:
        large = frame(call("drop", Raw(b"[" + b"[]" * 20_000 + b"]")))
        places = [await here.place() for _ in range(number)]
        warm = await here.attacker()
        await warm.send_unframed(large)
        await warm.nothing_else()
        gc.collect()
        tracemalloc.start()
        try:
            base, _ = tracemalloc.get_traced_memory()
            clients = []
            for place in places:
                client = await place.connect(here.uri)
                clients.append(client)
                if stage == "half a start":
                    await client.send_unframed(b"8000:" + encode(client.start())[:-50])
                elif stage != "silent":
                    await client.shake_hands()
                if stage == "a session that was busy":
                    await client.send(Rec("op:deliver", BOOTSTRAP, [Sym("fetch"), b"?"], 1, False))
                    await client.send_unframed(large)
                    await client.nothing_else()
            with trio.fail_after(PATIENCE):
                while sum(here.peer._acceptor.unauthenticated.values()) != (
                    number if stage in ("silent", "half a start") else 0
                ):
                    await trio.lowlevel.checkpoint()
            await here.friend.served()
            gc.collect()
            taken = tracemalloc.get_traced_memory()[0] - base
        finally:
            tracemalloc.stop()
        assert taken < number * IDLE
        for client in [*clients, warm]:
            await client.close()
