"""A peer that comes and goes, a session whose time ends and is renewed, and a restart that is looked at.

python -m examples.supervision
"""

from __future__ import annotations

import trio

import durable
import ocapn
from ocapn import E, Lease, MemoryNetlayer, MemoryNetwork, Reconnect


class Clock(ocapn.Target):
    @ocapn.method
    def tick(self, n: int) -> str:
        return f"tick {n}"


class Desk:
    """Whoever may say that a session goes on: a login, a payment, a person."""

    def __init__(self) -> None:
        self.open = trio.Event()

    async def reauthorise(self, session: ocapn.Session, why: str) -> bool:
        await self.open.wait()
        return True


async def clock(network: MemoryNetwork) -> None:
    async with ocapn.open_peer([MemoryNetlayer(network, "clock")]) as peer:
        peer.export(Clock(), b"clock")
        await trio.sleep_forever()


async def main() -> list[str]:
    said: list[str] = []
    network = MemoryNetwork()
    there = ocapn.PeerLocator("memory", "clock")
    store = durable.MemoryStore()
    desk = Desk()

    async def becomes(status: str) -> None:
        """Waits until the connection is so, and says what it was on the way."""
        async for event in events:
            if event.before != event.now.status:  # else an attempt has failed
                said.append(f"{event.before} → {event.now.status}")
            if event.now.status == status:
                return

    async with trio.open_nursery() as nursery:
        async with ocapn.open_peer([MemoryNetlayer(network, "me")], baggage=durable.Baggage(store)) as me:
            policy = Reconnect(base=0.02, jitter=0.0, lease=Lease(life=0.3, on_reauthorise=desk.reauthorise))
            connection = await me.connect(there, policy)
            events = connection.events()
            await trio.sleep(0.01)  # nobody is there yet
            nursery.start_soon(clock, network)
            await becomes("connected")
            ref = await me.enliven(ocapn.SturdyRef(there, b"clock"))
            said.append(await E(ref).tick(1))
            await becomes("expired")
            answer = E(ref).tick(2)
            said.append(f"waiting: {(await connection.session()).waiting}")
            desk.open.set()
            said.append(await answer)
            await becomes("connected")
            network.cut("me", "clock")
            said.append(await E(ref).tick(3))  # as if nothing had been
            await becomes("connected")
        async with ocapn.open_peer(
            [MemoryNetlayer(network, "me")], baggage=durable.Baggage(store.reopened())
        ) as me:
            (restored,) = me.restored
            said.append(f"restored: {restored.peer.uri}")
            difference = await restored.reconcile()
            said.append(f"changed: {[change.what for change in difference.changes]}")
        nursery.cancel_scope.cancel()
    return said


if __name__ == "__main__":
    for line in trio.run(main):
        print(line)
