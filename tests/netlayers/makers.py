"""How `check_netlayer` makes netlayers of each kind, each call for a new peer."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from ocapn.netlayers.memory import MemoryNetlayer, MemoryNetwork
from ocapn.netlayers.noise import NoiseNetlayer
from ocapn.netlayers.tcp_testing import TcpTestingNetlayer
from ocapn.netlayers.unix import UnixNetlayer
from ocapn.netlayers.websocket import WebSocketNetlayer
from ocapn.relay import Relay
from ocapn.testing import MakeNetlayer


def memory(network: MemoryNetwork | None = None, *, authenticates: bool = False) -> MakeNetlayer:
    network = network or MemoryNetwork()
    numbers = itertools.count()

    def make(*, listen: bool) -> MemoryNetlayer:
        return MemoryNetlayer(network, f"peer-{next(numbers)}", listen=listen, authenticates=authenticates)

    return make


def tcp(framing: str) -> MakeNetlayer:
    def make(*, listen: bool) -> TcpTestingNetlayer:
        return TcpTestingNetlayer(listen=listen, framing=framing)

    return make


def noise(*, listen: bool) -> NoiseNetlayer:
    return NoiseNetlayer(listen=listen)


def noise_in_cbor(*, listen: bool) -> NoiseNetlayer:
    return NoiseNetlayer(listen=listen, codecs=["cbor"])


@asynccontextmanager
async def relayed() -> AsyncIterator[MakeNetlayer]:
    """Peers that listen nowhere, and are reached through one relay."""
    async with trio.open_nursery() as nursery:
        relay = await nursery.start(Relay().run)

        def make(*, listen: bool) -> NoiseNetlayer:
            return NoiseNetlayer(listen=False, relays=[relay] if listen else [])

        yield make
        nursery.cancel_scope.cancel()


def websocket(*, listen: bool) -> WebSocketNetlayer:
    return WebSocketNetlayer(listen=listen)


def unix(directory: Path) -> MakeNetlayer:
    numbers = itertools.count()

    def make(*, listen: bool) -> UnixNetlayer:
        return UnixNetlayer(directory / f"{next(numbers)}.sock" if listen else None)

    return make
