"""What a netlayer costs: the same work over it and over `tcp-testing-only`, in one run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

import trio

import ocapn
from ocapn.netlayers.base import Netlayer
from ocapn.netlayers.onion import OnionNetlayer
from ocapn.netlayers.websocket import WebSocketNetlayer
from tests.bench import calls
from tests.bench.figures import Figure, pair, rate, served, server, thousands

_TRANSPORTS: Final = ("noise", "unix", "websocket", "cbor", "relay", "onion")
NAMES: Final = tuple(
    f"{transport}_{work}"
    for transport in _TRANSPORTS
    for work in ("sequential", "outstanding_1000", "sessions")
)


def measure(scale: float, names: Sequence[str]) -> dict[str, Figure]:
    figures = {}
    for transport in _TRANSPORTS:
        works = [name.partition("_")[2] for name in names if name.startswith(f"{transport}_")]
        if works:
            with served("--netlayer", transport) as told, server() as (plain, _):
                for work in works:
                    figures[f"{transport}_{work}"] = trio.run(
                        _beside, told["uri"], told["socks"], plain, scale, work
                    )
    return figures


async def _beside(uri: str, socks: str | None, plain: str, scale: float, work: str) -> Figure:
    netlayers: list[Netlayer] = [
        ocapn.NoiseNetlayer(listen=False),
        ocapn.UnixNetlayer(),
        ocapn.TcpTestingNetlayer(listen=False),
        WebSocketNetlayer(listen=False),
    ]
    if socks is not None:
        netlayers.append(OnionNetlayer(listen=False, socks=socks))
    async with ocapn.open_peer(netlayers) as peer:
        if work == "sessions":
            count = int(200 * scale)
            ours, other = (
                partial(rate, count, partial(calls.sessions, peer, ocapn.SturdyRef.parse(one)))
                for one in (uri, plain)
            )
            return await pair(ours, other)
        count, call = (
            (thousands(10_000 * scale), calls.outstanding)
            if work == "outstanding_1000"
            else (int(2000 * scale), calls.sequential)
        )
        refs = [await peer.enliven(one) for one in (uri, plain)]
        ours, other = (partial(rate, count, partial(call, ref)) for ref in refs)
        return await pair(ours, other)
