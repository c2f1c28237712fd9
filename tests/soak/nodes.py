"""Two supervised peers with baggages, on a mock clock, over days: cuts, kills, closes, held links, clocks that jump,
leases that end and are renewed.

Each sends numbers to the other's durable counter, a few at a time, with answers or without.
"""

from __future__ import annotations

import gc
import os
import time
from collections import Counter as Counts
from collections.abc import Callable
from random import Random
from typing import Any
from unittest import mock

import attrs
import trio

import durable
import ocapn
from ocapn import E, Lease, PeerLocator, Reconnect, send_only
from tests.restart.support import Process, World, agreed, unbalanced, world

DAY = 86_400.0
NAMES = ("a", "b")


@durable.kind("soak.counter", version=1)
@attrs.define(eq=False)
class Counter(ocapn.Target):
    """Expects the numbers from 0 on, in order, each once."""

    value: int = 0
    wrong: tuple[int, ...] = ()

    @ocapn.method
    def hit(self, number: int) -> int:
        if number != self.value:
            self.wrong = (*self.wrong, number)
        self.value += 1
        return number


@durable.kind("soak.streamer", version=1)
@attrs.define(eq=False)
class Streamer(ocapn.Target):
    """What it sends to, and the next number."""

    to: object = None
    next: int = 0


class Soak:
    """What happens, and how often it has."""

    def __init__(self, place: World, seed: str, days: float, say: Callable[[str], None]) -> None:
        self.place = place
        self.random = Random(seed)
        self.until = trio.current_time() + days * DAY
        self.happened: Counts[str] = Counts()
        self.statuses: Counts[str] = Counts()
        self.say = say
        self.offset = 1_800_000_000.0
        self.answers: Counts[str] = Counts()

    def wall(self) -> float:
        return self.offset + trio.current_time()

    # One life of a node

    async def lives(self, process: Process) -> None:
        """Keeps a connection with the other, and sends numbers."""
        random, other = self.random, NAMES[1 - NAMES.index(process.name)]
        counter = process.baggage.provide("counter", Counter)
        streamer = process.baggage.provide("streamer", Streamer)
        process.peer.export(counter, b"counter")
        lease = Lease(
            life=random.choice((3_600.0, 20_000.0)),
            idle=random.choice((900.0, 5_000.0)),
            on_reauthorise=self.renews,
            within=600.0,
        )
        policy = Reconnect(cap=600.0, attempts=random.choice((5, None)), lease=lease)
        connection = await process.peer.connect(PeerLocator("memory", other), policy)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.leaves, process, nursery)
            nursery.start_soon(self.watches, connection, nursery)
            while streamer.to is None:
                session = await connection.session()
                streamer.to = await process.peer.enliven(ocapn.SturdyRef(session.location, b"counter"))
                await agreed(process)
            while True:
                await trio.sleep(random.expovariate(1 / 600.0))
                for _ in range(random.randrange(1, 6)):
                    (session,) = process.peer.sessions
                    if session.waiting >= lease.queue:
                        self.happened["full"] += 1
                        break
                    self.happened["held"] += session.status == "expired"
                    if random.random() < 0.5:
                        send_only(streamer.to).hit(streamer.next)
                    else:
                        nursery.start_soon(self.awaits, streamer.next, E(streamer.to).hit(streamer.next))
                    streamer.next += 1

    async def leaves(self, process: Process, nursery: trio.Nursery) -> None:
        await process._leave.wait()
        nursery.cancel_scope.cancel()

    async def watches(self, connection: ocapn.SupervisedConnection, nursery: trio.Nursery) -> None:
        async with connection.events() as events:
            async for event in events:
                self.statuses[event.now.status] += 1
                if event.now.status == "given_up":
                    nursery.start_soon(self.retries, connection)

    async def retries(self, connection: ocapn.SupervisedConnection) -> None:
        await trio.sleep(self.random.uniform(0.0, 2_000.0))
        if connection.status == "given_up":
            self.happened["retried"] += 1
            connection.retry()

    async def renews(self, session: ocapn.Session, why: str) -> bool:
        self.happened[f"asked for its {why}"] += 1
        await trio.sleep(self.random.choice((0.0, 1.0, 30.0, 550.0)))
        self.happened["renewed"] += 1
        return True

    async def awaits(self, number: int, answer: Any) -> None:
        try:
            assert await answer == number
            self.answers["came"] += 1
        except ocapn.RemoteError as error:
            if not str(error).startswith("PeerRestarted: "):
                raise
            self.answers["restarted"] += 1

    # What happens to them

    async def happens(self) -> None:
        random = self.random
        while trio.current_time() < self.until - 7_200.0:
            await trio.sleep(random.expovariate(1 / 1_200.0))
            process = random.choice(self.place.processes)
            what = random.choices(("cut", "hold", "kill", "kill both", "close", "jump"), (12, 5, 3, 1, 2, 1))[
                0
            ]
            self.happened[what] += 1
            match what:
                case "cut":
                    self.place.cut()
                case "hold":
                    for link in self.place.network.links:
                        link.hold(a_to_b=random.random() < 0.7, b_to_a=random.random() < 0.7)
                    await trio.sleep(random.uniform(1.0, 300.0))
                    for link in self.place.network.links:
                        link.release()
                case "jump":
                    self.offset += random.uniform(-3_600.0, 3_600.0)
                case _:
                    dying = self.place.processes if what == "kill both" else [process]
                    for one in dying:
                        if what == "close":
                            await one.close()
                        one.crash()
                    for one in dying:
                        await one.ended.wait()
                        await trio.sleep(random.choice((0.05, 5.0, 1_500.0)))
                        await one.start()

    # What must hold

    async def settles(self) -> None:
        """All that was sent has come, once, in order."""
        deadline = trio.current_time() + 7_000.0
        a, b = self.place.processes
        while True:
            await trio.sleep(30.0)
            gc.collect(0)
            wrong = unbalanced([a, b])
            for one, other in ((a, b), (b, a)):
                sent, counter = one.baggage["streamer"].next, other.baggage["counter"]
                if counter.wrong or counter.value != sent:
                    wrong.append(
                        f"{one.name} sent {sent}, {counter.value} came; out of order: {counter.wrong[:9]}"
                    )
            if not wrong:
                return
            if trio.current_time() > deadline:
                raise AssertionError("; ".join(wrong))

    def sizes(self) -> dict[str, int]:
        """What could grow."""
        gc.collect()
        sizes = {
            "tasks": trio.lowlevel.current_statistics().tasks_living,
            "files": len(os.listdir("/proc/self/fd")),
            "links": len([link for link in self.place.network.links if link.alive]),
        }
        for process in self.place.processes:
            peer, node = process.peer, process.peer.node
            (session,) = peer.sessions
            stats = session.stats()
            own = {
                "publics": len(peer._registry.publics),
                "tenures": len(peer._registry.tenures),
                "connections": len(peer.connections),
                "wanted": len(peer._dialler._wanted) + len(peer._dialler._redials),
                "attempts": len(peer._dialler._attempts),
                "dials": len(node.dials),
                "keys": len(node._keys),
                "tombstones": len(node._tombstones),
                "frames": stats["frames_kept"],
                **{what: stats[what] for what in ("imports", "exports", "questions", "answers")},
                **{f"rows of {table}": len(rows) for table, rows in process.disk._tables.items()},
            }
            sizes |= {f"{process.name}: {what}": size for what, size in own.items()}
        return sizes


async def soak(seed: str, days: float, say: Callable[[str], None] = lambda line: None) -> Soak:
    """Raises AssertionError if a message is lost, doubled or overtaken, or something has grown."""
    async with world(delay=0.02, check=False) as place:
        one = Soak(place, seed, days, say)
        with mock.patch.object(time, "time", one.wall):
            for name in NAMES:
                await place.process(name, one.lives).start()
            before: dict[str, int] = {}
            began, end = trio.current_time(), one.until
            day = 0
            while trio.current_time() < end - 1.0:
                day += 1
                one.until = min(end, began + day * DAY)
                await one.happens()
                await one.settles()
                await trio.sleep_until(one.until)
                await one.settles()
                sizes = one.sizes()
                grown = {
                    what: (before[what], size)
                    for what, size in sizes.items()
                    if size > before.get(what, size)
                }
                # What is sent just then: a probe, a number, an acknowledgement; more of it is a leak.
                assert all(size - was < 4 for was, size in grown.values()), f"{grown} grow"
                before = before or sizes
                sent = [process.baggage["streamer"].next for process in place.processes]
                say(
                    f"day {day}: {sent} sent, {dict(one.happened)}, {dict(one.statuses)}, {dict(one.answers)}"
                )
            for process in place.processes:
                process.crash()
        return one
