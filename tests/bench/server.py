"""The served half of the benchmark: `python -m tests.bench.server [--pin CPU]` prints a JSON line, then serves."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

import trio

import durable
import ocapn
from ocapn.netlayers.base import Netlayer
from tests.bench.kept import Counter
from tests.bench.large import LIMITS, Maker


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
    def me(self) -> Served:
        return self


async def _echo(stream: trio.SocketStream) -> None:
    """The raw baseline: what comes in goes out."""
    try:
        async for data in stream:
            await stream.send_all(data)
    except trio.BrokenResourceError:
        pass  # the client measured what it wanted and left


def listening(transport: str) -> Netlayer:
    """The netlayer of that transport, on this machine."""
    if transport == "noise":
        return ocapn.NoiseNetlayer()
    if transport == "unix":
        return ocapn.UnixNetlayer(Path(tempfile.mkdtemp()) / "socket")
    return ocapn.TcpTestingNetlayer()


async def serve(baggage: durable.Baggage | None, served: ocapn.Target, netlayer: Netlayer) -> None:
    """Serves until killed."""
    async with (
        ocapn.open_peer([netlayer], baggage=baggage, limits=LIMITS) as peer,
        trio.open_nursery() as nursery,
    ):
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        uri = peer.export(served).uri
        print(json.dumps({"uri": uri, "raw": listener.socket.getsockname()[1]}), flush=True)
        nursery.start_soon(trio.serve_listeners, _echo, [listener])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pin", type=int)
    parser.add_argument("--baggage", help="keep a counter in this directory")
    parser.add_argument("--counts", action="store_true", help="serve a counter")
    parser.add_argument("--makes", action="store_true", help="serve a maker of counters")
    parser.add_argument("--netlayer", default="tcp", help="tcp, noise or unix")
    given = parser.parse_args()
    if given.pin is not None:
        os.sched_setaffinity(0, {given.pin})
    baggage = None if given.baggage is None else durable.open_baggage(given.baggage)
    served = Maker() if given.makes else Counter() if given.counts else Served()
    trio.run(serve, baggage, served, listening(given.netlayer))


if __name__ == "__main__":
    main()
