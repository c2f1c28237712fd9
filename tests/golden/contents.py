"""What stands in a golden store: written once by each version, read by all later ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import attrs
import trio
import trio.testing

import durable
import ocapn
from ocapn import E, MemoryNetlayer, MemoryNetwork, Null, PeerLocator, SturdyRef, Symbol, send_only

#: The wall clock when golden stores are written and read: sessions last a day without their peer.
MADE = 1_795_900_000.0
FILES = ("header.cbor", "state.db")


def key_file(place: Path) -> durable.KeyFile:
    """It is made in `place`: one that git has checked out may be read by others, and opens nothing."""
    file = place / "key"
    file.touch(mode=0o600)
    file.write_bytes(bytes(range(32, 64)))
    return durable.KeyFile(file)


#: By their names, how they are sealed, given a directory for what that takes: the keys are no secrets.
SEALS: dict[str, Callable[[Path], durable.Seal | None]] = {
    "plain": lambda place: None,
    "passphrase": lambda place: durable.Passphrase("golden", opslimit=1, memlimit=8 << 20),
    "key-file": key_file,
    "caller": lambda place: lambda store_id: bytes(range(32)),
}
PLAIN: dict[str, Any] = {
    "text": "é\0",
    "bytes": b"\x00\xff",
    "numbers": [0, -1, 2**70, 1.5],
    "nested": {"a": [None, True, {"b": b""}]},
}


@durable.kind("golden.counter", version=1)
@attrs.define(eq=False)
class Counter(ocapn.Target):
    """Holds what can be held."""

    value: int = 0
    held: object = None
    far: object = None

    @ocapn.method
    def add(self, n: int) -> int:
        self.value += n
        return self.value

    @ocapn.method
    async def never(self) -> None:
        await trio.sleep_forever()


def write(path: Path, seal: durable.Seal | None) -> None:
    """Makes the store, and leaves it as a process that was closed does."""

    async def main() -> None:
        network = MemoryNetwork()
        with durable.open_baggage(path, seal=seal) as baggage:
            baggage.blocks = False
            async with (
                ocapn.open_peer([MemoryNetlayer(network, "far", authenticates=True)]) as far,
                ocapn.open_peer(
                    [MemoryNetlayer(network, "golden", authenticates=True)], baggage=baggage
                ) as peer,
            ):
                far.export(Counter(), b"far counter")
                for key, value in PLAIN.items():
                    baggage[key] = value
                    baggage.namespace("space")[key] = value
                counter = baggage.provide("counter", Counter)
                counter.value = 7
                counter.held = (
                    Symbol("s"),
                    (1, Null),
                    SturdyRef(PeerLocator("unix", "p"), b"x"),
                )
                peer.export(counter, b"counter")
                ref = await peer.enliven(SturdyRef(far.locator(), b"far counter"))
                counter.far = ref
                await E(ref).add(1)
                with trio.fail_after(60):
                    while not all(one.durable for one in peer.sessions):  # noqa: ASYNC110 - nobody tells
                        await trio.sleep(0.1)
                durable.when(E(ref).never(), counter, "add", None)
                await peer.settled()
                await trio.sleep(1.0)
                for link in network.links:
                    link.hold()
                send_only(ref).add(2)
                await peer.settled()
                peer._closing = True  # the other is not told that it goes

    with mock.patch.object(time, "time", return_value=MADE):
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def check(path: Path, seal: durable.Seal | None) -> None:
    """Reads a golden store, whichever version wrote it. Raises AssertionError."""

    async def main() -> None:
        with durable.open_baggage(path, seal=seal) as baggage:
            baggage.blocks = False
            baggage.verify()
            assert {key: baggage[key] for key in PLAIN} == PLAIN
            assert {key: baggage.namespace("space")[key] for key in PLAIN} == PLAIN
            network = MemoryNetwork()
            netlayer = MemoryNetlayer(network, "drawn", authenticates=True)
            async with ocapn.open_peer([netlayer], baggage=baggage) as peer:
                counter = baggage["counter"]
                assert counter.value == 7
                symbol, pair, sturdyref = counter.held
                assert symbol is Symbol("s")
                assert pair == (1, Null)
                assert sturdyref == SturdyRef(PeerLocator("unix", "p"), b"x")
                (restored,) = peer.restored
                assert restored.peer == PeerLocator("memory", "far")
                assert restored.outbox >= 1
                assert isinstance(counter.far, ocapn.Ref)
                assert peer.node.swiss[b"counter"] is counter
                assert list(peer.set_aside) == []
                assert restored.session.stats()["questions"] == 1
                peer.check()

    with mock.patch.object(time, "time", return_value=MADE + 60.0):
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
