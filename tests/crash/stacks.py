"""Two peers with a baggage in a directory each, on one record; and the check of what a crash of both leaves.

Each streams numbers to a counter of the other, which writes them into its ledger in the turns in which they come. The
next number is kept with what was sent.
"""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import attrs
import trio

import durable
import ocapn
from ocapn import E, MemoryNetwork, PeerLocator, SturdyRef, send_only
from ocapn.references import current_node
from tests.crash.script import LOG_SIZE, Wrong
from tests.crash.wire import Note, Promise, Shown, TappedNetlayer
from tests.restart.support import unbalanced

SIDES = ("a", "b")
#: Numbers that each side sends in a life, and how many more after a crash.
TURNS = 500
MORE = 5

_ledgers: dict[Any, durable.Namespace] = {}  # by node


@durable.kind("crash.counter", version=1)
@attrs.define(eq=False)
class Counter(ocapn.Target):
    """Expects the numbers from 0 on, in order, each once."""

    value: int = 0
    wrong: tuple[int, ...] = ()
    held: object = None

    @ocapn.method
    def hit(self, number: int) -> int:
        if number != self.value:
            self.wrong = (*self.wrong, number)
        ledger = _ledgers[current_node.get()]
        key = f"{number:08}"
        ledger[key] = ledger.get(key, 0) + 1
        self.value += 1
        return self.value

    @ocapn.method
    def hold(self, number: int, thing: object) -> int:
        """What was held before is let go of."""
        self.held = thing
        return self.hit(number)

    @ocapn.method
    def look(self, number: int, thing: object) -> object:
        self.hit(number)
        return thing

    @ocapn.method
    def give(self) -> object:
        return self.held

    @ocapn.method
    async def pause(self) -> None:
        await trio.sleep(0.002)


@durable.kind("crash.streamer", version=1)
@attrs.define(eq=False)
class Streamer(ocapn.Target):
    """What it sends to, and the next number. Of answers it counts those it asked to be told of, and those it was."""

    to: object = None
    next: int = 0
    asked: int = 0
    told: int = 0
    last: int = 0
    broken: tuple[str, ...] = ()

    def answered(self, value: object) -> None:
        self.told += 1
        if isinstance(value, int):
            self.last = value

    def failed(self, error: BaseException) -> None:
        self.broken = (*self.broken, repr(error))


@durable.kind("crash.thing", version=1)
@attrs.define(eq=False)
class Thing(ocapn.Target):
    """To be passed."""

    number: int = 0


class Passing(ocapn.Target):
    """Ends with its process."""


class Side:
    """One of the two peers, over all its lives."""

    def __init__(
        self,
        name: str,
        directory: Path,
        network: MemoryNetwork,
        gate: trio.Event,
        note: Note,
        seed: str,
        burst: int,
    ) -> None:
        self.name = name
        self.other = SIDES[1 - SIDES.index(name)]
        self.directory = directory
        self.lives = 0
        self.alive = False
        self.peer: ocapn.Peer
        self.baggage: durable.Baggage
        self.counter: Counter
        self.streamer: Streamer
        self._network = network
        self._gate = gate
        self._note = note
        self._random = Random(f"{name} {seed}")
        self._bursts = (1, min(5, burst), (burst + 1) // 2, burst)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """The process runs."""
        self.baggage = durable.Baggage(durable.DirectoryStore(self.directory, log_size=LOG_SIZE))
        try:
            self.baggage.blocks = False
            self.baggage.verify()
            netlayer = TappedNetlayer(self._network, self.name, self._note, self._gate)
            async with ocapn.open_peer([netlayer], baggage=self.baggage) as self.peer:
                _ledgers[self.peer.node] = self.baggage.namespace("ledger")
                self.counter = self.baggage.provide("counter", Counter)
                self.streamer = self.baggage.provide("streamer", Streamer)
                self.peer.export(self.counter, b"counter")
                self.alive = True
                self.lives += 1
                try:
                    yield
                finally:
                    self.alive = False
        finally:
            if hasattr(self, "peer"):  # turns run until it is closed
                _ledgers.pop(self.peer.node, None)
            self.baggage.close()

    async def streams(self, total: int) -> None:
        """Sends the numbers below `total` that it has not sent yet."""
        token = current_node.set(self.peer.node)
        try:
            while self.streamer.to is None:
                try:
                    await self._meet()
                except (ocapn.ConnectFailed, ocapn.SessionEnded, ocapn.RemoteError):
                    await trio.sleep(0.02)
            async with trio.open_nursery() as waiting:
                while self.streamer.next < total:
                    for _ in range(min(self._random.choice(self._bursts), total - self.streamer.next)):
                        self._send(waiting)
                    sent = self.streamer.next
                    if self._random.random() < 0.2:
                        await self.peer.settled()
                        self._note(Shown(self.name, None, "next", sent))
                    await trio.sleep(self._random.choice((0.0, 0.003, 0.02)))
        finally:
            current_node.reset(token)

    async def _meet(self) -> None:
        """A reference to the other's counter, in a session that no crash of either side ends."""
        far = await self.peer.enliven(SturdyRef(PeerLocator("memory", self.other), b"counter"))
        (session,) = self.peer.sessions
        while not session.durable:  # noqa: ASYNC110 - nobody tells
            await trio.sleep(0.01)
        await E(far).pause()  # the other has committed what it knows, too
        await self.peer.settled()
        self._note(Shown(self.name, session._core.id, "agreed", 1))
        self.streamer.to = far

    def _send(self, waiting: trio.Nursery) -> None:
        """One number, and what says that it is sent, in one turn. How it is sent depends on the number alone."""
        streamer, number = self.streamer, self.streamer.next
        far: Any = streamer.to
        match number % 17:
            case 1 | 4 | 7 | 10:
                answer = E(far).hit(number)
                self._tell(answer)
                waiting.start_soon(self._awaits, answer)
            case 2:
                self._tell(E(far).hit(number))
            case 3 | 11:
                send_only(far).hold(number, self._thing(number))
            case 5:
                self._tell(E(far).look(number, self._thing(number)))
            case 8:
                send_only(far).look(number, Passing())
            case 12:
                send_only(far).look(number, E(far).give())
            case 13:
                send_only(far).pause()
                send_only(far).hit(number)
            case 15:
                send_only(far).hold(number, None)
            case _:
                send_only(far).hit(number)
        streamer.next += 1

    def _tell(self, answer: object) -> None:
        durable.when(answer, self.streamer, "answered", "failed")
        self.streamer.asked += 1

    def _thing(self, number: int) -> Thing:
        thing: Thing = self.baggage.provide(f"thing {number % 3}", Thing)
        return thing

    async def _awaits(self, answer: Any) -> None:
        value = await answer
        self._note(Shown(self.other, None, "counter", value))
        self._note(Shown(self.name, None, "told", value))

    def wrong(self, total: int, far: Streamer) -> list[str]:
        """What is not as it has to be once the other side has sent `total` numbers and all is told."""
        counter, streamer = self.counter, self.streamer
        found = []
        if (counter.value, far.next, counter.wrong) != (total, total, ()):
            found.append(
                f"{total} numbers, {far.next} sent, {counter.value} counted, out of order: {counter.wrong}"
            )
        if streamer.told != streamer.asked or streamer.broken:
            found.append(f"asked {streamer.asked}, told of {streamer.told}, broken: {streamer.broken}")
        for session in self.peer.sessions:
            frames = session._core.frames
            if frames is None or frames.kept:
                found.append("frames are not acknowledged" if frames else "the session is not durable")
        if not found:
            rows, _ = _ledgers[self.peer.node].entries(limit=total + 1)
            if rows != [(f"{number:08}", 1) for number in range(total)]:
                found.append(f"the ledger has {len(rows)} rows: {rows}")
        return [f"{self.name}: {one}" for one in found]

    def lost(self, promise: Promise) -> list[str]:
        """What was promised, and a crash has undone. Asked before the side has spoken to anybody."""
        known = {session._core.id: session._core for session in self.peer.sessions}
        found = []
        for session in promise.sessions(self.name):
            core = known.get(session)
            frames = None if core is None else core.frames
            if frames is not None:
                has = {"sent": frames.sent, "taken": frames.taken, "epoch": frames.epoch}
            elif session in promise.agreed:
                has = dict.fromkeys(("sent", "taken", "epoch"), -1)
            else:
                continue  # it may end while one side does not know that the other knows
            for what, count in has.items():
                least = promise.of(self.name, session, what)  # type: ignore[arg-type]
                if count < least:
                    found.append(
                        f"{what} of the session {session.hex()[:8]}: {count}, and {least} were shown"
                    )
        mine = {"counter": self.counter.value, "told": self.streamer.last, "next": self.streamer.next}
        for what, count in mine.items():
            least = promise.of(self.name, None, what)  # type: ignore[arg-type]
            if count < least:
                found.append(f"{what}: {count}, and {least} were shown")
        return [f"{self.name}: {one}" for one in found]


def two(place: Path, note: Note, seed: str, burst: int = 5) -> tuple[list[Side], MemoryNetwork, trio.Event]:
    """The sides, which reach nobody before the event is set. They send up to `burst` numbers at once."""
    random = Random(f"network {seed}")
    delays = random.choice(((0.0,), (0.0, 0.001, 0.004)))
    network = MemoryNetwork(delay=lambda a, b: random.choice(delays))
    gate = trio.Event()
    return [Side(name, place / name, network, gate, note, seed, burst) for name in SIDES], network, gate


async def quiet(sides: list[Side], totals: dict[str, int]) -> None:
    """Waits until all is told, and everything is as it has to be. Raises Wrong."""
    deadline = trio.current_time() + 300
    step = 0.06
    one, other = sides
    while True:
        gc.collect(0)
        await trio.sleep(step)
        step = min(2 * step, 20.0)
        wrong = unbalanced(sides)
        wrong += one.wrong(totals[other.name], other.streamer) + other.wrong(totals[one.name], one.streamer)
        if not wrong:
            break
        if trio.current_time() > deadline:
            raise Wrong("; ".join(wrong))
    for side in sides:
        side.peer.check()


async def live(place: Path, note: Note, seed: str, turns: int, burst: int) -> None:
    """Both stream so many numbers. The connection is cut now and then; each is closed once, and opened again."""
    sides, network, gate = two(place, note, seed, burst)
    random = Random(f"life {seed}")
    gate.set()
    finish = trio.Event()
    done = 0

    async def lives(side: Side) -> None:
        nonlocal done
        async with side.opened():
            await side.streams(random.randrange(turns // 5, turns))
        await trio.sleep(random.choice((0.0, 0.3)))
        async with side.opened():
            await side.streams(turns)
            done += 1
            await finish.wait()

    async def cuts() -> None:
        while True:
            await trio.sleep(random.uniform(0.02, 0.4))
            network.cut(*SIDES)

    async with trio.open_nursery() as nursery:
        for side in sides:
            nursery.start_soon(lives, side)
        async with trio.open_nursery() as cutting:
            cutting.start_soon(cuts)
            while done < len(sides):  # noqa: ASYNC110 - a step of the mock clock
                await trio.sleep(0.1)
            cutting.cancel_scope.cancel()
        await quiet(sides, dict.fromkeys(SIDES, turns))
        finish.set()


async def go_on(place: Path, note: Note, seed: str, promise: Promise) -> None:
    """Both sides are started again, keep what was promised, and stream a little more. Raises Wrong."""
    sides, _, gate = two(place, note, seed)
    async with AsyncExitStack() as stack:
        for side in sides:
            await stack.enter_async_context(side.opened())
        lost = [one for side in sides for one in side.lost(promise)]
        if lost:
            raise Wrong("; ".join(lost))
        agreed = [{public._core.id for public in side.peer.sessions if public.durable} for side in sides]
        totals = {side.name: side.streamer.next + MORE for side in sides}
        gate.set()
        async with trio.open_nursery() as nursery:
            for side in sides:
                nursery.start_soon(side.streams, totals[side.name])
        await quiet(sides, totals)
        for side in sides:
            if not agreed[0] & agreed[1] <= {public._core.id for public in side.peer.sessions}:
                raise Wrong(f"{side.name}: it is another session")
