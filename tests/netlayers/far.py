"""A process in a network of its own: `python -m tests.netlayers.far serve HOST` or `send URI COUNT`.

What serves prints its URI, and at the end of its standard input what it was told. What sends prints a line when the
first number has arrived, whenever the session is cut or goes on, and when the last number has arrived.
"""

from __future__ import annotations

import json
import os
import sys

import trio

from ocapn import E, NoiseNetlayer, Reconnect, Session, SturdyRef, open_peer, send_only
from tests.peer.support import Recorder


async def serve(host: str) -> None:
    async with open_peer([NoiseNetlayer(host)]) as peer, trio.lowlevel.FdStream(os.dup(0)) as stdin:
        recorder = Recorder()
        print(peer.export(recorder).uri, flush=True)
        async for _ in stdin:
            pass
        print(json.dumps(recorder.seen), flush=True)


async def send(uri: str, count: int) -> None:
    sturdyref = SturdyRef.parse(uri)

    async def watch(session: Session) -> None:
        async with session.events() as events:
            async for event in events:
                print(event.status, flush=True)

    async with open_peer([NoiseNetlayer(listen=False)]) as peer, trio.open_nursery() as nursery:
        policy = Reconnect(keepalive=1.0, base=0.1, factor=1.0)
        connection = await peer.connect(sturdyref.peer, policy)
        ref = await peer.enliven(sturdyref)
        session = await connection.session()
        nursery.start_soon(watch, session)
        await E(ref).note(0)
        print("begun", flush=True)
        for number in range(1, count):
            send_only(ref).note(number)
            await trio.sleep(0.02)
        await E(ref).note(count)
        print(json.dumps({"same": await connection.session() is session}), flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        trio.run(serve, sys.argv[2])
    else:
        trio.run(send, sys.argv[2], int(sys.argv[3]))
