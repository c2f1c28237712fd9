"""A frame that ends the process each time it comes is not delivered for ever."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio

import durable
from ocapn import E, MemoryNetlayer, MemoryNetwork, Peer, SessionLost, Target, method, open_peer
from ocapn.connection import _TRIES
from tests.durable.support import again
from tests.support import trio_test


class Power(BaseException):
    """The process ends."""


@durable.kind("test.fatal", version=1)
@attrs.define
class Fatal(Target):
    """Ends the process it is in, unless that is told to be careful."""

    calls: int = 0

    @method
    def hit(self) -> int:
        self.calls += 1
        if FATAL:
            FATAL[0]._store.on_commit = crashed  # type: ignore[attr-defined]  # nothing gets to the disk any more
            raise Power
        return self.calls


#: The baggage of the process that ends, if it is to.
FATAL: list[durable.MemoryBaggage] = []


def crashed(changes: object) -> None:
    raise durable.BaggageFailed("the process has ended")


async def asked(network: MemoryNetwork, b: Peer) -> tuple[Any, durable.MemoryBaggage]:
    """What `b` waits for from a process that has ended, and the baggage that it has left."""
    baggage = durable.MemoryBaggage()
    async with open_peer([MemoryNetlayer(network, "a")], baggage=baggage) as a:
        ref = await b.enliven(a.export(baggage.provide("fatal", Fatal)))
        assert await E(ref).hit() == 1
        await trio.sleep(1)
    return E(ref).hit(), baggage


@pytest.mark.parametrize("fatal", [2, _TRIES - 1, _TRIES, _TRIES + 7])
@trio_test
async def test_a_frame_that_ends_the_process(fatal: int) -> None:
    network = MemoryNetwork()
    async with open_peer([MemoryNetlayer(network, "b")]) as b:
        answer, baggage = await asked(network, b)
        ended = 0
        for life in range(fatal):
            baggage = again(baggage)
            FATAL[:] = [baggage]
            try:
                async with open_peer([MemoryNetlayer(network, "a")], baggage=baggage):
                    await trio.sleep(300)
                    ended = ended or life
            except* (Power, durable.BaggageFailed):
                pass
        FATAL.clear()
        baggage = again(baggage)
        async with open_peer([MemoryNetlayer(network, "a")], baggage=baggage):
            if fatal < _TRIES:
                assert await answer == 2
                assert ended == 0
            else:
                assert ended == (_TRIES if fatal > _TRIES else 0)  # that life was not ended by it
                with pytest.raises(SessionLost):
                    await answer
            assert baggage.scan("node", b"trying/") == []


@trio_test
async def test_a_frame_that_was_not_begun_with_is_not_to_blame() -> None:
    """Connections that go away between the count and the frame: found by killing both processes at random."""
    network = MemoryNetwork()
    async with open_peer([MemoryNetlayer(network, "b")]) as b:
        answer, baggage = await asked(network, b)
        for _ in range(10):
            baggage = again(baggage)
            async with open_peer([MemoryNetlayer(network, "a")], baggage=baggage) as a:
                keeper, (core,) = a._node.keeper, a._node.suspended.values()
                assert keeper is not None
                for _ in range(10):
                    assert keeper.tries(core) == 1
                    keeper.spared(core)
        baggage = again(baggage)
        async with open_peer([MemoryNetlayer(network, "a")], baggage=baggage):
            assert await answer == 2
