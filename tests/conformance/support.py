"""The peer under test in this process, places to talk to it from over real TCP sockets, and frequent requests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import ocapn

from .client import Client, Place
from .encoding import Rec, Sym, answer, export, obj, own
from .peer import ECHO, PROMISE_RESOLVER, export_all

#: Designator of the peer under test.
SUBJECT = "under-test"
#: The arguments of a message to the bootstrap object that is always answered, and always with an error.
FETCH_NONE = [Sym("fetch"), b"no object has this"]


class World:
    """The peer under test, `peer`, and the places that talk to it."""

    def __init__(self, peer: ocapn.Peer) -> None:
        self.peer = peer
        self.uri = peer.locator().uri
        self.places: list[Place] = []

    async def place(self, designator: str, **hints: str) -> Place:
        place = await Place.open(designator, **hints)
        self.places.append(place)
        return place

    async def session(
        self, designator: str = "client", framing: str = "syrup", *, text_order: bool = False
    ) -> Client:
        """A session from a new place."""
        return await (await self.place(designator)).session(self.uri, framing, text_order=text_order)


@asynccontextmanager
async def world(
    *, dialect: str | None = None, framing: str = "syrup", limits: ocapn.Limits | None = None
) -> AsyncIterator[World]:
    """Opens the peer under test with the objects of the suite; at the end its invariants are checked."""
    netlayer = ocapn.TcpTestingNetlayer(designator=SUBJECT, framing=framing)
    async with ocapn.open_peer([netlayer], limits=limits, dialect=dialect, durable="never") as peer:
        export_all(peer)
        found = World(peer)
        try:
            yield found
            peer.check()
        finally:
            for place in found.places:
                await place.close()


async def alive(client: Client) -> bool:
    """Whether the session works."""
    reply = await client.call(await client.fetch(ECHO), "alive")
    return bool(reply == ["alive"])


async def pair_of(client: Client) -> tuple[Rec, Rec]:
    """A promise of the peer, and its resolver."""
    vow, resolver = await client.call(await client.fetch(PROMISE_RESOLVER))
    assert (vow.label, resolver.label) == ("desc:import-promise", "desc:import-object")
    return own(vow), own(resolver)


async def part_of(client: Client, operation: str, to: Rec, key: object) -> Rec:
    """Asks for a part (op:get, op:index, op:untag) and listens on it; returns the resolver that will be told."""
    position = client.answer_position()
    await client.send(Rec(operation, to, key, position))
    return await client.listen(answer(position))


async def asked_of(found: World, ask: Callable[[object], object]) -> tuple[Client, Rec, Client, Rec]:
    """`ask` is called with an object of one session, as often as a caller that is exported is called in another.

    Returns the first session and how the peer addresses the object, the second and how it addresses the caller.
    """
    client, other = await found.session("client"), await found.session("other")
    held: list[object] = []

    @ocapn.target
    def keep(value: object) -> None:
        held.append(value)

    @ocapn.target
    def call() -> object:
        return ask(held[0])

    found.peer.export(keep, b"keep")
    found.peer.export(call, b"call")
    mine = client.position()
    await client.call(await client.fetch(b"keep"), obj(mine))
    return client, export(mine), other, await other.fetch(b"call")
