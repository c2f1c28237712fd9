"""The served half of the benchmark: `python -m tests.bench.server [--pin CPU]` prints a JSON line, then serves."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

import durable
import ocapn
from ocapn.netlayers.base import Netlayer
from ocapn.netlayers.websocket import WebSocketNetlayer
from ocapn.relay import Relay, RelayLimits
from tests.bench.kept import Counter
from tests.bench.large import Maker
from tests.netlayers.tor import fake_tor

#: With room for a million references.
LIMITS: Final = ocapn.Limits(slots=1_200_000)


class Served(ocapn.Target):
    """What the calls go to."""

    def __init__(self) -> None:
        self.count = 0

    @ocapn.method
    def echo(self, *values: object) -> list[object]:
        return list(values)

    @ocapn.method
    def note(self, *values: object) -> None:
        self.count += 1

    @ocapn.method
    def counted(self) -> int:
        count, self.count = self.count, 0
        return count

    @ocapn.method
    def give(self, number: int) -> list[Served]:
        return [Served() for _ in range(number)]

    @ocapn.method
    def me(self) -> Served:
        return self


async def _echo(stream: trio.SocketStream) -> None:
    """The raw baseline: what comes in goes out."""
    try:
        async for data in stream:
            await stream.send_all(data)
    except trio.BrokenResourceError:
        pass  # the client measured what it wanted and left


#: Of `--netlayer`. `cbor` is noise in that codec; `relay` is noise through a relay, and `onion` goes through what
#: stands in for Tor, both in the served process.
NETLAYERS: Final = ("tcp", "noise", "unix", "websocket", "cbor", "relay", "onion")


@asynccontextmanager
async def listening(name: str) -> AsyncIterator[tuple[Netlayer, str | None]]:
    """The netlayer on this machine, and where Tor is for those who dial it."""
    if name == "onion":
        async with fake_tor() as tor:
            yield tor.netlayer(listen=True), tor.socks
        return
    async with trio.open_nursery() as nursery:
        match name:
            case "noise":
                netlayer: Netlayer = ocapn.NoiseNetlayer()
            case "cbor":
                netlayer = ocapn.NoiseNetlayer(codecs=["cbor"])
            case "relay":
                relay = await nursery.start(Relay(limits=RelayLimits(rate=1 << 40)).run)
                netlayer = ocapn.NoiseNetlayer(listen=False, relays=[relay])
            case "unix":
                netlayer = ocapn.UnixNetlayer(Path(tempfile.mkdtemp()) / "socket")
            case "websocket":
                netlayer = WebSocketNetlayer()
            case _:
                netlayer = ocapn.TcpTestingNetlayer()
        yield netlayer, None
        nursery.cancel_scope.cancel()


async def serve(baggage: durable.Baggage | None, served: ocapn.Target, name: str) -> None:
    """Serves until killed."""
    async with (
        listening(name) as (netlayer, socks),
        ocapn.open_peer([netlayer], baggage=baggage, limits=LIMITS) as peer,
        trio.open_nursery() as nursery,
    ):
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        told = {
            "uri": peer.export(served).uri,
            "raw": listener.socket.getsockname()[1],
            "socks": socks,
            "pid": os.getpid(),
        }
        print(json.dumps(told), flush=True)
        nursery.start_soon(trio.serve_listeners, _echo, [listener])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pin", type=int)
    parser.add_argument("--baggage", help="keep a counter in this directory")
    parser.add_argument("--counts", action="store_true", help="serve a counter")
    parser.add_argument("--makes", action="store_true", help="serve a maker of counters")
    parser.add_argument("--netlayer", default="tcp", choices=NETLAYERS)
    given = parser.parse_args()
    if given.pin is not None:
        os.sched_setaffinity(0, {given.pin})
    baggage = None if given.baggage is None else durable.open_baggage(given.baggage)
    served = Maker() if given.makes else Counter() if given.counts else Served()
    trio.run(serve, baggage, served, given.netlayer)


if __name__ == "__main__":
    main()
