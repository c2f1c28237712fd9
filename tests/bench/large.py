"""The benchmarks of a baggage that holds much, and of a session that goes on."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import attrs
import trio

import durable
import ocapn
from ocapn import E
from tests.bench import kept
from tests.bench.figures import Figure, pair, rate, server

SLOTS = 100_000
FEW = 100
#: With room for the calls that are measured.
LIMITS = ocapn.Limits(slots=SLOTS + 50_000)


@durable.kind("bench.maker", version=1)
@attrs.define
class Maker(ocapn.Target):
    """Gives new durable objects away."""

    made: int = 0

    @ocapn.method
    def make(self, number: int) -> list[ocapn.Target]:
        self.made += number
        return [kept.Counter(one) for one in range(number)]

    @ocapn.method
    def add(self, number: int) -> int:
        self.made += number
        return self.made


async def _fill(uri: str, peer: ocapn.Peer, slots: int) -> tuple[ocapn.Ref, list[object]]:
    """A reference to a Maker, and so many to what it has made."""
    ref = await peer.enliven(uri)
    while not peer.sessions[0].durable:  # noqa: ASYNC110
        await trio.sleep(0.01)
    held: list[object] = []
    while len(held) < slots:
        held += await E(ref).make(min(1000, slots - len(held)))
    return ref, held


async def turns(few_uri: str, many_uri: str, scale: float) -> Figure:
    """Calls to a peer with a baggage that holds many slots, against one with few."""
    async with (
        ocapn.open_peer([ocapn.TcpTestingNetlayer(listen=False)], limits=LIMITS) as one,
        ocapn.open_peer([ocapn.TcpTestingNetlayer(listen=False)], limits=LIMITS) as other,
    ):
        few, held_few = await _fill(few_uri, one, FEW)
        many, held_many = await _fill(many_uri, other, int(SLOTS * scale))
        assert held_few
        assert held_many
        count = max(1000, int(5000 * scale) // 1000 * 1000)
        return await pair(
            lambda: rate(count, lambda n: kept.outstanding(many, n)),
            lambda: rate(count, lambda n: kept.outstanding(few, n)),
        )


async def opening(place: Path, scale: float) -> Figure:
    """How often a second a baggage with many slots is opened, and a peer with it; against once a second."""
    slots = int(SLOTS * scale)
    served = ocapn.TcpTestingNetlayer(designator="many")
    async with ocapn.open_peer([ocapn.TcpTestingNetlayer(listen=False)], limits=LIMITS) as holder:
        with durable.open_baggage(place) as baggage:
            async with ocapn.open_peer([served], baggage=baggage, limits=LIMITS) as peer:
                maker = baggage.provide("maker", Maker)
                _, held = await _fill(peer.export(maker).uri, holder, slots)
        rates = []
        for _ in range(5):
            start = time.perf_counter()
            with durable.open_baggage(place) as baggage:
                netlayer = ocapn.TcpTestingNetlayer(designator="many", listen=False)
                async with ocapn.open_peer([netlayer], baggage=baggage, limits=LIMITS) as peer:
                    rates.append(1 / (time.perf_counter() - start))
                    assert peer.sessions[0].stats()["exports"] > slots
        assert held
    return Figure.of(rates, [1.0])


async def resumes(uri: str, place: Path, scale: float) -> Figure:
    """A cut, and the next answer on the same session; against a new session, and its first answer."""
    sturdyref = ocapn.SturdyRef.parse(uri)
    count = max(10, int(100 * scale))
    with ExitStack() as stack:
        baggages = [stack.enter_context(durable.open_baggage(place / name)) for name in ("resumes", "starts")]
        async with (
            ocapn.open_peer([ocapn.TcpTestingNetlayer(listen=False)], baggage=baggages[0]) as peer,
            ocapn.open_peer([ocapn.TcpTestingNetlayer(listen=False)], baggage=baggages[1]) as fresh,
        ):
            ref, _ = await _fill(uri, peer, 0)
            baggages[0]["client"] = kept.Client(ref)

            async def resume() -> float:
                taken = 0.0
                for _ in range(count):
                    frames = peer.sessions[0]._core.frames
                    assert frames is not None
                    while frames.kept:  # noqa: ASYNC110  # the outbox is to be empty
                        await trio.sleep(0.001)
                    (connection,) = peer._connections.values()
                    start = time.perf_counter()
                    await connection.channel.aclose()
                    await E(ref).add(1)
                    taken += time.perf_counter() - start
                return count / taken

            async def start() -> float:
                taken = 0.0
                for _ in range(count):
                    start = time.perf_counter()
                    await E(await fresh.enliven(sturdyref)).add(1)
                    taken += time.perf_counter() - start
                    fresh.sessions[0].end("measured")
                    await fresh.settled()
                return count / taken

            figure = await pair(resume, start)
            assert len(peer.sessions) == 1
            return figure


def measure(place: Path, scale: float, names: list[str]) -> dict[str, Figure]:
    """Those of the figures that are wanted."""
    figures = {}
    if "turn_100k_slots" in names:
        with (
            server("--makes", "--baggage", str(place / "few")) as (few, _),
            server("--makes", "--baggage", str(place / "many")) as (many, _),
        ):
            figures["turn_100k_slots"] = trio.run(turns, few, many, scale)
    if "opening_100k_slots" in names:
        figures["opening_100k_slots"] = trio.run(opening, place / "opening", scale)
    if "resume" in names:
        with server("--makes", "--baggage", str(place / "resumed")) as (uri, _):
            figures["resume"] = trio.run(resumes, uri, place, scale)
    return figures
