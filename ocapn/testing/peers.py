"""Peers in one process, for tests of applications."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import trio.testing

from ocapn.leases import Lease
from ocapn.limits import Limits
from ocapn.netlayers.memory import MemoryNetlayer, MemoryNetwork
from ocapn.opening import open_peer
from ocapn.peer import Peer, Policy


@asynccontextmanager
async def linked_peers(
    *names: str,
    network: MemoryNetwork | None = None,
    limits: Limits | None = None,
    dialect: str | None = None,
    durable: Policy = "offer",
    lease: Lease | None = None,
) -> AsyncIterator[list[Peer]]:
    """Peers in one process over a `MemoryNetwork`, one for each designator in `names`."""
    network = network or MemoryNetwork()
    async with AsyncExitStack() as stack:
        peers = []
        for name in names:
            netlayer = MemoryNetlayer(network, name)
            peers.append(
                await stack.enter_async_context(
                    open_peer([netlayer], limits=limits, dialect=dialect, durable=durable, lease=lease)
                )
            )
        yield peers


async def quiet(*peers: Peer) -> None:
    """Waits until nothing moves any more, garbage included, and checks the peers' invariants."""
    for _ in range(3):  # a release can free what held another reference
        gc.collect()
        await trio.sleep(0.05)  # garbage is told of in batches, a little later
        await trio.testing.wait_all_tasks_blocked()
    for peer in peers:
        peer.check()
