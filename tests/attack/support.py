"""A peer under attack, a well-behaved peer that talks to it all the while, and attackers that speak by hand.

Attackers are those of the conformance tests: they share no code with `ocapn`, and send whatever a test wants.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import trio

import ocapn
from ocapn import E, Limits, Promise, Resolver, Target, method
from ocapn.references import current_node
from tests.conformance.client import Client, Place
from tests.conformance.encoding import BOOTSTRAP, Rec, Sym, answer, encode

SWISS: Final = b"the swiss number of the victim, a secret"
#: Seconds until a wait counts as failed.
PATIENCE: Final = 10.0


class Victim(Target):
    """What everybody calls. It counts what it is told, by who tells it."""

    def __init__(self) -> None:
        self.heard: dict[str, list[int]] = {}
        self.changed = trio.Event()
        self.running = 0
        self.things: list[Any] = []
        self.promises: list[tuple[Promise, Resolver]] = []

    @method
    def note(self, who: str, number: int) -> None:
        self.heard.setdefault(who, []).append(number)
        self.changed.set()
        self.changed = trio.Event()

    @method
    def echo(self, *values: object) -> list[object]:
        return list(values)

    @method
    def drop(self, *values: object) -> None:
        """Takes anything, and keeps nothing."""

    @method
    def keep(self, *values: object) -> None:
        """Keeps what it is given."""
        self.things.extend(values)

    @method
    def kept(self) -> object:
        """The last thing that it was given to keep."""
        return self.things[-1]

    @method
    def call_back(self, target: object) -> None:
        """Asks `target` something, and wants the answer."""
        self.things.append(E(target).question())

    @method
    def me(self) -> Victim:
        return self

    @method
    def fresh(self) -> Target:
        """An object that was not there before."""
        return Victim()

    @method
    def promise(self) -> Promise:
        """A promise that a test resolves, or nobody."""
        promise, resolver = ocapn.make_promise()
        self.promises.append((promise, resolver))
        return promise

    @method
    def pair(self) -> list[object]:
        """A promise and its resolver."""
        return list(ocapn.make_promise())

    @method
    async def hang(self, *values: object) -> None:
        """Never ends."""
        self.running += 1
        try:
            await trio.sleep_forever()
        finally:
            self.running -= 1

    async def until_heard(self, who: str, count: int) -> None:
        """Waits until `who` was heard so often."""
        with trio.fail_after(PATIENCE):
            while len(self.heard.get(who, ())) < count:
                await self.changed.wait()


class Friend:
    """A well-behaved peer with a session of its own. What it tells the victim must arrive, all and in order."""

    def __init__(self, peer: ocapn.Peer, ref: Any, name: str) -> None:
        self.peer = peer
        self.ref = ref
        self.name = name
        (self.session,) = peer.sessions
        self._told = 0
        self._answers: list[Promise] = []

    def tell(self, times: int = 5) -> None:
        """Sends so many messages, and does not wait."""
        for _ in range(times):
            self._answers.append(E(self.ref).note(self.name, self._told))
            self._told += 1

    async def served(self, times: int = 1) -> None:
        """Sends a message, waits for its answer, and again."""
        with trio.fail_after(PATIENCE):
            for _ in range(times):
                self.tell(1)
                await self._answers[-1]

    async def check(self, victim: Victim) -> None:
        """The session lives, every message was answered, and the victim heard each once and in order."""
        await self.served()
        with trio.fail_after(PATIENCE):
            for promise in self._answers:
                await promise
        assert self.session.ended is None
        assert self.peer.sessions == [self.session]
        assert victim.heard[self.name] == list(range(self._told))


class Scene:
    """The peer under attack, its victim, a friend, and places for attackers."""

    def __init__(self, peer: ocapn.Peer, victim: Victim, friend: Friend, stack: AsyncExitStack) -> None:
        self.peer = peer
        self.victim = victim
        self.friend = friend
        self.uri = peer.locator().uri
        self._stack = stack
        self._places = 0

    async def place(self, designator: str | None = None) -> Place:
        """Where an attacker says it is."""
        self._places += 1
        place = await Place.open(designator or f"attacker-{self._places}")
        self._stack.push_async_callback(place.close)
        return place

    async def connect(self, designator: str | None = None) -> Client:
        """A connection on which nothing was sent."""
        return await (await self.place(designator)).connect(self.uri)

    async def attacker(self, designator: str | None = None) -> Client:
        """A session of an attacker, which has asked for the victim as answer 1."""
        client = await self.connect(designator)
        await client.shake_hands()
        await client.send(ask(1))
        return client

    def make_promise(self) -> tuple[Promise, Resolver]:
        """A promise of the peer under attack: the test's own are those of the friend."""
        token = current_node.set(self.peer._node)
        try:
            return ocapn.make_promise()
        finally:
            current_node.reset(token)

    def session(self, client: Client) -> ocapn.Session:
        """The session with an attacker, as the peer under attack has it."""
        (found,) = [one for one in self.peer.sessions if one.location.designator == client.place.designator]
        return found


#: The victim, to an attacker of whom `Scene.attacker` has asked for it.
VICTIM: Final = answer(1)


def ask(position: int) -> Rec:
    """Asks for the victim as an answer."""
    return Rec("op:deliver", BOOTSTRAP, [Sym("fetch"), SWISS], position, False)


def call(name: str, *args: Any, to: Rec = VICTIM, position: int | bool = False, resolver: Any = False) -> Rec:
    """A message to the victim."""
    return Rec("op:deliver", to, [Sym(name), *args], position, resolver)


def frame(*messages: bytes | Rec) -> bytes:
    """Messages in frames."""
    whole = [message if isinstance(message, bytes) else encode(message) for message in messages]
    return b"".join(b"%d:%b" % (len(message), message) for message in whole)


@asynccontextmanager
async def scene(limits: Limits | None = None) -> AsyncIterator[Scene]:
    """A peer on loopback TCP. At the end, the friend must have been served all along, and the invariants hold."""
    netlayer = ocapn.TcpTestingNetlayer(designator="victim")
    async with ocapn.open_peer([netlayer], limits=limits) as peer:
        victim = Victim()
        sturdyref = peer.export(victim, SWISS)
        async with friend(sturdyref, "friend") as one, AsyncExitStack() as stack:
            await one.served(2)
            yield Scene(peer, victim, one, stack)
            await one.check(victim)
            peer.check()


@asynccontextmanager
async def friend(sturdyref: ocapn.SturdyRef, name: str) -> AsyncIterator[Friend]:
    """A well-behaved peer with a reference to the victim."""
    netlayer = ocapn.TcpTestingNetlayer(listen=False, designator=name)
    async with ocapn.open_peer([netlayer]) as peer:
        yield Friend(peer, await peer.enliven(sturdyref), name)


async def attack(data: bytes, reason: str, *, limits: Limits | None = None, notes: int = 3) -> None:
    """In a live session, valid messages and then `data` arrive in one piece: the session ends with that reason,
    the valid messages are processed, and the friend does not notice."""
    async with scene(limits) as here:
        client = await here.attacker()
        here.friend.tell()
        valid = [call("note", "attacker", number) for number in range(notes)]
        await client.send_unframed(frame(*valid) + data)
        here.friend.tell()
        await aborted(client, reason)
        assert here.victim.heard.get("attacker", []) == list(range(notes))
        assert [one.location.designator for one in here.peer.sessions] == ["friend"]


async def aborted(client: Client, reason: str) -> str:
    """The session, or the connection, ends with op:abort, and the reason, which is returned, has `reason` in it."""
    while (operation := await client.receive()).label != "op:abort":
        pass
    await client.ends()
    told = operation.fields[0]
    assert isinstance(told, str)
    assert reason in told, told
    return told
