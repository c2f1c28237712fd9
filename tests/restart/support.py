"""Processes that crash: a peer with a baggage in memory, which can end at any commit, and begins again from its disk.

A `Process` is a peer that was opened with a `MemoryBaggage`. Its crash is one instant: from then on its disk takes
nothing, its connections are gone, and it reaches nobody; what still runs of it is cancelled. Then it may be started
again, from what was committed, with Python objects of its own.
"""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol

import attrs
import trio

import durable
import ocapn
from durable.pages import entries
from durable.records import decode
from durable.store import Changes
from ocapn import E, MemoryNetlayer, MemoryNetwork, Peer, open_peer
from ocapn.captp.session import Session
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator
from ocapn.netlayers.base import Channel, Listener, Netlayer
from ocapn.netlayers.memory import _MemoryListener
from ocapn.references import current_node

#: Tells whether to crash at a commit, by its number: "before" it is on disk, "after", or None.
Point = Callable[[int], str | None]


class Disk(durable.MemoryStore):
    """A store that stops taking commits when its process has crashed. `commits` counts them, over all processes."""

    def __init__(self) -> None:
        super().__init__()
        self.dead = False
        self.commits = 0
        self.crash: Callable[[], None] = lambda: None
        self.point: Point = lambda number: None
        #: The rows that were written last, for tests that look at one commit.
        self.last: dict[tuple[str, bytes], bytes | None] = {}

    def commit(self, changes: Changes) -> None:
        if self.dead:
            raise durable.BaggageFailed("the process is dead")
        self.commits += 1
        what = self.point(self.commits)
        if what == "before":
            self.crash()
            raise durable.BaggageFailed("the process died before the commit")
        self.last = dict(changes)
        super().commit(changes)
        if what == "after":
            self.crash()
            raise durable.BaggageFailed("the process died after the commit, before it could say so")

    def reopened(self) -> Disk:
        disk = Disk()
        disk.store_id = self.store_id
        disk._tables = {table: dict(rows) for table, rows in self._tables.items()}
        disk.commits = self.commits
        disk.point = self.point
        return disk


class Plug(Netlayer):
    """A memory netlayer that can be pulled out."""

    transport = "memory"

    def __init__(self, network: MemoryNetwork, designator: str, *, authenticates: bool = False) -> None:
        self.network = network
        self.designator = designator
        self.pulled = False
        self._inner = MemoryNetlayer(network, designator, authenticates=authenticates)
        self.location = self._inner.location
        self._listener: Listener | None = None

    def pull(self) -> None:
        """Everything that goes through it ends at once, and nobody finds it any more."""
        if self.pulled:
            return  # what is there now under this name is another life
        self.pulled = True
        listeners = self.network._listeners
        if listeners.get(self.designator) is self._listener:
            listeners.pop(self.designator, None)
        assert isinstance(self._listener, _MemoryListener | None)
        for link in self.network.links:
            if self.designator in (link.a, link.b):
                link.cut()

    async def listen(self, limits: Limits) -> Listener | None:
        self._listener = await self._inner.listen(limits)
        return self._listener

    async def dial(self, locator: PeerLocator, limits: Limits) -> Channel:
        if self.pulled:
            await trio.lowlevel.checkpoint()
            raise ocapn.ConnectFailed("the process is dead")
        return await self._inner.dial(locator, limits)


Main = Callable[["Process"], Any]


class Process:
    """One peer, over all its lives. `main` is begun in each of them."""

    def __init__(
        self,
        network: MemoryNetwork,
        nursery: trio.Nursery,
        name: str,
        main: Main | None,
        limits: Limits | None,
        authenticates: bool,
    ) -> None:
        self.name = name
        self.disk = Disk()
        self.lives = 0
        self.alive = False
        self.crashed = trio.Event()
        self.failure: BaseException | None = None
        self._network = network
        self._nursery = nursery
        self._main = main
        self._limits = limits
        self._authenticates = authenticates
        self._scope = trio.CancelScope()
        self._leave = trio.Event()
        self.ended = trio.Event()
        self.ended.set()
        self.peer: Peer
        self.baggage: durable.Baggage

    async def start(self, disk: Disk | None = None) -> Process:
        """Begins a life: from the disk as the last one left it, or from another."""
        assert not self.alive
        self.disk = (disk or self.disk).reopened()
        self.disk.crash = self.crash
        self._scope = trio.CancelScope()
        self._leave = trio.Event()
        self.ended = trio.Event()
        self.crashed = trio.Event()
        self.failure = None
        started = trio.Event()
        self._nursery.start_soon(self._live, started)
        await started.wait()
        if self.failure is not None:
            raise self.failure
        return self

    async def _live(self, started: trio.Event) -> None:
        disk, ended = self.disk, self.ended
        plug = self.plug = Plug(self._network, self.name, authenticates=self._authenticates)
        try:
            with self._scope:
                baggage = durable.MemoryBaggage(disk)
                async with open_peer([plug], baggage=baggage, limits=self._limits) as peer:
                    self.peer, self.baggage = peer, baggage
                    self.alive = True
                    self.lives += 1
                    started.set()
                    if self._main is not None:
                        await self._main(self)
                    await self._leave.wait()
                baggage.close()
        except BaseException as error:
            if not disk.dead:
                self.failure = error
                if isinstance(error, (KeyboardInterrupt, trio.Cancelled)):
                    raise
        finally:
            if self.disk is disk:
                self.alive = False
            plug.pull()
            started.set()
            ended.set()

    def crash(self) -> None:
        """The process dies, now."""
        if self.alive:
            self.alive = False
            self.disk.dead = True
            self.plug.pull()
            self._scope.cancel()
            self.crashed.set()

    async def close(self) -> None:
        """The process leaves `open_peer` as it should."""
        self._leave.set()
        await self.ended.wait()
        if self.failure is not None:
            raise self.failure

    async def again(self) -> Process:
        """A crash, and a new life."""
        self.crash()
        return await self.start()

    @property
    def sturdyref(self) -> Callable[[bytes], ocapn.SturdyRef]:
        return lambda swiss: ocapn.SturdyRef(PeerLocator("memory", self.name), swiss)


class World:
    """A network and its processes."""

    def __init__(self, network: MemoryNetwork, nursery: trio.Nursery) -> None:
        self.network = network
        self._nursery = nursery
        self.processes: list[Process] = []

    def process(
        self,
        name: str,
        main: Main | None = None,
        *,
        limits: Limits | None = None,
        authenticates: bool = False,
    ) -> Process:
        """A process that is to be started."""
        process = Process(self.network, self._nursery, name, main, limits, authenticates)
        self.processes.append(process)
        return process

    def keep_up(self, *processes: Process, after: float = 0.05) -> None:
        """Starts the processes again whenever they have crashed."""

        async def watch(process: Process) -> None:
            while True:
                await process.crashed.wait()
                await trio.sleep(after)
                if not process.alive:
                    await process.start()

        for process in processes:
            self._nursery.start_soon(watch, process)

    def soon(self, function: Callable[[], Any]) -> None:
        """Has the function run as a task of no process."""
        self._nursery.start_soon(function)

    async def quiet(self) -> None:
        """Waits until all that is to be told was told, and checks what has to hold then."""
        await balanced(*self.processes)

    def cut(self) -> None:
        for link in self.network.links:
            link.cut()


@asynccontextmanager
async def world(*, delay: float = 0.0, check: bool = True) -> AsyncIterator[World]:
    """A place for processes; when the block is left, those that are alive have to come to rest, balanced."""
    async with trio.open_nursery() as nursery:
        one = World(MemoryNetwork(delay=(lambda a, b: delay) if delay else None), nursery)
        yield one
        if check:
            await one.quiet()
        for process in one.processes:
            process.crash()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def two(**options: Any) -> AsyncIterator[tuple[Process, Process]]:
    """Two started processes, `a` and `b`."""
    async with world(**options) as place:
        yield await place.process("a").start(), await place.process("b").start()


@contextmanager
def inside(process: Process) -> Iterator[None]:
    """The application runs in the context of the process' peer."""
    token = current_node.set(process.peer.node)
    try:
        yield
    finally:
        current_node.reset(token)


# I7: what one side has sent, the other holds


def _held(session: Session) -> dict[int, int]:
    tables = session.tables
    held = {position: slot.count for position, slot in tables.imports.items()}
    for position, twice in tables._resolvers.items():
        held[position] = held.get(position, 0) + twice // 2
    return held


def _given(session: Session) -> dict[int, int]:
    return {position: slot.count for position, slot in session.tables.exports.items()}


class Side(Protocol):
    """What there is to know of a process to compare it with others."""

    name: str
    lives: int
    alive: bool
    peer: Peer


def unbalanced(processes: Iterable[Side]) -> list[str]:
    """What the two sides of each session between living processes disagree about."""
    processes = list(processes)
    cores: dict[bytes, list[tuple[str, Session]]] = {}
    wrong = []
    for process in processes:
        if process.alive:
            for public in process.peer.sessions:
                cores.setdefault(public._core.id, []).append((process.name, public._core))
    for sides in cores.values():
        if len(sides) != 2:
            wrong.append(f"only {sides[0][0]} has its session with {sides[0][1].location.designator}")
            continue
        for (name, one), (other, two) in (sides, sides[::-1]):
            if not one.attached:
                wrong.append(f"{name} is not connected to {other}")
            if _given(one) != _held(two):
                wrong.append(f"{name} exports {_given(one)}, {other} imports {_held(two)}")
            if two.tables.answers.keys() != one.tables.questions.keys():
                wrong.append(
                    f"{name} asks {sorted(one.tables.questions)}, {other} answers {sorted(two.tables.answers)}"
                )
            if one.frames is not None and two.frames is not None and one.frames.sent != two.frames.taken:
                wrong.append(f"{name} sent {one.frames.sent} frames, {other} has {two.frames.taken}")
    return wrong


async def balanced(*processes: Process, within: float = 300.0) -> None:
    """Waits until both sides of every session agree on all that is held; says what they do not agree on."""
    deadline = trio.current_time() + within
    step = 0.06
    alive = [process for process in processes if process.alive]
    while True:
        gc.collect(0)
        await trio.sleep(step)
        step = min(2 * step, 20.0)
        wrong = unbalanced(alive)
        if not wrong:
            break
        if trio.current_time() > deadline:
            raise AssertionError("; ".join(wrong))
    for process in alive:
        process.peer.check()
        await on_disk(process)


async def on_disk(process: Process) -> None:
    """What the process has in memory is what it would find on its disk."""
    copy = process.disk.reopened()
    copy.point = lambda number: None
    sessions = {one._core.id: one._core for one in process.peer.sessions if one.durable}
    before = dict(copy._tables["slot"])
    async with open_peer([Plug(MemoryNetwork(), process.name)], baggage=durable.MemoryBaggage(copy)) as peer:
        for public in peer.sessions:
            core = public._core
            real = sessions[core.id]
            assert _given(core) == _given(real), f"on disk {_given(core)}, in memory {_given(real)}"
            assert core.tables.next_export == real.tables.next_export
            assert core.tables.next_question == real.tables.next_question
    real_slots = {(core.id, b"e", position) for core in sessions.values() for position in core.tables.exports}
    real_slots |= {
        (core.id, b"i", position) for core in sessions.values() for position in core.tables.imports
    }
    real_slots |= {
        (core.id, b"r", position) for core in sessions.values() for position in core.tables._resolvers
    }
    assert slots_in(before) == real_slots, "slots on disk are not those in memory"


def slots_in(rows: Mapping[bytes, bytes]) -> set[tuple[bytes, bytes, int]]:
    """The slots that rows of `slot` or `answer` tell of, on their own or in pages: session, letter, position."""
    found = set()
    for key, data in rows.items():
        number = int.from_bytes(key[33:], "big")
        paged = key[32:33].isupper()
        positions = list(entries(number, decode(data))) if paged else [number]
        for position in positions:
            slot = (key[:32], key[32:33].lower(), position)
            assert slot not in found, "a slot has a row of its own and is in a page"
            found.add(slot)
    return found


# Durable objects


@durable.kind("restart.ledger", version=1)
@attrs.define(eq=False)
class Ledger(ocapn.Target):
    """Writes down what comes, and holds one thing."""

    seen: tuple[int, ...] = ()
    held: object = None

    @ocapn.method
    def note(self, number: int) -> int:
        self.seen = (*self.seen, number)
        return len(self.seen)

    @ocapn.method
    def fail(self, number: int) -> None:
        self.seen = (*self.seen, number)
        raise ValueError(f"no more after {number}")

    @ocapn.method
    async def later(self, number: int) -> int:
        self.seen = (*self.seen, number)
        await trio.lowlevel.checkpoint()
        return number

    @ocapn.method
    async def never(self, number: int) -> None:
        self.seen = (*self.seen, number)
        await trio.sleep_forever()

    @ocapn.method
    def hold(self, thing: object) -> None:
        self.held = thing

    @ocapn.method
    async def hold_later(self, promise: Any) -> None:
        self.held = await promise

    @ocapn.method
    async def pause(self) -> None:
        await trio.sleep(0.01)

    @ocapn.method
    def swap(self, thing: object) -> object:
        return thing

    @ocapn.method
    def hold_and_note(self, number: int, thing: object) -> None:
        self.seen = (*self.seen, number)

    @ocapn.method
    def drop(self) -> None:
        self.held = None

    @ocapn.method
    def give(self) -> object:
        return self.held

    @ocapn.method
    def whole(self) -> object:
        return list(self.seen)


@durable.kind("restart.streamer", version=1)
@attrs.define(eq=False)
class Streamer(ocapn.Target):
    """What it sends to, and the next number."""

    to: object = None
    next: int = 0
    answered: int = 0
    broken: int = 0


@durable.kind("restart.relay", version=1)
@attrs.define(eq=False)
class Relay(ocapn.Target):
    """Passes on, and writes down what it is told."""

    to: object = None
    #: What it was asked for, and with which number.
    asked: tuple[tuple[str, int], ...] = ()
    seen: tuple[int, ...] = ()
    told: tuple[object, ...] = ()
    failed: tuple[str, ...] = ()

    @ocapn.method
    def note(self, number: int) -> int:
        self.seen = (*self.seen, number)
        return 10 * number

    @ocapn.method
    def hold(self, thing: object) -> None:
        self.to = thing

    @ocapn.method
    def give(self) -> object:
        return self.to

    @ocapn.method
    def self_(self) -> object:
        return self

    @ocapn.method
    def pass_on(self, number: int) -> object:
        return E(self.to).note(number)

    @ocapn.method
    def pass_behind(self, number: int) -> object:
        """The answer waits for a turn that waits."""
        ocapn.send_only(self.to).pause()
        return E(self.to).note(number)

    @ocapn.method
    def far(self) -> object:
        """What the far one holds."""
        return E(self.to).give()

    @ocapn.method
    def listed(self, number: int) -> object:
        return {"of": [E(self.to).note(number)]}

    @ocapn.method
    def watch(self, promise: object) -> None:
        durable.when(promise, self, "tell", "fail")

    @ocapn.method
    async def pause(self) -> None:
        await trio.lowlevel.checkpoint()

    def then(self, value: object) -> None:
        ocapn.send_only(value).note(99)

    def tell(self, value: object) -> None:
        self.told = (*self.told, value)

    def fail(self, error: Exception) -> None:
        self.failed = (*self.failed, str(error))


class Echo(ocapn.Target):
    """Ends with its process."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    @ocapn.method
    def note(self, number: int) -> int:
        self.seen.append(number)
        return number

    @ocapn.method
    def echo(self, thing: object) -> object:
        return thing


async def agreed(*processes: Process) -> None:
    """Waits until every session of the processes is durable, on disk too."""
    with trio.fail_after(60):
        while not all(one.durable for process in processes for one in process.peer.sessions):  # noqa: ASYNC110
            await trio.sleep(0.01)
    await trio.sleep(0.1)


async def linked(a: Process, b: Process) -> Any:
    """What `a` holds of the ledger of `b`, over a durable session. Both are kept, under "ledger" and "far"."""
    ledger = b.baggage.provide("ledger", Ledger)
    ref = await a.peer.enliven(b.peer.export(ledger, b"ledger"))
    await agreed(a, b)
    holder = a.baggage.provide("holder", Ledger)
    holder.held = ref
    await a.peer.settled()
    return ref


def relay(process: Process) -> Relay:
    found: Relay = process.baggage["relay"]
    return found


def watch(process: Process, promise: Any) -> None:
    """Has the relay of the process told what the promise becomes."""
    durable.when(promise, relay(process), "tell", "fail")


async def related(one: Process, other: Process, key: str = "relay") -> Any:
    """What `one` holds of the relay of `other`."""
    target = other.baggage.provide(key, Relay)
    return await one.peer.enliven(other.peer.export(target, key.encode()))
