"""A chat room whose members are on three peers.

The room is on one peer. Members introduce themselves to it and get to know each other there: when Bob asks who is
present, he receives a reference to Carol that comes from her own peer (a handoff). What Bob whispers to Carol goes from
his peer to hers; the room's peer does not see it.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

import trio

import ocapn
from ocapn import E


class Member(ocapn.Target):
    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self._log = log

    @ocapn.method
    def hear(self, sender: str, text: str) -> None:
        self._log.append(f"{self.name} hears {sender}: {text}")


class Room(ocapn.Target):
    """Holds references to members, wherever they are."""

    def __init__(self) -> None:
        self._members: dict[str, object] = {}

    @ocapn.method
    def join(self, name: str, member: object) -> None:
        if name in self._members:
            raise NameTaken(f"{name} is here already")
        self._members[name] = member

    @ocapn.method
    def say(self, name: str, text: str) -> None:
        for other, member in self._members.items():
            if other != name:
                ocapn.send_only(member).hear(name, text)

    @ocapn.method
    def present(self) -> dict[str, object]:
        return dict(self._members)


class NameTaken(ocapn.PassableError):
    """Its name may cross the wire, so that the other side can tell it from other errors."""


async def main() -> list[str]:
    log: list[str] = []
    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(ocapn.open_peer([ocapn.NoiseNetlayer()])) for _ in range(3)]
        hall, bobs, carols = peers
        uri = hall.export(Room()).uri

        room_at_bobs, room_at_carols = await bobs.enliven(uri), await carols.enliven(uri)
        await E(room_at_bobs).join("Bob", Member("Bob", log))
        await E(room_at_carols).join("Carol", Member("Carol", log))
        try:
            await E(room_at_carols).join("Bob", Member("an impostor", log))
        except ocapn.RemoteError as error:
            log.append(f"refused: {error}")

        await E(room_at_bobs).say("Bob", "hello, all")

        members = await E(room_at_bobs).present()
        carol = await members["Carol"]  # a promise until her peer has handed her over
        await E(carol).hear("Bob", "a word between us")
        via = {session.location for session in bobs.sessions}
        log.append(f"Bob's peer has a session with Carol's: {carols.locator() in via}")
    return log


if __name__ == "__main__":
    print("\n".join(trio.run(main)))
