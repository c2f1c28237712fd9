"""One of the two processes: `python -m tests.kills.node OWN OTHER TOTAL`, the first two being directories.

It keeps a counter that the other streams numbers to, and streams to the other's. Each number that arrives is written
into a ledger in the same turn. Prints a line when it has sent and received all.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import attrs
import trio

import durable
import ocapn


@durable.kind("test.counter", version=1)
@attrs.define
class Counter(ocapn.Target):
    """Expects the numbers from 0 on, in order, each once."""

    value: int = 0
    wrong: tuple[int, ...] = ()

    @ocapn.method
    def hit(self, number: int) -> int:
        if number != self.value:
            self.wrong = (*self.wrong, number)
        ledger = BAGGAGE[0].namespace("ledger")
        key = f"{number:08}"
        ledger[key] = ledger.get(key, 0) + 1
        self.value += 1
        return self.value


@durable.kind("test.streamer", version=1)
@attrs.define
class Streamer(ocapn.Target):
    """What it sends to, and the next number."""

    to: object = None
    next: int = 0


BAGGAGE: list[durable.Baggage] = []


def netlayer(directory: Path) -> ocapn.UnixNetlayer:
    return ocapn.UnixNetlayer(directory.with_suffix(".socket"), designator=directory.name)


async def run(own: Path, other: Path, total: int) -> None:
    with durable.open_baggage(own) as baggage:
        BAGGAGE.append(baggage)
        async with ocapn.open_peer([netlayer(own)], baggage=baggage) as peer:
            counter: Counter = baggage.provide("counter", Counter)
            streamer: Streamer = baggage.provide("streamer", Streamer)
            peer.export(counter, b"counter")
            while streamer.to is None:
                try:
                    there = ocapn.SturdyRef(netlayer(other).location, b"counter")
                    streamer.to = await peer.enliven(there)
                except (ocapn.ConnectFailed, ocapn.RemoteError):
                    await trio.sleep(0.02)
            while streamer.next < total:
                try:
                    ocapn.send_only(streamer.to).hit(streamer.next)
                except ocapn.Backpressure:
                    await trio.sleep(0.01)
                else:
                    streamer.next += 1
                    if streamer.next % 7 == 0:
                        await trio.sleep(0.001)
            while counter.value < total:  # noqa: ASYNC110 - the other process does it
                await trio.sleep(0.01)
            print("done", flush=True)
            await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(message)s")
    trio.run(run, Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
