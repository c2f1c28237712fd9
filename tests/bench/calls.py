"""What is called again and again, and how."""

from __future__ import annotations

from functools import partial

import trio

import ocapn
from ocapn import E, send_only
from tests.bench.figures import rate, thousands

RAW_MESSAGE = bytes(150)

#: Arguments of about 150 bytes.
SMALL: list[object] = [
    "alice",
    "bob",
    42,
    {"memo": "thanks for the lunch", "currency": "EUR"},
    True,
    bytes(16),
]


async def sequential(ref: ocapn.Ref, count: int) -> None:
    """One call after another."""
    for _ in range(count):
        await E(ref).echo(*SMALL)


async def outstanding(ref: ocapn.Ref, count: int) -> None:
    """1,000 calls at once."""
    for _ in range(count // 1000):
        promises = [E(ref).echo(*SMALL) for _ in range(1000)]
        for promise in promises:
            await promise


async def sessions(peer: ocapn.Peer, sturdyref: ocapn.SturdyRef, count: int) -> None:
    """Connect, handshake, first call."""
    for _ in range(count):
        await peer.enliven(sturdyref)
        peer.sessions[0].end("measured")


class Calls:
    """The benchmarks over a connection; `raw` is one to the echo that is the baseline."""

    def __init__(self, ref: ocapn.Ref, raw: trio.SocketStream | None, scale: float) -> None:
        self.ref = ref
        self.raw = raw
        self.scale = scale

    async def raw_echo(self) -> float:
        raw = self.raw
        assert raw is not None

        async def work(count: int) -> None:
            for _ in range(count):
                await raw.send_all(RAW_MESSAGE)
                left = len(RAW_MESSAGE)
                while left:
                    left -= len(await raw.receive_some())

        return await rate(int(3000 * self.scale), work)

    async def sequential(self) -> float:
        return await rate(int(2000 * self.scale), partial(sequential, self.ref))

    async def outstanding_1000(self) -> float:
        return await rate(thousands(10_000 * self.scale), partial(outstanding, self.ref))

    async def one_way(self) -> float:
        session = self.ref._import.session

        async def work(count: int) -> None:
            for i in range(count):
                send_only(self.ref).note(*SMALL)
                if i % 1000 == 999:  # let the writer run, as a program that has other tasks does
                    await trio.lowlevel.checkpoint()
                    while session.outbox.frames > 5000 or session.stats()["frames_kept"] > 8000:
                        await trio.lowlevel.checkpoint()
            got = await E(self.ref).counted()
            if got != count:
                raise AssertionError(f"{count} messages were sent, and {got} arrived")

        return await rate(int(30_000 * self.scale), work)

    async def chain_100(self) -> float:
        async def work(count: int) -> None:
            for _ in range(count // 100):
                promise = E(self.ref).me()
                for _ in range(99):
                    promise = promise.me()
                await promise

        return await rate(max(100, int(10_000 * self.scale) // 100 * 100), work)
