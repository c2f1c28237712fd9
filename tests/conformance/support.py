"""The peer under test in this process, and places to talk to it from, over real TCP sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import ocapn

from .client import Client, Place
from .peer import export_all

SUBJECT = "under-test"


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
    async with ocapn.open_peer([netlayer], limits=limits, dialect=dialect) as peer:
        export_all(peer)
        found = World(peer)
        try:
            yield found
            peer.check()
        finally:
            for place in found.places:
                await place.close()
