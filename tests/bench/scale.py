"""What grows: references, sessions, and the wait of who calls while another pushes bulk data."""

from __future__ import annotations

import gc
import itertools
import os
import statistics
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

import ocapn
from ocapn import E, send_only
from tests.bench.calls import outstanding, sequential
from tests.bench.figures import ROUNDS, Figure, rate, served, thousands
from tests.bench.server import LIMITS, Served

#: References that are held: few, and many.
REFERENCES: Final = (100, 1_000_000)
SESSIONS: Final = 5_000
#: So many sessions are weighed.
WEIGHED: Final = 200
#: Bytes of a message of bulk data.
BULK: Final = 64_000
#: Bytes that a live reference, and an idle session, should take at most on one side.
REFERENCE_BYTES: Final = 400
SESSION_BYTES: Final = 20_000
#: Of all bytes, those that should at most tell of garbage.
GARBAGE: Final = 0.05

NAMES: Final = (
    "million_references",
    "memory_of_a_reference_held",
    "memory_of_a_reference_given",
    "five_thousand_sessions",
    "memory_of_a_session",
    "latency_beside_bulk",
    "garbage_bytes",
)


def resident(pid: int | str = "self") -> int:
    """Bytes that a process has in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def rounds(count: int, work: Any) -> list[float]:
    """As many rates as a figure is made of."""
    await rate(count, work)
    return [await rate(count, work) for _ in range(ROUNDS)]


async def references(uri: str, server: int, scale: float) -> dict[str, Figure]:
    """1,000 calls under way, with many references held and with few; and what one takes on either side."""
    count = thousands(10_000 * scale)
    few, many = REFERENCES[0], max(1000, int(REFERENCES[1] * scale))
    async with ocapn.open_peer([ocapn.TcpTestingNetlayer(listen=False)], limits=LIMITS) as peer:
        ref = await peer.enliven(uri)
        work = partial(outstanding, ref)
        held: list[object] = await E(ref).give(few)
        baselines = await rounds(count, work)
        gc.collect()
        here, there = resident(), resident(server)
        while len(held) < many:
            held += await E(ref).give(min(1000, many - len(held)))
        gc.collect()
        here, there = resident() - here, resident(server) - there
        figure = Figure.of(await rounds(count, work), baselines)
        assert peer.sessions[0].stats()["imports"] > len(held)
    return {
        "million_references": figure,
        "memory_of_a_reference_held": Figure(here / many, REFERENCE_BYTES, "bytes"),
        "memory_of_a_reference_given": Figure(there / many, REFERENCE_BYTES, "bytes"),
    }


async def in_turn(refs: Sequence[Any], count: int) -> None:
    """One call after another, ten in each session: what tells of garbage is for as many calls as in one session."""
    for number in range(count // 10):
        await sequential(refs[number % len(refs)], 10)


@asynccontextmanager
async def leaves() -> AsyncIterator[tuple[ocapn.Peer, Callable[[int], Awaitable[list[ocapn.Peer]]]]]:
    """A hub, and a function that opens so many other peers, over memory in this process."""
    network = ocapn.MemoryNetwork()
    names = itertools.count()
    done = trio.Event()

    async def leaf(task_status: trio.TaskStatus[ocapn.Peer]) -> None:
        netlayer = ocapn.MemoryNetlayer(network, f"leaf {next(names)}", listen=False)
        async with ocapn.open_peer([netlayer]) as peer:
            task_status.started(peer)
            await done.wait()

    async with (
        ocapn.open_peer([ocapn.MemoryNetlayer(network, "hub")]) as hub,
        trio.open_nursery() as nursery,
    ):

        async def more(count: int) -> list[ocapn.Peer]:
            return [await nursery.start(leaf) for _ in range(count)]

        yield hub, more
        done.set()


async def sessions(scale: float) -> Figure:
    """Calls in each session in turn, with many sessions and with one."""
    count = int(5000 * scale)
    many = int(SESSIONS * scale)
    async with leaves() as (hub, more):
        sturdyref = hub.export(Served())
        refs = [await peer.enliven(sturdyref) for peer in await more(1)]
        baselines = await rounds(count, partial(in_turn, refs))
        refs += [await peer.enliven(sturdyref) for peer in await more(many - 1)]
        await trio.sleep(1)  # until all garbage is told of
        gc.collect()
        figure = Figure.of(await rounds(count, partial(in_turn, refs)), baselines)
        assert len(hub.sessions) == many
    return figure


async def weight() -> Figure:
    """Bytes of an idle session on one side, its connection included."""
    async with leaves() as (hub, more):
        sturdyref = hub.export(Served())
        peers = await more(2 * WEIGHED)
        refs = [await peer.enliven(sturdyref) for peer in peers[:WEIGHED]]
        await trio.sleep(1)
        gc.collect()
        tracemalloc.start()
        refs += [await peer.enliven(sturdyref) for peer in peers[WEIGHED:]]
        await trio.sleep(1)
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert len(refs) == len(hub.sessions) == 2 * WEIGHED
    return Figure(taken / (2 * WEIGHED), SESSION_BYTES, "bytes")  # both ends are here


async def latency(uri: str, scale: float) -> Figure:
    """The slowest of a hundred calls, in µs, while another session pushes bulk data; against the same without."""
    count = max(100, int(1000 * scale))

    async def slowest(ref: ocapn.Ref) -> float:
        times = []
        for _ in range(count):
            start = time.perf_counter()
            await sequential(ref, 1)
            times.append(time.perf_counter() - start)
        return statistics.quantiles(times, n=100)[-1] * 1e6

    async with (
        ocapn.open_peer([ocapn.TcpTestingNetlayer(listen=False)]) as caller,
        ocapn.open_peer([ocapn.TcpTestingNetlayer(listen=False)]) as pusher,
    ):
        ref, sink = await caller.enliven(uri), await pusher.enliven(uri)
        (session,) = pusher.sessions

        async def push() -> None:
            while True:
                await session.writable()
                send_only(sink).note(bytes(BULK))

        await slowest(ref)
        busy, idle = [], []
        for _ in range(ROUNDS):
            idle.append(await slowest(ref))
            sent = session.stats()["bytes_sent"]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(push)
                busy.append(await slowest(ref))
                nursery.cancel_scope.cancel()
            assert session.stats()["bytes_sent"] > sent + BULK
            await E(sink).counted()
        return Figure(statistics.median(busy), statistics.median(idle), "µs")


async def garbage(uri: str, scale: float) -> Figure:
    """Of the bytes of calls, in percent, those that tell of garbage, in both directions."""
    told = in_all = 0

    def count(direction: str, data: bytes) -> None:
        nonlocal told, in_all
        in_all += len(data)
        told += len(data) if data[:9] in (b"<13'op:gc", b"<12'op:gc") else 0

    async with ocapn.open_peer([ocapn.TcpTestingNetlayer(listen=False)]) as peer:
        ref = await peer.enliven(uri)
        peer.sessions[0]._core.trace = count
        await outstanding(ref, thousands(10_000 * scale))
        await trio.sleep(0.2)
    assert told
    return Figure(100 * told / in_all, 100 * GARBAGE, "%")


def measure(scale: float, names: Sequence[str]) -> dict[str, Figure]:
    """Those of the figures that are wanted."""
    figures: dict[str, Figure] = {}
    if set(names) & set(NAMES[:3]):
        with served() as told:
            figures |= trio.run(references, told["uri"], told["pid"], scale)
    if "five_thousand_sessions" in names:
        figures["five_thousand_sessions"] = trio.run(sessions, scale)
    if "memory_of_a_session" in names:
        figures["memory_of_a_session"] = trio.run(weight)
    if "latency_beside_bulk" in names:
        with served() as told:
            figures["latency_beside_bulk"] = trio.run(latency, told["uri"], scale)
    if "garbage_bytes" in names:
        with served() as told:
            figures["garbage_bytes"] = trio.run(garbage, told["uri"], scale)
    return {name: figure for name, figure in figures.items() if name in names}
